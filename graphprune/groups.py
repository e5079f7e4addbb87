"""Groups of coupled channels, read off the solved dimension types, and what stays frozen and why.

A group is one free variable and every place it occurs. It can be pruned if somebody reads it (it is contracted) and
somebody makes it (it lies on a weight axis that is not itself contracted).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.causes import Frozen, frozen_rows, is_locked, parameters, weights_of
from graphprune.dims import Dim, Prod, Reason, Sum, Type, freeze, leaves, norm
from graphprune.keeps import Keep, Keeps, Ragged, coordinates, positions
from graphprune.rules.base import Reader, Types
from graphprune.rules.shapes import is_dynamic


@dataclass(frozen=True)
class Group:
    """Coupled channels that shrink together.

    dim: the variable; size: how many channels; kind: what a person would call them; inexact: why removal differs from
    zeroing (None: it does not). weights: (initialiser, axis) wherever the group lies on a weight. readers: the linear
    consumers whose weights can be solved for again. n_parameters: weight elements that depend on the group. outer:
    variables for each index of which the group may keep other channels, as long as it keeps equally many (see `keeps`).
    """

    name: str
    dim: Dim
    size: int
    kind: str
    inexact: Reason | None
    weights: tuple[tuple[str, int], ...]
    readers: tuple[Reader, ...]
    nodes: tuple[str, ...]
    n_parameters: int
    outer: tuple[Dim, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """A typed model: its groups by name, what is frozen, how many weight elements it has (those in the bodies of
    control flow included) and how many lie in some group."""

    model: ir.Model
    types: Types
    groups: Mapping[str, Group]
    frozen: tuple[Frozen, ...]
    n_parameters: int
    n_prunable: int

    def keeps(self, keep: Mapping[str, np.ndarray]) -> Keeps:
        """Keep sets by group name as keep sets by variable.

        keep: indices [kept], or, different for each index of the group's outer variables, [*sizes of outer, kept].
        """
        return {self.groups[name].dim: self._keep(self.groups[name], index) for name, index in keep.items()}

    def _keep(self, group: Group, index: np.ndarray) -> Keep:
        index = np.asarray(index, np.int64)
        return index if index.ndim == 1 else Ragged(group.outer, index)


def analyse(model: ir.Model, types: Types, *, inexact: bool = False) -> Analysis:
    """Find the groups of a typed model. inexact: offer groups whose axis is a statistic (of a norm, a softmax) too."""
    weights = {v.name: v for v in weights_of(model.graph)}
    _freeze_repeated(types)
    places: dict[Dim, list[tuple[str, int]]] = defaultdict(list)
    for name in weights:
        for axis, t in enumerate(types.axes.get(name, ())):
            for d in leaves(t):
                if d.size > 1 and (not places[d] or places[d][-1] != (name, axis)):
                    places[d].append((name, axis))
    read = {(model_input(model, c.node, c.operand), c.axis) for c in types.contracted if not c.inside}
    made = [d for d, where in places.items() if any(place not in read for place in where)]
    offered = [d for d in made if d.frozen is None and d.contracted]  # named together, whichever will be left
    nodes, outer = _nodes_of(model, types, set(offered)), outer_variables(model, types, offered)
    readers: dict[Dim, list[Reader]] = defaultdict(list)
    operators: dict[str, set[str]] = defaultdict(set)  # of the linear nodes that use a weight
    for r in types.readers:
        operators[r.w].add(_node_index(model)[r.node].op_type)
        for d in dict.fromkeys(leaves(types.axes[r.w][r.contracted])):
            readers[d].append(r)
    groups: dict[str, Group] = {}
    for d in offered:
        name = _name(d, places[d], nodes[d], model, groups)
        groups[name] = Group(
            name, d, d.size, _kind(d, places[d], types, operators), d.inexact, tuple(places[d]),
            tuple(readers[d]), tuple(nodes[d]),
            sum(int(weights[w].const_value.size) for w in {w for w, _ in places[d]}), outer[d],
        )  # fmt: skip
    if not inexact:
        groups = {name: group for name, group in groups.items() if group.inexact is None}
    free = {group.dim for group in groups.values()}
    locked = [d for d in made if d not in free and is_locked(d)]
    makers_first = {d: sorted(places[d], key=lambda p: (p in read, -weights[p[0]].const_value.size)) for d in locked}
    frozen = tuple(frozen_rows(model, types, makers_first, free))
    total = parameters(model)
    return Analysis(model, types, groups, frozen, total, total - sum(row.n_parameters for row in frozen))


def outer_variables(model: ir.Model, types: Types, dims: Iterable[Dim]) -> dict[Dim, tuple[Dim, ...]]:
    """For each of `dims`, the variables for each index of which it may keep others.

    Such a variable is there wherever the dim is, in every value: outside it on the same axis, or on another axis, and
    only once (it would have two indices there). It is free and no statistic, so that every operator either treats its
    indices one by one or sums them up - and a sum would be a value with the dim and without the variable, in the graph
    or inside a node. Merged with a batch of any size, as in (batch x heads) beside the dim, it does not count: no mask
    of a fixed size could certify that.
    """
    wanted: set[Dim] = set(dims)
    found: dict[Dim, tuple[Dim, ...]] = {}
    for axes in types.axes.values():
        on_axes = Counter(d for t in axes for d in dict.fromkeys(leaves(t)))
        for i, t in enumerate(axes):
            if not wanted.isdisjoint(leaves(t)):
                elsewhere = [d for j, other in enumerate(axes) if j != i and not is_dynamic(other)
                             for d in _throughout(other)]  # fmt: skip
                for d, around in _surrounded(norm(t), ()):
                    if d in wanted:
                        here = {o for o in (*around, *elsewhere) if on_axes[o] == 1}
                        found[d] = tuple(o for o in found.get(d, dict.fromkeys((*around, *elsewhere))) if o in here)
    summed = _summed_beside(model, types, wanted)
    return {
        d: tuple(o for o in found.get(d, ()) if o is not d and o.size > 1 and not (o.frozen or o.inexact)
                 and o not in summed[d])
        for d in wanted
    }  # fmt: skip


def _summed_beside(model: ir.Model, types: Types, dims: set[Dim]) -> dict[Dim, set[Dim]]:
    """Variables that some node sums over, each with the dims on other axes of the node's operands: what comes of it has
    the dim without the variable, even if only inside the node, or another in its place."""
    found: dict[Dim, set[Dim]] = {d: set() for d in dims}
    for c in types.contracted:
        node = _node_index(model)[c.node]
        gone = set(leaves(types.axes[node.inputs[c.operand].name][c.axis]))
        for v in node.inputs:
            axes = types.axes[v.name] if v is not None else []
            summed = {i for i, t in enumerate(axes) if not gone.isdisjoint(leaves(t))}
            for i, t in enumerate(axes):
                if summed - {i}:
                    for d in dims.intersection(leaves(t)):
                        found[d] |= gone
    return found


def _throughout(t: Type) -> Iterator[Dim]:
    """Variables that every place of an axis has an index of."""
    t = norm(t)
    yield from (factor for factor in (t.factors if type(t) is Prod else (t,)) if type(factor) is Dim)


def _surrounded(t: Type, around: tuple[Dim, ...]) -> Iterator[tuple[Dim, tuple[Dim, ...]]]:
    """Each variable of a normal type, wherever it occurs, with those outside it."""
    if type(t) is Dim:
        yield t, around
        return
    for child in t.parts if type(t) is Sum else t.factors:
        yield from _surrounded(child, around)
        if type(t) is Prod and type(child) is Dim:
            around = (*around, child)


def model_input(model: ir.Model, node: str, operand: int) -> str:
    """Name of the value that a node takes as operand number `operand`."""
    return _node_index(model)[node].inputs[operand].name


def _node_index(model: ir.Model) -> dict[str, ir.Node]:
    index = model.meta.get("graphprune.nodes")
    if index is None:
        index = model.meta["graphprune.nodes"] = {n.name: n for n in model.graph}
    return index


def _freeze_repeated(types: Types) -> None:
    """A variable that is two factors of one axis (a x a) has no single keep set there."""
    for name, axes in types.axes.items():
        for t in axes:
            for product in _products(norm(t)):
                factors = [set(leaves(f)) for f in product.factors]
                for i, a in enumerate(factors):
                    for b in factors[i + 1 :]:
                        for d in a & b:
                            freeze(d, Reason("merged with itself", name, "conflict"))


def _products(t: Type) -> Iterator[Prod]:
    if type(t) is Prod and t.factors:
        yield t
        for f in t.factors:
            yield from _products(f)
    elif type(t) is Sum:
        for p in t.parts:
            yield from _products(p)


def _nodes_of(model: ir.Model, types: Types, dims: set[Dim]) -> dict[Dim, list[str]]:
    found: dict[Dim, list[str]] = {d: [] for d in dims}
    for node in model.graph:
        touched = {
            d for v in (*node.inputs, *node.outputs) if v is not None
            for t in types.axes.get(v.name, ()) for d in leaves(t) if d in dims
        }  # fmt: skip
        for d in touched:
            found[d].append(node.name)
    return found


def _name(d: Dim, where: list[tuple[str, int]], nodes: list[str], model: ir.Model, taken: Mapping[str, object]) -> str:
    """The node that makes the channels (the first to touch them), made unique by the weight axis where needed."""
    base = nodes[0] if nodes else where[0][0]
    name, i = base, 2
    while name in taken:
        name, i = f"{base}#{i}", i + 1
    return name


_WORDS = {"Conv": "conv channels", "ConvTranspose": "conv channels"}


def _kind(d: Dim, where: list[tuple[str, int]], types: Types, operators: Mapping[str, set[str]]) -> str:
    """What a person would call the group: heads, dims per head, conv channels, features."""
    for name, axis in where:
        for product in _products(norm(types.axes[name][axis])):
            factors = product.factors
            if any(d in set(leaves(f)) for f in factors[:-1]):
                return f"blocks of {product.size // d.size}"
            if d in set(leaves(factors[-1])):
                return f"dims in each of {product.size // d.size} blocks"
    used = set().union(*(operators.get(name, ()) for name, _ in where))
    return next((word for op, word in _WORDS.items() if op in used), "features")


def columns(analysis: Analysis, reader: Reader, group: Group, taps: int) -> np.ndarray:
    """Columns of the reader's matrix view [out, contracted x taps] per channel: int64 [group.size, occurrences x taps].

    For a grouped convolution these are the columns of one filter bank; every bank has the same.
    """
    where = positions(analysis.types.axes[reader.w][reader.contracted], group.dim)
    return (where[:, :, None] * taps + np.arange(taps)).reshape(group.size, -1)


def unit_columns(analysis: Analysis, reader: Reader, group: Group, taps: int, bank: int, banks: int) -> np.ndarray:
    """`columns` for every channel of every outer index of the group: int64 [prod(outer) * size, occurrences x taps].

    bank: which filter bank of `banks` the matrix is. Rows of -1: this bank does not see the channel.
    """
    axes = analysis.types.axes[reader.w]
    contracted, produced = axes[reader.contracted], axes[reader.produced]
    first = bank * (produced.size // banks)
    unit = np.zeros(contracted.size, np.int64)
    for d in group.outer:
        here = coordinates(contracted, d)
        if here.max(initial=-1) < 0:  # on the other axis: the same for the whole bank
            here = np.full(contracted.size, coordinates(produced, d)[first])
        unit = unit * d.size + here
    own = coordinates(contracted, group.dim)
    unit = np.where(own < 0, -1, unit * group.size + own)
    n = group.size * int(np.prod([d.size for d in group.outer]))
    order = np.argsort(unit, kind="stable")[np.count_nonzero(unit < 0) :]
    seen = np.unique(unit[order])
    where = order.reshape(len(seen), -1)
    columns = np.full((n, where.shape[1] * taps), -1, np.int64)
    columns[seen] = (where[:, :, None] * taps + np.arange(taps)).reshape(len(seen), -1)
    return columns
