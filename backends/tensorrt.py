"""All that is needed to build a TensorRT engine where its GPU is: the model as TensorRT accepts it, what to build it
with, and programs that build, load and time it.

TensorRT is not imported: what it would refuse is known beforehand from `tensorrt_rules`. Where it is installed,
`tensorrt_here` runs the same programs.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt_rules import Finding, check
from graphprune.errors import ModelError
from graphprune.half import to_half, too_large
from graphprune.load import save_bytes
from graphprune.target import IntegerKernels
from graphprune.trace import Feed, Run

INTEGER = IntegerKernels(
    name="tensorrt", linear={"Conv": ("static",), "Gemm": ("static",), "MatMul": ("static",)},
    followers=frozenset({"Add"}), symmetric=True, closed=False,
)  # fmt: skip
"""Explicit quantisation: the inputs of products and of residual sums, symmetric; what they give stays as it is."""
ONNX, PLAN = "engine.onnx", "build.json"
ENGINE, CACHE = "model.engine", "timing.cache"
PROGRAMS = ("build_engine.py", "run_engine.py", "torch_engine.py")
_SCRIPT = """#!/bin/sh
# The same with the program that comes with TensorRT's archives.
cd "$(dirname "$0")" || exit 1
{line}
"""
_WORKSPACE_MIB, _OPTIMISATION = 4096, 3
_RANGE_FEEDS = 8
"""Feeds on which the range of activations is looked at before they go to 16 bits."""
_SHOWN = 5


@dataclass(frozen=True)
class Expected:
    """The time that was predicted for the engine, with the relative half-width of its 80 % interval."""

    ms: float
    spread: float
    source: str


def accepted(model: ir.Model, precision: str, wide: Iterable[str] = ()) -> tuple[ir.Model, list[Finding]]:
    """The model as a strongly typed engine wants it, and what there is to say about it.

    Raises ModelError with the names of the rules where TensorRT would refuse it.
    """
    typed = to_half(model, set(wide)) if precision == "fp16" else model.clone()
    found = check(typed)
    refused = [f for f in found if f.weight == "error"]
    if refused:
        shown = "; ".join(f"{f.at}: {f.what} ({f.rule})" for f in refused[:_SHOWN])
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        fixes = dict.fromkeys(f.fix for f in refused if f.fix)
        raise ModelError("TensorRT would refuse this model", at=shown + more, fix="; ".join(list(fixes)[:3]))
    return typed, found


def folder(
    model: ir.Model, *, device: str, precision: str, feeds: Sequence[Feed], timing: Feed, run: Run, expected: Expected,
) -> tuple[dict[str, bytes], list[Finding]]:  # fmt: skip
    """The files of a build folder by name, and what was found to say about the model.

    feeds: between whose smallest and largest shapes dynamic axes may be; timing: the shapes to be fastest at. run: runs
    a model here, to see which activations do not fit into 16 bits. Raises ModelError as `accepted` does.
    """
    wide = too_large(model, feeds[:_RANGE_FEEDS], run) if precision == "fp16" else set()
    typed, found = accepted(model, precision, wide)
    plan: dict[str, Any] = {
        "onnx": ONNX, "device": device, "precision": precision, "strongly_typed": True,
        "workspace_mib": _WORKSPACE_MIB, "optimization_level": _OPTIMISATION,
        "profile": profile(typed, [*feeds, timing], timing), "shapes": {n: list(a.shape) for n, a in timing.items()},
        "inputs": [v.name for v in typed.graph.inputs], "outputs": [v.name for v in typed.graph.outputs],
        "types": {n: str(a.dtype) for n, a in timing.items()}, "kept_in_32_bits": sorted(wide),
        "expected_ms": expected.ms, "expected_spread": expected.spread,
        "expected_from": expected.source, "built": False, "findings": [asdict(f) for f in found],
    }  # fmt: skip
    home = files("graphprune.backends") / "tensorrt_folder"
    return {
        ONNX: save_bytes(typed),
        PLAN: (json.dumps(plan, indent=1) + "\n").encode(),
        "trtexec.sh": _SCRIPT.format(line=trtexec(plan)).encode(),
        **{name: (home / name).read_bytes() for name in PROGRAMS},
    }, found


def profile(model: ir.Model, feeds: Iterable[Feed], timing: Feed) -> dict[str, dict[str, list[int]]]:
    """Input with dynamic axes -> the smallest, usual and largest shape that was seen; a dynamic first axis, the batch,
    goes down to one."""
    seen = list(feeds)
    found = {}
    for value in model.graph.inputs:
        if value.name not in timing or value.shape is None or value.shape.is_static():
            continue
        shapes = np.asarray([feed[value.name].shape for feed in seen])
        dynamic = [not isinstance(n, int) for n in value.shape]
        usual = list(timing[value.name].shape)
        low, high = shapes.min(axis=0), shapes.max(axis=0)
        least = [1 if i == 0 and dynamic[0] else int(n) for i, n in enumerate(low)]
        found[value.name] = {"min": least, "opt": [int(n) for n in usual], "max": [int(n) for n in high]}
    return found


def trtexec(plan: Mapping[str, Any]) -> str:
    """The command that builds and times the same engine; options that TensorRT 11 has by default are given for 10."""
    parts = [f"--onnx={plan['onnx']}", "--saveEngine=model.engine", "--stronglyTyped",
             f"--memPoolSize=workspace:{plan['workspace_mib']}",
             f"--builderOptimizationLevel={plan['optimization_level']}", "--timingCacheFile=timing.cache",
             "--profilingVerbosity=detailed"]  # fmt: skip
    for option, end in (("minShapes", "min"), ("optShapes", "opt"), ("maxShapes", "max")):
        shapes = [f"{_quoted(name)}:{'x'.join(map(str, ends[end]))}" for name, ends in plan["profile"].items()]
        if shapes:
            parts.append(f"--{option}={','.join(shapes)}")
    parts += ["--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--warmUp=500", "--duration=10"]
    return " \\\n  ".join(["trtexec", *map(shlex.quote, parts)])


def _quoted(name: str) -> str:
    """The name of an input as trtexec wants it where it holds what separates names from shapes."""
    return f"'{name}'" if set(name) & set(":,") else name
