"""Weights that prove they are whole, the paper's files, and disks that are full."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from utils.artifacts import HISTORY, write_table
from utils.checkpoints import (
    ModelDescription,
    describe_run,
    describe_start,
    load_state,
    read_description,
    read_weights,
    verify_weights,
    write_weights,
)
from utils.errors import InputError, run_script
from utils.files import sha256_file
from utils.indices import ClassInfo
from utils.tensor_files import write_training_state

LARGE = {"weight": torch.zeros(300_000)}
DESCRIPTION = ModelDescription(
    type="baseline",
    options={"classifier_width": 8},
    classes=(ClassInfo(0, "zero", "c0"), ClassInfo(1, "ünø", "c1")),
    input={"kind": "image", "image_size": 32},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    train_input="original",
    protocol="matched",
    seed=0,
    selection_split="hold_out",
    epoch=1,
    metric={"name": "top1_fraction", "value": 0.5},
    start="checkpoint:0123456789abcdef",
    trained_on={"kind": "image", "index_sha256": "ab", "num_items": 9, "hold_out_sha256": None, "is_paired": True},
    selected_on={"split": "hold_out", "num_items": 2},
    protocol_values={"lr": 0.1, "augmentation": {"horizontal_flip": True}},
    update=40,
)
TENSORS = {
    "features.0.weight": torch.linspace(-1, 1, 54).reshape(2, 3, 3, 3),
    "features.1.num_batches_tracked": torch.tensor(7),
    "classifier.0.weight": torch.linspace(0, 1, 20).reshape(4, 5),
}


@pytest.fixture
def path(tmp_path) -> Path:
    write_weights(tmp_path / "a.safetensors", TENSORS, DESCRIPTION)
    return tmp_path / "a.safetensors"


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


# ---------------------------------------------------------------------------------------------------------------------
# Ours


def test_weights_and_description_come_back(path):
    tensors, described = read_weights(path)
    assert_same(tensors, TENSORS)
    assert described == read_description(path) == verify_weights(path) == DESCRIPTION
    assert described.trained_on["hold_out_sha256"] is None


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    tensors = {str(dtype): torch.arange(7).to(dtype) for dtype in (*floats, *integers)}
    tensors |= {
        "bool": torch.tensor([True, False, True]),
        "a number": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.rand(3, 4).T,
        "parameter": torch.nn.Parameter(torch.rand(3)),
    }
    write_weights(tmp_path / "a.safetensors", tensors, DESCRIPTION)
    assert_same(safetensors.torch.load_file(tmp_path / "a.safetensors"), tensors)
    assert_same(read_weights(tmp_path / "a.safetensors")[0], tensors)
    header_length = struct.unpack("<Q", (tmp_path / "a.safetensors").read_bytes()[:8])[0]
    assert header_length % 8 == 0, "the data are aligned"


def test_equal_weights_are_equal_files(path, tmp_path):
    write_weights(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())), DESCRIPTION)
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def flips(length: int, is_exhaustive: bool) -> list[int]:
    """Bits to flip: all, or 50 spread over the file and 50 over its header, where names and hashes are."""
    if is_exhaustive:
        return list(range(8 * length))
    return np.concatenate([np.linspace(0, 8 * end - 1, 50) for end in (length, length - 320)]).astype(int).tolist()


def test_every_flipped_bit_is_named(path, is_exhaustive):
    content = path.read_bytes()
    for bit in flips(len(content), is_exhaustive):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.safetensors: .*(restore it or train again|train again with this)"):
            verify_weights(path)


def test_a_flipped_weight_has_its_own_sentence(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert read_description(path) == DESCRIPTION, "the header is whole, and the tensors were not read"
    with pytest.raises(InputError, match=r"is damaged \(its SHA-256 differs\); restore it or train again"):
        read_weights(path)


def rewrite(path: Path, tensors: dict[str, torch.Tensor], **changes: str | None) -> None:
    """With other tensors or metadata, but the SHA-256 of before."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() | changes
    kept = {key: value for key, value in metadata.items() if value is not None}
    safetensors.torch.save_file(tensors, path, metadata=kept)


CHANGES: dict[str, Callable[[dict], dict]] = {
    "name": lambda tensors: {name.replace("features.0", "features.9"): tensor for name, tensor in tensors.items()},
    "dtype": lambda tensors: tensors | {"classifier.0.weight": tensors["classifier.0.weight"].view(torch.int32)},
    "shape": lambda tensors: tensors | {"classifier.0.weight": tensors["classifier.0.weight"].reshape(5, 4)},
    "bytes": lambda tensors: tensors | {"classifier.0.weight": -tensors["classifier.0.weight"]},
    "fewer": lambda tensors: {name: tensors[name] for name in list(tensors)[1:]},
    "more": lambda tensors: tensors | {"classifier.3.weight": torch.zeros(1)},
    "empty one more": lambda tensors: tensors | {"classifier.3.weight": torch.zeros(0)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_digest_covers_names_types_shapes_and_bytes(path, change):
    rewrite(path, TENSORS)
    assert_same(read_weights(path)[0], TENSORS)
    rewrite(path, change(TENSORS))
    with pytest.raises(InputError, match="is damaged"):
        read_weights(path)


def test_the_digest_covers_the_description(path):
    rewrite(path, TENSORS, description=replace(DESCRIPTION, protocol="paper").to_json())
    with pytest.raises(InputError, match="is damaged"):
        read_weights(path)


def test_weights_of_an_older_version_are_refused(path):
    rewrite(path, TENSORS, sha256=None)
    for read in (read_weights, read_description, verify_weights):
        with pytest.raises(InputError, match=r"has no SHA-256 .*; train again with this version"):
            read(path)


@pytest.mark.parametrize("key", ["start", "trained_on", "selected_on", "protocol_values", "update", "classes"])
def test_a_description_without_a_key_is_refused_by_its_name(path, key):
    content = json.loads(DESCRIPTION.to_json())
    del content[key]
    rewrite(path, TENSORS, description=json.dumps(content))
    with pytest.raises(InputError, match=f"its description cannot be read .*{key}.*; train again with this version"):
        read_description(path)


def test_other_peoples_safetensors_have_no_description(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    tensors, described = read_weights(tmp_path / "a.safetensors")
    assert_same(tensors, TENSORS)
    assert described is None and read_description(tmp_path / "a.safetensors") is None


# ---------------------------------------------------------------------------------------------------------------------
# What a run's weights say


def stub_settings(**changes) -> SimpleNamespace:
    values = {"mean": (0.1,) * 3, "std": (0.2,) * 3, "seed": 3, "weights": "imagenet"}
    return SimpleNamespace(**values | {"protocol_label": "custom", "protocol_values": {"lr": 0.1}} | changes)


def test_a_run_describes_itself():
    form = {"kind": "image", "image_size": 32}
    trained_on, selected_on = {"num_items": 9}, {"split": "hold_out", "num_items": 2}
    described = describe_run(
        stub_settings(),
        "baseline",
        {"dropout": 0.5},
        DESCRIPTION.classes,
        form,
        train_input="original",
        trained_on=trained_on,
        selected_on=selected_on,
    )
    assert asdict(described) == {
        **{"type": "baseline", "options": {"dropout": 0.5}, "input": form, "train_input": "original"},
        **{"classes": tuple(asdict(item) for item in DESCRIPTION.classes), "mean": (0.1,) * 3, "std": (0.2,) * 3},
        **{"protocol": "custom", "protocol_values": {"lr": 0.1}, "seed": 3, "start": "imagenet"},
        **{"trained_on": trained_on, "selected_on": selected_on, "selection_split": "hold_out"},
        **{"epoch": 0, "update": 0, "metric": {}},
    }
    assert ModelDescription.from_json(described.to_json()) == described


def test_a_start_names_its_file(path):
    assert [describe_start(weights) for weights in ("none", "imagenet")] == ["random", "imagenet"]
    assert describe_start(str(path)) == f"checkpoint:{sha256_file(path)[:16]}"


# ---------------------------------------------------------------------------------------------------------------------
# The paper's files


def paper_content(state_dict: dict[str, torch.Tensor], model: torch.nn.Module) -> dict:
    """As the published training code saves it."""
    head = list(model.classifier[6].parameters())  # the features' momenta would only cost time
    optimizer = torch.optim.SGD(head, lr=1e-3, momentum=0.9)
    for parameter in head:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    best = torch.tensor(61.5)
    return {"epoch": 7, "state_dict": state_dict, "best_acc": best, "optimizer": optimizer.state_dict()}


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    return {"2d": build_vgg11(2, classifier_width=2), "3d": build_vgg11_3d(2, classifier_width=2)}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_the_papers_checkpoint_loads_into_our_network(tmp_path, networks, kind, prefix):
    model = networks[kind]
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = "features." if kind == "2d" else "features3d."
    named = {prefix + name.replace("features.", features): tensor for name, tensor in own.items()}
    assert f"{prefix}{features}0.weight" in named and f"{prefix}classifier.6.bias" in named
    file = tmp_path / "model_best.pth.tar"
    torch.save(paper_content(named, model), file)
    tensors, described = read_weights(file)
    assert described is None and verify_weights(file) is None
    assert_same(tensors, own)
    load_state(model, tensors, file)
    assert_same(dict(model.state_dict()), own)


def test_the_papers_2d_names_are_torchvisions(networks):
    from torchvision.models import vgg11_bn

    with torch.device("meta"):
        assert networks["2d"].state_dict().keys() == vgg11_bn(num_classes=2).state_dict().keys()


class Payload:
    """An object whose unpickling would leave a file behind."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("kind", ["in the optimizer", "instead of the state dict", "bare pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model_best.pth.tar"
    content = {"epoch": 7, "state_dict": dict(TENSORS), "best_acc": 0.5, "optimizer": {}}
    if kind == "bare pickle":
        file.write_bytes(pickle.dumps(content | {"optimizer": Payload()}, protocol=2))
    else:
        torch.save(content | {"optimizer" if kind == "in the optimizer" else "state_dict": Payload()}, file)
    for read in (read_weights, verify_weights):
        with pytest.raises(
            InputError, match=r"model_best\.pth\.tar: (holds Python objects that could run|is truncated)"
        ):
            read(file)
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Full disks

ROW = dict.fromkeys(HISTORY.column_names, 1)
WRITERS: dict[str, Callable[[Path], None]] = {
    "state": lambda path: write_training_state(path, {"model": LARGE, "optimizer": {}, "epoch": 1}),
    "weights": lambda path: write_weights(path, LARGE, DESCRIPTION),
    "table": lambda path: write_table([ROW], path, HISTORY),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the disk that is always full")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path, capsys, name):
    path = tmp_path / "file"
    path.write_text("the one before")
    (tmp_path / "file.partial").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: WRITERS[name](path))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: no space left on the disk; free some and run")
    assert path.read_text() == "the one before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_sentence_is_for_full_disks_only(tmp_path):
    with pytest.raises(OSError, match="File too large") as error:
        run_script(lambda: (_ for _ in ()).throw(OSError(errno.EFBIG, "File too large")))
    assert error.value.errno == errno.EFBIG
