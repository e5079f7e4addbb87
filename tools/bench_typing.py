"""Microseconds a node of typing and grouping, on synthetic graphs of growing size.

    python -m tools.bench_typing [--nodes 200 2000 20000] [--repeat 3]

Transformer layers and residual blocks are repeated until the graph has about so many nodes. Typing is `infer`,
grouping is `analyse`, both in processor time of their one thread; tracing the shapes (one run in ONNX Runtime) and
bringing the graph into canonical form are shown beside them in wall-clock seconds and not counted.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import onnx
import onnx_ir as ir

from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.canonicalise import canonicalise
from graphprune.groups import analyse
from graphprune.infer import infer
from graphprune.trace import trace
from models.width_families import Family, encoder, residual

LIMIT_US = 100.0
"""What one node may take."""
_FAMILIES: dict[str, tuple[Callable[[int], Family], int]] = {
    # name: (network of so many repeated blocks, nodes a block)
    "transformer": (lambda n: encoder(layers=n, n=32, heads=4, ffn=64, tokens=6, step=8), 32),
    "residual CNN": (lambda n: residual(stages=(8,), blocks=n, side=8, step=4), 5),
}


def canonical(family: Family) -> ir.Model:
    """The network at full width, in the form that the rules expect."""
    return canonicalise(ir.from_proto(onnx.ModelProto.FromString(family.build(family.sizes))))


def seconds(work: Callable[[], object], repeat: int) -> tuple[float, object]:
    """Median processor time of `work`, and what it gave. Garbage is collected between the runs."""
    times, result = [], None
    for _ in range(repeat):
        gc.collect()
        started = time.thread_time()
        result = work()
        times.append(time.thread_time() - started)
    return statistics.median(times), result


def bench(name: str, n_nodes: int, repeat: int) -> float:
    """Print one line; give microseconds a node."""
    build, per_block = _FAMILIES[name]
    family = build(max(1, round(n_nodes / per_block)))
    started = time.perf_counter()
    model = canonical(family)
    canonical_s = time.perf_counter() - started
    n = len(model.graph)
    backend = OnnxRuntime()
    started = time.perf_counter()
    traced = trace(model, family.feed, lambda m, feed: backend.load(m, optimise=False).run(dict(feed)))
    traced_s = time.perf_counter() - started
    typing_s, types = seconds(lambda: infer(model, traced), repeat)
    grouping_s, analysis = seconds(lambda: analyse(model, types), repeat)
    us = 1e6 * (typing_s + grouping_s) / n
    print(f"{name:13s} {n:6d} {len(analysis.groups):7d} {1e6 * typing_s / n:10.1f} {1e6 * grouping_s / n:10.1f} "
          f"{us:10.1f} {typing_s + grouping_s:8.2f} {traced_s:8.2f} {canonical_s:8.2f}", flush=True)  # fmt: skip
    return us


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[200, 2_000, 20_000])
    parser.add_argument("--repeat", type=int, default=3, help="the median of so many runs counts")
    options = parser.parse_args()
    print(f"{'':13s} {'nodes':>6} {'groups':>7} {'typing us':>10} {'grouping':>10} {'sum us/node':>10} {'sum s':>8} "
          f"{'trace s':>8} {'canon. s':>8}")  # fmt: skip
    worst = max(bench(name, n, options.repeat) for name in _FAMILIES for n in options.nodes)
    print(f"worst: {worst:.1f} us per node, {'within' if worst <= LIMIT_US else 'OVER'} the limit of {LIMIT_US:.0f}")
    return int(worst > LIMIT_US)


if __name__ == "__main__":
    raise SystemExit(main())
