"""Clip classifiers through the shared trainer and evaluation: they learn, resume, and say what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import KILLED, exit_at_call, run_in_child
from digit_clips import IMAGE_SIZE, LEARNING, NUM_CLASSES, make_clips, train, video_settings

import utils.files
from utils.artifacts import PREDICTIONS, UPDATES, read_table
from utils.checkpoints import read_weights
from utils.config import build_settings
from utils.errors import InputError
from Video_Models.settings import VideoSettings
from Video_Models.training import build_network, builder_options, run_training

QUICK = ("videomae", "resnet18", "i3d")
BEST = "model_best.safetensors"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert run_in_child(make_clips, folder) == 0
    return folder / "clips"


def score(clips: Path, checkpoint: Path, output_dir: Path) -> None:
    from Model_Evaluation.evaluation import run_evaluation
    from Model_Evaluation.settings import EvaluationSettings

    torch.set_num_threads(1)
    models = [
        {"name": kind, "type": "video", "checkpoint": str(checkpoint), "input": kind} for kind in ("clip", "shuffled")
    ]
    raw = {"models": models, "data": {"root": str(clips), "workers": 1}, "output_dir": str(output_dir)}
    raw |= {"latency": {"warmup": 1, "repetitions": 2}, "pictures": {"num_items": 0}, "device": "cpu"}
    run_evaluation(build_settings(EvaluationSettings, raw, "test"))


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f in QUICK else pytest.mark.exhaustive) for f in sorted(LEARNING)]
)
def test_a_family_learns_and_its_scores_are_in_the_tables(clips, tmp_path, family):
    assert run_in_child(train, clips, tmp_path / "run", family, {}) == 0
    assert run_in_child(score, clips, tmp_path / "run" / BEST, tmp_path / "results") == 0
    rows = read_table(tmp_path / "results" / "predictions.csv", PREDICTIONS)
    plain = rows[rows["run_id"] == "clip"]
    assert len(plain) == 20 * NUM_CLASSES
    # 30 of 60 by chance alone has p = 0.004, with three classes.
    assert (plain["label"] == plain["predicted_label"]).sum() >= 30
    assert set(rows["model"]) == {family}
    assert set(rows["arm"]) == {f"{family}_svd"}
    assert rows.groupby("run_id")["test_input"].first().to_dict() == {"clip": "clip:svd", "shuffled": "shuffled:svd"}
    assert set(rows["num_frames"]) == {3}


def test_the_checkpoint_makes_the_same_network_again(clips, tmp_path):
    keys = {"updates": 2, "warmup_updates": 0, "adaptation": {"mode": "lora", "lora_rank": 2}}
    assert run_in_child(train, clips, tmp_path / "run", "timesformer", keys) == 0
    state_dict, described = read_weights(tmp_path / "run" / BEST)
    assert described.type == "video"
    assert described.options["family"] == "timesformer"
    assert described.input["sampling"] == {
        "method": "uniform",
        "num_frames": 3,
        "frame_interval": 1,
        "num_clips": 1,
    }
    assert (described.mean, described.std) == ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
    assert described.start == "random"
    assert run_in_child(_rebuild, tmp_path / "run" / BEST) == 0
    assert sum("lora" in name for name in state_dict) > 0


def _rebuild(checkpoint: Path) -> None:
    from Model_Evaluation.models import load_model

    model, _ = load_model("video", checkpoint)
    state_dict, _ = read_weights(checkpoint)
    own = model.state_dict()
    assert own.keys() == state_dict.keys()
    assert all(torch.equal(own[name], state_dict[name]) for name in own)


def _train_and_die(clips: Path, output_dir: Path, family: str, keys: dict, call: int) -> None:
    exit_at_call(utils.files.os, "fsync", call)
    train(clips, output_dir, family, keys)


KILLABLE = {
    "updates": 8,
    "frame_sampling": {"method": "random", "num_clips": 2},
    "checkpoint_every_s": 0.001,
    "adaptation": {"mode": "last_blocks"},
    "dropout": 0.3,
}


@pytest.fixture(scope="module")
def whole_run(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_in_child(train, clips, folder, "resnet18", KILLABLE) == 0
    return folder


@pytest.mark.parametrize("call", [3, 12, 20])
def test_a_killed_run_goes_on_as_if_nothing_had_been(clips, whole_run, tmp_path, call):
    killed = tmp_path / "killed"
    assert run_in_child(_train_and_die, clips, killed, "resnet18", KILLABLE, call) == KILLED
    assert run_in_child(train, clips, killed, "resnet18", KILLABLE) == 0
    tables = [read_table(folder / "updates.csv", UPDATES) for folder in (whole_run, killed)]
    assert tables[0].equals(tables[1])
    weights = [read_weights(folder / BEST)[0] for folder in (whole_run, killed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_frozen_weights_do_not_move(clips, tmp_path):
    start = tmp_path / "start.pth"
    assert run_in_child(_write_start, start) == 0
    keys = {"updates": 6, "warmup_updates": 0, "adaptation": {"mode": "linear_probe"}, "weights": str(start)}
    assert run_in_child(train, clips, tmp_path / "run", "r3d_18", keys) == 0
    begun, trained = torch.load(start), read_weights(tmp_path / "run" / BEST)[0]
    moved = {name for name in trained if name not in begun or not torch.equal(begun[name], trained[name])}
    assert moved == {"head.1.weight", "head.1.bias"}, "BatchNorm's statistics are frozen, too"


def _write_start(path: Path) -> None:
    from Video_Models.models import build_video_classifier

    options = {"num_frames": 3, "image_size": IMAGE_SIZE, "config": LEARNING["r3d_18"]["config"]}
    state_dict = build_video_classifier(NUM_CLASSES, family="r3d_18", **options).backbone.state_dict()
    torch.save({f"backbone.{name}": tensor for name, tensor in state_dict.items()}, path)


def test_settings_take_what_the_family_has_published(tmp_path):
    raw = {"data_root": str(tmp_path), "family": "r3d_18"}
    settings = build_settings(VideoSettings, raw, "test")
    assert (settings.num_frames, settings.image_size) == (16, 112)
    assert settings.mean == (0.43216, 0.394666, 0.37645)
    given = build_settings(VideoSettings, raw | {"time_dim": 3, "image_size": 64, "mean": [0.5, 0.5, 0.5]}, "test")
    assert (given.num_frames, given.image_size, given.mean) == (3, 64, (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"family": "videomea"}, "unknown family 'videomea'; known: c3d, i3d,"),
        ({"family": "c3d"}, "weights: none are published for c3d; set weights: none, or name a file"),
        ({"weights": "nowhere.pth"}, "'nowhere.pth' is neither pretrained, none, a file, a folder, nor a hub's"),
        (
            {"weights": "facebook/x", "family": "i3d"},
            "weights: 'facebook/x' is no file, and i3d is not on the model hub",
        ),
        ({"family": ["videomae"]}, "family: input should be text (got ['videomae'])"),
        (
            {"image_size": 100},
            "image_size is 100, but this network takes 16 pixels or more in multiples of 16; use 112",
        ),
        ({"family": "r3d_18", "config": {"layer": [1]}}, "unknown key 'layer'; this family knows: layers"),
        (
            {"frame_sampling": {"method": "uniform", "num_clips": 2}},
            "num_clips: uniform sampling has one clip a video; drop the key, or set method: dense",
        ),
        (
            {"frame_sampling": {"method": "random", "frame_interval": 2}},
            "frame_interval: belongs to method: dense; drop the key, or set the method",
        ),
        (
            {"frame_sampling": {"method": "random", "num_clips": 1}},
            "num_clips: one candidate a segment leaves nothing to draw; raise it, or set method: uniform",
        ),
        (
            {"adaptation": {"mode": "last_blocks", "lora_rank": 4}},
            "adaptation: lora_rank: belongs to mode: lora; drop the key, or set the mode",
        ),
        ({"num_frames": 100000}, "num_frames: input should be less than or equal to 1024 (got 100000)"),
        (
            {"augmentation": {"rand_augment_magnitude": 20}},
            "augmentation: rand_augment_magnitude: belongs to rand_augment_ops, which is 0; set it, e.g. to 2",
        ),
        ({"cache_dir": __file__}, "test_train_video.py is a file; name a folder, which is made where there is none"),
        (
            {"protocol": "paper", "family": "resnet18"},
            "protocol: paper is of the networks baseline, inflated, not of video; set another",
        ),
        (
            {"multi_task": {"weights": {"a": 1}, "learn_weights": True}},
            "weights: are given, but learn_weights learns them; drop one of the two keys",
        ),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(tmp_path, keys, message):
    with pytest.raises(InputError) as caught:
        build_settings(VideoSettings, {"data_root": str(tmp_path)} | keys, "video.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_stands_for_its_one_file_of_weights_or_a_runs_best(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()

    def weights(family: str) -> str:
        raw = {"data_root": str(tmp_path), "family": family, "weights": str(folder)}
        return build_settings(VideoSettings, raw, "test").weights

    with pytest.raises(
        InputError, match=r"weights: .*weights holds 0 files of weights \(\.safetensors, .*name the file"
    ):
        weights("i3d")
    (folder / "googlenet.pth").touch()
    (folder / "README.md").touch()
    assert weights("i3d") == str(folder / "googlenet.pth")
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match="holds 2 files of weights"):
        weights("i3d")
    (folder / "config.json").touch()
    assert weights("vivit") == str(folder), "as save_pretrained writes it"
    (folder / BEST).touch()
    assert weights("i3d") == weights("vivit") == str(folder / BEST)


def test_the_number_of_trained_parameters_is_logged(tmp_path, caplog):
    settings = video_settings(tmp_path, tmp_path / "run", "videomae", adaptation={"mode": "linear_probe"})
    options = builder_options(settings, None)
    with caplog.at_level("INFO"):
        network = build_network(settings, NUM_CLASSES, options)
    assert "weights: none leaves all but these random" in caplog.messages[-1]
    # 64 features to 3 classes
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 64 * 3 + 3
    assert caplog.messages[-2].startswith("videomae: 195 of 91,779 parameters")


def test_settings_of_a_run_are_those_of_the_protocol(clips, tmp_path):
    settings = video_settings(clips, tmp_path, "videomae", protocol="matched", updates=4710, warmup_updates=200)
    assert settings.protocol_label == "custom", "the rate and the optimizer are not the protocol's"
    keys = {"protocol": "matched", "weights": "none", "data_root": str(clips), "num_frames": 3, "image_size": 32}
    assert build_settings(VideoSettings, keys, "test").protocol_label == "matched"


@pytest.mark.parametrize("method", ["random", "dense"])
def test_by_default_there_is_something_to_draw(tmp_path, method):
    raw = {"data_root": str(tmp_path), "weights": "none", "num_frames": 4, "frame_sampling": {"method": method}}
    stored = build_settings(VideoSettings, raw, "test").clip_sampling.stored_frames(100)
    assert len({tuple(clip) for clip in stored.tolist()}) == 5


@pytest.mark.parametrize("weights", ["owner/model-v1.5", "owner/model"])
def test_a_hub_id_may_have_a_dot(tmp_path, weights):
    assert build_settings(VideoSettings, {"data_root": str(tmp_path), "weights": weights}, "test").weights == weights


def test_the_size_of_other_weights_is_their_own(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    raw = {"data_root": str(tmp_path), "weights": str(tmp_path / "weights.safetensors"), "image_size": 36}
    assert build_settings(VideoSettings, raw, "test").image_size == 36


def test_tasks_are_weighed_only_where_there_are_some(clips, tmp_path):
    with pytest.raises(InputError, match=r"^multi_task: .*train.csv has labels of one task only; drop the section$"):
        run_training(video_settings(clips, tmp_path / "run", "resnet18", multi_task={"learn_weights": True}))
