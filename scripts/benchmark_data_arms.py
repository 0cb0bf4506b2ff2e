"""The benchmark's rows without a network's figures: an epoch of clips, decoded or cached, and the demo's 3-D stage."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from Data_Augmentation_SVD.generators import CameraMotionGenerator
from Data_Augmentation_SVD.geometry import Geometry
from Inflated_3D_VGG.video_dataset import VideoDataset
from scripts.benchmark_training_arms import time_arms
from utils.checkpoints import read_description
from utils.clips import write_clip
from utils.devices import choose_device
from utils.errors import InputError
from utils.files import write_text
from utils.indices import ItemIndex, locate_clip_index, read_clip_index
from utils.pixels import Pixels
from utils.sources import clip_files

if TYPE_CHECKING:
    from scripts.benchmark_training import TrainingBenchmarkSettings

NUM_FRAMES = 3
_PROJECT = Path(__file__).resolve().parents[1]
_CACHED_EPOCHS = 5  # in one sample: a cached epoch is over in milliseconds
_COPY_BYTES = (2**18, 2**20, 2**23, 2**26)


@dataclass
class Timing:
    """What was measured of one arm: a sample a repetition, and more cells of its row."""

    arm: str
    seconds: list[float] = field(default_factory=list)
    cells: dict[str, Any] = field(default_factory=dict)


@dataclass
class EpochArm:
    """What `time_arms` needs of an arm; `num_epochs` are in one run."""

    name: str
    run: Callable[[], Any]
    device: torch.device
    num_epochs: int = 1


# ---------------------------------------------------------------------------------------------------------------------
# An epoch of clips


def measure_data(settings: TrainingBenchmarkSettings) -> tuple[list[Timing], list[Timing]]:
    """One epoch of uint8 batches, and `epochs` of them with the cache's build, of every arm.

    `plain` decodes each clip in each epoch, as a DataLoader over files does: in the process itself, then with workers
    that stay from epoch to epoch. `ours` gathers from the cache. Files are in the system's memory, for all arms.

    Raises:
        InputError: the arms' pixels differ, or a figure is above what the memory can do.
    """
    with TemporaryDirectory(prefix="benchmark_data_") as name:
        folder = Path(name)
        root = settings.clips_root or write_clips(folder / "clips", settings.num_clips, settings.image_size)
        clips = read_clips(root, settings.train_csv)
        pixels = open_clips(clips, settings, folder / "cache")
        compare_pixels(clips, pixels, settings)
        arms = build_epoch_arms(settings, clips, pixels)
        build = EpochArm("build", lambda: build_cache(root, settings, folder / "built"), arms[0].device)
        seconds = time_arms([*arms, build], settings.repetitions)
    one = {arm.name: [value / arm.num_epochs for value in seconds[arm.name]] for arm in arms}
    epoch = [Timing(name, one[name], cells_of(name, clips, settings)) for name in one]
    _add_bandwidth(epoch, pixels.num_bytes, settings)
    return epoch, [_add_epochs(timing, seconds["build"], settings.epochs) for timing in epoch]


def write_clips(folder: Path, num_clips: int, image_size: int) -> Path:
    """Made-up images, moved by the camera, as MP4s with a two-column index `train.csv`; returns the folder."""
    geometry = Geometry(height=64, width=64, fit="pad", output="undo", frame_size=image_size)
    camera = CameraMotionGenerator(num_frames=NUM_FRAMES, geometry=geometry, shift_fraction=0.03, zoom_per_frame=1.02)
    lines = ["video_path,label"]
    for number in range(num_clips):
        generator = np.random.default_rng(number)
        blobs = Image.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        image = np.asarray(blobs.resize((image_size, image_size), Image.Resampling.BICUBIC)).astype(np.float64)
        image += generator.normal(0, 8, image.shape)  # grain: smooth pictures decode faster than photographs
        frames = camera.finish(number, image.clip(0, 255).astype(np.uint8))
        write_clip(folder / "train" / f"{number:05d}.mp4", frames)
        lines.append(f"{number:05d}.mp4,{number % 10}")
    write_text(folder / "train.csv", "\n".join(lines) + "\n")
    return folder


def read_clips(root: Path, train_csv: Path) -> ItemIndex:
    """The clips of an index, as training reads it: their hashes are compared where it has them."""
    return read_clip_index(*locate_clip_index(root, train_csv, "train"), num_frames=NUM_FRAMES)


def open_clips(clips: ItemIndex, settings: TrainingBenchmarkSettings, cache_dir: Path) -> Pixels:
    """The pixels from the cache, which is built where it is missing and checked where it is not."""
    files = clip_files(clips, NUM_FRAMES, settings.image_size)
    return files.open(cache_dir, settings.workers, lambda: None)


def build_cache(root: Path, settings: TrainingBenchmarkSettings, cache_dir: Path) -> None:
    """All that the first run does before its first batch, and the check of every byte that each later run does."""
    open_clips(read_clips(root, settings.train_csv), settings, cache_dir)
    open_clips(read_clips(root, settings.train_csv), settings, cache_dir)
    shutil.rmtree(cache_dir)


def compare_pixels(clips: ItemIndex, pixels: Pixels, settings: TrainingBenchmarkSettings) -> None:
    """Every clip's, decoded and cached.

    Raises:
        InputError: one differs in a bit.
    """
    dataset = VideoDataset(clips, num_frames=NUM_FRAMES, image_size=settings.image_size)
    for positions in torch.arange(len(clips)).split(settings.batch_size):
        cached = pixels.gather(positions)
        for place, position in enumerate(positions.tolist()):
            if not torch.equal(dataset[position][0], cached[place]):
                raise InputError(f"{clips.paths[position]}: its cached pixels are not the decoded ones; not timed")


def build_epoch_arms(settings: TrainingBenchmarkSettings, clips: ItemIndex, pixels: Pixels) -> list[EpochArm]:
    """The plain loader without workers, the same again, with workers, and ours."""
    device = choose_device(settings.device)
    dataset = VideoDataset(clips, num_frames=NUM_FRAMES, image_size=settings.image_size)

    def decoded(workers: int) -> Callable[[], int]:
        options = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
        pinned = device.type == "cuda"
        loader = DataLoader(
            dataset, settings.batch_size, shuffle=True, num_workers=workers, pin_memory=pinned, **options
        )
        return lambda: _ship(device, (batch for batch, _ in loader))

    def cached() -> None:
        for _ in range(_CACHED_EPOCHS):
            order = torch.randperm(len(clips)).split(settings.batch_size)
            _ship(device, (pixels.gather(positions) for positions in order))

    plain = decoded(0)
    return [
        EpochArm("plain", plain, device),
        EpochArm("plain again", plain, device),
        EpochArm("plain workers", decoded(settings.workers), device),
        EpochArm("ours", cached, device, _CACHED_EPOCHS),
    ]


def _ship(device: torch.device, batches: Iterator[torch.Tensor]) -> int:
    """All batches on the device; on a CPU they are there."""
    return sum(len(batch.to(device, non_blocking=True)) for batch in batches)


def cells_of(name: str, clips: ItemIndex, settings: TrainingBenchmarkSettings) -> dict[str, Any]:
    """What an arm's row says beside its times; workers are processes of the plain loader, threads of ours."""
    workers = settings.workers if name in ("plain workers", "ours") else 0
    return {"batch_size": settings.batch_size, "num_clips": len(clips), "workers": workers, "epochs": 1}


def _add_bandwidth(timings: list[Timing], num_bytes: int, settings: TrainingBenchmarkSettings) -> None:
    peak = measure_copy(settings.workers)
    for timing in timings:
        rate = 1e-9 * num_bytes / statistics.median(timing.seconds)
        timing.cells |= {"gb_per_s": rate, "copy_gb_per_s": peak}
        timing.cells["peak_share"] = check_bandwidth(timing.arm, rate, peak)


def _add_epochs(epoch: Timing, build_s: list[float], num_epochs: int) -> Timing:
    """So many epochs; of our arm, with the build."""
    is_ours = epoch.arm == "ours"
    before_s = build_s if is_ours else [0.0] * len(build_s)
    seconds = [before + num_epochs * value for before, value in zip(before_s, epoch.seconds, strict=True)]
    kept = {name: epoch.cells[name] for name in ("batch_size", "num_clips", "workers")}
    built = {"build_seconds": statistics.median(build_s)} if is_ours else {}
    return Timing(epoch.arm, seconds, kept | built | {"epochs": num_epochs})


def check_bandwidth(name: str, gb_per_s: float, peak_gb_per_s: float) -> float:
    """The share of the memory's peak that a figure claims.

    Raises:
        InputError: it is above the peak: pixels were counted that nobody copied.
    """
    if gb_per_s > peak_gb_per_s:
        raise InputError(
            f"{name}: {gb_per_s:.4g} GB/s of pixels, but the memory copies {peak_gb_per_s:.4g}; "
            "gather every batch before the clock is read"
        )
    return gb_per_s / peak_gb_per_s


def measure_copy(threads: int) -> float:
    """GB/s of plain copies, the best of several sizes (from those that fit a core's cache) and samples."""
    threads, best = max(1, threads), 0.0
    with ThreadPoolExecutor(threads) as pool:
        for size in _COPY_BYTES:
            pairs = [(np.ones(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(threads)]
            for _ in range(8):
                repeats, started_s = max(1, 2**24 // size), time.perf_counter()
                list(pool.map(lambda pair, count=repeats: [np.copyto(*pair) for _ in range(count)], pairs))
                best = max(best, 1e-9 * threads * size * repeats / (time.perf_counter() - started_s))
    return best


# ---------------------------------------------------------------------------------------------------------------------
# The 3-D stage of the quickstart, a process each time


def measure_demo(settings: TrainingBenchmarkSettings) -> list[Timing]:
    """Whole processes: `plain` is Conv3d without a cache, `ours` the default, its cache built anew each time."""
    timings = {name: Timing(name) for name in ("plain", "plain again", "ours")}
    top1: dict[str, list[float]] = {name: [] for name in timings}
    with TemporaryDirectory(prefix="benchmark_demo_") as name:
        folder = Path(name)
        data_root = (settings.demo_root or make_demo_data(folder / "data")) / "videos"
        run_demo(settings, "ours", data_root, folder / "first")  # the files and libraries are read, for all arms
        for repetition in range(settings.repetitions):
            for arm, timing in timings.items():
                seconds, value = run_demo(settings, arm, data_root, folder / f"{repetition}_{arm.replace(' ', '_')}")
                timing.seconds.append(seconds)
                top1[arm].append(value)
    for arm, timing in timings.items():
        timing.cells = {"selection_top1": statistics.median(top1[arm]), "image_size": None, "classifier_width": None}
    return list(timings.values())


def make_demo_data(folder: Path) -> Path:
    """The demo's digits, moved by the camera: making them by diffusion takes longer, and the stage does not care."""
    run_stage("Data_Sourcing.demo_dataset", "Data_Sourcing/demo_dataset.yaml", output_dir=folder / "raw")
    for module in ("filter", "val"):
        places = {"raw_root": folder / "raw", "output_dir": folder / "images"}
        run_stage(f"Data_Sourcing.{module}", "Data_Sourcing/demo.yaml", **places)
    places = {"data_root": folder / "images", "output_dir": folder / "videos", "generator": "camera_motion"}
    run_stage("Data_Augmentation_SVD.make_svd_videos", "Data_Augmentation_SVD/demo.yaml", **places)
    return folder


def run_demo(settings: TrainingBenchmarkSettings, arm: str, data_root: Path, folder: Path) -> tuple[float, float]:
    """Seconds of the stage in a folder of its own, and the top-1 that its weights were selected by."""
    keys = {"data_root": data_root, "weights": settings.demo_weights or "none", "output_dir": folder / "inflated"}
    if arm != "ours":
        keys |= {"temporal_conv": "conv3d", "cache": "false"}
    keys["device"] = choose_device(settings.device)
    seconds = run_stage("Inflated_3D_VGG.train3d", "Inflated_3D_VGG/demo.yaml", **keys)
    description = read_description(folder / "inflated" / "model_best.safetensors")
    shutil.rmtree(folder)
    return seconds, description.metric["value"]


def run_stage(module: str, config: str, **keys: Any) -> float:
    """Seconds of a stage, from its process's start to its end.

    Raises:
        InputError: it failed.
    """
    overrides = [f"{name}={value.resolve() if isinstance(value, Path) else value}" for name, value in keys.items()]
    command = [sys.executable, "-m", module, "--config", config, *overrides]
    started_s = time.perf_counter()
    ended = subprocess.run(command, cwd=_PROJECT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started_s
    if ended.returncode:
        said = " ".join(ended.stderr.split())[-500:]
        raise InputError(f"{module}: ended with exit code {ended.returncode}: {said or 'nothing on stderr'}")
    return seconds
