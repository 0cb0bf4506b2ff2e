"""Score models, each on a stated input, into the measured tables; each finished model survives a kill."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Data_Augmentation_SVD.generation_stats import read_seconds_per_clip
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Sourcing.image_set import image_set_inputs, read_image_set
from Model_Evaluation.classifier import Classifier
from Model_Evaluation.costs import (
    count_executed_macs,
    count_nominal_macs,
    count_parameters,
)
from Model_Evaluation.derived import (
    DONE_FILE,
    MEASURED,
    OPTIONAL_MEASURED,
    OWNED_FILES,
    TABLE_FILES,
    format_summary,
    write_derived,
)
from Model_Evaluation.end_to_end import Deployment, measure_end_to_end, read_generation
from Model_Evaluation.inputs import PAPER_GEOMETRY, TestData, build_test_data
from Model_Evaluation.latency import LatencyGuard, latency_rows, measure_latency, measure_peak
from Model_Evaluation.models import (
    InputFormat,
    describe_input,
    load_model,
    named_classes,
    protocol_rows,
    require_task,
    run_columns,
    scored_classes,
)
from Model_Evaluation.pictures import Gallery, draw_run_pictures
from Model_Evaluation.settings import EvaluationSettings, ScoredModel
from utils.artifacts import Table, format_table, write_table
from utils.checkpoints import verify_weights
from utils.config import read_yaml
from utils.devices import describe_device, device_name
from utils.errors import InputError
from utils.files import sha256_file, write_text
from utils.indices import ClassInfo, locate_clip_index, require_same_classes
from utils.inference import prepare_for_inference
from utils.learner import Recipe, build_recipe
from utils.pixels import Pixels
from utils.runs import Run, SettingsChanged, open_run, remove_owned
from utils.training_time import read_training_seconds
from utils.utils import progress, true_label_ranks

log = logging.getLogger(__name__)
_PARTS = "parts"
MEASURED_FILES = tuple(f"{name}.csv" for name in MEASURED)
# Where the inputs are, what they are is compared by content; and pictures, which can be drawn again.
_FREE_KEYS = (
    "pictures.*",
    *("data.root", "data.val_csv", "data.clips_root", "data.images_root", "data.wnids_file", "data.cache_dir"),
    *("models.*.checkpoint", "models.*.root", "models.*.val_csv", "models.*.clips_root"),
    *("model2d.checkpoint", "model3d.checkpoint"),
)


@dataclass(frozen=True)
class _Job:
    """One model with everything it needs, checked before the first model runs."""

    model: ScoredModel
    form: InputFormat
    test: TestData
    generation: GenerationSettings | None  # of its clips, for end-to-end times


def run_evaluation(settings: EvaluationSettings) -> Path:
    """Score all models, write the measured tables, then everything that follows from them; return the folder."""
    run = _open_run(settings)
    if run.is_done(*TABLE_FILES) and _has_its_pictures(run, settings):
        log.info("%s is complete; nothing to do", run.dir)
    else:
        _measure(settings, run)
        run_ids, gallery = [model.name for model in settings.scored_models], Gallery([settings])
        write_derived(
            run.dir,
            run.dir,
            lambda tables, folder: draw_run_pictures(gallery, tables, run_ids, folder, settings.pictures),
        )
        run.record_settings()  # last: a killed run's pictures are drawn again
    print(format_summary(run.dir))
    return run.dir


def _has_its_pictures(run: Run, settings: EvaluationSettings) -> bool:
    return read_yaml(run.dir / run.config_name).get("pictures") == settings.pictures.model_dump(mode="json")


def measure_models(settings: EvaluationSettings) -> Path:
    """Score all models and write the measured tables alone; return the folder.

    What was scored with other settings or from other inputs is scored again: it costs little.
    """
    try:
        run = _open_run(settings)
    except SettingsChanged as error:
        log.info("scoring again: %s", "; ".join(error.changes))
        settings = settings.model_copy(update={"overwrite": True})
        run = _open_run(settings)
    _measure(settings, run)
    return run.dir


def _measure(settings: EvaluationSettings, run: Run) -> None:
    if run.is_done(*MEASURED_FILES):
        return
    jobs = [_prepare_job(settings, model) for model in settings.scored_models]
    recipe = build_recipe(settings.device, settings.precision)
    run.begin(describe_device(recipe.device))
    parts = [run.dir / _PARTS / job.model.name for job in jobs]
    for job, part in zip(jobs, parts, strict=True):
        _score_unless_done(job, settings, recipe, part)
    merge_measured(parts, run.dir)
    remove_owned(run.dir, (_PARTS,))


def _open_run(settings: EvaluationSettings) -> Run:
    data = settings.data
    inputs = {f"checkpoint of {model.name}": model.checkpoint for model in settings.scored_models}
    if data.root is not None:
        inputs["clip index"] = locate_clip_index(data.root, data.index_csv, data.split, data.clips_root)[0]
    for model in settings.scored_models:
        if model.root is not None:
            own = model.data(data)
            place = locate_clip_index(own.root, own.index_csv, own.split, own.clips_root)
            inputs[f"clip index of {model.name}"] = place[0]
    if data.images_root is not None:
        inputs |= image_set_inputs(data.images_root, data.wnids_file)
    return open_run(settings, owned=(*OWNED_FILES, _PARTS), inputs=inputs, free_keys=_FREE_KEYS)


def _prepare_job(settings: EvaluationSettings, model: ScoredModel) -> _Job:
    form = describe_input(model.type, model.checkpoint, settings.data)
    described = verify_weights(model.checkpoint)
    task = settings.data.task
    require_task(form, task, model.checkpoint)
    if task is None and described and settings.num_classes not in (None, len(described.classes)):
        raise InputError(
            f"num_classes: is {settings.num_classes}, but {model.checkpoint} has {len(described.classes)} classes; "
            "drop the key or use that value"
        )
    classes = scored_classes(described, form, task) if described else None
    num_classes = settings.num_classes or (len(classes) if classes else None)
    test = build_test_data(model.kind, model.data(settings.data), form, num_classes)
    if settings.num_classes is not None and len(test.index.classes) != settings.num_classes:
        raise InputError(
            f"num_classes: is {settings.num_classes}, but {test.index.index_path} has {len(test.index.classes)} classes"
        )
    if described is not None:
        require_same_classes(classes, str(model.checkpoint), test.index.classes, str(test.index.index_path))
    return _Job(model, form, test, _read_generation(settings, model))


def _read_generation(settings: EvaluationSettings, model: ScoredModel) -> GenerationSettings | None:
    if settings.end_to_end is None or model.kind.uses_images:
        return None
    data = model.data(settings.data)
    return read_generation(settings.end_to_end.generation or {}, data.images_root, data.root)


def _tables_of(settings: EvaluationSettings) -> dict[str, Table]:
    """The tables that are measured."""
    return MEASURED if settings.end_to_end is None else OPTIONAL_MEASURED | MEASURED


def _score_unless_done(job: _Job, settings: EvaluationSettings, recipe: Recipe, part_dir: Path) -> None:
    """Write one model's share of the tables; the last of them marks it done."""
    known = _tables_of(settings)
    paths = {name: part_dir / f"{name}.csv" for name in known}
    if all(path.exists() for path in paths.values()):
        log.info("%s is scored already", job.model.name)
        return
    log.info("scoring %s on %s (%d items)", job.model.name, job.test.name, len(job.test.index))
    tables = score_model(job, settings, recipe)
    for name, rows in tables.items():
        write_table(rows, paths[name], known[name])


def score_model(job: _Job, settings: EvaluationSettings, recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """All measurements of one model: rows by table name."""
    run_id, test = job.model.name, job.test
    task = settings.data.task
    network, described = load_model(job.model.type, job.model.checkpoint, task)
    network.to(recipe.device)
    names = {"arm": job.model.arm, "test_input": test.name, "run_id": run_id}
    names |= {"split": settings.data.split, "num_frames": test.frames_there}
    columns = run_columns(described, job.model.type, **names)
    classes = named_classes(test.index.classes, described)
    pixels = test.open(settings.data.cache_dir, settings.data.workers)
    classifier = _build_classifier(network, job, recipe)
    probabilities = predict(classifier, pixels, job, settings.data.batch_size)
    if probabilities.shape[1] != len(classes):
        raise InputError(
            f"{job.model.checkpoint}: has {probabilities.shape[1]} outputs, the data {len(classes)} classes; use the "
            "class list of the training"
        )
    item_ids, labels = test.index.item_ids, np.array(test.index.labels)
    costs = _cost_row(network, classifier, columns, job, settings)
    prepared = _build_classifier(_prepare(network, job, recipe), job, recipe)
    return {
        "predictions": prediction_rows(columns, item_ids, labels, probabilities, classes),
        "probabilities": probability_rows(run_id, item_ids, probabilities),
        **_time_inference(prepared, pixels, costs["executed_macs"], job, settings, recipe),
        "model_costs": [costs],
        "protocol_values": protocol_rows(described, run_id, settings.subject),
    }


def predict(classifier: Classifier, pixels: Pixels, job: _Job, batch_size: int) -> np.ndarray:
    """Probabilities float64 (N, num_classes), in index order.

    Raises:
        InputError: a logit is not finite.
    """
    parts = torch.arange(len(pixels)).split(batch_size)
    probabilities = []
    for part in progress(parts, len(parts), job.model.name, every=25):
        found = classifier.probabilities(classifier.prepare(pixels.gather(part)))
        if not np.isfinite(found).all():
            raise InputError(
                f"{job.model.checkpoint}: gives logits that are not finite; use precision: fp32, or train again"
            )
        probabilities.append(found)
    return np.concatenate(probabilities)


def _build_classifier(network: nn.Module, job: _Job, recipe: Recipe) -> Classifier:
    options = {name: getattr(job.test, name) for name in ("is_fused", "num_views", "num_clips")}
    return Classifier(network, job.form, recipe, **options)


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
            "wnid": classes[label].wnid,
            "predicted_label": guess,
            "predicted_class_name": classes[guess].class_name,
            "predicted_wnid": classes[guess].wnid,
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


def _cost_row(
    network: nn.Module, classifier: Classifier, columns: dict[str, Any], job: _Job, settings: EvaluationSettings
) -> dict[str, Any]:
    num_passes = classifier.num_passes(job.test.frame_order.shape[1])
    clips_root = None if job.model.kind.uses_images else job.model.data(settings.data).root
    return {
        "run_id": columns["run_id"],
        "model": columns["model"],
        "weights_sha256": sha256_file(job.model.checkpoint)[:16],
        "input_shape": "x".join(map(str, job.form.shape)),
        "num_passes": num_passes,
        "num_parameters": count_parameters(network),
        "nominal_macs": num_passes * count_nominal_macs(network, job.form.shape),
        "executed_macs": num_passes * count_executed_macs(network, job.form.shape),
        "train_s": read_training_seconds(job.model.checkpoint.parent),
        "generation_s_per_item": None if clips_root is None else read_seconds_per_clip(clips_root),
    }


def _time_inference(
    classifier: Classifier, pixels: Pixels, executed_macs: int, job: _Job, settings: EvaluationSettings, recipe: Recipe
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the tables of times: those that the device can have."""
    dtype, name, run_id = recipe.autocast_dtype or torch.float32, device_name(recipe.device), job.model.name
    guard = _guard_of(recipe.device, dtype)
    counts, rows = settings.latency.model_dump(include={"warmup", "repetitions"}), []
    for batch_size in settings.latency.batch_sizes:
        batch = classifier.prepare(pixels.gather([0] * batch_size))
        latencies_ms = measure_latency(lambda batch=batch: classifier.logits(batch), recipe.device, **counts)
        guard.check(f"{run_id}, batch {batch_size}", batch_size * executed_macs, float(np.median(latencies_ms)))
        rows += latency_rows(run_id, settings.precision, name, batch_size, latencies_ms)
    tables = {"inference_times": rows}
    if settings.end_to_end is not None:
        deployment = Deployment(
            generation=job.generation,
            image_size=job.form.image_size,
            frame_order=_frames_of_generated(job),
            prepare=classifier.prepare,
            classify=classifier.probabilities,
            device=recipe.device,
            executed_macs=executed_macs,
            guard=guard,
            still_geometry=PAPER_GEOMETRY if job.model.kind.base == "original_paper_geometry" else None,
        )
        paths = read_image_set(settings.data.images_root, settings.data.split, settings.data.wnids_file).paths
        options = settings.end_to_end.model_dump(exclude={"generation"})
        names = {"run_id": run_id, "precision": settings.precision}
        tables["end_to_end_times"] = measure_end_to_end(deployment, paths, **names, **options)
    return tables


def _frames_of_generated(job: _Job) -> np.ndarray:
    """Which frames of a clip that was just made (or of the image) the network sees: int64 (T,)."""
    order = job.test.frame_order[0]
    if job.generation is None or job.form.sampling is None:
        return order
    return job.form.sampling.stored_frames(job.generation.num_frames).flatten()[order]


@cache
def _guard_of(device: torch.device, dtype: torch.dtype) -> LatencyGuard:
    """One for all models of this process: what a device reaches is measured once."""
    return LatencyGuard(lambda: measure_peak(device, dtype))


def _prepare(model: nn.Module, job: _Job, recipe: Recipe) -> nn.Module:
    """The network as one would run it for its answers alone: VGGs, where they have such a form (three frames)."""
    if job.model.type == "video" or job.form.num_frames not in (None, 3):
        return model
    try:
        return prepare_for_inference(model, dtype=recipe.autocast_dtype or torch.float32)
    except ValueError:
        return model


def merge_measured(folders: list[Path], output_dir: Path) -> bool:
    """Join the measured tables of several folders, in this order; whether any was not there already as it is now."""
    has_changed = False
    for name, table in (OPTIONAL_MEASURED | MEASURED).items():
        # Each was written by `write_table`: its lines are this table's lines.
        sources = [folder / f"{name}.csv" for folder in folders]
        if name in OPTIONAL_MEASURED and not any(source.exists() for source in sources):
            continue
        texts = [source.read_text(encoding="utf-8") for source in sources if source.exists()]
        lines = itertools.chain.from_iterable(text.splitlines(keepends=True)[1:] for text in texts)
        whole, path = format_table((), table) + "".join(lines), output_dir / f"{name}.csv"
        if not path.exists() or path.read_text(encoding="utf-8") != whole:
            (output_dir / DONE_FILE).unlink(missing_ok=True)  # what follows from these tables is to be made again
            write_text(path, whole)
            has_changed = True
    return has_changed
