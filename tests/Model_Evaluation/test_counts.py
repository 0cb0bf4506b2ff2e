"""The paper's sizes, from the commands themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import PROJECT
from torch import nn

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.costs import count_executed_macs, count_nominal_macs, count_parameters
from utils.frames_as_batch import has_frames_as_batch
from Video_Models.models import build_video_classifier


def run_script(name: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", f"Model_Evaluation.{name}", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_parameter_count_prints_the_papers_pair():
    assert run_script("parameter_count") == [
        "vgg11_bn: 128,812,810 parameters",
        "vgg11_bn_3d: 147,248,266 parameters",
    ]


def test_flops_count_prints_the_papers_pair():
    assert run_script("flops_count") == [
        "vgg11_bn: 7.65 GMac nominal, 7.61 GMac executed (3 x 224 x 224 input)",
        "vgg11_bn_3d: 67.64 GMac nominal, 30.49 GMac executed (3 x 3 x 224 x 224 input)",
    ]


def test_counting_leaves_the_network_on_frames_and_its_weights_alone():
    model = build_vgg11_3d(2, classifier_width=8)
    before = {name: (tensor.data_ptr(), tensor._version) for name, tensor in model.state_dict().items()}
    plain = build_vgg11_3d(2, classifier_width=8, temporal_conv="conv3d")
    shape = (3, 3, 32, 32)
    assert count_nominal_macs(model.eval(), shape) == count_nominal_macs(plain.eval(), shape)
    assert count_executed_macs(model, shape) < 0.5 * count_executed_macs(plain, shape)
    assert has_frames_as_batch(model)
    assert {name: (tensor.data_ptr(), tensor._version) for name, tensor in model.state_dict().items()} == before


def test_replicated_frames_cost_as_many_macs():
    shape = (3, 3, 32, 32)
    macs = [
        count_nominal_macs(build_vgg11_3d(2, classifier_width=8, temporal_padding=padding).eval(), shape)
        for padding in ("zeros", "replicate")
    ]
    assert macs[0] == macs[1]


SMALL = {  # a network, its input, its multiply-accumulates by hand: output positions x kernel
    "convolution": (nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 6, 5), 8 * 6 * 5 * 3 * 3 * 3),
    "stride and no padding": (nn.Conv2d(4, 6, (3, 5), stride=2, bias=False), (4, 9, 11), 6 * 4 * 4 * 4 * 3 * 5),
    "dilation": (nn.Conv2d(2, 3, 3, dilation=2, bias=False), (2, 8, 8), 3 * 4 * 4 * 2 * 3 * 3),
    "groups": (nn.Conv2d(8, 12, 3, groups=4, padding=1, bias=False), (8, 4, 4), 12 * 4 * 4 * 2 * 3 * 3),
    "volume": (nn.Conv3d(3, 5, 3, padding=1, bias=False), (3, 3, 4, 4), 5 * 3 * 4 * 4 * 3 * 27),
    "linear": (nn.Linear(7, 11, bias=False), (7,), 77),
    "both": (
        nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(), nn.Linear(4 * 5 * 5, 6, bias=False)),
        (3, 5, 5),
        4 * 5 * 5 * 3 + 100 * 6,
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_executed_is_nominal_is_the_formula_where_there_are_only_products(name):
    network, shape, macs = SMALL[name]
    assert count_executed_macs(network.eval(), shape) == macs
    assert count_nominal_macs(network, shape) == macs


def test_nominal_counts_what_is_not_a_product_too():
    """Outputs of 27 products each; a bias is one more, BatchNorm two, ReLU two (ptflops sees layer and function)."""
    outputs = 8 * 4 * 4
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval()
    assert count_executed_macs(network, (3, 4, 4)) == 27 * outputs
    assert count_nominal_macs(network, (3, 4, 4)) == (27 + 1 + 2 + 2) * outputs


def test_executed_of_a_vgg_is_the_sum_over_its_layers():
    network = build_vgg11(10, classifier_width=16).eval()
    macs = []

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        macs.append(output[0].numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    assert len(macs) == 8 + 3
    assert count_executed_macs(build_vgg11(10, classifier_width=16).eval(), (3, 64, 64)) == sum(macs)


def test_parameters_are_counted_once_each_frozen_or_not():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(5, 2)).requires_grad_(False)
    assert count_parameters(network) == (8 * 27 + 8) + 16 + 12
    shared = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(shared, shared)) == 20


def test_products_of_attention_are_counted():
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    shape = {"family": "videomae", "num_frames": 3, "image_size": 16}
    model = build_video_classifier(5, config=config | {"patch_size": 8}, **shape).eval()
    tokens, width, hidden = 2 * 2 * 2, 16, 24  # three frames are four, in tubes of two
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    expected = tokens * width * 3 * 2 * 8 * 8 + 2 * layer + 5 * width
    assert count_executed_macs(model, (3, 3, 16, 16)) == expected
    assert count_nominal_macs(model, (3, 3, 16, 16)) == expected


@pytest.mark.parametrize("family", ["r3d_18", "r2plus1d_18", "resnet18_3d", "c3d"])
def test_nominal_counts_every_kind_of_convolution(family):
    config = {"width_multiplier": 0.125} if family == "c3d" else {"layers": [1, 1, 1, 1]}
    model = build_video_classifier(5, family=family, num_frames=3, image_size=64, config=config).eval()
    executed = count_executed_macs(model, (3, 3, 64, 64))
    assert count_nominal_macs(model, (3, 3, 64, 64)) == pytest.approx(executed, rel=0.05)
