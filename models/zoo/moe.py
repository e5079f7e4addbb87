"""Mixtures of experts of transformers; the weights of experts are gathered by token: no branch depends on data."""

from __future__ import annotations

from typing import Any

from models.zoo.base import Architecture
from models.zoo.transformers import SMALL, text

LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
LATENT = {**SMALL, "max_position_embeddings": 64, "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 40,
          "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "moe_intermediate_size": 48}


def _moe(name: str, model: str, config: str, **rest: Any) -> Architecture:
    rest = {"num_experts_per_tok": 2, "experts_implementation": "batched_mm", **rest}
    return text(name, "moe", model, config, **rest)


ARCHITECTURES = (
    _moe("mixtral", "MixtralForCausalLM", "MixtralConfig", **LLAMA, num_local_experts=4, attn_implementation="eager"),
    _moe("qwen2_moe", "Qwen2MoeForCausalLM", "Qwen2MoeConfig", **LLAMA, num_experts=4, moe_intermediate_size=48,
         shared_expert_intermediate_size=96, attn_implementation="sdpa"),
    _moe("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", **LLAMA, num_experts=4, moe_intermediate_size=48,
         head_dim=16, norm_topk_prob=True, attn_implementation="eager"),
    _moe("olmoe", "OlmoeForCausalLM", "OlmoeConfig", **LLAMA, num_experts=4, attn_implementation="sdpa"),
    _moe("phimoe", "PhimoeForCausalLM", "PhimoeConfig", **LLAMA, num_local_experts=4, attn_implementation="eager"),
    _moe("deepseek_v3", "DeepseekV3ForCausalLM", "DeepseekV3Config", **LATENT, n_routed_experts=4, n_shared_experts=1,
         n_group=2, topk_group=1, first_k_dense_replace=1, attn_implementation="eager"),
    _moe("granitemoe", "GraniteMoeForCausalLM", "GraniteMoeConfig", **LLAMA, num_local_experts=4,
         attn_implementation="sdpa"),
    _moe("granitemoe_shared", "GraniteMoeSharedForCausalLM", "GraniteMoeSharedConfig", **LLAMA, num_local_experts=4,
         shared_intermediate_size=96, attn_implementation="eager"),
    _moe("gpt_oss", "GptOssForCausalLM", "GptOssConfig", **LLAMA, num_local_experts=4, head_dim=16, sliding_window=8,
         attn_implementation="eager"),
    _moe("jetmoe", "JetMoeForCausalLM", "JetMoeConfig", hidden_size=64, num_hidden_layers=2, num_key_value_heads=2,
         kv_channels=16, intermediate_size=128, max_position_embeddings=64, num_local_experts=4,
         attn_implementation="sdpa"),
    _moe("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeConfig", **LLAMA, moe_intermediate_size=48, moe_k=2,
         moe_num_experts=4, moe_num_shared_experts=1, attn_implementation="eager"),
    _moe("glm4_moe", "Glm4MoeForCausalLM", "Glm4MoeConfig", **LLAMA, moe_intermediate_size=48, n_routed_experts=4,
         n_shared_experts=1, first_k_dense_replace=1, head_dim=16, attn_implementation="sdpa"),
    _moe("flex_olmo", "FlexOlmoForCausalLM", "FlexOlmoConfig", **LLAMA, num_experts=4, attn_implementation="sdpa"),
    _moe("minimax", "MiniMaxForCausalLM", "MiniMaxConfig", fixed=("sequence",), **LLAMA, num_local_experts=4,
         block_size=8, layer_types=["full_attention", "linear_attention"], attn_implementation="eager"),
)
