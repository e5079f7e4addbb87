"""Recurrent and one-dimensional networks: text in, numbers over time in, or lines of text as images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import VOCABULARY
from models.zoo.layers import CLASSES, conv


class Language(nn.Module):
    """Embedding, recurrent layers, next token. input_ids [n, t] -> y [n, t, vocabulary].

    cell: "GRU", "LSTM" or "RNN". tied: the last matrix is the embedding.
    """

    def __init__(self, cell: str, tied: bool = False, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.cells = getattr(nn, cell)(width, width, layers, batch_first=True)
        self.middle, self.last = nn.Linear(width, width), nn.Linear(width, VOCABULARY)
        if tied:
            self.last.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.middle(self.cells(self.embed(ids))[0]).tanh())


class Tagger(nn.Module):
    """A bidirectional LSTM or GRU and a label for every token. input_ids [n, t] -> y [n, t, labels]."""

    def __init__(self, cell: str, both: bool, layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 40)
        self.cells = getattr(nn, cell)(40, 32, layers, batch_first=True, bidirectional=both)
        self.hidden, self.last = nn.Linear(64 if both else 32, 48), nn.Linear(48, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.hidden(self.cells(self.embed(ids))[0]).relu())


class CRNN(nn.Module):
    """Convolutions turn a line of text into columns, a bidirectional LSTM reads them (arXiv 1507.05717).
    pixels [n, 3, 32, w] -> y [n, w / 4, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv(3, 16, 3), nn.MaxPool2d(2), conv(16, 32, 3), nn.MaxPool2d(2), conv(32, 48, 3),
                                   nn.MaxPool2d((2, 1)), conv(48, 48, 3), nn.MaxPool2d((4, 1)))
        self.cells = nn.LSTM(48, 32, 2, bidirectional=True, batch_first=True)
        self.last = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(self.convs(x).squeeze(2).transpose(1, 2))[0]).log_softmax(-1)


class Attending(nn.Module):
    """A GRU reads, another writes, and each step of the writer attends to what was read (arXiv 1409.0473).
    input_ids [n, t] -> y [n, t, vocabulary]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.reader = nn.Embedding(VOCABULARY, 40), nn.GRU(40, 32, batch_first=True)
        self.writer = nn.GRU(40, 32, batch_first=True)
        self.key, self.query, self.score = nn.Linear(32, 24), nn.Linear(32, 24), nn.Linear(24, 1)
        self.mix, self.last = nn.Linear(64, 40), nn.Linear(40, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        read, written = self.reader(x)[0], self.writer(x.tanh())[0]
        weight = self.score((self.key(read).unsqueeze(1) + self.query(written).unsqueeze(2)).tanh()).squeeze(-1)
        return self.last(self.mix(torch.cat([written, weight.softmax(-1) @ read], -1)).tanh())


class CausalBlock(nn.Module):
    """Two dilated convolutions that see only the past, added to the input."""

    def __init__(self, c_in: int, c_out: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.first = nn.Conv1d(c_in, c_out, 3, dilation=dilation)
        self.second = nn.Conv1d(c_out, c_out, 3, dilation=dilation)
        self.short = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.pad(x, (self.past, 0))).relu()
        return (self.short(x) + self.second(F.pad(y, (self.past, 0))).relu()).relu()


def tcn() -> nn.Module:
    """signal [n, 8, t] -> y [n, classes, t] (arXiv 1803.01271)."""
    return nn.Sequential(CausalBlock(8, 32, 1), CausalBlock(32, 48, 2), CausalBlock(48, 48, 4),
                         nn.Conv1d(48, CLASSES, 1))


class WaveNet(nn.Module):
    """tanh times sigmoid of dilated causal convolutions; every layer also writes to a sum that the end reads
    (arXiv 1609.03499). signal [n, 8, t] -> y [n, classes, t].

    fused: value and gate are the halves of one convolution.
    """

    def __init__(self, fused: bool, channels: int = 32, skip: int = 40) -> None:
        super().__init__()
        self.enter, self.dilations = nn.Conv1d(8, channels, 1), (1, 2, 4)
        self.made = nn.ModuleList(self._gates(channels, d, fused) for d in self.dilations)
        self.back = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in self.dilations)
        self.skip = nn.ModuleList(nn.Conv1d(channels, skip, 1) for _ in self.dilations)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, 32, 1), nn.ReLU(), nn.Conv1d(32, CLASSES, 1))

    @staticmethod
    def _gates(channels: int, dilation: int, fused: bool) -> nn.Module:
        if fused:
            return nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        return nn.ModuleList(nn.Conv1d(channels, channels, 2, dilation=dilation) for _ in range(2))

    def forward(self, signal: Tensor) -> Tensor:
        x, total = self.enter(signal), 0
        for made, back, skip, dilation in zip(self.made, self.back, self.skip, self.dilations, strict=True):
            past = F.pad(x, (dilation, 0))
            value, gate = (layer(past) for layer in made) if isinstance(made, nn.ModuleList) else made(past).chunk(2, 1)
            y = value.tanh() * gate.sigmoid()
            total, x = total + skip(y), x + back(y)
        return self.last(total)


def keyword_spotter() -> nn.Module:
    """Depthwise separable convolutions over time. signal [n, 8, t] -> y [n, classes]."""
    def layer(c_in: int, c_out: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(c_in, c_in, 5, padding=2, groups=c_in), nn.Conv1d(c_in, c_out, 1, bias=False),
                             nn.BatchNorm1d(c_out), nn.ReLU())

    return nn.Sequential(layer(8, 40), layer(40, 48), nn.MaxPool1d(2), layer(48, 64), nn.AdaptiveAvgPool1d(1),
                         nn.Flatten(), nn.Linear(64, CLASSES))


class TextCNN(nn.Module):
    """Convolutions of 3, 4 and 5 tokens, the maximum of each over time, side by side (arXiv 1408.5882).
    input_ids [n, t] -> y [n, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 40)
        self.convs = nn.ModuleList(nn.Conv1d(40, 24, k, padding=k // 2) for k in (3, 4, 5))
        self.last = nn.Linear(72, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        return self.last(torch.cat([layer(x).relu().amax(2) for layer in self.convs], 1))


class ConvTasNet(nn.Module):
    """A learned filter bank, masks for two voices made by 1-d blocks, and the bank backwards (arXiv 1809.07454).
    signal [n, 1, t] -> y [n, 2, t]."""

    def __init__(self, bank: int = 48, inner: int = 64) -> None:
        super().__init__()
        self.encode, self.decode = nn.Conv1d(1, bank, 8, 4, 2), nn.ConvTranspose1d(bank, 1, 8, 4, 2)
        self.enter = nn.Sequential(nn.GroupNorm(1, bank), nn.Conv1d(bank, 32, 1))
        self.blocks = nn.ModuleList(nn.Sequential(
            nn.Conv1d(32, inner, 1), nn.PReLU(), nn.BatchNorm1d(inner),
            nn.Conv1d(inner, inner, 3, padding=d, dilation=d, groups=inner), nn.PReLU(), nn.BatchNorm1d(inner),
            nn.Conv1d(inner, 32, 1)) for d in (1, 2, 4))
        self.masks = nn.Sequential(nn.PReLU(), nn.Conv1d(32, 2 * bank, 1), nn.Sigmoid())

    def forward(self, signal: Tensor) -> Tensor:
        x = self.encode(signal).relu()
        y = self.enter(x)
        for block in self.blocks:
            y = y + block(y)
        return torch.cat([self.decode(x * mask) for mask in self.masks(y).chunk(2, 1)], 1)
