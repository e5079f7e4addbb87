"""The report as one page that stands alone: no script, no outside resource, light and dark, wide and narrow.

Owns the looks of a `Report`; the numbers are the report's. Every text that comes from a model, a path or a person is
escaped, since node names may hold anything. Bars are inline SVG in per cent, so that they stretch and text does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from graphprune.elsewhere import differing, of
from graphprune.report import (
    CheckRow,
    Report,
    Site,
    TimeRow,
    certificate_text,
    change,
    count,
    difference,
    how_known,
    milliseconds,
    number,
    percent,
    printable,
    size_text,
    spread_text,
    threads_text,
)
from graphprune.report_style import CSS

_TIMES = '<span class="times">\N{MULTIPLICATION SIGN}</span>'
_MARKS = {"exact": "✓", "mismatch": "✗"}
_N_COLOURS = 8
_N_SITES_SHOWN = 60


def render_html(report: Report) -> str:
    """The page for `report`, complete with its style."""
    title = f"{report.model.name}: {report.reached.speedup:.2f}x faster"
    sections = (_warnings(report), _tiles(report), _measured(report), _quality(report), _sites(report), _time(report),
                _elsewhere(report), _certificate(report), _frozen(report), _asked(report))
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><title>{_t(title)}</title><style>{CSS}</style></head>\n'
            f"<body><main>\n{_head(report)}\n" + "\n".join(filter(None, sections)) + "\n</main></body></html>\n")


# ------------------------------------------------------------------------------------------------- sections

def _head(report: Report) -> str:
    asked, reached = report.asked, report.reached
    return (f'<header><p class="eyebrow">graphprune</p><h1>{_t(report.model.name)}</h1>'
            f'<p class="big">{reached.speedup:.2f}{_TIMES}<span class="faster">faster</span></p>'
            f'<p class="lead">{milliseconds(reached.dense_ms)} became <strong>{milliseconds(reached.ms)}</strong>. '
            f"Asked for {_t(asked.target)} on {_t(asked.device)}, {threads_text(asked.threads)}; "
            f"{'measured, ' if reached.is_measured else ''}{_t(how_known(reached))}.</p></header>")


def _warnings(report: Report) -> str:
    items = "".join(f"<li>{_t(warning)}</li>" for warning in report.warnings)
    return f'<aside class="warn"><h2>Mind this</h2><ul>{items}</ul></aside>' if items else ""


def _tiles(report: Report) -> str:
    r, s = report.reached, report.size
    tiles = [("time", milliseconds(r.ms), milliseconds(r.dense_ms), change(r.dense_ms, r.ms)),
             ("parameters", count(s.parameters_after), count(s.parameters_before),
              change(s.parameters_before, s.parameters_after)),
             ("file", size_text(s.bytes_after), size_text(s.bytes_before), change(s.bytes_before, s.bytes_after))]
    if report.quality:
        metric = report.quality[0]
        tiles.append((metric.name, number(metric.value), "" if metric.before is None else number(metric.before),
                      difference(metric.before, metric.value)))
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><span class="label">{_t(label)}</span><span class="value">{_t(after)}</span>'
        f'<span class="was">{f"was {_t(before)}" if before else ""} <b>{delta}</b></span></div>'
        for label, after, before, delta in tiles) + "</div>"


def _measured(report: Report) -> str:
    """Both times on one scale from zero, the spread as a whisker, the target as a dashed line; then the attempts."""
    r, target = report.reached, report.asked.target_speedup
    top = 1.08 * max(ms * (1 + (spread if math.isfinite(spread) else 0))
                     for ms, spread in ((r.dense_ms, r.dense_spread), (r.ms, r.spread)))
    mark = "" if not target else _line(r.dense_ms / target / top, "target")
    rows = "".join(
        f'<div class="bar-row"><span class="name">{label}</span><svg class="bar tall" role="img" aria-label="'
        f'{milliseconds(ms)}">{_rect(0, ms / top, css)}{_whisker(ms / top, spread)}{mark}</svg>'
        f'<span class="num">{milliseconds(ms)} <small>{spread_text(spread)}</small></span></div>'
        for label, css, ms, spread in (("before", "before", r.dense_ms, r.dense_spread),
                                       ("after", "after", r.ms, r.spread)))
    note = f'<p class="note">Whiskers: 80 % interval{" of the median" if r.is_measured else ""}.' + (
        f" Dashed: the time asked for, {milliseconds(r.dense_ms / target)}." if target else "") + "</p>"
    attempts, how = "", "measured" if r.is_measured else "modelled"
    if r.attempts:
        cells = "".join(
            f"<tr><td>{i}</td><td class=num>{a.predicted:.3f}{_TIMES}</td><td class=num>{a.measured:.3f}{_TIMES}</td>"
            f"<td class=num>{100 * (a.measured / a.predicted - 1):+.1f} %</td></tr>"
            for i, a in enumerate(r.attempts, 1))
        attempts = ("<details><summary>The way there: "
                    f"{len(r.attempts)} attempt{'s' * (len(r.attempts) != 1)}, each built and {how}</summary>"
                    f"{_table(('attempt', 'predicted', how, 'off by'), cells)}</details>")
    return f"<section><h2>Before and after</h2>{rows}{note}{attempts}</section>"


def _quality(report: Report) -> str:
    if not report.quality:
        return ""
    rows = "".join(
        f"<tr><td>{_t(m.name)}<br><small>{_t(m.meaning)}</small></td>"
        f"<td class=num>{'' if m.before is None else number(m.before)}</td>"
        f"<td class=num><b>{number(m.value)}</b></td>"
        f"<td class=num>{difference(m.before, m.value)}</td></tr>" for m in report.quality)
    source = "synthetic inputs" if report.asked.synthetic else "inputs that the solver did not see"
    return (f"<section><h2>Quality</h2><p class=note>Against the dense model, on {source}.</p>"
            f"{_table(('metric', 'before', 'after', 'change'), rows)}</section>")


def _sites(report: Report) -> str:
    """One bar per site: what was kept out of what was there. Sites left whole, and a long tail, are folded away."""
    sizes = [site for site in report.sites if not site.choice]
    changed = [site for site in sizes if site.after != site.before]
    whole = [site for site in sizes if site.after == site.before]
    if not sizes:
        return _alternatives(report)
    shown, tail = changed[:_N_SITES_SHOWN], changed[_N_SITES_SHOWN:]
    body = "".join(map(_site, shown))
    for title, sites in ((f"{len(tail)} more", tail), (f"{len(whole)} left whole", whole)):
        if sites:
            body += f"<details><summary>{title}</summary>{''.join(map(_site, sites))}</details>"
    return (f"<section><h2>Widths and ranks</h2><p class=note>{len(changed)} of {len(sizes)} sites were made smaller. "
            '<i class="key after"></i> kept <i class="key removed"></i> removed</p>' f"{body}</section>"
            + _alternatives(report))


def _alternatives(report: Report) -> str:
    """Branches and precisions: how many nodes took which alternative, and which."""
    rows: dict[tuple[str, str, bool], list[Site]] = {}
    for site in report.sites:
        if site.choice:
            rows.setdefault((site.axis, site.choice, site.after != site.before), []).append(site)
    if not rows:
        return ""
    cells = ""
    for (axis, choice, changed), sites in sorted(rows.items(), key=lambda item: (not item[0][2], item[0])):
        names = "".join(f"<li>{_t(', '.join(site.members[:3]) or site.group)}</li>" for site in sites)
        words = f"<b>{_t(choice)}</b>" if changed else _t(choice)
        cells += (f"<tr><td>{_t(axis)}</td><td>{words}</td><td class=num>{len(sites)}</td>"
                  f"<td><details><summary>which</summary><ul>{names}</ul></details></td></tr>")
    return f"<section><h2>Branches and precisions</h2>{_table(('place', 'choice', 'sites', ''), cells)}</section>"


def _site(site: Site) -> str:
    kept = site.after / site.before if site.before else 1.0
    time = "" if site.ms_before is None else f"{milliseconds(site.ms_before)} → {milliseconds(site.ms_after)}"
    members = "".join(f"<li>{_t(member)}</li>" for member in site.members)
    return (f'<div class="site"><details class="name"><summary title="{_t(site.group)}">{_t(site.group)}</summary>'
            f'<p class=dim>{percent(site.parameter_share)} of the parameters; nodes that shrink together:</p>'
            f"<ul>{members}</ul></details>"
            f'<svg class="bar" role="img" aria-label="{site.after} of {site.before} kept">'
            f'{_rect(0, 1, "removed")}{_rect(0, kept, "after")}</svg>'
            f'<span class="num">{site.before:,} → <b>{site.after:,}</b></span>'
            f'<span class="axis dim">{_t(site.axis)}</span><span class="num time dim">{time}</span></div>')


def _time(report: Report) -> str:
    """Where the time went: the same kinds of kernel stacked in two bars of one scale."""
    if not report.time:
        return ""
    rows = sorted(report.time, key=lambda row: -row.ms_before)
    shown, rest = rows[:_N_COLOURS], rows[_N_COLOURS:]
    if rest:
        predicted = [row.ms_predicted for row in rest]
        before, after = sum(row.ms_before for row in rest), sum(row.ms_after for row in rest)
        shown.append(TimeRow(f"{len(rest)} others", before, after, None if None in predicted else sum(predicted)))
    total = max(sum(row.ms_before for row in rows), sum(row.ms_after for row in rows)) or 1.0
    bars = ""
    for label, values in (("before", [row.ms_before for row in shown]), ("after", [row.ms_after for row in shown])):
        start, parts = 0.0, ""
        for i, (row, ms) in enumerate(zip(shown, values, strict=True)):
            parts += _rect(start, ms / total, f"c{i}", f"{row.op}: {milliseconds(ms)}")
            start += ms / total
        bars += (f'<div class="bar-row"><span class="name">{label}</span><svg class="bar tall" role="img" '
                 f'aria-label="time {label}, by kernel">{parts}</svg><span class="num">{milliseconds(sum(values))}'
                 "</span></div>")
    with_prediction = any(row.ms_predicted is not None for row in shown)
    cells = "".join(
        f'<tr><td><i class="key c{i}"></i> {_t(row.op)}</td><td class=num>{milliseconds(row.ms_before)}</td>'
        f"<td class=num>{milliseconds(row.ms_after)}</td><td class=num>{change(row.ms_before, row.ms_after)}</td>"
        + (f"<td class='num dim'>{milliseconds(row.ms_predicted)}</td>" if with_prediction else "") + "</tr>"
        for i, row in enumerate(shown))
    titles = ("kernel", "before", "after", "change") + (("predicted",) if with_prediction else ())
    return f"<section><h2>Where the time goes</h2>{bars}{_table(titles, cells)}</section>"


def _certificate(report: Report) -> str:
    """Each check on a logarithmic axis: the difference found, far left of the effect of the removal."""
    if not report.certificate:
        return ""
    good, words = certificate_text(report.certificate)
    verdict = f'<p class="verdict {"good" if good else "bad"}">{_t(words)}.</p>'
    values = [v for check in report.certificate for v in (check.difference, check.effect) if 0 < v < math.inf]
    low, high = (math.log10(min(values)), math.log10(max(values))) if values else (0.0, 0.0)
    low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    rows = "".join(_check(check, low, high) for check in report.certificate)
    return ("<section><h2>Certificate</h2>" + verdict +
            "<p class=note>The narrower model must compute what the dense one computes with the removed channels "
            'silenced. <i class="dot after"></i> difference found, <i class="dot before"></i> effect of the removal; '
            f"logarithmic, {_power(low)} to {_power(high)}, relative to the output.</p>{rows}</section>")


def _check(check: CheckRow, low: int, high: int) -> str:
    def place(value: float) -> float:
        if not 0 < value < math.inf:
            return 0.0 if value == 0 else 1.0
        return (math.log10(value) - low) / (high - low)

    a, b = (0.02 + 0.96 * place(v) for v in (check.difference, check.effect))
    grid = "".join(_line(0.02 + 0.96 * i / (high - low), "grid") for i in range(high - low + 1))
    css = "failed" if check.verdict == "mismatch" else "after"
    dots = (f'{grid}<line class="gap" x1="{100 * a:.2f}%" x2="{100 * b:.2f}%" y1="50%" y2="50%"/>'
            f'<circle class="before" cx="{100 * b:.2f}%" cy="50%" r="5"/>'
            f'<circle class="{css}" cx="{100 * a:.2f}%" cy="50%" r="5"/>')
    return (f'<div class="bar-row check"><span class="name">{_t(check.name)} <small class=dim>{_t(check.shape)}</small>'
            f'</span><svg class="bar plain" role="img" aria-label="difference {number(check.difference)}, effect '
            f'{number(check.effect)}">{dots}</svg><span class="num">{number(check.difference)} '
            f"<small>/ {number(check.effect)}</small> {_MARKS.get(check.verdict, _t(check.verdict))}</span></div>")


def _elsewhere(report: Report) -> str:
    """What other devices chose differently, with the share of their time that is at stake."""
    if not report.elsewhere:
        return ""
    seen = [of(report), *report.elsewhere]
    sites = differing(seen)
    titles = ("site", *(f"{_t(e.device)}, {e.speedup:.2f}{_TIMES}" for e in seen))
    rows = ""
    for name in sites[:_N_SITES_SHOWN]:
        cells = "".join(f"<td class=num>{_t(e.chosen.get(name, '-'))} "
                        f"<small class=dim>{percent(e.time_share.get(name))}</small></td>" for e in seen)
        rows += f"<tr><td class=mono>{_t(name)}</td>{cells}</tr>"
    note = (f'<p class="note">{len(sites):,} of {len(seen[0].chosen):,} sites differ; the percentage is the share of '
            "the dense time on that device that depends on the site: what costs little there is worth little.</p>")
    return f"<section><h2>On other devices</h2>{_table(titles, rows)}{note}</section>"


def _frozen(report: Report) -> str:
    if not report.frozen:
        return ""
    rows = "".join(
        f"<tr><td>{_t(row.reason)}<br><small class='dim mono'>{_t(row.example)}</small></td>"
        f"<td class=num>{row.count:,}</td>"
        f"<td class=num>{percent(row.parameter_share)}{_share(row.parameter_share)}</td>"
        f"<td class=num>{percent(row.time_share)}{_share(row.time_share)}</td></tr>"
        for row in sorted(report.frozen, key=lambda row: (-(row.time_share or 0), -row.parameter_share)))
    return ("<section><h2>What was left alone, and why</h2>"
            f"{_table(('reason', 'axes', 'parameters', 'time'), rows)}</section>")


def _asked(report: Report) -> str:
    asked, model = report.asked, report.model
    calibration = f"{asked.n_calibration} feeds from {asked.calibration}"
    facts = [("target", asked.target), ("device", f"{asked.device}, {threads_text(asked.threads)}"),
             ("passes", ", ".join(asked.passes)), ("score", asked.score), ("calibration", calibration),
             *((f"shape of {name}", shape) for name, shape in asked.shapes.items()), ("seed", str(asked.seed)),
             ("model", f"{model.nodes:,} nodes, {model.parameters:,} parameters, {model.bytes:,} bytes"),
             ("sha256", model.sha256), *report.environment.items()]
    items = "".join(f"<dt>{_t(key)}</dt><dd>{_t(value)}</dd>" for key, value in facts)
    return f"<section><h2>What was asked, and of what</h2><dl>{items}</dl></section>"


# --------------------------------------------------------------------------------------------------- pieces

def _t(text: str) -> str:
    return escape(printable(str(text)))


def _table(titles: Iterable[str], rows: str) -> str:
    head = "".join(f"<th{'' if i == 0 else ' class=num'}>{title}</th>" for i, title in enumerate(titles))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _rect(start: float, width: float, css: str, title: str = "") -> str:
    inner = f"<title>{_t(title)}</title>" if title else ""
    return (f'<rect class="{css}" x="{100 * start:.3f}%" width="{100 * max(width, 0):.3f}%" height="100%">'
            f"{inner}</rect>")


def _line(at: float, css: str) -> str:
    return f'<line class="{css}" x1="{100 * at:.2f}%" x2="{100 * at:.2f}%" y1="0" y2="100%"/>'


def _whisker(at: float, spread: float) -> str:
    if not math.isfinite(spread):
        return ""
    low, high = 100 * at * (1 - spread), 100 * at * (1 + spread)
    ends = "".join(f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="30%" y2="70%"/>' for x in (low, high))
    return f'<g class="whisker"><line x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>{ends}</g>'


def _share(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return ""
    return f'<svg class="mini" aria-hidden="true">{_rect(0, 1, "removed")}{_rect(0, min(share, 1), "before")}</svg>'


def _power(exponent: int) -> str:
    return f"10<sup>{exponent}</sup>".replace("-", "\N{MINUS SIGN}")
