"""The solver against brute force: every assignment of a small instance is tried."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.cost import CostModel, Factor, Monomial, Term
from graphprune.cost_model import Presence
from graphprune.errors import InfeasibleTarget
from graphprune.search import curve, improve, measure_curves, probe_levels
from graphprune.sites import Site
from graphprune.solver import Problem, fastest_levels, solve

laws = settings(derandomize=True, deadline=None, max_examples=60, database=None)
SITES = "abcd"


def cost_model(terms: tuple[Term, ...], levels, overhead_ms: float = 0.0) -> CostModel:
    full = {s: v[-1] for s, v in levels.items()}
    dense = overhead_ms + sum(t.ms(full) for t in terms)
    return CostModel(terms, overhead_ms, float(dense), 0.01, {s: v[0] for s, v in levels.items()}, full, "test")


def term(name: str, coefficient: float, *factors: Factor) -> Term:
    groups = tuple(sorted({f.group for f in factors}))
    return Term(name, "Conv", groups, (Monomial(coefficient, factors),))


@st.composite
def instances(draw):
    """Levels, falling losses, and a cost of fixed, single and pair terms (rounded up to steps, some terms negative in
    effect: what only small widths pay), some kernels twice over the same pair."""
    sites = SITES[: draw(st.integers(1, 4))]
    levels = {s: tuple(sorted(draw(st.sets(st.integers(1, 32), min_size=1, max_size=4)))) for s in sites}
    losses = {}
    for s in sites:
        steps = draw(st.lists(st.floats(0, 1), min_size=len(levels[s]) - 1, max_size=len(levels[s]) - 1))
        losses[s] = np.concatenate([np.cumsum(steps)[::-1], [0.0]])
    terms = [term("fixed", draw(st.floats(0, 20)))]
    for i in range(draw(st.integers(1, 6))):
        groups = draw(st.lists(st.sampled_from(sites), min_size=1, max_size=2))
        step, kind = draw(st.sampled_from([1, 8, 16])), draw(st.sampled_from(["up", "block", "ragged", "small"]))
        factors = [Factor(g, step=step, kind=kind if j == 0 else "up") for j, g in enumerate(groups)]
        terms.append(term(f"k{i % 4}", draw(st.floats(0.01, 1)), *factors))
    cost = cost_model(tuple(terms), levels, draw(st.floats(0, 5)))
    return levels, losses, cost


def assignments(levels):
    for chosen in product(*(range(len(v)) for v in levels.values())):
        yield dict(zip(levels, chosen, strict=True))


def best_of(levels, losses, cost, budget_ms: float) -> float | None:
    """The least loss over all assignments within the budget."""
    found = [sum(float(losses[s][i]) for s, i in at.items()) for at in assignments(levels)
             if cost.predict({s: levels[s][i] for s, i in at.items()}).ms <= budget_ms]  # fmt: skip
    return min(found, default=None)


def loss_of(levels, losses, chosen) -> float:
    return sum(float(losses[s][levels[s].index(v)]) for s, v in chosen.items())


@laws
@given(instances(), st.floats(0.05, 1.1))
def test_the_answer_holds_the_budget_at_the_least_loss(instance, share: float) -> None:
    levels, losses, cost = instance
    budget_ms = share * cost.dense_ms
    least = best_of(levels, losses, cost, budget_ms)
    try:
        chosen = solve(levels, losses, cost, budget_ms)
    except InfeasibleTarget as error:
        # Said of the fastest levels found, one site at a time: exact unless small widths cost more than large ones.
        fastest = cost.predict(fastest_levels(levels, cost)).ms
        assert fastest > budget_ms
        assert error.best == pytest.approx(cost.dense_ms / fastest)
        return
    assert least is not None
    assert list(chosen) == list(levels) and all(v in levels[s] for s, v in chosen.items())
    assert cost.predict(chosen).ms <= budget_ms * (1 + 1e-6) + 1e-9
    slack = 2e-3 * max(least, 1e-9) + 1e-6 * max(float(np.max(np.concatenate(list(losses.values())))), 1e-9)
    assert loss_of(levels, losses, chosen) <= least + slack


@laws
@given(instances())
def test_the_dense_time_buys_the_dense_model(instance) -> None:
    levels, losses, cost = instance
    chosen = solve(levels, losses, cost, cost.dense_ms * 1.000001)
    assert loss_of(levels, losses, chosen) <= 1e-5


@laws
@given(instances(), st.floats(0.2, 0.9))
def test_the_answer_does_not_depend_on_the_unit_of_loss(instance, share: float) -> None:
    levels, losses, cost = instance
    try:
        chosen = solve(levels, losses, cost, share * cost.dense_ms)
    except InfeasibleTarget:
        return
    tiny = solve(levels, {s: 1e-9 * v for s, v in losses.items()}, cost, share * cost.dense_ms)
    assert loss_of(levels, losses, tiny) == pytest.approx(loss_of(levels, losses, chosen), rel=5e-3, abs=1e-5)


@laws
@given(instances())
def test_the_knownare_within_reach_of_brute_force(instance) -> None:
    """One site at a time finds the fastest wherever time rises with every width."""
    levels, _, cost = instance
    chosen = fastest_levels(levels, cost)
    assert all(v in levels[s] for s, v in chosen.items())
    if all(f.kind == "up" for t in cost.kernels for m in t.monomials for f in m.factors):
        fastest = min(cost.predict({s: levels[s][i] for s, i in at.items()}).ms for at in assignments(levels))
        assert cost.predict(chosen).ms == pytest.approx(fastest)
    assert cost.predict(chosen).ms <= cost.predict({s: v[0] for s, v in levels.items()}).ms * (1 + 1e-9)


def test_a_width_that_is_slower_than_a_larger_one_is_not_the_fastest() -> None:
    levels = {"a": (4, 16, 32)}
    terms = (term("k", 1.0, Factor("a")), term("k", 100.0, Factor("a", step=16, kind="small")))
    cost = cost_model(terms, levels)
    assert fastest_levels(levels, cost) == {"a": 16}
    assert solve(levels, {"a": [3.0, 2.0, 0.0]}, cost, 20.0) == {"a": 16}


def test_a_pair_is_priced_as_a_pair() -> None:
    """a x b: narrowing either halves the time, so the cheaper of the two goes; a separable price would take both."""
    levels = {"a": (8, 16), "b": (8, 16)}
    cost = cost_model((term("k", 1 / 256, Factor("a"), Factor("b")),), levels)
    assert cost.dense_ms == pytest.approx(1.0)
    assert solve(levels, {"a": [0.3, 0.0], "b": [0.2, 0.0]}, cost, 0.5) == {"a": 16, "b": 8}
    assert solve(levels, {"a": [0.3, 0.0], "b": [0.2, 0.0]}, cost, 0.25) == {"a": 8, "b": 8}
    with pytest.raises(InfeasibleTarget) as error:
        solve(levels, {"a": [0.3, 0.0], "b": [0.2, 0.0]}, cost, 0.2)
    assert error.value.best == pytest.approx(4.0)


def test_a_square_of_one_width_is_a_single_term() -> None:
    levels = {"a": (4, 8, 16)}
    cost = cost_model((term("k", 1 / 256, Factor("a"), Factor("a")),), levels)
    assert solve(levels, {"a": [2.0, 1.0, 0.0]}, cost, 0.3) == {"a": 8}


def test_out_of_reach_says_the_most_there_is() -> None:
    levels = {"a": (8, 16)}
    cost = cost_model((term("fixed", 9.0), term("k", 1 / 16, Factor("a"))), levels)
    with pytest.raises(InfeasibleTarget, match=r"out of reach: the least predicted is 9\.5 ms") as error:
        solve(levels, {"a": [1.0, 0.0]}, cost, 5.0)
    assert error.value.best == pytest.approx(10 / 9.5) and error.value.exit_code == 4


# Alternatives, kernels that come and go, terms over many sites

SLIGHT = 0.03
"""Of the dense time: what simplifying the terms that hardly matter may cost all in all."""


@st.composite
def joint_instances(draw, most_levels: int = 4):
    """Sizes and alternatives in any order; kernels that are there by rules over up to four sites, or cost by products
    of widths; losses of alternatives in no order. Levels, losses, cost, and which sites are sizes."""
    sites = draw(st.permutations(list(SITES)))[: draw(st.integers(2, 4))]
    ordered = {s: draw(st.booleans()) for s in sites}
    levels = {s: tuple(sorted(draw(st.sets(st.integers(0 if not ordered[s] else 1, 32), min_size=2,
                                           max_size=most_levels)))) for s in sites}  # fmt: skip
    losses = {}
    for s in sites:
        n = len(levels[s]) - 1
        drawn = draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
        losses[s] = np.array([*(np.cumsum(drawn)[::-1] if ordered[s] else drawn), 0.0])

    def condition(site: str):
        some = draw(st.sets(st.sampled_from(levels[site]), min_size=1, max_size=len(levels[site]) - 1))
        return site, tuple(sorted(some))

    terms = [term("fixed", draw(st.floats(0, 5)))]
    for i in range(draw(st.integers(2, 6))):
        own = draw(st.permutations(sites))
        n = draw(st.integers(1, len(sites)))
        cut = draw(st.integers(0, n))
        presence = Presence(tuple(condition(s) for s in own[:cut]), tuple(condition(s) for s in own[cut:n]),
                            draw(st.booleans()))  # fmt: skip
        widths = [s for s in own if ordered[s]][: draw(st.integers(0, 2))]
        groups = tuple(sorted({*widths, *presence.groups}))
        factors = tuple(Factor(s) for s in widths)
        terms.append(Term(f"k{i}", "Conv", groups, (Monomial(draw(st.floats(0.1, 2)), factors),), presence))
    return levels, losses, cost_model(tuple(terms), levels), ordered


def fastest_of(levels, cost) -> float:
    return min(cost.predict({s: levels[s][i] for s, i in at.items()}).ms for at in assignments(levels))


@laws
@given(joint_instances(), st.floats(0.05, 1.2))
def test_with_alternatives_and_many_sites_the_answer_is_that_of_brute_force(instance, share: float) -> None:
    levels, losses, cost, ordered = instance
    fastest = fastest_of(levels, cost)
    budget_ms = fastest + share * max(cost.dense_ms - fastest, 0.1 * cost.dense_ms)
    problem = Problem(levels, cost, ordered=ordered)
    try:
        chosen = problem.solve(losses, budget_ms)
    except InfeasibleTarget:  # said of the fastest that was found
        assert cost.predict(problem.fastest).ms > budget_ms
        return
    assert list(chosen) == list(levels) and all(v in levels[s] for s, v in chosen.items())
    assert cost.predict(chosen).ms <= budget_ms * (1 + 1e-6) + 1e-9
    assert problem.ms(chosen) == pytest.approx(cost.predict(chosen).ms)
    least = best_of(levels, losses, cost, budget_ms - SLIGHT * cost.dense_ms)
    if least is not None:
        assert loss_of(levels, losses, chosen) <= least * (1 + 5e-3) + 5e-3


@laws
@given(joint_instances())
def test_the_fastest_is_no_slower_than_any_alternative_taken_throughout_or_any_one_step_from_it(instance) -> None:
    levels, _, cost, ordered = instance
    fastest = Problem(levels, cost, ordered=ordered).fastest
    ms = cost.predict(fastest).ms
    for k in {k for s, v in levels.items() if not ordered[s] for k in v}:
        throughout = {s: k if k in v and not ordered[s] else v[-1] for s, v in levels.items()}
        assert ms <= cost.predict(throughout).ms + 1e-9
    for s, v in levels.items():
        assert all(ms <= cost.predict({**fastest, s: k}).ms + 1e-9 for k in v)


@laws
@given(joint_instances(most_levels=10), st.integers(10, 60), st.floats(0.1, 1))
def test_coarse_to_fine_holds_the_budget_and_never_falls_behind_the_fastest(instance, most: int, share: float) -> None:
    levels, losses, cost, ordered = instance
    known = Problem(levels, cost, ordered=ordered).fastest
    fastest = cost.predict(known).ms
    budget_ms = fastest + share * max(cost.dense_ms - fastest, 0.05 * cost.dense_ms)

    def answer() -> dict[str, int]:
        return Problem(levels, cost, ordered=ordered, most_variables=most).solve(losses, budget_ms)

    chosen = answer()
    assert chosen == answer()
    assert cost.predict(chosen).ms <= budget_ms * (1 + 1e-6) + 1e-9
    assert loss_of(levels, losses, chosen) <= loss_of(levels, losses, known) + 1e-9
    if cost.dense_ms <= budget_ms:
        assert loss_of(levels, losses, chosen) <= 5e-3 * max(1.0, max(float(np.max(v)) for v in losses.values()))


def test_coarse_to_fine_finds_what_all_levels_at_once_find() -> None:
    """Smooth losses and prices over many levels, as widths have: a tenth of the variables, the same answer nearly."""
    sites = [f"s{i}" for i in range(6)]
    levels = {s: tuple(range(8, 513, 8)) for s in sites}
    terms = tuple(term(f"k{i}", 1e-4 * (i + 1), Factor(a), Factor(b))
                  for i, (a, b) in enumerate(pairwise(sites)))
    cost = cost_model(terms, levels)
    losses = {s: (i + 1) * (1 - np.array(levels[s]) / 512.0) ** 2 for i, s in enumerate(sites)}
    coarse = Problem(levels, cost, most_variables=900).solve(losses, 0.5 * cost.dense_ms)
    exact = Problem(levels, cost, most_variables=10**6).solve(losses, 0.5 * cost.dense_ms)
    assert cost.predict(coarse).ms <= 0.5 * cost.dense_ms
    assert loss_of(levels, losses, coarse) <= 1.03 * loss_of(levels, losses, exact)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_what_pays_only_if_all_neighbours_do_it_is_found(n: int) -> None:
    """Each node in 8 bits saves less than the conversions beside it cost; together they need none. The alternatives of
    two sites have their numbers in common, not their places."""
    levels = {f"s{i}": (2, 4) if i % 2 else (0, 1, 2, 3, 4) for i in range(n)}
    terms = [term("fixed", 2.0)]
    for i in range(n):
        terms.append(Term(f"n{i}", "Conv", (f"s{i}",), (Monomial(1.0),), Presence(((f"s{i}", (0, 1, 3, 4)),))))
        terms.append(Term(f"q{i}", "QLinearConv", (f"s{i}",), (Monomial(0.4),), Presence(((f"s{i}", (2,)),))))
    for i in range(n - 1):
        a, b = (f"s{i}", (2,)), (f"s{i + 1}", (2,))
        for inside, outside in ((a, b), (b, a)):
            presence = Presence((inside,), (outside,))
            terms.append(Term("c", "DequantizeLinear", (a[0], b[0]), (Monomial(0.7),), presence))
    cost = cost_model(tuple(terms), levels)
    losses = {s: [*([0.05] * (len(v) - 1)), 0.0] for s, v in levels.items()}
    assert Problem(levels, cost, ordered=dict.fromkeys(levels, False)).fastest == dict.fromkeys(levels, 2)
    chosen = solve(levels, losses, cost, 2.0 + 0.4 * n + 0.01, ordered=dict.fromkeys(levels, False))
    assert chosen == dict.fromkeys(levels, 2)


def test_a_site_that_is_dropped_frees_what_only_its_kernels_cost() -> None:
    levels = {"drop": (0, 1), "w": (8, 16, 32)}
    inside = Term("branch", "Conv", ("drop", "w"), (Monomial(0.1, (Factor("w"),)),), Presence((("drop", (1,)),)))
    cost = cost_model((term("rest", 1.0), inside), levels)
    ordered = {"drop": False, "w": True}
    assert solve(levels, {"drop": [0.5, 0.0], "w": [0.9, 0.4, 0.0]}, cost, 3.0, ordered=ordered) == {"drop": 1, "w": 16}
    dropped = solve(levels, {"drop": [0.5, 0.0], "w": [0.9, 0.6, 0.0]}, cost, 3.0, ordered=ordered)
    assert dropped == {"drop": 0, "w": 32}, "no loss is taken on a width that no longer costs anything"


# Around known levels


@laws
@given(joint_instances(most_levels=8), st.floats(0, 1), st.data())
def test_around_known_levels_the_answer_holds_the_budget_and_is_no_worse_than_they_are(instance, share, data) -> None:
    levels, losses, cost, ordered = instance
    problem = Problem(levels, cost, ordered=ordered)
    fastest = problem.ms(problem.fastest)
    budget_ms = fastest + share * max(cost.dense_ms - fastest, 0.0) + 1e-6
    centre = {s: data.draw(st.sampled_from(v)) for s, v in levels.items()}
    chosen = problem.solve(losses, budget_ms, centre)
    assert chosen == Problem(levels, cost, ordered=ordered).solve(losses, budget_ms, dict(centre))
    assert list(chosen) == list(levels) and all(v in levels[s] for s, v in chosen.items())
    assert cost.predict(chosen).ms <= budget_ms * (1 + 1e-6) + 1e-9
    for known in (centre, problem.fastest):
        if problem.ms(known) <= budget_ms:
            assert loss_of(levels, losses, chosen) <= loss_of(levels, losses, known) + 1e-9
    if fastest > 0:  # all that is left in some instances are kernels that are not there
        with pytest.raises(InfeasibleTarget):
            problem.solve(losses, 0.99 * fastest, centre)


@laws
@given(instances(), st.floats(0.2, 1.1), st.data())
def test_around_levels_near_which_all_others_are_the_answer_is_that_of_brute_force(instance, share, data) -> None:
    levels, losses, cost = instance
    centre = {s: data.draw(st.sampled_from(v)) for s, v in levels.items()}
    levels = {s: v[max(0, v.index(centre[s]) - 2) : v.index(centre[s]) + 3] for s, v in levels.items()}
    losses = {s: losses[s][-len(v) :] for s, v in levels.items()}
    centre = {s: v[min(2, len(v) // 2)] for s, v in levels.items()}
    cost = cost_model(cost.kernels, levels, cost.overhead_ms)
    budget_ms = share * cost.dense_ms
    problem = Problem(levels, cost)
    if problem.ms(problem.fastest) > budget_ms:
        return
    least = best_of(levels, losses, cost, budget_ms)
    slack = 5e-3 * max(least, 1e-9) + 1e-6
    for answer in (problem.solve(losses, budget_ms, centre), problem.solve(losses, budget_ms)):
        assert loss_of(levels, losses, answer) <= least + slack


# Curves and the search around the answer


def test_probes_are_the_least_and_the_middle_never_the_full_width() -> None:
    assert probe_levels(Site("a", (8,), (0.0,))) == []
    assert probe_levels(Site("a", (8, 16), (1.0, 0.0))) == [0]
    assert probe_levels(Site("a", tuple(range(1, 10)), (1.0,) * 9)) == [0, 4]


@laws
@given(st.lists(st.floats(0, 2), min_size=2, max_size=9), st.data())
def test_a_curve_meets_its_measurements_and_never_rises(falls, data) -> None:
    prior = (*np.cumsum(falls)[::-1], 0.0)
    site = Site("a", tuple(range(1, len(prior) + 1)), prior)
    low = data.draw(st.floats(0.1, 1))
    middle = data.draw(st.floats(0, 1)) * low
    measured = dict(zip(probe_levels(site), (low, middle), strict=False))
    found = curve(site, measured)
    assert len(found) == len(prior) and found[-1] == 0
    assert (np.diff(found) <= 1e-12).all() and (found >= 0).all()
    for i, value in measured.items():
        assert found[i] == pytest.approx(value)


def each(evaluate):
    """Of many levels, one after the other."""
    return lambda candidates: (evaluate(levels) for levels in candidates)


def test_a_level_that_breaks_the_model_is_priced_out() -> None:
    site = Site("a", (1, 2, 3, 4, 5), (1.0, 0.5, 0.3, 0.1, 0.0))
    steps = []
    evaluate = each(lambda levels: float("inf") if levels["a"] == 1 else 0.1)
    curves = measure_curves([site], evaluate, lambda: steps.append(1))
    assert curves["a"][0] == 1e3 and curves["a"][2] == pytest.approx(0.1) and len(steps) == 2
    assert np.isfinite(curves["a"]).all()


@laws
@given(instances(), st.floats(0.3, 0.9), st.integers(0, 3))
def test_the_search_is_deterministic_holds_the_budget_and_never_ends_worse(instance, share: float, seed: int) -> None:
    levels, losses, cost = instance
    budget = share * cost.dense_ms

    def evaluate(chosen) -> float:  # the true loss is not the sum of the curves
        return sum(losses[s][levels[s].index(v)] ** 1.5 for s, v in chosen.items())

    def search():
        return improve(levels, losses, cost, budget, each(evaluate), n_evaluations=12, seed=seed, step=lambda: None)

    try:
        start = solve(levels, losses, cost, budget)
    except InfeasibleTarget:
        with pytest.raises(InfeasibleTarget):
            search()
        return
    found, loss = search()
    assert (found, loss) == search()
    assert loss == evaluate(found) <= evaluate(start)
    assert cost.predict(found).ms <= budget * (1 + 1e-6)


def test_what_sites_lose_together_is_found_out_and_paid_for() -> None:
    """Each of `a` and `b` loses little alone, but together they lose all: the curves cannot know, the search can."""
    levels = {s: (8, 16) for s in "abcd"}
    cost = cost_model(tuple(term(f"k{s}", 1 / 16, Factor(s)) for s in levels), levels)
    curves = {"a": [0.1, 0.0], "b": [0.1, 0.0], "c": [0.3, 0.0], "d": [0.35, 0.0]}

    def evaluate(chosen) -> float:
        together = 5.0 * (chosen["a"] == 8 and chosen["b"] == 8)
        return loss_of(levels, curves, chosen) + together

    additive = solve(levels, curves, cost, 3.0)
    assert additive == {"a": 8, "b": 8, "c": 16, "d": 16}
    found, loss = improve(levels, curves, cost, 3.0, each(evaluate), n_evaluations=16, seed=0, step=lambda: None)
    assert loss == evaluate(found) == pytest.approx(0.4) and found["c"] == 8 and found["d"] == 16


@st.composite
def planted(draw):
    """Sites of a few widths over additive times, and pairs that lose more together than each by itself."""
    n = draw(st.integers(4, 7))
    levels = {f"s{i}": (4, 8, 12, 16) for i in range(n)}
    own = draw(st.lists(st.floats(0.05, 1), min_size=n, max_size=n))
    curves = {s: own[i] * np.array([1.0, 0.5, 0.2, 0.0]) for i, s in enumerate(levels)}
    pairs = draw(st.lists(st.permutations(list(levels)).map(lambda p: tuple(p[:2])), min_size=1, max_size=3))
    cost = cost_model((term("rest", 1.0), *(term(f"k{s}", 1 / 16, Factor(s)) for s in levels)), levels)

    def evaluate(chosen) -> float:
        gone = {s: 1 - k / 16 for s, k in chosen.items()}
        return loss_of(levels, curves, chosen) + sum(8 * gone[a] * gone[b] for a, b in pairs)

    return levels, curves, cost, evaluate


@laws
@given(planted(), st.floats(0.5, 0.9), st.integers(0, 40), st.integers(0, 3))
def test_the_search_takes_the_steps_it_was_given_and_builds_no_more(instance, share, n: int, seed: int) -> None:
    levels, curves, cost, evaluate = instance
    steps, built = [], []

    def counted(chosen) -> float:
        built.append(dict(chosen))
        return evaluate(chosen)

    found, loss = improve(levels, curves, cost, share * cost.dense_ms, each(counted), n_evaluations=n, seed=seed,
                          step=lambda: steps.append(len(built)))  # fmt: skip
    assert len(steps) == n and len(built) <= max(n, 1)
    assert found in built
    assert loss == min(evaluate(c) for c in built if cost.predict(c).ms <= share * cost.dense_ms * (1 + 1e-9))


def test_what_one_part_does_alone_is_found_though_the_curves_speak_for_a_mixture() -> None:
    """Sites of one part each look bad alone and lose nothing when all are taken, as nodes in 8 bits between others."""
    levels = {f"{part}{i}": (8, 16) for part in "ab" for i in range(6)}
    cost = cost_model(tuple(term(f"k{s}", 1 / 16, Factor(s)) for s in levels), levels)
    curves = {s: np.array([0.3 if s[0] == "a" else 0.2, 0.0]) for s in levels}

    def evaluate(chosen) -> float:
        taken = [s for s in levels if chosen[s] == 8]
        if all(s[0] == "a" for s in taken):
            return 0.01 * len(taken)
        return loss_of(levels, curves, chosen)

    def search(parts):
        return improve(levels, curves, cost, 9.0, each(evaluate), n_evaluations=12, seed=0, step=lambda: None,
                       parts=parts)  # fmt: skip

    parts = [{s for s in levels if s[0] == part} for part in "ab"]
    found, loss = search(parts)
    assert loss == evaluate(found) == pytest.approx(0.06)
    assert all(found[s] == (8 if s[0] == "a" else 16) for s in levels)
    assert search([])[1] > 0.5


def test_the_search_gains_much_where_losses_do_not_add_up() -> None:
    """Over many planted instances: never worse than the additive answer, and closer to the best there is."""
    rng = np.random.default_rng(0)
    shares = []
    for seed in range(8):
        levels = {f"s{i}": (8, 16) for i in range(8)}
        curves = {s: np.array([rng.uniform(0.1, 0.3), 0.0]) for s in levels}
        pairs = [rng.choice(list(levels), 2, replace=False) for _ in range(5)]
        cost = cost_model(tuple(term(f"k{s}", 1 / 16, Factor(s)) for s in levels), levels)

        def evaluate(chosen, curves=curves, pairs=pairs, levels=levels) -> float:
            return loss_of(levels, curves, chosen) + sum(chosen[a] == chosen[b] == 8 for a, b in pairs)

        budget_ms = 6.0
        best = min(evaluate(c) for at in assignments(levels)
                   if cost.predict(c := {s: levels[s][i] for s, i in at.items()}).ms <= budget_ms)  # fmt: skip
        additive = evaluate(solve(levels, curves, cost, budget_ms))
        _, loss = improve(levels, curves, cost, budget_ms, each(evaluate), n_evaluations=32, seed=seed,
                          step=lambda: None)  # fmt: skip
        assert loss <= additive
        if additive > best + 0.05:
            shares.append((additive - loss) / (additive - best))
    assert len(shares) >= 4 and np.mean(shares) > 0.8


def test_a_search_begins_at_the_levels_it_is_given_and_changes_what_the_budget_asks_for() -> None:
    """Where the curves know nothing of what was found out before, a few evaluations must not lose it."""
    levels = {s: tuple(range(1, 17)) for s in "abcd"}
    cost = cost_model(tuple(term(f"k{s}", 1 / 16, Factor(s)) for s in levels), levels)
    curves = {s: w * (1 - np.arange(1, 17) / 16) for s, w in zip("abcd", (0.1, 0.1, 0.15, 0.15), strict=True)}
    start = {"a": 16, "b": 4, "c": 4, "d": 16}

    def evaluate(chosen) -> float:
        return loss_of(levels, curves, chosen) + 5 * (1 - chosen["a"] / 16) * (1 - chosen["b"] / 16)

    def search(budget_ms: float, start=None) -> tuple[list[dict[str, int]], float]:
        built = []
        counted = each(lambda c: built.append(c) or evaluate(c))
        _, loss = improve(levels, curves, cost, budget_ms, counted, n_evaluations=3, seed=0, step=lambda: None,
                          start=start)  # fmt: skip
        return built, loss

    at = cost.predict(start).ms
    assert search(at, start)[0][0] == start
    for budget_ms, changes in ((at - 0.12, -2), (at + 0.13, 2)):
        first = search(budget_ms, start)[0][0]
        assert sum(first[s] - start[s] for s in levels) == changes
        assert sum(abs(first[s] - start[s]) for s in levels) == 2
        assert search(budget_ms, start)[1] < search(budget_ms)[1]
