"""A device that is not here: values are computed on this host, times come from what is known of the device.

Which kernels it would run: of processors, those that ONNX Runtime runs here, as it optimises a graph much the same way
everywhere; of GPUs, what `devices.fusion` makes of the graph.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.backends import nvidia, tensorrt
from graphprune.backends import profile as trace
from graphprune.backends.base import Feed, Model
from graphprune.backends.inputs import check_feed, inputs_of
from graphprune.backends.onnxruntime import OnnxRuntime, Session
from graphprune.canonicalise import canonicalise
from graphprune.devices import Described
from graphprune.devices.device import BYTES, Device
from graphprune.devices.fusion import fuse
from graphprune.devices.predict import Predicted, Predictor
from graphprune.devices.shapes import tensors_in, tensors_of
from graphprune.devices.work import CONTROL, Tensor, Work
from graphprune.errors import UsageError
from graphprune.target import IntegerKernels, Kernel, Timing
from graphprune.trace import exposed

Works = list[tuple[Kernel, Work]]


class Prospect:
    """A model that will run elsewhere at a precision; see `backends.base.Executable`. Runs here for its values."""

    def __init__(self, model: Model, precision: str, host: OnnxRuntime, optimise: bool = True) -> None:
        self.model, self.precision, self._host, self._optimise = model, precision, host, optimise

    @cached_property
    def _session(self) -> Session:
        return self._host.load(self.model, optimise=self._optimise)

    @property
    def inputs(self) -> dict[str, tuple[np.dtype, tuple[int | str | None, ...]]]:
        return self._session.inputs

    @property
    def outputs(self) -> list[str]:
        return self._session.outputs

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return self._session.run(feed, outputs)


class Modelled:
    """See `backends.base.Backend`. precision: what floating-point numbers are there; baseline: what they are in the
    dense model that speed is promised over; both the device's usual one unless given."""

    name = "modelled"
    lowerings: Mapping[str, object] = {}

    def __init__(
        self, described: Described, threads: int = 1, precision: str | None = None, baseline: str | None = None
    ) -> None:
        self.threads, self.described = threads, described
        device = described.device.using(threads) if described.device.kind == "cpu" else described.device
        self.precision = _written(precision or device.precision, device, "--precision")
        self.baseline_precision = _written(baseline or device.precision, device, "--baseline-precision")
        self._predictor = Predictor(device, described.table)
        self._host = OnnxRuntime(min(threads, os.cpu_count() or 1))
        self.integer = self._host.integer if device.kind == "cpu" else _integer(device)

    def load(self, model: Model, *, optimise: bool = True) -> Prospect:
        prospect = Prospect(model, self.precision, self._host, optimise)
        _ = prospect.inputs  # what the runtime refuses it refuses now
        return prospect

    def baseline(self, model: Model) -> Prospect:
        """Of a GPU, canonical: engines fold constants and inline functions, too."""
        if self._is_gpu:
            model = canonicalise(_read(model))
        return Prospect(model, self.baseline_precision, self._host)

    def check(self, model: ir.Model) -> None:
        if self._is_gpu:
            tensorrt.accepted(model, self.precision)

    def package(
        self, model: Model, feeds: Sequence[Feed], timing_feed: Feed, timing: Timing
    ) -> tuple[dict[str, bytes], list[str]]:
        notes = [f"nothing was run on {self.described.device.title}: its times are {timing.source}",
                 *self._bodies(_read(model)), *self._stale()]  # fmt: skip
        if not self._is_gpu:
            return {}, notes
        made, said = self._folder(model, feeds, timing_feed, timing)
        return made, [*notes, "no engine was built: run build_engine.py, or trtexec.sh, where the GPU is", *said]

    def _folder(
        self, model: Model, feeds: Sequence[Feed], timing_feed: Feed, timing: Timing, precision: str | None = None
    ) -> tuple[dict[str, bytes], list[str]]:
        """The build folder of an engine, and what there is to say about the model."""
        made, found = tensorrt.folder(
            _read(model), device=self.described.device.title, precision=precision or self.precision, feeds=feeds,
            timing=timing_feed, run=lambda m, feed: self._host.load(m, optimise=False).run(feed),
            expected=tensorrt.Expected(timing.median_ms, timing.spread, timing.source),
        )  # fmt: skip
        by_rule = Counter((f.rule, f.weight) for f in found)
        return made, [f"TensorRT, {rule} ({weight}): {next(f for f in found if f.rule == rule).what}"
                      + (f", and {n - 1} more" if n > 1 else "") for (rule, weight), n in by_rule.items()]  # fmt: skip

    @staticmethod
    def _bodies(model: ir.Model) -> list[str]:
        """What is not in the times."""
        n = sum(node.op_type in CONTROL for node in model.graph)
        return [f"the bodies of {n} If, Loop or Scan are not in the times"] if n else []

    def _stale(self) -> list[str]:
        """How the runtime here, or the driver of the same GPU here, differs from the one that the table was measured
        with: other times may go with it."""
        table = self.described.table
        if table is None:
            return []
        here = nvidia.driver() if self._is_gpu else {}
        driver = here["driver_version"] if here.get("name") == table.key.device else ""
        differs = table.stale("" if self._is_gpu else self._host.key().runtime, driver)
        return [f"the table may be stale: {differs}"] if differs else []

    @property
    def _is_gpu(self) -> bool:
        return self.described.device.kind == "gpu"

    def profile(self, model: Model | Prospect, feed: Feed, *, repeats: int = 9) -> list[Kernel]:
        return list(self.predict(model, feed).kernels)

    def measure(self, models: Sequence[Model | Prospect], feed: Feed, **_: float) -> list[Timing]:
        """The predicted times. Nothing is measured, so there is nothing to repeat."""
        return [self.predict(model, feed).timing for model in models]

    def predict(self, model: Model | Prospect, feed: Feed) -> Predicted:
        """The time of a model on the device, kernel by kernel."""
        prospect = model if isinstance(model, Prospect) else Prospect(model, self.precision, self._host)
        return self._predictor.model(self._works(prospect, feed))

    def fingerprint(self) -> str:
        table = self.described.table
        how = "analytic" if table is None else f"from times of {table.key.device}, {table.key.runtime}"
        return f"{self.described.device.title}, {self.precision}, {how}"

    def _works(self, prospect: Prospect, feed: Feed) -> Works:
        model = _named(_read(prospect.model))
        if not self._is_gpu:
            found = self._host.executed(model, feed)
            kernels = trace.named([e.kernel for e in found], model.graph)
            return [(k, e.work) for k, e in zip(kernels, found, strict=True) if e.work is not None]
        check_feed(inputs_of(model.graph), feed)
        tensors = tensors_of(model, feed) or self._traced(model, feed)
        bits = round(8 * BYTES[prospect.precision])
        return [(kernel, self._in_tensor_cores(work))
                for kernel, work in fuse(model.graph, {name: t.at(bits) for name, t in tensors.items()})]  # fmt: skip

    def _in_tensor_cores(self, work: Work) -> Work:
        """Products of 32-bit numbers as engines do them unless they are told not to: in TF32, where there is that."""
        tf32 = work.precision == "fp32" and work.kind == "matrix" and self.described.device.runs("tf32")
        return replace(work, precision="tf32") if tf32 else work

    def _traced(self, model: ir.Model, feed: Feed) -> dict[str, Tensor]:
        """Shapes of every value of a model in which they depend on data: found by running it."""
        weights = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}
        arrays = self._host.load(exposed(model), optimise=False).run(feed)
        return tensors_in({**weights, **feed, **arrays})


def _integer(device: Device) -> IntegerKernels:
    """What the engine computes in 8 bits, where the device has instructions for them."""
    return tensorrt.INTEGER if device.runs("int8") else IntegerKernels(name="none")


def _written(precision: str, device: Device, option: str) -> str:
    """A precision that models are really written in for the device. Raises UsageError for others."""
    there = [p for p in ("fp16", "fp32") if device.kind == "gpu" and device.runs(p)] or ["fp32"]
    if precision in there:
        return precision
    raise UsageError(f"no models in {precision} are made for {device.title}", at=option,
                     fix=f"one of {', '.join(there)}")  # fmt: skip


def _named(model: ir.Model) -> ir.Model:
    """The model, or a copy of it, in which every node has a name of its own, by which its kernel is known."""
    names = [node.name for node in model.graph]
    if all(names) and len(set(names)) == len(names):
        return model
    copy, taken = model.clone(), {name for name in names if name}
    seen: set[str] = set()
    for i, node in enumerate(copy.graph):
        if not node.name or node.name in seen:
            node.name = next(n for k in count() if (n := f"{node.op_type}.{i + k}") not in taken)
            taken.add(node.name)
        seen.add(node.name)
    return copy


def _read(model: Model) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, Path):
        return ir.load(model)
    return ir.from_proto(onnx.ModelProto.FromString(model) if isinstance(model, bytes) else model)
