"""Even out activations whose channels differ too much for one scale, before any are rounded (SmoothQuant, arXiv
2211.10438; between convolutions: cross-layer equalisation, arXiv 1906.04721).

Where all that read a value are linear layers, its channels may be divided by any positive factors that their weights
are multiplied by, as long as whatever makes the value has constants to take the division: the scale of a norm, another
linear layer, with nothing but homogeneous operators between. The network computes the same, at no operator more. It is
done only where rounding, tried on calibration data, really loses less; the same for all engines, so that one
calibration does for several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphprune.calibrate import Load
from graphprune.edit import set_constant
from graphprune.groups import Analysis
from graphprune.ranges import Histogram, affine, interval
from graphprune.rounding import round_to_nearest, smooth
from graphprune.trace import Feed, exposed
from graphprune.views import View, reader_of, view_of

Array = np.ndarray
_STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""How much of the unevenness of the activations goes into the weights."""
_WORTH = 0.8
"""Share of the squared error up to which it is done."""
_FEEDS, _ROWS = 16, 512
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity", "Dropout")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")


@dataclass(frozen=True)
class Place:
    """A value that may be divided channel by channel.

    axis: of its channels, from the end. makers: names of the constants to divide, and which of their axes.
    views: its readers.
    """

    value: str
    axis: int
    makers: tuple[tuple[str, int], ...]
    views: tuple[View, ...]


@dataclass
class _Seen:
    """What calibration shows of a value: the largest magnitude of each channel [channels], some values [n, channels],
    and some rows of what its readers take, of each filter bank, by `View.key`."""

    largest: Array | float = 0.0
    values: list[Array] = field(default_factory=list)
    rows: dict[tuple, list[list[Array]]] = field(default_factory=dict)


def find_places(analysis: Analysis) -> list[Place]:
    """Values read by linear layers alone, behind what can take a division."""
    found = []
    for node in analysis.model.graph:
        for value in node.outputs:
            place = _place(value, analysis)
            if place is not None:
                found.append(place)
    return found


def smoothed(analysis: Analysis, feeds: Sequence[Feed], load: Load) -> tuple[Analysis, dict[str, Array]]:
    """The same network with some values evened out -> (its analysis, {value: what its channels are divided by [n]})."""
    places = find_places(analysis)
    if not places or not feeds:
        return analysis, {}
    seen = _look(analysis.model, places, feeds, load)
    constants = {n: v.const_value.numpy() for n, v in analysis.model.graph.initializers.items()}
    factors = {p.value: f for p in places if (f := _factors(p, seen[p.value], constants)) is not None}
    if not factors:
        return analysis, {}
    model = analysis.model.clone()
    for place in places:
        if place.value in factors:
            _carry_out(model, place, factors[place.value])
    return replace(analysis, model=model), factors


def _place(value: ir.Value, analysis: Analysis) -> Place | None:
    uses = list(value.uses())
    shape = analysis.types.shapes.get(value.name)
    if not uses or not shape or value.is_graph_output() or value.dtype != ir.DataType.FLOAT:
        return None
    views = []
    for use in uses:
        reader = reader_of(use.node) if use.idx == 0 and use.node.graph is analysis.model.graph else None
        view = None if reader is None else view_of(reader, use.node, use.node.inputs[1])
        if view is None or not _own(use.node.inputs[1]):
            return None
        views.append(view)
    axis = (1 if views[0].reader.kind == "conv" else len(shape) - 1) - len(shape)
    if any((v.reader.kind == "conv") != (axis != -1) for v in views):
        return None
    makers = _makers(value, axis, shape[axis], analysis.types.shapes)
    return None if makers is None else Place(value.name, axis, tuple(makers), tuple(views))


def _makers(
    value: ir.Value, axis: int, n: int, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, int]] | None:
    """The constants whose division divides the value, with the axis of its channels in each; None if there are none."""
    node = value.producer()
    if node is None:
        return None
    data = node.inputs[0] if node.inputs else None
    if node.op_type in _NORMS:
        constants = [v for v in node.inputs[1:] if v is not None]
        fits = axis == -1 and len(node.outputs) == 1 and constants
        return [(v.name, -1) for v in constants] if fits and all(_channels(v, -1, n) for v in constants) else None
    if node.domain:
        return None
    reader = reader_of(node)
    if reader is not None:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        constants = [(node.inputs[1], 0 if reader.kind == "conv" else reader.produced)]
        if bias is not None:
            constants.append((bias, -1))
        fits = axis == (1 - len(shapes[value.name]) if reader.kind == "conv" else -1)
        return [(v.name, i) for v, i in constants] if fits and all(_channels(v, i, n) for v, i in constants) else None
    if node.op_type in _HOMOGENEOUS or (node.op_type in _POOLS and axis == 1 - len(shapes[value.name]) < -1):
        return _passed_on(data, axis, n, shapes)
    if node.op_type in ("Mul", "Div", "Add", "Sub") and len(node.inputs) == 2:
        return _arithmetic(node, axis, n, shapes)
    return None


def _arithmetic(
    node: ir.Node, axis: int, n: int, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, int]] | None:
    """Of a sum both terms must be divided, of a product either."""
    a, b = node.inputs
    if node.op_type in ("Add", "Sub"):
        parts = [[(v.name, axis)] if v.is_initializer() and _channels(v, axis, n) else _passed_on(v, axis, n, shapes)
                 for v in (a, b)]  # fmt: skip
        constant = a.is_initializer() or b.is_initializer()
        return None if None in parts or not constant else [*parts[0], *parts[1]]
    for v in (b, a) if node.op_type == "Mul" else ():
        if v.is_initializer() and _channels(v, axis, n):
            return [(v.name, axis)]
    for v in (a, b) if node.op_type == "Mul" else (a,):
        found = _passed_on(v, axis, n, shapes)
        if found is not None:
            return found
    return None


def _passed_on(
    value: ir.Value | None, axis: int, n: int, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, int]] | None:
    """`_makers` of a value on the way: nothing else may see it."""
    if value is None or value.is_graph_output() or len(list(value.uses())) != 1:
        return None
    shape = shapes.get(value.name, ())
    return _makers(value, axis, n, shapes) if len(shape) >= -axis and shape[axis] == n else None


def _own(constant: ir.Value) -> bool:
    return constant.is_initializer() and len(list(constant.uses())) == 1 and not constant.is_graph_output()


def _channels(constant: ir.Value, axis: int, n: int) -> bool:
    """Whether a constant has a number for each channel along this axis, and nobody else takes it."""
    if not _own(constant) or constant.dtype != ir.DataType.FLOAT:
        return False
    shape = tuple(constant.const_value.shape)
    return -len(shape) <= axis < len(shape) and shape[axis] == n


def _look(model: ir.Model, places: Sequence[Place], feeds: Sequence[Feed], load: Load) -> dict[str, _Seen]:
    run = load(exposed(model, [p.value for p in places]))
    seen = {p.value: _Seen() for p in places}
    some = feeds[:: max(1, len(feeds) // _FEEDS)][:_FEEDS]
    limit = max(1, _ROWS // len(some))
    for feed in some:
        found = run(feed)
        for place in places:
            x, of = found[place.value], seen[place.value]
            channels = np.moveaxis(x, place.axis, -1).reshape(-1, x.shape[place.axis])
            of.largest = np.maximum(of.largest, np.abs(channels).max(0, initial=0.0))
            of.values.append(channels[:: max(1, len(channels) // limit)])
            for key, view in {v.key(): v for v in place.views}.items():
                of.rows.setdefault(key, []).append(view.rows(x, limit))
    return seen


def _factors(place: Place, seen: _Seen, constants: Mapping[str, Array]) -> Array | None:
    """What to divide the channels by; None where rounding would hardly lose less."""
    values = np.concatenate(seen.values)
    n = values.shape[1]
    weights = {v.reader.node: v.matrices(constants[v.reader.w]) for v in place.views}
    rows = {key: [np.concatenate(bank) for bank in zip(*found, strict=True)] for key, found in seen.rows.items()}
    if not np.isfinite(values).all() or not len(values):
        return None

    def lost(factors: Array) -> float:
        rounded = _rounding(values / factors)
        return sum(_error(v, rows[v.key()], weights[v.reader.node], factors, rounded) for v in place.views)

    by_channel = [_by_channel(weights[v.reader.node], v.taps) for v in place.views]
    candidates = [smooth(seen.largest, by_channel, alpha) for alpha in _STRENGTHS]
    losses = [lost(f) for f in candidates]
    best = int(np.argmin(losses))
    return candidates[best] if losses[best] < _WORTH * lost(np.ones(n, np.float32)) else None


def _by_channel(banks: Sequence[Array], taps: int) -> Array:
    """Weights [out, in / banks x taps] per bank as [what reads it, in]."""
    parts = [w.reshape(len(w), -1, taps).transpose(0, 2, 1).reshape(len(w) * taps, -1) for w in banks]
    return np.concatenate(parts, axis=1)


def _rounding(values: Array) -> Callable[[Array], Array]:
    """To the nearest of the 8-bit numbers that cover these values."""
    histogram = Histogram()
    histogram.add(values)
    scale, zero = affine(*interval(histogram, "mse"), np.uint8)
    scale, zero = np.float32(scale), np.float32(zero)
    return lambda x: (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def _error(
    view: View, rows: Sequence[Array], banks: Sequence[Array], factors: Array, rounded: Callable[[Array], Array]
) -> float:
    """Relative squared error of a reader's output where its input and its weights are rounded."""
    error = power = 0.0
    for x, w, own in zip(rows, banks, np.split(factors, len(banks)), strict=True):
        own = np.repeat(own, view.taps)
        want = x @ w.T
        have = rounded(x / own) @ round_to_nearest(w * own).dequantised().astype(np.float32).T
        error += float(np.square(want - have).sum())
        power += float(np.square(want).sum())
    return error / max(power, float(np.finfo(np.float32).tiny))


def _carry_out(model: ir.Model, place: Place, factors: Array) -> None:
    for name, axis in place.makers:
        _scale(model, name, 1 / factors, axis)
    for view in place.views:
        constant = model.graph.initializers[view.reader.w]
        weight = constant.const_value.numpy()
        banks = [w * np.repeat(own, view.taps)
                 for w, own in zip(view.matrices(weight), np.split(factors, view.banks), strict=True)]  # fmt: skip
        set_constant(constant, view.weight(banks, weight, weight.shape[view.reader.contracted]).astype(weight.dtype))


def _scale(model: ir.Model, name: str, by: Array, axis: int) -> None:
    constant = model.graph.initializers[name]
    old = constant.const_value.numpy()
    shape = [1] * old.ndim
    shape[axis] = len(by)
    set_constant(constant, (old * by.reshape(shape)).astype(old.dtype))
