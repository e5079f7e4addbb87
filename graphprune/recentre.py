"""Give rounded layers the mean outputs that they had before, front to back.

Rounding to 8 bits shifts what a channel gives on average, the more so the fewer inputs it sums over (depthwise
convolutions most), and shifts add up along a network. The mean of each output channel is compared with the float
model's on calibration feeds, layer by layer with all layers before it mended already, and the difference goes into the
bias, at no cost in time (bias correction: Nagel et al., arXiv 1906.04721, here on data).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune.calibrate import Load, packed
from graphprune.edit import set_constant
from graphprune.eight_bit import MOST_BIAS
from graphprune.trace import Feed, exposed

_VALUES_BYTES = 500_000_000


@dataclass(frozen=True)
class _Layer:
    """An 8-bit linear node with a constant bias of its own. was: the float model's value that it gives."""

    node: ir.Node
    bias: ir.Value
    was: ir.Value

    @property
    def value(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return 1 if self.node.op_type == "Conv" else -1


def recentre(before: ir.Model, rounded: ir.Model, feeds: Sequence[Feed], load: Load) -> None:
    """Shift the biases of 8-bit layers of `rounded`, in place, to the channel means of the same values of `before`."""
    layers = _layers(before, rounded)
    sizes = _sizes(before, feeds)

    def together(some: Sequence[_Layer]) -> Iterator[list[_Layer]]:
        return packed(some, lambda layer: _n_bytes(layer, sizes, feeds), _VALUES_BYTES)

    wanted: dict[str, np.ndarray] = {}
    for part in together(layers):
        wanted |= _means(before, {layer.was.name: layer.axis for layer in part}, feeds, load)
    for stage in _stages(rounded, layers):
        for part in together(stage):
            have = _means(rounded, {layer.value.name: layer.axis for layer in part}, feeds, load)
            for layer in part:
                _shift(layer.bias, wanted[layer.was.name] - have[layer.value.name])


def _layers(before: ir.Model, rounded: ir.Model) -> list[_Layer]:
    """The layers to mend. One that gives an output of the graph may give it under another name, and one that took in
    the Add behind it is another operator; never both."""
    nodes = {node.name: node for node in before.graph}
    values = {y.name: y for node in before.graph for y in node.outputs}
    found = []
    for node in rounded.graph:
        bias, same = _bias_of(node), nodes.get(node.name)
        if bias is not None:
            was = same.outputs[0] if same is not None and same.op_type == node.op_type else values.get(
                node.outputs[0].name)  # fmt: skip
            if was is not None:
                found.append(_Layer(node, bias, was))
    return found


def _bias_of(node: ir.Node) -> ir.Value | None:
    """The constant bias of an 8-bit layer, if nobody else takes it: of whole steps behind a DequantizeLinear, or a
    plain one."""
    if node.op_type == "MatMulIntegerToFloat":
        bias = node.inputs[6] if len(node.inputs) > 6 else None
        return bias if bias is not None and _is_own_constant(bias) else None
    if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    back = node.inputs[2].producer()
    if back is None or back.op_type != "DequantizeLinear" or len(back.outputs[0].uses()) > 1:
        return None
    whole, step = back.inputs[:2]
    return whole if _is_own_constant(whole) and step.is_initializer() and whole.dtype == ir.DataType.INT32 else None


def _is_own_constant(value: ir.Value) -> bool:
    return value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output()


def _shift(bias: ir.Value, by: np.ndarray) -> None:
    """by: float64 [out]; what is not finite, as where the model itself gives such numbers, shifts nothing."""
    now, by = bias.const_value.numpy(), np.where(np.isfinite(by), by, 0.0)
    if now.dtype.kind == "f":
        set_constant(bias, now + by.reshape(now.shape).astype(now.dtype))
        return
    (use,) = bias.uses()
    step = use.node.inputs[1].const_value.numpy().astype(np.float64)
    set_constant(bias, np.clip(now + np.rint(by / step), -MOST_BIAS, MOST_BIAS).astype(np.int32))


def _means(model: ir.Model, axes: Mapping[str, int], feeds: Sequence[Feed], load: Load) -> dict[str, np.ndarray]:
    """Mean of some values over everything but channels, axes[value] being theirs: float64 [channels]."""
    needed = exposed(model, list(axes))
    RemoveUnusedNodesPass()(needed)  # runtimes run what is behind, too
    run = load(needed)
    sums: dict[str, np.ndarray | float] = dict.fromkeys(axes, 0.0)
    rows = dict.fromkeys(axes, 0)
    for feed in feeds:
        outputs = run(feed)
        for name, axis in axes.items():
            y = outputs[name]
            others = tuple(i for i in range(y.ndim) if i != axis % y.ndim)
            sums[name] = sums[name] + y.sum(axis=others, dtype=np.float64)
            rows[name] += y.size // max(y.shape[axis], 1)
    return {name: sums[name] / max(rows[name], 1) for name in axes}


def _sizes(model: ir.Model, feeds: Sequence[Feed]) -> dict[str, int]:
    """The largest size that each named axis of the inputs has in the feeds."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        for feed in feeds if value.shape is not None else ():
            for axis, size in zip(value.shape, np.shape(feed.get(value.name, ())), strict=False):
                if isinstance(axis, ir.SymbolicDim) and axis.value is not None:
                    found[axis.value] = max(found.get(axis.value, 0), size)
    return found


def _n_bytes(layer: _Layer, sizes: Mapping[str, int], feeds: Sequence[Feed]) -> int:
    """What the layer's output takes; where its shape is unknown, as if it had as many rows as the largest input has
    numbers: a row for every pixel or token."""
    shape = layer.was.shape
    known = [] if shape is None else [n if isinstance(n, int) else sizes.get(n.value) for n in shape]
    if shape is not None and None not in known:
        return 4 * math.prod(known)
    return 4 * layer.bias.const_value.size * max((a.size for feed in feeds for a in feed.values()), default=1)


def _stages(model: ir.Model, layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """Layers by the number of layers before them: those of one stage do not depend on one another."""
    level: dict[ir.Value, int] = {}
    stages: dict[int, list[_Layer]] = {}
    of = {layer.node: layer for layer in layers}
    for node in model.graph:
        at = max((level.get(v, 0) for v in node.inputs if v is not None), default=0)
        if node in of:
            stages.setdefault(at, []).append(of[node])
            at += 1
        level |= dict.fromkeys(node.outputs, at)
    yield from (stages[i] for i in sorted(stages))
