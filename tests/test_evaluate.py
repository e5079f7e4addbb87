"""The user's own metric: how it is found, called and checked, what is said of mistakes, and where the report has it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.backends import open_backend
from graphprune.cli import main
from graphprune.errors import GraphpruneError, UsageError
from graphprune.evaluate import Evaluation, resolve
from graphprune.report import Report, difference
from tests.steady import Steady, keep_steady_time
from tests.test_driver import feeds, mlp
from tests.test_report import Page, text_of

MODEL = mlp().SerializeToString(deterministic=True)
FEED = feeds(4, 48)[0]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with a module of metrics in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("our_metrics", "our_helpers", "our_broken", "truth"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "our_metrics.py").write_text(
        "import numpy as np\n"
        "number = 3\n"
        "def mean(run):\n    return float(run({'x': np.ones((2, 48), np.float32)})['result'].mean())\n"
        "def late(run):\n    import our_helpers\n    return our_helpers.answer()\n"
        "def fails(run):\n    return [][1]\n")  # fmt: skip
    (tmp_path / "our_helpers.py").write_text("def answer():\n    return 42\n")
    (tmp_path / "our_broken.py").write_text("import no_such_package\n")
    return tmp_path


def steady_widths(monkeypatch: pytest.MonkeyPatch) -> Steady:
    """Compilations on the steady clock that choose widths and nothing else: few and quick."""
    monkeypatch.setattr(graphprune.driver, "PASSES", {"width": graphprune.driver.PASSES["width"]})
    return keep_steady_time(monkeypatch)


def evaluation(function: Any, where: str = "here") -> Evaluation:
    return Evaluation(function, where, open_backend("host").load)


def scores(given: Any, where: str = "here") -> dict[str, float]:
    return evaluation(lambda run: given, where).scores(MODEL)


# What it gives


def test_a_function_is_found_by_name_and_runs_the_model(place) -> None:
    function, where = resolve("our_metrics:mean")
    want = open_backend("host").load(MODEL).run({"x": np.ones((2, 48), np.float32)})["result"].mean()
    assert where == "our_metrics:mean"
    assert evaluation(function, where).scores(MODEL) == {"mean": pytest.approx(float(want))}
    function, where = resolve("our_metrics:late")  # what it imports when called is found as well
    assert evaluation(function, where).headline(MODEL) == ("late", 42.0)


@pytest.mark.parametrize(("given", "want"), [
    (0.5, {"here": 0.5}), (1, {"here": 1.0}), (np.float32(0.25), {"here": 0.25}), (np.array([2.0]), {"here": 2.0}),
    ({"f1": 0.5, "recall": 1}, {"f1": 0.5, "recall": 1.0}), ({"a": 1.0, "headline": 0.5}, {"headline": 0.5, "a": 1.0}),
])  # fmt: skip
def test_numbers_of_all_kinds_the_one_that_counts_first(given, want) -> None:
    found = scores(given)
    assert found == want and list(found) == list(want)


def test_every_model_is_evaluated_once() -> None:
    calls = []
    counted = evaluation(lambda run: calls.append(run) or len(calls))
    other = mlp()
    other.doc_string = "another"
    data = other.SerializeToString()
    assert [counted.scores(m)["here"] for m in (MODEL, data, MODEL, data)] == [1, 2, 1, 2]


def test_the_rows_say_what_was_lost() -> None:
    values = iter([{"accuracy": 0.9, "speed": 2.0, "same": 0.0}, {"accuracy": 0.81, "speed": 3.0, "same": 0.0}])
    rows = evaluation(lambda run: next(values), "m:f").rows(MODEL, MODEL + b"")
    assert {row.before - row.value for row in rows} == {0.0}, "the same bytes are the same model"
    values = iter([{"accuracy": 0.9, "speed": 2.0, "same": 0.0}, {"accuracy": 0.81, "speed": 3.0, "same": 0.0}])
    other = mlp()
    other.doc_string = "another"
    rows = evaluation(lambda run: next(values), "m:f").rows(MODEL, other.SerializeToString())
    assert [(r.name, r.before, r.value) for r in rows] == [("accuracy", 0.9, 0.81), ("speed", 2, 3), ("same", 0, 0)]
    for row, words in zip(rows, ("drops by 0.09 (10.00%)", "rises by 1 (50.00%)", "unchanged"), strict=True):
        assert row.meaning == f"m:f, higher is better; {words}"
    assert [difference(r.before, r.value) for r in rows] == ["\N{MINUS SIGN}0.09", "+1", "+0"]
    assert difference(None, 1.0) == difference(1.0, float("nan")) == ""


# Mistakes


@pytest.mark.parametrize(("source", "what", "fix"), [
    ("our_metric:mean", "there is no module 'our_metric'", "did you mean our_metrics:mean?"),
    ("elsewhere:mean", "there is no module 'elsewhere'", "run from the folder that holds elsewhere.py"),
    ("our_metrics:meen", "module 'our_metrics' has no 'meen'", "did you mean 'mean'?"),
    ("our_metrics:number", "'number' is a int, not a function", "run(feed) -> outputs"),
    ("our_broken:mean", "importing it raised ModuleNotFoundError: No module named 'no_such_package'", "must import"),
    ("our_metrics.mean", "not the name of a function", "write module:function"),
    ("./our_metrics.py:mean", "not the name of a function", "write module:function"),
    (3, "a int cannot be called", "run(feed) -> outputs"),
])  # fmt: skip
def test_what_cannot_be_called_is_told_with_the_nearest_there_is(place, source, what: str, fix: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(source)
    assert what in error.value.what and fix in error.value.fix and "evaluate" in error.value.at


@pytest.mark.parametrize(("given", "what"), [
    (None, "gave a NoneType for 'here'"), ("0.5", "gave a str"), (True, "gave a bool"), ({}, "gave no numbers"),
    (np.ones(3), "gave a ndarray"), ({"a": 1.0, "b": [1.0]}, "gave a list for 'b'"),
])  # fmt: skip
def test_what_is_no_number_is_an_error(given, what: str) -> None:
    with pytest.raises(UsageError, match=what) as error:
        scores(given)
    assert error.value.at == "here" and "number" in error.value.fix


def test_nan_is_an_error_of_the_dense_model_and_the_worst_of_others() -> None:
    bad = evaluation(lambda run: {"good": 1.0, "bad": float("nan")})
    assert np.isnan(bad.scores(MODEL)["bad"])
    with pytest.raises(UsageError, match="gave nan for 'bad' of the dense model") as error:
        bad.headline(MODEL)
    assert "finite" in error.value.fix


def test_what_the_function_raises_says_where(place) -> None:
    function, where = resolve("our_metrics:fails")
    with pytest.raises(UsageError, match="the evaluation raised IndexError: list index out of range") as error:
        evaluation(function, where).scores(MODEL)
    assert error.value.at.startswith("our_metrics:fails (") and error.value.at.endswith("our_metrics.py:9)")

    def leaves(run):
        raise SystemExit("enough")

    with pytest.raises(UsageError, match="the evaluation raised SystemExit: enough"):
        evaluation(leaves).scores(MODEL)


@pytest.mark.parametrize(("feed", "what"), [
    ({"X": FEED["x"]}, "the model has no input 'X'"),
    ({}, "input 'x' is missing"),
    ({"x": FEED["x"].astype(float)}, "the array is float64, the model takes float32"),
    ({"x": FEED["x"][:, :5]}, "axis 1 has size 5"),
])  # fmt: skip
def test_a_feed_that_the_model_does_not_take_is_told_as_such(feed, what: str) -> None:
    with pytest.raises(UsageError) as error:
        evaluation(lambda run: run(feed), "m:f").scores(MODEL)
    assert what in error.value.what and error.value.at.startswith("m:f, run(feed)")


def test_a_number_that_is_missing_for_the_compressed_model_is_an_error() -> None:
    values = iter([{"a": 1.0, "b": 1.0}, {"a": 1.0}])
    models = {b"dense": MODEL, b"small": MODEL}
    two = Evaluation(lambda run: next(values), "m:f", lambda data: open_backend("host").load(models[data]))
    with pytest.raises(UsageError, match="gave 'b' for the dense model and not for the compressed one"):
        two.rows(b"dense", b"small")


# Through compile


def accuracy_module(place: Path) -> None:
    """A metric that asks whether a model still finds the largest of what the dense one gives."""
    x = np.random.default_rng(5).normal(size=(400, 48)).astype(np.float32)
    y = open_backend("host").load(MODEL).run({"x": x})["result"].argmax(1)
    np.savez(place / "labelled.npz", x=x, y=y)
    sys.modules.pop("truth", None)
    (place / "truth.py").write_text(
        "import numpy as np\n"
        "def accuracy(run):\n"
        "    data = np.load('labelled.npz')\n"
        "    right = run({'x': data['x']})['result'].argmax(1) == data['y']\n"
        "    return {'accuracy': right.mean(), 'first half': right[:200].mean()}\n")  # fmt: skip


def test_the_command_line_evaluates_and_the_report_shows_before_and_after(place, monkeypatch, capsys) -> None:
    steady_widths(monkeypatch)
    accuracy_module(place)
    Path("net.onnx").write_bytes(MODEL)
    assert main(["compile", "net.onnx", "--target-speedup", "1.5x", "--shape", "x=4x48", "--evaluate",
                 "truth:accuracy", "--out", "out"]) == 0  # fmt: skip
    report = Report.from_json(Path("out/report.json").read_bytes())
    first, second, divergence = report.quality[:3]
    assert [first.name, second.name, divergence.name] == ["accuracy", "first half", "output divergence"]
    data = np.load("labelled.npz")
    small = open_backend("host").load(Path("out/model.onnx").read_bytes()).run({"x": data["x"]})["result"]
    assert first.before == 1.0 and first.value == pytest.approx((small.argmax(1) == data["y"]).mean())
    assert 0.5 < first.value < 1 and "truth:accuracy, higher is better; drops by " in first.meaning
    lost = difference(first.before, first.value)
    assert lost in text_of(report) and lost in capsys.readouterr().out
    page = Page(Path("out/report.html").read_text(encoding="utf-8")).text
    assert "accuracy" in page and lost in page and "was 1" in page


def test_a_family_is_evaluated_member_by_member(monkeypatch) -> None:
    steady_widths(monkeypatch)
    seen = []

    def size(run) -> float:
        seen.append(run(FEED)["result"])
        return -float(len(seen))

    results = graphprune.compile_family(mlp(), targets=[1.3, 1.8], calibration=feeds(4, 48), evaluate=size)
    assert [(r.report.quality[0].before, r.report.quality[0].value) for r in results] == [(-1, -2), (-1, -3)]
    assert len(seen) == 3, "the dense model once"


def test_a_broken_evaluation_stops_a_compilation_before_it_calibrates(place, monkeypatch, capsys) -> None:
    steady_widths(monkeypatch)
    monkeypatch.setattr(graphprune.driver, "Compiler", lambda *a, **k: pytest.fail("too late"))
    Path("net.onnx").write_bytes(MODEL)
    for source, what in (("our_metrics:fails", "the evaluation raised IndexError"),
                         ("our_metrics:men", "module 'our_metrics' has no 'men'")):  # fmt: skip
        assert main(["compile", "net.onnx", "--max-drop", "1%", "--shape", "x=4x48", "--evaluate", source]) == 2
        assert capsys.readouterr().err.splitlines()[-3].startswith(f"error: {what}")
    assert not Path("net-compressed").exists()


def test_errors_of_the_runtime_pass_through(place) -> None:
    def unlucky(run):
        raise GraphpruneError("no memory", at="there")

    with pytest.raises(GraphpruneError, match="no memory"):
        Evaluation(unlucky, "m:f", lambda data: SimpleNamespace(inputs={})).scores(MODEL)
