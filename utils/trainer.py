"""What every trainer does with its data and its network: divide, cache, describe, fit. Stages give the particulars."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.batches import Batches
from utils.checkpoints import ModelDescription, describe_run, require_start_classes
from utils.devices import describe_device
from utils.errors import InputError, StopRequest
from utils.files import sha256_bytes
from utils.history import Plan
from utils.hold_out import split_hold_out
from utils.host_memory import keep_freed_memory
from utils.learner import Learner, Recipe, build_recipe
from utils.objectives import ClassLabels, Objective, TaskLabelsObjective, find_log_variances
from utils.pixels import Pixels, to_device
from utils.ranks import Ranks
from utils.runs import Run
from utils.settings import TrainingSettings
from utils.sidecar import BEST_FILE
from utils.sources import Source
from utils.task_labels import TaskLabels
from utils.training import fit
from utils.utils import set_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a stage trains.

    Attributes:
        network: its name in checkpoints, `baseline`, `inflated` or `video`.
        train, val: the splits; val is looked at only by `selection: val`.
        train_input: what tables call the kind of input.
        form: kind (`image` or `clip`), image_size in pixels, num_frames.
        build: the network with its start weights. `options`: what a builder needs to make it again.
        start: what these weights are; None is what `settings.weights` says.
        tasks: of both splits, where the network has several tasks: the labels of each row of the splits' indices, whose
            own labels only say how items are held out and balanced. The network's logits are those of all tasks.
        task_weights: of their losses, 1 where a task is not named; see `utils.objectives.TaskLabelsObjective`.
    """

    network: str
    train: Source
    val: Source
    train_input: str
    form: dict[str, Any]
    build: Callable[[], nn.Module]
    options: dict[str, Any]
    start: str | None = None
    tasks: tuple[TaskLabels, TaskLabels] | None = None
    task_weights: Mapping[str, float] = field(default_factory=dict)

    def targets(self, source: Source) -> np.ndarray | None:
        """What items of one of the splits are trained for: int64 (N, num_tasks); None is their one label."""
        if self.tasks is None:
            return None
        labels = self.tasks[0] if source is self.train else self.tasks[1]
        return labels.labels[source.rows]


@dataclass(frozen=True)
class Division:
    """What is trained on and what chooses the best epoch, as positions of items.

    Attributes:
        selection: the source of the latter; the training source itself for a hold-out.
        split: its name in every table: `hold_out`, `hold_out_unpaired` or `val`.
        is_paired: whether the source image of every training item is known.
        hold_out_sha256: of the hold-out's file.
    """

    train_positions: np.ndarray
    selection: Source
    selection_positions: np.ndarray
    split: str
    is_paired: bool
    hold_out_sha256: str | None = None


def train_network(task: Task, settings: TrainingSettings, run: Run | None, ranks: Ranks, stop: StopRequest) -> Path:
    """Train, or resume; return the best weights' path.

    Args:
        run: opened; None in all processes but the first.
    """
    # 1. Check, divide.
    classes = task.train.index.classes
    require_start_classes(settings, classes, task.train.index.index_path, task.form)
    recipe = build_recipe(settings.device, settings.precision, one_each=True)
    division = ranks.main_first(lambda: divide(task, settings))
    require_labels_of_tasks(task, division)
    Plan(settings, -(-len(division.train_positions) // settings.batch_size)).require_warm_up_ends()
    description = _describe(task, settings, division)

    # 2. Build the network.
    if recipe.device.type == "cpu":
        keep_freed_memory()
    set_seed(settings.seed, 0)
    model = ranks.main_first(task.build)
    learner = Learner(model, _build_objective(task, model, settings), settings, recipe, ranks)
    stop.is_patient = True
    stop.raise_if_set()

    # 3. Decode, once.
    if run is not None:
        if division.hold_out_sha256 is not None:
            run.record_inputs({"hold_out": settings.hold_out_file})
        run.begin(describe_device(recipe.device) | {"num_processes": ranks.num_ranks})
    batches = ranks.main_first(lambda: open_batches(task, settings, division, recipe, ranks, stop))

    # 4. Train.
    try:
        top1 = fit(learner, *batches, description, settings.output_dir, stop)
    except torch.OutOfMemoryError:
        raise InputError(
            f"batch_size: the GPU's memory is too small for {settings.batch_size} items in {settings.accumulate} "
            "parts; raise accumulate or lower batch_size. The last checkpoint stands"
        ) from None
    log.info("best %s top-1 %.3f: %s", division.split, top1, settings.output_dir / BEST_FILE)
    return settings.output_dir / BEST_FILE


def divide(task: Task, settings: TrainingSettings) -> Division:
    """What is trained on and what chooses the best epoch.

    Raises:
        InputError: as `utils.hold_out.split_hold_out`.
    """
    rows = task.train.rows
    if settings.selection == "val":
        both = (np.arange(len(rows)), task.val, np.arange(len(task.val.rows)))
        return Division(*both, "val", task.train.index.is_paired)
    options = settings.hold_out.model_dump(include={"fraction", "seed", "unlisted"})
    parts = split_hold_out(task.train.index, settings.hold_out_file, **options)
    trained, held = (np.flatnonzero(np.isin(rows, part)) for part in (parts.train_positions, parts.held_positions))
    split = "hold_out" if parts.is_paired else "hold_out_unpaired"
    sides = (trained, task.train, held)
    return Division(*sides, split, parts.is_paired, parts.sha256)


def require_labels_of_tasks(task: Task, division: Division) -> None:
    """Make sure that each task can be learned and judged.

    Raises:
        InputError: a task has one class, or nothing that is trained on or that chooses the best epoch is labelled.
    """
    if task.tasks is None:
        return
    classes = task.tasks[0].classes
    parts = {"training": (task.train, division.train_positions)}
    parts[division.split] = (division.selection, division.selection_positions)
    for column, name in enumerate(task.tasks[0].names):
        if len(classes[name]) < 2:
            raise InputError(f"{task.train.index.index_path}: task {name!r} has one class; leave it out")
        for part, (source, positions) in parts.items():
            if not (task.targets(source)[positions, column] >= 0).any():
                raise InputError(
                    f"{source.index.index_path}: no item of the {part} part has a label of task {name!r}; label some, "
                    "or leave the task out"
                )


def _build_objective(task: Task, model: nn.Module, settings: TrainingSettings) -> Objective:
    losses = {"label_smoothing": settings.label_smoothing, "focal_gamma": settings.focal_gamma}
    if task.tasks is None:
        return ClassLabels(len(task.train.index.classes), **losses)
    classes = task.tasks[0].classes
    sizes = {name: len(classes[name]) for name in task.tasks[0].names}
    learned = find_log_variances(model)
    return TaskLabelsObjective(sizes, weights=task.task_weights, log_variances=learned, **losses)


def open_batches(
    task: Task, settings: TrainingSettings, division: Division, recipe: Recipe, ranks: Ranks, stop: StopRequest
) -> tuple[Batches, Batches]:
    """Batches to train on and to choose the best epoch with; decodes what is not cached yet."""
    open_pixels = partial(_open_pixels, settings=settings, recipe=recipe, ranks=ranks, stop=stop)
    pixels = open_pixels(task.train)
    is_same = division.selection is task.train
    selection_pixels = pixels if is_same else open_pixels(division.selection)
    common = {
        "is_clip": task.form["kind"] == "clip",
        "ranks": ranks,
        "device": recipe.device,
    }
    train = Batches(
        pixels,
        *_labels_and_names(task.train),
        division.train_positions,
        batch_size=settings.batch_size,
        seed=settings.seed,
        num_parts=settings.accumulate,
        class_balanced=settings.sampling == "class_balanced",
        targets=task.targets(task.train),
        **common,
    )
    at_once = -(-settings.batch_size // (settings.accumulate * ranks.num_ranks))  # as many as fit while training
    selection = Batches(
        selection_pixels,
        *_labels_and_names(division.selection),
        division.selection_positions,
        batch_size=at_once,
        targets=task.targets(division.selection),
        **common,
    )
    return train, selection


def _open_pixels(
    source: Source, *, settings: TrainingSettings, recipe: Recipe, ranks: Ranks, stop: StopRequest
) -> Pixels:
    # What the first process of a machine has checked need not be read again by the others.
    has_been_checked = ranks.is_beside_main
    pixels = source.open(settings.shared_cache_dir, settings.workers, stop.raise_if_set, not has_been_checked)
    if recipe.device.type == "cpu":
        return pixels
    return to_device(pixels, recipe.device, on_item=stop.raise_if_set)


def _labels_and_names(source: Source) -> tuple[np.ndarray, list[str]]:
    names = [str(path) for path in source.index.paths]
    return np.array(source.index.labels)[source.rows], [names[row] for row in source.rows]


def _describe(task: Task, settings: TrainingSettings, division: Division) -> ModelDescription:
    trained_on = {
        "input": task.train_input,
        "items_sha256": _items_sha256(task.train),
        "num_items": len(division.train_positions),
        "hold_out_sha256": division.hold_out_sha256,
        "is_paired": division.is_paired,
    }
    selected_on = {"split": division.split, "num_items": len(division.selection_positions)}
    return describe_run(
        settings,
        task.network,
        task.options,
        task.train.index.classes,
        task.form,
        train_input=task.train_input,
        trained_on=trained_on,
        selected_on=selected_on,
        start=task.start,
    )


def _items_sha256(source: Source) -> str:
    """Of the items' ids, in order: the same for an index wherever it lies."""
    return sha256_bytes("\n".join(item_id for index in source.all_indices for item_id in index.item_ids).encode())
