"""The three transformers: transformers' own outputs, published weights in every form, positions, and bad weights."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import description_of
from tiny_transformers import IMAGE_SIZE, MODULES, NUM_CLASSES, build_tiny, random_clips, randomise, tiny_config
from torch import nn
from transformers import PreTrainedConfig, VideoMAEForPreTraining

from utils.checkpoints import ModelDescription, write_weights
from utils.errors import InputError
from utils.indices import ClassInfo
from Video_Models.input_rules import FrameRule, SizeRule
from Video_Models.models import build_video_classifier
from Video_Models.positions import resample_positions, resample_times
from Video_Models.registry import FAMILIES as REGISTRY
from Video_Models.transformer_config import build_config, config_values, input_rules
from Video_Models.transformer_weights import published_config, published_normalisation, read_published

FAMILIES = sorted(MODULES)


def classifier_of_transformers(family: str, num_frames: int = 4, **values) -> nn.Module:
    """The library's own classifier with random weights, in eval mode."""
    architecture = MODULES[family].ARCHITECTURE
    config = architecture.config_class(
        **tiny_config(family, **values), num_frames=num_frames, image_size=IMAGE_SIZE, num_labels=NUM_CLASSES
    )
    torch.manual_seed(0)
    model = architecture.classifier_class(config)
    randomise(model)
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def published(request, tmp_path_factory) -> tuple[str, Path, nn.Module]:
    """A family, a folder as the hub has it, and the network in it."""
    model = classifier_of_transformers(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, folder, model


def build(family: str, weights, num_frames: int = 4, image_size: int = IMAGE_SIZE, **config) -> nn.Module:
    return (
        MODULES[family]
        .build_backbone(
            None if weights is None else str(weights), num_frames=num_frames, image_size=image_size, config=config
        )
        .eval()
    )


# ---------------------------------------------------------------------------------------------------------------------
# The network


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "file of the folder", "state dict"])
def test_logits_equal_those_of_transformers_with_the_same_weights(published, form, tmp_path):
    family, folder, model = published
    torch.save(model.state_dict(), tmp_path / "state.pt")
    weights = {"folder": folder, "file of the folder": folder / "model.safetensors"}.get(form, tmp_path / "state.pt")
    backbone = build(family, weights, **(tiny_config(family) if form == "state dict" else {}))
    clips = random_clips()
    expected = model(clips.transpose(1, 2)).logits
    assert torch.allclose(model.classifier(backbone(clips)), expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.1


@torch.no_grad()
def test_videomae_without_mean_pooling_reads_its_first_token(tmp_path):
    model = classifier_of_transformers("videomae", use_mean_pooling=False)
    model.save_pretrained(tmp_path)
    backbone = build("videomae", tmp_path)
    clips = random_clips()
    assert torch.allclose(model.classifier(backbone(clips)), model(clips.transpose(1, 2)).logits, rtol=0, atol=1e-6)
    assert backbone.pooling_weights().tolist() == [1] + [0] * 7


def test_names_in_the_state_dict_are_those_of_the_classifier(published):
    family, _, model = published
    names = {name for name in model.state_dict() if not name.startswith("classifier.")}
    assert build(family, None, **tiny_config(family)).state_dict().keys() == names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_frames", [3, 16])
@torch.no_grad()
def test_each_frame_matters_and_each_item_stands_alone(family, num_frames):
    model = build_tiny(family, num_frames)
    clips = random_clips(num_frames)
    logits = model(clips)
    assert logits.shape == (2, NUM_CLASSES)
    assert torch.allclose(model(clips[1:]), logits[1:], rtol=0, atol=1e-5)
    for frame in range(num_frames):
        changed = clips.clone()
        changed[:, :, frame] *= -1
        assert ((model(changed) - logits).abs().amax(dim=1) > 1e-5).all(), frame


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family):
    model = build_tiny(family, 3).train()
    model(random_clips(3)).square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []
    # A key's bias adds the same to all of a query's scores, which softmax takes away; rounding may leave exactly 0.
    assert [name for name in still if not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_training_uses_fused_attention_and_agrees_with_plain(family):
    backbone = build(family, None, **tiny_config(family))
    clips = random_clips()
    base = getattr(backbone, family)
    if family == "timesformer":
        kinds = {type(block.attention.attention).__name__ for block in backbone.blocks}
        assert kinds == {"FusedSelfAttention"}
    else:
        assert base.config._attn_implementation == "sdpa"
        fused = backbone(clips)
        base.set_attn_implementation("eager")
        assert torch.allclose(backbone(clips), fused, rtol=0, atol=1e-6)


@torch.no_grad()
def test_attention_equals_that_of_transformers(published):
    family, folder, model = published
    clips = random_clips()
    attentions = build(family, folder).compute_attentions(clips)
    if family != "timesformer":
        model.set_attn_implementation("eager")
    expected = model(clips.transpose(1, 2), output_attentions=True).attentions
    if family == "timesformer":  # of the two, it returns attention over space only, frames in the batch
        spatial = [attention.spatial.flatten(0, 1) for attention in attentions]
        assert [tuple(attention.temporal.shape) for attention in attentions] == [(2, 4, 4, 4)] * 2
        assert all(torch.allclose(a.temporal.sum(-1), torch.ones(2, 4, 4)) for a in attentions)
        attentions = spatial
    assert len(attentions) == len(expected) == 2
    for ours, theirs in zip(attentions, expected, strict=True):
        assert torch.allclose(ours, theirs.mean(dim=1), rtol=0, atol=1e-6)


@torch.no_grad()
def test_timesformer_attends_as_transformers_over_time_too():
    backbone = build("timesformer", None, **tiny_config("timesformer"))
    original = classifier_of_transformers("timesformer").timesformer.encoder.layer[0].temporal_attention.attention
    fused = type(backbone.blocks[0].attention.attention)(original)
    hidden = torch.randn(3, 5, 16)
    context, attention = fused(hidden, output_attentions=True)
    expected_context, expected_attention = original(hidden, output_attentions=True)
    assert torch.allclose(context, expected_context, rtol=0, atol=1e-6)
    assert torch.allclose(attention, expected_attention, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_lie_where_the_grid_says(family):
    backbone = build(family, None, image_size=24, **tiny_config(family))
    clip = random_clips(4, 24, 1)
    changed = clip.clone()
    changed[:, :, 2, 8:16, 16:24] += 1  # frame 2, row 1, column 2
    embed = getattr(backbone, family).embeddings
    options = {"bool_masked_pos": None} if family == "videomae" else {}
    both = [embed(clips.transpose(1, 2), **options) for clips in (clip, changed)]
    moved = backbone.to_grid((both[1] - both[0]).abs().sum(dim=-1))[0]
    assert moved.shape == backbone.grid
    assert moved.nonzero().tolist() == [[2 // backbone.tubelet_frames, 1, 2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_of_another_shape_is_refused(family):
    backbone = build(family, None, **tiny_config(family))
    for clips in (random_clips(8), random_clips(4, 24)):
        with pytest.raises(ValueError, match=re.escape("but this network was built for (3, 4, 16, 16)")):
            backbone(clips)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("family", "count"), [("videomae", 86_227_200), ("timesformer", 121_258_752), ("vivit", 88_646_400)]
)
def test_published_configurations_have_the_stated_number_of_parameters(family, count):
    with torch.device("meta"):
        backbone = MODULES[family].build_backbone()
    assert sum(parameter.numel() for parameter in backbone.parameters()) == count
    assert backbone.feature_width == 768


# ---------------------------------------------------------------------------------------------------------------------
# Rules and configurations


def rules_of(family: str, **values) -> tuple[FrameRule, SizeRule]:
    return input_rules(build_config(MODULES[family].ARCHITECTURE, values, num_frames=16, image_size=224))


def test_rules_follow_the_configuration():
    for family in FAMILIES:
        rules = REGISTRY[family].frame_rule, REGISTRY[family].size_rule
        assert rules_of(family) == rules
    assert rules_of("timesformer", patch_size=8) == (FrameRule(), SizeRule(multiple_of=8))
    assert rules_of("videomae", tubelet_size=4) == (FrameRule(multiple_of=4), SizeRule(multiple_of=16))
    assert rules_of("vivit", tubelet_size=[3, 6, 4]) == (FrameRule(multiple_of=3), SizeRule(multiple_of=12))
    assert build("videomae", None, num_frames=3, **tiny_config("videomae")).num_frames == 4
    with pytest.raises(ValueError, match="image_size is 20, but this network takes 8 pixels or more in multiples of 8"):
        build("timesformer", None, image_size=20, **tiny_config("timesformer"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_registry_knows_every_value_of_the_encoder(family):
    shared = {field.name for field in fields(PreTrainedConfig)} | {"num_frames", "image_size", "num_channels"}
    own = {field.name for field in fields(MODULES[family].ARCHITECTURE.config_class)} - shared
    other_parts = {name for name in own if name.startswith(("decoder_", "norm_pix_loss", "pooler_"))}
    assert sorted(REGISTRY[family].config_keys) == sorted(own - other_parts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden_size": 16}, "config: unknown key 'hiden_size'; this family knows: .*hidden_size"),
        ({"decoder_hidden_size": 8}, "config: unknown key 'decoder_hidden_size'"),
        ({"hidden_size": "wide"}, "config: .*hidden_size.* expected int, got str"),
        ({"hidden_size": 15}, "config: hidden_size 15 is no multiple of num_attention_heads 2; change one of them"),
        ({"hidden_act": "step"}, "config: unknown hidden_act 'step'; known: .*gelu"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_configuration_is_one_sentence(family, values, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(family, None, **tiny_config(family, **values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "values", "sides"),
    [
        ("videomae", {"tubelet_size": 0}, "0 x 8 x 8"),
        ("timesformer", {"patch_size": -8}, "1 x -8 x -8"),
        ("vivit", {"tubelet_size": [2, 8]}, "2 x 8"),
        ("vivit", {"tubelet_size": [2, 8, 0]}, "2 x 8 x 0"),
    ],
)
def test_a_token_of_nothing_is_one_sentence(family, values, sides):
    sentence = f"^config: a token covers {sides} frames and pixels, expected three positive numbers; correct tubelet_"
    with pytest.raises(ValueError, match=sentence):
        build(family, None, **tiny_config(family, **values))


def test_timesformer_has_divided_attention_only():
    with pytest.raises(ValueError, match="attention_type is 'space_only', but only divided_space_time is built here"):
        build("timesformer", None, **tiny_config("timesformer", attention_type="space_only"))


def test_the_published_architecture_is_known_before_and_after_building(published):
    family, folder, model = published
    values = published_config(folder, MODULES[family].ARCHITECTURE)
    assert values == config_values(model.config)
    assert json.loads(json.dumps(values)) == values
    assert values["hidden_size"] == 16
    again = build(family, None, **values)
    assert {name: t.shape for name, t in again.state_dict().items()} == {
        name: t.shape for name, t in build(family, folder).state_dict().items()
    }
    assert published_config(None, MODULES[family].ARCHITECTURE) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Published weights


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "renamed"),
    [
        (
            "videomae",
            [(r"attention\.query\.bias", "attention.q_bias"), (r"attention\.value\.bias", "attention.v_bias")],
        ),
        (
            "vivit",
            [
                (r"vivit\.layers\.", "vivit.encoder.layer."),
                (r"attention\.q_proj", "attention.attention.query"),
                (r"attention\.k_proj", "attention.attention.key"),
                (r"attention\.v_proj", "attention.attention.value"),
                (r"attention\.o_proj", "attention.output.dense"),
                (r"mlp\.fc1", "intermediate.dense"),
                (r"mlp\.fc2", "output.dense"),
            ],
        ),
    ],
)
def test_names_that_the_hub_has_from_older_versions_are_read(family, renamed, tmp_path):
    model = classifier_of_transformers(family)
    model.save_pretrained(tmp_path)
    tensors = model.state_dict()
    for pattern, name in renamed:
        assert any(re.search(pattern, key) for key in tensors), pattern
        tensors = {re.sub(pattern, name, key): tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    clips = random_clips()
    logits = model.classifier(build(family, tmp_path)(clips))
    assert torch.allclose(logits, model(clips.transpose(1, 2)).logits, rtol=0, atol=1e-6)


@torch.no_grad()
def test_pretrained_videomae_is_read_without_its_decoder_and_can_take_mean_pooling(tmp_path):
    config = MODULES["videomae"].ARCHITECTURE.config_class(
        **tiny_config("videomae", use_mean_pooling=False), num_frames=4, image_size=IMAGE_SIZE
    )
    model = VideoMAEForPreTraining(config)
    model.save_pretrained(tmp_path)
    clips = random_clips()
    tokens = model.videomae(clips.transpose(1, 2)).last_hidden_state
    assert torch.allclose(build("videomae", tmp_path)(clips), tokens[:, 0], rtol=0, atol=1e-6)
    pooled = build("videomae", tmp_path, use_mean_pooling=True)(clips)
    model.videomae.layernorm = None
    tokens = model.videomae(clips.transpose(1, 2)).last_hidden_state
    assert torch.allclose(pooled, nn.functional.layer_norm(tokens.mean(dim=1), (16,)), rtol=0, atol=1e-6)


@torch.no_grad()
def test_sizes_that_agree_leave_positions_and_others_are_resampled(published):
    family, folder, model = published
    same = build(family, folder)
    other = build(family, folder, num_frames=8, image_size=24)
    positions = [name for name in same.state_dict() if name.endswith(("position_embeddings", "time_embeddings"))]
    tensors = model.state_dict()
    for name, tensor in same.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
        if name not in positions:
            assert torch.equal(other.state_dict()[name], tensor), name
    expected = {"videomae": 0, "timesformer": 2, "vivit": 1}[family]
    assert len(positions) == expected
    shapes = {name.rpartition(".")[2]: tuple(other.state_dict()[name].shape) for name in positions}
    assert (
        shapes
        == {
            "videomae": {},
            "timesformer": {"position_embeddings": (1, 1 + 9, 16), "time_embeddings": (1, 8, 16)},
            "vivit": {"position_embeddings": (1, 1 + 4 * 9, 16)},
        }[family]
    )
    assert other(random_clips(8, 24)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_ours_brings_its_configuration_and_sizes(family, tmp_path):
    model = build_tiny(family, 3)
    path = tmp_path / "model.safetensors"
    write_weights(path, model.state_dict(), describe(family))
    again = build_video_classifier(NUM_CLASSES, path, family=family, num_frames=3, image_size=IMAGE_SIZE).eval()
    clips = random_clips(3)
    assert torch.equal(again(clips), model(clips))
    network, architecture = getattr(model.backbone, family), MODULES[family].ARCHITECTURE
    assert published_config(path, architecture) == config_values(network.config)
    assert config_values(getattr(again.backbone, family).config) == config_values(network.config)
    longer = build(family, path, num_frames=8, image_size=24)
    assert longer(random_clips(8, 24)).isfinite().all()
    other = FAMILIES[FAMILIES.index(family) - 1]
    with pytest.raises(InputError, match=f"holds a network of type '{family}', not {other}; correct it"):
        build(other, path)


def describe(family: str) -> ModelDescription:
    sizes = {"num_frames": 3, "image_size": IMAGE_SIZE}
    classes = [ClassInfo(label, f"class {label}") for label in range(NUM_CLASSES)]
    options = {"family": family, "config": tiny_config(family), **sizes}
    return description_of("video", options, classes, {"kind": "clip", **sizes})


def test_positions_are_linear_in_time_and_leave_cls():
    grid = torch.arange(2.0)[:, None, None] + torch.zeros(2, 3, 3)  # the frame's number at each place
    positions = torch.cat([torch.tensor([7.0]), grid.flatten()])[None, :, None]
    resampled = resample_positions(positions, (2, 3, 3), (4, 3, 3))
    assert resampled[0, 0, 0] == 7
    assert resampled[0, 1:, 0].unflatten(0, (4, 9))[:, 0].tolist() == [0, 0.25, 0.75, 1]
    assert (resampled[0, 1:, 0].unflatten(0, (4, 9)).std(dim=1) == 0).all()
    assert resample_positions(positions, (2, 3, 3), (2, 3, 3)) is positions
    times = torch.tensor([0.0, 1.0])[None, :, None]
    assert resample_times(times, 4)[0, :, 0].tolist() == [0, 0.25, 0.75, 1]


def test_positions_keep_rows_and_columns_apart():
    rows = torch.arange(6.0)[None, :, None].expand(2, 6, 6)  # (t, h, w), grows down each frame
    positions = rows.reshape(1, 72, 1)
    resampled = resample_positions(positions, (2, 6, 6), (2, 3, 3))[0, :, 0].unflatten(0, (2, 3, 3))
    assert torch.allclose(resampled[:, 1], torch.full((2, 3), 2.5))
    assert torch.allclose(resampled, resampled[:, :, :1].expand(2, 3, 3), atol=1e-5)
    assert (resampled.diff(dim=1) > 1.5).all()


def test_normalisation_of_the_folder(tmp_path):
    assert published_normalisation(tmp_path) is None
    path = tmp_path / "preprocessor_config.json"
    for content, expected in (
        ({"image_mean": [0.45] * 3, "image_std": [0.225] * 3}, ((0.45,) * 3, (0.225,) * 3)),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5, "offset": True}, ((0.5,) * 3, (0.5,) * 3)),
        ({"do_normalize": False}, ((0.0,) * 3, (1.0,) * 3)),
        ({"size": 224}, None),
    ):
        path.write_text(json.dumps(content))
        assert published_normalisation(tmp_path) == expected
    path.write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config.json: cannot be read as a preprocessor's settings"):
        published_normalisation(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Bad weights


def test_an_unreachable_hub_is_one_sentence():
    with pytest.raises(InputError, match="nobody/nothing cannot be had from the model hub") as caught:
        build("videomae", "nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="MCG-NJU/videomae-base-finetuned-kinetics cannot be had"):
        build("videomae", "pretrained")
    with pytest.raises(InputError, match=r"weights: \./nowhere is no file, no folder and no hub id"):
        build("videomae", "./nowhere")


def test_another_familys_folder_is_refused(published):
    family, folder, _ = published
    other = FAMILIES[FAMILIES.index(family) - 1]
    with pytest.raises(InputError, match=f"holds a network of type '{family}', not {other}; correct it"):
        build(other, folder)


def test_a_config_that_does_not_fit_the_weights_is_refused(published):
    family, folder, _ = published
    with pytest.raises(InputError, match="tensors or has them in another shape, the first is"):
        build(family, folder, hidden_size=32)
    with pytest.raises(InputError, match=r"lacks .* of this .* the first is .*2"):
        build(family, folder, num_hidden_layers=3)


def test_incomplete_folders_are_refused(published, tmp_path):
    family, folder, _ = published
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"is not a complete .* network"):
        build(family, copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"is not a complete .* network"):
        build(family, copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"has no readable config.json"):
        build(family, copy)


def test_a_state_dict_that_does_not_fit_is_refused(published, tmp_path):
    family, _, model = published
    tensors = model.state_dict()
    name = next(name for name in tensors if name.endswith("embeddings.patch_embeddings.projection.bias"))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "less.safetensors")
    message = rf"less\.safetensors: does not fit .*{re.escape(name)} is missing.*; check family, config"
    with pytest.raises(InputError, match=message):
        build(family, tmp_path / "less.safetensors", **tiny_config(family))
    save_file(tensors | {"x.lora_A.default.weight": tensors[name].clone()}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="holds LoRA's products, but does not say how much they count"):
        read_published(tmp_path / "lora.safetensors", MODULES[family].ARCHITECTURE)
