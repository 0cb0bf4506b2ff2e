"""Roll-out against hand computations, against whole matrices, and where a planted attention must show."""

from __future__ import annotations

import pytest
import torch
from tiny_transformers import MODULES, build_tiny, random_clips

from Model_Evaluation.attention_rollout import compute_attention_rollout, roll_out
from Video_Models.adaptation import adapt
from Video_Models.models import build_video_classifier
from Video_Models.transformer import DividedAttention

FAMILIES = sorted(MODULES)


def test_two_tokens_and_two_blocks_by_hand():
    first = torch.tensor([[[0.7, 0.3], [0.4, 0.6]]])
    second = torch.tensor([[[0.2, 0.8], [0.5, 0.5]]])
    # With the residuals: second's row 0 is (0.6, 0.4); times first's (0.85, 0.15), (0.2, 0.8).
    shares = roll_out([first, second], torch.tensor([[1.0, 0.0]]))
    assert torch.allclose(shares, torch.tensor([[0.59, 0.41]]))
    # The mean of both queries: rows (0.6, 0.4), (0.25, 0.75) -> (0.425, 0.575)
    shares = roll_out([first, second], torch.tensor([[0.5, 0.5]]))
    assert torch.allclose(shares, torch.tensor([[0.425 * 0.85 + 0.575 * 0.2, 0.425 * 0.15 + 0.575 * 0.8]]))


def test_divided_attention_of_one_place_and_two_frames_by_hand():
    temporal = torch.tensor([[[[0.7, 0.3], [0.4, 0.6]]]])
    spatial = torch.tensor([[[[0.2, 0.8], [0.5, 0.5]], [[0.6, 0.4], [0.1, 0.9]]]])
    shares = roll_out([DividedAttention(temporal, spatial)], torch.tensor([[1.0, 0.0, 0.0]]))
    # Space: CLS keeps 0.5 + 0.5 * (0.2 + 0.6) / 2, its places get 0.5 * 0.8 / 2 and 0.5 * 0.4 / 2; then time.
    assert torch.allclose(shares, torch.tensor([[0.7, 0.19, 0.11]]))


def test_divided_attention_equals_its_whole_matrix():
    num_places, num_times = 3, 4
    generator = torch.Generator().manual_seed(0)
    temporal = torch.rand(1, num_places, num_times, num_times, generator=generator).softmax(dim=-1)
    spatial = (4 * torch.rand(1, num_times, 1 + num_places, 1 + num_places, generator=generator)).softmax(dim=-1)
    num_tokens = 1 + num_places * num_times
    over_time, over_space = torch.zeros(2, num_tokens, num_tokens)
    over_time[0, 0] = 1
    for time in range(num_times):
        over_space[0, 0] += spatial[0, time, 0, 0] / num_times
        for place in range(num_places):
            token = 1 + place * num_times + time
            over_time[token, 1 + place * num_times : 1 + (place + 1) * num_times] = temporal[0, place, time]
            over_space[0, token] = spatial[0, time, 0, 1 + place] / num_times
            over_space[token, 0] = spatial[0, time, 1 + place, 0]
            for other in range(num_places):
                over_space[token, 1 + other * num_times + time] = spatial[0, time, 1 + place, 1 + other]
    half = torch.eye(num_tokens) / 2
    pooling = torch.rand(1, num_tokens, generator=generator)
    block = (half + over_space / 2) @ (half + over_time / 2)
    assert torch.allclose(block.sum(dim=1), torch.ones(num_tokens))
    shares = roll_out([DividedAttention(temporal, spatial)] * 2, pooling)
    assert torch.allclose(shares, pooling @ block @ block, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_frames", [3, 4, 16])
def test_maps_are_those_of_each_item_and_leave_the_network_as_it_was(family, num_frames):
    model = build_tiny(family, num_frames).train()
    clips = random_clips(num_frames)
    maps = compute_attention_rollout(model, clips)
    assert maps.dtype == torch.float32
    assert maps.shape == (2, num_frames, 16, 16)
    assert maps.amax(dim=(1, 2, 3)).tolist() == [1, 1]
    assert maps.min() >= 0
    assert maps.std() > 1e-3
    assert not torch.allclose(maps[0], maps[1])
    assert torch.allclose(compute_attention_rollout(model, clips[1:]), maps[1:], rtol=0, atol=1e-5)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    if family != "timesformer":
        assert getattr(model.backbone, family).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", FAMILIES)
def test_blind_attention_gives_a_flat_map_however_frames_are_repeated(family):
    model = build_tiny(family, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(
                (".query.weight", ".q_proj.weight", ".qkv.weight", ".query.bias", ".q_proj.bias", ".qkv.bias")
            ):
                parameter.zero_()  # all scores 0: every token looks at all alike
    maps = compute_attention_rollout(model, random_clips(3))
    assert torch.allclose(maps, torch.ones_like(maps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("frame", "row", "column"), [(0, 0, 0), (2, 1, 0), (1, 0, 1)])
def test_attention_to_one_token_shows_in_its_frame_and_place(family, frame, row, column, monkeypatch):
    """T = 3: VideoMAE and ViViT see frames 0, 0, 1, 2 in tubes (0, 0) and (1, 2)."""
    model = build_tiny(family, 3)
    backbone = model.backbone
    num_tokens = len(backbone.pooling_weights())
    seen = frame if backbone.tubelet_frames == 1 else model.frame_index.tolist().index(frame) // 2
    places = torch.zeros(1, *backbone.grid)
    places[0, seen, row, column] = 1
    token = next(
        n for n in range(num_tokens) if torch.equal(backbone.to_grid(torch.eye(num_tokens)[n : n + 1]), places)
    )

    def look_at(query_shape: tuple[int, ...], key: int) -> torch.Tensor:
        attention = torch.zeros(*query_shape)
        attention[..., key] = 1
        return attention

    if family == "timesformer":
        spatial = look_at((1, 3, 5, 5), 1 + 2 * row + column)
        attention = DividedAttention(look_at((1, 4, 3, 3), frame), spatial)
    else:
        attention = look_at((1, num_tokens, num_tokens), token)
    monkeypatch.setattr(type(backbone), "compute_attentions", lambda *_: [attention] * 2)
    maps = compute_attention_rollout(model, random_clips(3, batch_size=1))[0]
    shown = {0: [0], 1: [1], 2: [2]}[frame] if backbone.tubelet_frames == 1 or frame == 0 else [1, 2]
    brightest = maps.flatten(1).amax(dim=1)
    assert [number for number in range(3) if brightest[number] > 0.999] == shown
    corner = maps[shown[0], 15 * row, 15 * column]
    assert corner == 1
    assert maps[shown[0], 15 * (1 - row), 15 * (1 - column)] < 0.5


def test_a_network_with_lora_is_rolled_out_too():
    model = adapt(build_tiny("videomae"), "lora")
    assert torch.equal(
        compute_attention_rollout(model, random_clips()),
        compute_attention_rollout(build_tiny("videomae"), random_clips()),
    )


def test_a_network_without_attention_is_refused():
    model = build_video_classifier(3, family="r3d_18", num_frames=3, image_size=32, config={"layers": [1, 1, 1, 1]})
    with pytest.raises(ValueError, match="has no attention to roll out; use Grad-CAM"):
        compute_attention_rollout(model, random_clips(3, 32))
