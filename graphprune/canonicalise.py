"""Bring a model into the form the rules expect, without changing what it computes.

After it: constants are initialisers, functions are inlined, identities and dead code are gone, what the shapes of
static axes determine is folded, every node and value has a unique name, and small initialisers have one use each
(exporters deduplicate equal zeros and ones, which would tie unrelated layers).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnx_shape_inference
import onnxscript.optimizer
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules

from graphprune.edit import new_constant
from graphprune.errors import ModelError
from graphprune.fold import fold_arithmetic
from graphprune.strided import fold_identity_gathers

_SMALL = 65_536
"""Initialisers of at most this many elements are untied; larger shared ones (embedding and head) stay tied."""


def canonicalise(model: ir.Model) -> ir.Model:
    """A canonical copy of `model`. Raises ModelError where the graph is not valid ONNX."""
    model = model.clone()
    open_axes(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries warn about their own deprecations
            model = _fold(model)
    except Exception as e:
        raise ModelError(
            f"the graph could not be simplified: {str(e).splitlines()[0] if str(e) else type(e).__name__}",
            fix="check the file with `python -m onnx.checker`; export it again if it is damaged",
        ) from e
    unique_names(model)
    untie(model)
    fold_identity_gathers(model)
    fold_arithmetic(model)
    passes.RemoveUnusedNodesPass()(model)
    return model


def _fold(model: ir.Model) -> ir.Model:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _infer_shapes(model)
    onnxscript.optimizer.fold_constants(
        model, onnx_shape_inference=False, input_size_limit=_SMALL, output_size_limit=_SMALL
    )
    drop_identities(model.graph)
    rewrite(
        model,
        [
            rules.fuse_batchnorm_into_conv_rule,
            rules.fuse_batchnorm_into_conv_transpose_rule,
            rules.fuse_batchnorm_into_gemm_rule,
        ],
    )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return model


def _infer_shapes(model: ir.Model) -> None:
    """Shapes as far as the library knows them: they help folding, no more. What it says of operators that are not
    ONNX's own, and of all that comes of them, is left to the runtime, which knows better."""
    foreign: dict[ir.Value, tuple[ir.Shape | None, ir.TypeProtocol | None]] = {}
    for node in model.graph:
        if node.domain not in ("", "ai.onnx") or any(v in foreign for v in node.inputs):
            foreign |= {y: (y.shape, y.type) for y in node.outputs}
    with contextlib.suppress(Exception):  # shapes that contradict each other, symbols that it cannot read
        onnx_shape_inference.infer_symbolic_shapes(model)
    for value, (shape, kind) in foreign.items():
        value.shape, value.type = shape, kind


def drop_identities(graph: ir.Graph) -> None:
    """Remove the Identity nodes of the main graph. Outputs keep their names: one stays where its source is an output,
    an input or a weight itself, or where the body of another node gives it out."""
    for node in list(graph):
        if node.op_type != "Identity" or node.domain:
            continue
        x, y = node.inputs[0], node.outputs[0]
        if y.is_graph_output():
            if y not in graph.outputs or x.producer() is None or x.is_graph_output():
                continue
            x.name, y.name = y.name, None
        x.shape, x.type = x.shape or y.shape, x.type or y.type
        y.replace_all_uses_with(x, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def open_axes(model: ir.Model) -> None:
    """Give axes that are declared as -1 or 0, as some exporters write "any size", or as a formula with functions in it,
    a symbol of their own, in place."""
    values = [*model.graph.inputs, *model.graph.outputs, *(y for node in model.graph for y in node.outputs)]
    for value in values:
        if value.shape is not None and any(_is_open(n) for n in value.shape):
            dims = [f"{value.name}.{i}" if _is_open(n) else n for i, n in enumerate(value.shape)]
            value.shape = ir.Shape(dims)


def _is_open(n: int | ir.SymbolicDim) -> bool:
    return n <= 0 if isinstance(n, int) else "(" in str(n.value or "")


def unique_names(model: ir.Model) -> None:
    """Give every node of the main graph a name of its own, keeping the names it came with where they are unique."""
    counts = Counter(node.name for node in model.graph)
    taken = {name for name, n in counts.items() if n == 1 and name}
    for i, node in enumerate(model.graph):
        if not node.name or counts[node.name] > 1:
            name = f"{node.name or node.op_type}_{i}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
    passes.NameFixPass()(model)


def untie(model: ir.Model) -> None:
    """Give each use of a small initialiser, and of a fill of one number, its own copy."""
    graph = model.graph
    for node in [n for n in graph if n.op_type == "ConstantOfShape" and not n.domain]:
        for i, use in enumerate([use for use in node.outputs[0].uses() if use.node.graph is graph][1:], start=1):
            copy = ir.node(node.op_type, node.inputs, dict(node.attributes), name=f"{node.name}.{i}")
            copy.outputs[0].name, y = f"{node.outputs[0].name}.{i}", node.outputs[0]
            copy.outputs[0].shape, copy.outputs[0].type = y.shape, y.type
            graph.insert_after(node, copy)
            use.node.replace_input_with(use.idx, copy.outputs[0])
    for value in list(graph.initializers.values()):
        uses = [(use.node, use.idx) for use in value.uses() if use.node.graph is graph]
        if (
            len(uses) < 2
            or len(uses) != len(value.uses())
            or value.const_value.size > _SMALL
            or value.is_graph_output()
        ):
            continue
        for i, (node, index) in enumerate(uses[1:], start=1):
            # a tensor of its own: writing a model gives a tensor the name of its value, in whatever thread that is done
            copy = new_constant(graph, f"{value.name}.{i}", value.const_value.numpy(), value.const_value.dtype)
            node.replace_input_with(index, copy)


def check_finite(model: ir.Model) -> None:
    """Refuse weights that are not numbers: every score would follow them."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16):
            array = tensor.numpy()
            if array.size > 1 and not np.isfinite(array).all() and _is_weight(value):
                raise ModelError(
                    f"{np.count_nonzero(~np.isfinite(array))} weights of {value.name} are NaN or infinite",
                    at=", ".join(sorted({u.node.name or u.node.op_type for u in value.uses()})[:3]),
                    fix="train or export the model again; a model with such weights computes NaN",
                )


def _is_weight(value: ir.Value) -> bool:
    # Masks are legitimately filled with -inf; operands of multiplications are not.
    return any(u.node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for u in value.uses())
