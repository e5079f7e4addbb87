"""What `explain`, `bench` and `verify` have to say: their rows as plain data, and those rows as tables on a terminal.

Shares are of 1, times milliseconds, errors relative to the reference output. Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.report import count, milliseconds, number, percent, printable, spread_text
from graphprune.target import Timing, speedup

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from graphprune.causes import FrozenAxis
    from graphprune.certificate import Certificate
    from graphprune.members import Members, Weight


@dataclass(frozen=True)
class GroupRow:
    """One group of coupled channels: what it is, the nodes that shrink with it, and what it holds.

    The shares are of all parameters and of the whole time, and overlap between groups: a matrix between two groups
    counts in both. exact: removing is the same as zeroing (no norm or softmax runs over the axis); inexact: else, why
    not.
    """

    name: str
    kind: str
    size: int
    members: tuple[str, ...]
    n_parameters: int
    parameter_share: float
    time_share: float | None
    exact: bool
    inexact: str = ""


@dataclass(frozen=True)
class FrozenReason:
    """All that is frozen for one reason, and what would free it ("" if nobody knows).

    count: axes that would be groups; parameter_share: of the parameters that lie in no group for this reason;
    locked_share: of those that would shrink if the axes were free, in groups or not; time_share: spent in nodes that
    touch the axes. Rows overlap as groups do. weights: in no group; axes: each with its own cause.
    """

    reason: str
    hint: str
    count: int
    parameter_share: float
    locked_share: float
    time_share: float | None
    example: str
    weights: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    axes: tuple[FrozenAxis, ...] = ()


@dataclass(frozen=True)
class Reach:
    """What some groups hold together, every weight and node counted once."""

    groups: int
    parameter_share: float
    time_share: float | None


@dataclass(frozen=True)
class Explanation:
    """What could shrink and what is frozen, with the totals of the model; total_ms is None if nothing was timed.

    exact: what the exact groups hold; every: what all groups hold.
    """

    model: str
    nodes: int
    n_parameters: int
    total_ms: float | None
    exact: Reach
    every: Reach
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenReason, ...]


@dataclass(frozen=True)
class GroupExplanation:
    """All about one group. outer: how many of what it may keep other channels for; makers, readers: nodes; members: the
    part of the graph that it lies in."""

    model: str
    group: GroupRow
    outer: tuple[str, ...]
    weights: tuple[Weight, ...]
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    members: Members

    @property
    def title(self) -> str:
        """The group in one line."""
        g = self.group
        return f"{g.name} of {self.model}: {g.size:,} {g.kind}, {g.inexact or 'exact'}"


@dataclass(frozen=True)
class OutputRow:
    """How one output of two models compares over all samples: largest difference, relative L2 error, cosine."""

    output: str
    max_abs: float
    relative_l2: float
    cosine: float


def explanation_tables(explanation: Explanation, most: int | None = None) -> Group:
    """Totals, then what could shrink and what is frozen, what takes most time first. most: rows of each table."""
    from rich.console import Group
    from rich.text import Text

    e = explanation
    timed = f", {milliseconds(e.total_ms)}" if e.total_ms is not None else ""
    lines = [f"{printable(e.model)}: {e.nodes:,} nodes, {count(e.n_parameters)} parameters{timed}", _reach_text(e)]
    parts: list[Any] = [Text(line, style="bold") for line in lines]
    some_inexact = e.every.groups > e.exact.groups
    groups = new_table("what could shrink", ("axis", False), ("size", True), ("params", True), ("share", True),
                    ("time", True), *[("inexact through", False)] * some_inexact, ("nodes that shrink together", False))
    ordered = sorted(e.groups, key=lambda row: (-(row.time_share or 0), -row.parameter_share))
    for row in ordered[:most]:
        nature = row.inexact.removeprefix("statistic of ").split(" at ")[0]
        add_row(groups, row.name, row.kind, f"{row.size:,}", count(row.n_parameters), percent(row.parameter_share),
             percent(row.time_share), *[nature] * some_inexact, _some(row.members))
    if groups.row_count:
        parts += [Text(), groups]
    if len(ordered[:most]) < len(ordered):
        parts.append(Text(f"and {len(ordered) - most:,} more: --json FILE, or a pipe, has them all", style="dim"))
    return Group(*parts, Text(), *_frozen_parts(e, most))


def _reach_text(e: Explanation) -> str:
    """What the groups hold, the exact ones and all."""
    def held(reach: Reach) -> str:
        time = f" and {percent(reach.time_share)} of the time" if reach.time_share is not None else ""
        return f"{percent(reach.parameter_share)} of the parameters{time}"

    n = e.exact.groups
    text = f"{n:,} group{'s' * (n != 1)} that could shrink, with {held(e.exact)}"
    more = e.every.groups - n
    return text + (f"; with {more:,} inexact one{'s' * (more != 1)} {held(e.every)}" if more else "")


def _frozen_parts(e: Explanation, most: int | None) -> list[Any]:
    from rich.text import Text

    shown = [row for row in e.frozen if row.count or row.locked_share >= 0.001]
    if not shown:
        return [Text("nothing is frozen: every weight with a channel axis lies in a group")]
    table = new_table("frozen because", ("axes", True), ("in no group", True), ("locked", True), ("time", True),
                   ("for example; what would free it", False))
    order = sorted(shown, key=lambda row: (-(row.time_share or 0), -row.locked_share, -row.parameter_share))
    for row in order[:most]:
        add_row(table, row.reason, f"{row.count:,}", percent(row.parameter_share), percent(row.locked_share),
             percent(row.time_share) if row.nodes else "-", row.example)
        if row.hint:
            add_row(table, "", "", "", "", "", f"  -> {row.hint}", style="dim")
    note = "in no group, locked: shares of the parameters; locked would shrink too if the axes were free"
    return [table, Text(), Text(note, style="dim")]


def group_tables(explanation: GroupExplanation) -> Group:
    """One group: what it is, its weights, and who makes and reads it."""
    from rich.console import Group
    from rich.text import Text

    e, g = explanation, explanation.group
    timed = f", {percent(g.time_share)} of the time" if g.time_share is not None else ""
    lines = [f"{count(g.n_parameters)} parameters ({percent(g.parameter_share)}){timed}, on {len(g.members):,} nodes"]
    if not g.exact:
        lines.append("inexact: removing channels differs from zeroing them")
    lines.append(f"may keep other channels for each of {' and '.join(e.outer)}" if e.outer
                 else "keeps the same channels everywhere")  # fmt: skip
    weights = new_table("weight", ("shape, the group in brackets", False))
    for w in e.weights:
        add_row(weights, w.name, str(w))
    nodes = new_table("node", ("operator", False), ("does", False))
    for node in e.members.nodes:
        if node.operators:
            style = "dim" if node.role == "outside" else ""
            add_row(nodes, node.name, ", ".join(node.operators), node.role, style=style)
    return Group(Text(printable(e.title), style="bold"), *map(Text, lines), Text(), weights, Text(), nodes)


def timing_table(names: Sequence[str], timings: Sequence[Timing]) -> Table:
    """One row per model; the speed-up is over the first, from paired rounds."""
    table = new_table("model", ("median", True), ("spread", True), ("rounds", True), ("speed-up", True),
                      ("spread", True))
    for i, (name, timing) in enumerate(zip(names, timings, strict=True)):
        cells = [name, milliseconds(timing.median_ms), spread_text(timing.spread), str(timing.rounds)]
        if i:
            ratio = speedup(timings[0], timing)
            cells += [f"{ratio.value:.2f}x", spread_text(ratio.spread)]
        add_row(table, *cells)
    return table


def verification_table(rows: Sequence[OutputRow], rtol: float) -> Table:
    table = new_table("output", ("largest difference", True), ("relative error", True), ("cosine", True), ("", False))
    for row in rows:
        verdict = "same" if row.relative_l2 <= rtol else f"differs by more than {number(rtol)}"
        add_row(table, row.output, number(row.max_abs), number(row.relative_l2), f"{row.cosine:.6f}", verdict,
             style="" if row.relative_l2 <= rtol else "red")
    return table


def certificate_tables(certificate: Certificate) -> Group:
    """One row for each keep set, then the total."""
    from rich.console import Group
    from rich.text import Text

    table = new_table("group", ("kept", True), ("masked", True), ("permuted", True), ("effect", True), ("", False),
                   ("axis", False))
    for row in (*certificate.rows, *certificate.together):
        masked, permuted = row.worst("masked"), row.worst("permutation")
        effect = min((c.effect for c in row.checks if c.oracle == (masked or permuted).oracle), default=0.0)
        axis = f"{row.kind}{', another set for each' if row.ragged else ''}"
        add_row(table, row.group or "all at once", f"{row.kept:,} of {row.size:,}",
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


def new_table(first: str, *columns: tuple[str, bool]) -> Table:
    """A borderless table; each further column is (title, is it right-aligned). Only the last one gives way."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    titles = ((first, False), *columns)
    for i, (title, right) in enumerate(titles, 1):
        table.add_column(title, justify="right" if right else "left", no_wrap=i < len(titles))
    return table


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """Control characters are spelled out, and what is too long is cut."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell), no_wrap=True, overflow="ellipsis") for cell in cells), style=style)


def _some(members: Sequence[str], most: int = 3) -> str:
    listed = ", ".join(members[:most])
    return listed if len(members) <= most else f"{listed} and {len(members) - most} more"
