"""Speech models of transformers: from waveforms, spectrograms and text."""

from __future__ import annotations

from models.zoo.base import VOCABULARY, Architecture
from models.zoo.keywords import Input, called
from models.zoo.transformers import SMALL

CONVOLUTIONS = {"conv_dim": [24, 24, 32], "conv_stride": [5, 4, 4], "conv_kernel": [10, 5, 4]}
POSITIONS = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
WAVES = {**SMALL, **CONVOLUTIONS, **POSITIONS, "vocab_size": 32}
SQUEEZED = {**WAVES, "squeeze_factor": 2}
MELS = 16
SEQ2SEQ = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": VOCABULARY,
           "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
HEADS = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
HIFIGAN = {"model_in_dim": MELS, "upsample_initial_channel": 64, "upsample_rates": [4, 2],
           "upsample_kernel_sizes": [8, 4], "resblock_kernel_sizes": [3, 5],
           "resblock_dilation_sizes": [[1, 3], [1, 3]]}
TOKENS = Input(("batch", "sequence"), VOCABULARY)


def waves(name: str, model: str, config: str, pick: str = "logits", **options: object) -> Architecture:
    """input_values [batch, samples] -> the field `pick`, usually logits for CTC or of a classifier."""
    return called(name, "speech", model, config, {"input_values": Input(("batch", "samples"))}, pick, **options)


def frames(name: str, model: str, config: str, pick: str = "logits", *, key: str = "input_features",
           n: int | str = "frames", n_mels: int = MELS, **options: object) -> Architecture:
    """A spectrogram [batch, n, n_mels] -> the field `pick`."""
    return called(name, "speech", model, config, {key: Input(("batch", n, n_mels))}, pick, **options)


ENCODERS = (
    waves("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", **WAVES),
    waves("wav2vec2_stable", "Wav2Vec2ForCTC", "Wav2Vec2Config", **WAVES, do_stable_layer_norm=True,
          feat_extract_norm="layer", conv_bias=True, attn_implementation="eager"),
    waves("wav2vec2_classifier", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **WAVES,
          classifier_proj_size=32, use_weighted_layer_sum=True),
    waves("wav2vec2_xvector", "Wav2Vec2ForXVector", "Wav2Vec2Config", **WAVES, tdnn_dim=[32, 32, 48],
          tdnn_kernel=[3, 3, 1], tdnn_dilation=[1, 2, 1], xvector_output_dim=32),
    waves("wav2vec2_adapter", "Wav2Vec2ForCTC", "Wav2Vec2Config", **WAVES, add_adapter=True, num_adapter_layers=1,
          output_hidden_size=48),
    waves("hubert", "HubertForCTC", "HubertConfig", **WAVES),
    waves("wavlm", "WavLMForCTC", "WavLMConfig", **WAVES),
    waves("unispeech", "UniSpeechForCTC", "UniSpeechConfig", **WAVES, num_ctc_classes=32),
    waves("unispeech_sat", "UniSpeechSatForCTC", "UniSpeechSatConfig", **WAVES, attn_implementation="eager"),
    waves("data2vec_audio", "Data2VecAudioForCTC", "Data2VecAudioConfig", **SMALL, **CONVOLUTIONS, vocab_size=32,
          conv_pos_kernel_size=7, num_conv_pos_embeddings=2, num_conv_pos_embedding_groups=4),
    waves("sew", "SEWForCTC", "SEWConfig", **SQUEEZED),
    waves("sew_d", "SEWDForCTC", "SEWDConfig", **SQUEEZED),
    waves("wav2vec2_conformer", "Wav2Vec2ConformerForCTC", "Wav2Vec2ConformerConfig", **WAVES,
          conv_depthwise_kernel_size=7),
    waves("wav2vec2_conformer_rotary", "Wav2Vec2ConformerForCTC", "Wav2Vec2ConformerConfig", **WAVES,
          conv_depthwise_kernel_size=7, position_embeddings_type="rotary"),
    frames("wav2vec2_bert", "Wav2Vec2BertForCTC", "Wav2Vec2BertConfig", **SMALL, vocab_size=32,
           feature_projection_input_dim=MELS, conv_depthwise_kernel_size=7),
    frames("audio_spectrogram_transformer", "ASTForAudioClassification", "ASTConfig", key="input_values", n=64, **SMALL,
           patch_size=8, frequency_stride=4, time_stride=8, max_length=64, num_mel_bins=MELS),
    frames("parakeet", "ParakeetForCTC", "ParakeetCTCConfig", vocab_size=32,
           encoder_config={**SMALL, "num_mel_bins": MELS, "subsampling_conv_channels": 16, "conv_kernel_size": 5}),
    frames("lasr", "LasrForCTC", "LasrCTCConfig", vocab_size=32,
           encoder_config={**SMALL, "num_mel_bins": MELS, "subsampling_conv_channels": 16, "conv_kernel_size": 8}),
    frames("granite_speech_encoder", "GraniteSpeechCTCEncoder", "GraniteSpeechEncoderConfig", "last_hidden_state",
           key="hidden_states", n=24, input_dim=MELS, num_layers=2, hidden_dim=64, feedforward_mult=2, num_heads=4,
           dim_head=16, output_dim=32, context_size=8, max_pos_emb=8, conv_kernel_size=5),
    called("whisper_classifier", "speech", "WhisperForAudioClassification", "WhisperConfig",
           {"input_features": Input(("batch", MELS, 64))}, "logits", **SEQ2SEQ, num_mel_bins=MELS,
           max_source_positions=32, classifier_proj_size=32),
)
SEQ2SEQS = (
    called("whisper", "speech", "WhisperForConditionalGeneration", "WhisperConfig",
           {"input_features": Input(("batch", MELS, 64)), "decoder_input_ids": TOKENS}, "logits", **SEQ2SEQ,
           num_mel_bins=MELS, max_source_positions=32, max_target_positions=64, use_cache=False),
    called("speech_to_text", "speech", "Speech2TextForConditionalGeneration", "Speech2TextConfig",
           {"input_features": Input(("batch", 64, MELS)), "decoder_input_ids": TOKENS}, "logits", **SEQ2SEQ,
           input_feat_per_channel=MELS, conv_channels=32, max_source_positions=64, max_target_positions=64,
           use_cache=False),
    called("moonshine", "speech", "MoonshineForConditionalGeneration", "MoonshineConfig",
           {"input_values": Input(("batch", "samples")), "decoder_input_ids": TOKENS}, "logits",
           hidden_size=64, intermediate_size=96, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
           encoder_num_attention_heads=4, decoder_num_attention_heads=4, vocab_size=VOCABULARY, use_cache=False),
    called("speecht5_asr", "speech", "SpeechT5ForSpeechToText", "SpeechT5Config",
           {"input_values": Input(("batch", "samples")), "decoder_input_ids": TOKENS}, "logits", **CONVOLUTIONS,
           **POSITIONS, hidden_size=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
           decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=VOCABULARY, use_cache=False),
)
SOUND = (
    called("hifigan", "speech", "SpeechT5HifiGan", "SpeechT5HifiGanConfig",
           {"spectrogram": Input(("batch", "frames", MELS))}, "", **HIFIGAN),
    called("fastspeech2_hifigan", "speech", "FastSpeech2ConformerHifiGan", "FastSpeech2ConformerHifiGanConfig",
           {"spectrogram": Input(("batch", "frames", MELS))}, "", **HIFIGAN),
    called("univnet", "speech", "UnivNetModel", "UnivNetConfig",
           {"input_features": Input((2, 12, MELS)), "noise_sequence": Input((2, 12, 8))}, "waveforms",
           num_mel_bins=MELS, model_in_channels=8, model_hidden_channels=8, kernel_predictor_hidden_channels=8),
    called("vits_text_encoder", "speech", "VitsModel", "VitsConfig",
           {"input_ids": Input(("batch", "sequence"), 38), "padding_mask": Input(("batch", "sequence", 1))},
           "prior_means", part="text_encoder", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
           flow_size=32, upsample_initial_channel=64, spectrogram_bins=33),
    called("vits_decoder", "speech", "VitsModel", "VitsConfig", {"spectrogram": Input(("batch", 32, "frames"))}, "",
           part="decoder", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
           flow_size=32, upsample_initial_channel=64, spectrogram_bins=33, upsample_rates=[4, 2],
           upsample_kernel_sizes=[8, 4]),
    called("encodec_encoder", "speech", "EncodecModel", "EncodecConfig",
           {"hidden_states": Input((2, 1, 640))}, "", part="encoder", hidden_size=32, num_filters=8,
           upsampling_ratios=[4, 4, 2], codebook_size=64, exporter="torchscript", opset=17),
    called("encodec_decoder", "speech", "EncodecModel", "EncodecConfig",
           {"hidden_states": Input((2, 32, 24))}, "", part="decoder", hidden_size=32, num_filters=8,
           upsampling_ratios=[4, 4, 2], codebook_size=64, exporter="torchscript", opset=17),
    called("dac", "speech", "DacModel", "DacConfig", {"input_values": Input(("batch", 1, 512))}, "audio_values",
           encoder_hidden_size=8, downsampling_ratios=[2, 4, 4], decoder_hidden_size=64, upsampling_ratios=[4, 4, 2],
           n_codebooks=2, codebook_size=32, codebook_dim=4),
    called("clap_audio", "speech", "ClapAudioModelWithProjection", "ClapAudioConfig",
           {"input_features": Input(("batch", 1, 64, 16))}, "audio_embeds", window_size=4, num_mel_bins=16,
           spec_size=32, patch_size=4, patch_stride=[4, 4], hidden_size=64, depths=[1, 1], num_attention_heads=[2, 4],
           patch_embeds_hidden_size=32, num_hidden_layers=2, projection_dim=32),
)
VARIANTS = (
    waves("wav2vec2_opset14", "Wav2Vec2ForCTC", "Wav2Vec2Config", **WAVES, exporter="torchscript", opset=14),
    waves("hubert_opset17", "HubertForCTC", "HubertConfig", **WAVES, exporter="torchscript", opset=17,
          attn_implementation="eager"),
    waves("wav2vec2_opset22", "Wav2Vec2ForCTC", "Wav2Vec2Config", **WAVES, opset=22),
)
ARCHITECTURES = (*ENCODERS, *SEQ2SEQS, *SOUND, *VARIANTS)
