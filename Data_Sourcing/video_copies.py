"""Copies among the videos: files of equal content stay together, and must not contradict each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from Data_Sourcing.video_set import LabelledVideo
from utils.errors import InputError

log = logging.getLogger(__name__)
_MAX_NAMED = 10


def report_copies(
    videos: Sequence[LabelledVideo], hashes: Mapping[str, str], classes: Mapping[str, Sequence[str]]
) -> None:
    """Name the videos that are copies of an earlier one.

    Args:
        hashes: path -> of the file's content.
        classes: task -> its classes' names in label order.

    Raises:
        InputError: two copies have different labels in one task; a label that one of them lacks is no contradiction.
    """
    _refuse_contradictions(videos, hashes, classes)
    first: dict[str, LabelledVideo] = {}
    pairs = [(video, first.setdefault(hashes[video.path], video)) for video in videos]
    copies = [(video, earlier) for video, earlier in pairs if video is not earlier]
    for video, earlier in copies[:_MAX_NAMED]:
        log.warning("%s: is a copy of %s; both are kept, on one side", video.path, earlier.path)
    if len(copies) > _MAX_NAMED:
        log.warning("and %d more copies", len(copies) - _MAX_NAMED)


def _refuse_contradictions(
    videos: Sequence[LabelledVideo], hashes: Mapping[str, str], classes: Mapping[str, Sequence[str]]
) -> None:
    """A network would learn both answers, and a hold-out by content could not say which class it divides."""
    first: dict[tuple[str, str], LabelledVideo] = {}
    found: list[tuple[LabelledVideo, LabelledVideo, str]] = []
    for video in videos:
        for task, label in video.labels.items():
            earlier = first.setdefault((hashes[video.path], task), video)
            if earlier.labels[task] != label:
                found.append((video, earlier, task))
    if not found:
        return
    video, earlier, task = found[0]
    name, other = (repr(classes[task][one.labels[task]]) for one in (video, earlier))
    of_task = f" of task {task!r}" if task else ""
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    raise InputError(
        f"{video.path} is a copy of {earlier.path}, but of class {name}{of_task}, not {other}{more}; remove one of "
        "them, or correct its label"
    )
