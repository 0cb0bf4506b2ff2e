"""Checkpoints: weights that describe themselves and prove that they are whole; the paper's `.pth.tar`; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from utils.errors import InputError
from utils.files import atomic_path, sha256_file
from utils.indices import ClassInfo, require_same_classes
from utils.settings import TrainingSettings
from utils.sidecar import BEST_FILE, read_sidecar, require_recorded
from utils.tensor_files import (
    HashingWriter,
    StateDict,
    compute_sha256,
    is_torch_file,
    load_torch,
    open_hashing,
    open_safetensors,
    write_safetensors,
)

_DESCRIPTION_KEY, _SHA256_KEY = "description", "sha256"


@dataclass(frozen=True)
class ModelDescription:
    """What a weights file says of itself.

    Attributes:
        type: `baseline`, `inflated` or `video`.
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
        start: `random`, `imagenet`, `published:` and their name, or `checkpoint:` or `folder:` and the first 16 digits
            of that file's or those files' SHA-256.
        trained_on: kind of input, SHA-256 over the items' ids and of the hold-out (or None), num_items, is_paired.
        selected_on: split and num_items of what chose this epoch.
        protocol_values: what the protocol sets, as it was in this run.
        update: optimizer steps up to here.
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
    start: str = "random"
    trained_on: dict[str, Any] = field(default_factory=dict)
    selected_on: dict[str, Any] = field(default_factory=dict)
    protocol_values: dict[str, Any] = field(default_factory=dict)
    update: int = 0

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """The inverse of `to_json`; raises KeyError, TypeError or ValueError on anything else."""
        content = json.loads(text)
        classes = tuple(ClassInfo(**item) for item in content.pop("classes"))
        content["input"]["image_size"]  # every input has one
        if missing := {item.name for item in fields(cls)} - content.keys() - {"classes"}:
            raise KeyError(f"it lacks {', '.join(sorted(missing))}")
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
    trained_on: dict[str, Any] | None = None,
    selected_on: dict[str, Any] | None = None,
    start: str | None = None,
) -> ModelDescription:
    """What a training run's weights will say of themselves; epoch, update and metric follow when they are written.

    Args:
        form: the description's `input`.
        selected_on: None where the reported split chooses the epoch.
        start: None is what `settings.weights` names.
    """
    selected_on = selected_on or {"split": "val"}
    return ModelDescription(
        type=model_type,
        options=options,
        classes=classes,
        input=form,
        mean=settings.mean,
        std=settings.std,
        train_input=train_input,
        protocol=settings.protocol_label,
        seed=settings.seed,
        selection_split=selected_on["split"],
        epoch=0,
        metric={},
        start=describe_start(settings.weights) if start is None else start,
        trained_on=trained_on or {},
        selected_on=selected_on,
        protocol_values=dict(settings.protocol_values),
    )


def describe_start(weights: str) -> str:
    """What a run starts from: `random`, `imagenet`, or `checkpoint:` and 16 digits of the file's SHA-256."""
    named = {"none": "random", "imagenet": "imagenet"}
    return named.get(weights) or f"checkpoint:{sha256_file(Path(weights))[:16]}"


def require_start_classes(
    settings: TrainingSettings, classes: tuple[ClassInfo, ...], index_path: Path, form: Mapping[str, Any]
) -> None:
    """Refuse to start from weights of as many, but other classes; another number only means a new head.

    Args:
        form: the run's, whose `tasks` are compared where both have several: their classes are only combinations.

    Raises:
        InputError: naming the first label that differs.
    """
    if not settings.starts_from_file or (source := read_description(Path(settings.weights))) is None:
        return
    ours, theirs = form.get("tasks", {}), source.input.get("tasks", {})
    if not ours and not theirs and len(source.classes) == len(classes):
        require_same_classes(source.classes, settings.weights, classes, str(index_path))
    for task in ours.keys() & theirs.keys():
        sides = [tuple(ClassInfo(**one) for one in tasks[task]) for tasks in (theirs, ours)]
        if len(sides[0]) == len(sides[1]):
            require_same_classes(sides[0], f"task {task} of {settings.weights}", sides[1], str(index_path))


def write_weights(path: Path, state_dict: StateDict, description: ModelDescription) -> None:
    """Write weights as safetensors with their description and SHA-256, atomically."""
    with atomic_path(path) as partial, open_hashing(partial, path) as file:
        save_weights(file, state_dict, description)


def save_weights(file: HashingWriter, state_dict: StateDict, description: ModelDescription) -> None:
    """Write into an open file what `read_weights` reads."""
    text = description.to_json()
    metadata = {_DESCRIPTION_KEY: text, _SHA256_KEY: compute_sha256(text, state_dict)}
    write_safetensors(file, state_dict, metadata)


def read_weights(path: Path) -> tuple[StateDict, ModelDescription | None]:
    """Read weights: ours (safetensors), a torch state dict, or the paper's `model_best.pth.tar`.

    Ours are whole, or refused: every bit that matters is under the file's own SHA-256. Where a run's sidecar lies
    beside them, they are that run's, too.

    Returns:
        the state dict on the CPU, and the description (None for files that are not ours).

    Raises:
        InputError: no such file, truncated, damaged, swapped, not a checkpoint, or one that would run code.
    """
    if path.name == BEST_FILE and (accepted := read_sidecar(path.parent)) is not None:
        require_recorded(path, accepted, is_whole_weights)
    _require_file(path)
    return _read_unrecorded(path)


def verify_weights(path: Path) -> ModelDescription | None:
    """Check all of a weights file, before anything expensive starts; returns what it says of itself.

    Raises:
        InputError: as `read_weights`.
    """
    return read_weights(path)[1]


def is_whole_weights(path: Path) -> bool:
    """Whether a file can be read as weights, of whatever run."""
    try:
        _read_unrecorded(path)
    except InputError:
        return False
    return True


def read_description(path: Path) -> ModelDescription | None:
    """What a weights file says of itself, without reading its tensors; None for files that are not ours.

    Raises:
        InputError: no such file, truncated, or not a checkpoint.
    """
    _require_file(path)
    if is_torch_file(path):
        return None
    with open_safetensors(path) as file:
        return _description_of(file.metadata() or {}, path)


def _read_unrecorded(path: Path) -> tuple[StateDict, ModelDescription | None]:
    if is_torch_file(path):
        return _state_dict_of(load_torch(path), path), None
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        description = _description_of(metadata, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if description is not None and compute_sha256(metadata[_DESCRIPTION_KEY], tensors) != metadata[_SHA256_KEY]:
        raise InputError(f"{path}: is damaged (its SHA-256 differs); restore it or train again")
    return tensors, description


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: there is no checkpoint; train the model first, or correct the path")


def _description_of(metadata: dict[str, str], path: Path) -> ModelDescription | None:
    if not {_DESCRIPTION_KEY, _SHA256_KEY} & metadata.keys():
        return None
    try:
        description = ModelDescription.from_json(metadata[_DESCRIPTION_KEY])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its description cannot be read ({error}); train again with this version") from None
    if _SHA256_KEY not in metadata:
        raise InputError(f"{path}: has no SHA-256 (an older version wrote it); train again with this version")
    return description


def load_state(
    model: torch.nn.Module,
    state_dict: StateDict,
    origin: Path | str,
    *,
    check: str = "type, num_classes and classifier_width",
) -> None:
    """Load weights into a model.

    Args:
        origin: names the weights in the error.
        check: the keys that a reader should look at when they do not fit.

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
        raise InputError(f"{origin}: does not fit this {type(model).__name__} ({problems[0]}{more}); check {check}")
    model.load_state_dict(state_dict)


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
