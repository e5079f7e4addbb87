"""What each site really costs the output, and the search around the solver's answer by building and running.

Layer errors are only a prior: the curves given to the solver are output divergences measured on calibration feeds, and
because these do not add up either, candidates near the solution are built, run and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from graphprune.cost import CostModel
from graphprune.sites import Site
from graphprune.solver import Problem

Levels = Mapping[str, int]
Evaluate = Callable[[Levels], float]
"""Output divergence of the model built at these levels."""

_NOISE = 0.35


def probe_levels(site: Site) -> list[int]:
    """Indices of the levels at which a site's own divergence is measured: of sizes the least and about a half, of
    alternatives all. Never the last, which changes nothing."""
    n = len(site.levels)
    if not site.ordered:
        return list(range(n - 1))
    return sorted({0, round((n - 1) * 0.5)} - {n - 1})


def curve(site: Site, measured: Mapping[int, float]) -> np.ndarray:
    """Loss per level: the measured divergences at probed levels, between them the shape of the site's prior.

    measured: level index -> divergence. Of sizes it never rises with the level; zero at the last.
    """
    if not site.ordered:
        return np.array([*(measured[i] for i in range(len(site.levels) - 1)), 0.0])
    prior = np.asarray(site.prior, float)
    known = {**measured, len(site.levels) - 1: 0.0}
    indices = sorted(known)
    loss = np.zeros(len(site.levels))
    for a, b in pairwise(indices):
        span = np.arange(a, b + 1)
        fall = prior[a] - prior[b]
        share = (prior[span] - prior[b]) / fall if fall > 0 else np.linspace(1, 0, len(span))
        loss[span] = known[b] + (known[a] - known[b]) * share
    return np.minimum.accumulate(np.maximum(loss, 0.0))


def measure_curves(sites: Sequence[Site], evaluate: Evaluate, step: Callable[[], None]) -> dict[str, np.ndarray]:
    """The loss curve of every site, measured with all others left whole."""
    full = {s.name: s.full for s in sites}
    curves = {}
    for site in sites:
        measured = {}
        for i in probe_levels(site):
            measured[i] = evaluate({**full, site.name: site.levels[i]})
            step()
        finite = {i: d for i, d in measured.items() if np.isfinite(d)}
        # A level at which the output is not finite must never be chosen; a large number keeps the program bounded.
        curves[site.name] = curve(site, {**{i: 1e3 for i in measured}, **finite})
    return curves


def improve(
    levels: Mapping[str, Sequence[int]], curves: Mapping[str, np.ndarray], cost: CostModel, budget_ms: float,
    evaluate: Evaluate, *, n_candidates: int, seed: int, step: Callable[[], None],
    ordered: Mapping[str, bool] | None = None,
) -> tuple[dict[str, int], float]:  # fmt: skip
    """The best of the solver's answer and `n_candidates` answers near it, by measured divergence.

    A candidate is the solver's answer for loss curves weighted at random around those that gave the best so far, so
    every one holds the time budget. Deterministic for a seed.
    """
    rng = np.random.default_rng(seed)
    problem = Problem(levels, cost, ordered=ordered)
    best = problem.solve(curves, budget_ms)
    best_loss, centre = evaluate(best), dict.fromkeys(levels, 0.0)
    step()
    seen = {tuple(best.values())}
    for i in range(n_candidates):
        noise = _NOISE * (1.0 if i % 2 else 2.0)
        tried = {s: w + noise * float(rng.standard_normal()) for s, w in centre.items()}
        weighted = {s: np.exp(tried[s]) * np.asarray(curves[s]) for s in levels}
        candidate = problem.solve(weighted, budget_ms)
        step()
        if tuple(candidate.values()) in seen:
            continue
        seen.add(tuple(candidate.values()))
        loss = evaluate(candidate)
        if loss < best_loss:
            best, best_loss, centre = candidate, loss, tried
    return best, best_loss
