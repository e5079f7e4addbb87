"""Models in 16 bits: they compute the same as far as 16 bits go, and what does not fit stays in 32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

import models
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.backends.tensorrt_rules import check
from graphprune.half import LARGEST, saturated, to_half, too_large
from graphprune.load import save_bytes
from graphprune.prepare import prepare, runner
from tests.graphs import model_of, run


def floats(model: ir.Model) -> set[ir.DataType]:
    return {v.dtype for n in model.graph for v in n.outputs if v.dtype is not None and v.dtype.is_floating_point()}


def with_types(model: ir.Model) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


@pytest.mark.parametrize("name", ["minilm", "pp_rec", "mnist_cnn", "efficientnet_lite0"])
def test_real_networks_say_the_same(name: str) -> None:
    backend, task = OnnxRuntime(), models.get(name)
    model = prepare(task.model(), backend, task.shapes).model
    feeds = task.calibration(2)
    half = to_half(model, too_large(model, feeds, runner(backend)))
    onnx.checker.check_model(onnx.ModelProto.FromString(save_bytes(half)))
    dense, narrow = backend.load(model), backend.load(half)
    assert narrow.inputs.keys() == dense.inputs.keys()
    for feed in feeds:
        for key, a in dense.run(feed).items():
            b = narrow.run(feed)[key]
            assert a.dtype == b.dtype and a.shape == b.shape
            assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)


CASES = {
    "a product": ("y = MatMul(x, w)\nresult = Add(y, b)", {"w": (4, 5), "b": (5,)}),
    "a cast to float in the graph": ("i = Cast<to=6>(x)\nf = Cast<to=1>(i)\nresult = Mul(f, b4)", {"b4": (4,)}),
    "a tensor made on the way": ("n = Shape(x)\nc = ConstantOfShape(n)\nresult = Add(x, c)", {}),
    "a given filling": ("n = Shape(x)\nc = ConstantOfShape<value=float[1]{2.5}>(n)\nresult = Add(x, c)", {}),
    "sizes of a resize": ("u = Unsqueeze(x, axes)\nresult = Resize(u, , scales)",
                          {"axes": np.asarray([0, 1]), "scales": np.float32([1, 1, 2, 2])}),
    "an input that is an output": ("result = Identity(x)", {}),
    "a constant of many": ("p = Mul(x, big)\nq = Mul(p, big)\nresult = Mul(x, big)", {"big": np.float32([100])}),
}  # fmt: skip


@pytest.mark.parametrize("text, weights", CASES.values(), ids=CASES)
def test_small_graphs(text: str, weights) -> None:
    model = with_types(model_of(text, {"x": (3, 4)}, weights))
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    feed = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32) * 2}
    half = to_half(model)
    onnx.checker.check_model(ir.to_proto(half))
    a, b = run(model, feed)["result"], run(half, feed)["result"]
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_allclose(a, b, rtol=4e-3, atol=4e-3)


def test_what_does_not_fit_stays_wide() -> None:
    text = "p = Mul(x, big)\nm = ReduceMean<keepdims=1>(p)\nd = Div(p, m)\nresult = MatMul(d, w)"
    model = with_types(model_of(text, {"x": (3, 4)}, {"big": np.float32([4e4]), "w": (4, 2)}))
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    feed = {"x": np.random.default_rng(0).uniform(1, 3, size=(3, 4)).astype(np.float32)}
    wide = too_large(model, [feed], run)
    assert wide == {"n0", "n1", "n2"}
    half = to_half(model, wide)
    assert floats(half) == {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    want = run(model, feed)["result"]
    assert np.abs(run(half, feed)["result"] / want - 1).max() < 0.01
    with np.errstate(all="ignore"):
        (careless,) = onnx.reference.ReferenceEvaluator(ir.to_proto(to_half(model))).run(None, feed)
    assert not np.isfinite(careless).all(), "it matters"


def test_minus_infinity_of_a_mask_stays_what_it_means() -> None:
    lowest = np.float32([np.finfo(np.float32).min])
    text = "m = Mul(x, lowest)\ns1 = Add(y, m)\nresult = Softmax<axis=-1>(s1)"
    model = with_types(model_of(text, {"x": (2, 4), "y": (2, 4)}, {"lowest": lowest}))
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    feed = {"x": np.float32([[0, 0, 1, 1], [0, 1, 1, 1]]), "y": np.float32([[1, 2, 3, 4], [4, 3, 2, 1]])}
    assert too_large(model, [feed], run) == set()
    assert saturated(model).graph.initializers["lowest"].const_value.numpy() == -LARGEST
    np.testing.assert_allclose(run(to_half(model), feed)["result"], run(model, feed)["result"], atol=2e-3)


@pytest.mark.parametrize("text, weights", [
    ("m = MatMul(x, w)\nresult = Div(m, far)", {"w": (4, 4), "far": np.float32([1e6])}),
    ("m = Mul(x, far)\nresult = Mul(m, near)", {"far": np.float32([1e6]), "near": np.float32([1e-6])}),
], ids=["divided", "multiplied"])  # fmt: skip
def test_factors_beyond_the_range_are_not_masks(text: str, weights) -> None:
    model = with_types(model_of(text, {"x": (3, 4)}, weights))
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    feed = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    half = to_half(model, too_large(model, [feed], run))
    want = run(model, feed)["result"]
    assert np.linalg.norm(run(half, feed)["result"] - want) < 5e-3 * np.linalg.norm(want)


def test_inputs_beyond_the_range_stay_wide() -> None:
    model = with_types(model_of("a = Mul(x, small)\nresult = MatMul(a, w)", {"x": (3, 4)},
                                {"small": np.float32([1e-5]), "w": (4, 2)}))  # fmt: skip
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    feed = {"x": np.full((3, 4), 1e5, np.float32)}
    assert "n0" in too_large(model, [feed], run)


def test_control_flow_stays_in_32_bits() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 18]>
        g (float[3,4] x, bool c) => (float[3,4] result) {
            y = Relu(x)
            z = If(c) <then_branch = t () => (float[3,4] p) { p = Add(y, x) },
                       else_branch = e () => (float[3,4] q) { q = Mul(y, x) }>
            result = Add(z, y)
        }""")
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    half = to_half(model)
    onnx.checker.check_model(ir.to_proto(half), full_check=True)
    for c in (True, False):
        feed = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "c": np.asarray(c)}
        np.testing.assert_allclose(run(half, feed)["result"], run(model, feed)["result"], rtol=4e-3, atol=4e-3)


def test_scales_of_next_to_nothing_stay_above_zero_and_old_opsets_are_raised() -> None:
    weights = {"s": np.asarray(1e-30, np.float32), "z": np.asarray(0, np.int8), "axes": np.asarray([1])}
    text = "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\nresult = ReduceMean<axes=[1]>(d)"
    model = with_types(model_of(text, {"x": (3, 4)}, {k: weights[k] for k in ("s", "z")}, opset=13))
    half = to_half(model)
    onnx.checker.check_model(ir.to_proto(half), full_check=True)
    assert half.opset_imports[""] >= 19 and half.graph.initializers["s"].const_value.numpy() > 0
    assert not [f for f in check(half) if f.weight == "error"]
