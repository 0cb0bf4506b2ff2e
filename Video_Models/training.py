"""Train a clip classifier: the steps, importable, so that a study can run them in-process."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import InputError
from utils.indices import ItemIndex, locate_clip_index, read_clip_splits
from utils.task_labels import TaskLabels, read_task_labels, task_labels_path
from utils.training_run import open_training_run
from Video_Models.registry import FAMILIES, PRETRAINED
from Video_Models.settings import MultiTaskSettings, VideoSettings

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import nn

    from utils.sources import Source
    from utils.trainer import Task


def run_training(settings: VideoSettings) -> Path:
    """Train, or resume, or find it done; return the best weights' path."""
    with open_training_run(settings, _find_inputs(settings)) as run:
        if run.finished_weights is not None:
            return run.finished_weights
        return run.train(run.ranks.main_first(lambda: _build_task(settings, *_read_data(settings))))


def _find_inputs(settings: VideoSettings) -> dict[str, Path]:
    """The indices of both splits and, where they lie beside them, their task labels."""
    inputs = {}
    for split, csv_path in (("train", settings.train_csv), ("val", settings.val_csv)):
        index_path, _ = locate_clip_index(settings.data_root, csv_path, split, settings.clips_root)
        inputs[f"{split}_index"] = index_path
        if (labels_path := task_labels_path(index_path)).is_file():
            inputs[f"{split}_task_labels"] = labels_path
    return inputs


def _read_data(settings: VideoSettings) -> tuple[ItemIndex, ItemIndex, TaskLabels | None, TaskLabels | None]:
    """Both splits and, of several tasks, their labels."""
    train, val = read_clip_splits(
        settings.data_root,
        settings.train_csv,
        settings.val_csv,
        num_classes=settings.num_classes,
        num_frames=None,
        clips_root=settings.clips_root,
    )
    train_tasks = read_task_labels(train)
    val_tasks = read_task_labels(val, train_tasks)
    if (train_tasks is None) != (val_tasks is None):
        lacking = task_labels_path((train if train_tasks is None else val).index_path)
        raise InputError(f"{lacking}: is missing, the other split has one; make both with Data_Sourcing.index_videos")
    _require_known_weights(settings, train, train_tasks)
    return train, val, train_tasks, val_tasks


def _require_known_weights(settings: VideoSettings, train: ItemIndex, tasks: TaskLabels | None) -> None:
    names = tasks.names if tasks else ()
    if tasks is None and settings.multi_task != MultiTaskSettings():
        raise InputError(f"multi_task: {train.index_path} has labels of one task only; drop the section")
    if unknown := sorted(settings.multi_task.weights.keys() - set(names)):
        known = ", ".join(names)
        raise InputError(f"multi_task.weights: {train.index_path} has no task {unknown[0]!r}; known: {known}")


def _build_task(
    settings: VideoSettings,
    train: ItemIndex,
    val: ItemIndex,
    train_tasks: TaskLabels | None,
    val_tasks: TaskLabels | None,
) -> Task:
    from utils.trainer import Task
    from Video_Models.models import describe_weights

    options = builder_options(settings, train_tasks)
    form = {"kind": "clip", "num_frames": settings.num_frames, "image_size": settings.image_size}
    form["sampling"] = asdict(settings.clip_sampling)
    if train_tasks is not None:
        form["tasks"] = {name: [asdict(one) for one in train_tasks.classes[name]] for name in train_tasks.names}
    return Task(
        network=settings.NETWORK,
        train=_build_source(settings, train),
        val=_build_source(settings, val),
        train_input=train.clip_kind,
        form=form,
        build=lambda: build_network(settings, len(train.classes), options),
        options=options,
        start=describe_weights(settings.family, settings.weights_argument),
        tasks=None if train_tasks is None else (train_tasks, val_tasks),
        task_weights=settings.multi_task.weights,
    )


def build_network(settings: VideoSettings, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """The network with its start weights; says how much of it is trained.

    Args:
        options: of `builder_options`.

    Raises:
        InputError: the family cannot take these clips or this configuration, or the weights cannot be had.
    """
    from Video_Models.adaptation import describe_trainable
    from Video_Models.models import build_video_classifier

    log.info("building %s for %d frames of %d px", settings.family, settings.num_frames, settings.image_size)
    try:
        network = build_video_classifier(num_classes, settings.weights_argument, **options)
    except ValueError as error:
        raise InputError(f"family {settings.family}: {error}") from None
    log.info("%s: %s", settings.family, describe_trainable(network))
    if settings.weights == "none" and settings.adaptation.mode != "full":
        log.warning("weights: none leaves all but these random; train them first, or set adaptation.mode: full")
    _warn_of_normalisation(settings)
    return network


def _warn_of_normalisation(settings: VideoSettings) -> None:
    family = FAMILIES[settings.family]
    if not family.is_on_hub or settings.weights == "none" or settings.starts_from_file:
        return
    from Video_Models.transformer_weights import published_normalisation

    origin = family.pretrained if settings.weights == PRETRAINED else settings.weights
    published = published_normalisation(origin)
    if published is not None and not np.allclose(published, (settings.mean, settings.std), atol=1e-3):
        mean, std = (list(values) for values in published)
        log.warning("%s was trained with mean %s and std %s; set these keys, if its word is right", origin, mean, std)


def builder_options(settings: VideoSettings, tasks: TaskLabels | None) -> dict[str, Any]:
    """What `build_video_classifier` needs to make the network again; plain values."""
    from Video_Models.models import resolve_config

    options = settings.model_dump(mode="json", include={"family", "num_frames", "image_size", "dropout"})
    options["config"] = resolve_config(settings.family, settings.weights_argument, settings.config)
    options["adaptation"] = settings.adaptation.model_dump(mode="json")
    if tasks is not None:
        options["tasks"] = {name: len(tasks.classes[name]) for name in tasks.names}
        options["adapter_width"] = settings.multi_task.adapter_width
        options["learn_task_weights"] = settings.multi_task.learn_weights
    return options


def _build_source(settings: VideoSettings, clips: ItemIndex) -> Source:
    from utils.sources import SampledClips, video_files

    sampling = settings.clip_sampling
    return SampledClips(video_files(clips, sampling, settings.image_size), sampling)
