"""Entries of the tables: which rows are one arm on one input, and which of its inputs is an arm's own."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from utils.artifacts import ENTRY_COLUMNS

PLANNED_FAMILIES = ("claim", "paper", "inputs")


def with_entry_id(rows: pd.DataFrame, arms: pd.DataFrame | None) -> pd.DataFrame:
    """The rows of a table that has the columns of a run, with `entry_id` in front; `arm/test_input` without `arms`."""
    if arms is None or arms.empty:
        entry_ids = rows["arm"].astype(str) + "/" + rows["test_input"].astype(str)
        return _in_front(rows, entry_ids)
    known: dict[tuple, list[str]] = {}
    for arm in arms.to_dict("records"):
        known.setdefault(tuple(arm[name] for name in ENTRY_COLUMNS), []).append(arm["entry_id"])
    keys = rows[list(ENTRY_COLUMNS)].itertuples(index=False, name=None)
    entry_ids = [_entry_of(known.get(key, []), key, run_id) for key, run_id in zip(keys, rows["run_id"], strict=True)]
    return _in_front(rows, entry_ids)


def _in_front(rows: pd.DataFrame, entry_ids: Iterable[str]) -> pd.DataFrame:
    return rows.assign(entry_id=entry_ids)[["entry_id", *rows.columns.drop("entry_id", errors="ignore")]]


def _entry_of(candidates: list[str], key: tuple, run_id: str) -> str:
    """The entry of a run; where several have the same columns (one seed twice), the one that ends in its `run_id`."""
    if len(candidates) > 1:
        candidates = [entry_id for entry_id in candidates if entry_id.endswith(f"/{run_id}")]
    arm, test_input = (key[ENTRY_COLUMNS.index(name)] for name in ("arm", "test_input"))
    return candidates[0] if candidates else f"{arm}/{test_input}"


def own_entry_ids(rows: pd.DataFrame) -> list[str]:
    """The entries of rows with `entry_id` that are scored on the kind of input they were trained for, in order.

    An arm that has no such entry is there with all it has.
    """
    entries = rows.drop_duplicates("entry_id")
    is_own = entries.apply(lambda row: is_own_input(row["arm"], row["train_input"], row["test_input"]), axis=1)
    has_own = set(entries["arm"][is_own])
    return entries["entry_id"][is_own | ~entries["arm"].isin(has_own)].tolist()


def is_own_input(arm: str, train_input: str, test_input: str) -> bool:
    """Whether a network is scored on what it was trained for; one trained on a mix is meant for originals."""
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
    """Whether a model of this name sees clips."""
    return model.endswith("_3d")
