"""torchvision's video networks: R3D-18 and R(2+1)D-18, MViTv2-S, Video Swin-T, S3D.

Their state dicts are torchvision's. Two are made to take more clips than torchvision lets them: S3D's last average
shrinks with the map, and MViTv2-S is built for the clip, its relative positions interpolated as its paper does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.video import S3D, MViT, SwinTransformer3d, VideoResNet
from torchvision.models.video.mvit import MSBlockConfig
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv2Plus1D, Conv3DSimple, R2Plus1dStem

from utils.tensor_files import StateDict
from Video_Models.backbone import Backbone
from Video_Models.registry import FAMILIES
from Video_Models.torchvision_weights import load_network, read_torchvision_weights

Blocks = Callable[[nn.Module], list[nn.Module]]
_S3D_AVERAGE = (2, 7, 7)  # frames, height, width
_RELATIVE_POSITIONS = ("rel_pos_h", "rel_pos_w", "rel_pos_t")


class TorchvisionBackbone(Backbone):
    """A video network of torchvision's, whose last layer passes features through."""

    def __init__(self, network: nn.Module, feature_width: int, family: str) -> None:
        rules = FAMILIES[family]
        super().__init__(feature_width, frame_rule=rules.frame_rule, size_rule=rules.size_rule)
        self.network = network
        self._find_blocks = _NETWORKS[family].find_blocks

    @property
    def blocks(self) -> list[nn.Module]:
        """Residual or Inception blocks of the CNNs, blocks and mergers of patches of the transformers."""
        return self._find_blocks(self.network)

    @property
    def after_blocks(self) -> list[nn.Module]:
        """The transformers' last norm."""
        return [norm for name, norm in self.network.named_children() if name == "norm"]

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, T, H, W) -> (B, feature_width)."""
        return self.network(clip)


class WindowAverage(nn.Module):
    """`AvgPool3d` with stride 1, whose windows shrink to a map that is smaller than they are.

    Args:
        window: frames, height, width.
    """

    def __init__(self, window: Sequence[int]) -> None:
        super().__init__()
        self.window = tuple(window)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Float (B, C, T, H, W) -> (B, C, t, h, w), one value a window."""
        for axis, size in enumerate(self.window, start=2):
            features = features.unfold(axis, min(size, features.shape[axis]), 1).mean(dim=-1)
        return features


@dataclass(frozen=True)
class _Network:
    """How to build a family's network, the name of its last layer, and its blocks."""

    build: Callable[..., nn.Module]
    head: str
    find_blocks: Blocks


def build_backbone(
    weights: str | Path | None,
    *,
    family: str,
    num_frames: int,
    image_size: int,
    config: dict[str, Any] | None = None,
) -> TorchvisionBackbone:
    """A video network of torchvision's.

    Args:
        weights: `pretrained` (Kinetics-400), a file with torchvision's names, or None for random ones.
        num_frames: of the clips; only MViTv2-S is built for it, and for `image_size`.
        config: `layers` of the ResNets (residual blocks of each stage); `embed_dim`, `depths`, `num_heads`,
            `stochastic_depth_prob` of the transformers, and `window_size` of Swin; `batch_norm_momentum` of S3D.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: an unknown key, or a clip that the network cannot take.
    """
    rules, kind = FAMILIES[family], _NETWORKS[family]
    rules.check_config(config)
    rules.size_rule.check(image_size)
    clip_shape = (rules.frame_rule.num_repeated(num_frames), image_size, image_size)
    network = kind.build(clip_shape, **(config or {}))
    last = [layer for layer in network.get_submodule(kind.head).modules() if isinstance(layer, nn.Linear | nn.Conv3d)]
    feature_width = last[-1].weight.shape[1]
    setattr(network, kind.head, nn.Identity())
    if weights is not None:
        state_dict, path = read_torchvision_weights(weights, family)
        load_network(network, _fit_relative_positions(state_dict, network), path, head_names=(kind.head,))
    return TorchvisionBackbone(network, feature_width, family)


# ---------------------------------------------------------------------------------------------------------------------
# Networks, for a clip of (frames, height, width); the defaults are the published ones


def _build_r3d(_shape: tuple[int, int, int], layers: Sequence[int] = (2, 2, 2, 2)) -> VideoResNet:
    return VideoResNet(BasicBlock, [Conv3DSimple] * 4, list(layers), BasicStem)


def _build_r2plus1d(_shape: tuple[int, int, int], layers: Sequence[int] = (2, 2, 2, 2)) -> VideoResNet:
    return VideoResNet(BasicBlock, [Conv2Plus1D] * 4, list(layers), R2Plus1dStem)


def _build_mvit(
    shape: tuple[int, int, int],
    embed_dim: int = 96,
    depths: Sequence[int] = (1, 2, 11, 2),
    num_heads: Sequence[int] = (1, 2, 4, 8),
    stochastic_depth_prob: float = 0.2,
) -> MViT:
    """MViTv2-S: each stage doubles the width and halves the map; keys and values are pooled to one size in all."""
    _require_heads(embed_dim, depths, num_heads)
    blocks = []
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        width, kv_stride = embed_dim * 2**stage, 2 ** (len(depths) - 1 - stage)
        for block in range(depth):
            is_wider = stage > 0 and block == 0
            blocks.append(
                MSBlockConfig(
                    num_heads=heads,
                    input_channels=width // 2 if is_wider else width,
                    output_channels=width,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, 2, 2] if is_wider else [1, 1, 1],
                    stride_kv=[1, kv_stride, kv_stride],
                )
            )
    return MViT(
        spatial_size=shape[1:],
        temporal_size=shape[0],
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        stochastic_depth_prob=stochastic_depth_prob,
    )


def _build_swin(
    _shape: tuple[int, int, int],
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: Sequence[int] = (8, 7, 7),
    stochastic_depth_prob: float = 0.1,
) -> SwinTransformer3d:
    _require_heads(embed_dim, depths, num_heads)
    return SwinTransformer3d(
        patch_size=[2, 4, 4],
        embed_dim=embed_dim,
        depths=list(depths),
        num_heads=list(num_heads),
        window_size=list(window_size),
        stochastic_depth_prob=stochastic_depth_prob,
    )


def _require_heads(embed_dim: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
    """The width doubles with each stage, and each stage's heads share it."""
    if len(depths) != len(num_heads):
        raise ValueError(f"config: depths has {len(depths)} stages and num_heads {len(num_heads)}; give as many")
    for stage, heads in enumerate(num_heads):
        if (width := embed_dim * 2**stage) % heads:
            raise ValueError(
                f"config: num_heads: {heads} heads of stage {stage} do not divide its width {width} (embed_dim "
                f"{embed_dim}, doubled with each stage); change one of them"
            )


def _build_s3d(_shape: tuple[int, int, int], batch_norm_momentum: float = 0.1) -> S3D:
    """S3D; torchvision's momentum of 0.001 is for long runs: 300 updates leave statistics 74 % as they began."""
    network = S3D(norm_layer=partial(nn.BatchNorm3d, eps=0.001, momentum=batch_norm_momentum))
    network.avgpool = WindowAverage(_S3D_AVERAGE)
    return network


def _fit_relative_positions(state_dict: StateDict, network: nn.Module) -> StateDict:
    """MViT's tables of relative positions at this clip's lengths: linear, as its own `forward` does between stages."""
    own = network.state_dict()
    fitted = dict(state_dict)
    for name, table in state_dict.items():
        if name.endswith(_RELATIVE_POSITIONS) and name in own and table.shape[1:] == own[name].shape[1:]:
            fitted[name] = functional.interpolate(table.T[None], size=len(own[name]), mode="linear")[0].T
    return fitted


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


def _resnet_blocks(network: nn.Module) -> list[nn.Module]:
    return [block for stage in (1, 2, 3, 4) for block in network.get_submodule(f"layer{stage}")]


def _mvit_blocks(network: nn.Module) -> list[nn.Module]:
    return list(network.blocks)


def _swin_blocks(network: nn.Module) -> list[nn.Module]:
    parts = [part if isinstance(part, nn.Sequential) else [part] for part in network.features]
    return [block for part in parts for block in part]


def _s3d_blocks(network: nn.Module) -> list[nn.Module]:
    return [block for block in network.features if any(True for _ in block.parameters())]


_NETWORKS = {
    "r3d_18": _Network(_build_r3d, "fc", _resnet_blocks),
    "r2plus1d_18": _Network(_build_r2plus1d, "fc", _resnet_blocks),
    "mvit_v2_s": _Network(_build_mvit, "head", _mvit_blocks),
    "swin3d_t": _Network(_build_swin, "head", _swin_blocks),
    "s3d": _Network(_build_s3d, "classifier", _s3d_blocks),
}
