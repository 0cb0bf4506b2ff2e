"""Transformers of a few thousand parameters, of the real classes, as whole classifiers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from tiny_families import TINY

from Video_Models import timesformer, videomae, vivit
from Video_Models.models import VideoClassifier, build_video_classifier

MODULES: dict[str, ModuleType] = {"videomae": videomae, "timesformer": timesformer, "vivit": vivit}
_PATCH = {
    "videomae": {"patch_size": 8},
    "timesformer": {"patch_size": 8},
    "vivit": {"tubelet_size": [2, 8, 8]},
}
IMAGE_SIZE = 16
NUM_CLASSES = 3


def tiny_config(family: str, **values: Any) -> dict[str, Any]:
    return TINY[family] | _PATCH[family] | values


def build_tiny(family: str, num_frames: int = 4, weights: str | None = None, **options: Any) -> VideoClassifier:
    """In eval mode; every weight random, those too that start at 0, or else parts of the network would do nothing."""
    options = {"image_size": IMAGE_SIZE, "config": tiny_config(family)} | options
    torch.manual_seed(0)
    model = build_video_classifier(NUM_CLASSES, weights, family=family, num_frames=num_frames, **options)
    if weights is None:
        randomise(model)
    return model.eval()


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def random_clips(num_frames: int = 4, image_size: int = IMAGE_SIZE, batch_size: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, 3, num_frames, image_size, image_size, generator=generator)
