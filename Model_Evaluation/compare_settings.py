"""Settings of a comparison of arms that a user names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
_Key = Annotated[str, Form(r"^\S+$", "text without blanks")]


class TrainedArm(Settings):
    """One arm.

    Attributes:
        trainer: `baseline` (`Baseline_VGG.train`), `inflated` (`Inflated_3D_VGG.train3d`) or `video`
            (`Video_Models.train_video`).
        config: a YAML of this trainer. `settings`: its keys over those of the file. Output folder, seed, device,
            workers, cache and the hold-out's file are the comparison's.
    """

    trainer: Literal["baseline", "inflated", "video"]
    config: InputPath
    settings: dict[str, Any] = Field(default_factory=dict)


class CompareArmsSettings(ArmsSettings):
    """`compare_arms.py`.

    Attributes:
        arms: by name, the one that others are compared with first.
        subject: keys that the arms are about, as `sampling` or `augmentation.horizontal_flip`; they may differ in no
            other.
        test_input: what all are scored on, see `Model_Evaluation.settings.InputKind`.
        task: of data with labels of several tasks, the one to score.
        scoring: without `end_to_end`.
    """

    arms: Annotated[dict[RunId, TrainedArm], Field(min_length=2)]
    subject: Annotated[tuple[_Key, ...], Field(min_length=1)]
    test_input: str = "clip"
    task: str | None = None

    @model_validator(mode="after")
    def _can_be_compared(self) -> CompareArmsSettings:
        problems = [
            f"arms.{name}: is the name of an arm of the study; choose another" for name in self.arms if name in ARMS
        ]
        known = {key for arm in self.arms.values() for key in TRAINERS[arm.trainer].model_fields}
        for key in self.subject:
            if key.split(".", 1)[0] not in known:
                problems.append(f"subject: {key!r} is no key of these trainers; see their --help")
        try:
            parse_input(self.test_input, "clip")
        except ValueError as error:
            problems.append(f"test_input: {error}")
        if self.scoring.end_to_end is not None:
            problems.append("scoring.end_to_end: is measured by the study and by evaluate alone; remove it")
        if problems:
            raise ValueError("; ".join(problems))
        return self
