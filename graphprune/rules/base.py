"""What a rule is and what it may say: the operator at hand (`Op`) and the equations it contributes (`Types`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphprune import dims
from graphprune.dims import Dim, Reason, Type
from graphprune.patches import Patch


@dataclass(frozen=True)
class Reader:
    """A linear consumer y = W x of a value, whose weight can be solved for again when x shrinks.

    contracted/produced: the axes of W that face x and y. Kind "matmul" contracts the
    last axis of x; "conv" contracts axis 1 over kernel taps (in each of its groups); "deconv" axis 1 per pixel.
    Nodes and values are named, so that a reader holds for every copy of the model.
    """

    node: str
    kind: str
    x: str
    w: str
    y: str
    contracted: int
    produced: int


@dataclass(frozen=True)
class Contraction:
    """Node `node` sums over axis `axis` of its operand number `operand`. inside: over what it first makes of it (the
    queries of a fused attention), so that the operand makes the axis too."""

    node: str
    operand: int
    axis: int
    inside: bool = False


class Op:
    """One node, read conveniently. `name` is what people see in messages."""

    __slots__ = ("inputs", "name", "node", "outputs", "type", "version")

    def __init__(self, node: ir.Node, version: int, name: str) -> None:
        self.node, self.version, self.name = node, version, name
        self.type = node.op_type
        self.inputs: Sequence[ir.Value | None] = node.inputs
        self.outputs: Sequence[ir.Value] = node.outputs

    def attr(self, name: str, default: object = None) -> object:
        """The attribute's Python value (ints, floats, strings, lists), or `default`."""
        a = self.node.attributes.get(name)
        return default if a is None else (list(a.value) if isinstance(a.value, tuple | list) else a.value)

    def input(self, i: int) -> ir.Value | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def why(self, text: str) -> Reason:
        return Reason(text, self.name)


Entry = tuple[Type, ...] | None
"""What an integer is computed from: the axis types whose sizes it depends on, () for constants, None for data."""


@dataclass
class Types:
    """Axis types of every value, as far as rules have stated them, and what else the rules said on the way.

    shapes: concrete traced shape of every value; values: traced contents of small integer values.
    """

    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, np.ndarray]
    axes: dict[str, list[Type]] = field(default_factory=dict)
    patches: dict[str, list[Patch]] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    contracted: list[Contraction] = field(default_factory=list)
    sizes_of: dict[str, list[Entry]] = field(default_factory=dict)
    """For integer values computed from shapes: what each entry was computed from."""
    selections: frozenset[str] = frozenset()
    """Names of the Gather nodes that select from a shared table, as their user pleases (see `selections`)."""

    @cached_property
    def holders(self) -> Mapping[Dim, set[str]]:
        """For each variable the names of the values that it is part of. Ask only once all is solved."""
        found: dict[Dim, set[str]] = {}
        for name, axes in self.axes.items():
            for t in axes:
                for d in dims.leaves(t):
                    found.setdefault(d, set()).add(name)
        return found

    def __getitem__(self, value: ir.Value) -> list[Type]:
        """Axis types of `value`, one per axis."""
        return self.axes[value.name]

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        return self.shapes[value.name]

    def known(self, value: ir.Value | None) -> np.ndarray | None:
        """Contents of a constant or traced integer value; None when they are not at hand."""
        if value is None:
            return None
        if value.const_value is not None and value.is_initializer():
            return value.const_value.numpy()
        return self.values.get(value.name)

    def is_constant(self, value: ir.Value | None) -> bool:
        return value is not None and value.is_initializer()

    def entries(self, value: ir.Value) -> list[Entry]:
        """What each entry of a small integer value was computed from."""
        n = int(np.prod(self.shape(value)))
        return [()] * n if value.is_initializer() else self.sizes_of.get(value.name, [None] * n)

    def set(self, value: ir.Value, axes: Iterable[Type]) -> None:
        """State the type of an output. The sizes must be the traced ones: a mismatch is a defect of the rule."""
        axes = list(axes)
        shape = self.shapes.get(value.name)
        if shape is not None and tuple(a.size for a in axes) != tuple(shape):
            raise ValueError(f"rule gave {value.name} the shape {[a.size for a in axes]}, it has {list(shape)}")
        self.axes[value.name] = axes

    def fresh(self, value: ir.Value) -> list[Dim]:
        """Unfrozen variables for every axis of an output, set and returned."""
        axes = [Dim(n) for n in self.shape(value)]
        self.axes[value.name] = list(axes)
        return axes

    def equal(self, a: Type, b: Type, why: Reason) -> None:
        dims.unify(a, b, why)

    def freeze(self, t: Type | Iterable[Type], why: Reason, *, dynamic: bool = False) -> None:
        for axis in t if isinstance(t, list | tuple) else (t,):
            dims.freeze(axis, why, dynamic=dynamic)

    def inexact(self, t: Type, why: Reason) -> None:
        dims.mark_inexact(t, why)

    def contract(self, op: Op, operand: int, axis: int, *, inside: bool = False) -> None:
        """Say that `op` sums over this axis of its operand, or over what it first makes of it (inside)."""
        axes = self[op.inputs[operand]]
        axis = axis_of(axis, len(axes))
        self.contracted.append(Contraction(op.node.name, operand, axis, inside))
        dims.mark_contracted(axes[axis])

    def reader(self, op: Op, kind: str, contracted: int, produced: int) -> None:
        """Record that this node is a linear map of its first input by its second, a constant."""
        x, w = op.inputs[:2]
        self.readers.append(Reader(op.node.name, kind, x.name, w.name, op.outputs[0].name, contracted, produced))

    def patch(self, node: ir.Node, patch: Patch) -> None:
        self.patches.setdefault(node.name, []).append(patch)


RuleFunction = Callable[[Op, Types], None]


@dataclass(frozen=True)
class Sample:
    """A small graph that shows a rule at work; the tests type it, prune every group found and certify the result.

    text: nodes in ONNX text syntax computing `y` from `x` (and from `weights` by name). A weight is made upstream
    that produces axis `axis` of x, and one downstream that contracts axis `out_axis` of y, so that the channels
    have someone who makes them and someone who reads them. groups: the sizes of the groups that must be found;
    inexact: of those whose axis is a statistic, found on request.
    """

    text: str
    x: tuple[int, ...]
    axis: int = 1
    out_axis: int = 1
    weights: Mapping[str, tuple[int, ...] | np.ndarray] = field(default_factory=dict)
    groups: tuple[int, ...] = ()
    inexact: tuple[int, ...] = ()
    opset: int = 18


@dataclass(frozen=True)
class Rule:
    """How one operator relates the axes of its operands. `samples` drive its tests; an operator without is a defect."""

    op: str
    apply: RuleFunction
    samples: tuple[Sample, ...]
    domain: str = ""


def freeze_all(op: Op, t: Types, text: str) -> None:
    """For a use of an operator that its rule does not know: every axis of every operand stays as it is."""
    for value in op.inputs:
        if value is not None:
            t.freeze(t[value], op.why(text))
    for y in op.outputs:
        if y.name in t.shapes:
            t.freeze(t.fresh(y), op.why(text), dynamic=True)


def axis_of(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def broadcast(t: Types, op: Op, inputs: Sequence[ir.Value]) -> list[Type]:
    """Axis types of the broadcast of `inputs` (numpy rules): matching axes are made equal."""
    rank = max(len(t.shape(v)) for v in inputs)
    result: list[Type] = [dims.ONE] * rank
    for v in inputs:
        for i, a in enumerate(t[v], start=rank - len(t.shape(v))):
            if a.size == 1:
                continue
            if result[i].size == 1:
                result[i] = a
            else:
                t.equal(result[i], a, op.why("axes joined element-wise do not line up"))
    return result
