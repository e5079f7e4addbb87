"""The certificate is tested by its faults: each slip that pruning could make is planted, and must be noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from graphprune import oracles as certificate
from graphprune.edit import set_constant, shrink
from graphprune.groups import Analysis
from graphprune.oracles import Check, by_masking, by_permuting, certify, compare, masked
from tests.graphs import model_of, run, run_all, typed

CNN = """
c = Conv<pads=[1,1,1,1]>(x, w1, b1)
r = Relu(c)
result = Conv(r, w2, b2)
"""
NORMED = """
h = MatMul(x, w1)
n = LayerNormalization<axis=-1>(h, scale, shift)
a = Relu(n)
result = MatMul(a, w2)
"""
ATTENTION = """
q = MatMul(x, wq)
k = MatMul(x, wk)
kt = Transpose<perm=[0,2,1]>(k)
s = MatMul(q, kt)
t = Mul(s, factor)
p = Softmax<axis=-1>(t)
v = MatMul(x, wv)
y = MatMul(p, v)
result = MatMul(y, wo)
"""
KEEP = np.array([0, 2, 3, 6])
IMAGE = {"x": np.random.default_rng(3).normal(size=(2, 3, 6, 6)).astype(np.float32)}
TOKENS = {"x": np.random.default_rng(4).normal(size=(2, 5, 6)).astype(np.float32)}


def cnn() -> Analysis:
    """x [n, 3, 6, 6] -> conv to 8 channels -> relu -> conv to 4."""
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1), "b2": (4,)}
    return typed(model_of(CNN, {"x": ("N", 3, 6, 6)}, weights), IMAGE)


def normed() -> Analysis:
    """x [n, t, 6] -> 8 features -> layer norm over them -> 4."""
    weights = {"w1": (6, 8), "scale": (8,), "shift": (8,), "w2": (8, 4)}
    return typed(model_of(NORMED, {"x": ("N", "T", 6)}, weights), TOKENS, inexact=True)


def planted(monkeypatch: pytest.MonkeyPatch, fault: Callable[[ir.Model], None]) -> None:
    """Let `fault` change what pruning gives."""

    def faulty(model, types, keeps):
        small = shrink(model, types, keeps)
        if keeps:
            fault(small)
        return small

    monkeypatch.setattr(certificate, "shrink", faulty)


def only_group(analysis: Analysis) -> str:
    (name,) = analysis.groups
    return name


def check(analysis: Analysis, keep: np.ndarray, feed, name: str = "") -> Check:
    """By masking where the group is exact, else by permuting."""
    name = name or only_group(analysis)
    oracle = by_masking if analysis.groups[name].inexact is None else by_permuting
    (found,) = oracle(analysis, {name: keep}, [feed], run_all, [run(analysis.model, feed)])
    return found


def test_pruning_as_it_is_passes_and_shows_something() -> None:
    found = check(cnn(), KEEP, IMAGE)
    assert found.verdict == "exact" and found.oracle == "masked"
    assert found.difference < 1e-6 < 0.05 < found.effect
    assert found.shapes == {"x": (2, 3, 6, 6)}


def put(model: ir.Model, name: str, array: np.ndarray) -> None:
    set_constant(model.graph.initializers[name], np.ascontiguousarray(array))


def original(analysis: Analysis, name: str) -> np.ndarray:
    return analysis.model.graph.initializers[name].const_value.numpy()


SLIPS = {
    "one wrong index in the maker": ("w1", lambda w: w[[0, 2, 4, 6]]),
    "two channels of the maker in each other's place": ("w1", lambda w: w[[2, 0, 3, 6]]),
    "a reader sliced at the wrong place": ("w2", lambda w: w[:, :4]),
    "a reader one column off": ("w2", lambda w: w[:, [0, 2, 3, 7]]),
    "a bias not sliced, only cut to length": ("b1", lambda b: b[:4]),
    "a reader's bias touched": ("b2", lambda b: b + 0.1),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_on_a_convolution_is_a_mismatch(monkeypatch, slip: str) -> None:
    analysis = cnn()
    name, wrong = SLIPS[slip]
    planted(monkeypatch, lambda model: put(model, name, wrong(original(analysis, name))))
    assert check(analysis, KEEP, IMAGE).verdict == "mismatch"


def test_a_bias_left_whole_does_not_pass(monkeypatch) -> None:
    analysis = cnn()
    planted(monkeypatch, lambda model: put(model, "b1", original(analysis, "b1")))
    with pytest.raises(Exception, match=r"bias|Conv|b1"):  # the runtime refuses it
        check(analysis, KEEP, IMAGE)


def test_a_batch_norm_not_sliced_is_a_mismatch(monkeypatch) -> None:
    text = CNN.replace("r = Relu(c)", "n = InstanceNormalization(c, scale, shift)\nr = Relu(n)")
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "scale": (8,), "shift": (8,), "w2": (4, 8, 1, 1), "b2": (4,)}
    analysis = typed(model_of(text, {"x": ("N", 3, 6, 6)}, weights), IMAGE)
    assert check(analysis, KEEP, IMAGE).verdict == "exact"
    for name in ("scale", "shift"):
        planted(monkeypatch, lambda model, name=name: put(model, name, original(analysis, name)[:4]))
        assert check(analysis, KEEP, IMAGE).verdict == "mismatch", name


def test_a_stale_reshape_constant_is_a_mismatch(monkeypatch) -> None:
    """-1 swallows what the stale entry does not say: the model still runs, heads have become tokens."""
    text = """
    h = MatMul(x, w1)
    r = Reshape(h, heads)
    e = ReduceSum<keepdims=0>(r, two)
    m = ReduceMax<keepdims=0>(e, one)
    result = MatMul(m, w2)
    """
    weights = {"w1": (6, 8), "w2": (4, 3), "heads": np.array([0, -1, 2, 4]), "one": np.array([1]), "two": np.array([2])}
    analysis = typed(model_of(text, {"x": ("N", "T", 6)}, weights), TOKENS)
    (dims,) = [g for g in analysis.groups.values() if g.size == 4]
    keep = np.array([1, 3])
    assert check(analysis, keep, TOKENS, dims.name).verdict == "exact"

    def stale(model: ir.Model) -> None:
        put(model, "heads", np.array([0, -1, 1, 2]))  # runs, for twice the tokens

    planted(monkeypatch, stale)
    assert check(analysis, keep, TOKENS, dims.name).verdict == "mismatch"


def test_a_scale_computed_from_a_shape_is_a_mismatch() -> None:
    """A query width that is read when the model runs changes with pruning: 1 / sqrt(width) is not the dense one."""
    weights = {"wq": (6, 8), "wk": (6, 8), "wv": (6, 8), "wo": (8, 4), "factor": np.float32([8**-0.5])}
    analysis = typed(model_of(ATTENTION, {"x": ("N", "T", 6)}, weights), TOKENS)
    pair = next(g.name for g in analysis.groups.values() if not g.readers)
    assert check(analysis, KEEP, TOKENS, pair).verdict == "exact"
    text = ATTENTION.replace("t = Mul(s, factor)", """
    all = Shape(q)
    width = Gather(all, last)
    number = Cast<to=1>(width)
    root = Sqrt(number)
    t = Div(s, root)""")
    computed = model_of(text, {"x": ("N", "T", 6)}, {**weights, "last": np.array([2])})
    for node, old in zip((n for n in computed.graph if n.op_type == "MatMul"),
                         (n for n in analysis.model.graph if n.op_type == "MatMul"), strict=True):  # fmt: skip
        node.name = old.name
    assert compare(run(analysis.model, TOKENS), run(computed, TOKENS)) < 1e-6
    assert check(replace(analysis, model=computed), KEEP, TOKENS, pair).verdict == "mismatch"


def test_a_mismatch_at_one_shape_only_is_seen_at_that_shape(monkeypatch) -> None:
    analysis = cnn()
    larger = {"x": np.ones((1, 3, 6, 6), np.float32)}
    planted(monkeypatch, lambda model: put(model, "w1", original(analysis, "w1")[[0, 2, 4, 6]]))
    keep, dense = {only_group(analysis): KEEP}, run_all(analysis.model, [IMAGE, larger])
    checks = by_masking(analysis, keep, [IMAGE, larger], run_all, dense)
    assert [c.shapes["x"][0] for c in checks] == [2, 1]
    assert {c.verdict for c in checks} == {"mismatch"}


def test_removing_what_nobody_uses_is_vacuous() -> None:
    analysis = cnn()
    weight = original(analysis, "w2").copy()
    weight[:, [1, 4, 5, 7]] = 0
    put(analysis.model, "w2", weight)
    found = check(analysis, KEEP, IMAGE)
    assert found.verdict == "vacuous" and found.effect == 0


def test_a_wrong_slice_is_a_mismatch_even_where_the_removal_changes_nothing(monkeypatch) -> None:
    analysis = cnn()
    weight = original(analysis, "w2").copy()
    weight[:, [1, 4, 5, 7]] = 0
    put(analysis.model, "w2", weight)
    planted(monkeypatch, lambda model: put(model, "w1", original(analysis, "w1")[:4]))
    assert check(analysis, KEEP, IMAGE).verdict == "mismatch"


def test_keeping_everything_is_no_check() -> None:
    analysis = cnn()
    assert certify(analysis, {only_group(analysis): np.arange(8)}, [IMAGE], run_all) == []
    assert certify(analysis, {}, [IMAGE], run_all) == []


def test_masking_skips_removed_channels_and_nothing_else() -> None:
    analysis = cnn()
    weight = original(analysis, "w2").copy()
    weight[:, [1, 4, 5, 7]] = 0
    by_hand = analysis.model.clone()
    put(by_hand, "w2", weight)
    reference = masked(analysis.model, analysis, analysis.keeps({only_group(analysis): KEEP}))
    assert compare(run(by_hand, IMAGE), run(reference, IMAGE)) < 1e-6
    assert compare(run(analysis.model, IMAGE), run(reference, IMAGE)) > 0.05


def test_a_group_under_a_layer_norm_is_certified_by_permutation() -> None:
    analysis = normed()
    assert analysis.groups[only_group(analysis)].inexact is not None
    found = check(analysis, KEEP, TOKENS)
    assert found.oracle == "permutation" and found.verdict == "exact"
    assert found.difference < 1e-5 and found.effect > 0.05


@pytest.mark.parametrize("name", ["scale", "shift", "w2"])
def test_an_incomplete_permutation_is_a_mismatch(monkeypatch, name: str) -> None:
    analysis = normed()
    planted(monkeypatch, lambda model: put(model, name, original(analysis, name)))
    assert check(analysis, KEEP, TOKENS).verdict == "mismatch"


def test_exact_and_inexact_groups_get_their_own_oracle() -> None:
    text = NORMED.replace("result = MatMul(a, w2)", "g = MatMul(a, w2)\ne = Relu(g)\nresult = MatMul(e, w3)")
    weights = {"w1": (6, 8), "scale": (8,), "shift": (8,), "w2": (8, 10), "w3": (10, 4)}
    analysis = typed(model_of(text, {"x": ("N", "T", 6)}, weights), TOKENS, inexact=True)
    keep = {name: np.arange(group.size - 3) for name, group in analysis.groups.items()}
    checks = certify(analysis, keep, [TOKENS], run_all)
    assert sorted((c.oracle, len(c.groups), c.verdict) for c in checks) == [
        ("masked", 1, "exact"), ("permutation", 2, "exact")]  # fmt: skip


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(("want", "have", "difference"), [
    ({"y": [1.0, -4.0]}, {"y": [1.0, -4.0]}, 0.0),
    ({"y": [1.0, -4.0]}, {"y": [2.0, -4.0]}, 0.25),  # relative to the largest magnitude wanted
    ({"y": [1.0, 2.0], "z": [10.0]}, {"y": [1.0, 2.5], "z": [10.0]}, 0.25),  # the worst output counts
    ({"y": [0.0, 0.0]}, {"y": [0.0, 0.5]}, 500.0),  # nothing to be relative to but the floor of 1e-3
    ({"y": [1e-6, 0.0]}, {"y": [2e-6, 0.0]}, 1e-3),
    ({"y": [nan, 2.0]}, {"y": [nan, 1.0]}, 0.5),
    ({"y": [nan, 2.0]}, {"y": [2.0, nan]}, inf),
    ({"y": [1.0, 2.0]}, {"y": [1.0, nan]}, inf),
    ({"y": [1.0, 2.0]}, {"y": [1.0, inf]}, inf),
    ({"y": [inf, 2.0]}, {"y": [inf, 2.0]}, 0.0),
    ({"y": [inf, 2.0]}, {"y": [-inf, 2.0]}, inf),
    ({"y": [inf, 2.0]}, {"y": [nan, 2.0]}, inf),
    ({"y": [nan]}, {"y": [nan]}, 0.0),
    ({"y": [1.0, 2.0]}, {"y": [[1.0, 2.0]]}, inf),
    ({"y": [1.0]}, {"z": [1.0]}, inf),
    ({"y": [1.0]}, {"y": [1.0], "z": [1.0]}, inf),
    ({"y": []}, {"y": []}, 0.0),
    ({"y": [3]}, {"y": [4]}, 1 / 3),
    ({"y": [True, False]}, {"y": [True, True]}, 1.0),
])  # fmt: skip
def test_compare(want, have, difference: float) -> None:
    arrays = [{name: np.asarray(values) for name, values in outputs.items()} for outputs in (want, have)]
    assert compare(*arrays) == pytest.approx(difference)
