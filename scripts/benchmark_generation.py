"""Clips a second: this project's generation against the plain per-image loop of diffusers' pipeline.

python -m scripts.benchmark_generation --device cpu [model=published height=256 width=256 batch_size=8 ...]

Both arms run in turn in one process; a second pass of the plain loop (A/A) shows what the machine's noise is worth.
Outputs are compared first: figures of arms that disagree are not printed.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from utils.config import NonNegativeFloat, PositiveInt, Settings, read_settings
from utils.errors import InputError, run_script
from utils.files import write_text

_TOLERANCE = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.2}  # of frames in 0..1; random weights amplify rounding


class GenerationBenchmarkSettings(Settings):
    """What to time; the YAML says what each key does."""

    model: str = "published"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    height: Annotated[int, Field(ge=64, multiple_of=64)] = 256
    width: Annotated[int, Field(ge=64, multiple_of=64)] = 256
    num_frames: Annotated[int, Field(ge=2)] = 3
    num_inference_steps: PositiveInt = 12
    min_guidance_scale: NonNegativeFloat = 1.0
    max_guidance_scale: NonNegativeFloat = 3.0
    num_images: PositiveInt = 16
    batch_size: PositiveInt = 16
    compile: Literal["none", "default", "max"] = "none"
    offload: Literal["none", "phases"] = "none"
    baseline: Literal["eager", "compiled", "paper"] = "eager"
    repetitions: Annotated[int, Field(ge=5)] = 5
    output_dir: Path = Path("benchmark_results")


@dataclass
class Arm:
    """One way to turn the images into clips.

    Attributes:
        run: the images of one repetition -> float32 (num_images, T, 3, H, W), 0..1, on the CPU.
        unet_tflops: executed by one call of its U-Net, for one image.
    """

    name: str
    run: Callable[[], Any]
    unet_tflops: float | None = None
    peak_memory_mib: int | None = None


def main() -> None:
    """Read the settings, compare the outputs, time the arms, report."""
    sys.argv[1:] = _as_overrides(sys.argv[1:])
    settings = read_settings(
        GenerationBenchmarkSettings, __doc__, Path(__file__).with_name("benchmark_generation.yaml")
    )
    arms = build_arms(settings)
    difference = compare_outputs(arms, settings)
    seconds = time_arms(arms, settings.repetitions)
    rows = summarise(arms, seconds, settings)
    write_results(rows, seconds, difference, settings)


def _as_overrides(arguments: list[str]) -> list[str]:
    """`--device cpu` and `--device=cpu` as `device=cpu`; the common options stay as they are."""
    common = {"--config", "--print-config", "--help", "-h"}
    result: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        match = re.fullmatch(r"--([a-z_-]+)(?:=(.*))?", argument)
        if match is None or argument.partition("=")[0] in common:
            result.append(argument)
            if argument == "--config" and pending:
                result.append(pending.pop(0))
            continue
        value = match[2] if match[2] is not None else (pending.pop(0) if pending else "")
        result.append(f"{match[1].replace('-', '_')}={value}")
    return result


def build_arms(settings: GenerationBenchmarkSettings) -> list[Arm]:
    """The plain loop, its repetition, and ours; each arm has a pipeline of its own with the same weights."""
    images = _digit_images(settings)
    seeds = [1000 + number for number in range(settings.num_images)]
    plain = _build_plain(settings, images, seeds)
    return [plain, Arm("plain again (A/A)", plain.run), _build_ours(settings, images, seeds)]


def _digit_images(settings: GenerationBenchmarkSettings) -> list[Any]:
    """scikit-learn's digits at the working size, uint8 (H, W, 3): what the embedded SVD was made for."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = np.resize((load_digits().images / 16 * 255).astype(np.uint8), (settings.num_images, 8, 8))
    size = settings.width, settings.height
    return [np.asarray(Image.fromarray(digit).convert("RGB").resize(size, Image.BICUBIC)) for digit in digits]


def _load(settings: GenerationBenchmarkSettings) -> Any:
    """A pipeline on the CPU (or, the published architecture with random weights, on its device)."""
    import torch

    from utils.devices import choose_device

    device = choose_device(settings.device)
    dtype = _dtype_name(settings)
    if settings.model == "published":
        from Data_Augmentation_SVD.published_architecture import build_random_pipeline

        return build_random_pipeline(device, getattr(torch, dtype))
    from Data_Augmentation_SVD.svd_weights import load_pipeline

    return load_pipeline(settings.model, settings.device, dtype)


def _dtype_name(settings: GenerationBenchmarkSettings) -> str:
    from utils.devices import choose_device

    is_cpu = choose_device(settings.device).type == "cpu"
    return settings.dtype if settings.dtype != "auto" else "float32" if is_cpu else "float16"


def _build_plain(settings: GenerationBenchmarkSettings, images: list[Any], seeds: list[int]) -> Arm:
    """One pipeline call an image, as the paper's script and diffusers' documentation have it."""
    import torch
    from PIL import Image

    from utils.devices import choose_device

    pipeline, device = _load(settings), choose_device(settings.device)
    is_paper = settings.baseline == "paper"
    height, width = (576, 1024) if is_paper else (settings.height, settings.width)
    if is_paper and device.type == "cuda":
        pipeline.to("cpu")
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    tflops = count_unet_tflops(pipeline.unet.config, settings, height, width, ours=False)
    if settings.baseline == "compiled":
        pipeline.unet = torch.compile(pipeline.unet, mode="max-autotune", dynamic=False)
    pictures = [Image.fromarray(image).resize((width, height)) for image in images]

    def run() -> torch.Tensor:
        clips = [
            pipeline(
                picture,
                height=height,
                width=width,
                num_frames=settings.num_frames,
                num_inference_steps=settings.num_inference_steps,
                min_guidance_scale=settings.min_guidance_scale,
                max_guidance_scale=settings.max_guidance_scale,
                decode_chunk_size=1 if is_paper else settings.num_frames,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="pt",
            ).frames[0]
            for picture, seed in zip(pictures, seeds, strict=True)
        ]
        return torch.stack([clip.float().cpu() for clip in clips])

    return Arm(f"plain loop ({settings.baseline})", run, tflops)


def _build_ours(settings: GenerationBenchmarkSettings, images: list[Any], seeds: list[int]) -> Arm:
    """Batches through the three phases."""
    import torch

    from Data_Augmentation_SVD.geometry import Geometry
    from Data_Augmentation_SVD.svd import SvdGenerator

    pipeline = _load(settings)
    generator = SvdGenerator(
        pipeline,
        device=settings.device,
        geometry=Geometry(settings.height, settings.width, "stretch", "centre_crop", settings.height),
        num_frames=settings.num_frames,
        num_inference_steps=settings.num_inference_steps,
        min_guidance_scale=settings.min_guidance_scale,
        max_guidance_scale=settings.max_guidance_scale,
        fps=7,
        motion_bucket_id=127,
        noise_aug_strength=0.02,
        decode_chunk_size=settings.num_frames * settings.batch_size,
        batch_size=settings.batch_size,
        compile=settings.compile,
        offload=settings.offload,
    )

    def run() -> torch.Tensor:
        videos = list(generator.generate_videos(generator.prepare(images, seeds)))
        return torch.stack([(video / 2 + 0.5).clamp(0, 1).cpu() for video in videos])

    tflops = count_unet_tflops(pipeline.unet.config, settings, settings.height, settings.width, ours=True)
    name = f"ours (batch {settings.batch_size}, compile {settings.compile}, offload {settings.offload})"
    return Arm(name, run, tflops)


def count_unet_tflops(config: Any, settings: GenerationBenchmarkSettings, height: int, width: int, ours: bool) -> float:
    """TFLOPs that one denoising step executes for one image, counted by torch on a copy without memory.

    Args:
        config: of the U-Net.
        ours: with our shortcuts.
    """
    import torch
    from diffusers import UNetSpatioTemporalConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from Data_Augmentation_SVD.unet_shortcuts import use_exact_shortcuts

    rows = 2 if settings.max_guidance_scale > 1 else 1  # with and without the image
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(config).eval().to("meta")
        latents = torch.empty(rows, settings.num_frames, config.in_channels, height // 8, width // 8)
        context, added, timestep = (
            torch.empty(rows, 1, config.cross_attention_dim),
            torch.empty(rows, 3),
            torch.empty(()),
        )
    if ours:
        use_exact_shortcuts(unet, settings.num_frames)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(latents, timestep, context, added)
    return counter.get_total_flops() / 1e12


def compare_outputs(arms: list[Arm], settings: GenerationBenchmarkSettings) -> float | None:
    """Run each arm once (which also warms it up) and compare: the largest difference of a value in 0..1.

    Raises:
        InputError: they disagree beyond what the type's rounding explains.
    """
    outputs = [arm.run() for arm in arms]
    if settings.baseline == "paper":
        return None  # other sizes: a figure for time, not for equality
    difference = float((outputs[0] - outputs[-1]).abs().max())
    limit = _TOLERANCE[_dtype_name(settings)]
    if not difference <= limit:  # also NaN
        raise InputError(
            f"the arms' frames differ by {difference:.2g} of the range, more than {limit:g} for "
            f"{_dtype_name(settings)}: not timed; compare in float32 to see whether it is rounding"
        )
    return difference


def time_arms(arms: list[Arm], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each repetition of each arm, in turn, the device synchronised."""
    import torch

    def synchronise() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(repetitions):
        for arm in arms:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            synchronise()
            started_s = time.perf_counter()
            arm.run()
            synchronise()
            seconds[arm.name].append(time.perf_counter() - started_s)
            if torch.cuda.is_available():
                arm.peak_memory_mib = torch.cuda.max_memory_allocated() // 1024**2
    return seconds


def summarise(
    arms: list[Arm], seconds: dict[str, list[float]], settings: GenerationBenchmarkSettings
) -> list[dict[str, Any]]:
    """A row an arm; the ratio is the median over repetitions of the plain loop's time by the arm's."""
    plain = seconds[arms[0].name]
    return [
        {
            "arm": arm.name,
            "clips_per_s": settings.num_images / statistics.median(seconds[arm.name]),
            "seconds_per_clip": statistics.median(seconds[arm.name]) / settings.num_images,
            "speed_ratio": statistics.median(a / b for a, b in zip(plain, seconds[arm.name], strict=True)),
            "unet_tflops_per_step": arm.unet_tflops,
            "peak_gpu_memory_mib": arm.peak_memory_mib,
        }
        for arm in arms
    ]


def write_results(
    rows: list[dict[str, Any]], seconds: dict[str, list[float]], difference: float | None, settings: Settings
) -> None:
    """Print the table and write it as CSV, with everything else as JSON."""
    import torch

    from utils.devices import choose_device, describe_device
    from utils.runs import describe_environment

    folder = settings.output_dir
    text = ",".join(rows[0]) + "\n"
    for row in rows:
        text += ",".join(_cell(value) for value in row.values()) + "\n"
        print(
            f"{row['arm']:55s} {row['clips_per_s']:9.3f} clips/s  {row['seconds_per_clip']:8.3f} s a clip  "
            f"ratio {row['speed_ratio']:6.3f}  U-Net {row['unet_tflops_per_step'] or float('nan'):8.5f} TFLOP a step  "
            f"{row['peak_gpu_memory_mib'] or '-'} MiB"
        )
    print(
        "outputs not compared (other sizes)"
        if difference is None
        else f"largest difference of outputs {difference:.2g}"
    )
    record = {
        "settings": settings.model_dump(mode="json"),
        "environment": describe_environment({}) | {"device": describe_device(choose_device(settings.device))},
        "torch": torch.__version__,
        "largest_difference": difference,
        "seconds": seconds,
        "rows": rows,
    }
    write_text(folder / "benchmark_generation.csv", text)
    write_text(folder / "benchmark_generation.json", json.dumps(record, indent=2) + "\n")
    print(f"written: {folder / 'benchmark_generation.csv'}")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else f'"{value}"' if "," in str(value) else str(value)


if __name__ == "__main__":
    run_script(main)
