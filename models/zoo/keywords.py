"""Architectures of transformers that are called by keyword, with inputs declared by their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from models.zoo.base import BATCH, SEQUENCE, Architecture, Sample
from models.zoo.transformers import network

if TYPE_CHECKING:
    import torch

SIZES = {"batch": BATCH, "sequence": SEQUENCE, "samples": 1600, "frames": 64}
"""Sizes at which the axes that stay dynamic are exported."""


@dataclass(frozen=True)
class Input:
    """shape: sizes, or names out of SIZES for axes that stay dynamic. below: integers of 1 to below - 1, else noise."""

    shape: tuple[int | str, ...]
    below: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(SIZES[axis] if isinstance(axis, str) else axis for axis in self.shape)

    @property
    def dynamic(self) -> dict[int, str]:
        return {index: axis for index, axis in enumerate(self.shape) if isinstance(axis, str)}

    def draw(self) -> torch.Tensor:
        import torch

        return torch.randint(1, self.below, self.sizes) if self.below else torch.randn(self.sizes)


def called(name: str, family: str, model: str, config: str, inputs: Mapping[str, Input], pick: str | tuple[str, ...],
           *, part: str = "", exporter: str = "dynamo", opset: int = 18, **options: object) -> Architecture:
    """transformers.`model` of transformers.`config`(**options), called with `inputs` by keyword (at most five).

    pick: the fields of what it returns that become outputs; "" where it returns the tensor itself. part: of the
    model, the submodule to export, by attribute path. Nested configurations are given as dictionaries.
    """
    picked = (pick,) if isinstance(pick, str) else pick

    def make() -> Sample:
        import torch

        whole = network(model, config, options)
        inner = attrgetter(part)(whole) if part else whole
        names = tuple(inputs)

        class Picked(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, first: torch.Tensor, second: torch.Tensor | None = None,
                        third: torch.Tensor | None = None, fourth: torch.Tensor | None = None,
                        fifth: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
                given = (first, second, third, fourth, fifth)[: len(names)]
                returned = self.inner(**dict(zip(names, given, strict=True)))
                return tuple(getattr(returned, field) if field else returned for field in picked)

        feed = {key: value.draw() for key, value in inputs.items()}
        dynamic = {key: value.dynamic for key, value in inputs.items() if value.dynamic}
        return Sample(Picked(), feed, dynamic, tuple(field or "y" for field in picked))

    key = f"{model} {config} {part} {dict(inputs)} {SIZES} {picked} {options}"
    picky = {axis for value in inputs.values() for axis in value.shape} & {"samples", "frames"}
    shapes = {key: value.sizes for key, value in inputs.items() if picky and value.dynamic}
    return Architecture(name, family, f"transformers {model}", make, key=key, exporter=exporter, opset=opset,
                        shapes=shapes)
