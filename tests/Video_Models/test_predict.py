"""Predictions: what the evaluation says of the same clips, a row for what cannot be read, and files that are whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import KILLED, PROJECT, exit_at_call, run_in_child
from PIL import Image
from samples import description_of
from torch import nn
from videos import truncate, write_video

import Video_Models.overlay
import Video_Models.predictor
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.derived import MEASURED
from Model_Evaluation.settings import EvaluationSettings
from utils.artifacts import read_table
from utils.checkpoints import ModelDescription, read_weights, write_weights
from utils.clips import probe_video, read_clip, read_frame_times
from utils.config import build_settings
from utils.errors import InputError, run_script
from utils.frame_sampling import FrameSampling
from utils.indices import ClassInfo
from Video_Models import predict
from Video_Models.loading import load_video_classifier
from Video_Models.models import build_video_classifier
from Video_Models.overlay import draw_text, render_text, write_overlay
from Video_Models.prediction_output import caption, format_predictions
from Video_Models.predictor import CHECKPOINT_VARIABLE, Prediction, Predictor, predict_video

SIZE, T, NUM_THERE = 32, 3, 9
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CLASSES = tuple(ClassInfo(label, name, f"c{label}") for label, name in enumerate(("run", "jump", "rest, then run")))
TASKS = {"blurry": ("no", "yes"), "mood": ("calm", "glad", "tense")}
SAMPLINGS = {
    "uniform": FrameSampling("uniform", T),
    "random": FrameSampling("random", T, num_clips=2),
    "dense": FrameSampling("dense", T, frame_interval=2, num_clips=3),
}
VIDEOS = ("a.avi", "b.mp4", "c.mkv", "d.webm", "e.mov")


def describe(model_type: str, options: dict, form: dict) -> ModelDescription:
    known = {"mean": MEAN, "std": STD, "train_input": "clip:video"}
    return description_of(model_type, options, CLASSES, {"kind": "clip", "image_size": SIZE} | form, **known)


def excited(model: nn.Module, num_frames: int) -> nn.Module:
    """Give BatchNorm statistics and the last layers a scale, so that each video has its own answer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0
        if isinstance(module, nn.Linear) and module.in_features >= 512:  # VGG's begin so small that all signal fades
            nn.init.normal_(module.weight, 0, 0.1)
    clips = torch.randn(4, 3, num_frames, SIZE, SIZE)
    with torch.no_grad():
        model.train()(clips)
        spread = model.eval()(clips).std(dim=0).mean()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features in (2, 3):
                module.weight.div_(spread)
    return model


def write_video_checkpoint(path: Path, sampling: FrameSampling, tasks: dict | None = None) -> Path:
    torch.manual_seed(0)
    options = {"family": "r3d_18", "config": {"layers": [1, 1, 1, 1]}, "num_frames": T, "image_size": SIZE}
    form = {"num_frames": T, "sampling": vars(sampling)}
    if tasks:
        options["tasks"] = {name: len(classes) for name, classes in tasks.items()}
        form["tasks"] = {
            task: [{"label": label, "class_name": name, "wnid": name} for label, name in enumerate(names)]
            for task, names in tasks.items()
        }
    model = excited(build_video_classifier(len(CLASSES), **options), T)
    write_weights(path, model.state_dict(), describe("video", options, form))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Videos of one length in five containers, their index with two tasks, and a checkpoint of each kind."""
    root = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(VIDEOS):
        write_video(root / "val" / name, NUM_THERE, seed, size=40)
    (root / "val.csv").write_text("video_path,label\n" + "".join(f"{v},{i % 3}\n" for i, v in enumerate(VIDEOS)))
    rows = [
        f"{video},{task},{i % len(names)},{names[i % len(names)]}\n"
        for i, video in enumerate(VIDEOS)
        for task, names in TASKS.items()
    ]
    (root / "val.tasks.csv").write_text("video_path,task,label,class_name\n" + "".join(rows))
    for name, sampling in SAMPLINGS.items():
        write_video_checkpoint(root / f"{name}.safetensors", sampling)
    write_video_checkpoint(root / "tasks.safetensors", SAMPLINGS["uniform"], TASKS)
    torch.manual_seed(0)
    options = {"classifier_width": 32}
    inflated = excited(build_vgg11_3d(len(CLASSES), **options), NUM_THERE)
    described = describe("inflated", options, {"num_frames": NUM_THERE})
    write_weights(root / "inflated.safetensors", inflated.state_dict(), described)
    return root


@pytest.fixture
def videos(world) -> list[Path]:
    return [world / "val" / name for name in VIDEOS]


@pytest.fixture(scope="module")
def uniform(world) -> Predictor:
    return Predictor(world / "uniform.safetensors", device="cpu")


@pytest.fixture
def run(monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """The script in this process: exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            run_script(predict.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return call


# ---------------------------------------------------------------------------------------------------------------------
# What the network says


def evaluate(world: Path, output_dir: Path, kinds: dict[str, str], task: str | None) -> None:
    from Model_Evaluation.evaluation import measure_models

    torch.set_num_threads(1)
    raw = {
        "models": [
            {"name": name, "type": model_type, "checkpoint": str(world / f"{name}.safetensors"), "input": "clip"}
            for name, model_type in kinds.items()
        ],
        "data": {"root": str(world), "workers": 0, "task": task},
        "latency": {"batch_sizes": [1], "warmup": 1, "repetitions": 1},
        "device": "cpu",
        "output_dir": str(output_dir),
    }
    measure_models(build_settings(EvaluationSettings, raw, "test"))


def evaluated(output_dir: Path, name: str) -> list[list[float]]:
    """Of one run: float (videos, classes)."""
    table = read_table(output_dir / "probabilities.csv", MEASURED["probabilities"])
    rows = table[table["run_id"] == name].sort_values(["item_id", "label"])
    assert rows["item_id"].unique().tolist() == sorted(VIDEOS)
    return rows["probability"].to_numpy().reshape(len(VIDEOS), -1).tolist()


def test_predictions_are_the_evaluations_probabilities(world, videos, tmp_path):
    kinds = dict.fromkeys(SAMPLINGS, "video") | {"inflated": "inflated"}
    assert run_in_child(evaluate, world, tmp_path, kinds, None) == 0
    answers = {}
    for name in kinds:
        predictions = Predictor(world / f"{name}.safetensors", device="cpu").predict(videos)
        answers[name] = [list(one.probabilities) for one in predictions]
        np.testing.assert_allclose(answers[name], evaluated(tmp_path, name), rtol=0, atol=1e-6)
        assert [one.path for one in predictions] == videos
        assert {one.num_frames for one in predictions} == {NUM_THERE}
        assert {(one.task, one.status, one.reason) for one in predictions} == {(None, "ok", "")}
        for one, probabilities in zip(predictions, answers[name], strict=True):
            assert one.label == int(np.argmax(probabilities))
            assert (one.class_name, one.confidence) == (CLASSES[one.label].class_name, max(probabilities))
            assert sum(probabilities) == pytest.approx(1)
        spread = np.ptp(answers[name], axis=0).max()
        assert spread > 0.01, f"{name}: all videos have one answer, which would prove nothing"
    others = [np.array(answers[name]) for name in SAMPLINGS]
    assert min(np.abs(others[i] - others[i - 1]).max() for i in range(3)) > 1e-3, "the samplings see other frames"


def test_every_task_is_answered_as_the_evaluation_does(world, videos, tmp_path):
    predictor = Predictor(world / "tasks.safetensors", device="cpu")
    assert predictor.tasks == ("blurry", "mood")
    predictions = predictor.predict(videos)
    assert [(one.path, one.task) for one in predictions] == [(video, task) for video in videos for task in TASKS]
    for number, (task, names) in enumerate(TASKS.items()):
        assert run_in_child(evaluate, world, tmp_path / task, {"tasks": "video"}, task) == 0
        own = predictions[number::2]
        found = [list(one.probabilities) for one in own]
        np.testing.assert_allclose(found, evaluated(tmp_path / task, "tasks"), rtol=0, atol=1e-6)
        assert all(one.class_names == names and one.class_name == names[one.label] for one in own)


@pytest.mark.parametrize(("name", "num_frames"), [("real_clip_a.avi", 164), ("real_clip_b.mp4", 280)])
def test_real_videos_are_seen_as_a_full_decode_has_them(real_data, world, name, num_frames):
    path = real_data / "videos" / name
    frames = read_clip(path)
    assert len(frames) == num_frames
    network = load_video_classifier(world / "dense.safetensors")[0]
    windows = []
    for numbers in SAMPLINGS["dense"].stored_frames(num_frames):
        height, width = frames.shape[1:3]
        left, top = (width - min(height, width)) / 2, (height - min(height, width)) / 2
        box = (left, top, width - left, height - top)
        small = [
            np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
            for one in frames[numbers]
        ]
        clip = (np.stack(small) / 255 - MEAN) / STD
        windows.append(torch.from_numpy(clip).float().permute(3, 0, 1, 2))  # (T, H, W, C) -> (C, T, H, W)
    with torch.no_grad():
        expected = network(torch.stack(windows)).mean(dim=0).double().softmax(dim=0)
    (prediction,) = Predictor(world / "dense.safetensors", device="cpu").predict([path])
    np.testing.assert_allclose(list(prediction.probabilities), expected.numpy(), rtol=0, atol=1e-5)
    assert prediction.num_frames == num_frames


def test_the_batch_changes_nothing(world, videos, uniform):
    together = uniform.predict(videos)
    for batch_size in (1, 2):
        apart = Predictor(world / "uniform.safetensors", device="cpu", batch_size=batch_size).predict(videos[::-1])
        for one, other in zip(together, apart[::-1], strict=True):
            assert (one.path, one.label) == (other.path, other.label)
            assert list(one.probabilities) == pytest.approx(list(other.probabilities), abs=1e-6)


def spoil(folder: Path) -> dict[Path, str]:
    """Files that are no whole videos, and what is said of each."""
    whole = write_video(folder / "cut.mp4", 30, size=64)
    (folder / "text.avi").write_text("this is no video\n")
    (folder / "empty.webm").touch()
    sealed = write_video(folder / "header.mkv", 4)
    sealed.write_bytes(sealed.read_bytes()[:20])
    return {
        truncate(whole, 0.6): "truncated",
        folder / "text.avi": "unreadable",
        folder / "empty.webm": "unreadable",
        sealed: "",
        folder / "gone.mp4": "unreadable",
    }


def test_what_cannot_be_read_is_a_row_and_harms_no_other(tmp_path, videos, uniform):
    reasons = spoil(tmp_path)
    alone = uniform.predict(videos)
    mixed = [path for pair in zip(reasons, videos, strict=True) for path in pair]
    predictions = uniform.predict(mixed)
    assert [one.path for one in predictions] == mixed
    for one, expected in zip(predictions[1::2], alone, strict=True):
        assert (one.status, one.label) == ("ok", expected.label)
        assert list(one.probabilities) == pytest.approx(list(expected.probabilities), abs=1e-6)
    for one in predictions[::2]:
        assert one == Prediction(one.path, None, "failed", one.reason)
        assert one.reason and one.reason.startswith(reasons[one.path]) and "\n" not in one.reason


def test_a_video_that_may_not_be_read_is_a_row(tmp_path, uniform, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Video_Models.predictor, "probe_video", refuse)
    assert uniform.predict([tmp_path / "a.mp4"])[0].reason == "Permission denied"


def test_a_failed_video_has_a_row_for_each_task(world, tmp_path):
    (tmp_path / "text.avi").write_text("no video")
    rows = Predictor(world / "tasks.safetensors", device="cpu").predict([tmp_path / "text.avi"])
    assert [(one.task, one.status, one.label) for one in rows] == [("blurry", "failed", None), ("mood", "failed", None)]


def test_a_network_of_whole_clips_refuses_other_lengths(world, tmp_path):
    video = write_video(tmp_path / "short.mp4", NUM_THERE - 1)
    (prediction,) = Predictor(world / "inflated.safetensors", device="cpu").predict([video])
    assert (prediction.status, prediction.num_frames) == ("failed", NUM_THERE - 1)
    assert prediction.reason == "has 8 frames, this network takes clips of 9"


def test_classes_of_one_name_are_told_apart(world, tmp_path, videos):
    state_dict, described = read_weights(world / "uniform.safetensors")
    cases = {
        ("crane", "crane", "hen"): ("crane (c0)", "crane (c1)", "hen"),
        ("", "", ""): (" (c0)", " (c1)", " (c2)"),
        ("crane", "crane", "crane (c0)"): ("crane (0)", "crane (c1)", "crane (c0)"),
    }
    for names, expected in cases.items():
        classes = tuple(ClassInfo(label, name, f"c{label}") for label, name in enumerate(names))
        write_weights(tmp_path / "w.safetensors", state_dict, replace(described, classes=classes))
        (prediction,) = Predictor(tmp_path / "w.safetensors", device="cpu").predict(videos[:1])
        assert prediction.class_names == expected
        assert prediction.class_name == expected[prediction.label]


def test_a_label_in_the_output_is_the_class_s_own(world, tmp_path, videos):
    """A class may be called as another, and another as what tells the two apart."""
    state_dict, described = read_weights(world / "uniform.safetensors")
    classes = tuple(ClassInfo(label, name, "") for label, name in enumerate(("a", "a", "a (0)")))
    write_weights(tmp_path / "w.safetensors", state_dict, replace(described, classes=classes))
    (prediction,) = Predictor(tmp_path / "w.safetensors", device="cpu").predict(videos[:1])
    (expected,) = Predictor(world / "uniform.safetensors", device="cpu").predict(videos[:1])
    assert prediction.probabilities == expected.probabilities and len(prediction.probabilities) == 3
    rows = [line.split(",") for line in format_predictions([prediction], "csv", 3).splitlines()[1:]]
    written = {int(row[4]): float(row[6]) for row in rows}
    assert written == pytest.approx(dict(enumerate(expected.probabilities)), rel=1e-5), "six digits"
    found = json.loads(format_predictions([prediction], "json", None))[0]["probabilities"]
    assert found == dict(zip(("a (#0)", "a (1)", "a (0)"), expected.probabilities, strict=True))


def test_a_video_on_its_side_is_seen_upright(world, tmp_path, videos, uniform):
    """The same picture, stored upright and on its side with a matrix that says so, has one answer."""
    frames = read_clip(videos[0])
    for name, stored, degrees in (("upright", frames, 0), ("side", np.rot90(frames, -1, axes=(1, 2)), 90)):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264rgb", rate=10, options={"crf": "0"})
            stream.height, stream.width, stream.pix_fmt = *stored.shape[1:3], "rgb24"
            stream.set_display_rotation(degrees)
            for frame in stored:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
    upright, side = uniform.predict([tmp_path / "upright.mp4", tmp_path / "side.mp4"])
    assert side.probabilities == pytest.approx(upright.probabilities, abs=1e-6)
    assert upright.probabilities == pytest.approx(uniform.predict(videos[:1])[0].probabilities, abs=1e-6)
    write_overlay(tmp_path / "side.mp4", tmp_path / "o.mp4", ["run"])
    shown = read_clip(tmp_path / "o.mp4")[:, 20:]
    assert np.abs(shown.astype(int) - frames[:, 20:]).mean() < 6, "the overlay, too, and it is turned once only"


def test_logits_that_are_not_finite_are_refused(world, tmp_path, videos):
    state_dict, described = read_weights(world / "uniform.safetensors")
    name = list(state_dict)[-1]
    state_dict[name] = torch.full_like(state_dict[name], torch.nan)
    write_weights(tmp_path / "nan.safetensors", state_dict, described)
    with pytest.raises(InputError, match=r"nan\.safetensors: gives logits that are not finite"):
        Predictor(tmp_path / "nan.safetensors", device="cpu").predict(videos)


# ---------------------------------------------------------------------------------------------------------------------
# One video, as a function


def test_predict_video_gives_label_and_confidence(world, videos, uniform, monkeypatch):
    expected = uniform.predict(videos[:1])[0]
    label, confidence = predict_video(str(videos[0]), world / "uniform.safetensors")
    assert (type(label), label) == (int, expected.label)
    assert confidence == pytest.approx(expected.confidence, abs=1e-6)
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(world / "uniform.safetensors"))
    assert predict.predict_video(videos[0]) == (label, confidence)


def test_predict_video_loads_a_checkpoint_once_and_again_when_it_has_changed(world, videos, tmp_path, monkeypatch):
    loaded, load = [], Video_Models.predictor.load_video_classifier
    monkeypatch.setattr(Video_Models.predictor, "load_video_classifier", lambda path: loaded.append(path) or load(path))
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes((world / "uniform.safetensors").read_bytes())
    first = [predict_video(video, checkpoint) for video in videos]
    assert loaded == [checkpoint]
    checkpoint.write_bytes((world / "dense.safetensors").read_bytes())
    os.utime(checkpoint, ns=(1, 1))
    again = [predict_video(video, checkpoint) for video in videos]
    assert loaded == [checkpoint, checkpoint]
    assert max(abs(one[1] - other[1]) for one, other in zip(first, again, strict=True)) > 1e-3


def test_predict_video_of_several_tasks(world, videos):
    checkpoint = world / "tasks.safetensors"
    mood = Predictor(checkpoint, device="cpu").predict(videos[:1])[1]
    assert predict_video(videos[0], checkpoint, task="mood") == (mood.label, pytest.approx(mood.confidence, abs=1e-6))
    with pytest.raises(InputError, match=r"task: is None, but .* has the tasks blurry, mood"):
        predict_video(videos[0], checkpoint)
    with pytest.raises(InputError, match="has one task only; drop 'mood'"):
        predict_video(videos[0], world / "uniform.safetensors", task="mood")


def test_predict_video_refuses_in_one_sentence(world, tmp_path, monkeypatch):
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(InputError, match=r"text\.avi: unreadable: .*; give another video"):
        predict_video(tmp_path / "text.avi", world / "uniform.safetensors")
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    with pytest.raises(InputError, match=r"checkpoint: is missing; give it, or set .* VIDEO_CHECKPOINT"):
        predict_video(tmp_path / "text.avi")


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_a_checkpoint_makes_its_network_again(world):
    for name, model_type in (("tasks", "video"), ("inflated", "inflated")):
        network, described = load_video_classifier(world / f"{name}.safetensors")
        assert (described.type, network.training) == (model_type, False)
        kept, own = read_weights(world / f"{name}.safetensors")[0], network.state_dict()
        assert own.keys() == kept.keys() and all(torch.equal(own[key], kept[key]) for key in kept)


def spoiled_checkpoint(world: Path, folder: Path, kind: str) -> Path:
    source = world / "uniform.safetensors"
    state_dict, described = read_weights(source)
    path = folder / "model.safetensors"
    changes = {
        "baseline": {"type": "baseline"},
        "option": {"options": described.options | {"depth": 3}},
        "value": {"options": described.options | {"family": "r4d"}},
        "shape": {"classes": CLASSES[:2]},
    }
    if kind in changes:
        write_weights(path, state_dict, replace(described, **changes[kind]))
    elif kind == "bare":
        torch.save(state_dict, path)
    elif kind == "flipped":
        content = bytearray(source.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    elif kind == "video":
        return write_video(folder / "a.mp4")
    return path


SPOILED = {
    "missing": "there is no checkpoint",
    "baseline": "is a 'baseline' checkpoint, which sees no clips; known: inflated, video",
    "option": "its description has the unknown option 'depth'; train again",
    "value": "its description makes no network (unknown family 'r4d'",
    "shape": "does not fit this VideoClassifier",
    "bare": "does not say which network it is of",
    "flipped": "is damaged (its SHA-256 differs)",
    "video": "a.mp4",
}


@pytest.mark.parametrize(("kind", "sentence"), SPOILED.items(), ids=SPOILED)
def test_another_checkpoint_is_refused(world, tmp_path, videos, run, kind, sentence):
    path = spoiled_checkpoint(world, tmp_path, kind)
    output = tmp_path / "made" / "out.csv"
    code, stdout, stderr = run("--checkpoint", path, "--output", output, *videos)
    assert (code, stdout) == (2, "")
    assert stderr.count("error: ") == 1 and sentence in stderr and str(path) in stderr and "Traceback" not in stderr
    assert not output.parent.exists()


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_a_folder_a_list_and_files_each_once_in_order(world, tmp_path, monkeypatch):
    write_video(tmp_path / "set" / "deep" / "B.MP4")
    write_video(tmp_path / "set" / "a.webm")
    (tmp_path / "set" / ".hidden.mp4").touch()
    (tmp_path / "set" / "notes.txt").touch()
    (tmp_path / "list.txt").write_bytes("﻿# mine\n\nset/a.webm\r\n  odd name.bin \nset\n".encode())
    (tmp_path / "odd name.bin").touch()
    monkeypatch.chdir(tmp_path)
    assert predict.collect_videos([Path("set")], None) == [Path("set/a.webm"), Path("set/deep/B.MP4")]
    assert predict.collect_videos([Path("set/deep/B.MP4")], Path("list.txt")) == [
        Path("set/deep/B.MP4"),
        Path("set/a.webm"),
        Path("odd name.bin"),
    ]


def test_the_script_writes_what_the_predictor_says(world, videos, uniform, tmp_path, run):
    (tmp_path / "list.txt").write_text("".join(f"{video}\n" for video in videos))
    checkpoint = ("--checkpoint", world / "uniform.safetensors", "--device", "cpu")
    predictions = uniform.predict(videos)
    assert run(*checkpoint, world / "val")[:2] == (0, format_predictions(predictions, "table", None))
    code, stdout, _ = run(
        *checkpoint, "--list", tmp_path / "list.txt", "--top", 2, "--output", tmp_path / "o" / "p.csv"
    )
    assert (code, stdout) == (0, "")
    assert (tmp_path / "o" / "p.csv").read_text() == format_predictions(predictions, "csv", 2)
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["p.csv"]
    code, stdout, _ = run(*checkpoint, *videos, "--format", "json")
    found = json.loads(stdout)
    assert (code, [one["label"] for one in found]) == (0, [one.label for one in predictions])
    assert [one["confidence"] for one in found] == pytest.approx([one.confidence for one in predictions], abs=1e-6)


def test_failed_videos_make_the_exit_code_one_and_no_overlay(world, videos, tmp_path, run):
    failed = spoil(tmp_path / "bad")
    given = (*videos[:2], *[path for path in failed if path.exists()])
    options = ("--checkpoint", world / "uniform.safetensors", "--device", "cpu", "--format", "csv")
    code, stdout, stderr = run(*options, "--overlay", tmp_path / "overlays", *given)
    assert (code, len(stdout.splitlines())) == (1, 1 + 2 + 4)
    assert [line.split(",")[-2] for line in stdout.splitlines()[1:]] == ["ok"] * 2 + ["failed"] * 4
    assert "Traceback" not in stderr
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == ["a_predicted.mp4", "b_predicted.mp4"]


def test_an_overlay_that_cannot_be_written_stops_no_other(world, videos, tmp_path, run, monkeypatch, caplog):
    def refuse_b(source: Path) -> object:
        if source.stem == "b":
            raise av.error.ExternalError(-542398533, "no such encoder", str(source))
        return read_times(source)

    read_times = Video_Models.overlay.read_frame_times
    monkeypatch.setattr(Video_Models.overlay, "read_frame_times", refuse_b)
    (tmp_path / "o" / "a_predicted.mp4").mkdir(parents=True)
    options = ("--checkpoint", world / "uniform.safetensors", "--device", "cpu", "--overlay", tmp_path / "o")
    caplog.set_level("INFO")
    code, stdout, stderr = run(*options, *videos[:3])
    assert (code, len(stdout.splitlines())) == (1, 3)
    assert "Traceback" not in stderr
    assert [message for message in caplog.messages if "overlay" in message] == [
        f"no overlay {tmp_path / 'o' / 'a_predicted.mp4'}: Is a directory",
        f"no overlay {tmp_path / 'o' / 'b_predicted.mp4'}: no such encoder",
        f"overlay: {tmp_path / 'o' / 'c_predicted.mp4'}",
    ]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["a_predicted.mp4", "c_predicted.mp4"]


REFUSED = {
    "no video at all": ([], "no video is given; name files or folders"),
    "a file that is not there": (["gone.mp4"], "there is no video or folder gone.mp4; correct the path"),
    "a folder without videos": (["bare"], "bare has no video; known endings: .avi"),
    "no such list": (["--list", "gone.txt"], "--list: there is no file gone.txt"),
    "a video as the list": (["--list", "a.mp4"], "--list: a.mp4 is not UTF-8 text"),
    "a wrong line": (["--list", "list.txt"], "list.txt line 2: there is no video or folder gone.mp4"),
    "an overlay over a video": (
        ["a.mp4", "a_predicted.mp4", "--overlay", "."],
        "--overlay: a_predicted.mp4 is one of the files to be read; choose another place",
    ),
    "an output over a video": (["a.mp4", "b.ts", "--output", "b.ts"], "--output: b.ts is one of the files to be read"),
    "an output over a video by a link": (["b.ts", "--output", "link.txt"], "--output: link.txt is one of the files to"),
    "an output over the target of a link": (["link.txt", "--output", "b.ts"], "--output: b.ts is one of the files to"),
    "a file beside the output over a video": (["b.ts.partial", "--output", "b.ts"], "b.ts.partial is one of the files"),
    "an output over the list": (["--list", "good.txt", "--output", "good.txt"], "--output: good.txt is one of the"),
    "an output over the checkpoint": (
        ["a.mp4", "--checkpoint", "c.bin", "--output", "c.bin"],
        "--output: c.bin is one",
    ),
    "an output below a file": (
        ["a.mp4", "--output", "list.txt/x/o.csv"],
        "--output: list.txt is a file; name a folder",
    ),
    "overlays below a file": (["a.mp4", "--overlay", "list.txt/x"], "--overlay: list.txt is a file; name a folder"),
    "an empty list": (["--list", "empty.txt"], "--list: empty.txt names no video; write a file or folder a line"),
    "a folder as the list": (["--list", "bare"], "--list: there is no file bare"),
    "a folder as the checkpoint": (["a.mp4", "--checkpoint", "bare"], "--checkpoint: bare is a folder; name the file"),
    "an image as the checkpoint": (["a.mp4", "--checkpoint", "i.png"], "i.png: is truncated or not a checkpoint"),
    "an empty checkpoint": (["a.mp4", "--checkpoint", "empty.txt"], "empty.txt: is truncated or not a checkpoint"),
    "a name that is too long": (["x" * 300], "too long for the file system"),
    "no videos at a time": (["a.mp4", "--batch-size", "0"], "'0' is no whole number from 1"),
    "a device of no number": (["a.mp4", "--device", "cuda:99999999999999999999"], "is none of auto, cpu"),
    "text over a video": (["b.mp4", "--output", "a.mp4"], "would be text under the name of another kind of file"),
    "a folder as the output": (["a.mp4", "--output", "bare"], "--output: bare is a folder"),
    "a file as the overlays' folder": (["a.mp4", "--overlay", "list.txt"], "--overlay: list.txt is a file"),
    "no class": (["a.mp4", "--top", "0"], "'0' is no whole number from 1"),
    "no such device": (["a.mp4", "--device", "gpu"], "'gpu' is none of auto, cpu"),
    "half precision on a CPU": (["a.mp4", "--device", "cpu", "--precision", "fp16"], "precision: fp16 needs a GPU"),
}


def test_an_output_whose_link_leads_to_itself_is_replaced(world, videos, tmp_path, run):
    (tmp_path / "o.csv").symlink_to("o.csv")
    options = ("--checkpoint", world / "uniform.safetensors", "--device", "cpu")
    assert run(*options, videos[0], "--output", tmp_path / "o.csv")[0] == 0
    assert (tmp_path / "o.csv").read_text().startswith("video_path,task,")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(world, videos, run):
    code, stdout, stderr = run("--checkpoint", world / "uniform.safetensors", "--device", "cuda", videos[0])
    assert (code, stdout) == (2, "") and "device: 'cuda' is not available on this machine" in stderr


def test_a_state_to_resume_from_is_no_checkpoint(world, tmp_path, videos, run):
    torch.save({"model": read_weights(world / "uniform.safetensors")[0], "epoch": 3}, tmp_path / "last.pt")
    code, stdout, stderr = run("--checkpoint", tmp_path / "last.pt", videos[0])
    assert (code, stdout) == (2, "") and "Traceback" not in stderr
    assert "last.pt: does not say which network it is of; give a model_best.safetensors" in stderr


def test_a_folder_that_may_not_be_read_is_refused(world, tmp_path, run, monkeypatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(PermissionError):
        predict.collect_videos([tmp_path], None)
    code, _, stderr = run("--checkpoint", world / "uniform.safetensors", tmp_path)
    assert (code, stderr.count("error: "), "permission denied" in stderr) == (2, 1, True)


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence_and_changes_nothing(world, tmp_path, monkeypatch, run, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "a_predicted.mp4"):
        write_video(tmp_path / name, 60, size=64)
    (tmp_path / "bare").mkdir()
    (tmp_path / "list.txt").write_text("a.mp4\ngone.mp4\n")
    (tmp_path / "good.txt").write_text("a.mp4\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "b.ts").write_bytes((tmp_path / "a.mp4").read_bytes())
    (tmp_path / "b.ts.partial").write_bytes((tmp_path / "a.mp4").read_bytes())
    (tmp_path / "link.txt").symlink_to("b.ts")
    (tmp_path / "c.bin").write_bytes((world / "uniform.safetensors").read_bytes())
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, stdout, stderr = run("--checkpoint", world / "uniform.safetensors", *arguments)
    assert (code, stdout) == (2, "")
    assert sentence in stderr and stderr.count("error: ") == 1 and "Traceback" not in stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_help_waits_for_no_torch():
    code = (
        "import sys; sys.argv = ['x', '--help']; import Video_Models.predict as p\n"
        "try: p.main()\n"
        "except SystemExit: print([m for m in ('torch', 'pandas', 'av', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert found.stdout.splitlines()[-1] == "[]"
    assert "no experiment to describe" in " ".join(found.stdout.split())


def predict_and_die(arguments: list[str], call: int) -> None:
    torch.set_num_threads(1)
    exit_at_call(os, "fsync", call)
    sys.argv = ["predict.py", *arguments]
    predict.main()


@pytest.mark.parametrize("call", [1, 3])  # a file and its folder are synced: 1 is the predictions', 3 an overlay's
def test_a_killed_run_leaves_old_files_whole(world, videos, tmp_path, run, call):
    output, overlay = tmp_path / "out.csv", tmp_path / "overlays" / "a_predicted.mp4"
    output.write_text("old\n")
    overlay.parent.mkdir()
    overlay.write_bytes(b"old")
    arguments = ["--checkpoint", world / "uniform.safetensors", "--device", "cpu", "--output", output, videos[0]]
    arguments = [str(one) for one in (*arguments, "--overlay", overlay.parent)]
    assert run_in_child(predict_and_die, arguments, call) == KILLED
    assert overlay.read_bytes() == b"old"
    assert (output.read_text() == "old\n") == (call == 1)
    assert run(*arguments)[0] == 0
    assert output.read_text().startswith("video_path,task,") and probe_video(overlay).num_frames == NUM_THERE
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a_predicted.mp4", "out.csv", "overlays"]


# ---------------------------------------------------------------------------------------------------------------------
# Text


PREDICTIONS = (
    Prediction(
        Path("b/two.mp4"),
        None,
        "ok",
        "",
        9,
        2,
        "rest, then run",
        0.5,
        ("run", "jump", "rest, then run"),
        (0.25, 0.25, 0.5),
    ),
    Prediction(Path("a.avi"), None, "failed", "unreadable: End of file"),
)


def test_csv_has_a_row_for_each_of_the_most_probable_classes():
    assert format_predictions(PREDICTIONS, "csv", 2) == (
        "video_path,task,num_frames,rank,label,class_name,probability,status,reason\n"
        'b/two.mp4,,9,1,2,"rest, then run",0.5,ok,\n'
        "b/two.mp4,,9,2,0,run,0.25,ok,\n"
        "a.avi,,,,,,,failed,unreadable: End of file\n"
    )
    assert len(format_predictions(PREDICTIONS, "csv", None).splitlines()) == 3
    assert len(format_predictions(PREDICTIONS, "csv", 99).splitlines()) == 5


def test_json_has_all_probabilities_from_the_highest_on():
    text = format_predictions(PREDICTIONS, "json", None)
    expected = {
        "video_path": "b/two.mp4",
        "task": None,
        "status": "ok",
        "reason": "",
        "num_frames": 9,
        "label": 2,
        "class_name": "rest, then run",
        "confidence": 0.5,
        "probabilities": {"rest, then run": 0.5, "run": 0.25, "jump": 0.25},
    }
    failed = dict.fromkeys(expected) | {"video_path": "a.avi", "status": "failed"}
    failed |= {"reason": "unreadable: End of file", "class_name": "", "probabilities": {}}
    assert text == json.dumps([expected, failed], indent=2) + "\n"
    assert list(json.loads(text)[0]["probabilities"]) == ["rest, then run", "run", "jump"]
    assert json.loads(format_predictions(PREDICTIONS, "json", 1))[0]["probabilities"] == {"rest, then run": 0.5}


def test_the_table_is_a_line_a_prediction_in_columns():
    assert format_predictions(PREDICTIONS, "table", None) == (
        "b/two.mp4  rest, then run 50.0 %\na.avi      failed: unreadable: End of file\n"
    )
    assert format_predictions(PREDICTIONS[:1], "table", 2) == "b/two.mp4  rest, then run 50.0 %, run 25.0 %\n"
    tasks = [replace(PREDICTIONS[0], task=task) for task in ("act", "activity")]
    assert format_predictions(tasks, "table", None) == (
        "b/two.mp4  act       rest, then run 50.0 %\nb/two.mp4  activity  rest, then run 50.0 %\n"
    )
    assert [caption(one) for one in (PREDICTIONS[0], tasks[0])] == [
        "rest, then run 50.0 %",
        "act: rest, then run 50.0 %",
    ]


def test_names_of_any_bytes_can_be_written():
    odd = [replace(PREDICTIONS[0], path=Path(os.fsdecode(b"caf\xe9\n.mp4")))]
    for output_format in ("table", "csv", "json"):
        format_predictions(odd, output_format, None).encode("utf-8")
    assert json.loads(format_predictions(odd, "json", None))[0]["video_path"] == "caf�\n.mp4"
    assert format_predictions(odd, "table", None).startswith("caf�?.mp4  rest")


# ---------------------------------------------------------------------------------------------------------------------
# Overlays


def rate_of(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        return container.streams.video[0].average_rate


@pytest.mark.parametrize("name", ["real_clip_a.avi", "real_clip_b.mp4"])
def test_an_overlay_is_the_whole_video_with_its_answer(real_data, tmp_path, name):
    source = real_data / "videos" / name
    write_overlay(source, tmp_path / "o.mp4", ["jump 91.2 %"])
    was, now = probe_video(source), probe_video(tmp_path / "o.mp4")
    assert (now.num_frames, now.height, now.width) == (was.num_frames, was.height, was.width)
    assert rate_of(tmp_path / "o.mp4") == rate_of(source)
    text = render_text(["jump 91.2 %"], was.height, was.width)
    numbers = [0, was.num_frames // 2, was.num_frames - 1]
    before, after = (read_clip(path)[numbers].astype(int) for path in (source, tmp_path / "o.mp4"))
    height, width = text.shape
    assert height < was.height // 8 and width < was.width // 2
    assert np.abs(before - after)[:, height + 16 :].mean() < 3, "crf 18 is all that happened to the rest"
    for drawn, frame in zip(after, before, strict=True):
        expected = draw_text(frame.astype(np.uint8), text)[:height, :width].astype(int)
        assert np.abs(drawn[:height, :width] - expected).mean() < 12
        assert drawn[:height, :width][text > 200].mean() > 180


def test_equal_overlays_are_equal_bytes(tmp_path):
    source = write_video(tmp_path / "a.webm", 6, size=64)
    for name in ("x.mp4", "y.mp4"):
        write_overlay(source, tmp_path / name, ["run 50.0 %", "mood: glad 99.9 %"])
    assert (tmp_path / "x.mp4").read_bytes() == (tmp_path / "y.mp4").read_bytes()
    assert rate_of(tmp_path / "x.mp4") == 10


def test_odd_sides_are_made_even(tmp_path):
    with av.open(str(tmp_path / "odd.mkv"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=Fraction(30000, 1001), options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 65, 51, "rgb24"
        frame = np.full((51, 65, 3), 90, dtype=np.uint8)
        frame[:, -1] = frame[-1] = 200
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    write_overlay(tmp_path / "odd.mkv", tmp_path / "even.mp4", ["a"])
    info = probe_video(tmp_path / "even.mp4")
    assert (info.num_frames, info.height, info.width) == (4, 52, 66)
    was, now = (read_frame_times(tmp_path / name) for name in ("odd.mkv", "even.mp4"))
    assert [tick * now.time_base for tick in now.ticks] == [tick * was.time_base for tick in was.ticks]
    last = read_clip(tmp_path / "even.mp4")[-1]
    assert last[-2:, -20:].min() > 150 and last[20:, -2:].min() > 150, "the last row and column are repeated"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_overlay_shows_each_frame_when_its_video_does(tmp_path, suffix):
    stamps, unit = [0, 1, 5, 6, 20, 21, 50], Fraction(1, 100)
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        stream.time_base = stream.codec_context.time_base = unit
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 30 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_overlay(tmp_path / f"a{suffix}", tmp_path / "o.mp4", ["run"])
    with av.open(str(tmp_path / "o.mp4")) as container:
        frames = [
            (frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    assert [time_s for time_s, _ in frames] == [stamp * unit for stamp in stamps]
    means = [pixels[-16:].mean() for _, pixels in frames]
    np.testing.assert_allclose(means, [30 * number for number in range(7)], atol=4)


def test_text_is_cut_to_the_frame_and_darkens_only_its_corner():
    long = render_text(["a class with a very long name " * 5, "b"], 48, 64)
    assert long.shape[1] <= 64 and long.max() > 200
    short, wide = render_text(["run"], 48, 64), render_text(["run"], 480, 640)
    assert short.shape[1] < 40 and wide.shape[0] > short.shape[0]
    frame = np.full((48, 64, 3), 240, dtype=np.uint8)
    drawn = draw_text(frame, short)
    height, width = short.shape
    assert (frame == 240).all(), "the frame itself stays as it is"
    assert (drawn[height:] == 240).all() and (drawn[:, width:] == 240).all()
    assert np.array_equal(drawn[:height, :width, 0], np.maximum(short, 80))
    assert draw_text(frame[:4, :5], short).shape == (4, 5, 3), "a frame smaller than its text"


def test_overlays_of_one_name_have_numbers(tmp_path):
    videos = [Path("x/a.avi"), Path("y/a.mp4"), Path("y/b.mp4"), Path("z/a.mp4")]
    names = [path.name for path in predict.plan_overlays(videos, tmp_path).values()]
    assert names == ["a_predicted.mp4", "a_2_predicted.mp4", "b_predicted.mp4", "a_3_predicted.mp4"]
    assert set(predict.plan_overlays(videos, tmp_path)) == set(videos)
