"""Read a model from outside: an ONNX file, its bytes, or an ONNX object. Everything that can be wrong with it is
said here, once, before any work is done."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from graphprune.errors import ModelError, UsageError

OLDEST_OPSET = 7
NEWEST_OPSET = onnx.defs.onnx_opset_version()
_FIX = "give an .onnx file as an exporter wrote it"


@dataclass(frozen=True)
class Source:
    """A model as it came: its graph, what to call it, the digest of its bytes, and how large it is on disk."""

    model: ir.Model
    name: str
    sha256: str
    n_bytes: int


def load(model: str | os.PathLike | bytes | onnx.ModelProto | ir.Model) -> Source:
    """Read and check a model. Raises UsageError for a wrong path, ModelError for what is not a usable model."""
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    if isinstance(model, onnx.ModelProto):
        data, name, folder = model.SerializeToString(deterministic=True), model.graph.name or "model", None
    elif isinstance(model, bytes):
        data, name, folder = model, "model", None
    elif isinstance(model, str | os.PathLike):
        path = Path(model)
        data, name, folder = _read(path), path.stem, path.parent
    else:
        raise UsageError(f"a {type(model).__name__} is not a model", fix="give a path, bytes, or an ONNX model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as e:
        raise ModelError(f"{name} is not an ONNX model, or it was cut short ({len(data):,} bytes)", at=str(model)
                         if isinstance(model, str | os.PathLike) else "", fix=_FIX) from e  # fmt: skip
    where = str(model) if isinstance(model, str | os.PathLike) else name
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{name} holds no graph", at=where, fix=_FIX)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ModelError(
            f"{name} uses opset {opset}; rules exist for {OLDEST_OPSET} to {NEWEST_OPSET}", at=where,
            fix="convert it with onnx.version_converter, or export it again",
        )  # fmt: skip
    if not proto.graph.output:
        raise ModelError(f"{name} has no outputs", at=where, fix=_FIX)
    n_external = _load_external(proto, folder, where)
    try:
        _check_tensors(proto)
        graph = ir.from_proto(proto)
        graph.graph.sort()
        _check_wiring(graph.graph, set())
        bare = graph.clone()
        bare.graph.initializers.clear()
        ir.to_proto(bare)  # says what of the rest is not text or cannot be written
    except Exception as e:
        raise ModelError(f"{name} is damaged: {_first_line(_origin(e))}", at=where, fix=_FIX) from e
    return Source(graph, name, hashlib.sha256(data).hexdigest(), len(data) + n_external)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise UsageError(f"there is no file {path}", fix="check the path of the model") from e
    except IsADirectoryError as e:
        raise UsageError(f"{path} is a folder", fix="give the .onnx file in it") from e
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}", fix="check its permissions") from e


def _load_external(proto: onnx.ModelProto, folder: Path | None, where: str) -> int:
    """Bring external data in; their paths must stay inside the model's folder. Returns their bytes."""
    tensors = [t for t in onnx.external_data_helper._get_all_tensors(proto)
               if t.data_location == onnx.TensorProto.EXTERNAL]  # fmt: skip
    total = 0
    for tensor in tensors:
        entry = {e.key: e.value for e in tensor.external_data}
        location = entry.get("location", "")
        if folder is None:
            raise ModelError(f"the weight {tensor.name} is in another file, {location!r}", at=where,
                             fix="give the path of the model, so that its data are found beside it")  # fmt: skip
        target = (folder / location).resolve()
        if os.path.isabs(location) or not target.is_relative_to(folder.resolve()):
            raise ModelError(f"the weight {tensor.name} points outside the model's folder: {location!r}", at=where,
                             fix="do not trust this file; export the model again")  # fmt: skip
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as e:
            raise ModelError(f"the weight {tensor.name} cannot be read from {location!r}: {_first_line(e)}", at=where,
                             fix="put the data file beside the model, whole") from e  # fmt: skip
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        total += len(tensor.raw_data)
    return total


def _check_tensors(proto: onnx.ModelProto) -> None:
    """Raises ValueError where a tensor does not hold as many bytes as its shape says."""
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if tensor.HasField("raw_data"):
            shape, n_bytes = list(tensor.dims), len(tensor.raw_data)
            if n_bytes != -(-math.prod(shape) * ir.DataType(tensor.data_type).bitwidth // 8):
                raise ValueError(f"the weight {tensor.name} has {n_bytes:,} bytes for shape {shape}")


def _check_wiring(graph: ir.Graph, outer: set[ir.Value]) -> None:
    """Raises ValueError where a node or an output takes a value that nothing makes."""
    made = outer | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        if missing := [v.name for v in node.inputs if v is not None and v not in made]:
            raise ValueError(f"{node.name or node.op_type} takes {missing[0]!r}, which nothing makes")
        for attribute in node.attributes.values():
            bodies = {ir.AttributeType.GRAPH: [attribute.value], ir.AttributeType.GRAPHS: attribute.value}
            for body in bodies.get(attribute.type, ()):
                _check_wiring(body, made)
        made.update(node.outputs)
    if missing := [v.name for v in graph.outputs if v not in made]:
        raise ValueError(f"nothing makes the output {missing[0]!r}")


def _origin(e: BaseException) -> BaseException:
    while e.__cause__ is not None:
        e = e.__cause__
    return e


def _first_line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def save_bytes(model: ir.Model) -> bytes:
    """The model as one deterministic protobuf message."""
    return ir.to_proto(model).SerializeToString(deterministic=True)
