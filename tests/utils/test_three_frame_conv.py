"""The three-frame convolution against torch's Conv3d: numbers, gradients, names, and kernels that are never stale."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils import three_frame_conv as module_under_test
from utils.three_frame_conv import ThreeFrameConv3d, three_frame_conv, transform_kernel, use_three_frame_convs

POINTWISE = {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)}
CUBE = {"kernel_size": 3, "padding": 1}
LAYERS = {
    "3x1x1": (8, 5, POINTWISE),
    "3x1x1_without_bias": (4, 4, POINTWISE | {"bias": False}),
    "3x1x1_groups": (6, 9, POINTWISE | {"groups": 3}),
    "3x3x3": (3, 7, CUBE),
    "3x3x3_without_bias": (5, 4, CUBE | {"bias": False}),
    "3x3x3_depthwise": (6, 6, CUBE | {"groups": 6}),
    "3x3x3_groups": (4, 6, CUBE | {"groups": 2}),
    "3x3x3_stride": (4, 6, CUBE | {"stride": (1, 2, 2)}),
    "3x5x2_everything": (
        4,
        6,
        {"kernel_size": (3, 5, 2), "padding": (1, 3, 0), "stride": (1, 2, 3), "dilation": (1, 2, 1), "groups": 2},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With more, oneDNN picks another algorithm for Conv3d than for Conv2d, and errors cannot be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_pair(name: str = "3x3x3", dtype: torch.dtype = torch.float64) -> tuple[nn.Conv3d, nn.Conv3d]:
    """Torch's layer and ours, with the same random weights."""
    torch.manual_seed(len(name))
    in_channels, out_channels, options = LAYERS[name]
    plain = nn.Conv3d(in_channels, out_channels, **options).to(dtype)
    ours = copy.deepcopy(plain)
    assert use_three_frame_convs(ours) == 1
    return plain, ours


def clip_for(conv: nn.Conv3d, num_frames: int = 3, size: tuple[int, int] = (7, 6)) -> torch.Tensor:
    return torch.randn(2, conv.in_channels, num_frames, *size, dtype=conv.weight.dtype)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_conv3d(name):
    plain, ours = build_pair(name)
    clip, results = clip_for(plain), []
    upstream = torch.randn_like(plain(clip))
    for conv in (plain, ours):
        inputs = clip.clone().requires_grad_()
        output = conv(inputs)
        results.append([output, *torch.autograd.grad(output, [inputs, *conv.parameters()], upstream)])
    for found, expected in zip(results[1], results[0], strict=True):
        assert found.shape == expected.shape
        assert relative_difference(found, expected) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_without_gradients_the_output_is_that_of_conv3d(name):
    """Pointwise products take another way then."""
    plain, ours = build_pair(name)
    clip = clip_for(plain)
    assert relative_difference(ours(clip), plain(clip)) < 1e-12
    not_contiguous = clip.transpose(1, 3).contiguous().transpose(1, 3)
    assert relative_difference(ours(not_contiguous), plain(clip)) < 1e-12


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 5)], ids=str)
@pytest.mark.parametrize("in_channels", [1, 13])
def test_shapes_at_random(size, in_channels):
    plain = nn.Conv3d(in_channels, 11, 3, padding=1, dtype=torch.float64)
    clip = clip_for(plain, size=size)
    expected = plain(clip)
    use_three_frame_convs(plain)
    assert relative_difference(plain(clip), expected) < 1e-12


def test_second_derivatives_are_right():
    _, ours = build_pair("3x1x1_groups")
    clip = clip_for(ours, size=(2, 1))[:1].requires_grad_()
    assert torch.autograd.gradgradcheck(ours, (clip,))


@pytest.mark.parametrize(
    ("channels", "kernel_size", "size"), [(32, 3, 16), (64, 3, 14), (3, 3, 32), (64, 1, 16), (320, 1, 12)]
)
def test_the_float32_error_is_at_most_one_and_a_half_of_conv3ds(channels, kernel_size, size):
    """0.75 to 1.2 of it, in fact."""
    torch.manual_seed(0)
    padding = kernel_size // 2
    conv = nn.Conv3d(channels, channels, (3, kernel_size, kernel_size), padding=(1, padding, padding))
    clip = clip_for(conv, size=(size, size))
    with torch.no_grad():
        exact, plain = copy.deepcopy(conv).double()(clip.double()), conv(clip)
        use_three_frame_convs(conv)
        ours_rms, plain_rms = ((found - exact).square().mean().sqrt() for found in (conv(clip), plain))
    assert ours_rms < 1.5 * plain_rms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["3x1x1", "3x3x3"])
def test_half_precision_stays_within_a_few_roundings(name, dtype):
    plain, ours = build_pair(name, dtype)
    clip = clip_for(plain)
    exact = plain.double()(clip.double())
    found = ours(clip)
    assert found.dtype == dtype
    assert relative_difference(found.double(), exact) < 4 * torch.finfo(dtype).eps


def test_float16_does_not_overflow_where_conv3d_does_not():
    conv = nn.Conv3d(1, 1, 3, padding=1, bias=False).half()
    nn.init.ones_(conv.weight)
    clip = torch.full((1, 1, 3, 3, 3), 2000.0, dtype=torch.float16)
    expected = conv(clip)
    use_three_frame_convs(conv)
    assert expected.max() == 27 * 2000
    torch.testing.assert_close(conv(clip), expected, rtol=4e-3, atol=0)


def test_half_precision_kernels_are_rounded_once():
    weight = torch.randn(5, 4, 3, 2, 2).half()
    torch.testing.assert_close(transform_kernel(weight), transform_kernel(weight.float()).half(), rtol=0, atol=0)


def test_autocast_computes_in_its_type():
    plain, ours = build_pair("3x3x3", torch.float32)
    clip = clip_for(plain)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(clip)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain(clip), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_frames_as_a_batch(memory_format):
    """(3B, C, H, W) in the order of time: the layout of 2-D kernels."""
    plain, _ = build_pair("3x3x3")
    clip = clip_for(plain)
    batch = (
        clip.permute(2, 0, 1, 3, 4).flatten(0, 1).to(memory_format=memory_format)
    )  # (B, C, 3, H, W) -> (3B, C, H, W)
    frames = three_frame_conv(batch.chunk(3), plain.weight, plain.bias, padding=1)
    assert all(frame.is_contiguous(memory_format=memory_format) for frame in frames)
    assert relative_difference(torch.stack(frames, dim=2), plain(clip)) < 1e-12


def test_four_products_are_executed():
    plain, ours = build_pair("3x3x3")
    flops = []
    for conv in (plain, ours):
        with FlopCounterMode(display=False) as counter:
            conv(clip_for(conv))
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx(4 / 9)


# --- where it does not apply -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["3x1x1", "3x3x3_stride"])
def test_other_numbers_of_frames_run_as_conv3d(name, num_frames):
    plain, ours = build_pair(name)
    clip = clip_for(plain, num_frames)
    torch.testing.assert_close(ours(clip), plain(clip), rtol=0, atol=0)


def test_a_clip_without_batch_axis_runs_as_conv3d():
    plain, ours = build_pair()
    clip = clip_for(plain)[0]
    torch.testing.assert_close(ours(clip), plain(clip), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
        {"kernel_size": (5, 1, 1), "padding": (2, 0, 0)},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": (0, 1, 1)},
        {"kernel_size": 3, "padding": (2, 1, 1), "dilation": (2, 1, 1)},
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
    ],
    ids=str,
)
def test_other_layers_stay_conv3d_and_compute_the_same_as_ours(options):
    plain = nn.Conv3d(4, 4, **options)
    ours = ThreeFrameConv3d(4, 4, **options)
    ours.load_state_dict(plain.state_dict())
    assert use_three_frame_convs(plain) == 0
    assert type(plain) is nn.Conv3d
    clip = clip_for(plain)
    torch.testing.assert_close(ours(clip), plain(clip), rtol=0, atol=0)


def test_subclasses_and_narrow_layers_are_left_alone():
    class Own(nn.Conv3d):
        pass

    network = nn.Sequential(Own(4, 4, 3, padding=1), nn.Conv3d(4, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1))
    assert use_three_frame_convs(network, min_channels=8) == 1
    assert [type(layer) for layer in network] == [Own, nn.Conv3d, ThreeFrameConv3d]


# --- state -----------------------------------------------------------------------------------------------------------


def test_parameters_names_and_flags_are_those_of_conv3d():
    network = nn.ModuleDict({"a": nn.Conv3d(4, 4, 3, padding=1), "b": nn.Sequential(nn.Conv3d(4, 4, 1))}).eval()
    network["a"].weight.requires_grad_(False)
    before = dict(network.named_parameters())
    assert use_three_frame_convs(network) == 1
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert not network["a"].training


def test_a_state_dict_fits_both_ways():
    plain, ours = build_pair()
    other = ThreeFrameConv3d(3, 7, 3, padding=1, dtype=torch.float64)
    with torch.no_grad():
        ours.eval()(clip_for(ours))  # kernels are kept now
    assert ours.state_dict().keys() == plain.state_dict().keys()
    other.load_state_dict(plain.state_dict())
    plain.load_state_dict(other.state_dict())


CHANGES = {
    "optimizer": lambda conv: optimizer_step(conv),
    "in_place": lambda conv: conv.weight.mul_(2),
    "load_state_dict": lambda conv: conv.load_state_dict({name: t + 1 for name, t in conv.state_dict().items()}),
    "load_and_assign": lambda conv: conv.load_state_dict(
        {name: t + 1 for name, t in conv.state_dict().items()}, assign=True
    ),
    "another_parameter": lambda conv: setattr(conv, "weight", nn.Parameter(conv.weight * 2)),
    "data_then_eval": lambda conv: (conv.weight.data.mul_(2), conv.eval()),
    "new_data": lambda conv: setattr(conv.weight, "data", conv.weight * 2),
    "to_dtype": lambda conv: conv.float(),
    "to_dtype_and_back": lambda conv: conv.to(torch.bfloat16).double(),
    "nothing": lambda conv: None,
}


def optimizer_step(conv: nn.Conv3d) -> None:
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    with torch.enable_grad():
        conv(clip_for(conv)).square().sum().backward()
    optimizer.step()


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_kept_kernels_are_never_stale(change):
    _, ours = build_pair()
    ours.eval()
    ours(clip_for(ours))
    CHANGES[change](ours)
    plain = nn.Conv3d(3, 7, 3, padding=1, dtype=ours.weight.dtype)
    plain.load_state_dict(ours.state_dict())
    clip = clip_for(plain)
    for _ in range(2):
        assert relative_difference(ours(clip), plain(clip)) < (1e-12 if clip.dtype == torch.float64 else 1e-5)


def count_transforms(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    transform = module_under_test.transform_kernel
    monkeypatch.setattr(
        module_under_test,
        "transform_kernel",
        lambda weight, dtype=None: seen.append(weight) or transform(weight, dtype),
    )
    return seen


def test_frozen_weights_are_transformed_once_and_trained_ones_each_time(monkeypatch):
    seen = count_transforms(monkeypatch)
    _, ours = build_pair()
    ours.eval()
    with torch.no_grad():
        for _ in range(3):
            ours(clip_for(ours))
    assert len(seen) == 1
    for _ in range(3):
        ours(clip_for(ours))
    assert len(seen) == 4
    with torch.no_grad():
        ours.train()(clip_for(ours))
    assert len(seen) == 5


def test_weights_without_version_counter_are_transformed_each_time(monkeypatch):
    seen = count_transforms(monkeypatch)
    with torch.inference_mode():
        conv = ThreeFrameConv3d(3, 4, 3, padding=1).eval()
        for _ in range(2):
            conv(clip_for(conv))
    assert len(seen) == 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda conv: pickle.loads(pickle.dumps(conv))])
def test_a_copy_keeps_its_own_kernels(duplicate):
    _, ours = build_pair()
    with torch.no_grad():
        before = ours.eval()(clip := clip_for(ours))
        twin = duplicate(ours)
        assert twin._kept is None
        twin.weight.mul_(2)
        twin.bias.mul_(2)
        torch.testing.assert_close(twin(clip), 2 * before)
        torch.testing.assert_close(ours(clip), before, rtol=0, atol=0)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_compiled_code_has_no_breaks_and_sees_every_change(with_gradients):
    _, ours = build_pair()
    compiled = torch.compile(ours.eval(), backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(with_gradients):
        ours(clip := clip_for(ours))
        for _ in range(2):
            torch.testing.assert_close(compiled(clip), ours(clip), rtol=1e-12, atol=1e-12)
            ours.weight.data.mul_(2)  # what the layer itself would not notice
            ours.eval()
