"""Operators on space: pooling, resampling and the exchange of space against channels. Channels pass, space freezes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.dims import ONE, Dim, Prod, Type
from graphprune.rules.base import Op, Rule, Sample, Types, axis_of
from graphprune.rules.linear import spatial
from graphprune.rules.shapes import sizes_operand


def pool(op: Op, t: Types) -> None:
    """x [N, C, *s] -> y [N, C, *s']. MaxPool's indices count through all channels: whoever uses them freezes C."""
    x = op.inputs[0]
    spatial(op, t, t[x][1])
    for indices in op.outputs[1:]:
        if indices.name in t.shapes:
            if indices.uses() or indices.is_graph_output():
                t.freeze(t[x][1], op.why("counted through by MaxPool's indices"))
            t.set(indices, t[op.outputs[0]])


def global_pool(op: Op, t: Types) -> None:
    x = op.inputs[0]
    t.freeze(t[x][2:], op.why("spatial axis"))
    t.set(op.outputs[0], [*t[x][:2], *[ONE] * (len(t[x]) - 2)])


def resize(op: Op, t: Types) -> None:
    """An axis whose scale is 1, or whose size is stated and stays, passes; the others are space and freeze.

    Upsample: scales as attribute, from opset 9 as operand 1. Resize: scales operand 1 at opset 10; operands
    roi, scales, sizes from opset 11; a list of axes they are for from opset 18.
    """
    x, y = op.inputs[0], op.outputs[0]
    rank = len(t.shape(x))
    axes = [axis_of(a, rank) for a in op.attr("axes") or range(rank)]
    passes = set(range(rank)) - set(axes)
    at = 2 if op.type == "Resize" and op.version >= 11 else 1
    scales, sizes = op.input(at), op.input(3) if at == 2 else None
    factors = op.attr("scales")
    if scales is not None and t.shape(scales) != (0,):
        factors = t.known(scales) if t.is_constant(scales) else None
    if factors is not None and len(factors):
        passes |= {a for a, f in zip(axes, factors, strict=True) if f == 1.0}
    elif sizes is not None and op.attr("keep_aspect_ratio_policy", "stretch") == "stretch":
        passes |= {a for a in axes if t.shape(x)[a] == t.shape(y)[a]}
    if op.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        passes -= set(axes)
    result = list(t[x])
    for a in set(range(rank)) - passes:
        t.freeze(result[a], op.why("spatial axis"))
        result[a] = Dim(t.shape(y)[a])
        t.freeze(result[a], op.why("spatial axis"), dynamic=True)
    t.set(y, result)
    if sizes is not None:
        sizes_operand(op, t, 3, [result[a] for a in axes])


def grid_sample(op: Op, t: Types) -> None:
    """x [N, C, *s], grid [N, *s', r] -> [N, C, *s']."""
    x, grid = op.inputs
    t.equal(t[x][0], t[grid][0], op.why("batches do not line up"))
    t.freeze([*t[x][2:], *t[grid][1:]], op.why("spatial axis"))
    t.set(op.outputs[0], [*t[x][:2], *t[grid][1:-1]])


def roi(op: Op, t: Types) -> None:
    """x [N, C, h, w], regions [R, ..] -> [R, C, h', w']."""
    x, regions = op.inputs[:2]
    t.freeze([t[x][0], *t[x][2:]], op.why("looked up by region"))
    for v in op.inputs[1:]:
        t.freeze(t[v], op.why("regions"), dynamic=True)
    size = [Dim(n) for n in t.shape(op.outputs[0])[2:]]
    t.freeze(size, op.why("spatial axis"))
    t.set(op.outputs[0], [t[regions][0], t[x][1], *size])


def space_and_channels(op: Op, t: Types) -> None:
    """DepthToSpace: x.C = Prod(b, b, c) (DCR) or Prod(c, b, b) (CRD) -> y.C = c; SpaceToDepth is its DCR inverse."""
    x, y = op.inputs[0], op.outputs[0]
    block = op.attr("blocksize")
    blocks = [Dim(block), Dim(block)]
    t.freeze(blocks, op.why("pixels of a block"))
    t.freeze(t[x][2:], op.why("spatial axis"))
    if op.type == "SpaceToDepth":
        channels: Type = Prod((*blocks, t[x][1]))
    else:
        channels = Dim(t.shape(y)[1])
        crd = op.attr("mode", "DCR") == "CRD"
        t.equal(t[x][1], Prod((channels, *blocks) if crd else (*blocks, channels)), op.why("channels do not divide"))
    space = [Dim(n) for n in t.shape(y)[2:]]
    t.freeze(space, op.why("spatial axis"), dynamic=True)
    t.set(y, [t[x][0], channels, *space])


_X = (2, 6, 4, 4)


def _one(op: str, apply: Callable[[Op, Types], None], text: str, *more: Sample) -> Rule:
    return Rule(op, apply, (Sample(text, _X, groups=(6,)), *more))


RULES = (
    _one("MaxPool", pool, "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)",
         Sample("y, i = MaxPool<kernel_shape=[2,2]>(x)", _X, groups=(6,)),
         Sample("z, i = MaxPool<kernel_shape=[2,2]>(x)\nf = Cast<to=1>(i)\ny = Add(z, f)", _X)),
    _one("AveragePool", pool, "y = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(x)"),
    _one("LpPool", pool, "y = LpPool<kernel_shape=[2,2]>(x)"),
    _one("GlobalAveragePool", global_pool, "y = GlobalAveragePool(x)"),
    _one("GlobalMaxPool", global_pool, "y = GlobalMaxPool(x)"),
    _one("GlobalLpPool", global_pool, "y = GlobalLpPool(x)"),
    Rule("Resize", resize, (
         Sample('y = Resize<mode="nearest">(x, , s)', _X, weights={"s": np.array([1, 1, 2, 2], np.float32)},
                groups=(6,)),
         Sample('n = Constant<value_ints=[2,6,8,7]>()\ny = Resize<mode="linear">(x, , , n)', _X, groups=(6,)),
         Sample('n = Constant<value_ints=[8,7]>()\ny = Resize<axes=[2,3]>(x, , , n)', _X, groups=(6,)),
         Sample("y = Resize(x, s)", _X, weights={"s": np.array([1, 1, 2, 2], np.float32)}, groups=(6,), opset=10),
         Sample("y = Resize(x, , s)", _X, weights={"s": np.array([1, 1.5, 2, 2], np.float32)}))),
    Rule("Upsample", resize, (
        Sample("y = Upsample<scales=[1.0,1.0,2.0,2.0]>(x)", _X, groups=(6,), opset=7),
        Sample("y = Upsample(x, s)", _X, weights={"s": np.array([1, 1, 2, 3], np.float32)}, groups=(6,), opset=9),
    )),
    Rule("GridSample", grid_sample, (
        Sample("y = GridSample(x, g)", _X, weights={"g": (2, 3, 3, 2)}, groups=(6,)),
    )),
    Rule("RoiAlign", roi, (
        Sample("y = RoiAlign<output_height=2, output_width=2>(x, r, i)", _X,
               weights={"r": np.array([[0, 0, 3, 3], [1, 1, 3, 3]], np.float32), "i": np.array([0, 1])}, groups=(6,)),
    )),
    Rule("DepthToSpace", space_and_channels, (
        Sample("y = DepthToSpace<blocksize=2>(x)", (2, 12, 3, 3), groups=(3,)),
        Sample('y = DepthToSpace<blocksize=2, mode="CRD">(x)', (2, 12, 3, 3), groups=(3,)),
    )),
    Rule("SpaceToDepth", space_and_channels, (
        Sample("y = SpaceToDepth<blocksize=2>(x)", _X, groups=(6,)),
    )),
)
