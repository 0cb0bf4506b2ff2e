"""The average by products is torch's adaptive average, in both directions and for every size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from utils.optimization import nondeterministic_on_cuda
from utils.pooling import RepeatableAdaptiveAvgPool2d, average_by_products

SIZES = [((1, 1), (7, 7)), ((2, 2), (7, 7)), ((10, 7), (7, 7)), ((14, 21), (7, 7)), ((13, 9), (4, 5))]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_it_equals_torchs_with_its_gradient(before, after):
    images = torch.randn(2, 3, *before, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, *after, dtype=torch.float64)
    ours, torchs = average_by_products(images, after), functional.adaptive_avg_pool2d(images, after)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad((out * weights).sum(), images)[0] for out in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


def test_equal_sizes_are_left_as_they_are():
    images = torch.randn(2, 3, 7, 7)
    assert RepeatableAdaptiveAvgPool2d((7, 7))(images) is images


@pytest.mark.parametrize("network", ["baseline", "four_product", "conv3d"])
def test_what_cuda_can_repeat(network):
    from Baseline_VGG.vgg_baseline import build_vgg11
    from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d

    with torch.device("meta"):
        model = build_vgg11(10) if network == "baseline" else build_vgg11_3d(10, temporal_conv=network)
    refused = nondeterministic_on_cuda(model)
    assert any("AdaptiveAvgPool3d" in name for name in refused) == (network == "conv3d")
    assert network == "conv3d" or refused == []
