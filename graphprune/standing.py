"""How a measured speed-up stands to the one asked for: what the closed loop goes on from, finishes and takes."""

from __future__ import annotations

from enum import IntEnum

from graphprune.target import Ratio

LOW, CLOSE, HIGH = 1.0, 1.03, 1.08
"""The window of accepted results, as shares of the target; up to CLOSE nothing nearer is looked for."""


class Standing(IntEnum):
    """The better, the smaller."""

    SURE = 0
    """Inside the window, and as fast as asked at the lower end of the interval, too."""
    DOUBTFUL = 1
    """Inside, but the measurement cannot tell it from the target."""
    BEYOND = 2
    """Faster than was asked by more than the window: more was given away than had to be."""
    SHORT = 3
    """Slower than asked."""


def standing(over: Ratio) -> Standing:
    """over: how many times the target a speed-up is."""
    if over.value < LOW:
        return Standing.SHORT
    if over.value > HIGH:
        return Standing.BEYOND
    return Standing.SURE if over.least >= LOW else Standing.DOUBTFUL


def preference(stands: Standing, over: Ratio) -> tuple[Standing, float]:
    """The least is the best: of what may be too slow the fastest, of what is fast enough the slowest."""
    may_be_slow = stands in (Standing.DOUBTFUL, Standing.SHORT)
    return stands, -over.value if may_be_slow else over.value
