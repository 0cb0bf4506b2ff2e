"""A clip classifier of any family: a backbone that turns a clip into features, and a head that turns them into logits.

`BUILDERS` holds every family; `Video_Models/registry.py` says what each wants to see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.checkpoints import read_weights
from utils.files import sha256_bytes, sha256_file
from Video_Models import c3d, i3d, resnet18, torchvision_video
from Video_Models.backbone import Backbone
from Video_Models.multi_task import TaskHeads
from Video_Models.registry import PRETRAINED, Family, require_family

_HEAD = "head."


class VideoClassifier(nn.Module):
    """A clip classifier for clips of one length.

    Args:
        backbone: its `forward` takes as many frames as its `frame_rule` makes of `num_frames`.
        head: float (B, feature_width) -> logits.
        num_frames: of the clips that it is given.

    Raises:
        ValueError: `num_frames` is not positive.
    """

    frame_index: torch.Tensor

    def __init__(self, backbone: Backbone, head: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_frames = num_frames
        # On the model's device once and for all, but in no checkpoint: it follows from the rule.
        self.register_buffer("frame_index", torch.from_numpy(backbone.frame_rule.repeat(num_frames)), persistent=False)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Logits of a batch.

        Args:
            clip: float (B, 3, T, H, W), normalised.

        Returns:
            float (B, num_classes), or the logits of all tasks side by side.

        Raises:
            ValueError: another number of frames than this network was built for.
        """
        if clip.shape[2] != self.num_frames:
            raise ValueError(f"this network was built for clips of {self.num_frames} frames, not {clip.shape[2]}")
        return self.head(self.backbone(self.repeat_frames(clip)))

    def weight_layers(self) -> list[list[nn.Module]]:
        """For rates that fall from layer to layer: what comes before the blocks, each block, and the head as one."""
        blocks = [list(block.modules()) for block in self.backbone.blocks]
        last = [module for part in (*self.backbone.after_blocks, self.head) for module in part.modules()]
        named = {module for part in (*blocks, last) for module in part}
        stem = [module for module in self.modules() if module not in named]
        return [stem, *blocks, last]

    def repeat_frames(self, clip: torch.Tensor) -> torch.Tensor:
        """The frames that the backbone sees: float (B, 3, T, H, W) -> (B, 3, T', H, W)."""
        if len(self.frame_index) == self.num_frames:
            return clip
        return clip.index_select(2, self.frame_index)


def build_video_classifier(
    num_classes: int,
    weights: str | Path | None = None,
    *,
    family: str,
    num_frames: int,
    image_size: int,
    config: Mapping[str, Any] | None = None,
    adaptation: Mapping[str, Any] | None = None,
    tasks: Mapping[str, int] | None = None,
    adapter_width: int = 64,
    learn_task_weights: bool = False,
    dropout: float = 0.0,
) -> VideoClassifier:
    """A clip classifier, input float (B, 3, T, H, W), normalised as its family (or its weights) wants it.

    Args:
        weights: None for random ones; `pretrained` for the family's published ones; a hub id or a local folder (the
            transformers); or a file: a checkpoint of the family (with its head, where the tasks are the same and all
            shapes fit) or a state dict.
        num_frames, image_size: of the clips, in frames and pixels.
        config: replaces values of the family's architecture, by their names there.
        adaptation: keyword arguments of `Video_Models.adaptation.adapt`; None trains everything.
        tasks: number of classes of each task, in the order of the logits; None is one task of `num_classes`.
        adapter_width, learn_task_weights: of `TaskHeads`.
        dropout: before the last layer.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: an unknown family or option, or a clip that the network cannot take.
    """
    rules = require_family(family)
    backbone = _build_backbone(family, _locate(rules, weights), num_frames, image_size, dict(config or {}))
    if tasks:
        head = TaskHeads(backbone.feature_width, tasks, adapter_width, learn_task_weights, dropout)
    else:
        head = build_head(backbone.feature_width, num_classes, hidden_width=rules.hidden_width, dropout=dropout)
    if weights is not None and Path(weights).is_file():
        _load_head(head, Path(weights), tasks or {})
    model = VideoClassifier(backbone, head, num_frames)
    if adaptation is None:
        return model
    from Video_Models.adaptation import adapt  # peft takes seconds to import

    return adapt(model, **adaptation)


def build_head(feature_width: int, num_classes: int, *, hidden_width: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """One fully connected layer, or two with `hidden_width` between them; dropout before the last."""
    hidden = [nn.Linear(feature_width, hidden_width), nn.ReLU()] if hidden_width else []
    return nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(hidden_width or feature_width, num_classes))


def resolve_config(family: str, weights: str | Path | None, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration that makes the same architecture again without the weights, for a checkpoint's description.

    A transformer's folder or hub model may be of another size than the family's default; its own values count then.

    Raises:
        InputError: the folder or hub model cannot be read, or is another family's.
    """
    rules = require_family(family)
    if not rules.is_on_hub or weights is None:
        return dict(config or {})
    from Video_Models.transformer_weights import published_config

    architecture = import_module(f"Video_Models.{family}").ARCHITECTURE
    return published_config(_locate(rules, weights), architecture) | dict(config or {})


def describe_weights(family: str, weights: str | Path | None) -> str:
    """What a run starts from: `random`, `published:NAME`, or `checkpoint:`, `folder:` and 16 digits of its SHA-256."""
    if weights is None:
        return "random"
    if str(weights) == PRETRAINED:
        return f"published:{require_family(family).pretrained}"
    path = Path(weights)
    if path.is_file():
        return f"checkpoint:{sha256_file(path)[:16]}"
    if path.is_dir():
        files = sorted(path.glob("*.json")) + sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
        return f"folder:{sha256_bytes(' '.join(sha256_file(file) for file in files).encode())[:16]}"
    return f"published:{weights}"


def _locate(rules: Family, weights: str | Path | None) -> str | Path | None:
    """`pretrained` of a family on the hub is its id there; all else is as it is."""
    return rules.pretrained if rules.is_on_hub and str(weights) == PRETRAINED else weights


def _build_backbone(
    family: str, weights: str | Path | None, num_frames: int, image_size: int, config: dict[str, Any]
) -> Backbone:
    try:
        return BUILDERS[family](weights, num_frames=num_frames, image_size=image_size, config=config)
    except (TypeError, IndexError, ZeroDivisionError) as error:
        if not config:
            raise
        raise ValueError(f"config: {config} does not make a network of family {family} ({error})") from error


def _load_head(head: nn.Module, path: Path, tasks: Mapping[str, int]) -> None:
    """From a checkpoint of ours whose head has the same layers for the same tasks; any other head stays random.

    Layers go by position: those of (dark, half) would fit (blurry, grainy). That the classes of a task are the same
    ones is for the trainer to check, which knows their names.
    """
    tensors, description = read_weights(path)
    source_tasks = {} if description is None else description.options.get("tasks") or {}
    if list(source_tasks) != list(tasks):
        return
    state_dict = {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items() if name.startswith(_HEAD)}
    shapes = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if shapes == {name: tensor.shape for name, tensor in state_dict.items()}:
        head.load_state_dict(state_dict)


def _build_transformer(family: str, weights: str | Path | None, **options: Any) -> Backbone:
    """The family's module is imported here: transformers takes seconds that the CNNs need not wait for."""
    return import_module(f"Video_Models.{family}").build_backbone(weights, **options)


BUILDERS: dict[str, Callable[..., Backbone]] = {
    "videomae": partial(_build_transformer, "videomae"),
    "timesformer": partial(_build_transformer, "timesformer"),
    "vivit": partial(_build_transformer, "vivit"),
    "i3d": partial(i3d.build_backbone, family="i3d"),
    "resnet18_3d": partial(i3d.build_backbone, family="resnet18_3d"),
    "resnet50_3d": partial(i3d.build_backbone, family="resnet50_3d"),
    "c3d": c3d.build_backbone,
    "resnet18": resnet18.build_backbone,
    "r3d_18": partial(torchvision_video.build_backbone, family="r3d_18"),
    "r2plus1d_18": partial(torchvision_video.build_backbone, family="r2plus1d_18"),
    "mvit_v2_s": partial(torchvision_video.build_backbone, family="mvit_v2_s"),
    "swin3d_t": partial(torchvision_video.build_backbone, family="swin3d_t"),
    "s3d": partial(torchvision_video.build_backbone, family="s3d"),
}
