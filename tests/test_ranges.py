"""Laws of histograms, of the intervals chosen from them and of the affine grid; the grid against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.errors import UsageError
from graphprune.ranges import WAYS, Histogram, affine, fake, interval, squared_error
from tests.graphs import model_of, run

quickly = settings(max_examples=60, deadline=None)
ends = st.floats(-1e6, 1e6, width=32)
dtypes = st.sampled_from([np.uint8, np.int8])
SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "rectified": lambda rng, n: np.maximum(rng.normal(size=n), 0),
    "heavy": lambda rng, n: rng.standard_t(2, size=n),
    "one-sided": lambda rng, n: rng.exponential(size=n) - 0.1,
    "off-centre": lambda rng, n: 5 + rng.normal(size=n),
    "negative": lambda rng, n: -rng.exponential(size=n),
    "outliers": lambda rng, n: np.r_[rng.normal(size=n - 3), 40, 60, -30],
    "softmax": lambda rng, n: rng.dirichlet(np.full(8, 0.3), size=n // 8),
    "constant": lambda rng, n: np.full(n, 3.25),
    "zero": lambda rng, n: np.zeros(n),
}


def sample(name, seed, n=20_000):
    rng = np.random.default_rng(seed)
    return (SHAPES[name](rng, n) * 10.0 ** rng.integers(-4, 5)).astype(np.float32)


def histogram_of(*arrays):
    found = Histogram()
    for array in arrays:
        found.add(array)
    return found


def mean_squared_error(x, low, high, bits=8):
    """Of rounding the data themselves."""
    scale, zero = affine(low, high, np.uint8 if bits == 8 else np.uint16)
    return np.mean((x - fake(x, scale, zero).astype(np.float64)) ** 2)


data = st.builds(sample, st.sampled_from(list(SHAPES)), st.integers(0, 1000))
small = st.builds(sample, st.sampled_from(list(SHAPES)), st.integers(0, 1000), st.just(64))


# Histograms


@quickly
@given(st.lists(small, min_size=1, max_size=5), st.data())
def test_merging_and_adding_in_any_order_is_adding_at_once(arrays, draw):
    shuffled = draw.draw(st.permutations(arrays))
    cut = draw.draw(st.integers(0, len(arrays)))
    whole = histogram_of(np.concatenate([a.ravel() for a in arrays]))
    for other in (histogram_of(*shuffled), histogram_of(*arrays[:cut]) + histogram_of(*arrays[cut:])):
        assert (other.low, other.high) == (whole.low, whole.high)
        assert (other.n_values, other.n_zeros) == (whole.n_values, whole.n_zeros)
        np.testing.assert_array_equal(other.counts, whole.counts)
        np.testing.assert_array_equal(other.edges, whole.edges)


@quickly
@given(st.lists(small, min_size=1, max_size=4))
def test_counts_are_those_of_numpy_and_bins_are_as_fine_as_the_range_allows(arrays):
    found = histogram_of(*arrays)
    values = np.concatenate([a.ravel() for a in arrays]).astype(np.float64)
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.n_zeros == np.sum(values == 0)
    nonzero = values[values != 0]
    below = np.searchsorted(np.sort(nonzero), found.edges)  # numpy's own histogram closes the last bin
    np.testing.assert_array_equal(found.counts, np.diff(below))
    if np.ptp(values) > 0:
        assert found.width <= 2 * np.ptp(values) / (found.n_bins - 2)


@pytest.mark.parametrize("shape", [(7, 128, 512), (600, 2, 384), (1_000_003,)])
def test_large_arrays_are_sampled_from_every_channel_and_no_far_value_is_missed(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    x[..., 1] = 0
    flat = x.reshape(-1)
    far = rng.choice(flat.size, 7, replace=False)
    flat[far] = 50.0
    found = histogram_of(x)
    assert (found.low, found.high) == (x.min(), x.max())
    assert found.counts[np.searchsorted(found.edges, 50.0, side="right") - 1] == 7
    # a stride of a multiple of the last axis would see all zeros, or none
    assert found.n_zeros / flat.size == pytest.approx(np.mean(x == 0), rel=0.05, abs=1e-4)
    assert found.counts.sum() + found.n_zeros == pytest.approx(flat.size, rel=0.01)
    low, high = interval(found)
    assert squared_error(found, low, high) == pytest.approx(mean_squared_error(x, low, high), rel=0.05)


def test_empty_arrays_count_for_nothing_and_other_types_are_taken():
    found = histogram_of(np.zeros((0, 3), np.float32), np.array([1, 2], np.int64), np.float16(3), [[-1.0]])
    assert (found.low, found.high, found.n_values) == (-1, 3, 4)
    assert (histogram_of() + found).counts.sum() == (found + histogram_of()).counts.sum() == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(UsageError, match="NaN or infinity"):
        histogram_of(np.array([1.0, value], np.float32))


def test_nothing_seen_is_refused():
    with pytest.raises(UsageError, match="no values"):
        interval(histogram_of(np.zeros((0, 4))))


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="mse, minmax"):
        interval(histogram_of([1.0]), "max")
    with pytest.raises(ValueError, match="bins"):
        Histogram(16) + Histogram(32)


@pytest.mark.parametrize("value", [1e-45, 1e-38, 3e38])
def test_the_ends_of_float32_are_counted(value):
    x = np.float32([value, -value, 0, value / 2])
    found = histogram_of(x)
    assert found.counts.sum() + found.n_zeros == 4
    low, high = interval(found, "minmax")
    scale, zero = affine(low, high)
    assert np.isfinite(scale) and scale > 0
    np.testing.assert_allclose(fake(x, scale, zero), x, atol=max(value / 100, 1e-38))


# Intervals


@quickly
@given(data, st.sampled_from(WAYS))
def test_an_interval_holds_zero_and_nothing_that_was_not_seen(x, how):
    low, high = interval(histogram_of(x), how)
    assert min(x.min(), 0) <= low <= 0 <= high <= max(x.max(), 0)


@quickly
@given(data, st.sampled_from([4, 8]))
def test_the_mse_interval_never_errs_more_than_minmax_nor_notably_more_than_the_others(x, bits):
    found = histogram_of(x)
    errors = {how: squared_error(found, *interval(found, how, bits), bits) for how in WAYS}
    assert errors["mse"] <= errors["minmax"]
    assert errors["mse"] <= 1.02 * min(errors.values())


@settings(max_examples=25, deadline=None)
@given(data)
def test_the_mse_interval_is_about_the_best_of_all_pairs_of_ends(x):
    found = histogram_of(x)
    low, high = interval(found, "minmax")
    factors = 2.0 ** -np.linspace(0, 8, 33)
    a, b = np.meshgrid(factors, factors)
    best = squared_error(found, low * a.ravel(), high * b.ravel()).min()
    assert squared_error(found, *interval(found)) <= 1.05 * best


@quickly
@given(data, st.floats(0.05, 1), st.floats(0.05, 1))
def test_the_expected_error_is_the_error_on_the_data(x, a, b):
    found = histogram_of(x)
    low, high = a * min(found.low, 0), b * max(found.high, 0)
    # bins hold no more than where values lie to within a bin
    slack = found.width**2 + 1e-6 * np.mean(x.astype(np.float64) ** 2)
    assert squared_error(found, low, high) == pytest.approx(mean_squared_error(x, low, high), rel=0.05, abs=slack)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("how", ["mse", "percentile", "entropy"])
def test_far_values_are_cut_off_at_their_end_only(how, side):
    rng = np.random.default_rng(0)
    x = side * np.r_[rng.normal(size=1_000_000), 30].astype(np.float32)
    near, far = sorted(map(abs, interval(histogram_of(x), how)))
    assert 2 < near < 5 and far < 15
    assert mean_squared_error(x, *interval(histogram_of(x), how)) < mean_squared_error(x, x.min(), x.max())


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("how", WAYS)
def test_nearly_all_values_are_covered(how, side):
    x = side * sample("one-sided", 1, 100_000)
    low, high = interval(histogram_of(x), how)
    assert np.mean((x < low) | (x > high)) < 0.01


def test_what_carries_most_of_the_energy_is_kept():
    """A few massive activations, as transformers have them, are worth more than fine steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 384)).astype(np.float32)
    x[:, 7] += 60
    assert interval(histogram_of(x))[1] > 55
    assert interval(histogram_of(x[:, :7]))[1] < 6


@pytest.mark.parametrize("name", ["normal", "heavy", "off-centre", "rectified"])
def test_percentiles_leave_out_one_value_in_ten_thousand_at_either_end(name):
    x = sample(name, 3, 100_000)
    low, high = interval(histogram_of(x), "percentile")
    assert 9 <= np.sum(x > high) <= 11
    if name == "normal":
        assert 9 <= np.sum(x < low) <= 11


def test_fewer_bits_cover_less():
    found = histogram_of(sample("normal", 0))
    widths = [np.ptp(interval(found, "mse", bits)) for bits in (2, 4, 6, 8)]
    assert widths == sorted(widths) and widths[0] < 0.6 * widths[-1]


# The affine grid


@quickly
@given(ends, ends, dtypes)
def test_zero_is_exact_and_the_scale_is_positive(a, b, dtype):
    scale, zero = affine(min(a, b), max(a, b), dtype)
    assert scale.dtype == np.float32 and zero.dtype == dtype and 0 < scale < np.inf
    assert fake(np.zeros(1), scale, zero)[0] == 0


@quickly
@given(ends, ends, dtypes, st.lists(st.floats(0, 1), min_size=1))
def test_values_inside_are_off_by_half_a_step_at_most(a, b, dtype, shares):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    x = (low + np.sort(shares) * (high - low)).astype(np.float32)
    scale, zero = affine(low, high, dtype)
    y = fake(x, scale, zero)
    assert (np.abs(x.astype(np.float64) - y) <= 0.5001 * scale).all()
    assert (np.diff(y) >= 0).all(), "not monotone"
    np.testing.assert_array_equal(fake(y, scale, zero), y)


@quickly
@given(ends, ends)
def test_signed_and_unsigned_grids_are_the_same_numbers(a, b):
    (scale, zero), (other, signed) = (affine(min(a, b), max(a, b), dtype) for dtype in (np.uint8, np.int8))
    assert scale == other and int(zero) - 128 == int(signed)


def test_values_outside_go_to_the_ends():
    scale, zero = affine(-1.0, 3.0)
    np.testing.assert_allclose(fake(np.float32([-9, 9, -3e38, 3e38]), scale, zero), [-1, 3, -1, 3], atol=scale / 2)


@pytest.mark.parametrize("value", [0.0, 3.5, -2e-3])
def test_a_constant_is_represented(value):
    scale, zero = affine(value, value)
    np.testing.assert_allclose(fake(np.full(3, value), scale, zero), value, rtol=1e-6)


@quickly
@given(data, dtypes, st.booleans())
def test_fake_is_what_onnx_runtime_computes(x, dtype, halves):
    x = x.reshape(-1)[:1000]
    scale, zero = affine(*interval(histogram_of(x)), dtype)
    if halves:  # ties, on which rounding half up would differ
        scale, x = np.float32(0.25), (np.arange(-600, 600) / 8).astype(np.float32)
    model = model_of(
        "q = QuantizeLinear(x, s, z)\nresult = DequantizeLinear(q, s, z)",
        {"x": x.shape}, {"s": np.asarray(scale), "z": np.asarray(zero)},
    )  # fmt: skip
    np.testing.assert_array_equal(run(model, {"x": x})["result"], fake(x, scale, zero))


def test_scales_may_differ_by_channel():
    x = sample("normal", 0).reshape(-1, 4) * np.float32([1, 10, 100, 1000])
    scale, zero = affine(x.min(0), x.max(0), np.int8)
    assert scale.shape == zero.shape == (4,)
    together = fake(x, scale, zero)
    for i in range(4):
        np.testing.assert_array_equal(together[:, i], fake(x[:, i], *affine(x[:, i].min(), x[:, i].max(), np.int8)))
