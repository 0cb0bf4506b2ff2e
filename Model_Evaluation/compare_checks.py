"""Whether planned arms may be compared, and can be scored: everything that can be known before the first is trained."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from Model_Evaluation.arms import is_subject
from Model_Evaluation.compare_settings import TRAINER_KEY, CompareArmsSettings
from Model_Evaluation.settings import EvaluationSettings, InputKind, require_image_set
from Model_Evaluation.study_plan import NOT_SET, PlannedRun, differences_of
from utils.artifacts import TASK_LABELS, read_table
from utils.errors import InputError
from utils.indices import locate_clip_index, read_clip_index
from utils.runs import flatten
from utils.settings import TrainingSettings
from utils.task_labels import task_labels_path

# Keys that the comparison gives each run; in a trainer's YAML they are for its own runs, under `settings` a mistake.
OWN_KEYS = ("output_dir", "seed", "device", "workers", "cache_dir", "overwrite")
_DATA_KEYS = ("data_root", "clips_root", "train_csv", "val_csv", "wnids_file", "num_classes")


def require_equal_but_for(runs: list[PlannedRun], subject: tuple[str, ...]) -> None:
    """Refuse arms whose training or data differ in a key that is not the subject.

    Raises:
        InputError: names the key, the arms and both values.
    """
    first = runs[0]
    for run in runs[1:]:
        same_network = _network_of(first) == _network_of(run)
        values = [_shared_values(one, same_trainer=first.arm.network == run.arm.network) for one in (first, run)]
        if differences := differences_of(*values, subject, same_network=same_network):
            key, one, other = differences[0]
            raise InputError(
                f"{key}: is {_said(one)} in arm {first.arm_name} and {_said(other)} in arm {run.arm_name}; arms may "
                "differ only in what they are about: give both the same, or name the key under 'subject'"
            )


def require_differences(runs: list[PlannedRun], subject: tuple[str, ...]) -> None:
    """Refuse a subject in which all arms agree: the comparison would claim what it does not show.

    Raises:
        InputError: names the key and what all have.
    """
    for key in subject:
        found = [subject_values(run, (key,)) for run in runs]
        if all(values == found[0] for values in found):
            told = ", ".join(f"{name}: {value}" for name, value in found[0].items()) or "nothing"
            raise InputError(f"subject: in {key!r} all arms have the same, {told}; make them differ, or take it out")


def require_scorable(run: PlannedRun, test: str, scoring: EvaluationSettings, compare: CompareArmsSettings) -> None:
    """Make sure that a run's scores can be had once it is trained.

    Raises:
        InputError: it chooses its epoch on what is scored; or an index, a frame or a task is not there.
    """
    settings, kind, data = run.settings, run.input_kind(test), scoring.data
    if settings.selection == compare.split:
        raise InputError(
            f"arm {run.arm_name}: selection: is 'val', the split that is scored; set selection: hold_out, or score "
            "another split (split: test)"
        )
    if kind.uses_images:
        try:
            require_image_set(data.images_root, ("val",))
        except ValueError as error:
            raise InputError(f"arm {run.arm_name}: data_root: {error}") from None
        index_path = data.images_root / "test.csv"
        if compare.split == "test" and not index_path.is_file():
            raise InputError(f"split: test: there is no {index_path}; make it, or set split: val")
        return
    locate_clip_index(data.root, data.index_csv, data.split, data.clips_root)
    has_frames = run.num_frames or (settings.num_frames if settings.uses_clips else None)
    if has_frames is not None and kind.frame >= has_frames:
        raise InputError(
            f"test_input: {test}: arm {run.arm_name} has {has_frames} frames; the last is {has_frames - 1}"
        )
    _require_task(run, scoring, compare.task)


def require_data(run: PlannedRun, kind: InputKind) -> None:
    """Make sure that an arm has what it is to be scored on.

    Raises:
        InputError: `test_input` is of images and it has clips alone, or the other way round.
    """
    has_images = run.arm.network == "baseline" and run.settings.data_root is not None
    has_clips = run.arm.network != "baseline" or run.settings.clips_root is not None
    if kind.uses_images and not has_images:
        raise InputError(
            f"test_input: {kind.base} is made of images, of which arm {run.arm_name} has none; name another"
        )
    if not kind.uses_images and not has_clips:
        raise InputError(
            f"test_input: {kind.base} is made of clips, of which arm {run.arm_name} has none; give it clips_root, or "
            "set test_input: original"
        )


def require_common_items(scorings: list[EvaluationSettings]) -> None:
    """Make sure that at least two arms are scored on the same items.

    Raises:
        InputError: they are scored on other indices, which share no item.
    """
    datas = [scoring.data for scoring in scorings if scoring.data.root is not None]
    places = [locate_clip_index(data.root, data.index_csv, data.split, data.clips_root) for data in datas]
    if len(places) < len(scorings) or len(set(places)) < len(places):
        return  # images, or two arms of one index
    items = [set(read_clip_index(*place, verify=False).item_ids) for place in places]
    if not any(one & other for one, other in itertools.combinations(items, 2)):
        raise InputError(f"{places[0][0]} and {places[1][0]}: share no item, so that no two arms can be compared")


def subject_values(run: PlannedRun, subject: tuple[str, ...]) -> dict[str, Any]:
    """What a run has in the keys that the comparison is about."""
    values = flatten(run.settings.model_dump(mode="json", exclude=set(OWN_KEYS))) | _origin_of(run)
    return {key: value for key, value in values.items() if is_subject(key, subject)}


def _network_of(run: PlannedRun) -> tuple[str, str]:
    return run.arm.network, getattr(run.settings, "family", "")


def _origin_of(run: PlannedRun) -> dict[str, str]:
    """What is the arm's, whatever keys its trainer has."""
    return {TRAINER_KEY: run.arm.network, "train_input": run.arm.train_input}


def _shared_values(run: PlannedRun, *, same_trainer: bool) -> dict[str, Any]:
    """What two arms should share: of one trainer all of its data's places, of two those of the clips."""
    values = {key: value for key, value in flatten(run.settings.protocol_values).items() if value != {}}
    places = data_of(run.settings) if same_trainer else _clip_places(run.settings)
    return _origin_of(run) | places | values


def data_of(settings: TrainingSettings) -> dict[str, Any]:
    """Where the data are, in the trainer's own keys."""
    return settings.model_dump(mode="json", include=set(_DATA_KEYS))


def _clip_places(settings: TrainingSettings) -> dict[str, Any]:
    """Where the clips are, in the keys of the networks of clips: those of images call their folder `clips_root`."""
    given = {"clips_root": None} | data_of(settings)
    if settings.NETWORK != "baseline":
        return given
    names = {"data_root": "clips_root", "val_csv": "val_csv"} | (
        {"train_csv": "train_csv"} if settings.uses_clips else {}
    )
    return {} if settings.clips_root is None else {name: given[key] for name, key in names.items()}


def _said(value: Any) -> str:
    return "not set" if value == NOT_SET else repr(value)


def _require_task(run: PlannedRun, scoring: EvaluationSettings, task: str | None) -> None:
    settings, data = run.settings, scoring.data
    if run.arm.network != "video":
        if task is not None:
            raise InputError(
                f"task: arm {run.arm_name} is of trainer {run.arm.network}, which has one task; drop the key"
            )
        return
    trained, _ = locate_clip_index(settings.data_root, settings.train_csv, "train", settings.clips_root)
    scored, _ = locate_clip_index(data.root, data.index_csv, data.split, data.clips_root)
    for index_path in (trained, scored):
        known = _tasks_of(index_path)
        if known and task is None:
            raise InputError(f"task: is missing, but {index_path} has several; choose one of {', '.join(known)}")
        if task is not None and task not in known:
            remedy = f"known: {', '.join(known)}" if known else "it has one task only: drop the key"
            raise InputError(f"task: {index_path} has no task {task!r}; {remedy}")


def _tasks_of(index_path: Path) -> list[str]:
    path = task_labels_path(index_path)
    return sorted(set(read_table(path, TASK_LABELS)["task"])) if path.is_file() else []
