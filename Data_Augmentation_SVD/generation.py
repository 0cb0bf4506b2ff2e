"""Make clips of every image of a split: clip first, then its journal row, then the index; a kill loses what is at hand.

Three things happen at once: a thread reads the next chunk of images, this one generates, another writes what is done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from Data_Augmentation_SVD.chunks import generate_chunks
from Data_Augmentation_SVD.clip_plan import find_finished, is_final, plan_clips
from Data_Augmentation_SVD.clip_writer import ClipMaker, ClipTask, ClipWriter
from Data_Augmentation_SVD.dataset_card import write_dataset_card
from Data_Augmentation_SVD.generation_stats import STATS_FILE, SessionStats, append_session
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipGenerator
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Augmentation_SVD.shards import FREE_KEYS, find_changed_weights, open_shard, parse_shard, refuse_unmerged
from Data_Augmentation_SVD.split_files import (
    Journal,
    SplitFolders,
    iterate_index_rows,
    journal_name,
    read_index_rows,
    split_folders,
)
from Data_Augmentation_SVD.tiny_imagenet_aug import TinyImageNetAug
from Data_Sourcing.image_set import image_set_inputs
from utils.artifacts import CLIP_INDEX, STATUS_OK, write_table
from utils.errors import InputError, StopRequest
from utils.files import remove_partial_files
from utils.runs import Run, open_run, read_environment
from utils.utils import progress

log = logging.getLogger(__name__)
_SUMMARY_EVERY = 200
_SLIVER = 0.1  # of an image's area: what is left of it in the centre is hardly a picture of it


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
    images = {
        split: TinyImageNetAug(settings.data_root, split, settings.wnids_file, shard) for split in settings.splits
    }
    if run.is_done(*(index.name for index in indices)) and all(
        _is_whole(run.dir, split, images[split], settings) for split in settings.splits
    ):
        log.info("%s: all clips are made; nothing to do", run.dir)
        if shard == (1, 1):
            write_dataset_card(settings.output_dir)  # a run killed right before its card
        return indices
    generator = CLIP_GENERATORS[settings.generator](settings)  # weights that cannot be had are no bad clips
    _require_same_weights(run, generator.describe())
    run.begin(generator.describe())
    remove_partial_files(run.dir)
    with StopRequest() as stop:
        for split in settings.splits:
            generate_split(SplitJob(split, images[split], generator, run.dir, settings, stop))
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
    refuse_unmerged(settings.output_dir)
    return open_run(settings, owned=_files_of(("train", "val")), replaced=_files_of(settings.splits), **options)


def _files_of(splits: Sequence[str]) -> tuple[str, ...]:
    names = (name for split in splits for name in (f"{split}.csv", journal_name(split), split, f"quarantine/{split}"))
    return (*names, STATS_FILE)


def _merge_command(settings: GenerationSettings) -> str:
    return f"Data_Augmentation_SVD.merge_shards output_dir={settings.output_dir}"


def _is_whole(run_dir: Path, split: str, images: TinyImageNetAug, settings: GenerationSettings) -> bool:
    """Whether an index stands, its journal is gone, and it names every clip of these images, as it is on disk."""
    if (run_dir / journal_name(split)).exists():
        return False
    tasks = plan_clips(images, settings)
    rows = iterate_index_rows(run_dir / f"{split}.csv")
    folders = split_folders(settings.output_dir, split)
    return all(
        task is not None
        and row is not None
        and row["video_path"] == task.name
        and is_final(row, task, folders, settings.retry_failed)
        for task, row in zip_longest(tasks, rows)
    )


def _require_same_weights(run: Run, device: dict[str, Any]) -> None:
    """A hub's branch may have moved, or `auto` have become another type, since a run that is now resumed.

    Raises:
        InputError: naming what differs.
    """
    recorded = (
        read_environment(run.dir / "environment.json").get("device") if run.resumes and not run.replaces else None
    )
    if changed := find_changed_weights(recorded or {}, device):
        raise InputError(
            f"{run.dir} was begun with other weights ({'; '.join(changed)}); set model_revision and svd.dtype to what "
            "it was begun with, choose another output_dir, or pass overwrite=true"
        )


@dataclass(frozen=True)
class SplitJob:
    """One split's clips, to be made in one run folder."""

    split: str
    images: TinyImageNetAug
    generator: ClipGenerator
    run_dir: Path
    settings: GenerationSettings
    stop: StopRequest

    @property
    def folders(self) -> SplitFolders:
        """Where the clips go."""
        return split_folders(self.settings.output_dir, self.split)

    @property
    def chunk_size(self) -> int:
        """Images a chunk, in whole batches: a part of a batch costs as much as all of it."""
        batch_size = self.settings.batch_size
        return -(-self.settings.chunk_size // batch_size) * batch_size


def generate_split(job: SplitJob) -> Path:
    """Generate one split's clips and write its index last; what a killed run has made is kept.

    A clip that is missing or damaged is made again, and one whose source has changed since.

    Raises:
        InputError: more clips are bad than `max_failed_fraction` allows.
        Terminated: SIGTERM has come.
    """
    journal, index_path = Journal(job.run_dir / journal_name(job.split)), job.run_dir / f"{job.split}.csv"
    tasks = plan_clips(job.images, job.settings)
    made, todo = find_finished(tasks, (*read_index_rows(index_path), *journal.rows()), job.folders, job.settings)
    if made:
        log.info("%s: %d of %d clips are there already", job.split, len(made), len(tasks))
    _make_clips(job, todo, made, journal)
    rows = [made[task.name] for task in tasks]
    job.folders.clips.mkdir(parents=True, exist_ok=True)  # also where no clip is good
    write_table(rows, index_path, CLIP_INDEX)
    journal.remove()
    log.info("%d clips (%d bad): %s", len(rows), sum(row["status"] != STATUS_OK for row in rows), index_path)
    slivers = sum(row["visible_fraction"] is not None and row["visible_fraction"] < _SLIVER for row in rows)
    if slivers:
        log.warning("%d clips show less than a tenth of their image; see visible_fraction", slivers)
    return index_path


def _make_clips(job: SplitJob, todo: list[ClipTask], made: dict[str, dict[str, Any]], journal: Journal) -> None:
    """Make the clips that are to be made and add their rows to `made`."""
    limit = BadClipLimit(job.settings.max_failed_fraction, len(todo) + len(made), journal.path, made.values())
    maker = ClipMaker(job.generator, job.settings, job.folders)
    stats = SessionStats(job.split, len(todo), job.generator.describe())

    def on_row(row: dict[str, Any]) -> None:
        made[row["video_path"]] = row
        limit.count(row)
        stats.count_written()

    try:
        with journal, ClipWriter(maker, journal, on_row) as writer:
            chunks = generate_chunks(todo, job.images, job.generator, writer, job.chunk_size, stats, job.stop)
            with closing(chunks):
                for _ in progress(chunks, len(todo), f"{job.split} clips", every=_SUMMARY_EVERY):
                    limit.check()
        limit.check()
        job.stop.raise_if_set()
    finally:
        if stats.num_clips:
            with suppress(OSError):  # on a full disk, the first error is the one to tell
                append_session(job.run_dir, stats.summary(maker.round_trip_psnr_db))


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
