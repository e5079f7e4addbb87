"""What ONNX Runtime really runs of a model: every kernel with its work and its time.

Joins the graph that the runtime's optimiser leaves with the trace of a profiled run: the first has operators and
weights, the second the shapes and times. Knows both formats, runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends import profile as trace
from graphprune.devices.work import CONTROL, MATRIX, Tensor, Work, work_of
from graphprune.target import Kernel

_BITS = {"float": 32, "double": 64, "float16": 16, "bfloat16": 16, "bool": 8, "string": 64} | {
    f"{sign}int{bits}": bits for sign in ("", "u") for bits in (4, 8, 16, 32, 64)
}


@dataclass(frozen=True)
class Executed:
    """One kernel as the runtime ran it, and what it had to do: unknown of operators with bodies, and of products that
    are not in the graph under their name."""

    kernel: Kernel
    work: Work | None


def executed(
    events: Iterable[Mapping[str, Any]], graph: ir.Graph, feed: Mapping[str, np.ndarray], *, skip_runs: int
) -> list[Executed]:
    """The kernels of the profiled runs of `feed` after the first `skip_runs`, in the order of execution, under the
    names that the runtime gave them. graph: what its optimiser left."""
    events = list(events)
    nodes = {node.name: node for node in graph if node.name}
    shapes = _output_shapes(events) | {
        _fed(name): [Tensor(array.shape, 8 * array.dtype.itemsize)] for name, array in feed.items()
    }
    found = []
    for kernel in trace.kernels(events, skip_runs=skip_runs):
        node = nodes.get(kernel.name)
        work = None
        if node is not None and kernel.op not in CONTROL:
            work = _work(node, shapes)
        elif kernel.op not in (*CONTROL, *MATRIX):  # named by the runtime: its shapes tell all
            work = work_of(kernel.op, {}, [Tensor(s) for s in kernel.inputs], [Tensor(s) for s in kernel.outputs])
        found.append(Executed(kernel, work))
    return found


def _output_shapes(events: Iterable[Mapping[str, Any]]) -> dict[str, list[Tensor]]:
    """Node name -> what it gave."""
    found = {}
    for event in events:
        args = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and "output_type_shape" in args:
            found[event["name"].removesuffix("_kernel_time")] = [
                Tensor(tuple(shape), _BITS.get(kind, 32), floating=kind.endswith(("float", "float16", "double")))
                for entry in args["output_type_shape"] for kind, shape in entry.items()
            ]  # fmt: skip
    return found


def _work(node: ir.Node, shapes: Mapping[str, list[Tensor]]) -> Work:
    outputs = _given(node, shapes)
    inputs = [None if v is None else _tensor(v, shapes) for v in node.inputs]
    attributes = {name: a.value for name, a in node.attributes.items() if a.type != ir.AttributeType.GRAPH}
    work = work_of(node.op_type, attributes, inputs, outputs)
    return replace(work, op=f"{node.domain}.{work.op}" if node.domain.endswith("nchwc") else work.op)


def _given(node: ir.Node, shapes: Mapping[str, list[Tensor]]) -> list[Tensor | None]:
    """What a node gave, by position; the trace leaves out what nobody asked for."""
    traced = iter(shapes.get(node.name, ()))
    return [next(traced, None) if y.name else None for y in node.outputs]


def _tensor(value: ir.Value, shapes: Mapping[str, list[Tensor]]) -> Tensor | None:
    made_by = value.producer()
    if value.const_value is not None and made_by is None:
        return Tensor(tuple(value.const_value.shape.numpy()), value.const_value.dtype.bitwidth, constant=True)
    if made_by is not None:
        given = _given(made_by, shapes)
        return given[value.index()] if value.index() < len(given) else None
    return next(iter(shapes.get(_fed(value.name), ())), None)


def _fed(name: str) -> str:
    """Under what an input of the graph is kept, apart from nodes of the same name."""
    return f"input {name}"

