"""Networks for phones: depthwise and grouped convolutions, shuffles, ghosts. pixels [n, 3, side, side] -> y [n, 10]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.zoo.layers import Residual, Shuffle, SqueezeExcite, conv, head, trunk


def mobilenet_v1() -> nn.Module:
    """Depthwise and pointwise convolutions in turns, no residuals."""
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        return nn.Sequential(conv(c_in, c_in, 3, stride, c_in), conv(c_in, c_out))

    return trunk(block, (16, 32, 64, 128), conv(3, 16, 3, 2))


def mobilenet(squeeze: bool, act: str = "relu6") -> nn.Module:
    """Inverted residuals with depthwise convolutions; with squeeze and excitation: MobileNetV3 or EfficientNet."""

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        return inverted(c_in, c_out, stride, act=act, squeeze=squeeze)

    return nn.Sequential(conv(3, 16, 3, 2, act=act), block(16, 24, 2), block(24, 24, 1), block(24, 40, 2),
                         block(40, 40, 1), conv(40, 96, act=act), head(96))


def inverted(c_in: int, c_out: int, stride: int, *, kernel: int = 3, expansion: int = 4, act: str = "relu6",
             squeeze: bool = False, fused: bool = False) -> nn.Module:
    """Widen, convolve by depth, narrow; fused: the first two are one dense convolution."""
    wide = c_in * expansion
    layers = [conv(c_in, wide, kernel, stride, act=act)] if fused else \
        [conv(c_in, wide, act=act), conv(wide, wide, kernel, stride, groups=wide, act=act)]
    layers += [SqueezeExcite(wide, act)] if squeeze else []
    branch = nn.Sequential(*layers, conv(wide, c_out, act=None))
    return Residual(branch) if (c_in, stride) == (c_out, 1) else branch


def mnasnet() -> nn.Module:
    """A separable stem, kernels of 3 and 5, squeeze and excitation in some stages only."""
    return nn.Sequential(
        conv(3, 16, 3, 2), conv(16, 16, 3, groups=16), conv(16, 8, act=None), inverted(8, 24, 2, act="relu"),
        inverted(24, 24, 1, act="relu"), inverted(24, 40, 2, kernel=5, expansion=3, act="relu", squeeze=True),
        inverted(40, 40, 1, kernel=5, expansion=3, act="relu", squeeze=True), conv(40, 96), head(96))


def efficientnet_v2() -> nn.Module:
    """Early stages fused, late ones with squeeze and excitation."""
    return nn.Sequential(
        conv(3, 16, 3, 2, act="silu"), inverted(16, 16, 1, expansion=1, act="silu", fused=True),
        inverted(16, 32, 2, act="silu", fused=True), inverted(32, 32, 1, act="silu", fused=True),
        inverted(32, 48, 2, act="silu", squeeze=True), inverted(48, 48, 1, act="silu", squeeze=True),
        conv(48, 96, act="silu"), head(96))


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
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.split else (x, x)
        return self.shuffle(torch.cat([self.side(left), self.main(right)], 1))


def shufflenet_v2() -> nn.Module:
    return nn.Sequential(conv(3, 24, 3, 2), ShuffleBlock(24, 48, 2), ShuffleBlock(48, 48, 1), ShuffleBlock(48, 96, 2),
                         ShuffleBlock(96, 96, 1), conv(96, 128), head(128))


class GroupedBlock(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; added to x, or beside its average where the stride is 2."""

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        self.beside = stride == 2
        made, middle = c_out - c_in if self.beside else c_out, c_out // 4
        self.branch = nn.Sequential(conv(c_in, middle, groups=groups), Shuffle(groups),
                                    conv(middle, middle, 3, stride, middle, act=None),
                                    conv(middle, made, groups=groups, act=None))
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return (torch.cat([self.pool(x), y], 1) if self.beside else x + y).relu()


def shufflenet_v1() -> nn.Module:
    return nn.Sequential(conv(3, 24, 3, 2), GroupedBlock(24, 96, 2), GroupedBlock(96, 96, 1), GroupedBlock(96, 192, 2),
                         GroupedBlock(192, 192, 1), head(192))


class Ghost(nn.Module):
    """Half of the channels by a convolution, the others from each of those by a depthwise one (arXiv 1911.11907)."""

    def __init__(self, c_in: int, c_out: int, act: str | None = "relu") -> None:
        super().__init__()
        self.primary, self.cheap = conv(c_in, c_out // 2, act=act), conv(c_out // 2, c_out // 2, 3, 1, c_out // 2, act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)


def ghostnet() -> nn.Module:
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        wide = 3 * c_in
        down = [conv(wide, wide, 3, 2, wide, act=None)] if stride == 2 else []
        branch = nn.Sequential(Ghost(c_in, wide), *down, SqueezeExcite(wide, "hardswish"), Ghost(wide, c_out, None))
        short = nn.Sequential(conv(c_in, c_in, 3, stride, c_in, act=None), conv(c_in, c_out, act=None))
        return Residual(branch, short if (c_in, stride) != (c_out, 1) else None)

    return trunk(block, (16, 24, 40, 80), conv(3, 16, 3, 2))


class MixedDepthwise(nn.Module):
    """MixNet: the channels are parted, and each part is convolved by depth with a kernel of its own."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        part = channels // 2
        self.convs = nn.ModuleList(conv(part, part, k, stride, part, act="silu") for k in (3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(part) for layer, part in zip(self.convs, x.chunk(2, 1), strict=True)], 1)


def mixnet() -> nn.Module:
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        wide = 4 * c_in
        branch = nn.Sequential(conv(c_in, wide, act="silu"), MixedDepthwise(wide, stride), SqueezeExcite(wide, "silu"),
                               conv(wide, c_out, act=None))
        return Residual(branch) if (c_in, stride) == (c_out, 1) else branch

    return trunk(block, (16, 24, 40), conv(3, 16, 3, 2, act="silu"))


def multiplier() -> nn.Module:
    """Grouped convolutions that make several channels of each one: a depthwise multiplier of 2, groups of 4 into 6."""
    return nn.Sequential(conv(3, 24, 3, 2), conv(24, 48, 3, 1, 24), conv(48, 32), conv(32, 48, 3, 2, 8), conv(48, 64),
                         head(64))
