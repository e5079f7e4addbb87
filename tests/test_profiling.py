"""Measuring a machine: probes are real networks, nothing measured is lost, and what comes out predicts."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphprune.backends import open_backend, open_profiler
from graphprune.backends.network_kernels import NetworkKernels
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.cli import main
from graphprune.devices import find
from graphprune.devices.probes import probes
from graphprune.devices.table import Key, read
from graphprune.errors import UsageError
from graphprune.profiling import profile
from graphprune.progress import Silent

MANY = 24


def test_probes_are_valid_vary_and_are_the_same_for_the_same_seed() -> None:
    first, again, other = (list(itertools.islice(probes(seed), MANY)) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        assert a.name == b.name and a.model.SerializeToString() == b.model.SerializeToString()
    assert any(a.model != b.model for a, b in zip(first, other, strict=True))
    operators: Counter[str] = Counter()
    for probe in first:
        onnx.checker.check_model(probe.model)
        onnx.shape_inference.infer_shapes(probe.model, strict_mode=True)
        operators.update(node.op_type for node in probe.model.graph.node)
        assert all(np.isfinite(a).all() for a in probe.feed.values())
    assert operators.keys() >= {"Conv", "MatMul", "Gemm", "Softmax", "LayerNormalization", "LSTM", "Add", "Transpose"}


def test_every_kernel_of_a_probe_has_its_work() -> None:
    runtime = OnnxRuntime()
    for probe in itertools.islice(probes(3), 6):
        found = runtime.executed(probe.model, probe.feed)
        assert found and all(e.work is not None for e in found), probe.name
        assert sum(e.work.products for e in found) > 0 or probe.name.startswith("elements")


class Few(OnnxRuntime):
    """Stops after some probes, as if the power went."""

    def __init__(self, most: int = 10**6, runtime: str = "") -> None:
        super().__init__()
        self.most, self.ran, self.called = most, 0, runtime

    def executed(self, model, feed, *, repeats=1):
        if self.ran == self.most:
            raise KeyboardInterrupt
        self.ran += 1
        return super().executed(model, feed, repeats=1)

    def key(self) -> Key:
        return replace(super().key(), runtime=self.called or super().key().runtime)


def some(most: int = 10**6, runtime: str = "") -> NetworkKernels:
    return NetworkKernels(Few(most, runtime))


def test_an_interrupted_run_goes_on_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    with pytest.raises(KeyboardInterrupt):
        profile(some(5), out, Silent(), seconds=0)
    assert not out.exists() and (tmp_path / "t.json.partial").exists()
    with (tmp_path / "t.json.partial").open("a") as file:
        file.write('{"key": {"dev')  # cut short
    rest = some()
    table = profile(rest, out, Silent(), seconds=0)
    assert rest.runtime.ran == 12 - 5
    assert read(out) == table and not (tmp_path / "t.json.partial").exists()
    device = find(str(out)).device
    assert device.kind == "cpu" and device.peak("fp32") > 1e9 and device.bandwidth > 1e8
    assert all(f.source.startswith("graphprune profile") for f in device.figures.values())


def test_what_another_machine_has_left_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    with pytest.raises(KeyboardInterrupt):
        profile(some(2, "another runtime"), out, Silent(), seconds=0)
    with pytest.raises(UsageError, match="measured elsewhere") as caught:
        profile(some(), out, Silent(), seconds=0)
    assert "remove" in caught.value.fix


def test_a_table_is_a_device_to_compile_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here.json"
    assert main(["profile", "-o", str(out), "--seconds", "1", "--quiet"]) == 0
    assert "MatMul" in capsys.readouterr().out
    assert main(["devices", "--show", str(out)]) == 0
    assert "measured on it" in capsys.readouterr().out
    assert main(["profile", "-o", str(out), "--device", "a100", "--seconds", "1"]) == 2


def test_a_table_of_another_runtime_is_used_with_a_warning_of_both_versions(tmp_path: Path) -> None:
    table = profile(some(), tmp_path / "t.json", Silent(), seconds=0)
    old = replace(table, key=replace(table.key, runtime="onnxruntime 1.0.0"))
    (tmp_path / "old.json").write_text(old.to_json())
    model, feed = next((p.model, p.feed) for p in probes(5))
    for name, stale in (("t.json", False), ("old.json", True)):
        backend = open_backend(str(tmp_path / name))
        _, notes = backend.package(model, [feed], feed, backend.measure([model], feed)[0])
        said = [n for n in notes if "stale" in n]
        assert bool(said) == stale and all("1.0.0" in n and table.key.runtime in n for n in said)


def test_only_what_is_here_can_be_measured() -> None:
    with pytest.raises(UsageError, match="cannot be measured here") as caught:
        open_profiler("a100")
    assert "host" in caught.value.fix and "cuda" in caught.value.fix
