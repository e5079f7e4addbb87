"""Whose rounding it is: with the one undone only the other is left, with both undone nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.backends import open_backend
from graphprune.context import Context
from graphprune.errors import UsageError
from graphprune.passes.quantise import Quantise
from graphprune.prepare import loader
from tests.graphs import model_of, typed
from tools.rounding_shares import rounded, with_float_values, with_float_weights

BACKEND = open_backend("host")
LOAD = loader(BACKEND)
RNG = np.random.default_rng(0)
NET = ("h = Conv<pads=[1,1,1,1]>(x, a, c)\nr = Relu(h)\nd = Conv<group=8>(r, b)\np = GlobalAveragePool(d)\n"
       "f = Flatten(p)\nresult = Gemm<transB=1, alpha=0.5>(f, g, e)")  # fmt: skip
WEIGHTS = {"a": (8, 4, 3, 3), "c": (8,), "b": (8, 1, 3, 3), "g": (5, 8), "e": (5,)}


SQUARE = NET.replace("Gemm<transB=1, alpha=0.5>(f, g, e)", "Gemm(f, g, e)"), WEIGHTS | {"g": (8, 8), "e": (8,)}


def context_of(weights=WEIGHTS, net: str = NET) -> Context:
    feeds = [{"x": np.random.default_rng(i).normal(size=(1, 4, 9, 9)).astype(np.float32)} for i in range(24)]
    model = model_of(net, {"x": ("N", 4, 9, 9)}, weights)
    return Context(typed(model, feeds[0]), feeds, LOAD, integer=BACKEND.integer)


def error(model: ir.Model, context: Context) -> float:
    feed = context.feeds[0]
    want, have = (BACKEND.load(m, optimise=False).run(feed)["result"] for m in (context.model, model))
    return float(np.abs(have - want).max() / np.abs(want).max())


def whole(shape: tuple[int, ...]) -> np.ndarray:
    """Weights that 8 bits hold exactly, all outputs at the same scale."""
    found = RNG.integers(-126, 127, shape).astype(np.float32)
    found.reshape(len(found), -1)[:, 0] = 127
    return found / 64


def test_undoing_one_leaves_the_other_and_undoing_both_leaves_nothing() -> None:
    context = context_of()
    model = rounded(context, Quantise(), [])
    values, weights = with_float_weights(model, context), with_float_values(model)
    assert error(with_float_values(values), context) < 1e-6
    assert min(error(m, context) for m in (model, values, weights)) > 1e-4


def test_a_square_weight_goes_back_the_way_it_lay() -> None:
    net, weights = SQUARE
    context = context_of(weights, net)
    model = rounded(context, Quantise(), [])
    assert error(with_float_values(with_float_weights(model, context)), context) < 1e-6


def test_weights_that_fit_their_grid_are_not_to_blame() -> None:
    context = context_of({name: whole(shape) if len(shape) > 1 else shape for name, shape in WEIGHTS.items()})
    model = rounded(context, Quantise(), [])
    assert error(with_float_weights(model, context), context) > 1e-4
    left = with_float_values(model)
    convolved = {n.name for n in left.graph if n.op_type == "Conv"}
    for node in context.model.graph:
        if node.name in convolved:
            back = next(n for n in left.graph if n.name == node.name).inputs[1].producer()
            q, scale = (back.inputs[i].const_value.numpy().astype(np.float64) for i in (0, 1))
            np.testing.assert_allclose(q * scale.reshape(-1, 1, 1, 1), node.inputs[1].const_value.numpy(), rtol=1e-6)


def test_a_node_that_is_left_keeps_its_weight_and_an_unknown_one_is_an_error() -> None:
    context = context_of()
    first = next(n.name for n in context.model.graph if n.op_type == "Conv")
    model = rounded(context, Quantise(), [first])
    assert next(n for n in model.graph if n.name == first).inputs[1].is_initializer()
    with pytest.raises(UsageError, match="no node 'nobody'"):
        rounded(context, Quantise(), [first, "nobody"])
