"""The depth pass: drop a residual branch, its mean left behind, or put one linear map in its place.

A site is a branch x + f(x) (see `branches`) with two or three levels: dropped, one linear map, kept. What is dropped
leaves its mean over calibration rows in the stream, a constant for each channel. That costs nothing where a bias that
is already there can take it: of the layer or the norm that makes the stream. The linear map is the least-squares one,
with a ridge toward zero, offered where it takes at most half of the branch's multiply-adds; x + A x + b is one product.

How is written down as "by" in the choice, so that a plan is replayed without data:

    linear   x + A x + b
    mean     into a bias, else by an Add of its own
    bias     into a bias that is there, else not at all: where the mean is next to nothing, or the channels of the
             stream are a group of the width pass, whose types know nothing of constants that come after typing. Such
             streams get no linear maps for the same reason.
    nothing  the branch goes, no more (all there is without compensation)

A value that takes the place of a sum takes its name too, if nothing else uses it: what is solved later (see `refit`)
then aims at what the dense model has behind the branch, not before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphprune.branch_fit import Fit, fit_branches
from graphprune.branches import Branch, find_branches
from graphprune.context import Context
from graphprune.dims import leaves
from graphprune.edit import bypass, new_constant, set_constant
from graphprune.sites import Choice, Site
from graphprune.views import put_bias

_LABELS = {0: "dropped", 1: "one linear map", 2: "kept"}
_WORTH = 0.5
"""A linear map is offered at up to this share of the branch's multiply-adds."""
_NEGLIGIBLE = 1e-3
"""A mean of less energy than this share of the sum's variance is not worth an operator."""


class Depth:
    """Dropping residual branches. A value of `Pass`; see `sites`."""

    name = "depth"

    def __init__(self) -> None:
        self._known: dict[int, tuple[ir.Model, tuple[Branch, ...]]] = {}
        self._fits: dict[int, dict[str, Fit]] = {}

    def propose(self, context: Context) -> Sequence[Site]:
        sites = []
        fits = self._fitted(context)
        for branch in self._found(context):
            fit, by = fits[branch.exit], self._ways(context, branch)
            prior = [min(fit.loss(by[level]) for level in by if level <= up_to) for up_to in by]
            sites.append(
                Site(
                    f"branch {branch.exit}", (*by, 2), (*prior, 0.0), "residual branch", branch.nodes,
                    ordered=False, labels={level: _LABELS[level] for level in (*by, 2)}, replaces=True,
                )
            )  # fmt: skip
        return sites

    def choose(self, context: Context, levels: Mapping[str, int]) -> Mapping[str, Choice]:
        branches = {f"branch {b.exit}": b for b in self._found(context)}
        return {
            name: {"branch": branches[name].exit, "by": self._ways(context, branches[name])[level]}
            for name, level in levels.items()
            if level < 2
        }

    def apply(
        self, context: Context, model: ir.Model, choices: Mapping[str, Choice], solve: bool = True
    ) -> ir.Model:
        """Front to back, so that the constants of branches dropped in a row move up together. What is done to a branch
        within one that goes, too, goes with it."""
        copy = model.clone()
        by = {choice["branch"]: choice["by"] for choice in choices.values()}
        chosen = [b for b in self._found(context) if b.exit in by]
        nodes = {node.name: node for node in copy.graph}
        fits = self._fitted(context) if solve and set(by.values()) - {"nothing"} else {}
        for branch in chosen:
            if branch.exit in nodes:  # another pass may have taken it
                _replace(nodes[branch.exit], branch, by[branch.exit], fits.get(branch.exit))
        return copy

    def _found(self, context: Context) -> tuple[Branch, ...]:
        """The branches of the canonical model."""
        key = id(context.model)  # which stays its own, as the model is kept with it
        if key not in self._known:
            self._known[key] = context.model, find_branches(context.analysis)
        return self._known[key][1]

    def _fitted(self, context: Context) -> dict[str, Fit]:
        """What calibration says of every branch, gathered when first asked for."""
        branches, key = self._found(context), id(context.model)
        if key not in self._fits:
            linear = {b.exit for b in branches if 1 in self._levels(context, b)}
            self._fits[key] = fit_branches(context, branches, linear)
        return self._fits[key]

    @staticmethod
    def _levels(context: Context, branch: Branch) -> tuple[int, ...]:
        """The levels below "kept"."""
        if not _takes_constants(context, branch) or _is_free(context, branch):
            return (0,)
        n_macs = int(np.prod(branch.shape)) * branch.n_channels
        fits_an_operator = branch.axis in (1, len(branch.shape) - 1)
        return (0, 1) if fits_an_operator and n_macs <= _WORTH * branch.n_macs else (0,)

    def _ways(self, context: Context, branch: Branch) -> dict[int, str]:
        """How the branch is replaced at each level below "kept"."""
        if not _takes_constants(context, branch):
            return {0: "nothing"}
        fit = self._fitted(context)[branch.exit]
        small = fit.raw - fit.centred <= _NEGLIGIBLE * fit.total
        drop = "bias" if small or _is_free(context, branch) else "mean"
        return {level: "linear" if level else drop for level in self._levels(context, branch)}


def _takes_constants(context: Context, branch: Branch) -> bool:
    return context.compensate and branch.axis is not None


def _is_free(context: Context, branch: Branch) -> bool:
    """Whether the width pass may shrink the stream's channels."""
    free = {group.dim for group in context.analysis.groups.values()}
    return not free.isdisjoint(leaves(context.analysis.types.axes[branch.stream][branch.axis]))


def _replace(total: ir.Node, branch: Branch, by: str, fit: Fit | None) -> None:
    """Put what `by` says in place of the branch that the node `total` adds. Without a fit, new constants are zero."""
    stream, f = total.inputs[1 - branch.operand], total.inputs[branch.operand]
    total.replace_input_with(branch.operand, None)
    _sweep(f)
    mean = np.zeros(branch.n_channels) if fit is None else fit.mean
    alone = len(stream.uses()) == 1 and not stream.is_graph_output() and stream.producer() is not None
    if by == "linear":
        _put_linear(total, branch, stream, fit)
    elif alone and by in ("mean", "bias") and _absorb(stream, branch, mean, may_add=by == "mean"):
        _stand_in(total, stream, alone)
    elif by == "mean":
        total.replace_input_with(branch.operand, _constant(total, "mean", _column(mean, branch)))
    else:
        _stand_in(total, stream, alone)


def _sweep(value: ir.Value) -> None:
    """Remove what made a value that nobody uses, and what only that needed."""
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node.graph is None or any(y.uses() or y.is_graph_output() for y in node.outputs):
            continue
        operands, graph = [v for v in node.inputs if v is not None], node.graph
        graph.remove(node, safe=True)
        for v in operands:
            if v.is_initializer() and not v.uses() and not v.is_graph_output() and v.name in graph.initializers:
                del graph.initializers[v.name]
        waiting += operands


def _stand_in(total: ir.Node, stream: ir.Value, alone: bool) -> None:
    """The stream takes the place of the sum and, if nothing else uses it, its name. An activation that has just been
    applied need not be again."""
    y = total.outputs[0]
    if alone:
        _take_over(total, stream)
        again = [use.node for use in stream.uses()]
        if len(again) == 1 and not stream.is_graph_output() and "Relu" == again[0].op_type == stream.producer().op_type:
            _take_over(again[0], stream)
    elif y.is_graph_output():
        same = ir.node("Identity", [stream], name=f"{total.name}.stream")
        total.graph.insert_before(total, same)
        _take_over(total, same.outputs[0])
    else:
        bypass(total, stream)


def _take_over(node: ir.Node, value: ir.Value) -> None:
    """`value`, which nothing else uses, becomes the node's output, by name, too."""
    y, graph = node.outputs[0], node.graph
    value.name, y.name = y.name, None
    value.shape, value.type = value.shape or y.shape, value.type or y.type
    y.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _put_linear(total: ir.Node, branch: Branch, stream: ir.Value, fit: Fit | None) -> None:
    """x + A x + b: a convolution of one tap, or a product and the sum as it was."""
    n = branch.n_channels
    matrix = np.zeros((n, n)) if fit is None else np.eye(n) + fit.matrix
    shift = np.zeros(n) if fit is None else fit.shift
    if branch.axis == 1 and len(branch.shape) > 2:
        weight = _constant(total, "weight", matrix.reshape(n, n, *[1] * (len(branch.shape) - 2)))
        linear = ir.node("Conv", [stream, weight, _constant(total, "bias", shift)], name=f"{total.name}.linear")
        total.graph.insert_before(total, linear)
        _take_over(total, linear.outputs[0])
        return
    linear = ir.node("MatMul", [stream, _constant(total, "weight", matrix.T)], name=f"{total.name}.linear")
    product, y = linear.outputs[0], total.outputs[0]
    product.name, product.shape, product.type = f"{y.name}.linear", y.shape, y.type
    total.graph.insert_before(total, linear)
    total.replace_input_with(1 - branch.operand, product)
    total.replace_input_with(branch.operand, _constant(total, "bias", shift))


def _constant(total: ir.Node, what: str, array: np.ndarray) -> ir.Value:
    """A new constant, in the element type of the sum."""
    dtype = total.outputs[0].dtype or ir.DataType.FLOAT
    return new_constant(total.graph, f"{total.name}.{what}", array.astype(dtype.numpy()), dtype)


def _column(mean: np.ndarray, branch: Branch) -> np.ndarray:
    """A number for each channel, in a shape that broadcasts against the stream."""
    return mean.reshape(-1, *[1] * (len(branch.shape) - 1 - branch.axis))


_BIASED = {"Conv": 1, "ConvTranspose": 1, "BatchNormalization": 1, "InstanceNormalization": 1, "Gemm": -1,
           "LayerNormalization": -1}  # fmt: skip
"""Operators whose third operand is added to each channel of the first output -> the axis of the channels."""


def _absorb(value: ir.Value, branch: Branch, mean: np.ndarray, *, may_add: bool) -> bool:
    """Let a constant of what makes `value`, which has one use, take the mean. may_add: a bias may be created for it."""
    node, rank = value.producer(), len(branch.shape)
    if node is None or node.domain or value is not node.outputs[0]:
        return False
    if node.op_type in _BIASED:
        scaled = "beta" in node.attributes and node.attributes["beta"].value != 1
        if branch.axis != _BIASED[node.op_type] % rank or scaled:
            return False
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None and may_add and node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            put_bias(node, mean, node.inputs[1].dtype)
            return True
        return _shift(bias, mean)
    if node.op_type != "Add":
        return False
    if any(_shift(v, _column(mean, branch)) for v in node.inputs):
        return True
    return any(
        _absorb(v, branch, mean, may_add=may_add) for v in node.inputs
        if v is not None and len(v.uses()) == 1 and not v.is_graph_output() and _same_shape(v, value)
    )  # fmt: skip


def _shift(constant: ir.Value | None, mean: np.ndarray) -> bool:
    """Add to a constant that nothing else uses and that has room for it; whether it is one."""
    if constant is None or not constant.is_initializer() or len(constant.uses()) > 1 or constant.is_graph_output():
        return False
    array = constant.const_value.numpy()
    if np.broadcast_shapes(array.shape, mean.shape) != array.shape:
        return False
    if mean.any():
        set_constant(constant, (array + mean).astype(array.dtype))
    return True


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and b.shape is not None and str(a.shape) == str(b.shape)
