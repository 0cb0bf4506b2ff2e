"""A transformer's configuration: the library's own class, with unknown names and impossible values as one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from Video_Models.input_rules import FrameRule, SizeRule
from Video_Models.registry import FAMILIES

SIZE_KEYS = ("num_frames", "image_size")


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


def build_config(
    architecture: Architecture, values: Mapping[str, Any] | None, *, num_frames: int, image_size: int
) -> PreTrainedConfig:
    """A family's configuration, with default values where none are given.

    Raises:
        ValueError: an unknown name, or a value of the wrong kind.
    """
    values = dict(values or {})
    FAMILIES[architecture.name].check_config(values)
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
    values = {key: getattr(config, key) for key in FAMILIES[config.model_type].config_keys}
    return {key: value for key, value in values.items() if not _is_same(value, getattr(defaults, key))}


def input_rules(config: PreTrainedConfig) -> tuple[FrameRule, SizeRule]:
    """Whole tubes and whole patches only: VideoMAE would drop the last frame of three without a word.

    Raises:
        ValueError: a tube or patch that has no frames or pixels.
    """
    tubelet = getattr(config, "tubelet_size", 1)  # TimeSformer has none
    sides = (tubelet, config.patch_size, config.patch_size) if isinstance(tubelet, int) else tuple(tubelet)
    if len(sides) != 3 or min(sides) < 1:
        raise ValueError(
            f"config: a token covers {' x '.join(map(str, sides))} frames and pixels, expected three positive numbers; "
            "correct tubelet_size or patch_size"
        )
    num_frames, height, width = sides
    return FrameRule(multiple_of=num_frames), SizeRule(multiple_of=math.lcm(height, width))


def _is_same(value: Any, default: Any) -> bool:
    """JSON knows no tuples."""
    return list(value) == list(default) if isinstance(value, list | tuple) else value == default
