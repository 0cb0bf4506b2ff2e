"""Settings of a comparison of arms that a user names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_origin

from pydantic import Field, model_validator

from Baseline_VGG.settings import BaselineSettings
from Inflated_3D_VGG.settings import InflatedSettings
from Model_Evaluation.arms import ARMS
from Model_Evaluation.settings import RunId, parse_input
from Model_Evaluation.study_settings import ArmsSettings
from utils.config import Form, InputPath, Settings
from utils.settings import TrainingSettings
from Video_Models.settings import VideoSettings

TRAINERS: dict[str, type[TrainingSettings]] = {
    "baseline": BaselineSettings,
    "inflated": InflatedSettings,
    "video": VideoSettings,
}
TRAINER_KEY = "trainer"  # of an arm, not of its trainer's settings
_Key = Annotated[str, Form(r"^\S+$", "text without blanks")]


class TrainedArm(Settings):
    """One arm.

    Attributes:
        trainer: `baseline` (`Baseline_VGG.train`), `inflated` (`Inflated_3D_VGG.train3d`) or `video`
            (`Video_Models.train_video`).
        config: a YAML of this trainer. `settings`: its keys over those of the file and of `training`. Output folder,
            seed, device, workers, cache and the hold-out's file are the comparison's.
    """

    trainer: Literal["baseline", "inflated", "video"]
    config: InputPath
    settings: dict[str, Any] = Field(default_factory=dict)


class CompareArmsSettings(ArmsSettings):
    """`compare_arms.py`.

    Attributes:
        arms: by name, the one that others are compared with first.
        training: keys of all arms' trainers, over those of their `config`.
        subject: keys that the arms are about, as `sampling`, `augmentation.horizontal_flip`, or `trainer`; in each of
            them arms differ, and in no other.
        test_input: what all are scored on, see `Model_Evaluation.settings.InputKind`.
        split: `val`, or `test`: the `test.csv` beside each arm's `val_csv` (or in its image set).
        task: of data with labels of several tasks, the one to score.
        scoring: without `end_to_end`.
    """

    arms: Annotated[dict[RunId, TrainedArm], Field(min_length=2)]
    training: dict[str, Any] = Field(default_factory=dict)
    subject: Annotated[tuple[_Key, ...], Field(min_length=1)]
    test_input: str = "clip"
    split: Literal["val", "test"] = "val"
    task: str | None = None

    @model_validator(mode="after")
    def _can_be_compared(self) -> CompareArmsSettings:
        problems = [
            f"arms.{name}: is the name of an arm of the study; choose another" for name in self.arms if name in ARMS
        ]
        problems += self._unknown_subjects()
        try:
            parse_input(self.test_input, "clip")
        except ValueError as error:
            problems.append(f"test_input: {error}")
        if self.scoring.end_to_end is not None:
            problems.append("scoring.end_to_end: is measured by the study and by evaluate alone; remove it")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unknown_subjects(self) -> Iterator[str]:
        trainers = [TRAINERS[name] for name in dict.fromkeys(arm.trainer for arm in self.arms.values())]
        known = {key: is_open for trainer in trainers for key, is_open in _keys_of(trainer)} | {TRAINER_KEY: False}
        for key in self.subject:
            if key in known or any(is_open and key.startswith(f"{name}.") for name, is_open in known.items()):
                continue
            near = difflib.get_close_matches(key, known, n=1)
            yield f"subject: {key!r} is no key of these trainers; " + (
                f"did you mean {near[0]!r}?" if near else "see their --help"
            )


def _keys_of(settings_class: type[Settings], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """All keys as `section.key`, and whether any further key may stand below it, as below `config`."""
    for name, field in settings_class.model_fields.items():
        yield f"{prefix}{name}", get_origin(field.annotation) is dict
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from _keys_of(field.annotation, f"{prefix}{name}.")
