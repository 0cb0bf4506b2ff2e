"""The measured tables as arrays: one run each, and runs that differ in nothing but their seed as one entry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from utils.artifacts import ENTRY_COLUMNS, RUN_COLUMNS

_CLIP_NUMBER = re.compile(r"(#[0-9a-f]{16})?(#\d+)?$")


@dataclass(frozen=True)
class ScoredRun:
    """One model on one test input.

    Attributes:
        columns: values of `RUN_COLUMNS`; a seed that is not known is None.
        item_ids: text (N,), in the order of the tables.
        labels, predicted: int (N,).
        probabilities: float (N, num_classes).
        protocol_values: text by key; empty where the checkpoint does not say.
        weights_sha256: of the checkpoint's file; empty where the tables do not say.
    """

    columns: dict[str, Any]
    item_ids: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    protocol_values: dict[str, str]
    weights_sha256: str = ""

    @property
    def run_id(self) -> str:
        """The run's name in every table."""
        return self.columns["run_id"]

    @property
    def num_classes(self) -> int:
        """Also counts classes without items."""
        return self.probabilities.shape[1]

    @property
    def seed(self) -> int | None:
        """The training's seed."""
        return self.columns["seed"]

    @property
    def is_right(self) -> np.ndarray:
        """Whether each item's answer is right: bool (N,)."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class Entry:
    """One arm on one test input: its runs by seed, in the order of the tables.

    Attributes:
        entry_id: `arm/test_input`, of clips with their length: `3d_svd/clip:svd/t3`; longer only where that is taken.
        columns: values of `ENTRY_COLUMNS`.
    """

    entry_id: str
    columns: dict[str, Any]
    runs: dict[int | None, ScoredRun]

    @cached_property
    def common_items(self) -> np.ndarray:
        """Items that all runs have: text (N,), in the order of the first run."""
        first, *others = self.runs.values()
        shared = set(first.item_ids).intersection(*(run.item_ids for run in others))
        return np.array([item for item in first.item_ids if item in shared], dtype=object)


def read_runs(measured: dict[str, pd.DataFrame]) -> list[ScoredRun]:
    """The runs in the order of `predictions`; the tables must be consistent (`require_consistency`)."""
    probabilities = dict(list(measured["probabilities"].groupby("run_id", sort=False)))
    values = measured["protocol_values"]
    weights = measured["model_costs"].set_index("run_id")["weights_sha256"]
    runs = []
    for run_id, rows in measured["predictions"].groupby("run_id", sort=False):
        columns = rows.iloc[0][list(RUN_COLUMNS)].to_dict()
        columns["seed"] = None if pd.isna(columns["seed"]) else int(columns["seed"])
        own = values[values["run_id"] == run_id]
        runs.append(
            ScoredRun(
                columns=columns,
                item_ids=rows["item_id"].to_numpy(),
                labels=rows["label"].to_numpy(dtype=np.int64),
                predicted=rows["predicted_label"].to_numpy(dtype=np.int64),
                probabilities=align_probabilities(rows["item_id"], probabilities[run_id]),
                protocol_values=dict(zip(own["key"], own["value"], strict=True)),
                weights_sha256=weights[run_id],
            )
        )
    return runs


def align_probabilities(item_ids: pd.Series, probabilities: pd.DataFrame) -> np.ndarray:
    """One run's probabilities as float (N, num_classes), in the order of `item_ids`; NaN where a row is missing."""
    matrix = np.full((len(item_ids), int(probabilities["label"].max()) + 1), np.nan)
    positions = pd.Index(item_ids).get_indexer(probabilities["item_id"])
    is_known = positions >= 0
    labels = probabilities["label"].to_numpy(dtype=np.int64)
    matrix[positions[is_known], labels[is_known]] = probabilities["probability"].to_numpy(dtype=float)[is_known]
    return matrix


def build_entries(runs: list[ScoredRun]) -> list[Entry]:
    """Runs grouped by all of `ENTRY_COLUMNS`, in order; two runs of one seed stay entries of their own."""
    groups: dict[tuple[Any, ...], list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault(tuple(run.columns[name] for name in ENTRY_COLUMNS), []).append(run)
    parts: list[list[ScoredRun]] = []
    for group in groups.values():
        is_one = len({run.seed for run in group}) == len(group)
        parts += [group] if is_one else [[run] for run in group]
    ids = _entry_ids([part[0].columns for part in parts])
    return [
        Entry(entry_id, {name: part[0].columns[name] for name in ENTRY_COLUMNS}, {run.seed: run for run in part})
        for entry_id, part in zip(ids, parts, strict=True)
    ]


def source_of(item_id: str) -> str:
    """The source of an item, see `utils.indices.ItemIndex.item_ids`: what stands before the first `#` of ours."""
    return _CLIP_NUMBER.sub("", item_id)


def _entry_ids(columns: list[dict[str, Any]]) -> list[str]:
    """Short names; entries of one name get the values in which they differ behind it, and at last the run's."""
    names = []
    for row in columns:
        length = f"/t{row['num_frames']}" if row["num_frames"] > 1 else ""
        names.append(f"{row['arm']}/{row['test_input']}{length}")
    for telling in (ENTRY_COLUMNS, ("run_id",)):
        names = _told_apart(names, columns, telling)
    return names


def _told_apart(names: list[str], columns: list[dict[str, Any]], telling: tuple[str, ...]) -> list[str]:
    found = []
    for name, row in zip(names, columns, strict=True):
        alike = [other for other_name, other in zip(names, columns, strict=True) if other_name == name]
        differing = [key for key in telling if len({other[key] for other in alike}) > 1]
        found.append("/".join([name, *(str(row[key]) for key in differing)]))
    return found
