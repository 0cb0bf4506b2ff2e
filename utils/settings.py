"""Settings that both trainers share: the paper's values are the defaults (section 4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from utils.config import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Mean = tuple[Fraction, Fraction, Fraction]
Std = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
Precision = Literal["fp32", "bf16", "fp16"]
ImageSize = Annotated[int, Field(ge=32, le=4096)]
ClassifierWidth = Annotated[int, Field(ge=1, le=65536)]


class TrainingSettings(Settings):
    """What every trainer needs.

    Attributes:
        batch_size: items a step; higher is faster and needs more memory.
        workers: processes that decode; 0 decodes in the training process.
        lr: learning rate of SGD.
        lr_step, lr_gamma: every `lr_step` epochs the learning rate is multiplied by `lr_gamma`.
        mean, std: normalisation per RGB channel, of values in 0..1.
        weights: `imagenet`, `none` (random), or a checkpoint's path.
        image_size: side of the network's input in pixels.
        classifier_width: width of the two hidden classifier layers; 4096 is the paper's.
        horizontal_flip: mirror each training item with probability 0.5 (all frames of a clip alike).
        precision: `bf16` and `fp16` train under autocast; faster where the hardware has it.
        device: `auto` is the GPU if there is one.
    """

    PAPER: ClassVar[dict[str, Any]] = {
        **{"batch_size": 32, "epochs": 30, "lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "lr_step": 10},
        **{"lr_gamma": 0.1, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "weights": "imagenet", "image_size": 224},
        **{"classifier_width": 4096, "dropout": 0.5, "horizontal_flip": False, "precision": "fp32"},
    }

    batch_size: PositiveInt = 32
    workers: NonNegativeInt = 2
    epochs: PositiveInt = 30
    lr: PositiveFloat = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    lr_step: PositiveInt = 10
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    mean: Mean = IMAGENET_MEAN
    std: Std = IMAGENET_STD
    output_dir: Path
    weights: str = "imagenet"
    image_size: ImageSize = 224
    classifier_width: ClassifierWidth = 4096
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    horizontal_flip: bool = False
    seed: NonNegativeInt = 0
    precision: Precision = "fp32"
    device: Device = "auto"
    overwrite: bool = False

    @field_validator("weights")
    @classmethod
    def _weights_exist(cls, weights: str, info) -> str:
        if weights in ("imagenet", "none") or not (info.context or {}).get("check_paths", True):
            return weights
        if not Path(weights).is_file():
            raise ValueError(
                f"{weights!r} is neither imagenet, none, nor a checkpoint file; correct it or train it first"
            )
        return weights

    @property
    def starts_from_file(self) -> bool:
        """Whether `weights` is a checkpoint's path."""
        return self.weights not in ("imagenet", "none")

    @property
    def protocol(self) -> str:
        """`paper` where every key that makes the result has the paper's value, else `custom`."""
        values = self.model_dump(include=set(self.PAPER))
        return "paper" if values == self.PAPER else "custom"

    @property
    def weights_argument(self) -> str | None:
        """For a builder: None is random."""
        return None if self.weights == "none" else self.weights
