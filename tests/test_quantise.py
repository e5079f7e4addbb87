"""The quantise pass: the same function to within rounding, whatever the node, the precision and the plan, and in
integer kernels where the plan says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.backends import open_backend
from graphprune.context import Context, overwrite
from graphprune.edit import set_constant, stands_for
from graphprune.passes.low_rank import LowRank
from graphprune.passes.quantise import FLOAT, PRECISIONS, Quantise
from graphprune.passes.width import Width
from graphprune.prepare import loader
from tests.graphs import model_of, typed

BACKEND = open_backend("host")
LOAD = loader(BACKEND)
STEP = 1e-3
"""Relative squared error that a few roundings to eight bits, each 64 / 12 / 4^8 of a normal variable, may add up to."""
COARSE = 0.12
"""The same for four bits in blocks: 36 / 12 / 4^4 a layer, and one more layer to reach the output."""
SAME = 1e-5
"""Between two runs of one integer graph: a tie may be rounded by a step to either side, rarely."""
FLOATING = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


@dataclass(frozen=True)
class Case:
    """x: shape of a feed. fixed: whether the model has these sizes; else its first axis is open."""

    text: str
    x: tuple[int, ...]
    weights: Mapping[str, tuple[int, ...] | np.ndarray]
    outputs: tuple[str, ...] = ("result",)
    fixed: bool = False

    def context(self, opset: int = 18, n_feeds: int = 12) -> Context:
        shape = self.x if self.fixed else ("N", *self.x[1:])
        model = model_of(self.text, {"x": shape}, self.weights, self.outputs, opset)
        feeds = self.feeds(n_feeds)
        return Context(typed(model, feeds[0]), feeds, LOAD, integer=BACKEND.integer)

    def feeds(self, n: int, seed: int = 1, batch: int | None = None) -> list[dict[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        shape = (batch or self.x[0], *self.x[1:])
        return [{"x": (rng.normal(size=shape) + 0.3).astype(np.float32)} for _ in range(n)]


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


CONVS = {
    "strided, then grouped with Relu": Case(
        "h = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w, b)\na = Relu(h)\nresult = Conv<group=2>(a, v)",
        (2, 3, 9, 8), {"w": (8, 3, 3, 3), "b": (8,), "v": (6, 4, 3, 3)}),
    "depthwise with Clip": Case(
        "h = Conv(x, w, b)\na = Clip(h, low, high)\nd = Conv<group=8, pads=[1,1,1,1]>(a, v, c)\n"
        "e = Clip(d, low, high)\nresult = Conv(e, u)",
        (2, 3, 8, 8), {"w": (8, 3, 1, 1), "b": (8,), "v": (8, 1, 3, 3), "c": (8,), "u": (5, 8, 1, 1),
                       "low": number(0), "high": number(6)}),
    "Clip on both sides of zero": Case(
        "h = Conv(x, w, b)\na = Clip(h, low, high)\nresult = Conv(a, u)",
        (2, 3, 8, 8), {"w": (8, 3, 1, 1), "b": (8,), "u": (5, 8, 1, 1), "low": number(-1), "high": number(1)}),
    "residual": Case(
        "h = Conv<pads=[1,1,1,1]>(x, w, b)\na = Relu(h)\nd = Conv<pads=[1,1,1,1]>(a, v)\ns = Add(d, a)\nt = Relu(s)\n"
        "result = Conv(t, u)", (2, 3, 8, 8), {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 8, 3, 3), "u": (5, 8, 1, 1)}),
    "carriers and Concat": Case(
        "h = Conv(x, w, b)\na = Relu(h)\np = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)\n"
        "t = Transpose<perm=[0,1,3,2]>(p)\nd = Conv<pads=[1,1,1,1]>(t, v)\nc = Concat<axis=1>(d, t)\n"
        "result = Conv(c, u)", (2, 3, 9, 11), {"w": (8, 3, 2, 2), "b": (8,), "v": (4, 8, 3, 3), "u": (5, 12, 1, 1)}),
    "pooled and classified": Case(
        "h = Conv(x, w, b)\na = Relu(h)\ng = GlobalAveragePool(a)\nr = Reshape(g, shape)\nresult = Gemm(r, v, c)",
        (2, 3, 8, 8), {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 5), "c": (5,), "shape": np.array([-1, 8])}),
    "weights next to nothing, a bias": Case(
        "h = Conv(x, w, b)\na = Relu(h)\nresult = Conv(a, v)", (2, 3, 8, 8),
        {"w": (np.random.default_rng(0).normal(size=(4, 3, 3, 3)) * np.array([1, 1e-12, 0, 1e-4])[:, None, None, None])
         .astype(np.float32), "b": np.array([1, 2, 3, 4], np.float32), "v": (6, 4, 1, 1)}),
}  # fmt: skip
PRODUCTS = {
    "MatMul": Case("h = MatMul(x, w)\nr = Relu(h)\nresult = MatMul(r, v)", (3, 7, 40), {"w": (40, 70), "v": (70, 33)}),
    "MatMul and Add": Case(
        "h = MatMul(x, w)\na = Add(b, h)\nr = Relu(a)\nm = MatMul(r, v)\nresult = Add(m, c)", (3, 7, 40),
        {"w": (40, 70), "b": (70,), "v": (70, 33), "c": (1, 1, 33)}),
    "MatMul and Add of two axes": Case(
        "h = MatMul(x, w)\na = Add(b, h)\nr = Relu(a)\nm = MatMul(r, v)\nresult = Add(m, c)", (9, 40),
        {"w": (40, 70), "b": (70,), "v": (70, 33), "c": (1, 33)}),
    "two axes, another added": Case(
        "h = MatMul(x, w)\na = Mul(h, s)\nr = Relu(a)\nm = MatMul(r, v)\nresult = Add(m, x)", (9, 40),
        {"w": (40, 70), "s": number(0.3), "v": (70, 40)}),
    "Gemm": Case(
        "h = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)\nr = Relu(h)\nm = Gemm<alpha=3.0>(r, v)\n"
        "result = Gemm<beta=0.5>(m, u, c)", (9, 40),
        {"w": (70, 40), "b": (70,), "v": (70, 33), "u": (33, 20), "c": number(0.7)}),
}  # fmt: skip
PRODUCTS |= {
    f"{name}, all sizes known": Case(case.text, case.x, case.weights, fixed=True)
    for name, case in PRODUCTS.items() if name.startswith("MatMul")
}  # fmt: skip
OPSETS = (11, 13, 21)


def level(precision: str) -> int:
    return PRECISIONS.index(precision) if precision in PRECISIONS else FLOAT


def choices_of(context: Context, precision: str | Mapping[str, str]) -> Mapping[str, Mapping]:
    """One precision wherever there is a site for it, or one for each node named."""
    quantise, levels = Quantise(), {}
    for site in quantise.propose(context):
        (node,) = site.members
        to = precision if isinstance(precision, str) else precision.get(node, "float")
        levels[site.name] = level(to) if level(to) in site.levels else FLOAT
    return quantise.choose(context, levels)


def applied(context: Context, precision: str | Mapping[str, str]) -> ir.Model:
    return Quantise().apply(context, context.model, choices_of(context, precision))


def structure(model: ir.Model) -> tuple:
    nodes = [(n.name, n.domain, n.op_type, sorted(n.attributes), [v and v.name for v in n.inputs],
              [v.name for v in n.outputs]) for n in model.graph]  # fmt: skip
    tensors = {name: (tuple(v.const_value.shape), v.dtype) for name, v in model.graph.initializers.items()}
    return nodes, tensors, [(v.name, v.dtype) for v in model.graph.outputs]


def error(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The largest relative squared error over the outputs."""
    assert found.keys() == wanted.keys()
    assert all(found[k].dtype == a.dtype and found[k].shape == a.shape for k, a in wanted.items())
    return max(float(np.sum((found[k] - a) ** 2) / np.sum(a**2)) for k, a in wanted.items())


def check(
    context: Context, model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]], limit: float = STEP,
    same: float = SAME,
) -> None:  # fmt: skip
    """Valid, close to the float model on all feeds, and the same with and without the runtime's optimisation."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=not any(n.domain for n in model.graph))
    dense, plain, fast = LOAD(context.model), BACKEND.load(model, optimise=False), BACKEND.load(model)
    for feed in feeds:
        wanted = dense(feed)
        assert error(fast.run(feed), wanted) < limit
        assert error(plain.run(feed), wanted) < limit
        assert error(fast.run(feed), plain.run(feed)) < same


def kernels(model: ir.Model, feed: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {k.name: k.op for k in BACKEND.profile(model, feed, repeats=1)}


def slow(found: Mapping[str, str]) -> list[str]:
    """Products in floating point, and weights that are dequantised in every run."""
    return [name for name, op in found.items() if op in FLOATING or (op == "DequantizeLinear" and ".weight" in name)]


def feeds_of(case: Case) -> list[dict[str, np.ndarray]]:
    return [*case.feeds(2), *([] if case.fixed else case.feeds(1, seed=5, batch=case.x[0] + 3))]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", CONVS)
def test_a_chain_of_convolutions_computes_in_integers_what_it_did(name: str, opset: int) -> None:
    context = CONVS[name].context(opset)
    model = applied(context, "static")
    check(context, model, feeds_of(CONVS[name]))
    found = kernels(model, context.feeds[0])
    assert not slow(found)
    n_convolutions = sum(n.op_type == "Conv" for n in context.model.graph)
    assert sum(op == "QLinearConv" for op in found.values()) == n_convolutions


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_computes_in_few_bits_what_it_did(name: str, precision: str, opset: int) -> None:
    context = PRODUCTS[name].context(opset)
    model = applied(context, precision)
    check(context, model, feeds_of(PRODUCTS[name]), COARSE if precision == "int4 weights" else STEP)
    found = kernels(model, context.feeds[0])
    assert not slow(found)
    integer = {"static": {"QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}, "dynamic": {"DynamicQuantizeMatMul"}}
    n_products = sum(n.op_type in ("MatMul", "Gemm") for n in context.model.graph)
    packed = {f"MatMulNBits, {precision[3]} bits"}
    assert sum(op in integer.get(precision, packed) for op in found.values()) == n_products


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*CONVS, *PRODUCTS])
def test_solving_finishing_and_neither_write_the_same_graph(name: str, precision: str) -> None:
    context = (CONVS | PRODUCTS)[name].context(13)
    choices = choices_of(context, precision)
    if not choices:
        return  # a convolution is only ever static
    quantise = Quantise()
    finished = quantise.finish(context, context.model, choices)
    without = Context(context.analysis, [], LOAD, integer=BACKEND.integer)
    bare = Quantise().apply(without, context.model, choices, solve=False)
    for solve in (False, True):
        assert structure(quantise.apply(context, context.model, choices, solve)) == structure(finished)
    assert structure(bare) == structure(finished)
    assert [v.name for v in finished.graph.outputs] == [v.name for v in context.model.graph.outputs]
    check(context, finished, context.feeds, COARSE if precision == "int4 weights" else STEP)
    tensors = {name: v.const_value.numpy() for name, v in finished.graph.initializers.items()}
    assert bytes_of(overwrite(bare, tensors)) == bytes_of(finished)


def bytes_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def test_what_is_made_up_for_is_closer_than_what_is_rounded_to_nearest() -> None:
    case = PRODUCTS["MatMul and Add"]
    context = case.context()
    choices = choices_of(context, "int4 weights")
    dense, feed = LOAD(context.model), context.feeds[0]
    nearest = Quantise().apply(context, context.model, choices, solve=False)
    best = Quantise().finish(context, context.model, choices)
    assert error(LOAD(best)(feed), dense(feed)) < 0.75 * error(LOAD(nearest)(feed), dense(feed))


BETWEEN = {
    "a convolution": "d = Conv(a, v)",
    "a transposed convolution": "d = ConvTranspose(a, t)",
    "a convolution behind a carrier": "p = MaxPool<kernel_shape=[2,2]>(a)\nd = Conv(p, v)",
    "a convolution with carriers on both sides":
        "p = MaxPool<kernel_shape=[2,2]>(a)\ne = Conv(p, v)\nd = MaxPool<kernel_shape=[2,2]>(e)",
    "a convolution and its Relu": "e = Conv(a, v)\nd = Relu(e)",
}  # fmt: skip


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", BETWEEN)
def test_a_node_between_8_bit_values_stays_in_floating_point_if_it_was_left_there(name: str, opset: int) -> None:
    """Runtimes would round its weight unasked, and the model would not compute what it says: see `check`."""
    case = Case(f"h = Conv(x, w)\na = Relu(h)\n{BETWEEN[name]}\nresult = Conv(d, u)", (2, 3, 9, 9),
                {"w": (8, 3, 1, 1), "v": (6, 8, 2, 2), "t": (8, 6, 2, 2), "u": (5, 6, 1, 1)})  # fmt: skip
    context = case.context(opset)
    first, middle, last = (n.name for n in context.model.graph if "Conv" in n.op_type)
    model = applied(context, {first: "static", last: "static"})
    check(context, model, context.feeds)
    found = kernels(model, context.feeds[0])
    assert found[middle] in (FLOATING | {"ConvTranspose"}) and found[first] == found[last] == "QLinearConv"
    assert slow(found) == [middle] * (found[middle] in FLOATING)


@pytest.mark.parametrize("middle", ["float", "static", "dynamic", "int8 weights"])
def test_a_gemm_between_others_has_the_precision_it_was_given(middle: str) -> None:
    text = "h = Conv(x, w)\ng = GlobalAveragePool(h)\nr = Reshape(g, s)\nm = Gemm(r, v)\nresult = Gemm(m, u)"
    case = Case(text, (6, 3, 8, 8), {"w": (16, 3, 3, 3), "v": (16, 12), "u": (12, 5), "s": np.array([-1, 16])})
    context = case.context(13)
    conv, pool, _, first, last = [n.name for n in context.model.graph]
    model = applied(context, {conv: "static", pool: "static", last: "static", first: middle})
    check(context, model, context.feeds, 4 * STEP)  # the mean of many is small beside its rounding
    op = {"float": "Gemm", "static": "QGemm", "dynamic": "DynamicQuantizeMatMul", "int8 weights": "MatMulNBits, 8 bits"}
    assert kernels(model, context.feeds[0])[first] == op[middle]


@pytest.mark.parametrize("chosen", range(2))
def test_behind_a_carrier_alone_and_before_it_alone(chosen: int) -> None:
    """What a carrier gives has a range of its own where nothing before it is in 8 bits."""
    case = Case("h = Conv(x, w)\na = Relu(h)\np = MaxPool<kernel_shape=[2,2]>(a)\nresult = Conv(p, v)", (2, 3, 9, 9),
                {"w": (8, 3, 1, 1), "v": (6, 8, 2, 2)})  # fmt: skip
    context = case.context(13)
    names = [n.name for n in context.model.graph if n.op_type == "Conv"]
    model = applied(context, {names[chosen]: "static"})
    check(context, model, context.feeds)
    assert kernels(model, context.feeds[0])[names[chosen]] == "QLinearConv"
    assert f"{names[1 - chosen]}.weight.q" not in model.graph.initializers


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_that_two_nodes_share_stays_as_it_was_for_the_other(precision: str) -> None:
    case = Case("h = MatMul(x, w)\nr = Relu(h)\nresult = MatMul(r, v)", (3, 7, 40), {"w": (40, 40), "v": (40, 40)})
    context = case.context()
    shared = context.model.clone()
    first, second = (n for n in shared.graph if n.op_type == "MatMul")
    weight = first.inputs[1]
    second.replace_input_with(1, weight)
    model = Quantise().apply(context, shared, choices_of(context, {first.name: precision}))
    limit = COARSE if precision == "int4 weights" else STEP
    assert error(LOAD(model)(context.feeds[0]), LOAD(shared)(context.feeds[0])) < limit
    assert kernels(model, context.feeds[0])[second.name] == "MatMul"
    np.testing.assert_array_equal(model.graph.initializers[weight.name].const_value.numpy(), weight.const_value.numpy())
    both = Quantise().apply(context, shared, choices_of(context, precision))
    assert weight.name not in both.graph.initializers
    assert error(LOAD(both)(context.feeds[0]), LOAD(shared)(context.feeds[0])) < limit


def test_a_bias_with_more_axes_than_the_product_is_not_taken_in() -> None:
    case = Case("h = MatMul(x, w)\na = Add(b, h)\nr = Relu(a)\nresult = MatMul(r, v)", (9, 40),
                {"w": (40, 70), "b": (1, 1, 70), "v": (70, 40)})  # fmt: skip
    context = case.context()
    check(context, applied(context, "static"), feeds_of(case))


def test_outputs_inside_a_chain_keep_their_names_and_types() -> None:
    """A value that only exists in 8 bits is given out; one in floating point is given out as it is."""
    text = "h = Conv(x, w)\na = Relu(h)\np = MaxPool<kernel_shape=[2,2]>(a)\nresult = Conv(p, v)"
    case = Case(text, (2, 3, 9, 9), {"w": (8, 3, 1, 1), "v": (6, 8, 2, 2)}, ("a", "p", "result"))
    context = case.context(13)
    names = [n.name for n in context.model.graph if n.op_type == "Conv"]
    for chosen in (names, names[:1], names[1:]):
        model = applied(context, dict.fromkeys(chosen, "static"))
        assert [(v.name, v.dtype) for v in model.graph.outputs] == [(n, ir.DataType.FLOAT) for n in case.outputs]
        check(context, model, context.feeds)


def test_an_input_that_many_nodes_take_is_rounded_once() -> None:
    text = "a = MatMul(x, w)\nb = MatMul(x, v)\nc = MatMul(x, u)\nd = Add(a, b)\nresult = Add(c, d)"
    case = Case(text, (3, 7, 40), {"w": (40, 33), "v": (40, 33), "u": (40, 33)})
    context = case.context()
    for precision, op in (("dynamic", "DynamicQuantizeLinear"), ("static", "QuantizeLinear")):
        model = applied(context, precision)
        assert sum(n.op_type == op for n in model.graph) == 1
        check(context, model, context.feeds)
    mixed = applied(context, dict(zip((n.name for n in context.model.graph), PRECISIONS[1:], strict=False)))
    check(context, mixed, context.feeds)


def test_what_8_bit_values_give_is_rounded_once_for_all_dynamic_readers() -> None:
    text = "h = Conv(x, k)\na = MatMul(h, w)\nb = MatMul(h, v)\nresult = Concat<axis=3>(a, b)"
    context = Case(text, (2, 3, 6, 42), {"k": (4, 3, 3, 3), "w": (40, 33), "v": (40, 17)}).context()
    to = {n.name: "static" if n.op_type == "Conv" else "dynamic" for n in context.model.graph}
    model = applied(context, to)
    assert sum(n.op_type == "DynamicQuantizeLinear" for n in model.graph) == 1
    check(context, model, context.feeds)


@pytest.mark.parametrize("opset", [9, 10])
def test_what_an_old_opset_lacks_is_not_proposed(opset: int) -> None:
    conv = Case("h = Conv(x, w, b)\nr = Relu(h)\nresult = Conv(r, v)", (2, 3, 8, 8),
                {"w": (8, 3, 1, 1), "b": (8,), "v": (8, 8, 1, 1)})  # fmt: skip
    for case in (conv, PRODUCTS["MatMul and Add of two axes"], PRODUCTS["two axes, another added"]):
        context = case.context(opset)
        found = {PRECISIONS[k] for s in Quantise().propose(context) for k in s.levels if k != FLOAT}
        assert ("static" in found) == (opset == 10) and "dynamic" not in found
        for precision in found:
            check(context, applied(context, precision), context.feeds, COARSE if "4" in precision else STEP)


def test_what_is_no_float32_product_with_a_bias_per_output_is_no_site() -> None:
    for text, weights in {
        "result = Gemm(x, w, b)": {"w": (40, 6), "b": (6, 1)},
        "result = Gemm(x, w, b) ": {"w": (40, 6), "b": (6, 6)},
        "result = Gemm<transA=1>(x, w)": {"w": (6, 40)},
        "result = MatMul(w, x)": {"w": (5, 6)},
        "d = Cast<to=11>(x)\ne = MatMul(d, w)\nresult = Cast<to=1>(e)": {"w": np.ones((40, 6))},
    }.items():
        assert not Quantise().propose(Case(text, (6, 40), weights, fixed=True).context())


def test_both_halves_of_a_factored_node_get_its_precision() -> None:
    for case, how, name in ((PRODUCTS["MatMul and Add"], "matmul", "w"), (CONVS["residual"], "channel", "v")):
        context = case.context(n_feeds=8)
        node = next(n.name for n in context.model.graph if name in [v.name for v in n.inputs])
        factored = LowRank().apply(context, context.model, {f"rank {node}": {"rank": 4, "how": how}})
        for precision in ("static", "dynamic", "int8 weights") if how == "matmul" else ("static",):
            choices = {f"precision {node}": {"to": precision}}
            quantise = Quantise()
            model = quantise.apply(context, factored, choices)
            assert structure(model) == structure(quantise.apply(context, factored, choices, solve=False))
            assert structure(model) == structure(quantise.finish(context, factored, choices))
            for half in (f"{node}.down", f"{node}.up"):
                assert any(stands_for(n) == node and n.name == half for n in model.graph)
                assert f"{half}.weight.q" in model.graph.initializers
            assert error(LOAD(model)(context.feeds[0]), LOAD(factored)(context.feeds[0])) < STEP


@pytest.mark.parametrize("name", ["residual", "carriers and Concat", "MatMul and Add"])
def test_after_the_width_pass_ranges_and_weights_are_those_of_what_is_left(name: str) -> None:
    context = (CONVS | PRODUCTS)[name].context(13)
    width, quantise = Width(), Quantise()
    width.propose(context)
    sizes = {n: max(1, 3 * g.size // 4) for n, g in context.analysis.groups.items()}
    narrow = width.apply(context, context.model, width.choose(context, sizes))
    choices = choices_of(context, "static")
    model = quantise.apply(context, narrow, choices)
    feed = context.feeds[0]
    assert error(LOAD(model)(feed), LOAD(narrow)(feed)) < STEP
    assert structure(model) == structure(quantise.apply(context, narrow, choices, solve=False))
    assert structure(model) == structure(quantise.finish(context, narrow, choices))
    assert not slow(kernels(model, feed))


FAULTS = {
    "a zero point": ("Conv_0.weight.zero", lambda a: a + 4),
    "a scale": ("Conv_0.weight.scale", lambda a: a * np.linspace(1, 1.2, len(a))),
    "scales on another axis": ("Conv_2.weight.scale", lambda a: a[::-1]),
    "a bias": ("Conv_0.bias.q", lambda a: a[::-1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_planted_fault(fault: str) -> None:
    case = CONVS["strided, then grouped with Relu"]
    context = case.context(13)
    model = applied(context, "static")
    check(context, model, context.feeds)
    constant, change = FAULTS[fault]
    value = model.graph.initializers[constant]
    set_constant(value, np.ascontiguousarray(change(value.const_value.numpy())).astype(value.dtype.numpy()))
    with pytest.raises(AssertionError):
        check(context, model, context.feeds)


def test_a_float_weight_dequantised_in_every_run_is_seen() -> None:
    """With an output that is clipped below what the grid reaches, the runtime leaves the convolution in float."""
    case = CONVS["Clip on both sides of zero"]
    context = case.context(13)
    model = applied(context, "static")
    scale = model.graph.initializers["a.scale"]
    set_constant(scale, scale.const_value.numpy() * np.float32(1.05))
    assert slow(kernels(model, context.feeds[0]))


# Random graphs

laws = settings(derandomize=True, deadline=None, max_examples=40, database=None)


def grown(rng: np.random.Generator) -> Case:
    """A random chain of convolutions, activations, carriers, sums and products."""
    lines: list[str] = []
    weights: dict[str, tuple[int, ...] | np.ndarray] = {}
    x, channels, seen = "x", 4, []
    for i in range(int(rng.integers(3, 8))):
        y, kind = f"v{i}", rng.choice(["conv", "conv", "conv", "grouped", "act", "pool", "sum", "joined", "turned"])
        if kind == "conv":
            out = int(rng.integers(2, 5)) * 2
            weights[f"w{i}"], weights[f"b{i}"] = (out, channels, 3, 3), (out,)
            bias = rng.choice(["", f", b{i}"])
            lines.append(f"{y} = Conv<pads=[1,1,1,1]>({x}, w{i}{bias})")
            channels = out
        elif kind == "grouped":
            groups = int(rng.choice([2, channels]))
            weights[f"w{i}"] = (channels, channels // groups, 3, 3)
            lines.append(f"{y} = Conv<pads=[1,1,1,1], group={groups}>({x}, w{i})")
        elif kind == "act":
            weights |= {"low": number(-2), "high": number(2)}
            how = rng.choice(["Relu({})", "LeakyRelu({})", "Clip({}, low, high)", "Sigmoid({})", "Tanh({})"])
            lines.append(f"{y} = {how.format(x)}")
        elif kind == "pool":
            op = rng.choice(["MaxPool", "AveragePool"])
            lines.append(f"{y} = {op}<kernel_shape=[3,3], pads=[1,1,1,1]>({x})")
        elif kind == "turned":
            lines.append(f"{y} = Transpose<perm=[0,1,3,2]>({x})")
        else:
            other = [v for v, n in seen if kind == "joined" or n == channels]
            if not other:
                continue
            other, n = next((v, n) for v, n in seen[::-1] if v in other)
            lines.append(f"{y} = Add({x}, {other})" if kind == "sum" else f"{y} = Concat<axis=1>({other}, {x})")
            channels = channels if kind == "sum" else channels + n
        seen.append((y, channels))
        x = y
    weights |= {"wg": (channels, 12), "bg": (12,), "wm": (12, 9), "bm": (9,), "s": np.array([0, -1])}
    last = rng.choice(["f = Reshape({}, s)", "f = Flatten({})"])
    lines += [f"p = GlobalMaxPool({x})", last.format("p"), "g = Gemm(f, wg, bg)", "r = Relu(g)", "m = MatMul(r, wm)",
              "result = Add(m, bm)"]  # fmt: skip
    outputs = ["result", *(v for v, _ in seen[:1] if rng.random() < 0.3)]
    return Case("\n".join(lines), (3, 4, 6, 6), weights, tuple(outputs))


@laws
@given(st.integers(0, 10_000), st.sampled_from(OPSETS))
def test_any_choice_on_any_graph_runs_close_and_is_replayed_to_the_byte(seed: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    case = grown(rng)
    context = case.context(opset)
    quantise = Quantise()
    share = rng.uniform(0.2, 1)
    levels = {s.name: int(rng.choice(s.levels)) if rng.random() < share else FLOAT
              for s in quantise.propose(context)}  # fmt: skip
    choices = quantise.choose(context, levels)
    model = quantise.apply(context, context.model, choices)
    limit = COARSE if {"to": "int4 weights"} in choices.values() else 30 * STEP  # of one feed, saturated values too
    *known, fresh = feeds_of(case)
    check(context, model, known, limit, STEP)  # the runtime may round a table of an activation by a step elsewhere
    check(context, model, [fresh], COARSE, STEP)  # the largest values, which count here, may lie outside all ranges
    if not choices:
        return
    asked = {n.removeprefix("precision ") for n in choices}
    written = {n.name for n in model.graph if n.op_type == "Conv" and not n.inputs[1].is_initializer()}
    integer = {n for n, op in kernels(model, context.feeds[0]).items() if op == "QLinearConv"}
    assert asked & {n.name for n in context.model.graph if n.op_type == "Conv"} == written
    assert integer == written, "what is computed in integers is what the model says, no more and no less"
    finished = quantise.finish(context, context.model, choices)
    without = Context(context.analysis, [], LOAD, integer=BACKEND.integer)
    bare = Quantise().apply(without, context.model, choices, solve=False)
    again = quantise.apply(without, context.model, choices, solve=False)
    assert bytes_of(again) == bytes_of(bare), "what was learnt from data must not help: a replay has none"
    tensors = {name: v.const_value.numpy() for name, v in finished.graph.initializers.items()}
    assert bytes_of(overwrite(bare, tensors)) == bytes_of(finished)


def test_what_no_feed_reaches_is_not_given_a_fixed_range() -> None:
    """As with an expert that no token is sent to: it may still compute with ranges found while running."""
    case = Case("i = NonZero(x)\nt = Transpose<perm=[1, 0]>(i)\nc = Cast<to=1>(t)\nn = MatMul(c, w)\nresult = Relu(n)",
                (3, 4), {"w": (2, 8)})  # fmt: skip
    context = case.context(21)
    quiet = Context(context.analysis, [{"x": np.zeros((3, 4), np.float32)}] * 3, LOAD, integer=BACKEND.integer)
    for reached, wanted in ((context, True), (quiet, False)):
        (site,) = Quantise().propose(reached)
        assert (PRECISIONS.index("static") in site.levels) == wanted
        assert PRECISIONS.index("dynamic") in site.levels
