"""Text encoder-decoders of transformers: two sequences of different length, self- and cross-attention."""

from __future__ import annotations

from models.zoo.base import VOCABULARY
from models.zoo.transformers import seq2seq

T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
      "relative_attention_max_distance": 16}
BART = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}

ARCHITECTURES = (
    seq2seq("t5", "T5ForConditionalGeneration", "T5Config", **T5),
    seq2seq("t5_opset13", "T5ForConditionalGeneration", "T5Config", exporter="torchscript", opset=13, **T5,
            attn_implementation="eager"),
    seq2seq("t5_gated", "T5ForConditionalGeneration", "T5Config", opset=19, **T5, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False),
    seq2seq("umt5", "UMT5ForConditionalGeneration", "UMT5Config", **T5),
    seq2seq("longt5", "LongT5ForConditionalGeneration", "LongT5Config", **T5, local_radius=4),
    seq2seq("bart", "BartForConditionalGeneration", "BartConfig", **BART, attn_implementation="eager"),
    seq2seq("bart_opset17", "BartForConditionalGeneration", "BartConfig", exporter="torchscript", opset=17, **BART,
            attn_implementation="eager"),
    seq2seq("mbart", "MBartForConditionalGeneration", "MBartConfig", **BART, attn_implementation="sdpa"),
    seq2seq("pegasus", "PegasusForConditionalGeneration", "PegasusConfig", **BART, attn_implementation="eager"),
    seq2seq("marian", "MarianMTModel", "MarianConfig", **BART, attn_implementation="sdpa"),
    seq2seq("m2m_100", "M2M100ForConditionalGeneration", "M2M100Config", **BART, attn_implementation="eager"),
    seq2seq("blenderbot", "BlenderbotForConditionalGeneration", "BlenderbotConfig", **BART,
            attn_implementation="sdpa"),
    seq2seq("blenderbot_small", "BlenderbotSmallForConditionalGeneration", "BlenderbotSmallConfig", **BART,
            attn_implementation="eager"),
    seq2seq("mvp", "MvpForConditionalGeneration", "MvpConfig", **BART),
    seq2seq("plbart", "PLBartForConditionalGeneration", "PLBartConfig", **BART, attn_implementation="sdpa"),
    seq2seq("fsmt", "FSMTForConditionalGeneration", "FSMTConfig", exporter="torchscript", opset=17, **BART,
            src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY),
    seq2seq("prophetnet", "ProphetNetForConditionalGeneration", "ProphetNetConfig", exporter="torchscript",
            opset=17, hidden_size=64, num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4,
            num_decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128,
            max_position_embeddings=64, num_buckets=8, relative_max_distance=16),
)
