"""The sweep tableau of a regression problem with lazy pivots: what every selection of inputs is computed from.

Given a positive definite H [in, in] over the inputs and weights W [out, in], each block of inputs (a channel) is either
kept (K) or removed (R). The tableau is the symmetric T [m, m] with
    T_KK = -(H_KK)^-1      T_RK = H_RK (H_KK)^-1      T_RR = H_RR - H_RK (H_KK)^-1 H_KR
and Y [out, m]: the optimal weights on K, the residual covariances W_R T_RR on R. For a block i in either state
    tr(|T_ii|^-1 Y_i^T Y_i)
is what the squared output error grows by if it is removed (ZipLM, arXiv 2302.04089, eq. 2), or falls by if it is put
back. Moving a block is one sweep operation on T and Y, the same formula in both directions.

T and Y are m^2 and out*m numbers; changing all of them at every move is bound by memory. Moves are kept as factors
    T = T0 - U diag(s) U^T      Y = Y0 - A diag(s) U^T
and multiplied in every `LAZY` columns (as GPTQ does, arXiv 2210.17323), with only the diagonal blocks of T and Y^T Y
kept current. Removed blocks are then dropped if the caller never puts one back.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack, qr, solve_triangular

from graphprune.compensate import robust_cholesky

Array = np.ndarray

LAZY = 96
STRIP = 256  # rows of T changed at a time: the product fits in cache


class Tableau:
    """H and W over the columns of n channels of `size` columns each, channel by channel.

    `fixed`: how many leading columns belong to no channel: they always stay and share in the compensation.
    h [fixed + n*size, same], positive definite; w [out, fixed + n*size]. `keep` [n] bool: the channels kept at first
    (all, if not given). Without it removed channels are forgotten, which is faster; with it every move can be undone.
    """

    def __init__(self, h: Array, w: Array, size: int, *, fixed: int = 0, keep: Array | None = None):
        self.size = size
        n = (len(h) - fixed) // size
        self.reversible = keep is not None
        self.kept = np.ones(n, bool) if keep is None else np.array(keep, bool)
        factor = robust_cholesky(h)[fixed:, fixed:]  # of the Schur complement of the fixed columns
        w = w[:, fixed:]
        if len(w) > w.shape[1]:  # only W^T W matters
            w = qr(w, mode="r", check_finite=False)[0][: w.shape[1]]
        self._t, self._y = self._start(factor, np.array(w, np.float64, order="C"))
        self._channel = np.arange(n)  # slot -> channel; slots of forgotten channels are refilled from the end
        self._slot = np.arange(n)  # channel -> slot
        width = max(LAZY // size, 1) * size
        self._u = np.zeros((n * size, width), order="F")
        self._a = np.zeros((len(self._y), width), order="F")
        self._signs = np.zeros(width)
        self._moved: list[int] = []  # slots moved since the last flush
        self._read_diagonal()

    def _start(self, factor: Array, w: Array) -> tuple[Array, Array]:
        if self.kept.all():
            t = _inverse(factor)
            return np.negative(t, out=t), w
        k = np.repeat(self.kept, self.size)
        h = factor @ factor.T
        t, y = np.empty_like(h), np.empty_like(w)
        chol = robust_cholesky(h[np.ix_(k, k)])
        half = solve_triangular(chol, h[np.ix_(k, ~k)], lower=True, check_finite=False)
        share = solve_triangular(chol, half, lower=True, trans="T", check_finite=False)  # (H_KK)^-1 H_KR
        t[np.ix_(k, k)] = -_inverse(chol)
        t[np.ix_(k, ~k)], t[np.ix_(~k, k)] = share, share.T
        t[np.ix_(~k, ~k)] = h[np.ix_(~k, ~k)] - half.T @ half
        y[:, k] = w[:, k] + w[:, ~k] @ share.T
        y[:, ~k] = w[:, ~k] @ t[np.ix_(~k, ~k)]
        return t, y

    def loss(self) -> float:
        """The damped squared output error of the present choice with optimal weights (nothing forgotten)."""
        gone = np.repeat(~self.kept, self.size)
        self._flush()
        if not gone.any():
            return 0.0
        y, t = self._y[:, gone], self._t[np.ix_(gone, gone)]
        half = solve_triangular(robust_cholesky(t), y.T, lower=True, check_finite=False)
        return float(np.sum(half * half))

    def scores(self) -> Array:
        """[n]: loss added by removing a kept channel, or saved by putting a removed one back; 0 once forgotten."""
        out = np.zeros(len(self.kept))
        if self.size == 1:
            values = self._q[:, 0, 0] / np.abs(self._d[:, 0, 0])
        else:
            positive = self._d * np.where(self.kept[self._channel], -1.0, 1.0)[:, None, None]
            values = np.einsum("kii->k", np.linalg.solve(positive, self._q))
        out[self._channel] = np.maximum(values, 0.0)
        return out

    def move(self, channel: int) -> float:
        """Remove a kept channel, or put a removed one back; -> the loss added or saved."""
        s, slot = self.size, int(self._slot[channel])
        sign = -1.0 if self.kept[channel] else 1.0
        at, old = slice(slot * s, slot * s + s), slice(0, len(self._moved) * s)
        m = len(self._channel) * s
        u0, a0, signs = self._u[:m, old], self._a[:, old], self._signs[old]
        weights = signs[:, None] * self._u[at, old].T
        d = self._d[slot]
        root = solve_triangular(robust_cholesky(sign * d), np.eye(s), lower=True, check_finite=False).T
        t = self._t[at, :m].T - u0 @ weights
        t[at] = d - sign * np.eye(s)  # makes the low-rank change right for every entry but the block itself
        u = t @ root
        a = (self._y[:, at] - a0 @ weights) @ root
        cross = a.T @ self._y[:, :m] - ((a.T @ a0) * signs) @ u0.T
        self._change_diagonal(u, a, cross, sign)
        self._d[slot] = -sign * (root @ root.T)
        new = slice(old.stop, old.stop + s)
        self._u[:m, new], self._a[:, new], self._signs[new] = u, a, sign
        self._moved.append(slot)
        self.kept[channel] = not self.kept[channel]
        if new.stop == len(self._signs):
            self._flush()
        return float(np.sum(a * a))

    def _change_diagonal(self, u: Array, a: Array, cross: Array, sign: float) -> None:
        s, n = self.size, len(self._channel)
        if s == 1:
            u, cross = u[:, 0], cross[0]
            self._d[:, 0, 0] -= sign * u * u
            self._q[:, 0, 0] += u * (u * np.sum(a * a) - 2 * sign * cross)
            return
        blocks = u.reshape(n, s, s)
        turned = blocks.transpose(0, 2, 1)
        across = blocks @ cross.reshape(s, n, s).transpose(1, 0, 2)
        self._d -= sign * (blocks @ turned)
        self._q += blocks @ (a.T @ a) @ turned - sign * (across + across.transpose(0, 2, 1))

    def _flush(self) -> None:
        """Multiply the pending moves in, forget what may be forgotten, and recompute the diagonal blocks."""
        s, n = self.size, len(self._channel)
        m, p = n * s, len(self._moved) * s
        u = self._u[:m, :p]
        scaled = (u * self._signs[:p]).T
        for row in range(0, m, STRIP):
            strip = slice(row, min(row + STRIP, m))
            self._t[strip, :m] -= u[strip] @ scaled
        self._y[:, :m] -= self._a[:, :p] @ scaled
        for slot in self._moved:
            at = slice(slot * s, slot * s + s)
            self._t[at, at] = self._d[slot]
        self._moved.clear()
        if not self.reversible:
            self._forget()
        self._read_diagonal()

    def _forget(self) -> None:
        s, kept = self.size, self.kept[self._channel]
        n = int(kept.sum())
        holes, tail = np.flatnonzero(~kept[:n]), n + np.flatnonzero(kept[n:])
        self._channel[holes] = self._channel[tail]
        self._channel = self._channel[:n]
        self._slot[self._channel[holes]] = holes
        to, source = _columns(holes, s), _columns(tail, s)
        self._t[to] = self._t[source]
        self._t[: n * s, to] = self._t[: n * s, source]
        self._y[:, to] = self._y[:, source]

    def _read_diagonal(self) -> None:
        s, n = self.size, len(self._channel)
        at = np.arange(n * s).reshape(n, s)
        self._d = self._t[at[:, :, None], at[:, None, :]]
        y = self._y[:, : n * s].reshape(len(self._y), n, s)
        self._q = np.einsum("oi,oi->i", y[:, :, 0], y[:, :, 0])[:, None, None] if s == 1 else _block_grams(y)


def _columns(slots: Array, size: int) -> Array:
    return (slots[:, None] * size + np.arange(size)).ravel()


def _block_grams(y: Array) -> Array:
    """y [out, n, s] -> [n, s, s]: Y_i^T Y_i of each block."""
    blocks = y.transpose(1, 2, 0)
    return blocks @ blocks.transpose(0, 2, 1)


def _inverse(factor: Array) -> Array:
    """The inverse of the matrix whose lower Cholesky factor is given (and overwritten), both triangles filled."""
    lower, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    out = lower.T  # row-major where lower is column-major: the upper triangle is the one filled
    for row in range(0, len(out), STRIP):
        end = row + STRIP
        out[end:, row:end] = out[row:end, end:].T
        block = np.triu(out[row:end, row:end])
        out[row:end, row:end] = block + np.triu(block, 1).T
    return out
