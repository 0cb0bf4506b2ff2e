"""The smallest sensible network of each family of clip classifiers, as `config` of its builder."""

from __future__ import annotations

from typing import Any

_TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_VIT = {"embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "stochastic_depth_prob": 0.0}
_LAYERS = {"layers": [1, 1, 1, 1]}

TRANSFORMERS = ("videomae", "timesformer", "vivit")
TINY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(TRANSFORMERS, _TRANSFORMER),
    "i3d": {"width_multiplier": 0.125},
    "resnet18_3d": _LAYERS,
    "resnet50_3d": _LAYERS,
    "c3d": {"width_multiplier": 0.125, "dropout": 0.0},
    "resnet18": _LAYERS,
    "r3d_18": _LAYERS,
    "r2plus1d_18": _LAYERS,
    "mvit_v2_s": _VIT,
    "swin3d_t": _VIT,
    "s3d": {},  # knows no smaller one
}
