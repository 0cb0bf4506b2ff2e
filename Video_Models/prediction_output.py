"""Predictions as text: a table to read, CSV with a row for each of the most probable classes, or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.artifacts import STATUS_OK, Column, Table, format_table
from Video_Models.predictor import Prediction

PREDICTED_CLASSES = Table(
    "predicted classes",
    (
        Column("video_path"),
        Column("task"),
        *(Column(name, "int", nullable=True, minimum=1) for name in ("num_frames", "rank")),
        Column("label", "int", nullable=True, minimum=0),
        Column("class_name"),
        Column("probability", "float", nullable=True, minimum=0),
        Column("status"),
        Column("reason"),
    ),
)


def format_predictions(predictions: Sequence[Prediction], output_format: str, top: int | None) -> str:
    """Predictions in one of `FORMATS`.

    Args:
        top: most probable classes of each; None is all of them in JSON, else one.
    """
    return FORMATS[output_format](predictions, top)


def format_json(predictions: Sequence[Prediction], top: int | None) -> str:
    """A list of objects, the probabilities of each from the highest on."""
    return json.dumps([_as_object(one, top) for one in predictions], ensure_ascii=False, indent=2) + "\n"


def format_csv(predictions: Sequence[Prediction], top: int | None) -> str:
    """`PREDICTED_CLASSES`: a row a class, from the most probable on (`rank` 1); one row for a video that failed."""
    return format_table((row for one in predictions for row in _rows(one, top or 1)), PREDICTED_CLASSES)


def format_aligned(predictions: Sequence[Prediction], top: int | None) -> str:
    """A line a prediction, in columns of equal width."""
    cells = [[_on_one_line(_text_of(one.path)), one.task or "", _answer(one, top or 1)] for one in predictions]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width) for row in cells)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def caption(prediction: Prediction) -> str:
    """What is written over a video: `jump 91.2 %`, after the task's name where there are several."""
    task = f"{prediction.task}: " if prediction.task else ""
    return f"{task}{_answer(prediction, 1)}"


FORMATS: dict[str, Callable[[Sequence[Prediction], int | None], str]] = {
    "table": format_aligned,
    "csv": format_csv,
    "json": format_json,
}


def _as_object(prediction: Prediction, top: int | None) -> dict[str, Any]:
    names = ("task", "status", "reason", "num_frames", "label", "class_name", "confidence")
    return {
        "video_path": _text_of(prediction.path),
        **{name: getattr(prediction, name) for name in names},
        "probabilities": {name: probability for _, name, probability in _ranked(prediction, top)},
    }


def _rows(prediction: Prediction, top: int) -> Iterator[dict[str, Any]]:
    known = {
        "video_path": _text_of(prediction.path),
        "task": prediction.task or "",
        "num_frames": prediction.num_frames,
        "status": prediction.status,
        "reason": prediction.reason,
    }
    if prediction.status != STATUS_OK:
        yield known | {"rank": None, "label": None, "class_name": "", "probability": None}
    for rank, (label, name, probability) in enumerate(_ranked(prediction, top), start=1):
        yield known | {"rank": rank, "label": label, "class_name": name, "probability": probability}


def _ranked(prediction: Prediction, top: int | None) -> list[tuple[int, str, float]]:
    """Label, name and probability of the most probable classes; ties go to the lower label."""
    names, probabilities = prediction.class_names, prediction.probabilities
    ranked = sorted(range(len(names)), key=lambda label: (-probabilities[label], label))
    return [(label, names[label], probabilities[label]) for label in ranked[:top]]


def _answer(prediction: Prediction, top: int) -> str:
    if prediction.status != STATUS_OK:
        return f"{prediction.status}: {prediction.reason}"
    return ", ".join(f"{name} {100 * probability:.1f} %" for _, name, probability in _ranked(prediction, top))


def _text_of(path: Path) -> str:
    """A name may be bytes that are no UTF-8; what is written must be."""
    return os.fsencode(path).decode("utf-8", "replace")


def _on_one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
