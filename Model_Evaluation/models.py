"""From a checkpoint to a model ready to be scored, with what the tables say of it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.arms import SUBJECT_ROW
from Model_Evaluation.settings import DataSettings
from utils.checkpoints import ModelDescription, StateDict, load_state, read_description, read_weights
from utils.errors import InputError
from utils.frame_sampling import FrameSampling
from utils.indices import ClassInfo
from utils.runs import flatten
from utils.settings import IMAGENET_MEAN, IMAGENET_STD

PAPER_BUILDERS: dict[str, Callable[..., nn.Module]] = {"baseline": build_vgg11, "inflated": build_vgg11_3d}
MODEL_NAMES = {"baseline": "vgg11_bn", "inflated": "vgg11_bn_3d"}
UNKNOWN = "unknown"
_PREFIXES = {"baseline": "2d", "inflated": "3d"}


@dataclass(frozen=True)
class InputFormat:
    """What a model wants to see.

    Attributes:
        image_size: side in pixels.
        num_frames: of a clip; None for images.
        mean, std: normalisation per RGB channel, of values in 0..1.
        sampling: how its frames are taken from a longer video; None wants clips of just so many frames.
        sampling_name: what tables call a sampling other than the training's, `dense5x2`; empty for the training's.
        tasks: the classes of each task, in the order of the logits; empty where there is one task.
    """

    image_size: int
    num_frames: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sampling: FrameSampling | None = None
    sampling_name: str = ""
    tasks: dict[str, tuple[ClassInfo, ...]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one item: (3, H, W) or (3, T, H, W)."""
        size = (self.image_size, self.image_size)
        return (3, *size) if self.num_frames is None else (3, self.num_frames, *size)


def describe_input(model_type: str, checkpoint: Path, data: DataSettings) -> InputFormat:
    """The input format: what the checkpoint says; the settings fill in for files that say nothing.

    Raises:
        InputError: the checkpoint is of another type, or the settings contradict it.
    """
    described = read_description(checkpoint)
    if described is None and model_type == "video":
        raise InputError(f"{checkpoint}: does not say which network it is of; give a model_best.safetensors")
    given = {"image_size": data.image_size, "num_frames": data.num_frames, "mean": data.mean, "std": data.std}
    if described is None:
        recorded = {"image_size": 224, "num_frames": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        values = {key: recorded[key] if value is None else value for key, value in given.items()}
    else:
        if described.type != model_type:
            raise InputError(f"{checkpoint}: is a {described.type!r} checkpoint, not {model_type!r}; correct its type")
        values = {**described.input, "mean": described.mean, "std": described.std}
        _refuse_contradictions(given, values, checkpoint)
    num_frames = None if model_type == "baseline" else values["num_frames"]
    size = (values["image_size"], num_frames, tuple(values["mean"]), tuple(values["std"]))
    tasks = {name: tuple(ClassInfo(**one) for one in classes) for name, classes in values.get("tasks", {}).items()}
    return InputFormat(*size, *_sampling_of(values, data), tasks)


def load_model(model_type: str, checkpoint: Path, task: str | None = None) -> tuple[nn.Module, ModelDescription | None]:
    """Build the network that a checkpoint was made by, in eval mode, with its weights.

    Args:
        task: of a network of several: the one whose logits it gives.

    Raises:
        InputError: not a checkpoint of this type.
    """
    if model_type == "video":
        from Video_Models.loading import load_video_classifier  # transformers and peft take seconds to import

        model, described = load_video_classifier(checkpoint)
        return (model if task is None else OneTask(model, described.options["tasks"], task)).eval(), described
    state_dict, described = read_weights(checkpoint)
    builder = PAPER_BUILDERS[model_type]
    options = _options_of(state_dict, described, checkpoint)
    if unknown := sorted(options.keys() - inspect.signature(builder).parameters.keys()):
        raise InputError(f"{checkpoint}: its description has the unknown option {unknown[0]!r}; train again")
    model = builder(**options)
    load_state(model, state_dict, checkpoint)
    return model.eval(), described


class OneTask(nn.Module):
    """A network of several tasks that answers for one.

    Args:
        tasks: number of classes by name, in the order of the logits.
    """

    def __init__(self, network: nn.Module, tasks: dict[str, int], task: str) -> None:
        super().__init__()
        self.network = network
        names = list(tasks)
        start = sum(tasks[name] for name in names[: names.index(task)])
        self._columns = slice(start, start + tasks[task])

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, T, H, W) -> the task's logits, float (B, num_classes)."""
        return self.network(clip)[:, self._columns]


def run_columns(
    described: ModelDescription | None,
    model_type: str,
    *,
    arm: str | None,
    test_input: str,
    num_frames: int,
    split: str,
    run_id: str,
) -> dict[str, Any]:
    """The columns that every row of a run carries in every table.

    Args:
        num_frames: of what it is scored on; what it was trained on, where it was on clips, goes before.
    """
    train_input = described.train_input if described else UNKNOWN
    family = described.options["family"] if model_type == "video" else ""
    trained_on = train_input.removeprefix("clip:").split(":")[0]  # first_frame:svd: 2d_first_frame
    return {
        "run_id": run_id,
        "protocol": described.protocol if described else UNKNOWN,
        "arm": arm or f"{_PREFIXES.get(model_type, family)}_{trained_on}",
        "model": family or MODEL_NAMES[model_type],
        "start_weights": described.start if described else UNKNOWN,
        "train_input": train_input,
        "test_input": test_input,
        "split": split,
        "selection_split": described.selection_split if described else UNKNOWN,
        "num_frames": _trained_frames(described) or num_frames,
        "seed": described.seed if described else None,
    }


def _trained_frames(described: ModelDescription | None) -> int | None:
    """Frames of a clip that a network was trained on, or on frames of; None where it was on images."""
    if described is None or described.train_input == "original":
        return None
    return described.input.get("num_frames") or described.protocol_values.get("num_frames")


def protocol_rows(described: ModelDescription | None, run_id: str, subject: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of `protocol_values.csv`: what the protocol set in this run; none where the checkpoint does not say.

    Args:
        subject: keys that the comparison of this run with others is about; a row of its own lists them.
    """
    values = flatten(described.protocol_values) if described else {}
    values |= {SUBJECT_ROW: " ".join(subject)} if values and subject else {}
    return [{"run_id": run_id, "key": key, "value": _as_text(value)} for key, value in sorted(values.items())]


def named_classes(index_classes: tuple[ClassInfo, ...], described: ModelDescription | None) -> tuple[ClassInfo, ...]:
    """Class names from the index, or from the checkpoint where the index has none (two published columns)."""
    if described is not None and not any(item.wnid for item in index_classes):
        return described.classes
    return index_classes


def scored_classes(described: ModelDescription, form: InputFormat, task: str | None) -> tuple[ClassInfo, ...]:
    """What the logits are of: the network's classes, or one task's."""
    return described.classes if task is None else form.tasks[task]


def require_task(form: InputFormat, task: str | None, checkpoint: Path) -> None:
    """Make sure that a network of several tasks is scored on one of them, and one of a single task on that.

    Raises:
        InputError: with the known ones.
    """
    tasks, known = form.tasks, ", ".join(form.tasks)
    if tasks and task is None:
        raise InputError(f"data.task: is missing, but {checkpoint} has several; choose one of {known}")
    if task is not None and task not in tasks:
        remedy = f"known: {known}" if tasks else "it has one task only: drop the key"
        raise InputError(f"data.task: {checkpoint} has no task {task!r}; {remedy}")


def _sampling_of(values: dict[str, Any], data: DataSettings) -> tuple[FrameSampling | None, str]:
    """The sampling, and what tables call it where it is not the training's."""
    if "sampling" not in values:
        return None, ""
    recorded = FrameSampling(**values["sampling"])
    chosen = recorded if data.frame_sampling is None else data.frame_sampling.of(recorded.num_frames)
    if chosen == recorded:
        return recorded, ""
    counts = {"uniform": "", "random": f"{chosen.num_clips}", "dense": f"{chosen.num_clips}x{chosen.frame_interval}"}
    return chosen, chosen.method + counts[chosen.method]


def _as_text(value: Any) -> str:
    """As YAML would have it: `true`, `null`, `[0.5, 0.5]`."""
    return json.dumps(value) if isinstance(value, bool | list | type(None)) else str(value)


def _options_of(state_dict: StateDict, described: ModelDescription | None, checkpoint: Path) -> dict[str, Any]:
    if described is not None:
        return {"num_classes": len(described.classes), **described.options}
    try:
        width, num_classes = len(state_dict["classifier.0.weight"]), len(state_dict["classifier.6.weight"])
    except (KeyError, TypeError):
        raise InputError(
            f"{checkpoint}: is no VGG-11 checkpoint (no classifier.0.weight); give the right file"
        ) from None
    return {"num_classes": num_classes, "classifier_width": width}


def _refuse_contradictions(given: dict[str, Any], recorded: dict[str, Any], checkpoint: Path) -> None:
    for key, value in given.items():
        known = recorded.get(key)
        if value is None or known is None:
            continue
        same = torch.allclose(torch.tensor(value, dtype=torch.float64), torch.tensor(known, dtype=torch.float64))
        if not same:
            raise InputError(
                f"data.{key}: is {value}, but {checkpoint} was trained with {known}; drop the key or use that value"
            )
