"""One architecture of the zoo, measured: what of it can be pruned, what cannot and why, whether the certificate holds.

    python -m tools.coverage_record NAME FILE.json [--memory 8]

Owns what a row of the coverage table is. `tools.coverage` runs it as a process of its own for each architecture, so
that a crash costs one row: what is known so far is in FILE before every stage, and which stage may not return.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import resource
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.backends import open_backend
from graphprune.backends.base import Backend
from graphprune.causes import body_constants, weights_of
from graphprune.certificate import VERDICTS, Certificate, Certified, certificate_of
from graphprune.dims import leaves
from graphprune.errors import GraphpruneError
from graphprune.files import atomic_write
from graphprune.groups import Analysis, Group, analyse
from graphprune.infer import MISFIT, infer
from graphprune.inspect import profiled
from graphprune.keeps import new_size
from graphprune.prepare import Prepared, prepare, with_inexact
from graphprune.progress import Silent
from graphprune.trace import Trace
from models import zoo
from models.zoo.base import Architecture

Row = dict[str, Any]
SEED = 0
UNFINISHED = "the process ended here"
_REPEATS, _TYPING_SECONDS = 5, 3.0
_BATCH = 16
"""At which networks are timed whose batch is open: the small ones of the zoo are mostly overhead at a batch of one."""


class Record:
    """A row that grows stage by stage. save: called with the row before every stage, and at the end."""

    def __init__(self, architecture: Architecture, host: str, save: Callable[[Row], None]) -> None:
        self.row, self._save = described(architecture) | {"host": host}, save

    def attempt(self, stage: str, work: Callable[..., Any], *args: Any) -> Any:
        """What `work` gives; None, and an error in the row, where it fails."""
        self._save(self.row | {"errors": [*self.row["errors"], {"stage": stage, "what": UNFINISHED}]})
        try:
            return work(*args)
        except Exception as error:  # whatever it is, it belongs into the row
            self.row["errors"].append({"stage": stage, "what": said(error)})
            return None

    def add(self, found: Row | None) -> None:
        self.row |= found or {}


def identity(architecture: Architecture) -> Row:
    """What the catalogue says of an architecture."""
    a = architecture
    return {"name": a.name, "family": a.family, "origin": a.origin, "exporter": a.exporter if a.path is None else ""}


def described(architecture: Architecture) -> Row:
    """The row of an architecture before anything is run."""
    return identity(architecture) | {"date": datetime.date.today().isoformat(), "errors": []}


def measure(name: str, save: Callable[[Row], None] = lambda row: None) -> Row:
    """The row of one architecture. Never raises for what its network, its export or graphprune does."""
    started = time.process_time()
    architecture, backend = zoo.get(name), open_backend("host")
    record = Record(architecture, backend.fingerprint(), save)
    path = record.attempt("export", zoo.build, name)
    prepared = path and record.attempt("prepare", _prepared, record, path, backend, architecture)
    if prepared:
        record.add(record.attempt("type", _typed, prepared))
        record.add(record.attempt("time", _timed, prepared, backend, architecture))
        record.add(record.attempt("certify", _certified, prepared, backend, architecture))
    record.add({"cpu_s": time.process_time() - started})
    save(record.row)
    return record.row


def _prepared(record: Record, path: Path, backend: Backend, architecture: Architecture) -> Prepared:
    started = time.perf_counter()
    prepared = prepare(path, backend, architecture.shapes)
    seconds = time.perf_counter() - started
    exact = prepared.analysis
    prepared = with_inexact(prepared)
    opset = prepared.source.model.opset_imports.get("", prepared.source.model.opset_imports.get("ai.onnx"))
    record.add({"opset": opset, "prepare_s": seconds, **_reach(prepared.analysis, exact)})
    return prepared


def _reach(analysis: Analysis, exact: Analysis) -> Row:
    """Groups, shares and sizes; `exact` is the analysis that leaves out the groups whose axis is a statistic."""
    groups = analysis.groups.values()
    return {
        "nodes": len(analysis.model.graph), "parameters": analysis.n_parameters,
        "groups_exact": sum(g.inexact is None for g in groups),
        "groups_inexact": dict(Counter(g.inexact.text for g in groups if g.inexact).most_common()),
        "prunable": analysis.n_prunable, "prunable_exact": exact.n_prunable,
        "halved": halved(analysis, groups),
        "halved_exact": halved(analysis, [g for g in groups if g.inexact is None]),
        "frozen": [{"reason": f.reason, "parameters": f.n_parameters, "locked": f.n_locked, "hint": f.hint}
                   for f in analysis.frozen],
        "misfits": misfits(analysis),
    }  # fmt: skip


def _typed(prepared: Prepared) -> Row:
    """Processor time of typing and grouping alone: the median of some repetitions."""
    types = prepared.analysis.types
    traced = Trace(types.shapes, types.values)
    times: list[float] = []
    while len(times) < _REPEATS and (not times or sum(times) < _TYPING_SECONDS):
        gc.collect()
        started = time.thread_time()
        analyse(prepared.model, infer(prepared.model, traced))
        times.append(time.thread_time() - started)
    return {"typing_s": statistics.median(times)}


def _timed(prepared: Prepared, backend: Backend, architecture: Architecture) -> Row:
    """Share of the kernels' time that is in nodes of some group; kernels whose node is unknown count as outside."""
    at = {**prepared.traced_at, **architecture.shapes}
    many = {s.name: (_BATCH, *at[s.name][1:]) if 0 in s.dynamic_axes and s.name not in architecture.shapes
            else at[s.name] for s in prepared.specs}  # fmt: skip
    try:
        times, total_ms = profiled(prepared, backend, many)
    except GraphpruneError:  # its first axis is no batch
        times, total_ms = profiled(prepared, backend, at)

    def share(groups: Iterable[Group]) -> float:
        return sum(times.get(node, 0.0) for node in {n for g in groups for n in g.nodes}) / max(total_ms, 1e-9)

    groups = prepared.analysis.groups.values()
    return {"ms": total_ms, "time_share": share(groups),
            "time_share_exact": share(g for g in groups if g.inexact is None)}  # fmt: skip


def _certified(prepared: Prepared, backend: Backend, architecture: Architecture) -> Row:
    """Random keep sets of every group alone and of all at once (see `graphprune.certificate`)."""
    found = certificate_of(prepared, backend, architecture.shapes, None, SEED, Silent())
    rows = (*found.rows, *found.together)
    return {
        "keep_sets": {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS},
        "mismatches": mismatches(found), "fed": [{k: list(s) for k, s in feed.items()} for feed in found.shapes],
        "certify_s": found.seconds,
    }  # fmt: skip


def mismatches(certificate: Certificate) -> list[str]:
    """One line for each keep set that failed: which, by which oracle, how far off beside what effect."""

    def line(row: Certified) -> str:
        name = f"{row.group or 'all at once'} ({row.kind}, {row.kept} of {row.size}{', ragged' if row.ragged else ''})"
        bad = [c for c in row.checks if c.verdict == "mismatch"]
        worst = max(bad, key=lambda c: c.difference, default=None)
        return f"{name}: {row.error}" if worst is None else (
            f"{name}: {worst.oracle} off by {worst.difference:.2g} beside an effect of {worst.effect:.2g}")

    return [line(row) for row in certificate.failed]


def halved(analysis: Analysis, groups: Iterable[Group]) -> int:
    """Weight elements left if each of `groups` keeps half of its channels, rounded up; none go in control flow."""
    keeps = {g.dim: np.arange(math.ceil(g.size / 2)) for g in groups}
    weights = {v.name: analysis.types.axes[v.name] for v in weights_of(analysis.model.graph)}
    here = sum(math.prod(new_size(t, keeps) for t in axes) for axes in weights.values())
    return here + sum(int(v.size) for node in analysis.model.graph for v in body_constants(node))


def misfits(analysis: Analysis) -> list[str]:
    """Reasons that say a rule of ours is wrong."""
    dims = {d for axes in analysis.types.axes.values() for t in axes for d in leaves(t)}
    return sorted({str(d.frozen) for d in dims if d.frozen and d.frozen.text.startswith(MISFIT)})


def said(error: Exception) -> str:
    """An error as one line: ours in its own words, others by their root cause and the last place in our sources."""
    if isinstance(error, GraphpruneError):
        return " ".join(f"{error.what}{f' ({error.at})' if error.at else ''}".split())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    first = next(iter(str(root).strip().splitlines()), "")
    return f"{type(root).__name__}: {first[:300]}{where}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("into", type=Path)
    parser.add_argument("--memory", type=float, help="GiB that the process may have")
    options = parser.parse_args()
    if options.memory:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(options.memory * 2**30), hard))
    measure(options.name, lambda row: atomic_write(options.into, json.dumps(row).encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
