"""Measures what a model costs on this host at any widths: whole models are profiled, kernels are never timed alone.

Random non-uniform plans are built and profiled as they would be deployed, with the runtime's fusions, layouts and warm
caches; each profile is scaled to the model's unprofiled time, taken in turns with the dense model. `cost_fit` turns
that into the terms of a `cost_model.CostModel`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from graphprune.cost_fit import Sample, fit
from graphprune.cost_model import CostModel, Counts, Factor, Monomial, Term
from graphprune.target import Kernel, Timing, speedup

__all__ = ["CostModel", "Factor", "Monomial", "Term", "measure_cost", "random_plan"]

Progress = Callable[[float, str], None]
_MIN_PLANS = 12
_MAX_PLANS = 64


class Measurer(Protocol):
    """The part of a backend (see `backends.base.Backend`) that prices are taken with."""

    def load(self, model: Any) -> Any: ...

    def profile(self, model: Any, feed: dict[str, np.ndarray], *, repeats: int) -> list[Kernel]: ...

    def measure(self, models: Sequence[Any], feed: dict[str, np.ndarray], **limits: float) -> list[Timing]: ...

    def fingerprint(self) -> str: ...


def measure_cost(
    sizes: Mapping[str, int],
    levels: Mapping[str, Sequence[int]],
    build: Callable[[Counts], Any],
    feed: dict[str, np.ndarray],
    backend: Measurer,
    *,
    switches: Collection[str] = (),
    seed: int = 0,
    seconds: float = 40.0,
    progress: Progress = lambda fraction, text: None,
) -> CostModel:
    """Prices of every kernel of `build(counts)` over the levels, from at most 64 and at least 12 random plans.

    sizes: site -> the level that leaves it whole; levels: site -> levels it may take, the whole one last. switches:
    sites whose levels are alternatives rather than sizes. Stops drawing plans after `seconds`. progress receives the
    fraction done and a line of text.
    """
    started = time.perf_counter()
    dense_model = build(sizes)
    dense = backend.load(dense_model)
    dense_ms = backend.measure([dense], feed, spread=0.01, max_seconds=3.0)[0].median_ms
    samples = [Sample(dict(sizes), backend.profile(dense_model, feed, repeats=15), dense_ms)]
    rng = np.random.default_rng(seed)
    for i in range(_MAX_PLANS if sizes else 0):
        elapsed = time.perf_counter() - started
        if i >= _MIN_PLANS and elapsed > seconds:
            break
        progress(max(i / _MAX_PLANS, min(elapsed / max(seconds, 1e-3), i / _MIN_PLANS)), f"measuring plan {i + 1}")
        counts = random_plan(sizes, levels, rng)
        model = build(counts)
        kernels = backend.profile(model, feed, repeats=7)
        base, pruned = backend.measure([dense, model], feed, min_rounds=4, spread=0.015, max_seconds=0.4)
        samples.append(Sample(counts, kernels, dense_ms / speedup(base, pruned).value))
    terms, spread = fit(samples, {g: sorted({*levels.get(g, ()), n}) for g, n in sizes.items()}, switches)
    progress(1.0, f"{len(terms)} terms from {len(samples)} plans")
    return CostModel(
        kernels=terms,
        overhead_ms=0.0,
        dense_ms=dense_ms,
        spread=spread,
        low={g: min(s.counts[g] for s in samples) for g in sizes},
        high={g: max(s.counts[g] for s in samples) for g in sizes},
        fingerprint=backend.fingerprint(),
        n_plans=len(samples),
        seconds=time.perf_counter() - started,
    )


def random_plan(
    sizes: Mapping[str, int], levels: Mapping[str, Sequence[int]], rng: np.random.Generator
) -> dict[str, int]:
    """A non-uniform plan: how much is kept is drawn once for the whole plan, then each group strays from it.

    Drawn independently, the sum over many groups would hardly vary and neither end of the range would be seen.
    """
    centre, reach = rng.uniform(0, 1), rng.uniform(0.2, 1)
    plan = {}
    for group, size in sizes.items():
        allowed = sorted({*levels.get(group, ()), size})
        position = np.clip(centre + reach * rng.uniform(-1, 1), 0, 1)
        plan[group] = int(allowed[min(int(position * len(allowed)), len(allowed) - 1)])
    return plan
