"""The quantise pass: how many bits each node computes with, or that it stays as it is.

A linear node may be left in floating point, take 8-bit values whose range is fixed beforehand (static, with
QuantizeLinear and DequantizeLinear around it) or found while running (dynamic), or only have its weight stored in 8 or
4 bits. What else the backend can compute on 8-bit values (sums, pools, concatenations) is a site of its own, so that a
residual stream stays whole where its rounding costs more than it gains. What a precision is worth is measured, never
assumed: a node that gets slower is left alone by the prices.

Ranges are those of least squared error on calibration data; weights are rounded per output channel, in the end with
the error of each made up for by the others (see `rounding`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphprune.calibrate import moments
from graphprune.compensate import Moments
from graphprune.context import Context
from graphprune.edit import set_constant, stands_for
from graphprune.eight_bit import Static, limits_of, weight_of
from graphprune.qdq import Writer
from graphprune.ranges import Histogram, affine, interval
from graphprune.recentre import recentre
from graphprune.rounding import (
    Rounded,
    bias_correction,
    compensated,
    compensated_by_bank,
    pack_blocks,
    round_to_nearest,
)
from graphprune.sites import Choice, Site
from graphprune.smoothing import smoothed
from graphprune.trace import Feed, exposed
from graphprune.views import View, reader_of, view_of

PRECISIONS = ("int4 weights", "int8 weights", "static", "dynamic")
"""Level -> what it means; the level after the last leaves a node as it is."""
FLOAT = len(PRECISIONS)
_BITS = {"int4 weights": 4, "int8 weights": 8, "static": 8, "dynamic": 8}
_SINCE = {"static": 10, "dynamic": 11}
"""Precision -> the opset from which there are operators for it."""
_PER_CHANNEL = 13
"""The opset from which weights may have a scale for each output without the runtime's own operators."""
_FEW_CHANNELS = 4
_BLOCK = 64
_ROUGH = 0.1
_PREFIX = "precision "
_RANGE_FEEDS = 64
_QUICK_FEEDS, _MEAN_FEEDS = 16, 48
Effort = Literal["none", "quick", "best"]
Ranges = Mapping[str, tuple[np.float32, int]]


class Quantise:
    """Fewer bits, node by node. A value of `Pass`; see `sites`."""

    name = "quantise"
    rounds = True
    reads_all = True

    def __init__(self) -> None:
        self._ranges: dict[str, Ranges] = {}
        self._asked: Collection[str] = ()
        self._known: dict[tuple, Rounded] = {}

    def prepare(self, context: Context) -> Context:
        """The same network, activations evened out where that makes rounding lose less (see `smoothing`)."""
        analysis, factors = smoothed(context.analysis, context.feeds, context.load)
        return replace(context, analysis=analysis) if factors else context

    def propose(self, context: Context) -> Sequence[Site]:
        found = []
        for node, precisions in _linear(context):
            if not self._known_range(context, node):
                precisions = tuple(p for p in precisions if p != "static")
            if precisions:
                found.append(self._site(node, "linear", precisions))
        found += [self._site(node, node.op_type, ("static",)) for node in _followers(context)
                  if self._known_range(context, node)]  # fmt: skip
        return found

    def _known_range(self, context: Context, node: ir.Node) -> bool:
        """Whether calibration data reach a node: those of an expert that no token is sent to have no range."""
        ranges = self._canonical_ranges(context)
        values = [v.name for v in (*node.inputs, *node.outputs) if v is not None]
        return not context.feeds or all(v in ranges for v in values if v in self._asked)

    @staticmethod
    def _site(node: ir.Node, about: str, precisions: Iterable[str]) -> Site:
        levels = tuple(i for i, p in enumerate(PRECISIONS) if p in precisions)
        labels = {**{i: PRECISIONS[i] for i in levels}, FLOAT: "float"}
        prior = tuple(_noise(PRECISIONS[i]) for i in levels)
        return Site(f"{_PREFIX}{node.name}", (*levels, FLOAT), (*prior, 0.0), f"precision, {about}", (node.name,),
                    False, labels)  # fmt: skip

    def choose(self, context: Context, levels: Mapping[str, int]) -> Mapping[str, Choice]:
        return {name: {"to": PRECISIONS[k]} for name, k in levels.items() if k < FLOAT}

    def apply(
        self, context: Context, model: ir.Model, choices: Mapping[str, Choice], solve: bool = True
    ) -> ir.Model:
        """Ranges are those of the canonical model as long as nothing was done to it, and for prices."""
        if not choices:
            return model
        whole = model is context.model
        ranges = self._canonical_ranges(context) if whole or not solve else None
        return self._written(context, model, choices, ranges, _QUICK_FEEDS, "quick" if solve else "none")

    def finish(self, context: Context, model: ir.Model, choices: Mapping[str, Choice]) -> ir.Model:
        """What `apply` does, with ranges of the model as it is now, rounding errors made up for and means restored."""
        if not choices:
            return model
        rounded = self._written(context, model, choices, None, _RANGE_FEEDS, "best")
        recentre(model, rounded, _some(context.feeds, _MEAN_FEEDS), context.load)
        return rounded

    def _canonical_ranges(self, context: Context) -> Ranges:
        if not context.feeds:  # a plan is replayed
            return {}
        scheme = context.integer.name  # one value of this pass may serve several engines
        if scheme not in self._ranges:
            linear = [node for node, _ in _linear(context)]
            static = Static.of(context.model, linear, _followers(context), context.integer)
            # what is carried has a range of its own wherever a choice of nodes leaves the carrier out
            values = {*static.quantised, *static.quantised.values()}
            self._ranges[scheme] = _ranges(context, context.model, values, _RANGE_FEEDS)
            self._asked = {v.name for v in values}
        return self._ranges[scheme]

    def _written(
        self, context: Context, model: ir.Model, choices: Mapping[str, Choice], ranges: Ranges | None, n_feeds: int,
        effort: Effort,
    ) -> ir.Model:  # fmt: skip
        copy = model.clone()
        to = {name.removeprefix(_PREFIX): choice["to"] for name, choice in choices.items()}
        linear = {n: to[stands_for(n)] for n in copy.graph
                  if stands_for(n) in to and n.op_type in context.integer.linear and weight_of(n)}  # fmt: skip
        followers = [n for n in copy.graph if n.op_type in context.integer.followers and to.get(n.name) == "static"]
        others = [n for n, p in linear.items() if p != "static"]
        static = Static.of(copy, linear.keys() - set(others), followers, context.integer, others)
        if ranges is None:
            ranges = _ranges(context, model, set(static.quantised.values()), n_feeds)
            ranges = {**self._canonical_ranges(context), **ranges}  # where no feed comes by any more
        rounded = self._rounded(context, model, linear, effort)
        writer = Writer(copy, ranges)
        writer.static(static, rounded, context.integer)
        for node, precision in linear.items():
            r = rounded[node.name]
            if precision == "dynamic":
                writer.dynamic(node, r)
            elif precision != "static":
                writer.packed(node, *pack_blocks(r, _BITS[precision], _BLOCK), _BITS[precision], _BLOCK)
        return copy

    def _rounded(self, context: Context, model: ir.Model, linear: Mapping[ir.Node, str], effort: Effort):
        """Rounded weights [out, in] by node, errors made up for as far as the inputs' moments are known: those of this
        very model ("best"), or of the canonical one where the node takes what it takes there ("quick"). What rounding
        does to the mean outputs goes into the biases, in place."""
        views = {n.name: v for n in linear if effort != "none" and (v := _view(n)) is not None}
        if effort == "best":
            found = moments(model, list(views.values()), context.feeds, context.load) if views else {}
        else:
            views = {n: v for n, v in views.items() if n in context.linear and v.key() == context.linear[n].key()}
            found = context.moments_of(views.values())
        rounded = {}
        for node, precision in linear.items():
            own = found[views[node.name].key()] if node.name in views else None
            matrix = weight_of(node).matrix
            if own is not None and len(own[0].mean) != matrix.shape[1]:
                own = None  # some inputs are gone
            bias = _own_bias(node) if own is not None else None
            rounded[node.name] = r = self._made_up(node.name, matrix, precision, own, _n_banks(node), bias is not None,
                                                       effort)  # fmt: skip
            if bias is not None:
                shift = bias_correction(matrix, r, np.array([m.mean for m in own]))
                old = bias.const_value.numpy()
                set_constant(bias, (old + shift.reshape(old.shape)).astype(old.dtype))
        return rounded

    def _made_up(
        self, name: str, matrix: np.ndarray, precision: str, own: Sequence[Moments] | None, n_banks: int,
        centre: bool, effort: Effort,
    ) -> Rounded:  # fmt: skip
        bits, block = _BITS[precision], _BLOCK if "weights" in precision else None
        if effort == "none":
            return round_to_nearest(matrix, bits=bits, block=block)
        key = (name, bits, block, centre, matrix.shape, hash(matrix.tobytes()))
        if effort == "best" or key not in self._known:
            if own is None and n_banks == len(matrix) > 1:
                found = compensated_by_bank(matrix, [_smooth_inputs(matrix.shape[1])] * n_banks, bits=bits)
            elif own is None:
                found = round_to_nearest(matrix, bits=bits, block=block, search=True)
            elif len(own) == 1:
                found = compensated(matrix, own[0], bits=bits, block=block, centre=centre)
            else:
                found = compensated_by_bank(matrix, own, bits=bits, centre=centre)
            self._known[key] = found
        return self._known[key]


def _n_banks(node: ir.Node) -> int:
    return node.attributes["group"].value if node.op_type == "Conv" and "group" in node.attributes else 1


def _smooth_inputs(n: int) -> Moments:
    """What the taps of a depthwise convolution mostly see, where nothing is known of them: one large mean, so that the
    sum of the weights matters most."""
    return Moments(np.ones((n, n)) + _ROUGH * np.eye(n), np.zeros(n), 1)


def _own_bias(node: ir.Node) -> ir.Value | None:
    """The constant bias of a Conv or Gemm, one number per output as it is added, that nothing else takes."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or not bias.is_initializer() or len(bias.uses()) > 1 or bias.is_graph_output():
        return None
    plain = "beta" not in node.attributes or node.attributes["beta"].value == 1
    return bias if plain and bias.const_value.size == len(weight_of(node).matrix) else None


def _noise(precision: str) -> float:
    """Relative squared error of rounding a normal variable to a range of eight standard deviations, of weights and,
    where they are rounded, of activations."""
    return 64 / 12 / 4 ** _BITS[precision] * (1 if "weights" in precision else 2)


def _linear(context: Context) -> list[tuple[ir.Node, tuple[str, ...]]]:
    """Linear nodes of the canonical model that the backend can compute with few bits, and how."""
    found, opset = [], context.model.opset_imports.get("", 1)
    for node in context.model.graph:
        since = _SINCE | ({"static": _PER_CHANNEL} if context.integer.symmetric else {})
        precisions = tuple(p for p in context.integer.linear.get(node.op_type, ()) if opset >= since.get(p, 1))
        if precisions and not node.domain and weight_of(node) is not None and not _too_few(context, node):
            found.append((node, precisions))
    return found


def _too_few(context: Context, node: ir.Node) -> bool:
    """Whether a convolution takes so few channels that engines with symmetric values may have no kernel for it."""
    if not context.integer.symmetric or node.op_type != "Conv" or _n_banks(node) > 1:
        return False
    return node.inputs[1].const_value.shape[1] <= _FEW_CHANNELS


def _followers(context: Context) -> list[ir.Node]:
    """Nodes that can take 8-bit values, some of which a chosen node could give."""
    found, gives = [], {id(node.outputs[0]) for node, _ in _linear(context) if node.op_type == "Conv"}
    kernels = context.integer
    for node in context.model.graph:
        data = [v for v in node.inputs if v is not None]
        reached = any(id(v) in gives for v in data)
        if not reached or node.domain:
            continue
        if node.op_type in kernels.followers and all(_is_float(v) for v in data):
            found.append(node)
        elif node.op_type not in kernels.carriers and node.op_type not in ("Relu", "Clip"):
            continue
        gives |= {id(y) for y in node.outputs}
    return found


def _is_float(value: ir.Value) -> bool:
    return not value.is_initializer() and value.dtype == ir.DataType.FLOAT


def _view(node: ir.Node) -> View | None:
    reader = reader_of(node)
    return None if reader is None else view_of(reader, node, node.inputs[1])


def _ranges(context: Context, model: ir.Model, values: Collection[ir.Value], n_feeds: int) -> Ranges:
    """Scale and zero point of 8-bit values, from their histograms over calibration feeds, as far as there are any."""
    limits = {v.name: limits_of(v) for v in values}
    names = sorted(limits)
    inside = sorted(set(names) - {v.name for v in model.graph.inputs})
    if not names or not context.feeds:
        return {}
    run = context.load(exposed(model, inside)) if inside else lambda feed: {}
    histograms = {name: Histogram() for name in names}
    for feed in _some(context.feeds, n_feeds):
        found = {**feed, **run(feed)}
        for name in names:
            histograms[name].add(found[name])
    seen = {name: h for name, h in histograms.items() if h.n_values}
    if context.integer.symmetric:
        return {name: _around_zero(*interval(h, "mse")) for name, h in seen.items()}
    return {name: _within(*affine(*interval(h, "mse"), np.uint8), limits[name]) for name, h in seen.items()}


def _around_zero(low: float, high: float) -> tuple[np.float32, int]:
    """The scale of int8 values around zero."""
    return np.float32(max(abs(low), abs(high), float(np.finfo(np.float32).tiny)) / 127), 0


def _within(scale: np.ndarray, zero: np.ndarray, limits: tuple[float, float] | None) -> tuple[np.float32, int]:
    """The grid, made as much finer as it must be to end within the limits of a clip: only where nothing on the grid
    would be clipped does a runtime leave the clip out and compute in 8 bits what is before it."""
    scale, zero = np.float32(scale), int(zero)
    if limits is None or limits[0] > 0 or limits[1] < 0:
        return scale, zero

    def fitting(zero: int) -> np.float32:
        ends = [(-limits[0], zero), (limits[1], 255 - zero)]
        finest = np.float32(min([float(scale), *(end / steps for end, steps in ends if steps)]))
        while any(finest * np.float32(steps) > end for end, steps in ends):
            finest = np.nextafter(finest, np.float32(0))
        return finest

    tried = {z: fitting(z) for z in (zero, zero - 1, zero + 1) if 0 <= z <= 255}
    best = max(tried, key=tried.get)
    return (tried[best], best) if tried[best] > 0 else (scale, zero)


def _some(feeds: Sequence[Feed], n: int) -> Sequence[Feed]:
    """About n of the feeds, evenly spaced."""
    return feeds[:: max(1, len(feeds) // n)]
