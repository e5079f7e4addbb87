"""The same network compiled for several engines of this machine: what each makes of the dense model, and of what is
compressed for it.

    python -m tools.engines TASK... [--devices host] [--speedups 1.5] [--passes width,quantise] [--samples 160]

An engine that needs an environment of its own (`make test-openvino` makes one) is measured by running the same command
there: rows of other devices stay in --out (.json), beside which the table (.md) is drawn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import models
from graphprune.backends import open_backend
from graphprune.driver import PASSES, compiler
from graphprune.errors import InfeasibleTarget
from graphprune.files import atomic_write
from graphprune.progress import Progress, choose
from graphprune.target import Target
from models.task import Task
from tools.shared import Row, Rows, console, exit_with, factors_option

ALL = ",".join(PASSES)


def rows_of(task: Task, device: str, options: argparse.Namespace, progress: Progress) -> list[Row]:
    """The dense model, and one for each target."""
    backend = open_backend(device, options.threads)
    method = device if options.passes == ALL else f"{device}, {options.passes} alone"
    stamp = {"task": task.name, "method": method, "samples": options.samples, "limit": options.limit,
             "seed": options.seed, "threads": options.threads, "host": backend.fingerprint()}  # fmt: skip
    made = compiler(task.model(), device=device, calibration=task.calibration(options.samples), shapes=task.shapes,
                    threads=options.threads, seed=options.seed, passes=options.passes, progress=progress)  # fmt: skip
    (dense,) = backend.measure([task.model()], made.data.timing, max_seconds=10.0)
    rows = [stamp | {"asked": 1.0, "ms": dense.median_ms, "spread": dense.spread, "speedup": 1.0, "seconds": 0.0,
                     "metrics": task.evaluate(backend.load(task.model()).run, options.limit)}]  # fmt: skip
    for asked in options.speedups:
        started = time.monotonic()
        try:
            result = made.reach(Target(speedup=asked))
        except InfeasibleTarget as error:
            rows.append(stamp | {"asked": asked, "out_of_reach": error.best})
            continue
        reached = result.report.reached
        rows.append(stamp | {"asked": asked, "ms": reached.ms, "spread": reached.speedup_spread,
                             "speedup": reached.speedup, "seconds": round(time.monotonic() - started, 1),
                             "metrics": task.evaluate(backend.load(result.data).run, options.limit)})  # fmt: skip
    return rows


_HEAD = """# One network, several engines

Written by `python -m tools.engines`. Each model is compiled for the engine, and measured in it, in turns with the dense
model in the same engine; a speed-up is over that. Quality is that of the engine's own outputs.
"""


def page(rows: Sequence[Row]) -> str:
    """One table for each task, engines below one another."""
    parts = [_HEAD]
    for name in dict.fromkeys(r["task"] for r in rows):
        own = sorted((r for r in rows if r["task"] == name), key=lambda r: (r["method"], r["asked"]))
        metrics = list(dict.fromkeys(m for r in own for m in r.get("metrics", {})))
        engines = "; ".join(dict.fromkeys(r["host"] for r in own))
        parts.append(f"## {name}\n\n{own[0]['samples']} calibration samples, seed {own[0]['seed']}. {engines}.\n")
        parts.append(f"| device | asked | measured | ms | {' | '.join(metrics)} |\n| --- | ---: | ---: | ---: |"
                     + " ---: |" * len(metrics))  # fmt: skip
        parts += [f"| {r['method']} | {' | '.join(_cells(r, metrics))} |" for r in own]
        parts.append("")
    return "\n".join(parts)


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    asked = "dense" if row["asked"] == 1 else f"{row['asked']:g}x"
    if "out_of_reach" in row:
        return [asked, f"at most {row['out_of_reach']:.2f}x", "", *("" for _ in metrics)]
    return [asked, f"{row['speedup']:.2f}x", f"{row['ms']:.2f}",
            *(f"{100 * row['metrics'][m]:.1f} %" for m in metrics)]  # fmt: skip


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=f"of {', '.join(models.TASKS)}")
    parser.add_argument("--devices", default="host", help="this machine's engines, as host,host:openvino")
    parser.add_argument("--speedups", type=factors_option, default="1.5")
    parser.add_argument("--passes", default=ALL)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--limit", type=int, help="judge on the first so many evaluation samples (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/engines.json"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    rows, progress = Rows(options.out), choose()
    for name in options.tasks:
        for device in options.devices.split(","):
            for row in rows_of(models.get(name), device, options, progress):
                rows.put(row)
    atomic_write(options.out.with_suffix(".md"), page(rows.all).encode())
    console().print(page(rows.all), soft_wrap=True)
    return 0


if __name__ == "__main__":
    exit_with(main)
