"""The paper's sizes, from the commands themselves."""

from __future__ import annotations

import subprocess
import sys

from conftest import PROJECT


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
