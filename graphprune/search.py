"""What each site really costs the output, and the search around the solver's answer by building and running.

Layer errors are only a prior: the curves given to the solver are output divergences measured on calibration feeds, and
because these do not add up either, candidates near the solution are built, run and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from graphprune.cost import CostModel
from graphprune.errors import InfeasibleTarget
from graphprune.sites import Site
from graphprune.solver import Problem

Levels = Mapping[str, int]
Evaluate = Callable[[Iterable[Levels]], Iterator[float]]
"""Output divergences of the models built at these levels, in their order."""

_NOISE = 0.5
_FEWEST = 8
"""Evaluations that are kept for candidates rather than corrections."""
_TOGETHER = 4
"""Candidates that are shaken from one centre, so that they can be built and run at the same time."""
_MOST_CORRECTION = 2.0
_GAIN = 0.5
_NEVER = 1e3


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
    wanted = [(site, i) for site in sites for i in probe_levels(site)]
    measured: dict[str, dict[int, float]] = {site.name: {} for site in sites}
    found = evaluate({**full, site.name: site.levels[i]} for site, i in wanted)
    for (site, i), divergence in zip(wanted, found, strict=True):
        # A level at which the output is not finite must never be chosen; a large number keeps the program bounded.
        measured[site.name][i] = divergence if np.isfinite(divergence) else _NEVER
        step()
    return {site.name: curve(site, measured[site.name]) for site in sites}


def improve(
    levels: Mapping[str, Sequence[int]], curves: Mapping[str, np.ndarray], cost: CostModel, budget_ms: float,
    evaluate: Evaluate, *, n_evaluations: int, seed: int, step: Callable[[], None],
    ordered: Mapping[str, bool] | None = None, start: Levels | None = None, parts: Sequence[Collection[str]] = (),
) -> tuple[dict[str, int], float]:  # fmt: skip
    """The best of the solver's answer and of others near it, by measured divergence, from `n_evaluations` built models.

    Losses do not add up, so they are measured again where the solver went: what the output gains if one site alone is
    left whole there. The curves, so corrected, are solved anew; where that does not help they are shaken at random.
    Every candidate holds the time budget. start: levels to stay at, changed as far as the budget asks for it. parts:
    sites (such as those of one pass) whose own answers, all others left whole, are tried first: a search that begins
    from all at once may never come by what one of them does alone.
    Deterministic for a seed. step is called n_evaluations times.
    """
    rng = np.random.default_rng(seed)
    problem = Problem(levels, cost, ordered=ordered)
    left = n_evaluations

    def spend(candidates: Iterable[Levels]) -> list[float]:
        nonlocal left
        found = []
        for loss in evaluate(candidates):
            left -= 1
            step()
            found.append(loss)
        return found

    def answers(shaken: Sequence[Mapping[str, float]]) -> list[tuple[dict[str, int], Mapping[str, float]]]:
        """The answers to curves multiplied by such factors that were not seen yet, with those; others are spent."""
        nonlocal left
        new = []
        for weights in shaken:
            weighted = {s: np.exp(weights[s]) * np.asarray(curves[s]) for s in levels}
            candidate = problem.solve(weighted, budget_ms, best)
            if tuple(candidate.values()) in seen:
                left -= 1
                step()
            else:
                seen.add(tuple(candidate.values()))
                new.append((candidate, weights))
        return new

    if start is not None:
        curves = _staying(start, levels, curves)
    best = problem.solve(curves, budget_ms, start)
    if not n_evaluations:
        return best, next(iter(evaluate([best])))
    found = [best, *_answers_of_parts(parts, problem, curves, budget_ms)][:left]
    best_loss, best = min(zip(spend(found), found, strict=True), key=lambda pair: pair[0])
    centre: Mapping[str, float] = dict.fromkeys(levels, 0.0)  # logarithms of what the curves are multiplied by
    seen = {tuple(each.values()) for each in found}
    tried_here = False
    while left > 0:
        if not tried_here and left > _FEWEST:
            measured = _corrections(best, best_loss, levels, curves, spend, left - _FEWEST // 2)
            new = answers([{s: measured.get(s, centre[s]) for s in levels}])
        else:
            new = answers([{s: w + _NOISE * float(rng.standard_normal()) for s, w in centre.items()}
                           for _ in range(min(_TOGETHER, left))])  # fmt: skip
        tried_here = True
        for (candidate, weights), loss in zip(new, spend(candidate for candidate, _ in new), strict=True):
            if loss < best_loss:
                best, best_loss, centre, tried_here = candidate, loss, weights, False
    return best, best_loss


def _answers_of_parts(
    parts: Sequence[Collection[str]], problem: Problem, curves: Mapping[str, np.ndarray], budget_ms: float
) -> list[dict[str, int]]:
    """The solver's answer with the sites of each part alone, where it is within the budget."""
    found = []
    for part in parts:
        own = problem.only(part)
        losses = {s: np.asarray(curves[s], float)[-len(v) :] for s, v in own.levels.items()}
        try:
            found.append(own.solve(losses, budget_ms, own.fastest))
        except InfeasibleTarget:
            continue
    return found


def _staying(
    start: Levels, levels: Mapping[str, Sequence[int]], curves: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:  # fmt: skip
    """Curves by which it hardly pays to leave some levels, which may be better than the curves know: what is gained
    against them counts half. What the budget leaves over is spent all the same."""
    found = {}
    for s, k in start.items():
        own = np.asarray(curves[s], float)
        more = own - own[list(levels[s]).index(k)]
        kept = np.where(more > 0, more, _GAIN * more)
        found[s] = kept - kept.min(initial=0.0)
    return found


def _corrections(
    at: Levels, loss: float, levels: Mapping[str, Sequence[int]], curves: Mapping[str, np.ndarray],
    spend: Callable[[Iterable[Levels]], list[float]], most: int,
) -> dict[str, float]:  # fmt: skip
    """For the sites that were expected to lose most at these levels, `most` of them at most: the logarithm of what each
    really loses there over what was expected."""
    expected = {s: float(curves[s][list(levels[s]).index(k)]) for s, k in at.items() if k != levels[s][-1]}
    asked = sorted(expected, key=lambda s: (-expected[s], s))[:most]
    found = {}
    for s, without in zip(asked, spend({**at, s: levels[s][-1]} for s in asked), strict=True):
        gain, floor = loss - without, max(expected[s], 1e-3 * loss, 1e-12)
        found[s] = float(np.clip(np.log(max(gain, 1e-12) / floor), -_MOST_CORRECTION, _MOST_CORRECTION))
    return found
