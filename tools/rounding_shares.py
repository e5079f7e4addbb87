"""What rounding to 8 bits costs a task, and how much of it is due to weights and how much to the values between layers.

    python -m tools.rounding_shares TASK... [--leave NODE,NODE] [--seeds 0,1,2] [--samples 320]

All that can take fixed 8-bit ranges does, as the quantise pass finishes a model, except the nodes of --leave, which
stay in floating point. The same model is judged again with the weights it came with, then without rounding values.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

import models
from graphprune.backends import open_backend
from graphprune.context import Context
from graphprune.edit import new_constant
from graphprune.eight_bit import weight_of
from graphprune.errors import UsageError
from graphprune.passes.quantise import FLOAT, PRECISIONS, Quantise
from graphprune.prepare import loader, prepare, read_data
from graphprune.progress import choose
from graphprune.report import percent
from models.task import Task
from tools.ablation import draw
from tools.ablation_pages import digits
from tools.shared import console, exit_with, seeds_option, table

_LINEAR = ("Conv", "Gemm", "MatMul")
_STATIC = PRECISIONS.index("static")


def context_of(task: Task, samples: int, seed: int, quantise: Quantise) -> Context:
    """The task's model and data as the pass gets them in a compilation, nothing else done to it."""
    backend = open_backend("host")
    prepared = prepare(task.model(), backend, task.shapes)
    data = read_data(prepared, draw(task, samples, seed), task.shapes, seed)
    return quantise.prepare(Context(prepared.analysis, data.calibration, loader(backend), seed=seed,
                                    integer=backend.integer))  # fmt: skip


def rounded(context: Context, quantise: Quantise, leave: Collection[str]) -> ir.Model:
    """Everything in 8 bits but these nodes. Raises UsageError for names that the model does not have."""
    if unknown := set(leave) - context.nodes.keys():
        raise UsageError(f"the model has no node {min(unknown)!r}", fix="give names that `graphprune explain` shows")
    sites = quantise.propose(context)
    levels = {s.name: _STATIC if _STATIC in s.levels and s.members[0] not in leave else FLOAT for s in sites}
    return quantise.finish(context, context.model, quantise.choose(context, levels))


def with_float_values(model: ir.Model) -> ir.Model:
    """The model with nothing rounded but weights. Raises UsageError where kernels take whole numbers themselves."""
    if any(node.op_type == "MatMulIntegerToFloat" for node in model.graph):
        raise UsageError("values that go into a product of whole numbers cannot be told from its weights",
                         at="MatMulIntegerToFloat", fix="convolutional networks have none")  # fmt: skip
    plain = model.clone()
    for node in plain.graph:
        made = node.inputs[0].producer() if node.op_type == "DequantizeLinear" else None
        if made is not None and made.op_type == "QuantizeLinear":
            node.outputs[0].replace_all_uses_with(made.inputs[0], replace_graph_outputs=True)
    return plain


def with_float_weights(model: ir.Model, before: Context) -> ir.Model:
    """The model with nothing rounded but values: weights and biases are those of the canonical model."""
    plain = model.clone()
    for node in plain.graph:
        for operand in (1, 2) if node.op_type in _LINEAR else ():
            back = node.inputs[operand].producer() if len(node.inputs) > operand else None
            if back is not None and back.op_type == "DequantizeLinear":
                weight = weight_of(before.nodes[node.name])
                was = weight.matrix if operand == 1 else np.asarray(weight.bias)
                if node.op_type == "Conv":
                    was = was.reshape(tuple(back.inputs[0].const_value.shape))
                elif back.attributes["axis"].value:
                    was = was.T
                float_name = f"{node.name}.float.{operand}"
                node.replace_input_with(operand, new_constant(plain.graph, float_name, np.ascontiguousarray(was)))
    return plain


def judged(task: Task, model: ir.Model, limit: int | None) -> dict[str, float]:
    """The task's metrics. Without the runtime's rewrites, or it would round weights that take and give 8-bit values."""
    loaded = open_backend("host").load(model, optimise=False)
    return task.evaluate(loaded.run, limit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=f"of {', '.join(models.TASKS)}")
    parser.add_argument("--leave", type=lambda text: text.split(","), default=[], metavar="NODES",
                        help="nodes that stay in floating point")
    parser.add_argument("--seeds", type=seeds_option, default="0")
    parser.add_argument("--samples", type=int, default=320, help="calibration samples, a fifth of them held out")
    parser.add_argument("--limit", type=int, help="judge on the first so many evaluation samples (default: all)")
    options = parser.parse_args()
    progress = choose()
    for name in options.tasks:
        task = models.get(name)
        found: dict[str, list[dict[str, float]]] = {}
        for seed in options.seeds:
            progress.note(f"{name}, seed {seed}")
            quantise = Quantise()
            context = context_of(task, options.samples, seed, quantise)
            both = rounded(context, quantise, options.leave)
            cases = {"weights and values": both, "values alone": with_float_weights(both, context),
                     "weights alone": with_float_values(both), "nothing": context.model}  # fmt: skip
            for case, model in cases.items():
                found.setdefault(case, []).append(judged(task, model, options.limit))
        metrics = list(found["nothing"][0])
        rows = table("rounded to 8 bits", *metrics, left=("rounded to 8 bits",))
        for case, each in found.items():
            rows.add_row(case, *(", ".join(percent(m[metric], digits(metric)) for m in each) for metric in metrics))
        left = f", {', '.join(options.leave)} left" if options.leave else ""
        console().print(f"{name}{left}; seeds {', '.join(map(str, options.seeds))}", rows, "", sep="\n")
    return 0


if __name__ == "__main__":
    exit_with(main)
