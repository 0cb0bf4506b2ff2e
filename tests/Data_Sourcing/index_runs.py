"""One run of `index_videos`, what it wrote, and how it refuses: for the tests of the script and of its layouts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from Data_Sourcing import class_distribution
from Data_Sourcing.settings import IndexVideosSettings
from Data_Sourcing.video_indexing import run_indexing
from utils.artifacts import VIDEO_INDEX, read_table
from utils.config import build_settings
from utils.errors import InputError

SPLITS = ("train", "val", "test")


def leave_out_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file instead of the bars, which would be most of a run's time."""
    monkeypatch.setattr(class_distribution, "_draw", lambda counted, path: path.touch())


def settings_for(raw: Path, output: Path, layout: str = "folders", **keys) -> IndexVideosSettings:
    content = {"data_root": str(raw), "output_dir": str(output), "layout": layout, "max_failed_fraction": 1.0}
    return build_settings(IndexVideosSettings, content | keys, "test")


def index(raw: Path, output: Path, layout: str = "folders", **keys) -> dict[str, list[dict]]:
    """Split -> rows, after a run."""
    run_indexing(settings_for(raw, output, layout, **keys))
    return rows_in(output)


def rows_in(output: Path) -> dict[str, list[dict]]:
    paths = {split: output / f"{split}.csv" for split in SPLITS}
    return {split: read_table(path, VIDEO_INDEX).to_dict("records") for split, path in paths.items() if path.exists()}


def split_of(rows: dict[str, list[dict]]) -> dict[str, str]:
    found = {row["video_path"]: split for split, of_split in rows.items() for row in of_split}
    assert len(found) == sum(map(len, rows.values())), "no video is listed twice"
    return found


def counts(rows: dict[str, list[dict]]) -> dict[str, dict[str, int]]:
    return {split: dict(Counter(row["class_name"] for row in of_split)) for split, of_split in rows.items()}


def refused(raw: Path, output: Path, layout: str = "folders", **keys) -> str:
    with pytest.raises(InputError) as error:
        run_indexing(settings_for(raw, output, layout, **keys))
    assert not list(output.glob("t*.csv")), "a refused run leaves no index"
    return str(error.value)
