"""Second moments of what linear readers see, gathered by running the model on calibration feeds.

The values concerned are exposed as graph outputs, feed by feed; each is unfolded, multiplied and dropped, so memory is
bounded by one feed's activations and the moments themselves, and readers are done in slices when those are large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graphprune.compensate import CrossMoments, Moments
from graphprune.trace import Feed, exposed
from graphprune.views import View

Values = Mapping[str, np.ndarray]
Target = Callable[[Values, Values], np.ndarray]
"""Rows a reader should produce, from the values of the dense and of the pruned model."""
Load = Callable[[ir.Model], Callable[[Feed], Mapping[str, np.ndarray]]]
"""Makes a model runnable: feed in, all outputs by name out."""

Item = TypeVar("Item")
_SLICE_BYTES = 1_000_000_000
_ROWS_PER_INPUT = 40
_LEAST_ROWS, _LEAST_BANK_ROWS = 50_000, 5_000


def moments(
    model: ir.Model, views: Sequence[View], feeds: Sequence[Feed], load: Load, step: Callable[[], None] = lambda: None
) -> dict[tuple, list[Moments]]:
    """Moments per bank of every view, by `View.key`. step is called after each feed of each slice.

    Inputs that no feed ever gives (those of an expert that no token is sent to) are taken to be of unit variance and
    not correlated: what is known of such a layer is its weights.
    """
    unique = {view.key(): view for view in views}
    found: dict[tuple, list[Moments]] = {}
    for part in _slices(list(unique.values()), model):
        inside = list(dict.fromkeys(view.reader.x for view in part if not _is_input(model, view)))
        run = load(exposed(model, inside)) if inside else dict  # a feed holds all that readers of inputs see
        sums: dict[tuple, _Rows | _Banks] = {}
        limits = {view.key(): rows_per_feed(_width(view, model), len(feeds), view.banks) for view in part}
        for feed in feeds:
            values = {**feed, **run(feed)}
            for view in part:
                rows = view.rows(values[view.reader.x], limits[view.key()])
                sums.setdefault(view.key(), _Banks() if view.banks > 1 else _Rows()).add(*rows)
            step()
        for key, own in sums.items():
            found[key] = own.moments() if isinstance(own, _Banks) else [own.moments()]
    return found


def cross_moments(
    pairs: Sequence[tuple[View, int | None, Target]], values: Iterable[tuple[Values, Values]]
) -> list[CrossMoments | None]:
    """For each (view, limit, target): moments of at most `limit` rows a feed of the pruned model's
    inputs with the rows that target(dense, pruned) gives, over all feeds. None where there never was a row.

    values yields (dense values, pruned values) by name, one feed at a time. Views of one bank only.
    """
    sums = [_Rows() for _ in pairs]
    for dense, pruned in values:
        for rows, (view, limit, target) in zip(sums, pairs, strict=True):
            (x,) = view.rows(pruned[view.reader.x], limit)
            rows.add(x, np.asarray(target(dense, pruned), np.float32))
    return [rows.cross_moments() for rows in sums]


class _Rows:
    """Running sums over rows x [n, in] and, where given, y [n, out]. Rows wait until there are enough for a product:
    float32 products summed in float64 are exact enough, and twice as fast as float64 throughout. They are taken about
    the mean of the first rows, or inputs that vary little about a large mean would drown in rounding."""

    def __init__(self) -> None:
        self._waiting: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._n_waiting = 0
        self._n = 0
        self._gram: np.ndarray | None = None
        self._cross: np.ndarray | None = None
        self._origin_x = self._origin_y = self._sum_x = self._sum_y = 0.0

    def add(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        self._waiting.append((x, y))
        self._n_waiting += len(x)
        if self._n_waiting >= max(2048, 2 * x.shape[1]):
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        x = np.concatenate([x for x, _ in self._waiting])
        paired = self._waiting[0][1] is not None
        y = np.concatenate([y for _, y in self._waiting]) if paired else None
        if self._gram is None:
            self._gram = np.zeros((x.shape[1], x.shape[1]))
            self._origin_x = _mean(x)
            if paired:
                self._cross = np.zeros((x.shape[1], y.shape[1]))
                self._origin_y = _mean(y)
        x = x - self._origin_x
        self._gram += x.T @ x
        self._sum_x = self._sum_x + x.sum(axis=0, dtype=np.float64)
        if paired:
            y = y - self._origin_y
            self._cross += x.T @ y
            self._sum_y = self._sum_y + y.sum(axis=0, dtype=np.float64)
        self._n += len(x)
        self._waiting, self._n_waiting = [], 0

    def moments(self) -> Moments:
        self._flush()
        if not self._n:
            return _never_seen(len(self._gram))
        gram, mean = self._about_zero(self._gram, self._sum_x, self._origin_x)
        return Moments(gram, mean, self._n)

    def cross_moments(self) -> CrossMoments | None:
        self._flush()
        if not self._n:
            return None
        gram, mean_x = self._about_zero(self._gram, self._sum_x, self._origin_x)
        cross, mean_y = self._about_zero(self._cross, self._sum_y, self._origin_y)
        return CrossMoments(gram, cross, mean_x, mean_y, self._n)

    def _about_zero(self, product: np.ndarray, total: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A sum of products with rows of this origin and total, moved to zero; and the mean of those rows."""
        x, y = self._origin_x.astype(np.float64), origin.astype(np.float64)
        return _moved(product, x, y, self._sum_x, total, self._n), y + total / self._n


class _Banks:
    """The same for the filter banks of a layer, which have as many inputs each: all at once."""

    def __init__(self) -> None:
        self._n = 0
        self._origin: np.ndarray | None = None
        self._gram = self._sum = 0.0

    def add(self, *banks: np.ndarray) -> None:
        rows = np.stack(banks)  # [banks, rows, in]
        if self._origin is None:
            self._origin = np.stack([_mean(own) for own in rows])[:, None]
        rows = rows - self._origin
        self._gram = self._gram + np.matmul(rows.transpose(0, 2, 1), rows).astype(np.float64)
        self._sum = self._sum + rows.sum(axis=1, dtype=np.float64)
        self._n += rows.shape[1]

    def moments(self) -> list[Moments]:
        n_banks, _, n = self._origin.shape
        if not self._n:
            return [_never_seen(n)] * n_banks
        origins = self._origin[:, 0].astype(np.float64)
        return [Moments(_moved(gram, x, x, total, total, self._n), x + total / self._n, self._n)
                for gram, total, x in zip(self._gram, self._sum, origins, strict=True)]  # fmt: skip


def _moved(product: np.ndarray, x: np.ndarray, y: np.ndarray, sum_x: np.ndarray, sum_y: np.ndarray, n: int):
    """A sum of products of n rows about the origins x and y, with those sums about them, as one about zero."""
    moved = product + np.outer(x, sum_y + n * y)
    moved += np.outer(sum_x, y)
    return moved


def _never_seen(n_inputs: int) -> Moments:
    return Moments(np.eye(n_inputs), np.zeros(n_inputs), 1)


def _mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1], rows.dtype)


def rows_per_feed(n_inputs: int, n_feeds: int, n_banks: int = 1) -> int:
    """How many rows of one feed are enough: in all, 40 for each input of the layer, and at least 50,000 (less for many
    small filter banks). Images have far more pixels than their early layers have inputs."""
    least = max(_LEAST_ROWS // n_banks, _LEAST_BANK_ROWS)
    return max(16, -(-max(_ROWS_PER_INPUT * n_inputs, least) // max(n_feeds, 1)))


def _width(view: View, model: ir.Model) -> int:
    weight = model.graph.initializers[view.reader.w].const_value
    return int(weight.shape[view.reader.contracted]) * view.taps


def slices_needed(views: Sequence[View], model: ir.Model) -> int:
    """How many passes over the feeds `moments` will make."""
    return sum(1 for _ in _slices(list({v.key(): v for v in views}.values()), model))


def _is_input(model: ir.Model, view: View) -> bool:
    return any(v.name == view.reader.x for v in model.graph.inputs)


def _slices(views: Sequence[View], model: ir.Model) -> Iterator[list[View]]:
    return packed(views, lambda view: 8 * view.banks * _width(view, model) ** 2, _SLICE_BYTES)


def packed(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Items in order, as many together as `limit` holds and at least one."""
    part: list[Item] = []
    total = 0
    for item in items:
        if part and total + size(item) > limit:
            yield part
            part, total = [], 0
        part.append(item)
        total += size(item)
    if part:
        yield part
