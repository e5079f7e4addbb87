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


@dataclass(frozen=True)
class Key:
    """Kernels that are priced as one: a name, and the operators that it may have."""

    name: str
    ops: frozenset[str]


def presences(
    runs: Sequence[Collection[tuple[str, str]]], counts: Sequence[Counts], levels: Mapping[str, Sequence[int]],
    switches: Collection[str],
) -> dict[Key, Presence]:  # fmt: skip
    """The kernels of some profiled models, in order, whose presence can be explained, and how.

    runs: name and operator of the kernels of each model. counts: the level of every site in it. levels: all levels of
    each site, the last one leaving it whole. switches: sites whose levels are alternatives; of other sites it only
    matters whether they are whole. A name whose operator changes is several kernels where that can be explained, and
    one where not.
    """
    literals = _Literals(counts, levels, switches)
    order = dict.fromkeys(item for run in runs for item in run)
    ops: dict[str, list[str]] = {}
    for name, op in order:
        ops.setdefault(name, []).append(op)
    found: dict[Key, Presence] = {}
    for name, own in ops.items():
        apart = {Key(name, frozenset({op})): literals.explain(np.array([(name, op) in run for run in runs]), name)
                 for op in own}  # fmt: skip
        if all(p is not None for p in apart.values()):
            found |= apart
            continue
        together = literals.explain(np.array([any((name, op) in run for op in own) for run in runs]), name)
        if together is not None:
            found[Key(name, frozenset(own))] = together
    return found


class _Literals:
    """The conditions that samples can be told apart by: sites and levels."""

    def __init__(self, counts: Sequence[Counts], levels: Mapping[str, Sequence[int]], switches: Collection[str]):
        self.n = len(counts)
        self.columns: dict[str, np.ndarray] = {}
        self.values: dict[str, np.ndarray] = {}
        for site, all_levels in levels.items():
            column = np.array([c[site] for c in counts], np.int64)
            self.values[site] = np.asarray(all_levels, np.int64)
            # of a size only whether it is whole can tell kernels apart: 1 where it is
            self.columns[site] = column if site in switches else (column == all_levels[-1]).astype(np.int64)
            if site not in switches:
                self.values[site] = np.array([0, 1])
        self._levels, self._switches = levels, switches
        self._known: dict[bytes, Presence | None] = {}

    def explain(self, present: np.ndarray, name: str) -> Presence | None:
        """The rule by which `present` [samples] follows from the sites; None where there is none."""
        if present.all():
            return Presence()
        key = present.tobytes()
        if key not in self._known:
            found, absence = self._explained(present, name), None
            if found is None or len(found.where) + len(found.unless) > 2:
                absence = self._explained(~present, name)
            if absence is not None and (found is None or len(absence.groups) < len(found.groups)):
                found = replace(absence, negated=True)
            self._known[key] = found
        return self._known[key]

    def _explained(self, present: np.ndarray, name: str) -> Presence | None:
        where, inside = self._cover(present, ~present, name)
        wrong = inside & ~present
        if not wrong.any():
            return Presence(tuple(where))
        unless, left = self._cover(wrong, present, name)
        if (left & present).any():
            return None
        return Presence(tuple(where), tuple(unless))

    def _cover(self, true: np.ndarray, false: np.ndarray, name: str) -> tuple[list[Condition], np.ndarray]:
        """Conditions that hold for all samples of `true` and leave out as many of `false` as possible; and where they
        all hold. Greedy; a site that the kernel's name speaks of goes first among equals."""
        holds = np.ones(self.n, bool)
        chosen: list[Condition] = []
        while (holds & false).any() and len(chosen) < _MOST_CONDITIONS:
            best, gain, kept = None, (0, False), holds
            for site, column in self.columns.items():
                allowed = np.unique(column[true])
                if len(allowed) == len(self.values[site]):
                    continue
                has = np.isin(column, allowed)
                better = (int((holds & false & ~has).sum()), site.rpartition(" ")[2] in name)
                if better[0] and better > gain:
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
