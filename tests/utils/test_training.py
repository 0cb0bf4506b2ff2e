"""The shared loop: exact arithmetic, exact resume, and a description that is true."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KILLED, PROJECT, exit_at_call, run_in_child
from samples import write_clip_set, write_image_set
from torch import nn

import utils.files
from Baseline_VGG.settings import BaselineSettings
from Inflated_3D_VGG.settings import InflatedSettings
from utils.artifacts import HISTORY, read_table
from utils.checkpoints import ModelDescription, read_description, read_training_state, read_weights, write_weights
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.indices import ClassInfo
from utils.settings import TrainingSettings
from utils.training import Preprocessing, build_recipe, learning_rate, train_one_epoch

SMALL = {
    "weights": "none",
    "image_size": 32,
    "classifier_width": 8,
    "batch_size": 4,
    "workers": 0,
    "epochs": 3,
    "lr_step": 2,
    "lr": 0.01,
    "device": "cpu",
}
EPOCH_WRITES = 3  # best weights (when better), resume state, history
RUN_FILES = {"config.yaml", "environment.json", "history.csv", "last.pt", "model_best.safetensors", "curves.png"}


def run_baseline(data_root: Path, output_dir: Path, kill_at_fsync: int = 0, **options) -> None:
    """Train the 2-D network; in a child, end it at the n-th fsync as `kill -9` would."""
    from Baseline_VGG.training import run_training

    torch.set_num_threads(1)  # as in every run that is compared bit for bit
    if kill_at_fsync:
        exit_at_call(utils.files.os, "fsync", kill_at_fsync)
    raw = {**SMALL, **options, "data_root": str(data_root), "output_dir": str(output_dir)}
    run_training(build_settings(BaselineSettings, raw, "test"))


def run_inflated(data_root: Path, output_dir: Path, **options) -> None:
    """Train the 3-D network."""
    from Inflated_3D_VGG.training import run_training

    torch.set_num_threads(1)
    raw = {**SMALL, **options, "data_root": str(data_root), "output_dir": str(output_dir)}
    run_training(build_settings(InflatedSettings, raw, "test"))


def fingerprint(folder: Path) -> dict[str, str]:
    """What a run produced, comparable between runs: every tensor of state and weights, and the history's bytes."""
    state = read_training_state(folder / "last.pt")
    tensors = {**state["model"], **read_weights(folder / "model_best.safetensors")[0]}
    for index, entry in state["optimizer"]["state"].items():
        tensors[f"momentum {index}"] = entry["momentum_buffer"]
    digests = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
    history = (folder / "history.csv").read_text()
    return {**digests, "history": history, "best": read_description(folder / "model_best.safetensors").to_json()}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("images"), per_class=5)


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run_in_child(run_baseline, images, folder) == 0
    return folder


def test_a_run_folder_holds_what_the_contract_names(uninterrupted):
    files = {path.name for path in uninterrupted.iterdir() if not path.name.startswith(".")}
    assert files == RUN_FILES
    history = read_table(uninterrupted / "history.csv", HISTORY)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["learning_rate"].tolist() == pytest.approx([0.01, 0.01, 0.001])
    assert history["val_top3_fraction"].isna().all(), "two classes have no top-3"


def test_the_weights_describe_themselves(uninterrupted):
    described = read_description(uninterrupted / "model_best.safetensors")
    history = read_table(uninterrupted / "history.csv", HISTORY).set_index("epoch")
    assert described.type == "baseline"
    assert [item.wnid for item in described.classes] == ["c0", "c1"]
    assert described.input == {"kind": "image", "image_size": 32}
    assert (described.train_input, described.selection_split, described.seed) == ("original", "val", 0)
    best = history["val_top1_fraction"].max()
    assert described.metric == {"name": "val_top1_fraction", "value": pytest.approx(best)}
    assert described.epoch == history["val_top1_fraction"].idxmax(), "the first of equal epochs is the best"


def kill_points(total: int = 24) -> list:
    """Fsyncs from the first epoch's best weights to the curves; four in the default tier, all in the exhaustive one."""
    sample = {5, 8, 13, total}
    return [
        pytest.param(point, marks=[] if point in sample else pytest.mark.exhaustive) for point in range(1, total + 1)
    ]


@pytest.mark.parametrize("point", kill_points())
def test_a_killed_run_goes_on_to_the_same_bits(images, uninterrupted, tmp_path, point):
    code = run_in_child(run_baseline, images, tmp_path / "run", point)
    assert code in (KILLED, 0), "0: this run wrote fewer files than the point asks for"
    assert run_in_child(run_baseline, images, tmp_path / "run") == 0
    assert fingerprint(tmp_path / "run") == fingerprint(uninterrupted)
    assert not list((tmp_path / "run").glob("*.partial"))


def test_the_sampled_kill_points_do_kill(images, tmp_path):
    assert run_in_child(run_baseline, images, tmp_path / "run", 8) == KILLED
    assert not (tmp_path / "run" / "curves.png").exists()


def test_a_finished_run_is_not_touched(images, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir() if not path.name.startswith(".")}
    assert run_in_child(run_baseline, images, uninterrupted) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_seed_gives_other_weights(images, uninterrupted, tmp_path):
    assert run_in_child(run_seeded, images, tmp_path / "run") == 0
    found, expected = fingerprint(tmp_path / "run"), fingerprint(uninterrupted)
    assert found["features.0.weight"] != expected["features.0.weight"]


def run_seeded(images: Path, folder: Path) -> None:
    run_baseline(images, folder, seed=1)


def test_changed_images_are_noticed(tmp_path):
    data = write_image_set(tmp_path / "images", per_class=2)
    run_baseline(data, tmp_path / "run", epochs=1)
    write_image_set(data, per_class=3)
    with pytest.raises(InputError, match="train_index: its content has changed"):
        run_baseline(data, tmp_path / "run", epochs=1)


@pytest.mark.parametrize("published", [False, True])
def test_the_3d_run_describes_its_clips(tmp_path, published):
    clips = write_clip_set(tmp_path / "clips", per_class=2, published=published)
    run_inflated(clips, tmp_path / "run", epochs=1)
    described = read_description(tmp_path / "run" / "model_best.safetensors")
    assert described.type == "inflated"
    assert described.input == {"kind": "clip", "image_size": 32, "num_frames": 3}
    assert described.train_input == ("clip:unknown" if published else "clip:static")
    assert [item.class_name for item in described.classes] == (["0", "1"] if published else ["zero", "one"])


def test_the_3d_run_starts_from_the_2d_checkpoint(images, uninterrupted, tmp_path):
    clips = write_clip_set(tmp_path / "clips", per_class=2)
    start = uninterrupted / "model_best.safetensors"
    # A learning rate this small leaves every weight where it started, to the last digits.
    run_inflated(clips, tmp_path / "run", epochs=1, weights=str(start), lr=1e-30, weight_decay=0.0)
    found, source = read_weights(tmp_path / "run" / "model_best.safetensors")[0], read_weights(start)[0]
    assert torch.equal(found["features.0.weight"][:, :, 1], source["features.0.weight"])
    assert torch.equal(found["classifier.6.weight"], source["classifier.6.weight"])


def read_stage_settings(settings_class, name: str, **changes):
    raw = read_yaml(PROJECT / name) | {"output_dir": "unused"} | changes
    return build_settings(settings_class, raw, name, check_paths=False)


def test_only_the_papers_own_values_are_called_the_papers_protocol():
    baseline, inflated = "Baseline_VGG/train_config.yaml", "Inflated_3D_VGG/train3d_video.yaml"
    assert read_stage_settings(BaselineSettings, baseline, seed=7, workers=0).protocol == "paper"
    assert read_stage_settings(InflatedSettings, inflated, copy_bn_stats=False).protocol == "paper"
    # The published code dropped BatchNorm's statistics; the shipped default keeps them, and says so.
    assert read_stage_settings(InflatedSettings, inflated).protocol == "custom"
    for change in ({"epochs": 2}, {"weights": "none"}, {"horizontal_flip": False}, {"image_size": 64}):
        assert read_stage_settings(BaselineSettings, baseline, **change).protocol == "custom"


def test_a_failed_overwrite_loses_nothing(images, tmp_path):
    run_baseline(images, tmp_path / "run", epochs=1)
    before = fingerprint(tmp_path / "run")
    with pytest.raises(InputError):  # weights of other classes are noticed after the run was opened
        write_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, other_classes(tmp_path / "run"))
        run_baseline(images, tmp_path / "run", weights=str(tmp_path / "other.safetensors"), overwrite=True)
    assert fingerprint(tmp_path / "run") == before


def other_classes(run: Path) -> ModelDescription:
    described = read_description(run / "model_best.safetensors")
    return replace(described, classes=tuple(reversed([ClassInfo(1, "zero", "c0"), ClassInfo(0, "one", "c1")])))


def test_removed_weights_of_a_finished_run_are_named(images, tmp_path):
    run_baseline(images, tmp_path / "run", epochs=1)
    (tmp_path / "run" / "model_best.safetensors").unlink()
    with pytest.raises(InputError, match=r"model_best\.safetensors: was removed after training; restore it"):
        run_baseline(images, tmp_path / "run", epochs=1)


def test_a_state_of_another_network_is_named(images, tmp_path):
    run_baseline(images, tmp_path / "run", epochs=1)
    run_baseline(images, tmp_path / "wide", epochs=1, classifier_width=16)
    (tmp_path / "run" / "curves.png").unlink()
    (tmp_path / "wide" / "last.pt").replace(tmp_path / "run" / "last.pt")
    with pytest.raises(InputError, match=r"last\.pt: does not fit this VGG"):
        run_baseline(images, tmp_path / "run", epochs=1)


def test_step_schedule_equals_torchs():
    settings = TrainingSettings(output_dir=Path("unused"), lr=0.1, lr_step=3, lr_gamma=0.5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    for epoch in range(1, 12):
        assert learning_rate(settings, epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_normalisation_is_per_channel():
    preprocess = Preprocessing((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    inputs = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    assert preprocess(inputs).flatten().tolist() == pytest.approx([1.0, -1.0, 0.2])


def test_flips_are_the_same_for_all_frames_of_a_clip():
    torch.manual_seed(0)
    frame = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 1, 4).expand(64, 3, 3, 2, 4)
    out = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), horizontal_flip=True)(frame, training=True)
    mirrored = (out[..., 0] > out[..., 3]).flatten(1)
    assert ((mirrored.all(dim=1)) | (~mirrored).all(dim=1)).all(), "a clip is mirrored as a whole"
    assert 16 < mirrored.all(dim=1).sum() < 48
    still = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), horizontal_flip=True)(frame)
    assert torch.equal(still, frame.float() / 255), "nothing is mirrored in evaluation"


def test_a_loss_that_is_not_finite_stops_with_its_step():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    nn.init.constant_(model[1].weight, float("inf"))
    batches = [(torch.full((2, 3, 2, 2), 200, dtype=torch.uint8), torch.tensor([0, 1]))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="at step 1; lower lr"):
        train_one_epoch(model, batches, optimizer, Preprocessing((0.5,) * 3, (0.5,) * 3), build_recipe("cpu", "fp32"))


def test_one_step_is_sgd_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    weight = model[1].weight.detach().numpy().copy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    inputs, label = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1), torch.tensor([1])
    result = train_one_epoch(
        model, [(inputs, label)], optimizer, Preprocessing((0.0,) * 3, (1.0,) * 3), build_recipe("cpu", "fp32")
    )
    x = np.array([1.0, 0.0, 0.2])
    scores = weight @ x
    softmax = np.exp(scores) / np.exp(scores).sum()
    assert result.loss == pytest.approx(-np.log(softmax[1]), rel=1e-5)
    expected = weight - 0.5 * np.outer(softmax - np.array([0, 1]), x)
    assert np.allclose(model[1].weight.detach().numpy(), expected, atol=1e-6)


def test_fp16_on_a_cpu_and_a_missing_gpu_are_refused():
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        build_recipe("cpu", "fp16")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="'cuda' is not available"):
            build_recipe("cuda", "fp32")
