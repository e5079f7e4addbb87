"""Measures what a model costs on this host at any widths: whole models are profiled, kernels are never timed alone.

Random non-uniform plans are built and profiled as they would be deployed, with the runtime's fusions, layouts and warm
caches; each profile is scaled to the model's unprofiled time, taken in turns with the dense model. `cost_fit` turns
that into the terms of a `cost_model.CostModel`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from graphprune.cost_fit import Sample, fit
from graphprune.cost_model import CostModel, Counts, Factor, Monomial, Term
from graphprune.cost_presence import Surroundings
from graphprune.target import Kernel, Timing, speedup

__all__ = ["CostModel", "Factor", "Monomial", "Prices", "Term", "measure_cost", "measure_prices", "random_plan"]

Progress = Callable[[float, str], None]
_MIN_PLANS = 12
_MAX_PLANS, _MAX_MIXED_PLANS = 64, 96
_PREDICTED_PLANS = 32
"""Where times are predicted."""
_MOST_REPLACED = 0.5
_CHOSEN_WEIGHT = 3


class Measurer(Protocol):
    """The part of a backend (see `backends.base.Backend`) that prices are taken with."""

    def load(self, model: Any) -> Any: ...

    def profile(self, model: Any, feed: dict[str, np.ndarray], *, repeats: int) -> list[Kernel]: ...

    def measure(self, models: Sequence[Any], feed: dict[str, np.ndarray], **limits: float) -> list[Timing]: ...

    def fingerprint(self) -> str: ...


def measure_cost(
    sizes: Mapping[str, int], levels: Mapping[str, Sequence[int]], build: Callable[[Counts], Any],
    feed: dict[str, np.ndarray], backend: Measurer, **options: Any,
) -> CostModel:  # fmt: skip
    """The cost model of `measure_prices`, whose arguments these are."""
    return measure_prices(sizes, levels, build, feed, backend, **options).model


@dataclass
class Prices:
    """Profiled plans and the cost model fitted to them; more may be added, where a search has led to."""

    samples: list[Sample]
    levels: Mapping[str, Sequence[int]]
    switches: Collection[str]
    near: Mapping[str, Sequence[Sequence[str]]] | None
    alike: Sequence[Surroundings]
    fingerprint: str
    seconds: float
    model: CostModel = field(init=False)

    def __post_init__(self) -> None:
        self.fit()

    def fit(self, spread: float | None = None) -> CostModel:
        """The cost model of all samples. spread: of its errors, if that is known."""
        found = fit(self.samples, self.levels, self.switches, self.near, self.alike, spread)
        self.model = CostModel(
            kernels=found[0],
            overhead_ms=0.0,
            dense_ms=self.samples[0].ms,
            spread=found[1],
            low={g: min(s.counts[g] for s in self.samples) for g in self.levels},
            high={g: max(s.counts[g] for s in self.samples) for g in self.levels},
            fingerprint=self.fingerprint,
            n_plans=len(self.samples),
            seconds=self.seconds,
        )
        return self.model

    def add(self, counts: Counts, kernels: list[Kernel], ms: float) -> CostModel:
        """Fit again with one more plan: what a search chose counts for more than what was drawn. ms: on the scale of
        the dense model of the samples. The spread stays that of plans drawn at random."""
        self.samples += [Sample(dict(counts), kernels, ms)] * _CHOSEN_WEIGHT
        return self.fit(self.model.spread)


def measure_prices(
    sizes: Mapping[str, int],
    levels: Mapping[str, Sequence[int]],
    build: Callable[[Counts], Any],
    feed: dict[str, np.ndarray],
    backend: Measurer,
    *,
    switches: Collection[str] = (),
    replacing: Collection[str] = (),
    near: Mapping[str, Sequence[Sequence[str]]] | None = None,
    alike: Sequence[Surroundings] = (),
    seed: int = 0,
    seconds: float = 40.0,
    progress: Progress = lambda fraction, text: None,
) -> Prices:
    """Prices of every kernel of `build(counts)` over the levels, from 12 to 64 random plans (96 where kernels come and
    go; 32 where times are predicted).

    sizes: site -> the level that leaves it whole; levels: site -> levels it may take, the whole one last. switches:
    sites whose levels are alternatives rather than sizes. replacing: sites that put other nodes in place; mostly left
    whole. near: node or value name -> rings of sites that may decide whether its kernels are there; alike: the nodes
    whose kernels follow the same rules where the same sites are around them (see `cost_presence`). Stops drawing plans
    after `seconds`. progress receives the fraction done and a line of text.
    """
    started = time.perf_counter()
    dense_model = build(sizes)
    dense = backend.load(dense_model)
    (timing,) = backend.measure([dense], feed, spread=0.01, max_seconds=3.0)
    dense_ms = timing.median_ms
    samples = [Sample(dict(sizes), backend.profile(dense_model, feed, repeats=15), dense_ms)]
    rng = np.random.default_rng(seed)
    most = _MAX_MIXED_PLANS if switches else _MAX_PLANS
    if timing.source != "measured":  # what is predicted does not depend on the hour, so neither may how much
        most, seconds = _PREDICTED_PLANS, math.inf
    for i in range(most if sizes else 0):
        elapsed = time.perf_counter() - started
        if i >= _MIN_PLANS and elapsed > seconds:
            break
        progress(max(i / most, min(elapsed / max(seconds, 1e-3), i / _MIN_PLANS)), f"measuring plan {i + 1}")
        counts = random_plan(sizes, levels, rng, replacing)
        model = build(counts)
        kernels = backend.profile(model, feed, repeats=7)
        base, pruned = backend.measure([dense, model], feed, min_rounds=4, spread=0.015, max_seconds=0.4)
        samples.append(Sample(dict(counts), kernels, dense_ms / speedup(base, pruned).value))
    allowed = {g: sorted({*levels.get(g, ()), n}) for g, n in sizes.items()}
    prices = Prices(samples, allowed, switches, near, alike, backend.fingerprint(), time.perf_counter() - started)
    progress(1.0, f"{len(prices.model.kernels)} terms from {len(samples)} plans")
    return prices


def random_plan(
    sizes: Mapping[str, int], levels: Mapping[str, Sequence[int]], rng: np.random.Generator,
    replacing: Collection[str] = (),
) -> dict[str, int]:  # fmt: skip
    """A non-uniform plan: how much is kept is drawn once for the whole plan, then each group strays from it.

    Drawn independently, the sum over many groups would hardly vary and neither end of the range would be seen.
    """
    centre, reach = rng.uniform(0, 1), rng.uniform(0.2, 1)
    touched = rng.uniform(0, _MOST_REPLACED) if replacing else 0.0
    plan = {}
    for group, size in sizes.items():
        allowed = sorted({*levels.get(group, ()), size})
        position = np.clip(centre + reach * rng.uniform(-1, 1), 0, 1)
        if group in replacing and rng.uniform() > touched:
            position = 1.0
        plan[group] = int(allowed[min(int(position * len(allowed)), len(allowed) - 1)])
    return plan
