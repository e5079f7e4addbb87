"""Carry keep sets out on a model: slice every weight the groups lie on, renew every number that is a size.

The types say what to cut and the patches say which numbers follow; nothing here knows an operator.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphprune.dims import leaves
from graphprune.keeps import Keeps, new_size, take
from graphprune.patches import IndexOperand, Operand
from graphprune.rules.base import Types


def shrink(model: ir.Model, types: Types, keeps: Keeps) -> ir.Model:
    """A copy of `model` with only the kept indices of each variable. keeps: ascending indices, at least one each.

    A permutation in place of a keep set reorders instead (the permutation oracle uses this). Nodes and weights of the
    typed model that `model` no longer has are passed over. What was kept is noted: see `shrunk_to`.
    """
    copy = model.clone()
    copy.graph.meta[_SHRUNK_TO] = {**shrunk_to(model), **keeps}
    touched = set().union(*(types.holders.get(d, ()) for d in keeps))
    for name in touched & copy.graph.initializers.keys():
        value = copy.graph.initializers[name]
        set_constant(value, take(value.const_value.numpy(), types.axes[name], keeps))
    nodes = {node.name: node for node in copy.graph}
    for name, patches in types.patches.items():
        for patch in patches if name in nodes else ():
            _renew(nodes[name], patch, keeps)
    for node in copy.graph:
        for value in node.outputs:
            if value.name in touched and value.shape is not None:
                shape = list(value.shape)
                for axis, t in enumerate(types.axes[value.name]):
                    if not keeps.keys().isdisjoint(leaves(t)):  # else a symbol such as "4*batch" counts what is gone
                        shape[axis] = new_size(t, keeps) if isinstance(shape[axis], int) else None
                value.shape = ir.Shape(shape)
    _thin_selections(copy.graph, types)
    return copy


_SHRUNK_TO = "graphprune.shrunk_to"


def shrunk_to(model: ir.Model) -> Keeps:
    """The keep sets carried out on a model so far."""
    return model.graph.meta.get(_SHRUNK_TO, {})


def _thin_selections(graph: ir.Graph, types: Types) -> None:
    """Take out selections from shared tables that select everything, and let equal ones be one."""
    same: dict[tuple, ir.Value] = {}
    for node in list(graph) if types.selections else ():
        if node.name in types.selections:
            table, index = node.inputs[0], node.inputs[1].const_value.numpy()
            axis = node.attributes["axis"].value
            key = (table, axis, index.tobytes())
            if np.array_equal(index, np.arange(types.axes[table.name][axis].size)):
                bypass(node, table)
            elif key in same:
                bypass(node, same[key])
            else:
                same[key] = node.outputs[0]


def bypass(node: ir.Node, value: ir.Value) -> None:
    """Remove a node, `value` taking the place of its output."""
    operands = [v for v in node.inputs if v is not None and v.is_initializer()]
    graph = node.graph
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)
    for operand in operands:
        if not operand.uses() and not operand.is_graph_output():
            del graph.initializers[operand.name]


_STANDS_FOR = "graphprune.stands_for"


def stand_for(node: ir.Node, name: str) -> None:
    """Note that the node does (a part of) what the canonical model's node `name` did."""
    node.metadata_props[_STANDS_FOR] = name


def stands_for(node: ir.Node) -> str:
    """The canonical node whose work the node does: its own name, unless it took the place of another."""
    return node.metadata_props.get(_STANDS_FOR, node.name)


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initialiser new contents, in its own element type."""
    dtype = value.const_value.dtype
    value.const_value = ir.tensor(array, dtype=dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def new_constant(graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    """A new initialiser of `graph`, named `name` or, where that is taken, with underscores behind it."""
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


_ATTRIBUTE = {list: ir.AttrInt64s, int: ir.AttrInt64, float: ir.AttrFloat32}


def _renew(node: ir.Node, patch: object, keeps: Keeps) -> None:
    if isinstance(patch, IndexOperand):
        new = patch.value(keeps)
        now = node.inputs[patch.operand].const_value.numpy()  # its own axis may have been cut already
        if not np.array_equal(new, now.reshape(-1)):
            _replace_constant(node, patch.operand, new)
    elif isinstance(patch, Operand):
        entries = patch.entries(keeps)
        if entries:
            _renew_operand(node, patch, entries)
    else:
        new = patch.value(keeps)
        old = node.attributes.get(patch.attribute)
        if old is None or (list(old.value) if isinstance(new, list) else old.value) != new:
            node.attributes[patch.attribute] = _ATTRIBUTE[type(new)](patch.attribute, new)


def _renew_operand(node: ir.Node, patch: Operand, entries: Mapping[int, int]) -> None:
    value = node.inputs[patch.operand] if patch.operand < len(node.inputs) else None
    if value is None:  # sizes that were implied by an even split
        full = np.asarray([entries.get(i, o) for i, o in enumerate(patch.old)], np.int64)
        node.resize_inputs(max(len(node.inputs), patch.operand + 1))
        node.replace_input_with(patch.operand, new_constant(node.graph, f"{node.name}.sizes", full))
        node.attributes.pop("num_outputs", None)
        return
    if value.is_initializer():
        array = value.const_value.numpy().copy()
        flat = array.reshape(-1)
        for i, n in entries.items():
            flat[i] = n
        _replace_constant(node, patch.operand, array)
        return
    # A computed operand: only the entries concerned become constants, the others stay dynamic.
    rank = value.shape.rank() if value.shape is not None else 1
    shape = (len(patch.old),) if rank else ()
    stays, new = np.ones(len(patch.old), np.int64), np.zeros(len(patch.old), np.int64)
    for i, n in entries.items():
        stays[i], new[i] = 0, n
    graph = node.graph  # by product and sum: Where does not exist before opset 9
    for op, numbers, what in (("Mul", stays, "stays"), ("Add", new, "sizes")):
        constant = new_constant(graph, f"{node.name}.{what}", numbers.reshape(shape), value.dtype)
        step = ir.node(op, [value, constant], name=f"{node.name}.{what}{patch.operand}")
        step.outputs[0].name, step.outputs[0].type = f"{node.name}.{what}.operand{patch.operand}", value.type
        graph.insert_before(node, step)
        value = step.outputs[0]
    node.replace_input_with(patch.operand, value)


def _replace_constant(node: ir.Node, operand: int, array: np.ndarray) -> None:
    """Give this use of a constant its own new contents, in the old element type and rank."""
    value = node.inputs[operand]
    dtype = value.const_value.dtype
    array = np.asarray(array).reshape(-1) if len(value.const_value.shape) else np.asarray(array).reshape(())
    if len(value.uses()) == 1 and not value.is_graph_output():
        set_constant(value, array.astype(dtype.numpy()))
    else:
        copy = new_constant(node.graph, f"{node.name}.operand{operand}", array.astype(dtype.numpy()))
        node.replace_input_with(operand, copy)
