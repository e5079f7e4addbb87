"""Execution providers of ONNX Runtime: what can compute a model, or parts of it, on this machine.

A device `host:NAME` is this machine through the provider of that name, `host` alone its processor through the runtime's
own kernels. What a provider does not take, the runtime's own kernels compute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from graphprune.backends.tensorrt import INTEGER
from graphprune.errors import UsageError
from graphprune.target import IntegerKernels

_FOLLOWERS = frozenset({"Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu", "Sigmoid"})
_CARRIERS = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split"})


@dataclass(frozen=True)
class Provider:
    """runtime: its name in ONNX Runtime. package: what has it. options: for so many threads. integer: what it computes
    in few bits. opaque: whether it compiles whole parts of the graph, so that a profile shows each as one kernel.
    in_thread: whether with one thread a run stays in the thread that asked for it."""

    name: str
    title: str
    runtime: str
    package: str
    integer: IntegerKernels
    options: Callable[[int], Mapping[str, str]] = field(default=lambda threads: {})
    opaque: bool = False
    in_thread: bool = False


CPU = Provider(
    "cpu", "processor", "CPUExecutionProvider", "onnxruntime",
    IntegerKernels(
        name="onnxruntime",
        linear={
            "Conv": ("static",),
            "Gemm": ("static", "dynamic", "int8 weights", "int4 weights"),
            "MatMul": ("static", "dynamic", "int8 weights", "int4 weights"),
        },
        followers=_FOLLOWERS,
        carriers=_CARRIERS,
    ),
    in_thread=True,
)  # fmt: skip
OPENVINO = Provider(
    "openvino", "OpenVINO", "OpenVINOExecutionProvider", "onnxruntime-openvino",
    IntegerKernels(name="openvino", linear=dict.fromkeys(("Conv", "Gemm", "MatMul"), ("static",)),
                   followers=_FOLLOWERS, carriers=_CARRIERS),
    lambda threads: {"device_type": "CPU", "load_config": json.dumps({"CPU": {
        "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}})},
    opaque=True,
)  # fmt: skip
CUDA = Provider(
    "cuda", "CUDA", "CUDAExecutionProvider", "onnxruntime-gpu", IntegerKernels(name="none"),
    lambda threads: {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1"},
)  # fmt: skip
TENSORRT = Provider(
    "tensorrt", "TensorRT", "TensorrtExecutionProvider", "onnxruntime-gpu, with TensorRT's libraries", INTEGER,
    lambda threads: {"trt_fp16_enable": "1", "trt_int8_enable": "1"}, opaque=True,
)  # fmt: skip
PROVIDERS: Mapping[str, Provider] = {p.name: p for p in (CPU, OPENVINO, CUDA, TENSORRT)}


def provider(name: str) -> Provider:
    """Raises UsageError, with the nearest names, for one that is not known."""
    if name in PROVIDERS:
        return PROVIDERS[name]
    near = get_close_matches(name.lower(), PROVIDERS, n=2)
    raise UsageError(f"ONNX Runtime has no execution provider {name!r} that is known here", at=f"--device host:{name}",
                     fix=f"did you mean host:{' or host:'.join(near)}?" if near
                     else f"host:NAME, NAME one of {', '.join(PROVIDERS)}")  # fmt: skip
