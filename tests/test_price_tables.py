"""Tables of prices: the same times as the cost model, with sites left out or with fewer tables too."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.cost_model import CostModel, Factor, Monomial, Presence, Term
from graphprune.price_tables import PriceTables

SITES = "abcde"


@st.composite
def tables_of_prices(draw) -> PriceTables:
    levels = {s: list(range(1, draw(st.integers(2, 4)) + 1)) for s in SITES}
    sets = draw(st.lists(st.permutations(SITES).flatmap(lambda p: st.integers(1, 4).map(lambda n: tuple(p[:n]))),
                         min_size=1, max_size=8, unique=True))  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    tables = {g: rng.uniform(0, 1, [len(levels[s]) for s in g]) if rng.uniform() < 0.8
              else np.full([len(levels[s]) for s in g], 0.25) for g in sets}  # fmt: skip
    return PriceTables(levels, tables, draw(st.floats(0, 1)))


def ms(priced: PriceTables, at: dict[str, int]) -> float:
    return priced.fixed_ms + sum(float(t[tuple(at[s] for s in g)]) for g, t in priced.tables.items())


def places(levels) -> list[dict[str, int]]:
    return [dict(zip(levels, at, strict=True)) for at in product(*(range(len(v)) for v in levels.values()))]


@settings(deadline=None, max_examples=40)
@given(tables_of_prices())
def test_fewest_tables_have_the_same_sums_and_none_is_over_sites_of_another(priced: PriceTables) -> None:
    few = priced.fewest()
    for at in places(priced.levels)[::3]:
        assert ms(few, at) == pytest.approx(ms(priced, at))
    assert all(np.ptp(t) > 0 for t in few.tables.values())
    assert not any(set(a) <= set(b) for a in few.tables for b in few.tables if a != b)


@settings(deadline=None, max_examples=40)
@given(tables_of_prices(), st.sets(st.sampled_from(SITES)))
def test_only_some_sites_are_the_whole_with_all_others_at_their_last_level(priced: PriceTables, sites) -> None:
    part = priced.only(sites)
    assert {s: len(v) for s, v in part.levels.items()} == {s: len(v) if s in sites else 1
                                                           for s, v in priced.levels.items()}  # fmt: skip
    assert all(set(g) <= sites for g in part.tables)
    for at in places(part.levels):
        whole = {s: at[s] if s in sites else len(v) - 1 for s, v in priced.levels.items()}
        assert ms(part, at) == pytest.approx(ms(priced, whole))


def test_tables_hold_what_the_cost_model_predicts() -> None:
    terms = (Term("both", "Conv", ("a", "b"), (Monomial(0.01, (Factor("a"), Factor("b", step=4))),)),
             Term("own", "Conv", ("b",), (Monomial(0.1, (Factor("b"),)),)),
             Term("there", "Add", ("c",), (Monomial(0.5),), Presence((("c", (1,)),))),
             Term("always", "Add", (), (Monomial(0.25),)))  # fmt: skip
    levels = {"a": [2, 5, 8], "b": [3, 8], "c": [0, 1]}
    cost = CostModel(terms, 0.125, 3.0, 0.02, dict.fromkeys(levels, 0), dict.fromkeys(levels, 8), "here")
    priced = PriceTables.of(levels, cost)
    for at in places(levels):
        assert ms(priced, at) == pytest.approx(cost.predict({s: levels[s][i] for s, i in at.items()}).ms)
