"""LSTM, GRU and RNN: the hidden size is one variable over gates, recurrence, states and output.

A hidden unit reaches the others only through its column of R, so removing it is zeroing that column and its readers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.dims import Dim, Prod, Type
from graphprune.patches import SizeAttribute
from graphprune.rules.base import Op, Rule, Sample, Types
from graphprune.rules.norms import statistic

_MISFIT = "the gates do not line up"


def recurrent(gates: int) -> Callable[[Op, Types], None]:
    def apply(op: Op, t: Types) -> None:
        """x [seq, batch, in], w [D, gates h, in], r [D, gates h, h], b [D, 2 gates h], lengths [batch], states
        [D, batch, h], peepholes [D, 3 h] -> y [seq, D, batch, h], states. layout 1 has batch first, D behind it.
        DynamicQuantizeLSTM: w [D, in, 4 h] and r [D, h, 4 h] in bytes, their scales and zero points [D] or [D, 4 h]
        behind; the range of the inputs and of the state is a statistic."""
        x, w, r = op.inputs[:3]
        bias, lengths, *states = (op.input(i) for i in (3, 4, 5, 6))
        peepholes = op.input(7)
        why = op.why(_MISFIT)
        batch_first = op.attr("layout", 0) == 1
        sequence, batch = reversed(t[x][:2]) if batch_first else t[x][:2]
        dynamic = op.type == "DynamicQuantizeLSTM"
        summed, made = (1, 2) if dynamic else (2, 1)
        hidden, directions = Dim(t.shape(r)[summed]), t[w][0]
        t.freeze([sequence, directions], op.why("the axis of the sequence or of directions"))

        def gated(n: int) -> Type:
            gate = Dim(n)
            t.freeze(gate, op.why("the axis of gates"))
            return Prod((gate, hidden)) if n > 1 else hidden

        t.equal(t[x][2], t[w][summed], why)
        t.equal(t[w][made], gated(gates), why)
        t.equal(t[r][made], gated(gates), why)
        t.equal(t[r][summed], hidden, why)
        for value in op.inputs[8:]:
            if value is not None and len(t[value]) == 2:
                t.equal(t[value][1], gated(gates), why)
        if dynamic:
            statistic(op, t, [*t[x], hidden])
        for value, size in ((bias, gated(2 * gates)), (peepholes, gated(3))):
            if value is not None:
                t.equal(t[value][1], size, why)
        for value in (r, bias, peepholes):
            if value is not None:
                t.equal(t[value][0], directions, why)
        state: list[Type] = [batch, directions, hidden] if batch_first else [directions, batch, hidden]
        if lengths is not None:
            t.equal(t[lengths][0], batch, why)
        for value in states:
            if value is not None:
                for a, b in zip(t[value], state, strict=True):
                    if a.size == b.size:
                        t.equal(a, b, why)
        t.contract(op, 1, summed)
        t.contract(op, 2, summed)
        for y in op.outputs:
            if y.name in t.shapes:
                whole = [batch, sequence, directions, hidden] if batch_first else [sequence, directions, batch, hidden]
                t.set(y, whole if len(t.shape(y)) == 4 else state)
        t.patch(op.node, SizeAttribute("hidden_size", hidden))

    return apply


def _rule(op: str, gates: int) -> Rule:
    def weights(directions: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {"w": (directions, 5 * gates, inputs), "r": (directions, 5 * gates, 5), "b": (directions, 10 * gates)}

    flat = "s = Constant<value_ints=[0,0,-1]>()\nv = Transpose<perm=[0,2,1,3]>(u)\ny = Reshape(v, s)"
    return Rule(op, recurrent(gates), (
        Sample(f"u = {op}<hidden_size=5>(x, w, r, b)\n{flat}", (3, 2, 6), axis=2, out_axis=2, weights=weights(1, 6),
               groups=(5, 6)),
        Sample(f'u, h = {op}<hidden_size=5, direction="bidirectional">(x, w, r, b)\n{flat}', (3, 2, 6), axis=2,
               out_axis=2, weights=weights(2, 6), groups=(5, 6)),
    ))


def _bytes(*shape: int) -> np.ndarray:
    return (np.arange(int(np.prod(shape))) * 37 % 251).astype(np.uint8).reshape(shape)


_SCALES = {"c": np.full(1, 0.005, np.float32), "z": np.full(1, 120, np.uint8)}

RULES = (
    _rule("LSTM", 4), _rule("GRU", 3), _rule("RNN", 1),
    Rule("DynamicQuantizeLSTM", recurrent(4), (
        Sample("u = com.microsoft.DynamicQuantizeLSTM<hidden_size=5>(x, w, r, b, , , , , c, z, c, z)\n"
               "s = Constant<value_ints=[0,0,-1]>()\nv = Transpose<perm=[0,2,1,3]>(u)\ny = Reshape(v, s)", (3, 2, 6),
               axis=2, out_axis=2, weights={"w": _bytes(1, 6, 20), "r": _bytes(1, 5, 20), "b": (1, 40), **_SCALES},
               inexact=(5, 6)),
    ), domain="com.microsoft"),
)  # fmt: skip
