"""How far a compressed model's outputs are from the dense one's, on feeds neither was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphprune.trace import Feed

_LEAST = 1e-9
Run = Callable[[Feed], Mapping[str, np.ndarray]]
Outputs = Sequence[Mapping[str, np.ndarray]]


def outputs_of(run: Run, feeds: Sequence[Feed]) -> list[Mapping[str, np.ndarray]]:
    """All outputs for every feed."""
    return [run(feed) for feed in feeds]


def divergence(dense: Outputs, have: Outputs) -> float:
    """How much of what the dense outputs say is lost, averaged over outputs: 0 if equal, 1 if as good as a constant.

    An output whose rows are probability distributions: Kullback-Leibler divergence from the dense rows, as a share of
    their divergence from the mean row. Any other: squared error as a share of the variation about the mean row. Rows
    run along the last axis. Infinite where an output is not finite or its shape differs.
    """
    per_output = []
    for name in dense[0]:
        want = [np.asarray(d[name]) for d in dense]
        got = [np.asarray(h[name]) for h in have]
        if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in zip(want, got, strict=True)):
            return float("inf")
        even = len({a.shape[-1:] for a in want}) == 1 and want[0].ndim > 0
        pairs = [tuple(x.reshape(-1, x.shape[-1] if even else 1) for x in pair) for pair in zip(want, got, strict=True)]
        measure = _relative_entropy if even and all(_is_distribution(a) for a, _ in pairs) else _squared_error
        mean = sum(a.sum(axis=0, dtype=np.float64) for a, _ in pairs) / sum(len(a) for a, _ in pairs)
        error = sum(measure(a, b) for a, b in pairs)
        spread = sum(measure(a, mean[None, :]) for a, _ in pairs)
        per_output.append(error / spread if spread > 0 else (0.0 if error <= 0 else 1.0))
    return float(np.mean(per_output))


def _is_distribution(rows: np.ndarray) -> bool:
    return (
        rows.shape[-1] > 1
        and rows.dtype.kind == "f"
        and bool((rows >= 0).all())
        and np.allclose(rows.sum(-1), 1, atol=1e-3)
    )


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    """Sum over rows of KL(p | q), probabilities below 1e-9 counted as that."""
    p, q = np.maximum(p.astype(np.float64), _LEAST), np.maximum(q.astype(np.float64), _LEAST)
    return float((p * (np.log(p) - np.log(q))).sum())


def _squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a.astype(np.float64) - b) ** 2).sum())


def cosine(dense: Outputs, have: Outputs, name: str) -> float:
    """Mean over feeds of the cosine between an output and the dense one, each as one vector."""
    values = []
    for d, h in zip(dense, have, strict=True):
        a, b = np.asarray(d[name], np.float64).reshape(-1), np.asarray(h[name], np.float64).reshape(-1)
        scale = float(np.linalg.norm(a) * np.linalg.norm(b))
        values.append(float(a @ b) / scale if scale else float(np.array_equal(a, b)))
    return float(np.mean(values))
