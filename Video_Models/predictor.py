"""What a trained network says of videos: every frame rule, size and class as its checkpoint has them.

predictor = Predictor(Path("runs/video/model_best.safetensors"))
for prediction in predictor.predict([Path("a.mp4"), Path("b.avi")]):
print(prediction.path, prediction.class_name, prediction.confidence)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from utils.artifacts import STATUS_FAILED, STATUS_OK
from utils.augmentation import Preprocessing
from utils.checkpoints import ModelDescription
from utils.clips import probe_video, read_frames
from utils.errors import InputError
from utils.frame_sampling import FrameSampling
from utils.images import resize_and_centre_crop
from utils.indices import ClassInfo, distinct_names
from utils.learner import build_recipe
from utils.loading import num_usable_cores
from utils.utils import progress
from Video_Models.loading import load_video_classifier

CHECKPOINT_VARIABLE = "VIDEO_CHECKPOINT"


@dataclass(frozen=True)
class Prediction:
    """What a network says of one video, or of one task of it.

    Attributes:
        path: the video's, as it was given.
        task: None where the network has one task only.
        status: `ok`, or `failed` with a `reason`; the fields below are then None or empty.
        num_frames: of the whole video; known, too, where there are too few or too many.
        label: of the most probable class; ties go to the lower one.
        class_name: its name; where two classes have the same, with the WordNet id or the label behind it.
        confidence: its probability, 0..1.
        class_names: of every class, in label order, each another.
        probabilities: of every class, in label order.
    """

    path: Path
    task: str | None
    status: str
    reason: str = ""
    num_frames: int | None = None
    label: int | None = None
    class_name: str = ""
    confidence: float | None = None
    class_names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()


class Predictor:
    """A trained network that names the classes of videos.

    Args:
        checkpoint: of `Video_Models.train_video` or `Inflated_3D_VGG.train3d`.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: fp32, bf16 or fp16.
        batch_size: videos at a time; higher is faster on a GPU and takes more memory.

    Attributes:
        tasks: their names; (None,) where there is one task only.

    Raises:
        InputError: the checkpoint cannot be used, or this machine lacks the device.
    """

    def __init__(
        self, checkpoint: str | Path, *, device: str = "auto", precision: str = "fp32", batch_size: int = 8
    ) -> None:
        self._recipe = build_recipe(device, precision)
        self._checkpoint, self._batch_size = Path(checkpoint), batch_size
        network, described = load_video_classifier(self._checkpoint)
        self._network = network.to(self._recipe.device)
        self._preprocess = Preprocessing(described.mean, described.std)
        self._reader = _Reader(described)
        classes = _classes_of(described)
        self.tasks = tuple(classes)
        self._class_names = [distinct_names(of_task) for of_task in classes.values()]

    def predict(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """Predictions in the order of the videos, of several tasks one after the other.

        A video that cannot be decoded in full, or has not as many frames as the network needs, has the status `failed`.

        Raises:
            InputError: the network's logits are not finite.
        """
        answers = progress(self._answer_all([Path(path) for path in paths]), len(paths), "videos", every=100)
        return [prediction for of_video in answers for prediction in of_video]

    def _answer_all(self, paths: list[Path]) -> Iterator[list[Prediction]]:
        with ThreadPoolExecutor(min(self._batch_size, num_usable_cores())) as threads:
            for start in range(0, len(paths), self._batch_size):
                videos = list(threads.map(self._reader.read, paths[start : start + self._batch_size]))
                readable = [video.frames for video in videos if video.frames is not None]
                logits = iter(self._compute_logits(np.stack(readable, axis=1)) if readable else ())
                for video in videos:
                    yield self._describe(video, None if video.frames is None else next(logits))

    @torch.inference_mode()
    def _compute_logits(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 (K * T, B, H, W, 3), 0..255 -> float64 (B, num_logits), on the CPU; the mean of the K clips."""
        pixels = torch.from_numpy(frames).permute(1, 4, 0, 2, 3)  # (K T, B, H, W, C) -> (B, C, K T, H, W)
        clips = (clip.to(self._recipe.device) for clip in pixels.chunk(self._reader.num_clips, dim=2))
        with self._recipe.autocast():
            logits = torch.stack([self._network(self._preprocess(clip)) for clip in clips]).mean(dim=0).cpu().double()
        if not logits.isfinite().all():
            raise InputError(f"{self._checkpoint}: gives logits that are not finite; use fp32, or train again")
        return logits

    def _describe(self, video: _Video, logits: torch.Tensor | None) -> list[Prediction]:
        known = {"path": video.path, "num_frames": video.num_frames}
        if logits is None:
            return [Prediction(task=task, status=STATUS_FAILED, reason=video.reason, **known) for task in self.tasks]
        predictions = []
        of_tasks = logits.split([len(names) for names in self._class_names])
        for task, names, own in zip(self.tasks, self._class_names, of_tasks, strict=True):
            probabilities, label = tuple(own.softmax(dim=0).tolist()), int(own.argmax())
            best = {"label": label, "class_name": names[label], "confidence": probabilities[label]}
            every = {"class_names": names, "probabilities": probabilities}
            predictions.append(Prediction(task=task, status=STATUS_OK, **best, **every, **known))
        return predictions


def predict_video(
    path: str | Path, checkpoint: str | Path | None = None, *, task: str | None = None
) -> tuple[int, float]:
    """The most probable class of one video and its probability: (label, confidence), with `Predictor`'s defaults.

    The network of the last call is kept, so that calls in a row load it once; a checkpoint that has changed is loaded
    again.

    Args:
        checkpoint: None takes the path that the environment variable VIDEO_CHECKPOINT holds.
        task: of a network of several tasks: which one.

    Raises:
        InputError: no checkpoint, not a checkpoint, a task that it does not have, or a video that cannot be used.
    """
    checkpoint = checkpoint or os.environ.get(CHECKPOINT_VARIABLE)
    if not checkpoint:
        raise InputError(f"checkpoint: is missing; give it, or set the environment variable {CHECKPOINT_VARIABLE}")
    predictor = _open_predictor(Path(checkpoint).absolute())
    if task not in predictor.tasks:
        if predictor.tasks == (None,):
            raise InputError(f"task: {checkpoint} has one task only; drop {task!r}")
        raise InputError(f"task: is {task!r}, but {checkpoint} has the tasks {', '.join(predictor.tasks)}")
    prediction = predictor.predict([path])[predictor.tasks.index(task)]
    if prediction.status == STATUS_FAILED:
        raise InputError(f"{path}: {prediction.reason}; give another video")
    return prediction.label, prediction.confidence


def _open_predictor(checkpoint: Path) -> Predictor:
    state = checkpoint.stat() if checkpoint.exists() else None
    return _load_predictor(checkpoint, state and (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=1)
def _load_predictor(checkpoint: Path, _state: tuple[int, int, int] | None) -> Predictor:
    return Predictor(checkpoint)


@dataclass(frozen=True)
class _Video:
    """Its frames, uint8 (K * T, H, W, 3), or None and a reason."""

    path: Path
    num_frames: int | None
    frames: np.ndarray | None
    reason: str = ""


class _Reader:
    """From a video to the frames that a network sees, exactly as in training and evaluation.

    Attributes:
        num_clips: K, clips that the frames make up, one after the other.
    """

    def __init__(self, described: ModelDescription) -> None:
        form = described.input
        self._image_size, self._num_frames = form["image_size"], form["num_frames"]
        self._sampling = FrameSampling(**form["sampling"]) if "sampling" in form else None
        is_dense = self._sampling is not None and self._sampling.method == "dense"
        self.num_clips = self._sampling.num_clips if is_dense else 1

    def read(self, path: Path) -> _Video:
        """Decode a video; what is wrong with it becomes its reason."""
        num_frames = None
        try:
            num_frames = probe_video(path).num_frames  # in full: a truncated video must not pass for a short one
            if self._sampling is None and num_frames != self._num_frames:
                reason = f"has {num_frames} frames, this network takes clips of {self._num_frames}"
                return _Video(path, num_frames, None, reason)
            crop = partial(resize_and_centre_crop, size_px=self._image_size)
            frames = read_frames(path, self._frame_numbers(num_frames), crop)
        except (InputError, OSError) as error:  # OSError: may not be read, or its disk fails
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            return _Video(path, num_frames, None, " ".join(reason.split()))
        return _Video(path, num_frames, frames)

    def _frame_numbers(self, num_there: int) -> np.ndarray:
        """int64 (K * T,)."""
        if self._sampling is None:
            return np.arange(num_there)
        clips = self._sampling.stored_frames(num_there)
        return clips.flatten() if self.num_clips > 1 else clips[self._sampling.fixed_clip]


def _classes_of(described: ModelDescription) -> dict[str | None, tuple[ClassInfo, ...]]:
    """The classes of each task, in the order of the logits; None is the one task of a network without names for it."""
    tasks = described.input.get("tasks")
    if not tasks:
        return {None: described.classes}
    return {name: tuple(ClassInfo(**one) for one in classes) for name, classes in tasks.items()}
