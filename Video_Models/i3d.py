"""Inflated image networks: I3D (Carreira & Zisserman 2017), which is Inception-v1 in 3-D, and ResNets in 3-D.

`Inflated_3D_VGG.vgg_inflated.inflate` makes them from torchvision's 2-D networks, with ImageNet weights or random ones.
torchvision's GoogLeNet has 3 x 3 kernels where the paper on it has 5 x 5, as has the published I3D: with every k x k
kernel made k x k x k they agree in every layer and have 12,287,264 parameters without a head.

Time is never strided or pooled before the end (the published I3D halves it three times), because clips may have three
frames: a clip of T frames costs what T images cost, times the kernels' length. With averaged kernels and copies of the
first and last frame beyond the ends, a static clip gives exactly the 2-D network's features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import GoogLeNet, ResNet
from torchvision.models.googlenet import BasicConv2d, Inception, InceptionAux
from torchvision.models.resnet import BasicBlock, Bottleneck

from Inflated_3D_VGG.vgg_inflated import inflate
from utils.tensor_files import StateDict
from Video_Models.backbone import Backbone
from Video_Models.registry import FAMILIES
from Video_Models.torchvision_weights import load_network, read_torchvision_weights

_HEAD_NAMES = ("fc", "aux1", "aux2")
_INCEPTIONS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
_GOOGLENET_BLOCKS = ("conv1", "conv2", "conv3", *(f"inception{part}" for part in _INCEPTIONS))


class InflatedBackbone(Backbone):
    """An inflated network of torchvision's, whose last layer passes features through.

    Args:
        find_blocks: from the network to its blocks, first to last.
    """

    def __init__(
        self, network: nn.Module, feature_width: int, find_blocks: Callable[[nn.Module], list[nn.Module]], family: str
    ) -> None:
        rules = FAMILIES[family]
        super().__init__(feature_width, frame_rule=rules.frame_rule, size_rule=rules.size_rule)
        self.network = network
        self._find_blocks = find_blocks

    @property
    def blocks(self) -> list[nn.Module]:
        """Inception modules and the three convolutions before them; residual blocks."""
        return self._find_blocks(self.network)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, T, H, W) -> (B, feature_width)."""
        return self.network(clip)


@dataclass(frozen=True)
class _Network2d:
    """A 2-D network to inflate: how to build it, what `inflate` does by default, and its blocks."""

    build: Callable[..., nn.Module]
    temporal_kernel: int | str
    find_blocks: Callable[[nn.Module], list[nn.Module]]


def build_backbone(
    weights: str | Path | None,
    *,
    family: str = "i3d",
    num_frames: int,
    image_size: int,
    config: dict[str, Any] | None = None,
) -> InflatedBackbone:
    """An inflated network for any clip; `num_frames` changes nothing of it.

    Args:
        weights: `pretrained` (of the 2-D network, ImageNet), a file with torchvision's names and 2-D or 3-D kernels, or
            None for random ones, which are inflated, too.
        family: `i3d`, `resnet18_3d` or `resnet50_3d`.
        config: `temporal_kernel`, `init`, `temporal_padding` of `inflate` (by default `spatial` for I3D and 3 for
            ResNets, `average`, `replicate`); `width_multiplier` of I3D, in eighths; `layers` of ResNets, the residual
            blocks of each stage.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: an unknown key or value, or a size that the network cannot take.
    """
    del num_frames
    FAMILIES[family].check_config(config)
    FAMILIES[family].size_rule.check(image_size)
    kind = _NETWORKS[family]
    inflation = {"temporal_kernel": kind.temporal_kernel, "init": "average", "temporal_padding": "replicate"}
    architecture = dict(config or {})
    inflation |= {key: architecture.pop(key) for key in list(architecture) if key in inflation}
    network = kind.build(**architecture)
    feature_width = network.fc.in_features
    network.fc = nn.Identity()
    network = _load_and_inflate(network, weights, family, inflation)
    return InflatedBackbone(network, feature_width, kind.find_blocks, family)


def _load_and_inflate(
    network_2d: nn.Module, weights: str | Path | None, family: str, inflation: dict[str, Any]
) -> nn.Module:
    """Weights of images go in before the inflation, weights of clips after it."""
    if weights is None:
        return inflate(network_2d, **inflation)
    state_dict, path = read_torchvision_weights(weights, family)
    if not _is_3d(state_dict):
        load_network(network_2d, state_dict, path, head_names=_HEAD_NAMES)
    network = inflate(network_2d, **inflation)
    if _is_3d(state_dict):
        load_network(network, state_dict, path, head_names=_HEAD_NAMES)
    return network


def _is_3d(state_dict: StateDict) -> bool:
    return any(tensor.dim() == 5 for tensor in state_dict.values())


def _build_googlenet(width_multiplier: float = 1.0) -> GoogLeNet:
    """GoogLeNet without auxiliary outputs; narrower ones are for tests and small data."""
    if width_multiplier * 8 % 1 or width_multiplier <= 0:  # all of its widths are multiples of 8
        raise ValueError(f"config: width_multiplier is {width_multiplier}, expected a multiple of 0.125")
    conv = partial(_scaled_conv, width_multiplier)
    blocks = [conv, partial(Inception, conv_block=conv), InceptionAux]
    network = GoogLeNet(aux_logits=False, transform_input=False, init_weights=False, blocks=blocks, dropout=0.0)
    network.fc = nn.Linear(int(1024 * width_multiplier), 1)
    for module in network.modules():
        _initialise(module)
    return network


def _scaled_conv(width_multiplier: float, in_channels: int, out_channels: int, **options: Any) -> BasicConv2d:
    in_channels = in_channels if in_channels == 3 else int(in_channels * width_multiplier)
    return BasicConv2d(in_channels, int(out_channels * width_multiplier), **options)


def _initialise(module: nn.Module) -> None:
    """As for ResNet, in place of torchvision's for GoogLeNet, whose 57 layers of std 0.01 take it seconds to draw."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _build_resnet18(layers: tuple[int, ...] = (2, 2, 2, 2)) -> ResNet:
    return ResNet(BasicBlock, list(layers))


def _build_resnet50(layers: tuple[int, ...] = (3, 4, 6, 3)) -> ResNet:
    return ResNet(Bottleneck, list(layers))


def _googlenet_blocks(network: nn.Module) -> list[nn.Module]:
    return [network.get_submodule(name) for name in _GOOGLENET_BLOCKS]


def _resnet_blocks(network: nn.Module) -> list[nn.Module]:
    return [block for stage in (1, 2, 3, 4) for block in network.get_submodule(f"layer{stage}")]


_NETWORKS = {
    "i3d": _Network2d(_build_googlenet, "spatial", _googlenet_blocks),
    "resnet18_3d": _Network2d(_build_resnet18, 3, _resnet_blocks),
    "resnet50_3d": _Network2d(_build_resnet50, 3, _resnet_blocks),
}
