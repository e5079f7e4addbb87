"""Look at models without changing them: `explain` what could shrink, `bench` two, `verify` one against another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends import open_backend
from graphprune.backends.base import Backend
from graphprune.errors import UsageError
from graphprune.feeds import Feed, InputSpec, load_calibration, parse_shapes, synthetic
from graphprune.load import load, save_bytes
from graphprune.prepare import Prepared, lookup_sizes, prepare, specs_of, with_inexact
from graphprune.report import FrozenRow
from graphprune.tables import Explanation, GroupRow, OutputRow
from graphprune.target import Kernel, Timing

_SUFFIX = re.compile(r"(_nchwc|_token_\d+|/.*)$")


def explain(
    model: Any, *, shapes: Mapping[str, Sequence[int]] | None = None, measure: bool = True, threads: int = 1
) -> Explanation:
    """What could shrink in `model`, and what is frozen and why.

    shapes: of dynamic inputs; needed to measure shares of time, which measure=False leaves out. Groups whose axis is
    a statistic of a norm or softmax are listed too, as inexact: `compile` does not touch them.
    """
    backend = open_backend("host", threads)
    prepared = with_inexact(prepare(model, backend, shapes))
    analysis = prepared.analysis
    times: dict[str, float] = {}
    total_ms = None
    if measure:
        times, total_ms = profiled(prepared, backend, parse_shapes(shapes or {}, prepared.specs))

    def share(nodes: Sequence[str]) -> float | None:
        return sum(times.get(n, 0.0) for n in nodes) / total_ms if total_ms else None

    total = max(analysis.n_parameters, 1)
    groups = tuple(
        GroupRow(
            g.name, g.kind, g.size, g.nodes, g.n_parameters, g.n_parameters / total, share(g.nodes), g.inexact is None
        )
        for g in analysis.groups.values()
    )
    reached = {n for g in analysis.groups.values() for n in g.nodes}
    frozen = tuple(
        FrozenRow(f.reason, f.count, f.n_parameters / total, share([n for n in f.nodes if n not in reached]), f.example)
        for f in analysis.frozen
    )
    return Explanation(
        prepared.source.name, len(list(prepared.model.graph)), analysis.n_parameters, total_ms, groups, frozen
    )


def profiled(
    prepared: Prepared, backend: Backend, at: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, float], float]:
    """Milliseconds by node (see `node_times`), and of all kernels together, on inputs of the shapes `at`."""
    (feed,) = synthetic(prepared.specs, at, 1, 0, lookup_sizes(prepared.model))
    kernels = backend.profile(save_bytes(prepared.model), feed, repeats=9)
    return node_times(prepared.model, kernels), sum(k.ms for k in kernels)


def node_times(model: ir.Model, kernels: Sequence[Kernel]) -> dict[str, float]:
    """Milliseconds by node, as far as fused kernels still bear the name of a node or of the value it makes."""
    node_of = {y.name: node.name for node in model.graph for y in node.outputs}
    node_of |= {node.name: node.name for node in model.graph}
    times: dict[str, float] = {}
    for k in kernels:
        name = k.name
        while name not in node_of and _SUFFIX.search(name):
            name = _SUFFIX.sub("", name)
        if name in node_of:
            times[node_of[name]] = times.get(node_of[name], 0.0) + k.ms
    return times


def bench(
    models: Sequence[Any], *, shapes: Mapping[str, Sequence[int]] | None = None, threads: int = 1, seconds: float = 10.0
) -> list[Timing]:
    """Time models in turns (A B A B) on the same input for about `seconds`; their inputs must have equal names and
    types."""
    backend = open_backend("host", threads)
    sources = [load(m) for m in models]
    specs = _same_inputs([specs_of(s.model) for s in sources])
    (feed,) = synthetic(specs, parse_shapes(shapes or {}, specs), 1, 0, lookup_sizes(sources[0].model))
    return backend.measure([save_bytes(s.model) for s in sources], feed, min_seconds=seconds, max_seconds=seconds)


def verify(
    a: Any, b: Any, *, shapes: Mapping[str, Sequence[int]] | None = None, samples: int = 8, calibration: Any = None,
    seed: int = 0,
) -> list[OutputRow]:  # fmt: skip
    """Compare every output of `b` with that of `a` over synthetic inputs, or over calibration feeds where given.

    Raises UsageError where inputs or outputs differ in name or type; an output of another shape is infinitely far.
    """
    backend = open_backend("host")
    sources = [load(m) for m in (a, b)]
    specs = _same_inputs([specs_of(s.model) for s in sources])
    names = [[v.name for v in s.model.graph.outputs] for s in sources]
    if names[0] != names[1]:
        raise UsageError("the two models have different outputs", at=f"{names[0]} against {names[1]}",
                         fix="compare models of one network")  # fmt: skip
    feeds = _feeds(specs, shapes, samples, calibration, seed, sources[0].model)
    want, have = (_outputs(backend, s.model, feeds) for s in sources)
    return [_row(name, [w[name] for w in want], [h[name] for h in have]) for name in names[0]]


def _feeds(specs, shapes, samples: int, calibration: Any, seed: int, model: ir.Model) -> list[Feed]:
    if calibration is not None:
        return load_calibration(calibration, specs, limit=samples)
    return synthetic(specs, parse_shapes(shapes or {}, specs), samples, seed, lookup_sizes(model))


def _same_inputs(specs: Sequence[Sequence[InputSpec]]) -> Sequence[InputSpec]:
    first = {(s.name, s.dtype) for s in specs[0]}
    for other in specs[1:]:
        if {(s.name, s.dtype) for s in other} != first:
            raise UsageError("the two models take different inputs", at=f"{', '.join(map(str, specs[0]))} against "
                             f"{', '.join(map(str, other))}", fix="compare models of one network")  # fmt: skip
    return specs[0]


def _outputs(backend: Backend, model: ir.Model, feeds: Sequence[Feed]) -> list[dict[str, np.ndarray]]:
    executable = backend.load(model)
    return [executable.run(feed) for feed in feeds]


def _row(name: str, want: Sequence[np.ndarray], have: Sequence[np.ndarray]) -> OutputRow:
    if any(w.shape != h.shape for w, h in zip(want, have, strict=True)):
        return OutputRow(name, float("inf"), float("inf"), 0.0)
    a = np.concatenate([np.asarray(w, np.float64).reshape(-1) for w in want])
    b = np.concatenate([np.asarray(h, np.float64).reshape(-1) for h in have])
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return OutputRow(name, float("inf"), float("inf"), 0.0)
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    error = float(np.linalg.norm(a - b))
    return OutputRow(
        name, float(np.abs(a - b).max(initial=0.0)), error / norm_a if norm_a else (0.0 if not error else float("inf")),
        float(a @ b) / (norm_a * norm_b) if norm_a and norm_b else float(not error),
    )  # fmt: skip
