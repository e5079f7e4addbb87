"""Residual branches: where a graph computes x + f(x), so that f can go and x stays.

Found on any canonical graph by dominators. The nodes of a branch are those that nobody would miss without its sum:
every path from them to an output of the model leads through f, which therefore dominates them in the reversed graph. f
must depend on the stream it is added to; what else it reads (a mask, the states of an encoder, a table of positions)
does not. It must hold all products between the stream and itself: where something inside is used elsewhere too, as are
keys and values that the model gives out, there is no branch; a norm before it may be shared, and then stays. Dependence
is on contents: the sizes of a stream, from which masks are made, are not the stream.

The sum must have the stream's own shape and axis types, so that the stream can take its place. Concatenations, gates
and blocks with a projection on their shortcut are therefore no candidates.

Single branches are enough: without the two branches of a transformer block nothing is left of it but the norms that
follow sums. A branch that holds others (the way down and up again of an hourglass, a residual group of residual blocks)
counts only if it does much besides: else to drop it is to drop what it holds, and sites that overlap are priced badly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphprune.dims import Type, leaves, wholly_frozen
from graphprune.groups import Analysis
from graphprune.infer import captured
from graphprune.rules.base import Types

_BESIDES = 0.1
"""A branch that holds others is one if at least this share of its multiply-adds lies outside them."""


@dataclass(frozen=True)
class Branch:
    """The branch f of a sum `exit` = stream + f. All are names of the canonical model.

    exit: the node that adds. operand: which of its operands is f; output: the value f. stream: the other operand;
    shape: its traced one. nodes: those that only f needs, in the graph's order. n_macs: their multiply-adds at the
    traced shapes. axis: the stream's axis of channels, which the branch's own products contract or make; None where no
    axis stands out.
    """

    exit: str
    operand: int
    stream: str
    shape: tuple[int, ...]
    output: str
    nodes: tuple[str, ...]
    n_macs: int
    axis: int | None

    @property
    def n_channels(self) -> int:
        return self.shape[-1 if self.axis is None else self.axis]


def find_branches(analysis: Analysis) -> tuple[Branch, ...]:
    """The residual branches of the canonical model, in the graph's order."""
    graph = _Graph(analysis)
    found = [b for node in analysis.model.graph for b in graph.branches_of(node)]
    return tuple(b for b in found if _does_enough(b, found, graph.macs))


def _does_enough(branch: Branch, all_branches: Sequence[Branch], macs: Mapping[str, int]) -> bool:
    own = set(branch.nodes)
    within = {n for other in all_branches if other.exit in own for n in other.nodes}
    return sum(macs.get(n, 0) for n in own - within) >= _BESIDES * branch.n_macs


class _Graph:
    """What depends on what, and what is needed only by what."""

    def __init__(self, analysis: Analysis) -> None:
        self.types = analysis.types
        self.order = {node: i for i, node in enumerate(analysis.model.graph)}
        self.macs = multiply_adds(analysis)
        self._products = [node for node in self.order if self.macs.get(node.name)]
        self._tree = _dominator_tree(analysis.model.graph)
        self._bit: dict[ir.Value, int] = {}
        self._sources: dict[ir.Value, int] = {}  # as bits: the value and all that its contents depend on
        for value in analysis.model.graph.inputs:
            self._add(value, 0)
        for node in self.order:
            sources = 0
            for v in _operands(node) if node.op_type not in ("Shape", "Size") else ():
                sources |= self._sources.get(v, 0)
            for y in node.outputs:
                self._add(y, sources)

    def _add(self, value: ir.Value, sources: int) -> None:
        self._bit[value] = 1 << len(self._bit)
        self._sources[value] = sources | self._bit[value]

    def _depends(self, value: ir.Value, on: ir.Value) -> bool:
        return bool(self._sources[value] & self._bit[on])

    def branches_of(self, node: ir.Node) -> Iterator[Branch]:
        """The branch that the node adds to a stream, if it does."""
        if node.op_type not in ("Add", "Sum") or node.domain or len(node.inputs) != 2:
            return
        for operand in (0, 1):
            f, stream = node.inputs[operand], node.inputs[1 - operand]
            inside = self._inside(f, stream)
            n_macs = sum(self.macs.get(n.name, 0) for n in inside)
            if n_macs and self._can_stand_for(stream, node.outputs[0]):
                names = tuple(n.name for n in inside)
                axis = _channel_axis(self.types, stream.name, set(names))
                shape = tuple(self.types.shapes[stream.name])
                yield Branch(node.name, operand, stream.name, shape, f.name, names, n_macs, axis)

    def _inside(self, f: ir.Value, stream: ir.Value) -> list[ir.Node]:
        """The nodes of the branch; none where f is not one."""
        maker = f.producer()
        if maker not in self._tree or len(f.uses()) > 1 or f.is_graph_output() or stream not in self._bit:
            return []
        above = [x for x in self._terms(stream) if self._depends(f, x)]
        inside = {maker, *nx.descendants(self._tree, maker)} if above else set()
        if all(self._leaks(f, x, inside) for x in above) or any(True for node in inside for _ in captured(node)):
            return []
        return sorted(inside, key=self.order.__getitem__)

    def _terms(self, stream: ir.Value) -> list[ir.Value]:
        """The stream, and where it is a sum itself its terms: branches beside one another are added in turns."""
        maker = stream.producer()
        if maker is None or maker.op_type not in ("Add", "Sum"):
            return [stream]
        return [stream, *(v for v in maker.inputs if v in self._bit)]

    def _leaks(self, f: ir.Value, x: ir.Value, inside: set[ir.Node]) -> bool:
        """Whether a product on the way from x to f is needed elsewhere, too."""
        return any(
            self._depends(f, y) and self._depends(y, x) and y is not x
            for node in self._products if node not in inside for y in node.outputs
        )  # fmt: skip

    def _can_stand_for(self, stream: ir.Value, total: ir.Value) -> bool:
        """Whether the stream has the shape and the axis types of the sum, whatever the feed."""
        axes = self.types.axes
        if stream.name not in axes or total.name not in axes or len(axes[stream.name]) != len(axes[total.name]):
            return False
        if stream.shape is not None and total.shape is not None:
            for own, whole in zip(stream.shape, total.shape, strict=True):
                if own == 1 and whole != 1:  # broadcast, though not at the traced sizes
                    return False
        return all(same_type(a, b) for a, b in zip(axes[stream.name], axes[total.name], strict=True))


def same_type(a: Type, b: Type) -> bool:
    """Whether two axes always shrink together: made of the same variables, or not to shrink at all."""
    return a.size == b.size and (tuple(leaves(a)) == tuple(leaves(b)) or (wholly_frozen(a) and wholly_frozen(b)))


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    yield from (v for v in node.inputs if v is not None)
    yield from captured(node)


def _dominator_tree(graph: ir.Graph) -> nx.DiGraph:
    """An edge from each node that an output needs to those whose every path to an output leads through it next."""
    end = "outputs"
    backward = nx.DiGraph()
    backward.add_node(end)
    nodes = set(graph)
    backward.add_edges_from((end, v.producer()) for v in graph.outputs if v.producer() in nodes)
    for node in nodes:
        backward.add_edges_from((node, v.producer()) for v in _operands(node) if v.producer() in nodes)
    return nx.DiGraph((p, n) for n, p in nx.immediate_dominators(backward, end).items() if n != end)


def multiply_adds(analysis: Analysis) -> dict[str, int]:
    """Multiply-adds of every node that multiplies matrices or convolves, at the traced shapes, by node name.

    With a weight: its elements times the places (tokens, pixels) they are used at; between activations: elements of the
    output times the length of what is summed over.
    """
    types = analysis.types
    nodes = {node.name: node for node in analysis.model.graph}
    summed: dict[str, dict[int, int]] = {}
    for c in types.contracted:
        summed.setdefault(c.node, {})[c.operand] = c.axis
    found = {}
    for name, operands in summed.items():
        node = nodes[name]
        weights = [node.inputs[i] for i in operands if node.inputs[i].is_initializer()]
        y = types.shapes.get(node.outputs[0].name)
        if y is None:
            continue
        if weights:
            places = types.shapes[node.inputs[0].name] if node.op_type == "ConvTranspose" else y
            channels = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
            n = int(np.prod(places)) // (places[channels] if len(places) > 1 else 1)
            found[name] = n * sum(int(w.const_value.size) for w in weights)
        elif len(operands) > 1:
            operand, axis = next(iter(operands.items()))
            found[name] = int(np.prod(y)) * types.shapes[node.inputs[operand].name][axis]
    return found


def _channel_axis(types: Types, stream: str, inside: set[str]) -> int | None:
    """The axis of the stream that the first weight inside contracts, else the one that the last makes."""
    axes = types.axes[stream]
    readers = [r for r in types.readers if r.node in inside]
    facing = [types.axes[r.w][r.contracted] for r in readers] + [types.axes[r.w][r.produced] for r in readers[::-1]]
    for wanted in facing:
        for i, axis in enumerate(axes):
            if axis.size == wanted.size > 1 and tuple(leaves(axis)) == tuple(leaves(wanted)):
                return i
    likely = 1 if len(axes) > 2 and any(r.kind == "conv" for r in readers) else len(axes) - 1
    # Axes that are frozen on both sides are never made one, so that only their sizes can tell.
    return likely if any(axes[likely].size == wanted.size for wanted in facing) else None
