"""Settings of the 2-D trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from utils.config import Fraction, InputPath
from utils.settings import VggSettings


class BaselineSettings(VggSettings):
    """`train.py`; all other keys are described in `utils.settings`.

    Attributes:
        train_input: `original` (the images), `first_frame`, `all_frames` (of the clips, each frame an item), or `mix`:
            the images, each replaced with probability `mix_probability` by a random frame of one of its clips.
        data_root: a folder with our image index, or the raw Tiny ImageNet layout; for `original` and `mix`.
        wnids_file: one class a line, in label order (raw layout only).
        clips_root: the folder of the clips; for all inputs but `original`. `train_csv`, `val_csv`: their indices, below
            `clips_root` or as a path.
        num_frames: frames a clip.
    """

    NETWORK: ClassVar[str] = "baseline"

    train_input: Literal["original", "first_frame", "all_frames", "mix"] = "original"
    mix_probability: Fraction = 0.5
    data_root: InputPath | None = None
    wnids_file: InputPath | None = None
    clips_root: InputPath | None = None
    train_csv: Path = Path("train.csv")
    val_csv: Path = Path("val.csv")
    num_frames: Annotated[int, Field(ge=1, validation_alias=AliasChoices("num_frames", "time_dim"))] = 3
    output_dir: Path = Path("runs/baseline")

    @model_validator(mode="after")
    def _has_its_data(self) -> BaselineSettings:
        problems = []
        if self.uses_images and self.data_root is None:
            problems.append(f"'data_root' is missing; give the image set for train_input: {self.train_input}")
        if self.uses_clips and self.clips_root is None:
            problems.append(
                f"'clips_root' is missing; give the folder of the clips for train_input: {self.train_input}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def uses_images(self) -> bool:
        """Whether the images themselves are looked at."""
        return self.train_input in ("original", "mix")

    @property
    def uses_clips(self) -> bool:
        """Whether frames of clips are looked at."""
        return self.train_input != "original"
