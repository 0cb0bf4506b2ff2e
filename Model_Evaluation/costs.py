"""What a model costs without running it: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from Model_Evaluation.models import MODEL_NAMES, PAPER_BUILDERS, describe_input, load_model
from Model_Evaluation.settings import CostSettings, DataSettings
from utils.checkpoints import read_description
from utils.errors import InputError
from utils.frames_as_batch import use_clips, use_frames_as_batch


def models_to_count(settings: CostSettings) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, model and one item's input shape: of the paper's pair, or of the settings' checkpoint.

    Raises:
        InputError: a checkpoint that is not one of this project's.
    """
    if settings.checkpoint is not None:
        described = read_description(settings.checkpoint)
        if described is None:
            raise InputError(
                f"checkpoint: {settings.checkpoint} does not describe its model; give a model_best.safetensors"
            )
        form = describe_input(described.type, settings.checkpoint, DataSettings())
        yield str(settings.checkpoint), load_model(described.type, settings.checkpoint)[0], form.shape
        return
    for model_type, builder in PAPER_BUILDERS.items():
        size = (settings.image_size, settings.image_size)
        shape = (3, *size) if model_type == "baseline" else (3, settings.num_frames, *size)
        yield (
            MODEL_NAMES[model_type],
            builder(settings.num_classes, classifier_width=settings.classifier_width).eval(),
            shape,
        )


def count_parameters(model: nn.Module) -> int:
    """All parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_nominal_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one item as ptflops' pytorch backend counts them (the paper's figure).

    Of networks with attention it is `count_executed_macs`: ptflops does not see fused attention.

    Args:
        input_shape: of one item, without the batch.
    """
    from ptflops import get_model_complexity_info
    from ptflops.pytorch_ops import conv_flops_counter_hook

    if has_attention(model):
        return count_executed_macs(model, input_shape)
    with _on_clips(model):  # ptflops goes by the exact type
        macs, _ = get_model_complexity_info(
            model,
            input_shape,
            as_strings=False,
            print_per_layer_stat=False,
            verbose=False,
            backend="pytorch",
            custom_modules_hooks=dict.fromkeys(_conv_subclasses(model), conv_flops_counter_hook),
        )
    if macs is None:
        raise RuntimeError(f"ptflops could not run {type(model).__name__} on an input of shape {input_shape}")
    return int(macs)


def _conv_subclasses(model: nn.Module) -> set[type]:
    """Kinds of convolutions that ptflops, which goes by the exact type, would leave out."""
    known = (nn.Conv2d, nn.Conv3d)
    return {type(module) for module in model.modules() if isinstance(module, known)} - set(known)


def has_attention(model: nn.Module) -> bool:
    """Whether a layer calls itself attention, as those of transformers and torchvision do."""
    return any("attention" in type(module).__name__.lower() for module in model.modules())


@torch.no_grad()
def count_executed_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates that convolutions and products of one item really execute, as torch's counter sees them.

    Nothing is computed: the weights are stood in for by tensors without memory.

    Args:
        input_shape: of one item, without the batch.
    """
    # Not of the state dict: buffers that are in no checkpoint are on a device, too.
    own = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in own}
    with FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, tensors, torch.empty(1, *input_shape, device="meta"))
    return counter.get_total_flops() // 2


@contextmanager
def _on_clips(model: nn.Module) -> Iterator[None]:
    """A network that runs frames as a batch on torch's own 3-D layers."""
    was_on_frames = use_clips(model) > 0
    try:
        yield
    finally:
        if was_on_frames:
            use_frames_as_batch(model)
