"""Small convolutional networks, one class for each way of coupling channels. pixels [n, 3, 32, 32] -> y [n, 10]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU}


def conv(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1,
         act: str | None = "relu") -> nn.Module:
    """Convolution, BatchNorm, activation."""
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([ACTIVATIONS[act]()] if act else []))


def head(c_in: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 10))


class Residual(nn.Module):
    """x + f(x), or short(x) + f(x) where the shape changes."""

    def __init__(self, branch: nn.Module, short: nn.Module | None, act: nn.Module | None) -> None:
        super().__init__()
        self.branch, self.short, self.act = branch, short or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.short(x))


class ResNet(nn.Module):
    """Basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) blocks; groups > 1 in the middle makes it a ResNeXt."""

    def __init__(self, bottleneck: bool, groups: int = 1) -> None:
        super().__init__()

        def block(c_in: int, c_out: int, stride: int) -> nn.Module:
            middle = c_out // 2 if bottleneck else c_out
            branch = nn.Sequential(conv(c_in, middle), conv(middle, middle, 3, stride, groups),
                                   conv(middle, c_out, act=None)) if bottleneck else \
                nn.Sequential(conv(c_in, c_out, 3, stride), conv(c_out, c_out, 3, act=None))
            short = conv(c_in, c_out, 1, stride, act=None) if (c_in, stride) != (c_out, 1) else None
            return Residual(branch, short, nn.ReLU())

        self.body = nn.Sequential(conv(3, 32, 3, 2), nn.MaxPool2d(3, 2, 1), block(32, 64, 1), block(64, 64, 1),
                                  block(64, 96, 2), block(96, 96, 1), head(96))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        gate = nn.Hardsigmoid() if act == "hardswish" else nn.Sigmoid()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
                                  nn.Conv2d(channels // 4, channels, 1), gate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class MobileNet(nn.Module):
    """Inverted residuals with depthwise convolutions; with squeeze and excitation: MobileNetV3 or EfficientNet."""

    def __init__(self, squeeze: bool, act: str = "relu6") -> None:
        super().__init__()

        def block(c_in: int, c_out: int, stride: int) -> nn.Module:
            wide = c_in * 4
            layers = [conv(c_in, wide, act=act), conv(wide, wide, 3, stride, groups=wide, act=act)]
            layers += [SqueezeExcite(wide, act)] if squeeze else []
            branch = nn.Sequential(*layers, conv(wide, c_out, act=None))
            return Residual(branch, None, None) if (c_in, stride) == (c_out, 1) else branch

        self.body = nn.Sequential(conv(3, 16, 3, 2, act=act), block(16, 24, 2), block(24, 24, 1), block(24, 40, 2),
                                  block(40, 40, 1), conv(40, 96, act=act), head(96))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class DenseLayer(nn.Module):
    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, 2 * growth, 1, bias=False),
                                  nn.BatchNorm2d(2 * growth), nn.ReLU(),
                                  nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


class DenseNet(nn.Module):
    """Every layer reads all the earlier ones, side by side; BatchNorm comes before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 24, 3, 2), DenseLayer(24, 12), DenseLayer(36, 12), DenseLayer(48, 12),
            nn.BatchNorm2d(60), nn.ReLU(), nn.Conv2d(60, 30, 1, bias=False), nn.AvgPool2d(2),
            DenseLayer(30, 12), DenseLayer(42, 12), nn.BatchNorm2d(54), nn.ReLU(), head(54))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm over channels placed last, two linear layers, a scale for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(nn.functional.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


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
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 4, 4), ChannelNorm(32), ConvNeXtBlock(32), ConvNeXtBlock(32),
                                  ChannelNorm(32), nn.Conv2d(32, 64, 2, 2), ConvNeXtBlock(64))
        self.norm, self.last = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.body(x).mean((2, 3))))


class ShuffleBlock(nn.Module):
    """Half the channels pass, half are computed (stride 1), or both are (stride 2); then the halves are interleaved."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half, self.split = c_out // 2, stride == 1
        main = half if self.split else c_in
        self.main = nn.Sequential(conv(main, half), conv(half, half, 3, stride, groups=half, act=None),
                                  conv(half, half))
        self.side = nn.Identity() if self.split else \
            nn.Sequential(conv(c_in, c_in, 3, stride, groups=c_in, act=None), conv(c_in, half))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.split else (x, x)
        y = torch.cat([self.side(left), self.main(right)], 1)
        n, c, h, w = y.shape
        return y.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 24, 3, 2), ShuffleBlock(24, 48, 2), ShuffleBlock(48, 48, 1),
                                  ShuffleBlock(48, 96, 2), ShuffleBlock(96, 96, 1), conv(96, 128), head(128))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)
