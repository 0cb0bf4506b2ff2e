"""Settings that all trainers share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from utils.config import Form, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings
from utils.protocols import fill_in, label

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Mean = tuple[Fraction, Fraction, Fraction]
Std = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Device = Annotated[str, Form(r"^(auto|cpu|cuda(:\d+)?|mps)$", "auto, cpu, cuda, cuda:N or mps")]
Precision = Literal["fp32", "bf16", "fp16"]
ImageSize = Annotated[int, Field(ge=32, le=4096)]
ClassifierWidth = Annotated[int, Field(ge=1, le=65536)]
_BelowOne = Annotated[float, Field(ge=0, lt=1)]
_Share = Annotated[float, Field(gt=0, le=1)]


class AugmentationSettings(Settings):
    """Section `augmentation`: drawn for each item of a batch while training, for all frames of a clip alike.

    Attributes:
        horizontal_flip: mirror with probability 0.5.
        crop_min_area: crop to a random share of the area, from this to 1, and scale back; 1 does not crop.
        brightness, contrast, saturation: factors from 1 - value to 1 + value; 0 changes nothing.
        hue: turns the colour circle by up to this share of it, either way; 0 changes nothing, 0.5 any colour to any.
        rotation_degrees: turns by up to this angle, either way; what that uncovers is set to the mean; 0 does not turn.
        rand_augment_ops: operations of RandAugment (Cubuk et al. 2020) that each item gets; 0 is none, 2 is usual.
        rand_augment_magnitude: their strength, 0 to 30; 9 is usual, higher distorts more.
        erase_probability: of a random box being set to the mean.
        mixup_alpha: mix items with their labels (Zhang et al. 2018); 0 does not, 0.2 is usual.
        cutmix_alpha: paste a box of another item, the same in all frames (Yun et al. 2019); 0 does not, 1 is usual.
    """

    horizontal_flip: bool = False
    crop_min_area: _Share = 1.0
    brightness: _BelowOne = 0.0
    contrast: _BelowOne = 0.0
    saturation: _BelowOne = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    rand_augment_ops: Annotated[int, Field(ge=0, le=14)] = 0
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    erase_probability: Fraction = 0.0
    mixup_alpha: NonNegativeFloat = 0.0
    cutmix_alpha: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _has_operations_of_this_magnitude(self) -> AugmentationSettings:
        default = type(self).model_fields["rand_augment_magnitude"].default
        if self.rand_augment_magnitude != default and not self.rand_augment_ops:
            raise ValueError("rand_augment_magnitude: belongs to rand_augment_ops, which is 0; set it, e.g. to 2")
        return self


class HoldOutSettings(Settings):
    """Section `hold_out`: the part of the training set that chooses the best epoch (`selection: hold_out`).

    Attributes:
        fraction: of the sources of each class.
        seed: of the draw; not the run's seed, so that all seeds of an arm share one hold-out.
        file: drawn once and written here, read by every other run; null is `hold_out.csv` beside `output_dir`.
        unlisted: what becomes of items whose source the file does not list: `refuse` them, or `leave_out`, so that the
            file says which sources all arms are trained on.
    """

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: NonNegativeInt = 0
    file: Path | None = None
    unlisted: Literal["refuse", "leave_out"] = "refuse"


class TrainingSettings(Settings):
    """What every trainer needs.

    Attributes:
        protocol: `paper`, `matched`, or the path of a file like those in `utils/protocols`: values of the keys that are
            not given. `none`: the defaults shown here. A run that departs from its protocol is recorded as `custom`.
        selection: what chooses the best epoch: `hold_out` (of the training set), or `val`, the split that is reported.
        batch_size: items an update, over all processes; higher is faster and needs more memory.
        accumulate: compute an update in this many parts; less memory, the same update but for BatchNorm.
        epochs: passes over the training set. `updates`: where given, the run has this many updates instead, whatever
            `epochs` says; but `epochs` alone wins over a protocol's `updates`.
        sampling: `shuffled`, or `class_balanced` (drawn with replacement, all classes equally often;
            with several tasks all combinations of labels, and items that lack a label as often as if shuffled).
        optimizer: `sgd`, or `adamw` (with `momentum` as its first and `beta2` as its second decay rate).
        lr: learning rate. `lr_scaling`: times batch_size / lr_batch_size (`linear`) or the root of it (`sqrt`).
        schedule: `step` (every `lr_step` epochs times `lr_gamma`), `cosine` (down to `min_lr` at the last update),
            `plateau` (times `lr_gamma` after more than `plateau_patience` epochs without a lower loss), `constant`.
        warmup_updates: over which the rate rises from 0.
        label_smoothing: 0.1 is usual. `focal_gamma`: weight of hard items (Lin et al. 2017); 2 is usual.
        clip_grad_norm: upper bound of the gradient's norm; null does not clip.
        ema_decay: evaluate and keep an exponential average of the weights; 0 does not, 0.999 averages long.
        early_stopping_patience: stop after so many epochs without a better top-1; null does not.
        freeze_layers: of the first so many layers nothing is trained: convolutions and linear layers with their
            BatchNorm; of a clip classifier what comes before its blocks, then its blocks.
        layer_lr_decay: each layer's rate is this times that of the layer above it; 1 gives all the same.
        mean, std: normalisation per RGB channel, of values in 0..1.
        weights: of a VGG, `imagenet`, `none` (random), or a checkpoint's path.
        image_size: side of the network's input in pixels.
        precision: `bf16` and `fp16` train under autocast; faster where the hardware has it. In `fp32`, cuDNN's
            convolutions still multiply in TF32 where the GPU has it, as by torch's default.
        compile: `default` and `max` pass the network to torch.compile: faster steps after minutes of compiling.
        deterministic: only algorithms that give the same bits again; a network that CUDA has none for is refused.
        device: `auto` is the GPU if there is one; or `cpu`, `cuda`, `cuda:1`, `mps`.
        workers: threads that decode, at most one a core.
        cache: keep decoded pixels in one file, so that every item is decoded once. `cache_dir`: null is `cache` beside
            `output_dir`, which all runs there share.
        checkpoint_every_s: save in mid-epoch, too, after so many seconds; null saves after each epoch (and on SIGTERM).
        tensorboard: write event files to `tensorboard/` in the run folder.
    """

    NETWORK: ClassVar[str] = ""
    # What makes no result, or is another axis of a comparison than the protocol.
    NOT_PROTOCOL: ClassVar[frozenset[str]] = frozenset(
        """protocol output_dir overwrite seed device workers cache cache_dir checkpoint_every_s tensorboard compile
        deterministic data_root train_csv val_csv wnids_file clips_root num_classes temporal_conv""".split()  # noqa: SIM905
    )

    protocol: str = "none"
    selection: Literal["hold_out", "val"] = "hold_out"
    hold_out: HoldOutSettings = HoldOutSettings()
    batch_size: PositiveInt = 32
    accumulate: PositiveInt = 1
    epochs: PositiveInt = 30
    updates: PositiveInt | None = None
    sampling: Literal["shuffled", "class_balanced"] = "shuffled"
    augmentation: AugmentationSettings = AugmentationSettings()
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 1e-3
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    lr_batch_size: PositiveInt = 32
    momentum: _BelowOne = 0.9
    beta2: _BelowOne = 0.999
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Literal["step", "cosine", "plateau", "constant"] = "step"
    lr_step: PositiveInt = 10
    lr_gamma: _Share = 0.1
    plateau_patience: NonNegativeInt = 5
    warmup_updates: NonNegativeInt = 0
    min_lr: NonNegativeFloat = 0.0
    label_smoothing: _BelowOne = 0.0
    focal_gamma: NonNegativeFloat = 0.0
    clip_grad_norm: PositiveFloat | None = None
    ema_decay: _BelowOne = 0.0
    early_stopping_patience: PositiveInt | None = None
    freeze_layers: NonNegativeInt = 0
    layer_lr_decay: _Share = 1.0
    mean: Mean = IMAGENET_MEAN
    std: Std = IMAGENET_STD
    output_dir: Path
    weights: str = "imagenet"
    image_size: ImageSize = 224
    dropout: _BelowOne = 0.5
    seed: NonNegativeInt = 0
    precision: Precision = "fp32"
    compile: Literal["none", "default", "max"] = "none"
    deterministic: bool = False
    device: Device = "auto"
    workers: NonNegativeInt = 2
    cache: bool = True
    cache_dir: Path | None = None
    checkpoint_every_s: PositiveFloat | None = 600
    tensorboard: bool = False
    overwrite: bool = False

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add the protocol's values of keys that are not given."""
        return fill_in(cls, raw)

    @field_validator("cache_dir")
    @classmethod
    def _cache_is_a_folder(cls, cache_dir: Path | None, info) -> Path | None:
        if cache_dir is not None and (info.context or {}).get("check_paths", True) and cache_dir.is_file():
            raise ValueError(f"{cache_dir} is a file; name a folder, which is made where there is none")
        return cache_dir

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

    @model_validator(mode="after")
    def _rates_agree(self) -> TrainingSettings:
        scaling = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[self.lr_scaling]
        if self.min_lr > (scaled := self.lr * (self.batch_size / self.lr_batch_size) ** scaling):
            raise ValueError(f"min_lr: is {self.min_lr:g}, above the learning rate {scaled:g}; lower it")
        if self.updates is not None and self.warmup_updates >= self.updates:
            raise ValueError(
                f"warmup_updates: is {self.warmup_updates}, but the run has {self.updates} updates; lower it"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: {self.batch_size} items cannot make {self.accumulate} parts; lower it")
        return self

    @property
    def starts_from_file(self) -> bool:
        """Whether `weights` is a checkpoint's path."""
        return self.weights not in ("imagenet", "none")

    @property
    def protocol_values(self) -> dict[str, Any]:
        """The keys that make the result, but data, seed and machine: what two runs of one comparison must share."""
        values = self.model_dump(mode="json", exclude=set(self.NOT_PROTOCOL))
        for key in ("file", "unlisted"):  # which sources there are: data, not protocol
            values["hold_out"].pop(key)
        return values

    @property
    def protocol_label(self) -> str:
        """The protocol's name where nothing departs from it, else `custom`."""
        return label(self)

    @property
    def weights_argument(self) -> str | None:
        """For a builder: None is random."""
        return None if self.weights == "none" else self.weights

    @property
    def shared_cache_dir(self) -> Path | None:
        """Where decoded pixels are kept; None keeps none."""
        return (self.cache_dir or self.output_dir.parent / "cache") if self.cache else None

    @property
    def hold_out_file(self) -> Path:
        """Where the hold-out is, or will be."""
        return self.hold_out.file or self.output_dir.parent / "hold_out.csv"


class VggSettings(TrainingSettings):
    """What both VGG trainers need.

    Attributes:
        classifier_width: width of the two hidden classifier layers; 4096 is the paper's.
    """

    classifier_width: ClassifierWidth = 4096
