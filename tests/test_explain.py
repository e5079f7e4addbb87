"""`explain`: the root cause of every frozen axis, what it locks, one group in full, and its picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphprune
from graphprune import infer
from graphprune.causes import NO_CHANNELS, Frozen, hint_of, is_locked
from graphprune.cli import main
from graphprune.dims import Dim, Reason, freeze, mark_contracted, mark_inexact
from graphprune.errors import UsageError
from graphprune.groups import Analysis
from graphprune.layout import _apart, _crossings, _neighbours, layout
from graphprune.members import BOTH, LOOKS, MAKES, OUTSIDE, PASSES, READS, Members, collapsed, members
from graphprune.picture import html, svg
from tests.graphs import model_of, typed

PLAIN = "h = MatMul(x, w1)\nr = Relu(h)\nresult = MatMul(r, w2)"
HEADS = (
    "h = MatMul(x, w1)\ns = Constant<value_ints=[3,7,2,3]>()\np = Reshape(h, s)\nq = Transpose<perm=[0,2,1,3]>(p)\n"
    "r = Relu(q)\nb = Transpose<perm=[0,2,1,3]>(r)\nm = Constant<value_ints=[3,7,6]>()\nv = Reshape(b, m)\n"
    "result = MatMul(v, w2)"
)
WEIGHTS = {"w1": (5, 6), "w2": (6, 4)}


def analysis_of(
    text: str, inputs: Mapping[str, Sequence[int]] | None = None, weights: Mapping[str, tuple[int, ...]] | None = None,
    *, outputs: Sequence[str] = ("result",), inexact: bool = False,
) -> Analysis:  # fmt: skip
    inputs = inputs or {"x": (3, 5)}
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in inputs.items()}
    return typed(model_of(text, inputs, weights or WEIGHTS, outputs), feed, inexact=inexact)


def row_of(analysis: Analysis, reason: str) -> Frozen:
    (row,) = (row for row in analysis.frozen if row.reason == reason)
    return row


def node_of(analysis: Analysis, op: str) -> str:
    (name,) = (node.name for node in analysis.model.graph if node.op_type == op)
    return name


# The first cause, and where an axis was joined to it


def test_where_everything_shrinks_nothing_is_frozen() -> None:
    analysis = analysis_of(PLAIN)
    assert analysis.frozen == () and analysis.n_prunable == analysis.n_parameters == 54


def test_an_axis_that_flows_into_an_output_is_frozen_by_it() -> None:
    analysis = analysis_of(PLAIN, outputs=("result", "r"))
    row = row_of(analysis, "graph output")
    (axis,) = row.axes
    assert axis.cause == "graph output r" and axis.joined == () and axis.size == 6 and axis.weights == ("w1", "w2")
    assert (row.count, row.n_parameters, row.n_locked) == (1, 54, 54) and "contract" in row.hint


def test_an_axis_joined_to_that_of_an_input_says_where() -> None:
    analysis = analysis_of("h = MatMul(x, w1)\nr = Relu(h)\ns = Add(r, z)\nresult = MatMul(s, w2)",
                           {"x": (3, 5), "z": (3, 6)})  # fmt: skip
    (axis,) = row_of(analysis, "graph input").axes
    assert axis.cause == "graph input z" and axis.joined == (node_of(analysis, "Add"),)
    assert axis.example.endswith(f"joined at {node_of(analysis, 'Add')} with the axis of z")


def test_a_bias_is_no_join() -> None:
    analysis = analysis_of("h = MatMul(x, w1)\nr = Add(h, b)\nresult = MatMul(r, w2)", weights={**WEIGHTS, "b": (6,)},
                           outputs=("result", "r"))  # fmt: skip
    (axis,) = row_of(analysis, "graph output").axes
    assert axis.joined == () and axis.weights[0] == "w1"


def test_what_a_reader_makes_is_not_taken_for_what_it_reads() -> None:
    """The square weight reads and makes one axis; the way to the cause goes round it, through the sum."""
    analysis = analysis_of("h = MatMul(x, w1)\nm = MatMul(h, v)\ns = Add(h, m)\nt = Mul(s, z)\nresult = MatMul(t, w2)",
                           {"x": (3, 5), "z": (3, 6)}, {**WEIGHTS, "v": (6, 6)})  # fmt: skip
    (axis,) = row_of(analysis, "graph input").axes
    assert axis.joined[0] == node_of(analysis, "Add") and set(axis.weights) == {"w1", "v", "w2"}


def test_a_state_freezes_what_the_gates_of_an_lstm_hide() -> None:
    text = "y, h = LSTM<hidden_size=4>(x, w, r, , , h0)\nz = Squeeze(h)\nresult = MatMul(z, w2)"
    analysis = analysis_of(text, {"x": (7, 2, 5), "h0": (1, 2, 4)},
                           {"w": (1, 16, 5), "r": (1, 16, 4), "w2": (4, 3)})  # fmt: skip
    (axis,) = row_of(analysis, "graph input").axes
    assert axis.cause == "graph input h0" and axis.joined == (node_of(analysis, "LSTM"),)
    assert "gates" not in {row.reason for row in analysis.frozen}


def test_an_operator_without_a_rule_locks_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(infer.TABLE, ("", "Relu"))
    analysis = analysis_of(PLAIN)
    row = row_of(analysis, "no rule for operator Relu")
    assert row.count == 1 and row.axes[0].weights == ("w1",) and row.n_parameters == 54 and "README" in row.hint
    assert row.axes[0].cause == f"no rule for operator Relu at {node_of(analysis, 'Relu')}"


def test_a_conflict_names_its_node_and_both_sides() -> None:
    text = ("u = MatMul(x, w1)\ns = Constant<value_ints=[3,2,3]>()\np = Reshape(u, s)\nq = Transpose<perm=[0,2,1]>(p)\n"
            "m = Constant<value_ints=[3,6]>()\nv = Reshape(q, m)\nt = Add(u, v)\nresult = MatMul(t, w2)")  # fmt: skip
    analysis = analysis_of(text)
    (row,) = (row for row in analysis.frozen if row.axes)
    assert "line up" in row.reason and row.hint
    assert {axis.cause for axis in row.axes} == {
        f"{row.reason} at {node_of(analysis, 'Add')} (2 x 3 against 3 x 2)"
    }


def test_an_axis_that_is_a_statistic_is_frozen_unless_asked_for() -> None:
    text = "h = MatMul(x, w1)\nr = Softmax(h)\nresult = MatMul(r, w2)"
    assert row_of(analysis_of(text), "statistic of Softmax").n_locked == 54
    assert analysis_of(text, inexact=True).frozen == ()


def test_rows_and_groups_share_out_all_parameters() -> None:
    text = "h = MatMul(x, w1)\nc = Add(h, k)\nr = Relu(c)\na = MatMul(r, w2)\nresult = Mul(a, s)"
    analysis = analysis_of(text, weights={**WEIGHTS, "k": (), "s": (4,)})
    assert sum(row.n_parameters for row in analysis.frozen) + analysis.n_prunable == analysis.n_parameters
    assert {row.reason for row in analysis.frozen} == {NO_CHANNELS, "graph output"}
    assert all(row.count == 0 for row in analysis.frozen)


def test_weights_in_the_bodies_of_control_flow_count() -> None:
    text = """h = MatMul(x, w1)
r = Relu(h)
a = MatMul(r, w2)
n = ReduceSum<keepdims=0>(x)
zero = Constant<value_float=0.0>()
c = Greater(n, zero)
result = If (c) <
  then_branch = yes () => (float[3,4] t) { k = Constant<value = float[4] {1.,2.,3.,4.}>()
    t = Add(a, k) },
  else_branch = no () => (float[3,4] e) { e = Neg(a) }>"""
    analysis = analysis_of(text)
    row = row_of(analysis, "control flow in If")
    assert row.nodes[-1] == node_of(analysis, "If") and row.n_parameters == 4
    assert analysis.n_parameters == 54 + 4 + 1  # and the zero
    assert analysis.n_prunable == 54


@pytest.mark.parametrize(
    ("text", "node", "kind", "locked"),
    [("graph output", "y", "boundary", True), ("no rule for operator A", "n", "denied", True),
     ("spatial axis", "n", "operator", False), ("the axis of gates", "n", "operator", False),
     ("ranked", "n", "operator", True), ("axes do not line up", "n", "conflict", True)],
)  # fmt: skip
def test_positions_and_parts_are_no_channels(text: str, node: str, kind: str, locked: bool) -> None:
    d, why = Dim(6), Reason(text, node, kind)
    mark_contracted(d)
    freeze(d, why)
    assert is_locked(d) is locked
    dynamic = Dim(6)
    mark_contracted(dynamic)
    freeze(dynamic, why, dynamic=True)
    assert is_locked(dynamic) is (kind == "denied")  # the size of what nobody knows is unknown


def test_a_statistic_is_locked_and_what_nobody_sums_over_is_not() -> None:
    d = Dim(6)
    mark_inexact(d, Reason("statistic of Softmax", "n"))
    assert not is_locked(d)
    mark_contracted(d)
    assert is_locked(d)


def test_hints_are_for_the_reasons_they_are_meant_for() -> None:
    assert "contract" in hint_of("graph input") and "loop unrolled" in hint_of("control flow in Loop")
    assert "meaning" in hint_of("the axis that is looked up by index")
    assert "positions" in hint_of("the axis of positions, looked up by index")
    assert hint_of("something else") == ""


# The tables


@pytest.fixture(scope="module")
def residual() -> bytes:
    """x + MLP(norm(x)): the outer axis is inexact, the inner one exact, the last one is the output's."""
    text = ("h = MatMul(x, w0)\nn = LayerNormalization(h, g)\na = MatMul(n, w1)\nr = Relu(a)\nm = MatMul(r, w2)\n"
            "s = Add(h, m)\nt = Softmax(s)\nresult = MatMul(t, w3)")  # fmt: skip
    weights = {"w0": (5, 8), "g": (8,), "w1": (8, 12), "w2": (12, 8), "w3": (8, 4)}
    return ir.to_proto(model_of(text, {"x": ("batch", 5)}, weights)).SerializeToString()


@pytest.fixture
def path(residual: bytes, tmp_path: Path) -> str:
    (tmp_path / "net.onnx").write_bytes(residual)
    return str(tmp_path / "net.onnx")


def test_explain_tells_what_exact_groups_hold_and_what_all_do(residual: bytes) -> None:
    found = graphprune.explain(residual, measure=False)
    assert (found.n_parameters, found.exact.groups, found.every.groups) == (272, 1, 2)
    assert found.exact.parameter_share == pytest.approx(192 / 272) and found.every.parameter_share == 1
    assert {(row.size, row.exact, row.inexact.split(" at ")[0]) for row in found.groups} == {
        (12, True, ""), (8, False, "statistic of LayerNormalization")}  # fmt: skip
    assert found.total_ms is found.exact.time_share is found.groups[0].time_share is None


def test_the_command_says_that_nothing_is_frozen(path: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", path, "--no-time"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == ("1 group that could shrink, with 70.6 % of the parameters; with 1 inexact one 100.0 % of the "
                        "parameters")  # fmt: skip
    assert lines[-1].startswith("nothing is frozen: every weight")


def test_the_command_lists_causes_with_hints_and_json_has_every_axis(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = model_of(PLAIN, {"x": (3, 5)}, WEIGHTS, ("result", "r"))
    (tmp_path / "net.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    out = tmp_path / "e.json"
    assert main(["explain", str(tmp_path / "net.onnx"), "--no-time", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("graph output"))
    assert lines[at].split()[2:8] == ["1", "100.0", "%", "100.0", "%", "-"]
    assert lines[at + 1].strip() == "-> nothing: it is the contract of the model"
    (row,) = json.loads(out.read_text())["frozen"]
    assert row["axes"][0]["cause"] == "graph output r" and row["axes"][0]["weights"] == ["w1", "w2"]


# One group


def part_of(analysis: Analysis, size: int) -> tuple[Members, dict[str, str]]:
    """A group's members, and the role of each by operator."""
    (group,) = (g for g in analysis.groups.values() if g.size == size)
    part = members(analysis, group)
    return part, {node.operators[0]: node.role for node in part.nodes if node.operators}


def test_members_say_what_each_node_does() -> None:
    text = ("h = Conv(x, w1)\nr = Relu(h)\nn = ReduceMean<keepdims=1, axes=[1]>(r)\np = Conv(r, v)\n"
            "q = Add(p, r)\nt = Mul(q, n)\nresult = Conv(t, w2)")  # fmt: skip
    inputs, weights = {"x": (2, 3, 4, 4)}, {"w1": (6, 3, 1, 1), "v": (6, 6, 1, 1), "w2": (4, 6, 1, 1)}
    rng = np.random.default_rng(0)
    feed = {"x": rng.normal(size=(2, 3, 4, 4)).astype(np.float32)}
    analysis = typed(model_of(text, inputs, weights, opset=17), feed, inexact=True)
    part, _ = part_of(analysis, 6)
    roles = [(node.name if not node.operators else node.operators[0], node.role) for node in part.nodes]
    assert roles == [
        ("graph input x", OUTSIDE), ("Conv", MAKES), ("Relu", PASSES), ("ReduceMean", LOOKS), ("Conv", BOTH),
        ("Add", PASSES), ("Mul", PASSES), ("Conv", READS), ("graph output result", OUTSIDE),
    ]  # fmt: skip
    assert all(e.source < e.target for e in part.edges)
    assert {e.axis for e in part.edges} == {"axis 1", ""}  # what the mean gives away holds no channels


def test_a_weight_shows_which_factor_of_an_axis_the_group_is() -> None:
    analysis = analysis_of(HEADS, {"x": (3, 7, 5)})
    part, _ = part_of(analysis, 2)
    assert [str(w) for node in part.nodes for w in node.weights] == ["5 x ([2] x 3)", "([2] x 3) x 4"]
    assert "axis 2: [2] x 3" in {e.axis for e in part.edges}


def test_long_chains_are_drawn_as_one() -> None:
    names = [f"r{i}" for i in range(9)]
    chain = "\n".join(f"{b} = Relu({a})" for a, b in zip(["h", *names], names, strict=False))
    analysis = analysis_of(f"h = MatMul(x, w1)\n{chain}\nresult = MatMul(r8, w2)")
    part, _ = part_of(analysis, 6)
    short = collapsed(part, 5)
    assert [node.count for node in short.nodes] == [1, 1, 9, 1, 1] and short.nodes[2].operators == ("Relu",) * 9
    assert [(e.source, e.target) for e in short.edges] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert collapsed(part, 100) is part
    assert ">9 nodes<" in svg(short, "t")


def test_many_users_beside_a_group_share_a_box() -> None:
    users = "\n".join(f"u{i} = {op}(m)" for i, op in enumerate(("Neg", "Abs", "Exp", "Sin")))
    analysis = analysis_of(f"h = MatMul(x, w1)\nr = Relu(h)\nm = MatMul(r, w2)\n{users}\nresult = Sum(u0, u1, u2, u3)")
    part, _ = part_of(analysis, 6)
    assert part.nodes[-1].count == 4 and set(part.nodes[-1].operators) == {"Neg", "Abs", "Exp", "Sin"}
    assert part.edges[-1].target == len(part.nodes) - 1 and part.edges[-1].axis == ""


def test_one_group_in_full(path: str, residual: bytes, capsys: pytest.CaptureFixture) -> None:
    found = graphprune.explain(residual, measure=False)
    (name,) = (row.name for row in found.groups if row.exact)
    one = graphprune.explain_group(residual, name, measure=False)
    assert (one.group.size, one.makers, len(one.readers), one.outer) == (12, (name,), 1, ())
    assert [(w.name, str(w)) for w in one.weights] == [("w1", "8 x [12]"), ("w2", "[12] x 8")]
    assert main(["explain", path, "--group", name, "--no-time"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name} of net: 12 features, exact\n") and "8 x [12]" in out


def test_heads_may_keep_other_dimensions_each() -> None:
    model = ir.to_proto(model_of(HEADS, {"x": (3, 7, 5)}, WEIGHTS))
    rows = {row.size: row.name for row in graphprune.explain(model, measure=False).groups}
    assert graphprune.explain_group(model, rows[3], measure=False).outer == (f"2 in group {rows[2]}",)


def test_an_unknown_group_gets_the_nearest_name_or_those_around(residual: bytes) -> None:
    (name,) = (row.name for row in graphprune.explain(residual, measure=False).groups if row.exact)
    with pytest.raises(UsageError, match="there is no group") as near:
        graphprune.explain_group(residual, f"{name}x", measure=False)
    assert near.value.fix.startswith("did you mean ") and name in near.value.fix
    with pytest.raises(UsageError) as inside:
        graphprune.explain_group(residual, "w2", measure=False)
    assert inside.value.fix.startswith("it is a node or weight of ") and name in inside.value.fix


# The picture


def texts(picture: str) -> list[str]:
    """What a picture says, its hover titles left out; raises where it is not well-formed."""
    return ["".join(e.itertext()) for e in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_the_command_draws_a_group(path: str, residual: bytes, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (name,) = (row.name for row in graphprune.explain(residual, measure=False).groups if row.exact)
    out = tmp_path / "group.svg"
    assert main(["explain", path, "--group", name, "--no-time", "--picture", str(out)]) == 0
    said = texts(out.read_text())
    assert f"{name} of net: 12 features, exact" in said and {"Relu", "MatMul", "8 x [12]", "axis 1"} <= set(said)
    assert main(["explain", path, "--group", name, "--no-time", "--picture", str(out.with_suffix(".html"))]) == 0
    page = out.with_suffix(".html").read_text()
    assert page.startswith("<!doctype html>") and out.read_text() in page and "<script" not in page


@pytest.mark.parametrize(
    ("args", "message"),
    [(("--picture", "a.svg"), "a picture shows one group"),
     (("--picture", "a.png", "--group", "g"), "cannot draw a .png")],
)
def test_a_picture_that_cannot_be_drawn_is_told_at_once(
    path: str, capsys: pytest.CaptureFixture, args: Sequence[str], message: str
) -> None:
    assert main(["explain", path, *args]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}\n")


def test_hostile_names_stay_text() -> None:
    evil = '</title><script>alert("&")</script>\x1b[2J\n'
    analysis = analysis_of(PLAIN)
    for node in analysis.model.graph:
        node.name = node.name + evil
    again = typed_again(analysis)
    part = members(again, *again.groups.values())
    picture = svg(part, evil)
    assert "<script" not in picture and "\x1b" not in picture and "<script" not in html(part, evil)
    assert sum(text.endswith("\\x1b[2J\\n") for text in texts(picture)) == 1 + 3  # the title and the nodes


def typed_again(analysis: Analysis) -> Analysis:
    from graphprune.groups import analyse
    from graphprune.trace import Trace

    types = analysis.types
    analysis.model.meta.clear()
    return analyse(analysis.model, infer.infer(analysis.model, Trace(types.shapes, types.values)))


# Where things are drawn


GRAPHS = st.integers(2, 12).flatmap(lambda n: st.tuples(
    st.lists(st.tuples(st.floats(10, 90), st.floats(10, 60)), min_size=n, max_size=n),
    st.lists(st.integers(1, n - 1).flatmap(lambda b: st.tuples(st.integers(0, b - 1), st.just(b))), max_size=20),
))  # fmt: skip


@given(GRAPHS)
def test_boxes_do_not_overlap_and_arrows_point_down(graph: tuple) -> None:
    sizes, arrows = graph
    found = layout(sizes, arrows)
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
             for (x, y), (w, h) in zip(found.centres, sizes, strict=True)]  # fmt: skip
    for i, a in enumerate(boxes):
        assert min(a[:2]) >= -1e-6 and a[2] <= found.width + 1e-6 and a[3] <= found.height + 1e-6
        for b in boxes[:i]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
    for (a, b), route in zip(arrows, found.routes, strict=True):
        assert [y for _, y in route] == sorted(y for _, y in route)
        assert route[0][1] == pytest.approx(boxes[a][3]) and route[-1][1] == pytest.approx(boxes[b][1])
        assert boxes[a][0] <= route[0][0] <= boxes[a][2] and boxes[b][0] <= route[-1][0] <= boxes[b][2]


def test_arrows_that_need_not_cross_do_not() -> None:
    found = layout([(20, 20)] * 6, [(0, 5), (1, 4), (2, 3)])
    order = sorted(range(3), key=lambda i: found.centres[i])
    assert sorted((3, 4, 5), key=lambda i: found.centres[i]) == [{0: 5, 1: 4, 2: 3}[i] for i in order]


def test_crossings_are_counted() -> None:
    links = [(0, 2), (1, 3), (0, 3), (1, 2)]
    assert _crossings([[0, 1], [2, 3]], _neighbours(links)) == 1
    assert _crossings([[0, 1], [3, 2]], _neighbours(links[:2])) == 1


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="topological"):
        layout([(1, 1), (1, 1)], [(1, 0)])


@given(st.lists(st.tuples(st.floats(-500, 500), st.floats(5, 80)), min_size=1, max_size=6), st.floats(-30, 30))
def test_places_are_the_nearest_that_keep_apart(boxes: list[tuple[float, float]], by: float) -> None:
    wanted, widths = [w for w, _ in boxes], [n for _, n in boxes]
    found = _apart(wanted, widths)
    least = [(a + b) / 2 + 26 for a, b in pairwise(widths)]
    assert all(b - a >= d - 1e-6 for a, b, d in zip(found, found[1:], least, strict=False))

    def cost(x: Sequence[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(x, wanted, strict=True))

    for i in range(len(found)):  # no box, and no run of boxes at an end, is better off elsewhere
        for moved in ([*found[:i], *(x + abs(by) for x in found[i:])], [*(x - abs(by) for x in found[: i + 1]),
                                                                       *found[i + 1 :]]):  # fmt: skip
            assert cost(moved) >= cost(found) - 1e-6
