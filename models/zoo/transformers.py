"""From a configuration of transformers to an architecture: the network, how it is called, what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.zoo.base import BATCH, IMAGE_AXES, SEQUENCE, TEXT_AXES, VOCABULARY, Architecture, Sample

if TYPE_CHECKING:
    import torch

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def network(model: str, config: str, options: dict[str, object]) -> torch.nn.Module:
    """transformers.`model` with random weights, of transformers.`config`(**options)."""
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options))


def text(name: str, family: str, model: str, config: str, *, mask: bool = False, core: bool = False,
         **options: object) -> Architecture:
    """input_ids [batch, sequence] and, where asked for, attention_mask -> hidden states or logits."""
    options = {"vocab_size": VOCABULARY, **options}

    def make() -> Sample:
        import torch

        inner = network(model, config, options)

        class First(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
                return self.inner(input_ids=ids, attention_mask=mask)[0]

        feed = {"input_ids": torch.randint(1, VOCABULARY, (BATCH, SEQUENCE))}
        dynamic = dict(TEXT_AXES)
        if mask:
            feed["attention_mask"] = (torch.arange(SEQUENCE) < torch.tensor([[SEQUENCE], [SEQUENCE - 4]])).long()
            dynamic["attention_mask"] = TEXT_AXES["input_ids"]
        return Sample(First(), feed, dynamic)

    return Architecture(name, family, f"transformers {model}", make, key=f"{model} {config} {mask} {options}",
                        core=core)


def classifier(name: str, model: str, config: str, *, dynamic: bool = True, core: bool = False, side: int = 32,
               **options: object) -> Architecture:
    """pixels [batch, 3, side, side] -> logits [batch, 10]."""
    options = {"image_size": side, "num_labels": 10, **options}

    def make() -> Sample:
        import torch

        inner = network(model, config, options)

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                return self.inner(pixel_values=pixels).logits

        return Sample(Logits(), {"pixels": torch.randn(BATCH, 3, side, side)}, IMAGE_AXES if dynamic else {})

    return Architecture(name, "vision", f"transformers {model}", make, key=f"{model} {config} {dynamic} {options}",
                        core=core)
