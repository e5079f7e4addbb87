"""Which nodes of a model a GPU engine runs as one kernel, as TensorRT's documentation describes its fusions.

A product takes in what follows it element by element (bias, activation, residual sum, rounding); element-wise nodes,
norms and softmax between products are one kernel; two products with a softmax between are one attention kernel; views
and what is known beforehand cost nothing. Knows graphs and `work`, nothing of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphprune.devices.work import VIEWS, Tensor, Work, work_of
from graphprune.target import Kernel

ELEMENTWISE = frozenset({
    "Abs", "Acos", "Add", "And", "Asin", "Atan", "BatchNormalization", "BitShift", "Cast", "CastLike", "Ceil", "Celu",
    "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min",
    "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where",
    "Xor",
})  # fmt: skip
ROWWISE = frozenset({
    "LayerNormalization", "LogSoftmax", "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax",
})  # fmt: skip
"""Operators that read whole rows; a kernel can do them with what is computed element by element around them."""
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ROUNDS = "QuantizeLinear"
PASSED = VIEWS | {"DequantizeLinear"}
"""Operators that are no kernels: views, and what those who read a value do when they read it."""
_SHAPE_SIZE = 64
"""Integers up to so many are shapes, computed before the kernels run."""
_MOST_HEAD = 256
_ATTENTION = "attention"
_AS = {"Gemm": "MatMul"}
"""Operator -> the one whose kernels a GPU runs for it."""


@dataclass
class Fused:
    """Nodes that run as one kernel. name: of the product among them, or of the first."""

    name: str
    nodes: list[ir.Node] = field(default_factory=list)
    product: ir.Node | None = None
    attention: bool = False

    @property
    def label(self) -> str:
        if self.attention:
            return _ATTENTION
        if self.product is not None:
            return self.product.op_type
        rows = [n.op_type for n in self.nodes if n.op_type in ROWWISE]
        return rows[-1] if rows else self.nodes[-1].op_type


def fuse(graph: ir.Graph, tensors: Mapping[str, Tensor]) -> list[tuple[Kernel, Work]]:
    """The kernels of a graph, in the order they run, without times, each with its work. tensors: of every value by
    name (see `shapes`)."""
    return _Fusion(graph, tensors).kernels()


class _Fusion:
    def __init__(self, graph: ir.Graph, tensors: Mapping[str, Tensor]) -> None:
        self.graph, self.tensors = graph, tensors
        self.known = {v.name for v in graph.initializers.values()}
        self.kernel_of: dict[int, Fused] = {}
        """Node (id) -> its kernel."""
        self.order: list[Fused] = []

    def kernels(self) -> list[tuple[Kernel, Work]]:
        for node in self.graph:
            if self._costs_nothing(node):
                continue
            home = self._home(node)
            if home is None:
                home = Fused(node.name)
                self.order.append(home)
            home.nodes.append(node)
            self.kernel_of[id(node)] = home
            if node.op_type in PRODUCTS and not node.domain and home.product is None:
                home.product, home.name = node, node.name
        self._attentions()
        return [(self._kernel(k), self._work(k)) for k in self.order]

    # ------------------------------------------------------------------------------------------- what joins what

    def _costs_nothing(self, node: ir.Node) -> bool:
        """Views, what is known beforehand, and sums over shapes."""
        operands = [v for v in node.inputs if v is not None]
        bodies = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        if bodies:
            return False  # what is inside may read anything
        if node.op_type in ("Shape", "Size", "Constant") or all(v.name in self.known for v in operands):
            self.known |= {y.name for y in node.outputs}
            return True
        if node.op_type in PASSED:
            return True
        made = [self.tensors.get(y.name) for y in node.outputs if y.name]
        small = all(t is not None and t.size <= _SHAPE_SIZE for t in made)
        return small and all(y.dtype in (ir.DataType.INT64, ir.DataType.INT32) for y in node.outputs if y.name)

    def _home(self, node: ir.Node) -> Fused | None:
        """The kernel that a node is computed in, of those there are."""
        joins = node.op_type in ELEMENTWISE or node.op_type == ROUNDS or self._is_rowwise(node)
        if node.domain or not joins:
            return None
        makers = [k for v in node.inputs if (k := self._maker(v)) is not None]
        for kernel in sorted(set(map(id, makers)), key=lambda i: -self._place(i)):
            home = next(k for k in makers if id(k) == kernel)
            if self._takes(home, node):
                return home
        return None

    def _place(self, kernel: int) -> int:
        return next(i for i, k in enumerate(self.order) if id(k) == kernel)

    def _maker(self, value: ir.Value | None) -> Fused | None:
        """The kernel that computes a value, through what is none."""
        while value is not None and (node := value.producer()) is not None:
            if id(node) in self.kernel_of:
                return self.kernel_of[id(node)]
            if node.op_type not in PASSED or not node.inputs:
                return None
            value = node.inputs[0]
        return None

    def _is_rowwise(self, node: ir.Node) -> bool:
        if node.op_type not in ROWWISE:
            return False
        x = self.tensors.get(node.inputs[0].name)
        if x is None:
            return False
        rank = len(x.shape)
        axes = node.attributes.get("axes") or node.attributes.get("axis")
        if axes is None and len(node.inputs) > 1 and node.op_type.startswith("Reduce"):
            constant = node.inputs[1].const_value if node.inputs[1] is not None else None
            found = [] if constant is None else [int(a) for a in constant.numpy().reshape(-1)]
        else:
            found = [-1] if axes is None else list(np.atleast_1d(axes.value))
        return rank > 0 and bool(found) and {a % rank for a in found} == {rank - 1}

    def _takes(self, kernel: Fused, node: ir.Node) -> bool:
        """Whether a kernel can compute the node, too: nothing else that the node reads waits for the kernel; a product
        gives its result to nobody else; nothing but element-wise nodes follow a product, a row or a movement."""
        others = [k for v in node.inputs if (k := self._maker(v)) is not None and k is not kernel]
        if any(self._waits(other, kernel) for other in others):
            return False
        first = kernel.nodes[0]
        if kernel.product is not None:
            if node.op_type in ROWWISE or not self._same_size(kernel, node):
                return False
            return self._only_reader(kernel, node)
        movable = all(n.op_type in ELEMENTWISE or n.op_type == ROUNDS or n.op_type in ROWWISE for n in kernel.nodes)
        return movable and first.domain == "" and self._rows_agree(kernel, node)

    def _waits(self, kernel: Fused, other: Fused) -> bool:
        """Whether a kernel needs, if only through others, what another gives."""
        waiting, seen = [kernel], {id(kernel)}
        while waiting:
            for value in self._reads(waiting.pop()):
                maker = self._maker(value)
                if maker is other:
                    return True
                if maker is not None and id(maker) not in seen:
                    seen.add(id(maker))
                    waiting.append(maker)
        return False

    def _same_size(self, kernel: Fused, node: ir.Node) -> bool:
        """Whether the node works on what the product gives, element by element."""
        y, own = self.tensors.get(node.outputs[0].name), self.tensors.get(kernel.product.outputs[0].name)
        return y is not None and own is not None and y.size == own.size

    def _only_reader(self, kernel: Fused, node: ir.Node) -> bool:
        inside = {id(n) for n in kernel.nodes} | {id(node)}
        last = kernel.nodes[-1].outputs[0]
        return not last.is_graph_output() and all(id(use.node) in inside for use in last.uses())

    def _rows_agree(self, kernel: Fused, node: ir.Node) -> bool:
        """Rows stay rows: the sizes of the largest value before and after are the same, or one is its reduction."""
        sizes = [t.size for n in kernel.nodes for y in n.outputs if (t := self.tensors.get(y.name)) is not None]
        y = self.tensors.get(node.outputs[0].name)
        return y is not None and bool(sizes) and (y.size <= max(sizes) or node.op_type in ELEMENTWISE)

    def _attentions(self) -> None:
        """Two products of activations with a softmax, and nothing else but element-wise nodes, between."""
        for soft in [k for k in self.order if any(n.op_type == "Softmax" for n in k.nodes)]:
            before = [k for v in self._reads(soft) if (k := self._maker(v)) is not None]
            scores = [k for k in before if self._is_activation_product(k)]
            given = self._gives(soft)
            readers = {id(k): k for v in given for k in self._readers(v)}
            if len(scores) != 1 or len(readers) != 1 or len(given) != 1 or given[0].is_graph_output():
                continue
            (mixed,) = readers.values()
            q = self.tensors.get(scores[0].product.inputs[0].name)
            if not self._is_activation_product(mixed) or q is None or q.shape[-1] > _MOST_HEAD:
                continue
            if self._maker(mixed.product.inputs[0]) is not soft or not self._only_for(scores[0], soft):
                continue
            mixed.nodes = [*scores[0].nodes, *soft.nodes, *mixed.nodes]
            mixed.attention = True
            for kernel in (scores[0], soft):
                self.order.remove(kernel)
            for node in mixed.nodes:
                self.kernel_of[id(node)] = mixed

    def _only_for(self, kernel: Fused, other: Fused) -> bool:
        """Whether nobody but another kernel reads what one gives."""
        given = self._gives(kernel)
        return all(not v.is_graph_output() and all(k is other for k in self._readers(v)) for v in given)

    def _is_activation_product(self, kernel: Fused) -> bool:
        return (kernel.product is not None and kernel.product.op_type == "MatMul" and not kernel.attention
                and all(v.name not in self.known for v in kernel.product.inputs))  # fmt: skip

    # --------------------------------------------------------------------------------------------- what it costs

    def _reads(self, kernel: Fused) -> list[ir.Value]:
        """Values from outside, each once; views of what is made inside are inside."""
        read = (v for n in kernel.nodes for v in n.inputs if v is not None)
        return list({id(v): v for v in read if self._maker(v) is not kernel}.values())

    def _gives(self, kernel: Fused) -> list[ir.Value]:
        """Values that somebody else needs."""
        inside = {id(n) for n in kernel.nodes}
        return [y for n in kernel.nodes for y in n.outputs if self._is_wanted(y, inside)]

    def _is_wanted(self, value: ir.Value, inside: set[int]) -> bool:
        """Whether anybody outside reads a value, or a view of it."""
        if value.is_graph_output():
            return True
        return any(self._is_wanted(use.node.outputs[0], inside) if use.node.op_type in VIEWS and use.idx == 0
                   else id(use.node) not in inside for use in value.uses())  # fmt: skip

    def _readers(self, value: ir.Value) -> Iterable[Fused]:
        for use in value.uses():
            kernel = self.kernel_of.get(id(use.node))
            if kernel is not None:
                yield kernel
            elif use.node.op_type in PASSED and use.idx == 0:
                yield from self._readers(use.node.outputs[0])

    def _tensor(self, value: ir.Value | None) -> Tensor | None:
        """Of a value as a kernel reads it: what was rounded is read in few bits."""
        if value is None:
            return None
        made_by = value.producer()
        if made_by is not None and made_by.op_type == "DequantizeLinear":
            inner = self.tensors.get(made_by.inputs[0].name)
            return None if inner is None else replace(inner, constant=made_by.inputs[0].name in self.known)
        found = self.tensors.get(value.name)
        return None if found is None else replace(found, constant=value.name in self.known)

    def _kernel(self, fused: Fused) -> Kernel:
        shapes = [tuple(t.shape for v in values if (t := self._tensor(v)) is not None)
                  for values in (self._reads(fused), self._gives(fused))]  # fmt: skip
        return Kernel(fused.name, f"{fused.label}{self._bits(fused)}", 0.0, *shapes)

    def _bits(self, fused: Fused) -> str:
        """Part of the kind of a kernel: whether it takes 8-bit values, and whether it gives such."""
        taken = any(v.producer() is not None and v.producer().op_type == "DequantizeLinear" and v.name not in self.known
                    for v in self._reads(fused))  # fmt: skip
        given = any(n.op_type == ROUNDS for n in fused.nodes)
        return f"{' of int8' if taken else ''}{' to int8' if given else ''}"

    def _work(self, kernel: Fused) -> Work:
        reads = [t for v in self._reads(kernel) if (t := self._tensor(v)) is not None]
        gives = [t for v in self._gives(kernel) if (t := self.tensors.get(v.name)) is not None]
        moved = {
            "inputs": sum(t.bytes for t in reads if not t.constant), "outputs": sum(t.bytes for t in gives),
            "weights": sum(t.bytes for t in reads if t.constant),
        }  # fmt: skip
        single = {id(n): self._single(n) for n in kernel.nodes}
        operations = sum(w.operations for w in single.values())
        products = [w for w in single.values() if w.kind == "matrix"]
        if kernel.attention:
            scores = products[0]
            k = max(1, round(sum(w.products for w in products) / (2.0 * scores.batch * scores.m * scores.n)))
            return replace(scores, op=_ATTENTION, k=k, operations=operations, **moved)
        if kernel.product is not None:
            own = single[id(kernel.product)]
            return replace(own, op=_AS.get(own.op, own.op), operations=operations, **moved)
        return Work(kernel.label, "vector", operations=operations, **moved)

    def _single(self, node: ir.Node) -> Work:
        attributes = {name: a.value for name, a in node.attributes.items() if a.type != ir.AttributeType.GRAPH}
        return work_of(node.op_type, attributes, [self._tensor(v) for v in node.inputs],
                       [self.tensors.get(y.name) for y in node.outputs])  # fmt: skip
