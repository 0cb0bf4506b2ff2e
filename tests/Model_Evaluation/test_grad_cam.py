"""Grad-CAM against hand-computed maps, against itself in the two forms of a 3-D network, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import TINY, TRANSFORMERS
from tiny_transformers import build_tiny
from torch import nn

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.grad_cam import compute_grad_cam, overlay_maps, write_grad_cam
from Model_Evaluation.models import OneTask
from utils.frames_as_batch import has_frames_as_batch, use_clips
from Video_Models.models import VideoClassifier, build_video_classifier


class TinyNet(nn.Module):
    """Two channels of one pixel each position, and a linear layer over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.head = nn.Linear(2 * 2 * 2, 2, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, 2, 2) -> (B, 2)."""
        return self.head(self.conv(images).flatten(1))


class OneFrameNet(nn.Module):
    """A 3-D convolution whose logits read the features of frame 1, and there the left half only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 1, bias=False)
        nn.init.uniform_(self.conv.weight)
        self.head = nn.Linear(4, 2)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, T, H, W) -> (B, 2)."""
        half = torch.zeros_like(clip)
        half[..., : clip.shape[-1] // 2] = clip[..., : clip.shape[-1] // 2]
        return self.head(self.conv(half)[:, :, 1].mean(dim=(2, 3)))


CONFIGS = {family: config for family, config in TINY.items() if family not in TRANSFORMERS}
SIDE = 64


def build_clips(family: str, num_frames: int = 3, **options) -> VideoClassifier:
    torch.manual_seed(0)
    options = {"family": family, "num_frames": num_frames, "image_size": SIDE, "config": CONFIGS[family]} | options
    model = build_video_classifier(3, **options)
    torch.manual_seed(1)
    for layer in [*model.head.modules(), *getattr(model.backbone, "classifier", nn.Module()).modules()]:
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, 0, 0.1)  # something speaks for every class
    return model.eval()


def clips_of(num_frames: int, num_items: int = 2) -> torch.Tensor:
    return torch.randn(num_items, 3, num_frames, SIDE, SIDE, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def vgg_3d() -> nn.Module:
    torch.manual_seed(0)
    return build_vgg11_3d(4, classifier_width=8)


def test_map_equals_the_hand_computed_one():
    model = TinyNet()
    with torch.no_grad():
        model.conv.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[:, :, None, None])
        # Class 1: channel 0 has gradients 4, 0, 0, 0 (mean 1), channel 1 has -2, -2, -2, -2 (mean -2).
        model.head.weight[1] = torch.tensor([4.0, 0, 0, 0, -2, -2, -2, -2])
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([[8.0, 4.0], [2.0, 1.0]])
    image[0, 1] = torch.tensor([[1.0, 0.0], [1.0, 3.0]])
    # 1 * channel 0 - 2 * channel 1 = [[6, 4], [0, -5]]; the negative one is cut off, the largest becomes 1.
    expected = torch.tensor([[[[1.0, 4 / 6], [0.0, 0.0]]]])
    torch.testing.assert_close(compute_grad_cam(model, image, torch.tensor([1])), expected)


def test_maps_are_zero_where_the_logits_do_not_look():
    torch.manual_seed(1)
    model = OneFrameNet()
    with torch.no_grad():
        model.head.weight.copy_(torch.stack((torch.ones(4), -torch.ones(4))))
    maps = compute_grad_cam(model, torch.rand(2, 3, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
    assert maps.shape == (2, 3, 8, 8)
    assert maps[:, [0, 2]].abs().max() == 0 and maps[:, 1, :, 4:].abs().max() == 0
    assert maps[:, 1, :, :4].amax(dim=(1, 2)).tolist() == [1.0, 1.0]


def test_a_class_that_nothing_speaks_for_has_an_empty_map():
    torch.manual_seed(1)
    model = OneFrameNet()
    with torch.no_grad():
        model.head.weight.fill_(-1)
    maps = compute_grad_cam(model, torch.rand(1, 3, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
    assert torch.equal(maps, torch.zeros(1, 3, 8, 8))


def test_frames_as_a_batch_give_the_maps_of_clips(vgg_3d):
    clip = torch.randn(2, 3, 3, 64, 64)
    labels = torch.tensor([3, 1])
    assert has_frames_as_batch(vgg_3d)
    on_frames = compute_grad_cam(vgg_3d, clip, labels)
    assert has_frames_as_batch(vgg_3d)
    plain = build_vgg11_3d(4, classifier_width=8)
    plain.load_state_dict(vgg_3d.state_dict())
    use_clips(plain)
    torch.testing.assert_close(on_frames, compute_grad_cam(plain, clip, labels), atol=1e-4, rtol=0)
    assert on_frames.amax(dim=(1, 2, 3)).tolist() == [1.0, 1.0]


def test_a_static_clip_has_the_map_of_its_image_in_the_inflated_network():
    torch.manual_seed(2)
    flat = build_vgg11(4, classifier_width=8)
    from_flat = build_vgg11_3d(4, classifier_width=8)
    weights = flat.state_dict()
    inflated = from_flat.state_dict()
    for name, tensor in weights.items():
        if tensor.dim() == 4:
            inflated[name] = torch.zeros_like(inflated[name])
            inflated[name][:, :, 1] = tensor
        else:
            inflated[name] = tensor
    from_flat.load_state_dict(inflated)
    image, label = torch.randn(1, 3, 64, 64), torch.tensor([2])
    clip = image[:, :, None].expand(-1, -1, 3, -1, -1)
    of_image = compute_grad_cam(flat, image, label)
    assert of_image.max() == 1
    torch.testing.assert_close(
        compute_grad_cam(from_flat, clip, label), of_image.expand(-1, 3, -1, -1), atol=1e-4, rtol=0
    )


def test_the_model_is_left_as_it_was(vgg_3d):
    vgg_3d.train()
    vgg_3d.features[1].eval()
    flags = [module.training for module in vgg_3d.modules()]
    before = {name: tensor.clone() for name, tensor in vgg_3d.state_dict().items()}
    parameter = next(vgg_3d.parameters())
    parameter.grad = torch.ones_like(parameter)
    maps = compute_grad_cam(vgg_3d, torch.randn(1, 3, 3, 32, 32), torch.tensor([0]))
    assert not maps.requires_grad
    assert [module.training for module in vgg_3d.modules()] == flags
    assert all(torch.equal(before[name], tensor) for name, tensor in vgg_3d.state_dict().items())
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert all(other.grad is None for other in list(vgg_3d.parameters())[1:])
    assert not any(module._forward_hooks for module in vgg_3d.modules())
    parameter.grad = None


def test_a_network_without_convolution_is_refused():
    with pytest.raises(ValueError, match="Linear has no convolution"):
        compute_grad_cam(nn.Linear(3, 2), torch.rand(1, 3), torch.tensor([0]))


@pytest.mark.parametrize("num_frames", [3, pytest.param(5, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_clip_classifier_with_places_has_maps_of_each_item(family, num_frames):
    model, clips, labels = build_clips(family, num_frames), clips_of(num_frames), torch.tensor([2, 0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = compute_grad_cam(model, clips, labels)
    assert maps.shape == (2, num_frames, SIDE, SIDE) and maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.amax(dim=(1, 2, 3)).tolist() == [1.0, 1.0]
    assert maps.flatten(1).std(dim=1).min() > 1e-3, "a flat map would show nothing"
    for item in range(2):
        alone = compute_grad_cam(model, clips[item : item + 1], labels[item : item + 1])
        torch.testing.assert_close(maps[item : item + 1], alone, atol=1e-3, rtol=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("family", "block"), [("i3d", "inception5b"), ("r3d_18", "layer4.0"), ("swin3d_t", "features")]
)
def test_maps_are_of_what_leaves_the_last_block(family, block):
    """Of all branches and after the residual, not of the convolution that stands last in the code."""
    model, clips, labels = build_clips(family, 4), clips_of(4), torch.tensor([1, 2])
    kept = []
    handle = model.backbone.network.get_submodule(block).register_forward_hook(lambda _m, _i, out: kept.append(out))
    logits = model(clips)
    handle.remove()
    (gradients,) = torch.autograd.grad(logits[torch.arange(2), labels].sum(), kept)
    features = kept[0].detach()
    if family == "swin3d_t":
        features, gradients = (tensor.permute(0, 4, 1, 2, 3) for tensor in (features, gradients))
    maps = (features * gradients.mean(dim=(3, 4), keepdim=True)).sum(dim=1).clamp(min=0)
    maps = nn.functional.interpolate(maps[:, None], (4, SIDE, SIDE), mode="trilinear", align_corners=False)[:, 0]
    expected = maps / maps.amax(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(compute_grad_cam(model, clips, labels), expected, atol=1e-5, rtol=0)


def test_frames_of_a_bag_have_their_own_maps_in_their_order():
    model, clips, labels = build_clips("resnet18"), clips_of(3), torch.tensor([0, 1])
    maps, order = compute_grad_cam(model, clips, labels), [2, 0, 1]
    torch.testing.assert_close(compute_grad_cam(model, clips[:, :, order], labels), maps[:, order], atol=1e-4, rtol=0)
    assert (maps[:, 0] - maps[:, 1]).abs().max() > 0.01


def test_fewer_time_steps_than_frames_are_interpolated():
    """C3D pools 3 frames to one step: one map for all; Swin's two steps of 4 frames meet half-way."""
    maps = compute_grad_cam(build_clips("c3d"), clips_of(3), torch.tensor([0, 1]))
    assert torch.equal(maps[:, 0], maps[:, 1]) and torch.equal(maps[:, 0], maps[:, 2])
    maps = compute_grad_cam(build_clips("swin3d_t", 4), clips_of(4), torch.tensor([0, 1]))
    torch.testing.assert_close(maps[:, 1], 0.75 * maps[:, 0] + 0.25 * maps[:, 3])


def test_a_frame_that_is_repeated_has_the_mean_of_its_repetitions():
    """A network built for 3 frames that sees more of them, against one that is given these as they are."""
    model = build_clips("s3d")
    index = model.frame_index
    assert len(index) > 3
    whole = build_clips("s3d", len(index))
    whole.load_state_dict(model.state_dict())
    clips, labels = clips_of(3), torch.tensor([1, 0])
    of_all = compute_grad_cam(whole, clips[:, :, index], labels)
    expected = torch.stack([of_all[:, index == frame].mean(dim=1) for frame in range(3)], dim=1)
    expected /= expected.amax(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(compute_grad_cam(model, clips, labels), expected, atol=1e-4, rtol=0)


def test_lora_that_adds_nothing_yet_changes_no_map():
    clips, labels = clips_of(3), torch.tensor([2, 1])
    plain = compute_grad_cam(build_clips("r3d_18"), clips, labels)
    adapted = build_clips("r3d_18", adaptation={"mode": "lora", "lora_rank": 2})
    torch.testing.assert_close(compute_grad_cam(adapted, clips, labels), plain, atol=1e-5, rtol=0)


def test_one_task_of_several_is_explained_by_its_own_logits():
    tasks = {"grainy": 2, "scene": 3}
    model = build_clips("r3d_18", tasks=tasks, adapter_width=4)
    clips = clips_of(3)
    of_task = compute_grad_cam(OneTask(model, tasks, "scene"), clips, torch.tensor([1, 2]))
    assert torch.equal(of_task, compute_grad_cam(model, clips, torch.tensor([3, 4])))


def test_a_transformer_without_convolutional_blocks_is_refused():
    model = build_tiny("videomae")
    with pytest.raises(ValueError, match="has no convolution whose output Grad-CAM could weight"):
        compute_grad_cam(model, torch.randn(1, 3, 4, 16, 16), torch.tensor([0]))


def test_overlay_leaves_pixels_alone_where_the_map_is_zero():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    maps = np.zeros((2, 4, 4))
    maps[1, 0, 0] = 1
    overlaid = overlay_maps(frames, maps)
    changed = (overlaid != frames).any(axis=-1)
    assert changed.tolist() == (maps > 0).tolist()


def test_sheet_holds_every_row_and_says_what_it_shows(tmp_path):
    frames = np.full((3, 3, 16, 16, 3), 200, dtype=np.uint8)
    maps = {"2-D": np.zeros((3, 1, 16, 16)), "3-D": np.ones((3, 3, 16, 16))}
    write_grad_cam(tmp_path / "grad_cam_a.png", frames, maps, ["lion", "ox", "a <b> & \u00e9"])
    write_grad_cam(tmp_path / "again.png", frames, maps, ["lion", "ox", "a <b> & \u00e9"])
    assert (tmp_path / "grad_cam_a.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    with Image.open(tmp_path / "grad_cam_a.png") as sheet:
        assert sheet.text["Description"] == "Grad-CAM of 2-D and 3-D on 3 items: lion; ox; a <b> & \u00e9."
        pixels = np.asarray(sheet)
    shown = (pixels == 200).all(axis=-1).sum()
    assert shown == 3 * (3 + 1) * 112 * 112  # 3 items: 3 frames as they are, and the 2-D network's empty map
