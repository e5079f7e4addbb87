"""What a person sees while a long run works: bars with the time left on a terminal, single lines elsewhere, or nothing.

    with progress.stage("calibrate", total=n) as step:
        for feed in feeds:
            ...
            step()

The core takes any object of this shape; `Silent` is the one that shows nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

Step = Callable[..., None]
_SECONDS_BETWEEN_LINES = 15.0


class Progress(Protocol):
    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Step]:
        """A stage of `total` steps (None: unknown). Entering gives `step(n=1)`, which reports n more steps done."""

    def note(self, text: str) -> None:
        """One line worth keeping, such as what an attempt measured."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
        yield lambda n=1: None

    def note(self, text: str) -> None:
        pass


class Lines:
    """For logs: a line when a stage ends, and one now and then while it lasts. Stages may nest."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._depth = stream, clock, 0

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
        start = said = self._clock()
        done, depth = 0, self._depth

        def step(n: int = 1) -> None:
            nonlocal done, said
            done += n
            now = self._clock()
            if now - said >= _SECONDS_BETWEEN_LINES:
                said = now
                left = f" of {total}, about {seconds((now - start) / done * (total - done))} left" if total else ""
                self._line(depth, f"{name}: {done}{left}")

        self._depth += 1
        try:
            yield step
        finally:
            self._depth = depth
        self._line(depth, f"{name}: done in {seconds(self._clock() - start)}")

    def note(self, text: str) -> None:
        self._line(self._depth, text)

    def _line(self, depth: int, text: str) -> None:
        print("  " * depth + text, file=self._stream, flush=True)


class Bars:
    """For a terminal: a bar per stage with the time left; nested stages get a bar below their parent's."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False)
        self._live = None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
        outermost = self._live is None
        if outermost:
            self._live = self._bars()
            self._live.start()
        live = self._live
        task = live.add_task(("" if outermost else "  ") + name, total=total)
        try:
            yield lambda n=1: live.advance(task, n)
            done = live.tasks[live.task_ids.index(task)].completed
            live.update(task, total=max(done, 1), completed=max(done, 1))
        finally:
            if outermost:
                live.stop()
                self._live = None

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _bars(self):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(TextColumn("{task.description}", markup=False), BarColumn(bar_width=28), MofNCompleteColumn(),
                        TimeRemainingColumn(elapsed_when_finished=True), console=self._console)


def choose(quiet: bool = False, stream: TextIO | None = None) -> Silent | Lines | Bars:
    """The progress that fits `stream` (standard error): nothing if `quiet`, bars on a terminal, lines otherwise."""
    stream = stream or sys.stderr
    if quiet:
        return Silent()
    return Bars(stream) if stream.isatty() else Lines(stream)


def seconds(duration: float) -> str:
    """3.2 s, 41 s, 2 min 05 s."""
    if duration < 60:
        return f"{duration:.1f} s" if duration < 10 else f"{duration:.0f} s"
    return f"{int(duration) // 60} min {int(duration) % 60:02d} s"
