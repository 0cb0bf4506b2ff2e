"""The shared loop: its history, its end, the epoch it keeps, and what it says when a loss is not finite."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import write_clip_set, write_image_set
from small_training import fit_tiny, tiny_batches, tiny_learner, tiny_settings
from training_runs import BAD_INPUT, content_of, differing, last_line, train, train_here

import utils.training
from Data_Sourcing.demo_dataset import run_demo_dataset
from Data_Sourcing.image_set import read_image_set
from Data_Sourcing.settings import DemoDatasetSettings
from utils.artifacts import HISTORY, UPDATES, read_table
from utils.checkpoints import ModelDescription, read_description, read_weights, write_weights
from utils.clips import write_clip
from utils.config import build_settings
from utils.errors import InputError
from utils.files import sha256_file
from utils.history import Score, add_to_sums, new_sums, score_of
from utils.images import read_rgb_image
from utils.indices import ClassInfo
from utils.training import evaluate
from utils.training_state import load_checkpoint

RUN_FILES = {"config.yaml", "environment.json", "history.csv", "updates.csv", "checkpoint.json", "last.pt"}
RUN_FILES |= {"model_best.safetensors", "curves.png", "training_time.csv"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("images"), per_class=8)


@pytest.fixture(scope="module")
def whole_run(images, tmp_path_factory) -> Path:
    """A run of the 2-D network itself: 12 images in 3 updates an epoch, 4 held out."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train("2d", images, folder, {"batch_size": 4, "seed": 5}, thin=False) == 0
    return folder


def histories(run_dir: Path) -> tuple[dict[str, list], dict[str, list]]:
    """Columns of `history.csv` and `updates.csv`."""
    epochs, updates = (run_dir / f"{name}.csv" for name in ("history", "updates"))
    return read_table(epochs, HISTORY).to_dict("list"), read_table(updates, UPDATES).to_dict("list")


def rates_of(run_dir: Path, **options) -> list[float]:
    """The rates of a tiny run's updates, to the last bit: 3 an epoch."""
    fit_tiny(run_dir, tiny_settings(run_dir, **options))
    exact = [rate for rate, _ in load_checkpoint(run_dir)["position"]["finished_updates"]]
    assert histories(run_dir)[1]["learning_rate"] == pytest.approx(exact, rel=1e-5)
    return exact


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves


def test_a_run_folder_holds_what_the_contract_names(whole_run):
    assert {path.name for path in whole_run.iterdir() if path.name != ".lock"} == RUN_FILES


def test_history_has_a_row_an_epoch_and_updates_one_an_update(whole_run):
    epochs, updates = histories(whole_run)
    assert epochs["epoch"] == [1, 2]
    assert epochs["update"] == [3, 6]
    assert epochs["learning_rate"] == [0.01, 0.001]
    assert np.isnan(epochs["selection_top3_fraction"]).all(), "two classes have no top-3"
    assert updates["update"] == [1, 2, 3, 4, 5, 6]
    assert updates["epoch"] == [1, 1, 1, 2, 2, 2]
    assert updates["learning_rate"] == [0.01] * 3 + [0.001] * 3


def test_the_loss_of_an_epoch_is_the_mean_over_its_items(tmp_path):
    fit_tiny(tmp_path, tiny_settings(epochs=2), num_items=11)
    epochs, updates = histories(tmp_path)
    losses = np.reshape(updates["train_loss"], (2, 3))
    assert epochs["train_loss"] == pytest.approx(losses @ [4, 4, 3] / 11, rel=1e-5)


def test_the_selection_scores_are_those_of_the_weights_that_are_kept(tmp_path):
    settings = tiny_settings(epochs=1, ema_decay=0.5)
    trained = fit_tiny(tmp_path, settings)
    learner = tiny_learner(settings)
    learner.model.load_state_dict(read_weights(tmp_path / "model_best.safetensors")[0])
    score = evaluate(learner, tiny_batches(7, settings, pixel_seed=1))
    epochs, _ = histories(tmp_path)
    assert (score.loss, score.top1_fraction) == pytest.approx(
        (epochs["selection_loss"][0], epochs["selection_top1_fraction"][0]), rel=1e-5
    )
    assert not torch.equal(trained.model.head.weight, learner.model.head.weight), "training goes on with its own"


def test_the_weights_describe_themselves(images, whole_run):
    described = read_description(whole_run / "model_best.safetensors")
    epochs, _ = histories(whole_run)
    best = max(range(2), key=lambda row: epochs["selection_top1_fraction"][row])  # the first of equals
    assert (described.type, described.start, described.protocol, described.seed) == ("baseline", "random", "custom", 5)
    assert described.classes == (ClassInfo(0, "zero", "c0"), ClassInfo(1, "one", "c1"))
    assert described.input == {"kind": "image", "image_size": 32}
    assert described.options == {"classifier_width": 16, "dropout": 0.5}
    assert (described.epoch, described.update) == (best + 1, 3 * best + 3)
    top1 = pytest.approx(epochs["selection_top1_fraction"][best])
    assert described.metric == {"name": "hold_out_top1_fraction", "value": top1}
    assert described.selection_split == "hold_out"
    assert described.selected_on == {"split": "hold_out", "num_items": 4}
    trained_on = described.trained_on
    assert (trained_on["input"], trained_on["num_items"], trained_on["is_paired"]) == ("original", 12, True)
    assert trained_on["hold_out_sha256"] == sha256_file(whole_run.parent / "hold_out.csv")
    values = described.protocol_values
    assert (values["batch_size"], values["lr"], values["hold_out"]) == (4, 0.01, {"fraction": 0.3, "seed": 0})
    assert values.keys().isdisjoint({"seed", "output_dir", "data_root", "device", "workers", "overwrite"})


@pytest.mark.parametrize("published", [False, True])
def test_the_3d_weights_describe_their_clips(tmp_path, published):
    clips = write_clip_set(tmp_path / "clips", per_class=4, published=published)
    assert train("3d", clips, tmp_path / "run", {"updates": 1}) == 0
    described = read_description(tmp_path / "run" / "model_best.safetensors")
    assert (described.type, described.epoch, described.update) == ("inflated", 1, 1)
    assert described.input == {"kind": "clip", "image_size": 32, "num_frames": 3}
    assert described.train_input == ("clip:unknown" if published else "clip:static")
    assert [item.class_name for item in described.classes] == (["0", "1"] if published else ["zero", "one"])
    assert described.trained_on["is_paired"] is not published
    assert described.selected_on["split"] == ("hold_out_unpaired" if published else "hold_out")


def test_the_3d_run_starts_from_the_2d_checkpoint(whole_run, tmp_path):
    clips = write_clip_set(tmp_path / "clips", per_class=4)
    start = whole_run / "model_best.safetensors"
    # A learning rate this small leaves every weight where it started, to the last digits.
    keys = {"updates": 1, "weights": str(start), "lr": 1e-30, "weight_decay": 0.0}
    assert train("3d", clips, tmp_path / "run", keys, thin=False) == 0
    found, source = read_weights(tmp_path / "run" / "model_best.safetensors")[0], read_weights(start)[0]
    assert torch.equal(found["features.0.weight"][:, :, 1], source["features.0.weight"])
    assert torch.equal(found["classifier.6.weight"], source["classifier.6.weight"])
    described = read_description(tmp_path / "run" / "model_best.safetensors")
    assert described.start == f"checkpoint:{sha256_file(start)[:16]}"


def test_weights_of_other_classes_are_refused(images, whole_run, tmp_path):
    described = read_description(whole_run / "model_best.safetensors")
    swapped = (ClassInfo(0, "one", "c1"), ClassInfo(1, "zero", "c0"))
    other: ModelDescription = replace(described, classes=swapped)
    write_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, other)
    with pytest.raises(InputError, match=r"other\.safetensors"):
        train_here("2d", images, tmp_path / "run", weights=str(tmp_path / "other.safetensors"))
    assert not (tmp_path / "run" / "config.yaml").exists(), "refused before anything was written"


def test_another_seed_gives_other_weights_and_the_same_one_the_same(images, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train("2d", images, tmp_path / name, {"seed": seed}) == 0
    a, b, c = (content_of(tmp_path / name) for name in "abc")
    assert differing(a, b) == []
    assert {"best", "history.csv", "state.model.features.0.weight"} <= set(differing(a, c))


# ---------------------------------------------------------------------------------------------------------------------
# Rates and the end


def test_rates_of_the_step_schedule(tmp_path):
    rates = rates_of(tmp_path, epochs=5, lr=0.1, lr_step=2, lr_gamma=0.5)
    assert rates == [0.1] * 6 + [0.05] * 6 + [0.025] * 3


def test_rates_of_the_cosine_schedule_with_warm_up(tmp_path):
    rates = rates_of(tmp_path, updates=10, lr=0.2, schedule="cosine", warmup_updates=4, min_lr=0.02)
    falling = [0.02 + 0.18 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(6)]
    assert rates[:4] == [0.2 * 0.25, 0.2 * 0.5, 0.2 * 0.75, 0.2]
    assert rates[4:] == pytest.approx(falling, rel=1e-14)
    assert rates[-1] == 0.02


def test_rates_of_the_plateau_schedule(tmp_path, monkeypatch):
    script(monkeypatch, losses=[1.0, 0.9, 0.9, 0.95, 0.8, 0.8], top1s=[0.0] * 6)
    rates = rates_of(tmp_path, epochs=6, lr=0.1, schedule="plateau", plateau_patience=1, lr_gamma=0.5)
    assert rates == [0.1] * 12 + [0.05] * 6, "epochs 3 and 4 had no lower loss"


def test_rates_scale_with_the_batch(tmp_path):
    rates = rates_of(tmp_path, epochs=1, lr=0.16, lr_scaling="linear", lr_batch_size=32, schedule="constant")
    assert rates == [0.16 * (4 / 32)] * 3


def test_a_budget_in_updates_ends_in_mid_epoch(tmp_path):
    fit_tiny(tmp_path, tiny_settings(updates=7, epochs=99))
    epochs, updates = histories(tmp_path)
    assert epochs["update"] == [3, 6, 7]
    assert updates["epoch"] == [1, 1, 1, 2, 2, 2, 3]
    assert load_checkpoint(tmp_path)["position"]["update"] == 7


def script(monkeypatch: pytest.MonkeyPatch, losses: list[float], top1s: list[float]) -> None:
    """Let evaluations find these scores, one an epoch."""
    scores: Iterator[Score] = (Score(loss, top1, None, 7) for loss, top1 in zip(losses, top1s, strict=True))
    monkeypatch.setattr(utils.training, "evaluate", lambda *_: next(scores))


def test_early_stopping_waits_for_a_better_top1_and_keeps_the_first_of_equals(tmp_path, monkeypatch):
    top1s = [0.25, 0.5, 0.5, 0.25, 0.75, 0.75, 0.5, 0.75, 1.0]
    script(monkeypatch, losses=[1.0] * 9, top1s=top1s)
    fit_tiny(tmp_path, tiny_settings(epochs=9, early_stopping_patience=3))
    epochs, _ = histories(tmp_path)
    assert epochs["selection_top1_fraction"] == top1s[:8], "three epochs after the fifth were no better"
    described = read_description(tmp_path / "model_best.safetensors")
    assert (described.epoch, described.update, described.metric["value"]) == (5, 15, 0.75)


def test_a_run_that_stopped_early_is_over_when_it_is_run_again(tmp_path, monkeypatch):
    script(monkeypatch, losses=[1.0] * 3, top1s=[0.5] * 3)
    settings = tiny_settings(epochs=9, early_stopping_patience=2)
    fit_tiny(tmp_path, settings)
    kept = (tmp_path / "history.csv").read_bytes()
    for name in ("curves.png", "history.csv", "updates.csv"):  # as a kill after the last checkpoint leaves it
        (tmp_path / name).unlink()
    fit_tiny(tmp_path, settings)  # another evaluation would find no score
    assert (tmp_path / "history.csv").read_bytes() == kept
    assert len(histories(tmp_path)[1]["update"]) == 9


# ---------------------------------------------------------------------------------------------------------------------
# Losses that are not finite


def test_a_rate_that_is_too_high_is_one_sentence(images, tmp_path):
    assert train("2d", images, tmp_path / "run", {"lr": 1e30, "batch_size": 4}) == BAD_INPUT
    expected = (
        r"error: the training loss is (nan|inf) at epoch 1, step 2, with (/\S+_\d\.png, ){2}/\S+_\d\.png and 1 more"
    )
    assert re.fullmatch(
        expected + "; lower lr, set clip_grad_norm, or use precision: fp32", last_line(tmp_path / "run")
    )
    assert load_checkpoint(tmp_path / "run") is None


def test_the_checkpoint_before_a_loss_that_is_not_finite_stays(images, tmp_path):
    folder, keys = tmp_path / "run", {"batch_size": 4, "epochs": 3}
    assert train("2d", images, tmp_path / "whole", keys) == 0
    # Checkpoints after every update, but not after one with such a loss.
    often = keys | {"checkpoint_every_s": 1e-9}
    assert train("2d", images, folder, often, partial(poison_update, 5)) == BAD_INPUT
    assert "the training loss is nan at epoch 2, step 2, with " in last_line(folder)
    position = load_checkpoint(folder)["position"]
    assert (position["epoch"], position["step"], position["update"]) == (2, 1, 4)
    assert train("2d", images, folder, keys) == 0
    assert differing(content_of(folder), content_of(tmp_path / "whole")) == []


def poison_update(number: int) -> None:
    """Make the loss of the n-th update NaN, and the weights with it."""
    import utils.learner

    loss_of, calls = utils.learner._loss_of, []

    def wrapper(*args):
        calls.append(1)
        return loss_of(*args) * (float("nan") if len(calls) == number else 1.0)

    utils.learner._loss_of = wrapper


def test_weights_that_the_last_update_broke_replace_none(images, tmp_path):
    folder, keys = tmp_path / "run", {"batch_size": 4, "epochs": 3}
    assert train("2d", images, folder, keys, break_second_evaluation) == BAD_INPUT
    expected = (
        "the selection loss is nan after epoch 2 (update 6); lower lr, set clip_grad_norm, or use precision: fp32"
    )
    assert last_line(folder) == f"error: {expected}"
    assert load_checkpoint(folder)["position"]["epoch"] == 2, "the second one has not ended"
    assert read_description(folder / "model_best.safetensors").epoch == 1


def break_second_evaluation() -> None:
    """Make a weight NaN before the second evaluation."""
    original, calls = utils.training.evaluate, []

    def wrapper(learner, *args):
        calls.append(1)
        if len(calls) == 2:
            torch.nn.init.constant_(learner.model.features[0].weight, float("nan"))
        return original(learner, *args)

    utils.training.evaluate = wrapper


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_no_hits(broken):
    logits = torch.tensor([[broken] * 4, [0.0, 1.0, 2.0, 3.0], [broken, 0.0, 0.0, 9.0]])
    labels = torch.tensor([3, 3, 0] if math.isnan(broken) else [3, 3, 1])
    sums = new_sums(torch.device("cpu"))
    add_to_sums(sums, torch.zeros(3), logits, labels, torch.ones(3, dtype=torch.bool))
    assert score_of(sums, 4).top1_fraction == 1 / 3


def test_ties_go_to_the_lower_label_as_in_argmax():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([1, 1, 2, 0])
    sums = new_sums(torch.device("cpu"))
    add_to_sums(sums, torch.zeros(4), logits, labels, torch.ones(4, dtype=torch.bool))
    score = score_of(sums, 3)
    assert score.top1_fraction == (logits.argmax(1) == labels).double().mean()
    assert (score.top3_fraction, score.num_items) == (1.0, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Semantics that must not change unnoticed


def test_deterministic_changes_nothing_on_a_cpu(images, tmp_path):
    for value in (False, True):
        assert train("2d", images, tmp_path / str(value), {"deterministic": value}) == 0
    assert differing(content_of(tmp_path / "False"), content_of(tmp_path / "True")) == []


# On the demo digits, 4 a class: five updates of 8 items, float32. Order, seeds, initialisation, augmentation and
# dropout all show in them; a second thread does not.
PINNED = {
    "2d": [2.30193, 2.30322, 2.3187, 2.30711, 2.33864],
    "3d": [2.30234, 2.30298, 2.31927, 2.30776, 2.33806],
}
PINNED_KEYS = {"batch_size": 8, "lr": 0.1, "hold_out": {"fraction": 0.2}, "augmentation": {"horizontal_flip": True}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> dict[str, Path]:
    """The demo data, small: raw images, and static clips of three frames that lose no pixel."""
    root = tmp_path_factory.mktemp("digits")
    keys = {"output_dir": str(root / "images"), "train_per_class": 5, "val_per_class": 2, "image_size": 32}
    run_demo_dataset(build_settings(DemoDatasetSettings, keys, "test"))
    for split in ("train", "val"):
        index = read_image_set(root / "images", split, None)
        lines = ["video_path,label"]
        for number, (path, label) in enumerate(zip(index.paths, index.labels, strict=True)):
            write_clip(
                root / f"clips/{split}/{number}.mp4", np.stack([read_rgb_image(path)] * 3), codec="h264_lossless"
            )
            lines.append(f"{number}.mp4,{label}")
        (root / f"clips/{split}.csv").write_text("\n".join(lines) + "\n")
    return {"2d": root / "images", "3d": root / "clips"}


def losses_of(run_dir: Path, arm: str, data_root: Path, **keys) -> list[float]:
    """Of the updates of the network itself."""
    assert train(arm, data_root, run_dir, PINNED_KEYS | keys, thin=False) == 0, last_line(run_dir)
    return histories(run_dir)[1]["train_loss"]


@pytest.mark.parametrize("arm", PINNED)
def test_the_first_losses_are_pinned(digits, tmp_path, arm):
    assert losses_of(tmp_path / "run", arm, digits[arm], updates=5) == pytest.approx(PINNED[arm], rel=1e-4)
