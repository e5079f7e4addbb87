"""Every sample of the operator table as a step of a network: a linear map to the sample's x, then its nodes up to y."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx import GraphProto, NodeProto, printer

from graphprune.rules import TABLE, Sample
from tests.fuzz.writer import Shape, Value, Writer
from tests.graphs import model_of, run_all

Key = tuple[str, str, int]
"""Domain and operator of a rule, number of the sample."""
SAMPLES: dict[Key, Sample] = {
    (*key, i): sample for key, rule in TABLE.items() for i, sample in enumerate(rule.samples)
}
BATCHES = (5, 2)
"""Sizes that the first axis must bear to be a batch: those that networks are run with."""
_SPREAD, _WILD = 2.0, 8.0
"""Outputs beyond the second of normal inputs of the first would drown the rest of the network, or overflow soon."""


@dataclass(frozen=True)
class Probe:
    """A sample run alone.

    shape: of y. batched: whether the first axis of x is a batch that may have any size and is the first of y. scale:
    what y is multiplied by before it is squashed, None if it need not be. dull: whether y has few different values, so
    that it hides what goes on before it. nodes, weights: what it is made of.
    """

    shape: Shape
    batched: bool
    scale: float | None
    dull: bool
    nodes: tuple[NodeProto, ...]
    weights: dict[str, np.ndarray]


@cache
def probe(key: Key, opset: int) -> Probe | None:
    """None if the sample cannot run under this opset, gives random numbers, or a shape that depends on the data."""
    sample = SAMPLES[key]
    try:
        y, again, other = _run(sample, opset, sample.x[0])
    except Exception:  # whatever the parser or a runtime has against it
        return None
    if not np.array_equal(y, again, equal_nan=True) or y.shape != other.shape:
        return None
    try:
        others = [_run(sample, opset, n)[0].shape for n in BATCHES]
    except Exception:
        others = []
    graph = ir.to_proto(_model(sample, opset)).graph
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    tied = any(w.shape[:1] == sample.x[:1] for w in weights.values())  # labels and the like, one for each of the batch
    batched = not tied and y.ndim > 0 and y.shape[0] == sample.x[0] and others == [(n, *y.shape[1:]) for n in BATCHES]
    return Probe(y.shape, batched, _scale(y), np.unique(y).size < y.size / 4, tuple(graph.node), weights)


def _scale(y: np.ndarray) -> float | None:
    if np.isfinite(y).all() and np.abs(y).max(initial=0) <= _WILD:
        return None
    return 1 / max(float(np.median(np.abs(y[np.isfinite(y)]))), 1.0)


def _model(sample: Sample, opset: int) -> ir.Model:
    return model_of(sample.text, {"x": ("batch", *sample.x[1:])}, sample.weights, ("y",), opset)


def _run(sample: Sample, opset: int, batch: int) -> list[np.ndarray]:
    """y of two runs on the same x, and of one on another."""
    x, other = np.random.default_rng(0).normal(0, _SPREAD, (2, batch, *sample.x[1:])).astype(np.float32)
    return [outputs["y"] for outputs in run_all(_model(sample, opset), [{"x": x}, {"x": x}, {"x": other}])]


def apply(b: Writer, x: str, s: Shape, key: Key) -> Value:
    """Go through a sample; a sample that does not run under the model's opset is passed over. One whose first axis is
    of a fixed size works on the mean of the batch, and what it gives is added to every one."""
    sample, found = SAMPLES[key], probe(key, b.opset)
    if found is None:
        return x, s
    if found.batched:
        y = _insert(b, found, b.fit(x, s, sample.x[1:]))
        after = found.shape[1:] or (1,)
        y = y if len(found.shape) > 1 else b.reshape(y, 1)
        return b.op(f"Add({y}, {b.fit(x, s, after)})") if found.dull else y, after
    y = _insert(b, found, b.fit_alone(x, s, sample.x))
    y = b.op(f"MatMul({b.op(f'Reshape({y}, {b.ints(-1)})')}, {b.weight(prod(found.shape), prod(s))})")
    return b.op(f"Add({x}, {b.op(f'Reshape({y}, {b.ints(*s)})')})"), s


def _insert(b: Writer, found: Probe, x: str) -> str:
    names = {"": "", "x": x} | {name: b.constant(array) for name, array in found.weights.items()}
    prefix = f"s{len(b.lines)}"
    for node in found.nodes:
        copy = renamed(node, lambda name: names.setdefault(name, f"{prefix}_{name}"))
        b.lines.append(printer.to_text(copy))
    y = names["y"]
    return y if found.scale is None else b.op(f"Tanh({b.op(f'Mul({y}, {b.constant(np.float32(found.scale))})')})")


def renamed(node: NodeProto, name: Callable[[str], str]) -> NodeProto:
    """A copy of a node, and of the graphs in it, with all values renamed."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("name")
    copy.input[:] = [name(n) for n in node.input]
    copy.output[:] = [name(n) for n in node.output]
    for attribute in copy.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            _rename_graph(graph, name)
    return copy


def _rename_graph(graph: GraphProto, name: Callable[[str], str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = name(value.name)
    nodes = [renamed(node, name) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
