"""The contract of a backend, on every one that is installed: what runs here, and what is only modelled."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphprune
from graphprune.backends import integer_kernels, open_backend
from graphprune.backends.base import Backend
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.backends.providers import PROVIDERS
from graphprune.canonicalise import canonicalise
from graphprune.context import Context
from graphprune.errors import EnvironmentFault, InfeasibleTarget, ModelError, UsageError
from graphprune.load import save_bytes
from graphprune.passes.quantise import FLOAT, PRECISIONS, Quantise
from graphprune.prepare import loader
from graphprune.target import speedup
from models import width_families
from tests.graphs import model_of, typed

FAMILY = width_families.residual(stages=(16, 32), blocks=1, side=8)
DENSE = FAMILY.build(FAMILY.sizes)
SMALL = FAMILY.build({group: levels[0] for group, levels in FAMILY.levels.items()})
HERE = [f"host:{name}" for name in PROVIDERS]
MODELLED = ["a100", "xeon-amx"]


def opened(device: str, threads: int = 1) -> Backend:
    try:
        return open_backend(device, threads)
    except EnvironmentFault as error:
        pytest.skip(f"{device} was not tested: {error.what} ({error.at})")


@pytest.fixture(params=[*HERE, *MODELLED])
def backend(request: pytest.FixtureRequest) -> Backend:
    return opened(request.param)


@pytest.fixture(params=HERE)
def here(request: pytest.FixtureRequest) -> Backend:
    return opened(request.param)


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
            np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-6)


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


def test_kernels_keep_their_names_when_widths_change(backend):
    def names(counts):
        return {k.name for k in backend.profile(FAMILY.build(counts), FAMILY.feed, repeats=1) if "Reorder" not in k.op}

    assert names(FAMILY.sizes) == names({**FAMILY.sizes, "stream1": 16, "inner1.0": 16})


def test_measure_takes_the_models_in_turns(backend):
    timings = backend.measure([DENSE, SMALL], FAMILY.feed, min_rounds=7, spread=10.0)
    assert {t.rounds for t in timings} == {7 if isinstance(backend, OnnxRuntime) else timings[0].rounds}
    assert all(t.median_ms > 0 for t in timings)


def test_what_is_smaller_takes_less_time_also_kernel_by_kernel(backend):
    """By more than noise: a network of thirty times the work, of which a GPU notices little."""
    large, small = (width_families.residual(stages=(n, n), blocks=2, side=32) for n in (96, 16))
    models = [f.build(f.sizes) for f in (large, small)]
    ratio = speedup(*backend.measure(models, large.feed, max_seconds=1.0))
    assert ratio.value > 1.2
    totals = [sum(k.ms for k in backend.profile(m, large.feed, repeats=3)) for m in models]
    assert totals[0] > 1.2 * totals[1]


def test_the_baseline_computes_what_the_dense_model_does(backend):
    baseline = backend.baseline(DENSE)
    run = baseline if hasattr(baseline, "run") else backend.load(baseline)
    (found,), (wanted,) = run.run(FAMILY.feed).values(), backend.load(DENSE, optimise=False).run(FAMILY.feed).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_rewrites_of_the_backend_leave_what_a_model_computes_alone(backend):
    text = "h = MatMul(x, w)\na = Add(h, x)\nresult = LayerNormalization<axis=-1>(a, g, g)"
    model = canonicalise(model_of(text, {"x": ("N", 5, 16)}, {"w": (16, 16), "g": (16,)}))
    feed = {"x": np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)}
    (wanted,) = backend.load(model).run(feed).values()
    for rewrite in backend.lowerings.values():
        (found,) = backend.load(rewrite(model)).run(feed).values()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


NETS = {
    "convolutions": ("h = Conv<pads=[1,1,1,1]>(x, w, b)\na = Relu(h)\nk = Conv(a, v)\ns = Add(k, a)\nt = Relu(s)\n"
                     "result = Conv(t, v)", (1, 16, 9, 9), {"w": (16, 16, 3, 3), "b": (16,), "v": (16, 16, 1, 1)}),
    "products": ("h = MatMul(x, w)\na = Add(h, b)\nr = Relu(a)\nresult = MatMul(r, v)", (1, 5, 32),
                 {"w": (32, 64), "b": (64,), "v": (64, 24)}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_it_says_it_computes_in_few_bits_it_computes(backend, name, precision):
    text, shape, weights = NETS[name]
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(16)]
    analysis = typed(model_of(text, {"x": shape}, weights), feeds[0])
    context = Context(analysis, feeds, loader(backend), integer=backend.integer)
    quantise, level = Quantise(), PRECISIONS.index(precision)
    sites = quantise.propose(context)
    chosen = quantise.choose(context, {s.name: level if level in s.levels else FLOAT for s in sites})
    if not chosen:
        return  # it does not say so
    model = quantise.finish(context, context.model, chosen)
    (found,), (wanted,) = (backend.load(m).run(feeds[0]).values() for m in (model, analysis.model))
    assert np.sum((found - wanted) ** 2) < (0.1 if precision == "int4 weights" else 5e-3) * np.sum(wanted**2)
    assert backend.profile(model, feeds[0], repeats=1)
    assert integer_kernels(backend.integer.name) == backend.integer


def test_the_fingerprint_tells_what_times_hold_for(here):
    assert here.fingerprint() != opened(f"host:{here.provider.name}", threads=2).fingerprint()
    others = [name for name in PROVIDERS if name != here.provider.name]
    assert all(PROVIDERS[name].title not in here.fingerprint() for name in others if name != "cpu")


def test_a_provider_that_is_not_there_says_what_to_install():
    missing = [p for p in PROVIDERS.values() if p.runtime not in _available()]
    assert missing, "no build of ONNX Runtime has them all"
    with pytest.raises(EnvironmentFault) as error:
        open_backend(f"host:{missing[0].name}")
    assert missing[0].title in error.value.what and missing[0].package in error.value.fix


def _available() -> list[str]:
    import onnxruntime

    return onnxruntime.get_available_providers()


def test_an_unknown_provider_lists_the_nearest():
    with pytest.raises(UsageError) as error:
        open_backend("host:openvin")
    assert "host:openvino" in error.value.fix


def test_a_compilation_reaches_its_target_on_it(backend, monkeypatch):
    """Times are real, or predicted, so only the contract is checked: what was promised is in the report, or the most
    that there is."""
    monkeypatch.setattr("graphprune.compiler._PRICING_SECONDS", 1.0)
    monkeypatch.setattr("graphprune.closed_loop._EVALUATIONS", 4)
    device = f"host:{backend.provider.name}" if isinstance(backend, OnnxRuntime) else backend.described.device.name
    family = width_families.residual(stages=(48, 96), blocks=1, side=24)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=family.feed["x"].shape).astype(np.float32)} for _ in range(8)]
    data = family.build(family.sizes)
    try:
        result = graphprune.compile(data, target_speedup=1.2, device=device, calibration=feeds, passes="width,quantise")
    except InfeasibleTarget as error:
        assert 0.5 < error.best < 1.2
        return
    assert result.report.reached.speedup >= 1.2 and result.report.asked.device == device
    assert graphprune.replay(result.plan, data) == result.data
    assert save_bytes(ir.from_proto(onnx.ModelProto.FromString(result.data)))
