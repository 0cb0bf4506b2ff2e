"""Make a clip of every image of a split: clip first, then its journal row, then the index; a kill loses at most one."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipError, ClipGenerator
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Augmentation_SVD.tiny_imagenet_aug import Source, TinyImageNetAug
from Data_Sourcing.image_set import image_set_inputs
from utils.artifacts import CLIP_INDEX, STATUS_FAILED, STATUS_OK, format_table, read_table, write_table
from utils.clips import write_clip
from utils.errors import InputError
from utils.files import remove_partial_files, sha256_file
from utils.images import ImageError
from utils.runs import open_run
from utils.utils import progress

log = logging.getLogger(__name__)
_SUMMARY_EVERY = 200


def run_generation(settings: GenerationSettings) -> list[Path]:
    """Generate the clips of all splits; finished ones are not made again.

    Returns:
        one clip index a split.

    Raises:
        InputError: bad data, weights that cannot be had, or too many failed clips.
    """
    run = open_run(
        settings,
        owned=_files_of(("train", "val")),
        replaced=_files_of(settings.splits),
        inputs=image_set_inputs(settings.data_root, settings.wnids_file),
        free_keys=("data_root", "wnids_file", "splits"),
    )
    indices = [run.dir / f"{split}.csv" for split in settings.splits]
    if run.is_done(*(index.name for index in indices)) and all(_is_whole(run.dir, split) for split in settings.splits):
        log.info("%s: all clips are made; nothing to do", run.dir)
        return indices
    sources = {split: TinyImageNetAug(settings.data_root, split, settings.wnids_file) for split in settings.splits}
    generator = CLIP_GENERATORS[settings.generator](settings)  # weights that cannot be had are no failed clips
    run.begin()
    for split, images in sources.items():
        generate_split(images, generator, run.dir, split, settings)
    return indices


def _is_whole(output_dir: Path, split: str) -> bool:
    """Whether an index stands, its journal is gone, and no clip was removed since."""
    table = read_table(output_dir / f"{split}.csv", CLIP_INDEX)
    names = table["video_path"][table["status"] == STATUS_OK]
    return not (output_dir / journal_name(split)).exists() and all(
        (output_dir / split / name).exists() for name in names
    )


def _files_of(splits: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for split in splits for name in (f"{split}.csv", journal_name(split), split))


def generate_split(
    images: TinyImageNetAug, generator: ClipGenerator, output_dir: Path, split: str, settings: GenerationSettings
) -> Path:
    """Generate one split's clips and write its index last; what a killed run has made is kept.

    A clip that is missing or damaged is made again, and one whose source has changed since.

    Raises:
        InputError: more clips failed than `max_failed_fraction` allows.
    """
    index_path = output_dir / f"{split}.csv"
    clips_dir = output_dir / split
    clips_dir.mkdir(parents=True, exist_ok=True)
    remove_partial_files(clips_dir)
    journal = Journal(output_dir / journal_name(split))
    sources = {clip_name(position): source for position, source in enumerate(images.sources)}
    made = {
        row["video_path"]: row
        for row in (*_index_rows(index_path), *journal.rows())
        if _is_finished(row, sources, clips_dir)
    }
    if made:
        log.info("%s: %d of %d clips are there already", split, len(made), len(images))
    todo = [position for position in range(len(images)) if clip_name(position) not in made]
    with journal:
        for position in progress(todo, len(todo), f"{split} clips", every=_SUMMARY_EVERY):
            row = _make_clip(images, position, generator, clips_dir, settings)
            made[row["video_path"]] = row
            journal.append(row)
    rows = [made[clip_name(position)] for position in range(len(images))]
    failed = [row for row in rows if row["status"] != STATUS_OK]
    if len(failed) > settings.max_failed_fraction * len(rows):
        raise InputError(
            f"{journal.path}: {len(failed)} of {len(rows)} clips failed, more than max_failed_fraction="
            f"{settings.max_failed_fraction:g}; the first: {failed[0]['source_path']}: {failed[0]['reason']}"
        )
    write_table(rows, index_path, CLIP_INDEX)
    journal.remove()
    log.info("%d clips (%d failed): %s", len(rows), len(failed), index_path)
    return index_path


def clip_name(position: int) -> str:
    """File name of the clip of the image at a position of its index, as in the published data set."""
    return f"{position:05d}.mp4"


def journal_name(split: str) -> str:
    """The file that holds finished rows until the index is written."""
    return f"{split}.journal.csv"


def _make_clip(
    images: TinyImageNetAug, position: int, generator: ClipGenerator, clips_dir: Path, settings: GenerationSettings
) -> dict[str, Any]:
    source = images.sources[position]
    row = {
        "video_path": clip_name(position),
        **asdict(source),
        "sha256": "",
        "generator": settings.generator,
        "seed": source.clip_seed(settings.seed),
        "num_frames": settings.num_frames,
        "height": settings.frame_size,
        "width": settings.frame_size,
        "status": STATUS_FAILED,
        "reason": "",
    }
    try:
        frames = generator.generate(images[position], row["seed"])
    except (ClipError, ImageError) as error:
        return row | {"reason": " ".join(str(error).split())}  # one line, so that a torn journal is seen as such
    write_clip(clips_dir / clip_name(position), frames, settings.output_fps)
    return row | {"status": STATUS_OK, "sha256": sha256_file(clips_dir / clip_name(position))}


def _index_rows(index_path: Path) -> list[dict[str, Any]]:
    return read_table(index_path, CLIP_INDEX).to_dict("records") if index_path.exists() else []


def _is_finished(row: dict[str, Any], sources: dict[str, Source], clips_dir: Path) -> bool:
    """Whether a row's clip is on disk, unchanged, and of the image that has this place now."""
    source = sources.get(row["video_path"])
    if source is None or row["status"] != STATUS_OK:
        return False
    if any(str(row[name]) != str(value) for name, value in asdict(source).items()):
        return False
    clip = clips_dir / row["video_path"]
    return clip.is_file() and sha256_file(clip) == row["sha256"]


class Journal:
    """Rows of a clip index as they become true: appended and synced one by one, a torn last line is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = None

    def rows(self) -> Iterator[dict[str, str]]:
        """Whole rows so far, as text."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a killed run's last line; new rows must not be glued to it
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for cells in csv.reader(io.StringIO(whole.decode("utf-8", "replace"), newline="")):
            if len(cells) == len(CLIP_INDEX.columns):
                yield dict(zip(CLIP_INDEX.column_names, cells, strict=True))

    def __enter__(self) -> Journal:
        self._file = self.path.open("a", encoding="utf-8", newline="")
        return self

    def append(self, row: dict[str, Any]) -> None:
        """Add one row, on disk when this returns."""
        self._file.write(format_table([row], CLIP_INDEX, header=False))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def remove(self) -> None:
        """Remove the journal: the index has taken its place."""
        self.path.unlink(missing_ok=True)
