"""The time of a whole model on a device, predicted kernel by kernel, with the interval that the truth is expected in.

An error in the time of an operator is mostly the same for all kernels of that operator, and the same before and after
compression: it is drawn once for each; and so is what all kernels of a model are off by together. So a speed-up is
surer than the times it is made of.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np

from graphprune.devices.correction import Correction, Corrections
from graphprune.devices.device import Device
from graphprune.devices.roofline import milliseconds
from graphprune.devices.table import Table
from graphprune.devices.work import Work
from graphprune.target import Kernel, Source, Timing

DRAWS = 64
_COMMON, _COMMON_MEASURED = 0.27, 0.15
"""Standard deviation of the logarithm of what all kernels of a model are off by together, without and with a table:
what networks that no table had seen were off by on the machine where that was tried (docs/predicted.md), less what
single operators are."""
_SHARED = 0.8
"""Of the variance of a kernel's error: what it has in common with all kernels of its operator."""
_RELATED = 0.15
"""Standard deviation of the logarithm that a table of another device of the family leaves open besides."""


@dataclass(frozen=True)
class Predicted:
    """Kernels with their expected times, what is known of each, and the total over the draws of all errors."""

    kernels: tuple[Kernel, ...]
    corrections: tuple[Correction, ...] = field(repr=False)
    rounds_ms: tuple[float, ...] = field(repr=False)

    @property
    def ms(self) -> float:
        return math.fsum(k.ms for k in self.kernels)

    @property
    def source(self) -> Source:
        """As good as the worst of what holds a tenth of the time together."""
        outside = math.fsum(k.ms for k, c in zip(self.kernels, self.corrections, strict=True) if c.inside is False)
        unknown = math.fsum(k.ms for k, c in zip(self.kernels, self.corrections, strict=True) if c.inside is None)
        if unknown > 0.1 * self.ms:
            return "analytic"
        return "extrapolated" if outside + unknown > 0.1 * self.ms else "interpolated"

    @property
    def timing(self) -> Timing:
        return Timing(self.rounds_ms, self.source)


class Predictor:
    """device: what the times are for. table: measured on it, or on another of its family."""

    def __init__(self, device: Device, table: Table | None = None) -> None:
        self.device, self.table = device, table

    @cached_property
    def _corrections(self) -> Corrections:
        if self.table is None:
            return Corrections((), self.device)
        return Corrections(self.table.rows, self.table.described())

    @cached_property
    def related(self) -> bool:
        """Whether the table is of another device."""
        return self.table is not None and self.table.described().title != self.device.title

    def model(self, works: Sequence[tuple[Kernel, Work]]) -> Predicted:
        """Predict kernels that run one after the other; the times that they come with do not count."""
        held, related = sum(w.weights for _, w in works), _RELATED if self.related else 0.0
        kernels, corrections = [], []
        rounds = np.zeros(DRAWS)
        for kernel, work in works:
            known = self._corrections.of(work)
            ms = milliseconds(work, self.device, held) * known.factor
            kernels.append(replace(kernel, ms=ms))
            corrections.append(known)
            deviation = math.hypot(known.deviation, related)
            shared = _draws(f"{work.op} {work.precision}") * math.sqrt(_SHARED)
            own = _draws(f"{work.op} {work.precision} {[round(f) for f in work.features]}") * math.sqrt(1 - _SHARED)
            rounds += ms * np.exp(deviation * (shared + own))
        rounds *= np.exp((_COMMON if self.table is None else math.hypot(_COMMON_MEASURED, related)) * _draws("all"))
        return Predicted(tuple(kernels), tuple(corrections), tuple(float(r) for r in rounds))


@cache
def _draws(what: str) -> np.ndarray:
    """Standard normal numbers that depend on `what` alone, each with its negative, so that their median is zero."""
    seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "little")
    half = np.random.default_rng(seed).normal(size=DRAWS // 2)
    return np.stack([half, -half], axis=1).reshape(-1)
