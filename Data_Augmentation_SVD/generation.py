"""Make a clip of every image of a split: clip first, then its journal row, then the index; a kill loses at most one."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipGenerator
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Augmentation_SVD.tiny_imagenet_aug import SourceImage, TinyImageNetAug
from Data_Sourcing.image_set import image_set_inputs
from utils.artifacts import CLIP_INDEX, STATUS_FAILED, STATUS_OK, format_table, write_table
from utils.clips import write_clip
from utils.errors import InputError
from utils.files import remove_partial_files, sha256_file
from utils.runs import start_run
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
    owned = tuple(name for split in ("train", "val") for name in (split, f"{split}.csv", journal_name(split)))
    run = start_run(
        settings,
        owned=owned,
        inputs=image_set_inputs(settings.data_root, settings.wnids_file),
        path_keys=("data_root", "wnids_file", "splits"),
    )
    indices = [run.dir / f"{split}.csv" for split in settings.splits]
    if all(index.exists() for index in indices):
        log.info("%s: all clips are made; nothing to do", run.dir)
        return indices
    sources = {split: TinyImageNetAug(settings.data_root, split, settings.wnids_file) for split in settings.splits}
    generator = _LazyGenerator(lambda: CLIP_GENERATORS[settings.generator](settings))
    for split, images in sources.items():
        generate_split(images, generator, run.dir, split, settings)
    return indices


def generate_split(
    images: TinyImageNetAug, generator: ClipGenerator, output_dir: Path, split: str, settings: GenerationSettings
) -> Path:
    """Generate one split's clips and write its index last; rows of a journal left by a killed run are kept.

    Raises:
        InputError: more clips failed than `max_failed_fraction` allows.
    """
    index_path = output_dir / f"{split}.csv"
    if index_path.exists():
        return index_path
    clips_dir = output_dir / split
    clips_dir.mkdir(parents=True, exist_ok=True)
    remove_partial_files(clips_dir)
    journal = Journal(output_dir / journal_name(split))
    made = journal.read_finished(clips_dir)
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
    table_row = images.index.table.iloc[position]
    row = {
        "video_path": clip_name(position),
        "label": int(table_row["label"]),
        "class_name": table_row["class_name"],
        "wnid": table_row["wnid"],
        "source_path": table_row["image_path"],
        "source_sha256": table_row["sha256"],
        "sha256": "",
        "generator": settings.generator,
        "num_frames": settings.num_frames,
        "height": settings.frame_size,
        "width": settings.frame_size,
        "seed": None,
        "status": STATUS_FAILED,
        "reason": "",
    }
    try:
        source: SourceImage = images[position]
        row["seed"] = source.clip_seed(settings.seed)
        frames = generator.generate(source.image, row["seed"])
        write_clip(clips_dir / clip_name(position), frames, settings.output_fps)
    except InputError as error:
        return row | {"reason": str(error)}
    return row | {"status": STATUS_OK, "sha256": sha256_file(clips_dir / clip_name(position))}


class _LazyGenerator:
    """Builds the generator at its first clip, so that a run that only writes an index loads no weights."""

    def __init__(self, build: Callable[[], ClipGenerator]) -> None:
        self._build = build
        self._generator: ClipGenerator | None = None

    def generate(self, image, seed: int):
        if self._generator is None:
            self._generator = self._build()
        return self._generator.generate(image, seed)


class Journal:
    """Rows of a clip index as they become true: appended and synced one by one, a torn last line is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = None

    def read_finished(self, clips_dir: Path) -> dict[str, dict[str, Any]]:
        """Rows by `video_path` whose clip is on disk, unchanged; failed rows are tried again."""
        finished = {}
        for cells in self._whole_lines():
            row = dict(zip(CLIP_INDEX.column_names, cells, strict=True))
            clip = clips_dir / row["video_path"]
            if row["status"] == STATUS_OK and clip.is_file() and sha256_file(clip) == row["sha256"]:
                finished[row["video_path"]] = row
        return finished

    def _whole_lines(self) -> Iterator[list[str]]:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a killed run's last line; new rows must not be glued to it
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for cells in csv.reader(whole.decode("utf-8").splitlines()):
            if len(cells) == len(CLIP_INDEX.columns):
                yield cells

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
