"""The operator table drives its own tests: each sample is typed, every group found is pruned and certified."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from graphprune.canonicalise import canonicalise
from graphprune.dims import Dim, leaves
from graphprune.groups import Analysis
from graphprune.infer import MISFIT, infer
from graphprune.rules import FAMILIES, TABLE, Rule, Sample
from graphprune.trace import trace
from tests.graphs import certified, failures, model_of, run, sample_model, sizes, typed

SAMPLES = [
    pytest.param(rule, sample, id=f"{rule.domain}{rule.op}-{i}")
    for rule in TABLE.values() for i, sample in enumerate(rule.samples)
]  # fmt: skip


@pytest.mark.parametrize(("rule", "sample"), SAMPLES)
def test_pruning_a_sample_equals_zeroing_its_readers(rule: Rule, sample: Sample) -> None:
    model, feed = sample_model(sample)
    analysis = typed(model, feed, inexact=True)
    assert not [r for r in _texts(analysis) if MISFIT in r or r.startswith("no rule")]
    assert sizes(analysis) == (sorted(sample.groups), sorted(sample.inexact))
    checks = certified(analysis, [feed])
    assert not failures(checks)
    assert {c.verdict for c in checks} <= {"exact"} or _hides_differences(sample)


def _texts(analysis: Analysis) -> set[str]:
    return {d.frozen.text for axes in analysis.types.axes.values() for t in axes for d in leaves(t) if d.frozen}


def _hides_differences(sample: Sample) -> bool:
    # Predicates and ranks are often the same whatever the channels: removal shows no effect, and that is all right.
    return any(word in sample.text for word in ("Is", "Cast", "Sign", "Arg", "Not"))


@pytest.mark.parametrize(("rule", "sample"), SAMPLES)
def test_every_value_has_a_type_of_its_real_shape(rule: Rule, sample: Sample) -> None:
    model, feed = sample_model(sample)
    model = canonicalise(model)
    traced = trace(model, feed, run)
    types = infer(model, traced)
    assert {name: tuple(a.size for a in axes) for name, axes in types.axes.items()} == dict(traced.shapes)


def test_every_rule_has_a_sample_that_uses_it() -> None:
    idle = {
        (rule.domain, rule.op) for rule in TABLE.values()
        if not any(re.search(rf"\b{rule.op}[(<]", sample.text) for sample in rule.samples)
    }  # fmt: skip
    assert idle == set()


def test_no_operator_is_in_two_families() -> None:
    assert len(TABLE) == sum(len(family.RULES) for family in FAMILIES)


def test_every_rule_names_an_operator_that_exists() -> None:
    onnx_ops = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    runtime_only = {"SimplifiedLayerNormalization"}  # in ONNX Runtime's copy of the standard domain
    assert {op for domain, op in TABLE if domain == ""} - onnx_ops == runtime_only


# What no rule covers


def reasons(text: str, x: tuple[int, ...] = (2, 6, 4), *, fold: bool = True, **sample: object) -> set[str]:
    """Why the channels of `x` are frozen: the reasons on the weight that makes them; nothing if they are free."""
    model, feed = sample_model(Sample(text, x, **sample))
    analysis = typed(model, feed, fold=fold)
    assert not failures(certified(analysis, [feed]))
    return {str(d.frozen) for d in _leaves(analysis, "w_in", 1) if d.frozen}


def _leaves(analysis: Analysis, name: str, axis: int) -> list[Dim]:
    return list(leaves(analysis.types.axes[name][axis]))


def test_an_operator_without_a_rule_freezes_with_its_name() -> None:
    (reason,) = reasons("s = SplitToSequence<axis=2>(x)\ni = Constant<value_int=1>()\ny = SequenceAt(s, i)")
    assert reason.startswith("no rule for operator SplitToSequence at ")


def test_an_operator_of_another_domain_is_not_taken_for_its_namesake() -> None:
    (reason,) = reasons("y = com.microsoft.Pad(x, p)", weights={"p": np.array([0, 0, 0, 0, 0, 1])})
    assert reason.startswith("no rule for operator com.microsoft.Pad at ")


IF = """m = ReduceMax<keepdims=0>(x)
zero = Constant<value_float=0.0>()
c = Greater(m, zero)
y = If (c) <
  then_branch = yes () => (float[2,6,4] p) {{ p = {then}(x) }},
  else_branch = no () => (float[2,6,4] q) {{ q = Neg(x) }}
>"""


def test_what_the_body_of_an_if_captures_freezes() -> None:
    (reason,) = reasons(IF.format(then="Relu"))
    assert reason.startswith("control flow in If at ")


def test_what_the_body_of_a_loop_captures_freezes() -> None:
    (reason,) = reasons(
        """n = Constant<value_int=3>()
start = Relu(x)
y = Loop (n, b, start) <
  body = step (int64 i, bool go, float[2,6,4] s) => (bool keep, float[2,6,4] t) { keep = Identity(go)
    t = Add(s, x) }
>""",
        weights={"b": np.array(True)},
    )
    assert reason.startswith("control flow in Loop at ")


# Sizes used as numbers

COUNT = "i = Constant<value_int=1>()\ns = Shape(x)\nc = Gather(s, i)\n"


def test_a_size_used_as_a_number_freezes_its_axis() -> None:
    (reason,) = reasons(f"{COUNT}f = Cast<to=1>(c)\nr = Sqrt(f)\ny = Div(x, r)", fold=False)
    assert reason.startswith("its size is used as a number at ")


def test_a_size_used_as_a_number_is_a_constant_where_it_is_folded() -> None:
    assert reasons(f"{COUNT}f = Cast<to=1>(c)\nr = Sqrt(f)\ny = Div(x, r)") == set()


@pytest.mark.parametrize(
    "text",
    [
        f"{COUNT}l = Constant<value_int=3>()\nm = Add(c, l)\nf = Cast<to=1>(m)\ny = Mul(x, f)",
        f"{COUNT}o = Constant<value_int=1>()\nz = Constant<value_int=0>()\nr = Range(z, c, o)\nq = Cast<to=1>(r)\n"
        "t = ReduceSum(q)\ny = Mul(x, t)",
        f"{COUNT}g = Constant<value_ints=[0]>()\nk0 = Unsqueeze(c, g)\ntwo = Constant<value_ints=[5]>()\n"
        "k = Sub(k0, two)\nv, j = TopK(x, k)\ny = ReduceMax<keepdims=1>(v, g)",
        "n = Size(x)\nf = Cast<to=1>(n)\ny = Mul(x, f)",
        f"{COUNT}g = Constant<value_ints=[0]>()\ne = Unsqueeze(c, g)\nq = Constant<value_ints=[2]>()\n"
        "y = Slice(x, g, e, q)",
    ],
    ids=["sum", "range", "top k", "size", "slice of another axis"],
)
def test_a_size_cannot_escape_unseen(text: str) -> None:
    assert all("size is used as a number" in r for r in reasons(text, fold=False))
    assert reasons(text, fold=False)


def test_a_size_that_is_an_output_of_the_model_freezes_its_axis() -> None:
    model, feed = sample_model(Sample(f"{COUNT}y = Relu(x)", (2, 6, 4)))
    model.graph.outputs.append(next(n.outputs[0] for n in model.graph if n.op_type == "Gather"))
    analysis = typed(model, feed, fold=False)
    assert {str(d.frozen) for d in _leaves(analysis, "w_in", 1)} == {"its size is graph output c"}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("s = Shape(x)\ny = Reshape(x, s)", [6]),
        # A shape computed from other shapes: split into heads and merged again.
        (f"{COUNT}g = Constant<value_ints=[0]>()\nh = Constant<value_int=2>()\nd = Div(c, h)\nu = Unsqueeze(d, g)\n"
         "n = Constant<value_ints=[2,2]>()\nfour = Constant<value_ints=[4]>()\nt = Concat<axis=0>(n, u, four)\n"
         "r = Reshape(x, t)\np = Transpose<perm=[0,2,1,3]>(r)\nm = Constant<value_ints=[2,-1,4]>()\ny = Reshape(p, m)",
         [2, 3]),
        # Zeros as large as x.
        ("s = Shape(x)\nz = ConstantOfShape(s)\ny = Add(x, z)", [6]),
        ("s = Shape(x)\none = Constant<value_float=2.0>()\ne = Expand(one, s)\ny = Mul(x, e)", [6]),
        # Half of the channels, found at run time.
        (f"{COUNT}h = Constant<value_int=2>()\nd = Div(c, h)\ng = Constant<value_ints=[0]>()\nu = Unsqueeze(d, g)\n"
         "k = Concat<axis=0>(u, u)\na, b = Split<axis=1>(x, k)\ny = Mul(a, b)", [3]),
    ],
    ids=["same", "heads", "zeros", "ones", "halves"],
)  # fmt: skip
def test_a_size_used_as_a_shape_follows_its_axis(text: str, groups: list[int]) -> None:
    model, feed = sample_model(Sample(text, (2, 6, 4)))
    analysis = typed(model, feed, fold=False)
    assert sizes(analysis)[0] == groups
    assert not failures(certified(analysis, [feed]))


def test_a_shape_that_mixes_a_dynamic_size_with_channels_freezes_them() -> None:
    text = "x = MatMul(x0, w_in)\nn = Size(x)\nm = Constant<value_ints=[1]>()\ng = Constant<value_ints=[0]>()\n" \
           "u = Unsqueeze(n, g)\ns = Concat<axis=0>(u, m)\nresult = Reshape(x, s)"
    model = model_of(text, {"x0": ("batch", 5)}, {"w_in": (5, 6)})
    analysis = typed(model, {"x0": np.ones((3, 5), np.float32)}, fold=False)
    assert all(d.frozen for d in _leaves(analysis, "w_in", 1))
