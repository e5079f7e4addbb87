"""What one kernel has to compute and to move, whatever runs it: the products, the operations besides, the bytes.

Read off an operator and the shapes of what it takes and gives. Knows operators and nothing of devices or times; an
operator that is not listed is one operation for each number that it reads or writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["matrix", "vector", "view"]


@dataclass(frozen=True)
class Tensor:
    """bits: of one number; constant: known before the model runs; floating: whether it is a floating-point number."""

    shape: tuple[int, ...]
    bits: int = 32
    constant: bool = False
    floating: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        return self.size * self.bits / 8

    def at(self, bits: int) -> Tensor:
        """The same where single-precision numbers have so many bits; what is no such number stays as it is."""
        return replace(self, bits=bits) if self.floating and self.bits == 32 else self


@dataclass(frozen=True)
class Work:
    """batch products of [m, k] by [k, n], `steps` times one after the other; and `operations` besides, in floating
    point.

    op: what a table of measured times keeps it under: the operator, with the kind of algorithm it asks for. inputs,
    outputs, weights: bytes. precision: of the products.
    """

    op: str
    kind: Kind
    inputs: float = 0.0
    outputs: float = 0.0
    weights: float = 0.0
    batch: int = 1
    m: int = 0
    n: int = 0
    k: int = 0
    operations: float = 0.0
    precision: str = "fp32"
    steps: int = field(default=1)

    @property
    def products(self) -> float:
        """Operations of the products; a multiply-add is two."""
        return 2.0 * self.batch * self.m * self.n * self.k * self.steps

    @property
    def bytes(self) -> float:
        return self.inputs + self.outputs + self.weights

    @property
    def features(self) -> tuple[float, ...]:
        """Where this work lies among others of the same `op`: base-2 logarithms of its sizes."""
        if self.kind == "matrix":
            sizes: tuple[float, ...] = (self.batch * self.steps, self.m, self.n, self.k)
        else:
            sizes = (self.inputs + self.outputs, self.operations / max(self.inputs + self.outputs, 1))
        return tuple(math.log2(max(size, 1e-3)) for size in sizes)



CONTROL = ("If", "Loop", "Scan")
"""Operators with bodies: what runs inside is not taken apart."""
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Dropout", "Constant"})
"""Operators that move nothing where the runtime lets input and output share memory."""
OPERATIONS: Mapping[str, float] = {
    "Exp": 12, "Log": 15, "Sigmoid": 16, "Tanh": 20, "Erf": 25, "Gelu": 30, "FastGelu": 24, "QuickGelu": 20,
    "BiasGelu": 31, "Softmax": 16, "LogSoftmax": 18, "LayerNormalization": 8, "SimplifiedLayerNormalization": 6,
    "SkipLayerNormalization": 10, "SkipSimplifiedLayerNormalization": 8, "RMSNormalization": 6,
    "InstanceNormalization": 8, "GroupNormalization": 8, "GroupNorm": 8, "BatchNormalization": 2,
    "LpNormalization": 4, "Pow": 20, "Sin": 20, "Cos": 20, "Div": 4, "Sqrt": 6, "Reciprocal": 4, "HardSigmoid": 3,
    "HardSwish": 4, "Swish": 18, "Silu": 18, "Elu": 14, "Selu": 15, "Celu": 15, "Softplus": 25, "Mish": 40,
    "LeakyRelu": 2, "PRelu": 2, "Clip": 2, "ThresholdedRelu": 2, "TopK": 30, "NonMaxSuppression": 50,
    "QuantizeLinear": 4, "DequantizeLinear": 2, "DynamicQuantizeLinear": 6, "Resize": 8, "GridSample": 20,
    "RotaryEmbedding": 4,
}  # fmt: skip
"""Floating-point operations for each number of the larger side; one where an operator is not listed. Of functions of
their own series: terms of the polynomials by which vector libraries compute them."""
_LOOKUPS = ("Gather", "GatherElements", "GatherND", "Slice")
_POOLS = ("MaxPool", "AveragePool", "LpPool")
_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul",
             "QGemm", "DynamicQuantizeMatMul", "MatMulNBits", "TransposeMatMul")  # fmt: skip
_CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcConv", "NhwcFusedConv", "ConvTranspose")
_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention")
_RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
MATRIX = (*_PRODUCTS, *_CONVOLUTIONS, *_ATTENTION, *_RECURRENT)
"""Operators that are products of matrices, all of them or in the main."""
_ACTIVATIONS = ("activation", "fused_activation")


def work_of(
    op: str, attributes: Mapping[str, Any], inputs: list[Tensor | None], outputs: list[Tensor | None]
) -> Work:
    """The work of one operator. inputs, outputs: None where an optional one is left out."""
    there = [t for t in inputs if t is not None]
    made = [t for t in outputs if t is not None]
    moved = {
        "inputs": sum(t.bytes for t in there if not t.constant), "outputs": sum(t.bytes for t in made),
        "weights": sum(t.bytes for t in there if t.constant),
    }  # fmt: skip
    if op in VIEWS:
        return Work(op, "view", **moved)
    if op in _LOOKUPS and made and there:  # only the rows that are asked for are read
        read = made[0].size * there[0].bits / 8 + sum(t.bytes for t in there[1:])
        return Work(op, "vector", inputs=read, outputs=moved["outputs"], operations=made[0].size)
    if not made:
        return Work(op, "vector", **moved)
    activation = sum(OPERATIONS.get(str(attributes[a]), 1.0) for a in _ACTIVATIONS if attributes.get(a))
    extra = made[0].size * activation
    if op in _PRODUCTS and len(there) >= 2:
        return _product(op, attributes, inputs, made[0], moved, extra)
    if op in _CONVOLUTIONS and len(there) >= 2:
        return _convolution(op, inputs, made[0], moved, extra, attributes)
    if op in _ATTENTION:
        return _attention(op, attributes, inputs, made[0], moved)
    if op in _RECURRENT and len(there) >= 3:
        return _recurrent(op, there, moved)
    larger = max(sum(t.size for t in made), max((t.size for t in there if not t.constant), default=0))
    each = math.prod(attributes.get("kernel_shape") or (1,)) if op in _POOLS else OPERATIONS.get(op, 1.0)
    return Work(op, "vector", operations=larger * each + extra, **moved)


def _precision(*factors: Tensor) -> str:
    """8 bits where both factors have them; else floating point, whatever the weights are stored in."""
    if all(t.bits == 8 for t in factors):
        return "int8"
    return "fp16" if factors[0].bits == 16 else "fp32"


def _product(op: str, attributes: Mapping[str, Any], inputs: list, y: Tensor, moved: dict, extra: float) -> Work:
    a = inputs[0]
    b = inputs[3] if op == "QLinearMatMul" or (op == "QGemm" and len(inputs) > 3) else inputs[1]
    n = y.shape[-1] if y.shape else 1
    if op == "MatMulNBits":
        k, bits = int(attributes["K"]), int(attributes.get("bits", 4))
        return Work(f"{op} {bits} bits", "matrix", batch=1, m=max(y.size // n, 1), n=n, k=k, operations=extra, **moved)
    turned = attributes.get("transA") and a.shape
    k = a.shape[-2 if turned and len(a.shape) > 1 else -1] if a.shape else 1
    rows = y.size // max(n, 1)
    if len(b.shape) <= 2:
        batch, m = 1, rows
    else:
        m = y.shape[-2] if len(y.shape) > 1 else 1
        batch = rows // max(m, 1)
    kind = op if b.constant else f"{op} of activations"
    return Work(kind, "matrix", batch=max(batch, 1), m=max(m, 1), n=n, k=k, operations=extra,
                precision=_precision(a, b) if op != "DynamicQuantizeMatMul" else "int8", **moved)


def _convolution(op: str, inputs: list, y: Tensor, moved: dict, extra: float, attributes: Mapping[str, Any]) -> Work:
    x, w = inputs[0], inputs[3] if op == "QLinearConv" else inputs[1]
    groups = int(attributes.get("group", 1))
    taps = math.prod(w.shape[2:])
    precision = _precision(x, w)
    axis = -1 if attributes.get("channels_last") or op.startswith("Nhwc") else 1
    if op == "ConvTranspose":  # every input is multiplied by the taps of all outputs
        m, n, k = x.size // max(x.shape[axis], 1), w.shape[1] * taps, w.shape[0] // groups
    else:
        m, n, k = y.size // max(y.shape[axis], 1), w.shape[0] // groups, w.shape[1] * taps
    if w.shape[1] == 1 and groups > 1 and op != "ConvTranspose":
        return Work(f"{op} depthwise", "vector", operations=2.0 * y.size * taps + extra, precision=precision, **moved)
    algorithm = "grouped" if groups > 1 else "1x1" if taps == 1 else "k x k"
    if algorithm != "grouped" and x.shape[axis] < 8:
        algorithm = "few channels"
    return Work(f"{op} {algorithm}", "matrix", batch=groups, m=max(m, 1), n=max(n, 1), k=max(k, 1), operations=extra,
                precision=precision, **moved)  # fmt: skip


def _attention(op: str, attributes: Mapping[str, Any], inputs: list, y: Tensor, moved: dict) -> Work:
    """Both products of an attention, softmax between; the projection of inputs too where the operator does it."""
    heads = int(attributes.get("num_heads") or attributes.get("q_num_heads") or 1)
    x, weight = inputs[0], inputs[1] if len(inputs) > 1 else None
    width = y.shape[-1] * (y.shape[1] if len(y.shape) == 4 else 1) if y.shape else 1
    queries = y.shape[-2] if len(y.shape) > 1 else 1
    batch = max(y.size // max(queries * width, 1), 1)
    keys = queries
    if weight is not None and not weight.constant and len(weight.shape) in (3, 4):
        keys = weight.shape[-2]
    head = max(width // heads, 1)
    scores = batch * heads * queries * keys
    projection = 0.0
    if op in ("Attention", "QAttention") and weight is not None and weight.constant:
        projection = 2.0 * batch * queries * weight.size
    product = 4.0 * scores * head + projection
    # as one product of the same number of operations, whose rows are those of the queries
    k = max(round(product / (2.0 * batch * heads * queries * keys)), 1)
    return Work(op, "matrix", batch=batch * heads, m=queries, n=keys, k=k, operations=scores * OPERATIONS["Softmax"],
                precision=_precision(x), **moved)  # fmt: skip


def _recurrent(op: str, there: list[Tensor], moved: dict) -> Work:
    """One product of [batch, inputs + state] by the gates, for every step of every direction."""
    x, w, r = there[:3]
    steps, batch = x.shape[0], x.shape[1]
    directions, gates, features = w.shape[0], w.shape[1], w.shape[2]
    state = r.shape[-1]
    return Work(op, "matrix", batch=directions, m=batch, n=gates, k=features + state, steps=max(steps, 1),
                operations=steps * batch * gates * directions * OPERATIONS["Sigmoid"], **moved)  # fmt: skip
