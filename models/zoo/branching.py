"""Networks that lay branches side by side: Inception, DenseNet, CSP, SqueezeNet. pixels [n, 3, side, side] -> y."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.zoo.layers import Residual, Side, SqueezeExcite, before, conv, head, trunk


def inception_v1() -> nn.Module:
    """Four branches: 1x1, 3x3, 5x5 and a pool, side by side."""
    def mix(c_in: int, one: int, three: int, five: int, pool: int) -> nn.Module:
        return Side(conv(c_in, one), nn.Sequential(conv(c_in, three // 2), conv(three // 2, three, 3)),
                    nn.Sequential(conv(c_in, five // 2), conv(five // 2, five, 5)),
                    nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(c_in, pool)))

    return nn.Sequential(conv(3, 32, 3, 2), nn.LocalResponseNorm(5), conv(32, 48, 3), nn.MaxPool2d(3, 2, 1),
                         mix(48, 16, 32, 8, 8), mix(64, 32, 48, 16, 16), nn.MaxPool2d(3, 2, 1),
                         mix(112, 48, 64, 16, 16), nn.Dropout(0.4), head(144))


def inception_v3() -> nn.Module:
    """Kernels factored into 1xn and nx1, grids reduced by parallel strides, branches that part again inside."""
    def factored(c_in: int, inner: int) -> nn.Module:
        lines = nn.Sequential(conv(c_in, inner), conv(inner, inner, (1, 7)), conv(inner, 24, (7, 1)))
        return Side(conv(c_in, 24), lines,
                    nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(c_in, 24)))

    def reduced(c_in: int, c_out: int) -> nn.Module:
        return Side(nn.Sequential(conv(c_in, c_out), conv(c_out, c_out, 3, 2)), nn.MaxPool2d(3, 2, 1))

    def expanded(c_in: int) -> nn.Module:
        fork = Side(conv(32, 24, (1, 3)), conv(32, 24, (3, 1)))
        return Side(conv(c_in, 32), nn.Sequential(conv(c_in, 32), fork),
                    nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(c_in, 16)))

    return nn.Sequential(conv(3, 24, 3, 2), conv(24, 32, 3), reduced(32, 32), factored(64, 24), factored(72, 24),
                         reduced(72, 24), expanded(96), head(96))


class InceptionResidual(nn.Module):
    """Inception v4's residual form: branches side by side, one linear 1x1, scaled, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = Side(conv(channels, 16), nn.Sequential(conv(channels, 16), conv(16, 16, 3)),
                             nn.Sequential(conv(channels, 16), conv(16, 24, 3), conv(24, 24, 3)))
        self.linear = nn.Conv2d(56, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.17 * self.linear(self.branches(x))).relu()


def inception_v4() -> nn.Module:
    stem = nn.Sequential(conv(3, 16, 3, 2), Side(nn.MaxPool2d(3, 2, 1), conv(16, 32, 3, 2)))
    down = Side(nn.MaxPool2d(3, 2, 1), conv(48, 32, 3, 2),
                nn.Sequential(conv(48, 24), conv(24, 24, 3), conv(24, 32, 3, 2)))
    return nn.Sequential(stem, InceptionResidual(48), InceptionResidual(48), down, InceptionResidual(112), head(112))


def xception() -> nn.Module:
    """Depthwise separable convolutions, the activation before them, and linear shortcuts."""
    def separable(c_in: int, c_out: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_in, 3, 1, 1, groups=c_in, bias=False),
                             conv(c_in, c_out, act=None))

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        pool = [nn.MaxPool2d(3, 2, 1)] if stride == 2 else []
        branch = nn.Sequential(separable(c_in, c_out), separable(c_out, c_out), *pool)
        return Residual(branch, conv(c_in, c_out, 1, stride, act=None) if (c_in, stride) != (c_out, 1) else None)

    return trunk(block, (32, 48, 96), nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3)))


class DenseLayer(nn.Module):
    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(before(c_in, 2 * growth), before(2 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet() -> nn.Module:
    """Every layer reads all the earlier ones, side by side; BatchNorm comes before the convolution."""
    return nn.Sequential(
        conv(3, 24, 3, 2), DenseLayer(24, 12), DenseLayer(36, 12), DenseLayer(48, 12),
        before(60, 30), nn.AvgPool2d(2),
        DenseLayer(30, 12), DenseLayer(42, 12), nn.BatchNorm2d(54), nn.ReLU(), head(54))


class CrossStage(nn.Module):
    """CSP: one part of the channels passes the residual blocks, the other goes around them (arXiv 1911.11929).

    parted: the channels are cut in two as they come; otherwise two 1x1 convolutions read all of them.
    """

    def __init__(self, c_in: int, c_out: int, act: str, parted: bool) -> None:
        super().__init__()
        half, self.parted = c_out // 2, parted
        self.down = conv(c_in, c_out, 3, 2, act=act)
        self.left, self.right = (nn.Identity(), nn.Identity()) if parted else \
            (conv(c_out, half, act=act), conv(c_out, half, act=act))
        self.blocks = nn.Sequential(*(Residual(nn.Sequential(conv(half, half, act=act), conv(half, half, 3, act=act)))
                                      for _ in range(2)), conv(half, half, act=act))
        self.join = conv(2 * half, c_out, act=act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        left, right = x.chunk(2, 1) if self.parted else (x, x)
        return self.join(torch.cat([self.blocks(self.left(left)), self.right(right)], 1))


def csp(parted: bool, act: str = "leaky") -> nn.Module:
    return nn.Sequential(conv(3, 16, 3, act=act), CrossStage(16, 32, act, parted), CrossStage(32, 64, act, parted),
                         CrossStage(64, 96, act, parted), head(96))


def darknet() -> nn.Module:
    """YOLOv3's trunk: 1x1 to half the width, 3x3 back, added."""
    def stage(c_in: int, c_out: int) -> nn.Module:
        return nn.Sequential(conv(c_in, c_out, 3, 2, act="leaky"), *(
            Residual(nn.Sequential(conv(c_out, c_out // 2, act="leaky"), conv(c_out // 2, c_out, 3, act="leaky")))
            for _ in range(2)))

    return nn.Sequential(conv(3, 16, 3, act="leaky"), stage(16, 32), stage(32, 64), stage(64, 96), head(96))


def squeezenet() -> nn.Module:
    """Fire: 1x1 to few channels, then 1x1 and 3x3 side by side; the classes are channels of the last convolution."""
    def fire(c_in: int, few: int, many: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(c_in, few, 1), nn.ReLU(),
                             Side(nn.Sequential(nn.Conv2d(few, many, 1), nn.ReLU()),
                                  nn.Sequential(nn.Conv2d(few, many, 3, padding=1), nn.ReLU())))

    return nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), fire(32, 16, 32),
                         fire(64, 16, 32), nn.MaxPool2d(3, 2, ceil_mode=True), fire(64, 24, 48), fire(96, 24, 48),
                         nn.Dropout(0.5), nn.Conv2d(96, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Aggregate(nn.Module):
    """VoVNet: a chain of convolutions, all of whose links are read once, at its end (arXiv 1911.06667)."""

    def __init__(self, c_in: int, inner: int, c_out: int) -> None:
        super().__init__()
        self.chain = nn.ModuleList(conv(c_in if i == 0 else inner, inner, 3) for i in range(3))
        self.join, self.gate = conv(c_in + 3 * inner, c_out), SqueezeExcite(c_out, "hardswish", c_out)
        self.adds = c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        links = [x]
        for layer in self.chain:
            links.append(layer(links[-1]))
        y = self.gate(self.join(torch.cat(links, 1)))
        return x + y if self.adds else y


def vovnet() -> nn.Module:
    return nn.Sequential(conv(3, 32, 3, 2), Aggregate(32, 24, 64), Aggregate(64, 24, 64), nn.MaxPool2d(3, 2, 1),
                         Aggregate(64, 32, 96), head(96))


class DualPath(nn.Module):
    """DPN: part of the block's output is added to one state, the rest laid beside another (arXiv 1707.01629)."""

    def __init__(self, added: int, dense: int, growth: int) -> None:
        super().__init__()
        self.added = added
        self.body = nn.Sequential(before(added + dense, 32), before(32, 32, 3), before(32, added + growth))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.cat([x[:, :self.added] + y[:, :self.added], x[:, self.added:], y[:, self.added:]], 1)


def dpn() -> nn.Module:
    return nn.Sequential(conv(3, 48, 3, 2), DualPath(32, 16, 8), DualPath(32, 24, 8), DualPath(32, 32, 8),
                         before(72, 48, 3, 2), DualPath(32, 16, 8), nn.BatchNorm2d(56), nn.ReLU(), head(56))
