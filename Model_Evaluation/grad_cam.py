"""Grad-CAM (Selvaraju et al. 2017) over frames: where in each frame a network finds the evidence for a class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from Model_Evaluation.picture_sheet import PictureBlock, write_picture_sheet

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_OVERLAY_SHARE = 0.6  # of the colour where the map is 1


def compute_grad_cam(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Maps of the evidence for one class an item, of a 2-D or 3-D network as it is in eval mode.

    The last convolution's channels (after BatchNorm and ReLU, where these follow) are weighted by the gradient of the
    class's logit, averaged over each frame's pixels. In networks that average over frames before they classify, as
    the inflated VGG does, these weights are the same for all frames, as if averaged over time, too.

    Args:
        inputs: float (B, 3, H, W) or (B, 3, T, H, W), normalised.
        labels: int64 (B,), the class to explain.

    Returns:
        float32 (B, T, H, W) in 0..1, T = 1 for images; an item's largest value is 1, or all are 0 where nothing speaks
        for the class. Parameters, their gradients and training flags stay as they are.

    Raises:
        ValueError: the network has no convolution.
    """
    with _in_eval_mode(model), torch.enable_grad():
        features, logits = _features_and_logits(model, inputs)
        chosen = logits.gather(1, labels.to(logits.device)[:, None]).sum()
        gradients = torch.autograd.grad(chosen, features)[0]
    features, gradients = (_by_frame(tensor.detach().float(), len(inputs)) for tensor in (features, gradients))
    weights = gradients.mean(dim=(3, 4), keepdim=True)
    maps = (weights * features).sum(dim=1).relu()  # (B, C, T, h, w) -> (B, T, h, w)
    maps = functional.interpolate(maps, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
    largest = maps.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(largest > 0, maps / largest, 0.0)


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


def _features_and_logits(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The last convolution's output, as a leaf of the graph, and the logits made of it."""
    kept: list[Tensor] = []

    def cut(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept[:] = [output.detach().requires_grad_()]
        return kept[0].clone()  # a layer that works in place may follow

    handle = _last_feature_layer(model).register_forward_hook(cut)
    try:
        logits = model(inputs)
    finally:
        handle.remove()
    return kept[0], logits


def _last_feature_layer(model: nn.Module) -> nn.Module:
    """The last convolution, or the ReLU that ends its BatchNorm and ReLU."""
    leaves = [module for module in model.modules() if not list(module.children())]
    positions = [position for position, leaf in enumerate(leaves) if isinstance(leaf, _CONVOLUTIONS)]
    if not positions:
        raise ValueError(f"{type(model).__name__} has no convolution whose output Grad-CAM could weight")
    following = positions[-1] + 1
    while following < len(leaves) and isinstance(leaves[following], _NORMS):
        following += 1
    ends_in_relu = following < len(leaves) and isinstance(leaves[following], nn.ReLU)
    return leaves[following] if ends_in_relu else leaves[positions[-1]]


def _by_frame(features: Tensor, num_items: int) -> Tensor:
    """Feature maps of images, of clips, or of clips' frames as a batch, all as (B, C, T, h, w)."""
    if features.dim() == 5:
        return features
    by_frame = features.unflatten(0, (-1, num_items))  # (T * B, C, h, w) -> (T, B, C, h, w)
    return by_frame.permute(1, 2, 0, 3, 4)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in flags:
            module.training = was_training
