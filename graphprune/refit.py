"""Refit the linear layers of a compressed model, front to back, to what the dense model computes.

Each layer is solved by least squares from the inputs it really gets, errors of the layers before it included, to the
values the dense model has behind it; where its output is added to a residual stream the target is what the *sum* lacks,
so every branch also repairs what earlier ones lost. Layers after it then see the repaired values. No gradients, no
labels. Widths do not change, so neither does the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphprune.calibrate import Load, Values, cross_moments, packed, rows_per_feed
from graphprune.compensate import refit as solve
from graphprune.context import Context
from graphprune.edit import set_constant, stands_for
from graphprune.infer import captured
from graphprune.keeps import Keeps, kept, new_size
from graphprune.rules.base import Reader
from graphprune.rules.shapes import is_dynamic
from graphprune.trace import Feed, exposed
from graphprune.views import View, find_bias, reader_of, view_of

_TARGET_BYTES = 1_500_000_000
Stage = tuple[int, list["Layer"]]


@dataclass(frozen=True)
class Layer:
    """A linear layer of the compressed model: its view, its own output, the value to repeat (that output, or the sum it
    goes into) and the node that makes it, and what else is added into that sum."""

    view: View
    node: ir.Node
    maker: ir.Node
    own: str
    target: str
    others: tuple[str, ...]
    left: Mapping[int, np.ndarray]
    """For each axis of the dense value that shrinks: the indices that are left."""
    n_outputs: int
    limit: int
    """Rows used of each feed."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Values of the compressed model that solving the layer takes."""
        return (self.view.reader.x, *self.others)

    @property
    def constants(self) -> tuple[ir.Value, ir.Value]:
        """The weight, and the bias wherever it lives."""
        place = find_bias(self.node, self.n_outputs)
        return self.node.inputs[1], place.node.inputs[place.operand]

    def wanted(self, dense: np.ndarray) -> np.ndarray:
        """The dense value to repeat, as far as its channels are left: [rows, out]."""
        for axis, index in self.left.items():
            dense = np.take(dense, index, axis=axis)
        return self.view.outputs(dense, self.limit)

    def rows(self, wanted: np.ndarray, pruned: Values) -> np.ndarray:
        """What this layer itself should give, bias included: [rows, out]."""
        for other in self.others:
            wanted = wanted - self.view.outputs(pruned[other], self.limit)
        return wanted


def refit(
    context: Context, model: ir.Model, keeps: Keeps, feeds: Sequence[Feed], step: Callable[[], None] = lambda: None,
    loss: Callable[[ir.Model], float] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Refit every linear layer of `model`, in place; the new initialisers by name.

    model: context.model with `keeps` applied and readers solved once. step is called after each stage of `n_stages`.
    loss: output divergence on feeds that are not fitted to. A stage that raises it is taken back: squared error inside
    is only a stand-in for what the outputs mean (least squares shrinks, and a softmax at the end notices).
    """
    best = loss(model) if loss else 0.0
    plan = _Schedule(model, _layers(context, model, keeps, len(feeds)))
    walk = _Walk(plan, feeds, context.load)
    changed: dict[str, np.ndarray] = {}
    for part in _parts(plan.stages, len(feeds)):
        targets = _targets(context, [layers for _, layers in part], feeds)
        for level, layers in part:
            walk.advance(level)
            before = {v: v.const_value for layer in layers for v in layer.constants}
            solved = _solve_stage(layers, walk.values, targets)
            now = loss(model) if loss else 0.0
            if now > best:
                for value, tensor in before.items():
                    value.const_value = tensor
            else:
                best = now
                changed |= solved
            for layer in layers:
                targets.pop(layer.node.name)
            step()
    return changed


def n_stages(context: Context, model: ir.Model, keeps: Keeps) -> int:
    """How many times `refit` will call step."""
    return len(_Schedule(model, _layers(context, model, keeps, 1)).stages)


class _Schedule:
    """Which layers can be solved together, and what must have run before.

    The level of a value is the largest number of layers on a path to it; a layer of level n reads values of level n and
    makes values of level n + 1.
    """

    def __init__(self, model: ir.Model, layers: Sequence[Layer]) -> None:
        self.model = model
        by_node = {layer.node: layer for layer in layers}
        self.level: dict[str, int] = {}
        stages: dict[int, list[Layer]] = {}
        for node in model.graph:
            level = max((self.level.get(v.name, 0) for v in node.inputs if v is not None), default=0)
            if node in by_node:
                stages.setdefault(level, []).append(by_node[node])
                level += 1
            for y in node.outputs:
                self.level[y.name] = level
        self.stages = [(level, [self._feasible(x, level) for x in stages[level]]) for level in sorted(stages)]

    def _feasible(self, layer: Layer, level: int) -> Layer:
        """A residual stream that is not there yet when the layer is solved cannot be part of its target."""
        if all(self.level.get(name, 0) <= level for name in layer.others):
            return layer
        return replace(layer, target=layer.own, others=())


class _Walk:
    """The values of the compressed model on every feed, computed level by level as layers are solved, so that in all
    the model runs once. Only values that later levels or layers still need are kept."""

    def __init__(self, plan: _Schedule, feeds: Sequence[Feed], load: Load) -> None:
        self._plan, self._load, self._done = plan, load, -1
        self.values: list[dict[str, np.ndarray]] = [dict(feed) for feed in feeds]

    def advance(self, level: int) -> None:
        """Compute everything up to values of `level`."""
        graph, levels = self._plan.model.graph, self._plan.level
        fresh = [n for n in graph if self._done < levels[n.outputs[0].name] <= level]
        needed = {v.name for n in graph if levels[n.outputs[0].name] > level for v in n.inputs if v is not None}
        needed |= {name for at, layers in self._plan.stages if at >= level for x in layers for name in x.needs}
        self._done = level
        made = {y.name for n in fresh for y in n.outputs if y.name}
        outputs = sorted(made & needed)
        if outputs:
            inside = {v.name for n in fresh for v in _operands(n)} - made - graph.initializers.keys()
            kinds = {name: self.values[0][name].dtype for name in sorted(inside)}
            run = self._load(_segment(self._plan.model, kinds, outputs))
            for values in self.values:
                values.update(run({name: values[name] for name in inside}))
        for values in self.values:
            for name in values.keys() - needed:
                del values[name]


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs of a node, and the outer values its bodies use."""
    yield from (v for v in node.inputs if v is not None)
    yield from captured(node)


def _segment(model: ir.Model, inputs: Mapping[str, np.dtype], outputs: Sequence[str]) -> ir.Model:
    """The part of the graph between `inputs`, whose element types are given, and `outputs`."""
    graph = ir.convenience.extract(model.graph, list(inputs), outputs)
    for value in graph.inputs:
        value.type = ir.TensorType(ir.DataType.from_numpy(inputs[value.name]))
    return ir.Model(graph, ir_version=model.ir_version)


def _layers(context: Context, model: ir.Model, keeps: Keeps, n_feeds: int) -> list[Layer]:
    """Linear layers that have a weight of their own and a bias to take the mean, as far as something changed: before
    them, in what they read, or in what is wanted of them."""
    dense_values = {y.name: y for n in context.model.graph for y in n.outputs}
    readers = {r.node: r for r in context.analysis.types.readers}
    dirty: set[ir.Value] = set()
    layers = []
    for node in model.graph:
        behind = any(v in dirty for v in node.inputs if v is not None)
        changed = node.name not in context.nodes or _narrower(context, node) or _rewired(context, node)
        reader = _reader_now(readers, node)
        if reader is not None:
            layer = _layer(context, keeps, node, reader, dense_values, n_feeds)
            if layer is not None and (behind or _reads_other(context, node, reader) or _aims_elsewhere(context, layer)):
                layers.append(layer)
        if behind or changed:
            dirty.update(node.outputs)
    return layers


def _reader_now(readers: Mapping[str, Reader], node: ir.Node) -> Reader | None:
    """The node as a reader of what it reads now: of a linear node of the canonical model, or of one in its place that
    makes the same value."""
    old = readers.get(stands_for(node))
    if old is None:
        return None
    if node.name == old.node:
        return replace(old, x=node.inputs[0].name, w=node.inputs[1].name, y=node.outputs[0].name)
    return reader_of(node) if node.outputs[0].name == old.y else None


def _narrower(context: Context, node: ir.Node) -> bool:
    """Whether any constant of the node shrank."""
    old = context.nodes[node.name]
    return any(
        a is not None and b is not None and a.is_initializer() and b.is_initializer()
        and tuple(a.const_value.shape) != tuple(b.const_value.shape)
        for a, b in zip(node.inputs, old.inputs, strict=False)
    )  # fmt: skip


def _rewired(context: Context, node: ir.Node) -> bool:
    """Whether the node reads or makes other values than in the dense model. Constants count by their size, not name."""
    old = context.nodes[node.name]
    return any(
        [_name(context, v) for v in now] != [_name(context, v) for v in before]
        for now, before in ((node.inputs[: len(old.inputs)], old.inputs), (node.outputs, old.outputs))
    )


def _name(context: Context, value: ir.Value | None) -> str | None:
    """What a value is called, constants aside; a selection from a shared table like the table, as it may be taken out
    where it selects everything."""
    if value is None or value.is_initializer():
        return None
    maker = value.producer()
    if maker is not None and maker.name in context.analysis.types.selections:
        return _name(context, maker.inputs[0])
    return value.name


def _reads_other(context: Context, node: ir.Node, reader: Reader) -> bool:
    """Whether the layer reads fewer channels than it did or another value, or stands in another's place."""
    old = context.nodes.get(node.name)
    if old is None or _name(context, node.inputs[0]) != _name(context, old.inputs[0]):
        return True
    return node.inputs[1].const_value.shape[reader.contracted] != old.inputs[1].const_value.shape[reader.contracted]


def _aims_elsewhere(context: Context, layer: Layer) -> bool:
    """Whether the value that the layer helps to make takes the place of another one: of a sum with what is gone."""
    old = context.nodes.get(layer.maker.name)
    return old is not None and old.outputs[0].name != layer.target


def _layer(context: Context, keeps: Keeps, node: ir.Node, reader: Reader, dense_values, n_feeds: int) -> Layer | None:
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
    y = node.outputs[0] if place.node is node else place.node.outputs[0]
    base = y.name.removesuffix(".shifted")
    maker, target, others = y.producer(), base, ()
    uses = list(y.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not y.is_graph_output():
        total, other = uses[0].node.outputs[0], uses[0].node.inputs[1 - uses[0].idx]
        if total.name in dense_values and other is not None and not other.is_initializer() and _same_shape(other, y):
            maker, target, others = uses[0].node, total.name, (other.name,)
    if base not in dense_values:
        return None
    axes = context.analysis.types.axes[base]
    left = {i: kept(t, keeps) for i, t in enumerate(axes) if new_size(t, keeps) < t.size}
    if any(is_dynamic(axes[i]) for i in left):  # what is left then depends on the feed
        return None
    n_in = int(weight.const_value.shape[reader.contracted]) * view.taps
    return Layer(view, node, maker, base, target, others, left, n_out, rows_per_feed(n_in, n_feeds))


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether no broadcasting is at work: adding a broadcast value is not a residual stream."""
    return a.shape is not None and b.shape is not None and str(a.shape) == str(b.shape)


def _parts(stages: Sequence[Stage], n_feeds: int) -> Iterator[list[Stage]]:
    """Stages whose targets over all feeds fit in memory together, so that the dense model runs once for many."""
    return packed(stages, lambda stage: 4 * n_feeds * sum(x.limit * x.n_outputs for x in stage[1]), _TARGET_BYTES)


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
    stage: Sequence[Layer], values: Sequence[Values], targets: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, np.ndarray]:
    """Solve layers that do not depend on one another, with the damping chosen between even and odd feeds."""
    pairs = [(x.view, x.limit, lambda dense, pruned, x=x: x.rows(dense[x.node.name], pruned)) for x in stage]
    folds = []
    for fold in (range(0, len(values), 2), range(1, len(values), 2)):
        if len(fold):
            paired = (({x.node.name: targets[x.node.name][i] for x in stage}, values[i]) for i in fold)
            folds.append(cross_moments(pairs, paired))
    changed: dict[str, np.ndarray] = {}
    for layer, *moments in zip(stage, *folds, strict=True):
        moments = [m for m in moments if m is not None]
        if not moments:  # no feed reaches this layer: its weights are all that is known
            continue
        weight, bias = layer.constants
        old = weight.const_value.numpy()
        (matrix,) = layer.view.matrices(old)
        new, shift = solve(matrix, bias.const_value.numpy().reshape(-1), moments)
        changed[weight.name] = layer.view.weight([new], old, old.shape[layer.view.reader.contracted])
        changed[bias.name] = shift.reshape(tuple(bias.const_value.shape)).astype(bias.const_value.dtype.numpy())
        for value in (weight, bias):
            set_constant(value, changed[value.name])
    return changed
