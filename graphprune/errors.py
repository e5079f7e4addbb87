"""The one tree of errors a user can meet: what happened, where, how to fix it, and the exit code of its kind.

A `GraphpruneError` is the user's to act on. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations


class GraphpruneError(Exception):
    """Base of all errors meant for people.

    what: one sentence; at: the file, node, option or array concerned; fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, at: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.at, self.fix = what, at, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.at:
            lines.append(f"  at:  {self.at}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UsageError(GraphpruneError):
    """An option, an argument or calibration data that does not fit the model."""

    exit_code = 2


class ModelError(GraphpruneError):
    """The file is not a model we can compile: unreadable, invalid, or beyond what any rule covers."""

    exit_code = 3


class InfeasibleTarget(GraphpruneError):
    """The model cannot be made that fast by the passes allowed; `best` is the largest factor reached."""

    exit_code = 4

    def __init__(self, what: str, *, best: float = 1.0, at: str = "", fix: str = "") -> None:
        super().__init__(what, at=at, fix=fix)
        self.best = best


class EnvironmentFault(GraphpruneError):
    """The machine said no: a full disk, a missing package, a runtime that fails to load a valid model."""

    exit_code = 5
