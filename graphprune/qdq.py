"""Graph surgery for few bits: pairs of QuantizeLinear and DequantizeLinear, integer matrix products, packed weights.

Owns which nodes take and give 8-bit values once some were chosen, and the nodes and constants that say so. Which are
chosen, and what the constants hold, is the quantise pass' affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphprune.edit import new_constant, stand_for, stands_for
from graphprune.rounding import Rounded
from graphprune.target import IntegerKernels

_CONTRIB = "com.microsoft"
_PER_CHANNEL = 13
"""The opset from which QuantizeLinear and DequantizeLinear know an axis; before it ONNX Runtime's own are used."""
_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Weight:
    """A linear node's weight [out, in] and bias [out] as a matrix product takes them, whatever its attributes say."""

    matrix: np.ndarray
    bias: np.ndarray | None


def weight_of(node: ir.Node) -> Weight | None:
    """The constant weight of a Conv, Gemm or MatMul; None where it has none of two axes (of more for Conv)."""
    w = node.inputs[1] if len(node.inputs) > 1 else None
    x = node.inputs[0]
    if w is None or x is None or not w.is_initializer() or x.is_initializer() or node.domain:
        return None
    array = w.const_value.numpy()
    if array.dtype.kind != "f":
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not bias.is_initializer():
        return None
    b = None if bias is None else bias.const_value.numpy().reshape(-1)
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

    @classmethod
    def of(cls, model: ir.Model, linear: Iterable[ir.Node], followers: Iterable[ir.Node], kernels: IntegerKernels):
        """Settle what the choice of some linear nodes and followers means for the values between them."""
        found = cls(model, set(linear) | set(followers))
        while True:
            giving = [n for n in model.graph if n.op_type == "Conv" or n.op_type in kernels.followers]
            found.outputs = {n: _behind_activation(n) for n in giving if n in found.nodes}
            found._carry(kernels)
            between = [n for n in model.graph if n not in found.nodes and found._is_between(n, kernels)]
            if not between:
                break
            found.nodes |= set(between)
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
        """A convolution that takes and gives 8-bit values anyway: runtimes then round its weight, asked or not."""
        if node.op_type != "Conv" or "static" not in kernels.linear.get("Conv", ()) or weight_of(node) is None:
            return False
        made = any(v is node.inputs[0] for v in self.outputs.values())
        return made and any(use.node in self.nodes for use in _behind_activation(node).uses())

    def _carry(self, kernels: IntegerKernels) -> None:
        """Carriers between a node that gives 8-bit values and one that takes them."""
        made = {id(v) for n, v in self.outputs.items() if n.op_type not in kernels.carriers}
        self.nodes -= {n for n in self.nodes if n.op_type in kernels.carriers}
        self.outputs = {n: v for n, v in self.outputs.items() if n in self.nodes}
        carried: list[ir.Node] = []
        for node in self.model.graph:
            carries = node.op_type in kernels.carriers and not node.domain and len(node.outputs) == 1
            if carries and node not in self.nodes and id(node.inputs[0]) in made:
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


def _behind_activation(node: ir.Node) -> ir.Value:
    """The node's output, or that of the only node behind it where this clips, as rounding to a range does anyway."""
    y = node.outputs[0]
    uses = list(y.uses())
    if len(uses) == 1 and not y.is_graph_output() and uses[0].node.op_type in _ACTIVATIONS and uses[0].idx == 0:
        act = uses[0].node
        if all(v is None or v.is_initializer() for v in act.inputs[1:]):
            return act.outputs[0]
    return y


class Writer:
    """Writes few-bit nodes into a model, in place. Constants are made with the right names, types and shapes, and hold
    what `ranges` (value name -> scale and zero point of uint8) and the given weights say."""

    def __init__(self, model: ir.Model, ranges: Mapping[str, tuple[np.float32, int]]) -> None:
        self.model, self.graph, self.ranges = model, model.graph, ranges
        self.domain = "" if model.opset_imports.get("", 1) >= _PER_CHANNEL else _CONTRIB
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
        weight, scale = weight_of(node), rounded.scale
        axis = _output_axis(node)
        q = rounded.q.reshape(tuple(node.inputs[1].const_value.shape)) if node.op_type == "Conv" else rounded.q
        if axis:
            q = q.T
        for attribute in ("alpha", "beta"):
            node.attributes.pop(attribute, None)  # they are in the rounded weight and the bias
        self._put(node, 1, self._constant_pair(f"{node.name}.weight", np.ascontiguousarray(q), scale, axis))
        if weight.bias is not None:
            step = np.asarray(scale, np.float64) * float(x_scale)
            whole = np.clip(np.rint(weight.bias / step), -(2**31) + 1, 2**31 - 1).astype(np.int32)
            self._put(node, 2, self._constant_pair(f"{node.name}.bias", whole, step.astype(np.float32), 0))

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
        y = node.outputs[0]
        for i, out in enumerate(self.graph.outputs):
            if out is y:
                self.graph.outputs[i] = value
        y.replace_all_uses_with(value)
        name = y.name
        self.graph.remove(node, safe=True)
        value.name = name

    def dynamic(self, node: ir.Node, rounded: Rounded) -> None:
        """y = x W with x rounded to the range it has at the time, W in 8 bits."""
        q, scale = np.ascontiguousarray(rounded.q.T), rounded.scale
        weight, x, y, name = weight_of(node), node.inputs[0], node.outputs[0], node.name
        if x not in self._dynamic:
            made = ir.node("DynamicQuantizeLinear", [x], name=f"{x.name}.range", num_outputs=3)
            for value, what, dtype in zip(made.outputs, ("q", "scale", "zero"),
                                          (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True):
                value.name, value.type = f"{x.name}.dynamic.{what}", ir.TensorType(dtype)
            self._insert_behind(x, made)
            self._dynamic[x] = made
        xq, xs, xz = self._dynamic[x].outputs
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
        self._finish(node, product, weight)

    def packed(self, node: ir.Node, packed: np.ndarray, scale: np.ndarray, bits: int, block: int) -> None:
        """y = x W with W stored in blocks of few bits (MatMulNBits)."""
        weight, y, name = weight_of(node), node.outputs[0], node.name
        out, inputs = weight.matrix.shape
        operands = [node.inputs[0], new_constant(self.graph, f"{name}.weight.q", packed),
                    new_constant(self.graph, f"{name}.weight.scale", scale)]  # fmt: skip
        attributes = {"K": inputs, "N": out, "bits": bits, "block_size": block, "accuracy_level": 4}
        product = self._node("MatMulNBits", operands, name, y.dtype, y.shape, attributes, f"{y.name}.product", _CONTRIB)
        stand_for(product, stands_for(node))
        self._finish(node, product, weight)

    def _finish(self, node: ir.Node, product: ir.Node, weight: Weight) -> None:
        old = [v for v in node.inputs[1:] if v is not None]
        self._replace(node, product, weight.bias)
        for v in old:
            self._drop(v)

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

