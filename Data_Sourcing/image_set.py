"""Images of one split for the later stages: from our image index, or straight from the raw Tiny ImageNet layout."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from Data_Sourcing.raw_layout import list_images, open_raw_tree, read_wnids, read_words
from utils.artifacts import IMAGE_INDEX
from utils.errors import InputError
from utils.files import sha256_file
from utils.indices import ClassInfo, ItemIndex, read_image_index, shard_range

log = logging.getLogger(__name__)


def read_image_set(
    data_root: Path,
    split: str,
    wnids_file: Path | None = None,
    *,
    num_classes: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> ItemIndex:
    """The images of one split, in label order (train) or annotation order (val).

    Args:
        data_root: a folder with our `train.csv`/`val.csv`, or the raw Tiny ImageNet layout.
        wnids_file: one class a line, in label order. Needed for the raw layout only to pick or order classes
            (default: its own `wnids.txt`); with an index it must agree with it.
        num_classes: labels must be below it; None takes the largest label + 1 (index) or all classes (raw layout).
        shard: (i, n) takes the i-th of n contiguous parts; only its files are read.

    Raises:
        InputError: neither layout, a bad file, or a class order that contradicts the index.
    """
    index_path = data_root / f"{split}.csv"
    if index_path.exists():
        images = read_image_index(index_path, num_classes=num_classes, shard=shard)
        if wnids_file is not None:
            _require_order(images, read_wnids(wnids_file), wnids_file)
        return images
    if not (data_root / "wnids.txt").is_file() and wnids_file is None:
        raise InputError(
            f"data_root: {data_root} has neither {split}.csv (run Data_Sourcing) nor wnids.txt (the raw layout)"
        )
    return _read_raw_images(data_root, split, read_wnids(wnids_file or data_root / "wnids.txt"), shard)


def warn_of_leaks(train: ItemIndex, val: ItemIndex) -> None:
    """Log how many val images are train images, too: sourcing refuses them, the raw layout does not ask."""
    known = set(train.table["sha256"])
    shared = [path for path, sha256 in zip(val.paths, val.table["sha256"], strict=True) if sha256 in known]
    if shared:
        log.warning(
            "%d val images are train images, too, the first: %s; val figures will be too good", len(shared), shared[0]
        )


def image_set_inputs(data_root: Path, wnids_file: Path | None) -> dict[str, Path]:
    """The files whose content fixes an image set, for `open_run`."""
    if (data_root / "train.csv").exists() or (data_root / "val.csv").exists():
        return {"train_index": data_root / "train.csv", "val_index": data_root / "val.csv"}
    return {
        "wnids_file": wnids_file or data_root / "wnids.txt",
        "val_annotations": data_root / "val/val_annotations.txt",
    }


def _read_raw_images(data_root: Path, split: str, wnids: list[str], shard: tuple[int, int]) -> ItemIndex:
    tree = open_raw_tree(data_root)
    words = read_words(tree)
    classes = tuple(ClassInfo(label, words.get(wnid, wnid), wnid) for label, wnid in enumerate(wnids))
    by_wnid = {item.wnid: item for item in classes}
    root = Path(tree.name)
    rows, paths = [], []
    images = list(list_images(tree, split, wnids))
    part = shard_range(len(images), shard)
    for image in images[part.start : part.stop]:
        path = root / image.path
        if not path.is_file():
            raise InputError(f"{root}: {image.path} is listed but missing; restore it, or run Data_Sourcing")
        item = by_wnid[image.wnid]
        rows.append((image.path, item.label, item.class_name, item.wnid, sha256_file(path)))
        paths.append(path)
    table = pd.DataFrame(rows, columns=IMAGE_INDEX.column_names)
    return ItemIndex(table, paths, classes, root, part.start, len(images))


def _require_order(images: ItemIndex, wnids: list[str], wnids_file: Path) -> None:
    found = [item.wnid for item in images.classes]
    if found != wnids:
        raise InputError(
            f"wnids_file: {wnids_file} lists {', '.join(wnids)} but {images.index_path} has the label order "
            f"{', '.join(found)}; drop wnids_file or run Data_Sourcing with that order"
        )
