"""Refit the linear layers of a compressed model, front to back, to what the dense model computes.

Each layer is solved by least squares from the inputs it really gets, errors of the layers before it included, to the
values the dense model has behind it; where its output is added to a residual stream the target is what the *sum* lacks,
so every branch also repairs what earlier ones lost. Layers after it then see the repaired values. No gradients, no
labels. Widths do not change, so neither does the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True)
class Layer:
    """A linear layer of the compressed model: its view, the value to repeat, and what else is added into that value."""

    view: View
    node: ir.Node
    target: str
    others: tuple[str, ...]
    channels: np.ndarray
    """Indices of the dense output channels that are left."""

    def rows(self, dense: Values, pruned: Values) -> np.ndarray:
        """What this layer should give, bias included: [rows, out]."""
        y = dense[self.target]
        axis = y.ndim - 1 if self.view.reader.kind == "matmul" else 1
        if y.shape[axis] != len(self.channels):
            y = np.take(y, self.channels, axis=axis)
        for other in self.others:
            y = y - pruned[other]
        return self.view.outputs(y)


def refit(
    context: Context, model: ir.Model, keeps: Keeps, feeds: Sequence[Feed], step: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """Refit every linear layer of `model`, in place; the new initialisers by name.

    model: context.model with `keeps` applied and readers solved once. step is called after each stage of `n_stages`.
    """
    layers = _layers(context, model, keeps)
    changed: dict[str, np.ndarray] = {}
    for stage in _stages(model, layers):
        _solve_stage(context, model, stage, feeds, changed)
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


def _solve_stage(context: Context, model: ir.Model, stage: list[Layer], feeds, changed: dict[str, np.ndarray]) -> None:
    inputs = {v.name for v in model.graph.inputs}
    wanted = list(dict.fromkeys(layer.target for layer in stage))
    seen = list(dict.fromkeys(n for layer in stage for n in (layer.view.reader.x, *layer.others) if n not in inputs))
    run_dense, run = context.load(exposed(context.model, wanted)), context.load(exposed(model, seen))
    folds = []
    for part in (feeds[::2], feeds[1::2]):
        values = ((run_dense(feed), {**feed, **run(feed)}) for feed in part)
        folds.append(cross_moments([(layer.view, layer.rows) for layer in stage], values))
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
