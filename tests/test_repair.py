"""What finishing is expected to mend, from one candidate that was finished."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.repair import Repair

LOSS = st.floats(1e-6, 1.0)


@given(st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.floats(0.3, 1.0), st.floats(0.1, 1.0))
def test_the_measured_candidate_is_told_exactly(free: float, rounding: float, left: float, kept: float) -> None:
    whole, refitted = free + rounding, left * free
    repair = Repair.measured(free, whole, refitted, refitted + kept * rounding)
    if min(free, rounding) > 0.2 * whole:
        assert repair.finished(free, whole) == pytest.approx(refitted + kept * rounding)
    else:
        assert repair.finished(free, whole) <= whole * 1.0001


@given(LOSS, st.floats(0.01, 0.9), st.floats(0.1, 0.9))
def test_small_damage_is_mended_more_than_large_and_a_model_that_says_nothing_not_at_all(
    loss: float, free: float, left: float
) -> None:
    repair = Repair.measured(free, 1.01 * free, left * free, left * free)
    assert repair.refitted(loss / 2) / (loss / 2) <= repair.refitted(loss) / loss * (1 + 1e-9)
    assert repair.refitted(1.0) == 1.0 and repair.refitted(0.0) == 0.0
    assert repair.refitted(1.7) == 1.7, "worse than a constant"


@pytest.mark.parametrize(("free", "whole", "refitted", "finished", "expected"), [
    (0.0, 0.5, 0.0, 0.25, (1.0, 0.5)),
    (0.25, 0.25, 0.0625, 0.0625, (2.0, 1.0)),
    (0.0, 0.0, 0.0, 0.0, (1.0, 1.0)),
    (0.5, 1.0, 0.5, 5.0, (1.0, 1.0)),
    (0.5, 1.0, 0.6, 0.0, (1.0, 0.05)),
    (0.5, 1.0, 1e-9, 0.5, (3.0, 1.0)),
    (2.0, 3.0, 1.0, 2.0, (1.0, 1.0)),
])  # fmt: skip
def test_what_one_candidate_cannot_tell_is_left_as_it_is_and_nothing_is_beyond_reason(
    free, whole, refitted, finished, expected
) -> None:
    repair = Repair.measured(free, whole, refitted, finished)
    assert (repair.power, repair.rounded) == pytest.approx(expected)


@given(LOSS, LOSS, LOSS, LOSS, LOSS, LOSS)
def test_no_candidate_is_expected_to_lose_less_than_nothing(free, whole, refitted, finished, mine, all_of_it) -> None:
    assert Repair.measured(free, whole, refitted, finished).finished(mine, all_of_it) >= 0.0
