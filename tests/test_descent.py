"""Coordinate descent over price tables: it holds the budget, is never worse than where it began, finds the fastest."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from graphprune.descent import Descent
from graphprune.price_tables import PriceTables


def instance(seed: int) -> tuple[Descent, dict[str, np.ndarray], dict[str, list[int]]]:
    """Four sites with tables over one, two and three of them; losses fall with the level, as quality does."""
    rng = np.random.default_rng(seed)
    levels = {s: list(range(int(rng.integers(2, 5)))) for s in "abcd"}
    size = {s: len(v) for s, v in levels.items()}
    tables = {g: rng.uniform(0, 3, [size[s] for s in g]) for g in (("a",), ("b",), ("a", "b"), ("b", "c", "d"), ("d",))}
    loss = {s: np.sort(rng.exponential(size=size[s]))[::-1] * (np.arange(size[s]) < size[s] - 1) for s in levels}
    return Descent(PriceTables(levels, tables, 0.5)), loss, levels


def everywhere(levels: dict[str, list[int]]) -> list[dict[str, int]]:
    return [dict(zip(levels, at, strict=True)) for at in product(*levels.values())]


@pytest.mark.parametrize("seed", range(20))
def test_the_time_of_a_place_is_the_sum_over_tables_and_a_sites_part_differs_by_what_a_move_costs(seed: int) -> None:
    descent, _, levels = instance(seed)
    rng = np.random.default_rng(seed)
    at = {s: int(rng.choice(v)) for s, v in levels.items()}
    assert descent.ms(at) == pytest.approx(0.5 + sum(t[tuple(at[s] for s in g)] for g, t in descent.tables.items()))
    for s in levels:
        part = descent.ms_of(s, at)
        for k in levels[s]:
            assert part[k] - part[at[s]] == pytest.approx(descent.ms({**at, s: k}) - descent.ms(at))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_alone_makes_the_fastest_place_faster_and_all_starts_together_find_it(seed: int) -> None:
    descent, _, levels = instance(seed)
    found = descent.fastest(everywhere(levels))
    assert descent.ms(found) == pytest.approx(min(map(descent.ms, everywhere(levels))))
    one = descent.run({s: 0 for s in levels}, None, 1.0)
    assert all(descent.ms({**one, s: k}) >= descent.ms(one) - 1e-9 for s in levels for k in levels[s])


@pytest.mark.parametrize("seed", range(30))
def test_an_answer_holds_the_budget_and_is_no_worse_than_a_start_that_does(seed: int) -> None:
    descent, loss, levels = instance(seed)
    places = everywhere(levels)
    fastest = min(places, key=descent.ms)
    whole = {s: v[-1] for s, v in levels.items()}
    budget = descent.ms(fastest) + 0.4 * max(descent.ms(whole) - descent.ms(fastest), 0.1)
    found = descent.answer(loss, budget, [whole, fastest])
    assert found is not None and descent.ms(found) <= budget + 1e-9
    assert descent.loss(found, loss) <= descent.loss(fastest, loss) + 1e-12
    again = descent.filled(found, loss, budget)
    assert descent.loss(again, loss) == pytest.approx(descent.loss(found, loss)), "nothing was left to spend"


def test_on_average_the_answer_is_close_to_the_best() -> None:
    gaps = []
    for seed in range(60):
        descent, loss, levels = instance(seed)
        places = everywhere(levels)
        whole, fastest = {s: v[-1] for s, v in levels.items()}, min(places, key=descent.ms)
        budget = (descent.ms(whole) + descent.ms(fastest)) / 2
        found = descent.answer(loss, budget, [whole, fastest])
        best = min(descent.loss(at, loss) for at in places if descent.ms(at) <= budget + 1e-9)
        gaps.append((descent.loss(found, loss) - best) / max(sum(own.max() for own in loss.values()), 1e-9))
    assert np.mean(gaps) < 0.05


def test_a_budget_out_of_reach_has_no_answer() -> None:
    descent, loss, levels = instance(0)
    assert descent.answer(loss, 0.4, [{s: 0 for s in levels}]) is None
