"""What TensorRT asks of an ONNX model, as rules with names that are checked without it: a model that passes should
build the first time.

From the operator list and the sources of onnx/onnx-tensorrt 10.15 and the documentation of TensorRT 10 and 11; where a
rule quotes an error, the parser or builder says it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
import onnx_ir as ir

OPSETS = (9, 24)
_FLOATS = {ir.DataType.FLOAT: "FP32", ir.DataType.FLOAT16: "FP16", ir.DataType.BFLOAT16: "BF16"}
_TYPES = {**_FLOATS, ir.DataType.INT32: "INT32", ir.DataType.INT64: "INT64", ir.DataType.BOOL: "BOOL",
          ir.DataType.INT8: "INT8", ir.DataType.INT4: "INT4", ir.DataType.UINT8: "UINT8",
          ir.DataType.DOUBLE: "FP32"}  # fmt: skip
_SAME_TYPE = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "MatMul", "Gemm", "Conv", "ConvTranspose", "Concat",
              "PRelu", "Where",
              "LayerNormalization", "BatchNormalization", "InstanceNormalization", "Sum", "Mean")  # fmt: skip
_CONSTANT_INPUTS = {"OneHot": (1,), "CumSum": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Pad": (), "STFT": (1, 2)} | {
    f"Reduce{what}": (1,) for what in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum",
                                       "SumSquare")
}  # fmt: skip
_ONE_OUTPUT = ("MaxPool", "LayerNormalization", "BatchNormalization")
_DATA_SHAPED = ("NonZero", "NonMaxSuppression")
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOST_TOP = 3840
_FEW_CHANNELS = 4
ALIGNMENT = {"FP32": 4, "FP16": 8, "BF16": 8, "INT8": 32}
"""Channels by type of which a multiple fills the tensor cores (4 for TF32, which 32-bit products are done in)."""


@dataclass(frozen=True)
class Finding:
    """One place where a model breaks a rule. weight: "error", it will not build; "risk", it may not; "slow", it will be
    slower than need be; "note", something to know."""

    rule: str
    weight: Literal["error", "risk", "slow", "note"]
    at: str
    what: str
    fix: str = ""


def check(model: ir.Model) -> list[Finding]:
    """Every rule over the model, the errors first."""
    found = [finding for rule in RULES.values() for finding in rule(model)]
    return sorted(found, key=lambda f: ("error", "risk", "slow", "note").index(f.weight))


@cache
def operators() -> tuple[Mapping[str, tuple[frozenset[str], str]], frozenset[str]]:
    """Operator -> (types, what else it asks for); and those that are refused by name."""
    taken, refused = {}, set()
    text = (files("graphprune.backends") / "tensorrt_operators.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("! "):
            refused.add(line[2:])
        elif line and not line.startswith("#"):
            name, types, *rest = (part.strip() for part in line.split("|"))
            taken[name] = (frozenset(types.split(",")), rest[0] if rest else "")
    return taken, frozenset(refused)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()


def _is_standard(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _constant(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _number(node: ir.Node, name: str, default):
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def opset_range(model: ir.Model) -> Iterator[Finding]:
    opset = model.opset_imports.get("", OPSETS[0])
    if not OPSETS[0] <= opset <= OPSETS[1]:
        yield Finding("opset-range", "error", "the model", f"opset {opset}; TensorRT reads {OPSETS[0]} to {OPSETS[1]}",
                      "convert it with onnx.version_converter, or export it again")  # fmt: skip


def operator_domain(model: ir.Model) -> Iterator[Finding]:
    """Only the name of an operator counts to the parser: one of another domain is taken for the standard one."""
    local = {(domain, name) for domain, name, _ in model.functions}
    for node in _nodes(model):
        if not _is_standard(node) and (node.domain, node.op_type) not in local:
            yield Finding("operator-domain", "error", node.name, f"{node.domain}.{node.op_type} is no operator of "
                          "ONNX: 'Plugin not found, are the plugin name, version, and namespace correct?'",
                          "export the model without a runtime's own fused operators")  # fmt: skip


def operator_supported(model: ir.Model) -> Iterator[Finding]:
    taken, refused = operators()
    for node in _nodes(model):
        if _is_standard(node) and node.op_type not in taken:
            how = "is refused" if node.op_type in refused else "has no importer"
            yield Finding("operator-supported", "error", node.name, f"{node.op_type} {how}",
                          "write it with operators that are taken, or as a plugin")  # fmt: skip


def operator_types(model: ir.Model) -> Iterator[Finding]:
    taken, _ = operators()
    for node in _nodes(model):
        if not _is_standard(node) or node.op_type not in taken or not node.inputs or node.inputs[0] is None:
            continue
        kind = _TYPES.get(node.inputs[0].dtype)
        types = taken[node.op_type][0]
        if kind in ("FP32", "FP16", "BF16", "INT32", "INT64", "BOOL") and kind not in types:
            yield Finding("operator-types", "error", node.name, f"{node.op_type} of {kind}; it takes "
                          f"{', '.join(sorted(types))}", "put a Cast before it")  # fmt: skip


def value_types(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        for y in node.outputs:
            if y.dtype is not None and y.dtype not in _TYPES:
                yield Finding("value-types", "error", node.name, f"{y.name} is {y.dtype.name.lower()}, which no "
                              "engine computes with", "cast it to int32, int64 or float")  # fmt: skip
            elif y.dtype == ir.DataType.UINT8 and node.op_type != "Cast" and not y.is_graph_output():
                yield Finding("value-types", "error", node.name, f"{y.name}: 'TensorRT does not support UINT8 types "
                              "for intermediate tensors'", "use int8 with a zero point of zero")  # fmt: skip


def doubles(model: ir.Model) -> Iterator[Finding]:
    double = [v.name for v in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())
              if v.dtype == ir.DataType.DOUBLE]  # fmt: skip
    if double:
        yield Finding("doubles", "note", double[0], f"{len(double)} values in double precision become single")


def one_float_type(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type in _SAME_TYPE and _is_standard(node):
            kinds = {v.dtype for v in node.inputs if v is not None and v.dtype in _FLOATS}
            if len(kinds) > 1:
                names = " and ".join(sorted(_FLOATS[k] for k in kinds))
                yield Finding("one-float-type", "error", node.name, f"inputs of {names}: 'must have same input "
                              "types'", "cast all to one")  # fmt: skip


def constant_inputs(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        for i in _CONSTANT_INPUTS.get(node.op_type, ()) if _is_standard(node) else ():
            if i < len(node.inputs) and node.inputs[i] is not None and _constant(node.inputs[i]) is None:
                yield Finding("constant-inputs", "error", node.name, f"input {i} of {node.op_type} is computed; it has "
                              "to be known when the engine is built", "fold constants")  # fmt: skip


def pooling(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type in ("MaxPool", "AveragePool", "LpPool"):
            if any(d != 1 for d in _number(node, "dilations", ())):
                yield Finding("pooling", "error", node.name, "'does not support dilations other than 1'")
            if len(_number(node, "kernel_shape", (1, 1))) > 3:
                yield Finding("pooling", "error", node.name, "at most 3 spatial axes are pooled")


def one_output(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type in _ONE_OUTPUT and any(y.uses() or y.is_graph_output() for y in node.outputs[1:]):
            yield Finding("one-output", "error", node.name, f"only the first output of {node.op_type} can be had")


def resizing(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type != "Resize":
            continue
        modes = {"mode": ("nearest", "linear"), "keep_aspect_ratio_policy": ("stretch",), "antialias": (0,),
                 "coordinate_transformation_mode": ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn",
                                                    "asymmetric", "align_corners"),
                 "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")}  # fmt: skip
        for name, allowed in modes.items():
            value = _number(node, name, allowed[0])
            if value not in allowed:
                yield Finding("resizing", "error", node.name, f"{name} {value!r}",
                              f"one of {', '.join(map(str, allowed))}")


def top_k(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type == "TopK":
            k = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
            if _number(node, "sorted", 1) != 1 or (k is not None and k.size and int(k.reshape(-1)[0]) >= _MOST_TOP):
                yield Finding("top-k", "error", node.name, f"only the sorted {_MOST_TOP - 1} largest can be had")


def recurrent(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type in ("LSTM", "GRU", "RNN"):
            if _number(node, "layout", 0) != 0:
                yield Finding("recurrent", "error", node.name, "only layout 0, steps first", "transpose around it")
            if _number(node, "input_forget", 0) != 0:
                yield Finding("recurrent", "error", node.name, "input_forget is not taken")


def convolution_bias(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type != "Conv" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        if _constant(node.inputs[1]) is not None and _constant(node.inputs[2]) is None:
            yield Finding("convolution-bias", "error", node.name, "'The bias tensor is required to be an initializer "
                          "for the Conv operator.'")  # fmt: skip


def quantised_types(model: ir.Model) -> Iterator[Finding]:
    """Zero points of zero, in int8, and scales that are constants above zero."""
    for node in _nodes(model):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = _constant(node.inputs[1])
        if scale is None or (scale <= 0).any():
            yield Finding("quantised-types", "error", node.name, "'Scale coefficients must all be positive' constants")
        if node.op_type == "DequantizeLinear" and node.inputs[0].dtype == ir.DataType.INT32:
            yield Finding("quantised-types", "error", node.name, "a bias of int32: 'input has type Int32 but must have "
                          "type FP8, FP4, Int4, or Int8'", "keep biases in floating point")  # fmt: skip
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is None:
            if node.op_type == "DequantizeLinear" or _number(node, "output_dtype", 0) == int(ir.DataType.INT8):
                continue  # the type is that of the data, or said
            yield Finding("quantised-types", "error", node.name, "no zero point: ONNX takes uint8 then, TensorRT int8",
                          "write one of int8")  # fmt: skip
        elif _constant(zero) is None or _constant(zero).any():
            yield Finding("quantised-types", "error", node.name, "'Non-zero zero point is not supported'",
                          "quantise symmetrically")  # fmt: skip
        elif zero.dtype == ir.DataType.UINT8:
            yield Finding("quantised-types", "error", node.name, "uint8 is silently taken for int8", "use int8")


def few_channels_quantised(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type != "Conv" or not _is_dequantised(node.inputs[0]) or _number(node, "group", 1) > 1:
            continue
        channels = None if node.inputs[1].shape is None else node.inputs[1].shape[1]
        if isinstance(channels, int) and channels <= _FEW_CHANNELS:
            yield Finding("few-channels-quantised", "risk", node.name, "8 bits on a convolution of so few channels: "
                          "'Could not find any implementation for node' was seen", "leave it in 16 bits")  # fmt: skip


def data_shaped(model: ir.Model) -> Iterator[Finding]:
    for node in _nodes(model):
        if node.op_type in _DATA_SHAPED:
            yield Finding("data-shaped", "note", node.name, f"the shape that {node.op_type} gives depends on the data: "
                          "no CUDA graph can be captured")  # fmt: skip


def whole_tensor_cores(model: ir.Model) -> Iterator[Finding]:
    """Channels that are no multiple are padded, and the rest of the tile computed in vain."""
    for node in _nodes(model):
        w = node.inputs[1] if node.op_type in _PRODUCTS and len(node.inputs) > 1 else None
        shape = None if w is None or w.shape is None or not w.shape.is_static() else w.shape.numpy()
        if shape is None or len(shape) < 2 or _number(node, "group", 1) > 1 or node.inputs[0] is None:
            continue
        kind = "INT8" if _is_dequantised(node.inputs[0]) and _is_dequantised(w) else _TYPES.get(node.inputs[0].dtype)
        step = ALIGNMENT.get(kind, 1)
        ragged = [n for n in shape[:2] if n % step and n > _FEW_CHANNELS]
        if ragged:
            yield Finding("whole-tensor-cores", "slow", node.name, f"{' and '.join(map(str, ragged))} channels are no "
                          f"multiple of {step}")  # fmt: skip


def _is_dequantised(value: ir.Value | None) -> bool:
    made_by = None if value is None else value.producer()
    return made_by is not None and made_by.op_type == "DequantizeLinear"


Rule = Callable[[ir.Model], Iterable[Finding]]
RULES: Mapping[str, Rule] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (opset_range, operator_domain, operator_supported, operator_types, value_types, doubles, one_float_type,
                 constant_inputs, pooling, one_output, resizing, top_k, recurrent, convolution_bias, quantised_types,
                 few_channels_quantised, data_shaped, whole_tensor_cores)
}  # fmt: skip
"""Every rule by its name."""
