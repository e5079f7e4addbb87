"""One level per site at the least loss within a time budget: a mixed-integer program for HiGHS.

The time of a model is a sum of terms over a few sites each (see `cost_model.Term`); a term over several is made linear
exactly by one variable per combination of levels (the local polytope), so nothing is assumed separable. Where that
would be too many variables, the program is solved coarse to fine: over a few levels of each site first, then over those
around the answer, until no finer step helps. A descent with priced time (see `descent`) gives an answer to begin with,
which stands where the program finds none that is better in its time. Terms that hardly matter are simplified, but every
answer holds the budget under the full prices.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import scipy.sparse as sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from graphprune.cost import CostModel
from graphprune.descent import Descent
from graphprune.errors import InfeasibleTarget
from graphprune.price_tables import Levels, PriceTables, Tables
from graphprune.quiet import silenced

_SECONDS, _MOST_SECONDS = 4.0, 10.0
_GAP = 5e-3
_LITTLE = 4e-3
"""Of the dense time: kernels over many sites that take no more are not worth a variable for every combination."""
_MOST_VARIABLES, _FEW_VARIABLES = 8_000, 1_000
_ROUNDS = 6
_KINDS, _NEARLY_ALL = 24, 0.9
_STEPS = 2

def solve(
    levels: Levels, loss: Mapping[str, Sequence[float]], cost: CostModel, budget_ms: float, **options
) -> dict[str, int]:  # fmt: skip
    """The answer of `Problem(levels, cost, **options)` for one loss and budget."""
    return Problem(levels, cost, **options).solve(loss, budget_ms)


def fastest_levels(levels: Levels, cost: CostModel) -> dict[str, int]:
    """Levels predicted to be fastest: see `Problem.fastest`."""
    return Problem(levels, cost).fastest


class Problem:
    """The prices of some levels as tables, for any losses and budgets.

    ordered: whether a site's levels are sizes, so that neighbours are alike (default: all are); the others are never
    thinned out. most_variables: of one program; the answer is exact where all levels fit in.
    """

    def __init__(
        self, levels: Levels, cost: CostModel, *, ordered: Mapping[str, bool] | None = None,
        most_variables: int = _MOST_VARIABLES, priced: PriceTables | None = None,
    ) -> None:  # fmt: skip
        """priced: the prices of these levels, if they have been looked up."""
        self.cost, self.ordered, self.most_variables = cost, ordered, most_variables
        levels = {s: [int(k) for k in v] for s, v in levels.items()}
        self.priced = PriceTables.of(levels, cost) if priced is None else priced
        self.levels, self.tables, self.fixed_ms = levels, self.priced.tables, self.priced.fixed_ms
        self.sizes = {s for s in levels if ordered is None or ordered.get(s, True)}
        self.descent = Descent(self.priced)
        self.thin = _thinned(self.tables, _LITTLE * cost.dense_ms)

    def only(self, sites: Collection[str]) -> Problem:
        """The same problem where all other sites stay at their last level."""
        priced = self.priced.only(sites)
        return Problem(priced.levels, self.cost, ordered=self.ordered, most_variables=self.most_variables,
                       priced=priced)  # fmt: skip

    def ms(self, chosen: Mapping[str, int]) -> float:
        """The time predicted at some levels."""
        return self.descent.ms(self._positions(chosen))

    def most_saved(self, site: str) -> np.ndarray:
        """For each level of a site the milliseconds that it saves against the last one, at most over plans of many
        kinds: the whole model, the fastest, every alternative taken throughout, and others at random."""
        ms = self._by_kind(site)
        return (ms[:, -1:] - ms).max(axis=0)

    def often_faster(self, site: str) -> np.ndarray:
        """[level, level]: whether the first is as fast as the second in nearly all of these plans."""
        ms = self._by_kind(site)
        return (ms[:, :, None] <= ms[:, None, :]).mean(axis=0) >= _NEARLY_ALL

    def _by_kind(self, site: str) -> np.ndarray:
        """Milliseconds of what a site has a part in: [plan, level]."""
        ms = np.zeros((len(self._kinds), len(self.levels[site])))
        for groups, table in self.tables.items():
            if site in groups:
                others = tuple(self._kinds[:, self._column[g]] for g in groups if g != site)
                ms += np.moveaxis(table, groups.index(site), 0)[(slice(None), *others)].T
        return ms

    @cached_property
    def _column(self) -> dict[str, int]:
        return {s: i for i, s in enumerate(self.levels)}

    @cached_property
    def _kinds(self) -> np.ndarray:
        """Plans of many kinds, as positions of levels: [plan, site]."""
        n = np.array([len(v) for v in self.levels.values()])
        longest = int(n.max(initial=1))
        rng = np.random.default_rng(0)
        uniform = [np.minimum(i, n - 1) for i in (*range(min(longest, 6)), longest)]
        fastest = [np.array([self.levels[s].index(k) for s, k in self.fastest.items()])]
        # each at random, and the same share of its levels for every site
        mixed = [rng.integers(0, n) for _ in range(_KINDS)]
        even = [np.minimum((share * n).astype(int), n - 1) for share in rng.uniform(size=_KINDS)]
        return np.array([*uniform, *fastest, *mixed, *even], dtype=np.int64)

    @cached_property
    def fastest(self) -> dict[str, int]:
        """Levels predicted to be fastest: steps go both ways, so the smallest are not always it. Site by site until
        nothing is gained, from the smallest levels, from the whole model, and from every alternative taken throughout:
        what pays only if neighbours do it too is found so."""
        longest = max((len(v) for v in self.levels.values()), default=1)
        starts = {tuple(min(i, len(v) - 1) for v in self.levels.values()) for i in (*range(min(longest, 6)), longest)}
        for k in {k for s, v in self.levels.items() if s not in self.sizes for k in v}:
            starts.add(tuple(v.index(k) if s not in self.sizes and k in v else len(v) - 1
                             for s, v in self.levels.items()))  # fmt: skip
        at = self.descent.fastest(dict(zip(self.levels, start, strict=True)) for start in sorted(starts))
        return {s: self.levels[s][i] for s, i in at.items()}

    def _positions(self, chosen: Mapping[str, int]) -> dict[str, int]:
        return {s: self.levels[s].index(k) for s, k in chosen.items()}

    def solve(
        self, loss: Mapping[str, Sequence[float]], budget_ms: float, around: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Minimise the sum of loss[site][i] over the chosen levels[site][i], predicted time at most budget_ms.

        around: only look at sizes within a few steps of what a descent from there finds, and where that takes long, no
        further than the descent. Raises InfeasibleTarget if even the fastest levels are predicted over budget.
        """
        chosen, fastest_ms = self.fastest, self.ms(self.fastest)
        if fastest_ms > budget_ms:
            raise InfeasibleTarget(f"{budget_ms:.3g} ms is out of reach: the least predicted is {fastest_ms:.3g} ms",
                                   best=self.cost.dense_ms / fastest_ms)  # fmt: skip
        values = {s: dict(zip(v, map(float, loss[s]), strict=True)) for s, v in self.levels.items()}
        arrays = {s: np.asarray(loss[s], float) for s in self.levels}
        whole = {s: len(v) - 1 for s, v in self.levels.items()}
        starts = [whole, self._positions(self.fastest), *([self._positions(around)] if around else [])]
        at = self.descent.answer(arrays, budget_ms, starts)
        if at is not None:
            chosen = {s: self.levels[s][i] for s, i in at.items()}
        best = sum(values[s][k] for s, k in chosen.items())
        deadline = time.monotonic() + _MOST_SECONDS
        stride = 0 if around is not None else self._first_stride()
        for _ in range(_ROUNDS):
            part = self._strided_part(chosen, stride) if stride else self._nearby(chosen)
            if around is not None and self._n_variables(part) > _FEW_VARIABLES:
                break  # a program takes seconds, and seldom finds what the descent did not
            seconds = min(_SECONDS, deadline - time.monotonic())
            found = self._in_time(part, values, budget_ms, seconds) if seconds > 0 else None
            total = np.inf if found is None else sum(values[s][k] for s, k in found.items())
            improved = found != chosen and total <= best
            if improved:
                chosen, best = found, total
            if part == self.levels or (stride == 0 and (around is not None or not improved)):
                break
            stride //= 2
        return chosen

    def _in_time(
        self, levels: Levels, loss: Mapping[str, Mapping[int, float]], budget_ms: float, seconds: float
    ) -> dict[str, int] | None:  # fmt: skip
        """The answer of a program that holds the budget under the full prices too."""
        aim = budget_ms
        for _ in range(3):
            found = self._program(levels, loss, aim, seconds)
            excess = 0.0 if found is None else self.ms(found) - budget_ms
            if excess <= 1e-9 * budget_ms:
                return found
            aim -= 1.1 * excess
        return None

    def _first_stride(self) -> int:
        """The least stride through the sizes at which the program is small enough."""
        longest = max((len(v) for v in self.levels.values()), default=1)
        whole = {s: v[-1] for s, v in self.levels.items()}
        return next((k for k in range(1, longest) if self._n_variables(self._strided(whole, k)) <= self.most_variables),
                    longest)  # fmt: skip

    def _strided(self, centre: Mapping[str, int], stride: int) -> dict[str, list[int]]:
        """Every stride-th level counted from `centre`, with both ends; all levels that are no sizes."""
        part = {}
        for s, v in self.levels.items():
            at = v.index(centre[s])
            ends = (0, len(v) - 1)
            part[s] = [k for i, k in enumerate(v) if (i - at) % stride == 0 or i in ends] if s in self.sizes else v
        return part

    def _nearby(self, centre: Mapping[str, int]) -> dict[str, list[int]]:
        """Sizes within a few steps of the centre; all levels that are no sizes; the whole and the fastest ones."""
        part = {}
        for s, v in self.levels.items():
            at = v.index(centre[s])
            few = v[max(0, at - _STEPS) : at + _STEPS + 1] if s in self.sizes else v
            part[s] = sorted({*few, v[-1], self.fastest[s]})
        return part

    def _strided_part(self, centre: Mapping[str, int], stride: int) -> dict[str, list[int]]:
        """The levels of one program: strided, then without those furthest from the centre until they are few enough;
        what is known to hold the budget stays possible."""
        part = self._strided(centre, stride)
        while self._n_variables(part) > self.most_variables:
            narrow = {s: self._narrowed(s, v, centre[s]) if s in self.sizes else v for s, v in part.items()}
            if narrow == part:
                break
            part = narrow
        return {s: sorted({*v, centre[s], self.fastest[s]}) for s, v in part.items()}

    def _narrowed(self, site: str, part: list[int], centre: int) -> list[int]:
        order = self.levels[site]
        inner = [k for k in part if k not in (order[0], order[-1], centre)]
        far = max(inner, key=lambda k: abs(order.index(k) - order.index(centre)), default=None)
        return [k for k in part if k != far]

    def _n_variables(self, levels: Levels) -> int:
        return sum(len(v) for v in levels.values()) + sum(
            int(np.prod([len(levels[s]) for s in groups])) for groups in self.thin if len(groups) > 1
        )

    def _program(
        self, levels: Levels, loss: Mapping[str, Mapping[int, float]], budget_ms: float, seconds: float
    ) -> dict[str, int] | None:  # fmt: skip
        """The exact answer over these levels; None if none was found in time."""
        sites = list(levels)
        starts = np.cumsum([0, *(len(levels[s]) for s in sites)])
        start, n = dict(zip(sites, starts, strict=False)), int(starts[-1])
        singles = np.zeros(n)
        tables: dict[tuple[str, ...], np.ndarray] = {}
        for groups, whole in self.thin.items():
            table = whole[np.ix_(*([self.levels[s].index(k) for k in levels[s]] for s in groups))]
            if len(groups) == 1:
                singles[start[groups[0]] : start[groups[0]] + len(table)] += table
            else:
                tables[groups] = table
        offsets = np.cumsum([n, *(t.size for t in tables.values())])
        size = int(offsets[-1])
        objective = np.zeros(size)
        for s in sites:
            objective[start[s] : start[s] + len(levels[s])] = [loss[s][k] for k in levels[s]]
        equations = _Equations()
        for s in sites:
            equations.add(range(start[s], start[s] + len(levels[s])), [], 1.0)
        for (groups, table), offset in zip(tables.items(), offsets, strict=False):
            numbers = offset + np.arange(table.size).reshape(table.shape)
            for axis, s in enumerate(groups):
                for i in range(table.shape[axis]):
                    equations.add(np.take(numbers, i, axis).reshape(-1), [start[s] + i], 0.0)
        times = np.concatenate([singles, *(t.reshape(-1) for t in tables.values())])
        in_time = LinearConstraint(sparse.csr_array(times[None, :]), -np.inf, budget_ms - self.fixed_ms)
        scale = max(float(np.max(np.abs(objective))), 1e-300)
        integral = np.zeros(size)
        integral[:n] = 1
        with silenced():  # HiGHS now and then prints a line of its own
            result = milp(
                objective / scale, integrality=integral, bounds=Bounds(0, 1),
                constraints=[in_time, equations.constraint(size)],
                options={"time_limit": seconds, "mip_rel_gap": _GAP},
            )  # fmt: skip
        if result.x is None:
            return None
        best = (int(np.argmax(result.x[a:b])) for a, b in pairwise(starts))
        return {s: int(levels[s][i]) for s, i in zip(sites, best, strict=True)}


def _thinned(tables: Tables, little_ms: float) -> Tables:
    """The same prices, those over more than two sites that hardly matter as a sum of one table for each site."""
    thin: dict[tuple[str, ...], np.ndarray] = {}
    for groups, table in tables.items():
        if len(groups) <= 2 or np.ptp(table) > little_ms:
            thin[groups] = thin.get(groups, 0) + table
            continue
        mean = table.mean()
        for i, s in enumerate(groups):
            own = table.mean(axis=tuple(k for k in range(table.ndim) if k != i)) - mean * (1 - 1 / len(groups))
            thin[(s,)] = thin.get((s,), 0) + own
    return thin


class _Equations:
    """Rows `sum of some variables - sum of others = right`, collected for a sparse matrix."""

    def __init__(self) -> None:
        self.columns: list[np.ndarray] = []
        self.signs: list[np.ndarray] = []
        self.right: list[float] = []

    def add(self, plus: Sequence[int], minus: Sequence[int], right: float) -> None:
        self.columns.append(np.array([*plus, *minus], np.int64))
        self.signs.append(np.array([1.0] * len(plus) + [-1.0] * len(minus)))
        self.right.append(right)

    def constraint(self, size: int) -> LinearConstraint:
        rows = np.repeat(np.arange(len(self.columns)), [len(c) for c in self.columns])
        matrix = sparse.csr_array(
            (np.concatenate(self.signs), (rows, np.concatenate(self.columns))), shape=(len(self.columns), size)
        )
        return LinearConstraint(matrix, self.right, self.right)
