"""The demo: compile PP-OCRv4 text recognition for this machine, as fast as its reading stays as good as it was.

    python -m tools.demo [--out out] [--speedups 1.3,1.5,2] [--samples 240] [--strings 300]

One calibration on rendered text and one set of measured prices serve every factor; each model is then judged on other
strings. The largest factor that loses at most 2 points of character accuracy is written to --out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import models
from graphprune.compiler import Compiler
from graphprune.errors import InfeasibleTarget
from graphprune.progress import choose, seconds
from graphprune.report import Metric, count, milliseconds, percent, size_text, spread_text
from graphprune.result import Result
from graphprune.target import Target
from models.task import Task
from tools.shared import compiler_of, console, exit_with, factors_option, quality, table

TOLERANCE = 0.02
"""Loss of character accuracy that is accepted."""
_MEANING = {"characters": "1 - edit distance / length, on rendered strings it was not calibrated on",
            "strings": "share of those strings read without a fault"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One factor: its result with its quality, or the largest factor reached where it is out of reach."""

    asked: float
    result: Result | None = None
    quality: dict[str, float] | None = None
    best: float = 1.0

    def holds(self, dense: dict[str, float]) -> bool:
        """Whether it was reached, and reads within the tolerance as well as the dense network."""
        return self.quality is not None and self.quality["characters"] >= dense["characters"] - TOLERANCE


def attempt(compiler: Compiler, task: Task, asked: float, strings: int) -> Row:
    try:
        result = compiler.reach(Target(speedup=asked))
    except InfeasibleTarget as error:
        return Row(asked, best=error.best)
    return Row(asked, result, quality(task, result.data, strings))


def search(factors: list[float], attempt: Callable[[float], Row], dense: dict[str, float]) -> list[Row]:
    """Rows of the factors tried, ascending; the last one that holds is the answer.

    By bisection, as a faster model is never the better one: two of three factors are compiled.
    """
    rows: list[Row] = []
    low, high = 0, len(factors)
    while low < high:
        middle = (low + high) // 2
        rows.append(attempt(factors[middle]))
        low, high = (middle + 1, high) if rows[-1].holds(dense) else (low, middle)
    return sorted(rows, key=lambda row: row.asked)


def with_quality(result: Result, dense: dict[str, float], have: dict[str, float]) -> Result:
    """The result with recognition accuracy in its report."""
    rows = tuple(Metric(name, have[name], _MEANING[name], dense[name]) for name in _MEANING)
    return replace(result, report=replace(result.report, quality=rows + result.report.quality))


def print_rows(rows: list[Row], dense: dict[str, float], best: Row | None) -> None:
    made = table("asked", "measured", "ms before", "ms after", "parameters", "file", "characters", "strings", "",
                 left=("",))  # fmt: skip
    first = next((r.result.report for r in rows if r.result), None)
    if first:
        made.add_row(
            "dense", "1.00x", milliseconds(first.reached.dense_ms), "", count(first.size.parameters_before),
            size_text(first.size.bytes_before), percent(dense["characters"]), percent(dense["strings"]), "",
        )  # fmt: skip
    for row in rows:
        if row.result is None or row.quality is None:
            made.add_row(f"{row.asked:g}x", "-", "", "", "", "", "", "", f"out of reach: the most is {row.best:.2f}x")
            continue
        r, s = row.result.report.reached, row.result.report.size
        lost = dense["characters"] - row.quality["characters"]
        word = "<- chosen" if row is best else "" if row.holds(dense) else f"loses {100 * lost:.1f} points"
        made.add_row(
            f"{row.asked:g}x", f"{r.speedup:.2f}x {spread_text(r.speedup_spread)}",
            f"{milliseconds(r.dense_ms)} {spread_text(r.dense_spread)}",
            f"{milliseconds(r.ms)} {spread_text(r.spread)}", count(s.parameters_after), size_text(s.bytes_after),
            percent(row.quality["characters"]), percent(row.quality["strings"]), word,
            style="bold green" if row is best else None,
        )  # fmt: skip
    console().print(made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the chosen model and its report")
    parser.add_argument("--speedups", type=factors_option, default="1.3,1.5,2", help="factors to try")
    parser.add_argument("--passes", default="width", help="width alone takes minutes; depth,width,low-rank,quantise "
                        "go further at the same quality and take longer")
    parser.add_argument("--samples", type=int, default=240, help="rendered lines to calibrate on")
    parser.add_argument("--strings", type=int, default=300, help="other rendered lines to judge on (at most 600)")
    parser.add_argument("--threads", type=int, default=1, help="threads that the model will run on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, progress, out = time.monotonic(), choose(), console()
    task = models.get("pp_rec")
    out.print(f"PP-OCRv4 text recognition, one line of text of 48 x 320 pixels, {options.threads} thread(s): "
              f"{', '.join(f'{x:g}x' for x in options.speedups)} asked for", soft_wrap=True)  # fmt: skip
    with progress.stage("judge the dense network"):
        dense = quality(task, task.model(), options.strings)
    shared = compiler_of(task, options.samples, threads=options.threads, seed=options.seed, progress=progress,
                         passes=options.passes)  # fmt: skip

    def tried(asked: float) -> Row:
        progress.note(f"{asked:g}x, {seconds(time.monotonic() - started)} after the start")
        return attempt(shared, task, asked, options.strings)

    rows = search(options.speedups, tried, dense)
    best = max((row for row in rows if row.holds(dense)), key=lambda row: row.asked, default=None)
    out.print()
    print_rows(rows, dense, best)
    if skipped := [f"{x:g}x" for x in options.speedups if x not in {row.asked for row in rows}]:
        out.print(f"not tried, as the others decide it: {', '.join(skipped)}")
    out.print(f"\naccuracy on {options.strings} rendered strings that were not calibrated on; times from interleaved "
              f"runs, ± half the 80 % interval; all in {seconds(time.monotonic() - started)}", soft_wrap=True)
    left = best or next((row for row in rows if row.result), None)
    if best is None:
        out.print(f"no factor keeps character accuracy within {100 * TOLERANCE:g} points", style="bold red")
    if left and left.result and left.quality:
        with_quality(left.result, dense, left.quality).save(options.out)
        names = ", ".join(sorted(path.name for path in options.out.iterdir()))
        out.print(f"the {left.asked:g}x model is in {options.out}: {names}", soft_wrap=True)
    return 0 if best else InfeasibleTarget.exit_code


if __name__ == "__main__":
    exit_with(main)
