"""Operators on 8-bit numbers. An integer product is exact in the axes it produces, but a zero there is the zero point,
so the axes it contracts are marked inexact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.dims import Dim, Prod
from graphprune.patches import SizeAttribute
from graphprune.rules.base import Op, Rule, RuleFunction, Sample, Types, axis_of, broadcast
from graphprune.rules.linear import affine, convolution, product
from graphprune.rules.norms import statistic
from graphprune.rules.segments import join

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
                t.freeze([axis, own], op.why("the axis that is scaled in blocks"))
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
        t.freeze([*t[value], *t[op.outputs[0]]], op.why("the axes that are scaled per row of a batch"))


_PRODUCTS = {  # operand b; what is per row of the result, what per column
    "MatMulInteger": (1, (2,), (3,)),
    "QLinearMatMul": (3, (1, 2), (4, 5)),
    "MatMulIntegerToFloat": (1, (2, 4), (3, 5, 6)),
    "DynamicQuantizeMatMul": (1, (), (2, 3, 4)),
}


def integer_product(op: Op, t: Types) -> None:
    """MatMulInteger: a, b, zero points. QLinearMatMul: a, b, y, each followed by its scale and zero point.
    MatMulIntegerToFloat: a, b, scales, zero points, bias. DynamicQuantizeMatMul: a, b, b's scale and zero point, bias;
    the range of all of a is a statistic."""
    b, rows, columns = _PRODUCTS[op.type]
    product(op, t, 0, b)
    a = t[op.inputs[0]]
    statistic(op, t, a if op.type == "DynamicQuantizeMatMul" else a[-1:])
    for operands, axis in ((rows, -2), (columns, -1)):
        for i in operands:
            _per_output(op, t, op.input(i), axis)


def integer_gemm(op: Op, t: Types) -> None:
    """a, b, each followed by its scale and zero point, c, scale and zero point of the result."""
    affine(op, t, at=3, bias_at=6)
    statistic(op, t, [t[op.inputs[0]][0 if op.attr("transA", 0) else 1]])
    for i in (4, 5):
        _per_output(op, t, op.input(i), -1)


def integer_convolution(op: Op, t: Types) -> None:
    """ConvInteger: x, w, zero points. QLinearConv: x, w, y, each followed by its scale and zero point, and a bias."""
    at, filters = (1, (3,)) if op.type == "ConvInteger" else (3, (4, 5))
    last = bool(op.attr("channels_last", 0))
    convolution(op, t, at, bias_at=8, channels_last=last)
    statistic(op, t, t[op.inputs[at]][1:2])
    for i in filters:
        _per_output(op, t, op.input(i), -1 if last else 1)


def scaled_elementwise(op: Op, t: Types) -> None:
    """Operands joined element by element, among scales and zero points that are single numbers."""
    operands = {"QLinearWhere": (0, 1, 4), "QLinearAdd": (0, 3), "QLinearMul": (0, 3)}.get(op.type, (0,))
    t.set(op.outputs[0], broadcast(t, op, [op.inputs[i] for i in operands]))


def scaled_softmax(op: Op, t: Types) -> None:
    """Softmax of 8-bit numbers; `opset` says whether it is over one axis (from 13) or from that axis on."""
    axes = t[op.inputs[0]]
    axis = axis_of(op.attr("axis", -1), len(axes))
    statistic(op, t, axes[axis : axis + 1] if op.attr("opset", 13) >= 13 else axes[axis:])
    t.set(op.outputs[0], axes)


def scaled_concat(op: Op, t: Types) -> None:
    """Scale and zero point of the result, then the operands, each followed by its own."""
    join(op, t, op.inputs[2::3])


def blocked_product(op: Op, t: Types) -> None:
    """a [.., K], b [N, blocks of K, bytes], scales and zero points per block ([N, blocks], or flat), group indices,
    bias [N] -> [.., N]. N may shrink; what is packed in blocks stays."""
    a, b = op.inputs[:2]
    produced, why = t[b][0], op.why("the axis of inputs, whose weights are packed in blocks")
    t.freeze([t[a][-1], *t[b][1:]], why)
    for value in (op.input(2), op.input(3)):
        if value is None:
            continue
        blocks = Dim(int(np.prod(t.shape(value))) // produced.size)
        t.freeze(blocks, why)
        for own, axis in zip(t[value], [produced, blocks] if len(t[value]) > 1 else [Prod((produced, blocks))],
                             strict=True):  # fmt: skip
            t.equal(own, axis, op.why("scales of the blocks do not line up"))
    if op.input(4) is not None:
        t.freeze(t[op.input(4)], why)
    if op.input(5) is not None:
        t.equal(t[op.input(5)][0], produced, op.why("the bias does not line up"))
    if op.attr("weight_prepacked", 0):
        t.freeze(produced, op.why("the axis of outputs, packed for one kind of machine"))
    t.patch(op.node, SizeAttribute("N", produced))
    t.set(op.outputs[0], [*t[a][:-1], produced])


def packed(op: Op, t: Types) -> None:
    """Weights packed so that no index of an axis stands alone: what they touch stays, the other axes pass."""
    x, y = op.inputs[0], op.outputs[0]
    last = Dim(t.shape(y)[-1])
    t.freeze([t[x][-1], last], op.why("the axis whose weights are packed in blocks"))
    for v in op.inputs[1:]:
        if v is not None:
            t.freeze(t[v], op.why("the axis whose weights are packed in blocks"))
    t.set(y, [*t[x][:-1], last])


def packed_table(op: Op, t: Types) -> None:
    """Rows of a table packed in blocks, looked up by index."""
    data, indices = op.inputs[:2]
    for v in (data, *op.inputs[2:]):
        if v is not None:
            t.freeze(t[v], op.why("the axis whose weights are packed in blocks"))
    axis = axis_of(op.attr("gather_axis", 0), len(t[data]))
    rows = [Dim(n) for n in t.shape(op.outputs[0])]
    t.freeze(rows, op.why("the axis whose weights are packed in blocks"))
    rows[axis : axis + len(t[indices])] = t[indices]
    t.set(op.outputs[0], rows)


def _bytes(*shape: int) -> np.ndarray:
    return (np.arange(int(np.prod(shape)), dtype=np.int64) * 37 % 251).astype(np.uint8).reshape(shape)


_Q = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}
_QUANTISE = "q = QuantizeLinear(x, s, z)\n"
_READ = "\ny = DequantizeLinear(i, s, z)"
_ROWS = {"axis": 2, "out_axis": 2}


def _floats(*shape: int, scale: float = 0.01) -> np.ndarray:
    return (scale * (1 + np.arange(int(np.prod(shape))) % 7)).astype(np.float32).reshape(shape)


def _runtime(op: str, apply: RuleFunction, text: str, **sample: object) -> Rule:
    sample = {"groups": (6,), **sample, "weights": {**_Q, **sample.get("weights", {})}}
    return Rule(op, apply, (Sample(text.format(f"com.microsoft.{op}"), sample.pop("x", (2, 3, 6)), **sample),),
                domain="com.microsoft")  # fmt: skip


RULES = (
    Rule("QuantizeLinear", rescale, (
        Sample(f"{_QUANTISE}y = DequantizeLinear(q, s, z)", (2, 6, 4), weights=_Q, groups=(6,)),
        Sample(f"{_QUANTISE}y = DequantizeLinear(q, s, z)", (2, 6, 4), weights=_Q, groups=(6,), opset=10),
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
               weights={**_Q, "w": _bytes(6, 8), "v": _bytes(8)}, groups=(8,), inexact=(6,)),
    )),
    Rule("QLinearMatMul", integer_product, (
        Sample(f"{_QUANTISE}i = QLinearMatMul(q, s, z, w, s, z, t, z)\ny = DequantizeLinear(i, t, z)", (2, 4, 6),
               axis=2, out_axis=2, weights={**_Q, "t": np.array(0.2, np.float32), "w": _bytes(6, 8)}, groups=(8,),
               inexact=(6,)),
    )),
    Rule("ConvInteger", integer_convolution, (
        Sample(f"{_QUANTISE}i = ConvInteger(q, w, z, z)\ny = Cast<to=1>(i)", (2, 6, 4, 4),
               weights={**_Q, "w": _bytes(8, 6, 3, 3)}, groups=(8,), inexact=(6,)),
    )),
    Rule("QLinearConv", integer_convolution, (
        Sample(f"{_QUANTISE}i = QLinearConv(q, s, z, w, s, z, t, z, b)\ny = DequantizeLinear(i, t, z)", (2, 6, 4, 4),
               weights={**_Q, "t": np.array(0.5, np.float32), "w": _bytes(8, 6, 3, 3),
                        "b": np.arange(8, dtype=np.int32)}, groups=(8,), inexact=(6,)),
    )),
    _runtime("QLinearConv", integer_convolution,
             f"{_QUANTISE}i = {{}}<channels_last=1>(q, s, z, w, s, z, t, z, b){_READ}", x=(2, 4, 4, 6), axis=3,
             out_axis=3, weights={"t": np.array(0.5, np.float32), "w": _bytes(8, 6, 3, 3),
                                  "b": np.arange(8, dtype=np.int32)}, groups=(8,), inexact=(6,)),
    *(
        _runtime(op, rescale, text, **_ROWS)
        for op, text in (("QuantizeLinear", f"i = {{}}(x, s, z){_READ}"),
                         ("DequantizeLinear", f"{_QUANTISE}y = {{}}(q, s, z)"))
    ),
    _runtime("MatMulIntegerToFloat", integer_product, f"{_QUANTISE}y = {{}}(q, w, s, v, z, u, b)", **_ROWS,
             weights={"w": _bytes(6, 8), "v": _floats(8), "u": np.full(8, 120, np.uint8), "b": (8,)}, groups=(8,),
             inexact=(6,)),
    _runtime("DynamicQuantizeMatMul", integer_product, "y = {}(x, w, v, u, b)", **_ROWS,
             weights={"w": _bytes(6, 8), "v": _floats(8), "u": np.full(8, 120, np.uint8), "b": (8,)}, groups=(8,),
             inexact=(6,)),
    _runtime("QGemm", integer_gemm, f"{_QUANTISE}y = {{}}<transB=1>(q, s, z, w, v, u, b)", x=(3, 6),
             weights={"w": _bytes(8, 6), "v": _floats(8), "u": np.full(8, 120, np.uint8),
                      "b": np.arange(8, dtype=np.int32)}, groups=(8,), inexact=(6,)),
    *(
        _runtime(op, scaled_elementwise, f"{_QUANTISE}i = {{}}(q, s, z, q, s, z, s, z){_READ}", **_ROWS)
        for op in ("QLinearAdd", "QLinearMul")
    ),
    *(
        _runtime(op, scaled_elementwise, f"{_QUANTISE}i = {{}}(q, s, z, s, z){_READ}", **_ROWS)
        for op in ("QLinearSigmoid", "QLinearLeakyRelu")
    ),
    _runtime("QLinearWhere", scaled_elementwise,
             f"{_QUANTISE}r = Relu(x)\nc = Cast<to=9>(r)\ni = {{}}(c, q, s, z, q, t, z, s, z){_READ}", **_ROWS,
             weights={"t": np.array(0.1, np.float32)}),
    _runtime("QLinearSoftmax", scaled_softmax,
             f"{_QUANTISE}i = {{}}<axis=-1, opset=13>(q, s, z, t, z)\ny = DequantizeLinear(i, t, z)", x=(2, 6, 3),
             weights={"t": np.array(0.004, np.float32), "z": np.array(0, np.uint8)}),
    _runtime("QLinearConcat", scaled_concat, f"{_QUANTISE}i = {{}}<axis=2>(s, z, q, s, z, q, t, z){_READ}", **_ROWS,
             weights={"t": np.array(0.1, np.float32)}),
    _runtime("MatMulNBits", blocked_product, "y = {}<K=32, N=8, bits=4, block_size=16>(x, w, v, , , b)", x=(2, 3, 32),
             **_ROWS, weights={"w": _bytes(8, 2, 8), "v": _floats(8, 2), "b": (8,)}, groups=(8,)),
    _runtime("MatMulBnb4", packed,
             "p = {}<K=32, N=8, quant_type=1, block_size=16>(x, w, v)\n"
             "h = Constant<value_ints=[0,0,2,4]>()\nr = Reshape(p, h)\nf = Flatten<axis=3>(r)\ny = Transpose(f)",
             x=(2, 3, 32), axis=1, out_axis=1, weights={"w": _bytes(128), "v": _floats(16)}, groups=(3,)),
    _runtime("GatherBlockQuantized", packed_table,
             "r = Relu(x)\nc = Clip(r, zero, two)\ni = Cast<to=6>(c)\n"
             "y = {}<bits=4, block_size=16, quantize_axis=1>(w, i, v)", x=(2, 6), out_axis=1,
             weights={"w": _bytes(4, 16), "v": _floats(4, 2), "zero": np.array(0, np.float32),
                      "two": np.array(2, np.float32)}),
)
