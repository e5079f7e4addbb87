"""Backends by device name. `open_backend` is the only place that knows which runtime serves which device."""

from __future__ import annotations

from graphprune.backends.base import Backend
from graphprune.devices import HOST, find
from graphprune.errors import UsageError
from graphprune.profiling import Profiler
from graphprune.target import IntegerKernels

CUDA, TENSORRT = "cuda", "tensorrt"
"""The GPU of this machine: for measuring its kernels, and through TensorRT."""


def open_backend(
    device: str, threads: int = 1, precision: str | None = None, baseline: str | None = None
) -> Backend:
    """The backend for `device`: this machine ("host", or "host:PROVIDER", see `providers`), its GPU ("tensorrt"), a
    device by name, or one by a file (see `devices.find`).

    precision, baseline: what floating-point numbers are on a device that is not here, in the compressed model and in
    the dense one. Raises UsageError naming the devices there are.
    """
    host, _, provider = device.partition(":")
    if host == HOST:
        from graphprune.backends.onnxruntime import OnnxRuntime
        from graphprune.backends.providers import provider as named

        if {precision, baseline} - {None, "fp32"}:
            raise UsageError("models for this machine are in fp32", at="--precision or --baseline-precision",
                             fix="leave it out; 8 bits are the quantise pass' affair")  # fmt: skip
        return OnnxRuntime(threads, named(provider or "cpu"))
    if device == TENSORRT:
        from graphprune.backends.tensorrt_here import TensorRT

        return TensorRT(threads, precision, baseline)
    described = find(device)
    from graphprune.backends.modelled import Modelled

    return Modelled(described, threads, precision, baseline)


def integer_kernels(name: str) -> IntegerKernels:
    """How an engine has values of few bits, by the name that a plan keeps. Raises UsageError for an unknown one."""
    from graphprune.backends.providers import PROVIDERS

    known = {p.integer.name: p.integer for p in PROVIDERS.values()}
    if not isinstance(name, str) or name not in known:
        raise UsageError(f"the plan is for an engine {name!r} that is not known here", fix="compile again")
    return known[name]


def open_profiler(device: str, threads: int = 1, precision: str | None = None) -> Profiler:
    """What measures kernels on this machine: its processor ("host") in ONNX Runtime, or its GPU ("cuda") in PyTorch.

    precision: of the GPU's kernels, fp16 unless given. Raises UsageError for what cannot be measured here.
    """
    if device == HOST:
        from graphprune.backends.network_kernels import NetworkKernels
        from graphprune.backends.onnxruntime import OnnxRuntime

        return NetworkKernels(OnnxRuntime(threads=threads))
    if device == CUDA:
        from graphprune.backends.torch_kernels import TorchKernels

        return TorchKernels(precision or "fp16")
    raise UsageError(f"{device!r} cannot be measured here", at="--device", fix=f"{HOST} (this processor) or {CUDA}")
