"""`certify`: prune random keep sets of a model's groups, one by one and all at once, and prove each by running.

Needs no data and no target: it answers whether this model, whatever it is, would be pruned correctly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from graphprune.backends import open_backend
from graphprune.backends.base import Backend
from graphprune.errors import GraphpruneError, UsageError
from graphprune.feeds import Feed, InputSpec, parse_shapes, synthetic
from graphprune.groups import Group
from graphprune.oracles import Check, RunAll
from graphprune.oracles import certify as check
from graphprune.prepare import Prepared, lookup_sizes, prepare, run_all, with_inexact
from graphprune.progress import Progress, Silent

VERDICTS = ("exact", "vacuous", "mismatch")
"""From best to worst. "vacuous": equal, but the removal changed nothing that the outputs show."""


@dataclass(frozen=True)
class Certified:
    """One keep set of one group, or of all of them at once (`group` is then None), and its checks.

    size, kept: channels, and how many stayed. ragged: whether other ones stayed for each outer index. inexact: the
    statistic that makes removing something else than zeroing; such groups have no masked oracle. error: what the
    runtime said, where the pruned model did not even run.
    """

    group: str | None
    kind: str
    size: int
    kept: int
    ragged: bool
    inexact: str | None
    checks: tuple[Check, ...]
    error: str = ""

    @property
    def verdict(self) -> str:
        """The worst of the checks; "mismatch" where it did not run."""
        if self.error:
            return "mismatch"
        return max((c.verdict for c in self.checks), key=VERDICTS.index, default="vacuous")

    def worst(self, oracle: str) -> Check | None:
        """The check of this oracle with the largest difference."""
        return max((c for c in self.checks if c.oracle == oracle), key=lambda c: c.difference, default=None)


@dataclass(frozen=True)
class Certificate:
    """What `certify` found. n_groups: in the model, certified or not; shapes: the inputs each keep set ran on."""

    model: str
    n_groups: int
    rows: tuple[Certified, ...]
    together: tuple[Certified, ...]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    seed: int
    seconds: float

    @property
    def failed(self) -> list[Certified]:
        return [row for row in (*self.rows, *self.together) if row.verdict == "mismatch"]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": "mismatch" if self.failed else "certified"}


def certify(
    model: Any, *, shapes: Mapping[str, Sequence[int]] | None = None, groups: int | None = None, seed: int = 0,
    threads: int = 1, progress: Progress | None = None,
) -> Certificate:  # fmt: skip
    """Certify the groups of `model` on random keep sets, on made-up inputs of at least two batch sizes where the batch
    is dynamic.

    shapes: of dynamic inputs, where the model does not run at any. groups: how many, drawn at random (None: all).
    Raises UsageError or ModelError where the model cannot be read or run.
    """
    if groups is not None and groups < 1:
        raise UsageError(f"cannot certify {groups} groups", at="--groups", fix="give 1 or more")
    backend = open_backend("host", threads)
    progress = progress or Silent()
    with progress.stage("load"):
        prepared = with_inexact(prepare(model, backend, shapes))
        asked = parse_shapes(shapes, prepared.specs) if shapes else {}
    return certificate_of(prepared, backend, asked, groups, seed, progress)


def certificate_of(
    prepared: Prepared, backend: Backend, shapes: Mapping[str, Sequence[int]], groups: int | None, seed: int,
    progress: Progress,
) -> Certificate:  # fmt: skip
    """`certify` for a model that is prepared; its analysis says which groups there are."""
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    run = run_all(backend)
    feeds, dense = _feeds(prepared, shapes, seed, run)
    found = prepared.analysis.groups
    names = list(found)
    if groups is not None and groups < len(names):
        names = [names[i] for i in sorted(rng.choice(len(names), groups, replace=False))]
    plans = [(found[name], keep) for name in names for keep in _keep_sets(found[name], rng)]
    rows, together = [], []
    with progress.stage("certify", len(plans) + bool(len(names) > 1)) as step:
        for group, keep in plans:
            rows.append(_certified(prepared, {group.name: keep}, feeds, run, seed, dense))
            step()
        if len(names) > 1:
            every = {group.name: keep for group, keep in plans}  # the last of each group: ragged where it may be
            together.append(_certified(prepared, every, feeds, run, seed, dense))
            step()
    return Certificate(
        prepared.source.name, len(found), tuple(rows), tuple(together),
        tuple({k: v.shape for k, v in feed.items()} for feed in feeds), seed, time.perf_counter() - started,
    )  # fmt: skip


def _keep_sets(group: Group, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A random keep set, and a ragged one where the group may have one."""
    k = int(rng.integers(1, group.size))
    yield np.sort(rng.choice(group.size, k, replace=False))
    if group.outer:
        every = np.broadcast_to(np.arange(group.size), (*(d.size for d in group.outer), group.size))
        yield np.sort(rng.permuted(every, axis=-1)[..., :k], axis=-1)


def _certified(
    prepared: Prepared, keep: Mapping[str, np.ndarray], feeds: Sequence[Feed], run: RunAll, seed: int, dense: Sequence
) -> Certified:
    groups = [prepared.analysis.groups[name] for name in keep]
    checks, error = [], ""
    try:
        checks = check(prepared.analysis, keep, feeds, run, seed, dense)
    except GraphpruneError as e:
        error = e.what
    alone = groups[0] if len(groups) == 1 else None
    return Certified(
        alone.name if alone else None, alone.kind if alone else f"{len(groups)} groups at once",
        sum(g.size for g in groups), sum(int(np.shape(k)[-1]) for k in keep.values()),
        any(np.ndim(k) > 1 for k in keep.values()), str(alone.inexact) if alone and alone.inexact else None,
        tuple(checks), error,
    )  # fmt: skip


def _feeds(
    prepared: Prepared, shapes: Mapping[str, Sequence[int]], seed: int, run: RunAll
) -> tuple[list[Feed], list[Mapping[str, np.ndarray]]]:
    """The binding the model was typed under, the shapes asked for, and both with other sizes on leading dynamic axes,
    as far as the model runs on them; and what it gives on each."""
    bindings = [dict(prepared.traced_at)]
    asked = {s.name: tuple(shapes.get(s.name, prepared.traced_at[s.name])) for s in prepared.specs}
    bindings.append(asked)
    for base in (dict(prepared.traced_at), asked):
        for batch in (2, 1):
            bindings.append(_at_batch(prepared.specs, base, batch))
    unique = list({tuple(sorted(b.items())): b for b in bindings}.values())
    high, feeds, dense = lookup_sizes(prepared.model), [], []
    for i, binding in enumerate(unique):
        (feed,) = synthetic(prepared.specs, binding, 1, seed=seed + i, high=high)
        try:
            dense += run(prepared.model, [feed])
        except GraphpruneError:
            if not feeds:
                raise
            continue
        feeds.append(feed)
        if len(feeds) == 2:
            break
    return feeds, dense


def _at_batch(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], batch: int) -> dict:
    """The shapes with another batch: the dynamic leading axes, and wherever else an axis has the name of one."""
    leading = {s.shape[0] for s in specs if 0 in s.dynamic_axes and isinstance(s.shape[0], str)}
    return {
        s.name: tuple(batch if name in leading or (i == 0 and i in s.dynamic_axes) else n
                      for i, (name, n) in enumerate(zip(s.shape, shapes[s.name], strict=True)))
        for s in specs
    }  # fmt: skip
