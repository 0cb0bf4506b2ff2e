"""Videos with a `labels.json` in each split's folder: `{file: label}`, or `{file: {task: label}}` for several tasks."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from Data_Sourcing.settings import IndexVideosSettings
from Data_Sourcing.video_set import ONE_TASK, SPLITS, LabelledVideo, VideoSet, find_videos
from utils.errors import InputError
from utils.files import resolve_item
from utils.indices import MAX_CLASSES

log = logging.getLogger(__name__)


def read_labels_json(settings: IndexVideosSettings) -> VideoSet:
    """`{train,val,test}/labels.json`, or one `labels.json` at the root.

    Raises:
        InputError: no such file, not of that form, a file that does not exist, or a label that is none.
    """
    root = settings.data_root
    files = {split: root / split / "labels.json" for split in SPLITS if (root / split / "labels.json").is_file()}
    if not files and (root / "labels.json").is_file():
        files = {"": root / "labels.json"}
    if not files:
        raise InputError(f"data_root: {root} has no labels.json, neither in train/, val/, test/ nor itself; add it")
    raw = {(split, name): value for split, path in files.items() for name, value in _load_labels(path).items()}
    is_multi_task = _is_multi_task(raw, files)
    labels: dict[tuple[str, str], dict[str, int | str]] = {}
    for (split, name), value in raw.items():
        where, relative = f"{files[split]}: {name!r}", (PurePosixPath(split) / name).as_posix()
        resolve_item(root, relative, where)
        if (split, relative) in labels:
            raise InputError(f"{where} is listed twice, under two spellings; remove one")
        if is_multi_task and not all(task.strip() for task in value):
            raise InputError(f"{where} has a task without a name; name it")
        labels[split, relative] = _labels_of(value if is_multi_task else {ONE_TASK: value}, where)
    classes = _classes_of(list(labels.values()))
    if settings.classes and is_multi_task:
        raise InputError("classes: the tasks of labels.json have classes of their own; drop the key")
    if settings.classes:
        is_numbered = isinstance(next(iter(labels.values()))[ONE_TASK], int)
        classes = {ONE_TASK: _listed_classes(settings.classes, classes[ONE_TASK], is_numbered, files)}
    videos = [LabelledVideo(path, _positions(found, classes), split) for (split, path), found in labels.items()]
    _name_unlisted(root, {video.path for video in videos})
    return VideoSet(videos, classes, {f"labels {split}".strip(): path for split, path in files.items()})


def _load_labels(path: Path) -> dict[str, Any]:
    def no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        name, count = max(Counter(name for name, _ in pairs).items(), key=lambda item: item[1], default=("", 0))
        if count > 1:
            raise InputError(f"{path}: {name!r} stands twice; remove one")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_doubles)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); correct the file") from None
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path}: must be like {{"file": 0}} or {{"file": {{"task": 0}}}}, with at least one file')
    return content


def _is_multi_task(raw: Mapping[tuple[str, str], Any], files: Mapping[str, Path]) -> bool:
    kinds = {isinstance(value, dict) for value in raw.values()}
    if len(kinds) > 1:
        split, name = next(key for key, value in raw.items() if not isinstance(value, dict))
        raise InputError(f"{files[split]}: {name!r} has no task, others have; give every file's labels by task")
    return kinds == {True}


def _labels_of(given: Mapping[str, Any], where: str) -> dict[str, int | str]:
    """Task -> label, without those that are missing (null)."""
    labels = {task: _label_of(value, where) for task, value in given.items() if value is not None}
    if not labels:
        raise InputError(f"{where} has no label; give one, or remove the line")
    return labels


def _label_of(value: Any, where: str) -> int | str:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and 0 <= value < MAX_CLASSES:
        return value
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise InputError(
        f"{where} has the label {value!r}; give a whole number from 0, a name, or null where it is missing"
    )


def _classes_of(labels: list[dict[str, int | str]]) -> dict[str, tuple[str, ...]]:
    """Tasks in alphabetical order, with the names of their classes."""
    tasks = sorted({task for found in labels for task in found})
    return {task: _class_names(task, [found[task] for found in labels if task in found]) for task in tasks}


def _class_names(task: str, labels: list[int | str]) -> tuple[str, ...]:
    """Numbers are labels, and are called by their number; names are sorted. A number in quotes is a name."""
    if len({type(label) for label in labels}) > 1:
        of_task = f" of task {task!r}" if task else ""
        number, name = (next(item for item in labels if isinstance(item, kind)) for kind in (int, str))
        raise InputError(f"labels.json: the labels{of_task} are numbers ({number}) and names ({name!r}); choose one")
    if isinstance(labels[0], int):
        return tuple(map(str, range(max(labels) + 1)))
    return tuple(sorted(set(labels)))


def _listed_classes(
    listed: tuple[str, ...], found: tuple[str, ...], is_numbered: bool, files: Mapping[str, Path]
) -> tuple[str, ...]:
    """The classes as the settings list them: names for the numbers, or the order of the names."""
    if len(found) > len(listed) or not (is_numbered or set(found) <= set(listed)):
        path = next(iter(files.values()))
        labels = ", ".join(found if is_numbered else (f'"{name}"' for name in found))
        raise InputError(
            f"classes: lists {', '.join(listed)}, but {path} and its like have {labels}; list each, or correct them"
        )
    return listed


def _positions(labels: Mapping[str, int | str], classes: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    return {task: label if isinstance(label, int) else classes[task].index(label) for task, label in labels.items()}


def _name_unlisted(root: Path, listed: set[str]) -> None:
    if unlisted := [path for path in find_videos(root, root) if path not in listed]:
        log.warning("%d videos are in no labels.json and left out, the first: %s", len(unlisted), unlisted[0])
