"""The layouts that real videos come in, each read to one list: which videos, with which labels, of which split."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from Data_Sourcing.labels_json_layout import read_labels_json
from Data_Sourcing.settings import IndexVideosSettings
from Data_Sourcing.ucf101_layout import read_ucf101
from Data_Sourcing.video_set import ONE_TASK, SPLITS, VIDEO_SUFFIXES, LabelledVideo, VideoSet, find_videos
from utils.artifacts import STATUS_OK, TASK_LABELS, VIDEO_INDEX, read_table
from utils.errors import InputError
from utils.files import resolve_item
from utils.indices import classes_of
from utils.task_labels import task_labels_path


def read_layout(settings: IndexVideosSettings) -> VideoSet:
    """The videos of `settings.data_root`, sorted by path.

    Raises:
        InputError: the layout is not there, names a file that does not exist, or a label that is none.
    """
    found = _READERS[settings.layout](settings)
    videos = sorted(found.videos, key=lambda video: video.path)
    if not videos:
        raise InputError(f"data_root: {settings.data_root} has no video; known endings: {_endings()}")
    for earlier, video in itertools.pairwise(videos):
        if video.path == earlier.path:
            both = " and ".join(dict.fromkeys((earlier.split, video.split))) or "the labels"
            raise InputError(
                f"{settings.data_root}: {video.path!r} is listed twice (in {both}); remove one of the lines"
            )
    return VideoSet(videos, found.classes, found.inputs)


def _read_folders(settings: IndexVideosSettings) -> VideoSet:
    """`<class>/*` or `{train,val,test}/<class>/*`."""
    root = settings.data_root
    splits = [split for split in SPLITS if (root / split).is_dir()] if (root / "train").is_dir() else [""]
    output_dir = settings.output_dir.resolve()  # may lie in the same folder
    folders = (folder for split in splits for folder in _folders(root / split) if folder.resolve() != output_dir)
    names = sorted({folder.name for folder in folders})
    classes = settings.classes or tuple(names)
    if unknown := [name for name in classes if name not in names]:
        raise InputError(f"classes: {root} has no folder {unknown[0]!r}; it has: {', '.join(names)}")
    videos = [
        LabelledVideo(path, {ONE_TASK: label}, split)
        for split in splits
        for label, name in enumerate(classes)
        for path in find_videos(root / split / name, root)
    ]
    for label, name in enumerate(classes):
        if not any(video.labels[ONE_TASK] == label for video in videos):
            raise InputError(
                f"{root}: class {name!r} has no video ({_endings()}); add some, or list those to take in `classes`"
            )
    return VideoSet(videos, {ONE_TASK: classes}, {})


def _read_clip_index(settings: IndexVideosSettings) -> VideoSet:
    """Any clip index; its clips are below the data root."""
    root = settings.data_root
    index_path = next((path for path in (root / settings.index_csv, settings.index_csv) if path.is_file()), None)
    if index_path is None:
        raise InputError(
            f"index_csv: there is neither {root / settings.index_csv} nor {settings.index_csv}; correct it"
        )
    table = read_table(index_path, VIDEO_INDEX)
    if "status" in table:
        table = table[table["status"] == STATUS_OK]
    inputs = {"index": index_path}
    labels, classes = _labels_of_index(table, index_path)
    tasks_path = task_labels_path(index_path)
    if tasks_path.is_file():
        labels, classes = _labels_of_tasks(table, tasks_path)
        inputs["tasks"] = tasks_path
    videos = []
    for line, row in zip(table.index, table.to_dict("records"), strict=True):
        path = row["video_path"]
        resolve_item(root, path, f"{index_path} line {line}")
        if not labels[path]:
            raise InputError(f"{tasks_path}: has no label for {path!r}; add one, or remove the video from the index")
        known = {name: value for name, value in row.items() if name in _KEPT and not pd.isna(value) and value != ""}
        known["wnid"] = row.get("wnid", "")
        videos.append(LabelledVideo(path, labels[path], group=row.get("group") or "", known=known))
    return VideoSet(videos, classes, inputs)


# What a pseudo-video was made from and how; the hash of its source keeps all clips of one image on one side.
_KEPT = (
    "source_path",
    "source_sha256",
    "generator",
    "seed",
    "kept_frames",
    "visible_fraction",
    "clip_number",
    "attempt",
)
_READERS = {
    "folders": _read_folders,
    "labels_json": read_labels_json,
    "ucf101": read_ucf101,
    "clip_index": _read_clip_index,
}


def _folders(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _endings() -> str:
    return " ".join(sorted(VIDEO_SUFFIXES))


def _labels_of_index(table: pd.DataFrame, path: Path) -> tuple[dict[str, dict[str, int]], dict[str, tuple[str, ...]]]:
    classes = tuple(item.class_name for item in classes_of(table, path))
    labels = {name: {ONE_TASK: label} for name, label in zip(table["video_path"], table["label"], strict=True)}
    return labels, {ONE_TASK: classes}


def _labels_of_tasks(table: pd.DataFrame, path: Path) -> tuple[dict[str, dict[str, int]], dict[str, tuple[str, ...]]]:
    rows = read_table(path, TASK_LABELS)
    labels: dict[str, dict[str, int]] = {name: {} for name in table["video_path"]}
    names: dict[str, dict[int, str]] = {}
    for row in rows.itertuples(index=False):
        names.setdefault(row.task, {})[row.label] = row.class_name
        if row.video_path in labels:
            labels[row.video_path][row.task] = row.label
    classes = {
        task: tuple(found.get(label, str(label)) for label in range(max(found) + 1))
        for task, found in sorted(names.items())
    }
    return labels, classes
