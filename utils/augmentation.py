"""From uint8 batches to what the network sees: normalised, augmented and mixed on the device, whole batches at once.

Everything random is drawn on the CPU from the given generator, so that a draw is the same on every device, and holds
for all frames of a clip. What is switched off draws nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

from utils.rand_augment import rand_augment

_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as in torchvision and Pillow
_MAX_VALUE = 255.0


@dataclass(frozen=True)
class Preprocessing:
    """From pixels to normalised values.

    Args:
        mean, std: per RGB channel, of values in 0..1.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """uint8 or float (B, 3, [T,] H, W), 0..255 -> float32 (x / 255 - mean) / std, in the same memory order.

        Multiplied, then added, each rounded once: one pixel gives one value, wherever it lies in whichever layout.
        """
        scale = tuple(1 / (_MAX_VALUE * std) for std in self.std)
        offset = tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
        if inputs.stride(1) == 1 and inputs.stride(-1) == 3:
            # Channels lie side by side: whole rows of W * 3 values against a row of constants take a sixth of the time
            # of three constants for each pixel (on a CPU).
            width = inputs.shape[-1]
            rows = inputs.movedim(1, -1).flatten(-2)  # (B, 3, [T,] H, W) -> (B, [T,] H, W * 3), a view
            rows = _scale(rows, _constants(scale, width, inputs.device), _constants(offset, width, inputs.device))
            return rows.unflatten(-1, (width, 3)).movedim(-1, 1)
        scale, offset = (_per_channel(_constants(values, 1, inputs.device), inputs) for values in (scale, offset))
        return _scale(inputs, scale, offset)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the pixels, drawn for each item; all frames of a clip alike.

    In this order: crop, mirror, rotate, RandAugment, brightness, contrast, saturation, hue, erase. Applied before
    `Preprocessing`.

    Args:
        horizontal_flip: mirror each item with probability 0.5.
        crop_min_area: crop a random share of the area from here to 1 and resize it (bilinear) to the whole, aspect
            kept; smaller zooms in more, 1 is off.
        brightness, contrast, saturation: strength s draws a factor from max(0, 1 - s)..1 + s, as in torchvision;
            0 is off.
        erase_probability: cover a random rectangle of 2..33 % of the area (Zhong et al. 2020); 0 is off.
        erase_colour: RGB in 0..1, also of what a rotation uncovers; the mean of the normalisation makes it zero for the
            network.
        rotation_degrees: turn about the centre (bilinear) by an angle from -this to this; higher turns further, 0 is
            off.
        hue: turn the colour circle by a share of it from -this to this, as in torchvision; 0.5 makes any colour of any,
            0 is off.
        rand_augment_ops: change each item by so many random operations of RandAugment (Cubuk et al. 2020), see
            `utils.rand_augment`; more change it more, 0 is off.
        rand_augment_magnitude: their strength, 0..30.
    """

    horizontal_flip: bool = False
    crop_min_area: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase_probability: float = 0.0
    erase_colour: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation_degrees: float = 0.0
    hue: float = 0.0
    rand_augment_ops: int = 0
    rand_augment_magnitude: int = 9

    def __call__(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """uint8 (B, 3, [T,] H, W), 0..255 -> the same shape and memory order.

        float32, 0..255, after a crop, a rotation or a change of colours; RandAugment rounds to uint8 again.

        The inputs stay as they are.
        """
        outputs = inputs
        if self.crop_min_area < 1:
            outputs = _crop(outputs, self.crop_min_area, generator)
        if self.horizontal_flip:
            outputs = _mirror(outputs, generator)
        if self.rotation_degrees:
            outputs = _rotate(outputs, self.rotation_degrees, self.erase_colour, generator)
        if self.rand_augment_ops:
            strength = (self.rand_augment_ops, self.rand_augment_magnitude)
            outputs = rand_augment(outputs, *strength, self.erase_colour, generator)
        if self.brightness:
            outputs = _blend(outputs, 0.0, _factors(self.brightness, outputs, generator))
        if self.contrast:
            outputs = _blend(outputs, _grey_mean(outputs), _factors(self.contrast, outputs, generator))
        if self.saturation:
            outputs = _blend(outputs, _grey(outputs), _factors(self.saturation, outputs, generator))
        if self.hue:
            outputs = _turn_hue(outputs, self.hue, generator)
        if self.erase_probability:
            outputs = _erase(outputs, self.erase_probability, self.erase_colour, generator)
        return outputs


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of each batch with a shuffled copy of itself.

    Where both are on, each batch gets one of them, with probability 0.5.

    Args:
        mixup_alpha: the share of an item is drawn from Beta(alpha, alpha), once a batch; larger mixes more, 0 is off.
        cutmix_alpha: the same for the area that an item keeps.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __call__(
        self, inputs: torch.Tensor, labels: torch.Tensor, num_classes: int | Sequence[int], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised inputs, float (B, 3, [T,] H, W), and labels, int64 (B,) -> mixed inputs, targets (B, num_classes).

        Labels of several tasks, int64 (B, num_tasks) with `num_classes` of each, become targets of all tasks side by
        side; a task's part is NaN where a mixed label is missing (-1). A label whose share is 0 is none of them.

        Returns:
            the inputs in new memory of the same order and float32 targets, which sum to 1 for each task; both as they
            were, labels included, where mixing is off.
        """
        if not self.mixup_alpha and not self.cutmix_alpha:
            return inputs, labels
        is_cutmix = bool(self.cutmix_alpha)
        if self.mixup_alpha and self.cutmix_alpha:
            is_cutmix = bool(torch.rand((), generator=generator) < 0.5)
        order = torch.randperm(len(inputs), generator=generator)
        share = _draw_beta(self.cutmix_alpha if is_cutmix else self.mixup_alpha, generator)
        others = order.to(inputs.device)
        if is_cutmix:
            inputs, share = _paste(inputs, order.tolist(), share, generator)
        else:
            inputs = inputs.lerp(_take_items(inputs, others), 1 - share)
        hard = _as_shares(labels, num_classes)
        return inputs, _mix_targets(hard, hard[others], share)


def _as_shares(labels: torch.Tensor, num_classes: int | Sequence[int]) -> torch.Tensor:
    """Labels as float32 targets, 1 for the label: (B,) -> (B, K), or (B, num_tasks) -> (B, sum of K)."""
    if isinstance(num_classes, int):
        return functional.one_hot(labels, num_classes).float()
    tasks = zip(labels.unbind(1), num_classes, strict=True)
    shares = [(functional.one_hot(own.clamp_min(0), count).float(), own < 0) for own, count in tasks]
    return torch.cat([hard.masked_fill(is_missing[:, None], torch.nan) for hard, is_missing in shares], 1)


def _mix_targets(own: torch.Tensor, others: torch.Tensor, share: float) -> torch.Tensor:
    """Targets with `share` of their own; what has no share counts for nothing, even where it is NaN."""
    if share in (0.0, 1.0):
        return own if share else others
    return own.lerp(others, 1 - share)


def _scale(inputs: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    return inputs.to(torch.float32, copy=True).mul_(scale).add_(offset)


@lru_cache(maxsize=64)
def _constants(values: tuple[float, ...], repeat: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # made in an evaluation, they serve in training as well
        return torch.tensor(values, dtype=torch.float32).repeat(repeat).to(device)


def _draw_beta(alpha: float, generator: torch.Generator) -> float:
    # Torch's Beta takes no generator; NumPy's own is seeded from it.
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _per_channel(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return values.view(3, *(1,) * (inputs.dim() - 2))


def _mirror(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    is_mirrored = (torch.rand(len(inputs), generator=generator) < 0.5).to(inputs.device)
    return torch.where(is_mirrored.view(-1, *(1,) * (inputs.dim() - 1)), inputs.flip(-1), inputs)


def _crop(inputs: torch.Tensor, min_area: float, generator: torch.Generator) -> torch.Tensor:
    """float32, 0..255: a part of each item, resized to the whole."""
    outputs, (height, width) = torch.empty_like(inputs, dtype=torch.float32), inputs.shape[-2:]
    area, top, left = torch.rand(3, len(inputs), generator=generator, dtype=torch.float64).tolist()
    for item in range(len(inputs)):  # boxes differ in size; one grid_sample takes three times as long (on a CPU)
        side = (min_area + (1 - min_area) * area[item]) ** 0.5
        rows, columns = max(1, round(side * height)), max(1, round(side * width))
        y, x = int(top[item] * (height - rows + 1)), int(left[item] * (width - columns + 1))
        frames = _as_frames(inputs[item, ..., y : y + rows, x : x + columns]).float()
        resized = functional.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
        _as_frames(outputs[item]).copy_(resized)
    return outputs


def _rotate(
    inputs: torch.Tensor, degrees: float, fill: tuple[float, float, float], generator: torch.Generator
) -> torch.Tensor:
    """float32, 0..255: each item turned about its centre, counter-clockwise for positive angles."""
    drawn = torch.rand(len(inputs), generator=generator, dtype=torch.float64) * (2 * degrees) - degrees
    height, width = inputs.shape[-2:]
    cos, sin = drawn.deg2rad().cos(), drawn.deg2rad().sin()
    zero = torch.zeros_like(cos)
    # From output to input, in coordinates that go from -1 to 1 on both axes, y downwards.
    rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
    maps = torch.stack(rows, 1).view(-1, 2, 3).to(inputs.device, torch.float32)
    colour = _per_channel(torch.tensor(fill).mul(_MAX_VALUE).to(inputs.device), inputs)
    pixels = (inputs - colour).flatten(1, -3)  # (B, 3, [T,] H, W) -> (B, 3 * T, H, W): one grid for all frames
    grid = functional.affine_grid(maps, list(pixels.shape), align_corners=False)
    turned = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    outputs = torch.empty_like(inputs, dtype=torch.float32).copy_(turned.view(inputs.shape))
    return outputs.add_(colour).clamp_(0.0, _MAX_VALUE)


def _as_frames(item: torch.Tensor) -> torch.Tensor:
    """(3, [T,] H, W) -> (T, 3, H, W), a view."""
    return item[None] if item.dim() == 3 else item.transpose(0, 1)


def _factors(strength: float, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    low, high = max(0.0, 1 - strength), 1 + strength
    drawn = torch.rand(len(inputs), generator=generator) * (high - low) + low
    return drawn.to(inputs.device).view(-1, *(1,) * (inputs.dim() - 1))


def _grey(inputs: torch.Tensor) -> torch.Tensor:
    """(B, 3, ...) -> float32 (B, 1, ...)."""
    red, green, blue = (inputs[:, channel : channel + 1] for channel in range(3))
    return red.float().mul(_GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _grey_mean(inputs: torch.Tensor) -> torch.Tensor:
    """(B, 3, ...) -> float32 (B, 1, ...) with one value an item: over all frames."""
    means = inputs.float().movedim(1, -1).flatten(1, -2).mean(dim=1)  # (B, 3)
    return _grey(means).view(-1, *(1,) * (inputs.dim() - 1))


def _blend(inputs: torch.Tensor, towards: torch.Tensor | float, factors: torch.Tensor) -> torch.Tensor:
    """The inputs moved away from `towards` (factor above 1) or to it (below), within 0..255; factor 1 keeps them."""
    return inputs.to(torch.float32, copy=True).mul_(factors).add_((1 - factors) * towards).clamp_(0.0, _MAX_VALUE)


def _turn_hue(inputs: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """float32, 0..255: hue, as in HSV, moved along the colour circle; grey stays grey."""
    from torchvision.transforms.v2.functional import adjust_hue  # takes a second to import, and only this needs it

    shifts = (torch.rand(len(inputs), generator=generator) * 2 - 1) * strength
    outputs = torch.empty_like(inputs, dtype=torch.float32)
    for item, shift in enumerate(shifts.tolist()):
        frames = _as_frames(inputs[item]).float() / _MAX_VALUE
        _as_frames(outputs[item]).copy_(adjust_hue(frames, shift).mul_(_MAX_VALUE))
    return outputs


def _erase(
    inputs: torch.Tensor, probability: float, colour: tuple[float, float, float], generator: torch.Generator
) -> torch.Tensor:
    outputs, (height, width) = inputs.clone(), inputs.shape[-2:]
    fill = torch.tensor(colour).mul(_MAX_VALUE)
    fill = _per_channel((fill if inputs.is_floating_point() else fill.round()).to(inputs.device, inputs.dtype), inputs)
    chance, area, aspect, top, left = torch.rand(5, len(inputs), generator=generator, dtype=torch.float64).tolist()
    for item in range(len(inputs)):
        if chance[item] >= probability:
            continue
        pixels, ratio = (0.02 + 0.31 * area[item]) * height * width, 0.3 ** (1 - 2 * aspect[item])  # 0.3..1/0.3
        rows, columns = min(height, round((pixels * ratio) ** 0.5)), min(width, round((pixels / ratio) ** 0.5))
        y, x = int(top[item] * (height - rows + 1)), int(left[item] * (width - columns + 1))
        outputs[item, ..., y : y + rows, x : x + columns] = fill
    return outputs


def _paste(
    inputs: torch.Tensor, others: list[int], share: float, generator: torch.Generator
) -> tuple[torch.Tensor, float]:
    """Paste one box of other items, the same for all; returns the share that an item keeps of itself."""
    height, width = inputs.shape[-2:]
    centre_y, centre_x = (
        torch.rand(2, generator=generator, dtype=torch.float64) * torch.tensor([height, width])
    ).long()
    half_y, half_x = (int(size * (1 - share) ** 0.5) // 2 for size in (height, width))
    top, bottom = max(0, int(centre_y) - half_y), min(height, int(centre_y) + half_y)
    left, right = max(0, int(centre_x) - half_x), min(width, int(centre_x) + half_x)
    outputs = inputs.clone()
    for item, other in enumerate(others):
        outputs[item, ..., top:bottom, left:right] = inputs[other, ..., top:bottom, left:right]
    return outputs, 1 - (bottom - top) * (right - left) / (height * width)


def _take_items(inputs: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Items in another order, in the memory order of the inputs."""
    return torch.index_select(inputs, 0, items, out=torch.empty_like(inputs))
