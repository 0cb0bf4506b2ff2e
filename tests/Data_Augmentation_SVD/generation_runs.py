"""What the tests of the generation stage share: small camera runs, what they left, and faults to plant in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import random_image

from Data_Augmentation_SVD.generators import CLIP_GENERATORS
from Data_Augmentation_SVD.settings import GenerationSettings
from utils.artifacts import CLIP_INDEX, IMAGE_INDEX, read_table, write_table
from utils.config import build_settings
from utils.files import sha256_file

SPLITS = ("train", "val")
NUM_CLIPS = 6  # a split
Fault = Callable[[np.ndarray], np.ndarray]


def settings_for(data_root: Path, output: Path, **keys) -> GenerationSettings:
    """A run of the camera at 64 x 64, saved at 32 x 32, that ends when a clip is bad."""
    content = {"data_root": str(data_root), "output_dir": str(output), "generator": "camera_motion", "frame_size": 32}
    content |= {"geometry": {"height": 64, "width": 64, "fit": "pad", "output": "undo"}}
    content |= {"checks": {"min_source_correlation": -1}}  # noise that moves is unlike itself
    return build_settings(GenerationSettings, content | {"max_failed_fraction": 0.01} | keys, "test")


def rows_of(output: Path, split: str = "train") -> list[dict]:
    return read_table(output / f"{split}.csv", CLIP_INDEX).to_dict("records")


def clip_hashes(output: Path) -> set[str]:
    """SHA-256 of all clips that were written, whatever their names and indices."""
    return {sha256_file(path) for path in output.rglob("*.mp4")}


def write_shuffled(data_root: Path, target: Path, *, seed: int = 0) -> Path:
    """The same images in another order of the index."""
    shutil.copytree(data_root, target)
    for split in SPLITS:
        table = read_table(data_root / f"{split}.csv", IMAGE_INDEX)
        order = np.random.default_rng(seed).permutation(len(table))
        assert list(order) != sorted(order)
        write_table(table.iloc[order], target / f"{split}.csv", IMAGE_INDEX)
    return target


def smooth_image(seed: int, height: int = 48, width: int = 48, *, cells: int = 5) -> np.ndarray:
    """uint8 (height, width, 3): coloured blobs, `cells` along each side."""
    coarse = Image.fromarray(random_image(seed, cells))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def content_of(output: Path, *, without: str = "") -> dict[str, bytes]:
    """All files of a stage's folder but those that say when and where it was made.

    Args:
        without: a folder to leave out, too.
    """
    skip = ("config.yaml", "environment.json", "generation_stats.json", "README.md")
    files = (path for path in output.rglob("*") if path.is_file() and path.name not in skip)
    content = {path.relative_to(output).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in content.items() if not without or not name.startswith(f"{without}/")}


def stamps_of(output: Path) -> dict[Path, int]:
    """When each file was last written; opening a lock writes nothing."""
    return {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def clip_bytes_by_source(output: Path, split: str = "train") -> dict[str, bytes]:
    return {row["source_sha256"]: (output / split / row["video_path"]).read_bytes() for row in rows_of(output, split)}


def break_image(data_root: Path, position: int, split: str = "train") -> str:
    """Put a text file in an image's place, with its right hash in the index; return its path there."""
    table = read_table(data_root / f"{split}.csv", IMAGE_INDEX)
    name = table["image_path"].iloc[position]
    (data_root / name).write_text("no image")
    table.iloc[position, table.columns.get_loc("sha256")] = sha256_file(data_root / name)
    write_table(table, data_root / f"{split}.csv", IMAGE_INDEX)
    return name


def plant_faults(patch: pytest.MonkeyPatch, faults: dict[int, Fault]) -> list[int]:
    """Let the camera's clips of some seeds go wrong.

    Args:
        faults: from a clip's seed to what becomes of its frames; it may raise.

    Returns:
        a list that gets every seed of which a clip is finished.
    """
    build, seeds = CLIP_GENERATORS["camera_motion"], []

    def build_faulty(settings: GenerationSettings):
        generator = build(settings)
        finish = generator.finish

        def finish_wrong(draft: int, image: np.ndarray) -> np.ndarray:
            seeds.append(draft)
            frames = finish(draft, image)
            return faults[draft](frames) if draft in faults else frames

        generator.finish = finish_wrong
        return generator

    patch.setitem(CLIP_GENERATORS, "camera_motion", build_faulty)
    return seeds


def raising(error: Exception) -> Fault:
    """A fault that is an error."""

    def fail(frames: np.ndarray) -> np.ndarray:
        raise error

    return fail
