"""Concrete shapes and types of every value of a model at one feed, without running it where that can be told.

ONNX's own shape inference, with the sizes of the feed put in; None where it leaves anything open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.devices.work import Tensor

_SMALL = 1024
"""Bytes of constants that shapes may be computed from."""
_ELSEWHERE = "not needed"


def tensors_of(model: ir.Model, feed: Mapping[str, np.ndarray]) -> dict[str, Tensor] | None:
    """Every value of the main graph by name; None where some shape depends on more than the shapes of `feed`."""
    light = model.clone()
    for name, value in light.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL:
            value.const_value = ir.ExternalTensor(_ELSEWHERE, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape,
                                                  name=name)  # fmt: skip
    for node in light.graph:
        for y in node.outputs:
            y.shape = None
    for value in light.graph.inputs:
        if value.name in feed:
            value.shape = ir.Shape(feed[value.name].shape)
    for value in light.graph.outputs:
        value.shape = None
    proto = ir.to_proto(light)
    del proto.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return None
    found = {v.name: _of_type(v.const_value.shape.numpy(), v.const_value.dtype, constant=True)
             for v in model.graph.initializers.values() if v.const_value is not None}  # fmt: skip
    for info in (*inferred.input, *inferred.output, *inferred.value_info):
        kind = info.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.HasField("shape") and all(n >= 0 for n in sizes):
            found.setdefault(info.name, _of_type(sizes, ir.DataType(kind.elem_type)))
    wanted = {y.name for node in model.graph for y in node.outputs if y.name}
    return found if wanted <= found.keys() else None


def tensors_in(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Of values that were computed."""
    return {name: Tensor(a.shape, 8 * a.dtype.itemsize, floating=a.dtype.kind == "f") for name, a in arrays.items()}


def _of_type(shape: Sequence[int], dtype: ir.DataType, constant: bool = False) -> Tensor:
    if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return Tensor(tuple(shape), 64, constant, floating=False)
    return Tensor(tuple(shape), dtype.bitwidth, constant, dtype.is_floating_point())
