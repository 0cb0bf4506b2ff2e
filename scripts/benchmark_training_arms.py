"""The arms of the training benchmark: networks of the same weights, and what a step or a prediction of each runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.costs import count_executed_macs
from Model_Evaluation.latency import measure_matmul_peak, synchronise
from utils.devices import choose_device
from utils.errors import InputError
from utils.host_memory import keep_freed_memory
from utils.inference import prepare_for_inference

if TYPE_CHECKING:
    from scripts.benchmark_training import TrainingBenchmarkSettings

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}  # of the norm
_GRADIENT_TOLERANCE = 0.05  # in float32 at 224 pixels: maxima and zeros that rounding moves; 0.01 between any two arms
_NUM_CLASSES = 10


@dataclass
class Arm:
    """One way to compute.

    Attributes:
        run: one step or prediction, without waiting for the device.
        executed_gmac: multiply-accumulates of one run, in 1e9, as executed.
        options: precision, memory format, compile.
        results: what is compared before anything is timed: logits in the arm's own type and, of a step, also in
            float32, uncompiled, with some gradients. None: nothing.
    """

    name: str
    run: Callable[[], Any]
    executed_gmac: float
    options: dict[str, Any]
    device: torch.device
    results: Callable[[], list[Tensor]] | None = None


class SlicedConv3d(nn.Conv3d):
    """A `Conv3d` whose weight gradient is taken slice by slice in time, from 2-D kernels.

    oneDNN's own in bfloat16 hangs with two threads and is wrong with one on CPUs with AMX (512 channels, 28 x 28, torch
    2.14): the best Conv3d that can be trained there is this one.
    """

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, C, T, H, W) -> float (B, O, T, H, W)."""
        if clip.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(clip)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else clip.dtype
        return _SlicedConv.apply(clip.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class _SlicedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, clip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(clip, weight)
        return functional.conv3d(clip, weight, bias, 1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        clip, weight = ctx.saved_tensors
        ones, zeros = [1, 1, 1], [0, 0, 0]
        clip_gradient = None
        if ctx.needs_input_grad[0]:
            mask = [True, False, False]
            clip_gradient = torch.ops.aten.convolution_backward(
                gradient, clip, weight, None, ones, ones, ones, False, zeros, 1, mask
            )[0]
        seen = ((clip[:, :, :-1], gradient[:, :, 1:]), (clip, gradient), (clip[:, :, 1:], gradient[:, :, :-1]))
        slices = [_weight_gradient_2d(*pair, weight[:, :, place]) for place, pair in enumerate(seen)]
        return clip_gradient, torch.stack(slices, dim=2), gradient.sum((0, 2, 3, 4))


def _weight_gradient_2d(clip: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Of one slice, (O, C, 3, 3): frame by frame, (B, C, T, H, W) -> (B * T, C, H, W) without a copy if it may be."""
    frames, gradients = (part.transpose(1, 2).flatten(0, 1) for part in (clip, gradient))
    settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(gradients, frames, weight, None, *settings)[1]


# ---------------------------------------------------------------------------------------------------------------------
# What runs


def build_arms(settings: TrainingBenchmarkSettings, row: str, batch_size: int) -> list[Arm]:
    """Plain Conv3d in float32, the same again, the best Conv3d, ours, and the 2-D network where it is compared."""
    device = choose_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()  # for all arms
    torch.manual_seed(0)
    pixels = torch.randn(3, batch_size, settings.image_size, settings.image_size, 3, device=device)
    clips = pixels.permute(1, 4, 0, 2, 3)  # (T, B, H, W, C) in memory, as utils.pixels has them
    build = _build_step if row == "training" else _build_prediction
    networks = {name: _build_network(settings, name, device) for name in ("plain", "best conv3d", "ours")}
    arms = [build(name, network, clips, settings) for name, network in networks.items()]
    again = Arm("plain again", arms[0].run, arms[0].executed_gmac, arms[0].options, device)
    arms.insert(1, again)
    if row == "inference":
        vgg = build_vgg11(_NUM_CLASSES, classifier_width=settings.classifier_width).to(device)
        arms.append(_build_prediction("2-D", vgg, pixels[0].permute(0, 3, 1, 2), settings))
    return arms


def _build_network(settings: TrainingBenchmarkSettings, name: str, device: torch.device) -> nn.Module:
    torch.manual_seed(1)  # the same weights for all
    model = build_vgg11_3d(
        _NUM_CLASSES,
        classifier_width=settings.classifier_width,
        dropout=0.0,  # the arms are compared
        temporal_conv="four_product" if name == "ours" else "conv3d",
    )
    for module in model.modules():
        if isinstance(module, nn.Conv3d):  # inflation leaves two slices of three at zero
            drawn = torch.empty(module.weight.shape)  # in this order; a weight may lie in memory in another one
            module.weight.data.copy_(nn.init.kaiming_normal_(drawn, mode="fan_out", nonlinearity="relu"))
        if name == "best conv3d" and type(module) is nn.Conv3d and device.type == "cpu":
            module.__class__ = SlicedConv3d
    return model.to(device)


def _options(name: str, settings: TrainingBenchmarkSettings) -> dict[str, Any]:
    formats = {"plain": "contiguous", "best conv3d": "channels_last_3d", "ours": "frames", "2-D": "channels_last"}
    is_compiled = name == "best conv3d" and settings.compile
    precision = "fp32" if name == "plain" else "bf16"
    return {"precision": precision, "memory_format": formats[name], "compile": "default" if is_compiled else "none"}


def _lay_out(clips: Tensor, options: dict[str, Any]) -> Tensor:
    if options["memory_format"] == "channels_last_3d":
        return clips.contiguous(memory_format=torch.channels_last_3d)
    return clips.contiguous() if options["memory_format"] == "contiguous" else clips


def _build_step(name: str, network: nn.Module, clips: Tensor, settings: TrainingBenchmarkSettings) -> Arm:
    """Forward, backward, fused SGD."""
    options, device = _options(name, settings), clips.device
    clips, labels = _lay_out(clips, options), torch.arange(len(clips), device=device) % _NUM_CLASSES
    gmac = 3 * len(clips) * count_executed_macs(network.eval(), tuple(clips.shape[1:])) / 1e9  # two products backward
    if options["memory_format"] == "channels_last_3d":
        network = network.to(memory_format=torch.channels_last_3d)
    network.train()
    model = torch.compile(network) if options["compile"] != "none" else network
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)

    def backward(model: nn.Module, *, in_float32: bool = False) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        is_cast = options["precision"] == "bf16" and not in_float32
        with torch.autocast(device.type, torch.bfloat16, enabled=is_cast):
            logits = model(clips)
        functional.cross_entropy(logits.float(), labels).backward()
        return logits.detach()

    def run() -> None:
        backward(model)
        optimizer.step()

    def results() -> list[Tensor]:
        own = backward(model).float()
        # In bfloat16 gradients of random weights are mostly noise: 0.3 to 0.5 of the norm, with torch's own Conv3d too.
        exact = backward(network, in_float32=True)
        return [own, exact, *(network.features[place].weight.grad.clone() for place in (0, 4, 25))]

    return Arm(name, run, gmac, options, device, results)


def _build_prediction(name: str, network: nn.Module, inputs: Tensor, settings: TrainingBenchmarkSettings) -> Arm:
    """Logits of one batch in eval mode."""
    options, network = _options(name, settings), network.eval()
    inputs = _lay_out(inputs, options)
    gmac = len(inputs) * count_executed_macs(network, tuple(inputs.shape[1:])) / 1e9
    dtype = _DTYPES[options["precision"]]
    if name in ("ours", "2-D"):
        model: Callable[[Tensor], Tensor] = prepare_for_inference(network, dtype=dtype)
    elif name == "best conv3d":
        network = network.to(dtype).to(memory_format=torch.channels_last_3d)
        model, inputs = torch.compile(network) if settings.compile else network, inputs.to(dtype)
    else:
        model = network

    @torch.inference_mode()
    def run() -> Tensor:
        return model(inputs)

    return Arm(name, run, gmac, options, inputs.device, None if name == "2-D" else lambda: [run().float()])


# ---------------------------------------------------------------------------------------------------------------------
# What is compared, and how it is timed


def compare(arms: list[Arm]) -> dict[str, dict[str, float]]:
    """Differences of outputs and gradients to the plain arm's, as shares of its (root mean square).

    Raises:
        InputError: more than the type's rounding explains.
    """
    expected = arms[0].results()
    differences: dict[str, dict[str, float]] = {}
    for arm in arms[1:]:
        if arm.results is None:
            continue
        found = [((a - b).norm() / b.norm()).item() for a, b in zip(arm.results(), expected, strict=True)]
        bounds = (_TOLERANCE[arm.options["precision"]], _TOLERANCE["fp32"], *[_GRADIENT_TOLERANCE] * 3)
        for value, bound in zip(found, bounds, strict=False):
            if not value < bound:
                raise InputError(f"{arm.name}: differs from the plain arm by {value:.2g} of its norm; not timed")
        differences[arm.name] = {"output_difference": found[0]}
        if len(found) > 1:
            differences[arm.name]["gradient_difference"] = max(found[1:])
    return differences


def time_arms(arms: list[Arm], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each run, in turn, after one of each that does not count."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for repetition in range(repetitions + 1):
        for arm in arms:
            synchronise(arm.device)
            started_s = time.perf_counter()
            arm.run()
            synchronise(arm.device)
            if repetition:
                seconds[arm.name].append(time.perf_counter() - started_s)
    return seconds


def measure_peaks(settings: TrainingBenchmarkSettings) -> dict[str, float]:
    """TFLOP/s of large square products on the device, the best of several sizes and samples, in each arm's type."""
    device = choose_device(settings.device)
    sizes = (4096, 8192, 16384) if device.type == "cuda" else (1024, 2048, 4096)
    return {name: measure_matmul_peak(device, dtype, sizes=sizes, samples=8) / 1e12 for name, dtype in _DTYPES.items()}
