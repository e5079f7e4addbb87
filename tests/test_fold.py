"""Folding arithmetic into convolutions: the same numbers from fewer operators, and nothing touched that others read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.canonicalise import canonicalise
from graphprune.oracles import compare
from tests.graphs import model_of

CONV = "Conv<pads=[1,1,1,1]>"
CASES = {
    # name: (nodes from x to y, how often each operator may be left)
    "scale and offset behind": (f"a = {CONV}(x, w, b)\nm = Mul(two, a)\ny0 = Add(m, three)", {"Conv": 1}),
    "division and subtraction": (f"a = {CONV}(x, w, b)\nm = Div(a, two)\ny0 = Sub(m, three)", {"Conv": 1}),
    "no bias yet": (f"a = {CONV}(x, w)\ny0 = Add(a, three)", {"Conv": 1}),
    "scale before padding": (f"m = Mul(x, two)\ny0 = {CONV}(m, w, b)", {"Conv": 1}),
    "offset before no padding": ("m = Mul(x, two)\na = Add(m, three)\ny0 = Conv(a, w, b)", {"Conv": 1}),
    "offset before padding": (f"m = Mul(x, two)\na = Add(m, three)\ny0 = {CONV}(a, w, b)", {"Conv": 1, "Add": 1}),
    "grouped": ("m = Mul(x, two)\na = Add(three, m)\nc = Conv<group=2>(a, g, b)\ny0 = Mul(c, two)", {"Conv": 1}),
    "hard-swish": (
        f"a = {CONV}(x, w, b)\np = Add(a, three)\nc = Clip(p, zero, six)\nm = Mul(a, c)\ny0 = Div(m, six)",
        {"Conv": 1, "HardSigmoid": 1, "Mul": 1},
    ),
    "clip that is no hard-swish": (
        f"a = {CONV}(x, w, b)\np = Add(a, two)\nc = Clip(p, zero, six)\nm = Mul(a, c)\ny0 = Div(m, six)",
        {"Conv": 1, "Add": 1, "Clip": 1, "Mul": 1, "Div": 1},
    ),
    "read twice": (f"a = {CONV}(x, w, b)\nm = Mul(a, two)\ny0 = Add(a, m)", {"Conv": 1, "Mul": 1, "Add": 1}),
    "by zero": (f"m = Mul(x, zero)\na = Add(m, three)\ny0 = {CONV}(a, w, b)", {"Conv": 1, "Mul": 1, "Add": 1}),
}


def graph(nodes: str) -> ir.Model:
    """`nodes` between an identity-free input x [n, 4, 6, 6] and an output y [n, 4, 6 or 4, ...]."""
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 4, 6, 6] x) => (float[n, 4, p, q] y) {{ {nodes.replace(chr(10), chr(10) + " ")} \n y = Relu(y0) }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, value in {
        "w": rng.normal(size=(4, 4, 3, 3)), "g": rng.normal(size=(4, 2, 3, 3)), "b": rng.normal(size=4),
        "two": np.float32(2), "three": np.full(1, 3.0), "six": np.float32(6), "zero": np.float32(0),
    }.items():  # fmt: skip
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    return ir.from_proto(model)


@pytest.mark.parametrize("name", CASES)
def test_folding_keeps_the_outputs_and_leaves_only_what_must_stay(name: str) -> None:
    nodes, left = CASES[name]
    model = graph(nodes)
    folded = canonicalise(model)
    feed = {"x": np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    backend = OnnxRuntime()
    want, have = (backend.load(m, optimise=False).run(feed) for m in (model, folded))
    assert compare(want, have) < 1e-5
    assert Counter(n.op_type for n in folded.graph) == left | {"Relu": 1}


def test_an_output_of_the_graph_keeps_its_name_and_its_numbers() -> None:
    model = graph(f"a = {CONV}(x, w, b)\ny0 = Mul(a, two)")
    value = next(n.outputs[0] for n in model.graph if n.op_type == "Conv")
    model.graph.outputs.append(value)
    folded = canonicalise(model)
    feed = {"x": np.ones((1, 4, 6, 6), np.float32)}
    backend = OnnxRuntime()
    assert compare(*(backend.load(m, optimise=False).run(feed) for m in (model, folded))) < 1e-5


def test_axes_declared_as_minus_one_are_open() -> None:
    model = graph(f"y0 = {CONV}(x, w, b)")
    model.graph.inputs[0].shape = ir.Shape([-1, 4, -1, 0])
    shape = canonicalise(model).graph.inputs[0].shape
    assert [n if isinstance(n, int) else "open" for n in shape] == ["open", 4, "open", "open"]


def test_constants_that_were_one_are_apart_down_to_their_tensors() -> None:
    """Writing a model renames the tensors of its values: with one for two values, two threads that write copies of it
    at the same time would leave out the one or the other."""
    text = "a = Mul(x, c)\nb = Add(a, c)\nd = MatMul(b, w)\ne = MatMul(x, w)\nresult = Sub(d, e)"
    graph = canonicalise(model_of(text, {"x": (2, 4)}, {"c": (4,), "w": (4, 4)})).graph
    assert len(graph.initializers) == 4
    assert len({id(v.const_value) for v in graph.initializers.values()}) == len(graph.initializers)
    assert all(v.const_value.name == name for name, v in graph.initializers.items())
