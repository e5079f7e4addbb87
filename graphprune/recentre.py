"""Give rounded layers the mean outputs that they had before, front to back.

Rounding to 8 bits shifts what a channel gives on average, the more so the fewer inputs it sums over (depthwise
convolutions most), and shifts add up along a network. The mean of each output channel is compared with the float
model's on calibration feeds, layer by layer with all layers before it mended already, and the difference goes into the
bias, at no cost in time (bias correction: Nagel et al., arXiv 1906.04721, here on data).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphprune.calibrate import Load, packed
from graphprune.edit import set_constant
from graphprune.trace import Feed, exposed

_VALUES_BYTES = 500_000_000


def recentre(before: ir.Model, rounded: ir.Model, feeds: Sequence[Feed], load: Load) -> None:
    """Shift the biases of 8-bit layers of `rounded`, in place, to the channel means of the same values of `before`."""
    layers = {node.name: bias for node in rounded.graph if (bias := _bias_of(node)) is not None}
    dense = {y.name for node in before.graph for y in node.outputs}
    nodes = {node.name: node for node in rounded.graph}
    names = [name for name in layers if nodes[name].outputs[0].name in dense]
    wanted = _means(before, {name: nodes[name].outputs[0].name for name in names}, nodes, feeds, load)
    for stage in _stages(rounded, names):
        values = {name: nodes[name].outputs[0].name for name in stage}
        have = _means(rounded, values, nodes, feeds, load)
        for name in stage:
            _shift(layers[name], wanted[name] - have[name])


def _bias_of(node: ir.Node) -> ir.Value | None:
    """The constant bias of an 8-bit layer: of whole steps behind a DequantizeLinear, or a plain one."""
    if node.op_type == "MatMulIntegerToFloat" and len(node.inputs) > 6:
        bias = node.inputs[6]
        return bias if bias is not None and bias.is_initializer() and len(bias.uses()) == 1 else None
    if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    back = node.inputs[2].producer()
    return back.inputs[0] if back is not None and back.op_type == "DequantizeLinear" else None


def _shift(bias: ir.Value, by: np.ndarray) -> None:
    now = bias.const_value.numpy()
    if now.dtype.kind == "f":
        set_constant(bias, now + by.reshape(now.shape).astype(now.dtype))
        return
    (use,) = bias.uses()
    step = use.node.inputs[1].const_value.numpy().astype(np.float64)
    set_constant(bias, np.clip(now + np.rint(by / step), -(2**31) + 1, 2**31 - 1).astype(np.int32))


def _means(
    model: ir.Model, values: Mapping[str, str], nodes: Mapping[str, ir.Node], feeds: Sequence[Feed], load: Load
) -> dict[str, np.ndarray]:  # fmt: skip
    """Mean over everything but channels of the output of each node: float64 [channels]."""
    found: dict[str, np.ndarray] = {}
    for part in packed(list(values), lambda name: 1, _most_at_once(model, feeds)):
        run = load(exposed(model, [values[name] for name in part]))
        sums = {name: 0.0 for name in part}
        rows = dict.fromkeys(part, 0)
        for feed in feeds:
            outputs = run(feed)
            for name in part:
                y = outputs[values[name]]
                axis = 1 if nodes[name].op_type == "Conv" else y.ndim - 1
                others = tuple(i for i in range(y.ndim) if i != axis)
                sums[name] = sums[name] + y.sum(axis=others, dtype=np.float64)
                rows[name] += y.size // y.shape[axis]
        found |= {name: sums[name] / max(rows[name], 1) for name in part}
    return found


def _most_at_once(model: ir.Model, feeds: Sequence[Feed]) -> int:
    """How many values may be exposed together: as if each were a hundred times the largest input."""
    largest = max((a.nbytes for a in feeds[0].values()), default=1)
    return max(1, _VALUES_BYTES // (100 * max(largest, 1)))


def _stages(model: ir.Model, names: Sequence[str]) -> Iterator[list[str]]:
    """Layers by the number of layers before them: those of one stage do not depend on one another."""
    level: dict[ir.Value, int] = {}
    stages: dict[int, list[str]] = {}
    wanted = set(names)
    for node in model.graph:
        at = max((level.get(v, 0) for v in node.inputs if v is not None), default=0)
        if node.name in wanted:
            stages.setdefault(at, []).append(node.name)
            at += 1
        level |= dict.fromkeys(node.outputs, at)
    yield from (stages[i] for i in sorted(stages))
