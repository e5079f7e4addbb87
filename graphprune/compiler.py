"""One model, calibrated and priced once, for any number of targets; `closed_loop` compiles it for each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import combinations

import numpy as np
import onnx_ir as ir

from graphprune.align import align, find_free_bases
from graphprune.backends.base import Backend
from graphprune.calibrate import slices_needed
from graphprune.carry_out import apply, lowered, rounds
from graphprune.closed_loop import ClosedLoop
from graphprune.context import Context
from graphprune.cost import CostModel, measure_prices
from graphprune.divergence import Kind, Reference, outputs_of
from graphprune.edit import shrink
from graphprune.errors import ModelError
from graphprune.feeds import Feed
from graphprune.groups import Analysis
from graphprune.likeness import surroundings
from graphprune.load import save_bytes
from graphprune.nearness import sites_near
from graphprune.oracles import TOLERANCE, compare
from graphprune.parallel import in_order
from graphprune.prepare import Data, Prepared, loader, runner
from graphprune.progress import Progress
from graphprune.repair import Repair
from graphprune.result import Result
from graphprune.search import measure_curves, probe_levels
from graphprune.sites import Choice, Pass, Site
from graphprune.solver import Problem
from graphprune.target import Target, speedup

_WORTH = 1.01
"""A rewrite of the backend is taken where it is at least this much faster."""
_PRICING_SECONDS = 20.0
_PRICING_SECONDS_PER_SITE = 0.3
_EVALUATION_FEEDS = 20
_LEAST_SAVING = 2e-4
"""Of the dense time: a level that can save no more is not worth a look."""


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
        calibrated: Compiler | None = None,
    ) -> None:
        """calibrated: the same model, data and passes for another device, whose calibration is taken over."""
        self.prepared, self.data, self.backend, self.passes = prepared, data, backend, tuple(passes)
        self.seed, self.device, self.progress, self.axes = seed, device, progress, axes
        self.kinds = kinds or {}
        self.dense_bytes = save_bytes(prepared.source.model)
        self.dense = backend.baseline(self.dense_bytes)
        self.seconds: dict[str, float] = {}
        self._losses: dict[frozenset[tuple[str, int]], float] = {}
        self._judged, self.fitted = _apart(data.calibration, _EVALUATION_FEEDS)
        if calibrated is None:
            self.context = self._make_context(score, compensate)
        else:
            self.context = replace(calibrated.context, integer=backend.integer)
            if calibrated.backend.integer == backend.integer:  # the same candidates, which lose the same
                self._losses = calibrated._losses
        with self.stage("lower"):
            self.lowerings = self._choose_lowerings() if lower else {}
        views = list(self.context.views.values())
        if any(getattr(p, "reads_all", False) for p in self.passes):
            views += self.context.linear.values()
        missing = [view for view in views if view.key() not in self.context.gathered]
        if missing:
            with self.stage("calibrate", len(self.fitted) * slices_needed(missing, self.context.model)) as step:
                self.context.step = step
                self.context.moments_of(missing)
            self.context.step = lambda: None
        with self.stage("score"):
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
        with self.stage("probe", sum(len(probe_levels(s)) for s in self.sites)) as step:
            self.curves = measure_curves(self.sites, self.losses, step)

    def _make_context(self, score: str, compensate: bool) -> Context:
        """The context of the passes, on a network that computes the same but is easier to make smaller: free bases
        turned where readers will be solved again, and what passes ask for."""
        load, feeds = loader(self.backend), self.fitted
        context = Context(self.prepared.analysis, feeds, load, score=score, compensate=compensate, seed=self.seed,
                          integer=self.backend.integer)  # fmt: skip
        if not compensate:
            return context
        with self.stage("align", len(feeds)) as step:
            turned, contributions = align(self.prepared.analysis, feeds, load, step)
        if self._same(turned):
            names = frozenset(basis.group.name for basis in find_free_bases(self.prepared.analysis))
            context = replace(context, analysis=turned, contributions=contributions, turned=names)
        for p in self.passes:
            if hasattr(p, "prepare"):
                with self.stage(f"prepare {p.name}"):
                    prepared = p.prepare(context)
                if prepared is not context and self._same(prepared.analysis):
                    context = prepared
        return context

    def _same(self, analysis: Analysis) -> bool:
        """Whether a model computes what the canonical one does: badly conditioned ones stay as they came."""
        run, feed = runner(self.backend), self.fitted[0]
        return compare(run(self.prepared.model, feed), run(analysis.model, feed)) <= TOLERANCE

    def _price(self) -> CostModel:
        """Prices of the canonical and lowered model, on the scale of the model as it came: that is the promise."""
        with self.stage("price", 100) as step:
            done = 0

            def report(fraction: float, text: str) -> None:
                nonlocal done
                step(max(0, round(100 * fraction) - done))
                done = max(done, round(100 * fraction))

            self.prices = measure_prices(
                self.full,
                self.levels,
                self.build_for_price,
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
        with self.stage("compare"):
            models = [self.dense, self.build_for_price(self.full)]
            timings = self.backend.measure(models, self.data.timing, max_seconds=6.0)
        self._rewrites = speedup(*timings).value
        return self.scaled(self.prices.model)

    def scaled(self, cost: CostModel) -> CostModel:
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

    @property
    def parts(self) -> list[set[str]]:
        """The sites of each pass and of each two, as far as that is not all: a search that has everything to choose
        from may miss what a few would do together."""
        each = [{s.name for s in sites} for sites in self.proposed.values() if sites]
        return [set().union(*some) for n in (1, 2) if n < len(each) for some in combinations(each, n)]

    def stage(self, name: str, total: int | None = None):
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

    def build_for_price(self, levels: Mapping[str, int]) -> bytes:
        model = apply(self.context, self.passes, self.choose(levels), solve=False)
        return save_bytes(lowered(self.backend, model, self.lowerings))

    def losses(self, candidates: Iterable[Mapping[str, int]], repair: Repair | None = None) -> Iterator[float]:
        """Output divergences at these levels on calibration feeds, readers solved again; with `repair`, what they will
        be when the candidate is finished. Not timed, so all cores are taken, whatever the model is going to run on."""
        if repair is None:
            return in_order(self.loss, candidates)
        return in_order(lambda levels: repair.finished(self.loss(self.unrounded(levels)), self.loss(levels)),
                        candidates)  # fmt: skip

    @cached_property
    def rounding(self) -> frozenset[str]:
        """The sites of passes that round."""
        return frozenset(s.name for p in self.passes if rounds(p) for s in self.proposed[p.name])

    def unrounded(self, levels: Mapping[str, int]) -> dict[str, int]:
        """The same levels but for those of passes that round, which leave everything as it is."""
        return {name: self.full[name] if name in self.rounding else level for name, level in levels.items()}

    def loss(self, levels: Mapping[str, int]) -> float:
        """Output divergence of the candidate at these levels; kept."""
        key = frozenset((name, level) for name, level in levels.items() if level != self.full[name])
        if key not in self._losses:
            self._losses[key] = self.divergence(apply(self.context, self.passes, self.choose(levels)))
        return self._losses[key]

    def divergence(self, model: ir.Model) -> float:
        return self._reference.divergence(outputs_of(self.context.load(model), self._judged))

    def reach(self, target: Target) -> Result:
        """Compile for one target. Raises InfeasibleTarget with the largest factor reached."""
        return ClosedLoop(self, target).run()


def _apart(feeds: Sequence[Feed], n: int) -> tuple[list[Feed], list[Feed]]:
    """About n feeds to judge candidates by, evenly spaced, and the others, which all weights are fitted to: what was
    fitted to a feed looks better on it than it is. The same ones where there are too few."""
    stride = max(2, len(feeds) // n)
    return list(feeds[::stride])[:n], [f for i, f in enumerate(feeds) if i % stride or i // stride >= n] or list(feeds)


@contextmanager
def _timed(progress: Progress, name: str, total: int | None, seconds: dict[str, float]):
    started = time.perf_counter()
    with progress.stage(name, total) as step:
        yield step
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
