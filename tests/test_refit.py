"""Refitting front to back: what it repairs beyond one-shot compensation, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from graphprune.align import align
from graphprune.backends import open_backend
from graphprune.context import Context
from graphprune.divergence import divergence, outputs_of
from graphprune.edit import new_constant, shrink, stand_for
from graphprune.groups import Analysis
from graphprune.passes.depth import Depth
from graphprune.passes.width import Width
from graphprune.prepare import loader
from graphprune.refit import n_stages, refit
from graphprune.trace import exposed
from tests.attention import attention, tokens
from tests.graphs import model_of, typed
from tests.random_graphs import random_model

LOAD = loader(open_backend("host"))

MLP = "h0 = Gemm(x, w1, b1)\nh = Relu(h0)\ni0 = Gemm(h, w2, b2)\ni = Relu(i0)\nresult = Gemm(i, w3, b3)"
CNN = """
c0 = Conv<pads=[1,1,1,1]>(x, w1, b1)
c = Relu(c0)
d0 = Conv<pads=[1,1,1,1], strides=[2,2]>(c, w2, b2)
d = Relu(d0)
p = GlobalAveragePool(d)
f = Flatten<axis=1>(p)
result = Gemm(f, w3, b3)
"""
RESIDUAL = """
a0 = Gemm(x, w1, b1)
a = Relu(a0)
b = Gemm(a, w2, b2)
s = Add(x, b)
c0 = Gemm(s, w3, b3)
c = Relu(c0)
d = Gemm(c, w4, b4)
result = Add(s, d)
"""


def scaled(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Weights that keep the scale of their inputs; biases small."""
    return {
        name: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]) if len(s) == 4 else s[0]) * (1 if len(s) > 1 else 0.3)
               ).astype(np.float32)
        for name, s in shapes.items()
    }  # fmt: skip


def vectors(n: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Feeds [16, 12] of correlated numbers."""
    mix = np.random.default_rng(7).normal(size=(12, 12)) * np.linspace(1.5, 0.2, 12)[:, None]
    rng = np.random.default_rng(seed)
    return [{"x": (rng.normal(size=(16, 12)) @ mix).astype(np.float32)} for _ in range(n)]


def images(n: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Feeds [4, 3, 8, 8] of smooth numbers."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(4, 3, 8, 8)).cumsum(axis=3).astype(np.float32)} for _ in range(n)]


def mlp(seed: int) -> ir.Model:
    rng = np.random.default_rng(seed)
    weights = scaled(rng, w1=(12, 24), b1=(24,), w2=(24, 24), b2=(24,), w3=(24, 5), b3=(5,))
    return model_of(MLP, {"x": ("N", 12)}, weights)


def cnn(seed: int) -> ir.Model:
    rng = np.random.default_rng(seed)
    weights = scaled(rng, w1=(16, 3, 3, 3), b1=(16,), w2=(24, 16, 3, 3), b2=(24,), w3=(24, 5), b3=(5,))
    return model_of(CNN, {"x": ("N", 3, "H", "W")}, weights)


def residual(seed: int) -> ir.Model:
    rng = np.random.default_rng(seed)
    weights = scaled(rng, w1=(12, 24), b1=(24,), w2=(24, 12), b2=(12,), w3=(12, 24), b3=(24,), w4=(24, 12), b4=(12,))
    return model_of(RESIDUAL, {"x": ("N", 12)}, weights)


@dataclass(frozen=True)
class Family:
    make: Callable[[int], ir.Model]
    feeds: Callable[[int, int], list]
    gains: bool
    """Whether there is something to gain: in a plain chain the one-shot solution leaves errors that nothing behind it
    can tell from noise, and then refitting must change nothing."""


FAMILIES = {
    "mlp": Family(mlp, vectors, False),
    "cnn": Family(cnn, images, True),
    "residual": Family(residual, vectors, True),
    "attention": Family(lambda seed: attention(residual=True, rank=5, seed=seed), lambda n, s: tokens(n, s), False),
}


def pruned(context: Context, share: float) -> tuple[ir.Model, dict]:
    """The model with a share of every site's channels left, readers solved once, and its keep sets."""
    width = Width()
    levels = {s.name: s.levels[round(share * (len(s.levels) - 1))] for s in width.propose(context)}
    choices = width.choose(context, levels)
    assert choices
    model = width.apply(context, context.model, choices)
    return model, context.analysis.keeps({name: np.array(c["keep"]) for name, c in choices.items()})


def loss(analysis: Analysis, model: ir.Model, held_out: Sequence) -> float:
    return divergence(outputs_of(LOAD(analysis.model), held_out), outputs_of(LOAD(model), held_out))


@pytest.mark.parametrize("share", [0.35, 0.7])
@pytest.mark.parametrize("name", FAMILIES)
def test_refit_never_loses_on_held_out_data(name: str, share: float) -> None:
    family, once, again = FAMILIES[name], [], []
    for seed in range(3):
        feeds, held_out = family.feeds(32, 10 + seed), family.feeds(16, 90 + seed)
        analysis, contributions = align(typed(family.make(seed), feeds[0]), feeds, LOAD)
        context = Context(analysis, feeds, LOAD, contributions=contributions)
        model, keeps = pruned(context, share)
        once.append(loss(analysis, model, held_out))
        steps: list[int] = []
        expected = n_stages(context, model, keeps)
        changed = refit(context, model, keeps, feeds, lambda steps=steps: steps.append(1))
        assert len(steps) == expected and changed
        for tensor, array in changed.items():
            assert np.array_equal(model.graph.initializers[tensor].const_value.numpy(), array)
        again.append(loss(analysis, model, held_out))
    assert np.isfinite(once).all() and 0 < np.mean(once) < 1
    assert np.mean(again) < np.mean(once) if family.gains else np.mean(again) <= np.mean(once)


def test_refit_recovers_what_was_redundant() -> None:
    """Every hidden channel is there twice: without the twins, and with the reader as it was, half of it is missing."""
    rng = np.random.default_rng(0)
    weights = scaled(rng, w1=(12, 8), b1=(8,), w2=(16, 5), b2=(5,))
    weights |= {"w1": np.tile(weights["w1"], 2), "b1": np.tile(weights["b1"], 2)}
    model = model_of("h0 = Gemm(x, w1, b1)\nh = Relu(h0)\nresult = Gemm(h, w2, b2)", {"x": ("N", 12)}, weights)
    feeds, held_out = vectors(32, 1), vectors(8, 2)
    analysis = typed(model, feeds[0])
    context = Context(analysis, feeds, LOAD)
    (group,) = analysis.groups
    keeps = analysis.keeps({group: np.arange(8)})
    small = shrink(analysis.model, analysis.types, keeps)
    assert loss(analysis, small, held_out) > 0.1
    changed = refit(context, small, keeps, feeds)
    assert set(changed) == {"w2", "b2"}
    assert loss(analysis, small, held_out) < 1e-4


def test_a_dead_channel_with_a_constant_goes_into_the_bias() -> None:
    rng = np.random.default_rng(0)
    weights = scaled(rng, w1=(12, 8), b1=(8,), w2=(8, 5), b2=(5,))
    weights["w1"][:, 6:] = 0
    weights["b1"][6:] = 2.0
    model = model_of("h0 = Gemm(x, w1, b1)\nh = Relu(h0)\nresult = Gemm(h, w2, b2)", {"x": ("N", 12)}, weights)
    feeds = vectors(16, 1)
    analysis = typed(model, feeds[0])
    (group,) = analysis.groups
    keeps = analysis.keeps({group: np.arange(6)})
    small = shrink(analysis.model, analysis.types, keeps)
    assert loss(analysis, small, vectors(8, 2)) > 0.01
    refit(Context(analysis, feeds, LOAD), small, keeps, feeds)
    assert loss(analysis, small, vectors(8, 2)) < 1e-6
    want = weights["b2"] + 2.0 * weights["w2"][6:].sum(axis=0)
    assert np.allclose(small.graph.initializers["b2"].const_value.numpy(), want, atol=1e-3)


def test_a_later_branch_repairs_what_an_earlier_one_lost() -> None:
    """Only the first branch is pruned; the second keeps its width, and its target is what the sum lacks."""
    gains = []
    for seed in range(3):
        feeds, held_out = vectors(32, 10 + seed), vectors(16, 90 + seed)
        analysis = typed(residual(seed), feeds[0])
        context = Context(analysis, feeds, LOAD)
        first = next(n for n, g in analysis.groups.items() if ("w1", 1) in g.weights)
        width = Width()
        width.propose(context)
        choices = width.choose(context, {first: 8})
        model = width.apply(context, context.model, choices)
        untouched = model.graph.initializers["w4"].const_value.numpy()
        before = loss(analysis, model, held_out)
        keeps = analysis.keeps({first: np.array(choices[first]["keep"])})
        changed = refit(context, model, keeps, feeds)
        assert {"w2", "w3", "w4"} <= set(changed)
        assert not np.array_equal(changed["w4"], untouched)
        gains.append(loss(analysis, model, held_out) / before)
    assert np.mean(gains) < 0.9


def test_the_target_of_a_branch_is_the_sum_it_goes_into() -> None:
    """A branch narrowed to next to nothing cannot follow its dense output, but its bias makes the sum's mean right."""
    feeds = vectors(32, 1)
    analysis = typed(residual(0), feeds[0])
    second = next(n for n, g in analysis.groups.items() if ("w3", 1) in g.weights)
    first = next(n for n, g in analysis.groups.items() if ("w1", 1) in g.weights)
    keeps = analysis.keeps({first: np.array([0]), second: np.array([0, 1])})
    small = shrink(analysis.model, analysis.types, keeps)
    refit(Context(analysis, feeds, LOAD), small, keeps, feeds)
    for name in ("s", "result"):
        dense, have = (np.concatenate([r[name] for r in outputs_of(LOAD(exposed(m, [name])), feeds)])
                       for m in (analysis.model, small))  # fmt: skip
        assert np.allclose(dense.mean(axis=0), have.mean(axis=0), atol=1e-3 * np.abs(dense).max()), name


def test_two_branches_that_meet_do_not_both_make_up_for_the_same_loss() -> None:
    text = ("a0 = Gemm(x, w1, b1)\na = Relu(a0)\np = Gemm(a, w2, b2)\nc0 = Gemm(x, w3, b3)\nc = Tanh(c0)\n"
            "q = Gemm(c, w4, b4)\nresult = Add(p, q)")  # fmt: skip
    rng = np.random.default_rng(0)
    weights = scaled(rng, w1=(12, 24), b1=(24,), w2=(24, 12), b2=(12,), w3=(12, 24), b3=(24,), w4=(24, 12), b4=(12,))
    feeds, held_out = vectors(32, 1), vectors(16, 2)
    analysis = typed(model_of(text, {"x": ("N", 12)}, weights), feeds[0])
    context = Context(analysis, feeds, LOAD)
    model, keeps = pruned(context, 0.5)
    before = loss(analysis, model, held_out)
    refit(context, model, keeps, feeds)
    assert loss(analysis, model, held_out) <= before * 1.02


def test_nothing_pruned_nothing_refitted() -> None:
    feeds = vectors(4, 1)
    analysis = typed(mlp(0), feeds[0])
    context = Context(analysis, feeds, LOAD)
    model = shrink(analysis.model, analysis.types, {})
    assert n_stages(context, model, {}) == 0
    assert refit(context, model, {}, feeds) == {}


def test_layers_before_the_first_change_stay_as_they_are() -> None:
    feeds = vectors(16, 1)
    analysis = typed(mlp(0), feeds[0])
    last = next(n for n, g in analysis.groups.items() if ("w3", 0) in g.weights)
    keeps = analysis.keeps({last: np.arange(10)})
    small = shrink(analysis.model, analysis.types, keeps)
    assert set(refit(Context(analysis, feeds, LOAD), small, keeps, feeds)) == {"w3", "b3"}


def test_one_feed_and_a_tied_weight_are_no_trouble() -> None:
    """A weight that two nodes read is nobody's to refit; a single feed leaves no fold to test on."""
    text = "h0 = Gemm(x, w1, b1)\nh = Relu(h0)\np = MatMul(h, w2)\ni = Tanh(h0)\nq = MatMul(i, w2)\nresult = Add(p, q)"
    weights = scaled(np.random.default_rng(0), w1=(12, 24), b1=(24,), w2=(24, 5))
    feeds = vectors(1, 1)
    analysis = typed(model_of(text, {"x": ("N", 12)}, weights), feeds[0], fold=False)
    (group,) = analysis.groups
    keeps = analysis.keeps({group: np.arange(12)})
    small = shrink(analysis.model, analysis.types, keeps)
    assert "w2" not in refit(Context(analysis, feeds, LOAD), small, keeps, feeds)


@pytest.mark.parametrize("seed", [3, 20, 70, 113, 124, 128, 136, 139])
def test_random_networks_go_all_the_way(seed: int) -> None:
    """Among them networks whose tokens are pruned too, and channels that vary by a thousandth of their mean."""
    rng = np.random.default_rng(seed)
    feeds = [{"x0": rng.normal(size=(4, 3, 2, 2)).astype(np.float32)} for _ in range(6)]
    analysis, contributions = align(typed(random_model(seed), feeds[0]), feeds, LOAD)
    context = Context(analysis, feeds, LOAD, contributions=contributions)
    model, keeps = pruned(context, 0.5)
    before = loss(analysis, model, feeds)
    refit(context, model, keeps, feeds)
    assert loss(analysis, model, feeds) <= 1.05 * before + 1e-6


# Behind other passes


STREAM = """
x0 = Gemm(x, w0, b0)
a0 = Gemm(x0, w1, b1)
a = Tanh(a0)
b = Gemm(a, w2, b2)
s = Add(x0, b)
c0 = Gemm(s, w3, b3)
c = Tanh(c0)
d = Gemm(c, w4, b4)
t = Add(s, d)
e0 = Gemm(t, w5, b5)
e = Tanh(e0)
f = Gemm(e, w6, b6)
result = Add(t, f)
"""


def stream(seed: int) -> ir.Model:
    """Three residual branches behind a layer."""
    shapes = {f"w{i}": (12, 24) if i % 2 else (24, 12) for i in range(1, 7)} | {"w0": (12, 12)}
    return model_of(STREAM, {"x": ("N", 12)}, scaled(
        np.random.default_rng(seed), **shapes, **{f"b{n[1:]}": shape[1:] for n, shape in shapes.items()}
    ))  # fmt: skip


def streams(seed: int) -> tuple[Context, list]:
    """The model with data to fit to, and held-out feeds."""
    feeds = vectors(32, 10 + seed)
    return Context(typed(stream(seed), feeds[0]), feeds, LOAD), vectors(16, 90 + seed)


def without(context: Context, *totals: str, by: str = "mean") -> ir.Model:
    """The model without the branches that are added to give these values."""
    exits = {node.outputs[0].name: name for name, node in context.nodes.items()}
    return Depth().apply(context, context.model, {t: {"branch": exits[t], "by": by} for t in totals})


@pytest.mark.parametrize("by", ["mean", "nothing", "linear"])
@pytest.mark.parametrize("dropped", [["s"], ["t"], ["result"], ["s", "result"]], ids="".join)
def test_what_is_left_makes_up_for_branches_that_are_gone(dropped: list[str], by: str) -> None:
    before, after = [], []
    for seed in range(4):
        context, held_out = streams(seed)
        model = without(context, *dropped, by=by)
        steps: list[int] = []
        before.append(loss(context.analysis, model, held_out))
        expected = n_stages(context, model, {})
        refit(context, model, {}, context.feeds, lambda steps=steps: steps.append(1))
        assert len(steps) == expected
        after.append(loss(context.analysis, model, held_out))
    assert np.isfinite(before).all() and min(before) > 0
    if by == "linear" and dropped == ["result"]:  # nothing is behind it, and nothing before it has another aim
        assert expected == 0 and after == before
    else:
        assert np.mean(after) < (0.9 if by == "linear" else 0.3) * np.mean(before)


def test_the_layer_before_a_branch_that_is_gone_aims_behind_it() -> None:
    """Though nothing has changed before it."""
    for n_dropped, solved in ((1, {"w4", "b4"}), (2, {"w2", "b2"}), (3, {"w0", "b0"})):
        dropped = ["s", "t", "result"][-n_dropped:]
        context, held_out = streams(0)
        model = without(context, *dropped)
        before = loss(context.analysis, model, held_out)
        assert set(refit(context, model, {}, context.feeds)) == solved
        assert loss(context.analysis, model, held_out) < 0.95 * before


def test_layers_before_a_branch_that_is_gone_stay_as_they_are() -> None:
    context, _ = streams(0)
    model = without(context, "t", by="nothing")
    assert set(refit(context, model, {}, context.feeds)) == {f"{c}{i}" for c in "wb" for i in (2, 5, 6)}


def test_a_layer_that_reads_another_value_now_is_refitted_from_that() -> None:
    """The branch is added to the graph's input, which keeps its name."""
    feeds, held_out = vectors(32, 1), vectors(16, 2)
    context = Context(typed(residual(0), feeds[0]), feeds, LOAD)
    model = without(context, "s", by="nothing")
    assert "x" in {n.inputs[0].name for n in model.graph if n.op_type == "Gemm"}
    before = loss(context.analysis, model, held_out)
    assert set(refit(context, model, {}, feeds)) == {"w3", "b3", "w4", "b4"}
    assert loss(context.analysis, model, held_out) < 0.9 * before


def factored(model: ir.Model, name: str, rank: int) -> ir.Model:
    """A copy with a Gemm, or a convolution, in two parts, of which the second takes its place."""
    copy = model.clone()
    node = next(n for n in copy.graph if n.name == name)
    weight = node.inputs[1].const_value.numpy()
    conv = node.op_type == "Conv"
    u, sigma, vt = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
    first, second = u[:, :rank] * sigma[:rank], vt[:rank]
    if conv:
        first, second = second.reshape(rank, *weight.shape[1:]), first.reshape(*first.shape, 1, 1)
    down, up = (new_constant(copy.graph, f"{name}.{part}", w) for part, w in (("down", first), ("up", second)))
    a = ir.node(node.op_type if conv else "MatMul", [node.inputs[0], down], dict(node.attributes) if conv else {},
                name=f"{name}.down")  # fmt: skip
    a.outputs[0].name = f"{node.outputs[0].name}.down"
    b = ir.node(node.op_type, [a.outputs[0], up, node.inputs[2]], name=f"{name}.up")
    y, b.outputs[0].shape, b.outputs[0].type = node.outputs[0], node.outputs[0].shape, node.outputs[0].type
    for part in (a, b):
        stand_for(part, name)
        copy.graph.insert_before(node, part)
    b.outputs[0].name, y.name = y.name, None
    y.replace_all_uses_with(b.outputs[0], replace_graph_outputs=True)
    copy.graph.remove(node, safe=True)
    return copy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["residual", "cnn"])
def test_a_layer_in_two_parts_is_refitted_by_its_second(name: str, seed: int) -> None:
    family = FAMILIES[name]
    feeds, held_out = family.feeds(32, 10 + seed), family.feeds(16, 90 + seed)
    context = Context(typed(family.make(seed), feeds[0]), feeds, LOAD)
    node = next(n for n in context.model.graph if len(n.inputs) > 1 and n.inputs[1].name == "w2")
    model = factored(context.model, node.name, 6)
    before = loss(context.analysis, model, held_out)
    expected, steps = n_stages(context, model, {}), []
    changed = refit(context, model, {}, feeds, lambda: steps.append(1))
    assert len(steps) == expected and f"{node.name}.up" in changed and f"{node.name}.down" not in changed
    assert 0 < loss(context.analysis, model, held_out) < before
