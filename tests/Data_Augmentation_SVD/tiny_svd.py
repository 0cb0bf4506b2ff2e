"""Stable Video Diffusion through diffusers' own classes, at a size with random weights that a CPU runs in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from Data_Augmentation_SVD.settings import GenerationSettings
from utils.config import build_settings

COMPONENTS = ("unet", "vae", "image_encoder", "scheduler", "feature_extractor")
# The smallest at which these networks do not amplify rounding: with a fourth level, or flatter, the deepest GroupNorm
# would be over two numbers, and no two orders of summation agree.
SIZE_PX = 64


def build_tiny_pipeline() -> StableVideoDiffusionPipeline:
    """The published checkpoint's classes and scheduler, with few channels: 8x in the VAE, 4x in the U-Net."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
        block_out_channels=(64, 32, 32),  # 32 channels in 32 groups normalise away what the U-Net is told of time
        layers_per_block=1,
        num_attention_heads=(1, 2, 2),
        cross_attention_dim=16,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        latent_channels=4,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,  # the pipeline always shows it 224 x 224
        patch_size=56,
        projection_dim=16,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    pipeline = StableVideoDiffusionPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def smooth_image(seed: int, height: int = 48, width: int = 48) -> np.ndarray:
    """uint8 (height, width, 3): coloured blobs."""
    few = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC))


def settings_for(data_root: Path, output: Path, model: Path | str, **keys) -> GenerationSettings:
    """A run of the generation stage with `svd` on the CPU, at the tiny size; anything counts as a clip."""
    content = {"data_root": str(data_root), "output_dir": str(output), "generator": "svd", "device": "cpu"}
    content |= {"diffusion_model": str(model), "frame_size": 32, "codec": "h264_lossless"}
    content |= {"geometry": {"height": SIZE_PX, "width": SIZE_PX}, "svd": {"num_inference_steps": 3}}
    content |= {"checks": {"min_source_correlation": -1, "max_saturated_fraction": 1, "min_contrast": 0}}
    return build_settings(GenerationSettings, content | keys, "test")
