"""The paper's results in our tables. No predictions of single items were published: there is no predictions.csv."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from Model_Evaluation.published_checks import read_published
from Model_Evaluation.published_claims import PUBLISHED_CLAIMS, Claim, compute_claims
from Model_Evaluation.published_files import published_files
from Model_Evaluation.published_run import METRICS, PublishedRun
from Model_Evaluation.published_settings import ImportSettings
from Model_Evaluation.statistics import compute_wilson
from utils.artifacts import CONFUSION_FLAT, LATENCY, PER_CLASS_METRICS, SUMMARY, Table, write_table
from utils.runs import open_run

log = logging.getLogger(__name__)
SOURCE = "published"
TABLES: dict[str, Table] = {
    "confusion_flat": CONFUSION_FLAT,
    "per_class_metrics": PER_CLASS_METRICS,
    "latency": LATENCY,
    "published_claims": PUBLISHED_CLAIMS,
    "summary": SUMMARY,
}
TABLE_FILES = tuple(f"{name}.csv" for name in TABLES)  # the summary is written last
_SHARED = {
    "protocol": "paper",
    "start_weights": "imagenet",
    "split": "val",
    "selection_split": "val",
    "seed": None,
    "source": SOURCE,
}
RUN_VALUES: dict[str, dict[str, Any]] = {
    "model2d": _SHARED
    | {
        "arm": "paper_2d",
        "model": "vgg11_bn",
        "train_input": "original",
        "test_input": "first_frame:svd",
        "num_frames": 3,
    },
    "model3d": _SHARED
    | {
        "arm": "paper_3d",
        "model": "vgg11_bn_3d",
        "train_input": "clip:svd",
        "test_input": "clip:svd",
        "num_frames": 3,
    },
}
_NOTE = "as published: best epoch chosen on the scored items; no predictions of single items"
_NOTES = {"model2d": f"{_NOTE}; scored on frames, trained on originals", "model3d": _NOTE}


def run_import(settings: ImportSettings) -> Path:
    """Read and check the files, write the tables unless they stand, say what the paper's text gets wrong.

    Raises:
        InputError: the files are at fault, or the folder holds what was made of others.
    """
    published = read_published(settings.source, len(settings.classes))
    run = open_run(
        settings,
        owned=TABLE_FILES,
        inputs=published_files(settings.source),
        free_keys=("source",),
        redone_without=TABLE_FILES[-1],
    )
    claims = compute_claims(published, settings)
    if run.is_done(*TABLE_FILES):
        log.info("%s is complete; nothing to do", run.dir)
    else:
        rows = compute_tables(published, settings, claims)
        run.begin()
        for name, table in TABLES.items():
            write_table(rows[name], run.dir / f"{name}.csv", table)
    print(format_claims(claims, run.dir))
    return run.dir


def compute_tables(
    published: Mapping[str, PublishedRun], settings: ImportSettings, claims: list[Claim]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of all tables by name."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    classes = [
        {"label": label, "class_name": item.name, "wnid": item.wnid} for label, item in enumerate(settings.classes)
    ]
    for run_id, run in published.items():
        columns = {"run_id": run_id, "entry_id": ""} | RUN_VALUES[run_id]  # no answers, no entry to compare
        rows["confusion_flat"] += [columns | row for row in _confusion_rows(run, classes)]
        rows["per_class_metrics"] += [columns | row for row in _per_class_rows(run, classes)]
        rows["latency"] += [columns | row for row in _latency_rows(run)]
        rows["summary"].append(_summary_row(run) | columns)
    rows["published_claims"] = [claim.row() for claim in claims]
    return rows


def format_claims(claims: list[Claim], output_dir: Path) -> str:
    """For the terminal: what the text and the files say differently, and where the tables are."""
    wrong = [claim.sentence for claim in claims if claim.agrees == "no"]
    stated = sum(claim.published is not None for claim in claims)
    return "\n".join(
        [f"{len(wrong)} of {stated} numbers of the paper's text contradict its files:", *wrong, f"tables: {output_dir}"]
    )


def _confusion_rows(run: PublishedRun, classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        actual
        | {f"predicted_{key}": value for key, value in guess.items()}
        | {"num_items": run.matrix[actual["label"]][guess["label"]]}
        for actual in classes
        for guess in classes
    ]


def _per_class_rows(run: PublishedRun, classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for item in classes:
        label = item["label"]
        hits, items = run.matrix[label][label], run.num_of_class(label)
        low, high = compute_wilson(hits, items)
        counts = {"num_items": items, "num_predicted": run.num_predicted(label), "num_correct": hits}
        metrics = {name: run.metric(name, label) for name in METRICS}
        rows.append(item | metrics | {"recall_low": low, "recall_high": high} | counts)
    return rows


def _latency_rows(run: PublishedRun) -> list[dict[str, Any]]:
    """One row a batch size: percentiles over its passes, the first (which nothing had warmed up) included."""
    rows = []
    for size in dict.fromkeys(batch.num_items for batch in run.batches):
        times_ms = [float(batch.seconds) * 1000 for batch in run.batches if batch.num_items == size]
        p50, p95 = np.percentile(times_ms, [50, 95])
        rows.append(
            {
                "device": "",
                "precision": "",
                "batch_size": size,
                "num_repetitions": len(times_ms),
                "latency_ms_p50": p50,
                "latency_ms_p95": p95,
                "items_per_s": size / p50 * 1000 if p50 else 0.0,
                "frames_per_s": None,
                "first_batch_share": run.first_batch_share if size == run.batches[0].num_items else None,
            }
        )
    return rows


def _summary_row(run: PublishedRun) -> dict[str, Any]:
    """What was not published (AUC, NLL, calibration, costs, latency of batch 1) stays empty."""
    row: dict[str, Any] = dict.fromkeys(SUMMARY.column_names)
    for name, hits in (("top1", run.hits), ("top3", run.top3_hits)):
        low, high = compute_wilson(hits, run.num_items)
        row |= {f"{name}_fraction": hits / run.num_items, f"{name}_low": low, f"{name}_high": high}
    row |= {f"macro_{name}": run.macro(name) for name in METRICS}
    row |= {"num_items": run.num_items, "num_classes": len(run.matrix), "num_errors": run.num_items - run.hits}
    row["note"] = _NOTES[run.run_id]
    return row
