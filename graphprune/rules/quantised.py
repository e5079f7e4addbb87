"""Operators on 8-bit numbers. An integer product is exact in the axes it produces, but a zero there is the zero point,
so the axes it contracts are marked inexact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.rules.base import Op, Rule, Sample, Types, axis_of
from graphprune.rules.linear import convolution, product
from graphprune.rules.norms import statistic

_MISFIT = "the scale does not line up"


def rescale(op: Op, t: Types) -> None:
    """x, scale, zero point: per tensor, per index of `axis`, or (opset 21) per block along it, which freezes it."""
    axes = t[op.inputs[0]]
    for v in op.inputs[1:]:
        if v is None or len(t[v]) == 0:
            continue
        if len(t[v]) == 1 and not op.attr("block_size", 0):
            if t.shape(v) != (1,):
                t.equal(axes[axis_of(op.attr("axis", 1), len(axes))], t[v][0], op.why(_MISFIT))
            continue
        for axis, own in zip(axes, t[v], strict=True):
            if axis.size == own.size:
                t.equal(axis, own, op.why(_MISFIT))
            else:
                t.freeze([axis, own], op.why("scaled in blocks"))
    t.set(op.outputs[0], axes)


def dynamic_rescale(op: Op, t: Types) -> None:
    """The range of the whole tensor is a statistic of every axis."""
    axes = t[op.inputs[0]]
    statistic(op, t, axes)
    for y, result in zip(op.outputs, (axes, [], []), strict=True):
        t.set(y, result)


def _per_output(op: Op, t: Types, value: ir.Value | None, axis: int) -> None:
    """A scale or zero point is one number, or a vector along one axis of the output."""
    if value is None or all(n == 1 for n in t.shape(value)):
        return
    if len(t[value]) == 1:
        t.equal(t[value][0], t[op.outputs[0]][axis], op.why(_MISFIT))
    else:
        t.freeze([*t[value], *t[op.outputs[0]]], op.why("scaled per row of a batch"))


def integer_product(op: Op, t: Types) -> None:
    """MatMulInteger: a, b, zero points. QLinearMatMul: a, b, y, each followed by its scale and zero point."""
    a, b = (0, 1) if op.type == "MatMulInteger" else (0, 3)
    product(op, t, a, b)
    statistic(op, t, t[op.inputs[a]][-1:])
    rows, columns = ((2,), (3,)) if op.type == "MatMulInteger" else ((1, 2), (4, 5))
    for operands, axis in ((rows, -2), (columns, -1)):
        for i in operands:
            _per_output(op, t, op.input(i), axis)


def integer_convolution(op: Op, t: Types) -> None:
    """ConvInteger: x, w, zero points. QLinearConv: x, w, y, each followed by its scale and zero point, and a bias."""
    at, filters = (1, (3,)) if op.type == "ConvInteger" else (3, (4, 5))
    convolution(op, t, at, bias_at=8)
    statistic(op, t, t[op.inputs[at]][1:2])
    for i in filters:
        _per_output(op, t, op.input(i), 1)


def _bytes(*shape: int) -> np.ndarray:
    return (np.arange(int(np.prod(shape)), dtype=np.int64) * 37 % 251).astype(np.uint8).reshape(shape)


_Q = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}
_QUANTISE = "q = QuantizeLinear(x, s, z)\n"

RULES = (
    Rule("QuantizeLinear", rescale, (
        Sample(f"{_QUANTISE}y = DequantizeLinear(q, s, z)", (2, 6, 4), weights=_Q, groups=(6,)),
        Sample("q = QuantizeLinear<axis=1>(x, s)\ny = DequantizeLinear<axis=1>(q, s)", (2, 6, 4),
               weights={"s": np.linspace(0.02, 0.04, 6, dtype=np.float32)}, groups=(6,)),
    )),
    Rule("DequantizeLinear", rescale, (
        Sample("d = DequantizeLinear<axis=0>(w, s, z)\ny = Conv(x, d)", (2, 6, 4, 4),
               weights={"w": _bytes(8, 6, 1, 1), "s": np.linspace(0.02, 0.04, 8, dtype=np.float32),
                        "z": np.full(8, 128, np.uint8)}, groups=(6, 8)),
    )),
    Rule("DynamicQuantizeLinear", dynamic_rescale, (
        Sample("q, s, z = DynamicQuantizeLinear(x)\ny = DequantizeLinear(q, s, z)", (2, 6, 4), inexact=(6,)),
    )),
    Rule("MatMulInteger", integer_product, (
        Sample(f"{_QUANTISE}i = MatMulInteger(q, w, z, v)\ny = Cast<to=1>(i)", (2, 4, 6), axis=2, out_axis=2,
               weights={**_Q, "w": _bytes(6, 8), "v": _bytes(8)}, inexact=(6,)),
    )),
    Rule("QLinearMatMul", integer_product, (
        Sample(f"{_QUANTISE}i = QLinearMatMul(q, s, z, w, s, z, t, z)\ny = DequantizeLinear(i, t, z)", (2, 4, 6),
               axis=2, out_axis=2, weights={**_Q, "t": np.array(0.2, np.float32), "w": _bytes(6, 8)}, inexact=(6,)),
    )),
    Rule("ConvInteger", integer_convolution, (
        Sample(f"{_QUANTISE}i = ConvInteger(q, w, z, z)\ny = Cast<to=1>(i)", (2, 6, 4, 4),
               weights={**_Q, "w": _bytes(8, 6, 3, 3)}, inexact=(6,)),
    )),
    Rule("QLinearConv", integer_convolution, (
        Sample(f"{_QUANTISE}i = QLinearConv(q, s, z, w, s, z, t, z, b)\ny = DequantizeLinear(i, t, z)", (2, 6, 4, 4),
               weights={**_Q, "t": np.array(0.5, np.float32), "w": _bytes(8, 6, 3, 3),
                        "b": np.arange(8, dtype=np.int32)}, inexact=(6,)),
    )),
)
