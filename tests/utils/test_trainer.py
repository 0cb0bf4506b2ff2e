"""Whole runs of a tiny network: schedules, stopping, averages, records; and what no option may change."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import write_clip_set, write_image_set
from small_training import fit_tiny, open_training, run_ranks, tiny_settings, train_network
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.artifacts import HISTORY, IMAGE_INDEX, UPDATES, read_table, write_table
from utils.checkpoints import read_weights
from utils.optimization import learning_rate

NUM_STEPS = 3  # 11 items by 4


def read_position(run_dir: Path) -> dict:
    """What a checkpoint says of the run, with all digits."""
    return torch.load(run_dir / "last.pt", weights_only=True)["position"]


def read_rates(run_dir: Path) -> list[float]:
    return [rate for rate, _ in read_position(run_dir)["finished_updates"]]


# ---------------------------------------------------------------------------------------------------------------------
# Schedules and length

SCHEDULES = {
    "constant": {"schedule": "constant"},
    "step": {"schedule": "step", "lr_step": 2, "lr_gamma": 0.5},
    "cosine": {"schedule": "cosine", "min_lr": 1e-4},
    "plateau": {"schedule": "plateau", "plateau_patience": 0, "lr_gamma": 0.5},
}
BY_HAND = {
    "constant": [0.01] * 12,
    "step": [0.01] * 6 + [0.005] * 6,
    "cosine": [1e-4 + (0.01 - 1e-4) * (1 + np.cos(np.pi * step / 11)) / 2 for step in range(12)],
}


@pytest.mark.parametrize("schedule", BY_HAND)
def test_rates_are_those_of_the_schedule(tmp_path, schedule):
    fit_tiny(tmp_path, tiny_settings(tmp_path, epochs=4, **SCHEDULES[schedule]))
    assert read_rates(tmp_path) == pytest.approx(BY_HAND[schedule], rel=1e-12)
    table = read_table(tmp_path / "updates.csv", UPDATES)
    assert table["learning_rate"].tolist() == pytest.approx(BY_HAND[schedule], rel=1e-5)
    assert table["epoch"].tolist() == np.repeat([1, 2, 3, 4], NUM_STEPS).tolist()
    history = read_table(tmp_path / "history.csv", HISTORY)
    assert history["learning_rate"].tolist() == table["learning_rate"].tolist()[2::3], "the last one of each epoch"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_warm_up_and_scale_with_the_batch(tmp_path, schedule):
    options = {"warmup_updates": 5, "lr_scaling": "sqrt", "lr_batch_size": 16, **SCHEDULES[schedule]}
    settings = tiny_settings(tmp_path, epochs=4, **options)
    fit_tiny(tmp_path, settings)
    losses = [row["selection_loss"] for row in read_position(tmp_path)["rows"]]
    keys = ("schedule", "warmup_updates", "min_lr", "lr_step", "lr_gamma", "plateau_patience")
    common = {"base_lr": 0.01 * 0.5, "total_updates": 12} | settings.model_dump(include=set(keys))
    expected = [
        learning_rate(update, epoch, history_losses=losses[: epoch - 1], **common)
        for update, epoch in enumerate(np.repeat([1, 2, 3, 4], NUM_STEPS).tolist())
    ]
    assert read_rates(tmp_path) == pytest.approx(expected, rel=1e-12)
    assert expected[0] == pytest.approx(0.005 / 5, rel=0.05), "a fifth of the scaled rate at first"


def test_a_plateau_lowers_the_rate_after_an_epoch_that_is_no_better(tmp_path):
    settings = tiny_settings(tmp_path, epochs=4, lr=1e-6, schedule="plateau", plateau_patience=0)
    fit_tiny(tmp_path, settings)  # so slow that no loss is a ten-thousandth lower
    rates = read_rates(tmp_path)[::NUM_STEPS]
    assert rates == pytest.approx([1e-6, 1e-6, 1e-7, 1e-8], rel=1e-9)


@pytest.mark.parametrize("updates", [1, 3, 7])
def test_a_budget_of_updates_ends_within_an_epoch(tmp_path, updates):
    fit_tiny(tmp_path, tiny_settings(tmp_path, updates=updates, schedule="cosine"))
    rates = read_rates(tmp_path)
    assert len(rates) == updates
    assert updates == 1 or rates[-1] == pytest.approx(0, abs=1e-12), "the cosine ends with the budget"
    assert read_table(tmp_path / "history.csv", HISTORY)["update"].tolist() == [*range(3, updates, 3), updates]


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_waits_so_many_epochs_for_a_better_one(tmp_path, patience):
    settings = tiny_settings(tmp_path, lr=1e-12, freeze_layers=3, epochs=9, early_stopping_patience=patience)
    fit_tiny(tmp_path, settings)
    assert len(read_position(tmp_path)["rows"]) == 1 + patience, "the first epoch is the best, and none is as good"
    assert (tmp_path / "curves.png").exists()


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


def test_the_best_weights_are_the_averaged_ones(tmp_path):
    fit_tiny(tmp_path, tiny_settings(tmp_path, epochs=1, ema_decay=0.9))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    best, description = read_weights(tmp_path / "model_best.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in state["average"].items())
    assert not torch.equal(best["head.weight"], state["model"]["head.weight"]), "those are the trained ones"
    top1 = read_position(tmp_path)["rows"][0]["selection_top1_fraction"]
    assert description.metric == {"name": "hold_out_top1_fraction", "value": top1}


def test_the_best_epoch_is_kept_and_described(tmp_path):
    learner = fit_tiny(tmp_path, tiny_settings(tmp_path, epochs=6, lr=0.05))
    rows = read_position(tmp_path)["rows"]
    best, description = read_weights(tmp_path / "model_best.safetensors")
    scores = [row["selection_top1_fraction"] for row in rows]
    epoch = 1 + int(np.argmax(scores))  # the first of equal ones
    assert (description.epoch, description.update) == (epoch, epoch * NUM_STEPS)
    assert epoch < len(rows), "this rate is so high that the last epoch is not the best"
    assert not torch.equal(best["head.weight"], learner.model.head.weight)


# ---------------------------------------------------------------------------------------------------------------------
# Records


def read_events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar with TensorBoard's own reader: (step, value)."""
    reader = EventAccumulator(str(run_dir / "tensorboard"))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def require_events(run_dir: Path) -> None:
    position, events = read_position(run_dir), read_events(run_dir)
    rates, losses = zip(*position["finished_updates"], strict=True)
    steps = range(1, len(losses) + 1)
    expected = {
        "update/learning_rate": [*zip(steps, rates, strict=True)],
        "update/train_loss": [*zip(steps, losses, strict=True)],
    }
    for name in position["rows"][0].keys() - {"epoch", "update", "learning_rate"}:
        expected[f"epoch/{name}"] = [(row["epoch"], row[name]) for row in position["rows"]]
    assert events.keys() == expected.keys()
    for tag, values in expected.items():
        assert [step for step, _ in events[tag]] == [step for step, _ in values], tag
        assert [value for _, value in events[tag]] == pytest.approx([value for _, value in values], rel=1e-6), tag


def test_tensorboard_shows_what_the_tables_say(tmp_path):
    fit_tiny(tmp_path, tiny_settings(tmp_path, epochs=3, tensorboard=True))
    require_events(tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    options = {"epochs": 4, "tensorboard": True}
    assert run_ranks(tmp_path, options, 1, signal_at=8, signal=signal.SIGTERM) == [143]
    assert len(read_events(tmp_path / "run")["update/train_loss"]) == 6, "of the two finished epochs"
    assert run_ranks(tmp_path, options, 1) == [0]
    require_events(tmp_path / "run")


def test_no_events_are_written_unasked(tmp_path):
    fit_tiny(tmp_path, tiny_settings(tmp_path, epochs=1))
    assert not (tmp_path / "tensorboard").exists()


def test_each_epoch_has_a_line_with_its_losses_rate_and_wait_for_data(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fit_tiny(tmp_path, tiny_settings(tmp_path, epochs=2))
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for line, row in zip(lines, read_position(tmp_path)["rows"], strict=True):
        assert f"loss {row['train_loss']:.4f}, train top-1 {row['train_top1_fraction']:.3f}" in line
        assert f"selection top-1 {row['selection_top1_fraction']:.3f}, lr 0.01" in line
        wait = float(line.split(" items/s, ")[1].split(" % waiting for data")[0])
        assert 0 <= wait <= 100


# ---------------------------------------------------------------------------------------------------------------------
# Data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {
        "baseline": write_image_set(root / "images", per_class=5),
        "inflated": write_clip_set(root / "clips", per_class=5),
    }


def all_bits(run) -> list[bytes]:
    """Of an epoch of training and of the selection pass: inputs, labels and shares."""
    parts = [part for update in run.train.epoch(1) for part in map(copy_of, update)]
    return parts + [copy_of(part) for part in run.selection.in_order()]


def copy_of(part) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in (part.inputs, part.target, part.shares))


@pytest.mark.parametrize("network", ["baseline", "inflated"])
def test_neither_cache_nor_workers_change_a_bit(monkeypatch, data, tmp_path, network):
    bits = []
    for cache in (True, False):
        for workers in (0, 2):
            options = {"output_dir": tmp_path / f"{cache}_{workers}" / "run", "cache": cache, "workers": workers}
            bits.append(all_bits(open_training(monkeypatch, network, data_root=data[network], **options)))
            assert (options["output_dir"].parent / "cache").exists() == cache
    assert len(bits[0]) == 3, "8 items by 4, and 2 to choose with"
    assert bits == [bits[0]] * 4


def test_class_balanced_sampling_is_what_the_setting_asks_for(monkeypatch, data, tmp_path):
    table = read_table(data["baseline"] / "train.csv", IMAGE_INDEX).iloc[:7]  # five of one class, two of the other
    images = write_image_set(tmp_path / "images", per_class=5)
    write_table(table.to_dict("records"), images / "train.csv", IMAGE_INDEX)
    shares = {}
    for sampling in ("shuffled", "class_balanced"):
        options = {"output_dir": tmp_path / sampling, "sampling": sampling, "selection": "val"}
        run = open_training(monkeypatch, "baseline", data_root=images, **options)
        drawn = torch.cat([run.train.order(epoch) for epoch in range(1, 201)])
        shares[sampling] = run.train.labels[drawn].double().mean().item()
    assert shares["shuffled"] == pytest.approx(2 / 7)
    assert shares["class_balanced"] == pytest.approx(0.5, abs=5 * (0.25 / 1400) ** 0.5)  # five standard deviations


def test_weights_say_what_they_were_trained_and_selected_on(data, tmp_path):
    train_network("baseline", data_root=data["baseline"], output_dir=tmp_path / "run", epochs=1, seed=3)
    described = read_weights(tmp_path / "run" / "model_best.safetensors")[1]
    assert (described.type, described.train_input, described.seed, described.start) == (
        "baseline",
        "original",
        3,
        "random",
    )
    assert described.selected_on == {"split": "hold_out", "num_items": 2}
    assert described.trained_on["num_items"] == 8
    assert described.trained_on["input"] == "original"
    assert described.protocol == "custom"
    assert described.protocol_values["lr"] == 0.01
    assert (described.epoch, described.update) == (1, 2)
