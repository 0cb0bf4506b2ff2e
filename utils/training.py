"""The training loop that all trainers share: visible, a few lines each, exact to resume at every update.

It sees batches (uint8 inputs, targets) and `model(inputs) -> logits (B, num_logits)`; what a model needs beyond that is
the model's affair, and what targets mean the objective's (`utils.objectives`). Every update is seeded by (seed, epoch,
step, rank), so that resume needs no generator's state: on a CPU a resumed run is the uninterrupted one, bit for bit,
with the same number of threads.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from utils.batches import Batches
from utils.checkpoints import ModelDescription
from utils.curves import draw_curves
from utils.devices import describe_memory
from utils.errors import InputError, StopRequest
from utils.history import BY_TASK, Plan, Position, Score, add_to_sums
from utils.learner import Learner, update_weights
from utils.optimization import set_learning_rate
from utils.saving import Saver, resume
from utils.training_run import DONE_FILE
from utils.utils import derive_seed, progress, set_seed

log = logging.getLogger(__name__)
_AUGMENTATION = 3  # a stream of its own beside dropout (see utils.batches)
_LOOK_EVERY = 50  # updates between two looks at a GPU's losses: each waits for the GPU


def fit(
    learner: Learner,
    train_batches: Batches,
    selection_batches: Batches,
    description: ModelDescription,
    run_dir: Path,
    stop: StopRequest,
) -> float:
    """Train to the end of the plan, keep the epoch that is best on the selection items, resume where a run stopped.

    Args:
        description: of the weights file; epoch, update and metric are filled in here.

    Returns:
        the best top-1 on the selection items, as a fraction.

    Raises:
        InputError: a checkpoint that is damaged or another run's; a loss that is not finite.
        Terminated, KeyboardInterrupt: a signal has come; everything so far is saved.
    """
    plan = Plan(learner.settings, len(train_batches))
    position = resume(learner, description, run_dir)
    saver = Saver(learner, position, description, run_dir, stop)
    while not plan.is_over(position):
        clock = _EpochClock(position.step)
        train_one_epoch(learner, train_batches, plan, position, saver)
        clock.trained(position.step, train_batches)
        learner.share_buffers()
        with saver.saving_on_stop(), learner.with_best_weights():
            tested = evaluate(learner, selection_batches, saver.leave_if_asked)
            _require_finite_score(tested, position)
            best = _describe_if_best(learner, description, position, tested)
        position.finish_epoch(_history_row(learner, position, tested), saver.losses())
        saver.save(best)
        _log_epoch(learner, plan, position, clock)
        if tested.top1_by_task:
            log.info("selection top-1 by task: %s", ", ".join(f"{k} {v:.3f}" for k, v in tested.top1_by_task.items()))
    saver.write_tables()  # a kill after the last checkpoint may have kept them from disk
    if learner.ranks.is_main:
        draw_curves(position.rows, run_dir / DONE_FILE)
    return max(row["selection_top1_fraction"] for row in position.rows)


def train_one_epoch(learner: Learner, batches: Batches, plan: Plan, position: Position, saver: Saver) -> None:
    """The updates that an epoch still lacks.

    Args:
        position: where the run is; moved on with every update.

    Raises:
        as `fit`.
    """
    learner.train_mode()
    last_step = plan.last_step(position)
    updates = batches.epoch(position.epoch, position.step, last_step)
    title = f"epoch {position.epoch}/{plan.num_epochs}"
    for parts in progress(updates, last_step - position.step, title, every=100):
        draw = (learner.settings.seed, position.epoch, position.step, learner.ranks.rank)
        set_seed(*draw)  # dropout
        generator = torch.Generator().manual_seed(derive_seed(*draw, _AUGMENTATION))
        rate = plan.learning_rate(position)
        set_learning_rate(learner.optimizer, rate)
        loss = update_weights(learner, parts, position.sums, generator)
        position.advance(loss, rate)
        if learner.recipe.device.type == "cpu" or position.step % _LOOK_EVERY == 0:
            require_finite(position, batches)
        saver.save_if_due(lambda: require_finite(position, batches))
    require_finite(position, batches)


@torch.inference_mode()
def evaluate(learner: Learner, batches: Batches, on_batch: Callable[[], None] = lambda: None) -> Score:
    """One pass without updates, in eval mode; over all processes, each item once.

    Args:
        on_batch: called before each batch.
    """
    device, objective = learner.recipe.device, learner.objective
    learner.model.eval()
    sums = learner.new_sums()
    for batch in batches.in_order():
        on_batch()
        inputs, labels = (tensor.to(device, non_blocking=True) for tensor in (batch.inputs, batch.target))
        with learner.recipe.autocast():
            logits = learner.model(learner.preprocess(inputs))
        losses = objective.plain_losses(logits.float(), labels)
        add_to_sums(sums, losses, logits, labels, torch.ones_like(losses, dtype=torch.bool), objective.hits)
    return objective.score(learner.ranks.sum(sums))


def require_finite(position: Position, batches: Batches) -> None:
    """Look at the losses since the last look.

    Raises:
        InputError: one is not finite: with epoch, step and the first items of the batch.
    """
    recent = position.recent_losses[-_LOOK_EVERY:]
    finite = torch.isfinite(torch.stack(recent)).tolist() if recent else []
    if all(finite):
        return
    step = position.step - len(recent) + finite.index(False)
    items = [batches.names[item] for item in batches.items_of(position.epoch, step)]
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    raise InputError(
        f"the training loss is {position.recent_losses[step].item()} at epoch {position.epoch}, step {step + 1}, with "
        f"{', '.join(items[:3])}{more}; lower lr, set clip_grad_norm, or use precision: fp32"
    )


class _EpochClock:
    """How long an epoch's updates took, and how long they waited for data."""

    def __init__(self, first_step: int) -> None:
        self._started_s, self._first_step = time.monotonic(), first_step
        self.num_steps, self.num_items, self.train_s, self.wait_s = 0, 0, 0.0, 0.0

    def trained(self, step: int, batches: Batches) -> None:
        """The updates are made."""
        self.num_steps, self.train_s = step - self._first_step, time.monotonic() - self._started_s
        first, end = (number * batches.batch_size for number in (self._first_step, step))
        self.num_items = min(end, len(batches.positions)) - first
        self.wait_s, batches.wait_s = batches.wait_s, 0.0

    @property
    def seconds(self) -> float:
        """Since the epoch began."""
        return time.monotonic() - self._started_s


def _require_finite_score(tested: Score, position: Position) -> None:
    """The last update may have broken the weights: they must replace none that were whole."""
    if not math.isfinite(tested.loss):
        raise InputError(
            f"the selection loss is {tested.loss} after epoch {position.epoch} (update {position.update}); lower lr, "
            "set clip_grad_norm, or use precision: fp32"
        )


def _describe_if_best(
    learner: Learner, description: ModelDescription, position: Position, tested: Score
) -> tuple[dict[str, torch.Tensor], ModelDescription] | None:
    """Copies of the weights, if no epoch was as good."""
    if any(tested.top1_fraction <= row["selection_top1_fraction"] for row in position.rows):
        return None
    metric = {"name": f"{description.selection_split}_top1_fraction", "value": tested.top1_fraction}
    described = replace(description, epoch=position.epoch, update=position.update, metric=metric)
    weights = learner.model.state_dict()
    # Averaged weights give way to the trained ones before they are saved.
    return {name: t.clone() if learner.average else t for name, t in weights.items()}, described


def _history_row(learner: Learner, position: Position, tested: Score) -> dict[str, Any]:
    trained = learner.objective.score(learner.ranks.sum(position.sums))
    by_task = {BY_TASK: dict(tested.top1_by_task)} if tested.top1_by_task else {}
    return {
        "epoch": position.epoch,
        "update": position.update,
        "learning_rate": position.recent_rates[-1],
        "train_loss": trained.loss,
        "train_top1_fraction": trained.top1_fraction,
        "selection_loss": tested.loss,
        "selection_top1_fraction": tested.top1_fraction,
        "selection_top3_fraction": tested.top3_fraction,
        **by_task,
    }


def _log_epoch(learner: Learner, plan: Plan, position: Position, clock: _EpochClock) -> None:
    row, last = position.rows[-1], position.rows[-1]["epoch"]
    log.info(
        "epoch %d/%d: loss %.4f, train top-1 %.3f, selection top-1 %.3f, lr %.2g, %.1f items/s, %.0f %% waiting for "
        "data%s, %.0f s left",
        last,
        plan.num_epochs,
        row["train_loss"],
        row["train_top1_fraction"],
        row["selection_top1_fraction"],
        row["learning_rate"],
        clock.num_items / max(clock.train_s, 1e-9),
        100 * clock.wait_s / max(clock.train_s, 1e-9),
        describe_memory(learner.recipe.device),
        (plan.total_updates - position.update) * clock.seconds / max(clock.num_steps, 1),
    )
