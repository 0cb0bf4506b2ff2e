"""Adopt the published clips: name each one's source image, say how sure that is, and write indices the stages read."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from Data_Augmentation_SVD.adoption_inputs import (
    SPLITS,
    PublishedClips,
    describe_inputs,
    read_classes,
    read_published_clips,
    read_sources,
    require_val_order,
)
from Data_Augmentation_SVD.adoption_tables import (
    BY_ORDER,
    BY_SIMILARITY,
    MATCHES,
    DecodedClips,
    Pairing,
    build_index_rows,
    build_match_rows,
    count_pairings,
)
from Data_Augmentation_SVD.clip_checks import one_line
from Data_Augmentation_SVD.settings import AdoptionSettings
from Data_Augmentation_SVD.source_matching import (
    DETAIL_PX,
    Match,
    compute_frame_detail,
    compute_similarities,
    compute_source_detail,
    judge_candidate,
    match_one_to_one,
)
from utils.artifacts import CLIP_INDEX, STATUS_FAILED, STATUS_OK, write_table
from utils.clips import read_clip
from utils.errors import InputError
from utils.files import sha256_file, write_text
from utils.images import ImageError, read_rgb_image
from utils.indices import ItemIndex, require_same_classes
from utils.runs import open_run
from utils.utils import progress

log = logging.getLogger(__name__)

_LAST_FILE = "train.csv"  # written last
_OWNED = ("matches_train.csv", "matches_val.csv", "summary.json", "val.csv", _LAST_FILE)


def run_adoption(settings: AdoptionSettings) -> list[Path]:
    """Find the clips' sources and write the indices; nothing is written below `clips_root`.

    Returns:
        the clip indices of train and val.

    Raises:
        InputError: bad settings or data, or val clips that contradict the annotations.
    """
    classes = read_classes(settings)
    run = open_run(
        settings,
        owned=_OWNED,
        inputs=describe_inputs(settings, classes),
        free_keys=("clips_root", "raw_root", "wnids_file"),
        redone_without=_LAST_FILE,
    )
    indices = [run.dir / f"{split}.csv" for split in SPLITS]
    if run.is_done(_LAST_FILE):
        log.info("%s is complete; nothing to do", run.dir)
        return indices
    clips = {split: read_published_clips(settings.clips_root, split, len(classes)) for split in SPLITS}
    images = {split: read_sources(settings.raw_root, split, classes) for split in SPLITS}
    require_same_classes(images["train"].classes, "the train images", images["val"].classes, "the val images")
    require_val_order(clips["val"], images["val"])
    found = find_sources(clips, images, settings)
    run.begin()
    summary = write_results(clips, images, found, run.dir)
    _log_summary(summary, settings, indices)
    return indices


@dataclass(frozen=True)
class FoundSources:
    """What the clips of each split hold and whose they are; `val_check` is how often blind matching was right."""

    decoded: dict[str, DecodedClips]
    pairings: dict[str, list[Pairing]]
    val_check: dict[str, dict[str, int]]


def find_sources(
    clips: dict[str, PublishedClips], images: dict[str, ItemIndex], settings: AdoptionSettings
) -> FoundSources:
    """Decode, compare, pair.

    Raises:
        InputError: too many damaged clips, or val clips that are not their images'.
    """
    decoded = {split: decode_clips(clips[split], settings.max_failed_fraction) for split in SPLITS}
    details = {split: compute_image_details(images[split], split) for split in SPLITS}
    val_pairings, val_check = pair_val(clips["val"], decoded["val"], images, details, settings)
    train_pairings = pair_train(clips["train"], decoded["train"], images["train"], details["train"], settings)
    return FoundSources(decoded, {"train": train_pairings, "val": val_pairings}, val_check)


def write_results(
    clips: dict[str, PublishedClips], images: dict[str, ItemIndex], found: FoundSources, run_dir: Path
) -> dict[str, dict[str, Any]]:
    """Write tables and summary, the train index last; returns the summary."""
    for split in SPLITS:
        rows = build_match_rows(clips[split], images[split], found.pairings[split])
        write_table(rows, run_dir / f"matches_{split}.csv", MATCHES)
    counts = {split: count_pairings(found.decoded[split], found.pairings[split]) for split in SPLITS}
    summary = counts | {"check_on_val": found.val_check}
    write_text(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    for split in reversed(SPLITS):
        rows = build_index_rows(clips[split], found.decoded[split].facts, images[split], found.pairings[split])
        write_table(rows, run_dir / f"{split}.csv", CLIP_INDEX)
    return summary


def decode_clips(clips: PublishedClips, max_failed_fraction: float) -> DecodedClips:
    """Decode every clip; a damaged one is a row with status `failed`.

    Raises:
        InputError: more are damaged than `max_failed_fraction` allows.
    """
    details = np.zeros((len(clips), DETAIL_PX, DETAIL_PX), np.float32)
    facts = []
    name = f"{clips.index_path.stem} clips"
    for position, path in enumerate(progress(clips.paths, len(clips), name, every=1000)):
        fact = {"sha256": sha256_file(path), "num_frames": None, "height": None, "width": None}
        try:
            frames = read_clip(path)
            fact |= dict(zip(("num_frames", "height", "width"), frames.shape[:3], strict=True))
            details[position] = compute_frame_detail(frames[0])
            fact |= {"status": STATUS_OK, "reason": ""}
        except InputError as error:
            reason = one_line(str(error).replace(str(path), path.name))
            fact |= {"status": STATUS_FAILED, "reason": reason}
        facts.append(fact)
    failed = [fact["reason"] for fact in facts if fact["status"] == STATUS_FAILED]
    if len(failed) > max_failed_fraction * len(clips):
        raise InputError(
            f"{clips.index_path}: {len(failed)} of {len(clips)} clips are damaged, more than max_failed_fraction="
            f"{max_failed_fraction:g}, the first: {failed[0]}"
        )
    return DecodedClips(details, facts)


def compute_image_details(images: ItemIndex, split: str) -> np.ndarray:
    """float32 (M, 56, 56); zeros, which are like nothing, for an image that cannot be decoded."""
    details = np.zeros((len(images), DETAIL_PX, DETAIL_PX), np.float32)
    for position, path in enumerate(progress(images.paths, len(images), f"{split} images", every=1000)):
        try:
            details[position] = compute_source_detail(read_rgb_image(path))
        except ImageError as error:
            log.warning("%s; its clip stays without a confirmed source", error)
    return details


def pair_train(
    clips: PublishedClips, decoded: DecodedClips, images: ItemIndex, details: np.ndarray, settings: AdoptionSettings
) -> list[Pairing]:
    """Pair clips with images of their class by similarity; the order within a class is unknown."""
    pairings: dict[int, Pairing] = {}
    for own_clips, own_images in progress(_by_class(clips, images), len(images.classes), "train classes", every=1):
        similarities = compute_similarities(decoded.details[own_clips], details[own_images])
        matches = match_one_to_one(similarities, settings.min_similarity, settings.min_margin)
        for clip, local in zip(own_clips, matches, strict=True):
            match = _in_split(local, own_images)
            source = match.candidate if match.is_match else None
            found = Pairing(source, BY_SIMILARITY if match.is_match else "", match, match.reason)
            pairings[clip] = _unless_damaged(found, decoded.facts[clip])
    return [pairings[clip] for clip in range(len(clips))]


def pair_val(
    clips: PublishedClips,
    decoded: DecodedClips,
    images: dict[str, ItemIndex],
    details: dict[str, np.ndarray],
    settings: AdoptionSettings,
) -> tuple[list[Pairing], dict[str, dict[str, int]]]:
    """Pair the i-th clip with the i-th image, and see whether matching by similarity would have found the same.

    Returns:
        the pairings, and how often blind matching was right and wrong: among the val images of the class, and with its
        train images as distractors.

    Raises:
        InputError: a clip that is another val image's, or too few that resemble their own.
    """
    limits = (settings.min_similarity, settings.min_margin)
    pairings: dict[int, Pairing] = {}
    check = {name: {"num_matched": 0, "num_wrong": 0} for name in ("blind", "with_train_images")}
    distractors = np.array(images["train"].labels)
    for own, own_images in progress(_by_class(clips, images["val"]), len(images["val"].classes), "val classes", 1):
        label = clips.labels[own[0]]
        candidates = np.concatenate([details["val"][own_images], details["train"][distractors == label]])
        similarities = compute_similarities(decoded.details[own], candidates)
        among_own = similarities[:, : len(own)]
        blind = match_one_to_one(among_own, *limits)
        _require_no_contradiction(clips, images["val"], own, blind)
        _count_right_and_wrong(check["blind"], blind)
        _count_right_and_wrong(check["with_train_images"], match_one_to_one(similarities, *limits))
        for clip, pairing in zip(own, _pair_by_place(own_images, among_own, limits), strict=True):
            pairings[clip] = _unless_damaged(pairing, decoded.facts[clip])
    _require_likeness(clips, images["val"], pairings)
    return [pairings[clip] for clip in range(len(clips))], check


def _pair_by_place(positions: list[int], similarities: np.ndarray, limits: tuple[float, float]) -> list[Pairing]:
    """Each clip of a class with the image that has its place; similarity says whether that is confirmed."""
    pairings = []
    for place, (position, row) in enumerate(zip(positions, similarities, strict=True)):
        match = _in_split(judge_candidate(row, place, *limits), positions)
        pairings.append(Pairing(position, BY_SIMILARITY if match.is_match else BY_ORDER, match, match.reason))
    return pairings


def _by_class(clips: PublishedClips, images: ItemIndex) -> list[tuple[list[int], list[int]]]:
    """Positions of the clips and of the images of each class that has clips."""
    clip_labels, image_labels = np.array(clips.labels), np.array(images.labels)
    pairs = [(np.flatnonzero(clip_labels == k), np.flatnonzero(image_labels == k)) for k in range(len(images.classes))]
    return [(own_clips.tolist(), own_images.tolist()) for own_clips, own_images in pairs if len(own_clips)]


def _in_split(match: Match, positions: list[int]) -> Match:
    """A match among the images of a class, with positions among the images of the split."""
    runner_up = None if match.runner_up is None else positions[match.runner_up]
    return replace(match, candidate=positions[match.candidate], runner_up=runner_up)


def _unless_damaged(pairing: Pairing, fact: dict[str, Any]) -> Pairing:
    return pairing if fact["status"] == STATUS_OK else Pairing(None, "", None, fact["reason"])


def _require_no_contradiction(clips: PublishedClips, images: ItemIndex, own: list[int], blind: list[Match]) -> None:
    for place, (clip, match) in enumerate(zip(own, blind, strict=True)):
        if match.is_match and match.candidate != place:
            named, found = (images.table["image_path"][own[position]] for position in (place, match.candidate))
            raise InputError(
                f"{clips.index_path} line {clips.lines[clip]}: {clips.names[clip]} has the place of {named} but shows "
                f"{found} (similarity {match.similarity:g}); restore the published order of the val clips"
            )


def _require_likeness(clips: PublishedClips, images: ItemIndex, pairings: dict[int, Pairing]) -> None:
    num_alike = sum(pairing.matched_by == BY_SIMILARITY for pairing in pairings.values())
    if num_alike < len(clips) / 2:
        raise InputError(
            f"{clips.index_path}: only {num_alike} of {len(clips)} clips resemble the image that their place names in "
            f"{images.index_path}; give the published clips and their images, or lower min_similarity"
        )


def _count_right_and_wrong(counts: dict[str, int], matches: list[Match]) -> None:
    """Count matches that pass the thresholds; the own image is the one at the clip's own place."""
    counts["num_matched"] += sum(match.is_match for match in matches)
    counts["num_wrong"] += sum(match.is_match and match.candidate != place for place, match in enumerate(matches))


def _log_summary(summary: dict[str, dict[str, Any]], settings: AdoptionSettings, indices: list[Path]) -> None:
    for name, counts in summary["check_on_val"].items():
        report = log.warning if counts["num_wrong"] else log.info
        total = summary["val"]["num_clips"]
        text = "matching val %s as if the order were unknown: %d of %d matched, %d of them wrongly"
        report(text, name.replace("_", " "), counts["num_matched"], total, counts["num_wrong"])
    for split in SPLITS:
        log.info(
            "%s: %d clips, %d matched (%d by their place alone), %d unmatched (kept, without a source), %d damaged",
            split,
            *summary[split].values(),
        )
    log.info("use data_root=%s train_csv=%s val_csv=%s", settings.clips_root, *indices)
