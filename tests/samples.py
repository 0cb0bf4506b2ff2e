"""Small made-up data sets that the tests build on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.artifacts import CLIP_INDEX, IMAGE_INDEX, write_table
from utils.checkpoints import ModelDescription
from utils.clips import write_clip
from utils.files import sha256_file
from utils.indices import ClassInfo

CLASSES = (("c0", "zero"), ("c1", "one"))


def random_image(seed: int, size: int = 32) -> np.ndarray:
    """uint8 (size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_image_set(
    root: Path, *, per_class: int = 3, size: int = 32, splits: tuple[str, ...] = ("train", "val")
) -> Path:
    """An image set as Data_Sourcing writes it: two classes, random PNGs."""
    for offset, split in enumerate(splits):
        rows = []
        for label, (wnid, name) in enumerate(CLASSES):
            for number in range(per_class):
                path = root / split / wnid / f"{wnid}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random_image(1000 * offset + 100 * label + number, size)).save(path)
                rows.append(
                    {
                        "image_path": path.relative_to(root).as_posix(),
                        "label": label,
                        "class_name": name,
                        "wnid": wnid,
                        "sha256": sha256_file(path),
                    }
                )
        write_table(rows, root / f"{split}.csv", IMAGE_INDEX)
    return root


def write_raw_set(
    root: Path, *, per_class: int = 3, wnids: tuple[str, ...] = ("c0", "c1", "c9"), size: int = 32
) -> Path:
    """A raw data set in the Tiny ImageNet layout; `c9` is a class that a filter must drop."""
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(wnids)))
    (root / "words.txt").write_text("".join(f"{wnid}\tname of {wnid}, other name\n" for wnid in wnids))
    annotations = []
    for position, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for number in range(per_class):
            image = Image.fromarray(random_image(100 * position + number, size))
            image.save(folder / f"{wnid}_{number}.JPEG", format="JPEG")
            name = f"val_{number * len(wnids) + position}.JPEG"
            Image.fromarray(random_image(5000 + 100 * position + number, size)).save(
                root / "val" / "images" / name, format="JPEG"
            )
            annotations.append((number * len(wnids) + position, f"{name}\t{wnid}\t0\t0\t1\t1\n"))
    (root / "val" / "val_annotations.txt").write_text("".join(line for _, line in sorted(annotations)))
    return root


def write_clip_set(
    root: Path, *, per_class: int = 3, size: int = 32, num_frames: int = 3, published: bool = False
) -> Path:
    """Clips as Data_Augmentation_SVD writes them, or with the published two columns."""
    for offset, split in enumerate(("train", "val")):
        rows = []
        for label, (wnid, name) in enumerate(CLASSES):
            for number in range(per_class):
                path = root / split / f"{len(rows):05d}.mp4"
                frames = np.stack(
                    [random_image(1000 * offset + 100 * label + number + 7 * t, size) for t in range(num_frames)]
                )
                write_clip(path, frames)
                rows.append(
                    {
                        "video_path": path.name,
                        "label": label,
                        "class_name": name,
                        "wnid": wnid,
                        "source_path": f"{split}/{wnid}/{number}.png",
                        "source_sha256": f"{offset:02d}{label:02d}{number:060d}",
                        "sha256": sha256_file(path),
                        "generator": "static",
                        "seed": number,
                        "num_frames": num_frames,
                        "height": size,
                        "width": size,
                        "kept_frames": " ".join(map(str, range(num_frames))),
                        "visible_fraction": 1.0,
                        "clip_number": 0,
                        "attempt": 0,
                        "status": "ok",
                        "reason": "",
                    }
                )
        if published:
            lines = "".join(f"{row['video_path']},{row['label']}\r\n" for row in rows)
            (root / f"{split}.csv").write_text("video_path,label\r\n" + lines, newline="")
        else:
            write_table(rows, root / f"{split}.csv", CLIP_INDEX)
    return root


def description_of(
    model_type: str, options: dict, classes: Sequence[ClassInfo], form: dict, **known
) -> ModelDescription:
    """What weights say of themselves; what is not given has a value that no test is about."""
    told = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "train_input": "original", "protocol": "custom", "seed": 0}
    told |= {"selection_split": "hold_out", "epoch": 1, "metric": {}} | known
    return ModelDescription(type=model_type, options=options, classes=tuple(classes), input=form, **told)
