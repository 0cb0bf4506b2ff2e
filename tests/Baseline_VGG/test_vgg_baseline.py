"""The 2-D network: torchvision's vgg11_bn with another head, and weights from wherever they come."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import vgg11_bn

from Baseline_VGG.vgg_baseline import build_vgg11
from utils.errors import InputError


def test_it_is_torchvisions_network():
    torch.manual_seed(0)
    ours = build_vgg11(10, classifier_width=64).eval()
    with torch.device("meta"):
        theirs = vgg11_bn(num_classes=10)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs_features = {n: t.shape for n, t in theirs.state_dict().items() if n.startswith("features")}
    assert {n: t.shape for n, t in ours.state_dict().items() if n.startswith("features")} == theirs_features
    assert not any(tensor.is_meta for tensor in ours.state_dict().values())


def test_same_seed_gives_same_weights():
    torch.manual_seed(5)
    first = build_vgg11(3, classifier_width=8).state_dict()
    torch.manual_seed(5)
    second = build_vgg11(3, classifier_width=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_from_a_file_load_all_but_a_head_that_does_not_fit(tmp_path):
    source = build_vgg11(7, classifier_width=8)
    torch.save(source.state_dict(), tmp_path / "seven.pth")
    same = build_vgg11(7, tmp_path / "seven.pth", classifier_width=8).state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in source.state_dict().items())
    other = build_vgg11(3, tmp_path / "seven.pth", classifier_width=8).state_dict()
    assert torch.equal(other["classifier.3.weight"], source.state_dict()["classifier.3.weight"])
    assert other["classifier.6.weight"].shape == (3, 8)


def test_imagenet_weights_out_of_reach_say_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"download https://.*vgg11_bn.*\.pth .* save it as .*checkpoints/vgg11_bn"):
        build_vgg11(10, "imagenet", classifier_width=8)


def test_a_3d_checkpoint_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3, 3)}, tmp_path / "3d.pth")
    with pytest.raises(InputError, match="holds 3-D kernels"):
        build_vgg11(10, tmp_path / "3d.pth", classifier_width=8)
