"""TimeSformer (Bertasius et al. 2021): attention over time, then over space, in each block; the features are CLS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TimesformerConfig, TimesformerForVideoClassification, TimesformerModel
from transformers.models.timesformer.modeling_timesformer import TimesformerSelfAttention

from Video_Models.positions import Grid, resample_positions, resample_times
from Video_Models.transformer import DividedAttention, TransformerBackbone
from Video_Models.transformer_config import Architecture
from Video_Models.transformer_weights import load_published, plan_network

ARCHITECTURE = Architecture("timesformer", TimesformerConfig, TimesformerForVideoClassification)
_DIVIDED = "divided_space_time"
_POSITIONS = "timesformer.embeddings.position_embeddings"
_TIMES = "timesformer.embeddings.time_embeddings"


def build_backbone(
    weights: str | Path | None = None,
    *,
    num_frames: int = 8,
    image_size: int = 224,
    config: Mapping[str, Any] | None = None,
) -> TimesformerBackbone:
    """TimeSformer with divided attention, without its last layer; 121,258,752 parameters by default (base).

    Learned embeddings of another number of frames or another size are resampled: bicubic in space, linear in time.

    Args:
        weights: None for random ones, or what `read_published` reads.
        config: replaces values of `TimesformerConfig`, or of the weights' own configuration.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: a size or a configuration that the network cannot take, or attention that is not divided.
    """
    published, target = plan_network(weights, ARCHITECTURE, config, num_frames=num_frames, image_size=image_size)
    if target.attention_type != _DIVIDED:
        raise ValueError(
            f"config: attention_type is {target.attention_type!r}, but only {_DIVIDED} is built here; drop the key"
        )
    backbone = TimesformerBackbone(target)
    if published is not None:
        load_published(backbone, _resample(published.state, published.config, target), published.origin)
    return backbone


def token_grid(config: TimesformerConfig) -> Grid:
    """Tokens over time, height and width."""
    side = config.image_size // config.patch_size
    return config.num_frames, side, side


def _resample(
    state: dict[str, Tensor], source: TimesformerConfig | None, target: TimesformerConfig
) -> dict[str, Tensor]:
    if source is None or not {_POSITIONS, _TIMES} <= state.keys():
        return state
    old, new = ((1, *token_grid(config)[1:]) for config in (source, target))
    positions = resample_positions(state[_POSITIONS], old, new)
    return state | {_POSITIONS: positions, _TIMES: resample_times(state[_TIMES], target.num_frames)}


class TimesformerBackbone(TransformerBackbone):
    """See `build_backbone`."""

    lora_targets = ("qkv",)  # query, key and value are one layer

    def __init__(self, config: TimesformerConfig) -> None:
        super().__init__(config)
        self.timesformer = TimesformerModel(config)
        for block in self.blocks:
            for attention in (block.temporal_attention, block.attention):
                attention.attention = FusedSelfAttention(attention.attention)

    @property
    def blocks(self) -> list[nn.Module]:
        """The encoder's layers."""
        return list(self.timesformer.encoder.layer)

    @property
    def after_blocks(self) -> list[nn.Module]:
        """The norm behind the encoder."""
        return [self.timesformer.layernorm]

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, 3, T, H, W) -> (B, feature_width)."""
        return self.timesformer(self._to_frames(clip)).last_hidden_state[:, 0]

    @property
    def grid(self) -> Grid:
        """Tokens over time, height and width."""
        return token_grid(self.timesformer.config)

    def pooling_weights(self) -> Tensor:
        """CLS alone."""
        num_tokens = 1 + self.grid[0] * self.grid[1] * self.grid[2]
        return functional.one_hot(torch.tensor(0), num_tokens).float()

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Values of tokens, float (B, num_tokens), at their places, (B, t, h, w); CLS is left out."""
        num_times, height, width = self.grid
        by_place = tokens[:, 1:].unflatten(1, (height, width, num_times))  # its tokens go through time first
        return by_place.permute(0, 3, 1, 2)  # (B, h, w, t) -> (B, t, h, w)

    def compute_attentions(self, clip: Tensor) -> list[DividedAttention]:
        """Each block's attention over time and over space, averaged over heads."""
        kept: list[Tensor] = []

        def keep(layer: FusedSelfAttention, inputs: tuple[Tensor, ...]) -> None:
            kept.append(layer.compute_attention(inputs[0]).detach().mean(dim=1))

        layers = [part.attention for block in self.blocks for part in (block.temporal_attention, block.attention)]
        handles = [layer.register_forward_pre_hook(keep) for layer in layers]
        try:
            self(clip)
        finally:
            for handle in handles:
                handle.remove()
        # (B * S, T, T) -> (B, S, T, T), and (B * T, 1 + S, 1 + S) -> (B, T, 1 + S, 1 + S)
        parts = [attention.unflatten(0, (len(clip), -1)) for attention in kept]
        return [DividedAttention(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]


class FusedSelfAttention(nn.Module):
    """TimeSformer's self-attention with torch's fused kernels, which transformers has not got for it.

    Args:
        original: whose layers it takes over; state-dict names stay.
    """

    def __init__(self, original: TimesformerSelfAttention) -> None:
        super().__init__()
        self.qkv, self.attn_drop = original.qkv, original.attn_drop
        self.num_heads, self.scale = original.num_heads, original.scale

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
        """Float (B, N, D) -> the context (B, N, D), and on request the attention (B, heads, N, N)."""
        query, key, value = self._split(hidden_states)
        dropout = self.attn_drop.p if self.training else 0.0
        context = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        context = context.transpose(1, 2).flatten(2)  # (B, heads, N, D / heads) -> (B, N, D)
        return (context, self.compute_attention(hidden_states)) if output_attentions else (context,)

    def compute_attention(self, hidden_states: Tensor) -> Tensor:
        """The weights that `forward` applies, float (B, heads, N, N), rows summing to 1; without dropout."""
        query, key, _ = self._split(hidden_states)
        return (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)

    def _split(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, N, 3, heads, d) -> 3 of (B, heads, N, d)
