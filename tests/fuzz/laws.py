"""The laws of pruning, checked on one network. The first that is broken is what went wrong with it.

    canonicalising changes nothing that the network computes
    every operator's rule fits the network
    pruning all groups at once, and one or two of them alone, passes both oracles for two batch sizes
    the sizes that the types give the pruned network are the ones it has, and it can be typed again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphprune.dims import leaves
from graphprune.edit import set_constant, shrink
from graphprune.errors import ModelError
from graphprune.groups import Analysis, Group
from graphprune.infer import MISFIT, infer
from graphprune.keeps import new_size
from graphprune.oracles import Check, certify, compare
from graphprune.trace import Feed, trace
from tests.fuzz.samples import BATCHES
from tests.graphs import run, run_all, some, typed

Keep = Mapping[str, np.ndarray]
"""Keep sets by group name, as `Analysis.keeps` takes them."""
Outputs = list[Mapping[str, np.ndarray]]


class Broken(Exception):
    """A law does not hold. keep: the keep sets that show it."""

    def __init__(self, what: str, keep: Keep | None = None) -> None:
        super().__init__(what)
        self.keep = dict(keep or {})


class Refused(Exception):
    """No runtime runs the network itself, before anything was done to it."""


@dataclass
class Tally:
    """What was shown on the way. unstable: mismatches that rounding explains."""

    groups: int = 0
    ragged: int = 0
    checks: list[Check] = field(default_factory=list)
    unstable: int = 0

    def verdicts(self) -> list[str]:
        return [check.verdict for check in self.checks]


def examine(
    model: ir.Model, seed: int, *, fold: bool = True, alone: bool = True, keep: Keep | None = None, only: bool = False
) -> Tally:
    """Check all laws. seed: of inputs and keep sets. keep: keep sets to check before any random ones, where they fit;
    only: instead of any. Raises Broken at the first law that does not hold, Refused if the network itself does not
    run."""
    feeds = [feed_of(model, batch, seed) for batch in BATCHES]
    try:
        want = run_all(model, feeds)
    except Exception as e:  # of whichever runtime
        raise Refused(str(e)) from e
    try:
        analysis = typed(model, feeds[0], inexact=True, fold=fold)
    except Exception as e:  # any error at all breaks the law
        raise Broken(f"typing fails: {e}") from e
    dense = _Memory(analysis.model)
    for a, b in zip(want, dense(analysis.model, feeds), strict=True):
        if not (change := compare(a, b)) <= 1e-4:
            raise Broken(f"canonicalising changes the outputs by {change:.2g}")
    _no_rule_misfits(analysis)
    rng = np.random.default_rng(seed)
    tally = Tally(len(analysis.groups))
    if keep and all(_fits(analysis, name, index) for name, index in keep.items()):
        _certify(analysis, keep, feeds, dense, tally)
        _typed_again(analysis, keep, feeds[0])
    if only:
        return tally
    everything = {name: random_keep(group, rng) for name, group in analysis.groups.items()}
    tally.ragged = sum(index.ndim > 1 for index in everything.values())
    _certify(analysis, everything, feeds, dense, tally)
    if alone and len(everything) > 1:
        names = [str(n) for n in rng.permutation(sorted(everything))]
        for chosen in (names[:1], names[-2:])[: len(names) - 1]:
            _certify(analysis, {n: random_keep(analysis.groups[n], rng) for n in chosen}, feeds, dense, tally)
    _typed_again(analysis, everything, feeds[0])
    return tally


def feed_of(model: ir.Model, batch: int, seed: int) -> Feed:
    rng = np.random.default_rng((seed, batch))
    shapes = {v.name: [n if isinstance(n, int) else batch for n in v.shape] for v in model.graph.inputs}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def random_keep(group: Group, rng: np.random.Generator) -> np.ndarray:
    """A keep set that removes something: ragged every other time where it may be, [*sizes of outer, kept]."""
    index = some(group.size, rng)
    outer = tuple(d.size for d in group.outer)
    if not outer or rng.random() < 0.5:
        return index
    orders = rng.permuted(np.broadcast_to(np.arange(group.size), (*outer, group.size)), axis=-1)
    return np.sort(orders[..., : len(index)], axis=-1)


class _Memory:
    """Runs models, the dense one only once."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._outputs = model, None

    def __call__(self, model: ir.Model, feeds: Sequence[Feed]) -> Outputs:
        if model is not self._model:
            return run_all(model, feeds)
        self._outputs = self._outputs or run_all(model, feeds)
        return self._outputs


def _fits(analysis: Analysis, name: str, index: np.ndarray) -> bool:
    group = analysis.groups.get(name)
    outer = tuple(d.size for d in group.outer) if group else None
    return group is not None and index.shape[:-1] in ((), outer) and index.max(initial=0) < group.size


def _no_rule_misfits(analysis: Analysis) -> None:
    for name, axes in analysis.types.axes.items():
        for d in (d for t in axes for d in leaves(t) if d.frozen):
            if MISFIT in d.frozen.text:
                raise Broken(f"{name} is frozen: {d.frozen}")


def _certify(analysis: Analysis, keep: Keep, feeds: Sequence[Feed], runner: _Memory, tally: Tally) -> None:
    try:
        checks = certify(analysis, keep, feeds, runner)
    except Exception as e:
        raise Broken(f"the pruned network does not run: {type(e).__name__}: {e}", keep) from e
    wrong = [check for check in checks if check.verdict == "mismatch"]
    if wrong and wrong[0].difference <= 30 * unsteadiness(analysis, keep, feeds):
        tally.unstable += 1
    elif wrong:
        check = wrong[0]
        raise Broken(f"{check.oracle} oracle: {check.difference:.2g} beside an effect of {check.effect:.2g}", keep)
    else:
        tally.checks += checks


def unsteadiness(analysis: Analysis, keep: Keep, feeds: Sequence[Feed]) -> float:
    """How much the outputs, dense or pruned, change with rounding: with the last bits of all weights and inputs."""
    worst = 0.0
    for model in (analysis.model, shrink(analysis.model, analysis.types, analysis.keeps(keep))):
        want = run_all(model, feeds)
        for seed in range(4):
            rng = np.random.default_rng(seed)
            have = run_all(_jittered(model, rng), [{k: _jitter(v, rng) for k, v in f.items()} for f in feeds])
            changes = [compare(a, b) for a, b in zip(want, have, strict=True)]
            worst = max(worst, *changes)
    return worst


def _jittered(model: ir.Model, rng: np.random.Generator) -> ir.Model:
    copy = model.clone()
    for value in copy.graph.initializers.values():
        if value.const_value.dtype == ir.DataType.FLOAT:
            set_constant(value, _jitter(value.const_value.numpy(), rng))
    return copy


def _jitter(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (array * (1 + 3e-7 * rng.normal(size=array.shape))).astype(np.float32)


def _typed_again(analysis: Analysis, keep: Keep, feed: Feed) -> None:
    keeps = analysis.keeps(keep)
    try:
        pruned = shrink(analysis.model, analysis.types, keeps)
        traced = trace(pruned, feed, run)
    except Exception as e:  # of whichever runtime
        raise Broken(f"the pruned network does not run: {type(e).__name__}: {e}", keep) from e
    for name, axes in analysis.types.axes.items():
        told = tuple(new_size(t, keeps) for t in axes)
        if name in traced.shapes and told != traced.shapes[name]:
            raise Broken(f"{name} has the shape {traced.shapes[name]} when pruned, its type says {told}", keep)
    try:
        types = infer(pruned, traced)
    except ModelError as e:
        raise Broken(f"the pruned network cannot be typed: {e}", keep) from e
    for name, axes in types.axes.items():
        if tuple(t.size for t in axes) != traced.shapes.get(name):
            raise Broken(f"typed again, {name} has not its own shape", keep)
