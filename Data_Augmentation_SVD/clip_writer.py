"""The last step of a clip: out of the generator's hands, checked, onto the disk, into the journal."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Data_Augmentation_SVD.clip_checks import find_fault, one_line
from Data_Augmentation_SVD.clip_metrics import compute_psnr_db
from Data_Augmentation_SVD.generators import ClipError, ClipGenerator, build_geometry, is_fatal
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Augmentation_SVD.split_files import Journal, SplitFolders
from Data_Augmentation_SVD.tiny_imagenet_aug import Source
from utils.artifacts import STATUS_FAILED, STATUS_OK, STATUS_QUARANTINED
from utils.clips import read_clip, write_clip
from utils.files import PARTIAL_SUFFIX, sha256_file

log = logging.getLogger(__name__)
_ROUND_TRIPS = 8  # clips a session that are decoded again, to report what the codec costs


@dataclass(frozen=True)
class ClipTask:
    """One clip to make.

    Attributes:
        name: its path below the split's folder.
        position: of its image in the images at hand.
        clip_number: which of the image's clips, from 0.
        attempt: how many clips of this number were rejected before.
    """

    name: str
    source: Source
    position: int
    clip_number: int
    attempt: int
    seed: int


class ClipMaker:
    """From a draft to a row: finish, check, write. Holds no state but what it measured."""

    def __init__(self, generator: ClipGenerator, settings: GenerationSettings, folders: SplitFolders) -> None:
        self._generator, self._settings, self._folders = generator, settings, folders
        self._geometry = build_geometry(settings)
        self.round_trip_psnr_db: list[float] = []

    def make(self, task: ClipTask, image: np.ndarray, draft: Any) -> dict[str, Any]:
        """Write one clip, or its quarantined file; returns its row."""
        row = self.row_of(task) | {"visible_fraction": self._geometry.visible_fraction(*image.shape[:2])}
        try:
            frames = self._finish(draft, image)
        except ClipError as error:
            return self._reject(task, row, self._remains_of(error, image), str(error))
        checks = self._settings.checks.model_dump()
        fault = find_fault(
            frames,
            self._geometry.view(image),
            num_frames=self._settings.num_frames,
            frame_size=self._settings.frame_size,
            expects_motion=self._generator.expects_motion and self._settings.num_frames > 1,
            **checks,
        )
        if fault:
            return self._reject(task, row, frames, fault)
        path = self._folders.clips / task.name
        self._write(path, frames)
        for name in (task.name, task.name + PARTIAL_SUFFIX):  # of an earlier attempt
            (self._folders.quarantine / name).unlink(missing_ok=True)
        if len(self.round_trip_psnr_db) < _ROUND_TRIPS:
            self.round_trip_psnr_db.append(compute_psnr_db(read_clip(path), frames))
        return row | {"status": STATUS_OK, "sha256": sha256_file(path)}

    def fail(self, task: ClipTask, reason: str) -> dict[str, Any]:
        """The row of an image that cannot even be read."""
        self._remove_stale(task)
        return self.row_of(task) | {"status": STATUS_FAILED, "reason": one_line(reason)}

    def row_of(self, task: ClipTask) -> dict[str, Any]:
        """What a row says of a clip before it is made."""
        settings = self._settings
        return {
            "video_path": task.name,
            **asdict(task.source),
            "sha256": "",
            "generator": settings.generator,
            "seed": task.seed,
            "num_frames": settings.num_frames,
            "height": settings.frame_size,
            "width": settings.frame_size,
            "kept_frames": " ".join(map(str, settings.kept_frames)),
            "visible_fraction": None,
            "clip_number": task.clip_number,
            "attempt": task.attempt,
            "status": STATUS_FAILED,
            "reason": "",
        }

    def _finish(self, draft: Any, image: np.ndarray) -> np.ndarray:
        if isinstance(draft, ClipError):
            raise draft
        try:
            frames = np.asarray(self._generator.finish(draft, image))
        except ClipError:
            raise
        except Exception as error:  # as in the step before: one image's trouble is not the run's
            if is_fatal(error):
                raise
            log.warning("a clip could not be finished", exc_info=True)
            raise ClipError(f"{type(error).__name__}: {error}") from None
        settings, view = self._settings, self._geometry.view(image)
        if frames.shape[:1] == (settings.native_frames or settings.num_frames,):  # else the check says what is wrong
            frames = frames[list(settings.kept_frames)]
        is_alike = frames.size and (frames.shape[1:], frames.dtype) == (view.shape, view.dtype)
        if settings.first_frame == "original" and is_alike:
            frames = np.concatenate([view[None], frames[1:]])
        return frames

    def _remains_of(self, error: ClipError, image: np.ndarray) -> np.ndarray | None:
        """What can be shown of a clip that was made and is bad."""
        if error.draft is None:
            return None
        try:
            return self._finish(error.draft, image)
        except ClipError:
            return None

    def _reject(self, task: ClipTask, row: dict[str, Any], frames: np.ndarray | None, reason: str) -> dict[str, Any]:
        """Keep a bad clip for inspection, where it can be a file at all, away from the good ones."""
        self._remove_stale(task)
        row |= {"status": STATUS_QUARANTINED, "reason": one_line(reason)}
        pixels = None if frames is None else _as_pixels(frames)
        if pixels is None:
            return row
        path = self._folders.quarantine / task.name
        self._write(path, pixels)
        return row | {"sha256": sha256_file(path)}

    def _write(self, path: Path, frames: np.ndarray) -> None:
        write_clip(path, frames, self._settings.output_fps, self._settings.codec)

    def _remove_stale(self, task: ClipTask) -> None:
        """What an earlier run left under this name, of another image or of the same one before it broke."""
        for folder in (self._folders.clips, self._folders.quarantine):
            path = folder / task.name
            path.unlink(missing_ok=True)
            path.with_name(path.name + PARTIAL_SUFFIX).unlink(missing_ok=True)


class ClipWriter:
    """Writes clips in a thread of its own, in order, while the next ones are generated.

    Leaving the `with` block waits until all that was handed over is on disk, also when an error of generation or a
    signal passes through. After an error of its own (a full disk) nothing more is written; a rerun does.
    """

    def __init__(self, maker: ClipMaker, journal: Journal, on_row: Callable[[dict[str, Any]], None]) -> None:
        self._maker, self._journal, self._on_row = maker, journal, on_row
        self._queue: queue.Queue = queue.Queue(maxsize=32)  # bounds the memory that waiting frames take
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="clip-writer", daemon=True)

    def __enter__(self) -> ClipWriter:
        self._thread.start()
        return self

    def put(self, task: ClipTask, image: np.ndarray, draft: Any) -> None:
        """Hand over a draft."""
        self._hand_over(lambda: self._maker.make(task, image, draft))

    def put_failed(self, task: ClipTask, reason: str) -> None:
        """Hand over an image that cannot be read."""
        self._hand_over(lambda: self._maker.fail(task, reason))

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._raise_error()

    def _hand_over(self, make_row: Callable[[], dict[str, Any]]) -> None:
        self._raise_error()
        self._queue.put(make_row)

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while (make_row := self._queue.get()) is not None:
            if self._error is not None:
                continue  # keep emptying the queue, so that the other side never waits for ever
            try:
                row = make_row()
                self._journal.append(row)
                self._on_row(row)
            except BaseException as error:
                self._error = error


def _as_pixels(frames: np.ndarray) -> np.ndarray | None:
    """What a file can hold of a bad clip: uint8 (T, H, W, 3) with even sides; None where there is no picture at all."""
    if frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        return None
    if frames.dtype != np.uint8:
        frames = (np.nan_to_num(frames, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    return even if even.size else None
