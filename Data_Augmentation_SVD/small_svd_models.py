"""A very small Stable Video Diffusion: the published model's own classes, 10 to 20 times narrower and shallower.

Every part is the diffusers or transformers class that the published checkpoint names, with the published scheduler;
only widths and depths differ, so that whatever loads or runs the one loads and runs the other. At the widths of the
embedded checkpoint the U-Net has 1.31 M parameters, about 1,160 times fewer than the published 1.52 G.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from utils.files import PARTIAL_SUFFIX

_CLIP_SIZE_PX = 224  # the pipeline resizes to it, whatever the encoder
_TIME_ID_DIM = 32  # sinusoids for each of fps, motion bucket and noise augmentation


def build_vae(*, channels: tuple[int, ...], latent_channels: int, image_size: int) -> AutoencoderKLTemporalDecoder:
    """The autoencoder: an image (3, H, W) becomes latents (latent_channels, H / 8, W / 8) with four levels.

    Args:
        channels: width of each level, finest first; every level but the last halves the size.
    """
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        sample_size=image_size,
        scaling_factor=1.0,  # measured after training
    )
    # The noise of the latents starts small: from its usual 1 the first hundreds of steps only make it so.
    nn.init.constant_(vae.quant_conv.bias.data[latent_channels:], -6.0)  # the logarithm of its variance
    return vae


def build_unet(
    *, channels: tuple[int, ...], latent_channels: int, latent_size: int, num_frames: int
) -> UNetSpatioTemporalConditionModel:
    """The denoiser, (B, T, 2 * latent_channels, h, w) -> (B, T, latent_channels, h, w); no attention at the coarsest.

    Args:
        channels: width of each level, finest first.
    """
    finer = len(channels) - 1
    return UNetSpatioTemporalConditionModel(
        sample_size=latent_size,
        in_channels=2 * latent_channels,  # noisy latents and the image's
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * finer + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * finer,
        block_out_channels=channels,
        addition_time_embed_dim=_TIME_ID_DIM,
        projection_class_embeddings_input_dim=3 * _TIME_ID_DIM,
        layers_per_block=1,
        cross_attention_dim=channels[0],
        num_attention_heads=tuple(width // 32 for width in channels),
        num_frames=num_frames,
    )


def build_image_encoder(*, embedding_dim: int) -> CLIPVisionModelWithProjection:
    """The CLIP tower, (B, 3, 224, 224) -> image_embeds (B, embedding_dim); the U-Net attends to its one vector."""
    config = CLIPVisionConfig(
        hidden_size=embedding_dim,
        intermediate_size=2 * embedding_dim,
        projection_dim=embedding_dim,
        num_hidden_layers=2,
        num_attention_heads=embedding_dim // 16,
        image_size=_CLIP_SIZE_PX,
        patch_size=32,
    )
    return CLIPVisionModelWithProjection(config)


def build_scheduler() -> EulerDiscreteScheduler:
    """SVD's scheduler with SVD's settings: v-prediction, Karras noise levels from 700 to 0.002."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        interpolation_type="linear",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )


def build_pipeline(
    vae: AutoencoderKLTemporalDecoder, unet: UNetSpatioTemporalConditionModel, image_encoder: nn.Module
) -> StableVideoDiffusionPipeline:
    """The parts as diffusers' pipeline, ready to generate or to save."""
    pipeline = StableVideoDiffusionPipeline(
        vae=vae.eval(),
        image_encoder=image_encoder.eval(),
        unet=unet.eval(),
        scheduler=build_scheduler(),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_checkpoint(pipeline: StableVideoDiffusionPipeline, folder: Path) -> None:
    """Write diffusers' folder format beside `folder`, then rename: `folder` is whole, or not there.

    VAE and U-Net are stored in half precision and loaded in single. The CLIP tower stays in single precision: diffusers
    would load its halves as halves, and the pipeline would then compute its latents with them.
    """
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    for part in (pipeline.vae, pipeline.unet):
        part.half()
    try:
        pipeline.save_pretrained(partial, safe_serialization=True)
    finally:
        for part in (pipeline.vae, pipeline.unet):
            part.float()
    for path in sorted(partial.rglob("*")):
        _fsync(path)
    shutil.rmtree(folder, ignore_errors=True)  # what lost its model_index.json is not a checkpoint
    partial.replace(folder)
    _fsync(folder.parent)


def _fsync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def embed_images(image_encoder: CLIPVisionModelWithProjection, images: torch.Tensor) -> torch.Tensor:
    """What the U-Net attends to, computed as the pipeline does: (B, 3, H, W) in -1..1 -> (B, 1, embedding_dim)."""
    resized = (_resize_with_antialiasing(images, (_CLIP_SIZE_PX, _CLIP_SIZE_PX)) + 1) / 2
    processor = CLIPImageProcessor()
    mean = torch.tensor(processor.image_mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(processor.image_std, device=images.device).view(3, 1, 1)
    return image_encoder((resized - mean) / std).image_embeds.unsqueeze(1)
