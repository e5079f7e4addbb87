"""Measuring a GPU's kernels with PyTorch, tried out on the processor: the GPU's own clock and graphs are not tested."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="kernels in PyTorch are not tested: torch is not installed")

from graphprune.backends import open_profiler, torch_kernels  # noqa: E402
from graphprune.backends.torch_kernels import TorchKernels  # noqa: E402
from graphprune.devices import find, known  # noqa: E402
from graphprune.devices.correction import Corrections  # noqa: E402
from graphprune.devices.device import parse  # noqa: E402
from graphprune.devices.roofline import milliseconds  # noqa: E402
from graphprune.devices.table import read  # noqa: E402
from graphprune.errors import EnvironmentFault, UsageError  # noqa: E402
from graphprune.profiling import profile  # noqa: E402
from graphprune.progress import Silent  # noqa: E402


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_kernels, "_PRODUCTS", 2e7)
    monkeypatch.setattr(torch_kernels, "_ROUNDS", 2)
    monkeypatch.setattr(torch_kernels, "_IN_A_ROW", 3)


def test_the_work_is_that_of_the_kernel() -> None:
    """What a row says is computed and moved, against the tensors that really went in and came out."""
    kernels, seen = TorchKernels("fp32", on="cpu"), set()
    for kind in ("_linear", "_convolution", "_attention", "_elements", "_depthwise"):
        for seed in range(6):
            work, operands, run = getattr(kernels, kind)(np.random.default_rng([seed, 5]))
            given = operands()
            y = run(*given)
            moved = sum(t.numel() for t in given) + y.numel()
            assert work.bytes == 4 * moved, work
            if kind == "_linear":
                assert (work.m, work.n, work.k) == (given[0].shape[0], given[1].shape[0], given[0].shape[1])
            if kind == "_convolution":
                assert work.products == 2.0 * y.numel() * given[1][0].numel()
            if kind == "_attention":
                b, h, t, d = given[0].shape
                assert work.products == 4.0 * b * h * t * t * d
            seen.add(work.op)
    assert {"MatMul", "attention", "Conv depthwise"} < seen


def test_a_table_in_16_bits_is_made_and_read_again(tmp_path: Path) -> None:
    kernels = TorchKernels("bf16", on="cpu")
    table = profile(kernels, tmp_path / "t.json", Silent(), seconds=0)
    assert read(tmp_path / "t.json") == table and {r.work.precision for r in table.rows} == {"bf16"}
    device = find(str(tmp_path / "t.json")).device
    assert device.runs("bf16") and all(milliseconds(r.work, device) > 0 for r in table.rows)
    assert Corrections(table.rows, device).of(table.rows[0].work).inside


def test_probes_are_the_same_for_the_same_seed() -> None:
    kernels = TorchKernels("fp32", on="cpu")
    first, again = ([name for name, _ in itertools.islice(kernels.probes(1), 12)] for _ in range(2))
    assert first == again and len(set(first)) == 12


def test_a_gpu_of_the_database_keeps_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = TorchKernels("fp16", on="cpu")
    key = kernels.key()
    monkeypatch.setattr(kernels, "key", lambda: type(key)("NVIDIA H100 80GB HBM3", key.runtime))
    plain = kernels.described([])
    assert plain["title"] == known()["h100"].title and plain["peak"]["fp16"]["value"] == 989.4
    assert parse(plain, "h100", "here").figures.keys() == known()["h100"].figures.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: that there is none cannot be tested")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(EnvironmentFault, match="no GPU"):
        open_profiler("cuda")
    with pytest.raises(UsageError, match="cannot be measured"):
        TorchKernels("fp8", on="cpu")
