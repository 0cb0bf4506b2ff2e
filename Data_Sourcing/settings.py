"""Settings of the sourcing stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from utils.config import Form, Fraction, InputPath, NonNegativeInt, PositiveInt, Settings

FOLDER_NAME = r"[^.\s/\\\x00-\x1f][^/\\\x00-\x1f]*"  # any name but hidden ones and those with slashes
_Name = Annotated[str, Form(r"^\S.*$", "text that begins with no blank")]
_Share = Annotated[float, Field(gt=0, le=1)]
_INDEX_CSV = Path("index.csv")
_FolderName = Annotated[str, Form(f"^{FOLDER_NAME}$", "a folder's name, without slashes and not hidden")]
_Md5 = Annotated[str, Form(r"^[0-9a-f]{32}$", "32 of the digits 0 to 9 and a to f")]


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
    download_md5: _Md5 = "90528d7ca1a48142e341f4ef8d21d0de"
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


class SplitFractions(Settings):
    """Section `splits`: shares of the videos of each class, where the layout brings no splits; they sum to 1.

    Attributes:
        train, val, test: `test: 0` leaves that split out. Where the layout has train but no val, val is drawn from
            train in the proportion of the two.
    """

    train: _Share = 0.7
    val: _Share = 0.15
    test: Fraction = 0.15

    @model_validator(mode="after")
    def _sum_is_one(self) -> SplitFractions:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"{self.train:g} + {self.val:g} + {self.test:g} must be 1")
        return self


class Ucf101Settings(Settings):
    """Section `ucf101`: the official lists.

    Attributes:
        annotations: the folder with `classInd.txt`, `trainlist0K.txt` and `testlist0K.txt`; null is
            `data_root/ucfTrainTestlist`.
        split: K.
        test_as_val: the official test list becomes val, and there is no test split. False draws val from the train
            list by groups, and keeps the test list for the end.
    """

    annotations: InputPath | None = None
    split: Annotated[int, Field(ge=1, le=3)] = 1
    test_as_val: bool = False


class IndexVideosSettings(Settings):
    """`index_videos.py`.

    Attributes:
        data_root: the folder with the videos, which stay where they are.
        output_dir: where `train.csv`, `val.csv`, `test.csv` and the class distribution are written.
        layout: `folders` (`<class>/*` or `{train,val,test}/<class>/*`); `labels_json` (`{train,val,test}/labels.json`,
            or one at the root: `{file: label}` or `{file: {task: label}}`); `ucf101` (its official lists);
            `clip_index` (any).
        index_csv: of `clip_index` alone, below `data_root` or as a path.
        classes: names in label order; null takes all, sorted. Other folders (or UCF101's other classes) are left out;
            where labels are numbers, these are their names.
        splits: see `SplitFractions`; splits that the layout brings are kept, and nothing is drawn where train and val
            are among them.
        ucf101: of `ucf101` alone, see `Ucf101Settings`.
        group_pattern: regular expression with one group, searched in each video's path below `data_root`: videos with
            the same match are of one source and on one side of every split.
        groups_csv: instead of it, a table `video_path,group` with every video.
        per_class: balanced subsets: so many videos of each class, of each split that the layout brings; as many as the
            rarest class has where that is less. With several tasks the classes are the combinations of all labels, and
            videos that lack one are left out; where no video has all labels, the combinations of what is there.
        keep_in_train: class -> share of its training videos that is kept, at least one; the others are in no split.
            Makes a training set whose classes are not equally frequent; val and test stay whole. With several tasks
            the classes are the combinations of all labels.
        min_frames: a shorter video is a row with a reason.
        max_failed_fraction: end with exit code 2 when a larger share of the videos cannot be used.
        seed: of the splits and of the subsets.
        workers: threads that decode.
        overwrite: replace what an earlier run with other settings wrote; probed videos are not decoded again.
    """

    data_root: InputPath
    output_dir: Path
    layout: Literal["folders", "labels_json", "ucf101", "clip_index"]
    index_csv: Path = _INDEX_CSV
    classes: Annotated[tuple[_Name, ...], Field(min_length=1)] | None = None
    splits: SplitFractions = SplitFractions()
    ucf101: Ucf101Settings = Ucf101Settings()
    group_pattern: str | None = None
    groups_csv: InputPath | None = None
    per_class: PositiveInt | None = None
    keep_in_train: dict[str, _Share] = Field(default_factory=dict)
    min_frames: PositiveInt = 1
    max_failed_fraction: Fraction = 0.05
    seed: NonNegativeInt = 0
    workers: PositiveInt = 2
    overwrite: bool = False

    @field_validator("group_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        try:
            num_groups = None if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error}); correct it") from None
        if num_groups not in (None, 1):
            raise ValueError(f"{pattern!r} has {num_groups} groups, expected one pair of parentheses around the group")
        return pattern

    @model_validator(mode="after")
    def _keys_agree(self) -> IndexVideosSettings:
        if self.group_pattern is not None and self.groups_csv is not None:
            raise ValueError("group_pattern and groups_csv both say the groups; keep one of them")
        if self.classes is not None and self.layout == "clip_index":
            raise ValueError("classes: a clip index says its classes itself; drop the key")
        # Compared with the defaults, which a YAML may spell out.
        if self.layout != "clip_index" and self.index_csv != _INDEX_CSV:
            raise ValueError(f"index_csv: is for layout=clip_index, not {self.layout}; drop the key")
        if self.layout != "ucf101" and self.ucf101 != Ucf101Settings():
            raise ValueError(f"ucf101: is for layout=ucf101, not {self.layout}; drop the section")
        doubled = sorted({name for name in self.classes or () if (self.classes or ()).count(name) > 1})
        if doubled:
            raise ValueError(f"classes: {doubled[0]!r} is listed twice; keep one of them")
        return self
