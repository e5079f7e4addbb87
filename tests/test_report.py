"""The report: its JSON comes back as it went; its page is well-formed, stands alone, no name in it acts as markup."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from graphprune.errors import UsageError
from graphprune.report import (
    Asked,
    Attempt,
    CheckRow,
    FrozenRow,
    Metric,
    ModelFacts,
    Reached,
    Report,
    Site,
    Size,
    TimeRow,
    change,
    count,
    milliseconds,
    number,
    printable,
    render_text,
    size_text,
)
from graphprune.report_html import render_html

HOSTILE = "</td><script>alert('x')</script>\x1b[31m&\"[red]"


def sample(name: str = "encoder.0", n_sites: int = 3) -> Report:
    return Report(
        ModelFacts(f"{name}.onnx", "0f" * 32, 412, 22_713_216, 90_893_112),
        Asked("2x", "host", 1, 0, ("width",), "second-order", "data/texts", 256, False, {name: "1x128"}, 2.0),
        Reached(24.31, 0.012, 11.98, 0.017, 2.031, 0.009, 64, (Attempt(2.0, 1.91), Attempt(2.09, 2.031))),
        Size(22_713_216, 13_950_000, 90_893_112, 55_900_000),
        (Metric("cosine", 0.9312, "held-out texts"), Metric("top-1", 0.871, "retrieval", 0.884)),
        (*(Site(f"{name}.{i}", (name,), "feed-forward columns", 1536, 640 - i, 0.05, 1.12, 0.55)
           for i in range(n_sites)), Site(name, (), "heads", 12, 12, 0.02)),
        tuple(TimeRow(f"{name}{i}", 2.0 / (i + 1), 1.0 / (i + 1), 1.1 / (i + 1)) for i in range(11)),
        (FrozenRow("graph output", 3, 0.02, None, name), FrozenRow("spatial axis", 1, 0.1, 0.3, name)),
        (CheckRow("masked", "1x128", 2.1e-6, 0.31, "exact"), CheckRow("masked", "3x17", 0.0, 0.0, "vacuous")),
        {"onnxruntime": "1.31.1"}, ("synthetic inputs were used",))


def text_of(report: Report, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(render_text(report))
    return stream.getvalue()


class Page(HTMLParser):
    """Checks nesting, gathers tags, addresses and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# -- JSON

def test_a_report_comes_back_from_json_as_it_went():
    report = sample(HOSTILE)
    assert Report.from_json(report.to_json()) == report


def test_numbers_that_json_has_no_word_for_become_null():
    report = sample()
    report = replace(report, reached=replace(report.reached, spread=math.inf, rounds=np.int64(3)))
    data = json.loads(report.to_json())
    assert data["reached"]["spread"] is None and data["reached"]["rounds"] == 3
    assert math.isnan(Report.from_dict(data).reached.spread)


@pytest.mark.parametrize(("edit", "message"), [
    (lambda d: d.update(schema=99), "not a report of schema 1, found 99"),
    (lambda d: d.pop("model"), "fields missing or unknown\n  at:  report: model"),
    (lambda d: d.update(colour="red"), "fields missing or unknown\n  at:  report: colour"),
    (lambda d: d["model"].update(nodes="many"), "str where int is expected\n  at:  report.model.nodes"),
    (lambda d: d.update(sites={}), "dict where"),
    (lambda d: d["reached"].update(source="guessed"), "'guessed' where one of measured, interpolated"),
    (lambda d: d["sites"].append(3), "fields missing or unknown\n  at:  report.sites[4]: int"),
])
def test_json_that_is_no_report_is_refused(edit, message):
    data = sample().to_dict()
    edit(data)
    with pytest.raises(UsageError, match=re.escape(message)):
        Report.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", b"\xff", "[" * 100_000])
def test_text_that_is_no_report_is_refused(text):
    with pytest.raises(UsageError, match="not a report"):
        Report.from_json(text)


# -- the page

def test_the_page_says_everything():
    page = Page(render_html(sample(n_sites=80)))
    for said in ("2.03\N{MULTIPLICATION SIGN}", "24.3 ms became 12.0 ms", "Asked for 2x on host", "22.7 M", "55.9 MB",
                 "0.9312", "80 of 81 sites were made smaller", "1,536 → 640", "20 more", "1 left whole", "3 others",
                 "1 of 2 checks hold, largest difference 2.1e-06, where the removal has an effect of 0.31; 1 showed "
                 "nothing", "graph output", "synthetic inputs were used", "256 feeds from data/texts", "1.31.1"):
        assert said in page.text, said


def test_the_page_stands_alone():
    html = render_html(sample())
    page = Page(html)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert not page.attributes & {"src", "href", "srcset", "style"}
    assert not re.search(r"url\(|@import|https?:", html)
    assert "prefers-color-scheme" in html


def test_no_name_acts_as_markup():
    plain, hostile = Page(render_html(sample())), Page(render_html(sample(HOSTILE)))
    assert hostile.tags == plain.tags and hostile.attributes == plain.attributes
    assert "alert('x')" in hostile.text and "\x1b" not in hostile.text


@given(st.text(max_size=40))
def test_any_name_makes_a_page(name):
    Page(render_html(sample(name)))
    text_of(sample(name))


def test_a_bare_report_makes_a_page():
    report = sample()
    bare = Report(report.model, replace(report.asked, target_speedup=None),
                  replace(report.reached, attempts=(), spread=math.inf, speedup_spread=math.inf), report.size)
    page = Page(render_html(bare))
    assert "Certificate" not in page.text and "spread unknown" in page.text
    assert "spread unknown" in text_of(bare)


def test_bars_have_the_lengths_of_their_numbers():
    html = render_html(sample(n_sites=1))
    site = re.search(r'640 of 1536 kept">(.*?)</svg>', html).group(1)
    rects = re.findall(r'class="(\w+)" x="0.000%" width="([\d.]+)%', site)
    assert rects == [("removed", "100.000"), ("after", "41.667")]
    before, after = re.findall(r'time (?:before|after), by kernel">(.*?)</svg>', html)
    widths = [sum(map(float, re.findall(r'width="([\d.]+)%', bar))) for bar in (before, after)]
    assert widths == pytest.approx([100, 50], abs=0.01)


def test_a_failed_check_is_said_aloud():
    report = replace(sample(), certificate=(CheckRow("masked", "1x8", 0.2, 0.3, "mismatch"),
                                            CheckRow("masked", "2x8", 1e-7, 0.3, "exact")))
    said = "1 of 2 checks failed: masked differs by 0.2, where the removal has an effect of 0.3"
    assert said in Page(render_html(report)).text
    assert said in text_of(report)


# -- the summary, and numbers in words

def test_the_summary_is_aligned_and_has_units():
    lines = text_of(sample()).splitlines()
    assert lines[0] == "2.03x faster (± 0.9 %, 64 interleaved rounds), asked for 2x on host, 1 thread"
    table = [line for line in lines if line.startswith(("time", "parameters", "file"))]
    assert [line.split() for line in table] == [
        ["time", "24.3", "ms", "±", "1.2", "%", "12.0", "ms", "±", "1.7", "%", "\N{MINUS SIGN}51", "%"],
        ["parameters", "22.7", "M", "13.9", "M", "\N{MINUS SIGN}39", "%"],
        ["file", "90.9", "MB", "55.9", "MB", "\N{MINUS SIGN}38", "%"]]
    assert len({line.rstrip().rindex("%") for line in table}) == 1
    assert lines[-1] == "warning: synthetic inputs were used"


def test_the_summary_prints_names_as_they_are_and_no_control_characters():
    text = text_of(sample(HOSTILE))
    assert "[red]" in text and "\x1b" not in text


@pytest.mark.parametrize(("said", "words"), [
    (milliseconds(12_345), "12.3 s"), (milliseconds(1234.5), "1,234 ms"), (milliseconds(24.31), "24.3 ms"),
    (milliseconds(1.2345), "1.23 ms"), (milliseconds(0.5), "0.50 ms"), (milliseconds(0.0123), "12.3 us"),
    (milliseconds(None), "-"), (milliseconds(math.nan), "-"), (milliseconds(0.0), "0.00 ms"),
    (count(12), "12"), (count(9_999), "9,999"), (count(450_000), "450 k"), (count(22_713_216), "22.7 M"),
    (size_text(999), "999 B"), (size_text(90_893_112), "90.9 MB"),
    (change(2, 1), "\N{MINUS SIGN}50 %"), (change(1, 1.001), "0 %"), (change(1, 1.5), "+50 %"), (change(0, 1), "-"),
    (number(0.93124), "0.9312"), (number(2.1e-6), "2.1e-06"), (number(0.0), "0"), (number(math.inf), "-"),
    (printable("a\nb\x1b\udcff é 漢"), "a\\nb\\x1b\\udcff é 漢"),
])
def test_numbers_in_words(said, words):
    assert said == words
