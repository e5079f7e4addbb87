"""The part of a graph that one group lies in: its nodes and what each does with it, the values between them, and the
nodes next to them. Plain data, to be drawn or written as JSON; nothing here draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphprune.causes import Sums
from graphprune.dims import leaves, sizes_text
from graphprune.groups import Analysis, Group

MAKES, PASSES, READS, BOTH, LOOKS, OUTSIDE = "makes", "passes", "reads", "reads and makes", "looks", "outside"
"""What a node does with the group: its channels begin there, go through, are summed over, or both; it takes a statistic
or the size of them; or it only stands beside."""
_MOST_USERS = 3
"""More users beside the group than this, of one value, share a box."""


@dataclass(frozen=True)
class Weight:
    """A weight of a node that holds the group. axes: where, with what each is made up of ("[12] x 32")."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        """The shape, with the group in brackets: 64 x [32] x 3 x 3."""
        held = dict(self.axes)
        return " x ".join(f"({t})" if " " in (t := held.get(i, str(n))) else t for i, n in enumerate(self.shape))


@dataclass(frozen=True)
class Member:
    """A node, or `count` nodes: a chain that only passes the group on, or users beside it. A graph input or output has
    no operators."""

    name: str
    operators: tuple[str, ...]
    role: str
    weights: tuple[Weight, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class Edge:
    """A value between two members, by their numbers. axis: that holds the group, as text; "" where none does."""

    source: int
    target: int
    value: str
    shape: tuple[int, ...]
    axis: str


@dataclass(frozen=True)
class Members:
    """In topological order."""

    nodes: tuple[Member, ...]
    edges: tuple[Edge, ...]


def members(analysis: Analysis, group: Group) -> Members:
    """All nodes of a group, and those that feed its makers or use what its readers make."""
    return _Builder(analysis, group).build()


def held_weights(analysis: Analysis, group: Group) -> tuple[Weight, ...]:
    """The weights that the group lies on."""
    builder, initializers = _Builder(analysis, group), analysis.model.graph.initializers
    return tuple(builder.weight(initializers[name]) for name in dict.fromkeys(name for name, _ in group.weights))


def collapsed(graph: Members, most: int) -> Members:
    """The same with chains of nodes that only pass the group on drawn as one, if there are more than `most` nodes."""
    if len(graph.nodes) <= most:
        return graph
    into, out = defaultdict(list), defaultdict(list)
    for e in graph.edges:
        into[e.target].append(e)
        out[e.source].append(e)

    def plain(i: int) -> bool:
        node = graph.nodes[i]
        return node.role == PASSES and not node.weights and len(into[i]) == len(out[i]) == 1

    home = list(range(len(graph.nodes)))
    for i in home:
        if plain(i) and plain(into[i][0].source):
            home[i] = home[into[i][0].source]
    chains: dict[int, list[Member]] = defaultdict(list)
    for i, head in enumerate(home):
        chains[head].append(graph.nodes[i])
    number = {head: k for k, head in enumerate(sorted(chains))}
    nodes = [_chain(chains[head]) for head in number]
    edges = [replace(e, source=number[home[e.source]], target=number[home[e.target]]) for e in graph.edges
             if home[e.source] != home[e.target]]  # fmt: skip
    return Members(tuple(nodes), tuple(edges))


def _chain(nodes: Sequence[Member]) -> Member:
    if len(nodes) == 1:
        return nodes[0]
    return Member(f"{nodes[0].name} to {nodes[-1].name}", tuple(o for n in nodes for o in n.operators), PASSES,
                  count=len(nodes))  # fmt: skip


class _Builder:
    def __init__(self, analysis: Analysis, group: Group) -> None:
        self.graph, self.types, self.d = analysis.model.graph, analysis.types, group.dim
        named = set(group.nodes)
        self.members = dict.fromkeys(n for n in self.graph if n.name in named)
        self.place: dict[object, int] = {node: i for i, node in enumerate(self.graph)}
        self.sums = Sums(self.types, inside=True)
        self.inside = {c.node for c in self.types.contracted if c.inside}

    def build(self) -> Members:
        roles = {n: self._role(n) for n in self.members}
        boxes: dict[object, Member] = {  # by node, nodes, or graph input or output
            n: Member(n.name, (n.op_type,), roles[n], tuple(self._weights(n))) for n in self.members
        }
        links: list[tuple[object, object, ir.Value]] = []
        for node in self.members:
            for v in self._activations(node):
                if v.producer() in roles:
                    links.append((v.producer(), node, v))
                elif roles[node] in (MAKES, BOTH):
                    links.append((self._outside(v, v.producer(), boxes), node, v))
            if roles[node] in (READS, BOTH):
                links += [(node, box, y) for y in node.outputs if not self._axes(y) for box in self._users(y, boxes)]
        return self._numbered(boxes, links)

    def _users(self, y: ir.Value, boxes: dict[object, Member]) -> Iterator[object]:
        """Boxes for what uses a value beside the group; what a body captures is left out."""
        users = [n for n in dict.fromkeys(use.node for use in y.uses()) if n in self.place and n not in self.members]
        if len(users) > _MOST_USERS:
            yield self._together(users, boxes)
        else:
            yield from (self._outside(y, user, boxes) for user in users)
        if y.is_graph_output():
            yield self._outside(y, None, boxes)

    def _outside(self, value: ir.Value, node: ir.Node | None, boxes: dict[object, Member]) -> object:
        """The box of a node beside the group, or of a graph input or output."""
        key = value if node is None else node
        if key not in boxes:
            word = "graph output" if value.is_graph_output() else "graph input"
            self.place.setdefault(key, len(self.graph) if value.is_graph_output() else -1)
            boxes[key] = Member(f"{word} {value.name}" if node is None else node.name,
                                () if node is None else (node.op_type,), OUTSIDE)  # fmt: skip
        return key

    def _together(self, nodes: list[ir.Node], boxes: dict[object, Member]) -> object:
        """One box for several nodes beside the group."""
        nodes.sort(key=self.place.__getitem__)
        key = tuple(nodes)
        boxes[key] = Member(f"{nodes[0].name} to {nodes[-1].name}", tuple(n.op_type for n in nodes), OUTSIDE,
                            count=len(nodes))  # fmt: skip
        self.place[key] = self.place[nodes[0]]
        return key

    def _numbered(self, boxes: dict[object, Member], links: Sequence[tuple[object, object, ir.Value]]) -> Members:
        order = sorted(boxes, key=self.place.__getitem__)
        number = {key: i for i, key in enumerate(order)}
        edges = dict.fromkeys(Edge(number[a], number[b], v.name, tuple(self.types.shapes.get(v.name, ())),
                                   ", ".join(f"axis {i}{_made_up(text)}" for i, text in self._axes(v)))
                              for a, b, v in links)  # fmt: skip
        return Members(tuple(boxes[key] for key in order), tuple(edges))

    def _role(self, node: ir.Node) -> str:
        carried = [(i, self.sums.over(node, i, axis, self.d)) for i, v in enumerate(node.inputs) if v is not None
                   for axis, _ in self._axes(v)]  # fmt: skip
        reads = any(summed for _, summed in carried)
        passed = [i for i, summed in carried if not summed and not node.inputs[i].is_initializer()]
        comes_out = any(self._axes(y) for y in node.outputs)
        makes = (comes_out and not passed) or (reads and node.name in self.inside)
        if reads or makes:
            return BOTH if reads and makes else READS if reads else MAKES
        return PASSES if comes_out else LOOKS

    def _activations(self, node: ir.Node) -> Iterator[ir.Value]:
        """Inputs that are no weights: those that hold the group, and of a node that makes it the others too."""
        for v in dict.fromkeys(v for v in node.inputs if v is not None):
            if not v.is_initializer() and v.name in self.types.axes and (self._axes(v) or self._is_data(v)):
                yield v

    def _is_data(self, v: ir.Value) -> bool:
        return v.dtype is None or v.dtype.is_floating_point() or v.producer() is None

    def _weights(self, node: ir.Node) -> Iterator[Weight]:
        for v in dict.fromkeys(v for v in node.inputs if v is not None and v.is_initializer()):
            if self._axes(v):
                yield self.weight(v)

    def weight(self, v: ir.Value) -> Weight:
        return Weight(v.name, tuple(v.const_value.shape), self._axes(v))

    def _axes(self, v: ir.Value) -> tuple[tuple[int, str], ...]:
        """The axes of a value that hold the group."""
        return tuple((i, sizes_text(t, self.d)) for i, t in enumerate(self.types.axes.get(v.name, ()))
                     if self.d in set(leaves(t)))  # fmt: skip


def _made_up(text: str) -> str:
    """What an axis is made up of, where it is more than the group."""
    return f": {text}" if " " in text else ""
