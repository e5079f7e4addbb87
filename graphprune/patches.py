"""Numbers in a graph that are sizes of axes: shape operands, slice bounds, group counts.

A rule that reads such a number leaves a patch; `edit` asks each patch for the number that holds once axes shrink.
Nothing is recognised by pattern: the new number follows from the axis types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.dims import Type
from graphprune.keeps import Keeps, kept, new_size


@dataclass(frozen=True)
class SizeAttribute:
    """An integer attribute that is the size of an axis type (`group` of a Conv)."""

    attribute: str
    axis: Type

    def value(self, keeps: Keeps) -> int:
        return new_size(self.axis, keeps)


@dataclass(frozen=True)
class StatedAttribute:
    """A number that an operator would otherwise work out from a size (the scale of attention): as it was before."""

    attribute: str
    number: float

    def value(self, keeps: Keeps) -> float:
        return self.number


@dataclass(frozen=True)
class SizesAttribute:
    """An integer-list attribute whose entries are sizes of axis types; entries <= 0 keep their meaning."""

    attribute: str
    axes: tuple[Type, ...]
    old: tuple[int, ...]

    def value(self, keeps: Keeps) -> list[int]:
        return [new_size(t, keeps) if o == t.size else o for o, t in zip(self.old, self.axes, strict=True)]


@dataclass(frozen=True)
class Operand:
    """A one-dimensional integer operand. `entries(keeps)` gives {position: new number} for the entries that change."""

    operand: int
    old: tuple[int, ...]  # concrete entries as traced

    def entries(self, keeps: Keeps) -> dict[int, int]:
        raise NotImplementedError


@dataclass(frozen=True)
class SizesOperand(Operand):
    """Entries are sizes of axis types (Reshape, Expand, Split, ConstantOfShape). An entry that is not the size of
    its axis (0, -1, or Expand's 1) keeps its meaning. sources[i]: the axes whose sizes entry i is computed from when
    the model runs; where one of them shrinks the entry must be stated, even if it does not change."""

    axes: tuple[Type, ...]
    sources: tuple[tuple[Type, ...], ...] = ()

    def entries(self, keeps: Keeps) -> dict[int, int]:
        new = {}
        for i, (o, t) in enumerate(zip(self.old, self.axes, strict=True)):
            n = new_size(t, keeps)
            moved = any(new_size(s, keeps) != s.size for s in (self.sources[i] if self.sources else ()))
            if o == t.size and (n != o or moved):
                new[i] = n
        return new


@dataclass(frozen=True)
class BoundsOperand(Operand):
    """Entries are positions on axes (Slice starts and ends, Gather indices): a position becomes the number of kept
    indices below it. axes[i] is None where entry i is left alone; bounds beyond the axis stay beyond it."""

    axes: tuple[Type | None, ...]

    def entries(self, keeps: Keeps) -> dict[int, int]:
        new = {}
        for i, (o, t) in enumerate(zip(self.old, self.axes, strict=True)):
            if t is None or o >= t.size or new_size(t, keeps) == t.size:
                continue
            position = max(o + t.size, 0) if o < 0 else o
            n = int(np.searchsorted(kept(t, keeps), position))
            if n != o:
                new[i] = n
        return new


@dataclass(frozen=True)
class IndexOperand:
    """Gather indices along an axis: the operand shrinks with its own axis `index_axis`, and what it points at moves."""

    operand: int
    old: tuple[int, ...]
    axis: Type
    index_axis: Type

    def value(self, keeps: Keeps) -> np.ndarray:
        """The new indices, int64 [kept entries], non-negative. Keep sets that reorder are followed too."""
        old = np.asarray(self.old, np.int64)
        old = np.where(old < 0, old + self.axis.size, old)
        place = np.zeros(self.axis.size, np.int64)
        index = kept(self.axis, keeps)
        place[index] = np.arange(len(index))
        return place[old[kept(self.index_axis, keeps)]]


@dataclass(frozen=True)
class BoundsAttribute:
    """`BoundsOperand` for old opsets, where the bounds are an attribute."""

    attribute: str
    old: tuple[int, ...]
    axes: tuple[Type | None, ...]

    def value(self, keeps: Keeps) -> list[int]:
        new = BoundsOperand(-1, self.old, self.axes).entries(keeps)
        return [new.get(i, o) for i, o in enumerate(self.old)]


Patch = SizeAttribute | SizesAttribute | StatedAttribute | BoundsAttribute | IndexOperand | Operand


def traced(values: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.asarray(values).reshape(-1))
