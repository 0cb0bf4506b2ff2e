"""Settings of the 3-D trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Field

from utils.config import InputPath, PositiveInt
from utils.settings import VggSettings


class InflatedSettings(VggSettings):
    """`train3d.py`; all other keys are described in `utils.settings`.

    Attributes:
        data_root: the folder with `train/` and `val/`.
        train_csv, val_csv: clip indices, below `data_root` or as a path; ours or the published two columns.
        num_classes: None takes it from the train index.
        num_frames: frames a clip; `time_dim` is the published name of the same key.
        weights: of the 2-D network that is inflated: `imagenet` (as the published code), `none`, or the path of the
            fine-tuned 2-D checkpoint (as the paper's text).
        init: `center` or `average`, see `Inflated_3D_VGG.vgg_inflated.inflate`.
        temporal_padding: `zeros` or `replicate`, in time only.
        copy_bn_stats: False drops BatchNorm's running statistics, as the published code did.
        temporal_conv: `four_product` computes clips of three frames with fewer operations, to the same result but for
            rounding; `conv3d` does not. Other clips, and `temporal_padding: replicate`, always take `conv3d`.
    """

    NETWORK: ClassVar[str] = "inflated"

    data_root: InputPath
    train_csv: Path = Path("train.csv")
    val_csv: Path = Path("val.csv")
    num_classes: PositiveInt | None = None
    num_frames: Annotated[int, Field(ge=1, validation_alias=AliasChoices("num_frames", "time_dim"))] = 3
    output_dir: Path = Path("runs/inflated")
    batch_size: PositiveInt = 8
    init: Literal["center", "average"] = "center"
    temporal_padding: Literal["zeros", "replicate"] = "zeros"
    copy_bn_stats: bool = True
    temporal_conv: Literal["four_product", "conv3d"] = "four_product"
