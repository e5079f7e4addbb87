"""What whole models tell of their kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.backends.opaque import Shares
from graphprune.target import Kernel

OPS = ("Conv", "QLinearConv", "QuantizeLinear", "Add")


def kernel(name: str, op: str, ms: float) -> Kernel:
    return Kernel(name, op, ms, ((1,),), ((1,),))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.2, 5.0), min_size=4, max_size=4), st.integers(0, 1000))
def test_kinds_are_told_apart_once_models_differ_in_them(factors: list[float], seed: int) -> None:
    rng, shares = np.random.default_rng(seed), Shares()
    for _ in range(40):
        own = rng.uniform(0.05, 1.0, 4)
        kernels = [kernel(op, op, ms) for op, ms in zip(OPS, own, strict=True)]
        total = float(own @ factors)
        found = shares.divided(kernels, total)
        assert sum(k.ms for k in found) == pytest.approx(total)
        assert [(k.name, k.op) for k in found] == [(k.name, k.op) for k in kernels]
    wanted = own * factors
    assert [k.ms for k in found] == pytest.approx(wanted, rel=0.35, abs=0.06 * wanted.sum())


def test_the_first_model_is_divided_in_proportion() -> None:
    found = Shares().divided([kernel("a", "Conv", 1.0), kernel("b", "Add", 3.0)], 8.0)
    assert [k.ms for k in found] == pytest.approx([2.0, 6.0], rel=1e-3)


def test_a_kind_that_is_slower_in_few_bits_is_found_out() -> None:
    """What compiling for such an engine lives by: the other engine says that 8 bits are three times as fast."""
    rng, shares = np.random.default_rng(0), Shares()
    for _ in range(30):
        rounded = rng.random(12) < 0.5
        kernels = [kernel(f"n{i}", *(("QLinearConv", 0.33) if r else ("Conv", 1.0))) for i, r in enumerate(rounded)]
        found = shares.divided(kernels, float(np.where(rounded, 1.2, 0.7).sum()) * rng.normal(1, 0.02))
    times = {k.op: k.ms for k in found}
    assert times["QLinearConv"] == pytest.approx(1.2, rel=0.1) and times["Conv"] == pytest.approx(0.7, rel=0.1)


def test_kernels_that_take_no_time_are_no_error() -> None:
    found = Shares().divided([kernel("a", "Reshape", 0.0), kernel("b", "Conv", 1.0)], 2.0)
    assert [k.ms for k in found] == pytest.approx([0.0, 2.0])
