"""Inflation: a static clip gives the 2-D features, nothing is shared, and any torchvision CNN will do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import TemporalReplicateConv3d, build_vgg11_3d, inflate, inflate_conv
from utils.frames_as_batch import FramesConv3d, has_frames_as_batch

# With zero padding in time only `center` keeps the 2-D features; `average` needs replicated frames.
EXACT_COMBINATIONS = [("center", "zeros"), ("center", "replicate"), ("average", "replicate")]
CNNS = ["alexnet", "densenet121", "efficientnet_b0", "googlenet", "mobilenet_v2", "resnet18", "shufflenet_v2_x0_5"]
MORE_CNNS = [
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet50",
    "resnext50_32x4d",
    "squeezenet1_1",
    "vgg16",
]


def with_running_statistics(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics that a test would miss if they were dropped."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def build_cnn(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    return with_running_statistics(models.get_model(name, weights=None, **options))


def static_clip(images: torch.Tensor, num_frames: int = 3) -> torch.Tensor:
    return images[:, :, None].repeat(1, 1, num_frames, 1, 1)  # (B, C, H, W) -> (B, C, T, H, W)


@pytest.fixture(scope="module")
def vgg() -> nn.Module:
    torch.manual_seed(0)
    return with_running_statistics(build_vgg11(10, classifier_width=32))


@pytest.mark.parametrize(("init", "padding"), EXACT_COMBINATIONS)
@pytest.mark.parametrize("num_frames", [1, 3, 5])
def test_static_clip_gives_the_2d_logits(vgg, init, padding, num_frames):
    images = torch.randn(2, 3, 64, 64)
    vgg_3d = inflate(vgg, init=init, temporal_padding=padding)
    with torch.no_grad():
        expected, found = vgg(images), vgg_3d(static_clip(images, num_frames))
    assert expected.abs().max() > 1e-3, "logits near zero would prove nothing"
    assert (expected - found).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def test_average_with_zero_padding_differs_on_a_static_clip(vgg):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = inflate(vgg, init="average", temporal_padding="zeros")(static_clip(images))
        assert (vgg(images) - found).abs().max() > 1e-4


def test_frames_other_than_the_first_matter(vgg):
    clip = torch.randn(1, 3, 3, 64, 64)
    vgg_3d = inflate(vgg, init="average", temporal_padding="replicate")
    with torch.no_grad():
        before = vgg_3d(clip)
        for frame in range(3):
            changed = clip.clone()
            changed[:, :, frame] += 1
            assert (vgg_3d(changed) - before).abs().max() > 1e-5


@pytest.mark.parametrize("name", CNNS + [pytest.param(name, marks=pytest.mark.exhaustive) for name in MORE_CNNS])
def test_any_torchvision_cnn_keeps_its_logits_on_a_static_clip(name):
    model = build_cnn(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        for init, padding in EXACT_COMBINATIONS:
            found = inflate(model, init=init, temporal_padding=padding)(static_clip(images))
            assert (expected - found).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def test_state_dict_names_stay_and_kernels_gain_time(vgg):
    names_2d, state_3d = vgg.state_dict(), inflate(vgg).state_dict()
    assert list(names_2d) == list(state_3d)
    assert state_3d["features.4.weight"].shape == (128, 64, 3, 3, 3)
    assert torch.equal(state_3d["features.4.weight"][:, :, 1], names_2d["features.4.weight"])
    assert state_3d["features.4.weight"][:, :, [0, 2]].abs().max() == 0


def test_running_statistics_are_copied_unless_asked_not_to(vgg):
    assert torch.equal(inflate(vgg).state_dict()["features.1.running_mean"], vgg.features[1].running_mean)
    dropped = inflate(vgg, copy_bn_stats=False).state_dict()
    assert torch.equal(dropped["features.1.running_mean"], torch.zeros(64))
    assert torch.equal(dropped["features.1.running_var"], torch.ones(64))
    assert torch.equal(dropped["features.1.weight"], vgg.features[1].weight)


def test_training_the_3d_network_leaves_the_2d_one_alone():
    torch.manual_seed(0)
    vgg = build_vgg11(10, classifier_width=16)
    before = {name: tensor.clone() for name, tensor in vgg.state_dict().items()}
    vgg_3d = inflate(vgg).train()
    assert not {p.data_ptr() for p in vgg.parameters()} & {p.data_ptr() for p in vgg_3d.parameters()}
    optimizer = torch.optim.SGD(vgg_3d.parameters(), lr=0.1)
    vgg_3d(torch.randn(2, 3, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vgg.state_dict().items())
    assert (vgg_3d.state_dict()["features.0.weight"][:, :, 1] - before["features.0.weight"]).abs().max() > 0


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_gradients_reach_all_slices(padding):
    torch.manual_seed(0)
    conv = inflate_conv(nn.Conv2d(2, 3, 3, padding=1), 3, temporal_padding=padding)
    conv(torch.randn(1, 2, 3, 5, 5)).sum().backward()
    assert (conv.weight.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()


def test_replicate_padding_is_in_time_only():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    conv_3d = inflate_conv(conv, 3, init="average", temporal_padding="replicate")
    assert isinstance(conv_3d, TemporalReplicateConv3d)
    out = conv_3d(torch.ones(1, 1, 3, 4, 4))[0, 0]
    # 9 ones inside; at a corner the zero padding in space leaves 4 of 9, in every frame.
    assert out[:, 1, 1].tolist() == pytest.approx([9, 9, 9])
    assert out[:, 0, 0].tolist() == pytest.approx([4, 4, 4])


def test_stride_groups_dilation_and_same_padding_are_kept():
    conv = nn.Conv2d(4, 8, (3, 5), stride=(1, 1), padding="same", dilation=(2, 1), groups=2)
    conv_3d = inflate_conv(conv, 3)
    images = torch.randn(2, 4, 9, 11)
    with torch.no_grad():
        assert torch.allclose(conv_3d(static_clip(images))[:, :, 1], conv(images), atol=1e-6)
    strided = inflate_conv(nn.Conv2d(3, 4, 7, stride=2, padding=3), 3)
    assert strided.stride == (1, 2, 2)
    assert strided(torch.randn(1, 3, 3, 32, 32)).shape == (1, 4, 3, 16, 16)


def test_a_layer_with_two_places_is_converted_once_and_stays_shared():
    pool = nn.MaxPool2d(2)
    shared = nn.Sequential(nn.Conv2d(1, 1, 3), pool, nn.Conv2d(1, 1, 3), pool)
    shared_3d = inflate(shared)
    assert isinstance(shared_3d[3], nn.MaxPool3d)
    assert shared_3d[3] is shared_3d[1]


def test_half_precision_norms_stay_half():
    norm = nn.BatchNorm2d(2).to(torch.bfloat16)
    assert inflate(nn.Sequential(norm))[0].weight.dtype is torch.bfloat16


def test_pointwise_kernels_stay_pointwise_and_frozen_ones_frozen():
    conv = nn.Conv2d(4, 8, 1)
    conv.weight.requires_grad_(False)
    conv_3d = inflate_conv(conv, 3)
    assert conv_3d.kernel_size == (1, 1, 1)
    assert not conv_3d.weight.requires_grad
    assert conv_3d.bias.requires_grad


def test_kernels_as_long_as_they_are_wide():
    model = nn.Sequential(nn.Conv2d(3, 4, 7, stride=2, padding=3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
    model_3d = inflate(model, temporal_kernel="spatial", init="average", temporal_padding="replicate")
    assert [tuple(layer.kernel_size) for layer in model_3d] == [(7, 7, 7), (1, 1, 1), (3, 3, 3)]
    assert [layer.stride for layer in model_3d] == [(1, 2, 2), (1, 1, 1), (1, 1, 1)]
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for num_frames in (1, 3):
            found = model_3d(static_clip(images, num_frames))
            assert (found - model(images)[:, :, None]).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        (nn.Conv2d(1, 1, 3), {"temporal_kernel": 2}, "must be odd"),
        (nn.Conv2d(1, 1, 3), {"temporal_kernel": "cubic"}, "must be odd, not cubic"),
        (nn.Conv2d(1, 1, 4), {"temporal_kernel": "spatial"}, "must be odd, not 4"),
        (nn.Conv2d(1, 1, (1, 7)), {"temporal_kernel": "spatial"}, "square kernels, not 1 x 7"),
        (nn.Conv2d(1, 1, 3), {"init": "centre"}, "known: average, center"),
        (nn.Conv2d(1, 1, 3), {"temporal_padding": "reflect"}, "known: replicate, zeros"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), {}, "padding_mode='reflect'"),
        (nn.Sequential(nn.LPPool2d(2, 2)), {}, "cannot inflate LPPool2d"),
    ],
)
def test_what_cannot_be_inflated_is_named(model, options, problem):
    with pytest.raises(ValueError, match=problem):
        inflate(model, **options)


def test_a_network_with_train_only_branches_is_refused():
    with pytest.raises(ValueError, match="Inception3: its forward differs"):
        inflate(models.inception_v3(weights=None, init_weights=False).eval())


def test_builder_inflates_the_baseline_it_would_build():
    torch.manual_seed(3)
    vgg = build_vgg11(5, classifier_width=8)
    torch.manual_seed(3)
    vgg_3d = build_vgg11_3d(5, classifier_width=8)
    assert torch.equal(vgg_3d.state_dict()["features.0.weight"][:, :, 1], vgg.state_dict()["features.0.weight"])
    assert torch.equal(vgg_3d.state_dict()["classifier.6.weight"], vgg.state_dict()["classifier.6.weight"])


@pytest.mark.parametrize(
    ("options", "has_frames"),
    [
        ({}, True),
        ({"temporal_conv": "four_product"}, True),
        ({"temporal_conv": "conv3d"}, False),
        ({"temporal_padding": "replicate"}, False),
    ],
    ids=str,
)
def test_four_products_are_taken_unless_asked_not_to_and_never_with_replicated_frames(options, has_frames):
    model = build_vgg11_3d(2, classifier_width=8, **options)
    assert has_frames_as_batch(model) == has_frames
    plain = TemporalReplicateConv3d if "temporal_padding" in options else nn.Conv3d
    assert type(model.features[4]) is (FramesConv3d if has_frames else plain)


def test_both_temporal_convolutions_have_one_state_dict_and_one_start():
    models = []
    for temporal_conv in ("four_product", "conv3d"):
        torch.manual_seed(3)
        models.append(build_vgg11_3d(2, classifier_width=8, temporal_conv=temporal_conv))
    states = [model.state_dict() for model in models]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_unknown_temporal_convolution_is_named():
    with pytest.raises(ValueError, match="unknown temporal_conv 'fourproduct'; known: conv3d, four_product"):
        build_vgg11_3d(2, classifier_width=8, temporal_conv="fourproduct")
