"""Weights of the CNNs, published or from a file, into a network without its head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torchvision.models import get_weight

from utils.checkpoints import load_state
from utils.errors import InputError
from utils.published_weights import read_published_weights
from utils.tensor_files import StateDict
from Video_Models.checkpoint_weights import read_backbone
from Video_Models.registry import FAMILIES, PRETRAINED


def read_torchvision_weights(weights: str | Path, family: str) -> tuple[StateDict, Path]:
    """The state dict that `weights` names, in torchvision's names, and what to call it in errors.

    Args:
        weights: `pretrained`; or a file: a checkpoint of this family, or a state dict in torchvision's names.

    Raises:
        InputError: nothing is published, the weights cannot be had or read, or they are another family's.
    """
    if str(weights) == PRETRAINED:
        return _read_published(family)
    path = Path(weights)
    if not path.is_file():
        raise InputError(
            f"weights: {str(weights)!r} is no file, and {family} is not on the model hub; give a checkpoint or a state "
            "dict, or set pretrained or none"
        )
    state_dict, _ = read_backbone(path, family)
    return {name.removeprefix("network."): tensor for name, tensor in state_dict.items()}, path


def load_network(network: nn.Module, state_dict: StateDict, path: Path, *, head_names: Sequence[str]) -> None:
    """Load all but the head, in place.

    Args:
        head_names: first parts of the names of the file's head and auxiliary outputs, e.g. `fc`.

    Raises:
        InputError: anything else is missing, unknown or of another shape.
    """
    kept = {name: tensor for name, tensor in state_dict.items() if name.split(".")[0] not in head_names}
    # Files older than torch 0.4.1 do not count batches; only BatchNorm with momentum None would use the number.
    counters = {name: tensor for name, tensor in network.state_dict().items() if name.endswith("num_batches_tracked")}
    load_state(network, counters | kept, path, check="weights, family and config")


def _read_published(family: str) -> tuple[StateDict, Path]:
    published = FAMILIES[family].pretrained
    if not published:
        raise InputError(f"weights: pretrained: none are published for {family}; give a file, or set weights: none")
    url = get_weight(published).url
    return read_published_weights(url, f"weights: pretrained ({published})"), Path(url.rsplit("/", 1)[-1])
