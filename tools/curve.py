"""Quality against measured speed-up, second-order scores beside magnitude scores on the same targets.

    python -m tools.curve TASK... [--speedups 1.25,1.5,2,3] [--samples 256] [--ablation] [--out docs/curves.json]

Every method is calibrated and priced once for a task and then compiled for each factor; quality is that of models/, on
data that was not calibrated on. Rows are kept in --out and not computed again for the same settings unless --again;
the table and the picture beside it (.md, .svg) are drawn from that file. --draw only draws.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
from graphprune.backends import open_backend
from graphprune.compiler import Compiler
from graphprune.errors import InfeasibleTarget
from graphprune.files import atomic_write
from graphprune.progress import choose
from graphprune.target import Target
from tools.curve_pages import markdown, picture, table_of
from tools.shared import Row, Rows, compiler_of, console, exit_with, factors_option, quality

SPEEDUPS = "1.25,1.5,2,3"
OURS, BASELINE, DENSE = "second-order", "magnitude, no compensation", "dense"
METHODS: dict[str, dict[str, Any]] = {
    OURS: {},
    BASELINE: {"score": "magnitude", "compensate": False},
}
ABLATION: dict[str, dict[str, Any]] = {
    "second-order, no compensation": {"compensate": False},
    "activation": {"score": "activation"},
    "activation, no compensation": {"score": "activation", "compensate": False},
    "magnitude": {"score": "magnitude"},
    "second-order, no lowering": {"lower": False},
}


def measured(compiler: Compiler, task: models.task.Task, asked: float, limit: int | None) -> Row:
    """One point of the curve: what was reached and how good it is, or the most that can be reached."""
    try:
        result = compiler.reach(Target(speedup=asked))
    except InfeasibleTarget as error:
        return {"out_of_reach": error.best}
    r, s = result.report.reached, result.report.size
    return {
        "speedup": r.speedup, "spread": r.speedup_spread, "ms": r.ms, "dense_ms": r.dense_ms, "rounds": r.rounds,
        "parameters": s.parameters_after, "dense_parameters": s.parameters_before,
        "metrics": quality(task, result.data, limit),
    }  # fmt: skip


def walk(name: str, rows: Rows, options: argparse.Namespace) -> None:
    """Measure what is missing of one task."""
    task, progress = models.get(name), choose()
    settings = {"task": name, "samples": options.samples, "limit": options.limit, "seed": options.seed,
                "threads": options.threads, "host": open_backend("host", options.threads).fingerprint()}
    stamp = {"headline": task.headline, "date": datetime.date.today().isoformat()}

    def missing(method: str, factors: list[float]) -> Iterator[Row]:
        for asked in factors:
            key = settings | {"method": method, "asked": asked}
            if options.again or rows.find(key) is None:
                yield key

    for key in missing(DENSE, [1.0]):
        with progress.stage(f"{name}: judge the dense network"):
            metrics = quality(task, task.model(), options.limit)
            rows.put(key | stamp | {"speedup": 1.0, "spread": 0.0, "metrics": metrics})
    for method, how in (METHODS | (ABLATION if options.ablation else {})).items():
        if options.only and method != options.only:
            continue
        shared = None
        for key in missing(method, options.speedups):
            progress.note(f"{name}, {method}, {key['asked']:g}x")
            shared = shared or compiler_of(task, options.samples, threads=options.threads, seed=options.seed,
                                           progress=progress, passes="width", **how)  # fmt: skip
            rows.put(key | stamp | measured(shared, task, key["asked"], options.limit))


def draw(rows: Rows) -> None:
    """Write the table and the picture beside the data."""
    atomic_write(rows.path.with_suffix(".md"), markdown(rows.all, OURS, BASELINE, DENSE).encode())
    atomic_write(rows.path.with_suffix(".svg"), picture(rows.all, OURS, BASELINE, DENSE).encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(models.TASKS)}")
    parser.add_argument("--speedups", type=factors_option, default=SPEEDUPS)
    parser.add_argument("--samples", type=int, default=256, help="calibration samples, a fifth of them held out")
    parser.add_argument("--limit", type=int, help="judge on the first so many evaluation samples (default: all)")
    parser.add_argument("--only", choices=[*METHODS, *ABLATION], help="one method alone")
    parser.add_argument("--ablation", action="store_true", help="activation scores and each score with and without "
                        "compensation, too")
    parser.add_argument("--again", action="store_true", help="measure rows again that are there already")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what is there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/curves.json"))
    options = parser.parse_args()
    if not options.tasks and not options.draw:
        parser.error(f"name a task: {', '.join(models.TASKS)}")
    rows, out = Rows(options.out), console()
    for name in options.tasks:
        if not options.draw:
            walk(name, rows, options)
            draw(rows)
        out.print(name, style="bold")
        out.print(table_of([r for r in rows.all if r["task"] == name], OURS, BASELINE, DENSE))
    if rows.all:
        draw(rows)
        out.print(f"{rows.path}: {len(rows.all)} rows; drawn to {rows.path.with_suffix('.md')} and "
                  f"{rows.path.with_suffix('.svg')}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    exit_with(main)
