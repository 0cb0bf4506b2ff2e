"""Settings of the generation stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from utils.config import Fraction, InputPath, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings
from utils.settings import Device

# Spelled out here so that a config is checked before torch is imported; a test compares it with the registry.
GENERATORS = ("svd", "static", "camera_motion")
_WorkingSize = Annotated[int, Field(ge=64, multiple_of=64)]  # survives the VAE's 8x and the U-Net's 8x down-sampling
_FrameSize = Annotated[int, Field(ge=16, le=4096, multiple_of=2)]
_Width = Annotated[int, Field(ge=32, multiple_of=32)]  # GroupNorm's 32 groups
_VaeChannels = Annotated[tuple[_Width, ...], Field(min_length=4, max_length=4)]
_UnetChannels = Annotated[tuple[_Width, ...], Field(min_length=1)]
_Splits = Annotated[tuple[Literal["train", "val"], ...], Field(min_length=1)]
_PAPER_MODEL = "stabilityai/stable-video-diffusion-img2vid"


class GeometrySettings(Settings):
    """How an image gets into the network's size, and its frames out again.

    The controls (`static`, `camera_motion`) pass through the same geometry, so that they differ in motion alone.

    Attributes:
        height, width: size at which frames are generated; larger is sharper and slower (cost grows faster than the
            area). Multiples of 64.
        fit: `pad` keeps the whole image and its proportions and repeats the border's pixels around it; `crop` keeps
            the proportions and loses what sticks out; `stretch` keeps the whole image and distorts it.
        output: `undo` removes the padding or the stretch; the saved frame is square, so that of an image that is not,
            the central square is left (`visible_fraction` in the index says how much). `centre_crop` scales the
            shorter side to `frame_size` and keeps what is in the centre, distortion and padding included (as the
            paper did).
    """

    height: _WorkingSize = 576
    width: _WorkingSize = 1024
    fit: Literal["pad", "crop", "stretch"] = "stretch"
    output: Literal["undo", "centre_crop"] = "centre_crop"


class SvdSettings(Settings):
    """Stable Video Diffusion's own knobs; the paper's values, else the pipeline's defaults.

    Attributes:
        num_inference_steps: more steps, more detail; time grows in proportion.
        min_guidance_scale, max_guidance_scale: guidance of the first and of the last frame, linear in between. Higher
            follows the image more closely, with harsher contrast; equal values treat all frames alike; a maximum of
            at most 1 turns guidance off and halves the time.
        fps: the frame rate SVD is told; higher asks for less motion from frame to frame.
        motion_bucket_id: higher, more motion (0..255).
        noise_aug_strength: noise added to the conditioning image; higher, less like the image and more motion.
        decode_chunk_size: frames decoded at once, of whole clips as far as they fit; lower needs less memory. Below the
            clip's length it also changes pixels a little, because the decoder looks at neighbouring frames.
        dtype: `auto` is float16 on a GPU, float32 on a CPU.
        offload: `phases` keeps on the GPU only the part that works (encoder, U-Net or decoder) and moves each once a
            chunk: for cards below about 12 GB. `none` keeps all parts there; faster.
        attention_slicing: compute the spatial attention head by head; less memory, slower, and only of use where the
            device has no memory-efficient attention (old GPUs, mps).
        compile: `default` compiles the U-Net (minutes once, then faster), `max` also tunes its kernels and captures
            them as CUDA graphs: pays for long runs, most at small sizes. `none` starts at once.
    """

    num_inference_steps: PositiveInt = 12
    min_guidance_scale: NonNegativeFloat = 1.0
    max_guidance_scale: NonNegativeFloat = 3.0
    fps: Annotated[int, Field(ge=2)] = 7
    motion_bucket_id: Annotated[int, Field(ge=0, le=255)] = 127
    noise_aug_strength: NonNegativeFloat = 0.02
    decode_chunk_size: PositiveInt = 8
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    offload: Literal["none", "phases"] = "none"
    attention_slicing: bool = False
    compile: Literal["none", "default", "max"] = "none"


class CameraMotionSettings(Settings):
    """A camera that pans and zooms over the still image.

    Attributes:
        shift_fraction: pan from frame to frame as a fraction of the image's side; higher, faster.
        zoom_per_frame: magnification from frame to frame; 1.0 is no zoom.
    """

    shift_fraction: Annotated[float, Field(ge=0, le=0.25)] = 0.03
    zoom_per_frame: Annotated[float, Field(gt=0.5, lt=2)] = 1.03


class CheckSettings(Settings):
    """What a clip must be like to count; one that is not goes to `quarantine/`, with its reason in the index.

    Attributes:
        min_source_correlation: lowest correlation of any frame's brightness with the source's; higher refuses more
            clips that lost their subject ("collapsed").
        max_saturated_fraction: largest share of a frame's values at 0 or 255 beyond the source's own share; lower
            refuses more burnt-out clips.
        min_contrast: lowest standard deviation of a frame's brightness, in grey levels, where the source has at least
            twice as much; higher refuses more clips that are nearly one colour ("black").
        min_motion: lowest mean difference of successive frames, in grey levels; higher refuses more clips that stand
            still ("frozen"). Not asked of the `static` control.
    """

    min_source_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.05
    max_saturated_fraction: Fraction = 0.5
    min_contrast: NonNegativeFloat = 2.0
    min_motion: NonNegativeFloat = 0.01


class GenerationSettings(Settings):
    """`make_svd_videos.py`.

    Attributes:
        data_root: a folder with our image index, or the raw Tiny ImageNet layout.
        wnids_file: one class a line, in label order (raw layout only).
        output_dir: where `train/`, `val/`, `train.csv`, `val.csv` are written.
        splits: which splits to make clips of.
        generator: `svd`, or a control: `static` (no motion), `camera_motion` (pan and zoom).
        diffusion_model: hub id or local folder of the SVD checkpoint.
        model_revision: the hub's branch, tag or commit; a commit pins the weights.
        num_frames: frames kept in a clip.
        native_frames: frames generated, of which `num_frames` are kept at equal distances, first and last included;
            null generates only what is kept. More is slower and spreads the motion wider. SVD was trained on 14.
        first_frame: `generated`, or `original` to put the image itself in the first frame's place.
        clips_per_image: clips made of each image, each with its own noise.
        frame_size: side of the saved frames in pixels; even.
        output_fps: frame rate written into the MP4, for viewing; with `h264` the encoder spends its bits by it, so that
            pixels change a little.
        codec: `h264` (crf 18, as small as the published clips) or `h264_lossless` (exact pixels, several times larger).
        seed: each clip's noise comes from this and its image's content, whatever the order.
        batch_size: images generated at once; faster on a GPU until its memory is full. The noise does not depend on
            it; the last digit of a pixel may.
        chunk_size: images that go through one phase (encode, denoise, decode) before the next, rounded up to whole
            batches; larger moves weights less often with `svd.offload: phases` and loses more work to a kill.
        shard: `i/n` makes the i-th of n parts (1/4 ... 4/4), for job arrays; `merge_shards` joins the indices.
        retry_failed: try again the clips that an earlier run gave up; one that was made and rejected gets its next
            seed, one that never came to be keeps its own.
        max_failed_fraction: end with exit code 2 when a larger share of the clips is bad.
    """

    data_root: InputPath
    wnids_file: InputPath | None = None
    output_dir: Path = Path("svd_videos")
    splits: _Splits = ("train", "val")
    generator: str = "svd"
    diffusion_model: Annotated[str, Field(min_length=1)] = _PAPER_MODEL
    model_revision: str | None = None
    num_frames: Annotated[int, Field(ge=1, validation_alias=AliasChoices("num_frames", "time_dim"))] = 3
    native_frames: PositiveInt | None = None
    first_frame: Literal["generated", "original"] = "generated"
    clips_per_image: PositiveInt = 1
    frame_size: _FrameSize = 224
    output_fps: Annotated[int, Field(ge=1, le=1000)] = 6
    codec: Literal["h264", "h264_lossless"] = "h264"
    seed: NonNegativeInt = 0
    device: Device = "auto"
    batch_size: PositiveInt = 1
    chunk_size: PositiveInt = 64
    shard: str | None = None
    retry_failed: bool = False
    max_failed_fraction: Fraction = 0.1
    geometry: GeometrySettings = GeometrySettings()
    svd: SvdSettings = SvdSettings()
    camera_motion: CameraMotionSettings = CameraMotionSettings()
    checks: CheckSettings = CheckSettings()
    overwrite: bool = False

    @property
    def kept_frames(self) -> tuple[int, ...]:
        """Positions of the kept frames among the generated ones, first and last included."""
        last = (self.native_frames or self.num_frames) - 1
        if self.num_frames == 1:
            return (0,)
        return tuple(round(step * last / (self.num_frames - 1)) for step in range(self.num_frames))

    @field_validator("generator")
    @classmethod
    def _known_generator(cls, name: str) -> str:
        if name not in GENERATORS:
            raise ValueError(f"unknown generator {name!r}; known: {', '.join(sorted(GENERATORS))}")
        return name

    @field_validator("shard")
    @classmethod
    def _is_a_part(cls, shard: str | None) -> str | None:
        if shard is None:
            return None
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"must be i/n with i from 1 to n, such as 1/4, not {shard!r}")
        return f"{int(match[1])}/{int(match[2])}"

    @model_validator(mode="after")
    def _is_consistent(self) -> GenerationSettings:
        if len(set(self.splits)) != len(self.splits):
            raise ValueError("splits: a split is listed twice; keep one of them")
        native_frames = self.native_frames or self.num_frames
        if native_frames < self.num_frames:
            raise ValueError(
                f"native_frames: {native_frames} generated frames cannot give num_frames={self.num_frames}; set "
                "native_frames to at least num_frames, or null"
            )
        if self.generator == "svd" and native_frames < 2:
            raise ValueError("num_frames: SVD makes at least 2 frames; use generator: static for one")
        if self.svd.max_guidance_scale <= 1 < self.svd.min_guidance_scale:
            # The pipeline decides by the maximum whether to guide at all, and fails if the minimum says otherwise.
            raise ValueError(
                "svd.max_guidance_scale: must be above 1 where svd.min_guidance_scale is, or both at most 1"
            )
        return self


class MergeSettings(Settings):
    """`merge_shards.py`.

    Attributes:
        output_dir: the folder that the shards were written to.
        data_root: the images, if they have moved since.
    """

    output_dir: InputPath
    data_root: InputPath | None = None


class ClipQualitySettings(Settings):
    """`clip_quality.py`.

    Attributes:
        clips_root: a folder with `train/`, `val/` and their indices (ours, or the published ones).
        split: which of them.
        clips_csv: the index, e.g. one that `adopt_published` wrote; null takes `clips_root/{split}.csv`.
        images_root: the folder that `source_path` is relative to (an image set, or the raw Tiny ImageNet layout); null
            takes the `data_root` that `clips_root/config.yaml` records, if the sources are there still, or else leaves
            out what needs them.
        geometry: how the sources got into the clips; null takes what `clips_root/config.yaml` records, or else the
            paper's.
        checks: what counts as a fault; the clips stay where they are.
        output_dir: where the tables, `summary.json`, the contact sheet and the previews are written.
        max_clips: look at so many clips, evenly chosen; null looks at all. Time and memory grow with it: some 60 ms and
            2 kB a clip.
        sheet_clips: clips on the contact sheet, worst first; 0 draws none.
        num_previews: animated GIFs of the worst clips.
    """

    clips_root: InputPath
    split: Literal["train", "val"] = "val"
    clips_csv: Path | None = None
    images_root: InputPath | None = None
    geometry: GeometrySettings | None = None
    checks: CheckSettings = CheckSettings()
    output_dir: Path
    max_clips: PositiveInt | None = None
    sheet_clips: Annotated[int, Field(ge=0, le=400)] = 40  # a PNG of 20,000 rows is the most that viewers open
    num_previews: NonNegativeInt = 8
    overwrite: bool = False

    @model_validator(mode="after")
    def _is_beside_the_clips(self) -> ClipQualitySettings:
        if self.output_dir.resolve().is_relative_to(self.clips_root.resolve()):
            raise ValueError(f"output_dir: {self.output_dir} lies inside clips_root; choose a folder beside the clips")
        return self


class AdoptionSettings(Settings):
    """`adopt_published.py`.

    Attributes:
        clips_root: the published data set: `train/`, `val/`, `train.csv`, `val.csv`.
        raw_root: the raw Tiny ImageNet layout, or the image set that Data_Sourcing made of it (whose hashes are then
            the clips' `source_sha256`: give what the 2-D network is trained on).
        wnids_file: one class a line, in the published label order; null takes the paper's ten.
        output_dir: where the indices are written; outside `clips_root` and `raw_root`.
        min_similarity: lowest correlation of detail in a clip's frame 0 and in its source; higher matches fewer clips
            and errs less often.
        min_margin: how much more similar the match must be than the next best image of the class; likewise.
        max_failed_fraction: end with exit code 2 when a larger share of the clips of a split is damaged.
    """

    clips_root: InputPath
    raw_root: InputPath
    wnids_file: InputPath | None = None
    output_dir: Path
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.2
    min_margin: Annotated[float, Field(ge=0, le=1)] = 0.1
    max_failed_fraction: Fraction = 0.01
    overwrite: bool = False

    @model_validator(mode="after")
    def _writes_beside_its_inputs(self) -> AdoptionSettings:
        for name, root in (("clips_root", self.clips_root), ("raw_root", self.raw_root)):
            if self.output_dir.resolve().is_relative_to(root.resolve()):
                raise ValueError(f"output_dir: lies in {name}, which must stay as it is; choose a folder outside it")
        return self


class SmallSvdSettings(Settings):
    """`train_small_svd.py`.

    Attributes:
        data_root: a folder of clips with indices, as this stage writes them (or the published ones).
        split: which split to learn from; the other one, where there is one, is only looked at.
        output_dir: the checkpoint in diffusers' folder format, training state, losses and a figure.
        image_size: side of the training frames; a multiple of 64. Larger clips are scaled down to it.
        num_frames: frames a training sample; clips must hold at least as many.
        max_stride: samples take every 1st to every max_stride-th frame, as far as a clip reaches; higher shows the
            network faster motion.
        still_fraction: share of the samples that stand still (frame 0 repeated), told as motion bucket 0.
        full_motion_px: motion in pixels a frame at 7 frames a second that is told as motion bucket 255.
        fps_range: lowest and highest frame rate that is told; one sample's motion is told with rates all over it.
        noise_aug_log_mean, noise_aug_log_std: of the log-normal noise on the conditioning image; higher, less like the
            image, and more robust to generated or noisy images.
        sigma_log_mean, sigma_log_std: of the log-normal noise level of the diffusion; a higher mean trains the coarse
            (what moves where), a lower one the fine.
        vae_channels: width of the VAE's levels, each a multiple of 32; three halvings lie between the four.
        unet_channels: width of the U-Net's levels, each a multiple of 32.
        latent_channels: channels of a latent pixel; more keep more detail.
        kl_weight: pull of the latents to a normal distribution; higher, smoother latents and blurrier pictures.
        vae_steps, unet_steps: updates; more is better and slower.
        vae_batch_size, unet_batch_size: clips an update; larger is steadier and slower.
        vae_learning_rate, unet_learning_rate: of AdamW, cosine to 0.
        conditioning_dropout: share of the clips that are trained without their image, for guidance.
        ema_decay: of the averaged U-Net weights that are saved.
        precision: `bf16` computes the networks in half precision; where the hardware has it, about twice as fast.
        log_every_n_steps: one line and one row of `history.csv`.
        save_every_n_steps: how much work a kill can cost.
        cache_mb: memory for decoded clips; those beyond it are decoded each time they are drawn.
        workers: processes that read clips beside the training; 0 reads in between.
        seed: of initial weights, clips, noise.
    """

    data_root: InputPath
    split: Literal["train", "val"] = "train"
    output_dir: Path
    image_size: _WorkingSize = 64
    num_frames: Annotated[int, Field(ge=2)] = 3
    max_stride: PositiveInt = 4
    still_fraction: Fraction = 0.05
    full_motion_px: PositiveFloat = 3.0
    fps_range: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2)]] = (4, 12)
    noise_aug_log_mean: float = -3.5
    noise_aug_log_std: NonNegativeFloat = 0.7
    sigma_log_mean: float = 0.7
    sigma_log_std: PositiveFloat = 1.6
    vae_channels: _VaeChannels = (32, 32, 64, 64)
    unet_channels: _UnetChannels = (32, 64)
    latent_channels: PositiveInt = 4
    kl_weight: NonNegativeFloat = 1e-5
    vae_steps: PositiveInt = 1500
    unet_steps: PositiveInt = 1800
    vae_batch_size: PositiveInt = 2
    unet_batch_size: PositiveInt = 16
    vae_learning_rate: PositiveFloat = 1e-3
    unet_learning_rate: PositiveFloat = 1e-3
    conditioning_dropout: Fraction = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every_n_steps: PositiveInt = 50
    save_every_n_steps: PositiveInt = 250
    cache_mb: NonNegativeInt = 1024
    workers: NonNegativeInt = 0
    device: Device = "auto"
    seed: NonNegativeInt = 0
    overwrite: bool = False

    @model_validator(mode="after")
    def _is_consistent(self) -> SmallSvdSettings:
        if self.fps_range[0] > self.fps_range[1]:
            raise ValueError(f"fps_range: the lowest, {self.fps_range[0]}, is above the highest, {self.fps_range[1]}")
        levels = len(self.unet_channels) - 1
        if self.image_size // 8 % 2**levels:
            raise ValueError(
                f"unet_channels: {levels} halvings do not fit the {self.image_size // 8} latent pixels of "
                f"image_size={self.image_size}; use fewer levels"
            )
        return self
