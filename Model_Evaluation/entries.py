"""Which entries are scored on what they were trained for, and which comparisons are over all seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from utils.artifacts import ENTRY_COLUMNS
from Video_Models.registry import FAMILIES

PLANNED_FAMILIES = ("claim", "subject", "paper", "inputs")
_NETWORK = tuple(name for name in ENTRY_COLUMNS if name not in ("test_input", "num_frames"))


def own_entry_ids(rows: pd.DataFrame) -> list[str]:
    """The entries of a table with `entry_id` and `ENTRY_COLUMNS` that stand for their network; see `own_positions`."""
    entries = rows.drop_duplicates("entry_id").to_dict("records")
    return [entries[position]["entry_id"] for position in own_positions(entries)]


def own_positions(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Positions of the entries scored on what their network was trained for; of a network without one, all of its.

    Args:
        entries: with `ENTRY_COLUMNS`.
    """
    networks = [tuple(entry[name] for name in _NETWORK) for entry in entries]
    is_own = [is_own_input(entry["arm"], entry["train_input"], entry["test_input"]) for entry in entries]
    have_own = {network for network, own in zip(networks, is_own, strict=True) if own}
    return [p for p, network in enumerate(networks) if is_own[p] or network not in have_own]


def is_own_input(arm: str, train_input: str, test_input: str) -> bool:
    """Whether a network is scored on what it was trained for; one trained on a mix is meant for originals."""
    test_input = test_input.split("#", 1)[0]  # whichever task is asked for
    if train_input.startswith("mix:"):
        train_input = "original"
    if arm == "2d_tta" and test_input.startswith("tta_"):
        test_input = test_input.split(":", 1)[1]  # views of an input count as it
    return train_input == test_input


def over_seeds(comparisons: pd.DataFrame | None, families: tuple[str, ...] = PLANNED_FAMILIES) -> pd.DataFrame:
    """The comparisons of these families over all seeds together, in order; an empty table where there is none."""
    if comparisons is None or comparisons.empty:
        return pd.DataFrame(columns=["comparison_id", "family", "entry_a", "entry_b"])
    return comparisons[comparisons["seed"].isna() & comparisons["family"].isin(families)]


def is_3d(model: str) -> bool:
    """Whether a model of this name sees clips: the inflated VGG, or a family of `Video_Models`."""
    return model.endswith("_3d") or model in FAMILIES
