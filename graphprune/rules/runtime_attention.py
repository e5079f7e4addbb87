"""The forms of attention that ONNX Runtime's optimiser and exporters write: with the projection inside, with separate
queries, keys and values, with grouped queries, on 8-bit numbers. See `attention` for what they have in common."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.dims import Dim, Prod, Sum, Type, mark_contracted
from graphprune.patches import SizeAttribute, SizesAttribute
from graphprune.rules.attention import MISFIT, ORDER, QKV, Heads, keep_scale, lines_up, mask, results, with_past
from graphprune.rules.base import Op, Rule, RuleFunction, Sample, Types, freeze_all
from graphprune.rules.norms import align, statistic


def padding(op: Op, t: Types, batch: Type, queries: Type, seen: Type, value: ir.Value | None) -> None:
    """A mask of positions in one of ONNX Runtime's forms: [B, T] or [B, S, T] line up; counts and wider ones freeze."""
    if value is None:
        return
    expected = {2: [batch, seen], 3: [batch, queries, seen]}.get(len(t[value]))
    if expected is not None and t.shape(value) == tuple(a.size for a in expected):
        lines_up(op, t, value, expected)
    else:
        t.freeze([*t[value], batch, seen], op.why(ORDER), dynamic=True)


def projected_attention(op: Op, t: Types) -> None:
    """x [B, S, in], w [in, (q k v)], bias [(q k v)], mask, past [2, B, H, P, D], bias of scores -> [B, S, H E] and
    present; (q k v) is three products of heads and dimensions side by side. QAttention: the same on 8-bit x and w."""
    quantised = op.type == "QAttention"
    x, w, bias = op.inputs[:3]
    past = op.input(8 if quantised else 4)
    n_heads = op.attr("num_heads")
    sizes = op.attr("qkv_hidden_sizes") or [t.shape(w)[1] // 3] * 3
    h = Heads(Dim(n_heads), Dim(1), Dim(sizes[0] // n_heads), Dim(sizes[2] // n_heads))
    if past is not None or any(y.name in t.shapes for y in op.outputs[1:]):
        t.equal(h.inner, h.values, op.why(MISFIT))  # they share one tensor
    packed = [h.k, h.k, h.v]
    t.equal(t[w][1], Sum(packed), op.why(MISFIT))
    for per_column in (bias, *((op.input(4), op.input(7)) if quantised else ())):
        align(op, t, [Sum(packed)], per_column)
    t.equal(t[x][-1], t[w][0], op.why(MISFIT))
    batch, queries = t[x][:2]
    seen: Type = queries
    if past is not None:
        lines_up(op, t, past, [t[past][0], batch, h.keys, t[past][3], h.inner])
        t.freeze(t[past][0], op.why("the axis of keys and values"))
        seen = Sum((t[past][3], queries))
    padding(op, t, batch, queries, seen, op.input(5 if quantised else 3))
    if quantised:
        statistic(op, t, [t[w][0], h.inner])
        t.equal(h.inner, h.values, op.why(MISFIT))  # it knows one size only
        t.contract(op, 1, 0)
        mark_contracted(h.inner)
    else:
        mask(op, t, [batch, h.keys, queries, seen], op.input(5))
        t.contract(op, 1, 0)
        for operand in (1, 2):
            if op.input(operand) is not None:
                t.contract(op, operand, -1, inside=True)
        t.patch(op.node, SizesAttribute("qkv_hidden_sizes", tuple(packed), tuple(sizes)))
    if not op.attr("scale"):
        keep_scale(op, t, h.inner)
    if op.attr("do_rotary", 0):
        t.freeze(h.inner, op.why("the dimensions of a head, rotated in pairs"))
    if op.attr("unidirectional", 0) or op.attr("past_present_share_buffer", 0):
        t.freeze([queries, seen], op.why(ORDER))
    statistic(op, t, [seen])
    t.patch(op.node, SizeAttribute("num_heads", h.keys))
    pair = Dim(2)
    t.freeze(pair, op.why("the axis of keys and values"))
    results(op, t, [[batch, queries, h.v], [pair, batch, h.keys, seen, h.inner]])


def multi_head_attention(op: Op, t: Types) -> None:
    """q [B, S, H D], k [B, T, H D], v [B, T, H E], or k and v [B, H, T, D]; bias [(q k v)], padding, bias of scores,
    past k and v -> [B, S, H E], present k and v. The forms with several of q, k and v in one operand are for graphics
    processors only."""
    q, k, v, bias = (op.input(i) for i in range(4))
    if k is None or v is None or len(t[q]) != 3:
        freeze_all(op, t, "every axis of MultiHeadAttention with queries, keys and values in one operand")
        return
    n_heads, given = op.attr("num_heads"), len(t[k]) == 4
    inner, values = t.shape(q)[2] // n_heads, t.shape(v)[-1] // (1 if given else n_heads)
    h = Heads(Dim(n_heads), Dim(1), Dim(inner), Dim(values))
    batch, queries = t[q][:2]
    tokens = t[k][2 if given else 1]
    if given or op.input(6) is not None:
        t.equal(h.inner, h.values, op.why(MISFIT))  # the operator asks for one size
    lines_up(op, t, q, [batch, queries, h.k])
    for x, last, merged in ((k, h.inner, h.k), (v, h.values, h.v)):
        lines_up(op, t, x, [batch, h.keys, tokens, last] if given else [batch, tokens, merged])
    t.contract(op, 0, -1)
    t.contract(op, 1, -1)
    if bias is not None:
        t.equal(t[bias][0], Sum((h.k, h.k, h.v)), op.why(MISFIT))
        t.contract(op, 3, 0, inside=True)
    seen = with_past(op, t, batch, h, tokens, op.input(6), op.input(7))
    padding(op, t, batch, queries, seen, op.input(4))
    mask(op, t, [batch, h.keys, queries, seen], op.input(5))
    shared = [counter for counter in (op.input(8), op.input(9)) if counter is not None]
    if op.attr("unidirectional", 0) or shared:
        t.freeze([queries, seen, *(a for counter in shared for a in t[counter])], op.why(ORDER))
    if not op.attr("scale"):
        keep_scale(op, t, h.inner)
    statistic(op, t, [seen])
    t.patch(op.node, SizeAttribute("num_heads", h.keys))
    results(op, t, [[batch, queries, h.v], [batch, h.keys, seen, h.inner], [batch, h.keys, seen, h.values],
                    [batch, h.keys, queries, seen]])  # fmt: skip


def grouped_query_attention(op: Op, t: Types) -> None:
    """q [B, S, H D], k and v [B, S, K D], or q [B, S, (H + K + K) D] for all; past k and v [B, K, P, D], counts, caches
    of cosines and sines [positions, D / 2] -> [B, S, H D], present k and v. The runtime takes some sizes of a head
    only, so D stays."""
    q, k, v = op.inputs[:3]
    n_queries, n_keys = op.attr("num_heads"), op.attr("kv_num_heads")
    inner = Dim(t.shape(q)[2] // (n_queries if k is not None else n_queries + 2 * n_keys))
    t.freeze(inner, op.why("the dimensions of a head, which GroupQueryAttention takes in some sizes only"))
    h = Heads(Dim(n_keys), Dim(n_queries // n_keys), inner, inner)
    batch, queries = t[q][:2]
    lines_up(op, t, q, [batch, queries, h.q if k is not None else Sum((h.q, h.k, h.v))])
    for x in (k, v):
        lines_up(op, t, x, [batch, queries, h.k])
    for x in (op.input(3), op.input(4)):
        if x is not None:
            lines_up(op, t, x, [batch, h.keys, t[x][2], inner])
            t.freeze(t[x][2], op.why(ORDER))
    lines_up(op, t, op.input(5), [batch])
    for i in (6, 7, 8, 9, 12, 13, 14, 15):  # counts, caches, positions, scales of the cache, norms of a head
        if op.input(i) is not None:
            t.freeze(t[op.input(i)], op.why(ORDER if i < 12 else "the dimensions of a head"))
    bias = op.input(10)
    if bias is not None:
        t.freeze(t[bias][3], op.why(ORDER))
        mask(op, t, [batch, h.queries, queries, t[bias][3]], bias)
    lines_up(op, t, op.input(11), [h.queries])
    t.freeze(queries, op.why(ORDER))
    t.patch(op.node, SizeAttribute("num_heads", h.queries))
    t.patch(op.node, SizeAttribute("kv_num_heads", h.keys))
    present = [positions(op, t, y, 2) for y in op.outputs[1:3]]
    scores = [positions(op, t, y, 3) for y in op.outputs[3:]]
    results(op, t, [[batch, queries, h.q], *([batch, h.keys, p, inner] for p in present),
                    *([batch, h.queries, queries, p] for p in scores)])  # fmt: skip


def positions(op: Op, t: Types, value: ir.Value, axis: int) -> Type:
    """A frozen variable for the positions on this axis of an output."""
    d = Dim(t.shape(value)[axis]) if value.name in t.shapes else Dim(0)
    t.freeze(d, op.why(ORDER), dynamic=True)
    return d


def gated_position_bias(op: Op, t: Types) -> None:
    """q [B, S, H D] and its bias [H D], bias of positions [1, H, S, S], gate weight [D, M], bias [M], factor
    [1, H, 1, 1] -> [B, H, S, S]."""
    q, q_bias, positions_bias, weight, bias, factor = op.inputs[:6]
    if len(t[q]) != 3:
        freeze_all(op, t, "every axis of GatedRelativePositionBias of tokens without padding")
        return
    heads, inner = Dim(op.attr("num_heads")), t[weight][0]
    batch, tokens = t[q][:2]
    for value in (q, q_bias):
        t.equal(t[value][-1], Prod((heads, inner)), op.why(MISFIT))
    t.contract(op, 3, 0)
    t.freeze([tokens, *t[positions_bias][2:]], op.why(ORDER))
    t.freeze([t[weight][1], *t[bias]], op.why("the axis of gates"))
    for value in (positions_bias, factor):
        t.equal(t[value][1], heads, op.why(MISFIT))
    t.patch(op.node, SizeAttribute("num_heads", heads))
    results(op, t, [[batch, heads, tokens, tokens]])


def _microsoft(op: str, apply: RuleFunction, *samples: Sample) -> Rule:
    return Rule(op, apply, samples, domain="com.microsoft")


_X = (2, 3, 6)

RULES = (
    _microsoft("Attention", projected_attention,
               Sample("y = com.microsoft.Attention<num_heads=2>(x, w, b)", _X, axis=2, out_axis=2,
                      weights={"w": (6, 30), "b": (30,)}, groups=(2, 5, 5, 6)),
               Sample("y, r = com.microsoft.Attention<num_heads=2>(x, w, b, m, p)", _X, axis=2, out_axis=2,
                      weights={"w": (6, 30), "b": (30,), "m": np.array([5, 4], np.int32), "p": (2, 2, 2, 2, 5)},
                      groups=(2, 5, 6)),
               Sample("y, r = com.microsoft.Attention<num_heads=2, unidirectional=1>(x, w, b)", _X, axis=2,
                      out_axis=2, weights={"w": (6, 30), "b": (30,)}, groups=(2, 5, 6)),
               Sample("y = com.microsoft.Attention<num_heads=2, qkv_hidden_sizes=[6,6,10], scale=0.3>"
                      "(x, w, b, m, , a)", _X, axis=2, out_axis=2,
                      weights={"w": (6, 22), "b": (22,), "m": np.array([[1, 1, 0], [1, 1, 1]], np.int32),
                               "a": (1, 2, 3, 3)}, groups=(2, 3, 5, 6))),
    _microsoft("MultiHeadAttention", multi_head_attention,
               Sample(f"{QKV}y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)", _X, axis=2, out_axis=2,
                      weights={"wq": (6, 6), "wk": (6, 6), "wv": (6, 10)}, groups=(2, 3, 5, 6)),
               Sample(f"{QKV}y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v, b, m, a)", _X, axis=2,
                      out_axis=2, weights={"wq": (6, 6), "wk": (6, 6), "wv": (6, 10), "b": (22,), "a": (1, 2, 3, 3),
                                           "m": np.array([[1, 1, 0], [1, 1, 1]], np.int32)}, groups=(2, 3, 5, 6)),
               Sample("q = MatMul(x, wq)\ny = com.microsoft.MultiHeadAttention<num_heads=2, unidirectional=1>(q, k, v)",
                      _X, axis=2, out_axis=2, weights={"wq": (6, 6), "k": (2, 2, 4, 3), "v": (2, 2, 4, 3)},
                      groups=(2, 3, 6)),
               Sample(f"{QKV}y, r, u = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v, , , , a, c)", _X, axis=2,
                      out_axis=2, weights={"wq": (6, 6), "wk": (6, 6), "wv": (6, 6), "a": (2, 2, 4, 3),
                                           "c": (2, 2, 4, 3)}, groups=(2, 3, 6))),
    _microsoft("GroupQueryAttention", grouped_query_attention,
               Sample(f"{QKV}y, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
                      "(q, k, v, , , n, m)", _X, axis=2, out_axis=2,
                      weights={"wq": (6, 32), "wk": (6, 16), "wv": (6, 16), "n": np.array([2, 2], np.int32),
                               "m": np.array(3, np.int32)}, groups=(2, 2, 6)),
               Sample("q = MatMul(x, wq)\n"
                      "y, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1>"
                      "(q, , , , , n, m, c, s, , , h)", _X, axis=2, out_axis=2,
                      weights={"wq": (6, 128), "n": np.array([2, 2], np.int32), "m": np.array(3, np.int32),
                               "c": (7, 8), "s": (7, 8), "h": (4,)}, groups=(2, 2, 6)),
               Sample("q = MatMul(x, wq)\n"
                      "y, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1>"
                      "(q, , , k, v, n, m, c, s)", (1, 3, 6), axis=2, out_axis=2,
                      weights={"wq": (6, 128), "k": (1, 2, 2, 16), "v": (1, 2, 2, 16),
                               "n": np.array([4], np.int32), "m": np.array(5, np.int32), "c": (7, 8), "s": (7, 8)},
                      groups=(2, 2, 6))),
    _microsoft("QAttention", projected_attention,
               Sample("i = QuantizeLinear(x, s, z)\n"
                      "y = com.microsoft.QAttention<num_heads=2>(i, w, b, s, v, , z, u)", _X, axis=2, out_axis=2,
                      weights={"w": (np.arange(180) * 37 % 251).astype(np.uint8).reshape(6, 30), "b": (30,),
                               "s": np.array(0.05, np.float32), "v": np.array(0.002, np.float32),
                               "z": np.array(128, np.uint8), "u": np.array(120, np.uint8)}, groups=(2,),
                      inexact=(5, 6))),
    _microsoft("GatedRelativePositionBias", gated_position_bias,
               Sample("y = com.microsoft.GatedRelativePositionBias<num_heads=2>(x, q, r, w, b, f)", (2, 4, 6), axis=2,
                      weights={"q": (6,), "r": (1, 2, 4, 4), "w": (3, 8), "b": (8,), "f": (1, 2, 1, 1)},
                      groups=(2, 3))),
)
