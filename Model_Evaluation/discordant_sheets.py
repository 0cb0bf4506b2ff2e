"""Contact sheets of the items on which two entries disagree: one is right and the other is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from Model_Evaluation.entries import over_seeds
from Model_Evaluation.figures import safe_name
from Model_Evaluation.picture_sheet import PictureBlock, write_picture_sheet
from Model_Evaluation.report_page import format_value
from Model_Evaluation.scored_runs import Entry, build_entries, read_runs
from Model_Evaluation.statistics import vote

SHEET_FAMILIES = ("claim", "paper")
ReadPictures = Callable[[str, str], np.ndarray]
_SHORT_ID = 12


@dataclass(frozen=True)
class Answers:
    """The answers of an entry's seeds together, one an item.

    Attributes:
        labels, answers: int (N,); an answer is the vote of the seeds, as in `comparisons.csv`.
        num_votes: int (N,), seeds that gave this answer.
        prob_answer, prob_true: float (N,), means over the seeds.
    """

    labels: np.ndarray
    answers: np.ndarray
    num_votes: np.ndarray
    num_seeds: int
    prob_answer: np.ndarray
    prob_true: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """Bool (N,)."""
        return self.answers == self.labels


def write_discordant_sheets(
    tables: dict[str, pd.DataFrame], pictures: ReadPictures, folder: Path, max_items: int = 12
) -> list[Path]:
    """Two sheets for each comparison of the claim and of the paper: items only A has right, and items only B has right.

    The items whose probability of the true class differs most are shown. Where there is no such item there is no sheet,
    and one of an earlier run is removed.

    Args:
        tables: the measured tables and `comparisons`, by name.
        pictures: from test input and item id to uint8 frames (T, H, W, 3).
        folder: the folder of figures.
        max_items: on one sheet.

    Returns:
        the sheets that were written.
    """
    entries = {entry.entry_id: entry for entry in build_entries(read_runs(tables))}
    names = class_names(tables["predictions"])
    written = []
    for pair in over_seeds(tables.get("comparisons"), SHEET_FAMILIES).to_dict("records"):
        items, sides = pair_answers(entries[pair["entry_a"]], entries[pair["entry_b"]])
        for side in ("a", "b"):
            path = folder / f"{sheet_name(pair['comparison_id'], side)}.png"
            chosen = choose_discordant(items, sides, side)
            if not len(chosen):
                path.unlink(missing_ok=True)
                continue
            blocks = [_block(position, items, sides, pair, names, pictures) for position in chosen[:max_items]]
            write_picture_sheet(path, blocks, _describe(pair, side, len(blocks), len(chosen)))
            written.append(path)
    return written


def sheet_name(comparison_id: str, side: str) -> str:
    """The file name of a sheet, without suffix; `side` (`a` or `b`) is the one that is right."""
    return f"{safe_name(f'discordant_{comparison_id}')}_only_{side}"


def pair_answers(a: Entry, b: Entry) -> tuple[np.ndarray, dict[str, Answers]]:
    """The items that both entries answered, text (N,), and each side's answers of the seeds that both have."""
    shared = set(b.common_items)
    items = np.array([item for item in a.common_items if item in shared], dtype=object)
    seeds = [seed for seed in a.runs if seed in b.runs]
    return items, {side: _answers_of(entry, seeds, items) for side, entry in (("a", a), ("b", b))}


def choose_discordant(items: np.ndarray, sides: dict[str, Answers], side: str) -> np.ndarray:
    """Positions of the items that only one side has right: the largest difference of `prob_true` first, then by id."""
    right, wrong = sides[side], sides["b" if side == "a" else "a"]
    positions = np.flatnonzero(right.is_right & ~wrong.is_right)
    gaps = (right.prob_true - wrong.prob_true)[positions]
    return positions[np.lexsort((items[positions].astype(str), -gaps))]


def class_names(predictions: pd.DataFrame) -> dict[int, str]:
    """Names by label, of classes that are true or predicted somewhere."""
    guessed = dict(zip(predictions["predicted_label"], predictions["predicted_class_name"], strict=True))
    return guessed | dict(zip(predictions["label"], predictions["class_name"], strict=True))


def _answers_of(entry: Entry, seeds: list[int | None], items: np.ndarray) -> Answers:
    predicted, probabilities, labels = [], [], np.array([], dtype=np.int64)
    for seed in seeds:
        run = entry.runs[seed]
        order = pd.Index(run.item_ids).get_indexer(items)
        predicted.append(run.predicted[order])
        probabilities.append(run.probabilities[order])
        labels = run.labels[order]
    answers, mean = vote(np.stack(predicted), np.stack(probabilities)), np.mean(probabilities, axis=0)
    rows = np.arange(len(items))
    num_votes = (np.stack(predicted) == answers).sum(axis=0)
    return Answers(labels, answers, num_votes, len(seeds), mean[rows, answers], mean[rows, labels])


def _block(
    position: int,
    items: np.ndarray,
    sides: dict[str, Answers],
    pair: dict[str, Any],
    names: dict[int, str],
    pictures: ReadPictures,
) -> PictureBlock:
    """One item: its true class, and above each kind of input that the two saw what was made of it."""
    title = f"{names[int(sides['a'].labels[position])]}    {_short(items[position])}"
    lines = {side: _answer_lines(pair, side, sides[side], position, names) for side in ("a", "b")}
    frames = {side: pictures(pair[f"test_input_{side}"], items[position]) for side in ("a", "b")}
    if pair["test_input_a"] == pair["test_input_b"]:
        return PictureBlock([title, *lines["a"], *lines["b"]], [([], frames["a"])])
    return PictureBlock([title], [(lines[side], frames[side]) for side in ("a", "b")])


def _answer_lines(pair: dict[str, Any], side: str, answers: Answers, position: int, names: dict[int, str]) -> list[str]:
    answer, is_right = names[int(answers.answers[position])], answers.is_right[position]
    share, true_share = (
        format_value(probabilities[position], "percent") for probabilities in (answers.prob_answer, answers.prob_true)
    )
    votes = f", {answers.num_votes[position]} of {answers.num_seeds} seeds" if answers.num_seeds > 1 else ""
    tail = "" if is_right else f"; true class {true_share} %"
    return [f"{pair[f'entry_{side}']}: {'right' if is_right else 'wrong'}{votes}", f"{answer} {share} %{tail}"]


def _describe(pair: dict[str, Any], side: str, num_shown: int, num_all: int) -> str:
    right, wrong = (pair[f"entry_{name}"] for name in (side, "b" if side == "a" else "a"))
    return f"{num_shown} of {num_all} items: {right} right, {wrong} wrong."


def _short(item_id: str) -> str:
    """The head of a hash; of a path the tail, which tells items apart."""
    return item_id[-_SHORT_ID - 8 :] if "/" in item_id else item_id[:_SHORT_ID]
