"""Graph surgery for few bits: pairs of QuantizeLinear and DequantizeLinear, integer matrix products, packed weights.

Owns which nodes take and give 8-bit values once some were chosen, and the nodes and constants that say so. Which are
chosen, and what the constants hold, is the quantise pass' affair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphprune.edit import new_constant, stand_for, stands_for
from graphprune.rounding import Rounded
from graphprune.target import IntegerKernels
from graphprune.views import find_bias

_CONTRIB = "com.microsoft"
_PER_CHANNEL = 13
"""The opset from which QuantizeLinear and DequantizeLinear know an axis; before it ONNX Runtime's own are used."""
_BIAS_IS_OPTIONAL = 11
"""The opset from which a Gemm may have no bias."""
_MOST_BIAS = 2**30
"""Of an 8-bit node, in steps: with what the inputs add it must stay below 2^31."""


@dataclass(frozen=True)
class Weight:
    """A linear node's weight [out, in] and bias [out] as a matrix product takes them, whatever its attributes say."""

    matrix: np.ndarray
    bias: np.ndarray | None


def weight_of(node: ir.Node) -> Weight | None:
    """The constant float32 weight of a Conv, Gemm or MatMul; None where it has none of two axes (of more for Conv), or
    a bias that is no constant of one number per output."""
    w = node.inputs[1] if len(node.inputs) > 1 else None
    x = node.inputs[0]
    if w is None or x is None or not w.is_initializer() or x.is_initializer() or node.domain:
        return None
    array = w.const_value.numpy()
    if array.dtype != np.float32:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not bias.is_initializer():
        return None
    b = None if bias is None else bias.const_value.numpy()
    if b is not None and b.size > 1 and b.shape[-1] != b.size:
        return None  # one number per row
    b = None if b is None else b.reshape(-1)
    if node.op_type == "Conv":
        return Weight(array.reshape(len(array), -1), b)
    if array.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return Weight(array.T, None)
    if node.op_type != "Gemm" or _number(node, "transA", 0):
        return None
    matrix = np.float32(_number(node, "alpha", 1.0)) * (array if _number(node, "transB", 0) else array.T)
    if b is not None and b.size not in (1, len(matrix)):
        return None
    if b is not None:
        b = np.float32(_number(node, "beta", 1.0)) * np.broadcast_to(b, len(matrix))
    return Weight(matrix, b)


def _output_axis(node: ir.Node) -> int:
    """The axis of a linear node's own weight that its outputs lie on."""
    turned = node.op_type == "Gemm" and _number(node, "transB", 0)
    return 0 if node.op_type == "Conv" or turned else 1


def _number(node: ir.Node, name: str, default: float) -> float:
    a = node.attributes.get(name)
    return default if a is None else a.value


@dataclass
class Static:
    """Nodes of a model that take, and as far as they can give, 8-bit values."""

    model: ir.Model
    nodes: set[ir.Node]
    outputs: dict[ir.Node, ir.Value] = field(default_factory=dict)
    """Node -> the value that it gives as 8-bit numbers, behind its activation if it has one."""
    quantised: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Value -> the one whose range it shares: itself, unless a carrier only moved it."""
    guarded: list[ir.Node] = field(default_factory=list)
    """Nodes left in floating point whose weights a runtime would round, as they take and give 8-bit values."""

    @classmethod
    def of(
        cls, model: ir.Model, linear: Iterable[ir.Node], followers: Iterable[ir.Node], kernels: IntegerKernels,
        others: Iterable[ir.Node] = (),
    ) -> Static:  # fmt: skip
        """Settle what the choice of some linear nodes and followers means for the values between them. others: nodes
        that are written in another way."""
        found, others = cls(model, set(linear) | set(followers)), set(others)
        giving = [n for n in model.graph if n.op_type == "Conv" or n.op_type in kernels.followers]
        found.outputs = {n: _behind_activation(n) for n in giving if n in found.nodes}
        found._carry(kernels)
        found.guarded = [n for n in model.graph if n not in others and found._is_between(n, kernels)]
        for node in model.graph:
            if node in found.nodes:
                for v in _data(node, kernels):
                    found.quantised.setdefault(v, v)
                if node in found.outputs:
                    v = found.outputs[node]
                    if node.op_type in kernels.carriers:
                        found.quantised[v] = found.quantised[node.inputs[0]]
                    else:
                        found.quantised.setdefault(v, v)
        return found

    def _is_between(self, node: ir.Node, kernels: IntegerKernels) -> bool:
        """A convolution, transposed or not, or a Gemm that was not chosen but takes and gives 8-bit values, if only
        through carriers: runtimes then round its weight, asked or not."""
        able = weight_of(node) is not None or (node.op_type == "ConvTranspose" and node.inputs[1].is_initializer())
        if not able or node in self.nodes:
            return False
        if node.op_type == "MatMul" and not _becomes_gemm(node):
            return False
        x, made = node.inputs[0], {id(v) for v in self.outputs.values()}
        while id(x) not in made and x.producer() is not None and _is_carrier(x.producer(), kernels):
            x = x.producer().inputs[0]
        return id(x) in made and self._is_taken(_behind_activation(_bias_behind(node) or node), kernels)

    def _is_taken(self, value: ir.Value, kernels: IntegerKernels) -> bool:
        """Whether the value is wanted in 8 bits and no other form."""
        uses = list(value.uses())
        if value.is_graph_output() or not uses:
            return False
        if len(uses) == 1 and _is_carrier(uses[0].node, kernels):
            return self._is_taken(uses[0].node.outputs[0], kernels)
        return all(use.node in self.nodes for use in uses)

    def _carry(self, kernels: IntegerKernels) -> None:
        """Carriers between a node that gives 8-bit values and one that takes them."""
        made = {id(v) for n, v in self.outputs.items() if n.op_type not in kernels.carriers}
        self.nodes -= {n for n in self.nodes if n.op_type in kernels.carriers}
        self.outputs = {n: v for n, v in self.outputs.items() if n in self.nodes}
        carried: list[ir.Node] = []
        for node in self.model.graph:
            if _is_carrier(node, kernels) and node not in self.nodes and id(node.inputs[0]) in made:
                carried.append(node)
                made.add(id(node.outputs[0]))
        for node in reversed(carried):
            if any(use.node in self.nodes for use in node.outputs[0].uses()):
                self.nodes.add(node)
        for node in carried:
            if node in self.nodes:
                self.outputs[node] = node.outputs[0]


def _data(node: ir.Node, kernels: IntegerKernels) -> list[ir.Value]:
    """The inputs of a node that are activations."""
    if node.op_type in kernels.linear or node.op_type in kernels.carriers:
        return [node.inputs[0]]
    return [v for v in node.inputs if v is not None and not v.is_initializer()]


def _is_carrier(node: ir.Node, kernels: IntegerKernels) -> bool:
    return node.op_type in kernels.carriers and not node.domain and len(node.outputs) == 1


def _is_matrix_product(node: ir.Node) -> bool:
    """Whether both factors have two axes."""
    shapes = [v.shape for v in (node.inputs[0], node.outputs[0]) if v.shape is not None]
    return bool(shapes) and shapes[0].rank() == 2


def _bias_behind(node: ir.Node) -> ir.Node | None:
    """The Add behind a MatMul that does nothing else than add a constant to each output."""
    if node.op_type != "MatMul":
        return None
    place, y = find_bias(node, len(weight_of(node).matrix)), node.outputs[0]
    if place.node is None:
        return None
    rank = len(place.node.inputs[place.operand].const_value.shape)
    return place.node if rank <= (1 if y.shape is None else y.shape.rank()) else None


def _becomes_gemm(node: ir.Node) -> bool:
    """Whether ONNX Runtime makes a Gemm of a MatMul and what is added behind it, before it looks for 8 bits: of two
    matrices it does, of more axes, with reshapes around it, where all sizes are known."""
    x = node.inputs[0].shape
    return _is_matrix_product(node) or (_bias_behind(node) is not None and x is not None and x.is_static())


def _behind_activation(node: ir.Node) -> ir.Value:
    """The node's output, or that of the only node behind it where this clips, as rounding to a range does anyway."""
    y = node.outputs[0]
    uses = list(y.uses())
    if len(uses) == 1 and not y.is_graph_output() and uses[0].idx == 0:
        act = uses[0].node
        limits = limits_of(act.outputs[0])
        if limits is not None and limits[0] <= 0 <= limits[1]:  # zero is on every grid
            return act.outputs[0]
    return y


def limits_of(value: ir.Value) -> tuple[float, float] | None:
    """What the Relu or Clip that makes a value clips it to; None where none does, or where the limits are computed."""
    act = value.producer()
    if act is None or act.domain or act.op_type not in ("Relu", "Clip"):
        return None
    if act.op_type == "Relu":
        return 0.0, math.inf
    limits = [_number(act, "min", -math.inf), _number(act, "max", math.inf)]
    for i, v in enumerate(act.inputs[1:]):
        if v is not None:
            if not v.is_initializer():
                return None
            limits[i] = float(v.const_value.numpy())
    return limits[0], limits[1]


class Writer:
    """Writes few-bit nodes into a model, in place. Constants are made with the right names, types and shapes, and hold
    what `ranges` (value name -> scale and zero point of uint8) and the given weights say."""

    def __init__(self, model: ir.Model, ranges: Mapping[str, tuple[np.float32, int]]) -> None:
        self.model, self.graph, self.ranges = model, model.graph, ranges
        self.opset = model.opset_imports.get("", 1)
        self.domain = "" if self.opset >= _PER_CHANNEL else _CONTRIB
        self._dynamic: dict[ir.Value, ir.Node] = {}

    def static(self, plan: Static, rounded: Mapping[str, Rounded], kernels: IntegerKernels):
        """rounded: linear node -> its weight [out, in] in 8 bits."""
        order = [n for n in self.graph if n in plan.nodes]
        made = {id(v) for v in plan.outputs.values()}
        scales: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        for value, like in plan.quantised.items():
            if like not in scales:
                scale, zero = self.ranges.get(like.name, (np.float32(1), 128))
                scales[like] = (
                    new_constant(self.graph, f"{like.name}.scale", np.asarray(scale, np.float32)),
                    new_constant(self.graph, f"{like.name}.zero", np.asarray(zero, np.uint8)),
                )
            q = self._node("QuantizeLinear", [value, *scales[like]], f"{value.name}.quantise", ir.DataType.UINT8,
                           value.shape, {})  # fmt: skip
            takers = [u for u in list(value.uses()) if u.node is not q]
            self._insert_behind(value, q)
            after = q
            for use in takers:
                inside = use.node in plan.nodes and (use.idx == 0 or use.node.op_type not in kernels.linear)
                if inside or id(value) in made:
                    name = f"{value.name}.back.{use.node.name}.{use.idx}"
                    back = self._dequantise(value, q.outputs[0], scales[like], name)
                    self.graph.insert_after(after, back)
                    after = back
                    use.node.replace_input_with(use.idx, back.outputs[0])
            if id(value) in made and value.is_graph_output():
                self._give_out(value, q, scales[like])
        for node in order:
            if node.op_type in kernels.linear:
                self._static_weight(node, rounded[node.name], self._scale_of(node))
        for node in plan.guarded:
            self._guard(node)

    def _guard(self, node: ir.Node) -> None:
        """Keep a node in floating point: behind something that changes nothing, but that no runtime knows to be so."""
        x = node.inputs[0]
        least = new_constant(self.graph, f"{node.name}.least", np.asarray(np.finfo(np.float32).min, np.float32))
        same = self._node("Max", [x, least], f"{node.name}.guard", x.dtype, x.shape, {})
        self.graph.insert_before(node, same)
        node.replace_input_with(0, same.outputs[0])

    def _scale_of(self, node: ir.Node) -> np.ndarray:
        """The constant that holds the scale of what the node takes."""
        return node.inputs[0].producer().inputs[1].const_value.numpy()

    def _give_out(self, value: ir.Value, q: ir.Node, scale) -> None:
        """An output of the graph that only exists as 8-bit numbers is given out dequantised, under its own name."""
        back = self._dequantise(value, q.outputs[0], scale, f"{value.name}.out")
        self.graph.insert_after(q, back)
        for i, out in enumerate(self.graph.outputs):
            if out is value:
                self.graph.outputs[i] = back.outputs[0]
        name = value.name
        value.name = f"{name}.float"
        back.outputs[0].name = name

    def _dequantise(self, value: ir.Value, q: ir.Value, scale: tuple[ir.Value, ir.Value], name: str) -> ir.Node:
        return self._node("DequantizeLinear", [q, *scale], name, value.dtype or ir.DataType.FLOAT, value.shape, {})

    def _static_weight(self, node: ir.Node, rounded: Rounded, x_scale: np.ndarray) -> None:
        add = _bias_behind(node)
        if node.op_type == "MatMul" and _is_matrix_product(node):
            self._as_gemm(node, add)
        elif add is not None:
            self._integer_product(node, add, rounded)
            return
        weight, whole, scale = weight_of(node), rounded.q, np.asarray(rounded.scale, np.float64)
        if weight.bias is not None:  # where weights are next to nothing, a bias would be beyond 32 bits in their steps
            coarser = np.maximum(np.abs(weight.bias) / (scale * float(x_scale)) / _MOST_BIAS, 1)
            scale, whole = scale * coarser, np.rint(whole / coarser[:, None]).astype(np.int8)
        scale = scale.astype(np.float32)
        axis = _output_axis(node)
        q = whole.reshape(tuple(node.inputs[1].const_value.shape)) if node.op_type == "Conv" else whole
        if axis:
            q = q.T
        for attribute in ("alpha", "beta"):
            node.attributes.pop(attribute, None)  # they are in the rounded weight and the bias
        self._put(node, 1, self._constant_pair(f"{node.name}.weight", np.ascontiguousarray(q), scale, axis))
        if weight.bias is not None:
            step = scale.astype(np.float64) * float(x_scale)
            steps = np.rint(weight.bias / step).astype(np.int32)
            self._put(node, 2, self._constant_pair(f"{node.name}.bias", steps, step.astype(np.float32), 0))

    def _as_gemm(self, node: ir.Node, add: ir.Node | None) -> None:
        """Make a product of two matrices and the constant added to it the one node that runtimes make of them."""
        node.op_type = "Gemm"
        if add is not None:
            bias = self._taken_in(node.name, add)
            self._take_over(add, node.outputs[0])
        elif self.opset < _BIAS_IS_OPTIONAL:
            bias = new_constant(self.graph, f"{node.name}.bias", np.zeros(len(weight_of(node).matrix), np.float32))
        else:
            return
        node.resize_inputs(3)
        node.replace_input_with(2, bias)

    def _integer_product(self, node: ir.Node, add: ir.Node, rounded: Rounded) -> None:
        """The kernel itself that runtimes make of a dequantised product: with what is added to it, and all sizes known,
        they would make a Gemm in floating point."""
        back, y, name = node.inputs[0].producer(), node.outputs[0], node.name
        xq, x_scale, x_zero = back.inputs
        q, scale = np.ascontiguousarray(rounded.q.T), np.asarray(rounded.scale, np.float32)
        operands = [xq, new_constant(self.graph, f"{name}.weight.q", q), x_scale,
                    new_constant(self.graph, f"{name}.weight.scale", scale), x_zero,
                    new_constant(self.graph, f"{name}.weight.zero", np.zeros(len(scale), np.int8)),
                    self._taken_in(name, add)]  # fmt: skip
        product = self._node("MatMulIntegerToFloat", operands, name, y.dtype, y.shape, {}, f"{y.name}.product",
                             _CONTRIB)  # fmt: skip
        stand_for(product, stands_for(node))
        self._replace(node, product, None)
        self._take_over(add, product.outputs[0])
        self.graph.remove(back, safe=True)

    def _taken_in(self, name: str, add: ir.Node) -> ir.Value:
        """The constant that `add` adds, as the bias [out] of a node."""
        bias = next(v for v in add.inputs if v.is_initializer())
        return new_constant(self.graph, f"{name}.bias", bias.const_value.numpy().reshape(-1))

    def _put(self, node: ir.Node, operand: int, made: ir.Node) -> None:
        """Give an operand another maker; what it was goes where nobody else needs it."""
        old = node.inputs[operand]
        self.graph.insert_before(node, made)
        node.replace_input_with(operand, made.outputs[0])
        self._drop(old)

    def _constant_pair(self, name: str, whole: np.ndarray, scale: np.ndarray, axis: int) -> ir.Node:
        inputs = [new_constant(self.graph, f"{name}.q", whole), new_constant(self.graph, f"{name}.scale", scale),
                  new_constant(self.graph, f"{name}.zero", np.zeros(scale.shape, whole.dtype))]  # fmt: skip
        return self._node("DequantizeLinear", inputs, f"{name}.back", ir.DataType.FLOAT, ir.Shape(whole.shape),
                          {"axis": axis})  # fmt: skip

    def _replace(self, node: ir.Node, new: ir.Node, bias: np.ndarray | None) -> None:
        """Put `new`, with a bias added if there is one, where a linear node was; the output keeps its name."""
        y = node.outputs[0]
        self.graph.insert_before(node, new)
        last = new
        if bias is not None:
            constant = new_constant(self.graph, f"{node.name}.bias", np.asarray(bias, np.float32))
            last = self._node("Add", [new.outputs[0], constant], f"{node.name}.shift", y.dtype, y.shape, {})
            self.graph.insert_before(node, last)
        self._take_over(node, last.outputs[0])

    def _take_over(self, node: ir.Node, value: ir.Value) -> None:
        """Remove a node, `value` being what its output was, under its name."""
        y, operands = node.outputs[0], list(node.inputs)
        for i, out in enumerate(self.graph.outputs):
            if out is y:
                self.graph.outputs[i] = value
        y.replace_all_uses_with(value)
        name = y.name
        self.graph.remove(node, safe=True)
        value.name, value.shape = name, y.shape
        for v in operands:
            self._drop(v)

    def dynamic(self, node: ir.Node, rounded: Rounded) -> None:
        """y = x W with x rounded to the range it has at the time, W in 8 bits."""
        q, scale = np.ascontiguousarray(rounded.q.T), rounded.scale
        weight, x, y, name = weight_of(node), node.inputs[0], node.outputs[0], node.name
        source = _source(x)
        if source not in self._dynamic:
            made = ir.node("DynamicQuantizeLinear", [x], name=f"{x.name}.range", num_outputs=3)
            for value, what, dtype in zip(made.outputs, ("q", "scale", "zero"),
                                          (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True):
                value.name, value.type = f"{x.name}.dynamic.{what}", ir.TensorType(dtype)
            self._insert_behind(x, made)
            self._dynamic[source] = made
        xq, xs, xz = self._dynamic[source].outputs
        w = new_constant(self.graph, f"{name}.weight.q", q)
        zero = new_constant(self.graph, f"{name}.weight.zero", np.zeros(len(scale), np.int8))
        s = new_constant(self.graph, f"{name}.weight.scale", np.asarray(scale, np.float32))
        whole = self._node("MatMulInteger", [xq, w, xz, zero], name, ir.DataType.INT32, y.shape, {})
        both = self._node("Mul", [xs, s], f"{name}.scales", ir.DataType.FLOAT, None, {})
        cast = self._node("Cast", [whole.outputs[0]], f"{name}.cast", ir.DataType.FLOAT, y.shape,
                          {"to": int(ir.DataType.FLOAT)})  # fmt: skip
        for step in (whole, both, cast):
            stand_for(step, stands_for(node))
            self.graph.insert_before(node, step)
        product = self._node("Mul", [cast.outputs[0], both.outputs[0]], f"{name}.scaled", y.dtype, y.shape, {})
        self._replace(node, product, weight.bias)

    def packed(self, node: ir.Node, packed: np.ndarray, scale: np.ndarray, bits: int, block: int) -> None:
        """y = x W with W stored in blocks of few bits (MatMulNBits)."""
        weight, y, name = weight_of(node), node.outputs[0], node.name
        out, inputs = weight.matrix.shape
        operands = [node.inputs[0], new_constant(self.graph, f"{name}.weight.q", packed),
                    new_constant(self.graph, f"{name}.weight.scale", scale)]  # fmt: skip
        attributes = {"K": inputs, "N": out, "bits": bits, "block_size": block, "accuracy_level": 4}
        product = self._node("MatMulNBits", operands, name, y.dtype, y.shape, attributes, f"{y.name}.product", _CONTRIB)
        stand_for(product, stands_for(node))
        self._replace(node, product, weight.bias)

    def _insert_behind(self, value: ir.Value, node: ir.Node) -> None:
        """Put a node where `value` is known."""
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self.graph.insert_before(next(iter(self.graph)), node)

    def _drop(self, value: ir.Value) -> None:
        if value is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
            del self.graph.initializers[value.name]

    def _node(self, op: str, inputs, name: str, dtype, shape, attributes, output: str = "", domain: str | None = None):
        domain = domain if domain is not None else (self.domain if op.endswith("tizeLinear") else "")
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        made = ir.node(op, inputs, attributes, domain=domain, name=name)
        y = made.outputs[0]
        y.name, y.shape = output or f"{name}.y", shape
        y.type = ir.TensorType(dtype) if dtype is not None else None
        return made



def _source(value: ir.Value) -> ir.Value:
    """The value itself, or the 8-bit one that it is a form of, which every reader dequantises for itself."""
    made_by = value.producer()
    return made_by.inputs[0] if made_by is not None and made_by.op_type == "DequantizeLinear" else value
