"""The models the project is judged on: parts of the data do not overlap, metrics notice faults, dense networks do well.

A model whose package or data is not on this machine is skipped with the command that would bring it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from graphprune.errors import EnvironmentFault, UsageError
from models import debian, images, mnist_cnn, objects, pp_det, pp_rec, text, zoo
from models.task import Run, Task, batches, cached, onnx_runner, package_file, replacing
from models.zoo.base import VOCABULARY

Value = TypeVar("Value")
# Least quality of the dense network on the first samples: how many of them, and the headline metric.
DENSE = {"pp_rec": (100, 0.97), "pp_det": (12, 0.85), "pp_cls": (100, 0.93), "minilm": (40, 0.9999),
         "mnist_cnn": (1000, 0.98), "efficientnet_lite0": (16, 1.0)}


def present(make: Callable[[], Value]) -> Value:
    """What `make` gives, or a skip that says what this machine lacks."""
    try:
        return make()
    except EnvironmentFault as fault:
        pytest.skip(f"NOT TESTED, missing on this machine: {fault}")


def dense(task: Task) -> Run:
    return onnx_runner(present(task.model))


@pytest.mark.parametrize("name", models.TASKS)
def test_dense_network_does_its_task(name: str) -> None:
    task = models.get(name)
    limit, least = DENSE[name]
    run = dense(task)
    got = present(lambda: task.evaluate(run, limit))
    assert got[task.headline] >= least, got


@pytest.mark.parametrize("name", models.TASKS)
def test_metric_notices_a_broken_network(name: str) -> None:
    task = models.get(name)
    run = dense(task)

    def broken(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output with its features in the reverse order, as a slice of the wrong channels would leave them."""
        return {key: value[..., ::-1].copy() for key, value in run(feed).items()}

    got = present(lambda: task.evaluate(broken, 16))
    assert got[task.headline] < 0.7 * DENSE[name][1], got


@pytest.mark.parametrize("name", models.TASKS)
def test_calibration_feeds_fit_the_model_and_repeat(name: str) -> None:
    task = models.get(name)
    run = dense(task)
    feeds, again = present(lambda: task.calibration(3)), task.calibration(2)
    assert len(feeds) == 3
    for feed in feeds:
        assert feed.keys() == task.shapes.keys()
        for key, shape in task.shapes.items():  # a text may be shorter than the shape that is timed
            assert feed[key].ndim == len(shape) and all(a <= b for a, b in zip(feed[key].shape, shape, strict=True))
        assert all(np.isfinite(value).all() for value in run(feed).values())
    for one, other in zip(feeds, again, strict=False):
        assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("n", [1, 50, 700])
def test_calibration_and_evaluation_strings_are_disjoint(n: int) -> None:
    calibration, evaluation = text.strings(n, "calibration"), text.strings(700, "evaluation")
    assert len(set(calibration)) == n and not set(calibration) & set(evaluation)


def test_calibration_and_evaluation_packages_are_disjoint() -> None:
    evaluation, calibration = present(debian.evaluation), debian.calibration()
    assert len(evaluation) == debian.N_EVALUATION and len(calibration) >= 256
    for key in (lambda d: d.package.split("-")[0], lambda d: d.short, lambda d: d.long[:80]):
        assert not {key(d) for d in evaluation} & {key(d) for d in calibration}


def test_calibration_and_evaluation_photographs_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    present(images.photographs)
    left = np.broadcast_to((np.arange(90) < 60)[None, :, None] * np.uint8(200), (90, 90, 3))
    monkeypatch.setattr(images, "photographs", lambda: (left,) * len(images.PHOTOGRAPHS))
    assert images.pictures(9, "calibration", 16).min() > 100  # only the light two thirds
    assert images.pictures(9, "evaluation", 16).max() < 100  # only the dark third


def test_calibration_and_evaluation_show_different_objects_and_longer_prefixes_begin_with_shorter_ones() -> None:
    found = present(objects.objects)
    own = {part: {name for name in found if text.part_of(name) == part} for part in ("calibration", "evaluation")}
    assert min(map(len, own.values())) >= 100 and not own["calibration"] & own["evaluation"]
    for part in own:
        one, other = objects.pictures(3, part, 32), objects.pictures(5, part, 32)
        assert one.shape == (3, 32, 32, 3) and np.array_equal(one, other[:3])
    opaque = {name: np.full((9, 9, 4), 255 * (text.part_of(name) == "evaluation"), np.uint8) for name in found}
    for pixels in opaque.values():
        pixels[..., 3] = 255
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "objects", lambda: opaque)
        dark, light = (objects.pictures(9, part, 32).reshape(9, -1) for part in own)
    assert dark.min(1).max() < 50 and light.max(1).min() > 200, "each part shows its own"


@pytest.mark.parametrize(("script", "says"), [
    (None, "apt-get is not there"), ("echo 'E: Unable to locate package' >&2; exit 100", "Unable to locate"),
    ("exit 0", "fetched no"),
])  # fmt: skip
def test_photographs_that_cannot_be_fetched_are_an_error_with_the_commands_that_would(
    script: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        (tmp_path / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=f"(?s){says}.*apt-get download {objects.PACKAGE}"):
        objects._unpacked(tmp_path)


def test_mnist_split_is_stratified_and_disjoint() -> None:
    data = present(mnist_cnn.digits)
    assert np.bincount(data["y_test"]).tolist() == [100] * 10
    assert len(data["y_train"]) == 4000
    train = {x.tobytes() for x in data["x_train"]}
    assert not any(x.tobytes() in train for x in data["x_test"])


def test_descriptions_are_parsed_and_near_copies_dropped() -> None:
    long = " first line\n second line\n .\n third " + "x" * 300
    stanza = "Package: {}\nDescription-md5: 0\nDescription-en: {}\n" + long
    found = list(debian.parse("\n\n".join([stanza.format("a", "short a"), stanza.format("a-data", "other"),
                                           stanza.format("b", "short a"), "Package: c\nDescription-en: no body"])))
    assert [d.package for d in found] == ["a", "a-data", "b"]
    assert found[0].short == "short a" and found[0].long.startswith("first line second line third x")
    assert len(debian.select(iter(found))) == 1


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert pp_rec.distance(a, a) == 0 and pp_rec.distance("", b) == len(b)
    assert (pp_rec.distance(a, b) == 0) == (a == b)
    assert pp_rec.distance(a, b) == pp_rec.distance(b, a)
    assert pp_rec.distance(a, c) <= pp_rec.distance(a, b) + pp_rec.distance(b, c)


def test_greedy_decoding_merges_repeats_and_drops_blanks() -> None:
    characters = present(pp_rec.characters)
    assert len(characters) == 6625 and characters[0] == "" and characters[-1] == " "
    steps = [characters.index(c) for c in "aa-ab"]
    steps[2] = 0
    assert pp_rec.decode(np.eye(6625)[steps]) == "aab"


def test_text_core_is_inside_its_box() -> None:
    truth = np.zeros((40, 100), bool)
    pp_det.core(truth, 10, 5, 80, 20)
    rows, columns = np.nonzero(truth)
    # Area 1600, perimeter 200: every side moves in by 1600 * 0.84 / 200 = 6.72.
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (12, 18, 17, 83)
    assert pp_det.f1(truth, truth) == 1 and pp_det.f1(truth, ~truth) == 0


@pytest.mark.parametrize("name", [a.name for a in zoo.architectures().values() if a.core])
def test_zoo_network_is_small_runs_at_any_batch_and_hides_nothing(name: str) -> None:
    path = present(lambda: zoo.build(name))
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model)
    assert path.stat().st_size < 5_000_000
    for tensor in model.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype.kind == "f" and value.ndim and value.size > 1 and "mask" not in tensor.name:
            assert np.ptp(value) > 0, f"{tensor.name} is {value.flat[0]} throughout"
    run, rng = onnx_runner(path), np.random.default_rng(0)
    for batch, sequence in ((1, 5), (3, 9)):
        feed = {}
        for value in model.graph.input:
            sizes = {"batch": batch, "sequence": sequence}
            shape = [sizes.get(d.dim_param, d.dim_value) for d in value.type.tensor_type.shape.dim]
            feed[value.name] = rng.normal(size=shape).astype(np.float32) if value.name == "pixels" else \
                rng.integers(1, VOCABULARY if value.name == "input_ids" else 2, shape)
        (y,) = run(feed).values()
        assert y.shape[0] == batch and np.isfinite(y).all()
    assert np.abs(y - y[:1]).max() > 1e-2 * np.abs(y).max(), "the output hardly depends on the input"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'pp_rec'"):
        models.get("pp_reg")
    with pytest.raises(UsageError, match="did you mean 'swin'"):
        zoo.build("swim")


def test_missing_package_names_the_command() -> None:
    with pytest.raises(EnvironmentFault, match=r"(?s)no_such_package.*pip install no-such-package"):
        package_file("no_such_package", "model.onnx", install="no-such-package")


def test_too_many_samples_are_refused() -> None:
    present(mnist_cnn.digits)
    with pytest.raises(UsageError, match="there are 4000"):
        mnist_cnn.calibration(4001)


def test_cache_holds_finished_files_and_follows_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source"
    source.write_text("1")
    first = cached("a.txt", lambda path: path.write_text("one") and None, source)
    assert cached("a.txt", lambda path: pytest.fail("made twice"), source) == first
    source.write_text("2")
    assert cached("a.txt", lambda path: path.write_text("two") and None, source).read_text() == "two"
    with pytest.raises(ZeroDivisionError), replacing(first) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert first.read_text() == "one" and len(os.listdir(first.parent)) == 2


def test_batches_cover_everything_once() -> None:
    assert np.concatenate(list(batches(np.arange(7), 3))).tolist() == list(range(7))


def test_registry_and_text_tasks_need_no_torch() -> None:
    names = "import sys, models; models.get('pp_rec'), models.get('mnist_cnn'), models.get('minilm');"
    subprocess.run([sys.executable, "-c", names + "sys.exit('torch' in sys.modules)"], check=True,
                   cwd=Path(models.__file__).parents[1])
