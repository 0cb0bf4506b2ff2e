"""How weights are changed: optimizers, learning rates, frozen layers, determinism.

Every rate is a function of where a run is (update, epoch, losses so far), so that a resumed run needs no scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

_OPTIMIZERS = ("adamw", "sgd")
_NOT_DECAYED = "log_variances"  # of learned task weights
_PLATEAU_THRESHOLD, _PLATEAU_EPS = 1e-4, 1e-8  # of torch's ReduceLROnPlateau: a better loss; the smallest change

# ---------------------------------------------------------------------------------------------------------------------
# Optimizers and layers


def build_optimizer(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    beta2: float = 0.999,
    layer_lr_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """An optimizer of the parameters that are not frozen; fused (one pass over them instead of four) where it can be.

    Args:
        name: `sgd` with momentum (the paper's, section 4.2) or `adamw` (Loshchilov & Hutter 2019).
        momentum: of `adamw`, the first decay rate; higher averages gradients over more updates.
        weight_decay: higher pulls weights to 0 faster; all parameters, as in the paper.
        beta2: second decay rate of `adamw`.
        layer_lr_decay: each layer's rate is this times that of the layer after it; 1 keeps one group of parameters.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(_OPTIMIZERS)}")
    groups = _parameter_groups(model, lr, layer_lr_decay)
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    options = {"lr": lr, "weight_decay": weight_decay, "fused": fused}
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=(momentum, beta2), **options)
    return torch.optim.SGD(groups, momentum=momentum, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group this rate times its layer's scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def weight_layers(model: nn.Module) -> list[list[nn.Module]]:
    """The layers in order of definition, each the module that owns the kernel or matrix and the norms after it.

    A layer begins with a module whose `weight` has two dimensions or more: convolutions and linear layers, whatever
    their class. What comes before the first one belongs to it. A network with a method `weight_layers` says itself what
    its layers are: a transformer's are its blocks.
    """
    if hasattr(model, "weight_layers"):
        return model.weight_layers()
    layers: list[list[nn.Module]] = [[]]
    has_begun = False
    for module in model.modules():
        begins = getattr(dict(module.named_parameters(recurse=False)).get("weight"), "ndim", 0) >= 2
        if begins and has_begun:
            layers.append([])
        has_begun = has_begun or begins
        layers[-1].append(module)
    return layers if has_begun else []


def freeze_layers(model: nn.Module, num_layers: int) -> list[nn.Module]:
    """Keep the first so many layers as they are; call this before the optimizer is built.

    Returns:
        Their BatchNorm modules, whose running statistics must not move: after every `model.train()` give them to
        `keep_frozen_in_eval`.

    Raises:
        ValueError: no layer would be left to train.
    """
    layers = weight_layers(model)
    if num_layers and num_layers >= len(layers):
        raise ValueError(f"cannot freeze {num_layers} layers of {len(layers)}; at most {max(len(layers) - 1, 0)}")
    frozen = [module for layer in layers[:num_layers] for module in layer]
    for module in frozen:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return [module for module in frozen if getattr(module, "running_mean", None) is not None]


def keep_frozen_in_eval(modules: Iterable[nn.Module]) -> None:
    """Put the modules that `freeze_layers` returned into eval mode."""
    for module in modules:
        module.eval()


def _parameter_groups(model: nn.Module, lr: float, layer_lr_decay: float) -> list[dict]:
    return [part for group in _layer_groups(model, lr, layer_lr_decay) for part in _without_decay(group, model)]


def _without_decay(group: dict, model: nn.Module) -> list[dict]:
    """A group and, by itself, what weight decay would pull away from its optimum (see `utils.objectives`)."""
    apart = {p for name, p in model.named_parameters() if name.rpartition(".")[2] == _NOT_DECAYED}
    kept, split = ([p for p in group["params"] if (p in apart) == is_apart] for is_apart in (False, True))
    parts = [group | {"params": kept}, group | {"params": split, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


def _layer_groups(model: nn.Module, lr: float, layer_lr_decay: float) -> list[dict]:
    if layer_lr_decay == 1:
        # One group in the order of model.parameters(): the state of an optimizer saved elsewhere fits.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [{"params": trained, "lr": lr, "lr_scale": 1.0}]
    layers, groups, seen = weight_layers(model), [], set()
    for index, layer in enumerate(layers):
        own = [parameter for module in layer for parameter in module.parameters(recurse=False)]
        own = [parameter for parameter in own if parameter.requires_grad and parameter not in seen]
        seen.update(own)  # a weight that two layers share follows the first
        scale = layer_lr_decay ** (len(layers) - 1 - index)
        if own:
            groups.append({"params": own, "lr": lr * scale, "lr_scale": scale})
    return groups


# ---------------------------------------------------------------------------------------------------------------------
# Learning rates


def scaled_learning_rate(lr: float, batch_size: int, *, rule: str, reference_batch_size: int) -> float:
    """The rate for a batch size other than the one `lr` was chosen for.

    Args:
        batch_size: items an update, over all processes.
        rule: `none`, `linear` (Goyal et al. 2017) or `sqrt` in the ratio of the batch sizes.

    Raises:
        ValueError: an unknown rule.
    """
    ratio = batch_size / reference_batch_size
    factors = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
    if rule not in factors:
        raise ValueError(f"unknown rule {rule!r}; known: {', '.join(sorted(factors))}")
    return lr * factors[rule]


def learning_rate(
    update: int,
    epoch: int,
    *,
    schedule: str,
    base_lr: float,
    total_updates: int,
    warmup_updates: int,
    min_lr: float,
    lr_step: int,
    lr_gamma: float,
    plateau_patience: int,
    history_losses: Sequence[float] = (),
) -> float:
    """The rate of one update; the same values as torch's schedulers.

    Args:
        update: 0-based, over the whole run; the last is `total_updates - 1`.
        epoch: 1-based.
        schedule: `constant`; `step`: times `lr_gamma` after every `lr_step` epochs; `cosine`: from `base_lr` at the
            first update after the warm-up to `min_lr` at the last (Loshchilov & Hutter 2017); `plateau`: times
            `lr_gamma` when more than `plateau_patience` epochs in a row had no better loss.
        warmup_updates: the rate rises by equal steps, from `base_lr / warmup_updates` at the first update to all of the
            schedule's rate at the last of these.
        min_lr: the schedule goes no lower.
        history_losses: of the finished epochs, the first one first.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule == "constant":
        rate = base_lr
    elif schedule == "step":
        rate = max(_decayed(base_lr, lr_gamma, (epoch - 1) // lr_step), min_lr)
    elif schedule == "cosine":
        done = (update - warmup_updates) / max(total_updates - 1 - warmup_updates, 1)
        done = min(max(done, 0.0), 1.0)
        rate = min_lr + (base_lr - min_lr) * (1 + math.cos(math.pi * done)) / 2
    elif schedule == "plateau":
        rate = _plateau_rate(base_lr, lr_gamma, min_lr, plateau_patience, history_losses)
    else:
        raise ValueError(f"unknown schedule {schedule!r}; known: constant, cosine, plateau, step")
    return rate * min((update + 1) / warmup_updates, 1.0) if warmup_updates else rate


def should_stop_early(history_metrics: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` epochs (1 or more) all failed to raise the metric, of which higher is better.

    Args:
        history_metrics: one an epoch, the first one first; an equal or NaN metric is no better one.
        patience: None never stops.
    """
    best, best_epoch = -math.inf, 0
    for epoch, metric in enumerate(history_metrics, start=1):
        if metric > best:
            best, best_epoch = metric, epoch
    return patience is not None and len(history_metrics) - best_epoch >= patience


def _decayed(rate: float, gamma: float, times: int) -> float:
    for _ in range(times):
        rate *= gamma  # not a power: torch's schedulers round at every step
    return rate


def _plateau_rate(rate: float, gamma: float, min_lr: float, patience: int, losses: Sequence[float]) -> float:
    best, bad_epochs = math.inf, 0
    for loss in losses:
        if loss < best * (1 - _PLATEAU_THRESHOLD):
            best, bad_epochs = loss, 0
        else:
            bad_epochs += 1
        if bad_epochs > patience:
            lowered, bad_epochs = max(rate * gamma, min_lr), 0
            rate = lowered if rate - lowered > _PLATEAU_EPS else rate
    return rate


# ---------------------------------------------------------------------------------------------------------------------
# Determinism

# Modules for which torch.use_deterministic_algorithms refuses the gradient on CUDA, by its documentation in torch 2.14.
# AdaptiveMaxPool3d is not named there, but its gradient adds in no fixed order, too.
_POOLS = (nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.AvgPool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_UNPOOLS = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)
_REFLECTIONS = (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)


def nondeterministic_on_cuda(model: nn.Module) -> list[str]:
    """Modules whose gradient has no deterministic algorithm on CUDA, as `avgpool: AdaptiveAvgPool3d`.

    Functions that a `forward` calls itself are not seen. Padding by replication has a deterministic form.
    """
    return [f"{name}: {type(module).__name__}" for name, module in model.named_modules() if _is_refused(module)]


def _is_refused(module: nn.Module) -> bool:
    if getattr(module, "is_repeatable", False):
        return False
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)):
        size = module.output_size
        return any(side != 1 for side in (size if isinstance(size, tuple) else (size,)))  # to 1 it is torch's mean
    if isinstance(module, nn.MaxPool3d):
        return not _max_pool3d_is_deterministic(torch.__version__)
    if isinstance(module, nn.Upsample):
        return module.mode in ("linear", "bilinear", "bicubic", "trilinear")
    reflects = getattr(module, "padding_mode", None) == "reflect"  # convolutions
    return reflects or isinstance(module, (*_POOLS, *_UNPOOLS, *_REFLECTIONS))


def _max_pool3d_is_deterministic(version: str) -> bool:
    """By the documentation, from torch 2.13 on."""
    return tuple(int(part) for part in version.split(".")[:2]) >= (2, 13)
