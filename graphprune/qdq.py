"""Graph surgery for few bits: pairs of QuantizeLinear and DequantizeLinear, integer matrix products, packed weights.

Owns the nodes and constants that say which values are 8-bit ones. Which are is settled in `eight_bit`; which nodes are
chosen, and what the constants hold, is the quantise pass' affair.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphprune.edit import new_constant, stand_for, stands_for
from graphprune.eight_bit import MOST_BIAS, Static, bias_behind, is_matrix_product, output_axis, weight_of
from graphprune.rounding import Rounded
from graphprune.target import IntegerKernels

_CONTRIB = "com.microsoft"
_PER_CHANNEL = 13
"""The opset from which QuantizeLinear and DequantizeLinear know an axis; before it ONNX Runtime's own are used."""
_BIAS_IS_OPTIONAL = 11
"""The opset from which a Gemm may have no bias."""


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
                scale, zero = self.ranges.get(like.name, (np.float32(1), 0 if kernels.symmetric else 128))
                whole = np.int8 if kernels.symmetric else np.uint8
                scales[like] = (
                    new_constant(self.graph, f"{like.name}.scale", np.asarray(scale, np.float32)),
                    new_constant(self.graph, f"{like.name}.zero", np.asarray(zero, whole)),
                )
            q = self._node("QuantizeLinear", [value, *scales[like]], f"{value.name}.quantise",
                           scales[like][1].dtype, value.shape, {})  # fmt: skip
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
                if kernels.symmetric:
                    self._weight(node, rounded[node.name])
                else:
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

    def _weight(self, node: ir.Node, rounded: Rounded) -> None:
        """A weight in 8 bits, dequantised; the bias stays what it is."""
        weight, axis = weight_of(node), output_axis(node)
        q = rounded.q.reshape(tuple(node.inputs[1].const_value.shape)) if node.op_type == "Conv" else rounded.q
        scale = np.asarray(rounded.scale, np.float32)
        if node.op_type == "Gemm" and ("alpha" in node.attributes or "beta" in node.attributes):
            for attribute in ("alpha", "beta"):
                node.attributes.pop(attribute, None)  # they are in the rounded weight, and now in the bias
            if weight.bias is not None:
                old, bias = node.inputs[2], new_constant(self.graph, f"{node.name}.bias", np.array(weight.bias))
                node.replace_input_with(2, bias)
                self._drop(old)
        pair = self._constant_pair(f"{node.name}.weight", np.ascontiguousarray(q.T if axis else q), scale, axis)
        self._put(node, 1, pair)

    def _static_weight(self, node: ir.Node, rounded: Rounded, x_scale: np.ndarray) -> None:
        add = bias_behind(node)
        if node.op_type == "MatMul" and is_matrix_product(node):
            self._as_gemm(node, add)
        elif add is not None:
            self._integer_product(node, add, rounded)
            return
        weight, whole, scale = weight_of(node), rounded.q, np.asarray(rounded.scale, np.float64)
        if weight.bias is not None:  # where weights are next to nothing, a bias would be beyond 32 bits in their steps
            coarser = np.maximum(np.abs(weight.bias) / (scale * float(x_scale)) / MOST_BIAS, 1)
            scale, whole = scale * coarser, np.rint(whole / coarser[:, None]).astype(np.int8)
        scale = scale.astype(np.float32)
        axis = output_axis(node)
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
