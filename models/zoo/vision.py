"""Image models of transformers."""

from __future__ import annotations

from models.zoo.transformers import SMALL, classifier

ARCHITECTURES = (
    classifier("vit", "ViTForImageClassification", "ViTConfig", core=True, **SMALL, patch_size=8,
               attn_implementation="eager"),
    classifier("swin", "SwinForImageClassification", "SwinConfig", core=True, embed_dim=32, depths=[2, 2],
               num_heads=[2, 4], window_size=4, patch_size=2),
)
