"""Settings of the evaluation stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from utils.config import InputPath, NonNegativeInt, PositiveInt, Settings
from utils.settings import ClassifierWidth, Device, ImageSize, Mean, Precision, Std

_RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
ModelType = Literal["baseline", "inflated"]
INPUTS_OF_TYPE = {"baseline": ("original", "first_frame"), "inflated": ("clip",)}


class PublishedModel(Settings):
    """A model in the published form of the config (`model2d`, `model3d`)."""

    type: ModelType
    checkpoint: InputPath


class ScoredModel(PublishedModel):
    """One model on one kind of input.

    Attributes:
        name: the `run_id` in every table.
        input: `original` (the image), `first_frame` or `clip`.
        arm: what the model stands for in a comparison; None derives it from the checkpoint.
    """

    name: _RunId
    input: Literal["original", "first_frame", "clip"]
    arm: _RunId | None = None

    @model_validator(mode="after")
    def _input_fits(self) -> ScoredModel:
        known = INPUTS_OF_TYPE[self.type]
        if self.input not in known:
            raise ValueError(f"input {self.input!r} does not fit type {self.type!r}; known: {', '.join(known)}")
        return self


class DataSettings(Settings):
    """What the models are scored on.

    Attributes:
        root, val_csv: the folder of the clips and their index; needed for `first_frame` and `clip`.
        images_root, wnids_file: the image set; needed for `original`.
        mean, std, num_frames, image_size: None takes what the checkpoint says of itself.
    """

    root: InputPath | None = None
    val_csv: Path = Path("val.csv")
    images_root: InputPath | None = None
    wnids_file: InputPath | None = None
    batch_size: PositiveInt = 8
    workers: NonNegativeInt = 2
    mean: Mean | None = None
    std: Std | None = None
    num_frames: Annotated[PositiveInt | None, Field(validation_alias=AliasChoices("num_frames", "time_dim"))] = None
    image_size: ImageSize | None = None


class LatencySettings(Settings):
    """How inference is timed.

    Attributes:
        batch_sizes: each is timed by itself.
        warmup: passes before the first that counts.
        repetitions: passes that count.
    """

    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    warmup: PositiveInt = 3
    repetitions: PositiveInt = 20


class EvaluationSettings(Settings):
    """`evaluate.py`: the published form (`model2d`, `model3d`, both scored on the clips) or a list of `models`.

    Attributes:
        num_classes: None takes it from the index.
        output_dir: where the tables and figures are written.
    """

    models: tuple[ScoredModel, ...] = ()
    model2d: PublishedModel | None = None
    model3d: PublishedModel | None = None
    data: DataSettings
    num_classes: PositiveInt | None = None
    output_dir: Path = Path("Model_Evaluation/evaluation_results/run")
    latency: LatencySettings = LatencySettings()
    precision: Precision = "fp32"
    device: Device = "auto"
    overwrite: bool = False

    @property
    def scored_models(self) -> tuple[ScoredModel, ...]:
        """All models as a list; in the published form the 2-D one is scored on frame 0 of the clips."""
        published = {"model2d": self.model2d, "model3d": self.model3d}
        first = tuple(
            ScoredModel.model_construct(
                name=name,
                type=model.type,
                checkpoint=model.checkpoint,
                input="first_frame" if model.type == "baseline" else "clip",
                arm=None,
            )
            for name, model in published.items()
            if model is not None
        )
        return first + self.models

    @model_validator(mode="after")
    def _is_complete(self) -> EvaluationSettings:
        models = self.scored_models
        if not models:
            raise ValueError("no model to score; list some under 'models', or give 'model2d' and 'model3d'")
        names = [model.name for model in models]
        problems = [f"models: name {name!r} is used twice" for name in sorted({n for n in names if names.count(n) > 1})]
        inputs = {model.input for model in models}
        if self.data.root is None and inputs & {"first_frame", "clip"}:
            problems.append("data.root is missing; give the folder of the clips")
        if self.data.images_root is None and "original" in inputs:
            problems.append("data.images_root is missing; give the image set for input 'original'")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class PrepareSettings(Settings):
    """`prepare_evaluation_data.py`.

    Attributes:
        results_dir: holds the four measured tables.
        output_dir: where derived tables and figures go; None is `results_dir`.
    """

    results_dir: InputPath
    output_dir: Path | None = None


class CostSettings(Settings):
    """`parameter_count.py` and `flops_count.py`: the paper's pair, or one checkpoint.

    Attributes:
        checkpoint: count this one instead of the paper's pair.
    """

    num_classes: PositiveInt = 10
    classifier_width: ClassifierWidth = 4096
    image_size: ImageSize = 224
    num_frames: Annotated[int, Field(ge=1, validation_alias=AliasChoices("num_frames", "time_dim"))] = 3
    checkpoint: InputPath | None = None
