"""Operators that centre and scale by a statistic: the axis of the statistic may shrink, but removing an index of it
is not the same as zeroing it, so it is marked inexact. BatchNormalization's statistics are weights: it is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphprune.dims import ONE, Dim, Prod, Type
from graphprune.patches import SizeAttribute
from graphprune.rules.base import Op, Rule, Sample, Types, axis_of, broadcast

_MISFIT = "the scale does not line up"


def statistic(op: Op, t: Types, axes: Sequence[Type]) -> None:
    """Every axis of `axes` enters a statistic of this operator."""
    for axis in axes:
        t.inexact(axis, op.why(f"statistic of {op.type}"))


def align(op: Op, t: Types, axes: Sequence[Type], value: ir.Value | None) -> None:
    """`value`, if there is one, broadcasts to `axes` from the right: what is not 1 is equal."""
    if value is None:
        return
    for axis, own in zip(reversed(axes), reversed(t[value]), strict=False):
        if own.size != 1:
            t.equal(axis, own, op.why(_MISFIT))


def batch_norm(op: Op, t: Types) -> None:
    """x [N, C, *s]; scale, bias, mean, variance [C]; further outputs are statistics [C]."""
    x, y, *statistics = op.inputs[0], *op.outputs
    axes = t[x]
    channels = axes[1] if len(axes) > 1 else ONE
    if op.attr("spatial", 1) == 0:  # before opset 9: one statistic per feature
        t.freeze(axes, op.why("every axis of BatchNormalization per feature"))
        for v in op.inputs[1:]:
            t.freeze(t[v], op.why("every axis of BatchNormalization per feature"))
    else:
        for v in op.inputs[1:]:
            align(op, t, [channels], v)
    if op.attr("training_mode", 0):
        statistic(op, t, [*axes[:1], *axes[2:]])
    t.set(y, axes)
    for v in statistics:
        if v.name in t.shapes:
            t.set(v, [channels])


def instance_norm(op: Op, t: Types) -> None:
    """x [N, C, *s]; scale, bias [C]: statistics over space, exact in C."""
    axes = t[op.inputs[0]]
    for v in op.inputs[1:]:
        align(op, t, axes[1:2], v)
    statistic(op, t, axes[2:])
    t.set(op.outputs[0], axes)


def layer_norm(op: Op, t: Types) -> None:
    """Statistics over the axes from `axis` on; scale and bias broadcast to them; further outputs keep them as 1."""
    axes = t[op.inputs[0]]
    first = axis_of(op.attr("axis", -1), len(axes))
    for v in op.inputs[1:]:
        align(op, t, axes, v)
    statistic(op, t, axes[first:])
    t.set(op.outputs[0], axes)
    for v in op.outputs[1:]:
        if v.name in t.shapes:
            t.set(v, [*axes[:first], *[ONE] * (len(axes) - first)])


def skip_layer_norm(op: Op, t: Types) -> None:
    """LayerNorm of x + skip (+ bias): input, skip, gamma, then beta and bias; output 3 is the sum."""
    axes = broadcast(t, op, op.inputs[:2])
    for v in op.inputs[2:]:
        align(op, t, axes, v)
    statistic(op, t, axes[-1:])
    for i, y in enumerate(op.outputs):
        if y.name in t.shapes:
            t.set(y, [*axes[:-1], ONE] if i in (1, 2) else axes)


def group_norm(op: Op, t: Types) -> None:
    """x [N, Prod(G, c), *s]: statistics within a group, so whole groups go exactly. Scale is [G], from opset 21 [C]."""
    grouped(op, t, 1, "num_groups", op.inputs[1:3])
    t.set(op.outputs[0], t[op.inputs[0]])


def runtime_group_norm(op: Op, t: Types) -> None:
    """x [N, *s, C] or [N, C, *s], gamma, beta [C]; SkipGroupNorm: of the sum of x, skip [.., C] and bias [C], which is
    output 2."""
    x, *_ = op.inputs
    axis = len(t[x]) - 1 if op.attr("channels_last", 1) else 1
    grouped(op, t, axis, "groups", op.inputs[1:3])
    skip = op.input(3)
    if skip is not None and len(t[skip]) == 2:
        align(op, t, [t[x][0], t[x][axis]], skip)
    else:
        align(op, t, t[x], skip)
    align(op, t, [t[x][axis]], op.input(4))
    for y in op.outputs:
        if y.name in t.shapes:
            t.set(y, t[x])


def grouped(op: Op, t: Types, axis: int, attribute: str, scales: Sequence[ir.Value]) -> None:
    """Statistics within each group of the channels and over the axes behind the batch. Scales are [C] or [G]."""
    axes = t[op.inputs[0]]
    g = Dim(op.attr(attribute))
    inner = Dim(axes[axis].size // g.size)
    t.equal(axes[axis], Prod((g, inner)), op.why("channels do not divide into the groups"))
    for v in scales:
        align(op, t, [axes[axis] if t.shape(v)[0] == axes[axis].size else g], v)
    statistic(op, t, [inner, *(a for i, a in enumerate(axes) if i not in (0, axis))])
    t.patch(op.node, SizeAttribute(attribute, g))


def gated_norm(op: Op, t: Types) -> None:
    """x [.., H c] and a gate like it, scale [c]: statistics over the c of each of H heads."""
    x, scale, gate = op.inputs
    axes = t[x]
    t.equal(axes[-1], Prod((Dim(axes[-1].size // t.shape(scale)[0]), t[scale][0])), op.why(_MISFIT))
    align(op, t, axes, gate)
    statistic(op, t, [t[scale][0]])
    t.set(op.outputs[0], axes)


def along_axis(default: int) -> Callable[[Op, Types], None]:
    def apply(op: Op, t: Types) -> None:
        """A statistic over one axis, or, for Softmax and its relatives before opset 13, from that axis on."""
        axes = t[op.inputs[0]]
        flattens = op.type in ("Softmax", "LogSoftmax", "Hardmax") and op.version < 13
        axis = axis_of(op.attr("axis", 1 if flattens else default), len(axes))
        statistic(op, t, axes[axis:] if flattens else axes[axis : axis + 1])
        t.set(op.outputs[0], axes)

    return apply


def mean_variance(op: Op, t: Types) -> None:
    axes = t[op.inputs[0]]
    statistic(op, t, [axes[axis_of(a, len(axes))] for a in op.attr("axes", [0, 2, 3])])
    t.set(op.outputs[0], axes)


def local_response(op: Op, t: Types) -> None:
    """Each channel is scaled by its neighbours: who is next to whom must stay."""
    axes = t[op.inputs[0]]
    t.freeze(axes[1], op.why("the axis of channels, scaled by their neighbours"))
    t.set(op.outputs[0], axes)


_SCALE = {"s": (6,), "b": (6,)}
_STATISTICS = {**_SCALE, "m": (6,), "v": np.linspace(0.5, 2.0, 6, dtype=np.float32)}

RULES = (
    Rule("BatchNormalization", batch_norm, (
        Sample("y = BatchNormalization(x, s, b, m, v)", (2, 6, 4, 4), weights=_STATISTICS, groups=(6,), opset=7),
        Sample("y = BatchNormalization(x, s, b, m, v)", (2, 6, 4, 4), weights=_STATISTICS,
               groups=(6,)),
        Sample("y, r, q = BatchNormalization<training_mode=1>(x, s, b, m, v)", (2, 6, 4, 4),
               weights=_STATISTICS, groups=(6,)),
    )),
    Rule("InstanceNormalization", instance_norm, (
        Sample("y = InstanceNormalization(x, s, b)", (2, 6, 4, 4), weights=_SCALE, groups=(6,)),
        Sample("y = InstanceNormalization(x, s, b)", (2, 5, 6), axis=2, out_axis=2, weights={"s": (5,), "b": (5,)},
               inexact=(6,)),
    )),
    Rule("LayerNormalization", layer_norm, (
        Sample("y = LayerNormalization(x, s, b)", (2, 4, 6), axis=2, out_axis=2, weights=_SCALE, inexact=(6,)),
        Sample("y = LayerNormalization<axis=2>(x, s)", (2, 6, 5), weights={"s": (5,)}, groups=(6,)),
    )),
    Rule("RMSNormalization", layer_norm, (
        Sample("y = RMSNormalization(x, s)", (2, 4, 6), axis=2, out_axis=2, weights={"s": (6,)}, inexact=(6,),
               opset=23),
    )),
    Rule("SimplifiedLayerNormalization", layer_norm, (
        Sample("y = SimplifiedLayerNormalization(x, s)", (2, 4, 6), axis=2, out_axis=2, weights={"s": (6,)},
               inexact=(6,)),
    )),
    Rule("SkipLayerNormalization", skip_layer_norm, (
        Sample("y, m, v, r = com.microsoft.SkipLayerNormalization(x, x, s, b)", (2, 4, 6), axis=2, out_axis=2,
               weights=_SCALE, inexact=(6,)),
    ), domain="com.microsoft"),
    Rule("SkipSimplifiedLayerNormalization", skip_layer_norm, (
        Sample("y = com.microsoft.SkipSimplifiedLayerNormalization(x, x, s)", (2, 4, 6), axis=2, out_axis=2,
               weights={"s": (6,)}, inexact=(6,)),
    ), domain="com.microsoft"),
    Rule("GroupNormalization", group_norm, (
        Sample("y = GroupNormalization<num_groups=3>(x, s, b)", (2, 12, 4, 4), weights={"s": (3,), "b": (3,)},
               groups=(3,), inexact=(4,)),
        Sample("y = GroupNormalization<num_groups=3>(x, s, b)", (2, 12, 4, 4), weights={"s": (12,), "b": (12,)},
               groups=(3,), inexact=(4,), opset=21),
    )),
    Rule("GroupNorm", runtime_group_norm, (
        Sample("y = com.microsoft.GroupNorm<groups=3, activation=0>(x, s, b)", (2, 4, 4, 12), axis=3, out_axis=3,
               weights={"s": (12,), "b": (12,)}, groups=(3,), inexact=(4,)),
        Sample("y = com.microsoft.GroupNorm<groups=3, activation=0, channels_last=0>(x, s, b)", (2, 12, 4, 4),
               weights={"s": (12,), "b": (12,)}, groups=(3,), inexact=(4,)),
    ), domain="com.microsoft"),
    Rule("SkipGroupNorm", runtime_group_norm, (
        Sample("y, r = com.microsoft.SkipGroupNorm<groups=3, activation=0>(x, s, b, k, c)", (2, 4, 4, 12), axis=3,
               out_axis=3, weights={"s": (12,), "b": (12,), "k": (2, 12), "c": (12,)}, groups=(3,), inexact=(4,)),
    ), domain="com.microsoft"),
    Rule("GatedRMSNorm", gated_norm, (
        Sample("y = com.microsoft.GatedRMSNorm(x, s, x)", (2, 3, 12), axis=2, out_axis=2, weights={"s": (4,)},
               groups=(3,), inexact=(4,)),
    ), domain="com.microsoft"),
    Rule("LpNormalization", along_axis(-1), (
        Sample("y = LpNormalization<axis=1>(x)", (2, 6, 4), inexact=(6,)),
        Sample("y = LpNormalization(x)", (2, 6, 4), groups=(6,)),
    )),
    Rule("MeanVarianceNormalization", mean_variance, (
        Sample("y = MeanVarianceNormalization(x)", (2, 6, 4, 4), groups=(6,)),
        Sample("y = MeanVarianceNormalization<axes=[1]>(x)", (2, 6, 4, 4), inexact=(6,)),
    )),
    Rule("LRN", local_response, (Sample("y = LRN<size=3>(x)", (2, 6, 4, 4)),)),
    *(
        Rule(op, along_axis(-1), (
            Sample(f"y = {op}(x)", (2, 6, 4), groups=(6,)),
            Sample(f"y = {op}<axis=1>(x)", (2, 6, 4), inexact=(6,)),
            Sample(f"y = {op}<axis=1>(x)", (2, 4, 6), axis=2, out_axis=2, inexact=(6,), opset=12),
        ))
        for op in ("Softmax", "LogSoftmax", "Hardmax")
    ),
)
