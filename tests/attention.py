"""Small attention layers in ONNX text, for tests: heads, shared keys and values, rotations, gated values."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from tests.graphs import model_of

WIDTH, HEADS, SIZE = 16, 4, 8
"""Of the stream; number of heads; channels of each."""


def attention(
    *, kv_heads: int = HEADS, rotary: bool = False, on_values: str = "", biases: bool = True, residual: bool = False,
    rank: int = SIZE, seed: int = 0,
) -> ir.Model:  # fmt: skip
    """x [n, t, 16] -> result [n, t, 16]. rank: of each head's query, key and value weights, but for a little noise.
    on_values: an element-wise operator between values and their readers. kv_heads: heads that keys and values have."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def low_rank(heads: int) -> np.ndarray:
        blocks = [rng.normal(size=(WIDTH, rank)) @ rng.normal(size=(rank, SIZE)) / rank**0.5 for _ in range(heads)]
        noise = 0.02 * rng.normal(size=(WIDTH, heads * SIZE))
        return ((np.concatenate(blocks, axis=1) + noise) / WIDTH**0.5).astype(np.float32)

    lines = []
    for name, heads in (("q", HEADS), ("k", kv_heads), ("v", kv_heads)):
        weights[f"w{name}"] = low_rank(heads)
        weights[f"b{name}"] = (0.1 * rng.normal(size=heads * SIZE)).astype(np.float32)
        weights[f"to{name}"] = np.array([0, 0, heads, SIZE])
        made = f"{name}0 = MatMul(x, w{name})\n" + (f"{name}1 = Add(b{name}, {name}0)" if biases else
                                                    f"{name}1 = Identity({name}0)")  # fmt: skip
        lines.append(f"{made}\n{name}2 = Reshape({name}1, to{name})\n{name}3 = Transpose<perm=[0,2,1,3]>({name}2)")
    if rotary:
        angles = rng.uniform(size=(1, 1, 1, SIZE)).astype(np.float32)
        weights |= {"cos": np.cos(angles), "sin": np.sin(angles), "half": np.array([SIZE // 2] * 2)}
        for name in "qk":
            lines.append(f"{name}a, {name}b = Split<axis=3>({name}3, half)\n{name}n = Neg({name}b)\n"
                         f"{name}c = Concat<axis=3>({name}n, {name}a)\n{name}d = Mul({name}3, cos)\n"
                         f"{name}e = Mul({name}c, sin)\n{name}4 = Add({name}d, {name}e)")  # fmt: skip
    else:
        lines += [f"{name}4 = Identity({name}3)" for name in "qk"]
    lines.append(f"v4 = {on_values or 'Identity'}(v3)")
    if kv_heads != HEADS:
        group = HEADS // kv_heads
        weights |= {"two": np.array([2]), "wide": np.array([1, 1, group, 1, 1])}
        for name in "kv":
            weights[f"flat{name}"] = np.array([0, HEADS, -1, SIZE])
            lines.append(f"{name}5 = Unsqueeze({name}4, two)\n{name}6 = Expand({name}5, wide)\n"
                         f"{name}7 = Reshape({name}6, flat{name})")
    else:
        lines += [f"{name}7 = Identity({name}4)" for name in "kv"]
    weights |= {"scale": np.float32([SIZE**-0.5]), "back": np.array([0, 0, HEADS * SIZE]),
                "wo": (rng.normal(size=(HEADS * SIZE, WIDTH)) / (HEADS * SIZE) ** 0.5).astype(np.float32),
                "bo": rng.normal(size=WIDTH).astype(np.float32)}  # fmt: skip
    lines.append("kt = Transpose<perm=[0,1,3,2]>(k7)\ns0 = MatMul(q4, kt)\ns1 = Mul(s0, scale)\n"
                 "p = Softmax<axis=3>(s1)\ny0 = MatMul(p, v7)\ny1 = Transpose<perm=[0,2,1,3]>(y0)\n"
                 "y2 = Reshape(y1, back)\ny3 = MatMul(y2, wo)\n"
                 + ("y4 = Add(y3, bo)\nresult = Add(x, y4)" if residual else "result = Add(y3, bo)"))  # fmt: skip
    text = "\n".join(lines)
    used = set(re.findall(r"\w+", text))
    return model_of(text, {"x": ("N", "T", WIDTH)}, {n: w for n, w in weights.items() if n in used})


def tokens(n: int, seed: int, *, batch: int = 2, length: int = 12) -> list[Mapping[str, np.ndarray]]:
    """Feeds of correlated numbers: [batch, length, 16]."""
    rng = np.random.default_rng(99)
    mix = rng.normal(size=(WIDTH, WIDTH)) * np.linspace(1.5, 0.1, WIDTH)[:, None]
    draw = np.random.default_rng(seed)
    return [{"x": (draw.normal(size=(batch, length, WIDTH)) @ mix).astype(np.float32)} for _ in range(n)]
