"""Look at models without changing them: `explain` what could shrink, `bench` two, `verify` one against another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends import open_backend
from graphprune.backends.base import Backend
from graphprune.errors import UsageError
from graphprune.feeds import Feed, InputSpec, load_calibration, parse_shapes, synthetic
from graphprune.groups import Analysis, Group
from graphprune.load import load, save_bytes
from graphprune.members import BOTH, MAKES, READS, held_weights, members
from graphprune.prepare import Prepared, lookup_sizes, prepare, specs_of, with_inexact
from graphprune.tables import Explanation, FrozenReason, GroupExplanation, GroupRow, OutputRow, Reach
from graphprune.target import Kernel, Timing

_SUFFIXES = (re.compile(r"(_nchwc|_token_\d+)$"), re.compile(r"/[^/]*$"))
"""What the runtime hangs on the name of a node or value that a fused kernel stands for, in the order to take it off."""


def explain(
    model: Any, *, shapes: Mapping[str, Sequence[int]] | None = None, measure: bool = True, threads: int = 1
) -> Explanation:
    """What could shrink in `model`, and what is frozen and why.

    shapes: of dynamic inputs; needed to measure shares of time, which measure=False leaves out. Groups whose axis is
    a statistic of a norm or softmax are listed too, as inexact: `compile` does not touch them.
    """
    look = _Look(model, shapes, measure, threads)
    groups = look.analysis.groups.values()
    return Explanation(
        look.name, len(look.model.graph), look.analysis.n_parameters, look.total_ms,
        look.reach([g for g in groups if g.inexact is None]), look.reach(groups), tuple(map(look.row, groups)),
        tuple(FrozenReason(f.reason, f.hint, f.count, look.share(f.n_parameters), look.share(f.n_locked),
                           look.time(f.nodes), f.example, f.weights, f.nodes, f.axes) for f in look.analysis.frozen),
    )  # fmt: skip


def explain_group(
    model: Any, group: str, *, shapes: Mapping[str, Sequence[int]] | None = None, measure: bool = True,
    threads: int = 1,
) -> GroupExplanation:  # fmt: skip
    """All about one group of `model`: its weights, who makes and who reads it, and the part of the graph it lies in.

    Raises UsageError where there is no group of this name; it lists the nearest, or those that the node or weight of
    this name is in.
    """
    look = _Look(model, shapes, measure, threads)
    found = look.analysis.groups.get(group)
    if found is None:
        raise _no_group(look.analysis, group)
    part = members(look.analysis, found)
    named = {g.dim: f"{g.size:,} in group {g.name}" for g in look.analysis.groups.values()}
    return GroupExplanation(
        look.name, look.row(found), tuple(named.get(d, f"{d.size:,}") for d in found.outer),
        held_weights(look.analysis, found),
        tuple(n.name for n in part.nodes if n.role in (MAKES, BOTH)),
        tuple(n.name for n in part.nodes if n.role in (READS, BOTH)), part,
    )  # fmt: skip


def _no_group(analysis: Analysis, name: str) -> UsageError:
    inside = [g.name for g in analysis.groups.values() if name in g.nodes or name in {w for w, _ in g.weights}]
    close = inside or get_close_matches(name, analysis.groups, n=3, cutoff=0.3)
    word = "it is a node or weight of" if inside else "did you mean"
    return UsageError(f"there is no group {name!r}", at=f"{len(analysis.groups):,} groups, see graphprune explain",
                      fix=f"{word} {', '.join(close[:3])}{'' if inside else '?'}" if close else "")  # fmt: skip


class _Look:
    """A model typed, and profiled if asked, for saying what share of it something has."""

    def __init__(self, model: Any, shapes: Mapping[str, Sequence[int]] | None, measure: bool, threads: int) -> None:
        backend = open_backend("host", threads)
        prepared = with_inexact(prepare(model, backend, shapes))
        self.analysis, self.name, self.model = prepared.analysis, prepared.source.name, prepared.model
        self._times: dict[str, float] = {}
        self.total_ms: float | None = None
        if measure:
            at = parse_shapes(shapes or {}, prepared.specs)
            self._times, self.total_ms = profiled(prepared, backend, at)

    def share(self, n_parameters: int) -> float:
        return n_parameters / max(self.analysis.n_parameters, 1)

    def time(self, nodes: Iterable[str]) -> float | None:
        """Share of the time that is spent in these nodes."""
        return sum(self._times.get(n, 0.0) for n in set(nodes)) / self.total_ms if self.total_ms else None

    def row(self, g: Group) -> GroupRow:
        return GroupRow(g.name, g.kind, g.size, g.nodes, g.n_parameters, self.share(g.n_parameters), self.time(g.nodes),
                        g.inexact is None, str(g.inexact or ""))  # fmt: skip

    def reach(self, groups: Iterable[Group]) -> Reach:
        groups = list(groups)
        weights = {w for g in groups for w, _ in g.weights}
        held = sum(int(self.model.graph.initializers[w].const_value.size) for w in weights)
        return Reach(len(groups), self.share(held), self.time(n for g in groups for n in g.nodes))


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
        name: str | None = k.name
        while name is not None and name not in node_of:
            name = next((shorter for s in _SUFFIXES if (shorter := s.sub("", name)) != name), None)
        if name in node_of:
            times[node_of[name]] = times.get(node_of[name], 0.0) + k.ms
    return times


def bench(
    models: Sequence[Any], *, shapes: Mapping[str, Sequence[int]] | None = None, threads: int = 1,
    seconds: float = 10.0, device: str = "host",
) -> list[Timing]:  # fmt: skip
    """Time models in turns (A B A B) on the same input for about `seconds`; their inputs must have equal names and
    types. device: as `compile` takes it; on one that is not here times are predicted, as their `source` says."""
    backend = open_backend(device, threads)
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
