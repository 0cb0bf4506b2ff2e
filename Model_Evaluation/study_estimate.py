"""What a study will take: seconds an update, measured; updates and bytes, counted."""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from Baseline_VGG.vgg_baseline import build_vgg11
from Data_Augmentation_SVD.generation_stats import read_seconds_per_clip
from Data_Sourcing.image_set import read_image_set
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.study_plan import ClipSet, PlannedRun, folder_bytes, is_trained
from Model_Evaluation.study_settings import StudySettings
from utils.batches import Batch
from utils.errors import InputError
from utils.history import Plan, new_sums
from utils.learner import Learner, build_recipe, update_weights
from utils.ranks import Ranks
from utils.settings import TrainingSettings

log = logging.getLogger(__name__)
_REPETITIONS = 3
# Keys that change no update's time.
_NO_TIME = set(
    """output_dir cache_dir seed data_root clips_root train_csv val_csv wnids_file hold_out selection train_input
    mix_probability protocol epochs updates""".split()  # noqa: SIM905
)
_BYTES = 4  # float32
_STATE_COPIES = 3  # while a run trains: its weights and momentum for resume, and the best weights again


@dataclass(frozen=True)
class Estimate:
    """What a run will take; None of what is done.

    Attributes:
        num_updates, update_s: of training; the latter measured here.
        disk_bytes: of what stays.
    """

    num_updates: int
    update_s: float | None
    disk_bytes: int

    @property
    def train_s(self) -> float:
        """Of training; choosing the epoch and saving not counted."""
        return self.num_updates * (self.update_s or 0.0)


def print_plan(study: StudySettings, runs: list[PlannedRun], clips: Mapping[tuple[str, int], ClipSet]) -> None:
    """Print every clip set and run, what it will take, and whether it is done.

    Raises:
        InputError: the disk has less room than the study needs.
    """
    images = read_image_set(study.images_root, "train")
    num_val = len(read_image_set(study.images_root, "val"))
    num_classes = len(images.classes)
    print(f"images: {len(images)} train, {num_val} val, {num_classes} classes ({study.images_root})")
    clip_bytes = 0
    for clip_set in clips.values():
        line, needed = _describe_clips(clip_set, len(images) + num_val)
        clip_bytes += needed
        print(line)
    timed: dict[str, tuple[float, int]] = {}
    estimates = {run.run_id: estimate_run(run, study, len(images), num_classes, timed) for run in runs}
    print_runs(study, runs, estimates)
    cache_bytes = count_cache_bytes(runs, len(images) + num_val)
    weight_bytes = sum(estimate.disk_bytes for estimate in estimates.values())
    largest = max((estimate.disk_bytes for estimate in estimates.values()), default=0)
    cached = folder_bytes(study.output_dir / "cache")
    peak_bytes = clip_bytes + max(0, cache_bytes - cached) + weight_bytes + _STATE_COPIES * largest
    train_s = sum(estimate.train_s for estimate in estimates.values())
    print(f"training still to do: about {_format_duration(train_s)} (without choosing epochs, saving and scoring)")
    print(
        f"disk: {weight_bytes / 1e6:.0f} MB of weights, {cache_bytes / 1e6:.0f} MB of decoded pixels, at most "
        f"{clip_bytes / 1e6:.0f} MB of new clips"
    )
    if weight_bytes or clip_bytes:
        require_room(study.output_dir, peak_bytes)


def estimate_run(
    run: PlannedRun, study: StudySettings, num_images: int, num_classes: int, timed: dict[str, tuple[float, int]]
) -> Estimate:
    """What one run will take; nothing if it is trained.

    Args:
        timed: updates that were timed already, by what makes their time; added to.
    """
    if run.arm.trained_as or is_trained(run.run_id, study):
        return Estimate(0, None, 0)
    key = run.settings.model_dump_json(exclude=_NO_TIME)
    if key not in timed:
        try:
            timed[key] = time_update(run.settings, num_classes)
        except torch.OutOfMemoryError:
            raise InputError(
                f"{run.run_id}: the GPU's memory is too small for an update of {run.settings.batch_size} items in "
                f"{run.settings.accumulate} parts; raise accumulate, for all arms alike"
            ) from None
    update_s, num_parameters = timed[key]
    return Estimate(count_updates(run, num_images), update_s, _BYTES * num_parameters)


def count_updates(run: PlannedRun, num_images: int) -> int:
    """Of a run's training, if every image has its clip."""
    settings = run.settings
    share = 1 - settings.hold_out.fraction if settings.selection == "hold_out" else 1.0
    num_items = num_images * (run.num_frames if run.arm.train_input == "all_frames" else 1)
    return Plan(settings, -(-round(share * num_items) // settings.batch_size)).total_updates


def print_runs(study: StudySettings, runs: list[PlannedRun], estimates: Mapping[str, Estimate]) -> None:
    """One line a run."""
    width = max(len(run.run_id) for run in runs)
    print(f"{'run':{width}}  updates  s/update  training   weights  scored on")
    for run in runs:
        estimate = estimates[run.run_id]
        tests = ", ".join(run.arm.tests)
        if run.arm.trained_as:
            body = f"(the weights of {run.weights_of})".ljust(36)
        elif estimate.update_s is None:
            body = "trained".ljust(36)
        else:
            duration = _format_duration(estimate.train_s)
            size = f"{estimate.disk_bytes / 1e6:5.0f} MB"
            body = f"{estimate.num_updates:7d}  {estimate.update_s:8.3f}  {duration:>8}  {size}"
        print(f"{run.run_id:{width}}  {body}  {tests}")


def count_cache_bytes(runs: list[PlannedRun], num_items: int) -> int:
    """Of decoded pixels: images once, each clip set once, and each geometry."""
    kinds = set()
    for run in runs:
        size = run.settings.image_size
        kinds |= {("images", 1, size)} if run.settings.NETWORK == "baseline" else set()
        kinds |= {("paper geometry", 1, size)} if "original_paper_geometry" in run.arm.tests else set()
        kinds |= {(clips.kind, clips.num_frames, size) for clips in (run.clip_set, run.test_set) if clips is not None}
    return sum(num_items * num_frames * size * size * 3 for _, num_frames, size in kinds)


def require_room(output_dir: Path, needed_bytes: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        InputError: the disk has less room.
    """
    existing = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise InputError(
            f"output_dir: the study needs about {needed_bytes / 1e9:.1f} GB and {existing} has "
            f"{free_bytes / 1e9:.1f} GB free; free some, choose another disk, or take arms or seeds out"
        )


def time_update(settings: TrainingSettings, num_classes: int) -> tuple[float, int]:
    """Seconds of one update (median of 3 after one that does not count), and the network's number of parameters."""
    recipe = build_recipe(settings.device, settings.precision)
    is_clip = settings.NETWORK == "inflated"
    builder = build_vgg11_3d if is_clip else build_vgg11
    options = {"classifier_width": settings.classifier_width, "dropout": settings.dropout}
    if is_clip:
        options["temporal_conv"] = settings.temporal_conv
    learner = Learner(builder(num_classes, **options), num_classes, settings, recipe, Ranks())
    learner.train_mode()
    sums, generator = new_sums(recipe.device), torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(1 + _REPETITIONS):
        parts = _synthetic_parts(settings, num_classes, is_clip)
        started_s = time.perf_counter()
        update_weights(learner, parts, sums, generator).item()  # waits for the device
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds[1:]), sum(parameter.numel() for parameter in learner.model.parameters())


def _synthetic_parts(settings: TrainingSettings, num_classes: int, is_clip: bool) -> list[Batch]:
    size, num_frames = settings.image_size, settings.num_frames if is_clip else 1
    count = -(-settings.batch_size // settings.accumulate)
    pixels = torch.randint(0, 256, (num_frames, count, size, size, 3), dtype=torch.uint8).permute(1, 4, 0, 2, 3)
    labels = torch.arange(count) % num_classes
    shares = torch.full((count,), 1 / settings.batch_size)
    return [Batch(pixels if is_clip else pixels[:, :, 0], labels, shares)] * settings.accumulate


def _describe_clips(clips: ClipSet, num_items: int) -> tuple[str, int]:
    """A line, and the bytes that are still to be written, uncompressed: an upper bound."""
    name = f"clips {clips.kind}, {clips.num_frames} frames"
    if clips.generation is None:
        return f"{name}: {clips.root}", 0
    if (clips.root / "train.csv").exists() and (clips.root / "val.csv").exists():
        return f"{name}: made ({clips.root})", 0
    rate = read_seconds_per_clip(clips.root)
    known = (
        "time not known before the first are made" if rate is None else f"about {_format_duration(rate * num_items)}"
    )
    generation = clips.generation
    count = num_items * generation.clips_per_image
    return (
        f"{name}: {count} to make by {generation.generator}, {known}",
        count * clips.num_frames * generation.frame_size**2 * 3,
    )


def _format_duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
