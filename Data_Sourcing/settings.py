"""Settings of the sourcing stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from utils.config import NonNegativeInt, PositiveInt, Settings

FOLDER_NAME = r"[^.\s/\\\x00-\x1f][^/\\\x00-\x1f]*"  # any name but hidden ones and those with slashes
_Name = Annotated[str, StringConstraints(pattern=r"^\S.*$")]
_FolderName = Annotated[str, StringConstraints(pattern=f"^{FOLDER_NAME}$")]


class ClassSetting(Settings):
    """One class to keep; its position in the list is its label."""

    wnid: _FolderName
    name: _Name


class SourcingSettings(Settings):
    """`filter.py` and `val.py`.

    Attributes:
        raw_root: the raw data set in the Tiny ImageNet layout, a folder or a zip.
        output_dir: where `train/`, `val/`, `train.csv` and `val.csv` are written.
        classes: the classes to keep, in label order.
        download: fetch the data set to `raw_root` (a .zip path) first if it is not there.
        allow_duplicates: go on although an image is in train and in val.
        max_rejected_fraction: end with exit code 2 when a larger share of the images cannot be used.
        overwrite: replace what an earlier run with other settings wrote.
    """

    raw_root: Path
    output_dir: Path
    classes: Annotated[tuple[ClassSetting, ...], Field(min_length=1)]
    download: bool = False
    download_url: str = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    download_md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] = "90528d7ca1a48142e341f4ef8d21d0de"
    allow_duplicates: bool = False
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    overwrite: bool = False

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> SourcingSettings:
        for kind, values in (("wnid", [c.wnid for c in self.classes]), ("name", [c.name for c in self.classes])):
            doubled = sorted({value for value in values if values.count(value) > 1})
            if doubled:
                raise ValueError(f"classes: {kind} {doubled[0]!r} is listed twice; keep one of them")
        return self


class DemoDatasetSettings(Settings):
    """`demo_dataset.py`: scikit-learn's bundled digits in the raw Tiny ImageNet layout.

    Attributes:
        train_per_class: images of each digit for training; with `val_per_class` at most 174 together.
        image_size: side of the written JPEGs in pixels.
    """

    output_dir: Path
    train_per_class: PositiveInt = 60
    val_per_class: PositiveInt = 30
    image_size: Annotated[int, Field(ge=8, le=1024)] = 64
    seed: NonNegativeInt = 0
    overwrite: bool = False

    @model_validator(mode="after")
    def _enough_digits(self) -> DemoDatasetSettings:
        # The rarest digit (8) has 174 images in scikit-learn's set.
        if self.train_per_class + self.val_per_class > 174:
            raise ValueError("train_per_class + val_per_class must be at most 174, the images of the rarest digit")
        return self
