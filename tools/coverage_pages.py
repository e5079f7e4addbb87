"""How the coverage table looks: headlines for a terminal, a page in Markdown, and a picture of dots, one a network.

Reads rows as tools/coverage_record.py makes them; measures nothing. The picture is plain SVG that follows the reader's
choice of light or dark.
"""

from __future__ import annotations

import html
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


# --------------------------------------------------------------------------------------------------- numbers

def reached(row: Row) -> float:
    """Share of the parameters that lie in some group."""
    return row["prunable"] / max(row["parameters"], 1)


def left(row: Row) -> float:
    """Share of the parameters left if every group is halved."""
    return row["halved"] / max(row["parameters"], 1)


def failures(row: Row) -> list[str]:
    """Everything about a row that should not be: errors, mismatches, rules that do not fit."""
    return [*(f"{e['stage']}: {e['what']}" for e in row["errors"]),
            *(f"certificate: {line}" for line in row.get("mismatches", ())), *row.get("misfits", ())]  # fmt: skip


def groups(row: Row) -> int:
    return row["groups_exact"] + sum(row["groups_inexact"].values())


def weighted(rows: Sequence[Row]) -> float:
    """Share of all parameters of these models, taken together, that lie in some group."""
    return sum(r["prunable"] for r in rows) / max(sum(r["parameters"] for r in rows), 1)


def verdicts(rows: Sequence[Row]) -> Counter[str]:
    """Keep sets by verdict."""
    return sum((Counter(r["keep_sets"]) for r in rows if "keep_sets" in r), Counter())


def typed(rows: Sequence[Row]) -> list[Row]:
    """Those whose network was read and typed."""
    return [r for r in rows if "prunable" in r]


def percent(ratio: float | None) -> str:
    """97.3 %; never rounded to all or to nothing."""
    if ratio is None:
        return ""
    if ratio in (0, 1):
        return f"{100 * ratio:.0f} %"
    return "<0.1 %" if ratio < 0.0005 else ">99.9 %" if 0.9995 <= ratio < 1 else f"{100 * ratio:.1f} %"


def headlines(rows: Sequence[Row]) -> list[str]:
    """What the table says, one sentence a line."""
    good, failed = typed(rows), [r for r in rows if failures(r)]
    said = [
        f"{len(rows)} architectures in {_counted(len({r['family'] for r in rows}), 'family', 'families')}: "
        f"{len(failed) or 'none'} with a failure; {sum(r['nodes'] for r in good):,} nodes, "
        f"{sum(r['parameters'] for r in good):,} parameters."
    ]
    if not good:
        return said
    sets, inexact = verdicts(good), sum(sum(r["groups_inexact"].values()) for r in good)
    lefts, times = [left(r) for r in good], [r["time_share"] for r in good if "time_share" in r]
    first, middle, third = quartiles(lefts)
    said += [
        f"{sum(map(groups, good)):,} groups of coupled channels, {inexact:,} of them inexact by nature (the axis is a "
        "statistic of a norm or a softmax).",
        f"{sets.total():,} random keep sets certified, each group alone and all at once: {sets['exact']:,} exact, "
        f"{sets['vacuous']:,} vacuous, {sets['mismatch']:,} mismatched. {sum(len(r.get('fed', ())) > 1 for r in good)} "
        "architectures ran at two batch sizes; the others have a fixed batch, or run at one size only.",
        f"{percent(weighted(good))} of all parameters lie in groups; median of the architectures "
        f"{percent(statistics.median(map(reached, good)))}.",
        f"With every group halved, {percent(middle)} of a model's parameters are left in the median (quartiles "
        f"{percent(first)} and {percent(third)}).",
    ]
    if times:
        said.append(f"{percent(statistics.median(times))} of the measured time is in nodes of groups, in the median.")
    speeds = [(r["typing_s"], r["nodes"]) for r in good if "typing_s" in r]
    if speeds:
        seconds = [s for s, _ in speeds]
        said.append(
            f"Typing takes {1e3 * statistics.median(seconds):.1f} ms in the median, {sum(seconds):.1f} s for all "
            f"together: {1e6 * sum(seconds) / max(sum(n for _, n in speeds), 1):.0f} us a node.")  # fmt: skip
    return said


def _counted(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


# ---------------------------------------------------------------------------------------------------- the page

def markdown(data: Mapping[str, Any]) -> str:
    """The page: failures first, then the headlines, the picture, families, what stays frozen, and every row."""
    rows = data["rows"]
    good = typed(rows)
    parts = [
        "# Coverage: every architecture, pruned or with the reason why not", "",
        "Written by `python -m tools.coverage`; the numbers are in the .json beside this file. Networks are small,",
        "with random weights, or files that other frameworks wrote (`models/zoo`). A keep set is what stays of a",
        "group; it passes if the pruned network computes what the dense one does with the removed channels masked,",
        "and if the network with the group in another order computes the same, on inputs of two batch sizes where the",
        "batch is open. Time is that of the small networks, at a batch of 16 where it is open; kernels that fusion has",
        "left without a node's name count as outside the groups.", "",
        *_measured_at(rows), *_failures(rows, data.get("missing", ())),
        "## In short", "", *(f"- {line}" for line in headlines(rows)), "",
        "![Share of parameters in groups, and size with every group halved, by family](coverage.svg)", "",
        "## By family", "", *_table(*_families(good)), "",
        "## Inexact by nature", "",
        "Removing a channel is not the same as zeroing it where a statistic runs over the axis. These groups have no "
        "masked oracle; the permutation oracle shows that they were found completely.", "",
        *_table(*_inexact(good)), "",
        "## What stays frozen, and what it would take", "",
        "Over all models, by reason: parameters that lie in no group for it, and those that would shrink if its axes",
        "were free, many of which shrink already along another axis.", "",
        *_table(*_frozen(good)), "",
        "## Every architecture", "", *_table(*_everything(good)), "",
    ]  # fmt: skip
    return "\n".join(parts)


_LISTED = 20


def _measured_at(rows: Sequence[Row]) -> list[str]:
    hosts, dates = sorted({r["host"] for r in rows if "host" in r}), sorted({r["date"] for r in rows})
    if not rows:
        return []
    return [f"{'; '.join(hosts)}. {dates[0]}{f' to {dates[-1]}' if len(dates) > 1 else ''}.", ""]


def _failures(rows: Sequence[Row], missing: Sequence[str]) -> list[str]:
    """Everything that went wrong, by name."""
    wrong = [(r["name"], text) for r in rows for text in failures(r)]
    parts = ["## Failures", ""]
    if not wrong and not missing:
        return [*parts, "None.", ""]
    if wrong:
        parts += [*(f"- {name}: {_plain(text)}" for name, text in wrong), ""]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        parts += [f"Not measured yet: {', '.join(map(_plain, missing[:_LISTED]))}{more}.", ""]
    return parts


_Column = tuple[str, bool]
"""A title, and whether the cells are text, which is set to the left."""


def _families(rows: Sequence[Row]) -> tuple[list[_Column], list[list[str]]]:
    columns = [("family", True), *((name, False) for name in (
        "architectures", "groups", "inexact", "keep sets", "mismatched", "parameters in groups", "median",
        "time in groups, median", "halved, median", "typing, us a node"))]  # fmt: skip
    body = []
    for family, found in _by(rows, lambda r: r["family"]).items():
        sets = verdicts(found)
        times = [r["time_share"] for r in found if "time_share" in r]
        speeds = [1e6 * r["typing_s"] / max(r["nodes"], 1) for r in found if "typing_s" in r]
        body.append([
            family, f"{len(found)}", f"{sum(map(groups, found)):,}",
            f"{sum(sum(r['groups_inexact'].values()) for r in found):,}", f"{sets.total():,}", f"{sets['mismatch']}",
            percent(weighted(found)), percent(statistics.median(map(reached, found))),
            percent(statistics.median(times)) if times else "", percent(statistics.median(map(left, found))),
            f"{statistics.median(speeds):.0f}" if speeds else "",
        ])  # fmt: skip
    return columns, body


def _inexact(rows: Sequence[Row]) -> tuple[list[_Column], list[list[str]]]:
    found: Counter[str] = sum((Counter(r["groups_inexact"]) for r in rows), Counter())
    where = Counter(reason for r in rows for reason in r["groups_inexact"])
    return [("because", True), ("groups", False), ("architectures", False)], [
        [reason, f"{n:,}", f"{where[reason]}"] for reason, n in found.most_common()]


def _frozen(rows: Sequence[Row]) -> tuple[list[_Column], list[list[str]]]:
    total = max(sum(r["parameters"] for r in rows), 1)
    found: dict[str, list[tuple[Row, Row]]] = defaultdict(list)  # (architecture, what it says of the reason)
    for r in rows:
        for f in r["frozen"]:
            found[f["reason"]].append((r, f))
    columns = [("reason", True), ("parameters in no group", False), ("share of all", False),
               ("would shrink", False), ("architectures", False), ("most in", True), ("what it would take", True)]
    body = []
    for reason, where in found.items():
        outside, locked = (sum(f[key] for _, f in where) for key in ("parameters", "locked"))
        most, _ = max(where, key=lambda pair: (pair[1]["parameters"], pair[1]["locked"]))
        body.append((outside, locked, [reason, f"{outside:,}", percent(outside / total), f"{locked:,}", f"{len(where)}",
                                       most["name"], where[-1][1]["hint"]]))  # fmt: skip
    return columns, [cells for _, _, cells in sorted(body, key=lambda line: (-line[0], -line[1], line[2][0]))]


def _everything(rows: Sequence[Row]) -> tuple[list[_Column], list[list[str]]]:
    left_side = ("architecture", "family", "origin", "export", "frozen mostly because")
    names = ("architecture", "family", "origin", "export", "nodes", "parameters", "groups exact", "inexact",
             "parameters in groups", "in exact ones", "time in groups", "in exact ones", "halved", "exact ones halved",
             "keep sets", "exact", "vacuous", "mismatched", "typing, ms", "us a node", "prepare, s",
             "frozen mostly because")  # fmt: skip
    return [(name, name in left_side) for name in names], [_cells(r) for r in rows]


def _cells(r: Row) -> list[str]:
    n, sets = max(r["parameters"], 1), Counter(r.get("keep_sets", {}))
    typing = r.get("typing_s")
    return [
        r["name"], r["family"], r["origin"], f"{r['exporter'] or 'file'}, opset {r['opset']}", f"{r['nodes']:,}",
        f"{r['parameters']:,}", f"{r['groups_exact']}", f"{sum(r['groups_inexact'].values())}", percent(reached(r)),
        percent(r["prunable_exact"] / n), percent(r.get("time_share")), percent(r.get("time_share_exact")),
        percent(left(r)), percent(r["halved_exact"] / n),
        *(str(k) if "keep_sets" in r else "" for k in (sets.total(), sets["exact"], sets["vacuous"], sets["mismatch"])),
        *((f"{1e3 * typing:.1f}", f"{1e6 * typing / max(r['nodes'], 1):.0f}") if typing is not None else ("", "")),
        f"{r['prepare_s']:.2f}",
        "; ".join(f"{f['reason']} ({percent(f['parameters'] / n)})" for f in r["frozen"][:3] if f["parameters"]),
    ]  # fmt: skip


def _table(columns: Sequence[_Column], body: Sequence[Sequence[str]]) -> Iterator[str]:
    if not body:
        yield "None."
        return
    yield "| " + " | ".join(name for name, _ in columns) + " |"
    yield "|" + "|".join(" --- " if text else " ---: " for _, text in columns) + "|"
    for cells in body:
        yield "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    """Text that Markdown takes as it is."""
    return re.sub(r"([|<>*`\\\[\]])", r"\\\1", " ".join(text.split()))


def _by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


# ------------------------------------------------------------------------------------------------- the picture

_LEFT, _PANEL, _GAP, _TOP, _STRIP, _BOTTOM, _RADIUS = 158, 300, 44, 48, 30, 34, 3.2
_STYLE = """
 text { font: 12px system-ui, -apple-system, sans-serif; fill: #52514e } .title { font-weight: 600; fill: #0b0b0b }
 .back { fill: #fcfcfb } .grid { stroke: #e1e0d9 } .middle { stroke: #0b0b0b; stroke-width: 2 }
 .in { fill: #2a78d6 } .half { fill: #b4602a } .dot { fill-opacity: .45 }
 @media (prefers-color-scheme: dark) {
  text { fill: #c3c2b7 } .title { fill: #fff } .back { fill: #1a1a19 } .grid { stroke: #33332f }
  .middle { stroke: #fff } .in { fill: #5a9ff0 } .half { fill: #e08a52 }
 }
"""


def picture(rows: Sequence[Row]) -> str:
    """Two panels side by side, a strip for each family and a dot for each architecture: its share of parameters in
    groups, and its size with every group halved. A bar marks the median of the family."""
    families = _by(typed(rows), lambda r: r["family"])
    width, height = _LEFT + 2 * _PANEL + _GAP + 30, _TOP + len(families) * _STRIP + _BOTTOM
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}" role="img" aria-label="Coverage by family"><style>{_STYLE}</style>',
             f'<rect class="back" width="{width}" height="{height}" rx="6"/>']  # fmt: skip
    for i, (family, found) in enumerate(families.items()):
        y = _TOP + (i + 0.5) * _STRIP
        parts.append(f'<text x="{_LEFT - 14}" y="{y + 4:.1f}" text-anchor="end">{html.escape(family)} '
                     f'({len(found)})</text>')  # fmt: skip
    for x, css, title, value in ((_LEFT, "in", "parameters in groups", reached),
                                 (_LEFT + _PANEL + _GAP, "half", "parameters left, every group halved", left)):
        parts += _panel(x, css, title, value, families)
    return "\n".join([*parts, "</svg>", ""])


def _panel(x: float, css: str, title: str, value: Callable[[Row], float],
           families: Mapping[str, Sequence[Row]]) -> Iterator[str]:  # fmt: skip
    bottom = _TOP + len(families) * _STRIP
    yield f'<text class="title" x="{x}" y="26">{title}</text>'
    for tick in range(0, 101, 25):
        at = x + tick / 100 * _PANEL
        yield f'<path class="grid" d="M{at:.1f} {_TOP - 6}V{bottom}"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{tick} %</text>'
    for i, rows in enumerate(families.values()):
        y = _TOP + (i + 0.5) * _STRIP
        for row, offset in zip(rows, _spread(rows, value), strict=True):
            says = html.escape(f"{row['name']}: {percent(value(row))}")
            yield (f'<circle class="dot {css}" cx="{x + value(row) * _PANEL:.1f}" cy="{y + offset:.1f}" r="{_RADIUS}">'
                   f"<title>{says}</title></circle>")  # fmt: skip
        middle = x + statistics.median(map(value, rows)) * _PANEL
        yield f'<path class="middle" d="M{middle:.1f} {y - 11:.1f}v22"/>'


def _spread(rows: Sequence[Row], value: Callable[[Row], float]) -> list[float]:
    """How far each dot lies above or below the middle of its strip, so that dots of about equal values stay apart."""
    near = _by(rows, lambda r: str(round(value(r) * _PANEL / (2 * _RADIUS))))
    place = {r["name"]: (k, len(found)) for found in near.values() for k, r in enumerate(found)}
    room = _STRIP / 2 - _RADIUS - 2

    def offset(k: int, n: int) -> float:
        step = min(2 * _RADIUS, 2 * room / max(n - 1, 1))
        return (k - (n - 1) / 2) * step

    return [offset(*place[r["name"]]) for r in rows]


