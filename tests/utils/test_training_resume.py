"""A run that was stopped, killed or met a full disk goes on to the same bits; what is not its own is refused by name.

Children make the runs (tests/utils/training_runs.py): 4 epochs of 10 updates, with a hold-out of 8 items.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import KILLED, PROJECT
from samples import write_clip_set, write_image_set
from training_runs import (
    ARMS,
    BAD_INPUT,
    INTERRUPTED,
    SMALL,
    TERMINATED,
    before_call,
    content_of,
    count_writes,
    differing,
    fill_disk_at_write,
    is_done,
    kill_after_checkpoint,
    kill_at_write,
    last_line,
    send,
    stop_at_update,
    train,
)

import utils.saving
import utils.sources
import utils.training
import utils.training_state
from utils.sidecar import BEST_FILE, SIDECAR_FILE, STATE_FILE
from utils.training_state import load_checkpoint

EPOCHS, UPDATES = 4, 40
AUGMENTATION = {"horizontal_flip": True, "crop_min_area": 0.5, "brightness": 0.3, "erase_probability": 0.5}
MIXING = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"ema_decay": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine", "warmup_updates": 5, "min_lr": 1e-4},
    "augmented": {"augmentation": AUGMENTATION},
    "mixed": {"augmentation": MIXING},
    "balanced": {"sampling": "class_balanced"},
    "plateau": {"schedule": "plateau", "plateau_patience": 0},
    "parts": {"accumulate": 2},
    "dropout": {"dropout": 0.5},
    "frozen": {"freeze_layers": 1, "layer_lr_decay": 0.9, "clip_grad_norm": 0.5},
    "losses": {"label_smoothing": 0.1, "focal_gamma": 2.0},
    "bf16": {"precision": "bf16"},
    "decoded": {"cache": False},
}
MANY = {**OPTIONS["averaged"], **OPTIONS["balanced"], **OPTIONS["plateau"], **OPTIONS["parts"], **OPTIONS["dropout"]}
OPTIONS["many"] = {**MANY, "augmentation": AUGMENTATION | MIXING}
SAMPLED = [("2d", "many"), ("3d", "many"), ("3d", "adamw")]  # in the default tier
exhaustive = pytest.mark.exhaustive


def sampled(every: Any, some: Any) -> list:
    """Parameters of which all but some are for the exhaustive tier."""
    return [
        pytest.param(*(item if isinstance(item, tuple) else (item,)), marks=[] if item in some else exhaustive)
        for item in every
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {
        "2d": write_image_set(root / "images", per_class=14),
        "3d": write_clip_set(root / "clips", per_class=14),
    }


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """What a run that nothing happened to leaves: `uninterrupted(arm, keys)`."""
    known: dict[str, dict[str, Any]] = {}

    def run(arm: str, keys: dict[str, Any], thin: bool = True) -> dict[str, Any]:
        name = repr((arm, keys, thin))
        if name not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert train(arm, data[arm], folder, keys, thin=thin) == 0, last_line(folder)
            known[name] = content_of(folder)
        return known[name]

    return run


def finish(arm: str, data_root: Path, folder: Path, keys: dict[str, Any], thin: bool = True) -> dict[str, Any]:
    """Run again without a fault; what it left."""
    assert train(arm, data_root, folder, keys, thin=thin) == 0, last_line(folder)
    assert is_done(folder)
    assert not list(folder.parent.rglob("*.partial"))
    return content_of(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Resume from every update


@pytest.mark.parametrize(("arm", "option"), sampled(product(ARMS, OPTIONS), SAMPLED))
def test_a_run_stopped_and_killed_in_mid_epoch_goes_on_to_the_same_bits(data, uninterrupted, tmp_path, arm, option):
    keys, folder = {"epochs": EPOCHS, **OPTIONS[option]}, tmp_path / "run"
    assert train(arm, data[arm], folder, keys, partial(stop_at_update, 7)) == TERMINATED
    assert load_checkpoint(folder)["position"]["update"] == 7
    often = {**keys, "checkpoint_every_s": 1e-9}
    assert train(arm, data[arm], folder, often, partial(kill_after_checkpoint, 9)) == KILLED
    position = load_checkpoint(folder)["position"]
    # Nine checkpoints: after updates 8, 9, 10, at the end of the epoch, and after 11 to 15.
    assert (position["epoch"], position["step"], position["update"]) == (2, 5, 15)
    assert differing(finish(arm, data[arm], folder, keys), uninterrupted(arm, keys)) == []


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_stopped_again_and_again_goes_on_to_the_same_bits(data, uninterrupted, tmp_path, arm, is_exhaustive):
    keys, folder = {"epochs": EPOCHS, **OPTIONS["many"]}, tmp_path / "run"
    for update in range(1, UPDATES + 1) if is_exhaustive else (1, 10, 11, 29, 40):
        assert train(arm, data[arm], folder, keys, partial(stop_at_update, update)) == TERMINATED
        position = load_checkpoint(folder)["position"]
        assert position["update"] == update
        assert len(position["rows"]) == (update - 1) // 10, "an epoch ends with its evaluation"
    assert differing(finish(arm, data[arm], folder, keys), uninterrupted(arm, keys)) == []


@exhaustive
@pytest.mark.parametrize("update", range(1, UPDATES + 1))
@pytest.mark.parametrize("arm", ARMS)
def test_the_demo_network_goes_on_from_every_update(data, uninterrupted, tmp_path, arm, update):
    keys = {"epochs": EPOCHS, "classifier_width": 256, "dropout": 0.1}
    assert train(arm, data[arm], tmp_path / "run", keys, partial(stop_at_update, update), thin=False) == TERMINATED
    found = finish(arm, data[arm], tmp_path / "run", keys, thin=False)
    assert differing(found, uninterrupted(arm, keys, thin=False)) == []
    shutil.rmtree(tmp_path / "run")  # 0.4 GB


# ---------------------------------------------------------------------------------------------------------------------
# Kills and full disks at every write

SHORT = {"epochs": 2, "updates": 13, "ema_decay": 0.9}


PARTS = 6  # that the exhaustive tier takes the writes in: all would outlast a test's time
in_parts = pytest.mark.parametrize("part", sampled(range(PARTS), [0]))


def write_points(data: dict[str, Path], folder: Path, part: int, is_exhaustive: bool) -> tuple[list[int], int]:
    """A part of the writes of a whole run, or some of all, the last ones among them; and how many there are."""
    told = folder / "writes"
    assert train("2d", data["2d"], folder / "counted" / "run", SHORT, partial(count_writes, told)) == 0
    total = int(told.read_text())
    assert total >= 200
    if is_exhaustive:
        return list(range(1 + part, total + 1, PARTS)), total
    return [*range(5, total - 60, total // 4), total - 22, total - 3, total], total


@in_parts
def test_a_run_killed_at_any_write_goes_on_to_the_same_bits(data, uninterrupted, tmp_path, part, is_exhaustive):
    points, last = write_points(data, tmp_path, part, is_exhaustive)
    for point in points:
        folder = tmp_path / str(point) / "run"
        assert train("2d", data["2d"], folder, SHORT, partial(kill_at_write, point)) == KILLED
        assert is_done(folder) == (point == last), "the last call is the sync of the last file's name"
        assert differing(finish("2d", data["2d"], folder, SHORT), uninterrupted("2d", SHORT)) == [], point
        shutil.rmtree(folder.parent)


@exhaustive
def test_a_run_killed_again_and_again_goes_on_to_the_same_bits(data, uninterrupted, tmp_path):
    folder, kills = tmp_path / "again" / "run", 0
    keys = {**SHORT, "checkpoint_every_s": 1e-9}
    while train("2d", data["2d"], folder, keys, partial(kill_at_write, 300 + 13 * kills)) == KILLED:
        kills += 1
        assert kills < 100
    assert kills >= 5
    assert differing(finish("2d", data["2d"], folder, SHORT), uninterrupted("2d", SHORT)) == []


@in_parts
def test_a_disk_that_is_full_at_any_write_loses_nothing(data, uninterrupted, tmp_path, part, is_exhaustive):
    codes = []
    for point in write_points(data, tmp_path, part, is_exhaustive)[0]:
        folder = tmp_path / str(point) / "run"
        codes.append(train("2d", data["2d"], folder, SHORT, partial(fill_disk_at_write, point)))
        assert codes[-1] in (0, BAD_INPUT), "0: without a cache, files are decoded in every epoch"
        if codes[-1] == BAD_INPUT:
            assert re.fullmatch(
                r"error: (/\S+|writing): no space left on the disk; free some and run .*", last_line(folder)
            )
            assert not list(folder.glob("*.partial"))
        assert differing(finish("2d", data["2d"], folder, SHORT), uninterrupted("2d", SHORT)) == [], point
        shutil.rmtree(folder.parent)
    assert codes.count(BAD_INPUT) >= 4


# ---------------------------------------------------------------------------------------------------------------------
# Signals

# The call before which a signal comes, and the (epoch, step) that is saved then; None: nothing to save yet.
PHASES = {
    "load": ((utils.sources, "read_rgb_image", 5), None),
    "train": ((utils.training, "update_weights", 4), (1, 4)),
    "last update": ((utils.training, "update_weights", 10), (1, 10)),
    "evaluation": ((utils.training, "add_to_sums", 2), (1, 10)),
    "save": ((utils.saving, "save_checkpoint", 1), (2, 1)),
    "inside save": ((utils.training_state, "write_sidecar", 1), (2, 1)),
    "tables": ((utils.saving, "write_table", 1), (2, 1)),
}
CODES = {signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}


def signal_in(phase: str, number: int, told: Path) -> None:
    before_call(*PHASES[phase][0], lambda: send(number, told))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_any_phase_saves_and_ends_in_time(data, uninterrupted, tmp_path, phase, number):
    folder, told = tmp_path / "run", tmp_path / "told"
    assert train("2d", data["2d"], folder, SHORT, partial(signal_in, phase, number, told)) == CODES[number]
    assert time.monotonic() - float(told.read_text()) < 5
    assert re.match(r"error: (terminated|interrupted); run the same command again", last_line(folder))
    state, expected = load_checkpoint(folder), PHASES[phase][1]
    assert state is None if expected is None else (state["position"]["epoch"], state["position"]["step"]) == expected
    assert not list(tmp_path.rglob("*.partial"))
    assert differing(finish("2d", data["2d"], folder, SHORT), uninterrupted("2d", SHORT)) == []


def test_a_signal_after_the_last_update_was_saved_changes_nothing(data, uninterrupted, tmp_path):
    folder, told = tmp_path / "run", tmp_path / "told"
    assert train("2d", data["2d"], folder, SHORT, partial(signal_at_the_curves, told)) == 0
    assert told.exists()
    assert is_done(folder)
    assert differing(content_of(folder), uninterrupted("2d", SHORT)) == []


def signal_at_the_curves(told: Path) -> None:
    before_call(utils.training, "draw_curves", 1, lambda: send(signal.SIGTERM, told))


@pytest.mark.parametrize("number", sampled(CODES, [signal.SIGTERM]))
def test_the_script_itself_stops_and_goes_on(data, uninterrupted, tmp_path, number):
    keys = {"epochs": 5, "batch_size": 10, "seed": 3}
    run = [sys.executable, "-m", "Baseline_VGG.train", "--config", write_config(tmp_path / "config.yaml", data["2d"])]
    run += [f"output_dir={tmp_path / 'run'}", *(f"{key}={value}" for key, value in keys.items())]
    where = {"cwd": PROJECT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    with subprocess.Popen(run, stderr=subprocess.PIPE, **where) as script:
        for line in script.stderr:
            if " epoch 1/5: " in line:
                break
        sent_s = time.monotonic()
        script.send_signal(number)
        said = script.stderr.read()
        assert script.wait() == CODES[number], said
        assert time.monotonic() - sent_s < 5
    assert 2 < load_checkpoint(tmp_path / "run")["position"]["update"] < 10
    found = finish("2d", data["2d"], tmp_path / "run", keys, thin=False)
    assert differing(found, uninterrupted("2d", keys, thin=False)) == []


def write_config(path: Path, data_root: Path) -> str:
    settings = {**SMALL, "data_root": str(data_root), "hold_out": "{fraction: 0.3}"}
    path.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# What is not this run's is refused by name


@pytest.fixture(scope="module")
def stopped_run(data, tmp_path_factory) -> Path:
    """A run that was stopped in its second epoch, in a folder with its hold-out and cache."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert train("2d", data["2d"], folder, {}, partial(stop_at_update, 13)) == TERMINATED
    return folder


@pytest.fixture
def stopped(stopped_run, tmp_path) -> Path:
    shutil.copytree(stopped_run.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def refusal(data_root: Path, folder: Path, thin: bool = True, **keys: Any) -> str:
    """The one sentence a run ends with; it changed nothing."""
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    assert train("2d", data_root, folder, keys, thin=thin) == BAD_INPUT
    assert {path: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before
    sentence = last_line(folder)
    assert sentence.startswith("error: ")
    return sentence


def test_the_stopped_run_itself_goes_on(data, uninterrupted, stopped):
    assert differing(finish("2d", data["2d"], stopped, {}), uninterrupted("2d", {})) == []


def test_a_changed_key_is_refused_by_name(data, stopped):
    assert "(batch_size: 2 -> 4; lr: 0.01 -> 0.02)" in refusal(data["2d"], stopped, lr=0.02, batch_size=4)
    assert "(seed: 0 -> 1)" in refusal(data["2d"], stopped, seed=1)


def test_where_and_how_fast_may_change(data, uninterrupted, stopped):
    shutil.copytree(data["2d"], stopped.parent / "elsewhere")
    keys = {"cache": False, "checkpoint_every_s": None, "workers": 2}
    assert differing(finish("2d", stopped.parent / "elsewhere", stopped, keys), uninterrupted("2d", {})) == []


def test_changed_images_are_noticed(stopped, tmp_path):
    other = write_image_set(tmp_path / "other", per_class=15)
    assert "train_index: its content has changed" in refusal(other, stopped)


@pytest.mark.parametrize("name", [STATE_FILE, BEST_FILE, SIDECAR_FILE])
def test_a_missing_file_of_a_checkpoint_is_named(data, stopped, name):
    (stopped / name).unlink()
    assert re.search(rf"{re.escape(name)}: (was removed|is missing)", refusal(data["2d"], stopped))


@pytest.mark.parametrize("name", [STATE_FILE, BEST_FILE, SIDECAR_FILE])
def test_a_damaged_file_of_a_checkpoint_is_named(data, stopped, name):
    content = bytearray((stopped / name).read_bytes())
    content[len(content) // 2] ^= 4
    (stopped / name).write_bytes(content)
    assert re.search(rf"{re.escape(name)}: is damaged", refusal(data["2d"], stopped))


def test_another_runs_whole_checkpoint_is_named(data, stopped, tmp_path):
    """Three files that fit each other, of the same network: only what they record of their run tells."""
    other = tmp_path / "other" / "run"
    assert train("2d", data["2d"], other, {"seed": 1}, partial(stop_at_update, 13)) == TERMINATED
    for name in (STATE_FILE, BEST_FILE, SIDECAR_FILE):
        shutil.copy(other / name, stopped / name)
    assert f"{stopped / STATE_FILE}: does not belong to this run (seed: 1 -> 0)" in refusal(data["2d"], stopped)


def test_a_checkpoint_of_another_network_is_named(data, stopped, tmp_path):
    other = tmp_path / "other" / "run"
    assert train("2d", data["2d"], other, {"classifier_width": 8}, partial(stop_at_update, 13)) == TERMINATED
    for name in (STATE_FILE, BEST_FILE, SIDECAR_FILE):
        shutil.copy(other / name, stopped / name)
    assert "(options.classifier_width: 8 -> 16)" in refusal(data["2d"], stopped)


def test_an_edited_hold_out_is_refused(data, stopped):
    path = stopped.parent / "hold_out.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], lines[-1].replace("hold_out", "train")]))
    if "hold_out" not in lines[-1]:
        path.write_text("".join([*lines[:-1], lines[-1].replace("train", "hold_out")]))
    assert "hold_out: its content has changed" in refusal(data["2d"], stopped)


def test_a_hold_out_that_is_drawn_anew_is_the_same_or_refused(data, tmp_path):
    small = write_image_set(tmp_path / "small", per_class=10)  # the first ten of each class
    for first, is_refused in ((small, False), (data["2d"], True)):
        shared, folder = tmp_path / first.name / "hold_out.csv", tmp_path / first.name / "run"
        keys = {"hold_out": {"fraction": 0.3, "file": str(shared)}}
        assert train("2d", first, tmp_path / first.name / "first", {**keys, "updates": 1}) == 0
        assert train("2d", small, folder, keys, partial(stop_at_update, 9)) == TERMINATED
        shared.unlink()
        if is_refused:
            assert "does not belong to this run (trained_on.hold_out_sha256: " in refusal(small, folder, **keys)
        else:
            assert train("2d", small, folder, keys) == 0


def test_a_finished_run_is_not_touched(data, tmp_path):
    folder = tmp_path / "run"
    found = finish("2d", data["2d"], folder, {})
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert finish("2d", data["2d"], folder, {}) == found
    assert last_line(folder).endswith(f"{folder} is complete; nothing to do")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    whole = (folder / BEST_FILE).read_bytes()
    (folder / BEST_FILE).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "model_best.safetensors: is damaged (its SHA-256 differs" in refusal(data["2d"], folder)
    (folder / BEST_FILE).write_bytes(whole)
    sidecar = (folder / SIDECAR_FILE).read_bytes()
    (folder / SIDECAR_FILE).unlink()
    assert "checkpoint.json: is missing beside model_best.safetensors" in refusal(data["2d"], folder)
    (folder / SIDECAR_FILE).write_bytes(sidecar)
    (folder / BEST_FILE).unlink()
    assert "model_best.safetensors: was removed after training; restore it" in refusal(data["2d"], folder)


def test_a_failed_overwrite_loses_nothing(data, uninterrupted, stopped, tmp_path):
    (tmp_path / "other.pt").write_bytes(b"no weights")
    keys = {"weights": str(tmp_path / "other.pt"), "overwrite": True}
    assert "other.pt: is truncated or not a checkpoint" in refusal(data["2d"], stopped, thin=False, **keys)
    assert differing(finish("2d", data["2d"], stopped, {}), uninterrupted("2d", {})) == []
    assert finish("2d", data["2d"], stopped, {"overwrite": True, "seed": 1})["best"] != uninterrupted("2d", {})["best"]
