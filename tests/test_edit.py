"""What shrinking does to a graph, as pairs of ONNX text: before, and expected after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphprune.dims import leaves
from graphprune.edit import new_constant, set_constant, shrink
from graphprune.groups import Analysis
from graphprune.keeps import positions
from graphprune.oracles import compare
from tests.graphs import model_of, run, typed

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """weights: random numbers of a shape, or integers as they are. keep: (weight, axis, size) of a group -> channels
    kept. Expected: the text `after`, if it changes, weights cut to {axis: positions}, and these constants."""

    about: str
    x: tuple[int | str, ...]
    before: str
    weights: Mapping[str, tuple[int, ...] | list]
    keep: Mapping[tuple[str, int, int], list[int]]
    cut: Mapping[str, Mapping[int, list[int]]]
    after: str = ""
    constants: Mapping[str, object] = field(default_factory=dict)
    opset: int = 18


CASES = [
    Case(
        "two convolutions: the filter, its bias, and the columns of the reader",
        ("N", 3, 5, 5), "c = Conv(x, w, b)\nr = Relu(c)\nresult = Conv(r, v, d)",
        {"w": (6, 3, 1, 1), "b": (6,), "v": (4, 6, 1, 1), "d": (4,)},
        {("w", 0, 6): [1, 2, 5]},
        {"w": {0: [1, 2, 5]}, "b": {0: [1, 2, 5]}, "v": {1: [1, 2, 5]}},
    ),
    Case(
        "a depthwise convolution between: its filters, and the attribute that counts them",
        ("N", 3, 5, 5), "c = Conv(x, w)\ne = Conv<group=6>(c, k)\nresult = Conv(e, v)",
        {"w": (6, 3, 1, 1), "k": (6, 1, 1, 1), "v": (4, 6, 1, 1)},
        {("w", 0, 6): [0, 3]},
        {"w": {0: [0, 3]}, "k": {0: [0, 3]}, "v": {1: [0, 3]}},
        "c = Conv(x, w)\ne = Conv<group=2>(c, k)\nresult = Conv(e, v)",
    ),
    Case(
        "a grouped reader loses the same channels in every group, the attribute stays",
        ("N", 3, 5, 5), "c = Conv(x, w)\nresult = Conv<group=2>(c, v)",
        {"w": (8, 3, 1, 1), "v": (6, 4, 1, 1)},
        {("v", 1, 4): [0, 2, 3]},
        {"w": {0: [0, 2, 3, 4, 6, 7]}, "v": {1: [0, 2, 3]}},
    ),
    Case(
        "a grouped maker can lose whole groups: its inputs and outputs go together",
        ("N", 3, 5, 5), "c = Conv(x, w)\ne = Conv<group=4>(c, k)\nresult = Conv(e, v)",
        {"w": (8, 3, 1, 1), "k": (12, 2, 1, 1), "v": (2, 12, 1, 1)},
        {("k", 0, 4): [1, 3]},
        {"w": {0: [2, 3, 6, 7]}, "k": {0: [3, 4, 5, 9, 10, 11]}, "v": {1: [3, 4, 5, 9, 10, 11]}},
        "c = Conv(x, w)\ne = Conv<group=2>(c, k)\nresult = Conv(e, v)",
    ),
    Case(
        "heads split by Reshape: stated sizes are renewed, 0 and -1 keep their meaning",
        ("N", "T", 5), "h = MatMul(x, w)\nr = Reshape(h, to)\nt = Transpose<perm=[0,2,1,3]>(r)\n"
        "u = Transpose<perm=[0,2,1,3]>(t)\ng = Reshape(u, back)\nresult = MatMul(g, v)",
        {"w": (5, 12), "v": (12, 4), "to": [0, -1, 3, 4], "back": [0, 0, 12]},
        {("w", 1, 3): [0, 2]},
        {"w": {1: [0, 1, 2, 3, 8, 9, 10, 11]}, "v": {0: [0, 1, 2, 3, 8, 9, 10, 11]}},
        constants={"to": [0, -1, 2, 4], "back": [0, 0, 8]},
    ),
    Case(
        "what -1 stands for may shrink without being stated",
        ("N", 3, 4, 4), "c = Conv(x, w)\np = GlobalAveragePool(c)\nf = Reshape(p, flat)\nresult = Gemm(f, v)",
        {"w": (6, 3, 1, 1), "v": (6, 2), "flat": [0, -1]},
        {("w", 0, 6): [0, 1, 4]},
        {"w": {0: [0, 1, 4]}, "v": {0: [0, 1, 4]}},
    ),
    Case(
        "flattened pixels: every channel is a block of columns of the reader",
        ("N", 3, 2, 2), "c = Conv(x, w)\nf = Flatten<axis=1>(c)\nresult = Gemm(f, v)",
        {"w": (3, 3, 1, 1), "v": (12, 2)},
        {("w", 0, 3): [0, 2]},
        {"w": {0: [0, 2]}, "v": {0: [0, 1, 2, 3, 8, 9, 10, 11]}},
    ),
    Case(
        "a shape put together when the model runs: only the entry concerned becomes a constant",
        ("N", "T", 5), "h = MatMul(x, w)\ns = Shape(x)\nn = Gather(s, first)\nm = Concat<axis=0>(n, rest)\n"
        "r = Reshape(h, m)\nresult = MatMul(r, v)",
        {"w": (5, 6), "v": (6, 4), "first": [0], "rest": [-1, 6]},
        {("w", 1, 6): [2, 3]},
        {"w": {1: [2, 3]}, "v": {0: [2, 3]}},
        "h = MatMul(x, w)\ns = Shape(x)\nn = Gather(s, first)\nm = Concat<axis=0>(n, rest)\n"
        "p = Mul(m, stays)\nq = Add(p, new)\nr = Reshape(h, q)\nresult = MatMul(r, v)",
        {"stays": [1, 1, 0], "new": [0, 0, 2]},
    ),
    Case(
        "Split with stated sizes: only the part that shrinks is renewed",
        ("N", 5), "h = MatMul(x, w)\na, b = Split<axis=1>(h, parts)\np = MatMul(a, u)\nq = MatMul(b, v)\n"
        "result = Add(p, q)",
        {"w": (5, 10), "u": (6, 3), "v": (4, 3), "parts": [6, 4]},
        {("u", 0, 6): [0, 5]},
        {"w": {1: [0, 5, 6, 7, 8, 9]}, "u": {0: [0, 5]}},
        constants={"parts": [2, 4]},
    ),
    Case(
        "an even Split whose halves shrink together stays even, but its sizes are said",
        ("N", 5), "h = MatMul(x, w)\na, b = Split<axis=1, num_outputs=2>(h)\nm = Mul(a, b)\nresult = MatMul(m, v)",
        {"w": (5, 8), "v": (4, 3)},
        {("v", 0, 4): [1, 2]},
        {"w": {1: [1, 2, 5, 6]}, "v": {0: [1, 2]}},
        "h = MatMul(x, w)\na, b = Split<axis=1>(h, sizes)\nm = Mul(a, b)\nresult = MatMul(m, v)",
        {"sizes": [2, 2]},
    ),
    Case(
        "Slice bounds move with what is kept before them; the end of the axis stays the end",
        ("N", 5), "h = MatMul(x, w)\na = Slice(h, s0, e0, axis)\nb = Slice(h, e0, end, axis)\np = MatMul(a, u)\n"
        "q = MatMul(b, v)\nresult = Add(p, q)",
        {"w": (5, 10), "u": (6, 3), "v": (4, 3), "s0": [0], "e0": [6], "axis": [1],
         "end": [9223372036854775807]},
        {("u", 0, 6): [0, 2, 5], ("v", 0, 4): [3]},
        {"w": {1: [0, 2, 5, 9]}, "u": {0: [0, 2, 5]}, "v": {0: [3]}},
        "h = MatMul(x, w)\na = Slice(h, s0, e1, axis)\nb = Slice(h, e2, end, axis)\np = MatMul(a, u)\n"
        "q = MatMul(b, v)\nresult = Add(p, q)",
        {"e1": [3], "e2": [3]},
    ),
    Case(
        "Slice bounds of old opsets are attributes",
        ("N", 5), "h = MatMul(x, w)\na = Slice<starts=[0], ends=[6], axes=[1]>(h)\n"
        "b = Slice<starts=[6], ends=[10], axes=[1]>(h)\np = MatMul(a, u)\nq = MatMul(b, v)\nresult = Add(p, q)",
        {"w": (5, 10), "u": (6, 3), "v": (4, 3)},
        {("u", 0, 6): [0, 2, 5]},
        {"w": {1: [0, 2, 5, 6, 7, 8, 9]}, "u": {0: [0, 2, 5]}},
        "h = MatMul(x, w)\na = Slice<starts=[0], ends=[3], axes=[1]>(h)\n"
        "b = Slice<starts=[3], ends=[10], axes=[1]>(h)\np = MatMul(a, u)\nq = MatMul(b, v)\nresult = Add(p, q)",
        opset=9,
    ),
    Case(
        "Expand states the width it broadcasts to",
        ("N", 5), "h = MatMul(x, w)\nu = Unsqueeze(h, one)\ne = Expand(u, to)\nresult = MatMul(e, v)",
        {"w": (5, 6), "v": (6, 4), "one": [1], "to": [1, 3, 6]},
        {("w", 1, 6): [1, 4]},
        {"w": {1: [1, 4]}, "v": {0: [1, 4]}},
        constants={"to": [1, 3, 2]},
    ),
    Case(
        "Expand's one is not a size and stays",
        ("N", 5), "h = MatMul(x, w)\nu = Unsqueeze(h, one)\ne = Expand(u, to)\nresult = MatMul(e, v)",
        {"w": (5, 6), "v": (6, 4), "one": [1], "to": [1, 3, 1]},
        {("w", 1, 6): [1, 4]},
        {"w": {1: [1, 4]}, "v": {0: [1, 4]}},
    ),
    Case(
        "a weight used twice is cut once",
        ("N", 5), "h = MatMul(x, w)\na = Relu(h)\np = MatMul(a, v)\nb = MatMul(x, w)\nc = Tanh(b)\nq = MatMul(c, v)\n"
        "result = Add(p, q)",
        {"w": (5, 6), "v": (6, 4)},
        {("w", 1, 6): [0, 1, 3]},
        {"w": {1: [0, 1, 3]}, "v": {0: [0, 1, 3]}},
    ),
    Case(
        "a shape constant that two nodes share is copied for the one that changes",
        ("N", 6), "h = MatMul(x, w)\nr = Reshape(h, to)\np = Mul(r, f)\nf0 = Reshape(p, back)\ns = MatMul(f0, v)\n"
        "r2 = Reshape(x, to)\nq = ReduceSum(r2, last)\nq0 = Flatten<axis=1>(q)\nresult = Concat<axis=1>(s, q0)",
        {"w": (6, 6), "f": (1,), "v": (6, 4), "to": [-1, 2, 3], "back": [-1, 6], "last": [2]},
        {("w", 1, 3): [0, 2]},
        {"w": {1: [0, 2, 3, 5]}, "v": {0: [0, 2, 3, 5]}},
        "h = MatMul(x, w)\nr = Reshape(h, to2)\np = Mul(r, f)\nf0 = Reshape(p, back)\ns = MatMul(f0, v)\n"
        "r2 = Reshape(x, to)\nq = ReduceSum(r2, last)\nq0 = Flatten<axis=1>(q)\nresult = Concat<axis=1>(s, q0)",
        {"to2": [-1, 2, 2], "back": [-1, 4]},
    ),
]  # fmt: skip


def arrays(weights: Mapping[str, tuple[int, ...] | list]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=w).astype(np.float32) if isinstance(w, tuple) else np.array(w)
            for name, w in weights.items()}


def plain(model: ir.Model) -> list:
    """Nodes in order, without names: operator, attributes, and each input by contents or by who made it."""
    made: dict[str, object] = {v.name: ("input", v.name) for v in model.graph.inputs}
    rows = []
    for i, node in enumerate(model.graph):
        inputs = [None if v is None else constant(v) if v.is_initializer() else made[v.name] for v in node.inputs]
        made |= {y.name: (i, j) for j, y in enumerate(node.outputs)}
        rows.append((node.op_type, {k: a.value for k, a in sorted(node.attributes.items())}, inputs))
    return [*rows, [made[v.name] for v in model.graph.outputs]]


def constant(value: ir.Value) -> tuple:
    array = value.const_value.numpy()
    assert list(value.shape) == list(array.shape)
    return str(array.dtype), array.shape, array.tolist()


def group_at(analysis: Analysis, weight: str, axis: int, size: int) -> str:
    """The group of `size` channels that lies on an axis of a weight."""
    (name,) = [n for n, g in analysis.groups.items()
               if g.size == size and g.dim in set(leaves(analysis.types.axes[weight][axis]))]  # fmt: skip
    return name


def feed_of(x: Sequence[int | str], n: int = 2) -> Arrays:
    shape = tuple(s if isinstance(s, int) else {"N": n, "T": 3}[s] for s in x)
    return {"x": np.random.default_rng(5).normal(size=shape).astype(np.float32)}


@pytest.mark.parametrize("case", [pytest.param(c, id=c.about) for c in CASES])
def test_shrink(case: Case) -> None:
    weights = arrays(case.weights)
    before = model_of(case.before, {"x": case.x}, weights, opset=case.opset)
    analysis = typed(before, feed_of(case.x), fold=False)
    keep = {group_at(analysis, *where): np.array(index) for where, index in case.keep.items()}
    cut = dict(weights)
    for name, axes in case.cut.items():
        for axis, index in axes.items():
            cut[name] = np.take(cut[name], index, axis)
    cut |= {name: np.array(values) for name, values in case.constants.items()}
    expected = model_of(case.after or case.before, {"x": case.x}, cut, opset=case.opset)
    small = shrink(analysis.model, analysis.types, analysis.keeps(keep))
    assert plain(small) == plain(expected)
    assert plain(analysis.model) == plain(before), "the model given must stay as it was"
    for n in (2, 5):
        feed = feed_of(case.x, n)
        assert compare(run(expected, feed), run(small, feed)) == 0
    for value in small.graph.initializers.values():
        assert value.name == value.const_value.name


@pytest.mark.parametrize("case", [pytest.param(c, id=c.about) for c in CASES])
def test_shrinking_by_nothing_changes_nothing(case: Case) -> None:
    analysis = typed(model_of(case.before, {"x": case.x}, arrays(case.weights), opset=case.opset), feed_of(case.x),
                     fold=False)  # fmt: skip
    assert plain(shrink(analysis.model, analysis.types, {})) == plain(analysis.model)
    whole = analysis.keeps({name: np.arange(g.size) for name, g in analysis.groups.items()})
    assert plain(shrink(analysis.model, analysis.types, whole)) == plain(analysis.model)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.about) for c in CASES])
def test_declared_shapes_follow(case: Case) -> None:
    """Shapes written in the model are what it really computes: a runtime trusts them."""
    proto = ir.to_proto(model_of(case.before, {"x": case.x}, arrays(case.weights), opset=case.opset))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    analysis = typed(model, feed_of(case.x), fold=False)
    keep = {group_at(analysis, *where): np.array(index) for where, index in case.keep.items()}
    small = shrink(analysis.model, analysis.types, analysis.keeps(keep))
    declared = {v.name: v.shape for node in small.graph for v in node.outputs}
    small.graph.outputs.extend(v for node in small.graph for v in node.outputs if v not in small.graph.outputs)
    seen = run(small, feed_of(case.x))
    for name, shape in declared.items():
        if shape is not None:
            assert [n for n in shape if isinstance(n, int)] == [
                m for n, m in zip(shape, seen[name].shape, strict=True) if isinstance(n, int)], name


def test_a_permutation_in_place_of_a_keep_set_reorders_and_computes_the_same() -> None:
    case = CASES[0]
    before = model_of(case.before, {"x": case.x}, arrays(case.weights))
    analysis = typed(before, feed_of(case.x), fold=False)
    order = np.array([3, 0, 5, 1, 4, 2])
    turned = shrink(analysis.model, analysis.types, analysis.keeps({group_at(analysis, "w", 0, 6): order}))
    assert np.array_equal(turned.graph.initializers["w"].const_value.numpy(), arrays(case.weights)["w"][order])
    assert compare(run(before, feed_of(case.x)), run(turned, feed_of(case.x))) < 1e-6


def test_every_channel_vanishes_where_positions_say() -> None:
    """The keep set of one group and `positions` of it tell the same story about every weight."""
    case = next(c for c in CASES if "heads split" in c.about)
    analysis = typed(model_of(case.before, {"x": case.x}, arrays(case.weights)), feed_of(case.x), fold=False)
    name = group_at(analysis, "w", 1, 3)
    where = positions(analysis.types.axes["w"][1], analysis.groups[name].dim)
    small = shrink(analysis.model, analysis.types, analysis.keeps({name: np.array([1])}))
    kept = small.graph.initializers["w"].const_value.numpy()
    assert np.array_equal(kept, arrays(case.weights)["w"][:, where[1]])


def test_a_new_constant_never_takes_a_name_that_is_taken() -> None:
    model = model_of("result = MatMul(x, w)", {"x": ("N", 5)}, {"w": (5, 4)})
    value = new_constant(model.graph, "w", np.zeros(3))
    assert value.name == "w_" and model.graph.initializers["w"].const_value.shape == (5, 4)


def test_setting_a_constant_keeps_its_element_type() -> None:
    model = model_of("result = MatMul(x, w)", {"x": ("N", 5)}, {"w": (5, 4)})
    value = model.graph.initializers["w"]
    set_constant(value, np.ones((5, 2), np.float32))
    assert value.const_value.dtype == ir.DataType.FLOAT and list(value.shape) == [5, 2]
