"""Both forms of the convolution over time train to the same: update by update, and in accuracy."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import pytest
from conftest import PROJECT, run_in_child
from samples import write_clip_set

from Baseline_VGG.settings import BaselineSettings
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Sourcing.settings import DemoDatasetSettings, SourcingSettings
from Inflated_3D_VGG.settings import InflatedSettings
from utils.artifacts import UPDATES, read_table
from utils.checkpoints import read_description
from utils.config import build_settings, read_yaml

FORMS = ("four_product", "conv3d")


def train(data_root: Path, output_dir: Path, keys: dict, num_threads: int = 1) -> None:
    import torch

    from Inflated_3D_VGG.training import run_training

    torch.set_num_threads(num_threads)
    raw = {"data_root": str(data_root), "output_dir": str(output_dir), "device": "cpu", "workers": 1} | keys
    run_training(build_settings(InflatedSettings, raw, "test"))


def test_twenty_updates_have_the_same_losses_in_float32(tmp_path):
    clips = write_clip_set(tmp_path / "clips", per_class=8)
    keys = {"weights": "none", "image_size": 32, "classifier_width": 64, "batch_size": 4, "lr": 1e-3, "updates": 20}
    losses = {}
    for form in FORMS:
        assert run_in_child(train, clips, tmp_path / form, keys | {"temporal_conv": form}) == 0
        losses[form] = read_table(tmp_path / form / "updates.csv", UPDATES)["train_loss"].tolist()
    assert len(losses["conv3d"]) == 20
    assert losses["four_product"] == pytest.approx(losses["conv3d"], rel=1e-4)
    assert max(losses["conv3d"]) - min(losses["conv3d"]) > 0.01, "the weights move: the losses say something"


# ---------------------------------------------------------------------------------------------------------------------
# The demo's own digits, moved by the camera: the embedded SVD would take longer and says no more here


def make_demo(folder: Path) -> None:
    """The stages before the 3-D network, with the demo's settings."""
    from Baseline_VGG.training import run_training
    from Data_Augmentation_SVD.generation import run_generation
    from Data_Sourcing.demo_dataset import run_demo_dataset
    from Data_Sourcing.sourcing import run_sourcing

    run_demo_dataset(build_settings(DemoDatasetSettings, {"output_dir": str(folder / "raw")}, "test"))
    sourcing = read_yaml(PROJECT / "Data_Sourcing/demo.yaml")
    sourcing |= {"raw_root": str(folder / "raw"), "output_dir": str(folder / "images")}
    for split in ("train", "val"):
        run_sourcing(build_settings(SourcingSettings, sourcing, "test"), split)
    clips = read_yaml(PROJECT / "Data_Augmentation_SVD/demo.yaml") | {"generator": "camera_motion"}
    clips |= {"data_root": str(folder / "images"), "output_dir": str(folder / "clips")}
    run_generation(build_settings(GenerationSettings, clips, "test"))
    baseline = read_yaml(PROJECT / "Baseline_VGG/demo.yaml")
    baseline |= {"data_root": str(folder / "images"), "output_dir": str(folder / "baseline")}
    run_training(build_settings(BaselineSettings, baseline, "test"))


@pytest.mark.timeout(2400)  # seven trainings
@pytest.mark.exhaustive
def test_demo_accuracies_agree_over_three_seeds_in_bfloat16(tmp_path):
    assert run_in_child(make_demo, tmp_path) == 0
    demo = read_yaml(PROJECT / "Inflated_3D_VGG/demo.yaml")
    demo |= {"weights": str(tmp_path / "baseline" / "model_best.safetensors"), "selection": "val"}
    top1: dict[str, list[float]] = {form: [] for form in FORMS}
    for form in FORMS:
        for seed in range(3):
            run = tmp_path / f"{form}_{seed}"
            keys = {key: value for key, value in demo.items() if key not in ("data_root", "output_dir")}
            keys |= {"seed": seed, "temporal_conv": form}
            # On one thread, torch 2.14's bfloat16 Conv3d was seen to give wrong gradients on a CPU with AMX.
            assert run_in_child(train, tmp_path / "clips", run, keys, 2) == 0
            top1[form].append(read_description(run / "model_best.safetensors").metric["value"])
    assert min(top1["conv3d"]) > 0.9
    noise = max(stdev(top1["conv3d"]), 1 / 300)  # of 300 digits, at least one
    assert abs(mean(top1["four_product"]) - mean(top1["conv3d"])) < 3 * noise
