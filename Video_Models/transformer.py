"""What the three transformers share: clips in transformers' axis order, and their attention on request."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from Video_Models.backbone import Backbone
from Video_Models.positions import Grid
from Video_Models.transformer_config import input_rules


@dataclass(frozen=True)
class DividedAttention:
    """One block's attention of a network that attends over time first, then over space (heads averaged).

    Attributes:
        temporal: float (B, S, T, T), of each of the S places among its T frames.
        spatial: float (B, T, 1 + S, 1 + S), of each frame among CLS and its places.
    """

    temporal: Tensor
    spatial: Tensor


class TransformerBackbone(Backbone):
    """A transformer of transformers without its classification layer, kept under the family's name there.

    State-dict names are those of transformers' classifier.

    Attributes:
        tubelet_frames: frames that one token covers.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        frame_rule, size_rule = input_rules(config)
        super().__init__(config.hidden_size, frame_rule=frame_rule, size_rule=size_rule)
        self.num_frames, self.image_size = config.num_frames, config.image_size
        self.tubelet_frames = frame_rule.multiple_of

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """Tokens over time, height and width, CLS not counted."""

    @abstractmethod
    def pooling_weights(self) -> Tensor:
        """How much each token counts in the features, float (num_tokens,), summing to 1."""

    @abstractmethod
    def compute_attentions(self, clip: Tensor) -> list[Tensor | DividedAttention]:
        """Each block's attention, first to last, averaged over heads; computed without fused kernels.

        Args:
            clip: as `forward`.

        Returns:
            float (B, N, N) a block, rows (queries) summing to 1; or both parts of divided attention.
        """

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Values of tokens, float (B, num_tokens), at their places, (B, t, h, w); CLS is left out."""
        num_places = self.grid[0] * self.grid[1] * self.grid[2]
        return tokens[:, -num_places:].unflatten(1, self.grid)

    def _to_frames(self, clip: Tensor) -> Tensor:
        """The order of axes that transformers wants.

        Raises:
            ValueError: another number of frames or another size than this network was built for.
        """
        expected = (3, self.num_frames, self.image_size, self.image_size)
        if clip.shape[1:] != expected:
            raise ValueError(f"a clip is {tuple(clip.shape[1:])}, but this network was built for {expected}")
        return clip.transpose(1, 2)  # (B, C, T, H, W) -> (B, T, C, H, W)


@contextmanager
def recording_attention(model: PreTrainedModel, layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Within, the attention of `layers` is computed in the open and kept, averaged over heads, in the order of calls.

    Args:
        layers: modules of `model` that return (context, attention float (B, heads, N, N)).
    """
    kept: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        kept.append(output[1].detach().mean(dim=1))

    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # fused kernels never hold the attention
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)
