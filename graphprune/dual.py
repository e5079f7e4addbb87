"""The dual question: not the best model of a speed, but the fastest of a quality.

Owns the search over speed-ups. It works on anything that compiles for a target and is told how much a result lost; each
try is a whole compilation, all of them from one calibration and one set of prices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from graphprune.divergence import Reference, outputs_of
from graphprune.errors import InfeasibleTarget, UsageError
from graphprune.evaluate import Evaluation
from graphprune.prepare import loader
from graphprune.report import number
from graphprune.target import Target

if TYPE_CHECKING:
    from graphprune.compiler import Compiler
    from graphprune.result import Result

TRIES = 7
_START = 1.25
_STEP = 2.0
_FINE = math.log(1.03)
"""Natural logarithm of the factor between a speed-up that holds and one that does not at which the search ends: what
`Compiler.reach` delivers is not nearer to what it is asked for."""
_LEAST = math.log(1.01)
_BELOW = math.log(0.98)
"""Where a target is out of reach, the fastest model there is asked for again as this much less than it had."""
_AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class MaxDrop:
    """How much quality may go. `amount` is in the metric's own points, or where `relative` a share of the dense value.

    Of the divergence of outputs, which is a share already, both are the same: 1 % is 0.01.
    """

    amount: float
    relative: bool = False

    @classmethod
    def of(cls, given: str | float, *, metric: bool = True) -> MaxDrop:
        """`1%` is a share of the dense value, `0.01` or a number are points: of a metric, or else of the divergence.

        Raises UsageError for what is no amount, or would allow anything.
        """
        match = _AMOUNT.fullmatch(str(given)) if not isinstance(given, bool) else None
        if match is None:
            raise UsageError(f"{str(given)!r} is no amount of quality", at="--max-drop",
                             fix="write 1% for a hundredth of the dense value, or 0.01 for so many points")  # fmt: skip
        relative = match[2] == "%"
        found = cls(float(match[1]) / (100 if relative else 1), relative)
        if not math.isfinite(found.amount) or (relative and found.amount >= 1):
            raise UsageError(f"a drop of {found} leaves nothing", at="--max-drop", fix="allow less, as 1%")
        if not metric and found.amount >= 1:
            raise UsageError(f"a divergence of {found} is that of a model that says nothing", at="--max-drop",
                             fix="allow less, as 1%; points of a metric need --evaluate")  # fmt: skip
        return found

    def points(self, dense: float) -> float:
        """The largest drop allowed of a metric whose dense value is this."""
        return self.amount * abs(dense) if self.relative else self.amount

    def __str__(self) -> str:
        return f"{100 * self.amount:g}%" if self.relative else f"{self.amount:g}"


class Compiles(Protocol):
    """What the search needs of a compiler."""

    def reach(self, target: Target) -> Result: ...


@dataclass(frozen=True)
class Judge:
    """What a result lost, in the units of `allowed`; negative where it gained. `asked`: the budget in words."""

    lost: Callable[[Result], float]
    allowed: float
    asked: str


def judge(compiler: Compiler, budget: MaxDrop, evaluation: Evaluation | None = None) -> Judge:
    """Judge by the user's metric, or else by the divergence of outputs on feeds that nothing was fitted to."""
    if evaluation is not None:
        name, dense = evaluation.headline(compiler.dense_bytes)

        def drop(result: Result) -> float:
            return dense - evaluation.scores(result.data).get(name, math.nan)

        return Judge(drop, budget.points(dense), f"{budget} off {name}")
    load, feeds = loader(compiler.backend), compiler.data.holdout
    reference = Reference(outputs_of(load(compiler.prepared.source.model), feeds), compiler.kinds)

    def divergence(result: Result) -> float:
        return reference.divergence(outputs_of(load(result.data), feeds))

    return Judge(divergence, budget.amount, f"{budget} of output divergence")


@dataclass(frozen=True)
class Try:
    """One compilation of the search; `reached` and `lost` are None where the target was out of reach."""

    asked: float
    reached: float | None
    lost: float | None


@dataclass
class Bracket:
    """Where the answer can still lie, as natural logarithms of speed-ups. held: the fastest that holds, 0 for the dense
    model; failed: the slowest target that does not; tip: the fastest model there is, once that is known."""

    asked: float = math.log(_START)
    held: float = 0.0
    failed: float = math.inf
    tip: float = math.inf

    def hold(self, reached: float) -> float | None:
        """The target before was reached at this and holds. Returns the next target, None if there is nothing left."""
        self.held = max(self.held, self.asked, reached)
        return self._go_on()

    def fail(self) -> float | None:
        """The target before loses too much."""
        self.failed = min(self.failed, self.asked)
        return self._go_on()

    def stop(self, most: float) -> float | None:
        """The target before is out of reach: the fastest there is, which may yet hold, is asked for once."""
        first, self.tip = math.isinf(self.tip), min(self.tip, most)
        self.failed = min(self.failed, self.asked, most)
        if first and most + _BELOW - self.held > _FINE:
            self.asked = most + _BELOW
            return self.asked
        return self._go_on()

    def _go_on(self) -> float | None:
        if math.isinf(self.failed):
            self.asked = max(self.held, self.asked) + math.log(_STEP)
            return self.asked
        self.asked = (self.held + self.failed) / 2
        over = self.failed - self.held <= _FINE if self.held else self.asked < _LEAST
        return None if over else self.asked


def fastest(compiler: Compiles, judge: Judge, note: Callable[[str], None], tries: int = TRIES) -> Result:
    """The fastest result that loses at most what is allowed, in at most `tries` compilations.

    The speed-up asked for is doubled until one loses too much or is out of reach, then the gap is halved by its
    logarithm. A measured quality need not fall evenly: of all that was built, the fastest that holds is given. Raises
    InfeasibleTarget where not even the least compression holds, with the least loss that was seen.
    """
    done: list[Try] = []
    holding: list[Result] = []
    unreachable: InfeasibleTarget | None = None
    bracket = Bracket()
    asked: float | None = bracket.asked
    while asked is not None and len(done) < tries:
        target, said = math.exp(asked), f"try {len(done) + 1}: asked for {math.exp(asked):.3g}x"
        try:
            result = compiler.reach(Target(speedup=target))
        except InfeasibleTarget as error:
            unreachable = error
            done.append(Try(target, None, None))
            note(f"{said}, out of reach: the most is {error.best:.2f}x")
            asked = bracket.stop(math.log(max(error.best, 1.0)))
            continue
        reached, lost = result.report.reached.speedup, judge.lost(result)
        holds = lost <= judge.allowed
        done.append(Try(target, reached, lost))
        note(f"{said}, reached {reached:.2f}x, lost {number(lost)} of {number(judge.allowed)} allowed: "
             f"{'holds' if holds else 'too much'}")  # fmt: skip
        if holds:
            holding.append(result)
        asked = bracket.hold(math.log(reached)) if holds else bracket.fail()
    if holding:
        return _asked_for(max(holding, key=lambda r: r.report.reached.speedup), judge)
    raise _nothing_holds(done, judge, unreachable)


def _asked_for(result: Result, judge: Judge) -> Result:
    """The result with what was really asked for in its report, in place of the last speed-up tried."""
    asked = replace(result.report.asked, target=f"at most {judge.asked}", target_speedup=None)
    return replace(result, report=replace(result.report, asked=asked))


def _nothing_holds(done: Sequence[Try], judge: Judge, unreachable: InfeasibleTarget | None) -> InfeasibleTarget:
    built = [t for t in done if t.lost is not None and math.isfinite(t.lost)]
    if not built:
        return unreachable or InfeasibleTarget(
            "no compression of this model gives finite outputs", fix="check the data and what --evaluate gives"
        )
    least = min(built, key=lambda t: t.lost)
    return InfeasibleTarget(
        f"no faster model was found that loses at most {judge.asked}",
        best=1.0,
        at=f"the least of {len(done)} tries: {number(least.lost)} lost at {least.reached:.2f}x, where "
        f"{number(judge.allowed)} is allowed",
        fix=f"allow a loss of {number(least.lost)} or more, give more calibration data, or allow more passes",
    )
