"""Low-rank factors: the errors they promise are the errors they make, and none that is smaller was there to be had."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.compensate import Moments, robust_cholesky
from graphprune.factor import (
    MatrixFactors,
    SpatialFactors,
    as_it_falls,
    better_form,
    break_even,
    factors_of,
    full_rank,
    mean_error,
    metric_of,
    relative,
    spatial_matrix,
)

SHAPES = [(12, 20), (20, 12), (16, 16)]
KERNELS = [(10, 6, 3, 3), (4, 9, 3, 5), (7, 5, 5, 2)]


def rows(n_inputs: int, n: int = 400, seed: int = 0) -> np.ndarray:
    """Inputs that vary much more one way than another, about a mean that is not zero."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(n_inputs, n_inputs)) * np.geomspace(3, 0.05, n_inputs)[:, None]
    return rng.normal(size=(n, n_inputs)) @ mix + rng.normal(size=n_inputs)


def windows(channels: int, kh: int, kw: int, n: int = 60, seed: int = 0) -> np.ndarray:
    """All kh x kw windows of smooth images with channels that go together: [rows, channels x kh x kw]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, channels, 12, 12))
    for axis in (2, 3, 3):
        x = x + np.roll(x, 1, axis)
    x = np.einsum("dc,nchw->ndhw", rng.normal(size=(channels, channels)) * np.geomspace(2, 0.1, channels), x)
    view = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), (2, 3))
    return view.transpose(0, 2, 3, 1, 4, 5).reshape(-1, channels * kh * kw)


def weight_of(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def measured(error: np.ndarray, x: np.ndarray, centre: bool) -> float:
    """Squared output error per row, a constant shift not counted if a bias takes it."""
    y = x @ error.T
    return float(np.sum((y - y.mean(axis=0) * centre) ** 2) / len(x))


def plain(weight: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def product(factors: MatrixFactors | SpatialFactors, rank: int) -> np.ndarray:
    down, up = factors.at(rank)
    return spatial_matrix(down, up) if down.ndim == 4 else up @ down


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_at_every_rank_is_the_error_measured(shape, centre: bool) -> None:
    x, weight = rows(shape[1]), weight_of(shape)
    factors = MatrixFactors(weight, metric_of(Moments.of(x), centre=centre, damping=0))
    assert len(factors.loss) == factors.full + 1
    for rank, loss in enumerate(factors.loss):
        error = measured(weight - product(factors, rank), x, centre)
        assert error == pytest.approx(loss, rel=1e-8, abs=1e-11 * factors.loss[0])


@pytest.mark.parametrize("shape", KERNELS)
def test_the_loss_of_a_convolution_in_two_directions_is_the_error_measured(shape) -> None:
    x, weight = windows(*shape[1:]), weight_of(shape)
    factors = SpatialFactors(weight, metric_of(Moments.of(x), centre=True, damping=0))
    for rank, loss in enumerate(factors.loss):
        error = measured(weight.reshape(len(weight), -1) - product(factors, rank), x, True)
        assert error == pytest.approx(loss, rel=1e-6, abs=1e-8 * factors.loss[0])


@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_damping_adds_the_distance_from_the_weight(form) -> None:
    """As for the solves of `compensate`, so that few samples do not promise too much."""
    shape = (10, 6, 3, 3)
    x, weight = windows(*shape[1:]), weight_of(shape)
    moments = Moments.of(x)
    factors = factors_of(weight, form, metric_of(moments, centre=True, damping=0.2))
    variance = np.diag(moments.scatter()).mean() / moments.n_samples
    for rank in (1, 4, 7):
        off = weight.reshape(len(weight), -1) - product(factors, rank)
        assert factors.loss[rank] == pytest.approx(measured(off, x, True) + 0.2 * variance * np.sum(off**2), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_those_of_the_whitened_weight(shape) -> None:
    """U S V^T = W L cut off and taken back through L, as it is usually written (arXiv 2403.07378)."""
    x, weight = rows(shape[1]), weight_of(shape)
    metric = metric_of(Moments.of(x), centre=False)
    root = robust_cholesky(metric)
    for rank in (1, 3, 8):
        wanted = plain(weight @ root, rank) @ np.linalg.inv(root)
        np.testing.assert_allclose(product(MatrixFactors(weight, metric), rank), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("damping", [0.0, None, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_data_never_make_it_worse_than_plain_svd(shape, damping, seed: int) -> None:
    x, weight = rows(shape[1], seed=seed), weight_of(shape, seed)
    factors = MatrixFactors(weight, metric_of(Moments.of(x), centre=True, damping=damping))
    for rank in range(factors.full + 1):
        ours, other = (measured(weight - w, x, True) for w in (product(factors, rank), plain(weight, rank)))
        assert ours <= other * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("shape", KERNELS)
def test_smooth_images_lose_less_by_directions_that_know_the_data(shape) -> None:
    x, weight = windows(*shape[1:]), weight_of(shape)
    aware, blind = SpatialFactors(weight, metric_of(Moments.of(x), centre=True, damping=0)), SpatialFactors(weight)
    for rank in range(1, aware.full):
        ours, other = (measured(weight.reshape(len(weight), -1) - product(f, rank), x, True) for f in (aware, blind))
        assert ours < other


@pytest.mark.parametrize("shape", KERNELS)
def test_directions_are_the_best_where_columns_and_places_do_not_depend_on_each_other(shape) -> None:
    n_out, n_in, kh, kw = shape
    weight, along, across = weight_of(shape), rows(n_in * kh), rows(kw, seed=3)
    a, b = along.T @ along / len(along), across.T @ across / len(across)
    laid_out = weight.transpose(0, 3, 1, 2).reshape(n_out, kw, n_in * kh)
    whitened = np.einsum("jl,oja,ab->olb", robust_cholesky(b), laid_out, robust_cholesky(a)).reshape(n_out * kw, -1)
    values = np.linalg.svd(whitened, compute_uv=False) ** 2
    loss = SpatialFactors(weight, np.kron(a, b)).loss
    np.testing.assert_allclose(loss, np.append(values[::-1].cumsum()[::-1], 0), rtol=1e-6, atol=1e-9 * loss[0])


@pytest.mark.parametrize("shape", KERNELS)
def test_directions_without_data_are_the_svd_of_the_rearranged_kernel(shape) -> None:
    weight = weight_of(shape)
    n_out, n_in, kh, kw = shape
    laid_out = weight.transpose(0, 3, 1, 2).reshape(n_out * kw, n_in * kh)
    factors = SpatialFactors(weight)
    for rank in (1, 3, factors.full):
        wanted = plain(laid_out, rank).reshape(n_out, kw, n_in, kh).transpose(0, 2, 3, 1).reshape(n_out, -1)
        np.testing.assert_allclose(product(factors, rank), wanted, atol=1e-9)


@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize(("form", "shape"), [("matmul", s) for s in SHAPES] + [("spatial", s) for s in KERNELS])
def test_full_rank_is_the_weight_itself(form, shape, with_data: bool) -> None:
    weight = weight_of(shape)
    x = windows(*shape[1:]) if form == "spatial" else rows(shape[1])
    factors = factors_of(weight, form, metric_of(Moments.of(x), centre=True) if with_data else None)
    assert factors.full == full_rank(shape, form)
    np.testing.assert_allclose(product(factors, factors.full), weight.reshape(len(weight), -1), atol=1e-9)
    assert relative(factors, factors.full) == pytest.approx(0, abs=1e-12)
    assert relative(factors, 0) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_of_low_rank_is_exact_at_that_rank(shape) -> None:
    weight = weight_of((shape[0], 5)) @ weight_of((5, shape[1]), 2)
    factors = MatrixFactors(weight, metric_of(Moments.of(rows(shape[1])), centre=True))
    np.testing.assert_allclose(product(factors, 5), weight, atol=1e-7)
    assert relative(factors, 5) < 1e-14 < relative(factors, 4)


def test_a_separable_kernel_is_exact_at_its_rank_and_splits_by_direction() -> None:
    weight = np.einsum("rcij,orjk->ocik", weight_of((4, 6, 3, 1)), weight_of((20, 4, 1, 3), 2))
    metric = metric_of(Moments.of(windows(6, 3, 3)), centre=True)
    np.testing.assert_allclose(product(SpatialFactors(weight, metric), 4), weight.reshape(20, -1), atol=1e-6)
    assert better_form(weight, metric, (1, 1)) == better_form(weight, None, (1, 1)) == "spatial"


def test_a_kernel_of_few_channels_splits_by_channel() -> None:
    weight = np.einsum("rcij,or->ocij", weight_of((8, 16, 3, 3)), weight_of((20, 8), 2))
    metric = metric_of(Moments.of(windows(16, 3, 3)), centre=True)
    assert better_form(weight, metric, (1, 1)) == better_form(weight, None, (1, 1)) == "channel"
    assert better_form(weight[:, :, :1], None, (1, 1)) == better_form(weight[:, :, 0], None, (1,)) == "channel"


@pytest.mark.parametrize("shape", KERNELS)
def test_the_second_direction_is_the_best_for_the_first(shape) -> None:
    x, weight = windows(*shape[1:]), weight_of(shape)
    metric = metric_of(Moments.of(x), centre=True)
    down, up = SpatialFactors(weight, metric).at(3)
    rng = np.random.default_rng(0)

    def loss(up: np.ndarray) -> float:
        off = weight.reshape(len(weight), -1) - spatial_matrix(down, up)
        return float(np.sum((off @ metric) * off))

    assert all(loss(up) < loss(up + 0.01 * rng.normal(size=up.shape)) for _ in range(10))


@pytest.mark.parametrize(("form", "shape"), [("channel", s) for s in KERNELS] + [("spatial", s) for s in KERNELS])
def test_both_halves_bear_equal_rounding(form, shape) -> None:
    """What lies between has, channel by channel, the root mean square of the column that reads it."""
    x, weight = windows(*shape[1:]), weight_of(shape)
    down, up = factors_of(weight, form, metric_of(Moments.of(x), centre=True, damping=0)).at(4)
    if form == "spatial":
        _, n_in, kh, kw = shape
        between = x.reshape(len(x), n_in * kh, kw).transpose(0, 2, 1).reshape(-1, n_in * kh) @ down.reshape(4, -1).T
        between = between - np.tile(between.reshape(-1, kw, 4).mean(axis=0), (len(x), 1))
    else:
        between = x @ down.T
    norms = np.sqrt(np.sum(up**2, axis=tuple(i for i in range(up.ndim) if i != 1)))
    np.testing.assert_allclose(np.sqrt(np.mean((between - between.mean(axis=0)) ** 2, axis=0)), norms, rtol=1e-6)


@pytest.mark.parametrize(("form", "shape"), [("matmul", (6, 9)), ("channel", (6, 5, 3, 3)), ("spatial", (4, 3, 3, 2))])
def test_ranks_beyond_full_are_filled_with_zeros(form, shape) -> None:
    weight = weight_of(shape)
    factors = factors_of(weight, form)
    rank = factors.full + 5
    down, up = factors.at(rank)
    assert len(down) == up.shape[1] == rank
    np.testing.assert_allclose(product(factors, rank), weight.reshape(len(weight), -1), atol=1e-9)


def test_a_rank_that_was_not_prepared_is_refused() -> None:
    factors = factors_of(weight_of((12, 20)), "matmul", most=4)
    np.testing.assert_allclose(product(factors, 4), plain(weight_of((12, 20)), 4), atol=1e-9)
    with pytest.raises(ValueError, match="rank 5"):
        factors.at(5)


@pytest.mark.parametrize("rank", [1, 4, 30])
@pytest.mark.parametrize(("form", "shape"), [("matmul", (6, 9)), ("channel", (6, 5, 3, 3)), ("spatial", (4, 3, 3, 2))])
def test_factors_without_arithmetic_have_the_same_shapes(form, shape, rank: int) -> None:
    weight = weight_of(shape)
    have, want = as_it_falls(weight, form, rank), factors_of(weight, form).at(rank)
    assert [w.shape for w in have] == [w.shape for w in want]
    if rank == 30:  # all outputs there are
        matrix = spatial_matrix(*have) if form == "spatial" else have[1] @ have[0]
        np.testing.assert_array_equal(matrix, weight.reshape(len(weight), -1))


def test_the_bias_takes_the_mean_of_what_is_lost() -> None:
    x, weight = rows(20), weight_of((12, 20))
    moments = Moments.of(x)
    instead = product(MatrixFactors(weight, metric_of(moments, centre=True)), 3)
    shift = mean_error(weight, moments.mean, instead)
    np.testing.assert_allclose((x @ weight.T).mean(axis=0), (x @ instead.T + shift).mean(axis=0), atol=1e-10)


@pytest.mark.parametrize(("form", "shape", "strides"), [
    ("matmul", (30, 50), ()), ("channel", (30, 20, 3, 3), (1, 1)), ("channel", (30, 20, 3, 3), (2, 2)),
    ("spatial", (30, 20, 3, 3), (1, 1)), ("spatial", (30, 20, 3, 5), (2, 2)), ("spatial", (30, 20, 3, 5), (2, 1)),
])  # fmt: skip
def test_at_break_even_both_take_as_many_multiply_adds(form, shape, strides) -> None:
    """Counted on a map of 24 x 24 that padding keeps."""
    height, width = (24, 24) if strides else (1, 1)
    sh, sw = strides or (1, 1)
    places = (height // sh) * (width // sw)
    rank = break_even(shape, form, strides)
    if form == "spatial":
        n_out, n_in, kh, kw = shape
        both = rank * n_in * kh * (height // sh) * width + n_out * rank * kw * places
    else:
        both = (rank * np.prod(shape[1:]) + shape[0] * rank) * places
    assert both == pytest.approx(np.prod(shape) * places)


def test_inputs_that_never_vary_and_weights_of_nothing_do_no_harm() -> None:
    x = rows(20)
    x[:, 3:9] = 2.0
    weight = weight_of((12, 20))
    metric = metric_of(Moments.of(x), centre=True)
    for w in (weight, 0 * weight):
        for rank in (0, 4, 12):
            down, up = MatrixFactors(w, metric).at(rank)
            assert np.isfinite(down).all() and np.isfinite(up).all() and np.abs(down).max(initial=0) < 1e3
    assert relative(MatrixFactors(0 * weight, metric), 4) == 0
