"""A transformer's published weights: a folder, the model hub or a file; and one sentence for each way they can lack."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from utils.checkpoints import ModelDescription, load_state, read_description
from utils.errors import InputError
from utils.hub import fetch_snapshot, first_line, is_hub_id
from utils.tensor_files import StateDict
from Video_Models.checkpoint_weights import read_backbone, require_family_of
from Video_Models.registry import FAMILIES, PRETRAINED
from Video_Models.transformer_config import SIZE_KEYS, Architecture, build_config, config_values, input_rules

Channels = tuple[float, float, float]

_HEAD, _NORM_BEFORE_HEAD = "classifier.", "fc_norm."
_LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, SafetensorError)
_SAVED_FILES = ("model.safetensors", "pytorch_model.bin")
_PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
_BYTE_MAX = 255


@dataclass(frozen=True)
class PublishedWeights:
    """Weights as they lie somewhere, by the names of transformers' classifier, without its last layer.

    Attributes:
        config: their architecture, frames and size; None for a state dict that does not say.
        origin: where from, for messages.
    """

    state: StateDict
    config: PreTrainedConfig | None
    origin: str

    @property
    def values(self) -> dict[str, Any]:
        """Their architecture, as `config` of the builder; empty where it is not known."""
        return {} if self.config is None else config_values(self.config)


def published_config(weights: str | Path | None, architecture: Architecture) -> dict[str, Any]:
    """The architecture of published weights, as `config` of the builder; empty for a bare state dict.

    Raises:
        InputError: the weights' configuration cannot be read, or is another family's.
    """
    if weights is None:
        return {}
    weights = find_weights(weights, architecture)
    path = Path(weights)
    if path.is_file():
        description = read_description(path)
        require_family_of(description, architecture.name, path)
        config = _config_of(description, architecture)
        return {} if config is None else config_values(config)
    return config_values(_read_config(_locate(weights, ["config.json"]), architecture, str(weights)))


def read_published(
    weights: str | Path, architecture: Architecture, values: Mapping[str, Any] | None = None
) -> PublishedWeights:
    """Read weights of a family.

    Args:
        weights: `pretrained` (the family's own on the hub), another hub id, a local folder as `save_pretrained` writes
            it (of the classifier, the base model or the pre-training model), or a file: a checkpoint of ours or a state
            dict with the classifier's names.
        values: replace those of the published configuration, as `config` of the builder.

    Raises:
        InputError: they cannot be had, are not complete, or are of another architecture.
    """
    weights = find_weights(weights, architecture)
    path = Path(weights)
    if path.is_file():
        return _read_file(path, architecture)
    if not path.is_dir() and not is_hub_id(str(weights)):
        raise InputError(f"weights: {weights} is no file, no folder and no hub id (owner/name); correct it")
    folder = _locate(weights, ["config.json", "*preprocessor_config.json", "model*.safetensors*"])
    if not path.is_dir() and not any(folder.glob("*.safetensors")):
        folder = _locate(weights, ["config.json", "*preprocessor_config.json", "pytorch_model*.bin*"])
    return _read_folder(folder, architecture, values or {}, str(weights))


def plan_network(
    weights: str | Path | None,
    architecture: Architecture,
    values: Mapping[str, Any] | None,
    *,
    num_frames: int,
    image_size: int,
) -> tuple[PublishedWeights | None, PreTrainedConfig]:
    """What a backbone is built from: the published weights, where some are named, and its configuration.

    Args:
        values: replace those of the published configuration, or of the family's, as `config` of the builder.
        num_frames, image_size: of the clips; more frames are built in where the network's rule asks for them.

    Raises:
        InputError: as `read_published`.
        ValueError: a size or a configuration that the network cannot take.
    """
    published = None if weights is None else read_published(weights, architecture, values)
    values = (published.values if published else {}) | dict(values or {})
    config = build_config(architecture, values, num_frames=num_frames, image_size=image_size)
    frame_rule, size_rule = input_rules(config)
    size_rule.check(image_size)
    config.num_frames = frame_rule.num_repeated(num_frames)
    return published, config


def find_weights(weights: str | Path, architecture: Architecture) -> str | Path:
    """The hub id of `pretrained`, the folder of a file that `save_pretrained` wrote; anything else as it is.

    Such a file may have the names of an older version, which only reading the folder translates.
    """
    if weights == PRETRAINED:
        return FAMILIES[architecture.name].pretrained
    path = Path(weights)
    is_saved_file = path.name.startswith(_SAVED_FILES) and path.is_file() and (path.parent / "config.json").is_file()
    return path.parent if is_saved_file else weights


def published_normalisation(weights: str | Path) -> tuple[Channels, Channels] | None:
    """Mean and standard deviation per RGB channel, of values in 0..1, that published weights were trained with.

    A processor that scales by something else than 1/255, or shifts to -1..1 (ViViT's `offset`), is converted.

    Args:
        weights: a local folder or a hub id.

    Returns:
        None where no preprocessor file lies beside the weights, or it does not say.

    Raises:
        InputError: the hub model cannot be had, or the file cannot be read.
    """
    if Path(weights).is_file():
        return None
    folder = _locate(weights, ["config.json", *_PROCESSOR_FILES])
    path = next((folder / name for name in _PROCESSOR_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        return _normalisation_of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as a preprocessor's settings ({error}); copy it again") from None


def _normalisation_of(processor: Mapping[str, Any]) -> tuple[Channels, Channels] | None:
    """Of x in 0..1 the processor makes (255 * factor * x - offset - mean) / std."""
    is_normalised = processor.get("do_normalize", True)
    mean, std = (processor.get("image_mean"), processor.get("image_std")) if is_normalised else ((0.0,) * 3, (1.0,) * 3)
    if mean is None or std is None or len(mean) != 3 or len(std) != 3:
        return None
    factor = processor.get("rescale_factor", 1 / _BYTE_MAX) if processor.get("do_rescale", True) else 1.0
    scale, offset = _BYTE_MAX * factor, 1.0 if processor.get("offset", False) else 0.0
    return tuple(round((value + offset) / scale, 6) for value in mean), tuple(round(value / scale, 6) for value in std)


def _locate(weights: str | Path, patterns: list[str]) -> Path:
    return Path(weights) if Path(weights).is_dir() else fetch_snapshot("weights", str(weights), patterns)


def _read_config(folder: Path, architecture: Architecture, origin: str) -> PreTrainedConfig:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise InputError(f"weights: {origin} has no readable config.json; give a folder of save_pretrained") from None
    if found != architecture.name:
        raise InputError(f"weights: {origin} holds a network of type {found!r}, not {architecture.name}; correct it")
    try:
        return architecture.config_class.from_pretrained(folder, local_files_only=True)
    except (StrictDataclassError, *_LOAD_ERRORS) as error:
        raise InputError(f"weights: {path} cannot be read ({first_line(error)}); copy it again") from None


def _read_folder(folder: Path, architecture: Architecture, values: Mapping[str, Any], origin: str) -> PublishedWeights:
    published = _read_config(folder, architecture, origin)
    sizes = {key: getattr(published, key) for key in SIZE_KEYS}
    config = build_config(architecture, config_values(published) | dict(values), **sizes)
    try:
        with _quiet_transformers():
            model, loading = architecture.classifier_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that the message below can name one
                output_loading_info=True,
            )
    except _LOAD_ERRORS as error:
        raise InputError(
            f"weights: {origin} is not a complete {architecture.name} network ({first_line(error)}); fetch or copy "
            "the folder again"
        ) from error
    absent = set(loading["missing_keys"]) | {name for name, *_ in loading["mismatched_keys"]}
    if lacking := sorted(name for name in absent if not name.startswith((_HEAD, _NORM_BEFORE_HEAD))):
        raise InputError(
            f"weights: {origin} lacks {len(lacking)} of this {architecture.name} network's tensors or has them in "
            f"another shape, the first is {lacking[0]}; correct config, or fetch or copy the folder again"
        )
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_HEAD)}
    return PublishedWeights(state, config, origin)


def _read_file(path: Path, architecture: Architecture) -> PublishedWeights:
    tensors, description = read_backbone(path, architecture.name)
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}
    return PublishedWeights(state, _config_of(description, architecture), str(path))


def _config_of(description: ModelDescription | None, architecture: Architecture) -> PreTrainedConfig | None:
    if description is None:
        return None
    options = description.options
    return build_config(
        architecture, options.get("config"), num_frames=options["num_frames"], image_size=options["image_size"]
    )


def load_published(backbone: nn.Module, state: StateDict, origin: str) -> None:
    """`load_state` with the keys that a transformer's shapes follow from."""
    load_state(backbone, state, f"weights: {origin}", check="family, config, num_frames and image_size")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its report of a head that is not taken, and without a bar for reading a file."""
    verbosity, has_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bar:
            transformers_logging.enable_progress_bar()
