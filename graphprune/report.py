"""The report of a compilation: plain data that proves what was reached, its JSON form, and its summary on a terminal.

Times are milliseconds; a spread is relative (half-width of the 80 % interval over the value); shares and fractions are
of 1; sizes are counts or bytes. The driver fills it in, `report_html` draws it, nothing here measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from graphprune.errors import UsageError
from graphprune.target import Ratio, Source

if TYPE_CHECKING:
    from rich.console import Group

SCHEMA = 1
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class ModelFacts:
    """The model that came in."""

    name: str
    sha256: str
    nodes: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Asked:
    """What was asked for. `target_speedup` is the target as a factor, for drawing; `calibration` is the source."""

    target: str
    device: str
    threads: int
    seed: int
    passes: tuple[str, ...]
    score: str
    calibration: str
    n_calibration: int
    synthetic: bool
    shapes: dict[str, str] = field(default_factory=dict)
    target_speedup: float | None = None


@dataclass(frozen=True)
class Attempt:
    """One turn of the closed loop: the speed-up that the plan promised and the one that its model had."""

    predicted: float
    measured: float


@dataclass(frozen=True)
class Reached:
    """The interleaved measurement of the dense and the compressed model, and the attempts that led there. source: how
    the times are known, "measured" or what `target.Source` else has; then `rounds` are draws of a prediction."""

    dense_ms: float
    dense_spread: float
    ms: float
    spread: float
    speedup: float
    speedup_spread: float
    rounds: int
    attempts: tuple[Attempt, ...] = ()
    source: Source = "measured"

    @property
    def is_measured(self) -> bool:
        return self.source == "measured"

    @property
    def ratio(self) -> Ratio:
        return Ratio(self.speedup, self.speedup_spread, self.source)


@dataclass(frozen=True)
class Size:
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Metric:
    """One measure of quality; `before` is the dense model's value where the metric has one. Meaning: in words."""

    name: str
    value: float
    meaning: str
    before: float | None = None


@dataclass(frozen=True)
class Site:
    """One place where the solver chose: the site, the nodes concerned, and its size (or the number of the alternative
    taken, `choice` in words) before and after."""

    group: str
    members: tuple[str, ...]
    axis: str
    before: int
    after: int
    parameter_share: float
    ms_before: float | None = None
    ms_after: float | None = None
    choice: str = ""


@dataclass(frozen=True)
class TimeRow:
    """Time of all kernels of one kind (`op`), or of one kernel, in the dense and in the compressed model."""

    op: str
    ms_before: float
    ms_after: float
    ms_predicted: float | None = None


@dataclass(frozen=True)
class FrozenRow:
    """Axes that no pass may touch, by reason, with the share of parameters and of time that they hold."""

    reason: str
    count: int
    parameter_share: float
    time_share: float | None
    example: str


@dataclass(frozen=True)
class Elsewhere:
    """What was chosen for the same model and target on another device: its size, or alternative in words, by site, and
    the share of the dense time there that depends on the site."""

    device: str
    speedup: float
    source: str
    chosen: dict[str, str]
    time_share: dict[str, float]


@dataclass(frozen=True)
class CheckRow:
    """One comparison of the certificate: `difference` found where none should be, beside the `effect` of removal.

    verdict: "exact", "vacuous" (nothing differed, but the removal changed nothing either) or "mismatch".
    """

    name: str
    shape: str
    difference: float
    effect: float
    verdict: str


@dataclass(frozen=True)
class Report:
    model: ModelFacts
    asked: Asked
    reached: Reached
    size: Size
    quality: tuple[Metric, ...] = ()
    sites: tuple[Site, ...] = ()
    time: tuple[TimeRow, ...] = ()
    frozen: tuple[FrozenRow, ...] = ()
    certificate: tuple[CheckRow, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, text and numbers; what is not a finite number becomes None, since JSON has no word."""
        return {"schema": SCHEMA} | _plain(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The inverse of `to_dict`. Raises UsageError for another schema, or fields missing, unknown or mistyped."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise UsageError(f"not a report of schema {SCHEMA}, found {found!r}",
                             fix="read it with the version of graphprune that wrote it")
        return _build(cls, {k: v for k, v in data.items() if k != "schema"}, "report")

    def to_json(self) -> str:
        return json_text(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"not a report: {error}", fix="give the report.json that a compilation wrote") from error


def json_text(value: Any) -> str:
    """Any plain data of ours, dataclasses included, as JSON; what is not a finite number becomes null."""
    return json.dumps(_plain(value), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a report holds plain data, not {type(value).__name__}")


def _build(kind: Any, data: Any, at: str) -> Any:
    """`data` from JSON as an object of type `kind`; a float that is None was not finite."""
    if is_dataclass(kind):
        names = {f.name for f in fields(kind)}
        required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        if not isinstance(data, dict) or not required <= data.keys() <= names:
            wrong = required - data.keys() | data.keys() - names if isinstance(data, dict) else {type(data).__name__}
            raise UsageError("the report has fields missing or unknown", at=f"{at}: {', '.join(sorted(wrong))}")
        hints = get_type_hints(kind)
        return kind(**{name: _build(hints[name], item, f"{at}.{name}") for name, item in data.items()})
    if get_origin(kind) is tuple and isinstance(data, list):
        return tuple(_build(get_args(kind)[0], item, f"{at}[{i}]") for i, item in enumerate(data))
    if get_origin(kind) is dict and isinstance(data, dict):
        return {key: _build(get_args(kind)[1], item, f"{at}.{key}") for key, item in data.items()}
    options = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        if data not in options:
            raise UsageError(f"{data!r} where one of {', '.join(map(str, options))} is expected", at=at)
        return data
    if data is None and type(None) in options:
        return None
    if float in options and (data is None or type(data) in (int, float)):
        return math.nan if data is None else float(data)
    if type(data) in options:
        return data
    raise UsageError(f"{type(data).__name__} where {getattr(kind, '__name__', kind)} is expected", at=at)


# ---------------------------------------------------------------------------------------- numbers as people say

def milliseconds(ms: float | None) -> str:
    """1.23 ms; seconds from 10 s on, microseconds under 0.1 ms."""
    if ms is None or not math.isfinite(ms):
        return "-"
    if abs(ms) >= 1e4:
        return f"{_digits(ms / 1e3)} s"
    return f"{_digits(ms)} ms" if abs(ms) >= 0.1 or ms == 0 else f"{_digits(ms * 1e3)} us"


def count(n: float) -> str:
    """12.3 M, 450 k, 12."""
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(n) >= scale:
            return f"{_digits(n / (1e3 if unit == ' k' else scale))}{unit}"
    return f"{n:,.0f}"


def size_text(n_bytes: float) -> str:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= scale:
            return f"{_digits(n_bytes / scale)} {unit}"
    return f"{n_bytes:.0f} B"


def percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f} %"


def spread_text(spread: float) -> str:
    return f"± {percent(spread)}" if math.isfinite(spread) else "spread unknown"


def change(before: float, after: float) -> str:
    """-61 %, +3 %: relative change."""
    if not before:
        return "-"
    rounded = round(100 * (after / before - 1))
    return f"{rounded:+d} %".replace("-", MINUS) if rounded else "0 %"


def difference(before: float | None, after: float) -> str:
    """-0.012, +0.003: of a metric, in its own points; nothing where there is none before."""
    if before is None or not math.isfinite(after - before):
        return ""
    return f"{'+' if after >= before else MINUS}{number(abs(after - before))}"


def how_known(reached: Reached) -> str:
    """How sure the speed-up is: measured with its spread, or a prediction and what is missing for more."""
    if reached.is_measured:
        return f"{spread_text(reached.speedup_spread)}, {reached.rounds} interleaved rounds"
    why = {"interpolated": "predicted from times measured on such a device or one of its family",
           "extrapolated": "predicted from such times, beyond the sizes that were measured",
           "analytic": "unverified: no measurement on this device"}[reached.source]  # fmt: skip
    return f"expected, {spread_text(reached.speedup_spread)}, {why}"


def threads_text(threads: int) -> str:
    return f"{threads} thread{'s' * (threads != 1)}"


def number(value: float) -> str:
    """A metric: four digits, scientific when tiny."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def certificate_text(checks: Sequence[CheckRow]) -> tuple[bool, str]:
    """(did every check pass, that in words with the numbers that matter)."""
    wrong = [check for check in checks if check.verdict == "mismatch"]
    shown = [check for check in checks if check.verdict == "exact"]
    worst = max(wrong or shown or checks, key=lambda check: check.difference)
    beside = f"{number(worst.difference)}, where the removal has an effect of {number(worst.effect)}"
    if wrong:
        return False, f"{len(wrong)} of {len(checks)} checks failed: {printable(worst.name)} differs by {beside}"
    vacuous = len(checks) - len(shown)
    return True, f"{len(shown)} of {len(checks)} checks hold, largest difference {beside}" + (
        f"; {vacuous} showed nothing, because the removal changed no output" if vacuous else "")


def printable(text: str) -> str:
    """Text from a model or a file, with control and other unprintable characters spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _digits(value: float) -> str:
    """Three significant digits without an exponent."""
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, 3 - whole)}f}"


# ------------------------------------------------------------------------------------------- the summary table

def render_text(report: Report) -> Group:
    """The end of a command-line run: what was reached, size, quality, certificate, warnings. For a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    r, s = report.reached, report.size
    headline = Text.assemble(
        (f"{r.speedup:.2f}x faster", "bold green" if r.is_measured else "bold yellow"),
        f" ({how_known(r)}), asked for "
        f"{printable(report.asked.target)} on {printable(report.asked.device)}, {threads_text(report.asked.threads)}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(Text(printable(report.model.name)), no_wrap=True)
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    table.add_row("time", f"{milliseconds(r.dense_ms)} {spread_text(r.dense_spread)}",
                  f"{milliseconds(r.ms)} {spread_text(r.spread)}", change(r.dense_ms, r.ms))
    table.add_row("parameters", count(s.parameters_before), count(s.parameters_after),
                  change(s.parameters_before, s.parameters_after))
    table.add_row("file", size_text(s.bytes_before), size_text(s.bytes_after), change(s.bytes_before, s.bytes_after))
    for metric in report.quality:
        before = "" if metric.before is None else number(metric.before)
        table.add_row(Text(printable(metric.name)), before, number(metric.value),
                      difference(metric.before, metric.value),
                      Text(printable(metric.meaning), style="dim"))
    parts: list[Any] = [headline, Text(), table, Text()]
    if report.certificate:
        good, words = certificate_text(report.certificate)
        parts.append(Text.assemble("certificate: ", (words, "" if good else "bold red")))
    parts += [Text.assemble(("warning", "bold yellow"), f": {printable(warning)}") for warning in report.warnings]
    return Group(*parts)
