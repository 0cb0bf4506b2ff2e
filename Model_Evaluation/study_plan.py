"""The plan of a study: which runs there are, with which settings, and whether they may be compared at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from Baseline_VGG.settings import BaselineSettings
from Data_Augmentation_SVD.settings import GenerationSettings
from Inflated_3D_VGG.settings import InflatedSettings
from Model_Evaluation.arms import ARMS, SUBJECT_KEYS, Arm, is_subject
from Model_Evaluation.settings import InputKind, parse_input
from Model_Evaluation.study_settings import ArmsSettings, ClipsSettings, StudySettings
from utils.config import build_settings, merge, read_yaml
from utils.errors import InputError
from utils.settings import TrainingSettings
from utils.sidecar import BEST_FILE
from utils.training_run import DONE_FILE

_SETTINGS: dict[str, type[TrainingSettings]] = {"baseline": BaselineSettings, "inflated": InflatedSettings}
# Keys that the study gives each run: given in its file, they would be overruled in silence.
_OWN_KEYS = ("data_root", "clips_root", "train_csv", "val_csv", "train_input", "num_frames", "output_dir", "seed")
_OWN_KEYS += ("device", "workers", "cache_dir", "overwrite", "wnids_file")
_OWN_GENERATION_KEYS = ("data_root", "output_dir", "num_frames", "device", "overwrite", "shard", "splits")
NOT_SET = "-"  # the value of a key that a run does not have


@dataclass(frozen=True)
class ClipSet:
    """One kind of clips with so many frames.

    Attributes:
        root, train_csv, val_csv: where they are, or will be.
        generation: how they are made; None for clips that are there.
    """

    kind: str
    num_frames: int
    root: Path
    train_csv: Path
    val_csv: Path
    generation: GenerationSettings | None


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One arm with one seed.

    Attributes:
        run_id: its folder's name.
        num_frames: frames a clip; None for an arm that is not trained on clips.
        settings: of its training.
        clip_set: what it is trained on; `test_set`: the clips it is scored on.
    """

    run_id: str
    arm_name: str
    arm: Arm
    num_frames: int | None
    seed: int
    settings: TrainingSettings
    clip_set: ClipSet | None
    test_set: ClipSet | None

    @property
    def weights_of(self) -> str:
        """The run whose weights it uses: its own, but for arms that are trained as another."""
        return run_name(self.arm.trained_as, self.num_frames, self.seed) if self.arm.trained_as else self.run_id

    def input_kind(self, test: str) -> InputKind:
        """One of the arm's tests, read."""
        return parse_input(test, "original" if self.arm.network == "baseline" else "clip")

    def test_id(self, test: str) -> str:
        """The `run_id` in the results."""
        return f"{self.run_id}__{self.input_kind(test).table_name.replace(':', '_')}"


def run_name(arm_name: str, num_frames: int | None, seed: int) -> str:
    """E.g. `3d_svd_t3_s0`, `2d_original_s0`."""
    return f"{arm_name}_s{seed}" if num_frames is None else f"{arm_name}_t{num_frames}_s{seed}"


def plan_clips(study: StudySettings) -> dict[tuple[str, int], ClipSet]:
    """All clips that the arms need, by kind and number of frames.

    Raises:
        InputError: generation settings that are wrong.
    """
    sets: dict[tuple[str, int], ClipSet] = {}
    for name in study.arms:
        arm = ARMS[name]
        for num_frames in frames_of(arm, study):
            for kind in arm.all_clips:
                key = (kind, num_frames or study.base_frames)
                sets.setdefault(key, _plan_clip_set(*key, study.clips[kind], study))
    return sets


def plan_runs(study: StudySettings, clips: Mapping[tuple[str, int], ClipSet]) -> list[PlannedRun]:
    """All runs, seed by seed, so that a study that is cut short has whole seeds.

    Raises:
        InputError: training settings that are wrong, all problems at once.
    """
    runs: list[PlannedRun] = []
    problems: dict[str, list[str]] = {}
    for seed in study.seeds:
        for name in study.arms:
            for num_frames in frames_of(ARMS[name], study):
                try:
                    runs.append(_plan_run(name, num_frames, seed, study, clips))
                except InputError as error:
                    problems.setdefault(str(error), []).append(name)
    if problems:
        texts = (f"{_listed(arms)}: {text}" for text, arms in problems.items())
        raise InputError("\n".join(texts))
    require_equal_protocols(runs)
    return runs


def frames_of(arm: Arm, study: StudySettings) -> tuple[int | None, ...]:
    """The values of `num_frames` that an arm is trained with; the paper's networks with the smallest."""
    if arm.clips is None:
        return (None,)
    return (study.base_frames,) if arm.is_paper else study.num_frames


def require_equal_protocols(runs: list[PlannedRun]) -> None:
    """Refuse arms whose training differs in anything but what the arm is about.

    Raises:
        InputError: names the arms, the key and both values.
    """
    matched = [run for run in runs if not run.arm.is_paper]
    for run in matched[1:]:
        if differences := list(differences_of(matched[0].settings.protocol_values, run.settings.protocol_values)):
            key, one, other = differences[0]
            raise InputError(
                f"{key}: is {one!r} in arm {matched[0].arm_name} and {other!r} in arm {run.arm_name}; the arms of a "
                "study may differ only in what they are about: give both networks the same, under 'training'"
            )


def differences_of(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    subject: Collection[str] = SUBJECT_KEYS,
    *,
    same_network: bool = False,
) -> list[tuple[str, Any, Any]]:
    """Protocol values that two runs should share and do not: (key, value, other value).

    Args:
        subject: keys that the runs' arms are about.
        same_network: a key that only one has is a difference, too, the other's value is `NOT_SET`; of two networks, it
            belongs to that network.
    """
    keys = dict.fromkeys([*one, *other]) if same_network else [key for key in one if key in other]
    values = [(key, one.get(key, NOT_SET), other.get(key, NOT_SET)) for key in keys if not is_subject(key, subject)]
    return [(key, value, other_value) for key, value, other_value in values if value != other_value]


def is_trained(run_id: str, study: ArmsSettings) -> bool:
    """Whether a run's training is done."""
    folder = study.output_dir / "runs" / run_id
    return (folder / DONE_FILE).exists() and (folder / BEST_FILE).exists()


def folder_bytes(folder: Path) -> int:
    """Of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _plan_clip_set(kind: str, num_frames: int, clips: ClipsSettings, study: StudySettings) -> ClipSet:
    if clips.root is not None:
        return ClipSet(kind, num_frames, clips.root, clips.train_csv, clips.val_csv, None)
    raw = merge(read_yaml(clips.config) if clips.config else {}, clips.generation)
    if own := [key for key in clips.generation if key in _OWN_GENERATION_KEYS]:
        raise InputError(f"clips.{kind}.generation.{own[0]}: the study sets it; remove it")
    root = study.output_dir / "clips" / f"{kind}_t{num_frames}"
    raw |= {"data_root": str(study.images_root), "output_dir": str(root), "num_frames": num_frames}
    raw["device"] = study.device
    generation = build_settings(GenerationSettings, raw, f"clips.{kind}.generation", check_paths=False)
    return ClipSet(kind, num_frames, root, Path("train.csv"), Path("val.csv"), generation)


def _plan_run(
    name: str, num_frames: int | None, seed: int, study: StudySettings, clips: Mapping[tuple[str, int], ClipSet]
) -> PlannedRun:
    arm = ARMS[name]
    run_id = run_name(name, num_frames, seed)
    frames = num_frames or study.base_frames
    clip_set = clips[arm.clips, frames] if arm.clips else None
    test_set = clips[arm.test_clips, frames] if arm.test_clips else clip_set
    settings = _training_settings(arm, run_id, seed, frames, clip_set, study)
    return PlannedRun(run_id, name, arm, num_frames, seed, settings, clip_set, test_set)


def _training_settings(
    arm: Arm, run_id: str, seed: int, num_frames: int, clip_set: ClipSet | None, study: StudySettings
) -> TrainingSettings:
    given = (
        {"paper": study.paper}
        if arm.is_paper
        else {"training": study.training, arm.network: getattr(study, arm.network)}
    )
    for section, values in given.items():
        own = [key for key in values if key in _OWN_KEYS]
        hold_out = values.get("hold_out")
        own += [f"hold_out.{key}" for key in ("file", "unlisted") if isinstance(hold_out, dict) and key in hold_out]
        if own:
            raise InputError(f"{section}.{own[0]}: the study sets it; remove it")
    raw: dict[str, Any] = {"protocol": "paper"} if arm.is_paper else {}
    for values in given.values():
        raw = merge(raw, values)
    root = study.output_dir
    raw |= {"output_dir": str(root / "runs" / run_id), "cache_dir": str(root / "cache"), "seed": seed}
    raw |= {"device": study.device, "workers": study.workers, "num_frames": num_frames}
    if not arm.is_paper:
        raw = merge(raw, {"hold_out": {"file": str(root / "hold_out.csv"), "unlisted": "leave_out"}})
    places = {}
    if clip_set is not None:
        places = {"train_csv": str(clip_set.train_csv), "val_csv": str(clip_set.val_csv)}
    if arm.network == "inflated":
        raw |= places | {"data_root": str(clip_set.root)}
    else:
        raw |= {"train_input": arm.train_input}
        if arm.train_input in ("original", "mix"):
            raw["data_root"] = str(study.images_root)
        if clip_set is not None:
            raw |= places | {"clips_root": str(clip_set.root)}
    origin = " and ".join(given)
    settings = build_settings(_SETTINGS[arm.network], raw, origin, check_paths=False)
    _require_trainable(settings, arm, origin)
    return settings


def _require_trainable(settings: TrainingSettings, arm: Arm, origin: str) -> None:
    if settings.starts_from_file and not Path(settings.weights).is_file():
        raise InputError(f"{origin}.weights: {settings.weights!r} is no file; correct it or train it first")
    if settings.selection != "hold_out" and not arm.is_paper:
        raise InputError(
            f"{origin}.selection: is {settings.selection!r}; the arms of a study choose their epoch on a hold-out of "
            "the training set, which all share: set selection: hold_out"
        )


def _listed(arms: list[str]) -> str:
    names = list(dict.fromkeys(arms))
    return f"{'arm' if len(names) == 1 else 'arms'} {', '.join(names)}"
