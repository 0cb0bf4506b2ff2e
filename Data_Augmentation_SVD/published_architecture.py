"""SVD's published `img2vid` architecture with random weights: for speed and equality, never for pictures."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from Data_Augmentation_SVD.small_svd_models import build_pipeline


def build_published_unet() -> UNetSpatioTemporalConditionModel:
    """The denoiser: diffusers' defaults are the published values; 1.52 G parameters."""
    return UNetSpatioTemporalConditionModel()


def build_published_vae() -> AutoencoderKLTemporalDecoder:
    """The autoencoder with the temporal decoder; 98 M parameters."""
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=768,
        scaling_factor=0.18215,
    )


def build_published_image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP ViT-H/14's vision tower with its projection; 632 M parameters."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1024,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            hidden_act="gelu",
        )
    )


def build_random_pipeline(device: torch.device, dtype: torch.dtype, seed: int = 0) -> StableVideoDiffusionPipeline:
    """The whole pipeline, made on the device in its final type: 4.5 GB in half precision, 9 GB in float32."""
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            parts: list[nn.Module] = [build_published_vae(), build_published_unet(), build_published_image_encoder()]
    finally:
        torch.set_default_dtype(default)
    vae, unet, image_encoder = (part.to(dtype) for part in parts)
    return build_pipeline(vae, unet, image_encoder)
