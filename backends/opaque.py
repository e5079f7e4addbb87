"""Kernels of an engine that shows none: the times of whole models tell what each kind of kernel takes.

Another engine's kernels stand in for those of the one that is asked. How much faster or slower each kind of them is
there is fitted to all models that were timed so far, so that kinds are told apart as soon as models differ in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import nnls

from graphprune.target import Kernel

_PRIOR = 0.01
"""Weight of "all kinds are alike" beside the models timed."""


class Shares:
    """What kinds of kernels take, by operator."""

    def __init__(self) -> None:
        self._parts: list[Counter[str]] = []
        self._totals: list[float] = []

    def divided(self, kernels: Sequence[Kernel], total_ms: float) -> list[Kernel]:
        """The kernels of another engine with times as they are here, where the model takes total_ms; they sum to
        that."""
        part: Counter[str] = Counter()
        for k in kernels:
            part[k.op] += k.ms
        self._parts.append(part)
        self._totals.append(total_ms)
        factors = self.factors()
        found = [k.ms * factors[k.op] for k in kernels]
        scale = total_ms / max(sum(found), np.finfo(float).tiny)
        return [replace(k, ms=ms * scale) for k, ms in zip(kernels, found, strict=True)]

    def factors(self) -> dict[str, float]:
        """Operator -> its time here over its time in the other engine, above zero. Least squares of the relative errors
        of all totals, held towards the factor that all operators have together."""
        ops = sorted(set().union(*self._parts))
        shares = np.array([[part[op] for op in ops] for part in self._parts]) / np.array(self._totals)[:, None]
        together = len(shares) / shares.sum()
        weights = np.sqrt(_PRIOR * len(shares)) * np.maximum(shares.mean(axis=0), 1e-6 * shares.mean())
        rows = np.concatenate([shares, np.diag(weights)])
        wanted = np.concatenate([np.ones(len(shares)), weights * together])
        found, _ = nnls(rows, wanted)
        return {op: max(float(f), 1e-2 * together) for op, f in zip(ops, found, strict=True)}
