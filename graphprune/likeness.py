"""Which nodes are alike: what the sites around a node look like from there, in words that do not say where it is.

Networks repeat themselves. What the runtime makes of a node in one block it makes of the same node in every other, as
long as the sites around it, each found at the end of the same path, are at the same levels.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from graphprune.cost_presence import Role, Surroundings
from graphprune.nearness import HOPS, LINEAR
from graphprune.sites import Site

_CLOSE = 2


def surroundings(graph: ir.Graph, sites: Iterable[Site]) -> list[Surroundings]:
    """Of every node of a graph that has sites near it. A role is what kind of site it is and the way there from the
    node: direction, place and operator of every step."""
    by_member: dict[str, list[Site]] = {}
    for site in sites:
        for name in site.members:
            by_member.setdefault(name, []).append(site)
    place = {node: i for i, node in enumerate(graph)}
    found = []
    for node in graph:
        nearest: dict[str, Role] = {}
        paths = dict(_paths(node, place))
        for other, path in paths.items():
            for site in by_member.get(other.name, ()):
                nearest.setdefault(site.name, (*_kind(site), *path))
        if nearest:
            names, roles = (node.name, *(y.name for y in node.outputs)), _distinct(nearest)
            own = frozenset(roles[site.name] for site in by_member.get(node.name, ()))
            close = frozenset(path for path in paths.values() if len(path) <= _CLOSE)
            found.append(Surroundings(names, node.op_type, roles, (node.op_type, len(names), own, close)))
    return found


def _kind(site: Site) -> Role:
    """What sites must share if the same is to be said of their levels."""
    return site.about, site.ordered, site.replaces, () if site.ordered else site.levels


def _distinct(roles: Mapping[str, Role]) -> dict[str, Role]:
    """The same with a number, where several sites of a kind are at the same place: in the order they were proposed."""
    seen: Counter[Role] = Counter()
    numbered = {}
    for site, role in roles.items():
        numbered[site] = (*role, seen[role])
        seen[role] += 1
    return numbered


def _paths(start: ir.Node, place: Mapping[ir.Node, int]) -> Iterator[tuple[ir.Node, Role]]:
    """Nodes around one, near to far, with the first of the shortest paths there; not beyond the next linear node."""
    paths: dict[ir.Node, Role] = {start: ()}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        yield node, paths[node]
        if len(paths[node]) == HOPS or (node is not start and node.op_type in LINEAR):
            continue
        for step, other in _steps(node, place):
            if other not in paths:
                paths[other] = (*paths[node], step)
                waiting.append(other)


def _steps(node: ir.Node, place: Mapping[ir.Node, int]) -> Iterator[tuple[str, ir.Node]]:
    """Neighbours of a node and words for the way to each; the order in the graph tells equal ones apart."""
    for i, value in enumerate(node.inputs):
        if value is not None and value.producer() is not None:
            yield f"<{i} {value.producer().op_type}", value.producer()
    for k, y in enumerate(node.outputs):
        seen: Counter[str] = Counter()
        for use in sorted(y.uses(), key=lambda use: (place.get(use.node, -1), use.idx)):
            word = f">{k} {use.idx} {use.node.op_type}"
            yield f"{word} {seen[word]}", use.node
            seen[word] += 1
