"""The 2-D network: torchvision's VGG-11 with BatchNorm and a head for our classes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn
from torchvision.models import VGG, VGG11_BN_Weights, vgg11_bn
from torchvision.models.vgg import cfgs, make_layers

from utils.checkpoints import StateDict, load_state, read_weights
from utils.errors import InputError
from utils.pooling import RepeatableAdaptiveAvgPool2d
from utils.published_weights import read_published_weights

log = logging.getLogger(__name__)
PAPER_CLASSIFIER_WIDTH = 4096


def build_vgg11(
    num_classes: int,
    weights: str | Path | None = None,
    *,
    classifier_width: int = PAPER_CLASSIFIER_WIDTH,
    dropout: float = 0.5,
) -> VGG:
    """VGG-11 with BatchNorm (Simonyan & Zisserman 2015, configuration A), input float (B, 3, H, W), normalised.

    With 10 classes and the paper's width it has 128,812,810 parameters. State-dict names are torchvision's.

    Args:
        weights: `imagenet` (the last layer stays random; with a narrower classifier all of it), a checkpoint's path
            (layers that do not fit this head stay random), or None for random weights.
        classifier_width: width of the two hidden classifier layers; 4096 is the paper's.

    Raises:
        InputError: the weights cannot be had or do not fit.
    """
    model = _build_random(num_classes, classifier_width, dropout)
    if weights is None:
        return model
    if weights == "imagenet":
        published = read_published_weights(VGG11_BN_Weights.IMAGENET1K_V1.url, "weights: imagenet")
        _load_all_but_head(model, published, Path("the ImageNet weights"))
    else:
        _load_all_but_head(model, read_weights(Path(weights))[0], Path(weights))
    return model


def _build_random(num_classes: int, classifier_width: int, dropout: float) -> VGG:
    with torch.device("meta"):  # torchvision's own 4096-wide classifier would cost 0.5 GB only to be replaced
        model = vgg11_bn(init_weights=False)
    model.features = make_layers(cfgs["A"], batch_norm=True)
    model.avgpool = RepeatableAdaptiveAvgPool2d((7, 7))
    model.classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, classifier_width),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(classifier_width, classifier_width),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(classifier_width, num_classes),
    )
    for module in model.modules():
        _initialise(module)
    return model


def _initialise(module: nn.Module) -> None:
    """The initialisation of torchvision's VGG."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)


def _load_all_but_head(model: VGG, state_dict: StateDict, path: Path) -> None:
    """Load features strictly; classifier layers only where they fit, and the head only with the same class count."""
    own = model.state_dict()
    merged = dict(state_dict)
    for name, tensor in own.items():
        is_classifier = name.startswith("classifier.")
        if is_classifier and name in merged and merged[name].shape != tensor.shape:
            merged[name] = tensor
    if random := [name for name, tensor in merged.items() if tensor is own.get(name)]:
        log.info("%s does not fit %s, which stay random", path, ", ".join(random))
    if any(tensor.dim() == 5 for tensor in state_dict.values()):
        raise InputError(f"{path}: holds 3-D kernels; give the checkpoint of a 2-D VGG-11")
    load_state(model, merged, path)
