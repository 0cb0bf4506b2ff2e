"""Settings of the generation stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from utils.config import Fraction, InputPath, NonNegativeFloat, NonNegativeInt, PositiveInt, Settings

# Spelled out here so that a config is checked before torch is imported; a test compares it with the registry.
GENERATORS = ("svd", "static", "camera_motion")
_LatentSize = Annotated[int, Field(ge=64, multiple_of=64)]  # must survive the VAE's 8x and the U-Net's 8x down-sampling


class SvdSettings(Settings):
    """Stable Video Diffusion's own knobs; the paper's values, else the pipeline's defaults.

    Attributes:
        height, width: size at which SVD runs; larger is sharper and slower (cost grows faster than the area).
        num_inference_steps: more steps, more detail; time grows in proportion.
        min_guidance_scale, max_guidance_scale: guidance of the first and of the last frame, linear in between. Higher
            follows the image more closely, with harsher contrast; equal values treat all frames alike.
        fps: the frame rate SVD is told; higher asks for less motion from frame to frame.
        motion_bucket_id: higher, more motion (0..255).
        noise_aug_strength: noise added to the conditioning image; higher, less like the image and more motion.
        decode_chunk_size: frames decoded at once; lower needs less memory, and changes pixels a little.
        dtype: `auto` is float16 on a GPU, float32 on a CPU.
        cpu_offload: keep on the GPU only the part that runs; slower, for cards below about 12 GB.
    """

    height: _LatentSize = 576
    width: _LatentSize = 1024
    num_inference_steps: PositiveInt = 12
    min_guidance_scale: NonNegativeFloat = 1.0
    max_guidance_scale: NonNegativeFloat = 3.0
    fps: Annotated[int, Field(ge=2)] = 7
    motion_bucket_id: Annotated[int, Field(ge=0, le=255)] = 127
    noise_aug_strength: NonNegativeFloat = 0.02
    decode_chunk_size: PositiveInt = 8
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    cpu_offload: bool = False


class CameraMotionSettings(Settings):
    """A camera that pans and zooms over the still image.

    Attributes:
        shift_fraction: pan from frame to frame as a fraction of the image's side; higher, faster.
        zoom_per_frame: magnification from frame to frame; 1.0 is no zoom.
    """

    shift_fraction: Annotated[float, Field(ge=0, le=0.25)] = 0.03
    zoom_per_frame: Annotated[float, Field(gt=0.5, lt=2)] = 1.03


class GenerationSettings(Settings):
    """`make_svd_videos.py`.

    Attributes:
        data_root: a folder with our image index, or the raw Tiny ImageNet layout.
        wnids_file: one class a line, in label order (raw layout only).
        output_dir: where `train/`, `val/`, `train.csv`, `val.csv` are written.
        splits: which splits to make clips of.
        generator: `svd`, or a control: `static` (no motion), `camera_motion` (pan and zoom).
        diffusion_model: hub id or local folder of the SVD checkpoint.
        num_frames: frames a clip.
        frame_size: side of the saved frames in pixels; even.
        output_fps: frame rate written into the MP4; for viewing only.
        seed: each clip's noise comes from this and its image's content, whatever the order.
        max_failed_fraction: end with exit code 2 when a larger share of the clips fails.
    """

    data_root: InputPath
    wnids_file: InputPath | None = None
    output_dir: Path = Path("svd_videos")
    splits: Annotated[tuple[Literal["train", "val"], ...], Field(min_length=1)] = ("train", "val")
    generator: str = "svd"
    diffusion_model: Annotated[str, Field(min_length=1)] = "stabilityai/stable-video-diffusion-img2vid"
    num_frames: Annotated[int, Field(ge=1, validation_alias=AliasChoices("num_frames", "time_dim"))] = 3
    frame_size: Annotated[int, Field(ge=16, le=4096, multiple_of=2)] = 224
    output_fps: Annotated[int, Field(ge=1, le=1000)] = 6
    seed: NonNegativeInt = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    max_failed_fraction: Fraction = 0.01
    svd: SvdSettings = SvdSettings()
    camera_motion: CameraMotionSettings = CameraMotionSettings()
    overwrite: bool = False

    @field_validator("generator")
    @classmethod
    def _known_generator(cls, name: str) -> str:
        if name not in GENERATORS:
            raise ValueError(f"unknown generator {name!r}; known: {', '.join(sorted(GENERATORS))}")
        return name

    @model_validator(mode="after")
    def _is_consistent(self) -> GenerationSettings:
        if len(set(self.splits)) != len(self.splits):
            raise ValueError("splits: a split is listed twice; keep one of them")
        if self.generator == "svd" and self.num_frames < 2:
            raise ValueError("num_frames: SVD makes at least 2 frames; use generator: static for one")
        if self.svd.max_guidance_scale <= 1 < self.svd.min_guidance_scale:
            # The pipeline decides by the maximum whether to guide at all, and fails if the minimum says otherwise.
            raise ValueError(
                "svd.max_guidance_scale: must be above 1 where svd.min_guidance_scale is, or both at most 1"
            )
        return self
