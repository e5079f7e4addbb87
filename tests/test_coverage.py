"""The coverage table: the architectures that stand for the others pass it; its tool loses no row and hides nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphprune.causes import parameters
from graphprune.edit import shrink
from graphprune.errors import EnvironmentFault, UsageError
from models import zoo
from tests.graphs import model_of, typed
from tools import coverage, coverage_record
from tools.coverage import Cache, Table, completed, how_it_ended
from tools.coverage_pages import failures, headlines, markdown, percent, picture
from tools.coverage_record import UNFINISHED, halved, measure, misfits

FAST = [a.name for a in zoo.fast() if not a.core]  # the core ones: test_real_models


@pytest.mark.parametrize("name", FAST)
def test_an_architecture_of_every_kind_is_typed_and_certified(name: str) -> None:
    try:
        zoo.build(name)
    except EnvironmentFault as fault:
        pytest.skip(f"{fault.what}: {name} was NOT tested")
    row = measure(name)
    assert failures(row) == []
    assert row["keep_sets"]["mismatch"] == 0
    assert row["halved"] <= row["parameters"] or not row["groups_exact"]


def test_the_fast_architectures_stand_for_every_family_exporter_and_opset() -> None:
    chosen, every = zoo.fast(), zoo.architectures().values()
    assert {a.name for a in every if a.core} <= {a.name for a in chosen}
    assert {a.family for a in chosen} == {a.family for a in every}
    assert {(a.exporter, a.opset) for a in chosen} == {(a.exporter, a.opset) for a in every}
    assert len({a.name for a in chosen}) == len(chosen) < 50


# What a row is made of


def perceptron() -> tuple[ir.Model, dict[str, np.ndarray]]:
    model = model_of("h = MatMul(x, a)\nr = Relu(h)\nn = Softmax(r)\nresult = MatMul(n, b)", {"x": (2, 3)},
                     {"a": (3, 7), "b": (7, 4)})  # fmt: skip
    return model, {"x": np.ones((2, 3), np.float32)}


def test_the_halved_size_is_that_of_the_model_with_every_group_halved() -> None:
    analysis = typed(*perceptron(), inexact=True)
    (group,) = analysis.groups.values()
    small = shrink(analysis.model, analysis.types, {group.dim: np.arange(4)})
    assert halved(analysis, [group]) == parameters(small) == 4 * (3 + 4)
    assert halved(analysis, []) == parameters(analysis.model) == 7 * (3 + 4)


def test_weights_in_the_bodies_of_control_flow_stay() -> None:
    text = """result = If (c) <
        then_branch = t () => (float[2] a) <float[2] w = {1.0, 2.0}> { a = Identity(w) },
        else_branch = e () => (float[2] b) { b = Constant<value = float[2] {3.0, 4.0}>() }>"""
    model = ir.from_proto(onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (bool c) => (float[2] result) {{ {text} }}'))
    assert halved(typed(model, {"c": np.array(True)}, inexact=True), []) == 4


def test_a_rule_that_does_not_fit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune import infer
    from graphprune.rules.base import Rule

    def wrong(op, t) -> None:
        t.set(op.outputs[0], [])

    assert misfits(typed(*perceptron())) == []
    monkeypatch.setitem(infer.TABLE, ("", "Relu"), Rule("Relu", wrong, ()))
    found = misfits(typed(*perceptron()))
    assert len(found) == 1
    assert "Relu" in found[0]


def test_an_export_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Path:
        raise ValueError("step 1 of 3 failed") from RuntimeError("no such layer\nsecond line")

    monkeypatch.setattr(zoo, "build", broken)
    saved = []
    row = measure("resnet_basic", lambda row: saved.append(json.loads(json.dumps(row))))
    assert [e["stage"] for e in row["errors"]] == ["export"]
    assert "RuntimeError: no such layer (test_coverage.py:" in failures(row)[0]
    assert saved[0]["errors"] == [{"stage": "export", "what": UNFINISHED}], "what is read if the process had died"
    assert saved[-1] == row


# Processes, cache, table


def options(**changed: object) -> argparse.Namespace:
    return argparse.Namespace(**{"jobs": 2, "timeout": 60.0, "memory": 8.0, "fresh": False, **changed})


def test_a_process_that_takes_too_long_is_a_row() -> None:
    architecture = zoo.get("resnet_basic")
    row = asyncio.run(coverage.measured(architecture, 0.01, 8))
    assert row["name"] == "resnet_basic"
    assert row["errors"] == [{"stage": "start", "what": "not done after 0.0 s"}]


def test_a_process_that_died_leaves_what_it_knew(tmp_path: Path) -> None:
    architecture = zoo.get("resnet_basic")
    written = tmp_path / "row.json"
    started = coverage_record.described(architecture) | {"nodes": 28}
    written.write_text(json.dumps(started | {"errors": [{"stage": "certify", "what": UNFINISHED}]}))
    row = completed(architecture, written, how_it_ended(-11, ""))
    assert row["nodes"] == 28
    assert row["errors"] == [{"stage": "certify", "what": "killed by SIGSEGV"}]


@pytest.mark.parametrize(("code", "log", "says"), [
    (0, "noise", ""), (-9, "", "killed by SIGKILL (out of memory, most likely)"),
    (1, "Traceback\nMemoryError: 3 GiB\n", "exit code 1: MemoryError: 3 GiB")])  # fmt: skip
def test_how_a_process_ended_is_said(code: int, log: str, says: str) -> None:
    assert how_it_ended(code, log) == says


def test_a_row_is_taken_from_the_cache_until_sources_or_model_change(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"one")
    cache = Cache(tmp_path / "rows", "sources")
    assert cache.get("m", model) is None
    cache.put("m", model, good("m"))
    assert cache.get("m", model) == good("m")
    assert cache.get("m", None) is None
    assert Cache(tmp_path / "rows", "other sources").get("m", model) is None
    model.write_bytes(b"two")
    assert cache.get("m", model) is None
    cache.put("m", model, bad("m"))
    assert cache.get("m", model) is None, "rows with errors are tried again"


def test_only_what_is_not_in_the_cache_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, rows = [], []

    async def measured(architecture, *limits) -> dict:
        asked.append(architecture.name)
        return good(architecture.name)

    model = tmp_path / "m.onnx"
    model.write_bytes(b"one")
    monkeypatch.setattr(coverage, "measured", measured)
    monkeypatch.setattr(coverage, "exported", lambda name: model)
    cache = Cache(tmp_path / "rows", "sources")
    both = [zoo.get("resnet_basic"), zoo.get("bert")]
    for _ in range(2):
        asyncio.run(coverage.walk(both, cache, rows.append, options()))
    assert asked == ["resnet_basic", "bert"]
    assert [row["name"] for row in rows] == 2 * asked
    assert rows[1]["family"] == "encoder", "the catalogue has the last word"
    asyncio.run(coverage.walk(both, cache, rows.append, options(fresh=True)))
    assert len(asked) == 4


def test_the_table_keeps_other_rows_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "coverage.json"
    for name in ("b", "gone", "a"):
        Table(path, ["a", "b", "c", "gone"]).put(good(name))
    table = Table(path, ["a", "b", "c"])
    assert [row["name"] for row in table.data["rows"]] == ["a", "b"]
    assert table.data["missing"] == ["c"]
    table.draw()
    assert {p.name for p in path.parent.iterdir()} == {"coverage.json", "coverage.md", "coverage.svg"}
    assert json.loads(path.read_text(encoding="utf-8")) == table.data
    assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(table.data)


def test_a_family_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="family 'cats'"):
        coverage.selected(options(names=[], fast=False, core=False, family="cats"))


# The page


def frozen(reason: str, parameters: int, locked: int, hint: str) -> dict:
    return {"reason": reason, "parameters": parameters, "locked": locked, "hint": hint}


def good(name: str, **changed: object) -> dict:
    return {
        "name": name, "family": "cnn", "origin": "ours", "exporter": "dynamo", "host": "h", "date": "2000-01-01",
        "errors": [], "opset": 18, "prepare_s": 0.5, "nodes": 10, "parameters": 1000, "groups_exact": 3,
        "groups_inexact": {"statistic of Softmax": 1}, "prunable": 900, "prunable_exact": 800, "halved": 300,
        "halved_exact": 400, "frozen": [frozen("graph output", 100, 150, "nothing")], "misfits": [],
        "typing_s": 0.002, "ms": 1.0, "time_share": 0.8, "time_share_exact": 0.7, "mismatches": [], "fed": [{}, {}],
        "keep_sets": {"exact": 5, "vacuous": 1, "mismatch": 0}, "certify_s": 1.0, **changed,
    }  # fmt: skip


def bad(name: str) -> dict:
    return {**{k: good(name)[k] for k in ("name", "family", "origin", "exporter", "date")},
            "errors": [{"stage": "export", "what": "RuntimeError: *no* | such layer"}]}  # fmt: skip


def test_the_headlines_say_what_the_rows_say() -> None:
    rows = [good("a"), good("b", parameters=3000, prunable=3000, halved=1500), good("c"), bad("d")]
    text = "\n".join(headlines(rows))
    assert "4 architectures in 1 family: 1 with a failure" in text
    assert "12 groups" in text and "3 of them inexact" in text
    assert "18 random keep sets" in text and "15 exact, 3 vacuous, 0 mismatched" in text
    assert "3 architectures ran at two batch sizes" in text
    assert "96.0 % of all parameters" in text and "architectures 90.0 %" in text
    assert "30.0 % of a model's parameters" in text
    assert "2.0 ms in the median" in text and "200 us a node" in text
    assert headlines([bad("d")]) == ["1 architectures in 1 family: 1 with a failure; 0 nodes, 0 parameters."]


@pytest.mark.parametrize("row", [
    bad("culprit"), good("culprit", mismatches=["Conv_1: masked off by 0.2"]), good("culprit", misfits=["Relu at n"])])
def test_failures_come_first(row: dict) -> None:
    page = markdown({"rows": [good("a"), row], "missing": []})
    assert "- culprit: " in page.split("## Failures")[1].split("## In short")[0]
    assert "None." not in page.split("## In short")[0]


def test_what_is_not_measured_is_said_and_nothing_else() -> None:
    assert "Not measured yet: c." in markdown({"rows": [good("a")], "missing": ["c"]})
    assert "None." in markdown({"rows": [good("a")], "missing": []})


def test_tables_have_a_cell_for_every_column() -> None:
    partial = {k: v for k, v in good("b").items() if k not in ("typing_s", "keep_sets", "time_share", "ms")}
    page = markdown({"rows": [good("a"), partial, bad("c")], "missing": []})
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block}) == 1


def test_every_reason_is_listed_and_known_ones_are_explained() -> None:
    reasons = [frozen("graph output", 60, 70, "nothing"), frozen("moonlight", 40, 40, "")]
    page = markdown({"rows": [good("a", frozen=reasons), good("b")], "missing": []})
    (known,) = [line for line in page.splitlines() if line.startswith("| graph output |")]
    (unknown,) = [line for line in page.splitlines() if line.startswith("| moonlight |")]
    assert known == "| graph output | 160 | 8.0 % | 220 | 2 | b | nothing |"
    assert unknown == "| moonlight | 40 | 2.0 % | 40 | 1 | a |  |"


def test_percentages_do_not_round_to_all_or_nothing() -> None:
    said = [percent(x) for x in (1, 0.9999, 0.9994, 0.5, 0.0006, 0.0001, 0, None)]
    assert said == ["100 %", ">99.9 %", "99.9 %", "50.0 %", "0.1 %", "<0.1 %", "0 %", ""]


def test_the_picture_has_two_dots_for_each_architecture_inside_its_frame() -> None:
    rows = [good(f"a{i}", family=f"f{i % 3}", prunable=1000 - i % 2) for i in range(60)] + [bad("b")]
    root = ElementTree.fromstring(picture(rows))
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(dots) == 2 * 60
    assert all(0 < float(e.get("cx")) < float(root.get("width")) for e in dots)
    assert all(0 < float(e.get("cy")) < float(root.get("height")) for e in dots)


def test_the_page_in_docs_is_the_one_of_its_data() -> None:
    path = Path(__file__).parent.parent / "docs" / "coverage.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    current = "run `python -m tools.coverage --draw`"
    assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(data), current
    assert path.with_suffix(".svg").read_text(encoding="utf-8") == picture(data["rows"]), current
