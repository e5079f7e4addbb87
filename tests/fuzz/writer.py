"""Write a network step by step from decisions that are plain numbers, so that hypothesis can draw and shrink them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

import numpy as np

from tests.random_graphs import Builder, Value

Shape = tuple[int, ...]
T = TypeVar("T")


class Dice:
    """Stands in for random.Random where the numbers are given beforehand. When they run out it goes on with zeros, the
    first choice, so that any numbers make a step."""

    FACES = 64

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = iter(numbers)

    def choice(self, options: Sequence[T]) -> T:
        return options[next(self._numbers, 0) % len(options)]

    def random(self) -> float:
        return next(self._numbers, 0) / self.FACES


@dataclass
class Writer(Builder):
    """A builder whose weights are few-digit numbers (short in text) that do not depend on the dice.

    Values are (name, shape behind the batch). opset: of the model. shared: tables that several steps use.
    """

    opset: int = 18
    seed: int = 0
    shared: dict[Shape, str] = field(default_factory=dict)

    def weight(self, *shape: int) -> str:
        numbers = np.random.default_rng((self.seed, len(self.weights)))
        scale = np.sqrt(prod(shape[:-1])) if len(shape) > 1 else 1.0
        return self.constant(np.round((numbers.normal(size=shape) + 0.1) / scale, 3).astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def positive(self, *shape: int) -> str:
        return self.constant(np.abs(self.weights.pop(self.weight(*shape))) + np.float32(0.5))

    def several(self, n: int, text: str) -> list[str]:
        """Add a node of n outputs; returns their names."""
        names = [f"v{len(self.lines)}_{i}" for i in range(n)]
        self.lines.append(f"{', '.join(names)} = {text}")
        return names

    def reduce(self, op: str, x: str, axis: int, keepdims: int = 1) -> str:
        """Reduce one axis (of the whole tensor); the axes became an operand with opset 18, for sums with 13."""
        if self.opset < (13 if op == "ReduceSum" else 18):
            return self.op(f"{op}<axes=[{axis}], keepdims={keepdims}>({x})")
        return self.op(f"{op}<keepdims={keepdims}>({x}, {self.ints(axis)})")

    def fit(self, x: str, s: Shape, wanted: Shape) -> str:
        """A linear map of x [n, *s] to [n, *wanted], every axis free; x itself where it has that shape."""
        if s == wanted:
            return x
        flat = x if len(s) == 1 else self.reshape(x, -1)
        y = self.op(f"MatMul({flat}, {self.weight(prod(s), prod(wanted))})")
        return y if len(wanted) == 1 else self.reshape(y, *wanted)

    def fit_alone(self, x: str, s: Shape, wanted: Shape) -> str:
        """A linear map of the batch's mean of x [n, *s] to [*wanted]."""
        flat = x if len(s) == 1 else self.reshape(x, -1)
        y = self.op(f"MatMul({self.reduce('ReduceMean', flat, 0, 0)}, {self.weight(prod(s), prod(wanted))})")
        return self.op(f"Reshape({y}, {self.ints(*wanted)})")

    def another(self, wanted: Shape) -> str:
        """An earlier value, made to have this shape."""
        return self.fit(*self.rng.choice(self.seen), wanted)


__all__ = ["Dice", "Shape", "Value", "Writer"]
