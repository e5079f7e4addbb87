"""What an architecture of the zoo is: a network with random weights and how it is called, or a file that exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

VOCABULARY = 97
BATCH, SEQUENCE = 2, 12
IMAGE_AXES = {"pixels": {0: "batch"}}
TEXT_AXES = {"input_ids": {0: "batch", 1: "sequence"}}


@dataclass(frozen=True)
class Sample:
    """A network ready for export: feed by input name in calling order, axes that stay dynamic, output names."""

    module: torch.nn.Module
    feed: dict[str, torch.Tensor]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)


@dataclass(frozen=True)
class Architecture:
    """One architecture: `make` builds the network (exported once), or `path` finds a file that somebody else wrote.

    family: cnn, detection, recurrent, encoder, decoder, encoder-decoder, vision, multimodal, speech, moe, state-space.
    origin: who defines it, for people ("transformers BertModel", "Caffe2", "PaddleOCR 4"). key: what the export depends
    on besides this package's exporter; a changed key is exported anew. exporter: "dynamo" or "torchscript".
    shapes: of dynamic inputs, where it does not run at any size. core: one of the few that the tests pin.
    """

    name: str
    family: str
    origin: str
    make: Callable[[], Sample] | None = None
    path: Callable[[], Path] | None = None
    key: str = ""
    exporter: str = "dynamo"
    opset: int = 18
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    core: bool = False


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Move every parameter off its initial value so that signals neither explode nor fade.

    Matrices and kernels become normal with variance 1 / fan-in; vectors are uniform, 0.5..1.5 for a scale and +-0.3
    for a shift.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.ndim >= 2:
                value.normal_(0, value[0].numel() ** -0.5, generator=generator)
            elif name.endswith(("weight", "gamma")):
                value.uniform_(0.5, 1.5, generator=generator)
            else:
                value.uniform_(-0.3, 0.3, generator=generator)


def settle(sample: Sample) -> None:
    """Give each BatchNorm the statistics of its input on noise, as training would; without one, this does nothing."""
    import torch

    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
    norms = [layer for layer in sample.module.modules() if isinstance(layer, kinds)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics are those of the one batch that follows
    if norms:
        noise = {
            name: torch.randn(16, *value.shape[1:]) if value.is_floating_point() else value.repeat_interleave(8, 0)
            for name, value in sample.feed.items()
        }
        with torch.no_grad():
            sample.module.train()(*noise.values())
