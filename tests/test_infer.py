"""Where a rule is wrong about a model, the rest can still be pruned, and the reason says whose fault it is."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.dims import leaves
from graphprune.infer import MISFIT
from graphprune.oracles import certify
from graphprune.rules import TABLE
from graphprune.rules.base import Rule
from tests.graphs import failures, model_of, run_all, typed

TEXT = "a = MatMul(x, w1)\nb = Tanh(a)\nc = MatMul(b, w2)\nd = Relu(c)\nresult = MatMul(d, w3)"
WEIGHTS = {"w1": (6, 8), "w2": (8, 10), "w3": (10, 4)}
FEED = {"x": np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)}


@pytest.mark.parametrize("error", [ValueError("sizes differ"), KeyError("y"), AttributeError("none")])
def test_a_rule_that_does_not_fit_freezes_what_it_touches_and_nothing_else(monkeypatch, error: Exception) -> None:
    def wrong(op, t) -> None:
        t.contract(op, 0, -1)
        raise error

    monkeypatch.setitem(TABLE, ("", "Tanh"), Rule("Tanh", wrong, ()))
    analysis = typed(model_of(TEXT, {"x": ("N", "T", 6)}, WEIGHTS), FEED)
    assert [g.size for g in analysis.groups.values()] == [10]
    (frozen,) = leaves(analysis.types.axes["w1"][1])
    assert frozen.frozen.text.startswith(MISFIT)
    assert "Tanh" in frozen.frozen.text and "defect of graphprune" in frozen.frozen.text
    assert not any(c.node.startswith("Tanh") for c in analysis.types.contracted)
    keep = {name: np.array([1, 3]) for name in analysis.groups}
    assert not failures(certify(analysis, keep, [FEED], run_all))
