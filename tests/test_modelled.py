"""Compiling for devices that are not here: the same loop on predicted times, and a report that says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphprune
from graphprune.backends import open_backend
from graphprune.backends.tensorrt_rules import check
from graphprune.calibrate import moments
from graphprune.cli import main
from graphprune.errors import InfeasibleTarget, ModelError, UsageError
from graphprune.half import to_half
from graphprune.load import save_bytes
from graphprune.passes.quantise import Quantise
from graphprune.report import Report, how_known
from graphprune.report_html import render_html
from tests.graphs import model_of, wide_layers

ROWS, SHAPE = (1, 32, 64), (1, 4096, 64)
"""Of the feeds that values are computed on, and at which times are predicted."""
AT = {"shapes": {"x": SHAPE}, "passes": "width"}


@pytest.fixture(scope="module")
def model() -> bytes:
    return save_bytes(wide_layers())


@pytest.fixture(autouse=True, scope="module")
def briefly() -> Iterator[None]:
    """Prices of processors are of kernels that run here: a few plans will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphprune.compiler._PRICING_SECONDS", 1.0)
        yield


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=ROWS).astype(np.float32)} for _ in range(12)]


@pytest.fixture(scope="module")
def command(model: bytes, feeds, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """To compile the model from the command line, but for the device and the target."""
    folder = tmp_path_factory.mktemp("modelled")
    (folder / "m.onnx").write_bytes(model)
    np.savez(folder / "feeds.npz", x=np.concatenate([feed["x"] for feed in feeds]))
    return ["compile", str(folder / "m.onnx"), "--passes", "width", "--shape", f"x={'x'.join(map(str, SHAPE))}",
            "--calibration", str(folder / "feeds.npz")]  # fmt: skip


@pytest.fixture(scope="module")
def result(model: bytes, feeds) -> graphprune.Result:
    return graphprune.compile(model, target_speedup=1.5, device="a100", calibration=feeds, **AT)


def test_the_target_is_reached_by_prediction_and_the_report_says_so(result) -> None:
    reached = result.report.reached
    assert 1.5 <= reached.speedup <= 1.65 and reached.source == "analytic" and not reached.is_measured
    assert 0.01 < reached.speedup_spread < 1
    assert "unverified: no measurement on this device" in how_known(reached)
    assert any("nothing was run on NVIDIA A100" in w for w in result.report.warnings)
    assert any("no engine was built" in w for w in result.report.warnings)
    assert "fp16" in result.report.environment["runtime"]
    assert Report.from_json(result.report.to_json()) == result.report
    assert all(row.verdict != "mismatch" for row in result.report.certificate)


def test_the_build_folder_comes_with_it(result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names >= {"model.onnx", "plan.json", "report.html", "engine.onnx", "build.json", "build_engine.py",
                     "run_engine.py", "torch_engine.py", "trtexec.sh"}  # fmt: skip
    plan = json.loads((tmp_path / "out" / "build.json").read_text())
    assert plan["expected_ms"] == pytest.approx(result.report.reached.ms) and plan["built"] is False
    onnx.checker.check_model(onnx.load(tmp_path / "out" / "engine.onnx"), full_check=True)
    assert "unverified" in (tmp_path / "out" / "report.html").read_text()


def test_a_plan_for_another_device_is_replayed_to_the_byte(result, model: bytes) -> None:
    assert graphprune.replay(result.plan, model) == result.data


def test_the_same_twice(result, model: bytes, feeds) -> None:
    again = graphprune.compile(model, target_speedup=1.5, device="a100", calibration=feeds, **AT)
    assert again.data == result.data


def test_the_baseline_is_stated_and_can_be_another(model: bytes, feeds) -> None:
    feed = {"x": np.zeros(SHAPE, np.float32)}
    usual, single = open_backend("a100"), open_backend("a100", baseline="fp32")
    assert single.predict(single.baseline(model), feed).ms > 1.5 * usual.predict(usual.baseline(model), feed).ms
    assert single.predict(model, feed).ms == usual.predict(model, feed).ms
    for device, precision in (("t4", "fp8"), ("h100", "fp8"), ("epyc", "fp16"), ("host", "fp16")):
        with pytest.raises(UsageError, match="fp") as caught:
            open_backend(device, precision=precision)
        assert caught.value.fix


def test_out_of_reach_says_by_how_much_and_what_holds_it(model: bytes, feeds) -> None:
    with pytest.raises(InfeasibleTarget, match="out of reach on a100: the most modelled is") as caught:
        graphprune.compile(model, target_speedup=400, device="a100", calibration=feeds, **AT)
    assert 1 < caught.value.best < 400 and "kernels no site changes" in caught.value.at


def test_what_tensorrt_refuses_is_said_before_any_work(feeds) -> None:
    odd = model_of("y = MatMul(x, w)\nresult = com.microsoft.QuickGelu(y)", {"x": ROWS}, {"w": (64, 64)})
    with pytest.raises(ModelError, match="TensorRT would refuse") as caught:
        graphprune.compile(save_bytes(odd), target_speedup=2, device="l4", calibration=feeds)
    assert "operator-domain" in caught.value.at


def test_a_processor_is_modelled_with_the_kernels_of_the_runtime(model: bytes, feeds) -> None:
    one, many = open_backend("epyc", 1), open_backend("epyc", 16)
    feed = {"x": np.zeros(SHAPE, np.float32)}
    assert {k.op for k in one.profile(model, feed)} >= {"MatMul"}
    assert one.predict(model, feed).ms > 4 * many.predict(model, feed).ms
    with pytest.raises(UsageError, match="has 96 cores"):
        open_backend("epyc", 200)


def test_values_are_those_of_this_machine(model: bytes, feeds) -> None:
    here, there = open_backend("host").load(model), open_backend("h100").load(model)
    assert there.inputs == here.inputs and there.outputs == here.outputs
    np.testing.assert_array_equal(there.run(feeds[0])["result"], here.run(feeds[0])["result"])


def test_shapes_that_depend_on_data_are_found_by_running() -> None:
    text = "i = NonZero(x)\nt = Transpose(i)\nf = Cast<to=1>(t)\nresult = MatMul(f, w)"
    odd = save_bytes(model_of(text, {"x": (4, 64)}, {"w": (2, 512)}))
    full, empty = ({"x": np.full((4, 64), v, np.float32)} for v in (1, 0))
    backend = open_backend("t4")
    assert backend.predict(odd, full).ms > backend.predict(odd, empty).ms


def test_from_the_command_line(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    asked = [*command, "--target-speedup", "1.4x", "--out", out]
    assert main([*asked, "--device", "h100", "--baseline-precision", "fp32"]) == 0
    shown = capsys.readouterr().out
    assert "expected" in shown and "unverified" in shown and "engine.onnx" in shown
    assert main([*asked, "--device", "h1000"]) == 2
    assert "did you mean h100" in capsys.readouterr().err
    assert main([*asked, "--device", "h100", "--precision", "fp7"]) == 2


def test_half_of_what_was_compiled_is_what_the_folder_holds(result) -> None:
    both = (result.data, result.beside["engine.onnx"])
    model, engine = (ir.from_proto(onnx.ModelProto.FromString(data)) for data in both)
    for name, value in to_half(model).graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), engine.graph.initializers[name].const_value.numpy())


def test_one_calibration_serves_several_devices(model: bytes, feeds) -> None:
    found = graphprune.compile_for(model, devices=["a100", "t4"], targets=[1.5, 400], calibration=feeds, **AT)
    assert list(found) == ["a100", "t4"]
    for device, (reached, missed) in found.items():
        assert isinstance(missed, InfeasibleTarget) and missed.best < 400
        assert reached.report.asked.device == device and 1.5 <= reached.report.reached.speedup < 1.8
        assert graphprune.replay(reached.plan, model) == reached.data
        others = reached.report.elsewhere
        assert [e.device for e in others] == [d for d in found if d != device]
        assert all(e.chosen and e.time_share for e in others)
        assert Report.from_json(reached.report.to_json()) == reached.report
        assert "On other devices" in render_html(reached.report)
    alone = graphprune.compile(model, target_speedup=1.5, device="t4", calibration=feeds, **AT)
    assert alone.data == found["t4"][0].data, "what came before on another device changes nothing"


def test_calibration_is_run_once(model: bytes, feeds, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("graphprune.context.moments", lambda *a: asked.append(len(a[1])) or moments(*a))
    graphprune.compile_for(model, devices=["a100", "h100"], targets=[1.3], calibration=feeds, **AT)
    assert len(asked) == 1


def test_several_devices_from_the_command_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = [*command, "--out", str(out)]
    assert main([*asked, "--device", "a100,t4", "--family", "1.3x,300x"]) == 4
    assert (out / "t4" / "1.3x" / "engine.onnx").exists() and not (out / "t4" / "300x").exists()
    assert (out / "a100" / "1.3x" / "report.html").exists()
    shown = capsys.readouterr()
    assert "out of reach" in shown.err and "sites differ" in shown.out
    assert main([*asked, "--device", "a100,a100-80gb", "--target-speedup", "1.4x"]) == 2
    assert "twice" in capsys.readouterr().err
    assert main([*asked, "--device", "a100,nope", "--target-speedup", "1.4x"]) == 2
    assert main([*asked, "--device", "a100,t4", "--target-latency", "1ms"]) == 2


def kinds_of(data: bytes) -> dict[str, set[str]]:
    """Operator -> data types of what it gives, and of its zero points."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(data)))
    found: dict[str, set[str]] = {}
    for node in model.graph:
        found.setdefault(node.op_type, set()).update(y.dtype.name for y in node.outputs if y.dtype)
    return found


@pytest.mark.parametrize("device, whole", [("t4", "INT8"), ("epyc", "UINT8")])
def test_8_bits_are_what_the_engine_wants_them_to_be(model: bytes, feeds, device: str, whole: str) -> None:
    options = {"calibration": feeds, "passes": "quantise", "shapes": {"x": (1, 256, 64)}}
    result = graphprune.compile(model, target_speedup=1.1, device=device, **options)
    kinds = kinds_of(result.data)
    assert kinds.get("QuantizeLinear", {whole}) == {whole}
    assert kinds.keys() & {"QuantizeLinear", "DynamicQuantizeLinear"}
    assert graphprune.replay(result.plan, model) == result.data
    if device == "t4":
        engine = onnx.ModelProto.FromString(result.beside["engine.onnx"])
        onnx.checker.check_model(engine, full_check=True)
        assert not [f for f in check(ir.from_proto(engine)) if f.weight in ("error", "risk")]
        assert next(o.version for o in engine.opset_import if not o.domain) >= 19
        plain = {"QuantizeLinear", "DequantizeLinear", "MatMul", "Relu", "Cast"}
        assert {node.op_type for node in engine.graph.node} <= plain


def test_8_bits_of_one_engine_are_not_those_of_another(model: bytes, feeds) -> None:
    options = {"calibration": feeds, "passes": "quantise", "shapes": {"x": (1, 256, 64)}}
    found = graphprune.compile_for(model, devices=["epyc", "t4"], targets=[1.1], **options)
    alone = graphprune.compile(model, target_speedup=1.1, device="t4", **options)
    assert found["t4"][0].data == alone.data


def test_names_of_nodes_change_no_time(feeds) -> None:
    text = "a = MatMul(x, w)\nb = Sigmoid(a)\nresult = MatMul(b, w)"
    named, unnamed = (model_of(text, {"x": ROWS}, {"w": (64, 64)}) for _ in range(2))
    for i, node in enumerate(named.graph):
        node.name = f"node{i}"
    assert not any(node.name for node in unnamed.graph)
    for device in ("epyc", "a100"):
        backend = open_backend(device)
        a, b = (backend.predict(save_bytes(m), feeds[0]) for m in (named, unnamed))
        assert a.ms == b.ms and len(a.kernels) == len(b.kernels)


def test_what_is_in_a_body_is_not_in_the_times_and_that_is_said(feeds) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 18]>
        g (float[1,32,64] x, bool c) => (float[1,32,64] result) {
            y = Relu(x)
            result = If(c) <then_branch = t () => (float[1,32,64] p) { p = Exp(y) },
                            else_branch = e () => (float[1,32,64] q) { q = Neg(y) }>
        }""")
    feed = {**feeds[0], "c": np.asarray(True)}
    backend = open_backend("a100")
    predicted = backend.predict(proto.SerializeToString(), feed)
    assert {k.op for k in predicted.kernels} >= {"If", "Relu"}
    files, notes = backend.package(proto.SerializeToString(), [feed], feed, predicted.timing)
    assert any("bodies of 1 If" in n for n in notes)
    onnx.checker.check_model(onnx.ModelProto.FromString(files["engine.onnx"]), full_check=True)


def test_a_value_of_the_pass_may_serve_two_engines(model: bytes, feeds) -> None:
    options = {"calibration": feeds, "shapes": {"x": (1, 256, 64)}}
    found = graphprune.compile_for(model, devices=["epyc", "t4"], targets=[1.1], passes=[Quantise()], **options)
    assert all(isinstance(results[0], graphprune.Result) for results in found.values())
