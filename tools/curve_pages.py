"""How curves look: a table for the terminal, one in Markdown, and a picture of small line charts, one a task.

Reads rows as tools/curve.py stores them; measures nothing. The picture is plain SVG that follows the reader's choice of
light or dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from tools.shared import table

Row = dict[str, Any]


def _points(row: Row | None, name: str) -> str:
    """A metric as percent, or why there is none."""
    if row is None:
        return ""
    if "metrics" not in row:
        return "out of reach"
    return f"{100 * row['metrics'][name]:.1f} %"


def _speed(row: Row) -> str:
    if "speedup" not in row:
        return f"at most {row['out_of_reach']:.2f}x"
    return f"{row['speedup']:.2f}x ± {100 * row['spread']:.1f} %" if row["asked"] > 1 else "1.00x"


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Of rows of one task with several settings (calibration size, host) those of the newest settings."""
    def settings(row: Row) -> tuple:
        return row["samples"], row["limit"], row["seed"], row["threads"], row["host"]

    newest = settings(rows[-1])
    return [r for r in rows if settings(r) == newest]


def _verdict(row: Row, other: Row | None) -> str:
    """Where another method is better on the same target by its headline, said plainly."""
    if other is None:
        return ""
    if "metrics" not in row:
        return f"out of reach{' (magnitude wins)' if 'metrics' in other else ''}"
    if "metrics" not in other:
        return "magnitude is out of reach"
    points = round(100 * (row["metrics"][row["headline"]] - other["metrics"][row["headline"]]), 1)
    return f"{points:+.1f} points" + (" (magnitude wins)" if points < 0 else "")


def _lines(rows: Sequence[Row], ours: str, baseline: str, dense: str) -> Iterator[list[str]]:
    """asked, method, measured, every metric, advantage of ours over the baseline; dense first, then by factor."""
    rows = _latest(rows)
    metrics = next((list(r["metrics"]) for r in rows if "metrics" in r), [])
    yield ["asked", "method", "measured", *metrics, "ours against magnitude"]
    order = [dense, ours, baseline]
    for row in sorted(rows, key=lambda r: (r["asked"], order.index(r["method"]) if r["method"] in order else 9)):
        rival = next((r for r in rows if r["method"] == baseline and r["asked"] == row["asked"]), None)
        yield ["" if row["method"] == dense else f"{row['asked']:g}x", row["method"], _speed(row),
               *(_points(row, name) for name in metrics), _verdict(row, rival) if row["method"] == ours else ""]


def table_of(rows: Sequence[Row], ours: str, baseline: str, dense: str) -> Table:
    """The rows of one task for a terminal."""
    if not rows:
        return table("nothing measured yet")
    head, *body = _lines(rows, ours, baseline, dense)
    made = table(*head, left=("method", "ours against magnitude"))
    for line in body:
        made.add_row(*line, style="bold" if line[1] == ours else None)
    return made


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the name of their task, in the order in which tasks first appear."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["task"], []).append(row)
    return found


def markdown(rows: Sequence[Row], ours: str, baseline: str, dense: str) -> str:
    """Every task as a table, and first of all a list of the places where magnitude scores are better."""
    tasks = by_task(rows)
    losses = []
    parts: list[str] = []
    for name, found in tasks.items():
        head, *body = _lines(found, ours, baseline, dense)
        losses += [f"{name} at {line[0]}: {line[-1]}" for line in body if "magnitude wins" in line[-1]]
        last = _latest(found)[-1]
        limit = "all" if last["limit"] is None else f"the first {last['limit']}"
        parts += [f"## {name}", "", f"{last['samples']} calibration samples, {limit} evaluation samples, "
                  f"seed {last['seed']}; {last['host']}; {last['date']}.", "", "| " + " | ".join(head) + " |",
                  "|" + "|".join(" --- " if h in ("method", head[-1]) else " ---: " for h in head) + "|",
                  *("| " + " | ".join(line) + " |" for line in body), ""]  # fmt: skip
    says = ["Second-order scores with compensation are at no target worse than magnitude scores without."]
    if losses:
        says = ["Magnitude scores without compensation are better here:", "", *(f"- {line}" for line in losses)]
    return "\n".join([*_HEAD, *says, "", *parts])


_HEAD = (
    "# Quality against measured speed-up", "",
    "Written by `python -m tools.curve`; the numbers are in the .json beside this file. No retraining. Speed is",
    "measured in turns with the dense model, ± half of the 80 % interval. Quality is on data not calibrated on.", "",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- the picture

_W, _H, _COLUMNS = 330, 250, 2
_STYLE = """
 text { font: 12px system-ui, -apple-system, sans-serif; fill: #52514e }
 .title { font-weight: 600; font-size: 13px; fill: #0b0b0b } .grid { stroke: #e1e0d9 } .axis { stroke: #a9a79f }
 .ours { stroke: #2a78d6 } .base { stroke: #8a8880 } .dot.ours { fill: #2a78d6 } .dot.base { fill: #8a8880 }
 path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round } .base { stroke-dasharray: 5 4 }
 .dot { stroke: #fcfcfb; stroke-width: 1.5; stroke-dasharray: none } .back { fill: #fcfcfb } .dense { stroke: #a9a79f }
 @media (prefers-color-scheme: dark) {
  text { fill: #c3c2b7 } .title { fill: #fff } .back { fill: #1a1a19 }
  .grid { stroke: #33332f } .axis { stroke: #6b6a64 }
  .ours { stroke: #3987e5 } .dot.ours { fill: #3987e5 } .base { stroke: #97958c } .dot.base { fill: #97958c }
  .dot { stroke: #1a1a19 } .dense { stroke: #6b6a64 }
 }
"""


def picture(rows: Sequence[Row], ours: str, baseline: str, dense: str) -> str:
    """One chart a task: its headline metric against the measured speed-up, ours and the baseline, dense as a line."""
    tasks = {name: _latest(found) for name, found in by_task(rows).items()}
    drawn = {name: found for name, found in tasks.items() if sum("metrics" in r for r in found) > 1}
    columns = min(_COLUMNS, max(1, len(drawn)))
    width, height = columns * _W, 34 + math.ceil(len(drawn) / columns) * _H
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
             f'role="img" aria-label="Quality against measured speed-up"><style>{_STYLE}</style>',
             f'<rect class="back" width="{width}" height="{height}" rx="6"/>', *_legend(ours, baseline)]
    for i, (name, found) in enumerate(drawn.items()):
        x, y = i % columns * _W, 34 + i // columns * _H
        parts += [f'<g transform="translate({x} {y})">', *_chart(name, found, ours, baseline, dense), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _legend(ours: str, baseline: str) -> Iterator[str]:
    x = 14
    for css, label in (("ours", "second-order, compensated" if ours == "second-order" else ours), ("base", baseline)):
        yield f'<path class="{css}" d="M{x} 20h26"/><text x="{x + 33}" y="24">{html.escape(label)}</text>'
        x += 52 + 6.4 * len(label)


@dataclass(frozen=True)
class Frame:
    """Where a speed-up and a percentage lie in one small chart, and all of the chart that is not data.

    low, high, step: the axis of percentages; most: the largest speed-up that is drawn.
    """

    width: int
    height: int
    low: float
    high: float
    step: float
    most: float
    left: int = 52
    right: int = 20
    top: int = 44
    bottom: int = 40

    def x(self, speedup: float) -> float:
        return self.left + (speedup - 1) / (self.most - 1) * (self.width - self.left - self.right)

    def y(self, percent: float) -> float:
        space = self.height - self.top - self.bottom
        return self.height - self.bottom - (percent - self.low) / (self.high - self.low) * space

    def draw(self, name: str, headline: str) -> Iterator[str]:
        """Title, grid and axes."""
        end, floor = self.width - self.right, self.height - self.bottom
        yield f'<text class="title" x="{self.left}" y="20">{html.escape(name)}</text>'
        yield f'<text x="{self.left}" y="36">{html.escape(headline)}, %</text>'
        for k in range(round((self.high - self.low) / self.step) + 1):
            y = self.y(self.low + k * self.step)
            yield f'<path class="grid" style="stroke-width:1" d="M{self.left} {y:.1f}H{end}"/>'
            yield f'<text x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{self.low + k * self.step:g}</text>'
        yield f'<path class="axis" style="stroke-width:1" d="M{self.left} {floor}H{end}"/>'
        for k in range(round(2 * (self.most - 1)) + 1):
            if self.most <= 3.5 or k % 2 == 0:
                yield f'<text x="{self.x(1 + k / 2):.1f}" y="{floor + 17}" text-anchor="middle">{1 + k / 2:g}x</text>'
        yield f'<text x="{end}" y="{self.height - 6}" text-anchor="end">measured speed-up</text>'

    def level(self, percent: float) -> str:
        """A dotted line across, for the dense network."""
        where = f"M{self.left} {self.y(percent):.1f}H{self.width - self.right}"
        return f'<path class="dense" style="stroke-width:1;stroke-dasharray:2 3" d="{where}"/>'


def _chart(name: str, rows: Sequence[Row], ours: str, baseline: str, dense: str) -> Iterator[str]:
    rows = [r for r in rows if "metrics" in r and r["method"] in (ours, baseline, dense)]
    headline = rows[0]["headline"]
    value = {id(r): 100 * r["metrics"][headline] for r in rows}
    frame = Frame(_W, _H, *scale(min(value.values()), max(value.values())), furthest(r["speedup"] for r in rows))
    yield from frame.draw(name, headline)
    start = [r for r in rows if r["method"] == dense]
    if start:
        yield frame.level(value[id(start[0])])
    for css, method in (("base", baseline), ("ours", ours)):
        line = start + sorted((r for r in rows if r["method"] == method), key=lambda r: r["speedup"])
        places = [(frame.x(r["speedup"]), frame.y(value[id(r)]), r) for r in line]
        yield f'<path class="{css}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)}"/>'
        for x, y, r in places:
            says = f"{r['method']}, {r['speedup']:.2f}x: {value[id(r)]:.1f} %"
            yield f'<circle class="dot {css}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
            yield f"<title>{html.escape(says)}</title></circle>"


def furthest(speedups: Iterable[float]) -> float:
    """Where an axis of speed-ups ends: the largest, to the next half, and at least 2."""
    return max(2.0, math.ceil(2 * max(speedups)) / 2)


def scale(low: float, high: float) -> tuple[float, float, float]:
    """Round limits and step of an axis of percentages that holds low to high, at least ten points of it."""
    low = min(low, high - 10)
    step = next(s for s in (2, 5, 10, 20, 25) if (high - low) / s <= 5.5)
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    return max(bottom, 0) if low >= 0 else bottom, top, step
