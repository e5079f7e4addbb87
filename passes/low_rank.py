"""The low-rank pass: give a linear layer the best rank r on its data, as two smaller layers in its place.

MatMul, Gemm and Conv; a convolution as k x k to r channels and then 1 x 1, or as k x 1 and then 1 x k, whichever loses
less at equal multiply-adds. The mathematics is in `factor`. What lies between the two layers is new, so unlike a
width a rank binds nothing else. Queries and keys, and values and their readers, have a joint low rank too, which costs
no operator: their bases are turned (`align`), and the width pass takes dimensions out of the heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import onnx_ir as ir

from graphprune.compensate import Moments
from graphprune.context import Context
from graphprune.edit import new_constant, shrunk_to, stand_for
from graphprune.factor import (
    Factors,
    Form,
    as_it_falls,
    better_form,
    break_even,
    factors_of,
    full_rank,
    mean_error,
    metric_of,
    relative,
    spatial_matrix,
)
from graphprune.keeps import kept, new_size
from graphprune.sites import Choice, Site
from graphprune.views import View, bias_of, find_bias, put_bias

Array = np.ndarray

_PREFIX = "rank "
_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8)  # of the node's multiply-adds
_LEAST_RANKS = 3
_REMEMBERED = 3  # weights a node whose factors are kept: the dense one, and what the width pass made of it


def rank_levels(shape: Sequence[int], form: Form, strides: Sequence[int] = ()) -> tuple[int, ...]:
    """Ranks worth pricing for a weight [out, in] or [out, in, *kernel], ascending, the last one leaving it as it is.

    From an eighth to five eighths of its multiply-adds, in multiples of 8, above 64 of 16: vector units make ranks in
    between as slow as the next multiple.
    """
    even, full = break_even(shape, form, strides), full_rank(shape, form)
    ranks = set()
    for share in _SHARES:
        grain = 8 if share * even < 64 else 16
        ranks.add(max(1, round(share * even / grain)) * grain)
    return (*sorted(r for r in ranks if r < min(even, full)), full)


class LowRank:
    """A lower rank for every linear layer that would gain by it. A value of `Pass`; see `sites`.

    A node n becomes `n.down` and `n.up`; the output keeps its name, and the bias stays where it was and takes the mean
    of what is lost. A weight that several nodes share is left alone: one of them would have to keep it anyway.
    """

    name = "low-rank"
    reads_all = True

    def __init__(self) -> None:
        self._forms: dict[str, Form] = {}
        self._factors: dict[str, dict[tuple, Factors]] = {}

    def propose(self, context: Context) -> Sequence[Site]:
        layers = [layer for name in context.linear if (layer := _candidate(context, name)) is not None]
        if context.compensate:
            context.moments_of([layer.view for layer in layers])
        return [site for layer in layers if (site := self._site(context, layer)) is not None]

    def _site(self, context: Context, layer: _Layer) -> Site | None:
        inputs = _Inputs.of(context, layer, context.model)
        form = better_form(layer.weight, inputs.metric(), layer.strides) if layer.view.window else "matmul"
        levels = rank_levels(layer.weight.shape, form, layer.strides)
        if len(levels) <= _LEAST_RANKS:
            return None
        self._forms[layer.node.name] = form
        factors = self._factored(layer, form, inputs, levels[-2])
        return Site(
            _PREFIX + layer.node.name,
            levels,
            (*(relative(factors, r) for r in levels[:-1]), 0.0),
            f"rank of {len(layer.weight)} x {layer.weight[0].size}, {form}",
            (layer.node.name,),
            labels={r: f"rank {r}" for r in levels[:-1]} | {levels[-1]: "whole"},
            replaces=True,
        )

    def choose(self, context: Context, levels: Mapping[str, int]) -> Mapping[str, Choice]:
        chosen = {}
        for site, rank in levels.items():
            name = site.removeprefix(_PREFIX)
            form = self._forms[name]
            if rank < full_rank(_Layer.of(context, context.nodes[name]).weight.shape, form):
                chosen[site] = {"rank": int(rank), "how": form}
        return chosen

    def apply(
        self, context: Context, model: ir.Model, choices: Mapping[str, Choice], solve: bool = True
    ) -> ir.Model:
        copy = model.clone()
        nodes = {node.name: node for node in copy.graph}
        for site, choice in choices.items():
            node = nodes.get(site.removeprefix(_PREFIX))
            if node is not None:
                layer = _Layer.of(context, node)
                down, up, shift = self._halves(context, copy, layer, choice["rank"], choice["how"], solve)
                _split(layer, choice["how"], down, up, shift)
        return copy

    def _halves(
        self, context: Context, model: ir.Model, layer: _Layer, rank: int, form: Form, solve: bool
    ) -> tuple[Array, Array, Array | None]:
        """Both weights, and what to add to the bias [out]; None where it stays out of this."""
        opens = context.compensate and layer.takes_shift
        if not solve:
            return *as_it_falls(layer.weight, form, rank), np.zeros(len(layer.weight)) if opens else None
        inputs = _Inputs.of(context, layer, model)
        down, up = self._factored(layer, form, inputs, rank).at(rank)
        if not opens:
            return down, up, None
        matrix = spatial_matrix(down, up) if form == "spatial" else up @ down
        return down, up, mean_error(layer.weight.reshape(len(up), -1), inputs.mean, matrix)

    def _factored(self, layer: _Layer, form: Form, inputs: _Inputs, rank: int) -> Factors:
        """Factors of the layer up to `rank` at least; kept, as probes and candidates ask for the same ones again."""
        known = self._factors.setdefault(layer.node.name, {})
        key = (form, inputs.key, blake2b(np.ascontiguousarray(layer.weight)).digest())
        factors = known.pop(key, None)
        if factors is None or factors.most < min(rank, factors.full):
            largest = rank_levels(layer.weight.shape, form, layer.strides)[-2:][0]
            factors = factors_of(layer.weight, form, inputs.metric(), max(rank, largest))
        known[key] = factors  # the one used last comes last
        while len(known) > _REMEMBERED:
            del known[next(iter(known))]
        return factors


@dataclass(frozen=True)
class _Layer:
    """A linear node as it is in the model at hand. weight: [out, in] or [out, in, *kernel]."""

    view: View
    node: ir.Node
    weight: Array

    @classmethod
    def of(cls, context: Context, node: ir.Node) -> _Layer:
        view, weight = context.linear[node.name], node.inputs[1].const_value.numpy()
        return cls(view, node, weight if view.window else view.matrices(weight)[0])

    @property
    def strides(self) -> tuple[int, ...]:
        return self.view.window[1] if self.view.window else ()

    @property
    def takes_shift(self) -> bool:
        """Whether a constant can be added to the output without an operator more."""
        if self.node.op_type == "Gemm" and not _number(self.node, "beta"):
            return False
        if find_bias(self.node, len(self.weight)).node is not None:
            return True
        none = len(self.node.inputs) < 3 or self.node.inputs[2] is None
        return none and self.node.op_type in ("Conv", "Gemm")


@dataclass(frozen=True)
class _Inputs:
    """What a layer reads on the calibration data. moments: of the inputs it had (None: not asked for). columns: those
    of them that the width pass has left (None: all)."""

    moments: Moments | None
    columns: Array | None
    centred: bool

    @classmethod
    def of(cls, context: Context, layer: _Layer, model: ir.Model) -> _Inputs:
        if not context.compensate:
            return cls(None, None, False)
        view, keeps = layer.view, shrunk_to(model)
        (moments,) = context.moments_of([view])[view.key()]
        t = context.analysis.types.axes[view.reader.w][view.reader.contracted]
        columns = None
        if new_size(t, keeps) < t.size:
            columns = (kept(t, keeps)[:, None] * view.taps + np.arange(view.taps)).reshape(-1)
        return cls(moments, columns, layer.takes_shift)

    @property
    def mean(self) -> Array:
        return self.moments.mean if self.columns is None else self.moments.mean[self.columns]

    @property
    def key(self) -> tuple:
        return (self.moments is None, self.centred, None if self.columns is None else self.columns.tobytes())

    def metric(self) -> Array | None:
        """Second moments [in, in] for `factor`; None for the plain norm of the weight."""
        if self.moments is None:
            return None
        left = self.moments
        if self.columns is not None:
            left = Moments(left.gram[np.ix_(self.columns, self.columns)], self.mean, left.n_samples)
        return metric_of(left, centre=self.centred)


def _candidate(context: Context, name: str) -> _Layer | None:
    """The layer of a node that has a weight of its own, large enough for several ranks."""
    view, node = context.linear[name], context.nodes[name]
    w = node.inputs[1]
    shared = len(w.uses()) > 1 or w.is_graph_output() or w.is_graph_input()
    if view.banks > 1 or shared or w.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    if {f"{name}.down", f"{name}.up"} & context.nodes.keys():
        return None
    layer = _Layer.of(context, node)
    forms = ("matmul",) if not view.window else ("channel", "spatial") if layer.weight.ndim == 4 else ("channel",)
    enough = any(len(rank_levels(layer.weight.shape, f, layer.strides)) > _LEAST_RANKS for f in forms)
    return layer if enough else None


def _split(layer: _Layer, form: Form, down: Array, up: Array, shift: Array | None) -> None:
    """Put the node n.down before the node, which becomes n.up: its output, attributes and bias are where they were."""
    node, view, name = layer.node, layer.view, layer.node.name
    graph, old, rank = node.graph, node.inputs[1], len(down)
    if view.window:
        one = (1,) * len(view.window[0])
        down, up = (w.reshape(*w.shape[:2], *one) if w.ndim == 2 else w for w in (down, up))
        if form == "channel":
            down = down.reshape(rank, -1, *view.window[0])
        first = ir.node("Conv", [node.inputs[0]], name=f"{name}.down", version=node.version)
        _set_windows(first, node, form, view.window)
    else:
        first = ir.node("MatMul", [node.inputs[0]], name=f"{name}.down", version=node.version)
        down, up = down.T, up if view.reader.contracted else up.T
    first.resize_inputs(2)
    dtype = old.dtype.numpy()
    first.replace_input_with(1, new_constant(graph, f"{name}.down.weight", np.ascontiguousarray(down, dtype)))
    between, y = first.outputs[0], node.outputs[0]
    between.name, between.type, between.shape = f"{y.name}.down", y.type, _between(layer, form, rank)
    graph.insert_before(node, first)
    node.name = f"{name}.up"
    node.replace_input_with(0, between)
    node.replace_input_with(1, new_constant(graph, f"{name}.up.weight", np.ascontiguousarray(up, dtype)))
    if not old.uses() and not old.is_graph_output():
        del graph.initializers[old.name]
    stand_for(first, name)
    stand_for(node, name)
    if shift is not None:
        if node.op_type == "Gemm":
            shift = shift * _number(node, "alpha") / _number(node, "beta")
        bias = bias_of(node, len(shift))
        put_bias(node, shift if bias is None else shift + bias, old.dtype)


def _number(node: ir.Node, attribute: str) -> float:
    return node.attributes[attribute].value if attribute in node.attributes else 1.0


def _set_windows(down: ir.Node, up: ir.Node, form: Form, window: tuple[tuple[int, ...], ...]) -> None:
    """Kernel, strides, dilations and pads of both halves of a convolution."""
    kernel, strides, dilations, pads = window
    n = len(kernel)
    halves = {down: range(n) if form == "channel" else range(1), up: range(0) if form == "channel" else range(1, n)}
    up.attributes.pop("auto_pad", None)
    for node, axes in halves.items():
        own = {
            "kernel_shape": [kernel[i] if i in axes else 1 for i in range(n)],
            "strides": [strides[i] if i in axes else 1 for i in range(n)],
            "dilations": [dilations[i] if i in axes else 1 for i in range(n)],
            "pads": [pads[i] if i % n in axes else 0 for i in range(2 * n)],
        }
        for name, values in own.items():
            node.attributes[name] = ir.AttrInt64s(name, values)


def _between(layer: _Layer, form: Form, rank: int) -> ir.Shape | None:
    """The shape of what lies between the two halves, as far as it is known."""
    x, y = layer.node.inputs[0].shape, layer.node.outputs[0].shape
    if y is None or (form == "spatial" and x is None):
        return None
    axes = list(y)
    axes[1 if layer.view.window else -1] = rank
    if form == "spatial":
        axes[3] = x[3]
    return ir.Shape(axes)
