"""Operators that stand for several: what ONNX Runtime's own optimiser leaves in a saved model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.dims import Dim, Prod
from graphprune.rules.base import Op, Rule, Sample, Types
from graphprune.rules.linear import affine, convolution, product
from graphprune.rules.norms import align, statistic


def fused_matmul(op: Op, t: Types) -> None:
    """MatMul of operands whose first axis may come after the batch axes, and whose last two may be the other way round,
    scaled."""
    orders = []
    for value, side in zip(op.inputs, "AB", strict=True):
        order = list(range(len(t[value])))
        if op.attr(f"transBatch{side}", 0):
            order = [*order[1:-1], order[0], order[-1]]
        if op.attr(f"trans{side}", 0) and len(order) > 1:
            order = [*order[:-2], order[-1], order[-2]]
        orders.append(order)
    product(op, t, order_a=orders[0], order_b=orders[1])


def fused_conv(op: Op, t: Types) -> None:
    """Conv, an addend of the result's shape, and an activation: no linear reader any more."""
    convolution(op, t)
    align(op, t, t[op.outputs[0]], op.input(3))


def biased(op: Op, t: Types) -> None:
    """An activation of x plus a bias along its last axis, and what else broadcasts to x."""
    for value in op.inputs[1:]:
        align(op, t, t[op.inputs[0]], value)
    t.set(op.outputs[0], t[op.inputs[0]])


def split_gelu(op: Op, t: Types) -> None:
    """x [N, S, D] plus a bias [D]; one half of D times the GELU of the other -> [N, S, D / 2]."""
    x, bias = op.inputs
    two, half = Dim(2), Dim(t.shape(x)[-1] // 2)
    t.freeze(two, op.why("the two halves of a gated activation"))
    t.equal(t[x][-1], Prod((two, half)), op.why("the halves do not line up"))
    align(op, t, t[x], bias)
    t.set(op.outputs[0], [*t[x][:-1], half])


def embedding(op: Op, t: Types) -> None:
    """The sum of rows of up to three tables [rows, E], normalised: ids and segments [B, S], tables of words, positions
    and segments, gamma and beta [E], mask and positions [B, S] -> [B, S, E], counts of the mask [B], the sum."""
    ids, *tables = op.inputs[0], *op.inputs[2:5]
    batch, tokens = t[ids]
    hidden = t[tables[0]][1]
    t.freeze(tokens, op.why("the axis of positions, counted or looked up by index"))
    for table in tables:
        if table is not None:
            t.freeze(t[table][0], op.why("the rows of a table, looked up by index"))
            t.equal(t[table][1], hidden, op.why("embeddings do not line up"))
    for value in (op.input(5), op.input(6)):
        align(op, t, [hidden], value)
    for value in (op.input(1), op.input(7), op.input(8) if op.type == "EmbedLayerNormalization" else None):
        align(op, t, [batch, tokens], value)
    statistic(op, t, [hidden])
    for y, axes in zip(op.outputs, ([batch, tokens, hidden], [batch], [batch, tokens, hidden]), strict=False):
        if y.name in t.shapes:
            t.set(y, axes)


def experts(op: Op, t: Types) -> None:
    """x [.., H], router [tokens, X], first weights [X, I, H] and bias [X, I] (I twice over for a gated activation, side
    by side or interleaved), second [X, H, I] and [X, H], third like the first -> [.., H]. The experts are ranked."""
    x, router, first, first_bias, second, second_bias, third, third_bias = (op.input(i) for i in range(8))
    n_experts, hidden, inner = t[first][0], t[x][-1], t[second][2]
    t.freeze(n_experts, op.why("the axis of experts, ranked by the router"))
    two = Dim(2)
    t.freeze(two, op.why("the two halves of a gated activation"))
    fusion = op.attr("swiglu_fusion", 0)
    wide = inner if t.shape(first)[1] == inner.size else Prod((inner, two) if fusion == 1 else (two, inner))
    for value, axes in (
        (first, [n_experts, wide, hidden]), (first_bias, [n_experts, wide]), (second, [n_experts, hidden, inner]),
        (second_bias, [n_experts, hidden]), (third, [n_experts, inner, hidden]), (third_bias, [n_experts, inner]),
    ):  # fmt: skip
        if value is not None:
            for own, axis in zip(t[value], axes, strict=True):
                t.equal(own, axis, op.why("weights of the experts do not line up"))
    t.equal(t[router][1], n_experts, op.why("the axis of experts, ranked by the router"))
    t.equal(Prod(t[x][:-1]), t[router][0], op.why("tokens and their routes do not line up"))
    for operand, axis in ((2, 2), (4, 2), (6, 2)):
        if op.input(operand) is not None:
            t.contract(op, operand, axis)
    t.set(op.outputs[0], t[x])


def _microsoft(op: str, apply: Callable[[Op, Types], None], *samples: Sample) -> Rule:
    return Rule(op, apply, samples, domain="com.microsoft")


_X = (2, 3, 6)


def _bytes(*shape: int) -> np.ndarray:
    return (np.arange(int(np.prod(shape))) * 37 % 251).astype(np.uint8).reshape(shape)


RULES = (
    _microsoft("FusedMatMul", fused_matmul,
               Sample("y = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(x, w)", _X, axis=2, out_axis=2,
                      weights={"w": (8, 6)}, groups=(6, 8)),
               Sample("y = com.microsoft.FusedMatMul<transA=1>(x, w)", (2, 6, 3), weights={"w": (2, 6, 8)}, out_axis=2,
                      groups=(6, 8)),
               Sample("y = com.microsoft.FusedMatMul<transBatchA=1, transBatchB=1>(x, w)", (3, 2, 6), axis=2,
                      out_axis=2, weights={"w": (6, 2, 8)}, groups=(6, 8)),
               Sample("y = com.microsoft.FusedMatMul<transBatchA=1, transA=1, transBatchB=1, transB=1>(x, w)",
                      (6, 2, 3), axis=0, out_axis=2, weights={"w": (8, 2, 6)}, groups=(6, 8))),
    _microsoft("TransposeMatMul", fused_matmul,
               Sample("y = com.microsoft.TransposeMatMul<transB=1>(x, w)", _X, axis=2, out_axis=2,
                      weights={"w": (8, 6)}, groups=(6, 8))),
    _microsoft("FusedGemm", affine,
               Sample('y = com.microsoft.FusedGemm<activation="Relu", transB=1>(x, w, b)', (3, 6),
                      weights={"w": (8, 6), "b": (8,)}, groups=(6, 8))),
    _microsoft("FusedConv", fused_conv,
               Sample('y = com.microsoft.FusedConv<activation="Relu">(x, w, b)', (2, 6, 4, 4),
                      weights={"w": (8, 6, 3, 3), "b": (8,)}, groups=(6, 8)),
               Sample('y = com.microsoft.FusedConv<activation="Relu">(x, w, b, x)', (2, 6, 4, 4),
                      weights={"w": (6, 6, 1, 1), "b": (6,)}, groups=(6,))),
    _microsoft("Gelu", biased, Sample("y = com.microsoft.Gelu(x)", _X, axis=2, out_axis=2, groups=(6,))),
    *(
        _microsoft(op, biased, Sample(f"y = com.microsoft.{op}(x, b)", _X, axis=2, out_axis=2, weights={"b": (6,)},
                                      groups=(6,)))
        for op in ("BiasGelu", "FastGelu")
    ),
    *(
        _microsoft(op, biased, Sample(f"y = com.microsoft.{op}(x)", _X, axis=2, out_axis=2, groups=(6,)))
        for op in ("QuickGelu", "ScaledSiLU")
    ),
    _microsoft("BiasAdd", biased, Sample("y = com.microsoft.BiasAdd(x, b, x)", _X, axis=2, out_axis=2,
                                         weights={"b": (6,)}, groups=(6,))),
    _microsoft("GatedAdd", biased, Sample("y = com.microsoft.GatedAdd(x, x, g)", _X, axis=2, out_axis=2,
                                          weights={"g": (2, 3, 1)}, groups=(6,))),
    _microsoft("BiasSplitGelu", split_gelu, Sample("y = com.microsoft.BiasSplitGelu(x, b)", (2, 3, 12), axis=2,
                                                   out_axis=2, weights={"b": (12,)}, groups=(6,))),
    _microsoft("EmbedLayerNormalization", embedding,
               Sample("c = Floor(x)\nl = Clip(c, zero, two)\ni = Cast<to=6>(l)\n"
                      "y, n, r = com.microsoft.EmbedLayerNormalization(i, i, w, p, s, g, b)", (2, 3), out_axis=2,
                      weights={"w": (5, 6), "p": (4, 6), "s": (3, 6), "g": (6,), "b": (6,),
                               "zero": np.array(0, np.float32), "two": np.array(2, np.float32)}, inexact=(6,)),
               Sample("c = Floor(x)\nl = Clip(c, zero, two)\ni = Cast<to=6>(l)\n"
                      "y, n, r = com.microsoft.EmbedLayerNormalization<mask_index_type=1>(i, , w, p, , g, b, i)",
                      (2, 3), out_axis=2,
                      weights={"w": (5, 6), "p": (4, 6), "g": (6,), "b": (6,), "zero": np.array(0, np.float32),
                               "two": np.array(2, np.float32)}, inexact=(6,))),
    _microsoft("QEmbedLayerNormalization", embedding,
               Sample("c = Floor(x)\nl = Clip(c, zero, two)\ni = Cast<to=6>(l)\n"
                      "e, n = com.microsoft.QEmbedLayerNormalization"
                      "(i, i, w, p, q, g, b, , s, s, s, s, s, z, z, z, z, z)\ny = MatMul(e, v)", (2, 3), out_axis=2,
                      weights={"w": _bytes(5, 6), "p": _bytes(4, 6), "q": _bytes(3, 6), "g": _bytes(6), "b": _bytes(6),
                               "s": np.array(0.05, np.float32), "z": np.array(128, np.uint8), "v": (6, 8),
                               "zero": np.array(0, np.float32), "two": np.array(2, np.float32)}, groups=(8,),
                      inexact=(6,))),
    _microsoft("MoE", experts,
               Sample('z = com.microsoft.MoE<k=2, activation_type="gelu">(x, r, f, a, d, c)\ny = Add(z, x)', (3, 6),
                      weights={"r": (3, 4), "f": (4, 8, 6), "a": (4, 8), "d": (4, 6, 8), "c": (4, 6)}, groups=(6, 8)),
               Sample('z = com.microsoft.MoE<k=1, activation_type="swiglu", swiglu_fusion=1>(x, r, f, , d)\n'
                      "y = Add(z, x)", (3, 6),
                      weights={"r": (3, 4), "f": (4, 16, 6), "d": (4, 6, 8)}, groups=(6, 8))),
)
