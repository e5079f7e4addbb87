"""The coverage table: every architecture of the zoo exported, typed, timed and certified, one row each, into docs/.

    python -m tools.coverage [NAME...] [--core | --fast] [--family F] [--jobs 2] [--fresh] [--draw]

Each architecture is measured in a process of its own (tools/coverage_record.py): a crash, a timeout or too little
memory is a row, not an end. Rows are kept in the cache as soon as they are there and taken again from it while neither
graphprune nor the model has changed, so an interrupted run goes on where it was; rows with errors are tried again.
docs/coverage.json is written after every row, the page and the picture beside it at the end. Architectures that were
not asked for keep the rows they have. Exit code 1 where a row of this run shows a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphprune.backends import open_backend
from graphprune.errors import UsageError
from graphprune.files import atomic_write
from graphprune.progress import choose, seconds
from models import zoo
from models.task import cache_dir
from models.zoo.base import Architecture
from tools.coverage_pages import failures, headlines, markdown, percent, picture, reached
from tools.coverage_record import UNFINISHED, Row, described, identity
from tools.shared import console, exit_with

_AROUND = {"graphprune.progress", "graphprune.report", "graphprune.tables"}
"""Modules that are loaded here and have no say in a row."""


class Cache:
    """Rows by architecture, each with a digest of what it depends on: graphprune's sources and the model's bytes."""

    def __init__(self, folder: Path, sources: str) -> None:
        self._folder, self._sources = folder, sources

    def digest(self, model: Path) -> str:
        return hashlib.sha256(self._sources.encode() + model.read_bytes()).hexdigest()

    def get(self, name: str, model: Path | None) -> Row | None:
        """The row of an architecture, if it is of these sources and this model and without an error."""
        try:
            kept = json.loads(self._path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        fits = model is not None and kept["digest"] == self.digest(model) and not kept["row"]["errors"]
        return kept["row"] if fits else None

    def put(self, name: str, model: Path, row: Row) -> None:
        atomic_write(self._path(name), json.dumps({"digest": self.digest(model), "row": row}).encode())

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def sources() -> str:
    """Checksum of the modules of graphprune that a row depends on: those that are loaded to measure one."""
    open_backend("host")
    modules = {m for m in sys.modules if m.startswith("graphprune") and m not in _AROUND}
    files = [sys.modules[m].__file__ for m in sorted({*modules, "tools.coverage_record"})]
    return hashlib.sha256(b"".join(Path(f).read_bytes() for f in files)).hexdigest()


def exported(name: str) -> Path | None:
    """Path of an architecture's model if it is there already, else None: measuring says what is missing."""
    try:
        return zoo.exported(name)
    except Exception:
        return None


async def measured(architecture: Architecture, timeout_s: float, memory_gib: float) -> Row:
    """The row of an architecture, measured in a process of its own that is stopped after `timeout_s`."""
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        into, log = Path(folder, "row.json"), Path(folder, "log")
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tools.coverage_record", architecture.name, str(into), "--memory",
                str(memory_gib), stdout=stream, stderr=stream, stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip
        ended = f"not done after {seconds(timeout_s)}"
        try:
            with contextlib.suppress(TimeoutError):
                code = await asyncio.wait_for(process.wait(), timeout_s)
                ended = how_it_ended(code, log.read_text(errors="replace"))
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return completed(architecture, into, ended)


def how_it_ended(code: int, log: str) -> str:
    """What to say of a process that ended with `code`; "" of one that ended well."""
    if code == 0:
        return ""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory, most likely)" if name == "SIGKILL" else "")
    return f"exit code {code}: {(log.strip().splitlines() or [''])[-1][:300]}"


def completed(architecture: Architecture, written: Path, ended: str) -> Row:
    """The row that a process left behind; `ended` is what became of it, "" if it did all its work."""
    row = json.loads(written.read_text(encoding="utf-8")) if written.exists() else described(architecture)
    unfinished = [e["stage"] for e in row["errors"] if e["what"] == UNFINISHED]
    row["errors"] = [e for e in row["errors"] if e["what"] != UNFINISHED]
    if ended:
        row["errors"].append({"stage": (unfinished or ["start"])[0], "what": ended})
    return row


class Table:
    """docs/coverage.json: rows in the order of the catalogue, and the names of those that are not measured yet."""

    def __init__(self, path: Path, catalogue: Sequence[str]) -> None:
        self.path, self._catalogue = path, catalogue
        kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
        self._rows: dict[str, Row] = {row["name"]: row for row in kept}

    @property
    def data(self) -> dict[str, Any]:
        return {"missing": [n for n in self._catalogue if n not in self._rows],
                "rows": [self._rows[n] for n in self._catalogue if n in self._rows]}  # fmt: skip

    def put(self, row: Row) -> None:
        self._rows[row["name"]] = row
        self.save()

    def save(self) -> None:
        rows = ",\n".join(map(json.dumps, self.data["rows"]))  # one a line, so that a change is one line
        atomic_write(self.path, f'{{"missing": {json.dumps(self.data["missing"])},\n"rows": [\n{rows}\n]}}\n'.encode())

    def draw(self) -> None:
        """Write the data, as the catalogue is now, and the page and the picture beside it."""
        self.save()
        atomic_write(self.path.with_suffix(".md"), markdown(self.data).encode())
        atomic_write(self.path.with_suffix(".svg"), picture(self.data["rows"]).encode())


async def walk(chosen: Sequence[Architecture], cache: Cache, put: Callable[[Row], None], options: Any) -> None:
    """Give `put` the row of each of `chosen` as soon as it is known; `options.jobs` are measured at a time."""
    gate = asyncio.Semaphore(options.jobs)

    async def one(architecture: Architecture) -> None:
        async with gate:
            name = architecture.name
            row = None if options.fresh else cache.get(name, exported(name))
            if row is None:
                row = await measured(architecture, options.timeout, options.memory)
                if model := exported(name):
                    cache.put(name, model, row)
            put(row | identity(architecture))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    await asyncio.gather(*map(one, chosen))


def selected(options: argparse.Namespace) -> list[Architecture]:
    """The architectures asked for. Raises UsageError for a name or a family that is not there."""
    if options.names:
        return [zoo.get(name) for name in options.names]
    chosen = zoo.fast() if options.fast else list(zoo.architectures().values())
    chosen = [a for a in chosen if (a.core or not options.core) and options.family in (None, a.family)]
    if not chosen:
        families = dict.fromkeys(a.family for a in zoo.architectures().values())
        raise UsageError(f"there is no such architecture of family '{options.family}'",
                         fix=f"the families are: {', '.join(families)}")  # fmt: skip
    return chosen


def line(row: Row) -> str:
    """One row for the log."""
    wrong = failures(row)
    if "keep_sets" not in row or wrong:
        return f"{row['name']}: {'; '.join(wrong)}"
    sets = sum(row["keep_sets"].values())
    return f"{row['name']}: {sets} keep sets, {percent(reached(row))} of the parameters in groups"


def run(options: argparse.Namespace) -> int:
    table = Table(options.out, list(zoo.architectures()))
    chosen = [] if options.draw else selected(options)
    rows: list[Row] = []
    try:
        progress = choose()
        with progress.stage("coverage", len(chosen)) as step:

            def put(row: Row) -> None:
                rows.append(row)
                table.put(row)
                progress.note(line(row))
                step()

            asyncio.run(walk(chosen, Cache(cache_dir() / "coverage", sources()), put, options))
    finally:
        if table.data["rows"]:
            table.draw()
    out = console()
    for text in headlines(table.data["rows"]):
        out.print(text, soft_wrap=True)
    return int(any(failures(row) for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures (default: all)")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--core", action="store_true", help="only those that the tests pin")
    some.add_argument("--fast", action="store_true", help="only those that continuous integration checks")
    parser.add_argument("--family", help="only those of one family")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one may take")
    parser.add_argument("--memory", type=float, default=8, help="GiB that one may take")
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the cache")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what is there")
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.json"))
    try:
        return run(parser.parse_args())
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the rows that are done are kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    exit_with(main)
