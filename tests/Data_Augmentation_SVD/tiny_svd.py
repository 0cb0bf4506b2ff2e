"""Stable Video Diffusion through diffusers' own classes, at a size with random weights that a CPU runs in a moment.

Also what the tests of it share: the number of threads, the embedded checkpoint and its digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import PROJECT
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Sourcing.demo_dataset import run_demo_dataset
from Data_Sourcing.settings import DemoDatasetSettings
from utils.config import build_settings, read_yaml

COMPONENTS = ("unet", "vae", "image_encoder", "scheduler", "feature_extractor")
# The smallest at which these networks do not amplify rounding: with a fourth level, or flatter, the deepest GroupNorm
# would be over two numbers, and no two orders of summation agree.
SIZE_PX = 64
EMBEDDED = PROJECT / "Data_Augmentation_SVD" / "small_svd"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch's operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For every test of a module that imports it: sums may depend on the number of threads, and a second one waits."""
    with threads(1):
        yield


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


def settings_for(data_root: Path, output: Path, model: Path | str, **keys) -> GenerationSettings:
    """A run of the generation stage with `svd` on the CPU, at the tiny size; anything counts as a clip."""
    content = {"data_root": str(data_root), "output_dir": str(output), "generator": "svd", "device": "cpu"}
    content |= {"diffusion_model": str(model), "frame_size": 32, "codec": "h264_lossless"}
    content |= {"geometry": {"height": SIZE_PX, "width": SIZE_PX}, "svd": {"num_inference_steps": 3}}
    content |= {"checks": {"min_source_correlation": -1, "max_saturated_fraction": 1, "min_contrast": 0}}
    return build_settings(GenerationSettings, content | keys, "test")


def settings_of_the_demo(data_root: Path, output: Path, **keys) -> GenerationSettings:
    """The quickstart's clips: the embedded checkpoint, 12 steps, on the CPU."""
    content = read_yaml(PROJECT / "Data_Augmentation_SVD" / "demo.yaml")
    content |= {"data_root": str(data_root), "output_dir": str(output), "device": "cpu"}
    return build_settings(GenerationSettings, content | {"diffusion_model": str(EMBEDDED)} | keys, "test")


def write_digits(root: Path, **keys: int) -> Path:
    """The quickstart's digits in the raw layout; `train_per_class` and `val_per_class` make them fewer."""
    raw = read_yaml(PROJECT / "Data_Sourcing" / "demo_dataset.yaml") | {"output_dir": str(root)}
    return run_demo_dataset(build_settings(DemoDatasetSettings, raw | keys, "test"))
