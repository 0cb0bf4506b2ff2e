"""Which clips a split consists of, which of them earlier runs have made, and with what seed the others are made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from Data_Augmentation_SVD.clip_writer import ClipTask
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Augmentation_SVD.split_files import SplitFolders, clip_name, is_unchanged
from Data_Augmentation_SVD.tiny_imagenet_aug import TinyImageNetAug
from utils.artifacts import STATUS_FAILED, STATUS_OK


def find_finished(
    tasks: list[ClipTask], rows: Iterable[dict[str, Any]], folders: SplitFolders, settings: GenerationSettings
) -> tuple[dict[str, dict[str, Any]], list[ClipTask]]:
    """Rows of earlier runs that stay, by clip, and the tasks that are left, each with the seed of its next attempt."""
    old = {row["video_path"]: row for row in rows}
    made: dict[str, dict[str, Any]] = {}
    todo = []
    for task in tasks:
        row = old.get(task.name)
        if row is not None and is_final(row, task, folders, settings.retry_failed):
            made[task.name] = row
        else:
            todo.append(_next_attempt(task, row, settings))
    return made, todo


def plan_clips(images: TinyImageNetAug, settings: GenerationSettings) -> list[ClipTask]:
    """Every clip of these images, in index order, as a first attempt."""
    per_image = settings.clips_per_image
    num_total = images.num_total * per_image
    return [
        ClipTask(
            name=clip_name((images.first_position + position) * per_image + clip_number, num_total),
            source=source,
            position=position,
            clip_number=clip_number,
            attempt=0,
            seed=source.clip_seed(settings.seed, clip_number),
        )
        for position, source in enumerate(images.sources)
        for clip_number in range(per_image)
    ]


def is_final(row: dict[str, Any], task: ClipTask, folders: SplitFolders, retry_failed: bool) -> bool:
    """Whether a row stays: of the image that has this place now, and its clip unchanged on disk, or given up."""
    if any(str(row[name]) != str(value) for name, value in asdict(task.source).items()):
        return False
    if row["status"] != STATUS_OK:
        return not retry_failed
    return is_unchanged(folders.clips, row)


def _next_attempt(task: ClipTask, row: dict[str, Any] | None, settings: GenerationSettings) -> ClipTask:
    """A task with the seed it is to be made from now.

    A clip that was made and rejected would come out the same again: it gets the next seed. One that failed without a
    clip, was damaged or belongs to another image keeps its own.
    """
    if row is None or any(str(row[name]) != str(value) for name, value in asdict(task.source).items()):
        return task
    attempt = int(row["attempt"] or 0)
    was_rejected = row["status"] not in (STATUS_OK, STATUS_FAILED) and bool(row["sha256"])
    attempt += was_rejected
    seed = task.source.clip_seed(settings.seed, task.clip_number, attempt)
    return ClipTask(task.name, task.source, task.position, task.clip_number, attempt, seed)
