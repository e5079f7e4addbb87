"""Shared tables do not tie their users together, and cost nothing where nobody took a part."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.edit import shrink
from graphprune.oracles import certify, compare
from tests.graphs import failures, model_of, run, run_all, typed

LAYER = """
h{i} = MatMul({x}, w{i})
r{i} = Mul(h{i}, {table})
a{i} = Tanh(r{i})
y{i} = MatMul(a{i}, v{i})
z{i} = Add(y{i}, {x})
"""
TABLE = """
all = Shape<start=1, end=2>(x)
length = Squeeze(all)
i = Range(zero, length, one)
p = Cast<to=1>(i)
q = Unsqueeze(p, one)
f = Mul(q, table)
c = Cos(f)
"""
CONSTANTS = {"table": (8,), "zero": np.array(0), "one": np.array(1)}
FEEDS = [{"x": np.random.default_rng(n).normal(size=(n, 5, 6)).astype(np.float32)} for n in (2, 3)]


def layers(table: str = "c", n: int = 3) -> ir.Model:
    """n residual layers of width 6 with 8 inner features, each scaled by the cosines of position times frequency."""
    text, x = TABLE, "x"
    for i in range(n):
        text += LAYER.format(i=i, x=x, table=table)
        x = f"z{i}"
    weights = {f"w{i}": (6, 8) for i in range(n)} | {f"v{i}": (8, 6) for i in range(n)} | CONSTANTS
    return model_of(f"{text}\nresult = Identity({x})", {"x": ("N", "T", 6)}, weights)


def test_each_layer_takes_its_own_part_of_a_shared_table() -> None:
    analysis = typed(layers(), FEEDS[0])
    assert sorted(g.size for g in analysis.groups.values()) == [8, 8, 8]
    rng = np.random.default_rng(0)
    keep = {name: np.sort(rng.choice(8, 3 + i, replace=False)) for i, name in enumerate(analysis.groups)}
    assert not failures(certify(analysis, keep, FEEDS, run_all))


def gathers(model: ir.Model) -> int:
    return sum(node.op_type == "Gather" for node in model.graph)


def test_only_layers_that_took_a_part_gather_and_equal_parts_are_taken_once() -> None:
    analysis = typed(layers(), FEEDS[0])
    names = list(analysis.groups)
    same = np.array([1, 2, 5])
    for keep, expected in (({}, 0), ({names[0]: same}, 1), ({n: same for n in names}, 1),
                           ({names[0]: same, names[1]: np.array([0, 3])}, 2)):  # fmt: skip
        small = shrink(analysis.model, analysis.types, analysis.keeps(keep))
        assert gathers(small) == expected
        assert len([n for n in small.graph.initializers if n.endswith(".index")]) == expected
    whole = shrink(analysis.model, analysis.types, {})
    assert compare(run(analysis.model, FEEDS[0]), run(whole, FEEDS[0])) == 0


def test_a_table_is_left_alone_where_its_users_are_tied_anyway() -> None:
    text = f"{TABLE}\nh = MatMul(x, w)\na = Mul(h, c)\nb = Tanh(a)\nd = Mul(b, c)\nresult = MatMul(d, v)"
    weights = {"w": (6, 8), "v": (8, 4), **CONSTANTS}
    analysis = typed(model_of(text, {"x": ("N", "T", 6)}, weights), FEEDS[0])
    assert [g.size for g in analysis.groups.values()] == [8]
    assert gathers(analysis.model) == 0


def test_what_is_as_large_as_the_features_is_no_table() -> None:
    """A residual stream that starts from looked-up features is not gathered from."""
    text = """
    ids = Cast<to=7>(x)
    e = Gather(embedding, ids)
    h = MatMul(e, w)
    a = Add(h, e)
    k = MatMul(a, u)
    b = Add(k, e)
    result = MatMul(b, v)"""
    weights = {"embedding": (9, 8), "w": (8, 8), "u": (8, 8), "v": (8, 4)}
    analysis = typed(model_of(text, {"x": ("N", 2)}, weights), {"x": np.ones((3, 2), np.float32)})
    assert gathers(analysis.model) == 1
