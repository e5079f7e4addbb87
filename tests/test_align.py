"""Turning free bases: the network stays the same, and then few channels carry most of what matters."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.align import align, find_free_bases
from graphprune.backends import open_backend
from graphprune.context import Context
from graphprune.divergence import divergence, outputs_of
from graphprune.edit import shrink
from graphprune.groups import Analysis, Group
from graphprune.oracles import certify, compare
from graphprune.passes.width import Width
from graphprune.prepare import loader
from tests.attention import HEADS, SIZE, attention, tokens
from tests.graphs import model_of, run, run_all, typed

LOAD = loader(open_backend("host"))
FEEDS, HELD_OUT = tokens(8, seed=1), tokens(8, seed=2)
OTHER_SHAPES = [*tokens(1, seed=3, batch=1, length=1), *tokens(1, seed=4, batch=3, length=5)]

LINEAR = "h = Gemm(x, w1, b1)\ni = MatMul(h, w2)\nresult = Add(i, b2)"


def linear() -> ir.Model:
    """Two layers with nothing between: the hidden basis is free altogether."""
    rng = np.random.default_rng(0)
    w1 = rng.normal(size=(16, 4)) @ rng.normal(size=(4, 12))
    weights = {"w1": w1.astype(np.float32), "b1": (12,), "w2": (12, 6), "b2": (6,)}
    return model_of(LINEAR, {"x": ("N", 16)}, weights)


def pair(analysis: Analysis) -> Group:
    """Dimensions that queries and keys are multiplied over."""
    return next(g for g in analysis.groups.values() if not g.readers)


def values(analysis: Analysis) -> Group:
    """Dimensions of the values."""
    return next(g for g in analysis.groups.values() if g.readers and "dims" in g.kind)


NETWORKS = {
    "several heads": ({}, {"pair", "values"}),
    "without biases": ({"biases": False}, {"pair", "values"}),
    "on a residual stream": ({"residual": True}, {"pair", "values"}),
    "rotated queries and keys": ({"rotary": True}, {"values"}),
    "values through tanh": ({"on_values": "Tanh"}, {"pair"}),
    "values through relu": ({"on_values": "Relu"}, {"pair"}),
    "rotated, and values through a sigmoid": ({"rotary": True, "on_values": "Sigmoid"}, set()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_only_bases_that_are_free_are_turned(name: str) -> None:
    options, expected = NETWORKS[name]
    analysis = typed(attention(**options), FEEDS[0])
    found = {"pair" if b.second else "values" for b in find_free_bases(analysis)}
    assert found == expected


@pytest.mark.parametrize("options", [*(o for o, _ in NETWORKS.values()), {"kv_heads": 2}, {"kv_heads": 1}], ids=str)
def test_turning_leaves_the_network_equal(options) -> None:
    """Shared keys and values included: whether or not their bases are turned, the network must stay."""
    analysis = typed(attention(**options), FEEDS[0])
    turned, contributions = align(analysis, FEEDS, LOAD)
    for feed in (*HELD_OUT[:2], *OTHER_SHAPES):
        assert compare(run(analysis.model, feed), run(turned.model, feed)) < 1e-4
    moved = {n for n, v in analysis.model.graph.initializers.items()
             if not np.array_equal(v.const_value.numpy(), turned.model.graph.initializers[n].const_value.numpy())}
    assert bool(moved) == bool(find_free_bases(analysis))
    assert set(contributions) <= set(analysis.groups)


def test_turning_a_free_hidden_layer_leaves_the_network_equal() -> None:
    feed = {"x": np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)}
    analysis = typed(linear(), feed)
    (basis,) = find_free_bases(analysis)
    turned, _ = align(analysis, [feed], LOAD)
    assert compare(run(analysis.model, feed), run(turned.model, feed)) < 1e-4
    # The hidden layer has rank four: the four channels that come first then hold everything.
    width = Width()
    context = Context(turned, [feed], LOAD)
    width.propose(context)
    choices = {basis.group.name: {"keep": [0, 1, 2, 3]}}
    small = width.apply(context, context.model, choices)
    assert compare(run(analysis.model, feed), run(small, feed)) < 1e-2


def test_two_readers_of_one_basis_are_both_turned() -> None:
    text = "h = MatMul(x, w1)\np = MatMul(h, w2)\nq = MatMul(h, w3)\nr = Relu(q)\nresult = Concat<axis=1>(p, r)"
    model = model_of(text, {"x": ("N", 16)}, {"w1": (16, 12), "w2": (12, 6), "w3": (12, 5)})
    feed = {"x": np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)}
    analysis = typed(model, feed)
    (basis,) = find_free_bases(analysis)
    assert len(basis.readers) == 2
    turned, _ = align(analysis, [feed], LOAD)
    assert compare(run(analysis.model, feed), run(turned.model, feed)) < 1e-4


@pytest.mark.parametrize("between", ["Relu(h)", "Mul(h, gate)", "Add(h, early)", "Mul(h, early)", "Sub(h, gate)"])
def test_a_basis_on_which_single_channels_act_is_not_free(between: str) -> None:
    text = f"h = MatMul(x, w1)\nearly = MatMul(x, w0)\ng = {between}\nresult = MatMul(g, w2)"
    weights = {"w0": (16, 12), "w1": (16, 12), "w2": (12, 6), "gate": (12,)}
    feed = {"x": np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)}
    analysis = typed(model_of(text, {"x": ("N", 16)}, weights), feed)
    assert len(analysis.groups) == 1 and find_free_bases(analysis) == []


HEADED = "h = MatMul(x, w1)\nr = Reshape(h, to)\n{}\nf = Reshape(t, back)\nresult = MatMul(f, w2)"
SIX = {"w1": (16, 24), "w2": (24, 5), "back": np.array([0, 24]), "order": np.array([5, 3, 4, 0, 2, 1])}
HALVES = "h = MatMul(x, w1)\na, b = Split<axis=1>(h, six)\n{}\nresult = Add(p, q)"
TWO = {"w1": (16, 12), "w2": (6, 5), "w3": (6, 5), "six": np.array([6, 6])}
TRICKY = {
    "blocks in another order where they are read": (
        HEADED.format("t = Transpose<perm=[0,2,1,3]>(r)"), {**SIX, "to": np.array([0, 2, 3, 4])}, 3),
    "blocks gathered in another order": (
        HEADED.format("t = Gather<axis=1>(r, order)"), {**SIX, "to": np.array([0, 6, 4])}, 0),
    "rows and columns change places": (
        HEADED.format("t = Transpose<perm=[0,2,1]>(r)"), {**SIX, "to": np.array([0, 6, 4])}, 2),
    "two halves with readers of their own": (HALVES.format("p = MatMul(a, w2)\nq = MatMul(b, w3)"), TWO, 2),
    "halves that are multiplied": (
        "h = MatMul(x, w1)\na, b = Split<axis=1>(h, six)\nm = Mul(a, b)\nresult = MatMul(m, w2)",
        {n: w for n, w in TWO.items() if n != "w3"}, 0),
    "queries and keys with blocks in different orders": (
        "q0 = MatMul(x, w1)\nk0 = MatMul(x, w2)\nq1 = Reshape(q0, to)\nq2 = Transpose<perm=[0,2,1,3]>(q1)\n"
        "q = Reshape(q2, row)\nk = Reshape(k0, column)\ns = MatMul(q, k)\nresult = Softmax<axis=1>(s)",
        {"w1": (16, 24), "w2": (16, 24), "to": np.array([0, 2, 3, 4]), "row": np.array([0, 6, 1, 4]),
         "column": np.array([0, 6, 4, 1])}, 1),
    "a bias of one number": ("h = Gemm(x, w1, b1)\nresult = MatMul(h, w2)",
                             {"w1": (16, 12), "b1": (1,), "w2": (12, 5)}, 0),
    "a bias of one row": ("h = Gemm(x, w1, b1)\nresult = MatMul(h, w2)",
                          {"w1": (16, 12), "b1": (1, 12), "w2": (12, 5)}, 1),
    "scaled by another activation": ("h = MatMul(x, w1)\nz = MatMul(x, w0)\na = Mul(h, z)\nresult = MatMul(a, w2)",
                                     {"w1": (16, 12), "w0": (16, 1), "w2": (12, 5)}, 1),
    "its shape is asked for": (
        "h = MatMul(x, w1)\ns = Shape<start=0, end=1>(h)\nc = Concat<axis=0>(s, rest)\nf = Reshape(h, c)\n"
        "result = MatMul(f, w2)", {"w1": (16, 12), "w2": (12, 5), "rest": np.array([1, 12])}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKY)
def test_blocks_biases_and_halves_stay_together(name: str) -> None:
    text, weights, n_bases = TRICKY[name]
    feed = {"x": np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)}
    analysis = typed(model_of(text, {"x": ("N", 16)}, weights), feed, fold="asked" not in name)
    assert len(find_free_bases(analysis)) == n_bases
    turned, _ = align(analysis, [feed], LOAD)
    assert compare(run(analysis.model, feed), run(turned.model, feed)) < 1e-4


def test_a_basis_that_is_given_out_is_not_free() -> None:
    text = "h = MatMul(x, w1)\nresult = MatMul(h, w2)"
    model = model_of(text, {"x": ("N", 16)}, {"w1": (16, 12), "w2": (12, 6)}, outputs=("result", "h"))
    feed = {"x": np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)}
    assert find_free_bases(typed(model, feed)) == []


def test_contributions_descend_and_turned_channels_are_balanced() -> None:
    analysis = typed(attention(rank=3), FEEDS[0])
    turned, contributions = align(analysis, FEEDS, LOAD)
    share = contributions[pair(analysis).name]
    assert share.shape == (SIZE,) and (np.diff(share) <= 0).all() and (share >= 0).all()
    assert share[3:].sum() < 0.01 * share.sum()
    q, k = (turned.model.graph.initializers[n].const_value.numpy() for n in ("wq", "wk"))
    assert q.shape == k.shape == (16, HEADS * SIZE)


def pruned_loss(analysis: Analysis, contributions, name: str, k: int, *, ragged: bool = False) -> float:
    """Held-out divergence with k channels of one group left, in each head the same ones or each its own, readers solved
    again."""
    width = Width()
    in_order = frozenset() if ragged else frozenset(analysis.groups)
    context = Context(analysis, FEEDS, LOAD, contributions=contributions, turned=in_order)
    width.propose(context)
    choices = width.choose(context, {name: k})
    assert np.ndim(choices[name]["keep"]) == 1 + ragged
    assert np.shape(choices[name]["keep"])[-1] == k
    model = width.apply(context, context.model, choices)
    return divergence(outputs_of(LOAD(analysis.model), HELD_OUT), outputs_of(LOAD(model), HELD_OUT))


@pytest.mark.parametrize("k", [2, 4, 6])
def test_values_keep_more_in_a_turned_basis(k: int) -> None:
    plain, better = [], []
    for seed in range(3):
        analysis = typed(attention(rank=3, seed=seed), FEEDS[0])
        turned, contributions = align(analysis, FEEDS, LOAD)
        name = values(analysis).name
        plain.append(pruned_loss(analysis, {}, name, k))
        better.append(pruned_loss(turned, contributions, name, k))
    assert (np.array(better) < np.array(plain)).all()
    assert np.mean(better) < 0.5 * np.mean(plain)


@pytest.mark.parametrize("k", [2, 4, 6])
def test_heads_that_keep_their_own_channels_lose_less_than_heads_that_keep_the_same(k: int) -> None:
    same, own = [], []
    for seed in range(3):
        analysis = typed(attention(rank=3, seed=seed), FEEDS[0])
        name = values(analysis).name
        same.append(pruned_loss(analysis, {}, name, k))
        own.append(pruned_loss(analysis, {}, name, k, ragged=True))
    assert np.mean(own) < 0.9 * np.mean(same)


@pytest.mark.parametrize("k", [2, 4])
def test_queries_and_keys_keep_more_in_a_turned_basis(k: int) -> None:
    """Against the best of eight random choices among the given axes."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        analysis = typed(attention(rank=3, seed=seed), FEEDS[0])
        turned, contributions = align(analysis, FEEDS, LOAD)
        name, dense = pair(analysis).name, outputs_of(LOAD(analysis.model), HELD_OUT)
        random = []
        for _ in range(8):
            keep = np.sort(rng.choice(SIZE, k, replace=False))
            small = shrink(analysis.model, analysis.types, analysis.keeps({name: keep}))
            random.append(divergence(dense, outputs_of(LOAD(small), HELD_OUT)))
        assert pruned_loss(turned, contributions, name, k) < min(random)


def test_pruning_after_turning_is_still_certified_and_channels_are_taken_in_order() -> None:
    analysis = typed(attention(), FEEDS[0])
    turned, contributions = align(analysis, FEEDS, LOAD)
    width = Width()
    context = Context(turned, FEEDS, LOAD, contributions=contributions)
    width.propose(context)
    name = pair(analysis).name
    assert width.choose(context, {name: 3})[name]["keep"] == [0, 1, 2]
    found, _ = certify(turned, {name: np.arange(3)}, FEEDS[:1], run_all)
    assert found.verdict == "exact"


def test_constant_inputs_do_not_break_the_turning() -> None:
    """No variation at all: nothing to order by, but nothing to lose either."""
    analysis = typed(attention(), FEEDS[0])
    still = [{"x": np.zeros((2, 12, 16), np.float32)}]
    turned, contributions = align(analysis, still, LOAD)
    assert np.isfinite(contributions[pair(analysis).name]).all()
    for feed in (still[0], HELD_OUT[0]):
        assert compare(run(analysis.model, feed), run(turned.model, feed)) < 1e-3
