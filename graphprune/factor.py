"""The best low-rank stand-ins for a linear reader's weight, measured on its inputs instead of on the weight itself.

Owns the two forms a weight can be split into and their errors at every rank. A matrix (a convolution as the matrix of
its unfolded input: k x k to r channels, then 1 x 1) is split where the data say its outputs lie (SVD-LLM, arXiv
2403.07378); a k x k convolution also into k x 1 and then 1 x k (Jaderberg et al., arXiv 1405.3866). All float64.

Errors are squared output errors per row of the data. With a metric C [in, in], the second moments of the inputs, that
of weights that are off by E [out, in] is the trace of E C E^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from scipy.linalg import eigh, qr, solve_triangular

from graphprune.compensate import Moments, default_damping, ridge_of, robust_cholesky

Array = np.ndarray
Form = Literal["matmul", "channel", "spatial"]
"""A matrix product in two; k x k to r channels, then 1 x 1; or k x 1 to r channels, then 1 x k."""

_FLOOR = 1e-12  # of the largest variance: less than that is rounding, and not to be scaled up


def metric_of(moments: Moments, *, centre: bool, damping: float | None = None) -> Array:
    """Second moments of the inputs per row, damped: [in, in].

    centre: about their mean, for a bias that takes it (see `mean_error`). damping: as for `compensate.least_squares`;
    it adds the error of inputs that the data show too few of.
    """
    scatter = moments.scatter(centre)
    if damping is None:
        damping = default_damping(len(scatter), moments.n_samples)
    metric = scatter / moments.n_samples
    np.einsum("ii->i", metric)[...] += ridge_of(scatter, damping) / moments.n_samples
    return metric


class Factors(Protocol):
    """A weight split in two at any rank.

    full: the rank at which nothing is lost. most: the largest rank at hand. loss: squared output error per row at ranks
    0 to `most` [most + 1], never rising.
    """

    full: int
    most: int
    loss: Array

    def at(self, rank: int) -> tuple[Array, Array]:
        """The first and the second weight. Beyond `full` there are zeros, so that the shapes are as asked."""
        ...


def relative(factors: Factors, rank: int) -> float:
    """The squared output error at a rank as a share of all there is: 0 exact, 1 as bad as nothing."""
    whole = float(factors.loss[0])
    return float(factors.loss[min(rank, factors.most)]) / whole if whole > 0 else 0.0


class MatrixFactors:
    """weight [out, in] ~ up [out, r] @ down [r, in], the best there is for a metric [in, in] (None: the identity).

    The best W' of rank r for |(W - W') L|, C = L L^T, cuts off the SVD of W L = U S V^T and goes back through L. That
    is U_r U_r^T W: the outputs, projected on where they vary most, so U and S^2 are the eigenvectors and eigenvalues of
    W C W^T and nothing has to be inverted. The loss at rank r is the sum of the S^2 cut off.

    Balanced: the root mean square of what lies between is, channel by channel, the norm of the column of `up` that
    reads it. Rounding either to the same few bits then does about equal harm.
    """

    def __init__(self, weight: Array, metric: Array | None = None, most: int | None = None) -> None:
        weight = np.asarray(weight, np.float64)
        self.full = min(weight.shape)
        self.most = self.full if most is None else min(most, self.full)
        tall = len(weight) > self.full
        outer, inner = qr(weight, mode="economic", check_finite=False) if tall else (None, weight)
        values, vectors = eigh(inner @ (inner if metric is None else inner @ metric).T, check_finite=False)
        values = np.maximum(values[::-1], 0.0)
        vectors = vectors[:, ::-1][:, : self.most]
        self.loss = np.append(np.cumsum(values[::-1])[::-1], 0.0)[: self.most + 1]
        spread = np.sqrt(np.maximum(values[: self.most], _FLOOR * values.max(initial=0.0)))
        scale = np.sqrt(np.where(spread > 0, spread, 1.0))
        self._down = vectors.T @ inner / scale[:, None]
        self._up = (outer @ vectors if tall else vectors) * scale

    def at(self, rank: int) -> tuple[Array, Array]:
        """down [rank, in] and up [out, rank]."""
        _check(self, rank)
        return _padded(self._down[:rank], 0, rank), _padded(self._up[:, :rank], 1, rank)


class SpatialFactors:
    """weight [out, in, kh, kw] ~ down [r, in, kh, 1], then up [out, r, 1, kw]; metric over the unfolded in x kh x kw.

    The kernel, laid out as [out x kw, in x kh], is cut off like a matrix, weighted by what the metric says of columns
    of the window and of places along a row apart from each other (its partial traces). That is exact where the two do
    not depend on each other; `up` is then the least-squares answer to what `down` really gives, with the whole metric.
    Without one this is the plain SVD. Balanced as `MatrixFactors`.
    """

    def __init__(self, weight: Array, metric: Array | None = None, most: int | None = None) -> None:
        weight = np.asarray(weight, np.float64)
        n_out, n_in, kh, kw = self._shape = weight.shape
        kernel = weight.transpose(0, 3, 1, 2).reshape(n_out, kw, n_in * kh)
        self.full = min(n_out * kw, n_in * kh)
        self.most = self.full if most is None else min(most, self.full)
        if metric is None:
            along = None
        else:
            whole = metric.reshape(n_in * kh, kw, n_in * kh, kw)
            along = np.einsum("ajbj->ab", whole)
            across = np.einsum("ajal->jl", whole) / max(np.trace(along), np.finfo(float).tiny)
            kernel = np.einsum("jl,oja->ola", robust_cholesky(across), kernel)
        first = MatrixFactors(kernel.reshape(-1, n_in * kh), along, self.most)
        down = first.at(self.most)[0]
        # What `down` gives at the kw places of a row, r-major: features [most x kw] of the unfolded input.
        flat = weight.reshape(n_out, -1)
        if metric is None:
            features = _at_places(down, kw)
            gram, cross, energy = features @ features.T, flat @ features.T, float(np.sum(flat**2))
        else:
            seen = np.tensordot(down, whole, 1).reshape(self.most * kw, -1)  # features @ metric
            cross = flat @ seen.T
            gram = np.tensordot(seen.reshape(-1, n_in * kh, kw), down, (1, 1))
            gram = gram.transpose(0, 2, 1).reshape(self.most * kw, -1)
            energy = float(np.sum((flat @ metric) * flat))
        # One triangular factor serves all ranks: that of fewer features is its leading part.
        self._root = robust_cholesky((gram + gram.T) / 2)
        self._explained = solve_triangular(self._root, cross.T, lower=True, check_finite=False).T
        share = np.sum(self._explained.reshape(n_out, self.most, kw) ** 2, axis=(0, 2))
        self.loss = np.maximum(energy - np.append(0.0, np.cumsum(share)), 0.0)
        self._down = down
        self._spread = np.sqrt(np.diag(gram).reshape(self.most, kw).mean(axis=1))

    def at(self, rank: int) -> tuple[Array, Array]:
        """down [rank, in, kh, 1] and up [out, rank, 1, kw]."""
        _check(self, rank)
        n_out, n_in, kh, kw = self._shape
        r = min(rank, self.most)
        root, explained = self._root[: r * kw, : r * kw], self._explained[:, : r * kw]
        up = solve_triangular(root, explained.T, lower=True, trans="T", check_finite=False).T.reshape(n_out, r, kw)
        norm, spread = np.sqrt(np.sum(up**2, axis=(0, 2))), self._spread[:r]
        scale = np.sqrt(np.divide(spread, norm, out=np.ones(r), where=(norm > 0) & (spread > 0)))
        down = (self._down[:r] / scale[:, None]).reshape(r, n_in, kh, 1)
        return _padded(down, 0, rank), _padded((up * scale[:, None])[:, :, None, :], 1, rank)


def _at_places(down: Array, kw: int) -> Array:
    """down [r, in x kh] at each of kw places by itself: [r x kw, in x kh x kw]."""
    return np.einsum("ra,jl->rjal", down, np.eye(kw)).reshape(len(down) * kw, -1)


def _check(factors: Factors, rank: int) -> None:
    if rank > factors.most and factors.most < factors.full:
        raise ValueError(f"rank {rank} was asked, the factors go up to {factors.most} of {factors.full}")


def _padded(weight: Array, axis: int, size: int) -> Array:
    missing = [(0, size - n if i == axis else 0) for i, n in enumerate(weight.shape)]
    return np.pad(weight, missing)


def as_it_falls(weight: Array, form: Form, rank: int) -> tuple[Array, Array]:
    """Factors of the right shapes without arithmetic: they give the first outputs and leave out the others."""
    if form != "spatial":
        rows = weight.reshape(len(weight), -1)
        return _padded(rows[:rank], 0, rank), np.eye(len(rows), rank)
    n_out, n_in, kh, kw = weight.shape
    rows = weight.transpose(0, 3, 1, 2).reshape(n_out * kw, n_in, kh, 1)
    up = np.eye(len(rows), rank).reshape(n_out, kw, rank).transpose(0, 2, 1)
    return _padded(rows[:rank], 0, rank), up[:, :, None, :]


def mean_error(weight: Array, mean: Array, instead: Array) -> Array:
    """What a bias must add where `instead` takes the place of weight [out, in], for inputs of this mean [in]: [out]."""
    return (weight.astype(np.float64) - instead) @ mean


def spatial_matrix(down: Array, up: Array) -> Array:
    """The matrix [out, in x kh x kw] that the spatial form computes: down [r, in, kh, 1], up [out, r, 1, kw]."""
    return np.einsum("rci,orj->ocij", down[..., 0], up[:, :, 0]).reshape(len(up), -1)


def break_even(shape: Sequence[int], form: Form, strides: Sequence[int] = ()) -> float:
    """The rank at which the two factors of a weight of this shape take as many multiply-adds as the weight itself.

    shape: [out, in] or [out, in, *kernel]; the share of multiply-adds at a rank r is r over this. strides matter to the
    spatial form alone: its first half works at every place along a row.
    """
    n_out, n_in = shape[0], int(np.prod(shape[1:]))
    if form != "spatial":
        return n_out * n_in / (n_out + n_in)
    _, channels, kh, kw = shape
    return n_out * n_in / (channels * kh * strides[1] + n_out * kw)


def full_rank(shape: Sequence[int], form: Form) -> int:
    """The rank at which nothing is lost, for a weight [out, in] or [out, in, *kernel]."""
    if form != "spatial":
        return min(shape[0], int(np.prod(shape[1:])))
    n_out, channels, kh, kw = shape
    return min(n_out * kw, channels * kh)


def better_form(weight: Array, metric: Array | None, strides: Sequence[int], share: float = 0.5) -> Form:
    """Which form of a convolution's weight [out, in, *kernel] loses less at this share of its multiply-adds."""
    if weight.ndim != 4 or min(weight.shape[2:]) == 1:
        return "channel"
    losses = []
    for form in ("channel", "spatial"):
        rank = max(1, round(share * break_even(weight.shape, form, strides)))
        losses.append(relative(factors_of(weight, form, metric, rank), rank))
    return "spatial" if losses[1] < losses[0] else "channel"


def factors_of(weight: Array, form: Form, metric: Array | None = None, most: int | None = None) -> Factors:
    """The factors of a weight [out, in] or [out, in, *kernel] in one of the forms, for ranks up to `most`."""
    if form == "spatial":
        return SpatialFactors(weight, metric, most)
    return MatrixFactors(weight.reshape(len(weight), -1), metric, most)
