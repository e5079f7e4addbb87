"""State-space networks, linear attention and other recurrences of transformers, pure and mixed with attention."""

from __future__ import annotations

from typing import Any

from models.zoo.base import Architecture
from models.zoo.transformers import SMALL, text

LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
MAMBA = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "conv_kernel": 4, "use_associative_scan": False}
SSM = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
SHARED = {**LLAMA, "num_key_value_heads": 4, "num_hidden_layers": 3,
          "layers_block_type": ["linear_attention", "hybrid", "hybrid"]}
"""The attention blocks of both hybrid layers are one block."""
CHUNK = 5
"""Not a divisor of the length at export, so that padding to whole chunks is part of the graph and any length runs."""
UNROLLED = ("sequence",)


def _recurrent(name: str, model: str, config: str, **rest: Any) -> Architecture:
    return text(name, "state-space", model, config, **rest)


ARCHITECTURES = (
    _recurrent("mamba", "MambaForCausalLM", "MambaConfig", fixed=UNROLLED, **MAMBA),
    _recurrent("falcon_mamba", "FalconMambaForCausalLM", "FalconMambaConfig", fixed=UNROLLED, **MAMBA),
    _recurrent("mamba2", "Mamba2ForCausalLM", "Mamba2Config", hidden_size=32, state_size=8,
               num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=2, chunk_size=CHUNK),
    _recurrent("rwkv", "RwkvForCausalLM", "RwkvConfig", fixed=UNROLLED, hidden_size=32, num_hidden_layers=2,
               attention_hidden_size=32, intermediate_size=64, context_length=64),
    _recurrent("recurrent_gemma", "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", fixed=UNROLLED,
               hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, lru_width=32,
               attention_window_size=16),
    _recurrent("lfm2", "Lfm2ForCausalLM", "Lfm2Config", **LLAMA, block_auto_adjust_ff_dim=False,
               layer_types=["conv", "full_attention"], attn_implementation="sdpa"),
    _recurrent("jamba", "JambaForCausalLM", "JambaConfig", fixed=UNROLLED, **LLAMA, **SSM, use_mamba_kernels=False,
               use_associative_scan=False, attn_layer_period=2, attn_layer_offset=1, num_experts=4,
               expert_layer_period=2, expert_layer_offset=1, experts_implementation="batched_mm",
               attn_implementation="eager"),
    _recurrent("zamba", "ZambaForCausalLM", "ZambaConfig", fixed=UNROLLED, **SHARED, **SSM, use_mamba_kernels=False,
               use_associative_scan=False, n_mamba_heads=2, attn_implementation="eager"),
    _recurrent("zamba2", "Zamba2ForCausalLM", "Zamba2Config", **SHARED, **SSM,
               use_mamba_kernels=False, chunk_size=CHUNK, n_mamba_heads=8, adapter_rank=8, attn_implementation="sdpa"),
    _recurrent("bamba", "BambaForCausalLM", "BambaConfig", **LLAMA, **SSM, mamba_n_heads=8,
               mamba_n_groups=2, mamba_chunk_size=CHUNK, attn_layer_indices=[1], attn_implementation="eager"),
    _recurrent("falcon_h1", "FalconH1ForCausalLM", "FalconH1Config", **LLAMA, **SSM, mamba_d_ssm=64,
               mamba_n_heads=8, mamba_n_groups=2, mamba_chunk_size=CHUNK, attn_implementation="sdpa"),
    _recurrent("granitemoe_hybrid", "GraniteMoeHybridForCausalLM", "GraniteMoeHybridConfig", **LLAMA,
               **SSM, mamba_n_heads=8, mamba_n_groups=2, mamba_chunk_size=CHUNK, num_local_experts=4,
               shared_intermediate_size=64, layer_types=["mamba", "attention"], experts_implementation="batched_mm",
               attn_implementation="eager"),
    _recurrent("nemotron_h", "NemotronHForCausalLM", "NemotronHConfig", **LLAMA, head_dim=16,
               ssm_state_size=8, mamba_num_heads=8, mamba_head_dim=8, n_groups=2, chunk_size=CHUNK,
               layers_block_type=["mamba", "attention", "mlp"], use_mamba_kernels=False, attn_implementation="sdpa"),
    _recurrent("xlstm", "xLSTMForCausalLM", "xLSTMConfig", fixed=UNROLLED, hidden_size=32, num_hidden_layers=2,
               num_heads=2, chunk_size=4, ffn_round_up_to_multiple_of=8, autocast_kernel_dtype="float32",
               sequence_kernel="native_sequence__native", chunkwise_kernel="chunkwise--native_autograd"),
    _recurrent("qwen3_next", "Qwen3NextForCausalLM", "Qwen3NextConfig", fixed=UNROLLED, **LLAMA, head_dim=16,
               linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
               num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32,
               layer_types=["linear_attention", "full_attention"], experts_implementation="batched_mm",
               attn_implementation="eager"),
    _recurrent("olmo_hybrid", "OlmoHybridForCausalLM", "OlmoHybridConfig", fixed=UNROLLED, **LLAMA,
               linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=4, linear_num_value_heads=4,
               layer_types=["linear_attention", "full_attention"], attn_implementation="sdpa"),
)
