"""What a benchmark model is: a file, data to calibrate on, other data to judge it by; and where such things are cached.

Owns the `Task` record, the cache (written by rename) and the search for files inside installed packages.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from graphprune.errors import EnvironmentFault, UsageError

Feed = dict[str, np.ndarray]
Item = TypeVar("Item")
Run = Callable[[Feed], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """One model with the data that goes with it.

    model(): path of the .onnx, made at most once. calibration(n): n feeds of batch 1, the same ones every time, never
    from evaluation data. evaluate(run, limit=None): quality of whatever `run` computes, on all evaluation samples or
    the first `limit`; metrics are fractions, higher is better. shapes: the input shapes at which speed is measured.
    """

    name: str
    model: Callable[[], Path]
    calibration: Callable[[int], list[Feed]]
    evaluate: Callable[..., dict[str, float]]
    shapes: dict[str, tuple[int, ...]]
    headline: str


def cache_dir() -> Path:
    """$GRAPHPRUNE_CACHE, or .cache/graphprune under the working directory; made when missing."""
    path = Path(os.environ.get("GRAPHPRUNE_CACHE") or Path(".cache", "graphprune")).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"the cache folder cannot be made: {error}", at=str(path),
                               fix="set GRAPHPRUNE_CACHE to a folder you can write") from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` (same suffix) that becomes `path` when the block ends well."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cached(name: str, make: Callable[[Path], None], *sources: Path | str) -> Path:
    """Path of a file in the cache; `make(temporary path)` writes it if it is not there yet.

    Its name holds a checksum of `sources`, the files (code or data) or texts (options) it is made from: when they
    change it is made anew.
    """
    path = cached_path(name, *sources)
    if not path.exists():
        with replacing(path) as temporary:
            make(temporary)
    return path


def cached_path(name: str, *sources: Path | str) -> Path:
    """Where `cached` keeps that file, whether it is there or not."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.encode() if isinstance(source, str) else source.read_bytes())
    return cache_dir() / f"{Path(name).stem}_{digest.hexdigest()[:8]}{Path(name).suffix}"


def package_file(module: str, relative: str, *, install: str) -> Path:
    """A file inside an installed package, without importing the package (which may need far more than its files).

    Raises EnvironmentFault with `pip install {install}` when the package or the file is missing.
    """
    spec = importlib.util.find_spec(module)
    path = Path(spec.submodule_search_locations[0], relative) if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        raise EnvironmentFault(f"the Python package of '{module}' is {'incomplete' if path else 'not installed'}",
                               at=str(path) if path else "", fix=f"pip install {install}")
    return path


def onnx_runner(path: Path, threads: int = 1) -> Run:
    """Run an ONNX file in ONNX Runtime on the CPU: the dense reference of metrics that need one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def only(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """The single output of a model, whatever its name is."""
    (value,) = outputs.values()
    return value


def take(items: Sequence[Item], n: int) -> Sequence[Item]:
    """The first n items; UsageError if there are fewer."""
    if not 0 < n <= len(items):
        raise UsageError(f"{n} calibration samples were asked for, there are {len(items)}",
                         fix=f"ask for 1 to {len(items)}")
    return items[:n]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


def batches(items: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive slices of at most `size` along axis 0."""
    return (items[start:start + size] for start in range(0, len(items), size))
