"""Laws of pruning on random small networks over the whole operator table, and tests that broken rules are found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from graphprune.dims import Prod
from graphprune.rules import TABLE
from graphprune.rules.base import Op, Rule, Types
from tests.fuzz.files import REGRESSIONS, SUFFIX, read, replay, write
from tests.fuzz.laws import Broken, examine
from tests.fuzz.programs import SLICES, Program, build, samples_of
from tests.fuzz.samples import SAMPLES, probe
from tests.fuzz.search import CASES, Finding, Statistics, drawn, operators, search
from tests.fuzz.steps import STEPS

CHUNKS = 10
FILES = sorted(REGRESSIONS.glob(f"*{SUFFIX}"))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_pruning_random_networks_keeps_the_laws(chunk: int, record_property: Callable) -> None:
    statistics = Statistics()
    for seed in range(chunk, SLICES, CHUNKS):
        finding = search(seed, statistics)
        if finding is None:
            continue
        path = Path(tempfile.mkdtemp(prefix="graphprune-")) / f"seed_{seed}{SUFFIX}"
        write(finding, path)
        pytest.fail(f"{finding.what}\n{finding.program}\nwritten to {path}; it belongs into {REGRESSIONS}")
    record_property("statistics", str(statistics))
    shown = statistics.verdicts
    assert statistics.cases >= 0.95 * CASES * SLICES / CHUNKS
    assert shown["vacuous"] < 0.08 * shown.total(), "removal seldom shows"  # a dead network counts a dozen times
    assert statistics.unstable < 0.02 * statistics.cases
    assert statistics.refused < 0.06 * statistics.cases
    assert statistics.idle < 0.05 * statistics.cases
    assert statistics.ragged


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_broke_a_law_once_does_not_again(path: Path) -> None:
    assert replay(path).checks


def fit(key: tuple[str, str, int]) -> bool:
    return probe(key, SAMPLES[key].opset) is not None


UNFIT = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
         "NonMaxSuppression"}  # fmt: skip
"""Operators whose numbers are random, or whose shape only the data tells: there is nothing to compare."""


def test_every_sample_can_be_a_step_unless_it_is_unfit() -> None:
    assert {op for domain, op, i in SAMPLES if not fit((domain, op, i))} == UNFIT
    reached = set()
    for key in SAMPLES:
        if fit(key):
            reached |= operators(build(Program(steps=((key, ()),))))
    assert {key for key in TABLE if key not in reached} <= {("", op) for op in UNFIT}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("numbers", [(), (1, 1, 1, 1), (2, 5, 3, 1, 4)])
def test_every_step_makes_a_network_from_any_value(name: str, numbers: tuple[int, ...]) -> None:
    for start in ((6,), (4, 6), (4, 2, 2), (2, 3, 2, 2)):
        model = build(Program(start=start, steps=(("linear", ()), (name, numbers))))
        assert [v.name for v in model.graph.outputs] == ["result"]


def test_the_fixed_search_draws_nearly_the_whole_table() -> None:
    seen = set()
    for seed in range(SLICES):
        for program in drawn(seed):
            seen |= operators(build(program))
    reachable = {key for key in TABLE if key[1] not in UNFIT}
    assert len(reachable & seen) >= 0.97 * len(reachable), sorted(reachable - seen)


# Planted faults


def without(rule: Rule, method: str, which: int | None = None) -> Rule:
    """The rule with its statements of one kind left out: all of them, or only number `which`."""

    def apply(op: Op, t: Types) -> None:
        said = getattr(t, method)
        count = iter(range(10**6))

        def overheard(*args: object, **options: object) -> None:
            if which is not None and next(count) != which:
                said(*args, **options)

        setattr(t, method, overheard)
        try:
            rule.apply(op, t)
        finally:
            delattr(t, method)

    return Rule(rule.op, apply, rule.samples, rule.domain)


def loose(rule: Rule) -> Rule:
    """The rule with fresh variables on all its outputs, related to nothing."""

    def apply(op: Op, t: Types) -> None:
        rule.apply(op, t)
        for y in op.outputs:
            t.fresh(y)

    return Rule(rule.op, apply, rule.samples, rule.domain)


def turned(rule: Rule) -> Rule:
    """The rule with the factors of each product the wrong way round."""

    def apply(op: Op, t: Types) -> None:
        said = t.equal
        t.equal = lambda a, b, why: said(*(Prod(x.factors[::-1]) if type(x) is Prod else x for x in (a, b)), why)
        try:
            rule.apply(op, t)
        finally:
            del t.equal

    return Rule(rule.op, apply, rule.samples, rule.domain)


FAULTS: dict[str, tuple[str, Callable[[Rule], Rule]]] = {
    "Add does not make its operands equal": ("Add", lambda rule: without(rule, "equal")),
    "MatMul does not make what it sums over equal": ("MatMul", lambda rule: without(rule, "equal", 0)),
    "ReduceSum does not say that it sums": ("ReduceSum", lambda rule: without(rule, "contract")),
    "Conv does not tie its bias": ("Conv", lambda rule: without(rule, "equal", 1)),
    "Conv does not renew its number of groups": ("Conv", lambda rule: without(rule, "patch")),
    "Conv takes filters for groups": ("Conv", turned),
    "LayerNormalization forgets that it is a statistic": ("LayerNormalization", lambda rule: without(rule, "inexact")),
    "Softmax forgets that it is a statistic": ("Softmax", lambda rule: without(rule, "inexact")),
    "ReduceMax forgets that it is a statistic": ("ReduceMax", lambda rule: without(rule, "inexact")),
    "Reshape does not renew its shape": ("Reshape", lambda rule: without(rule, "patch")),
    "Slice does not renew its bounds": ("Slice", lambda rule: without(rule, "patch")),
    "Split does not renew its sizes": ("Split", lambda rule: without(rule, "patch")),
    "CumSum does not freeze": ("CumSum", lambda rule: without(rule, "freeze")),
    "Sigmoid gives channels that have nothing to do with its own": ("Sigmoid", loose),
}
"""What is wrong, the operator, and the rule that has it wrong."""


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> str:
    op, wrong = FAULTS[fault]
    monkeypatch.setitem(TABLE, ("", op), wrong(TABLE["", op]))
    return op


def faulty(op: str, *, shrink: bool = True) -> Finding:
    """What is found among a few hundred networks that an operator is drawn for."""
    seeds = [seed for seed in range(SLICES) if any(key[1] == op for key in samples_of(seed))]
    found = (search(seed, n_cases=100, shrink=shrink) for seed in seeds[:16])
    return next(finding for finding in found if finding is not None)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rule_is_found_within_a_few_hundred_networks(fault: str, monkeypatch) -> None:
    op = plant(monkeypatch, fault)
    program = faulty(op, shrink=False).program
    monkeypatch.undo()
    examine(build(program), program.seed, fold=program.fold, alone=program.alone)


@pytest.mark.parametrize("fault", ["Add does not make its operands equal", "Conv does not tie its bias"])
def test_what_is_found_shrinks_to_a_few_nodes_of_text(fault: str, monkeypatch, tmp_path: Path) -> None:
    op = plant(monkeypatch, fault)
    finding = faulty(op)
    nodes = [node.op_type for node in build(finding.program).graph if node.op_type != "Constant"]
    assert op in nodes and len(nodes) <= 8
    path = tmp_path / f"fault{SUFFIX}"
    write(finding, path)
    assert [node.op_type for node in read(path).model.graph if node.op_type != "Constant"] == nodes
    with pytest.raises(Broken):
        replay(path)
    monkeypatch.undo()
    replay(path)
