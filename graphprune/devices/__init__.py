"""Devices that are not here: what data sheets say of them, what was measured on them, and the times this predicts.

    device.py      a device from its file; data/ holds those that come with graphprune
    work.py        what a kernel has to compute and to move
    fusion.py      which nodes a GPU engine runs as one kernel
    roofline.py    the time of a kernel from figures of the data sheet
    table.py       times measured on a device, as a file; probes.py: what to measure
    correction.py  what such a table says about work that was not measured
    predict.py     the time of a whole model, with its interval
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path

from graphprune.devices import table as tables
from graphprune.devices.device import Device, read
from graphprune.devices.table import Table
from graphprune.errors import UsageError

__all__ = ["HOST", "Described", "Device", "find", "known"]
HOST = "host"
"""The name of this machine, which is measured."""


@dataclass(frozen=True)
class Described:
    """A device that is compiled for without being here, and what was measured of it or of its family."""

    device: Device
    table: Table | None = None


@cache
def known() -> dict[str, Device]:
    """The devices that come with graphprune, by name."""
    folder = Path(str(files("graphprune.devices") / "data"))
    return {path.stem: read(path) for path in sorted(folder.glob("*.toml"))}


def find(name: str) -> Described:
    """A device by its name, by what its driver calls it, or by a file: a description (.toml) or a table of measured
    times (.json). Raises UsageError with the nearest names."""
    if name.endswith(".toml"):
        return _with_table(read(Path(name)))
    if name.endswith(".json"):
        table = tables.read(Path(name))
        return Described(table.described(), table)
    for device in known().values():
        if name.lower() in map(str.lower, (device.name, device.title, *device.aliases)):
            return _with_table(device)
    near = get_close_matches(name.lower(), [HOST, *_names(known().values())], n=3, cutoff=0.5)
    raise UsageError(
        f"unknown device {name!r}", at="--device",
        fix=f"did you mean {' or '.join(near)}?" if near else f"the devices are {HOST}, {', '.join(known())}; or "
        "give a file, .toml of a description or .json of measured times",
    )  # fmt: skip


def _names(devices: Iterable[Device]) -> list[str]:
    return [name.lower() for d in devices for name in (d.name, *d.aliases)]


def _with_table(device: Device) -> Described:
    """With a table that comes with graphprune, of the device itself or, failing that, of another of its family."""
    folder = Path(str(files("graphprune.devices") / "data"))
    found = [tables.read(path) for path in sorted(folder.glob("*.json"))]
    own = [t for t in found if t.described().title == device.title]
    family = [t for t in found if t.described().family == device.family and t not in own]
    return Described(device, next(iter(own or family), None))
