"""What a backend must do: load, run, profile and time models. Every backend passes the same black-box tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.target import IntegerKernels, Kernel, Timing

Feed = dict[str, np.ndarray]
Model = bytes | Path | onnx.ModelProto | ir.Model


class Executable(Protocol):
    """A loaded model. `inputs` has dtype and shape of each input, a dynamic axis by its name or None."""

    inputs: dict[str, tuple[np.dtype, tuple[int | str | None, ...]]]
    outputs: list[str]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Outputs by name, all of them unless named. Raises UsageError where the feed does not fit the model."""
        ...


class Backend(Protocol):
    """A runtime on a device. `threads` is how many threads one run may use. `lowerings` are rewrites that leave what a
    model computes alone and may be faster here, by name; the driver measures them before it takes them. `integer`: what
    can be computed with few bits; whether it is faster is measured, too."""

    name: str
    threads: int
    lowerings: Mapping[str, Callable[[ir.Model], ir.Model]]
    integer: IntegerKernels

    def load(self, model: Model, *, optimise: bool = True) -> Executable:
        """Ready to run; `optimise=False` runs the graph as it is written, for exact comparisons.

        External data are found beside a path, never beside bytes or a ModelProto. Raises ModelError for what the
        runtime refuses, EnvironmentFault for what the machine cannot hold.
        """
        ...

    def baseline(self, model: Model) -> Model | Executable:
        """The dense model as it would be deployed without any compression, for `profile` and `measure`: what speed is
        promised over."""
        ...

    def check(self, model: ir.Model) -> None:
        """Raises ModelError where what the device runs would refuse the model."""
        ...

    def package(
        self, model: Model, feeds: Sequence[Feed], timing_feed: Feed, timing: Timing
    ) -> tuple[dict[str, bytes], list[str]]:
        """What is to be delivered beside the compressed model to run it on the device, by file name, and what a user
        has to know about it. feeds: as the model will see; timing: its time on timing_feed."""
        ...

    def profile(self, model: Model, feed: Feed, *, repeats: int = 9) -> list[Kernel]:
        """The kernels of the deployed graph in the order they run, timed in place over `repeats` runs."""
        ...

    def measure(
        self,
        models: Sequence[Model | Executable],
        feed: Feed,
        *,
        min_rounds: int = 10,
        min_seconds: float = 0.0,
        max_seconds: float = 20.0,
        spread: float = 0.01,
    ) -> list[Timing]:
        """Times of all models, taken in turns (A B A B) after a warm-up; see `graphprune.target.speedup`.

        Goes on until there are `min_rounds` rounds over `min_seconds` and every paired ratio to models[0] (with one
        model: its time) has at most `spread`, or until `max_seconds` have passed, in three rounds at least. Where how
        a model comes to lie in memory makes a difference, every round loads it anew, unless it is loaded already.
        """
        ...

    def fingerprint(self) -> str:
        """Runtime, version, processor and threads: the key under which timings taken here hold."""
        ...
