"""Make clips of every image of a split: clip first, then its journal row, then the index; a kill loses what is at hand.

Three things happen at once: a thread reads the next chunk of images, this one generates, another writes what is done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from Data_Augmentation_SVD.chunks import generate_chunks
from Data_Augmentation_SVD.clip_writer import ClipMaker, ClipTask, ClipWriter
from Data_Augmentation_SVD.dataset_card import write_dataset_card
from Data_Augmentation_SVD.generation_stats import STATS_FILE, SessionStats, append_session
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipGenerator
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Augmentation_SVD.shards import FREE_KEYS, open_shard, parse_shard
from Data_Augmentation_SVD.split_files import Journal, SplitFolders, clip_name, index_rows, journal_name, split_folders
from Data_Augmentation_SVD.tiny_imagenet_aug import TinyImageNetAug
from Data_Sourcing.image_set import image_set_inputs
from utils.artifacts import CLIP_INDEX, STATUS_FAILED, STATUS_OK, write_table
from utils.errors import InputError, StopRequest
from utils.files import remove_partial_files, sha256_file
from utils.runs import Run, open_run
from utils.utils import progress

log = logging.getLogger(__name__)
_SUMMARY_EVERY = 200


def run_generation(settings: GenerationSettings) -> list[Path]:
    """Generate the clips of all splits, or one shard of them; finished ones are not made again.

    Returns:
        one clip index a split.

    Raises:
        InputError: bad data, weights that cannot be had, or too many bad clips.
        Terminated: SIGTERM has come; what was at hand is finished.
    """
    shard = parse_shard(settings.shard)
    run = _open(settings, shard)
    indices = [run.dir / f"{split}.csv" for split in settings.splits]
    if run.is_done(*(index.name for index in indices)) and all(
        _is_whole(run.dir, split, settings) for split in settings.splits
    ):
        log.info("%s: all clips are made; nothing to do", run.dir)
        if shard == (1, 1):
            write_dataset_card(settings.output_dir)  # a run killed right before its card
        return indices
    images = {
        split: TinyImageNetAug(settings.data_root, split, settings.wnids_file, shard) for split in settings.splits
    }
    generator = CLIP_GENERATORS[settings.generator](settings)  # weights that cannot be had are no bad clips
    run.begin(generator.describe())
    remove_partial_files(run.dir)
    with StopRequest() as stop:
        for split in settings.splits:
            generate_split(images[split], generator, run.dir, split, settings, stop)
    if shard == (1, 1):
        write_dataset_card(settings.output_dir)
    else:
        log.info("shard %d/%d is done; when all are: python -m %s", *shard, _merge_command(settings))
    return indices


def _open(settings: GenerationSettings, shard: tuple[int, int]) -> Run:
    """The folder that keeps this run's books: the output folder, or a shard's own below it."""
    inputs: dict[str, Any] = image_set_inputs(settings.data_root, settings.wnids_file)
    if settings.generator == "svd":
        from Data_Augmentation_SVD.svd_weights import weights_fingerprint

        if fingerprint := weights_fingerprint(settings.diffusion_model):
            inputs["diffusion_model"] = fingerprint
    # A checkpoint that moved is the same checkpoint: its fingerprint speaks for it.
    free_keys = FREE_KEYS + (("diffusion_model",) if "diffusion_model" in inputs else ())
    options = {"inputs": inputs, "free_keys": free_keys}
    if shard != (1, 1):
        return open_shard(settings, shard, **options)
    return open_run(settings, owned=_files_of(("train", "val")), replaced=_files_of(settings.splits), **options)


def _files_of(splits: Sequence[str]) -> tuple[str, ...]:
    names = (name for split in splits for name in (f"{split}.csv", journal_name(split), split, f"quarantine/{split}"))
    return (*names, STATS_FILE)


def _merge_command(settings: GenerationSettings) -> str:
    return f"Data_Augmentation_SVD.merge_shards output_dir={settings.output_dir}"


def _is_whole(run_dir: Path, split: str, settings: GenerationSettings) -> bool:
    """Whether an index stands, its journal is gone, no clip was removed since, and nothing is to be tried again."""
    rows = index_rows(run_dir / f"{split}.csv")
    is_clean = all(row["status"] == STATUS_OK for row in rows) or not settings.retry_failed
    clips_dir = split_folders(settings.output_dir, split).clips
    return (
        is_clean
        and not (run_dir / journal_name(split)).exists()
        and all((clips_dir / row["video_path"]).exists() for row in rows if row["status"] == STATUS_OK)
    )


def generate_split(
    images: TinyImageNetAug,
    generator: ClipGenerator,
    run_dir: Path,
    split: str,
    settings: GenerationSettings,
    stop: StopRequest,
) -> Path:
    """Generate one split's clips and write its index last; what a killed run has made is kept.

    A clip that is missing or damaged is made again, and one whose source has changed since.

    Raises:
        InputError: more clips are bad than `max_failed_fraction` allows.
        Terminated: SIGTERM has come.
    """
    folders = split_folders(settings.output_dir, split)
    journal, index_path = Journal(run_dir / journal_name(split)), run_dir / f"{split}.csv"
    tasks = plan_clips(images, settings)
    made, todo = sort_out(tasks, (*index_rows(index_path), *journal.rows()), folders, settings)
    if made:
        log.info("%s: %d of %d clips are there already", split, len(made), len(tasks))
    _make_clips(todo, made, images, generator, journal, run_dir, split, settings, stop)
    rows = [made[task.name] for task in tasks]
    folders.clips.mkdir(parents=True, exist_ok=True)  # also where no clip is good
    write_table(rows, index_path, CLIP_INDEX)
    journal.remove()
    log.info("%d clips (%d bad): %s", len(rows), sum(row["status"] != STATUS_OK for row in rows), index_path)
    return index_path


def _make_clips(
    todo: list[ClipTask],
    made: dict[str, dict[str, Any]],
    images: TinyImageNetAug,
    generator: ClipGenerator,
    journal: Journal,
    run_dir: Path,
    split: str,
    settings: GenerationSettings,
    stop: StopRequest,
) -> None:
    """Make the clips that are to be made and add their rows to `made`."""
    limit = BadClipLimit(settings.max_failed_fraction, len(todo) + len(made), journal.path, made.values())
    maker = ClipMaker(generator, settings, split_folders(settings.output_dir, split))
    stats = SessionStats(split, len(todo), generator.describe())

    def on_row(row: dict[str, Any]) -> None:
        made[row["video_path"]] = row
        limit.count(row)

    try:
        with journal, ClipWriter(maker, journal, on_row) as writer:
            clips = generate_chunks(todo, images, generator, writer, settings.chunk_size, stats, stop)
            for _ in progress(clips, len(todo), f"{split} clips", every=_SUMMARY_EVERY):
                limit.check()
        limit.check()
        stop.raise_if_set()
    finally:
        if stats.num_clips:
            append_session(run_dir, stats.summary(maker.round_trip_psnr_db))


def sort_out(
    tasks: list[ClipTask], rows: Iterable[dict[str, Any]], folders: SplitFolders, settings: GenerationSettings
) -> tuple[dict[str, dict[str, Any]], list[ClipTask]]:
    """Rows of earlier runs that stay, by clip, and the tasks that are left, each with the seed of its next attempt."""
    old = {row["video_path"]: row for row in rows}
    made: dict[str, dict[str, Any]] = {}
    todo = []
    for task in tasks:
        row = old.get(task.name)
        if row is not None and _is_final(row, task, folders, settings.retry_failed):
            made[task.name] = row
        else:
            todo.append(_next_attempt(task, row, settings))
    return made, todo


def plan_clips(images: TinyImageNetAug, settings: GenerationSettings) -> list[ClipTask]:
    """Every clip of these images, in index order, as a first attempt."""
    per_image = settings.clips_per_image
    num_total = images.num_total * per_image
    return [
        ClipTask(
            name=clip_name((images.first_position + position) * per_image + clip_number, num_total),
            source=source,
            position=position,
            clip_number=clip_number,
            attempt=0,
            seed=source.clip_seed(settings.seed, clip_number),
        )
        for position, source in enumerate(images.sources)
        for clip_number in range(per_image)
    ]


def _is_final(row: dict[str, Any], task: ClipTask, folders: SplitFolders, retry_failed: bool) -> bool:
    """Whether a row stays: of the image that has this place now, and its clip unchanged on disk, or given up."""
    if any(str(row[name]) != str(value) for name, value in asdict(task.source).items()):
        return False
    if row["status"] != STATUS_OK:
        return not retry_failed
    clip = folders.clips / row["video_path"]
    return clip.is_file() and sha256_file(clip) == row["sha256"]


def _next_attempt(task: ClipTask, row: dict[str, Any] | None, settings: GenerationSettings) -> ClipTask:
    """A task with the seed it is to be made from now.

    A clip that was made and rejected would come out the same again: it gets the next seed. One that failed without a
    clip, was damaged or belongs to another image keeps its own.
    """
    if row is None or any(str(row[name]) != str(value) for name, value in asdict(task.source).items()):
        return task
    attempt = int(row["attempt"] or 0)
    was_rejected = row["status"] not in (STATUS_OK, STATUS_FAILED) and bool(row["sha256"])
    attempt += was_rejected
    seed = task.source.clip_seed(settings.seed, task.clip_number, attempt)
    return ClipTask(task.name, task.source, task.position, task.clip_number, attempt, seed)


class BadClipLimit:
    """Ends a run that can no longer succeed, instead of spending a day on it."""

    def __init__(self, max_fraction: float, num_total: int, journal_path: Path, rows: Iterable[dict[str, Any]]) -> None:
        self._max_fraction, self._num_total, self._journal_path = max_fraction, num_total, journal_path
        self._num_bad, self._first = 0, ""
        for row in rows:
            self.count(row)

    def count(self, row: dict[str, Any]) -> None:
        """Look at one row."""
        if row["status"] != STATUS_OK:
            self._num_bad += 1
            self._first = self._first or f"{row['source_path']}: {row['reason']}"

    def check(self) -> None:
        """End here when too many were bad.

        Raises:
            InputError: with the first one's reason.
        """
        if self._num_bad > self._max_fraction * self._num_total:
            raise InputError(
                f"{self._journal_path}: {self._num_bad} of {self._num_total} clips failed, more than "
                f"max_failed_fraction={self._max_fraction:g}; the first: {self._first}; pass retry_failed=true "
                "to try them again, or raise max_failed_fraction"
            )
