"""What ONNX Runtime alone does: weights by reference, fused graphs, and the reader of its trace. What every backend
does is in test_engines."""

from __future__ import annotations

import gc

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.backends import profile, turns
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.canonicalise import canonicalise
from graphprune.errors import UsageError
from graphprune.target import Kernel
from models import width_families
from tests.graphs import model_of

FAMILY = width_families.residual(stages=(16, 32), blocks=1, side=8)
DENSE = FAMILY.build(FAMILY.sizes)


@pytest.fixture
def backend():
    return OnnxRuntime(threads=1)


def test_weights_given_by_reference_outlive_the_model_and_are_never_written(backend):
    """Large ones are not copied into the session: it must keep them, and leave them as they are."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((300, 300)).astype(np.float32), rng.standard_normal((2, 300)).astype(np.float32)
    model = model_of("h = MatMul(x, w)\nr = Relu(h)\nresult = MatMul(r, w)", {"x": (2, 300)}, {"w": (300, 300)})
    model.graph.initializers["w"].const_value = ir.tensor(weight.copy(), name="w")
    wanted = np.maximum(x @ weight, 0) @ weight
    loaded = [backend.load(model, optimise=optimise) for optimise in (True, False)]
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weight)
    assert not isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor), "the model itself is untouched"
    del model
    gc.collect()
    waste = [np.full((300, 300), np.nan, np.float32) for _ in range(50)]  # what was let go of is written over
    for executable in loaded:
        np.testing.assert_allclose(executable.run({"x": x})["result"], wanted, rtol=1e-3, atol=1e-3)
    assert len(waste) == 50


def test_no_threads_is_a_usage_error():
    with pytest.raises(UsageError):
        OnnxRuntime(threads=0)


def test_every_round_of_a_measurement_loads_anew_what_is_not_loaded_already(monkeypatch):
    """Where memory comes to lie makes some per cent: what is loaded once would be measured with one throw of that."""
    backend, loads = OnnxRuntime(threads=1), []
    load = OnnxRuntime.load
    monkeypatch.setattr(OnnxRuntime, "load", lambda self, model, **how: loads.append(model) or load(self, model, **how))
    ready = backend.load(DENSE)
    smaller = FAMILY.build({**FAMILY.sizes, "stream1": 16})
    timings = backend.measure([ready, smaller], FAMILY.feed, min_rounds=5, spread=10.0)
    assert [t.rounds for t in timings] == [5, 5]
    assert loads == [DENSE] + [smaller] * 5


@pytest.mark.parametrize("limits, rounds", [
    ({"max_seconds": 0.0}, 3), ({"max_seconds": 1e9, "spread": 0.5}, 8),
    ({"max_seconds": 1e9, "min_seconds": 0.2, "spread": 0.5}, 20), ({"max_seconds": 0.155, "spread": 0.0}, 16),
])  # fmt: skip
def test_rounds_go_on_until_there_are_enough_or_time_is_up(limits, rounds, monkeypatch):
    now = 0.0

    def take() -> float:
        nonlocal now
        now += 0.005
        return 5.0 + (now % 0.01)

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now)
    found = turns.in_turns([take, take], started=0.0, **({"min_rounds": 8, "min_seconds": 0.0, "spread": 0.5} | limits))
    assert [t.rounds for t in found] == [rounds, rounds]


def test_a_profile_shows_the_fused_graph(backend):
    kernels = backend.profile(DENSE, FAMILY.feed, repeats=3)
    assert not [k for k in kernels if k.op == "Relu"], "activations are part of their convolutions"
    assert len({k.name for k in kernels}) == len(kernels)
    assert all(k.outputs and k.ms >= 0 for k in kernels)


def test_the_fingerprint_tells_threads_apart():
    assert OnnxRuntime(1).fingerprint() != OnnxRuntime(2).fingerprint()


def _event(name, ts, dur, category="Node"):
    shapes = {"op_name": "MatMul", "input_type_shape": [{"float": [2, 3]}], "output_type_shape": [{"float": [2, 4]}]}
    return {"cat": category, "name": name, "ts": ts, "dur": dur, "args": shapes}


def test_a_trace_is_read_run_by_run_without_warm_up_and_loop_bodies():
    events = []
    for run, dur in enumerate((900, 10, 30, 20, 500, 40)):
        start = 10_000 * run
        events += [
            _event("inside_kernel_time", start + 5, dur - 6),
            _event("outside_kernel_time", start + 2, dur),
            _event("next_kernel_time", start + 2 + dur, 7),
            _event("model_run", start, dur + 20, "Session"),
            _event("outside_fence_before", start + 1, 1),
        ]
    kernels = profile.kernels(events, skip_runs=1)
    assert [(k.name, k.op) for k in kernels] == [("outside", "MatMul"), ("next", "MatMul")]
    assert kernels[0].ms == pytest.approx(0.020), "the lower quartile of 10, 20, 30, 40, 500"
    assert kernels[0].inputs == ((2, 3),) and kernels[0].outputs == ((2, 4),)


# Names of kernels

PAIR = {"w": (16, 16, 3, 3), "b": (16,), "v": (16, 16, 1, 1)}
NETS = {
    "conv, relu, residual": (
        "h = Conv<pads=[1,1,1,1]>(x, w, b)\na = Relu(h)\nk = Conv(a, v)\ns = Add(k, a)\nresult = Relu(s)",
        (1, 16, 8, 8), PAIR),
    "clip, pool, transpose": (
        "h = Conv<pads=[1,1,1,1]>(x, w, b)\na = Clip(h, low, high)\np = MaxPool<kernel_shape=[2,2]>(a)\n"
        "k = Conv(p, v)\nresult = Transpose<perm=[0,2,3,1]>(k)",
        (1, 16, 8, 8), {**PAIR, "low": np.array(0, np.float32), "high": np.array(6, np.float32)}),
    "swish, two branches": (
        "h = Conv<pads=[1,1,1,1]>(x, w, b)\na = Sigmoid(h)\nm = Mul(h, a)\nk = Conv(m, v)\nt = Conv(m, u)\n"
        "s = Add(k, t)\nresult = LeakyRelu(s)", (1, 16, 8, 8), {**PAIR, "u": (16, 16, 1, 1)}),
    "products": (
        "h = Gemm(x, w, b)\na = Relu(h)\nk = MatMul(a, w)\nm = Add(k, b)\nresult = LeakyRelu(m)",
        (4, 16), {"w": (16, 16), "b": (16,)}),
    "rows": (
        "h = MatMul(x, w)\na = Add(h, b)\nt = Transpose<perm=[0,2,1]>(x)\nk = MatMul(a, t)\nd = Mul(k, c)\n"
        "s = Softmax(d)\nm = MatMul(s, x)\nr = Add(m, x)\nresult = LayerNormalization(r, b, b)",
        (1, 4, 16), {"w": (16, 16), "b": (16,), "c": np.array([0.5], np.float32)}),
}  # fmt: skip
LINEAR = ("Conv", "Gemm", "MatMul")


def _graph(name: str) -> ir.Graph:
    text, shape, weights = NETS[name]
    return canonicalise(model_of(text, {"x": shape}, weights)).graph


@pytest.mark.parametrize("name", NETS)
def test_kernels_are_named_after_the_linear_node_whose_work_they_do(backend, name):
    text, shape, weights = NETS[name]
    model = canonicalise(model_of(text, {"x": shape}, weights))
    kernels = backend.profile(model, {"x": np.ones(shape, np.float32)}, repeats=1)
    nodes = {n.name for n in model.graph}
    assert len({k.name for k in kernels}) == len(kernels)
    linear = [k.name for k in kernels if any(op in k.op for op in LINEAR)]
    assert sorted(linear) == sorted(n.name for n in model.graph if n.op_type in LINEAR), "whatever is fused with them"
    for k in kernels:
        stem, _, place = k.name.partition(" after ")
        made_up = place.rpartition(" ")[0] if place.rpartition(" ")[2].isdigit() else place
        assert k.name in nodes or (stem == k.op and made_up in nodes) or k.name == f"{k.op} at the start", k


def _kernel(name: str, op: str) -> Kernel:
    return Kernel(name, op, 1.0, ((1,),), ((1,),))


def test_what_the_runtime_makes_up_is_named_by_what_is_before_it_and_not_by_counters():
    graph = _graph("conv, relu, residual")
    conv, _, pointwise, add, _ = (n.name for n in graph)
    ran = [("ReorderInput", "ReorderInput"), ("a_nchwc", "Conv"), ("Transpose_token_5", "Transpose"),
           ("k_nchwc", "Conv"), ("ReorderOutput_token_12", "ReorderOutput"), ("ReorderOutput", "ReorderOutput"),
           (add, "Add")]  # fmt: skip
    wanted = ["ReorderInput at the start", conv, f"Transpose after {conv}", pointwise,
              f"ReorderOutput after {pointwise}", f"ReorderOutput after {pointwise} 2", add]  # fmt: skip
    assert [k.name for k in profile.named([_kernel(*k) for k in ran], graph)] == wanted
    counted = [(f"{name.partition('_token')[0]}_token_{7 * i + 1}", op) for i, (name, op) in enumerate(ran)]
    assert [k.name for k in profile.named([_kernel(*k) for k in counted], graph)] == wanted


def test_every_way_the_runtime_has_to_say_a_node_is_understood():
    graph = _graph("conv, relu, residual")
    conv, relu, *_ = (n.name for n in graph)
    for name, op in (
        (conv, "FusedConv"), (f"fused {conv}", "FusedConv"), ("h", "Conv"), ("h_nchwc", "Conv"), ("a", "Conv"),
        (f"{conv}_token_3", "QLinearConv"), (f"{conv}_quant", "QLinearConv"), (f"{conv}/SomeFusion/", "Conv"),
        ("a_pre_q_nchwc", "Conv"), (f"{conv}_nchwc_token_9", "Conv"),
    ):  # fmt: skip
        assert [k.name for k in profile.named([_kernel(name, op)], graph)] == [conv], name
    rounded = profile.named([_kernel("a_q", "QuantizeLinear"), _kernel("a_pre_q_nchwc", "Conv")], graph)
    assert [k.name for k in rounded] == [f"QuantizeLinear after {conv}", conv], "a borrowed name is not taken"
    both = profile.named([_kernel("a", "Conv"), _kernel(relu, "Relu")], graph)
    assert [k.name for k in both] == [conv, relu]


def test_names_of_kernels_tell_all_of_them_apart():
    graph = _graph("conv, relu, residual")
    conv = next(iter(graph)).name
    kernels = profile.named([_kernel(conv, "Conv"), _kernel(f"{conv}_x", "Other"), _kernel("h_y", "Other")], graph)
    assert len({k.name for k in kernels}) == 3
