"""Which indices of a variable stay, and what that means for an axis and for an array.

A keep set is the indices kept of one variable. Where the maths allows it (`Group.outer`) a keep set may be ragged:
other indices, equally many, for each index of the variables around it - other dimensions in each head, other channels
in each filter bank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.dims import Dim, Prod, Sum, Type, leaves, norm


@dataclass(frozen=True, eq=False)
class Ragged:
    """A keep set that differs by the index of other variables. index: int64 [*sizes of outer, kept]."""

    outer: tuple[Dim, ...]
    index: np.ndarray

    def __len__(self) -> int:
        """How many indices are kept, wherever one looks."""
        return self.index.shape[-1]

    def at(self, where: Mapping[Dim, int]) -> np.ndarray:
        """The keep set where the outer variables have these indices (the first, if not given): int64 [kept]."""
        return self.index[tuple(where.get(d, 0) for d in self.outer)]


Keep = np.ndarray | Ragged
Keeps = Mapping[Dim, Keep]
"""Kept indices of each variable that shrinks, ascending. Absent variables are kept whole. An order of all indices in
place of a keep set permutes."""


def narrowed(keeps: Keeps, where: Mapping[Dim, int]) -> Keeps:
    """The keep sets that hold where some outer variables have these indices."""

    def at(keep: Keep) -> Keep:
        if not isinstance(keep, Ragged):
            return keep
        index = keep.index[tuple(where.get(d, slice(None)) for d in keep.outer)]
        outer = tuple(d for d in keep.outer if d not in where)
        return Ragged(outer, index) if outer else index

    return {d: at(keep) for d, keep in keeps.items()}


def new_size(t: Type, keeps: Keeps) -> int:
    """The size of an axis of type `t` once the keep sets are applied."""
    t = norm(t)
    if type(t) is Dim:
        return len(keeps[t]) if t in keeps else t.size
    if type(t) is Sum:
        return sum(new_size(p, keeps) for p in t.parts)
    size = 1
    for f in t.factors:
        size *= new_size(f, keeps)
    return size


def kept(t: Type, keeps: Keeps) -> np.ndarray:
    """The kept indices of an axis of type `t`: int64 [k]. Where a ragged keep set depends on variables of other axes,
    these are the indices kept at their first index: their number is the same everywhere."""
    if not any(isinstance(keeps.get(d), Ragged) for d in leaves(t)):
        return _plain(t, keeps)
    return take(_every(t.size), [t], keeps)


def take(array: np.ndarray, axes: Sequence[Type], keeps: Keeps) -> np.ndarray:
    """What is kept of an array with these axes, row-major."""
    if not any(isinstance(keeps.get(d), Ragged) for t in axes for d in leaves(t)):
        for i, t in enumerate(axes):
            if not keeps.keys().isdisjoint(leaves(t)):
                array = np.take(array, _plain(t, keeps), axis=i)
        return np.ascontiguousarray(array)
    result = np.empty([new_size(t, keeps) for t in axes], array.dtype)
    new_dims = {d: Dim(len(keeps[d]) if d in keeps else d.size) for t in axes for d in leaves(t)}
    new_axes = [_renewed(t, new_dims) for t in axes]
    for where, here, plain in _places(axes, keeps):
        old = [_plain(t, {**plain, **_fixed(where)}) for t in axes]
        new = [_plain(t, {new_dims[d]: np.array([i]) for d, i in here.items()}) for t in new_axes]
        result[np.ix_(*new)] = array[np.ix_(*old)]
    return result


def mask(axes: Sequence[Type], axis: int, keeps: Keeps) -> np.ndarray:
    """Which indices of one axis are kept: bool, broadcasting over the other axes."""

    def along(d: Dim) -> np.ndarray:
        """The index of `d`, on this axis if it is there, or on another."""
        for i in (axis, *range(len(axes))):
            if d in set(leaves(axes[i])):
                return coordinates(axes[i], d).reshape([-1 if j == i else 1 for j in range(len(axes))])
        return np.zeros([1] * len(axes), np.int64)

    result = np.ones([1] * len(axes), bool)
    for d in dict.fromkeys(leaves(axes[axis])):
        if d in keeps:
            keep = keeps[d] if isinstance(keeps[d], Ragged) else Ragged((), np.asarray(keeps[d]))
            table = np.zeros([*(o.size for o in keep.outer), d.size], bool)
            np.put_along_axis(table, keep.index, True, axis=-1)
            own = along(d)
            result = result & (table[(*(along(o) for o in keep.outer), own)] | (own < 0))
    return result


def _places(
    axes: Sequence[Type], keeps: Keeps
) -> Iterator[tuple[dict[Dim, int], dict[Dim, int], dict[Dim, np.ndarray]]]:
    """Every combination of kept indices of the outer variables on these axes: their old indices, their new ones, and
    the keep sets that hold there."""
    ragged = {d: k for t in axes for d in leaves(t) if isinstance(k := keeps.get(d), Ragged)}
    present = {d for t in axes for d in leaves(t)}
    outer = dict.fromkeys(o for keep in ragged.values() for o in keep.outer if o in present)
    inwards = sorted(outer, key=lambda o: len(ragged[o].outer) if o in ragged else 0)
    plain = {d: keep for d, keep in keeps.items() if d not in ragged and not isinstance(keep, Ragged)}
    for where, here in _combinations(inwards, keeps, {}, {}):
        at = {d: keep.at(where) for d, keep in ragged.items()}
        yield where, here, plain | at


def _combinations(
    outer: Sequence[Dim], keeps: Keeps, where: dict[Dim, int], here: dict[Dim, int]
) -> Iterator[tuple[dict[Dim, int], dict[Dim, int]]]:
    """All kept indices of `outer`, old and new. One may be ragged over those before it."""
    if not outer:
        yield where, here
        return
    first, *rest = outer
    keep = keeps.get(first, _every(first.size))
    for new, old in enumerate(keep.at(where) if isinstance(keep, Ragged) else keep):
        yield from _combinations(rest, keeps, {**where, first: int(old)}, {**here, first: new})


def _fixed(where: Mapping[Dim, int]) -> dict[Dim, np.ndarray]:
    return {d: np.array([i]) for d, i in where.items()}


def _renewed(t: Type, new: Mapping[Dim, Dim]) -> Type:
    """The type with its variables replaced."""
    t = norm(t)
    if type(t) is Dim:
        return new[t]
    children = [_renewed(child, new) for child in (t.parts if type(t) is Sum else t.factors)]
    return Sum(children) if type(t) is Sum else Prod(children)


def _plain(t: Type, keeps: Mapping[Dim, np.ndarray]) -> np.ndarray:
    t = norm(t)
    if type(t) is Dim:
        return keeps.get(t, _every(t.size))
    if type(t) is Sum:
        pieces, offset = [], 0
        for part in t.parts:
            pieces.append(_plain(part, keeps) + offset)
            offset += part.size
        return np.concatenate(pieces) if pieces else _every(0)
    index = np.zeros(1, np.int64)
    for factor in t.factors:
        index = (index[:, None] * factor.size + _plain(factor, keeps)[None, :]).reshape(-1)
    return index


def positions(t: Type, dim: Dim) -> np.ndarray:
    """Where each index of `dim` lies on an axis of type `t`: int64 [dim.size, occurrences], each row ascending.

    Row j holds the axis positions that vanish when index j is removed.
    """
    owner = coordinates(t, dim)
    order = np.argsort(owner, kind="stable")
    order = order[np.count_nonzero(owner < 0) :]
    return order.reshape(dim.size, -1)


def coordinates(t: Type, dim: Dim) -> np.ndarray:
    """The index of `dim` at each place of an axis of type `t`, -1 where it has none: int64 [t.size]."""
    t = norm(t)
    if t is dim:
        return _every(t.size)
    if type(t) is Dim:
        return np.full(t.size, -1, np.int64)
    if type(t) is Sum:
        return np.concatenate([coordinates(p, dim) for p in t.parts])
    index = np.full(1, -1, np.int64)
    for factor in t.factors:
        index = np.maximum(index[:, None], coordinates(factor, dim)[None, :]).reshape(-1)
    return index


def _every(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64)
