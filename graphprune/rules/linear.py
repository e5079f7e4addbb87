"""Operators that multiply by a weight or contract two activations: what faces the input shrinks with it."""

from __future__ import annotations

from graphprune.dims import ONE, Dim, Prod, Type
from graphprune.patches import SizeAttribute
from graphprune.rules.base import Op, Rule, Sample, Types

_MISFIT = "contracted axes do not line up"


def matmul(op: Op, t: Types) -> None:
    product(op, t)
    if t.is_constant(op.inputs[1]) and len(t[op.inputs[1]]) == 2:
        t.reader(op, "matmul", contracted=0, produced=1)


def product(op: Op, t: Types, a: int = 0, b: int = 1, *, turn_a: bool = False, turn_b: bool = False) -> None:
    """Operands a [.., n, k] and b [.., k, m], each with its last two axes the other way round where turned: the k axes
    are equal and contracted, the batch axes broadcast."""
    left, right = list(t[op.inputs[a]]), list(t[op.inputs[b]])
    t.contract(op, a, -2 if turn_a else -1)
    t.contract(op, b, -2 if len(right) > 1 and not turn_b else -1)
    for axes, turned in ((left, turn_a), (right, turn_b)):
        if turned:
            axes[-2:] = axes[:-3:-1]
    t.equal(left[-1], right[-2] if len(right) > 1 else right[-1], op.why(_MISFIT))
    batch_a, batch_b = left[:-2], right[:-2]
    rank = max(len(batch_a), len(batch_b))
    batch: list[Type] = []
    for x, y in zip([ONE] * (rank - len(batch_a)) + batch_a, [ONE] * (rank - len(batch_b)) + batch_b, strict=True):
        if x.size != 1 and y.size != 1:
            t.equal(x, y, op.why(_MISFIT))
        batch.append(y if x.size == 1 else x)
    t.set(op.outputs[0], batch + (left[-2:-1] if len(left) > 1 else []) + (right[-1:] if len(right) > 1 else []))


def gemm(op: Op, t: Types) -> None:
    affine(op, t)
    plain = not op.attr("transA", 0) and op.attr("alpha", 1.0) == 1.0 and op.attr("beta", 1.0) == 1.0
    if plain and t.is_constant(op.inputs[1]):
        trans_b = op.attr("transB", 0)
        t.reader(op, "matmul", contracted=int(trans_b), produced=1 - int(trans_b))


def affine(op: Op, t: Types) -> None:
    """alpha * A' B' + beta * C with A' [n, k], B' [k, m]; C broadcasts to [n, m]."""
    a, b, c = op.inputs[0], op.inputs[1], op.input(2)
    left, right = list(t[a]), list(t[b])
    if op.attr("transA", 0):
        left.reverse()
    trans_b = op.attr("transB", 0)
    if trans_b:
        right.reverse()
    t.equal(left[1], right[0], op.why(_MISFIT))
    t.contract(op, 0, 0 if op.attr("transA", 0) else 1)
    t.contract(op, 1, 1 if trans_b else 0)
    result = [left[0], right[1]]
    if c is not None:
        for axis, other in zip(reversed(result), reversed(t[c]), strict=False):
            if other.size != 1:
                t.equal(axis, other, op.why("the bias does not line up"))
    t.set(op.outputs[0], result)


def conv(op: Op, t: Types) -> None:
    convolution(op, t)
    w = op.inputs[1]
    if t.is_constant(w) and t.shape(w)[1] > 1:
        t.reader(op, "conv", contracted=1, produced=0)


def convolution(op: Op, t: Types, at: int = 1, bias_at: int = 2) -> None:
    """x [N, C, *s], w [O, C/g, *k], b [O] -> y [N, O, *s']: x.C = Prod(G, w.1), w.0 = Prod(G, O/g); w.1 contracted."""
    x, w, bias = op.inputs[0], op.inputs[at], op.input(bias_at)
    groups = op.attr("group", 1)
    xs, ws = t[x], t[w]
    t.freeze(ws[2:], op.why("kernel taps"))
    if groups == 1:
        t.equal(xs[1], ws[1], op.why(_MISFIT))
    else:
        g = Dim(groups)
        t.equal(xs[1], Prod((g, ws[1])), op.why("channels do not divide into the convolution's groups"))
        t.equal(ws[0], Prod((g, Dim(ws[0].size // groups))), op.why("filters do not divide into the groups"))
        t.patch(op.node, SizeAttribute("group", g))
    t.contract(op, at, 1)
    if bias is not None:
        t.equal(t[bias][0], ws[0], op.why("the bias does not line up"))
    spatial(op, t, ws[0])


def conv_transpose(op: Op, t: Types) -> None:
    """x [N, C, *s], w [C, O/g, *k] -> y [N, O, *s']: as Conv with the weight's axes swapped; w.0 contracted."""
    x, w, bias = op.inputs[0], op.inputs[1], op.input(2)
    groups = op.attr("group", 1)
    xs, ws = t[x], t[w]
    t.freeze(ws[2:], op.why("kernel taps"))
    t.equal(xs[1], ws[0], op.why(_MISFIT))
    produced: Type = ws[1]
    if groups > 1:
        g, inner = Dim(groups), Dim(ws[0].size // groups)
        t.equal(ws[0], Prod((g, inner)), op.why("channels do not divide into the convolution's groups"))
        t.contract(op, 1, 0)
        t.patch(op.node, SizeAttribute("group", g))
        produced = Prod((g, ws[1]))
    else:
        t.contract(op, 1, 0)
    if bias is not None:
        t.equal(t[bias][0], produced, op.why("the bias does not line up"))
    spatial(op, t, produced)
    if t.is_constant(w) and groups == 1:
        t.reader(op, "deconv", contracted=0, produced=1)


def spatial(op: Op, t: Types, channels: Type) -> None:
    """The output of a convolution: batch of the input, `channels`, and fresh frozen spatial axes."""
    x, y = op.inputs[0], op.outputs[0]
    t.freeze(t[x][2:], op.why("spatial axis"))
    spatial = [Dim(n) for n in t.shape(y)[2:]]
    t.freeze(spatial, op.why("spatial axis"), dynamic=True)
    t.set(y, [t[x][0], channels, *spatial])


def einsum(op: Op, t: Types) -> None:
    """Equal letters are equal axes; letters absent from the output are contracted. No ellipsis, no repeated letter."""
    equation = op.attr("equation").replace(" ", "")
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    if "." in equation or not output or any(len(set(term)) < len(term) for term in [*terms, output]):
        for v in op.inputs:
            t.freeze(t[v], op.why("Einsum with an ellipsis, an implicit output or a repeated letter"))
        t.freeze(t.fresh(op.outputs[0]), op.why("result of an unmodelled Einsum"), dynamic=True)
        return
    axes: dict[str, Type] = {}
    for v, term in zip(op.inputs, terms, strict=True):
        for letter, axis in zip(term, t[v], strict=True):
            if letter not in axes or axes[letter].size == 1:
                axes[letter] = axis
            elif axis.size != 1:
                t.equal(axes[letter], axis, op.why(_MISFIT))
    for operand, term in enumerate(terms):
        for i, letter in enumerate(term):
            if letter not in output:
                t.contract(op, operand, i)
    t.set(op.outputs[0], [axes[letter] for letter in output])



RULES = (
    Rule("MatMul", matmul, (
        Sample("y = MatMul(x, w)", (2, 3, 6), axis=2, out_axis=2, weights={"w": (6, 8)}, groups=(6, 8)),
        Sample("a = MatMul(x, w)\nk = Transpose<perm=[0,2,1]>(x)\ns = MatMul(a, k)\ny = MatMul(s, x)",
               (2, 3, 6), axis=2, out_axis=2, weights={"w": (6, 6)}, groups=(6,)),
    )),
    Rule("Gemm", gemm, (
        Sample("y = Gemm(x, w, b)", (3, 6), weights={"w": (6, 8), "b": (8,)}, groups=(6, 8)),
        Sample("y = Gemm<transB=1>(x, w)", (3, 6), weights={"w": (8, 6)}, groups=(6, 8)),
        Sample("y = Gemm<transA=1, alpha=0.5>(x, w)", (6, 3), axis=0, weights={"w": (6, 8)}, groups=(6, 8)),
    )),
    Rule("Conv", conv, (
        Sample("y = Conv<pads=[1,1,1,1]>(x, w, b)", (2, 6, 5, 5), weights={"w": (8, 6, 3, 3), "b": (8,)},
               groups=(6, 8)),
        Sample("y = Conv<group=6>(x, w)", (2, 6, 5, 5), weights={"w": (6, 1, 3, 3)}, groups=(6,)),
        Sample("y = Conv<group=6>(x, w)", (2, 6, 5, 5), weights={"w": (12, 1, 3, 3)}, groups=(2, 6)),
        Sample("y = Conv<group=3>(x, w)", (2, 12, 5, 5), weights={"w": (6, 4, 3, 3)}, groups=(2, 3, 4)),
        Sample("y = Conv(x, w)", (2, 6, 5), weights={"w": (8, 6, 3)}, groups=(6, 8)),
    )),
    Rule("ConvTranspose", conv_transpose, (
        Sample("y = ConvTranspose<strides=[2,2]>(x, w, b)", (2, 6, 4, 4), weights={"w": (6, 8, 2, 2), "b": (8,)},
               groups=(6, 8)),
        Sample("y = ConvTranspose<group=3>(x, w)", (2, 12, 4, 4), weights={"w": (12, 2, 2, 2)}, groups=(2, 3, 4)),
    )),
    Rule("Einsum", einsum, (
        Sample('y = Einsum<equation="bnk,km->bnm">(x, w)', (2, 3, 6), axis=2, out_axis=2, weights={"w": (6, 8)},
               groups=(6, 8)),
        Sample('y = Einsum<equation="b...k,km->b...m">(x, w)', (2, 3, 6), axis=2, out_axis=2, weights={"w": (6, 8)}),
    )),
)
