"""Labels of several tasks: the table beside a clip index that says, for each video and task, which class it is.

`train.tasks.csv` lies beside `train.csv` and has one row a video and task; where a row is missing, the label is
missing, and the loss and the metrics of that task leave the video out. The index's own label is the combination of all
tasks'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from utils.artifacts import TASK_LABELS, read_table
from utils.errors import InputError
from utils.indices import MAX_CLASSES, ClassInfo, ItemIndex

MISSING = -1


@dataclass(frozen=True)
class TaskLabels:
    """The labels of an index's rows.

    Attributes:
        names: the tasks in alphabetical order, which is that of the columns of `labels` and of the network's heads.
        classes: of each task, in label order.
        labels: int64 (N, num_tasks), one row an item; -1 where the label is missing.
    """

    names: tuple[str, ...]
    classes: dict[str, tuple[ClassInfo, ...]]
    labels: np.ndarray


def task_labels_path(index_path: Path) -> Path:
    """Where the tasks of an index are: `train.csv` -> `train.tasks.csv`."""
    return index_path.with_name(f"{index_path.stem}.tasks.csv")


def read_task_labels(index: ItemIndex, known: TaskLabels | None = None) -> TaskLabels | None:
    """The tasks of an index; None where no such table lies beside it.

    Args:
        known: the training's; its tasks and classes are taken, of which this split may lack some.

    Raises:
        InputError: a malformed row, one label with two names, no label for any item, or what `known` lacks.
    """
    path = task_labels_path(index.index_path)
    if not path.is_file():
        return None
    table = read_table(path, TASK_LABELS)
    rows_of = {name: row for row, name in enumerate(index.table["video_path"])}
    table = table[table["video_path"].isin(rows_of.keys())]  # the others are those of failed videos
    if table.empty:
        raise InputError(
            f"{path}: has no label for any video of {index.index_path}; make both with Data_Sourcing again"
        )
    found = {task: classes_of_task(rows, path) for task, rows in table.groupby("task")}
    classes = found if known is None else _known_classes(found, known, path)
    names = tuple(sorted(classes))
    labels = np.full((len(index), len(names)), MISSING, dtype=np.int64)
    positions = [rows_of[name] for name in table["video_path"]]
    labels[positions, [names.index(task) for task in table["task"]]] = table["label"]
    return TaskLabels(names, classes, labels)


def select_task(index: ItemIndex, task: str, known: TaskLabels | None = None) -> ItemIndex:
    """The items that have a label for one task, as an index of that task alone.

    Args:
        known: as in `read_task_labels`.

    Raises:
        InputError: the index has no tasks, or not this one; or no item has a label for it.
    """
    tasks = read_task_labels(index, known)
    if tasks is None:
        raise InputError(
            f"{index.index_path}: has no {task_labels_path(index.index_path).name} beside it; drop the task"
        )
    if task not in tasks.names:
        raise InputError(f"{index.index_path}: has no task {task!r}; known: {', '.join(tasks.names)}")
    labels = tasks.labels[:, tasks.names.index(task)]
    kept = np.flatnonzero(labels != MISSING)
    if not len(kept):
        raise InputError(f"{index.index_path}: no video has a label for task {task!r}; use a split that has some")
    classes = tasks.classes[task]
    named = {"label": labels[kept], "class_name": [classes[label].class_name for label in labels[kept]]}
    table = index.table.iloc[kept].assign(**named, wnid=named["class_name"]).reset_index(drop=True)
    return replace(index, table=table, paths=[index.paths[row] for row in kept], classes=classes, num_total=len(kept))


def combination_name(labels: Iterable[tuple[str, str]]) -> str:
    """What the combination of all tasks' classes is called, `blurry=? grainy=1`.

    Args:
        labels: (task, class name) in the order of the tasks; the name is empty where the label is missing.
    """
    return " ".join(f"{task}={class_name or '?'}" for task, class_name in labels)


def classes_of_task(rows: pd.DataFrame, path: Path) -> tuple[ClassInfo, ...]:
    """The classes of one task in label order; labels no row has are called by their number.

    Args:
        rows: the task's rows of the table at `path`, indexed by line number.

    Raises:
        InputError: a label that is too large, or one label with two names.
    """
    names: dict[int, str] = {}
    for line, label, class_name in zip(rows.index, rows["label"], rows["class_name"], strict=True):
        if label >= MAX_CLASSES:
            raise InputError(f"{path} line {line}: label {label} is too large; labels count from 0")
        if names.setdefault(label, class_name) != class_name:
            raise InputError(
                f"{path} line {line}: label {label} is {class_name!r} here and {names[label]!r} before; one label of a "
                "task is one class"
            )
    labels = range(max(names) + 1)
    return tuple(ClassInfo(label, names.get(label, str(label)), names.get(label, "")) for label in labels)


def _known_classes(
    found: dict[str, tuple[ClassInfo, ...]], known: TaskLabels, path: Path
) -> dict[str, tuple[ClassInfo, ...]]:
    for task, classes in found.items():
        if task not in known.classes:
            raise InputError(
                f"{path}: has the task {task!r}, the training has: {', '.join(known.names)}; remove its rows"
            )
        theirs = known.classes[task]
        for item in classes:
            if item.label >= len(theirs) or (item.wnid and theirs[item.label].wnid not in ("", item.wnid)):
                trained = ", ".join(f"{one.label} {one.class_name!r}" for one in theirs)
                raise InputError(
                    f"{path}: label {item.label} of task {task!r} is {item.class_name!r}, the training has: {trained}; "
                    "use its classes"
                )
    return known.classes
