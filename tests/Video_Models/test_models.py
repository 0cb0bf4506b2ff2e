"""Every family: logits of any clip, all frames seen, all weights trained, kept in a file; and the published counts."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import description_of
from tiny_families import TINY
from torch import nn
from torchvision import models
from torchvision.models import video
from torchvision.models.resnet import BasicBlock, Bottleneck

from utils.checkpoints import ModelDescription, load_state, read_weights, write_weights
from utils.errors import InputError
from utils.indices import ClassInfo
from Video_Models.models import (
    BUILDERS,
    VideoClassifier,
    build_head,
    build_video_classifier,
    describe_weights,
    resolve_config,
)
from Video_Models.registry import FAMILIES
from Video_Models.torchvision_video import WindowAverage

NUM_CLASSES = 5
SIZE = 32
# The class token of MViT's last block is all that is read: its queries of patches reach nothing.
WITHOUT_GRADIENT = {"mvit_v2_s": r"backbone\.network\.blocks\.2\.attn\.(rel_pos_[hwt]|pool_q\.pool\.weight)"}
NUM_WITHOUT_GRADIENT = {"mvit_v2_s": 4}


def build_tiny(family: str, num_frames: int = 3, *, seed: int = 0, size: int = SIZE, **options) -> VideoClassifier:
    torch.manual_seed(seed)
    options = {"config": TINY[family]} | options
    return build_video_classifier(NUM_CLASSES, family=family, num_frames=num_frames, image_size=size, **options)


def random_clips(num_frames: int, num_clips: int = 2, size: int = SIZE) -> torch.Tensor:
    return torch.randn(num_clips, 3, num_frames, size, size, generator=torch.Generator().manual_seed(7))


def settle(model: VideoClassifier, num_frames: int) -> VideoClassifier:
    """Give BatchNorm the statistics of a batch: with none, a random network's signal fades from layer to layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, num_frames, SIZE, SIZE, generator=torch.Generator().manual_seed(3)))
    return model.eval()


def describe(family: str, num_classes: int = NUM_CLASSES, **options) -> ModelDescription:
    classes = [ClassInfo(label, f"class {label}") for label in range(num_classes)]
    sizes = {"num_frames": 3, "image_size": SIZE}
    options = {"family": family, "config": TINY[family], **sizes} | options
    return description_of("video", options, classes, {"kind": "clip", **sizes})


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build_published(family: str, num_classes: int = 400, **options) -> VideoClassifier:
    """Of the published size, without memory or time."""
    rules = FAMILIES[family]
    sizes = {"num_frames": rules.num_frames, "image_size": rules.image_size} | options
    with torch.device("meta"):
        return build_video_classifier(num_classes, family=family, **sizes)


# ---------------------------------------------------------------------------------------------------------------------
# Every family


def test_every_family_has_a_builder_and_a_tiny_form():
    assert set(BUILDERS) == set(FAMILIES) == set(TINY)


@pytest.mark.parametrize("num_frames", [3, 16])
@pytest.mark.parametrize("family", TINY)
def test_every_frame_matters_and_a_batch_is_its_clips(family, num_frames, is_exhaustive):
    model = settle(build_tiny(family, num_frames), num_frames)
    clips = random_clips(num_frames)
    with torch.no_grad():
        logits = model(clips)
        alone = torch.cat([model(clip[None]) for clip in clips])
        assert logits.shape == (2, NUM_CLASSES)
        assert logits.isfinite().all()
        assert (logits[0] - logits[1]).abs().max() > 1e-5
        assert (logits - alone).abs().max() <= 1e-4 * max(1.0, logits.abs().max().item())
        frames = range(0, num_frames, 1 if is_exhaustive or num_frames == 3 else 5)
        changed = clips[:1].repeat(len(frames) + 1, 1, 1, 1, 1)  # the last is as it was, in the same batch
        for row, frame in enumerate(frames):
            changed[row, :, frame] = clips[1, :, frame]
        *answers, unchanged = model(changed)
    differences = torch.stack([(answer - unchanged).abs().max() for answer in answers])
    assert (differences > 1e-5 * unchanged.abs().max()).all(), differences


@pytest.mark.parametrize("family", TINY)
def test_a_gradient_reaches_every_parameter(family):
    size = 64 if family == "s3d" else SIZE  # else its last BatchNorm sees one value an item
    model = build_tiny(family, size=size).train()
    logits = model(random_clips(3, size=size))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    without = [name for name, gradient in gradients.items() if not gradient.any()]
    assert all(re.fullmatch(WITHOUT_GRADIENT.get(family, ""), name) for name in without), without
    assert len(without) == NUM_WITHOUT_GRADIENT.get(family, 0)


@pytest.mark.parametrize("family", TINY)
def test_a_saved_network_is_the_same_after_loading_and_another_one_starts_from_it(family, tmp_path):
    path = tmp_path / "model.safetensors"
    model = settle(build_tiny(family), 3)
    write_weights(path, model.state_dict(), describe(family))
    state_dict, description = read_weights(path)
    again = build_video_classifier(len(description.classes), None, **description.options).eval()
    load_state(again, state_dict, path)
    start = build_tiny(family, seed=1, weights=path).eval()
    wider = build_video_classifier(7, path, family=family, num_frames=3, image_size=SIZE, config=TINY[family]).eval()
    with torch.no_grad():
        expected = model(random_clips(3))
        assert torch.equal(again(random_clips(3)), expected)
        assert torch.equal(start(random_clips(3)), expected)
        assert all(
            torch.equal(wider.backbone.state_dict()[name], tensor)
            for name, tensor in model.backbone.state_dict().items()
        )
    assert wider(random_clips(3)).shape == (2, 7)


@pytest.mark.parametrize("family", ["timesformer", "r3d_18"])
def test_a_network_trained_with_lora_is_a_start_with_its_products_merged(family, tmp_path):
    path, adaptation = tmp_path / "model.safetensors", {"mode": "lora", "lora_rank": 2, "lora_alpha": 6}
    model = settle(build_tiny(family, adaptation=adaptation), 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.1)
    write_weights(path, model.state_dict(), describe(family, adaptation=adaptation))
    start = build_tiny(family, seed=1, weights=path).eval()
    with torch.no_grad():
        expected, found = model(random_clips(3)), start(random_clips(3))
    assert start.state_dict().keys() == build_tiny(family).state_dict().keys()
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(
        InputError, match="holds LoRA's products, but does not say how much they count; give the model_"
    ):
        build_tiny(family, weights=tmp_path / "bare.safetensors")


@pytest.mark.parametrize("family", TINY)
def test_blocks_are_disjoint_and_end_at_the_head(family):
    backbone = build_tiny(family).backbone
    owned = [id(p) for block in [*backbone.blocks, *backbone.after_blocks] for p in block.parameters()]
    assert len(owned) == len(set(owned))
    assert len(backbone.blocks) >= 2
    assert all(any(True for _ in block.parameters()) for block in backbone.blocks)
    last = backbone.after_blocks[-1] if backbone.after_blocks else backbone.blocks[-1]
    last_parameter = list(backbone.parameters())[-1]
    assert id(last_parameter) in {id(parameter) for parameter in last.parameters()}


@pytest.mark.parametrize("family", TINY)
def test_several_tasks_have_their_logits_side_by_side(family):
    tasks = {"grainy": 2, "scene": 4}
    model = build_tiny(family, tasks=tasks, adapter_width=8, learn_task_weights=True)
    assert model(random_clips(3)).shape == (2, 6)
    assert model.head.log_variances.tolist() == [0.0, 0.0]


TASKS = {"dark": 2, "half": 3}


@pytest.mark.parametrize(
    ("source", "target", "is_taken"),
    [
        (TASKS, TASKS, True),
        (TASKS, {"blurry": 2, "grainy": 3}, False),  # as many tasks of as many classes
        (TASKS, {"half": 3, "dark": 2}, False),
        ({"a": 2, "b": 2}, {"b": 2, "a": 2}, False),
        (TASKS, TASKS | {"half": 4}, False),
        (TASKS, None, False),
        (None, TASKS, False),
        (None, None, True),
    ],
)
def test_a_head_is_taken_from_a_checkpoint_of_the_same_tasks_alone(source, target, is_taken, tmp_path):
    model = build_tiny("r3d_18", tasks=source)
    write_weights(tmp_path / "a.safetensors", model.state_dict(), describe("r3d_18", tasks=source))
    start = build_tiny("r3d_18", seed=1, tasks=target, weights=tmp_path / "a.safetensors")
    assert torch.equal(start.backbone.network.stem[0].weight, model.backbone.network.stem[0].weight)
    found, theirs = start.head.state_dict(), model.head.state_dict()
    weights = [name for name, tensor in theirs.items() if tensor.dim() == 2]  # biases and norms start alike
    same = [name for name in weights if name in found and torch.equal(found[name], theirs[name])]
    assert same == (weights if is_taken else [])


def test_a_head_of_several_tasks_is_not_taken_from_a_file_that_names_none(tmp_path):
    model = build_tiny("r3d_18", tasks=TASKS)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    start = build_tiny("r3d_18", seed=1, tasks=TASKS, weights=tmp_path / "a.pth")
    assert not torch.equal(start.head.classifiers[0].weight, model.head.classifiers[0].weight)


@pytest.mark.parametrize("family", TINY)
def test_repeated_frames_are_the_rules(family):
    model = build_tiny(family)
    numbers = torch.arange(3.0)[None, None, :, None, None].expand(1, 3, 3, 1, 1)
    seen = model.repeat_frames(numbers)[0, 0, :, 0, 0].tolist()
    expected = {"videomae": 4, "vivit": 4, "mvit_v2_s": 4, "swin3d_t": 4, "s3d": 8}.get(family, 3)
    assert seen == [index * 3 // expected for index in range(expected)]
    assert set(seen) == {0.0, 1.0, 2.0}
    assert "frame_index" not in model.state_dict()


def test_another_number_of_frames_than_it_was_built_for_is_refused():
    with pytest.raises(ValueError, match="built for clips of 3 frames, not 4"):
        build_tiny("r3d_18")(random_clips(4))


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be built


def test_an_unknown_family_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown family 'c2d'; known: c3d, i3d, mvit_v2_s, .*vivit$"):
        build_video_classifier(2, family="c2d", num_frames=3, image_size=32)


@pytest.mark.parametrize(
    ("family", "size", "fit"),
    [("i3d", 14, 15), ("s3d", 16, 17), ("mvit_v2_s", 28, 32), ("mvit_v2_s", 34, 36), ("videomae", 20, 32)],
)
def test_a_size_it_cannot_take_is_refused_and_the_next_one_is_taken(family, size, fit):
    with pytest.raises(ValueError, match=rf"^image_size is {size}, but this network takes \d+ pixels .*use {fit}$"):
        build_tiny(family, size=size)
    with torch.no_grad():
        assert build_tiny(family, size=fit).eval()(random_clips(3, 1, fit)).isfinite().all()


@pytest.mark.parametrize(
    ("family", "config", "problem"),
    [
        ("s3d", {"depth": 3}, "unknown key 'depth'; this family knows: batch_norm_momentum"),
        ("swin3d_t", {"depth": [1]}, "unknown key 'depth'; this family knows: depths, embed_dim, num_heads, "),
        ("c3d", {"layers": [1]}, "unknown key 'layers'; this family knows: dropout, width_multiplier"),
        ("videomae", {"layers": 1}, "unknown key 'layers'; this family knows: .*hidden_size"),
        ("i3d", {"width_multiplier": 0.3}, "width_multiplier is 0.3, expected a multiple of 0.125"),
        ("i3d", {"temporal_kernel": 2}, "temporal_kernel must be odd, not 2"),
        ("r3d_18", {"layers": 18}, r"config: {'layers': 18} does not make a network of family r3d_18"),
        ("mvit_v2_s", {"depths": [1, 1]}, "config: depths has 2 stages and num_heads 4; give as many"),
        ("swin3d_t", {"embed_dim": 64}, "config: num_heads: 3 heads of stage 0 do not divide its width 64 "),
        (
            "mvit_v2_s",
            {"num_heads": [1, 2, 5, 8]},
            "config: num_heads: 5 heads of stage 2 do not divide its width 384 ",
        ),
    ],
)
def test_a_configuration_that_makes_no_network_is_one_sentence(family, config, problem):
    with pytest.raises(ValueError, match=problem):
        build_tiny(family, config=config)


# ---------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("family", ["i3d", "resnet50_3d", "resnet18", "r3d_18", "mvit_v2_s", "swin3d_t", "s3d"])
def test_published_weights_out_of_reach_say_where_to_put_the_file(family, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = FAMILIES[family].pretrained
    problem = rf"^weights: pretrained \({name}\) cannot be fetched \(.*download https://.*\.pth .*save it as {tmp_path}"
    with pytest.raises(InputError, match=problem):
        build_tiny(family, weights="pretrained")


def test_weights_that_there_are_none_of_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="none are published for c3d; give a file"):
        build_tiny("c3d", weights="pretrained")
    with pytest.raises(InputError, match="'owner/name' is no file, and r3d_18 is not on the model hub"):
        build_tiny("r3d_18", weights="owner/name")
    write_weights(tmp_path / "a.safetensors", build_tiny("r3d_18").state_dict(), describe("r3d_18"))
    with pytest.raises(InputError, match="holds a network of type 'r3d_18', not s3d"):
        build_tiny("s3d", weights=tmp_path / "a.safetensors")


@pytest.mark.parametrize("family", ["r3d_18", "r2plus1d_18", "mvit_v2_s", "swin3d_t", "s3d"])
def test_it_is_torchvisions_network_of_the_published_size(family):
    weights = models.get_weight(FAMILIES[family].pretrained)
    model = build_published(family, len(weights.meta["categories"]))
    assert count_parameters(model) == weights.meta["num_params"]
    with torch.device("meta"):
        theirs = getattr(video, family)().state_dict()
    head = ("fc.", "head.", "classifier.")
    expected = {name: tensor.shape for name, tensor in theirs.items() if not name.startswith(head)}
    assert {name: tensor.shape for name, tensor in model.backbone.network.state_dict().items()} == expected


@pytest.mark.parametrize("family", [name for name, rules in FAMILIES.items() if not rules.is_on_hub])
def test_normalisation_is_that_of_the_published_weights(family):
    rules = FAMILIES[family]
    if family == "i3d":  # see test_a_static_clip_gives_googlenets_features
        assert (rules.mean, rules.std) == ((0.5,) * 3, (0.5,) * 3)
    elif rules.pretrained:
        transforms = models.get_weight(rules.pretrained).transforms()
        assert (list(rules.mean), list(rules.std)) == (transforms.mean, transforms.std)


@pytest.mark.parametrize("family", ["r3d_18", "mvit_v2_s", "swin3d_t", "s3d"])
def test_a_state_dict_in_torchvisions_names_is_loaded_without_its_head(family, tmp_path):
    theirs = build_tiny(family).backbone.network.eval()
    head = {"r3d_18": "fc", "s3d": "classifier"}.get(family, "head")
    counters = [name for name in theirs.state_dict() if name.endswith("num_batches_tracked")]
    state_dict = theirs.state_dict() | {f"{head}.1.weight": torch.zeros(400, 8)}
    torch.save({name: tensor for name, tensor in state_dict.items() if name not in counters}, tmp_path / "a.pth")
    ours = build_tiny(family, seed=1, weights=tmp_path / "a.pth").eval()
    clips = ours.repeat_frames(random_clips(3))
    with torch.no_grad():
        assert torch.equal(ours.backbone(clips), theirs(clips))
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b\.pth: does not fit this "):
        build_tiny(family, weights=tmp_path / "b.pth")


def test_relative_positions_are_interpolated_to_the_clip(tmp_path):
    source = build_tiny("mvit_v2_s", 16, size=64).backbone.network.state_dict()
    torch.save(source, tmp_path / "a.pth")
    same = build_tiny("mvit_v2_s", 16, size=64, seed=1, weights=tmp_path / "a.pth").backbone.network.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in source.items())
    shorter = build_tiny("mvit_v2_s", 5, size=64, seed=1, weights=tmp_path / "a.pth").backbone.network.state_dict()
    name = "blocks.0.attn.rel_pos_t"
    assert len(source[name]) == 15  # 8 tokens in time: distances -7 .. 7
    # 3 tokens: entry i lies at 15 / 5 * (i + 0.5) - 0.5 = 1, 4, 7, 10, 13 of the 15.
    assert torch.allclose(shorter[name], source[name][[1, 4, 7, 10, 13]], atol=1e-7)
    assert torch.equal(shorter["blocks.0.attn.qkv.weight"], source["blocks.0.attn.qkv.weight"])


def test_what_a_run_starts_from(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    (tmp_path / "config.json").write_bytes(b"{}")
    assert describe_weights("c3d", None) == "random"
    assert describe_weights("r3d_18", "pretrained") == "published:R3D_18_Weights.KINETICS400_V1"
    assert describe_weights("vivit", "owner/name") == "published:owner/name"
    assert describe_weights("c3d", tmp_path / "a.pth") == "checkpoint:e3b0c44298fc1c14"
    assert re.fullmatch("folder:[0-9a-f]{16}", describe_weights("vivit", tmp_path))
    before = describe_weights("vivit", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert describe_weights("vivit", tmp_path) != before


def test_a_folders_architecture_is_found_again_without_it(tmp_path):
    from transformers import VivitConfig, VivitForVideoClassification

    config = {**TINY["vivit"], "tubelet_size": [1, 16, 16]}
    VivitForVideoClassification(VivitConfig(**config, num_frames=3, image_size=SIZE)).save_pretrained(tmp_path)
    resolved = resolve_config("vivit", tmp_path, {"hidden_dropout_prob": 0.1})
    assert resolved == {**config, "hidden_dropout_prob": 0.1}
    ours = build_tiny("vivit", weights=tmp_path, config={})
    again = build_tiny("vivit", config=resolved)
    assert [tensor.shape for tensor in again.state_dict().values()] == [t.shape for t in ours.state_dict().values()]
    assert resolve_config("r3d_18", "pretrained", TINY["r3d_18"]) == TINY["r3d_18"]
    assert resolve_config("vivit", None) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Published architectures


def test_i3d_has_the_published_count():
    model = build_published("i3d")
    assert count_parameters(model.backbone) == 12_287_264
    assert count_parameters(model) == 12_697_264 == 12_287_264 + 1024 * 400 + 400


@pytest.fixture(scope="module")
def googlenet() -> nn.Module:
    """With statistics that a test would miss if they were dropped."""
    torch.manual_seed(0)
    network = models.googlenet(weights=None, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return network.eval()


@pytest.mark.parametrize("num_frames", [3, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_a_static_clip_gives_googlenets_features(googlenet, num_frames, tmp_path):
    """Also with torchvision's own way to normalise: ImageNet's, which `transform_input` turns into -1..1."""
    torch.save(googlenet.state_dict(), tmp_path / "googlenet.pth")
    model = build_video_classifier(
        2, tmp_path / "googlenet.pth", family="i3d", num_frames=num_frames, image_size=64
    ).eval()
    images = torch.rand(2, 3, 64, 64)
    imagenet_mean, imagenet_std, mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (FAMILIES["resnet18"].mean, FAMILIES["resnet18"].std, FAMILIES["i3d"].mean, FAMILIES["i3d"].std)
    )
    features = []
    googlenet.fc.register_forward_pre_hook(lambda _layer, inputs: features.append(inputs[0]))
    googlenet.transform_input = True
    with torch.no_grad():
        googlenet((images - imagenet_mean) / imagenet_std)
        clip = ((images - mean) / std)[:, :, None].repeat(1, 1, num_frames, 1, 1)  # (B, C, H, W) -> (B, C, T, H, W)
        found = model.backbone(clip)
    expected = features[0]
    weight, image_weight = model.backbone.network.conv1.conv.weight, googlenet.conv1.conv.weight
    assert torch.allclose(weight, image_weight[:, :, None] / 7), "every frame's share is the same"
    assert expected.abs().max() > 1e-3, "features near zero would prove nothing"
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def test_weights_of_clips_are_not_inflated_again(tmp_path):
    source = build_tiny("i3d").backbone.network
    torch.save(source.state_dict(), tmp_path / "i3d.pth")
    again = build_tiny("i3d", seed=1, weights=tmp_path / "i3d.pth").backbone.network
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize(("family", "block"), [("resnet18_3d", BasicBlock), ("resnet50_3d", Bottleneck)])
def test_inflated_resnets_keep_a_static_clips_features(family, block, tmp_path):
    torch.manual_seed(0)
    network = models.ResNet(block, TINY[family]["layers"]).eval()
    torch.save(network.state_dict(), tmp_path / "resnet.pth")
    model = build_tiny(family, weights=tmp_path / "resnet.pth").eval()
    network.fc = nn.Identity()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network(images)
        found = model.backbone(images[:, :, None].repeat(1, 1, 3, 1, 1))  # (B, C, H, W) -> (B, C, T, H, W)
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    seen_in_space = [
        conv.weight for conv in network.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size > (1, 1)
    ]
    added = sum(2 * weight.numel() for weight in seen_in_space)  # kernels of 3 frames in place of 1
    assert count_parameters(model.backbone) == count_parameters(network) + added


def c3d_count(num_classes: int) -> int:
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(27 * before * after + after for before, after in pairwise(widths))
    fully_connected = (512 * 1 * 4 * 4 + 1) * 4096 + (4096 + 1) * 4096
    return convolutions + fully_connected + (4096 + 1) * num_classes


@pytest.mark.parametrize(("num_classes", "count"), [(101, 78_409_573), (487, 79_991_015)])
def test_c3d_has_the_published_count(num_classes, count):
    assert count_parameters(build_published("c3d", num_classes)) == c3d_count(num_classes) == count


def test_c3d_is_the_published_network_at_the_published_size():
    backbone = build_tiny("c3d").backbone
    maps = []
    for name, layer in backbone.features.named_children():
        if name.startswith("pool"):
            layer.register_forward_hook(lambda _layer, _inputs, output: maps.append(tuple(output.shape[2:])))
    with torch.no_grad():
        backbone(torch.zeros(1, 3, 16, 112, 112))
        published = [(16, 56, 56), (8, 28, 28), (4, 14, 14), (2, 7, 7), (1, 4, 4)]
        assert maps == published
        maps.clear()
        backbone(torch.zeros(1, 3, 3, 33, 33))
    assert [shape[0] for shape in maps] == [3, 2, 1, 1, 1]


def test_resnet18_has_torchvisions_count_and_two_fully_connected_layers():
    model = build_published("resnet18", 10)
    assert count_parameters(model.backbone) == 11_689_512 - (512 + 1) * 1000
    assert count_parameters(model.head) == (512 + 1) * 512 + (512 + 1) * 10
    assert [type(layer) for layer in build_head(512, 10, hidden_width=512)] == [
        nn.Linear,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
    ]


def test_resnet18_fuses_the_features_of_its_frames_by_their_mean():
    backbone = build_tiny("resnet18").backbone.eval()
    clips = random_clips(3)
    with torch.no_grad():
        by_frame = torch.stack([backbone.network(clips[:, :, frame]) for frame in range(3)])
        assert (backbone(clips) - by_frame.mean(dim=0)).abs().max() <= 1e-5 * by_frame.abs().max()


@pytest.mark.parametrize("shape", [(2, 7, 7), (3, 8, 9), (1, 7, 7), (2, 2, 2), (1, 1, 1)])
def test_s3ds_average_is_torchs_and_shrinks_with_the_map(shape):
    features = torch.randn(2, 4, *shape)
    window = [min(size, length) for size, length in zip((2, 7, 7), shape, strict=True)]
    expected = nn.AvgPool3d(window, stride=1)(features)
    assert (WindowAverage((2, 7, 7))(features) - expected).abs().max() <= 1e-6


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("family", "num_frames", "size"), [("s3d", 16, 224), ("mvit_v2_s", 16, 224), ("swin3d_t", 6, 96)]
)
def test_full_size_logits_are_torchvisions(family, num_frames, size, tmp_path: Path):
    torch.manual_seed(0)
    theirs = getattr(video, family)().eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours = build_video_classifier(400, tmp_path / "a.pth", family=family, num_frames=num_frames, image_size=size).eval()
    last = [layer for layer in theirs.modules() if isinstance(layer, nn.Linear | nn.Conv3d)][-1]
    ours.head[-1].load_state_dict({"weight": last.weight.flatten(1), "bias": last.bias})
    clip = random_clips(num_frames, 1, size)
    with torch.no_grad():
        expected = theirs(clip)
        assert (ours(clip) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
