"""Fill in the report of a finished compilation: from what was decided and measured to rows that people read."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphprune import report as rows
from graphprune.causes import parameters
from graphprune.divergence import MEANING, Reference, cosine, outputs_of
from graphprune.oracles import Check
from graphprune.standing import Standing, standing
from graphprune.target import Target, Timing, speedup

if TYPE_CHECKING:
    from graphprune.closed_loop import Built
    from graphprune.compiler import Compiler

_SAME = 1.15
"""What the dense model may take more or less at the end than when prices were taken, on a machine that is the same."""
_PACKAGES = ("graphprune", "onnx", "onnx-ir", "numpy", "scipy")


def make_report(
    compiler: Compiler,
    target: Target,
    built: Built,
    data: bytes,
    model: ir.Model,
    without: ir.Model | None,
    checks: Sequence[Check],
    attempts: Sequence[rows.Attempt],
    timings: Sequence[Timing],
    notes: Sequence[str] = (),
) -> rows.Report:
    """The report of one result. data: the bytes that will be written; without: the same model with the axes of norms
    left whole, if some were pruned; timings: dense and compressed, in turns; notes: of the backend."""
    prepared, source = compiler.prepared, compiler.prepared.source
    before, after = parameters(prepared.model), parameters(model)
    ratio = speedup(timings[0], timings[1])
    total = max(prepared.analysis.n_parameters, 1)
    return rows.Report(
        model=rows.ModelFacts(source.name, source.sha256, len(list(source.model.graph)), before, source.n_bytes),
        asked=rows.Asked(
            target=str(target),
            device=compiler.device,
            threads=compiler.backend.threads,
            seed=compiler.seed,
            passes=tuple(p.name for p in compiler.passes),
            score=compiler.context.score,
            calibration=compiler.data.source,
            n_calibration=len(compiler.data.calibration),
            synthetic=compiler.data.synthetic,
            shapes={n: "x".join(map(str, a.shape)) for n, a in compiler.data.timing.items()},
            target_speedup=timings[0].median_ms / target.budget_ms(timings[0].median_ms),
        ),
        reached=rows.Reached(
            timings[0].median_ms,
            timings[0].spread,
            timings[1].median_ms,
            timings[1].spread,
            ratio.value,
            ratio.spread,
            timings[0].rounds,
            tuple(attempts),
            ratio.source,
        ),
        size=rows.Size(before, after, source.n_bytes, len(data)),
        quality=tuple(_quality(compiler, model, without)),
        sites=tuple(_sites(compiler, built, total)),
        time=tuple(_time(compiler, built, data)),
        frozen=tuple(
            rows.FrozenRow(f.reason, f.count, f.n_parameters / total, None, f.example)
            for f in prepared.analysis.frozen[:20]
        ),
        certificate=tuple(
            rows.CheckRow(
                c.oracle,
                ", ".join(f"{n}={'x'.join(map(str, s))}" for n, s in c.shapes.items()),
                c.difference,
                c.effect,
                c.verdict,
            )
            for c in checks
        ),
        environment={name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version(), "runtime": compiler.backend.fingerprint()}
        | {f"lowering: {name}": f"{factor:.2f}x before any pruning" for name, factor in compiler.lowerings.items()},
        warnings=(*notes, *_warnings(compiler, built, target, timings, checks)),
    )


def _quality(compiler: Compiler, model: ir.Model, without: ir.Model | None):
    feeds = list(compiler.data.holdout)
    dense = outputs_of(compiler.context.load(compiler.prepared.model), feeds)
    reference = Reference(dense, compiler.kinds)
    have = outputs_of(compiler.context.load(model), feeds)
    kind = "held-out calibration feeds" if not compiler.data.synthetic else "synthetic inputs"
    measured = ", ".join(dict.fromkeys(MEANING[k] for k in reference.kinds.values()))
    about = f"0: equal to dense, 1: a constant; {measured}; on {len(feeds)} {kind}"
    yield rows.Metric("output divergence", reference.divergence(have), about)
    if without is not None:
        other = outputs_of(compiler.context.load(without), feeds)
        yield rows.Metric("output divergence, exact axes alone", reference.divergence(other),
                          f"the same plan with the axes of norms and softmaxes left whole; on {len(feeds)} {kind}")
    if len(reference.kinds) > 1:
        for name, lost in reference.per_output(have).items():
            yield rows.Metric(f"divergence of {name}", lost.share, f"{lost.kind}: {MEANING[lost.kind]}")
    for name in dense[0]:
        if np.asarray(dense[0][name]).dtype.kind == "f":
            yield rows.Metric(f"cosine of {name}", cosine(dense, have, name), f"mean over {len(feeds)} {kind}")


def _sites(compiler: Compiler, built: Built, total: int):
    before, after = _shares(compiler, compiler.full), _shares(compiler, built.levels)
    groups = compiler.prepared.analysis.groups
    for site in compiler.sites:
        group = groups.get(site.name)
        yield rows.Site(
            site.name,
            site.members,
            site.about,
            site.full,
            built.levels[site.name],
            (group.n_parameters if group else 0) / total,
            before.get(site.name),
            after.get(site.name),
            "" if site.ordered else site.label(built.levels[site.name]),
        )


def _shares(compiler: Compiler, levels: Mapping[str, int]) -> dict[str, float]:
    """Milliseconds of the terms that depend on each site."""
    found: dict[str, float] = {}
    for term in compiler.cost.kernels:
        for site in term.groups:
            found[site] = found.get(site, 0.0) + float(term.ms(levels))
    return found


def _time(compiler: Compiler, built: Built, data: bytes):
    before = _by_op(compiler.backend.profile(compiler.dense, compiler.data.timing, repeats=7))
    after = _by_op(compiler.backend.profile(data, compiler.data.timing, repeats=7))
    predicted: dict[str, float] = {}
    for term in compiler.cost.kernels:
        predicted[term.op] = predicted.get(term.op, 0.0) + float(term.ms(built.levels))
    for op in sorted(before | after, key=lambda op: -before.get(op, 0.0)):
        yield rows.TimeRow(op, before.get(op, 0.0), after.get(op, 0.0), predicted.get(op))


def _by_op(kernels) -> dict[str, float]:
    total: dict[str, float] = {}
    for k in kernels:
        total[k.op] = total.get(k.op, 0.0) + k.ms
    return total


def _warnings(
    compiler: Compiler, built: Built, target: Target, timings: Sequence[Timing], checks: Sequence[Check]
) -> Iterator[str]:
    dense, ratio = timings[0], speedup(timings[0], timings[1])
    wanted = dense.median_ms / target.budget_ms(dense.median_ms)
    stands = standing(ratio.over(wanted))
    if compiler.data.synthetic:
        yield "no calibration data was given: synthetic inputs were used, and quality was judged on them"
    elif len(compiler.data.calibration) < 8:
        yield f"only {len(compiler.data.calibration)} calibration feeds: weights solved from so few may not generalise"
    if len(compiler.data.holdout) and compiler.data.holdout[0] is compiler.data.calibration[0]:
        yield "a single feed was given: it was used both to calibrate and to judge"
    if all(built.levels[name] == full for name, full in compiler.full.items()):
        yield f"nothing had to go: exact rewrites alone make the model {ratio.value:.2f}x faster"
    elif stands is Standing.BEYOND:
        yield f"the levels of this model are coarse: {ratio.value:.2f}x was the nearest above {wanted:.2f}x"
    if stands is Standing.DOUBTFUL:
        yield (f"{ratio.value:.2f}x {rows.spread_text(ratio.spread)} cannot be told from {wanted:.2f}x: ask for "
               "a little more to be sure")
    priced_ms = compiler.cost.dense_ms
    if ratio.source == "measured" and not 1 / _SAME < dense.median_ms / priced_ms < _SAME:
        yield (f"the machine changed meanwhile: the model as it came took {priced_ms:.3g} ms when prices were taken, "
               f"{dense.median_ms:.3g} ms at the end; with nothing else running, more may be kept")
    if any(c.verdict == "vacuous" for c in checks):
        yield "a check of the certificate showed nothing: removing the channels did not change the output at that shape"
