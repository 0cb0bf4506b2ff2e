"""What is minimised and counted: hand-computed losses with missing labels, and runs that resume to the same bits."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import KILLED, run_in_child
from samples import write_clip_set
from small_training import (
    free_port,
    rank_environment,
    tiny_batches,
    tiny_description,
    tiny_network,
    tiny_pixels,
    tiny_settings,
)
from torch import nn
from torch.nn import functional
from training_runs import TERMINATED, content_of, differing, kill_after_checkpoint, stop_at_update

import utils.trainer
from utils import augmentation
from utils.artifacts import HISTORY, TASK_HISTORY, read_table
from utils.augmentation import Mixing
from utils.batches import Batches
from utils.errors import InputError, StopRequest, run_script
from utils.history import Score, add_to_sums, new_sums
from utils.indices import ClassInfo, read_clip_splits
from utils.learner import Learner, build_recipe, update_weights
from utils.objectives import ClassLabels, TaskLabelsObjective, find_log_variances
from utils.ranks import Ranks, join_ranks
from utils.settings import TrainingSettings
from utils.sources import clip_files
from utils.task_labels import TaskLabels
from utils.trainer import Task, train_network
from utils.training import evaluate, fit
from utils.training_state import load_checkpoint
from Video_Models.multi_task import TaskHeads

TASKS = {"a": 2, "b": 3}
LOSSES = [{}, {"label_smoothing": 0.2}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1, "focal_gamma": 0.5}]
LABELS = torch.tensor([[1, 2], [0, -1], [-1, 1], [-1, -1], [1, 0]])


def logits_of(num_items: int = 5, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_items, width, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def cross_entropies(logits: torch.Tensor, smoothing: float = 0.0, gamma: float = 0.0) -> np.ndarray:
    """Of `LABELS`, by the formula in float64: (5, 2), 0 where a label is missing."""
    found = np.zeros((5, 2))
    for item, labels in enumerate(LABELS.tolist()):
        for task, (label, part) in enumerate(zip(labels, (slice(0, 2), slice(2, 5)), strict=True)):
            if label < 0:
                continue
            scores = logits.detach()[item, part].double().numpy()
            p = np.exp(scores) / np.exp(scores).sum()
            target = np.eye(len(p))[label] * (1 - smoothing) + smoothing / len(p)
            found[item, task] = -(target * (1 - p) ** gamma * np.log(p)).sum()
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def test_equal_logits_cost_the_logarithm_of_the_classes_of_known_tasks():
    objective = TaskLabelsObjective(TASKS, weights={"b": 3.0})
    a, b = math.log(2) / 2, math.log(3) / 2  # of two tasks
    found = objective.losses(torch.zeros(5, 5), LABELS)
    assert found.tolist() == pytest.approx([a + 3 * b, a, 3 * b, 0.0, a + 3 * b], rel=1e-6)
    assert objective.plain_losses(torch.zeros(5, 5), LABELS).tolist() == pytest.approx(
        [a + b, a, b, 0.0, a + b], rel=1e-6
    )


@pytest.mark.parametrize("options", LOSSES)
def test_losses_are_the_formula(options):
    logits = logits_of()
    found = TaskLabelsObjective(TASKS, weights={"a": 0.5}, **options).losses(logits, LABELS)
    expected = cross_entropies(logits, options.get("label_smoothing", 0.0), options.get("focal_gamma", 0.0))
    np.testing.assert_allclose(found.detach().numpy(), expected @ [0.5, 1.0] / 2, rtol=1e-5)


@pytest.mark.parametrize("options", LOSSES)
@pytest.mark.parametrize("learned", [False, True])
def test_gradients_of_missing_labels_are_exactly_zero(options, learned):
    logits = logits_of()
    log_variances = torch.tensor([0.3, -0.4], requires_grad=True) if learned else None
    TaskLabelsObjective(TASKS, log_variances=log_variances, **options).losses(logits, LABELS).sum().backward()
    for task, part in enumerate((slice(0, 2), slice(2, 5))):
        is_known = LABELS[:, task] >= 0
        assert logits.grad[~is_known, part].abs().max() == 0
        assert (logits.grad[is_known, part].abs().max(1).values > 1e-3).all()


def test_learned_weights_are_the_formula_with_gradients_of_labelled_items():
    logits, s = logits_of(), torch.tensor([0.5, -1.0], requires_grad=True)
    found = TaskLabelsObjective(TASKS, weights={"b": 2.0}, log_variances=s).losses(logits, LABELS)
    losses, known, values = cross_entropies(logits), (LABELS >= 0).numpy(), s.detach().double().numpy()
    expected = (losses * np.exp(-values) + known * values / 2) @ [1.0, 2.0] / 2
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-7)
    found.sum().backward()
    by_hand = (-losses * np.exp(-values) + known / 2).sum(0) * [1.0, 2.0] / 2
    np.testing.assert_allclose(s.grad.numpy(), by_hand, rtol=1e-5)


def test_the_optimal_variance_is_twice_the_loss_of_labelled_items():
    """However few items have a label: the term that keeps a weight from 0 is masked like the loss."""
    logits, labels = logits_of(40), torch.full((40, 2), -1)
    labels[:, 0], labels[:4, 1] = torch.arange(40) % 2, torch.tensor([0, 1, 2, 0])
    s = torch.zeros(2, requires_grad=True)
    objective, optimizer = TaskLabelsObjective(TASKS, log_variances=s), torch.optim.SGD([s], lr=2.0)
    for _ in range(400):
        optimizer.zero_grad()
        objective.losses(logits.detach(), labels).mean().backward()
        optimizer.step()
    means = [
        functional.cross_entropy(logits[:, :2], labels[:, 0]),
        functional.cross_entropy(logits[:4, 2:], labels[:4, 1]),
    ]
    assert s.tolist() == pytest.approx([math.log(2 * mean.item()) for mean in means], abs=1e-3)


@pytest.mark.parametrize("options", LOSSES)
@pytest.mark.parametrize("mixing", [Mixing(), Mixing(0.4), Mixing(0.0, 1.0)], ids=["plain", "mixup", "cutmix"])
def test_one_task_with_all_labels_is_one_label_an_item_bit_for_bit(options, mixing):
    labels, inputs = torch.arange(8) % 3, torch.rand(8, 3, 6, 6)
    targets, found = [], []
    for objective, own in (
        (ClassLabels(3, **options), labels),
        (TaskLabelsObjective({"a": 3}, **options), labels[:, None]),
    ):
        logits = logits_of(8, 3)
        _, target = mixing(inputs, own, objective.num_classes, torch.Generator().manual_seed(4))
        losses = objective.losses(logits, target)
        losses.mean().backward()
        targets.append(target.view(8, -1))
        found.append((losses, logits.grad, objective.plain_losses(logits, own), objective.hits(logits, own)[0]))
    assert torch.equal(*targets)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixed_items_count_for_tasks_of_which_both_labels_are_known(kind):
    inputs, source = torch.rand(5, 3, 8, 8), torch.Generator().manual_seed(2)
    _, target = Mixing(**{kind: 1.0})(inputs, LABELS, (2, 3), source)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(2))
    for task, part in enumerate((slice(0, 2), slice(2, 5))):
        is_known = (LABELS[:, task] >= 0) & (LABELS[order, task] >= 0)
        assert torch.equal(~target[:, part].isnan().any(1), is_known)
        torch.testing.assert_close(target[is_known, part].sum(1), torch.ones(int(is_known.sum())))
    assert 0 < target.isnan().sum() < target.numel(), "some of both"
    logits = logits_of()
    losses = TaskLabelsObjective(TASKS).losses(logits, target)
    parts = [-(target[:, p] * logits[:, p].log_softmax(1)).sum(1).nan_to_num() for p in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(losses, sum(parts) / 2)
    losses.sum().backward()
    assert (logits.grad[target.isnan()] == 0).all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_label_without_a_share_need_not_be_known(kind, share, monkeypatch):
    """Beta draws exactly 0 and 1 for a small alpha, and a box of cutmix may be empty or the whole."""
    monkeypatch.setattr(augmentation, "_draw_beta", lambda *_: share)
    monkeypatch.setattr(augmentation, "_paste", lambda inputs, *_: (inputs, share))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(2))
    _, target = Mixing(**{kind: 1.0})(torch.rand(5, 3, 8, 8), LABELS, (2, 3), torch.Generator().manual_seed(2))
    kept = LABELS if share else LABELS[order]
    assert torch.equal(~target[:, [0, 2]].isnan(), kept >= 0)
    losses, expected = (TaskLabelsObjective(TASKS).losses(logits_of(), labels) for labels in (target, kept))
    torch.testing.assert_close(losses, expected)


def test_with_mixing_a_rarely_labelled_task_counts_by_the_square_of_its_share():
    labels = torch.full((4000, 2), -1)
    labels[:, 0], labels[:1000, 1] = 0, 1
    _, target = Mixing(mixup_alpha=1.0)(torch.rand(4000, 3, 1, 1), labels, (2, 3), torch.Generator().manual_seed(0))
    is_known = ~target[:, [0, 2]].isnan()
    assert is_known.double().mean(0).tolist() == pytest.approx([1.0, 1 / 16], abs=0.01)


@pytest.mark.parametrize(
    ("tasks", "weights", "message"), [({}, {}, "at least one"), (TASKS, {"c": 1.0}, "unknown task 'c'; known: a, b")]
)
def test_weights_of_unknown_tasks_are_refused(tasks, weights, message):
    with pytest.raises(ValueError, match=message):
        TaskLabelsObjective(tasks, weights=weights)


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def test_top1_is_the_mean_over_tasks_of_the_hits_among_labelled_items():
    logits = torch.zeros(5, 5)
    logits[[0, 4], 1] = 1.0  # task a: items 0 and 4 are right, item 1 is right by the tie; of 3
    logits[:, 3] = 1.0  # task b: says 1 for all, right for item 2 of items 0, 2, 4
    objective, sums = TaskLabelsObjective(TASKS), new_sums(torch.device("cpu"), 4)
    counts = torch.tensor([True, True, True, True, False])  # so a: 2 of 2, b: 1 of 2
    add_to_sums(sums, torch.arange(5.0), logits, LABELS, counts, objective.hits)
    assert sums.tolist() == [6.0, 2.0, 2.0, 1.0, 2.0, 4.0]
    assert objective.score(sums) == Score(6 / 4, (1.0 + 0.5) / 2, None, 4, {"a": 1.0, "b": 0.5})


def test_a_task_without_labels_has_no_part_in_the_score():
    score = TaskLabelsObjective(TASKS).score(torch.tensor([6.0, 3.0, 4.0, 0.0, 0.0, 8.0]))
    assert score == Score(0.75, 0.75, None, 8, {"a": 0.75})
    assert TaskLabelsObjective(TASKS).score(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 8.0])).top1_fraction == 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Updates and runs of a tiny network with two heads

NUM_ITEMS = 11
TARGETS = np.stack([np.arange(NUM_ITEMS) % 2, np.where(np.arange(NUM_ITEMS) % 4 == 1, -1, np.arange(NUM_ITEMS) % 3)], 1)


def task_network(seed: int = 0, **options: Any) -> nn.Module:
    network = tiny_network(seed, norm=False)
    network.head = TaskHeads(8, TASKS, adapter_width=4, **options)
    return network


def begin(
    targets: np.ndarray = TARGETS, learn_weights: bool = False, ranks: Ranks | None = None, **options: Any
) -> tuple[Learner, Batches]:
    settings = tiny_settings(**options)
    network = task_network(learn_weights=learn_weights)
    objective = TaskLabelsObjective(TASKS, weights={"b": 2.0}, log_variances=find_log_variances(network))
    recipe = build_recipe("cpu", settings.precision, one_each=True)
    learner = Learner(network, objective, settings, recipe, ranks or Ranks())
    is_balanced = settings.sampling == "class_balanced"
    return learner, tiny_batches(NUM_ITEMS, settings, ranks=ranks, targets=targets, class_balanced=is_balanced)


def update(learner: Learner, batches: Batches, num_updates: int) -> tuple[list[float], torch.Tensor]:
    learner.train_mode()
    sums, losses = learner.new_sums(), []
    for step, parts in enumerate(batches.epoch(1, 0, num_updates)):
        torch.manual_seed(step)
        losses.append(update_weights(learner, parts, sums, torch.Generator().manual_seed(step)).item())
    return losses, sums


@pytest.mark.parametrize("num_parts", [2, 3])
@pytest.mark.parametrize("learn_weights", [False, True])
def test_parts_of_an_update_add_up_to_the_same_mean_whatever_is_missing(num_parts, learn_weights):
    whole, batches = begin(learn_weights=learn_weights)
    losses, sums = update(whole, batches, 3)
    parted, batches = begin(learn_weights=learn_weights, accumulate=num_parts)
    found, parted_sums = update(parted, batches, 3)
    assert found == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(parted_sums, sums)
    assert sums[[2, 4, 5]].tolist() == [11.0, 8.0, 11.0], "labels of each task, items"
    expected = whole.model.state_dict()
    for name, tensor in parted.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_head_whose_labels_are_all_missing_does_not_move():
    missing = np.stack([TARGETS[:, 0], np.full(NUM_ITEMS, -1)], 1)
    learner, batches = begin(missing, lr=0.5, weight_decay=0.0)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    update(learner, batches, 3)
    for name, tensor in learner.model.state_dict().items():
        is_of_b = name.startswith(("head.adapters.1", "head.classifiers.1"))
        assert torch.equal(tensor, before[name]) == is_of_b, name


def test_weights_are_learned_by_the_optimizer_of_the_network():
    learner, batches = begin(learn_weights=True, lr=0.5, weight_decay=0.0)
    update(learner, batches, 1)
    variances = learner.model.head.log_variances
    assert (variances != 0).all() and learner.objective._log_variances is variances


def test_evaluation_reports_each_task():
    learner, batches = begin()
    score = evaluate(learner, batches)
    with torch.no_grad():
        inputs = learner.preprocess(tiny_pixels(NUM_ITEMS).gather(np.arange(NUM_ITEMS)).squeeze(2))
        a, b = learner.model.eval()(inputs).split([2, 3], 1)
    known = torch.tensor(TARGETS[:, 1] >= 0)
    labels = torch.tensor(TARGETS)
    expected = {
        "a": (a.argmax(1) == labels[:, 0]).double().mean().item(),
        "b": (b.argmax(1) == labels[:, 1])[known].double().mean().item(),
    }
    assert score.top1_by_task == pytest.approx(expected)
    assert (score.top3_fraction, score.num_items) == (None, NUM_ITEMS)
    sums = functional.cross_entropy(a, labels[:, 0], reduction="sum")
    sums += functional.cross_entropy(b[known], labels[known, 1], reduction="sum")
    assert score.loss == pytest.approx(sums.item() / 2 / NUM_ITEMS, rel=1e-5)


RESUMED = {
    "augmentation": {"horizontal_flip": True, "mixup_alpha": 0.4, "rotation_degrees": 20, "rand_augment_ops": 1},
    "accumulate": 2,
    "epochs": 3,
    "ema_decay": 0.9,
    "seed": 1,
    "sampling": "class_balanced",
}


def fit_tasks(run_dir: Path, keys: dict[str, Any], fault: Any = None) -> None:
    torch.set_num_threads(1)
    utils.training.draw_curves = lambda _, path: path.write_bytes(b"")
    if fault is not None:
        fault()
    run_script(lambda: _fit(run_dir, tiny_settings(run_dir, **RESUMED, **keys)))


def _fit(run_dir: Path, settings: TrainingSettings) -> None:
    learner, train = begin(learn_weights=True, **settings.model_dump(include={*RESUMED, "checkpoint_every_s"}))
    with StopRequest(on_interrupt=True) as stop:
        fit(learner, train, tiny_batches(7, settings, targets=TARGETS[:7]), tiny_description(settings), run_dir, stop)


def test_a_run_stopped_and_killed_in_mid_epoch_goes_on_to_the_same_bits(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert run_in_child(fit_tasks, whole, {}) == 0
    assert run_in_child(fit_tasks, folder, {}, partial(stop_at_update, 2)) == TERMINATED
    sums = load_checkpoint(folder)["position"]["sums"]
    assert len(sums) == 6 and sums[2] == sums[5] == 8 and 0 < sums[4] < 8, "two updates of four items"
    often = {"checkpoint_every_s": 1e-9}
    assert run_in_child(fit_tasks, folder, often, partial(kill_after_checkpoint, 4)) == KILLED
    position = load_checkpoint(folder)["position"]
    assert (position["epoch"], position["step"]) == (2, 2)
    assert run_in_child(fit_tasks, folder, {}) == 0
    assert differing(content_of(folder), content_of(whole)) == []
    assert load_checkpoint(whole)["model"]["head.log_variances"].abs().min() > 0
    by_task = read_table(folder / "history_by_task.csv", TASK_HISTORY)
    assert by_task["epoch"].tolist() == [1, 1, 2, 2, 3, 3]
    means = by_task.groupby("epoch")["selection_top1_fraction"].mean()
    history = read_table(folder / "history.csv", HISTORY)
    assert means.tolist() == pytest.approx(history["selection_top1_fraction"].tolist(), abs=1e-6)


def fit_as_rank(rank: int, port: int, folder: Path) -> None:
    os.environ |= rank_environment(rank, port)
    torch.set_num_threads(1)
    utils.training.draw_curves = lambda _, path: path.write_bytes(b"")
    run_script(lambda: _fit_ranks(folder / ("run" if rank == 0 else "other")))


def _fit_ranks(run_dir: Path) -> None:
    with StopRequest() as stop, join_ranks() as ranks:
        learner, train = begin(learn_weights=True, ranks=ranks, **TWO_PROCESSES)
        selection = tiny_batches(7, learner.settings, targets=TARGETS[:7], ranks=ranks)
        fit(learner, train, selection, tiny_description(learner.settings), run_dir, stop)


TWO_PROCESSES = {"lr": 0.1, "accumulate": 2, "epochs": 2}


@pytest.mark.exhaustive
def test_two_processes_make_the_updates_of_one_with_learned_weights(tmp_path):
    """The weights to learn take no part in the network's forward pass, yet their gradients are exchanged."""
    port = free_port()
    with ThreadPoolExecutor(2) as executor:
        jobs = [executor.submit(run_in_child, fit_as_rank, rank, port, tmp_path) for rank in range(2)]
        assert [job.result() for job in jobs] == [0, 0]
    learner, train = begin(learn_weights=True, **TWO_PROCESSES)
    selection = tiny_batches(7, learner.settings, targets=TARGETS[:7])
    fit(learner, train, selection, tiny_description(learner.settings), tmp_path / "one", StopRequest())
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "run"))
    for name, tensor in two["model"].items():
        torch.testing.assert_close(tensor, one["model"][name], rtol=1e-4, atol=1e-5, msg=name)
    assert one["model"]["head.log_variances"].abs().min() > 0
    for key in ("train_loss", "selection_loss", "train_top1_fraction", "selection_top1_fraction"):
        columns = [[row[key] for row in state["position"]["rows"]] for state in (one, two)]
        assert columns[0] == pytest.approx(columns[1], rel=1e-4), key


# ---------------------------------------------------------------------------------------------------------------------
# As a stage trains it


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clip_set(tmp_path_factory.mktemp("clips"), per_class=6)


def build_task(root: Path, labels: np.ndarray | None = None, num_classes: int = 2, seen: list | None = None) -> Task:
    """Two tasks on the sample clips: `even` of the label, and `third`, which every other clip lacks."""
    splits = read_clip_splits(root, Path("train.csv"), Path("val.csv"), num_classes=None, num_frames=3)
    tasks = []
    for index in splits:
        numbers = np.array(index.labels)
        missing = np.arange(len(numbers)) % 2 == 1
        own = np.stack([numbers % 2, np.where(missing, -1, numbers % 3)], 1) if labels is None else labels
        classes = {"even": num_classes, "third": 3}
        infos = {name: tuple(ClassInfo(k, f"{name}{k}") for k in range(count)) for name, count in classes.items()}
        tasks.append(TaskLabels(("even", "third"), infos, own))

    def build() -> nn.Module:
        network = tiny_network(is_clip=True)
        network.head = TaskHeads(8, {"even": 2, "third": 3}, learn_weights=True)
        if seen is not None:
            seen.append(network)
        return network

    size = {"num_frames": 3, "image_size": 8}
    train, val = (clip_files(index, **size) for index in splits)
    form, extra = {"kind": "clip", **size}, {"tasks": tuple(tasks), "task_weights": {"third": 2.0}, "start": "random"}
    return Task("video", train, val, "clip:static", form, build, {"tasks": {"even": 2, "third": 3}}, **extra)


def test_the_trainer_gives_every_batch_the_labels_of_its_clips(clips, tmp_path, monkeypatch):
    opened: list[Any] = []
    monkeypatch.setattr(utils.trainer, "fit", lambda *args: opened.extend(args) or 0.0)
    seen: list[nn.Module] = []
    task = build_task(clips, seen=seen)
    keys = {"label_smoothing": 0.1, "hold_out": {"fraction": 0.3}, "sampling": "class_balanced"}
    train_network(task, tiny_settings(tmp_path / "run", **keys), None, Ranks(), StopRequest())
    learner, train, selection, description = opened[:4]
    for batches in (train, selection):
        for batch in batches.in_order():
            assert batch.target.shape[1] == 2 and batch.target.dtype == torch.int64
        assert torch.equal(batches.targets, torch.tensor(task.tasks[0].labels))
        assert torch.equal(batches.labels, torch.tensor(task.train.index.labels)), "they balance the classes"
    rest = TaskLabelsObjective({"even": 2, "third": 3}, weights={"third": 2.0}, label_smoothing=0.1)
    logits, labels = logits_of(), torch.tensor(task.tasks[0].labels[:5])
    assert torch.allclose(learner.objective.losses(logits, labels), rest.losses(logits, labels)), "at equal variances"
    assert learner.objective._log_variances is seen[0].head.log_variances
    assert description.start == "random"


def test_the_reported_split_has_its_own_labels(clips, tmp_path, monkeypatch):
    opened: list[Any] = []
    monkeypatch.setattr(utils.trainer, "fit", lambda *args: opened.extend(args) or 0.0)
    task = build_task(clips)
    task.tasks[1].labels[:, 1] = 2
    train_network(task, tiny_settings(tmp_path / "run", selection="val"), None, Ranks(), StopRequest())
    _, train, selection = opened[:3]
    assert (selection.targets[:, 1] == 2).all() and (train.targets[:, 1] == -1).any()


def test_a_task_that_cannot_be_learned_or_judged_is_one_sentence(clips, tmp_path):
    num_items = len(build_task(clips).train.index)
    unlabelled = np.stack([np.zeros(num_items, np.int64), np.full(num_items, -1)], 1)
    for task, message in (
        (build_task(clips, unlabelled), r"train\.csv: no item of the training part has a label of task 'third'; label"),
        (build_task(clips, num_classes=1), r"train\.csv: task 'even' has one class; leave it out"),
    ):
        with pytest.raises(InputError, match=message):
            train_network(task, tiny_settings(tmp_path / "run"), None, Ranks(), StopRequest())
    task = build_task(clips)
    task.tasks[1].labels[:, 0] = -1
    with pytest.raises(InputError, match=r"val\.csv: no item of the val part has a label of task 'even'"):
        train_network(task, tiny_settings(tmp_path / "run", selection="val"), None, Ranks(), StopRequest())
