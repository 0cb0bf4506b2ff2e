"""Where any network looks in what it saw: Grad-CAM where it has features with places, else attention roll-out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from Model_Evaluation.frame_maps import normalise_maps
from Model_Evaluation.grad_cam import compute_grad_cam
from Model_Evaluation.models import InputFormat
from utils.augmentation import Preprocessing
from Video_Models.models import VideoClassifier

GRAD_CAM, ROLLOUT = "grad_cam", "attention"  # how the sheets' names begin


def compute_heat_maps(
    network: nn.Module, form: InputFormat, frames: np.ndarray, labels: Tensor, *, is_fused: bool = False
) -> np.ndarray:
    """Maps of one network's items; of several clips of an item, or frames looked at by themselves, each by itself.

    Args:
        frames: uint8 (N, T, H, W, 3).
        labels: int64 (N,), the class to explain by Grad-CAM; a roll-out knows no classes.
        is_fused: whether the network looks at each frame by itself.

    Returns:
        float32 (N, T, H, W) in 0..1.

    Raises:
        ValueError: neither method knows this network.
    """
    device = next(network.parameters()).device
    inputs = Preprocessing(form.mean, form.std)(torch.from_numpy(frames).permute(0, 4, 1, 2, 3).to(device))
    length = 1 if is_fused or form.num_frames is None else form.num_frames
    maps = []
    for item, label in zip(inputs.split(1), labels.to(device).split(1), strict=True):  # one by one: maps take memory
        maps.append(torch.cat([_map_of(network, form, clip, label) for clip in item.split(length, dim=2)], dim=1))
    return torch.cat(maps).cpu().numpy()


def method_of(network: nn.Module) -> str:
    """`attention` for the transformers that keep all their tokens, `grad_cam` for all others."""
    return GRAD_CAM if _attentive(network) is None else ROLLOUT


def _map_of(network: nn.Module, form: InputFormat, clip: Tensor, label: Tensor) -> Tensor:
    """Of one pass of the network: float (1, 3, T, H, W) -> (1, T, H, W)."""
    num_frames = clip.shape[2]
    if form.num_frames is None:
        clip = clip[:, :, 0]  # (1, 3, 1, H, W) -> (1, 3, H, W)
    elif num_frames != form.num_frames:
        clip = clip.expand(-1, -1, form.num_frames, -1, -1)  # a picture, repeated
    maps = _map_of_clip(network, clip, label)
    return maps if maps.shape[1] == num_frames else normalise_maps(maps.mean(dim=1, keepdim=True))


def _map_of_clip(network: nn.Module, clip: Tensor, label: Tensor) -> Tensor:
    transformer = _attentive(network)
    if transformer is None:
        return compute_grad_cam(network, clip, label)
    from Model_Evaluation.attention_rollout import compute_attention_rollout  # imports transformers

    return compute_attention_rollout(transformer, clip)


def _attentive(network: nn.Module) -> VideoClassifier | None:
    """The clip classifier within, where it can tell its attention; asking for its class would import transformers."""
    found = next((module for module in network.modules() if isinstance(module, VideoClassifier)), None)
    return found if found is not None and hasattr(found.backbone, "compute_attentions") else None
