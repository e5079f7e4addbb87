"""Which nodes a GPU engine runs as one kernel: patterns by hand, and laws on real networks."""

from __future__ import annotations

import numpy as np
import pytest

import models
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.devices.fusion import fuse
from graphprune.devices.shapes import tensors_in, tensors_of
from graphprune.devices.work import VIEWS, work_of
from graphprune.prepare import prepare, runner
from graphprune.trace import exposed
from tests.graphs import model_of, run

CONV = {"w": (8, 4, 3, 3), "b": (8,), "w2": (8, 8, 1, 1), "s": (8, 1, 1)}
# name: (nodes, inputs, weights) -> labels of the kernels in order
CASES = {
    "a convolution with what follows it element by element": (
        "c = Conv<pads=[1,1,1,1]>(x, w, b)\nr = Relu(c)\nresult = Mul(r, s)", {"x": (1, 4, 9, 9)}, CONV, ["Conv"]),
    "a residual sum goes to the later product": (
        "a = Conv<pads=[1,1,1,1]>(x, w)\nc = Conv(a, w2)\ns1 = Add(c, a)\nresult = Relu(s1)", {"x": (1, 4, 9, 9)}, CONV,
        ["Conv", "Conv"]),
    "but not where the product is wanted by others": (
        "a = Conv<pads=[1,1,1,1]>(x, w)\nr = Sigmoid(a)\nresult = Conv(a, w2)\nother = Neg(r)", {"x": (1, 4, 9, 9)},
        CONV, ["Conv", "Neg", "Conv"]),
    "views cost nothing": (
        "a = Reshape(x, shape)\nb1 = Unsqueeze(a, axes)\nm = MatMul(b1, w3)\nresult = Identity(m)", {"x": (6, 4)},
        {"shape": np.asarray([3, 8]), "axes": np.asarray([0]), "w3": (8, 5)}, ["MatMul"]),
    "a norm written out is one kernel": (
        "m = ReduceMean<axes=[-1]>(x)\nd = Sub(x, m)\np = Mul(d, d)\nv = ReduceMean<axes=[-1]>(p)\ne = Add(v, eps)\n"
        "q = Sqrt(e)\nn = Div(d, q)\ng = Mul(n, gain)\nresult = MatMul(g, w3)", {"x": (6, 8)},
        {"eps": np.float32([1e-5]), "gain": (8,), "w3": (8, 5)}, ["ReduceMean", "MatMul"]),
    "attention": (
        "t = Transpose<perm=[0,1,3,2]>(k)\ns1 = MatMul(q, t)\nd = Div(s1, root)\np = Softmax<axis=-1>(d)\n"
        "result = MatMul(p, v)", {"q": (1, 2, 6, 8), "k": (1, 2, 6, 8), "v": (1, 2, 6, 8)}, {"root": np.float32([2.8])},
        ["Transpose", "attention"]),
    "heads that are too wide are no attention": (
        "s1 = MatMul(q, k)\np = Softmax<axis=-1>(s1)\nresult = MatMul(p, v)",
        {"q": (1, 1, 4, 300), "k": (1, 1, 300, 4), "v": (1, 1, 4, 300)}, {}, ["MatMul", "Softmax", "MatMul"]),
    "a kernel never waits for one that waits for it": (
        "a = Relu(x)\nc = Conv(a, w0)\ns1 = Sigmoid(a)\nresult = Mul(s1, c)", {"x": (1, 4, 9, 9)},
        {"w0": (4, 4, 1, 1)}, ["Sigmoid", "Conv"]),
    "a softmax that is given out is no part of an attention": (
        "s1 = MatMul(q, k)\nother = Softmax<axis=-1>(s1)\nresult = MatMul(other, v)",
        {"q": (1, 2, 4, 8), "k": (1, 2, 8, 4), "v": (1, 2, 4, 8)}, {}, ["MatMul", "Softmax", "MatMul"]),
    "nor one that weighs another product": (
        "s1 = MatMul(q, k)\np = Softmax<axis=-1>(s1)\nm = MatMul(q, k2)\nresult = Mul(m, p)",
        {"q": (1, 2, 4, 8), "k": (1, 2, 8, 4), "k2": (1, 2, 8, 4)}, {}, ["MatMul", "Softmax", "MatMul"]),
    "sums over shapes are done beforehand": (
        "n = Shape(x)\nn0 = Gather(n, zero)\nn1 = Unsqueeze(n0, axes)\nto = Concat<axis=0>(n1, rest)\n"
        "y = Reshape(x, to)\nresult = Relu(y)", {"x": (3, 4, 2)},
        {"zero": np.asarray(0), "axes": np.asarray([0]), "rest": np.asarray([-1])}, ["Relu"]),
}  # fmt: skip


@pytest.mark.parametrize("text, inputs, weights, labels", CASES.values(), ids=CASES)
def test_patterns(text, inputs, weights, labels) -> None:
    outputs = ("result", "other") if "other" in text else ("result",)
    opset = 17 if "ReduceMean<axes" in text else 18
    model = model_of(text, inputs, weights, outputs, opset)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    feed = {n: np.ones(s, np.float32) for n, s in inputs.items()}
    found = fuse(model.graph, tensors_of(model, feed))
    assert [kernel.op for kernel, _ in found] == labels


def real(name: str):
    backend = OnnxRuntime()
    task = models.get(name)
    prepared = prepare(task.model(), backend, task.shapes)
    feed = {n: np.resize(a, task.shapes.get(n, a.shape)) for n, a in task.calibration(1)[0].items()}
    return prepared.model, feed, runner(backend)


@pytest.mark.parametrize("name", ["minilm", "pp_rec", "mnist_cnn", "efficientnet_lite0", "pp_det"])
def test_on_real_networks_every_product_is_in_one_kernel_and_few_are_left(name: str) -> None:
    model, feed, run_one = real(name)
    shown = run_one(exposed(model), feed)
    constants = {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}
    ran = tensors_in({**constants, **feed, **shown})
    inferred = tensors_of(model, feed)
    if inferred is not None:
        assert {k: inferred[k].shape for k in ran} == {k: t.shape for k, t in ran.items()}
    found = fuse(model.graph, ran)
    whole = 0.0
    for node in model.graph:
        attributes = {k: a.value for k, a in node.attributes.items()}
        inputs = [None if v is None else ran[v.name] for v in node.inputs]
        whole += work_of(node.op_type, attributes, inputs, [ran.get(y.name) for y in node.outputs]).products
    assert sum(w.products for _, w in found) == pytest.approx(whole, rel=0.01)
    busy = [n for n in model.graph if n.op_type not in VIEWS]
    assert len(found) < 0.75 * len(busy)


def test_a_shape_that_depends_on_data_is_not_guessed() -> None:
    model = model_of("i = NonZero(x)\ng = Transpose(i)\nresult = Cast<to=1>(g)", {"x": (3, 4)})
    feed = {"x": np.ones((3, 4), np.float32)}
    assert tensors_of(model, feed) is None
    assert run(model, feed)["result"].shape == (12, 2)
