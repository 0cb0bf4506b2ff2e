"""A network with everything that changes it: optimizer, augmentation, averaging; and one update of its weights."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.augmentation import Augmentation, Mixing, Preprocessing
from utils.batches import Batch
from utils.devices import choose_device
from utils.errors import InputError
from utils.history import add_to_sums, new_sums
from utils.objectives import ClassLabels, Objective
from utils.optimization import (
    build_optimizer,
    freeze_layers,
    keep_frozen_in_eval,
    nondeterministic_on_cuda,
)
from utils.ranks import Ranks
from utils.settings import TrainingSettings
from utils.weight_average import WeightAverage

_BUFFERS_KEY = "forward_sync_buffers"  # torch 2.14's name of broadcast_buffers
# Without CUDA graphs: their memory is used again by the next part of an accumulated update.
_COMPILE_MODES = {"default": None, "max": "max-autotune-no-cudagraphs"}


@dataclass(frozen=True)
class Recipe:
    """Where and how to compute: a torch device, and the autocast type (None computes in float32)."""

    device: torch.device
    autocast_dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """The autocast context of this recipe."""
        return torch.autocast(
            self.device.type, self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
        )


def build_recipe(device: str, precision: str, *, one_each: bool = False) -> Recipe:
    """Resolve a device's name and `fp32|bf16|fp16`.

    Args:
        one_each: several launched processes may each have a device of their own.

    Raises:
        InputError: no such device here, or it cannot compute in this precision.
    """
    chosen = choose_device(device, one_each=one_each)
    if precision == "fp16" and chosen.type == "cpu":
        raise InputError("precision: fp16 needs a GPU; set precision: bf16 or fp32")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # streams, events and NCCL go by the current one
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise InputError("precision: this GPU has no bf16; set precision: fp16 or fp32")
    return Recipe(chosen, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])


class Learner:
    """A network and everything that changes it.

    Args:
        model: is on the recipe's device when this returns.
        objective: what it is trained for; a number of classes is one label an item with the losses of `settings`.

    Raises:
        InputError: it has fewer layers than are to be frozen, or no deterministic form on this device.
    """

    def __init__(
        self, model: nn.Module, objective: Objective | int, settings: TrainingSettings, recipe: Recipe, ranks: Ranks
    ) -> None:
        self.model = _to_device(model, recipe.device)
        self.settings, self.recipe, self.ranks = settings, recipe, ranks
        if isinstance(objective, int):
            losses = {"label_smoothing": settings.label_smoothing, "focal_gamma": settings.focal_gamma}
            objective = ClassLabels(objective, **losses)
        self.objective = objective
        _choose_algorithms(model, settings, recipe.device)
        self._frozen = _freeze(model, settings.freeze_layers)
        self.optimizer = build_optimizer(
            model,
            name=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            beta2=settings.beta2,
            layer_lr_decay=settings.layer_lr_decay,
        )
        self.scaler = torch.amp.GradScaler(recipe.device.type, enabled=recipe.autocast_dtype is torch.float16)
        self.average = WeightAverage(model, settings.ema_decay) if settings.ema_decay else None
        options = settings.augmentation.model_dump()
        self.mixing = Mixing(options.pop("mixup_alpha"), options.pop("cutmix_alpha"))
        self.augment = Augmentation(**options, erase_colour=settings.mean)
        self.preprocess = Preprocessing(settings.mean, settings.std)
        self.forward = self._wrap(model)

    def _wrap(self, model: nn.Module) -> nn.Module:
        """The network as it is called: compiled, and with its gradients exchanged, where asked for."""
        if self.settings.compile != "none":
            model = torch.compile(model, mode=_COMPILE_MODES[self.settings.compile])
        if self.ranks.num_ranks == 1:
            return model
        # BatchNorm's running statistics are those of each process's own items; `share_buffers` keeps the first one's.
        known = inspect.signature(DistributedDataParallel).parameters
        return DistributedDataParallel(model, **{_BUFFERS_KEY if _BUFFERS_KEY in known else "broadcast_buffers": False})

    def train_mode(self) -> None:
        """Training mode, in which parts that are frozen, by whomever, compute as in evaluation."""
        self.model.train()
        keep_frozen_in_eval([*self._frozen, *_frozen_parts(self.model)])

    def new_sums(self) -> torch.Tensor:
        """Zeros for a pass, on the device."""
        return new_sums(self.recipe.device, self.objective.num_hits)

    def share_buffers(self) -> None:
        """Give all processes the first one's BatchNorm statistics: one network is evaluated and saved."""
        self.ranks.copy_from_main(self.model.buffers())
        if self.average:
            self.ranks.copy_from_main(self.average.state_dict().values())

    def with_best_weights(self) -> AbstractContextManager[Any]:
        """The context in which the network has the weights to evaluate and keep: averaged, or as they are."""
        return self.average.applied_to(self.model) if self.average else nullcontext()

    def require_finite_weights(self) -> None:
        """Look at all weights: a last update can break them after a loss that was finite.

        Raises:
            InputError: one is not finite.
        """
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise InputError(
                    f"the weights {name} are no longer finite; lower lr, set clip_grad_norm, or use precision: fp32. "
                    "The last checkpoint stands"
                )

    def state(self) -> dict[str, Any]:
        """Everything that resume needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state; raises KeyError, TypeError, ValueError or RuntimeError where it is another network's."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])


def update_weights(
    learner: Learner, parts: Iterable[Batch], sums: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """One update: forward and backward for each part, then one step; returns this process's share of the mean loss.

    Args:
        sums: the training pass's, see `utils.history.add_to_sums`.
        generator: what augmentation is drawn from, on the CPU.
    """
    optimizer, scaler, num_parts = learner.optimizer, learner.scaler, learner.settings.accumulate
    optimizer.zero_grad(set_to_none=True)
    shares_of_loss = []
    for number, part in enumerate(parts, start=1):
        with _exchanging_gradients(learner.forward, number == num_parts):
            loss = _loss_of(learner, part, sums, generator)
            # DistributedDataParallel takes the mean over processes; what is wanted is the sum of their shares.
            scaler.scale(loss * learner.ranks.num_ranks).backward()
        shares_of_loss.append(loss.detach())
    if learner.settings.clip_grad_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(learner.model.parameters(), learner.settings.clip_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    if learner.average:
        learner.average.update(learner.model)
    return torch.stack(shares_of_loss).sum()


def _loss_of(learner: Learner, part: Batch, sums: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    device, objective = learner.recipe.device, learner.objective
    inputs, labels, shares = (t.to(device, non_blocking=True) for t in (part.inputs, part.target, part.shares))
    inputs = learner.preprocess(learner.augment(inputs, generator))
    inputs, target = learner.mixing(inputs, labels, objective.num_classes, generator)
    with learner.recipe.autocast():
        logits = learner.forward(inputs)
    logits = logits.float()
    losses = objective.losses(logits, target)
    add_to_sums(sums, losses, logits, labels, shares > 0, objective.hits)
    return (losses * shares).sum()


def _exchanging_gradients(forward: nn.Module, is_last: bool) -> AbstractContextManager[Any]:
    """Processes exchange gradients once an update: with its last part."""
    is_exchanged = isinstance(forward, DistributedDataParallel)
    return forward.no_sync() if is_exchanged and not is_last else contextlib.nullcontext()


def _to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """2-D kernels in the memory order of the pixels; 3-D ones as they are."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return model.to(device)


def _freeze(model: nn.Module, num_layers: int) -> list[nn.Module]:
    try:
        return freeze_layers(model, num_layers)
    except ValueError as error:
        raise InputError(f"freeze_layers: {error}") from None


def _frozen_parts(module: nn.Module) -> list[nn.Module]:
    """The largest parts whose weights are all frozen, with the norms and dropouts in them; none of those without."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        return [module]
    return [part for child in module.children() for part in _frozen_parts(child)]


def _choose_algorithms(model: nn.Module, settings: TrainingSettings, device: torch.device) -> None:
    """Deterministic ones where they are asked for, else those that cuDNN measures to be fastest; for this process."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic and device.type == "cuda":
        if layers := nondeterministic_on_cuda(model):
            raise InputError(
                f"deterministic: CUDA has no deterministic gradient for {', '.join(layers)}; set deterministic: false, "
                "train on the CPU, or, for clips of three frames, use temporal_conv: four_product"
            )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses products of matrices
    torch.use_deterministic_algorithms(settings.deterministic)
