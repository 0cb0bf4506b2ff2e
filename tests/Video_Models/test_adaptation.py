"""What learns in each mode, to the parameter; frozen weights do not move; LoRA's products merge into the network."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer
from test_models import build_tiny as build_any
from tiny_families import TINY
from tiny_transformers import MODULES, NUM_CLASSES, build_tiny, random_clips
from torch import nn
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from utils.tensor_files import compute_sha256
from Video_Models.adaptation import MODES, adapt, count_trainable, describe_trainable, merge_lora
from Video_Models.backbone import Backbone
from Video_Models.models import VideoClassifier, build_video_classifier

TRANSFORMERS = sorted(MODULES)


class OddBackbone(Backbone):
    """Convolutions of kinds that a product of peft's cannot stand beside, and one that it can."""

    def __init__(self) -> None:
        super().__init__(8)
        self.plain = nn.Conv3d(3, 8, 3, padding=1)
        self.grouped = nn.Conv3d(8, 8, 3, padding=1, groups=8)
        self.dilated = nn.Conv3d(8, 8, 3, padding=2, dilation=2)
        self.replicating = nn.Conv3d(8, 8, 3, padding=1, padding_mode="replicate")
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.plain, self.grouped, self.dilated, self.replicating]

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        tokens = self.replicating(self.dilated(self.grouped(self.plain(clip)))).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].mean(dim=1)


def odd_classifier() -> VideoClassifier:
    backbone = OddBackbone()
    return VideoClassifier(backbone, nn.Linear(8, NUM_CLASSES), 2)


def trainable_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_hash(model: nn.Module) -> str:
    """Over all that must not move: frozen parameters by name, and their values."""
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    return compute_sha256("", frozen)


def take_a_step(model: nn.Module, clips: torch.Tensor) -> None:
    """One step of an optimizer that is given everything, weight decay included."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    model(clips).square().sum().backward()
    optimizer.step()


# ---------------------------------------------------------------------------------------------------------------------
# What learns


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_each_mode_trains_what_it_says(family):
    head = {"head.1.weight", "head.1.bias"}
    all_names = trainable_names(build_tiny(family))
    assert trainable_names(adapt(build_tiny(family), "full")) == all_names
    assert trainable_names(adapt(build_tiny(family), "linear_probe")) == head
    last = trainable_names(adapt(build_tiny(family), "last_blocks", num_blocks=1))
    layers = {"videomae": "videomae.encoder.layer", "timesformer": "timesformer.encoder.layer", "vivit": "vivit.layers"}
    norm = {"videomae": "backbone.fc_norm"}.get(family, f"backbone.{family}.layernorm")
    expected = {name for name in all_names if name.startswith((f"backbone.{layers[family]}.1.", f"{norm}."))}
    assert last == expected | head
    both = trainable_names(adapt(build_tiny(family), "last_blocks", num_blocks=2))
    assert all_names - both == {name for name in all_names if name.startswith(f"backbone.{family}.embeddings.")}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_lora_stands_beside_query_and_value_alone(family):
    model = adapt(build_tiny(family), "lora", lora_rank=3)
    names = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    layer = {
        "videomae": "backbone.videomae.encoder.layer.{}.attention.attention.{}",
        "timesformer": "backbone.timesformer.encoder.layer.{}.{}.attention.qkv",
        "vivit": "backbone.vivit.layers.{}.attention.{}",
    }[family]
    parts = {
        "videomae": ("query", "value"),
        "timesformer": ("attention", "temporal_attention"),
        "vivit": ("q_proj", "v_proj"),
    }[family]
    assert names == {layer.format(block, part) for block in range(2) for part in parts}
    out = 48 if family == "timesformer" else 16
    trainable, total = count_trainable(model)
    head = 16 * NUM_CLASSES + NUM_CLASSES
    assert trainable == 4 * 3 * (16 + out) + head
    assert total == count_trainable(build_tiny(family))[1] + trainable - head


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["timesformer", "r3d_18"])
def test_frozen_weights_do_not_move_and_the_others_do(family, mode):
    model = adapt(build_any(family), mode, num_blocks=1, lora_rank=2)
    before, frozen = {name: p.detach().clone() for name, p in model.named_parameters()}, frozen_hash(model)
    num_frozen = sum(not p.requires_grad for p in model.parameters())
    assert (num_frozen == 0) == (mode == "full")
    take_a_step(model, random_clips(3, 32))
    assert frozen_hash(model) == frozen
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # Before the first step LoRA's B is 0, and A gets no gradient; weight decay moves A all the same.
    assert moved == trainable_names(model)


def test_the_line_for_the_log_is_the_count():
    model = adapt(build_tiny("vivit"), "linear_probe")
    trainable, total = count_trainable(model)
    assert trainable == 16 * NUM_CLASSES + NUM_CLASSES
    assert total == sum(parameter.numel() for parameter in model.parameters())
    assert describe_trainable(model) == f"51 of {total:,} parameters are trained ({51 / total:.2%})"


# ---------------------------------------------------------------------------------------------------------------------
# LoRA


@pytest.mark.parametrize(
    ("family", "options"), [*((family, {}) for family in sorted(TINY)), ("i3d", {"temporal_padding": "replicate"})]
)
def test_every_familys_products_learn_and_merge_into_the_same_logits(family, options):
    plain, model = (build_any(family, config=TINY[family] | options) for _ in range(2))
    names = plain.state_dict().keys()
    adapt(model, "lora", lora_rank=2)
    clips = random_clips(3, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(clips), plain.eval()(clips))  # B starts at 0
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    model(clips).square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert still == []
    with torch.no_grad():
        assert (model(clips) - plain(clips)).abs().max() > 1e-4
        # In float64: I3D's random logits are in the hundreds, and 1.5e-4 of them is float32's rounding.
        logits = model.double()(clips.double())
        merged = merge_lora(model)(clips.double())
        assert (merged - logits).abs().max() <= 1e-12 * max(1, logits.abs().max().item())
    assert merge_lora(model).state_dict().keys() == names
    assert not hasattr(model.backbone, "peft_config")


def test_a_network_is_built_again_with_its_products():
    options = {"mode": "lora", "lora_rank": 2, "lora_dropout": 0.1, "lora_targets": ["dense"]}
    model, again = (build_tiny("vivit", adaptation=options | {"lora_targets": ["fc1"]}) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    again.load_state_dict(model.state_dict())
    clips = random_clips()
    assert torch.equal(again(clips), model(clips))
    assert {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, LoraLayer)} == {"fc1"}
    with pytest.raises(
        ValueError, match=r"lora_targets: this network has no layer named dense .* known: fc1, fc2, k_proj"
    ):
        build_tiny("vivit", adaptation=options)


def test_layers_that_a_product_cannot_stand_beside_are_left_out():
    model = adapt(odd_classifier(), "lora", lora_rank=2)
    assert {n for n, m in model.named_modules() if isinstance(m, LoraLayer)} == {"backbone.plain"}
    with pytest.raises(ValueError, match="no layer named out_proj that LoRA can be added to; known: plain"):
        adapt(odd_classifier(), "lora", lora_targets=["out_proj"])
    swin = adapt(build_any("swin3d_t"), "lora", lora_rank=2)
    attentions = [module for module in swin.modules() if isinstance(module, ShiftedWindowAttention3d)]
    assert len(attentions) > 0
    assert not any(isinstance(layer, LoraLayer) for attention in attentions for layer in attention.modules())


def test_wrong_options_are_one_sentence():
    with pytest.raises(
        ValueError, match="unknown adaptation mode 'loar'; known: full, last_blocks, linear_probe, lora"
    ):
        adapt(build_tiny("vivit"), "loar")
    for num_blocks in (0, 3):
        with pytest.raises(ValueError, match=f"num_blocks is {num_blocks}, but this network has 2 blocks; use 1 to 2"):
            adapt(build_tiny("vivit"), "last_blocks", num_blocks=num_blocks)
    model = adapt(build_tiny("vivit"), "lora")
    with pytest.raises(ValueError, match="has been adapted with LoRA before; merge it first"):
        adapt(model, "lora")
    assert trainable_names(adapt(merge_lora(model), "full")) == trainable_names(build_tiny("vivit"))


@pytest.mark.exhaustive
def test_lora_on_timesformer_of_the_full_size(capsys):
    torch.manual_seed(0)
    model = build_video_classifier(
        400, family="timesformer", num_frames=8, image_size=224, adaptation={"mode": "lora", "lora_rank": 8}
    )
    trainable, total = count_trainable(model)
    print(describe_trainable(model))
    assert "(0.73%)" in capsys.readouterr().out
    assert trainable == 24 * 8 * (768 + 3 * 768) + 768 * 400 + 400
    assert total == 121_258_752 + trainable
    assert trainable / total < 0.02
    before = frozen_hash(model)
    clips = random_clips(8, 224, 1)
    take_a_step(model, clips)
    assert frozen_hash(model) == before
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.01)
        logits = model.eval()(clips)
        merged = merge_lora(model)(clips)
    assert (merged - logits).abs().max() <= 1e-5
