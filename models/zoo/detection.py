"""Detectors: a trunk, a neck that mixes sizes, heads with several outputs. pixels [n, 3, h, w] -> boxes, scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.branching import CrossStage
from models.zoo.layers import conv, up

LABELS, ANCHORS = 6, 3


class Trunk(nn.Module):
    """Features of 1/4, 1/8 and 1/16 of the size."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem, pairs = conv(3, 16, 3, 2), zip((16, *widths), widths, strict=False)
        self.stages = nn.ModuleList(nn.Sequential(conv(a, b, 3, 2), conv(b, b, 3)) for a, b in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class RetinaNet(nn.Module):
    """A feature pyramid, and two heads whose weights all sizes share.
    -> boxes [n, places, 4], scores [n, places, labels]."""

    def __init__(self, widths: tuple[int, int, int] = (24, 40, 64), channels: int = 32) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.side = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.boxes, self.scores = self._head(channels, 4), self._head(channels, LABELS)

    @staticmethod
    def _head(channels: int, size: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                             nn.Conv2d(channels, ANCHORS * size, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = [side(x) for side, x in zip(self.side, self.trunk(x), strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[2:], mode="nearest")
        levels = [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]
        return rows([self.boxes(x) for x in levels], 4), rows([self.scores(x) for x in levels], LABELS).sigmoid()


def rows(maps: list[Tensor], size: int) -> Tensor:
    """Maps [n, anchors x size, h, w] -> [n, all places and anchors, size]."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, size) for x in maps], 1)


class SSD(nn.Module):
    """Heads of their own for every size, no neck, and a scaled norm over channels before the first.
    -> boxes [n, places, 4], scores [n, places, labels]."""

    def __init__(self, widths: tuple[int, int, int] = (24, 40, 64)) -> None:
        super().__init__()
        self.trunk, self.scale = Trunk(widths), nn.Parameter(torch.ones(1, widths[0], 1, 1))
        self.boxes = nn.ModuleList(nn.Conv2d(c, ANCHORS * 4, 3, padding=1) for c in widths)
        self.scores = nn.ModuleList(nn.Conv2d(c, ANCHORS * LABELS, 3, padding=1) for c in widths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, *others = self.trunk(x)
        levels = [self.scale * F.normalize(first, dim=1), *others]
        return (rows([head(x) for head, x in zip(self.boxes, levels, strict=True)], 4),
                rows([head(x) for head, x in zip(self.scores, levels, strict=True)], LABELS).softmax(-1))


class Focus(nn.Module):
    """Every second pixel, from four starts, as channels; then a convolution."""

    def __init__(self, c_out: int) -> None:
        super().__init__()
        self.conv = conv(12, c_out, 3, act="silu")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1))


class PyramidPool(nn.Module):
    """SPPF: a pool applied three times, all of its stages side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.enter, self.leave, self.pool = conv(channels, half), conv(4 * half, channels), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.enter(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.leave(torch.cat(found, 1))


class YOLO(nn.Module):
    """Focus, CSP stages, a path down and one up again (PANet), and three heads whose boxes are decoded on their grids.
    -> y [n, places, 5 + labels], of coordinates, objectness and labels."""

    def __init__(self, widths: tuple[int, int, int] = (24, 40, 64)) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = Focus(16)
        self.trunk = nn.ModuleList(CrossStage(i, o, "silu", False) for i, o in ((16, a), (a, b), (b, c)))
        self.pool, self.shrink = PyramidPool(c), nn.ModuleList([conv(c, b, act="silu"), conv(b, a, act="silu")])
        self.down = nn.ModuleList([conv(2 * b, b, 3, act="silu"), conv(2 * a, a, 3, act="silu")])
        self.stride = nn.ModuleList([conv(a, a, 3, 2, act="silu"), conv(b, b, 3, 2, act="silu")])
        self.up = nn.ModuleList([conv(2 * a, b, 3, act="silu"), conv(2 * b, c, 3, act="silu")])
        self.heads = nn.ModuleList(nn.Conv2d(w, ANCHORS * (5 + LABELS), 1) for w in widths)
        self.grow = up()

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.stem(x), []
        for stage in self.trunk:
            x = stage(x)
            found.append(x)
        fine, middle, coarse = found[0], found[1], self.pool(found[2])
        top = self.shrink[0](coarse)
        middle = self.down[0](torch.cat([self.grow(top), middle], 1))
        side = self.shrink[1](middle)
        fine = self.down[1](torch.cat([self.grow(side), fine], 1))
        middle = self.up[0](torch.cat([self.stride[0](fine), side], 1))
        coarse = self.up[1](torch.cat([self.stride[1](middle), top], 1))
        return torch.cat([self.decode(head(x), 4.0 * 2 ** i)
                          for i, (head, x) in enumerate(zip(self.heads, (fine, middle, coarse), strict=True))], 1)

    @staticmethod
    def decode(x: Tensor, stride: float) -> Tensor:
        n, _, h, w = x.shape
        y = x.reshape(n, ANCHORS, 5 + LABELS, h, w).permute(0, 1, 3, 4, 2).sigmoid()
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack([columns, rows], -1).to(y.dtype)
        centre, size, rest = y.split([2, 2, 1 + LABELS], -1)
        return torch.cat([(2 * centre - 0.5 + grid) * stride, (2 * size) ** 2 * stride, rest], -1).reshape(
            n, -1, 5 + LABELS)


class WeightedFusion(nn.Module):
    """BiFPN: levels are added with learned, normalised weights, down and up (arXiv 1911.09070).
    -> boxes [n, places, 4], scores [n, places, labels]."""

    def __init__(self, widths: tuple[int, int, int] = (24, 40, 64), channels: int = 32) -> None:
        super().__init__()
        self.trunk, self.side = Trunk(widths), nn.ModuleList(conv(c, channels, act=None) for c in widths)
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(n)) for n in (2, 2, 3, 2))
        self.mix = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                                               conv(channels, channels, act=None)) for _ in range(4))
        self.boxes, self.scores = nn.Conv2d(channels, ANCHORS * 4, 3, padding=1), \
            nn.Conv2d(channels, ANCHORS * LABELS, 3, padding=1)

    def fuse(self, i: int, *levels: Tensor) -> Tensor:
        weight = self.weights[i].relu()
        weight = weight / (weight.sum() + 1e-4)
        return self.mix[i](sum(weight[j] * x for j, x in enumerate(levels)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine, middle, coarse = (side(x) for side, x in zip(self.side, self.trunk(x), strict=True))
        between = self.fuse(0, middle, F.interpolate(coarse, scale_factor=2.0))
        fine = self.fuse(1, fine, F.interpolate(between, scale_factor=2.0))
        middle = self.fuse(2, middle, between, F.max_pool2d(fine, 2))
        coarse = self.fuse(3, coarse, F.max_pool2d(middle, 2))
        levels = (fine, middle, coarse)
        return rows([self.boxes(x) for x in levels], 4), rows([self.scores(x) for x in levels], LABELS).sigmoid()


class CenterNet(nn.Module):
    """Deconvolutions back to 1/4, then three heads: where centres are, how large boxes are, how far centres are off the
    grid. -> centres [n, labels, h, w], sizes [n, 2, h, w], offsets [n, 2, h, w]."""

    def __init__(self, widths: tuple[int, int, int] = (24, 40, 64)) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.grow = nn.Sequential(*(nn.Sequential(nn.ConvTranspose2d(c, c // 2, 4, 2, 1, bias=False),
                                                  nn.BatchNorm2d(c // 2), nn.ReLU()) for c in (64, 32)))
        self.heads = nn.ModuleList(nn.Sequential(conv(16, 24, 3), nn.Conv2d(24, c, 1)) for c in (LABELS, 2, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.grow(self.trunk(x)[-1])
        centres, sizes, offsets = (head(y) for head in self.heads)
        return centres.sigmoid(), sizes, offsets
