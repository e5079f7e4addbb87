"""Models of transformers that take text with images, or sound, or places on a page."""

from __future__ import annotations

from models.zoo.base import VOCABULARY, Architecture
from models.zoo.keywords import Input, called
from models.zoo.transformers import SMALL

TOKENS = Input(("batch", "sequence"), VOCABULARY)
ONES = Input(("batch", "sequence"), 2)
BOXES = Input(("batch", "sequence", 4), 2)
"""All of one pixel: boxes that end before they start have no place in the tables of widths and heights."""
PIXELS = Input(("batch", 3, 32, 32))
TEXT = {**SMALL, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0}
VISION = {**SMALL, "hidden_size": 48, "patch_size": 8, "image_size": 32}
PAGE = {**TEXT, "max_2d_position_embeddings": 64, "num_labels": 6}
LOGITS = ("logits_per_image", "text_embeds", "image_embeds")


def pair(name: str, model: str, config: str, pick: str | tuple[str, ...] = LOGITS, *,
         text: dict[str, object] | None = None, vision: dict[str, object] | None = None,
         **options: object) -> Architecture:
    """input_ids [batch, sequence] with pixel_values [batch, 3, 32, 32]: an encoder for each. text, vision: what their
    configurations have besides."""
    inputs = {"input_ids": TOKENS, "pixel_values": PIXELS}
    return called(name, "multimodal", model, config, inputs, pick, text_config={**TEXT, **(text or {})},
                  vision_config={**VISION, **(vision or {})}, **options)


PAIRS = (
    pair("clip", "CLIPModel", "CLIPConfig", projection_dim=32),
    pair("clip_eager", "CLIPModel", "CLIPConfig", projection_dim=32, attn_implementation="eager"),
    pair("metaclip_2", "MetaClip2Model", "MetaClip2Config", projection_dim=32),
    pair("siglip", "SiglipModel", "SiglipConfig", text={"projection_size": 48}),
    pair("chinese_clip", "ChineseCLIPModel", "ChineseCLIPConfig", projection_dim=32),
    pair("altclip", "AltCLIPModel", "AltCLIPConfig", projection_dim=32, text={"project_dim": 48}),
    pair("blip", "BlipModel", "BlipConfig", projection_dim=32, text={"encoder_hidden_size": 48}),
    pair("blip_caption", "BlipForConditionalGeneration", "BlipConfig", "logits", text={"encoder_hidden_size": 48}),
    pair("blip_retrieval", "BlipForImageTextRetrieval", "BlipConfig", "itm_score", text={"encoder_hidden_size": 48},
         image_text_hidden_size=32),
    pair("align", "AlignModel", "AlignConfig", projection_dim=80,
         vision={"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}),
    pair("owlvit", "OwlViTModel", "OwlViTConfig", projection_dim=32),
    pair("owlvit_detector", "OwlViTForObjectDetection", "OwlViTConfig", ("logits", "pred_boxes"), projection_dim=64),
    pair("groupvit", "GroupViTModel", "GroupViTConfig", projection_dim=32, projection_intermediate_dim=64,
         vision={"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4], "num_hidden_layers": 2}),
    pair("clipseg", "CLIPSegForImageSegmentation", "CLIPSegConfig", "logits", projection_dim=32, reduce_dim=32,
         extract_layers=[0, 1], decoder_intermediate_size=64),
    pair("flava", "FlavaModel", "FlavaConfig", "multimodal_embeddings", hidden_size=64, projection_dim=32,
         image_config={**VISION}, multimodal_config={**SMALL}),
    called("git", "multimodal", "GitForCausalLM", "GitConfig", {"input_ids": TOKENS, "pixel_values": PIXELS}, "logits",
           **TEXT, vision_config=VISION, use_cache=False),
    called("aimv2", "multimodal", "Aimv2Model", "Aimv2Config", {"input_ids": TOKENS, "pixel_values": PIXELS}, LOGITS,
           projection_dim=32, text_config=TEXT, vision_config=VISION),
    called("x_clip", "multimodal", "XCLIPModel", "XCLIPConfig",
           {"input_ids": TOKENS, "pixel_values": Input(("batch", 2, 3, 32, 32))}, "logits_per_video", text_config=TEXT,
           vision_config={**VISION, "num_frames": 2, "mit_hidden_size": 32, "mit_intermediate_size": 64,
                          "mit_num_attention_heads": 4}, projection_dim=32, prompt_num_attention_heads=4),
    called("clap", "multimodal", "ClapModel", "ClapConfig",
           {"input_ids": TOKENS, "input_features": Input(("batch", 1, 64, 16))}, ("logits_per_audio", "text_embeds"),
           projection_dim=32, text_config=TEXT,
           audio_config={"window_size": 4, "num_mel_bins": 16, "spec_size": 32, "patch_size": 4, "patch_stride": [4, 4],
                         "hidden_size": 64, "depths": [1, 1], "num_attention_heads": [2, 4],
                         "patch_embeds_hidden_size": 32, "num_hidden_layers": 2}),
)
FUSED = (
    called("bridgetower", "multimodal", "BridgeTowerForImageAndTextRetrieval", "BridgeTowerConfig",
           {"input_ids": TOKENS, "attention_mask": ONES, "pixel_values": PIXELS}, "logits", hidden_size=64,
           num_attention_heads=4, num_hidden_layers=2, text_config=TEXT,
           vision_config={"hidden_size": 64, "num_hidden_layers": 2, "patch_size": 8, "image_size": 32}),
    called("visual_bert", "multimodal", "VisualBertForQuestionAnswering", "VisualBertConfig",
           {"input_ids": TOKENS, "attention_mask": ONES, "visual_embeds": Input(("batch", 5, 32))}, "logits", **TEXT,
           visual_embedding_dim=32, num_labels=10),
    called("layoutlm_boxes", "multimodal", "LayoutLMForTokenClassification", "LayoutLMConfig",
           {"input_ids": TOKENS, "bbox": BOXES}, "logits", **PAGE),
    called("layoutlmv3", "multimodal", "LayoutLMv3ForTokenClassification", "LayoutLMv3Config",
           {"input_ids": TOKENS, "bbox": BOXES, "attention_mask": ONES, "pixel_values": PIXELS}, "logits", **PAGE,
           coordinate_size=8, shape_size=16, input_size=32, patch_size=8),
    called("layoutlmv3_text", "multimodal", "LayoutLMv3ForSequenceClassification", "LayoutLMv3Config",
           {"input_ids": TOKENS, "bbox": BOXES, "attention_mask": ONES}, "logits", **PAGE, coordinate_size=8,
           shape_size=16, visual_embed=False),
    called("lilt_boxes", "multimodal", "LiltForTokenClassification", "LiltConfig", {"input_ids": TOKENS, "bbox": BOXES},
           "logits", **{**PAGE, "hidden_size": 96}),
)
READERS = (
    called("vit_gpt2", "multimodal", "VisionEncoderDecoderModel", "VisionEncoderDecoderConfig",
           {"pixel_values": PIXELS, "decoder_input_ids": TOKENS}, "logits",
           encoder={"model_type": "vit", **VISION},
           decoder={"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4,
                    "n_positions": 64, "add_cross_attention": True, "is_decoder": True, "use_cache": False}),
    called("trocr", "multimodal", "VisionEncoderDecoderModel", "VisionEncoderDecoderConfig",
           {"pixel_values": PIXELS, "decoder_input_ids": TOKENS}, "logits",
           encoder={"model_type": "deit", **VISION},
           decoder={"model_type": "trocr", "vocab_size": VOCABULARY, "d_model": 64, "decoder_layers": 2,
                    "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
                    "add_cross_attention": True, "is_decoder": True, "use_cache": False, "pad_token_id": 0}),
    called("donut", "multimodal", "VisionEncoderDecoderModel", "VisionEncoderDecoderConfig",
           {"pixel_values": PIXELS, "decoder_input_ids": TOKENS}, "logits",
           encoder={"model_type": "donut-swin", "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4],
                    "window_size": 4, "patch_size": 4, "image_size": 32},
           decoder={"model_type": "mbart", "vocab_size": VOCABULARY, "d_model": 64, "decoder_layers": 2,
                    "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
                    "add_cross_attention": True, "is_decoder": True, "use_cache": False, "pad_token_id": 0}),
)
ARCHITECTURES = (*PAIRS, *FUSED, *READERS)
