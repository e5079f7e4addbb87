"""Bad input, end to end through the command line: one error that says what, where and how to fix it; an exit code by
kind; nothing written; no stack trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune
from graphprune.cli import main
from tests.graphs import model_of
from tests.steady import keep_steady_time
from tests.test_driver import feeds, mlp

COMPILE = ("compile", "net.onnx", "--target-speedup", "1.5x", "--quiet")
SHAPE = ("--shape", "x=4x48")
DEFECT = "this is a defect in graphprune"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch) -> Path:
    """An empty working folder, and a clock that no test waits for."""
    keep_steady_time(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys, code: int, start: str, *args: str) -> str:
    """Run; the exit code, the start of the message, and that nothing was written. Returns the whole message."""
    before = sorted(os.walk("."))
    assert main(list(args)) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {start}"), err
    assert out == "" and "Traceback" not in err and DEFECT not in err
    assert "fix:" in err, "says how to fix it"
    assert sorted(os.walk(".")) == before, "left something behind"
    return err


def save(model: onnx.ModelProto | bytes, name: str = "net.onnx") -> None:
    Path(name).write_bytes(model if isinstance(model, bytes) else model.SerializeToString(deterministic=True))


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = mlp()
    change(model)
    return model


# Files that are no models


@pytest.mark.parametrize(("content", "start"), [
    (b"", "net holds no graph"),
    (b"hello, I am not a model at all\n", "net is not an ONNX model, or it was cut short (31 bytes)"),
    (b"\x00" * 64, "net is not an ONNX model, or it was cut short (64 bytes)"),
    (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "net is not an ONNX model, or it was cut short (208 bytes)"),
    (b'{"graph": {}}', "net is not an ONNX model, or it was cut short (13 bytes)"),
], ids=["nothing", "text", "zeros", "a picture", "json"])  # fmt: skip
@pytest.mark.parametrize("command", ["compile", "explain"])
def test_a_file_that_is_no_model(capsys, command: str, content: bytes, start: str) -> None:
    save(content)
    fails(capsys, 3, start, *(COMPILE if command == "compile" else (command, "net.onnx")))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_model_that_was_cut_short(capsys, share: float) -> None:
    data = mlp().SerializeToString()
    save(data[: int(share * len(data))])
    fails(capsys, 3, "net", *COMPILE, *SHAPE)


@pytest.mark.parametrize("seed", range(40))
def test_a_model_with_flipped_bytes_is_never_a_defect_of_ours(capsys, seed: int) -> None:
    """Whatever it has become: still a model, no model, or one that does not run."""
    rng, data = np.random.default_rng(seed), bytearray(mlp().SerializeToString())
    structure = [i for i in range(len(data)) if i < 60 or i > len(data) - 400]  # weights are most of the file
    for at in rng.choice(structure, size=rng.integers(1, 4)):
        data[at] = rng.integers(256)
    save(bytes(data))
    code = main(["explain", "net.onnx", "--no-time"])
    err = capsys.readouterr().err
    assert code in (0, 2, 3) and DEFECT not in err and "Traceback" not in err, err


def test_there_is_no_such_file(capsys) -> None:
    save(mlp(), "network.onnx")
    assert "network.onnx" in fails(capsys, 2, "the model does not exist", "explain", "netwrk.onnx")


# Models that cannot be used


def graph_of(*nodes: onnx.NodeProto, x: object = (1, 4), outputs: tuple[str, ...] = ("result",), opset: int = 18,
             kind: int = TensorProto.FLOAT) -> onnx.ModelProto:  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", kind, x)]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", inputs, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


RELU = helper.make_node("Relu", ["x"], ["result"])


@pytest.mark.parametrize(("model", "start"), [
    (graph_of(), "net holds no graph"),
    (graph_of(RELU, outputs=()), "net has no outputs"),
    (graph_of(RELU, opset=6), "net uses opset 6; rules exist for 7 to "),
    (graph_of(RELU, opset=999), "net uses opset 999; rules exist for 7 to "),
    (graph_of(helper.make_node("Relu", ["nowhere"], ["result"])), "net is damaged: Relu takes 'nowhere', which"),
    (graph_of(helper.make_node("NoSuchOperator", ["x"], ["result"])), "the model does not run: "),
    (graph_of(helper.make_node("Strange", ["x"], ["result"], domain="my.domain")), "the model does not run: "),
    (graph_of(RELU, outputs=("other",)), "net is damaged: nothing makes the output 'other'"),
    (graph_of(helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Relu", ["b"], ["a"])),
     "net is damaged: Graph contains a cycle"),
    (graph_of(helper.make_node("MatMul", ["x", "x"], ["result"])), "the model does not run: "),
    (graph_of(RELU, helper.make_node("Tanh", ["x"], ["result"])), "net is damaged: Output 'result' is"),
], ids=["no nodes", "no outputs", "too old", "too new", "input from nowhere", "no such operator", "own domain",
        "output from nowhere", "a circle", "shapes that do not fit", "one name twice"])  # fmt: skip
def test_a_model_that_is_no_use(capsys, model: onnx.ModelProto, start: str) -> None:
    save(model)
    fails(capsys, 3, start, *COMPILE)


def test_libraries_do_not_talk_over_the_error() -> None:
    save(graph_of(helper.make_node("Relu", ["nowhere"], ["result"])))
    command = [sys.executable, "-m", "graphprune.cli", *COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.startswith("error: net is damaged: Relu takes 'nowhere', which nothing makes\n")


def test_nodes_out_of_order_are_put_in_order(capsys) -> None:
    save(changed(lambda model: model.graph.node.reverse()))
    save(mlp(), "in_order.onnx")
    assert main(["verify", "in_order.onnx", "net.onnx", *SHAPE]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(capsys, bad: float) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name == "w2")
        array = numpy_helper.to_array(weight).copy()
        array[3, 5:8] = bad
        weight.CopyFrom(numpy_helper.from_array(array, "w2"))

    save(changed(spoil))
    fails(capsys, 3, "3 weights of w2 are NaN or infinite", *COMPILE, *SHAPE)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "link.bin"])
def test_weights_from_outside_the_folder_of_the_model(capsys, place: Path, location: str) -> None:
    folder = place / "here"
    folder.mkdir()
    (place / "secret.bin").write_bytes(bytes(48 * 128 * 4))
    (folder / "link.bin").symlink_to(place / "secret.bin")
    os.chdir(folder)
    save(changed(lambda model: external(model, location)))
    fails(capsys, 3, f"the weight w1 points outside the model's folder: '{location}'", *COMPILE, *SHAPE)


def external(model: onnx.ModelProto, location: str, **entries: str) -> None:
    """Say that the first weight lies in another file."""
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)


@pytest.mark.parametrize(("size", "entries"), [
    (None, {}), (100, {}), (48 * 128 * 4, {"offset": "99999999"}), (48 * 128 * 4, {"length": "12"}),
    (48 * 128 * 4, {"offset": "-5"}), (48 * 128 * 4, {"offset": "many"}), (0, {}),
], ids=["missing", "cut short", "offset beyond", "too few", "offset below", "no number", "empty"])  # fmt: skip
def test_weights_that_are_not_there(capsys, size: int | None, entries: dict[str, str]) -> None:
    if size is not None:
        Path("w.bin").write_bytes(bytes(size))
    save(changed(lambda model: external(model, "w.bin", **entries)))
    assert "weight w1 " in fails(capsys, 3, "", *COMPILE, *SHAPE)


def test_weights_in_a_file_beside_the_model_are_read(capsys) -> None:
    original = next(t for t in mlp().graph.initializer if t.name == "w1")
    Path("w.bin").write_bytes(original.raw_data or numpy_helper.to_array(original).tobytes())
    save(changed(lambda model: external(model, "w.bin")))
    save(mlp(), "whole.onnx")
    assert main(["verify", "whole.onnx", "net.onnx", *SHAPE]) == 0, capsys.readouterr().err


def test_nothing_that_can_be_pruned(capsys) -> None:
    save(ir.to_proto(model_of("result = Gemm(x, w, b)", {"x": ("N", 48)}, {"w": (48, 10), "b": (10,)})))
    err = fails(capsys, 3, "nothing in this model can be pruned", *COMPILE, *SHAPE, "--passes", "width")
    assert "graph input" in err and "explain" in err


def test_text_inputs_cannot_be_made_up(capsys) -> None:
    save(graph_of(helper.make_node("StringNormalizer", ["x"], ["result"]), kind=TensorProto.STRING, x=("N",)))
    fails(capsys, 2, "inputs of type string cannot be made up", "explain", "net.onnx")


# Options and data that do not fit the model


def test_a_dynamic_input_without_a_shape(capsys) -> None:
    save(mlp())
    err = fails(capsys, 2, "input 'x' has dynamic axes and no shape was given", *COMPILE)
    assert "--shape x=1x48" in err


@pytest.mark.parametrize(("shape", "start"), [
    ("y=4x48", "the model has no input 'y'"),
    ("x=4x4x48", "3 axes given for input 'x', it has 2"),
    ("x=4x47", "axis 1 of input 'x' is fixed at 48 by the model, 47 was asked for"),
    ("x=0x48", "axis 0 of input 'x' is 0, it must be 1 or more"),
    ("x=4by48", "not a shape: 'x=4by48'"),
])  # fmt: skip
def test_a_shape_that_does_not_fit(capsys, shape: str, start: str) -> None:
    save(mlp())
    fails(capsys, 2, start, *COMPILE, "--shape", shape)


def test_an_unknown_device(capsys) -> None:
    save(mlp())
    fails(capsys, 2, "unknown device 'hots'", *COMPILE, *SHAPE, "--device", "hots")


@pytest.mark.parametrize(("arrays", "start"), [
    ({"y": np.zeros((8, 48), np.float32)}, "the model has no input 'y'"),
    ({"x": np.zeros((8, 47), np.float32)}, "axis 1 has size 47"),
    ({"x": np.zeros((8, 3, 3, 48), np.float32)}, "the stacked array has 4 axes"),
    ({"x": np.zeros((8, 48))}, "the array is float64, the model takes float32"),
    ({"x": np.zeros((8, 48), np.int64)}, "the array is int64, the model takes float32"),
    ({"x": np.full((8, 48), np.nan, np.float32)}, "48 of 48 values are NaN or infinite"),
    ({"x": np.zeros((0, 48), np.float32)}, "the calibration source holds no samples"),
    ({"x": np.zeros((8, 48), np.float32), "z": np.zeros(3)}, "the model has no input 'z'"),
    ({"x": np.array([None, {}], object)}, "the array holds Python objects"),
], ids=["name", "size", "rank", "type", "integers", "nan", "empty", "one too many", "objects"])  # fmt: skip
def test_calibration_that_does_not_fit(capsys, arrays: dict[str, np.ndarray], start: str) -> None:
    save(mlp())
    np.savez("data.npz", **arrays)
    fails(capsys, 2, start, *COMPILE, "--calibration", "data.npz")


@pytest.mark.parametrize(("source", "start"), [
    ("nothing.npz", "calibration data not found"),
    ("empty", "the calibration folder holds no .npz file"),
    ("damaged.npz", "not a readable .npz file"),
    ("no_such_module:f", "there is no module 'no_such_module'"),
])
def test_calibration_that_cannot_be_read(capsys, source: str, start: str) -> None:
    save(mlp())
    Path("empty").mkdir()
    Path("damaged.npz").write_bytes(b"PK\x03\x04 and then nothing")
    fails(capsys, 2, start, *COMPILE, "--calibration", source)


# Plans


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A folder with a network and what compiling it gave."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        keep_steady_time(patch)
        save(mlp(), str(folder / "net.onnx"))
        graphprune.compile(folder / "net.onnx", target_speedup=1.4, calibration=feeds(4, 48),
                           passes="width").save(folder / "out")  # fmt: skip
    return folder


def replaying(compiled: Path, **files: bytes) -> tuple[str, ...]:
    """The command that replays a plan, some of whose files hold something else."""
    Path("out").mkdir()
    for name in ("plan.json", "plan.npz"):
        Path("out", name).write_bytes(files.get(name.replace(".", "_"), (compiled / "out" / name).read_bytes()))
    save((compiled / "net.onnx").read_bytes())
    return "replay", "out/plan.json", "net.onnx", "--out", "again.onnx"


def test_the_plan_as_it_is_replays(compiled, capsys) -> None:
    assert main(list(replaying(compiled))) == 0, capsys.readouterr().err
    assert Path("again.onnx").read_bytes() == (compiled / "out/model.onnx").read_bytes()


def test_a_plan_for_another_model(compiled, capsys) -> None:
    command = replaying(compiled)
    save(changed(lambda model: setattr(model, "producer_name", "somebody else")))
    fails(capsys, 2, "this plan was made for another model", *command)


@pytest.mark.parametrize("spoil", [lambda d: d[:-40], lambda d: b"", lambda d: d[:200] + b"?" + d[201:]],
                         ids=["cut short", "empty", "one byte"])  # fmt: skip
def test_tensors_that_are_not_those_of_the_plan(compiled, capsys, spoil) -> None:
    data = spoil((compiled / "out/plan.npz").read_bytes())
    fails(capsys, 2, "plan.npz is not the one this plan was written with", *replaying(compiled, plan_npz=data))


def test_tensors_that_are_missing(compiled, capsys) -> None:
    command = replaying(compiled)
    Path("out/plan.npz").unlink()
    fails(capsys, 2, "there is no file ", *command)


@pytest.mark.parametrize(("content", "start"), [
    (b"", "not a plan"), (b"{", "not a plan"), (b"[]", "not a plan of schema 1"), (b"[" * 100_000, "not a plan"),
    (b"\xff\xfe\x00", "not a plan"), (b'{"schema": 2}', "not a plan of schema 1"),
    (b'{"schema": 1}', "plan.npz is not the one this plan was written with"),
], ids=["empty", "cut short", "a list", "deep", "bytes", "a newer one", "nothing in it"])  # fmt: skip
def test_a_plan_that_is_none(compiled, capsys, content: bytes, start: str) -> None:
    fails(capsys, 2, start, *replaying(compiled, plan_json=content))


@pytest.mark.parametrize(("field", "value"), [
    ("choices", {"width": {"no such group": {"keep": [0]}}}), ("choices", {"no such pass": {}}), ("choices", [1]),
    ("choices", None), ("choices", {"width": [1]}), ("choices", {"width": {"": 3}}), ("traced_at", {"y": [3, 48]}),
    ("traced_at", {"x": [3, 5]}), ("traced_at", {"x": "a"}), ("traced_at", 3), ("tensors", ["a", "b", "c"]),
    ("tensors", 1), ("unknown", 1), ("model_sha256", 7), ("lowerings", ["no such rewrite"]), ("lowerings", 4),
], ids=str)  # fmt: skip
def test_a_plan_with_a_field_that_makes_no_sense(compiled, capsys, field: str, value: object) -> None:
    plan = json.loads((compiled / "out/plan.json").read_bytes()) | {field: value}
    code = main(list(replaying(compiled, plan_json=json.dumps(plan).encode())))
    err = capsys.readouterr().err
    assert code in (2, 3) and DEFECT not in err, err
    assert not Path("again.onnx").exists()


@pytest.mark.parametrize("keep", [
    [0, 1, 1], [5, 3], [-1, 2], [0, 100_000], [], [0.5], [True], ["a"], "all", None, [[0]],
], ids=str)  # fmt: skip
def test_a_plan_that_keeps_what_is_not_there(compiled, capsys, keep: object) -> None:
    plan = json.loads((compiled / "out/plan.json").read_bytes())
    for choice in plan["choices"]["width"].values():
        choice["keep"] = keep
    command = replaying(compiled, plan_json=json.dumps(plan).encode())
    fails(capsys, 2, "the plan does not fit the model: 'Gemm_", *command)


# Places that cannot be written to


@pytest.mark.parametrize("out", ["net.onnx", "net.onnx/below", "/proc/nothing/here"])
def test_a_place_that_cannot_be_written_to_fails_before_the_work(capsys, monkeypatch, out: str) -> None:
    monkeypatch.setattr(graphprune.driver, "compiler", lambda *a, **k: pytest.fail("work was begun"))
    save(mlp())
    code, start = (5, "the system refused") if "proc" in out else (2, "a folder is needed here, but this is a file")
    fails(capsys, code, start, *COMPILE, *SHAPE, "--out", out)


def test_the_result_never_goes_over_the_model(compiled, capsys) -> None:
    command = replaying(compiled)
    fails(capsys, 2, "the result would be written over the model itself", *command[:-1], "net.onnx")


# Two models that are not of one network


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_models_with_different_inputs(capsys, command: str) -> None:
    save(mlp())
    save(ir.to_proto(model_of("result = Relu(other)", {"other": ("N", 48)})), "other.onnx")
    fails(capsys, 2, "the two models take different inputs", command, "net.onnx", "other.onnx", *SHAPE)


def test_models_with_different_outputs(capsys) -> None:
    save(mlp())
    save(ir.to_proto(model_of("another = Relu(x)", {"x": ("N", 48)}, outputs=("another",))), "other.onnx")
    fails(capsys, 2, "the two models have different outputs", "verify", "net.onnx", "other.onnx", *SHAPE)
