"""Operators that put axes side by side, cut them, or grow them: Concat, Split, Slice, Gather, Pad, Expand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphprune.dims import ONE, Dim, Prod, Sum, Type, cut, norm
from graphprune.patches import (
    BoundsAttribute,
    BoundsOperand,
    IndexOperand,
    SizesAttribute,
    SizesOperand,
    traced,
)
from graphprune.rules.base import Entry, Op, Rule, Sample, Types, axis_of
from graphprune.rules.shapes import is_dynamic, sizes_operand

_PADDED = "the axis that is cropped or padded, and not by a constant"
_JOIN = "axes joined by concatenation do not line up"
_UNEVEN = "the axis that is sliced backwards or in steps that do not divide it"
_AT_RUN_TIME = "the axis whose slice bounds are computed at run time"


def concat(op: Op, t: Types) -> None:
    join(op, t, op.inputs)


def join(op: Op, t: Types, parts: Sequence[ir.Value]) -> None:
    """The output is `parts` side by side along the attribute's axis."""
    y = op.outputs[0]
    axis = axis_of(op.attr("axis", 1), len(t.shape(y)))
    result = list(t[parts[0]])
    for v in parts[1:]:
        for i, a in enumerate(t[v]):
            if i != axis:
                t.equal(result[i], a, op.why(_JOIN))
    result[axis] = Sum([t[v][axis] for v in parts])
    t.set(y, result)


def split(op: Op, t: Types) -> None:
    x = op.inputs[0]
    axis = axis_of(op.attr("axis", 0), len(t.shape(x)))
    rest, parts = t[x][axis], []
    for y in op.outputs:
        part, rest = cut(rest, t.shape(y)[axis])
        norm(t[x][axis])  # flattened piece by piece, not by recursion at the end
        parts.append(part)
        t.set(y, [*t[x][:axis], part, *t[x][axis + 1 :]])
    sizes = tuple(p.size for p in parts)
    if op.input(1) is not None:
        sizes_operand(op, t, 1, parts)
    elif op.version >= 13:
        t.patch(op.node, SizesOperand(1, sizes, tuple(parts)))
    else:
        t.patch(op.node, SizesAttribute("split", tuple(parts), sizes))


def slice_(op: Op, t: Types) -> None:
    x, y = op.inputs[0], op.outputs[0]
    rank = len(t.shape(x))
    if op.version >= 10:
        operands = [op.input(i) for i in range(1, 5)]
        starts, ends, axes, steps = (None if v is None else traced(t.known(v)) for v in operands)
        if not all(v is None or t.is_constant(v) for v in operands):
            return _opaque(op, t, {axis_of(a, rank) for a in axes or range(rank)})
    else:
        starts, ends, axes, steps = traced(op.attr("starts")), traced(op.attr("ends")), op.attr("axes"), None
    axes = [axis_of(a, rank) for a in (axes if axes is not None else range(len(starts)))]
    steps = steps or (1,) * len(axes)
    result, touched = list(t[x]), []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        whole = result[axis]
        first, past = _clamp(start, whole.size), _clamp(end, whole.size)
        touched.append(whole if step == 1 else None)
        if step == 1:
            result[axis] = cut(cut(whole, past)[0], min(first, past))[1]
        elif step > 1 and t.shape(y)[axis] * step == whole.size and _aligned(start, end, whole):
            result[axis] = Dim(whole.size // step)
            inner = Dim(step)
            t.freeze(inner, op.why("the steps of a strided slice"))
            t.equal(whole, Prod((result[axis], inner)), op.why("strided slice does not line up"))
        else:
            t.freeze(whole, op.why(_UNEVEN))
            result[axis] = Dim(t.shape(y)[axis])
            t.freeze(result[axis], op.why(_UNEVEN))
    t.set(y, result)
    if op.version >= 10:
        t.patch(op.node, BoundsOperand(1, starts, tuple(touched)))
        t.patch(op.node, BoundsOperand(2, ends, tuple(touched)))
    else:
        t.patch(op.node, BoundsAttribute("starts", starts, tuple(touched)))
        t.patch(op.node, BoundsAttribute("ends", ends, tuple(touched)))
    return None


def _aligned(start: int, end: int, axis: Type) -> bool:
    """Whether bounds of a strided slice that takes something of every stride mean the same on a shorter axis."""
    return (start >= 0 or start == -axis.size) and (end < 0 or end >= axis.size)


def _clamp(position: int, size: int) -> int:
    return min(max(position + size if position < 0 else position, 0), size)


def _opaque(op: Op, t: Types, sliced: set[int]) -> None:
    """Bounds computed at run time: the axes sliced freeze, the others pass."""
    x, y = op.inputs[0], op.outputs[0]
    result = list(t[x])
    for axis in sliced:
        t.freeze(result[axis], op.why(_AT_RUN_TIME))
        result[axis] = Dim(t.shape(y)[axis])
        t.freeze(result[axis], op.why(_AT_RUN_TIME), dynamic=True)
    t.set(y, result)


def gather(op: Op, t: Types) -> None:
    """A constant contiguous range is a cut; any other index freezes the axis it picks from."""
    data, indices = op.inputs[0], op.inputs[1]
    axes = t[data]
    axis = axis_of(op.attr("axis", 0), len(axes))
    picked: list[Type] = list(t[indices])
    if op.name in t.selections:
        t.freeze(axes[axis], op.why("a table that several nodes select from"))
        t.set(op.outputs[0], [*axes[:axis], *picked, *axes[axis + 1 :]])
        return
    if t.is_constant(indices) and len(picked) <= 1:
        old = traced(t.known(indices))
        start = _clamp(old[0], axes[axis].size) if old else 0
        size = axes[axis].size
        if [i + size if i < 0 else i for i in old] == list(range(start, start + len(old))):
            piece = cut(cut(axes[axis], start + len(old))[0], start)[1]
            if picked:
                t.equal(picked[0], piece, op.why("gathered range does not line up"))
            else:  # a scalar index drops the axis, so the index it picks must stay
                t.freeze(piece, op.why("the one index that is picked"))
            t.set(op.outputs[0], [*axes[:axis], *picked, *axes[axis + 1 :]])
            t.patch(op.node, IndexOperand(1, old, axes[axis], picked[0] if picked else ONE))
            return
    t.freeze(axes[axis], op.why("the axis that is looked up by index"))
    t.set(op.outputs[0], [*axes[:axis], *picked, *axes[axis + 1 :]])


def expand(op: Op, t: Types) -> None:
    """Axes that grow are fresh and free (grouped-query attention repeats heads so) unless grown to a run-time size."""
    x, y = op.inputs[0], op.outputs[0]
    shape = t.shape(y)
    axes = [ONE] * (len(shape) - len(t[x])) + list(t[x])
    entries = [()] * (len(shape) - len(t.entries(op.inputs[1]))) + t.entries(op.inputs[1])
    result: list[Type] = []
    for axis, n, entry in zip(axes, shape, entries, strict=True):
        if axis.size == n:
            result.append(axis)
            continue
        grown = Dim(n)
        if _varies(entry):
            t.freeze(grown, op.why("the axis that is repeated to a size known at run time"), dynamic=True)
        result.append(grown)
    t.set(y, result)
    sizes_operand(op, t, 1, result[len(result) - t.shape(op.inputs[1])[0] :])


def _varies(entry: Entry) -> bool:
    return entry is None or any(map(is_dynamic, entry))


def tile(op: Op, t: Types) -> None:
    """Each axis n repeated r times is Prod(r, n), the repeats being as free as what Expand grows."""
    x, y = op.inputs[0], op.outputs[0]
    counts = []
    for n, m, entry in zip(t.shape(x), t.shape(y), t.entries(op.inputs[1]), strict=True):
        count = Dim(m // n) if n else ONE
        if _varies(entry):
            t.freeze(count, op.why("the repeats of an axis, known at run time"), dynamic=True)
        counts.append(count)
    t.set(y, [Prod((count, axis)) for count, axis in zip(counts, t[x], strict=True)])
    sizes_operand(op, t, 1, counts)


def pad(op: Op, t: Types) -> None:
    """Constant padding puts frozen segments beside the axis; reflection and the like freeze it."""
    x, y = op.inputs[0], op.outputs[0]
    pads = t.known(op.input(1)) if op.version >= 11 else np.asarray(op.attr("pads"))
    constant = op.attr("mode", "constant") == "constant" and (op.version < 11 or t.is_constant(op.input(1)))
    if not constant or not (op.input(3) is None or t.is_constant(op.input(3))):
        return _opaque_where_resized(op, t)
    before, after = _per_axis(op, t, np.split(np.asarray(pads).reshape(-1), 2))
    result: list[Type] = []
    for axis, b, a in zip(t[x], before, after, strict=True):
        if b < 0 or a < 0:
            return _opaque_where_resized(op, t)
        sides = [Dim(int(b)), Dim(int(a))]
        t.freeze(sides, op.why("the padding beside an axis"))
        result.append(Sum((sides[0], axis, sides[1])) if a or b else axis)
    t.set(y, result)
    return None


def _per_axis(op: Op, t: Types, halves: list[np.ndarray]) -> list[np.ndarray]:
    """Paddings of every axis; those that the list of axes (from opset 18) leaves out have none."""
    rank = len(t[op.inputs[0]])
    axes = range(rank) if op.input(3) is None else [axis_of(int(a), rank) for a in t.known(op.input(3)).reshape(-1)]
    full = np.zeros((2, rank), np.int64)
    full[:, list(axes)] = halves
    return list(full)


def center_crop_pad(op: Op, t: Types) -> None:
    """Each axis, or each in the list of axes, cut or padded on both sides to a size: those that keep theirs pass."""
    x, y = op.inputs[0], op.outputs[0]
    rank = len(t[x])
    axes = [axis_of(a, rank) for a in op.attr("axes") or range(rank)]
    _opaque_where_resized(op, t)
    sizes_operand(op, t, 1, [t[y][a] for a in axes])


def _opaque_where_resized(op: Op, t: Types) -> None:
    x, y = op.inputs[0], op.outputs[0]
    result: list[Type] = []
    for axis, n in zip(t[x], t.shape(y), strict=True):
        if axis.size == n:
            result.append(axis)
            continue
        t.freeze(axis, op.why(_PADDED))
        result.append(Dim(n))
        t.freeze(result[-1], op.why(_PADDED), dynamic=True)
    t.set(y, result)


def constant_of_shape(op: Op, t: Types) -> None:
    """Axes of a constant tensor are fresh and free where their size is a constant of the graph."""
    axes = t.fresh(op.outputs[0])
    for axis, entry in zip(axes, t.entries(op.inputs[0]), strict=True):
        if _varies(entry):
            t.freeze(axis, op.why("the axis sized at run time"), dynamic=True)
    sizes_operand(op, t, 0, axes)


_EVEN_AND_ODD = (
    "z = Constant<value_ints=[0]>()\no = Constant<value_ints=[1]>()\ne = Constant<value_ints=[9223372036854775807]>()\n"
    "d = Constant<value_ints=[2]>()\np = Constant<value_ints=[2]>()\na = Slice(x, z, e, d, p)\n"
    "b = Slice(x, o, e, d, p)\n"
)

RULES = (
    Rule("Concat", concat, (
        Sample("y = Concat<axis=1>(x, w)", (2, 6, 4), weights={"w": (2, 3, 4)}, groups=(3, 6)),
        Sample("r = Relu(x)\ny = Concat<axis=1>(x, r)", (2, 6, 4), groups=(6,)),
    )),
    Rule("Split", split, (
        Sample("s = Constant<value_ints=[2,4]>()\na, b = Split<axis=1>(x, s)\ny = Concat<axis=1>(b, a)", (2, 6, 4),
               groups=(2, 4)),
        Sample("a, b = Split<axis=1, num_outputs=2>(x)\ny = Mul(a, b)", (2, 6, 4), groups=(3,)),
        Sample("a, b = Split<axis=1>(x)\ny = Mul(a, b)", (2, 6, 4), groups=(3,), opset=11),
        Sample("a, b = Split<axis=1, split=[2,4]>(x)\ny = Concat<axis=1>(b, a)", (2, 6, 4), groups=(2, 4), opset=7),
        Sample("a, b = Split<axis=1>(x)\ny = Mul(a, b)", (2, 6, 4), groups=(3,), opset=13),
    )),
    Rule("Slice", slice_, (
        Sample("s = Constant<value_ints=[1]>()\ne = Constant<value_ints=[-1]>()\na = Constant<value_ints=[1]>()\n"
               "y = Slice(x, s, e, a)", (2, 6, 4), groups=(4,)),
        Sample("s = Constant<value_ints=[1]>()\ne = Constant<value_ints=[9223372036854775807]>()\n"
               "a = Constant<value_ints=[1]>()\np = Constant<value_ints=[2]>()\ny = Slice(x, s, e, a, p)", (2, 6, 4),
               groups=(3,)),
        Sample("s = Constant<value_ints=[-1]>()\ne = Constant<value_ints=[-100]>()\na = Constant<value_ints=[1]>()\n"
               "p = Constant<value_ints=[-1]>()\ny = Slice(x, s, e, a, p)", (2, 6, 4)),
        Sample("y = Slice<starts=[2], ends=[6], axes=[1]>(x)", (2, 6, 4), groups=(4,), opset=9),
        Sample("y = Slice<starts=[0,1], ends=[9,-1]>(x)", (2, 6, 4), groups=(4,), opset=7),
        Sample(f"{_EVEN_AND_ODD}n = Neg(b)\nm = Constant<value_ints=[-1]>()\nu = Unsqueeze(n, m)\n"
               "v = Unsqueeze(a, m)\nc = Concat<axis=-1>(u, v)\nf = Constant<value_ints=[0,0,-1]>()\n"
               "r = Reshape(c, f)\nt = Mul(r, w)\ny = Add(t, x)", (2, 3, 6), axis=2, out_axis=2,
               weights={"w": (3, 6)}, groups=(3,)),  # rotary embedding of neighbours
        Sample(f"{_EVEN_AND_ODD}y = Concat<axis=1>(a, b)", (2, 6, 4), axis=1, groups=(6,)),  # space to channels
        Sample("z = Constant<value_ints=[0]>()\nc = Constant<value_ints=[4]>()\ne = Constant<value_ints=[99]>()\n"
               "d = Constant<value_ints=[1]>()\na = Slice(x, z, c, d)\nb = Slice(x, c, e, d)\n"
               "y = Concat<axis=1>(b, a)", (2, 6, 4), groups=(2, 4)),  # torch.roll
    )),
    Rule("Gather", gather, (
        Sample("i = Constant<value_ints=[2,3,4,5]>()\ny = Gather<axis=1>(x, i)", (2, 6, 4), groups=(4,)),
        Sample("i = Constant<value_ints=[5,0,3]>()\ny = Gather<axis=1>(x, i)", (2, 6, 4)),
        Sample("s = Constant<value_ints=[2,2,3]>()\nr = Reshape(x, s)\ni = Constant<value_int=0>()\n"
               "j = Constant<value_int=1>()\na = Gather<axis=1>(r, i)\nb = Gather<axis=1>(r, j)\ny = Mul(a, b)", (2, 6),
               groups=(3,)),
    )),
    Rule("Expand", expand, (
        Sample("a = Constant<value_ints=[2]>()\nu = Unsqueeze(x, a)\ns = Constant<value_ints=[1,1,3,1]>()\n"
               "e = Expand(u, s)\nr = Constant<value_ints=[2,18,4]>()\ny = Reshape(e, r)", (2, 6, 4), groups=(6,)),
    )),
    Rule("Tile", tile, (
        Sample("s = Constant<value_ints=[1,3,1]>()\ny = Tile(x, s)", (2, 6, 4), groups=(6,)),
    )),
    Rule("Pad", pad, (
        Sample("p = Constant<value_ints=[0,1,0,0,2,0]>()\ny = Pad(x, p)", (2, 6, 4), groups=(6,)),
        Sample("y = Pad(x, p)", (2, 6, 4), weights={"p": np.array([0, 1, 0, 0, 2, 0])}, groups=(6,), opset=11),
        Sample('p = Constant<value_ints=[0,1,0,0,2,0]>()\ny = Pad<mode="reflect">(x, p)', (2, 6, 4)),
        Sample("y = Pad<pads=[0,0,1,0,0,1]>(x)", (2, 6, 4), groups=(6,), opset=9),
        Sample("p = Constant<value_ints=[1,2]>()\na = Constant<value_ints=[-2]>()\ny = Pad(x, p, , a)", (2, 6, 4),
               groups=(6,)),
        Sample('p = Constant<value_ints=[0,0,1,0,0,2]>()\ny = Pad<mode="wrap">(x, p)', (2, 6, 4), groups=(6,),
               opset=19),
    )),
    Rule("CenterCropPad", center_crop_pad, (
        Sample("n = Constant<value_ints=[2,6,7]>()\ny = CenterCropPad(x, n)", (2, 6, 4), groups=(6,)),
        Sample("n = Constant<value_ints=[3]>()\ny = CenterCropPad<axes=[-1]>(x, n)", (2, 6, 4), groups=(6,)),
        Sample("n = Constant<value_ints=[4]>()\ny = CenterCropPad<axes=[1]>(x, n)", (2, 6, 4)),
    )),
    Rule("ConstantOfShape", constant_of_shape, (
        Sample("s = Constant<value_ints=[2,6,4]>()\nz = ConstantOfShape(s)\ny = Add(x, z)", (2, 6, 4), groups=(6,)),
    )),
)
