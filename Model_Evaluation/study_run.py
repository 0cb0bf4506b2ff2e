"""Run a study: clips, a hold-out that all arms share, every arm, its scores; then tables, statistics, verdict, report.

Every stage runs through the same function as its script. What is finished is not done again, a failed arm is a row with
its reason, and a finished arm keeps its best weights only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from Baseline_VGG.training import run_training as train_baseline
from Data_Sourcing.image_set import read_image_set
from Inflated_3D_VGG.training import run_training as train_inflated
from Model_Evaluation.settings import EvaluationSettings
from Model_Evaluation.study_plan import ClipSet, PlannedRun, plan_clips, plan_runs
from Model_Evaluation.study_settings import StudySettings
from utils.artifacts import STUDY, write_table
from utils.config import build_settings
from utils.errors import InputError
from utils.hold_out import write_hold_out
from utils.indices import ItemIndex, locate_clip_index, read_clip_index
from utils.runs import open_run
from utils.sidecar import BEST_FILE
from utils.training_run import drop_state
from utils.training_time import read_training_seconds

log = logging.getLogger(__name__)
RESULTS, MEASURED_FOLDER, JOURNAL = "results", "measured", "study.csv"
_TRAINERS = {"baseline": train_baseline, "inflated": train_inflated}


@dataclass
class Journal:
    """The study's table: one row a run, on disk after every change."""

    path: Path
    runs: list[PlannedRun]
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)  # run -> status, reason

    def record(self, run: PlannedRun, status: str, reason: str = "") -> None:
        """Note what became of a run."""
        self.outcomes[run.run_id] = (status, reason)
        self.write()

    def write(self) -> None:
        """Write the table, unless it stands so already."""
        write_table([self._row(run) for run in self.runs], self.path, STUDY)

    def failures(self) -> list[tuple[PlannedRun, str]]:
        """Runs that have failed, and why."""
        return [(run, self.outcomes[run.run_id][1]) for run in self.runs if self.status(run) == "failed"]

    def status(self, run: PlannedRun) -> str:
        """`planned`, `done` or `failed`."""
        return self.outcomes.get(run.run_id, ("planned", ""))[0]

    def _row(self, run: PlannedRun) -> dict[str, object]:
        status, reason = self.outcomes.get(run.run_id, ("planned", ""))
        folder = self.path.parent / "runs" / run.run_id
        return {
            "run_id": run.run_id,
            "arm": run.arm_name,
            "num_frames": run.num_frames or 1,
            "seed": run.seed,
            "trained_as": run.arm.trained_as or "",
            "train_input": run.arm.train_input
            if run.clip_set is None
            else f"{run.arm.train_input}:{run.clip_set.kind}",
            "test_inputs": " ".join(run.arm.tests),
            "status": status,
            "reason": reason,
            "train_s": read_training_seconds(folder),
            "disk_mb": folder_bytes(folder) / 1e6 if folder.is_dir() else None,
        }


def run_study(study: StudySettings) -> Path | None:
    """Do everything that is not done yet; return the folder of the results, None after a dry run.

    Raises:
        InputError: settings that are wrong, arms that may not be compared, or no run that could be scored.
        ArmsFailed: everything else is done, and these arms have failed.
    """
    # 1. Plan.
    clips = plan_clips(study)
    runs = plan_runs(study, clips)
    from Model_Evaluation.study_estimate import print_plan

    print_plan(study, runs, clips)
    if study.dry_run:
        return None
    folder = open_run(study, owned=())
    folder.begin()
    journal = Journal(study.output_dir / JOURNAL, runs)
    journal.write()

    # 2. Clips, and the hold-out of the sources that all arms have.
    missing = make_clips(clips.values())
    share_hold_out(study, runs, clips, missing)

    # 3. Train and score, arm by arm.
    finished = ((run, _finish(run, study, missing, journal)) for run in runs)
    scored = {run: settings for run, settings in finished if settings is not None}
    if not scored:
        raise InputError(f"no arm could be scored; {JOURNAL} says why. The first: {journal.failures()[0][1]}")

    # 4. Everything that follows.
    results = write_results(study, scored)
    if failed := journal.failures():
        raise ArmsFailed(failed, study.output_dir / JOURNAL)
    return results


class ArmsFailed(Exception):
    """Some arms have failed; the others are done."""

    def __init__(self, failures: list[tuple[PlannedRun, str]], journal: Path) -> None:
        lines = [f"  {run.run_id}: {reason}" for run, reason in failures]
        super().__init__(f"{len(failures)} runs have failed ({journal}):\n" + "\n".join(lines))


def make_clips(sets: Mapping[tuple[str, int], ClipSet] | list[ClipSet]) -> dict[tuple[str, int], str]:
    """Make the clips that are not there; returns why some could not be made, by kind and number of frames."""
    from Data_Augmentation_SVD.generation import run_generation
    from Data_Augmentation_SVD.settings import GenerationSettings

    missing: dict[tuple[str, int], str] = {}
    for clips in sets:
        if clips.generation is None:
            continue
        try:
            checked = build_settings(
                GenerationSettings, clips.generation.model_dump(mode="json"), f"clips.{clips.kind}"
            )
            run_generation(checked)
        except Exception as error:
            missing[clips.kind, clips.num_frames] = _reason(error)
    return missing


def share_hold_out(
    study: StudySettings,
    runs: list[PlannedRun],
    clips: Mapping[tuple[str, int], ClipSet],
    missing: Mapping[tuple[str, int], str],
) -> None:
    """Draw the hold-out from the sources that all arms are trained on, so that none sees an image the others lack.

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


def _finish(
    run: PlannedRun, study: StudySettings, missing: Mapping[tuple[str, int], str], journal: Journal
) -> EvaluationSettings | None:
    """Train and score a run; returns how it was scored, None if it has failed."""
    from Model_Evaluation.evaluation import measure_models

    try:
        if run.clip_set is not None and (reason := missing.get((run.clip_set.kind, run.clip_set.num_frames))):
            raise InputError(f"no {run.clip_set.kind} clips: {reason}")
        if run.arm.trained_as is None:
            _train(run, study)
        reason = run.test_set and missing.get((run.test_set.kind, run.test_set.num_frames))
        scoring = scoring_settings(run, study, without_clips=bool(reason))
        measure_models(scoring)
    except Exception as error:
        log.warning("%s has failed: %s", run.run_id, _reason(error), exc_info=not isinstance(error, InputError))
        journal.record(run, "failed", _reason(error))
        return None
    journal.record(run, "done", f"not scored on {run.test_set.kind} clips: {reason}" if reason else "")
    return scoring


def _train(run: PlannedRun, study: StudySettings) -> None:
    checked = build_settings(type(run.settings), run.settings.model_dump(mode="json"), f"arm {run.run_id}")
    log.info("%s: training", run.run_id)
    _require_all_sources(run, study)
    _TRAINERS[run.arm.network](checked)
    drop_state(checked.output_dir)


def _require_all_sources(run: PlannedRun, study: StudySettings) -> None:
    """An arm that came later may lack sources that the others were trained on."""
    path = study.output_dir / "hold_out.csv"
    if run.clip_set is None or run.arm.is_paper or not path.exists():
        return
    from utils.artifacts import HOLD_OUT, read_table

    listed, known = (
        set(read_table(path, HOLD_OUT)["source_sha256"]),
        set(read_training_clips(run.clip_set).source_hashes),
    )
    if lacking := listed - known:
        raise InputError(
            f"{len(lacking)} of the {len(listed)} sources of {path} have no {run.clip_set.kind} clip: the arm would be "
            "trained on less than the others; make those clips, or begin a new study"
        )


def scoring_settings(run: PlannedRun, study: StudySettings, *, without_clips: bool = False) -> EvaluationSettings:
    """What `Model_Evaluation.evaluate` would be given for one run."""
    checkpoint = study.output_dir / "runs" / run.weights_of / BEST_FILE
    models = [
        {
            "name": run.test_id(test),
            "type": run.arm.network,
            "checkpoint": str(checkpoint),
            "input": test,
            "arm": run.arm_name,
        }
        for test in run.arm.tests
    ]
    data = {"images_root": str(study.images_root), "batch_size": study.scoring.batch_size, "workers": study.workers}
    data["cache_dir"] = str(study.output_dir / "cache")
    if run.test_set is not None and not without_clips:
        data |= {
            "root": str(run.test_set.root),
            "val_csv": str(run.test_set.val_csv),
            "num_frames": run.test_set.num_frames,
        }
    raw = {
        "models": [model for model in models if not without_clips or model["input"].startswith("original")],
        "data": data,
        "output_dir": str(study.output_dir / MEASURED_FOLDER / run.run_id),
        "latency": study.scoring.latency.model_dump(mode="json"),
        "end_to_end": _end_to_end(run, study),
        "precision": study.scoring.precision,
        "device": study.device,
    }
    return build_settings(EvaluationSettings, raw, f"scoring of {run.run_id}")


def _end_to_end(run: PlannedRun, study: StudySettings) -> dict[str, object] | None:
    given = study.scoring.end_to_end
    return None if given is None or run.seed != study.seeds[0] else given.model_dump(mode="json")


def write_results(study: StudySettings, scored: Mapping[PlannedRun, EvaluationSettings]) -> Path:
    """All runs' measured tables in one folder, and everything that follows from them."""
    from Model_Evaluation.derived import DONE_FILE, format_summary, write_derived
    from Model_Evaluation.evaluation import merge_measured
    from Model_Evaluation.study_pictures import Gallery, copy_curves, draw_pictures

    results = study.output_dir / RESULTS
    changed = merge_measured([study.output_dir / MEASURED_FOLDER / run.run_id for run in scored], results)
    if changed or not (results / DONE_FILE).exists():
        (results / DONE_FILE).unlink(missing_ok=True)  # written last: what stands without it is made again
        gallery = Gallery(scored.values())
        first = [run for run in scored if run.seed == study.seeds[0]]
        copy_curves((study.output_dir / "runs" / run.run_id for run in first), results / "figures")
        num_pictures = study.scoring.num_pictures
        write_derived(results, results, lambda tables, folder: draw_pictures(gallery, tables, folder, num_pictures))
    print(format_summary(results))
    return results


def folder_bytes(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _reason(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
