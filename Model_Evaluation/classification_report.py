"""scikit-learn's classification report of every run, as text: derived from the measured tables."""

from __future__ import annotations

import pandas as pd

REPORT_FILE = "classification_report.txt"
_DIGITS = 4


def format_classification_reports(predictions: pd.DataFrame, probabilities: pd.DataFrame) -> str:
    """All runs' reports, each below its name and what it was scored on, in the table's order.

    Args:
        probabilities: tell how many classes there are, also such as have no items.
    """
    num_classes = probabilities.groupby("run_id")["label"].max() + 1
    parts = []
    for run_id, rows in predictions.groupby("run_id", sort=False):
        first = rows.iloc[0]
        head = f"{run_id}: {first['arm']} on {first['test_input']}, {len(rows)} items of split {first['split']}"
        parts.append(f"{head}\n{'-' * len(head)}\n{_format_report(rows, int(num_classes[run_id]))}")
    return "\n".join(parts)


def _format_report(rows: pd.DataFrame, num_classes: int) -> str:
    """A row a class, with 0 where it is absent or never predicted."""
    from sklearn.metrics import classification_report

    names = dict(zip(rows["predicted_label"], rows["predicted_class_name"], strict=True))
    names |= dict(zip(rows["label"], rows["class_name"], strict=True))
    labels = range(num_classes)
    # Without labels= an absent class would vanish, and with it its part in the macro average.
    return classification_report(
        rows["label"],
        rows["predicted_label"],
        labels=labels,
        target_names=[names.get(label, str(label)) for label in labels],
        digits=_DIGITS,
        zero_division=0,
    )
