"""Which of a network's weights learn: all, the last blocks, the head alone, or low-rank products beside them (LoRA)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from Video_Models.checkpoint_weights import lora_product

if TYPE_CHECKING:
    from Video_Models.models import VideoClassifier

MODES = ("full", "last_blocks", "linear_probe", "lora")
_TARGETS = (nn.Linear, nn.Conv2d, nn.Conv3d)
# These read their layers' weights instead of calling the layers: what is added to a layer's output would not count.
_READ_BY_WEIGHT = (nn.MultiheadAttention, ShiftedWindowAttention, ShiftedWindowAttention3d)
_SHOWN_NAMES = 6


def adapt(
    model: VideoClassifier,
    mode: str,
    *,
    num_blocks: int = 1,
    lora_rank: int = 8,
    lora_alpha: int = 16,
    lora_dropout: float = 0.0,
    lora_targets: Sequence[str] | None = None,
) -> VideoClassifier:
    """Set which parameters learn; those of the head always do.

    Args:
        mode: `full`; `last_blocks` (the backbone's last blocks and what follows them); `linear_probe` (the head alone);
            `lora` (Hu et al. 2022: low-rank products are added to layers of the frozen backbone, and their names become
            `<layer>.base_layer` in the state dict until `merge_lora`).
        num_blocks: of `last_blocks`.
        lora_rank: of the products; higher can learn more and trains more weights.
        lora_alpha: the products count lora_alpha / lora_rank.
        lora_dropout: before the products.
        lora_targets: last parts of the names of the layers they are added to, `backbone.lora_targets` by default;
            where these are empty, all linear layers and ungrouped convolutions.

    Returns:
        the same model.

    Raises:
        ValueError: an unknown mode, more blocks than there are, or no layer that LoRA could be added to.
    """
    if mode not in MODES:
        raise ValueError(f"unknown adaptation mode {mode!r}; known: {', '.join(MODES)}")
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("this network has been adapted with LoRA before; merge it first")
    model.backbone.requires_grad_(mode == "full")
    model.head.requires_grad_(True)
    if mode == "last_blocks":
        _train_last_blocks(model, num_blocks)
    elif mode == "lora":
        names = _find_lora_layers(model.backbone, lora_targets)
        for name in names:
            _forget_subclass(model.backbone.get_submodule(name))
        pattern = "|".join(re.escape(name) for name in names)  # peft reads a list as name endings, this as whole names
        config = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=pattern)
        inject_adapter_in_model(config, model.backbone)
    return model


def merge_lora(model: VideoClassifier) -> VideoClassifier:
    """Add LoRA's products into the weights they stand beside: the plain network again, with the same outputs.

    Returns:
        the same model, its state-dict names as before `adapt`; a model without LoRA is returned as it is.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.active_adapters
            first, second = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            layer.base_layer.weight.data += lora_product(first, second, layer.scaling[adapter])
            model.set_submodule(name, layer.base_layer)
    if hasattr(model.backbone, "peft_config"):
        del model.backbone.peft_config
    return model


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Parameters that learn, and all, a shared one counted once."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, learns in counts if learns), sum(count for count, _ in counts)


def describe_trainable(model: nn.Module) -> str:
    """`count_trainable` as a line for the log."""
    trainable, total = count_trainable(model)
    return f"{trainable:,} of {total:,} parameters are trained ({trainable / total:.2%})"


def _train_last_blocks(model: VideoClassifier, num_blocks: int) -> None:
    blocks = model.backbone.blocks
    if not 1 <= num_blocks <= len(blocks):
        raise ValueError(
            f"num_blocks is {num_blocks}, but this network has {len(blocks)} blocks; use 1 to {len(blocks)}"
        )
    for module in (*blocks[-num_blocks:], *model.backbone.after_blocks):
        module.requires_grad_(True)


def _find_lora_layers(backbone: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Full names of the layers that LoRA is added to."""
    usable = dict(_usable_layers(backbone))
    targets = tuple(backbone.lora_targets if targets is None else targets)
    names = [name for name in usable if not targets or _ends_in(name, targets)]
    if not names:
        wanted = f"named {', '.join(targets)}" if targets else "at all"
        endings = sorted({name.rpartition(".")[2] for name in usable})
        known = ", ".join(endings[:_SHOWN_NAMES]) or "none"
        raise ValueError(f"lora_targets: this network has no layer {wanted} that LoRA can be added to; known: {known}")
    return names


def _usable_layers(backbone: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    read_by_weight = {
        layer for module in backbone.modules() if isinstance(module, _READ_BY_WEIGHT) for layer in module.modules()
    }
    for name, layer in backbone.named_modules():
        if isinstance(layer, _TARGETS) and layer not in read_by_weight and _is_plain(layer):
            yield name, layer


def _is_plain(layer: nn.Module) -> bool:
    """Whether peft's product has the layer's own form: it knows no groups, no dilation and no other padding."""
    if isinstance(layer, nn.Linear):
        return True
    if layer.groups != 1 or set(layer.dilation) != {1} or layer.padding_mode != "zeros":
        return False
    plain = _plain_class(layer)
    return _has_forward_of(layer, plain) or type(layer).__init__ is plain.__init__


def _forget_subclass(layer: nn.Module) -> None:
    """Make a convolution that only its constructor tells from torch's, as torchvision's `Conv3DSimple`, one of torch's.

    peft calls the layer's class with the arguments of torch's constructor to make the product's first factor.
    """
    plain = _plain_class(layer)
    if _has_forward_of(layer, plain):
        layer.__class__ = plain


def _plain_class(layer: nn.Module) -> type[nn.Module]:
    return next(plain for plain in _TARGETS if isinstance(layer, plain))


def _has_forward_of(layer: nn.Module, plain: type[nn.Module]) -> bool:
    names = ("forward", "_conv_forward", "__call__")
    return all(getattr(type(layer), name, None) is getattr(plain, name, None) for name in names)


def _ends_in(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
