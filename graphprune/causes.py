"""Why what could be a group is none: for each frozen axis the root cause, where it was joined to it, and what it locks.

Owns the way from a variable's reason to words that a person can act on. Does not own the reasons: rules and the solver
state them (`dims.Reason`), and `groups` says which variables are concerned.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.dims import Dim, Reason, leaves
from graphprune.rules.base import Types

NO_CHANNELS = "no channel axis"
"""The reason of weights that are no channels by nature: scalars, masks, tables of positions."""

_STRUCTURE = re.compile(
    r"spatial axis|kernel taps|cropped or padded|padding|position|sequence or|gates|two (sides|halves)|steps of"
    r"|keys and values$|pixels|samples or|real and imaginary|coordinates|regions"
)
"""Axes that are no channels by nature."""

_HINTS = (
    (r"^graph (in|out)put|^its size is graph output", "nothing: it is the contract of the model"),
    (r"^no rule for operator", "a rule for the operator: see 'Adding an operator' in the README"),
    (r"^control flow", "an export without control flow: the branch that is taken, the loop unrolled"),
    (r"a defect of graphprune", "a repaired rule: please report it with the model"),
    (r"^statistic of", "nothing exact: removing changes the statistic; explain lists such groups as inexact"),
    (r"^its size is used as a number", "an export in which the number is a constant"),
    (r"run time|varies by feed|sized by data", "an export with fixed sizes, so that they are constants"),
    (r"line up|not divide|merged with itself", "one layout of the axis on both sides, if the export can choose it"),
    (_STRUCTURE.pattern, "nothing: positions or parts, not channels"),
    (r"by (index|a mask|the label|the router)|mask picks|index that is picked", "nothing: its indices have a meaning"),
    (f"^{NO_CHANNELS}", "nothing: scalars, masks, tables by position"),
)  # fmt: skip
"""Pattern of a reason's text -> what would free the axis."""


def is_locked(d: Dim) -> bool:
    """Whether something that is no channel group, on a weight that makes it, would be one if nothing froze it: it is
    summed over, or may be by an operator of which nothing is known, and is not by nature something else."""
    if d.frozen is None:
        return d.contracted and d.inexact is not None
    if d.frozen.kind == "denied":
        return True
    return d.contracted and not d.dynamic and not _STRUCTURE.search(d.frozen.text)


@dataclass(frozen=True)
class FrozenAxis:
    """One variable that would be a group if nothing froze it.

    cause: who said so and where. joined: nodes that join it with the axis of the cause, where it is not the cause's
    own. weights: that would shrink with it, makers first; nodes: that touch it, in the order of the graph.
    """

    size: int
    cause: str
    joined: tuple[str, ...]
    weights: tuple[str, ...]
    nodes: tuple[str, ...]
    example: str


@dataclass(frozen=True)
class Frozen:
    """All that is frozen for one reason.

    count: axes (variables); n_parameters: weight elements that lie in no group for this reason; n_locked: weight
    elements that would shrink if the axes were free, in groups or not; weights: that lie in no group; nodes: that touch
    the axes, or that hold the weights in their bodies; hint: what would free it, "" where that is not known.
    """

    reason: str
    n_parameters: int
    n_locked: int
    count: int
    axes: tuple[FrozenAxis, ...]
    weights: tuple[str, ...]
    nodes: tuple[str, ...]
    example: str
    hint: str


def hint_of(reason: str) -> str:
    """What would free an axis that is frozen for this reason; "" where nobody knows."""
    return next((hint for pattern, hint in _HINTS if re.search(pattern, reason)), "")


def frozen_rows(
    model: ir.Model, types: Types, places: Mapping[Dim, Sequence[tuple[str, int]]], free: set[Dim]
) -> list[Frozen]:
    """One row per reason, most parameters first.

    places: the variables that would be groups if they were not frozen, and where they lie: (weight, axis), makers
    before readers. free: the variables that are groups.
    """
    touching = _Touching(model, types, places)
    axes: dict[str, list[FrozenAxis]] = defaultdict(list)
    for d, where in places.items():
        axes[_reason(d).text].append(_axis(d, tuple(dict.fromkeys(w for w, _ in where)), touching))
    outside: dict[str, list[ir.Value]] = defaultdict(list)  # weights in no group
    for value in weights_of(model.graph):
        dims = [d for t in types.axes.get(value.name, ()) for d in leaves(t)]
        if free.isdisjoint(dims):
            outside[_reason_of_weight(dims, places)].append(value)
    bodies: dict[str, dict[str, int]] = defaultdict(dict)  # parameters inside a node
    for node in model.graph:
        if n := sum(int(v.size) for v in body_constants(node)):
            bodies[f"control flow in {node.op_type}"][node.name] = n
    rows = [_row(model, r, axes[r], outside[r], bodies[r]) for r in dict.fromkeys((*axes, *outside, *bodies))]
    return sorted(rows, key=lambda row: (-row.n_parameters, -row.n_locked))


def _row(
    model: ir.Model, reason: str, axes: Sequence[FrozenAxis], outside: Sequence[ir.Value], bodies: Mapping[str, int]
) -> Frozen:
    weights = [v.name for v in outside]
    shrinking = {*weights, *(w for a in axes for w in a.weights)}
    nodes = dict.fromkeys((*(n for a in axes for n in a.nodes), *bodies))
    inside = sum(bodies.values())
    return Frozen(
        reason, inside + sum(int(v.const_value.size) for v in outside),
        inside + sum(int(model.graph.initializers[w].const_value.size) for w in shrinking),
        len(axes), tuple(axes), tuple(weights), tuple(nodes),
        [*(a.example for a in axes), *bodies, *weights][0], hint_of(reason),
    )  # fmt: skip


def weights_of(graph: ir.Graph) -> list[ir.Value]:
    """The initialisers of a graph that count as parameters: floating-point ones, and what is quantised."""
    return [v for v in graph.initializers.values() if _is_number(v.const_value.dtype)]


def _is_number(dtype: ir.DataType) -> bool:
    return dtype.is_floating_point() or (dtype.is_integer() and dtype.bitwidth <= 8)


def body_constants(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    """Weights in the bodies of If, Loop or Scan, at any depth."""
    for attribute in node.attributes.values():
        graphs = {ir.AttributeType.GRAPH: (attribute.value,), ir.AttributeType.GRAPHS: attribute.value}
        for graph in graphs.get(attribute.type, ()):
            yield from (v.const_value for v in weights_of(graph))
            for inner in graph:
                value = inner.attributes.get("value") if inner.op_type == "Constant" else None
                if value is not None and _is_number(value.value.dtype):
                    yield value.value
                yield from body_constants(inner)


def parameters(model: ir.Model) -> int:
    """Number of weights, those in the bodies of control flow included."""
    inside = (int(v.size) for node in model.graph for v in body_constants(node))
    return sum(int(v.const_value.size) for v in weights_of(model.graph)) + sum(inside)


def _reason(d: Dim) -> Reason:
    return d.frozen or d.inexact or Reason(NO_CHANNELS)


def _reason_of_weight(dims: Sequence[Dim], locked: Container[Dim]) -> str:
    """Why a weight with these variables lies in no group: what locks its channels, else what is said of its other axes
    if they are a boundary or nothing is known of an operator. That a kernel has taps, say, is no reason."""
    channels = [_reason(d) for d in dims if d in locked]
    others = [d.frozen for d in dims if d.frozen and d.frozen.kind in ("boundary", "denied")]
    reasons = [r.text for r in channels or others] or [NO_CHANNELS]
    return min(reasons, key=lambda text: hint_of(text).startswith("nothing"))  # one free axis would do


def _axis(d: Dim, weights: tuple[str, ...], touching: _Touching) -> FrozenAxis:
    cause = _reason(d)
    joined = touching.joins(d, weights, cause.node)
    first, nodes = touching.user(d, weights[0]), touching.nodes(d)
    example = first if first == cause.node else f"{first}, the axis of {cause.node}"
    if joined[0]:
        joint = "which joins it" if joined[0] == first else f"joined at {joined[0]}"
        example = f"{first}, {joint} with the axis of {cause.node}"
    return FrozenAxis(d.size, str(cause), tuple(dict.fromkeys(filter(None, joined))), weights, nodes, example)


class Sums:
    """Which nodes sum over which variables of their operands. inside: or over what they first make of them."""

    def __init__(self, types: Types, *, inside: bool) -> None:
        self._axes = {(c.node, c.operand, c.axis) for c in types.contracted if inside or not c.inside}
        self._read: dict[tuple[str, str], set[Dim]] = defaultdict(set)
        for r in types.readers:
            self._read[r.node, r.x].update(leaves(types.axes[r.w][r.contracted]))

    def over(self, node: ir.Node, operand: int, axis: int, d: Dim) -> bool:
        """Whether the node sums over the variable, which lies on this axis of its operand number `operand`."""
        read = self._read.get((node.name, node.inputs[operand].name), ())
        return (node.name, operand, axis) in self._axes or d in read


_Spot = tuple[str, bool]
"""A node, and whether it sums over the axis there: what it sums over does not come out of it."""


class _Touching:
    """Where some variables lie in the graph: which nodes touch each, through which values."""

    def __init__(self, model: ir.Model, types: Types, dims: Iterable[Dim]) -> None:
        wanted = set(dims)
        self._weights = set(model.graph.initializers)
        self._spots: dict[Dim, dict[_Spot, list[tuple[str, bool]]]] = {d: {} for d in wanted}  # (value, is it an input)
        sums = Sums(types, inside=False)
        carried: dict[str, list[tuple[int, Dim]]] = {}
        for node in model.graph if wanted else ():
            operands = [(i, v) for i, v in enumerate(node.inputs) if v is not None]
            for i, v in (*operands, *((-1, y) for y in node.outputs)):
                if v.name not in carried:
                    carried[v.name] = [(axis, d) for axis, t in enumerate(types.axes.get(v.name, ()))
                                       for d in dict.fromkeys(leaves(t)) if d in wanted]  # fmt: skip
                for axis, d in carried[v.name]:
                    spot = (node.name, i >= 0 and sums.over(node, i, axis, d))
                    self._spots[d].setdefault(spot, []).append((v.name, i >= 0))

    def nodes(self, d: Dim) -> tuple[str, ...]:
        """In the order of the graph."""
        return tuple(dict.fromkeys(node for node, _ in self._spots[d]))

    def user(self, d: Dim, weight: str) -> str:
        """The first node that takes a weight."""
        return next((n for (n, _), values in self._spots[d].items() if (weight, True) in values), weight)

    def joins(self, d: Dim, weights: Sequence[str], cause: str) -> list[str]:
        """For each weight the first node, on the way from it to the node or value that is the cause, where the axis is
        joined with that of another value; "" where there is none."""
        spots = self._spots[d]
        of_value: dict[str, list[_Spot]] = defaultdict(list)
        for spot, values in spots.items():
            for name, _ in values:
                of_value[name].append(spot)
        start = [*([cause] if cause in of_value else []), *(s for s in spots if s[0] == cause)]
        onward: dict[object, object] = dict.fromkeys(start)
        queue = deque(start)
        while queue:
            here = queue.popleft()
            beside = of_value[here] if isinstance(here, str) else [name for name, _ in spots[here]]
            for there in beside:
                if there not in onward:
                    onward[there] = here
                    queue.append(there)
        return [self._first_join(d, weight, onward) for weight in weights]

    def _first_join(self, d: Dim, weight: str, onward: Mapping[object, object]) -> str:
        value, spot = weight, onward.get(weight)
        while spot is not None and onward[spot] is not None:
            values, onto = self._spots[d][spot], onward[spot]
            through = value if (value, True) in values else onto  # the input that the way takes
            others = [v for v, is_input in values if is_input and v != through and v not in self._weights]
            if others and not spot[1] and (value not in self._weights or onto in others):
                return spot[0]
            value, spot = onto, onward[onto]
        return ""
