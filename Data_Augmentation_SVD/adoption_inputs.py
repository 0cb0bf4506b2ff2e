"""What adoption starts from: the published clips, the still images, and the order that ties the val clips to theirs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from Data_Augmentation_SVD.settings import AdoptionSettings
from Data_Sourcing.raw_layout import list_images, open_raw_tree, read_wnids, read_words
from Data_Sourcing.settings import SourcingSettings
from utils.artifacts import CLIP_INDEX, IMAGE_INDEX, read_table
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.files import resolve_item, sha256_bytes, sha256_file
from utils.indices import ClassInfo, ItemIndex, classes_of, read_image_index
from utils.runs import PROJECT_ROOT

SPLITS = ("train", "val")
_PAPER_CLASSES = PROJECT_ROOT / "Data_Sourcing" / "sourcing_config.yaml"
_ANNOTATIONS = "val/val_annotations.txt"


@dataclass(frozen=True)
class PublishedClips:
    """One split of the published clips: one line, name, label and file a clip, in the order of the index."""

    index_path: Path
    lines: list[int]
    names: list[str]
    labels: list[int]
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.names)


def read_classes(settings: AdoptionSettings) -> tuple[ClassInfo, ...]:
    """The classes in label order: the paper's, as the sourcing stage has them, or those of `wnids_file`.

    Raises:
        InputError: a bad class list, or no raw layout.
    """
    if settings.wnids_file is None:
        paper = build_settings(SourcingSettings, read_yaml(_PAPER_CLASSES), str(_PAPER_CLASSES), check_paths=False)
        return tuple(ClassInfo(label, item.name, item.wnid) for label, item in enumerate(paper.classes))
    wnids = read_wnids(settings.wnids_file)
    words = {} if _is_image_set(settings.raw_root) else read_words(open_raw_tree(settings.raw_root))
    return tuple(ClassInfo(label, words.get(wnid, wnid), wnid) for label, wnid in enumerate(wnids))


def describe_inputs(settings: AdoptionSettings, classes: tuple[ClassInfo, ...]) -> dict[str, Path | str]:
    """What tells one set of inputs from another at little cost, for `open_run`: indices, names and sizes of files."""
    raw_root = settings.raw_root
    clip_folders = [settings.clips_root / split for split in SPLITS]
    if _is_image_set(raw_root):
        images = {f"{split}_images": raw_root / f"{split}.csv" for split in SPLITS}
    else:
        root = _open_raw_root(raw_root)
        images = {"raw data": _listing(root, [root / "val", *(root / "train" / item.wnid for item in classes)])}
    return {
        "train_index": settings.clips_root / "train.csv",
        "val_index": settings.clips_root / "val.csv",
        "clips": _listing(settings.clips_root, clip_folders),
        "classes": ", ".join(f"{item.wnid} {item.class_name}" for item in classes),
        **images,
    }


def read_published_clips(clips_root: Path, split: str, num_classes: int) -> PublishedClips:
    """One split's index, the published one with two columns; its clips must be there.

    Raises:
        InputError: no index, a malformed row, a label out of range, or a missing clip.
    """
    index_path = clips_root / f"{split}.csv"
    if not index_path.is_file():
        raise InputError(
            f"clips_root: {clips_root} has no {split}.csv; give the published data set (train/, val/, train.csv, "
            "val.csv)"
        )
    table = read_table(index_path, CLIP_INDEX)
    classes_of(table, index_path, num_classes)  # labels in range
    names = list(table["video_path"])
    lines = [int(line) for line in table.index]
    paths = [
        resolve_item(clips_root / split, name, f"{index_path} line {line}")
        for line, name in zip(lines, names, strict=True)
    ]
    return PublishedClips(index_path, lines, names, [int(label) for label in table["label"]], paths)


def read_sources(raw_root: Path, split: str, classes: tuple[ClassInfo, ...]) -> ItemIndex:
    """The still images of one split: of the raw layout, or of the image set that Data_Sourcing made of it.

    Val images come in the order of the annotations, which both keep.

    Raises:
        InputError: neither layout, a missing image, or another class list.
    """
    if _is_image_set(raw_root):
        images = read_image_index(raw_root / f"{split}.csv", num_classes=len(classes))
        found = [item.wnid for item in images.classes]
        if found != [item.wnid for item in classes]:
            raise InputError(
                f"{images.index_path}: has the classes {', '.join(found)}, expected "
                f"{', '.join(item.wnid for item in classes)}; give the image set of these classes, or a wnids_file"
            )
        return images
    root = _open_raw_root(raw_root)
    if split == "val" and not (root / _ANNOTATIONS).is_file():
        raise InputError(f"raw_root: {root} has no {_ANNOTATIONS}, whose order names the val clips; restore it")
    return _read_raw_images(root, split, classes)


def require_val_order(clips: PublishedClips, images: ItemIndex) -> None:
    """Make sure that the i-th val clip has the class of the i-th val image.

    Raises:
        InputError: another number of clips than images, or the first label that contradicts.
    """
    wnids = {item.label: item.wnid for item in images.classes}
    for line, name, label, image, image_label in zip(
        clips.lines, clips.names, clips.labels, images.table["image_path"], images.labels, strict=False
    ):
        if label != image_label:
            raise InputError(
                f"{clips.index_path} line {line}: {name} has label {label} ({wnids[label]}), but its place is that "
                f"of {image}, which is {wnids[image_label]} (label {image_label}) in {images.index_path}; restore "
                "the published val.csv and the annotations, or correct the class list"
            )
    if len(clips) != len(images):
        raise InputError(
            f"{clips.index_path}: has {len(clips)} clips, but {images.index_path} has {len(images)} val images of "
            "these classes; the order ties them, so none may be missing"
        )


def _is_image_set(raw_root: Path) -> bool:
    return any((raw_root / f"{split}.csv").is_file() for split in SPLITS)


def _open_raw_root(raw_root: Path) -> Path:
    if raw_root.is_file():
        raise InputError(f"raw_root: {raw_root} is a file; unpack it and give the folder")
    return Path(open_raw_tree(raw_root).name)


def _read_raw_images(root: Path, split: str, classes: tuple[ClassInfo, ...]) -> ItemIndex:
    by_wnid = {item.wnid: item for item in classes}
    rows, paths = [], []
    for image in list_images(open_raw_tree(root), split, list(by_wnid)):
        path, item = root / image.path, by_wnid[image.wnid]
        if not path.is_file():
            raise InputError(f"{root}: {image.path} is listed but missing; restore it")
        rows.append((image.path, item.label, item.class_name, item.wnid, sha256_file(path)))
        paths.append(path)
    source = root / (_ANNOTATIONS if split == "val" else "train")
    return ItemIndex(pd.DataFrame(rows, columns=IMAGE_INDEX.column_names), paths, classes, source)


def _listing(root: Path, folders: Iterable[Path]) -> str:
    """A hash of names and sizes of all files in some folders."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{path.relative_to(root)}\t{path.stat().st_size}\n" for path in files)
    return sha256_bytes(lines.encode("utf-8", "backslashreplace"))
