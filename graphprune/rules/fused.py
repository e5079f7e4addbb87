"""Operators that stand for several: attention, and what ONNX Runtime's own optimiser leaves in a saved model."""

from __future__ import annotations

from collections.abc import Callable

from graphprune.dims import Dim, Prod, Sum, Type
from graphprune.patches import SizeAttribute
from graphprune.rules.base import Op, Rule, Sample, Types
from graphprune.rules.linear import affine, convolution, product
from graphprune.rules.norms import align, statistic

_MISFIT = "queries, keys and values do not line up"


def attention(op: Op, t: Types) -> None:
    """q [B, H, S, D], k [B, K, T, D], v [B, K, T, E] -> [B, H, S, E], or with heads merged into the last axis; every
    key head serves H / K query heads. Without a stated scale the operator takes it from D, which then must stay."""
    q, k, v = op.inputs[:3]
    merged = len(t[q]) == 3
    keys = Dim(op.attr("kv_num_heads") if merged else t.shape(k)[1])
    serves = Dim((op.attr("q_num_heads") if merged else t.shape(q)[1]) // keys.size)
    heads = Prod((keys, serves))
    inner, values = (Dim(t.shape(x)[-1] // (keys.size if merged else 1)) for x in (k, v))
    for x, count, last in ((q, heads, inner), (k, keys, inner), (v, keys, values)):
        if merged:
            t.equal(t[x][2], Prod((count, last)), op.why(_MISFIT))
        else:
            t.equal(t[x][1], count, op.why(_MISFIT))
            t.equal(t[x][3], last, op.why(_MISFIT))
        t.equal(t[x][0], t[q][0], op.why(_MISFIT))
    queries, tokens = t[q][1 if merged else 2], t[k][1 if merged else 2]
    t.equal(t[v][1 if merged else 2], tokens, op.why(_MISFIT))
    if op.attr("scale") is None:
        t.freeze(inner, op.why("the scale of attention follows from it"))
    t.contract(op, 0, -1)
    t.contract(op, 1, -1)
    if merged:
        t.patch(op.node, SizeAttribute("q_num_heads", heads))
        t.patch(op.node, SizeAttribute("kv_num_heads", keys))
    seen, past_key = tokens, op.input(4)
    if past_key is not None:
        past = t[past_key][2]
        for x, last in ((past_key, inner), (op.input(5), values)):
            for a, b in zip(t[x], (t[q][0], keys, past, last), strict=True):
                t.equal(a, b, op.why(_MISFIT))
        seen = Sum((past, tokens))
    if op.input(3) is not None:
        align(op, t, [t[q][0], heads, queries, seen], op.input(3))
    if op.attr("is_causal", 0):
        t.freeze([queries, seen], op.why("causal order"))
    statistic(op, t, [seen])
    batch = t[q][0]
    results: list[list[Type]] = [
        [batch, queries, Prod((heads, values))] if merged else [batch, heads, queries, values],
        [batch, keys, seen, inner], [batch, keys, seen, values], [batch, heads, queries, seen],
    ]  # fmt: skip
    for y, axes in zip(op.outputs, results, strict=False):
        if y.name in t.shapes:
            t.set(y, axes)


def fused_matmul(op: Op, t: Types) -> None:
    """MatMul of operands that may have their last two axes the other way round, scaled."""
    if op.attr("transBatchA", 0) or op.attr("transBatchB", 0):
        why = op.why("FusedMatMul with a batch axis moved")
        for v in op.inputs:
            t.freeze(t[v], why)
        t.freeze(t.fresh(op.outputs[0]), why, dynamic=True)
    else:
        product(op, t, turn_a=bool(op.attr("transA", 0)), turn_b=bool(op.attr("transB", 0)))


def fused_conv(op: Op, t: Types) -> None:
    """Conv, an addend of the result's shape, and an activation: no linear reader any more."""
    convolution(op, t)
    align(op, t, t[op.outputs[0]], op.input(3))


def biased(op: Op, t: Types) -> None:
    """An activation of x plus a bias along its last axis."""
    align(op, t, t[op.inputs[0]], op.input(1))
    t.set(op.outputs[0], t[op.inputs[0]])


def _microsoft(op: str, apply: Callable[[Op, Types], None], *samples: Sample) -> Rule:
    return Rule(op, apply, samples, domain="com.microsoft")


_KV = "k = MatMul(x, wk)\nv = MatMul(x, wv)\n"
_X = (2, 3, 6)

RULES = (
    Rule("Attention", attention, (
        Sample(f"q = MatMul(x, wq)\n{_KV}y = Attention<q_num_heads=4, kv_num_heads=2, scale=0.5>(q, k, v)", _X, axis=2,
               out_axis=2, weights={"wq": (6, 12), "wk": (6, 6), "wv": (6, 10)}, groups=(2, 2, 3, 5, 6), opset=23),
        Sample(f"q = MatMul(x, wq)\n{_KV}y = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(q, k, v)", _X,
               axis=2, out_axis=2, weights={"wq": (6, 6), "wk": (6, 6), "wv": (6, 10)}, groups=(2, 5, 6), opset=23),
        Sample("y = Attention<scale=0.5>(x, x, x, m)", (2, 4, 3, 6), axis=3, out_axis=3, weights={"m": (3, 3)},
               groups=(6,), opset=23),
        Sample("a, k1, v1 = Attention<scale=0.5>(x, x, x, m, k, v)\nb = ReduceMax<keepdims=0>(k1)\n"
               "c = ReduceMax<keepdims=0>(v1)\nd = Add(b, c)\ny = Add(a, d)", (2, 4, 3, 6), axis=3, out_axis=3,
               weights={"m": (3, 5), "k": (2, 4, 2, 6), "v": (2, 4, 2, 6)}, inexact=(6,), opset=23),
    )),
    _microsoft("FusedMatMul", fused_matmul,
               Sample("y = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(x, w)", _X, axis=2, out_axis=2,
                      weights={"w": (8, 6)}, groups=(6, 8)),
               Sample("y = com.microsoft.FusedMatMul<transA=1>(x, w)", (2, 6, 3), weights={"w": (2, 6, 8)}, out_axis=2,
                      groups=(6, 8))),
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
    _microsoft("QuickGelu", biased, Sample("y = com.microsoft.QuickGelu(x)", _X, axis=2, out_axis=2, groups=(6,))),
)
