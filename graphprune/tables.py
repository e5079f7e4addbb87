"""What `explain`, `bench` and `verify` have to say: their rows as plain data, and those rows as tables on a terminal.

Shares are of 1, times milliseconds, errors relative to the reference output. Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.report import FrozenRow, count, milliseconds, number, percent, printable, spread_text
from graphprune.target import Timing, speedup

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from graphprune.certificate import Certificate


@dataclass(frozen=True)
class GroupRow:
    """One group of coupled channels: what it is, the nodes that shrink with it, and what it holds.

    The shares are of all parameters and of the whole time, and overlap between groups: a matrix between two groups
    counts in both. exact: removing is the same as zeroing (no norm or softmax runs over the axis).
    """

    name: str
    kind: str
    size: int
    members: tuple[str, ...]
    n_parameters: int
    parameter_share: float
    time_share: float | None
    exact: bool


@dataclass(frozen=True)
class Explanation:
    """What could shrink and what is frozen, with the totals of the model; total_ms is None if nothing was timed."""

    model: str
    nodes: int
    n_parameters: int
    total_ms: float | None
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]


@dataclass(frozen=True)
class OutputRow:
    """How one output of two models compares over all samples: largest difference, relative L2 error, cosine."""

    output: str
    max_abs: float
    relative_l2: float
    cosine: float


def explanation_tables(explanation: Explanation) -> Group:
    from rich.console import Group
    from rich.text import Text

    e = explanation
    timed = f", {milliseconds(e.total_ms)}" if e.total_ms is not None else ""
    groups = _table("what could shrink", ("axis", False), ("size", True), ("params", True), ("share", True),
                    ("time", True), ("", False), ("nodes that shrink together", False))
    for row in sorted(e.groups, key=lambda row: (-(row.time_share or 0), -row.parameter_share)):
        _row(groups, row.name, row.kind, f"{row.size:,}", count(row.n_parameters), percent(row.parameter_share),
             percent(row.time_share), "" if row.exact else "inexact", _some(row.members))
    frozen = _table("frozen because", ("axes", True), ("params", True), ("time", True), ("for example", False))
    for row in sorted(e.frozen, key=lambda row: (-(row.time_share or 0), -row.parameter_share)):
        _row(frozen, row.reason, f"{row.count:,}", percent(row.parameter_share), percent(row.time_share), row.example)
    parts: list[Any] = [Text(f"{printable(e.model)}: {e.nodes:,} nodes, {count(e.n_parameters)} parameters{timed}, "
                             f"{len(e.groups)} group{'s' * (len(e.groups) != 1)} that could shrink", style="bold")]
    for table in (groups, frozen):
        if table.row_count:
            parts += [Text(), table]
    if any(not row.exact for row in e.groups):
        parts += [Text(), Text("inexact: a norm or a softmax runs over the axis, so that removing is not zeroing",
                               style="dim")]
    return Group(*parts)


def timing_table(names: Sequence[str], timings: Sequence[Timing]) -> Table:
    """One row per model; the speed-up is over the first, from paired rounds."""
    table = _table("model", ("median", True), ("spread", True), ("rounds", True), ("speed-up", True), ("spread", True))
    for i, (name, timing) in enumerate(zip(names, timings, strict=True)):
        cells = [name, milliseconds(timing.median_ms), spread_text(timing.spread), str(timing.rounds)]
        if i:
            ratio = speedup(timings[0], timing)
            cells += [f"{ratio.value:.2f}x", spread_text(ratio.spread)]
        _row(table, *cells)
    return table


def verification_table(rows: Sequence[OutputRow], rtol: float) -> Table:
    table = _table("output", ("largest difference", True), ("relative error", True), ("cosine", True), ("", False))
    for row in rows:
        verdict = "same" if row.relative_l2 <= rtol else f"differs by more than {number(rtol)}"
        _row(table, row.output, number(row.max_abs), number(row.relative_l2), f"{row.cosine:.6f}", verdict,
             style="" if row.relative_l2 <= rtol else "red")
    return table


def certificate_tables(certificate: Certificate) -> Group:
    """One row for each keep set, then the total."""
    from rich.console import Group
    from rich.text import Text

    table = _table("group", ("kept", True), ("masked", True), ("permuted", True), ("effect", True), ("", False),
                   ("axis", False))
    for row in (*certificate.rows, *certificate.together):
        masked, permuted = row.worst("masked"), row.worst("permutation")
        effect = min((c.effect for c in row.checks if c.oracle == (masked or permuted).oracle), default=0.0)
        axis = f"{row.kind}{', another set for each' if row.ragged else ''}"
        _row(table, row.group or "all at once", f"{row.kept:,} of {row.size:,}",
             number(masked.difference) if masked else "-", number(permuted.difference) if permuted else "-",
             number(effect), row.verdict + (f": {row.error}" if row.error else ""),
             axis + (f" ({row.inexact})" if row.inexact else ""), style="red" if row.verdict == "mismatch" else "")
    rows = (*certificate.rows, *certificate.together)
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("exact", "vacuous", "mismatch")}
    shapes = "; ".join(", ".join(f"{name} {'x'.join(map(str, s))}" for name, s in feed.items())
                       for feed in certificate.shapes)
    total = (f"{printable(certificate.model)}: {certificate.n_groups:,} groups, {len(rows):,} keep sets certified: "
             f"{counts['exact']:,} exact, {counts['vacuous']:,} vacuous, {counts['mismatch']:,} mismatched; "
             f"{certificate.seconds:.1f} s, seed {certificate.seed}")
    notes = [f"inputs: {printable(shapes)}",
             "masked: against the model with what was removed zeroed wherever it is summed over (exact groups only)",
             "permuted: against itself with the group in another order; effect: what the removal itself changes",
             "differences are relative to the largest output"]
    parts: list[Any] = [table, Text()] if table.row_count else []
    style = "bold red" if certificate.failed else "bold"
    return Group(*parts, Text(total, style=style), *(Text(note, style="dim") for note in notes))


def _table(first: str, *columns: tuple[str, bool]) -> Table:
    """A borderless table; each further column is (title, is it right-aligned). Only the last one gives way."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    titles = ((first, False), *columns)
    for i, (title, right) in enumerate(titles, 1):
        table.add_column(title, justify="right" if right else "left", no_wrap=i < len(titles))
    return table


def _row(table: Table, *cells: str, style: str = "") -> None:
    from rich.text import Text

    table.add_row(*(Text(printable(cell), no_wrap=True, overflow="ellipsis") for cell in cells), style=style)


def _some(members: Sequence[str], most: int = 3) -> str:
    listed = ", ".join(members[:most])
    return listed if len(members) <= most else f"{listed} and {len(members) - most} more"
