"""Search for a network that breaks a law, and shrink it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample

from tests.fuzz.laws import Broken, Keep, Refused, examine
from tests.fuzz.programs import Program, build, programs

CASES = 20
"""Of one search: a round of `SLICES` searches, with seeds in a row, gets around the whole table with 2,000."""
OVERHEAD = HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example


@dataclass(frozen=True)
class Finding:
    """A law that a program breaks. keep: the fewest keep sets that show it."""

    program: Program
    what: str
    keep: Keep


@dataclass
class Statistics:
    """What a search has been through. operators: how often each (domain, operator) was drawn; verdicts: of the
    oracles; unstable: mismatches that rounding explains; idle: networks without a group; refused: by the runtimes."""

    cases: int = 0
    groups: int = 0
    ragged: int = 0
    idle: int = 0
    unstable: int = 0
    refused: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (f"{self.cases} cases, {len(self.operators)} operators, "
                f"{self.groups} groups ({self.ragged} kept ragged), {self.verdicts.total()} checks: "
                f"{dict(self.verdicts)}, {self.unstable} unstable, {self.idle} networks without a group, "
                f"{self.refused} that no runtime runs")  # fmt: skip


def drawn(seed: int) -> list[Program]:
    """The programs that a search with this seed goes through until something breaks."""
    seen: list[Program] = []
    _find(CASES, seed, lambda program: seen.append(program) or False)
    return seen


def search(
    seed: int, statistics: Statistics | None = None, *, n_cases: int = CASES, shrink: bool = True
) -> Finding | None:
    """The smallest program found that breaks a law (not shrunk: the first), None if none of `n_cases` does. It is the
    same for the same seed."""
    statistics = Statistics() if statistics is None else statistics
    smallest = _find(n_cases, seed, lambda program: _breaks(program, statistics), shrink)
    if smallest is None:
        return None
    try:
        examine(build(smallest), smallest.seed, fold=smallest.fold, alone=smallest.alone)
    except Broken as broken:
        return Finding(smallest, str(broken), fewest(smallest, broken.keep))
    raise AssertionError(f"{smallest} breaks a law and then does not")


def _find(n_cases: int, seed: int, condition: Callable[[Program], bool], shrink: bool = True) -> Program | None:
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    limits = settings(max_examples=n_cases, deadline=None, database=None, suppress_health_check=OVERHEAD, phases=phases)
    try:
        return find(programs(seed), condition, settings=limits, random=random.Random(seed))
    except NoSuchExample:
        return None


def _breaks(program: Program, statistics: Statistics) -> bool:
    model = build(program)
    statistics.cases += 1
    statistics.operators.update(operators(model))
    try:
        tally = examine(model, program.seed, fold=program.fold, alone=program.alone)
    except Broken:
        return True
    except Refused:
        statistics.refused += 1
        return False
    statistics.groups += tally.groups
    statistics.ragged += tally.ragged
    statistics.idle += not tally.groups
    statistics.unstable += tally.unstable
    statistics.verdicts.update(tally.verdicts())
    return False


def operators(model: ir.Model) -> set[tuple[str, str]]:
    return {(node.domain, node.op_type) for node in model.graph}


def fewest(program: Program, keep: Keep) -> Keep:
    """As few of the keep sets as still break a law at once."""
    small = {name: np.asarray(index) for name, index in keep.items()}
    for name in list(small):
        fewer = {n: index for n, index in small.items() if n != name}
        if fewer and breaks_with(program, fewer):
            small = fewer
    return small


def breaks_with(program: Program, keep: Keep) -> bool:
    """Whether these keep sets break a law by themselves."""
    try:
        examine(build(program), program.seed, fold=program.fold, keep=keep, only=True)
    except Broken:
        return True
    return False
