"""Which of the candidates that it builds the closed loop takes, with speeds and losses that are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from graphprune.closed_loop import Built, ClosedLoop
from graphprune.errors import InfeasibleTarget
from graphprune.progress import choose
from graphprune.standing import Standing, preference, standing
from graphprune.target import Ratio, Target, Timing

_DENSE_MS = 100.0


@dataclass
class Scripted(ClosedLoop):
    """Attempt i is built with level i, `measured[i]` times as fast as dense; finishing it gives `finally_[i]`, or the
    same. `losses[i]` is what it is expected to lose; `spread` is that of every measurement."""

    measured: list[float]
    losses: list[float] = field(default_factory=list)
    finally_: dict[int, float] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    always: int | None = None
    spread: float = 0.0

    def __post_init__(self) -> None:
        cost = SimpleNamespace(dense_ms=_DENSE_MS, predict=self._predict)
        cost.correct = lambda factor: cost
        levels = {"a": range(len(self.measured))}
        super().__init__(SimpleNamespace(cost=cost, levels=levels, full={"a": -1}, stage=choose(quiet=True).stage,
                                         device="host", progress=choose(quiet=True)), Target(speedup=2.0))  # fmt: skip
        self._next: Iterator[int] = iter(range(len(self.measured)))

    def _predict(self, levels):
        return SimpleNamespace(ms=_DENSE_MS / self.measured[levels["a"]])

    def _search(self, cost, question, n_evaluations):
        return {"a": self.always if self.always is not None else next(self._next)}, True

    def _build(self, levels, cost):
        ms = _DENSE_MS / self.measured[levels["a"]]
        rounds = tuple(ms / (1 + self.spread * at) for at in (-1, 0, 1))  # under five, the interval is the range
        return Built(levels, {}, b"", ms, (Timing((_DENSE_MS,) * 3), Timing(rounds)))

    def _corrected(self, built, near):
        return self.compiler.cost

    def _repaired(self, built):
        return self._repair

    def _expected(self, built):
        return self.losses[built.levels["a"]] if self.losses else 0.0

    def _finish(self, built):
        i = built.levels["a"]
        self.finished.append(i)
        ratio = Ratio(self.finally_.get(i, self.measured[i]), self.spread)
        reached = SimpleNamespace(speedup=ratio.value, ratio=ratio, dense_ms=_DENSE_MS)
        return SimpleNamespace(report=SimpleNamespace(reached=reached), taken=i)

    def _obstacle(self):
        return "nowhere"


@pytest.mark.parametrize(("measured", "losses", "finally_", "finished"), [
    ([2.02, 2.04], [], {}, [1]),  # the first is made with prices that nothing has checked
    ([2.5, 2.12, 2.05], [2, 1, 0], {}, [2]),  # inside the window, but not close: something nearer is looked for
    ([2.5, 2.12, 2.05], [2, 1, 3], {}, [1]),  # the faster one is expected to lose less
    ([2.5, 2.12, 2.13, 2.14, 2.0], [9, 3, 1, 2, 0], {}, [2]),  # three are enough
    ([2.5, 1.9, 2.3, 1.95, 2.01], [], {}, [4]),
    ([2.5, 2.03, 2.02], [], {1: 1.99}, [1, 2]),  # measured as it will be written it is too slow
    ([2.5, 2.03, 2.02], [], {1: 2.2}, [1, 2]),
    ([2.5, 1.9, 2.12, 1.9, 1.9, 1.9, 2.14], [9, 9, 2, 9, 9, 9, 1], {}, [6]),  # no attempts are left
    ([2.5, 1.9, 2.12, 1.9, 1.9, 1.9, 2.14], [9, 9, 2, 9, 9, 9, 1], {6: 1.9}, [6, 2]),
    ([2.5, 1.9, 1.9, 2.2, 1.9, 1.9, 1.9], [], {}, [3]),  # nothing is inside: the least that is beyond
    ([2.5, 2.12, 1.9, 2.2, 1.9, 1.9, 1.9], [], {1: 1.9}, [1, 3]),
])  # fmt: skip
def test_the_one_that_is_taken(measured, losses, finally_, finished) -> None:
    loop = Scripted(measured, losses, finally_)
    assert loop.run().taken == finished[-1]
    assert loop.finished == finished


@pytest.mark.parametrize(("measured", "losses", "finally_", "finished"), [
    ([2.5, 2.01, 2.05], [0, 0, 1], {}, [2]),  # 2.01 is no more than 1.99 at the lower end
    ([2.5, 2.05, 2.04], [], {1: 2.01}, [1, 2]),
    ([2.5, 2.05, 1.9, 1.9, 2.01, 1.9, 1.9], [], {1: 1.99}, [1, 4]),  # what may hold goes before what is far too fast
    ([2.5, 2.01, 2.015, 1.9, 1.9, 1.9, 1.9], [], {}, [2]),  # the fastest of those that may
    ([2.5, 2.01, 1.9, 1.9, 1.9, 1.9, 1.9], [], {1: 1.99}, [1, 0]),
])  # fmt: skip
def test_what_cannot_be_told_from_the_target_is_taken_if_nothing_surely_holds_it(measured, losses, finally_,
                                                                                 finished) -> None:  # fmt: skip
    loop = Scripted(measured, losses, finally_, spread=0.01)
    assert loop.run().taken == finished[-1]
    assert loop.finished == finished


@pytest.mark.parametrize(("over", "stands"), [
    (Ratio(1.0, 0.0), Standing.SURE), (Ratio(1.08, 0.0), Standing.SURE), (Ratio(1.005, 0.01), Standing.DOUBTFUL),
    (Ratio(1.2, 0.3), Standing.BEYOND), (Ratio(0.999, 0.01), Standing.SHORT),
    (Ratio(1.005, 0.06, "analytic"), Standing.SURE),  # a prediction is no promise, its interval is much wider
])  # fmt: skip
def test_how_a_speed_up_stands_to_the_target(over: Ratio, stands: Standing) -> None:
    assert standing(over) is stands


def test_of_what_is_fast_enough_the_slowest_is_preferred_and_of_what_may_not_be_the_fastest() -> None:
    ratios = [Ratio(v, 0.01) for v in (0.98, 0.99, 1.2, 1.1, 1.004, 1.008, 1.05, 1.02)]
    ranked = sorted(ratios, key=lambda r: preference(standing(r), r))
    assert [r.value for r in ranked] == [1.02, 1.05, 1.008, 1.004, 1.1, 1.2, 0.99, 0.98]


def test_out_of_reach_tells_the_most_that_was_measured() -> None:
    with pytest.raises(InfeasibleTarget) as caught:
        Scripted([1.5, 1.8, 1.9, 1.7, 1.6, 1.5, 1.5]).run()
    assert caught.value.best == pytest.approx(1.9)


def test_nothing_is_built_twice() -> None:
    loop = Scripted([1.9], always=0)
    with pytest.raises(InfeasibleTarget):
        loop.run()
    assert len(loop.attempts) == 2
