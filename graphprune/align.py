"""Turn the bases that a network leaves free, so that few channels carry most of what matters.

Between the weight that makes a block of channels (a head's values, or its queries and keys) and whoever contracts them
there is often nothing but reshapes and sums over tokens. Any invertible map may then be multiplied into the one and its
inverse into the other: the network computes the same, but its channels can be ordered by what they contribute, and
pruning them becomes the best low-rank approximation instead of a choice among the given axes. It costs no operator at
run time (joint decomposition of matrix pairs: MoDeGPT, arXiv 2408.09632; balanced truncation for queries and keys).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphprune.calibrate import Load, moments
from graphprune.compensate import Moments, robust_cholesky
from graphprune.dims import Dim, Type, leaves
from graphprune.edit import set_constant
from graphprune.groups import Analysis, Group
from graphprune.keeps import positions
from graphprune.rules.base import Reader
from graphprune.trace import Feed
from graphprune.views import View, find_bias

_LAYOUT = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Split", "Slice", "Gather")
_SCALE = ("Mul", "Div")
_BLIND = ("Shape", "Size")
"""They see no numbers, only how many there are."""
_DAMPING = 1e-3


@dataclass(frozen=True)
class Maker:
    """A weight that makes the channels: the linear node, its output after the bias, and the column of each channel.

    columns [blocks, size]: where channel j of each block lies on the produced axis.
    """

    reader: Reader
    output: str
    bias: ir.Value | None
    columns: np.ndarray


@dataclass(frozen=True)
class FreeBasis:
    """A group whose basis is free. Either `second` makes the other operand of a product of activations, or `readers`
    (with the columns of their contracted axis) take the channels in."""

    group: Group
    first: Maker
    second: Maker | None
    readers: tuple[tuple[Reader, np.ndarray], ...]


def find_free_bases(analysis: Analysis) -> list[FreeBasis]:
    """Groups between whose makers and readers the network is linear in the channels, block by block."""
    found = (_free_basis(analysis, g) for g in analysis.groups.values() if g.inexact is None)
    return [f for f in found if f is not None]


def align(
    analysis: Analysis, feeds: Sequence[Feed], load: Load, step: Callable[[], None] = lambda: None
) -> tuple[Analysis, Mapping[str, np.ndarray]]:
    """The same network with its free bases turned, and for pairs of activations what each channel contributes.

    -> (analysis of the turned model, {group: contribution [size], descending}) for groups without linear readers.
    """
    bases = find_free_bases(analysis)
    if not bases:
        return analysis, {}
    views = [view for basis in bases for view in _views(analysis, basis)]
    gathered = moments(analysis.model, views, feeds, load, step)
    model = analysis.model.clone()
    contributions = {}
    for basis in bases:
        grams = [gathered[view.key()][0] for view in _views(analysis, basis)]
        if basis.second is not None:
            contributions[basis.group.name] = _turn_pair(model, basis, grams)
        else:
            _turn_readers(model, basis, grams[0])
    return replace(analysis, model=model), contributions


def _views(analysis: Analysis, basis: FreeBasis) -> list[View]:
    """Pseudo-readers of the makers' outputs, whose moments are the covariances of the channels."""
    makers = [basis.first] if basis.second is None else [basis.first, basis.second]
    readers = [Reader(m.reader.node, "matmul", m.output, m.reader.w, "", m.reader.produced, m.reader.contracted)
               for m in makers]  # fmt: skip
    return [View(reader, 1, 1, None) for reader in readers]


def _free_basis(analysis: Analysis, group: Group) -> FreeBasis | None:
    nodes = {n.name: n for n in analysis.model.graph}
    types, dim = analysis.types, group.dim
    makers, allowed, blocks = [], set(), None
    readers = {r.node: r for r in types.readers if r.kind == "matmul"}
    for name in group.nodes:
        r = readers.get(name)
        if r is not None and dim in set(leaves(types.axes[r.w][r.produced])):
            if dim in set(leaves(types.axes[r.w][r.contracted])) or len(nodes[name].inputs[1].uses()) > 1:
                return None
            place = find_bias(nodes[name], types.axes[r.w][r.produced].size)
            bias = None if place.node is None else place.node.inputs[place.operand]
            broadcast = place.node is None and len(nodes[name].inputs) > 2 and nodes[name].inputs[2] is not None
            if broadcast or (bias is not None and len(bias.uses()) > 1):
                return None
            columns = _columns(types.axes[r.w][r.produced], dim, like=blocks)
            if columns is None:
                return None
            blocks = list(columns)
            makers.append(Maker(r, r.y if place.node in (None, nodes[name]) else place.node.outputs[0].name, bias,
                                np.stack(list(columns.values()))))  # fmt: skip
            allowed |= {name} | (set() if place.node is None else {place.node.name})
    ends: list[tuple[int, str, int]] = []
    for i, maker in enumerate(makers):
        value = next(v for name in allowed for v in nodes[name].outputs if v.name == maker.output)
        if not _follow(value, dim, types, allowed, ends, i):
            return None
    if not set(group.nodes) <= allowed:
        return None
    reading = [nodes[name] for _, name, _ in ends]
    linear = [r for r in group.readers if r.kind == "matmul"]
    if len(makers) == 1 and linear and {n.name for n in reading} == {r.node for r in linear}:
        columns = [_columns(types.axes[r.w][r.contracted], dim, like=blocks) for r in linear]
        single = all(len(nodes[r.node].inputs[1].uses()) == 1 for r in linear)
        if single and all(c is not None for c in columns):
            read = tuple((r, np.stack(list(c.values()))) for r, c in zip(linear, columns, strict=True))
            return FreeBasis(group, makers[0], None, read)
    operands = {operand for _, _, operand in ends}
    if len(makers) == len(ends) == 2 and not group.readers and ends[0][1] == ends[1][1] and operands == {0, 1}:
        others = [types.axes[v.name] for v in reading[0].inputs[2:] if v is not None]
        if any(dim in set(leaves(t)) for axes in others for t in axes):
            return None  # a bias, a norm or a decay inside the node acts on single channels
        return FreeBasis(group, makers[0], makers[1], ())
    return None


def _columns(t: Type, dim: Dim, like: Sequence[frozenset] | None) -> dict[frozenset, np.ndarray] | None:
    """Where the channels of each block lie on an axis, by the indices that the block has on the axis' other variables
    (heads may be in another order where they are read). In the order of `like`; None where the blocks are others."""
    index = {d: np.full(t.size, -1) for d in leaves(t) if d is not dim}
    for d, owner in index.items():
        where = positions(t, d)
        owner[where] = np.arange(d.size)[:, None]
    columns = positions(t, dim).T
    found = {frozenset((d, int(i[c[0]])) for d, i in index.items() if i[c[0]] >= 0): c for c in columns}
    if len(found) < len(columns) or (like is not None and found.keys() != set(like)):
        return None
    return found if like is None else {block: found[block] for block in like}


def _follow(value: ir.Value, dim, types, allowed: set[str], ends: list, maker: int) -> bool:
    """Walk from a maker to whoever contracts the channels; False where something acts on single channels."""
    for use in value.uses():
        node, operand = use.node, use.idx
        contracted = any(
            c.node == node.name and c.operand == operand and dim in set(leaves(types.axes[value.name][c.axis]))
            for c in types.contracted
        )
        if contracted:
            ends.append((maker, node.name, operand))
            allowed.add(node.name)
            continue
        if node.op_type in _BLIND:
            allowed.add(node.name)
            continue
        layout = node.op_type in _LAYOUT and operand == 0
        product = node.op_type == "MatMul" and all(dim not in set(leaves(t)) for v in node.inputs if v is not value
                                                   for t in types.axes[v.name])  # fmt: skip
        scale = node.op_type in _SCALE and operand == 0 and all(
            dim not in set(leaves(t)) for v in node.inputs[1:] for t in types.axes[v.name]
        )
        if not (layout or product or scale):
            return False
        allowed.add(node.name)
        for y in node.outputs:
            carries = any(dim in set(leaves(t)) for t in types.axes.get(y.name, ()))
            if carries and not _follow(y, dim, types, allowed, ends, maker):
                return False
    return not value.is_graph_output()


def _factor(gram: np.ndarray, n: int) -> np.ndarray:
    """Cholesky factor [size, size] of a damped second-moment matrix per sample."""
    c = gram / n
    return robust_cholesky(c + _DAMPING * max(float(np.trace(c)) / len(c), 1e-30) * np.eye(len(c)))


def _turn_readers(model: ir.Model, basis: FreeBasis, m: Moments) -> None:
    """Channels in the order of what they add to the readers' outputs: with x = L z and W L = U S V', z' = V' L^-1 x."""
    c = m.scatter() / m.n_samples
    weights = [(r, model.graph.initializers[r.w], cols) for r, cols in basis.readers]
    for b, columns in enumerate(basis.first.columns):
        factor = _factor(c[np.ix_(columns, columns)] * m.n_samples, m.n_samples)
        read = np.concatenate([_take(w.const_value.numpy(), r.contracted, cols[b]).T for r, w, cols in weights])
        _, _, vt = np.linalg.svd(read @ factor, full_matrices=True)
        forward = vt @ np.linalg.inv(factor)  # z' = forward x
        _multiply(model, basis.first, columns, forward)
        back = factor @ vt.T  # x = back z'
        for r, w, cols in weights:
            array = w.const_value.numpy().copy()
            _put(array, r.contracted, cols[b], back.T @ _take(array, r.contracted, cols[b]))
            set_constant(w, array)


def _turn_pair(model: ir.Model, basis: FreeBasis, grams: Sequence[Moments]) -> np.ndarray:
    """Balanced channels: both sides get the same diagonal covariance S, the contribution of each channel to q.k."""
    a, b = grams
    contribution = np.zeros(basis.group.size)
    for block_a, block_b in zip(basis.first.columns, basis.second.columns, strict=True):
        la = _factor(a.gram[np.ix_(block_a, block_a)], a.n_samples)
        lb = _factor(b.gram[np.ix_(block_b, block_b)], b.n_samples)
        u, s, vt = np.linalg.svd(la.T @ lb)
        root = 1 / np.sqrt(np.maximum(s, 1e-12 * s[0]))
        _multiply(model, basis.first, block_a, root[:, None] * (vt @ lb.T))
        _multiply(model, basis.second, block_b, root[:, None] * (u.T @ la.T))
        contribution += s**2
    return contribution


def _multiply(model: ir.Model, maker: Maker, columns: np.ndarray, m: np.ndarray) -> None:
    """Replace the channels x of one block by m x, in the maker's weight and bias."""
    value = model.graph.initializers[maker.reader.w]
    array = value.const_value.numpy().copy()
    _put(array, maker.reader.produced, columns, m @ _take(array, maker.reader.produced, columns))
    set_constant(value, array)
    if maker.bias is not None:
        value = model.graph.initializers[maker.bias.name]
        array = value.const_value.numpy().copy()
        flat = array.reshape(-1)
        flat[columns] = m @ flat[columns].astype(np.float64)
        set_constant(value, array)


def _take(array: np.ndarray, axis: int, index: np.ndarray) -> np.ndarray:
    """Rows of the two-dimensional `array` along `axis`, that axis first: float64 [index, other]."""
    return np.take(array, index, axis=axis).swapaxes(0, axis).astype(np.float64)


def _put(array: np.ndarray, axis: int, index: np.ndarray, rows: np.ndarray) -> None:
    array.swapaxes(0, axis)[index] = rows
