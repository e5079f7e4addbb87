"""Take out Gathers that read a tensor from front to back, as exporters write strided views of what lies in order.

torch.export turns some poolings into `as_strided`: the tensor flattened, and a Gather of indices that are computed as
a sum of positions times strides. With the strides of the tensor's own shape that is the tensor itself; left in, it
would look as if the axis were looked up by index.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def fold_identity_gathers(model: ir.Model) -> None:
    """Replace y = Gather(Reshape(x, [-1]), indices) by x, in place, where the indices count through x's elements."""
    for node in list(model.graph):
        if node.op_type != "Gather" or node.domain or node.attributes.get_int("axis", 0) != 0:
            continue
        flat = node.inputs[0].producer()
        if flat is None or flat.op_type != "Reshape" or not _is_constant(flat.inputs[1], [-1]):
            continue
        x, y = flat.inputs[0], node.outputs[0]
        if not y.is_graph_output() and _same_shape(x, y) and _counts_through(node.inputs[1], x.shape):
            y.replace_all_uses_with(x)


def _is_constant(value: ir.Value | None, wanted: list[int]) -> bool:
    return value is not None and value.is_initializer() and value.const_value.numpy().reshape(-1).tolist() == wanted


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Equal sizes, where those of later axes are numbers: only the first may vary."""
    if a.shape is None or b.shape is None or not all(isinstance(n, int) for n in list(a.shape)[1:]):
        return False
    first = str(a.shape[0]) if len(a.shape) else ""
    return list(map(str, a.shape)) == list(map(str, b.shape)) and first not in ("", "None", "?")


def _counts_through(indices: ir.Value, shape: ir.Shape) -> bool:
    """Whether indices[i, j, ..] is i * (size of the rest) + the place of (j, ..) in the rest, for every i."""
    rest = tuple(int(n) for n in list(shape)[1:])
    size = int(np.prod(rest))
    places = np.arange(size).reshape(1, *rest)
    terms = _terms(indices)
    constants = [v.const_value.numpy() for v in terms if v.is_initializer()]
    positions = [v for v in terms if not v.is_initializer()]
    if isinstance(shape[0], int):
        return not positions and np.array_equal(sum(constants), np.arange(shape[0] * size).reshape(tuple(shape)))
    counted = np.broadcast_to(sum(constants, np.zeros(1, np.int64)), np.broadcast_shapes(
        (1, *rest), *(c.shape for c in constants)))  # fmt: skip
    return len(positions) == 1 and np.array_equal(counted, places) and _stride(positions[0], len(rest)) == size


def _terms(value: ir.Value) -> list[ir.Value]:
    """What is added up to `value`."""
    node = value.producer()
    if node is None or node.op_type != "Add":
        return [value]
    return [term for operand in node.inputs for term in _terms(operand)]


def _stride(value: ir.Value, n_inner: int) -> int | None:
    """s where `value` is s times the position along its first axis, all others being of size one; else None."""
    node = value.producer()
    if node is not None and node.op_type == "Unsqueeze" and _is_constant(node.inputs[1], list(range(1, n_inner + 1))):
        node = node.inputs[0].producer()
    elif n_inner:
        return None
    factor = 1
    if node is not None and node.op_type == "Mul":
        numbers = [v.const_value.numpy() for v in node.inputs if v.is_initializer()]
        others = [v for v in node.inputs if not v.is_initializer()]
        if len(numbers) != 1 or numbers[0].size != 1:
            return None
        factor, node = int(numbers[0].reshape(-1)[0]), others[0].producer()
    starts = node is not None and node.op_type == "Range" and _is_constant(node.inputs[0], [0])
    return factor if starts and _is_constant(node.inputs[2], [1]) else None
