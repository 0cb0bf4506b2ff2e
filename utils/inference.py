"""A copy of a trained network that only computes: BatchNorm folded, kernels transformed and packed, all of it once.

For 2-D CNNs and 3-D ones of `inflate` whose convolution, BatchNorm and ReLU follow each other in a `Sequential` (VGG,
AlexNet). In eval mode BatchNorm is y = g (x - m) / s + b with constants, so that a convolution before it takes it in:
its kernel times g / s, its bias (bias - m) g / s + b. In float32 the outputs are the network's up to rounding (1e-5 of
the largest logit at most). In bfloat16 weights are rounded after the folding, and the largest logit can be another one
where two are close.

On a CPU with oneDNN, kernels are kept in the layout that its convolutions want, with ReLU inside; elsewhere, and where
oneDNN has no such kernel, they are torch's own convolutions, channels_last.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from utils.frames_as_batch import FramesConv3d, has_frames_as_batch, with_neighbours
from utils.three_frame_conv import share_bias, sum_frames, sum_products, transform_kernel


@torch.no_grad()
def prepare_for_inference(model: nn.Module, *, dtype: torch.dtype = torch.float32) -> Prepared:
    """A copy in eval mode, for `torch.inference_mode`; the original is untouched.

    Args:
        model: a 2-D CNN, or a 3-D one that runs frames as a batch (`use_frames_as_batch`).
        dtype: of weights and of the computation; inputs may be float32.

    Raises:
        ValueError: a 3-D network that does not run frames as a batch.
    """
    if not has_frames_as_batch(model) and any(isinstance(layer, nn.Conv3d) for layer in model.modules()):
        raise ValueError(f"{type(model).__name__} does not run frames as a batch; call use_frames_as_batch first")
    prepared = copy.deepcopy(model).eval().requires_grad_(False)
    for sequence in [module for module in prepared.modules() if isinstance(module, nn.Sequential)]:
        _fuse_layers(sequence, dtype)
    return Prepared(prepared.to(dtype), dtype)


class Prepared(nn.Module):
    """A network that `prepare_for_inference` has made, with its entry: images, or clips of three frames."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self._takes_clips = has_frames_as_batch(network)

    def forward(self, inputs: Tensor) -> Tensor:
        """Float (B, 3, H, W), or (B, 3, 3, H, W) for a 3-D network -> float32 logits (B, num_classes)."""
        if self._takes_clips and inputs.shape[2] != 3:
            raise ValueError(f"kernels are prepared for clips of 3 frames, not of {inputs.shape[2]}")
        inputs = inputs.to(self.dtype)
        if not self._takes_clips:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self.network(inputs).float()


class PreparedConv(nn.Module):
    """A 2-D convolution with bias and, perhaps, ReLU; its kernel as oneDNN wants it, where there is oneDNN.

    Args:
        kernel: float (O, C / groups, h, w).
        space: stride, padding, dilation, each a pair, and groups.
    """

    def __init__(self, kernel: Tensor, bias: Tensor | None, space: list[Any], *, relu: bool = False) -> None:
        super().__init__()
        self.bias, self.space, self.relu = bias, space, relu
        self.is_packed = _can_pack(kernel)
        self.kernel = _pack(kernel, space) if self.is_packed else kernel.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, C, H, W) -> float (B, O, H', W')."""
        stride, padding, dilation, groups = self.space
        if self.is_packed:
            tail = ("relu" if self.relu else "none", [], "")
            sizes = (padding, stride, dilation, groups)
            return torch.ops.mkldnn._convolution_pointwise(images, self.kernel, self.bias, *sizes, *tail)
        output = functional.conv2d(images, self.kernel, self.bias, *self.space)
        return output.relu_() if self.relu else output


class PreparedFramesConv(nn.Module):
    """A 3-D convolution of frames as a batch, with ReLU perhaps: four products."""

    def __init__(self, kernel: Tensor, bias: Tensor, space: list[Any], dtype: torch.dtype, *, relu: bool) -> None:
        super().__init__()
        pairs = zip(transform_kernel(kernel).to(dtype).unbind(0), share_bias(bias, dtype), strict=True)
        self.products = nn.ModuleList(PreparedConv(part, share, space) for part, share in pairs)
        self.relu = relu

    def forward(self, frames: Tensor) -> Tensor:
        """Float (3B, C, H, W) -> float (3B, O, H', W')."""
        operands = sum_frames(frames.contiguous(memory_format=torch.channels_last)).chunk(4)
        products = [product(operand) for product, operand in zip(self.products, operands, strict=True)]
        return sum_products(products, relu=self.relu)


class PreparedNeighboursConv(PreparedConv):
    """A 3-D convolution of few channels, of frames as a batch: neighbours as channels."""

    def forward(self, frames: Tensor) -> Tensor:
        """Float (3B, C, H, W) -> float (3B, O, H', W')."""
        return super().forward(with_neighbours(frames))


# ---------------------------------------------------------------------------------------------------------------------
# From layers to prepared ones


def _fuse_layers(sequence: nn.Sequential, dtype: torch.dtype) -> None:
    """Each convolution with the BatchNorm and the ReLU after it becomes one layer; their places are left empty."""
    for place, conv in enumerate(list(sequence)):
        if not isinstance(conv, nn.Conv2d | FramesConv3d) or conv.padding_mode != "zeros" or conv.padding == "same":
            continue
        followers = [*sequence[place + 1 : place + 3], None, None]
        norm = followers[0] if isinstance(followers[0], _BatchNorm) and followers[0].track_running_stats else None
        relu = isinstance(followers[0 if norm is None else 1], nn.ReLU)
        sequence[place] = _prepare_conv(conv, norm, dtype, relu=relu)
        for number in range((norm is not None) + relu):
            sequence[place + 1 + number] = nn.Identity()
    for place, layer in enumerate(sequence):
        if isinstance(layer, nn.Dropout):
            sequence[place] = nn.Identity()


def _prepare_conv(
    conv: nn.Conv2d | FramesConv3d, norm: nn.Module | None, dtype: torch.dtype, *, relu: bool
) -> nn.Module:
    kernel, bias = _fold(conv, norm)
    if isinstance(conv, nn.Conv2d):
        space = [list(size) for size in (conv.stride, conv.padding, conv.dilation)] + [conv.groups]
        return PreparedConv(kernel.to(dtype), bias.to(dtype), space, relu=relu)
    space = [list(size[1:]) for size in (conv.stride, conv.padding, conv.dilation)] + [conv.groups]
    if conv.kernel_size[0] == 1:
        return PreparedConv(kernel.squeeze(2).to(dtype), bias.to(dtype), space, relu=relu)
    if conv.sees_neighbours:
        merged = kernel.transpose(1, 2).flatten(1, 2)  # (O, C, 3, h, w) -> (O, 3 C, h, w)
        return PreparedNeighboursConv(merged.to(dtype), bias.to(dtype), space, relu=relu)
    return PreparedFramesConv(kernel, bias, space, dtype, relu=relu)


def _fold(conv: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution with the BatchNorm after it, in float64."""
    kernel = conv.weight.double()
    bias = kernel.new_zeros(len(kernel)) if conv.bias is None else conv.bias.double()
    if norm is None:
        return kernel, bias
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    offset = 0 if norm.bias is None else norm.bias.double()
    bias = (bias - norm.running_mean.double()) * scale + offset
    return kernel * scale.view(-1, *(1,) * (kernel.dim() - 1)), bias


def _can_pack(kernel: Tensor) -> bool:
    has_ops = hasattr(torch.ops.mkldnn, "_reorder_convolution_weight") and torch.backends.mkldnn.is_available()
    is_known = kernel.dtype is torch.float32 or (
        kernel.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return has_ops and torch.backends.mkldnn.enabled and kernel.device.type == "cpu" and is_known


def _pack(kernel: Tensor, space: list[Any]) -> Tensor:
    stride, padding, dilation, groups = space
    return torch.ops.mkldnn._reorder_convolution_weight(kernel, padding, stride, dilation, groups, [])
