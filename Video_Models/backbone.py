"""What every family's network looks like from outside: a clip in, one row of features a clip out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from Video_Models.input_rules import FrameRule, SizeRule


class Backbone(nn.Module, ABC):
    """A clip classifier without its head.

    Attributes:
        feature_width: length of a clip's feature row.
        frame_rule: how many frames `forward` takes; the caller repeats the clip's frames to fit.
        size_rule: which sizes `forward` takes.
        lora_targets: last parts of the names of the modules that LoRA adds to by default; empty is every linear layer
            and convolution.
    """

    feature_width: int
    frame_rule: FrameRule
    size_rule: SizeRule
    lora_targets: tuple[str, ...] = ()

    def __init__(
        self, feature_width: int, *, frame_rule: FrameRule | None = None, size_rule: SizeRule | None = None
    ) -> None:
        super().__init__()
        self.feature_width = feature_width
        self.frame_rule = frame_rule or FrameRule()
        self.size_rule = size_rule or SizeRule()

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The network's stages, first to last; fine-tuning the last N trains the last N of them.

        What comes before the first is in no block. A parameter belongs to at most one block; layers after the last one
        (a final norm) are named by `after_blocks`.
        """

    @property
    def after_blocks(self) -> list[nn.Module]:
        """Layers behind the last block, which are trained with it; most networks have none."""
        return []

    @abstractmethod
    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Features of a batch.

        Args:
            clip: float (B, 3, T', H, W), normalised, as many frames as `frame_rule` allows.

        Returns:
            float (B, feature_width).
        """
