"""What passes are given: the typed model, calibration data, and a way to run things."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphprune.calibrate import Load, moments
from graphprune.compensate import Moments
from graphprune.edit import set_constant
from graphprune.groups import Analysis
from graphprune.scores import Score
from graphprune.trace import Feed
from graphprune.views import View, view_of


@dataclass
class Context:
    """The canonical model with its groups, the calibration feeds, and how to load a model for running.

    score: how channels are ranked. compensate: whether readers are solved for again ("magnitude without compensation"
    is the usual baseline, and then nothing is aligned either). step: called as calibration goes on, for progress.
    """

    analysis: Analysis
    feeds: Sequence[Feed]
    load: Load
    score: Score = "second-order"
    compensate: bool = True
    seed: int = 0
    step: Callable[[], None] = field(default=lambda: None)
    contributions: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For groups contracted between activations: what each channel adds to the product (see `align`)."""
    turned: frozenset[str] = frozenset()
    """Groups whose channels are in order of what they contribute, block by block (see `align`)."""

    @property
    def model(self) -> ir.Model:
        return self.analysis.model

    @cached_property
    def nodes(self) -> Mapping[str, ir.Node]:
        return {node.name: node for node in self.model.graph}

    @cached_property
    def views(self) -> Mapping[str, View]:
        """Matrix views of the linear readers of some group, by node name."""
        found = {}
        for group in self.analysis.groups.values():
            for reader in group.readers:
                view = view_of(reader, self.nodes[reader.node], self.model.graph.initializers[reader.w])
                if view is not None:
                    found[reader.node] = view
        return found

    @cached_property
    def moments(self) -> Mapping[tuple, Sequence[Moments]]:
        """Input moments per filter bank of every view, by `View.key`; gathered on first use."""
        return moments(self.model, list(self.views.values()), self.feeds, self.load, self.step)


def overwrite(model: ir.Model, tensors: Mapping[str, np.ndarray]) -> ir.Model:
    """Give initialisers of `model` new contents, in place, and return it."""
    for name, array in tensors.items():
        set_constant(model.graph.initializers[name], array)
    return model
