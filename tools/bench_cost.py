"""How well the host cost model predicts: `python -m tools.bench_cost [FAMILY ...] [--threads 1] [--plans 40]`.

For every family of models the prices are measured, then fresh random plans are timed without profiling, in turns with
the dense model, and compared with what was predicted for them. Prints a line per family; --out keeps every plan.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.cost import measure_cost, random_plan
from graphprune.target import speedup
from models import minilm, mnist_cnn, pp_rec, width_families
from models.task import Task
from models.width_families import Family


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
    timed = {}
    for name, array in feed.items():
        shape = task.shapes.get(name, array.shape)
        timed[name] = np.resize(array, shape) if array.dtype.kind in "iu" else random.standard_normal(shape, np.float32)
    return Family(sizes, levels, build, timed)


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
    rows = []
    for _ in range(plans):
        counts = random_plan(family.sizes, family.levels, rng)
        base, timed = backend.measure([dense, family.build(counts)], family.feed, max_seconds=3.0)
        factor = speedup(base, timed)
        rows.append(
            {
                "predicted_ms": prices.predict(counts).ms,
                "measured_ms": prices.dense_ms / factor.value,
                "spread": factor.spread,
                "counts": counts,
            }
        )
    errors = np.array([r["predicted_ms"] / r["measured_ms"] - 1 for r in rows])
    low, high = (f(prices.dense_ms / r["measured_ms"] for r in rows) for f in (min, max))
    print(
        f"{name:13s} {threads} thread(s)  dense {prices.dense_ms:7.2f} ms  {len(family.sizes):3d} groups  "
        f"fitted on {prices.n_plans} plans in {prices.seconds:.0f} s  {plans} fresh plans, {low:.2f}x to {high:.2f}x: "
        f"error median {np.median(abs(errors)):.1%}  90th percentile {np.quantile(abs(errors), 0.9):.1%}  "
        f"bias {np.median(errors):+.1%}  (own estimate, 80 % interval: ±{prices.spread:.1%})",
        flush=True,
    )
    return {"family": name, "threads": threads, "plans": rows, "fingerprint": prices.fingerprint}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plans", type=int, default=40, help="fresh plans to predict")
    parser.add_argument("--seconds", type=float, default=40.0, help="time to measure prices for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for every plan with its times")
    options = parser.parse_args()
    results = [
        bench(name, threads=options.threads, plans=options.plans, seconds=options.seconds, seed=options.seed)
        for name in options.families
    ]
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
