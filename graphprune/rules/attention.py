"""Attention in one node: ONNX's own, rotary embeddings, linear attention, and what all forms have in common.

In all of them an axis of queries is a product of key heads, query heads per key head and the dimensions of a head; the
heads are carried along, the dimensions of queries and keys contracted, those of values carried to the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.dims import Dim, Prod, Sum, Type
from graphprune.patches import SizeAttribute, StatedAttribute
from graphprune.rules.base import Op, Rule, RuleFunction, Sample, Types, freeze_all
from graphprune.rules.norms import align, statistic

MISFIT = "queries, keys and values do not line up"
ORDER = "the axis of positions, whose order attention looks at"


@dataclass(frozen=True)
class Heads:
    """The variables of an attention: key heads, query heads per key head, dimensions of queries and keys, of values."""

    keys: Dim
    serves: Dim
    inner: Dim
    values: Dim

    @property
    def queries(self) -> Type:
        return Prod((self.keys, self.serves))

    @property
    def q(self) -> Type:
        return Prod((self.queries, self.inner))

    @property
    def k(self) -> Type:
        return Prod((self.keys, self.inner))

    @property
    def v(self) -> Type:
        return Prod((self.keys, self.values))


def keep_scale(op: Op, t: Types, inner: Type) -> None:
    """No scale is stated and the operator takes it from the dimensions of a head: state what it was."""
    t.patch(op.node, StatedAttribute("scale", float(np.float32(inner.size**-0.5))))


def lines_up(op: Op, t: Types, value: ir.Value | None, axes: Sequence[Type]) -> None:
    """The axes of `value`, if there is one, are exactly these."""
    if value is not None:
        for own, axis in zip(t[value], axes, strict=True):
            t.equal(own, axis, op.why(MISFIT))


def results(op: Op, t: Types, axes: Sequence[Sequence[Type]]) -> None:
    """Types of the outputs that are there."""
    for y, own in zip(op.outputs, axes, strict=False):
        if y.name in t.shapes:
            t.set(y, own)


def attention(op: Op, t: Types) -> None:
    """q [B, H, S, D], k [B, K, T, D], v [B, K, T, E] -> [B, H, S, E], or with heads merged into the last axis; every
    key head serves H / K query heads."""
    q, k, v = op.inputs[:3]
    merged = len(t[q]) == 3
    n_queries, n_keys = (
        (op.attr("q_num_heads"), op.attr("kv_num_heads")) if merged else (t.shape(q)[1], t.shape(k)[1])
    )
    sizes = [t.shape(x)[-1] // (n_keys if merged else 1) for x in (k, v)]
    h = Heads(Dim(n_keys), Dim(n_queries // n_keys), Dim(sizes[0]), Dim(sizes[1]))
    batch, queries, tokens = t[q][0], t[q][1 if merged else 2], t[k][1 if merged else 2]
    if merged:
        for x, positions, last in ((q, queries, h.q), (k, tokens, h.k), (v, tokens, h.v)):
            lines_up(op, t, x, [batch, positions, last])
        t.patch(op.node, SizeAttribute("q_num_heads", h.queries))
        t.patch(op.node, SizeAttribute("kv_num_heads", h.keys))
    else:
        lines_up(op, t, q, [batch, h.queries, queries, h.inner])
        lines_up(op, t, k, [batch, h.keys, tokens, h.inner])
        lines_up(op, t, v, [batch, h.keys, tokens, h.values])
    if op.attr("scale") is None:
        keep_scale(op, t, h.inner)
    t.contract(op, 0, -1)
    t.contract(op, 1, -1)
    seen = with_past(op, t, batch, h, tokens, op.input(4), op.input(5))
    scores = [batch, h.queries, queries, seen]
    mask(op, t, scores, op.input(3))
    if op.input(6) is not None:
        lines_up(op, t, op.input(6), [batch])
    windowed = any(op.attr(name, -1) >= 0 for name in ("left_window_size", "right_window_size"))
    if op.attr("is_causal", 0) or windowed or op.input(6) is not None:
        t.freeze([queries, seen], op.why(ORDER))
    statistic(op, t, [seen])
    y = [batch, queries, Prod((h.queries, h.values))] if merged else [batch, h.queries, queries, h.values]
    results(op, t, [y, [batch, h.keys, seen, h.inner], [batch, h.keys, seen, h.values], scores])


def with_past(
    op: Op, t: Types, batch: Type, h: Heads, tokens: Type, past_key: ir.Value | None, past_value: ir.Value | None
) -> Type:
    """The positions attended to: those of the past, if there is one, and those of now."""
    if past_key is None:
        return tokens
    past = t[past_key][2]
    lines_up(op, t, past_key, [batch, h.keys, past, h.inner])
    lines_up(op, t, past_value, [batch, h.keys, past, h.values])
    return Sum((past, tokens))


def mask(op: Op, t: Types, scores: Sequence[Type], value: ir.Value | None) -> None:
    """A mask or bias that broadcasts to the scores; one that is shorter than the positions is filled up."""
    if value is None:
        return
    if t.shape(value)[-1] not in (1, scores[-1].size):
        t.freeze([t[value][-1], scores[-1]], op.why(ORDER))
        for own, axis in zip(reversed(t[value][:-1]), reversed(scores[:-1]), strict=False):
            if own.size != 1:
                t.equal(own, axis, op.why(MISFIT))
    else:
        align(op, t, scores, value)


def rotary(op: Op, t: Types) -> None:
    """x [B, S, H D] or [B, H, S, D]; cosines and sines [positions, R / 2] or [B, S, R / 2]; positions [B, S] -> x. The
    first R of the D dimensions are turned in R / 2 pairs: neighbours where interleaved, else one of each half."""
    x = op.inputs[0]
    at, where = ((2, 3), 1) if op.node.domain == "com.microsoft" else ((1, 2), 3)
    caches = [op.inputs[i] for i in at]
    pairs, two = Dim(t.shape(caches[0])[-1]), Dim(2)
    t.freeze(two, op.why("the two sides of a rotated pair"))
    turned = Prod((pairs, two) if op.attr("interleaved", 0) else (two, pairs))
    merged = len(t[x]) == 3
    n_heads = op.attr("num_heads", 0)
    size = t.shape(x)[-1] if not merged else t.shape(x)[-1] // n_heads if n_heads else turned.size
    head = Sum((turned, Dim(size - turned.size)))
    heads = Dim(t.shape(x)[-1] // size) if merged else t[x][1]
    batch, tokens = t[x][0], t[x][1 if merged else 2]
    if merged:
        t.equal(t[x][2], Prod((heads, head)), op.why(MISFIT))
    else:
        t.equal(t[x][3], head, op.why(MISFIT))
    for cache in caches:
        if len(t[cache]) == 3:
            align(op, t, [batch, tokens, pairs], cache)
        else:
            t.freeze(t[cache][0], op.why("the axis of positions, looked up by index"))
            t.equal(t[cache][1], pairs, op.why(MISFIT))
    if op.input(where) is not None and len(t[op.input(where)]) == 2:
        align(op, t, [batch, tokens], op.input(where))
    for attribute, axis in (("num_heads", heads), ("rotary_embedding_dim", turned)):
        if op.attr(attribute, 0):
            t.patch(op.node, SizeAttribute(attribute, axis))
    t.set(op.outputs[0], t[x])


def linear_attention(op: Op, t: Types) -> None:
    """q [B, T, H D], k [B, T, K D], v [B, T, K E], state [B, K, D, E], decay [B, T, K D] or [B, T, K], update rate
    [B, T, K] or [B, T, 1] -> [B, T, H E], state."""
    q, k, v = op.inputs[:3]
    n_queries, n_keys = op.attr("q_num_heads"), op.attr("kv_num_heads")
    if n_queries < n_keys or op.attr("state_window", 0):
        freeze_all(op, t, "every axis of LinearAttention with fewer query heads than key heads, or with several states")
        return
    h = Heads(Dim(n_keys), Dim(n_queries // n_keys), Dim(t.shape(k)[2] // n_keys), Dim(t.shape(v)[2] // n_keys))
    batch, tokens = t[q][:2]
    t.freeze(tokens, op.why(ORDER))
    for x, last in ((q, h.q), (k, h.k), (v, h.v)):
        lines_up(op, t, x, [batch, tokens, last])
    state = [batch, h.keys, h.inner, h.values]
    lines_up(op, t, op.input(3), state)
    decay = op.input(4)
    if decay is not None:
        lines_up(op, t, decay, [batch, tokens, h.keys if t.shape(decay)[2] == n_keys else h.k])
    align(op, t, [batch, tokens, h.keys], op.input(5))
    t.contract(op, 0, 2)
    t.contract(op, 1, 2)
    if not op.attr("scale"):
        keep_scale(op, t, h.inner)
    t.patch(op.node, SizeAttribute("q_num_heads", h.queries))
    t.patch(op.node, SizeAttribute("kv_num_heads", h.keys))
    results(op, t, [[batch, tokens, Prod((h.queries, h.values))], state])


def _microsoft(op: str, apply: RuleFunction, *samples: Sample) -> Rule:
    return Rule(op, apply, samples, domain="com.microsoft")


QKV = "q = MatMul(x, wq)\nk = MatMul(x, wk)\nv = MatMul(x, wv)\n"
_X = (2, 3, 6)
_HEADS = {"wq": (6, 12), "wk": (6, 6), "wv": (6, 10)}
_HALVES = {"c": (7, 3), "s": (7, 3), "p": np.array([[0, 1, 2], [3, 4, 5]])}

RULES = (
    Rule("Attention", attention, (
        Sample(f"{QKV}y = Attention<q_num_heads=4, kv_num_heads=2, scale=0.5>(q, k, v)", _X, axis=2, out_axis=2,
               weights=_HEADS, groups=(2, 2, 3, 5, 6), opset=23),
        Sample(f"{QKV}y = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(q, k, v)", _X,
               axis=2, out_axis=2, weights={"wq": (6, 6), "wk": (6, 6), "wv": (6, 10)}, groups=(2, 3, 5, 6), opset=23),
        Sample("y = Attention<scale=0.5>(x, x, x, m)", (2, 4, 3, 6), axis=3, out_axis=3, weights={"m": (3, 3)},
               groups=(6,), opset=23),
        Sample("a, k1, v1 = Attention<scale=0.5>(x, x, x, m, k, v)\nb = ReduceMax<keepdims=0>(k1)\n"
               "c = ReduceMax<keepdims=0>(v1)\nd = Add(b, c)\ny = Add(a, d)", (2, 4, 3, 6), axis=3, out_axis=3,
               weights={"m": (3, 5), "k": (2, 4, 2, 6), "v": (2, 4, 2, 6)}, inexact=(6,), opset=23),
    )),
    Rule("RotaryEmbedding", rotary, (
        Sample("y = RotaryEmbedding(x, c, s, p)", (2, 4, 3, 6), axis=3, out_axis=3, weights=_HALVES, groups=(3,),
               opset=23),
        Sample("y = RotaryEmbedding<num_heads=2, interleaved=1>(x, c, s)", (2, 3, 12), axis=2, out_axis=2,
               weights={"c": (2, 3, 3), "s": (2, 3, 3)}, groups=(2, 3), opset=23),
        Sample("y = RotaryEmbedding<num_heads=2, rotary_embedding_dim=6>(x, c, s, p)", (2, 3, 20), axis=2, out_axis=2,
               weights=_HALVES, groups=(2, 3, 4), opset=23),
    )),
    _microsoft("RotaryEmbedding", rotary,
               Sample("y = com.microsoft.RotaryEmbedding(x, p, c, s)", (2, 3, 12), axis=2, out_axis=2, weights=_HALVES,
                      groups=(2, 3)),
               Sample("y = com.microsoft.RotaryEmbedding<interleaved=1>(x, p, c, s)", (2, 4, 3, 6), axis=3, out_axis=3,
                      weights=_HALVES, groups=(3,)),
               Sample("y = com.microsoft.RotaryEmbedding<num_heads=2, rotary_embedding_dim=6>(x, p, c, s)", (2, 3, 20),
                      axis=2, out_axis=2, weights=_HALVES, groups=(2, 3, 4))),
    *(
        Rule("LinearAttention", linear_attention, (
            Sample(f'{QKV}y, r = {prefix}LinearAttention<q_num_heads=4, kv_num_heads=2, update_rule="linear">'
                   "(q, k, v, h)", _X, axis=2, out_axis=2, weights={**_HEADS, "h": (2, 2, 3, 5)},
                   groups=(2, 2, 3, 5, 6), opset=opset),
            Sample(f'{QKV}n = LpNormalization(k)\nf = Softplus(k)\ng = Neg(f)\n'
                   f'y, r = {prefix}LinearAttention<q_num_heads=2, kv_num_heads=2, scale=0.5>(q, n, v, , g, e)', _X,
                   axis=2, out_axis=2, weights={"wq": (6, 6), "wk": (6, 6), "wv": (6, 10), "e": np.full((2, 3, 2), 0.3,
                                                                                                np.float32)},
                   groups=(5, 6), inexact=(2, 3), opset=opset),
        ), domain)
        for domain, prefix, opset in (("", "", 27), ("com.microsoft", "com.microsoft.", 18))
    ),
)
