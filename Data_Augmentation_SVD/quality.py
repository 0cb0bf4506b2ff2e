"""Clip quality: measure every clip, then write tables, contact sheet, previews and, last, the summary."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from Data_Augmentation_SVD.contact_sheet import SheetRow, draw_contact_sheet, encode_preview, shrink_row
from Data_Augmentation_SVD.quality_clips import (
    ListedClip,
    LoadedClip,
    find_images_root,
    list_clips,
    load_clip,
    read_geometry,
    require_sources,
)
from Data_Augmentation_SVD.quality_tables import (
    CLIP_QUALITY,
    CLIP_SUMMARY,
    FrameMeans,
    compute_clip_row,
    compute_frame_rows,
    compute_summary,
    worst_first,
)
from Data_Augmentation_SVD.settings import ClipQualitySettings
from utils.artifacts import format_table, write_table
from utils.errors import InputError
from utils.files import atomic_path, write_bytes, write_text
from utils.images import encode_png
from utils.indices import locate_clip_index
from utils.runs import Run, open_run
from utils.utils import progress

log = logging.getLogger(__name__)
SUMMARY_FILE = "summary.json"  # written last: where it stands, everything does
OWNED_FILES = ("clip_quality.csv", "clip_summary.csv", "contact_sheet.png", "previews", SUMMARY_FILE)
_LOG_EVERY = 100
Rows = list[dict[str, Any]]


def run_clip_quality(settings: ClipQualitySettings) -> Path:
    """Measure the clips of one split.

    Returns:
        the folder with `clip_quality.csv` (a row per frame), `clip_summary.csv` (a row per clip), `contact_sheet.png`,
        `previews/` and `summary.json`.

    Raises:
        InputError: a malformed index, sources that are nowhere, or no clip that can be measured.
    """
    split_csv = settings.clips_csv or Path(f"{settings.split}.csv")
    index_path, clips_dir = locate_clip_index(settings.clips_root, split_csv, settings.split)
    geometry = read_geometry(settings)
    clips = list_clips(index_path, settings.max_clips)
    settings = settings.model_copy(update={"images_root": find_images_root(settings, clips)})
    run = _open_run(settings, index_path, geometry.model_dump_json())
    if run.is_done(SUMMARY_FILE):
        log.info("%s: all clips are measured; nothing to do", run.dir)
        return run.dir
    require_sources(clips, settings.images_root, index_path)
    load = partial(load_clip, clips_dir=clips_dir, images_root=settings.images_root, geometry=geometry)
    run.begin()
    with atomic_path(run.dir / "clip_quality.csv") as frames_path:
        clip_rows, frame_means = measure_clips(clips, load, settings, frames_path)
        if not any(row["rank"] for row in clip_rows):
            raise InputError(f"{index_path}: no clip can be measured; the first: {clip_rows[0]['reason']}")
    write_table(clip_rows, run.dir / "clip_summary.csv", CLIP_SUMMARY)
    write_pictures(run.dir, clips, clip_rows, load, settings)
    summary = {"split": settings.split, "geometry": geometry.model_dump()} | compute_summary(frame_means, clip_rows)
    write_text(run.dir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    _log_summary(summary, run.dir)
    return run.dir


def measure_clips(
    clips: list[ListedClip], load: Callable[[ListedClip], LoadedClip], settings: ClipQualitySettings, frames_path: Path
) -> tuple[Rows, FrameMeans]:
    """Write the rows of `clip_quality.csv` as they come; return those of `clip_summary.csv`, in the index's order.

    Only the latter stay in memory, because the worst clips are known at the end: 1 kB a clip.
    """
    clip_rows: Rows = []
    frame_means = FrameMeans()
    with frames_path.open("w", encoding="utf-8", newline="") as file:
        file.write(format_table([], CLIP_QUALITY))
        for clip in progress(map(load, clips), len(clips), f"{settings.split} clips", every=_LOG_EVERY):
            frame_rows = compute_frame_rows(clip)
            file.write(format_table(frame_rows, CLIP_QUALITY, header=False))
            frame_means.add(frame_rows)
            clip_rows.append(compute_clip_row(clip, frame_rows, settings.checks))
    for rank, position in enumerate(worst_first(clip_rows), start=1):
        clip_rows[position]["rank"] = rank
    return clip_rows, frame_means


def write_pictures(
    output_dir: Path,
    clips: list[ListedClip],
    clip_rows: Rows,
    load: Callable[[ListedClip], LoadedClip],
    settings: ClipQualitySettings,
) -> None:
    """The contact sheet and the previews of the worst clips, which are read again: all would not fit into memory."""
    ranked = sorted((row["rank"], position) for position, row in enumerate(clip_rows) if row["rank"])
    sheet = []
    for rank, position in ranked[: max(settings.sheet_clips, settings.num_previews)]:
        clip = load(clips[position])
        row = SheetRow(_captions(clip_rows[position]), clip.source_view, clip.frames)
        if rank <= settings.num_previews:
            name = PurePosixPath(clips[position].video_path).with_suffix("").as_posix().replace("/", "_")
            write_bytes(output_dir / "previews" / f"{rank:03d}_{name}.gif", encode_preview(row))
        if rank <= settings.sheet_clips:
            sheet.append(shrink_row(row))
    if sheet:
        write_bytes(output_dir / "contact_sheet.png", encode_png(draw_contact_sheet(sheet)))


def _open_run(settings: ClipQualitySettings, index_path: Path, geometry: str) -> Run:
    # Sources that are gone since make no result worse; new ones would add to it.
    sources = {} if settings.images_root is None else {"sources": "given"}
    return open_run(
        settings,
        owned=OWNED_FILES,
        inputs={"clip_index": index_path, "geometry": geometry} | sources,
        free_keys=("clips_csv", "images_root", "geometry", "geometry.*"),  # the inputs say what matters of them
        redone_without=SUMMARY_FILE,
    )


def _captions(row: dict[str, Any]) -> list[str]:
    """What stands beside a clip on the contact sheet."""
    values = (
        ("source corr. min", row["source_correlation_min"], ".2f"),
        ("PSNR dB", row["psnr_db_mean"], ".1f"),
        ("SSIM", row["ssim_mean"], ".2f"),
        ("first-last corr.", row["first_last_correlation"], ".2f"),
        ("energy last/first", row["gradient_energy_ratio"], ".2f"),
        ("flow px", row["flow_px_mean"], ".1f"),
    )
    lines = [f"{row['rank']}. {row['video_path']}", row["class_name"]]
    lines += [f"{name} {value:{form}}" for name, value, form in values if not math.isnan(value)]
    return [*lines, row["fault"].split(":")[0]] if row["fault"] else lines


def _log_summary(summary: dict[str, Any], output_dir: Path) -> None:
    faults = ", ".join(f"{count} {name}" for name, count in summary["faults"].items()) or "none"
    log.info(
        "%d of %d clips measured, %d with a source; faults: %s",
        summary["num_measured"],
        summary["num_clips"],
        summary["num_with_source"],
        faults,
    )
    energies = " / ".join(f"{frame['gradient_energy']:.1f}" for frame in summary["frame_means"])
    log.info("gradient energy by frame %s: %s", energies, output_dir)
