"""Small graphs for tests: built from ONNX text, run, typed, pruned and certified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from graphprune.canonicalise import canonicalise, unique_names
from graphprune.groups import Analysis, analyse
from graphprune.oracles import Check, certify
from graphprune.rules.base import Sample
from graphprune.selections import solve
from graphprune.trace import Feed, trace
from tests.runtime_ops import RUNTIME_OPS

ort.set_default_logger_severity(4)


def run(model: ir.Model, feed: Feed) -> dict[str, np.ndarray]:
    return run_all(model, [feed])[0]


def run_all(model: ir.Model, feeds: Sequence[Feed]) -> list[dict[str, np.ndarray]]:
    """Run on ONNX Runtime, unoptimised; on the reference evaluator what ONNX Runtime has no kernel for."""
    proto = ir.to_proto(model)
    names = [v.name for v in model.graph.outputs]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        runner = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (ort.capi.onnxruntime_pybind11_state.NotImplemented, ort.capi.onnxruntime_pybind11_state.Fail) as e:
        if isinstance(e, ort.capi.onnxruntime_pybind11_state.Fail) and "under development" not in str(e):
            raise  # an opset that is newer than ONNX Runtime's is under development, for it
        runner = onnx.reference.ReferenceEvaluator(proto, new_ops=RUNTIME_OPS)
    return [dict(zip(names, runner.run(names, dict(feed)), strict=True)) for feed in feeds]


def model_of(
    text: str,
    inputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, tuple[int, ...] | np.ndarray] | None = None,
    outputs: Sequence[str] = ("result",),
    opset: int = 18,
    seed: int = 0,
) -> ir.Model:
    """The model of some nodes in ONNX text. A weight given by its shape gets random numbers."""
    rng = np.random.default_rng(seed)
    declared = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in inputs.items())
    proto = onnx.parser.parse_model(
        f'<ir_version: {8 if opset < 22 else 11}, opset_import: ["": {opset}, "com.microsoft": 1]>\n'
        f"g ({declared}) => ({', '.join(f'float {name}' for name in outputs)}) {{\n{text}\n}}"
    )
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    for name, value in (weights or {}).items():
        array = value if isinstance(value, np.ndarray) else rng.normal(size=value).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def wide_layers() -> ir.Model:
    """Wide layers in a row, x [1, rows, 64], so that a GPU has something to do."""
    text = "\n".join(f"m{i} = MatMul({'x' if not i else f'r{i - 1}'}, w{i})\nr{i} = Relu(m{i})" for i in range(3))
    shapes = {"w0": (64, 1024), "w1": (1024, 1024), "w2": (1024, 1024), "w3": (1024, 64)}
    rng = np.random.default_rng(1)
    weights = {k: (rng.normal(size=s) * (2 / s[0]) ** 0.5).astype(np.float32) for k, s in shapes.items()}
    made = model_of(text + "\nresult = MatMul(r2, w3)", {"x": (1, "rows", 64)}, weights)
    for i, node in enumerate(made.graph):
        node.name = f"node{i}"
    return made


def sample_model(sample: Sample) -> tuple[ir.Model, Feed]:
    """A sample between a weight that makes axis `axis` of x and one that reads axis `out_axis` of y."""
    rng = np.random.default_rng(1)
    rank = len(sample.x)
    inner = [i for i in range(rank) if i != sample.axis] + [sample.axis]
    back = [inner.index(i) for i in range(rank)]
    head = f"x1 = MatMul(x0, w_in)\nx = Transpose<perm={back}>(x1)\n{sample.text}"
    shape = (*(sample.x[i] for i in inner[:-1]), 5)
    weights = {"w_in": (5, sample.x[sample.axis]), **sample.weights}
    feed = {"x0": rng.normal(size=shape).astype(np.float32)}
    y = run(model_of(head, {"x0": shape}, weights, ("y",), sample.opset), feed)["y"]
    outer = [i for i in range(y.ndim) if i != sample.out_axis] + [sample.out_axis]
    tail = f"\ny1 = Transpose<perm={outer}>(y)\nresult = MatMul(y1, w_out)"
    weights["w_out"] = (y.shape[sample.out_axis], 4)
    return model_of(head + tail, {"x0": shape}, weights, opset=sample.opset), feed


def typed(model: ir.Model, feed: Feed, *, inexact: bool = False, fold: bool = True) -> Analysis:
    """The groups of a model. fold: whether what shapes determine is computed beforehand, as it is for users."""
    if fold:
        model = canonicalise(model)
    else:
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        unique_names(model)
    return analyse(model, solve(model, trace(model, feed, run)), inexact=inexact)


def sizes(analysis: Analysis) -> tuple[list[int], list[int]]:
    """Sizes of the exact and of the inexact groups, ascending."""
    exact = sorted(g.size for g in analysis.groups.values() if g.inexact is None)
    return exact, sorted(g.size for g in analysis.groups.values() if g.inexact is not None)


def some(size: int, rng: np.random.Generator) -> np.ndarray:
    """A random keep set that removes something."""
    return np.sort(rng.choice(size, rng.integers(1, size), replace=False))


def certified(analysis: Analysis, feeds: Sequence[Feed], seed: int = 0) -> list[Check]:
    """Checks of every group pruned alone and of all of them at once."""
    rng = np.random.default_rng(seed)
    keeps = {name: some(g.size, rng) for name, g in analysis.groups.items()}
    checks = [c for name, keep in keeps.items() for c in certify(analysis, {name: keep}, feeds, run_all)]
    return checks + (certify(analysis, keeps, feeds, run_all) if len(keeps) > 1 else [])


def failures(checks: Sequence[Check]) -> list[str]:
    return [f"{c.oracle} of {', '.join(c.groups)} {c.verdict}: {c.difference:.2g} beside an effect of {c.effect:.2g}"
            for c in checks if c.verdict == "mismatch"]  # fmt: skip
