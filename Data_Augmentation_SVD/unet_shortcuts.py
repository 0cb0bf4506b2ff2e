"""SVD's U-Net without the work that cannot change its output: the same weights and names, fewer FLOPs.

Counted on the published architecture with 3 frames: 0.904 of the FLOPs at 256 x 256 pixels, 0.921 at 576 x 1024.

Every cross-attention of this network sees one key, CLIP's embedding of the image. A softmax over one score is 1, so
that queries, keys, scores and the normalisation before them are dead work, and all tokens of a clip get one and the
same vector, `to_out(to_v(context))`. The temporal blocks even ask for it once a pixel. And the temporal convolutions
run over three frames, for which four products suffice (`utils.three_frame_conv`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from utils.three_frame_conv import use_three_frame_convs


def use_exact_shortcuts(unet: nn.Module, num_frames: int, *, min_conv_channels: int = 1) -> None:
    """Leave out what cannot change the output of a `UNetSpatioTemporalConditionModel`, in place.

    Modules stay the objects they were, with their parameters, names and hooks, and only change their class: state dict,
    `save_pretrained`, types and devices work as before. Contexts of more than one token take the ordinary attention,
    clips of another length the ordinary convolution.

    Args:
        num_frames: of the clips to come; with 3, temporal convolutions take four products.
        min_conv_channels: narrower temporal convolutions stay as they are, see `use_three_frame_convs`.
    """
    kinds = (BasicTransformerBlock, TemporalBasicTransformerBlock)
    blocks = [block for block in unet.modules() if type(block) in kinds and _is_replaceable(block)]
    memory = _ContextMemory()
    for block in blocks:
        _replace_cross_attention(block, memory)
    if blocks:
        unet.register_forward_pre_hook(memory.note_context, with_kwargs=True)
    if num_frames == 3:
        use_three_frame_convs(unet, min_channels=min_conv_channels)


@contextmanager
def sampling_run(unet: nn.Module) -> Iterator[None]:
    """Within it, what the cross-attentions make of the context is kept from one denoising step to the next.

    Around the loop over the steps of one batch, in which `unet(...)` is called as a whole and its weights stay as they
    are. Another context, or the same tensor changed in place, is noticed and computed anew, and nothing is kept beyond
    the end. With gradients, autocast, compiled code or CUDA graphs nothing is kept at all.
    """
    memories = {module.memory for module in unet.modules() if isinstance(module, OneKeyAttention)}
    for memory in memories:
        memory.open()
    try:
        yield
    finally:
        for memory in memories:
            memory.close()


class OneKeyAttention(Attention):
    """Cross-attention whose output for a single key needs no query: one vector a row of the context, for all tokens.

    Attributes:
        skipped_norm: the normalisation of the queries, a module of the block; in a tuple, lest it be registered twice.
        memory: of the sampling run, shared by all of a U-Net.
    """

    skipped_norm: tuple[SkippedNorm]
    memory: _ContextMemory

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options,
    ) -> Tensor:
        """Float (N, tokens, C), not normalised, and the context (M, 1, D), N a multiple of M -> float (N, 1, C).

        Rows of the context stand for N / M neighbouring rows each. Other contexts: -> (N, tokens, C), as ever.
        """
        drops_out = self.training and self.to_out[1].p > 0  # each token's own values
        if not _has_one_key(encoder_hidden_states) or attention_mask is not None or drops_out:
            normed = self.skipped_norm[0].normalise(hidden_states)
            return super().forward(normed, encoder_hidden_states, attention_mask, **options)
        attended = self.memory.recall(self, encoder_hidden_states)
        repeats = hidden_states.shape[0] // attended.shape[0]
        return attended[:, None].expand(-1, repeats, -1, -1).flatten(0, 1)  # (M, 1, C) -> (N, 1, C)

    def attend(self, context: Tensor) -> Tensor:
        """What every token gets: float (M, 1, D) -> float (M, 1, C)."""
        attended = self.to_out[0](self.to_v(context))
        return attended if self.rescale_output_factor == 1 else attended / self.rescale_output_factor


class OneKeyTemporalBlock(TemporalBasicTransformerBlock):
    """A temporal block that shows its cross-attention each clip's context once, not once a pixel."""

    def forward(self, hidden_states: Tensor, num_frames: int, encoder_hidden_states: Tensor | None = None) -> Tensor:
        """Float (B * T, H * W, C) and the context (B * H * W, S, D) -> float (B * T, H * W, C)."""
        if _has_one_key(encoder_hidden_states):
            # All pixels of a clip have the same row, one after the other: (B * H * W, 1, D) -> (B, 1, D).
            encoder_hidden_states = encoder_hidden_states[:: hidden_states.shape[1]]
        return super().forward(hidden_states, num_frames, encoder_hidden_states)


class SkippedNorm(nn.LayerNorm):
    """Keeps the parameters of a normalisation that only queries of several keys need: they ask for it themselves."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Float (N, tokens, C), returned as it is."""
        return tokens

    def normalise(self, tokens: Tensor) -> Tensor:
        """Float (N, tokens, C), normalised over C."""
        return super().forward(tokens)


class _ContextMemory:
    """What the cross-attentions of one U-Net made of the context of the current sampling run."""

    def __init__(self) -> None:
        self.close()

    def open(self) -> None:
        self.close()
        self._is_open = True

    def close(self) -> None:
        self._is_open = False
        self._context: tuple[Tensor, int] | None = None  # held, so that no other tensor can take its place
        self._attended: dict[nn.Module, Tensor] = {}

    def note_context(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """At each call of the U-Net: forget everything unless the context is the tensor it was, unchanged."""
        if torch.compiler.is_compiling() or not self._is_open:
            return
        context = args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states")
        # Tensors of torch.inference_mode have no version: a change would not be seen.
        found = None if context is None or context.is_inference() else (context, context._version)
        if found is None or self._context is None or any(a is not b for a, b in zip(found, self._context, strict=True)):
            self._attended.clear()
        self._context = found

    def recall(self, attention: OneKeyAttention, context: Tensor) -> Tensor:
        """`attention.attend(context)`, computed once where that is safe: float (M, 1, D) -> float (M, 1, C)."""
        if torch.compiler.is_compiling() or not self._is_open or self._context is None or _is_traced(context):
            return attention.attend(context)
        attended = self._attended.get(attention)
        if attended is None or attended.shape[0] != context.shape[0] or attended.device != context.device:
            attended = self._attended[attention] = attention.attend(context)
        return attended

    def __reduce__(self) -> tuple[type, tuple]:
        return _ContextMemory, ()  # copies remember nothing


def _is_traced(context: Tensor) -> bool:
    """Whether a kept tensor would be missed by autograd or autocast, or outlive its run in a graph."""
    if torch.is_grad_enabled() or type(context) is not Tensor or torch.is_autocast_enabled(context.device.type):
        return True
    return context.is_cuda and torch.cuda.is_current_stream_capturing()


def _has_one_key(context: Tensor | None) -> bool:
    return context is not None and context.dim() == 3 and context.shape[1] == 1


def _is_replaceable(block: nn.Module) -> bool:
    """Whether a block's cross-attention is the plain one, without normalisation of keys, residual, or own processor."""
    attention = block.attn2
    if type(attention) is not Attention or type(block.norm2) is not nn.LayerNorm or getattr(block, "pos_embed", None):
        return False
    extras = (attention.norm_cross, attention.group_norm, attention.spatial_norm, attention.added_kv_proj_dim)
    plain = not attention.residual_connection and all(extra is None for extra in extras)
    return plain and type(attention.processor) in (AttnProcessor, AttnProcessor2_0)


def _replace_cross_attention(block: nn.Module, memory: _ContextMemory) -> None:
    """New classes for old modules, as torch's parametrizations do it; no tensor is touched."""
    block.norm2.__class__ = SkippedNorm
    block.attn2.__class__ = OneKeyAttention
    block.attn2.skipped_norm, block.attn2.memory = (block.norm2,), memory
    if type(block) is TemporalBasicTransformerBlock:
        block.__class__ = OneKeyTemporalBlock
