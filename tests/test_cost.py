"""The cost model, against a made-up machine whose times are known exactly, and on the real runtime."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.cost import CostModel, measure_cost, random_plan
from graphprune.cost_fit import Sample, extent, fit
from graphprune.cost_model import Factor
from graphprune.errors import EnvironmentFault, UsageError
from graphprune.target import Kernel, Timing
from models import width_families

SIZES = {"heads": 12, "dim": 32, "ffn": 512, "c": 64, "d": 64, "e": 64}
LEVELS = {
    "heads": tuple(range(1, 13)), "dim": (8, 16, 24, 32), "ffn": tuple(range(32, 513, 32)),
    **{g: tuple(range(8, 65, 8)) for g in "cde"},
}  # fmt: skip
FEED = {"x": np.zeros(1, np.float32)}


def up(n: int, step: int = 16) -> int:
    return -(-n // step) * step


class Machine:
    """A model is its counts. Noise, drift between calls and a core that is sometimes lost are planted."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.rng = np.random.default_rng(7)

    def load(self, counts):
        return counts

    def fingerprint(self):
        return "a machine"

    def exact(self, n) -> list[Kernel]:
        inner, joined = n["heads"] * n["dim"], n["c"] + n["d"] + n["e"]
        return [
            Kernel("qkv", "MatMul", 1e-6 * 128 * inner, ((128, 384),), ((128, inner),)),
            Kernel("scores", "MatMul", 2e-6 * 128 * inner, ((n["heads"], 128, n["dim"]),), ((n["heads"], 128, 128),)),
            Kernel("ffn", "MatMul", 0.01 + 2e-3 * up(n["ffn"]), ((128, 384),), ((128, n["ffn"]),)),
            Kernel("fixed", "Softmax", 0.2, ((128, 128),), ((128, 128),)),
            Kernel("conv", "Conv", 1e-4 * up(n["c"]) * up(n["d"]), ((1, up(n["c"]), 8),), ((1, up(n["d"]), 8),)),
            *[Kernel("Reorder_1", "ReorderOutput", 0.03, ((1, up(n["d"]), 8),), ((1, n["d"], 8),))][: n["d"] % 16],
            Kernel("joined", "Conv", 0.02 + 1e-4 * joined * n["e"], ((1, joined, 4),), ((1, n["e"], 4),)),
        ]

    def total(self, n) -> float:
        return sum(k.ms for k in self.exact(n))

    def profile(self, n, feed, *, repeats):
        drift = 1 + 3 * self.noise * self.rng.random()
        kernels = []
        for k in self.exact(n):
            lost = 3.0 if self.noise and self.rng.random() < 0.02 else 0.0
            ms = k.ms * drift * (1 + self.noise * self.rng.standard_normal()) + 0.001 + lost
            kernels.append(Kernel(k.name, k.op, ms, k.inputs, k.outputs))
        return kernels

    def measure(self, models, feed, **limits):
        times = [self.total(n) for n in models]
        errors = self.noise / 3 * self.rng.standard_normal(len(times)) * (len(times) > 1)
        return [Timing((t * (1 + e),) * 5) for t, e in zip(times, errors, strict=True)]


def errors_of(cost: CostModel, machine: Machine) -> np.ndarray:
    rng = np.random.default_rng(123)
    plans = [random_plan(SIZES, LEVELS, rng) for _ in range(60)]
    return np.array([abs(cost.predict(n).ms / machine.total(n) - 1) for n in plans])


def priced(noise: float = 0.0, seed: int = 0) -> CostModel:
    return measure_cost(SIZES, LEVELS, lambda n: dict(n), FEED, Machine(noise), seed=seed, seconds=2.0)


def test_a_quiet_machine_is_predicted_within_two_percent():
    errors = errors_of(priced(), Machine())
    assert np.median(errors) < 0.01 and np.quantile(errors, 0.9) < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_noise_drift_and_lost_cores_do_not_spoil_the_prediction(seed):
    errors = errors_of(priced(noise=0.05, seed=seed), Machine())
    assert np.median(errors) < 0.05 and np.quantile(errors, 0.9) < 0.10


def test_the_stated_spread_is_about_the_error_there_is():
    cost = priced(noise=0.05)
    inside = np.mean(errors_of(cost, Machine()) <= cost.spread)
    assert cost.spread < 0.15
    assert inside > 0.6


def test_terms_depend_on_the_groups_of_their_shapes_two_at_most():
    groups: dict[str, set[str]] = {}
    for term in priced().kernels:
        assert len(term.groups) <= 2
        groups.setdefault(term.name, set()).update(term.groups)
    assert groups["fixed"] == set()
    assert groups["ffn"] == {"ffn"}
    assert groups["conv"] == {"c", "d"}
    assert groups["scores"] == {"heads", "dim"}
    assert groups["joined"] == {"c", "d", "e"}


def test_the_prediction_is_the_sum_of_the_terms_merged_or_not():
    cost = priced()
    plan = {g: levels[len(levels) // 2] for g, levels in LEVELS.items()}
    total = cost.overhead_ms + sum(t.ms(plan) for t in cost.kernels)
    assert cost.predict(plan).ms == pytest.approx(total)
    assert cost.overhead_ms + sum(t.ms(plan) for t in cost.merged()) == pytest.approx(total)
    assert len({t.groups for t in cost.merged()}) == len(cost.merged()) < len(cost.kernels) + 1


def test_a_term_tabulates_over_arrays_of_levels():
    for term in priced().merged():
        if len(term.groups) == 2:
            a, b = term.groups
            table = term.ms({a: np.array(LEVELS[a])[:, None], b: np.array(LEVELS[b])[None, :]})
            assert table.shape == (len(LEVELS[a]), len(LEVELS[b]))
            assert table[1, 2] == pytest.approx(term.ms({a: LEVELS[a][1], b: LEVELS[b][2]}))


def test_a_table_survives_json_and_only_its_own_machine():
    cost = priced()
    data = json.loads(json.dumps(cost.to_dict()))
    assert CostModel.from_dict(data, fingerprint="a machine") == cost
    with pytest.raises(EnvironmentFault):
        CostModel.from_dict(data, fingerprint="another")


def test_a_correction_scales_every_price():
    cost = priced()
    assert cost.correct(1.25).predict(SIZES).ms == pytest.approx(1.25 * cost.predict(SIZES).ms)
    with pytest.raises(UsageError):
        cost.correct(0.0)


def test_what_was_not_measured_is_called_extrapolated():
    cost = priced()
    assert cost.predict(SIZES).source == "interpolated"
    beyond = cost.predict({**SIZES, "ffn": 4096})
    assert beyond.source == "extrapolated" and beyond.spread > cost.spread


def test_a_missing_group_is_a_usage_error():
    with pytest.raises(UsageError):
        priced().predict({"ffn": 32})


def test_a_model_without_groups_costs_what_it_costs():
    cost = measure_cost({}, {}, lambda n: SIZES, FEED, Machine(), seconds=0.0)
    assert cost.predict({}).ms == pytest.approx(Machine().total(SIZES))


COUNTS = np.random.default_rng(0).choice([8, 16, 24, 32, 40, 48], size=(30, 4)) * np.array([1, 1, 2, 2])


@pytest.mark.parametrize(
    ("axis", "factor"),
    [
        (3 * COUNTS[:, 1] + 7, Factor("b", 3, 7)),
        (up(COUNTS[:, 2], 32), Factor("c", step=32)),
        (np.where(COUNTS[:, 0] < 16, COUNTS[:, 0], up(COUNTS[:, 0])), Factor("a", step=16, kind="block")),
    ],
    ids=["affine", "rounded up", "rounded up from one block on"],
)
def test_an_axis_of_one_group_is_recognised_exactly(axis, factor):
    (monomial,) = extent(axis, list("abcd"), COUNTS)
    assert monomial.factors == (factor,)


def test_an_axis_that_is_a_product_or_a_padded_sum_is_recognised():
    counts = {g: COUNTS[:, i] for i, g in enumerate("abcd")}
    product = extent(2 * counts["a"] * counts["c"], list("abcd"), COUNTS)
    np.testing.assert_allclose(sum(m.at(counts) for m in product), 2 * counts["a"] * counts["c"])
    joined = counts["a"] + counts["b"] + 2 * counts["d"]
    found = extent(up(joined), list("abcd"), COUNTS)
    assert {m.factors[0].group: m.coefficient for m in found if m.factors} == {"a": 1.0, "b": 1.0, "d": 2.0}
    assert np.max(np.abs(sum(m.at(counts) for m in found) - joined)) < 16


def test_a_kernel_whose_layout_goes_by_the_neighbours_depends_on_its_own_width_alone():
    """Channels first in blocks of 16 in some plans, last and as they are in others, one of them square."""
    levels = {g: [8, 16, 24, 32, 40, 48] for g in "abcd"}
    samples = []
    for i, row in enumerate(COUNTS):
        n, last = int(row[1]), i % 3 == 0
        shape = (1, 24, 160, n) if last else (1, up(n), 24, 160)
        kernel = Kernel("gate", "HardSigmoid", 0.01 * shape[3 if last else 1], (shape,), (shape,))
        samples.append(Sample(dict(zip("abcd", map(int, row), strict=True)), [kernel], kernel.ms))
    terms, _ = fit(samples, levels)
    assert {t.groups for t in terms} == {("b",)}
    for s in samples:  # which of the two layouts it is, no width can say: half a block is 0.08 ms
        assert sum(float(t.ms(s.counts)) for t in terms) == pytest.approx(s.ms, abs=0.0801)


def test_plans_are_on_the_levels_and_cover_both_ends():
    rng = np.random.default_rng(0)
    plans = [random_plan(SIZES, LEVELS, rng) for _ in range(200)]
    assert all(n in LEVELS[g] for plan in plans for g, n in plan.items())
    kept = [np.mean([plan[g] / SIZES[g] for g in SIZES]) for plan in plans]
    assert min(kept) < 0.3 and max(kept) > 0.95


def test_the_real_runtime_shows_which_widths_a_kernel_depends_on():
    family = width_families.residual(stages=(16, 32), blocks=1, side=8)
    cost = measure_cost(family.sizes, family.levels, family.build, family.feed, OnnxRuntime(1), seconds=0.0)
    ends = {
        "Relu_1": {"stream0"}, "Relu_3": {"stream0", "inner0.0"}, "Conv_4": {"inner0.0", "stream0"},
        "Relu_8": {"stream0", "stream1"}, "Relu_10": {"stream1", "inner1.0"}, "Conv_11": {"inner1.0", "stream1"},
    }  # fmt: skip
    found = {t.name: set(t.groups) for t in cost.kernels if t.op == "Conv"}
    assert found.keys() == ends.keys()
    assert all(found[name] <= ends[name] for name in ends)
    assert any(found.values())
    assert cost.predict(family.sizes).ms > 0
