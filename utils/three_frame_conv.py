"""A 3-D convolution over three frames with 4 two-dimensional products instead of 9: same weights, same result.

With temporal kernel 3, stride 1 and zero padding 1, the frames x0, x1, x2 and the kernel slices w0, w1, w2 give

    y0 = w1 x0 + w2 x1        y1 = w0 x0 + w1 x1 + w2 x2        y2 = w0 x1 + w1 x2

where a product is a 2-D convolution: a banded Toeplitz matrix over time. `Conv3d` spends nine products on it, two of
them on padding. As in the algorithms of Toom and Cook and of Winograd, fewer suffice if sums of the operands are
multiplied. With

    s = w0 + w2    d = w2 - w0    p = x0 + x2    q = x2 - x0

the outputs are y0 = S + D, y2 = S - D, y1 = w1 x1 + (s p + d q) / 2, where 2 S = s x1 + w1 p and 2 D = d x1 - w1 q are
the middle coefficients of two products of polynomials in t,

    (s + w1 t)(p + x1 t) = s p + 2 S t + w1 x1 t^2        (d - w1 t)(q + x1 t) = d q + 2 D t - w1 x1 t^2

Evaluated at t = a, -a and t = b, -b, they give S and D by difference; and their sums give y1 without a fifth product if
a^2 - b^2 = 2, because then the surplus of w1 x1 t^2 is just what y1 needs. Any such pair is exact; we take a = sqrt(3),
b = 1, because the rounding errors to expect in y0, y1, y2 are then 1.04, 1.19, 1.04 times those of the plain sums (with
a = 3/2, b = 1/2, which are fractions, 1.33, 0.98, 1.33).

What is traded, measured on a CPU against float64, root mean square: in float32 the error is 0.75 (3 x 3 x 3) to 1.2
(3 x 1 x 1) times `Conv3d`'s where both sum over the channels in one order, and 2.6 times where oneDNN's `Conv3d` sums
in blocks and its 1 x 1 products do not (3 x 1 x 1, 320 channels, two threads). In bfloat16 and float16 it is 2.8 to 3
times `Conv3d`'s, which rounds nothing but its result, while here the sums of frames and of slices have to be rounded.
We know of no earlier description of this case.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_A = math.sqrt(3)  # the points are +-_A and +-1
_BIAS_SHARES = ((1 + 1 / _A) / 2, (1 / _A - 1) / 2)  # of the first two products: they add up to the bias in y0, y1, y2


def transform_kernel(weight: Tensor) -> Tensor:
    """The four kernels: float (O, C, 3, h, w) -> (4, O, C, h, w) of the same type.

    Half-precision weights are combined in float32 and rounded once. The factors of S and D are in the kernels, so that
    the products stay as small as the outputs: float16 must not overflow on the way.
    """
    w0, w1, w2 = weight.to(torch.promote_types(weight.dtype, torch.float32)).unbind(2)
    s, d, w1 = (w0 + w2) * (0.25 / _A), (w2 - w0) * 0.25, w1 * 0.25
    return torch.stack((s + w1, s - w1, d - w1, d + w1)).to(weight.dtype)


def three_frame_conv(
    frames: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    kernels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv3d` with temporal padding 1 on three frames, float (B, C, H, W) each -> three of (B, O, H', W').

    The frames may be slices of a clip, `clip.unbind(2)`, or of frames as a batch, `batch.chunk(3)` of (3B, C, H, W) in
    the order of time; memory formats are kept. Plain autograd.

    Args:
        weight: (O, C / groups, 3, h, w), as of `Conv3d`.
        stride, padding, dilation: in space.
        kernels: `transform_kernel(weight)`, where it is at hand; `weight` is not looked at then.
    """
    kernels = transform_kernel(weight) if kernels is None else kernels
    biases = (None, None) if bias is None else (bias * _BIAS_SHARES[0], bias * _BIAS_SHARES[1])
    space = (stride, padding, dilation, groups)
    x0, x1, x2 = frames
    k0, k1, k2, k3 = kernels.unbind(0)
    p, q = x0 + x2, x2 - x0
    e0 = _product(torch.add(p, x1, alpha=_A), k0, biases[0], *space)
    e1 = _product(torch.sub(p, x1, alpha=_A), k1, biases[1], *space)
    e2, e3 = _product(q + x1, k2, None, *space), _product(q - x1, k3, None, *space)
    s, d = e0 - e1, e2 - e3
    return s + d, torch.add(e2 + e3, e0 + e1, alpha=_A), s - d


def _product(operand: Tensor, kernel: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int) -> Tensor:
    """`conv2d`: float (B, C, H, W), (O, C / groups, h, w), (O,) -> (B, O, H', W')."""
    is_pointwise = kernel.shape[2:] == (1, 1) and groups == 1 and _is_all(stride, 1) and _is_all(padding, 0)
    if not is_pointwise or torch.is_grad_enabled() or not operand.is_contiguous():
        return functional.conv2d(operand, kernel, bias, stride, padding, dilation, groups)
    # In half precision convolutions reorder their operands for products that take them as they are: 0.3 ms and 1.1 ms
    # for 320 channels, 32 x 32, bfloat16 on a CPU with AMX. With gradients, the kernel's would be one an item.
    matrix, pixels = kernel.flatten(1).expand(len(operand), -1, -1), operand.flatten(2)
    product = torch.bmm(matrix, pixels) if bias is None else torch.baddbmm(bias[:, None], matrix, pixels)
    return product.unflatten(2, operand.shape[2:])  # (B, O, H * W) -> (B, O, H, W)


def _is_all(value: int | tuple[int, int], number: int) -> bool:
    return value in (number, (number, number))


class ThreeFrameConv3d(nn.Conv3d):
    """A `Conv3d` that takes four products where a clip has three frames; parameters and state dict are `Conv3d`'s.

    Other clips, and layers with another temporal kernel, stride or padding, run as `Conv3d` does.

    In eval mode and without gradients the transformed kernels are kept for the next call (4/3 of the weight's memory).
    They are dropped when the weight changes: by an optimizer or any other operation in place, another tensor, type or
    device, `load_state_dict`, `train()`, `eval()`. Only writing through `weight.data` in eval mode is seen by nobody:
    call `eval()` after it. In compiled code and in CUDA graphs, which outlive such checks, they are computed each time.
    """

    _kept: tuple[Any, Tensor] | None = None  # what the weight was, and its kernels

    def forward(self, clip: Tensor) -> Tensor:
        """Float (B, C, T, H, W) -> float (B, O, T', H', W')."""
        if clip.dim() != 5 or clip.shape[2] != 3 or not is_eligible(self):
            return super().forward(clip)
        space = (self.stride[1:], self.padding[1:], self.dilation[1:], self.groups)
        frames = three_frame_conv(clip.unbind(2), self.weight, self.bias, *space, kernels=self._transformed_kernels())
        return torch.stack(frames, dim=2)  # 3 x (B, O, H', W') -> (B, O, 3, H', W')

    def _transformed_kernels(self) -> Tensor:
        if not self._may_keep():
            return transform_kernel(self.weight)
        weight = self.weight
        state = (weight._version, weight.data_ptr(), weight.dtype, weight.device)
        if self._kept is None or self._kept[0][0]() is not weight or self._kept[0][1] != state:
            self._kept = ((weakref.ref(weight), state), transform_kernel(weight))
        return self._kept[1]

    def _may_keep(self) -> bool:
        """Whether a change of the weight would be noticed, and the kernels would not end up inside a graph."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.training:
            return False
        if type(self.weight) is not nn.Parameter or self.weight.is_inference():  # fake tensors; no version counter
            return False
        return not (self.weight.is_cuda and torch.cuda.is_current_stream_capturing())

    def _apply(self, *args, **kwargs) -> nn.Module:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> nn.Module:
        """As any module's; the kept kernels are dropped."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}


def is_eligible(conv: nn.Conv3d) -> bool:
    """Whether four products compute this layer on clips of three frames."""
    time = (conv.kernel_size[0], conv.stride[0], conv.dilation[0])
    return time == (3, 1, 1) and conv.padding_mode == "zeros" and conv.padding[0] == 1


def use_three_frame_convs(module: nn.Module, *, min_channels: int = 1) -> int:
    """Let every eligible `Conv3d` in `module` take four products on three frames; returns how many do.

    The layers stay the objects they were, with their parameters, names, hooks and places, and only change their class,
    as torch's own parametrizations do. Subclasses of `Conv3d` have reasons of their own and are left alone.

    Args:
        min_channels: layers with fewer input channels stay as they are; sums of frames cost memory traffic, which on a
            GPU in half precision can outweigh the products that few channels save.
    """
    layers = [layer for layer in module.modules() if type(layer) is nn.Conv3d and is_eligible(layer)]
    convs = [layer for layer in layers if layer.in_channels >= min_channels]
    for conv in convs:
        conv.__class__ = ThreeFrameConv3d
    return len(convs)
