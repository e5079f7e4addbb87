"""Shared tables: let each user of one take its own part of it, so that it does not tie the users together.

Networks compute a small table once and broadcast it into every layer: the cosines and sines of rotary positions, a
scale, a mask. Its axis would be one variable through all of them. A `Gather` in front of each user, with all indices at
first, cuts the tie: pruning then shortens each user's own list of indices, and lists that stay whole are taken out
again (`edit.shrink`). Gathering from a table costs little beside what the table is broadcast into.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphprune.dims import leaves
from graphprune.edit import bypass, new_constant
from graphprune.infer import captured, infer
from graphprune.rules.base import Types
from graphprune.trace import Trace, correct_annotations

_JOINS = ("Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Pow")
_SUMS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Cut:
    """An axis of a table, and the nodes that would each select from it."""

    table: ir.Value
    axis: int
    users: tuple[ir.Usage, ...]


def solve(model: ir.Model, trace: Trace) -> Types:
    """Type a canonical model, its shared tables separated, in place, where that frees something. What it says of shapes
    is corrected by the trace."""
    correct_annotations(model, trace.shapes)
    types = infer(model, trace)
    cuts = list(_cuts(model, types))
    if not cuts:
        return types
    made = {cut: _separate(model.graph, cut, types.shape(cut.table)[cut.axis]) for cut in cuts}
    separated = _typed(model, trace, types, made)
    idle = [cut for cut, nodes in made.items() if _still_tied(nodes, separated)]
    if not idle:
        return separated
    for cut in idle:
        for node in made.pop(cut):
            bypass(node, node.inputs[0])
    return _typed(model, trace, types, made)


def _typed(model: ir.Model, trace: Trace, types: Types, made: dict[Cut, list[ir.Node]]) -> Types:
    nodes = [node for nodes in made.values() for node in nodes]
    shapes = {node.outputs[0].name: types.shape(cut.table) for cut, own in made.items() for node in own}
    return infer(model, replace(trace, shapes={**trace.shapes, **shapes}), frozenset(node.name for node in nodes))


def _still_tied(nodes: Sequence[ir.Node], types: Types) -> bool:
    """Whether something else makes all users take the same part anyway."""
    parts = {tuple(leaves(types.axes[node.inputs[1].name][0])) for node in nodes}
    return len(parts) == 1 or all(d.frozen for part in parts for d in part)


def _cuts(model: ir.Model, types: Types) -> Iterator[Cut]:
    """Free axes of tables that at least two nodes broadcast into features."""
    features = _features(model)
    weights = {
        d for value in model.graph.initializers.values() for t in types.axes.get(value.name, ()) for d in leaves(t)
    }
    for value in (*model.graph.initializers.values(), *(y for node in model.graph for y in node.outputs)):
        if value in features or value.dtype is None or not value.dtype.is_floating_point():
            continue
        users = tuple(use for use in value.uses() if _broadcasts(use, types, features))
        if len(users) > 1:
            for axis, t in enumerate(types.axes.get(value.name, ())):
                if any(d.size > 1 and d in weights and not d.frozen for d in leaves(t)):
                    yield Cut(value, axis, users)


def _features(model: ir.Model) -> set[ir.Value]:
    """Values that float inputs or products with a weight matrix enter."""
    found: set[ir.Value] = {v for v in model.graph.inputs if v.dtype is None or v.dtype.is_floating_point()}
    for node in model.graph:
        weighted = node.op_type in _SUMS and any(
            v is not None and v.is_initializer() and sum(int(n) > 1 for n in v.const_value.shape) > 1
            for v in node.inputs
        )
        entered = node.op_type not in ("Shape", "Size") and any(v in found for v in node.inputs)
        if weighted or entered or any(captured(node)):
            found.update(node.outputs)
    return found


def _broadcasts(use: ir.Usage, types: Types, features: set[ir.Value]) -> bool:
    """Whether a node joins the value to features that are larger."""
    node, value = use.node, use.node.inputs[use.idx]
    if node.op_type not in _JOINS or node.domain or not any(v in features for v in node.inputs):
        return False
    return int(np.prod(types.shape(node.outputs[0]))) > int(np.prod(types.shape(value)))


def _separate(graph: ir.Graph, cut: Cut, size: int) -> list[ir.Node]:
    """Give every user its own selection of the table, all of it at first."""
    made = []
    for use in cut.users:
        name = f"{cut.table.name}.{cut.axis}.for.{use.node.name}.{use.idx}"
        index = new_constant(graph, f"{name}.index", np.arange(size, dtype=np.int64))
        node = ir.node("Gather", [use.node.inputs[use.idx], index], {"axis": cut.axis}, name=name)
        node.outputs[0].name, node.outputs[0].dtype = f"{name}.part", cut.table.dtype
        node.outputs[0].shape = cut.table.shape
        graph.insert_before(use.node, node)
        use.node.replace_input_with(use.idx, node.outputs[0])
        made.append(node)
    return made
