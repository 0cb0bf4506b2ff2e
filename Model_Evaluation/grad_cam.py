"""Grad-CAM (Selvaraju et al. 2017) over frames: where in each frame a network finds the evidence for a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.video import MViT, SwinTransformer3d

from Model_Evaluation.frame_maps import fold_back, in_eval_mode, normalise_maps, scale_maps
from Model_Evaluation.picture_sheet import PictureBlock, write_picture_sheet
from Video_Models.models import VideoClassifier

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_OVERLAY_SHARE = 0.6  # of the colour where the map is 1


@dataclass
class _FeatureLayer:
    """Where a network's features are taken from.

    Attributes:
        module: whose output they are, or whose first input.
        to_maps: from features and the number of items to (B, C, t, h, w).
        takes_input: whether they are the module's first input: tokens float (B, 1 + t * h * w, C) of a block of MViT.
        grid: (t, h, w) of these tokens, known once the network has run.
    """

    module: nn.Module
    to_maps: Callable[[Tensor, int], Tensor]
    takes_input: bool = False
    grid: tuple[int, int, int] = field(default=(0, 0, 0))


def compute_grad_cam(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Maps of the evidence for one class an item, of a 2-D or 3-D network as it is in eval mode.

    The channels of the last features that have places are weighted by the gradient of the class's logit, averaged over
    each time step's places. In networks that average over time before they classify, as the inflated VGG does, these
    weights are the same for all steps, as if averaged over time, too. The features are

    - of the VGGs the last convolution's, after BatchNorm and ReLU where these follow;
    - of a clip classifier with convolutions its last block's that has some (after the residual or the branches);
    - of Video Swin its last block's grid; of MViT, which classifies by one token of its own, the tokens that its last
      block gathers that one from.

    Fewer time steps than frames are interpolated, and a frame that is repeated to fit the network takes the mean over
    its repetitions.

    Args:
        inputs: float (B, 3, H, W) or (B, 3, T, H, W), normalised.
        labels: int64 (B,), the class to explain.

    Returns:
        float32 (B, T, H, W) in 0..1, T = 1 for images; an item's largest value is 1, or all are 0 where nothing speaks
        for the class. Parameters, their gradients and training flags stay as they are.

    Raises:
        ValueError: the network has neither a convolution nor a grid of tokens that its logits are made of.
    """
    clips = next((module for module in model.modules() if isinstance(module, VideoClassifier)), None)
    layer = _last_feature_layer(model) if clips is None else _feature_layer_of_clips(clips)
    with in_eval_mode(model), torch.enable_grad():
        features, logits = _features_and_logits(model, layer, inputs)
        chosen = logits.gather(1, labels.to(logits.device)[:, None]).sum()
        gradients = torch.autograd.grad(chosen, features)[0]
    features, gradients = (layer.to_maps(tensor.detach().float(), len(inputs)) for tensor in (features, gradients))
    weights = gradients.mean(dim=(3, 4), keepdim=True)
    maps = (weights * features).sum(dim=1).relu()  # (B, C, t, h, w) -> (B, t, h, w)
    num_seen = maps.shape[1] if clips is None else len(clips.frame_index)
    maps = scale_maps(maps, (num_seen, *inputs.shape[-2:]))
    return normalise_maps(maps if clips is None else fold_back(maps, clips.frame_index, clips.num_frames))


def write_grad_cam(
    path: Path, frames: np.ndarray, maps_by_model: dict[str, np.ndarray], titles: list[str], description: str = ""
) -> None:
    """A sheet as PNG: each item's frames, and below them the maps of each model.

    Args:
        frames: uint8 (N, T, H, W, 3).
        maps_by_model: float (N, T', H, W) in 0..1 by the model's name; a model that sees fewer frames has T' < T.
        titles: one an item.
        description: the picture's text alternative; empty makes one of the titles.
    """
    blocks = []
    for number, title in enumerate(titles):
        rows: list[tuple[list[str], np.ndarray]] = [([], frames[number])]
        for name, maps in maps_by_model.items():
            rows.append(([name], overlay_maps(frames[number][: maps.shape[1]], maps[number])))
        blocks.append(PictureBlock([title], rows))
    models = " and ".join(maps_by_model)
    description = description or f"Grad-CAM of {models} on {len(titles)} items: {'; '.join(titles)}."
    write_picture_sheet(path, blocks, description)


def overlay_maps(frames: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) with maps float (T, H, W) in 0..1 over them: where a map is 0, the frame's pixels."""
    colours = matplotlib.colormaps["inferno"](maps)[..., :3] * 255  # (T, H, W) -> (T, H, W, 3)
    share = _OVERLAY_SHARE * maps[..., None]
    return np.rint(frames * (1 - share) + colours * share).astype(np.uint8)


def _features_and_logits(model: nn.Module, layer: _FeatureLayer, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's features as a leaf, and the logits as a function of them."""
    kept: list[Tensor] = []

    def cut(features: Tensor) -> Tensor:
        kept[:] = [features.detach().requires_grad_()]
        return kept[0].clone()  # a layer that works in place may follow

    def cut_input(_layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, layer.grid = given
        return cut(tokens), layer.grid

    if layer.takes_input:
        handle = layer.module.register_forward_pre_hook(cut_input)
    else:
        handle = layer.module.register_forward_hook(lambda _layer, _inputs, output: cut(output))
    try:
        logits = model(inputs)
    finally:
        handle.remove()
    return kept[0], logits


def _last_feature_layer(model: nn.Module) -> _FeatureLayer:
    """The last convolution, or the ReLU that ends its BatchNorm and ReLU."""
    leaves = [module for module in model.modules() if not list(module.children())]
    positions = [position for position, leaf in enumerate(leaves) if isinstance(leaf, _CONVOLUTIONS)]
    if not positions:
        raise ValueError(f"{type(model).__name__} has no convolution whose output Grad-CAM could weight")
    following = positions[-1] + 1
    while following < len(leaves) and isinstance(leaves[following], _NORMS):
        following += 1
    ends_in_relu = following < len(leaves) and isinstance(leaves[following], nn.ReLU)
    return _FeatureLayer(leaves[following] if ends_in_relu else leaves[positions[-1]], _by_frame)


def _feature_layer_of_clips(model: VideoClassifier) -> _FeatureLayer:
    """The last block with places, found in the order in which the backbone names its blocks."""
    blocks, network = model.backbone.blocks, getattr(model.backbone, "network", None)
    if isinstance(network, MViT):
        layer = _FeatureLayer(blocks[-1], lambda tokens, _: _to_grid(tokens, layer.grid), takes_input=True)
        return layer
    if isinstance(network, SwinTransformer3d):
        return _FeatureLayer(blocks[-1], lambda grid, _: grid.permute(0, 4, 1, 2, 3))  # (B, t, h, w, C)
    with_places = [block for block in blocks if any(isinstance(part, _CONVOLUTIONS) for part in block.modules())]
    if not with_places:
        raise ValueError(f"{type(model.backbone).__name__} has no convolution whose output Grad-CAM could weight")
    return _FeatureLayer(with_places[-1], _of_clips)


def _by_frame(features: Tensor, num_items: int) -> Tensor:
    """Feature maps of images, of clips, or of clips' frames as a batch, all as (B, C, T, h, w)."""
    if features.dim() == 5:
        return features
    by_frame = features.unflatten(0, (-1, num_items))  # (T * B, C, h, w) -> (T, B, C, h, w)
    return by_frame.permute(1, 2, 0, 3, 4)


def _of_clips(features: Tensor, num_items: int) -> Tensor:
    """Feature maps of clips, or of their frames clip by clip (`FrameResNet`), as (B, C, t, h, w)."""
    if features.dim() == 5:
        return features
    return features.unflatten(0, (num_items, -1)).transpose(1, 2)  # (B * T, C, h, w) -> (B, C, T, h, w)


def _to_grid(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Tokens without the first, the classifying one: (B, 1 + t * h * w, C) -> (B, C, t, h, w)."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, tuple(grid))
