"""A 3-D CNN on frames as a batch against the same network on torch's 3-D layers: numbers, gradients, names, hooks."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import run_in_child
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models.vgg import make_layers

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d, inflate
from utils import frames_as_batch
from utils.frames_as_batch import has_frames_as_batch, use_clips, use_frames_as_batch
from utils.three_frame_conv import conv_frames

EXACT = 1e-12  # float64


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With more, oneDNN picks another algorithm for Conv3d than for Conv2d, and errors cannot be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomise(model: nn.Module) -> nn.Module:
    """Kernels that differ from slice to slice, and BatchNorm that does something."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model


SLIM = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"]  # an eighth of the paper's widths
PAPER = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]


def build_pair(dtype: torch.dtype = torch.float64, widths: list[int | str] = SLIM) -> tuple[nn.Module, nn.Module]:
    """The same inflated VGG-11 on torch's 3-D layers and on frames as a batch."""
    torch.manual_seed(0)
    vgg = build_vgg11(5, classifier_width=16, dropout=0.0)
    vgg.features = make_layers(widths, batch_norm=True)
    vgg.classifier[0] = nn.Linear(widths[-2] * 7 * 7, 16)
    plain = randomise(inflate(vgg)).to(dtype)
    ours = copy.deepcopy(plain)
    assert use_frames_as_batch(ours) == 24
    return plain, ours


def clips_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compute(model: nn.Module, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, the input's gradient and the parameters'."""
    inputs = clips.clone().requires_grad_()
    logits = model(inputs)
    logits.square().sum().backward()
    return logits.detach(), inputs.grad, {name: value.grad for name, value in model.named_parameters()}


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 3, 64, 64), (2, 3, 3, 33, 47), (1, 3, 3, 70, 65)], ids=str)
@pytest.mark.parametrize("widths", [SLIM, pytest.param(PAPER, marks=pytest.mark.exhaustive)], ids=["slim", "paper"])
def test_logits_gradients_and_statistics_are_those_of_conv3d(shape, training, widths):
    plain, ours = (model.train(training) for model in build_pair(widths=widths))
    clips = clips_of(shape)
    (expected, expected_input, expected_weights), (found, found_input, found_weights) = (
        compute(model, clips) for model in (plain, ours)
    )
    assert relative_difference(found, expected) < EXACT
    assert relative_difference(found_input, expected_input) < EXACT
    scale = max(gradient.abs().max() for gradient in expected_weights.values()).item()
    for name, gradient in expected_weights.items():
        # BatchNorm makes the gradient of a bias before it zero: there, only rounding is left.
        difference = (found_weights[name] - gradient).abs().max().item()
        assert difference < EXACT * max(gradient.abs().max().item(), 1e-3 * scale), name
    for (name, buffer), found_buffer in zip(plain.named_buffers(), ours.buffers(), strict=True):
        assert torch.allclose(found_buffer.double(), buffer.double(), rtol=EXACT, atol=0), name


def test_the_whole_networks_float32_error_is_at_most_one_and_a_half_of_conv3ds():
    exact_plain, _ = build_pair()
    plain, ours = build_pair(torch.float32)
    clips = clips_of((2, 3, 3, 64, 64))
    with torch.no_grad():
        exact = exact_plain.eval()(clips)
        rms = [(model.train()(clips.float()) - exact).square().mean().sqrt() for model in (plain, ours)]
    assert rms[1] < 1.5 * rms[0]


LAYERS = [(3, 64, 64), (64, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8), (512, 512, 8), (512, 512, 4)]


@pytest.mark.parametrize(("channels", "width", "size"), LAYERS)
def test_each_layers_float32_error_is_at_most_one_and_a_half_of_conv3ds(channels, width, size):
    torch.manual_seed(0)
    conv = nn.Conv3d(channels, width, 3, padding=1)
    clips, upstream = torch.randn(2, channels, 3, size, size), torch.randn(2, width, 3, size, size)
    exact = gradients_of(copy.deepcopy(conv).double(), clips.double(), upstream.double())
    errors = [
        [(found - right).square().mean().sqrt() for found, right in zip(results, exact, strict=True)]
        for results in (gradients_of(conv, clips, upstream), gradients_of(as_frames(conv), clips, upstream))
    ]
    assert all(ours < 1.5 * plain for plain, ours in zip(*errors, strict=True)), errors


def as_frames(conv: nn.Conv3d) -> nn.Module:
    network = nn.Sequential(copy.deepcopy(conv), nn.AdaptiveAvgPool3d((1, 1, 1)))
    use_frames_as_batch(network)
    return network[0]


def gradients_of(conv: nn.Conv3d, clips: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of input, weight and bias, in the clip's axes, whichever way the layer computes."""
    inputs = clips.clone().requires_grad_()
    if type(conv) is nn.Conv3d:
        output = conv(inputs)
    else:
        frames = conv(inputs.permute(2, 0, 1, 3, 4).flatten(0, 1))  # (B, C, 3, H, W) -> (3B, C, H, W)
        output = frames.unflatten(0, (3, -1)).permute(1, 2, 0, 3, 4)
    return [output.detach(), *torch.autograd.grad(output, [inputs, conv.weight, conv.bias], upstream)]


@pytest.mark.parametrize("shape", [(2, 6, 3, 9, 8), (1, 6, 3, 1, 1), (3, 2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"groups": 2}, {"stride": (1, 2, 2)}], ids=str)
def test_a_layer_with_any_options_is_conv3d(shape, options):
    torch.manual_seed(3)
    conv = nn.Conv3d(shape[1], 4, 3, padding=1, dtype=torch.float64, **options)
    if conv.bias is None:
        conv.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    clips = clips_of(shape)
    upstream = torch.randn_like(conv(clips))
    expected, found = (gradients_of(layer, clips, upstream) for layer in (conv, as_frames(conv)))
    assert all(relative_difference(a, b) < EXACT for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("frozen", ["frames", "weight", "bias", "frames and weight"])
def test_what_needs_no_gradient_gets_none_and_the_rest_its_own(frozen):
    frames = torch.randn(6, 8, 5, 4, dtype=torch.float64)
    weight = torch.randn(4, 8, 3, 3, 3, dtype=torch.float64)
    gradients = {}
    for keep in ((), frozen.split(" and ")):
        leaves = {"frames": frames.clone(), "weight": weight.clone(), "bias": torch.ones(4, dtype=torch.float64)}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name not in keep)
        conv_frames(*leaves.values(), padding=1).square().sum().backward()
        gradients[bool(keep)] = {name: leaf.grad for name, leaf in leaves.items()}
    assert all((gradients[True][name] is None) == (name in frozen.split(" and ")) for name in leaves)
    for name, gradient in gradients[True].items():
        assert gradient is None or relative_difference(gradient, gradients[False][name]) < EXACT


def test_a_second_derivative_is_refused_and_not_wrong():
    frames = torch.randn(3, 8, 4, 4, requires_grad=True)
    weight = torch.randn(4, 8, 3, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(conv_frames(frames, weight, padding=1).square().sum(), frames, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("name", ["resnet18", "alexnet", pytest.param("vgg16_bn", marks=pytest.mark.exhaustive)])
def test_other_inflated_cnns_take_part(name):
    torch.manual_seed(0)
    plain = randomise(inflate(models.get_model(name, weights=None))).double().eval()
    ours = copy.deepcopy(plain)
    assert use_frames_as_batch(ours) > 5
    clips = clips_of((1, 3, 3, 64, 64))
    with torch.no_grad():
        assert relative_difference(ours(clips), plain(clips)) < EXACT


# --- half precision, compiled, distributed ---------------------------------------------------------------------------


def test_autocast_stays_within_a_few_roundings_of_conv3ds():
    exact_plain, _ = build_pair()
    plain, ours = build_pair(torch.float32)
    clips = clips_of((2, 3, 3, 64, 64))
    exact = compute(exact_plain.train(), clips)[0]
    errors = []
    for model in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            logits, _, gradients = compute(model.train(), clips.float())
        assert logits.dtype is torch.bfloat16
        assert all(gradient.dtype is torch.float32 for gradient in gradients.values())
        errors.append(relative_difference(logits.double(), exact))
    assert errors[1] < 4 * max(errors[0], torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_code_has_no_breaks_and_the_same_numbers(training):
    _, ours = build_pair()
    expected = compute(ours.train(training), clips := clips_of((2, 3, 3, 32, 32)))
    ours.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    found = compute(compiled, clips)
    assert relative_difference(found[0], expected[0]) < 1e-10
    assert relative_difference(found[1], expected[1]) < 1e-10


def train_distributed(folder: Path, rank: int, world: int, temporal_conv: str) -> None:
    """Two steps of SGD over all clips, split over the ranks; rank 0 keeps the weights."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / f"store_{world}_{temporal_conv}"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.manual_seed(0)
    model = build_pair()[temporal_conv == "four_product"].eval()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clips = clips_of((4, 3, 3, 32, 32)).chunk(world)[rank]
    for _ in range(2):
        optimizer.zero_grad()
        parallel(clips).square().mean().backward()
        optimizer.step()
    if rank == 0:
        torch.save(model.state_dict(), folder / f"{world}_{temporal_conv}.pt")
    torch.distributed.destroy_process_group()


def train_two(folder: Path, temporal_conv: str) -> None:
    """Both ranks, forked before any torch work."""
    child = os.fork()
    if child == 0:
        try:
            train_distributed(folder, 1, 2, temporal_conv)
        finally:
            os._exit(0)
    train_distributed(folder, 0, 2, temporal_conv)
    assert os.waitpid(child, 0)[1] == 0


def test_distributed_training_is_that_of_conv3d_on_one_and_two_processes(tmp_path):
    assert run_in_child(train_distributed, tmp_path, 0, 1, "conv3d") == 0
    assert run_in_child(train_distributed, tmp_path, 0, 1, "four_product") == 0
    assert run_in_child(train_two, tmp_path, "four_product") == 0
    expected = torch.load(tmp_path / "1_conv3d.pt", weights_only=True)
    for other in ("1_four_product", "2_four_product"):
        found = torch.load(tmp_path / f"{other}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], value, rtol=1e-9, atol=1e-11) for name, value in expected.items())


# --- maximum before BatchNorm and ReLU -------------------------------------------------------------------------------


def build_block(norm_weight: float = 1.0) -> nn.Module:
    torch.manual_seed(5)
    block = nn.Sequential(
        nn.Conv3d(8, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool3d((1, 2, 2), (1, 2, 2)),
        nn.AdaptiveAvgPool3d((1, 2, 2)),
    ).double()
    nn.init.constant_(block[1].weight, norm_weight)
    nn.init.constant_(block[1].bias, 0.3)
    use_frames_as_batch(block)
    return block


def count_fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    seen: list[bool] = []
    decide = frames_as_batch._may_pool_first
    monkeypatch.setattr(frames_as_batch, "_may_pool_first", lambda *args: seen.append(decide(*args)) or seen[-1])
    return seen


@pytest.mark.parametrize("norm_weight", [1.5, -1.5, 0.0])
@pytest.mark.parametrize("size", [(8, 6), (9, 7)], ids=str)
def test_the_maximum_first_is_the_same_and_only_taken_with_positive_weights(norm_weight, size, monkeypatch):
    seen = count_fused(monkeypatch)
    ours = build_block(norm_weight)
    plain = copy.deepcopy(ours)
    assert use_clips(plain) == 5
    clips = clips_of((2, 8, 3, *size))
    results = []
    for model in (plain, ours):
        inputs = clips.clone().requires_grad_()
        output = model(inputs)
        results.append([output, *torch.autograd.grad(output.square().sum(), [inputs, *model.parameters()])])
    assert any(seen) == (norm_weight > 0)
    scale = max(tensor.abs().max() for tensor in results[0])
    assert all((a - b).abs().max() < EXACT * scale for a, b in zip(*results, strict=True))
    assert all(torch.allclose(a, b, rtol=EXACT) for a, b in zip(ours.buffers(), plain.buffers(), strict=True))


def test_hooks_see_what_they_always_saw(monkeypatch):
    seen, shapes = count_fused(monkeypatch), []
    block = build_block()
    handle = block[2].register_forward_hook(lambda layer, inputs, output: shapes.append(tuple(output.shape)))
    block(clips_of((2, 8, 3, 8, 6)))
    assert shapes == [(6, 6, 8, 6)]
    assert not any(seen)
    handle.remove()
    block(clips_of((2, 8, 3, 8, 6)))
    assert any(seen)


# --- what stays ------------------------------------------------------------------------------------------------------


def test_executed_macs_of_the_papers_network_are_at_most_46_percent_of_nominal():
    with torch.device("meta"):
        model = build_vgg11_3d(10).eval()
        clip = torch.empty(1, 3, 3, 224, 224)
    counts = []
    for change in (lambda model: None, use_clips):
        change(model)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(clip)
        counts.append(counter.get_total_flops() / 2)
    assert counts[1] == pytest.approx(67.5e9, rel=2e-3)
    assert counts[0] <= 0.46 * counts[1]


@pytest.mark.parametrize("num_frames", [1, 2, 4, 5])
def test_other_numbers_of_frames_run_as_conv3d(num_frames):
    plain, ours = (model.train() for model in build_pair())
    clips = clips_of((2, 3, num_frames, 32, 32))
    torch.testing.assert_close(ours(clips), plain(clips), rtol=0, atol=0)


def test_a_state_dict_fits_both_ways_and_holds_the_same():
    plain, ours = build_pair()
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True))
    plain.load_state_dict(ours.state_dict())
    ours.load_state_dict(plain.state_dict())


def test_layers_are_the_objects_they_were_and_the_change_can_be_undone():
    plain, _ = build_pair()
    before, kinds = dict(plain.named_modules()), [type(module) for module in plain.modules()]
    parameters = dict(plain.named_parameters())
    assert use_frames_as_batch(plain) == 24
    assert use_frames_as_batch(plain) == 0
    assert has_frames_as_batch(plain)
    assert all(module is before[name] for name, module in plain.named_modules())
    assert all(parameter is parameters[name] for name, parameter in plain.named_parameters())
    assert use_clips(plain) == 24
    assert [type(module) for module in plain.modules()] == kinds
    assert not has_frames_as_batch(plain)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_the_same_with_weights_of_its_own(duplicate):
    _, ours = build_pair()
    twin, clips = duplicate(ours.eval()), clips_of((1, 3, 3, 32, 32))
    with torch.no_grad():
        expected = ours(clips)
        assert torch.equal(twin(clips), expected)
        twin.features[4].weight.zero_()
        assert torch.equal(ours(clips), expected)
        assert not torch.equal(twin(clips), expected)


def test_evaluation_after_a_step_uses_the_new_weights():
    plain, ours = build_pair()
    clips = clips_of((2, 3, 3, 32, 32))
    for model in (plain, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            with torch.no_grad():
                model.eval()(clips)
            model.train()(clips).square().sum().backward()
            optimizer.step()
    with torch.no_grad():
        assert relative_difference(ours.eval()(clips), plain.eval()(clips)) < 1e-9


def test_clips_that_lie_as_frames_are_not_copied():
    model, _ = build_pair()
    frames = torch.randn(3, 2, 8, 8, 3, dtype=torch.float64)  # (T, B, H, W, C)
    (batch,) = frames_as_batch.frames_from_clip(model, (frames.permute(1, 4, 0, 2, 3),))
    assert batch.shape == (6, 3, 8, 8)
    assert batch.data_ptr() == frames.data_ptr()
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        (nn.MaxPool3d(2), "MaxPool3d"),
        (nn.Conv3d(3, 3, 3, padding=(0, 1, 1)), "Conv3d"),
        (nn.Conv3d(3, 3, 3, padding=1, padding_mode="replicate"), "Conv3d"),
        (nn.GroupNorm(1, 3), "GroupNorm"),
        (nn.AdaptiveAvgPool3d(2), "AdaptiveAvgPool3d"),
        (nn.Conv3d(3, 3, 3, padding=1), "nothing averages over the frames"),
    ],
    ids=str,
)
def test_a_network_with_anything_else_is_refused_untouched(layer, problem):
    network = nn.Sequential(nn.Conv3d(3, 3, 3, padding=1), layer)
    with pytest.raises(ValueError, match=problem):
        use_frames_as_batch(network)
    assert type(network) is nn.Sequential
    assert type(network[0]) is nn.Conv3d
    assert not network._forward_pre_hooks


def test_images_are_refused_by_a_sentence():
    _, ours = build_pair()
    with pytest.raises(ValueError, match="takes clips"):
        ours(torch.randn(2, 3, 32, 32, dtype=torch.float64))
