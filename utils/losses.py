"""Losses of a classifier, one value an item, and the weights that make classes equally likely to be drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def classification_loss(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """The loss of each item: float32 (B,), or float64 where the logits are; the caller takes the mean.

    Args:
        logits: float (B, K); half precision is computed in float32.
        target: labels int64 (B,), or shares of the classes float (B, K) that sum to 1, as mixup makes them.
        label_smoothing: this share of each target is spread evenly over all classes (Szegedy et al. 2016); 0.1 is
            usual, higher makes the network less sure of itself.
        focal_gamma: 0 is cross-entropy; higher gives items that are already right less weight (Lin et al. 2017), 2 is
            usual. Each class's term of the cross-entropy is scaled by (1 - its probability) ** gamma.

    Raises:
        ValueError: shares of another shape than the logits.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if focal_gamma == 0:
        return functional.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    return _focal_loss(logits, _class_shares(logits, target, label_smoothing), focal_gamma)


def _focal_loss(logits: Tensor, shares: Tensor, gamma: float) -> Tensor:
    """Sum over k of t_k (1 - p_k)^gamma (-log p_k): float (B, K) twice -> (B,)."""
    log_p = functional.log_softmax(logits, dim=1)
    # The bound: at p = 1 the power's gradient is infinite for gamma < 1, and times log p = 0 it would be NaN.
    miss = torch.expm1(log_p).neg().clamp_min(torch.finfo(log_p.dtype).tiny)  # 1 - p without cancellation
    return -(shares * miss.pow(gamma) * log_p).sum(dim=1)


def _class_shares(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Labels or shares -> shares with smoothing, float (B, K)."""
    num_classes = logits.shape[1]
    shares = target if target.is_floating_point() else functional.one_hot(target, num_classes)
    if shares.shape != logits.shape:
        raise ValueError(f"target has shape {tuple(shares.shape)}, the logits {tuple(logits.shape)}")
    return shares.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / num_classes


def class_balanced_weights(labels: Sequence[int] | Tensor) -> Tensor:
    """How likely each item should be drawn so that all classes are equally frequent: float64 (N,), on the CPU.

    Each is 1 / the number of items of its class; they sum to the number of classes present.

    Args:
        labels: int (N,), 0 or more.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64, device="cpu")
    counts = torch.bincount(labels)
    return counts[labels].to(torch.float64).reciprocal()
