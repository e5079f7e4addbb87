"""Smoothing: the same function, with activations that eight bits can hold; only where all that reads a value can take
it, and only where it pays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

import graphprune
from graphprune.backends import open_backend
from graphprune.context import Context
from graphprune.passes.quantise import FLOAT, PRECISIONS, Quantise
from graphprune.prepare import loader
from graphprune.smoothing import find_places, smoothed
from tests.graphs import model_of, typed
from tests.steady import Steady, keep_steady_time

BACKEND = open_backend("host")
LOAD = loader(BACKEND)
RNG = np.random.default_rng(3)
UNEVEN = np.exp(np.where(np.arange(32) % 8 == 0, 4.0, 0.3 * RNG.normal(size=32))).astype(np.float32)
"""Every eighth of 32 channels is fifty times as large as the others."""
VECTORS = {"g": UNEVEN, "c": (UNEVEN * RNG.normal(size=32)).astype(np.float32)}
PRODUCTS = {"v": (32, 24), "u": (32, 40), "k": (64, 24)}
WEIGHTS = {"w": (16, 32), **VECTORS, **PRODUCTS}
UNEVEN_OUT = (RNG.normal(size=(16, 32)) * UNEVEN).astype(np.float32)

GRAPHS: Mapping[str, tuple[str, Mapping, int]] = {
    "layer norm, two readers": (
        "h = MatMul(x, w)\nn = LayerNormalization<axis=-1>(h, g, c)\np = MatMul(n, v)\nq = MatMul(n, u)\n"
        "result = Concat<axis=-1>(p, q)", WEIGHTS, 3),
    "constants that others take, too": (
        "h = MatMul(x, w)\nn = LayerNormalization<axis=-1>(h, g, c)\np = MatMul(n, v)\nd = Mul(h, g)\n"
        "q = MatMul(d, v)\nresult = Concat<axis=-1>(p, q)", WEIGHTS, 3),
    "norm in parts": (
        "h = MatMul(x, w)\nm = ReduceMean<axes=[-1]>(h)\nd = Sub(h, m)\ns = Mul(d, d)\nt = ReduceMean<axes=[-1]>(s)\n"
        "r = Sqrt(t)\ne = Div(d, r)\nf = Mul(g, e)\nn = Add(f, c)\nresult = MatMul(n, v)", WEIGHTS, 3),
    "product, bias and Relu": (
        "h = MatMul(x, w)\na = Add(c, h)\nr = Relu(a)\nresult = MatMul(r, v)", {**WEIGHTS, "w": UNEVEN_OUT}, 3),
    "Gemm and Gemm": (
        "h = Gemm<alpha=0.5, beta=2.0>(x, w, c)\nr = Relu(h)\nresult = Gemm<transB=1>(r, o)",
        {**WEIGHTS, "w": UNEVEN_OUT, "o": (24, 32)}, 2),
    "gate": (
        "h = MatMul(x, w)\na = MatMul(x, z)\ns = Sigmoid(a)\np = Mul(s, h)\nresult = MatMul(p, v)",
        {**WEIGHTS, "w": UNEVEN_OUT, "z": (16, 32)}, 3),
    "convolutions, grouped and depthwise": (
        "h = Conv(x, cw, c)\nr = Relu(h)\np = MaxPool<kernel_shape=[2,2]>(r)\n"
        "y = Conv<group=2, pads=[1,1,1,1]>(p, cv)\nz = Conv<group=32>(p, cd)\nresult = Conv(z, cu)\nother = Relu(y)",
        {"cw": (UNEVEN[:, None, None, None] * RNG.normal(size=(32, 16, 1, 1))).astype(np.float32), "c": VECTORS["c"],
         "cv": (12, 16, 3, 3), "cd": (32, 1, 3, 3), "cu": (8, 32, 1, 1)}, 4),
}  # fmt: skip


def context_of(text: str, weights: Mapping, rank: int, outputs=("result",), opset: int = 17) -> Context:
    shape = {2: ("N", 16), 3: ("N", 5, 16), 4: ("N", 16, 9, 9)}[rank]
    rng = np.random.default_rng(0)
    used = {name: w for name, w in weights.items() if name in text.replace(")", ",").replace("(", ",").split(",")
            or f" {name}," in text or f" {name})" in text or f"({name}," in text}  # fmt: skip
    feeds = [{"x": rng.normal(size=(3, *shape[1:])).astype(np.float32)} for _ in range(24)]
    model = model_of(text, {"x": shape}, used, outputs, opset)
    return Context(typed(model, feeds[0]), feeds, LOAD, integer=BACKEND.integer)


def case(name: str) -> Context:
    text, weights, rank = GRAPHS[name]
    return context_of(text, weights, rank, ("result", "other") if "other" in text else ("result",))


def error(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    return max(float(np.sum((found[k] - a) ** 2) / np.sum(a**2)) for k, a in wanted.items())


def rounded(context: Context, precision: str = "static") -> ir.Model:
    """Everything with this precision that can have it."""
    quantise, level = Quantise(), PRECISIONS.index(precision)
    sites = quantise.propose(context)
    levels = {s.name: level if level in s.levels else FLOAT for s in sites if s.about != "precision, Concat"}
    return quantise.apply(context, context.model, quantise.choose(context, levels))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_function_stays_and_rounding_loses_much_less(name: str) -> None:
    context = case(name)
    after = Quantise().prepare(context)
    assert after is not context
    plain, even, feed = LOAD(context.model), LOAD(after.model), context.feeds[0]
    assert error(even(feed), plain(feed)) < 1e-9
    assert error(LOAD(rounded(after))(feed), plain(feed)) < 0.5 * error(LOAD(rounded(context))(feed), plain(feed))
    before, names = ir.to_proto(context.model), [n.name for n in after.model.graph]
    assert [n.name for n in before.graph.node] == names, "nothing is added"


@pytest.mark.parametrize("name", list(GRAPHS)[:5])  # the others give products and sums that are uneven anyway
def test_activations_that_are_even_stay_as_they_are(name: str) -> None:
    text, weights, rank = GRAPHS[name]
    shapes = {k: w.shape if isinstance(w, np.ndarray) else w for k, w in weights.items()}
    plain = {k: np.sign(RNG.normal(size=shape)).astype(np.float32) for k, shape in shapes.items()}
    plain |= {"g": np.ones(32, np.float32), "c": np.zeros(32, np.float32)}
    context = context_of(text, plain, rank, ("result", "other") if "other" in text else ("result",))
    assert find_places(context.analysis)
    assert smoothed(context.analysis, context.feeds, LOAD) == (context.analysis, {})


NORM = "h = MatMul(x, w)\nn = LayerNormalization<axis=-1>(h, g, c)\n"
ELSEWHERE = {
    "a residual stream takes the value, too": f"{NORM}p = MatMul(n, o)\nresult = Add(p, n)",
    "the value is an output": f"{NORM}other = Identity(n)\nresult = MatMul(n, v)",
    "something that is not homogeneous lies between":
        "h = MatMul(x, w)\na = Add(h, c)\ns = Gelu(a)\nresult = MatMul(s, v)",
    "channels are those of another axis": "y = Conv(x, f)\nresult = MatMul(y, b)",
    "pooled along the channels": f"{NORM}p = MaxPool<kernel_shape=[3], pads=[1,1]>(n)\nresult = MatMul(p, v)",
    "a sum with what cannot be divided": f"{NORM}a = Add(n, h)\nresult = MatMul(a, v)",
}  # fmt: skip


@pytest.mark.parametrize("why", ELSEWHERE)
def test_values_that_cannot_be_divided_are_left_alone(why: str) -> None:
    text = ELSEWHERE[why]
    weights = {**WEIGHTS, "o": (32, 32), "f": (6, 5, 1), "b": (16, 7)}
    outputs = ("result", "other") if "other" in text else ("result",)
    context = context_of(text, weights, 3, outputs, opset=20)
    found = {p.value for p in find_places(context.analysis)}
    assert found <= {"h"}, "only what leads to the norm"


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Steady:
    return keep_steady_time(monkeypatch)


def test_a_compilation_evens_out_and_its_plan_repeats_it_to_the_byte(steady: Steady) -> None:
    text, weights, _ = GRAPHS["layer norm, two readers"]
    model = model_of(text, {"x": ("N", 5, 16)}, {k: w for k, w in weights.items() if k != "k"}, opset=17)
    feeds = [{"x": np.random.default_rng(i).normal(size=(1, 5, 16)).astype(np.float32)} for i in range(24)]
    proto = ir.to_proto(model)
    result = graphprune.compile(proto, target_speedup=1.2, calibration=feeds, passes="width,quantise")
    assert graphprune.replay(result.plan, proto) == result.data
    assert {"g", "c"} <= result.plan.tensors.keys()
