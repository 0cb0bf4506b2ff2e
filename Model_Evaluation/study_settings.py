"""Settings of the study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from Model_Evaluation.arms import ARMS
from Model_Evaluation.settings import EndToEndSettings, LatencySettings, require_image_set
from utils.config import InputPath, NonNegativeInt, PositiveInt, Settings
from utils.settings import Device, Precision

_PAPER = "paper"
_Keys = dict[str, Any]


class ClipsSettings(Settings):
    """One kind of clips: those that are there, or how to make them.

    Attributes:
        root, train_csv, val_csv: a folder of clips and its indices, as in the trainers.
        config: a YAML of `Data_Augmentation_SVD`. `generation`: its keys over those of the file. Images, output folder,
            `num_frames` and device are the study's.
    """

    root: InputPath | None = None
    train_csv: Path = Path("train.csv")
    val_csv: Path = Path("val.csv")
    config: InputPath | None = None
    generation: _Keys = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_one_of_both(self) -> ClipsSettings:
        is_made = self.config is not None or bool(self.generation)
        if is_made == (self.root is not None):
            raise ValueError("give either the root of clips that are there, or config and generation to make them")
        return self


class ScoringSettings(Settings):
    """How all networks are scored.

    Attributes:
        batch_size: items a pass.
        precision: of every network.
        latency, end_to_end: as in `Model_Evaluation.settings`; the latter of the lowest seed's networks, and its
            `generation` of clips alone that do not record how they were made (the published ones).
        num_pictures: items of each kind on the sheets of items that two networks disagree on; 0 draws none.
    """

    batch_size: PositiveInt = 32
    precision: Precision = "fp32"
    latency: LatencySettings = LatencySettings(batch_sizes=(1, 16), repetitions=10)
    end_to_end: EndToEndSettings | None = None
    num_pictures: NonNegativeInt = 12


class ArmsSettings(Settings):
    """What every comparison of trained arms needs.

    Attributes:
        output_dir: everything that is made: clips, runs, results.
        seeds: every arm is trained once with each.
        device: as in the trainers. `workers`: threads that decode.
        dry_run: print the plan and stop.
    """

    output_dir: Path
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2)
    scoring: ScoringSettings = ScoringSettings()
    device: Device = "auto"
    workers: NonNegativeInt = 2
    dry_run: bool = False

    @property
    def overwrite(self) -> bool:
        """Never: finished arms are kept. To train one anew, remove its folder in `runs`."""
        return False

    @property
    def timed_seed(self) -> int:
        """The seed whose networks are timed from end to end and shown in pictures."""
        return min(self.seeds)

    @field_validator("seeds", "num_frames", check_fields=False)
    @classmethod
    def _are_different(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(values)) != len(values):
            raise ValueError("a value is listed twice; keep one of them")
        return values


class StudySettings(ArmsSettings):
    """`study.py`.

    Attributes:
        images_root: the image set.
        clips: kinds of clips by name, of which the arms need `svd`, `static`, `camera_motion` and `svd_flat`.
        arms: names (see `Model_Evaluation.arms`); `paper` is both of its networks.
        num_frames: frames a clip; every arm that uses clips is trained once with each.
        training: keys of both trainers. `baseline`, `inflated`: further keys of one. They may differ between the two
            only in what an arm is about.
        paper: keys of the paper's two networks, over its protocol.
    """

    images_root: InputPath
    clips: dict[str, ClipsSettings]
    arms: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(ARMS)
    num_frames: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (3,)
    training: _Keys = Field(default_factory=dict)
    baseline: _Keys = Field(default_factory=dict)
    inflated: _Keys = Field(default_factory=dict)
    paper: _Keys = Field(default_factory=dict)

    @property
    def base_frames(self) -> int:
        """Frames of the clips that arms are scored on which are trained on none, and of the paper's networks."""
        return min(self.num_frames)

    @field_validator("images_root")
    @classmethod
    def _is_an_image_set(cls, images_root: Path, info: ValidationInfo) -> Path:
        if (info.context or {}).get("check_paths", True):
            require_image_set(images_root, ("train", "val"))
        return images_root

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Both networks are trained by `matched` from random weights where `training` does not say otherwise."""
        training = raw.get("training") or {}
        if not isinstance(training, Mapping):
            return raw
        return {**raw, "training": {"protocol": "matched", "weights": "none", **training}}

    @field_validator("arms")
    @classmethod
    def _are_known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        known = [*ARMS, _PAPER]
        if unknown := [name for name in arms if name not in known]:
            raise ValueError(f"unknown arm {unknown[0]!r}; known: {', '.join(known)}")
        names = [name for arm in arms for name in (("paper_2d", "paper_3d") if arm == _PAPER else (arm,))]
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _has_its_clips(self) -> StudySettings:
        known = {kind for arm in ARMS.values() for kind in arm.all_clips}
        unknown = [
            f"clips.{kind}: no arm uses such clips; known: {', '.join(sorted(known))}"
            for kind in self.clips
            if kind not in known
        ]
        missing = {kind: name for name in self.arms for kind in ARMS[name].all_clips if kind not in self.clips}
        problems = unknown + [
            f"clips.{kind} is missing, which arm {arm} needs; add it, or take the arm out"
            for kind, arm in missing.items()
        ]
        problems += [
            f"arms: {name} uses the weights of {ARMS[name].trained_as}; add it"
            for name in self.arms
            if ARMS[name].trained_as not in (None, *self.arms)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self
