"""Files that ONNX Runtime's own tools write: fused by its optimisers, quantised, saved after optimisation. Everything
in them has a rule, what could be pruned before can still be, and every group is certified."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.optimizer import optimize_model

from graphprune.dims import leaves
from graphprune.groups import Analysis
from graphprune.trace import bind
from tests.test_real_models import check_all, counts, noise, shapes_of, typed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the tools


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def saved(source: Path, target: Path) -> None:
    """As a session writes it, with the optimisations that hold for every machine."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def fused(source: Path, target: Path) -> None:
    """As the optimiser for transformers writes it."""
    optimize_model(str(source), "bert", num_heads=4, hidden_size=64, opt_level=0).save_model_to_file(str(target))


def dynamic(source: Path, target: Path) -> None:
    quantize_dynamic(without_shapes(source, target), target, weight_type=QuantType.QUInt8)


def dynamic_and_saved(source: Path, target: Path) -> None:
    between = target.with_suffix(".dynamic.onnx")
    dynamic(source, between)
    saved(between, target)


def static(source: Path, target: Path, form: QuantFormat = QuantFormat.QOperator) -> None:
    """8 bits, calibrated on noise: as operators of their own, or as pairs of QuantizeLinear and DequantizeLinear."""

    class Reader(CalibrationDataReader):
        def __init__(self, model: ir.Model) -> None:
            self.feeds = iter([noise(model, bind(shapes_of(model)), seed) for seed in range(4)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantize_static(without_shapes(source, target), target, Reader(ir.load(source)), form,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8)  # fmt: skip


def pairs(source: Path, target: Path) -> None:
    static(source, target, QuantFormat.QDQ)


def four_bits(source: Path, target: Path) -> None:
    quantiser = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=32, is_symmetric=False)
    quantiser.process()
    quantiser.model.save_model_to_file(str(target))


def without_shapes(source: Path, target: Path) -> Path:
    """The same model without intermediate shapes: the quantiser transposes weights, and then finds those wrong."""
    model = onnx.load(source)
    model.graph.ClearField("value_info")
    path = target.with_suffix(".plain.onnx")
    onnx.save(model, path)
    return path


FILES: dict[str, tuple[str, Callable[[Path, Path], None], set[str], int, int]] = {
    # architecture, tool, operators that it must have written, exact groups, inexact groups
    "bert fused": ("bert", fused, {"SkipLayerNormalization", "BiasGelu"}, 8, 0),
    "bert dynamic": ("bert", dynamic, {"MatMulInteger"}, 2, 6),
    "bert dynamic saved": ("bert", dynamic_and_saved, {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}, 2, 6),
    "gpt2 saved": ("gpt2", saved, {"FusedMatMul", "FastGelu"}, 8, 1),
    "gpt2 4 bits": ("gpt2", four_bits, {"MatMulNBits"}, 8, 0),
    "mobilenet saved": ("mobilenet_v3", saved, {"FusedConv"}, 12, 0),
    "mobilenet static": ("mobilenet_v2", static, {"QLinearConv", "QLinearAdd", "QGemm"}, 0, 8),
    "mobilenet pairs": ("mobilenet_v2", pairs, {"QuantizeLinear", "DequantizeLinear"}, 8, 0),
}


def unruled(analysis: Analysis) -> set[str]:
    """Reasons that tell of an operator without a rule, or of a rule that does not fit."""
    reasons = {d.frozen.text for axes in analysis.types.axes.values() for t in axes for d in leaves(t) if d.frozen}
    return {r for r in reasons if r.startswith("no rule") or "defect" in r}


@pytest.mark.parametrize("name", FILES)
def test_every_group_of_a_file_of_the_runtime_is_certified(name: str, tmp_path: Path) -> None:
    from models import zoo

    architecture, tool, operators, exact, inexact = FILES[name]
    path = tmp_path / "model.onnx"
    tool(zoo.build(architecture), path)
    model = ir.load(path)
    assert operators <= {node.op_type for node in model.graph}
    shapes = shapes_of(model)
    feed = noise(model, bind(shapes))
    sizes = {"batch": 2, "sequence": 9}
    other = noise(model, {n: tuple(d if isinstance(d, int) else sizes[d] for d in s) for n, s in shapes.items()}, 1)
    analysis = typed(model, feed)
    assert unruled(analysis) == set()
    assert counts(analysis) == (exact, inexact)
    check_all(analysis, [feed, other], alone=True)
