"""What several tools do: compile a task of models/, run what came out, say how good it is, and keep rows of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from graphprune.backends import open_backend
from graphprune.compiler import Compiler
from graphprune.driver import compiler
from graphprune.errors import GraphpruneError, UsageError
from graphprune.files import atomic_write
from graphprune.progress import Progress
from graphprune.target import Target
from models.task import Run, Task

WIDE = 132
"""Columns of a table that is not printed to a terminal."""
Row = dict[str, Any]
_KEY = ("task", "method", "asked", "samples", "limit", "seed", "threads", "host")


class Rows:
    """The rows of a JSON file: measured once for the same settings, written after every new one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def find(self, key: Row) -> Row | None:
        return next((r for r in self.all if all(r[name] == key[name] for name in _KEY)), None)

    def put(self, row: Row) -> None:
        """Add a row, in place of one of the same settings."""
        old = self.find(row)
        self.all = [r for r in self.all if r is not old] + [row]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, (json.dumps(self.all, indent=1) + "\n").encode())


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a tool and exit with its code; an error of ours is one message and its own code."""
    try:
        sys.exit(main())
    except GraphpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def compiler_of(task: Task, samples: int, *, threads: int, seed: int, progress: Progress, **options: Any) -> Compiler:
    """The task's model, calibrated on its first `samples` samples and priced on this host."""
    return compiler(task.model(), calibration=task.calibration(samples), shapes=task.shapes, threads=threads, seed=seed,
                    progress=progress, **options)  # fmt: skip


def run_of(model: Any, threads: int = 1) -> Run:
    """Run a model, bytes or path, in the runtime that it was compiled for."""
    loaded = open_backend("host", threads).load(model)
    return lambda feed: loaded.run(feed)


def quality(task: Task, model: Any, limit: int | None = None, threads: int = 1) -> dict[str, float]:
    """The task's metrics of a model on samples that it was not calibrated on."""
    return task.evaluate(run_of(model, threads), limit)


def factors(text: str) -> list[float]:
    """`1.3,1.5x,2` as numbers, ascending. Raises UsageError as `--target-speedup` does."""
    found = set()
    for part in text.split(","):
        value = Target.parse(part if part.strip().endswith("x") else f"{part}x").speedup
        if value is None:
            raise UsageError(f"{part!r} is not a speed-up", fix="write factors as 1.5,2,3")
        found.add(value)
    return sorted(found)


def factors_option(text: str) -> list[float]:
    """`factors` for argparse, whose error messages it uses."""
    try:
        return factors(text)
    except GraphpruneError as error:
        raise argparse.ArgumentTypeError(error.what) from error


def seeds_option(text: str) -> list[int]:
    """`0,1,2` for argparse, ascending."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError("write seeds as 0,1,2") from None


def console() -> Console:
    """Standard output; colours only on a terminal, and lines long enough for a table elsewhere."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = WIDE
    return out


def table(*columns: str, left: Sequence[str] = ()) -> Table:
    """An empty table of right-aligned columns, except those named in `left`."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return made
