"""Levels by coordinate descent over price tables: what is fastest, and good answers for a budget without a solver.

Time gets a price (a Lagrange multiplier), sites then move one at a time to where loss plus priced time is least; the
price is bisected until the budget just holds, and what is left of it is spent move by move. No proof of the best
answer, but a good one in a fraction of a second whatever the size, for a solver to do better than.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy

import numpy as np

from graphprune.price_tables import PriceTables

At = dict[str, int]
"""Site -> position of its level."""
_SWEEPS = 8
_BISECTIONS = 20
_DECADES = 6.0
_MOST_MOVES = 200
_FRESH = 4
"""Of so many bisections one begins from the starts again; the others go on from the last place that held the budget."""


class Descent:
    """Descents over the same prices, from anywhere at any price of time. Places are positions of levels."""

    def __init__(self, priced: PriceTables) -> None:
        self.sizes = {s: len(v) for s, v in priced.levels.items()}
        few = priced.fewest()
        self.fixed_ms, self.tables = few.fixed_ms, few.tables
        self._own: dict[str, list[tuple[tuple[str, ...], np.ndarray]]] = {s: [] for s in self.sizes}
        for groups, table in self.tables.items():
            for i, s in enumerate(groups):
                others = tuple(g for g in groups if g != s)
                self._own[s].append((others, np.moveaxis(table, i, -1)))
        self._shared = {s: self._tables_shared_by(s) for s in self.sizes}

    def _tables_shared_by(self, site: str) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
        """(neighbour, other sites, table with those first, then the site, then the neighbour): all that a neighbour's
        milliseconds change by when the site moves."""
        return [(g, (*others[:i], *others[i + 1 :]), np.moveaxis(table, i, -1))
                for others, table in self._own[site] for i, g in enumerate(others)]  # fmt: skip

    def ms(self, at: At) -> float:
        return self.fixed_ms + sum(float(t[tuple(at[s] for s in groups)]) for groups, t in self.tables.items())

    def ms_of(self, site: str, at: At) -> np.ndarray:
        """Milliseconds of everything that a site has a part in, at each of its levels, the others where they are."""
        total = np.zeros(self.sizes[site])
        for others, table in self._own[site]:
            total = total + table[tuple(at[g] for g in others)]
        return total

    def changes(self, site: str, k: int, at: At) -> Iterator[tuple[str, np.ndarray]]:
        """(neighbour, what its milliseconds change by at each of its levels) when a site goes to k from where it is."""
        was = at[site]
        for g, others, table in self._shared[site]:
            here = table[tuple(at[o] for o in others)]
            yield g, here[k] - here[was]

    def run(self, at: At, loss: Mapping[str, np.ndarray] | None, price: float) -> At:
        """A place from which no single site can lower loss + price x time; without losses, time alone."""
        return _Walk(self, at).run(loss, price).at

    def fastest(self, starts: Iterable[At]) -> At:
        """The fastest place that leads down from any of the starts."""
        return min((self.run(at, None, 1.0) for at in starts), key=self.ms)

    def answer(self, loss: Mapping[str, np.ndarray], budget_ms: float, starts: Sequence[At]) -> At | None:
        """The least loss found within the budget; None if no start leads to a place within it."""
        spread = sum(float(np.ptp(own)) for own in loss.values())
        span = sum(float(np.ptp(t)) for t in self.tables.values())
        if spread <= 0 or span <= 0:
            return next((dict(at) for at in starts if self.ms(at) <= budget_ms), None)
        low, high = -_DECADES, _DECADES  # of the price's logarithm, about losses per millisecond
        fresh = [_Walk(self, at) for at in starts]
        here = fresh[0]
        best = min((w for w in fresh if w.ms <= budget_ms), key=lambda w: w.loss(loss), default=None)
        for i in range(_BISECTIONS):
            middle = (low + high) / 2
            price = 10.0**middle * spread / span
            begun = [here, *fresh] if i % _FRESH == 0 else [here]
            found = [walk.copy().run(loss, price) for walk in begun]
            held = [walk for walk in found if walk.ms <= budget_ms]
            if held:
                high, here = middle, min(held, key=lambda walk: walk.loss(loss))
                if best is None or here.loss(loss) < best.loss(loss):
                    best = here
            else:
                low = middle
        return None if best is None else best.copy().fill(loss, budget_ms).at

    def filled(self, at: At, loss: Mapping[str, np.ndarray], budget_ms: float) -> At:
        """Spend what is left of the budget on single moves, each time the one that gains most for its time."""
        return _Walk(self, at).fill(loss, budget_ms).at

    @staticmethod
    def loss(at: At, loss: Mapping[str, np.ndarray]) -> float:
        return sum(float(loss[s][k]) for s, k in at.items())


class _Walk:
    """A place that sites move away from. What each site has a part in is kept, and changed as its neighbours move."""

    def __init__(self, descent: Descent, at: At) -> None:
        self.descent, self.at = descent, dict(at)
        self.ms = descent.ms(at)
        self._known: dict[str, np.ndarray] = {}

    def copy(self) -> _Walk:
        new = copy(self)
        new.at, new._known = dict(self.at), dict(self._known)
        return new

    def loss(self, loss: Mapping[str, np.ndarray]) -> float:
        return self.descent.loss(self.at, loss)

    def ms_of(self, site: str) -> np.ndarray:
        if site not in self._known:
            self._known[site] = self.descent.ms_of(site, self.at)
        return self._known[site]

    def move(self, site: str, k: int) -> None:
        own = self.ms_of(site)
        self.ms += float(own[k] - own[self.at[site]])
        for other, more in self.descent.changes(site, k, self.at):
            if other in self._known:
                self._known[other] = self._known[other] + more
        self.at[site] = k

    def run(self, loss: Mapping[str, np.ndarray] | None, price: float) -> _Walk:
        """See `Descent.run`."""
        for _ in range(_SWEEPS):
            moved = False
            for s, at in self.at.items():
                cost = price * self.ms_of(s) + (0 if loss is None else loss[s])
                k = int(np.argmin(cost))
                if cost[k] < cost[at] - 1e-12 * max(abs(float(cost[at])), 1e-9):
                    self.move(s, k)
                    moved = True
            if not moved:
                break
        self.ms = self.descent.ms(self.at)  # as it is, not as it adds up
        return self

    def fill(self, loss: Mapping[str, np.ndarray], budget_ms: float) -> _Walk:
        """See `Descent.filled`."""
        for _ in range(_MOST_MOVES):
            best, move = 0.0, None
            slack = budget_ms - self.ms
            for s, k in self.at.items():
                gain = loss[s][k] - loss[s]
                if gain.max() <= 0:
                    continue
                ms = self.ms_of(s)
                more = ms - ms[k]
                rate = np.where((gain > 0) & (more <= slack), gain / np.maximum(more, 1e-6 * budget_ms), 0.0)
                if rate.max() > best:
                    best, move = float(rate.max()), (s, int(np.argmax(rate)))
            if move is None:
                break
            self.move(*move)
        return self
