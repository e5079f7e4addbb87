"""How well the host cost model predicts: `python -m tools.bench_cost [FAMILY ...] [--threads 1] [--plans 40]`.

For every family of models the prices are measured, then fresh random plans are timed without profiling, in turns with
the dense model, and compared with what was predicted for them. Prints a line per family; --out keeps every plan.

A family is widths alone. `--passes depth,width,low-rank,quantise TASK ...` prices tasks of models/ as `compile` does,
with all that these passes may do, and also times what the solver answers for speed-ups from 1.5x to 4x: that is where
prices are needed, and where an answer leans on those that flatter.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import models
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.cost import CostModel, measure_cost, random_plan
from graphprune.errors import InfeasibleTarget
from graphprune.progress import choose
from graphprune.solver import Problem
from graphprune.target import speedup
from models import minilm, mnist_cnn, pp_rec, width_families
from models.task import Task
from models.width_families import Family
from tools.shared import compiler_of

_SAMPLES = 128
_ANSWERS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Speed-ups that the solver is asked for."""


def pruned(task: Task, threads: int) -> Family:
    """The family of all widths that the groups of a real model may take, its first channels kept."""
    from graphprune.canonicalise import canonicalise
    from graphprune.edit import shrink
    from graphprune.groups import analyse
    from graphprune.infer import infer
    from graphprune.passes.width import width_levels
    from graphprune.trace import trace

    backend = OnnxRuntime(threads)
    model = canonicalise(ir.load(task.model()))
    feed = task.calibration(1)[0]
    types = infer(model, trace(model, feed, lambda m, f: backend.load(m, optimise=False).run(f)))
    analysis = analyse(model, types)
    sizes = {name: group.size for name, group in analysis.groups.items()}
    levels = {name: width_levels(group.size, group.kind) for name, group in analysis.groups.items()}

    def build(counts: dict[str, int]) -> ir.Model:
        keep = {name: np.arange(n) for name, n in counts.items() if n < sizes[name]}
        return shrink(model, types, analysis.keeps(keep))

    random = np.random.default_rng(0)
    at = {}
    for name, array in feed.items():
        shape = task.shapes.get(name, array.shape)
        at[name] = np.resize(array, shape) if array.dtype.kind in "iu" else random.standard_normal(shape, np.float32)
    return Family(sizes, levels, build, at)


FAMILIES: dict[str, Callable[[int], Family]] = {
    "encoder": lambda threads: width_families.encoder(),
    "residual": lambda threads: width_families.residual(),
    "mobile": lambda threads: width_families.mobile(),
    "dense_concat": lambda threads: width_families.dense_concat(),
    "minilm": lambda threads: pruned(minilm.task(), threads),
    "pp_rec": lambda threads: pruned(pp_rec.task(), threads),
    "mnist_cnn": lambda threads: pruned(mnist_cnn.task(), threads),
}


def bench(name: str, *, threads: int, plans: int, seconds: float, seed: int) -> dict[str, object]:
    """Measure one family: the errors of the predictions, relative, and what they cost."""
    family = FAMILIES[name](threads)
    backend = OnnxRuntime(threads)
    prices = measure_cost(family.sizes, family.levels, family.build, family.feed, backend, seed=seed, seconds=seconds)
    dense = backend.load(family.build(family.sizes))
    rng = np.random.default_rng([seed, 1])
    fresh = [random_plan(family.sizes, family.levels, rng) for _ in range(plans)]
    rows = [timed(prices, counts, backend, dense, family.build(counts), family.feed) for counts in fresh]
    print(f"{name:13s} {threads} thread(s)  {facts(prices, len(family.sizes))}  {errors('fresh plans', prices, rows)}",
          flush=True)  # fmt: skip
    return {"family": name, "threads": threads, "plans": rows, "fingerprint": prices.fingerprint}


def bench_passes(name: str, passes: str, *, threads: int, plans: int, seed: int) -> dict[str, object]:
    """Measure one task priced with all that some passes may do."""
    task = models.get(name)
    made = compiler_of(task, _SAMPLES, threads=threads, seed=seed, progress=choose(), passes=passes)
    prices, feed = made.prices.model, made.data.timing
    dense = made.backend.load(made.build_for_price(made.full))
    rng, replacing = np.random.default_rng([seed, 1]), [s.name for s in made.sites if s.replaces]
    fresh = [random_plan(made.full, made.prices.levels, rng, replacing) for _ in range(plans)]
    problem = Problem(made.levels, prices, ordered=made.ordered)
    answers = []
    for factor in _ANSWERS:
        try:
            answers.append(problem.solve(made.curves, prices.dense_ms / factor))
        except InfeasibleTarget:
            break
    rows, found = ([timed(prices, c, made.backend, dense, made.build_for_price(c), feed) for c in counts]
                   for counts in (fresh, answers))  # fmt: skip
    print(f"{name:13s} {threads} thread(s)  {facts(prices, len(made.sites))}  {errors('fresh plans', prices, rows)}")
    if found:
        print(f"{'':13s} {errors('answers of the solver', prices, found)}", flush=True)
    return {"task": name, "passes": passes, "threads": threads, "plans": rows, "answers": found,
            "fingerprint": prices.fingerprint}  # fmt: skip


def timed(prices: CostModel, counts: dict[str, int], backend: OnnxRuntime, dense, model, feed) -> dict[str, object]:
    """One plan, predicted and measured in turns with dense."""
    factor = speedup(*backend.measure([dense, model], feed, max_seconds=3.0))
    return {"predicted_ms": prices.predict(counts).ms, "measured_ms": prices.dense_ms / factor.value,
            "spread": factor.spread, "counts": counts}  # fmt: skip


def facts(prices: CostModel, n_sites: int) -> str:
    return (f"dense {prices.dense_ms:7.2f} ms  {n_sites:3d} sites  fitted on {prices.n_plans} plans in "
            f"{prices.seconds:.0f} s (own estimate, 80 % interval: ±{prices.spread:.1%})")  # fmt: skip


def errors(what: str, prices: CostModel, rows: list[dict[str, Any]]) -> str:
    relative = np.array([r["predicted_ms"] / r["measured_ms"] - 1 for r in rows])
    low, high = (f(prices.dense_ms / r["measured_ms"] for r in rows) for f in (min, max))
    return (f"{len(rows)} {what}, {low:.2f}x to {high:.2f}x: error median {np.median(abs(relative)):.1%}  "
            f"90th percentile {np.quantile(abs(relative), 0.9):.1%}  bias {np.median(relative):+.1%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY",
                        help=f"of {', '.join(FAMILIES)} (all); with --passes tasks, of {', '.join(models.TASKS)}")
    parser.add_argument("--passes", help="price tasks with all that these passes may do")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plans", type=int, default=40, help="fresh plans to predict")
    parser.add_argument("--seconds", type=float, default=40.0, help="time to measure prices for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for every plan with its times")
    options = parser.parse_args()
    known = models.TASKS if options.passes else FAMILIES
    for name in options.families:
        if name not in known:
            parser.error(f"{name!r} is not among {', '.join(known)}")
    names = options.families or list(known)
    if options.passes:
        results = [bench_passes(name, options.passes, threads=options.threads, plans=options.plans, seed=options.seed)
                   for name in names]  # fmt: skip
    else:
        results = [bench(name, threads=options.threads, plans=options.plans, seconds=options.seconds, seed=options.seed)
                   for name in names]  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
