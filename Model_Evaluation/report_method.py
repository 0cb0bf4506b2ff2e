"""The end of the report: how it was measured, and what its words mean."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd

from Model_Evaluation.report_page import Field, table_html

_GLOSSARY = (
    ("Arm", "What was trained, on what: a network, its training input and its protocol."),
    ("Entry", "An arm scored on one kind of input; its trainings differ in nothing but the seed."),
    ("Top-1", "The share of items whose most probable class is the true one."),
    (
        "95 % interval",
        "The range of values that the data are compatible with. Of an entry's top-1 it is Wilson's, for as many trials "
        "as there are source images; of a difference it is bootstrapped over source images, with all seeds and clips "
        "of an image kept together. It covers what other images would change, not what other trainings would: for "
        "those see the standard deviation over seeds.",
    ),
    (
        "McNemar's test",
        "Looks at the images on which exactly one of two networks is right, and asks how likely a split as uneven "
        "would be if both were equally good. Holm's correction allows for the number of tests.",
    ),
    ("Cohen's h", "The size of a difference between two shares: 0.2 is called small, 0.5 medium, 0.8 large."),
    ("Detectable difference", "The smallest difference that a test on as many images would find most of the time."),
    ("Calibration error", "How far the networks' confidence is from their accuracy, averaged over items."),
    ("MACs", "Multiply-accumulates of one item: nominal as the layers are written, executed as they are computed."),
    ("p50, p95", "The median, and the time that 95 of 100 passes stay below."),
)


def method_parts(given: dict[str, pd.DataFrame]) -> list[str]:
    """What was trained and tested on what, and what the protocols set, as HTML."""
    parts = []
    if "summary" in given:
        fields = [
            Field("Entry", "entry_id"),
            Field("Protocol", "protocol"),
            Field("Network", "model"),
            Field("Started from", "start_weights"),
            Field("Trained on", "train_input"),
            Field("Tested on", "test_input"),
            Field("Reported split", "split"),
            Field("Epoch chosen on", "selection_split"),
            Field("Items", "num_items", "count"),
            Field("Classes", "num_classes", "count"),
        ]
        rows = given["summary"].drop_duplicates("entry_id").to_dict("records")
        parts.append(table_html("What was trained and tested on what", fields, rows))
    if "protocol_values" in given:
        fields = [Field("Setting", "key"), Field("Value", "value", is_prose=True), Field("Of", "of", is_prose=True)]
        parts.append(table_html("What the protocols set", fields, _protocol_rows(given)))
    if not parts:
        return []
    rule = (
        "<p>A is called better than B when the 95 % interval of the paired difference excludes 0 and the exact McNemar "
        "test on the seeds' majority vote has p below 0.05 after Holm's correction.</p>"
    )
    return [rule if "comparisons" in given else "", *parts]


def glossary_parts() -> list[str]:
    """The report's terms in a sentence each, as HTML."""
    terms = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in _GLOSSARY)
    return [f"<dl>\n{terms}\n</dl>"]


def _protocol_rows(given: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """One row a value of a setting, with the arms that have it; `all` where they agree."""
    values = given["protocol_values"]
    arms = _arms_of(given)
    everyone = {arms.get(run_id, run_id) for run_id in values["run_id"]}
    rows = []
    for (key, value), part in values.groupby(["key", "value"], sort=True):
        of = list(dict.fromkeys(arms.get(run_id, run_id) for run_id in part["run_id"]))
        is_shared = set(of) == everyone and values["value"][values["key"] == key].nunique() == 1
        rows.append({"key": key, "value": value, "of": "all" if is_shared else ", ".join(of)})
    return rows


def _arms_of(given: dict[str, pd.DataFrame]) -> Mapping[str, str]:
    runs = given.get("summary")
    return {} if runs is None else dict(zip(runs["run_id"], runs["arm"], strict=True))
