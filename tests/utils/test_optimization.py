"""Optimizers, rates, frozen layers and averaged weights: torch's own values, exactly, where torch has them."""

from __future__ import annotations

import copy
import math
import random
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import inflate
from utils.optimization import (
    build_optimizer,
    freeze_layers,
    keep_frozen_in_eval,
    learning_rate,
    nondeterministic_on_cuda,
    scaled_learning_rate,
    set_learning_rate,
    should_stop_early,
    weight_layers,
)
from utils.three_frame_conv import use_three_frame_convs
from utils.weight_average import WeightAverage
from Video_Models.models import build_video_classifier

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
ADAMW = {"name": "adamw", "lr": 0.1, "momentum": 0.8, "weight_decay": 1e-2, "beta2": 0.95}
RATES = {
    "base_lr": 0.1,
    "total_updates": 100,
    "warmup_updates": 0,
    "min_lr": 0.0,
    "lr_step": 3,
    "lr_gamma": 0.1,
    "plateau_patience": 2,
}


def build_small(seed: int = 0) -> nn.Sequential:
    """Two convolutions with BatchNorm and a head: (B, 3, 6, 6) -> (B, 2)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    )


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, average=None) -> None:
    """Updates on batches that a fixed seed draws."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        if average is not None:
            average.update(model)


def assert_equal_states(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# Optimizers


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (SGD, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)),
        (ADAMW, lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.95), weight_decay=1e-2, fused=True)),
    ],
    ids=["sgd", "adamw"],
)
def test_updates_are_those_of_torchs_optimizer(options, reference):
    ours, theirs = build_small(), build_small()
    optimizer, expected = build_optimizer(ours, **options), reference(theirs.parameters())
    train_steps(ours, optimizer, 5)
    train_steps(theirs, expected, 5)
    assert_equal_states(ours.state_dict(), theirs.state_dict())
    assert optimizer.state_dict()["state"].keys() == expected.state_dict()["state"].keys()
    assert optimizer.param_groups[0]["fused"] is True


def test_a_plain_optimizers_state_can_be_taken_over():
    plain, ours = build_small(), build_small()
    expected = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    train_steps(plain, expected, 3)
    ours.load_state_dict(plain.state_dict())
    optimizer = build_optimizer(ours, **SGD)
    state = copy.deepcopy(expected.state_dict()["state"])  # torch does not copy it
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    train_steps(plain, expected, 2)
    train_steps(ours, optimizer, 2)
    assert_equal_states(ours.state_dict(), plain.state_dict())


def test_an_unknown_optimizer_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown optimizer 'adam'; known: adamw, sgd"):
        build_optimizer(build_small(), **{**SGD, "name": "adam"})


def test_layers_of_the_baseline_begin_at_its_convolutions_and_linear_layers():
    model = build_vgg11(2, classifier_width=4)
    layers = weight_layers(model)
    assert [len([m for m in layer if isinstance(m, nn.BatchNorm2d)]) for layer in layers] == [1] * 8 + [0] * 3
    names = {module: name for name, module in model.named_modules()}
    owners = [[names[m] for m in layer if next(m.parameters(recurse=False), None) is not None] for layer in layers]
    assert owners[:2] == [["features.0", "features.1"], ["features.4", "features.5"]]
    assert owners[-3:] == [["classifier.0"], ["classifier.3"], ["classifier.6"]]
    assert [len(layer) for layer in weight_layers(inflate(model))] == [len(layer) for layer in layers]


def test_layer_rates_decay_from_the_last_layer_down():
    model = build_small()
    optimizer = build_optimizer(model, **SGD, layer_lr_decay=0.5)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [0.25, 0.5, 1.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.05, 0.1]
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in grouped] == [id(parameter) for parameter in model.parameters()]
    set_learning_rate(optimizer, 0.4)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.4]


def test_a_layers_rate_is_what_its_update_shows():
    model, before = build_small(), build_small()
    options = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    train_steps(model, build_optimizer(model, **options, layer_lr_decay=0.5), 1)
    for index, scale in ((0, 0.25), (1, 0.25), (3, 0.5), (8, 1.0)):
        after, start = model[index].weight, before[index].weight
        torch.testing.assert_close(start - after, scale * after.grad, rtol=0, atol=1e-7)


def test_scales_survive_the_state_dict():
    optimizer = build_optimizer(build_small(), **SGD, layer_lr_decay=0.5)
    restored = build_optimizer(build_small(), **SGD, layer_lr_decay=0.5)
    restored.load_state_dict(optimizer.state_dict())
    set_learning_rate(restored, 1.0)
    assert [group["lr"] for group in restored.param_groups] == [0.25, 0.5, 1.0]


def test_a_weight_shared_by_two_layers_is_in_one_group():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = build_optimizer(model, **SGD, layer_lr_decay=0.5)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]


# Frozen layers


def test_frozen_layers_keep_every_bit_and_the_others_move():
    model, before = build_small(), build_small()
    frozen = freeze_layers(model, 2)
    assert frozen == [model[1], model[4]]
    model.train()
    keep_frozen_in_eval(frozen)
    train_steps(model, build_optimizer(model, **SGD), 3)
    own, start = model.state_dict(), before.state_dict()
    changed = {name for name in own if not torch.equal(own[name], start[name])}
    assert changed == {"8.weight", "8.bias"}


def test_without_eval_the_statistics_would_move():
    model = build_small()
    freeze_layers(model, 1)
    train_steps(model, build_optimizer(model, **SGD), 1)
    assert model[1].num_batches_tracked.item() == 1


def test_frozen_parameters_are_in_no_group():
    for decay, scales in ((1.0, [1.0]), (0.5, [0.5, 1.0])):
        model = build_small()
        freeze_layers(model, 1)
        optimizer = build_optimizer(model, **SGD, layer_lr_decay=decay)
        assert [group["lr_scale"] for group in optimizer.param_groups] == scales
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 5


def test_freezing_nothing_and_too_much():
    model = build_small()
    assert freeze_layers(model, 0) == []
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="cannot freeze 3 layers of 3; at most 2"):
        freeze_layers(model, 3)
    assert all(parameter.requires_grad for parameter in model.parameters())


# Rates


def test_scaled_rates():
    assert scaled_learning_rate(0.1, 1024, rule="linear", reference_batch_size=256) == 0.4
    assert scaled_learning_rate(0.1, 1024, rule="sqrt", reference_batch_size=256) == 0.2
    assert scaled_learning_rate(0.1, 1024, rule="none", reference_batch_size=256) == 0.1
    with pytest.raises(ValueError, match="unknown rule 'cubic'; known: linear, none, sqrt"):
        scaled_learning_rate(0.1, 1024, rule="cubic", reference_batch_size=256)


def stepped(scheduler, optimizer, values) -> list[float]:
    """The rate before each value, stepping torch's scheduler with it where it takes one."""
    rates = []
    for value in values:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([value] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
    return rates


def one_parameter_sgd(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize(("lr", "gamma", "step"), [(0.001, 0.1, 7), (0.1, 0.3, 1), (0.05, 0.97, 2)])
def test_step_is_step_lr_exactly(lr, gamma, step):
    optimizer = one_parameter_sgd(lr)
    expected = stepped(torch.optim.lr_scheduler.StepLR(optimizer, step, gamma), optimizer, range(40))
    rates = {**RATES, "schedule": "step", "base_lr": lr, "lr_gamma": gamma, "lr_step": step}
    assert [learning_rate(9 * (epoch - 1), epoch, **rates) for epoch in range(1, 41)] == expected


def test_step_goes_no_lower_than_the_minimum():
    rates = {**RATES, "schedule": "step", "min_lr": 0.005}
    assert [learning_rate(0, epoch, **rates) for epoch in (3, 4, 7, 100)] == [0.1, 0.1 * 0.1, 0.005, 0.005]


@pytest.mark.parametrize("min_lr", [0.0, 0.003])
def test_cosine_is_cosine_annealing(min_lr):
    optimizer = one_parameter_sgd(0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=99, eta_min=min_lr)
    expected = stepped(scheduler, optimizer, range(100))
    rates = {**RATES, "schedule": "cosine", "min_lr": min_lr}
    found = [learning_rate(update, 1, **rates) for update in range(100)]
    assert found == pytest.approx(expected, rel=0, abs=1e-12)
    assert (found[0], found[-1]) == (0.1, min_lr)
    assert learning_rate(500, 1, **rates) == min_lr, "past the end"


def test_warm_up_rises_by_equal_steps_to_the_base_rate_and_the_cosine_begins_after_it():
    rates = {**RATES, "schedule": "cosine", "warmup_updates": 4, "min_lr": 0.01, "total_updates": 15}
    found = [learning_rate(update, 1, **rates) for update in range(15)]
    assert found[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1], rel=1e-15)
    assert found[3:5] == [0.1, 0.1]
    assert found[9] == pytest.approx(0.055, rel=1e-12), "half-way between updates 4 and 14"
    assert found[14] == 0.01
    assert found[4:] == sorted(found[4:], reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "step", "plateau"])
def test_warm_up_is_a_factor_of_every_schedule(schedule):
    plain = learning_rate(1, 4, **RATES, schedule=schedule, history_losses=[1.0, 2.0, 2.0, 2.0])
    assert plain == (0.1 if schedule == "constant" else 0.1 * 0.1)
    warm = {**RATES, "warmup_updates": 4, "schedule": schedule}
    losses = [1.0, 2.0, 2.0, 2.0]
    assert [learning_rate(update, 4, **warm, history_losses=losses) for update in (0, 1, 3, 4)] == [
        plain * 0.25,
        plain * 0.5,
        plain,
        plain,
    ]


@pytest.mark.parametrize("seed", range(20))
def test_plateau_is_reduce_lr_on_plateau_exactly(seed):
    draw = random.Random(seed)
    gamma, patience, min_lr = draw.choice([0.1, 0.5, 0.9]), draw.randrange(4), draw.choice([0.0, 1e-4])
    losses = [draw.choice([math.exp(-epoch / 20), 1.0, math.nan, math.inf]) for epoch in range(30)]
    losses += [losses[0] * (1 - 1e-4) ** draw.randrange(4) * draw.uniform(0.5, 1.1) for _ in range(70)]
    optimizer = one_parameter_sgd(0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=gamma, patience=patience, min_lr=min_lr)
    expected = stepped(scheduler, optimizer, losses)
    rates = {**RATES, "schedule": "plateau", "lr_gamma": gamma, "plateau_patience": patience, "min_lr": min_lr}
    found = [learning_rate(0, n + 1, **rates, history_losses=losses[:n]) for n in range(len(losses))]
    assert found == expected
    assert len(set(found)) > 2, "the rate fell"


@pytest.mark.parametrize(("factor", "falls"), [(1 - 0.9e-4, True), (1 - 1.1e-4, False)])
def test_a_loss_that_is_hardly_lower_is_no_better_one(factor, falls):
    rates = {**RATES, "schedule": "plateau", "plateau_patience": 0}
    assert learning_rate(0, 3, **rates, history_losses=[1.0, factor]) == (0.1 * 0.1 if falls else 0.1)


def test_an_unknown_schedule_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown schedule 'poly'; known: constant, cosine, plateau, step"):
        learning_rate(0, 1, **RATES, schedule="poly")


# Early stopping


def test_a_rising_metric_never_stops_and_a_falling_one_does():
    rising = [epoch / 10 for epoch in range(10)]
    assert not any(should_stop_early(rising[:n], 1) for n in range(11))
    stops = [should_stop_early(rising[::-1][:n], 3) for n in range(8)]
    assert stops == [False, False, False, False, True, True, True, True], "after three epochs below the first"


def test_early_stopping_counts_from_the_first_of_equal_bests():
    metrics = [0.5, 0.7, 0.7, 0.6]
    assert should_stop_early(metrics, 2)
    assert not should_stop_early(metrics, 3)
    assert not should_stop_early([*metrics, 0.71], 1), "a new best starts the count again"
    assert not should_stop_early(metrics, None)
    assert should_stop_early([math.nan, math.nan], 2)
    assert not should_stop_early([], 1)


# Averaged weights


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_the_average_is_torchs(decay):
    model = build_small()
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    expected.update_parameters(model)  # its first update copies
    average, optimizer = WeightAverage(model, decay), build_optimizer(model, **SGD)
    for _ in range(6):
        train_steps(model, optimizer, 1, average)
        expected.update_parameters(model)
    own, found = model.state_dict(), average.state_dict()
    parameters = dict(expected.module.named_parameters())
    assert_equal_states({name: found[name] for name in parameters}, parameters)
    assert all(torch.equal(found[name], own[name]) for name in own if name not in parameters), "buffers are copied"
    assert not any(torch.equal(found[name], own[name]) for name in parameters)


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, 0.75)
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        average.update(model)
    assert average.state_dict()["weight"].item() == 0.25 * 0.75 + 2.0 * 0.25


def test_applied_swaps_in_and_bit_exactly_back():
    model = build_small().to(memory_format=torch.channels_last)
    freeze_layers(model, 1)
    average = WeightAverage(model, 0.5)
    train_steps(model, build_optimizer(model, **SGD), 3, average)
    own, optimizer_sees = copy.deepcopy(model.state_dict()), list(model.parameters())
    averaged = copy.deepcopy(average.state_dict())
    with pytest.raises(RuntimeError, match="stop"), average.applied_to(model):
        assert_equal_states(model.state_dict(), averaged)
        raise RuntimeError("stop")
    assert_equal_states(model.state_dict(), own)
    assert_equal_states(average.state_dict(), averaged)
    assert all(now is then for now, then in zip(model.parameters(), optimizer_sees, strict=True))
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert average.state_dict()["3.weight"].is_contiguous(memory_format=torch.channels_last)


def test_frozen_weights_keep_every_bit_in_the_average():
    model, start = build_small(), build_small().state_dict()
    frozen = freeze_layers(model, 1)
    average = WeightAverage(model, 0.9)
    keep_frozen_in_eval(frozen)
    train_steps(model, build_optimizer(model, **SGD), 5, average)
    found = average.state_dict()
    assert {name for name in found if torch.equal(found[name], start[name])} == {
        name for name in found if name.startswith(("0.", "1."))
    }


def test_bfloat16_weights_are_averaged_in_float32():
    model = nn.Linear(4, 4).bfloat16()
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, 0.999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        average.update(model)
    expected = 2 - 0.999**100
    torch.testing.assert_close(average.state_dict()["weight"], torch.full((4, 4), expected), rtol=1e-5, atol=0)
    with average.applied_to(model):
        assert torch.equal(model.weight, torch.full((4, 4), expected).bfloat16())
    assert torch.equal(model.weight, torch.full((4, 4), 2.0).bfloat16())


def test_layers_that_keep_something_of_a_weight_notice_the_swap():
    model = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1))
    assert use_three_frame_convs(model) == 1
    average, clip = WeightAverage(model, 0.5), torch.randn(1, 2, 3, 4, 4)
    nn.init.normal_(model[0].weight)
    model.eval()
    with torch.no_grad():
        own = model(clip)
        with average.applied_to(model):
            found = model(clip)
        with_weight = nn.functional.conv3d(clip, average.state_dict()["0.weight"], model[0].bias, padding=1)
        torch.testing.assert_close(found, with_weight, rtol=0, atol=1e-5)
        assert (own - found).abs().max() > 0.1
        assert torch.equal(model(clip), own)


def test_a_restored_average_goes_on_to_the_same_bits(tmp_path):
    model, other = build_small(), build_small()
    average, optimizer = WeightAverage(model, 0.9), build_optimizer(model, **SGD)
    train_steps(model, optimizer, 3, average)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    restored = WeightAverage(other, 0.9)
    restored.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    other.load_state_dict(model.state_dict())
    nn.init.normal_(model[8].weight)
    other[8].load_state_dict(model[8].state_dict())
    average.update(model)
    restored.update(other)
    assert_equal_states(restored.state_dict(), average.state_dict())


def test_another_models_average_is_refused():
    average = WeightAverage(build_small(), 0.9)
    state = average.state_dict()
    for wrong in ({**state, "more": torch.zeros(1)}, {**state, "8.bias": torch.zeros(1)}):
        with pytest.raises(ValueError, match="of another model"):
            average.load_state_dict(wrong)


# Determinism


def test_modules_without_a_deterministic_gradient_are_named():
    model = build_vgg11(2, classifier_width=4)
    assert nondeterministic_on_cuda(model) == []
    assert nondeterministic_on_cuda(nn.Sequential(nn.AdaptiveAvgPool2d(7))) == ["0: AdaptiveAvgPool2d"]
    assert nondeterministic_on_cuda(inflate(model, temporal_padding="replicate"))[-1] == "avgpool: AdaptiveAvgPool3d"
    refused = nn.Sequential(nn.AvgPool3d(2), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    assert nondeterministic_on_cuda(refused) == ["0: AvgPool3d", "1: Conv2d"]
    fine = (nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Conv3d(1, 1, 3), nn.ReplicationPad3d(1), nn.AdaptiveAvgPool2d(1))
    assert nondeterministic_on_cuda(nn.Sequential(*fine, nn.AdaptiveAvgPool3d((1, 1, 1)), nn.Upsample((2, 2)))) == []


def test_global_averages_are_torchs_mean():
    clip = torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    assert type(nn.AdaptiveAvgPool3d(1)(clip).grad_fn).__name__ == "MeanBackward1"
    assert type(nn.AdaptiveAvgPool2d((1, 1))(clip[0]).grad_fn).__name__ == "MeanBackward1"


def test_the_table_is_that_of_torchs_documentation():
    text = torch.use_deterministic_algorithms.__doc__
    begin, end = text.index("operations will throw a"), text.index("In addition, several operations")
    documented = set(re.findall(r":class:`torch\.nn\.(\w+)`", text[begin:end])) - {"NLLLoss", "CTCLoss", "EmbeddingBag"}
    names = [name for name in dir(nn) if re.search(r"(Pool|Unpool|Pad)[123]d$", name)]
    arguments = {name: (2, 2) if re.match("LP|Fractional|Constant", name) else (2,) for name in names}
    layers = {name: getattr(nn, name)(*arguments[name]) for name in names}
    found = {name for name, layer in layers.items() if nondeterministic_on_cuda(nn.Sequential(layer))}
    assert len(names) > 30
    assert found - {"AdaptiveMaxPool3d"} == documented


def tiny_video(family: str, config: dict, **options):
    return build_video_classifier(3, family=family, num_frames=2, image_size=32, config=config, **options)


_VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}


def test_rates_of_a_transformer_fall_from_block_to_block():
    model = tiny_video("videomae", _VIT)
    optimizer = build_optimizer(model, name="adamw", lr=1.0, momentum=0.9, weight_decay=0.1, layer_lr_decay=0.5)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for number, block in enumerate(model.backbone.blocks):
        assert {rates[parameter] for parameter in block.parameters()} == {0.5 ** (3 - number)}
    assert {rates[parameter] for parameter in model.head.parameters()} == {1.0}
    patches = next(p for name, p in model.named_parameters() if "patch_embeddings" in name)
    assert rates[patches] == 0.5**4


def test_all_tasks_learn_at_one_rate_and_their_weights_do_not_decay():
    tasks = {"first": 2, "second": 3}
    model = tiny_video("resnet18", {"layers": [1, 1, 1, 1]}, tasks=tasks, learn_task_weights=True)
    optimizer = build_optimizer(model, name="sgd", lr=1.0, momentum=0.9, weight_decay=0.1, layer_lr_decay=0.5)
    heads = [group for group in optimizer.param_groups if group["lr"] == 1.0]
    assert {parameter for group in heads for parameter in group["params"]} == set(model.head.parameters())
    (undecayed,) = (group["params"] for group in optimizer.param_groups if group["weight_decay"] == 0)
    assert len(undecayed) == 1
    assert undecayed[0] is model.head.log_variances
