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
in blocks and its 1 x 1 products do not (3 x 1 x 1, 320 channels, two threads); `conv_frames` asks for blocks.
In bfloat16 and float16 it is 2.8 to 3 times `Conv3d`'s, which rounds nothing but its result, while here the sums of
frames and of slices have to be rounded.
We know of no earlier description of this case.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_A = math.sqrt(3)  # the points are +-_A and +-1
_BLOCK = 2**17  # values; of seven tensors in half precision they fill a cache of 2 MiB
_BIAS_SHARES = ((1 + 1 / _A) / 2, (1 / _A - 1) / 2)  # of the first two products: they add up to the bias in y0, y1, y2


def transform_kernel(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The four kernels: float (O, C, 3, h, w) -> (4, O, C, h, w) of the same type, or of `dtype`.

    Kernels in half precision are combined in float32 and rounded once. The factors of S and D are in the kernels, so
    that the products stay as small as the outputs: float16 must not overflow on the way.
    """
    w0, w1, w2 = weight.to(torch.promote_types(weight.dtype, torch.float32)).unbind(2)
    s, d, w1 = (w0 + w2) * (0.25 / _A), (w2 - w0) * 0.25, w1 * 0.25
    return torch.stack((s + w1, s - w1, d - w1, d + w1)).to(dtype or weight.dtype)


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


def conv_frames(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    kernels: Tensor | None = None,
) -> Tensor:
    """`three_frame_conv` of frames as a batch, float (3B, C, H, W) in the order of time -> (3B, O, H', W').

    channels_last in and out. Differentiable once, in fewer passes over the frames than autograd would take: sums are
    written where products were. In compiled code, where passes are fused anyway, it is plain autograd.

    Args:
        kernels: as in `three_frame_conv`; without gradients only.
    """
    space = [_as_pair(value) for value in (stride, padding, dilation)] + [groups]
    if torch.compiler.is_compiling():
        kernels = transform_kernel(weight, frames.dtype) if kernels is None else kernels
        return torch.cat(three_frame_conv(frames.chunk(3), weight, bias, *space, kernels=kernels))
    if kernels is not None:
        return sum_products(_multiply(sum_frames(frames), kernels, bias, space))
    return _FourProducts.apply(frames, weight, bias, space)


class _FourProducts(torch.autograd.Function):
    """`conv_frames` with gradients: the transposes of the sums around the gradients of the four products."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, weight: Tensor, bias: Tensor | None, space: list[Any]) -> Tensor:
        operands, kernels = sum_frames(frames), _transform_in_blocks(weight, frames.dtype)
        ctx.space, ctx.operand_shape, ctx.weight_dtype = space, operands.shape, weight.dtype
        ctx.save_for_backward(operands if ctx.needs_input_grad[1] else operands[:0], kernels)
        return sum_products(_multiply(operands, kernels, bias, space))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        operands, kernels = ctx.saved_tensors
        needs_frames, needs_weight, needs_bias, _ = ctx.needs_input_grad
        bias_gradient = gradient.sum((0, 2, 3)).to(ctx.weight_dtype) if needs_bias else None
        if not needs_frames and not needs_weight:
            return None, None, bias_gradient, None
        stride, padding, dilation, groups = ctx.space
        settings = (None, stride, padding, dilation, False, [0, 0], groups, [needs_frames, needs_weight, False])
        if not needs_weight:  # only their shape is looked at
            operands = _empty_frames(ctx.operand_shape[0], operands)
        parts = (map(_as_wanted, frames.chunk(4)) for frames in (_spread_gradient(gradient), operands))
        triples = zip(*parts, kernels.unbind(0), strict=True)
        pairs = [torch.ops.aten.convolution_backward(*triple, *settings)[:2] for triple in triples]
        frames_gradient = _spread_operands([pair[0] for pair in pairs]) if needs_frames else None
        weight_gradient = _spread_kernels([pair[1] for pair in pairs], ctx.weight_dtype) if needs_weight else None
        return frames_gradient, weight_gradient, bias_gradient, None


def _multiply(operands: Tensor, kernels: Tensor, bias: Tensor | None, space: list[Any]) -> list[Tensor]:
    """The four products: (4B, C, H, W), (4, O, C, h, w) -> four of (B, O, H', W')."""
    shares = share_bias(bias, operands.dtype)
    triples = zip(map(_as_wanted, operands.chunk(4)), kernels.unbind(0), shares, strict=True)
    return [functional.conv2d(*triple, *space) for triple in triples]


def sum_frames(frames: Tensor) -> Tensor:
    """What the products take: (3B, C, H, W) -> (4B, C, H, W)."""
    operands = _empty_frames(len(frames) // 3 * 4, frames)
    for x0, x1, x2, u0, u1, u2, u3 in _blocks(*frames.chunk(3), *operands.chunk(4)):
        torch.add(x0, x2, out=u1)
        torch.add(u1, x1, alpha=_A, out=u0)
        u1.sub_(x1, alpha=_A)
        torch.sub(x2, x0, out=u3)
        torch.add(u3, x1, out=u2)
        u3.sub_(x1)
    return operands


def share_bias(bias: Tensor | None, dtype: torch.dtype) -> list[Tensor | None]:
    """What of the bias, float (O,), each of the four products adds."""
    return [None if bias is None else (bias * share).to(dtype) for share in _BIAS_SHARES] + [None, None]


def sum_products(products: list[Tensor], *, relu: bool = False) -> Tensor:
    """The convolution: four of (B, O, H', W'), which are overwritten, -> (3B, O, H', W'), without what is below 0."""
    frames = _empty_frames(len(products[0]) * 3, products[0])
    for e0, e1, e2, e3, y0, y1, y2 in _blocks(*products, *frames.chunk(3)):
        torch.add(e0, e1, out=y1)
        e0.sub_(e1)
        torch.add(e2, e3, out=e1)
        torch.add(e1, y1, alpha=_A, out=y1)
        e2.sub_(e3)
        torch.add(e0, e2, out=y0)
        torch.sub(e0, e2, out=y2)
        for y in (y0, y1, y2) if relu else ():
            y.relu_()
    return frames


def _spread_gradient(gradient: Tensor) -> Tensor:
    """The transpose of `sum_products`: (3B, O, H', W') -> (4B, O, H', W')."""
    spread = _empty_frames(len(gradient) // 3 * 4, gradient)
    for g0, g1, g2, d0, d1, d2, d3 in _blocks(*gradient.chunk(3), *spread.chunk(4)):
        torch.add(g0, g2, out=d3)
        torch.add(d3, g1, alpha=_A, out=d0)
        torch.mul(g1, _A, out=d1)
        d1.sub_(d3)
        torch.sub(g0, g2, out=d3)
        torch.add(g1, d3, out=d2)
        torch.sub(g1, d3, out=d3)
    return spread


def _spread_operands(gradients: list[Tensor]) -> Tensor:
    """The transpose of `sum_frames`: four of (B, C, H, W), which are overwritten, -> (3B, C, H, W)."""
    frames = _empty_frames(len(gradients[0]) * 3, gradients[0])
    for d0, d1, d2, d3, x0, x1, x2 in _blocks(*gradients, *frames.chunk(3)):
        torch.sub(d0, d1, out=x1)
        d0.add_(d1)
        torch.sub(d2, d3, out=d1)
        torch.add(d1, x1, alpha=_A, out=x1)
        d2.add_(d3)
        torch.sub(d0, d2, out=x0)
        torch.add(d0, d2, out=x2)
    return frames


def slices_first(weight: Tensor) -> Tensor:
    """The same kernel, (O, C, 3, h, w), in memory (3, O, h, w, C): its slices are channels_last, one after the other.

    In the order of the axes a slice is scattered in runs of h * w values, and its sums wait for memory.
    """
    return weight.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)


def _spread_kernels(gradients: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The transpose of `transform_kernel`: four of (O, C, h, w) -> (O, C, 3, h, w), in memory as `slices_first`."""
    rows, columns, *window = gradients[0].shape
    weight = torch.empty((3, rows, *window, columns), dtype=dtype, device=gradients[0].device)
    wide = torch.promote_types(dtype, torch.float32)
    for *block, w0, w1, w2 in _blocks(*gradients, *weight.permute(0, 1, 4, 2, 3)):
        k0, k1, k2, k3 = (part.to(wide) for part in block)
        s, d = torch.add(k0, k1).mul_(0.25 / _A), torch.add(k2, k3).mul_(0.25)
        torch.sub(s, d, out=w0)
        torch.add(s, d, out=w2)
        torch.mul(torch.sub(k0, k1).sub_(k2).add_(k3), 0.25, out=w1)
    return weight.permute(1, 4, 0, 2, 3)  # (3, O, h, w, C) -> (O, C, 3, h, w)


def _transform_in_blocks(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`transform_kernel`, without gradients and without large sums in between, in the format that convolves best."""
    rows, columns, _, *window = weight.shape
    kernels = torch.empty((4, rows, *window, columns), dtype=dtype, device=weight.device).permute(0, 1, 4, 2, 3)
    wide = torch.promote_types(weight.dtype, torch.float32)
    for w0, w1, w2, k0, k1, k2, k3 in _blocks(*weight.to(wide).unbind(2), *kernels):
        s, d, w1 = torch.add(w0, w2).mul_(0.25 / _A), torch.sub(w2, w0).mul_(0.25), w1 * 0.25
        torch.add(s, w1, out=k0)
        torch.sub(s, w1, out=k1)
        torch.sub(d, w1, out=k2)
        torch.add(d, w1, out=k3)
    return _as_wanted(kernels)


def _as_wanted(operand: Tensor) -> Tensor:
    """In the memory format that convolves best: channels_last tensors as they are, but for float32 on a CPU.

    In float32 oneDNN's channels_last kernels add up all channels one by one, and their error is up to 4 times that of
    the blocked kernels that contiguous tensors get, in about the same time.
    """
    return operand.contiguous() if operand.dtype is torch.float32 and operand.device.type == "cpu" else operand


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of each channels_last tensor as a vector, one that a core's cache holds after the other.

    Several sums of one stretch then cost one way to memory: 1.3 to 1.9 times as fast on a CPU. A GPU gets all at once.
    """
    flat = [tensor.permute(0, 2, 3, 1).reshape(-1) for tensor in tensors]
    size = _BLOCK if flat[0].device.type == "cpu" else max(1, flat[0].numel())
    return zip(*(vector.split(size) for vector in flat), strict=True)


def _empty_frames(count: int, like: Tensor) -> Tensor:
    """Room for so many frames, channels_last."""
    shape = (count, *like.shape[1:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


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


def _as_pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _is_all(value: int | tuple[int, int], number: int) -> bool:
    return _as_pair(value) == [number, number]


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

    def _transformed_kernels(self, dtype: torch.dtype | None = None) -> Tensor:
        if not self._may_keep():
            return transform_kernel(self.weight, dtype)
        weight = self.weight
        state = (weight._version, weight.data_ptr(), weight.dtype, weight.device, dtype)
        if self._kept is None or self._kept[0][0]() is not weight or self._kept[0][1] != state:
            self._kept = ((weakref.ref(weight), state), transform_kernel(weight, dtype))
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
