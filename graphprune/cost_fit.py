"""From profiles of whole models to terms: which widths each kernel depends on, and its time as a function of them.

Pure arithmetic over samples; measures nothing. Shapes say what a kernel depends on: every axis that varies over the
samples is matched to an expression in the group counts (`extent`). Kernels of the same operator and shape pattern
share one non-negative fit over products of their varying axes, each kernel with a scale of its own. Whether a kernel
is there at all is learnt from the samples too (`cost_presence`): what a runtime fuses need not be known.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations_with_replacement, pairwise, product
from operator import and_

import numpy as np
from scipy.optimize import nnls
from scipy.stats import theilslopes

from graphprune.cost_model import Factor, Monomial, Presence, Term, scaled
from graphprune.cost_presence import Role, Surroundings, presences
from graphprune.target import Kernel

_STEPS = (1, 8, 16, 64)  # vector and block widths that kernels round up to
_BLOCK = 16  # the largest layout block
_FOLDS = 5
_LARGEST_DRIFT = 0.25
_MOST_ADDED_MS = 0.005  # by profiling, to one kernel
_LEAST_MS = 1e-4  # the profiler counts whole microseconds
_OUTLIER, _OUTLIER_MS = 1.5, 0.02
_DOUBT = 1.0
"""Samples of a kernel weigh so many of those that share its fit."""
Extent = tuple[Monomial, ...]


@dataclass(frozen=True)
class Sample:
    """One profiled model: its widths, its kernels in order, and its unprofiled time on the dense model's scale."""

    counts: dict[str, int]
    kernels: list[Kernel]
    ms: float


def fit(
    samples: Sequence[Sample], levels: Mapping[str, Sequence[int]] | None = None, switches: Collection[str] = (),
    near: Mapping[str, Sequence[Sequence[str]]] | None = None, alike: Sequence[Surroundings] = (),
    spread: float | None = None,
) -> tuple[tuple[Term, ...], float]:  # fmt: skip
    """Terms whose sum is the model's time, and the spread of whole-model errors on samples left out of the fit, unless
    that is given.

    levels: of every site, the last one leaving it whole. switches: sites whose levels are alternatives, no sizes. near,
    alike: see `cost_presence.presences`.
    """
    aligned = _Aligned(samples, levels or {}, frozenset(switches), near, alike)
    everything = np.arange(len(aligned.samples))
    aligned.settle(_terms(aligned, everything))
    return _terms(aligned, everything), _left_out_spread(aligned) if spread is None else spread


class _Aligned:
    """Kernels of all samples side by side: ms [kernel, sample], zero where a kernel is absent; which samples have it
    (`present`), when that is so (`presences`), and the shape pattern of each kernel."""

    def __init__(
        self, samples: Sequence[Sample], levels: Mapping[str, Sequence[int]], switches: frozenset[str],
        near: Mapping[str, Sequence[Sequence[str]]] | None = None, alike: Sequence[Surroundings] = (),
    ) -> None:  # fmt: skip
        runs = [{(k.name, k.op): k for k in s.kernels} for s in samples]
        explained = presences(runs, [s.counts for s in samples], levels, switches, near, alike)
        found = list(explained.rules)
        self.ms = np.zeros((len(found), len(samples)))
        row = {(key.name, op): i for i, key in enumerate(found) for op in key.ops}
        for column, run in enumerate(runs):
            at = 0
            for name, kernel in run.items():
                # what only some models need, by a rule that the samples do not show, is charged to the kernel before it
                at = row.get(name, at)
                self.ms[at, column] += kernel.ms
        total_ms = np.array([s.ms for s in samples])
        self.ms, kept = _to_wall(self.ms, total_ms)
        self.total_ms = total_ms[kept]
        samples = self.samples = [samples[b] for b in kept]
        runs = [runs[b] for b in kept]
        self.counts = {g: np.array([s.counts[g] for s in samples], dtype=np.int64) for g in sorted(samples[0].counts)}
        self.sizes = [g for g in self.counts if g not in switches]
        self._columns = np.array([self.counts[g] for g in self.sizes], dtype=np.int64)
        self._columns = self._columns.reshape(len(self.sizes), len(samples)).T
        self._extents: dict[tuple[Callable[..., Extent | None], bytes, bytes], Extent | None] = {}
        has = [[any((key.name, op) in run for op in key.ops) for run in runs] for key in found]
        self.present = [np.flatnonzero(h) for h in has]
        self.kernels = [[next(runs[b][key.name, op] for op in key.ops if (key.name, op) in runs[b]) for b in p]
                        for key, p in zip(found, self.present, strict=True)]  # fmt: skip
        self.names = [key.name for key in found]
        self.ops = [min(key.ops) for key in found]
        self.presences = list(explained.rules.values())
        number = {key: i for i, key in enumerate(found)}
        self.pools = self._pools([[(number[key], sites) for key, sites in members] for members in explained.families])

    def at(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """The counts of some samples."""
        return {g: c[samples] for g, c in self.counts.items()}

    def settle(self, terms: Sequence[Term]) -> None:
        """Cut kernel times that are far above the terms: the core was lost there, and the rest must not pay for it."""
        predicted = np.zeros_like(self.ms)
        for i, own in _by_kernel(self, terms).items():
            for term in own:
                predicted[i] += term.ms(self.counts)
        self.ms = np.minimum(self.ms, _OUTLIER * predicted + _OUTLIER_MS)
        self.ms *= self.total_ms / self.ms.sum(axis=0)

    def _pools(self, families: Sequence[Sequence[tuple[int, Mapping[Role, str]]]]) -> list[_Pool]:
        """Kernels that share a fit. Those that no sample has, or none that was not disturbed, are priced with their
        family or not at all."""
        patterns: dict[int, tuple[tuple[object, ...], list[Extent]]] = {}
        for number, members in enumerate(families):
            if len(members) > 1:
                patterns |= self._family_patterns(number, members)
        for i, (kernels, present) in enumerate(zip(self.kernels, self.present, strict=True)):
            if i not in patterns and len(present):
                patterns[i] = self._pattern(kernels, present)
        by_key: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i in sorted(patterns):
            by_key[patterns[i][0]].append(i)
        pools = []
        for members in by_key.values():
            features = [dict(_features(patterns[i][1])) for i in members]
            shared = [name for name in features[0] if all(name in other for other in features)]
            expressions = [[own[name] for name in shared] for own in features]
            values = []
            for i, own in zip(members, expressions, strict=True):
                counts, ones = self.at(self.present[i]), np.ones(len(self.present[i]))
                values.append(np.column_stack([sum(m.at(counts) for m in e) * ones for e in own]))
            if any(len(v) for v in values):
                pools.append(_Pool(members, expressions, values))
        return pools

    def _family_patterns(
        self, number: int, members: Sequence[tuple[int, Mapping[Role, str]]]
    ) -> dict[int, tuple[tuple[object, ...], list[Extent]]]:  # fmt: skip
        """The pattern of kernels of nodes alike, from all their samples together: what the axes depend on is said in
        roles, exactly, of all axes or of those of the first input and output. Nothing where that cannot be."""
        kernels = [kernel for i, _ in members for kernel in self.kernels[i]]
        if not kernels:
            return {}
        common = set.intersection(*(set(sites) for _, sites in members))
        roles = [role for role, site in members[0][1].items() if role in common and site in self.sizes]
        counts = np.concatenate([
            np.array([self.counts[sites[r]][self.present[i]] for r in roles], np.int64)
            .reshape(len(roles), len(self.present[i])).T
            for i, sites in members
        ])  # fmt: skip
        tried = [([(*k.inputs, *k.outputs) for k in kernels], ()),
                 ([(*k.inputs[:1], *k.outputs[:1]) for k in kernels], (number,)),
                 (_in_any_order(kernels), (number, "any order"))]  # fmt: skip
        for shapes, mark in tried:
            if len({tuple(len(s) for s in each) for each in shapes}) == 1:
                key, extents = _pattern_of(shapes, lambda column: _exact(column, roles, counts))
                if all(e is not None for e in extents):
                    op = self.ops[members[0][0]]
                    return {i: ((op, *mark, *key), [_renamed(e, sites) for e in extents]) for i, sites in members}
        return {}

    def _pattern(self, kernels: Sequence[Kernel], present: np.ndarray) -> tuple[tuple[object, ...], list[Extent]]:
        """Operator and shapes with each varying axis replaced by the number of its extent, and those extents; the axes
        in any order where the layout goes by the neighbours."""
        columns = self._columns[present]

        def known(how: Callable[..., Extent | None]) -> Callable[[np.ndarray], Extent | None]:
            def look_up(column: np.ndarray) -> Extent | None:
                at = (how, present.tobytes(), column.tobytes())
                if at not in self._extents:
                    self._extents[at] = how(column, self.sizes, columns)
                return self._extents[at]
            return look_up

        for shapes, mark in ((_shapes(kernels), ()), (_in_any_order(kernels), ("any order",))):
            key, extents = _pattern_of(shapes, known(_exact))
            if all(e is not None for e in extents):
                return (kernels[0].op, *mark, *key), extents
        key, extents = _pattern_of(_shapes(kernels), known(extent))
        return (kernels[0].op, *key), extents


def _in_any_order(kernels: Sequence[Kernel]) -> list[tuple[tuple[int, ...], ...]]:
    """The first input and output of a kernel in some samples, whatever the layout: how many numbers there are for each
    combination of the sizes that all samples have, then those sizes."""
    tensors = [[k.inputs[:1] for k in kernels], [k.outputs[:1] for k in kernels]]
    found = []
    for shapes in tensors:
        sizes = [Counter(s[0]) if s else Counter() for s in shapes]
        common = reduce(and_, sizes)
        fixed = tuple(sorted(common.elements()))
        found.append([(math.prod((own - common).elements()), *fixed) for own in sizes])
    return list(zip(*found, strict=True))


def _shapes(kernels: Sequence[Kernel]) -> list[tuple[tuple[int, ...], ...]]:
    """Of inputs and outputs of a kernel in some samples, as many as it has in all."""
    shapes = [(*k.inputs, *k.outputs) for k in kernels]
    if len({tuple(len(s) for s in each) for each in shapes}) > 1:
        shapes = [(*k.inputs[:1], *k.outputs[:1]) for k in kernels]  # what is fused with it comes and goes
    if len({tuple(len(s) for s in each) for each in shapes}) > 1:
        shapes = [() for _ in kernels]
    return shapes


def _pattern_of(
    shapes: Sequence[tuple[tuple[int, ...], ...]], explain: Callable[[np.ndarray], Extent | None]
) -> tuple[tuple[object, ...], list[Extent | None]]:
    """Shapes of samples as one, each varying axis replaced by the number of what explains it."""
    axes = np.array([[d for s in each for d in s] for each in shapes], dtype=np.int64).reshape(len(shapes), -1)
    key: list[object] = [tuple(len(s) for s in shapes[0])]
    columns: list[np.ndarray] = []
    for axis in axes.T:
        if (axis == axis[0]).all():
            key.append(int(axis[0]))
            continue
        known = next((i for i, c in enumerate(columns) if (c == axis).all()), None)
        if known is None:
            known = len(columns)
            columns.append(axis)
        key.append(f"v{known}")
    return tuple(key), [explain(column) for column in columns]


@dataclass(frozen=True)
class _Pool:
    """Kernels of one operator and shape pattern: their numbers, and for each its features and [sample, feature]."""

    members: list[int]
    expressions: list[list[Extent]]
    values: list[np.ndarray]


def _to_wall(ms: np.ndarray, total_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel times [kernel, kept] whose sum over kernels is the unprofiled time of the sample, and the kept samples.

    Profiling adds about the same to every kernel: the intercept of unprofiled over profiled time says how much. What
    then remains is drift between the two measurements, the same factor for all kernels of a sample; samples in which
    it is large were disturbed and are dropped.
    """
    sums, there = ms.sum(axis=0), ms > 0
    added = 0.0
    if len(sums) >= 8 and np.ptp(sums) > 0.2 * sums.max():
        with np.errstate(invalid="ignore"):  # of the confidence interval, where samples are repeated
            slope, intercept, *_ = theilslopes(total_ms, sums)
        n_kernels = max(float(there.sum(axis=0).mean()), 1.0)
        added = float(np.clip(-intercept / (slope * n_kernels), -_MOST_ADDED_MS, _MOST_ADDED_MS))
    cleaned = np.where(there, np.maximum(np.maximum(ms - added, 0.2 * ms), _LEAST_MS), 0.0)
    drift = total_ms / cleaned.sum(axis=0)
    kept = np.flatnonzero(np.abs(np.log(drift / np.median(drift))) < _LARGEST_DRIFT)
    return (cleaned * drift)[:, kept], kept


def extent(axis: np.ndarray, groups: Sequence[str], counts: np.ndarray) -> Extent:
    """An axis [sample] as an expression in the group counts [sample, group].

    Tried in order: one group, exactly, rounded up or not; a product of two; a sum of several, exactly or as closely
    as least squares gets.
    """
    return _exact(axis, groups, counts) or _sum(axis, groups, counts)


def _exact(axis: np.ndarray, groups: Sequence[Hashable], counts: np.ndarray) -> Extent | None:
    """An axis as one group, rounded up or not, or as the product of two."""
    for step, (i, group) in product((1, 4, 8, 16, 32), enumerate(groups)):
        if factor := _single(axis, group, counts[:, i], step):
            return (Monomial(1.0, (factor,)),)
    for (i, a), (j, b) in combinations_with_replacement(list(enumerate(groups)), 2):
        ratio = axis / (counts[:, i] * counts[:, j])
        if np.ptp(ratio) < 1e-9:
            return (Monomial(float(ratio[0]), (Factor(a), Factor(b))),)
    return None


def _renamed(expression: Extent, names: Mapping[Hashable, str]) -> Extent:
    """The same with other names for its groups."""
    return tuple(replace(m, factors=tuple(replace(f, group=names[f.group]) for f in m.factors)) for m in expression)


def _single(axis: np.ndarray, group: str, count: np.ndarray, step: int) -> Factor | None:
    """The factor of one group that equals the axis, if there is one with whole numbers.

    A blocked kernel may take counts under its block as they are: samples may be rounded up or not.
    """
    low, high = int(count.argmin()), int(count.argmax())
    run = int(count[high] - count[low])
    if run == 0:
        return None
    slope = round(int(axis[high] - axis[low]) / run)
    offset = int(axis[low]) - slope * int(count[low]) if step == 1 else 0
    plain, up, block = (Factor(group, slope, offset), *(Factor(group, slope, offset, step, k) for k in ("up", "block")))
    at = {group: count}
    if slope <= 0 or not ((up.at(at) == axis) | (plain.at(at) == axis)).all():
        return None
    return max((block, up), key=lambda f: np.count_nonzero(f.at(at) == axis)) if step > 1 else plain


def _sum(axis: np.ndarray, groups: Sequence[str], counts: np.ndarray) -> Extent:
    """A sum over groups that is closest to the axis; whole slopes where they leave no more than rounding does.

    With more groups than samples, groups join one by one while they explain what is left.
    """
    if len(axis) > len(groups) + 8:
        chosen = list(range(len(groups)))
    else:
        chosen, left = [], axis - axis.mean()
        centred = counts - counts.mean(axis=0)
        lengths = np.maximum(np.linalg.norm(centred, axis=0), 1e-9)
        while np.abs(left).max() > 0.004 * axis.max() and len(chosen) < min(len(axis) // 2, len(groups)):
            gain = centred.T @ (left - left.mean()) / lengths
            gain[chosen] = -np.inf
            if gain.max() <= 0:
                break
            chosen.append(int(gain.argmax()))
            left = axis - _with_ones(counts[:, chosen]) @ nnls(_with_ones(counts[:, chosen]), axis.astype(float))[0]
    weights = nnls(_with_ones(counts[:, chosen]), axis.astype(float))[0]
    whole = np.round(weights[1:])
    padding = axis - counts[:, chosen] @ whole
    if np.ptp(padding) < _BLOCK:
        weights = np.array([padding.mean(), *whole])
    slopes = [Monomial(float(w), (Factor(groups[i]),)) for w, i in zip(weights[1:], chosen, strict=True) if w > 1e-3]
    return (Monomial(float(weights[0])), *slopes)


def _with_ones(columns: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(columns)), columns])


def _terms(aligned: _Aligned, chosen: np.ndarray) -> tuple[Term, ...]:
    """One term or more for each kernel, in order, from the samples whose numbers are `chosen`."""
    terms: dict[int, list[Term]] = {}
    for pool in aligned.pools:
        used = [np.flatnonzero(np.isin(aligned.present[i], chosen)) for i in pool.members]
        if not any(len(u) for u in used):  # seen in samples that are left out alone
            used = [np.arange(len(aligned.present[i])) for i in pool.members]
        values = [v[u] for v, u in zip(pool.values, used, strict=True)]
        ms = [aligned.ms[i, aligned.present[i][u]] for i, u in zip(pool.members, used, strict=True)]
        scales, weights = _fit_pool(values, ms)
        nonzero = np.flatnonzero(weights)
        for i, expressions, scale in zip(pool.members, pool.expressions, scales, strict=True):
            parts = [scaled(expressions[j], float(weights[j] * scale)) for j in nonzero]
            monomials = [m for part in parts for m in part]
            terms[i] = _split(aligned.names[i], aligned.ops[i], monomials, aligned.presences[i])
    ordered = [term for i in sorted(terms) for term in terms[i]]
    factor = float(np.median(aligned.total_ms[chosen] / _total(ordered, aligned)[chosen]))
    return tuple(replace(t, monomials=scaled(t.monomials, factor)) for t in ordered)


def _by_kernel(aligned: _Aligned, terms: Sequence[Term]) -> dict[int, list[Term]]:
    """The terms of every kernel."""
    row = {key: i for i, key in enumerate(zip(aligned.names, aligned.ops, aligned.presences, strict=True))}
    found: dict[int, list[Term]] = defaultdict(list)
    for term in terms:
        found[row[term.name, term.op, term.presence]].append(term)
    return found


def _total(terms: Sequence[Term], aligned: _Aligned) -> np.ndarray:
    return np.sum([np.broadcast_to(t.ms(aligned.counts), aligned.total_ms.shape) for t in terms], axis=0)


def _features(extents: Sequence[Extent]) -> list[tuple[tuple[object, ...], Extent]]:
    """Named candidate expressions: 1, every extent and product of two, at each rounding, of at most two groups."""
    rounded: list[list[tuple[object, Extent]]] = []
    for number, e in enumerate(extents):
        forms: list[tuple[object, Extent]] = [((number, "as it is"), e)]
        if len(e) == 1 and len(e[0].factors) == 1 and e[0].coefficient == 1:
            (single,) = e[0].factors
            shapes = [("up", step) for step in _STEPS if step % single.step == 0]
            shapes += [("block", _BLOCK), ("ragged", _BLOCK), ("small", _BLOCK)]
            forms += [
                ((number, *shape), (Monomial(1.0, (replace(single, kind=shape[0], step=shape[1]),)),))
                for shape in shapes
                if shape != (single.kind, single.step)
            ]
        rounded.append(forms)
    features: list[tuple[tuple[object, ...], Extent]] = [((), (Monomial(1.0),))]
    flat = [form for forms in rounded for form in forms]
    features += [((name,), e) for name, e in flat]
    for (name_a, a), (name_b, b) in combinations_with_replacement(flat, 2):
        both = tuple(Monomial(m.coefficient * n.coefficient, m.factors + n.factors) for m in a for n in b)
        if all(len(m.groups) <= 2 for m in both):
            features.append(((name_a, name_b), both))
    return features


def _fit_pool(values: Sequence[np.ndarray], ms: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scale of each kernel and the shared weights >= 0: ms[k] ~ scales[k] * values[k] @ weights.

    Relative errors, large ones counting linearly.
    """
    scales = np.ones(len(values))
    stacked = np.vstack(values)
    norms = np.maximum(np.abs(stacked).max(axis=0), 1e-12)
    trust = np.ones(len(stacked))
    weights = np.zeros(stacked.shape[1])
    for _ in range(4):
        times = np.concatenate([m / s for m, s in zip(ms, scales, strict=True)])
        relative = trust / np.maximum(times, 0.1 * times.mean() + 1e-9)
        weights, _ = nnls(stacked / norms * relative[:, None], times * relative)
        predicted = np.maximum(stacked / norms @ weights, 1e-9)
        error = times / predicted - 1
        width = 2 * max(float(np.median(np.abs(error))), 1e-3)
        trust = np.sqrt(np.minimum(1.0, width / np.maximum(np.abs(error), 1e-12)))
        bounds = np.cumsum([0, *(len(v) for v in values)])
        ratios = times / predicted
        own = [np.median(ratios[a:b]) ** ((b - a) / (b - a + _DOUBT)) if b > a else 1.0 for a, b in pairwise(bounds)]
        scales = scales * np.array(own)
        scales /= np.exp(np.log(scales).mean())
    return scales, weights / norms


def _split(name: str, op: str, monomials: Sequence[Monomial], presence: Presence) -> list[Term]:
    """The kernel as one term if it has at most two widths, else one for each set of widths."""
    groups = frozenset().union(*(m.groups for m in monomials))
    parts: dict[frozenset[str], list[Monomial]] = defaultdict(list)
    for m in monomials:
        parts[groups if len(groups) <= 2 else m.groups].append(m)
    return [Term(name, op, tuple(sorted(gs | presence.groups)), tuple(ms), presence) for gs, ms in parts.items()]


def _left_out_spread(aligned: _Aligned) -> float:
    """Half of the 10-90 % range of relative errors of whole models, each predicted without its own fold."""
    n = len(aligned.samples)
    folds = np.arange(n) % min(_FOLDS, n)
    errors = []
    for fold in range(min(_FOLDS, n) if n > 1 else 0):
        predicted = _total(_terms(aligned, np.flatnonzero(folds != fold)), aligned)
        errors.extend((predicted / aligned.total_ms - 1)[folds == fold])
    return float(np.ptp(np.quantile(errors, [0.1, 0.9])) / 2) if errors else 0.0
