"""Clips of an index together with their sources, as far as both can be had; what cannot is a reason, not a crash."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from Data_Augmentation_SVD.clip_checks import one_line
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import ClipQualitySettings, GeometrySettings
from utils.artifacts import CLIP_INDEX, STATUS_FAILED, STATUS_OK, read_table
from utils.clips import read_clip
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.files import resolve_item, sha256_bytes, sha256_file
from utils.images import decode_image
from utils.indices import ItemIndex, classes_of

log = logging.getLogger(__name__)
_RECORD = "config.yaml"  # beside the clips


@dataclass(frozen=True)
class ListedClip:
    """A row of a clip index; texts that the index does not have are empty.

    Attributes:
        item_id: what the evaluation calls the clip.
        where: index and line, for a reason.
    """

    video_path: str
    label: int
    class_name: str
    item_id: str
    source_path: str
    source_sha256: str
    sha256: str
    generator: str
    status: str
    reason: str
    where: str


@dataclass(frozen=True)
class LoadedClip:
    """A clip as far as it can be had.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB; None where it cannot be decoded.
        source_view: what a perfect generator would show, uint8 (H, W, 3); None where the source is not known.
        status: `ok`, or why the index or the file rules the clip out.
        reason: why it is not `ok`, or why there is no source.
    """

    listed: ListedClip
    frames: np.ndarray | None
    source_view: np.ndarray | None
    status: str
    reason: str


def list_clips(index_path: Path, max_clips: int | None) -> list[ListedClip]:
    """The rows of a clip index, whatever their status, or `max_clips` of them at equal distances.

    Raises:
        InputError: a malformed index.
    """
    table = read_table(index_path, CLIP_INDEX)
    classes = classes_of(table, index_path)
    columns = {name: table.get(name, pd.Series("", index=table.index)) for name in _TEXTS}
    statuses = table.get("status", pd.Series(STATUS_OK, index=table.index))
    usable = table[statuses == STATUS_OK]
    # The ids that a loader of the same index gives, which keeps the clips that are `ok`.
    item_ids = dict(zip(usable.index, ItemIndex(usable, [], classes, index_path).item_ids, strict=True))
    clips = [
        ListedClip(
            video_path=table.at[line, "video_path"],
            label=int(table.at[line, "label"]),
            class_name=classes[int(table.at[line, "label"])].class_name,
            item_id=item_ids.get(line, ""),
            status=statuses[line],
            where=f"{index_path.name} line {line}",
            **{name: column[line] for name, column in columns.items()},
        )
        for line in table.index
    ]
    if max_clips is None or max_clips >= len(clips):
        return clips
    return [clips[step * len(clips) // max_clips] for step in range(max_clips)]


_TEXTS = ("source_path", "source_sha256", "sha256", "generator", "reason")


def require_sources(clips: list[ListedClip], images_root: Path | None, index_path: Path) -> None:
    """Refuse an `images_root` that cannot be the right one, before an hour of rows without sources.

    Raises:
        InputError: the index names no source, or none of them is below `images_root`.
    """
    if images_root is None:
        return
    named = [clip.source_path for clip in clips if clip.source_path]
    if not named:
        raise InputError(
            f"images_root: {index_path} names no sources; give an index of adopt_published as clips_csv, or drop "
            "images_root"
        )
    if not any((images_root / path).is_file() for path in named):
        raise InputError(
            f"images_root: none of the {len(named)} sources of {index_path} is below {images_root} (the first: "
            f"{named[0]!r}); give the folder that source_path is relative to"
        )


def read_geometry(settings: ClipQualitySettings) -> GeometrySettings:
    """The geometry that the clips were made with: as set, as recorded beside the clips, or the paper's."""
    if settings.geometry is not None:
        return settings.geometry
    recorded = _read_record(settings.clips_root).get("geometry")
    if recorded is None:
        return GeometrySettings()
    return build_settings(GeometrySettings, recorded, f"{settings.clips_root / _RECORD}: geometry")


def find_images_root(settings: ClipQualitySettings, clips: list[ListedClip]) -> Path | None:
    """The folder that `source_path` is relative to: as set, or where the clips were made from, if they are there still.

    Returns:
        None where neither is known: then nothing can be compared with the sources.
    """
    recorded = _read_record(settings.clips_root).get("data_root")
    if settings.images_root is not None or not isinstance(recorded, str):
        return settings.images_root
    if any(clip.source_path and (Path(recorded) / clip.source_path).is_file() for clip in clips):
        return Path(recorded)
    log.warning("the clips were made from %s, where their sources are no more: nothing is compared with them", recorded)
    return None


def _read_record(clips_root: Path) -> dict[str, Any]:
    """The settings that the clips were made with; {} where they are not recorded."""
    config = clips_root / _RECORD
    return dict(read_yaml(config)) if config.is_file() else {}


def load_clip(listed: ListedClip, clips_dir: Path, images_root: Path | None, geometry: GeometrySettings) -> LoadedClip:
    """Read a clip and its source; both are compared with their SHA-256 where the index has it."""
    if listed.status != STATUS_OK:
        return LoadedClip(listed, None, None, listed.status, listed.reason)
    try:
        frames = _read_frames(listed, clips_dir)
    except InputError as error:
        return LoadedClip(listed, None, None, STATUS_FAILED, one_line(error))
    if images_root is None or not listed.source_path:
        return LoadedClip(listed, frames, None, STATUS_OK, "")
    try:
        view = _read_view(listed, images_root, geometry, frames.shape[1:3])
    except InputError as error:
        return LoadedClip(listed, frames, None, STATUS_OK, f"no source: {one_line(error)}")
    return LoadedClip(listed, frames, view, STATUS_OK, "")


def _read_frames(listed: ListedClip, clips_dir: Path) -> np.ndarray:
    path = resolve_item(clips_dir, listed.video_path, listed.where)
    if listed.sha256 and sha256_file(path) != listed.sha256:
        raise InputError("the clip has changed since the index was written (sha256 differs)")
    return read_clip(path)


def _read_view(listed: ListedClip, images_root: Path, geometry: GeometrySettings, size: tuple[int, int]) -> np.ndarray:
    if size[0] != size[1]:
        raise InputError(f"the frames are {size[0]} x {size[1]}, and a source is compared with square ones only")
    content = resolve_item(images_root, listed.source_path, listed.where).read_bytes()
    if listed.source_sha256 and sha256_bytes(content) != listed.source_sha256:
        raise InputError(f"{listed.source_path} is not the image that the clip was made of (sha256 differs)")
    image = np.asarray(decode_image(content)[0])
    return Geometry(**geometry.model_dump(), frame_size=size[0]).view(image)
