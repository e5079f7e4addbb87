"""Targets, and the arithmetic of timings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphprune.errors import UsageError
from graphprune.target import Target, Timing, median_spread, speedup


@pytest.mark.parametrize(
    ("text", "speed", "latency"),
    [("2x", 2, None), (" 1.5 X", 1.5, None), ("5ms", None, 5), ("5 ms", None, 5), ("0.8s", None, 800),
     ("50us", None, 0.05)],
)  # fmt: skip
def test_targets_parse(text, speed, latency):
    assert Target.parse(text) == Target(speed, latency)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("2", "did you mean 2x or 2ms?"),
        ("5msec", "did you mean 5ms?"),
        ("2times", "did you mean 2x or 2ms?"),
        ("50%", "did you mean 1.5x?"),
        ("fast", "write a speed-up as 2x or a latency as 5ms"),
        ("1x", "ask for more than 1x, as 2x"),
        ("0ms", "give a time above zero, as 5ms"),
    ],
)
def test_a_target_that_is_none_gets_the_nearest_meaning(text, fix):
    with pytest.raises(UsageError) as error:
        Target.parse(text)
    assert error.value.fix == fix


def test_the_budget_of_a_speed_up_is_a_share_of_the_dense_time():
    assert Target.parse("2x").budget_ms(10.0) == 5.0
    assert Target.parse("3ms").budget_ms(10.0) == 3.0


def test_paired_rounds_cancel_drift():
    drift = np.linspace(1, 3, 21)
    base, other = Timing(tuple(8.0 * drift)), Timing(tuple(4.0 * drift))
    assert speedup(base, other).value == pytest.approx(2.0)
    assert speedup(base, other).spread == pytest.approx(0.0, abs=1e-12)
    assert base.spread > 0.1


def test_rounds_of_different_measurements_do_not_pair():
    with pytest.raises(UsageError):
        speedup(Timing((1.0, 1.0)), Timing((1.0,)))


def test_the_spread_of_one_sample_is_unknown():
    assert median_spread([1.0]) == math.inf


def test_the_spread_covers_the_median_about_four_times_in_five():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        samples = rng.lognormal(0.0, 0.1, 25)  # true median 1
        half = median_spread(samples) * np.median(samples)
        hits += abs(np.median(samples) - 1.0) <= half
    assert 0.72 < hits / 2000 < 0.92
