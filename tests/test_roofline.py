"""Laws of the analytic times: no kernel beats the device, more work is never faster, and tiles and waves show."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.devices import known
from graphprune.devices.device import BYTES
from graphprune.devices.roofline import bandwidth, milliseconds
from graphprune.devices.work import Work

SIZES = st.integers(1, 4096)
NAMES = st.sampled_from(sorted(known()))


def product(m: int, n: int, k: int, precision: str = "fp16", batch: int = 1) -> Work:
    size = BYTES[precision]
    return Work("MatMul", "matrix", inputs=batch * m * k * size, outputs=batch * m * n * size, weights=n * k * size,
                batch=batch, m=m, n=n, k=k, precision=precision)  # fmt: skip


@given(NAMES, SIZES, SIZES, SIZES, st.sampled_from(["fp32", "fp16", "int8"]))
@settings(max_examples=200, deadline=None)
def test_nothing_is_faster_than_the_device(name: str, m: int, n: int, k: int, precision: str) -> None:
    device, work = known()[name], product(m, n, k, precision)
    ms = milliseconds(work, device)
    assert ms * 1e-3 >= work.products / (device.peak(precision) * device.count)
    assert ms * 1e-3 >= work.bytes / max(bandwidth(device, 1), device.bandwidth)


@given(NAMES, SIZES, SIZES, SIZES, st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_more_work_is_never_faster(name: str, m: int, n: int, k: int, more: int) -> None:
    device = known()[name]
    base = milliseconds(product(m, n, k), device)
    grown = (product(m + more, n, k), product(m, n + more, k), product(m, n, k + more), product(m, n, k, batch=2))
    for larger in grown:
        assert milliseconds(larger, device) >= base * (1 - 1e-9)


@given(NAMES, SIZES, SIZES, SIZES)
@settings(max_examples=100, deadline=None)
def test_twice_the_memory_and_cache_bandwidth_is_never_slower(name: str, m: int, n: int, k: int) -> None:
    device, work = known()[name], product(m, n, k)
    faster = replace(device, figures={
        key: replace(f, value=f.value * (2 if key.endswith("gb_s") else 1)) for key, f in device.figures.items()
    })  # fmt: skip
    assert milliseconds(work, faster) <= milliseconds(work, device)


def test_one_tile_more_than_a_wave_costs_another_wave() -> None:
    a100 = known()["a100"]
    m, n = round(a100.figure("tile.m")), round(a100.figure("tile.n"))
    whole = milliseconds(product(m, n, 8192, batch=108 * 8), a100)
    more = milliseconds(product(m, n, 8192, batch=108 * 8 + 1), a100)
    assert more / whole == pytest.approx(9 / 8, rel=0.02)


@pytest.mark.parametrize(
    "name, tflops", [("a100", (200, 290)), ("h100", (600, 850)), ("t4", (40, 60)), ("v100", (80, 115))]
)
def test_large_products_run_at_the_rates_that_libraries_are_known_for(name: str, tflops: tuple[float, float]) -> None:
    work = product(8192, 8192, 8192)
    reached = work.products / milliseconds(work, known()[name]) * 1e-9
    assert tflops[0] < reached < tflops[1]


def test_a_small_kernel_is_its_launch() -> None:
    h100 = known()["h100"]
    tiny = Work("Add", "vector", inputs=64, outputs=64, operations=16)
    assert milliseconds(tiny, h100) == pytest.approx(h100.figure("overhead.launch_us") * 1e-3, rel=0.01)
    assert milliseconds(Work("Reshape", "view"), h100) == 0


def test_weights_stay_in_a_cache_only_if_all_of_them_fit() -> None:
    h100, work = known()["h100"], Work("Gemm", "matrix", inputs=2048, outputs=2048, weights=8e6, m=1, n=1024, k=4096,
                                       precision="fp16")  # fmt: skip
    assert milliseconds(work, h100, held=8e6) < milliseconds(work, h100, held=200e6)


def test_threads_share_the_work_of_a_processor() -> None:
    epyc, work = known()["epyc"], product(4096, 4096, 4096, "fp32")
    assert milliseconds(work, epyc.using(1)) > 20 * milliseconds(work, epyc.using(32))
