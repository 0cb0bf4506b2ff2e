"""The arms of the generation benchmark: what each runs, what it costs, and where its networks wait."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.published_architecture import build_random_pipeline
from Data_Augmentation_SVD.svd import SvdGenerator
from Data_Augmentation_SVD.svd_weights import load_pipeline
from Data_Augmentation_SVD.unet_shortcuts import use_exact_shortcuts
from utils.devices import choose_device
from utils.errors import InputError
from utils.files import write_text

if TYPE_CHECKING:
    from scripts.benchmark_generation import GenerationBenchmarkSettings

_TOLERANCE = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.2}  # of frames in 0..1; random weights amplify rounding
_MIB = 1024**2


@dataclass
class Arm:
    """One way to turn images into clips.

    Attributes:
        run: the first n images -> float32 (n, T, 3, H, W), 0..1, on the CPU.
        num_images: of one repetition.
        options: its own values of the keys in which arms can differ.
        unet_tflop_per_step: executed by its U-Net for one image.
        pipeline: its networks; None: nothing to move.
        stays: its networks cannot be moved (compiled), or move themselves (offloaded).
    """

    name: str
    run: Callable[[int], Tensor]
    num_images: int
    options: dict[str, Any]
    unet_tflop_per_step: float
    pipeline: Any = None
    stays: bool = False

    @property
    def num_computed(self) -> int:
        """Images whose FLOPs one repetition executes: a short batch is filled up."""
        batch_size = self.options["batch_size"]
        return -(-self.num_images // batch_size) * batch_size


def dtype_name(settings: GenerationBenchmarkSettings) -> str:
    """The type that `auto` stands for."""
    is_cpu = choose_device(settings.device).type == "cpu"
    return settings.dtype if settings.dtype != "auto" else "float32" if is_cpu else "float16"


# ---------------------------------------------------------------------------------------------------------------------
# What runs


def build_arms(settings: GenerationBenchmarkSettings, parks: bool) -> list[Arm]:
    """The plain loop, its repetition, and ours; two pipelines with the same weights."""
    plain = build_arm(settings, "plain")
    if parks:
        _move(plain, torch.device("cpu"))
    arms = [plain, replace(plain, name="plain again"), build_arm(settings, "ours")]
    for arm in arms:
        is_away = arm.options["offload"] != "none" or (parks and not arm.stays)
        arm.options["idle_networks"] = "cpu" if is_away else "device"
    return arms


def build_arm(settings: GenerationBenchmarkSettings, name: str) -> Arm:
    """The arm `plain` or `ours`, its networks where they work."""
    images = _digit_images(settings)
    seeds = [1000 + number for number in range(settings.num_images)]
    with memory_sentence(name):
        return {"plain": _build_plain, "ours": _build_ours}[name](settings, images, seeds)


def _digit_images(settings: GenerationBenchmarkSettings) -> list[np.ndarray]:
    """scikit-learn's digits at the working size, uint8 (H, W, 3): what the embedded SVD was made for."""
    digits = np.resize((load_digits().images / 16 * 255).astype(np.uint8), (settings.num_images, 8, 8))
    size = settings.width, settings.height
    return [np.asarray(Image.fromarray(digit).convert("RGB").resize(size, Image.BICUBIC)) for digit in digits]


def _load(settings: GenerationBenchmarkSettings) -> Any:
    """A pipeline on the CPU; random weights are made on the device, so that both arms get the same, and moved there."""
    if settings.model != "published":
        return load_pipeline(settings.model, settings.device, dtype_name(settings))
    pipeline = build_random_pipeline(choose_device(settings.device), getattr(torch, dtype_name(settings)))
    _move_parts(pipeline, torch.device("cpu"))
    return pipeline


def _build_plain(settings: GenerationBenchmarkSettings, images: list[np.ndarray], seeds: list[int]) -> Arm:
    """One pipeline call an image, as the paper's script and diffusers' documentation have it."""
    pipeline, device, is_paper = _load(settings), choose_device(settings.device), settings.baseline == "paper"
    call = {
        "height": 576 if is_paper else settings.height,
        "width": 1024 if is_paper else settings.width,
        "min_guidance_scale": 1.0 if is_paper else settings.min_guidance_scale,
        "max_guidance_scale": 3.0 if is_paper else settings.max_guidance_scale,
        "decode_chunk_size": 1 if is_paper else settings.num_frames,
    }
    tflop = count_unet_tflop(pipeline.unet.config, settings.num_frames, call, ours=False)
    offloads = is_paper and device.type == "cuda"
    if offloads:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        _move_parts(pipeline, device)
    if settings.baseline == "compiled":
        pipeline.unet = torch.compile(pipeline.unet, mode="max-autotune", dynamic=False)
    pictures = [Image.fromarray(image).resize((call["width"], call["height"])) for image in images]

    def run(num_images: int) -> Tensor:
        clips = []
        for picture, seed in zip(pictures[:num_images], seeds, strict=False):
            generator = torch.Generator("cpu").manual_seed(seed)
            frames = pipeline(
                picture,
                num_frames=settings.num_frames,
                num_inference_steps=settings.num_inference_steps,
                generator=generator,
                output_type="pt",
                **call,
            ).frames[0]
            clips.append(frames.float().cpu())
        return torch.stack(clips)

    is_compiled = settings.baseline == "compiled"
    options = call | {"batch_size": 1, "compile": "max" if is_compiled else "none"}
    options["offload"] = "model" if offloads else "none"
    num_images = settings.baseline_images or settings.num_images
    return Arm("plain", run, num_images, options, tflop, pipeline, stays=is_compiled or offloads)


def _build_ours(settings: GenerationBenchmarkSettings, images: list[np.ndarray], seeds: list[int]) -> Arm:
    """Batches through the three phases."""
    pipeline, height, width = _load(settings), settings.height, settings.width
    keys = ("min_guidance_scale", "max_guidance_scale", "batch_size", "compile", "offload")
    options = {key: getattr(settings, key) for key in keys}
    if choose_device(settings.device).type == "cpu":
        options["offload"] = "none"  # there is no other place
    options["decode_chunk_size"] = settings.decode_chunk_size or settings.num_frames
    size = {"height": height, "width": width}
    tflop = count_unet_tflop(pipeline.unet.config, settings.num_frames, size | options, ours=True)
    generator = SvdGenerator(
        pipeline,
        device=settings.device,
        geometry=Geometry(height, width, "stretch", "centre_crop", height),
        num_frames=settings.num_frames,
        num_inference_steps=settings.num_inference_steps,
        fps=7,
        motion_bucket_id=127,
        noise_aug_strength=0.02,
        **options,
    )

    def run(num_images: int) -> Tensor:
        videos = generator.generate_videos(generator.prepare(images[:num_images], seeds[:num_images]))
        return torch.stack([(video / 2 + 0.5).clamp(0, 1).cpu() for video in videos])

    stays = options["compile"] != "none" or options["offload"] != "none"
    return Arm("ours", run, settings.num_images, size | options, tflop, pipeline, stays)


def count_unet_tflop(config: Any, num_frames: int, options: dict[str, Any], *, ours: bool) -> float:
    """TFLOP that one denoising step executes for one image, counted by torch on a copy without memory.

    Args:
        config: of the U-Net.
        options: height, width and max_guidance_scale of the arm.
        ours: with our shortcuts.
    """
    rows = 2 if options["max_guidance_scale"] > 1 else 1  # with and without the image
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(config).eval().to("meta")
        latents = torch.empty(rows, num_frames, config.in_channels, options["height"] // 8, options["width"] // 8)
        context, added = torch.empty(rows, 1, config.cross_attention_dim), torch.empty(rows, 3)
        timestep = torch.empty(())
    if ours:
        use_exact_shortcuts(unet, num_frames)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(latents, timestep, context, added)
    return counter.get_total_flops() / 1e12


# ---------------------------------------------------------------------------------------------------------------------
# What it takes


def measure_memory(settings: GenerationBenchmarkSettings) -> dict[str, dict[str, int | None]]:
    """Peak memory of each arm, alone in a fresh process: columns of the table by the arm's name."""
    names = ("plain", "ours") if settings.measure_memory else ()
    return {name: _in_fresh_process(_measure_alone, settings, name) for name in names}


def _in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    except BrokenProcessPool:
        raise InputError(
            f"{args[-1]}: the process that measured its memory was killed, which is what a system does that has too "
            "little memory; set a smaller size or batch_size, or measure_memory=false"
        ) from None


def _measure_alone(settings: GenerationBenchmarkSettings, name: str) -> dict[str, int | None]:
    rss_before_mib = _process_mib("VmRSS")  # Python and its libraries
    arm = build_arm(settings, name)
    with memory_sentence(name):
        return measure_arm_memory(arm, choose_device(settings.device)) | {"rss_before_mib": rss_before_mib}


def measure_arm_memory(arm: Arm, device: torch.device) -> dict[str, int | None]:
    """Peaks of an arm that is alone in this process, over two batches (one image each, where there are none).

    GPU memory allocated is the second run's, without what warming up took; reserved is that of both, and the figure to
    go by where CUDA graphs keep memory of their own. RSS is the whole process's since its start, libraries included.
    """
    num_images, has_gpu = min(2 * arm.options["batch_size"], arm.num_images), device.type == "cuda"
    allocated, reserved = None, 0
    if has_gpu:
        torch.cuda.empty_cache()  # what making the networks took
    for _ in range(2):
        if has_gpu:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        arm.run(num_images)
        if has_gpu:
            torch.cuda.synchronize(device)
            allocated = torch.cuda.max_memory_allocated(device) // _MIB
            reserved = max(reserved, torch.cuda.max_memory_reserved(device) // _MIB)
    return {
        "peak_gpu_allocated_mib": allocated,
        "peak_gpu_reserved_mib": reserved if has_gpu else None,
        "peak_rss_mib": _process_mib("VmHWM"),
    }


def _process_mib(name: str) -> int | None:
    """A line of Linux' account of this process (getrusage's would include the parent's); None on other systems."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) // 1024 if found else None


def measure_matmul_tflops(settings: GenerationBenchmarkSettings) -> float:
    """The best of five samples of a large square product in the same type, on the same device: the peak to go by.

    In float32 it is no bound on a GPU: PyTorch lets convolutions, but not products, round to TF32.
    """
    device = choose_device(settings.device)
    size, least_s = (8192, 0.2) if device.type == "cuda" else (1024, 0.1)
    a, b = torch.randn(2, size, size, device=device).to(getattr(torch, dtype_name(settings)))
    product, number = a @ b, 1
    while True:  # warms up, and finds how many products last long enough
        taken_s = _time_matmuls(a, b, product, number, device)
        if taken_s >= least_s:
            break
        number *= 2
    return 2e-12 * size**3 * number / min(_time_matmuls(a, b, product, number, device) for _ in range(5))


def _time_matmuls(a: Tensor, b: Tensor, product: Tensor, number: int, device: torch.device) -> float:
    synchronise(device)
    started_s = time.perf_counter()
    for _ in range(number):
        torch.matmul(a, b, out=product)
    synchronise(device)
    return time.perf_counter() - started_s


@contextmanager
def memory_sentence(name: str) -> Iterator[None]:
    """The GPU's memory is the user's to mend."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            f"{name}: the GPU's memory is too small; set a smaller size, or park_idle=true (and measure_memory=true, "
            "to see what each arm takes)"
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# How it is compared


def must_park(settings: GenerationBenchmarkSettings, memory: dict[str, dict[str, int | None]]) -> bool:
    """Whether the arm that does not run has to leave the GPU."""
    device = choose_device(settings.device)
    if device.type != "cuda" or settings.park_idle is not None:
        return device.type == "cuda" and bool(settings.park_idle)
    peaks = [memory.get(name, {}).get("peak_gpu_reserved_mib") for name in ("plain", "ours")]
    total_mib = torch.cuda.get_device_properties(device).total_memory // _MIB
    return None in peaks or sum(peaks) > 0.9 * total_mib


def compare_outputs(arms: list[Arm], settings: GenerationBenchmarkSettings, parks: bool) -> tuple[float, float] | None:
    """Run both arms once, which also warms them up, and compare: largest and mean difference of values in 0..1.

    Returns:
        None where the arms are not meant to agree, because they compute something else.

    Raises:
        InputError: a value is not finite, or they disagree beyond what the type's rounding explains.
    """
    device, plain, ours = choose_device(settings.device), arms[0], arms[-1]
    outputs = []
    for arm in (plain, ours):
        with memory_sentence(arm.name):
            bring_in(arm, arms, device, parks)
            outputs.append(arm.run(arm.num_images))
        if not torch.isfinite(outputs[-1]).all():
            raise InputError(
                f"{arm.name}: frames are not finite in {dtype_name(settings)}: not timed; use bfloat16 or float32"
            )
    if not is_same_task(plain, ours, settings.num_frames):
        return None
    difference = (outputs[0] - outputs[1][: plain.num_images]).abs()
    largest, limit = float(difference.max()), _TOLERANCE[dtype_name(settings)]
    if largest > limit:
        raise InputError(
            f"the arms' frames differ by {largest:.2g} of the range, more than {limit:g} for "
            f"{dtype_name(settings)}: not timed; compare in float32 to see whether it is rounding"
        )
    return largest, float(difference.mean())


def is_same_task(plain: Arm, ours: Arm, num_frames: int) -> bool:
    """Whether both are asked for the same frames; the decoder's depend on how many of a clip it sees at once."""
    keys = ("height", "width", "min_guidance_scale", "max_guidance_scale")
    parts = [min(arm.options["decode_chunk_size"], num_frames) for arm in (plain, ours)]
    return parts[0] == parts[1] and all(plain.options[key] == ours.options[key] for key in keys)


def time_arms(arms: list[Arm], settings: GenerationBenchmarkSettings, parks: bool) -> dict[str, list[float]]:
    """Seconds of each repetition of each arm, in turn, the device synchronised; moves are not timed."""
    device = choose_device(settings.device)
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(settings.repetitions):
        for arm in arms:
            with memory_sentence(arm.name):
                bring_in(arm, arms, device, parks)
                synchronise(device)
                started_s = time.perf_counter()
                arm.run(arm.num_images)
                synchronise(device)
                seconds[arm.name].append(time.perf_counter() - started_s)
    return seconds


def bring_in(arm: Arm, arms: list[Arm], device: torch.device, parks: bool) -> None:
    """Where idle networks are parked: the others' to the CPU, this arm's to the device, and one image to settle."""
    if not parks or device.type == "cpu":
        return
    for other in arms:
        if other.pipeline is not arm.pipeline:
            _move(other, torch.device("cpu"))
    torch.cuda.empty_cache()
    if _move(arm, device):
        arm.run(1)  # kept kernels are computed and buffers found again


def _move(arm: Arm, device: torch.device) -> bool:
    """Move an arm's networks if they may and have to; returns whether they did."""
    if arm.stays or arm.pipeline is None or arm.pipeline.unet.device.type == device.type:
        return False
    _move_parts(arm.pipeline, device)
    return True


def _move_parts(pipeline: Any, device: torch.device) -> None:
    """Part by part: the pipeline's own `to` warns of half precision on a CPU, where they only wait."""
    for part in (pipeline.unet, pipeline.vae, pipeline.image_encoder):
        part.to(device)


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_profiles(arms: list[Arm], settings: GenerationBenchmarkSettings, paths: dict[str, Path], parks: bool) -> None:
    """torch.profiler's table of where the time goes: one image of the plain loop, one batch of ours."""
    device = choose_device(settings.device)
    has_gpu, activity = device.type == "cuda", torch.profiler.ProfilerActivity
    # On a CPU batches may run in threads of their own, which the profiler leaves out by default.
    all_threads = None if has_gpu else torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    for arm in (arms[0], arms[-1]):
        bring_in(arm, arms, device, parks)
        activities = [activity.CPU, activity.CUDA] if has_gpu else [activity.CPU]
        with torch.profiler.profile(activities=activities, experimental_config=all_threads) as profiler:
            arm.run(min(arm.options["batch_size"], arm.num_images))
            synchronise(device)
        by = "self_device_time_total" if has_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=100)
        write_text(paths[arm.name], table + "\n")
        print(f"profile of {arm.name}: {paths[arm.name]}")
