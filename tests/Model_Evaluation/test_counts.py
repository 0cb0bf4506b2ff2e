"""The paper's sizes, from the commands themselves."""

from __future__ import annotations

import subprocess
import sys

from conftest import PROJECT

from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.costs import count_executed_macs, count_nominal_macs
from utils.frames_as_batch import has_frames_as_batch


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
