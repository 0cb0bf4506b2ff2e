"""How many videos each class has in each split: as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.artifacts import CLASS_DISTRIBUTION, STATUS_OK, write_table
from utils.files import write_with

_MAX_NAMED_CLASSES = 150  # more names than this cannot be read on one page


def count_classes(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    labels: Mapping[str, Mapping[str, int]],
    classes: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """Rows of `class_distribution.csv`: splits in their order, then tasks, then labels, those without videos too.

    Args:
        rows: split -> rows of its clip index.
        labels: path -> task -> label.
        classes: task -> names in label order.
    """
    counted = []
    for split, videos in rows.items():
        for task, names in classes.items():
            for label, class_name in enumerate(names):
                members = [row for row in videos if labels[row["video_path"]].get(task) == label]
                usable = [row for row in members if row["status"] == STATUS_OK]
                counted.append(
                    {
                        "split": split,
                        "task": task,
                        "label": label,
                        "class_name": class_name,
                        "num_videos": len(usable),
                        "num_groups": len({row["group"] or row["source_sha256"] for row in usable}),
                        "num_failed": len(members) - len(usable),
                    }
                )
    return counted


def write_class_distribution(counted: list[dict[str, Any]], folder: Path) -> None:
    """Write `class_distribution.png` and `class_distribution.csv`."""
    write_with(folder / "class_distribution.png", lambda partial: _draw(counted, partial))
    write_table(counted, folder / "class_distribution.csv", CLASS_DISTRIBUTION)


def _draw(counted: list[dict[str, Any]], path: Path) -> None:
    """Horizontal bars, one a class, the splits one after the other."""
    from matplotlib.figure import Figure

    splits = list(dict.fromkeys(row["split"] for row in counted))
    first = [row for row in counted if row["split"] == splits[0]]
    names = [f"{row['task']}: {row['class_name']}" if row["task"] else row["class_name"] for row in first]
    names = [name.replace("$", r"\$") for name in names]  # `$` begins a formula
    heights = np.arange(len(names))
    figure = Figure(figsize=(8, min(max(2.5, 0.22 * len(names) + 1.2), 40)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(names))
    for number, split in enumerate(splits):
        counts = np.array([row["num_videos"] for row in counted if row["split"] == split])
        axes.barh(heights, counts, left=left, color=f"C{number}", label=f"{split} ({_num_videos(counted, split)})")
        left += counts
    axes.set(xlabel="videos", ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(*((heights, names) if len(names) <= _MAX_NAMED_CLASSES else ([], [])), fontsize=8)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def _num_videos(counted: list[dict[str, Any]], split: str) -> int:
    """Labels that are there: of several tasks, a video has several."""
    return sum(row["num_videos"] for row in counted if row["split"] == split)
