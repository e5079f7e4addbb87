"""What was asked for and what a time is: targets, estimates, timings, kernels. Pure data; measures nothing.

Times are milliseconds. A spread is always relative: the half-width of the 80 % interval, divided by the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from graphprune.errors import UsageError

Source = Literal["measured", "interpolated", "extrapolated", "analytic"]
_DOUBT: tuple[Source, ...] = ("measured", "interpolated", "extrapolated", "analytic")
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE)
_UNIT_MS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}


@dataclass(frozen=True)
class Estimate:
    """A time with its provenance: ms, and spread = relative half-width of the 80 % interval."""

    ms: float
    spread: float
    source: Source


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times with spread = relative half-width of the 80 % interval."""

    value: float
    spread: float
    source: Source = "measured"

    @property
    def least(self) -> float:
        """What is sure: the lower end of the interval of what was measured; of a prediction, its value."""
        return self.value * (1 - self.spread) if self.source == "measured" else self.value

    def over(self, wanted: float) -> Ratio:
        """How many times the wanted ratio this is."""
        return replace(self, value=self.value / wanted)


@dataclass(frozen=True)
class IntegerKernels:
    """What a runtime can compute with few bits.

    linear: operator -> precisions of a linear node, of "static" (8 bits, ranges fixed beforehand), "dynamic" (8 bits,
    ranges found while running), "int8 weights", "int4 weights" (activations stay float). followers: operators that
    take and give 8-bit values, each with a scale of its own. carriers: operators that only move values, so that 8-bit
    ones pass with the scale they have. symmetric: whether 8-bit values are int8 around zero, and biases floating point,
    as GPU engines have it; else activations are uint8 with any zero point and biases int32. closed: whether a kernel
    computes on 8-bit values only where what it gives is rounded, too. name: by which a plan finds the scheme again.
    """

    name: str = ""

    linear: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    followers: frozenset[str] = frozenset()
    carriers: frozenset[str] = frozenset()
    symmetric: bool = False
    closed: bool = True


@dataclass(frozen=True)
class Timing:
    """Times of one model over the rounds of one interleaved measurement, or the draws of one prediction.

    rounds_ms[i] is the time of one run in round i; timings of the same measurement share their rounds, so that
    element i of two of them was taken within moments of each other (`speedup` relies on it). Of a prediction, draw i of
    two models has the same errors of the cost model.
    """

    rounds_ms: tuple[float, ...]
    source: Source = "measured"

    @property
    def rounds(self) -> int:
        return len(self.rounds_ms)

    @property
    def median_ms(self) -> float:
        return float(np.median(self.rounds_ms))

    @property
    def spread(self) -> float:
        return _spread(self.rounds_ms, self.source)

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.median_ms, self.spread, self.source)


@dataclass(frozen=True)
class Kernel:
    """One kernel of the deployed graph, after the runtime's fusions.

    ms is the lower quartile over the profiled runs; inputs and outputs are the shapes the kernel saw, weights that
    the runtime packed away left out. Names are stable between graphs of equal structure.
    """

    name: str
    op: str
    ms: float
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


def speedup(base: Timing, other: Timing) -> Ratio:
    """How many times faster `other` is than `base`: the median over rounds of base / other.

    Paired rounds cancel the slow drift of a shared machine, paired draws the errors that both models have. Raises
    UsageError if the rounds do not pair up.
    """
    if base.rounds != other.rounds:
        raise UsageError(
            f"timings of {base.rounds} and {other.rounds} rounds are not of one measurement",
            fix="measure both models in one call",
        )
    ratios = np.asarray(base.rounds_ms) / np.asarray(other.rounds_ms)
    source = max(base.source, other.source, key=_DOUBT.index)
    return Ratio(float(np.median(ratios)), _spread(ratios, source), source)


def _spread(samples: Sequence[float], source: Source) -> float:
    """Of the median of what was measured; of the draws themselves where one of them is the truth."""
    if source == "measured":
        return median_spread(samples)
    low, high = np.quantile(samples, [0.1, 0.9])
    return float((high - low) / 2 / np.median(samples))


def median_spread(samples: Sequence[float]) -> float:
    """Relative half-width of the distribution-free 80 % interval of the median of `samples`.

    The interval runs between order statistics (binomial, normal approximation of the ranks); under five samples it
    is the whole range, and infinite for a single one.
    """
    x = np.sort(np.asarray(samples, dtype=float))
    if len(x) < 2:
        return math.inf
    half_ranks = 1.2816 * math.sqrt(len(x)) / 2
    low = max(0, math.floor((len(x) - 1) / 2 - half_ranks))
    high = min(len(x) - 1, math.ceil((len(x) - 1) / 2 + half_ranks))
    return float((x[high] - x[low]) / 2 / np.median(x))


@dataclass(frozen=True)
class Target:
    """How fast the result must be: exactly one of a speed-up over the dense model and a latency in ms."""

    speedup: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.latency_ms is None):
            raise UsageError("a target is either a speed-up or a latency", fix="give one of the two, as 2x or 5ms")
        if self.speedup is not None and not (math.isfinite(self.speedup) and self.speedup > 1):
            raise UsageError(f"a speed-up of {self.speedup:g}x makes nothing faster", fix="ask for more than 1x, as 2x")
        if self.latency_ms is not None and not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise UsageError(f"{self.latency_ms:g} ms is not a latency", fix="give a time above zero, as 5ms")

    @classmethod
    def parse(cls, text: str) -> Target:
        """`2x`, `1.5 x` are speed-ups; `5ms`, `5 ms`, `0.8s`, `800us` latencies. Raises UsageError otherwise."""
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is not a target", fix="write a speed-up as 2x or a latency as 5ms")
        value, unit = float(match[1]), match[2].lower()
        if unit == "x":
            return cls(speedup=value)
        if unit in _UNIT_MS:
            return cls(latency_ms=value * _UNIT_MS[unit])
        number = f"{value:g}"
        if unit == "%":
            raise UsageError(f"{text!r}: a percentage can be read two ways", fix=f"did you mean {1 + value / 100:g}x?")
        near = f"{number}ms" if unit.startswith(("m", "l")) else f"{number}x or {number}ms"
        what = "has no unit" if not unit else f"has an unknown unit {match[2]!r}"
        raise UsageError(f"the target {text!r} {what}", fix=f"did you mean {near}?")

    def budget_ms(self, dense_ms: float) -> float:
        """The time the compressed model may take, given the dense model's."""
        return self.latency_ms if self.latency_ms is not None else dense_ms / self.speedup

    def __str__(self) -> str:
        return f"{self.speedup:g}x" if self.speedup is not None else f"{self.latency_ms:g} ms"
