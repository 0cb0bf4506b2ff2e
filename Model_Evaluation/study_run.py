"""Run a study: clips, a hold-out that all arms share, every arm, its scores; then tables, statistics, verdict, report.

Every stage runs through the same function as its script. What is finished is not done again, a failed arm is a row with
its reason, and a finished arm keeps its best weights only.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from Baseline_VGG.training import run_training as train_baseline
from Inflated_3D_VGG.training import run_training as train_inflated
from Model_Evaluation.settings import EvaluationSettings
from Model_Evaluation.study_journal import ArmsFailed, Journal, describe_shortfalls
from Model_Evaluation.study_plan import ClipSet, PlannedRun, is_trained, plan_clips, plan_runs
from Model_Evaluation.study_settings import ArmsSettings, StudySettings
from Model_Evaluation.study_sources import require_all_sources, require_given_clips, share_hold_out
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.runs import SettingsChanged, open_run, remove_owned
from utils.sidecar import BEST_FILE
from utils.training_run import drop_state
from Video_Models.training import run_training as train_video

log = logging.getLogger(__name__)
RESULTS, MEASURED_FOLDER, JOURNAL = "results", "measured", "study.csv"
_TRAINERS = {"baseline": train_baseline, "inflated": train_inflated, "video": train_video}
_SettingsOf = Callable[[PlannedRun, str, Any], EvaluationSettings]
_Draw = Callable[[Any, dict[str, Any], Path, int], None]


def run_study(study: StudySettings) -> Path | None:
    """Do everything that is not done yet; return the folder of the results, None after a dry run.

    Raises:
        InputError: settings that are wrong, arms that may not be compared, or no run that could be scored.
        ArmsFailed: everything else is done, and these arms have failed.
    """
    # 1. Plan.
    clips = plan_clips(study)
    runs = plan_runs(study, clips)
    require_given_clips(clips.values())
    folder = None if study.dry_run else open_run(study, owned=())
    from Model_Evaluation.study_estimate import print_plan

    print_plan(study, runs, clips)
    if folder is None:
        return None
    forget_other_pictures(study)
    folder.begin()
    journal = Journal(study.output_dir / JOURNAL, runs)

    # 2. Clips, and the hold-out of the sources that all arms have.
    missing = make_clips(clips.values())
    share_hold_out(study, runs, clips, missing)

    # 3. Train and score, arm by arm.
    scored = finish_runs(runs, study, journal, scoring_settings, missing)

    # 4. Everything that follows.
    from Model_Evaluation.study_pictures import draw_pictures

    results = write_results(study, scored, draw_pictures)
    if shortfalls := journal.shortfalls():
        raise ArmsFailed(shortfalls, journal.path)
    return results


def forget_other_pictures(study: ArmsSettings) -> None:
    """Have finished results made again where `scoring.num_pictures` is another than the one they were drawn with."""
    from Model_Evaluation.derived import DONE_FILE

    path, default = study.output_dir / "config.yaml", type(study.scoring).model_fields["num_pictures"].default
    if not path.exists():
        return
    drawn = read_yaml(path).get("scoring", {}).get("num_pictures", default)
    if drawn != study.scoring.num_pictures:
        (study.output_dir / RESULTS / DONE_FILE).unlink(missing_ok=True)


def make_clips(sets: Iterable[ClipSet]) -> dict[tuple[str, int], str]:
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
            _raise_if_disk_full(error)
            missing[clips.kind, clips.num_frames] = _reason(error)
            log.warning("no %s clips: %s", clips.kind, missing[clips.kind, clips.num_frames])
    return missing


def finish_runs(
    runs: list[PlannedRun],
    study: ArmsSettings,
    journal: Journal,
    settings_of: _SettingsOf,
    missing: Mapping[tuple[str, int], str],
) -> dict[PlannedRun, list[EvaluationSettings]]:
    """Train and score every run; returns how each was scored, nothing for those that have failed.

    Args:
        settings_of: what a run is scored with on one of its inputs, as `scoring_settings`.
        missing: why clips could not be made, by kind and number of frames.

    Raises:
        InputError: no run could be scored.
    """
    scored = {run: _finish(run, study, missing, journal, settings_of) for run in runs}
    if not any(scored.values()):
        lines = "\n".join(f"  {line}" for line in describe_shortfalls(journal.shortfalls()))
        raise InputError(f"no arm could be scored ({journal.path}):\n{lines}")
    return scored


def _finish(
    run: PlannedRun,
    study: ArmsSettings,
    missing: Mapping[tuple[str, int], str],
    journal: Journal,
    settings_of: _SettingsOf,
) -> list[EvaluationSettings]:
    try:
        if run.clip_set is not None and (reason := missing.get((run.clip_set.kind, run.clip_set.num_frames))):
            raise InputError(f"no {run.clip_set.kind} clips: {reason}")
        _train(run, study, journal)
        scored, notes = _score(run, study, missing, settings_of)
    except Exception as error:
        _raise_if_disk_full(error)
        first = journal.record(run, "failed", _reason(error))
        if first != run.run_id:
            log.warning("%s has failed for the same reason as %s", run.run_id, first)
        else:
            log.warning("%s has failed: %s", run.run_id, _reason(error), exc_info=not isinstance(error, InputError))
        return []
    journal.record(run, "done", "; ".join(notes))
    return scored


def _train(run: PlannedRun, study: ArmsSettings, journal: Journal) -> None:
    if run.arm.trained_as is not None:
        if not is_trained(run.weights_of, study):
            raise InputError(f"{run.weights_of} is not trained: {journal.reason(run.weights_of)}")
        return
    checked = build_settings(type(run.settings), run.settings.model_dump(mode="json"), f"arm {run.run_id}")
    if not is_trained(run.run_id, study):
        log.info(journal.describe_progress(run))
    require_all_sources(run, study)
    try:
        _TRAINERS[run.arm.network](checked)
    except SettingsChanged as error:
        raise InputError(
            f"{error.folder} was trained with other settings ({'; '.join(error.changes)}); restore them, or remove "
            "that folder to train it anew"
        ) from None
    drop_state(checked.output_dir)


def _score(
    run: PlannedRun, study: ArmsSettings, missing: Mapping[tuple[str, int], str], settings_of: _SettingsOf
) -> tuple[list[EvaluationSettings], list[str]]:
    """Score a run on each of its inputs; returns how, and what could not be had.

    Raises:
        InputError: there is no input left.
    """
    from Model_Evaluation.evaluation import measure_models

    reason = missing.get((run.test_set.kind, run.test_set.num_frames), "") if run.test_set else ""
    lost = [test for test in run.arm.tests if reason and not run.input_kind(test).uses_images]
    if len(lost) == len(run.arm.tests):
        raise InputError(f"no {run.test_set.kind} clips: {reason}")
    notes = [f"not scored on {', '.join(lost)}: no {run.test_set.kind} clips: {reason}"] if lost else []
    scored = []
    for test in run.arm.tests:
        if test in lost:
            continue
        settings = settings_of(run, test, study)
        try:
            measure_models(settings)
        except InputError as error:
            if settings.end_to_end is None:
                raise
            notes.append(f"no end-to-end time on {test}: {error}")  # a cost that cannot be had costs no arm
            settings = settings.model_copy(update={"end_to_end": None})
            measure_models(settings)
        scored.append(settings)
    return scored, notes


def scoring_settings(run: PlannedRun, test: str, study: StudySettings) -> EvaluationSettings:
    """What `Model_Evaluation.evaluate` would be given for one run on one input."""
    checkpoint = study.output_dir / "runs" / run.weights_of / BEST_FILE
    name = run.test_id(test)
    model = {"name": name, "type": run.arm.network, "checkpoint": str(checkpoint), "input": test, "arm": run.arm_name}
    data = {"images_root": str(study.images_root), "batch_size": study.scoring.batch_size, "workers": study.workers}
    data["cache_dir"] = str(study.output_dir / "cache")
    if run.test_set is not None and not run.input_kind(test).uses_images:
        root, val_csv = str(run.test_set.root), str(run.test_set.val_csv)
        data |= {"root": root, "val_csv": val_csv, "num_frames": run.test_set.num_frames}
    raw = {
        "models": [model],
        "data": data,
        "output_dir": str(study.output_dir / MEASURED_FOLDER / name),
        "latency": study.scoring.latency.model_dump(mode="json"),
        "end_to_end": _end_to_end(run, study),
        "precision": study.scoring.precision,
        "device": study.device,
    }
    return build_settings(EvaluationSettings, raw, f"scoring of {name}")


def _end_to_end(run: PlannedRun, study: StudySettings) -> dict[str, object] | None:
    given = study.scoring.end_to_end
    if given is None or run.seed != study.timed_seed:
        return None
    is_recorded = run.test_set is not None and (run.test_set.root / "config.yaml").exists()
    return given.model_dump(mode="json") | ({"generation": None} if is_recorded else {})


def write_results(study: ArmsSettings, scored: Mapping[PlannedRun, list[EvaluationSettings]], draw: _Draw) -> Path:
    """All runs' measured tables in one folder, and everything that follows from them.

    Args:
        draw: pictures, from a `Gallery`, all tables by name, the folder of figures and the number of items on a sheet.
    """
    from Model_Evaluation.derived import DONE_FILE, format_summary, write_derived
    from Model_Evaluation.evaluation import merge_measured
    from Model_Evaluation.pictures import Gallery
    from Model_Evaluation.study_pictures import copy_curves

    results = study.output_dir / RESULTS
    how = [settings for of_run in scored.values() for settings in of_run]
    merge_measured([settings.output_dir for settings in how], results)
    if not (results / DONE_FILE).exists():
        remove_owned(results, ("figures",))
        shown = [run.run_id for run in scored if run.seed == study.timed_seed]
        copy_curves((study.output_dir / "runs" / run_id for run_id in shown), results / "figures")
        num_pictures = study.scoring.num_pictures
        gallery = Gallery(how)
        write_derived(results, results, lambda tables, folder: draw(gallery, tables, folder, num_pictures))
    print(format_summary(results))
    return results


def _raise_if_disk_full(error: Exception) -> None:
    """A full disk fails every arm after this one: the study ends, and goes on when there is room."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error


def _reason(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
