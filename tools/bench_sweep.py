"""Seconds of one second-order sweep through all widths, on one thread, beside the plain rank-one loop.

    python -m tools.bench_sweep [--repeat 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from graphprune.compensate import Moments, damped, ridge_of
from graphprune.scores import Reader, sweep

Array = np.ndarray
DAMPING = 0.01
CASES = (
    ("FFN", 1536, 384, 1),
    ("conv 3x3, 128 channels", 1152, 128, 9),
    ("conv 3x3, 512 channels", 4608, 512, 9),
    ("attention heads", 384, 384, 32),
)


def reader(n_inputs: int, n_outputs: int, size: int) -> Reader:
    """Rectified inputs with a decaying spectrum, twice as many samples as inputs."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2 * n_inputs, 256)) * np.arange(1, 257) ** -0.5
    x = np.maximum(hidden @ rng.normal(size=(256, n_inputs)), 0) + 0.1 * rng.normal(size=(2 * n_inputs, n_inputs))
    w = rng.normal(size=(n_outputs, n_inputs)).astype(np.float32)
    return Reader(w, Moments.of(x), np.arange(n_inputs).reshape(-1, size))


def plain_loop(r: Reader) -> Array:
    """The textbook loop for channels of one column: both matrices are updated at every step. -> loss as `sweep`."""
    c = r.moments.scatter()
    inverse = np.linalg.inv(damped(c, ridge_of(c, DAMPING)))
    w = r.weight.astype(np.float64)
    n = len(c)
    loss, gone = np.zeros(n + 1), np.zeros(n, bool)
    for k in range(n - 1, 0, -1):
        diagonal = np.diag(inverse).copy()
        diagonal[gone] = 1.0
        scores = np.where(gone, np.inf, np.sum(w * w, axis=0) / diagonal)
        j = int(np.argmin(scores))
        loss[k] = loss[k + 1] + scores[j]
        row = inverse[j].copy()
        w -= np.outer(w[:, j] / row[j], row)
        inverse -= np.outer(row / row[j], row)
        gone[j] = True
    loss[0] = np.inf
    return loss


def seconds(run: Callable[[], object], repeat: int) -> tuple[float, float, float]:
    """Median, least and greatest wall-clock seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), min(times), max(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    print(f"1 thread, median of {repeat} [least, greatest], seconds")
    for name, n_inputs, n_outputs, size in CASES:
        r = reader(n_inputs, n_outputs, size)
        middle, low, high = seconds(lambda r=r: sweep([r], damping=DAMPING), repeat)
        print(f"{name:24} in={n_inputs:<5} out={n_outputs:<4} block={size:<3} {middle:7.2f} [{low:.2f}, {high:.2f}]")
        if size == 1:
            plain, low, high = seconds(lambda r=r: plain_loop(r), repeat)
            print(f"{'  plain rank-one loop':49} {plain:7.2f} [{low:.2f}, {high:.2f}]   {plain / middle:.0f}x slower")
            ours, theirs = sweep([r], damping=DAMPING).loss[1:-1], plain_loop(r)[1:-1]
            print(f"  greatest difference of the two losses at any width: {np.max(np.abs(ours / theirs - 1)):.1e}")


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # read once, when numpy is loaded: start again
        one = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")}
        os.execve(sys.executable, [sys.executable, "-m", "tools.bench_sweep", *sys.argv[1:]], {**os.environ, **one})
    main()
