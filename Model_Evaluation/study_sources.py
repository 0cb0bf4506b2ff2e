"""The images that all arms of a study are trained on, and the hold-out drawn from them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from Data_Sourcing.image_set import read_image_set
from Model_Evaluation.study_plan import ClipSet, PlannedRun
from Model_Evaluation.study_settings import StudySettings
from utils.artifacts import HOLD_OUT, read_table
from utils.errors import InputError
from utils.hold_out import write_hold_out
from utils.indices import ItemIndex, locate_clip_index, read_clip_index

log = logging.getLogger(__name__)


def share_hold_out(
    study: StudySettings,
    runs: list[PlannedRun],
    clips: Mapping[tuple[str, int], ClipSet],
    missing: Mapping[tuple[str, int], str],
) -> None:
    """Draw the hold-out from the sources that all arms are trained on, so that none sees an image the others lack.

    Clips that could not be made have no say: their arms can join later if they then have every source.

    Raises:
        InputError: clips whose sources are unknown, or no source that all share.
    """
    path = study.output_dir / "hold_out.csv"
    matched = [run for run in runs if not run.arm.is_paper and run.settings.selection == "hold_out"]
    if path.exists() or not matched:
        return
    indices = [read_image_set(study.images_root, "train")]
    used = {(run.clip_set.kind, run.clip_set.num_frames) for run in matched if run.clip_set is not None}
    indices += [read_training_clips(clips[key]) for key in sorted(used) if key not in missing]
    shared = common_sources(indices)
    rule = matched[0].settings.hold_out
    log.info("%d of %d images are in every arm's training set", len(shared), len(indices[0]))
    write_hold_out(shared, path, fraction=rule.fraction, seed=rule.seed)


def common_sources(indices: list[ItemIndex]) -> dict[str, int]:
    """The sources that all indices have: SHA-256 -> label.

    Raises:
        InputError: an index that knows no sources, or none that all share.
    """
    shared = dict(zip(indices[0].source_ids, indices[0].labels, strict=True))
    for index in indices[1:]:
        known = set(index.source_hashes) - {""}
        if not known:
            raise InputError(
                f"{index.index_path}: names no sources (source_sha256), so that arms cannot share a training set; run "
                "Data_Augmentation_SVD.adopt_published on published clips and give its indices"
            )
        shared = {source: label for source, label in shared.items() if source in known}
        if not shared:
            raise InputError(
                f"{index.index_path}: has no source in common with {indices[0].index_path}; use clips of these images"
            )
    return shared


def read_training_clips(clips: ClipSet) -> ItemIndex:
    """The index of a clip set's training split; its files are not read."""
    index_path, root = locate_clip_index(clips.root, clips.train_csv, "train")
    return read_clip_index(index_path, root, num_frames=clips.num_frames, verify=False)


def require_given_clips(sets: Iterable[ClipSet]) -> None:
    """Look at the indices of clips that are there, before anything is made.

    Raises:
        InputError: an index that is missing or malformed, or clips of another length; names the kind of clips.
    """
    for clips in sets:
        if clips.generation is not None:
            continue
        for split, csv_path in (("train", clips.train_csv), ("val", clips.val_csv)):
            try:
                place = locate_clip_index(clips.root, csv_path, split)
                read_clip_index(*place, num_frames=clips.num_frames, verify=False)
            except InputError as error:
                raise InputError(f"clips.{clips.kind}: {error}") from None


def require_all_sources(run: PlannedRun, study: StudySettings) -> None:
    """An arm that came later may lack sources that the others were trained on."""
    path = study.output_dir / "hold_out.csv"
    if run.clip_set is None or run.arm.is_paper or not path.exists():
        return
    listed = set(read_table(path, HOLD_OUT)["source_sha256"])
    if lacking := listed - set(read_training_clips(run.clip_set).source_hashes):
        raise InputError(
            f"{len(lacking)} of the {len(listed)} sources of {path} have no {run.clip_set.kind} clip: the arm would be "
            "trained on less than the others; make those clips, or begin a new study"
        )
