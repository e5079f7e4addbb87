"""Chains without residuals, and odd ones: VGG, AlexNet, LeNet, NiN, 3-d, capsules, shared weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.zoo.layers import CLASSES, conv, head


def vgg(norm: bool) -> nn.Module:
    """3x3 convolutions and pools, then fully connected layers that read a flattened image of 4x4."""
    def block(c_in: int, c_out: int) -> list[nn.Module]:
        layers = [conv(c_in, c_out, 3), conv(c_out, c_out, 3)] if norm else \
            [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(), nn.Conv2d(c_out, c_out, 3, padding=1), nn.ReLU()]
        return [*layers, nn.MaxPool2d(2)]

    return nn.Sequential(*block(3, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(64 * 16, 128),
                         nn.ReLU(), nn.Dropout(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, CLASSES))


def alexnet() -> nn.Module:
    """Response normalisation across neighbouring channels, and convolutions in two groups."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(32, 64, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0),
        nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 64, 3, padding=1, groups=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def lenet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
                         nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(),
                         nn.Linear(84, CLASSES), nn.LogSoftmax(1))


def nin() -> nn.Module:
    """A perceptron at every place: 1x1 convolutions after each larger one."""
    def block(c_in: int, c_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2), nn.ReLU()]
        return [*layers, nn.Conv2d(c_out, c_out, 1), nn.ReLU(), nn.Conv2d(c_out, c_out, 1), nn.ReLU()]

    return nn.Sequential(*block(3, 48, 5), nn.MaxPool2d(3, 2, 1), *block(48, 64, 5), nn.MaxPool2d(3, 2, 1),
                         *block(64, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def volume() -> nn.Module:
    """C3D with a factored block, (1, 3, 3) then (3, 1, 1): pixels [n, 3, frames, side, side]."""
    def block(c_in: int, c_out: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> nn.Module:
        return nn.Sequential(nn.Conv3d(c_in, c_out, kernel, stride, tuple(k // 2 for k in kernel), bias=False),
                             nn.BatchNorm3d(c_out), nn.ReLU())

    return nn.Sequential(block(3, 16, (3, 3, 3), (1, 2, 2)), nn.MaxPool3d((1, 2, 2)),
                         block(16, 40, (1, 3, 3), (1, 1, 1)), block(40, 32, (3, 1, 1), (2, 1, 1)),
                         block(32, 64, (3, 3, 3), (1, 2, 2)), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
                         nn.Linear(64, CLASSES))


class Capsules(nn.Module):
    """Vectors instead of numbers: primary capsules, a matrix for each pair, one round of routing (arXiv 1710.09829)."""

    def __init__(self, types: int = 8, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 5, 2), conv(32, 48, 5, 2))
        self.primary, self.width = nn.Conv2d(48, types * width, 5, 2), width
        self.pairs = nn.Parameter(torch.empty(types * 4, CLASSES, 12, width))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return x * square / (1 + square) / (square + 1e-6).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(self.stem(x))
        n, _, h, w = y.shape
        capsules = self.squash(y.reshape(n, -1, self.width, h * w).permute(0, 1, 3, 2).reshape(n, -1, self.width))
        votes = torch.einsum("iodk,nik->niod", self.pairs, capsules)
        vote = self.squash(votes.mean(1))
        weight = (votes * vote.unsqueeze(1)).sum(-1).softmax(2)
        return self.squash((weight.unsqueeze(-1) * votes).sum(1)).square().sum(-1)


class Siamese(nn.Module):
    """One network reads both images, the distance of what it makes of them is judged. pixels, other -> y [n, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(conv(3, 24, 3, 2), conv(24, 48, 3, 2), conv(48, 64, 3, 2), nn.AdaptiveAvgPool2d(1),
                                   nn.Flatten(), nn.Linear(64, 48))
        self.judge = nn.Linear(48, 1)

    def forward(self, pixels: Tensor, other: Tensor) -> Tensor:
        return self.judge((self.embed(pixels) - self.embed(other)).abs()).sigmoid()


class Repeated(nn.Module):
    """CORnet: the same weights are applied again to their own output, three times."""

    def __init__(self, channels: int = 48, times: int = 3) -> None:
        super().__init__()
        self.stem, self.times = conv(3, channels, 3, 2), times
        self.body = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.ReLU(),
                                  nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=4), nn.ReLU(),
                                  nn.Conv2d(2 * channels, channels, 1))
        self.last = head(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.times):
            x = (x + self.body(x)).relu()
        return self.last(x)


class Highway(nn.Module):
    """A gate chooses, for every channel and place, between the transformed and the untouched (arXiv 1505.00387)."""

    def __init__(self, channels: int = 48) -> None:
        super().__init__()
        self.stem, self.last = conv(3, channels, 3, 2), head(channels)
        self.change = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.choose = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for change, choose in zip(self.change, self.choose, strict=True):
            gate = choose(x).sigmoid()
            x = gate * change(x).relu() + (1 - gate) * x
        return self.last(x)


class Maxout(nn.Module):
    """Each channel is the largest of two (arXiv 1302.4389): the halves of a convolution's output are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(32, 96, 3, 2, 1)
        self.last = head(48)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        y = self.second(torch.maximum(a, b))
        return self.last(y.reshape(y.shape[0], 48, 2, *y.shape[2:]).amax(2))
