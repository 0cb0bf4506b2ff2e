"""One file of values for all networks: who departs from it in one key may not call himself by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from conftest import PROJECT

from Baseline_VGG.settings import BaselineSettings
from Inflated_3D_VGG.settings import InflatedSettings
from utils.config import Settings, build_settings, read_settings
from utils.errors import InputError
from utils.history import Plan, Position
from utils.protocols import KNOWN
from utils.settings import TrainingSettings

NETWORKS = {"baseline": BaselineSettings, "inflated": InflatedSettings}
FREE = {
    "paper": set(),
    "matched": {"weights", "image_size", "classifier_width", "dropout", "precision", "num_frames", "train_input"}
    | {"mix_probability"},
}


def settings_of(network: str, tmp_path: Path, **values: Any) -> TrainingSettings:
    """Settings of a stage, with folders that exist."""
    places = {"data_root": str(tmp_path)} | ({"clips_root": str(tmp_path)} if network == "baseline" else {})
    return build_settings(NETWORKS[network], places | values, "config.yaml")


def another(annotation: Any, value: Any) -> Any:
    """A value of the same key that differs."""
    if isinstance(value, bool):
        return not value
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice != value)
    if isinstance(value, float):
        return value / 2 or 1e-4
    if isinstance(value, int):
        return value + 1
    if isinstance(value, tuple):
        return [number / 2 for number in value]
    return {None: 1, "imagenet": "none"}[value]


# Where a hold-out lies makes no result; a magnitude without operations is refused.
NOT_ALONE = ("file", "unlisted", "rand_augment_magnitude")


def departures(network: str, protocol: str) -> list[tuple[str, dict[str, Any]]]:
    """Every key that makes the result, each with one other value: (key, what to set)."""
    settings_class = NETWORKS[network]
    values = build_settings(settings_class, {"data_root": ".", "protocol": protocol}, "x", check_paths=False)
    found = []
    for key, field in settings_class.model_fields.items():
        value = getattr(values, key)
        if key in settings_class.NOT_PROTOCOL:
            continue
        if isinstance(value, Settings):
            fields = {name: part for name, part in type(value).model_fields.items() if name not in NOT_ALONE}
            given = {name: another(part.annotation, getattr(value, name)) for name, part in fields.items()}
            found += [(f"{key}.{name}", {key: {name: other}}) for name, other in given.items()]
        else:
            found.append((key, {key: another(field.annotation, value)}))
    return found


CASES = [(network, protocol) for network in NETWORKS for protocol in KNOWN]
DEPARTURES = [
    pytest.param(network, protocol, key, change, id=f"{network}-{protocol}-{key}")
    for network, protocol in CASES
    for key, change in departures(network, protocol)
]


@pytest.mark.parametrize(("network", "protocol"), CASES)
def test_a_run_as_its_protocol_says_bears_its_name(tmp_path, network, protocol):
    assert settings_of(network, tmp_path, protocol=protocol).protocol_label == protocol


@pytest.mark.parametrize(("network", "protocol", "key", "change"), DEPARTURES)
def test_a_run_that_departs_in_one_key_is_custom_unless_the_key_is_free(tmp_path, network, protocol, key, change):
    expected = protocol if key in FREE[protocol] else "custom"
    assert settings_of(network, tmp_path, protocol=protocol, **change).protocol_label == expected


def test_the_departures_are_of_all_keys():
    keys = {param.values[2] for param in DEPARTURES if param.values[0] == "inflated"}
    assert {"lr", "batch_size", "init", "augmentation.mixup_alpha", "hold_out.seed", "mean", "updates"} <= keys
    assert len(keys) > 40


@pytest.mark.parametrize(("network", "protocol"), CASES)
def test_where_and_how_fast_a_run_computes_is_no_departure(tmp_path, network, protocol):
    elsewhere = {"output_dir": "other/run", "seed": 5, "workers": 0, "device": "cpu", "cache": False}
    elsewhere |= {
        "tensorboard": True,
        "checkpoint_every_s": None,
        "hold_out": {"file": "other.csv"},
        "compile": "default",
    }
    assert settings_of(network, tmp_path, protocol=protocol, **elsewhere).protocol_label == protocol


@pytest.mark.parametrize("network", NETWORKS)
def test_without_a_protocol_a_run_is_custom(tmp_path, network):
    assert settings_of(network, tmp_path).protocol_label == "custom"
    assert settings_of(network, tmp_path).protocol == "none"


def test_paper_is_as_published(tmp_path):
    flat, deep = (settings_of(network, tmp_path, protocol="paper") for network in NETWORKS)
    assert (flat.weights, deep.weights) == ("imagenet", "imagenet")
    assert (flat.batch_size, deep.batch_size) == (32, 8)
    assert (flat.augmentation.horizontal_flip, deep.augmentation.horizontal_flip) == (True, False)
    assert (flat.selection, deep.selection) == ("val", "val")
    assert deep.copy_bn_stats is False
    assert (flat.epochs, flat.updates, deep.epochs, deep.updates) == (30, None, 30, None)
    assert (flat.lr, flat.schedule, flat.lr_step, flat.lr_gamma) == (1e-3, "step", 10, 0.1)


def test_matched_gives_both_networks_the_same_training(tmp_path):
    flat, deep = (settings_of(network, tmp_path, protocol="matched") for network in NETWORKS)
    shared = flat.protocol_values.keys() & deep.protocol_values.keys()
    assert {key: flat.protocol_values[key] for key in shared} == {key: deep.protocol_values[key] for key in shared}
    assert flat.selection == "hold_out"
    assert deep.copy_bn_stats is True
    # Epochs of 157 and 471 updates: three clips an image make longer epochs, not a longer training.
    plans = [Plan(flat, 157), Plan(deep, 471)]
    assert {plan.total_updates for plan in plans} == {4710}
    assert [plan.num_epochs for plan in plans] == [30, 10]
    start = Position(torch.zeros(4), epoch=1, update=1000)
    assert len({plan.learning_rate(start) for plan in plans}) == 1


@pytest.mark.parametrize(
    ("given", "epochs", "updates"),
    [
        ({}, 30, 4710),
        ({"epochs": 2}, 2, None),
        ({"updates": 9, "warmup_updates": 1}, 30, 9),
        ({"epochs": 2, "updates": 4710}, 2, 4710),
    ],
)
def test_who_asks_for_epochs_gets_them(tmp_path, given, epochs, updates):
    found = settings_of("baseline", tmp_path, protocol="matched", **given)
    assert (found.epochs, found.updates) == (epochs, updates)
    assert found.protocol_label == ("custom" if given else "matched")


@pytest.mark.parametrize("overrides", [[], ["epochs=2"], ["augmentation.brightness=0.2"], ["weights=none"]])
@pytest.mark.parametrize(("network", "protocol"), CASES)
def test_the_printed_settings_read_back_are_the_same_run(tmp_path, capsys, network, protocol, overrides):
    config = tmp_path / "config.yaml"
    config.write_text(f"data_root: {tmp_path}\nprotocol: {protocol}\n")
    first = read_settings(NETWORKS[network], None, config, overrides)
    with pytest.raises(SystemExit):
        read_settings(NETWORKS[network], None, config, [*overrides, "--print-config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert yaml.safe_load(printed.read_text())["batch_size"] == first.batch_size, (
        "the protocol's values are spelled out"
    )
    again = read_settings(NETWORKS[network], None, printed, [])
    assert again == first
    assert again.protocol_label == first.protocol_label


# ---------------------------------------------------------------------------------------------------------------------
# Files of one's own, and mistakes


def own(tmp_path: Path, text: str, name: str = "ours.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_a_protocol_of_ones_own_is_named_by_its_file(tmp_path):
    values = "values: {lr: 0.5, epochs: 3, augmentation: {brightness: 0.2}}\n"
    path = own(tmp_path, values + "networks: {inflated: {init: average}}\nfree: [seed, dropout]\n")
    flat, deep = (settings_of(network, tmp_path, protocol=path) for network in NETWORKS)
    assert (flat.lr, deep.epochs, flat.augmentation.brightness, deep.init) == (0.5, 3, 0.2, "average")
    assert flat.protocol_label == deep.protocol_label == "ours"
    assert settings_of("baseline", tmp_path, protocol=path, dropout=0.1).protocol_label == "ours"
    assert settings_of("baseline", tmp_path, protocol=path, lr=0.4).protocol_label == "custom"
    mixed = settings_of("baseline", tmp_path, protocol=path, augmentation={"contrast": 0.1})
    assert (mixed.augmentation.brightness, mixed.augmentation.contrast) == (0.2, 0.1), "sections are merged key by key"


@pytest.mark.parametrize("name", ["paper", "matched", "none", "custom"])
def test_no_other_file_bears_the_name_of_ours(tmp_path, name):
    path = own(tmp_path, "values: {lr: 0.5}\n", f"{name}.yaml")
    with pytest.raises(InputError, match=f"protocol: .*{name}.yaml: tables would call it '{name}', .*rename the file"):
        settings_of("baseline", tmp_path, protocol=path)


@pytest.mark.parametrize("name", ["papr", "missing/ours.yaml", ""])
def test_an_unknown_protocol_lists_the_known_ones(tmp_path, name):
    with pytest.raises(InputError, match=f"protocol: '{name}' is neither none, matched, paper nor a file"):
        settings_of("baseline", tmp_path, protocol=name)


def test_a_protocol_that_is_no_text_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml: protocol: input should be text"):
        settings_of("baseline", tmp_path, protocol=["paper"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("values: {lrr: 1}\n", "unknown key 'lrr' for inflated; correct or remove it"),
        ("values: {mix_probability: 1}\n", "unknown key 'mix_probability' for inflated"),
        ("values: {}\nnetworks: {inflated: {train_input: mix}}\n", "unknown key 'train_input' for inflated"),
        ("value: {lr: 1}\n", "unknown key 'value', did you mean 'values'"),
        ("values: {lr: fast}\n", r"lr: input should be a valid number \(got 'fast'\)"),
        ("values: {lr: 0}\n", "lr: input should be greater than 0"),
        ("values: {}\nnetworks: {inflated: {init: middle}}\n", "init: input should be 'center' or 'average'"),
        ("values: {augmentation: {flip: true}}\n", "unknown key 'augmentation.flip'"),
        ("values: {hold_out: {fraction: 2}}\n", "hold_out.fraction: input should be less than 1"),
        ("values: {epochs: 1.5, momentum: 1}\n", "has 2 problems:\n  - epochs: .*\n  - momentum: "),
        ("values: [lr]\n", "values: input should be a section"),
        ("", "'values' is missing"),
    ],
)
def test_a_mistake_in_a_protocol_names_the_protocol_and_not_the_config(tmp_path, text, said):
    path = own(tmp_path, text)
    with pytest.raises(InputError, match=said) as caught:
        settings_of("inflated", tmp_path, protocol=path)
    assert str(caught.value).startswith(path)
    assert "config.yaml" not in str(caught.value)


def test_a_mistake_in_the_config_still_names_the_config(tmp_path):
    with pytest.raises(InputError, match=r"^config\.yaml: lr: input should be a valid number"):
        settings_of("inflated", tmp_path, protocol="matched", lr="fast")


@pytest.mark.parametrize(
    ("network", "config"),
    [("baseline", "Baseline_VGG/train_config.yaml"), ("inflated", "Inflated_3D_VGG/train3d_video.yaml")],
)
def test_the_stages_own_configs_are_the_papers(network, config, capsys):
    with pytest.raises(SystemExit):
        read_settings(NETWORKS[network], None, PROJECT / config, ["--print-config"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["protocol"] == "paper"
    assert build_settings(NETWORKS[network], values, "printed", check_paths=False).protocol_label == "paper"
