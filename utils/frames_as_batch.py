"""Clips of three frames as a batch of frames, so that a 3-D CNN runs on 2-D kernels: same weights, same result.

A clip (B, C, 3, H, W) becomes frames (3B, C, H, W), all items' first frames first, channels_last: the memory of
(3, B, H, W, C), which clips from `utils.pixels` have already. Whatever a network of `inflate` does to one frame at a
time (BatchNorm, ReLU, pooling in space) is then a 2-D kernel. What sees several frames takes them as thirds of the
batch:

- a convolution over time takes the four products of `utils.three_frame_conv`, forward and backward;
- one of few channels (the first layer's 3) sees each frame's neighbours as channels of its own, 3 C of them: the kernel
  (O, C, 3, h, w) is that of a 2-D convolution, (O, 3 C, h, w). It is nine products, but few channels leave most of a
  matrix unit's width empty, and its result is not rounded on the way;
- one of few pixels is a product of matrices while it is trained (`utils.few_pixel_conv`);
- the adaptive average before the classifier is one of frames, then one over frames, and gives (B, C, 1, h, w) back.

In float32 and eval mode the whole network's error is Conv3d's or less. In bfloat16, where sums of frames are rounded
before they are multiplied, it is traded: against float32, random VGG-11s in training mode at 32 to 96 pixels differ by
1.1 to 2.3 % in the logits (Conv3d in bfloat16: 1.1 to 1.4 %) and by 0.39 to 0.47 of its norm in the first layer's
gradient (Conv3d: 0.29 to 0.35), measured on a CPU with AMX and torch 2.14.

Parameters, names, state dict, hooks and places stay those of the Conv3d network: modules only change their class, and
go by the number of axes of what they get. Clips of any other number of frames run through the ordinary 3-D code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchvision.models import VGG, AlexNet, ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from utils.few_pixel_conv import conv_few_pixels
from utils.pooling import adaptive_average
from utils.three_frame_conv import ThreeFrameConv3d, conv_frames, is_eligible, slices_first

_FEW_CHANNELS = 5  # with fewer, neighbours as channels are cheaper than four products
_FEW_PIXELS = 512  # of a batch's feature map; with fewer, one product of matrices was faster on 2 CPU cores
_CONTAINERS = (nn.Sequential, VGG, AlexNet, ResNet, BasicBlock, Bottleneck)  # their forward is the same for frames
_AS_THEY_ARE = (nn.ReLU, nn.Dropout, nn.Identity, nn.Linear)


def use_frames_as_batch(model: nn.Module) -> int:
    """Let a 3-D CNN run clips of three frames as a batch of frames, in place; returns how many layers take part.

    Raises:
        ValueError: a layer or block that would not do the same to frames; the model is untouched then.
    """
    if has_frames_as_batch(model):
        return 0
    if not any(type(layer) is nn.AdaptiveAvgPool3d for layer in _layers_of(model)):
        raise ValueError(f"cannot run {type(model).__name__} on frames as a batch: nothing averages over the frames")
    swaps = [(module, _CLASSES[type(module)]) for module in model.modules() if type(module) in _CLASSES]
    for layer, frames_class in swaps:
        layer.__class__ = frames_class
        if frames_class is FramesConv3d and layer.kernel_size[0] == 3:
            layer.weight.data = slices_first(layer.weight.data)
    model.register_forward_pre_hook(frames_from_clip)
    return len(swaps)


def use_clips(model: nn.Module) -> int:
    """Undo `use_frames_as_batch`, in place: torch's own 3-D layers; returns how many layers changed."""
    plain_classes = {frames_class: plain for plain, frames_class in _CLASSES.items() if plain is not ThreeFrameConv3d}
    swapped = [module for module in model.modules() if type(module) in plain_classes]
    for module in swapped:
        module.__class__ = plain_classes[type(module)]
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is frames_from_clip:
            del model._forward_pre_hooks[key]
    return len(swapped)


def has_frames_as_batch(model: nn.Module) -> bool:
    """Whether clips of three frames enter this network as a batch of frames."""
    return frames_from_clip in model._forward_pre_hooks.values()


def frames_from_clip(_model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """At the model's entry: float (B, C, 3, H, W) -> (3B, C, H, W), channels_last; other clips as they are."""
    clip, *others = inputs
    if clip.dim() != 5:
        raise ValueError(f"the network takes clips (B, C, T, H, W), not a tensor of {clip.dim()} axes")
    if clip.shape[2] != 3:
        return inputs
    pixels = clip.permute(2, 0, 3, 4, 1).contiguous()  # (B, C, T, H, W) -> (T, B, H, W, C)
    return pixels.permute(0, 1, 4, 2, 3).flatten(0, 1), *others  # -> (T * B, C, H, W)


class FramesConv3d(ThreeFrameConv3d):
    """A `Conv3d` that takes frames as a batch, too."""

    @property
    def sees_neighbours(self) -> bool:
        """Whether each frame's neighbours become its channels, instead of four products."""
        return self.kernel_size[0] == 3 and self.in_channels < _FEW_CHANNELS and self.groups == 1

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, C, T, H, W) -> (B, O, T', H', W'); frames (3B, C, H, W) -> (3B, O, H', W')."""
        if clip.dim() != 4:
            return super().forward(clip)
        space = (self.stride[1:], self.padding[1:], self.dilation[1:], self.groups)
        if self.kernel_size[0] == 1:
            return functional.conv2d(clip, self.weight.squeeze(2), self.bias, *space)
        if self.sees_neighbours:
            weight = self.weight.transpose(1, 2).flatten(1, 2)  # (O, C, 3, h, w) -> (O, 3 C, h, w)
            return functional.conv2d(with_neighbours(clip), weight, self.bias, *space)
        clip = clip.to(_compute_dtype(clip))
        if self._sees_few_pixels(clip):
            return conv_few_pixels(clip, self.weight, self.bias, *space[:2])
        kernels = None if torch.is_grad_enabled() else self._transformed_kernels(clip.dtype)
        return conv_frames(clip, self.weight, self.bias, *space, kernels=kernels)

    def _sees_few_pixels(self, frames: Tensor) -> bool:
        """Whether a kernel would be transformed for few pixels alone; without gradients it is kept."""
        num_pixels = len(frames) // 3 * frames.shape[2] * frames.shape[3]
        is_plain = self.groups == 1 and self.dilation == (1, 1, 1)
        return torch.is_grad_enabled() and is_plain and num_pixels < _FEW_PIXELS


class FramesBatchNorm3d(nn.BatchNorm3d):
    """A `BatchNorm3d` that takes frames as a batch, too: the statistics are over the same values."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            super()._check_input_dim(input)


class FramesSequential(nn.Sequential):
    """A `Sequential` that trains BatchNorm, ReLU and MaxPool in a row faster: the maximum first, of which 1/4 is left.

    With positive weights, BatchNorm and ReLU keep the order of values, so that the maximum may be taken before them,
    bit for bit; the statistics are those of all values as ever. On a CPU, where such layers cost as convolutions do.
    """

    def forward(self, frames: Tensor) -> Tensor:
        """What the layers make of it, one after the other."""
        layers = list(self)
        while layers:
            if _may_pool_first(frames, layers[:3]):
                norm, _, pool = layers[:3]
                norm.num_batches_tracked.add_(1)
                statistics = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
                frames = _NormReluPool.apply(frames, norm.weight, norm.bias, statistics, _triple(pool.kernel_size)[1:])
                del layers[:3]
            else:
                frames = layers.pop(0)(frames)
        return frames


def _may_pool_first(frames: Tensor, layers: list[nn.Module]) -> bool:
    """Whether nobody would see the difference."""
    if torch.compiler.is_compiling() or [type(layer) for layer in layers] != _POOLED:
        return False
    norm, _, pool = layers
    is_plain = norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
    sizes = [_triple(size) for size in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)]
    is_apart = sizes[0] == sizes[1] and sizes[2:] == [(0, 0, 0), (1, 1, 1)] and not pool.ceil_mode
    if not (is_plain and is_apart and torch.is_grad_enabled() and frames.dim() == 4 and frames.device.type == "cpu"):
        return False
    if type(norm.weight) is not nn.Parameter or isinstance(frames, FakeTensor) or any(map(_has_hooks, layers)):
        return False
    return bool((norm.weight > 0).all())


def _has_hooks(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or nn.modules.module._has_any_global_hook()


class _NormReluPool(torch.autograd.Function):
    """BatchNorm with the batch's statistics, ReLU and MaxPool of windows that do not overlap; weights are positive."""

    @staticmethod
    def forward(
        ctx: Any, frames: Tensor, weight: Tensor, bias: Tensor, statistics: tuple[Any, ...], window: tuple[int, int]
    ) -> Tensor:
        running_mean, running_var, momentum, eps = statistics
        mean, variance = torch.batch_norm_update_stats(frames, running_mean, running_var, momentum)
        pooled, indices = functional.max_pool2d_with_indices(frames, window)
        output = functional.batch_norm(pooled, mean, variance, weight, bias, False, 0.0, eps).relu_()
        ctx.window, ctx.eps = window, eps
        ctx.save_for_backward(frames, weight, mean, variance, output, indices)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        frames, weight, mean, variance, output, indices = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        pool = (ctx.window, ctx.window, (0, 0), (1, 1), False, indices)
        gradient = torch.ops.aten.max_pool2d_with_indices_backward(gradient, frames, *pool)
        norm = (weight, None, None, mean, (variance + ctx.eps).rsqrt(), True, ctx.eps, list(ctx.needs_input_grad[:3]))
        return *torch.ops.aten.native_batch_norm_backward(gradient, frames, *norm), None, None


class FramesMaxPool3d(nn.MaxPool3d):
    """A `MaxPool3d` in space that takes frames as a batch, too."""

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, C, T, H, W) or (3B, C, H, W), pooled."""
        if clip.dim() != 4:
            return super().forward(clip)
        sizes = [_triple(size)[1:] for size in (self.kernel_size, self.stride, self.padding, self.dilation)]
        return functional.max_pool2d(clip, *sizes, ceil_mode=self.ceil_mode)


class FramesAvgPool3d(nn.AvgPool3d):
    """An `AvgPool3d` in space that takes frames as a batch, too."""

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, C, T, H, W) or (3B, C, H, W), pooled."""
        if clip.dim() != 4:
            return super().forward(clip)
        sizes = [_triple(size)[1:] for size in (self.kernel_size, self.stride, self.padding)]
        return functional.avg_pool2d(clip, *sizes, self.ceil_mode, self.count_include_pad, self.divisor_override)


class FramesAdaptiveAvgPool3d(nn.AdaptiveAvgPool3d):
    """An `AdaptiveAvgPool3d` to one frame, where frames as a batch end."""

    is_repeatable = True  # for frames as a batch, on CUDA

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, C, T, H, W) or (3B, C, H, W) -> (B, C, 1, h, w)."""
        if clip.dim() != 4:
            return super().forward(clip)
        frames = adaptive_average(clip, self.output_size[1:])
        return frames.unflatten(0, (3, -1)).mean(0).unsqueeze(2)  # (3B, C, h, w) -> (B, C, 1, h, w)


def with_neighbours(frames: Tensor) -> Tensor:
    """Each frame between the one before and the one after, as channels: (3B, C, H, W) -> (3B, 3C, H, W)."""
    none = torch.zeros_like(frames[: len(frames) // 3])
    x0, x1, x2 = frames.chunk(3)
    return torch.cat((torch.cat((none, x0, x1)), frames, torch.cat((x1, x2, none))), dim=1)


def _compute_dtype(frames: Tensor) -> torch.dtype:
    """What a convolution computes in here: autocast's type, where it is on."""
    kind = frames.device.type
    if not torch.amp.is_autocast_available(kind):  # of the meta device
        return frames.dtype
    is_cast = torch.is_autocast_enabled(kind) and frames.dtype is not torch.float64
    return torch.get_autocast_dtype(kind) if is_cast else frames.dtype


# ---------------------------------------------------------------------------------------------------------------------
# What a model may consist of


_POOLED = [FramesBatchNorm3d, nn.ReLU, FramesMaxPool3d]
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: FramesSequential,
    ThreeFrameConv3d: FramesConv3d,
    nn.Conv3d: FramesConv3d,
    nn.BatchNorm3d: FramesBatchNorm3d,
    nn.MaxPool3d: FramesMaxPool3d,
    nn.AvgPool3d: FramesAvgPool3d,
    nn.AdaptiveAvgPool3d: FramesAdaptiveAvgPool3d,
}


def _is_spatial_conv(conv: nn.Conv3d) -> bool:
    time = (conv.kernel_size[0], conv.stride[0], conv.dilation[0], conv.padding_mode)
    has_sizes = not isinstance(conv.padding, str)
    return time == (1, 1, 1, "zeros") and has_sizes and conv.padding[0] == 0


def _is_spatial_pool(pool: nn.MaxPool3d | nn.AvgPool3d) -> bool:
    sizes = (pool.kernel_size, pool.stride, pool.padding, getattr(pool, "dilation", 1))
    return [_triple(size)[0] for size in sizes] == [1, 1, 0, 1] and not getattr(pool, "return_indices", False)


def _triple(size: int | tuple[int, int, int]) -> tuple[int, int, int]:
    return (size, size, size) if isinstance(size, int) else tuple(size)


def _ends_frames(pool: nn.AdaptiveAvgPool3d) -> bool:
    return isinstance(pool.output_size, tuple) and pool.output_size[0] == 1


_FITS: dict[type[nn.Module], Callable[..., bool]] = {
    nn.Conv3d: lambda conv: is_eligible(conv) or _is_spatial_conv(conv),
    ThreeFrameConv3d: lambda conv: is_eligible(conv) or _is_spatial_conv(conv),
    nn.BatchNorm3d: lambda norm: True,
    nn.MaxPool3d: _is_spatial_pool,
    nn.AvgPool3d: _is_spatial_pool,
    nn.AdaptiveAvgPool3d: _ends_frames,
}


def _layers_of(model: nn.Module) -> list[nn.Module]:
    """Every module but the containers.

    Raises:
        ValueError: one that is not known to do the same to frames.
    """
    layers = [module for module in model.modules() if type(module) not in _CONTAINERS]
    for layer in layers:
        fits = _FITS.get(type(layer))
        if not (type(layer) in _AS_THEY_ARE if fits is None else fits(layer)):
            raise ValueError(
                f"cannot run {type(model).__name__} on frames as a batch: {layer} is not known to allow it"
            )
    return layers
