"""A backend with a clock of its own: models really run, but time is counted in multiply-adds, so that what is decided
does not depend on the machine or on the day. For tests of the loop around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphprune.closed_loop
import graphprune.compiler
import graphprune.driver
from graphprune.backends import open_backend
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.target import Kernel, Timing
from graphprune.trace import trace

_MS_PER_MAC = 1e-6
_MS_PER_KERNEL = 1e-3


class Steady(OnnxRuntime):
    """Kernels are the nodes of the graph; each takes its multiply-adds and a little more. `unseen`: the share of
    time that no profile shows, so that predictions need correcting. `pace`: how many times as long everything takes;
    `noise`: how far the rounds of all models but the first of a measurement stray, as a share."""

    name = "steady"

    def __init__(self, threads: int = 1, unseen: float = 0.1) -> None:
        super().__init__(threads)
        self.unseen, self.pace, self.noise = unseen, 1.0, 0.0
        self._kernels: dict[bytes, list[Kernel]] = {}

    def load(self, model: Any, *, optimise: bool = True):
        session = super().load(model, optimise=optimise)
        session.counted = model
        return session

    def profile(self, model: Any, feed, *, repeats: int = 9) -> list[Kernel]:
        data = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString(deterministic=True)
        if data not in self._kernels:
            self._kernels[data] = self._count(data, feed)
        return self._kernels[data]

    def _count(self, data: bytes, feed) -> list[Kernel]:
        model = ir.from_proto(onnx.ModelProto.FromString(data))
        shapes = trace(model, feed, lambda m, f: OnnxRuntime.load(self, m, optimise=False).run(f)).shapes
        return [_kernel(i, node, shapes) for i, node in enumerate(model.graph)]

    def measure(self, models: Sequence[Any], feed, *, min_rounds: int = 10, **limits: float) -> list[Timing]:
        loaded = [getattr(m, "counted", m) for m in models]
        totals = [sum(k.ms for k in self.profile(m, feed)) for m in loaded]
        strays = 1 + self.noise * np.linspace(-1, 1, min_rounds)
        rounds = np.outer(totals, np.ones(min_rounds)) * (1 + self.unseen) * self.pace
        rounds[1:] *= strays
        return [Timing(tuple(map(float, r))) for r in rounds]

    def fingerprint(self) -> str:
        return "a steady clock"


def _kernel(i: int, node: ir.Node, shapes) -> Kernel:
    inputs = tuple(tuple(shapes[v.name]) for v in node.inputs if v is not None)
    outputs = tuple(tuple(shapes[v.name]) for v in node.outputs)
    each = 1
    if node.op_type == "Conv":
        each = int(np.prod(inputs[1][1:]))
    elif node.op_type in ("MatMul", "Gemm"):
        each = inputs[0][-1]
    ms = _MS_PER_KERNEL + _MS_PER_MAC * each * int(np.prod(outputs[0]))
    return Kernel(node.name or f"{node.op_type}_{i}", node.op_type, ms, inputs, outputs)


def keep_steady_time(monkeypatch: pytest.MonkeyPatch) -> Steady:
    """Let compilations go by the steady clock, priced from few plans and searching little."""
    clock = Steady()
    monkeypatch.setattr(graphprune.driver, "open_backend",
                        lambda device, threads=1, *_: clock if device == "host" else open_backend(device, threads))
    monkeypatch.setattr(graphprune.compiler, "_PRICING_SECONDS", 0.0)
    monkeypatch.setattr(graphprune.closed_loop, "_EVALUATIONS", 6)
    return clock
