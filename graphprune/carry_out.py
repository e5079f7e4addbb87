"""Carrying out what was decided: the canonical model with the choices of every pass, and the backend's rewrites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphprune.backends.base import Backend
from graphprune.context import Context
from graphprune.sites import Choice, Pass

Choices = Mapping[str, Mapping[str, Choice]]
"""Pass -> site -> what was decided."""


def kept_channels(choices: Choices) -> dict[str, np.ndarray]:
    """The keep sets among the choices, by group."""
    return {n: np.asarray(c["keep"]) for sites in choices.values() for n, c in sites.items() if "keep" in c}


def apply(
    context: Context,
    passes: Sequence[Pass],
    choices: Choices,
    *,
    solve: bool = True,
    onto: ir.Model | None = None,
) -> ir.Model:
    """The canonical model, or `onto`, with every pass's choices carried out, in order."""
    model = onto or context.model
    for p in passes:
        model = p.apply(context, model, choices.get(p.name, {}), solve)
    return model


def rounds(p: Pass) -> bool:
    """Whether the pass rounds weights, so that it comes after the refit."""
    return getattr(p, "rounds", False)


def lowered(backend: Backend, model: ir.Model, names: Iterable[str]) -> ir.Model:
    """The model with the named rewrites of the backend, in order."""
    for name in names:
        model = backend.lowerings[name](model)
    return model
