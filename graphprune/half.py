"""A model in 16-bit floating point, as strongly typed engines ask for: there the types of the file are those that run.

Weights and activations become float16, inputs and outputs stay what they were, with casts. What leaves the range of
float16 on the given feeds stays in 32 bits, as do operators that have no 16-bit form, and all of If, Loop and Scan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass
from onnxscript import version_converter

from graphprune.errors import ModelError
from graphprune.trace import Feed, Run, exposed

LARGEST = 65504.0
_LEAST_SCALE = 2.0**-24
"""The smallest number above zero in float16: what has a smaller scale than that is next to nothing."""
_MARGIN = 4.0
"""What has come this near to the largest number on some feeds may go over it on others."""
_MASK = 0.02
"""So near to the end of the range, relatively, are the numbers that a mask adds something to."""
_SAME = 1e-3
"""How much outputs may differ, relative to the largest, where constants were brought into the range."""
_HALF_SCALES, _QUANTISED = 19, ("QuantizeLinear", "DequantizeLinear")
_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_STAYS = {"Resize": (1, 2, 3), "Upsample": (1,)}
"""Operator -> inputs that are 32-bit numbers whatever the data are."""
_WIDE = frozenset({
    "BlackmanWindow", "DFT", "HammingWindow", "HannWindow", "MelWeightMatrix", "NonMaxSuppression", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "STFT",
})  # fmt: skip
"""Operators that have no 16-bit form, or none that engines take."""
_TYPED = {"Cast": "to", "EyeLike": "dtype"}
"""Operator -> the attribute that says what it gives."""


def to_half(model: ir.Model, wide: Collection[str] = ()) -> ir.Model:
    """A copy in float16. wide: names of nodes that stay in float32, such as `too_large` finds; constants that they
    alone read stay as they are, others are brought into the range: what is minus infinity in a mask stays that.

    Where values are quantised the opset is raised to 19, from which on scales may be float16. Raises ModelError for a
    model that cannot be converted.
    """
    copy = model.clone()
    if copy.opset_imports.get("", 1) < _HALF_SCALES and any(n.op_type in _QUANTISED for n in copy.graph):
        try:
            version_converter.convert_version(copy, _HALF_SCALES, fallback=True)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the opset cannot be raised to {_HALF_SCALES}: {error}", fix="export it with a newer one"
                             ) from error  # fmt: skip
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    graph = copy.graph
    if any(y.dtype is None for node in graph for y in node.outputs if y.name):
        ShapeInferencePass()(copy)
    given = set(graph.inputs)
    kept = {n for n in graph if n.name in wide or n.op_type in _WIDE or _has_bodies(n)}
    outputs = [value.dtype for value in graph.outputs]
    for value in graph.initializers.values():
        if value.dtype == _FLOAT and value not in given and _is_narrow(value, graph, kept):
            value.const_value = ir.tensor(_narrowed(value), name=value.name)
            value.type = ir.TensorType(_HALF)
    for node in graph:
        if node not in kept:
            _retype(node)
            for y in node.outputs:
                if y.dtype == _FLOAT:
                    y.type = ir.TensorType(_HALF)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        want = _FLOAT if node in kept else _HALF
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype not in (_FLOAT, _HALF) or value.dtype == want:
                continue
            if i in _STAYS.get(node.op_type, ()) or (node.op_type == "Cast" and not node.domain):
                continue
            node.replace_input_with(i, _cast(graph, casts, value, want))
        for user, i, value in list(_captured(node)):
            if value.dtype == _HALF:  # bodies are in 32 bits throughout
                user.replace_input_with(i, _cast(graph, casts, value, _FLOAT))
    for i, (value, dtype) in enumerate(zip(list(graph.outputs), outputs, strict=True)):
        if value.dtype == _HALF and dtype == _FLOAT:
            _give_out(graph, i, value)
    return copy


def saturated(model: ir.Model) -> ir.Model:
    """A copy whose constants are all within the range of float16."""
    copy = model.clone()
    for value in _large_constants(copy):
        value.const_value = ir.tensor(np.clip(value.const_value.numpy(), -LARGEST, LARGEST), name=value.name)
    return copy


def too_large(model: ir.Model, feeds: Sequence[Feed], run: Run) -> set[str]:
    """Names of nodes of the main graph that give or take numbers near or beyond the range of float16 on some feed.

    Constants beyond it count only where the outputs change if they are brought into it: those of masks need not be what
    they are, factors do.
    """
    twin = saturated(model)
    large: set[str] = set()
    constants = {v.name for v in _large_constants(model)}
    if constants and not all(_agree(run(model, feed), run(twin, feed)) for feed in feeds):
        twin, large = model, constants
    names = [y.name for node in twin.graph for y in node.outputs if y.name and y.dtype == _FLOAT]
    shown = exposed(twin, names) if names else None
    for feed in feeds:
        for name, array in {**feed, **(run(shown, feed) if shown is not None else {})}.items():
            if np.asarray(array).dtype.kind == "f" and _leaves(np.asarray(array)):
                large.add(name)
    return {node.name for node in model.graph
            if any(v is not None and v.name in large for v in (*node.inputs, *node.outputs))}  # fmt: skip


def _leaves(array: np.ndarray) -> bool:
    magnitude = np.abs(array)
    masked = np.abs(magnitude / LARGEST - 1) < _MASK
    return not np.isfinite(array).all() or bool((magnitude[~masked] > LARGEST / _MARGIN).any())


def _agree(a: dict, b: dict) -> bool:
    """Whether all floating-point outputs are the same but for rounding."""
    for name, x in a.items():
        x, y = np.asarray(x), np.asarray(b[name])
        if x.dtype.kind == "f" and x.size and not np.abs(x - y).max() <= _SAME * max(float(np.abs(x).max()), 1e-6):
            return False
    return True


def _large_constants(model: ir.Model) -> Iterator[ir.Value]:
    for value in model.graph.initializers.values():
        if value.dtype == _FLOAT and value.const_value is not None:
            array = value.const_value.numpy()
            if array.size and np.abs(array).max() > LARGEST:
                yield value


def _narrowed(value: ir.Value) -> np.ndarray:
    array = np.clip(value.const_value.numpy(), -LARGEST, LARGEST)
    if any(use.idx == 1 and use.node.op_type in _QUANTISED for use in value.uses()):
        array = np.maximum(array, _LEAST_SCALE)  # a scale of nothing would be refused
    return array.astype(np.float16)


def _has_bodies(node: ir.Node) -> bool:
    return any(True for _ in _bodies(node))


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value


def _captured(node: ir.Node) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Where the bodies of a node read values: the reader, which input, the value. Those of the bodies' own are there,
    too; they are in 32 bits."""
    for body in _bodies(node):
        for inner in body:
            yield from ((inner, i, v) for i, v in enumerate(inner.inputs) if v is not None)
            yield from _captured(inner)


def _is_narrow(value: ir.Value, graph: ir.Graph, kept: Collection[ir.Node]) -> bool:
    """Whether some reader wants it in 16 bits; the others cast it."""
    uses = list(value.uses())
    return not uses or any(use.node.graph is graph and use.node not in kept
                           and use.idx not in _STAYS.get(use.node.op_type, ()) for use in uses)  # fmt: skip


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
    graph: ir.Graph, casts: dict[tuple[ir.Value, ir.DataType], ir.Value], value: ir.Value, to: ir.DataType
) -> ir.Value:
    """The value in another type, made once and right behind it."""
    if (value, to) not in casts:
        node = ir.node("Cast", [value], {"to": int(to)}, name=f"{value.name}.as.{to.name.lower()}")
        y = node.outputs[0]
        y.name, y.shape, y.type = f"{value.name}.{to.name.lower()}", value.shape, ir.TensorType(to)
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(next(iter(graph)), node)
        casts[value, to] = y
    return casts[value, to]


def _give_out(graph: ir.Graph, i: int, value: ir.Value) -> None:
    """Output i in 32 bits under its own name."""
    name = value.name
    value.name = f"{name}.half"
    node = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=f"{name}.out")
    y = node.outputs[0]
    y.name, y.shape, y.type = name, value.shape, ir.TensorType(_FLOAT)
    graph.append(node)
    graph.outputs[i] = y
