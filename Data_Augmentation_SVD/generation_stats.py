"""What generation cost: measured per chunk, kept per session in `generation_stats.json`."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import write_text

STATS_FILE = "generation_stats.json"
_ETA_AFTER_FRACTION = 0.1


class SessionStats:
    """Times one process's work on one split.

    Args:
        num_planned: clips it has to make.
        device: what computes, as the generator describes it.
    """

    def __init__(self, split: str, num_planned: int, device: dict[str, Any]) -> None:
        self._split, self._num_planned, self._device = split, num_planned, device
        self._started_s = time.monotonic()
        self._seconds_per_clip: list[float] = []
        self._eta_s: float | None = None
        self.num_clips = self._num_written = 0

    @contextmanager
    def chunk(self) -> Iterator[Callable[[], None]]:
        """Time one chunk; call what it yields once a clip."""
        started_s, before = time.monotonic(), self.num_clips
        yield self._count_clip
        if self.num_clips == before:
            return
        self._seconds_per_clip.append((time.monotonic() - started_s) / (self.num_clips - before))

    def count_written(self) -> None:
        """A clip is on disk: what a tenth of them took is the forecast that the record sets against the truth."""
        self._num_written += 1
        if self._eta_s is None and self._num_written >= _ETA_AFTER_FRACTION * self._num_planned:
            self._eta_s = (time.monotonic() - self._started_s) / self._num_written * self._num_planned

    def _count_clip(self) -> None:
        self.num_clips += 1

    def summary(self, round_trip_psnr_db: list[float]) -> dict[str, Any]:
        """The session's record; times in seconds, memory in MiB."""
        seconds = time.monotonic() - self._started_s
        per_clip = self._seconds_per_clip or [seconds / max(self.num_clips, 1)]
        finite = [value for value in round_trip_psnr_db if np.isfinite(value)]
        return {
            "split": self._split,
            "clips": self.num_clips,
            "planned": self._num_planned,
            "seconds": round(seconds, 3),
            "clips_per_s": round(self.num_clips / max(seconds, 1e-9), 3),
            "chunks": len(self._seconds_per_clip),
            "seconds_per_clip_p50": round(float(np.percentile(per_clip, 50)), 4),
            "seconds_per_clip_p95": round(float(np.percentile(per_clip, 95)), 4),
            "eta_after_a_tenth_s": None if self._eta_s is None else round(self._eta_s, 3),
            "peak_memory_mib": _peak_memory_mib(),
            "peak_gpu_memory_mib": _peak_gpu_memory_mib(),
            "codec_is_exact": bool(round_trip_psnr_db) and not finite,
            "codec_round_trip_psnr_db": round(statistics.mean(finite), 2) if finite else None,
            "device": self._device,
        }


def append_session(run_dir: Path, session: dict[str, Any]) -> None:
    """Add a session's record to the run's; one that cannot be read is replaced."""
    write_sessions(run_dir, [*read_sessions(run_dir), session])


def write_sessions(run_dir: Path, sessions: list[dict[str, Any]]) -> None:
    """Write all sessions' records."""
    write_text(run_dir / STATS_FILE, json.dumps({"sessions": sessions}, indent=2) + "\n")


def read_sessions(run_dir: Path) -> list[dict[str, Any]]:
    """The sessions so far."""
    try:
        return list(json.loads((run_dir / STATS_FILE).read_text(encoding="utf-8"))["sessions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def read_seconds_per_clip(run_dir: Path) -> float | None:
    """What a clip took, over all sessions; None where nothing is recorded (the published clips)."""
    sessions = [session for session in read_sessions(run_dir) if session.get("clips")]
    if not sessions:
        return None
    return sum(session["seconds"] for session in sessions) / sum(session["clips"] for session in sessions)


def _peak_memory_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 if sys.platform != "darwin" else 1024**2)  # kilobytes on Linux, bytes on macOS


def _peak_gpu_memory_mib() -> int | None:
    torch = sys.modules.get("torch")  # the controls run without it
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return torch.cuda.max_memory_allocated() // 1024**2
