"""The weights of a backbone in a file: a checkpoint of ours, LoRA's products merged into it, or a state dict."""

from __future__ import annotations

from pathlib import Path

import torch

from utils.checkpoints import ModelDescription, read_weights
from utils.errors import InputError
from utils.tensor_files import StateDict

_OURS = "backbone."
_BASE, _FIRST, _SECOND = ".base_layer.", ".lora_A.", ".lora_B."  # peft's names


def read_backbone(path: Path, family: str) -> tuple[StateDict, ModelDescription | None]:
    """Read a file for a backbone of a family.

    Returns:
        of a checkpoint of ours the backbone's tensors by their names in it, as if it had been trained without LoRA; of
        a bare state dict all of it; and what the file says of itself.

    Raises:
        InputError: the file cannot be read, or holds another family's network.
    """
    state, description = read_weights(path)
    require_family_of(description, family, path)
    if any(_FIRST in name for name in state):
        state = _merge_products(state, description, path)
    ours = {name.removeprefix(_OURS): tensor for name, tensor in state.items() if name.startswith(_OURS)}
    return ours or state, description


def require_family_of(description: ModelDescription | None, family: str, path: Path) -> None:
    """Make sure that a file that says what it holds, holds a network of this family.

    Raises:
        InputError: it does not.
    """
    if description is not None and (found := description.options.get("family", description.type)) != family:
        raise InputError(f"weights: {path} holds a network of type {found!r}, not {family}; correct it")


def lora_product(first: torch.Tensor, second: torch.Tensor, scaling: float) -> torch.Tensor:
    """What LoRA adds to a layer's weight (Hu et al. 2022, section 4.1), in that weight's shape.

    peft's own fails for kernels of 1 x 1 x 1.

    Args:
        first: A, float (rank, in, ...), with the layer's kernel.
        second: B, float (out, rank), or with a kernel of 1.
        scaling: lora_alpha / lora_rank.
    """
    return scaling * torch.einsum("or,ri...->oi...", second.flatten(1), first)


def _merge_products(state: StateDict, description: ModelDescription | None, path: Path) -> StateDict:
    if description is None:
        raise InputError(
            f"weights: {path} holds LoRA's products, but does not say how much they count; give the "
            "model_best.safetensors that Video_Models.train_video wrote"
        )
    adaptation = description.options["adaptation"]
    scaling = adaptation["lora_alpha"] / adaptation["lora_rank"]
    merged = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, first in state.items():
        layer, is_first, adapter = name.partition(_FIRST)
        if is_first:
            weight = f"{layer}.weight"
            merged[weight] = merged[weight] + lora_product(first, state[f"{layer}{_SECOND}{adapter}"], scaling)
    return merged
