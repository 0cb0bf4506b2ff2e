"""Clips a second: this project's generation against the plain per-image loop of diffusers' pipeline.

python -m scripts.benchmark_generation --device cpu [model=published height=256 width=256 batch_size=8 ...]

The outputs are compared first: arms that disagree are not timed. Then both run in turn in one process; a second pass of
the plain loop (A/A) shows what the machine's noise is worth. Peak memory is measured in a process for each arm alone.
One call is one comparison; a sweep is several calls with one output_dir, whose rows end up in one CSV.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from scripts.benchmark_table import append_rows, as_overrides, read_rows
from utils.config import Form, NonNegativeFloat, PositiveInt, Settings, read_settings
from utils.errors import InputError, run_script

if TYPE_CHECKING:
    from scripts.benchmark_arms import Arm

CSV_NAME = "benchmark_generation.csv"
COLUMNS = tuple(
    """configuration arm baseline model weights device_name dtype height width num_frames num_inference_steps
    min_guidance_scale max_guidance_scale decode_chunk_size batch_size compile offload num_images repetitions
    clips_per_s seconds_per_clip speed_ratio unet_tflop_per_step unet_tflop_per_s matmul_tflop_per_s matmul_share
    peak_gpu_allocated_mib peak_gpu_reserved_mib peak_rss_mib rss_before_mib idle_networks max_difference
    mean_difference date torch diffusers cuda cudnn driver commit command seconds""".split()  # noqa: SIM905
)
SAME_COLUMNS = ("configuration",)
# What neither changes the figures nor their meaning: the same configuration, measured again, replaces its rows.
_NOT_IDENTITY = {"output_dir", "repetitions", "measure_memory", "park_idle", "profile", "skip_done", "device"}


class GenerationBenchmarkSettings(Settings):
    """What to time.

    Attributes:
        model: a local folder or hub id, or `published`: the full-size architecture with random weights, made on the
            device; good for time and equality, not for pictures.
        device: `auto`, `cpu`, `cuda`, `cuda:1`. Every key may also be given as an option: `--device cpu`.
        dtype: `auto` is float16 on a GPU, float32 on a CPU.
        height, width: in pixels, of both arms (but see `baseline: paper`). Multiples of 64.
        num_frames, num_inference_steps, min_guidance_scale, max_guidance_scale: as in generation; of both arms.
        num_images: images that our arm turns into clips in one repetition; a last batch that is short costs a full one.
        baseline_images: images that the plain loop takes in one repetition, at most `num_images`; null: all. Its rate
            does not depend on their number: fewer make a slow baseline bearable.
        batch_size: of our arm; the plain loop takes one image at a time.
        decode_chunk_size: frames our arm decodes at once, of whole clips as far as they fit; null: `num_frames`, clip
            by clip. The plain loop decodes clip by clip; below `num_frames`, outputs differ and are not compared.
        compile: of our arm's U-Net: `none`, `default`, `max` (tuned, CUDA graphs).
        offload: of our arm: `phases` keeps only the part that works on the GPU.
        baseline: the plain loop with an `eager` U-Net, a `compiled` one (max-autotune), or the settings of the `paper`:
            576 x 1024, guidance 1 to 3, decoded frame by frame, and on a GPU the pipeline's CPU offload.
        repetitions: at least 5; each runs our arm once and the plain loop twice (A/A). Figures are medians.
        measure_memory: run each arm in a process of its own first, and report its peak memory.
        park_idle: the networks of the arm that does not run wait on the CPU; the move is not timed, nor is one image
            after it. Compiled networks always stay, because a move would undo their graphs. null: only where the peaks
            of both arms exceed nine tenths of the GPU's memory together, or were not measured.
        profile: also write torch.profiler's table of the top kernels of each arm to `output_dir`.
        skip_done: do nothing where the CSV has this configuration already, from this device and these versions.
        output_dir: where `benchmark_generation.csv` is, or will be; rows of other configurations stay.
    """

    model: str = "Data_Augmentation_SVD/small_svd"
    device: Annotated[str, Form(r"^(auto|cpu|cuda(:\d+)?)$", "auto, cpu, cuda or cuda:N")] = "auto"
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    height: Annotated[int, Field(ge=64, multiple_of=64)] = 64
    width: Annotated[int, Field(ge=64, multiple_of=64)] = 64
    num_frames: Annotated[int, Field(ge=2)] = 3
    num_inference_steps: PositiveInt = 12
    min_guidance_scale: NonNegativeFloat = 1.0
    max_guidance_scale: NonNegativeFloat = 3.0
    num_images: PositiveInt = 32
    baseline_images: PositiveInt | None = None
    batch_size: PositiveInt = 16
    decode_chunk_size: PositiveInt | None = None
    compile: Literal["none", "default", "max"] = "none"
    offload: Literal["none", "phases"] = "none"
    baseline: Literal["eager", "compiled", "paper"] = "eager"
    repetitions: Annotated[int, Field(ge=5)] = 5
    measure_memory: bool = True
    park_idle: bool | None = None
    profile: bool = False
    skip_done: bool = False
    output_dir: Path = Path("benchmark_results")


def main() -> None:
    """Measure memory, compare the outputs, time the arms, report."""
    config = Path(__file__).with_name("benchmark_generation.yaml")
    settings = read_settings(
        GenerationBenchmarkSettings, __doc__, config, as_overrides(sys.argv[1:], GenerationBenchmarkSettings)
    )
    from scripts import benchmark_arms  # after the settings: a typo need not wait for torch

    run = describe_run(settings)
    if is_done(settings, run["configuration"]):
        print(f"{settings.output_dir / CSV_NAME} has this configuration already ({run['configuration']}): skipped")
        return
    memory = benchmark_arms.measure_memory(settings)
    run["matmul_tflop_per_s"] = benchmark_arms.measure_matmul_tflops(settings)
    parks = benchmark_arms.must_park(settings, memory)
    arms = benchmark_arms.build_arms(settings, parks)
    difference = benchmark_arms.compare_outputs(arms, settings, parks)
    seconds = benchmark_arms.time_arms(arms, settings, parks)
    rows = summarise(arms, seconds, run)
    add_findings(rows, memory, difference)
    append_rows(settings.output_dir / CSV_NAME, rows, COLUMNS, SAME_COLUMNS)
    print_table(rows, settings)
    if settings.profile:
        benchmark_arms.write_profiles(arms, settings, profile_paths(settings, run["configuration"]), parks)


def describe_run(settings: GenerationBenchmarkSettings) -> dict[str, Any]:
    """The columns that are known before anything runs."""
    from scripts.benchmark_arms import dtype_name
    from utils.devices import choose_device, device_name
    from utils.runs import describe_environment

    if (settings.baseline_images or 0) > settings.num_images:
        raise InputError(f"baseline_images: {settings.baseline_images} is more than num_images, {settings.num_images}")
    device, environment = choose_device(settings.device), describe_environment({})
    run = {
        "model": settings.model,
        "weights": "random" if settings.model == "published" else "loaded",
        "device_name": device_name(device),
        "dtype": dtype_name(settings),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m scripts.benchmark_generation {shlex.join(sys.argv[1:])}".strip(),
        "commit": environment["commit"],
        **describe_versions(device, environment["versions"]),
    }
    keys = ("baseline", "num_frames", "num_inference_steps", "repetitions")
    identity = settings.model_dump(mode="json", exclude=_NOT_IDENTITY)
    identity |= {name: run[name] for name in ("device_name", "dtype", "torch", "diffusers", "cuda", "cudnn", "driver")}
    identity["decode_chunk_size"] = settings.decode_chunk_size or settings.num_frames
    identity["baseline_images"] = settings.baseline_images or settings.num_images
    configuration = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return {"configuration": configuration} | {key: getattr(settings, key) for key in keys} | run


def describe_versions(device: Any, versions: dict[str, str]) -> dict[str, str | None]:
    """What the figures depend on; CUDA's, cuDNN's and the driver's only where a GPU computes."""
    import torch

    found: dict[str, str | None] = {"torch": str(torch.__version__), "diffusers": versions.get("diffusers")}
    if device.type != "cuda":
        return found | {"cuda": None, "cudnn": None, "driver": None}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        lines = []
    driver = lines[0] if lines else None  # one driver for all GPUs
    return found | {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version()), "driver": driver}


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def summarise(arms: list[Arm], seconds: dict[str, list[float]], run: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an arm; the ratio is the median over repetitions of the plain loop's time a clip by the arm's.

    The U-Net's TFLOP/s are its executed FLOPs by the arm's whole time, encoding and decoding included: a lower bound.
    """
    per_clip = {arm.name: [value / arm.num_images for value in seconds[arm.name]] for arm in arms}
    rows = []
    for arm in arms:
        tflop = arm.unet_tflop_per_step * run["num_inference_steps"] * arm.num_computed
        achieved = tflop / statistics.median(seconds[arm.name])
        ratios = [a / b for a, b in zip(per_clip[arms[0].name], per_clip[arm.name], strict=True)]
        figures = {
            "arm": arm.name,
            "num_images": arm.num_images,
            "clips_per_s": 1 / statistics.median(per_clip[arm.name]),
            "seconds_per_clip": statistics.median(per_clip[arm.name]),
            "speed_ratio": statistics.median(ratios),
            "unet_tflop_per_step": arm.unet_tflop_per_step,
            "unet_tflop_per_s": achieved,
            "matmul_share": achieved / run["matmul_tflop_per_s"],
            "seconds": " ".join(f"{value:.6g}" for value in seconds[arm.name]),
        }
        rows.append(run | arm.options | figures)
    return rows


def add_findings(
    rows: list[dict[str, Any]],
    memory: dict[str, dict[str, int | None]],
    difference: tuple[float, float] | None,
) -> None:
    """Peak memory to the arms it was measured of, the difference of the outputs to ours."""
    for row in rows:
        row |= memory.get(row["arm"], {})
    rows[-1] |= {"max_difference": difference[0], "mean_difference": difference[1]} if difference else {}


def print_table(rows: list[dict[str, Any]], settings: GenerationBenchmarkSettings) -> None:
    """What was measured, and with what."""
    first, ours = rows[0], rows[-1]
    print(
        f"{'arm':12s}{'clips/s':>10s}{'s a clip':>10s}{'ratio':>8s}{'U-Net TFLOP a step':>20s}{'TFLOP/s':>10s}"
        f"{'of matmul':>11s}{'GPU MiB':>9s}{'reserved':>10s}{'RSS MiB':>9s}{'before':>8s}"
    )
    for row in rows:
        print(
            f"{row['arm']:12s}{row['clips_per_s']:10.4g}{row['seconds_per_clip']:10.4g}{row['speed_ratio']:8.3f}"
            f"{row['unet_tflop_per_step']:20.6g}{row['unet_tflop_per_s']:10.4g}{row['matmul_share']:11.1%}"
            f"{_or_dash(row, 'peak_gpu_allocated_mib'):>9s}{_or_dash(row, 'peak_gpu_reserved_mib'):>10s}"
            f"{_or_dash(row, 'peak_rss_mib'):>9s}{_or_dash(row, 'rss_before_mib'):>8s}"
        )
    for row in (first, ours):
        print(
            f"{row['arm']}: {row['height']} x {row['width']}, guidance {row['min_guidance_scale']:g} to "
            f"{row['max_guidance_scale']:g}, batch {row['batch_size']}, decode chunk {row['decode_chunk_size']}, "
            f"compile {row['compile']}, offload {row['offload']}, {row['num_images']} images a repetition"
            + (", idle networks on the CPU" if row["idle_networks"] == "cpu" else "")
        )
    compared = "max_difference" in ours
    print(
        f"outputs: largest difference {ours['max_difference']:.2g}, mean {ours['mean_difference']:.2g} of the range"
        if compared
        else "outputs: finite, not compared (the arms' sizes, guidance or decode chunks differ)"
    )
    versions = ", ".join(
        f"{name} {first[name]}" for name in ("torch", "diffusers", "cuda", "cudnn", "driver") if first[name]
    )
    print(f"matmul: {first['matmul_tflop_per_s']:.4g} TFLOP/s in {first['dtype']}; {first['weights']} weights")
    print(f"{first['device_name']}; {versions}; {first['date']}; commit {first['commit']}")
    print(first["command"])
    print(f"configuration {first['configuration']} in {settings.output_dir / CSV_NAME}")


def _or_dash(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return "-" if value is None else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def is_done(settings: GenerationBenchmarkSettings, configuration: str) -> bool:
    """Whether all that was asked for is there and may be skipped; a table that cannot be added to is refused here.

    Raises:
        InputError: the table has other columns.
    """
    rows = read_rows(settings.output_dir / CSV_NAME, COLUMNS)
    profiles = profile_paths(settings, configuration).values() if settings.profile else ()
    has_rows = any(row["configuration"] == configuration for row in rows)
    return settings.skip_done and has_rows and all(path.exists() for path in profiles)


def profile_paths(settings: GenerationBenchmarkSettings, configuration: str) -> dict[str, Path]:
    """The profile of each arm."""
    return {arm: settings.output_dir / f"profile_{configuration}_{arm}.txt" for arm in ("plain", "ours")}


if __name__ == "__main__":
    run_script(main)
