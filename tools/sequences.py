"""Two passes one after the other, as anybody could run them: compile for an intermediate speed-up with the first, then
compile what came out for the rest with the second.

Owns the search over the intermediate speed-up. It works on a `Bench`, which compiles, times and judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from graphprune.errors import InfeasibleTarget
from graphprune.target import Target

TRIES = 4
_NEAR = math.log(1.15)
"""Natural logarithm of the factor between an intermediate that is enough and one that is not at which to stop."""
_APART = 1.1
"""Two intermediates nearer than this factor are not worth a compilation each."""
_BELOW = 0.98
"""What is asked for of the most that a pass was measured to give: measured again it may be a little less."""
_NUDGES = 2
_LEAST = 1.01


class Reaching(Protocol):
    def reach(self, target: Target) -> Any:
        """A `graphprune.compiler.Result`. Raises InfeasibleTarget."""
        ...


class Bench(Protocol):
    """Compiles models of one task with one draw of calibration data, and judges them."""

    def compiler(self, passes: str, model: bytes | None = None) -> Reaching:
        """Of the dense model, or of the bytes of another. Raises ModelError where the passes find nothing to do."""
        ...

    def most(self, passes: str) -> float:
        """The largest speed-up that these passes give the dense model."""
        ...

    def speedup(self, data: bytes) -> float:
        """Measured, over the dense model."""
        ...

    def lost(self, data: bytes) -> float:
        """Divergence from the dense outputs on feeds held out from calibration."""
        ...


@dataclass(frozen=True)
class Made:
    """A model, and in words how it came about."""

    data: bytes
    how: str


@dataclass(frozen=True)
class Short:
    """An intermediate after which the target stayed out of reach: `total` is the most that was reached."""

    total: float


def prune_then_quantise(asked: float, bench: Bench) -> Made:
    """Pruned no more than it takes for quantisation to do the rest, or both in equal parts.

    Which of the two is taken, held-out calibration feeds decide. Raises InfeasibleTarget if neither reaches `asked`.
    """
    attempt = _attempts(asked, "width", "quantise", bench)
    least = asked / (_BELOW * bench.most("quantise"))
    # where quantisation alone is fast enough, a sequence of both still has to prune something
    made, best = _least_intermediate(asked, max(least, asked**0.25), attempt, known_short=least > asked**0.25)
    used = min((t for t, _ in made), default=asked)
    return _nearest(asked, [*made, *_evenly(asked, used, attempt)], best, bench)


def quantise_then_prune(asked: float, bench: Bench) -> Made:
    """Quantised as far as that goes and pruned for the rest, or both in equal parts.

    Held-out calibration feeds decide. Raises InfeasibleTarget if neither reaches `asked`, ModelError if the quantised
    model cannot be pruned at all.
    """
    attempt = _attempts(asked, "quantise", "width", bench)
    first = min(_BELOW * bench.most("quantise"), asked**0.75)
    if first <= _LEAST:
        raise InfeasibleTarget(f"quantising makes nothing faster here, {asked:g}x is out of reach", best=1.0)
    got = attempt(first)
    made = [(first, got)] if isinstance(got, Made) else []
    best = got.total if isinstance(got, Short) else asked
    even = _evenly(asked, first, attempt) if math.sqrt(asked) < first else []
    return _nearest(asked, [*made, *even], best, bench)


def _attempts(asked: float, first: str, second: str, bench: Bench) -> Callable[[float], Made | Short]:
    """How to try one intermediate speed-up."""

    def attempt(intermediate: float) -> Made | Short:
        try:
            half = bench.compiler(first).reach(Target(speedup=intermediate))
        except InfeasibleTarget as error:
            return Short(error.best)
        reached = half.report.reached.speedup
        rest, total = asked / reached, reached
        if rest <= 1:
            return Made(half.data, f"{first} to {reached:.2f}x was enough")
        compiler = bench.compiler(second, half.data)
        for _ in range(1 + _NUDGES):
            try:
                data = compiler.reach(Target(speedup=max(rest, _LEAST))).data
            except InfeasibleTarget as error:
                return Short(max(total, reached * error.best))
            total = bench.speedup(data)
            if total >= asked:
                return Made(data, f"{first} to {reached:.2f}x, then {second} to {total:.2f}x")
            rest *= 1.005 * asked / total  # the factors of two measurements need not multiply
        return Short(total)

    return attempt


def _least_intermediate(
    asked: float, guess: float, attempt: Callable[[float], Made | Short], *, known_short: bool
) -> tuple[list[tuple[float, Made]], float]:
    """Bisection, on logarithms, for the least intermediate that is enough: all that were, and the most reached.

    known_short: whether doing without the first pass is known not to be enough.
    """
    low, high, at = 0.0, math.log(asked), min(math.log(guess), math.log(asked))
    made: list[tuple[float, Made]] = []
    best = 1.0
    for _ in range(TRIES):
        got = attempt(math.exp(at))
        if isinstance(got, Made):
            made.append((math.exp(at), got))
            high = at
            if not known_short or high - low <= _NEAR:
                break
            at = (low + high) / 2
        else:
            best, low, known_short = max(best, got.total), at, True
            if high - low <= 1e-3:
                break
            missing = max(math.log(asked / max(got.total, 1.0)), 0.0)
            at = min(low + 1.1 * missing + 0.01, high if not made else (low + high) / 2)
    return made, best


def _evenly(asked: float, used: float, attempt: Callable[[float], Made | Short]) -> list[tuple[float, Made]]:
    """The square root as the intermediate, unless that is about what was tried."""
    even = math.sqrt(asked)
    if max(even / used, used / even) < _APART:
        return []
    got = attempt(even)
    return [(even, got)] if isinstance(got, Made) else []


def _nearest(asked: float, made: list[tuple[float, Made]], best: float, bench: Bench) -> Made:
    """What loses least on feeds held out from calibration."""
    if not made:
        best = min(best, math.nextafter(asked, 0))  # a product of two measurements, and it was not enough
        raise InfeasibleTarget(f"{asked:g}x is out of reach of both, one after the other", best=best)
    return min((m for _, m in made), key=lambda m: bench.lost(m.data))
