"""Measured tables of networks that do not exist, with exactly the accuracies one asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from Model_Evaluation.derived import MEASURED, OPTIONAL_MEASURED, read_measured
from utils.artifacts import write_table
from utils.files import sha256_bytes
from utils.utils import true_label_ranks

Case = tuple[str, str, str]  # arm, train_input, test_input
PROTOCOL = {"lr": "0.001", "batch_size": "32", "updates": "4710", "augmentation.horizontal_flip": "true"}
ONLY_3D = {"init": "center", "temporal_padding": "zero", "copy_bn_stats": "true"}
STAGES = (("read", 1.0), ("generate", 80.0), ("classify", 9.0), ("total", 90.0))


def make_results(
    folder: Path,
    accuracies: Mapping[Case, float],
    seeds: int | tuple[int | None, ...] = 3,
    num_items: int = 200,
    num_classes: int = 4,
    *,
    noise: float = 0.1,
    num_frames: int | Mapping[Case, int] = 3,
    clips_per_source: int = 1,
    protocol_values: Mapping[str, Mapping[str, str]] | None = None,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    same_answers: Mapping[Case, Case] | None = None,
    with_end_to_end: bool = False,
) -> Path:
    """Write the measured tables of one run a case and seed, and return the folder.

    Each run is right on exactly `round(accuracy * num_items)` items: those that are easiest to it. How hard an item is
    is mostly the same for all runs, so that answers are paired as those of real networks are.

    Args:
        accuracies: top-1 as a fraction by arm, train input and test input.
        seeds: how many (0, 1, ...), or which.
        noise: how much a run's view of an item differs from the others'; 0 makes all runs agree.
        num_frames: of the clips, where an arm is trained on clips or scored on them.
        clips_per_source: items of one source, numbered `#2` on.
        protocol_values: by arm, what differs from `PROTOCOL`; a value of "" leaves the key out; {"": ""} all keys.
        columns: by arm, run columns that differ.
        same_answers: a case whose answers, as another's, do not depend on its own name (`shuffled` of an order-blind
            network); its accuracy must be the other's.
    """
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in (*MEASURED, *OPTIONAL_MEASURED)}
    item_ids = [
        f"{number // clips_per_source:064x}" + (f"#{clip + 1}" if (clip := number % clips_per_source) else "")
        for number in range(num_items)
    ]
    labels = np.arange(num_items) // clips_per_source % num_classes
    for case, accuracy in accuracies.items():
        for seed in range(seeds) if isinstance(seeds, int) else seeds:
            drawn_as = (same_answers or {}).get(case, case)
            rng = np.random.default_rng([seed or 0, *"/".join(drawn_as).encode()])
            probabilities = draw_probabilities(rng, labels, num_classes, accuracy, noise)
            run = _run_columns(case, seed, num_frames if isinstance(num_frames, int) else num_frames.get(case, 3))
            _add_run(tables, run | (columns or {}).get(case[0], {}), item_ids, labels, probabilities)
            changed = (protocol_values or {}).get(case[0], {})
            own = PROTOCOL | (ONLY_3D if run["model"].endswith("_3d") else {}) | changed
            rows = [{"run_id": run["run_id"], "key": key, "value": value} for key, value in own.items() if value]
            tables["protocol_values"] += [] if "" in changed else rows
    for name, table in MEASURED.items():
        write_table(tables[name], folder / f"{name}.csv", table)
    if with_end_to_end:
        write_table(tables["end_to_end_times"], folder / "end_to_end_times.csv", OPTIONAL_MEASURED["end_to_end_times"])
    return folder


def make_tables(folder: Path, *args: Any, **options: Any) -> dict[str, pd.DataFrame]:
    """The same, read back as `compute_derived` takes them."""
    return read_measured(make_results(folder, *args, **options))


def draw_probabilities(
    rng: np.random.Generator, labels: np.ndarray, num_classes: int, accuracy: float, noise: float
) -> np.ndarray:
    """Probabilities float (N, num_classes), right on exactly `round(accuracy * N)` items."""
    hardness = np.random.default_rng(0).permutation(len(labels)) / len(labels)
    is_right = np.zeros(len(labels), dtype=bool)
    is_right[np.argsort(hardness + noise * rng.normal(size=len(labels)))[: round(accuracy * len(labels))]] = True
    guesses = np.where(is_right, labels, (labels + rng.integers(1, max(num_classes, 2), len(labels))) % num_classes)
    scores = rng.uniform(0.0, 1.0, (len(labels), num_classes))
    scores[np.arange(len(labels)), guesses] += 1.0
    return scores / scores.sum(axis=1, keepdims=True)


def _run_columns(case: Case, seed: int | None, num_frames: int) -> dict[str, Any]:
    arm, train_input, test_input = case
    is_3d = arm.removeprefix("paper_").startswith("3d")
    has_clips = train_input not in ("original", "unknown") or test_input.split(":")[0] in (
        "first_frame",
        "all_frames",
        "clip",
    )
    return {
        "run_id": f"{arm}_t{num_frames}_s{seed}__{test_input.replace(':', '_')}",
        "protocol": "paper" if arm.startswith("paper") else "matched",
        "arm": arm,
        "model": "vgg11_bn_3d" if is_3d else "vgg11_bn",
        "start_weights": "imagenet",
        "train_input": train_input,
        "test_input": test_input,
        "split": "val",
        "selection_split": "hold_out",
        "num_frames": num_frames if has_clips else 1,
        "seed": seed,
    }


def _add_run(
    tables: dict[str, list[dict[str, Any]]],
    run: dict[str, Any],
    item_ids: list[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    run_id, predicted, ranks = run["run_id"], probabilities.argmax(axis=1), true_label_ranks(probabilities, labels)
    for position, (item_id, label) in enumerate(zip(item_ids, labels, strict=True)):
        guess, rank = predicted[position], ranks[position]
        names = {"class_name": f"class {label}", "wnid": f"n{label:08d}"}
        names |= {"predicted_class_name": f"class {guess}", "predicted_wnid": f"n{guess:08d}"}
        answer = {"item_id": item_id, "label": label, "predicted_label": guess, "true_label_rank": rank}
        tables["predictions"].append(run | names | answer | {"prob_true": probabilities[position, label]})
        tables["probabilities"] += [
            {"run_id": run_id, "item_id": item_id, "label": c, "probability": p}
            for c, p in enumerate(probabilities[position])
        ]
    device = {"run_id": run_id, "device": "cpu", "precision": "fp32"}
    for batch_size, base_ms in ((1, 2.0), (8, 10.0)):
        for repetition, extra_ms in enumerate((0.0, 0.5, 2.0), start=1):
            time = {"batch_size": batch_size, "repetition": repetition, "batch_latency_ms": base_ms + extra_ms}
            tables["inference_times"].append(device | time)
    is_3d = run["model"].endswith("_3d")
    is_trained_on_clips = run["train_input"] not in ("original", "unknown")
    told = [run["arm"], run["start_weights"], run["num_frames"] if is_trained_on_clips else 1, run["seed"]]
    weights = sha256_bytes(repr(told).encode())[:16]
    cost = {
        "run_id": run_id,
        "model": run["model"],
        "weights_sha256": weights,
        "input_shape": "3x3x224x224" if is_3d else "3x224x224",
    }
    macs = {"nominal_macs": 67_637_000_000, "executed_macs": 30_100_000_000} if is_3d else {}
    macs = macs or {"nominal_macs": 7_654_000_000, "executed_macs": 7_654_000_000}
    size = {"num_passes": 1, "num_parameters": 147_248_266 if is_3d else 128_812_810}
    tables["model_costs"].append(cost | size | macs | {"train_s": 600.0, "generation_s_per_item": 2.5})
    tables["end_to_end_times"] += [
        device | {"generator": "svd", "batch_size": 1, "repetition": r, "stage": stage, "stage_ms": r * stage_ms}
        for r in (1, 2, 3)
        for stage, stage_ms in STAGES
    ]
