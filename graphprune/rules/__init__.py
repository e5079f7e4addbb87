"""The operator table. One module per family; a new operator is one `Rule` with its samples in the family's `RULES`."""

from __future__ import annotations

from graphprune.rules import (
    attention,
    elementwise,
    fused,
    indexing,
    layout,
    linear,
    norms,
    pooling,
    quantised,
    recurrent,
    reductions,
    runtime_attention,
    segments,
    shapes,
    signals,
)
from graphprune.rules.base import Rule, Sample

FAMILIES = (
    elementwise, layout, linear, segments, shapes, norms, reductions, pooling, indexing, recurrent, quantised,
    signals, attention, runtime_attention, fused,
)  # fmt: skip
TABLE: dict[tuple[str, str], Rule] = {(rule.domain, rule.op): rule for family in FAMILIES for rule in family.RULES}

__all__ = ["FAMILIES", "TABLE", "Rule", "Sample"]
