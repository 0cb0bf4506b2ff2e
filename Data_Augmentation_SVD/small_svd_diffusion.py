"""The diffusion that SVD learns: noise levels, preconditioning, and the loss of one batch.

SVD is trained in the frame of Karras et al. 2022 (EDM, arXiv:2206.00364) with the preconditioning of Blattmann et al.
2023 (arXiv:2311.15127, appendix on the training of the image and video models):

    D(x; s) = c_skip x + c_out F(c_in x; c_noise),      x = x0 + s n,  n ~ N(0, 1)
    c_skip = 1 / (s^2 + 1),  c_out = -s / sqrt(s^2 + 1),  c_in = 1 / sqrt(s^2 + 1),  c_noise = log(s) / 4

and the loss weight (1 + s^2) / s^2. As that weight is 1 / c_out^2, the weighted error of D is the plain error of F
against v = (n - s x0) / sqrt(s^2 + 1): the "v-prediction" of diffusers' EulerDiscreteScheduler.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from Data_Augmentation_SVD.small_svd_models import embed_images


def scale_input(noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """c_in x: noisy latents of any level, with unit variance."""
    return noisy / _like(sigma.square() + 1, noisy).sqrt()


def noise_condition(sigma: torch.Tensor) -> torch.Tensor:
    """c_noise: what the network is told of the noise level; the scheduler's continuous timestep."""
    return sigma.log() / 4


def compute_v(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """What the network has to answer, of the latents' shape and unit variance."""
    level = _like(sigma, clean)
    return (noise - level * clean) / (level.square() + 1).sqrt()


def denoise(noisy: torch.Tensor, v: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """D: the clean latents that an answer stands for, c_skip x + c_out v."""
    level = _like(sigma, noisy)
    return noisy / (level.square() + 1) - v * level / (level.square() + 1).sqrt()


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pixels.float() / 127.5 - 1


def draw_log_normal(count: int, log_mean: float, log_std: float, generator: torch.Generator) -> torch.Tensor:
    """Positive numbers whose logarithm is normal, float32 (count,)."""
    return (torch.randn(count, generator=generator) * log_std + log_mean).exp()


def compute_vae_loss(
    vae: nn.Module, frames: torch.Tensor, kl_weight: float, generator: torch.Generator
) -> torch.Tensor:
    """Squared error of the reconstruction, and the pull of the latents to a normal distribution.

    Args:
        frames: (B, T, 3, H, W) in -1..1.
        kl_weight: of the divergence per latent number.
    """
    num_frames = frames.shape[1]
    flat = frames.flatten(0, 1)  # (B, T, 3, H, W) -> (B * T, 3, H, W)
    posterior = vae.encode(flat).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(flat.device)  # drawn on the CPU: device-free
    latents = posterior.mean + posterior.std * noise
    reconstruction = vae.decode(latents, num_frames=num_frames).sample.float()
    divergence = posterior.kl().mean() / latents[0].numel()
    return functional.mse_loss(reconstruction, flat) + kl_weight * divergence


@torch.no_grad()
def encode_images(vae: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE gives them, *not* scaled: (N, 3, H, W) in -1..1 -> float32 (N, C, H / 8, W / 8)."""
    return vae.encode(images).latent_dist.mode().float()


def compute_unet_loss(
    vae: nn.Module,
    unet: nn.Module,
    image_encoder: nn.Module,
    batch: dict[str, torch.Tensor],
    *,
    sigma_log_mean: float,
    sigma_log_std: float,
    conditioning_dropout: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """The mean squared error of v over a batch; the conditioning is put together as the pipeline does it.

    Args:
        batch: frames (B, T, 3, H, W) in -1..1, their scaled latents (B, T, C, h, w), and fps, motion_bucket_id,
            noise_aug_strength (B,).
        generator: of the CPU, so that every device sees the same noise.
    """
    clean, images, strength = batch["latents"], batch["frames"][:, 0], batch["noise_aug_strength"]
    count, num_frames, device = len(clean), clean.shape[1], clean.device
    # 1. Noise the clip
    sigma = draw_log_normal(count, sigma_log_mean, sigma_log_std, generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    noisy = clean + _like(sigma, clean) * noise
    # 2. Condition on its first frame, or on nothing. The pipeline scales the latents of the clip, not the image's.
    image_noise = torch.randn(images.shape, generator=generator).to(device)
    kept = (torch.rand(count, generator=generator) >= conditioning_dropout).float().to(device)
    image_latents = encode_images(vae, images + _like(strength, images) * image_noise) * _like(kept, images)
    embedding = embed_images(image_encoder, images) * kept.view(-1, 1, 1)
    # The network hears fps - 1, as SVD did; see `_get_add_time_ids` and its caller in diffusers' pipeline.
    time_ids = torch.stack([batch["fps"] - 1, batch["motion_bucket_id"], strength], dim=1)
    # 3. Ask the network: (B, T, C, h, w) twice -> (B, T, 2C, h, w)
    repeated = image_latents.unsqueeze(1).expand(-1, num_frames, -1, -1, -1)
    inputs = torch.cat([scale_input(noisy, sigma), repeated], dim=2)
    answer = unet(inputs, noise_condition(sigma), encoder_hidden_states=embedding, added_time_ids=time_ids).sample
    return functional.mse_loss(answer.float(), compute_v(clean, noise, sigma))


def _like(values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One number an item, shaped to multiply `target` (B, ...)."""
    return values.view(-1, *(1,) * (target.dim() - 1))
