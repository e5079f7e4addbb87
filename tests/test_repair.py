"""What finishing is expected to mend, from one candidate that was finished."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.repair import Repair

LOSS = st.floats(1e-6, 1.0)


@given(st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.floats(0.2, 1.0), st.floats(0.2, 1.0))
def test_the_measured_candidate_is_told_exactly(free: float, rounding: float, left: float, kept: float) -> None:
    whole, refitted = free + rounding, left * free
    repair = Repair.measured(free, whole, refitted, refitted + kept * rounding)
    if min(free, rounding) > 0.2 * whole:
        assert repair.finished(free, whole) == pytest.approx(refitted + kept * rounding)
    else:
        assert repair.finished(free, whole) <= whole * 1.0001


@given(LOSS, st.floats(1.0, 1e4), st.floats(0.2, 0.9))
def test_of_candidates_that_lose_much_more_or_less_nothing_is_known(at: float, away: float, left: float) -> None:
    repair = Repair(left, at)
    for loss in (at * away, at / away):
        assert left * loss <= repair.refitted(loss) * 1.0001 and repair.refitted(loss) <= loss
        if away > 30:
            assert repair.refitted(loss) > 0.98 * loss
    assert repair.refitted(0.0) == 0.0


@given(LOSS, st.floats(0.2, 1.0), LOSS, st.floats(1.0, 100.0))
def test_what_loses_more_is_expected_to_lose_more(at: float, left: float, loss: float, more: float) -> None:
    repair = Repair(left, at)
    assert repair.refitted(loss) <= repair.refitted(loss * more) * (1 + 1e-9)


@pytest.mark.parametrize(("free", "whole", "refitted", "finished", "expected"), [
    (0.0, 0.5, 0.0, 0.25, (1.0, 0.5)),
    (0.25, 0.25, 0.1, 0.1, (0.4, 1.0)),
    (0.0, 0.0, 0.0, 0.0, (1.0, 1.0)),
    (0.5, 1.0, 0.5, 5.0, (1.0, 1.0)),
    (0.5, 1.0, 0.6, 0.0, (1.0, 0.2)),
    (0.5, 1.0, 1e-9, 0.5, (0.2, 1.0)),
])  # fmt: skip
def test_what_one_candidate_cannot_tell_is_left_as_it_is_and_nothing_is_beyond_reason(
    free, whole, refitted, finished, expected
) -> None:
    repair = Repair.measured(free, whole, refitted, finished)
    assert (repair.free, repair.rounded) == pytest.approx(expected)


@given(LOSS, LOSS, LOSS, LOSS, LOSS, LOSS)
def test_no_candidate_is_expected_to_lose_less_than_nothing(free, whole, refitted, finished, mine, all_of_it) -> None:
    assert Repair.measured(free, whole, refitted, finished).finished(mine, all_of_it) >= 0.0
