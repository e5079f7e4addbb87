"""The classic families as torch modules of our own: image networks, dense prediction, detectors, recurrent ones; and a
few of them through each exporter at each opset."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from models.zoo.base import BATCH, IMAGE_AXES, SEQUENCE, TEXT_AXES, VOCABULARY, Architecture, Sample

if TYPE_CHECKING:
    import torch

Feed = dict[str, "torch.Tensor"]
ANY_SIZE = {"pixels": {0: "batch", 2: "height", 3: "width"}}


@cache
def checksum(module: str) -> str:
    """Of a module of this package and of those of the package that it imports."""
    text = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    inner = re.findall(r"^from models\.zoo\.(\w+) import", text, re.MULTILINE)
    return hashlib.sha256("".join([text, *map(checksum, inner)]).encode()).hexdigest()


def entry(name: str, module: str, network: str, feed: Callable[[], Feed], axes: Mapping[str, Mapping[int, str]], *,
          family: str = "cnn", core: bool = False, exporter: str = "dynamo", opset: int = 18,
          outputs: tuple[str, ...] = ("y",), shapes: Mapping[str, tuple[int, ...]] | None = None, key: str = "",
          **options: object) -> Architecture:
    """The network that `network` of models.zoo.`module` makes of `options`, called with what `feed` gives."""

    def make() -> Sample:
        return Sample(getattr(import_module(f"models.zoo.{module}"), network)(**options), feed(), axes, outputs)

    key = f"{checksum(module)} {network} {options} {axes} {outputs} {key}"
    return Architecture(name, family, "torch module of this repository", make, key=key, exporter=exporter, opset=opset,
                        shapes=shapes or {}, core=core)


def image(name: str, module: str, network: str, *, side: int = 32, any_size: bool = False,
          **options: object) -> Architecture:
    """pixels [batch, 3, side, side] -> y. any_size: height and width are dynamic too; that needs sizes the network can
    halve, which the exporter before torch.export does not mind."""

    def feed() -> Feed:
        import torch

        return {"pixels": torch.randn(BATCH, 3, side, side)}

    if any_size:
        options = {"exporter": "torchscript", "opset": 17, "shapes": {"pixels": (BATCH, 3, side, 2 * side)}, **options}
    return entry(name, module, network, feed, ANY_SIZE if any_size else IMAGE_AXES, key=str(side), **options)


def detector(name: str, network: str, outputs: tuple[str, ...], *, module: str = "detection",
             **options: object) -> Architecture:
    return image(name, module, network, family="detection", side=64, outputs=outputs, **options)


def tokens(name: str, network: str, **options: object) -> Architecture:
    """input_ids [batch, sequence] -> y."""

    def feed() -> Feed:
        import torch

        return {"input_ids": torch.randint(1, VOCABULARY, (BATCH, SEQUENCE))}

    return entry(name, "sequences", network, feed, TEXT_AXES, family="recurrent", **options)


def noise(name: str, module: str, network: str, sizes: Mapping[str, tuple[int, ...]], *, dynamic: Mapping[int, str],
          **options: object) -> Architecture:
    """Inputs of normal numbers of these shapes, batch included; `dynamic` are the open axes of each."""

    def feed() -> Feed:
        import torch

        return {key: torch.randn(shape) for key, shape in sizes.items()}

    return entry(name, module, network, feed, dict.fromkeys(sizes, dynamic), key=str(sizes), **options)


def signal(name: str, network: str, *, channels: int = 8, length: int = 32, **options: object) -> Architecture:
    """signal [batch, channels, time] -> y."""
    return noise(name, "sequences", network, {"signal": (BATCH, channels, length)}, dynamic={0: "batch", 2: "time"},
                 **options)


RESIDUAL = (
    image("resnet_basic", "residual", "resnet", bottleneck=False, core=True),
    image("resnet_bottleneck", "residual", "resnet", bottleneck=True, core=True),
    image("resnext", "residual", "resnet", bottleneck=True, groups=4, core=True),
    image("wide_resnet_bottleneck", "residual", "resnet", bottleneck=True, wide=2),
    image("wide_resnet", "residual", "wide_resnet"),
    image("resnet_v2", "residual", "resnet_v2"),
    image("resnet_d", "residual", "resnet_d"),
    image("resnet_se", "residual", "resnet", bottleneck=True, attention="se"),
    image("resnet_eca", "residual", "resnet", bottleneck=True, attention="eca"),
    image("resnet_cbam", "residual", "resnet", bottleneck=False, attention="cbam"),
    image("resnet_coordinate", "residual", "resnet", bottleneck=True, attention="coordinate"),
    image("resnet_einsum", "residual", "resnet", bottleneck=False, attention="einsum"),
    image("gcnet", "residual", "resnet", bottleneck=True, attention="context"),
    image("nonlocal", "residual", "resnet", bottleneck=True, attention="nonlocal"),
    image("resnest", "residual", "multipath", middle="resnest"),
    image("sknet", "residual", "multipath", middle="sknet"),
    image("res2net", "residual", "multipath", middle="res2net"),
    image("regnet_x", "residual", "regnet", squeeze=False),
    image("regnet_y", "residual", "regnet", squeeze=True),
    image("nfnet", "residual", "nfnet"),
    image("bit", "residual", "bit"),
    image("repvgg_training", "residual", "repvgg", fused=False),
    image("repvgg_fused", "residual", "repvgg", fused=True),
    image("dla", "residual", "dla"),
)

MOBILE = (
    image("mobilenet_v1", "mobile", "mobilenet_v1"),
    image("mobilenet_v2", "mobile", "mobilenet", squeeze=False, core=True),
    image("mobilenet_v3", "mobile", "mobilenet", squeeze=True, act="hardswish", core=True),
    image("mnasnet", "mobile", "mnasnet"),
    image("mixnet", "mobile", "mixnet"),
    image("efficientnet", "mobile", "mobilenet", squeeze=True, act="silu", core=True),
    image("efficientnet_v2", "mobile", "efficientnet_v2"),
    image("ghostnet", "mobile", "ghostnet"),
    image("shufflenet_v1", "mobile", "shufflenet_v1"),
    image("shufflenet_v2", "mobile", "shufflenet_v2", core=True),
    image("channel_multiplier", "mobile", "multiplier"),
)

BRANCHING = (
    image("densenet", "branching", "densenet", core=True),
    image("inception_v1", "branching", "inception_v1"),
    image("inception_v3", "branching", "inception_v3"),
    image("inception_v4", "branching", "inception_v4"),
    image("xception", "branching", "xception"),
    image("cspnet", "branching", "csp", parted=True),
    image("cspdarknet", "branching", "csp", parted=False),
    image("darknet", "branching", "darknet"),
    image("squeezenet", "branching", "squeezenet"),
    image("vovnet", "branching", "vovnet"),
    image("dpn", "branching", "dpn"),
)

PLAIN = (
    image("vgg", "plain", "vgg", norm=False),
    image("vgg_bn", "plain", "vgg", norm=True),
    image("alexnet", "plain", "alexnet"),
    image("lenet", "plain", "lenet"),
    image("nin", "plain", "nin"),
    image("capsules", "plain", "Capsules"),
    image("cornet", "plain", "Repeated"),
    image("highway", "plain", "Highway"),
    image("maxout", "plain", "Maxout"),
    noise("c3d", "plain", "volume", {"pixels": (BATCH, 3, 8, 16, 16)}, dynamic={0: "batch"}),
    noise("siamese", "plain", "Siamese", {"pixels": (BATCH, 3, 32, 32), "other": (BATCH, 3, 32, 32)},
          dynamic={0: "batch"}),
)

MIXERS = (
    image("convnext", "mixers", "ConvNeXt", core=True),
    image("convnext_v2", "mixers", "ConvNeXt", response=True),
    image("convmixer", "mixers", "convmixer"),
    image("mlp_mixer", "mixers", "mlp_mixer"),
    image("gmlp", "mixers", "gmlp"),
    image("resmlp", "mixers", "resmlp"),
    image("poolformer", "mixers", "poolformer"),
)

DENSE = (
    image("unet_transposed", "dense", "UNet", up="transposed"),
    image("unet_bilinear", "dense", "UNet", up="bilinear"),
    image("unet_attention", "dense", "UNet", up="attention"),
    image("unet_any_size", "dense", "UNet", up="bilinear", any_size=True),
    image("unet_nested", "dense", "NestedUNet"),
    image("deeplab", "dense", "Pyramid", views="dilated"),
    image("deeplab_any_size", "dense", "Pyramid", views="dilated", any_size=True),
    image("pspnet", "dense", "Pyramid", views="pooled"),
    image("segnet", "dense", "SegNet"),
    image("hrnet", "dense", "HRNet"),
    image("hrnet_any_size", "dense", "HRNet", any_size=True),
    image("espcn", "dense", "espcn"),
    image("edsr", "dense", "EDSR"),
    image("style_transfer", "dense", "style"),
    noise("dcgan", "dense", "Generator", {"noise": (BATCH, 40)}, dynamic={0: "batch"}),
    image("autoencoder", "dense", "Autoencoder", outputs=("y", "spread")),
)

BOXES = ("boxes", "scores")
DETECTION = (
    detector("retinanet", "RetinaNet", BOXES),
    detector("retinanet_any_size", "RetinaNet", BOXES, any_size=True),
    detector("ssd", "SSD", BOXES),
    detector("yolo", "YOLO", ("y",)),
    detector("yolo_any_size", "YOLO", ("y",), any_size=True),
    detector("efficientdet", "WeightedFusion", BOXES),
    detector("centernet", "CenterNet", ("centres", "sizes", "offsets")),
    detector("hourglass", "Hourglass", ("first", "second"), module="dense"),
)

SEQUENCES = (
    tokens("rnn_language", "Language", cell="RNN"),
    tokens("gru_language", "Language", cell="GRU"),
    tokens("lstm_language_tied", "Language", cell="LSTM", tied=True),
    tokens("lstm_tagger", "Tagger", cell="LSTM", both=False),
    tokens("bilstm_tagger", "Tagger", cell="LSTM", both=True, layers=2),
    tokens("bigru_tagger", "Tagger", cell="GRU", both=True),
    tokens("gru_attention", "Attending"),
    tokens("text_cnn", "TextCNN"),
    image("crnn", "sequences", "CRNN", family="recurrent"),
    signal("tcn", "tcn"),
    signal("wavenet", "WaveNet", fused=False),
    signal("wavenet_fused", "WaveNet", fused=True),
    signal("keyword_spotter", "keyword_spotter"),
    signal("conv_tasnet", "ConvTasNet", channels=1, length=64),
)

SWEPT = {
    "resnet": partial(image, module="residual", network="resnet", bottleneck=True),
    "mobilenet": partial(image, module="mobile", network="mobilenet", squeeze=True, act="hardswish"),
    "shufflenet": partial(image, module="mobile", network="shufflenet_v2"),
    "lstm": partial(tokens, network="Tagger", cell="LSTM", both=True),
}
"""Of the ways of coupling channels three networks, and one that is recurrent."""
EXPORTERS = {"torchscript": (7, 9, 11, 13, 17, 20), "dynamo": (20, 21, 23, 26)}
"""Opsets that each exporter writes: the oldest and the newest, and between them where operators changed."""
UNWRITABLE = {("lstm", "torchscript", 7)}
"""At opset 7 the exporter writes the initial state of an LSTM by ConstantFill, which ONNX never had."""

SWEEP = tuple(
    make(f"{name}_{exporter}_{opset}", exporter=exporter, opset=opset)
    for name, make in SWEPT.items() for exporter, opsets in EXPORTERS.items() for opset in opsets
    if (name, exporter, opset) not in UNWRITABLE
)

ARCHITECTURES = (*RESIDUAL, *MOBILE, *BRANCHING, *PLAIN, *MIXERS, *DENSE, *DETECTION, *SEQUENCES, *SWEEP)
