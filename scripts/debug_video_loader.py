"""Check a clip loader by eye and by number: shapes, value ranges, decoding rate, and a preview of its first batches.

python -m scripts.debug_video_loader [data_root=svd_videos split=train batch_size=8 num_batches=4 preview=FILE.gif]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator

from utils.config import InputPath, NonNegativeInt, PositiveInt, Settings, read_settings
from utils.errors import run_script


class LoaderDebugSettings(Settings):
    """What to load, and where to save the preview (.gif or .png; None saves none)."""

    data_root: InputPath
    split: Literal["train", "val"] = "train"
    train_csv: Path = Path("train.csv")
    val_csv: Path = Path("val.csv")
    num_frames: Annotated[int, Field(ge=1, validation_alias=AliasChoices("num_frames", "time_dim"))] = 3
    image_size: Annotated[int, Field(ge=16)] = 224
    batch_size: PositiveInt = 8
    num_batches: PositiveInt = 4
    workers: NonNegativeInt = 0
    preview: Path | None = Path("loader_preview.gif")

    @field_validator("preview")
    @classmethod
    def _known_suffix(cls, preview: Path | None) -> Path | None:
        if preview is not None and preview.suffix not in (".gif", ".png"):
            raise ValueError(f"{preview} must end in .gif (moving) or .png (frames side by side)")
        if preview is not None and not preview.parent.is_dir():
            raise ValueError(f"{preview.parent} is no folder; make it or choose another place")
        return preview


def main() -> None:
    """Read the settings, load batches, report, save the preview."""
    settings = read_settings(LoaderDebugSettings, __doc__, Path(__file__).with_name("debug_video_loader.yaml"))
    batches, seconds = load_batches(settings)
    num_clips = sum(len(clips) for clips, _ in batches)
    for number, (clips, labels) in enumerate(batches, start=1):
        print(
            f"batch {number}: clips {tuple(clips.shape)} (B, C, T, H, W) {clips.dtype} {clips.min()}..{clips.max()}, "
            f"mean {clips.float().mean():.1f}, labels {labels.tolist()}"
        )
    rate = num_clips / seconds
    print(f"{num_clips} clips in {seconds:.2f} s: {rate:.0f} clips/s, {1e3 / rate:.2f} ms a clip")
    if settings.preview is not None:
        write_preview(batches, settings.preview)
        print(f"preview: {settings.preview}")


def load_batches(settings: LoaderDebugSettings) -> tuple[list, float]:
    """The first batches, uint8 (B, 3, T, H, W) with labels (B,), in index order; and the seconds they took."""
    from Inflated_3D_VGG.video_dataset import VideoDataset  # heavy imports come after the config has been read
    from utils.indices import locate_clip_index, read_clip_index
    from utils.loading import build_loader

    place = locate_clip_index(settings.data_root, getattr(settings, f"{settings.split}_csv"), settings.split)
    index = read_clip_index(*place, num_frames=settings.num_frames)
    clips = VideoDataset(index, num_frames=settings.num_frames, image_size=settings.image_size)
    loader = build_loader(clips, batch_size=settings.batch_size, workers=settings.workers)
    started_s = time.perf_counter()
    batches = [batch for batch, _ in zip(loader, range(settings.num_batches), strict=False)]
    return batches, time.perf_counter() - started_s


def write_preview(batches: list, path: Path) -> None:
    """Clips as rows of at most eight: a GIF that plays them, or a PNG with the frames side by side."""
    import imageio.v3 as iio
    import numpy as np

    clips = np.concatenate([clips.permute(0, 2, 3, 4, 1).numpy() for clips, _ in batches])  # -> (N, T, H, W, C)
    if path.suffix == ".png":
        sheet = np.concatenate([np.concatenate(list(clip), axis=1) for clip in clips], axis=0)
        iio.imwrite(path, sheet)
        return
    columns = min(8, len(clips))
    missing = -len(clips) % columns
    clips = np.concatenate([clips, np.zeros((missing, *clips.shape[1:]), dtype=np.uint8)])
    rows = clips.reshape(-1, columns, *clips.shape[1:])  # (R, columns, T, H, W, C)
    frames = rows.transpose(2, 0, 3, 1, 4, 5).reshape(
        clips.shape[1], len(rows) * clips.shape[2], columns * clips.shape[3], 3
    )
    iio.imwrite(path, frames, duration=1000 / 6, loop=0)  # 6 frames a second, as the clips


if __name__ == "__main__":
    run_script(main)
