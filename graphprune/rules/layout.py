"""Operators that merge, split and reorder axes without touching values: Reshape and its relatives, Transpose."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.dims import ONE, Dim, Prod, Type
from graphprune.patches import SizesAttribute
from graphprune.rules.base import Op, Rule, Sample, Types, axis_of
from graphprune.rules.shapes import sizes_operand

_MERGE = "merged axes do not line up"


def regroup(t: Types, op: Op, axes: Sequence[Type], shape: Sequence[int]) -> list[Type]:
    """Axis types of a row-major reinterpretation of `axes` as `shape`.

    Both shapes are cut into the shortest runs with equal products, so that a conflict in one run leaves the others
    alone. Several axes becoming one is a product; anything else is fresh axes and one equation.
    """
    if 0 in shape:
        t.freeze(list(axes), op.why("the axes of an empty tensor"))
        return _frozen(t, op, shape)
    result: list[Type] = []
    i = j = 0
    while i < len(axes) or j < len(shape):
        first_i, first_j, size_in, size_out = i, j, 1, 1
        while True:
            if i < len(axes) and (size_in < size_out or i == first_i):
                size_in *= axes[i].size
                i += 1
            elif j < len(shape) and (size_out < size_in or j == first_j):
                size_out *= shape[j]
                j += 1
            if size_in == size_out and (j > first_j or j == len(shape)) and (i > first_i or i == len(axes)):
                break
        run_in, run_out = axes[first_i:i], shape[first_j:j]
        wide = [n for n in run_out if n > 1]
        if len(wide) <= 1:
            merged = Prod(run_in)
            result.extend(merged if n > 1 else ONE for n in run_out)
        else:
            fresh = [Dim(n) if n > 1 else ONE for n in run_out]
            t.equal(Prod(run_in), Prod(fresh), op.why(_MERGE))
            result.extend(fresh)
    return result


def _frozen(t: Types, op: Op, shape: Sequence[int]) -> list[Type]:
    axes = [Dim(n) for n in shape]
    t.freeze(axes, op.why("the axes of an empty tensor"))
    return axes


def reshape(op: Op, t: Types) -> None:
    y = op.outputs[0]
    t.set(y, regroup(t, op, t[op.inputs[0]], t.shape(y)))
    target = op.input(1)
    if target is not None:
        sizes_operand(op, t, 1, t[y])
    else:
        t.patch(op.node, SizesAttribute("shape", tuple(t[y]), tuple(op.attr("shape"))))


def relayout(op: Op, t: Types) -> None:
    """Flatten, Squeeze, Unsqueeze: the output shape says it all and is derived, not stored."""
    y = op.outputs[0]
    t.set(y, regroup(t, op, t[op.inputs[0]], t.shape(y)))


def transpose(op: Op, t: Types) -> None:
    axes = t[op.inputs[0]]
    perm = op.attr("perm") or list(reversed(range(len(axes))))
    t.set(op.outputs[0], [axes[axis_of(p, len(axes))] for p in perm])


RULES = (
    Rule("Reshape", reshape, (
        Sample("s = Constant<value_ints=[0,-1,4]>()\nz = Reshape(x, s)\nt = Constant<value_ints=[2,12]>()\n"
               "y = Reshape(z, t)", (2, 12), groups=(3, 4)),
        Sample("s = Constant<value_ints=[2,24]>()\ny = Reshape(x, s)", (2, 6, 4), groups=(6,)),
        Sample("s = Constant<value_ints=[2,3,2,4]>()\na = Reshape(x, s)\nb = Transpose<perm=[0,2,1,3]>(a)\n"
               "r = Constant<value_ints=[2,6,4]>()\ny = Reshape(b, r)", (2, 6, 4), groups=(2, 3)),
    )),
    Rule("Flatten", relayout, (Sample("y = Flatten<axis=1>(x)", (2, 6, 4), groups=(6,)),)),
    Rule("Squeeze", relayout, (
        Sample("i = Constant<value_ints=[2]>()\ny = Squeeze(x, i)", (2, 6, 1), groups=(6,)),
        Sample("y = Squeeze<axes=[2]>(x)", (2, 6, 1), groups=(6,), opset=11),
    )),
    Rule("Unsqueeze", relayout, (
        Sample("y = Unsqueeze<axes=[0,3]>(x)", (2, 6, 4), out_axis=2, groups=(6,), opset=11),
        Sample("i = Constant<value_ints=[0,3]>()\ny = Unsqueeze(x, i)", (2, 6, 4), out_axis=2, groups=(6,)),
    )),
    Rule("Transpose", transpose, (
        Sample("y = Transpose<perm=[0,2,1]>(x)", (2, 6, 4), out_axis=2, groups=(6,)),
        Sample("y = Transpose(x)", (2, 6, 4), out_axis=1, groups=(6,)),
    )),
)
