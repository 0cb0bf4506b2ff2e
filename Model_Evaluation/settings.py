"""Settings of the evaluation stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_validator

from utils.config import Form, InputPath, NonNegativeInt, PositiveInt, Settings
from utils.settings import ClassifierWidth, Device, ImageSize, Mean, Precision, Std
from Video_Models.settings import SamplingSettings

_STILLS = ("original", "original_paper_geometry")
_CLIPS = ("first_frame", "frame", "all_frames", "clip", "static", "shuffled", "reversed")
_MAX_VIEWS = 12
RunId = Annotated[
    str, Form(r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", "letters, digits, '_', '.' and '-', the first a letter or digit")
]
ModelType = Literal["baseline", "inflated", "video"]


@dataclass(frozen=True)
class InputKind:
    """What a model is scored on.

    Attributes:
        base: `original`, `original_paper_geometry` (the image, stretched and cropped as in the paper, no generator),
            `first_frame`, `frame` (number `frame`, from 0), `all_frames` (one by one, answers averaged), `clip`,
            `static` (the first frame, repeated), `shuffled` or `reversed`.
        num_views: of test-time augmentation; 1 is the item as it is.
    """

    base: str
    frame: int = 0
    num_views: int = 1

    @property
    def uses_images(self) -> bool:
        """Whether it is made of the still images, else of the clips."""
        return self.base in _STILLS

    @property
    def table_name(self) -> str:
        """How `test_input` begins in every table; a clip generator's name may follow."""
        base = f"frame_{self.frame}" if self.base == "frame" else self.base
        return base if self.num_views == 1 else f"tta_{self.num_views}:{base}"


def parse_input(text: str, default: str) -> InputKind:
    """From a setting: a base, `frame:K`, `tta:N` (of `default`) or `tta:N:BASE`.

    Raises:
        ValueError: neither of these.
    """
    kind, *rest = (part.strip() for part in text.split(":"))
    if kind == "tta" and rest:
        inner = parse_input(":".join(rest[1:]) or default, default)
        if inner.num_views > 1:
            raise ValueError(f"input {text!r}: the views are of one base, as in tta:3:clip, not of other views")
        if not rest[0].isdecimal() or not 2 <= int(rest[0]) <= _MAX_VIEWS:
            raise ValueError(f"input {text!r}: tta takes 2 to {_MAX_VIEWS} views, as in tta:3")
        return replace(inner, num_views=int(rest[0]))
    if kind == "frame" and rest:
        if len(rest) > 1 or not rest[0].isdecimal():
            raise ValueError(f"input {text!r}: frame takes the number of one frame, from 0, as in frame:2")
        return InputKind("frame", int(rest[0]))
    known = [base for base in (*_STILLS, *_CLIPS) if base != "frame"]
    if text not in known:
        raise ValueError(f"unknown input {text!r}; known: {', '.join([*known, 'frame:K', 'tta:N', 'tta:N:BASE'])}")
    return InputKind(text)


class PublishedModel(Settings):
    """A model in the published form of the config (`model2d`, `model3d`)."""

    type: ModelType
    checkpoint: InputPath


class ScoredModel(PublishedModel):
    """One model on one kind of input.

    Attributes:
        name: the `run_id` in every table.
        input: any of `InputKind`, also `frame:K`, `tta:N` (of `original` for a network of images, of `clip` for one of
            clips) and `tta:N:BASE`. A network of clips sees a picture repeated; one of images sees frames one by one,
            and its answers are averaged.
        arm: what the model stands for in a comparison; None derives it from the checkpoint.
        root, val_csv, clips_root: other clips than those of section `data`.
    """

    name: RunId
    input: str
    arm: RunId | None = None
    root: InputPath | None = None
    val_csv: Path | None = None
    clips_root: InputPath | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """`{frame: 2}` and `{tta: 3}` are `frame:2` and `tta:3`."""
        if isinstance(value, Mapping) and len(value) == 1:
            return ":".join(map(str, *value.items()))
        return value

    @model_validator(mode="after")
    def _is_an_input(self) -> ScoredModel:
        _ = self.kind
        return self

    @property
    def kind(self) -> InputKind:
        """The input, read."""
        return parse_input(self.input, "original" if self.type == "baseline" else "clip")

    def data(self, common: DataSettings) -> DataSettings:
        """Its own clips, where it has some, else the common ones."""
        own = {key: value for key in ("root", "val_csv", "clips_root") if (value := getattr(self, key)) is not None}
        if self.root is not None:
            own.setdefault("clips_root", None)  # the common one belongs to the common root
        return common.model_copy(update=own)


def require_image_set(images_root: Path, splits: Iterable[str]) -> None:
    """Make sure that a folder holds an image set, ours or in the raw layout.

    Raises:
        ValueError: it does not.
    """
    if (images_root / "wnids.txt").is_file():
        return
    if missing := [f"{split}.csv" for split in splits if not (images_root / f"{split}.csv").is_file()]:
        raise ValueError(f"{images_root} has neither {missing[0]} (run Data_Sourcing) nor wnids.txt (the raw layout)")


def _describe_other_split(index_csv: Path, split: str) -> str:
    """What is wrong with an index whose name says that it is of another split; empty where nothing is."""
    other = index_csv.stem
    if other not in {"train", "val", "test"} - {split}:
        return ""
    remedy = f"set split: {other}" if other != "train" else "score another split"
    return f"val_csv: {index_csv} is of split {other}, but tables would say {split}; {remedy}"


class DataSettings(Settings):
    """What the models are scored on.

    Attributes:
        split: what is scored, by its name in every table: `val`, or `test` where there is one.
        root, val_csv: the folder of the clips and their index; needed for every input made of clips. Without `val_csv`
            it is the split's, `val.csv` or `test.csv`.
        clips_root: the folder that the index's paths are relative to; null is `root/val` where it exists, else `root`.
        task: of an index with labels of several, the one to score.
        frame_sampling: of networks of type `video`: which frames of a video are looked at; null takes the training's.
        images_root, wnids_file: the image set; needed for `original` and `original_paper_geometry`.
        workers: threads that decode, at most one a core.
        cache_dir: keep decoded pixels there, as the trainers do in their `cache`; None decodes each time.
        mean, std, num_frames, image_size: None takes what the checkpoint says of itself.
    """

    root: InputPath | None = None
    val_csv: Path | None = None
    split: Literal["val", "test"] = "val"
    clips_root: InputPath | None = None
    task: str | None = None
    frame_sampling: SamplingSettings | None = None
    images_root: InputPath | None = None
    wnids_file: InputPath | None = None
    batch_size: PositiveInt = 8
    workers: NonNegativeInt = 2
    mean: Mean | None = None
    std: Std | None = None
    num_frames: Annotated[PositiveInt | None, Field(validation_alias=AliasChoices("num_frames", "time_dim"))] = None
    image_size: ImageSize | None = None
    cache_dir: Path | None = None

    @property
    def index_csv(self) -> Path:
        """The index of the clips, below `root` or as a path."""
        return self.val_csv or Path(f"{self.split}.csv")

    @model_validator(mode="after")
    def _is_the_split_it_says(self) -> DataSettings:
        if problem := _describe_other_split(self.index_csv, self.split):
            raise ValueError(problem)
        return self

    @field_validator("images_root")
    @classmethod
    def _is_an_image_set(cls, images_root: Path | None, info: ValidationInfo) -> Path | None:
        if images_root is not None and (info.context or {}).get("check_paths", True):
            require_image_set(images_root, ("val",))
        return images_root


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


class EndToEndSettings(LatencySettings):
    """How the way from an image file to its answer is timed, see `Model_Evaluation.end_to_end`.

    Attributes:
        generation: keys of `GenerationSettings` that replace what the `config.yaml` beside the clips records; null
            takes that as it is. Not used for inputs made of the images.
    """

    generation: dict[str, Any] | None = None
    warmup: PositiveInt = 1
    repetitions: PositiveInt = 5


class PictureSettings(Settings):
    """Section `pictures`: sheets of what the networks saw, answered and looked at, one or two a model.

    Attributes:
        num_items: on a sheet, half of them wrong and half right where there are so many; 0 draws none.
        seed: another one shows other items.
    """

    num_items: NonNegativeInt = 8
    seed: NonNegativeInt = 0


class EvaluationSettings(Settings):
    """`evaluate.py`: the published form (`model2d`, `model3d`, both scored on the clips) or a list of `models`.

    Attributes:
        num_classes: None takes it from the index.
        subject: keys of the training, e.g. `sampling`, that the models are to be compared in: runs that differ in
            nothing else are a matched pair.
        output_dir: where the tables and figures are written.
    """

    models: tuple[ScoredModel, ...] = ()
    model2d: PublishedModel | None = None
    model3d: PublishedModel | None = None
    data: DataSettings
    num_classes: PositiveInt | None = None
    subject: tuple[Annotated[str, Form(r"^\S+$", "text without blanks")], ...] = ()
    output_dir: Path = Path("Model_Evaluation/evaluation_results/run")
    latency: LatencySettings = LatencySettings()
    end_to_end: EndToEndSettings | None = None
    pictures: PictureSettings = PictureSettings()
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
                root=None,
                val_csv=None,
                clips_root=None,
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
        for model in models:
            if problem := model.val_csv and _describe_other_split(model.val_csv, self.data.split):
                problems.append(f"models: {model.name}: {problem}")
        if any(model.data(self.data).root is None and not model.kind.uses_images for model in models):
            problems.append("data.root is missing; give the folder of the clips")
        if self.data.images_root is None and any(model.kind.uses_images for model in models):
            problems.append("data.images_root is missing; give the image set for input 'original'")
        if self.data.frame_sampling is not None and all(model.type != "video" for model in models):
            problems.append("data.frame_sampling: belongs to networks of type video; drop the key")
        if self.data.images_root is None and self.end_to_end is not None:
            problems.append("data.images_root is missing; end_to_end begins with its images")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class PrepareSettings(Settings):
    """`prepare_evaluation_data.py`.

    Attributes:
        results_dir: holds the measured tables.
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
