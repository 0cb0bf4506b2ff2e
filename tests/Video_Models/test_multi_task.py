"""Heads of several tasks: an adapter and a layer for each, logits side by side, weights by position."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from utils.objectives import TaskLabelsObjective, find_log_variances
from Video_Models.multi_task import BottleneckAdapter, TaskHeads

WIDTH, BOTTLENECK = 12, 4
TASKS = {"grainy": 2, "items.keys": 3, "forward": 5}  # names that no attribute or module could have


def heads(seed: int = 0, **options) -> TaskHeads:
    torch.manual_seed(seed)
    return TaskHeads(WIDTH, TASKS, adapter_width=BOTTLENECK, **options)


def features(num_items: int = 6) -> torch.Tensor:
    return torch.randn(num_items, WIDTH, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_formula_of_each_task_side_by_side():
    model, rows = heads(), features()
    found = model(rows).split(list(TASKS.values()), dim=1)
    for logits, adapter, layer in zip(found, model.adapters, model.classifiers, strict=True):
        normal = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        hidden = functional.gelu(normal @ adapter.down.weight.T + adapter.down.bias)
        adapted = rows + hidden @ adapter.up.weight.T + adapter.up.bias
        expected = adapted @ layer.weight.T + layer.bias
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learn_weights", [False, True])
def test_parameters_are_those_of_the_formula(learn_weights):
    adapter = 2 * WIDTH + (WIDTH + 1) * BOTTLENECK + (BOTTLENECK + 1) * WIDTH
    layers = (WIDTH + 1) * (2 + 3 + 5)
    expected = 3 * adapter + layers + 3 * learn_weights
    assert sum(p.numel() for p in heads(learn_weights=learn_weights).parameters()) == expected


def test_an_adapter_begins_near_the_identity():
    torch.manual_seed(0)
    adapter = BottleneckAdapter(256, 64)
    rows = torch.randn(32, 256)
    change = (adapter(rows) - rows).norm(dim=1) / rows.norm(dim=1)
    assert change.min() > 0
    assert change.max() < 0.1


def test_every_parameter_has_a_gradient_and_only_its_own_tasks():
    model = heads()
    model(features())[:, 2:5].square().sum().backward()
    for name, parameter in model.named_parameters():
        is_own = name.split(".")[1] == "1"
        assert bool(parameter.grad is not None and parameter.grad.abs().max() > 0) == is_own, name


def test_dropout_drops_before_the_layers_while_training_only():
    model, rows = heads(dropout=0.5), features()
    torch.manual_seed(0)
    assert not torch.equal(model.train()(rows), model(rows))
    assert torch.equal(model.eval()(rows), heads().eval()(rows))


def test_weights_to_learn_begin_equal_and_are_found():
    model = torch.nn.Sequential(torch.nn.Linear(3, WIDTH), heads(learn_weights=True))
    assert find_log_variances(model) is model[1].log_variances
    assert model[1].log_variances.tolist() == [0.0, 0.0, 0.0]
    assert find_log_variances(torch.nn.Sequential(heads())) is None


def test_state_dict_goes_by_position_and_back():
    one, other = heads(0, learn_weights=True), heads(1, learn_weights=True)
    assert {name.split(".")[0] for name in one.state_dict()} == {"adapters", "classifiers", "log_variances"}
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(features()), other(features()))


def test_a_noisy_task_is_learned_to_count_less():
    """Task `clean` says the sign of a feature, task `noise` a coin: its variance grows, the other's falls."""
    torch.manual_seed(0)
    rows = torch.randn(256, WIDTH)
    labels = torch.stack([(rows[:, 0] > 0).long(), torch.randint(2, (256,))], 1)
    tasks = {"clean": 2, "noise": 2}
    model = TaskHeads(WIDTH, tasks, adapter_width=BOTTLENECK, learn_weights=True)
    objective = TaskLabelsObjective(tasks, log_variances=find_log_variances(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(150):
        batch = torch.randint(256, (64,))
        optimizer.zero_grad()
        objective.losses(model(rows[batch]), labels[batch]).mean().backward()
        optimizer.step()
    clean, noise = model.log_variances.tolist()
    assert clean < -0.5
    with torch.no_grad():
        mean_loss = functional.cross_entropy(model(rows)[:, 2:], labels[:, 1])
    assert noise == pytest.approx((2 * mean_loss).log().item(), abs=0.1), "the optimum is log(2 L)"


@pytest.mark.parametrize(
    ("tasks", "message"), [({}, "at least one task"), ({"a": 2, "b": 1}, "'b' has 1 classes, expected 2 or more")]
)
def test_what_no_head_can_be_made_of_is_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        TaskHeads(WIDTH, tasks)
