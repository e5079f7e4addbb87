"""Which of the candidates that it builds the closed loop takes, with speeds and losses that are given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from graphprune.closed_loop import Built, ClosedLoop
from graphprune.errors import InfeasibleTarget
from graphprune.progress import choose
from graphprune.target import Target, Timing

_DENSE_MS = 100.0


@dataclass
class Scripted(ClosedLoop):
    """Attempt i is built with level i, `measured[i]` times as fast as dense; finishing it gives `finally_[i]`, or the
    same. `losses[i]` is what it is expected to lose."""

    measured: list[float]
    losses: list[float] = field(default_factory=list)
    finally_: dict[int, float] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        cost = SimpleNamespace(dense_ms=_DENSE_MS)
        super().__init__(SimpleNamespace(cost=cost, full={"a": -1}, stage=choose(quiet=True).stage, device="host",
                                         progress=choose(quiet=True)), Target(speedup=2.0))  # fmt: skip
        self._levels: Iterator[int] = iter(range(len(self.measured)))
        self.aims: list[float] = []

    def _search(self, cost, budget_ms, n_evaluations, start=None):
        self.aims.append(_DENSE_MS / budget_ms / 2.0)
        return {"a": next(self._levels)}, True

    def _build(self, levels, cost):
        ms = _DENSE_MS / self.measured[levels["a"]]
        return Built(levels, {}, b"", ms, (Timing((_DENSE_MS,) * 3), Timing((ms,) * 3)))

    def _corrected(self, built, near):
        return self.compiler.cost

    def _repaired(self, built):
        return self._repair

    def _expected(self, built):
        return self.losses[built.levels["a"]] if self.losses else 0.0

    def _finish(self, built):
        i = built.levels["a"]
        self.finished.append(i)
        reached = SimpleNamespace(speedup=self.finally_.get(i, self.measured[i]), dense_ms=_DENSE_MS)
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


def test_out_of_reach_tells_the_most_that_was_measured() -> None:
    with pytest.raises(InfeasibleTarget) as caught:
        Scripted([1.5, 1.8, 1.9, 1.7, 1.6, 1.5, 1.5]).run()
    assert caught.value.best == pytest.approx(1.9)


def test_more_is_asked_for_after_each_attempt_that_falls_short_and_only_then() -> None:
    loop = Scripted([2.5, 1.98, 1.97, 2.2, 2.01])
    loop.run()
    assert loop.aims == pytest.approx([1.02, 1.02, 1.03, 1.04, 1.04])


@pytest.mark.parametrize(("kept", "asked"), [(1.0, 1.0), (0.5, 2.0), (0.1, 1 / 0.3), (3.0, 1.0)])
def test_of_steps_up_as_much_more_is_asked_for_as_was_lost_of_those_before(kept: float, asked: float) -> None:
    """Prices promise what is asked for; what is measured is a share of the step from what came nearest."""
    loop = Scripted([2.5, 1.6, 1.6, 2.01])
    loop.run()  # makes the aims of what has not fallen short by much
    near = loop._build({"a": 1}, None)
    loop.attempts, loop._kept = [], []
    loop._learn(near, 1.8, 1.6 * (1.8 / 1.6) ** kept)
    assert math.log(loop._asked(2.0, near) / 1.6) == pytest.approx(asked * math.log(1.02 * 2.0 / 1.6))
    assert loop._asked(1.5, near) == pytest.approx(1.02 * 1.5)  # a step down is taken at its word
