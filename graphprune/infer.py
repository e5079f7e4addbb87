"""Run the operator rules over a model: every axis of every value gets its dimension type.

Owns the walk and what happens where no rule applies (everything the node touches is frozen, with its name as the
reason). Does not own the rules (`rules/`), the solver of equations (`dims`) or what is made of the types (`groups`).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphprune.dims import Dim, Reason
from graphprune.rules import TABLE
from graphprune.rules.base import Op, Types
from graphprune.rules.shapes import follow
from graphprune.trace import Trace

MISFIT = "the rule does not fit"
"""How the reason begins where a rule contradicts the traced shapes: a defect of the rule, never of the model."""


def infer(model: ir.Model, trace: Trace, selections: frozenset[str] = frozenset()) -> Types:
    """Type every axis of the model's main graph.

    model: canonical (see `canonicalise`: constants are initialisers, nodes and values have unique names).
    trace: concrete shapes of all values under one binding of the dynamic axes. selections: see `selections.py`.
    Where a rule contradicts the traced shapes, what the node touches is frozen, with a reason that begins with MISFIT.
    """
    t = Types(shapes=trace.shapes, values=trace.values, selections=selections)
    graph = model.graph
    for value in graph.initializers.values():
        t.axes[value.name] = [Dim(n) for n in value.const_value.shape]
    for value in graph.inputs:
        if value.name in graph.initializers:
            continue
        axes = t.fresh(value)
        for axis, declared in zip(axes, value.shape or [None] * len(axes), strict=True):
            t.freeze(axis, Reason("graph input", value.name, "boundary"), dynamic=not isinstance(declared, int))
    for node in graph:
        _apply(Op(node, _version(model, node), node.name), t)
    for value in graph.outputs:
        if value.name in t.axes:
            t.freeze(t[value], Reason("graph output", value.name, "boundary"))
        for entry in t.sizes_of.get(value.name, ()):
            t.freeze(list(entry or ()), Reason("its size is graph output", value.name, "boundary"))
    return t


def _version(model: ir.Model, node: ir.Node) -> int:
    return node.version or model.opset_imports.get(node.domain, model.opset_imports.get("", 1))


def _apply(op: Op, t: Types) -> None:
    domain = "" if op.node.domain == "ai.onnx" else op.node.domain
    rule = TABLE.get((domain, op.type))
    outer = list(captured(op.node))
    if outer:
        freeze_node(op, t, outer, "control flow in")
    elif rule is None:
        freeze_node(op, t, outer, "no rule for operator")
    elif any(v is not None and v.name not in t.axes for v in op.inputs):
        freeze_node(op, t, outer, "an input without axes of")
    else:
        contracted, readers = len(t.contracted), len(t.readers)
        try:
            rule.apply(op, t)
            follow(op, t)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as e:
            # What it said so far only ties and freezes, which is safe to leave; what it promised is taken back.
            del t.contracted[contracted:], t.readers[readers:]
            t.patches.pop(op.node.name, None)
            freeze_node(op, t, outer, f"{MISFIT} ({e}), a defect of graphprune: please report it:")


def freeze_node(op: Op, t: Types, captured: list[ir.Value], text: str) -> None:
    """Deny by default: nothing an unmodelled operator touches may shrink."""
    why = Reason(f"{text} {op.node.domain + '.' if op.node.domain else ''}{op.type}", op.name, "denied")
    for value in (*(v for v in op.inputs if v is not None), *captured):
        if value.name in t.axes:
            t.freeze(t[value], why)
    for entries in (t.sizes_of.get(v.name, ()) for v in (*op.inputs, *captured) if v is not None):
        for entry in entries:
            t.freeze(list(entry or ()), why)
    for y in op.outputs:
        if y.name in t.shapes:
            t.freeze(t.fresh(y), why, dynamic=True)


def captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the outer graph that the bodies of If, Loop or Scan use."""
    for attribute in node.attributes.values():
        graphs = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.value,)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.value
        for graph in graphs:
            own = set(graph.inputs) | set(graph.initializers.values()) | {y for n in graph for y in n.outputs}
            for inner in graph:
                yield from (v for v in inner.inputs if v is not None and v not in own)
                yield from (v for v in captured(inner) if v not in own)
            yield from (v for v in graph.outputs if v not in own)
