"""Second moments gathered by running a model are those of the rows that its readers see."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune import calibrate
from graphprune.backends import open_backend
from graphprune.calibrate import cross_moments, moments, slices_needed
from graphprune.compensate import CrossMoments, Moments, least_squares
from graphprune.context import Context
from graphprune.prepare import loader
from graphprune.views import reader_of, view_of
from tests.graphs import model_of, run, typed
from tests.test_refit import CNN, cnn, images

LOAD = loader(open_backend("host"))


def context(feeds) -> Context:
    return Context(typed(cnn(0), feeds[0]), feeds, LOAD)


def test_moments_are_those_of_the_unfolded_rows() -> None:
    feeds = images(5, 1)
    found = context(feeds)
    convolution = next(v for v in found.views.values() if v.reader.kind == "conv")
    (gathered,) = found.moments[convolution.key()]
    seen = model_of(CNN, {"x": ("N", 3, "H", "W")}, {n: v.const_value.numpy() for n, v in
                    found.model.graph.initializers.items()}, outputs=("c",))  # fmt: skip
    rows = np.concatenate([convolution.rows(run(seen, feed)["c"])[0] for feed in feeds]).astype(np.float64)
    assert gathered.n_samples == len(rows) == 5 * 4 * 4 * 4
    np.testing.assert_allclose(gathered.gram, rows.T @ rows, rtol=1e-5, atol=1e-5 * np.abs(gathered.gram).max())
    np.testing.assert_allclose(gathered.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_slices_give_the_same_moments_in_more_runs(monkeypatch) -> None:
    feeds = images(3, 1)
    found = context(feeds)
    views = list(found.views.values())
    steps: list[int] = []
    whole = moments(found.model, views, feeds, LOAD)
    assert slices_needed(views, found.model) == 1
    monkeypatch.setattr(calibrate, "_SLICE_BYTES", 1)
    sliced = moments(found.model, views, feeds, LOAD, lambda: steps.append(1))
    assert slices_needed(views, found.model) == len(views) and len(steps) == len(views) * len(feeds)
    for key in whole:
        assert np.array_equal(whole[key][0].gram, sliced[key][0].gram)


@pytest.mark.parametrize("mean", [0.0, 10.0, 1000.0, -3000.0])
def test_a_large_mean_does_not_drown_what_varies(mean: float) -> None:
    """Inputs that vary by 1 about a mean of thousands: float32 products about zero would lose them."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(6000, 12)) @ rng.normal(size=(12, 12)) + mean).astype(np.float32)
    y = (x[:, :4] * 0.5 - mean + rng.normal(size=(6000, 4))).astype(np.float32)
    (view,) = {v for v in context(images(1, 1)).views.values() if v.reader.kind == "matmul"}
    pairs = [(view, None, lambda dense, pruned: pruned["y"])]
    halves = [({}, {view.reader.x: x[i], "y": y[i]}) for i in (slice(0, 2500), slice(2500, None))]
    (found,) = cross_moments(pairs, halves)
    xx, xy = found.centred()
    x, y = (a.astype(np.float64) - a.astype(np.float64).mean(axis=0) for a in (x, y))
    np.testing.assert_allclose(xx, x.T @ x, atol=1e-4 * np.abs(x.T @ x).max())
    np.testing.assert_allclose(xy, x.T @ y, atol=1e-4 * np.abs(x.T @ x).max())
    assert np.linalg.eigvalsh(xx)[0] > 0


@pytest.mark.parametrize("scale", [1.0, 1e15])
def test_inputs_that_never_vary_have_no_scatter_and_can_be_solved_with(scale: float) -> None:
    """What rounding leaves of the difference of two large sums is no data, and may be negative."""
    rng = np.random.default_rng(1)
    x = scale * np.tile(rng.normal(size=6), (496, 1)) * (1 + 1e-13 * rng.normal(size=(496, 6)))
    x[:, 5] = scale * rng.normal(size=496)
    weight = rng.normal(size=(4, 6))
    found = CrossMoments.of(x, x @ weight.T)
    xx, xy = found.centred()
    assert not xx[:5].any() and not xx[:, :5].any() and not xy[:5].any() and xx[5, 5] > 0
    for keep in (np.arange(6), np.arange(4), np.array([0, 5])):
        matrix, bias = least_squares(weight, np.zeros(4), Moments.of(x), keep)
        np.testing.assert_allclose(x[:, keep] @ matrix.T + bias, x @ weight.T if 5 in keep else
                                   np.tile((x @ weight.T).mean(axis=0), (496, 1)), rtol=1e-2,
                                   atol=1e-2 * scale if 5 in keep else 9 * scale)  # fmt: skip


def test_a_layer_that_no_row_ever_reaches_is_known_by_its_weights_and_left_as_it_is() -> None:
    """An expert that no token is sent to: its inputs count alike, and no target asks anything of it."""
    found = context(images(2, 1))
    (view,) = {v for v in found.views.values() if v.reader.kind == "matmul"}
    n = found.model.graph.initializers[view.reader.w].const_value.shape[view.reader.contracted]
    nothing = [{view.reader.x: np.zeros((0, n), np.float32)}] * 3
    ((own,),) = moments(found.model, [view], nothing, lambda model: lambda feed: feed).values()
    np.testing.assert_array_equal(own.gram, np.eye(n))
    assert own.n_samples == 1 and not own.mean.any()
    pairs = [(view, None, lambda dense, pruned: pruned["y"])]
    halves = [({}, values | {"y": np.zeros((0, 4), np.float32)}) for values in nothing]
    assert cross_moments(pairs, halves) == [None]


@pytest.mark.parametrize("n_feeds", [1, 3])
def test_filter_banks_have_moments_of_their_own_inputs(n_feeds: int) -> None:
    """All banks of a depthwise convolution at once, as each by itself; also about a large mean."""
    model = model_of("result = Conv<group=6, pads=[1, 1, 1, 1]>(x, w)", {"x": (2, 6, 5, 5)}, {"w": (6, 1, 3, 3)})
    (node,) = model.graph
    view = view_of(reader_of(node), node, node.inputs[1])
    rng = np.random.default_rng(0)
    feeds = [{"x": (100 + rng.normal(size=(2, 6, 5, 5))).astype(np.float32)} for _ in range(n_feeds)]
    (banks,) = moments(model, [view], feeds, LOAD).values()
    rows = [np.concatenate([view.rows(f["x"])[i] for f in feeds]) for i in range(6)]
    assert len(banks) == 6
    for own, x in zip(banks, rows, strict=True):
        wanted = Moments.of(x)
        assert own.n_samples == wanted.n_samples
        np.testing.assert_allclose(own.gram, wanted.gram, rtol=1e-6)
        np.testing.assert_allclose(own.mean, wanted.mean, rtol=1e-6)
        scatter = wanted.scatter()
        np.testing.assert_allclose(own.scatter(), scatter, rtol=1e-3, atol=1e-3 * np.abs(scatter).max())
