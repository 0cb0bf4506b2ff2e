"""Attention roll-out (Abnar & Zuidema 2020) over frames: which pixels a transformer's answer is gathered from.

Attention alone says where one block looks; the roll-out follows it through all blocks, with the residual connections,
back to the tokens of the clip. It does not tell classes apart; Grad-CAM does, for networks with convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from Model_Evaluation.frame_maps import fold_back, in_eval_mode
from Video_Models.transformer import DividedAttention, TransformerBackbone

if TYPE_CHECKING:
    from Video_Models.models import VideoClassifier

_RESIDUAL_SHARE = 0.5  # the paper's: half of a token comes through the residual connection, half through attention


def compute_attention_rollout(model: VideoClassifier, inputs: Tensor) -> Tensor:
    """Maps of where the features of a clip are gathered from, of a transformer as it is in eval mode.

    VideoMAE's features are the mean of its tokens: so is the roll-out. TimeSformer attends over time, then over space,
    each with its own residual connection: both are rolled out, one after the other, and CLS, which each frame updates
    for itself, takes the mean over frames. A token of several frames gives its value to each of them, and a frame that
    is repeated to fit the network takes the mean over its repetitions.

    Args:
        inputs: float (B, 3, T, H, W), normalised.

    Returns:
        float32 (B, T, H, W) in 0..1 on the inputs' device; an item's largest value is 1.

    Raises:
        ValueError: the network is not one of the transformers.
    """
    backbone = model.backbone
    if not isinstance(backbone, TransformerBackbone):
        raise ValueError(f"{type(backbone).__name__} has no attention to roll out; use Grad-CAM")
    with in_eval_mode(model), torch.no_grad():
        attentions = backbone.compute_attentions(model.repeat_frames(inputs))
    pooling = backbone.pooling_weights().to(inputs.device).expand(len(inputs), -1)
    maps = backbone.to_grid(roll_out(attentions, pooling))
    maps = maps.repeat_interleave(backbone.tubelet_frames, dim=1)  # (B, t, h, w) -> (B, T', h, w)
    maps = fold_back(maps, model.frame_index, model.num_frames)
    maps = functional.interpolate(maps, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
    return maps / maps.amax(dim=(1, 2, 3), keepdim=True)


def roll_out(attentions: Sequence[Tensor | DividedAttention], pooling: Tensor) -> Tensor:
    """Share of each input token in the pooled output: pooling x A_L x ... x A_1, each A with its residual connection.

    Args:
        attentions: of the blocks, first to last, as `TransformerBackbone.compute_attentions` returns them.
        pooling: float (B, N), how much each output token counts.

    Returns:
        float32 (B, N), as much in sum as `pooling`.
    """
    shares = pooling.float()
    for attention in reversed(attentions):
        if isinstance(attention, DividedAttention):
            shares = _through_time(_through_space(shares, attention.spatial.float()), attention.temporal.float())
        else:
            shares = _mix(shares, torch.einsum("bq,bqk->bk", shares, attention.float()))
    return shares


def _through_space(shares: Tensor, attention: Tensor) -> Tensor:
    """Back through attention within each frame; tokens are CLS and (place, time), attention (B, T, 1 + S, 1 + S)."""
    num_times = attention.shape[1]
    cls, places = shares[:, :1], shares[:, 1:].unflatten(1, (-1, num_times))  # (B, S * T) -> (B, S, T)
    cls_by_frame = (cls / num_times).expand(-1, num_times)[..., None]  # the mean of the frames' own CLS
    queries = torch.cat([cls_by_frame, places.transpose(1, 2)], dim=2)  # (B, T, 1 + S)
    keys = torch.einsum("btq,btqk->btk", queries, attention)
    attended = torch.cat([keys[..., 0].sum(dim=1, keepdim=True), keys[..., 1:].transpose(1, 2).flatten(1)], dim=1)
    return _mix(shares, attended)


def _through_time(shares: Tensor, attention: Tensor) -> Tensor:
    """Back through attention among the frames of each place, (B, S, T, T); CLS takes no part."""
    cls, places = shares[:, :1], shares[:, 1:].unflatten(1, attention.shape[1:3])
    attended = torch.einsum("bsq,bsqk->bsk", places, attention)
    return torch.cat([cls, _mix(places, attended).flatten(1)], dim=1)


def _mix(shares: Tensor, attended: Tensor) -> Tensor:
    return _RESIDUAL_SHARE * shares + (1 - _RESIDUAL_SHARE) * attended
