"""Train a small SVD on a folder of clips: the VAE first, then the U-Net with its CLIP tower; exact to resume.

Every draw of a step comes from (seed, stage, step), and the training state holds all the rest, so that on a CPU with
the same number of threads a resumed training is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from Data_Augmentation_SVD.settings import SmallSvdSettings
from Data_Augmentation_SVD.small_svd_data import ClipBatches, SurveyedClips, read_frames, survey_clips
from Data_Augmentation_SVD.small_svd_diffusion import scale_pixels
from Data_Augmentation_SVD.small_svd_models import build_pipeline, write_checkpoint
from Data_Augmentation_SVD.small_svd_samples import measure_and_draw
from Data_Augmentation_SVD.small_svd_stages import (
    Networks,
    Stage,
    build_batches,
    build_networks,
    encode_clips,
    unet_stage,
    vae_stage,
)
from utils.artifacts import Column, Table, write_table
from utils.checkpoints import load_state
from utils.devices import describe_device
from utils.errors import InputError
from utils.indices import ItemIndex, locate_clip_index, read_clip_index
from utils.learner import Recipe, build_recipe
from utils.runs import Run, open_run
from utils.tensor_files import read_training_state, write_training_state
from utils.utils import derive_seed

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint"  # a folder, renamed into place when all else is written
_STATE, _HISTORY, _SAMPLES = "last.pt", "history.csv", "samples.png"
_FREE_KEYS = ("data_root", "device", "log_every_n_steps", "save_every_n_steps", "cache_mb")
_NUM_SOURCES = 8
_WARM_UP_FRACTION, _MAX_GRADIENT_NORM = 0.05, 1.0
HISTORY = Table(
    "loss history",
    (
        Column("stage", choices=("vae", "unet")),
        Column("step", "int", minimum=1),
        Column("learning_rate", "float"),
        Column("train_loss", "float"),
    ),
    unique=("stage", "step"),
)


def run_small_svd_training(settings: SmallSvdSettings) -> Path:
    """Train, or go on training; does nothing where the checkpoint already stands.

    Returns:
        the checkpoint's folder, which `StableVideoDiffusionPipeline.from_pretrained` reads.
    """
    index_path, clips_root = locate_clip_index(settings.data_root, Path(f"{settings.split}.csv"), settings.split)
    run = open_run(
        settings, owned=(CHECKPOINT, _SAMPLES, _HISTORY, _STATE), inputs={"clips": index_path}, free_keys=_FREE_KEYS
    )
    if run.is_done(f"{CHECKPOINT}/model_index.json"):
        log.info("%s is complete; nothing to do", run.dir)
        return run.dir / CHECKPOINT
    recipe = build_recipe(settings.device, settings.precision)
    index = read_clip_index(index_path, clips_root)
    clips = survey_clips(
        index, image_size=settings.image_size, num_frames=settings.num_frames, cache_mb=settings.cache_mb
    )
    sources = _read_sources(settings, index)
    run.begin(describe_device(recipe.device))
    networks = build_networks(settings, recipe.device)
    history = _train_both(networks, clips, settings, run, recipe)
    write_table(_history_rows(history, settings), run.dir / _HISTORY, HISTORY)
    pipeline = build_pipeline(networks.vae, networks.average["unet"], networks.average["image_encoder"])
    measure_and_draw(pipeline, sources, run.dir / _SAMPLES, num_frames=settings.num_frames, seed=settings.seed)
    write_checkpoint(pipeline, run.dir / CHECKPOINT)
    log.info("small SVD: %s", run.dir / CHECKPOINT)
    return run.dir / CHECKPOINT


def _read_sources(settings: SmallSvdSettings, index: ItemIndex) -> list[np.ndarray]:
    """First frames of a few clips to look at after the training; of the other split, where there is one."""
    other = "val" if settings.split == "train" else "train"
    other_path = settings.data_root / f"{other}.csv"
    if other_path.is_file():
        index = read_clip_index(*locate_clip_index(settings.data_root, Path(other_path.name), other), verify=False)
    positions = np.linspace(0, len(index) - 1, min(_NUM_SOURCES, len(index))).round().astype(int)
    return [read_frames(index.paths[position], settings.image_size)[0] for position in positions]


def _train_both(
    networks: Networks, clips: SurveyedClips, settings: SmallSvdSettings, run: Run, recipe: Recipe
) -> dict[str, list[float]]:
    """Both stages, from the saved state on. Returns every step's loss by stage."""
    state = read_training_state(run.dir / _STATE) if (run.dir / _STATE).exists() else None
    history: dict[str, list[float]] = {"vae": [], "unet": []}
    if state is not None:
        for name, network in vars(networks).items():
            load_state(network, state["model"][name], run.dir / _STATE)
        history = state["history"]
    for stage in (vae_stage(networks, settings), unet_stage(networks, settings)):
        optimizer_state = state["optimizer"] if state is not None and state["stage"] == stage.name else None
        networks.vae.requires_grad_(stage.name == "vae")
        latents = None if stage.name == "vae" else encode_clips(networks, clips, recipe)
        batches = build_batches(stage, clips, settings, latents)
        _train_stage(stage, networks, batches, settings, run, recipe, history, optimizer_state)
    return history


def _train_stage(
    stage: Stage,
    networks: Networks,
    batches: ClipBatches,
    settings: SmallSvdSettings,
    run: Run,
    recipe: Recipe,
    history: dict[str, list[float]],
    optimizer_state: dict[str, Any] | None,
) -> None:
    """The updates of one stage that are not done yet; losses are added to `history`, and all is saved now and then."""
    losses, started_s = history[stage.name], time.monotonic()
    first_step = len(losses) + 1
    optimizer = torch.optim.AdamW(stage.parameters, lr=stage.learning_rate, weight_decay=0.01)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
        log.info("%s: resuming after step %d of %d", stage.name, len(losses), stage.steps)
    steps = range(first_step, stage.steps + 1)
    loader = DataLoader(batches, batch_size=None, sampler=steps, num_workers=settings.workers)
    for step, batch in zip(steps, loader, strict=True):
        batch = {name: values.to(recipe.device) for name, values in batch.items()}
        batch["frames"] = scale_pixels(batch["frames"])
        generator = torch.Generator().manual_seed(derive_seed(settings.seed, stage.stream, step, 1))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage.learning_rate, step, stage.steps)
        with recipe.autocast():
            loss = stage.compute_loss(batch, generator)
        if not torch.isfinite(loss):
            raise InputError(f"the {stage.name} loss is {loss.item()} at step {step}; lower {stage.name}_learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(stage.parameters, _MAX_GRADIENT_NORM)
        optimizer.step()
        stage.follow(step)
        losses.append(loss.item())
        if step % settings.log_every_n_steps == 0 or step == stage.steps:
            _log_step(stage, losses[-settings.log_every_n_steps :], step, (time.monotonic() - started_s), first_step)
        if step % settings.save_every_n_steps == 0 or step == stage.steps:
            _save(run, stage, networks, optimizer, history, settings)


def learning_rate(highest: float, step: int, steps: int) -> float:
    """A linear rise over the first twentieth, then a cosine to 0; `step` is 1-based."""
    rise = max(1, round(_WARM_UP_FRACTION * steps))
    if step <= rise:
        return highest * step / rise
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _save(
    run: Run,
    stage: Stage,
    networks: Networks,
    optimizer: torch.optim.Optimizer,
    history: dict[str, list[float]],
    settings: SmallSvdSettings,
) -> None:
    state = {
        "stage": stage.name,
        "epoch": len(history["vae"]) + len(history["unet"]),
        "model": {name: network.state_dict() for name, network in vars(networks).items()},
        "optimizer": optimizer.state_dict(),
        "history": history,
    }
    write_training_state(run.dir / _STATE, state)
    write_table(_history_rows(history, settings), run.dir / _HISTORY, HISTORY)


def _history_rows(history: dict[str, list[float]], settings: SmallSvdSettings) -> list[dict[str, Any]]:
    """One row for every `log_every_n_steps` steps, with their mean loss."""
    plans = {
        "vae": (settings.vae_steps, settings.vae_learning_rate),
        "unet": (settings.unet_steps, settings.unet_learning_rate),
    }
    rows = []
    for name, losses in history.items():
        steps, rate = plans[name]
        for start in range(0, len(losses), settings.log_every_n_steps):
            part = losses[start : start + settings.log_every_n_steps]
            step = start + len(part)
            mean = sum(part) / len(part)
            rows.append(
                {"stage": name, "step": step, "learning_rate": learning_rate(rate, step, steps), "train_loss": mean}
            )
    return rows


def _log_step(stage: Stage, losses: list[float], step: int, elapsed_s: float, first_step: int) -> None:
    pace_s = elapsed_s / (step - first_step + 1)
    mean = sum(losses) / len(losses)
    left_s = (stage.steps - step) * pace_s
    log.info(
        "%s step %d/%d: loss %.4f, %.2f s a step, %.0f s left", stage.name, step, stage.steps, mean, pace_s, left_s
    )
