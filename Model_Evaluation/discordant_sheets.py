"""Contact sheets of the images on which two entries disagree: one is right and the other is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from Model_Evaluation.entries import over_seeds
from Model_Evaluation.figures import remove_others, safe_name
from Model_Evaluation.paired_answers import SourceAnswers, pair_answers
from Model_Evaluation.picture_sheet import PictureBlock, write_picture_sheet
from Model_Evaluation.report_page import format_value
from Model_Evaluation.scored_runs import Entry, build_entries, read_runs

SHEET_FAMILIES = ("claim", "subject", "paper")
ReadPictures = Callable[[str, str], np.ndarray]
_SHORT_ID = 12
_PREFIX = "discordant"


@dataclass(frozen=True)
class _Compared:
    """A row of `comparisons.csv` with its answers.

    Attributes:
        items: the item to show of each source image, text (num_sources,).
        sides, run_ids: by `a` and `b`.
    """

    pair: dict[str, Any]
    items: np.ndarray
    sides: dict[str, SourceAnswers]
    run_ids: dict[str, str]


def write_discordant_sheets(
    tables: dict[str, pd.DataFrame], pictures: ReadPictures, folder: Path, max_items: int = 12
) -> list[Path]:
    """Two sheets for each comparison of `SHEET_FAMILIES`: images only A has right, and images only B has.

    The images are those that `comparisons.csv` counts, by the vote of all their seeds and clips; an image's first clip
    is shown, and first the images whose probability of the true class differs most. Where there is no such image there
    is no sheet, and all sheets of an earlier run are removed.

    Args:
        tables: the measured tables and `comparisons`, by name.
        pictures: from run id and item id to uint8 frames (T, H, W, 3), as the run's network saw them.
        folder: the folder of figures.
        max_items: on one sheet.

    Returns:
        the sheets that were written.
    """
    entries = {entry.entry_id: entry for entry in build_entries(read_runs(tables))}
    names = class_names(tables["predictions"])
    written = []
    for pair in over_seeds(tables.get("comparisons"), SHEET_FAMILIES).to_dict("records"):
        both = _compare(pair, entries[pair["entry_a"]], entries[pair["entry_b"]])
        for side in ("a", "b"):
            chosen = choose_discordant(both.items, both.sides, side)
            if not len(chosen):
                continue
            path = folder / f"{sheet_name(pair['comparison_id'], side)}.png"
            blocks = [_block(both, position, names, pictures) for position in chosen[:max_items]]
            write_picture_sheet(path, blocks, _describe(pair, side, len(blocks), len(chosen)))
            written.append(path)
    remove_others(folder, [f"{_PREFIX}_*.png"], {path.name for path in written})
    return written


def first_run(entry: Entry) -> str:
    """The run of the lowest seed: all runs of an entry see the same pictures."""
    return entry.runs[min(entry.runs, key=lambda seed: -1 if seed is None else seed)].run_id


def sheet_name(comparison_id: str, side: str) -> str:
    """The file name of a sheet, without suffix; `side` (`a` or `b`) is the one that is right."""
    return f"{safe_name(f'{_PREFIX}_{comparison_id}')}_only_{side}"


def choose_discordant(items: np.ndarray, sides: dict[str, SourceAnswers], side: str) -> np.ndarray:
    """Positions of the items that only one side has right: the largest difference of `prob_true` first, then by id."""
    right, wrong = sides[side], sides["b" if side == "a" else "a"]
    positions = np.flatnonzero(right.is_right & ~wrong.is_right)
    gaps = (right.prob_true - wrong.prob_true)[positions]
    return positions[np.lexsort((items[positions].astype(str), -gaps))]


def class_names(predictions: pd.DataFrame) -> dict[int, str]:
    """Names by label, of classes that are true or predicted somewhere."""
    guessed = dict(zip(predictions["predicted_label"], predictions["predicted_class_name"], strict=True))
    return guessed | dict(zip(predictions["label"], predictions["class_name"], strict=True))


def _compare(pair: dict[str, Any], a: Entry, b: Entry) -> _Compared:
    answers = pair_answers(a, b)
    return _Compared(pair, answers.first_items, answers.vote(), {"a": first_run(a), "b": first_run(b)})


def _block(both: _Compared, position: int, names: dict[int, str], pictures: ReadPictures) -> PictureBlock:
    """One image: its true class, and above what each network saw, what was made of it."""
    item_id, pair = both.items[position], both.pair
    title = f"{names[int(both.sides['a'].labels[position])]}    {_short(item_id)}"
    lines = {side: _answer_lines(pair, side, both.sides[side], position, names) for side in ("a", "b")}
    frames = {side: pictures(both.run_ids[side], item_id) for side in ("a", "b")}
    if np.array_equal(frames["a"], frames["b"]):
        return PictureBlock([title, *lines["a"], *lines["b"]], [([], frames["a"])])
    return PictureBlock([title], [(lines[side], frames[side]) for side in ("a", "b")])


def _answer_lines(
    pair: dict[str, Any], side: str, answers: SourceAnswers, position: int, names: dict[int, str]
) -> list[str]:
    answer, is_right = names[int(answers.answers[position])], answers.is_right[position]
    share, true_share = (
        format_value(probabilities[position], "percent") for probabilities in (answers.prob_answer, answers.prob_true)
    )
    num_votes, num_answers = answers.num_votes[position], answers.num_answers[position]
    votes = f", {num_votes} of {num_answers} votes" if num_answers > 1 else ""
    tail = "" if is_right else f"; true class {true_share} %"
    return [f"{pair[f'entry_{side}']}: {'right' if is_right else 'wrong'}{votes}", f"{answer} {share} %{tail}"]


def _describe(pair: dict[str, Any], side: str, num_shown: int, num_all: int) -> str:
    right, wrong = (pair[f"entry_{name}"] for name in (side, "b" if side == "a" else "a"))
    return f"{num_shown} of {num_all} source images: {right} right, {wrong} wrong."


def _short(item_id: str) -> str:
    """The head of a hash; of a path the tail, which tells items apart."""
    return item_id[-_SHORT_ID - 8 :] if "/" in item_id else item_id[:_SHORT_ID]
