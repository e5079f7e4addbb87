"""The convolutional families, written in `networks.py`. pixels [n, 3, side, side] -> y [n, 10]."""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path

from models.zoo.base import BATCH, IMAGE_AXES, Architecture, Sample


def image(name: str, module: str, network: str, *, family: str = "cnn", side: int = 32, core: bool = False,
          exporter: str = "dynamo", opset: int = 18, **options: object) -> Architecture:
    """An architecture whose network is class `network` of models.zoo.`module`, called with `options`."""

    def make() -> Sample:
        import torch

        made = getattr(import_module(f"models.zoo.{module}"), network)(**options)
        return Sample(made, {"pixels": torch.randn(BATCH, 3, side, side)}, IMAGE_AXES)

    source = hashlib.sha256(Path(__file__).with_name(f"{module}.py").read_bytes()).hexdigest()
    return Architecture(name, family, "torch module of this repository", make, key=f"{source} {options} {side}",
                        exporter=exporter, opset=opset, core=core)


ARCHITECTURES = (
    image("resnet_basic", "networks", "ResNet", bottleneck=False, core=True),
    image("resnet_bottleneck", "networks", "ResNet", bottleneck=True, core=True),
    image("resnext", "networks", "ResNet", bottleneck=True, groups=4, core=True),
    image("mobilenet_v2", "networks", "MobileNet", squeeze=False, core=True),
    image("mobilenet_v3", "networks", "MobileNet", squeeze=True, act="hardswish", core=True),
    image("efficientnet", "networks", "MobileNet", squeeze=True, act="silu", core=True),
    image("densenet", "networks", "DenseNet", core=True),
    image("convnext", "networks", "ConvNeXt", core=True),
    image("shufflenet_v2", "networks", "ShuffleNet", core=True),
)
