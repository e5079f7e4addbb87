"""Time series models of transformers."""

from __future__ import annotations

from models.zoo.keywords import Input, called

CONTEXT, N_CHANNELS = 32, 3
SERIES = {"past_values": Input(("batch", CONTEXT, N_CHANNELS))}
PATCHES = {"context_length": CONTEXT, "num_input_channels": N_CHANNELS, "patch_length": 4, "patch_stride": 4,
           "d_model": 32, "prediction_length": 8}
PATCHTST = {**PATCHES, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "loss": "mse"}
MIXER = {**PATCHES, "num_layers": 2, "loss": "mse"}
LAGGED = {"prediction_length": 8, "context_length": 16, "lags_sequence": [1, 2, 3], "num_time_features": 2,
          "d_model": 32, "use_cache": False}
PAST = {"past_values": Input(("batch", 19)), "past_time_features": Input(("batch", 19, 2)),
        "past_observed_mask": Input(("batch", 19), 2), "future_values": Input(("batch", 8)),
        "future_time_features": Input(("batch", 8, 2))}

ARCHITECTURES = (
    called("patchtst", "encoder", "PatchTSTForPrediction", "PatchTSTConfig", SERIES, "prediction_outputs", **PATCHTST),
    called("patchtst_classifier", "encoder", "PatchTSTForClassification", "PatchTSTConfig", SERIES,
           "prediction_logits", **PATCHTST, num_targets=5, use_cls_token=True, channel_attention=True,
           norm_type="layernorm", attn_implementation="eager"),
    called("patchtst_regression", "encoder", "PatchTSTForRegression", "PatchTSTConfig", SERIES, "regression_outputs",
           **PATCHTST, num_targets=5, share_projection=False),
    called("patchtsmixer", "encoder", "PatchTSMixerForPrediction", "PatchTSMixerConfig", SERIES, "prediction_outputs",
           **MIXER),
    called("patchtsmixer_channels", "encoder", "PatchTSMixerForTimeSeriesClassification", "PatchTSMixerConfig", SERIES,
           "prediction_outputs", **MIXER, mode="mix_channel", norm_mlp="BatchNorm", num_targets=5, self_attn=True,
           self_attn_heads=4),
    called("time_series_transformer", "encoder-decoder", "TimeSeriesTransformerModel", "TimeSeriesTransformerConfig",
           PAST, "last_hidden_state", **LAGGED),
    called("timesfm", "decoder", "TimesFmModel", "TimesFmConfig",
           {"past_values": Input(("batch", CONTEXT)), "past_values_padding": Input(("batch", CONTEXT)),
            "freq": Input(("batch", 1), 3)}, "last_hidden_state", patch_length=8, context_length=CONTEXT,
           horizon_length=8, num_hidden_layers=2, hidden_size=64, intermediate_size=96, head_dim=16,
           num_attention_heads=4),
)
