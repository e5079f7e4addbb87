"""From a configuration of transformers to an architecture: the network, how it is called, what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.zoo.base import BATCH, IMAGE_AXES, SEQUENCE, TEXT_AXES, VOCABULARY, Architecture, Sample

if TYPE_CHECKING:
    import torch

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
TARGET = 7
AXES = {"input_ids": TEXT_AXES["input_ids"], "attention_mask": TEXT_AXES["input_ids"],
        "decoder_input_ids": {0: "batch", 1: "target"}}
"""The inputs of a text network, and what their dynamic axes are called."""


def network(model: str, config: str, options: dict[str, object]) -> torch.nn.Module:
    """transformers.`model` with random weights, of transformers.`config`(**options)."""
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options))


def text(name: str, family: str, model: str, config: str, *, mask: bool = False, **rest: Any) -> Architecture:
    """input_ids [batch, sequence] and, where asked for, attention_mask -> hidden states or logits.

    rest: as `of_tokens` takes it.
    """
    return of_tokens(name, family, model, config, ("input_ids", "attention_mask")[:1 + mask], **rest)


def seq2seq(name: str, model: str, config: str, *, family: str = "encoder-decoder", **rest: Any) -> Architecture:
    """input_ids [batch, sequence], attention_mask, decoder_input_ids [batch, target] -> logits.

    rest: as `of_tokens` takes it.
    """
    return of_tokens(name, family, model, config, ("input_ids", "attention_mask", "decoder_input_ids"),
                     decoder_start_token_id=1, **rest)


def of_tokens(name: str, family: str, model: str, config: str, inputs: tuple[str, ...], *,
              outputs: tuple[str, ...] = ("y",), fixed: tuple[str, ...] = (), exporter: str = "dynamo",
              opset: int = 18, core: bool = False, **options: object) -> Architecture:
    """transformers.`model`, called with `inputs` (up to three, out of AXES), and its first outputs.

    fixed: names of the axes that the network cannot be exported without fixing. options: of the configuration.
    """
    options = {**TOKENS, **options}

    def make() -> Sample:
        import torch

        inner = network(model, config, options)

        class First(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, first: torch.Tensor, second: torch.Tensor | None = None,
                        third: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
                given = dict(zip(inputs, (first, second, third), strict=False))
                return self.inner(**given)[:len(outputs)]

        free = {name: {axis: symbol for axis, symbol in AXES[name].items() if symbol not in fixed} for name in inputs}
        return Sample(First(), {name: _value(name) for name in inputs}, free, outputs)

    return Architecture(name, family, f"transformers {model}", make, exporter=exporter, opset=opset, core=core,
                        key=f"{model} {config} {inputs} {outputs} {fixed} {options}")


def _value(name: str) -> torch.Tensor:
    """Tokens without the padding's, or a mask under which the second sample is four tokens shorter."""
    import torch

    if name == "attention_mask":
        return (torch.arange(SEQUENCE) < torch.tensor([[SEQUENCE], [SEQUENCE - 4]])).long()
    return torch.randint(1, VOCABULARY, (BATCH, TARGET if name.startswith("decoder") else SEQUENCE))


def classifier(name: str, model: str, config: str, *, dynamic: bool = True, core: bool = False, side: int = 32,
               exporter: str = "dynamo", opset: int = 18, **options: object) -> Architecture:
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
                        exporter=exporter, opset=opset, core=core)
