"""Times of kernels measured on a device, as a file: what they were measured with, and when they go stale.

Owns the form of the file and its checks. `correction` makes predictions of it, `probes` says what to measure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from graphprune.devices.device import BYTES, Device, parse
from graphprune.devices.work import Kind, Work
from graphprune.errors import UsageError

SCHEMA = 1
_SIZE_LIMIT = 100_000_000
_MOST = 2**53
_SIZES, _AMOUNTS = ("batch", "m", "n", "k", "steps"), ("inputs", "outputs", "weights", "operations")
_FIX = "give a table that `graphprune profile` wrote"


@dataclass(frozen=True)
class Key:
    """What times depend on besides the work: they hold for this device, driver and runtime. clocks: as the driver says
    them, for the record. threads: of a processor."""

    device: str
    runtime: str
    driver: str = ""
    threads: int = 1
    clocks: str = ""
    date: str = ""


@dataclass(frozen=True)
class Row:
    """One kernel: its work, its time, and the relative half-width of the 80 % interval of that."""

    work: Work
    ms: float
    spread: float


@dataclass(frozen=True)
class Table:
    """device: the description, as in its own file, with what was measured of it (see `device.parse`)."""

    key: Key
    device: Mapping[str, Any]
    rows: tuple[Row, ...] = field(repr=False)

    def described(self) -> Device:
        """The device that was measured, with the units that were used."""
        found = parse(self.device, self.device.get("name", "measured"), "the table")
        return found.using(self.key.threads) if found.kind == "cpu" else found

    def stale(self, runtime: str, driver: str = "") -> str:
        """In words, how what runs here differs from what was measured; nothing where it does not."""
        pairs = (("runtime", self.key.runtime, runtime), ("driver", self.key.driver, driver))
        return "; ".join(f"measured with {what} {old}, here is {new}" for what, old, new in pairs
                         if old and new and old != new)  # fmt: skip

    def to_json(self) -> str:
        plain = {"schema": SCHEMA, "key": asdict(self.key), "device": dict(self.device),
                 "rows": list(map(plain_row, self.rows))}  # fmt: skip
        return json.dumps(plain, indent=None, separators=(",", ":")).replace('{"op"', '\n{"op"') + "\n"


def plain_row(row: Row) -> dict[str, Any]:
    """The inverse of `row_of`."""
    return asdict(row.work) | {"ms": row.ms, "spread": row.spread}


def read(path: Path) -> Table:
    """A table from its file. Raises UsageError naming what is wrong in it."""
    at = str(path)
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise UsageError("too large for a table of measured times", at=at, fix=_FIX)
        plain = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError("there is no such file", at=at) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"not a table of measured times: {error}", at=at, fix=_FIX) from error
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise UsageError(f"not a table of schema {SCHEMA}", at=at, fix=_FIX)
    try:
        made = Table(_key(plain["key"]), plain["device"], tuple(map(row_of, plain["rows"])))
        if not isinstance(made.device, dict):
            raise ValueError("the device is not described")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"the table has entries missing or unknown: {error}", at=at, fix=_FIX) from error
    if not made.rows:
        raise UsageError("the table is empty", at=at, fix="let `graphprune profile` run to its end")
    made.described()
    return made


def _key(entry: Mapping[str, Any]) -> Key:
    key = Key(**entry)
    words = (key.device, key.runtime, key.driver, key.clocks, key.date)
    if not all(isinstance(w, str) for w in words) or type(key.threads) is not int or not 1 <= key.threads <= _MOST:
        raise ValueError("the key is not one")
    return key


def row_of(entry: Mapping[str, Any]) -> Row:
    """A row from plain data. Raises ValueError, KeyError or TypeError where no kernel can be like that."""
    names = {f.name for f in fields(Work)}
    given = {k: v for k, v in entry.items() if k in names}
    sizes = [given.get(k, 1) for k in _SIZES]
    amounts = [float(given.get(k, 0.0)) for k in _AMOUNTS] + [float(entry["ms"]), float(entry["spread"])]
    right = (isinstance(given["op"], str) and given["kind"] in get_args(Kind)
             and all(type(n) is int and 0 <= n <= _MOST for n in sizes)
             and all(math.isfinite(x) and 0 <= x <= _MOST for x in amounts))  # fmt: skip
    row = Row(Work(**given), float(entry["ms"]), float(entry["spread"]))
    if not right or row.ms <= 0 or row.work.steps < 1 or row.work.precision not in BYTES:
        raise ValueError(f"a row of {row.work.op!r} holds what no kernel has")
    return row
