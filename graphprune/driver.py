"""The public functions: from a model and what is asked of it to a compiled one. The loop itself is in `compiler`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import numpy as np

from graphprune.backends import integer_kernels, open_backend
from graphprune.backends.base import Backend
from graphprune.carry_out import apply, lowered
from graphprune.compiler import Compiler
from graphprune.context import Context, overwrite
from graphprune.divergence import named_kinds, outputs_of
from graphprune.dual import MaxDrop, fastest, judge
from graphprune.elsewhere import of
from graphprune.errors import GraphpruneError, InfeasibleTarget, ModelError, UsageError
from graphprune.evaluate import Evaluation, Function, resolve
from graphprune.groups import Analysis, Group
from graphprune.load import save_bytes
from graphprune.plan import Plan
from graphprune.prepare import loader, need_groups, prepare, read_data, with_inexact
from graphprune.progress import Progress, Silent
from graphprune.result import Result
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
    outputs: Mapping[str, str] | None = None,
    evaluation: Evaluation | None = None,
    progress: Progress | None = None,
    precision: str | None = None,
    baseline_precision: str | None = None,
    others: Sequence[Backend] = (),
) -> Compiler:
    """Everything that is done once for a model, whatever the target: see `compile` for the arguments.

    evaluation: tried on the dense model before the long work begins; others: must not refuse the model, either.
    """
    progress = progress or Silent()
    if score not in get_args(Score):
        raise UsageError(f"unknown score {score!r}", at="--score", fix=f"one of {', '.join(get_args(Score))}")
    if axes not in AXES:
        raise UsageError(f"unknown axes {axes!r}", at="--axes", fix=f"one of {', '.join(AXES)}")
    backend, chosen = open_backend(device, threads, precision, baseline_precision), passes_of(passes)
    with progress.stage("load"):
        prepared = prepare(model, backend, shapes)
        if axes == "all":
            prepared = with_inexact(prepared)
        if all(p.name == "width" for p in chosen):
            need_groups(prepared)
        data = read_data(prepared, calibration, shapes, seed)
        for each in (backend, *others):
            each.check(prepared.model)
        few = outputs_of(loader(backend)(prepared.model), data.holdout[:4])
        kinds = named_kinds(prepared.model, few, outputs)
    if evaluation is not None:
        with progress.stage("evaluate"):
            evaluation.headline(save_bytes(prepared.source.model))
    return Compiler(
        prepared,
        data,
        backend,
        chosen,
        score=score,
        compensate=compensate,
        lower=lower,
        axes=axes,
        seed=seed,
        device=device,
        progress=progress,
        kinds=kinds,
    )


def beside(
    made: Compiler, *, device: str, passes: str | Sequence[str | Pass] | None = None, threads: int = 1,
    lower: bool = True, precision: str | None = None,
    baseline_precision: str | None = None, progress: Progress | None = None, **_: Any,
) -> Compiler:  # fmt: skip
    """The same model for another device: what was calibrated is taken over, prices and choices are its own."""
    backend = open_backend(device, threads, precision, baseline_precision)
    backend.check(made.prepared.model)
    return Compiler(made.prepared, made.data, backend, passes_of(passes), score=made.context.score,
                    compensate=made.context.compensate, lower=lower, axes=made.axes, seed=made.seed, device=device,
                    progress=progress or Silent(), kinds=made.kinds, calibrated=made)  # fmt: skip


def _depth() -> Pass:
    from graphprune.passes.depth import Depth

    return Depth()


def _width() -> Pass:
    from graphprune.passes.width import Width

    return Width()


def _low_rank() -> Pass:
    from graphprune.passes.low_rank import LowRank

    return LowRank()


def _quantise() -> Pass:
    from graphprune.passes.quantise import Quantise

    return Quantise()


PASSES: Mapping[str, Callable[[], Pass]] = {
    "depth": _depth, "width": _width, "low-rank": _low_rank, "quantise": _quantise,
}  # fmt: skip
"""The default pipeline, in order."""


def passes_of(asked: str | Sequence[str | Pass] | None) -> tuple[Pass, ...]:
    """Passes by name ("width,quantise", or a sequence that may hold values of `Pass` too), in the order of the
    pipeline as far as they are its own; all of it if None. Raises UsageError for a name that there is not."""
    if asked is None:
        return tuple(make() for make in PASSES.values())
    items = [part.strip() for part in asked.split(",")] if isinstance(asked, str) else list(asked)
    names = [item for item in items if isinstance(item, str)]
    for name in names:
        if name not in PASSES:
            near = get_close_matches(name, PASSES, n=1)
            raise UsageError(f"there is no pass {name!r}", at="--passes",
                             fix=f"did you mean {near[0]}?" if near else f"the passes are {', '.join(PASSES)}")
    if len(set(names)) < len(names):
        raise UsageError("a pass is named twice", at="--passes", fix="name each once")
    if names == items:
        items = [name for name in PASSES if name in names]
    return tuple(PASSES[item]() if isinstance(item, str) else item for item in items)


def compile(
    model: Any,
    *,
    target_speedup: float | None = None,
    target_latency_ms: float | None = None,
    max_drop: float | str | None = None,
    evaluate: str | Function | None = None,
    **options: Any,
) -> Result:
    """Make `model` as fast as asked on a device, measured, at the least loss of quality; or as fast as it can be within
    a loss of quality.

    model: a path, bytes, onnx.ModelProto or onnx_ir.Model. target_speedup: how many times faster than the dense
    model in the same runtime; or target_latency_ms; or max_drop, how much quality may go for the most speed (see
    `dual`): of the metric that `evaluate` gives in points, or as "1%" of its dense value; without one, of the
    divergence of outputs on held-out feeds. evaluate: "module:function" or a function of run (see `evaluate`),
    whose numbers the report shows before and after. outputs: output name -> what it is, "distribution", "logits",
    "embedding", "relative" or "auto" (see `divergence`). device: "host", this machine; or one that is not here, by
    name or by a file (see `devices.find`), for which times are predicted; precision, baseline_precision: what
    floating-point numbers are there in the result and in the dense model, such as "fp16" (default: what is usual on
    the device). calibration: a folder of .npz files, one stacked .npz, "module:function", or an iterable of feeds
    (input name -> array); None makes up inputs and says so. shapes: input name -> shape at which speed counts, for
    dynamic axes. score: "second-order", "magnitude" or "activation". compensate: solve the remaining weights again.
    axes: "exact", where removing a channel is the same as zeroing it, or "all", also those that a norm or softmax
    runs over (stems, residual widths); the report then says what these cost apart. lower: use the backend's
    rewrites where they are faster. passes: names of `PASSES` ("width,quantise", or a sequence that may hold values
    of `sites.Pass` too), all of them if None. progress: see `progress`. Raises errors of `graphprune.errors`;
    InfeasibleTarget carries the largest factor measured.
    """
    if max_drop is None:
        (result,) = _reach_all(model, [Target(target_speedup, target_latency_ms)], evaluate, options)
        return result
    if target_speedup is not None or target_latency_ms is not None:
        raise UsageError("a target and a quality budget cannot be combined", at=f"max_drop={max_drop!r}",
                         fix="ask for one of the two")  # fmt: skip
    budget = MaxDrop.of(max_drop, metric=evaluate is not None)
    evaluation = _evaluation(evaluate, options)
    made = compiler(model, evaluation=evaluation, **options)
    return _evaluated(fastest(made, judge(made, budget, evaluation), made.progress.note), made, evaluation)


def compile_family(
    model: Any, *, targets: Sequence[float], evaluate: str | Function | None = None, **options: Any
) -> list[Result]:
    """Several speed-ups of one model from one calibration and one set of prices; arguments as for `compile`."""
    return _reach_all(model, [Target(speedup=t) for t in targets], evaluate, options)


def compile_for(
    model: Any, *, devices: Sequence[str], targets: Sequence[float], evaluate: str | Function | None = None,
    **options: Any,
) -> dict[str, list[Result | GraphpruneError]]:  # fmt: skip
    """Several speed-ups for several devices from one calibration; arguments as for `compile`.

    Returns, for every device, one result for every target or why there is none (InfeasibleTarget, mostly), the reports
    with the choices of the other devices beside their own. A device that is unknown, named twice, or whose engine
    refuses the model, ends it before any work.
    """
    threads = options.get("threads", 1)
    backends = [open_backend(d, threads, options.get("precision"), options.get("baseline_precision")) for d in devices]
    if not devices or len({b.fingerprint() for b in backends}) < len(devices):
        raise UsageError("a device is named twice" if devices else "no device was given", at="--device",
                         fix="name each once")  # fmt: skip
    evaluation = _evaluation(evaluate, {**options, "device": devices[0]})
    first = compiler(model, evaluation=evaluation, others=backends[1:], **{**options, "device": devices[0]})
    found: dict[str, list[Result | GraphpruneError]] = {}
    for device in devices:
        try:
            made = first if device == devices[0] else beside(first, **{**options, "device": device})
        except ModelError as error:  # nothing that this device is faster with
            found[device] = [error] * len(targets)
            continue
        found[device] = [_or_error(made, Target(speedup=t), evaluation) for t in targets]
    return {device: [_beside_others(found, device, i) for i in range(len(targets))] for device in devices}


def _beside_others(
    found: Mapping[str, Sequence[Result | GraphpruneError]], device: str, i: int
) -> Result | GraphpruneError:
    """The result of a device for target i, its report with the choices of the other devices."""
    result = found[device][i]
    if not isinstance(result, Result):
        return result
    others = (results[i] for name, results in found.items() if name != device)
    elsewhere = tuple(of(other.report) for other in others if isinstance(other, Result))
    return replace(result, report=replace(result.report, elsewhere=elsewhere))


def _or_error(made: Compiler, target: Target, evaluation: Evaluation | None) -> Result | GraphpruneError:
    made.progress.note(f"{made.device}: {target}")
    try:
        return _evaluated(made.reach(target), made, evaluation)
    except (InfeasibleTarget, ModelError) as error:
        return error


def _reach_all(
    model: Any, targets: Sequence[Target], evaluate: str | Function | None, options: Mapping[str, Any]
) -> list[Result]:
    evaluation = _evaluation(evaluate, options)
    made = compiler(model, evaluation=evaluation, **options)
    return [_evaluated(made.reach(target), made, evaluation) for target in targets]


def _evaluation(evaluate: str | Function | None, options: Mapping[str, Any]) -> Evaluation | None:
    """The user's metric on the device that is compiled for."""
    if evaluate is None:
        return None
    backend = open_backend(options.get("device", "host"), options.get("threads", 1))
    return Evaluation(*resolve(evaluate), backend.load)


def _evaluated(result: Result, made: Compiler, evaluation: Evaluation | None) -> Result:
    """The result with the user's metric at the head of what its report says of quality."""
    if evaluation is None:
        return result
    with made.progress.stage("evaluate"):
        rows = evaluation.rows(made.dense_bytes, result.data)
    return replace(result, report=replace(result.report, quality=(*rows, *result.report.quality)))


def replay(plan: str | Path | Plan, model: Any, *, passes: str | Sequence[str | Pass] | None = None) -> bytes:
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
    passes = passes_of(passes)
    if unknown := sorted(set(plan.choices) - {p.name for p in passes}):
        raise UsageError(
            f"the plan has choices of a pass {unknown[0]!r} that is not here", fix="give it in passes=[...]"
        )
    context = Context(prepared.analysis, [], loader(backend), compensate=plan.compensate,
                      integer=integer_kernels(plan.integer))  # fmt: skip
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
