"""Stable Video Diffusion (Blattmann et al. 2023) as a clip generator, through diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from Data_Augmentation_SVD.generators import ClipError
from utils.devices import choose_device
from utils.errors import InputError
from utils.images import resize_and_centre_crop


class SvdGenerator:
    """One clip per call, with the paper's geometry: the image stretched to `width` x `height`, frames centre-cropped.

    Args:
        pipeline: a `StableVideoDiffusionPipeline`; every other argument is a knob of `SvdSettings`.
    """

    def __init__(
        self,
        pipeline,
        *,
        num_frames: int,
        frame_size: int,
        height: int,
        width: int,
        num_inference_steps: int,
        min_guidance_scale: float,
        max_guidance_scale: float,
        fps: int,
        motion_bucket_id: int,
        noise_aug_strength: float,
        decode_chunk_size: int,
    ) -> None:
        self._pipeline = pipeline
        self._frame_size = frame_size
        self._size = (width, height)
        self._options = {
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "min_guidance_scale": min_guidance_scale,
            "max_guidance_scale": max_guidance_scale,
            "fps": fps,
            "motion_bucket_id": motion_bucket_id,
            "noise_aug_strength": noise_aug_strength,
            "decode_chunk_size": min(decode_chunk_size, num_frames),
        }

    def generate(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Generate one clip: uint8 (H, W, 3) -> uint8 (num_frames, frame_size, frame_size, 3).

        Raises:
            ClipError: the network returned numbers that are no picture (NaN or infinity).
            InputError: the device's memory is too small.
        """
        stretched = Image.fromarray(image).resize(self._size, Image.Resampling.BICUBIC)
        # The generator lives on the CPU, so that the noise does not depend on the device.
        generator = torch.Generator("cpu").manual_seed(seed)
        try:
            video = self._generate(stretched, generator)
        except torch.OutOfMemoryError:
            width, height = self._size
            raise InputError(
                f"the GPU's memory is too small for SVD at {height} x {width}; set svd.cpu_offload: true, a smaller "
                "svd.decode_chunk_size, or a smaller svd.height and svd.width"
            ) from None
        if not torch.isfinite(video).all():
            raise ClipError("SVD returned NaN or infinity; use dtype bfloat16 or float32, or another size")
        frames = self._pipeline.video_processor.postprocess_video(video=video, output_type="np")[0]
        frames = (frames * 255).round().astype(np.uint8)  # float (T, H, W, 3), 0..1 -> uint8
        return np.stack([resize_and_centre_crop(frame, self._frame_size) for frame in frames])

    @torch.no_grad()
    def _generate(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        """Float (1, 3, T, H, W), about -1..1: decoded here, because the pipeline clamps infinity to white."""
        latents = self._pipeline(image, generator=generator, output_type="latent", **self._options).frames
        return self._pipeline.decode_latents(latents, self._options["num_frames"], self._options["decode_chunk_size"])


def load_pipeline(diffusion_model: str, device: str, dtype: str, *, cpu_offload: bool):
    """Load a `StableVideoDiffusionPipeline` from a local folder or the hub.

    Args:
        diffusion_model: a folder in diffusers' format, or a hub id.
        device: `auto`, `cpu`, `cuda[:n]` or `mps`.
        dtype: `auto`, `float16`, `bfloat16` or `float32`.

    Raises:
        InputError: the weights cannot be had, with what to do.
    """
    from diffusers import StableVideoDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    device = str(choose_device(device))
    dtype = ("float32" if device == "cpu" else "float16") if dtype == "auto" else dtype
    local = Path(diffusion_model).is_dir()
    if not local and not _is_hub_id(diffusion_model):
        raise InputError(
            f"diffusion_model: {diffusion_model!r} is neither a folder nor a hub id (owner/name); correct it"
        )
    try:
        pipeline = StableVideoDiffusionPipeline.from_pretrained(
            diffusion_model, dtype=getattr(torch, dtype), local_files_only=local
        )
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, SafetensorError) as error:
        raise InputError(_explain_load_error(diffusion_model, local, error)) from error
    pipeline.set_progress_bar_config(disable=True)
    if cpu_offload and device != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and all(name.split("/"))


def _explain_load_error(diffusion_model: str, local: bool, error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if local:
        return (
            f"diffusion_model: {diffusion_model} is not a complete SVD checkpoint in diffusers' format ({first_line})"
        )
    return (
        f"diffusion_model: {diffusion_model} cannot be had from the model hub ({first_line}); on a machine with "
        f"network run 'hf download {diffusion_model}', copy the folder here and set diffusion_model to its path"
    )
