"""One model in the closed loop: calibrate, price, solve, apply, measure, correct, certify, report."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.align import align, find_free_bases
from graphprune.backends.base import Backend
from graphprune.calibrate import slices_needed
from graphprune.context import Context
from graphprune.cost import CostModel, measure_prices
from graphprune.divergence import Kind, Reference, outputs_of
from graphprune.edit import shrink
from graphprune.errors import InfeasibleTarget, ModelError, UsageError
from graphprune.feeds import Feed
from graphprune.files import publish
from graphprune.likeness import surroundings
from graphprune.load import save_bytes
from graphprune.nearness import sites_near
from graphprune.oracles import TOLERANCE, Check, certify, compare
from graphprune.parallel import in_order
from graphprune.plan import Plan
from graphprune.prepare import (
    Data,
    Prepared,
    certificate_feeds,
    loader,
    run_all,
    runner,
)
from graphprune.progress import Progress
from graphprune.refit import n_stages, refit
from graphprune.report import Attempt, Report
from graphprune.search import improve, measure_curves, probe_levels
from graphprune.sites import Choice, Pass, Site
from graphprune.solver import Problem
from graphprune.summary import make_report
from graphprune.target import Ratio, Target, Timing, speedup

LOW, HIGH = 1.0, 1.08
"""The window of accepted results: measured speed-up over the target."""
_AIM, _AIM_MORE, _MOST_AIM = 1.02, 0.01, 1.05
"""What is aimed at over the target, how much more after each attempt, and at most: answers lean on what the prices
flatter."""
_WORTH = 1.01
"""A rewrite of the backend is taken where it is at least this much faster."""
_ATTEMPTS = 7
_EVALUATIONS = 60
_PRICING_SECONDS = 20.0
_PRICING_SECONDS_PER_SITE = 0.3
_EVALUATION_FEEDS = 20
_LEAST_SAVING = 2e-4
"""Of the dense time: a level that can save no more is not worth a look."""


@dataclass(frozen=True)
class Result:
    """A compressed model with its plan and report. `model` is an onnx.ModelProto."""

    data: bytes = field(repr=False)
    plan: Plan
    report: Report

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.ModelProto.FromString(self.data)

    def save(self, folder: str | Path) -> None:
        """Write model.onnx, plan.json, plan.npz, report.json and report.html, all or none."""
        from graphprune.report_html import render_html

        publish(
            folder,
            {
                "model.onnx": self.data,
                **self.plan.files(),
                "report.json": self.report.to_json().encode(),
                "report.html": render_html(self.report).encode(),
            },
        )


@dataclass(frozen=True)
class Built:
    """One measured candidate."""

    levels: Mapping[str, int]
    choices: Mapping[str, Mapping[str, Choice]]
    data: bytes = field(repr=False)
    predicted_ms: float
    timings: tuple[Timing, Timing]

    @property
    def ratio(self) -> Ratio:
        return speedup(*self.timings)


class Compiler:
    """One model, calibrated and priced once; `reach` compiles it for a target. What a family shares is kept here."""

    def __init__(
        self,
        prepared: Prepared,
        data: Data,
        backend: Backend,
        passes: Sequence[Pass],
        *,
        score: str,
        compensate: bool,
        lower: bool,
        axes: str,
        seed: int,
        device: str,
        progress: Progress,
        kinds: Mapping[str, Kind] | None = None,
    ) -> None:
        self.prepared, self.data, self.backend, self.passes = prepared, data, backend, tuple(passes)
        self.seed, self.device, self.progress, self.axes = seed, device, progress, axes
        self.kinds = kinds or {}
        self.dense_bytes = save_bytes(prepared.source.model)
        self.seconds: dict[str, float] = {}
        self._losses: dict[tuple[int, ...], float] = {}
        self._judged, self._fitted = _apart(data.calibration, _EVALUATION_FEEDS)
        self.context = self._make_context(score, compensate)
        with self._stage("lower"):
            self.lowerings = self._choose_lowerings() if lower else {}
        views = list(self.context.views.values())
        if any(getattr(p, "reads_all", False) for p in self.passes):
            views += [v for v in self.context.linear.values() if v.banks == 1]
        with self._stage("calibrate", len(self._fitted) * slices_needed(views, self.context.model)) as step:
            self.context.step = step
            self.context.moments_of(views)
        self.context.step = lambda: None
        with self._stage("score"):
            self.proposed = {p.name: list(p.propose(self.context)) for p in self.passes}
        self.sites: list[Site] = [s for sites in self.proposed.values() for s in sites]
        if not self.sites:
            raise ModelError(
                "no pass can act on this model",
                at=f"passes: {', '.join(p.name for p in self.passes)}",
                fix="see `graphprune explain`; groups need a linear reader to be solved again",
            )
        self.levels = {s.name: s.levels for s in self.sites}
        self.full = {s.name: s.full for s in self.sites}
        self.ordered = {s.name: s.ordered for s in self.sites}
        self.cost = self._price()
        self.sites = self._worth_their_while()
        self.levels = {s.name: s.levels for s in self.sites}
        self._reference = Reference(outputs_of(self.context.load(prepared.model), self._judged), self.kinds)
        with self._stage("probe", sum(len(probe_levels(s)) for s in self.sites)) as step:
            self.curves = measure_curves(self.sites, self.losses, step)

    def _make_context(self, score: str, compensate: bool) -> Context:
        """The context of the passes, its free bases turned where readers will be solved again."""
        load, feeds = loader(self.backend), self._fitted
        context = Context(self.prepared.analysis, feeds, load, score=score, compensate=compensate, seed=self.seed,
                          integer=self.backend.integer)  # fmt: skip
        if not compensate:
            return context
        with self._stage("align", len(feeds)) as step:
            turned, contributions = align(self.prepared.analysis, feeds, load, step)
        run = runner(self.backend)
        if compare(run(self.prepared.model, feeds[0]), run(turned.model, feeds[0])) > TOLERANCE:
            return context  # badly conditioned activations: the model keeps the bases it came with
        names = frozenset(basis.group.name for basis in find_free_bases(self.prepared.analysis))
        return replace(context, analysis=turned, contributions=contributions, turned=names)

    def _price(self) -> CostModel:
        """Prices of the canonical and lowered model, on the scale of the model as it came: that is the promise."""
        with self._stage("price", 100) as step:
            done = 0

            def report(fraction: float, text: str) -> None:
                nonlocal done
                step(max(0, round(100 * fraction) - done))
                done = max(done, round(100 * fraction))

            self.prices = measure_prices(
                self.full,
                self.levels,
                self._build_for_price,
                self.data.timing,
                self.backend,
                switches=[s.name for s in self.sites if not s.ordered],
                replacing=[s.name for s in self.sites if s.replaces],
                near=sites_near(self.context.model.graph, self.sites),
                alike=surroundings(self.context.model.graph, self.sites),
                seed=self.seed,
                seconds=_PRICING_SECONDS + _PRICING_SECONDS_PER_SITE * len(self.sites),
                progress=report,
            )
        with self._stage("compare"):
            models = [self.dense_bytes, self._build_for_price(self.full)]
            timings = self.backend.measure(models, self.data.timing, max_seconds=6.0)
        self._rewrites = speedup(*timings).value
        return self._scaled(self.prices.model)

    def _scaled(self, cost: CostModel) -> CostModel:
        """Prices are of the canonical and lowered model; speed is promised over the model as it came."""
        return replace(cost, dense_ms=cost.dense_ms * self._rewrites)

    def _worth_their_while(self) -> list[Site]:
        """The sites without the levels that cannot save time, whatever is done elsewhere (a precision that this
        processor is slower at), and without alternatives to which another is preferable that is no slower. Nothing is
        spent on finding out what these would lose."""
        problem, least = Problem(self.levels, self.cost), _LEAST_SAVING * self.cost.dense_ms
        found = []
        for site in self.sites:
            last = len(site.levels) - 1
            worth = problem.most_saved(site.name) > least
            if not site.ordered:
                beats = problem.often_faster(site.name) & np.greater.outer(site.prior, site.prior).T
                worth &= ~beats[:last].any(axis=0)
            kept = [i for i in range(len(site.levels)) if worth[i] or i == last]
            found.append(replace(site, levels=tuple(site.levels[i] for i in kept),
                                 prior=tuple(site.prior[i] for i in kept)))  # fmt: skip
        return found

    def _stage(self, name: str, total: int | None = None):
        return _timed(self.progress, name, total, self.seconds)

    def _choose_lowerings(self) -> dict[str, float]:
        """The backend's rewrites that make the dense model faster here, with the factor each gives."""
        taken: dict[str, float] = {}
        model = shrink(self.prepared.model, self.prepared.analysis.types, {})
        for name, rewrite in self.backend.lowerings.items():
            changed = rewrite(model)
            before, after = save_bytes(model), save_bytes(changed)
            if before == after:
                continue
            timings = self.backend.measure([before, after], self.data.timing, spread=0.005, max_seconds=6.0)
            ratio = speedup(*timings)
            if ratio.value * (1 - ratio.spread) > _WORTH:
                taken[name], model = ratio.value, changed
        return taken

    def choose(self, levels: Mapping[str, int]) -> dict[str, dict[str, Choice]]:
        """The choices of every pass at these levels."""
        return {
            p.name: dict(p.choose(self.context, {s.name: levels[s.name] for s in self.proposed[p.name]}))
            for p in self.passes
        }

    def _build_for_price(self, levels: Mapping[str, int]) -> bytes:
        model = apply(self.context, self.passes, self.choose(levels), solve=False)
        return save_bytes(lowered(self.backend, model, self.lowerings))

    def losses(self, candidates: Iterable[Mapping[str, int]]) -> Iterator[float]:
        """Output divergences at these levels on calibration feeds, readers solved again. Not timed, so all cores are
        taken, whatever the model is going to run on."""
        return in_order(self._loss, candidates)

    def _loss(self, levels: Mapping[str, int]) -> float:
        key = tuple(levels[s.name] for s in self.sites)
        if key not in self._losses:
            self._losses[key] = self._divergence(apply(self.context, self.passes, self.choose(levels)))
        return self._losses[key]

    def _divergence(self, model: ir.Model) -> float:
        return self._reference.divergence(outputs_of(self.context.load(model), self._judged))

    def build(self, levels: Mapping[str, int], cost: CostModel) -> Built:
        """Build the model at these levels and time it against the dense one, in turns."""
        choices = self.choose(levels)
        data = self._build_for_price(levels)
        timings = self.backend.measure(
            [self.dense_bytes, data], self.data.timing, min_rounds=20, spread=0.006, max_seconds=12.0
        )
        return Built(dict(levels), choices, data, cost.predict(levels).ms, (timings[0], timings[1]))

    def reach(self, target: Target) -> Result:
        """Compile for one target. Raises InfeasibleTarget with the largest factor reached.

        The first attempt checks the prices, the second searches under corrected ones, further ones correct what is
        left. A result inside the window ends it; failing that, the least overshoot of what was built.
        """
        cost = self.cost
        attempts: list[Attempt] = []
        finished: list[Result] = []
        beyond: list[Built] = []
        levels: dict[str, int] = {}
        for i in range(_ATTEMPTS):
            wanted = self._wanted(target, cost.dense_ms)
            n_evaluations = {0: 0, 1: _EVALUATIONS}.get(i, 4)
            aim = min(_AIM + i * _AIM_MORE, _MOST_AIM)
            start = levels if i > 1 else None
            levels, reachable = self._search(cost, cost.dense_ms / (wanted * aim), n_evaluations, start)
            with self._stage(f"measure {i + 1}"):
                built = self.build(levels, cost)
            ratio = built.ratio.value
            wanted = self._wanted(target, built.timings[0].median_ms)
            attempts.append(Attempt(cost.dense_ms / built.predicted_ms, ratio))
            self.progress.note(f"attempt {i + 1}: predicted {attempts[-1].predicted:.3f}x, measured {ratio:.3f}x")
            cost = self._corrected(built)
            whole = all(levels[name] == full for name, full in self.full.items())
            if ratio < wanted and not reachable:
                break
            if whole or (i and LOW <= ratio / wanted <= HIGH):
                result = self._finish(target, built, attempts)
                if self._holds(target, result, math.inf if whole else HIGH):
                    return result
                finished.append(result)
            elif ratio > wanted:
                beyond.append(built)
        if not any(self._holds(target, r) for r in finished) and beyond:
            finished.append(self._finish(target, min(beyond, key=lambda b: b.ratio.value), attempts))
        reached = [r for r in finished if self._holds(target, r)]
        if reached:
            return min(reached, key=lambda r: r.report.reached.speedup)
        best = max([a.measured for a in attempts] + [r.report.reached.speedup for r in finished])
        raise InfeasibleTarget(
            f"{target} is out of reach on {self.device}: the most measured is {best:.2f}x",
            best=best,
            at=self._obstacle(),
            fix="lower the target, or allow more passes",
        )

    def _corrected(self, built: Built) -> CostModel:
        """Prices that know what was built: its kernels join the samples; what is then still off is taken off all."""
        kernels = self.backend.profile(built.data, self.data.timing, repeats=9)
        ms = self.cost.dense_ms / built.ratio.value
        cost = self._scaled(self.prices.add(built.levels, kernels, ms))
        return cost.correct(ms / cost.predict(built.levels).ms)

    def _holds(self, target: Target, result: Result, most: float = math.inf) -> bool:
        """Whether the finished model is at least as fast as asked, and at most `most` times that."""
        reached = result.report.reached
        return LOW <= reached.speedup / self._wanted(target, reached.dense_ms) <= most

    def _wanted(self, target: Target, dense_ms: float) -> float:
        """The target as a speed-up over the dense model."""
        wanted = dense_ms / target.budget_ms(dense_ms)
        if wanted <= 1:
            raise UsageError(
                f"the model already takes {dense_ms:.3g} ms, less than the {target} asked for",
                at="--target-latency",
                fix="ask for less time than that",
            )
        return wanted

    def _search(
        self, cost: CostModel, budget_ms: float, n_evaluations: int, start: Mapping[str, int] | None = None
    ) -> tuple[dict[str, int], bool]:
        """Levels for a budget, near `start` if given, and whether it is thought reachable; the fastest levels where it
        is not."""
        if cost.predict(self.full).ms <= budget_ms:  # exact rewrites alone are enough
            return dict(self.full), True
        try:
            if not n_evaluations:
                return Problem(self.levels, cost, ordered=self.ordered).solve(self.curves, budget_ms), True
            with self._stage("search", n_evaluations) as step:
                levels, _ = improve(
                    self.levels,
                    self.curves,
                    cost,
                    budget_ms,
                    self.losses,
                    ordered=self.ordered,
                    start=start,
                    n_evaluations=n_evaluations,
                    seed=self.seed,
                    step=step,
                )
                return levels, True
        except InfeasibleTarget:
            return Problem(self.levels, cost, ordered=self.ordered).fastest, False

    def _obstacle(self) -> str:
        """Which part of the time no site can change."""
        fixed = [t for t in self.cost.kernels if not t.groups]
        share = (self.cost.overhead_ms + sum(t.ms({}) for t in fixed)) / self.cost.dense_ms
        return f"{share:.0%} of the time is in {len({t.name for t in fixed})} kernels no site changes (see explain)"

    def _finish(self, target: Target, built: Built, attempts: Sequence[Attempt]) -> Result:
        """Solve the weights, certify, measure what will be written, and report."""
        model = self._refitted(built.choices)
        data = save_bytes(lowered(self.backend, model, self.lowerings))
        tensors = self._new_tensors(model, built.choices)
        with self._stage("certify"):
            checks = self._certificate(built)
        with self._stage("final measurement"):
            timings = self.backend.measure(
                [self.dense_bytes, data], self.data.timing, min_rounds=30, spread=0.005, max_seconds=20.0
            )
        plan = Plan(
            self.prepared.source.sha256,
            self.prepared.traced_at,
            built.choices,
            tensors,
            self.context.compensate,
            self.axes,
            tuple(self.lowerings),
            str(target),
            self.device,
            self.seed,
            built.predicted_ms,
            timings[1].median_ms,
            timings[0].median_ms,
        )
        exact = self._exact_part(built.choices)
        without = self._refitted(exact) if exact != built.choices else None
        report = make_report(self, target, built, data, model, without, checks, attempts, timings)
        return Result(data, plan, report)

    def _refitted(self, choices: Mapping[str, Mapping[str, Choice]]) -> ir.Model:
        """The model with the choices carried out and all its linear layers solved for."""
        if not any(choices.values()):
            return shrink(self.prepared.model, self.prepared.analysis.types, {})
        structural = [p for p in self.passes if not rounds(p)]
        model = apply(self.context, structural, choices)
        if self.context.compensate:
            keeps = self.prepared.analysis.keeps(kept_channels(choices))
            with self._stage("refit", n_stages(self.context, model, keeps)) as step:
                refit(self.context, model, keeps, self._fitted, step, self._divergence)
        for p in self.passes:
            if rounds(p):
                with self._stage(p.name):
                    model = getattr(p, "finish", p.apply)(self.context, model, choices.get(p.name, {}))
        return model

    def _exact_part(self, choices: Mapping[str, Mapping[str, Choice]]) -> dict[str, dict[str, Choice]]:
        """The choices without those on axes that a norm or a softmax runs over."""
        groups = self.prepared.analysis.groups
        return {
            p: {site: c for site, c in sites.items() if site not in groups or groups[site].inexact is None}
            for p, sites in choices.items()
        }

    def _new_tensors(self, model: ir.Model, choices: Mapping[str, Mapping[str, Choice]]) -> dict[str, np.ndarray]:
        """The initialisers of the finished model that applying the choices to the model as it came does not give."""
        original = replace(self.context, analysis=self.prepared.analysis)
        plain = apply(original, self.passes, choices, solve=False).graph.initializers
        return {
            name: value.const_value.numpy()
            for name, value in model.graph.initializers.items()
            if not np.array_equal(value.const_value.numpy(), plain[name].const_value.numpy(), equal_nan=True)
        }

    def _certificate(self, built: Built) -> list[Check]:
        checks = certify(
            self.prepared.analysis,
            kept_channels(built.choices),
            certificate_feeds(self.prepared, self.data),
            run_all(self.backend),
        )
        for check in checks:
            if check.verdict == "mismatch":
                raise ModelError(
                    f"the certificate failed: pruning changed the model by {check.difference:.2g} where it should not",
                    at=f"groups {', '.join(check.groups[:5])}",
                    fix="this is a defect of graphprune: please report it",
                )
        return checks


def _apart(feeds: Sequence[Feed], n: int) -> tuple[list[Feed], list[Feed]]:
    """About n feeds to judge candidates by, evenly spaced, and the others, which all weights are fitted to: what was
    fitted to a feed looks better on it than it is. The same ones where there are too few."""
    stride = max(2, len(feeds) // n)
    return list(feeds[::stride])[:n], [f for i, f in enumerate(feeds) if i % stride or i // stride >= n] or list(feeds)


def kept_channels(choices: Mapping[str, Mapping[str, Choice]]) -> dict[str, np.ndarray]:
    """The keep sets among the choices, by group."""
    return {n: np.asarray(c["keep"]) for sites in choices.values() for n, c in sites.items() if "keep" in c}


def apply(
    context: Context,
    passes: Sequence[Pass],
    choices: Mapping[str, Mapping[str, Choice]],
    *,
    solve: bool = True,
    onto: ir.Model | None = None,
) -> ir.Model:
    """The canonical model, or `onto`, with every pass's choices carried out, in order."""
    model = onto or context.model
    for p in passes:
        model = p.apply(context, model, choices.get(p.name, {}), solve)
    return model


def rounds(p: Pass) -> bool:
    """Whether the pass rounds weights, so that it comes after the refit."""
    return getattr(p, "rounds", False)


def lowered(backend: Backend, model: ir.Model, names: Iterable[str]) -> ir.Model:
    """The model with the named rewrites of the backend, in order."""
    for name in names:
        model = backend.lowerings[name](model)
    return model


@contextmanager
def _timed(progress: Progress, name: str, total: int | None, seconds: dict[str, float]):
    started = time.perf_counter()
    with progress.stage(name, total) as step:
        yield step
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
