"""What every layout of real videos is read to: videos with their labels, split and group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".mkv", ".webm", ".mov"})
SPLITS = ("train", "val", "test")
ONE_TASK = ""  # the name of the task where there is only one


@dataclass(frozen=True)
class LabelledVideo:
    """One video.

    Attributes:
        path: below the data root, with `/`.
        labels: task -> label; a missing label has no entry.
        split: the layout's own, "" where it has none.
        group: what must stay on one side of every split, "" where the layout does not say.
        known: columns of the clip index that are to stay as they are.
    """

    path: str
    labels: Mapping[str, int]
    split: str = ""
    group: str = ""
    known: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VideoSet:
    """All videos of a data set.

    Attributes:
        classes: task -> its classes' names in label order.
        inputs: files whose content the labels come from.
    """

    videos: list[LabelledVideo]
    classes: dict[str, tuple[str, ...]]
    inputs: dict[str, Path]

    @property
    def is_multi_task(self) -> bool:
        """Whether tasks have names."""
        return ONE_TASK not in self.classes


def is_video(path: Path) -> bool:
    """Whether a path is called like a video, and is neither hidden nor a folder; a link may lead nowhere."""
    is_called_so = path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
    return is_called_so and not os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises where it may not look)


def find_videos(folder: Path, root: Path) -> list[str]:
    """All videos below a folder, as sorted paths below `root`; hidden files and folders are ignored."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if not is_hidden and is_video(path):
            found.append(relative.as_posix())
    return sorted(found)
