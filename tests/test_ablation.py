"""The ablation: which rows are worked out and kept, how two passes follow each other, what the page says, and the
baselines on small networks of an old opset."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from graphprune.backends import open_backend
from graphprune.errors import InfeasibleTarget, ModelError
from graphprune.feeds import split
from graphprune.target import Target
from models.task import Task
from tests.graphs import model_of
from tools import ablation, baselines
from tools.ablation_pages import (
    AT_A_TARGET,
    DENSE,
    DYNAMIC,
    JOINT,
    PRUNE_FIRST,
    QUANTISE_FIRST,
    cells,
    markdown,
    picture,
    spread,
)
from tools.curve_pages import Frame, scale
from tools.sequences import TRIES, prune_then_quantise, quantise_then_prune
from tools.shared import Rows

SVG = "{http://www.w3.org/2000/svg}"
SETTINGS = {"task": "t", "samples": 8, "limit": None, "threads": 1, "host": "h", "headline": "accuracy",
            "date": "2000-01-01"}


# ------------------------------------------------------------------------------------------------- the baselines

CONVOLUTIONS = ("""a = Conv<pads=[1,1,1,1]>(x, w1, b1)
                   r = Relu(a)
                   c = Conv<pads=[1,1,1,1], group=8>(r, w2)
                   k = Clip(c, low, high)
                   p = GlobalAveragePool(k)
                   f = Flatten(p)
                   result = Gemm<transB=1>(f, w3, b3)""",
                {"x": ("n", 3, 8, 8)},
                {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "low": np.float32(0), "high": np.float32(6),
                 "w3": (5, 8), "b3": (5,)})
PERCEPTRON = ("""a = MatMul(x, w1)
                 s = Add(a, b1)
                 t = Tanh(s)
                 result = MatMul(t, w2)""", {"x": ("n", 16)}, {"w1": (16, 24), "b1": (24,), "w2": (24, 6)})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def network(folder: Path, made: tuple, opset: int) -> tuple[Path, list[dict[str, np.ndarray]]]:
    text, inputs, weights = made
    arrays = {n: np.asarray(w) if isinstance(w, np.generic) else w for n, w in weights.items()}
    path = folder / "net.onnx"
    ir.save(model_of(text, inputs, arrays, opset=opset), path)
    rng = np.random.default_rng(0)
    ((name, shape),) = inputs.items()
    return path, [{name: rng.normal(size=(1, *shape[1:])).astype(np.float32)} for _ in range(20)]


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("made", [CONVOLUTIONS, PERCEPTRON], ids=["convolutions", "perceptron"])
def test_baselines_are_integer_run_and_stay_near_the_dense_model(cache: Path, made: tuple, opset: int) -> None:
    path, feeds = network(cache, made, opset)
    fitted, held = split(feeds, 0)
    backend = open_backend("host")
    dense = backend.load(path)
    found = {"dynamic": baselines.dynamic(path),
             **{f"static {linear}": baselines.static(path, fitted, held, linear_only=linear).path
                for linear in (False, True)}}
    for name, quantised in found.items():
        weights = [onnx.numpy_helper.to_array(w) for w in onnx.load(quantised).graph.initializer]
        assert any(w.dtype == np.int8 and w.ndim >= 2 for w in weights), name
        assert not any(w.dtype == np.float32 and w.ndim == 2 for w in weights), name  # MatMul and Gemm at least
        loaded = backend.load(quantised)
        for feed in held:
            want, have = dense.run(feed)["result"], loaded.run(feed)["result"]
            assert have.shape == want.shape
            assert np.abs(have - want).max() < 0.2 * np.abs(want).max(), name


def test_the_calibration_is_the_best_of_all_on_held_out_feeds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, feeds = network(cache, PERCEPTRON, 13)
    fitted, held = split(feeds, 0)
    seen = {}
    for name in baselines.CALIBRATIONS:
        with monkeypatch.context() as only:
            only.setattr(baselines, "CALIBRATIONS", {name: baselines.CALIBRATIONS[name]})
            seen[name] = baselines.static(path, fitted, held, linear_only=False).divergence
    assert len({round(v, 12) for v in seen.values()}) > 1
    best = baselines.static(path, fitted, held, linear_only=False)
    assert best.divergence == min(seen.values())
    assert seen[best.how.removeprefix("everything, ")] == best.divergence


def test_baselines_are_made_once_for_the_same_data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, feeds = network(cache, PERCEPTRON, 13)
    first = baselines.static(path, feeds[:10], feeds[10:], linear_only=True)
    monkeypatch.setattr(baselines, "ort_static", None)  # would be called again
    assert baselines.static(path, feeds[:10], feeds[10:], linear_only=True) == first
    with pytest.raises(TypeError):
        baselines.static(path, feeds[:9], feeds[10:], linear_only=True)


# ------------------------------------------------------------------------------------------------- one after the other

class FakeBench:
    """Models are bytes that say how far each pass went. Gains multiply; each pass has a most that it can give.

    A reach overshoots by `over`, and the whole is measured as `lag` of the product.
    """

    def __init__(self, most: dict[str, float], over: float = 1.03, lag: float = 1.0, cost: tuple = (1.0, 1.0)) -> None:
        self.limits, self.over, self.lag, self.cost = most, over, lag, cost
        self.reached: list[tuple[str, float]] = []

    @staticmethod
    def parts(data: bytes) -> dict[str, float]:
        return {k: float(v) for k, v in (item.split("=") for item in data.decode().split(",") if item)}

    def compiler(self, passes: str, model: bytes | None = None) -> SimpleNamespace:
        def reach(target: Target) -> SimpleNamespace:
            if target.speedup > self.limits[passes]:
                raise InfeasibleTarget("no", best=self.limits[passes])
            got = min(target.speedup * self.over, self.limits[passes])
            self.reached.append((passes, target.speedup))
            done = self.parts(model or b"") | {passes: got}
            return SimpleNamespace(data=",".join(f"{k}={v}" for k, v in done.items()).encode(),
                                   report=SimpleNamespace(reached=SimpleNamespace(speedup=got)))

        if self.limits[passes] == 0 and model is not None:
            raise ModelError("nothing in this model can be pruned")
        return SimpleNamespace(reach=reach)

    def most(self, passes: str) -> float:
        return self.limits[passes]

    def speedup(self, data: bytes) -> float:
        return self.lag * math.prod(self.parts(data).values())

    def lost(self, data: bytes) -> float:
        parts = self.parts(data)
        return sum(c * math.log(parts.get(p, 1.0)) ** 2 for c, p in zip(self.cost, ("width", "quantise"), strict=True))


@given(asked=st.floats(1.3, 8), width=st.floats(1.5, 10), quantise=st.floats(1.1, 4), lag=st.floats(0.97, 1.03),
       order=st.sampled_from([prune_then_quantise, quantise_then_prune]))
def test_a_sequence_is_as_fast_as_asked_or_really_out_of_reach(asked, width, quantise, lag, order) -> None:
    bench = FakeBench({"width": width, "quantise": quantise}, lag=lag)
    try:
        made = order(asked, bench)
    except InfeasibleTarget as error:
        assert asked > 0.85 * width * quantise * min(lag, 1.0)
        assert error.best < asked
    else:
        assert bench.speedup(made.data) >= asked * (1 if len(bench.parts(made.data)) == 2 else lag)
        assert bench.speedup(made.data) < asked * 1.2
    assert len(bench.reached) <= 4 * (TRIES + 1)


def test_no_more_is_pruned_than_it_takes_when_pruning_is_dear() -> None:
    made = prune_then_quantise(4.0, FakeBench({"width": 10, "quantise": 2.5}, over=1.0, cost=(10, 1)))
    assert FakeBench.parts(made.data)["width"] == pytest.approx(4 / (0.98 * 2.5), rel=0.01)
    assert "width to 1.63x, then quantise to 4.00x" in made.how


def test_held_out_feeds_choose_an_even_split_when_quantising_is_dear() -> None:
    made = prune_then_quantise(4.0, FakeBench({"width": 10, "quantise": 3.5}, over=1.0, cost=(1, 10)))
    assert FakeBench.parts(made.data)["width"] == pytest.approx(2.0, rel=0.01)


def test_pruning_goes_on_where_quantising_gives_less_after_it() -> None:
    class Less(FakeBench):
        def compiler(self, passes: str, model: bytes | None = None) -> SimpleNamespace:
            made = super().compiler(passes, model)
            if model is None:
                return made
            less = FakeBench({passes: 1.6}, over=1.0)
            return less.compiler(passes, model)

    bench = Less({"width": 10, "quantise": 2.5}, over=1.0)
    made = prune_then_quantise(4.0, bench)
    assert bench.speedup(made.data) >= 4.0
    assert FakeBench.parts(made.data)["width"] == pytest.approx(4 / 1.6, rel=0.1)


def test_quantising_first_says_when_nothing_is_left_to_prune() -> None:
    with pytest.raises(ModelError, match="nothing in this model"):
        quantise_then_prune(4.0, FakeBench({"width": 0, "quantise": 2.5}))


# ---------------------------------------------------------------------------------------- rows and their models

class FakeCompiler:
    """Every model that it compiles is the one it got, with a word about what was asked."""

    made: list[tuple[str, int]]

    def __init__(self) -> None:
        self.made = []

    def __call__(self, model, *, calibration, shapes, threads, seed, passes, progress) -> SimpleNamespace:
        self.made.append((passes, seed))
        proto = onnx.load(model) if isinstance(model, Path) else onnx.ModelProto.FromString(model)

        def reach(target: Target) -> SimpleNamespace:
            if target.speedup > 3:
                raise InfeasibleTarget("no", best=2.9)
            proto.doc_string = f"{passes} {target} {seed}"
            return SimpleNamespace(data=proto.SerializeToString(),
                                   report=SimpleNamespace(reached=SimpleNamespace(speedup=target.speedup)))

        return SimpleNamespace(reach=reach)


@pytest.fixture
def task(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    path, feeds = network(cache, PERCEPTRON, 13)
    made = Task("tiny", lambda: path, lambda n: models.task.take(feeds, n), lambda run, limit=None: {"accuracy": 0.9},
                {"x": (1, 16)}, "accuracy")
    monkeypatch.setattr(models, "get", lambda name: made)
    return made


def test_rows_are_kept_and_only_what_is_missing_is_compiled(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "docs" / "ablation.json"
    arguments = ["tiny", "--samples", "10", "--speedups", "2,4", "--only", JOINT, "--only", "width alone",
                 "--out", str(out)]
    first = FakeCompiler()
    ablation.walk("tiny", Rows(out), ablation.options_of([*arguments, "--seeds", "0,1"]), first)
    rows = Rows(out)
    assert sorted((r["method"], r["asked"], r["seed"]) for r in rows.all) == sorted(
        (m, a, s) for m in (JOINT, "width alone") for a in (2.0, 4.0) for s in (0, 1))
    assert all(r["out_of_reach"] == 2.9 for r in rows.all if r["asked"] == 4)
    assert all((ablation.models_folder() / f"{r['digest']}.onnx").exists() for r in rows.all if r["asked"] == 2)
    assert len({r["digest"] for r in rows.all if r["asked"] == 2}) == 4
    assert len(first.made) == 4  # once a seed and method, whatever the number of targets
    second = FakeCompiler()
    ablation.walk("tiny", rows, ablation.options_of([*arguments, "--seeds", "0,1,2"]), second)
    assert {seed for _, seed in second.made} == {2}
    assert len(Rows(out).all) == 12


def test_models_are_measured_again_in_turns_and_rows_say_so(task: Task, tmp_path: Path) -> None:
    rows = Rows(tmp_path / "ablation.json")
    options = ablation.options_of(["tiny", "--samples", "10", "--speedups", "2", "--seeds", "0,1", "--only", JOINT,
                                   "--only", DENSE, "--only", DYNAMIC])
    ablation.walk("tiny", rows, options, FakeCompiler())
    assert [r["seed"] for r in rows.all if r["method"] in (DENSE, DYNAMIC)] == [0, 0]
    assert not any("together" in r for r in rows.all)
    gone = next(r for r in rows.all if r["method"] == JOINT and r["seed"] == 1)
    (ablation.models_folder() / f"{gone['digest']}.onnx").unlink()
    assert ablation.measure("tiny", rows, 1) == 2
    assert {(r["method"], r["seed"]) for r in rows.all if r.get("together")} == {(DYNAMIC, 0), (JOINT, 0)}
    assert len(rows.all) == 4


@given(st.lists(st.integers(1, 10**9), max_size=40))
def test_models_timed_in_one_run_fit_into_memory(sizes: list[int]) -> None:
    rows = [{"bytes": size} for size in sizes]
    runs = list(ablation.together(rows))
    assert [r for run in runs for r in run] == rows
    assert all(0 < len(run) <= 12 for run in runs)
    assert all(len(run) == 1 or sum(r["bytes"] for r in run) <= 1.5e9 for run in runs)


def test_seeds_draw_other_samples_from_a_longer_prefix_as_far_as_there_is_one(task: Task) -> None:
    def drawn(seed: int, samples: int) -> list[float]:
        return [float(f["x"][0, 0]) for f in ablation.draw(task, samples, seed)]

    assert drawn(0, 5) == drawn(0, 5) != drawn(1, 5)
    assert len(set(drawn(0, 5))) == 5
    assert drawn(0, 20) == drawn(1, 20) == [float(f["x"][0, 0]) for f in task.calibration(20)]


def test_speed_is_measured_at_the_shapes_of_the_task() -> None:
    feeds = [{"ids": np.arange(3)[None]}, {"ids": np.arange(6)[None]}]
    task = SimpleNamespace(shapes={"ids": (1, 6)})
    assert ablation.timing_feed(task, feeds)["ids"].tolist() == [[0, 1, 2, 3, 4, 5]]
    task = SimpleNamespace(shapes={"ids": (1, 7)})
    assert ablation.timing_feed(task, feeds)["ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0]]


# ------------------------------------------------------------------------------------------------- the page

def row(method: str, asked: float | None, quality: float | None, seed: int = 0, speedup: float | None = None, **more):
    made = SETTINGS | {"method": method, "asked": asked, "seed": seed, "together": True} | more
    if quality is None:
        return made | ({} if "refused" in more else {"out_of_reach": 1.4})
    return made | {"speedup": speedup or 1.02 * asked, "spread": 0.01, "metrics": {"accuracy": quality}}


def planted(joint: float | None, rival: float | None) -> list[dict]:
    return [row(DENSE, 1.0, 0.99), *(row(JOINT, 2.0, joint, seed) for seed in (0, 1, 2)),
            *(row(PRUNE_FIRST, 2.0, rival and rival + 0.001 * seed, seed) for seed in (0, 1, 2))]


@pytest.mark.parametrize(("joint", "rival", "loses"), [
    (0.95, 0.90, False), (0.95, 0.949, False), (0.90, 0.95, True), (None, 0.90, True), (0.90, None, False)])
def test_the_page_says_where_joint_is_not_the_best(joint: float | None, rival: float | None, loses: bool) -> None:
    text = markdown(planted(joint, rival))
    assert ("- t, 2x" in text) == loses
    assert ("not the best here" in text) == loses
    assert not (loses and "is the best, or as good" in text)


def test_the_page_gives_median_range_and_speed_and_marks_the_best() -> None:
    text = markdown(planted(0.90, 0.95))
    assert "| joint | 90.0 % [90.0..90.0] at 2.04x |" in text
    assert f"| {PRUNE_FIRST} | **95.1 %** [95.0..95.2] at 2.04x |" in text
    assert "5.1 points less" in text
    assert "overlap" not in text


def test_the_page_says_that_ranges_overlap_and_seeds_are_missing() -> None:
    rows = [row(JOINT, 2.0, 0.90, 0), row(JOINT, 2.0, 0.96, 1), row(JOINT, 2.0, None, 2),
            *(row("width alone", 2.0, 0.94 + 0.01 * s, s) for s in (0, 1, 2))]
    text = markdown(rows)
    assert "the ranges over seeds overlap" in text
    assert "1 of 3 seeds out of reach" in text
    assert "out of reach of the joint solve with 1 of 3 seeds" in text


def test_one_method_alone_is_no_comparison() -> None:
    assert "nothing to compare" in markdown([row(DENSE, 1.0, 0.99), row(JOINT, 2.0, 0.9)])
    assert "nothing to compare" in markdown([])


@pytest.mark.parametrize(("theirs", "said"), [(0.97, True), (0.91, False)])
def test_the_runtimes_own_model_is_set_beside_the_joint_one_that_is_as_fast(theirs: float, said: bool) -> None:
    rows = [row(JOINT, 2.0, 0.98), row(JOINT, 3.0, 0.95), row(JOINT, 4.0, 0.80),
            row(DYNAMIC, None, theirs, speedup=2.5, how="")]
    text = markdown(rows)
    assert (f"t, beside {DYNAMIC}" in text) == said
    line = next(x for x in text.splitlines() if x.startswith(f"| {DYNAMIC}"))
    assert "| 2.50x |" in line and "| 3.06x |" in line


def test_a_refusal_is_said_with_its_reason() -> None:
    text = markdown([row(JOINT, 2.0, 0.9), row(QUANTISE_FIRST, 2.0, None, refused="nothing can be pruned")])
    assert f"- {QUANTISE_FIRST}: nothing can be pruned" in text
    assert f"| {QUANTISE_FIRST} | refused |" in text


def test_only_rows_of_the_newest_settings_count() -> None:
    old = [r | {"host": "another"} for r in planted(0.5, 0.95)]
    assert "not the best here" not in markdown([*old, *planted(0.95, 0.5)])
    assert {c.rows[0]["host"] for c in cells(planted(0.95, 0.5)).values()} == {"h"}


def test_the_picture_is_well_formed_and_labels_every_method_once() -> None:
    rows = [row(DENSE, 1.0, 0.99), row(DYNAMIC, None, 0.13, speedup=2.1, how=""),
            *(row(m, x, 0.99 - 0.01 * i * x + 0.002 * s, s)
              for i, m in enumerate(AT_A_TARGET) for x in (2.0, 3.0, 4.0) for s in (0, 1))]
    rows += [r | {"task": "<other>"} for r in rows]
    root = ElementTree.fromstring(picture(rows))
    texts = [e.text for e in root.iter(f"{SVG}text")]
    assert all(texts.count(m) == 2 for m in AT_A_TARGET)
    assert texts.count(f"{DYNAMIC} (13 %)") == 2  # below what is drawn: said, not drawn to scale
    dots = list(root.iter(f"{SVG}circle"))
    assert len(dots) == 2 * (3 * len(AT_A_TARGET) + 1)
    assert all(0 <= float(d.get("cy")) <= 340 and 0 <= float(d.get("cx")) <= 560 for d in dots)
    labels = sorted({float(e.get("y")) for e in root.iter(f"{SVG}text") if e.text in AT_A_TARGET})
    assert min(np.diff(labels)) >= 13.9


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
def test_labels_are_spread_in_order_and_inside(wanted: list[float]) -> None:
    placed = spread(wanted, 14, 0, 200)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(placed[b] - placed[a] >= 14 - 1e-9 for a, b in pairwise(order))
    assert all(-1e-9 <= p <= 200 + 1e-9 for p in placed)


@given(st.floats(-50, 100), st.floats(0, 100))
def test_a_frame_holds_its_values(low: float, more: float) -> None:
    frame = Frame(300, 200, *scale(low, min(100, low + more)), 4.0)
    assert frame.top - 1e-6 <= frame.y(min(100, low + more)) <= frame.y(low) <= 200 - frame.bottom + 1e-6
    assert frame.x(1) == frame.left and frame.x(4) == pytest.approx(300 - frame.right)
