"""What `devices` and `profile` have to say, as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphprune.devices import Described, Device
from graphprune.devices.correction import Corrections
from graphprune.devices.device import UNITS
from graphprune.devices.roofline import milliseconds
from graphprune.devices.table import Table as Measured
from graphprune.elsewhere import differing, of
from graphprune.report import Report, number, percent, printable
from graphprune.tables import add_row, new_table

_MOST_SITES = 40

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def device_table(devices: Iterable[Device]) -> Group:
    """One line for each device."""
    from rich.console import Group
    from rich.text import Text

    shown = new_table("device", ("dense", True), ("fp32", True), ("fp16", True), ("int8", True), ("memory", True),
                  ("what", False))
    for d in sorted(devices, key=lambda d: (d.kind != "gpu", d.name)):
        peaks = [f"{d.figure(f'peak.{p}'):,.4g}" if d.runs(p) else "-" for p in ("fp32", "fp16", "int8")]
        add_row(shown, d.name, d.precision, *peaks, f"{d.figure('memory.gb_s'):,.4g}", d.title)
    notes = ("dense: what a deployed dense model runs in there; peaks in tera-operations/s, memory in GB/s",
             "host: this machine, measured; one of your own: --device FILE.toml, see graphprune devices --show a100")
    return Group(shown, Text(), *(Text(note, style="dim") for note in notes))


def device_figures(described: Described) -> Group:
    """All that is known of a device, with the sources."""
    from rich.console import Group
    from rich.text import Text

    d = described.device
    shown = new_table("figure", ("value", True), ("", False), ("source", True), ("note", False))
    sources = list(dict.fromkeys(f.source for f in d.figures.values()))
    for name, figure in d.figures.items():
        unit = UNITS.get(name, UNITS.get(name.partition(".")[0], ""))
        cited = f"[{sources.index(figure.source) + 1}]"
        add_row(shown, name, f"{figure.value:,.6g}", unit, cited, " ".join(figure.note.split()))
    head = f"{d.name}: {d.title}; {d.family}, dense models in {d.precision}"
    return Group(
        Text(head, style="bold"), Text(f"also {', '.join(d.aliases)}" if d.aliases else ""), Text(), shown, Text(),
        *(Text(printable(f"[{i}] {source}")) for i, source in enumerate(sources, 1)), Text(),
        Text(_measured(described), style="dim"),
    )  # fmt: skip


def _measured(described: Described) -> str:
    measured = described.table
    if measured is None:
        return "unverified: no measurement on this device; graphprune profile makes a table where it is"
    own = measured.described().title == described.device.title
    return (f"times measured on {'it' if own else 'another of its family, ' + measured.key.device}: "
            f"{len(measured.rows):,} kernels, {measured.key.runtime}, {measured.key.date}")  # fmt: skip


def choices_table(reports: Sequence[Report]) -> Group:
    """The sites at which devices differ, with the share of the dense time on each that is at stake."""
    from rich.console import Group
    from rich.text import Text

    seen = [of(report) for report in reports]
    columns = [(f"{e.device} {e.speedup:.2f}x", True) for e in seen]
    shown = new_table("site", *columns)
    sites = differing(seen)
    for name in sites[:_MOST_SITES]:
        add_row(shown, name, *(f"{e.chosen.get(name, '-')} ({percent(e.time_share.get(name))})" for e in seen))
    total = len(dict.fromkeys(name for e in seen for name in e.chosen))
    note = f"{len(sites):,} of {total:,} sites differ; in brackets the share of that device's dense time at stake"
    return Group(shown, Text(), Text(note, style="dim"))


def measured_table(measured: Measured) -> Table:
    """What was measured, by operator, and how far the analytic model alone is off."""
    shown = new_table("operator", ("precision", False), ("kernels", True), ("analytic, median off", True),
                  ("corrected", True))
    device, corrections = measured.described(), Corrections(measured.rows, measured.described())
    by_op: dict[tuple[str, str], list] = {}
    for r in measured.rows:
        by_op.setdefault((r.work.op, r.work.precision), []).append(r)
    for (op, precision), rows in sorted(by_op.items(), key=lambda item: -sum(r.ms for r in item[1])):
        plain = [milliseconds(r.work, device, r.work.weights) / r.ms for r in rows]
        better = [p * corrections.of(r.work).factor for p, r in zip(plain, rows, strict=True)]
        off = [percent(float(np.median(np.abs(np.asarray(x) - 1)))) for x in (plain, better)]
        add_row(shown, op, precision, number(len(rows)), *off)
    return shown
