"""The ResNet line: what is added to x differs from one to the next. pixels [n, 3, side, side] -> y [n, 10]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.layers import Gate, Residual, SqueezeExcite, before, conv, head, trunk


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module | None:
    return conv(c_in, c_out, 1, stride, act=None) if (c_in, stride) != (c_out, 1) else None


def resnet(bottleneck: bool, groups: int = 1, wide: int = 1, attention: str | None = None) -> nn.Module:
    """Basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) blocks; groups > 1 in the middle make a ResNeXt, wide > 1 a wide
    ResNet; attention ends each branch: "se", "eca", "cbam", "coordinate" or "einsum"."""

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        middle = wide * c_out // 2
        layers = [conv(c_in, middle), conv(middle, middle, 3, stride, groups), conv(middle, c_out, act=None)] \
            if bottleneck else [conv(c_in, c_out, 3, stride), conv(c_out, c_out, 3, act=None)]
        layers += [ATTENTIONS[attention](c_out)] if attention else []
        return Residual(nn.Sequential(*layers), shortcut(c_in, c_out, stride), nn.ReLU())

    return trunk(block, (32, 64, 96))


def wide_resnet() -> nn.Module:
    """Basic blocks in pre-activation order, four times as wide as their stem (WRN-n-4)."""
    return trunk(PreActivation, (16, 64, 96), nn.Conv2d(3, 16, 3, 2, 1, bias=False),
                 nn.Sequential(nn.BatchNorm2d(96), nn.ReLU(), head(96)))


def resnet_v2() -> nn.Module:
    """BatchNorm and ReLU come before every convolution; the sums are never activated."""
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        return PreActivation(c_in, c_out, stride, c_out // 2)

    return trunk(block, (32, 64, 96), nn.Conv2d(3, 32, 3, 2, 1, bias=False),
                 nn.Sequential(nn.BatchNorm2d(96), nn.ReLU(), head(96)))


class PreActivation(nn.Module):
    """The shortcut of a block that changes the shape starts after its first activation."""

    def __init__(self, c_in: int, c_out: int, stride: int, middle: int | None = None) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU())
        self.short = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if (c_in, stride) != (c_out, 1) else None
        self.branch = nn.Sequential(nn.Conv2d(c_in, middle, 1, bias=False), before(middle, middle, 3, stride),
                                    before(middle, c_out)) if middle else \
            nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), before(c_out, c_out, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        return self.branch(y) + (x if self.short is None else self.short(y))


def resnet_d() -> nn.Module:
    """Three convolutions as stem, and shortcuts that average before they project."""
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        branch = nn.Sequential(conv(c_in, c_out // 2), conv(c_out // 2, c_out // 2, 3, stride),
                               conv(c_out // 2, c_out, act=None))
        short = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity(),
                              conv(c_in, c_out, act=None)) if (c_in, stride) != (c_out, 1) else None
        return Residual(branch, short, nn.ReLU())

    return trunk(block, (32, 64, 96), nn.Sequential(conv(3, 16, 3, 2), conv(16, 16, 3), conv(16, 32, 3)))


# Attention over channels and places


class EfficientAttention(Gate):
    """ECA: a one-dimensional convolution that slides over the channels (arXiv 1910.03151)."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv1d(1, 1, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(1, 2)
        return x * self.branch(pooled).transpose(1, 2).unsqueeze(-1).sigmoid()


class BlockAttention(nn.Module):
    """CBAM: a gate for channels from their mean and maximum, then one for places (arXiv 1807.06521)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
                                    nn.Conv2d(channels // 4, channels, 1))
        self.place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.shared(F.adaptive_avg_pool2d(x, 1)) + self.shared(F.adaptive_max_pool2d(x, 1))).sigmoid()
        return x * self.place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class CoordinateAttention(nn.Module):
    """Rows and columns are pooled, laid end to end, squeezed together and parted again (arXiv 2103.02907)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.squeeze = conv(channels, inner, act="hardswish")
        self.rows, self.columns = nn.Conv2d(inner, channels, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        lines = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        rows, columns = self.squeeze(lines).split([h, w], 2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.transpose(2, 3)).sigmoid()


class EinsumExcite(nn.Module):
    """Squeeze and excitation whose matrices are applied by einsum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(channels // 4, channels))
        self.up = nn.Parameter(torch.empty(channels, channels // 4))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.einsum("nc,dc->nd", x.mean((2, 3)), self.down).relu()
        return torch.einsum("nchw,nc->nchw", x, torch.einsum("nd,cd->nc", inner, self.up).sigmoid())


class GlobalContext(nn.Module):
    """GCNet: one softmax over all places picks the context that is added everywhere (arXiv 1904.11492)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.where = nn.Conv2d(channels, 1, 1)
        self.change = nn.Sequential(nn.Conv2d(channels, channels // 4, 1), nn.LayerNorm([channels // 4, 1, 1]),
                                    nn.ReLU(), nn.Conv2d(channels // 4, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.where(x).flatten(2).softmax(2)
        context = torch.matmul(x.flatten(2), weight.transpose(1, 2)).unsqueeze(-1)
        return x + self.change(context)


class NonLocal(nn.Module):
    """Self-attention between places, its queries, keys and values made by convolutions (arXiv 1711.07971)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels // 2, 1), nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        weight = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        y = v @ weight.transpose(1, 2)
        return x + self.out(y.reshape(y.shape[0], y.shape[1], *x.shape[2:]))


ATTENTIONS = {"se": SqueezeExcite, "eca": EfficientAttention, "cbam": BlockAttention,
              "coordinate": CoordinateAttention, "einsum": EinsumExcite, "context": GlobalContext,
              "nonlocal": NonLocal}


# Several paths inside a block


class SplitAttention(nn.Module):
    """ResNeSt: `radix` grouped convolutions in one, summed with weights that a softmax over them gives."""

    def __init__(self, channels: int, stride: int, radix: int = 2, groups: int = 2) -> None:
        super().__init__()
        self.radix, self.groups, inner = radix, groups, channels // 2
        self.conv = conv(channels, channels * radix, 3, stride, groups * radix)
        self.squeeze = conv(channels, inner, groups=groups)
        self.excite = nn.Conv2d(inner, channels * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        splits = x.reshape(n, self.radix, c // self.radix, h, w)
        logits = self.excite(self.squeeze(splits.sum(1).mean((2, 3), keepdim=True)))
        weight = logits.reshape(n, self.groups, self.radix, -1).transpose(1, 2).softmax(1)
        return (splits * weight.reshape(n, self.radix, -1, 1, 1)).sum(1)


class SelectiveKernel(nn.Module):
    """SK-Net: a plain and a dilated 3x3 convolution, weighed by a softmax between the two."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(conv(channels, channels, 3, stride, 4, dilation=d) for d in (1, 2))
        self.squeeze, self.excite = conv(channels, channels // 2), nn.Conv2d(channels // 2, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        paths = torch.stack([path(x) for path in self.paths], 1)
        weight = self.excite(self.squeeze(paths.sum(1).mean((2, 3), keepdim=True)))
        weight = weight.reshape(weight.shape[0], 2, -1, 1, 1).softmax(1)
        return (paths * weight).sum(1)


class Hierarchy(nn.Module):
    """Res2Net: quarters of the channels, each convolved after the one before was added."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        part = channels // 4
        self.add = stride == 1
        self.convs = nn.ModuleList(conv(part, part, 3, stride) for _ in range(3))
        self.rest = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        *parts, rest = x.chunk(4, 1)
        done: list[Tensor] = []
        for part, layer in zip(parts, self.convs, strict=True):
            done.append(layer(part + done[-1] if done and self.add else part))
        return torch.cat([*done, self.rest(rest)], 1)


MIDDLES = {"resnest": SplitAttention, "sknet": SelectiveKernel, "res2net": Hierarchy}


def multipath(middle: str) -> nn.Module:
    """A bottleneck ResNet with another middle: "resnest", "sknet" or "res2net"."""

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        branch = nn.Sequential(conv(c_in, c_out // 2), MIDDLES[middle](c_out // 2, stride),
                               conv(c_out // 2, c_out, act=None))
        return Residual(branch, shortcut(c_in, c_out, stride), nn.ReLU())

    return trunk(block, (32, 64, 96))


def regnet(squeeze: bool) -> nn.Module:
    """X: bottlenecks as wide inside as outside, in groups of 16; Y: with squeeze and excitation besides."""

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        layers = [conv(c_in, c_out), conv(c_out, c_out, 3, stride, c_out // 16)]
        layers += [SqueezeExcite(c_out, inner=c_in // 4)] if squeeze else []
        return Residual(nn.Sequential(*layers, conv(c_out, c_out, act=None)), shortcut(c_in, c_out, stride), nn.ReLU())

    return trunk(block, (32, 48, 96), conv(3, 32, 3, 2))


# Without BatchNorm


class StandardConv(nn.Conv2d):
    """The kernel of each output channel is brought to mean 0 and variance 1 / fan-in; gain where it is learned."""

    def __init__(self, *args: int, gain: bool, **options: int) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance * self.weight[0].numel() + 1e-6)
        return self._conv_forward(x, weight if self.gain is None else weight * self.gain, self.bias)


def nfnet() -> nn.Module:
    """Standardised weights, activations scaled to variance 1, and residuals with fixed factors (arXiv 2102.06171)."""
    return trunk(NormFree, (32, 64, 96), StandardConv(3, 32, 3, 2, 1, gain=True))


class NormFree(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.middle, self.beta, self.alpha = c_out // 2, 1.1, 0.2
        self.enter = StandardConv(c_in, self.middle, 1, gain=True)
        self.inner = StandardConv(self.middle, self.middle, 3, stride, 1, groups=self.middle // 16, gain=True)
        self.leave = StandardConv(self.middle, c_out, 1, gain=True)
        self.gate, self.skip = SqueezeExcite(c_out), nn.Parameter(torch.zeros(()))
        self.short = nn.Sequential(nn.AvgPool2d(2) if stride == 2 else nn.Identity(),
                                   StandardConv(c_in, c_out, 1, gain=True)) if (c_in, stride) != (c_out, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        def active(y: Tensor) -> Tensor:
            return F.gelu(y) * 1.7015

        y = active(x) / self.beta
        short = x if self.short is None else self.short(y)
        y = self.leave(active(self.inner(active(self.enter(y)))))
        return short + 2 * self.gate(y) * self.skip * self.alpha


def bit() -> nn.Module:
    """Pre-activation bottlenecks with GroupNorm and standardised weights (arXiv 1912.11370)."""

    def step(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.GroupNorm(8, c_in), nn.ReLU(),
                             StandardConv(c_in, c_out, kernel, stride, kernel // 2, gain=False, bias=False))

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        branch = nn.Sequential(step(c_in, c_out // 2, 1), step(c_out // 2, c_out // 2, 3, stride),
                               step(c_out // 2, c_out, 1))
        return Residual(branch, step(c_in, c_out, 1, stride) if (c_in, stride) != (c_out, 1) else None)

    return trunk(block, (32, 64, 96), StandardConv(3, 32, 3, 2, 1, gain=False, bias=False),
                 nn.Sequential(nn.GroupNorm(8, 96), nn.ReLU(), head(96)))


class RepBlock(nn.Module):
    """RepVGG as it is trained: 3x3, 1x1 and the input itself, each through a BatchNorm, added (arXiv 2101.03697)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList([conv(c_in, c_out, 3, stride, act=None), conv(c_in, c_out, 1, stride, act=None)])
        if (c_in, stride) == (c_out, 1):
            self.paths.append(nn.BatchNorm2d(c_in))

    def forward(self, x: Tensor) -> Tensor:
        return sum(path(x) for path in self.paths).relu()


def repvgg(fused: bool) -> nn.Module:
    """Fused: each block is the one 3x3 convolution that its paths add up to."""
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        if fused:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.ReLU())
        return RepBlock(c_in, c_out, stride)

    return trunk(block, (32, 48, 96), block(3, 32, 2))


class Tree(nn.Module):
    """DLA: two subtrees in a row and a node that reads both and what comes from above (arXiv 1707.06484)."""

    def __init__(self, depth: int, c_in: int, c_out: int, stride: int, above: int = 0) -> None:
        super().__init__()
        self.leaf, self.down = depth == 1, nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.level = above == 0 and stride > 1
        above += c_in if self.level else 0
        if self.leaf:
            self.project = conv(c_in, c_out, act=None) if c_in != c_out else nn.Identity()
            self.first, self.second = self.block(c_in, c_out, stride), self.block(c_out, c_out, 1)
            self.root = conv(2 * c_out + above, c_out)
        else:
            self.first = Tree(depth - 1, c_in, c_out, stride)
            self.second = Tree(depth - 1, c_out, c_out, 1, above + c_out)

    @staticmethod
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        return nn.Sequential(conv(c_in, c_out, 3, stride), conv(c_out, c_out, 3, act=None))

    def forward(self, x: Tensor, above: tuple[Tensor, ...] = ()) -> Tensor:
        bottom = self.down(x)
        above = (*above, bottom) if self.level else above
        if not self.leaf:
            first = self.first(x)
            return self.second(first, (*above, first))
        first = (self.first(x) + self.project(bottom)).relu()
        second = (self.second(first) + first).relu()
        return self.root(torch.cat([second, first, *above], 1))


def dla() -> nn.Module:
    return nn.Sequential(conv(3, 16, 7), conv(16, 32, 3, 2), Tree(1, 32, 48, 2), Tree(2, 48, 64, 2), Tree(1, 64, 96, 2),
                         head(96))
