"""Which samples have something, said in conditions on what else is known of them: greedy set cover.

A rule is a conjunction of conditions, perhaps with an exception that is one too, perhaps negated.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import numpy as np

_MOST_CONDITIONS = 3
Label = Hashable
Conditions = tuple[tuple[Label, tuple[int, ...]], ...]
"""Labels, each with the values that its column may have."""


@dataclass(frozen=True)
class Rule:
    """True where all of `where` hold unless all of `unless` do (and there are any); if `negated`, everywhere else."""

    where: Conditions = ()
    unless: Conditions = ()
    negated: bool = False

    @property
    def labels(self) -> dict[Label, None]:
        return dict.fromkeys(label for label, _ in (*self.where, *self.unless))


@dataclass(frozen=True)
class Table:
    """What is known of n samples: columns int64 [n] by label; n_values: how many different ones each may hold."""

    columns: Mapping[Label, np.ndarray]
    n_values: Mapping[Label, int]
    n: int

    def explain(self, present: np.ndarray) -> tuple[Rule, int]:
        """The rule found that is wrong about the fewest samples, and about how many. present bool [n]."""
        rules = [replace(self._rule(present != negated), negated=negated) for negated in (False, True)]
        return min(((rule, int((self.at(rule) != present).sum())) for rule in rules), key=lambda found: found[1])

    def at(self, rule: Rule) -> np.ndarray:
        """Where a rule is true: bool [n]."""
        there = self._all(rule.where)
        if rule.unless:
            there &= ~self._all(rule.unless)
        return ~there if rule.negated else there

    def _all(self, conditions: Conditions) -> np.ndarray:
        true = np.ones(self.n, bool)
        for label, allowed in conditions:
            true &= np.isin(self.columns[label], allowed)
        return true

    def _rule(self, present: np.ndarray) -> Rule:
        where, inside = self._cover(present, ~present)
        wrong = inside & ~present
        if not wrong.any():
            return Rule(where)
        unless, left = self._cover(wrong, present)
        if int((left & present).sum()) >= int(wrong.sum()):  # the exception costs more than it mends
            return Rule(where)
        return Rule(where, unless)

    def _cover(self, true: np.ndarray, false: np.ndarray) -> tuple[Conditions, np.ndarray]:
        """Conditions that hold for all samples of `true` and leave out as many of `false` as possible; and where they
        all hold. Among equals the first label."""
        holds = np.ones(self.n, bool)
        chosen: list[tuple[Label, tuple[int, ...]]] = []
        while (holds & false).any() and len(chosen) < _MOST_CONDITIONS:
            best, gain, kept = None, 0, holds
            for label, column in self.columns.items():
                allowed = np.unique(column[true])
                if len(allowed) == self.n_values[label]:
                    continue
                has = np.isin(column, allowed)
                better = int((holds & false & ~has).sum())
                if better > gain:
                    best, gain, kept = (label, tuple(int(k) for k in allowed)), better, has
            if best is None:
                break
            chosen.append(best)
            holds = holds & kept
        return tuple(chosen), holds
