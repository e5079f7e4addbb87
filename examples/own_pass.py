"""A pass of one's own: keep the channels whose weights are largest, wherever the dimension types found a group.

    python -m examples.own_pass model.onnx 1.5 [input=1x3x224x224]

It decides by weights alone, so it needs no calibration of its own. Prices, search, certificate and report are those of
every pass, and what it removes is made up for by the same refit.
"""

from __future__ import annotations

import sys

import numpy as np

import graphprune
from graphprune.edit import shrink
from graphprune.feeds import read_shapes
from graphprune.keeps import positions
from graphprune.passes.width import width_levels
from graphprune.sites import Site


class LargestWeights:
    """A value of `graphprune.sites.Pass`."""

    name = "largest-weights"

    def importance(self, context, group):
        """Sum of squares of all weights that a channel takes part in: float [group.size]."""
        total = np.zeros(group.size)
        for weight, axis in group.weights:
            array = context.model.graph.initializers[weight].const_value.numpy()
            where = positions(context.analysis.types.axes[weight][axis], group.dim)  # a channel's indices on that axis
            total += (np.moveaxis(array, axis, 0)[where].reshape(group.size, -1).astype(float) ** 2).sum(1)
        return total

    def propose(self, context):
        for group in context.analysis.groups.values():
            levels = width_levels(group.size, group.kind)
            share = np.sort(self.importance(context, group))[::-1].cumsum()
            prior = 1 - share[np.array(levels) - 1] / max(share[-1], 1e-30)  # what is lost with k channels kept
            if len(levels) > 1:
                yield Site(group.name, levels, tuple(prior), group.kind, group.nodes)

    def choose(self, context, levels):
        chosen = {}
        for name, k in levels.items():
            group = context.analysis.groups[name]
            if k < group.size:
                best = np.argsort(-self.importance(context, group), kind="stable")[:k]
                chosen[name] = {"keep": sorted(int(i) for i in best)}
        return chosen

    def apply(self, context, model, choices, solve=True):
        keep = {name: np.array(choice["keep"]) for name, choice in choices.items()}
        return shrink(model, context.analysis.types, context.analysis.keeps(keep))


if __name__ == "__main__":
    model, factor, *shapes = sys.argv[1:]
    result = graphprune.compile(model, target_speedup=float(factor), shapes=read_shapes(shapes),
                                passes=[LargestWeights()])
    result.save("out")
    print(f"{result.report.reached.speedup:.2f}x")
