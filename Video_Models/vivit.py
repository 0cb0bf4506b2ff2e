"""ViViT (Arnab et al. 2021), model 1: joint attention over tubes of frames; the features are the CLS token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VivitConfig, VivitForVideoClassification, VivitModel

from Video_Models.positions import Grid, resample_positions
from Video_Models.transformer import TransformerBackbone, recording_attention
from Video_Models.transformer_config import Architecture
from Video_Models.transformer_weights import load_published, plan_network

ARCHITECTURE = Architecture("vivit", VivitConfig, VivitForVideoClassification)
_POSITIONS = "vivit.embeddings.position_embeddings"


def build_backbone(
    weights: str | Path | None = None,
    *,
    num_frames: int = 32,
    image_size: int = 224,
    config: Mapping[str, Any] | None = None,
) -> VivitBackbone:
    """ViViT without its last layer; 88,646,400 parameters with the default (B 16x2) configuration.

    Learned position embeddings of another number of frames or another size are resampled: bicubic in space, linear in
    time.

    Args:
        weights: None for random ones, or what `read_published` reads.
        num_frames: of the clips; more are built in where the rule of whole tubes asks for them.
        config: replaces values of `VivitConfig`, or of the weights' own configuration.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: a size or a configuration that the network cannot take.
    """
    published, target = plan_network(weights, ARCHITECTURE, config, num_frames=num_frames, image_size=image_size)
    backbone = VivitBackbone(target)
    if published is not None:
        state = dict(published.state)
        if published.config is not None and _POSITIONS in state:
            state[_POSITIONS] = resample_positions(state[_POSITIONS], token_grid(published.config), token_grid(target))
        load_published(backbone, state, published.origin)
    return backbone


def token_grid(config: VivitConfig) -> Grid:
    """Tokens over time, height and width; frames that make no whole tube are repeated to one."""
    frames, height, width = config.tubelet_size
    return math.ceil(config.num_frames / frames), config.image_size // height, config.image_size // width


class VivitBackbone(TransformerBackbone):
    """See `build_backbone`."""

    lora_targets = ("q_proj", "v_proj")

    def __init__(self, config: VivitConfig) -> None:
        super().__init__(config)
        self.vivit = VivitModel(config, add_pooling_layer=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """The encoder's layers."""
        return list(self.vivit.layers)

    @property
    def after_blocks(self) -> list[nn.Module]:
        """The norm behind the encoder."""
        return [self.vivit.layernorm]

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, 3, T, H, W) -> (B, feature_width)."""
        return self.vivit(self._to_frames(clip)).last_hidden_state[:, 0]

    @property
    def grid(self) -> Grid:
        """Tokens over time, height and width."""
        return token_grid(self.vivit.config)

    def pooling_weights(self) -> Tensor:
        """CLS alone."""
        return nn.functional.one_hot(torch.tensor(0), 1 + math.prod(self.grid)).float()

    def compute_attentions(self, clip: Tensor) -> list[Tensor]:
        """Each block's attention, float (B, N, N), averaged over heads."""
        with recording_attention(self.vivit, [block.attention for block in self.blocks]) as attentions:
            self(clip)
        return attentions
