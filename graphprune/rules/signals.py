"""Operators on signals and on losses: transforms over an axis of samples, windows, and what training ends in."""

from __future__ import annotations

import numpy as np

from graphprune.dims import Dim, Type
from graphprune.rules.base import Op, Rule, Sample, Types, axis_of
from graphprune.rules.norms import statistic

_SAMPLES = "the axis of samples or of frequencies"
_PARTS = "the axis of real and imaginary parts"
_CLASSES = "the axis of classes, looked up by the label"


def fourier(op: Op, t: Types) -> None:
    """x [.., samples, .., 1 or 2] -> [.., frequencies, .., 1 or 2]; the axis is operand 2 from opset 20."""
    x, y = op.inputs[0], op.outputs[0]
    axes: list[Type] = list(t[x])
    axis = op.attr("axis", 1) if op.version < 20 else -2
    if op.input(2) is not None:
        known = t.known(op.input(2)) if t.is_constant(op.input(2)) else None
        axis = None if known is None else int(known.reshape(()))
    for i in range(len(axes) - 1) if axis is None else [axis_of(axis, len(axes))]:
        transformed(op, t, axes, i, _SAMPLES)
    transformed(op, t, axes, len(axes) - 1, _PARTS)
    t.set(y, axes)


def transformed(op: Op, t: Types, axes: list[Type], i: int, text: str) -> None:
    """Axis `i` stays as it is in the input, and becomes another frozen one in the output."""
    t.freeze(axes[i], op.why(text))
    axes[i] = Dim(t.shape(op.outputs[0])[i])
    t.freeze(axes[i], op.why(text), dynamic=True)


def short_time_fourier(op: Op, t: Types) -> None:
    """signal [B, samples, 1 or 2], step, window [frame], frame -> [B, frames, frequencies, 2]."""
    x, y = op.inputs[0], op.outputs[0]
    result = [Dim(n) for n in t.shape(y)[1:]]
    t.freeze([*t[x][1:], *result], op.why(_SAMPLES), dynamic=True)
    if op.input(2) is not None:
        t.freeze(t[op.input(2)], op.why(_SAMPLES))
    t.set(y, [t[x][0], *result])


def generated(op: Op, t: Types) -> None:
    """A table made from numbers alone."""
    t.freeze(t.fresh(op.outputs[0]), op.why(_SAMPLES), dynamic=not all(t.is_constant(v) for v in op.inputs))


def loss(op: Op, t: Types) -> None:
    """scores [N, C, *d], labels [N, *d], weights [C] -> [N, *d] or one number, and logarithms like the scores."""
    scores, labels = op.inputs[:2]
    axes = t[scores]
    t.freeze(axes[1], op.why(_CLASSES))
    if op.input(2) is not None:
        t.freeze(t[op.input(2)], op.why(_CLASSES))
    rest = [axes[0], *axes[2:]]
    for own, axis in zip(t[labels], rest, strict=True):
        t.equal(own, axis, op.why("labels do not line up with the scores"))
    if op.attr("reduction", "mean") != "none":
        statistic(op, t, rest)
        rest = []
    for y, result in zip(op.outputs, (rest, axes), strict=False):
        if y.name in t.shapes:
            t.set(y, result)


_SCALAR = np.array(4)
_LOUD = "n = Constant<value_int=4>()\nw = {}(n)\ny = Mul(x, w)"

RULES = (
    Rule("DFT", fourier, (
        Sample("y = DFT<axis=2>(x)", (2, 6, 4, 1), groups=(6,)),
        Sample("y = DFT<axis=1>(x)", (2, 6, 4, 1)),
        Sample("a = Constant<value_int=2>()\nd = DFT<onesided=1>(x, , a)\n"
               "y = DFT<inverse=1, onesided=1>(d, , a)", (2, 6, 4, 1), groups=(6,), opset=20),
        Sample("y = DFT(x)", (2, 6, 4, 1), groups=(6,), opset=20),
    )),
    Rule("STFT", short_time_fourier, (
        Sample("a = Constant<value_int=2>()\ny = STFT(x, a, w)", (6, 8, 1), axis=0, out_axis=0, weights={"w": (4,)},
               groups=(6,)),
        Sample("a = Constant<value_int=2>()\ny = STFT(x, a, w)", (2, 8, 1), axis=1, out_axis=2, weights={"w": (4,)}),
    )),
    *(
        Rule(op, generated, (Sample(_LOUD.format(op), (2, 6, 4), groups=(6,)),))
        for op in ("BlackmanWindow", "HammingWindow", "HannWindow")
    ),
    Rule("MelWeightMatrix", generated, (
        Sample("a = Constant<value_int=4>()\nb = Constant<value_int=8>()\nc = Constant<value_int=100>()\n"
               "d = Constant<value_float=1.0>()\ne = Constant<value_float=40.0>()\n"
               "m = MelWeightMatrix(a, b, c, d, e)\nr = ReduceMax(m)\ny = Mul(x, r)", (2, 6, 4), groups=(6,)),
    )),
    Rule("NegativeLogLikelihoodLoss", loss, (
        Sample('u = Unsqueeze(x, i)\ny = NegativeLogLikelihoodLoss<reduction="none">(u, l)', (2, 6, 4),
               weights={"l": np.zeros((2, 6, 4), np.int64), "i": np.array([1])}, groups=(6,), opset=22),
        Sample('u = NegativeLogLikelihoodLoss(x, l)\ny = Mul(x, u)', (2, 6, 4),
               weights={"l": np.array([[0, 5, 3, 1], [2, 2, 4, 0]])}, opset=22),
    )),
    Rule("SoftmaxCrossEntropyLoss", loss, (
        Sample('u = Transpose<perm=[0,2,1]>(x)\ny, p = SoftmaxCrossEntropyLoss<reduction="none">(u, l)', (2, 6, 4),
               weights={"l": np.array([[0, 1, 3, 1, 2, 2], [2, 2, 1, 0, 3, 0]])}, groups=(6,)),
        Sample('u = SoftmaxCrossEntropyLoss(x, l)\ny = Mul(x, u)', (2, 6, 4),
               weights={"l": np.array([[0, 5, 3, 1], [2, 2, 4, 0]])}),
    )),
)
