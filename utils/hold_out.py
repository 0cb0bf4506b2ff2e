"""The hold-out: the part of a training set that chooses the best epoch, so that the reported split never does.

It is drawn once, by source image and class, and written to a file that every arm of a comparison reads: the original,
all clips and all frames of one image are on one side. Clips whose source is unknown are held out by clip, and the run
is marked unpaired. Real videos are drawn by their group (the source video, person or scene) where the index names it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.artifacts import HOLD_OUT, read_table, write_table
from utils.errors import InputError
from utils.files import locked, sha256_file
from utils.indices import ItemIndex
from utils.task_labels import task_labels_path

_TRAIN, _HELD = "train", "hold_out"
_PAIRINGS = {True: "paired", False: "unpaired"}


@dataclass(frozen=True)
class HoldOut:
    """Both parts of an index.

    Attributes:
        train_positions, held_positions: int64, rows of the index in their order.
        is_paired: whether every row's source image is known, so that arms can be compared item by item.
        sha256: of the hold-out's file.
    """

    train_positions: np.ndarray
    held_positions: np.ndarray
    is_paired: bool
    sha256: str


def draw_hold_out(sources: Mapping[str, int], fraction: float, seed: int, *, keep_lone: bool = False) -> set[str]:
    """The sources to hold out: of each class the share `fraction`, at least one and not all.

    They are those with the smallest SHA-256 of `seed:source`, which no order of rows changes; and an image that is
    added or removed moves few others.

    Args:
        sources: id -> label.
        keep_lone: a class with one source only is trained and not held out, instead of refused.

    Raises:
        InputError: a class has only one source.
    """
    by_label: dict[int, list[str]] = defaultdict(list)
    for source, label in sources.items():
        by_label[label].append(source)
    held: set[str] = set()
    for label, members in sorted(by_label.items()):
        if len(members) < 2:
            if keep_lone:
                continue
            raise InputError(
                f"hold_out: class {label} has one source only, {members[0]}; add images, remove the class, or set "
                "selection: val"
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held |= set(sorted(members, key=lambda source: hashlib.sha256(f"{seed}:{source}".encode()).digest())[:count])
    return held


def split_hold_out(index: ItemIndex, path: Path, *, fraction: float, seed: int, unlisted: str = "refuse") -> HoldOut:
    """Divide an index by the hold-out's file; where there is none, draw it from this index and write it.

    Two processes may come at once: one draws, the other reads.

    Args:
        path: of the file; it lists sources, of which an index may lack some.
        unlisted: what becomes of rows whose source it does not list: `refuse`, or `leave_out` of both parts.

    Raises:
        InputError: the file was drawn with other settings or from another data set, or was edited.
    """
    sources, is_paired = index.groups, index.is_paired
    # Some groups and combinations of tasks' classes are rare, and one source may have several: a person does many
    # things, and of two equal videos one may lack a task's label.
    is_mixed = index.has_groups or task_labels_path(index.index_path).is_file()
    labels = _strata_of(index) if is_mixed else _labels_of(index, sources)
    if not path.exists():
        with locked(path):
            if not path.exists():  # another process may just have drawn
                _write(labels, path, fraction, seed, _PAIRINGS[is_paired], keep_lone=is_mixed)
    table = read_table(path, HOLD_OUT)
    _require_settings(table, path, fraction, seed)
    known = set(table["source_sha256"])
    if unlisted == "leave_out":
        labels = {source: label for source, label in labels.items() if source in known}
        is_paired = set(table["pairing"]) == {_PAIRINGS[True]}  # rows of unknown source are not listed either
    _require_pairing(table, path, index, is_paired)
    _require_sources(table, path, index, labels)
    if not is_mixed:  # else labels depend on which of its sources' items an index has
        _require_labels(table, path, index, labels)
    held = set(table["source_sha256"][table["part"] == _HELD])
    trained = known - held
    is_held = np.array([source in held for source in sources])
    is_trained = np.array([source in trained for source in sources])
    if not is_held.any() or not is_trained.any():
        part = "hold-out" if is_trained.any() else "training"
        raise InputError(f"{path}: no row of {index.index_path} is in the {part} part; use an index with more sources")
    return HoldOut(np.flatnonzero(is_trained), np.flatnonzero(is_held), is_paired, sha256_file(path))


def write_hold_out(sources: Mapping[str, int], path: Path, *, fraction: float, seed: int) -> None:
    """Draw a hold-out of sources that several indices share, and write it; see `draw_hold_out`.

    Args:
        sources: SHA-256 of the source image -> label.
    """
    _write(sources, path, fraction, seed, _PAIRINGS[True])


def _labels_of(index: ItemIndex, sources: list[str]) -> dict[str, int]:
    is_image = "image_path" in index.table
    names = index.table["image_path" if is_image else "video_path"]
    or_group = "" if is_image else "; or, where clips of one video may differ, name it in the column group"
    first: dict[str, tuple[int, str]] = {}
    for source, label, name in zip(sources, index.labels, names, strict=True):
        known, earlier = first.setdefault(source, (label, name))
        if known != label:
            raise InputError(
                f"{index.index_path}: {earlier} has label {known} and {name} has label {label}, but both are of source "
                f"{source}, which is held out as one; remove one of them, or correct its label{or_group}"
            )
    return {source: label for source, (label, _) in first.items()}


def _strata_of(index: ItemIndex) -> dict[str, int]:
    """Each group's most frequent label, of which it may have several.

    What is held out is then nearly, not exactly, the share `fraction` of each class.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for group, label in zip(index.groups, index.labels, strict=True):
        counts[group][label] += 1
    return {group: min(found, key=lambda label: (-found[label], label)) for group, found in counts.items()}


def _write(
    labels: Mapping[str, int], path: Path, fraction: float, seed: int, pairing: str, *, keep_lone: bool = False
) -> None:
    held = draw_hold_out(labels, fraction, seed, keep_lone=keep_lone)
    common = {"pairing": pairing, "fraction": fraction, "seed": seed}
    rows = [
        {"source_sha256": source, "label": labels[source], "part": _HELD if source in held else _TRAIN, **common}
        for source in sorted(labels)
    ]
    write_table(rows, path, HOLD_OUT)


def _require_settings(table: pd.DataFrame, path: Path, fraction: float, seed: int) -> None:
    for key, wanted in (("fraction", float(f"{fraction:.6g}")), ("seed", seed)):  # as the table writes it
        others = table[key][table[key] != wanted]
        if len(others):
            raise InputError(
                f"{path} line {others.index[0]}: was drawn with hold_out.{key}={others.iloc[0]}, not {wanted}; set it "
                "so, or set hold_out.file to another file"
            )
    drawn = draw_hold_out(
        dict(zip(table["source_sha256"], table["label"], strict=True)), fraction, seed, keep_lone=True
    )
    edited = table[table["source_sha256"].isin(drawn) != (table["part"] == _HELD)]
    if len(edited):
        row = edited.iloc[0]
        raise InputError(
            f"{path} line {edited.index[0]}: {row['source_sha256']} is in part {row['part']!r}, but was not drawn so: "
            "the file was edited; restore it, or set hold_out.file to another file"
        )


def _require_pairing(table: pd.DataFrame, path: Path, index: ItemIndex, is_paired: bool) -> None:
    if (found := set(table["pairing"])) != {_PAIRINGS[is_paired]}:
        ours = "knows the source of every row" if is_paired else "has clips without a known source"
        raise InputError(
            f"{path}: is {' and '.join(sorted(found))}, but {index.index_path} {ours}; set hold_out.file to another "
            "file: paired and unpaired runs share no hold-out"
        )


def _require_sources(table: pd.DataFrame, path: Path, index: ItemIndex, labels: Mapping[str, int]) -> None:
    known = set(table["source_sha256"])
    if missing := [source for source in labels if source not in known]:
        raise InputError(
            f"{path}: was drawn from another data set than {index.index_path}: {len(missing)} of {len(labels)} sources "
            f"are not in it, the first: {missing[0]}; delete it and begin with the arm that has most sources, or set "
            "hold_out.file to another file"
        )


def _require_labels(table: pd.DataFrame, path: Path, index: ItemIndex, labels: Mapping[str, int]) -> None:
    known = dict(zip(table["source_sha256"], table["label"], strict=True))
    for source, label in labels.items():
        if known[source] != label:
            raise InputError(
                f"{path}: {source} has label {known[source]}, but {label} in {index.index_path}; use the class list "
                "that it was drawn with, or set hold_out.file to another file"
            )
