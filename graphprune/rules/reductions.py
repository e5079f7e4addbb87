"""Operators that reduce over axes or rank along them. A sum is a contraction like any other; other reductions are
statistics, so removing an index differs from zeroing it; ranks and running sums depend on position and freeze."""

from __future__ import annotations

import numpy as np

from graphprune.dims import ONE, Dim, Type
from graphprune.rules.base import Op, Rule, Sample, Types, axis_of, freeze_all
from graphprune.rules.norms import statistic


def reduce(op: Op, t: Types) -> None:
    """Reduced axes become 1 or vanish. Axes are an operand (from opset 13 for ReduceSum, 18 for the others) or not."""
    x, y = op.inputs[0], op.outputs[0]
    axes = t[x]
    reduced = _reduced(op, t, len(axes))
    if reduced is None:
        freeze_all(op, t, "every axis of a reduction over axes computed at run time")
        return
    for i in reduced:
        if op.type == "ReduceSum":
            t.contract(op, 0, i)
        else:
            statistic(op, t, [axes[i]])
    if op.attr("keepdims", 1):
        t.set(y, [ONE if i in reduced else a for i, a in enumerate(axes)])
    else:
        t.set(y, [a for i, a in enumerate(axes) if i not in reduced])


def _reduced(op: Op, t: Types, rank: int) -> set[int] | None:
    axes = op.attr("axes")
    if op.input(1) is not None:
        if not t.is_constant(op.input(1)):
            return None
        axes = t.known(op.input(1)).reshape(-1).tolist()
    if not axes:
        return set() if op.attr("noop_with_empty_axes", 0) else set(range(rank))
    return {axis_of(a, rank) for a in axes}


def arg(op: Op, t: Types) -> None:
    """The position of the largest or smallest: the axis is looked at as a whole and freezes."""
    axes = list(t[op.inputs[0]])
    axis = axis_of(op.attr("axis", 0), len(axes))
    t.freeze(axes[axis], op.why("the axis that is ranked"))
    axes[axis : axis + 1] = [ONE] if op.attr("keepdims", 1) else []
    t.set(op.outputs[0], axes)


def top_k(op: Op, t: Types) -> None:
    axes: list[Type] = list(t[op.inputs[0]])
    axis = axis_of(op.attr("axis", -1), len(axes))
    t.freeze(axes[axis], op.why("the axis that is ranked"))
    axes[axis] = Dim(t.shape(op.outputs[0])[axis])
    t.freeze(axes[axis], op.why("the axis of ranks"), dynamic=not t.is_constant(op.input(1)) and op.version >= 10)
    for y in op.outputs:
        t.set(y, axes)


def cumulate(op: Op, t: Types) -> None:
    """A running sum: order matters along the axis."""
    axes = t[op.inputs[0]]
    axis = t.known(op.inputs[1]) if t.is_constant(op.inputs[1]) else None
    along = axes if axis is None else [axes[axis_of(int(axis.reshape(())), len(axes))]]
    t.freeze(list(along), op.why("the axis that is accumulated in order"))
    t.set(op.outputs[0], axes)


def _samples(op: str) -> tuple[Sample, ...]:
    across = {"groups" if op == "ReduceSum" else "inexact": (6,)}
    space, channels = (f"a = Constant<value_ints=[{axis}]>()\n" for axis in (2, 1))
    p = "p = Abs(x)\n"  # so that logarithms have something to be taken of
    return (
        Sample(f"{p}{space}y = {op}(p, a)", (2, 6, 4), groups=(6,)),
        Sample(f"{p}{channels}r = {op}(p, a)\ny = Mul(r, x)", (2, 6, 4), **across),
        Sample(f"{p}y = {op}<axes=[2], keepdims=0>(p)", (2, 6, 4), groups=(6,), opset=11),
        Sample(f"{p}y = {op}<noop_with_empty_axes=1>(p)", (2, 6, 4), groups=(6,)),
        Sample(f"{p}r = {op}<keepdims=0>(p)\ny = Mul(r, x)", (2, 6, 4), **across),
    )


RULES = (
    *(
        Rule(f"Reduce{kind}", reduce, _samples(f"Reduce{kind}"))
        for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    ),
    *(
        Rule(op, arg, (
            Sample(f"i = {op}<axis=2>(x)\ny = Cast<to=1>(i)", (2, 6, 4), groups=(6,)),
            Sample(f"i = {op}<axis=1>(x)\nf = Cast<to=1>(i)\ny = Mul(f, x)", (2, 6, 4)),
            Sample(f"i = {op}<axis=2, keepdims=0>(x)\ny = Cast<to=1>(i)", (2, 6, 4), groups=(6,), opset=11),
        ))
        for op in ("ArgMax", "ArgMin")
    ),
    Rule("TopK", top_k, (
        Sample("k = Constant<value_ints=[2]>()\ny, i = TopK(x, k)", (2, 6, 4), groups=(6,)),
        Sample("k = Constant<value_ints=[2]>()\ny, i = TopK<axis=1>(x, k)", (2, 6, 4)),
        Sample("y, i = TopK(x, k)", (2, 6, 4), weights={"k": np.array([2])}, groups=(6,), opset=10),
        Sample("y, i = TopK<k=2>(x)", (2, 6, 4), groups=(6,), opset=9),
    )),
    *(
        Rule(op, cumulate, (
            Sample(f"a = Constant<value_int=2>()\ny = {op}(x, a)", (2, 6, 4), groups=(6,), opset=opset),
            Sample(f"a = Constant<value_int=1>()\ny = {op}(x, a)", (2, 6, 4), opset=opset),
        ))
        for op, opset in (("CumSum", 18), ("CumProd", 26))
    ),
)
