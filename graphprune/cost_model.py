"""The form of the host cost model: a whole model's milliseconds as a sum of terms, each of at most two widths and of
the few choices that decide whether its kernel is there at all.

Data and arithmetic only; `cost` measures, `cost_fit` finds the terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from graphprune.errors import EnvironmentFault, UsageError
from graphprune.target import Estimate

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Factor:
    """A function of one group's count, of x = slope * count + offset:

    up: x rounded up to a multiple of `step`, what a vector kernel computes; block: the same, but x itself under one
    block, as layouts with channel blocks take few channels as they are; ragged: x rounded up where it is no multiple,
    else zero; small: x where it is under `step`, else zero. The last two are what only such widths cost, as changes
    of layout do.
    """

    group: str
    slope: int = 1
    offset: int = 0
    step: int = 1
    kind: Literal["up", "block", "ragged", "small"] = "up"

    def at(self, counts: Counts) -> int:
        x = self.slope * counts[self.group] + self.offset
        up = -(-x // self.step) * self.step
        match self.kind:
            case "up":
                return up
            case "block":
                return up + (x - up) * (x < self.step)
            case "ragged":
                return up * (up != x)
            case "small":
                return x * (x < self.step)


@dataclass(frozen=True)
class Monomial:
    """A coefficient times a product of factors; in a term its unit is ms."""

    coefficient: float
    factors: tuple[Factor, ...] = ()

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(f.group for f in self.factors)

    def at(self, counts: Counts) -> float:
        value = self.coefficient
        for factor in self.factors:
            value = value * factor.at(counts)
        return value


Condition = tuple[str, tuple[int, ...]]
"""A site and some of its levels: true where the site is at one of them."""


@dataclass(frozen=True)
class Presence:
    """When a kernel exists: where all of `where` are true, unless all of `unless` are (and there are any); if
    `negated`, everywhere else."""

    where: tuple[Condition, ...] = ()
    unless: tuple[Condition, ...] = ()
    negated: bool = False

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(site for site, _ in (*self.where, *self.unless))

    def at(self, counts: Counts) -> Any:
        """1 where the kernel exists and 0 elsewhere; counts may be arrays that broadcast."""
        there = self._all(self.where, counts)
        if self.unless:
            there = there * (1 - self._all(self.unless, counts))
        return 1 - there if self.negated else there

    @staticmethod
    def _all(literals: tuple[Condition, ...], counts: Counts) -> Any:
        true = np.int64(1)
        for site, levels in literals:
            true = true * np.isin(counts[site], levels).astype(np.int64)
        return true


@dataclass(frozen=True)
class Term:
    """The time of one kernel, or of the part of it that depends on `groups`: at most two widths, and the sites that
    decide whether the kernel is there.

    Kernels over a concatenation of many groups are spread over several terms of the same name.
    """

    name: str
    op: str
    groups: tuple[str, ...]
    monomials: tuple[Monomial, ...]
    presence: Presence = Presence()

    def ms(self, counts: Counts) -> float:
        """Milliseconds at these levels, never less than none; counts may be integer arrays that broadcast, the result
        then is one too."""
        return np.maximum(sum(m.at(counts) for m in self.monomials), 0.0) * self.presence.at(counts)


@dataclass(frozen=True)
class CostModel:
    """predict(counts) = overhead_ms + the sum of the terms.

    dense_ms: the measured time of the dense model; low, high: the range of widths that was measured; spread: the
    relative half-width of the 80 % interval of the error on plans left out of the fit.
    """

    kernels: tuple[Term, ...]
    overhead_ms: float
    dense_ms: float
    spread: float
    low: dict[str, int]
    high: dict[str, int]
    fingerprint: str
    n_plans: int = 0
    seconds: float = field(default=0.0, compare=False)

    def predict(self, counts: Counts) -> Estimate:
        """The time of one run at these widths. Raises UsageError if a group is missing."""
        if missing := sorted(self.low.keys() - counts.keys()):
            raise UsageError(f"no width given for group {missing[0]!r}", fix=f"give widths for {sorted(self.low)}")
        inside = all(self.low[g] <= counts[g] <= self.high[g] for g in self.low)
        ms = self.overhead_ms + sum(term.ms(counts) for term in self.kernels)
        if inside:
            return Estimate(float(ms), self.spread, "interpolated")
        return Estimate(float(ms), 2 * self.spread, "extrapolated")

    def correct(self, factor: float) -> CostModel:
        """The same model with every time multiplied, as the closed loop finds measured / predicted to be `factor`."""
        if not factor > 0:
            raise UsageError(f"a price cannot be corrected by {factor:g}", fix="give a factor above zero")
        kernels = tuple(replace(t, monomials=scaled(t.monomials, factor)) for t in self.kernels)
        return replace(self, kernels=kernels, overhead_ms=self.overhead_ms * factor)

    def merged(self) -> tuple[Term, ...]:
        """As few terms with the same sum: one for each set of groups and presence that occurs."""
        sums: dict[tuple[tuple[str, ...], Presence], dict[tuple[Factor, ...], float]] = {}
        for term in self.kernels:
            monomials = sums.setdefault((term.groups, term.presence), {})
            for m in term.monomials:
                monomials[m.factors] = monomials.get(m.factors, 0.0) + m.coefficient
        return tuple(
            Term("+".join(groups) or "fixed", "", groups, tuple(Monomial(c, f) for f, c in monomials.items()), presence)
            for (groups, presence), monomials in sums.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the fingerprint under which the times hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, fingerprint: str | None = None) -> CostModel:
        """The inverse of `to_dict`. Raises EnvironmentFault if the prices hold for another fingerprint."""
        if fingerprint is not None and data["fingerprint"] != fingerprint:
            raise EnvironmentFault("these prices were measured elsewhere", at=f"{data['fingerprint']} != {fingerprint}",
                                   fix="measure them again on this host")  # fmt: skip
        kernels = tuple(
            Term(t["name"], t["op"], tuple(t["groups"]), tuple(
                Monomial(m["coefficient"], tuple(Factor(**f) for f in m["factors"])) for m in t["monomials"]
            ), Presence(*(tuple((site, tuple(levels)) for site, levels in t["presence"][part])
                          for part in ("where", "unless")), t["presence"]["negated"])) for t in data["kernels"]
        )  # fmt: skip
        return cls(**{**data, "kernels": kernels})


def scaled(monomials: Sequence[Monomial], factor: float) -> tuple[Monomial, ...]:
    return tuple(replace(m, coefficient=m.coefficient * factor) for m in monomials)
