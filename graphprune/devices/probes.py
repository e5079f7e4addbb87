"""Random small networks in the style of those that are deployed, to learn from what a runtime takes for their kernels.

Kernels are timed where they will be used, inside networks, with the runtime's fusions, layouts and caches. Widths,
sizes, activations and blocks are drawn; no network is like one that anybody has. Knows operators, measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Feed = dict[str, np.ndarray]
_OPSET = 17
_MOST_PRODUCTS = 6e9
"""Operations of one network: some hundredths of a second of one core."""


@dataclass(frozen=True)
class Probe:
    """A network and what to feed it. name: the same for the same seed and number."""

    name: str
    model: onnx.ModelProto
    feed: Feed


def probes(seed: int = 0) -> Iterator[Probe]:
    """Networks without end, every kind in turn."""
    for i in range(10**9):
        for name, draw in _KINDS.items():
            rng = np.random.default_rng([seed, i, len(name), ord(name[0])])
            net = _Net(rng)
            draw(net)
            yield Probe(f"{name} {i}", net.model(), net.feed)


class _Net:
    """A network that is being written down: nodes are added, names of values are handed around."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.feed: Feed = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.products = 0.0
        self.last = ""

    def model(self) -> onnx.ModelProto:
        y = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, self.shapes[self.last])
        graph = helper.make_graph(self.nodes, "probe", self.inputs, [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.feed[name] = self.rng.normal(size=shape).astype(np.float32)
        self.shapes[name] = shape
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan_in = math.prod(shape[1:]) or 1
        array = self.rng.normal(scale=scale or fan_in**-0.5, size=shape).astype(np.float32)
        return self.constant(array)

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        self.shapes[name] = array.shape
        return name

    def node(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attributes) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_y"], name=name, **attributes))
        self.last = f"{name}_y"
        self.shapes[self.last] = tuple(int(n) for n in shape)
        return self.last

    # ------------------------------------------------------------------------------------------------ drawing

    def width(self, low: int, high: int) -> int:
        """A number of channels, drawn on a logarithmic scale: of whole vectors mostly, else any."""
        n = round(math.exp(self.rng.uniform(math.log(low), math.log(high))))
        step = self.rng.choice([1, 4, 8, 16, 32], p=[0.25, 0.1, 0.25, 0.25, 0.15])
        return max(low, int(n // step * step) or n)

    def chance(self, p: float) -> bool:
        return bool(self.rng.uniform() < p)

    # ------------------------------------------------------------------------------------------------- pieces

    def conv(self, x: str, out: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True) -> str:
        n, c, h, w = self.shapes[x]
        pad = kernel // 2
        shape = (n, out, (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1)
        self.products += 2.0 * math.prod(shape) * c // groups * kernel**2
        operands = [x, self.weight(out, c // groups, kernel, kernel)] + ([self.weight(out, scale=0.1)] if bias else [])
        return self.node("Conv", operands, shape, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
                         group=groups)  # fmt: skip

    def activation(self, x: str, name: str) -> str:
        shape = self.shapes[x]
        match name:
            case "none":
                return x
            case "Clip":
                return self.node("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))], shape)
            case "hard swish":
                gate = self.node("Add", [x, self.constant(np.float32(3))], shape)
                gate = self.activation(gate, "Clip")
                product = self.node("Mul", [x, gate], shape)
                return self.node("Div", [product, self.constant(np.float32(6))], shape)
            case "silu":
                return self.node("Mul", [x, self.node("Sigmoid", [x], shape)], shape)
            case "gelu":
                y = self.node("Div", [x, self.constant(np.float32(math.sqrt(2)))], shape)
                y = self.node("Erf", [y], shape)
                y = self.node("Add", [y, self.constant(np.float32(1))], shape)
                return self.node("Mul", [self.node("Mul", [x, y], shape), self.constant(np.float32(0.5))], shape)
            case "tanh gelu":
                cubed = self.node("Mul", [self.node("Mul", [x, x], shape), x], shape)
                inner = self.node("Mul", [cubed, self.constant(np.float32(0.044715))], shape)
                inner = self.node("Add", [x, inner], shape)
                inner = self.node("Mul", [inner, self.constant(np.float32(math.sqrt(2 / math.pi)))], shape)
                gate = self.node("Add", [self.node("Tanh", [inner], shape), self.constant(np.float32(1))], shape)
                half = self.node("Mul", [x, self.constant(np.float32(0.5))], shape)
                return self.node("Mul", [half, gate], shape)
        return self.node(name, [x], shape)

    def linear(self, x: str, out: int, bias: bool = True) -> str:
        *rows, k = self.shapes[x]
        self.products += 2.0 * math.prod(rows) * k * out
        y = self.node("MatMul", [x, self.weight(k, out, scale=k**-0.5)], (*rows, out))
        return self.node("Add", [y, self.weight(out, scale=0.1)], (*rows, out)) if bias else y

    def norm(self, x: str) -> str:
        width = self.shapes[x][-1]
        return self.node("LayerNormalization", [x, self.constant(np.ones(width, np.float32)), self.weight(width)],
                         self.shapes[x], axis=-1)  # fmt: skip

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", [x, self.constant(np.asarray(shape, np.int64))], shape)

    def transpose(self, x: str, *perm: int) -> str:
        return self.node("Transpose", [x], [self.shapes[x][i] for i in perm], perm=perm)

    def squeeze_excite(self, x: str) -> str:
        n, c = self.shapes[x][:2]
        y = self.node("GlobalAveragePool", [x], (n, c, 1, 1))
        y = self.activation(self.conv(y, max(c // 4, 4), 1), "Relu")
        y = self.conv(y, c, 1)
        y = self.node(str(self.rng.choice(["Sigmoid", "HardSigmoid"])), [y], (n, c, 1, 1))
        return self.node("Mul", [x, y], self.shapes[x])

    def attention(self, x: str, heads: int, head: int, mask: str | None) -> str:
        batch, tokens, width = self.shapes[x]
        parts = []
        for perm in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
            part = self.reshape(self.linear(x, heads * head), batch, tokens, heads, head)
            parts.append(self.transpose(part, *perm))
        q, k, v = parts
        self.products += 4.0 * batch * heads * tokens**2 * head
        scores = self.node("MatMul", [q, k], (batch, heads, tokens, tokens))
        scores = self.node("Div", [scores, self.constant(np.float32(math.sqrt(head)))], self.shapes[scores])
        if mask is not None:
            scores = self.node("Add", [scores, mask], self.shapes[scores])
        scores = self.node("Softmax", [scores], self.shapes[scores], axis=-1)
        mixed = self.transpose(self.node("MatMul", [scores, v], (batch, heads, tokens, head)), 0, 2, 1, 3)
        return self.linear(self.reshape(mixed, batch, tokens, heads * head), width)


_ACTIVATIONS = ("Relu", "Relu", "Clip", "hard swish", "silu", "LeakyRelu", "none")


def _convolutions(net: _Net) -> None:
    size = net.width(12, 112)
    y = net.conv(net.input(1, int(net.rng.choice([1, 3, 3])), 2 * size, 2 * net.width(12, 112)), net.width(8, 96),
                 int(net.rng.choice([3, 5, 7])), 2)  # fmt: skip
    act = str(net.rng.choice(_ACTIVATIONS))
    y = net.activation(y, act)
    for _ in range(7):
        if net.products > _MOST_PRODUCTS:
            break
        _, c, h, w = net.shapes[y]
        stride = 2 if min(h, w) >= 8 and net.chance(0.35) else 1
        out = c if net.chance(0.4) else net.width(8, 768 if h * w <= 1600 else 192)
        before = y
        match net.rng.choice(["plain", "inverted", "bottleneck", "pointwise", "separable", "grouped"]):
            case "plain":
                y = net.conv(y, out, 3, stride)
            case "inverted":
                inner = min(net.width(c, 6 * c), 1024)
                y = net.activation(net.conv(y, inner, 1), act)
                y = net.activation(net.conv(y, inner, int(net.rng.choice([3, 5])), stride, inner), act)
                if net.chance(0.3):
                    y = net.squeeze_excite(y)
                y = net.conv(y, out, 1)
            case "bottleneck":
                inner = net.width(8, 256)
                y = net.activation(net.conv(y, inner, 1), act)
                y = net.conv(net.activation(net.conv(y, inner, 3, stride), act), out, 1)
            case "separable":
                y = net.conv(net.activation(net.conv(y, c, 3, stride, c), act), out, 1)
            case "grouped":
                inner = 32 * max(1, c // 32)
                y = net.activation(net.conv(y, inner, 1), act)
                y = net.conv(y, inner, 3, stride, int(net.rng.choice([2, 4])))
            case _:
                y = net.conv(y, out, 1, stride)
        if net.shapes[y] == net.shapes[before] and y != before and net.chance(0.7):
            y = net.node("Add", [y, before], net.shapes[y])
        y = net.activation(y, act)
        if min(net.shapes[y][2:]) >= 8 and net.chance(0.15):
            n, c, h, w = net.shapes[y]
            y = net.node(str(net.rng.choice(["MaxPool", "AveragePool"])), [y], (n, c, h // 2, w // 2),
                         kernel_shape=[2, 2], strides=[2, 2])  # fmt: skip
    n, c = net.shapes[y][:2]
    y = net.reshape(net.node("GlobalAveragePool", [y], (n, c, 1, 1)), n, c)
    classes = net.width(10, 1000)
    net.node("Gemm", [y, net.weight(classes, c), net.weight(classes)], (n, classes), transB=1)


def _transformer(net: _Net) -> None:
    heads, head = int(net.rng.choice([1, 2, 4, 6, 8, 12, 16])), net.width(16, 96)
    width, tokens = net.width(64, 1024), net.width(1 if net.chance(0.2) else 16, 384)
    inner, act = net.width(64, 4 * width), str(net.rng.choice(["gelu", "gelu", "tanh gelu", "silu", "Relu"]))
    first, masked, fused = net.chance(0.5), net.chance(0.6), net.chance(0.3)
    y = net.input(1, tokens, width)
    mask = net.input(1, 1, 1, tokens) if masked else None
    for _ in range(3):
        if net.products > _MOST_PRODUCTS:
            break
        mixed = net.attention(net.norm(y) if first else y, heads, head, mask)
        y = net.node("Add", [y, mixed], net.shapes[y])
        if not first:
            y = net.norm(y)
        hidden = net.activation(net.linear(net.norm(y) if first else y, inner), act)
        if fused:  # gated
            hidden = net.node("Mul", [hidden, net.linear(y, inner, bias=False)], net.shapes[hidden])
        y = net.node("Add", [y, net.linear(hidden, width)], net.shapes[y])
        if not first:
            y = net.norm(y)


def _layers(net: _Net) -> None:
    """Products of two matrices, and what stands between them."""
    y = net.input(net.width(1, 64), net.width(16, 1024))
    for _ in range(6):
        rows, k = net.shapes[y]
        out = net.width(8, 1536)
        net.products += 2.0 * rows * k * out
        y = net.node("Gemm", [y, net.weight(out, k), net.weight(out)], (rows, out), transB=1)
        y = net.activation(y, str(net.rng.choice(["Relu", "Sigmoid", "Tanh", "silu", "none"])))
    net.node("Softmax", [y], net.shapes[y], axis=-1)


_ONE = ("Sigmoid", "Tanh", "Erf", "Exp", "Sqrt", "Neg", "Abs", "Relu", "LeakyRelu", "HardSwish", "Elu", "Softplus")


def _elements(net: _Net) -> None:
    """Operators that compute little for each number, one after the other, on sizes from a line to a picture."""
    c, h, w = net.width(4, 256), net.width(4, 64), net.width(4, 64)
    x = net.input(1, c, h, w)
    y = net.node("Abs", [x], net.shapes[x])
    for _ in range(14):
        n, c, h, w = net.shapes[y]
        match int(net.rng.integers(13)):
            case 0 | 1 | 2:
                y = net.node(str(net.rng.choice(_ONE)), [y], net.shapes[y])
            case 3:
                y = net.node(str(net.rng.choice(["Add", "Mul", "Sub", "Max"])), [y, x if net.shapes[y] == net.shapes[x]
                             else net.weight(1, c, 1, 1)], net.shapes[y])  # fmt: skip
            case 4:
                y = net.node("Mul", [y, net.weight(1, c, 1, 1)], net.shapes[y])
            case 5:
                perm = [(0, 2, 3, 1), (0, 1, 3, 2), (0, 3, 1, 2)][int(net.rng.integers(3))]
                y = net.transpose(y, *perm)
            case 6:
                y = net.node("Softmax", [y], net.shapes[y], axis=-1)
            case 7 if c * h * w < 200_000:
                y = net.node("Concat", [y, y], (n, 2 * c, h, w), axis=1)
            case 8 if c >= 8:
                ends = [net.constant(np.asarray([v], np.int64)) for v in (0, c // 2, 1)]
                y = net.node("Slice", [y, *ends], (n, c // 2, h, w))
            case 9:
                mean = net.node("ReduceMean", [y], (n, c, h, 1), axes=[3])
                y = net.node("Sub", [y, mean], net.shapes[y])
            case 10 if c * h * w < 100_000:
                y = net.node("Resize", [y, "", net.constant(np.asarray([1, 1, 2, 2], np.float32))],
                             (n, c, 2 * h, 2 * w), mode=str(net.rng.choice(["nearest", "linear"])))  # fmt: skip
            case 11:
                y = net.node("BatchNormalization", [y, *(net.constant(np.ones(c, np.float32)) for _ in range(4))],
                             net.shapes[y])  # fmt: skip
            case _:
                y = net.activation(y, str(net.rng.choice(["hard swish", "gelu", "Clip"])))


def _recurrent(net: _Net) -> None:
    steps, features, state = net.width(4, 128), net.width(16, 256), net.width(16, 256)
    op, gates = (("LSTM", 4), ("GRU", 3))[int(net.rng.integers(2))]
    x = net.input(steps, 1, features)
    y = net.node(op, [x, net.weight(1, gates * state, features), net.weight(1, gates * state, state)],
                 (steps, 1, 1, state), hidden_size=state)  # fmt: skip
    net.linear(net.reshape(y, steps, state), net.width(8, 256))


_KINDS: dict[str, Callable[[_Net], None]] = {
    "convolutions": _convolutions, "transformer": _transformer, "layers": _layers, "elements": _elements,
    "convolutions again": _convolutions, "recurrent": _recurrent,
}  # fmt: skip
