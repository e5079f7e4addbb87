"""A model without the rounding between its layers, to certify what was cut.

A sum taken in another order may put a value on the other side of a step, and one step is much more than the certificate
allows. Cutting and rounding have nothing to do with each other: what is exact without the one is exact with it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.edit import new_constant

_GIVES_FLOAT = "MatMulIntegerToFloat"
_ROUNDS = ("QuantizeLinear", "DynamicQuantizeLinear", "Round")


def unrounded(model: ir.Model) -> ir.Model:
    """A copy in which values that were quantised and dequantised by the same scale go straight through, clipping
    included, and products of such values are taken of the values themselves. What is rounded in other ways stays so."""
    copy = model.clone()
    for node in list(copy.graph):
        if node.op_type == "DequantizeLinear":
            x = _before(node.inputs[0], node.inputs[1:], _axis(node))
            if x is not None:
                _bypass(copy.graph, node, x)
        elif node.op_type == _GIVES_FLOAT:
            _in_float(copy.graph, node)
    for node in reversed(list(copy.graph)):
        if node.op_type == "QuantizeLinear" and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            copy.graph.remove(node, safe=True)
    return copy


def rounds(model: ir.Model) -> bool:
    """Whether anything between the layers is rounded to a grid; weights that are stored so are not."""
    return any(node.op_type in _ROUNDS or node.op_type.startswith("QLinear") for node in model.graph)


def _before(value: ir.Value | None, scale: list | tuple, axis: int | None = None) -> ir.Value | None:
    """What a quantised value was, if it was rounded by this scale and zero point, along this axis where they are
    several."""
    made_by = value.producer() if value is not None else None
    if made_by is None or made_by.op_type != "QuantizeLinear":
        return None
    ours, theirs = list(made_by.inputs[1:]), list(scale)
    if len(ours) != len(theirs) or (axis is not None and _axis(made_by) != axis and _is_per_channel(ours[0])):
        return None
    return made_by.inputs[0] if all(_same(a, b) for a, b in zip(ours, theirs, strict=True)) else None


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].value if "axis" in node.attributes else 1


def _is_per_channel(scale: ir.Value) -> bool:
    return scale.const_value is not None and scale.const_value.size > 1


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b or a is None or b is None:
        return a is b
    if a.const_value is None or b.const_value is None:
        return False
    return bool((a.const_value.numpy() == b.const_value.numpy()).all())


def _bypass(graph: ir.Graph, node: ir.Node, x: ir.Value) -> None:
    """Let x stand for what a node gives."""
    y = node.outputs[0]
    if y.is_graph_output():  # it keeps its name
        through = ir.node("Identity", [x], name=f"{node.name}.through")
        graph.insert_before(node, through)
        x = through.outputs[0]
        x.shape, x.type = y.shape, y.type
        for i, out in enumerate(graph.outputs):
            if out is y:
                graph.outputs[i] = x
        x.name, y.name = y.name, f"{y.name}.rounded"
    y.replace_all_uses_with(x)
    graph.remove(node, safe=True)


def _in_float(graph: ir.Graph, node: ir.Node) -> None:
    """x W + b of a node that takes x and W in 8 bits, with x as it was."""
    xq, wq, x_scale, w_scale, x_zero, w_zero, *bias = [*node.inputs, *[None] * 6][:7]
    x = _before(xq, [x_scale, x_zero])
    constants = [v for v in (wq, w_scale, w_zero) if v is not None]
    if x is None or any(v.const_value is None for v in constants):
        return
    whole, scale, *zero = (v.const_value.numpy() for v in constants)
    array = (whole.astype(np.float32) - (zero[0].astype(np.float32) if zero else 0)) * scale  # along the last axis
    weight = new_constant(graph, f"{node.name}.weight.float", array.astype(np.float32))
    made = [ir.node("MatMul", [x, weight], name=f"{node.name}.product")]
    if bias and bias[0] is not None:
        made.append(ir.node("Add", [made[-1].outputs[0], bias[0]], name=f"{node.name}.sum"))
    for step in made:
        step.outputs[0].name = f"{step.name}.y"
        graph.insert_before(node, step)
    _bypass(graph, node, made[-1].outputs[0])
