"""Text decoders of transformers with their language model head."""

from __future__ import annotations

from typing import Any

from models.zoo.base import Architecture
from models.zoo.transformers import SMALL, text

LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}


def _decoder(name: str, model: str, config: str, **rest: Any) -> Architecture:
    return text(name, "decoder", model, config, **rest)


ARCHITECTURES = (
    _decoder("gpt2", "GPT2LMHeadModel", "GPT2Config", core=True, **GPT, attn_implementation="eager"),
    _decoder("gpt2_opset14", "GPT2LMHeadModel", "GPT2Config", mask=True, exporter="torchscript", opset=14, **GPT,
             attn_implementation="eager"),
    _decoder("openai_gpt", "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **GPT),
    _decoder("gpt_neo", "GPTNeoForCausalLM", "GPTNeoConfig", hidden_size=64, num_layers=2, num_heads=4,
             attention_types=[[["global", "local"], 1]], window_size=4, max_position_embeddings=64),
    _decoder("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL, max_position_embeddings=64,
             attn_implementation="sdpa"),
    _decoder("gptj", "GPTJForCausalLM", "GPTJConfig", **GPT, rotary_dim=8),
    _decoder("gpt_bigcode", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", **GPT, attn_implementation="eager"),
    _decoder("codegen", "CodeGenForCausalLM", "CodeGenConfig", **GPT, n_ctx=64, rotary_dim=8),
    _decoder("opt", "OPTForCausalLM", "OPTConfig", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
             ffn_dim=128, max_position_embeddings=64, word_embed_proj_dim=32, mask=True, attn_implementation="sdpa"),
    _decoder("bloom", "BloomForCausalLM", "BloomConfig", hidden_size=64, n_layer=2, n_head=4, mask=True),
    _decoder("falcon", "FalconForCausalLM", "FalconConfig", hidden_size=64, num_hidden_layers=2,
             num_attention_heads=4, max_position_embeddings=64, attn_implementation="sdpa"),
    _decoder("falcon_new", "FalconForSequenceClassification", "FalconConfig", hidden_size=64, num_hidden_layers=2,
             num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True, max_position_embeddings=64,
             num_labels=5, attn_implementation="eager"),
    _decoder("llama", "LlamaForCausalLM", "LlamaConfig", core=True, **LLAMA, attn_implementation="eager"),
    _decoder("llama_sdpa", "LlamaForCausalLM", "LlamaConfig", opset=22, **LLAMA, attn_implementation="sdpa"),
    _decoder("mistral", "MistralForCausalLM", "MistralConfig", mask=True, **LLAMA, sliding_window=8,
             attn_implementation="sdpa"),
    _decoder("ministral", "MinistralForCausalLM", "MinistralConfig", **LLAMA, head_dim=16, sliding_window=8,
             attn_implementation="eager"),
    _decoder("qwen2", "Qwen2ForCausalLM", "Qwen2Config", **LLAMA, opset=20, attn_implementation="sdpa"),
    _decoder("qwen3", "Qwen3ForCausalLM", "Qwen3Config", **LLAMA, head_dim=16, attn_implementation="eager"),
    _decoder("gemma", "GemmaForCausalLM", "GemmaConfig", **{**LLAMA, "num_key_value_heads": 1}, head_dim=24,
             attn_implementation="sdpa"),
    _decoder("gemma2", "Gemma2ForCausalLM", "Gemma2Config", **LLAMA, head_dim=16, sliding_window=8,
             attn_implementation="eager"),
    _decoder("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", **LLAMA, head_dim=16, sliding_window=8,
             layer_types=["sliding_attention", "full_attention"], attn_implementation="sdpa"),
    _decoder("phi", "PhiForCausalLM", "PhiConfig", **SMALL, max_position_embeddings=64, qk_layernorm=True,
             attn_implementation="eager"),
    _decoder("phi3", "Phi3ForCausalLM", "Phi3Config", **LLAMA, original_max_position_embeddings=64,
             attn_implementation="sdpa"),
    _decoder("stablelm", "StableLmForCausalLM", "StableLmConfig", **LLAMA, use_qkv_bias=True,
             use_parallel_residual=True, attn_implementation="eager"),
    _decoder("starcoder2", "Starcoder2ForCausalLM", "Starcoder2Config", **LLAMA, attn_implementation="sdpa"),
    _decoder("olmo", "OlmoForCausalLM", "OlmoConfig", **LLAMA, clip_qkv=2.0, attn_implementation="eager"),
    _decoder("olmo2", "Olmo2ForCausalLM", "Olmo2Config", **LLAMA, attn_implementation="sdpa"),
    _decoder("olmo3", "Olmo3ForCausalLM", "Olmo3Config", **LLAMA, sliding_window=8,
             layer_types=["sliding_attention", "full_attention"], attn_implementation="eager"),
    _decoder("cohere", "CohereForCausalLM", "CohereConfig", **LLAMA, use_qk_norm=True, attn_implementation="sdpa"),
    _decoder("cohere2", "Cohere2ForCausalLM", "Cohere2Config", **LLAMA, sliding_window=8,
             layer_types=["sliding_attention", "full_attention"], attn_implementation="eager"),
    _decoder("glm", "GlmForCausalLM", "GlmConfig", **LLAMA, head_dim=16, attn_implementation="sdpa"),
    _decoder("glm4", "Glm4ForCausalLM", "Glm4Config", **LLAMA, head_dim=16, attn_implementation="eager"),
    _decoder("granite", "GraniteForCausalLM", "GraniteConfig", **LLAMA, residual_multiplier=0.5,
             attn_implementation="sdpa"),
    _decoder("nemotron", "NemotronForCausalLM", "NemotronConfig", **LLAMA, attn_implementation="eager"),
    _decoder("mpt", "MptForCausalLM", "MptConfig", d_model=64, n_heads=4, n_layers=2, max_seq_len=64),
    _decoder("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config", **LLAMA, no_rope_layer_interval=2,
             attn_implementation="sdpa"),
    _decoder("exaone4", "Exaone4ForCausalLM", "Exaone4Config", **LLAMA, sliding_window=8, sliding_window_pattern=2,
             attn_implementation="eager"),
    _decoder("helium", "HeliumForCausalLM", "HeliumConfig", **LLAMA, head_dim=16, attn_implementation="sdpa"),
    _decoder("ctrl", "CTRLLMHeadModel", "CTRLConfig", **GPT, dff=128),
    _decoder("xglm", "XGLMForCausalLM", "XGLMConfig", d_model=64, ffn_dim=128, num_layers=2, attention_heads=4,
             max_position_embeddings=64),
    _decoder("biogpt", "BioGptForCausalLM", "BioGptConfig", mask=True, **SMALL, max_position_embeddings=64,
             attn_implementation="sdpa"),
    _decoder("persimmon", "PersimmonForCausalLM", "PersimmonConfig", **SMALL, max_position_embeddings=64,
             attn_implementation="eager"),
    _decoder("diffllama", "DiffLlamaForCausalLM", "DiffLlamaConfig", **LLAMA, attn_implementation="eager"),
    _decoder("arcee", "ArceeForTokenClassification", "ArceeConfig", **LLAMA, num_labels=7,
             attn_implementation="sdpa"),
    _decoder("apertus", "ApertusForCausalLM", "ApertusConfig", **LLAMA, attn_implementation="eager"),
    _decoder("minicpm3", "MiniCPM3ForCausalLM", "MiniCPM3Config", **{**LLAMA, "num_key_value_heads": 4},
             kv_lora_rank=24, q_lora_rank=40, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
             attn_implementation="sdpa"),
    _decoder("modernbert_decoder", "ModernBertDecoderForCausalLM", "ModernBertDecoderConfig", **SMALL,
             max_position_embeddings=64, local_attention=8, layer_types=["full_attention", "sliding_attention"],
             attn_implementation="eager"),
    _decoder("bitnet", "BitNetForCausalLM", "BitNetConfig", **LLAMA, attn_implementation="sdpa"),
)
