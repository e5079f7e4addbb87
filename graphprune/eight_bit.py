"""Which nodes take and give 8-bit values, once some were chosen.

Owns what a linear node's weight is as a matrix product takes it, how far a range is clipped by what is behind, and what
a choice of nodes means for those between and behind them. Nothing is changed here: that is `qdq`'s affair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphprune.target import IntegerKernels
from graphprune.views import find_bias

MOST_BIAS = 2**30
"""Of an 8-bit node, in steps: with what the inputs add it must stay below 2^31."""


@dataclass(frozen=True)
class Weight:
    """A linear node's weight [out, in] and bias [out] as a matrix product takes them, whatever its attributes say."""

    matrix: np.ndarray
    bias: np.ndarray | None


def weight_of(node: ir.Node) -> Weight | None:
    """The constant float32 weight of a Conv, Gemm or MatMul; None where it has none of two axes (of more for Conv), or
    a bias that is no constant of one number per output."""
    w = node.inputs[1] if len(node.inputs) > 1 else None
    x = node.inputs[0]
    if w is None or x is None or not w.is_initializer() or x.is_initializer() or node.domain:
        return None
    array = w.const_value.numpy()
    if array.dtype != np.float32:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not bias.is_initializer():
        return None
    b = None if bias is None else bias.const_value.numpy()
    if b is not None and b.size > 1 and b.shape[-1] != b.size:
        return None  # one number per row
    b = None if b is None else b.reshape(-1)
    if node.op_type == "Conv":
        return Weight(array.reshape(len(array), -1), b)
    if array.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return Weight(array.T, None)
    if node.op_type != "Gemm" or _number(node, "transA", 0):
        return None
    matrix = np.float32(_number(node, "alpha", 1.0)) * (array if _number(node, "transB", 0) else array.T)
    if b is not None and b.size not in (1, len(matrix)):
        return None
    if b is not None:
        b = np.float32(_number(node, "beta", 1.0)) * np.broadcast_to(b, len(matrix))
    return Weight(matrix, b)


def output_axis(node: ir.Node) -> int:
    """The axis of a linear node's own weight that its outputs lie on."""
    turned = node.op_type == "Gemm" and _number(node, "transB", 0)
    return 0 if node.op_type == "Conv" or turned else 1


def _number(node: ir.Node, name: str, default: float) -> float:
    a = node.attributes.get(name)
    return default if a is None else a.value


@dataclass
class Static:
    """Nodes of a model that take, and as far as they can give, 8-bit values."""

    model: ir.Model
    nodes: set[ir.Node]
    outputs: dict[ir.Node, ir.Value] = field(default_factory=dict)
    """Node -> the value that it gives as 8-bit numbers, behind its activation if it has one."""
    quantised: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Value -> the one whose range it shares: itself, unless a carrier only moved it."""
    guarded: list[ir.Node] = field(default_factory=list)
    """Nodes left in floating point whose weights a runtime would round, as they take and give 8-bit values."""

    @classmethod
    def of(
        cls, model: ir.Model, linear: Iterable[ir.Node], followers: Iterable[ir.Node], kernels: IntegerKernels,
        others: Iterable[ir.Node] = (),
    ) -> Static:  # fmt: skip
        """Settle what the choice of some linear nodes and followers means for the values between them. others: nodes
        that are written in another way."""
        found, others = cls(model, set(linear) | set(followers)), set(others)
        if kernels.closed:
            giving = [n for n in model.graph if n.op_type == "Conv" or n.op_type in kernels.followers]
            found.outputs = {n: _behind_activation(n) for n in giving if n in found.nodes}
            found._carry(kernels)
            found.guarded = [n for n in model.graph if n not in others and found._is_between(n, kernels)]
        for node in model.graph:
            if node in found.nodes:
                for v in _data(node, kernels):
                    found.quantised.setdefault(v, v)
                if node in found.outputs:
                    v = found.outputs[node]
                    if node.op_type in kernels.carriers:
                        found.quantised[v] = found.quantised[node.inputs[0]]
                    else:
                        found.quantised.setdefault(v, v)
        return found

    def _is_between(self, node: ir.Node, kernels: IntegerKernels) -> bool:
        """A convolution, transposed or not, or a Gemm that was not chosen but takes and gives 8-bit values, if only
        through carriers: runtimes then round its weight, asked or not."""
        able = weight_of(node) is not None or (node.op_type == "ConvTranspose" and node.inputs[1].is_initializer())
        if not able or node in self.nodes:
            return False
        if node.op_type == "MatMul" and not _becomes_gemm(node):
            return False
        x, made = node.inputs[0], {id(v) for v in self.outputs.values()}
        while id(x) not in made and x.producer() is not None and _is_carrier(x.producer(), kernels):
            x = x.producer().inputs[0]
        return id(x) in made and self._is_taken(_behind_activation(bias_behind(node) or node), kernels)

    def _is_taken(self, value: ir.Value, kernels: IntegerKernels) -> bool:
        """Whether the value is wanted in 8 bits and no other form."""
        uses = list(value.uses())
        if value.is_graph_output() or not uses:
            return False
        if len(uses) == 1 and _is_carrier(uses[0].node, kernels):
            return self._is_taken(uses[0].node.outputs[0], kernels)
        return all(use.node in self.nodes for use in uses)

    def _carry(self, kernels: IntegerKernels) -> None:
        """Carriers between a node that gives 8-bit values and one that takes them."""
        made = {id(v) for n, v in self.outputs.items() if n.op_type not in kernels.carriers}
        self.nodes -= {n for n in self.nodes if n.op_type in kernels.carriers}
        self.outputs = {n: v for n, v in self.outputs.items() if n in self.nodes}
        carried: list[ir.Node] = []
        for node in self.model.graph:
            if _is_carrier(node, kernels) and node not in self.nodes and id(node.inputs[0]) in made:
                carried.append(node)
                made.add(id(node.outputs[0]))
        for node in reversed(carried):
            if any(use.node in self.nodes for use in node.outputs[0].uses()):
                self.nodes.add(node)
        for node in carried:
            if node in self.nodes:
                self.outputs[node] = node.outputs[0]


def _data(node: ir.Node, kernels: IntegerKernels) -> list[ir.Value]:
    """The inputs of a node that are activations."""
    if node.op_type in kernels.linear or node.op_type in kernels.carriers:
        return [node.inputs[0]]
    return [v for v in node.inputs if v is not None and not v.is_initializer()]


def _is_carrier(node: ir.Node, kernels: IntegerKernels) -> bool:
    return node.op_type in kernels.carriers and not node.domain and len(node.outputs) == 1


def is_matrix_product(node: ir.Node) -> bool:
    """Whether both factors have two axes."""
    shapes = [v.shape for v in (node.inputs[0], node.outputs[0]) if v.shape is not None]
    return bool(shapes) and shapes[0].rank() == 2


def bias_behind(node: ir.Node) -> ir.Node | None:
    """The Add behind a MatMul that does nothing else than add a constant to each output."""
    if node.op_type != "MatMul":
        return None
    place, y = find_bias(node, len(weight_of(node).matrix)), node.outputs[0]
    if place.node is None:
        return None
    rank = len(place.node.inputs[place.operand].const_value.shape)
    return place.node if rank <= (1 if y.shape is None else y.shape.rank()) else None


def _becomes_gemm(node: ir.Node) -> bool:
    """Whether ONNX Runtime makes a Gemm of a MatMul and what is added behind it, before it looks for 8 bits: of two
    matrices it does, of more axes, with reshapes around it, where all sizes are known."""
    x = node.inputs[0].shape
    return is_matrix_product(node) or (bias_behind(node) is not None and x is not None and x.is_static())


def _behind_activation(node: ir.Node) -> ir.Value:
    """The node's output, or that of the only node behind it where this clips, as rounding to a range does anyway."""
    y = node.outputs[0]
    uses = list(y.uses())
    if len(uses) == 1 and not y.is_graph_output() and uses[0].idx == 0:
        act = uses[0].node
        limits = limits_of(act.outputs[0])
        if limits is not None and limits[0] <= 0 <= limits[1]:  # zero is on every grid
            return act.outputs[0]
    return y


def limits_of(value: ir.Value) -> tuple[float, float] | None:
    """What the Relu or Clip that makes a value clips it to; None where none does, or where the limits are computed."""
    act = value.producer()
    if act is None or act.domain or act.op_type not in ("Relu", "Clip"):
        return None
    if act.op_type == "Relu":
        return 0.0, math.inf
    limits = [_number(act, "min", -math.inf), _number(act, "max", math.inf)]
    for i, v in enumerate(act.inputs[1:]):
        if v is not None:
            if not v.is_initializer():
                return None
            limits[i] = float(v.const_value.numpy())
    return limits[0], limits[1]
