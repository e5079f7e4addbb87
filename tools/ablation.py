"""The joint solve against its parts at equal measured speed-up: each pass alone, two passes one after the other, and
ONNX Runtime's own quantisation.

    python -m tools.ablation TASK... [--speedups 2,3,4] [--seeds 0,1,2] [--samples 320] [--only METHOD]
    python -m tools.ablation --measure TASK...     # time all models of a task again, in turns

A seed draws the calibration samples and all that is random in a compile. Rows are kept in --out and not computed again
for the same settings unless --again; the models stay in the cache beside their digest. The table and the picture beside
--out (.md, .svg) are drawn from that file; --draw only draws.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

import models
from graphprune.backends import open_backend
from graphprune.compiler import Compiler
from graphprune.divergence import Reference, outputs_of
from graphprune.driver import PASSES, compiler
from graphprune.errors import InfeasibleTarget, ModelError, UsageError
from graphprune.feeds import split
from graphprune.files import atomic_write
from graphprune.progress import Progress, choose
from graphprune.target import Target, Timing, speedup
from models.task import Feed, Task, cache_dir
from tools import baselines
from tools.ablation_pages import (
    AT_A_TARGET,
    DENSE,
    DYNAMIC,
    JOINT,
    PRUNE_FIRST,
    QUANTISE_FIRST,
    RUNTIME,
    SINGLE,
    STATIC_ALL,
    STATIC_LINEAR,
    markdown,
    picture,
)
from tools.sequences import Made, prune_then_quantise, quantise_then_prune
from tools.shared import Row, Rows, console, exit_with, factors_option, quality, seeds_option

SPEEDUPS, SEEDS = "2,3,4", "0,1,2"
METHODS = (DENSE, *RUNTIME, *AT_A_TARGET)
SEEDLESS = (DENSE, DYNAMIC)
"""Methods that use no calibration data and roll no dice: one row, under seed 0."""
_POOL = 4
_POOL_BYTES = 1_000_000_000
"""Calibration samples are drawn from this many times as many, unless that takes more memory."""
_MOST = 1000.0
"""A speed-up that nothing reaches: asking for it finds the most there is."""
_TOGETHER, _TOGETHER_BYTES = 12, 1_500_000_000
"""How many models are timed in turns with dense, and how large their files may be."""


class Bench:
    """One task with the calibration samples of one seed: compiles, times and judges. See `tools.sequences.Bench`.

    make: `graphprune.driver.compiler`. What several methods need is made once; a few compilers are kept.
    """

    def __init__(self, task: Task, samples: int, seed: int, threads: int, progress: Progress,
                 make: Callable[..., Compiler] = compiler) -> None:  # fmt: skip
        self.task, self.seed, self.threads, self.progress, self._make = task, seed, threads, progress, make
        self.dense = task.model()
        self.feeds = draw(task, samples, seed)
        self.fitted, self.held = split(self.feeds, seed)  # as a compile splits them
        self.backend = open_backend("host", threads)
        self._compilers: dict[str, Compiler] = {}
        self._most: dict[str, float] = {}

    def compiler(self, passes: str, model: bytes | None = None) -> Compiler:
        if model is None and passes in self._compilers:
            return self._compilers[passes]
        made = self._make(self.dense if model is None else model, calibration=self.feeds, shapes=self.task.shapes,
                          threads=self.threads, seed=self.seed, passes=passes, progress=self.progress)  # fmt: skip
        if model is None:
            while len(self._compilers) > 2:  # each holds the moments of all activations
                del self._compilers[next(iter(self._compilers))]
            self._compilers[passes] = made
        return made

    def most(self, passes: str) -> float:
        if passes not in self._most:
            try:
                self._most[passes] = self.compiler(passes).reach(Target(speedup=_MOST)).report.reached.speedup
            except InfeasibleTarget as error:
                self._most[passes] = error.best
            except ModelError:  # nothing to do for them
                self._most[passes] = 1.0
        return self._most[passes]

    def measure(self, data: bytes) -> tuple[Timing, Timing]:
        """Dense and another model in turns."""
        dense, other = self.backend.measure([self.dense, data], timing_feed(self.task, self.feeds), min_rounds=30,
                                            spread=0.005, max_seconds=20.0)  # fmt: skip
        return dense, other

    def speedup(self, data: bytes) -> float:
        return speedup(*self.measure(data)).value

    @cached_property
    def _reference(self) -> Reference:
        return Reference(outputs_of(self.backend.load(self.dense).run, self.held))

    def lost(self, data: bytes) -> float:
        return self._reference.divergence(outputs_of(self.backend.load(data).run, self.held))

    def make(self, method: str, asked: float | None) -> Made:
        """The model of one method. Raises InfeasibleTarget, or ModelError where the method has nothing to work on."""
        if method == DENSE:
            return Made(self.dense.read_bytes(), "")
        if method == DYNAMIC:
            return Made(baselines.dynamic(self.dense).read_bytes(), "")
        if method in (STATIC_LINEAR, STATIC_ALL):
            found = baselines.static(self.dense, self.fitted, self.held, linear_only=method == STATIC_LINEAR)
            return Made(found.path.read_bytes(), found.how)
        if method == PRUNE_FIRST:
            return prune_then_quantise(asked, self)
        if method == QUANTISE_FIRST:
            return quantise_then_prune(asked, self)
        passes = ",".join(PASSES) if method == JOINT else SINGLE[method]
        return Made(self.compiler(passes).reach(Target(speedup=asked)).data, "")


def draw(task: Task, samples: int, seed: int) -> list[Feed]:
    """`samples` calibration feeds, drawn by `seed` from a prefix of the task's own, up to four times as long."""
    size = 4 * sum(math.prod(shape) for shape in task.shapes.values())
    most = max(samples, min(_POOL * samples, _POOL_BYTES // size))
    for n in dict.fromkeys((most, (most + samples) // 2, samples)):
        try:
            pool = task.calibration(n)
        except UsageError:  # the task has fewer
            if n == samples:
                raise
            continue
        chosen = np.sort(np.random.default_rng(seed).choice(len(pool), samples, replace=False))
        return [pool[i] for i in chosen]
    raise AssertionError("the last prefix returns or raises")


def timing_feed(task: Task, feeds: Sequence[Feed]) -> Feed:
    """A feed of the shapes at which speed counts: the first that has them, or the first one repeated to fill them."""
    fits = (f for f in feeds if all(f[name].shape == shape for name, shape in task.shapes.items()))
    found = next(fits, feeds[0])
    return {name: np.resize(array, task.shapes.get(name, array.shape)) for name, array in found.items()}


def models_folder() -> Path:
    folder = cache_dir() / "ablation"
    folder.mkdir(exist_ok=True)
    return folder


def kept(data: bytes) -> str:
    """Keep a model in the cache. Returns the digest that it is found by."""
    name = hashlib.sha256(data).hexdigest()[:16]
    path = models_folder() / f"{name}.onnx"
    if not path.exists():
        atomic_write(path, data)
    return name


def result(bench: Bench, method: str, asked: float | None, limit: int | None) -> Row:
    """What is to be said of one method at one target."""
    start = time.monotonic()
    try:
        made = bench.make(method, asked)
    except InfeasibleTarget as error:
        return {"out_of_reach": error.best}
    except ModelError as error:
        return {"refused": error.what, "refused_at": error.at}
    how = {"how": made.how, "seconds": round(time.monotonic() - start, 1)}
    metrics = quality(bench.task, made.data, limit, bench.threads)
    if method == DENSE:
        return how | {"speedup": 1.0, "spread": 0.0, "metrics": metrics}
    return how | _times(*bench.measure(made.data)) | {"digest": kept(made.data), "bytes": len(made.data),
                                                      "metrics": metrics}  # fmt: skip


def _times(dense: Timing, other: Timing) -> Row:
    ratio = speedup(dense, other)
    return {"speedup": ratio.value, "spread": ratio.spread, "ms": other.median_ms, "dense_ms": dense.median_ms}


def walk(name: str, rows: Rows, options: argparse.Namespace, make: Callable[..., Compiler] = compiler) -> None:
    """Work out what is missing of one task."""
    task, progress = models.get(name), choose()
    host = open_backend("host", options.threads).fingerprint()
    for seed in options.seeds:
        bench = None
        for method, asked in wanted(options):
            key = {"task": name, "method": method, "asked": asked, "samples": options.samples, "limit": options.limit,
                   "seed": 0 if method in SEEDLESS else seed, "threads": options.threads, "host": host}  # fmt: skip
            again = options.again and (method not in SEEDLESS or seed == options.seeds[0])
            if rows.find(key) is not None and not again:
                continue
            bench = bench or Bench(task, options.samples, seed, options.threads, progress, make)
            progress.note(f"{name}, seed {key['seed']}: {method}{f', {asked:g}x' if asked else ''}")
            stamp = {"headline": task.headline, "date": datetime.date.today().isoformat()}
            rows.put(key | stamp | result(bench, method, asked, options.limit))


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, float | None]]:
    """Methods and targets, the same for every seed; a method is done with before the next one begins."""
    for method in METHODS:
        if options.only and method not in options.only:
            continue
        if method in AT_A_TARGET:
            yield from ((method, asked) for asked in options.speedups)
            if method == JOINT:
                yield from ((method, asked) for asked in options.joint)
        else:
            yield method, 1.0 if method == DENSE else None


def measure(name: str, rows: Rows, threads: int) -> int:
    """Time all models of a task again, in turns with dense, and put the times into their rows. Returns how many.

    As many at a time as fit into memory: dense is in every run, and a speed-up is a ratio of times taken in turns.
    """
    task, backend, progress = models.get(name), open_backend("host", threads), choose()
    host = backend.fingerprint()
    own = [r for r in rows.all if r["task"] == name and r["host"] == host and r["threads"] == threads and "digest" in r]
    there = [r for r in own if (models_folder() / f"{r['digest']}.onnx").exists()]
    if len(there) < len(own):
        progress.note(f"{name}: {len(own) - len(there)} models are gone from the cache; their times stay as they are")
    if not there:
        return 0
    feed = timing_feed(task, task.calibration(there[0]["samples"]))
    runs = list(together(sorted(there, key=lambda r: (r["asked"] or 0, r["seed"], METHODS.index(r["method"])))))
    with progress.stage(f"{name}: measure", len(there)) as step:
        for run in runs:
            paths = [models_folder() / f"{r['digest']}.onnx" for r in run]
            dense, *others = backend.measure([task.model(), *paths], feed, min_rounds=30, spread=0.005,
                                             max_seconds=20.0 + 10.0 * len(run))  # fmt: skip
            for row, timing in zip(run, others, strict=True):
                rows.put(row | _times(dense, timing) | {"together": True})
            step(len(run))
    return len(there)


def together(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Consecutive rows whose models are timed in one run."""
    run: list[Row] = []
    for row in rows:
        if run and (len(run) == _TOGETHER or sum(r["bytes"] for r in [*run, row]) > _TOGETHER_BYTES):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def draw_pages(rows: Rows) -> None:
    """Write the table and the picture beside the data."""
    atomic_write(rows.path.with_suffix(".md"), markdown(rows.all).encode())
    atomic_write(rows.path.with_suffix(".svg"), picture(rows.all).encode())


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(models.TASKS)}")
    parser.add_argument("--speedups", type=factors_option, default=SPEEDUPS)
    parser.add_argument("--joint", type=factors_option, default=[], metavar="SPEEDUPS",
                        help="factors for the joint solve alone, such as those that ONNX Runtime's models have")
    parser.add_argument("--seeds", type=seeds_option, default=SEEDS)
    parser.add_argument("--samples", type=int, default=320, help="calibration samples, a fifth of them held out")
    parser.add_argument("--limit", type=int, help="judge on the first so many evaluation samples (default: all)")
    parser.add_argument("--only", choices=METHODS, action="append", metavar="METHOD",
                        help=f"one method alone, may be repeated: {'; '.join(METHODS)}")
    parser.add_argument("--again", action="store_true", help="work out rows again that are there already")
    parser.add_argument("--measure", action="store_true", help="compile nothing, time the models again in turns")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what is there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/ablation.json"))
    options = parser.parse_args(arguments)
    if not options.tasks and not options.draw:
        parser.error(f"name a task: {', '.join(models.TASKS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    rows, out = Rows(options.out), console()
    for name in options.tasks:
        if options.draw:
            break
        if not options.measure:
            walk(name, rows, options)
        if options.measure or not all(r.get("together") for r in rows.all if r["task"] == name and "digest" in r):
            measure(name, rows, options.threads)
        draw_pages(rows)
    if rows.all:
        draw_pages(rows)
    out.print(f"{rows.path}: {len(rows.all)} rows; drawn to {rows.path.with_suffix('.md')} and "
              f"{rows.path.with_suffix('.svg')}", soft_wrap=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    exit_with(main)
