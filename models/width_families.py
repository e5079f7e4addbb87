"""Synthetic networks that can be built at any widths: what a pruned model of each kind looks like to a runtime.

A family is the widths it has, the levels they may take, a builder and a feed. Weights are random: only time and shape
matter here. Owns no real model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

Build = Callable[[Mapping[str, int]], onnx.ModelProto | ir.Model | bytes]


@dataclass(frozen=True)
class Family:
    """sizes: group -> full width; levels: group -> widths allowed, ascending; build: widths -> model."""

    sizes: dict[str, int]
    levels: dict[str, tuple[int, ...]]
    build: Build
    feed: dict[str, np.ndarray]


class _Graph:
    """A graph under construction: every method adds nodes and returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def random(self, *shape: int) -> str:
        name = f"w_{len(self.weights)}"
        fan_in = int(np.prod(shape[1:])) or 1
        self.weights[name] = (self._rng.standard_normal(shape, dtype=np.float32) / np.sqrt(fan_in)).astype(np.float32)
        return name

    def constant(self, values: object, dtype: str = "float32") -> str:
        name = f"w_{len(self.weights)}"
        self.weights[name] = np.asarray(values, dtype=dtype)
        return name

    def linear(self, x: str, n_in: int, n_out: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.random(n_in, n_out)), self.random(n_out))

    def conv(self, x: str, n_in: int, n_out: int, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        weight = self.random(n_out, n_in // group, kernel, kernel)
        return self.op("Conv", x, weight, self.random(n_out), kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4,
                       strides=[stride] * 2, group=group)  # fmt: skip

    def hard_swish(self, x: str) -> str:
        """As old exporters spell it out."""
        clipped = self.op("Clip", self.op("Add", x, self.constant(3.0)), self.constant(0.0), self.constant(6.0))
        return self.op("Div", self.op("Mul", x, clipped), self.constant(6.0))

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", self.op("Div", x, self.constant(np.sqrt(2.0))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.constant(1.0))), self.constant(0.5))

    def squeeze_excite(self, x: str, n: int, n_inner: int) -> str:
        pooled = self.op("GlobalAveragePool", x)
        inner = self.op("Relu", self.conv(pooled, n, n_inner, kernel=1))
        return self.op("Mul", x, self.op("HardSigmoid", self.conv(inner, n_inner, n, kernel=1)))

    def norm(self, x: str, n: int) -> str:
        scale, shift = self.constant(np.ones(n)), self.constant(np.zeros(n))
        return self.op("LayerNormalization", x, scale, shift, axis=-1)

    def attention(self, x: str, n: int, heads: int, head_dim: int) -> str:
        split = self.constant([0, 0, heads, head_dim], "int64")

        def projected(order: list[int]) -> str:
            flat = self.linear(x, n, heads * head_dim)
            return self.op("Transpose", self.op("Reshape", flat, split), perm=order)

        q, k, v = projected([0, 2, 1, 3]), projected([0, 2, 3, 1]), projected([0, 2, 1, 3])
        scores = self.op("Div", self.op("MatMul", q, k), self.constant(np.sqrt(head_dim)))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        merged = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]),
                         self.constant([0, 0, heads * head_dim], "int64"))  # fmt: skip
        return self.linear(merged, heads * head_dim, n)

    def classifier(self, x: str, n: int, classes: int) -> str:
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.op("Gemm", flat, self.random(n, classes), self.random(classes))

    def bytes(self, input_shape: tuple[int, ...], output: str) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "family",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return model.SerializeToString()


def _levels(size: int, step: int) -> tuple[int, ...]:
    return tuple(range(step, size + 1, step))


def _family(sizes: dict[str, int], levels: dict[str, tuple[int, ...]], build: Build, shape: tuple[int, ...]) -> Family:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return Family(sizes, levels, build, {"x": x})


def encoder(
    layers: int = 6, n: int = 384, heads: int = 12, ffn: int = 1536, tokens: int = 128, step: int = 64
) -> Family:
    """A BERT-like encoder; widths: the heads and the FFN columns of each layer. The defaults have MiniLM-L6's sizes."""

    def build(counts: Mapping[str, int]) -> bytes:
        g = _Graph()
        x = "x"
        for i in range(layers):
            x = g.norm(g.op("Add", x, g.attention(x, n, counts[f"heads{i}"], n // heads)), n)
            inner = g.gelu(g.linear(x, n, counts[f"ffn{i}"]))
            x = g.norm(g.op("Add", x, g.linear(inner, counts[f"ffn{i}"], n)), n)
        return g.bytes((1, tokens, n), x)

    sizes = {f"heads{i}": heads for i in range(layers)} | {f"ffn{i}": ffn for i in range(layers)}
    levels = {name: _levels(size, 1 if size == heads else step) for name, size in sizes.items()}
    return _family(sizes, levels, build, (1, tokens, n))


def residual(stages: tuple[int, ...] = (32, 64, 128), blocks: int = 2, side: int = 64, step: int = 8) -> Family:
    """A ResNet-like CNN; widths: the residual stream of each stage and the inside of each block."""

    def build(counts: Mapping[str, int]) -> bytes:
        g = _Graph()
        x, n_in = "x", 3
        for s in range(len(stages)):
            n = counts[f"stream{s}"]
            x = g.op("Relu", g.conv(x, n_in, n, stride=1 if s == 0 else 2))
            for b in range(blocks):
                inner = counts[f"inner{s}.{b}"]
                y = g.conv(g.op("Relu", g.conv(x, n, inner)), inner, n)
                x = g.op("Relu", g.op("Add", x, y))
            n_in = n
        return g.bytes((1, 3, side, side), g.classifier(x, n_in, 10))

    sizes = {f"stream{s}": n for s, n in enumerate(stages)}
    sizes |= {f"inner{s}.{b}": n for s, n in enumerate(stages) for b in range(blocks)}
    return _family(sizes, {g: _levels(n, step) for g, n in sizes.items()}, build, (1, 3, side, side))


def mobile(widths: tuple[int, ...] = (32, 64, 96, 128), side: int = 96, step: int = 8) -> Family:
    """A MobileNet-like CNN: pointwise, depthwise, squeeze-and-excite, spelt-out hard-swish, one residual per stage."""

    def build(counts: Mapping[str, int]) -> bytes:
        g = _Graph()
        x, n_in = g.hard_swish(g.conv("x", 3, counts["stem"], stride=2)), counts["stem"]
        for s in range(len(widths)):
            n, wide, gate = counts[f"stream{s}"], counts[f"wide{s}"], counts[f"gate{s}"]
            for residual_block in (False, True):
                y = g.hard_swish(g.conv(x, n_in, wide, kernel=1))
                stride = 1 if residual_block or s == 0 else 2
                y = g.hard_swish(g.conv(y, wide, wide, kernel=5, stride=stride, group=wide))
                y = g.conv(g.squeeze_excite(y, wide, gate), wide, n, kernel=1)
                x, n_in = (g.op("Add", x, y) if residual_block else y), n
        return g.bytes((1, 3, side, side), g.classifier(x, n_in, 10))

    sizes = {"stem": 16}
    for s, n in enumerate(widths):
        sizes |= {f"stream{s}": n, f"wide{s}": 4 * n, f"gate{s}": n}
    return _family(sizes, {g: _levels(n, step) for g, n in sizes.items()}, build, (1, 3, side, side))


def dense_concat(growth: int = 32, layers: int = 5, side: int = 48, step: int = 8) -> Family:
    """A DenseNet-like CNN: every convolution reads the concatenation of all before it, so it has many groups."""

    def build(counts: Mapping[str, int]) -> bytes:
        g = _Graph()
        features, n = [g.op("Relu", g.conv("x", 3, counts["stem"]))], counts["stem"]
        for i in range(layers):
            joined = g.op("Concat", *features, axis=1) if len(features) > 1 else features[0]
            features.append(g.op("Relu", g.conv(joined, n, counts[f"grow{i}"])))
            n += counts[f"grow{i}"]
        return g.bytes((1, 3, side, side), g.classifier(g.op("Concat", *features, axis=1), n, 10))

    sizes = {"stem": 2 * growth} | {f"grow{i}": growth for i in range(layers)}
    return _family(sizes, {g: _levels(n, step) for g, n in sizes.items()}, build, (1, 3, side, side))
