"""What a candidate will lose once it has been finished: its weights refitted, its rounding made up for.

Candidates are judged before that, which takes too long for each. What finishing mends differs from network to network
and with how much there is to mend, so what one candidate tells is believed of candidates that lose about as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST = 0.2
_REACH = math.log(3)
"""Natural logarithm of the factor between two losses beyond which little of what one tells holds for the other."""
_NOTICEABLE = 0.1
"""Share of a candidate's loss: of a part that is less, nothing can be told from how it shrinks."""


@dataclass(frozen=True)
class Repair:
    """free: what is left by the refit of the loss `at` of passes that leave weights free; rounded: the share that is
    left of what rounding adds. Losses are divergences."""

    free: float = 1.0
    at: float = 1.0
    rounded: float = 1.0

    @classmethod
    def measured(cls, free: float, whole: float, refitted: float, finished: float) -> Repair:
        """From one candidate: its loss without rounding and with all, before (free, whole) and after (refitted,
        finished). Where one part is hardly anything of the whole, nothing is known of it."""
        left, rounded = 1.0, 1.0
        if free > _NOTICEABLE * whole:
            left = min(max(refitted / free, _LEAST), 1.0)
        if whole - free > _NOTICEABLE * whole:
            rounded = min(max((finished - refitted) / (whole - free), _LEAST), 1.0)
        return cls(left, max(free, 1e-12), rounded)

    def refitted(self, free: float) -> float:
        """The loss to expect after the refit of a candidate that loses `free` without rounding."""
        if free <= 0:
            return free
        away = math.log(free / self.at) / _REACH
        return free * self.free ** math.exp(-(away**2) / 2)

    def finished(self, free: float, whole: float) -> float:
        """The loss to expect of a finished candidate that loses `free` without rounding and `whole` with it."""
        return max(self.refitted(free) + self.rounded * (whole - free), 0.0)
