"""Settings of the clip classifiers' trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_validator

from utils.config import InputPath, NonNegativeFloat, PositiveInt, Settings
from utils.frame_sampling import FrameSampling
from utils.hub import is_hub_id
from utils.settings import TrainingSettings
from utils.sidecar import BEST_FILE
from Video_Models.registry import FAMILIES, PRETRAINED

_NUM_CLIPS = 5
_MOST_FRAMES = 1024  # some networks take minutes and many gigabytes to build for more
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar")
_BelowOne = Annotated[float, Field(ge=0, lt=1)]


class SamplingSettings(Settings):
    """Section `frame_sampling`: which frames of a video make a clip, see `utils.frame_sampling`.

    Attributes:
        method: `uniform` (the centres of `num_frames` equal segments), `random` (while training, one frame of each
            segment), `dense` (while training, one window of consecutive frames).
        frame_interval: of `dense`, frames from one frame of a window to the next; higher sees a longer time.
        num_clips: of `random`, candidates a segment; of `dense`, windows a video, all of which a test looks at. Higher
            shows a network more of a long video and takes so many times the disk. Null is 5; `uniform` has 1.
    """

    method: Literal["uniform", "random", "dense"] = "uniform"
    frame_interval: PositiveInt = 1
    num_clips: PositiveInt | None = None

    @model_validator(mode="after")
    def _is_one_method(self) -> SamplingSettings:
        if self.method == "uniform" and self.num_clips not in (None, 1):
            raise ValueError("num_clips: uniform sampling has one clip a video; drop the key, or set method: dense")
        if self.method != "dense" and self.frame_interval > 1:
            raise ValueError("frame_interval: belongs to method: dense; drop the key, or set the method")
        if self.method == "random" and self.num_clips == 1:
            raise ValueError(
                "num_clips: one candidate a segment leaves nothing to draw; raise it, or set method: uniform"
            )
        return self

    def of(self, num_frames: int) -> FrameSampling:
        """The sampling of clips of so many frames."""
        num_clips = self.num_clips or (1 if self.method == "uniform" else _NUM_CLIPS)
        return FrameSampling(self.method, num_frames, self.frame_interval, num_clips)


class AdaptationSettings(Settings):
    """Section `adaptation`: what of the network is trained; the head always is.

    Attributes:
        mode: `full`, `last_blocks`, `linear_probe` (the head alone), or `lora` (Hu et al. 2022).
        num_blocks: of `last_blocks`; higher trains more.
        lora_rank: of the products that are added to weights; higher can learn more and trains more weights.
        lora_alpha: the products count alpha / rank.
        lora_dropout: before the products.
        lora_targets: names of the modules they are added to (their last parts); null takes the family's.
    """

    mode: Literal["full", "last_blocks", "linear_probe", "lora"] = "full"
    num_blocks: PositiveInt = 1
    lora_rank: PositiveInt = 8
    lora_alpha: PositiveInt = 16
    lora_dropout: _BelowOne = 0.0
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_no_key_of_another_mode(self) -> AdaptationSettings:
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        own = {"last_blocks": "num_blocks", "lora": "lora_"}.get(self.mode, "mode")
        foreign = sorted(name for name in changed - {"mode"} if not name.startswith(own))
        if foreign:
            mode = "lora" if foreign[0].startswith("lora_") else "last_blocks"
            raise ValueError(f"{', '.join(foreign)}: belongs to mode: {mode}; drop the key, or set the mode")
        return self


class MultiTaskSettings(Settings):
    """Section `multi_task`, of an index with labels of several tasks.

    Attributes:
        adapter_width: of the bottleneck before each task's layer; higher lets tasks differ more.
        weights: of the tasks' losses; a task that is not named counts 1.
        learn_weights: learn them by each task's uncertainty instead (Kendall, Gal & Cipolla 2018).
    """

    adapter_width: PositiveInt = 64
    weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    learn_weights: bool = False

    @model_validator(mode="after")
    def _has_one_rule(self) -> MultiTaskSettings:
        if self.weights and self.learn_weights:
            raise ValueError("weights: are given, but learn_weights learns them; drop one of the two keys")
        return self


class VideoSettings(TrainingSettings):
    """`train_video.py`; all other keys are described in `utils.settings.TrainingSettings`.

    Attributes:
        family: the network; `Video_Models/registry.py` lists them.
        config: replaces values of the family's architecture, by their names there.
        weights: `pretrained` (the family's published ones), `none` (random), a file (a checkpoint of ours or a state
            dict), or a folder: a training run's, or one with one file of weights; of the transformers also one that
            `save_pretrained` wrote, or a hub's `owner/name`.
        data_root: the folder of the clips; train_csv, val_csv: their indices, below `data_root` or as a path.
        clips_root: the folder that the indices' paths are relative to; null is `data_root/train` and `data_root/val`
            where these exist, else `data_root`.
        num_classes: None takes it from the train index.
        num_frames: that the network sees of a clip. Where it needs more, they are repeated, see `FrameRule`.
            Without this key and `image_size`, the family's published sizes are taken; without `mean` and `std`, its
            published normalisation.
        dropout: before the last layer.
    """

    NETWORK: ClassVar[str] = "video"

    family: str = "videomae"
    config: dict[str, Any] = Field(default_factory=dict)
    weights: str = PRETRAINED
    data_root: InputPath
    train_csv: Path = Path("train.csv")
    val_csv: Path = Path("val.csv")
    clips_root: InputPath | None = None
    num_classes: PositiveInt | None = None
    num_frames: Annotated[
        int, Field(ge=1, le=_MOST_FRAMES, validation_alias=AliasChoices("num_frames", "time_dim"))
    ] = 16
    frame_sampling: SamplingSettings = SamplingSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    multi_task: MultiTaskSettings = MultiTaskSettings()
    output_dir: Path = Path("runs/video")
    batch_size: PositiveInt = 8
    dropout: _BelowOne = 0.0

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add the protocol's values of keys that are not given, then the family's; name the weights in a folder."""
        raw = dict(super().complete(raw))
        name = raw.get("family", cls.model_fields["family"].default)
        if not isinstance(name, str) or name not in FAMILIES:
            return raw  # the field's own check says so
        family = FAMILIES[name]
        if "time_dim" not in raw:
            raw.setdefault("num_frames", family.num_frames)
        if isinstance(weights := raw.get("weights"), str) and Path(weights).is_dir():
            files = _weights_in(Path(weights))
            raw["weights"] = str(files[0]) if len(files) == 1 else weights
        published = {"image_size": family.image_size, "mean": list(family.mean), "std": list(family.std)}
        return published | raw

    @field_validator("family")
    @classmethod
    def _is_known(cls, family: str) -> str:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}; known: {', '.join(sorted(FAMILIES))}")
        return family

    @field_validator("weights")
    @classmethod
    def _weights_exist(cls, weights: str, info: ValidationInfo) -> str:
        is_named = weights in (PRETRAINED, "none") or not _checks_paths(info)
        if is_named or Path(weights).exists() or _is_hub_id(weights):
            return weights
        raise ValueError(
            f"{weights!r} is neither pretrained, none, a file, a folder, nor a hub's owner/name; correct it"
        )

    @model_validator(mode="after")
    def _fits_the_family(self, info: ValidationInfo) -> VideoSettings:
        family = FAMILIES[self.family]
        if self.weights == PRETRAINED and not family.pretrained:
            raise ValueError(f"weights: none are published for {self.family}; set weights: none, or name a file")
        if self.weights not in (PRETRAINED, "none") and not family.is_on_hub and _checks_paths(info):
            self._require_file()
        family.check_config(self.config)
        if not self.config and self.weights in (PRETRAINED, "none"):  # others may be of another architecture
            family.size_rule.check(self.image_size)
        return self

    def _require_file(self) -> None:
        path = Path(self.weights)
        if path.is_dir():
            count, known = len(_weights_in(path)), ", ".join(_WEIGHT_SUFFIXES)
            raise ValueError(f"weights: {path} holds {count} files of weights ({known}), expected one; name the file")
        if not path.is_file():
            raise ValueError(
                f"weights: {self.weights!r} is no file, and {self.family} is not on the model hub; correct it"
            )

    @property
    def starts_from_file(self) -> bool:
        """Whether `weights` is a file."""
        return Path(self.weights).is_file()

    @property
    def clip_sampling(self) -> FrameSampling:
        """Section `frame_sampling` with the number of frames."""
        return self.frame_sampling.of(self.num_frames)


def _checks_paths(info: ValidationInfo) -> bool:
    return (info.context or {}).get("check_paths", True)


def _is_hub_id(weights: str) -> bool:
    return is_hub_id(weights) and Path(weights).suffix not in _WEIGHT_SUFFIXES


def _weights_in(folder: Path) -> list[Path]:
    """The best weights of a run's folder, else all files of weights; none where `save_pretrained` wrote it."""
    if (best := folder / BEST_FILE).is_file():
        return [best]
    if (folder / "config.json").is_file():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
