"""The published val clips and the images they were made of."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.clips import read_clip
from utils.files import sha256_file
from utils.images import read_rgb_image

WNIDS = [
    "n02099601",
    "n02123394",
    "n02129165",
    "n02132136",
    "n02403003",
    "n02415577",
    "n02423022",
    "n02481823",
    "n02504458",
    "n02509815",
]


@dataclass(frozen=True)
class PublishedClip:
    """Clip i of val is made of the i-th line of `val_annotations.txt` that belongs to one of the ten classes."""

    video_path: Path
    source_path: Path
    label: int

    def read_frames(self) -> np.ndarray:
        """uint8 (3, 224, 224, 3)."""
        return read_clip(self.video_path, num_frames=3)

    def read_source(self) -> np.ndarray:
        """uint8 (64, 64, 3)."""
        return read_rgb_image(self.source_path)


def list_published_clips(real_data: Path, step: int = 1) -> list[PublishedClip]:
    folder, raw_root = real_data / "svd_videos", real_data / "tiny-imagenet-200"
    with (folder / "val.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [line.split("\t") for line in (raw_root / "val/val_annotations.txt").read_text().splitlines()]
    images = [(cells[0], WNIDS.index(cells[1])) for cells in lines if cells[1] in WNIDS]
    assert [int(row["label"]) for row in rows] == [label for _, label in images]
    assert len(rows) == 500
    clips = [
        PublishedClip(folder / "val" / row["video_path"], raw_root / "val/images" / name, label)
        for row, (name, label) in zip(rows, images, strict=True)
    ]
    return clips[::step]


def write_index_with_sources(clips: list[PublishedClip], real_data: Path, path: Path) -> None:
    """An index of ours for published clips; sources are relative to the raw data set."""
    header = ("video_path", "label", "class_name", "wnid", "source_path", "source_sha256", "sha256", "generator")
    raw_root = real_data / "tiny-imagenet-200"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for clip in clips:
            names = (f"class {clip.label}", WNIDS[clip.label], clip.source_path.relative_to(raw_root).as_posix())
            hashes = (sha256_file(clip.source_path), sha256_file(clip.video_path))
            writer.writerow((clip.video_path.name, clip.label, *names, *hashes, "svd"))
