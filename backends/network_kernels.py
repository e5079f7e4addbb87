"""Kernels of ONNX Runtime on this processor, timed inside random networks (see `devices.probes`)."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.devices.device import BYTES
from graphprune.devices.probes import Probe, probes
from graphprune.devices.table import Key, Row
from graphprune.errors import EnvironmentFault

_REPEATS = 15
_ALONE_SECONDS = 0.3
_LEAST_LEFT = 0.1
_LARGE = 2e7
"""Operations of a product that shows how fast products can be."""
_STREAMED = ("Add", "Mul", "Sub", "Max", "Relu", "Neg", "Abs")
"""Operators whose time is that of the bytes they move."""
_TINY = 4096


class NetworkKernels:
    """See `profiling.Profiler`."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        self.runtime = runtime

    def key(self) -> Key:
        return self.runtime.key()

    def probes(self, seed: int) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
        for probe in probes(seed):
            yield probe.name, partial(self._rows, probe)

    def _rows(self, probe: Probe) -> list[Row]:
        """One row for each kernel; the kernels of one network that do the same are one, with their spread.

        A profiler takes time for each kernel that it writes down: what all together are longer than a run that nobody
        looks at is taken off in equal parts.
        """
        same: dict[Any, list[float]] = {}
        executed = self.runtime.executed(probe.model, probe.feed, repeats=_REPEATS)
        (alone,) = self.runtime.measure([probe.model], probe.feed, max_seconds=_ALONE_SECONDS)
        looking = (sum(e.kernel.ms for e in executed) - alone.median_ms) / max(len(executed), 1)
        for found in executed:
            if found.work is not None and found.kernel.ms > 0:
                ms = max(found.kernel.ms - looking, _LEAST_LEFT * found.kernel.ms)
                same.setdefault(found.work, []).append(ms)
        return [Row(work, float(np.median(ms)), float(np.ptp(ms) / 2 / np.median(ms)))
                for work, ms in same.items()]  # fmt: skip

    def described(self, rows: Sequence[Row]) -> dict[str, Any]:
        """This processor, from what was measured."""
        key = self.key()
        rates = {p: [r.work.products / r.ms * 1e3 for r in rows if r.work.precision == p and r.work.products > _LARGE]
                 for p in BYTES}  # fmt: skip
        if not rates["fp32"]:
            raise EnvironmentFault("too few kernels were measured to know this machine", fix="give more --seconds")
        streamed = [(r.work.bytes, r.work.bytes / r.ms * 1e3) for r in rows if r.work.op in _STREAMED]
        tiny = [r.ms for r in rows if r.work.kind != "matrix" and r.work.bytes < _TINY]
        figure = lambda value: {"value": float(f"{value:.4g}"), "source": "measured"}  # noqa: E731
        l2, l3 = caches()
        found: dict[str, Any] = {
            "title": key.device, "kind": "cpu", "family": platform.machine(), "precision": "fp32",
            "sources": {"measured": {"title": f"graphprune profile, {key.runtime}", "date": key.date}},
            "peak": {p: figure(np.quantile(seen, 0.98) * 1e-12) for p, seen in rates.items() if seen},
            "units": {"count": figure(key.threads), "clock_ghz": figure(clock_ghz())},
            "memory": {"gb_s": figure(copied_gb_s())}, "cache": {},
        }  # fmt: skip
        for level, low, high in (("l2", 0, l2), ("l3", l2, l3)):
            inside = [rate for size, rate in streamed if low < 2 * size <= high and size > 16 * _TINY]
            if inside:
                found["cache"] |= {f"{level}_mb": figure(high / 2**20),
                                   f"{level}_gb_s": figure(np.quantile(inside, 0.8) * 1e-9 / key.threads)}  # fmt: skip
        if tiny:
            found["overhead"] = {"launch_us": figure(1e3 * np.quantile(tiny, 0.25))}
        return found


def caches() -> tuple[float, float]:
    """Bytes of the second and third cache of the first processor, as the system says; usual ones where it does not."""
    found = {2: 1.0 * 2**20, 3: 32.0 * 2**20}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level = int((folder / "level").read_text())
            text = (folder / "size").read_text().strip()
            found[level] = float(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return found[2], found[3]


def clock_ghz() -> float:
    """As the system says, for the record: no time is computed of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return float(next(line for line in lines if line.startswith("cpu MHz")).split(":")[1]) / 1e3
    except (OSError, ValueError, IndexError, StopIteration):
        return 1.0


def copied_gb_s(size: int = 2**28) -> float:
    """Bytes read and written per second by a copy that no cache holds, in GB/s."""
    source, target = np.ones(size // 8), np.empty(size // 8)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * size / min(times) / 1e9

