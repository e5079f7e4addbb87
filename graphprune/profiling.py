"""Measure what the kernels of a runtime take on this machine, and write it as a table that predicts other models.

Probes are run one after the other and kept as they are done, so that a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphprune.devices.device import BYTES
from graphprune.devices.probes import Probe, probes
from graphprune.devices.table import Key, Row, Table, plain_row, row_of
from graphprune.errors import EnvironmentFault, UsageError
from graphprune.files import atomic_write
from graphprune.progress import Progress
from graphprune.target import Timing

_REPEATS = 15
_LEAST_PROBES = 12
_ALONE_SECONDS = 0.3
_LEAST_LEFT = 0.1
_LARGE = 2e7
"""Operations of a product that shows how fast products can be."""
_STREAMED = ("Add", "Mul", "Sub", "Max", "Relu", "Neg", "Abs")
"""Operators whose time is that of the bytes they move."""
_TINY = 4096


class Profiler(Protocol):
    """What runs probes; `backends.onnxruntime.OnnxRuntime` is one."""

    threads: int

    def executed(self, model: Any, feed: Mapping[str, np.ndarray], *, repeats: int) -> Sequence[Any]: ...

    def measure(self, models: Sequence[Any], feed: Mapping[str, np.ndarray], **limits: float) -> Sequence[Timing]: ...

    def key(self) -> Key: ...


def profile(
    profiler: Profiler, out: Path, progress: Progress, *, seconds: float = 120.0, seed: int = 0
) -> Table:
    """Run probes for about `seconds` and write the table to `out`; whatever an interrupted run has left beside it is
    taken over. Raises UsageError where that was measured elsewhere."""
    key = profiler.key()
    partial = out.with_name(f"{out.name}.partial")
    rows, done = _left(partial, key)
    started = time.monotonic()
    with progress.stage("profile", 100) as step:
        shown = 0
        for n, probe in enumerate(probes(seed)):
            elapsed = time.monotonic() - started
            if n >= _LEAST_PROBES and elapsed > seconds:
                break
            if probe.name not in done:
                found = _rows(profiler, probe)
                rows += found
                done.append(probe.name)
                _keep(partial, key, probe.name, found)
            now = round(100 * min(0.99, max(elapsed / max(seconds, 1e-3), n / 1000)))
            step(max(0, now - shown))
            shown = max(shown, now)
    table = Table(key, described(rows, key), tuple(rows))
    atomic_write(out, table.to_json().encode())
    partial.unlink(missing_ok=True)
    return table


def _rows(profiler: Profiler, probe: Probe) -> list[Row]:
    """One row for each kernel; the kernels of one network that do the same are one, with the spread of their times.

    A profiler takes time for each kernel that it writes down: what all together are longer than a run that nobody looks
    at is taken off in equal parts.
    """
    same: dict[Any, list[float]] = {}
    executed = profiler.executed(probe.model, probe.feed, repeats=_REPEATS)
    (alone,) = profiler.measure([probe.model], probe.feed, max_seconds=_ALONE_SECONDS)
    looking = (sum(e.kernel.ms for e in executed) - alone.median_ms) / max(len(executed), 1)
    for found in executed:
        if found.work is not None and found.kernel.ms > 0:
            ms = max(found.kernel.ms - looking, _LEAST_LEFT * found.kernel.ms)
            same.setdefault(found.work, []).append(ms)
    return [Row(work, float(np.median(ms)), float(np.ptp(ms) / 2 / np.median(ms)))
            for work, ms in same.items()]  # fmt: skip


def _left(partial: Path, key: Key) -> tuple[list[Row], list[str]]:
    """What an interrupted run has measured. A last line that was cut short is left out."""
    rows: list[Row] = []
    done: list[str] = []
    if not partial.exists():
        return rows, done
    for line in partial.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            there, name, found = Key(**entry["key"]), entry["probe"], [row_of(r) for r in entry["rows"]]
        except (ValueError, KeyError, TypeError):
            continue
        if (there.device, there.runtime, there.threads) != (key.device, key.runtime, key.threads):
            raise UsageError("what an interrupted run left was measured elsewhere", at=f"{partial}: {there.runtime}",
                             fix=f"remove {partial}")  # fmt: skip
        rows += found
        done.append(name)
    return rows, done


def _keep(partial: Path, key: Key, name: str, found: Sequence[Row]) -> None:
    entry = {"key": asdict(key), "probe": name, "rows": list(map(plain_row, found))}
    with partial.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def described(rows: Sequence[Row], key: Key) -> dict[str, Any]:
    """The description of this processor from what was measured, as a file of a device would have it."""
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

