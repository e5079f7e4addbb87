"""ONNX Runtime on this machine: loads, runs, profiles and times models. The only module that imports it."""

from __future__ import annotations

import datetime
import json
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from graphprune.backends import profile as trace
from graphprune.backends.base import Feed, Model
from graphprune.backends.executed import Executed, executed
from graphprune.backends.inputs import Inputs, check_feed
from graphprune.backends.lowering import LOWERINGS
from graphprune.backends.opaque import Shares
from graphprune.backends.providers import CPU, Provider
from graphprune.backends.turns import in_turns
from graphprune.devices.table import Key
from graphprune.errors import EnvironmentFault, ModelError, UsageError
from graphprune.target import Kernel, Timing

_WARM_RUNS = 2
_BLOCK_SECONDS = 0.02
_IN_MEMORY_BYTES = 1_800_000_000  # a protobuf message ends at 2 GiB
_LARGE_BYTES = 65_536
_IN_MEMORY = "in memory"
_LARGE_TYPES = {"float", "double", "float16", "int8", "uint8", "int16", "uint16", "int32", "int64"}
_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(string)": "object", **{f"tensor({sign}int{bits})": f"{sign}int{bits}"
                                   for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


_SILENT = 4  # errors are raised, and said by us


def _quiet_run() -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = _SILENT
    return options


class Session:
    """A model loaded in ONNX Runtime; see `backends.base.Executable`."""

    def __init__(self, session: ort.InferenceSession, weights: Mapping[str, ort.OrtValue] | None = None) -> None:
        self._session, self._weights = session, weights  # the session refers to weights that it does not own
        self.inputs: Inputs = {i.name: (np.dtype(_DTYPES.get(i.type, "object")), tuple(i.shape))
                               for i in session.get_inputs()}  # fmt: skip
        self.outputs = [o.name for o in session.get_outputs()]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = self.outputs if outputs is None else list(outputs)
        with _translated("run"):
            try:
                return dict(zip(names, self._session.run(names, feed, _quiet_run()), strict=True))
            except (ValueError, errors.InvalidArgument):
                self.check(feed)  # says it in the model's own names
                raise

    def check(self, feed: Feed) -> None:
        """Raises UsageError where names, dtypes or shapes of `feed` do not fit the inputs."""
        check_feed(self.inputs, feed)


class OnnxRuntime:
    """This machine through ONNX Runtime, sequential, with `threads` intra-op threads, on an execution provider."""

    name = "onnxruntime"
    lowerings = LOWERINGS

    def __init__(self, threads: int = 1, provider: Provider = CPU) -> None:
        """Raises EnvironmentFault where the runtime that is installed does not have the provider."""
        if threads < 1:
            raise UsageError(f"{threads} threads cannot run a model", fix="give --threads 1 or more")
        if provider.runtime not in ort.get_available_providers():
            raise _not_there(provider, f"it has {', '.join(ort.get_available_providers())}")
        self.threads, self.provider, self.integer = threads, provider, provider.integer
        self._shares = Shares()

    def load(self, model: Model, *, optimise: bool = True) -> Session:
        options, weights = self._options(optimise), {}
        provider = self.provider if optimise else CPU
        if isinstance(model, ir.Model) and provider is CPU:
            model, weights = _apart(model)
            options.add_external_initializers(list(weights), list(weights.values()))
        return Session(self._session(model, options, provider), weights)

    def baseline(self, model: Model) -> Model:
        return model

    def check(self, model: ir.Model) -> None:
        """Loading says it."""

    def package(
        self, model: Model, feeds: Sequence[Feed], timing_feed: Feed, timing: Timing
    ) -> tuple[dict[str, bytes], list[str]]:
        return {}, []  # the model is all it takes

    def profile(self, model: Model, feed: Feed, *, repeats: int = 9) -> list[Kernel]:
        """Where the provider shows none, those that the processor's own would run, with the times that whole models
        tell of (see `opaque`)."""
        if self.provider.opaque:
            kernels, session = OnnxRuntime(self.threads).profile(model, feed, repeats=repeats), self.load(model)
            return self._shares.divided(kernels, self._block_ms(session, feed, self._runs_in_block(session, feed)))
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            events = self._traced(model, feed, repeats, Path(folder))
        return trace.named(trace.kernels(events, skip_runs=_WARM_RUNS), _graph_of(model))

    def executed(self, model: Model, feed: Feed, *, repeats: int = 1) -> list[Executed]:
        """The kernels of the deployed graph with the work of each; timed in place over `repeats` runs."""
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            kept = Path(folder) / "optimised.onnx"
            events = self._traced(model, feed, repeats, Path(folder), optimised=kept)
            return executed(events, ir.load(kept).graph, feed, skip_runs=_WARM_RUNS)

    def _traced(
        self, model: Model, feed: Feed, repeats: int, folder: Path, optimised: Path | None = None
    ) -> list[dict[str, Any]]:
        """The trace of some runs after the warm ones. optimised: where to leave the graph that was run."""
        options = self._options(optimise=True)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "trace")
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        session = self._session(model, options, self.provider)
        loaded = Session(session)
        loaded.check(feed)
        for _ in range(_WARM_RUNS + repeats):
            loaded.run(feed)
        return json.loads(Path(session.end_profiling()).read_text())

    def measure(
        self,
        models: Sequence[Model | Session],
        feed: Feed,
        *,
        min_rounds: int = 10,
        min_seconds: float = 0.0,
        max_seconds: float = 20.0,
        spread: float = 0.01,
    ) -> list[Timing]:
        return in_turns([self._take(model, feed) for model in models], started=time.perf_counter(),
                        min_rounds=min_rounds, min_seconds=min_seconds, max_seconds=max_seconds, spread=spread)

    def _take(self, model: Model | Session, feed: Feed) -> Callable[[], float]:
        """What times a model once. Unless it is loaded already, it is for every time: where its memory comes to lie
        alone makes some per cent, and whoever deploys it loads it once."""
        if isinstance(model, Session):
            return partial(self._block_ms, model, feed, self._runs_in_block(model, feed))

        def take() -> float:
            session = self.load(model)
            return self._block_ms(session, feed, self._runs_in_block(session, feed))

        return take

    def _runs_in_block(self, session: Session, feed: Feed) -> int:
        session.check(feed)
        return max(2, round(_BLOCK_SECONDS * 1e3 / self._block_ms(session, feed, _WARM_RUNS)))

    def _block_ms(self, session: Session, feed: Feed, runs: int) -> float:
        return _timed_block(session, feed, runs, alone=self.threads == 1 and self.provider.in_thread)

    def key(self) -> Key:
        """What times measured here hold for (see `devices.table`)."""
        return Key(_processor(), self._runtime(), platform.release(), self.threads,
                   date=datetime.date.today().isoformat())  # fmt: skip

    def fingerprint(self) -> str:
        return f"{self._runtime()}; {_processor()}; {self.threads} thread{'s' * (self.threads > 1)}"

    def _runtime(self) -> str:
        return f"onnxruntime {ort.__version__}" + ("" if self.provider is CPU else f", {self.provider.title}")

    def _options(self, optimise: bool) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimise else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        return options

    def _session(self, model: Model, options: ort.SessionOptions, provider: Provider) -> ort.InferenceSession:
        """Raises EnvironmentFault where the provider does not start: the runtime would go on without it."""
        asked = [(provider.runtime, dict(provider.options(self.threads)))]
        with _translated("load"), tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            session = ort.InferenceSession(_loadable(model, Path(folder)), options, providers=asked)
        if session.get_providers()[0] != provider.runtime:
            raise _not_there(provider, "it does not start here")
        return session


def _not_there(provider: Provider, at: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"ONNX Runtime has no {provider.title} to run on", at=at,
        fix=f"install {provider.package} in an environment of its own, in place of the onnxruntime that is there",
    )  # fmt: skip


def _timed_block(session: Session, feed: Feed, runs: int, *, alone: bool) -> float:
    """Median ms of `runs` consecutive runs, after one that brings the model's weights back into the caches.

    `alone`: the run stays in this thread, so wall time above the thread's processor time means that the system gave
    the core to somebody else. Such runs are left out; where no other remains, as happens to long runs on a shared
    machine, the processor time stands in, or the longer of two models would look slower than it is.
    """
    session.run(feed)
    wall_ns = np.empty(runs)
    cpu_ns = np.empty(runs)
    for i in range(runs):
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        session.run(feed)
        wall_ns[i] = time.perf_counter_ns() - wall
        cpu_ns[i] = time.thread_time_ns() - cpu
    undisturbed = wall_ns[wall_ns <= cpu_ns * 1.01 + 2e4] if alone else wall_ns
    return float(np.median(undisturbed if len(undisturbed) else cpu_ns)) / 1e6


def _loadable(model: Model, folder: Path) -> bytes | str:
    """What the runtime's constructor takes: a path, or bytes where the model fits one protobuf message."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, Path):
        return str(model)
    if isinstance(model, onnx.ModelProto):
        if model.ByteSize() < _IN_MEMORY_BYTES:
            return model.SerializeToString()
        model = ir.from_proto(model)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    tensors = [t for t in tensors if not (isinstance(t, ir.ExternalTensor) and t.location == _IN_MEMORY)]
    external = any(isinstance(t, ir.ExternalTensor) for t in tensors)
    if external or sum(t.nbytes for t in tensors) >= _IN_MEMORY_BYTES:
        path = folder / "model.onnx"
        ir.save(model, path, external_data="weights.bin")
        return str(path)
    return ir.to_proto(model).SerializeToString()


def _apart(model: ir.Model) -> tuple[ir.Model, dict[str, ort.OrtValue]]:
    """The model without its large weights or those in other files, and these, where they are in memory: to write and
    read them takes longer than to run most candidates."""
    weights: dict[str, ort.OrtValue] = {}
    light = model.clone()
    for name, value in light.graph.initializers.items():
        tensor = value.const_value
        external = isinstance(tensor, ir.ExternalTensor)
        if tensor is None or not (external or tensor.nbytes >= _LARGE_BYTES):
            continue
        if tensor.dtype.name.lower() in _LARGE_TYPES:
            weights[name] = ort.OrtValue.ortvalue_from_numpy(np.require(tensor.numpy(), requirements=["C", "A"]))
            value.const_value = ir.ExternalTensor(_IN_MEMORY, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape,
                                                  name=name)  # fmt: skip
        elif external:
            value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=name)
    return light, weights


def _graph_of(model: Model) -> ir.Graph:
    """The graph of a model in any form; weights in other files are not read."""
    if isinstance(model, ir.Model):
        return model.graph
    if isinstance(model, Path):
        model = onnx.load(model, load_external_data=False)
    return ir.from_proto(onnx.ModelProto.FromString(model) if isinstance(model, bytes) else model).graph


@contextmanager
def _translated(step: str) -> Iterator[None]:
    """The runtime's exceptions as ours, with the first line of what it said."""
    try:
        yield
    except MemoryError as error:
        raise EnvironmentFault("not enough memory to run the model", fix="use a smaller batch or shape") from error
    except errors.NoSuchFile as error:
        raise UsageError("the model file does not exist", at=_first_line(error)) from error
    except (ValueError, errors.InvalidArgument) as error:
        kind = UsageError if step == "run" else ModelError
        raise kind(f"ONNX Runtime could not {step} the model", at=_first_line(error)) from error
    except (errors.EPFail, errors.EngineError) as error:
        raise EnvironmentFault(f"ONNX Runtime could not {step} the model", at=_first_line(error)) from error
    except (
        errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented, errors.NoModel,
        errors.RuntimeException,
    ) as error:  # fmt: skip
        if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
            raise EnvironmentFault("not enough memory to run the model", at=_first_line(error)) from error
        raise ModelError(f"ONNX Runtime could not {step} the model", at=_first_line(error)) from error


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n", 1)[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)


def _processor() -> str:
    """Name, family, model and stepping: virtual machines often hide the name of the part."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = "/".join(facts[key] for key in ("cpu family", "model", "stepping") if key in facts)
    return f"{facts.get('model name', platform.machine())} {numbers}".strip()
