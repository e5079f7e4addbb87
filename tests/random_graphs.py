"""Random small networks over a good part of the operator table: images [n, C, h, w] that become tokens [n, T, D]."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tests.graphs import model_of

CHANNELS = (4, 6, 8, 12)


@dataclass
class Builder:
    """Writes one network line by line. Values are (name, shape behind the batch)."""

    rng: random.Random
    lines: list[str] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    seen: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def op(self, text: str) -> str:
        """Add `name = text`; returns the name."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def weight(self, *shape: int) -> str:
        name, numbers = f"w{len(self.weights)}", np.random.default_rng(self.rng.randrange(2**31))
        scale = np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1.0
        self.weights[name] = ((numbers.normal(size=shape) + 0.1) / scale).astype(np.float32)
        return name

    def ints(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self.op(f"Reshape({x}, {self.ints(0, *shape)})")

    def linear(self, x: str, n_in: int, n_out: int) -> str:
        y = self.op(f"MatMul({x}, {self.weight(n_in, n_out)})")
        return self.op(f"Add({y}, {self.weight(n_out)})") if self.rng.random() < 0.7 else y

    def conv(self, x: str, n_in: int, n_out: int, kernel: int = 1, groups: int = 1) -> str:
        pad = kernel // 2
        w, b = self.weight(n_out, n_in // groups, kernel, kernel), self.weight(n_out)
        return self.op(f"Conv<group={groups}, pads=[{pad},{pad},{pad},{pad}]>({x}, {w}, {b})")

    def earlier(self, shape: tuple[int, ...], axis: int | None = None) -> tuple[str, tuple[int, ...]] | None:
        """An earlier value of this shape, or of this shape away from one axis."""
        fits = [v for v in self.seen if len(v[1]) == len(shape)
                and all(i == axis or a == b for i, (a, b) in enumerate(zip(v[1], shape, strict=True)))]
        return self.rng.choice(fits) if fits else None


Value = tuple[str, tuple[int, ...]]


def convolve(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    n_out = b.rng.choice(CHANNELS)
    return b.op(f"Relu({b.conv(x, s[0], n_out, b.rng.choice((1, 3)))})"), (n_out, *s[1:])


def grouped(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    n_out = b.rng.choice([c for c in CHANNELS if c % 2 == 0])
    return b.conv(x, s[0], n_out, 3, 2), (n_out, *s[1:])


def depthwise(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    twice = b.rng.choice((1, 2))
    return b.conv(x, s[0], twice * s[0], 3, s[0]), (twice * s[0], *s[1:])


def residual(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    other = b.earlier(s)
    return (b.op(f"{b.rng.choice(('Add', 'Mul', 'Max'))}({x}, {other[0]})"), s) if other else (x, s)


def concatenate(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    axis = 0 if len(s) == 3 else len(s) - 1
    other = b.earlier(s, axis)
    if other is None or other[1][axis] + s[axis] > 24:
        return x, s
    return b.op(f"Concat<axis={axis + 1}>({x}, {other[0]})"), (*s[:axis], s[axis] + other[1][axis], *s[axis + 1 :])


def split_and_gate(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    axis = 0 if len(s) == 3 else len(s) - 1
    half = s[axis] // 2
    if s[axis] % 2:
        return x, s
    left, right = f"v{len(b.lines)}a", f"v{len(b.lines)}b"
    b.lines.append(f"{left}, {right} = Split<axis={axis + 1}, num_outputs=2>({x})")
    gate = b.op(f"Sigmoid({right})")
    return b.op(f"Mul({left}, {gate})"), (*s[:axis], half, *s[axis + 1 :])


def shuffle(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    y = b.reshape(x, 2, s[0] // 2, *s[1:])
    y = b.op(f"Transpose<perm=[0,2,1,3,4]>({y})")
    return b.reshape(y, -1, *s[1:]), s


def squeeze_excite(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    pooled = b.op(f"GlobalAveragePool({x})")
    gate = b.op(f"HardSigmoid({b.conv(b.op(f'Relu({b.conv(pooled, s[0], 4)})'), 4, s[0])})")
    return b.op(f"Mul({x}, {gate})"), s


def batch_norm(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    variance = b.weight(s[0])
    b.weights[variance] = np.abs(b.weights[variance]) + 0.5
    return b.op(f"BatchNormalization({x}, {b.weight(s[0])}, {b.weight(s[0])}, {b.weight(s[0])}, {variance})"), s


def group_norm(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    """As exporters spell it out."""
    y = b.reshape(x, 2, -1)
    y = b.op(f"InstanceNormalization({y}, {b.weight(2)}, {b.weight(2)})")
    y = b.reshape(y, *s)
    return b.op(f"Mul({y}, {b.weight(s[0], 1, 1)})"), s


def pick(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    """Some of the channels, by slice or by index."""
    axis = 0 if len(s) == 3 else len(s) - 1
    first, past = b.rng.choice(((0, s[axis] - 1), (1, s[axis]), (1, s[axis] - 1)))
    if past - first < 2:
        return x, s
    if b.rng.random() < 0.5:
        y = b.op(f"Gather<axis={axis + 1}>({x}, {b.ints(*range(first, past))})")
    else:
        y = b.op(f"Slice({x}, {b.ints(first)}, {b.ints(past)}, {b.ints(axis + 1)})")
    return y, (*s[:axis], past - first, *s[axis + 1 :])


def pad(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    axis = 0 if len(s) == 3 else len(s) - 1
    before = [int(i == axis) for i in range(-1, len(s))]
    after = [2 * n for n in before]
    if s[axis] > 12:
        return x, s
    return b.op(f"Pad({x}, {b.ints(*before, *after)})"), (*s[:axis], s[axis] + 3, *s[axis + 1 :])


def up_and_down(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    if s[0] % 4:
        y = b.op(f"MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({x})")
        return y, s
    mode = b.rng.choice(("DCR", "CRD"))
    y = b.op(f'DepthToSpace<blocksize=2, mode="{mode}">({x})')
    y = b.op(f"AveragePool<kernel_shape=[2,2], strides=[2,2]>({y})")
    return y, (s[0] // 4, *s[1:])


def to_tokens(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    y = b.reshape(x, s[0], -1)
    return b.op(f"Transpose<perm=[0,2,1]>({y})"), (s[1] * s[2], s[0])


def project(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    n_out = b.rng.choice(CHANNELS)
    return b.linear(x, s[1], n_out), (s[0], n_out)


def mlp(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    hidden = b.rng.choice(CHANNELS)
    y = b.linear(b.op(f"Tanh({b.linear(x, s[1], hidden)})"), hidden, s[1])
    return b.op(f"Add({x}, {y})"), s


def layer_norm(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    return b.op(f"LayerNormalization({x}, {b.weight(s[1])}, {b.weight(s[1])})"), s


def rms_norm(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    """As exporters spell it out."""
    squares = b.op(f"Mul({x}, {x})")
    mean = b.op(f"ReduceMean({squares}, {b.ints(-1)})")
    positive = b.op(f"Exp({b.weight(1)})")
    root = b.op(f"Sqrt({b.op(f'Add({mean}, {positive})')})")
    return b.op(f"Mul({b.op(f'Div({x}, {root})')}, {b.weight(s[1])})"), s


def attention(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    """Heads of 3, queries grouped by two where the dice say so, projections fused where they say so."""
    tokens, width = s
    heads, inner, fused = b.rng.choice((2, 4)), 3, b.rng.random() < 0.5
    few = heads if fused or b.rng.random() < 0.5 else heads // 2
    if fused:
        parts = [f"v{len(b.lines)}{c}" for c in "pqr"]
        whole = b.linear(x, width, 3 * heads * inner)
        b.lines.append(f"{', '.join(parts)} = Split<axis=2, num_outputs=3>({whole})")
    else:
        parts = [b.linear(x, width, n * inner) for n in (heads, few, few)]
    split = []
    for part, n in zip(parts, (heads, few, few), strict=True):
        y = b.op(f"Transpose<perm=[0,2,1,3]>({b.reshape(part, -1, n, inner)})")
        if n < heads:  # each key and value serves two heads
            y = b.op(f"Unsqueeze({y}, {b.ints(2)})")
            y = b.op(f"Expand({y}, {b.ints(1, 1, 2, 1, 1)})")
            y = b.reshape(y, heads, tokens, inner)
        split.append(y)
    q, k, v = split
    k = b.op(f"Transpose<perm=[0,1,3,2]>({k})")
    scores = b.op(f"Softmax<axis=-1>({b.op(f'MatMul({q}, {k})')})")
    y = b.op(f"Transpose<perm=[0,2,1,3]>({b.op(f'MatMul({scores}, {v})')})")
    y = b.linear(b.reshape(y, tokens, heads * inner), heads * inner, width)
    return b.op(f"Add({x}, {y})"), s


def mix_tokens(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    y = b.op(f"Transpose<perm=[0,2,1]>({x})")
    y = b.linear(b.op(f"Relu({b.linear(y, s[0], 6)})"), 6, s[0])
    return b.op(f"Transpose<perm=[0,2,1]>({y})"), s


def contract(b: Builder, x: str, s: tuple[int, ...]) -> Value:
    """A value gated by the sum of its channels."""
    total = b.op(f"ReduceSum({x}, {b.ints(-1)})")
    return b.op(f"Mul({x}, {b.op(f'Sigmoid({total})')})"), s


ON_IMAGES = (convolve, convolve, grouped, depthwise, residual, residual, concatenate, split_and_gate, shuffle,
             squeeze_excite, batch_norm, group_norm, pick, pad, up_and_down)  # fmt: skip
ON_TOKENS = (project, mlp, layer_norm, rms_norm, attention, attention, mix_tokens, contract, residual, concatenate,
             split_and_gate, pick, pad)  # fmt: skip


def random_model(seed: int) -> ir.Model:
    """A network from input x0 [batch, 3, 2, 2] to output `result`, its batch axis dynamic."""
    b = Builder(random.Random(seed))
    x, s = "x0", (3, 2, 2)
    x, s = convolve(b, x, s)
    for step in [b.rng.choice(ON_IMAGES) for _ in range(b.rng.randint(1, 7))]:
        b.seen.append((x, s))
        x, s = step(b, x, s) if s[0] % 2 == 0 or step not in (shuffle, grouped, group_norm) else (x, s)
    x, s = to_tokens(b, x, s)
    for step in [b.rng.choice(ON_TOKENS) for _ in range(b.rng.randint(1, 5))]:
        b.seen.append((x, s))
        x, s = step(b, x, s)
    y = b.linear(x, s[1], 4)
    b.lines.append(f"result = Identity({y})")
    return model_of("\n".join(b.lines), {"x0": ("batch", 3, 2, 2)}, b.weights)
