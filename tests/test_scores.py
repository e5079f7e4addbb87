"""Laws of the channel scores, the sweep and the compensation, against explicit least squares on data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.compensate import CrossMoments, Moments, least_squares, refit, ridge_of
from graphprune.errors import UsageError
from graphprune.scores import Reader, improve, output_energy, rank, sweep
from tools.bench_sweep import plain_loop
from tools.bench_sweep import reader as bench_reader

DAMPING = 0.01


def data(rng, n_samples, n_inputs):
    """Correlated, non-negative, off-centre inputs, as after a rectifier."""
    rank_ = max(1, n_inputs // 2)
    hidden = rng.normal(size=(n_samples, rank_)) @ rng.normal(size=(rank_, n_inputs))
    return np.maximum(hidden + 0.5, 0) + 0.1 * rng.normal(size=(n_samples, n_inputs)) + rng.normal(size=n_inputs)


class Case:
    """Readers of one group, and the data their moments come from."""

    def __init__(self, rng, n, sizes, fixed=0, n_samples=None):
        self.readers, self.inputs = [], []
        for size in sizes:
            n_inputs = n * size + fixed
            x = data(rng, n_samples or 5 * n_inputs, n_inputs)
            columns = rng.permutation(n_inputs)[: n * size].reshape(n, size)
            w = rng.normal(size=(int(rng.integers(1, 2 * n_inputs)), n_inputs))
            self.readers.append(Reader(w, Moments.of(x), columns))
            self.inputs.append(x)

    def loss(self, removed):
        """The least damped squared error with `removed` channels gone, by numpy's least squares on the data itself."""
        return sum(
            explicit_loss(x, r.weight, r.columns[removed].ravel())
            for r, x in zip(self.readers, self.inputs, strict=True)
        )


def explicit_loss(x, w, gone, damping=DAMPING):
    centred = x - x.mean(axis=0)
    ridge = np.sqrt(ridge_of(centred.T @ centred, damping))
    rows = np.vstack([centred, ridge * np.eye(x.shape[1])])  # ridge toward w = data that want no change
    kept = np.setdiff1d(np.arange(x.shape[1]), gone)
    target = rows[:, gone] @ w[:, gone].T
    if not len(kept):
        return np.sum(target**2)
    change = np.linalg.lstsq(rows[:, kept], target, rcond=None)[0]
    return np.sum((target - rows[:, kept] @ change) ** 2)


cases = st.builds(
    lambda seed, n, sizes, fixed: Case(np.random.default_rng(seed), n, sizes, fixed),
    st.integers(0, 10_000),
    st.integers(1, 7),
    st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3),
    st.integers(0, 4),
)
quickly = settings(max_examples=40, deadline=None)


@quickly
@given(cases)
def test_loss_at_every_width_is_the_residual_of_explicit_least_squares(case):
    found = sweep(case.readers, damping=DAMPING, floor=0)
    n = len(found.order)
    explicit = [case.loss(found.order[: n - k]) for k in range(n + 1)]
    np.testing.assert_allclose(found.loss, explicit, rtol=1e-7, atol=1e-9 * explicit[0])


@quickly
@given(cases)
def test_each_removal_is_the_cheapest_there_is(case):
    order = list(sweep(case.readers, damping=DAMPING, floor=0).order)
    for step, channel in enumerate(order):
        costs = {j: case.loss([*order[:step], j]) for j in order[step:]}
        assert costs[channel] <= min(costs.values()) * (1 + 1e-7)


@quickly
@given(cases)
def test_loss_never_falls_as_channels_go(case):
    found = sweep(case.readers, damping=DAMPING)
    assert sorted(found.order) == list(range(len(found.order)))
    assert found.loss[-1] == 0 and np.isinf(found.loss[0])
    assert (np.diff(found.loss[1:]) <= 0).all()


@quickly
@given(cases, st.data())
def test_least_squares_attains_the_loss_of_the_sweep(case, draw):
    found = sweep(case.readers, damping=DAMPING, floor=0)
    k = draw.draw(st.integers(0, len(found.order)))
    total = 0.0
    for r, x in zip(case.readers, case.inputs, strict=True):
        gone = np.setdiff1d(r.columns, r.columns[found.keep(k)])
        kept = np.setdiff1d(np.arange(x.shape[1]), gone)
        w, b = least_squares(r.weight, None, r.moments, kept, damping=DAMPING)
        ridge = ridge_of(r.moments.scatter(), DAMPING)
        change = np.sum((w - r.weight[:, kept]) ** 2) + np.sum(r.weight[:, gone] ** 2)
        total += np.sum((x[:, kept] @ w.T + b - x @ r.weight.T) ** 2) + ridge * change
    np.testing.assert_allclose(total, found.loss[k], rtol=1e-7, atol=1e-9 * found.energy.sum())


@quickly
@given(cases, st.data())
def test_compensation_never_increases_the_error(case, draw):
    n = len(case.readers[0].columns)
    keep = draw.draw(st.lists(st.integers(0, n - 1), unique=True))
    for r, x in zip(case.readers, case.inputs, strict=True):
        kept = np.setdiff1d(np.arange(x.shape[1]), np.delete(r.columns, keep, axis=0))
        bias = np.ones(len(r.weight))
        y = x @ r.weight.T + bias
        w, b = least_squares(r.weight, bias, r.moments, kept)
        only_bias = y.mean(axis=0) - x[:, kept].mean(axis=0) @ r.weight[:, kept].T
        for old in (bias, only_bias):
            before = np.sum((x[:, kept] @ r.weight[:, kept].T + old - y) ** 2)
            assert np.sum((x[:, kept] @ w.T + b - y) ** 2) <= before * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("score", ["second-order", "magnitude", "activation"])
@pytest.mark.parametrize("compensation", ["least-squares", "bias", "none"])
def test_every_score_reports_the_true_loss_of_its_order(score, compensation):
    case = Case(np.random.default_rng(3), 9, [1, 3], fixed=2)
    found = rank(case.readers, score=score, compensation=compensation, damping=DAMPING, floor=2)
    assert np.isinf(found.loss[:2]).all()
    for k in range(2, 10):
        gone = found.order[: 9 - k]
        if compensation == "least-squares":
            explicit = case.loss(gone)
        else:
            parts = [
                x[:, r.columns[gone].ravel()] @ r.weight[:, r.columns[gone].ravel()].T
                for r, x in zip(case.readers, case.inputs, strict=True)
            ]
            explicit = sum(np.sum((p - p.mean(axis=0) * (compensation == "bias")) ** 2) for p in parts)
        assert found.loss[k] == pytest.approx(explicit, rel=1e-7, abs=1e-9)


def test_magnitude_and_activation_orders_are_those_of_their_definitions():
    case = Case(np.random.default_rng(5), 8, [2, 1])
    producer = np.random.default_rng(0).normal(size=(8, 3, 2))
    norms = sum(np.sum(r.weight[:, r.columns] ** 2, axis=(0, 2)) for r in case.readers)
    norms = norms + np.sum(producer**2, axis=(1, 2))
    assert list(rank(case.readers, score="magnitude", producers=[producer]).order) == list(np.argsort(norms))
    for centre, spread in ((True, np.var), (False, lambda x, axis: np.mean(x**2, axis))):
        wanda = sum(
            len(x) * np.sum(np.sum(r.weight**2, axis=0)[r.columns] * spread(x, 0)[r.columns], axis=1)
            for r, x in zip(case.readers, case.inputs, strict=True)
        )
        assert list(rank(case.readers, score="activation", centre=centre).order) == list(np.argsort(wanda))


def test_second_order_beats_the_other_scores_on_correlated_inputs():
    case = Case(np.random.default_rng(1), 40, [1], n_samples=2000)
    best = sweep(case.readers)
    for score in ("magnitude", "activation"):
        other = rank(case.readers, score=score)
        assert (best.loss[5:36] <= other.loss[5:36] * (1 + 1e-9)).all()
        assert best.loss[20] < other.loss[20] < rank(case.readers, score=score, compensation="bias").loss[20]


def test_exact_duplicates_cost_next_to_nothing():
    rng = np.random.default_rng(0)
    x = np.tile(data(rng, 400, 20), 2)
    found = sweep([Reader(rng.normal(size=(7, 40)), Moments.of(x), np.arange(40)[:, None])], damping=1e-8)
    assert len({j % 20 for j in found.keep(20)}) == 20
    assert found.relative[20] < 1e-6 < 1e-3 < found.relative[19]


def test_a_constant_input_is_free_and_the_bias_takes_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)) + 1
    x[:, 4] = 3.0
    w = rng.normal(size=(5, 6))
    found = sweep([Reader(w, Moments.of(x), np.arange(6)[:, None])])
    assert found.order[0] == 4 and found.loss[5] == 0
    kept = np.delete(np.arange(6), 4)
    w_new, b_new = least_squares(w, None, Moments.of(x), kept)
    np.testing.assert_allclose(x[:, kept] @ w_new.T + b_new, x @ w.T, atol=1e-9)


def test_ties_and_all_zero_inputs_go_by_index():
    w = np.ones((3, 10))
    for x in (np.zeros((5, 10)), np.kron([[1.0], [-1.0]], np.eye(10))):
        for size in (1, 2):
            reader = Reader(w, Moments.of(x), np.arange(10).reshape(-1, size))
            assert list(sweep([reader]).order) == list(range(10 // size))
    zero = sweep([Reader(w, Moments.of(np.zeros((5, 10))), np.arange(10)[:, None])])
    assert (zero.loss[1:] == 0).all() and (zero.relative == 0).all()


def test_readers_of_the_same_inputs_count_like_one_stacked_reader():
    rng = np.random.default_rng(2)
    m, w, columns = Moments.of(data(rng, 200, 12)), rng.normal(size=(9, 12)), np.arange(12).reshape(6, 2)
    parts = [Reader(w[:4], m, columns), Reader(w[4:], m, columns)]
    copy = Moments(m.gram.copy(), m.mean.copy(), m.n_samples)
    apart = [Reader(w[:4], m, columns), Reader(w[4:], copy, columns)]
    whole = sweep([Reader(w, m, columns)])
    for readers in (parts, apart):
        found = sweep(readers)
        assert list(found.order) == list(whole.order)
        np.testing.assert_allclose(found.loss[1:], whole.loss[1:], rtol=1e-9)


def test_reader_weights_scale_the_loss_and_zero_silences():
    case = Case(np.random.default_rng(4), 8, [1, 2])
    alone = sweep(case.readers[1:])
    found = sweep(case.readers, weights=[0, 3])
    assert list(found.order) == list(alone.order)
    np.testing.assert_allclose(found.loss[1:], 3 * alone.loss[1:], rtol=1e-9)
    np.testing.assert_allclose(found.relative[1:], alone.relative[1:], rtol=1e-9)


@pytest.mark.parametrize("centre", [True, False])
def test_output_energy_is_that_of_the_data(centre):
    case = Case(np.random.default_rng(4), 8, [1, 2], fixed=1)
    outputs = [x @ r.weight.T for r, x in zip(case.readers, case.inputs, strict=True)]
    expected = [np.sum((y - centre * y.mean(axis=0)) ** 2) for y in outputs]
    np.testing.assert_allclose(output_energy(case.readers, centre), expected, rtol=1e-9)


def test_channels_a_reader_does_not_see_cost_it_nothing():
    rng = np.random.default_rng(6)
    x, w = data(rng, 200, 8), rng.normal(size=(4, 8))
    columns = np.full((6, 2), -1)
    columns[[0, 2, 3, 5]] = np.arange(8).reshape(4, 2)
    found = sweep([Reader(w, Moments.of(x), columns)], floor=0)
    inner = sweep([Reader(w, Moments.of(x), np.arange(8).reshape(4, 2))], floor=0)
    assert list(found.order[:2]) == [1, 4] and list(found.loss[4:]) == [0, 0, 0]
    np.testing.assert_allclose(found.loss[:5], inner.loss, rtol=1e-9)
    assert list(found.order[2:]) == list(np.array([0, 2, 3, 5])[inner.order])


def test_lazy_blocks_equal_the_plain_loop_over_many_flushes():
    reader = bench_reader(300, 40, 1)
    np.testing.assert_allclose(sweep([reader], damping=DAMPING).loss[1:], plain_loop(reader)[1:], rtol=1e-8)


def test_floor_stops_early_and_changes_nothing_above_it():
    case = Case(np.random.default_rng(8), 9, [2])
    whole, part = sweep(case.readers, floor=0), sweep(case.readers, floor=4)
    assert list(part.order[:5]) == list(whole.order[:5])
    np.testing.assert_array_equal(part.loss[4:], whole.loss[4:])


@quickly
@given(cases, st.data())
def test_swaps_lower_the_loss_at_equal_width_and_report_it_exactly(case, draw):
    n = len(case.readers[0].columns)
    keep = draw.draw(st.lists(st.integers(0, n - 1), unique=True))
    better, loss, before = improve(case.readers, keep, damping=DAMPING)
    everything = np.arange(n)
    scale = case.loss(everything)
    assert len(better) == len(keep) and loss <= before
    np.testing.assert_allclose(before, case.loss(np.setdiff1d(everything, keep)), rtol=1e-7, atol=1e-9 * scale)
    np.testing.assert_allclose(loss, case.loss(np.setdiff1d(everything, better)), rtol=1e-7, atol=1e-9 * scale)


@pytest.mark.parametrize("size", [1, 2])
def test_swaps_stay_exact_over_many_flushes(size):
    case = Case(np.random.default_rng(10), 120, [size, 1], fixed=5, n_samples=400)
    better, loss, before = improve(case.readers, sweep(case.readers).order[:40], damping=DAMPING)
    assert loss < 0.9 * before
    assert loss == pytest.approx(case.loss(np.setdiff1d(np.arange(120), better)), rel=1e-7)


def test_swaps_repair_a_bad_choice_to_near_the_best_there_is():
    case = Case(np.random.default_rng(9), 10, [1, 2])
    bad = sweep(case.readers).order[:5]  # keeps exactly what greedy would remove
    _, loss, before = improve(case.readers, bad)
    best = min(improve(case.readers, list(k), max_rounds=0)[1] for k in itertools.combinations(range(10), 5))
    assert best <= loss * (1 + 1e-9) and loss < 1.1 * best < before


def test_results_do_not_depend_on_the_run():
    case = Case(np.random.default_rng(7), 30, [3], fixed=3)
    one, two = sweep(case.readers), sweep(case.readers)
    assert one.order.tobytes() == two.order.tobytes() and one.loss.tobytes() == two.loss.tobytes()


# --- compensation -------------------------------------------------------------------------------------------------


def test_moments_add_up_like_their_data():
    rng = np.random.default_rng(0)
    x, y = data(rng, 50, 4), rng.normal(size=(50, 3))
    both, whole = Moments.of(x[:20]) + Moments.of(x[20:]), Moments.of(x)
    np.testing.assert_allclose(both.scatter(), np.cov(x.T, bias=True) * 50, rtol=1e-9)
    np.testing.assert_allclose(both.mean, whole.mean, rtol=1e-12)
    cross = CrossMoments.of(x[:20], y[:20]) + CrossMoments.of(x[20:], y[20:])
    xx, xy = cross.centred()
    np.testing.assert_allclose(xx, whole.scatter(), rtol=1e-9)
    np.testing.assert_allclose(xy, (x - x.mean(0)).T @ (y - y.mean(0)), rtol=1e-9, atol=1e-9)


def test_least_squares_without_damping_is_ordinary_least_squares():
    rng = np.random.default_rng(1)
    x, w, b = data(rng, 500, 10), rng.normal(size=(4, 10)), rng.normal(size=4)
    kept = [7, 0, 3, 5]
    w_new, b_new = least_squares(w, b, Moments.of(x), kept, damping=0)
    design = np.column_stack([x[:, kept], np.ones(500)])
    expected = np.linalg.lstsq(design, x @ w.T + b, rcond=None)[0]
    np.testing.assert_allclose(np.column_stack([w_new, b_new]), expected.T, rtol=1e-6, atol=1e-8)
    raw, none = least_squares(w, None, Moments.of(x), kept, damping=0, centre=False)
    assert none is None
    np.testing.assert_allclose(raw.T, np.linalg.lstsq(x[:, kept], x @ w.T, rcond=None)[0], rtol=1e-6, atol=1e-8)


def test_the_ridge_pulls_toward_the_original_weights():
    rng = np.random.default_rng(1)
    x, w = data(rng, 100, 6), rng.normal(size=(4, 6)).astype(np.float32)
    kept = np.array([0, 2, 5])
    near, bias = least_squares(w, None, Moments.of(x), kept, damping=1e9)
    np.testing.assert_allclose(near, w[:, kept], rtol=1e-5)
    assert near.dtype == np.float32 and bias.dtype == np.float32
    all_kept, zero = least_squares(w, np.zeros(4), Moments.of(x), np.arange(6))
    np.testing.assert_array_equal(all_kept, w)
    np.testing.assert_allclose(zero, 0, atol=1e-6)


def test_nothing_kept_leaves_the_mean():
    rng = np.random.default_rng(1)
    x, w = data(rng, 100, 6), rng.normal(size=(4, 6))
    w_new, b_new = least_squares(w, np.ones(4), Moments.of(x), [])
    assert w_new.shape == (4, 0)
    np.testing.assert_allclose(b_new, 1 + w @ x.mean(axis=0))


def test_refit_without_damping_is_ordinary_least_squares_and_exact_targets_are_met():
    rng = np.random.default_rng(2)
    x, w0 = data(rng, 400, 8), rng.normal(size=(3, 8))
    y = x @ rng.normal(size=(8, 3)) + 2 + 0.1 * rng.normal(size=(400, 3))
    w, b = refit(w0, None, CrossMoments.of(x, y), damping=0)
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(400)]), y, rcond=None)[0]
    np.testing.assert_allclose(np.column_stack([w, b]), expected.T, rtol=1e-6, atol=1e-8)
    same, same_b = refit(w0, np.ones(3), CrossMoments.of(x, x @ w0.T + 1), damping=0.1)
    np.testing.assert_allclose(same, w0, atol=1e-9)
    np.testing.assert_allclose(same_b, 1, atol=1e-9)


def held_out(n_samples, n_inputs, noise, seed, batch=8):
    """Targets that a changed weight explains, plus noise; samples within a batch are alike, as tokens of a text are."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(n_inputs, n_inputs)) * np.arange(1, n_inputs + 1)[:, None] ** -0.5
    w0 = rng.normal(size=(12, n_inputs))
    w_true = w0 + 0.3 * rng.normal(size=w0.shape)

    def draw(n):
        z = rng.normal(size=(n, n_inputs)) + 2 * np.repeat(rng.normal(size=(n // batch, n_inputs)), batch, axis=0)
        x = np.maximum(z @ mix, 0)
        y = x @ w_true.T
        return x, y + noise * y.std() * rng.normal(size=y.shape)

    x, y = draw(n_samples)
    half = n_samples // 2
    folds = [CrossMoments.of(x[:half], y[:half]), CrossMoments.of(x[half:], y[half:])]
    return w0, folds, *draw(4000)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("n_samples", [16, 64, 256, 2048])
def test_cross_validated_refit_is_not_worse_than_the_old_weights_on_new_data(n_samples, noise):
    for seed in range(3):
        w0, folds, x, y = held_out(n_samples, 64, noise, seed)
        w, b = refit(w0, np.zeros(12), folds)
        before, after = np.mean((x @ w0.T - y) ** 2), np.mean((x @ w.T + b - y) ** 2)
        assert after <= 1.02 * before  # a change that gains nothing is refused; one that gains little may be chance
        if n_samples == 2048 and noise < 1:
            assert after < 0.5 * before + np.mean((noise * y) ** 2)


def test_cross_validation_beats_a_weak_fixed_damping_when_samples_are_few():
    for seed in range(3):
        w0, folds, x, y = held_out(64, 64, 1.0, seed)

        def error(damping, w0=w0, folds=folds, x=x, y=y):
            w, b = refit(w0, np.zeros(12), folds, damping=damping)
            return np.mean((x @ w.T + b - y) ** 2)

        assert error(None) < error(0.001)
        assert error(None) < 1.05 * min(error(d) for d in (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10))


@pytest.mark.parametrize("centre", [True, False])
def test_inputs_that_are_all_zero_leave_the_weights_alone(centre):
    w, zero, y = np.ones((2, 3)), np.zeros((6, 3)), np.full((6, 2), 5.0)
    for folds in (CrossMoments.of(zero, y), [CrossMoments.of(zero[:3], y[:3]), CrossMoments.of(zero[3:], y[3:])]):
        w_new, b_new = refit(w, None, folds, centre=centre)
        np.testing.assert_array_equal(w_new, w)
        assert b_new is None if not centre else list(b_new) == [5, 5]
    w_new, _ = least_squares(w, None, Moments.of(zero), [0, 2], centre=centre)
    np.testing.assert_array_equal(w_new, w[:, [0, 2]])


def test_folds_of_moments_cross_validate_least_squares_too():
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(80, 80)) * np.arange(1, 81)[:, None] ** -0.7
    x, new = (np.maximum(rng.normal(size=(n, 80)) @ mix, 0) for n in (60, 4000))
    w, kept = rng.normal(size=(10, 80)), np.arange(0, 80, 2)
    folds = [Moments.of(x[:30]), Moments.of(x[30:])]

    def error(moments, damping):
        w_new, b_new = least_squares(w, None, moments, kept, damping=damping)
        return np.mean((new[:, kept] @ w_new.T + b_new - new @ w.T) ** 2)

    assert error(folds, None) < 1.1 * min(error(Moments.of(x), d) for d in (0.01, 0.1, 1, 10))
    np.testing.assert_allclose(error(folds, 0.1), error(Moments.of(x), 0.1), rtol=1e-9)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_bad_input_is_named():
    good = Moments(np.eye(3), np.zeros(3), 4)
    w, columns = np.ones((2, 3)), np.arange(3)[:, None]
    r = Reader(w, good, columns)
    bad = {
        "NaN or infinity": [
            lambda: Moments(np.full((3, 3), np.nan), np.zeros(3), 4),
            lambda: CrossMoments(np.eye(3), np.full((3, 2), np.inf), np.zeros(3), np.zeros(2), 4),
            lambda: Reader(np.full((2, 3), np.inf), good, columns),
            lambda: least_squares(np.full((2, 3), np.nan), None, good, [0]),
        ],
        "no samples": [lambda: Moments(np.eye(3), np.zeros(3), 0)],
        "disagree": [
            lambda: Moments(np.eye(3), np.zeros(2), 4),
            lambda: sweep([r, Reader(w, good, columns[:2])]),
        ],
        "does not read": [lambda: Reader(np.ones((2, 4)), good, columns)],
        "columns must be": [
            lambda: Reader(w, good, columns + 1),
            lambda: Reader(w, good, columns * 0),
            lambda: Reader(w, good, np.array([[0, -1]])),
            lambda: Reader(w, good, columns * 1.0),
        ],
        "floor": [lambda: sweep([r], floor=4)],
        "damping": [lambda: sweep([r], damping=-1), lambda: least_squares(w, None, good, [0], damping=np.nan)],
        "no moments": [lambda: least_squares(w, None, [], [0])],
        "cannot account for a bias": [
            lambda: refit(w, np.ones(2), CrossMoments.of(np.eye(3), np.ones((3, 2))), centre=False)
        ],
        "without readers": [lambda: sweep([])],
        "reader weights": [lambda: sweep([r], weights=[1, 2]), lambda: sweep([r], weights=[-1])],
        "cannot keep": [lambda: sweep([r]).keep(4)],
        "unknown score 'magnitud'": [lambda: rank([r], score="magnitud")],
        "unknown compensation": [lambda: rank([r], compensation="biased")],
        "negative eigenvalues": [lambda: sweep([Reader(w, Moments(-np.eye(3) + 3, np.zeros(3), 4), columns)])],
    }
    for message, calls in bad.items():
        for call in calls:
            with pytest.raises(UsageError, match=message):
                call()
