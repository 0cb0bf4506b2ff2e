"""Small videos in every container, and the trees that real data sets come in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

_CODECS = {".avi": "mpeg4", ".mov": "mpeg4", ".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx"}


def moving_frames(num_frames: int, seed: int, size: int = 32) -> np.ndarray:
    """uint8 (T, size, size, 3): noise that moves to the right, so that every frame is another."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return np.stack([np.roll(noise, 3 * t, axis=1) for t in range(num_frames)])


def write_video(path: Path, num_frames: int = 8, seed: int = 0, *, size: int = 32, fps: int = 10) -> Path:
    """A video whose container is the one of its suffix; equal arguments give equal frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(_CODECS[path.suffix.lower()], rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in moving_frames(num_frames, seed, size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def truncate(path: Path, kept_fraction: float) -> Path:
    """Cut a file short."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept_fraction)])
    return path


def write_folders(root: Path, counts: Mapping[str, int], *, suffix: str = ".mp4", first_seed: int = 0) -> Path:
    """`<folder>/<folder's last name>_<number>`: as many videos as `counts` says."""
    seed = first_seed
    for folder, count in counts.items():
        for number in range(count):
            seed += 1
            write_video(root / folder / f"{Path(folder).name}_{number}{suffix}", seed=seed)
    return root


def write_labelled(root: Path, labels: Mapping[str, Mapping[str, Any]], *, first_seed: int = 0) -> Path:
    """`<split>/labels.json` with the given content, and the videos that it names."""
    seed = first_seed
    for split, content in labels.items():
        for name in content:
            seed += 1
            write_video(root / split / name, seed=seed)
        (root / split / "labels.json").write_text(json.dumps(content))
    return root


def write_ucf101(
    root: Path, *, classes: tuple[str, ...] = ("Archery", "Biking"), groups: int = 6, clips: int = 2
) -> Path:
    """UCF101's tree: AVIs of `groups` groups a class; the first two groups are those of the test list."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    lines: dict[str, list[str]] = {"trainlist01": [], "testlist01": []}
    for label, name in enumerate(classes):
        for group in range(1, groups + 1):
            for clip in range(1, clips + 1):
                listed = f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"
                write_video(root / listed, seed=10_000 * label + 100 * group + clip)
                if group <= 2:
                    lines["testlist01"].append(listed)
                else:
                    lines["trainlist01"].append(f"{listed} {label + 1}")
    for name, content in lines.items():
        (lists / f"{name}.txt").write_text("".join(f"{line}\r\n" for line in content), newline="")
    (lists / "classInd.txt").write_text(
        "".join(f"{label} {name}\r\n" for label, name in enumerate(classes, 1)), newline=""
    )
    return root
