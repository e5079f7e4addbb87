"""Kernels of PyTorch on a GPU: the products, convolutions, attentions and element-wise operations that engines run.

Each is timed many times in a row inside a CUDA graph, on operands that take turns, so that neither the launch from
Python nor a cache that no network would find so warm is measured. The clocks that were seen go into the key.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphprune.backends import nvidia
from graphprune.devices import known
from graphprune.devices.device import BYTES
from graphprune.devices.table import Key, Row
from graphprune.devices.work import OPERATIONS, Work
from graphprune.errors import EnvironmentFault, UsageError

_IN_A_ROW, _ROUNDS = 20, 7
_MOST_BYTES = 2**28
"""Of all copies of the operands of one kernel."""
_PRODUCTS = 3e11
"""Operations of the largest kernel."""
_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_STREAMED = ("Add", "Mul", "Sigmoid", "Gelu", "Softmax", "LayerNormalization", "Transpose")


class TorchKernels:
    """See `profiling.Profiler`. on: the device of torch, "cpu" for trying it out.

    Raises EnvironmentFault without torch or a GPU, UsageError for a precision that torch does not compute in.
    """

    def __init__(self, precision: str = "fp16", on: str = "cuda") -> None:
        try:
            import torch
        except ImportError as error:
            raise EnvironmentFault("PyTorch is not installed", at="--device cuda", fix="pip install torch") from error
        if precision not in _DTYPES:
            raise UsageError(f"kernels in {precision} cannot be measured", at="--precision",
                             fix=f"one of {', '.join(_DTYPES)}")  # fmt: skip
        if on == "cuda" and not torch.cuda.is_available():
            raise EnvironmentFault("there is no GPU here that PyTorch can use", at=f"torch {torch.__version__}",
                                   fix="run this where the GPU is, with a build of PyTorch for it")  # fmt: skip
        self.torch, self.on, self.precision = torch, on, precision
        self.dtype = getattr(torch, _DTYPES[precision])

    def key(self) -> Key:
        torch, cuda = self.torch, self.on == "cuda"
        driver = nvidia.driver() if cuda else {}
        return Key(
            torch.cuda.get_device_name() if cuda else "a processor, in PyTorch", f"torch {torch.__version__}",
            driver.get("driver_version", ""), clocks=driver.get("clocks", ""), date=time.strftime("%Y-%m-%d"),
        )  # fmt: skip

    def probes(self, seed: int) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
        kinds = (self._linear, self._convolution, self._linear, self._attention, self._elements, self._depthwise)
        for i in range(10**9):
            kind = kinds[i % len(kinds)]
            rng = np.random.default_rng([seed, i])
            yield f"{kind.__name__[1:]} {i}", partial(self._row, kind, rng)

    def described(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The device of the database that bears this name; else what was measured, as far as it goes."""
        key = self.key()
        for device in known().values():
            if key.device.lower() in (device.title.lower(), *map(str.lower, device.aliases)):
                sources = list(dict.fromkeys(f.source for f in device.figures.values()))
                found: dict[str, Any] = {
                    "title": device.title, "kind": device.kind, "family": device.family, "name": device.name,
                    "precision": device.precision, "capability": device.capability, "aliases": list(device.aliases),
                    "sources": {f"s{i}": {"title": s, "date": "cited in full"} for i, s in enumerate(sources)},
                }  # fmt: skip
                for name, figure in device.figures.items():
                    section, entry = name.split(".")
                    value = {"value": figure.value, "source": f"s{sources.index(figure.source)}", "note": figure.note}
                    found.setdefault(section, {})[entry] = value
                return found
        return self._measured(rows, key)

    def _measured(self, rows: Sequence[Row], key: Key) -> dict[str, Any]:
        rates = [r.work.products / r.ms * 1e3 for r in rows if r.work.products > 1e8]
        moved = [r.work.bytes / r.ms * 1e3 for r in rows if r.work.kind == "vector"]
        if not rates or not moved:
            raise EnvironmentFault("too few kernels were measured to know this device", fix="give more --seconds")
        figure = lambda value: {"value": float(f"{value:.4g}"), "source": "measured"}  # noqa: E731
        count = self.torch.cuda.get_device_properties(0).multi_processor_count if self.on == "cuda" else 1
        peak = figure(max(rates) * 1e-12)
        return {
            "title": key.device, "kind": "gpu", "family": key.device, "precision": self.precision,
            "sources": {"measured": {"title": f"graphprune profile, {key.runtime}", "date": key.date}},
            "peak": {"fp32": peak, self.precision: peak},
            "units": {"count": figure(count), "clock_ghz": figure(1.0)}, "memory": {"gb_s": figure(max(moved) * 1e-9)},
        }  # fmt: skip

    # --------------------------------------------------------------------------------------------- what is timed

    def _row(self, kind: Callable[[np.random.Generator], tuple[Work, Callable, Callable]], rng) -> list[Row]:
        work, operands, run = kind(rng)
        try:
            times = self._times(operands, run, work.bytes)
        except self.torch.cuda.OutOfMemoryError:
            return []
        return [Row(work, statistics.median(times), (max(times) - min(times)) / 2 / statistics.median(times))]

    def _times(self, operands: Callable[[], tuple], run: Callable, size: float) -> list[float]:
        """Milliseconds of one run, several times; operands: makes a new set."""
        copies = max(1, min(_IN_A_ROW, int(_MOST_BYTES / max(size, 1))))
        with self.torch.inference_mode():
            sets = [operands() for _ in range(copies)]
            for s in sets[:2]:
                run(*s)
            if self.on != "cuda":
                return [self._on_processor(sets, run) for _ in range(_ROUNDS)]
            return self._on_gpu(sets, run)

    @staticmethod
    def _on_processor(sets: list[tuple], run: Callable) -> float:
        start = time.perf_counter()
        for i in range(_IN_A_ROW):
            run(*sets[i % len(sets)])
        return (time.perf_counter() - start) * 1e3 / _IN_A_ROW

    def _on_gpu(self, sets: list[tuple], run: Callable) -> list[float]:
        cuda = self.torch.cuda
        stream = cuda.Stream()
        with cuda.stream(stream):
            for s in sets:
                run(*s)
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, stream=stream):
            for i in range(_IN_A_ROW):
                run(*sets[i % len(sets)])
        graph.replay()
        times = []
        for _ in range(_ROUNDS):
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / _IN_A_ROW)
        return times

    def _make(self, *shape: int):
        return self.torch.randn(shape, device=self.on).to(self.dtype)

    def _size(self, *numbers: int) -> float:
        return math.prod(numbers) * BYTES[self.precision]

    def _linear(self, rng: np.random.Generator) -> tuple[Work, Callable, Callable]:
        m, n, k = _width(rng, 1, 16384), _width(rng, 16, 16384), _width(rng, 16, 16384)
        while 2.0 * m * n * k > _PRODUCTS:
            m = max(1, m // 2)
            n = max(16, n // 2)
        work = Work("MatMul", "matrix", self._size(m, k), self._size(m, n), self._size(n, k), 1, m, n, k,
                    precision=self.precision)  # fmt: skip
        return work, lambda: (self._make(m, k), self._make(n, k)), self.torch.nn.functional.linear

    def _attention(self, rng: np.random.Generator) -> tuple[Work, Callable, Callable]:
        heads, head, tokens = _width(rng, 1, 64), 8 * int(rng.integers(2, 17)), _width(rng, 16, 4096)
        batch = max(1, min(_width(rng, 1, 64), int(_PRODUCTS / (4.0 * heads * tokens**2 * head))))
        size = self._size(batch, heads, tokens, head)
        scores = float(batch * heads * tokens**2)
        work = Work("attention", "matrix", 3 * size, size, 0.0, batch * heads, tokens, tokens, 2 * head,
                    scores * OPERATIONS["Softmax"], self.precision)  # fmt: skip
        return (work, lambda: tuple(self._make(batch, heads, tokens, head) for _ in range(3)),
                self.torch.nn.functional.scaled_dot_product_attention)  # fmt: skip

    def _convolution(self, rng: np.random.Generator) -> tuple[Work, Callable, Callable]:
        c, out, side = _width(rng, 8, 2048), _width(rng, 8, 2048), _width(rng, 4, 112)
        kernel, stride = int(rng.choice([1, 1, 3, 3, 5])), int(rng.choice([1, 1, 2]))
        each = 2.0 * (side // stride) ** 2 * out * c * kernel**2
        batch = max(1, min(_width(rng, 1, 128), int(_PRODUCTS / each)))
        after = (side + 2 * (kernel // 2) - kernel) // stride + 1
        label = "Conv 1x1" if kernel == 1 else "Conv k x k"
        work = Work(label, "matrix", self._size(batch, c, side, side), self._size(batch, out, after, after),
                    self._size(out, c, kernel, kernel), 1, batch * after**2, out, c * kernel**2,
                    precision=self.precision)  # fmt: skip
        return work, *self._convolve(batch, c, side, out, kernel, stride, 1)

    def _depthwise(self, rng: np.random.Generator) -> tuple[Work, Callable, Callable]:
        c, side, kernel = _width(rng, 16, 1024), _width(rng, 4, 112), int(rng.choice([3, 3, 5, 7]))
        batch = _width(rng, 1, 64)
        numbers = batch * c * side**2
        work = Work("Conv depthwise", "vector", self._size(numbers), self._size(numbers),
                    self._size(c, kernel, kernel), operations=2.0 * numbers * kernel**2,
                    precision=self.precision)  # fmt: skip
        return work, *self._convolve(batch, c, side, c, kernel, 1, c)

    def _convolve(self, batch: int, c: int, side: int, out: int, kernel: int, stride: int, groups: int):
        last = self.torch.channels_last

        def operands():
            x, w = self._make(batch, c, side, side), self._make(out, c // groups, kernel, kernel)
            return x.contiguous(memory_format=last), w.contiguous(memory_format=last)

        def run(x, w):
            return self.torch.nn.functional.conv2d(x, w, stride=stride, padding=kernel // 2, groups=groups)

        return operands, run

    def _elements(self, rng: np.random.Generator) -> tuple[Work, Callable, Callable]:
        rows, width = _width(rng, 1, 16384), _width(rng, 16, 8192)
        while rows * width > 2**26:
            rows = max(1, rows // 2)
        op, functional = str(rng.choice(_STREAMED)), self.torch.nn.functional
        run = {
            "Add": lambda x, y: x + y, "Mul": lambda x, y: x * y, "Sigmoid": lambda x: x.sigmoid(),
            "Gelu": functional.gelu, "Softmax": lambda x: x.softmax(-1),
            "LayerNormalization": lambda x: functional.layer_norm(x, (width,)),
            "Transpose": lambda x: x.t().contiguous(),
        }[op]  # fmt: skip
        n_inputs = 2 if op in ("Add", "Mul") else 1
        size = self._size(rows, width)
        work = Work(op, "vector", n_inputs * size, size, operations=rows * width * OPERATIONS.get(op, 1.0),
                    precision=self.precision)  # fmt: skip
        return work, lambda: tuple(self._make(rows, width) for _ in range(n_inputs)), run


def _width(rng: np.random.Generator, low: int, high: int) -> int:
    """Drawn on a logarithmic scale: of whole tiles mostly, else any."""
    n = round(math.exp(rng.uniform(math.log(low), math.log(high))))
    step = int(rng.choice([1, 8, 16, 32, 64, 128]))
    return max(low, n // step * step or n)
