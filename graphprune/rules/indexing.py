"""Operators that look up, scatter or compare by position: the axes looked into freeze, the others pass."""

from __future__ import annotations

import numpy as np

from graphprune.dims import Dim, Type
from graphprune.rules.base import Op, Rule, Sample, Types, axis_of

_LOOKED_UP = "the axis that is looked up by index"
_WRITTEN = "the axis that is written to by index"
_PICKED = "the axis that a mask picks from"
_MISFIT = "indices do not line up with the data"


def gather_elements(op: Op, t: Types) -> None:
    """y has the shape of the indices; away from `axis` they run along the data, and where they cover it are equal."""
    data, indices = op.inputs
    axis = axis_of(op.attr("axis", 0), len(t[data]))
    for i, (a, b) in enumerate(zip(t[data], t[indices], strict=True)):
        if i != axis and a.size == b.size:
            t.equal(a, b, op.why(_MISFIT))
        else:
            t.freeze([a] if i == axis else [a, b], op.why(_LOOKED_UP))
    t.set(op.outputs[0], t[indices])


def scatter_elements(op: Op, t: Types) -> None:
    """y is the data with the updates written along `axis`; what is scattered freezes."""
    data, indices, updates = op.inputs
    axis = axis_of(op.attr("axis", 0), len(t[data]))
    for i, (a, b, c) in enumerate(zip(t[data], t[indices], t[updates], strict=True)):
        if i != axis and a.size == b.size:
            t.equal(a, b, op.why(_MISFIT))
            t.equal(a, c, op.why(_MISFIT))
        else:
            t.freeze([a, b, c], op.why(_WRITTEN))
    t.set(op.outputs[0], t[data])


def gather_nd(op: Op, t: Types) -> None:
    """indices [*batch, .., k] into data [*batch, *k axes, *rest] -> [*batch, .., *rest]: the k axes freeze."""
    data, indices = op.inputs
    batch, depth = op.attr("batch_dims", 0), t.shape(indices)[-1]
    for a, b in zip(t[data][:batch], t[indices][:batch], strict=True):
        t.equal(a, b, op.why(_MISFIT))
    t.freeze([*t[data][batch : batch + depth], t[indices][-1]], op.why(_LOOKED_UP))
    t.set(op.outputs[0], [*t[indices][:-1], *t[data][batch + depth :]])


def scatter_nd(op: Op, t: Types) -> None:
    """updates [.., *rest] written at indices [.., k] into data [*k axes, *rest]: all but rest freezes."""
    data, indices, updates = op.inputs
    depth = t.shape(indices)[-1]
    outer = len(t[indices]) - 1
    t.freeze([*t[data][:depth], *t[indices], *t[updates][:outer]], op.why(_WRITTEN))
    for a, b in zip(t[data][depth:], t[updates][outer:], strict=True):
        t.equal(a, b, op.why(_MISFIT))
    t.set(op.outputs[0], t[data])


def one_hot(op: Op, t: Types) -> None:
    """indices -> the same with a frozen axis of classes inserted."""
    y = op.outputs[0]
    axis = axis_of(op.attr("axis", -1), len(t.shape(y)))
    classes = Dim(t.shape(y)[axis])
    t.freeze(classes, op.why("the axis of classes"), dynamic=not t.is_constant(op.inputs[1]))
    t.freeze(t[op.inputs[2]], op.why("the two values of OneHot"))
    axes = list(t[op.inputs[0]])
    axes.insert(axis, classes)
    t.set(y, axes)


def square(op: Op, t: Types) -> None:
    """Matrices in the last two axes: a triangle of them, their inverse, their determinant."""
    axes = t[op.inputs[0]]
    t.freeze(axes[-2:], op.why(f"the rows and columns that {op.type} takes as a matrix"))
    t.set(op.outputs[0], axes[:-2] if op.type == "Det" else axes)


def tensor_scatter(op: Op, t: Types) -> None:
    """cache [B, .., positions, ..] with update [B, .., some, ..] written from index [B] on."""
    cache, update = op.inputs[:2]
    axis = axis_of(op.attr("axis", -2), len(t[cache]))
    t.freeze([t[cache][axis], t[update][axis]], op.why(_WRITTEN))
    for i, (a, b) in enumerate(zip(t[cache], t[update], strict=True)):
        if i != axis:
            t.equal(a, b, op.why(_MISFIT))
    if op.input(2) is not None:
        t.equal(t[op.input(2)][0], t[cache][0], op.why(_MISFIT))
    t.set(op.outputs[0], t[cache])


def reverse_sequence(op: Op, t: Types) -> None:
    x, lengths = op.inputs
    t.freeze(t[x][op.attr("time_axis", 0)], op.why("the axis that is reversed"))
    t.equal(t[x][op.attr("batch_axis", 1)], t[lengths][0], op.why(_MISFIT))
    t.set(op.outputs[0], t[x])


def compress(op: Op, t: Types) -> None:
    """Entries of one axis, or of all, picked by a mask."""
    x, mask = op.inputs
    axes: list[Type] = list(t[x])
    axis = op.attr("axis")
    picked = Dim(t.shape(op.outputs[0])[-1 if axis is None else axis])
    t.freeze([*t[mask], picked], op.why(_PICKED), dynamic=True)
    first = 0 if axis is None else axis_of(axis, len(axes))
    past = len(axes) if axis is None else first + 1
    t.freeze(axes[first:past], op.why(_PICKED))
    t.set(op.outputs[0], [*axes[:first], picked, *axes[past:]])


def by_position(op: Op, t: Types) -> None:
    """Every axis of every operand matters by position, size or order."""
    for v in (*op.inputs, *op.outputs):
        if v is not None and v.name in t.shapes:
            t.freeze(t[v] if v.name in t.axes else t.fresh(v), op.why(f"every axis of {op.type}, by size and order"),
                     dynamic=v.name not in t.axes)


_X = (2, 6, 4)
_ROWS = np.array([[[0, 3]] * 6] * 2)

RULES = (
    Rule("GatherElements", gather_elements, (
        Sample("y = GatherElements<axis=2>(x, i)", _X, weights={"i": _ROWS}, groups=(6,)),
        Sample("y = GatherElements<axis=1>(x, i)", _X, weights={"i": np.array([[[0, 3, 1, 2]] * 3] * 2)}),
    )),
    *(
        Rule(op, scatter_elements, (
            Sample(f"y = {op}<axis=2>(x, i, u)", _X, weights={"i": _ROWS, "u": (2, 6, 2)}, groups=(6,), opset=opset),
            Sample(f"y = {op}<axis=1>(x, i, u)", _X, weights={"i": np.array([[[0] * 4] * 3] * 2), "u": (2, 3, 4)},
                   opset=opset),
        ))
        for op, opset in (("ScatterElements", 18), ("Scatter", 10))
    ),
    Rule("GatherND", gather_nd, (
        Sample("y = GatherND<batch_dims=1>(x, i)", (2, 4, 6), axis=2,
               weights={"i": np.array([[0], [3]])}, groups=(6,)),
        Sample("y = GatherND(x, i)", _X, out_axis=0, weights={"i": np.array([[0, 1], [1, 3], [1, 5]])}),
    )),
    Rule("ScatterND", scatter_nd, (
        Sample("y = ScatterND(x, i, u)", (2, 4, 6), axis=2, out_axis=2,
               weights={"i": np.array([[0, 1], [1, 3]]), "u": (2, 6)}, groups=(6,)),
        Sample("y = ScatterND(x, i, u)", _X, weights={"i": np.array([[0, 1], [1, 3]]), "u": (2, 4)}),
    )),
    Rule("OneHot", one_hot, (
        Sample("i = Cast<to=7>(x)\nd = Constant<value_int=3>()\nv = Constant<value_floats=[0.0,1.0]>()\n"
               "y = OneHot(i, d, v)", (2, 6), groups=(6,)),
        Sample("i = Cast<to=7>(x)\nd = Constant<value_int=3>()\nv = Constant<value_floats=[0.0,1.0]>()\n"
               "y = OneHot<axis=1>(i, d, v)", (2, 6), out_axis=2, groups=(6,)),
    )),
    *(
        Rule(op, square, (
            Sample(f"y = {prefix}{op}(x)", (2, 6, 4, 4), groups=(6,)),
            Sample(f"y = {prefix}{op}(x)", (2, 4, 4), out_axis=0 if op == "Det" else 1),
        ), domain)
        for domain, prefix in (("", ""), ("com.microsoft", "com.microsoft."))
        for op in ("Trilu", "Det" if not domain else "Inverse")
    ),
    Rule("TensorScatter", tensor_scatter, (
        Sample("y = TensorScatter(c, x, i)", (2, 6, 2, 4), weights={"c": (2, 6, 5, 4), "i": np.array([1, 2])},
               groups=(6,), opset=24),
        Sample("y = TensorScatter<axis=1>(x, u)", (2, 6, 4), weights={"u": (2, 3, 4)}, opset=24),
    )),
    Rule("ReverseSequence", reverse_sequence, (
        Sample("y = ReverseSequence<time_axis=0, batch_axis=1>(x, l)", (4, 3, 6), axis=2, out_axis=2,
               weights={"l": np.array([2, 4, 3])}, groups=(6,)),
    )),
    Rule("Compress", compress, (
        Sample("y = Compress<axis=2>(x, m)", _X, weights={"m": np.array([True, False, True, True])}, groups=(6,)),
        Sample("y = Compress<axis=1>(x, m)", _X, weights={"m": np.array([True, False, True, True, False, True])}),
    )),
    *(
        Rule(op, by_position, (Sample(text, _X),))
        for op, text in (
            ("NonZero", "i = NonZero(x)\ny = Cast<to=1>(i)"),
            ("Unique", "u = Unique<axis=1>(x)\nm = ReduceMax(u)\ny = Mul(x, m)"),
            ("RandomNormalLike", "n = RandomNormalLike(x)\ny = Add(x, n)"),
            ("RandomUniformLike", "n = RandomUniformLike(x)\ny = Add(x, n)"),
            ("Bernoulli", "p = Sigmoid(x)\nb = Bernoulli(p)\ny = Add(x, b)"),
            ("RandomNormal", "n = RandomNormal<shape=[6,4]>()\ny = Add(x, n)"),
            ("RandomUniform", "n = RandomUniform<shape=[6,4]>()\ny = Add(x, n)"),
            ("Multinomial", "f = Flatten(x)\nn = Multinomial<sample_size=1>(f)\nc = Cast<to=1>(n)\n"
                            "k = Constant<value_ints=[2,1,1]>()\nm = Reshape(c, k)\ny = Add(x, m)"),
            ("EyeLike", "f = Flatten(x)\ne = EyeLike(f)\nm = ReduceMax(e)\ny = Mul(x, m)"),
            ("NonMaxSuppression", "s = Transpose<perm=[0,2,1]>(x)\nn = Constant<value_ints=[3]>()\n"
                                  "i = NonMaxSuppression(x, s, n)\ny = Cast<to=1>(i)"),
        )
    ),
)
