"""Operators on shapes themselves, and how the integers they make are followed: an integer that comes from the size
of an axis may only end in a shape operand, where a patch renews it. Anywhere else it is a number of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphprune.dims import Dim, Type, leaves
from graphprune.patches import SizesOperand, traced
from graphprune.rules.base import Entry, Op, Rule, Sample, Types, axis_of

_LIMIT = 4096
"""Integer values with more entries than this are not followed one by one."""

SHAPE_OPERANDS = {
    "AffineGrid": 1, "CenterCropPad": 1, "ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3, "Split": 1,
    "Tile": 1,
}  # fmt: skip
"""Operands whose rules renew them by `sizes_operand`."""
_MOVES = ("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze", "Flatten")
_MIXES = (
    "Abs Add And Ceil Div Equal Expand Floor Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Neg Not Or "
    "ReduceMax ReduceMin ReduceProd ReduceSum Sub Sum Where"
)


def shape(op: Op, t: Types) -> None:
    axes = t[op.inputs[0]]
    start = axis_of(op.attr("start", 0), len(axes))
    stop = axis_of(op.attr("end", len(axes)), len(axes))
    t.freeze(t.fresh(op.outputs[0]), op.why("the numbers of a shape"))
    t.sizes_of[op.outputs[0].name] = [(a,) for a in axes[start:stop]]


def size(op: Op, t: Types) -> None:
    t.set(op.outputs[0], [])
    t.sizes_of[op.outputs[0].name] = [tuple(a for a in t[op.inputs[0]] if a.size > 1)]


def range_(op: Op, t: Types) -> None:
    """Positions along an axis: as long as its bounds say, so free only where they are constants of the graph."""
    axis = Dim(t.shape(op.outputs[0])[0])
    t.freeze(axis, op.why("the axis of positions"), dynamic=not all(t.is_constant(v) for v in op.inputs))
    t.set(op.outputs[0], [axis])


def follow(op: Op, t: Types) -> None:
    """Carry what integers were computed from across one node; freeze the axes concerned where they stop being sizes."""
    sources = {i: t.sizes_of[v.name] for i, v in enumerate(op.inputs) if v is not None and v.name in t.sizes_of}
    sources.pop(SHAPE_OPERANDS.get(op.type), None)
    if op.type in ("Shape", "Size"):
        return
    y = op.outputs[0]
    if not sources:
        if op.type == "ConstantOfShape" and t.is_constant(op.inputs[0]) and y.name in t.values:
            t.sizes_of[y.name] = [()] * t.values[y.name].size  # constants by another name
        return
    followed = 0 < int(np.prod(t.shape(y))) <= _LIMIT and t.values.get(y.name) is not None
    if op.type in _MOVES and followed:
        t.sizes_of[y.name] = _moved(op, t)
        sources = {i: e for i, e in sources.items() if i and op.type != "Concat"}
    elif op.type in _MIXES.split() and followed and all(v is None or i in sources or t.is_constant(v)
                                                for i, v in enumerate(op.inputs)):
        t.sizes_of[y.name] = _mixed(op, t)
        return
    for entries in sources.values():
        for entry in entries:
            t.freeze(list(entry or ()), op.why("its size is used as a number"))


def _mixed(op: Op, t: Types) -> list[Entry]:
    """Entries after an operator that computes: element by element where it does so, else each from all."""
    shape = t.shape(op.outputs[0])
    inputs = [v for v in op.inputs if v is not None]
    if op.type.startswith("Reduce") or op.type == "Expand":
        together = tuple(a for v in inputs for entry in t.entries(v) for a in entry or ())
        return [together] * int(np.prod(shape))
    columns = [
        [t.entries(v)[i] for i in np.broadcast_to(np.arange(np.prod(t.shape(v), dtype=int)).reshape(t.shape(v)),
                                                  shape).reshape(-1)]
        for v in inputs
    ]  # fmt: skip
    return [tuple(a for entry in row for a in entry or ()) for row in zip(*columns, strict=True)]


def sizes_operand(op: Op, t: Types, operand: int, axes: Sequence[Type]) -> None:
    """Operand number `operand` of `op` holds the sizes of `axes`: leave a patch that renews it.

    An entry computed from sizes when the model runs is stated anew once they shrink; that needs its axis to have one
    size in all feeds, so where it varies, all concerned freeze.
    """
    value = op.inputs[operand]
    old, entries = traced(t.known(value)), t.entries(value)
    for n, axis, entry in zip(old, axes, entries, strict=True):
        if entry is None:
            t.freeze(axis, op.why("the axis sized by data"), dynamic=True)
        elif entry and (n != axis.size or is_dynamic(axis)):
            t.freeze([axis, *entry], op.why("its size is part of one that varies by feed"))
    sources = tuple(entry or () for entry in entries)
    t.patch(op.node, SizesOperand(operand, old, tuple(axes), sources if any(sources) else ()))


def is_dynamic(axis: Type) -> bool:
    """Whether the size of the axis varies by feed."""
    return any(d.dynamic for d in leaves(axis))


def _moved(op: Op, t: Types) -> list[Entry]:
    """Entries after an operator that only moves them, found by moving their numbers instead."""
    inputs, table = [], []
    for v in op.inputs[: None if op.type == "Concat" else 1]:
        entries = t.entries(v)
        inputs.append(np.arange(len(table), len(table) + len(entries)).reshape(t.shape(v)))
        table.extend(entries)
    order = _MOVERS.get(op.type, lambda op, t, arrays: arrays[0])(op, t, inputs)
    return [table[i] for i in order.reshape(-1)]


def _slice(op: Op, t: Types, arrays: list[np.ndarray]) -> np.ndarray:
    rank = arrays[0].ndim
    if op.version >= 10:
        starts, ends, axes, steps = (None if op.input(i) is None else t.known(op.input(i)) for i in range(1, 5))
    else:
        starts, ends, axes, steps = op.attr("starts"), op.attr("ends"), op.attr("axes"), None
    index = [slice(None)] * rank
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -arrays[0].shape[axis] else int(end)
        index[axis] = slice(int(start), stop, int(step))
    return arrays[0][tuple(index)]


_MOVERS: dict[str, Callable[[Op, Types, list[np.ndarray]], np.ndarray]] = {
    "Concat": lambda op, t, arrays: np.concatenate(arrays, axis=op.attr("axis")),
    "Gather": lambda op, t, arrays: np.take(arrays[0], t.known(op.inputs[1]), axis=op.attr("axis", 0)),
    "Slice": _slice,
}

RULES = (
    Rule("Shape", shape, (
        Sample("s = Shape(x)\ny = Reshape(x, s)", (2, 6, 4), groups=(6,)),
        Sample("s = Shape<start=-2>(x)\nb = Shape<end=1>(x)\nc = Concat<axis=0>(b, s)\ny = Reshape(x, c)", (2, 6, 4),
               groups=(6,)),
        Sample("i = Constant<value_int=1>()\ns = Shape(x)\nc = Gather(s, i)\nf = Cast<to=1>(c)\ny = Mul(x, f)",
               (2, 6, 4), groups=(6,)),
    )),
    Rule("Size", size, (Sample("n = Size(x)\nf = Cast<to=1>(n)\ny = Div(x, f)", (2, 6, 4), groups=(6,)),)),
    Rule("Range", range_, (
        Sample("a = Constant<value_float=0.0>()\nb = Constant<value_float=4.0>()\nc = Constant<value_float=1.0>()\n"
               "r = Range(a, b, c)\ny = Add(x, r)", (2, 6, 4), groups=(6,)),
    )),
)
