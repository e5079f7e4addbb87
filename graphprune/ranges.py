"""Which interval of a tensor's values a few bits should cover, and the grid of numbers that represent it.

Owns running histograms of values over feeds, the choice of an interval from one (between losing what lies outside and
coarser steps inside), and the affine grid x ~ (q - zero point) x scale as QuantizeLinear means it. Which tensors are
quantised, and the rounding of weights, belong elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from graphprune.errors import UsageError

Array = np.ndarray
Objective = Callable[[Array, Array], Array]
"""Lower ends [m], upper ends [m] -> what each interval costs [m]."""

WAYS = ("mse", "minmax", "percentile", "entropy")
TAIL = 1e-4
"""Share of the values that the percentile interval leaves out at either end."""

_SAMPLE = 200_000
_FAR = 0.001
_FINEST = -24  # bins are at least 2^-24 of the largest magnitude: float32 tells no more values apart
_TINY = float(np.finfo(np.float32).tiny)
_COARSE = 2.0 ** -np.linspace(0, 10, 61)  # down to a thousandth of the range: activations have outliers that large
_FINE = tuple(2.0 ** (step * np.linspace(-1, 1, 9)) for step in (1 / 6, 1 / 24))
_SMOOTHING = 1e-4


class Histogram:
    """Running histogram of a tensor's values over feeds.

    low, high: least and greatest value, exact; n_values: values seen; n_zeros: exact zeros among the sampled ones, kept
    out of the bins since any grid represents them; counts int64 [n_bins].

    Bins are 2^k wide and begin at multiples of that, k being the least with which all values fit. So growing is summing
    neighbours, nothing is spread or moved, and what was added in which order, or merged, makes no difference.
    """

    def __init__(self, n_bins: int = 2048) -> None:
        self.n_bins = n_bins
        self.low, self.high = math.inf, -math.inf
        self.n_values = self.n_zeros = 0
        self.counts = np.zeros(n_bins, np.int64)
        self._level = self._first = 0  # bin i covers (first + i) 2^level up to (first + i + 1) 2^level

    @property
    def width(self) -> float:
        """Of one bin."""
        return math.ldexp(1.0, self._level)

    @property
    def edges(self) -> Array:
        """float64 [n_bins + 1]."""
        return np.ldexp(np.arange(self._first, self._first + self.n_bins + 1, dtype=np.float64), self._level)

    def add(self, array: ArrayLike) -> None:
        """Count the values of an array of any shape; of large ones some 200,000, evenly spaced, and all of the
        farthest 0.1 % at either end. Raises UsageError for NaN or infinity."""
        values = np.asarray(array).reshape(-1)
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UsageError(
                "an activation holds NaN or infinity",
                fix="check the calibration data, and that the model's own activations are finite on it",
            )
        self._cover(min(low, self.low), max(high, self.high))
        step = _step(values.size)
        sample = values[::step]
        if step > 1:  # a few far values can matter more than all others together: they are counted one by one
            ends = [int(_FAR * len(sample)), -1 - int(_FAR * len(sample))]
            least, most = np.partition(sample, ends)[ends]
            self._count(values[(values < least) | (values > most)], 1)
            sample = sample[(sample >= least) & (sample <= most)]
        self._count(sample, step)
        self.n_values += values.size

    def _count(self, values: Array, times: int) -> None:
        nonzero = values[values != 0].astype(np.float64)
        cells = np.floor(np.ldexp(nonzero, -self._level)).astype(np.int64) - self._first
        self.counts += times * np.bincount(cells, minlength=self.n_bins)
        self.n_zeros += times * (len(values) - len(nonzero))

    def __add__(self, other: Histogram) -> Histogram:
        if self.n_bins != other.n_bins:
            raise ValueError(f"histograms of {self.n_bins} and {other.n_bins} bins")
        total = Histogram(self.n_bins)
        for part in (self, other):
            if part.n_values:
                total._cover(min(part.low, total.low), max(part.high, total.high))
        for part in (self, other):
            if part.n_values:
                total.counts += part._counts_at(total._level, total._first)
                total.n_zeros += part.n_zeros
                total.n_values += part.n_values
        return total

    def _cover(self, low: float, high: float) -> None:
        """Widen the bins until they hold low to high, no further."""
        level = max(math.frexp(max(abs(low), abs(high)))[1] + _FINEST, -1000)
        while _cell(high, level) - _cell(low, level) >= self.n_bins:
            level += 1
        first = _cell(low, level)
        if self.n_values:
            self.counts = self._counts_at(level, first)
        self._level, self._first, self.low, self.high = level, first, low, high

    def _counts_at(self, level: int, first: int) -> Array:
        """The counts in bins of 2^level from bin `first` on, no narrower than these and covering them."""
        filled = np.flatnonzero(self.counts)
        cells = ((filled + self._first) >> (level - self._level)) - first
        counts = np.zeros(self.n_bins, np.int64)
        np.add.at(counts, cells, self.counts[filled])
        return counts


def _cell(value: float, level: int) -> int:
    return math.floor(math.ldexp(value, -level))


def _step(size: int) -> int:
    """A stride that shares no factor with any axis, or some channels would never be seen."""
    step = -(-size // _SAMPLE)
    while math.gcd(step, size) > 1:
        step += 1
    return step


def interval(histogram: Histogram, how: str = "mse", bits: int = 8) -> tuple[float, float]:
    """(low, high), low <= 0 <= high: the values that 2^bits levels should cover.

    minmax: everything seen. percentile: all but 0.01 % at either end. entropy: least Kullback-Leibler divergence of the
    quantised from the true distribution, as in TensorRT, with both ends free. mse: least expected squared error of
    clipping and rounding together. Raises UsageError where nothing was seen.
    """
    if how not in WAYS:
        raise ValueError(f"an interval is one of {', '.join(WAYS)}, not {how!r}")
    if not histogram.n_values:
        raise UsageError("an activation had no values in any calibration feed", fix="give feeds that reach it")
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if how == "percentile":
        return _percentiles(histogram, low, high)
    if how == "mse":
        return _narrowed(lambda lows, highs: squared_error(histogram, lows, highs, bits), low, high)
    if how == "entropy":
        return _narrowed(lambda lows, highs: _divergence(histogram, lows, highs, bits), low, high)
    return low, high


def squared_error(histogram: Histogram, low: ArrayLike, high: ArrayLike, bits: int = 8) -> Array:
    """Expected squared error per value when 2^bits levels cover low to high (numbers, or arrays of one shape [m]).

    Exact where values are spread evenly within each bin, at any ratio of bins to steps: with t the value in steps and
    c the level it goes to, (t - c)^2 has the antiderivative c / 12 + (t - c)^3 / 3, outside the grid too.
    """
    scale, zero = _grid(low, high, 2**bits)
    scale, least = scale[..., None], -zero[..., None]
    filled = np.flatnonzero(histogram.counts)
    if not len(filled):
        return np.zeros(np.shape(low))
    nodes = np.union1d(filled, filled + 1)
    t = histogram.edges[nodes] / scale
    inside = np.clip(t, least, least + 2**bits - 1)
    level = np.rint(inside)
    t -= level
    error = level / 12 + t * t * t / 3
    at = np.searchsorted(nodes, filled)
    spans = histogram.edges[filled + 1] - histogram.edges[filled]
    per_bin = (error[..., at + 1] - error[..., at]) * scale**3 / spans
    counts = histogram.counts[filled]
    return per_bin @ counts / (counts.sum() + histogram.n_zeros)


def _narrowed(objective: Objective, low: float, high: float) -> tuple[float, float]:
    """The least of the objective over low x a, high x b, factors a and b at most 1: both ends at once, then one end
    after the other, in ever smaller steps. Ties keep the wider interval."""
    a = b = 1.0

    def best(a: Array, b: Array) -> tuple[float, float]:
        a, b = np.broadcast_arrays(np.minimum(a, 1.0), np.minimum(b, 1.0))
        i = int(np.argmin(objective(low * a, high * b)))
        return float(a[i]), float(b[i])

    a, b = best(_COARSE, _COARSE)
    for factors in (_COARSE, _COARSE, *_FINE):
        around = factors[0] < 1 and factors[-1] > 1
        if low < 0:
            a, b = best(np.r_[a, a * factors if around else factors], np.r_[b])
        if high > 0:
            a, b = best(np.r_[a], np.r_[b, b * factors if around else factors])
    return low * a, high * b


def _percentiles(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    counts, edges = histogram.counts.copy(), histogram.edges
    if histogram.n_zeros:
        counts[np.searchsorted(edges, 0.0, side="right") - 1] += histogram.n_zeros
    below = np.r_[0, np.cumsum(counts)] / counts.sum()
    inner = np.interp([TAIL, 1 - TAIL], below, edges)
    return min(max(low, float(inner[0])), 0.0), max(min(high, float(inner[1])), 0.0)


def _divergence(histogram: Histogram, lows: Array, highs: Array, bits: int) -> Array:
    """Kullback-Leibler divergence of what each interval's levels keep of the histogram, exact zeros left out.

    Infinite, unless nothing is cut off, where the interval has fewer bins than levels: nothing could be told from it.
    """
    filled = np.flatnonzero(histogram.counts)
    if not len(filled):
        return np.zeros(len(lows))
    counts = histogram.counts[filled].astype(np.float64)
    centres = histogram.edges[filled] + histogram.width / 2
    scales, zeros = _grid(lows, highs, 2**bits)
    found = np.full(len(lows), np.inf)
    for i, (low, high, scale, zero) in enumerate(zip(lows, highs, scales, zeros, strict=True)):
        inside = (centres >= low) & (centres <= high)
        if low <= histogram.low and high >= histogram.high:
            inside[:] = True
        elif high - low < 2**bits * histogram.width or not inside.any():
            continue
        first, last = np.flatnonzero(inside)[[0, -1]]
        kept = counts[first : last + 1]
        clipped = kept.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last + 1 :].sum()
        levels = np.clip(np.rint(centres[first : last + 1] / scale) + zero, 0, 2**bits - 1).astype(np.intp)
        spread = (np.bincount(levels, kept) / np.maximum(np.bincount(levels), 1))[levels]
        p = clipped / clipped.sum()
        q = (1 - _SMOOTHING) * spread / spread.sum() + _SMOOTHING / len(spread)
        found[i] = np.sum(p * np.log(p / q))
    return found


def _grid(low: ArrayLike, high: ArrayLike, n_levels: int) -> tuple[Array, Array]:
    """Scale (float64 of a float32 number) and zero point in 0 .. n_levels - 1 (float64), of the shape of low and high.
    Zero is always inside. An interval of no width has a scale of 1."""
    low, high = np.minimum(low, 0.0).astype(np.float64), np.maximum(high, 0.0).astype(np.float64)
    span = high - low
    scale = np.where(span > 0, np.maximum(span / (n_levels - 1), _TINY), 1.0).astype(np.float32).astype(np.float64)
    return scale, np.clip(np.rint(-low / scale), 0, n_levels - 1)


def affine(low: ArrayLike, high: ArrayLike, dtype: DTypeLike = np.uint8) -> tuple[Array, Array]:
    """Scale (float32, above 0) and zero point (dtype: an integer type of 8 or 16 bits) of QuantizeLinear for low to
    high, of the shape of low and high: () for numbers.

    Zero is exactly representable; the interval is widened to hold it. Values inside are off by scale / 2 at most.
    """
    info = np.iinfo(dtype)
    scale, zero = _grid(low, high, info.max - info.min + 1)
    return np.asarray(scale, np.float32), np.asarray(zero + info.min).astype(dtype)


def fake(x: Array, scale: ArrayLike, zero_point: ArrayLike, dtype: DTypeLike | None = None) -> Array:
    """x quantised and dequantised as QuantizeLinear and DequantizeLinear do, half to even: float32 of the shape of x.

    scale and zero_point are numbers or broadcast against x. dtype: of the levels, that of zero_point by default.
    """
    zero_point = np.asarray(zero_point)
    info = np.iinfo(zero_point.dtype if dtype is None else dtype)
    zero, scale = zero_point.astype(np.float32), np.asarray(scale, np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is beyond the grid
        levels = np.rint(np.asarray(x, np.float32) / scale)
    return np.clip(levels, info.min - zero, info.max - zero) * scale
