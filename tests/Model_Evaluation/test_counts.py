"""The paper's sizes, from the commands themselves."""

from __future__ import annotations

import subprocess
import sys

from conftest import PROJECT

from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.costs import count_nominal_macs


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
        "vgg11_bn: 7.65 GMac (3 x 224 x 224 input)",
        "vgg11_bn_3d: 67.64 GMac (3 x 3 x 224 x 224 input)",
    ]


def test_replicated_frames_cost_as_many_macs():
    shape = (3, 3, 32, 32)
    macs = [
        count_nominal_macs(build_vgg11_3d(2, classifier_width=8, temporal_padding=padding).eval(), shape)
        for padding in ("zeros", "replicate")
    ]
    assert macs[0] == macs[1]
