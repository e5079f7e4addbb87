"""What passes are given: the typed model, calibration data, and a way to run things."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphprune.calibrate import Load, moments
from graphprune.compensate import Moments
from graphprune.edit import set_constant
from graphprune.groups import Analysis
from graphprune.scores import Score
from graphprune.target import IntegerKernels
from graphprune.trace import Feed
from graphprune.views import View, reader_of, view_of


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
    integer: IntegerKernels = field(default_factory=IntegerKernels)
    """What the runtime can compute with few bits."""
    step: Callable[[], None] = field(default=lambda: None)
    contributions: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For groups contracted between activations: what each channel adds to the product (see `align`)."""
    turned: frozenset[str] = frozenset()
    """Groups whose channels are in order of what they contribute, block by block (see `align`)."""
    gathered: dict[tuple, Sequence[Moments]] = field(default_factory=dict, repr=False)
    """Moments that are at hand, by `View.key`; copies of this context for other devices share them."""

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
    def linear(self) -> Mapping[str, View]:
        """Matrix views of all linear nodes, whether or not they read a group, by node name."""
        found = {}
        for node in self.nodes.values():
            reader = reader_of(node)
            if reader is not None and node.inputs[1].dtype.is_floating_point() and not node.inputs[0].is_initializer():
                view = view_of(reader, node, node.inputs[1])
                if view is not None:
                    found[node.name] = view
        return found

    @cached_property
    def moments(self) -> Mapping[tuple, Sequence[Moments]]:
        """Input moments per filter bank of every view of `views`, by `View.key`; gathered on first use."""
        return self.moments_of(self.views.values())

    def moments_of(self, views: Iterable[View]) -> Mapping[tuple, Sequence[Moments]]:
        """Input moments per filter bank of at least these views, by `View.key`; those not at hand are gathered now, in
        one go."""
        missing = [view for view in views if view.key() not in self.gathered]
        if missing:
            self.gathered |= moments(self.model, missing, self.feeds, self.load, self.step)
        return self.gathered


def overwrite(model: ir.Model, tensors: Mapping[str, np.ndarray]) -> ir.Model:
    """Give initialisers of `model` new contents, in place, and return it."""
    for name, array in tensors.items():
        set_constant(model.graph.initializers[name], array)
    return model
