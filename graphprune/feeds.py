"""What is fed to a model: calibration data from the user, shapes for dynamic axes, synthetic inputs when none is given.

Owns reading and checking data that comes from outside; every mismatch is a UsageError that names the file, the array,
what the model expects and how to fix it. Does not know any runtime and does not run anything.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.errors import UsageError

Feed = dict[str, np.ndarray]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputSpec:
    """One graph input. An axis is an int where static, a name or None where dynamic; dtype object means strings."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {dtype_name(self.dtype)}[{axes}]"

    @property
    def dynamic_axes(self) -> tuple[int, ...]:
        return tuple(i for i, axis in enumerate(self.shape) if not isinstance(axis, int))


def dtype_name(dtype: np.dtype) -> str:
    return "string" if dtype.kind in "OUT" else str(dtype)


# ---------------------------------------------------------------------------------------------- calibration

def load_calibration(
    source: str | Path | Mapping | Iterable | Callable, inputs: Sequence[InputSpec], limit: int | None = None
) -> list[Feed]:
    """Feeds for the model's `inputs` from `source`, at most `limit` of them (evenly spaced where the number is known).

    source is a folder of .npz files (one feed each), one .npz whose arrays stack samples on the first axis, the text
    "module:function" (importable from the working folder, called without arguments), or in Python any iterable of
    feeds or a callable that returns one. Static axes must match the model's, dynamic ones may differ per feed.
    Raises UsageError for anything the model could not take, and for NaN or infinite values.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"cannot calibrate on {limit} samples", fix="give a limit of 1 or more")
    if not inputs:
        raise UsageError("the model has no inputs, so there is nothing to calibrate on")
    if isinstance(source, (str, Path)):
        feeds = _load_text(source, inputs, limit)
    else:
        feeds = _load_objects(source, inputs, limit, where="calibration")
    if not feeds:
        raise UsageError("the calibration source holds no samples", at=str(source), fix=_how(inputs))
    return feeds


def _load_text(source: str | Path, inputs: Sequence[InputSpec], limit: int | None) -> list[Feed]:
    text = os.fspath(source)
    if os.path.isdir(text):
        return _load_folder(Path(text), inputs, limit)
    if os.path.exists(text):
        return _unstack(_read_npz(Path(text)), inputs, limit, where=text)
    module, colon, name = text.partition(":")
    if isinstance(source, str) and colon and module and name and not {"/", "\\"} & set(text):
        with working_folder_on_path():
            return _load_objects(import_named(module, name, text), inputs, limit, where=text)
    parent = Path(text).parent
    siblings = os.listdir(parent) if parent.is_dir() else []
    raise UsageError("calibration data not found", at=text, fix=_nearest(Path(text).name, siblings) or _how(inputs))


def _load_folder(folder: Path, inputs: Sequence[InputSpec], limit: int | None) -> list[Feed]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".npz")
    if not paths:
        raise UsageError("the calibration folder holds no .npz file", at=str(folder), fix=_how(inputs))
    return [check_feed(_read_npz(path), inputs, where=str(path)) for path in _spaced(paths, limit)]


def _read_npz(path: Path) -> dict[str, Any]:
    """Array name -> array. Pickled objects are refused: unpickling runs code that the file brings along."""
    if path.suffix.lower() != ".npz":
        raise UsageError("calibration data must be .npz", at=str(path),
                         fix="write it with numpy.savez(path, name=array, ...)")
    try:
        with open(path, "rb") as stream:  # numpy leaves a path that it opened itself open when the archive is damaged
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError("not an .npz archive but a bare array", at=str(path),
                                 fix="write it with numpy.savez(path, name=array, ...)")
            return {name: _read_array(archive, name, path) for name in archive.files}
    except UsageError:
        raise
    except Exception as error:  # a hostile file can make zipfile and numpy raise almost anything
        raise UsageError(f"not a readable .npz file: {first_line(error)}", at=str(path),
                         fix="write it again with numpy.savez") from error


def _read_array(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Any:
    try:
        return archive[name]
    except Exception as error:  # as above: the content is not ours
        at = f"{path}, array {name!r}"
        if "pickle" in str(error).lower():
            raise UsageError("the array holds Python objects, which are refused because loading them could run code",
                             at=at, fix="save plain numeric arrays: numpy.asarray(x, dtype=...)") from error
        raise UsageError(f"not a readable array: {first_line(error)}", at=at,
                         fix="the file is damaged, write it again with numpy.savez") from error


def _unstack(arrays: Mapping[str, Any], inputs: Sequence[InputSpec], limit: int | None, where: str) -> list[Feed]:
    """Samples stacked on the first axis -> one feed each, with a batch of 1 where the model has a batch axis."""
    _check_names(arrays, inputs, where)
    lengths: dict[str, int] = {}
    for spec in inputs:
        array = _as_array(arrays[spec.name], spec, where)
        rank = len(spec.shape)
        batched = rank >= 1 and (spec.shape[0] == 1 or not isinstance(spec.shape[0], int))
        if array.ndim != rank + 1 and not (batched and array.ndim == rank):
            rest = spec.shape[1:] if batched else spec.shape
            raise UsageError(f"the stacked array has {array.ndim} axes, shape {_brackets(array.shape)}",
                             at=f"{where}, array {spec.name!r}",
                             fix=f"stack samples on the first axis: the model takes {spec}, so give "
                                 f"{_brackets(('samples', *rest))}")
        lengths[spec.name] = len(array)
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(f"the arrays stack different numbers of samples: {listed}", at=where,
                         fix="give every array the same length on its first axis")

    def sample(spec: InputSpec, i: int) -> np.ndarray:
        array = np.asarray(arrays[spec.name])
        return array[i : i + 1] if array.ndim == len(spec.shape) else np.asarray(array[i])

    count = next(iter(lengths.values()))
    return [check_feed({spec.name: sample(spec, i) for spec in inputs}, inputs, where=f"{where}, sample {i}")
            for i in _spaced(range(count), limit)]


def _load_objects(source: Any, inputs: Sequence[InputSpec], limit: int | None, where: str) -> list[Feed]:
    """Feeds from an iterable, a callable that returns one, or a single feed. At most `limit` are drawn."""
    feeds: list[Feed] = []
    for i, item in enumerate(_draw(source, limit, where)):
        at = f"{where}, feed {i}"
        if not isinstance(item, Mapping):
            raise UsageError(f"a feed must map input names to arrays, this is a {type(item).__name__}", at=at,
                             fix=f"yield {{{inputs[0].name!r}: array, ...}}; the model takes {_listed(inputs)}")
        feeds.append(check_feed(item, inputs, where=at))
    return feeds


def _draw(source: Any, limit: int | None, where: str) -> Iterator[Any]:
    """The items of `source`; what the user's own code raises becomes a UsageError that says where it was raised."""
    try:
        if callable(source):
            source = source()
        if isinstance(source, Mapping):
            source = [source]
        yield_from = iter(source)
    except (Exception, SystemExit) as error:
        raise _user_code_failed(error, where) from error
    drawn = 0
    while limit is None or drawn < limit:
        try:
            item = next(yield_from)
        except StopIteration:
            return
        except (Exception, SystemExit) as error:
            raise _user_code_failed(error, f"{where}, feed {drawn}") from error
        yield item
        drawn += 1


def _user_code_failed(error: BaseException, where: str) -> UsageError:
    frames = traceback.extract_tb(error.__traceback__)
    last = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return UsageError(f"the calibration source raised {type(error).__name__}: {first_line(error)}",
                      at=where + last, fix="it must give an iterable of feeds: input name -> array")


def import_named(module_name: str, name: str, text: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise _user_code_failed(error, text) from error
        hint = f"write {module_name.removesuffix('.py')}:{name}, without .py" if module_name.endswith(".py") else (
            f"run from the folder that holds {module_name.split('.')[0]}.py, or set PYTHONPATH")
        raise UsageError(f"there is no module {module_name!r}", at=text, fix=hint) from error
    except (Exception, SystemExit) as error:
        raise _user_code_failed(error, text) from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"module {module_name!r} has no {name!r}", at=text,
                         fix=_nearest(name, public) or f"define {name}() in {module.__file__}")
    return getattr(module, name)


@contextmanager
def working_folder_on_path() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def check_feed(feed: Mapping[str, Any], inputs: Sequence[InputSpec], where: str) -> Feed:
    """The feed as the model takes it: every input, no other name, right type, rank and static axes, finite values."""
    _check_names(feed, inputs, where)
    checked: Feed = {}
    for spec in inputs:
        array = _as_array(feed[spec.name], spec, where)
        at = f"{where}, array {spec.name!r}"
        if array.ndim != len(spec.shape):
            raise UsageError(f"the array has {array.ndim} axes, shape {_brackets(array.shape)}", at=at,
                             fix=f"the model takes {spec}: give {len(spec.shape)} axes")
        for i, (have, want) in enumerate(zip(array.shape, spec.shape, strict=True)):
            if isinstance(want, int) and have != want:
                raise UsageError(f"axis {i} has size {have}, shape {_brackets(array.shape)}", at=at,
                                 fix=f"the model takes {spec}: axis {i} must be {want}")
        if array.size == 0:
            raise UsageError(f"the array is empty, shape {_brackets(array.shape)}", at=at,
                             fix=f"the model takes {spec}: give at least one element on every axis")
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise UsageError(f"{bad} of {array.size} values are NaN or infinite", at=at,
                             fix="calibration values must be finite: check how the data was prepared")
        checked[spec.name] = array
    return checked


def _as_array(value: Any, spec: InputSpec, where: str) -> np.ndarray:
    """`value` as an array of the input's type, native byte order, row-major. Types are never converted silently."""
    at = f"{where}, array {spec.name!r}"
    try:
        array = np.asarray(value, order="C")
    except Exception as error:  # ragged lists, tensors on another device: any __array__ of the user's
        raise UsageError(f"not an array: {first_line(error)}", at=at, fix=f"the model takes {spec}") from error
    if spec.dtype.kind in "OUT" and array.dtype.kind in "UT":
        return array.astype(object)
    if array.dtype.newbyteorder("=") != spec.dtype:
        raise UsageError(f"the array is {dtype_name(array.dtype)}, the model takes {dtype_name(spec.dtype)}", at=at,
                         fix=f"convert it: array.astype({str(spec.dtype)!r})" if spec.dtype.kind in "biufc"
                         else f"the model takes {spec}")
    return array.astype(spec.dtype, copy=False)


def _check_names(arrays: Mapping[str, Any], inputs: Sequence[InputSpec], where: str) -> None:
    known = [spec.name for spec in inputs]
    for name in arrays:
        if name not in known:
            free = [n for n in known if n not in arrays]
            raise UsageError(f"the model has no input {name!r}", at=f"{where}, array {name!r}",
                             fix=_nearest(str(name), free) or f"the model takes {_listed(inputs)}")
    missing = [name for name in known if name not in arrays]
    if missing:
        raise UsageError(f"input {missing[0]!r} is missing", at=where, fix=f"the model takes {_listed(inputs)}")


# ------------------------------------------------------------------------------------- no data, and splitting

def synthetic(
    inputs: Sequence[InputSpec], shapes: Mapping[str, Shape], n: int, seed: int, high: Mapping[str, int] | None = None
) -> list[Feed]:
    """`n` feeds made up from `seed`, of `shapes` (static inputs may be left out).

    Masks (bool, or a name with "mask") are ones; floats are standard normal; integers named in `high` are uniform in
    [0, high), bytes over their whole range, other integers in [0, 2), the widest range that no lookup table refuses.
    Raises UsageError where an input holds strings or has no known shape.
    """
    rng = np.random.default_rng(seed)
    high = high or {}

    def draw(spec: InputSpec) -> np.ndarray:
        shape = shapes.get(spec.name, spec.shape)
        if not all(isinstance(axis, int) for axis in shape):
            raise UsageError(f"input {spec.name!r} has dynamic axes and no --shape was given", at=str(spec),
                             fix=f"add --shape {_example(spec)}")
        kind = spec.dtype.kind
        if kind == "b" or "mask" in spec.name.lower():
            return np.ones(shape, spec.dtype)
        if kind in "iu":
            info = np.iinfo(spec.dtype)
            low, top = (info.min, info.max + 1) if info.bits == 8 else (0, 2)
            if spec.name in high:
                low, top = 0, min(int(high[spec.name]), info.max + 1)
            return rng.integers(low, top, shape, dtype=spec.dtype)
        if kind in "OUTc":
            raise UsageError(f"inputs of type {dtype_name(spec.dtype)} cannot be made up", at=str(spec),
                             fix="give real data with --calibration")
        return np.asarray(rng.standard_normal(shape), dtype=spec.dtype)

    return [{spec.name: draw(spec) for spec in inputs} for _ in range(n)]


def split(feeds: Sequence[Feed], seed: int, holdout_fraction: float = 0.2) -> tuple[list[Feed], list[Feed]]:
    """(calibration, holdout), shuffled by `seed`, both in the order given; at least one feed each.

    A single feed is in both: there is nothing to hold out, and the caller should say so in the report.
    """
    if len(feeds) < 2:
        return list(feeds), list(feeds)
    n_holdout = min(max(1, round(len(feeds) * holdout_fraction)), len(feeds) - 1)
    held = set(np.random.default_rng(seed).permutation(len(feeds))[:n_holdout].tolist())
    return ([feed for i, feed in enumerate(feeds) if i not in held],
            [feed for i, feed in enumerate(feeds) if i in held])


# ---------------------------------------------------------------------------------------------------- shapes

def read_shapes(texts: Iterable[str]) -> dict[str, Shape]:
    """["input=1x128", ...] -> {"input": (1, 128)}, checked as text only. Raises UsageError."""
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, equals, axes = text.rpartition("=")
        sizes = axes.lower().split("x")
        if not equals or not name or not all(size.strip().lstrip("+-").isdecimal() for size in sizes):
            raise UsageError(f"not a shape: {text!r}", at="--shape", fix="write name=1x128, one number per axis")
        if name in shapes:
            raise UsageError(f"two shapes for input {name!r}", at="--shape", fix="give each input once")
        shapes[name] = tuple(int(size) for size in sizes)
    return shapes


def parse_shapes(
    given: Iterable[str] | Mapping[str, Sequence[int]], inputs: Sequence[InputSpec]
) -> dict[str, Shape]:
    """A concrete shape for every input of the model, from ["input=1x128", ...] or {"input": (1, 128)}.

    A dynamic input that is not named gets its shape from the axis names it shares with one that is. Raises UsageError
    for an unknown input, a wrong rank, a size below 1, a contradicted static axis, or a shape that is still missing.
    """
    asked = {name: tuple(shape) for name, shape in given.items()} if isinstance(given, Mapping) else read_shapes(given)
    specs = {spec.name: spec for spec in inputs}
    symbols: dict[str, int] = {}
    for name, shape in asked.items():
        if name not in specs:
            raise UsageError(f"the model has no input {name!r}", at=f"--shape {_written(name, shape)}",
                             fix=_nearest(name, list(specs)) or f"the model takes {_listed(inputs)}")
        _check_shape(shape, specs[name])
        symbols |= {axis: size for axis, size in zip(specs[name].shape, shape, strict=True) if isinstance(axis, str)}

    def complete(spec: InputSpec) -> Shape | None:
        shape = asked.get(spec.name) or tuple(symbols.get(a, a) if isinstance(a, str) else a for a in spec.shape)
        return shape if all(isinstance(axis, int) for axis in shape) else None

    shapes = {spec.name: complete(spec) for spec in inputs}
    missing = [specs[name] for name, shape in shapes.items() if shape is None]
    if missing:
        example = [f"--shape {_written(n, s)}" for n, s in asked.items()] + [f"--shape {_example(s)}" for s in missing]
        raise UsageError(f"input {missing[0].name!r} has dynamic axes and no shape was given",
                         at="; ".join(map(str, missing)), fix="for example: " + " ".join(example))
    return shapes


def common_shapes(feeds: Sequence[Feed]) -> dict[str, Shape]:
    """The shapes that occur together most often in `feeds` (the first seen on a tie): what a model is timed at."""
    joint = Counter(tuple((name, array.shape) for name, array in sorted(feed.items())) for feed in feeds)
    return dict(joint.most_common(1)[0][0])


def _check_shape(shape: Shape, spec: InputSpec) -> None:
    at = f"--shape {_written(spec.name, shape)}"
    if len(shape) != len(spec.shape):
        raise UsageError(f"{len(shape)} axes given for input {spec.name!r}, it has {len(spec.shape)}", at=at,
                         fix=f"the model takes {spec}; for example --shape {_example(spec)}")
    for i, (size, axis) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise UsageError(f"axis {i} of input {spec.name!r} is {size}, it must be 1 or more", at=at,
                             fix=f"for example --shape {_example(spec)}")
        if isinstance(axis, int) and size != axis:
            raise UsageError(f"axis {i} of input {spec.name!r} is fixed at {axis} by the model, {size} was asked for",
                             at=at, fix=f"the model takes {spec}; for example --shape {_example(spec)}")


# ------------------------------------------------------------------------------------------ words in messages

def _example(spec: InputSpec) -> str:
    """A --shape value that fits: 1 for the batch, a round number for other dynamic axes."""
    image = len(spec.shape) == 4
    return _written(spec.name, tuple(
        axis if isinstance(axis, int) else 1 if i == 0 else 224 if image else 128 for i, axis in enumerate(spec.shape)))


def _written(name: str, shape: Iterable[Any]) -> str:
    return f"{name}={'x'.join(map(str, shape))}"


def _listed(inputs: Sequence[InputSpec]) -> str:
    return "; ".join(map(str, inputs))


def _brackets(shape: Iterable[Any]) -> str:
    return "[" + ", ".join("?" if axis is None else str(axis) for axis in shape) + "]"


def _how(inputs: Sequence[InputSpec]) -> str:
    return ("give a folder of .npz files (one feed each), one .npz that stacks samples on the first axis, or "
            f"module:function; the model takes {_listed(inputs)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _spaced(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` of `items`, evenly spaced, in order."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
