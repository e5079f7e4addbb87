"""Reads the trace that ONNX Runtime's profiler writes (Chrome tracing JSON). Knows the format, runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphprune.target import Kernel

_SUFFIX = "_kernel_time"


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
