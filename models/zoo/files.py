"""Files that other frameworks wrote: trained networks in Python packages, and the graphs onnx is tested with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models import efficientnet_lite0, minilm, pp_cls, pp_det, pp_rec
from models.task import cached, package_file
from models.zoo.base import Architecture


def light(name: str) -> Architecture:
    """A Caffe2 graph of onnx's backend tests. Its weights were left out; random ones are put in, of the full size."""

    def path() -> Path:
        graph = package_file("onnx", f"backend/test/data/light/light_{name}.onnx", install="onnx")

        def make(target: Path) -> None:
            import onnx_ir as ir

            from models.zoo.weights import random_weights, settle

            ir.save(settle(random_weights(ir.load(graph))), target)

        return cached(f"zoo_light_{name}.onnx", make, graph, Path(__file__).with_name("weights.py"))

    return Architecture(f"light_{name}", "cnn", "Caffe2", path=path)


def silero(variant: str, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """Voice activity of 512 samples and the 64 before them; the state of an LSTM goes in and out. Where the rate is an
    input, any number but 16000 means 8 kHz, and half as many samples."""

    def path() -> Path:
        return package_file("silero_vad", f"data/{variant}.onnx", install="silero-vad")

    return Architecture(variant, "speech", "PyTorch, silero-vad", path=path, shapes=shapes)


def magika() -> Path:
    return package_file("magika", "models/standard_v3_3/model.onnx", install="magika")


FRAME = {"input": (1, 576), "state": (2, 1, 128)}

ARCHITECTURES = (
    Architecture("pp_cls", "cnn", "PaddlePaddle, PP-OCR", path=pp_cls.model, shapes={"x": (1, 3, 48, 192)}),
    Architecture("pp_det", "detection", "PaddlePaddle, PP-OCRv4", path=pp_det.model, shapes={"x": (1, 3, 320, 320)}),
    Architecture("pp_rec", "vision", "PaddlePaddle, PP-OCRv4", path=pp_rec.model, shapes={"x": (1, 3, 48, 320)}),
    Architecture("magika", "encoder", "TensorFlow", path=magika, shapes={"bytes": (1, 2048)}),
    silero("silero_vad", {**FRAME, "input": (1, 288)}),
    silero("silero_vad_16k_op15", FRAME),
    silero("silero_vad_16k_sequence", {"input": (4, 576)}),
    silero("silero_vad_half", FRAME),
    silero("silero_vad_op18_ifless", {**FRAME, "input": (1, 288)}),
    silero("silero_vad_openvino_16k", {}),
    Architecture("minilm", "encoder", "PyTorch, sentence-transformers", path=minilm.model,
                 shapes={"input_ids": (1, 128), "attention_mask": (1, 128)}),
    Architecture("efficientnet_lite0", "cnn", "PyTorch", path=efficientnet_lite0.model,
                 shapes={"pixels": (1, 3, 224, 224)}),
    *map(light, ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
                 "vgg19", "zfnet512")),
)
