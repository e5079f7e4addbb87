"""Calibration data from outside: every way to give it, and every way to give it wrong, with the message pinned."""

import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.errors import UsageError
from graphprune.feeds import InputSpec, common_shapes, load_calibration, parse_shapes, read_shapes, split, synthetic

IMAGE = InputSpec("image", np.dtype("float32"), ("n", 3, None, None))
IDS = InputSpec("input_ids", np.dtype("int64"), ("batch", "seq"))
MASK = InputSpec("attention_mask", np.dtype("int64"), ("batch", "seq"))


def image(*shape: int) -> np.ndarray:
    return np.zeros(shape or (1, 3, 8, 8), np.float32)


def fault(source, inputs=(IMAGE,), limit=None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_calibration(source, inputs, limit)
    return caught.value


# -- the ways to give it

def test_a_folder_holds_one_feed_a_file_in_the_order_of_names(tmp_path):
    for i, width in enumerate((4, 8, 6)):
        np.savez(tmp_path / f"{i}.npz", image=image(1, 3, 8, width))
    (tmp_path / "notes.txt").write_text("not data")
    assert [feed["image"].shape[3] for feed in load_calibration(tmp_path, [IMAGE])] == [4, 8, 6]


def test_a_limit_takes_evenly_spaced_samples(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.repeat(np.arange(10, dtype=np.float32), 3).reshape(10, 3, 1, 1))
    feeds = load_calibration(tmp_path / "x.npz", [IMAGE], limit=5)
    assert [feed["image"].flat[0] for feed in feeds] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(("axes", "stacked", "sample"), [
    (("n", 4), (6, 4), (1, 4)),         # a dynamic batch
    ((1, 4), (6, 4), (1, 4)),           # a batch of one
    ((1, 4), (6, 1, 4), (1, 4)),        # samples that carry their batch axis
    ((None, 4), (6, 2, 4), (2, 4)),     # batches
    ((2, 4), (6, 2, 4), (2, 4)),        # a fixed batch
    ((), (6,), ()),                     # scalars
])
def test_a_stack_is_cut_on_its_first_axis(tmp_path, axes, stacked, sample):
    data = np.arange(np.prod(stacked), dtype=np.float32).reshape(stacked)
    np.savez(tmp_path / "x.npz", x=data)
    feeds = load_calibration(tmp_path / "x.npz", [InputSpec("x", np.dtype("float32"), axes)])
    assert [feed["x"].shape for feed in feeds] == [sample] * 6
    assert np.array_equal(np.stack([feed["x"] for feed in feeds]).ravel(), data.ravel())


def test_module_function_is_imported_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "calib_ok.py").write_text(
        "import numpy\ndef feeds():\n    while True:\n        yield {'image': numpy.zeros((1, 3, 2, 2), 'float32')}\n")
    monkeypatch.chdir(tmp_path)
    assert len(load_calibration("calib_ok:feeds", [IMAGE], limit=3)) == 3


def test_python_gives_iterables_callables_and_single_feeds():
    feed = {"image": image()}
    for source in ([feed], (f for f in [feed]), lambda: iter([feed]), feed):
        assert load_calibration(source, [IMAGE])[0]["image"].shape == (1, 3, 8, 8)


def test_other_byte_orders_and_layouts_become_native():
    data = np.asfortranarray(np.arange(24, dtype=">f4").reshape(1, 3, 2, 4))
    array = load_calibration([{"image": data}], [IMAGE])[0]["image"]
    assert array.dtype == np.float32 and array.dtype.isnative and array.flags.c_contiguous
    assert np.array_equal(array, data)


def test_text_arrays_fit_string_inputs(tmp_path):
    np.savez(tmp_path / "x.npz", text=np.array([["a"], ["b"]]))
    feeds = load_calibration(tmp_path / "x.npz", [InputSpec("text", np.dtype(object), ("n", 1))])
    assert [feed["text"].tolist() for feed in feeds] == [[["a"]], [["b"]]]


# -- the ways to give it wrong

@pytest.mark.parametrize(("arrays", "what", "fix"), [
    ({"imag": image()}, "the model has no input 'imag'", "did you mean 'image'?"),
    ({"image": image(), "label": np.zeros(1)}, "the model has no input 'label'",
     "the model takes image: float32[n, 3, ?, ?]"),
    ({}, "input 'image' is missing", "the model takes image: float32[n, 3, ?, ?]"),
    ({"image": image(3, 8, 8)}, "the array has 3 axes, shape [3, 8, 8]",
     "the model takes image: float32[n, 3, ?, ?]: give 4 axes"),
    ({"image": image(1, 4, 8, 8)}, "axis 1 has size 4, shape [1, 4, 8, 8]",
     "the model takes image: float32[n, 3, ?, ?]: axis 1 must be 3"),
    ({"image": image().astype("float64")}, "the array is float64, the model takes float32",
     "convert it: array.astype('float32')"),
    ({"image": image().astype("uint8")}, "the array is uint8, the model takes float32",
     "convert it: array.astype('float32')"),
    ({"image": image(1, 3, 0, 8)}, "the array is empty, shape [1, 3, 0, 8]",
     "the model takes image: float32[n, 3, ?, ?]: give at least one element on every axis"),
    ({"image": image() * np.nan}, "192 of 192 values are NaN or infinite",
     "calibration values must be finite: check how the data was prepared"),
    ({"image": image() + np.inf}, "192 of 192 values are NaN or infinite",
     "calibration values must be finite: check how the data was prepared"),
])
def test_a_feed_that_does_not_fit_is_refused(tmp_path, arrays, what, fix):
    np.savez(tmp_path / "bad.npz", **arrays)
    error = fault(tmp_path)
    assert (error.what, error.fix, error.exit_code) == (what, fix, 2)
    assert error.at.startswith(str(tmp_path / "bad.npz"))


def test_unequal_stacks_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", input_ids=np.zeros((3, 8), int), attention_mask=np.zeros((4, 8), int))
    error = fault(tmp_path / "x.npz", (IDS, MASK))
    assert error.what == "the arrays stack different numbers of samples: input_ids 3, attention_mask 4"


def test_a_stack_of_the_wrong_rank_says_what_to_stack(tmp_path):
    np.savez(tmp_path / "x.npz", image=image(3, 8, 8))
    error = fault(tmp_path / "x.npz")
    assert error.what == "the stacked array has 3 axes, shape [3, 8, 8]"
    assert error.fix.endswith("so give [samples, 3, ?, ?]")


def test_an_empty_stack_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", image=image(0, 3, 8, 8))
    assert fault(tmp_path / "x.npz").what == "the calibration source holds no samples"


def test_pickled_arrays_are_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "x.npz", image=np.array([Trap()], dtype=object))
    error = fault(tmp_path / "x.npz")
    assert error.what == "the array holds Python objects, which are refused because loading them could run code"
    assert error.at == f"{tmp_path / 'x.npz'}, array 'image'"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY", b"not a zip at all"])
def test_a_file_that_is_not_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    assert fault(tmp_path / "x.npz").what.startswith("not a")


@pytest.mark.parametrize("position", range(60, 560, 50))
def test_a_damaged_archive_is_refused(tmp_path, position):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, image=np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32))
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)
    assert fault(path).at.startswith(str(path))


def test_a_member_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("image", b"raw bytes")
    assert fault(tmp_path / "x.npz").exit_code == 2


def test_sources_that_do_not_exist_name_the_nearest(tmp_path):
    (tmp_path / "texts.npz").touch()
    error = fault(tmp_path / "text.npz")
    assert (error.what, error.fix) == ("calibration data not found", "did you mean 'texts.npz'?")
    (tmp_path / "empty").mkdir()
    assert fault(tmp_path / "empty").what == "the calibration folder holds no .npz file"
    (tmp_path / "x.csv").touch()
    assert fault(tmp_path / "x.csv").what == "calibration data must be .npz"


@pytest.mark.parametrize(("source", "what", "fix"), [
    ("calib_none:feeds", "there is no module 'calib_none'", "run from the folder that holds calib_none.py, or set"),
    ("calib_bad.py:feeds", "there is no module 'calib_bad.py'", "write calib_bad:feeds, without .py"),
    ("calib_bad:feds", "module 'calib_bad' has no 'feds'", "did you mean 'feeds'?"),
    ("calib_bad:feeds", "the calibration source raised ZeroDivisionError: division by zero", "it must give"),
    ("calib_bad:leave", "the calibration source raised SystemExit: 3", "it must give"),
    ("calib_bad:number", "the calibration source raised TypeError: 'int' object is not iterable", "it must give"),
    ("calib_bad:arrays", "a feed must map input names to arrays, this is a ndarray", "yield {'image': array, ...}"),
    ("calib_bad:nothing", "the calibration source holds no samples", "give a folder of .npz files"),
    ("calib_syntax:feeds", "the calibration source raised SyntaxError: invalid syntax", "it must give"),
    ("calib_imports:feeds", "the calibration source raised ModuleNotFoundError: No module named 'no_such_module'",
     "it must give"),
])
def test_a_module_that_fails_is_the_users_to_mend(tmp_path, monkeypatch, source, what, fix):
    (tmp_path / "calib_bad.py").write_text(
        "import numpy, sys\nnumber = 3\nnothing = []\narrays = numpy.zeros((2, 2))\n"
        "def feeds():\n    yield {'image': numpy.zeros((1, 3, 2, 2), 'float32')}\n    1 / 0\n"
        "def leave():\n    sys.exit(3)\n")
    (tmp_path / "calib_syntax.py").write_text("def feeds(:\n")
    (tmp_path / "calib_imports.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    for module in ("calib_bad", "calib_syntax", "calib_imports"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    error = fault(source)
    assert error.what.startswith(what) and error.fix.startswith(fix)
    assert error.at.startswith(source)
    if source == "calib_bad:feeds":
        assert error.at == f"calib_bad:feeds, feed 1 ({tmp_path / 'calib_bad.py'}:7)"


def test_ragged_lists_are_refused():
    assert fault([{"image": [[1.0], [1.0, 2.0]]}]).what.startswith("not an array: ")


# -- shapes

def test_inputs_that_share_axis_names_need_one_shape():
    assert parse_shapes(["input_ids=1x128"], [IDS, MASK]) == {"input_ids": (1, 128), "attention_mask": (1, 128)}


def test_static_inputs_need_no_shape():
    assert parse_shapes([], [InputSpec("x", np.dtype("float32"), (1, 3))]) == {"x": (1, 3)}
    assert parse_shapes({"x:0": (2, 3)}, [InputSpec("x:0", np.dtype("float32"), ("n", 3))]) == {"x:0": (2, 3)}


@pytest.mark.parametrize(("texts", "what", "fix"), [
    ([], "input 'image' has dynamic axes and no shape was given", "for example: --shape image=1x3x224x224"),
    (["imag=1x3x8x8"], "the model has no input 'imag'", "did you mean 'image'?"),
    (["image=1x3x8"], "3 axes given for input 'image', it has 4",
     "the model takes image: float32[n, 3, ?, ?]; for example --shape image=1x3x224x224"),
    (["image=0x3x8x8"], "axis 0 of input 'image' is 0, it must be 1 or more",
     "for example --shape image=1x3x224x224"),
    (["image=1x3x-8x8"], "axis 2 of input 'image' is -8, it must be 1 or more",
     "for example --shape image=1x3x224x224"),
    (["image=1x4x8x8"], "axis 1 of input 'image' is fixed at 3 by the model, 4 was asked for",
     "the model takes image: float32[n, 3, ?, ?]; for example --shape image=1x3x224x224"),
    (["image"], "not a shape: 'image'", "write name=1x128, one number per axis"),
    (["image="], "not a shape: 'image='", "write name=1x128, one number per axis"),
    (["image=1x3xWx8"], "not a shape: 'image=1x3xWx8'", "write name=1x128, one number per axis"),
    (["image=1x3x8x8", "image=1x3x8x8"], "two shapes for input 'image'", "give each input once"),
])
def test_shapes_that_do_not_fit_are_refused(texts, what, fix):
    with pytest.raises(UsageError) as caught:
        parse_shapes(texts, [IMAGE])
    assert (caught.value.what, caught.value.fix) == (what, fix)


def test_a_missing_shape_completes_the_line_already_given():
    with pytest.raises(UsageError) as caught:
        parse_shapes(["image=1x3x8x8"], [IMAGE, IDS])
    assert caught.value.fix == "for example: --shape image=1x3x8x8 --shape input_ids=1x128"


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.text(min_size=1))
def test_a_written_shape_reads_back(shape, name):
    assert read_shapes([f"{name}={'x'.join(map(str, shape))}"]) == {name: tuple(shape)}


def test_the_common_shape_is_the_one_seen_most():
    feeds = [{"image": image(1, 3, 8, w)} for w in (4, 8, 8, 6)]
    assert common_shapes(feeds) == {"image": (1, 3, 8, 8)}


# -- synthetic inputs, and splitting

def test_synthetic_inputs_fit_the_model_and_repeat_with_the_seed():
    inputs = [IMAGE, IDS, MASK, InputSpec("pixels", np.dtype("uint8"), (64,)), InputSpec("on", np.dtype(bool), (1,))]
    shapes = parse_shapes(["image=1x3x8x8", "input_ids=1x128"], inputs)
    first, again, other = (synthetic(inputs, shapes, 3, seed, {"input_ids": 30522}) for seed in (0, 0, 1))
    assert load_calibration(first, inputs)
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(first[0]["image"], other[0]["image"])
    assert not np.array_equal(first[0]["image"], first[1]["image"])
    assert first[0]["attention_mask"].all() and first[0]["on"].all()
    assert 2 < first[0]["input_ids"].max() < 30522 and first[0]["pixels"].max() > 2


def test_integers_of_unknown_range_stay_below_two():
    feeds = synthetic([InputSpec("token_type_ids", np.dtype("int64"), (1, 64))], {}, 4, 0)
    assert {int(v) for feed in feeds for v in feed["token_type_ids"].flat} == {0, 1}


def test_what_cannot_be_made_up_is_refused():
    with pytest.raises(UsageError, match="inputs of type string cannot be made up"):
        synthetic([InputSpec("text", np.dtype(object), (1,))], {}, 1, 0)
    with pytest.raises(UsageError, match="no --shape was given"):
        synthetic([IMAGE], {}, 1, 0)


@given(st.integers(2, 200), st.integers(0, 5))
def test_a_split_parts_the_feeds_and_repeats_with_the_seed(n, seed):
    feeds = [{"x": np.array(i)} for i in range(n)]
    calibration, holdout = split(feeds, seed)
    parts = [[int(feed["x"]) for feed in part] for part in (calibration, holdout)]
    assert parts[0] and parts[1] and sorted(parts[0] + parts[1]) == list(range(n))
    assert parts == [[int(feed["x"]) for feed in part] for part in split(feeds, seed)]


def test_a_single_feed_is_on_both_sides():
    feed = {"x": np.zeros(1)}
    assert split([feed], 0) == ([feed], [feed])
