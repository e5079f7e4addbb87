"""The same model compiled for several devices: where the choices differ, and how much time is at stake on each."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.report import Elsewhere, Report


def of(report: Report) -> Elsewhere:
    """A report as those of other devices show it."""
    dense = report.reached.dense_ms
    return Elsewhere(
        report.asked.device, report.reached.speedup, report.reached.source,
        {s.group: s.choice or f"{s.after:,}" for s in report.sites},
        {s.group: s.ms_before / dense for s in report.sites if s.ms_before is not None and dense},
    )  # fmt: skip


def differing(seen: Sequence[Elsewhere]) -> list[str]:
    """Sites at which not all have the same, those with the most time at stake on some device first."""
    names = dict.fromkeys(name for e in seen for name in e.chosen)
    differ = [n for n in names if len({e.chosen.get(n) for e in seen}) > 1]
    return sorted(differ, key=lambda n: -max(e.time_share.get(n, 0.0) for e in seen))
