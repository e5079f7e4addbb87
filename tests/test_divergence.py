"""Laws of the measures of divergence, what an output is taken for, and what compile makes of a kind that is given.

Each law is a function of a way to measure, so that measures with faults planted in them can be shown to break it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

import graphprune
import graphprune.divergence as module
from graphprune.cli import main
from graphprune.divergence import MEANING, Kind, Reference, divergence, kind_of, named_kinds, read_kinds
from graphprune.errors import GraphpruneError, ModelError, UsageError
from tests.graphs import model_of, run
from tests.test_driver import feeds, mlp
from tests.test_evaluate import steady_widths

KINDS = get_args(Kind)
SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=40, deadline=None)
Measured = Callable[[list[np.ndarray], list[np.ndarray], str], float]


def measured(dense: list[np.ndarray], have: list[np.ndarray], kind: str) -> float:
    return divergence([{"y": a} for a in dense], [{"y": b} for b in have], {"y": kind})


def drawn(seed: int, kind: str) -> list[np.ndarray]:
    """Two feeds of rows [3, 5] of that kind."""
    x = np.random.default_rng(seed).normal(size=(2, 3, 5)) * 2
    if kind == "distribution":
        x = softmax(x, axis=-1)
    if kind == "embedding":
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return [a.astype(np.float32) for a in x]


def other(seed: int, kind: str) -> list[np.ndarray]:
    return drawn(seed + 1, kind)


# The laws: each gives what should be true


def zero_if_equal_and_more_if_not(seed: int, kind: str, measure: Measured) -> bool:
    dense = drawn(seed, kind)
    return measure(dense, dense, kind) == 0 < measure(dense, other(seed, kind), kind) < np.inf


def no_constant_does_better_than_one(seed: int, kind: str, measure: Measured) -> bool:
    """The best constant row gets 1 and any other at least that, so that 1 means as good as a constant."""
    dense = drawn(seed, kind)
    rows = np.concatenate(dense).astype(np.float64)
    best = {"distribution": rows.mean(0), "logits": np.log(softmax(rows, axis=-1).mean(0)), "relative": rows.mean(0),
            "embedding": (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).mean(0)}[kind]  # fmt: skip
    near = best * np.exp(np.random.default_rng(seed).normal(size=best.shape) / 10)
    if kind == "distribution":
        near /= near.sum()
    shares = [measure(dense, [np.broadcast_to(row, a.shape) for a in dense], kind) for row in (best, near)]
    return abs(shares[0] - 1) < 1e-6 and shares[1] > 1 - 1e-6


def nearer_is_never_worse(seed: int, kind: str, measure: Measured) -> bool:
    dense, far = drawn(seed, kind), other(seed, kind)
    shares = [measure(dense, [(1 - t) * a.astype(np.float64) + t * b for a, b in zip(dense, far, strict=True)], kind)
              for t in (0.0, 0.01, 0.1, 0.4, 0.8, 1.0)]  # fmt: skip
    return all(a < b for a, b in pairwise(shares))


def blind(seed: int, kind: str, measure: Measured) -> bool:
    """What means nothing changes nothing: a constant on a row of logits, the length of an embedding, the unit and the
    origin of a plain number; on either side, row by row but for the last."""
    dense, have, rng = drawn(seed, kind), other(seed, kind), np.random.default_rng(seed)

    def moved(arrays: list[np.ndarray]) -> list[np.ndarray]:
        if kind == "logits":
            return [a + rng.normal(size=(3, 1)) * 100 for a in arrays]
        if kind == "embedding":
            return [a * np.exp(rng.normal(size=(3, 1)) * 3) for a in arrays]
        return [a * 7.0 - 3 for a in arrays] if kind == "relative" else arrays

    want = measure(dense, have, kind)
    return np.isclose(measure(moved(dense), moved(have), kind), want, rtol=1e-4)


def not_finite_or_another_shape_is_infinite(seed: int, kind: str, measure: Measured) -> bool:
    dense, rng = drawn(seed, kind), np.random.default_rng(seed)
    bad = [a.copy() for a in dense]
    bad[rng.integers(2)][rng.integers(3), rng.integers(5)] = rng.choice([np.nan, np.inf, -np.inf])
    cut = [a[:, :-1] for a in dense]
    return all(np.isposinf(measure(*pair, kind)) for pair in ((dense, bad), (bad, dense), (bad, bad), (dense, cut)))


def counts_every_row_once(seed: int, kind: str, measure: Measured) -> bool:
    """How rows are spread over feeds and axes makes no difference."""
    dense, have = drawn(seed, kind), other(seed, kind)
    together = [[np.concatenate(a).reshape(1, 2, 3, 5)] for a in (dense, have)]
    return np.isclose(measure(*together, kind), measure(dense, have, kind), rtol=1e-9)


LAWS = (zero_if_equal_and_more_if_not, no_constant_does_better_than_one, nearer_is_never_worse, blind,
        not_finite_or_another_shape_is_infinite, counts_every_row_once)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@FEW
@given(seed=SEEDS)
def test_law(law, kind: str, seed: int) -> None:
    assert law(seed, kind, measured)


@FEW
@given(seed=SEEDS)
def test_logits_are_judged_as_their_softmaxes_and_embeddings_by_their_cosine(seed: int) -> None:
    dense, have = drawn(seed, "logits"), other(seed, "logits")
    as_probabilities = measured([softmax(a.astype(float), axis=-1) for a in dense],
                                [softmax(b.astype(float), axis=-1) for b in have], "distribution")  # fmt: skip
    assert measured(dense, have, "logits") == pytest.approx(as_probabilities, rel=1e-5)
    a, b = (np.concatenate(x).astype(float) for x in (drawn(seed, "embedding"), other(seed, "embedding")))
    mean = a.mean(0) / np.linalg.norm(a.mean(0))
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    want = (1 - (a * b).sum(1)).sum() / (1 - a @ mean).sum()
    assert measured([a], [b], "embedding") == pytest.approx(want, rel=1e-5)


@FEW
@given(seed=SEEDS)
def test_the_whole_is_the_mean_of_its_outputs_and_each_says_its_kind(seed: int) -> None:
    dense = [{kind: drawn(seed, kind)[i] for kind in KINDS} for i in range(2)]
    have = [{kind: other(seed, kind)[i] for kind in KINDS} for i in range(2)]
    reference = Reference(dense, {"logits": "logits"})
    found = reference.per_output(have)
    assert {name: lost.kind for name, lost in found.items()} == {kind: kind for kind in KINDS}
    assert reference.divergence(have) == pytest.approx(np.mean([lost.share for lost in found.values()]))
    for kind, lost in found.items():
        assert lost.share == pytest.approx(measured([d[kind] for d in dense], [h[kind] for h in have], kind))


# Faults planted, each noticed by a law

FAULTS: Mapping[str, tuple[str, Callable]] = {
    "softmax forgotten": ("logits", lambda m: replace(m, view=lambda x: x.astype(float))),
    "lengths compared": ("embedding", lambda m: replace(m, view=lambda x: x.astype(float))),
    "KL the other way round": ("distribution", lambda m: replace(m, error=lambda a, b: m.error(b, a))),
    "the mean of logits": ("logits", lambda m: replace(m, constant=lambda v, n: sum(x.sum(0) for x in v)[None] / n)),
    "a sign lost": ("relative", lambda m: replace(m, error=lambda a, b: float((a - b).sum()))),
    "the last row left out": ("relative", lambda m: replace(m, error=lambda a, b: m.error(a[:-1], (b + 0 * a)[:-1]))),
    "probabilities not logs": ("distribution", lambda m: replace(m, view=lambda x: x.astype(float))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_breaks_a_law(fault: str, monkeypatch) -> None:
    kind, plant = FAULTS[fault]
    monkeypatch.setattr(module, "_MEASURES", {**module._MEASURES, kind: plant(module._MEASURES[kind])})
    assert not all(law(seed, kind, measured) for law in LAWS for seed in range(5))


# Where there is little to go by


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_row_is_judged_by_degrees(kind: str) -> None:
    """It is its own mean, so it cannot vary; what counts then is a row that says nothing."""
    dense, far = [drawn(0, kind)[0][:1]], [other(0, kind)[0][:1]]
    near = [0.99 * dense[0] + 0.01 * far[0]]
    assert measured(dense, dense, kind) == 0 < measured(dense, near, kind) < 0.01 < measured(dense, far, kind) < np.inf


def test_an_output_of_zeros_is_kept_or_lost() -> None:
    zeros = [np.zeros((2, 3), np.float32)]
    assert measured(zeros, zeros, "relative") == 0 and measured(zeros, [zeros[0] + 1], "relative") == 1


def test_rows_of_several_lengths_and_empty_outputs() -> None:
    uneven = [np.random.default_rng(i).normal(size=(2, 3 + i)).astype(np.float32) for i in range(3)]
    far = [-a for a in uneven]
    for kind in ("relative", "logits", "embedding"):
        assert measured(uneven, uneven, kind) == 0 < measured(uneven, far, kind) < np.inf
    empty = [np.zeros((0, 4), np.float32), np.zeros((3, 0), np.float32)]
    assert measured(empty, empty, "relative") == 0
    assert measured([np.float32(2.0), np.float32(3.0)], [np.float32(2.0), np.float32(2.5)], "relative") == 0.5


def test_huge_numbers_do_not_overflow_into_a_number() -> None:
    dense, have = [np.array([[1e200, -1e200], [0.0, 1e200]])], [np.array([[-1e200, 1e200], [0.0, 1e200]])]
    assert measured(dense, have, "relative") == np.inf
    assert measured(dense, have, "embedding") > 0.5 and measured(dense, dense, "embedding") == 0
    scores = [np.array([[1e5, 0.0], [0.0, 1e5]], np.float32)]
    assert measured(scores, scores, "logits") == 0 and np.isfinite(measured(scores, [-scores[0]], "logits"))


def test_text_is_not_judged_and_text_alone_is_an_error() -> None:
    words = np.array(["a", "b"], dtype=object)
    dense = [{"y": np.ones((1, 3), np.float32), "word": words}]
    assert Reference(dense).kinds == {"y": "relative"}
    with pytest.raises(ModelError, match="no output of the model is an array of numbers"):
        Reference([{"word": words}])


# What an output is

SCORES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32) * 3
UNIT = SCORES / np.linalg.norm(SCORES, axis=1, keepdims=True)


@pytest.mark.parametrize(("arrays", "kind"), [
    ([softmax(SCORES, axis=-1)], "distribution"),
    ([softmax(SCORES, axis=-1), SCORES], "relative"),  # only some rows
    ([np.eye(3, dtype=np.float32)], "distribution"),  # of unit length, too
    ([log_softmax(SCORES, axis=-1)], "logits"),
    ([UNIT, -UNIT], "embedding"),
    ([UNIT * 1.01], "relative"),
    ([SCORES], "relative"),  # logits, coordinates or features: numbers do not tell
    ([np.arange(12).reshape(3, 4)], "relative"),
    ([np.ones((3, 1), np.float32)], "relative"),
    ([np.float32(1.0)], "relative"),
    ([softmax(SCORES, axis=-1), softmax(SCORES[:, :3], axis=-1)], "relative"),  # rows of several lengths
    ([np.where(SCORES > 1, np.nan, UNIT)], "relative"),
], ids=str)  # fmt: skip
def test_numbers_tell_what_an_output_is_or_nothing_does(arrays: list[np.ndarray], kind: str) -> None:
    outputs = [{"y": a} for a in arrays]
    assert kind_of("y", outputs) == kind_of("y", outputs, "auto") == Reference(outputs).kinds["y"] == kind


def test_what_the_user_says_has_the_last_word() -> None:
    outputs = [{"y": softmax(SCORES, axis=-1)}]
    assert [kind_of("y", outputs, kind) for kind in KINDS] == list(KINDS)


@pytest.mark.parametrize(("array", "hint", "what", "fix"), [
    (SCORES, "logit", "there is no kind of output 'logit'", "did you mean 'logits'"),
    (SCORES, "zzz", "there is no kind of output 'zzz'", "one of auto, distribution, logits"),
    (SCORES, "distribution", "its rows are not positive numbers that sum to 1", "did you mean y=logits"),
    (np.arange(6).reshape(2, 3), "logits", "no rows of floating-point numbers", "leave it to auto"),
    (np.ones((4, 1), np.float32), "embedding", "no rows of floating-point numbers", "two entries or more"),
])  # fmt: skip
def test_a_kind_that_an_output_cannot_be_is_an_error(array, hint: str, what: str, fix: str) -> None:
    with pytest.raises(UsageError) as error:
        kind_of("y", [{"y": array}], hint)
    assert what in error.value.what and fix in error.value.fix and f"--output y={hint}" in error.value.at


HEAD = "logits = MatMul(x, w)\n"


@pytest.mark.parametrize(("text", "opset", "kinds"), [
    (HEAD + "p = Softmax(logits)", 18, {"logits": "logits"}),
    (HEAD + "p = LogSoftmax<axis=1>(logits)", 18, {"logits": "logits"}),
    (HEAD + "p = Softmax<axis=0>(logits)", 18, {}),
    (HEAD + "p = Softmax(logits)", 11, {"logits": "logits"}),  # axis 1 then, the last of two
    (HEAD + "p = Relu(logits)", 18, {}),
], ids=str)  # fmt: skip
def test_the_graph_tells_logits_by_the_softmax_they_feed(text: str, opset: int, kinds: dict[str, str]) -> None:
    model = model_of(text, {"x": (4, 5)}, {"w": (5, 6)}, ("logits", "p"), opset)
    model.graph.outputs[0].shape = ir.Shape([4, 6])
    dense = [run(model, {"x": SCORES[:, :5]})]
    assert named_kinds(model, dense) == kinds
    assert named_kinds(model, dense, {"logits": "relative"}) == {"logits": "relative"}
    with pytest.raises(UsageError, match="the model has no output 'logit'") as error:
        named_kinds(model, dense, {"logit": "logits"})
    assert error.value.fix == "did you mean 'logits'?"


def test_outputs_are_named_as_text() -> None:
    assert read_kinds(["a=logits", "b = auto", "c=d=relative"]) == {"a": "logits", "b": "auto", "c=d": "relative"}
    for texts, what in ((["folder"], "not an output and its kind"), (["=logits"], "not an output"),
                        (["a=b"], "no kind of output 'b'"), (["a=auto", "a=logits"], "two kinds")):  # fmt: skip
        with pytest.raises(UsageError, match=what):
            read_kinds(texts)


# Through compile


def test_an_unknown_output_or_kind_stops_a_compilation_at_once(monkeypatch, tmp_path, capsys) -> None:
    steady_widths(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(mlp().SerializeToString())
    compile_ = ["compile", "net.onnx", "--target-speedup", "1.4x", "--shape", "x=4x48", "--quiet", "--output"]
    for given_, what in (("results=logits", "the model has no output 'results'"), ("result=logit", "there is no kind"),
                         ("folder", "not an output and its kind"), ("result=distribution", "cannot be a distrib")):
        assert main([*compile_, given_]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and what in err and "fix:" in err
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_kind_that_is_given_is_what_the_compilation_goes_by(monkeypatch) -> None:
    steady_widths(monkeypatch)
    given_ = feeds(4, 48)
    results = {kind: graphprune.compile(mlp(), target_speedup=1.4, calibration=given_, outputs={"result": kind}, seed=3)
               for kind in ("logits", "relative")}  # fmt: skip
    for kind, result in results.items():
        (row,) = (m for m in result.report.quality if m.name == "output divergence")
        assert MEANING[kind] in row.meaning and 0 < row.value < 1
    values = {kind: result.report.quality[0].value for kind, result in results.items()}
    assert values["logits"] != values["relative"]
    with pytest.raises(GraphpruneError, match="no output 'logits'"):
        graphprune.compile(mlp(), target_speedup=1.4, calibration=given_, outputs={"logits": "logits"})
