"""The way to a time: what is asked next, with prices that are given."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.approach import Approach

LEVELS = {"a": [1, 2, 3, 4], "b": [0, 1]}


class Prices:
    """By level of site a, in ms."""

    def __init__(self, *ms: float) -> None:
        self.ms = ms

    def predict(self, levels) -> SimpleNamespace:
        return SimpleNamespace(ms=self.ms[levels["a"] - 1])


def tried(*candidates: tuple[int, float], predicted: float = 50.0) -> Approach:
    """An approach to 50 ms that has tried these levels of a, with what they took."""
    approach = Approach(LEVELS, 50.0)
    for level, ms in candidates:
        approach.learn({"a": level, "b": 1}, predicted, ms)
    return approach


def test_at_first_all_levels_are_asked_a_little_more_than_is_wanted() -> None:
    question = tried().question(Prices(1, 2, 3, 4))
    assert question.levels == LEVELS and question.start is None and question.afresh
    assert question.budget_ms == pytest.approx(50 / 1.02)


def test_more_is_asked_for_each_candidate_that_fell_short() -> None:
    for n, aim in ((1, 1.03), (2, 1.04), (3, 1.05), (9, 1.05)):
        approach = tried(*[(1, 52.0)] * n, predicted=52.0)
        assert approach.question(Prices(52)).budget_ms == pytest.approx(50 / aim)
    assert tried((1, 40.0)).question(Prices(40)).budget_ms == pytest.approx(50 / 1.02)  # too fast is not short


@pytest.mark.parametrize(("kept", "asked"), [(1.0, 1.0), (0.5, 2.0), (0.1, 1 / 0.3), (3.0, 1.0)])
def test_of_steps_up_as_much_more_is_asked_for_as_was_lost_of_those_before(kept: float, asked: float) -> None:
    approach = tried((1, 70.0))
    approach.learn({"a": 2, "b": 1}, 66.0, 70.0 * (66 / 70) ** kept)
    near = approach.nearest
    assert near.ms > 50
    assert math.log(near.ms / approach.question(Prices(70, 65)).budget_ms) == pytest.approx(
        asked * math.log(near.ms / 50 * 1.04))  # fmt: skip


def test_the_nearest_is_stayed_at() -> None:
    question = tried((1, 70.0), (2, 60.0), (3, 65.0)).question(Prices(70, 60, 65))
    assert question.start == {"a": 2, "b": 1} and question.levels == LEVELS and not question.afresh


def test_a_candidate_that_is_slower_once_finished_counts_as_that() -> None:
    approach = tried((1, 49.0), (2, 30.0))
    approach.correct({"a": 1, "b": 1}, 51.0)
    assert approach.nearest.ms == 51.0 and len(approach.tried) == 2
    assert approach.question(Prices(49.0, 30.0)).budget_ms == pytest.approx(30 + (50 / 1.015 - 30) * 19 / 21)


def test_between_two_sides_there_are_only_their_levels_and_prices_are_right_at_both() -> None:
    approach = tried((1, 40.0), (4, 60.0), (2, 30.0), (3, 70.0))
    question = approach.question(Prices(10.0, 0.0, 99.0, 20.0))  # 10 ms of prices are 20 ms of the clock
    assert question.levels == {"a": [1, 4], "b": [1]} and question.start is None and not question.afresh
    assert question.budget_ms == pytest.approx(10.0 + (50 / 1.015 - 40) / 2)


def test_prices_that_have_the_two_sides_the_other_way_round_are_of_no_use_between_them() -> None:
    question = tried((1, 40.0), (4, 58.0)).question(Prices(20.0, 0.0, 0.0, 10.0))
    assert question.levels == LEVELS and question.start == {"a": 4, "b": 1}


@given(st.lists(st.floats(20, 120), min_size=1, max_size=6), st.floats(0.3, 1.0))
def test_the_budget_lies_between_the_sides_or_beyond_the_only_one(times: list[float], kept: float) -> None:
    approach = Approach({"a": list(range(1, 8))}, 50.0)
    for i, ms in enumerate(times):
        approach.learn({"a": i + 1}, ms * kept, ms)
    budget = approach.question(Prices(*times)).budget_ms
    aim = 50 / 1.015
    slower, faster = [t for t in times if t > aim], [t for t in times if t <= aim]
    if slower and faster:
        assert max(faster) <= budget <= min(slower)
    else:
        assert budget <= 50 / 1.02 * 1.0001
