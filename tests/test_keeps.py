"""Keep sets that differ by head or filter bank, against taking them apart by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.dims import Dim, Prod, Sum, Type
from graphprune.groups import outer_variables
from graphprune.keeps import Ragged, coordinates, kept, mask, new_size, take
from graphprune.rules.base import Types
from tests.graphs import model_of

laws = settings(derandomize=True, deadline=None, max_examples=200, database=None)


@st.composite
def ragged(draw: st.DrawFn):
    """(outer, inner, keep set of inner for each index of outer, keep set of outer or None)."""
    outer, inner = Dim(draw(st.integers(2, 4))), Dim(draw(st.integers(2, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    k = int(rng.integers(1, inner.size))
    index = np.stack([np.sort(rng.choice(inner.size, k, replace=False)) for _ in range(outer.size)])
    some = np.sort(rng.choice(outer.size, int(rng.integers(1, outer.size + 1)), replace=False))
    return outer, inner, Ragged((outer,), index), some if draw(st.booleans()) else None


@laws
@given(ragged())
def test_on_one_axis_each_outer_index_has_its_own_part(case) -> None:
    outer, inner, keep, some = case
    keeps = {inner: keep} if some is None else {inner: keep, outer: some}
    rows = range(outer.size) if some is None else some
    want = [r * inner.size + i for r in rows for i in keep.index[r]]
    assert kept(Prod((outer, inner)), keeps).tolist() == want
    assert new_size(Prod((outer, inner)), keeps) == len(want)


@laws
@given(ragged())
def test_on_two_axes_each_row_has_its_own_columns(case) -> None:
    outer, inner, keep, some = case
    keeps = {inner: keep} if some is None else {inner: keep, outer: some}
    rows = range(outer.size) if some is None else some
    array = np.arange(outer.size * inner.size).reshape(outer.size, inner.size)
    want = np.stack([array[r, keep.index[r]] for r in rows])
    assert np.array_equal(take(array, [outer, inner], keeps), want)
    assert np.array_equal(take(array.T.copy(), [inner, outer], keeps), want.T)
    assert np.array_equal(take(array.reshape(-1), [Prod((outer, inner))], keeps), want.reshape(-1))


@laws
@given(ragged(), st.integers(1, 3))
def test_a_mask_has_ones_exactly_where_taking_takes(case, n: int) -> None:
    outer, inner, keep, some = case
    keeps = {inner: keep} if some is None else {inner: keep, outer: some}
    between = Dim(n)
    for axes in ([outer, inner], [inner, outer], [Prod((outer, inner))], [Prod((between, outer)), inner],
                 [Prod((outer, between, inner))], [Sum((Prod((outer, inner)), Prod((outer, inner))))]):  # fmt: skip
        shape = [t.size for t in axes]
        ones = np.ones(shape, bool)
        for i in range(len(axes)):
            ones = ones & mask(axes, i, keeps)
        array = np.arange(ones.size).reshape(shape)
        assert sorted(take(array, axes, keeps).ravel().tolist()) == array[ones].tolist()


def test_a_keep_set_may_be_ragged_over_a_ragged_one() -> None:
    a, b, c = Dim(2), Dim(3), Dim(4)
    of_b = np.array([[0, 2], [1, 2]])
    of_c = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(4), (2, 3, 4)), axis=-1)[..., :3]
    keeps = {c: Ragged((a, b), of_c), b: Ragged((a,), of_b)}
    array = np.arange(24).reshape(2, 3, 4)
    want = [[array[i, j, of_c[i, j]] for j in of_b[i]] for i in range(2)]
    assert np.array_equal(take(array, [a, b, c], keeps), want)
    assert np.array_equal(take(array.reshape(2, 12), [a, Prod((b, c))], keeps), np.reshape(want, (2, 6)))


def test_a_variable_on_two_axes_of_a_value_cannot_be_an_outer_one() -> None:
    heads, inner = Dim(2), Dim(3)
    once = Types({}, {}, axes={"w": [Prod((heads, inner)), Dim(5)]})
    both = Types({}, {}, axes={"w": [Prod((heads, inner)), Prod((heads, Dim(5)))]})
    model = model_of("result = Identity(x)", {"x": ("N",)})
    assert heads in outer_variables(model, once, [inner])[inner]
    assert heads not in outer_variables(model, both, [inner])[inner]


def test_heads_merged_with_a_batch_of_any_size_are_no_outer_variable() -> None:
    batch, heads, inner = Dim(3), Dim(2), Dim(3)
    model = model_of("result = Identity(x)", {"x": ("N",)})
    types = Types({}, {}, axes={"w": [Prod((heads, inner))], "x": [Prod((batch, heads)), inner]})
    assert heads in outer_variables(model, types, [inner])[inner]
    batch.dynamic = True
    assert heads not in outer_variables(model, types, [inner])[inner]


def test_an_order_in_place_of_a_keep_set_permutes_within_each_outer_index() -> None:
    outer, inner = Dim(2), Dim(3)
    order = Ragged((outer,), np.array([[2, 0, 1], [1, 2, 0]]))
    assert kept(Prod((outer, inner)), {inner: order}).tolist() == [2, 0, 1, 4, 5, 3]
    assert kept(Prod((Dim(2), outer, inner)), {inner: order}).tolist() == [2, 0, 1, 4, 5, 3, 8, 6, 7, 10, 11, 9]


@pytest.mark.parametrize(("t", "want"), [
    (lambda a, b: Prod((a, b)), [0, 0, 0, 1, 1, 1]),
    (lambda a, b: Prod((b, a)), [0, 1, 0, 1, 0, 1]),
    (lambda a, b: Sum((b, a)), [-1, -1, -1, 0, 1]),
])  # fmt: skip
def test_coordinates(t, want: list[int]) -> None:
    a, b = Dim(2), Dim(3)
    made: Type = t(a, b)
    assert coordinates(made, a).tolist() == want
