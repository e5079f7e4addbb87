"""A model in 16-bit floating point, as strongly typed engines ask for: there the types of the file are those that run.

Weights and activations become float16, inputs and outputs stay what they were, with casts. What leaves the range of
float16 on the given feeds stays in 32 bits, as do operators that have no 16-bit form.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir
from onnxscript import version_converter

from graphprune.errors import ModelError
from graphprune.trace import Feed, Run, exposed

LARGEST = 65504.0
_MARGIN = 4.0
"""What has come this near to the largest number on some feeds may go over it on others."""
_MASK = 0.02
"""So near to the end of the range, relatively, are the numbers that a mask adds something to."""
_HALF_SCALES, _QUANTISED = 19, ("QuantizeLinear", "DequantizeLinear")
_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_STAYS = {"Resize": (1, 2, 3), "Upsample": (1,)}
"""Operator -> inputs that are 32-bit numbers whatever the data are."""
_TYPED = {"Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomNormalLike": "dtype",
          "RandomUniform": "dtype", "RandomUniformLike": "dtype"}  # fmt: skip
"""Operator -> the attribute that says what it gives."""


def to_half(model: ir.Model, wide: Collection[str] = ()) -> ir.Model:
    """A copy in float16. wide: names of nodes that stay in float32, such as `too_large` finds.

    Where values are quantised the opset is raised to 19, from which on scales may be float16. Raises ModelError for a
    model that cannot be converted.
    """
    copy = saturated(model)
    if copy.opset_imports.get("", 1) < _HALF_SCALES and any(n.op_type in _QUANTISED for n in copy.graph):
        try:
            version_converter.convert_version(copy, _HALF_SCALES, fallback=True)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the opset cannot be raised to {_HALF_SCALES}: {error}", fix="export it with a newer one"
                             ) from error  # fmt: skip
    for graph in _graphs(copy.graph):
        _convert(graph, frozenset(wide), outermost=graph is copy.graph)
    return copy


def saturated(model: ir.Model) -> ir.Model:
    """A copy whose constants are within the range of float16: what stands for minus infinity in a mask stays that."""
    copy = model.clone()
    for graph in _graphs(copy.graph):
        for value in graph.initializers.values():
            if value.dtype == _FLOAT and value.const_value is not None:
                array = value.const_value.numpy()
                if array.size and np.abs(array).max() > LARGEST:
                    value.const_value = ir.tensor(np.clip(array, -LARGEST, LARGEST), name=value.name)
    return copy


def too_large(model: ir.Model, feeds: Iterable[Feed], run: Run) -> set[str]:
    """Names of nodes of the main graph that give or take numbers near or beyond the range of float16 on some feed."""
    twin = saturated(model)
    names = [y.name for node in twin.graph for y in node.outputs if y.name and y.dtype == _FLOAT]
    shown = exposed(twin, names)
    large: set[str] = set()
    for feed in feeds:
        for name, array in run(shown, feed).items():
            magnitude = np.abs(array)
            masked = np.abs(magnitude / LARGEST - 1) < _MASK
            if not np.isfinite(array).all() or (magnitude[~masked] > LARGEST / _MARGIN).any():
                large.add(name)
    return {node.name for node in model.graph
            if any(v is not None and v.name in large for v in (*node.inputs, *node.outputs))}  # fmt: skip


def _graphs(graph: ir.Graph) -> Iterable[ir.Graph]:
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _graphs(attribute.value)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.value:
                    yield from _graphs(inner)


def _convert(graph: ir.Graph, wide: frozenset[str], *, outermost: bool) -> None:
    nodes = list(graph)
    given = {v for v in graph.inputs if v.dtype == _FLOAT}
    for value in graph.initializers.values():
        if value.dtype == _FLOAT and value not in given and _is_narrow(value, wide):
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
            value.type = ir.TensorType(_HALF)
    kept = {y for node in nodes if node.name in wide for y in node.outputs}
    for node in nodes:
        if node.name in wide:
            continue
        _retype(node)
        for y in node.outputs:
            if y.dtype in (_FLOAT, None) and y not in kept:
                y.type = ir.TensorType(_HALF) if y.dtype == _FLOAT else y.type
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in nodes:
        want = _FLOAT if node.name in wide else _HALF
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype not in (_FLOAT, _HALF) or value.dtype == want:
                continue
            if i in _STAYS.get(node.op_type, ()) or (node.op_type == "Cast" and not node.domain):
                continue
            node.replace_input_with(i, _cast(graph, casts, value, want, node))
    if outermost:
        for i, value in enumerate(list(graph.outputs)):
            if value.dtype == _HALF:
                _give_out(graph, i, value)


def _is_narrow(value: ir.Value, wide: frozenset[str]) -> bool:
    """Whether some reader wants it in 16 bits; the others cast it."""
    uses = list(value.uses())
    return not uses or any(use.node.name not in wide and use.idx not in _STAYS.get(use.node.op_type, ())
                           for use in uses)  # fmt: skip


def _retype(node: ir.Node) -> None:
    """Make a node that names a type name the narrow one."""
    name = _TYPED.get(node.op_type)
    if name in node.attributes and node.attributes[name].value == int(_FLOAT):
        node.attributes[name] = ir.AttrInt64(name, int(_HALF))
    value = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and (value is None or value.value.dtype == _FLOAT):
        filled = np.zeros(1, np.float16) if value is None else value.value.numpy().astype(np.float16)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled))


def _cast(
    graph: ir.Graph, casts: dict[tuple[ir.Value, ir.DataType], ir.Value], value: ir.Value, to: ir.DataType,
    before: ir.Node,
) -> ir.Value:  # fmt: skip
    if (value, to) not in casts:
        node = ir.node("Cast", [value], {"to": int(to)}, name=f"{value.name}.as.{to.name.lower()}")
        y = node.outputs[0]
        y.name, y.shape, y.type = f"{value.name}.{to.name.lower()}", value.shape, ir.TensorType(to)
        producer = value.producer()
        if producer is not None and producer.graph is graph:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(_first(graph, before), node)
        casts[value, to] = y
    return casts[value, to]


def _first(graph: ir.Graph, default: ir.Node) -> ir.Node:
    return next(iter(graph), default)


def _give_out(graph: ir.Graph, i: int, value: ir.Value) -> None:
    """Output i in 32 bits under its own name."""
    name = value.name
    value.name = f"{name}.half"
    node = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=f"{name}.out")
    y = node.outputs[0]
    y.name, y.shape, y.type = name, value.shape, ir.TensorType(_FLOAT)
    graph.append(node)
    graph.outputs[i] = y
