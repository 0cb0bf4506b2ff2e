"""The layouts that real videos come in, each read to one list: which videos, with which labels, of which split."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pandas as pd

from Data_Sourcing.labels_json_layout import read_labels_json
from Data_Sourcing.settings import IndexVideosSettings, SplitFractions
from Data_Sourcing.ucf101_layout import read_ucf101
from Data_Sourcing.video_set import ONE_TASK, SPLITS, VIDEO_SUFFIXES, LabelledVideo, VideoSet, find_videos, is_video
from utils.artifacts import TASK_LABELS, VIDEO_INDEX, read_table
from utils.errors import InputError
from utils.files import resolve_item
from utils.indices import classes_of, distinct_names, keep_ok_clips
from utils.task_labels import classes_of_task, task_labels_path

log = logging.getLogger(__name__)


def read_layout(settings: IndexVideosSettings) -> VideoSet:
    """The videos of `settings.data_root`, sorted by path.

    Raises:
        InputError: the layout is not there, names a file that does not exist, or a label that is none; or there is
            nothing to draw by `splits`.
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
    if {"train", "val"} <= {video.split for video in videos} and settings.splits != SplitFractions():
        raise InputError(f"splits: {settings.data_root} brings train and val itself; drop the section")
    return VideoSet(videos, found.classes, found.inputs)


def _read_folders(settings: IndexVideosSettings) -> VideoSet:
    """`<class>/*` or `{train,val,test}/<class>/*`."""
    root, output_dir = settings.data_root, settings.output_dir
    splits = _split_folders(root, output_dir)
    names = sorted({folder.name for split in splits for folder in _folders(root / split, output_dir)})
    _name_videos_of_no_class([root, *(root / split for split in splits if split)], has_classes=bool(names))
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
    table = keep_ok_clips(read_table(index_path, VIDEO_INDEX), index_path)
    inputs = {"index": index_path}
    infos = classes_of(table, index_path)
    labels = {name: {ONE_TASK: label} for name, label in zip(table["video_path"], table["label"], strict=True)}
    classes = {ONE_TASK: distinct_names(infos)}
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
        if ONE_TASK in classes:
            known |= {"class_name": infos[row["label"]].class_name, "wnid": infos[row["label"]].wnid}
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


def _folders(folder: Path, output_dir: Path) -> list[Path]:
    """Those of classes or splits; the output may lie beside them."""
    found = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [path for path in found if path.resolve() != output_dir.resolve()]


def _split_folders(root: Path, output_dir: Path) -> list[str]:
    """The splits that the layout brings; one without a name where it brings none.

    Raises:
        InputError: folders of splits and of classes beside each other (`train` may be the vehicle), or no train.
    """
    folders = _folders(root, output_dir)
    splits = [split for split in SPLITS if split in {folder.name for folder in folders}]
    if not splits:
        return [""]
    others = [folder for folder in folders if folder.name not in SPLITS and find_videos(folder, root)]
    if "train" in splits and others:
        more = f", and {len(others) - 1} more folder{'s' * (len(others) > 2)}" if len(others) > 1 else ""
        raise InputError(
            f"{root}: beside train/ lies {others[0].name}/ with videos{more}; keep only train/, val/, test/ with a "
            "folder a class in each, or rename a class called 'train'"
        )
    if not others and "train" not in splits:
        found = " and ".join(f"{split}/" for split in sorted(splits))
        raise InputError(f"{root}: has {found}, but no train/; add it, or rename classes that are called so")
    return splits if "train" in splits else [""]


def _name_videos_of_no_class(folders: list[Path], *, has_classes: bool) -> None:
    """Videos beside the folders of the classes: warned of, and refused where there is no class."""
    lone = [path for folder in folders for path in sorted(folder.iterdir()) if is_video(path)]
    if lone and not has_classes:
        raise InputError(
            f"{lone[0].parent}: has videos, the first {lone[0].name}, but no folder of a class; put each video into "
            "its class's folder, or take layout=labels_json"
        )
    if len(lone) == 1:
        log.warning("1 video lies in no class's folder and is left out: %s", lone[0].relative_to(folders[0]))
    elif lone:
        first = lone[0].relative_to(folders[0])
        log.warning("%d videos lie in no class's folder and are left out, the first: %s", len(lone), first)


def _endings() -> str:
    return " ".join(sorted(VIDEO_SUFFIXES))


def _labels_of_tasks(table: pd.DataFrame, path: Path) -> tuple[dict[str, dict[str, int]], dict[str, tuple[str, ...]]]:
    rows = read_table(path, TASK_LABELS)
    labels: dict[str, dict[str, int]] = {name: {} for name in table["video_path"]}
    for row in rows.itertuples():
        if not row.task.strip():
            raise InputError(f"{path} line {row.Index}: has no name of a task; give one")
        if row.video_path in labels:
            labels[row.video_path][row.task] = row.label
    classes = {task: distinct_names(classes_of_task(of_task, path)) for task, of_task in rows.groupby("task")}
    return labels, classes
