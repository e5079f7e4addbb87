"""Refit the linear layers of a compressed model, front to back, to what the dense model computes.

Each layer is solved by least squares from the inputs it really gets, errors of the layers before it included, to the
values the dense model has behind it; where its output is added to a residual stream the target is what the *sum* lacks,
so every branch also repairs what earlier ones lost. Layers after it then see the repaired values. No gradients, no
labels. Widths do not change, so neither does the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.calibrate import Values, cross_moments
from graphprune.compensate import refit as solve
from graphprune.context import Context
from graphprune.dims import Keeps, kept
from graphprune.edit import set_constant
from graphprune.rules.base import Reader
from graphprune.trace import Feed, exposed
from graphprune.views import View, bias_of, find_bias, view_of

_TARGET_BYTES = 1_500_000_000


@dataclass(frozen=True)
class Layer:
    """A linear layer of the compressed model: its view, the value to repeat, and what else is added into that value."""

    view: View
    node: ir.Node
    target: str
    others: tuple[str, ...]
    channels: np.ndarray
    """Indices of the dense output channels that are left."""

    def wanted(self, dense: np.ndarray) -> np.ndarray:
        """The dense value to repeat, as far as its channels are left: [rows, out]."""
        axis = dense.ndim - 1 if self.view.reader.kind == "matmul" else 1
        if dense.shape[axis] != len(self.channels):
            dense = np.take(dense, self.channels, axis=axis)
        return self.view.outputs(dense)

    def rows(self, wanted: np.ndarray, pruned: Values) -> np.ndarray:
        """What this layer itself should give, bias included: [rows, out]."""
        for other in self.others:
            wanted = wanted - self.view.outputs(pruned[other])
        return wanted


def refit(
    context: Context, model: ir.Model, keeps: Keeps, feeds: Sequence[Feed], step: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """Refit every linear layer of `model`, in place; the new initialisers by name.

    model: context.model with `keeps` applied and readers solved once. step is called after each stage of `n_stages`.
    """
    changed: dict[str, np.ndarray] = {}
    stages = list(_stages(model, _layers(context, model, keeps)))
    for part in _parts(stages, feeds):
        targets = _targets(context, part, feeds)
        for stage in part:
            _solve_stage(context, model, stage, feeds, targets, changed)
            for layer in stage:
                targets.pop(layer.node.name)
            step()
    return changed


def n_stages(context: Context, model: ir.Model, keeps: Keeps) -> int:
    """How many times the feeds are run through both models."""
    return len(list(_stages(model, _layers(context, model, keeps))))


def _layers(context: Context, model: ir.Model, keeps: Keeps) -> list[Layer]:
    """Linear layers behind the first change that have a weight of their own and a bias to take the mean."""
    dense_values = {y.name: y for n in context.model.graph for y in n.outputs}
    readers = {r.node: r for r in context.analysis.types.readers}
    dirty: set[ir.Value] = set()
    layers = []
    for node in model.graph:
        behind = any(v in dirty for v in node.inputs if v is not None)
        reader = readers.get(node.name)
        changed = node.name not in context.nodes or _narrower(context, node)
        if reader is not None and (behind or changed):
            layer = _layer(context, keeps, node, reader, dense_values)
            if layer is not None and (behind or _reads_less(context, node)):
                layers.append(layer)
        if behind or changed:
            dirty.update(node.outputs)
    return layers


def _narrower(context: Context, node: ir.Node) -> bool:
    """Whether any constant of the node shrank."""
    old = context.nodes[node.name]
    return any(
        a is not None and b is not None and a.is_initializer() and b.is_initializer()
        and tuple(a.const_value.shape) != tuple(b.const_value.shape)
        for a, b in zip(node.inputs, old.inputs, strict=False)
    )  # fmt: skip


def _reads_less(context: Context, node: ir.Node) -> bool:
    reader = next(r for r in context.analysis.types.readers if r.node == node.name)
    old = context.nodes[node.name].inputs[1].const_value.shape
    return node.inputs[1].const_value.shape[reader.contracted] != old[reader.contracted]


def _layer(context: Context, keeps: Keeps, node: ir.Node, reader: Reader, dense_values) -> Layer | None:
    weight = node.inputs[1]
    if not weight.is_initializer() or len(weight.uses()) > 1 or reader.kind == "deconv":
        return None
    view = view_of(reader, node, weight)
    if view is None or view.banks > 1:
        return None
    n_out = int(weight.const_value.shape[reader.produced])
    place = find_bias(node, n_out)
    if place.node is None or len(place.node.inputs[place.operand].uses()) > 1:
        return None
    t = context.analysis.types.axes[reader.w][reader.produced]
    channels = kept(t, keeps)
    if len(channels) != n_out:
        return None
    y = node.outputs[0] if place.node is node else place.node.outputs[0]
    base = y.name.removesuffix(".shifted")
    target, others = base, ()
    uses = list(y.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not y.is_graph_output():
        total, other = uses[0].node.outputs[0], uses[0].node.inputs[1 - uses[0].idx]
        if total.name in dense_values and other is not None and not other.is_initializer() and _same_shape(other, y):
            target, others = total.name, (other.name,)
    return Layer(view, node, target, others, channels) if target in dense_values else None


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether no broadcasting is at work: adding a broadcast value is not a residual stream."""
    return a.shape is not None and b.shape is not None and str(a.shape) == str(b.shape)


def _stages(model: ir.Model, layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers in the order of the graph, those that do not depend on one another together."""
    by_node = {layer.node: layer for layer in layers}
    depth: dict[ir.Value, int] = {}
    stages: dict[int, list[Layer]] = {}
    for node in model.graph:
        level = max((depth.get(v, 0) for v in node.inputs if v is not None), default=0)
        if node in by_node:
            stages.setdefault(level, []).append(by_node[node])
            level += 1
        for y in node.outputs:
            depth[y] = level
    for level in sorted(stages):
        yield stages[level]


def _parts(stages: Sequence[list[Layer]], feeds: Sequence[Feed]) -> Iterator[list[list[Layer]]]:
    """Stages whose targets over all feeds fit in memory together, so that the dense model runs once for many."""
    rows = sum(max(int(np.prod(a.shape)) for a in feed.values()) for feed in feeds)
    part: list[list[Layer]] = []
    total = 0
    for stage in stages:
        size = 4 * rows * sum(len(layer.channels) for layer in stage)
        if part and total + size > _TARGET_BYTES:
            yield part
            part, total = [], 0
        part.append(stage)
        total += size
    if part:
        yield part


def _targets(context: Context, part: Sequence[Sequence[Layer]], feeds: Sequence[Feed]) -> dict[str, list[np.ndarray]]:
    """What every layer of some stages should repeat, feed by feed, from one run of the dense model."""
    layers = [layer for stage in part for layer in stage]
    run = context.load(exposed(context.model, list(dict.fromkeys(layer.target for layer in layers))))
    found: dict[str, list[np.ndarray]] = {layer.node.name: [] for layer in layers}
    for feed in feeds:
        values = run(feed)
        for layer in layers:
            found[layer.node.name].append(np.array(layer.wanted(values[layer.target]), np.float32))
    return found


def _solve_stage(
    context: Context, model: ir.Model, stage: Sequence[Layer], feeds: Sequence[Feed],
    targets: Mapping[str, Sequence[np.ndarray]], changed: dict[str, np.ndarray],
) -> None:  # fmt: skip
    inputs = {v.name for v in model.graph.inputs}
    seen = list(dict.fromkeys(n for layer in stage for n in (layer.view.reader.x, *layer.others) if n not in inputs))
    run = context.load(exposed(model, seen))
    folds = []
    for fold in (range(0, len(feeds), 2), range(1, len(feeds), 2)):
        values = (({l.node.name: targets[l.node.name][i] for l in stage}, {**feeds[i], **run(feeds[i])}) for i in fold)
        pairs = [(l.view, lambda dense, pruned, l=l: l.rows(dense[l.node.name], pruned)) for l in stage]
        if len(fold):
            folds.append(cross_moments(pairs, values))
    for layer, *moments in zip(stage, *folds, strict=True):
        weight = layer.node.inputs[1]
        old = weight.const_value.numpy()
        (matrix,) = layer.view.matrices(old)
        bias = bias_of(layer.node, len(layer.channels))
        new, shift = solve(matrix, bias, moments)
        reader = layer.view.reader
        changed[weight.name] = layer.view.weight([new], old, old.shape[reader.contracted])
        place = find_bias(layer.node, len(layer.channels))
        value = place.node.inputs[place.operand]
        changed[value.name] = shift.reshape(tuple(value.const_value.shape)).astype(value.const_value.dtype.numpy())
        set_constant(weight, changed[weight.name])
        set_constant(value, changed[value.name])
