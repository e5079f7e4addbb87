"""What the driver of a GPU is asked, with a program in the place of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphprune.backends import nvidia, open_backend
from graphprune.devices.table import Key, Row, Table
from graphprune.devices.work import Work
from tests.graphs import model_of

SAID = "NVIDIA H100 80GB HBM3, 590.44, 1980 MHz, 2619 MHz, 1980 MHz"


def says(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{text}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_name_driver_and_clocks_are_told(tmp_path: Path, monkeypatch) -> None:
    says(tmp_path, monkeypatch, SAID)
    assert nvidia.driver() == {"name": "NVIDIA H100 80GB HBM3", "driver_version": "590.44",
                               "clocks": "clocks.sm 1980 MHz, clocks.mem 2619 MHz, clocks.max.sm 1980 MHz"}  # fmt: skip


@pytest.mark.parametrize(("text", "code"), [("NVIDIA-SMI has failed", 9), ("", 0)])
def test_a_driver_that_does_not_answer_is_none(tmp_path: Path, monkeypatch, text: str, code: int) -> None:
    says(tmp_path, monkeypatch, text, code)
    assert not nvidia.driver().get("name")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert nvidia.driver() == {}


@pytest.mark.parametrize(("gpu", "driver", "warned"), [
    ("NVIDIA H100 80GB HBM3", "580.82", True), ("NVIDIA H100 80GB HBM3", "590.44", False),
    ("NVIDIA H200", "580.82", False),
])  # fmt: skip
def test_a_table_of_the_gpu_that_is_here_warns_of_another_driver_with_both_versions(
    tmp_path: Path, monkeypatch, gpu: str, driver: str, warned: bool
) -> None:
    rows = tuple(Row(Work("MatMul", "matrix", m=n, n=n, k=n, inputs=4.0 * n * n, weights=2.0 * n * n,
                          outputs=2.0 * n * n, precision="fp16"), 1e-9 * n**2, 0.01) for n in (64, 128, 256, 512))
    device = {"title": gpu, "kind": "gpu", "family": "hopper", "precision": "fp16",
              "sources": {"s": {"title": "a test", "date": "2026"}},
              "peak": {"fp16": {"value": 900, "source": "s"}, "fp32": {"value": 60, "source": "s"}},
              "units": {"count": {"value": 132, "source": "s"}, "clock_ghz": {"value": 1.98, "source": "s"}},
              "memory": {"gb_s": {"value": 3350, "source": "s"}}, "cache": {}}  # fmt: skip
    table = Table(Key(gpu, "torch 2.13", driver), device, rows)
    path = tmp_path / "gpu.json"
    path.write_text(table.to_json())
    says(tmp_path, monkeypatch, SAID)
    backend = open_backend(str(path))
    model = model_of("result = MatMul(x, w)", {"x": (64, 64)}, {"w": (64, 64)})
    feed = {"x": np.ones((64, 64), np.float32)}
    _, notes = backend.package(model, [feed], feed, backend.measure([model], feed)[0])
    stale = [n for n in notes if "stale" in n]
    assert bool(stale) == warned and all("580.82" in n and "590.44" in n for n in stale)
