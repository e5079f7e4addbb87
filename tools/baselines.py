"""What ONNX Runtime's own quantisation makes of a model: the baselines of the ablation, given their fair chance.

`onnxruntime.quantization` as its documentation says: `quant_pre_process` first, weights int8 per channel, activations
uint8 in the QDQ format, weights of seven bits where the processor lacks VNNI, no node excluded by hand. Static
quantisation is calibrated in several ways, and the one that stays nearest to the dense outputs on feeds held out from
calibration is taken; evaluation data decide nothing. Not tried is SmoothQuant, which needs a package (neural-compressor
2) that does not install beside numpy 2.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization import quantize_static as ort_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from graphprune.backends import open_backend
from graphprune.divergence import Reference, outputs_of
from models.task import Feed, cached

LINEAR = ("Conv", "MatMul", "Gemm")
_ABSORBED = ("Relu", "Clip")
"""Activations that the quantiser takes into the range of the layer before them."""
_OPSET = 17
"""DequantizeLinear has an axis, which weights per channel need, from opset 13 on. Older models are raised to this."""
CALIBRATIONS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "min-max": (CalibrationMethod.MinMax, {}),
    "moving average": (CalibrationMethod.MinMax, {"CalibMovingAverage": True}),
    "entropy": (CalibrationMethod.Entropy, {}),
    **{f"percentile {p:g}": (CalibrationMethod.Percentile, {"CalibPercentile": p, "CalibTensorRangeSymmetric": False})
       for p in (99.999, 99.99, 99.9)},
}  # fmt: skip


@dataclass(frozen=True)
class Baseline:
    """A quantised model, how it was made, and its divergence from the dense one on held-out calibration feeds."""

    path: Path
    how: str
    divergence: float


def dynamic(model: Path) -> Path:
    """Weights of MatMul and Gemm in int8, per channel; activations quantised as the model runs."""

    def make(path: Path) -> None:
        with _prepared(model) as (source, folder):
            quantize_dynamic(source, folder / "out.onnx", op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
                             reduce_range=not has_vnni())  # fmt: skip
            path.write_bytes((folder / "out.onnx").read_bytes())

    return cached(f"{model.stem}_dynamic.onnx", make, model, Path(__file__), onnxruntime.__version__, str(has_vnni()))


def static(model: Path, feeds: Sequence[Feed], held: Sequence[Feed], *, linear_only: bool) -> Baseline:
    """Everything that the quantiser knows in int8, or Conv, MatMul and Gemm alone; the best of all calibrations.

    feeds: to calibrate on. held: to choose a calibration by. linear_only: with and without the activations right behind
    these layers are both tried.
    """
    kinds = {"linear layers": LINEAR, "linear layers and their activations": LINEAR + _ABSORBED} if linear_only else {
        "everything": ()}  # fmt: skip
    sources = [model, Path(__file__), onnxruntime.__version__, str(has_vnni()), *CALIBRATIONS]

    def make(path: Path) -> None:
        with _prepared(model) as (source, folder):
            found = _best(model, source, folder, feeds, held, kinds, sources)
            best = onnx.load(found.path)
            onnx.helper.set_model_props(best, {"how": found.how, "divergence": repr(found.divergence)})
            onnx.save(best, path)

    path = cached(f"{model.stem}_static.onnx", make, *sources, digest(feeds), digest(held), *kinds)
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return Baseline(path, said["how"], float(said["divergence"]))


def _best(
    model: Path, source: Path, folder: Path, feeds: Sequence[Feed], held: Sequence[Feed],
    kinds: Mapping[str, Sequence[str]], sources: Sequence[Path | str],
) -> Baseline:  # fmt: skip
    """Every calibration for every choice of nodes is built in `folder`; the one with the least divergence."""
    backend = open_backend("host")
    reference = Reference(outputs_of(backend.load(model).run, held))
    found = []
    for name in CALIBRATIONS:
        # gathered once, for all kinds of nodes: the ranges of linear layers are among those of everything
        ranges = cached(f"{model.stem}_ranges.json", lambda path, name=name: _quantise(
            source, folder / "out.onnx", feeds, name, (), path), *sources, digest(feeds), name)  # fmt: skip
        for about, ops in kinds.items():
            target = folder / f"{len(found)}.onnx"
            _quantise(source, target, feeds, name, ops, ranges)
            lost = reference.divergence(outputs_of(backend.load(target).run, held))
            found.append(Baseline(target, f"{about}, {name}", lost))
    return min(found, key=lambda baseline: baseline.divergence)


def _quantise(
    source: Path, target: Path, feeds: Sequence[Feed], calibration: str, ops: Sequence[str], ranges: Path
) -> None:
    method, options = CALIBRATIONS[calibration]
    # one feed at a time: they may differ in shape, and all activations of all of them would not fit into memory
    ort_static(source, target, _Reader(feeds), op_types_to_quantize=list(ops) or None, per_channel=True,
               activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=not has_vnni(),
               calibrate_method=method, extra_options={"CalibStridedMinMax": 1} | options,
               calibration_cache_path=ranges)  # fmt: skip


class _Reader(CalibrationDataReader):
    """Feeds as the quantiser asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self.set_range(0, len(feeds))

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest = iter(self._feeds[start_index:end_index])

    def get_next(self) -> Feed | None:
        return next(self._rest, None)


@contextlib.contextmanager
def _prepared(model: Path) -> Iterator[tuple[Path, Path]]:
    """The model raised to an opset that has what is needed, and pre-processed; and a folder for more files.

    The quantiser prints, logs and leaves files where it runs when it fails: all of that stays in here.
    """
    log = logging.getLogger()
    level = log.level
    with tempfile.TemporaryDirectory(prefix="graphprune-") as name:
        folder = Path(name)
        try:
            log.setLevel(logging.ERROR)
            with contextlib.redirect_stdout(io.StringIO()):
                onnx.save(raised(onnx.load(model)), folder / "raised.onnx")
                with contextlib.chdir(folder):
                    _pre_process(folder / "raised.onnx", folder / "ready.onnx")
                yield folder / "ready.onnx", folder
        finally:
            log.setLevel(level)


def _pre_process(source: Path, target: Path) -> None:
    try:
        quant_pre_process(source, target)
    except Exception as error:  # its symbolic shape inference raises no better class; it is optional
        if "symbolic shape inference" not in str(error):
            raise
        quant_pre_process(source, target, skip_symbolic_shape=True)


def raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at opset 17 where it is below 13."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    return onnx.version_converter.convert_version(model, _OPSET) if opset < 13 else model


def has_vnni() -> bool:
    """Whether the processor adds up products of 8-bit numbers without saturating, as far as the system says."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def digest(feeds: Sequence[Feed]) -> str:
    """A checksum of all arrays, their names, types and shapes."""
    found = hashlib.sha256()
    for feed in feeds:
        for name, array in sorted(feed.items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(array.tobytes())
    return found.hexdigest()
