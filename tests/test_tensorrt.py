"""What is handed over for TensorRT: a rule for each way to be refused, and programs that call its API as it is.

TensorRT itself is not here. Its parser is replaced by the rules, each with a model that breaks it; its API by a stub
that has the names of TensorRT 10.16 and 11.4 and no others.
"""

from __future__ import annotations

import json
import runpy
import sys
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import models
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.backends.tensorrt import ONNX, PLAN, PROGRAMS, Expected, accepted, folder, profile, trtexec
from graphprune.backends.tensorrt_rules import RULES, check, operators
from graphprune.errors import ModelError
from graphprune.prepare import prepare
from tests.graphs import model_of, run

X = {"x": (1, 8, 9, 9)}
Q_ALONE = "q = QuantizeLinear(x, s)\nresult = Cast<to=1>(q)"
PAIR = "q = QuantizeLinear(x, {scale}, {zero})\nd = DequantizeLinear(q, {scale}, {zero})\nresult = Relu(d)"
S, Z = np.asarray(0.1, np.float32), np.asarray(0, np.int8)
# rule: (weight, nodes, weights, opset); the model breaks this rule and no other of its weight
BREAKS = {
    "opset-range": ("error", "result = Relu(x)", {}, 26),
    "operator-domain": ("error", "result = com.microsoft.QuickGelu(x)", {}, 18),
    "operator-supported": ("error", "i = Cast<to=6>(x)\nb = BitwiseNot(i)\nresult = Cast<to=1>(b)", {}, 18),
    "operator-types": ("error", "i = Cast<to=6>(x)\ns1 = Sqrt(i)\nresult = Cast<to=1>(s1)", {}, 18),
    "value-types": ("error", "i = Cast<to=4>(x)\nresult = Cast<to=1>(i)", {}, 18),
    "doubles": ("note", "result = Add(x, x)\nc = Cast<to=1>(w)\n", {"w": np.float64([1])}, 18),
    "one-float-type": ("error", "h = Cast<to=10>(x)\nresult = MatMul(h, w)", {"w": (9, 4)}, 18),
    "constant-inputs": ("error", "n = Shape(x)\nb = Slice(n, zero, one)\nresult = ReduceMean(x, b)",
                        {"zero": np.asarray([0]), "one": np.asarray([1])}, 18),
    "pooling": ("error", "result = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", {}, 18),
    "one-output": ("error", "result, other = MaxPool<kernel_shape=[2,2]>(x)\nf = Cast<to=1>(other)", {}, 18),
    "resizing": ("error", 'result = Resize<mode="cubic">(x, , s)', {"s": np.float32([1, 1, 2, 2])}, 18),
    "top-k": ("error", "result, i = TopK<sorted=0>(x, k)", {"k": np.asarray([2])}, 18),
    "recurrent": ("error", "r = Reshape(x, sh)\nresult = LSTM<hidden_size=2, layout=1>(r, w, u)",
                  {"sh": np.asarray([9, 9, 8]), "w": (1, 8, 8), "u": (1, 8, 2)}, 18),
    "convolution-bias": ("error", "m = ReduceMean<keepdims=0>(x, axes)\nresult = Conv(x, w, m)",
                         {"w": (8, 8, 1, 1), "axes": np.asarray([0, 2, 3])}, 18),
    "quantised-types": ("error", PAIR.format(scale="s", zero="z"), {"s": S, "z": np.asarray(3, np.int8)}, 18),
    "few-channels-quantised": (
        "risk", "q = QuantizeLinear(y, s, z)\nd = DequantizeLinear(q, s, z)\nresult = Conv(d, w)\n",
        {"s": S, "z": Z, "w": (8, 3, 3, 3)}, 18),
    "data-shaped": ("note", "i = NonZero(x)\nresult = Cast<to=1>(i)", {}, 18),
    "whole-tensor-cores": ("slow", "result = Conv(x, w)", {"w": (10, 8, 1, 1)}, 18),
}  # fmt: skip


def typed(text: str, weights, opset: int, inputs=X) -> ir.Model:
    model = model_of(text, inputs, weights, ("result",), opset)
    for i, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{i}"
    if opset > onnx.defs.onnx_opset_version() or "com.microsoft" in text:
        return model
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_a_model_that_breaks_it(rule: str) -> None:
    weight, text, weights, opset = BREAKS[rule]
    inputs = {"y": (1, 3, 9, 9)} if "(y," in text else X
    found = check(typed(text, weights, opset, inputs))
    assert {f.rule for f in found if f.weight == weight} == {rule}
    assert all(f.at and f.what for f in found)


@pytest.mark.parametrize("weights, said", [
    ({"s": S, "z": np.asarray(0, np.uint8)}, "uint8"),
    ({"s": np.asarray(0, np.float32), "z": Z}, "positive"),
    ({"s": S}, "no zero point"),
], ids=["uint8", "a scale of nothing", "no zero point"])  # fmt: skip
def test_what_quantised_values_may_not_be(weights, said: str) -> None:
    text = PAIR.format(scale="s", zero="z") if "z" in weights else Q_ALONE
    assert any(said in f.what for f in check(typed(text, weights, 18)) if f.rule == "quantised-types")


def test_a_bias_in_32_bit_steps_is_refused() -> None:
    text = "d = DequantizeLinear(b, s)\nresult = Add(x, d)"
    found = check(typed(text, {"b": np.zeros(9, np.int32), "s": S}, 18))
    assert any("int32" in f.what for f in found if f.rule == "quantised-types")


def test_the_operator_list_is_whole() -> None:
    taken, refused = operators()
    assert len(taken) >= 150 and len(refused) >= 40 and not taken.keys() & refused
    assert taken["Conv"][0] == {"FP32", "FP16", "BF16"} and "QLinearConv" in refused


@pytest.mark.parametrize("name", ["minilm", "pp_rec", "pp_det", "mnist_cnn", "efficientnet_lite0"])
def test_real_networks_are_accepted_in_16_bits(name: str) -> None:
    backend, task = OnnxRuntime(), models.get(name)
    model = prepare(task.model(), backend, task.shapes).model
    for precision in ("fp16", "fp32"):
        made, found = accepted(model, precision)
        assert {f.weight for f in found} <= {"slow", "note"}
        kinds = {v.dtype for v in made.graph.initializers.values() if v.const_value.size > 8}  # scales of a Resize stay
        assert (ir.DataType.FLOAT in kinds) == (precision == "fp32")


def test_a_model_that_would_be_refused_is_one_error_with_the_rules_names() -> None:
    text = "a = com.microsoft.QuickGelu(x)\nresult = com.microsoft.FastGelu(a)"
    with pytest.raises(ModelError, match="would refuse") as caught:
        accepted(typed(text, {}, 18), "fp16")
    assert "operator-domain" in caught.value.at and caught.value.fix


# --------------------------------------------------------------------------------------------------- the folder

DYNAMIC = {"x": ("batch", 8, "length")}


def made(tmp_path: Path, inputs=DYNAMIC) -> tuple[Path, dict]:
    model = typed("y = MatMul(x, w)\nresult = Relu(y)", {"w": (16, 4)}, 18, inputs)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(1, 8, 16)).astype(np.float32)}] * 2
    files, _ = folder(model, device="A device", precision="fp16", feeds=feeds, timing=feeds[0], run=run,
                      expected=Expected(0.5, 0.2, "analytic"))  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path, json.loads(files[PLAN])


def test_the_folder_holds_all_it_takes(tmp_path: Path) -> None:
    home, plan = made(tmp_path)
    assert {p.name for p in home.iterdir()} == {ONNX, PLAN, "trtexec.sh", *PROGRAMS}
    assert plan["built"] is False and plan["expected_ms"] == 0.5 and plan["shapes"] == {"x": [1, 8, 16]}
    onnx.checker.check_model(onnx.load(home / ONNX), full_check=True)
    line = (home / "trtexec.sh").read_text()
    assert "--stronglyTyped" in line and "--optShapes=x:1x8x16" in line and "--fp16" not in line


def test_profiles_span_what_was_seen() -> None:
    model = typed("result = Relu(x)", {}, 18, {"x": ("batch", 8, "length")})
    feeds = [{"x": np.zeros((2, 8, n), np.float32)} for n in (16, 64, 32)]
    assert profile(model, feeds, feeds[2]) == {"x": {"min": [1, 8, 16], "opt": [2, 8, 32], "max": [2, 8, 64]}}
    fixed = typed("result = Relu(x)", {}, 18, {"x": (2, 8, 16)})
    assert profile(fixed, feeds[:1], feeds[0]) == {}
    assert "Shapes" not in trtexec({"onnx": "m", "workspace_mib": 1, "optimization_level": 3, "profile": {}})


class Stub:
    """The names of the TensorRT API that a build uses; whatever else is asked for is an AttributeError."""

    def __init__(self, *, strongly: bool = True, gpu: bool = True, parses: bool = True, builds: bool = True) -> None:
        self.__version__ = "10.16.1"
        self.calls: list[tuple] = []
        self.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda s, level: None})
        self.NetworkDefinitionCreationFlag = IntEnum("Flag", {"STRONGLY_TYPED": 1} if strongly else {"OTHER": 4})
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.init_libnvinfer_plugins = lambda logger, namespace: None
        calls = self.calls

        class Profile:
            def set_shape(self, *arguments):
                calls.append(("set_shape", *arguments))

        class Config:
            set_memory_pool_limit = staticmethod(lambda pool, size: calls.append(("pool", pool, size)))
            create_timing_cache = staticmethod(lambda data: data)
            set_timing_cache = staticmethod(lambda cache, ignore_mismatch: not calls.append(("cache", cache)))
            add_optimization_profile = staticmethod(lambda p: calls.append(("profile",)))
            get_timing_cache = staticmethod(lambda: SimpleNamespace(serialize=lambda: b"times"))

        class Builder:
            def __init__(self, logger):
                if not gpu:
                    raise TypeError("factory function returned nullptr")

            create_network = staticmethod(lambda flags: calls.append(("network", flags)) or "network")
            create_builder_config = staticmethod(Config)
            create_optimization_profile = staticmethod(Profile)
            build_serialized_network = staticmethod(lambda network, config: b"engine" if builds else None)

        class OnnxParser:
            num_errors = 1

            def __init__(self, network, logger):
                pass

            get_error = staticmethod(lambda i: "No importer registered for op: Odd")
            parse_from_file = staticmethod(lambda path: calls.append(("parse", Path(path).name)) or parses)

        self.Builder, self.OnnxParser = Builder, OnnxParser


def build(home: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stub)
    runpy.run_path(str(home / "build_engine.py"), run_name="__main__")


def test_the_program_builds_as_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, plan = made(tmp_path)
    stub = Stub()
    build(home, stub, monkeypatch)
    assert (home / "model.engine").read_bytes() == b"engine" and (home / "timing.cache").read_bytes() == b"times"
    assert ("network", 2) in stub.calls and ("parse", ONNX) in stub.calls
    assert ("pool", "workspace", plan["workspace_mib"] << 20) in stub.calls
    shapes = plan["profile"]["x"]
    assert ("set_shape", "x", shapes["min"], shapes["opt"], shapes["max"]) in stub.calls
    assert "wrote" in capsys.readouterr().out
    build(home, stub := Stub(strongly=False), monkeypatch)  # from TensorRT 11 on there is nothing to ask for
    assert ("network", 0) in stub.calls and ("cache", b"times") in stub.calls


@pytest.mark.parametrize("stub, said", [
    (Stub(gpu=False), "finds no GPU"), (Stub(parses=False), "No importer"), (Stub(builds=False), "no engine"),
], ids=["no GPU", "refused", "not built"])  # fmt: skip
def test_the_program_says_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: Stub, said: str
) -> None:
    home, _ = made(tmp_path)
    with pytest.raises(SystemExit, match=said):
        build(home, stub, monkeypatch)
    assert not (home / "model.engine").exists()
