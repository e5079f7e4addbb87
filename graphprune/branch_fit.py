"""What calibration data say of residual branches: their means, the best linear maps in their place, what is lost.

One run of the model with streams, branches and sums exposed serves all branches; where the second moments of wide
streams would fill the memory, several. Sums are float64.

Where a norm runs over the channels, rows (tokens) count relative to their size, as the norm sees them: a few tokens
with enormous channels would otherwise decide the mean of all others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from graphprune.branches import Branch
from graphprune.calibrate import Values, cross_moments, packed, rows_per_feed
from graphprune.compensate import CrossMoments
from graphprune.compensate import refit as solve_toward
from graphprune.context import Context
from graphprune.dims import leaves
from graphprune.rules.base import Reader
from graphprune.trace import Feed, exposed
from graphprune.views import View

_SLICE_BYTES = 1_000_000_000
_FLOOR = 1e-3
"""No row counts as smaller than this share of the mean square."""


@dataclass(frozen=True)
class Fit:
    """What calibration says of a branch f on a stream x of C channels.

    mean [C]: of f. matrix [C, C] and shift [C]: the linear map, f ~ matrix x + shift; None where none was wanted.
    Energies are sums of squares over rows: of the branch itself (raw), about its mean (centred), of what the linear map
    leaves (residual), and of the sum about its mean (total).
    """

    mean: np.ndarray
    matrix: np.ndarray | None
    shift: np.ndarray | None
    raw: float
    centred: float
    residual: float
    total: float

    def loss(self, by: str) -> float:
        """What replacing the branch like this changes in the sum, as a share of the sum's variance."""
        left = {"linear": self.residual, "mean": self.centred}.get(by, self.raw)
        return left / self.total if self.total > 0 else float(left > 0)


def fit_branches(context: Context, branches: Sequence[Branch], linear: Collection[str]) -> dict[str, Fit]:
    """Fits of branches of the canonical model over all calibration feeds, by exit.

    linear: the exits of those that a linear map is wanted for, its damping chosen between two halves of the feeds.
    """
    found: dict[str, Fit] = {}
    for part in packed(branches, lambda b: 32 * b.n_channels**2 if b.exit in linear else 0, _SLICE_BYTES):
        found |= _gather(context, [_Rows.of(context, b) for b in part], linear)
    return found


@dataclass
class _Sums:
    """Running weighted sums over rows [n, C], weights [n]."""

    n: int = 0
    weight: float = 0.0
    squares: float = 0.0
    total: np.ndarray | float = 0.0

    def add(self, rows: np.ndarray, weights: np.ndarray) -> None:
        rows = rows.astype(np.float64)
        self.n += len(rows)
        self.weight += float(weights.sum())
        self.squares += float(weights @ np.square(rows).sum(axis=1))
        self.total = self.total + weights @ rows

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.n + other.n, self.weight + other.weight, self.squares + other.squares, self.total + other.total
        )

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.weight

    @property
    def raw(self) -> float:
        """Sum of squares, had the weights been one on average."""
        return self.squares / self.weight * self.n

    @property
    def centred(self) -> float:
        """The same about the mean."""
        return max(0.0, self.raw - self.n * float(self.mean @ self.mean))


class _Rows:
    """A branch's values as rows, channels last: stream, branch (as far as it reaches in the sum, where it is broadcast)
    and sum, with what the rows weigh."""

    def __init__(self, branch: Branch, total: str, limit: int, *, normed: bool) -> None:
        self.branch, self.total, self.name = branch, total, branch.exit
        kind = "conv" if branch.axis == 1 and len(branch.shape) > 2 else "matmul"
        self._view = View(Reader(branch.exit, kind, branch.stream, "", branch.output, 0, 1), 1, 1, None)
        self._limit, self._normed, self._floor = limit, normed, 0.0

    @classmethod
    def of(cls, context: Context, branch: Branch) -> _Rows:
        channels = context.analysis.types.axes[branch.stream][-1 if branch.axis is None else branch.axis]
        total = context.nodes[branch.exit].outputs[0].name
        limit = rows_per_feed(branch.n_channels, len(context.feeds))
        return cls(branch, total, limit, normed=any(d.inexact for d in leaves(channels)))

    def __call__(self, values: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        total = values[self.total]
        arrays = values[self.branch.stream], np.broadcast_to(values[self.branch.output], total.shape), total
        x, f, e = (self._view.outputs(a, self._limit) for a in arrays)
        if not self._normed:
            return x, f, e, np.ones(len(e))
        sizes = np.square(e.astype(np.float64)).mean(axis=1)
        self._floor = self._floor or _FLOOR * float(sizes.mean()) or 1.0  # the same for all feeds
        return x, f, e, 1 / np.maximum(sizes, self._floor)


def _gather(context: Context, every: Sequence[_Rows], linear: Collection[str]) -> dict[str, Fit]:
    inputs = {v.name for v in context.model.graph.inputs}
    wanted = {n for rows in every for n in (rows.branch.stream, rows.branch.output, rows.total)} - inputs
    run = context.load(exposed(context.model, sorted(wanted)))
    fitted = [rows.name for rows in every if rows.name in linear]
    # Rows times the roots of their weights have weighted products.
    pairs = [(View(Reader(name, "matmul", name, "", "", 0, 1), 1, 1, None), None, lambda f, _, name=name: f[name])
             for name in fitted]  # fmt: skip
    halves: list[tuple[dict[str, list[_Sums]], list[CrossMoments | None]]] = []
    for feeds in _halves(context.feeds):
        if feeds:
            sums = {rows.name: [_Sums() for _ in range(3)] for rows in every}
            halves.append((sums, cross_moments(pairs, _scaled(run, feeds, every, sums))))
    found = {}
    for rows in every:
        parts = [sums[rows.name] for sums, _ in halves]
        own = [moments[fitted.index(rows.name)] for _, moments in halves] if rows.name in linear else []
        products = own if own and None not in own else None
        found[rows.name] = _fit(parts, products)
    return found


def _scaled(run, feeds: Sequence[Feed], every: Sequence[_Rows], sums: dict) -> Iterator[tuple[Values, Values]]:
    """Weighted rows of branches and of streams, by exit, feed by feed, once they are added to `sums`."""
    for feed in feeds:
        values = {**feed, **run(feed)}
        branches, streams = {}, {}
        for rows in every:
            *three, weights = rows(values)
            for running, part in zip(sums[rows.name], three, strict=True):
                running.add(part, weights)
            root = np.sqrt(weights)[:, None].astype(np.float32)
            streams[rows.name], branches[rows.name] = three[0] * root, three[1] * root
        yield branches, streams


def _halves(feeds: Sequence[Feed]) -> tuple[list[Feed], list[Feed]]:
    """The feeds in two parts, drawn at random: feeds often come in turns, short and long ones or class by class."""
    order = np.random.default_rng(0).permutation(len(feeds))
    return [feeds[i] for i in order[::2]], [feeds[i] for i in order[1::2]]


def _fit(parts: Sequence[Sequence[_Sums]], products: Sequence[CrossMoments] | None) -> Fit:
    """parts: sums over x, f and x + f of each half of the feeds; products: weighted second moments of the same."""
    _, f, total = (reduce(add, halves) for halves in zip(*parts, strict=True))
    if products is None:
        return Fit(f.mean, None, None, f.raw, f.centred, f.centred, total.centred)
    scale = f.n / f.weight
    folds = [CrossMoments(m.gram_xx * scale, m.gram_xy * scale, x.mean, f.mean, x.weight * scale)
             for m, (x, f, _) in zip(products, parts, strict=True)]  # fmt: skip
    # From no bias, so that leaving the mean alone is one of the answers and judged as the others are.
    matrix, shift = solve_toward(np.zeros((len(f.mean), len(f.mean))), None, folds)
    if not matrix.any():
        return Fit(f.mean, matrix, f.mean, f.raw, f.centred, f.centred, total.centred)
    xx, xy = reduce(add, folds).centred()
    residual = f.centred - 2 * np.sum(matrix.T * xy) + np.sum((matrix @ xx) * matrix)  # the shift takes the means
    return Fit(f.mean, matrix, shift, f.raw, f.centred, float(np.clip(residual, 0.0, f.centred)), total.centred)
