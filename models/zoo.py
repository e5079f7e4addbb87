"""Small networks of every architecture family, random weights, exported to ONNX: what the tests walk through.

`build(name)` exports once into the cache. The convolutional ones are written in `zoo_cnn.py`, the others are
configurations of transformers. No parameter is left at a value that hides mistakes (a bias of zero, a gamma of one).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import UsageError
from models.export import export, need_torch, quiet
from models.task import cached

if TYPE_CHECKING:
    import torch

VOCABULARY = 97
BATCH, SEQUENCE = 2, 12
IMAGE_AXES = {"pixels": {0: "batch"}}
TEXT_AXES = {"input_ids": {0: "batch", 1: "sequence"}}


@dataclass(frozen=True)
class Sample:
    """A network ready for export: feed by input name in calling order, axes that stay dynamic, output name."""

    module: torch.nn.Module
    feed: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
    output: str = "y"


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

    norms = [layer for layer in sample.module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics are those of the one batch that follows
    if norms:
        with torch.no_grad():
            sample.module.train()(torch.randn(16, *sample.feed["pixels"].shape[1:]))


def _image(make: Callable[[], torch.nn.Module], side: int = 32) -> Callable[[], Sample]:
    def sample() -> Sample:
        import torch

        return Sample(make(), {"pixels": torch.randn(BATCH, 3, side, side)}, IMAGE_AXES)

    return sample


def _cnn(name: str, **options: object) -> Callable[[], Sample]:
    def make() -> torch.nn.Module:
        from models import zoo_cnn

        return getattr(zoo_cnn, name)(**options)

    return _image(make)


def _text(name: str, config: str, with_mask: bool, **options: object) -> Callable[[], Sample]:
    """A text model of transformers returning its hidden states or its logits, called with tokens (and their mask)."""
    def sample() -> Sample:
        import torch
        import transformers

        inner = getattr(transformers, name)(getattr(transformers, config)(vocab_size=VOCABULARY, **options))

        class First(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
                return self.inner(input_ids=ids, attention_mask=mask)[0]

        feed = {"input_ids": torch.randint(1, VOCABULARY, (BATCH, SEQUENCE))}
        dynamic = dict(TEXT_AXES)
        if with_mask:
            feed["attention_mask"] = (torch.arange(SEQUENCE) < torch.tensor([[SEQUENCE], [SEQUENCE - 4]])).long()
            dynamic["attention_mask"] = TEXT_AXES["input_ids"]
        return Sample(First(), feed, dynamic)

    return sample


def _vision(name: str, config: str, dynamic: bool = True, **options: object) -> Callable[[], Sample]:
    """An image classifier of transformers returning its logits."""
    def sample() -> Sample:
        import torch
        import transformers

        inner = getattr(transformers, name)(getattr(transformers, config)(image_size=32, num_labels=10, **options))

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                return self.inner(pixel_values=pixels).logits

        return Sample(Logits(), {"pixels": torch.randn(BATCH, 3, 32, 32)}, IMAGE_AXES if dynamic else {})

    return sample


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_BUILDERS: dict[str, Callable[[], Sample]] = {
    "resnet_basic": _cnn("ResNet", bottleneck=False),
    "resnet_bottleneck": _cnn("ResNet", bottleneck=True),
    "resnext": _cnn("ResNet", bottleneck=True, groups=4),
    "mobilenet_v2": _cnn("MobileNet", squeeze=False),
    "mobilenet_v3": _cnn("MobileNet", squeeze=True, act="hardswish"),
    "efficientnet": _cnn("MobileNet", squeeze=True, act="silu"),
    "densenet": _cnn("DenseNet"),
    "convnext": _cnn("ConvNeXt"),
    "shufflenet_v2": _cnn("ShuffleNet"),
    "bert": _text("BertModel", "BertConfig", True, **_SMALL, attn_implementation="eager"),
    "bert_sdpa": _text("BertModel", "BertConfig", True, **_SMALL, attn_implementation="sdpa"),
    "gpt2": _text("GPT2LMHeadModel", "GPT2Config", False, n_embd=64, n_layer=2, n_head=4, n_positions=64,
                  use_cache=False, attn_implementation="eager"),
    "llama": _text("LlamaForCausalLM", "LlamaConfig", False, **_SMALL, num_key_value_heads=2, use_cache=False,
                   max_position_embeddings=64, attn_implementation="eager"),
    "vit": _vision("ViTForImageClassification", "ViTConfig", **_SMALL, patch_size=8, attn_implementation="eager"),
    "swin": _vision("SwinForImageClassification", "SwinConfig", embed_dim=32, depths=[2, 2], num_heads=[2, 4],
                    window_size=4, patch_size=2),
}
NAMES = tuple(_BUILDERS)


def build(name: str) -> Path:
    """Path of the exported network, one of NAMES; made once for each version of the code that makes it.

    Raises UsageError for a name that is not there, EnvironmentFault without torch.
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, NAMES, 1, 0)[0]
        raise UsageError(f"there is no architecture '{name}'", at=f"known: {', '.join(NAMES)}",
                         fix=f"did you mean '{near}'?")
    need_torch()

    def make(path: Path) -> None:
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(0)
            with quiet():
                sample = _BUILDERS[name]()
            randomise(sample.module, seed=1)
            settle(sample)
            export(sample.module, sample.feed, [sample.output], path, dynamic=sample.dynamic)

    here = Path(__file__)
    return cached(f"zoo_{name}.onnx", make, here, here.with_name("zoo_cnn.py"))
