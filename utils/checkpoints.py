"""Checkpoints: self-describing safetensors weights, resumable state, the paper's `.pth.tar`; no pickle ever runs."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from utils.errors import InputError
from utils.files import atomic_path, write_bytes
from utils.indices import ClassInfo, require_same_classes
from utils.settings import TrainingSettings

_METADATA_KEY = "description"
StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ModelDescription:
    """What a weights file says of itself.

    Attributes:
        type: `baseline` or `inflated`.
        options: keyword arguments of the builder (classifier_width, ...).
        classes: in label order.
        input: kind of input (`image` or `clip`), image_size in pixels, num_frames.
        mean, std: normalisation per RGB channel, of values in 0..1.
        train_input: what it was trained on, e.g. `original`, or the clip generator's name.
        protocol: `paper` or another protocol's name.
        seed: the run's seed.
        selection_split: the split on which this epoch was the best.
        epoch: 1-based.
        metric: name and value of what was compared.
    """

    type: str
    options: dict[str, Any]
    classes: tuple[ClassInfo, ...]
    input: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_input: str
    protocol: str
    seed: int
    selection_split: str
    epoch: int
    metric: dict[str, float | str]

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """The inverse of `to_json`; raises KeyError, TypeError or ValueError on anything else."""
        content = json.loads(text)
        classes = tuple(ClassInfo(**item) for item in content.pop("classes"))
        content["input"]["image_size"]  # every input has one
        mean, std = tuple(content.pop("mean")), tuple(content.pop("std"))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("mean and std must have three numbers")
        return cls(classes=classes, mean=mean, std=std, **content)


def describe_run(
    settings: TrainingSettings,
    model_type: str,
    options: dict[str, Any],
    classes: tuple[ClassInfo, ...],
    form: dict[str, Any],
    *,
    train_input: str,
) -> ModelDescription:
    """What a training run's weights will say of themselves; epoch and metric follow when they are written."""
    return ModelDescription(
        type=model_type,
        options=options,
        classes=classes,
        input=form,
        mean=settings.mean,
        std=settings.std,
        train_input=train_input,
        protocol=settings.protocol,
        seed=settings.seed,
        selection_split="val",
        epoch=0,
        metric={},
    )


def require_start_classes(settings: TrainingSettings, classes: tuple[ClassInfo, ...], index_path: Path) -> None:
    """Refuse to start from weights of as many, but other classes; another number only means a new head.

    Raises:
        InputError: naming the first label that differs.
    """
    if not settings.starts_from_file or (source := read_description(Path(settings.weights))) is None:
        return
    if len(source.classes) == len(classes):
        require_same_classes(source.classes, settings.weights, classes, str(index_path))


def write_weights(path: Path, state_dict: StateDict, description: ModelDescription) -> None:
    """Write weights as safetensors with their description, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    # Bytes first: safetensors' own writer reports a full disk as an error of another type, without the file's name.
    write_bytes(path, safetensors.torch.save(tensors, metadata={_METADATA_KEY: description.to_json()}))


def read_weights(path: Path) -> tuple[StateDict, ModelDescription | None]:
    """Read weights: ours (safetensors), a torch state dict, or the paper's `model_best.pth.tar`.

    Returns:
        the state dict on the CPU, and the description (None for files that are not ours).

    Raises:
        InputError: no such file, truncated, not a checkpoint, or one that would run code.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no checkpoint; train the model first, or correct the path")
    if _is_torch_file(path):
        return _state_dict_of(_load_torch(path), path), None
    with _open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return tensors, _description_of(file, path)


def read_description(path: Path) -> ModelDescription | None:
    """What a weights file says of itself, without reading its tensors; None for files that are not ours.

    Raises:
        InputError: as `read_weights`.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no checkpoint; train the model first, or correct the path")
    if _is_torch_file(path):
        return None
    with _open_safetensors(path) as file:
        return _description_of(file, path)


def write_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write everything that resume needs, atomically; the previous file stays until the new one is whole."""
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        # torch hides a full disk behind an error of its own while it closes the archive.
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from None
        raise


def read_training_state(path: Path) -> dict[str, Any]:
    """Read what `write_training_state` wrote; tensors and plain values only.

    Raises:
        InputError: truncated, or not a training state.
    """
    state = _load_torch(path)
    if not isinstance(state, dict) or not {"model", "optimizer", "epoch"} <= state.keys():
        raise InputError(f"{path}: is not a training state of this project; remove it, or pass overwrite=true")
    return state


def load_state(model: torch.nn.Module, state_dict: StateDict, path: Path) -> None:
    """Load weights into a model.

    Raises:
        InputError: names or shapes differ, with the first of them.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state_dict]
    problems += [f"{name} is unknown" for name in state_dict if name not in own]
    problems += [
        f"{name} is {tuple(state_dict[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state_dict and state_dict[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(
            f"{path}: does not fit this {type(model).__name__} ({problems[0]}{more}); check type, num_classes and "
            "classifier_width"
        )
    model.load_state_dict(state_dict)


def _is_torch_file(path: Path) -> bool:
    return _is_zip(path) or path.suffix in (".pth", ".pt", ".tar")


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # Python 3.11 raises on a damaged end record
        return True


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: is truncated or not a checkpoint ({error}); restore it or train again") from None


def _description_of(file: Any, path: Path) -> ModelDescription | None:
    metadata = file.metadata() or {}
    if _METADATA_KEY not in metadata:
        return None
    try:
        return ModelDescription.from_json(metadata[_METADATA_KEY])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its description cannot be read ({error}); train again with this version") from None


# What torch.load has been seen to raise on truncated and damaged files.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError)
_DAMAGE += (struct.error, zipfile.BadZipFile)


def _load_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # given a name, torch goes by its ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_zip(path):
            raise InputError(
                f"{path}: holds Python objects that could run code, and was not loaded; save tensors and plain "
                "values only"
            ) from None
        raise InputError(f"{path}: is truncated or not a checkpoint ({_first_line(error)}); restore it") from None
    except _DAMAGE as error:
        raise InputError(f"{path}: is truncated or not a checkpoint ({_first_line(error)}); restore it") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _state_dict_of(content: Any, path: Path) -> StateDict:
    """A bare state dict, or the paper's {epoch, state_dict, best_acc, optimizer}; its 3-D names become ours."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise InputError(f"{path}: holds no state dict; give a torch state dict, model_best.pth.tar or our safetensors")
    renamed = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return {
        f"features.{name.removeprefix('features3d.')}" if name.startswith("features3d.") else name: tensor
        for name, tensor in renamed.items()
    }
