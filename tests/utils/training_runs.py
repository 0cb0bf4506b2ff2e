"""What the tests of the trainer share: runs of small networks in children, faults to plant in them, what they left.

A run goes through the stages' own code, from settings to files; only the network is thinner where a test asks for it.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import KILLED, run_in_child
from torch import nn
from torchvision.models import vgg11_bn
from torchvision.models.vgg import make_layers

import Baseline_VGG.vgg_baseline
import Inflated_3D_VGG.vgg_inflated
import utils.history
import utils.saving
import utils.training
from Baseline_VGG.settings import BaselineSettings
from Inflated_3D_VGG.settings import InflatedSettings
from utils.config import build_settings
from utils.errors import run_script
from utils.files import sha256_file, write_bytes
from utils.training_state import load_checkpoint

SMALL = {
    "weights": "none",
    "image_size": 32,
    "classifier_width": 16,
    "batch_size": 2,
    "hold_out": {"fraction": 0.3},
    "epochs": 2,
    "lr": 0.01,
    "lr_step": 1,
    "workers": 1,
    "device": "cpu",
}
ARMS = {"2d": BaselineSettings, "3d": InflatedSettings}
TERMINATED, INTERRUPTED, BAD_INPUT = 143, 130, 2
Fault = Callable[[], None]


def train(
    arm: str, data_root: Path, output_dir: Path, keys: dict[str, Any], fault: Fault | None = None, thin: bool = True
) -> int:
    """Train `2d` or `3d` as the script does, in a child; returns the exit code.

    Args:
        keys: settings beside `SMALL`.
        fault: called in the child first, to plant what goes wrong.
        thin: a network of a few thousand weights instead of VGG-11, and an empty picture of its curves.
    """
    return run_in_child(_train, arm, data_root, output_dir, keys, fault, thin)


def _train(arm: str, data_root: Path, output_dir: Path, keys: dict[str, Any], fault: Fault | None, thin: bool) -> None:
    torch.set_num_threads(1)  # as in every run that is compared bit for bit
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(log_of(output_dir), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    if thin:
        Baseline_VGG.vgg_baseline.build_vgg11 = Inflated_3D_VGG.vgg_inflated.build_vgg11 = build_thin
        utils.training.draw_curves = lambda _, path: write_bytes(path, b"")
    if fault is not None:
        fault()
    run_script(lambda: train_here(arm, data_root, output_dir, **keys))


def train_here(arm: str, data_root: Path, output_dir: Path, **keys: Any) -> Path:
    """Train in this process; returns the best weights' path."""
    from Baseline_VGG import training as baseline
    from Inflated_3D_VGG import training as inflated

    raw = {**SMALL, "data_root": str(data_root), "output_dir": str(output_dir), **keys}
    stage = {"2d": baseline, "3d": inflated}[arm]
    return stage.run_training(build_settings(ARMS[arm], raw, "test"))


def build_thin(num_classes: int, weights: Any = None, *, classifier_width: int, dropout: float) -> nn.Module:
    """A VGG of two convolutions, float (B, 3, H, W) -> (B, num_classes)."""
    assert weights is None
    with torch.device("meta"):
        model = vgg11_bn(init_weights=False)
    model.features = make_layers([4, "M", 8, "M"], batch_norm=True)
    model.avgpool = nn.AdaptiveAvgPool2d((2, 2))
    hidden = [nn.Linear(8 * 2 * 2, classifier_width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    model.classifier = nn.Sequential(*hidden, nn.Linear(classifier_width, num_classes))
    return model


# ---------------------------------------------------------------------------------------------------------------------
# What a run left


def log_of(output_dir: Path) -> Path:
    """Where a child's stderr went."""
    return output_dir.with_name(output_dir.name + ".log")


def last_line(output_dir: Path) -> str:
    """The last thing that a child said."""
    return log_of(output_dir).read_text().strip().splitlines()[-1]


def content_of(output_dir: Path) -> dict[str, Any]:
    """All that a run made, comparable: tables, best weights with their description, every value of the state."""
    tables = {name: (output_dir / name).read_text() for name in ("history.csv", "updates.csv")}
    best = sha256_file(output_dir / "model_best.safetensors")
    return {**tables, "best": best, **_leaves(load_checkpoint(output_dir), "state")}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs between two runs, empty where they are the same to the last bit."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def is_done(output_dir: Path) -> bool:
    return (output_dir / "curves.png").exists()


def _leaves(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        return {name: (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())}
    if isinstance(value, dict):
        return {key: leaf for k, item in value.items() for key, leaf in _leaves(item, f"{name}.{k}").items()}
    if isinstance(value, list | tuple):
        return {key: leaf for k, item in enumerate(value) for key, leaf in _leaves(item, f"{name}.{k}").items()}
    return {name: repr(value)}


# ---------------------------------------------------------------------------------------------------------------------
# Faults; with functools.partial they go to a child

# Every call with which the trainer changes something on the disk.
WRITES = ((os, "write"), (os, "pwrite"), (os, "fsync"), (os, "replace"), (Path, "write_bytes"))


def before_call(target: Any, name: str, call: int, act: Callable[[], None]) -> None:
    """Do something before the n-th call (from 1) of a function."""
    original, calls = getattr(target, name), 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return original(*args, **kwargs)

    setattr(target, name, wrapper)


def send(number: int, told: Path | None = None) -> None:
    """Send this process a signal; the file `told` gets the time."""
    if told is not None:
        told.write_text(repr(time.monotonic()))
    os.kill(os.getpid(), number)


def stop_at_update(update: int, number: int = signal.SIGTERM) -> None:
    """A signal in the update of this number, from 1, over the whole run."""
    original = utils.history.Position.advance

    def advance(self, *args):
        original(self, *args)
        if self.update == update:
            send(number)

    utils.history.Position.advance = advance


def kill_after_checkpoint(checkpoint: int) -> None:
    """`kill -9` right after the n-th checkpoint (from 1) of this process stands."""
    original, saved = utils.saving.save_checkpoint, 0

    def save(*args):
        nonlocal saved
        original(*args)
        saved += 1
        if saved == checkpoint:
            os._exit(KILLED)

    utils.saving.save_checkpoint = save


def at_write(number: int, act: Callable[[Callable, tuple], None]) -> None:
    """Let `act(original, arguments)` stand for the n-th call (from 1) that writes, syncs or renames."""
    calls = 0

    def wrap(original: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            return act(original, args) if calls == number else original(*args, **kwargs)

        return wrapper

    for owner, name in WRITES:
        setattr(owner, name, wrap(getattr(owner, name)))


def kill_at_write(number: int) -> None:
    """`kill -9` at the n-th write; of an odd one half has come to the disk."""

    def die(original: Callable, args: tuple) -> None:
        if number % 2 and original.__name__ in ("write", "pwrite", "write_bytes"):
            target, content, *place = args
            original(target, bytes(content)[: len(content) // 2], *place)
        os._exit(KILLED)

    at_write(number, die)


def fill_disk_at_write(number: int) -> None:
    """The disk is full at the n-th write, and at this one only."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    at_write(number, refuse)


def count_writes(told: Path) -> None:
    """Write into the file `told` how many writes there were."""
    calls = 0

    def wrap(original: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            with told.open("w") as file:
                file.write(str(calls))
            return original(*args, **kwargs)

        return wrapper

    for owner, name in WRITES:
        setattr(owner, name, wrap(getattr(owner, name)))
