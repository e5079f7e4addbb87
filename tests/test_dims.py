"""Laws of dimension types: unification makes two types mean the same, and never changes a size."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.dims import (
    ONE,
    Dim,
    Prod,
    Reason,
    Sum,
    Type,
    cut,
    freeze,
    leaves,
    mark_contracted,
    mark_inexact,
    norm,
    unify,
    wholly_frozen,
)
from graphprune.keeps import kept, new_size, positions

WHY = Reason("a test")
laws = settings(derandomize=True, deadline=None, max_examples=300, database=None)


def keep_all_but(*removed: tuple[Dim, list[int]]) -> dict[Dim, np.ndarray]:
    return {d: np.setdiff1d(np.arange(d.size), gone) for d, gone in removed}


def only(t: Type) -> Dim:
    (d,) = leaves(t)
    return d


# What each pair of shapes unifies to


def test_a_variable_becomes_what_it_equals() -> None:
    a, heads, inner = Dim(12), Dim(3), Dim(4)
    unify(a, Prod((heads, inner)), WHY)
    assert list(leaves(a)) == [heads, inner]


def test_flags_reach_every_leaf_of_what_a_variable_equals() -> None:
    a, heads, inner = Dim(12), Dim(3), Dim(4)
    freeze(a, WHY, dynamic=True)
    mark_inexact(a, WHY)
    mark_contracted(a)
    unify(a, Prod((heads, inner)), WHY)
    assert all(d.frozen is WHY and d.inexact is WHY and d.contracted and d.dynamic for d in (heads, inner))


def test_segments_are_cut_at_the_union_of_their_boundaries() -> None:
    a, b = Sum((Dim(2), Dim(4))), Sum((Dim(3), Dim(3)))
    unify(a, b, WHY)
    assert [d.size for d in leaves(a)] == [2, 1, 3]
    assert [d for d in leaves(a) if d.size > 1] == [d for d in leaves(b) if d.size > 1]


def test_products_are_split_by_common_divisors() -> None:
    a, b = Prod((Dim(2), Dim(6))), Prod((Dim(4), Dim(3)))
    unify(a, b, WHY)
    assert [d.size for d in leaves(a)] == [2, 2, 3]
    assert list(leaves(a)) == list(leaves(b))


def test_products_that_share_no_divisor_freeze_with_the_reason() -> None:
    a, b = Prod((Dim(2), Dim(3))), Prod((Dim(3), Dim(2)))
    unify(a, b, WHY)
    clash = Reason(WHY.text, WHY.node, "conflict", "2 x 3 against 3 x 2")
    assert all(d.frozen == clash for t in (a, b) for d in leaves(t))


def test_a_conflict_with_what_is_frozen_is_explained_by_the_cause_of_that() -> None:
    a, b, cause = Prod((Dim(2), Dim(3))), Prod((Dim(3), Dim(2))), Reason("spatial axis", "conv1")
    freeze(a, cause)
    unify(a, b, WHY)
    assert all(d.frozen is cause for t in (a, b) for d in leaves(t))


def test_the_root_cause_is_what_would_stay_if_the_other_went() -> None:
    output, rule, clash = (Reason("x", "y", kind) for kind in ("boundary", "operator", "conflict"))
    for first, second in ((clash, rule), (rule, clash), (rule, output), (output, rule)):
        d = Dim(3)
        freeze(d, first)
        freeze(d, second)
        assert d.frozen is (output if output in (first, second) else rule)
    a, b = Dim(3), Dim(3)
    freeze(a, output)
    freeze(b, rule)
    unify(a, b, WHY)
    assert only(a).frozen is output


def test_a_conflict_inside_leaves_equal_ends_free() -> None:
    head, tail = Dim(5), Dim(7)
    a, b = Prod((Dim(5), Dim(2), Dim(3), Dim(7))), Prod((head, Dim(3), Dim(2), tail))
    unify(a, b, WHY)
    assert head.frozen is None or not wholly_frozen(head)
    assert only(tail).frozen is None


def test_fused_qkv_is_three_segments_of_heads() -> None:
    q, k, v = (Prod((Dim(3), Dim(4))) for _ in range(3))
    fused = Dim(36)
    unify(fused, Sum((q, k, v)), WHY)
    assert kept(fused, keep_all_but((next(leaves(k)), [1]))).tolist() == [*range(16), *range(20, 36)]


def test_an_inner_sum_is_repeated_in_every_outer_index() -> None:
    heads, half = Dim(2), Dim(3)
    rope = Prod((heads, Sum((half, half))))
    assert kept(rope, keep_all_but((half, [0]))).tolist() == [1, 2, 4, 5, 7, 8, 10, 11]


def test_an_outer_sum_distributes_over_its_product() -> None:
    a, b, r = Dim(2), Dim(3), Dim(2)
    assert isinstance(norm(Prod((Sum((a, b)), r))), Sum)


def test_an_uneven_cut_of_a_product_cuts_the_inner_factor() -> None:
    outer, inner = Dim(3), Dim(4)
    left, right = cut(Prod((outer, inner)), 5)
    assert (left.size, right.size) == (5, 7)


def test_thousands_of_equal_variables_are_one() -> None:
    dims = [Dim(4) for _ in range(5000)]
    for a, b in pairwise(dims):
        unify(a, b, WHY)
    assert next(leaves(dims[0])) is dims[-1]


def test_an_axis_can_be_cut_into_thousands_of_pieces() -> None:
    whole = Dim(1500)
    rest: Type = whole
    for _ in range(1499):
        _, rest = cut(rest, 1)
        norm(whole)
    assert sum(1 for _ in leaves(whole)) == 1500


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes differ"):
        unify(Dim(2), Dim(3), WHY)


def test_the_first_reason_stays() -> None:
    d, later = Dim(3), Reason("later")
    freeze(d, WHY)
    freeze(d, later)
    assert d.frozen is WHY


def test_the_axis_of_size_one_keeps_its_one_index() -> None:
    assert kept(ONE, {}).tolist() == [0]
    assert new_size(ONE, {}) == 1


def test_reason_names_the_node() -> None:
    assert (str(Reason("spatial axis", "conv1")), str(Reason("graph output", "y", "boundary"))) == (
        "spatial axis at conv1", "graph output y")
    assert str(Reason("no match", "add", "conflict", "2 x 3 against 3 x 2")) == "no match at add (2 x 3 against 3 x 2)"


# Laws on random types


def tree(n: int, depth: int, pool: list[Dim], rng: random.Random) -> Type:
    """A type of size n whose leaves are now and then shared with other types built from the same pool."""
    kind = rng.choice(["dim", "sum", "prod"]) if depth else "dim"
    divisors = [k for k in range(2, n) if n % k == 0]
    if kind == "sum" and n > 1:
        k = rng.randint(1, n - 1)
        return Sum((tree(k, depth - 1, pool, rng), tree(n - k, depth - 1, pool, rng)))
    if kind == "prod" and divisors:
        k = rng.choice(divisors)
        return Prod((tree(k, depth - 1, pool, rng), tree(n // k, depth - 1, pool, rng)))
    same = [d for d in pool if d.size == n]
    if same and rng.random() < 0.5:
        return rng.choice(same)
    d = Dim(n)
    pool.append(d)
    if rng.random() < 0.15:
        freeze(d, WHY)
    return d


def system(seed: int) -> tuple[list[tuple[Type, Type]], np.random.Generator]:
    """One to four pairs of random types, each pair of one size, and a generator for keep sets."""
    rng, pool = random.Random(seed), []
    sizes = [rng.choice([1, 2, 3, 4, 6, 8, 12, 18, 24, 36]) for _ in range(rng.randint(1, 4))]
    return [(tree(n, 3, pool, rng), tree(n, 3, pool, rng)) for n in sizes], np.random.default_rng(seed)


seeds = st.integers(0, 2**31)


def plain_kept(t: Type, keeps: dict[Dim, np.ndarray]) -> list[int]:
    """What a type means, straight from its definition, without normal forms."""
    if isinstance(t, Dim):
        return plain_kept(t.bound, keeps) if t.bound is not None else list(keeps.get(t, range(t.size)))
    if isinstance(t, Sum):
        offsets = np.cumsum([0, *(p.size for p in t.parts)])
        return [i + int(o) for p, o in zip(t.parts, offsets, strict=False) for i in plain_kept(p, keeps)]
    index = [0]
    for f in t.factors:
        index = [i * f.size + j for i in index for j in plain_kept(f, keeps)]
    return index


def random_keeps(types: list[Type], rng: np.random.Generator) -> dict[Dim, np.ndarray]:
    free = dict.fromkeys(d for t in types for d in leaves(t) if d.frozen is None)
    return {d: np.sort(rng.choice(d.size, rng.integers(1, d.size + 1), replace=False)) for d in free}


@laws
@given(seeds)
def test_unified_types_keep_the_same_indices(seed: int) -> None:
    pairs, rng = system(seed)
    for a, b in pairs:
        sizes = a.size, b.size
        unify(a, b, WHY)
        assert (norm(a).size, norm(b).size) == sizes
    keeps = random_keeps([t for pair in pairs for t in pair], rng)
    for a, b in pairs:
        assert kept(a, keeps).tolist() == kept(b, keeps).tolist() == plain_kept(a, keeps)
        assert new_size(a, keeps) == new_size(b, keeps) == len(kept(a, keeps))


@laws
@given(seeds)
def test_unifying_again_changes_no_free_variable(seed: int) -> None:
    pairs, _ = system(seed)
    for a, b in pairs:
        unify(a, b, WHY)
    before = free(pairs)
    for a, b in pairs:
        unify(b, a, Reason("again"))
    assert before == free(pairs)


def free(pairs: list[tuple[Type, Type]]) -> list[list[Dim]]:
    return [[d for d in leaves(t) if d.size > 1 and d.frozen is None] for pair in pairs for t in pair]


@laws
@given(seeds, st.integers(0, 24))
def test_both_sides_of_a_cut_are_the_whole(seed: int, offset: int) -> None:
    pairs, rng = system(seed)
    types = [t for pair in pairs for t in pair]
    for t in types:
        left, right = cut(t, offset)
        assert (left.size, right.size) == (min(offset, t.size), max(t.size - offset, 0))
        keeps = random_keeps(types, rng)
        assert kept(Sum((left, right)), keeps).tolist() == kept(t, keeps).tolist()


@laws
@given(seeds)
def test_normal_form_means_the_same_and_is_its_own(seed: int) -> None:
    pairs, rng = system(seed)
    for a, b in pairs:
        keeps = random_keeps([a, b], rng)
        assert kept(a, keeps).tolist() == plain_kept(a, keeps)
        assert repr(norm(norm(a))) == repr(norm(a))


@laws
@given(seeds)
def test_positions_of_an_index_are_what_its_removal_removes(seed: int) -> None:
    pairs, rng = system(seed)
    for a, b in pairs:
        unify(a, b, WHY)
    for a, _ in pairs:
        for d in set(leaves(a)):
            if d.size == 1 or _merged_with_itself(a, d):
                continue
            j = int(rng.integers(d.size))
            gone = np.setdiff1d(np.arange(a.size), kept(a, keep_all_but((d, [j]))))
            assert positions(a, d)[j].tolist() == gone.tolist()


def _merged_with_itself(t: Type, d: Dim) -> bool:
    t = norm(t)
    if isinstance(t, Dim):
        return False
    children = t.parts if isinstance(t, Sum) else t.factors
    holds = [d in set(leaves(c)) for c in children]
    return (isinstance(t, Prod) and sum(holds) > 1) or any(_merged_with_itself(c, d) for c in children)
