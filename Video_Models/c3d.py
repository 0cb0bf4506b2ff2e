"""C3D (Tran et al. 2015): eight 3 x 3 x 3 convolutions, five poolings, two wide layers; for any number of frames."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.pooling import adaptive_average
from Video_Models.backbone import Backbone
from Video_Models.registry import FAMILIES
from Video_Models.torchvision_weights import load_network, read_torchvision_weights

# Channels of the convolutions before each of the five poolings (Tran et al. 2015, figure 3).
_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_LETTERS = "ab"
_FC_WIDTH = 4096
_GRID = 4  # the last map at 112 pixels, as wide and as high


class C3D(Backbone):
    """C3D without its last layer; at 16 x 112 x 112 the published network, parameter by parameter.

    Every pooling rounds up, so that no frame or border is dropped: 3 frames become 2, then 1, and stay 1; 16 become 8,
    4, 2, 1 as published. What is left of longer clips is averaged over time, and maps of other sizes to 4 x 4 (at 112
    pixels neither does anything). So the parameters are the same for all clips.

    Args:
        width_multiplier: of all channels and both wide layers; 1 is the published network.
        dropout: after each of the wide layers; 0.5 is the published value.
    """

    def __init__(self, *, width_multiplier: float = 1.0, dropout: float = 0.5) -> None:
        fc_width = _scaled(_FC_WIDTH, width_multiplier)
        super().__init__(fc_width)
        self.features = nn.Sequential(_convolutions(width_multiplier))
        channels = _scaled(_STAGES[-1][-1], width_multiplier)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc6=nn.Sequential(nn.Linear(channels * _GRID**2, fc_width), nn.ReLU(), nn.Dropout(dropout)),
                fc7=nn.Sequential(nn.Linear(fc_width, fc_width), nn.ReLU(), nn.Dropout(dropout)),
            )
        )
        for module in self.modules():
            _initialise(module)

    @property
    def blocks(self) -> list[nn.Module]:
        """The eight convolutions and the two wide layers."""
        return [*(block for name, block in self.features.named_children() if name.startswith("conv")), *self.classifier]

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, T, H, W) -> (B, feature_width)."""
        features = self.features(clip).mean(dim=2)  # (B, C, t, h, w) -> (B, C, h, w)
        return self.classifier(adaptive_average(features, (_GRID, _GRID)).flatten(1))


def build_backbone(
    weights: str | Path | None,
    *,
    num_frames: int,
    image_size: int,
    config: dict[str, Any] | None = None,
) -> C3D:
    """C3D for any clip; `num_frames` and `image_size` change nothing of it.

    Args:
        weights: None for random ones, or a file with this module's names; none are published.
        config: `width_multiplier`, `dropout`.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: an unknown key.
    """
    del num_frames, image_size
    FAMILIES["c3d"].check_config(config)
    backbone = C3D(**(config or {}))
    if weights is not None:
        state_dict, path = read_torchvision_weights(weights, "c3d")
        load_network(backbone, state_dict, path, head_names=())
    return backbone


def _convolutions(width_multiplier: float) -> OrderedDict[str, nn.Module]:
    """Named as in the paper: conv1, pool1, conv2, pool2, conv3a, conv3b, ..., pool5."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, widths in enumerate(_STAGES, start=1):
        for letter, width in zip(_LETTERS, widths, strict=False):
            wider = _scaled(width, width_multiplier)
            name = f"conv{stage}{letter if len(widths) > 1 else ''}"
            layers[name] = nn.Sequential(nn.Conv3d(channels, wider, 3, padding=1), nn.ReLU(inplace=True))
            channels = wider
        layers[f"pool{stage}"] = _pool(stage)
    return layers


def _pool(stage: int) -> nn.MaxPool3d:
    """The first pools in space only, the last pads space, which makes 7 x 7 into 4 x 4."""
    kernel = (1 if stage == 1 else 2, 2, 2)
    padding = (0, 1, 1) if stage == len(_STAGES) else 0
    return nn.MaxPool3d(kernel, stride=kernel, padding=padding, ceil_mode=True)


def _scaled(width: int, width_multiplier: float) -> int:
    return max(1, round(width * width_multiplier))


def _initialise(module: nn.Module) -> None:
    """As torchvision does for VGG: the paper says nothing of it but the bias of 1 that it does not need with ReLU."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
