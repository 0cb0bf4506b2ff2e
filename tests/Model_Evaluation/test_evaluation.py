"""The evaluation stage from checkpoints to tables: true inputs, true ids, and models that survive a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import KILLED, exit_at_call, run_in_child
from samples import CLASSES, description_of, write_clip_set, write_image_set
from torch import nn

import utils.files
from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.derived import DERIVED, MEASURED, write_derived
from Model_Evaluation.settings import EvaluationSettings
from utils.artifacts import read_table
from utils.checkpoints import ModelDescription, write_weights
from utils.clips import read_clip
from utils.config import build_settings
from utils.errors import InputError
from utils.images import read_rgb_image
from utils.indices import ClassInfo

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def describe(model_type: str, train_input: str) -> ModelDescription:
    size = {"kind": "image", "image_size": 32} if model_type == "baseline" else {"kind": "clip", "image_size": 32}
    classes = [ClassInfo(label, name, wnid) for label, (wnid, name) in enumerate(CLASSES)]
    form = size if model_type == "baseline" else size | {"num_frames": 3}
    known = {"mean": MEAN, "std": STD, "train_input": train_input, "seed": 4, "selection_split": "val"}
    return description_of(model_type, {"classifier_width": 8}, classes, form, **known)


def excited(model: nn.Module) -> nn.Module:
    """Random weights whose logits differ visibly from item to item."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.4)
    return model.eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Images, clips, and a checkpoint of each type."""
    root = tmp_path_factory.mktemp("world")
    write_image_set(root / "images")
    write_clip_set(root / "clips")
    write_clip_set(root / "published", published=True)
    torch.manual_seed(0)
    networks = {
        "baseline": (build_vgg11(2, classifier_width=8), "original"),
        "inflated": (build_vgg11_3d(2, classifier_width=8, init="average"), "clip:static"),
    }
    for name, (model, train_input) in networks.items():
        write_weights(root / f"{name}.safetensors", excited(model).state_dict(), describe(name, train_input))
        torch.save({"epoch": 3, "state_dict": model.state_dict(), "best_acc": 0.5}, root / f"{name}.pth.tar")
    return root


def settings_for(world: Path, output_dir: Path, **changes) -> EvaluationSettings:
    raw = {
        "models": [
            {"name": "2d", "type": "baseline", "checkpoint": str(world / "baseline.safetensors"), "input": "original"},
            {
                "name": "ff",
                "type": "baseline",
                "checkpoint": str(world / "baseline.safetensors"),
                "input": "first_frame",
            },
            {"name": "3d", "type": "inflated", "checkpoint": str(world / "inflated.safetensors"), "input": "clip"},
        ],
        "data": {"root": str(world / "clips"), "images_root": str(world / "images"), "batch_size": 4, "workers": 0},
        "latency": {"batch_sizes": [1, 2], "warmup": 1, "repetitions": 3},
        "pictures": {"num_items": 2},
        "device": "cpu",
        "output_dir": str(output_dir),
    }
    return build_settings(EvaluationSettings, raw | changes, "test")


def run_evaluation(world: Path, output_dir: Path, kill_at_fsync: int = 0, **changes) -> None:
    from Model_Evaluation.evaluation import run_evaluation as run

    torch.set_num_threads(1)
    if kill_at_fsync:
        exit_at_call(utils.files.os, "fsync", kill_at_fsync)
    run(settings_for(world, output_dir, **changes))


@pytest.fixture(scope="module")
def results(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "run"
    assert run_in_child(run_evaluation, world, folder) == 0
    return folder


def normalised(image: np.ndarray) -> torch.Tensor:
    """uint8 (..., 3) -> float, by hand."""
    return torch.from_numpy(((image / 255.0 - np.array(MEAN)) / np.array(STD)).astype(np.float32))


def test_every_probability_is_the_networks_own(world, results):
    vgg, vgg_3d = build_vgg11(2, classifier_width=8).eval(), build_vgg11_3d(2, classifier_width=8).eval()
    from utils.checkpoints import read_weights

    vgg.load_state_dict(read_weights(world / "baseline.safetensors")[0])
    vgg_3d.load_state_dict(read_weights(world / "inflated.safetensors")[0])
    images = [read_rgb_image(path) for path in sorted((world / "images/val").rglob("*.png"))]
    clips = [read_clip(path) for path in sorted((world / "clips/val").glob("*.mp4"))]
    with torch.no_grad():
        expected = {
            "2d": vgg(torch.stack([normalised(image).permute(2, 0, 1) for image in images])),
            "ff": vgg(torch.stack([normalised(clip[0]).permute(2, 0, 1) for clip in clips])),
            "3d": vgg_3d(torch.stack([normalised(clip).permute(3, 0, 1, 2) for clip in clips])),
        }
    table = read_table(results / "probabilities.csv", MEASURED["probabilities"])
    for run_id, logits in expected.items():
        found = table[table["run_id"] == run_id]["probability"].to_numpy().reshape(-1, 2)
        assert np.abs(found - logits.double().softmax(1).numpy()).max() < 1e-5
        assert np.ptp(found[:, 0]) > 1e-3, "equal probabilities for all items would prove nothing"


def test_every_row_says_on_what(results):
    columns = ["run_id", "protocol", "arm", "model", "start_weights", "train_input", "test_input", "split"]
    columns += ["selection_split", "num_frames", "seed"]
    rows = read_table(results / "predictions.csv", MEASURED["predictions"])[columns].drop_duplicates()
    assert rows.to_numpy().tolist() == [
        ["2d", "custom", "2d_original", "vgg11_bn", "random", "original", "original", "val", "val", 1, 4],
        ["ff", "custom", "2d_original", "vgg11_bn", "random", "original", "first_frame:static", "val", "val", 3, 4],
        ["3d", "custom", "3d_static", "vgg11_bn_3d", "random", "clip:static", "clip:static", "val", "val", 3, 4],
    ]


def test_ids_are_source_hashes_so_that_arms_can_be_paired(world, results):
    rows = read_table(results / "predictions.csv", MEASURED["predictions"])
    by_run = {run_id: frame["item_id"].tolist() for run_id, frame in rows.groupby("run_id")}
    assert by_run["ff"] == by_run["3d"]
    assert all(len(item_id) == 64 for ids in by_run.values() for item_id in ids)


def test_times_and_costs(results):
    times = read_table(results / "inference_times.csv", MEASURED["inference_times"])
    assert times.groupby(["run_id", "batch_size"]).size().to_dict() == {
        (run, size): 3 for run in ("2d", "3d", "ff") for size in (1, 2)
    }
    costs = read_table(results / "model_costs.csv", MEASURED["model_costs"]).set_index("run_id")
    expected = sum(p.numel() for p in build_vgg11(2, classifier_width=8).parameters())
    assert costs.loc["2d", "num_parameters"] == expected
    assert costs.loc["3d", "input_shape"] == "3x3x32x32"
    assert costs.loc["3d", "nominal_macs"] > 7 * costs.loc["2d", "nominal_macs"]


def test_derived_tables_recompute_to_the_same_bytes(results, tmp_path):
    write_derived(results, tmp_path)
    for name in (*(f"{table}.csv" for table in DERIVED), "figures/confusion_3d.png", "figures/per_class_f1.png"):
        assert (tmp_path / name).read_bytes() == (results / name).read_bytes()
    assert not (results / "parts").exists()


def measured_bytes(folder: Path) -> list[bytes]:
    return [(folder / f"{name}.csv").read_bytes() for name in ("predictions", "probabilities", "model_costs")]


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=[] if p in (7, 19, 34) else pytest.mark.exhaustive) for p in range(1, 44, 3)]
)
def test_a_killed_evaluation_goes_on_to_the_same_tables(world, results, tmp_path, point):
    assert run_in_child(run_evaluation, world, tmp_path / "run", point) == KILLED
    assert run_in_child(run_evaluation, world, tmp_path / "run") == 0
    assert measured_bytes(tmp_path / "run") == measured_bytes(results)
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert not (tmp_path / "run" / "parts").exists()


def test_a_finished_evaluation_is_not_redone(world, results):
    before = (results / "inference_times.csv").stat().st_mtime_ns
    run_evaluation(world, results)
    assert (results / "inference_times.csv").stat().st_mtime_ns == before


def published_form(world: Path, suffix: str) -> dict:
    return {
        "models": [],
        "model2d": {"type": "baseline", "checkpoint": str(world / f"baseline.{suffix}")},
        "model3d": {"type": "inflated", "checkpoint": str(world / f"inflated.{suffix}")},
        "data": {"root": str(world / "published"), "batch_size": 2, "workers": 0, "num_frames": 3},
        "num_classes": 2,
    }


def test_the_published_form_scores_both_on_the_clips(world, tmp_path):
    run_evaluation(world, tmp_path / "run", **published_form(world, "safetensors"))
    rows = read_table(tmp_path / "run" / "predictions.csv", MEASURED["predictions"])
    inputs = rows[["run_id", "test_input"]].drop_duplicates().to_numpy().tolist()
    assert inputs == [["model2d", "first_frame:unknown"], ["model3d", "clip:unknown"]]
    assert rows["item_id"].tolist()[:2] == ["00000.mp4", "00001.mp4"], "no source is known: the clip's path"
    assert set(rows["class_name"]) == {"zero", "one"}, "two columns have no names: the checkpoint has"


def test_the_papers_checkpoints_are_read(world, tmp_path):
    changes = published_form(world, "pth.tar")
    changes["data"] |= {"image_size": 32, "mean": list(MEAN), "std": list(STD)}
    run_evaluation(world, tmp_path / "tar", **changes)
    run_evaluation(world, tmp_path / "ours", **published_form(world, "safetensors"))
    tables = [read_table(tmp_path / name / "probabilities.csv", MEASURED["probabilities"]) for name in ("tar", "ours")]
    pd.testing.assert_frame_equal(*tables)
    arms = read_table(tmp_path / "tar" / "predictions.csv", MEASURED["predictions"])
    assert set(arms["train_input"]) == {"unknown"}


def test_the_papers_names_of_3d_layers_are_understood(world, tmp_path):
    from utils.checkpoints import read_weights

    ours = read_weights(world / "inflated.safetensors")[0]
    renamed = {name.replace("features.", "features3d."): tensor for name, tensor in ours.items()}
    torch.save({"epoch": 1, "state_dict": renamed, "best_acc": 0.1, "optimizer": {}}, tmp_path / "model_best.pth.tar")
    found, described = read_weights(tmp_path / "model_best.pth.tar")
    assert described is None
    assert all(torch.equal(found[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_classes": 3}, "num_classes: is 3"),
        ({"data.mean": [0.1, 0.1, 0.1]}, r"data.mean: is \(0.1, 0.1, 0.1\), but .*baseline.safetensors was trained"),
        ({"data.image_size": 64}, "data.image_size: is 64"),
        ({"models.2.checkpoint": "baseline"}, "is a 'baseline' checkpoint, not 'inflated'"),
    ],
)
def test_contradictions_are_named_before_anything_runs(world, tmp_path, changes, problem):
    raw = settings_for(world, tmp_path / "run").model_dump(mode="json")
    for key, value in changes.items():
        section, *rest = key.split(".")
        if section == "models":
            raw["models"][2]["checkpoint"] = str(world / f"{value}.safetensors")
        elif rest:
            raw[section][rest[0]] = value
        else:
            raw[section] = value
    from Model_Evaluation.evaluation import run_evaluation as run

    with pytest.raises(InputError, match=problem):
        run(build_settings(EvaluationSettings, raw, "test"))
    assert not list((tmp_path / "run").glob("*.csv"))


def test_train_and_evaluate_agree(world, tmp_path):
    from Baseline_VGG.settings import BaselineSettings
    from Baseline_VGG.training import run_training

    raw = {"weights": "none", "image_size": 32, "classifier_width": 8, "batch_size": 2, "workers": 0, "epochs": 2}
    raw |= {"data_root": str(world / "images"), "output_dir": str(tmp_path / "train"), "device": "cpu", "lr": 0.01}
    best = run_training(build_settings(BaselineSettings, raw, "test"))
    model = {"name": "m", "type": "baseline", "checkpoint": str(best), "input": "original"}
    run_evaluation(world, tmp_path / "run", models=[model])
    from utils.checkpoints import read_description

    summary = read_table(tmp_path / "run" / "summary.csv", DERIVED["summary"]).iloc[0]
    assert summary["top1_fraction"] == pytest.approx(read_description(best).metric["value"], abs=1e-6)
