"""Weights in a few bits, and what makes up for the error: other columns, the bias, the scale of the inputs.

Owns the grids (one scale per output, or per block of inputs), rounding to nearest and rounding that lets the columns
not yet rounded make up for the error of those that are (arXiv 2210.17323), from the same second moments that pruning
uses. Activations belong to `ranges`; which weights are rounded, and how a graph then reads them, to the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from graphprune.compensate import Moments, check_weight, damped, ridge_of, robust_cholesky
from graphprune.errors import UsageError

Array = np.ndarray

DAMPING = 0.01
"""Of the Gram matrix, relative to its mean diagonal, while errors are passed on."""

_SHRINK = np.linspace(1, 0.4, 25)
_COLUMNS = 128  # rounded between two matrix products
_CHUNK = 1 << 17  # weights searched at once: they stay in the cache
_FLIPS, _MOST_FLIPS = 3, 120
_TINY = float(np.finfo(np.float32).tiny)
_DEAD = 1e-9


@dataclass(frozen=True)
class Rounded:
    """A weight [out, in] on a grid: (q - zero_point) x scale.

    q int8 [out, in]; scale float32 [out], or [out, blocks] where each `block` inputs have their own, the last block
    perhaps fewer; zero_point int8 of the shape of scale, or None for zero. weight: what was rounded.
    """

    q: Array
    scale: Array
    zero_point: Array | None
    bits: int
    block: int | None
    weight: Array = field(repr=False)

    def dequantised(self) -> Array:
        """float32 [out, in]."""
        levels = self.q.astype(np.float32)
        if self.zero_point is not None:
            levels -= self._wide(self.zero_point)
        return levels * self._wide(self.scale)

    def error(self, gram: Array | None = None) -> float:
        """tr(E H E^T) with E [out, in] what rounding changed and H the Gram matrix [in, in] of the inputs: the squared
        output error over their samples. Without a Gram matrix, the squared error of the weights."""
        return float(_row_errors(self.weight, self.dequantised(), gram).sum())

    def _wide(self, values: Array) -> Array:
        """A value per output or block -> [out, in]."""
        return _wide(values.reshape(len(self.q), -1), self.block, self.q.shape[1])


@dataclass(frozen=True)
class _Grid:
    """Levels low .. high (whole numbers) times scale; each [out, blocks] float32, zero among the levels."""

    scale: Array
    low: Array
    high: Array
    bits: int
    block: int | None
    symmetric: bool

    def rounded(self, weight: Array, levels: Array) -> Rounded:
        n = levels.shape[1]
        zero = None if self.symmetric else -(2 ** (self.bits - 1)) - self.low
        if zero is not None:
            levels = levels + _wide(zero, self.block, n)
        shape = (len(levels),) if self.block is None else self.scale.shape
        zero = None if zero is None else zero.astype(np.int8).reshape(shape)
        scale = self.scale.reshape(shape)
        return Rounded(levels.astype(np.int8), scale, zero, self.bits, self.block, weight)


def round_to_nearest(
    weight: Array,
    bits: int = 8,
    symmetric: bool = True,
    block: int | None = None,
    *,
    search: bool = False,
    importance: Array | None = None,
) -> Rounded:
    """Each weight to the nearest of at most 2^bits levels (2 to 8 bits), in scales per output (per `block` inputs).

    symmetric: levels -127 .. 127 for 8 bits, and likewise down to 5; -8 .. 7 for 4, where the lowest is worth having.
    Otherwise all 2^bits levels, about a zero point. search: pick the scale, from what covers all weights down to 0.4 of
    that, by the least squared error, weighted by importance [in] (the diagonal of the Gram matrix) if given.
    weight [out, in] of real numbers.
    """
    weight = np.asarray(weight)
    grid = _grid(weight, bits, symmetric, block, search, importance)
    return grid.rounded(weight, _nearest(weight, grid))


def compensated(
    weight: Array,
    moments: Moments,
    bits: int = 8,
    block: int | None = None,
    *,
    symmetric: bool = True,
    search: bool = True,
    centre: bool = False,
    damping: float = DAMPING,
) -> Rounded:
    """As `round_to_nearest`, in the same scales, but columns make up for the errors of those rounded before them.

    Minimises tr(E H E^T) column by column, the one with the largest second moment first (GPTQ with act-order, arXiv
    2210.17323). centre: H is taken about the mean, right where the bias then takes `bias_correction`, as it is in the
    error; not to be given otherwise. Outputs that nearest rounding serves better are rounded so. weight [out, in].
    """
    weight = np.asarray(weight)
    check_weight(weight, len(moments.mean))
    gram = moments.scatter(centre)
    importance = np.diag(gram)
    grid = _grid(weight, bits, symmetric, block, search, importance if importance.any() else None)
    nearest, passed_on = _nearest(weight, grid), _passed_on(weight, grid, gram, damping)
    scale = _wide(grid.scale, block, weight.shape[1])
    worse = _row_errors(weight, passed_on * scale, gram) >= _row_errors(weight, nearest * scale, gram)
    passed_on[worse] = nearest[worse]
    return grid.rounded(weight, passed_on)


def compensated_by_bank(weight: Array, moments: Sequence[Moments], bits: int = 8, *, centre: bool = False) -> Rounded:
    """As `compensated` for filter banks that each have inputs of their own, as grouped and depthwise convolutions do.

    A bank of few inputs leaves little to pass errors on to, but few levels to choose from: they are changed by one, one
    at a time, as long as tr(E H E^T) falls, from the nearest ones, in scales from what covers all weights downwards, of
    which each output takes the best. weight [out, in / banks x taps], banks one after the other.
    """
    weight = np.asarray(weight)
    for own in moments:
        check_weight(weight, len(own.mean))
    n_banks, n = len(moments), weight.shape[1]
    if not n_banks or len(weight) % n_banks:
        raise UsageError(f"{len(weight)} outputs do not make {n_banks} equal banks")
    grams = np.stack([own.scatter(centre) for own in moments])
    grams = grams / np.maximum(np.abs(grams).max(axis=(1, 2), keepdims=True), _TINY)  # each bank for itself
    grid = _grid(weight, bits, True, None, False, None)
    w, ends = weight.reshape(n_banks, -1, n).astype(np.float64), (grid.low.min(initial=-1), grid.high.max(initial=1))
    full = grid.scale.reshape(n_banks, -1, 1).astype(np.float64)
    best, scale, least = np.zeros_like(w), full, np.full(full.shape, np.inf)
    for factor in _SHRINK:
        tried = np.maximum(full * factor, _TINY).astype(np.float32).astype(np.float64)
        levels = _flipped(w, tried, grams, *map(float, ends))
        off = w - levels * tried
        error = np.sum((off @ grams) * off, axis=2, keepdims=True)
        better = error < least
        best, scale, least = (np.where(better, new, old) for new, old in
                              ((levels, best), (tried, scale), (error, least)))  # fmt: skip
    chosen = _Grid(scale.reshape(-1, 1).astype(np.float32), grid.low, grid.high, bits, None, True)
    return chosen.rounded(weight, best.reshape(weight.shape).astype(np.float32))


def _flipped(w: Array, scale: Array, grams: Array, low: float, high: float) -> Array:
    """Levels [banks, out, in] at which no single one, changed by one, lowers the error; w likewise, scale [banks, out,
    1], grams [banks, in, in]."""
    levels = np.clip(np.rint(w / scale), low, high)
    off = w - levels * scale
    slope = off @ grams
    own = np.einsum("bii->bi", grams)[:, None, :]
    for _ in range(min(_FLIPS * w.shape[2], _MOST_FLIPS)):
        gain = 2 * scale * np.abs(slope) - scale**2 * own
        sign = np.sign(slope)
        gain[(levels + sign < low) | (levels + sign > high)] = -np.inf
        at = gain.argmax(axis=2, keepdims=True)
        step = np.where(np.take_along_axis(gain, at, 2) > 1e-12, np.take_along_axis(sign, at, 2), 0.0)
        if not step.any():
            break
        np.put_along_axis(levels, at, np.take_along_axis(levels, at, 2) + step, 2)
        slope -= step * scale * np.take_along_axis(grams, at, 1)
    return levels


def _passed_on(weight: Array, grid: _Grid, gram: Array, damping: float) -> Array:
    """Levels float32 [out, in]. With H = R R^T, R upper triangular, the error of a row is |E R|^2. Its entry at column
    j is E_j R_jj plus what the columns before it cause, which the choice of E_j can cancel up to rounding: the same
    as GPTQ's updates, without an inverse."""
    order = np.argsort(-np.diag(gram), kind="stable")
    h = damped(gram, ridge_of(gram, damping))[np.ix_(order, order)]
    r = robust_cholesky(h[::-1, ::-1])[::-1, ::-1]
    r = r / np.diag(r)

    n = weight.shape[1]
    w = np.ascontiguousarray(weight.T[order], np.float64)
    block = order // (grid.block or n)
    scale, low, high = (np.ascontiguousarray(a.T, np.float64) for a in (grid.scale, grid.low, grid.high))
    levels, error = np.empty_like(w), np.zeros_like(w)
    for start in range(0, n, _COLUMNS):
        stop = min(start + _COLUMNS, n)
        target = w[start:stop] + r[:start, start:stop].T @ error[:start]
        across = np.ascontiguousarray(r[start:stop, start:stop].T)
        for i, j in enumerate(range(start, stop)):
            b = block[j]
            wanted = target[i] + across[i, :i] @ error[start:j]
            levels[j] = np.clip(np.rint(wanted / scale[b]), low[b], high[b])
            error[j] = w[j] - levels[j] * scale[b]
    found = np.empty(weight.shape, np.float32)
    found[:, order] = levels.T
    return found


def _nearest(weight: Array, grid: _Grid) -> Array:
    """Levels float32 [out, in]."""
    scale, low, high = (_wide(a, grid.block, weight.shape[1]) for a in (grid.scale, grid.low, grid.high))
    return np.clip(np.rint(weight.astype(np.float32) / scale), low, high)


def _grid(
    weight: Array, bits: int, symmetric: bool, block: int | None, search: bool, importance: Array | None
) -> _Grid:
    if not 2 <= bits <= 8:
        raise ValueError(f"weights are rounded to 2 to 8 bits, not {bits}")
    if block is not None and block < 1:
        raise ValueError(f"a block holds at least one input, not {block}")
    check_weight(weight, weight.shape[-1])
    n = weight.shape[1]
    importance = np.ones(n) if importance is None else np.asarray(importance)
    if importance.shape != (n,):
        raise UsageError(f"importance {importance.shape} of {n} inputs")
    importance = _blocks((importance / max(importance.max(initial=0), _TINY))[None].astype(np.float32), block)[0]
    parts = []
    for rows in np.array_split(weight, max(1, -(-weight.size // _CHUNK))):
        w = _blocks(rows.astype(np.float32), block)
        least, most = w.min(2, initial=0), w.max(2, initial=0)
        if symmetric:
            top = 2 ** (bits - 1) - 1
            bottom = top if bits > 4 else top + 1
            scale = np.maximum(most / np.float32(top), least / np.float32(-bottom))
            low = np.full_like(scale, -bottom)
        else:
            top = 2**bits - 1
            scale = (most / top - least / top).astype(np.float32)
        scale = np.where((most > 0) | (least < 0), np.maximum(scale, np.float32(_TINY)), np.float32(1))
        if not symmetric:
            low = -np.clip(np.rint(-least / scale), 0, top)
        high = low + top + (bottom if symmetric else 0)
        parts.append((_searched(w, scale, low, high, importance) if search else scale, low, high))
    scale, low, high = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Grid(scale, low, high, bits, block, symmetric)


def _searched(w: Array, scale: Array, low: Array, high: Array, importance: Array) -> Array:
    """The scale, at most `scale`, with the least weighted squared error of each block of w [out, blocks, size]."""
    best, least = scale, np.full(scale.shape, np.inf)
    low, high = low[..., None], high[..., None]
    off, levels = np.empty_like(w), np.empty_like(w)
    for factor in _SHRINK:
        tried = np.maximum(scale * np.float32(factor), np.float32(_TINY))
        np.divide(w, tried[..., None], out=off)
        np.rint(off, out=levels)
        np.clip(levels, low, high, out=levels)
        off -= levels
        off *= off
        error = np.einsum("obk,bk->ob", off, importance) * tried.astype(np.float64) ** 2
        better = error < least
        best, least = np.where(better, tried, best), np.where(better, error, least)
    return best


def _blocks(rows: Array, block: int | None) -> Array:
    """[n, in] -> [n, blocks, block], filled up with zeros."""
    n, width = rows.shape
    block = block or max(width, 1)
    count = -(-width // block)
    if count * block != width:
        rows = np.pad(rows, ((0, 0), (0, count * block - width)))
    return rows.reshape(n, count, block)


def _wide(values: Array, block: int | None, n: int) -> Array:
    """A value per row or block, [out, blocks] -> broadcasts against [out, n]."""
    return values if block is None else np.repeat(values, block, axis=1)[:, :n]


def _row_errors(weight: Array, other: Array, gram: Array | None) -> Array:
    off = weight.astype(np.float64) - other
    return np.einsum("oi,oi->o", off if gram is None else off @ gram, off)


def bias_correction(weight: Array, rounded: Rounded, mean_input: Array) -> Array:
    """What to add to the bias so that the mean output stays: (W - W_q) mean(x), float64 [out]. mean_input [in], or of
    each filter bank [banks, in]."""
    off = np.asarray(weight, np.float64) - rounded.dequantised()
    means = np.atleast_2d(np.asarray(mean_input, np.float64))
    return np.einsum("boi,bi->bo", off.reshape(len(means), -1, off.shape[1]), means).reshape(-1)


def smooth(amax: Array, weight: Array | Sequence[Array], alpha: float = 0.5) -> Array:
    """Factors s [in] float32, all above 0, that even out the inputs: x / s with W s computes what x with W did.

    s = amax^alpha / (greatest weight)^(1 - alpha) (SmoothQuant, arXiv 2211.10438), their geometric mean brought to 1.
    amax [in]: largest magnitude of each input. weight [out, in], or all the weights that read these inputs. Inputs that
    are never, or hardly, used keep a factor of 1.
    """
    weights = [weight] if isinstance(weight, np.ndarray) else list(weight)
    amax = np.abs(np.asarray(amax, np.float64))
    for each in weights:
        check_weight(np.asarray(each), len(amax))
    greatest = np.max([np.abs(each).max(0, initial=0) for each in weights], axis=0).astype(np.float64)
    factors = np.ones(len(amax))
    live = (amax > _DEAD * amax.max(initial=0)) & (greatest > _DEAD * greatest.max(initial=0))
    if live.any():
        logs = alpha * np.log(amax[live]) - (1 - alpha) * np.log(greatest[live])
        factors[live] = np.exp(logs - logs.mean())
    return factors.astype(np.float32)


def pack_blocks(rounded: Rounded, bits: int, block: int) -> tuple[Array, Array]:
    """What MatMulNBits of com.microsoft reads as B and scales: uint8 [out, blocks, block x bits / 8], two levels a byte
    where bits is 4, the first in the low half; float32 [out, blocks]. Inputs are filled up to whole blocks.

    Levels are offset by 2^(bits - 1), the operator's zero point unless `pack_zero_points` gives others.
    """
    _check_packing(rounded, bits, block)
    levels = (_blocks(rounded.q, block).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        levels = levels[..., 0::2] | levels[..., 1::2] << 4
    return levels, _per_block(rounded, rounded.scale, block)


def pack_zero_points(rounded: Rounded, bits: int, block: int) -> Array | None:
    """What MatMulNBits reads as zero_points: uint8 [out, ceil(blocks x bits / 8)]; None where it is the default."""
    _check_packing(rounded, bits, block)
    if rounded.zero_point is None:
        return None
    zeros = (_per_block(rounded, rounded.zero_point, block).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        zeros = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
        zeros = zeros[:, 0::2] | zeros[:, 1::2] << 4
    return zeros


def _check_packing(rounded: Rounded, bits: int, block: int) -> None:
    if bits not in (4, 8) or rounded.bits > bits:
        raise ValueError(f"{rounded.bits} bits cannot be packed as {bits}: 4 or 8, no fewer than there are")
    if block < 16 or block & (block - 1) or (rounded.block is not None and rounded.block % block):
        raise ValueError(f"blocks of {block}: a power of two from 16 on, and a divisor of {rounded.block}")


def _per_block(rounded: Rounded, values: Array, block: int) -> Array:
    """A value per output, or per larger block -> per block, [out, blocks]."""
    n_blocks = -(-rounded.q.shape[1] // block)
    if rounded.block is None:
        return np.repeat(values[:, None], n_blocks, axis=1)
    return np.repeat(values, rounded.block // block, axis=1)[:, :n_blocks]
