"""Times of several things taken in turns, A B A B, for as long as it takes to be sure of their ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from graphprune.target import Timing, median_spread, speedup

_FEWEST = 3
"""Rounds there must be, however long they take."""


def in_turns(
    takes: Sequence[Callable[[], float]], *, started: float, min_rounds: int, min_seconds: float,
    max_seconds: float, spread: float,
) -> list[Timing]:  # fmt: skip
    """The times in ms that `takes` give, each called once a round; see `base.Backend.measure` for when it ends.

    started: the `time.perf_counter` from which seconds count.
    """
    rounds: list[list[float]] = [[] for _ in takes]
    while True:
        # every other round runs backwards, so that nothing is always the one after the same neighbour
        done = len(rounds[0])
        for i in range(len(takes)) if done % 2 == 0 else reversed(range(len(takes))):
            rounds[i].append(takes[i]())
        done, seconds = done + 1, time.perf_counter() - started
        timings = [Timing(tuple(r)) for r in rounds]
        if done >= _FEWEST and seconds >= max(min_seconds, max_seconds):
            return timings
        if done >= min_rounds and seconds >= min_seconds and _widest(timings) <= spread:
            return timings


def _widest(timings: Sequence[Timing]) -> float:
    if len(timings) == 1:
        return median_spread(timings[0].rounds_ms)
    return max(speedup(timings[0], other).spread for other in timings[1:])
