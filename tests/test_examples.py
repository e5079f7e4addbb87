"""The examples are real code: they run, and the README quotes them as they are."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import onnx_ir as ir

from examples.own_pass import LargestWeights
from graphprune.context import Context
from graphprune.edit import set_constant
from graphprune.rules.pooling import grid_sample
from tests.graphs import model_of, run, typed

ROOT = Path(__file__).parent.parent


def test_the_readme_quotes_the_worked_example_as_it_is() -> None:
    source = (ROOT / "examples/own_pass.py").read_text(encoding="utf-8")
    body = source[source.index("class LargestWeights"):source.index("if __name__")].strip()
    assert body in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_quotes_the_operator_rule_as_it_is() -> None:
    assert inspect.getsource(grid_sample).strip() in (ROOT / "README.md").read_text(encoding="utf-8")


def context_of(model: ir.Model, feed: dict[str, np.ndarray]) -> Context:
    return Context(typed(model, feed), [feed], lambda m: lambda f: run(m, f))


def test_the_worked_example_drops_dead_channels_first() -> None:
    feed = {"x": np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)}
    model = model_of("h = MatMul(x, w1)\nr = Relu(h)\nresult = MatMul(r, w2)", {"x": (2, 5)},
                     {"w1": (5, 32), "w2": (32, 3)})
    dead = [0, 7, 8, 31]
    for name, axis in (("w1", 1), ("w2", 0)):
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        np.moveaxis(array, axis, 0)[dead] = 0
        set_constant(value, array)
    context, own = context_of(model, feed), LargestWeights()
    (site,) = own.propose(context)
    assert site.levels == (8, 16, 24, 32)
    assert site.prior[-1] == 0 and sorted(site.prior, reverse=True) == list(site.prior)
    choices = own.choose(context, {site.name: 24})
    small = own.apply(context, context.model, choices)
    assert not set(dead) & set(choices[site.name]["keep"])
    assert small.graph.initializers["w1"].shape == (5, 24)
    live = own.apply(context, context.model, {site.name: {"keep": sorted(set(range(32)) - set(dead))}})
    np.testing.assert_allclose(run(live, feed)["result"], run(model, feed)["result"], rtol=1e-5, atol=1e-6)
    assert own.choose(context, {site.name: 32}) == {}
