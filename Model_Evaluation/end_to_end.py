"""End-to-end latency: from an image file to its answer, the clip generated in between.

What an application would wait for, where the other tables begin with a clip that is there. A clip goes from the
generator to the network in memory: the generation stage's MP4 file (with `h264` it changes pixels a little), its checks
and its hashes keep a data set in order and are no part of this path. Image files have been read once before the clock
starts, so that the system has them in memory, as it has an upload.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipError, ClipGenerator, build_geometry
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import GenerationSettings
from Model_Evaluation.latency import Clock, LatencyGuard, synchronise
from utils.config import build_settings, merge, read_yaml
from utils.devices import device_name
from utils.errors import InputError
from utils.files import sha256_file
from utils.images import read_rgb_image, resize_and_centre_crop
from utils.utils import derive_seed

NO_GENERATOR = "none"
TOTAL = "total"  # beside the stages: by readings of the clock of its own
_MAX_GAP = 0.05  # of the total: what the stages may leave unexplained
_Step = Callable[[Any], Any]


@dataclass(frozen=True)
class Deployment:
    """How one model answers for an image file.

    Attributes:
        generation: makes the clip; None classifies the image itself.
        still_geometry: without a generator, what the image goes through before the resize; None is nothing.
        image_size: side of the network's input in pixels.
        frame_order: which frames of the clip (an image is a clip of one) the network sees, in this order.
        prepare: uint8 (B, 3, T, H, W), 0..255, on the CPU -> what `classify` takes, normalised, on the device.
        classify: the answers for a batch, all passes of it.
        device: where generator and network compute.
        executed_macs: of `classify` for one item.
        guard: refuses a time of `classify` that the device cannot reach.
    """

    generation: GenerationSettings | None
    image_size: int
    frame_order: Sequence[int]
    prepare: Callable[[torch.Tensor], torch.Tensor]
    classify: Callable[[torch.Tensor], Any]
    device: torch.device
    executed_macs: int
    guard: LatencyGuard
    still_geometry: Geometry | None = None

    @property
    def generator_name(self) -> str:
        """As the tables call it."""
        return NO_GENERATOR if self.generation is None else self.generation.generator


@dataclass(frozen=True)
class _Request:
    """An image file to answer for, and what the noise of its clip is drawn from."""

    path: Path
    seed: int


def read_generation(given: Mapping[str, Any], data_root: Path, clips_root: Path | None = None) -> GenerationSettings:
    """How clips are generated: as those of a folder were, with the given keys in their place.

    Args:
        given: keys of `GenerationSettings`.
        data_root: the images; in the place of those recorded.
        clips_root: a folder of clips with its `config.yaml`; without one, all is as given or by default.

    Raises:
        InputError: naming the wrong keys.
    """
    record = None if clips_root is None else clips_root / "config.yaml"
    recorded = read_yaml(record) if record is not None and record.exists() else {}
    raw = merge(merge(recorded, given), {"data_root": str(data_root)})
    return build_settings(GenerationSettings, raw, f"end_to_end.generation{f' over {record}' if recorded else ''}")


def measure_end_to_end(
    deployment: Deployment,
    image_paths: Sequence[Path],
    *,
    run_id: str,
    precision: str,
    batch_sizes: Sequence[int],
    warmup: int,
    repetitions: int,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Rows of `end_to_end_times.csv`: `read`, `generate` (with a generator), `preprocess`, `classify` and `total`.

    The device is synchronised at every border. Each repetition takes the next images, from the first again after the
    last, then with the noise of a further clip of the image. For each batch size there is a generator whose own batches
    are as large (`batch_size` of the settings does not count), built before the clock starts.

    Raises:
        InputError: clips shorter than `frame_order`; an image that cannot be read or gives no clip; stages that do not
            sum to the total within 5 %, or a time of `classify` that the device cannot reach.
    """
    _require_frames(deployment)
    columns = {
        "run_id": run_id,
        "generator": deployment.generator_name,
        "device": device_name(deployment.device),
        "precision": precision,
    }
    rows = []
    for batch_size in batch_sizes:
        timings = _measure_batches(deployment, image_paths, batch_size, warmup, repetitions, clock)
        for repetition, stages_ms in enumerate(timings, start=1):
            place = columns | {"batch_size": batch_size, "repetition": repetition}
            rows += [place | {"stage": stage, "stage_ms": value} for stage, value in stages_ms.items()]
    return rows


def _require_frames(deployment: Deployment) -> None:
    last, generation = max(deployment.frame_order), deployment.generation
    if last >= (1 if generation is None else generation.num_frames):
        made = "no clips" if generation is None else f"clips of {generation.num_frames} frames"
        raise InputError(
            f"end_to_end.generation: makes {made}, but the model looks at frame {last} (from 0); set num_frames"
        )


def _measure_batches(
    deployment: Deployment, image_paths: Sequence[Path], batch_size: int, warmup: int, repetitions: int, clock: Clock
) -> list[dict[str, float]]:
    """Times of each repetition in ms by stage, after the checks."""
    steps = _build_steps(deployment, batch_size)
    run_seed = 0 if deployment.generation is None else deployment.generation.seed
    batches = _draw_batches(image_paths, batch_size, warmup + repetitions, run_seed)
    timings = [_time_steps(steps, batch, deployment.device, clock) for batch in batches][warmup:]
    name = f"end to end, generator {deployment.generator_name}, batch {batch_size}"
    _require_sum(timings, name)
    median_ms = statistics.median(stages_ms["classify"] for stages_ms in timings)
    deployment.guard.check(f"{name}, classify", batch_size * deployment.executed_macs, median_ms)
    return timings


def _time_steps(steps: Mapping[str, _Step], value: Any, device: torch.device, clock: Clock) -> dict[str, float]:
    times_ms = {}
    synchronise(device)
    begun_s = clock()
    for name, step in steps.items():
        started_s = clock()
        value = step(value)
        synchronise(device)
        times_ms[name] = (clock() - started_s) * 1e3
    return times_ms | {TOTAL: (clock() - begun_s) * 1e3}


def _require_sum(timings: Sequence[Mapping[str, float]], name: str) -> None:
    """Stages explain the total, in the median over repetitions.

    Raises:
        InputError: they do not.
    """
    gaps = [abs(1 - sum(times[stage] for stage in times if stage != TOTAL) / times[TOTAL]) for times in timings]
    gap = statistics.median(gaps)
    if gap > _MAX_GAP:
        raise InputError(
            f"{name}: its stages leave {gap:.1%} of the total unexplained, more than {_MAX_GAP:.0%}; time it again on "
            "a machine that does nothing else"
        )


def _draw_batches(
    image_paths: Sequence[Path], batch_size: int, num_batches: int, run_seed: int
) -> Iterator[list[_Request]]:
    """Each of the next images, from the first again after the last; seeds are those of the generation stage."""
    num_requests = batch_size * num_batches
    paths = image_paths[:num_requests]
    contents = [int(sha256_file(path), 16) for path in paths]
    requests = []
    for number in range(num_requests):
        clip_number, position = divmod(number, len(paths))
        further = (clip_number,) if clip_number else ()  # as `Source.clip_seed` has it
        requests.append(_Request(paths[position], derive_seed(run_seed, contents[position], *further)))
    for first in range(0, num_requests, batch_size):
        yield requests[first : first + batch_size]


# ---------------------------------------------------------------------------------------------------------------------
# The stages


def _build_steps(deployment: Deployment, batch_size: int) -> dict[str, _Step]:
    """The stages in order; each takes what the one before it returns."""

    def read(requests: list[_Request]) -> list[tuple[np.ndarray, int]]:
        return [(read_rgb_image(request.path), request.seed) for request in requests]

    def preprocess(clips: list[np.ndarray]) -> torch.Tensor:
        return deployment.prepare(_as_pixels(clips, deployment.image_size, deployment.frame_order))

    if deployment.generation is None:
        view = (lambda image: image) if deployment.still_geometry is None else deployment.still_geometry.view
        return {
            "read": read,
            "preprocess": lambda images: preprocess([view(image)[None] for image, _ in images]),
            "classify": deployment.classify,
        }
    settings = deployment.generation.model_copy(update={"batch_size": batch_size, "device": str(deployment.device)})
    generator = CLIP_GENERATORS[settings.generator](settings)
    return {
        "read": read,
        "generate": lambda images: generate_clips(generator, settings, images),
        "preprocess": preprocess,
        "classify": deployment.classify,
    }


def generate_clips(
    generator: ClipGenerator, settings: GenerationSettings, images: Sequence[tuple[np.ndarray, int]]
) -> list[np.ndarray]:
    """Clips as the generation stage has them before it checks and encodes them, each uint8 (T, S, S, 3).

    Args:
        images: uint8 (H, W, 3) and the seed of its clip.

    Raises:
        InputError: an image gives no clip.
    """
    prepared = generator.prepare([image for image, _ in images], [seed for _, seed in images])
    clips = []
    try:
        for (image, _), draft in zip(images, generator.generate(prepared, lambda: False), strict=True):
            clips.append(_finish(generator, settings, draft, image))
    except ClipError as error:
        raise InputError(f"end to end: image {len(clips) + 1} of a batch gives no clip: {error}") from None
    return clips


def _finish(generator: ClipGenerator, settings: GenerationSettings, draft: Any, image: np.ndarray) -> np.ndarray:
    """From a draft to the frames that are kept."""
    if isinstance(draft, ClipError):
        raise draft
    frames = generator.finish(draft, image)[list(settings.kept_frames)]
    if settings.first_frame == "original":
        frames = np.concatenate([build_geometry(settings).view(image)[None], frames[1:]])
    return frames


def _as_pixels(clips: Sequence[np.ndarray], image_size: int, frame_order: Sequence[int]) -> torch.Tensor:
    """Clips uint8 (T, H, W, 3), of any sizes -> uint8 (B, 3, T', S, S), (T', B, S, S, 3) in memory as training has it.

    A frame that is seen twice is resized once.
    """
    order = [int(t) for t in frame_order]
    frames = {t: np.stack([resize_and_centre_crop(clip[t], image_size) for clip in clips]) for t in sorted(set(order))}
    return torch.from_numpy(np.stack([frames[t] for t in order])).permute(1, 4, 0, 2, 3)
