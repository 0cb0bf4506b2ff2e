"""The training loop that all trainers share: visible, a few lines each, exact to resume at every epoch.

It sees batches (uint8 inputs, labels) and `model(inputs) -> logits (B, num_classes)`; what a model needs beyond that is
the model's affair.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from utils.artifacts import HISTORY, format_table, write_table
from utils.checkpoints import ModelDescription, load_state, read_training_state, write_training_state, write_weights
from utils.curves import draw_curves
from utils.devices import choose_device
from utils.errors import InputError
from utils.settings import TrainingSettings
from utils.training_run import BEST_FILE, DONE_FILE
from utils.utils import MeanAggregator, TopKAggregator, derive_seed, progress, set_seed

log = logging.getLogger(__name__)
_SHUFFLE = 1  # a stream of its own beside dropout and flips


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 batches to what the network sees, on the device, whole batches at once.

    Args:
        mean, std: per RGB channel, of values in 0..1.
        horizontal_flip: mirror each item with probability 0.5 while training; all frames of a clip alike.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    horizontal_flip: bool = False

    def __call__(self, inputs: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """uint8 (B, 3, [T,] H, W), 0..255 -> float32 of the same shape, normalised."""
        if training and self.horizontal_flip:
            mirrored = torch.rand(len(inputs)) < 0.5  # drawn on the CPU: the same on every device
            inputs = torch.where(_per_item(mirrored.to(inputs.device), inputs), inputs.flip(-1), inputs)
        shape = (1, 3) + (1,) * (inputs.dim() - 2)
        mean = torch.tensor(self.mean, device=inputs.device).view(shape)
        std = torch.tensor(self.std, device=inputs.device).view(shape)
        return inputs.float().div(255).sub(mean).div(std)


@dataclass(frozen=True)
class EpochResult:
    """Means over one pass; `top3_fraction` is None with fewer than three classes."""

    loss: float
    top1_fraction: float
    top3_fraction: float | None
    items_per_s: float


@dataclass(frozen=True)
class Recipe:
    """Where and how to compute: a torch device, and the autocast type (None computes in float32)."""

    device: torch.device
    autocast_dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """The autocast context of this recipe."""
        return torch.autocast(
            self.device.type, self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
        )


def build_recipe(device: str, precision: str) -> Recipe:
    """Resolve a device's name and `fp32|bf16|fp16`.

    Raises:
        InputError: no such device here, or it cannot compute in this precision.
    """
    chosen = choose_device(device)
    if precision == "fp16" and chosen.type == "cpu":
        raise InputError("precision: fp16 needs a GPU; set precision: bf16 or fp32")
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError("precision: this GPU has no bf16; set precision: fp16 or fp32")
    return Recipe(chosen, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def build_loader(
    data: Dataset, *, batch_size: int, workers: int, device: torch.device | None = None, shuffle_seed: int | None = None
) -> DataLoader:
    """A loader in index order, or in the order that a seed draws.

    Args:
        workers: at most; never more than this process has cores.
        device: where the batches go; those for a GPU are pinned.
        shuffle_seed: None keeps the order and is for evaluation.
    """
    generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
    return DataLoader(
        data,
        batch_size=batch_size,
        shuffle=shuffle_seed is not None,
        generator=generator,
        num_workers=min(workers, len(os.sched_getaffinity(0))),
        pin_memory=device is not None and device.type == "cuda",
    )


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.SGD:
    """SGD with momentum and weight decay, as in the paper (section 4.2)."""
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over 147 M parameters instead of four
    )


def learning_rate(settings: TrainingSettings, epoch: int) -> float:
    """StepLR in closed form: `epoch` is 1-based, the rate falls after every `lr_step` epochs."""
    return settings.lr * settings.lr_gamma ** ((epoch - 1) // settings.lr_step)


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    preprocess: Preprocessing,
    recipe: Recipe,
    scaler: torch.amp.GradScaler | None = None,
) -> EpochResult:
    """One pass with updates; cross-entropy.

    Raises:
        InputError: the loss is not finite, with the step.
    """
    model.train()
    meter = _Meter()
    scaler = scaler or torch.amp.GradScaler(recipe.device.type, enabled=False)
    for step, (inputs, target) in enumerate(batches, start=1):
        inputs = preprocess(inputs.to(recipe.device, non_blocking=True), training=True)
        target = target.to(recipe.device, non_blocking=True)
        with recipe.autocast():
            logits = model(inputs)
            loss = functional.cross_entropy(logits.float(), target)
        if not torch.isfinite(loss):
            raise InputError(f"the training loss is {loss.item()} at step {step}; lower lr, or use precision: fp32")
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        meter.update(loss, logits, target)
    return meter.result()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    preprocess: Preprocessing,
    recipe: Recipe,
) -> EpochResult:
    """One pass without updates, in eval mode."""
    model.eval()
    meter = _Meter()
    for inputs, target in batches:
        inputs = preprocess(inputs.to(recipe.device, non_blocking=True))
        target = target.to(recipe.device, non_blocking=True)
        with recipe.autocast():
            logits = model(inputs)
        meter.update(functional.cross_entropy(logits.float(), target), logits, target)
    return meter.result()


def fit(
    model: nn.Module,
    train_data: Dataset,
    val_data: Dataset,
    settings: TrainingSettings,
    recipe: Recipe,
    description: ModelDescription,
    run_dir: Path,
) -> float:
    """Train for `settings.epochs` epochs, keep the best on the val data, resume where a killed run stopped.

    Every epoch draws from its own seed, so that a resumed run is the uninterrupted one, bit for bit on a CPU.

    Args:
        description: of the weights file; epoch and metric are filled in here.

    Returns:
        the best val top-1 as a fraction.
    """
    model.to(recipe.device)
    optimizer = build_optimizer(model, settings)
    scaler = torch.amp.GradScaler(recipe.device.type, enabled=recipe.autocast_dtype is torch.float16)
    preprocess = Preprocessing(settings.mean, settings.std, settings.horizontal_flip)
    history = _resume(run_dir / "last.pt", model, optimizer, scaler, settings.epochs)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        started_s = time.monotonic()
        set_seed(settings.seed, epoch)
        rate = learning_rate(settings, epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        train_loader = build_loader(
            train_data,
            batch_size=settings.batch_size,
            workers=settings.workers,
            device=recipe.device,
            shuffle_seed=derive_seed(settings.seed, epoch, _SHUFFLE),
        )
        val_loader = build_loader(
            val_data, batch_size=settings.batch_size, workers=settings.workers, device=recipe.device
        )
        batches = progress(train_loader, len(train_loader), f"epoch {epoch}/{settings.epochs}", every=100)
        trained = train_one_epoch(model, batches, optimizer, preprocess, recipe, scaler)
        tested = evaluate(model, val_loader, preprocess, recipe)
        is_best = not history or tested.top1_fraction > max(row["val_top1_fraction"] for row in history)
        history.append(_history_row(epoch, rate, trained, tested))
        _save_epoch(run_dir, model, optimizer, scaler, history, description if is_best else None)
        _log_epoch(settings.epochs, history[-1], trained, time.monotonic() - started_s)
    write_table(history, run_dir / "history.csv", HISTORY)  # a kill after the last state may have kept it from disk
    draw_curves(history, run_dir / DONE_FILE)
    return max(row["val_top1_fraction"] for row in history)


class _Meter:
    """Loss, top-1, top-3 and speed of one pass."""

    def __init__(self) -> None:
        self._loss, self._top, self._count = MeanAggregator(), TopKAggregator((1, 3)), 0
        self._started_s = time.monotonic()

    def update(self, loss: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> None:
        self._loss.update(loss.item(), len(target))
        self._top.update(logits.detach().float().cpu().numpy(), target.cpu().numpy())
        self._count += len(target)

    def result(self) -> EpochResult:
        speed = self._count / max(time.monotonic() - self._started_s, 1e-9)
        return EpochResult(self._loss.mean, self._top.fraction(1), self._top.fraction(3), speed)


def _per_item(flags: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return flags.view(-1, *(1,) * (inputs.dim() - 1))


def _resume(path: Path, model: nn.Module, optimizer, scaler, epochs: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    state = read_training_state(path)
    load_state(model, state["model"], path)
    try:
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        format_table(state["history"], HISTORY)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: does not belong to this run ({error}); restore it, or pass overwrite=true") from None
    log.info("resuming after epoch %d of %d", len(state["history"]), epochs)
    return state["history"]


def _history_row(epoch: int, rate: float, trained: EpochResult, tested: EpochResult) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "learning_rate": rate,
        "train_loss": trained.loss,
        "train_top1_fraction": trained.top1_fraction,
        "val_loss": tested.loss,
        "val_top1_fraction": tested.top1_fraction,
        "val_top3_fraction": tested.top3_fraction,
    }


def _save_epoch(
    run_dir: Path, model: nn.Module, optimizer, scaler, history: list[dict[str, Any]], best: ModelDescription | None
) -> None:
    """Best weights first, resume state second: a kill in between redoes the epoch and writes the same best again."""
    if best is not None:
        metric = {"name": "val_top1_fraction", "value": history[-1]["val_top1_fraction"]}
        described = replace(best, epoch=history[-1]["epoch"], metric=metric)
        write_weights(run_dir / BEST_FILE, model.state_dict(), described)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "epoch": history[-1]["epoch"],
        "history": history,
    }
    write_training_state(run_dir / "last.pt", state)
    write_table(history, run_dir / "history.csv", HISTORY)


def _log_epoch(epochs: int, row: dict[str, Any], trained: EpochResult, seconds: float) -> None:
    log.info(
        "epoch %d/%d: loss %.4f, train top-1 %.3f, val top-1 %.3f, lr %.2g, %.1f items/s, %.0f s left",
        row["epoch"],
        epochs,
        row["train_loss"],
        row["train_top1_fraction"],
        row["val_top1_fraction"],
        row["learning_rate"],
        trained.items_per_s,
        (epochs - row["epoch"]) * seconds,
    )
