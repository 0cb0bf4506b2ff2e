"""One update: each option changes the weights as its formula says, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_training import NUM_CLASSES, tiny_batches, tiny_learner, tiny_network, tiny_settings
from torch import nn
from torch.nn import functional

from utils.batches import Batches
from utils.errors import InputError
from utils.history import new_sums, score_of
from utils.learner import Learner, build_recipe, update_weights
from utils.optimization import set_learning_rate
from utils.ranks import Ranks

LR = 0.05
PLAIN = {"lr": LR, "momentum": 0.0, "weight_decay": 0.0}
NO_NORM = {"norm": False}


def begin(network: dict[str, Any] | None = None, **options: Any) -> tuple[Learner, Batches]:
    settings = tiny_settings(**{**PLAIN, **options})
    network = network or {}
    return tiny_learner(settings, **network), tiny_batches(11, settings, num_frames=3 if network.get("is_clip") else 1)


def update(learner: Learner, batches: Batches, num_updates: int = 1) -> list[float]:
    """The first updates of epoch 1; returns their losses."""
    set_learning_rate(learner.optimizer, learner.settings.lr)
    learner.train_mode()
    sums, losses = new_sums(learner.recipe.device), []
    for step, parts in enumerate(batches.epoch(1, 0, num_updates)):
        torch.manual_seed(step)
        losses.append(update_weights(learner, parts, sums, torch.Generator().manual_seed(step)).item())
    return losses


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def first_batch(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised inputs in float64, labels; computed beside the code under test."""
    items = batches.items_of(1, 0)
    inputs = batches.pixels.gather(items).squeeze(2).double() / 255
    settings = tiny_settings()
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (settings.mean, settings.std))
    return (inputs - mean) / std, batches.labels[items]


def first_logits(learner: Learner, inputs: torch.Tensor) -> torch.Tensor:
    """In float64, of the weights as they are."""
    return copy.deepcopy(learner.model).double().train()(inputs)


def first_gradients(learner: Learner, batches: Batches) -> dict[str, torch.Tensor]:
    """Of the mean cross-entropy, in float64."""
    inputs, labels = first_batch(batches)
    model = copy.deepcopy(learner.model).double().train()
    functional.cross_entropy(model(inputs), labels).backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_first_loss_is_the_formula_at_the_initial_weights(smoothing, gamma):
    learner, batches = begin(label_smoothing=smoothing, focal_gamma=gamma)
    inputs, labels = first_batch(batches)
    p = first_logits(learner, inputs).softmax(1)
    target = functional.one_hot(labels, NUM_CLASSES) * (1 - smoothing) + smoothing / NUM_CLASSES
    expected = (-(target * (1 - p) ** gamma * p.log()).sum(1)).mean().item()
    assert update(learner, batches) == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixing_trains_on_mixed_items_with_mixed_labels(kind):
    learner, batches = begin(augmentation={kind: 1.0}, batch_size=8)
    plain, _ = begin(batch_size=8)
    mixing, taken = learner.mixing, []

    def take(*args):
        taken.append((args, mixing(*args)))
        return taken[-1][1]

    learner.mixing = take
    initial = copy.deepcopy(learner)
    (loss,) = update(learner, batches)
    ((inputs, labels, *_), (mixed, target)) = taken[0]
    hard = functional.one_hot(labels, NUM_CLASSES).float()
    (share,) = {round(float(value), 4) for value in (target * hard).max(1).values if 0 < value < 1}
    assert 0 < share < 1
    torch.testing.assert_close(target.sum(1), torch.ones(8))
    assert {round(float(v), 4) for v in target.unique()} <= {0.0, share, round(1 - share, 4), 1.0}
    assert not torch.equal(mixed, inputs)
    expected = functional.cross_entropy(first_logits(initial, mixed.double()), target.double())
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert loss != pytest.approx(update(plain, batches)[0], rel=1e-3)


def test_augmentation_erases_with_the_mean():
    learner, batches = begin(augmentation={"erase_probability": 1.0})
    inputs = batches.pixels.gather(batches.items_of(1, 0)).squeeze(2)
    outputs = learner.preprocess(learner.augment(inputs, torch.Generator().manual_seed(1)))
    erased = (learner.preprocess(inputs) != outputs).any(1)
    assert erased.any((1, 2)).all(), "every item has a box"
    assert outputs.movedim(1, -1)[erased].abs().max() < 0.01, "to the network the mean is 0, to half a step of a pixel"


def test_every_key_of_the_section_reaches_the_augmentation():
    keys = {"rotation_degrees": 10.0, "hue": 0.5, "rand_augment_ops": 2, "rand_augment_magnitude": 30, "contrast": 0.1}
    learner, _ = begin(augmentation=keys)
    assert {name: getattr(learner.augment, name) for name in keys} == keys


@pytest.mark.parametrize(("name", "value"), [("hue", 0.6), ("rotation_degrees", 181), ("rand_augment_magnitude", 31)])
def test_augmentation_beyond_its_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"augmentation\.{name}: .*less than or equal"):
        tiny_settings(augmentation={name: value})


def test_metrics_are_those_of_the_unmixed_labels_and_of_counted_items_only():
    learner, batches = begin(accumulate=3)
    sums = new_sums(learner.recipe.device)
    learner.train_mode()
    for parts in batches.epoch(1):
        update_weights(learner, parts, sums, torch.Generator())
    assert score_of(sums, NUM_CLASSES).num_items == 11, "4 items in 3 parts of 2: the two that fill up do not count"


# ---------------------------------------------------------------------------------------------------------------------
# Steps


def test_sgd_steps_along_the_gradient():
    learner, batches = begin(weight_decay=0.1)
    gradients, before = first_gradients(learner, batches), weights(learner)
    update(learner, batches)
    for name, parameter in learner.model.named_parameters():
        expected = before[name] - LR * (gradients[name] + 0.1 * before[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_adamw_is_torchs_with_both_rates():
    options = {"optimizer": "adamw", "momentum": 0.8, "beta2": 0.95, "weight_decay": 0.1, "lr": 0.01}
    learner, batches = begin(NO_NORM, **options)
    model = copy.deepcopy(learner.model)
    reference = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for parts in batches.epoch(1):
        (part,) = parts
        reference.zero_grad()
        functional.cross_entropy(model(learner.preprocess(part.inputs)), part.target).backward()
        reference.step()
    update(learner, batches, len(batches))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(learner.model.state_dict()[name], parameter.detach(), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clipping_bounds_the_norm_of_all_gradients_together(share):
    learner, batches = begin()
    gradients = first_gradients(learner, batches)
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
    learner, _ = begin(clip_grad_norm=share * norm)
    before = weights(learner)
    update(learner, batches)
    steps = [(p.detach() - before[name]).flatten() for name, p in learner.model.named_parameters()]
    assert torch.cat(steps).norm().item() == pytest.approx(LR * norm * min(share, 1), rel=1e-3)


def test_layer_wise_rates_decay_from_the_head_down():
    learner, batches = begin(layer_lr_decay=0.5)
    gradients, before = first_gradients(learner, batches), weights(learner)
    update(learner, batches)
    scales = {"first": 1 / 8, "second": 1 / 4, "hidden": 1 / 2, "head": 1}
    for name, parameter in learner.model.named_parameters():
        scale = scales[name.split(".")[0].removesuffix("_norm")]
        expected = before[name] - LR * scale * gradients[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
def test_frozen_layers_keep_every_bit_statistics_included(num_layers):
    learner, batches = begin(freeze_layers=num_layers, weight_decay=0.1, momentum=0.9, ema_decay=0.5)
    before = weights(learner)
    update(learner, batches, 3)
    frozen = ("first", "second", "hidden")[:num_layers]
    for name, tensor in weights(learner).items():
        is_frozen = name.split(".")[0].removesuffix("_norm") in frozen
        assert torch.equal(tensor, before[name]) == is_frozen, name


def test_frozen_parts_drop_nothing():
    network = tiny_network()
    network.first = nn.Sequential(network.first, nn.Dropout(0.5)).requires_grad_(False)
    network.hidden = nn.Sequential(network.hidden, nn.Dropout(0.5))
    learner = Learner(network, NUM_CLASSES, tiny_settings(), build_recipe("cpu", "fp32"), Ranks())
    learner.train_mode()
    assert not learner.model.first[1].training
    assert learner.model.hidden[1].training


@pytest.mark.parametrize("frozen", ["first_norm", "second_norm", "everything"])
def test_norms_that_somebody_has_frozen_keep_their_statistics(frozen):
    network = tiny_network()
    for name, parameter in network.named_parameters():
        is_frozen = not name.startswith(("hidden", "head")) if frozen == "everything" else name.startswith(frozen)
        parameter.requires_grad_(not is_frozen)
    settings = tiny_settings(**PLAIN)
    learner = Learner(network, NUM_CLASSES, settings, build_recipe("cpu", "fp32"), Ranks())
    before = weights(learner)
    update(learner, tiny_batches(11, settings), 2)
    own = ("first_norm", "second_norm") if frozen == "everything" else (frozen,)
    for name, tensor in weights(learner).items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            assert torch.equal(tensor, before[name]) == name.startswith(own), name
    grouped = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    assert all(parameter.requires_grad for parameter in grouped)
    assert len(grouped) == sum(parameter.requires_grad for parameter in network.parameters())


def test_a_norm_of_which_the_bias_is_trained_goes_on_counting():
    network = tiny_network()
    network.first_norm.weight.requires_grad_(False)
    settings = tiny_settings(**PLAIN)
    learner = Learner(network, NUM_CLASSES, settings, build_recipe("cpu", "fp32"), Ranks())
    update(learner, tiny_batches(11, settings), 2)
    assert network.first_norm.num_batches_tracked == 2


@pytest.mark.parametrize("num_parts", [2, 3, 4])
@pytest.mark.parametrize("network", [NO_NORM, {"is_clip": True, "norm": False}, {}], ids=["images", "clips", "frozen"])
def test_accumulated_parts_make_the_same_updates(network, num_parts):
    """11 items by 4: the last update has 3, fewer than 4 parts."""
    options = {"momentum": 0.9, "weight_decay": 0.01, "clip_grad_norm": 0.5, "freeze_layers": 0 if network else 3}
    whole, batches = begin(network, **options)
    losses = update(whole, batches, 3)
    parted, batches = begin(network, accumulate=num_parts, **options)
    assert update(parted, batches, 3) == pytest.approx(losses, rel=1e-6)
    expected = weights(whole)
    for name, tensor in weights(parted).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6, msg=name)


def test_averaged_weights_follow_every_update():
    learner, batches = begin(ema_decay=0.75)
    expected = weights(learner)
    for step in range(3):
        set_learning_rate(learner.optimizer, LR)
        learner.train_mode()
        (parts,) = batches.epoch(1, step, step + 1)
        update_weights(learner, parts, new_sums(learner.recipe.device), torch.Generator())
        trained = dict(learner.model.named_parameters())
        expected |= {name: 0.75 * expected[name] + 0.25 * p.detach() for name, p in trained.items()}
    own = weights(learner)
    with learner.with_best_weights():
        found = weights(learner)
    for name, _ in learner.model.named_parameters():
        torch.testing.assert_close(found[name], expected[name], msg=name)
    assert torch.equal(found["first_norm.running_mean"], own["first_norm.running_mean"])
    assert all(torch.equal(tensor, own[name]) for name, tensor in weights(learner).items()), "they did not come back"


# ---------------------------------------------------------------------------------------------------------------------
# How it is computed


def test_bf16_computes_in_half_precision_and_keeps_float32_weights():
    exact, batches = begin()
    rough, _ = begin(precision="bf16")
    (one,), (other,) = update(exact, batches), update(rough, batches)
    assert other == pytest.approx(one, rel=0.02)
    assert other != one
    assert {tensor.dtype for tensor in rough.model.parameters()} == {torch.float32}


def test_fp16_needs_a_gpu():
    with pytest.raises(InputError, match="precision: fp16 needs a GPU; set precision: bf16 or fp32"):
        build_recipe("cpu", "fp16")


def test_deterministic_holds_until_the_next_run_without_it():
    before = torch.are_deterministic_algorithms_enabled()
    try:
        begin(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        begin()
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_deterministic_updates_are_the_same_bits():
    runs = []
    try:
        for _ in range(2):
            learner, batches = begin(deterministic=True, augmentation={"crop_min_area": 0.5, "mixup_alpha": 0.2})
            runs.append((update(learner, batches, 3), weights(learner)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(tensor, runs[1][1][name]) for name, tensor in runs[0][1].items())


@pytest.mark.exhaustive
def test_a_compiled_network_makes_the_same_updates_and_keeps_its_names():
    eager, batches = begin()
    compiled, _ = begin(compile="default")
    assert type(compiled.forward) is not type(eager.forward), "nothing was compiled"
    assert update(compiled, batches, 3) == pytest.approx(update(eager, batches, 3), rel=1e-4)
    expected = weights(eager)
    assert weights(compiled).keys() == expected.keys()
    for name, tensor in weights(compiled).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_more_frozen_layers_than_there_are_is_one_sentence():
    with pytest.raises(InputError, match="freeze_layers: cannot freeze 4 layers of 4; at most 3"):
        begin(freeze_layers=4)
