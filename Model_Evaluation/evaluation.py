"""Score models, each on a stated input, into the four measured tables; each finished model survives a kill."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Data_Sourcing.image_set import image_set_inputs
from Model_Evaluation.costs import count_nominal_macs, count_parameters, latency_rows, measure_latency
from Model_Evaluation.derived import MEASURED, OWNED_FILES, TABLE_FILES, format_summary, write_derived
from Model_Evaluation.inputs import INPUT_BUILDERS, SPLIT, TestData
from Model_Evaluation.models import InputFormat, describe_input, load_model, named_classes, run_columns
from Model_Evaluation.settings import EvaluationSettings, ScoredModel
from utils.artifacts import read_table, write_table
from utils.augmentation import Preprocessing
from utils.checkpoints import verify_weights
from utils.devices import describe_device, device_name
from utils.errors import InputError
from utils.indices import ClassInfo, locate_clip_index, require_same_classes
from utils.inference import prepare_for_inference
from utils.learner import Recipe, build_recipe
from utils.loading import build_loader
from utils.runs import Run, open_run, remove_owned
from utils.utils import progress, true_label_ranks

log = logging.getLogger(__name__)
_PARTS = "parts"
# Where the inputs are; what they are is compared by content.
_PATH_KEYS = (
    *("data.root", "data.val_csv", "data.images_root", "data.wnids_file"),
    *("models.*.checkpoint", "model2d.checkpoint", "model3d.checkpoint"),
)


@dataclass(frozen=True)
class _Job:
    """One model with everything it needs, checked before the first model runs."""

    model: ScoredModel
    form: InputFormat
    test: TestData


def run_evaluation(settings: EvaluationSettings) -> Path:
    """Score all models, write the measured tables, then everything that follows from them; return the folder."""
    run = _open_run(settings)
    if run.is_done(*TABLE_FILES):
        log.info("%s is complete; nothing to do", run.dir)
    else:
        jobs = [_prepare_job(settings, model) for model in settings.scored_models]
        recipe = build_recipe(settings.device, settings.precision)
        run.begin(describe_device(recipe.device))
        for job in jobs:
            _score_unless_done(job, settings, recipe, run.dir / _PARTS / job.model.name)
        _merge_parts(run.dir, [job.model.name for job in jobs])
        write_derived(run.dir, run.dir)
        remove_owned(run.dir, (_PARTS,))
    print(format_summary(run.dir))
    return run.dir


def _open_run(settings: EvaluationSettings) -> Run:
    data = settings.data
    inputs = {f"checkpoint of {model.name}": model.checkpoint for model in settings.scored_models}
    if data.root is not None:
        inputs["clip index"] = locate_clip_index(data.root, data.val_csv, SPLIT)[0]
    if data.images_root is not None:
        inputs |= image_set_inputs(data.images_root, data.wnids_file)
    return open_run(settings, owned=(*OWNED_FILES, _PARTS), inputs=inputs, free_keys=_PATH_KEYS)


def _prepare_job(settings: EvaluationSettings, model: ScoredModel) -> _Job:
    form = describe_input(model.type, model.checkpoint, settings.data)
    described = verify_weights(model.checkpoint)
    if described and settings.num_classes not in (None, len(described.classes)):
        raise InputError(
            f"num_classes: is {settings.num_classes}, but {model.checkpoint} has {len(described.classes)} classes; "
            "drop the key or use that value"
        )
    num_classes = settings.num_classes or (len(described.classes) if described else None)
    test = INPUT_BUILDERS[model.input](settings.data, form, num_classes)
    if settings.num_classes is not None and len(test.index.classes) != settings.num_classes:
        raise InputError(
            f"num_classes: is {settings.num_classes}, but {test.index.index_path} has {len(test.index.classes)} classes"
        )
    if described is not None:
        require_same_classes(described.classes, str(model.checkpoint), test.index.classes, str(test.index.index_path))
    return _Job(model, form, test)


def _score_unless_done(job: _Job, settings: EvaluationSettings, recipe: Recipe, part_dir: Path) -> None:
    """Write one model's share of the four tables; the last of them marks it done."""
    paths = {name: part_dir / f"{name}.csv" for name in MEASURED}
    if all(path.exists() for path in paths.values()):
        log.info("%s is scored already", job.model.name)
        return
    log.info("scoring %s on %s (%d items)", job.model.name, job.test.name, len(job.test.index))
    tables = score_model(job, settings, recipe)
    for name, rows in tables.items():
        write_table(rows, paths[name], MEASURED[name])


def score_model(job: _Job, settings: EvaluationSettings, recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """All measurements of one model: rows by table name."""
    run_id = job.model.name
    model, described = load_model(job.model.type, job.model.checkpoint)
    model.to(recipe.device)
    columns = run_columns(described, job.model.type, job.model.arm, job.test.name, SPLIT, run_id)
    classes = named_classes(job.test.index.classes, described)
    probabilities, labels = predict(model, job, settings, recipe)
    if probabilities.shape[1] != len(classes):
        raise InputError(
            f"{job.model.checkpoint}: has {probabilities.shape[1]} outputs, the data {len(classes)} classes; use the "
            "class list of the training"
        )
    item_ids = job.test.index.item_ids
    return {
        "predictions": prediction_rows(columns, item_ids, labels, probabilities, classes),
        "probabilities": probability_rows(run_id, item_ids, probabilities),
        "inference_times": _time_inference(model, job, settings, recipe),
        "model_costs": [
            {
                "run_id": run_id,
                "model": columns["model"],
                "input_shape": "x".join(map(str, job.form.shape)),
                "num_parameters": count_parameters(model),
                "nominal_macs": count_nominal_macs(model, job.form.shape),
            }
        ],
    }


@torch.inference_mode()
def predict(model: nn.Module, job: _Job, settings: EvaluationSettings, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float64 (N, num_classes) and labels int (N,), in index order."""
    preprocess = Preprocessing(job.form.mean, job.form.std)
    loader = build_loader(
        job.test.data, batch_size=settings.data.batch_size, workers=settings.data.workers, device=recipe.device
    )
    probabilities, labels = [], []
    for inputs, target in progress(loader, len(loader), job.model.name, every=25):
        with recipe.autocast():
            logits = model(preprocess(inputs.to(recipe.device)))
        if not torch.isfinite(logits).all():
            raise InputError(
                f"{job.model.checkpoint}: gives logits that are not finite; use precision: fp32, or train again"
            )
        probabilities.append(logits.cpu().double().softmax(dim=1).numpy())
        labels.append(target.numpy())
    return np.concatenate(probabilities), np.concatenate(labels)


def prediction_rows(
    columns: dict[str, Any],
    item_ids: list[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: tuple[ClassInfo, ...],
) -> list[dict[str, Any]]:
    """Rows of `predictions.csv`: probabilities float (N, num_classes); ties go to the lower label."""
    predicted = probabilities.argmax(axis=1)
    ranks = true_label_ranks(probabilities, labels)
    return [
        columns
        | {
            "item_id": item_id,
            "label": label,
            "class_name": classes[label].class_name,
            "predicted_label": guess,
            "predicted_class_name": classes[guess].class_name,
            "true_label_rank": rank,
            "prob_true": probabilities[position, label],
        }
        for position, (item_id, label, guess, rank) in enumerate(zip(item_ids, labels, predicted, ranks, strict=True))
    ]


def probability_rows(run_id: str, item_ids: list[str], probabilities: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `probabilities.csv`: one an item and class."""
    return [
        {"run_id": run_id, "item_id": item_id, "label": label, "probability": probability}
        for item_id, row in zip(item_ids, probabilities, strict=True)
        for label, probability in enumerate(row)
    ]


def _time_inference(model: nn.Module, job: _Job, settings: EvaluationSettings, recipe: Recipe) -> list[dict[str, Any]]:
    preprocess = Preprocessing(job.form.mean, job.form.std)
    model = _prepare(model, recipe)
    first, _ = job.test.data[0]
    rows = []
    for batch_size in settings.latency.batch_sizes:
        batch = first[None].expand(batch_size, *first.shape).to(recipe.device)
        latencies_ms = measure_latency(
            model,
            preprocess(batch),
            recipe,
            warmup=settings.latency.warmup,
            repetitions=settings.latency.repetitions,
        )
        name = device_name(recipe.device)
        rows += latency_rows(job.model.name, settings.precision, name, batch_size, latencies_ms)
    return rows


def _prepare(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The network as one would run it for its answers alone, where it has such a form (three frames, zero padding)."""
    try:
        return prepare_for_inference(model, dtype=recipe.autocast_dtype or torch.float32)
    except ValueError:
        return model


def _merge_parts(output_dir: Path, run_ids: list[str]) -> None:
    """Join the models' shares, in the order of the config, into the four measured tables."""
    for name, table in MEASURED.items():
        frames = [read_table(output_dir / _PARTS / run_id / f"{name}.csv", table) for run_id in run_ids]
        rows = [row for frame in frames for row in frame.to_dict("records")]
        write_table(rows, output_dir / f"{name}.csv", table)
