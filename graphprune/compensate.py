"""Second moments of a linear reader's inputs, and the best weights they allow once some inputs are gone.

Owns `Moments`, the damping, and least squares with an intercept. Which inputs go is decided in `scores`; collecting the
moments belongs to calibration. All sums are float64; weights come back in the type they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky

from graphprune.errors import UsageError

Array = np.ndarray

# A variance below this share of the raw second moment is rounding: Gram matrices are accumulated from float32 products.
ROUNDING = 1e-6
_CANCELLED = 1e-9
DAMPINGS = (np.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class Moments:
    """Sums over calibration samples of a reader's unfolded inputs x.

    gram [in, in] = sum of x x^T; mean [in]; n_samples = rows summed (tokens or pixels, not batches).
    Raises UsageError for shapes that disagree, non-finite entries or no samples.
    """

    gram: Array
    mean: Array
    n_samples: int

    def __post_init__(self) -> None:
        _as_float64(self, "gram", "mean")
        n = len(self.mean)
        if self.gram.shape != (n, n) or self.mean.shape != (n,):
            raise UsageError(f"moments disagree: gram {self.gram.shape}, mean {self.mean.shape}")
        _check_moments(self.gram, self.mean, self.n_samples)

    @classmethod
    def of(cls, x: Array) -> Moments:
        """Moments of the rows of x [n_samples, in]."""
        x = np.asarray(x, np.float64)
        return cls(x.T @ x, x.mean(axis=0), len(x))

    def __add__(self, other: Moments) -> Moments:
        n = self.n_samples + other.n_samples
        mean = (self.mean * self.n_samples + other.mean * other.n_samples) / n
        return Moments(self.gram + other.gram, mean, n)

    def scatter(self, centre: bool = True) -> Array:
        """sum of (x - mean)(x - mean)^T [in, in] float64; the raw Gram matrix (never to be written to) if not centred.

        Centring is what a free intercept does: the squared error that no bias can remove (arXiv 2312.11983).
        Inputs whose variance is rounding get an exactly zero row and column.
        """
        if not centre:
            return self.gram
        c = np.outer(-self.n_samples * self.mean, self.mean)
        c += self.gram
        constant = np.diag(c) <= ROUNDING * np.diag(self.gram)
        c[constant] = 0.0
        c[:, constant] = 0.0
        return c


@dataclass(frozen=True)
class CrossMoments:
    """Sums over samples of inputs x [in] (as the pruned network makes them) and targets y [out] (of the dense one).

    gram_xx [in, in] = sum of x x^T; gram_xy [in, out] = sum of x y^T; mean_x [in]; mean_y [out].
    """

    gram_xx: Array
    gram_xy: Array
    mean_x: Array
    mean_y: Array
    n_samples: int

    def __post_init__(self) -> None:
        _as_float64(self, "gram_xx", "gram_xy", "mean_x", "mean_y")
        n, m = len(self.mean_x), len(self.mean_y)
        if self.gram_xx.shape != (n, n) or self.gram_xy.shape != (n, m):
            raise UsageError(
                f"moments disagree: gram_xx {self.gram_xx.shape}, gram_xy {self.gram_xy.shape}, means [{n}] and [{m}]"
            )
        _check_moments(self.gram_xx, self.mean_x, self.n_samples)
        _check_moments(self.gram_xy, self.mean_y, self.n_samples)

    @classmethod
    def of(cls, x: Array, y: Array) -> CrossMoments:
        """Moments of paired rows x [n_samples, in] and y [n_samples, out]."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return cls(x.T @ x, x.T @ y, x.mean(axis=0), y.mean(axis=0), len(x))

    def __add__(self, other: CrossMoments) -> CrossMoments:
        n = self.n_samples + other.n_samples
        return CrossMoments(
            self.gram_xx + other.gram_xx,
            self.gram_xy + other.gram_xy,
            (self.mean_x * self.n_samples + other.mean_x * other.n_samples) / n,
            (self.mean_y * self.n_samples + other.mean_y * other.n_samples) / n,
            n,
        )

    def centred(self) -> tuple[Array, Array]:
        """Scatter of x with itself [in, in] and with y [in, out] about this fold's own means. What is left of inputs
        that are constant but for the rounding of these differences is set to exactly zero."""
        xx = np.outer(-self.n_samples * self.mean_x, self.mean_x)
        xx += self.gram_xx
        xy = self.gram_xy - self.n_samples * np.outer(self.mean_x, self.mean_y)
        constant = np.diag(xx) <= _CANCELLED * np.diag(self.gram_xx)
        xx[constant] = 0.0
        xx[:, constant] = 0.0
        xy[constant] = 0.0
        return xx, xy


def _as_float64(moments: Moments | CrossMoments, *fields: str) -> None:
    for name in fields:
        object.__setattr__(moments, name, np.asarray(getattr(moments, name), np.float64))


def _check_moments(gram: Array, mean: Array, n_samples: int) -> None:
    if n_samples < 1:
        raise UsageError("the calibration moments hold no samples", fix="give at least one calibration feed")
    if not (np.isfinite(gram).all() and np.isfinite(mean).all()):
        raise UsageError(
            "the calibration moments hold NaN or infinity",
            fix="check the calibration data, and that the model's own activations are finite on it",
        )


def default_damping(n_inputs: int, n_samples: int) -> float:
    """0.2 x inputs per sample, within 0.01 and 1: near the least held-out error on transformer activations.

    For FFN layers of 1,536 inputs and 28,000, 2,000 and 500 tokens the best dampings were 0.03, 0.3 and 1. The damped
    loss then tracks the held-out error, which an undamped one understates up to a hundredfold.
    """
    return float(np.clip(0.2 * n_inputs / n_samples, 0.01, 1.0))


def ridge_of(h: Array, damping: float) -> float:
    """The absolute ridge for a relative damping: damping x the mean of the nonzero diagonal of h [in, in]."""
    diag = np.diag(h)
    live = diag[diag > 0]
    return _checked(damping) * float(live.mean()) if live.size else 0.0


def _checked(damping: float) -> float:
    if not 0 <= damping < np.inf:
        raise UsageError(f"damping must be a finite number of at least 0, not {damping}")
    return float(damping)


def damped(h: Array, ridge: float) -> Array:
    """A copy of h [in, in] that is safe to invert: + ridge on the diagonal, 1 where an input never varies."""
    out = np.array(h, np.float64)
    diag = np.einsum("ii->i", out)
    dead = diag <= 0
    diag += ridge
    out[dead] = 0.0
    out[:, dead] = 0.0
    diag[dead] = 1.0
    return out


def robust_cholesky(h: Array) -> Array:
    """Lower Cholesky factor of a symmetric h [n, n]; where it is not positive definite by rounding, the least ridge
    of 1e-12, 1e-11 ... 1e-2 of the mean diagonal that makes it so is added. Raises UsageError beyond that."""
    scale = float(np.mean(np.diag(h))) if len(h) else 0.0
    for jitter in (0.0, *(10.0**e for e in range(-12, -1))):
        try:
            return cholesky(h if not jitter else h + jitter * scale * np.eye(len(h)), lower=True, check_finite=False)
        except LinAlgError:
            continue
    raise UsageError("the calibration moments are not those of any data: the Gram matrix has negative eigenvalues")


def least_squares(
    weight: Array,
    bias: Array | None,
    moments: Moments | Sequence[Moments],
    keep_columns: Array,
    *,
    damping: float | None = None,
    centre: bool = True,
) -> tuple[Array, Array | None]:
    """The weights and bias over the kept inputs that best repeat y = W x + b, W [out, in], on the calibration inputs.

    Minimises sum |W' x_K + b' - (W x + b)|^2 + ridge |W' - W_K|^2 exactly: the ridge pulls toward the original
    weights, so with few samples the answer tends to them, and never to zero. The intercept takes the mean of what was
    removed (arXiv 2312.11983). keep_columns: column indices [kept], in the order wanted. Folds and damping: see
    `refit`; the ridge is relative to all inputs, as in `scores.sweep`, whose loss this attains.
    -> (weight [out, kept], bias [out]; without an intercept, centre=False, the bias comes back as given).
    """
    folds = [moments] if isinstance(moments, Moments) else list(moments)
    weight, keep = np.asarray(weight), np.asarray(keep_columns, np.intp)
    for fold in folds:
        check_weight(weight, len(fold.mean))
    w = weight.astype(np.float64)
    whole = _total(folds)
    scale = ridge_of(whole.scatter(centre), 1.0) / whole.n_samples
    if damping is None and len(folds) == 1:
        damping = default_damping(w.shape[1], whole.n_samples)
    targets = [
        CrossMoments(f.gram[np.ix_(keep, keep)], f.gram[keep] @ w.T, f.mean[keep], w @ f.mean, f.n_samples)
        for f in folds
    ]
    new, shift = _fit(w[:, keep], np.zeros(len(w)), targets, damping, scale, centre)
    if centre:
        bias = (shift if bias is None else shift + bias).astype(weight.dtype)
    return new.astype(weight.dtype), bias


def refit(
    weight: Array,
    bias: Array | None,
    moments: CrossMoments | Sequence[CrossMoments],
    *,
    damping: float | None = None,
    centre: bool = True,
) -> tuple[Array, Array | None]:
    """The weights and bias over the inputs a pruned network really makes that best give the dense network's outputs.

    Minimises sum |W x + b - y|^2 + ridge |W - weight|^2, ridge = damping x mean variance of x x n_samples.
    With several folds (samples split by batch) and no damping given, the damping is the one whose fits to each fold
    leave the least error on the other folds; the candidates go up to infinity (only the bias moves) and to leaving
    everything as it was, so that too few samples change nothing. With one fold, `default_damping`.
    weight [out, in], bias [out] or None -> the same; without an intercept (centre=False) the bias must be None.
    """
    folds = [moments] if isinstance(moments, CrossMoments) else list(moments)
    weight = np.asarray(weight)
    for fold in folds:
        check_weight(weight, len(fold.mean_x))
    if not centre and bias is not None:
        raise UsageError("a refit without an intercept cannot account for a bias", fix="subtract it from the targets")
    whole = _total(folds)
    if damping is None and len(folds) == 1:
        damping = default_damping(weight.shape[1], whole.n_samples)
    xx = whole.centred()[0] if centre else whole.gram_xx
    b = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    scale = ridge_of(xx, 1.0) / whole.n_samples
    new, b = _fit(weight.astype(np.float64), b, folds, damping, scale, centre)
    return new.astype(weight.dtype), b.astype(weight.dtype) if centre else None


def _total(folds: list) -> Moments | CrossMoments:
    if not folds:
        raise UsageError("no moments to fit to")
    whole = folds[0]
    for fold in folds[1:]:
        whole = whole + fold
    return whole


def _fit(
    w0: Array, b0: Array, folds: list[CrossMoments], damping: float | None, scale: float, centre: bool
) -> tuple[Array, Array]:
    """`scale`: the ridge per sample at damping 1."""
    if damping is None:
        damping = _cross_validated(w0, b0, folds, scale, centre)
        if damping is None:
            return w0, b0
    else:
        _checked(damping)
    whole = _total(folds)
    return _Fit(w0, b0, whole, centre).at(damping * scale * whole.n_samples)


class _Fit:
    """Ridge regressions toward w0 on one set of moments, for several ridges."""

    def __init__(self, w0: Array, b0: Array, moments: CrossMoments, centre: bool):
        self.w0, self.b0, self.moments, self.centre = w0, b0, moments, centre
        self.xx, self.xy = moments.centred() if centre else (moments.gram_xx, moments.gram_xy)
        self.residual = self.xy - self.xx @ w0.T

    def at(self, ridge: float) -> tuple[Array, Array]:
        w = self.w0
        if np.isfinite(ridge) and w.size:
            factor = robust_cholesky(damped(self.xx, ridge))
            w = w + cho_solve((factor, True), self.residual, check_finite=False).T
        return w, self.moments.mean_y - w @ self.moments.mean_x if self.centre else self.b0

    def error(self, w: Array, b: Array) -> float:
        """The squared error of another fit on these samples, up to the same constant for all fits."""
        mean = self.moments.mean_y - w @ self.moments.mean_x - b
        spread = float(np.sum((w @ self.xx) * w) - 2 * np.sum(w.T * self.xy))
        return spread + self.centre * self.moments.n_samples * float(mean @ mean)


def _cross_validated(w0: Array, b0: Array, folds: list[CrossMoments], scale: float, centre: bool) -> float | None:
    """The damping whose fits to all folds but one err least on the one left out; tried from strong to weak until the
    error has risen twice. None, change nothing, unless every fold gains: one lucky fold is no evidence."""
    tests = [_Fit(w0, b0, fold, centre) for fold in folds]
    fits = [_Fit(w0, b0, _total(folds[:i] + folds[i + 1 :]), centre) for i in range(len(folds))]
    unchanged = np.array([test.error(w0, b0) for test in tests])
    best, least, last, rises = None, 0.0, np.inf, 0
    for damping in DAMPINGS:
        ridges = [damping * scale * fit.moments.n_samples for fit in fits]
        gains = unchanged - [t.error(*fit.at(r)) for t, fit, r in zip(tests, fits, ridges, strict=True)]
        if gains.min() > 0 and -gains.sum() < least:
            best, least = damping, -gains.sum()
        rises = rises + 1 if -gains.sum() > last else 0
        last = -gains.sum()
        if rises == 2:
            break
    return best


def check_weight(weight: Array, n_inputs: int, at: str = "") -> None:
    """Raises UsageError unless weight is [out, n_inputs] and finite."""
    if weight.ndim != 2 or weight.shape[1] != n_inputs:
        raise UsageError(f"a weight of shape {weight.shape} does not read {n_inputs} inputs", at=at)
    if not np.isfinite(weight).all():
        raise UsageError("a weight holds NaN or infinity", at=at, fix="repair the model first")
