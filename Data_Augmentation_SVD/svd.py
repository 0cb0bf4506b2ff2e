"""Stable Video Diffusion (Blattmann et al. 2023) in three phases: encode all, denoise all, decode all.

The networks and the scheduler are diffusers' own; the loop around them is ours, because the pipeline's is made for one
image: it mixes the clips of a batch when `decode_chunk_size` is not `num_frames`, turns NaN into black and infinity
into white pictures, and moves all weights for every image where they do not fit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image
from torch import Tensor

from Data_Augmentation_SVD.generators import ClipError
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.unet_shortcuts import sampling_run, use_exact_shortcuts
from utils.devices import choose_device, describe_device
from utils.errors import InputError
from utils.three_frame_conv import use_three_frame_convs

_PIXELS_ENCODED_AT_ONCE = 16 * 256 * 256  # the encoder may run beside the U-Net, in float32: a small share of memory
_SMALL_PARAMETERS = 100_000_000  # of a U-Net; the published one has 1.5 billion


@dataclass(frozen=True)
class Conditions:
    """What the U-Net is told of one batch. B is always the full batch size: a short batch repeats its last image.

    Attributes:
        image_embeddings: CLIP's view of the images, (B, 1, C).
        image_latents: the VAE's view of the images, (B, 4, h, w).
        noise: where denoising starts, float32 (B, num_frames, 4, h, w), standard normal.
        num_real: how many of the B are asked for.
    """

    image_embeddings: Tensor
    image_latents: Tensor
    noise: Tensor
    num_real: int

    def to(self, device: torch.device) -> Conditions:
        """The same on another device."""
        tensors = {name: getattr(self, name).to(device) for name in ("image_embeddings", "image_latents", "noise")}
        return replace(self, **tensors)


class SvdGenerator:
    """Batches of images to batches of clips; a clip depends on its image and its seed alone.

    That holds to the byte at one batch size, on a CPU for U-Nets below 100 M parameters (any number of cores) and for
    larger ones on one thread; elsewhere to the last digit.

    Args:
        pipeline: a `StableVideoDiffusionPipeline`, taken over: its parts are moved and changed.
        num_frames: frames to generate.
        batch_size: images that go through the networks at once.

    Every other argument is a knob of `SvdSettings`.
    """

    expects_motion = True

    def __init__(
        self,
        pipeline,
        *,
        geometry: Geometry,
        num_frames: int,
        num_inference_steps: int,
        min_guidance_scale: float,
        max_guidance_scale: float,
        fps: int,
        motion_bucket_id: int,
        noise_aug_strength: float,
        decode_chunk_size: int,
        batch_size: int = 1,
        device: str = "auto",
        offload: str = "none",
        attention_slicing: bool = False,
        compile: str = "none",
    ) -> None:
        self._pipeline, self._geometry = pipeline, geometry
        self._num_frames, self._batch_size = num_frames, batch_size
        self._num_steps = num_inference_steps
        self._guidance = torch.linspace(min_guidance_scale, max_guidance_scale, num_frames)
        self._is_guided = max_guidance_scale > 1  # as the pipeline decides it
        self._micro_conditions = (fps, motion_bucket_id, noise_aug_strength)
        self._decode_chunk_size = decode_chunk_size
        self._device = choose_device(device, one_each=True)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # caches, memory figures and graph capture go by the current device
        # Between phases the parts wait on the CPU only where the device cannot hold them all.
        self._offloads = offload == "phases" and self._device.type != "cpu"
        # Encoding runs ahead in another thread, on a stream of its own, where there is one.
        self._encodes_ahead = self._device.type == "cuda" and not self._offloads
        self._stream = torch.cuda.Stream(self._device) if self._encodes_ahead else None
        # A small network gains more from batches side by side than from threads that share one; and on one thread each,
        # no digit depends on the number of cores or on a clip's place in its batch. Large ones need the memory.
        self._is_side_by_side = self._device.type == "cpu" and _num_parameters(pipeline.unet) < _SMALL_PARAMETERS
        self._unet = _prepare_unet(pipeline.unet, num_frames, attention_slicing, compile)
        _prepare_vae(pipeline.vae, min(decode_chunk_size, num_frames))
        if not self._offloads:
            with self._memory_sentence():
                self._move(self._device, "image_encoder", "unet", "vae")

    # --- the three steps of a ClipGenerator ---------------------------------------------------------------------------

    def prepare(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> list[Any]:
        """Fit the images to the working size and, where that overlaps with denoising, encode them.

        Raises:
            InputError: the GPU's memory is too small.
        """
        fitted = [self._geometry.fit_image(image) for image in images]
        size = self._batch_size
        batches = [(fitted[start : start + size], seeds[start : start + size]) for start in range(0, len(fitted), size)]
        if not self._encodes_ahead:
            return batches
        # What is made on this stream is read on the main one: safe, because it is made when this returns, and because
        # the frames have come to the CPU before a chunk is dropped and its memory can be used again.
        with self._memory_sentence(), torch.cuda.stream(self._stream):
            conditions = [self.encode(*batch) for batch in batches]
            self._stream.synchronize()
        return conditions

    def generate(self, prepared: list[Any], should_stop: Callable[[], bool]) -> Iterator[np.ndarray | ClipError]:
        """Denoise all batches, then decode them: uint8 (num_frames, height, width, 3) each, at the working size.

        Asked to stop, it decodes what has been denoised and ends.

        Raises:
            InputError: the GPU's memory is too small.
        """
        return map(_to_frames, self.generate_videos(prepared, should_stop))

    def generate_videos(self, prepared: list[Any], should_stop: Callable[[], bool] = lambda: False) -> Iterator[Tensor]:
        """As `generate`, before quantisation: float32 (num_frames, 3, height, width) each, about -1..1."""
        with self._memory_sentence():
            conditions = prepared
            if not self._encodes_ahead:
                with self._on_device("image_encoder", "vae"):
                    conditions = list(self._map(lambda batch: self.encode(*batch), prepared))
            waiting_place = "cpu" if self._offloads else self._device
            with self._on_device("unet"):
                latents = list(
                    self._map(lambda c: self.denoise(c.to(self._device)).to(waiting_place), conditions, should_stop)
                )
            with self._on_device("vae"):
                videos = self._map(lambda batch: self.decode(batch.to(self._device)), latents)
                for batch, decoded in zip(conditions, videos, strict=False):
                    yield from decoded[: batch.num_real]

    def finish(self, draft: np.ndarray | ClipError, image: np.ndarray) -> np.ndarray:
        """Undo the geometry: uint8 (num_frames, frame_size, frame_size, 3).

        Raises:
            ClipError: the networks returned no picture.
        """
        if isinstance(draft, ClipError):
            raise draft
        return np.stack([self._geometry.restore(frame, *image.shape[:2]) for frame in draft])

    def describe(self) -> dict[str, Any]:
        """Device, types, and the commit of the weights where the hub named one."""
        unet = self._pipeline.unet
        return describe_device(self._device) | {
            "dtype": str(unet.dtype).removeprefix("torch."),
            "model_commit": getattr(self._pipeline, "weights_commit", None),
        }

    # --- phases -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> Conditions:
        """Phase 1, for up to `batch_size` images: uint8 (height, width, 3) each.

        The noise is drawn on the CPU in float32, each clip's from its own generator, in the pipeline's order
        (augmentation, then latents): it depends on no device, batch or type.
        """
        num_real, missing = len(images), self._batch_size - len(images)
        # A short batch would take other kernels, whose last digits differ: fill it up with its last image.
        images, seeds = [*images, *[images[-1]] * missing], [*seeds, *[seeds[-1]] * missing]
        pipeline, generators = self._pipeline, [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        pictures = [Image.fromarray(image) for image in images]
        embeddings = pipeline._encode_image(pictures, self._device, 1, False)
        pixels = pipeline.video_processor.preprocess(pictures, self._geometry.height, self._geometry.width)
        augmentation = torch.cat([torch.randn(1, *pixels.shape[1:], generator=g) for g in generators])
        latents = self._encode_pixels(pixels + self._micro_conditions[2] * augmentation).to(embeddings.dtype)
        # 4 of the U-Net's 8 input channels are the image's, 4 are the noise's.
        shape = (1, self._num_frames, latents.shape[1], *latents.shape[2:])
        noise = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(self._device)
        return Conditions(embeddings, latents, noise, num_real)

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """float32 (B, 3, height, width), about -1..1 -> latents (B, 4, h, w), some images at once."""
        vae, (height, width) = self._pipeline.vae, pixels.shape[2:]
        group = min(len(pixels), max(1, _PIXELS_ENCODED_AT_ONCE // (height * width)))
        missing = -len(pixels) % group  # filled up for the same reason as a short batch
        filled = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels
        filled = filled.to(self._device, _encoder_dtype(vae))
        return torch.cat([vae.encode(part).latent_dist.mode() for part in filled.split(group)])[: len(pixels)]

    @torch.no_grad()
    def denoise(self, conditions: Conditions) -> Tensor:
        """Phase 2: latents (B, num_frames, 4, h, w) of a batch, after all steps of the Euler scheduler."""
        dtype = conditions.image_embeddings.dtype
        scheduler = copy.deepcopy(self._pipeline.scheduler)  # it counts its steps: one for each batch at work
        scheduler.set_timesteps(self._num_steps, device=self._device)
        latents = conditions.noise.to(dtype) * scheduler.init_noise_sigma
        embeddings, image_latents = conditions.image_embeddings, conditions.image_latents
        image_latents = image_latents[:, None].expand(-1, self._num_frames, -1, -1, -1)
        if self._is_guided:  # without and with the image, in one batch (Ho & Salimans 2022)
            embeddings = torch.cat([torch.zeros_like(embeddings), embeddings])
            image_latents = torch.cat([torch.zeros_like(image_latents), image_latents])
        fps, motion_bucket_id, noise_aug_strength = self._micro_conditions
        # SVD was trained to be told fps - 1 (generative-models, simple_video_sample.py).
        added = torch.tensor([[fps - 1, motion_bucket_id, noise_aug_strength]], dtype=dtype, device=self._device)
        added = added.expand(len(embeddings), -1)
        guidance = self._guidance.to(self._device, dtype)[None, :, None, None, None]
        # Batches side by side share the U-Net, which can keep one context at a time.
        with nullcontext() if self._is_side_by_side else sampling_run(self._pipeline.unet):
            for timestep in scheduler.timesteps:
                inputs = torch.cat([latents, latents]) if self._is_guided else latents
                inputs = torch.cat([scheduler.scale_model_input(inputs, timestep), image_latents], dim=2)
                torch.compiler.cudagraph_mark_step_begin()
                predicted = self._unet(inputs, timestep, embeddings, added, return_dict=False)[0]
                if self._is_guided:
                    without, with_image = predicted.chunk(2)
                    predicted = without + guidance * (with_image - without)
                latents = scheduler.step(predicted, timestep, latents).prev_sample
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Phase 3: latents (B, num_frames, 4, h, w) -> float32 (B, num_frames, 3, height, width), about -1..1.

        At most `decode_chunk_size` frames at once, whole clips or parts of one; frames of two clips never share a
        part, because the decoder mixes neighbouring frames.
        """
        vae, (num_clips, num_frames) = self._pipeline.vae, latents.shape[:2]
        latents = latents / vae.config.scaling_factor
        part = min(self._decode_chunk_size, num_frames)
        group = max(1, min(self._decode_chunk_size // num_frames, num_clips))
        videos = []
        for start in range(0, num_clips, group):
            clips = latents[start : start + group]
            missing = group - len(clips)  # filled up for the same reason as a short batch
            clips = torch.cat([clips, clips[-1:].expand(missing, -1, -1, -1, -1)]) if missing else clips
            parts = [
                vae.decode(chunk.flatten(0, 1), num_frames=chunk.shape[1]).sample.unflatten(0, chunk.shape[:2])
                for chunk in clips.split(part, dim=1)
            ]
            videos.append(torch.cat(parts, dim=1)[: group - missing].float())
        return torch.cat(videos)

    # --- places -------------------------------------------------------------------------------------------------------

    def _map(
        self, phase: Callable[[Any], Any], batches: Sequence[Any], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Any]:
        """One phase of each batch, in order: one after the other, or as many at once as there are threads."""
        at_once = torch.get_num_threads() if self._is_side_by_side else 1
        for start in range(0, len(batches), at_once):
            if should_stop():
                return
            group = batches[start : start + at_once]
            if self._is_side_by_side:
                with _one_thread_each(), ThreadPoolExecutor(len(group)) as pool:
                    results = list(pool.map(phase, group))
            else:
                results = [phase(batch) for batch in group]
            yield from results

    @contextmanager
    def _on_device(self, *names: str) -> Iterator[None]:
        """With `offload: phases`, have these parts on the device for a while."""
        if not self._offloads:
            yield
            return
        self._move(self._device, *names)
        try:
            yield
        finally:
            self._move(torch.device("cpu"), *names)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _move(self, device: torch.device, *names: str) -> None:
        for name in names:
            getattr(self._pipeline, name).to(device)

    @contextmanager
    def _memory_sentence(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise InputError(
                f"the GPU's memory is too small for SVD at {self._geometry.height} x {self._geometry.width} with "
                f"batch_size={self._batch_size}; set a smaller batch_size, svd.offload: phases, a smaller "
                "svd.decode_chunk_size, or a smaller geometry.height and geometry.width"
            ) from None


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Within it, an operation runs on the thread that calls it, also in threads that start there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has its own type for its allocator; the libraries below it and other devices only say so in words."""
    words = ("out of memory", "ALLOC_FAILED", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _num_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _prepare_unet(unet, num_frames: int, attention_slicing: bool, compile: str) -> Callable[..., Any]:
    """The U-Net, without work that cannot change its output, sliced and compiled as asked."""
    use_exact_shortcuts(unet, num_frames)
    if attention_slicing:
        for block in unet.modules():
            if isinstance(block, BasicTransformerBlock):  # the temporal ones have a row a pixel, each of a few tokens
                block.attn1.set_attention_slice(1)
    if compile == "none":
        return unet
    return torch.compile(unet, mode={"default": None, "max": "max-autotune"}[compile], dynamic=False)


def _prepare_vae(vae, frames_at_once: int) -> None:
    """The encoder in float32 where the checkpoint asks for it, the decoder without dead work."""
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        vae.encoder.float()
        vae.quant_conv.float()
    if frames_at_once == 3:
        use_three_frame_convs(vae.decoder)


def _encoder_dtype(vae) -> torch.dtype:
    return vae.encoder.conv_in.weight.dtype


def _to_frames(video: Tensor) -> np.ndarray | ClipError:
    """float32 (T, 3, H, W), about -1..1 -> uint8 (T, H, W, 3), or why that is no picture."""
    if not torch.isfinite(video).all():
        reason = "not finite: SVD returned NaN or infinity; use dtype bfloat16 or float32, or another size"
        return ClipError(reason, _quantise(torch.nan_to_num(video, nan=-1.0)))  # black where there is no number
    return _quantise(video)


def _quantise(video: Tensor) -> np.ndarray:
    frames = (video / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # (T, C, H, W) -> (T, H, W, C)
    return (frames * 255).round().to(torch.uint8).cpu().numpy()
