"""The certificate: proof by running that pruning a model removed exactly what it said, and nothing else.

Masked oracle: the pruned model computes what the dense one does when every operator that sums over a removed channel
is made to skip it. Permutation oracle: reordering a group everywhere changes nothing; it holds even where removal is
not zeroing (the axis is a statistic of a norm), and so certifies that the group was found completely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from graphprune.dims import Keeps, kept, new_size
from graphprune.edit import new_constant, set_constant, shrink
from graphprune.groups import Analysis
from graphprune.trace import Feed, Run

TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, that rounding may explain."""
LEAST = 1e-3
"""Outputs smaller than this are compared as if they were this large: a sigmoid's 1e-6 is all rounding."""
SHARE = 0.05
"""The difference must also be under this share of what the removal itself changes."""


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
    for c in analysis.types.contracted:
        node = nodes[c.node]
        value = node.inputs[c.operand]
        axes = analysis.types.axes[_original(value)]
        t = axes[c.axis]
        if new_size(t, keeps) == t.size:
            continue
        shape = [1] * len(axes)
        shape[c.axis] = t.size
        mask = np.zeros(t.size)
        mask[kept(t, keeps)] = 1
        dtype = value.dtype or ir.DataType.FLOAT
        constant = new_constant(copy.graph, f"{node.name}.mask", mask.reshape(shape).astype(dtype.numpy()))
        mul = ir.node("Mul", [value, constant], name=f"{node.name}.masked{c.operand}")
        mul.outputs[0].name = f"{_original(value)}\0{node.name}.{c.operand}.{c.axis}"
        mul.outputs[0].dtype = dtype
        copy.graph.insert_before(node, mul)
        node.replace_input_with(c.operand, mul.outputs[0])
    return copy


def _original(value: ir.Value) -> str:
    # A value masked along one axis stays the same value for a mask along another.
    return value.name.split("\0")[0]


def certify(analysis: Analysis, keep: Mapping[str, np.ndarray], feeds: Sequence[Feed], run: Run) -> list[Check]:
    """Check keep sets (group name to kept indices), all at once, on every feed.

    Exact groups by the masked oracle, the others by the permutation oracle. Runs with optimisation off.
    """
    keep = {n: k for n, k in keep.items() if len(k) < analysis.groups[n].size}
    exact = {n: k for n, k in keep.items() if analysis.groups[n].inexact is None}
    inexact = [n for n in keep if n not in exact]
    model, checks = analysis.model, []
    if exact:
        keeps = analysis.keeps(exact)
        pruned, reference = shrink(model, analysis.types, keeps), masked(model, analysis, keeps)
        for feed in feeds:
            dense, want, have = run(model, feed), run(reference, feed), run(pruned, feed)
            checks.append(_check("masked", tuple(exact), feed, dense, want, have))
    if inexact:
        rng = np.random.default_rng(0)
        order = {n: rng.permutation(analysis.groups[n].size) for n in inexact}
        permuted = shrink(model, analysis.types, analysis.keeps(order))
        scrambled = shrink(model, analysis.types, analysis.keeps({}))
        _scramble(scrambled, analysis, order)
        for feed in feeds:
            dense, have = run(model, feed), run(permuted, feed)
            checks.append(_check("permutation", tuple(inexact), feed, run(scrambled, feed), dense, have))
    return checks


def _scramble(model: ir.Model, analysis: Analysis, order: Mapping[str, np.ndarray]) -> None:
    """Permute the groups on one weight each only: what an incompletely found group would look like."""
    for name, index in order.items():
        weight, axis = analysis.groups[name].weights[0]
        value = model.graph.initializers[weight]
        where = kept(analysis.types.axes[weight][axis], {analysis.groups[name].dim: index})
        set_constant(value, np.take(value.const_value.numpy(), where, axis=axis))


def _check(oracle: str, groups: tuple[str, ...], feed: Feed, dense, want, have) -> Check:
    difference = compare(want, have)
    effect = compare(want, dense)
    if not difference <= TOLERANCE or (difference > SHARE * effect and difference > 1e-6):
        verdict = "mismatch"
    else:
        verdict = "exact" if effect > 1e-6 and difference <= SHARE * effect else "vacuous"
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
