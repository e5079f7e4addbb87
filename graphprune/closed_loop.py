"""The closed loop around one target: solve for levels, build them, measure, correct the prices, and solve again; then
finish what holds the target: weights solved for, certified, measured as it will be written, and reported.

It works on a `compiler.Compiler`, which has calibrated and priced the model and is left as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphprune.approach import Approach, Candidate, Question
from graphprune.carry_out import Choices, apply, kept_channels, lowered, rounds
from graphprune.cost import CostModel
from graphprune.edit import shrink
from graphprune.errors import InfeasibleTarget, ModelError, UsageError
from graphprune.load import save_bytes
from graphprune.oracles import Check, certify
from graphprune.plan import Plan
from graphprune.prepare import certificate_feeds, run_all
from graphprune.refit import n_stages, refit
from graphprune.repair import Repair
from graphprune.report import Attempt
from graphprune.result import Result
from graphprune.search import improve
from graphprune.sites import Choice
from graphprune.solver import Problem
from graphprune.standing import CLOSE, Standing, preference, standing
from graphprune.summary import make_report
from graphprune.target import Ratio, Target, Timing, speedup

if TYPE_CHECKING:
    from graphprune.compiler import Compiler

_ATTEMPTS = 7
_ENOUGH = 3
"""Candidates that surely hold the target of which one is taken, though none is close to it."""
_EVALUATIONS, _EVALUATIONS_AGAIN = 60, 8
_HOLDING = 3
"""Kernels that are named where a target is out of reach."""


@dataclass(frozen=True)
class Built:
    """One measured candidate."""

    levels: Mapping[str, int]
    choices: Choices
    data: bytes = field(repr=False)
    predicted_ms: float
    timings: tuple[Timing, Timing]

    @property
    def ratio(self) -> Ratio:
        return speedup(*self.timings)


class ClosedLoop:
    """One target for one compiler."""

    def __init__(self, compiler: Compiler, target: Target) -> None:
        self.compiler, self.target = compiler, target
        self.attempts: list[Attempt] = []
        self._how = "measured"
        self._repair = Repair()

    def run(self) -> Result:
        """The compiled model. Raises InfeasibleTarget with the largest factor reached.

        The first attempt checks the prices, the second searches under corrected ones, further ones come nearer (see
        `approach`). Of the candidates that surely hold the target the one that is expected to lose least is finished,
        once one of them is close to it or there are enough; failing that, whatever stands best (see `standing`).
        """
        c, cost = self.compiler, self.compiler.cost
        approach = Approach(c.levels, cost.dense_ms / self._wanted(cost.dense_ms))
        waiting: list[tuple[Standing, Built]] = []
        finished: list[tuple[Standing, Result]] = []
        for i in range(_ATTEMPTS):
            question = approach.question(cost)
            levels, reachable = self._search(cost, question, {0: 0, 1: _EVALUATIONS}.get(i, _EVALUATIONS_AGAIN))
            if any(levels == tried.levels for tried in approach.tried):
                break
            with c.stage(f"measure {i + 1}"):
                built = self._build(levels, cost)
            ratio = built.ratio.value
            self.attempts.append(Attempt(cost.dense_ms / built.predicted_ms, ratio))
            self._how = "measured" if built.ratio.source == "measured" else "modelled"
            c.progress.note(f"attempt {i + 1}: predicted {self.attempts[-1].predicted:.3f}x, {self._how} {ratio:.3f}x")
            if i:  # the first was not searched for
                approach.learn(levels, built.predicted_ms, cost.dense_ms / ratio)
            cost = self._corrected(built, approach.nearest or Candidate(levels, cost.dense_ms / ratio))
            stands = self._stands(self._over(built), built)
            if stands is Standing.SHORT and not reachable:
                break
            if i == 0:
                self._repair = self._repaired(built)
                stands = stands if self._whole(built) else max(stands, Standing.BEYOND)
            waiting.append((stands, built))
            sure = [b for how, b in waiting if how is Standing.SURE]
            if len(sure) >= _ENOUGH or any(self._whole(b) or self._over(b).value <= CLOSE for b in sure):
                best = min(sure, key=self._expected)
                waiting.remove((Standing.SURE, best))
                finished.append(self._finished_with_standing(best))
                if finished[-1][0] is Standing.SURE:
                    break
                approach.correct(best.levels, cost.dense_ms / finished[-1][1].report.reached.speedup)
                cost = _right_at(approach.nearest, cost)
        for stands, built in sorted(waiting, key=self._in_order):
            if stands is Standing.SHORT or any(how <= stands for how, _ in finished):
                break
            finished.append(self._finished_with_standing(built))
        if any(how is not Standing.SHORT for how, _ in finished):
            return min(finished, key=lambda f: preference(f[0], self._reached(f[1])))[1]
        best = max([a.measured for a in self.attempts] + [r.report.reached.speedup for _, r in finished])
        raise InfeasibleTarget(
            f"{self.target} is out of reach on {c.device}: the most {self._how} is {best:.2f}x",
            best=best,
            at=self._obstacle(),
            fix="lower the target, or allow more passes",
        )

    def _over(self, built: Built) -> Ratio:
        """How many times as fast as wanted a candidate is."""
        return built.ratio.over(self._wanted(built.timings[0].median_ms))

    def _reached(self, result: Result) -> Ratio:
        """How many times as fast as wanted a finished model is."""
        return result.report.reached.ratio.over(self._wanted(result.report.reached.dense_ms))

    def _whole(self, built: Built) -> bool:
        """Whether nothing was taken away."""
        return all(built.levels[name] == full for name, full in self.compiler.full.items())

    def _stands(self, over: Ratio, built: Built) -> Standing:
        """How a candidate, or what it was finished to, stands to the target: with nothing taken away it is not too
        fast."""
        found = standing(over)
        return Standing.SURE if found is Standing.BEYOND and self._whole(built) else found

    def _in_order(self, waiting: tuple[Standing, Built]) -> tuple[Standing, float]:
        """The order in which candidates are finished: among those that surely hold the target by expected loss."""
        stands, built = waiting
        return (stands, self._expected(built)) if stands is Standing.SURE else preference(stands, self._over(built))

    def _finished_with_standing(self, built: Built) -> tuple[Standing, Result]:
        result = self._finish(built)
        return self._stands(self._reached(result), built), result

    def _expected(self, built: Built) -> float:
        """The divergence to expect of a candidate once it is finished."""
        c = self.compiler
        return self._repair.finished(c.loss(c.unrounded(built.levels)), c.loss(built.levels))

    def _wanted(self, dense_ms: float) -> float:
        """The target as a speed-up over the dense model."""
        wanted = dense_ms / self.target.budget_ms(dense_ms)
        if wanted <= 1:
            raise UsageError(
                f"the model already takes {dense_ms:.3g} ms, less than the {self.target} asked for",
                at="--target-latency",
                fix="ask for less time than that",
            )
        return wanted

    def _search(self, cost: CostModel, question: Question, n_evaluations: int) -> tuple[dict[str, int], bool]:
        """Levels that answer a question, and whether it is thought to have an answer; the fastest levels where it has
        none."""
        c, levels, repair = self.compiler, question.levels, self._repair
        if cost.predict(c.full).ms <= question.budget_ms:  # exact rewrites alone are enough
            return dict(c.full), True
        curves = {s: repair.rounded * curve if s in c.rounding else np.vectorize(repair.refitted)(curve)
                  for s, curve in c.curves.items()}  # fmt: skip
        curves = {s: curve[[c.levels[s].index(k) for k in levels[s]]] for s, curve in curves.items()}
        try:
            if not n_evaluations:
                return Problem(levels, cost, ordered=c.ordered).solve(curves, question.budget_ms), True
            with c.stage("search", n_evaluations) as step:
                found, _ = improve(
                    levels,
                    curves,
                    cost,
                    question.budget_ms,
                    lambda candidates: c.losses(candidates, repair),
                    ordered=c.ordered,
                    start=question.start,
                    parts=c.parts if question.afresh else [],
                    n_evaluations=n_evaluations,
                    seed=c.seed,
                    step=step,
                )
                return found, True
        except InfeasibleTarget:
            return Problem(levels, cost, ordered=c.ordered).fastest, False

    def _build(self, levels: Mapping[str, int], cost: CostModel) -> Built:
        """Build the model at these levels and time it against the dense one, in turns."""
        c = self.compiler
        data = c.build_for_price(levels)
        timings = c.backend.measure(
            [c.dense, data], c.data.timing, min_rounds=20, spread=0.006, max_seconds=12.0
        )
        return Built(dict(levels), c.choose(levels), data, cost.predict(levels).ms, (timings[0], timings[1]))

    def _corrected(self, built: Built, near: Candidate) -> CostModel:
        """Prices that know what was built: its kernels join the samples; what is then still off at `near` is taken off
        all."""
        c = self.compiler
        kernels = c.backend.profile(built.data, c.data.timing, repeats=9)
        cost = c.scaled(c.prices.add(built.levels, kernels, c.cost.dense_ms / built.ratio.value))
        return _right_at(near, cost)

    def _obstacle(self) -> str:
        """Which part of the time no site can change, and where most is left at the fastest levels there are."""
        c, cost = self.compiler, self.compiler.cost
        fixed = [t for t in cost.kernels if not t.groups]
        share = (cost.overhead_ms + sum(t.ms({}) for t in fixed)) / cost.dense_ms
        fastest, left = Problem(c.levels, cost, ordered=c.ordered).fastest, Counter()
        for term in cost.kernels:
            left[term.name] += float(term.ms(fastest)) / cost.dense_ms
        most = ", ".join(f"{name} ({part:.0%})" for name, part in left.most_common(_HOLDING))
        return (f"{share:.0%} of the time is in {len({t.name for t in fixed})} kernels no site changes; of what is "
                f"left at the least, most is in {most} (see explain)")  # fmt: skip

    def _finish(self, built: Built) -> Result:
        """Solve the weights, certify, measure what will be written, and report."""
        c = self.compiler
        model = self._finished(built.choices)
        c.progress.note(f"finished: divergence {c.divergence(model):.3g}, {self._expected(built):.3g} was expected")
        data = save_bytes(lowered(c.backend, model, c.lowerings))
        tensors = self._new_tensors(model, built.choices)
        with c.stage("certify"):
            checks = self._certificate(built)
        with c.stage("final measurement"):
            timings = c.backend.measure(
                [c.dense, data], c.data.timing, min_rounds=30, spread=0.005, max_seconds=20.0
            )
        plan = Plan(
            c.prepared.source.sha256,
            c.prepared.traced_at,
            built.choices,
            tensors,
            c.context.compensate,
            c.axes,
            tuple(c.lowerings),
            c.backend.integer.name,
            str(self.target),
            c.device,
            c.seed,
            built.predicted_ms,
            timings[1].median_ms,
            timings[0].median_ms,
        )
        exact = self._exact_part(built.choices)
        without = self._finished(exact) if exact != built.choices else None
        beside, notes = c.backend.package(data, c.fitted, c.data.timing, timings[1])
        report = make_report(c, self.target, built, data, model, without, checks, self.attempts, timings, notes)
        return Result(data, plan, report, beside)

    def _repaired(self, built: Built) -> Repair:
        """What finishing mends, from the first candidate; nothing is asked unless two kinds of change are in it."""
        c = self.compiler
        changed = {name for name, level in built.levels.items() if level != c.full[name]}
        if not (c.context.compensate and changed & c.rounding and changed - c.rounding):
            return Repair()
        losses = [c.loss(c.unrounded(built.levels)), c.loss(built.levels)]
        refitted = self._refitted(built.choices)
        finished = self._rounded(refitted, built.choices)
        repair = Repair.measured(*losses, c.divergence(refitted), c.divergence(finished))
        c.progress.note(f"finishing: {losses[0]:.3g} lost by pruning becomes {repair.refitted(losses[0]):.3g}, "
                        f"{losses[1] - losses[0]:.3g} by rounding {repair.rounded * (losses[1] - losses[0]):.3g}")
        return repair

    def _finished(self, choices: Choices) -> ir.Model:
        """The model with the choices carried out and all its linear layers solved for."""
        c = self.compiler
        if not any(choices.values()):
            return shrink(c.prepared.model, c.prepared.analysis.types, {})
        return self._rounded(self._refitted(choices), choices)

    def _refitted(self, choices: Choices) -> ir.Model:
        """The model with the choices carried out up to the rounding, its linear layers solved for."""
        c = self.compiler
        model = apply(c.context, [p for p in c.passes if not rounds(p)], choices)
        if c.context.compensate:
            keeps = c.prepared.analysis.keeps(kept_channels(choices))
            with c.stage("refit", n_stages(c.context, model, keeps)) as step:
                refit(c.context, model, keeps, c.fitted, step, c.divergence)
        return model

    def _rounded(self, model: ir.Model, choices: Choices) -> ir.Model:
        c = self.compiler
        for p in c.passes:
            if rounds(p):
                with c.stage(p.name):
                    model = getattr(p, "finish", p.apply)(c.context, model, choices.get(p.name, {}))
        return model

    def _exact_part(self, choices: Choices) -> dict[str, dict[str, Choice]]:
        """The choices without those on axes that a norm or a softmax runs over."""
        groups = self.compiler.prepared.analysis.groups
        return {
            p: {site: c for site, c in sites.items() if site not in groups or groups[site].inexact is None}
            for p, sites in choices.items()
        }

    def _new_tensors(self, model: ir.Model, choices: Choices) -> dict[str, np.ndarray]:
        """The initialisers of the finished model that a replay could not know: applying the choices to the model as it
        came, without any data, does not give them."""
        c = self.compiler
        original = replace(c.context, analysis=c.prepared.analysis, feeds=(), gathered={})
        plain = apply(original, c.passes, choices, solve=False).graph.initializers
        return {
            name: value.const_value.numpy()
            for name, value in model.graph.initializers.items()
            if not np.array_equal(value.const_value.numpy(), plain[name].const_value.numpy(), equal_nan=True)
        }

    def _certificate(self, built: Built) -> list[Check]:
        c = self.compiler
        checks = certify(
            c.prepared.analysis, kept_channels(built.choices), certificate_feeds(c.prepared, c.data), run_all(c.backend)
        )
        for check in checks:
            if check.verdict == "mismatch":
                raise ModelError(
                    f"the certificate failed: pruning changed the model by {check.difference:.2g} where it should not",
                    at=f"groups {', '.join(check.groups[:5])}",
                    fix="this is a defect of graphprune: please report it",
                )
        return checks


def _right_at(near: Candidate, cost: CostModel) -> CostModel:
    """Prices that say of a candidate what was measured."""
    return cost.correct(near.ms / cost.predict(near.levels).ms)
