"""Networks that mix places and channels in turns: ConvNeXt, ConvMixer, MLP-Mixer, gMLP, PoolFormer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.zoo.layers import CLASSES, Residual, head


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm over channels placed last, two linear layers, a scale for each channel.

    response: version 2, whose scale is the channel's norm beside the mean norm (arXiv 2301.00808).
    """

    def __init__(self, channels: int, response: bool = False) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = None if response else nn.Parameter(torch.ones(channels))
        self.response = Response(4 * channels) if response else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(self.response(nn.functional.gelu(self.wide(y))))
        return x + (y if self.gamma is None else self.gamma * y).permute(0, 3, 1, 2)


class Response(nn.Module):
    """Global response normalisation of [n, h, w, c]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.weight * (x * norm / (norm.mean(-1, keepdim=True) + 1e-6)) + self.bias + x


class ChannelNorm(nn.Module):
    """LayerNorm over axis 1 of [n, c, h, w], written out as ConvNeXt does between its stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normal = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * normal + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    def __init__(self, response: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 4, 4), ChannelNorm(32), ConvNeXtBlock(32, response),
                                  ConvNeXtBlock(32, response), ChannelNorm(32), nn.Conv2d(32, 64, 2, 2),
                                  ConvNeXtBlock(64, response))
        self.norm, self.last = nn.LayerNorm(64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.body(x).mean((2, 3))))


def convmixer(channels: int = 64) -> nn.Module:
    """Patches, then depthwise convolutions with a residual and pointwise ones without (arXiv 2201.09792)."""
    def step(layer: nn.Module) -> nn.Module:
        return nn.Sequential(layer, nn.GELU(), nn.BatchNorm2d(channels))

    layers = [step(nn.Conv2d(3, channels, 4, 4))]
    for _ in range(3):
        layers += [Residual(step(nn.Conv2d(channels, channels, 5, groups=channels, padding=2))),
                   step(nn.Conv2d(channels, channels, 1))]
    return nn.Sequential(*layers, head(channels))


class Transposed(nn.Module):
    """A layer for the last axis, applied to the one before it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class Tokens(nn.Module):
    """Patches of 4x4 become tokens; blocks; mean over tokens."""

    def __init__(self, channels: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, channels, 4, 4), nn.Sequential(*blocks)
        self.norm, self.last = nn.LayerNorm(channels), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


def perceptron(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def mlp_mixer(channels: int = 48, places: int = 64) -> nn.Module:
    """One perceptron over places, one over channels (arXiv 2105.01601)."""
    blocks = []
    for _ in range(2):
        blocks += [Residual(nn.Sequential(nn.LayerNorm(channels), Transposed(perceptron(places, 40)))),
                   Residual(nn.Sequential(nn.LayerNorm(channels), perceptron(channels, 96)))]
    return Tokens(channels, *blocks)


class PlaceGate(nn.Module):
    """gMLP: one half of the channels, mixed over places, multiplies the other half (arXiv 2105.08050)."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width // 2), nn.Conv1d(places, places, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, -1)
        return u * self.mix(self.norm(v))


def gmlp(channels: int = 48, places: int = 64) -> nn.Module:
    return Tokens(channels, *(
        Residual(nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 96), nn.GELU(), PlaceGate(96, places),
                               nn.Linear(48, channels))) for _ in range(2)))


class AffineResidual(nn.Module):
    """ResMLP: a learned scale and shift instead of a norm, and a scale after the layer (arXiv 2105.03404)."""

    def __init__(self, width: int, layer: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.gamma, self.layer = nn.Parameter(torch.ones(width)), layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.layer(x * self.weight + self.bias)


def resmlp(channels: int = 48, places: int = 64) -> nn.Module:
    blocks = []
    for _ in range(2):
        blocks += [AffineResidual(channels, Transposed(nn.Linear(places, places))),
                   AffineResidual(channels, perceptron(channels, 96))]
    return Tokens(channels, *blocks)


class PoolMix(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


def poolformer(channels: int = 48) -> nn.Module:
    """Places are mixed by an average, channels by 1x1 convolutions, under GroupNorm of one group (arXiv 2111.11418)."""
    def wide() -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 96, 1), nn.GELU(), nn.Conv2d(96, channels, 1))

    blocks = []
    for _ in range(2):
        blocks += [Residual(nn.Sequential(nn.GroupNorm(1, channels), PoolMix())),
                   Residual(nn.Sequential(nn.GroupNorm(1, channels), wide()))]
    return nn.Sequential(nn.Conv2d(3, channels, 7, 4, 2), *blocks, nn.GroupNorm(1, channels), head(channels))
