"""Indices whose items exist: images and clips with labels, classes and stable ids."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.artifacts import IMAGE_INDEX, STATUS_OK, VIDEO_INDEX, read_table
from utils.errors import InputError
from utils.files import resolve_item, sha256_bytes, sha256_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassInfo:
    """One class: its label (position in the network's output), name, and WordNet id (or folder name)."""

    label: int
    class_name: str
    wnid: str = ""


@dataclass(frozen=True)
class ItemIndex:
    """An index whose items exist: `table` rows and `paths`, in the same order.

    Attributes:
        table: columns of the image or clip index.
        paths: one file a row.
        classes: label order; unnamed classes (a two-column index) are called by their number.
        index_path: the CSV it came from (or the folder of a raw data set).
        first_position: where these rows begin in the whole index, of which they may be a part.
        num_total: rows of the whole index.
    """

    table: pd.DataFrame
    paths: list[Path]
    classes: tuple[ClassInfo, ...]
    index_path: Path
    first_position: int = 0
    num_total: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> list[int]:
        """One label a row."""
        return [int(label) for label in self.table["label"]]

    @property
    def source_hashes(self) -> pd.Series:
        """The SHA-256 of each row's source image; empty where it is unknown."""
        # A clip's own hash is no name for its source: only an image index may use `sha256`.
        column = "sha256" if "image_path" in self.table else "source_sha256"
        return self.table[column] if column in self.table else pd.Series("", index=self.table.index)

    @property
    def source_ids(self) -> list[str]:
        """What each row was made from: its source image's SHA-256, or the row's own path where that is unknown."""
        hashes, path = self.source_hashes, "image_path" if "image_path" in self.table else "video_path"
        return hashes.where(hashes != "", self.table[path]).tolist()

    @property
    def has_groups(self) -> bool:
        """Whether the index names groups: source videos, persons or scenes that several rows share."""
        return "group" in self.table and bool((self.table["group"] != "").any())

    @property
    def groups(self) -> list[str]:
        """What must be on one side of every split: a row's group, or its source (`source_ids`) where it has none."""
        if not self.has_groups:
            return self.source_ids
        return [group or source for group, source in zip(self.table["group"], self.source_ids, strict=True)]

    @property
    def is_paired(self) -> bool:
        """Whether the source image of every row is known, so that arms can be compared item by item."""
        return bool((self.source_hashes != "").all())

    @property
    def item_ids(self) -> list[str]:
        """What an item is called in every table: its source's id, see `source_ids`; of a group, `GROUP#` and 16 digits.

        The digits are of the video's SHA-256. The second item of one id gets the suffix `#2`, and so on, so that ids
        are unique within a split; what stands before `#` is what trials must be independent of.
        """
        seen: Counter[str] = Counter()
        ids = []
        for item_id in self._named_sources():
            seen[item_id] += 1
            ids.append(item_id if seen[item_id] == 1 else f"{item_id}#{seen[item_id]}")
        return ids

    def _named_sources(self) -> list[str]:
        if not self.has_groups:
            return self.source_ids
        paths = self.table["video_path"]
        hashes = [known or sha256_bytes(path.encode()) for known, path in zip(self.source_hashes, paths, strict=True)]
        named = zip(self.table["group"], self.source_ids, hashes, strict=True)
        return [f"{group}#{sha256[:16]}" if group else source for group, source, sha256 in named]

    @property
    def clip_kind(self) -> str:
        """`clip:` and the generator's name; `clip:unknown` where the index does not say it, or names several."""
        generators = set(self.table["generator"]) if "generator" in self.table else set()
        return f"clip:{generators.pop() if len(generators) == 1 else 'unknown'}"


def shard_range(num_items: int, shard: tuple[int, int]) -> range:
    """Positions of the i-th of n parts, `shard` = (i, n) from (1, n): contiguous, of sizes that differ by at most 1."""
    part, num_parts = shard
    return range(num_items * (part - 1) // num_parts, num_items * part // num_parts)


def read_image_index(
    path: Path, *, num_classes: int | None = None, verify: bool = True, shard: tuple[int, int] = (1, 1)
) -> ItemIndex:
    """Read an image index; paths are relative to its folder.

    Args:
        num_classes: labels must be below it; None takes the largest label + 1.
        verify: compare every file with its sha256.
        shard: (i, n) takes the i-th of n contiguous parts; only its files are looked at.

    Raises:
        InputError: a malformed row, a missing, foreign or changed file.
    """
    table = read_table(path, IMAGE_INDEX)
    return _item_index(table, path, path.parent, "image_path", num_classes, verify, shard)


def read_clip_index(
    path: Path, clips_root: Path, *, num_classes: int | None = None, num_frames: int | None = None, verify: bool = True
) -> ItemIndex:
    """Read a clip index (ours, or the published one with two columns); only rows with status `ok` are kept.

    Args:
        clips_root: the folder that `video_path` is relative to.
        num_classes: labels must be below it; None takes the largest label + 1.
        num_frames: what each clip must hold where the index says it.
        verify: compare every file with its sha256, where the index has one.

    Raises:
        InputError: a malformed row, a label out of range, a missing, foreign or changed file.
    """
    table = keep_ok_clips(read_table(path, VIDEO_INDEX), path)
    if num_frames is not None and "num_frames" in table:
        for line, found in table["num_frames"].items():
            if not pd.isna(found) and found != num_frames:
                raise InputError(
                    f"{path} line {line}: num_frames is {found}, expected {num_frames}; set num_frames={found} or "
                    "regenerate with Data_Augmentation_SVD"
                )
    return _item_index(table, path, clips_root, "video_path", num_classes, verify)


def keep_ok_clips(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows of a clip index whose clip is there: those with status `ok`, or all where it has no status.

    Raises:
        InputError: no row is left.
    """
    kept = table[table["status"] == STATUS_OK] if "status" in table else table
    if kept.empty:
        raise InputError(f"{path}: no clip has status 'ok'; read the reasons there and make it again")
    return kept


def locate_clip_index(data_root: Path, csv_path: Path, split: str, clips_root: Path | None = None) -> tuple[Path, Path]:
    """Where a clip index and its clips are: `csv_path` below `data_root` or as given; clips in `data_root/split`.

    Args:
        clips_root: the folder of the clips, where it is another one.

    Returns:
        the index's path, and the folder that `video_path` is relative to.

    Raises:
        InputError: there is no such index.
    """
    candidates = (data_root / csv_path, csv_path)
    index_path = next((path for path in candidates if path.is_file()), None)
    if index_path is None:
        places = " nor ".join(str(path) for path in dict.fromkeys(candidates))
        key = "train_csv" if split == "train" else "val_csv"
        raise InputError(
            f"{key}: there is neither {places}; run the stage that makes it (Data_Augmentation_SVD, or "
            "Data_Sourcing.index_videos), or correct the path"
        )
    folder = data_root / split
    return index_path, clips_root or (folder if folder.is_dir() else data_root)


def read_clip_splits(
    data_root: Path,
    train_csv: Path,
    val_csv: Path,
    *,
    num_classes: int | None,
    num_frames: int | None,
    clips_root: Path | None = None,
) -> tuple[ItemIndex, ItemIndex]:
    """The clips of both splits, see `locate_clip_index` and `read_clip_index`; their classes agree.

    Raises:
        InputError: as those two.
    """
    train = read_clip_index(
        *locate_clip_index(data_root, train_csv, "train", clips_root), num_classes=num_classes, num_frames=num_frames
    )
    val = read_clip_index(
        *locate_clip_index(data_root, val_csv, "val", clips_root),
        num_classes=len(train.classes),
        num_frames=num_frames,
    )
    require_same_classes(train.classes, "the train split", val.classes, "the val split")
    if absent := sorted(set(range(len(train.classes))) - set(train.labels)):
        log.warning("%s has no clip of label %s", train.index_path, ", ".join(map(str, absent)))
    return train, val


# ImageNet-21k has 21,841; a far larger label is a mistake, and its class list would fill the memory.
MAX_CLASSES = 100_000


def classes_of(table: pd.DataFrame, path: Path, num_classes: int | None = None) -> tuple[ClassInfo, ...]:
    """The classes of an index in label order; labels no row has are called by their number.

    Raises:
        InputError: a label out of range, or one label with two names.
    """
    count = num_classes if num_classes is not None else min(int(table["label"].max()) + 1, MAX_CLASSES)
    has_names = "class_name" in table and "wnid" in table
    names: dict[int, tuple[str, str]] = {}
    for position, (line, label) in enumerate(table["label"].items()):
        if label >= count:
            raise InputError(
                f"{path} line {line}: label {label} is out of range for num_classes={count} (0..{count - 1})"
            )
        if has_names:
            name = (table["class_name"].iloc[position], table["wnid"].iloc[position])
            if names.setdefault(label, name) != name:
                raise InputError(
                    f"{path} line {line}: label {label} is {name[0]!r} ({name[1]}) here and "
                    f"{names[label][0]!r} ({names[label][1]}) before; one label is one class"
                )
    return tuple(ClassInfo(label, *names.get(label, (str(label), ""))) for label in range(count))


def distinct_names(classes: Sequence[ClassInfo]) -> tuple[str, ...]:
    """Names in label order, those of several classes made longer: ImageNet has two cranes, a bird and a machine."""
    counts = Counter(one.class_name for one in classes)
    ids = Counter((one.class_name, one.wnid) for one in classes)
    taken, names = set(counts), []
    for one in classes:
        name = one.class_name
        if counts[name] > 1:
            has_own_id = bool(one.wnid) and ids[name, one.wnid] == 1
            name = next(made for made in _longer_names(one, has_own_id) if made not in taken)
            taken.add(name)
        names.append(name)
    return tuple(names)


def _longer_names(one: ClassInfo, has_own_id: bool) -> Iterator[str]:
    """As many as it takes: another class may really be called `crane (1)`."""
    if has_own_id:
        yield f"{one.class_name} ({one.wnid})"
    for num_signs in itertools.count():
        yield f"{one.class_name} ({'#' * num_signs}{one.label})"


def require_same_classes(
    left: tuple[ClassInfo, ...], left_name: str, right: tuple[ClassInfo, ...], right_name: str
) -> None:
    """Refuse two class lists that differ in length or, where both are named, in order or names."""
    if len(left) != len(right):
        raise InputError(
            f"{left_name} has {len(left)} classes and {right_name} has {len(right)}; use the class list of the training"
        )
    for one, other in zip(left, right, strict=True):
        both_named = one.wnid and other.wnid
        if both_named and (one.wnid, one.class_name) != (other.wnid, other.class_name):
            raise InputError(
                f"label {one.label} is {one.class_name!r} ({one.wnid}) in {left_name} and {other.class_name!r} "
                f"({other.wnid}) in {right_name}; use the class list of the training"
            )


def _item_index(
    table: pd.DataFrame,
    index_path: Path,
    root: Path,
    path_column: str,
    num_classes: int | None,
    verify: bool,
    shard: tuple[int, int] = (1, 1),
) -> ItemIndex:
    classes = classes_of(table, index_path, num_classes)
    num_total, part = len(table), shard_range(len(table), shard)
    table = table.iloc[part.start : part.stop]
    paths = [resolve_item(root, item, f"{index_path} line {line}") for line, item in table[path_column].items()]
    if verify and "sha256" in table:
        for path, (line, expected) in zip(paths, table["sha256"].items(), strict=True):
            if expected and sha256_file(path) != expected:
                raise InputError(
                    f"{index_path} line {line}: {path} has changed since the index was written (sha256 differs); "
                    "restore or remake it"
                )
    return ItemIndex(table.reset_index(drop=True), paths, classes, index_path, part.start, num_total)
