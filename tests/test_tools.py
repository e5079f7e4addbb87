"""The parts of the tools that decide: which factor the demo takes, what a curve's table says, what is kept of a run."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools import engines, predicted
from tools.curve import BASELINE, DENSE, OURS, Rows
from tools.curve_pages import markdown, picture
from tools.demo import Row, search

SETTINGS = {"task": "t", "samples": 8, "limit": None, "seed": 0, "threads": 1, "host": "h", "headline": "accuracy",
            "date": "2000-01-01"}


def point(method: str, asked: float, accuracy: float | None) -> dict:
    row = SETTINGS | {"method": method, "asked": asked}
    if accuracy is None:
        return row | {"out_of_reach": 1.2}
    return row | {"speedup": 1.02 * asked, "spread": 0.01, "metrics": {"accuracy": accuracy}}


@pytest.mark.parametrize("most", [0, 1.3, 1.5, 2])
def test_the_demo_finds_the_largest_factor_that_holds_and_tries_two_of_three(most: float) -> None:
    def attempt(asked: float) -> Row:
        return Row(asked, quality={"characters": 0.9 if asked <= most else 0.5})

    dense = {"characters": 0.91}
    rows = search([1.3, 1.5, 2], attempt, dense)
    assert len(rows) == 2
    assert max((row.asked for row in rows if row.holds(dense)), default=0) == most


def test_a_factor_out_of_reach_does_not_hold() -> None:
    assert not Row(2, best=1.7).holds({"characters": 0.0})


@pytest.mark.parametrize(("ours", "theirs", "loses"), [(0.9, 0.8, False), (0.8, 0.9, True), (None, 0.9, True)])
def test_the_table_says_where_magnitude_wins(ours: float | None, theirs: float, loses: bool) -> None:
    rows = [point(DENSE, 1.0, 0.95), point(OURS, 1.5, ours), point(BASELINE, 1.5, theirs)]
    text = markdown(rows, OURS, BASELINE, DENSE)
    assert ("t at 1.5x" in text) == loses
    assert ("nowhere" in text or "at no target worse" in text) != loses


def test_the_picture_is_well_formed_and_has_a_line_per_method() -> None:
    rows = [point(DENSE, 1.0, 0.95), *(point(m, x, 0.9 / x) for m in (OURS, BASELINE) for x in (1.25, 1.5, 2.0))]
    root = ElementTree.fromstring(picture(rows, OURS, BASELINE, DENSE))
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(dots) == 8
    assert all(0 <= float(e.get("cy")) <= 250 and 0 <= float(e.get("cx")) <= 330 for e in dots)


def test_rows_are_kept_by_settings_and_replaced_not_doubled(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "docs" / "curves.json")
    rows.put(point(OURS, 1.5, 0.9))
    rows.put(point(OURS, 1.5, 0.8) | {"samples": 9})
    rows.put(point(OURS, 1.5, 0.7))
    again = Rows(rows.path)
    assert [r["metrics"]["accuracy"] for r in again.all] == [0.8, 0.7]
    assert again.find(point(OURS, 1.5, None))["metrics"] == {"accuracy": 0.7}


def test_predictions_are_summed_up_by_network_and_over_all() -> None:
    rows = [
        {"network": name, "measured_ms": ms, "analytic_ms": 1.2 * ms, "analytic_low_ms": 1.1 * ms,
         "analytic_high_ms": 1.3 * ms, "table_ms": 1.05 * ms, "table_low_ms": 0.95 * ms, "table_high_ms": 1.15 * ms}
        for name in ("one", "two") for ms in (1.0, 2.0, 4.0)
    ]  # fmt: skip
    lines = predicted.summary(rows)
    assert [line["network"] for line in lines] == ["one", "two", "all"]
    for line in lines:
        assert line["analytic_error"] == pytest.approx(0.2) and line["table_bias"] == pytest.approx(0.05)
        assert (line["analytic_covered"], line["table_covered"], line["table_rank"]) == (0, 1, 1)
    made = {"device": "d", "runtime": "r", "threads": 1, "date": "2026-11-22", "rows": 9, "seconds": 1.0}
    assert predicted.page(lines, made).count("\n| ") == 1 + len(lines)


def test_engines_stand_below_one_another_with_what_was_out_of_reach() -> None:
    rows = [SETTINGS | {"method": m, "asked": a, "speedup": 1.02 * a, "ms": 9 / a, "metrics": {"accuracy": 0.9}}
            for m, a in (("host:openvino", 1.0), ("host", 1.5), ("host", 1.0))]  # fmt: skip
    page = engines.page([*rows, SETTINGS | {"method": "host:openvino", "asked": 2.0, "out_of_reach": 1.7}])
    lines = [line for line in page.splitlines() if line.startswith("| host")]
    assert lines == ["| host | dense | 1.02x | 9.00 | 90.0 % |", "| host | 1.5x | 1.53x | 6.00 | 90.0 % |",
                     "| host:openvino | dense | 1.02x | 9.00 | 90.0 % |",
                     "| host:openvino | 2x | at most 1.70x |  |  |"]  # fmt: skip
