"""An exponential average of a network's weights, evaluated and kept instead of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential average of a model's weights (Polyak & Juditsky 1992), beside the model.

    It begins as a copy. Parameters are averaged, in float32 at least: in bfloat16 the small steps would round to
    nothing. Buffers (BatchNorm's statistics, which are averages already) are those of the last update.

    Args:
        decay: share of the old average that each update keeps; 0.999 averages over about the last 1000 updates.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        state = model.state_dict(keep_vars=True)
        starts = {name: _widened(value) if _is_averaged(value) else value for name, value in state.items()}
        self._average = {name: value.detach().clone() for name, value in starts.items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights as they are now; call it after every optimizer step."""
        averages, values = [], []
        for name, value in model.state_dict(keep_vars=True).items():
            if _is_averaged(value):
                averages.append(self._average[name])
                values.append(_widened(value))
            else:
                self._average[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights inside the `with`, and bit by bit with its own after it."""
        state = model.state_dict()
        own = {name: value.clone() for name, value in state.items()}
        try:
            _copy_into(state, self._average)
            yield
        finally:
            _copy_into(state, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the names of the model's own state dict; not copies."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved averages.

        Raises:
            ValueError: they are of another model.
        """
        shapes = {name: value.shape for name, value in self._average.items()}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise ValueError("the averaged weights are of another model: names or shapes differ")
        _copy_into(self._average, state)


def _is_averaged(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) and value.is_floating_point()


def _widened(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


@torch.no_grad()
def _copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    # In place, and not through .data: layers that keep something computed from a weight see that it changed.
    for name, target in targets.items():
        target.copy_(sources[name])
