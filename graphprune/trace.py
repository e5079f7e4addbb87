"""Concrete shapes of every value of a model, found by running it once with everything exposed.

Dynamic axes are bound to distinct primes, so that no axis is mistaken for another or for a broadcast one. Running is
slower than inferring, but complete: it knows the shapes that only data can tell, and the runtime is the authority.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

Feed = Mapping[str, np.ndarray]
Run = Callable[[ir.Model, Feed], Mapping[str, np.ndarray]]
"""Runs a model on one feed, optimisation off, and gives all its outputs by name."""

_SMALL = 4096


@dataclass(frozen=True)
class Trace:
    """shapes: of every tensor value by name. values: contents of integer and boolean values up to 4,096 entries."""

    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, np.ndarray]


def trace(model: ir.Model, feed: Feed, run: Run) -> Trace:
    """Run `model` on `feed` with every value as an output."""
    outputs = run(exposed(model), feed)
    shapes: dict[str, tuple[int, ...]] = {k: tuple(np.shape(v)) for k, v in feed.items()}
    values: dict[str, np.ndarray] = {}
    for value in model.graph.initializers.values():
        shapes[value.name] = tuple(int(n) for n in value.const_value.shape)
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray):
            continue  # sequences and optionals have no axes
        shapes[name] = array.shape
        if array.size <= _SMALL and array.dtype.kind in "iub":
            values[name] = array
    return Trace(shapes, values)


def exposed(model: ir.Model, names: Sequence[str] | None = None) -> ir.Model:
    """A copy whose outputs are the named values (default: all node outputs of the main graph)."""
    copy = model.clone()
    produced = {y.name: y for node in copy.graph for y in node.outputs if y.name}
    if names is None:
        names = list(produced)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(produced[n] for n in names)
    return copy


def correct_annotations(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Take back, in place, what the file says of intermediate shapes where running showed something else: exporters
    write the sizes of their example, or a number that stands for any."""
    for node in model.graph:
        for y in node.outputs:
            if y.shape is None or y.name not in shapes:
                continue
            real = shapes[y.name]
            if len(y.shape) != len(real):
                y.shape = None
            elif any(isinstance(n, int) and n != m for n, m in zip(y.shape, real, strict=True)):
                y.shape = ir.Shape([None if isinstance(n, int) and n != m else n
                                    for n, m in zip(y.shape, real, strict=True)])  # fmt: skip


_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)


def bind(inputs: Mapping[str, Sequence[int | str | None]]) -> dict[str, tuple[int, ...]]:
    """Concrete shapes for graph inputs: equal names of dynamic axes get equal sizes, different ones distinct primes."""
    sizes: dict[str, int] = {}
    shapes = {}
    for name, shape in inputs.items():
        bound = []
        for i, n in enumerate(shape):
            if isinstance(n, int) and n > 0:
                bound.append(n)
            else:
                key = n if isinstance(n, str) else f"{name}.{i}"
                bound.append(sizes.setdefault(key, _PRIMES[len(sizes) % len(_PRIMES)]))
        shapes[name] = tuple(bound)
    return shapes
