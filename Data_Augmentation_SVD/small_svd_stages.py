"""The two trainings of a small SVD, the VAE's and the U-Net's: networks, data and loss of each."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from Data_Augmentation_SVD.settings import SmallSvdSettings
from Data_Augmentation_SVD.small_svd_data import ClipBatches, SurveyedClips
from Data_Augmentation_SVD.small_svd_diffusion import compute_unet_loss, compute_vae_loss, encode_images, scale_pixels
from Data_Augmentation_SVD.small_svd_models import build_image_encoder, build_unet, build_vae
from utils.learner import Recipe
from utils.utils import progress, set_seed

log = logging.getLogger(__name__)
_INITIAL_WEIGHTS, _VAE_STREAM, _UNET_STREAM = 0, 1, 2  # streams of random numbers


@dataclass
class Networks:
    """The three networks in training, and the averages of the last two that are saved."""

    vae: nn.Module
    unet: nn.Module
    image_encoder: nn.Module
    average: nn.ModuleDict


@dataclass(frozen=True)
class Stage:
    """One of the two trainings: what is trained, for how long, and what its loss is.

    Attributes:
        stream: number of its random stream.
        follow: what happens after each update, given the step.
    """

    name: str
    stream: int
    steps: int
    batch_size: int
    learning_rate: float
    parameters: list[nn.Parameter]
    compute_loss: Callable[[dict[str, torch.Tensor], torch.Generator], torch.Tensor]
    follow: Callable[[int], None] = lambda step: None


def build_networks(settings: SmallSvdSettings, device: torch.device) -> Networks:
    """Networks with the initial weights that the seed draws."""
    set_seed(settings.seed, _INITIAL_WEIGHTS)
    latents = settings.latent_channels
    vae = build_vae(channels=settings.vae_channels, latent_channels=latents, image_size=settings.image_size)
    unet = build_unet(
        channels=settings.unet_channels,
        latent_channels=latents,
        latent_size=settings.image_size // 8,
        num_frames=settings.num_frames,
    )
    image_encoder = build_image_encoder(embedding_dim=settings.unet_channels[0])
    average = nn.ModuleDict({"unet": copy.deepcopy(unet), "image_encoder": copy.deepcopy(image_encoder)})
    for name, network in (("VAE", vae), ("U-Net", unet), ("CLIP tower", image_encoder)):
        log.info("%s: %.2f M parameters", name, sum(p.numel() for p in network.parameters()) / 1e6)
    return Networks(vae.to(device), unet.to(device), image_encoder.to(device), average.requires_grad_(False).to(device))


def vae_stage(networks: Networks, settings: SmallSvdSettings) -> Stage:
    """The autoencoder, from pixels to pixels."""

    def compute_loss(batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        return compute_vae_loss(networks.vae, batch["frames"], settings.kl_weight, generator)

    return Stage(
        name="vae",
        stream=_VAE_STREAM,
        steps=settings.vae_steps,
        batch_size=settings.vae_batch_size,
        learning_rate=settings.vae_learning_rate,
        parameters=list(networks.vae.parameters()),
        compute_loss=compute_loss,
    )


def unet_stage(networks: Networks, settings: SmallSvdSettings) -> Stage:
    """The denoiser, in the finished autoencoder's latents; the CLIP tower learns with it, from nothing."""
    trained = nn.ModuleDict({"unet": networks.unet, "image_encoder": networks.image_encoder})

    def compute_loss(batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        return compute_unet_loss(
            networks.vae,
            networks.unet,
            networks.image_encoder,
            batch,
            sigma_log_mean=settings.sigma_log_mean,
            sigma_log_std=settings.sigma_log_std,
            conditioning_dropout=settings.conditioning_dropout,
            generator=generator,
        )

    @torch.no_grad()
    def follow(step: int) -> None:
        # The first averages are short: (1 + n) / (10 + n) is TensorFlow's rule, which diffusers' EMAModel has, too.
        decay = min(settings.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(networks.average.parameters()), list(trained.parameters()), 1 - decay)

    return Stage(
        name="unet",
        stream=_UNET_STREAM,
        steps=settings.unet_steps,
        batch_size=settings.unet_batch_size,
        learning_rate=settings.unet_learning_rate,
        parameters=list(trained.parameters()),
        compute_loss=compute_loss,
        follow=follow,
    )


def encode_clips(networks: Networks, clips: SurveyedClips, recipe: Recipe) -> list[torch.Tensor]:
    """Every clip's latents, scaled to unit variance: the data of the diffusion. One (T, C, h, w) a clip, on the CPU.

    The VAE's config learns what they were scaled with. All are kept in memory, once: a twelfth of the decoded clips'
    bytes with 4 latent channels, 22 MB for the 2,400 clips of 9 frames of 64 x 64.
    """
    latents = []
    for position in progress(range(len(clips.paths)), len(clips.paths), "encoding clips", every=500):
        images = torch.from_numpy(clips.read(position)).permute(0, 3, 1, 2)  # (T, H, W, 3) -> (T, 3, H, W)
        with recipe.autocast():
            encoded = encode_images(networks.vae, scale_pixels(images.to(recipe.device)))
        latents.append(encoded.cpu().clone())  # may be a view of as many numbers again, the logarithms of variances
    deviation = _standard_deviation(latents)
    networks.vae.register_to_config(scaling_factor=1 / deviation)
    log.info("the latents' standard deviation is %.3f; scaling_factor %.5f", deviation, 1 / deviation)
    for part in latents:
        part.div_(deviation)  # in place: a second copy would double the memory
    return latents


def _standard_deviation(parts: list[torch.Tensor]) -> float:
    """Of all numbers in all parts, in two passes, so that no copy of all is made."""
    count = sum(part.numel() for part in parts)
    mean = sum(part.sum(dtype=torch.float64).item() for part in parts) / count
    squares = sum((part.double() - mean).square().sum().item() for part in parts)
    return math.sqrt(squares / (count - 1))


def build_batches(
    stage: Stage, clips: SurveyedClips, settings: SmallSvdSettings, latents: list[torch.Tensor] | None
) -> ClipBatches:
    """The samples of a stage; those of the U-Net come with their latents."""
    return ClipBatches(
        clips,
        batch_size=stage.batch_size,
        num_frames=settings.num_frames,
        seed=settings.seed,
        stage=stage.stream,
        max_stride=settings.max_stride,
        still_fraction=settings.still_fraction,
        full_motion_px=settings.full_motion_px,
        fps_range=settings.fps_range,
        noise_aug_log_mean=settings.noise_aug_log_mean,
        noise_aug_log_std=settings.noise_aug_log_std,
        latents=latents,
    )
