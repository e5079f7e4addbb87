"""Operators that multiply by a weight or contract two activations: what faces the input shrinks with it."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.dims import ONE, Dim, Prod, Type
from graphprune.patches import SizeAttribute
from graphprune.rules.base import Op, Rule, Sample, Types, freeze_all

_MISFIT = "contracted axes do not line up"


def matmul(op: Op, t: Types) -> None:
    product(op, t)
    if t.is_constant(op.inputs[1]) and len(t[op.inputs[1]]) == 2:
        t.reader(op, "matmul", contracted=0, produced=1)


def product(
    op: Op, t: Types, a: int = 0, b: int = 1, *, order_a: Sequence[int] = (), order_b: Sequence[int] = ()
) -> None:
    """Operands a [.., n, k] and b [.., k, m], their axes put in this order beforehand: the k axes are equal and
    contracted, the batch axes broadcast."""
    order_a = order_a or range(len(t[op.inputs[a]]))
    order_b = order_b or range(len(t[op.inputs[b]]))
    left, right = ([t[op.inputs[i]][axis] for axis in order] for i, order in ((a, order_a), (b, order_b)))
    t.contract(op, a, order_a[-1])
    t.contract(op, b, order_b[-2] if len(right) > 1 else order_b[-1])
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


def affine(op: Op, t: Types, at: int = 1, bias_at: int = 2) -> None:
    """alpha * A' B' + beta * C with A' [n, k], B' [k, m]; C broadcasts to [n, m]."""
    a, b, c = op.inputs[0], op.inputs[at], op.input(bias_at)
    left, right = list(t[a]), list(t[b])
    if op.attr("transA", 0):
        left.reverse()
    trans_b = op.attr("transB", 0)
    if trans_b:
        right.reverse()
    t.equal(left[1], right[0], op.why(_MISFIT))
    t.contract(op, 0, 0 if op.attr("transA", 0) else 1)
    t.contract(op, at, 1 if trans_b else 0)
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


def convolution(op: Op, t: Types, at: int = 1, bias_at: int = 2, *, channels_last: bool = False) -> None:
    """x [N, C, *s] or [N, *s, C], w [O, C/g, *k], b [O] -> y as x: x.C = Prod(G, w.1), w.0 = Prod(G, O/g); w.1
    contracted."""
    x, w, bias = op.inputs[0], op.inputs[at], op.input(bias_at)
    groups = op.attr("group", 1)
    channels, ws = t[x][-1 if channels_last else 1], t[w]
    t.freeze(ws[2:], op.why("kernel taps"))
    if groups == 1:
        t.equal(channels, ws[1], op.why(_MISFIT))
    else:
        g = Dim(groups)
        t.equal(channels, Prod((g, ws[1])), op.why("channels do not divide into the convolution's groups"))
        t.equal(ws[0], Prod((g, Dim(ws[0].size // groups))), op.why("filters do not divide into the groups"))
        t.patch(op.node, SizeAttribute("group", g))
    t.contract(op, at, 1)
    if bias is not None:
        t.equal(t[bias][0], ws[0], op.why("the bias does not line up"))
    passes = place_by_place(op, [a.size for a in ws[2:]])
    spatial(op, t, ws[0], channels_last=channels_last, passes=passes)


def place_by_place(op: Op, kernel: Sequence[int]) -> list[bool]:
    """For each spatial axis whether a window of this size goes over it place by place."""
    n = len(kernel)
    pads, strides = op.attr("pads") or [0] * 2 * n, op.attr("strides") or [1] * n
    return [kernel[i] == strides[i] == 1 and pads[i] == pads[n + i] == 0 for i in range(n)]


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


def spatial(
    op: Op, t: Types, channels: Type, *, channels_last: bool = False, passes: Sequence[bool] | None = None
) -> None:
    """The output of a convolution: batch of the input, `channels`, and fresh frozen spatial axes; axes that a kernel of
    one passes over place by place stay what they are."""
    x, y = op.inputs[0], op.outputs[0]
    where = slice(1, -1) if channels_last else slice(2, None)
    space: list[Type] = []
    for axis, n, same in zip(t[x][where], t.shape(y)[where], passes or [False] * (len(t[x]) - 2), strict=True):
        space.append(axis if same else Dim(n))
        if not same:
            t.freeze(axis, op.why("spatial axis"))
            t.freeze(space[-1], op.why("spatial axis"), dynamic=True)
    t.set(y, [t[x][0], *space, channels] if channels_last else [t[x][0], channels, *space])


def deform_conv(op: Op, t: Types) -> None:
    """Conv at places moved by offsets [N, G taps r, *s'] and weighted by a mask [N, G taps, *s'], if there is one; each
    of the G offset groups is for as many channels of x."""
    x, offsets, weights = op.inputs[0], op.inputs[2], op.input(4)
    convolution(op, t, bias_at=3)
    batch, _, *space = t[op.outputs[0]]
    moved = Dim(op.attr("offset_group", 1))
    t.equal(t[x][1], Prod((moved, Dim(t[x][1].size // moved.size))), op.why("channels do not divide into the offsets"))
    for value in (offsets, weights):
        if value is not None:
            taps = Dim(t.shape(value)[1] // moved.size)
            t.freeze(taps, op.why("kernel taps"))
            t.equal(t[value][1], Prod((moved, taps)), op.why("offsets do not line up"))
            for own, axis in zip((t[value][0], *t[value][2:]), (batch, *space), strict=True):
                t.equal(own, axis, op.why("offsets do not line up"))
    t.patch(op.node, SizeAttribute("offset_group", moved))


def causal_conv(op: Op, t: Types) -> None:
    """x [B, C, *s], one filter per channel [C, 1, *k], bias [C], the last inputs of before [B, C, k - 1] -> y, the last
    inputs."""
    x, w, *others = (op.input(i) for i in range(4))
    channels = t[x][1]
    if op.attr("channels_last", 0) or op.attr("state_window", 0):
        freeze_all(op, t, "every axis of CausalConvWithState with channels last or with several states")
        return
    t.freeze([*t[x][2:], *t[w][2:]], op.why("spatial axis"))
    t.equal(t[w][0], channels, op.why(_MISFIT))
    bias, past = others
    if bias is not None:
        t.equal(t[bias][0], channels, op.why("the bias does not line up"))
    if past is not None:
        t.freeze(t[past][2:], op.why("spatial axis"))
        t.equal(t[past][0], t[x][0], op.why("the state does not line up"))
        t.equal(t[past][1], channels, op.why("the state does not line up"))
    t.set(op.outputs[0], t[x])
    for state in op.outputs[1:]:
        if state.name in t.shapes:
            length = [Dim(n) for n in t.shape(state)[2:]]
            t.freeze(length, op.why("spatial axis"))
            t.set(state, [t[x][0], channels, *length])


def einsum(op: Op, t: Types) -> None:
    """Equal letters are equal axes; letters absent from the output are contracted; an axis taken with itself (a
    diagonal) stays."""
    terms, output = letters(op.attr("equation"), [len(t[v]) for v in op.inputs])
    for term, v in zip(terms, op.inputs, strict=True):
        t.freeze([a for a, letter in zip(t[v], term, strict=True) if term.count(letter) > 1],
                 op.why("the axes of a diagonal"))  # fmt: skip
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


def letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """One letter for each axis of the inputs and of the output: an ellipsis becomes digits that count from the right,
    and an output that is not stated is the ellipsis and the letters that occur once, in alphabetical order."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms, widest = [], ""
    for term, rank in zip(inputs.split(","), ranks, strict=True):
        hidden = "".join(str(i) for i in reversed(range(rank - len(term.replace("...", "")))))
        widest = max(widest, hidden, key=len)
        terms.append(term.replace("...", hidden))
    if not arrow:
        named = inputs.replace(",", "").replace(".", "")
        output = "..." + "".join(sorted(letter for letter in set(named) if named.count(letter) == 1))
    return terms, output.replace("...", widest)


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
        Sample("y = Conv(x, w)", (2, 5, 6), axis=2, out_axis=2, weights={"w": (5, 5, 1)}, groups=(6,)),
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
        Sample('y = Einsum<equation="b...k,km->b...m">(x, w)', (2, 3, 6), axis=2, out_axis=2, weights={"w": (6, 8)},
               groups=(6, 8)),
        Sample('y = Einsum<equation="...k, km">(x, w)', (2, 3, 6), axis=2, out_axis=2, weights={"w": (6, 8)},
               groups=(6, 8)),
        Sample('y = Einsum<equation="bckk->bck">(x)', (2, 6, 4, 4), groups=(6,)),
        Sample('y = Einsum<equation="bkk->bk">(x)', (2, 6, 6)),
    )),
    Rule("DeformConv", deform_conv, (
        Sample("y = DeformConv(x, w, o, b, m)", (2, 6, 4, 4),
               weights={"w": (8, 6, 2, 2), "o": (2, 8, 3, 3), "b": (8,), "m": (2, 4, 3, 3)}, groups=(6, 8), opset=19),
        Sample("y = DeformConv<offset_group=2, group=2>(x, w, o)", (2, 12, 4, 4),
               weights={"w": (8, 6, 2, 2), "o": (2, 16, 3, 3)}, groups=(2, 4, 6), opset=22),
    )),
    *(
        Rule("CausalConvWithState", causal_conv, (
            Sample(f'y, r = {prefix}CausalConvWithState<activation="silu">(x, w, b, p)', (2, 6, 5),
                   weights={"w": (6, 1, 3), "b": (6,), "p": (2, 6, 2)}, groups=(6,), opset=opset),
        ), domain)
        for domain, prefix, opset in (("", "", 27), ("com.microsoft", "com.microsoft.", 18))
    ),
)
