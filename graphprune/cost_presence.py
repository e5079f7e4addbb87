"""When a kernel is there: learnt from which sampled models have it, so that no runtime's fusions need to be known.

A dropped branch takes its kernels along; a node in 8 bits has other kernels than one in floating point, and between
two neighbours in 8 bits nothing needs converting. Every such rule is a conjunction over a few sites, perhaps with an
exception that is one too (see `cover`). The samples of nodes that are alike
(see `likeness`) are taken together: a network of twelve equal blocks shows twelve times as much, and a kernel that was
seen in one block is known in all.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.cost_model import Condition, Counts, Presence
from graphprune.cover import Label, Rule, Table

_WRONG, _NEARLY = 0.1, 0.02
"""Shares of the samples that a rule may be wrong about: any rule, and one that ends the search."""


Rings = Sequence[Sequence[str]]
Role = tuple[Hashable, ...]
"""What a site is to a node near it."""
Item = tuple[str, str]
"""Name and operator of a kernel."""
_Class = tuple[int, str, int, frozenset[Role]]
"""How many rings are looked at, the operator, how many names it has, and the roles in the rings."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A node by its own name and those of its outputs, its operator, and the role of every site near it: kernels of two
    nodes with the same roles around them follow the same rules. kin: the same for nodes that are members of the same
    sites and have the same operators around them, so that their kernels do the same."""

    names: tuple[str, ...]
    op: str
    roles: Mapping[str, Role]
    kin: Hashable


@dataclass(frozen=True)
class Key:
    """Kernels that are priced as one: a name, and the operators that it may have."""

    name: str
    ops: frozenset[str]


Member = tuple[Key, Mapping[Role, str]]
"""Kernels of a node, and the sites around it by their roles."""


@dataclass(frozen=True)
class Explained:
    """rules: the kernels of the samples, in order, whose presence can be explained, and how; then those that no sample
    had, but that the rules of nodes alike say there would be. families: the kernels of nodes that are members of the
    same sites, in the same roles."""

    rules: dict[Key, Presence]
    families: list[list[Member]]


def presences(
    runs: Sequence[Collection[Item]], counts: Sequence[Counts], levels: Mapping[str, Sequence[int]],
    switches: Collection[str], near: Mapping[str, Rings] | None = None, alike: Sequence[Surroundings] = (),
) -> Explained:  # fmt: skip
    """The kernels of some profiled models, and when each is there.

    runs: name and operator of the kernels of each model. counts: the level of every site in it. levels: all levels of
    each site, the last one leaving it whole. switches: sites whose levels are alternatives; of other sites it only
    matters whether they are whole. near: node or value name -> the sites that can have a say in its kernels, in rings
    from near to far: with few samples a rule over any sites would be found for everything. alike: the nodes whose
    samples are taken together where the roles around them are the same. A name whose operator changes is several
    kernels where that can be explained, and one where not.
    """
    samples = _Samples(runs, counts, levels, switches, near, alike)
    ops: dict[str, list[str]] = {}
    for name, op in samples.items:
        ops.setdefault(name, []).append(op)
    rules: dict[Key, Presence] = {}
    for name, own in ops.items():
        left = []
        for op in own:
            rule = samples.explain(name, op)
            if rule is None:
                left.append(op)
            else:
                rules[Key(name, frozenset({op}))] = rule
        if len(left) > 1 and (rule := samples.explain_together(name, left)) is not None:
            rules[Key(name, frozenset(left))] = rule
    rules |= samples.unseen(rules)
    return Explained(rules, samples.families(rules))


@dataclass(frozen=True)
class _Place:
    """Where a kernel's name stands: the name it is derived from, and what is made of that."""

    anchor: str | None
    before: str = ""
    behind: str = ""

    def at(self, name: str) -> str:
        """The name of the same kernel elsewhere."""
        return self.before + name + self.behind


class _Samples:
    """Which kernels there were in each sample, and at which levels. See `presences` for the arguments."""

    def __init__(
        self, runs: Sequence[Collection[Item]], counts: Sequence[Counts], levels: Mapping[str, Sequence[int]],
        switches: Collection[str], near: Mapping[str, Rings] | None, alike: Sequence[Surroundings],
    ) -> None:  # fmt: skip
        self.n, self.levels, self.switches, self.near = len(runs), levels, switches, near
        self.items: dict[Item, np.ndarray] = {}
        for i, run in enumerate(runs):
            for item in run:
                self.items.setdefault(item, np.zeros(self.n, bool))[i] = True
        self.columns: dict[str, np.ndarray] = {}
        self.n_values: dict[str, int] = {}
        for site, own in levels.items():
            column = np.array([c[site] for c in counts], np.int64)
            # of a size only whether it is whole can tell kernels apart: 1 where it is
            self.columns[site] = column if site in switches else (column == own[-1]).astype(np.int64)
            self.n_values[site] = len(own) if site in switches else 2
        self.nodes = {name: (around, i) for around in reversed(alike) for i, name in enumerate(around.names)}
        self.nodes |= {around.names[0]: (around, 0) for around in reversed(alike)}
        self.kin: dict[Hashable, list[Surroundings]] = {}
        self.classes: dict[_Class, list[Surroundings]] = {}
        for around in alike:
            self.kin.setdefault(around.kin, []).append(around)
            for r in range(len(self._rings_of(around))):
                self.classes.setdefault(self._class(around, r), []).append(around)
        self._tables: dict[_Class, Table] = {}
        self._found: dict[tuple[object, ...], tuple[Rule | None, float]] = {}

    def explain(self, name: str, op: str) -> Presence | None:
        """The rule by which a kernel's presence follows from the sites, from the nearest ones if they say nearly all,
        and but for few samples in any case; None where there is none."""
        place = self._place(name)
        if place.anchor in self.nodes:
            rule = self._shared(*self.nodes[place.anchor], place, op)
            if rule is not None:
                return rule
        return self._own(self._present(name, op), place)

    def explain_together(self, name: str, ops: Collection[str]) -> Presence | None:
        """The same of a kernel under any of some operators."""
        return self._own(np.any([self._present(name, op) for op in ops], axis=0), self._place(name))

    def unseen(self, rules: Collection[Key]) -> dict[Key, Presence]:
        """The kernels that nodes have by the rules of nodes alike, and that none of their own samples had."""
        found: dict[Key, Presence] = {}
        for members in self.families(rules):
            key, _ = members[0]
            place = self._place(key.name)
            first, i = self.nodes[place.anchor]
            for mate in self.kin[first.kin]:
                name = place.at(mate.names[i])
                if self.nodes[mate.names[i]] != (mate, i) or any((name, op) in self.items for op in key.ops):
                    continue
                if len(key.ops) == 1 and (rule := self._shared(mate, i, place, *key.ops)) is not None:
                    found[Key(name, key.ops)] = rule
        return found

    def families(self, keys: Iterable[Key]) -> list[list[Member]]:
        """See `Explained`."""
        found: dict[tuple[object, ...], list[Member]] = {}
        for key in keys:
            place = self._place(key.name)
            if place.anchor in self.nodes:
                around, i = self.nodes[place.anchor]
                family = (around.kin, i, place.before, place.behind, key.ops)
                found.setdefault(family, []).append((key, {role: site for site, role in around.roles.items()}))
        return list(found.values())

    def _shared(self, around: Surroundings, i: int, place: _Place, op: str) -> Presence | None:
        """The rule that holds for a node and for all that are alike, as far as the rule looks; None also where it does
        not hold for the node itself."""
        rings = self._rings_of(around)
        found: list[tuple[float, Rule]] = []
        for r in range(len(rings)):
            kind = self._class(around, r)
            key = (kind, i, place.before, place.behind, op)
            if key not in self._found:
                there = [self._present(place.at(mate.names[i]), op) for mate in self.classes[kind]]
                self._found[key] = self._best(self._table(kind), np.concatenate(there))
            rule, wrong = self._found[key]
            if rule is not None:
                found.append((wrong, rule))
                if wrong <= _NEARLY:
                    break
        if not found:
            return None
        rule = min(found, key=lambda each: each[0])[1]
        sites = {role: site for site, role in around.roles.items()}
        own = Table({role: self.columns[sites[role]] for role in rule.labels}, {}, self.n)
        if int((own.at(rule) != self._present(place.at(around.names[i]), op)).sum()) > _WRONG * self.n:
            return None
        return self._presence(rule, sites)

    def _own(self, present: np.ndarray, place: _Place) -> Presence | None:
        """The rule that a kernel's own samples show."""
        key = (present.tobytes(), place.anchor)
        best, fewest = None, np.inf
        if key not in self._found:
            rings = self._rings(place.anchor)
            for r in range(len(rings)):
                sites = [s for ring in rings[: r + 1] for s in ring]
                table = Table({s: self.columns[s] for s in sites}, self.n_values, self.n)
                rule, wrong = self._best(table, present)
                if rule is not None and wrong < fewest:
                    best, fewest = rule, wrong
                if fewest <= _NEARLY:
                    break
            self._found[key] = best, fewest
        rule = self._found[key][0]
        return None if rule is None else self._presence(rule, {s: s for s in rule.labels})

    @staticmethod
    def _best(table: Table, present: np.ndarray) -> tuple[Rule | None, float]:
        """The best rule and the share of samples that it is wrong about; None where there is none that will do."""
        rule, wrong = table.explain(present)
        # a rule that is wrong wherever the kernel is would give away its time
        good = wrong < min(_WRONG * table.n + 1, int(present.sum()))
        return (rule if good else None), wrong / table.n

    def _presence(self, rule: Rule, sites: Mapping[Label, str]) -> Presence:
        def conditions(own: Iterable[tuple[Label, tuple[int, ...]]]) -> tuple[Condition, ...]:
            return tuple(self._condition(sites[label], allowed) for label, allowed in own)

        return Presence(conditions(rule.where), conditions(rule.unless), rule.negated)

    def _condition(self, site: str, allowed: tuple[int, ...]) -> Condition:
        if site in self.switches:
            return site, allowed
        return site, (self.levels[site][-1],) if allowed[0] == 1 else tuple(self.levels[site][:-1])

    def _present(self, name: str, op: str) -> np.ndarray:
        """In which samples a kernel is."""
        return self.items.get((name, op), np.zeros(self.n, bool))

    def _place(self, name: str) -> _Place:
        """By the longest name of a node or value that a kernel's begins with."""
        front, after, stem = name.rpartition(" after ")
        ends = [len(stem), *(i for i in range(len(stem) - 1, 0, -1) if not stem[i].isalnum())]
        known = next((i for i in ends if self.near is not None and stem[:i] in self.near), None)
        if known is None:
            return _Place(None)
        return _Place(stem[:known], front + after, stem[known:])

    def _rings(self, anchor: str | None) -> Rings:
        """Sites that may have a say in a kernel, nearest first."""
        if self.near is None or anchor is None:
            return (tuple(self.columns),)
        return [[s for s in ring if s in self.columns] for ring in self.near.get(anchor, ())]

    def _rings_of(self, around: Surroundings) -> Rings:
        """The same of a node. Another one may go by the name of its, and have sites that are not near it."""
        return [[s for s in ring if s in around.roles] for ring in self._rings(around.names[0])]

    def _class(self, around: Surroundings, r: int) -> _Class:
        """The same for nodes with the same roles in their rings up to r."""
        roles = frozenset(around.roles[s] for ring in self._rings_of(around)[: r + 1] for s in ring)
        return r, around.op, len(around.names), roles

    def _table(self, kind: _Class) -> Table:
        """The samples of all nodes of a class, one after the other: role -> what the site in it was at."""
        if kind not in self._tables:
            mates = self.classes[kind]
            rings = self._rings_of(mates[0])[: kind[0] + 1]
            order = [mates[0].roles[s] for ring in rings for s in ring]
            sites = [{role: site for site, role in mate.roles.items()} for mate in mates]
            columns = {role: np.concatenate([self.columns[own[role]] for own in sites]) for role in order}
            n_values = {role: self.n_values[sites[0][role]] for role in order}
            self._tables[kind] = Table(columns, n_values, self.n * len(mates))
        return self._tables[kind]
