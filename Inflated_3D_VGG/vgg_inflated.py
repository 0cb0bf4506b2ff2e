"""Inflation: a 2-D CNN becomes a 3-D one that sees clips and starts from the 2-D weights.

Written for torchvision's CNNs at large: modules are replaced wherever they are nested, and functional calls that only
know two dimensions (in DenseNet, MobileNetV2, ...) are replaced through torch.fx. Time is never strided or pooled away
before the end, because clips may have three frames.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import fx, nn
from torch.nn import functional
from torchvision.models.shufflenetv2 import channel_shuffle

from Baseline_VGG.vgg_baseline import PAPER_CLASSIFIER_WIDTH, build_vgg11
from utils.frames_as_batch import use_frames_as_batch

Init = Literal["center", "average"]
TemporalPadding = Literal["zeros", "replicate"]
TemporalConv = Literal["four_product", "conv3d"]


class TemporalReplicateConv3d(nn.Conv3d):
    """A Conv3d that pads time with copies of the first and last frame, and space with zeros.

    torch's `padding_mode="replicate"` would change the spatial border, too, and with it the 2-D features.
    """

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Float (B, C, T, H, W) -> float (B, C', T, H', W')."""
        frames, height, width = self.padding
        clip = functional.pad(clip, (0, 0, 0, 0, frames, frames), mode="replicate")
        return functional.conv3d(
            clip, self.weight, self.bias, self.stride, (0, height, width), self.dilation, self.groups
        )


def inflate(
    model_2d: nn.Module,
    *,
    temporal_kernel: int | Literal["spatial"] = 3,
    init: Init = "center",
    temporal_padding: TemporalPadding = "zeros",
    copy_bn_stats: bool = True,
) -> nn.Module:
    """A 3-D copy of a 2-D CNN: input float (B, C, T, H, W), the same outputs, no tensor shared with the original.

    k x k convolutions (k > 1) become `temporal_kernel` x k x k; 1 x 1 ones stay pointwise; pooling stays spatial, but a
    global or adaptive average also averages over time. State-dict names stay those of the 2-D network.

    Args:
        temporal_kernel: odd, so that one slice is the centre; or `spatial`: each convolution's own size, k x k x k
            (Carreira & Zisserman 2017), for networks whose kernels are square and odd.
        init: `center` puts the 2-D kernel on the centre slice and zeros elsewhere; `average` puts kernel / n on all n
            slices (Carreira & Zisserman 2017, section 2.1). On a static clip the first equals the 2-D network under any
            temporal padding, the second only under `replicate`.
        temporal_padding: `zeros` as in Conv3d, or `replicate`.
        copy_bn_stats: False resets BatchNorm's running statistics, as the published code did.

    Raises:
        ValueError: an even kernel, an unknown option, or a layer without a 3-D counterpart.
    """
    if temporal_kernel != "spatial":
        _require_odd(temporal_kernel)
    if init not in ("center", "average"):
        raise ValueError(f"unknown init {init!r}; known: average, center")
    if temporal_padding not in ("zeros", "replicate"):
        raise ValueError(f"unknown temporal_padding {temporal_padding!r}; known: replicate, zeros")

    def convert(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.Conv2d):
            num_frames = _spatial_kernel(module) if temporal_kernel == "spatial" else temporal_kernel
            return inflate_conv(module, num_frames, init=init, temporal_padding=temporal_padding)
        if isinstance(module, nn.BatchNorm2d):
            return inflate_batch_norm(module, copy_stats=copy_bn_stats)
        return _inflate_other(module)

    model_3d = _replace_modules(copy.deepcopy(model_2d), convert)
    return _replace_functional_calls(model_3d)


def inflate_conv(
    conv: nn.Conv2d, num_frames: int, *, init: Init = "center", temporal_padding: TemporalPadding = "zeros"
) -> nn.Conv3d:
    """Turn a 2-D convolution into a 3-D one that sees `num_frames` frames; stride, groups and dilation are kept.

    Args:
        num_frames: temporal kernel size; a 1 x 1 convolution stays 1 x 1 x 1.

    Raises:
        ValueError: a spatial padding mode other than zeros.
    """
    if conv.padding_mode != "zeros":
        raise ValueError(f"cannot inflate Conv2d with padding_mode={conv.padding_mode!r}")
    num_frames = 1 if conv.kernel_size == (1, 1) else num_frames
    conv_class = TemporalReplicateConv3d if temporal_padding == "replicate" and num_frames > 1 else nn.Conv3d
    conv_3d = conv_class(
        conv.in_channels,
        conv.out_channels,
        (num_frames, *conv.kernel_size),
        stride=(1, *conv.stride),
        padding=(num_frames // 2, *_spatial_padding(conv)),
        dilation=(1, *conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        if init == "average":
            conv_3d.weight.copy_(conv.weight[:, :, None] / num_frames)  # [O, C, h, w] -> [O, C, T, h, w]
        else:
            conv_3d.weight.zero_()
            conv_3d.weight[:, :, num_frames // 2] = conv.weight
        if conv.bias is not None:
            conv_3d.bias.copy_(conv.bias)
    return _keep_training_flags(conv, conv_3d)


def inflate_batch_norm(norm: nn.BatchNorm2d, *, copy_stats: bool = True) -> nn.BatchNorm3d:
    """Turn BatchNorm2d into BatchNorm3d with the same weights and, by default, running statistics."""
    tensor = next((t for t in norm.state_dict().values() if t.is_floating_point()), torch.zeros(0))
    norm_3d = nn.BatchNorm3d(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        device=tensor.device,
        dtype=tensor.dtype,
    )
    own = norm_3d.state_dict()
    copied = {name: value for name, value in norm.state_dict().items() if copy_stats or name in ("weight", "bias")}
    norm_3d.load_state_dict(own | copied)
    return _keep_training_flags(norm, norm_3d)


def build_vgg11_3d(
    num_classes: int,
    weights: str | Path | None = None,
    *,
    classifier_width: int = PAPER_CLASSIFIER_WIDTH,
    dropout: float = 0.5,
    init: Init = "center",
    temporal_padding: TemporalPadding = "zeros",
    copy_bn_stats: bool = True,
    temporal_conv: TemporalConv = "four_product",
) -> nn.Module:
    """The inflated VGG-11: input float (B, 3, T, H, W), normalised; 147,248,266 parameters with the paper's 10 classes.

    Args:
        weights: of the 2-D network it is inflated from: `imagenet`, a 2-D checkpoint's path, or None for random.
        temporal_conv: `four_product` runs clips of three frames on 2-D kernels with 45 % of the multiplications, see
            `utils.frames_as_batch`: in float32 the same result, in bfloat16 with up to 1.8 times Conv3d's rounding.
            Other clips, and all with replicated frames, run as with `conv3d`. Parameters and state dict are the same.

    Raises:
        InputError: the weights cannot be had or do not fit.
        ValueError: an unknown option.
    """
    if temporal_conv not in ("four_product", "conv3d"):
        raise ValueError(f"unknown temporal_conv {temporal_conv!r}; known: conv3d, four_product")
    model_2d = build_vgg11(num_classes, weights, classifier_width=classifier_width, dropout=dropout)
    model = inflate(model_2d, init=init, temporal_padding=temporal_padding, copy_bn_stats=copy_bn_stats)
    if temporal_conv == "four_product" and temporal_padding == "zeros":
        use_frames_as_batch(model)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Modules


def _replace_modules(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Convert every 2-D layer below `module`; a layer used twice is converted once and stays shared."""
    converted: dict[nn.Module, nn.Module] = {}

    def visit(node: nn.Module) -> nn.Module:
        if node not in converted:
            converted[node] = convert(node)
            # Not named_children(): it leaves out a layer's second place.
            for name, child in list(converted[node]._modules.items()):
                if child is not None:
                    setattr(converted[node], name, visit(child))
        return converted[node]

    return visit(module)


def _inflate_other(module: nn.Module) -> nn.Module:
    """Pooling and dropout layers to their 3-D counterparts, everything without a spatial shape as it is."""
    if isinstance(module, nn.MaxPool2d):
        pair = (module.kernel_size, module.stride, module.padding, module.dilation)
        kernel, stride, padding, dilation = (_pair(value) for value in pair)
        return nn.MaxPool3d(
            (1, *kernel), (1, *stride), (0, *padding), (1, *dilation), module.return_indices, module.ceil_mode
        )
    if isinstance(module, nn.AvgPool2d):
        kernel, stride, padding = (_pair(value) for value in (module.kernel_size, module.stride, module.padding))
        return nn.AvgPool3d(
            (1, *kernel),
            (1, *stride),
            (0, *padding),
            module.ceil_mode,
            module.count_include_pad,
            module.divisor_override,
        )
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool3d((1, *_pair(module.output_size)))
    if isinstance(module, nn.AdaptiveMaxPool2d):
        return nn.AdaptiveMaxPool3d((1, *_pair(module.output_size)), module.return_indices)
    if isinstance(module, nn.Dropout2d):
        return nn.Dropout3d(module.p, module.inplace)
    if "2d" in type(module).__name__ and not any(module.children()):
        raise ValueError(f"cannot inflate {type(module).__name__}: no 3-D counterpart is known")
    return module


def _spatial_padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        if any(size % 2 == 0 for size in conv.kernel_size):
            raise ValueError("cannot inflate Conv2d with padding='same' and an even kernel")
        return tuple(d * (size - 1) // 2 for d, size in zip(conv.dilation, conv.kernel_size, strict=True))
    return conv.padding


def _spatial_kernel(conv: nn.Conv2d) -> int:
    height, width = conv.kernel_size
    if height != width:
        raise ValueError(f"temporal_kernel='spatial' needs square kernels, not {height} x {width}; give a number")
    _require_odd(height)
    return height


def _require_odd(temporal_kernel: int) -> None:
    if not isinstance(temporal_kernel, int) or temporal_kernel < 1 or temporal_kernel % 2 == 0:
        raise ValueError(f"temporal_kernel must be odd, not {temporal_kernel}")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _keep_training_flags(source: nn.Module, target: nn.Module) -> nn.Module:
    """Frozen parameters stay frozen, and eval mode stays eval mode."""
    for name, parameter in source.named_parameters(recurse=False):
        getattr(target, name).requires_grad_(parameter.requires_grad)
    return target.train(source.training)


# ---------------------------------------------------------------------------------------------------------------------
# Functional calls


def _adaptive_avg_pool(features: torch.Tensor, output_size: int | tuple[int, int]) -> torch.Tensor:
    return functional.adaptive_avg_pool3d(features, (1, *_pair(output_size)))


def _avg_pool(features: torch.Tensor, kernel_size, stride=None, padding=0, **options) -> torch.Tensor:
    stride = kernel_size if stride is None else stride
    sizes = ((1, *_pair(kernel_size)), (1, *_pair(stride)), (0, *_pair(padding)))
    return functional.avg_pool3d(features, *sizes, **options)


def _max_pool(features: torch.Tensor, kernel_size, stride=None, padding=0, dilation=1, **options) -> torch.Tensor:
    stride = kernel_size if stride is None else stride
    sizes = ((1, *_pair(kernel_size)), (1, *_pair(stride)), (0, *_pair(padding)), (1, *_pair(dilation)))
    return functional.max_pool3d(features, *sizes, **options)


def _channel_shuffle(features: torch.Tensor, groups: int) -> torch.Tensor:
    grouped = features.unflatten(1, (groups, -1))  # (B, C, T, H, W) -> (B, groups, C / groups, T, H, W)
    return grouped.transpose(1, 2).flatten(1, 2)


_FUNCTIONS = {
    functional.adaptive_avg_pool2d: _adaptive_avg_pool,
    functional.avg_pool2d: _avg_pool,
    functional.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    channel_shuffle: _channel_shuffle,
}


def _replace_functional_calls(model: nn.Module) -> nn.Module:
    """Replace 2-D functional pooling and `mean([2, 3])` in `forward`; a network without them is returned untouched.

    Raises:
        ValueError: the traced forward would lose a branch that only training or only evaluation takes.
    """
    try:
        graph = fx.Tracer(autowrap_functions=(channel_shuffle,)).trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError):
        return model  # data-dependent control flow: its forward is left as it is
    changed = [_replace_call(node) for node in graph.nodes]
    if not any(changed):
        return model
    traced = fx.GraphModule(model, graph)
    has_dropout = any(node.target is functional.dropout for node in graph.nodes)
    if has_dropout or traced.state_dict().keys() != model.state_dict().keys():
        raise ValueError(
            f"cannot inflate {type(model).__name__}: its forward differs between training and evaluation; build it "
            "without auxiliary outputs and functional dropout"
        )
    return traced


def _replace_call(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target in _FUNCTIONS:
        node.target = _FUNCTIONS[node.target]
        return True
    if node.op == "call_method" and node.target == "mean" and _is_spatial(node.args[1:2]):
        node.args = (node.args[0], [2, 3, 4], *node.args[2:])
        return True
    return False


def _is_spatial(dims: tuple) -> bool:
    return len(dims) == 1 and isinstance(dims[0], list | tuple) and sorted(dims[0]) in ([2, 3], [-2, -1])
