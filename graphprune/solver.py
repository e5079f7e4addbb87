"""One level per site at the least loss within a time budget: a mixed-integer program for HiGHS.

The time of a model is a sum of terms over at most two sites each (see `cost.Term`); a term over two is made linear
exactly by one variable per pair of levels (the local polytope), so nothing is assumed separable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from graphprune.cost import CostModel
from graphprune.errors import InfeasibleTarget

_SECONDS = 8.0
_GAP = 2e-3


def solve(
    levels: Mapping[str, Sequence[int]], loss: Mapping[str, Sequence[float]], cost: CostModel, budget_ms: float
) -> dict[str, int]:
    """Minimise the sum of loss[site][i] over the chosen levels[site][i], predicted time at most budget_ms.

    Raises InfeasibleTarget if even the fastest levels are predicted over budget.
    """
    sites = list(levels)
    fastest = fastest_levels(levels, cost)
    if cost.predict(fastest).ms > budget_ms:
        best = cost.dense_ms / cost.predict(fastest).ms
        raise InfeasibleTarget(f"{budget_ms:.3g} ms is out of reach: the least predicted is "
                               f"{cost.predict(fastest).ms:.3g} ms", best=best)  # fmt: skip
    start, n = {}, 0
    for s in sites:
        start[s] = n
        n += len(levels[s])
    singles = np.zeros(n)
    fixed = cost.overhead_ms
    pairs: dict[tuple[str, str], np.ndarray] = {}
    for term in cost.merged():
        if not term.groups:
            fixed += term.ms({})
        elif len(term.groups) == 1:
            (s,) = term.groups
            singles[start[s] : start[s] + len(levels[s])] += term.ms({s: np.asarray(levels[s])}) * np.ones(
                len(levels[s])
            )
        else:
            a, b = term.groups
            table = term.ms({a: np.asarray(levels[a])[:, None], b: np.asarray(levels[b])[None, :]})
            pairs[a, b] = pairs.get((a, b), 0) + table * np.ones((len(levels[a]), len(levels[b])))
    offset = {}
    size = n
    for (a, b), table in pairs.items():
        offset[a, b] = size
        size += table.size
    objective = np.zeros(size)
    for s in sites:
        objective[start[s] : start[s] + len(levels[s])] = loss[s]
    rows, cols, data, low, high = _constraints(sites, levels, start, pairs, offset)
    times = np.concatenate([singles, *(t.reshape(-1) for t in pairs.values())])
    used = np.flatnonzero(times)
    rows.extend([len(low)] * len(used))
    cols.extend(used)
    data.extend(times[used])
    low.append(-np.inf)
    high.append(budget_ms - fixed)
    matrix = sparse.csc_array((data, (rows, cols)), shape=(len(low), size))
    scale = max(float(np.max(np.abs(objective))), 1e-300)
    integral = np.zeros(size)
    integral[:n] = 1
    result = milp(
        objective / scale, integrality=integral, bounds=Bounds(0, 1), constraints=LinearConstraint(matrix, low, high),
        options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
    )  # fmt: skip
    if result.x is None:
        return fastest
    return {s: int(levels[s][int(np.argmax(result.x[start[s] : start[s] + len(levels[s])]))]) for s in sites}


def fastest_levels(levels: Mapping[str, Sequence[int]], cost: CostModel) -> dict[str, int]:
    """The smallest level of every site, raised wherever that is predicted to be faster: steps go both ways."""
    chosen = {s: int(v[0]) for s, v in levels.items()}
    for s, values in levels.items():
        chosen[s] = int(min(values, key=lambda v: cost.predict({**chosen, s: int(v)}).ms))
    return chosen


def _constraints(sites, levels, start, pairs, offset):
    """One level per site; pair variables whose marginals are the sites' own."""
    rows: list[int] = []
    cols: list[int] = []
    data: list[float] = []
    low: list[float] = []
    high: list[float] = []

    def row(columns: Sequence[int], values: Sequence[float], right: float) -> None:
        rows.extend([len(low)] * len(columns))
        cols.extend(columns)
        data.extend(values)
        low.append(right)
        high.append(right)

    for s in sites:
        m = len(levels[s])
        row(range(start[s], start[s] + m), [1.0] * m, 1.0)
    for (a, b), table in pairs.items():
        m, k = table.shape
        grid = offset[a, b] + np.arange(m * k).reshape(m, k)
        for i in range(m):
            row([*grid[i], start[a] + i], [1.0] * k + [-1.0], 0.0)
        for j in range(k):
            row([*grid[:, j], start[b] + j], [1.0] * m + [-1.0], 0.0)
    return rows, cols, data, low, high
