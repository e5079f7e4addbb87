"""What a model takes, and whether a feed is that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.backends.base import Feed
from graphprune.errors import UsageError

Inputs = dict[str, tuple[np.dtype, tuple[int | str | None, ...]]]
"""Name -> dtype and shape, a dynamic axis by its name or None."""


def inputs_of(graph: ir.Graph) -> Inputs:
    """Of a graph, initialisers left out."""
    return {v.name: (v.dtype.numpy(), tuple(n if isinstance(n, int) else n.value for n in v.shape or ()))
            for v in graph.inputs if v.name not in graph.initializers and v.dtype is not None}  # fmt: skip


def check_feed(inputs: Inputs, feed: Feed) -> None:
    """Raises UsageError where names, dtypes or shapes of `feed` do not fit the inputs."""
    if missing := sorted(inputs.keys() - feed.keys()):
        raise UsageError(f"no array for the model's input {missing[0]!r}", at=f"the feed has {sorted(feed)}",
                         fix=f"the model takes {sorted(inputs)}")  # fmt: skip
    if unknown := sorted(feed.keys() - inputs.keys()):
        raise UsageError(f"{unknown[0]!r} is no input of the model", fix=f"the model takes {sorted(inputs)}")
    for name, array in feed.items():
        dtype, shape = inputs[name]
        fits = len(shape) == array.ndim and all(
            not isinstance(want, int) or want == have for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or (dtype.kind != "O" and array.dtype != dtype):
            raise UsageError(f"the array for input {name!r} is {array.dtype} {list(array.shape)}",
                             fix=f"the model takes {dtype} {list(shape)}")  # fmt: skip
