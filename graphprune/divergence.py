"""How far a compressed model's outputs are from the dense one's, on feeds neither was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphprune.trace import Feed

Run = Callable[[Feed], Mapping[str, np.ndarray]]
Outputs = Sequence[Mapping[str, np.ndarray]]


def outputs_of(run: Run, feeds: Sequence[Feed]) -> list[Mapping[str, np.ndarray]]:
    """All outputs for every feed."""
    return [run(feed) for feed in feeds]


def divergence(dense: Outputs, have: Outputs) -> float:
    """Squared error as a share of the dense outputs' variation about their mean, averaged over outputs.

    0: equal; 1: no better than a constant. Infinite where an output is not finite or its shape differs.
    """
    per_output = []
    for name in dense[0]:
        want = [np.asarray(d[name], np.float64) for d in dense]
        got = [np.asarray(h[name], np.float64) for h in have]
        if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in zip(want, got, strict=True)):
            return float("inf")
        last = {a.shape[-1] if a.ndim else 1 for a in want}
        rows = [a.reshape(-1, a.shape[-1]) if a.ndim and len(last) == 1 else a.reshape(-1, 1) for a in want]
        mean = np.concatenate(rows).mean(axis=0)
        spread = sum(float(((r - mean) ** 2).sum()) for r in rows)
        error = sum(float(((a - b) ** 2).sum()) for a, b in zip(want, got, strict=True))
        per_output.append(error / spread if spread > 0 else (0.0 if error == 0 else 1.0))
    return float(np.mean(per_output))


def cosine(dense: Outputs, have: Outputs, name: str) -> float:
    """Mean over feeds of the cosine between an output and the dense one, each as one vector."""
    values = []
    for d, h in zip(dense, have, strict=True):
        a, b = np.asarray(d[name], np.float64).reshape(-1), np.asarray(h[name], np.float64).reshape(-1)
        scale = float(np.linalg.norm(a) * np.linalg.norm(b))
        values.append(float(a @ b) / scale if scale else float(np.array_equal(a, b)))
    return float(np.mean(values))
