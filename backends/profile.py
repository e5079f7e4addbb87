"""Reads the trace that ONNX Runtime's profiler writes (Chrome tracing JSON). Knows the format, runs nothing.

Also knows how the runtime names what it fuses, moves and makes up: after a node, after a value, with a number that
depends on everything it did before. Here every kernel is named by the node of the model whose work it does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.target import Kernel

_SUFFIX = "_kernel_time"
_MADE_UP = re.compile(r"(_nchwc|_quant|_token_\d+)+$")
_FUSED = "fused "
_LINEAR = ("Conv", "Gemm", "MatMul", "ConvTranspose")
_MOVES = ("QuantizeLinear", "DequantizeLinear", "Cast", "Transpose", "Reshape", "ReorderInput", "ReorderOutput")
"""Operators that runtimes put beside nodes whose names they then borrow."""


def kernels(events: Iterable[Mapping[str, Any]], *, skip_runs: int) -> list[Kernel]:
    """Kernels of the profiled runs after the first `skip_runs`, in order of execution, with their times in ms.

    The lower quartile over runs: what disturbs a run only ever adds time.

    A kernel inside another (the body of a Loop or If) is part of the outer one and not listed.
    """
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX)]
    nodes.sort(key=lambda e: (e["ts"], -e["dur"]))
    starts = sorted(e["ts"] for e in events if e.get("name") == "model_run")[skip_runs:]
    times_us: dict[str, list[float]] = {}
    described: dict[str, Mapping[str, Any]] = {}
    run_ends = [*starts[1:], float("inf")]
    position = 0
    for start, end in zip(starts, run_ends, strict=True):
        while position < len(nodes) and nodes[position]["ts"] < start:
            position += 1
        free_from = 0.0
        while position < len(nodes) and nodes[position]["ts"] < end:
            event = nodes[position]
            position += 1
            if event["ts"] < free_from:
                continue
            free_from = event["ts"] + event["dur"]
            name = event["name"].removesuffix(_SUFFIX)
            times_us.setdefault(name, []).append(event["dur"])
            described[name] = event["args"]
    return [
        Kernel(
            name=name,
            op=args["op_name"],
            ms=float(np.quantile(times_us[name], 0.25)) / 1e3,
            inputs=_shapes(args.get("input_type_shape", ())),
            outputs=_shapes(args.get("output_type_shape", ())),
        )
        for name, args in described.items()
    ]


def _shapes(typed: Iterable[Mapping[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for entry in typed for shape in entry.values())


def named(found: Iterable[Kernel], graph: ir.Graph) -> list[Kernel]:
    """Kernels under names that depend only on what they do: that of the node of `graph` they stand for (of a fused
    convolution, the convolution); where the runtime made one up, as changes of layout are, "OP after KERNEL". Names are
    unique. An operator for weights of several widths is several: "OP, 4 bits"."""
    names = _Names(graph)
    kernels, before, seen = list(found), "", Counter()
    stems = [_MADE_UP.sub("", k.name).removeprefix(_FUSED) for k in kernels]
    names.visible = set(stems)
    result = []
    for kernel, stem in zip(kernels, stems, strict=True):
        own = names.node_of(stem)
        before = own or before
        if own is None or (kernel.op in _MOVES and names.nodes[own].op_type != kernel.op):
            name = f"{kernel.op} after {before}" if before else f"{kernel.op} at the start"
        else:
            name = own
            node = names.nodes.get(own)  # None where it has no name
            if node is not None and node.op_type == kernel.op and "bits" in node.attributes:
                kernel = replace(kernel, op=f"{kernel.op}, {node.attributes['bits'].value} bits")
        seen[name] += 1
        result.append(replace(kernel, name=f"{name} {seen[name]}" if seen[name] > 1 else name))
    return result


class _Names:
    """Nodes of a graph by the names that the runtime gives to kernels."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes = {node.name: node for node in graph if node.name}
        self.values = {y.name: y for node in graph for y in node.outputs if y.name}
        self.visible: set[str] = set()
        """Values and nodes that kernels are named after."""

    def node_of(self, name: str) -> str | None:
        """By the whole name, or by as much of its beginning as is that of a node or a value."""
        ends = [i for i in range(len(name) - 1, 0, -1) if not name[i].isalnum()]
        for stem in (name, *(name[:i] for i in ends)):
            if stem in self.nodes:
                return stem
            if stem in self.values:
                return self._maker(self.values[stem])
        return None

    def _maker(self, value: ir.Value) -> str:
        """The linear node behind a value, through what the runtime fuses with it; else the node that makes it."""
        waiting, seen = [value], set()
        while waiting:
            v = waiting.pop()
            node = v.producer()
            if node is None or id(v) in seen or (v is not value and {v.name, node.name} & self.visible):
                continue
            seen.add(id(v))
            if node.op_type in _LINEAR:
                return node.name
            waiting += [x for x in node.inputs if x is not None]
        return value.producer().name
