"""Second moments of what linear readers see, gathered by running the model on calibration feeds.

The values concerned are exposed as graph outputs, feed by feed; each is unfolded, multiplied and dropped, so memory is
bounded by one feed's activations and the moments themselves, and readers are done in slices when those are large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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

_SLICE_BYTES = 1_000_000_000
_FEED_WORK = 4e9
"""Multiply-adds spent on the Gram matrix of one bank and feed; rows beyond it are thinned evenly."""


def moments(
    model: ir.Model, views: Sequence[View], feeds: Sequence[Feed], load: Load, step: Callable[[], None] = lambda: None
) -> dict[tuple, list[Moments]]:
    """Moments per bank of every view, by `View.key`. step is called after each feed of each slice."""
    unique = {view.key(): view for view in views}
    found: dict[tuple, list[Moments]] = {}
    for part in _slices(list(unique.values()), model):
        run = load(exposed(model, list(dict.fromkeys(view.reader.x for view in part if not _is_input(model, view)))))
        sums: dict[tuple, list[_Rows]] = {}
        for feed in feeds:
            values = {**feed, **run(feed)}
            for view in part:
                rows = view.rows(values[view.reader.x])
                banks = sums.setdefault(view.key(), [_Rows() for _ in rows])
                for bank, x in zip(banks, rows, strict=True):
                    bank.add(x)
            step()
        found.update({key: [bank.moments() for bank in banks] for key, banks in sums.items()})
    return found


def cross_moments(
    pairs: Sequence[tuple[View, Target]], values: Iterable[tuple[Values, Values]]
) -> list[CrossMoments]:
    """For each (view, target): moments of the pruned model's inputs with the rows target(dense, pruned), over all feeds.

    values yields (dense values, pruned values) by name, one feed at a time. Views of one bank only.
    """
    sums = [_Rows() for _ in pairs]
    for dense, pruned in values:
        for rows, (view, target) in zip(sums, pairs, strict=True):
            (x,) = view.rows(pruned[view.reader.x])
            rows.add(x, np.asarray(target(dense, pruned), np.float32))
    return [rows.cross_moments() for rows in sums]


class _Rows:
    """Running sums over rows x [n, in] and, where given, y [n, out]. Rows wait until there are enough for a product:
    float32 products summed in float64 are exact enough, and twice as fast as float64 throughout."""

    def __init__(self) -> None:
        self._waiting: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._n_waiting = 0
        self._n = 0
        self._gram: np.ndarray | None = None
        self._cross: np.ndarray | None = None
        self._sum_x = self._sum_y = 0.0

    def add(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        stride = max(1, int(len(x) / max(_FEED_WORK / x.shape[1] ** 2, 64)))
        self._waiting.append((x[::stride], None if y is None else y[::stride]))
        self._n_waiting += len(self._waiting[-1][0])
        if self._n_waiting >= max(2048, 2 * x.shape[1]):
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        x = np.concatenate([x for x, _ in self._waiting])
        gram = x.T @ x
        self._gram = gram.astype(np.float64) if self._gram is None else np.add(self._gram, gram, out=self._gram)
        self._sum_x = self._sum_x + x.sum(axis=0, dtype=np.float64)
        if self._waiting[0][1] is not None:
            y = np.concatenate([y for _, y in self._waiting])
            cross = x.T @ y
            self._cross = cross.astype(np.float64) if self._cross is None else np.add(self._cross, cross, out=self._cross)
            self._sum_y = self._sum_y + y.sum(axis=0, dtype=np.float64)
        self._n += len(x)
        self._waiting, self._n_waiting = [], 0

    def moments(self) -> Moments:
        self._flush()
        return Moments(self._gram, self._sum_x / self._n, self._n)

    def cross_moments(self) -> CrossMoments:
        self._flush()
        return CrossMoments(self._gram, self._cross, self._sum_x / self._n, self._sum_y / self._n, self._n)


def slices_needed(views: Sequence[View], model: ir.Model) -> int:
    """How many passes over the feeds `moments` will make."""
    return sum(1 for _ in _slices(list({v.key(): v for v in views}.values()), model))


def _is_input(model: ir.Model, view: View) -> bool:
    return any(v.name == view.reader.x for v in model.graph.inputs)


def _slices(views: list[View], model: ir.Model) -> Iterator[list[View]]:
    part: list[View] = []
    total = 0
    for view in views:
        weight = model.graph.initializers[view.reader.w].const_value
        width = int(weight.shape[view.reader.contracted]) * view.taps
        size = 8 * view.banks * width * width
        if part and total + size > _SLICE_BYTES:
            yield part
            part, total = [], 0
        part.append(view)
        total += size
    if part:
        yield part
