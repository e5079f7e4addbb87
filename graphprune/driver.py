"""The public functions: from a model and what is asked of it to a compiled one. The loop itself is in `compiler`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from graphprune.backends import open_backend
from graphprune.compiler import Compiler, Result, apply, lowered
from graphprune.context import Context, overwrite
from graphprune.errors import UsageError
from graphprune.groups import Analysis, Group
from graphprune.load import save_bytes
from graphprune.plan import Plan
from graphprune.prepare import loader, need_groups, prepare, read_data, with_inexact
from graphprune.progress import Progress, Silent
from graphprune.scores import Score
from graphprune.sites import Choice, Pass
from graphprune.target import Target

AXES = ("exact", "all")
"""Levels of aggressiveness: which axes may shrink (see `compile`)."""


def compiler(
    model: Any,
    *,
    device: str = "host",
    calibration: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    threads: int = 1,
    score: str = "second-order",
    compensate: bool = True,
    lower: bool = True,
    axes: str = "exact",
    passes: Sequence[Pass] | None = None,
    progress: Progress | None = None,
) -> Compiler:
    """Everything that is done once for a model, whatever the target: see `compile` for the arguments."""
    progress = progress or Silent()
    if score not in get_args(Score):
        raise UsageError(f"unknown score {score!r}", at="--score", fix=f"one of {', '.join(get_args(Score))}")
    if axes not in AXES:
        raise UsageError(f"unknown axes {axes!r}", at="--axes", fix=f"one of {', '.join(AXES)}")
    backend = open_backend(device, threads)
    with progress.stage("load"):
        prepared = prepare(model, backend, shapes)
        if axes == "all":
            prepared = with_inexact(prepared)
        need_groups(prepared)
        data = read_data(prepared, calibration, shapes, seed)
    return Compiler(
        prepared,
        data,
        backend,
        default_passes() if passes is None else passes,
        score=score,
        compensate=compensate,
        lower=lower,
        axes=axes,
        seed=seed,
        device=device,
        progress=progress,
    )


def default_passes() -> tuple[Pass, ...]:
    """The default pipeline, in order."""
    from graphprune.passes.width import Width

    return (Width(),)


def compile(
    model: Any, *, target_speedup: float | None = None, target_latency_ms: float | None = None, **options: Any
) -> Result:
    """Make `model` as fast as asked on a device, measured, at the least loss of quality.

    model: a path, bytes, onnx.ModelProto or onnx_ir.Model. target_speedup: how many times faster than the dense model
    in the same runtime; or target_latency_ms. device: "host". calibration: a folder of .npz files, one stacked .npz,
    "module:function", or an iterable of feeds (input name -> array); None makes up inputs and says so. shapes: input
    name -> shape at which speed counts, for dynamic axes. score: "second-order", "magnitude" or "activation".
    compensate: solve the remaining weights again. axes: "exact", where removing a channel is the same as zeroing it, or
    "all", also those that a norm or softmax runs over (stems, residual widths); the report then says what these cost
    apart. lower: use the backend's rewrites where they are faster. passes:
    values of `sites.Pass`, the width pass if None. progress: see `progress`. Raises errors of `graphprune.errors`;
    InfeasibleTarget carries the largest factor measured.
    """
    return compiler(model, **options).reach(Target(target_speedup, target_latency_ms))


def compile_family(model: Any, *, targets: Sequence[float], **options: Any) -> list[Result]:
    """Several speed-ups of one model from one calibration and one set of prices; arguments as for `compile`."""
    wanted = [Target(speedup=t) for t in targets]
    shared = compiler(model, **options)
    return [shared.reach(target) for target in wanted]


def replay(plan: str | Path | Plan, model: Any, *, passes: Sequence[Pass] | None = None) -> bytes:
    """Carry a plan out on the model it was made for: the bytes that `compile` gave, without data or measurement."""
    plan = plan if isinstance(plan, Plan) else Plan.read(plan)
    backend = open_backend("host")
    prepared = prepare(model, backend, traced_at=plan.traced_at)
    if plan.axes == "all":
        prepared = with_inexact(prepared)
    if prepared.source.sha256 != plan.model_sha256:
        raise UsageError(
            "this plan was made for another model",
            at=f"plan {str(plan.model_sha256)[:12]}, model {prepared.source.sha256[:12]} (sha256)",
            fix="give the model that was compiled",
        )
    passes = default_passes() if passes is None else tuple(passes)
    if unknown := sorted(set(plan.choices) - {p.name for p in passes}):
        raise UsageError(
            f"the plan has choices of a pass {unknown[0]!r} that is not here", fix="give it in passes=[...]"
        )
    context = Context(prepared.analysis, [], loader(backend), compensate=plan.compensate)
    _check_kept(prepared.analysis, plan.choices)
    try:
        model = overwrite(apply(context, passes, plan.choices, solve=False), plan.tensors)
        return save_bytes(lowered(backend, model, plan.lowerings))
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise UsageError(f"the plan does not fit the model: {e}", fix="compile again with this version") from e


def _check_kept(analysis: Analysis, choices: Mapping[str, Mapping[str, Choice]]) -> None:
    """Raises UsageError where a plan keeps channels that are not there, or none, or one twice."""
    for name, choice in (item for sites in choices.values() for item in sites.items()):
        if "keep" in choice:
            group = analysis.groups.get(name)
            if group is None or not _is_keep_set(choice["keep"], group):
                raise UsageError(
                    f"the plan does not fit the model: {name!r} cannot keep what it says",
                    fix="compile again with this version",
                )


def _is_keep_set(kept: Any, group: Group) -> bool:
    """Whether plain data are indices of the group's channels, ascending, or such for each outer index, equally many."""
    try:
        index = np.asarray(kept)
    except ValueError:  # lists of unequal length
        return False
    outer = tuple(d.size for d in group.outer)
    return (
        isinstance(kept, list) and index.dtype.kind == "i" and index.size > 0 and index.shape[:-1] in ((), outer)
        and bool((np.diff(index, axis=-1) > 0).all()) and 0 <= index.min() <= index.max() < group.size
    )  # fmt: skip
