"""The device database: its files, how a device is found, and what a wrong file gets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from graphprune.cli import main
from graphprune.devices import find, known
from graphprune.devices.device import BYTES, OPTIONAL, REQUIRED, Device, parse, read
from graphprune.errors import UsageError

WANTED = {"v100", "t4", "a10", "a100", "l4", "l40s", "h100", "h200", "b200", "rtx4090", "orin-agx", "xeon-avx512",
          "xeon-amx", "epyc", "graviton", "apple-m"}  # fmt: skip
LANES = {"v100": 64, "t4": 64, "a10": 128, "a100": 64, "l4": 128, "l40s": 128, "h100": 128, "h200": 128, "b200": 128,
         "rtx4090": 128, "orin-agx": 128}  # fmt: skip
"""Fused multiply-adds in single precision that a multiprocessor begins per clock, as the white papers give them."""
SMALL = """
title = "Mine"
kind = "cpu"
family = "own"
precision = "fp32"
[sources]
sheet = { title = "a sheet", date = "2026-01" }
[peak]
fp32 = { value = 1.5, source = "sheet" }
[units]
count = { value = 4, source = "sheet" }
clock_ghz = { value = 3, source = "sheet" }
[memory]
gb_s = { value = 50, source = "sheet" }
"""


def test_the_devices_that_are_promised_are_there() -> None:
    assert known().keys() >= WANTED


@pytest.mark.parametrize("device", known().values(), ids=lambda d: d.name)
def test_every_figure_has_a_source_with_a_date(device: Device) -> None:
    for name, figure in device.figures.items():
        assert name in {*REQUIRED, *OPTIONAL}
        assert any(part.strip()[:4].isdigit() for part in figure.source.split(",")), f"{name} has no date"


@pytest.mark.parametrize("name", LANES)
def test_the_peak_is_what_units_and_clock_make_of_it(name: str) -> None:
    d = known()[name]
    made = d.figure("units.count") * LANES[name] * 2 * d.figure("units.clock_ghz") * 1e9
    assert d.figure("peak.fp32") * 1e12 == pytest.approx(made, rel=0.03)


@pytest.mark.parametrize("device", known().values(), ids=lambda d: d.name)
def test_fewer_bits_are_never_slower_and_fall_back_to_more(device: Device) -> None:
    assert device.peak("fp16") >= device.peak("fp32") > 0
    assert all(device.peak(p) > 0 for p in BYTES)
    assert device.runs("fp32")


def test_one_core_clocks_higher_and_draws_no_more_than_all() -> None:
    epyc = known()["epyc"]
    one, all_of_it = epyc.using(1), epyc.using(96)
    assert one.peak("fp32") == pytest.approx(all_of_it.peak("fp32") * 3.7 / 3.1)
    assert one.bandwidth <= all_of_it.bandwidth
    with pytest.raises(UsageError, match="96 cores, not 97"):
        epyc.using(97)


@pytest.mark.parametrize("asked", ["a100", "A100", "a100-80gb", "NVIDIA A100-SXM4-80GB"])
def test_a_device_is_found_by_what_people_and_drivers_call_it(asked: str) -> None:
    assert find(asked).device.name == "a100"


@pytest.mark.parametrize("asked, near", [("h1000", "h100"), ("a10o", "a100"), ("rtx-4090ti", "4090"), ("hots", "host")])
def test_an_unknown_device_gets_the_nearest_names(asked: str, near: str) -> None:
    with pytest.raises(UsageError, match="unknown device") as caught:
        find(asked)
    assert near in caught.value.fix


def test_a_device_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SMALL)
    device = find(str(path)).device
    assert (device.name, device.count, device.bandwidth) == ("mine", 4, 50e9)
    assert math.isnan(device.figure("cache.l2_mb"))


BAD = {
    "truncated": (SMALL[:-20], "not a description"),
    "no sources": (SMALL.replace("[sources]", "[other]"), "no .sources."),
    "an unknown source": (SMALL.replace('50, source = "sheet"', '50, source = "hearsay"'), "'hearsay' is not among"),
    "a source without a date": (SMALL.replace(', date = "2026-01"', ""), "title and a date"),
    "a missing figure": (SMALL.replace("gb_s = {", "gb = {"), "memory.gb_s is missing"),
    "a figure of nothing": (SMALL.replace("value = 50", "value = 0"), "above zero"),
    "not a number": (SMALL.replace("value = 50", "value = nan"), "above zero"),
    "true": (SMALL.replace("value = 50", "value = true"), "above zero"),
    "an unknown figure": (SMALL.replace("clock_ghz", "clocks"), "no figure units.clocks"),
    "an unknown section": (SMALL + "\n[noise]\ndb = 3\n", "'noise' is no part"),
    "an unknown kind": (SMALL.replace('"cpu"', '"tpu"'), "kind 'tpu'"),
    "an unknown precision": (SMALL.replace('precision = "fp32"', 'precision = "fp7"'), "'fp7'"),
    "aliases that are no list": ('aliases = "me"\n' + SMALL, "list of names"),
    "a figure beyond all": (SMALL.replace("value = 50", f"value = 1{'0' * 400}"), "above zero"),
    "a source that is a list": (SMALL.replace('50, source = "sheet"', '50, source = ["sheet"]'), "not among"),
    "half a core": (SMALL.replace("value = 4,", "value = 0.5,"), "no whole number"),
    "not text": ("\0\xff", "not a description"),
}


@pytest.mark.parametrize("text, said", BAD.values(), ids=BAD)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=said) as caught:
        read(path)
    assert str(path) in caught.value.at


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path / "none.toml")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * 1_000_001)
    with pytest.raises(UsageError, match="too large"):
        read(large)


def test_plain_data_need_not_come_from_a_file() -> None:
    with pytest.raises(UsageError, match="'title' is missing"):
        parse({"sources": {"a": {"title": "t", "date": "2026"}}, **{
            section: {key: {"value": 1, "source": "a"}} for section, key in (n.split(".") for n in REQUIRED[:1])
        }} | {"units": {k: {"value": 1, "source": "a"} for k in ("count", "clock_ghz")},
              "memory": {"gb_s": {"value": 1, "source": "a"}}}, "x", "here")  # fmt: skip


def test_the_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in WANTED)
    assert main(["devices", "--show", "h200"]) == 0
    shown = capsys.readouterr().out
    assert "memory.gb_s" in shown and "datasheet" in shown and "no measurement on this device" in shown
    assert main(["devices", "--show", "h20"]) == 2
    assert "h200" in capsys.readouterr().err
