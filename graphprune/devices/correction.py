"""What a table of measured times says about work that was not measured: the analytic model, put right where it is off.

The logarithm of measured over analytic time is smooth in the logarithms of the sizes; a Gaussian process per operator
(Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 2) gives its mean and how sure that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.devices.device import Device
from graphprune.devices.roofline import milliseconds
from graphprune.devices.table import Row
from graphprune.devices.work import Work

_LENGTHS = (1.5, 2.5, 4.0, 8.0)
"""Octaves over which the error of the analytic model stays about the same; the likeliest is taken for each operator."""
_NOISES = (0.03, 0.08, 0.2)
"""Standard deviations of the logarithm of one measured time, likewise."""
_DEVIATIONS = (0.15, 0.6)
"""Least and largest standard deviation of that error around its mean for an operator."""
UNKNOWN = {"matrix": 0.30, "vector": 0.40, "view": 0.50}
"""Standard deviation of the logarithm of the analytic time of one operator where nothing was measured."""
_MOST_ROWS = 500
"""Of one operator, drawn where there are more."""
_INSIDE = 0.25
"""Octaves beyond the measured range that still count as inside."""


@dataclass(frozen=True)
class Correction:
    """factor: measured over analytic, as expected; deviation: standard deviation of its logarithm; inside: whether the
    sizes lie within those measured of the same operator (None: nothing was)."""

    factor: float
    deviation: float
    inside: bool | None


class Corrections:
    """Fitted to the rows of a table, over the analytic times of the device they were measured on."""

    def __init__(self, rows: Iterable[Row], device: Device) -> None:
        by_op: dict[tuple[str, str], list[tuple[Work, float]]] = {}
        for row in rows:
            error = math.log(row.ms / max(milliseconds(row.work, device, row.work.weights), 1e-9))
            by_op.setdefault((row.work.op, row.work.precision), []).append((row.work, error))
        self._fits = {key: _Fit([w.features for w, _ in found], [e for _, e in found])
                      for key, found in by_op.items()}  # fmt: skip
        self._kinds: dict[str, list[float]] = {}
        for found in by_op.values():
            self._kinds.setdefault(found[0][0].kind, []).append(float(np.median([e for _, e in found])))

    def of(self, work: Work) -> Correction:
        fit = self._fits.get((work.op, work.precision))
        if fit is not None:
            return fit.at(work.features)
        known = self._kinds.get(work.kind)
        if known is None:
            return Correction(1.0, UNKNOWN[work.kind], None)
        return Correction(math.exp(float(np.median(known))), UNKNOWN[work.kind], None)


class _Fit:
    def __init__(self, features: Sequence[Sequence[float]], errors: Sequence[float]) -> None:
        x, y = np.asarray(features), np.asarray(errors)
        if len(x) > _MOST_ROWS:
            chosen = np.random.default_rng(0).choice(len(x), _MOST_ROWS, replace=False)
            x, y = x[chosen], y[chosen]
        self._x, self._mean = x, float(np.median(y))
        self._low, self._high = x.min(axis=0) - _INSIDE, x.max(axis=0) + _INSIDE
        spread = 1.48 * float(np.median(abs(y - self._mean)))
        self._deviation = float(np.clip(spread, *_DEVIATIONS))
        choices = [(length, noise) for length in _LENGTHS for noise in _NOISES]
        self._length, self._noise = max(choices, key=lambda c: self._likelihood(y - self._mean, *c))
        covariance = self._kernel(x, x) + self._noise**2 * np.eye(len(x))
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ (y - self._mean)

    def _likelihood(self, y: np.ndarray, length: float, noise: float) -> float:
        """Logarithm of the marginal likelihood, but for a constant (equation 2.30)."""
        self._length = length
        lower = np.linalg.cholesky(self._kernel(self._x, self._x) + noise**2 * np.eye(len(y)))
        return float(-0.5 * (np.linalg.solve(lower, y) ** 2).sum() - np.log(np.diag(lower)).sum())

    def at(self, features: Sequence[float]) -> Correction:
        point = np.asarray(features)[None]
        near = self._kernel(point, self._x)[0]
        variance = self._deviation**2 - near @ self._inverse @ near
        deviation = math.sqrt(max(variance, 0.0) + self._noise**2)
        inside = bool(((point[0] >= self._low) & (point[0] <= self._high)).all())
        return Correction(math.exp(self._mean + float(near @ self._weights)), deviation, inside)

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1)
        return self._deviation**2 * np.exp(-squared / (2 * self._length**2))
