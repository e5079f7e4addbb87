"""Text encoders and decoders of transformers."""

from __future__ import annotations

from models.zoo.transformers import SMALL, text

ARCHITECTURES = (
    text("bert", "encoder", "BertModel", "BertConfig", mask=True, core=True, **SMALL, attn_implementation="eager"),
    text("bert_sdpa", "encoder", "BertModel", "BertConfig", mask=True, core=True, **SMALL, attn_implementation="sdpa"),
    text("gpt2", "decoder", "GPT2LMHeadModel", "GPT2Config", core=True, n_embd=64, n_layer=2, n_head=4, n_positions=64,
         use_cache=False, attn_implementation="eager"),
    text("llama", "decoder", "LlamaForCausalLM", "LlamaConfig", core=True, **SMALL, num_key_value_heads=2,
         use_cache=False, max_position_embeddings=64, attn_implementation="eager"),
)
