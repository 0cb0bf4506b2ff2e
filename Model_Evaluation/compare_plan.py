"""The plan of a comparison of arms: the runs, whether they may be compared, and how each is scored."""

from __future__ import annotations

from typing import Any

from Model_Evaluation.arms import Arm, is_subject
from Model_Evaluation.compare_settings import TRAINERS, CompareArmsSettings, TrainedArm
from Model_Evaluation.settings import EvaluationSettings
from Model_Evaluation.study_plan import PlannedRun, differences_of, is_trained, run_name
from utils.config import build_settings, merge, read_yaml
from utils.errors import InputError
from utils.runs import flatten
from utils.settings import TrainingSettings
from utils.sidecar import BEST_FILE

# Keys that the comparison gives each run; in a trainer's YAML they are for its own runs, under `settings` a mistake.
_OWN_KEYS = ("output_dir", "seed", "device", "workers", "cache_dir", "overwrite")
_DATA_KEYS = ("data_root", "clips_root", "train_csv", "val_csv", "wnids_file", "num_classes")


def plan_arms(compare: CompareArmsSettings) -> list[PlannedRun]:
    """All runs, seed by seed, so that a comparison that is cut short has whole seeds.

    Raises:
        InputError: settings that are wrong, all problems at once; or arms that differ in more than the subject.
    """
    runs, problems = [], []
    for seed in compare.seeds:
        for name, arm in compare.arms.items():
            try:
                runs.append(_plan_run(name, arm, seed, compare))
            except InputError as error:
                problems.append(str(error))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    require_equal_but_for(runs, compare.subject)
    return runs


def require_equal_but_for(runs: list[PlannedRun], subject: tuple[str, ...]) -> None:
    """Refuse arms whose training or data differ in a key that is not the subject.

    Raises:
        InputError: names the key, the arms and both values.
    """
    first = runs[0]
    for run in runs[1:]:
        differences = differences_of(_values_of(first.settings), _values_of(run.settings), subject)
        if first.arm.network == run.arm.network:
            differences += differences_of(_data_of(first.settings), _data_of(run.settings), subject)
        if differences:
            key, one, other = differences[0]
            raise InputError(
                f"{key}: is {one!r} in arm {first.arm_name} and {other!r} in arm {run.arm_name}; arms may differ only "
                "in what they are about: give both the same, or name the key under 'subject'"
            )


def describe_plan(compare: CompareArmsSettings, runs: list[PlannedRun]) -> str:
    """One line a run: its trainer, its budget, its values of the subject, and whether it is trained."""
    header = ("run", "trainer", "budget", "subject", "scored on", "")
    rows = [header]
    for run in runs:
        settings = run.settings
        budget = f"{settings.updates} updates" if settings.updates is not None else f"{settings.epochs} epochs"
        values = {key: value for key, value in _all_values(settings).items() if is_subject(key, compare.subject)}
        told = ", ".join(f"{key}: {value}" for key, value in values.items()) or "-"
        state = "trained" if is_trained(run.run_id, compare) else "to train"
        rows.append((run.run_id, run.arm.network, budget, told, ", ".join(run.arm.tests), state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def scoring_of(run: PlannedRun, test: str, compare: CompareArmsSettings) -> EvaluationSettings:
    """What `Model_Evaluation.evaluate` would be given for one run, on the data that it was trained with."""
    name, scoring = run.test_id(test), compare.scoring
    checkpoint = compare.output_dir / "runs" / run.run_id / BEST_FILE
    model = {"name": name, "type": run.arm.network, "checkpoint": str(checkpoint), "input": test, "arm": run.arm_name}
    data = {"batch_size": scoring.batch_size, "workers": compare.workers, "task": compare.task}
    data |= _places_of(run.settings) | {"cache_dir": str(compare.output_dir / "cache")}
    raw = {
        "models": [model],
        "data": data,
        "subject": list(compare.subject),
        "output_dir": str(compare.output_dir / "measured" / name),
        "latency": scoring.latency.model_dump(mode="json"),
        "precision": scoring.precision,
        "device": compare.device,
    }
    return build_settings(EvaluationSettings, raw, f"scoring of {name}")


def _plan_run(name: str, arm: TrainedArm, seed: int, compare: CompareArmsSettings) -> PlannedRun:
    run_id = run_name(name, None, seed)
    if own := [key for key in _OWN_KEYS if key in arm.settings]:
        raise InputError(f"arms.{name}.settings.{own[0]}: the comparison sets it; remove it")
    root = compare.output_dir
    raw = merge(read_yaml(arm.config), arm.settings)
    raw |= {"output_dir": str(root / "runs" / run_id), "cache_dir": str(root / "cache"), "overwrite": False}
    raw |= {"seed": seed, "device": compare.device, "workers": compare.workers}
    raw = merge(raw, {"hold_out": {"file": str(root / "hold_out.csv")}})
    settings = build_settings(TRAINERS[arm.trainer], raw, f"arm {name} ({arm.config})")
    test = compare.test_input
    kind = Arm("", arm.trainer, train_input=getattr(settings, "train_input", "clip"), tests=(test,))
    sees_clips = arm.trainer != "baseline"
    return PlannedRun(run_id, name, kind, settings.num_frames if sees_clips else None, seed, settings, None, None)


def _values_of(settings: TrainingSettings) -> dict[str, Any]:
    return flatten(settings.protocol_values)


def _data_of(settings: TrainingSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(_DATA_KEYS))


def _all_values(settings: TrainingSettings) -> dict[str, Any]:
    return _data_of(settings) | _values_of(settings)


def _places_of(settings: TrainingSettings) -> dict[str, str]:
    """Where the scored data are, in the keys of section `data`."""
    given = _data_of(settings)
    roots = {"baseline": {"images_root": "data_root", "root": "clips_root", "wnids_file": "wnids_file"}}
    keys = roots.get(settings.NETWORK, {"root": "data_root", "clips_root": "clips_root"}) | {"val_csv": "val_csv"}
    return {name: given[key] for name, key in keys.items() if given.get(key) is not None}
