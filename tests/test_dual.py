"""The fastest model within a quality budget: the search against compilers whose quality is known, then real ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphprune
from graphprune.cli import main
from graphprune.divergence import divergence
from graphprune.dual import TRIES, Bracket, Judge, MaxDrop, fastest
from graphprune.errors import InfeasibleTarget, UsageError
from graphprune.progress import Silent
from graphprune.report import Report
from graphprune.target import Target
from tests.steady import Steady
from tests.test_driver import feeds, mlp, outputs
from tests.test_evaluate import accuracy_module, steady_widths
from tests.test_report import sample


@dataclass(frozen=True)
class Result:
    report: Report
    lost: float


@dataclass
class Fake:
    """Compiles for any speed-up up to `most`, a little faster than asked; `loss` is what that costs, by speed-up."""

    loss: Callable[[float], float]
    most: float = math.inf
    overshoot: Callable[[float], float] = lambda x: 1.02 * x
    asked: list[float] = field(default_factory=list)
    built: list[tuple[float, float]] = field(default_factory=list)

    def reach(self, target: Target) -> Result:
        self.asked.append(target.speedup)
        reached = self.overshoot(target.speedup)
        if target.speedup > self.most:
            raise InfeasibleTarget("too fast", best=self.most)
        reached = min(reached, self.most)
        self.built.append((reached, self.loss(reached)))
        report = sample()
        return Result(replace(report, reached=replace(report.reached, speedup=reached)), self.loss(reached))


def search(fake: Fake, allowed: float, notes: list[str] | None = None) -> Result:
    note = (lambda text: None) if notes is None else notes.append
    return fastest(fake, Judge(lambda r: r.lost, allowed, "1% off accuracy"), note)


def power(limit: float, allowed: float) -> Callable[[float], float]:
    """A loss that grows with speed-up and is just allowed at `limit`."""
    return lambda s: allowed * (math.log(s) / math.log(limit)) ** 3 if s > 1 else 0.0


def near_the_answer(limit: float, allowed: float = 0.01) -> bool:
    """A smooth quality: what is found holds, and is at most so much slower than the fastest that does."""
    fake = Fake(power(limit, allowed))
    result = search(fake, allowed)
    off = {limit < 2.5: 1.06, limit >= 2.5: 1.09, limit >= 5: 1.15}[True]
    found = result.report.reached.speedup
    return result.lost <= allowed and limit / off <= found <= limit and len(fake.asked) <= TRIES


@settings(max_examples=200, deadline=None)
@given(limit=st.floats(1.06, 9.9))
def test_a_smooth_quality_is_used_up(limit: float) -> None:
    assert near_the_answer(limit)


@pytest.mark.parametrize("fault", ["hold as fail", "fail as hold", "no logarithm", "no end"])
def test_a_search_with_a_fault_is_noticed(fault: str, monkeypatch) -> None:
    if fault == "hold as fail":
        monkeypatch.setattr(Bracket, "hold", lambda self, reached: self.fail())
    elif fault == "fail as hold":
        monkeypatch.setattr(Bracket, "fail", lambda self: self.hold(self.asked))
    elif fault == "no logarithm":
        hold = Bracket.hold
        monkeypatch.setattr(Bracket, "hold", lambda self, reached: hold(self, math.exp(reached)))
    else:
        monkeypatch.setattr(Bracket, "fail", lambda self: self.asked + 0.01)

    def noticed(limit: float) -> bool:
        try:
            return not near_the_answer(limit)
        except (InfeasibleTarget, UsageError, OverflowError):
            return True

    assert any(noticed(limit) for limit in (1.2, 1.7, 3.0, 7.0))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.floats(1.01, 6), most=st.floats(1.01, 8), coarse=st.booleans())
def test_whatever_the_quality_does_the_fastest_that_holds_of_what_was_built_is_given(seed, limit, most, coarse) -> None:
    noise = {}

    def loss(s: float) -> float:
        rng = np.random.default_rng(seed)
        return power(limit, 1.0)(s) * noise.setdefault(s, float(rng.uniform(0.2, 3)))

    levels = np.geomspace(1.1, 30, 9)
    fake = Fake(loss, most, (lambda x: float(levels[np.searchsorted(levels, x)])) if coarse else (lambda x: 1.01 * x))
    holding = lambda: [s for s, lost in fake.built if lost <= 1.0]  # noqa: E731
    try:
        result = search(fake, 1.0)
    except InfeasibleTarget:
        assert not holding() and 1 <= len(fake.asked) <= TRIES
        return
    assert result.lost <= 1.0 and result.report.reached.speedup == max(holding())
    assert len(fake.asked) <= TRIES and all(s > 1 for s in fake.asked)


def test_where_everything_holds_it_goes_on_to_the_fastest_there_is() -> None:
    fake = Fake(lambda s: 0.0, most=3.7)
    result = search(fake, 0.01)
    assert result.report.reached.speedup >= 3.7 * 0.98
    assert fake.asked == pytest.approx([1.25, 2.55, 5.202, 0.98 * 3.7])
    assert len(search_all(lambda s: 0.0)) == TRIES


def search_all(loss: Callable[[float], float]) -> list[float]:
    fake = Fake(loss)
    search(fake, 0.01)
    return fake.asked


def test_the_fastest_there_is_may_lose_too_much() -> None:
    fake = Fake(power(2.0, 0.01), most=2.4)
    assert 1.9 < search(fake, 0.01).report.reached.speedup <= 2.0
    assert fake.asked[2] == pytest.approx(2.4 * 0.98)


def test_where_nothing_holds_the_least_loss_is_told() -> None:
    fake = Fake(lambda s: 0.2 + s / 100)
    with pytest.raises(InfeasibleTarget, match="no faster model was found that loses at most 1% off accuracy") as error:
        search(fake, 0.01)
    reached, least = min(fake.built, key=lambda b: b[1])
    assert error.value.exit_code == 4 and error.value.best == 1.0
    assert f"{least:.4g} lost at {reached:.2f}x" in error.value.at and f"a loss of {least:.4g}" in error.value.fix
    assert min(fake.asked) < 1.03 and len(fake.asked) <= TRIES, "the least compression was tried"


def test_exact_rewrites_alone_are_an_answer() -> None:
    """Up to 1.07x nothing is lost, beyond that much at once."""
    fake = Fake(lambda s: 0.0 if s <= 1.07 else 0.5, overshoot=lambda x: max(x, 1.07))
    assert search(fake, 0.01).report.reached.speedup == 1.07


def test_a_model_that_cannot_be_made_faster_says_so_as_the_compiler_does() -> None:
    fake = Fake(lambda s: 0.0, most=1.0)
    with pytest.raises(InfeasibleTarget, match="too fast"):
        search(fake, 0.01)
    assert len(fake.asked) < TRIES


def test_a_quality_that_is_not_a_number_does_not_hold() -> None:
    fake = Fake(lambda s: math.nan if s > 1.5 else 0.0)
    assert 1.4 < search(fake, 0.01).report.reached.speedup <= 1.5
    with pytest.raises(InfeasibleTarget, match="no compression of this model gives finite outputs"):
        search(Fake(lambda s: math.inf), 0.01)


def test_every_try_is_noted_and_the_report_says_what_was_asked() -> None:
    notes: list[str] = []
    fake = Fake(power(2.0, 0.01), most=2.4)
    result = search(fake, 0.01, notes)
    assert len(notes) == len(fake.asked)
    assert notes[0].startswith("try 1: asked for 1.25x, reached 1.27x, lost ") and notes[0].endswith("allowed: holds")
    assert "out of reach: the most is 2.40x" in notes[1] and notes[2].endswith("0.01 allowed: too much")
    assert result.report.asked.target == "at most 1% off accuracy" and result.report.asked.target_speedup is None


# How the budget is said


def test_without_a_metric_a_budget_is_less_than_all() -> None:
    assert MaxDrop.of("99%", metric=False).points(1.0) == 0.99
    with pytest.raises(UsageError, match="a divergence of 1 is that of a model that says nothing"):
        MaxDrop.of(1, metric=False)


def test_a_budget_is_a_share_or_points() -> None:
    for text, dense, points in (("1%", 0.9, 0.009), ("1 %", -50.0, 0.5), ("0.5%", 90.0, 0.45), ("0.01", 0.9, 0.01),
                                (0.02, 3.0, 0.02), (2, 90.0, 2.0), ("0", 0.9, 0.0), ("1e-3", 1.0, 1e-3)):  # fmt: skip
        assert MaxDrop.of(text).points(dense) == pytest.approx(points)
        assert MaxDrop.of(str(MaxDrop.of(text))) == MaxDrop.of(text)
    assert [str(MaxDrop.of(t)) for t in ("1%", "0.10", 2)] == ["1%", "0.1", "2"]


@pytest.mark.parametrize("text", ["", "a bit", "-1%", "1x", "5 ms", "100%", "nan", "inf", math.inf, -0.1, True, "1%%"])
def test_what_is_no_budget_is_an_error(text) -> None:
    with pytest.raises(UsageError) as error:
        MaxDrop.of(text)
    assert error.value.at == "--max-drop" and "1%" in error.value.fix


# Real compilations on the steady clock


def test_the_command_line_finds_the_fastest_within_a_divergence(tmp_path, monkeypatch, capsys) -> None:
    clock = steady_widths(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(mlp().SerializeToString(deterministic=True))
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(96, 48)).astype(np.float32))
    assert main(["compile", "net.onnx", "--max-drop", "30%", "--calibration", "data.npz", "--out", "out"]) == 0
    out, err = capsys.readouterr()
    tries = [line.strip() for line in err.splitlines() if line.strip().startswith("try ")]
    assert 2 < len(tries) <= TRIES and any(t.endswith("holds") for t in tries)
    assert any(t.endswith("too much") for t in tries), "the budget is used up"
    assert err.count("calibrate: done") == err.count("price: done") == 1
    report = Report.from_json(Path("out/report.json").read_bytes())
    assert report.asked.target == "at most 30% of output divergence" and "asked for at most 30%" in out
    value = next(m.value for m in report.quality if m.name == "output divergence")
    assert 0.1 < value <= 0.3 * (1 + 1e-4)
    assert report.reached.speedup == pytest.approx(_speedup(clock, Path("out/model.onnx").read_bytes()), rel=1e-6)
    assert main(["replay", "out/plan.json", "net.onnx", "--out", "again.onnx"]) == 0
    assert Path("again.onnx").read_bytes() == Path("out/model.onnx").read_bytes()


def _speedup(clock: Steady, data: bytes) -> float:
    before, after = clock.measure([mlp().SerializeToString(deterministic=True), data], feeds(1, 48)[0])
    return before.median_ms / after.median_ms


def test_the_budget_is_of_the_users_metric_where_there_is_one(tmp_path, monkeypatch) -> None:
    steady_widths(monkeypatch)
    monkeypatch.chdir(tmp_path)
    accuracy_module(tmp_path)
    Path("net.onnx").write_bytes(mlp().SerializeToString(deterministic=True))
    assert main(["compile", "net.onnx", "--max-drop", "0.2", "--shape", "x=4x48", "--evaluate", "truth:accuracy",
                 "--out", "out", "--quiet"]) == 0  # fmt: skip
    report = Report.from_json(Path("out/report.json").read_bytes())
    first = report.quality[0]
    assert first.name == "accuracy" and 0.05 < first.before - first.value <= 0.2
    assert report.asked.target == "at most 0.2 off accuracy" and report.reached.speedup > 1.25


def test_it_is_judged_on_feeds_that_nothing_was_fitted_to(monkeypatch) -> None:
    steady_widths(monkeypatch)
    made, given_ = [], feeds(4, 48, n=40)

    class Kept(graphprune.driver.Compiler):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(graphprune.driver, "Compiler", Kept)
    result = graphprune.compile(mlp(), max_drop=0.3, calibration=given_, progress=Silent())
    held = made[0].data.holdout
    assert len(held) == 8 and not {id(f) for f in held} & {id(f) for f in made[0].data.calibration}
    dense, have = ([{"result": outputs(m, f)} for f in held] for m in (mlp(), result.data))
    assert 0.1 < divergence(dense, have) <= 0.3


def test_an_impossible_budget_exits_with_4_and_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    steady_widths(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(mlp().SerializeToString())
    assert main(["compile", "net.onnx", "--max-drop", "1e-9", "--shape", "x=4x48", "--quiet"]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no faster model was found that loses at most 1e-09 of output divergence\n")
    assert "lost at 1.0" in err and [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(("options", "what"), [
    (("--max-drop", "1%", "--target-speedup", "2x"), "--target-speedup and --max-drop cannot be combined"),
    (("--max-drop", "1%", "--family", "2x,3x"), "--family and --max-drop cannot be combined"),
    (("--max-drop", "a bit"), "'a bit' is no amount of quality"),
    (("--max-drop", "2"), "a divergence of 2 is that of a model that says nothing"),
])  # fmt: skip
def test_mistakes_on_the_command_line(options, what: str, tmp_path, monkeypatch, capsys) -> None:
    steady_widths(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(mlp().SerializeToString())
    assert main(["compile", "net.onnx", "--shape", "x=4x48", "--quiet", *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {what}")


def test_a_target_and_a_budget_cannot_be_combined() -> None:
    with pytest.raises(UsageError, match="a target and a quality budget cannot be combined"):
        graphprune.compile(mlp(), target_speedup=2, max_drop=0.01)
