"""Linear readers as matrices: y = W x + b with x unfolded, whatever operator does it.

Owns the translation between a node's weight and its matrix view [out, in x taps], where its bias lives, and the
unfolding of activations into rows. Kinds are those of `rules.base.Reader`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.edit import new_constant, set_constant
from graphprune.rules.base import Reader

Array = np.ndarray


@dataclass(frozen=True)
class View:
    """How a reader's node sees its input as a matrix.

    taps: kernel positions (1 for a matrix product). banks: filter banks of a grouped convolution. window: kernel,
    strides, dilations and pads of a convolution, None otherwise. centred: whether a bias can take a constant shift.
    """

    reader: Reader
    taps: int
    banks: int
    window: tuple[tuple[int, ...], ...] | None

    @property
    def centred(self) -> bool:
        return self.reader.kind != "deconv"

    def key(self) -> tuple:
        """Views with equal keys unfold the same value in the same way."""
        return (self.reader.x, "conv" if self.window else self.reader.kind, self.window, self.banks)

    def matrices(self, weight: Array) -> list[Array]:
        """The weight as one matrix per bank: [out / banks, in / banks x taps]."""
        if self.reader.kind == "deconv":  # [C, O, *k]: every tap of every output channel is an output of a pixel
            return [weight.reshape(len(weight), -1).T]
        if self.reader.kind == "matmul":
            return [weight if self.reader.contracted else weight.T]
        return list(weight.reshape(self.banks, len(weight) // self.banks, -1))

    def weight(self, matrices: list[Array], like: Array, kept_inputs: int) -> Array:
        """The inverse of `matrices` for `kept_inputs` inputs a bank; `like` is the weight it came from."""
        if self.reader.kind == "deconv":
            return np.ascontiguousarray(matrices[0].T).reshape(kept_inputs, *like.shape[1:])
        if self.reader.kind == "matmul":
            return np.ascontiguousarray(matrices[0] if self.reader.contracted else matrices[0].T)
        return np.concatenate(matrices).reshape(len(like), kept_inputs, *like.shape[2:])

    def rows(self, x: Array, limit: int | None = None) -> list[Array]:
        """x unfolded, a float32 matrix [rows, in / banks x taps] per bank; at most about `limit`, evenly spaced."""
        if self.window is not None:
            return _unfold(x, self.window, self.banks, limit)
        return [np.ascontiguousarray(_spaced(self._flat(x), limit), np.float32)]

    def outputs(self, y: Array, limit: int | None = None) -> Array:
        """A reader's output as rows [rows, out], the same ones that `rows` takes (not for deconv)."""
        return _spaced(self._flat(y), limit)

    def _flat(self, x: Array) -> Array:
        """Channels last, everything else rows."""
        return (
            x.reshape(-1, x.shape[-1])
            if self.reader.kind == "matmul"
            else np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
        )


def _spaced(rows: Array, limit: int | None) -> Array:
    return rows if limit is None else rows[:: max(1, -(-len(rows) // limit))]


def _unfold(x: Array, window: tuple[tuple[int, ...], ...], banks: int, limit: int | None) -> list[Array]:
    kernel, strides, dilations, pads = window
    n = len(kernel)
    x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + n]) for i in range(n))])
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, spans, tuple(range(2, 2 + n)))
    step = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    view = view[step + tuple(slice(None, None, d) for d in dilations)]  # [N, C, *s, *k]
    view = np.moveaxis(view, 1, 1 + n)  # [N, *s, C, *k]
    places = view.shape[: 1 + n]
    # Rows are picked before they are copied out of the overlapping windows, which is where the memory would go.
    index = np.unravel_index(_spaced(np.arange(int(np.prod(places))), limit), places)
    flat = view[index].reshape(len(index[0]), banks, -1)
    return [np.ascontiguousarray(flat[:, i], np.float32) for i in range(banks)]


def reader_of(node: ir.Node) -> Reader | None:
    """A linear node of any model as a reader of its input: Conv, MatMul or Gemm with a constant weight."""
    w = node.inputs[1] if len(node.inputs) > 1 else None
    if node.domain or w is None or not w.is_initializer() or node.inputs[0] is None:
        return None
    rank = len(w.const_value.shape)
    x, y = node.inputs[0].name, node.outputs[0].name
    if node.op_type == "Conv":
        return Reader(node.name, "conv", x, w.name, y, 1, 0)
    if rank != 2 or node.op_type not in ("MatMul", "Gemm"):
        return None
    if node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].value:
        return None
    turned = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].value
    return Reader(node.name, "matmul", x, w.name, y, 1 if turned else 0, 0 if turned else 1)


def view_of(reader: Reader, node: ir.Node, weight: ir.Value) -> View | None:
    """The matrix view of a reader; None where it has none (automatic padding depends on the feed)."""
    shape = tuple(int(n) for n in weight.const_value.shape)
    if reader.kind == "matmul":
        return View(reader, 1, 1, None)
    if reader.kind == "deconv":
        return View(reader, 1, 1, None)
    auto = node.attributes.get("auto_pad")
    if auto is not None and auto.value not in ("NOTSET", "VALID"):
        return None
    kernel = shape[2:]
    n = len(kernel)

    def ints(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        a = node.attributes.get(name)
        return tuple(a.value) if a is not None else default

    window = (kernel, ints("strides", (1,) * n), ints("dilations", (1,) * n), ints("pads", (0,) * 2 * n))
    group = node.attributes.get("group")
    return View(reader, int(np.prod(kernel)), group.value if group is not None else 1, window)


@dataclass(frozen=True)
class BiasPlace:
    """Where a reader's bias lives: operand `operand` of `node`; node None means that none exists yet."""

    node: ir.Node | None
    operand: int


def find_bias(node: ir.Node, n_outputs: int) -> BiasPlace:
    """The constant added to each output channel of a reader: its own bias operand, or that of an Add behind it."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and bias.is_initializer() and bias.const_value.size == n_outputs:
            return BiasPlace(node, 2)
        return BiasPlace(None, 2)
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        other = 1 - uses[0].idx
        value = uses[0].node.inputs[other]
        shape = tuple(value.const_value.shape) if value is not None and value.is_initializer() else None
        if shape and int(shape[-1]) == n_outputs == value.const_value.size:
            return BiasPlace(uses[0].node, other)
    return BiasPlace(None, 2)


def bias_of(node: ir.Node, n_outputs: int) -> Array | None:
    place = find_bias(node, n_outputs)
    return None if place.node is None else place.node.inputs[place.operand].const_value.numpy().reshape(-1)


def put_weight(node: ir.Node, operand: int, weight: Array) -> None:
    """Give the node its own weight."""
    value = node.inputs[operand]
    weight = weight.astype(value.const_value.dtype.numpy())
    if len(value.uses()) == 1 and not value.is_graph_output():
        set_constant(value, weight)
    else:
        node.replace_input_with(operand, new_constant(node.graph, f"{value.name}.{node.name}", weight))


def put_bias(node: ir.Node, bias: Array, dtype: ir.DataType) -> None:
    """Set, or create, the bias of a reader: bias [out]."""
    place = find_bias(node, len(bias))
    bias = bias.astype(dtype.numpy())
    if place.node is not None:
        value = place.node.inputs[place.operand]
        put_weight(place.node, place.operand, bias.reshape(tuple(value.const_value.shape)))
        return
    if node.op_type in ("Conv", "ConvTranspose") or (node.op_type == "Gemm" and _no_bias(node)):
        node.resize_inputs(3)
        node.replace_input_with(2, new_constant(node.graph, f"{node.name}.bias", bias))
        return
    y = node.outputs[0]
    add = ir.node("Add", [y, new_constant(node.graph, f"{node.name}.bias", bias)], name=f"{node.name}.shift")
    out = add.outputs[0]
    out.name, out.shape, out.type = f"{y.name}.shifted", y.shape, y.type
    for use in list(y.uses()):
        if use.node is not add:
            use.node.replace_input_with(use.idx, out)
    for i, value in enumerate(node.graph.outputs):
        if value is y:  # the graph's output keeps its name
            node.graph.outputs[i] = out
            name = y.name
            y.name = f"{name}.unshifted"
            out.name = name
    node.graph.insert_after(node, add)


def _no_bias(node: ir.Node) -> bool:
    return len(node.inputs) < 3 or node.inputs[2] is None
