"""RandAugment (Cubuk et al. 2020) on clips: random operations out of fourteen, each the same for all frames of a clip.

Operations and their magnitudes are those of torchvision's `RandAugment`. What an operation measures (mean, extremes,
histogram), it measures over the whole clip, so that one colour goes to one colour in all frames and nothing flickers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

MAX_MAGNITUDE = 30  # as torchvision's 31 steps


def rand_augment(
    inputs: torch.Tensor, num_ops: int, magnitude: int, fill: tuple[float, float, float], generator: torch.Generator
) -> torch.Tensor:
    """Change each item by `num_ops` operations; they and their signs are drawn on the CPU.

    Args:
        inputs: uint8 or float (B, 3, [T,] H, W), 0..255; floats are rounded.
        magnitude: 0..30; 0 leaves only the operations that have no strength.
        fill: RGB in 0..1 of what a shift or turn uncovers.

    Returns:
        uint8 of the same shape and memory order.
    """
    operations, shape = tuple(OPERATIONS.values()), (num_ops, len(inputs))
    chosen = torch.randint(len(operations), shape, generator=generator).T.tolist()
    negative = (torch.rand(shape, generator=generator) < 0.5).T.tolist()
    colour = [float(round(255 * value)) for value in fill]
    rounded = inputs.round() if inputs.is_floating_point() else inputs
    outputs = torch.empty_like(inputs, dtype=torch.uint8).copy_(rounded)
    for item, draws in enumerate(zip(chosen, negative, strict=True)):
        frames = outputs[item]
        frames = frames[None] if frames.dim() == 3 else frames.transpose(0, 1)  # (3, [T,] H, W) -> (T, 3, H, W), a view
        changed = frames
        for number, is_negative in zip(*draws, strict=True):
            operation = operations[number]
            changed = operation.change(changed, operation.strength(magnitude, is_negative, frames.shape), colour)
        frames.copy_(changed)
    return outputs


@dataclass(frozen=True)
class Operation:
    """One of the changes.

    Attributes:
        change: frames uint8 (T, 3, H, W), strength, RGB of what is uncovered in 0..255 -> frames.
        start, end: strength at magnitude 0 and at `MAX_MAGNITUDE`, linear in between.
        is_signed: each sign is as likely.
        side: strengths are shares of this axis of the frames, and become whole pixels.
    """

    change: Callable[[torch.Tensor, float, list[float]], torch.Tensor]
    start: float = 0.0
    end: float = 0.0
    is_signed: bool = False
    side: int | None = None

    def strength(self, magnitude: int, is_negative: bool, shape: torch.Size) -> float:
        """For a magnitude in 0..`MAX_MAGNITUDE` and frames of this shape."""
        value = self.start + (self.end - self.start) * magnitude / MAX_MAGNITUDE
        if self.side is not None:
            value = float(int(value * shape[self.side]))
        return -value if is_negative and self.is_signed else value


def _torchvision() -> ModuleType:
    """Imported late: it takes a second, and only this needs it."""
    from torchvision.transforms.v2 import functional

    return functional


def _geometric(frames: torch.Tensor, fill: list[float], **change: Any) -> torch.Tensor:
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return _torchvision().affine(frames, **(still | change), fill=fill)


def _shear_x(frames: torch.Tensor, strength: float, fill: list[float]) -> torch.Tensor:
    return _geometric(frames, fill, shear=[math.degrees(math.atan(strength)), 0.0], center=[0, 0])


def _shear_y(frames: torch.Tensor, strength: float, fill: list[float]) -> torch.Tensor:
    return _geometric(frames, fill, shear=[0.0, math.degrees(math.atan(strength))], center=[0, 0])


def _translate_x(frames: torch.Tensor, strength: float, fill: list[float]) -> torch.Tensor:
    return _geometric(frames, fill, translate=[int(strength), 0])


def _translate_y(frames: torch.Tensor, strength: float, fill: list[float]) -> torch.Tensor:
    return _geometric(frames, fill, translate=[0, int(strength)])


def _rotate(frames: torch.Tensor, strength: float, fill: list[float]) -> torch.Tensor:
    return _torchvision().rotate(frames, strength, fill=fill)


def _factor(name: str) -> Operation:
    """An operation that takes a factor around 1."""

    def change(frames: torch.Tensor, strength: float, _: list[float]) -> torch.Tensor:
        return getattr(_torchvision(), name)(frames, 1 + strength)

    return Operation(change, 0.0, 0.9, True)


def _posterize(frames: torch.Tensor, strength: float, _: list[float]) -> torch.Tensor:
    return _torchvision().posterize(frames, round(strength))


def _solarize(frames: torch.Tensor, strength: float, _: list[float]) -> torch.Tensor:
    return _torchvision().solarize(frames, strength)


def _contrast(frames: torch.Tensor, strength: float, _: list[float]) -> torch.Tensor:
    return _of_clip(lambda tall: _torchvision().adjust_contrast(tall, 1 + strength), frames)


def _autocontrast(frames: torch.Tensor, *_: Any) -> torch.Tensor:
    return _of_clip(_torchvision().autocontrast, frames)


def _equalize(frames: torch.Tensor, *_: Any) -> torch.Tensor:
    return _of_clip(_torchvision().equalize, frames)


def _of_clip(change: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """All frames as one tall image."""
    tall = frames.transpose(0, 1).flatten(1, 2)  # (T, 3, H, W) -> (3, T * H, W)
    return change(tall).unflatten(1, (len(frames), -1)).transpose(0, 1)


_SHIFT = 150 / 331  # of a side: up to 150 pixels of the 331 that the paper's images had
OPERATIONS = {
    "identity": Operation(lambda frames, *_: frames),
    "shear_x": Operation(_shear_x, 0.0, 0.3, True),
    "shear_y": Operation(_shear_y, 0.0, 0.3, True),
    "translate_x": Operation(_translate_x, 0.0, _SHIFT, True, side=3),
    "translate_y": Operation(_translate_y, 0.0, _SHIFT, True, side=2),
    "rotate": Operation(_rotate, 0.0, 30.0, True),
    "brightness": _factor("adjust_brightness"),
    "saturation": _factor("adjust_saturation"),
    "contrast": Operation(_contrast, 0.0, 0.9, True),
    "sharpness": _factor("adjust_sharpness"),
    "posterize": Operation(_posterize, 8.0, 4.0),
    "solarize": Operation(_solarize, 255.0, 0.0),
    "autocontrast": Operation(_autocontrast),
    "equalize": Operation(_equalize),
}
