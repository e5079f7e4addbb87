"""When a kernel is there: learnt from which sampled models have it, so that no runtime's fusions need to be known.

A dropped branch takes its kernels along; a node in 8 bits has other kernels than one in floating point, and between
two neighbours in 8 bits nothing needs converting. Every such rule is a conjunction over a few sites, perhaps with an
exception that is one too; both are found by greedy set cover over the samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphprune.cost_model import Condition, Counts, Presence

_MOST_CONDITIONS = 3
_WRONG, _NEARLY = 0.1, 0.02
"""Shares of the samples that a rule may be wrong about: any rule, and one that ends the search."""


@dataclass(frozen=True)
class Key:
    """Kernels that are priced as one: a name, and the operators that it may have."""

    name: str
    ops: frozenset[str]


def presences(
    runs: Sequence[Collection[tuple[str, str]]], counts: Sequence[Counts], levels: Mapping[str, Sequence[int]],
    switches: Collection[str], near: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> dict[Key, Presence]:  # fmt: skip
    """The kernels of some profiled models, in order, whose presence can be explained, and how.

    runs: name and operator of the kernels of each model. counts: the level of every site in it. levels: all levels of
    each site, the last one leaving it whole. switches: sites whose levels are alternatives; of other sites it only
    matters whether they are whole. near: node or value name -> the sites that can have a say in its kernels, in rings
    from near to far: with few samples a rule over any sites would be found for everything. A name whose operator
    changes is several kernels where that can be explained, and one where not.
    """
    literals = _Literals(counts, levels, switches, near)
    order = dict.fromkeys(item for run in runs for item in run)
    ops: dict[str, list[str]] = {}
    for name, op in order:
        ops.setdefault(name, []).append(op)
    found: dict[Key, Presence] = {}
    for name, own in ops.items():
        left = []
        for op in own:
            rule = literals.explain(np.array([(name, op) in run for run in runs]), name)
            if rule is None:
                left.append(op)
            else:
                found[Key(name, frozenset({op}))] = rule
        together = np.array([any((name, op) in run for op in left) for run in runs])
        if len(left) > 1 and (rule := literals.explain(together, name)) is not None:
            found[Key(name, frozenset(left))] = rule
    return found


class _Literals:
    """The conditions that samples can be told apart by: sites and levels."""

    def __init__(
        self, counts: Sequence[Counts], levels: Mapping[str, Sequence[int]], switches: Collection[str],
        near: Mapping[str, Sequence[Sequence[str]]] | None,
    ) -> None:  # fmt: skip
        self.n = len(counts)
        self.columns: dict[str, np.ndarray] = {}
        self.n_values: dict[str, int] = {}
        for site, all_levels in levels.items():
            column = np.array([c[site] for c in counts], np.int64)
            # of a size only whether it is whole can tell kernels apart: 1 where it is
            self.columns[site] = column if site in switches else (column == all_levels[-1]).astype(np.int64)
            self.n_values[site] = len(all_levels) if site in switches else 2
        self._levels, self._switches, self._near = levels, switches, near
        self._known: dict[tuple[bytes, tuple[tuple[str, ...], ...]], Presence | None] = {}

    def explain(self, present: np.ndarray, name: str) -> Presence | None:
        """The rule by which `present` [samples] follows from the sites, from the nearest ones if they say nearly all,
        and but for few samples in any case; None where there is none."""
        if present.all():
            return Presence()
        rings = self._rings(name)
        key = (present.tobytes(), rings)
        if key not in self._known:
            self._known[key] = self._explained(present, rings)
        return self._known[key]

    def _explained(self, present: np.ndarray, rings: Sequence[Sequence[str]]) -> Presence | None:
        # a rule that is wrong wherever the kernel is would give away its time
        best, fewest = None, min(_WRONG * self.n + 1, int(present.sum()))
        sites: list[str] = []
        for ring in rings:
            sites += ring
            for negated in (False, True):
                rule = replace(self._rule(present != negated, sites), negated=negated)
                wrong = int((self._at(rule) != present).sum())
                if wrong < fewest:
                    best, fewest = rule, wrong
            if fewest <= _NEARLY * self.n:
                break
        return best

    def _rings(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Sites that may have a say in a kernel, nearest first."""
        if self._near is None:
            return (tuple(self.columns),)
        name = name.rpartition(" after ")[2]
        ends = [len(name), *(i for i in range(len(name) - 1, 0, -1) if not name[i].isalnum())]
        known = next((name[:i] for i in ends if name[:i] in self._near), None)
        if known is None:
            return (tuple(self.columns),)
        return tuple(tuple(s for s in ring if s in self.columns) for ring in self._near[known])

    def _at(self, rule: Presence) -> np.ndarray:
        """Where a rule says that a kernel is, in the samples."""
        def all_of(conditions):
            true = np.ones(self.n, bool)
            for site, levels in conditions:
                allowed = levels if site in self._switches else [int(levels[-1] == self._levels[site][-1])]
                true &= np.isin(self.columns[site], allowed)
            return true

        there = all_of(rule.where)
        if rule.unless:
            there &= ~all_of(rule.unless)
        return ~there if rule.negated else there

    def _rule(self, present: np.ndarray, sites: Sequence[str]) -> Presence:
        where, inside = self._cover(present, ~present, sites)
        wrong = inside & ~present
        if not wrong.any():
            return Presence(tuple(where))
        unless, left = self._cover(wrong, present, sites)
        if int((left & present).sum()) >= int(wrong.sum()):  # the exception costs more than it mends
            return Presence(tuple(where))
        return Presence(tuple(where), tuple(unless))

    def _cover(
        self, true: np.ndarray, false: np.ndarray, sites: Sequence[str]
    ) -> tuple[list[Condition], np.ndarray]:  # fmt: skip
        """Conditions that hold for all samples of `true` and leave out as many of `false` as possible; and where they
        all hold. Greedy; among equals the nearest site."""
        holds = np.ones(self.n, bool)
        chosen: list[Condition] = []
        while (holds & false).any() and len(chosen) < _MOST_CONDITIONS:
            best, gain, kept = None, 0, holds
            for site in sites:
                column = self.columns[site]
                allowed = np.unique(column[true])
                if len(allowed) == self.n_values[site]:
                    continue
                has = np.isin(column, allowed)
                better = int((holds & false & ~has).sum())
                if better > gain:
                    best, gain, kept = (site, allowed), better, has
            if best is None:
                break
            chosen.append(self._condition(*best))
            holds = holds & kept
        return chosen, holds

    def _condition(self, site: str, allowed: np.ndarray) -> Condition:
        if site in self._switches:
            return site, tuple(int(k) for k in allowed)
        return site, (self._levels[site][-1],) if allowed[0] == 1 else tuple(self._levels[site][:-1])
