"""Whole compilations: what comes out runs, is replayed to the byte, is reported, and out-of-reach targets say so.

Time is counted by a steady clock (see steady.py) but for one run on the real one, so nothing here depends on how fast
or busy the machine is.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

import graphprune
import graphprune.closed_loop
import graphprune.compiler
import graphprune.driver
from examples.own_pass import LargestWeights
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.cli import main
from graphprune.context import Context
from graphprune.cost import CostModel, Factor, Monomial, Term
from graphprune.driver import PASSES, compiler, passes_of
from graphprune.errors import InfeasibleTarget, ModelError, UsageError
from graphprune.passes.width import Width
from graphprune.plan import Plan
from graphprune.progress import Silent
from graphprune.result import Result
from graphprune.sites import Choice, Site
from graphprune.standing import HIGH
from graphprune.target import Target
from tests.graphs import model_of, run
from tests.steady import Steady, keep_steady_time
from tests.test_refit import CNN, MLP, RESIDUAL, scaled

RNG = np.random.default_rng


def mlp() -> onnx.ModelProto:
    """x [n, 48] -> 128 -> 128 -> result [n, 10]."""
    weights = scaled(RNG(0), w1=(48, 128), b1=(128,), w2=(128, 128), b2=(128,), w3=(128, 10), b3=(10,))
    return ir.to_proto(model_of(MLP, {"x": ("N", 48)}, weights))


def cnn() -> onnx.ModelProto:
    """x [n, 3, h, w] -> 32 -> 48 channels -> result [n, 10]."""
    weights = scaled(RNG(0), w1=(32, 3, 3, 3), b1=(32,), w2=(48, 32, 3, 3), b2=(48,), w3=(48, 10), b3=(10,))
    return ir.to_proto(model_of(CNN, {"x": ("N", 3, "H", "W")}, weights))


def residual() -> onnx.ModelProto:
    """x [n, 32] and two branches that are added to it, each 96 wide inside."""
    weights = scaled(RNG(0), w1=(32, 96), b1=(96,), w2=(96, 32), b2=(32,), w3=(32, 96), b3=(96,), w4=(96, 32), b4=(32,))
    weights["w4"] *= 0.05  # the second branch adds next to nothing
    weights["b4"] *= 0.05
    return ir.to_proto(model_of(RESIDUAL, {"x": ("N", 32)}, weights))


def feeds(*shape: int, n: int = 12, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = RNG(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(n)]


NETWORKS = {"mlp": (mlp, (4, 48)), "cnn": (cnn, (2, 3, 12, 12)), "residual": (residual, (4, 32))}


@pytest.fixture
def steady(monkeypatch) -> Steady:
    return keep_steady_time(monkeypatch)


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """Every network at 1.5x."""
    with pytest.MonkeyPatch.context() as patch:
        keep_steady_time(patch)
        return {name: graphprune.compile(make(), target_speedup=1.5, calibration=feeds(*shape), seed=3, passes="width")
                for name, (make, shape) in NETWORKS.items()}  # fmt: skip


def outputs(data: bytes | onnx.ModelProto, feed) -> np.ndarray:
    proto = data if isinstance(data, onnx.ModelProto) else onnx.ModelProto.FromString(data)
    return run(ir.from_proto(proto), feed)["result"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_compiled_to_the_factor_asked_for(results, name: str) -> None:
    (make, shape), result = NETWORKS[name], results[name]
    model, data = make(), feeds(*shape)
    onnx.checker.check_model(result.model, full_check=True)
    held = feeds(*shape, n=1, seed=9)[0]
    dense, small = outputs(model, held), outputs(result.data, held)
    assert small.shape == dense.shape and np.isfinite(small).all()
    assert np.square(small - dense).sum() < np.square(dense - dense.mean()).sum()
    before, after = Steady().measure([model.SerializeToString(deterministic=True), result.data], data[0])
    assert before.median_ms / after.median_ms >= 1.5
    assert outputs(result.data, feeds(1, *shape[1:])[0]).shape[0] == 1, "other batches still run"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_field_of_the_report_is_filled(results, name: str) -> None:
    (_, shape), result = NETWORKS[name], results[name]
    report = result.report
    assert report.asked.target == "1.5x" and report.asked.device == "host" and report.asked.seed == 3
    assert report.asked.passes == ("width",) and not report.asked.synthetic and report.asked.n_calibration == 10
    assert report.asked.shapes == {"x": "x".join(map(str, shape))}
    assert report.model.sha256 == result.plan.model_sha256 and report.model.nodes > 4
    assert report.reached.speedup >= 1.5 and report.reached.ms < report.reached.dense_ms
    attempts = report.reached.attempts
    assert attempts and all(math.isfinite(a.predicted) and a.measured > 1 for a in attempts)
    assert report.size.parameters_after < report.size.parameters_before
    assert report.size.bytes_after == len(result.data)
    divergence, *others = report.quality
    assert 0 < divergence.value < 1 and others
    assert report.sites and any(s.after < s.before for s in report.sites)
    assert {s.group for s in report.sites if s.after < s.before} == set(result.plan.choices["width"])
    for site, choice in result.plan.choices["width"].items():
        assert len(choice["keep"]) == next(s.after for s in report.sites if s.group == site)
    assert report.time and sum(row.ms_before for row in report.time) > sum(row.ms_after for row in report.time)
    assert report.certificate and {row.verdict for row in report.certificate} == {"exact"}
    assert len({row.shape for row in report.certificate}) > 1, "certified at several shapes"
    assert {"python", "onnx", "runtime"} <= set(report.environment)
    assert json.loads(report.to_json())["reached"]


def test_a_latency_is_a_target_too(steady: Steady) -> None:
    model, data = mlp(), feeds(4, 48)
    dense_ms = steady.measure([model.SerializeToString(deterministic=True)], data[0])[0].median_ms
    result = graphprune.compile(model, target_latency_ms=dense_ms / 1.5, calibration=data, passes="width")
    assert steady.measure([result.data], data[0])[0].median_ms <= dense_ms / 1.5
    with pytest.raises(UsageError, match="the model already takes"):
        graphprune.compile(model, target_latency_ms=2 * dense_ms, calibration=data, passes="width")


def test_a_plan_is_replayed_to_the_byte_also_under_another_hash_seed(results, tmp_path: Path) -> None:
    path, result = tmp_path / "net.onnx", results["residual"]
    path.write_bytes(residual().SerializeToString(deterministic=True))
    result.save(tmp_path / "out")
    names = {"model.onnx", "plan.json", "plan.npz", "report.html", "report.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert (tmp_path / "out/model.onnx").read_bytes() == result.data
    assert graphprune.replay(tmp_path / "out/plan.json", path) == result.data
    assert graphprune.replay(Plan.read(tmp_path / "out/plan.json"), path.read_bytes()) == result.data
    script = "import sys, graphprune; sys.stdout.buffer.write(graphprune.replay(*sys.argv[1:]))"
    again = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out/plan.json"), str(path)], check=True,
                           capture_output=True, env={**os.environ, "PYTHONHASHSEED": "7"}, timeout=60)  # fmt: skip
    assert again.stdout == result.data


def test_a_plan_written_and_read_is_the_same_plan(results, tmp_path: Path) -> None:
    plan = results["mlp"].plan
    for name, data in plan.files().items():
        (tmp_path / name).write_bytes(data)
    read = Plan.read(tmp_path / "plan.json")
    assert read.files() == plan.files()
    assert read.choices == plan.choices and read.traced_at == plan.traced_at
    assert all(np.array_equal(read.tensors[n], a) and read.tensors[n].dtype == a.dtype for n, a in plan.tensors.items())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("passes", [None, "quantise", "low-rank", "depth", "width,quantise"])
def test_every_pass_alone_and_all_together_compile_and_replay(steady: Steady, name: str, passes) -> None:
    """The steady clock does not count 8-bit matrix products, so those pay; 8-bit convolutions it counts."""
    make, shape = NETWORKS[name]
    nothing_to_gain = {("depth", "mlp"), ("depth", "cnn"), ("low-rank", "residual"), ("quantise", "cnn")}
    if (passes, name) in nothing_to_gain:
        with pytest.raises((ModelError, InfeasibleTarget)):
            graphprune.compile(make(), target_speedup=1.3, calibration=feeds(*shape), passes=passes)
        return
    result = graphprune.compile(make(), target_speedup=1.3, calibration=feeds(*shape), passes=passes)
    assert result.report.asked.passes == tuple(passes.split(",") if passes else PASSES)
    assert result.report.reached.speedup >= 1.3
    assert graphprune.replay(result.plan, make()) == result.data
    held = feeds(*shape, n=1, seed=9)[0]
    small = outputs(result.data, held)
    assert small.shape == outputs(make(), held).shape and np.isfinite(small).all()
    assert 0 < result.report.quality[0].value < 1
    taken = {p: sites for p, sites in result.plan.choices.items() if sites}
    assert taken and taken.keys() <= set(result.report.asked.passes)


def test_a_pass_that_does_not_exist_is_named_with_its_nearest() -> None:
    with pytest.raises(UsageError, match="no pass 'quantize'") as caught:
        graphprune.compile(mlp(), target_speedup=2, passes="width,quantize")
    assert caught.value.fix == "did you mean quantise?"
    assert [p.name for p in passes_of("quantise,depth")] == ["depth", "quantise"]


def test_the_same_seed_decides_the_same(results, steady: Steady) -> None:
    again = graphprune.compile(cnn(), target_speedup=1.5, calibration=feeds(2, 3, 12, 12), seed=3, passes="width")
    assert again.plan.choices == results["cnn"].plan.choices
    assert again.data == results["cnn"].data


def test_a_family_shares_one_calibration_and_one_set_of_prices(steady: Steady, monkeypatch) -> None:
    stages: list[str] = []

    class Record(Silent):
        def stage(self, name, total=None):
            stages.append(name)
            return super().stage(name, total)

    results = graphprune.compile_family(mlp(), targets=[1.3, 2.0], calibration=feeds(4, 48), progress=Record(),
                                        passes="width")  # fmt: skip
    reached = [r.report.reached.speedup for r in results]
    assert reached[0] >= 1.3 and reached[1] >= 2.0
    assert [r.report.asked.target for r in results] == ["1.3x", "2x"]
    assert results[0].report.size.parameters_after > results[1].report.size.parameters_after
    assert results[0].report.quality[0].value < results[1].report.quality[0].value
    assert stages.count("calibrate") == stages.count("price") == stages.count("probe") == 1


@pytest.mark.parametrize("options", [{"score": "magnitude", "compensate": False}, {"score": "activation"}], ids=str)
def test_other_scores_and_no_compensation(steady: Steady, options) -> None:
    result = graphprune.compile(mlp(), target_speedup=1.4, calibration=feeds(4, 48), **options, passes="width")
    assert result.report.reached.speedup >= 1.4 and result.report.asked.score == options["score"]
    if not options.get("compensate", True):
        assert not result.plan.tensors, "slicing says it all"
    assert graphprune.replay(result.plan, mlp()) == result.data


def test_without_data_inputs_are_made_up_and_the_report_says_so(steady: Steady) -> None:
    result = graphprune.compile(mlp(), target_speedup=1.4, shapes={"x": (4, 48)}, passes="width")
    assert result.report.asked.synthetic
    assert any("synthetic" in warning for warning in result.report.warnings)


@pytest.mark.parametrize(("pace", "said"), [(1.0, False), (1.1, False), (1.3, True), (0.7, True)])
def test_a_machine_that_is_not_as_it_was_when_prices_were_taken_is_told_of(steady: Steady, pace, said) -> None:
    made = compiler(mlp(), calibration=feeds(4, 48), passes="width")
    steady.pace = pace
    report = made.reach(Target(speedup=1.5)).report
    assert any("machine changed" in warning for warning in report.warnings) is said
    assert 1.5 <= report.reached.speedup <= 1.5 * HIGH  # both models are slowed down


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_speed_up_that_cannot_be_told_from_the_target_is_said_to_be_so(steady: Steady, noise: float) -> None:
    steady.noise = noise
    report = graphprune.compile(mlp(), target_speedup=1.5, calibration=feeds(4, 48), passes="width").report
    surely = report.reached.ratio.least >= 1.5
    assert report.reached.speedup >= 1.5 and surely is (not noise)
    assert any("cannot be told from 1.50x" in warning for warning in report.warnings) is not surely


# What cannot be done


def test_a_model_in_which_nothing_is_free_says_why(steady: Steady) -> None:
    frozen = ir.to_proto(model_of("result = Gemm(x, w, b)", {"x": ("N", 48)}, {"w": (48, 10), "b": (10,)}))
    with pytest.raises(ModelError, match="nothing in this model can be pruned") as error:
        graphprune.compile(frozen, target_speedup=1.5, calibration=feeds(4, 48), passes="width")
    assert "graph input" in error.value.at and "480" in error.value.at


def test_passes_that_find_nothing_to_do_are_named(steady: Steady) -> None:
    class Idle(Branches):
        name = "idle"

        def propose(self, context):
            return []

    with pytest.raises(ModelError, match="no pass can act on this model") as error:
        graphprune.compile(mlp(), target_speedup=1.5, calibration=feeds(4, 48), passes=[Idle()])
    assert "idle" in error.value.at


def test_out_of_reach_says_the_most_that_was_measured(steady: Steady) -> None:
    with pytest.raises(InfeasibleTarget, match="100x is out of reach on host") as error:
        graphprune.compile(cnn(), target_speedup=100, calibration=feeds(2, 3, 12, 12), passes="width")
    assert 1 < error.value.best < 100
    assert f"{error.value.best:.2f}x" in error.value.what and "no site changes" in error.value.at


def test_the_command_line_reports_out_of_reach_by_its_exit_code(steady: Steady, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(mlp().SerializeToString())
    assert main(["compile", "net.onnx", "--target-speedup", "100x", "--shape", "x=4x48", "--quiet"]) == 4
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: 100x is out of reach on host: the most measured is ")
    assert sorted(os.listdir()) == ["net.onnx"], "nothing was written"


def test_the_command_line_compiles_and_replays(steady: Steady, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(mlp().SerializeToString())
    np.savez("data.npz", x=RNG(0).normal(size=(24, 48)).astype(np.float32))
    assert main(["compile", "net.onnx", "--target-speedup", "1.5x", "--calibration", "data.npz",
                 "--passes", "width"]) == 0
    assert "1.5" in capsys.readouterr().out
    assert main(["replay", "net-compressed/plan.json", "net.onnx", "--out", "again.onnx"]) == 0
    assert Path("again.onnx").read_bytes() == Path("net-compressed/model.onnx").read_bytes()


# A pass of one's own


class Branches:
    """A worked example of `sites.Pass`: drop `f(x)` from `x + f(x)`, a choice of all or nothing for each branch."""

    name = "branches"

    def propose(self, context: Context) -> Sequence[Site]:
        return [Site(f"branch {add.name}", (0, 1), (1.0, 0.0), "residual branch", (add.name,))
                for add in context.model.graph if add.op_type == "Add" and self._stream(add) is not None]  # fmt: skip

    @staticmethod
    def _stream(add: ir.Node) -> ir.Value | None:
        """The operand that the other one is computed from."""
        for stream, branch in (add.inputs, tuple(reversed(add.inputs))):
            waiting = [branch]
            while waiting:
                node = waiting.pop().producer()
                if node is not None and stream in node.inputs:
                    return stream
                waiting += [v for v in node.inputs if v is not None] if node is not None else []
        return None

    def choose(self, context: Context, levels: Mapping[str, int]) -> Mapping[str, Choice]:
        return {name: {"drop": name.removeprefix("branch ")} for name, level in levels.items() if level == 0}

    def apply(
        self, context: Context, model: ir.Model, choices: Mapping[str, Choice], solve: bool = True
    ) -> ir.Model:
        copy = model.clone()
        adds = {node.name: node for node in copy.graph}
        for choice in choices.values():
            add = adds[choice["drop"]]
            stream = self._stream(add)
            if add.outputs[0].is_graph_output():
                same = ir.node("Identity", [stream], name=f"{add.name}.dropped")
                same.outputs[0].name, same.outputs[0].type = add.outputs[0].name, add.outputs[0].type
                same.outputs[0].shape = add.outputs[0].shape
                add.outputs[0].name = None
                copy.graph.insert_after(add, same)
                add.outputs[0].replace_all_uses_with(same.outputs[0], replace_graph_outputs=True)
            else:
                add.outputs[0].replace_all_uses_with(stream)
            copy.graph.remove(add, safe=True)
        RemoveUnusedNodesPass()(copy)
        return copy


@dataclass
class Fixed:
    """Prices that nothing can be added to."""

    model: CostModel

    def add(self, counts, kernels, ms) -> CostModel:
        return self.model


def branch_prices(full, levels, build, feed, backend, **options) -> Fixed:
    """Exact prices of `residual()`, read off the steady clock: a branch costs something, and something per width."""
    def ms(**changed: int) -> float:
        return backend.measure([build({**full, **{by_key[k]: v for k, v in changed.items()}})], feed)[0].median_ms

    branches = [n for n in full if n.startswith("branch ")]
    by_key = {f"s{i}": n for i, n in enumerate(full)}
    key = {n: k for k, n in by_key.items()}
    nothing = ms(**dict.fromkeys((key[b] for b in branches), 0))
    terms = [Term("fixed", "", (), (Monomial(nothing),))]
    for branch in branches:
        others = {key[b]: 0 for b in branches if b != branch}
        left = ms(**others) - nothing
        monomials, groups = [Monomial(left, (Factor(branch),))], [branch]
        for width in full.keys() - set(branches):
            slope = (ms(**others) - ms(**others, **{key[width]: 8})) / (full[width] - 8)
            if slope:
                monomials = [Monomial(left - slope * full[width], (Factor(branch),)),
                             Monomial(slope, (Factor(branch), Factor(width)))]  # fmt: skip
                groups.append(width)
        terms.append(Term(branch, "Gemm", tuple(groups), tuple(monomials)))
    low = {n: v[0] for n, v in levels.items()}
    return Fixed(CostModel(tuple(terms), 0.0, ms(), 0.01, low, dict(full), "exact"))


@pytest.mark.parametrize("passes", [lambda: [Branches()], lambda: [Width(), Branches()], lambda: [Branches(), Width()]],
                         ids=["alone", "after width", "before width"])  # fmt: skip
def test_a_pass_of_ones_own_takes_part_in_the_same_solve(steady: Steady, monkeypatch, passes) -> None:
    monkeypatch.setattr(graphprune.compiler, "measure_prices", branch_prices)
    result = graphprune.compile(residual(), target_speedup=1.8, calibration=feeds(4, 32), passes=passes())
    assert result.report.reached.speedup >= 1.8
    assert len(result.plan.choices["branches"]) == 1, "the branch that adds next to nothing goes"
    assert result.report.quality[0].value < 0.1
    assert not {"w4", "b4"} & {t.name for t in result.model.graph.initializer}
    assert graphprune.replay(result.plan, residual(), passes=passes()) == result.data
    with pytest.raises(UsageError, match="choices of a pass 'branches' that is not here"):
        graphprune.replay(result.plan, residual())


def test_two_passes_share_what_is_asked_for(steady: Steady, monkeypatch) -> None:
    """At 3x dropping one branch is not enough, and dropping both would leave nothing: the rest comes from widths."""
    monkeypatch.setattr(graphprune.compiler, "measure_prices", branch_prices)
    result = graphprune.compile(residual(), target_speedup=3, calibration=feeds(4, 32), passes=[Width(), Branches()])
    assert result.report.reached.speedup >= 3
    assert len(result.plan.choices["branches"]) == 1 and result.plan.choices["width"]
    assert graphprune.replay(result.plan, residual(), passes=[Width(), Branches()]) == result.data


def test_the_worked_example_compiles(steady: Steady) -> None:
    result = graphprune.compile(mlp(), target_speedup=1.4, calibration=feeds(4, 48), passes=[LargestWeights()])
    assert result.report.asked.passes == ("largest-weights",) and result.report.reached.speedup >= 1.4
    assert graphprune.replay(result.plan, mlp(), passes=[LargestWeights()]) == result.data


# The real clock


def test_a_compilation_on_the_real_clock(monkeypatch) -> None:
    """What is measured is only checked for being a measurement."""
    measure = OnnxRuntime.measure

    def brief(self, models, feed, **limits):
        return measure(self, models, feed, **{**limits, "min_rounds": 4, "max_seconds": 0.2})

    monkeypatch.setattr(OnnxRuntime, "measure", brief)
    monkeypatch.setattr(graphprune.compiler, "_PRICING_SECONDS", 0.0)
    monkeypatch.setattr(graphprune.closed_loop, "_EVALUATIONS", 6)
    data = feeds(1, 3, 48, 48, n=8)
    compiled = compiler(cnn(), calibration=data, passes="width")
    try:
        result = compiled.reach(graphprune.driver.Target(speedup=1.3))
    except InfeasibleTarget as error:  # a busy machine can hide any speed-up
        assert error.best > 0
        return
    reached = result.report.reached
    assert math.isfinite(reached.speedup) and reached.speedup > 0
    assert reached.dense_ms > 0 and reached.ms > 0 and reached.rounds >= 4
    assert outputs(result.data, data[0]).shape == (1, 10)
    assert graphprune.replay(result.plan, cnn()) == result.data


def norms() -> ir.Model:
    """Residual blocks of 64 features under LayerNorm, with hidden layers of 32: most of the time is in the width of the
    stream, which only a level that lets norms' axes shrink may touch."""
    text, x, weights = "s = MatMul(x, stem)", "s", {"stem": (16, 256), "last": (256, 8)}
    for i in range(3):
        text += f"\nn{i} = LayerNormalization({x}, g{i}, b{i})\nh{i} = MatMul(n{i}, w{i})\na{i} = Relu(h{i})"
        text += f"\ny{i} = MatMul(a{i}, v{i})\nz{i} = Add(y{i}, {x})"
        weights |= {f"g{i}": (256,), f"b{i}": (256,), f"w{i}": (256, 128), f"v{i}": (128, 256)}
        x = f"z{i}"
    return model_of(f"{text}\nresult = MatMul({x}, last)", {"x": ("N", 16)}, weights)


def test_the_axes_of_norms_shrink_only_when_asked_and_have_a_quality_of_their_own(steady, tmp_path) -> None:
    model, given = ir.to_proto(norms()), feeds(32, 16)
    by_level = {axes: graphprune.compile(model, target_speedup=1.6, calibration=given, axes=axes, passes="width")
                for axes in ("exact", "all")}  # fmt: skip
    assert {s.before for s in by_level["exact"].report.sites} == {128}
    assert {s.before for s in by_level["all"].report.sites} == {128, 256}
    result = by_level["all"]
    assert any(s.before == 256 and s.after < 256 for s in result.report.sites)
    total, exact = (next(q.value for q in result.report.quality if q.name == name)
                    for name in ("output divergence", "output divergence, exact axes alone"))  # fmt: skip
    assert 0 <= exact < total < 1
    assert [q.name for q in by_level["exact"].report.quality][:1] == ["output divergence"]
    assert not any("exact axes alone" in q.name for q in by_level["exact"].report.quality)
    assert {c.name for c in result.report.certificate} >= {"permutation"}
    result.save(tmp_path / "out")
    assert graphprune.replay(tmp_path / "out" / "plan.json", model) == result.data


def test_filter_banks_keep_their_own_channels_and_the_plan_says_so(steady, tmp_path) -> None:
    """Each bank of a grouped convolution reads other channels loudly: one set for all would lose half of them."""
    rng = RNG(2)
    weights = scaled(rng, w1=(64, 3, 1, 1), w2=(64, 16, 3, 3), w3=(8, 64, 1, 1))
    loud = np.zeros((4, 16), bool)
    for bank in range(4):
        loud[bank, 4 * bank : 4 * bank + 4] = True
    weights["w1"] *= np.where(loud, 1.0, 0.02).reshape(-1, 1, 1, 1).astype(np.float32)
    text = ("a = Conv(x, w1)\nb = Tanh(a)\nc = Conv<group=4, pads=[1,1,1,1]>(b, w2)\nd = Relu(c)\n"
            "e = Conv(d, w3)\nf = GlobalAveragePool(e)\nresult = Flatten(f)")  # fmt: skip
    model = ir.to_proto(model_of(text, {"x": ("N", 3, 10, 10)}, weights))
    compiled = compiler(model, calibration=feeds(2, 3, 10, 10), passes="width")
    (name,) = (n for n, g in compiled.prepared.analysis.groups.items() if g.outer and n.startswith("Conv_0"))
    keep = compiled.choose({**compiled.full, name: 4})["width"][name]["keep"]
    assert keep == [np.flatnonzero(row).tolist() for row in loud]
    result = graphprune.compile(model, target_speedup=1.5, calibration=feeds(2, 3, 10, 10), passes="width")
    result.save(tmp_path / "out")
    assert graphprune.replay(tmp_path / "out" / "plan.json", model) == result.data
