"""ResNet-18 on frames (He et al. 2016): each frame's features on their own, fused by their mean over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from Video_Models.backbone import Backbone
from Video_Models.registry import FAMILIES
from Video_Models.torchvision_weights import load_network, read_torchvision_weights

_LAYERS = (2, 2, 2, 2)


class FrameResNet(Backbone):
    """A 2-D ResNet that sees a clip as a bag of frames: their order does not matter, each of them does.

    Args:
        network: torchvision's ResNet; its last layer is taken away.
    """

    def __init__(self, network: ResNet) -> None:
        super().__init__(network.fc.in_features)
        network.fc = nn.Identity()
        self.network = network

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks."""
        stages = (self.network.layer1, self.network.layer2, self.network.layer3, self.network.layer4)
        return [block for stage in stages for block in stage]

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, T, H, W) -> (B, feature_width)."""
        frames = clip.transpose(1, 2).flatten(0, 1)  # (B, C, T, H, W) -> (B * T, C, H, W)
        return self.network(frames).unflatten(0, (len(clip), -1)).mean(dim=1)  # (B * T, F) -> (B, F)


def build_backbone(
    weights: str | Path | None,
    *,
    num_frames: int,
    image_size: int,
    config: dict[str, Any] | None = None,
) -> FrameResNet:
    """ResNet-18 for any clip; `num_frames` and `image_size` change nothing of it.

    Args:
        weights: `pretrained` (ImageNet), a file with torchvision's names, or None for random ones.
        config: `layers`, the residual blocks of each stage.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: an unknown key.
    """
    del num_frames, image_size
    FAMILIES["resnet18"].check_config(config)
    backbone = FrameResNet(ResNet(BasicBlock, list((config or {}).get("layers", _LAYERS))))
    if weights is not None:
        state_dict, path = read_torchvision_weights(weights, "resnet18")
        load_network(backbone.network, state_dict, path, head_names=("fc",))
    return backbone
