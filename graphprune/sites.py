"""Where a pass could act and how much: the vocabulary shared by passes, prices and the solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

if TYPE_CHECKING:
    import numpy as np

    from graphprune.context import Context

Choice = Mapping[str, Any]
"""What was decided for one site, as plain data (JSON): all that `apply` needs to do it again."""


@dataclass(frozen=True)
class Site:
    """One place where one pass may act.

    name: unique over all passes. levels: integer amounts, ascending, the last one leaving the site as it is; a level is
    what prices are fitted on (a width, a rank, 0/1 for a dropped branch). prior: estimated relative output error of the
    site's own readers at each level, 0 at the last. about: words for people. members: nodes concerned.
    """

    name: str
    levels: tuple[int, ...]
    prior: tuple[float, ...]
    about: str = ""
    members: tuple[str, ...] = field(default=())

    @property
    def full(self) -> int:
        return self.levels[-1]


class Pass(Protocol):
    """A way to make a model cheaper. Proposing changes nothing; applying does what was decided and nothing else.

    Passes are applied in the order given, each to the result of the one before; all name nodes and values of the
    canonical model.
    """

    name: str

    def propose(self, context: Context) -> Sequence[Site]:
        """The sites of this pass on `context.model`. May read calibration moments; must not change the model."""
        ...

    def choose(self, context: Context, levels: Mapping[str, int]) -> Mapping[str, Choice]:
        """What taking these levels means, site by site, sites left whole omitted."""
        ...

    def apply(self, context: Context, model: ir.Model, choices: Mapping[str, Choice]) -> ir.Model:
        """A copy of `model` with the choices carried out, weights as they fall."""
        ...

    def solve_again(
        self, context: Context, model: ir.Model, choices: Mapping[str, Choice]
    ) -> Mapping[str, np.ndarray]:
        """New contents for initialisers of the applied model that make up for what was removed; {} if none."""
        ...
