"""The U-Net with shortcuts against the U-Net without: the same numbers, names and gradients, and fewer FLOPs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from tiny_svd import one_thread  # noqa: F401 (a fixture)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from Data_Augmentation_SVD.unet_shortcuts import OneKeyAttention, sampling_run, use_exact_shortcuts
from utils.three_frame_conv import ThreeFrameConv3d, use_three_frame_convs

WIDTH = 16  # of the context
# With smaller latents, the deepest level of so narrow a network normalises groups of two pixels: its own float32 error
# is 5e-4 then, and no two orders of summation agree.
LATENT_SIZE = (16, 16)

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def build_unet() -> UNetSpatioTemporalConditionModel:
    """The published classes with few channels."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        num_attention_heads=(1, 1, 2, 2),
        cross_attention_dim=WIDTH,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    return unet.eval()


@pytest.fixture(scope="module")
def plain() -> UNetSpatioTemporalConditionModel:
    return build_unet()


@pytest.fixture(scope="module")
def fast(plain) -> UNetSpatioTemporalConditionModel:
    unet = copy.deepcopy(plain)
    use_exact_shortcuts(unet, num_frames=3)
    return unet


def inputs_for(
    *, batch_size: int = 2, num_frames: int = 3, num_tokens: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Inputs:
    """Latents, a time step, the context, and the micro-conditions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    latents = draw(batch_size, num_frames, 8, *LATENT_SIZE)
    context = draw(batch_size, num_tokens, WIDTH)
    return latents, torch.tensor(1.5), context, draw(batch_size, 3)


def guided(inputs: Inputs) -> Inputs:
    """Without and with the image, in one batch, as the pipeline does it."""
    latents, timestep, context, added = inputs
    context = torch.cat([torch.zeros_like(context), context])
    return torch.cat([latents, latents]), timestep, context, torch.cat([added, added])


@torch.no_grad()
def assert_same(plain: nn.Module, fast: nn.Module, inputs: Inputs, bound: float = 1e-5) -> None:
    expected, found = (unet(*inputs).sample for unet in (plain, fast))
    difference = (found - expected).abs().max().item()
    assert difference <= bound
    assert difference <= bound * expected.abs().max().item()


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [2, 3, 5])
@pytest.mark.parametrize("num_tokens", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_output_is_that_of_the_unmodified_network(plain, fast, num_frames, num_tokens, batch_size):
    assert_same(plain, fast, inputs_for(batch_size=batch_size, num_frames=num_frames, num_tokens=num_tokens))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_with_classifier_free_guidance(plain, fast, batch_size):
    assert_same(plain, fast, guided(inputs_for(batch_size=batch_size)))


def test_in_float64_nothing_but_rounding_differs(plain, fast):
    inputs = guided(inputs_for(dtype=torch.float64))
    assert_same(copy.deepcopy(plain).double(), copy.deepcopy(fast).double(), inputs, bound=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_the_unmodified_networks(plain, fast, dtype):
    inputs = guided(inputs_for(dtype=dtype))
    with torch.no_grad():
        exact = plain(*(tensor.float() for tensor in inputs)).sample
        errors = []
        for unet in (plain, fast):
            found = copy.deepcopy(unet).to(dtype)(*inputs).sample
            assert found.dtype == dtype
            errors.append((found - exact).square().mean().sqrt())
    assert errors[1] < 1.25 * errors[0]


def test_gradients_are_those_of_the_unmodified_network(plain, fast):
    results = []
    for unet in (copy.deepcopy(plain).double(), copy.deepcopy(fast).double()):
        inputs = inputs_for(dtype=torch.float64)
        inputs[2].requires_grad_()
        unet(*inputs).sample.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in unet.named_parameters()}
        results.append(gradients | {"context": inputs[2].grad})
    for name, expected in results[0].items():
        found = results[1][name]
        if found is None:  # dead: queries, keys and their normalisation
            assert ".attn2.to_q" in name or ".attn2.to_k" in name or ".norm2." in name
            found = torch.zeros_like(expected)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_dropout_in_training_is_drawn_for_each_token(plain, fast):
    attention = next(module for module in copy.deepcopy(fast).modules() if isinstance(module, OneKeyAttention))
    attention.train().to_out[1].p = 0.5
    tokens, context = torch.randn(2, 50, 32), torch.randn(2, 1, WIDTH)
    assert attention(tokens, context).shape == tokens.shape
    assert attention.eval()(tokens, context).shape == (2, 1, 32)


# --- contexts, one after the other -----------------------------------------------------------------------------------


def no_run(unet: nn.Module) -> Iterator[None]:
    return torch.no_grad()


@pytest.mark.parametrize("run", [no_run, sampling_run], ids=["bare", "in_a_run"])
def test_no_context_is_taken_for_another(plain, fast, run: Callable):
    """New tensors, the same tensor again, changed in place, and another batch size: each with its own result."""
    first, second = guided(inputs_for(seed=1)), guided(inputs_for(seed=2))
    with run(fast):
        for inputs in (first, first, second, first):
            assert_same(plain, fast, inputs)
        first[2].mul_(-1)
        assert_same(plain, fast, first)
        first[2].copy_(second[2])
        assert_same(plain, fast, first)
        assert_same(plain, fast, inputs_for(batch_size=3))
        assert_same(plain, fast, inputs_for(num_tokens=2))
        assert_same(plain, fast, first)


def test_contexts_that_may_share_an_address_are_told_apart(plain, fast):
    with sampling_run(fast):
        for seed in range(4):
            assert_same(plain, fast, inputs_for(seed=seed, batch_size=1))


def test_contexts_without_version_counter_are_told_apart(plain, fast):
    with torch.inference_mode(), sampling_run(fast):
        inputs = inputs_for()
        assert_same(plain, fast, inputs)
        inputs[2].mul_(-1)
        assert_same(plain, fast, inputs)


def test_keyword_arguments_are_seen(plain, fast):
    latents, timestep, context, added = inputs_for()
    with torch.no_grad(), sampling_run(fast):
        for _ in range(2):
            keywords = {"encoder_hidden_states": context, "added_time_ids": added}
            torch.testing.assert_close(fast(latents, timestep, **keywords), plain(latents, timestep, **keywords))
            context.neg_()


def count_projections(unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    seen: list[nn.Module] = []
    attend = OneKeyAttention.attend
    monkeypatch.setattr(OneKeyAttention, "attend", lambda self, context: seen.append(self) or attend(self, context))
    return seen


@torch.no_grad()
def test_a_run_projects_each_context_once_and_forgets_it(fast, monkeypatch):
    seen = count_projections(fast, monkeypatch)
    num_attentions = sum(isinstance(module, OneKeyAttention) for module in fast.modules())
    inputs = inputs_for()
    for _ in range(2):
        with sampling_run(fast):
            for _ in range(3):
                fast(*inputs)
    assert len(seen) == 2 * num_attentions
    fast(*inputs)
    assert len(seen) == 3 * num_attentions


def test_a_run_that_fails_is_closed(fast, monkeypatch):
    with pytest.raises(RuntimeError), sampling_run(fast):
        raise RuntimeError
    seen = count_projections(fast, monkeypatch)
    with torch.no_grad():
        fast(*inputs_for())
        fast(*inputs_for())
    assert len(seen) == 2 * sum(isinstance(module, OneKeyAttention) for module in fast.modules())


def test_a_run_keeps_nothing_where_gradients_or_autocast_would_miss_it(plain, fast, monkeypatch):
    seen = count_projections(fast, monkeypatch)
    inputs = inputs_for()
    with sampling_run(fast):
        fast(*inputs)  # with gradients
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            fast(*inputs)
        assert len(set(seen)) * 2 == len(seen)
        assert_same(plain, fast, inputs)


# --- the network stays what it was -----------------------------------------------------------------------------------


def test_state_dict_and_checkpoint_are_unchanged(plain, fast, tmp_path):
    with torch.no_grad():
        fast(*inputs_for())  # kernels are kept now
    before, after = plain.state_dict(), fast.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    fast.save_pretrained(tmp_path)
    loaded = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path)
    assert_same(plain, loaded, inputs_for(), bound=0.0)


def test_parameters_stay_the_same_objects():
    unet = build_unet()
    before = dict(unet.named_parameters())
    use_exact_shortcuts(unet, num_frames=3)
    assert all(parameter is before[name] for name, parameter in unet.named_parameters())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))])
def test_copies_are_independent(plain, fast, duplicate):
    with torch.no_grad(), sampling_run(fast):
        fast(*inputs_for())
        twin = duplicate(fast)
        assert_same(plain, twin, inputs_for())
        for parameter in twin.parameters():
            parameter.zero_()
        assert_same(plain, fast, inputs_for())
    memories = {id(m.memory) for unet in (fast, twin) for m in unet.modules() if isinstance(m, OneKeyAttention)}
    assert len(memories) == 2


def test_twice_is_once(plain, fast):
    unet = copy.deepcopy(fast)
    use_exact_shortcuts(unet, num_frames=3)
    assert len(unet._forward_pre_hooks) == 1
    assert_same(plain, unet, inputs_for())


def test_convolutions_are_replaced_for_three_frames_only_and_from_a_width_on():
    counts = []
    for options in ({"num_frames": 3}, {"num_frames": 5}, {"num_frames": 3, "min_conv_channels": 64}):
        unet = build_unet()
        use_exact_shortcuts(unet, **options)
        counts.append(sum(isinstance(module, ThreeFrameConv3d) for module in unet.modules()))
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_a_cross_attention_with_a_processor_of_its_own_is_left_alone(plain):
    unet = copy.deepcopy(plain)

    class Own:
        def __call__(self, attention, hidden_states, **others):
            return hidden_states

    for module in unet.modules():
        if hasattr(module, "attn2"):
            module.attn2.set_processor(Own())
    reference = copy.deepcopy(unet)
    use_exact_shortcuts(unet, num_frames=3)
    assert not any(isinstance(module, OneKeyAttention) for module in unet.modules())
    assert_same(reference, unet, inputs_for())


def test_attention_slicing_and_chunking_still_work(plain, fast):
    unet = copy.deepcopy(fast)
    unet.enable_forward_chunking()
    for module in unet.modules():
        if hasattr(module, "set_attention_slice"):
            module.set_attention_slice(1)
    for num_tokens in (1, 2):
        assert_same(plain, unet, inputs_for(num_tokens=num_tokens))


def test_a_compiled_transformer_has_no_breaks(plain, fast):
    hidden, context, indicator = torch.randn(6, 32, 8, 8), torch.randn(6, 1, WIDTH), torch.zeros(2, 3)
    context = context[::3].repeat_interleave(3, 0)
    parts = [unet.down_blocks[0].attentions[0] for unet in (plain, fast)]
    compiled = torch.compile(parts[1], backend="aot_eager", fullgraph=True)
    with torch.no_grad(), sampling_run(fast):
        for _ in range(2):
            expected = parts[0](hidden, context, indicator).sample
            torch.testing.assert_close(compiled(hidden, context, indicator).sample, expected, rtol=0, atol=1e-5)
            context.mul_(-1)


@torch.no_grad()
def test_the_decoder_of_the_vae_takes_four_products():
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2
    )
    for num_frames, bound in ((3, 1e-5), (2, 0.0)):
        latents = torch.randn(2 * num_frames, 4, 16, 16)
        twin = copy.deepcopy(vae)
        assert use_three_frame_convs(twin.decoder) > 0
        expected, found = (v.decode(latents, num_frames=num_frames).sample for v in (vae, twin))
        torch.testing.assert_close(found, expected, rtol=0, atol=bound)


# --- the published architecture --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> UNetSpatioTemporalConditionModel:
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel().eval()
    return unet.to("meta")  # the blending factors are made on the CPU


@torch.no_grad()
def count_flops(unet: nn.Module, height: int, width: int) -> int:
    """Executed FLOPs of a step for one clip of three frames with guidance; nothing is computed."""
    shapes = ((2, 3, 8, height, width), (), (2, 1, 1024), (2, 3))
    with FlopCounterMode(display=False) as counter:
        unet(*(torch.empty(shape, device="meta") for shape in shapes))
    return counter.get_total_flops()


def test_the_published_network_saves_its_flops(published):
    assert sum(parameter.numel() for parameter in published.parameters()) == 1_524_623_082
    fast = copy.deepcopy(published)
    use_exact_shortcuts(fast, num_frames=3)
    for size, expected in {(32, 32): 0.904, (72, 128): 0.921}.items():
        flops, fewer = (count_flops(unet, *size) for unet in (published, fast))
        print(f"{size}: {flops / 1e12:.3f} -> {fewer / 1e12:.3f} TFLOP, ratio {fewer / flops:.4f}")
        assert fewer / flops == pytest.approx(expected, abs=1e-3)
        assert fewer / flops <= 0.94


def test_what_is_left_of_cross_attention_does_not_grow_with_the_image(published):
    """One vector a clip in the temporal blocks; it was one a pixel."""
    fast = copy.deepcopy(published)
    use_exact_shortcuts(fast, num_frames=3)
    block = fast.down_blocks[0].attentions[0].temporal_transformer_blocks[0]
    num_pixels, num_clips = 4096, 2
    with FlopCounterMode(display=False) as counter:
        tokens, context = ((num_clips * 3, num_pixels, 320), (num_clips * num_pixels, 1, 1024))
        block(torch.empty(tokens, device="meta"), 3, torch.empty(context, device="meta"))
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    assert flops["OneKeyTemporalBlock.attn2"] == 2 * num_clips * (1024 * 320 + 320 * 320)
