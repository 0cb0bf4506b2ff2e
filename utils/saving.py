"""Checkpoints of a run under way: when they are made, what follows from them, and how a run goes on from one."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from utils.artifacts import HISTORY, TASK_HISTORY, UPDATES, format_table, write_table
from utils.checkpoints import ModelDescription
from utils.curves import write_events
from utils.devices import device_name
from utils.errors import InputError, StopRequest
from utils.files import remove_partial_files
from utils.history import Position
from utils.learner import Learner
from utils.runs import flatten
from utils.sidecar import STATE_FILE
from utils.training_run import EVENTS_FOLDER
from utils.training_state import load_checkpoint, save_checkpoint
from utils.training_time import TrainingClock

log = logging.getLogger(__name__)
_IDENTITY = ("type", "options", "classes", "input", "seed", "start", "train_input", "trained_on", "selected_on")


class _EvaluationStopped(Exception):
    """A signal has come while evaluating."""


class Saver:
    """When and what to save: checkpoints, and the tables that follow from them.

    Args:
        position: where the run is; looked at whenever something is saved.
        description: of the run's weights.
    """

    def __init__(
        self, learner: Learner, position: Position, description: ModelDescription, run_dir: Path, stop: StopRequest
    ) -> None:
        self._learner, self._position, self._run_dir, self._stop = learner, position, run_dir, stop
        self._run = _identify(description)
        self._saved_s = time.monotonic()
        if learner.ranks.is_main:
            self._clock = TrainingClock(run_dir, position.update, device_name(learner.recipe.device))

    def losses(self) -> list[float]:
        """Of the updates of the epoch under way, over all processes."""
        recent = self._position.recent_losses
        return self._learner.ranks.sum(torch.stack(recent).cpu()).tolist() if recent else []

    def save(self, best: tuple[dict[str, torch.Tensor], ModelDescription] | None = None) -> None:
        """A checkpoint; all processes take part, the first one writes."""
        learner, position = self._learner, self._position
        learner.share_buffers()
        sums, losses = learner.ranks.sum(position.sums), self.losses()
        if learner.ranks.is_main:
            state = learner.state() | {"position": position.state(sums, losses), "run": self._run}
            save_checkpoint(self._run_dir, state, best)
            self._clock.write(position.update)
            if position.step == 0:
                self.write_tables()
        self._saved_s = time.monotonic()

    def save_if_due(self, check: Callable[[], None]) -> None:
        """In mid-epoch: before a stop, and after so many seconds.

        Args:
            check: called before anything is saved; raises where a run cannot go on from here.
        """
        every_s = self._learner.settings.checkpoint_every_s
        is_late = every_s is not None and time.monotonic() - self._saved_s > every_s
        if self._learner.ranks.any(self._stop.is_set or is_late):
            check()
            self._learner.require_finite_weights()
            self.save()
            self._raise_if_asked()

    def leave_if_asked(self) -> None:
        """While evaluating: leave, to where the network has the weights again that are trained."""
        # Several processes have unequal numbers of batches to look between; their next update looks.
        if self._learner.ranks.num_ranks == 1 and self._stop.is_set:
            raise _EvaluationStopped

    @contextmanager
    def saving_on_stop(self) -> Iterator[None]:
        """Around an evaluation: the epoch's updates are made, and only they are saved."""
        try:
            yield
        except _EvaluationStopped:
            self.save()
            self._raise_if_asked()

    def write_tables(self) -> None:
        """The histories, `updates.csv` and TensorBoard's events, from what is saved."""
        if not self._learner.ranks.is_main:
            return
        position = self._position
        write_table(position.rows, self._run_dir / "history.csv", HISTORY)
        write_table(position.update_rows(), self._run_dir / "updates.csv", UPDATES)
        if by_task := position.task_rows():
            write_table(by_task, self._run_dir / "history_by_task.csv", TASK_HISTORY)
        if self._learner.settings.tensorboard:
            write_events(self._run_dir / EVENTS_FOLDER, position.rows, position.update_rows())

    def _raise_if_asked(self) -> None:
        if self._learner.ranks.any(self._stop.is_set):
            self._stop.request()  # in the processes that no signal reached
            self._stop.raise_if_set()


def resume(learner: Learner, description: ModelDescription, run_dir: Path) -> Position:
    """Take over a run's checkpoint; returns where the run is, the beginning where there is none.

    Raises:
        InputError: the checkpoint is damaged, or another run's.
    """
    state = load_checkpoint(run_dir)
    if learner.ranks.is_main:
        remove_partial_files(run_dir)  # a run that was killed in its last write writes nothing more
    if state is None:
        return Position(learner.new_sums())
    try:
        _require_same_run(state["run"], _identify(description))
        learner.load(state)
        position = Position.from_state(state["position"], learner.recipe.device, is_main=learner.ranks.is_main)
        format_table(position.rows, HISTORY)
    except torch.OutOfMemoryError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]  # torch's go over many lines
        raise InputError(
            f"{run_dir / STATE_FILE}: does not belong to this run ({reason}); restore it, or pass overwrite=true to "
            "train again"
        ) from None
    log.info("resuming in epoch %d after %d updates", position.epoch, position.update)
    return position


def _identify(description: ModelDescription) -> dict[str, Any]:
    """What a state belongs to, as plain values; settings are compared when a run is opened."""
    described = json.loads(description.to_json())
    return {key: described[key] for key in _IDENTITY}


def _require_same_run(recorded: dict[str, Any], own: dict[str, Any]) -> None:
    """The sidecar may have come along with another run's checkpoint, and the hold-out may be drawn anew."""
    old, new = flatten(recorded), flatten(own)
    if changed := [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]:
        raise ValueError("; ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed))
