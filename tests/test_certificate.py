"""`certify` on whole models: what it prints, what it exits with, and that it notices when pruning goes wrong."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

import graphprune
from graphprune import oracles
from graphprune.cli import main
from graphprune.edit import set_constant, shrink
from graphprune.errors import UsageError
from graphprune.load import save_bytes
from tests.graphs import model_of

TEXT = """
a = Conv<pads=[1,1,1,1]>(x, w1, b1)
b = Relu(a)
c = Conv<group=4, pads=[1,1,1,1]>(b, w2)
d = Tanh(c)
p = GlobalAveragePool(d)
f = Flatten(p)
m = MatMul(f, w3)
n = LayerNormalization(m, g, s)
result = MatMul(n, w4)
"""
WEIGHTS = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (24, 4, 3, 3), "w3": (24, 10), "g": (10,), "s": (10,),
           "w4": (10, 5)}


def model() -> ir.Model:
    """x [n, 3, 8, 8] -> 16 channels -> four filter banks of 4 in, 6 out -> LayerNorm over 10 -> 5."""
    return model_of(TEXT, {"x": ("N", 3, 8, 8)}, WEIGHTS)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "net.onnx"
    file.write_bytes(save_bytes(model()))
    return file


def test_every_group_is_certified_alone_and_all_are_together_at_two_batches() -> None:
    found = graphprune.certify(ir.to_proto(model()))
    # Banks, channels in each bank, filters of each bank, features: the channels and the filters may differ by bank.
    assert found.n_groups == 4 and not found.failed
    assert sorted((row.size, row.ragged) for row in found.rows) == [
        (4, False), (4, False), (4, True), (6, False), (6, True), (10, False)]  # fmt: skip
    assert {row.verdict for row in (*found.rows, *found.together)} == {"exact"}
    (together,) = found.together
    assert together.size == 24 and together.ragged
    assert [shape["x"][0] for shape in found.shapes] == [3, 2]
    for row in found.rows:
        oracles_used = {check.oracle for check in row.checks}
        assert oracles_used == ({"permutation"} if row.inexact else {"masked", "permutation"})


def test_the_same_seed_draws_the_same_keep_sets_and_groups() -> None:
    one, same, other = (graphprune.certify(ir.to_proto(model()), groups=2, seed=s) for s in (5, 5, 6))
    assert [(r.group, r.kept, r.checks) for r in one.rows] == [
        (r.group, r.kept, r.checks) for r in same.rows]  # fmt: skip
    assert len({r.group for r in one.rows}) == 2
    assert [(r.group, r.checks) for r in one.rows] != [(r.group, r.checks) for r in other.rows]


def test_the_command_prints_a_row_for_each_and_a_total(path, tmp_path, capsys) -> None:
    out = tmp_path / "certificate.json"
    assert main(["certify", str(path), "--json", str(out), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "net: 4 groups, 7 keep sets certified: 7 exact, 0 vacuous, 0 mismatched" in text
    assert text.count(" exact") >= 6 and "all at once" in text
    written = json.loads(out.read_text())
    assert written["verdict"] == "certified" and len(written["rows"]) == 6


def break_pruning(monkeypatch) -> None:
    """Filters are cut to length instead of picked."""

    def faulty(model, types, keeps):
        small = shrink(model, types, keeps)
        value, dense = small.graph.initializers["w2"], model.graph.initializers["w2"].const_value.numpy()
        shape = value.const_value.shape
        set_constant(value, np.ascontiguousarray(dense[: shape[0], : shape[1]]))
        return small

    monkeypatch.setattr(oracles, "shrink", faulty)


def test_a_mismatch_is_shown_and_exits_with_1(path, tmp_path, monkeypatch, capsys) -> None:
    break_pruning(monkeypatch)
    out = tmp_path / "certificate.json"
    assert main(["certify", str(path), "--json", str(out), "--quiet"]) == 1
    assert "mismatch" in capsys.readouterr().out
    assert json.loads(out.read_text())["verdict"] == "mismatch"


def test_a_pruned_model_that_does_not_run_is_a_mismatch_with_the_words_of_the_runtime(monkeypatch) -> None:
    def faulty(model, types, keeps):
        small = shrink(model, types, keeps)
        if keeps:
            set_constant(small.graph.initializers["b1"], np.zeros(7, np.float32))
        return small

    monkeypatch.setattr(oracles, "shrink", faulty)
    found = graphprune.certify(ir.to_proto(model()), groups=1)
    assert found.failed and all(row.error for row in found.rows)


def test_what_cannot_be_certified(path, capsys) -> None:
    with pytest.raises(UsageError, match="cannot certify 0 groups"):
        graphprune.certify(ir.to_proto(model()), groups=0)
    with pytest.raises(UsageError, match="x"):
        graphprune.certify(ir.to_proto(model()), shapes={"x": (1, 4, 8, 8)})
    assert main(["certify", str(path), "--groups", "0"]) == 2
    assert "--groups" in capsys.readouterr().err


def test_a_model_without_groups_has_nothing_to_certify_and_says_so(tmp_path, capsys) -> None:
    file = tmp_path / "bare.onnx"
    file.write_bytes(save_bytes(model_of("result = MatMul(x, w)", {"x": ("N", 6)}, {"w": (6, 4)})))
    assert main(["certify", str(file), "--quiet"]) == 0
    assert "bare: 0 groups, 0 keep sets certified" in capsys.readouterr().out
