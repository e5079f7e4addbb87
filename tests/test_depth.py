"""Residual branches: which are found, what dropping one or putting a linear map in its place leaves of the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import models
from graphprune.backends import open_backend
from graphprune.branches import find_branches, multiply_adds
from graphprune.context import Context
from graphprune.edit import set_constant, shrink
from graphprune.passes.depth import Depth
from graphprune.passes.width import Width
from graphprune.prepare import loader, prepare
from graphprune.sites import Choice, Site
from graphprune.trace import exposed
from tests.attention import attention, tokens
from tests.graphs import model_of, run, typed

LOAD = loader(open_backend("host"))
WIDTH = 12
CONV = "Conv<pads=[1,1,1,1]>"


def attention_of(x: str, y: str, i: int) -> str:
    """One head on x, its output y; weights with suffix i. Keys are masked by what the graph's input x says."""
    return (f"q{i} = MatMul({x}, wq{i})\nk{i} = MatMul({x}, wk{i})\nv{i} = MatMul({x}, wv{i})\n"
            f"kt{i} = Transpose<perm=[0,2,1]>(k{i})\ns{i} = MatMul(q{i}, kt{i})\nm{i} = Add(s{i}, mask)\n"
            f"p{i} = Softmax<axis=2>(m{i})\nc{i} = MatMul(p{i}, v{i})\no{i} = MatMul(c{i}, wo{i})\n"
            f"{y} = Add(o{i}, bo{i})")  # fmt: skip


def ffn_of(x: str, y: str, i: int) -> str:
    return (f"u{i} = MatMul({x}, wu{i})\ng{i} = Add(u{i}, bu{i})\na{i} = Tanh(g{i})\nd{i} = MatMul(a{i}, wd{i})\n"
            f"{y} = Add(bd{i}, d{i})")


def norm_of(x: str, y: str, i: int) -> str:
    return f"{y} = LayerNormalization({x}, lg{i}, lb{i})"


MASK = "t1 = ReduceMean<keepdims=1>(x, last)\nt2 = Transpose<perm=[0,2,1]>(t1)\nmask = Mul(t2, two)"
PRE_NORM = "\n".join([
    MASK, "x0 = MatMul(x, stem)", norm_of("x0", "n1", 1), attention_of("n1", "f1", 1), "r1 = Add(x0, f1)",
    norm_of("r1", "n2", 2), ffn_of("n2", "f2", 2), "r2 = Add(f2, r1)", norm_of("r2", "n3", 3),
    attention_of("n3", "f3", 3), "r3 = Add(r2, f3)", norm_of("r3", "n4", 4), ffn_of("n4", "f4", 4), "r4 = Add(r3, f4)",
    norm_of("r4", "n5", 5), "result = MatMul(n5, head)",
])  # fmt: skip
POST_NORM = "\n".join([
    MASK, norm_of("x", "n0", 0), attention_of("n0", "f1", 1), "r1 = Add(f1, n0)", norm_of("r1", "n1", 1),
    ffn_of("n1", "f2", 2), "r2 = Add(n1, f2)", norm_of("r2", "n2", 2), attention_of("n2", "f3", 3), "r3 = Add(n2, f3)",
    norm_of("r3", "result", 3),
])  # fmt: skip
PARALLEL = "\n".join([
    MASK, norm_of("x", "n1", 1), attention_of("n1", "f1", 1), ffn_of("n1", "f2", 2), "r1 = Add(x, f1)",
    "r2 = Add(r1, f2)", norm_of("r2", "result", 2),
])  # fmt: skip
"""Attention and FFN beside one another, behind one norm."""
CNN = """
s = Conv<pads=[1,1,1,1]>(x, w0, c0)
x0 = Relu(s)
a1 = Conv<pads=[1,1,1,1]>(x0, w1, c1)
b1 = Relu(a1)
f1 = Conv<pads=[1,1,1,1]>(b1, w2, c2)
r1 = Add(f1, x0)
x1 = Relu(r1)
a2 = Conv<pads=[1,1,1,1]>(x1, w3, c3)
b2 = Relu(a2)
f2 = Conv<pads=[1,1,1,1]>(b2, w4, c4)
r2 = Add(x1, f2)
x2 = Relu(r2)
"""
POOLED = "g = GlobalAveragePool(x2)\nh = Flatten(g)\nresult = Gemm(h, w5, c5)"
HOURGLASS = """
down = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, c1)
a = Relu(down)
i1 = Conv<pads=[1,1,1,1]>(a, w2, c2)
inner = Add(a, i1)
up = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(inner, t)
result = Add(up, x)
"""
NESTED = """
a = Relu(x)
f1 = Conv<pads=[1,1,1,1]>(a, w1, c1)
r1 = Add(a, f1)
b = Relu(r1)
f2 = Conv<pads=[1,1,1,1]>(b, w2, c2)
r2 = Add(r1, f2)
half = Mul(r2, share)
result = Add(half, x)
"""


@dataclass(frozen=True)
class Case:
    """branches: what a branch is added to give -> the constants that make its last step, so that zeros there are f = 0.
    x: the shape of the input, batch open."""

    text: str
    x: tuple[int | str, ...]
    weights: Mapping[str, tuple[int, ...]]
    branches: Mapping[str, tuple[str, ...]]

    def model(self, seed: int = 0, **fixed: np.ndarray) -> ir.Model:
        rng = np.random.default_rng(seed)
        weights = {n: (rng.normal(size=s) / np.sqrt(max(1, np.prod(s[1:]) if len(s) > 2 else s[0])) * (2 - len(s) / 4)
                       ).astype(np.float32) for n, s in self.weights.items()}  # fmt: skip
        weights |= {"last": np.array([2]), "two": np.float32([2.0]), "share": np.float32([0.2])} | fixed
        used = set(self.text.replace("(", " ").replace(")", " ").replace(",", " ").split())
        return model_of(self.text, {"x": self.x}, {n: w for n, w in weights.items() if n in used}, seed=seed)

    def feeds(self, n: int, seed: int, batch: int = 3) -> list[dict[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        mix = np.random.default_rng(3).normal(size=(self.x[-1], self.x[-1])) if self.x[1] == "T" else np.eye(self.x[-1])
        shape = (batch, *(5 if d == "T" else d for d in self.x[1:]))
        return [{"x": (rng.normal(size=shape) @ mix).astype(np.float32)} for _ in range(n)]


def transformer_weights(*attentions: int, ffns: Sequence[int] = (), norms: Sequence[int] = ()) -> dict:
    weights = {f"w{c}{i}": (WIDTH, WIDTH) for c in "qkvo" for i in attentions}
    weights |= {f"bo{i}": (WIDTH,) for i in attentions}
    for i in ffns:
        weights |= {f"wu{i}": (WIDTH, 36), f"bu{i}": (36,), f"wd{i}": (36, WIDTH), f"bd{i}": (WIDTH,)}
    return weights | {f"{n}{i}": (WIDTH,) for n in ("lg", "lb") for i in norms}


CONVS = {"w0": (8, 3, 3, 3), "c0": (8,), **{f"w{i}": (8, 8, 3, 3) for i in range(1, 5)},
         **{f"c{i}": (8,) for i in range(1, 5)}}  # fmt: skip
CASES = {
    "pre-norm": Case(PRE_NORM, ("N", "T", WIDTH), {"stem": (WIDTH, WIDTH), "head": (WIDTH, 5)} | transformer_weights(
        1, 3, ffns=(2, 4), norms=range(1, 6)), {f"r{i}": (f"w{'od'[1 - i % 2]}{i}", f"b{'od'[1 - i % 2]}{i}")
                                                for i in range(1, 5)}),
    "post-norm": Case(POST_NORM, ("N", "T", WIDTH), transformer_weights(1, 3, ffns=(2,), norms=range(4)),
                      {"r1": ("wo1", "bo1"), "r2": ("wd2", "bd2"), "r3": ("wo3", "bo3")}),
    "parallel": Case(PARALLEL, ("N", "T", WIDTH), transformer_weights(1, ffns=(2,), norms=(1, 2)),
                     {"r1": ("wo1", "bo1"), "r2": ("wd2", "bd2")}),
    "cnn": Case(CNN + POOLED, ("N", 3, 8, 8), CONVS | {"w5": (8, 5), "c5": (5,)},
                {"r1": ("w2", "c2"), "r2": ("w4", "c4")}),
    "cnn to its last block": Case(CNN.replace("x2 =", "result ="), ("N", 3, 8, 8), CONVS,
                                  {"r1": ("w2", "c2"), "r2": ("w4", "c4")}),
    "hourglass": Case(HOURGLASS, ("N", 8, 8, 8), CONVS | {"t": (8, 8, 2, 2)},
                      {"inner": ("w2", "c2"), "result": ("t",)}),
    "a stream that is used again": Case(
        "y = MatMul(x, u)\nz = Add(y, e)\na = Tanh(z)\nd = MatMul(a, w)\nf = Add(d, b)\nr = Add(z, f)\n"
        "result = Mul(r, z)", ("N", 6), {"u": (6, 6), "e": (6,), "w": (6, 6), "b": (6,)}, {"r": ("w", "b")}),
    "a number for all channels before it": Case(
        "y = MatMul(x, u)\nz = Add(y, e)\na = Tanh(z)\nd = MatMul(a, w)\nf = Add(d, b)\nresult = Add(z, f)",
        ("N", 6), {"u": (6, 6), "e": (1,), "w": (6, 6), "b": (6,)}, {"result": ("w", "b")}),
    "an activation of its own behind it": Case(
        f"s = {CONV}(x, w0, c0)\na = Tanh(s)\nf = {CONV}(a, w1, c1)\nr = Add(s, f)\nresult = Relu(r)",
        ("N", 3, 8, 8), CONVS, {"r": ("w1", "c1")}),
    "nested": Case(NESTED, ("N", 8, 8, 8), CONVS, {"r1": ("w1", "c1"), "r2": ("w2", "c2")}),
}  # fmt: skip
"""Of the nested ones the outer branch is no site of its own: outside the inner two nothing is computed."""


def context_of(case: Case, seed: int = 0, n: int = 24, compensate: bool = True, **fixed: np.ndarray) -> Context:
    feeds = case.feeds(n, seed + 1)
    return Context(typed(case.model(seed, **fixed), feeds[0]), feeds, LOAD, compensate=compensate)


def sums(context: Context) -> dict[str, str]:
    """The names of the sums that branches are added into, by site."""
    return {f"branch {b.exit}": context.nodes[b.exit].outputs[0].name for b in find_branches(context.analysis)}


def outputs(model: ir.Model, feeds: Sequence, *names: str) -> np.ndarray:
    """One output of a model for all feeds, unoptimised."""
    model = exposed(model, names) if names else model
    return np.concatenate([np.concatenate([v.reshape(len(v), -1) for v in run(model, f).values()], 1) for f in feeds])


def relative(have: np.ndarray, want: np.ndarray) -> float:
    return float(np.square(have - want).sum() / np.square(want).sum())


def zeroed(context: Context, names: Sequence[str]) -> ir.Model:
    model = context.model.clone()
    for name in names:
        set_constant(model.graph.initializers[name], 0 * model.graph.initializers[name].const_value.numpy())
    return model


def at(depth: Depth, context: Context, **levels: int) -> Mapping[str, Choice]:
    """Choices by the names of the sums, those not named kept."""
    of = {total: site for site, total in sums(context).items()}
    assert levels.keys() <= of.keys()
    return depth.choose(context, {s: levels.get(total, 2) for total, s in of.items()})


# What is a branch


@pytest.mark.parametrize("name", CASES)
def test_the_branches_of_a_network_are_found(name: str) -> None:
    context = context_of(CASES[name], n=1)
    assert set(sums(context).values()) == set(CASES[name].branches)


def test_the_branch_around_attention_with_heads_is_found() -> None:
    feeds = tokens(4, 1)
    analysis = typed(attention(residual=True, rotary=True, kv_heads=2), feeds[0])
    (branch,) = find_branches(analysis)
    assert branch.stream == "x" and branch.axis == 2
    assert {n.op_type for n in analysis.model.graph if n.name in branch.nodes} >= {"Softmax", "Expand", "Neg", "MatMul"}


X, W = ("N", 8, 8, 8), {"w": (8, 8, 3, 3), "v": (8, 8, 3, 3)}
NO_BRANCHES = {
    "a concatenation": (f"f = {CONV}(x, w)\nc = Concat<axis=1>(x, f)\nr = {CONV}(c, u)\nresult = Concat<axis=1>(c, r)",
                        {**W, "u": (8, 16, 3, 3)}),
    "a skip across an hourglass that is concatenated": (
        f"d = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)\ne = Relu(d)\n"
        f"f = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(e, t)\ng = Concat<axis=1>(f, x)\nresult = {CONV}(g, u)",
        {**W, "t": (8, 8, 2, 2), "u": (8, 16, 3, 3)}),
    "a projection on the shortcut": ("f = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)\n"
                                     "s = Conv<strides=[2,2]>(x, p)\nresult = Add(f, s)", {**W, "p": (8, 8, 1, 1)}),
    "a value inside that is used outside": (f"a = {CONV}(x, w)\nb = Relu(a)\nf = {CONV}(b, v)\nr = Add(x, f)\n"
                                            f"result = Mul(r, b)", W),
    "a branch that is used twice": (f"f = {CONV}(x, w)\nr = Add(x, f)\nresult = Mul(r, f)", W),
    "a branch that is an output": (f"side = {CONV}(x, w)\nresult = Add(x, side)", W),
    "a value inside that is an output": (f"side = {CONV}(x, w)\nb = Relu(side)\nf = {CONV}(b, v)\nresult = Add(x, f)",
                                         W),
    "a gate": (f"a = {CONV}(x, w)\ng = Sigmoid(a)\nresult = Mul(x, g)", W),
    "a stream that is broadcast": (f"m = ReduceMean<keepdims=1>(x, axes)\nf = {CONV}(x, w)\nn = Add(f, m)\n"
                                   "result = Add(m, n)", {**W, "axes": np.array([2, 3])}),
    "the sum of two layers": (f"a = {CONV}(x, w)\nb = {CONV}(x, v)\nresult = Add(a, b)", W),
    "the cubic in a spelled-out activation": ("a = Mul(x, x)\nb = Mul(a, x)\nresult = Add(x, b)", {}),
    "what depends on the stream's size only": (f"y = {CONV}(x, w)\ns = Shape(y)\nz = ConstantOfShape(s)\n"
                                               f"f = {CONV}(z, v)\nresult = Add(y, f)", W),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BRANCHES)
def test_what_is_no_branch(name: str) -> None:
    text, weights = NO_BRANCHES[name]
    names = ["result", *(["side"] if "side" in text else [])]
    model = model_of(text, {"x": X}, weights, names)
    feed = {"x": np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype(np.float32)}
    assert not find_branches(typed(model, feed, fold=False))


def test_a_stream_that_is_broadcast_at_other_sizes_is_none() -> None:
    text = "a = Add(z, x)\nf = MatMul(a, w)\nresult = Add(z, f)"
    for batch, n_branches in ((1, 0), ("N", 1)):
        model = model_of(text, {"x": ("N", 6), "z": (batch, 6)}, {"w": (6, 6)})
        analysis = typed(model, {n: np.ones((1, 6), np.float32) for n in "xz"})
        assert len(find_branches(analysis)) == n_branches


def test_what_hangs_on_the_stream_alone_may_be_shared() -> None:
    """A norm before two branches, and a mask that the first layer's sizes give to all."""
    text = ("s = Shape(x)\nt = ConstantOfShape(s)\na = Tanh(x)\nb = Add(a, t)\nf = MatMul(b, w)\nr = Add(x, f)\n"
            "c = Add(r, t)\nd = Tanh(c)\ng = MatMul(d, v)\nresult = Add(r, g)")  # fmt: skip
    model = model_of(text, {"x": ("N", 6)}, {"w": (6, 6), "v": (6, 6)})
    analysis = typed(model, {"x": np.ones((2, 6), np.float32)}, fold=False)
    assert [b.stream for b in find_branches(analysis)] == ["x", "r"]


def test_multiply_adds_are_those_of_the_operators() -> None:
    context = context_of(CASES["pre-norm"], n=1)
    found = {context.nodes[n].outputs[0].name: count for n, count in multiply_adds(context.analysis).items()}
    assert found["q1"] == 15 * 12 * 12 and found["u2"] == found["d2"] == 15 * 12 * 36
    assert found["s1"] == found["c1"] == 3 * 5 * 5 * 12
    context = context_of(CASES["hourglass"], n=1)
    found = {context.nodes[n].outputs[0].name: count for n, count in multiply_adds(context.analysis).items()}
    assert found == {"down": 3 * 16 * 8 * 72, "i1": 3 * 16 * 8 * 72, "up": 3 * 16 * 8 * 32}


# What is left without one


@pytest.mark.parametrize("name", CASES)
def test_a_plain_drop_is_zeroing_the_branch(name: str) -> None:
    case = CASES[name]
    context = context_of(case, n=4, compensate=False)
    depth = Depth()
    assert all(s.levels == (0, 2) and not s.ordered for s in depth.propose(context))
    for dropped in [[r] for r in case.branches] + [list(case.branches)]:
        choices = at(depth, context, **dict.fromkeys(dropped, 0))
        assert {c["by"] for c in choices.values()} == {"nothing"}
        have = depth.apply(context, context.model, choices)
        want = zeroed(context, [w for r in dropped for w in case.branches[r]])
        for batch in (1, 4):
            held = case.feeds(1, 9, batch)
            assert relative(outputs(have, held), outputs(want, held)) < 1e-9, (dropped, batch)
        assert len(have.graph) < len(context.model.graph)


@pytest.mark.parametrize("name", CASES)
def test_dropping_a_constant_branch_changes_nothing(name: str) -> None:
    """Where the stream is free for the width pass, only a bias that is there may hold the constant."""
    case, rng = CASES[name], np.random.default_rng(5)
    for total, (weight, *bias) in case.branches.items():
        fixed = {weight: np.zeros(case.weights[weight], np.float32)}
        if bias:
            fixed[bias[0]] = rng.normal(size=case.weights[bias[0]]).astype(np.float32)
        context = context_of(case, n=6, **fixed)
        depth = Depth()
        site = next(s for s in depth.propose(context) if sums(context)[s.name] == total)
        for level in site.levels[:-1]:
            choices = at(depth, context, **{total: level})
            if choices[site.name]["by"] == "bias":
                continue
            have, held = depth.apply(context, context.model, choices), case.feeds(3, 77, 2)
            assert relative(outputs(have, held), outputs(context.model, held)) < 1e-9, (total, level)


def test_a_mean_goes_into_a_bias_that_is_there() -> None:
    """Pre-norm: of the last layer before the branches that go; post-norm: of the norm before."""
    for name, dropped, where in (("pre-norm", ["r2"], "bo1"), ("pre-norm", ["r2", "r3", "r4"], "bo1"),
                                 ("post-norm", ["r2"], "lb1"), ("post-norm", ["r1"], "lb0")):  # fmt: skip
        context = context_of(CASES[name])
        depth = Depth()
        choices = at(depth, context, **dict.fromkeys(dropped, 0))
        assert {c["by"] for c in choices.values()} == {"mean"}
        bare = {site: {**c, "by": "nothing"} for site, c in choices.items()}
        have, plain = (depth.apply(context, context.model, c) for c in (choices, bare))
        assert [n.name for n in have.graph] == [n.name for n in plain.graph]
        changed = {n for n, v in have.graph.initializers.items()
                   if not np.array_equal(v.const_value.numpy(), plain.graph.initializers[n].const_value.numpy())}
        assert changed == {where}


def test_a_mean_without_a_bias_to_go_into_is_added() -> None:
    """The stream is the graph's input: nothing makes it."""
    text = "a = Tanh(x)\nf = MatMul(a, w)\ng = Add(f, b)\nresult = Add(x, g)"
    case = Case(text, ("N", 6), {"w": (6, 6), "b": (6,)}, {"result": ("w", "b")})
    context = context_of(case, b=np.full(6, 3, np.float32))
    depth = Depth()
    model = depth.apply(context, context.model, at(depth, context, result=0))
    assert [n.op_type for n in model.graph] == ["Add"] and list(run(model, case.feeds(1, 1)[0])) == ["result"]
    dense = outputs(context.model, context.feeds) - np.concatenate([f["x"] for f in context.feeds])
    (mean,) = (v.const_value.numpy() for v in model.graph.initializers.values())
    assert np.allclose(mean, dense.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_with_its_mean_a_dropped_branch_is_missed_less(seed: int) -> None:
    """Over the calibration rows; where norms follow, rows count relative to their size."""
    for name in ("pre-norm", "post-norm"):
        context = context_of(CASES[name], seed)
        depth = Depth()
        for total in CASES[name].branches:
            choices = at(depth, context, **{total: 0})
            bare = {site: {**c, "by": "nothing"} for site, c in choices.items()}
            dense, have, plain = (
                outputs(m, context.feeds, total).reshape(-1, WIDTH)
                for m in (context.model, *(depth.apply(context, context.model, c) for c in (choices, bare)))
            )
            weight = 1 / np.square(dense).mean(axis=1, keepdims=True)
            assert np.sum(weight * np.square(have - dense)) < np.sum(weight * np.square(plain - dense))
            off = np.sum(weight * (have - dense), axis=0)  # at the minimum the weighted errors add up to nothing
            assert np.abs(off).max() < 1e-4 * np.sum(weight * np.abs(have - dense), axis=0).max()


LINEAR = {
    "tokens": Case("a = MatMul(x, w)\nb = Add(a, e)\nf = MatMul(b, v)\ng = Add(f, c)\nresult = Add(x, g)",
                   ("N", "T", 6), {"w": (6, 18), "e": (18,), "v": (18, 6), "c": (6,)}, {}),
    "images": Case("a = Conv(x, w, e)\nf = Conv(a, v, c)\ny = Add(x, f)\nresult = Relu(y)", ("N", 6, 4, 4),
                   {"w": (18, 6, 1, 1), "e": (18,), "v": (6, 18, 1, 1), "c": (6,)}, {}),
    "signals": Case("a = Conv(x, w, e)\nf = Conv(a, v, c)\nresult = Add(f, x)", ("N", 6, 9),
                    {"w": (18, 6, 1), "e": (18,), "v": (6, 18, 1), "c": (6,)}, {}),
    "rows": Case("a = Gemm(x, w, e)\nf = Gemm(a, v, c)\nresult = Add(f, x)", ("N", 6),
                 {"w": (6, 18), "e": (18,), "v": (18, 6), "c": (6,)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_branch_is_replaced_by_one_map(name: str) -> None:
    case = LINEAR[name]
    context = context_of(case, n=40)
    depth = Depth()
    (site,) = depth.propose(context)
    assert site.levels == (0, 1, 2) and site.label(1) == "one linear map"
    assert site.prior[0] > 0.1 > 1e-4 > site.prior[1] and site.prior[2] == 0
    (total,) = sums(context).values()
    model = depth.apply(context, context.model, at(depth, context, **{total: 1}))
    assert len(model.graph) < len(context.model.graph)
    for batch in (1, 5):
        held = case.feeds(2, 50, batch)
        assert relative(outputs(model, held), outputs(context.model, held)) < 1e-4


def test_a_linear_map_is_offered_where_it_is_much_less_work() -> None:
    for hidden, levels in ((8, (0, 1, 2)), (5, (0, 2))):  # of 6 channels: 36 multiply-adds for 96 or 60
        text = "a = MatMul(x, w)\nb = Tanh(a)\nf = MatMul(b, v)\nresult = Add(x, f)"
        context = context_of(Case(text, ("N", 6), {"w": (6, hidden), "v": (hidden, 6)}, {}))
        (site,) = Depth().propose(context)
        assert site.levels == levels


def test_the_prior_is_what_is_lost_in_the_sum() -> None:
    case = LINEAR["images"]
    context = context_of(Case(case.text.replace("a = Conv(x, w, e)", "z = Conv(x, w, e)\na = Relu(z)"), case.x,
                              case.weights, {}))  # fmt: skip
    depth = Depth()
    (site,) = depth.propose(context)
    rows = {}
    for level, model in [(2, context.model)] + [
        (level, depth.apply(context, context.model, at(depth, context, y=level))) for level in (0, 1)
    ]:
        runs = [run(exposed(model, ["y"]), f)["y"] for f in context.feeds]
        rows[level] = np.moveaxis(np.concatenate(runs), 1, -1).reshape(-1, 6)
    spread = np.square(rows[2] - rows[2].mean(axis=0)).sum()
    for i, level in enumerate((0, 1)):
        assert np.square(rows[level] - rows[2]).sum() / spread == pytest.approx(site.prior[i], rel=1e-3)
    assert site.prior[0] > 1.2 * site.prior[1] > 0


# Plans, other passes, real networks


def all_levels(sites: Sequence[Site]) -> list[dict[str, int]]:
    return [dict(zip([s.name for s in sites], levels, strict=True)) for levels in product(*(s.levels for s in sites))]


def layout(model: ir.Model) -> tuple:
    """Everything of a model but the contents of its constants."""
    names = [(n.name, n.op_type, [v and v.name for v in n.inputs], [v.name for v in n.outputs]) for n in model.graph]
    shapes = {n: (tuple(v.const_value.shape), v.const_value.dtype) for n, v in model.graph.initializers.items()}
    return names, shapes, [v.name for v in model.graph.outputs]


@pytest.mark.parametrize("name", [*CASES, *LINEAR])
def test_every_candidate_is_valid_and_is_built_again_without_data(name: str) -> None:
    case = (CASES | LINEAR)[name]
    context = context_of(case, n=8)
    depth = Depth()
    sites = depth.propose(context)
    blind = Context(context.analysis, (), lambda model: pytest.fail("ran the model"), compensate=True)
    levels = all_levels(sites)
    for own in levels if len(levels) < 10 else levels[:: len(levels) // 8]:
        choices = depth.choose(context, own)
        solved = depth.apply(context, context.model, choices)
        again = Depth().apply(blind, context.model, choices, solve=False)
        assert layout(solved) == layout(again)
        onnx.checker.check_model(ir.to_proto(solved), full_check=True)
        assert [v.name for v in solved.graph.outputs] == ["result"]
        for batch in (1, 4):
            held = case.feeds(1, 9, batch)
            want = run(context.model, held[0])["result"]
            have = run(solved, held[0])["result"]
            assert have.shape == want.shape and have.dtype == want.dtype and np.isfinite(have).all()
        if all(level == 2 for level in own.values()):
            assert not choices and np.array_equal(have, want)


def test_a_branch_within_one_that_goes_goes_with_it() -> None:
    context = context_of(CASES["hourglass"])
    depth = Depth()
    alone, both = (depth.apply(context, context.model, at(depth, context, **levels))
                   for levels in ({"result": 0}, {"result": 0, "inner": 0}))  # fmt: skip
    assert layout(alone) == layout(both)
    held = CASES["hourglass"].feeds(2, 9)
    assert np.array_equal(outputs(alone, held), outputs(both, held))


def test_a_stream_that_is_an_output_stays_one() -> None:
    text = "y = MatMul(x, u)\na = Tanh(y)\nf = MatMul(a, w)\nresult = Add(y, f)"
    model = model_of(text, {"x": ("N", 6)}, {"u": (6, 6), "w": (6, 6)}, ("y", "result"))
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 6)).astype(np.float32)} for i in range(4)]
    for compensate in (False, True):
        context = Context(typed(model, feeds[0]), feeds, LOAD, compensate=compensate)
        depth = Depth()
        small = depth.apply(context, context.model, at(depth, context, result=0))
        have, want = run(small, feeds[0]), run(context.model, feeds[0])
        assert list(have) == ["y", "result"] and np.array_equal(have["y"], want["y"])
        assert np.ptp(have["result"] - have["y"], axis=0) == pytest.approx(0, abs=1e-5)


def test_a_stream_that_may_shrink_holds_no_new_constants() -> None:
    """So that the width pass can narrow it afterwards; both passes are carried out as if one were alone."""
    case = CASES["cnn"]
    context = context_of(case)
    depth, width = Depth(), Width()
    assert all(s.levels == (0, 2) for s in depth.propose(context))
    width.propose(context)
    stream = next(n for n, g in context.analysis.groups.items() if ("w0", 0) in g.weights)
    choices = at(depth, context, r1=0)
    assert [c["by"] for c in choices.values()] == ["bias"]
    dropped = depth.apply(context, context.model, choices)
    assert dropped.graph.initializers.keys() <= context.model.graph.initializers.keys()
    keep = width.choose(context, {stream: 4})
    keeps = context.analysis.keeps({stream: np.asarray(keep[stream]["keep"])})
    want = shrink(zeroed(context, case.branches["r1"]), context.analysis.types, keeps)
    held = case.feeds(2, 9)
    assert relative(outputs(shrink(dropped, context.analysis.types, keeps), held), outputs(want, held)) < 1e-9
    both = width.apply(context, dropped, keep)
    assert "w1" not in both.graph.initializers and both.graph.initializers["w3"].const_value.shape == (8, 4, 3, 3)
    assert np.isfinite(outputs(both, held)).all()


def test_the_branches_of_real_networks() -> None:
    for name, n_branches, n_levels in (("minilm", 12, 3), ("mnist_cnn", 3, 2)):
        task = models.get(name)
        prepared = prepare(str(task.model()), open_backend("host"))
        feeds = task.calibration(6)
        context = Context(prepared.analysis, feeds, LOAD)
        depth = Depth()
        sites = depth.propose(context)
        assert len(sites) == n_branches and {len(s.levels) for s in sites} == {n_levels}
        assert all(0 < s.prior[0] < 2 and list(s.prior) == sorted(s.prior, reverse=True) for s in sites)
        for level in (0, sites[0].levels[-2]):
            model = depth.apply(context, context.model, depth.choose(context, {s.name: level for s in sites}))
            left = {n.op_type for n in model.graph}
            assert not {"Softmax", "Gelu"} & left
            for feed in (feeds[0], {k: np.concatenate([v, v]) for k, v in feeds[1].items()}):
                (have,), (want,) = (list(LOAD(m)(feed).values()) for m in (model, context.model))
                assert have.shape == want.shape and np.isfinite(have).all()
