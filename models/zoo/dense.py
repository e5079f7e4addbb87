"""Networks whose output is an image: segmentation, super-resolution, style. pixels [n, 3, h, w] -> y [n, c, h', w']."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.layers import Residual, conv, up

LABELS = 5


def double(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(conv(c_in, c_out, 3), conv(c_out, c_out, 3))


class UNet(nn.Module):
    """Down and up again; each step up also reads what the step down of that size gave.

    up: "transposed", "bilinear", or "attention", where a gate from below chooses the places of the skip
    (arXiv 1804.03999).
    """

    def __init__(self, up: str) -> None:
        super().__init__()
        self.down = nn.ModuleList([double(3, 16), double(16, 32), double(32, 64)])
        self.grow = nn.ModuleList(self._grow(c, up) for c in (64, 32))
        self.gates = nn.ModuleList(PlaceGate(c // 2) for c in (64, 32)) if up == "attention" else None
        self.join = nn.ModuleList([double(64, 32), double(32, 16)])
        self.last = nn.Conv2d(16, LABELS, 1)

    @staticmethod
    def _grow(channels: int, kind: str) -> nn.Module:
        if kind == "bilinear":
            return nn.Sequential(up(2, "bilinear"), nn.Conv2d(channels, channels // 2, 1))
        return nn.ConvTranspose2d(channels, channels // 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for i, skip in enumerate(reversed(skips[:-1])):
            x = self.grow[i](x)
            skip = skip if self.gates is None else self.gates[i](skip, x)
            x = self.join[i](torch.cat([skip, x], 1))
        return self.last(x)


class PlaceGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.skip, self.below = conv(channels, 12, act=None), conv(channels, 12, act=None)
        self.choose = nn.Conv2d(12, 1, 1)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        return skip * self.choose((self.skip(skip) + self.below(below)).relu()).sigmoid()


class NestedUNet(nn.Module):
    """U-Net++: every skip is itself a row of convolutions, each reading all earlier ones of its row and one from below
    (arXiv 1807.10165)."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 40)) -> None:
        super().__init__()
        self.first = nn.ModuleList(double(c_in, c) for c_in, c in zip((3, *widths), widths, strict=False))
        self.rows = nn.ModuleList(
            nn.ModuleList(double((j + 1) * c + widths[i + 1], c) for j in range(len(widths) - 1 - i))
            for i, c in enumerate(widths[:-1]))
        self.last = nn.Conv2d(widths[0], LABELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        column = [self.first[0](x)]
        for layer in self.first[1:]:
            column.append(layer(F.max_pool2d(column[-1], 2)))
        rows = [[x] for x in column]
        for j in range(len(column) - 1):
            for i in range(len(column) - 1 - j):
                below = F.interpolate(rows[i + 1][j], scale_factor=2.0, mode="nearest")
                rows[i].append(self.rows[i][j](torch.cat([*rows[i][:j + 1], below], 1)))
        return self.last(rows[0][-1])


class Pyramid(nn.Module):
    """A trunk that keeps 1/4 of the size by dilation, several views of its output side by side, and the labels.

    DeepLab (arXiv 1706.05587): the views are convolutions of different dilation and the mean of the image. PSPNet
    (arXiv 1612.01105): the output itself and its means over grids of 1, 2, and 4 cells.
    """

    def __init__(self, views: str) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv(3, 24, 3, 2), conv(24, 32, 3, 2),
                                   Residual(nn.Sequential(conv(32, 32, 3, dilation=2), conv(32, 32, 3, dilation=4))),
                                   conv(32, 48, 3, dilation=2))
        if views == "dilated":
            self.views = nn.ModuleList([conv(48, 16), *(conv(48, 16, 3, dilation=d) for d in (2, 4, 6)),
                                        nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(48, 16))])
        else:
            self.views = nn.ModuleList([nn.Identity(), *(nn.Sequential(nn.AdaptiveAvgPool2d(n), conv(48, 12))
                                                         for n in (1, 2, 4))])
        self.last = nn.Sequential(conv(80 if views == "dilated" else 84, 32, 3), nn.Dropout(0.1),
                                  nn.Conv2d(32, LABELS, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.trunk(pixels)
        views = [F.interpolate(view(x), size=x.shape[2:], mode="bilinear", align_corners=False) for view in self.views]
        y = self.last(torch.cat(views, 1))
        return F.interpolate(y, size=pixels.shape[2:], mode="bilinear", align_corners=False)


class SegNet(nn.Module):
    """A chain down and a chain up without skips."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 24, 3), nn.MaxPool2d(2), conv(24, 48, 3), nn.MaxPool2d(2), conv(48, 64, 3),
                                  up(), conv(64, 32, 3), up(), conv(32, 16, 3), nn.Conv2d(16, LABELS, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class HRNet(nn.Module):
    """Branches of three sizes run side by side and are summed into each other again and again (arXiv 1908.07919)."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 40)) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 24, 3, 2), conv(24, widths[0], 3))
        self.start = nn.ModuleList(conv(a, b, 3, 2) for a, b in pairwise(widths))
        self.stages = nn.ModuleList(Exchange(widths[:n]) for n in (2, 3, 3))
        self.last = nn.Sequential(conv(sum(widths), 48), nn.Conv2d(48, LABELS, 1))

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.stem(x)]
        for i, stage in enumerate(self.stages):
            if i < len(self.start):
                branches.append(self.start[i](branches[-1]))
            branches = stage(branches)
        size = branches[0].shape[2:]
        return self.last(torch.cat([branches[0], *(F.interpolate(b, size=size, mode="bilinear", align_corners=False)
                                                   for b in branches[1:])], 1))


class Exchange(nn.Module):
    """A residual block on every branch, then each branch is the sum of all, resized."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Residual(nn.Sequential(conv(c, c, 3), conv(c, c, 3, act=None)), None, nn.ReLU()) for c in widths)
        self.paths = nn.ModuleList(nn.ModuleList(self._path(widths, i, j) for j in range(len(widths)))
                                   for i in range(len(widths)))

    @staticmethod
    def _path(widths: tuple[int, ...], to: int, source: int) -> nn.Module:
        if source == to:
            return nn.Identity()
        if source > to:
            return nn.Sequential(conv(widths[source], widths[to], act=None), up(2 ** (source - to)))
        steps = [conv(widths[source], widths[source], 3, 2) for _ in range(to - source - 1)]
        return nn.Sequential(*steps, conv(widths[source], widths[to], 3, 2, act=None))

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        branches = [block(x) for block, x in zip(self.blocks, branches, strict=True)]
        return [sum(path(x) for path, x in zip(paths, branches, strict=True)).relu() for paths in self.paths]


class Hourglass(nn.Module):
    """Residual blocks down and up with a skip at each size; the second glass reads the heat maps of the first
    (arXiv 1603.06937)."""

    def __init__(self, channels: int = 40, depth: int = 2) -> None:
        super().__init__()
        self.stem = conv(3, channels, 3, 2)
        self.glasses = nn.ModuleList(Glass(channels, depth) for _ in range(2))
        self.maps = nn.ModuleList(nn.Conv2d(channels, LABELS, 1) for _ in range(2))
        self.back = nn.Conv2d(LABELS, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.glasses[0](x)
        first = self.maps[0](y)
        return first, self.maps[1](self.glasses[1](x + y + self.back(first)))


class Glass(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        def block() -> nn.Module:
            return Residual(nn.Sequential(conv(channels, channels // 2), conv(channels // 2, channels // 2, 3),
                                          conv(channels // 2, channels, act=None)))

        inner = Glass(channels, depth - 1) if depth > 1 else block()
        self.skip, self.way = block(), nn.Sequential(nn.MaxPool2d(2), block(), inner, block(), up())

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.way(x)


def espcn(scale: int = 3) -> nn.Module:
    """The last convolution makes scale^2 values for each pixel, which are moved into a larger image."""
    return nn.Sequential(nn.Conv2d(3, 48, 5, padding=2), nn.Tanh(), nn.Conv2d(48, 32, 3, padding=1), nn.Tanh(),
                         nn.Conv2d(32, 3 * scale ** 2, 3, padding=1), nn.PixelShuffle(scale))


class EDSR(nn.Module):
    """Residual blocks without norms, scaled by a constant, and a pixel shuffle between two convolutions."""

    def __init__(self, channels: int = 48) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Scaled(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                                                           nn.Conv2d(channels, channels, 3, padding=1)))
                                      for _ in range(3)), nn.Conv2d(channels, channels, 3, padding=1))
        self.grow = nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2),
                                  nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.grow(x + self.blocks(x))


class Scaled(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.branch(x)


def style() -> nn.Module:
    """Instance norms, reflected borders, nearest upsampling (arXiv 1603.08155)."""
    def layer(c_in: int, c_out: int, kernel: int, stride: int = 1, act: bool = True) -> nn.Module:
        return nn.Sequential(nn.ReflectionPad2d(kernel // 2), nn.Conv2d(c_in, c_out, kernel, stride),
                             nn.InstanceNorm2d(c_out, affine=True), *([nn.ReLU()] if act else []))

    blocks = [Residual(nn.Sequential(layer(48, 48, 3), layer(48, 48, 3, act=False))) for _ in range(2)]
    return nn.Sequential(layer(3, 16, 9), layer(16, 32, 3, 2), layer(32, 48, 3, 2), *blocks, up(), layer(48, 32, 3),
                         up(), layer(32, 16, 3), nn.ReflectionPad2d(4), nn.Conv2d(16, 3, 9))


class Generator(nn.Module):
    """DCGAN: a vector becomes an image by transposed convolutions. noise [n, 40] -> y [n, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(40, 64 * 16), nn.BatchNorm1d(64 * 16), nn.ReLU())
        self.grow = nn.Sequential(*self._step(64, 48), *self._step(48, 24),
                                  nn.ConvTranspose2d(24, 3, 4, 2, 1), nn.Tanh())

    @staticmethod
    def _step(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    def forward(self, noise: Tensor) -> Tensor:
        return self.grow(self.first(noise).reshape(-1, 64, 4, 4))


class Autoencoder(nn.Module):
    """A variational one at its mean: flattened to a code and grown back."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(conv(3, 24, 3, 2), conv(24, 48, 3, 2), nn.Flatten(), nn.Linear(48 * 64, 32))
        self.widen = nn.Linear(16, 48 * 64)
        self.decode = nn.Sequential(nn.ConvTranspose2d(48, 24, 3, 2, 1, 1), nn.ReLU(),
                                    nn.ConvTranspose2d(24, 3, 3, 2, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.encode(x).chunk(2, 1)
        return self.decode(self.widen(mean).relu().reshape(-1, 48, 8, 8)), spread
