"""The plan of a comparison of arms: the runs, whether they may be compared, and how each is scored."""

from __future__ import annotations

from Model_Evaluation.arms import Arm
from Model_Evaluation.compare_checks import (
    OWN_KEYS,
    data_of,
    require_common_items,
    require_data,
    require_differences,
    require_equal_but_for,
    require_scorable,
    subject_values,
)
from Model_Evaluation.compare_settings import TRAINERS, CompareArmsSettings, TrainedArm
from Model_Evaluation.settings import EvaluationSettings
from Model_Evaluation.study_plan import PlannedRun, is_trained, run_name
from utils.config import build_settings, merge, read_yaml
from utils.errors import InputError
from utils.settings import TrainingSettings
from utils.sidecar import BEST_FILE


def plan_arms(compare: CompareArmsSettings) -> list[PlannedRun]:
    """All runs, seed by seed, so that a comparison that is cut short has whole seeds.

    Raises:
        InputError: settings that are wrong, all problems at once; arms that differ in more than the subject, or not in
            it; or arms that could not be scored.
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
    require_differences(runs, compare.subject)
    _require_scores(runs[: len(compare.arms)], compare)
    return runs


def _require_scores(runs: list[PlannedRun], compare: CompareArmsSettings) -> None:
    """Before hours of training: each arm's scores can be had, and compared."""
    scorings = []
    for run in runs:
        require_data(run, run.input_kind(compare.test_input))
        scorings.append(scoring_of(run, compare.test_input, compare, check_paths=False))
        require_scorable(run, compare.test_input, scorings[-1], compare)
    require_common_items(scorings)


def describe_plan(compare: CompareArmsSettings, runs: list[PlannedRun]) -> str:
    """One line a run: its trainer, its budget, its values of the subject, and whether it is trained."""
    header = ("run", "trainer", "budget", "subject", "scored on", "")
    rows = [header]
    for run in runs:
        settings = run.settings
        budget = f"{settings.updates} updates" if settings.updates is not None else f"{settings.epochs} epochs"
        told = ", ".join(f"{key}: {value}" for key, value in subject_values(run, compare.subject).items()) or "-"
        state = "trained" if is_trained(run.run_id, compare) else "to train"
        scored_on = compare.test_input + (" of test" if compare.split == "test" else "")
        rows.append((run.run_id, run.arm.network, budget, told, scored_on, state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def scoring_of(
    run: PlannedRun, test: str, compare: CompareArmsSettings, *, check_paths: bool = True
) -> EvaluationSettings:
    """What `Model_Evaluation.evaluate` would be given for one run, on the data that it was trained with."""
    name, scoring = run.test_id(test), compare.scoring
    checkpoint = compare.output_dir / "runs" / run.run_id / BEST_FILE
    model = {"name": name, "type": run.arm.network, "checkpoint": str(checkpoint), "input": test, "arm": run.arm_name}
    data = {"batch_size": scoring.batch_size, "workers": compare.workers, "task": compare.task}
    data |= _places_of(run.settings, compare.split) | {"split": compare.split}
    data |= {"cache_dir": str(compare.output_dir / "cache")}
    raw = {
        "models": [model],
        "data": data,
        "subject": list(compare.subject),
        "output_dir": str(compare.output_dir / "measured" / name),
        "latency": scoring.latency.model_dump(mode="json"),
        "precision": scoring.precision,
        "device": compare.device,
    }
    return build_settings(EvaluationSettings, raw, f"scoring of {name}", check_paths=check_paths)


def _plan_run(name: str, arm: TrainedArm, seed: int, compare: CompareArmsSettings) -> PlannedRun:
    run_id = run_name(name, None, seed)
    for section, given in (("training", compare.training), (f"arms.{name}.settings", arm.settings)):
        hold_out = given.get("hold_out")
        own = [key for key in OWN_KEYS if key in given]
        own += ["hold_out.file"] if isinstance(hold_out, dict) and "file" in hold_out else []
        if own:
            raise InputError(f"{section}.{own[0]}: the comparison sets it; remove it")
    root = compare.output_dir
    raw = merge(merge(read_yaml(arm.config), compare.training), arm.settings)
    raw |= {"output_dir": str(root / "runs" / run_id), "cache_dir": str(root / "cache"), "overwrite": False}
    raw |= {"seed": seed, "device": compare.device, "workers": compare.workers}
    raw = merge(raw, {"hold_out": {"file": str(root / "hold_out.csv")}})
    settings = build_settings(TRAINERS[arm.trainer], raw, f"arm {name} ({arm.config})")
    test = compare.test_input
    kind = Arm("", arm.trainer, train_input=getattr(settings, "train_input", "clip"), tests=(test,))
    sees_clips = arm.trainer != "baseline"
    return PlannedRun(run_id, name, kind, settings.num_frames if sees_clips else None, seed, settings, None, None)


def _places_of(settings: TrainingSettings, split: str) -> dict[str, str]:
    """Where the scored data are, in the keys of section `data`."""
    given = data_of(settings)
    if split == "test":
        given["val_csv"] = str(settings.val_csv.with_name("test.csv"))
    roots = {"baseline": {"images_root": "data_root", "root": "clips_root", "wnids_file": "wnids_file"}}
    keys = roots.get(settings.NETWORK, {"root": "data_root", "clips_root": "clips_root"}) | {"val_csv": "val_csv"}
    return {name: given[key] for name, key in keys.items() if given.get(key) is not None}
