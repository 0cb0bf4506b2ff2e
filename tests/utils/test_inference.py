"""The copy for inference: the same logits, the original untouched, and what it cannot do refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d, inflate
from utils import inference
from utils.frames_as_batch import use_frames_as_batch
from utils.inference import prepare_for_inference

SHAPES = {"2d": (2, 3, 40, 37), "3d": (2, 3, 3, 40, 37)}


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, -1.0, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module", params=SHAPES)
def network(request) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A VGG-11, its inputs, and its own logits in float64."""
    builder = build_vgg11 if request.param == "2d" else build_vgg11_3d
    model = randomise(builder(5, classifier_width=16))
    inputs = torch.randn(SHAPES[request.param])
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(inputs.double())
    return model, inputs, exact


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_float32_logits_are_the_networks(network, batch, packs, monkeypatch):
    model, inputs, exact = network
    if not packs:
        monkeypatch.setattr(inference, "_can_pack", lambda kernel: False)
    with torch.inference_mode():
        found = prepare_for_inference(model)(inputs[:batch])
    assert found.dtype is torch.float32
    assert relative_difference(found.double(), exact[:batch]) < 1e-5


@pytest.mark.parametrize("packs", [True, False])
def test_bfloat16_logits_are_the_networks_up_to_rounding(network, packs, monkeypatch):
    model, inputs, exact = network
    if not packs:
        monkeypatch.setattr(inference, "_can_pack", lambda kernel: False)
    with torch.inference_mode():
        found = prepare_for_inference(model, dtype=torch.bfloat16)(inputs)
    assert found.dtype is torch.float32
    assert 1e-5 < relative_difference(found.double(), exact) < 0.06


def test_no_batch_norm_is_left_and_the_original_is_untouched(network):
    model, inputs, _ = network
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = prepare_for_inference(model)
    assert model.training
    with torch.inference_mode():
        prepared(inputs)
    kinds = {type(module) for module in prepared.modules()}
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm | nn.Conv3d | nn.Dropout) for kind in kinds)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert any(parameter.requires_grad for parameter in model.parameters())
    model.eval()


def test_layers_outside_a_sequence_stay_as_they_are():
    resnet = randomise_norms(inflate(models.resnet18(weights=None))).eval()
    use_frames_as_batch(resnet)
    inputs = torch.randn(1, 3, 3, 40, 40)
    with torch.inference_mode():
        expected = resnet(inputs)
        assert relative_difference(prepare_for_inference(resnet)(inputs), expected) < 1e-5


def randomise_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_var.uniform_(0.5, 2.0)
    return model


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="use_frames_as_batch first"):
        prepare_for_inference(build_vgg11_3d(2, classifier_width=8, temporal_conv="conv3d"))
    prepared = prepare_for_inference(build_vgg11_3d(2, classifier_width=8))
    with pytest.raises(ValueError, match="clips of 3 frames, not of 4"):
        prepared(torch.randn(1, 3, 4, 32, 32))
