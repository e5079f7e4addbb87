"""How the closed loop comes near a time: what to ask of the solver next, from what was built and measured so far.

Prices lean on what they flatter, and a solver finds that. So a step from the candidate nearest to the wanted time
is small, as much more is asked of a step up in speed as was lost of those before, and once there are candidates on
either side the next one lies between them, in the levels of the one or of the other, by prices that are made right at
both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.cost import CostModel

Levels = Mapping[str, int]
_AIM, _AIM_MORE, _MOST_AIM = 1.02, 0.01, 1.05
"""What is aimed at over the wanted speed, how much more for each candidate that fell short, and at most."""
_BETWEEN = 1.015
"""The same where there are candidates on either side."""
_LEAST_STEP, _LEAST_KEPT = 0.01, 0.3
"""Natural logarithm of a step in speed of which something can be learnt, and what is kept of steps at least."""


@dataclass(frozen=True)
class Candidate:
    """Levels, and the time that was measured."""

    levels: Levels
    ms: float


@dataclass(frozen=True)
class Question:
    """The levels to choose from, the budget by the prices, and levels to stay at as far as the budget allows.

    afresh: nothing is known yet that an answer should be near to.
    """

    levels: Mapping[str, Sequence[int]]
    budget_ms: float
    start: Levels | None = None
    afresh: bool = False


class Approach:
    """The way to `wanted_ms`, over the levels of all sites."""

    def __init__(self, levels: Mapping[str, Sequence[int]], wanted_ms: float) -> None:
        self.levels, self.wanted_ms = levels, wanted_ms
        self.tried: list[Candidate] = []
        self._kept: list[float] = []  # what was left of the predicted steps in speed, as logarithms

    @property
    def nearest(self) -> Candidate | None:
        """The candidate nearest to what is aimed at."""
        return min(self.tried, key=lambda c: abs(math.log(self._over(c) / _AIM)), default=None)

    def learn(self, levels: Levels, predicted_ms: float, ms: float) -> None:
        """One more candidate, with the time that was predicted from the nearest one."""
        if self.nearest is not None and (step := math.log(self.nearest.ms / predicted_ms)) > _LEAST_STEP:
            self._kept.append(min(max(math.log(self.nearest.ms / ms) / step, _LEAST_KEPT), 1.0))
        self.tried.append(Candidate(dict(levels), ms))

    def correct(self, levels: Levels, ms: float) -> None:
        """A candidate took another time once it was finished."""
        self.tried = [*(c for c in self.tried if c.levels != levels), Candidate(dict(levels), ms)]

    def question(self, cost: CostModel) -> Question:
        """What to ask next of prices that are right at the nearest candidate."""
        between = self._between(cost)
        if between is not None:
            return between
        aim = min(_AIM + _AIM_MORE * sum(c.ms > self.wanted_ms for c in self.tried), _MOST_AIM)
        if self.nearest is None:
            return Question(self.levels, self.wanted_ms / aim, afresh=True)
        step = math.log(aim / self._over(self.nearest))
        if step > 0 and self._kept:
            step /= float(np.median(self._kept))
        return Question(self.levels, self.nearest.ms * math.exp(-step), self.nearest.levels)

    def _over(self, candidate: Candidate) -> float:
        """How many times as fast as wanted."""
        return self.wanted_ms / candidate.ms

    def _between(self, cost: CostModel) -> Question | None:
        """What lies between the candidates next to the aim on either side; None where there are none, or the prices
        have them the other way round."""
        aim_ms = self.wanted_ms / _BETWEEN
        slower = min((c for c in self.tried if c.ms > aim_ms), key=lambda c: c.ms, default=None)
        faster = max((c for c in self.tried if c.ms <= aim_ms), key=lambda c: c.ms, default=None)
        if slower is None or faster is None:
            return None
        most, least = (cost.predict(c.levels).ms for c in (slower, faster))
        if least >= most:
            return None
        share = (aim_ms - faster.ms) / (slower.ms - faster.ms)
        levels = {s: [k for k in v if k in (slower.levels[s], faster.levels[s])] for s, v in self.levels.items()}
        return Question(levels, least + share * (most - least))
