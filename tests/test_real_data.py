"""The published clips and the real images, through the stages' own code, at a size a CPU can take."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KILLED, exit_at_call, run_in_child
from samples import description_of

import utils.training
from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.settings import InflatedSettings
from Model_Evaluation.derived import DERIVED, MEASURED, write_derived
from Model_Evaluation.settings import EvaluationSettings
from utils.artifacts import HISTORY, read_table
from utils.checkpoints import ModelDescription, read_description, write_weights
from utils.clips import read_clip
from utils.config import build_settings
from utils.indices import ClassInfo, read_clip_index
from utils.settings import IMAGENET_MEAN, IMAGENET_STD


def write_subset(source: Path, target: Path, per_class: int) -> Path:
    """The first rows of each class of a published two-column index, with its CRLF line ends."""
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts: dict[str, int] = {}
    kept = []
    for row in rows:
        counts[row["label"]] = counts.get(row["label"], 0) + 1
        if counts[row["label"]] <= per_class:
            kept.append(f"{row['video_path']},{row['label']}\r\n")
    target.write_text("video_path,label\r\n" + "".join(kept), newline="")
    return target


def train_on_published(real_data: Path, folder: Path, *, kill_before_curves: bool = False) -> None:
    from Inflated_3D_VGG.training import run_training

    if kill_before_curves:
        exit_at_call(utils.training, "draw_curves", 1)
    raw = {
        "data_root": str(real_data / "svd_videos"),
        "train_csv": str(folder / "train_subset.csv"),
        "val_csv": str(folder / "val_subset.csv"),
        "num_classes": 10,
        "time_dim": 3,
        "weights": "none",
        "image_size": 64,
        "classifier_width": 64,
        "epochs": 1,
        "workers": 0,
        "precision": "bf16",
        "device": "cpu",
        "output_dir": str(folder / "run"),
    }
    run_training(build_settings(InflatedSettings, raw, "test"))


def evaluate_on_published(real_data: Path, folder: Path) -> None:
    from Model_Evaluation.evaluation import run_evaluation

    torch.manual_seed(0)
    write_weights(folder / "2d.safetensors", build_vgg11(10, classifier_width=64).state_dict(), untrained_2d())
    raw = {
        "model2d": {"type": "baseline", "checkpoint": str(folder / "2d.safetensors")},
        "model3d": {"type": "inflated", "checkpoint": str(folder / "run" / "model_best.safetensors")},
        "data": {"root": str(real_data / "svd_videos"), "val_csv": str(folder / "val_subset.csv"), "workers": 0},
        "num_classes": 10,
        "output_dir": str(folder / "results"),
        "latency": {"repetitions": 3, "warmup": 1},
        "precision": "bf16",
        "device": "cpu",
    }
    run_evaluation(build_settings(EvaluationSettings, raw, "test"))


def untrained_2d() -> ModelDescription:
    classes = [ClassInfo(label, f"name {label}", f"n{label}") for label in range(10)]
    known = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "selection_split": "none"}
    return description_of("baseline", {"classifier_width": 64}, classes, {"kind": "image", "image_size": 64}, **known)


@pytest.mark.parametrize(
    ("train_per_class", "val_per_class"), [(4, 4), pytest.param(40, 20, marks=pytest.mark.exhaustive)]
)
def test_published_clips_train_resume_and_evaluate(real_data, tmp_path, train_per_class, val_per_class):
    write_subset(real_data / "svd_videos" / "train.csv", tmp_path / "train_subset.csv", train_per_class)
    write_subset(real_data / "svd_videos" / "val.csv", tmp_path / "val_subset.csv", val_per_class)

    assert run_in_child(train_and_die, real_data, tmp_path) == KILLED
    weights_written = (tmp_path / "run" / "model_best.safetensors").stat().st_mtime_ns
    assert run_in_child(train_on_published, real_data, tmp_path) == 0
    assert (tmp_path / "run" / "model_best.safetensors").stat().st_mtime_ns == weights_written, "the epoch was redone"
    assert len(read_table(tmp_path / "run" / "history.csv", HISTORY)) == 1
    assert read_description(tmp_path / "run" / "model_best.safetensors").train_input == "clip:unknown"

    assert run_in_child(evaluate_on_published, real_data, tmp_path) == 0
    results = tmp_path / "results"
    predictions = read_table(results / "predictions.csv", MEASURED["predictions"])
    assert predictions.groupby("run_id").size().to_dict() == {
        "model2d": 10 * val_per_class,
        "model3d": 10 * val_per_class,
    }
    assert len(read_table(results / "probabilities.csv", MEASURED["probabilities"])) == 2 * 10 * 10 * val_per_class
    write_derived(results, tmp_path / "again")
    for name in DERIVED:
        assert (tmp_path / "again" / f"{name}.csv").read_bytes() == (results / f"{name}.csv").read_bytes()


def train_and_die(real_data: Path, folder: Path) -> None:
    train_on_published(real_data, folder, kill_before_curves=True)


def test_the_published_indices_are_read_as_they_are(real_data):
    folder = real_data / "svd_videos"
    for split, count in (("train", 5000), ("val", 500)):
        index = read_clip_index(folder / f"{split}.csv", folder / split, num_classes=10)
        assert len(index) == count
        assert np.bincount(index.labels).tolist() == [count // 10] * 10
        assert index.clip_kind == "clip:unknown"
    assert read_clip(index.paths[0], 3).shape == (3, 224, 224, 3)
