"""A network, items and runs so small that training them takes milliseconds; runs of several processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_in_child
from samples import description_of
from torch import nn

import Baseline_VGG.training
import Inflated_3D_VGG.training
import utils.trainer
from Baseline_VGG.settings import BaselineSettings
from Inflated_3D_VGG.settings import InflatedSettings
from utils.batches import Batches
from utils.checkpoints import ModelDescription
from utils.config import build_settings
from utils.errors import StopRequest, run_script
from utils.history import Position
from utils.indices import ClassInfo
from utils.learner import Learner, build_recipe
from utils.pixels import CachedPixels, Pixels
from utils.ranks import Ranks, join_ranks
from utils.settings import TrainingSettings
from utils.training import fit

NUM_CLASSES, SIDE = 3, 8
SMALL = {
    "weights": "none",
    "image_size": 32,
    "dropout": 0.0,
    "batch_size": 4,
    "workers": 0,
    "epochs": 2,
    "lr": 0.01,
    "device": "cpu",
}


class TinyNetwork(nn.Module):
    """Two convolutions, with or without BatchNorm, and two linear layers: four layers; logits (B, 3)."""

    def __init__(self, *, is_clip: bool = False, norm: bool = True) -> None:
        super().__init__()
        conv, batch_norm = (nn.Conv3d, nn.BatchNorm3d) if is_clip else (nn.Conv2d, nn.BatchNorm2d)
        self.first, self.second = conv(3, 4, 3, padding=1), conv(4, 4, 3, padding=1)
        self.first_norm, self.second_norm = (batch_norm(4) if norm else nn.Identity() for _ in range(2))
        self.hidden, self.head = nn.Linear(4 * 4, 8), nn.Linear(8, NUM_CLASSES)
        # weight_layers goes by the order of definition: a norm belongs to the layer before it.
        self._modules = {
            name: self._modules[name] for name in ("first", "first_norm", "second", "second_norm", "hidden", "head")
        }

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.first_norm(self.first(inputs)).relu()
        features = self.second_norm(self.second(features)).relu()
        if features.dim() == 5:
            features = features.mean(2)  # (B, C, T, H, W) -> (B, C, H, W)
        features = nn.functional.avg_pool2d(features, SIDE // 2).flatten(1)
        return self.head(self.hidden(features).relu())


def tiny_network(seed: int = 0, **options: Any) -> TinyNetwork:
    """The network with the weights that belong to a seed, large enough for losses that differ visibly."""
    torch.manual_seed(seed)
    return TinyNetwork(**options)


def tiny_settings(output_dir: Path | str = "unused", **options: Any) -> TrainingSettings:
    """Settings for a tiny run; `options` over `SMALL`."""
    return build_settings(TrainingSettings, {**SMALL, **options, "output_dir": str(output_dir)}, "test")


def tiny_pixels(num_items: int, num_frames: int = 1, seed: int = 0) -> Pixels:
    """Items of random pixels, with the buffers of a cache."""
    shape = (num_items, num_frames, SIDE, SIDE, 3)
    return CachedPixels(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def tiny_batches(num_items: int, settings: TrainingSettings, *, ranks: Ranks | None = None, **options: Any) -> Batches:
    """Batches of `tiny_pixels`; item i has label i % 3."""
    num_frames = options.pop("num_frames", 1)
    pixels = tiny_pixels(num_items, num_frames, options.pop("pixel_seed", 0))
    return Batches(
        pixels,
        np.arange(num_items) % NUM_CLASSES,
        [f"item{number}.png" for number in range(num_items)],
        np.arange(num_items),
        batch_size=settings.batch_size,
        is_clip=num_frames > 1,
        seed=settings.seed,
        num_parts=settings.accumulate,
        ranks=ranks,
        **options,
    )


def tiny_learner(settings: TrainingSettings, ranks: Ranks | None = None, **options: Any) -> Learner:
    """A learner of `tiny_network`."""
    recipe = build_recipe(settings.device, settings.precision, one_each=True)
    return Learner(tiny_network(**options), NUM_CLASSES, settings, recipe, ranks or Ranks())


def tiny_description(settings: TrainingSettings) -> ModelDescription:
    """What a tiny run's weights say of themselves."""
    classes = [ClassInfo(label, f"class {label}", f"c{label}") for label in range(NUM_CLASSES)]
    known = {"mean": settings.mean, "std": settings.std, "seed": settings.seed, "epoch": 0}
    return description_of("baseline", {}, classes, {"kind": "image", "image_size": SIDE}, **known)


def fit_tiny(
    run_dir: Path,
    settings: TrainingSettings,
    *,
    num_items: int = 11,
    num_selection: int = 7,
    ranks: Ranks | None = None,
    stop: StopRequest | None = None,
    network: dict[str, Any] | None = None,
) -> Learner:
    """Train a tiny network on random items to the end of its plan."""
    network = network or {}
    learner = tiny_learner(settings, ranks, **network)
    form = {"ranks": ranks, "num_frames": 3 if network.get("is_clip") else 1}
    train = tiny_batches(num_items, settings, class_balanced=settings.sampling == "class_balanced", **form)
    selection = tiny_batches(num_selection, settings, pixel_seed=1, **form)
    fit(learner, train, selection, tiny_description(settings), run_dir, stop or StopRequest())
    return learner


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def rank_environment(rank: int, port: int, num_ranks: int = 2) -> dict[str, str]:
    """What a launcher sets for a process."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


def run_ranks(folder: Path, options: dict[str, Any], num_ranks: int = 2, **job: Any) -> list[int]:
    """Train a tiny network in so many processes at once, in `folder/run`; returns their exit codes.

    Process 0 alone may write there: the others are given `folder/rank1` and so on. Each one's stderr goes to
    `folder/rank0.txt` and so on.
    """
    port = free_port()
    with ThreadPoolExecutor(num_ranks) as executor:
        jobs = [
            executor.submit(run_in_child, _train_as, r, num_ranks, port, folder, options, job) for r in range(num_ranks)
        ]
        return [job.result() for job in jobs]


def _train_as(rank: int, num_ranks: int, port: int, folder: Path, options: dict[str, Any], job: dict[str, Any]) -> None:
    """Train as one of several processes.

    `job`: `network`: options of the network; `signal_at`, `signal`, `signal_ranks`: the update after which these
    processes send themselves this signal; `fails`: `main` or `nan`, see below.
    """
    torch.set_num_threads(1)
    os.environ |= rank_environment(rank, port, num_ranks)
    sys.stderr = (folder / f"rank{rank}.txt").open("w", buffering=1)
    if rank in job.get("signal_ranks", range(num_ranks)) and "signal_at" in job:
        _signal_at(job["signal_at"], job.get("signal", signal.SIGKILL))
    # A process that writes or reads where it should not finds another folder than the first one's.
    is_resumed = (folder / "run").exists()
    run_dir = folder / "run" if rank == 0 or is_resumed else folder / f"rank{rank}"
    run_script(lambda: _train_in(run_dir, tiny_settings(run_dir, **options), rank, job))


def _train_in(run_dir: Path, settings: TrainingSettings, rank: int, job: dict[str, Any]) -> None:
    from utils.errors import InputError

    def refuse() -> None:
        raise InputError("nothing.csv: is wrong; mend it")

    with StopRequest(on_interrupt=True) as stop, join_ranks() as ranks:
        if job.get("fails") == "main":
            ranks.on_main(refuse)
        if job.get("fails") == "nan" and rank == 1:
            _fail_at_third_call()
        fit_tiny(run_dir, settings, ranks=ranks, stop=stop, network=job.get("network"))


def _fail_at_third_call() -> None:
    forward, calls = TinyNetwork.forward, []

    def wrapper(network: TinyNetwork, inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(network, inputs) * (float("nan") if len(calls) == 3 else 1.0)

    TinyNetwork.forward = wrapper


def _signal_at(update: int, number: int) -> None:
    advance = Position.advance

    def wrapper(position: Position, *args: Any) -> None:
        advance(position, *args)
        if position.update == update:
            os.kill(os.getpid(), number)

    Position.advance = wrapper


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


@dataclass(frozen=True)
class Opened:
    """What a stage has made when the first update is about to begin."""

    learner: Learner
    train: Batches
    selection: Batches
    description: ModelDescription


def open_training(monkeypatch: pytest.MonkeyPatch, network: str, **options: Any) -> Opened:
    """Prepare a run of the stage `baseline` or `inflated` as its script would, and stop before the first update."""
    found: list[Opened] = []

    def take(learner: Learner, train: Batches, selection: Batches, description: ModelDescription, *_: object) -> float:
        found.append(Opened(learner, train, selection, description))
        return 0.0

    monkeypatch.setattr(utils.trainer, "fit", take)
    train_network(network, **options)
    return found[0]


def train_network(network: str, **options: Any) -> None:
    """Train the 2-D (`baseline`) or the 3-D network (`inflated`)."""
    settings_class, run_training = {
        "baseline": (BaselineSettings, Baseline_VGG.training.run_training),
        "inflated": (InflatedSettings, Inflated_3D_VGG.training.run_training),
    }[network]
    texts = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    run_training(build_settings(settings_class, {**SMALL, **texts}, "test"))
