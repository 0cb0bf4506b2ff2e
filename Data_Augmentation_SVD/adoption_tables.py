"""The tables of adoption: the clip index with its sources, and how each source was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from Data_Augmentation_SVD.adoption_inputs import PublishedClips
from Data_Augmentation_SVD.source_matching import Match
from utils.artifacts import CLIP_INDEX, STATUS_FAILED, Column, Table
from utils.indices import ItemIndex

BY_SIMILARITY, BY_ORDER = "similarity", "order"
MATCHES = Table(
    "source matches",
    (
        Column("video_path"),
        Column("label", "int", minimum=0),
        Column("class_name"),
        Column("source_path"),
        Column("similarity", "float", nullable=True),
        Column("margin", "float", nullable=True),
        Column("runner_up_source_path"),
        Column("threshold", "float", nullable=True),
        Column("match_status", choices=("matched", "unmatched")),
        Column("matched_by", choices=(BY_SIMILARITY, BY_ORDER), nullable=True),
        Column("reason"),
    ),
    unique=("video_path",),
)


@dataclass(frozen=True)
class DecodedClips:
    """What the clips hold: `details` float32 (N, 56, 56) of frame 0 (zeros where damaged), `facts` index columns."""

    details: np.ndarray
    facts: list[dict[str, Any]]


@dataclass(frozen=True)
class Pairing:
    """A clip's source (its position among the split's images, None where it has none), and how it was found."""

    source: int | None
    matched_by: str
    match: Match | None
    reason: str


def build_match_rows(clips: PublishedClips, images: ItemIndex, pairings: list[Pairing]) -> list[dict[str, Any]]:
    """Rows of `matches_{split}.csv`."""
    rows = []
    for name, label, pairing in zip(clips.names, clips.labels, pairings, strict=True):
        match = pairing.match
        runner_up = match.runner_up if match else None
        rows.append(
            {
                "video_path": name,
                "label": label,
                "class_name": images.classes[label].class_name,
                "source_path": _cell(images, pairing.source, "image_path"),
                "similarity": match.similarity if match else None,
                "margin": match.margin if match else None,
                "runner_up_source_path": _cell(images, runner_up, "image_path"),
                "threshold": match.threshold if match else None,
                "match_status": "unmatched" if pairing.source is None else "matched",
                "matched_by": pairing.matched_by,
                "reason": pairing.reason,
            }
        )
    return rows


def build_index_rows(
    clips: PublishedClips, facts: list[dict[str, Any]], images: ItemIndex, pairings: list[Pairing]
) -> list[dict[str, Any]]:
    """Rows of the clip index; a clip without a source is a good clip with empty source columns."""
    unknown = {column.name: None for column in CLIP_INDEX.columns}
    rows = []
    for name, label, fact, pairing in zip(clips.names, clips.labels, facts, pairings, strict=True):
        item = images.classes[label]
        source = {
            "source_path": _cell(images, pairing.source, "image_path"),
            "source_sha256": _cell(images, pairing.source, "sha256"),
        }
        identity = {"video_path": name, "label": label, "class_name": item.class_name, "wnid": item.wnid}
        rows.append(unknown | identity | source | {"generator": "svd"} | fact)
    return rows


def count_pairings(decoded: DecodedClips, pairings: list[Pairing]) -> dict[str, int]:
    """One split in numbers, for `summary.json`."""
    num_matched = sum(pairing.source is not None for pairing in pairings)
    num_failed = sum(fact["status"] == STATUS_FAILED for fact in decoded.facts)
    return {
        "num_clips": len(pairings),
        "num_matched": num_matched,
        "num_matched_by_order_alone": sum(pairing.matched_by == BY_ORDER for pairing in pairings),
        "num_unmatched": len(pairings) - num_matched - num_failed,
        "num_failed": num_failed,
    }


def _cell(images: ItemIndex, position: int | None, column: str) -> str:
    return "" if position is None else str(images.table[column].iloc[position])
