"""How well the closed loop keeps its word: `python -m tools.bench_loop TASK [--target 1.5] [--runs 10]`.

Compiles the task's model again and again with different seeds and measures every result a second time, in a fresh
interleaved measurement against the file that it was made from. Prints measured / target of every run, and how many lie
in the window that the loop promises. A run may also end as `graphprune compile` would with exit code 4, saying how much
can be reached; such a run is kept apart. --share-prices reuses one calibration and one set of prices, which is quicker
but tells less.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

import models
from graphprune.backends import open_backend
from graphprune.compiler import Compiler
from graphprune.errors import InfeasibleTarget
from graphprune.progress import choose, seconds
from graphprune.standing import HIGH, LOW
from graphprune.target import Ratio, Target, speedup
from models.task import Task
from tools.shared import compiler_of, exit_with


def measured_again(compiler: Compiler, task: Task, data: bytes, threads: int, max_seconds: float) -> Ratio:
    """Speed-up of `data` over the task's own file, with sessions and rounds of its own."""
    timings = open_backend("host", threads).measure([Path(task.model()), data], compiler.data.timing, min_rounds=40,
                                                    spread=0.004, max_seconds=max_seconds)  # fmt: skip
    return speedup(*timings)


def run(compiler: Compiler, task: Task, options: argparse.Namespace) -> dict[str, float | int | None]:
    """One closed loop: ratios to the target as the run reported and as measured again, or the most within reach."""
    try:
        result = compiler.reach(Target(speedup=options.target))
    except InfeasibleTarget as error:
        return {"best": error.best}
    own = result.report.reached
    again = measured_again(compiler, task, result.data, options.threads, options.seconds)
    return {"reported": own.speedup / options.target, "ratio": again.value / options.target, "spread": again.spread,
            "attempts": len(own.attempts)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", metavar="TASK", help=f"one of {', '.join(models.TASKS)}")
    parser.add_argument("--target", type=float, default=1.5)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--share-prices", action="store_true", help="calibrate and price once for all runs")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--seconds", type=float, default=20.0, help="longest time of a second measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run; the next ones count up")
    parser.add_argument("--out", type=Path, help="a JSON file for every run")
    options = parser.parse_args()
    task, shared, rows = models.get(options.task), None, []
    print(f"{task.name}, target {options.target:g}x, {options.threads} thread(s), "
          f"{open_backend('host', options.threads).fingerprint()}", flush=True)  # fmt: skip
    for i in range(options.runs):
        started = time.monotonic()
        if shared is None or not options.share_prices:
            shared = compiler_of(task, options.samples, threads=options.threads, seed=options.seed + i,
                                 progress=choose(quiet=not sys.stderr.isatty()))  # fmt: skip
        shared.seed = options.seed + i
        row = run(shared, task, options) | {"seed": options.seed + i, "seconds": time.monotonic() - started}
        rows.append(row)
        if "best" in row:
            what = f"out of reach (exit code 4): the most measured is {row['best']:.3f}x"
        else:
            what = (f"measured / target {row['ratio']:.3f} ± {row['spread']:.1%} (the run itself said "
                    f"{row['reported']:.3f}), {row['attempts']} attempts{'' if kept(row) else '   OUTSIDE'}")
        print(f"run {i + 1:2d}  seed {row['seed']}  {what}  {seconds(row['seconds'])}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    inside, infeasible = sum(map(kept, rows)), len(rows) - len(ratios)
    print(f"{inside} of {len(rows)} runs in [{LOW:.2f}, {HIGH:.2f}] of the target"
          + (f", {infeasible} ended as out of reach" if infeasible else "")
          + (f"; median {np.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}" if ratios else ""))
    return int(inside + infeasible < 0.9 * len(rows))


def kept(row: dict) -> bool:
    """Whether the second measurement lies in the promised window."""
    return "ratio" in row and LOW <= row["ratio"] <= HIGH


if __name__ == "__main__":
    exit_with(main)
