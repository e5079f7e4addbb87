"""What finishing is expected to mend, from one candidate that was finished."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.repair import Repair

LOSS = st.floats(1e-6, 1.0)


@given(LOSS, LOSS, st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_the_measured_candidate_is_told_exactly(free: float, rounding: float, left: float, kept: float) -> None:
    whole, refitted = free + rounding, left * free
    repair = Repair.measured(free, whole, refitted, refitted + kept * rounding)
    if min(free, rounding) > 0.2 * whole:
        assert repair.finished(free, whole) == pytest.approx(refitted + kept * rounding)
        assert (repair.free, repair.rounded) == pytest.approx((left, kept))
    else:
        assert repair.finished(free, whole) <= whole * 1.0001


@pytest.mark.parametrize(("free", "whole", "refitted", "finished", "expected"), [
    (0.0, 1.0, 0.0, 0.5, (0.5, 0.5)),
    (1.0, 1.0, 0.25, 0.25, (0.25, 0.25)),
    (0.0, 0.0, 0.0, 0.0, (1.0, 1.0)),
    (0.5, 1.0, 0.5, 5.0, (1.0, 2.0)),
    (0.5, 1.0, 0.25, 0.0, (0.5, 0.05)),
])  # fmt: skip
def test_what_one_candidate_cannot_tell_is_taken_from_the_other_part_and_nothing_is_beyond_reason(
    free, whole, refitted, finished, expected
) -> None:
    repair = Repair.measured(free, whole, refitted, finished)
    assert (repair.free, repair.rounded) == pytest.approx(expected)


@given(LOSS, LOSS, LOSS, LOSS, LOSS, LOSS)
def test_no_candidate_is_expected_to_lose_less_than_nothing(free, whole, refitted, finished, mine, all_of_it) -> None:
    assert Repair.measured(free, whole, refitted, finished).finished(mine, all_of_it) >= 0.0
