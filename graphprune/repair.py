"""How much of what a candidate loses is still lost when it has been finished: its weights refitted, its rounding made
up for. Candidates are judged before that, which takes too long for each; and as refitting mends what pruning does far
more than what few bits do, they could not be compared without knowing this."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST, _MOST = 0.05, 2.0
_NOTICEABLE = 0.1
"""Share of a candidate's loss: of a part that is less, nothing can be told from how it shrinks."""


@dataclass(frozen=True)
class Repair:
    """free: what is left of the loss of passes that leave weights free; rounded: of what rounding adds to it."""

    free: float = 1.0
    rounded: float = 1.0

    @classmethod
    def measured(cls, free: float, whole: float, refitted: float, finished: float) -> Repair:
        """From one candidate: its loss without rounding and with all, before (free, whole) and after (refitted,
        finished). Where one part is hardly anything of the whole, it is taken to be mended like the other."""
        parts = [(refitted, free), (finished - refitted, whole - free)]
        known = [min(max(after / before, _LEAST), _MOST) if before > _NOTICEABLE * whole else None
                 for after, before in parts]  # fmt: skip
        first, second = known
        if first is None or second is None:
            first = second = next((k for k in known if k is not None), 1.0)
        return cls(first, second)

    def finished(self, free: float, whole: float) -> float:
        """The loss to expect of a finished candidate that loses `free` without rounding and `whole` with it."""
        return max(self.free * free + self.rounded * (whole - free), 0.0)
