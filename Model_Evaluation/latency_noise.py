"""Whether repeated timings agree well enough to be compared; what is said of it comes from p50 and p95 alone."""

from __future__ import annotations

import math

NOISY_RATIO = (
    1.5  # beyond it a median of 10 to 20 passes says more about the machine's other work than about the network
)


def compute_noise_ratio(p50_ms: float | None, p95_ms: float | None) -> float:
    """p95 as a multiple of p50; NaN where either is not known, or p50 is 0."""
    p50, p95 = (math.nan if value is None else float(value) for value in (p50_ms, p95_ms))
    return p95 / p50 if p50 > 0 else math.nan


def is_noisy(p50_ms: float | None, p95_ms: float | None) -> bool:
    """Whether p95 is more than `NOISY_RATIO` times p50; not where that is not known."""
    return compute_noise_ratio(p50_ms, p95_ms) > NOISY_RATIO


def describe_noise(p50_ms: float | None, p95_ms: float | None) -> str:
    """`noisy: p95 is 2.3 x p50`, or nothing where the timings agree."""
    return f"noisy: p95 is {compute_noise_ratio(p50_ms, p95_ms):.1f} x p50" if is_noisy(p50_ms, p95_ms) else ""
