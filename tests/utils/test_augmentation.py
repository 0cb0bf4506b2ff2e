"""What happens to batches on the device: exact where it is off, one draw for all frames where it is on."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from utils.augmentation import Augmentation, Mixing, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURED = Augmentation(True, 0.3, 0.4, 0.4, 0.4, 0.5)
EVERYTHING = replace(COLOURED, rotation_degrees=30.0, hue=0.2, rand_augment_ops=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(num_items: int = 6, num_frames: int = 3, height: int = 10, width: int = 14, *, alike: bool = False):
    """uint8 (B, 3, T, H, W) in the memory order of a gathered batch: (T, B, H, W, C)."""
    values = np.random.default_rng(0).integers(0, 256, (num_frames, num_items, height, width, 3), dtype=np.uint8)
    if alike:
        values[:] = values[:1]
    return torch.from_numpy(values).permute(1, 4, 0, 2, 3)


def images(**options):
    return clips(num_frames=1, **options)[:, :, 0]


def layouts() -> dict[str, torch.Tensor]:
    return {
        "clips": clips(),
        "contiguous clips": clips().contiguous(),
        "images": images(),
        "contiguous images": images().contiguous(),
        "clips of one frame": clips(num_frames=1),
        "one clip": clips(num_items=1),
    }


def memory_order(inputs: torch.Tensor) -> list[int]:
    """The strides that matter: an axis of one entry may have any."""
    return [stride for stride, size in zip(inputs.stride(), inputs.shape, strict=True) if size > 1]


@pytest.mark.parametrize("name", layouts())
def test_normalisation_is_the_formula_in_the_same_memory_order(name):
    inputs = layouts()[name]
    shape = (3, *(1,) * (inputs.dim() - 2))
    mean, std = (torch.tensor(values, dtype=torch.float64).view(shape) for values in (MEAN, STD))
    expected = (inputs.double() / 255 - mean) / std
    outputs = Preprocessing(MEAN, STD)(inputs)
    assert outputs.dtype == torch.float32 and memory_order(outputs) == memory_order(inputs)
    assert (outputs - expected).abs().max() < 1e-6


def test_a_pixel_gives_one_value_in_whatever_layout():
    preprocess = Preprocessing(MEAN, STD)
    values = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    table = preprocess(values)[0, :, 0]  # (3, 256)
    for name, inputs in layouts().items():
        channel = torch.arange(3).view(1, 3, *(1,) * (inputs.dim() - 2)).expand(inputs.shape)
        assert torch.equal(preprocess(inputs), table[channel, inputs.long()]), name


def test_floats_are_normalised_like_bytes_and_stay_as_they_are():
    inputs = clips()
    floats = inputs.float()
    before = floats.clone()
    assert torch.equal(Preprocessing(MEAN, STD)(floats), Preprocessing(MEAN, STD)(inputs))
    assert torch.equal(floats, before)


def test_constants_made_in_inference_mode_serve_where_gradients_are_asked_for():
    std = (0.5, 0.25, 0.125)  # of no other test: constants are kept
    preprocess = Preprocessing((0.1, 0.2, 0.3), std)
    with torch.inference_mode():
        preprocess(images())
    inputs = images().float().requires_grad_()
    preprocess(inputs).sum().backward()
    expected = (1 / (255 * torch.tensor(std))).view(3, 1, 1).expand_as(inputs)
    assert torch.allclose(inputs.grad, expected, rtol=1e-6)


@pytest.mark.parametrize("inputs", [clips(), images()], ids=["clips", "images"])
def test_what_is_off_changes_and_draws_nothing(inputs):
    source = generator()
    assert Augmentation()(inputs, source) is inputs
    labels = torch.arange(len(inputs))
    mixed, targets = Mixing()(inputs, labels, 10, source)
    assert mixed is inputs and targets is labels
    assert torch.equal(source.get_state(), generator().get_state())


@pytest.mark.parametrize("inputs", [clips(), images()], ids=["clips", "images"])
def test_inputs_stay_as_they_are_and_outputs_keep_their_order(inputs):
    before = inputs.clone()
    outputs = EVERYTHING(inputs, generator())
    assert torch.equal(inputs, before)
    assert outputs.shape == inputs.shape and memory_order(outputs) == memory_order(inputs)
    assert outputs.min() >= 0 and outputs.max() <= 255
    assert (outputs != inputs).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    "augment",
    [
        Augmentation(horizontal_flip=True),
        Augmentation(crop_min_area=0.2),
        Augmentation(brightness=0.5),
        Augmentation(contrast=0.5),
        Augmentation(saturation=0.5),
        Augmentation(erase_probability=0.7),
        Augmentation(rotation_degrees=45.0),
        Augmentation(hue=0.3),
        Augmentation(rand_augment_ops=1),
        Augmentation(rand_augment_ops=3, rand_augment_magnitude=20),
        COLOURED,
        EVERYTHING,
    ],
    ids=[
        *("flip", "crop", "brightness", "contrast", "saturation", "erase"),
        *("rotation", "hue", "one operation", "three operations", "coloured", "everything"),
    ],
)
def test_all_frames_of_a_clip_are_changed_alike_and_items_are_not(augment):
    still = clips(num_items=16, alike=True)
    outputs = augment(still, generator())
    assert torch.equal(outputs, outputs[:, :, :1].expand_as(outputs))
    same = augment(still[:1].expand_as(still), generator())
    assert any(not torch.equal(same[0], other) for other in same[1:]), "each item has its own draw"
    assert not torch.equal(outputs, still.to(outputs.dtype)), "it did something"
    assert torch.equal(outputs, augment(still, generator())), "the same seed, the same draws"
    assert not torch.equal(outputs, augment(still, generator(1)))
    # A clip of one frame is changed as the image is.
    assert torch.equal(augment(still[:, :, :1], generator())[:, :, 0], augment(still[:, :, 0], generator()))


def test_items_are_mirrored_exactly_and_half_of_them():
    inputs = clips(num_items=200)
    outputs = Augmentation(horizontal_flip=True)(inputs, generator())
    assert outputs.dtype == torch.uint8
    same = (outputs == inputs).flatten(1).all(dim=1)
    mirrored = (outputs == inputs.flip(-1)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130
    draws = torch.rand(200, generator=generator()) < 0.5
    assert torch.equal(mirrored, draws)


@pytest.mark.parametrize("inputs", [clips(height=40, width=60), images(height=40, width=60)], ids=["clips", "images"])
def test_a_crop_is_its_box_resized(inputs):
    outputs = Augmentation(crop_min_area=0.25)(inputs, generator())
    area, top, left = torch.rand(3, 6, generator=generator(), dtype=torch.float64).tolist()
    for item in range(6):
        side = (0.25 + 0.75 * area[item]) ** 0.5
        rows, columns = round(40 * side), round(60 * side)
        y, x = int(top[item] * (41 - rows)), int(left[item] * (61 - columns))
        box = inputs[item, ..., y : y + rows, x : x + columns].double()
        frames = box.reshape(1, -1, rows, columns)  # (3, [T,] h, w): all of them channels
        expected = functional.interpolate(frames, (40, 60), mode="bilinear").reshape(outputs[item].shape)
        assert (outputs[item] - expected).abs().max() < 1e-3


def test_crops_have_the_given_area_the_aspect_and_any_place():
    height, width = 40, 60
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inputs = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8).expand(200, 3, height, width)
    outputs = Augmentation(crop_min_area=0.25)(inputs, generator())
    inner = outputs[:, :, 5:-5, 5:-5]  # bilinear reads a ramp exactly; the outermost pixels are repeated
    share_y = (inner[:, 0, -1, 0] - inner[:, 0, 0, 0]) / (height - 11)
    share_x = (inner[:, 1, 0, -1] - inner[:, 1, 0, 0]) / (width - 11)
    assert (share_y - share_x).abs().max() < 0.5 / height + 0.5 / width + 1e-4, "aspect kept, but for whole pixels"
    area = share_y * share_x
    assert 0.23 < area.min() < 0.28 and 0.95 < area.max() <= 1 + 1e-4
    for channel, size in enumerate((height, width)):
        assert outputs[:, channel].min() == 0 and outputs[:, channel].max() == pytest.approx(size - 1, abs=1e-3)


def test_colour_factors_are_those_of_the_formulas():
    inputs = clips(num_items=4)
    values = inputs.double()
    grey = (values * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)).sum(dim=1, keepdim=True)
    towards = {
        "brightness": torch.zeros(()),
        "contrast": grey.mean(dim=(1, 2, 3, 4), keepdim=True),
        "saturation": grey,
    }
    factors = (0.4 + 1.2 * torch.rand(4, generator=generator())).view(4, 1, 1, 1, 1).double()
    for name, target in towards.items():
        expected = (target + factors * (values - target)).clamp(0, 255)
        outputs = Augmentation(**{name: 0.6})(inputs, generator())
        assert (outputs - expected).abs().max() < 1e-3, name


def test_a_rotation_is_about_the_centre_and_uncovers_the_colour():
    """As torchvision's bilinear one, but for the border, which shades from the picture to the colour."""
    inputs, colour = clips(num_items=8, height=24, width=36), (0.0, 0.5, 1.0)
    outputs = Augmentation(rotation_degrees=60.0, erase_colour=colour)(inputs, generator())
    angles = (torch.rand(8, generator=generator(), dtype=torch.float64) * 120 - 60).tolist()
    assert max(angles) > 30 and min(angles) < -30
    for item, angle in enumerate(angles):
        options = {"interpolation": InterpolationMode.BILINEAR}
        frames = inputs[item].float().transpose(0, 1)
        covered = rotate(torch.ones_like(frames), angle, **options)
        expected = rotate(frames, angle, **options)
        found = outputs[item].transpose(0, 1)
        is_inside, is_outside = covered > 1 - 1e-5, covered == 0
        assert is_inside.float().mean() > 0.3 and is_outside.any()
        assert (found - expected)[is_inside].abs().max() < 0.05
        fill = (255 * torch.tensor(colour)).view(3, 1, 1).expand_as(found)
        assert (found - fill)[is_outside].abs().max() < 1e-4
        shaded = covered * (expected / covered.clamp_min(1e-6)) + (1 - covered) * fill
        assert (found - shaded).abs().max() < 0.1


def test_positive_angles_turn_counter_clockwise():
    """A dot to the right of the centre goes up."""
    inputs = torch.zeros(64, 3, 9, 9, dtype=torch.uint8)
    inputs[:, :, 4, 8] = 255  # right of the centre
    outputs = Augmentation(rotation_degrees=90.0)(inputs, generator())
    angles = torch.rand(64, generator=generator(), dtype=torch.float64) * 180 - 90
    rows = (outputs[:, 0].sum(2) * torch.arange(9)).sum(1) / outputs[:, 0].sum((1, 2))
    torch.testing.assert_close(rows.double(), 4 - 4 * angles.deg2rad().sin(), atol=0.3, rtol=0)


def test_hues_turn_as_in_hsv():
    inputs = clips(num_items=4, num_frames=2, height=3, width=4)
    inputs[0, :, :, 0] = 77  # grey stays grey
    outputs = Augmentation(hue=0.4)(inputs, generator())
    shifts = ((torch.rand(4, generator=generator()) * 2 - 1) * 0.4).tolist()
    for item, shift in enumerate(shifts):
        assert abs(shift) <= 0.4
        for pixel, found in zip(inputs[item].flatten(1).T.tolist(), outputs[item].flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
            expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
            assert found == pytest.approx([255 * level for level in expected], abs=0.01)
    assert (outputs[0, :, :, 0] - 77).abs().max() < 1e-3


def test_what_is_off_draws_nothing_for_the_others():
    inputs, used, source = clips(), generator(), generator()
    jitter = Augmentation(brightness=0.4, contrast=0.4, saturation=0.4)
    replace(jitter, hue=0.1, rand_augment_magnitude=30)(inputs, used)
    for _ in range(4):
        torch.rand(len(inputs), generator=source)
    assert torch.equal(used.get_state(), source.get_state()), "four draws an item"


def test_erasing_covers_one_rectangle_of_the_given_colour():
    inputs = torch.full((400, 3, 2, 32, 48), 200, dtype=torch.uint8)
    outputs = Augmentation(erase_probability=0.25, erase_colour=(0.0, 0.5, 1.0))(inputs, generator())
    covered = outputs[:, 0] == 0  # (B, T, H, W)
    is_erased = covered.flatten(1).any(dim=1)
    assert 70 < is_erased.sum() < 130
    for item in is_erased.nonzero().flatten().tolist():
        assert torch.equal(covered[item, 0], covered[item, 1])
        rows, columns = covered[item, 0].any(dim=1), covered[item, 0].any(dim=0)
        assert torch.equal(covered[item, 0], rows[:, None] & columns[None, :]), "a full rectangle"
        assert 0.01 < covered[item, 0].float().mean() < 0.35
        assert outputs[item, :, covered[item]].unique(dim=1).flatten().tolist() == [0, 128, 255]
    assert torch.equal(outputs[~is_erased], inputs[~is_erased])


def test_mixup_is_the_convex_combination_of_inputs_and_targets():
    inputs, labels = Preprocessing(MEAN, STD)(clips(num_items=8)), torch.arange(8) % 5
    mixed, targets = Mixing(mixup_alpha=0.4)(inputs, labels, 5, generator(3))
    source = generator(3)
    order = torch.randperm(8, generator=source)
    share = np.random.default_rng(int(torch.randint(2**62, (), generator=source))).beta(0.4, 0.4)
    assert 0.01 < share < 0.99
    assert torch.allclose(mixed, share * inputs + (1 - share) * inputs[order], atol=1e-6)
    hard = functional.one_hot(labels, 5).float()
    assert torch.allclose(targets, share * hard + (1 - share) * hard[order], atol=1e-6)
    assert memory_order(mixed) == memory_order(inputs) and targets.dtype == torch.float32


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_one_box_in_all_items_and_frames(seed):
    values = torch.arange(6, dtype=torch.float32).view(6, 1, 1, 1, 1).expand(6, 3, 3, 20, 30).contiguous()
    mixed, targets = Mixing(cutmix_alpha=1.0)(values, torch.arange(6), 6, generator(seed))
    order = torch.randperm(6, generator=generator(seed))
    foreign = mixed != values
    moved = order != torch.arange(6)
    box = foreign[moved][0, 0, 0]
    rows, columns = box.any(dim=1), box.any(dim=0)
    assert torch.equal(box, rows[:, None] & columns[None, :])
    assert torch.equal(foreign[moved], box.expand_as(foreign[moved]))
    assert torch.equal(mixed[..., box], order.float().view(6, 1, 1, 1).expand(6, 3, 3, int(box.sum())))
    share = 1 - box.float().mean()
    hard = torch.eye(6)
    assert torch.allclose(targets, share * hard + (1 - share) * hard[order], atol=1e-6)


def test_both_mixings_take_turns():
    values = torch.arange(16, dtype=torch.float32).view(16, 1, 1, 1).expand(16, 3, 8, 8).contiguous()
    source, whole = generator(), 0
    for _ in range(200):
        mixed, targets = Mixing(1.0, 1.0)(values, torch.arange(16), 16, source)
        assert torch.allclose(targets.sum(dim=1), torch.ones(16))
        whole += bool((mixed != mixed.round()).any())  # mixup alone makes values in between
    assert 70 < whole < 130


def test_targets_of_mixing_train_with_cross_entropy():
    logits, labels = torch.randn(8, 5, generator=generator()), torch.arange(8) % 5
    _, targets = Mixing(mixup_alpha=1.0)(torch.zeros(8, 3, 4, 4), labels, 5, generator(1))
    log_probabilities = logits.log_softmax(dim=1)
    expected = -(targets * log_probabilities).sum(dim=1).mean()
    assert functional.cross_entropy(logits, targets) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_draws_are_the_same_on_a_gpu():
    inputs, labels = clips(), torch.arange(6)
    for augment in (Augmentation(horizontal_flip=True), COLOURED, replace(COLOURED, rotation_degrees=30.0, hue=0.2)):
        found = augment(inputs.cuda(), generator())
        assert torch.allclose(found.cpu().float(), augment(inputs, generator()).float(), atol=0.1)
    operations = Augmentation(rand_augment_ops=2)
    found, expected = operations(inputs.cuda(), generator()).cpu(), operations(inputs, generator())
    assert ((found.int() - expected.int()).abs() <= 1).float().mean() > 0.98, "but for a pixel on the edge of two"
    for mixing in (Mixing(0.4), Mixing(0.0, 1.0)):
        floats = Preprocessing(MEAN, STD)(inputs)
        found, expected = mixing(floats.cuda(), labels.cuda(), 6, generator()), mixing(floats, labels, 6, generator())
        assert all(torch.allclose(one.cpu(), other, atol=1e-5) for one, other in zip(found, expected, strict=True))
