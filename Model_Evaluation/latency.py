"""Time that is really the model's: the device waited for, warm-up left out, and nothing faster than the device can be.

A clock that is read before the device has finished measures how fast work is handed over. What gives it away is the
roofline: the figure needs more multiplications a second than the device reaches when it is waited for. So every figure
is held against a rate that was measured in the same run, and refused above it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from utils.errors import InputError

Clock = Callable[[], float]  # seconds
TOLERANCE = 1.1  # of the measured peak: what clocks that rise and fall may make of it
_ATTEMPTS = 5  # measurements of the peak before a figure is refused
_PEAK_BUDGET_S = 0.3  # after which no larger product is begun
_CONV = {"cpu": (4, 256, 28), "other": (64, 256, 56)}  # batch, channels in and out, side


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a CPU works while it is called."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@torch.inference_mode()
def measure_latency(
    classify: Callable[[], object],
    device: torch.device,
    *,
    warmup: int,
    repetitions: int,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """Wall times of single calls in ms, the device synchronised before and after each, warm-up left out.

    Args:
        classify: one answer for one batch, all passes of it; need not wait for the device.
        warmup: calls before the first that counts.
        repetitions: calls that count.
    """
    latencies_ms: list[float] = []
    for repetition in range(warmup + repetitions):
        synchronise(device)
        started_s = clock()
        classify()
        synchronise(device)
        if repetition >= warmup:
            latencies_ms.append((clock() - started_s) * 1e3)
    return latencies_ms


def latency_rows(
    run_id: str, precision: str, device: str, batch_size: int, latencies_ms: list[float]
) -> list[dict[str, Any]]:
    """Rows of `inference_times.csv`, one a timed call."""
    return [
        {
            "run_id": run_id,
            "device": device,
            "precision": precision,
            "batch_size": batch_size,
            "repetition": repetition,
            "batch_latency_ms": latency,
        }
        for repetition, latency in enumerate(latencies_ms, start=1)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What is believed


def require_plausible(
    latency_ms: float, executed_macs: float, peak_flops_per_s: float, *, name: str, tolerance: float = TOLERANCE
) -> float:
    """The share of the device's peak that a latency claims: 2 FLOPs a multiply-accumulate.

    Args:
        executed_macs: of the whole batch and all passes.
        name: what was timed, for the sentence.
        tolerance: how far above the peak is still believed; 1 is not at all.

    Raises:
        InputError: it is above the peak: the clock did not wait for the device, or timed something else.
    """
    rate = 2 * executed_macs / (latency_ms * 1e-3) if latency_ms > 0 else math.inf
    share = rate / peak_flops_per_s
    if share > tolerance:
        raise InputError(
            f"{name}: {executed_macs / 1e9:.4g} GMac in {latency_ms:.4g} ms are {rate / 1e12:.4g} TFLOP/s, but the "
            f"device reaches {peak_flops_per_s / 1e12:.4g}; synchronise the device before the clock is read"
        )
    return share


class LatencyGuard:
    """Refuses latencies above the peak of the device in one precision, which it measures when first asked.

    A busy machine shows less than its peak: before a figure is refused, the peak is measured some times more.

    Args:
        measure: the peak in FLOP/s, e.g. `lambda: measure_peak(device, dtype)`.
    """

    def __init__(self, measure: Callable[[], float]) -> None:
        self._measure, self._peak_flops_per_s = measure, 0.0

    def check(self, name: str, executed_macs: float, latency_ms: float) -> float:
        """As `require_plausible`."""
        for _ in range(_ATTEMPTS):
            if self._peak_flops_per_s and 2e3 * executed_macs <= TOLERANCE * self._peak_flops_per_s * latency_ms:
                break
            self._peak_flops_per_s = max(self._peak_flops_per_s, self._measure())
        return require_plausible(latency_ms, executed_macs, self._peak_flops_per_s, name=name)


# ---------------------------------------------------------------------------------------------------------------------
# What the device reaches


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the faster of a matrix product and a 3 x 3 convolution, at most about a second.

    Where a library has Winograd's convolution (cuDNN in float32), it takes fewer multiplications than are counted.
    """
    return max(measure_matmul_peak(device, dtype), _measure_convolution(device, dtype))


@torch.inference_mode()
def measure_matmul_peak(
    device: torch.device, dtype: torch.dtype, *, sizes: Sequence[int] | None = None, samples: int = 4
) -> float:
    """FLOP/s of square matrix products in a type, the best of some sizes and samples.

    Args:
        sizes: all of them are measured; None takes sizes that suit the device, until the time is up.
        samples: of each size.
    """
    chosen = sizes or ((512, 1024, 1536) if device.type == "cpu" else (2048, 4096, 8192))
    best, started_s = 0.0, time.perf_counter()
    with _products_like_convolutions(device):
        for size in chosen:
            best = max(best, _measure_product(size, dtype, device, samples))
            if sizes is None and time.perf_counter() - started_s > _PEAK_BUDGET_S:
                break
    return best


def _measure_product(size: int, dtype: torch.dtype, device: torch.device, samples: int) -> float:
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    product = torch.empty_like(a)
    return 2 * size**3 / _shortest_s(lambda: torch.matmul(a, b, out=product), device, samples)


@torch.inference_mode()
def _measure_convolution(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s as counted, of one 3 x 3 convolution, channels last."""
    batch, channels, side = _CONV.get(device.type, _CONV["other"])
    images = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    images, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (images, kernel))
    functional.conv2d(images, kernel, padding=1)
    flops = 2 * images.numel() * channels * 9
    return flops / _shortest_s(lambda: functional.conv2d(images, kernel, padding=1), device, samples=4)


@contextmanager
def _products_like_convolutions(device: torch.device) -> Iterator[None]:
    """Torch lets convolutions round float32 to TF32, products not: a peak for networks must allow both the same."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _shortest_s(run: Callable[[], object], device: torch.device, samples: int) -> float:
    return min(measure_latency(run, device, warmup=1, repetitions=samples)) * 1e-3
