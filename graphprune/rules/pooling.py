"""Operators on space: pooling, resampling and the exchange of space against channels. Channels pass, space freezes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.dims import ONE, Dim, Prod, Type
from graphprune.rules.base import Op, Rule, Sample, Types, axis_of
from graphprune.rules.linear import place_by_place, spatial
from graphprune.rules.shapes import sizes_operand


def pool(op: Op, t: Types) -> None:
    """x [N, C, *s] -> y [N, C, *s']. MaxPool's indices count through all channels: whoever uses them freezes C."""
    x = op.inputs[0]
    counted = any(y.name in t.shapes for y in op.outputs[1:])
    spatial(op, t, t[x][1], passes=None if counted else place_by_place(op, op.attr("kernel_shape")))
    for indices in op.outputs[1:]:
        if indices.name in t.shapes:
            if indices.uses() or indices.is_graph_output():
                t.freeze(t[x][1], op.why(_COUNTED))
            t.set(indices, t[op.outputs[0]])


def channels_last_pool(op: Op, t: Types) -> None:
    """x [N, *s, C] -> y [N, *s', C]; the ones that know both layouts say so in an attribute."""
    last = bool(op.attr("channels_last", op.type == "NhwcMaxPool"))
    spatial(op, t, t[op.inputs[0]][-1 if last else 1], channels_last=last)


def unpool(op: Op, t: Types) -> None:
    """x [N, C, *s] written to the places that MaxPool's indices, which count through N, C and space, say."""
    x, indices = op.inputs[:2]
    t.freeze([*t[x][:2], *t[indices]], op.why(_COUNTED))
    spatial(op, t, t[x][1])


def global_pool(op: Op, t: Types) -> None:
    x = op.inputs[0]
    where = slice(1, -1) if op.attr("channels_last", 0) else slice(2, None)
    t.freeze(t[x][where], op.why("spatial axis"))
    axes: list[Type] = list(t[x])
    axes[where] = [ONE] * len(axes[where])
    t.set(op.outputs[0], axes)


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


def affine_grid(op: Op, t: Types) -> None:
    """theta [N, r, r + 1], size (N, C, *s) -> [N, *s, r]. C is asked for and not used."""
    theta, y = op.inputs[0], op.outputs[0]
    rank = t.shape(y)[-1]
    coordinates = Dim(rank)
    space = [Dim(n) for n in t.shape(y)[1:-1]]
    t.freeze([coordinates, *t[theta][1:]], op.why("the axis of coordinates"))
    t.freeze(space, op.why("spatial axis"), dynamic=True)
    t.set(y, [t[theta][0], *space, coordinates])
    sizes = t.known(op.inputs[1])
    if sizes is None:
        t.freeze(t[theta][0], op.why("the axis sized by data"), dynamic=True)
    else:
        sizes_operand(op, t, 1, [t[theta][0], Dim(int(sizes[1])), *space])


def columns_to_image(op: Op, t: Types) -> None:
    """x [N, C taps, blocks], image shape, block shape -> [N, C, *image]."""
    x, _, block = op.inputs
    y = op.outputs[0]
    channels, taps = Dim(t.shape(y)[1]), Dim(int(np.prod(t.known(block))))
    t.freeze([taps, t[x][2]], op.why("kernel taps"))
    t.equal(t[x][1], Prod((channels, taps)), op.why("channels do not divide"))
    space = [Dim(n) for n in t.shape(y)[2:]]
    t.freeze(space, op.why("spatial axis"), dynamic=True)
    t.set(y, [t[x][0], channels, *space])


def roi(op: Op, t: Types) -> None:
    """x [N, C, h, w], regions [R, ..] -> [R, C, h', w']."""
    x, regions = op.inputs[:2]
    t.freeze([t[x][0], *t[x][2:]], op.why("the axes that regions are cut from"))
    for v in op.inputs[1:]:
        t.freeze(t[v], op.why("the axis of regions"), dynamic=True)
    size = [Dim(n) for n in t.shape(op.outputs[0])[2:]]
    t.freeze(size, op.why("spatial axis"))
    t.set(op.outputs[0], [t[regions][0], t[x][1], *size])


def space_and_channels(op: Op, t: Types) -> None:
    """DepthToSpace: x.C = Prod(b, b, c) (DCR) or Prod(c, b, b) (CRD) -> y.C = c; SpaceToDepth is its DCR inverse."""
    x, y = op.inputs[0], op.outputs[0]
    block = op.attr("blocksize")
    blocks = [Dim(block), Dim(block)]
    t.freeze(blocks, op.why("the pixels of a block"))
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


_COUNTED = "the axis of channels, counted through by MaxPool's indices"
_X = (2, 6, 4, 4)
_BYTES = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}
_REGIONS = np.array([[0, 0, 0, 3, 3], [1, 1, 1, 3, 3]], np.float32)


def _one(op: str, apply: Callable[[Op, Types], None], text: str, *more: Sample) -> Rule:
    return Rule(op, apply, (Sample(text, _X, groups=(6,)), *more))


RULES = (
    _one("MaxPool", pool, "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)",
         Sample("y, i = MaxPool<kernel_shape=[2,2]>(x)", _X, groups=(6,)),
         Sample("z, i = MaxPool<kernel_shape=[2,2]>(x)\nf = Cast<to=1>(i)\ny = Add(z, f)", _X)),
    _one("AveragePool", pool, "y = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(x)",
         Sample("y = AveragePool<kernel_shape=[2,1], strides=[2,1]>(x)", (2, 3, 4, 6), axis=3, out_axis=3,
                groups=(6,))),
    _one("LpPool", pool, "y = LpPool<kernel_shape=[2,2]>(x)"),
    _one("GlobalAveragePool", global_pool, "y = GlobalAveragePool(x)"),
    _one("GlobalMaxPool", global_pool, "y = GlobalMaxPool(x)"),
    _one("GlobalLpPool", global_pool, "y = GlobalLpPool(x)"),
    Rule("Resize", resize, (
         Sample('y = Resize<mode="nearest">(x, , s)', _X, weights={"s": np.array([1, 1, 2, 2], np.float32)},
                groups=(6,)),
         Sample('n = Constant<value_ints=[2,6,8,7]>()\ny = Resize<mode="linear">(x, , , n)', _X, groups=(6,)),
         Sample('n = Constant<value_ints=[8,7]>()\ny = Resize<axes=[2,3]>(x, , , n)', _X, groups=(6,)),
         Sample("y = Resize(x, r, s)", _X, weights={"s": np.array([1, 1, 2, 2], np.float32),
                                                    "r": np.zeros(0, np.float32)}, groups=(6,), opset=11),
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
    Rule("MaxRoiPool", roi, (
        Sample("y = MaxRoiPool<pooled_shape=[2,2]>(x, r)", _X, weights={"r": _REGIONS}, groups=(6,)),
    )),
    Rule("CropAndResize", roi, (
        Sample("y = com.microsoft.CropAndResize(x, r, i, n)", _X,
               weights={"r": np.array([[0, 0, 1, 1], [0.2, 0.2, 1, 1]], np.float32), "i": np.array([0, 1], np.int32),
                        "n": np.array([2, 2], np.int32)}, groups=(6,)),
    ), domain="com.microsoft"),
    Rule("MaxUnpool", unpool, (
        Sample("p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)\n"
               "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, i)", _X),
    )),
    Rule("NhwcMaxPool", channels_last_pool, (
        Sample("q = QuantizeLinear(x, s, z)\np = com.microsoft.NhwcMaxPool<kernel_shape=[2,2]>(q)\n"
               "y = DequantizeLinear(p, s, z)", (2, 4, 4, 6), axis=3, out_axis=3, weights=_BYTES, groups=(6,)),
    ), domain="com.microsoft"),
    Rule("QLinearAveragePool", channels_last_pool, (
        Sample("q = QuantizeLinear(x, s, z)\n"
               "p = com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(q, s, z, s, z)\n"
               "y = DequantizeLinear(p, s, z)", _X, weights=_BYTES, groups=(6,)),
        Sample("q = QuantizeLinear(x, s, z)\n"
               "p = com.microsoft.QLinearAveragePool<kernel_shape=[2,2], channels_last=1>(q, s, z, s, z)\n"
               "y = DequantizeLinear(p, s, z)", (2, 4, 4, 6), axis=3, out_axis=3, weights=_BYTES, groups=(6,)),
    ), domain="com.microsoft"),
    Rule("QLinearGlobalAveragePool", global_pool, tuple(
        Sample("q = QuantizeLinear(x, s, z)\n"
               f"p = com.microsoft.QLinearGlobalAveragePool<channels_last={last}>(q, s, z, s, z)\n"
               "y = DequantizeLinear(p, s, z)", shape, axis=axis, out_axis=axis, weights=_BYTES, groups=(6,))
        for last, shape, axis in ((0, _X, 1), (1, (2, 4, 4, 6), 3))
    ), domain="com.microsoft"),
    Rule("AffineGrid", affine_grid, (
        Sample("n = Constant<value_ints=[2,6,3,3]>()\nl = Constant<value_ints=[2,2,3]>()\nf = Flatten(x)\n"
               "h = MatMul(f, v)\ntheta = Reshape(h, l)\ng = AffineGrid(theta, n)\ny = GridSample(x, g)", _X,
               weights={"v": (np.arange(576) % 7 - 3).astype(np.float32).reshape(96, 6) / 99}, groups=(6,),
               opset=20),
        Sample("n = Shape(x)\ng = AffineGrid(theta, n)\ny = GridSample(x, g)", _X, weights={"theta": (2, 2, 3)},
               groups=(6,), opset=20),
    )),
    Rule("Col2Im", columns_to_image, (
        Sample("i = Constant<value_ints=[5,5]>()\nb = Constant<value_ints=[2,2]>()\ny = Col2Im(x, i, b)",
               (2, 24, 16), groups=(6,)),
    )),
    Rule("DepthToSpace", space_and_channels, (
        Sample("y = DepthToSpace<blocksize=2>(x)", (2, 12, 3, 3), groups=(3,)),
        Sample('y = DepthToSpace<blocksize=2, mode="CRD">(x)', (2, 12, 3, 3), groups=(3,)),
    )),
    Rule("SpaceToDepth", space_and_channels, (
        Sample("y = SpaceToDepth<blocksize=2>(x)", _X, groups=(6,)),
    )),
)
