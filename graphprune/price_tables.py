"""A cost model over given levels, as tables of milliseconds: what solvers and descents look prices up in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from graphprune.cost_model import CostModel

Levels = Mapping[str, Sequence[int]]
Tables = Mapping[tuple[str, ...], np.ndarray]
"""Sites -> milliseconds at every combination of their levels, one axis per site."""


@dataclass(frozen=True)
class PriceTables:
    """A model takes fixed_ms and the sum of one number out of each table."""

    levels: Levels
    tables: Tables
    fixed_ms: float

    @classmethod
    def of(cls, levels: Levels, cost: CostModel) -> PriceTables:
        """The prices of all combinations of these levels."""
        fixed_ms, tables = cost.overhead_ms, {}
        for term in cost.merged():
            shape = tuple(len(levels[s]) for s in term.groups)
            grid = np.broadcast_to(np.asarray(term.ms(_grid(levels, term.groups)), float), shape)
            if term.groups:
                tables[term.groups] = tables.get(term.groups, 0) + grid
            else:
                fixed_ms += float(grid)
        return cls(levels, tables, fixed_ms)

    def only(self, sites: Collection[str]) -> PriceTables:
        """The same where all other sites stay at their last level."""
        fixed_ms, tables = self.fixed_ms, {}
        for groups, table in self.tables.items():
            left = tuple(s for s in groups if s in sites)
            part = table[tuple(slice(None) if s in sites else -1 for s in groups)]
            if left:
                tables[left] = tables.get(left, 0) + part
            else:
                fixed_ms += float(part)
        return PriceTables({s: v if s in sites else v[-1:] for s, v in self.levels.items()}, tables, fixed_ms)

    def fewest(self) -> PriceTables:
        """The same sums from fewer tables: those that are the same everywhere are fixed, and those over some of the
        sites of another are part of it."""
        fixed_ms, tables, inside = self.fixed_ms, {}, {}
        for groups, table in sorted(self.tables.items(), key=lambda item: -len(item[0])):
            if np.ptp(table) == 0:
                fixed_ms += float(table.flat[0])
                continue
            whole = groups if groups in tables else inside.get(frozenset(groups))
            if whole is None:
                tables[groups] = table
                inside |= {frozenset(some): groups for n in range(1, len(groups) + 1)
                           for some in combinations(groups, n)}  # fmt: skip
                continue
            ordered = sorted(groups, key=whole.index)
            turned = np.transpose(table, [groups.index(s) for s in ordered])
            shape = [table.shape[groups.index(s)] if s in groups else 1 for s in whole]
            tables[whole] = tables[whole] + turned.reshape(shape)
        return PriceTables(self.levels, tables, fixed_ms)


def _grid(levels: Levels, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Levels of some sites, each along its own axis, so that they broadcast."""
    shape = 1 - 2 * np.eye(len(groups), dtype=int)  # -1 on the site's own axis, 1 elsewhere
    return {s: np.asarray(levels[s], np.int64).reshape(shape[i]) for i, s in enumerate(groups)}
