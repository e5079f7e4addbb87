"""A device as its data sheet describes it: rates, bandwidths and sizes, every figure with its source and date.

Reads and checks the files (TOML), packaged or a user's own. Knows nothing of models; `roofline` computes times.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from graphprune.errors import UsageError

BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
"""Bytes of a value by precision."""
REQUIRED = ("peak.fp32", "units.count", "units.clock_ghz", "memory.gb_s")
OPTIONAL = (
    *(f"peak.{name}" for name in BYTES if name != "fp32"), "units.single_clock_ghz", "memory.gb", "memory.unit_gb_s",
    "cache.l1_kb", "cache.l2_mb", "cache.l2_gb_s", "cache.l3_mb", "cache.l3_gb_s", "tile.m", "tile.n", "tile.k",
    "overhead.launch_us",
)  # fmt: skip
_WORDS = ("title", "kind", "family", "precision", "capability")
_SIZE_LIMIT = 1_000_000
_LEAST, _MOST, _MOST_WHOLE = 1e-9, 1e15, 2**20
_WHOLE = ("units.count", "tile.m", "tile.n", "tile.k")


@dataclass(frozen=True)
class Figure:
    """One number and where it comes from. source: title and date of the document; note: how it was derived."""

    value: float
    source: str
    note: str = ""


@dataclass(frozen=True)
class Device:
    """name: how it is asked for; aliases: what people and drivers call it. family: the micro-architecture; what was
    measured on one member says something of the others. precision: what a deployed dense model usually runs in.

    figures: "section.name" -> Figure, in the units that `UNITS` gives. units: how many of its cores are to be used
    (None: all).
    """

    name: str
    title: str
    kind: Literal["gpu", "cpu"]
    family: str
    precision: str
    figures: Mapping[str, Figure] = field(repr=False)
    aliases: tuple[str, ...] = ()
    capability: str = ""
    units: int | None = None

    def figure(self, name: str, default: float = math.nan) -> float:
        """A figure, or `default` where the file has none."""
        found = self.figures.get(name)
        return default if found is None else found.value

    @property
    def count(self) -> int:
        """Streaming multiprocessors or cores in use."""
        return self.units or round(self.figure("units.count"))

    def peak(self, precision: str) -> float:
        """Operations per second of one unit (a multiply-add is two) at a precision; what the device has no instructions
        for runs at the next better one that it has."""
        for name in _fallbacks(precision):
            found = self.figure(f"peak.{name}")
            if not math.isnan(found):
                return found * 1e12 / self.figure("units.count") * self._clock_ratio
        raise AssertionError("every device has peak.fp32")

    def runs(self, precision: str) -> bool:
        """Whether it has instructions for a precision."""
        return f"peak.{precision}" in self.figures

    @property
    def _clock_ratio(self) -> float:
        """How much faster the clock is where one core alone is busy."""
        if self.count > 1:
            return 1.0
        clock = self.figure("units.clock_ghz")
        return self.figure("units.single_clock_ghz", clock) / clock

    @property
    def bandwidth(self) -> float:
        """Bytes per second from memory into the units in use."""
        whole = self.figure("memory.gb_s")
        return 1e9 * min(whole, self.count * self.figure("memory.unit_gb_s", whole))

    def using(self, units: int) -> Device:
        """The same device with so many of its units at work. Raises UsageError where it has fewer."""
        if units > self.figure("units.count"):
            raise UsageError(f"{self.title} has {self.figure('units.count'):g} cores, not {units}", at="--threads",
                             fix=f"give at most --threads {self.figure('units.count'):g}")  # fmt: skip
        return replace(self, units=units)


UNITS = {
    "peak": "Tera-operations/s", "units.count": "", "units.clock_ghz": "GHz", "units.single_clock_ghz": "GHz",
    "memory.gb": "GB", "memory.gb_s": "GB/s", "memory.unit_gb_s": "GB/s", "cache.l1_kb": "KiB", "cache.l2_mb": "MiB",
    "cache.l2_gb_s": "GB/s", "cache.l3_mb": "MiB", "cache.l3_gb_s": "GB/s", "tile": "", "overhead.launch_us": "us",
}  # fmt: skip
"""What the figures of a file are in; those of a section of one unit under the name of the section."""


def _fallbacks(precision: str) -> tuple[str, ...]:
    """What computes in place of a precision that the hardware lacks, best first."""
    return {
        "int4": ("int8", "fp16", "fp32"), "int8": ("int8", "fp16", "fp32"), "fp8": ("fp8", "fp16", "fp32"),
        "bf16": ("bf16", "tf32", "fp32"), "fp16": ("fp16", "tf32", "fp32"), "tf32": ("tf32", "fp32"),
    }.get(precision, ("fp32",))  # fmt: skip


def read(path: Path) -> Device:
    """A device from its file, under the name of the file. Raises UsageError naming the entry that is wrong."""
    fix = "see the files that come with graphprune: graphprune devices --show a100"
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise UsageError("too large for the description of a device", at=str(path), fix=fix)
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("there is no such file", at=str(path)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"not a description of a device: {error}", at=str(path), fix=fix) from error
    return parse(plain, path.stem, str(path))


def parse(plain: Mapping[str, Any], name: str, at: str) -> Device:
    """A device from plain data of the form of the files. Raises UsageError naming the entry that is wrong."""
    sources = _sources(plain.get("sources"), at)
    known = {*REQUIRED, *OPTIONAL}
    figures = {}
    for section, entries in plain.items():
        if section in (*_WORDS, "name", "aliases", "sources"):
            continue
        if section not in {n.partition(".")[0] for n in known} or not isinstance(entries, Mapping):
            raise UsageError(f"{section!r} is no part of the description of a device", at=at,
                             fix=f"the sections are {', '.join(sorted({n.partition('.')[0] for n in known}))}")
        for key, entry in entries.items():
            if f"{section}.{key}" not in known:
                raise UsageError(f"there is no figure {section}.{key}", at=at,
                                 fix=f"one of {', '.join(sorted(n for n in known if n.startswith(section)))}")
            figures[f"{section}.{key}"] = _figure(entry, sources, f"{at}: {section}.{key}")
    if missing := [n for n in REQUIRED if n not in figures]:
        raise UsageError(f"{missing[0]} is missing", at=at, fix=f"a device needs {', '.join(REQUIRED)}")
    words = {key: plain.get(key, "") for key in _WORDS}
    if wrong := [key for key, word in words.items() if not isinstance(word, str) or (key != "capability" and not word)]:
        raise UsageError(f"{wrong[0]!r} is missing or no text", at=at, fix=f"a device has {', '.join(_WORDS)}")
    if words["kind"] not in ("gpu", "cpu"):
        raise UsageError(f"the kind {words['kind']!r} is unknown", at=at, fix='kind = "gpu" or "cpu"')
    if words["precision"] not in BYTES:
        raise UsageError(f"the precision {words['precision']!r} is unknown", at=at, fix=f"one of {', '.join(BYTES)}")
    aliases = plain.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise UsageError("aliases are a list of names", at=at)
    return Device(name=name, figures=figures, aliases=tuple(aliases), **words)


def _sources(entries: Any, at: str) -> dict[str, str]:
    if not isinstance(entries, Mapping) or not entries:
        raise UsageError("no [sources]: every figure says where it is from", at=at)
    found = {}
    for key, entry in entries.items():
        if not isinstance(entry, Mapping) or not {"title", "date"} <= entry.keys():
            raise UsageError(f"the source {key!r} needs a title and a date", at=at)
        found[key] = f"{entry['title']}, {entry['date']}" + (f", {entry['url']}" if entry.get("url") else "")
    return found


def _figure(entry: Any, sources: Mapping[str, str], at: str) -> Figure:
    value = entry.get("value") if isinstance(entry, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _LEAST <= value <= _MOST:
        raise UsageError("a figure is { value = a number above zero, source = a name of [sources] }", at=at)
    if at.endswith(_WHOLE) and (value != int(value) or value > _MOST_WHOLE):
        raise UsageError(f"{value:g} is no whole number of use here", at=at)
    if not isinstance(entry.get("source"), str) or entry["source"] not in sources:
        raise UsageError(f"the source {entry.get('source')!r} is not among [sources]", at=at,
                         fix=f"one of {', '.join(sources)}")  # fmt: skip
    return Figure(float(value), sources[entry["source"]], str(entry.get("note", "")))
