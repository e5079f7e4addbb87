"""Measure what kernels take on this machine, and write it as a table that predicts other models.

Every probe is kept as it is done, so that a run that was interrupted goes on where it was. What a probe is, and how it
is timed, is the profiler's affair (`backends`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from graphprune.devices.table import Key, Row, Table, plain_row, row_of
from graphprune.errors import UsageError
from graphprune.files import atomic_write
from graphprune.progress import Progress

_LEAST_PROBES = 12


class Profiler(Protocol):
    """Times kernels of one runtime on one device."""

    def key(self) -> Key:
        """What the times hold for."""
        ...

    def probes(self, seed: int) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
        """Without end: the name of a probe, the same for the same seed, and what measures it."""
        ...

    def described(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The device as its own file would have it (see `devices.device`). Raises EnvironmentFault if too little was
        measured to know it."""
        ...


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
        for n, (name, measure) in enumerate(profiler.probes(seed)):
            elapsed = time.monotonic() - started
            if n >= _LEAST_PROBES and elapsed > seconds:
                break
            if name not in done:
                found = measure()
                rows += found
                done.append(name)
                _keep(partial, key, name, found)
            now = round(100 * min(0.99, max(elapsed / max(seconds, 1e-3), n / 1000)))
            step(max(0, now - shown))
            shown = max(shown, now)
    table = Table(key, profiler.described(rows), tuple(rows))
    atomic_write(out, table.to_json().encode())
    partial.unlink(missing_ok=True)
    return table


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
