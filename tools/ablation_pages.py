"""How the ablation looks: a Markdown page with a table a task, and a picture of small line charts.

Reads rows as tools/ablation.py stores them; measures nothing. Every number is the median over seeds, with its range.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.curve_pages import Frame, by_task, furthest, scale

Row = dict[str, Any]
DENSE, JOINT = "dense", "joint"
SINGLE = {f"{name} alone": name for name in ("width", "depth", "low-rank", "quantise")}
PRUNE_FIRST, QUANTISE_FIRST = SEQUENTIAL = ("prune, then quantise", "quantise, then prune")
DYNAMIC, STATIC_LINEAR, STATIC_ALL = RUNTIME = ("ORT dynamic int8", "ORT static int8, linear layers",
                                                "ORT static int8, everything")  # fmt: skip
AT_A_TARGET = (JOINT, *SEQUENTIAL, *SINGLE)
"""Methods that are asked for a speed-up; those of the runtime have the one that they have."""


@dataclass(frozen=True)
class Cell:
    """The rows of one method and target over all seeds."""

    method: str
    asked: float | None
    rows: tuple[Row, ...]

    @property
    def done(self) -> list[Row]:
        return [r for r in self.rows if "metrics" in r]

    @property
    def missing(self) -> int:
        """For how many seeds there is no result."""
        return len(self.rows) - len(self.done)

    @property
    def speedup(self) -> float:
        return float(np.median([r["speedup"] for r in self.done]))

    def values(self, metric: str) -> list[float]:
        """In percent, ascending."""
        return sorted(100 * r["metrics"][metric] for r in self.done)

    def median(self, metric: str) -> float:
        """In percent, to the digits that are printed: what prints alike is alike."""
        return round(float(np.median(self.values(metric))), digits(metric))


def digits(metric: str) -> int:
    """How many to print behind the point of a percentage: shares of samples are coarse, cosines crowd below 100."""
    return 2 if metric == "cosine" else 1


_WHY = (
    "Why. A difference of one sample is noise: of 1,000 questions or digits it is 0.1 points, of 300 strings or",
    "pictures 0.3; and a seed alone moves what is kept by as much as the ranges in the tables say, which",
    "where a method has one seed nobody knows. What is more than that has two causes. A sequence is several",
    "compilations, of which the best on held-out feeds is taken, and its second pass is searched on weights that",
    "were already solved again after the first; the joint search knows only by how much solving again mended one",
    "candidate, in one compilation and a fixed number of evaluations. And where one pass does nearly all the work,",
    "as 8 bits do at 2x, what the others could add is less than what the search can tell apart. Where no single",
    "pass gets that far, or its cost grows steeply, the joint solve is ahead.",
)


def latest(rows: Sequence[Row]) -> list[Row]:
    """Of rows of one task with several settings those of the newest settings, all seeds."""
    def settings(row: Row) -> tuple:
        return row["samples"], row["limit"], row["threads"], row["host"]

    newest = settings(rows[-1])
    return [r for r in rows if settings(r) == newest]


def cells(rows: Sequence[Row]) -> dict[tuple[str, float | None], Cell]:
    """The rows of one task by method and target, in order of targets."""
    found: dict[tuple[str, float | None], list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r["asked"] or 0, r["seed"])):
        found.setdefault((row["method"], row["asked"]), []).append(row)
    return {key: Cell(*key, tuple(own)) for key, own in found.items()}


def markdown(rows: Sequence[Row]) -> str:
    """Every task as tables, and first of all where the joint solve is not the best."""
    parts: list[str] = []
    losses: list[str] = []
    compared = False
    for task, found in by_task(rows).items():
        own = latest(found)
        compared = compared or any(_rivals(cells(own), t) for t in _targets(cells(own)))
        losses += [f"{task}, {line}" for line in verdicts(own)]
        parts += _task(task, own)
    if losses:
        says = ["The joint solve is not the best here:", "", *(f"- {line}" for line in losses), "", *_WHY]
    elif compared:
        says = ["The joint solve is the best, or as good as the best to a tenth of a point, wherever it was measured",
                "beside something else."]
    else:
        says = ["There is nothing to compare yet."]
    return "\n".join([*_HEAD, *says, "", *parts])


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """Where, in one task, something else is better than the joint solve at the same target, or out of its reach."""
    table = cells(rows)
    for asked in _targets(table):
        joint = table.get((JOINT, asked))
        rivals = _rivals(table, asked)
        if joint is None or not rivals:
            continue
        if not joint.done:
            names = ", ".join(c.method for c in rivals)
            yield f"{asked:g}x: out of reach of the joint solve ({_short(joint)}), reached by {names}"
            continue
        if joint.missing and any(not c.missing for c in rivals):
            yield f"{asked:g}x: out of reach of the joint solve with {joint.missing} of {len(joint.rows)} seeds"
        for metric in joint.done[0]["metrics"]:
            best = max(rivals, key=lambda c: c.median(metric))
            behind = best.median(metric) - joint.median(metric)
            if behind > 0:
                yield (f"{asked:g}x, {metric}: {best.method} keeps {_quality(best, metric)}, the joint solve "
                       f"{_quality(joint, metric)}, {behind:.1f} points less{_overlap(best, joint, metric)}")
    for runtime, joint in _beside(table):
        for metric in runtime.done[0]["metrics"]:
            if joint is not None and runtime.median(metric) > joint.median(metric):
                yield (f"beside {runtime.method}: it keeps {metric} {_quality(runtime, metric)} at "
                       f"{runtime.speedup:.2f}x, the joint solve that is at least as fast "
                       f"{_quality(joint, metric)} at {joint.speedup:.2f}x")
        if joint is None:
            yield f"{runtime.method} runs at {runtime.speedup:.2f}x, and no joint result is as fast"


def _overlap(a: Cell, b: Cell, metric: str) -> str:
    """Whether the seeds of two cells tell them apart."""
    if min(len(a.done), len(b.done)) < 2:
        return ""
    x, y = a.values(metric), b.values(metric)
    return "" if x[0] > y[-1] or y[0] > x[-1] else " (the ranges over seeds overlap)"


def _beside(table: dict[tuple[str, float | None], Cell]) -> Iterator[tuple[Cell, Cell | None]]:
    """Each of the runtime's own models that is faster than dense, and the slowest joint result as fast as it."""
    joint = [c for (method, _), c in table.items() if method == JOINT and c.done]
    for method in RUNTIME:
        own = table.get((method, None))
        if own is not None and own.done and own.speedup > 1.05 and joint:
            faster = [c for c in joint if c.speedup >= own.speedup]
            yield own, min(faster, key=lambda c: c.speedup, default=None)


def _rivals(table: dict[tuple[str, float | None], Cell], asked: float) -> list[Cell]:
    """What else reached a target for which there is a joint row."""
    found = [table.get((m, asked)) for m in AT_A_TARGET if m != JOINT]
    return [c for c in found if c is not None and c.done] if (JOINT, asked) in table else []


def _targets(table: dict[tuple[str, float | None], Cell]) -> list[float]:
    """Targets with a column of their own, ascending: round ones, and others for which there is more than the joint
    solve (which is also asked for the speeds that the runtime's own models happen to have)."""
    return sorted({asked for method, asked in table
                   if asked and method in AT_A_TARGET and (method != JOINT or asked == int(asked))})  # fmt: skip


def _task(name: str, rows: Sequence[Row]) -> list[str]:
    """The part of the page about one task."""
    table, last = cells(rows), rows[-1]
    headline = last["headline"]
    metrics = next((list(r["metrics"]) for r in rows if "metrics" in r), [])
    metrics.sort(key=lambda m: m != headline)
    seeds = sorted({r["seed"] for r in rows})
    limit = "all" if last["limit"] is None else f"the first {last['limit']}"
    parts = [f"## {name}", "", f"{last['samples']} calibration samples, {limit} evaluation samples, "
             f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {last['host']}; "
             f"{max(r['date'] for r in rows)}.", ""]  # fmt: skip
    if not all(r.get("together") for r in rows if "metrics" in r and r["method"] != DENSE):
        parts += ["Some of these speeds were measured one by one, not all in one run.", ""]
    for metric in metrics:
        parts += [*_at_targets(table, metric), ""]
    parts += _runtime(table, metrics)
    refused = {f"{c.method}: {r['refused']}": None for c in table.values() for r in c.rows if "refused" in r}
    return [*parts, *(f"- {line}" for line in refused), *([""] if refused else [])]


def _at_targets(table: dict[tuple[str, float | None], Cell], metric: str) -> Iterator[str]:
    """Method by target; the best of each column in bold."""
    targets = _targets(table)
    dense = table.get((DENSE, 1.0))
    note = f" (dense {dense.median(metric):.1f} %)" if dense is not None and dense.done else ""
    yield f"| {metric}{note} | " + " | ".join(f"{t:g}x" for t in targets) + " |"
    yield "| --- |" + " ---: |" * len(targets)
    best = {t: max((c.median(metric) for (m, asked), c in table.items() if asked == t and c.done and m in AT_A_TARGET),
                   default=math.inf) for t in targets}  # fmt: skip
    for method in AT_A_TARGET:
        row = [table.get((method, t)) for t in targets]
        if any(row):
            shown = (_cell(c, metric, best[t]) for c, t in zip(row, targets, strict=True))
            yield f"| {method} | {' | '.join(shown)} |"


def _cell(cell: Cell | None, metric: str, best: float) -> str:
    if cell is None:
        return ""
    if not cell.done:
        return _short(cell)
    text = _quality(cell, metric, bold=cell.median(metric) >= best) + f" at {cell.speedup:.2f}x"
    return text + (f", {cell.missing} of {len(cell.rows)} seeds out of reach" if cell.missing else "")


def _quality(cell: Cell, metric: str, *, bold: bool = False) -> str:
    """`98.7 % [98.5..98.9]`; without a range for a single seed."""
    values, n = cell.values(metric), digits(metric)
    text = f"{cell.median(metric):.{n}f} %"
    text = f"**{text}**" if bold else text
    return f"{text} [{values[0]:.{n}f}..{values[-1]:.{n}f}]" if len(values) > 1 else text


def _short(cell: Cell) -> str:
    """Why there is no result."""
    if any("refused" in r for r in cell.rows):
        return "refused"
    return f"at most {max(r['out_of_reach'] for r in cell.rows):.2f}x"


def _runtime(table: dict[tuple[str, float | None], Cell], metrics: Sequence[str]) -> Iterator[str]:
    """The runtime's own quantisation at its speed, and the slowest joint result that is as fast."""
    own = [table[m, None] for m in RUNTIME if (m, None) in table]
    if not own:
        return
    faster = {c.method: joint for c, joint in _beside(table)}
    yield "| at its own speed | measured | " + " | ".join(metrics) + " | joint, as fast | " + " | ".join(metrics) + " |"
    yield "| --- |" + " ---: |" * (2 * len(metrics) + 2)
    for cell in own:
        if not cell.done:
            yield f"| {cell.method} | {_short(cell)} |" + " |" * (2 * len(metrics) + 1)
            continue
        joint = faster.get(cell.method)
        theirs = [_quality(cell, m, bold=joint is not None and cell.median(m) > joint.median(m)) for m in metrics]
        ours = [_quality(joint, m, bold=joint.median(m) > cell.median(m)) if joint else "" for m in metrics]
        how = ", ".join(dict.fromkeys(r["how"] for r in cell.done if r.get("how")))
        yield (f"| {cell.method}{f' ({how})' if how else ''} | {cell.speedup:.2f}x | {' | '.join(theirs)} | "
               f"{f'{joint.speedup:.2f}x' if joint else 'none'} | {' | '.join(ours)} |")
    yield ""


_HEAD = (
    "# The joint solve against its parts", "",
    "Written by `python -m tools.ablation`; the numbers are in the .json beside this file. No retraining. At equal",
    "*measured* speed-up: one solve over all passes, each pass alone, two passes one after the other; and ONNX",
    "Runtime's own quantisation at whatever speed it has. Medians over seeds [lowest..highest]; a seed draws the",
    "calibration samples and all that is random in a compile. Quality is on data not calibrated on; the best of each",
    "column is bold.", "",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- the picture

_W, _H, _LABELS, _COLUMNS, _SHOWN, _GAP = 560, 340, 178, 2, 30.0, 14.0
_CSS = {JOINT: "joint", **dict.fromkeys(SEQUENTIAL, "seq"), **dict.fromkeys(SINGLE, "one"),
        **dict.fromkeys(RUNTIME, "ort")}  # fmt: skip
_DASH = {QUANTISE_FIRST: "6 4", "depth alone": "6 4", "low-rank alone": "2 4", "quantise alone": "10 3 2 3"}
_STYLE = """
 text { font: 12px system-ui, -apple-system, sans-serif; fill: #52514e }
 .title { font-weight: 600; font-size: 13px; fill: #0b0b0b } .grid { stroke: #e1e0d9 } .axis { stroke: #a9a79f }
 path { fill: none; stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round }
 .joint { stroke: #2a78d6; stroke-width: 2.6 } .seq { stroke: #c9622a } .one { stroke: #8a8880 }
 .ort { stroke: #2e8555 }
 .dot { stroke: #fcfcfb; stroke-width: 1.2 } .back { fill: #fcfcfb } .dense { stroke: #a9a79f }
 .dot.joint, text.joint { fill: #2a78d6 } .dot.seq, text.seq { fill: #b4521d } .dot.one, text.one { fill: #6f6d66 }
 .dot.ort, text.ort { fill: #23744a } text.joint { font-weight: 600 }
 text.joint, text.seq, text.one, text.ort { stroke: none; font-size: 11px }
 text.ort { paint-order: stroke; stroke: #fcfcfb; stroke-width: 5px }
 @media (prefers-color-scheme: dark) {
  text { fill: #c3c2b7 } .title { fill: #fff } .back { fill: #1a1a19 }
  .grid { stroke: #33332f } .axis { stroke: #6b6a64 } .dot { stroke: #1a1a19 } .dense { stroke: #6b6a64 }
  .dot.joint, text.joint { fill: #5aa2f0 } .joint { stroke: #5aa2f0 }
  .dot.seq, text.seq { fill: #e58a55 } .seq { stroke: #e58a55 } .dot.one, text.one { fill: #a5a39a }
  .one { stroke: #97958c } .dot.ort, text.ort { fill: #5fbf8a } text.ort { stroke: #1a1a19 }
 }
"""


def picture(rows: Sequence[Row]) -> str:
    """One chart a task: its headline metric against the measured speed-up, a labelled line for every method."""
    drawn = {name: cells(latest(found)) for name, found in by_task(rows).items()}
    drawn = {name: table for name, table in drawn.items() if sum(bool(c.done) for c in table.values()) > 1}
    columns = min(_COLUMNS, max(1, len(drawn)))
    width, height = columns * _W, 10 + max(1, math.ceil(len(drawn) / columns)) * _H
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
             f'role="img" aria-label="Quality against measured speed-up, by method"><style>{_STYLE}</style>',
             f'<rect class="back" width="{width}" height="{height}" rx="6"/>']  # fmt: skip
    for i, (name, table) in enumerate(drawn.items()):
        x, y = i % columns * _W, 10 + i // columns * _H
        parts += [f'<g transform="translate({x} {y})">', *_chart(name, table), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _chart(name: str, table: dict[tuple[str, float | None], Cell]) -> Iterator[str]:
    done = [c for c in table.values() if c.done]
    headline = done[0].done[0]["headline"]
    values = [c.median(headline) for c in done]
    bottom = max(min(values), max(values) - _SHOWN)  # what collapsed is drawn on the floor: the rest must stay legible
    frame = Frame(_W, _H, *scale(bottom, max(values)), furthest(c.speedup for c in done), right=_LABELS)
    yield from frame.draw(name, headline)
    dense = table.get((DENSE, 1.0))
    start = [] if dense is None or not dense.done else [(frame.x(1.0), frame.y(dense.median(headline)))]
    if start:
        yield frame.level(dense.median(headline))
    ends = []
    for method in (*SINGLE, *SEQUENTIAL, JOINT):
        own = sorted((c for c in done if c.method == method), key=lambda c: c.speedup)
        if own:
            places = start + [_place(frame, c, headline) for c in own]
            dash = f' style="stroke-dasharray:{_DASH[method]}"' if method in _DASH else ""
            yield f'<path class="{_CSS[method]}"{dash} d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'
            yield from (mark for c in own for mark in _mark(frame, c, headline))
            ends.append((method, *places[-1], own[-1]))
    right = _W - _LABELS + 12
    heights = spread([y for _, _, y, _ in ends], _GAP, frame.top, _H - frame.bottom)
    for (method, x, y, cell), height in zip(ends, heights, strict=True):
        yield f'<path class="grid" style="stroke-width:1" d="M{x + 6:.1f} {y:.1f}L{right - 3} {height:.1f}"/>'
        yield _label(method, right, height, _below(frame, cell, headline))
    own = [c for c in done if c.method in RUNTIME]
    places = [_place(frame, c, headline) for c in own]
    for c, (x, _), height in zip(own, places, spread([y for _, y in places], _GAP, frame.top, _H - frame.bottom),
                                 strict=True):  # fmt: skip
        yield from _mark(frame, c, headline)
        yield _label(c.method, x + 8, height, _below(frame, c, headline))


def _place(frame: Frame, cell: Cell, metric: str) -> tuple[float, float]:
    return frame.x(cell.speedup), frame.y(max(cell.median(metric), frame.low))


def _mark(frame: Frame, cell: Cell, metric: str) -> Iterator[str]:
    """A dot, and its range over seeds as a thin line."""
    (x, y), css, values = _place(frame, cell, metric), _CSS[cell.method], cell.values(metric)
    if values[-1] - values[0] > 0.05:
        low, high = (frame.y(max(v, frame.low)) for v in (values[0], values[-1]))
        yield f'<path class="{css}" style="stroke-width:1" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
    says = html.escape(f"{cell.method}, {cell.speedup:.2f}x: {_quality(cell, metric)}")
    yield f'<circle class="dot {css}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"><title>{says}</title></circle>'


def _label(method: str, x: float, y: float, note: str) -> str:
    return f'<text class="{_CSS[method]}" x="{x:.1f}" y="{y + 4:.1f}">{html.escape(method + note)}</text>'


def _below(frame: Frame, cell: Cell, metric: str) -> str:
    """The value where it lies below what is drawn."""
    value = cell.median(metric)
    return f" ({value:.0f} %)" if value < frame.low else ""


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights as near to those wanted as may be, in the same order, at least `gap` apart, between low and high."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    at = -math.inf
    for i in order:
        at = placed[i] = max(wanted[i], at + gap, low)
    at = math.inf
    for i in reversed(order):
        at = placed[i] = min(placed[i], at - gap, high)
    return placed
