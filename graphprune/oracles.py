"""The certificate: proof by running that pruning a model removed exactly what it said, and nothing else.

Masked oracle: the pruned model computes what the dense one does when every operator that sums over a removed channel
is made to skip it. Permutation oracle: reordering a group everywhere changes nothing; it holds even where removal is
not zeroing (the axis is a statistic of a norm), and so certifies that the group was found completely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from graphprune.edit import new_constant, set_constant, shrink
from graphprune.groups import Analysis, model_input
from graphprune.keeps import Keeps, mask, new_size, take
from graphprune.trace import Feed
from graphprune.unrounded import rounds, unrounded

RunAll = Callable[[ir.Model, Sequence[Feed]], Sequence[Mapping[str, np.ndarray]]]
"""Runs a model on several feeds, optimisation off: all its outputs by name for each."""
TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, that rounding may explain."""
STEP = 2e-2
"""The same where the model rounds to a grid of numbers: a value between two steps may fall on either side once sums are
taken in another order."""
LEAST = 1e-3
"""Outputs smaller than this are compared as if they were this large: a sigmoid's 1e-6 is all rounding."""
SHARE = 0.05
"""The difference must also be under this share of what the removal itself changes."""
NOISE = 1e-5
"""But differences up to this are rounding, whatever the effect."""
SHOWN = 1e-6
"""A removal that changes less than this shows nothing."""


@dataclass(frozen=True)
class Check:
    """One comparison. difference and effect are relative to the largest magnitude of the outputs compared.

    verdict: "exact" (equal within rounding), "vacuous" (equal, but the removal changed nothing either, so nothing was
    shown), or "mismatch".
    """

    oracle: str
    groups: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    difference: float
    effect: float
    verdict: str

    def to_dict(self) -> dict:
        return asdict(self)


def masked(model: ir.Model, analysis: Analysis, keeps: Keeps) -> ir.Model:
    """A copy of the dense model in which removed channels are multiplied by zero wherever they are summed over."""
    copy = model.clone()
    nodes = {node.name: node for node in copy.graph}
    touched = set().union(*(analysis.types.holders.get(d, ()) for d in keeps))
    for c in analysis.types.contracted:
        node = nodes[c.node]
        if model_input(analysis.model, c.node, c.operand) not in touched:
            continue
        value = node.inputs[c.operand]
        axes = analysis.types.axes[_original(value)]
        if new_size(axes[c.axis], keeps) == axes[c.axis].size:
            continue
        dtype = value.dtype or ir.DataType.FLOAT
        ones = mask(axes, c.axis, keeps).astype(dtype.numpy())
        constant = new_constant(copy.graph, f"{node.name}.mask", ones)
        mul = ir.node("Mul", [value, constant], name=f"{node.name}.masked{c.operand}.{c.axis}")
        mul.outputs[0].name = f"{_original(value)}\0{node.name}.{c.operand}.{c.axis}"
        mul.outputs[0].dtype = dtype
        copy.graph.insert_before(node, mul)
        node.replace_input_with(c.operand, mul.outputs[0])
    return copy


def _original(value: ir.Value) -> str:
    # A value masked along one axis stays the same value for a mask along another.
    return value.name.split("\0")[0]


def certify(
    analysis: Analysis, keep: Mapping[str, np.ndarray], feeds: Sequence[Feed], run: RunAll, seed: int = 0,
    dense: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> list[Check]:
    """Check keep sets (see `Analysis.keeps`), all at once, on every feed: by the masked oracle the exact groups, by the
    permutation oracle all of them. Groups kept whole are not checked. Runs with optimisation off, and without what is
    rounded between layers (see `unrounded`). dense: the outputs of the model on the feeds, if they are known.
    """
    if rounds(analysis.model):
        rounded_run, dense = run, None
        run = lambda model, feeds: rounded_run(unrounded(model), feeds)  # noqa: E731
    keep = {n: k for n, k in keep.items() if np.shape(k)[-1] < analysis.groups[n].size}
    exact = {n: k for n, k in keep.items() if analysis.groups[n].inexact is None}
    if keep and dense is None:
        dense = run(analysis.model, feeds)
    checks = by_masking(analysis, exact, feeds, run, dense) if exact else []
    return [*checks, *(by_permuting(analysis, keep, feeds, run, dense, seed) if keep else [])]


def by_masking(
    analysis: Analysis, keep: Mapping[str, np.ndarray], feeds: Sequence[Feed], run: RunAll,
    dense: Sequence[Mapping[str, np.ndarray]],
) -> list[Check]:  # fmt: skip
    """The pruned model against the dense one masked, on every feed. dense: its outputs. Holds for exact groups."""
    keeps = analysis.keeps(keep)
    want = run(masked(analysis.model, analysis, keeps), feeds)
    have = run(shrink(analysis.model, analysis.types, keeps), feeds)
    allowed = _tolerance(analysis.model)
    return [_check("masked", tuple(keep), *each, allowed) for each in zip(feeds, dense, want, have, strict=True)]


def by_permuting(
    analysis: Analysis, keep: Mapping[str, np.ndarray], feeds: Sequence[Feed], run: RunAll,
    dense: Sequence[Mapping[str, np.ndarray]], seed: int = 0,
) -> list[Check]:  # fmt: skip
    """The model with the groups of `keep` in another order against itself, on every feed. The orders are ragged where
    the keep sets are."""
    rng = np.random.default_rng(seed)
    order = {n: _orders(np.shape(k)[:-1], analysis.groups[n].size, rng) for n, k in keep.items()}
    permuted = run(shrink(analysis.model, analysis.types, analysis.keeps(order)), feeds)
    scrambled = run(_scrambled(analysis, order), feeds)
    allowed = _tolerance(analysis.model)
    return [
        _check("permutation", tuple(order), feed, other, want, have, allowed)
        for feed, other, want, have in zip(feeds, scrambled, dense, permuted, strict=True)
    ]


def _orders(outer: tuple[int, ...], size: int, rng: np.random.Generator) -> np.ndarray:
    """An order of `size` indices for each outer index, none of them the one there is: int64 [*outer, size]."""
    order = rng.permuted(np.broadcast_to(np.arange(size), (*outer, size)), axis=-1)
    same = (order == np.arange(size)).all(axis=-1, keepdims=True)
    return np.where(same, np.roll(order, 1, axis=-1), order)


def _scrambled(analysis: Analysis, order: Mapping[str, np.ndarray]) -> ir.Model:
    """The groups permuted on one weight each only: what an incompletely found group would look like."""
    model = shrink(analysis.model, analysis.types, {})
    for name, index in order.items():
        weights = [weight for weight, _ in analysis.groups[name].weights]
        weight = max(weights, key=lambda w: model.graph.initializers[w].const_value.size)  # small ones may be all equal
        value = model.graph.initializers[weight]
        array = take(value.const_value.numpy(), analysis.types.axes[weight], analysis.keeps({name: index}))
        set_constant(value, array)
    return model


def _tolerance(model: ir.Model) -> float:
    return STEP if rounds(model) and rounds(unrounded(model)) else TOLERANCE


def _check(oracle: str, groups: tuple[str, ...], feed: Feed, dense, want, have, tolerance: float) -> Check:
    difference = compare(want, have)
    effect = compare(want, dense)
    if not difference <= tolerance or difference > max(SHARE * effect, NOISE):
        verdict = "mismatch"
    else:
        verdict = "exact" if effect > SHOWN and difference <= SHARE * effect else "vacuous"
    shapes = {k: tuple(v.shape) for k, v in feed.items()}
    return Check(oracle, groups, shapes, difference, effect, verdict)


def compare(want: Mapping[str, np.ndarray], have: Mapping[str, np.ndarray]) -> float:
    """Largest absolute difference over the outputs, each relative to the largest magnitude of `want`'s (at least
    `LEAST`); inf where shapes, names, or NaN and infinite entries differ."""
    if want.keys() != have.keys():
        return float("inf")
    worst = 0.0
    for name, a in want.items():
        b = have[name]
        if np.shape(a) != np.shape(b):
            return float("inf")
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return float("inf")
        if not finite.any():
            continue
        a, b = a[finite], b[finite]
        worst = max(worst, float(np.abs(a - b).max()) / max(float(np.abs(a).max()), LEAST))
    return worst
