"""Engines on the GPU of this machine. TensorRT and a GPU are not here: what builds and times engines is replaced by one
whose engines run in ONNX Runtime and take a third more than is predicted, and then some for their weights. What calls
TensorRT's own API is in the programs of the folder, see test_tensorrt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import graphprune
from graphprune.backends import open_backend
from graphprune.backends import tensorrt as made_for
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.backends.tensorrt_here import Installed, TensorRT
from graphprune.errors import EnvironmentFault, ModelError
from graphprune.load import save_bytes
from graphprune.target import speedup
from tests.graphs import wide_layers
from tests.test_tensorrt import Stub


class Fake:
    """Engines that are their ONNX files. wrong: what their outputs are off by. fails: what the build says."""

    def __init__(self, gpu: str = "NVIDIA H100 80GB HBM3", wrong: float = 0.0, fails: str = "") -> None:
        self.name, self.wrong, self.fails = gpu, wrong, fails
        self.built: list[str] = []
        self.caches: list[bool] = []

    def gpu(self) -> str:
        return self.name

    def version(self) -> str:
        return "11.4"

    def build(self, folder: Path) -> None:
        if self.fails:
            raise ModelError("TensorRT did not build the engine", at=self.fails)
        self.built.append(folder.name)
        self.caches.append((folder / made_for.CACHE).exists())
        (folder / made_for.ENGINE).write_bytes((folder / made_for.ONNX).read_bytes())
        (folder / made_for.CACHE).write_bytes(b"times")

    def load(self, folder: Path) -> bytes:
        return (folder / made_for.ENGINE).read_bytes()

    def block_ms(self, loaded: bytes, runs: int) -> list[float]:
        model = onnx.load_from_string(loaded)
        predicted = sum(k.ms for k in open_backend("h100").profile(model, AT))
        return [1.33 * predicted + 1e-9 * sum(int(np.prod(t.dims)) for t in model.graph.initializer)] * runs

    def run(self, loaded: bytes, feed):
        found = OnnxRuntime().load(loaded).run(feed)
        return {name: array * (1 + self.wrong) for name, array in found.items()}


@pytest.fixture(scope="module")
def model() -> bytes:
    return save_bytes(wide_layers())


ROWS = 1024
AT = {"x": np.zeros((1, ROWS, 64), np.float32)}
FEED = {"x": np.random.default_rng(0).normal(size=(1, 16, 64)).astype(np.float32)}


def test_a_compilation_measures_engines_and_delivers_the_last(model: bytes, monkeypatch, tmp_path: Path) -> None:
    engines = Fake()
    monkeypatch.setattr("graphprune.compiler._PRICING_SECONDS", 0.0)
    monkeypatch.setattr("graphprune.driver.open_backend", lambda *_: TensorRT(engines=engines))
    feeds = [{"x": np.random.default_rng(i).normal(size=(1, 16, 64)).astype(np.float32)} for i in range(12)]
    result = graphprune.compile(model, target_speedup=2, device="tensorrt", calibration=feeds, passes="width",
                                shapes={"x": (1, ROWS, 64)})  # fmt: skip
    assert result.report.reached.is_measured and 2 <= result.report.reached.speedup < 2.2
    result.save(tmp_path / "out")
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert {made_for.ENGINE, made_for.CACHE, made_for.ONNX, *made_for.PROGRAMS} <= written
    assert json.loads((tmp_path / "out" / made_for.PLAN).read_text())["built"] is True
    assert "TensorRT 11.4, NVIDIA H100" in result.report.environment["runtime"]
    assert not any("nothing was run" in w or "no engine" in w for w in result.report.warnings)
    assert len(engines.built) < 25, "candidates are not all built"
    assert not engines.caches[0] and all(engines.caches[1:]), "the times of tactics are handed on"


def test_the_same_engine_is_built_once_and_times_are_taken_in_turns(model: bytes) -> None:
    engines = Fake()
    backend = TensorRT(engines=engines)
    timings = backend.measure([model, model], FEED, min_rounds=5)
    assert len(engines.built) == 1 and [t.rounds for t in timings] == [5, 5]
    assert speedup(*timings).value == 1.0 and timings[0].source == "measured"
    whole = sum(k.ms for k in backend.profile(model, FEED))
    assert whole == pytest.approx(timings[0].median_ms), "predictions are on the scale of the engine"


def test_wrong_outputs_of_an_engine_are_said(model: bytes) -> None:
    for wrong, said in ((0.0, 0), (0.1, 1), (float("nan"), 1)):
        backend = TensorRT(engines=Fake(wrong=wrong))
        (timing,) = backend.measure([model], FEED)
        _, notes = backend.package(model, [FEED], FEED, timing)
        assert sum("differs from ONNX Runtime's" in n for n in notes) == said


def test_what_tensorrt_says_of_a_failed_build_is_the_error(model: bytes) -> None:
    with pytest.raises(ModelError, match="did not build") as error:
        TensorRT(engines=Fake(fails="no implementation for node m1")).measure([model], FEED)
    assert "m1" in error.value.at


@pytest.mark.parametrize(("gpu", "name"), [
    ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-PCIE-40GB", "a100"), ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ("Tesla T4", "t4"), ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"), ("NVIDIA A10", "a10"),
])  # fmt: skip
def test_a_gpu_is_known_by_the_name_its_driver_has_for_it(gpu: str, name: str) -> None:
    assert TensorRT(engines=Fake(gpu)).described.device.name == name


def test_a_gpu_that_nothing_is_known_of_is_an_error_with_a_way_out() -> None:
    with pytest.raises(EnvironmentFault, match="Quadro") as error:
        TensorRT(engines=Fake("NVIDIA Quadro P400"))
    assert "graphprune profile" in error.value.fix


def test_without_tensorrt_the_error_says_what_to_install_and_what_else_to_do(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentFault) as error:
        open_backend("tensorrt")
    assert "graphprune[tensorrt]" in error.value.fix and "--device h100" in error.value.fix


def test_the_build_is_the_folders_own_program(model: bytes, tmp_path: Path, monkeypatch) -> None:
    """In a process of its own, where the stub of the API stands in for TensorRT."""
    home, stubs = tmp_path / "folder", tmp_path / "stubs"
    home.mkdir()
    stubs.mkdir()
    backend = TensorRT(engines=Fake())
    files, _ = backend._folder(model, [FEED], FEED, backend.measure([model], FEED)[0])
    for name, data in files.items():
        (home / name).write_bytes(data)
    root = Path(__file__).resolve().parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{stubs}:{root}")
    stub = "import sys\nfrom tests.test_tensorrt import Stub\nsys.modules['tensorrt'] = Stub({})\n"
    installed = Installed.__new__(Installed)
    (stubs / "tensorrt.py").write_text(stub.format(""))
    installed.build(home)
    assert (home / made_for.ENGINE).read_bytes() == b"engine"
    (home / made_for.ENGINE).unlink()
    (stubs / "tensorrt.py").write_text(stub.format("parses=False"))
    with pytest.raises(ModelError) as error:
        installed.build(home)
    assert "No importer registered for op: Odd" in error.value.at


def test_the_engine_becomes_a_torch_module_of_torch_tensorrt(model: bytes, tmp_path: Path, monkeypatch) -> None:
    """torch-tensorrt is not here: its class is replaced by one that takes the arguments that it has."""
    backend = TensorRT(engines=Fake())
    files, _ = backend.package(model, [FEED], FEED, backend.measure([model], FEED)[0])
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    taken = {}

    def module(*, serialized_engine: bytes, input_binding_names: list[str], output_binding_names: list[str]):
        taken.update(engine=serialized_engine, names=(input_binding_names, output_binding_names))
        return "module"

    monkeypatch.setitem(sys.modules, "torch_tensorrt.runtime", SimpleNamespace(PythonTorchTensorRTModule=module))
    monkeypatch.syspath_prepend(tmp_path)
    import torch_engine

    assert torch_engine.load() == "module" and taken["engine"] == files[made_for.ENGINE]
    assert taken["names"] == (["x"], ["result"])
    assert json.loads(files[made_for.PLAN])["types"] == {"x": "float32"}


assert Stub  # the stub process imports it from test_tensorrt
