"""TensorRT on the GPU of this machine: engines are built by the programs of the build folder, and timed in turns.

Values are computed in ONNX Runtime on the processor. What an engine runs is not seen kernel by kernel: kernels are what
is known of the GPU (see `devices`), on the scale of the first engine; the times of models are measured.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphprune.backends import tensorrt
from graphprune.backends.base import Feed, Model
from graphprune.backends.modelled import Modelled, Prospect
from graphprune.backends.turns import in_turns
from graphprune.devices import Described, find, known
from graphprune.errors import EnvironmentFault, ModelError
from graphprune.target import Kernel, Timing

_BLOCK = 50
"""Runs of an engine at a time, of which the median counts."""
_KEPT = 16
"""Engines that are not built again."""
_OFF = 0.02
"""Relative L2 error of an engine's outputs from which on it is said; 16-bit numbers and 8-bit steps stay below."""
_LINES = 3


class Engines(Protocol):
    """What builds and times engines; folders are as `tensorrt.folder` makes them, with the engine once it is built."""

    def gpu(self) -> str:
        """The name of the GPU, as its driver has it."""
        ...

    def version(self) -> str: ...

    def build(self, folder: Path) -> None:
        """Leave the engine and the timing cache in the folder. Raises ModelError with what TensorRT says."""
        ...

    def load(self, folder: Path) -> Any:
        """Ready to be run and timed."""
        ...

    def block_ms(self, loaded: Any, runs: int) -> list[float]: ...

    def run(self, loaded: Any, feed: Feed) -> Mapping[str, np.ndarray]: ...


class Installed:
    """TensorRT and torch as they are installed here."""

    def __init__(self) -> None:
        """Raises EnvironmentFault where one of them, or a GPU, is missing."""
        try:
            import tensorrt as trt
            import torch
        except ImportError as error:
            raise EnvironmentFault(
                f"TensorRT cannot be used here: {error}", at="--device tensorrt",
                fix="pip install 'graphprune[tensorrt]' where the GPU is, or name the GPU (--device h100) for a folder "
                "that builds there",
            ) from error  # fmt: skip
        if not torch.cuda.is_available():
            raise EnvironmentFault("TensorRT finds no GPU here", at="--device tensorrt",
                                   fix="name the GPU (--device h100) for a folder that builds there")  # fmt: skip
        self._trt, self._torch = trt, torch

    def gpu(self) -> str:
        return self._torch.cuda.get_device_name()

    def version(self) -> str:
        return str(self._trt.__version__)

    def build(self, folder: Path) -> None:
        done = subprocess.run([sys.executable, "build_engine.py"], cwd=folder, capture_output=True, text=True)
        if done.returncode or not (folder / tensorrt.ENGINE).exists():
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise ModelError("TensorRT did not build the engine", at="; ".join(said[-_LINES:]),
                             fix="the folder of --device with the GPU's name lets you try it by hand")  # fmt: skip

    def load(self, folder: Path) -> Any:
        program = _program(folder / "run_engine.py")
        shapes = json.loads((folder / tensorrt.PLAN).read_text())["shapes"]
        engine = program.Engine(folder / tensorrt.ENGINE, shapes)
        return program, engine, program.captured(engine)

    def block_ms(self, loaded: Any, runs: int) -> list[float]:
        program, engine, graph = loaded
        return program.milliseconds(engine, graph, runs)

    def run(self, loaded: Any, feed: Feed) -> Mapping[str, np.ndarray]:
        return loaded[1](feed)


def _program(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TensorRT(Modelled):
    """See `backends.base.Backend`."""

    name = "tensorrt"

    def __init__(
        self, threads: int = 1, precision: str | None = None, baseline: str | None = None,
        engines: Engines | None = None,
    ) -> None:  # fmt: skip
        self._engines = engines or Installed()
        super().__init__(_described(self._engines.gpu()), threads, precision, baseline)
        self._home = Path(tempfile.mkdtemp(prefix="graphprune-engines-"))
        weakref.finalize(self, shutil.rmtree, self._home, ignore_errors=True)
        self._built: dict[str, Path] = {}
        self._cache = b""
        self._scale: float | None = None

    def profile(self, model: Model | Prospect, feed: Feed, *, repeats: int = 9) -> list[Kernel]:
        """The kernels that the engine is expected to have; their times are predictions, all by the factor that the
        first model asked for is off by."""
        kernels = super().profile(model, feed, repeats=repeats)
        if self._scale is None:
            (timing,) = self.measure([model], feed, max_seconds=2.0)
            self._scale = timing.median_ms / sum(k.ms for k in kernels)
        return [replace(k, ms=k.ms * self._scale) for k in kernels]

    def measure(
        self,
        models: Sequence[Model | Prospect],
        feed: Feed,
        *,
        min_rounds: int = 10,
        min_seconds: float = 0.0,
        max_seconds: float = 20.0,
        spread: float = 0.01,
    ) -> list[Timing]:
        loaded = [self._engines.load(self._engine(model, feed)) for model in models]
        return in_turns([partial(self._block_ms, engine) for engine in loaded], started=time.perf_counter(),
                        min_rounds=min_rounds, min_seconds=min_seconds, max_seconds=max_seconds, spread=spread)

    def _block_ms(self, loaded: Any) -> float:
        return float(np.median(self._engines.block_ms(loaded, _BLOCK)))

    def package(
        self, model: Model, feeds: Sequence[Feed], timing_feed: Feed, timing: Timing
    ) -> tuple[dict[str, bytes], list[str]]:
        """The build folder with the engine and its timing cache, for the shapes that were seen."""
        files, notes = self._folder(model, feeds, timing_feed, timing)
        home = self._build(files)
        built = {name: (home / name).read_bytes() for name in (tensorrt.ENGINE, tensorrt.CACHE)}
        files[tensorrt.PLAN] = files[tensorrt.PLAN].replace(b'"built": false', b'"built": true')
        notes.append(f"{tensorrt.ENGINE} was built by TensorRT {self._engines.version()} and runs on this GPU alone")
        return {**files, **built}, [*notes, *self._checked(model, home, timing_feed)]

    def fingerprint(self) -> str:
        return f"TensorRT {self._engines.version()}, {self._engines.gpu()}, {self.precision}"

    def _checked(self, model: Model, home: Path, feed: Feed) -> list[str]:
        """How far the engine's outputs are from those of the model in ONNX Runtime, if that is worth saying."""
        have = self._engines.run(self._engines.load(home), feed)
        wanted = self.load(model).run(feed)
        errors = {name: float(np.linalg.norm(have[name] - a) / max(np.linalg.norm(a), 1e-30))
                  for name, a in wanted.items() if np.issubdtype(a.dtype, np.floating)}  # fmt: skip
        return [f"the engine's output {name} differs from ONNX Runtime's by {error:.1%}"
                for name, error in errors.items() if not error <= _OFF]  # fmt: skip

    def _engine(self, model: Model | Prospect, feed: Feed) -> Path:
        prospect = model if isinstance(model, Prospect) else Prospect(model, self.precision, self._host)
        files, _ = self._folder(prospect.model, [feed], feed, self.predict(prospect, feed).timing, prospect.precision)
        return self._build(files)

    def _build(self, files: Mapping[str, bytes]) -> Path:
        """The folder of an engine, built unless it was among the last ones."""
        name = hashlib.sha256(files[tensorrt.ONNX] + files[tensorrt.PLAN]).hexdigest()[:16]
        if name in self._built:
            self._built[name] = self._built.pop(name)  # the one that was used last
            return self._built[name]
        home = self._home / name
        home.mkdir()
        for file, data in files.items():
            (home / file).write_bytes(data)
        if self._cache:
            (home / tensorrt.CACHE).write_bytes(self._cache)
        self._engines.build(home)
        self._cache = (home / tensorrt.CACHE).read_bytes()
        self._built[name] = home
        while len(self._built) > _KEPT:
            shutil.rmtree(self._built.pop(next(iter(self._built))))
        return home


def _described(gpu: str) -> Described:
    """What is known of a GPU by the name its driver has for it, with its table where there is one. Raises
    EnvironmentFault for one of which nothing is."""
    words = _words(gpu)
    for device in known().values():
        if device.kind == "gpu" and any(_words(alias) <= words for alias in (device.name, *device.aliases)):
            return find(device.name)
    raise EnvironmentFault(
        f"nothing is known of the GPU here, {gpu!r}", at="--device tensorrt",
        fix="measure it, graphprune profile --device cuda -o gpu.json, and give that file as the device",
    )  # fmt: skip


def _words(name: str) -> set[str]:
    return set(name.lower().replace("-", " ").split())
