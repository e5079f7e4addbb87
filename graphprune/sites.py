"""Where a pass could act and how much: the vocabulary shared by passes, prices and the solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

if TYPE_CHECKING:
    from graphprune.context import Context

Choice = Mapping[str, Any]
"""What was decided for one site, as plain data (JSON): all that `apply` needs to do it again."""


@dataclass(frozen=True)
class Site:
    """One place where one pass may act.

    name: unique over all passes. levels: integer amounts, ascending, the last one leaving the site as it is; a level is
    what prices are fitted on. ordered: whether levels are sizes (a width, a rank), so that times and losses may be
    interpolated between them; else they are numbers of alternatives (drop or keep, the precisions of a node), and every
    one is measured. prior: estimated relative output error of the site's own readers at each level, 0 at the last.
    about: words for people; labels: the same for each alternative. members: nodes concerned. replaces: whether nodes
    go or others take their place at any level but the last; when prices are measured such sites are mostly left whole,
    or little would be seen of the nodes themselves.
    """

    name: str
    levels: tuple[int, ...]
    prior: tuple[float, ...]
    about: str = ""
    members: tuple[str, ...] = field(default=())
    ordered: bool = True
    labels: Mapping[int, str] = field(default_factory=dict)
    replaces: bool = False

    @property
    def full(self) -> int:
        return self.levels[-1]

    def label(self, level: int) -> str:
        """The level in words."""
        return self.labels.get(level, str(level))


class Pass(Protocol):
    """A way to make a model cheaper. Proposing changes nothing; applying does what was decided and nothing else.

    Passes are applied in the order given, each to the result of the one before; all name nodes and values of the
    canonical model, and pass over what an earlier pass has taken away. A node that takes the place of another says so
    (`edit.stands_for`). Between the passes that leave weights free and those that round them (an attribute
    `rounds = True`; they come last) all linear layers are refitted.

    A pass that asks for the moments of linear nodes that read no group sets `reads_all = True`, so that all are
    gathered in one go. One that is served better by another model of the same function has `prepare(context) ->
    context` with that, called before anything is proposed. One that rounds may have `finish(context, model, choices) ->
    model`: `apply` with the best weights, for the refitted model, where that takes longer than is good for a candidate.
    """

    name: str

    def propose(self, context: Context) -> Sequence[Site]:
        """The sites of this pass on `context.model`. May read calibration moments; must not change the model."""
        ...

    def choose(self, context: Context, levels: Mapping[str, int]) -> Mapping[str, Choice]:
        """What taking these levels means, site by site, sites left whole omitted."""
        ...

    def apply(
        self, context: Context, model: ir.Model, choices: Mapping[str, Choice], solve: bool = True
    ) -> ir.Model:
        """A copy of `model` with the choices carried out. solve: give the weights that are left the values that make
        up best for what is gone; without it (for prices, and when a plan is replayed) nodes, names and shapes are the
        same but weights are as they fall, and neither calibration data nor moments may be asked for."""
        ...
