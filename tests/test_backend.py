"""The contract of a backend, on ONNX Runtime; and the reader of its trace."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphprune.backends import profile
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.errors import ModelError, UsageError
from models import width_families

FAMILY = width_families.residual(stages=(16, 32), blocks=1, side=8)
DENSE = FAMILY.build(FAMILY.sizes)


@pytest.fixture
def backend():
    return OnnxRuntime(threads=1)


def test_every_form_of_a_model_loads_the_same(backend, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(DENSE)
    proto = onnx.load_from_string(DENSE)
    apart = tmp_path / "apart.onnx"
    ir.save(ir.from_proto(proto), apart, external_data="weights.bin", size_threshold_bytes=0)
    forms = [DENSE, path, proto, ir.from_proto(proto), apart, ir.load(apart)]
    results = [backend.load(form).run(FAMILY.feed) for form in forms]
    for result in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(result[name], array)


def test_optimisation_changes_no_result_beyond_rounding(backend):
    (fast,) = backend.load(DENSE).run(FAMILY.feed).values()
    (plain,) = backend.load(DENSE, optimise=False).run(FAMILY.feed).values()
    np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-4)


def test_an_executable_names_its_inputs_and_outputs(backend):
    loaded = backend.load(DENSE)
    assert loaded.inputs == {"x": (np.dtype("float32"), (1, 3, 8, 8))}
    assert list(loaded.run(FAMILY.feed, outputs=loaded.outputs)) == loaded.outputs


@pytest.mark.parametrize("broken", [b"not a model", DENSE[: len(DENSE) // 2]])
def test_what_is_no_model_is_a_model_error(backend, broken):
    with pytest.raises(ModelError) as error:
        backend.load(broken)
    assert "\n" not in error.value.at


def test_a_file_that_is_not_there_is_a_usage_error(backend, tmp_path):
    with pytest.raises(UsageError):
        backend.load(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("feed", "what"),
    [
        ({}, "no array for the model's input 'x'"),
        ({**FAMILY.feed, "y": np.zeros(1)}, "'y' is no input of the model"),
        ({"x": FAMILY.feed["x"].astype(np.float64)}, "the array for input 'x' is float64 [1, 3, 8, 8]"),
        ({"x": FAMILY.feed["x"][0]}, "the array for input 'x' is float32 [3, 8, 8]"),
    ],
)
@pytest.mark.parametrize("call", ["run", "profile", "measure"])
def test_a_feed_that_does_not_fit_says_where(backend, feed, what, call):
    with pytest.raises(UsageError) as error:
        if call == "run":
            backend.load(DENSE).run(feed)
        elif call == "profile":
            backend.profile(DENSE, feed, repeats=1)
        else:
            backend.measure([DENSE], feed)
    assert error.value.what == what


def test_no_threads_is_a_usage_error():
    with pytest.raises(UsageError):
        OnnxRuntime(threads=0)


def test_a_profile_shows_the_fused_graph(backend):
    kernels = backend.profile(DENSE, FAMILY.feed, repeats=3)
    assert not [k for k in kernels if k.op == "Relu"], "activations are part of their convolutions"
    assert len({k.name for k in kernels}) == len(kernels)
    assert all(k.outputs and k.ms >= 0 for k in kernels)


def test_kernels_keep_their_names_when_widths_change(backend):
    def names(counts):
        return {k.name for k in backend.profile(FAMILY.build(counts), FAMILY.feed, repeats=1) if "Reorder" not in k.op}

    assert names(FAMILY.sizes) == names({**FAMILY.sizes, "stream1": 16, "inner1.0": 16})


def test_measure_takes_the_models_in_turns(backend):
    small = FAMILY.build({g: levels[0] for g, levels in FAMILY.levels.items()})
    timings = backend.measure([DENSE, small], FAMILY.feed, min_rounds=7, max_seconds=0.0)
    assert [t.rounds for t in timings] == [7, 7]
    assert all(t.median_ms > 0 for t in timings)


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
