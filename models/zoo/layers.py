"""Pieces that many convolutional families share: Conv-BatchNorm-activation, heads, residuals, gates, shuffles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU, "gelu": nn.GELU,
               "leaky": lambda: nn.LeakyReLU(0.1), "prelu": nn.PReLU, "elu": nn.ELU}
CLASSES = 10


def same(kernel: int | tuple[int, int], dilation: int = 1) -> int | tuple[int, ...]:
    """The padding that keeps the size of an image at stride 1."""
    return dilation * (kernel // 2) if isinstance(kernel, int) else tuple(dilation * (k // 2) for k in kernel)


def conv(c_in: int, c_out: int, kernel: int | tuple[int, int] = 1, stride: int = 1, groups: int = 1,
         act: str | None = "relu", dilation: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, activation."""
    first = nn.Conv2d(c_in, c_out, kernel, stride, same(kernel, dilation), dilation, groups, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(c_out), *([ACTIVATIONS[act]()] if act else []))


def before(c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """BatchNorm, activation, convolution: the order of pre-activation networks."""
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(),
                         nn.Conv2d(c_in, c_out, kernel, stride, same(kernel), bias=False))


def head(c_in: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, CLASSES))


def trunk(block: Callable[[int, int, int], nn.Module], widths: Sequence[int], stem: nn.Module | None = None,
          last: nn.Module | None = None) -> nn.Sequential:
    """Stem, two blocks of each width but the first (the first of them with stride 2 from the second width on), head.

    block(c_in, c_out, stride) makes one. widths: of the stem and of the stages.
    """
    stages = []
    for i, (c_in, c_out) in enumerate(pairwise(widths)):
        stages += [block(c_in, c_out, 2 if i else 1), block(c_out, c_out, 1)]
    stem = stem or nn.Sequential(conv(3, widths[0], 3, 2), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(stem, *stages, last or head(widths[-1]))


class Residual(nn.Module):
    """x + f(x), or short(x) + f(x) where the shape changes."""

    def __init__(self, branch: nn.Module, short: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.short, self.act = branch, short or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.short(x))


class Side(nn.Module):
    """Branches read the same tensor; their outputs stand side by side in the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Gate(nn.Module):
    """x times what a branch makes of it."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x * self.branch(x)


class SqueezeExcite(Gate):
    def __init__(self, channels: int, act: str = "relu", inner: int | None = None) -> None:
        gate, inner = nn.Hardsigmoid() if act == "hardswish" else nn.Sigmoid(), inner or channels // 4
        super().__init__(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.ReLU(),
                                       nn.Conv2d(inner, channels, 1), gate))


class Shuffle(nn.Module):
    """Channels [groups x c] become [c x groups]."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def up(scale: int = 2, mode: str = "nearest") -> nn.Upsample:
    return nn.Upsample(scale_factor=scale, mode=mode, align_corners=None if mode == "nearest" else False)
