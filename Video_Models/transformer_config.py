"""A transformer's configuration: the library's own class, with unknown names and impossible values as one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

SIZE_KEYS = ("num_frames", "image_size")
_OF_OTHER_PARTS = ("decoder_", "norm_pix_loss", "pooler_")  # not of the encoder, which is all that is built


@dataclass(frozen=True)
class Architecture:
    """What transformers calls one family.

    Attributes:
        name: `model_type` of its `config.json`; also the base model's name in the classifier.
        classifier_class: its network with a classification head.
    """

    name: str
    config_class: type[PreTrainedConfig]
    classifier_class: type[PreTrainedModel]


def architecture_keys(config_class: type[PreTrainedConfig]) -> tuple[str, ...]:
    """The names that `config` of a family's builder may hold: its configuration's own, but for frames and size."""
    shared = {field.name for field in fields(PreTrainedConfig)} | {*SIZE_KEYS, "num_channels"}
    names = sorted(field.name for field in fields(config_class) if field.name not in shared)
    return tuple(name for name in names if not name.startswith(_OF_OTHER_PARTS))


def build_config(
    architecture: Architecture, values: Mapping[str, Any] | None, *, num_frames: int, image_size: int
) -> PreTrainedConfig:
    """A family's configuration, with default values where none are given.

    Raises:
        ValueError: an unknown name, or a value of the wrong kind.
    """
    values = dict(values or {})
    known = architecture_keys(architecture.config_class)
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f"config: unknown key {unknown[0]!r}; this family knows: {', '.join(known)}")
    try:
        config = architecture.config_class(**values, num_frames=num_frames, image_size=image_size)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"config: {' '.join(str(error).split())}") from None
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"config: hidden_size {config.hidden_size} is no multiple of num_attention_heads "
            f"{config.num_attention_heads}; change one of them"
        )
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"config: unknown hidden_act {config.hidden_act!r}; known: {', '.join(sorted(ACT2FN))}")
    return config


def config_values(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration's values that differ from the family's defaults: what `build_config` makes it of again."""
    defaults = type(config)()
    differing = {key: getattr(config, key) for key in architecture_keys(type(config))}
    return {key: value for key, value in differing.items() if not _is_same(value, getattr(defaults, key))}


def _is_same(value: Any, default: Any) -> bool:
    """JSON knows no tuples."""
    return list(value) == list(default) if isinstance(value, list | tuple) else value == default
