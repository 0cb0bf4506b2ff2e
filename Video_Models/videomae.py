"""VideoMAE (Tong et al. 2022): joint attention over tubes of two frames; the features are the mean of all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from Video_Models.positions import Grid
from Video_Models.transformer import TransformerBackbone, recording_attention
from Video_Models.transformer_config import Architecture
from Video_Models.transformer_weights import load_published, plan_network

ARCHITECTURE = Architecture("videomae", VideoMAEConfig, VideoMAEForVideoClassification)


def build_backbone(
    weights: str | Path | None = None,
    *,
    num_frames: int = 16,
    image_size: int = 224,
    config: Mapping[str, Any] | None = None,
) -> VideoMAEBackbone:
    """VideoMAE without its last layer; 86,227,200 parameters with the default (base) configuration.

    Its position embeddings are a fixed table of sines over the tokens' numbers, computed anew for the number of tokens;
    with other frames or another size than the weights were trained with, a token's number means another place.

    Args:
        weights: None for random ones, or what `read_published` reads. The network that was only pre-trained
            (`MCG-NJU/videomae-base`) reads its first token by its own configuration; `config: {use_mean_pooling: true}`
            is how its authors fine-tune it.
        num_frames: of the clips; more are built in where the rule of whole tubes asks for them.
        config: replaces values of `VideoMAEConfig`, or of the weights' own configuration.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: a size or a configuration that the network cannot take.
    """
    published, target = plan_network(weights, ARCHITECTURE, config, num_frames=num_frames, image_size=image_size)
    backbone = VideoMAEBackbone(target)
    if published is not None:
        load_published(backbone, published.state, published.origin)
    return backbone


class VideoMAEBackbone(TransformerBackbone):
    """See `build_backbone`."""

    lora_targets = ("query", "value")

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.videomae = VideoMAEModel(config)
        _keep_positions_on_the_device(self.videomae)
        self.fc_norm = nn.LayerNorm(config.hidden_size) if config.use_mean_pooling else None

    @property
    def blocks(self) -> list[nn.Module]:
        """The encoder's layers."""
        return list(self.videomae.encoder.layer)

    @property
    def after_blocks(self) -> list[nn.Module]:
        """The norm before the head, or the one behind the encoder."""
        return [norm for norm in (self.videomae.layernorm, self.fc_norm) if norm is not None]

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, 3, T, H, W) -> (B, feature_width)."""
        tokens = self.videomae(self._to_frames(clip)).last_hidden_state
        return tokens[:, 0] if self.fc_norm is None else self.fc_norm(tokens.mean(dim=1))

    @property
    def grid(self) -> Grid:
        """Tokens over time, height and width."""
        config = self.videomae.config
        side = config.image_size // config.patch_size
        return config.num_frames // config.tubelet_size, side, side

    def pooling_weights(self) -> Tensor:
        """All alike, or the first alone where the configuration has no mean pooling."""
        num_tokens = self.videomae.embeddings.num_patches
        if self.fc_norm is None:
            return nn.functional.one_hot(torch.tensor(0), num_tokens).float()
        return torch.full((num_tokens,), 1 / num_tokens)

    def compute_attentions(self, clip: Tensor) -> list[Tensor]:
        """Each block's attention, float (B, N, N), averaged over heads."""
        layers = [block.attention.attention for block in self.blocks]
        with recording_attention(self.videomae, layers) as attentions:
            self(clip)
        return attentions


def _keep_positions_on_the_device(model: VideoMAEModel) -> None:
    """The library holds the table as a plain tensor on the CPU and copies it to the device in every forward pass."""
    table = model.embeddings.position_embeddings
    del model.embeddings.position_embeddings
    model.embeddings.register_buffer("position_embeddings", table, persistent=False)
