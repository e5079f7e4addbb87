"""Laws of pruning on random small networks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.edit import shrink
from graphprune.oracles import certify
from tests.graphs import failures, run_all, some, typed
from tests.random_graphs import random_model

laws = settings(derandomize=True, deadline=None, max_examples=60, database=None)
seeds = st.integers(0, 2**31)


def feed(batch: int, seed: int) -> dict[str, np.ndarray]:
    return {"x0": np.random.default_rng(seed).normal(size=(batch, 3, 2, 2)).astype(np.float32)}


@laws
@given(seeds)
def test_pruning_groups_equals_zeroing_their_readers(seed: int) -> None:
    analysis = typed(random_model(seed), feed(5, seed), inexact=True)
    rng = np.random.default_rng(seed)
    keeps = {name: some(group.size, rng) for name, group in analysis.groups.items()}
    feeds = [feed(5, seed), feed(2, seed)]
    checks = certify(analysis, keeps, feeds, run_all)
    for name in rng.permutation(sorted(keeps))[:2]:
        checks += certify(analysis, {name: keeps[name]}, feeds[1:], run_all)
    assert not failures(checks)


@laws
@given(seeds)
def test_a_pruned_model_can_be_typed_and_pruned_again(seed: int) -> None:
    analysis = typed(random_model(seed), feed(5, seed), inexact=True)
    rng = np.random.default_rng(seed)
    keeps = {name: some(group.size, rng) for name, group in analysis.groups.items()}
    pruned = shrink(analysis.model, analysis.types, analysis.keeps(keeps))
    again = typed(pruned, feed(5, seed), inexact=True)
    keeps = {name: some(group.size, rng) for name, group in again.groups.items()}
    assert not failures(certify(again, keeps, [feed(2, seed)], run_all))
