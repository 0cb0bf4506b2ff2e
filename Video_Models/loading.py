"""From a checkpoint to the network of clips that it holds, ready to answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from torch import nn

from utils.checkpoints import ModelDescription, load_state, read_description, read_weights
from utils.errors import InputError

TYPES = ("inflated", "video")


def load_video_classifier(checkpoint: Path) -> tuple[nn.Module, ModelDescription]:
    """Build the network that a checkpoint was made by, in eval mode on the CPU, with its weights.

    Args:
        checkpoint: of `Video_Models.train_video` or `Inflated_3D_VGG.train3d`; its weights are checked in full.

    Returns:
        the network, float (B, 3, T, H, W), normalised -> logits (B, num_classes), those of several tasks side by side;
        and what the checkpoint says of itself.

    Raises:
        InputError: no such file, damaged, not a checkpoint of clips, or one of another version.
    """
    builder = _builder_of(read_description(checkpoint), checkpoint)  # the header alone, before all of the weights
    state_dict, described = read_weights(checkpoint)
    options = {"num_classes": len(described.classes), **described.options}
    if unknown := sorted(options.keys() - inspect.signature(builder).parameters.keys()):
        raise InputError(f"{checkpoint}: its description has the unknown option {unknown[0]!r}; train again")
    try:
        network = builder(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{checkpoint}: its description makes no network ({error}); train again") from None
    load_state(network, state_dict, checkpoint)
    return network.eval(), described


def _builder_of(described: ModelDescription | None, checkpoint: Path) -> Callable[..., nn.Module]:
    """Each is imported only where it is needed: transformers and peft take seconds that the VGG need not wait for."""
    if described is None:
        raise InputError(f"{checkpoint}: does not say which network it is of; give a model_best.safetensors")
    if described.type == "inflated":
        from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d

        return build_vgg11_3d
    if described.type == "video":
        from Video_Models.models import build_video_classifier

        return build_video_classifier
    raise InputError(
        f"{checkpoint}: is a {described.type!r} checkpoint, which sees no clips; known: {', '.join(TYPES)}"
    )
