"""What a candidate will lose once it has been finished: its weights refitted, its rounding made up for.

Candidates are judged before that, which takes too long for each. But refitting mends what pruning does more than what
few bits do, and small damage more than large, so that they could not be compared without knowing this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST = 0.05
_MOST_POWER = 3.0
_NOTICEABLE = 0.1
"""Share of a candidate's loss: of a part that is less, nothing can be told from how it shrinks."""


@dataclass(frozen=True)
class Repair:
    """Losses are divergences: 0 of an equal model, 1 of a constant one.

    power: a loss l of passes that leave weights free is l^power after the refit: nothing is mended of a model that says
    nothing, and the more the less there is. rounded: the share that is left of what rounding adds.
    """

    power: float = 1.0
    rounded: float = 1.0

    @classmethod
    def measured(cls, free: float, whole: float, refitted: float, finished: float) -> Repair:
        """From one candidate: its loss without rounding and with all, before (free, whole) and after (refitted,
        finished). Where one part is hardly anything of the whole, nothing is known of it."""
        power, rounded = 1.0, 1.0
        if _NOTICEABLE * whole < free < 1 and 0 < refitted < free:
            power = min(math.log(refitted) / math.log(free), _MOST_POWER)
        if whole - free > _NOTICEABLE * whole:
            rounded = min(max((finished - refitted) / (whole - free), _LEAST), 1.0)
        return cls(power, rounded)

    def refitted(self, free: float) -> float:
        """The loss to expect after the refit of a candidate that loses `free` without rounding."""
        return free**self.power if 0 < free < 1 else free

    def finished(self, free: float, whole: float) -> float:
        """The loss to expect of a finished candidate that loses `free` without rounding and `whole` with it."""
        return max(self.refitted(free) + self.rounded * (whole - free), 0.0)
