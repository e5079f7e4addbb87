"""How far a compressed model's outputs are from the dense one's, each output measured as what it is.

Owns the measures and the choice between them; runs nothing but what it is given. Rows run along the last axis.

    distribution  rows of probabilities: Kullback-Leibler divergence from the dense rows
    logits        rows of unnormalised scores: the same between their softmaxes, so that a constant added to a row is
                  nothing, and scores that no softmax lets through weigh nothing
    embedding     rows of which only the direction counts: one minus their cosine
    relative      anything else: squared error

What an output is can be known from its numbers where its rows are probabilities, logarithms of them or of unit length,
and from the graph where it feeds a softmax over its last axis, too. Rows of plain numbers behind a linear layer can as
well be coordinates or features, for which a softmax would be wrong: they are "relative" unless the user says more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir
from scipy.special import log_softmax, logsumexp

from graphprune.errors import ModelError, UsageError
from graphprune.trace import Feed

Kind = Literal["distribution", "logits", "embedding", "relative"]
Run = Callable[[Feed], Mapping[str, np.ndarray]]
Outputs = Sequence[Mapping[str, np.ndarray]]

MEANING: Mapping[str, str] = {
    "distribution": "KL divergence of probabilities",
    "logits": "KL divergence of softmaxes",
    "embedding": "cosine distance of rows",
    "relative": "squared error",
}
"""What is measured, by kind, in words for people."""
_LEAST = 1e-9
_NEAR = 1e-3
_CONSTANT = 1e-12
"""Rows vary if their spread is a larger share than this of their distance from the row that says nothing."""


def outputs_of(run: Run, feeds: Sequence[Feed]) -> list[Mapping[str, np.ndarray]]:
    """All outputs for every feed."""
    return [run(feed) for feed in feeds]


def divergence(dense: Outputs, have: Outputs, kinds: Mapping[str, Kind] | None = None) -> float:
    """How much of what the dense outputs say is lost, averaged over outputs; see `Reference.divergence`."""
    return Reference(dense, kinds).divergence(have)


@dataclass(frozen=True)
class Lost:
    """How an output was measured, and the share of what it says that is lost."""

    kind: Kind
    share: float


class Reference:
    """Dense outputs to judge others by, with what is needed of them worked out once.

    dense: outputs by name for each feed; what is no array of numbers is not judged. kinds: what is known of some
    outputs already; the others' numbers decide.
    """

    def __init__(self, dense: Outputs, kinds: Mapping[str, Kind] | None = None) -> None:
        given = kinds or {}
        names = [name for name in dense[0] if all(_is_numbers(d[name]) for d in dense)]
        if not names:
            raise ModelError("no output of the model is an array of numbers, so there is nothing to judge by",
                             at=f"outputs {', '.join(dense[0])}", fix="make an output of what matters")  # fmt: skip
        self.kinds = {name: given.get(name) or kind_of(name, dense) for name in names}
        self._rows = {name: _rows(dense, name, kind) for name, kind in self.kinds.items()}
        self._shapes = {name: [np.shape(d[name]) for d in dense] for name in self.kinds}
        self._scales = {name: _scale(_MEASURES[kind], self._rows[name]) for name, kind in self.kinds.items()}

    def divergence(self, have: Outputs) -> float:
        """The mean over outputs of `per_output`: 0 if equal, 1 if as good as a constant, infinite if not comparable."""
        return float(np.mean([lost.share for lost in self.per_output(have).values()]))

    def per_output(self, have: Outputs) -> dict[str, Lost]:
        """The share of each output that is lost: its error over the error of the best constant row.

        Where the dense rows do not vary, over the error of a row that says nothing (zeros, or all equally likely).
        Infinite where an output is not finite, on either side, or its shape differs.
        """
        return {name: Lost(kind, self._share(name, kind, have)) for name, kind in self.kinds.items()}

    def _share(self, name: str, kind: Kind, have: Outputs) -> float:
        if [np.shape(h[name]) for h in have] != self._shapes[name]:
            return float("inf")
        others = _rows(have, name, kind)
        if not all(np.isfinite(rows).all() for rows in (*self._rows[name], *others)):
            return float("inf")
        measure, scale = _MEASURES[kind], self._scales[name]
        with np.errstate(over="ignore", invalid="ignore"):
            error = sum(
                measure.error(measure.view(a), measure.view(b)) for a, b in zip(self._rows[name], others, strict=True)
            )
            share = error / scale if scale > 0 else float(error > 0)
        return share if np.isfinite(share) else float("inf")


# ------------------------------------------------------------------------------------------ what an output is

def kind_of(name: str, dense_outputs: Outputs, hint: str | None = None) -> Kind:
    """What the output is: `hint` unless None or "auto", otherwise what its numbers show beyond doubt, or "relative".

    Raises UsageError for a kind that there is not, or that this output cannot be.
    """
    arrays = [np.asarray(d[name]) for d in dense_outputs]
    if hint not in (None, "auto"):
        _check_hint(name, hint, arrays)
        return hint
    even = len({a.shape[-1:] for a in arrays}) == 1
    if not even or not _has_rows(arrays) or not all(np.isfinite(a).all() for a in arrays):
        return "relative"
    for kind, holds in (("distribution", _is_distribution), ("logits", _is_log), ("embedding", _is_unit)):
        if all(holds(a) for a in arrays):
            return kind
    return "relative"


def named_kinds(
    model: ir.Model, dense_outputs: Outputs, hints: Mapping[str, str] | None = None
) -> dict[str, Kind]:
    """The outputs of which more is known than their numbers show: by `hints` (output -> kind) or by the graph.

    Raises UsageError for a hint that names no output of the model, no kind, or a kind that the output cannot be.
    """
    hints = hints or {}
    names = [v.name for v in model.graph.outputs]
    for name, kind in hints.items():
        if name not in names:
            raise UsageError(
                f"the model has no output {name!r}",
                at=f"--output {name}={kind}",
                fix=_nearest(name, names) or f"the model gives {', '.join(names)}",
            )
    kinds = {name: kind_of(name, dense_outputs, kind) for name, kind in hints.items()}
    for value in model.graph.outputs:
        if value.name not in hints and _feeds_softmax(value) and _has_rows([d[value.name] for d in dense_outputs]):
            kinds[value.name] = "logits"
    return kinds


def read_kinds(texts: Iterable[str]) -> dict[str, str]:
    """["logits=logits", ...] -> {"logits": "logits"}, checked as text only. Raises UsageError."""
    kinds: dict[str, str] = {}
    for text in texts:
        name, equals, kind = (part.strip() for part in text.rpartition("="))
        if not equals or not name:
            raise UsageError(f"not an output and its kind: {text!r}", at="--output",
                             fix="write NAME=KIND, as scores=logits; the folder for the result is --out")  # fmt: skip
        _check_kind(name, kind)
        if name in kinds:
            raise UsageError(f"two kinds for output {name!r}", at="--output", fix="give each output once")
        kinds[name] = kind
    return kinds


def _check_kind(name: str, kind: str) -> None:
    known = ("auto", *get_args(Kind))
    if kind not in known:
        raise UsageError(
            f"there is no kind of output {kind!r}",
            at=f"--output {name}={kind}",
            fix=_nearest(str(kind), known) or f"one of {', '.join(known)}",
        )


def _check_hint(name: str, hint: str, arrays: Sequence[np.ndarray]) -> None:
    _check_kind(name, hint)
    at = f"--output {name}={hint}"
    if hint != "relative" and not _has_rows(arrays):
        first = arrays[0]
        raise UsageError(
            f"output {name!r} cannot be {hint}: it has no rows of floating-point numbers",
            at=f"{at}; it is {first.dtype} {list(first.shape)}",
            fix="rows run along the last axis, which must have two entries or more; leave it to auto",
        )
    if hint == "distribution" and not all(_is_distribution(a) for a in arrays):
        raise UsageError(
            f"output {name!r} cannot be a distribution: its rows are not positive numbers that sum to 1",
            at=at,
            fix=f"did you mean {name}=logits?",
        )


def _is_numbers(value: object) -> bool:
    return not isinstance(value, list) and np.asarray(value).dtype.kind in "biuf"


def _has_rows(arrays: Iterable[np.ndarray]) -> bool:
    return all(a.ndim > 0 and a.shape[-1] > 1 and a.dtype.kind == "f" for a in map(np.asarray, arrays))


def _is_distribution(rows: np.ndarray) -> bool:
    return bool((rows >= 0).all()) and np.allclose(rows.sum(-1), 1, atol=_NEAR)


def _is_log(rows: np.ndarray) -> bool:
    return bool((rows <= _NEAR).all()) and np.allclose(logsumexp(rows.astype(np.float64), axis=-1), 0, atol=_NEAR)


def _is_unit(rows: np.ndarray) -> bool:
    return np.allclose(np.linalg.norm(rows.astype(np.float64), axis=-1), 1, atol=_NEAR)


def _feeds_softmax(value: ir.Value) -> bool:
    """Whether a softmax of the graph runs over the value's last axis: then its rows are scores, whatever their name."""
    for use in value.uses():
        node = use.node
        if node.op_type in ("Softmax", "LogSoftmax") and node.domain in ("", "ai.onnx"):
            axis = node.attributes["axis"].value if "axis" in node.attributes else (
                -1 if (node.version or node.graph.opset_imports.get("", 13)) >= 13 else 1)  # fmt: skip
            if axis == -1 or (value.shape is not None and axis == len(value.shape) - 1):
                return True
    return False


def _nearest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


# ------------------------------------------------------------------------------------------------ the measures

@dataclass(frozen=True)
class _Measure:
    """view: what of rows [n, k] is compared. error: of two views, summed over rows. constant: the one row, as a view
    [1, k], that is nearest to all n rows of some views. nothing: the row of width k, as a view, that says nothing."""

    view: Callable[[np.ndarray], np.ndarray]
    error: Callable[[np.ndarray, np.ndarray], float]
    constant: Callable[[Iterable[np.ndarray], int], np.ndarray]
    nothing: Callable[[int], np.ndarray]


def _rows(outputs: Outputs, name: str, kind: Kind) -> list[np.ndarray]:
    """An output as rows [n, k] for each feed; single numbers where the last axis is no row: none, or never the same."""
    arrays = [np.asarray(o[name]) for o in outputs]
    even = kind != "relative" or (arrays[0].ndim > 0 and len({a.shape[-1:] for a in arrays}) == 1)
    width = [a.shape[-1] if even else 1 for a in arrays]
    return [a.reshape(a.size // k if k else 0, k) for a, k in zip(arrays, width, strict=True)]


def _scale(measure: _Measure, rows: Sequence[np.ndarray]) -> float:
    """The error that counts as having lost all: see `Reference.per_output`. Zero where there is nothing to lose."""
    if not all(np.isfinite(r).all() for r in rows):
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        nothing = sum(measure.error(measure.view(r), measure.nothing(r.shape[1])) for r in rows)
        if len({r.shape[1] for r in rows}) > 1:
            return nothing
        constant = measure.constant((measure.view(r) for r in rows), sum(map(len, rows)))
        spread = sum(measure.error(measure.view(r), constant) for r in rows)
    return spread if spread > _CONSTANT * nothing else nothing


def _mean(views: Iterable[np.ndarray], n: int) -> np.ndarray:
    return sum(v.sum(axis=0) for v in views)[None, :] / n


def _double(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one, in float64; zero rows stay."""
    x = rows.astype(np.float64)
    x = x / np.maximum(np.abs(x).max(axis=-1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(np.float64).tiny)


def _squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum())


def _log_probabilities(rows: np.ndarray) -> np.ndarray:
    """Probabilities below 1e-9 count as that."""
    return np.log(np.maximum(rows.astype(np.float64), _LEAST))


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    return log_softmax(rows.astype(np.float64), axis=-1)


def _relative_entropy(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """Sum over rows of KL(p | q)."""
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))


def _mean_probabilities(views: Iterable[np.ndarray], n: int) -> np.ndarray:
    return np.log(np.maximum(_mean(map(np.exp, views), n), np.finfo(np.float64).tiny))


def _equally_likely(width: int) -> np.ndarray:
    return np.full((1, width), -np.log(max(width, 1)))


def _zeros(width: int) -> np.ndarray:
    return np.zeros((1, width))


_MEASURES: Mapping[str, _Measure] = {
    "distribution": _Measure(_log_probabilities, _relative_entropy, _mean_probabilities, _equally_likely),
    "logits": _Measure(_log_softmax, _relative_entropy, _mean_probabilities, _equally_likely),
    # half the squared distance of unit rows is one minus their cosine, without its cancellation near zero
    "embedding": _Measure(_unit, _squared_error, lambda views, n: _unit(_mean(views, n)), _zeros),
    "relative": _Measure(_double, _squared_error, _mean, _zeros),
}


def cosine(dense: Outputs, have: Outputs, name: str) -> float:
    """Mean over feeds of the cosine between an output and the dense one, each as one vector."""
    values = []
    for d, h in zip(dense, have, strict=True):
        a, b = np.asarray(d[name], np.float64).reshape(-1), np.asarray(h[name], np.float64).reshape(-1)
        scale = float(np.linalg.norm(a) * np.linalg.norm(b))
        values.append(float(a @ b) / scale if scale else float(np.array_equal(a, b)))
    return float(np.mean(values))
