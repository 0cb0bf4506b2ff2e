"""RandAugment on clips: torchvision's operations, one draw for all frames, one colour to one colour in all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from utils.rand_augment import MAX_MAGNITUDE, OPERATIONS, rand_augment

# torchvision's names, in the order of ours.
NAMES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
THEIRS = dict(zip(OPERATIONS, NAMES, strict=True))
FILL = (0.2, 0.4, 0.6)
COLOUR = [51.0, 102.0, 153.0]


def clip(num_frames: int = 3, height: int = 20, width: int = 26, seed: int = 0) -> torch.Tensor:
    """uint8 (T, 3, H, W): colours out of 5 levels, each frame brighter than the one before."""
    levels = np.random.default_rng(seed).integers(0, 5, (num_frames, 3, height, width))
    return torch.from_numpy((20 * levels + 40 * np.arange(num_frames)[:, None, None, None]).astype(np.uint8))


def torchvisions(image: torch.Tensor, name: str, magnitude: int, is_negative: bool) -> torch.Tensor:
    """One operation of torchvision's class on uint8 (3, H, W)."""
    theirs = v2.RandAugment(fill=COLOUR)
    magnitudes, is_signed = theirs._AUGMENTATION_SPACE[THEIRS[name]]
    values = magnitudes(MAX_MAGNITUDE + 1, *image.shape[-2:])
    value = 0.0 if values is None else float(values[magnitude])
    value = -value if is_signed and is_negative else value
    options = {"interpolation": theirs.interpolation, "fill": theirs._fill}
    return theirs._apply_image_or_video_transform(image, THEIRS[name], value, **options)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("is_negative", [False, True])
def test_operations_are_torchvisions_on_an_image(name, is_negative):
    assert set(THEIRS.values()) == set(v2.RandAugment()._AUGMENTATION_SPACE)
    for magnitude in (0, 1, 9, 17, 25, MAX_MAGNITUDE):
        image = clip(1)
        strength = OPERATIONS[name].strength(magnitude, is_negative, image.shape)
        found = OPERATIONS[name].change(image, strength, COLOUR)
        assert torch.equal(found[0], torchvisions(image[0], name, magnitude, is_negative)), magnitude


@pytest.mark.parametrize(
    "name", ["brightness", "saturation", "contrast", "posterize", "solarize", "autocontrast", "equalize"]
)
def test_one_colour_goes_to_one_colour_in_all_frames(name):
    frames = clip()
    strength = OPERATIONS[name].strength(20, False, frames.shape)
    changed = OPERATIONS[name].change(frames, strength, COLOUR)
    assert not torch.equal(changed, frames)
    found: dict[tuple, tuple] = {}
    for before, after in zip(
        frames.movedim(1, -1).reshape(-1, 3).tolist(), changed.movedim(1, -1).reshape(-1, 3).tolist(), strict=True
    ):
        assert found.setdefault(tuple(before), tuple(after)) == tuple(after)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate", "sharpness"])
def test_shapes_change_alike_in_all_frames(name):
    frames = clip()
    strength = OPERATIONS[name].strength(20, True, frames.shape)
    changed = OPERATIONS[name].change(frames, strength, COLOUR)
    for frame, found in zip(frames, changed, strict=True):
        assert torch.equal(OPERATIONS[name].change(frame[None], strength, COLOUR)[0], found)


def test_items_are_changed_one_operation_after_the_other_as_drawn():
    images = torch.stack([clip(1, seed=seed)[0] for seed in range(40)])
    outputs = rand_augment(images, 2, 9, FILL, torch.Generator().manual_seed(5))
    source = torch.Generator().manual_seed(5)
    chosen = torch.randint(14, (2, 40), generator=source)
    negative = torch.rand(2, 40, generator=source) < 0.5
    assert len(chosen.unique()) == 14
    for item in range(40):
        expected = images[item]
        for step in range(2):
            expected = torchvisions(expected, list(OPERATIONS)[chosen[step, item]], 9, bool(negative[step, item]))
        assert torch.equal(outputs[item], expected), item


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_inputs_stay_and_outputs_are_bytes_in_their_memory_order(dtype):
    frames = torch.stack([clip(seed=seed) for seed in range(4)])  # (B, T, 3, H, W)
    inputs = frames.permute(1, 0, 3, 4, 2).contiguous().permute(1, 4, 0, 2, 3).to(dtype)  # memory: (T, B, H, W, C)
    before = inputs.clone()
    outputs = rand_augment(
        inputs + 0.3 if dtype.is_floating_point else inputs, 1, 9, FILL, torch.Generator().manual_seed(1)
    )
    assert torch.equal(inputs, before)
    assert outputs.dtype == torch.uint8 and outputs.stride() == inputs.stride()
    assert torch.equal(outputs, rand_augment(before.byte(), 1, 9, FILL, torch.Generator().manual_seed(1))), "rounded"
    whole = rand_augment(inputs.contiguous(), 1, 9, FILL, torch.Generator().manual_seed(1))
    assert torch.equal(outputs, whole), "the layout of the memory changes nothing"


def test_magnitude_0_leaves_all_but_the_operations_without_a_strength():
    frames = clip()
    for name, operation in OPERATIONS.items():
        changed = operation.change(frames, operation.strength(0, True, frames.shape), COLOUR)
        assert torch.equal(changed, frames) == (name not in ("autocontrast", "equalize")), name
