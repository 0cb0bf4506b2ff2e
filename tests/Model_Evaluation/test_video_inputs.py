"""What a clip classifier is scored on: windows of a long video, and one task of several."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_in_child
from torch import nn

from Model_Evaluation import evaluation
from Model_Evaluation.classifier import Classifier
from Model_Evaluation.entries import own_entry_ids
from Model_Evaluation.inputs import build_test_data, shuffle_frames
from Model_Evaluation.models import InputFormat
from Model_Evaluation.paired_answers import number_sources
from Model_Evaluation.pictures import Gallery
from Model_Evaluation.scored_runs import source_of
from Model_Evaluation.settings import DataSettings, EvaluationSettings, parse_input
from utils.artifacts import ARMS, PREDICTIONS, read_table
from utils.clips import read_frames, write_clip
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.files import sha256_file
from utils.frame_sampling import FrameSampling
from utils.indices import read_clip_index
from utils.learner import build_recipe
from utils.task_labels import select_task

LENGTH, STEP, SIZE, NUM_FRAMES = 20, 12, 32, 3
DENSE = FrameSampling("dense", NUM_FRAMES, frame_interval=2, num_clips=4)
WINDOWS = DENSE.stored_frames(LENGTH)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two videos whose frames' greys are their numbers."""
    root = tmp_path_factory.mktemp("videos")
    greys = (STEP * np.arange(LENGTH)).astype(np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (LENGTH, SIZE, SIZE, 3)).copy()
    lines = ["video_path,label,class_name,wnid,generator"]
    for number in range(2):
        write_clip(root / f"{number}.mp4", frames, codec="h264_lossless")
        lines.append(f"{number}.mp4,{number},c{number},c{number},video")
    (root / "val.csv").write_text("\n".join(lines) + "\n")
    return root


def form_of(sampling: FrameSampling) -> InputFormat:
    return InputFormat(SIZE, NUM_FRAMES, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), sampling)


def frames_seen(videos: Path, kind: str, sampling: FrameSampling) -> tuple[str, list[list[int]], int]:
    """`test_input`, the frame numbers of both items, and how many clips they make up."""
    test = build_test_data(parse_input(kind, "clip"), DataSettings(root=videos), form_of(sampling), 2)
    pixels = test.open(None, 1).gather([0, 1])
    return test.name, (pixels[:, 0, :, 0, 0] // STEP).tolist(), test.num_clips


def test_all_windows_are_looked_at(videos):
    name, frames, num_clips = frames_seen(videos, "clip", DENSE)
    assert (name, num_clips) == ("clip:video", 4)
    assert frames == [WINDOWS.flatten().tolist()] * 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("frame:1", [12, 12, 12]),
        ("first_frame", [10, 10, 10]),
        ("all_frames", [10, 12, 14]),
    ],
)
def test_single_frames_are_of_the_middle_window(videos, kind, expected):
    _, frames, num_clips = frames_seen(videos, kind, DENSE)
    assert frames == [expected] * 2
    assert num_clips == 1


@pytest.mark.parametrize("kind", ["static", "reversed", "shuffled"])
def test_other_orders_are_of_all_windows_so_that_nothing_but_the_order_differs(videos, kind):
    _, frames, num_clips = frames_seen(videos, kind, DENSE)
    assert num_clips == 4
    for number in range(2):
        orders = {"static": [0, 0, 0], "reversed": [2, 1, 0]}
        order = orders.get(kind, shuffle_frames(f"{number}.mp4", NUM_FRAMES))
        assert frames[number] == WINDOWS[:, order].flatten().tolist()


def test_another_sampling_than_the_training_s_is_named(videos):
    form = replace(form_of(DENSE), sampling_name="dense4x2")
    names = [
        build_test_data(parse_input(kind, "clip"), DataSettings(root=videos), form, 2).name
        for kind in ("clip", "shuffled", "frame:1")
    ]
    assert names == ["clip@dense4x2:video", "shuffled@dense4x2:video", "frame_1@dense4x2:video"]


def test_the_pictures_show_the_frames_that_the_network_saw(trained, tmp_path):
    """Of a multi-task index some rows are left out: an item's frames must be its own all the same."""
    root, checkpoint = trained
    raw = {
        "models": [{"name": "run", "type": "video", "checkpoint": str(checkpoint), "input": "reversed"}],
        "data": {"root": str(root), "workers": 1, "task": "grainy"},
    }
    gallery = Gallery([build_settings(EvaluationSettings, raw, "test")])
    index = select_task(read_clip_index(root / "val.csv", root / "val"), "grainy")
    chosen = [5, 0, 11]
    shown = gallery.frames_of_items("run", [index.item_ids[number] for number in chosen])
    numbers = FrameSampling("uniform", 2).stored_frames(6)[0][::-1]
    for number, frames in zip(chosen, shown, strict=True):
        np.testing.assert_array_equal(frames, read_frames(index.paths[number], numbers))


def test_random_sampling_is_scored_on_the_middle_candidates(videos):
    sampling = FrameSampling("random", NUM_FRAMES, num_clips=3)
    name, frames, num_clips = frames_seen(videos, "clip", sampling)
    assert (name, num_clips) == ("clip:video", 1)
    assert frames == [sampling.stored_frames(LENGTH)[1].tolist()] * 2


class _Weighted(nn.Module):
    """Logits (B, 2): the frames' means, weighted by their place; and its square, so that no mean commutes."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        means = clip.mean(dim=(1, 3, 4))  # (B, T)
        value = (means * torch.tensor([1.0, 2.0, 4.0])).sum(dim=1)
        return torch.stack([value, value.square()], dim=1)


def test_logits_of_windows_are_averaged_before_the_softmax():
    clips = torch.rand(2, 3, 12, 4, 4, generator=torch.Generator().manual_seed(0))
    network, recipe = _Weighted(), build_recipe("cpu", "fp32")
    classifier = Classifier(network, form_of(DENSE), recipe, num_clips=4, num_views=2)
    assert classifier.num_passes(12) == 8
    windows = [network(clips[:, :, 3 * k : 3 * k + 3]) for k in range(4)]
    expected = torch.stack(windows).mean(dim=0)
    found = classifier.logits(clips)
    assert found.shape == (2, 2, 2), "one row a view"
    torch.testing.assert_close(found, expected.expand(2, -1, -1), rtol=1e-6, atol=1e-6)
    probabilities = classifier.probabilities(clips)
    np.testing.assert_allclose(probabilities, expected.double().softmax(dim=1).numpy(), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# One task of several

TASKS = {"grainy": ("clean", "grainy"), "light": ("dark", "grey", "bright")}


def write_tasks(root: Path, per_class: int = 4) -> Path:
    """Videos of three lights, every other one grainy; every fourth lacks a label of `grainy`."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        rows, labels = ["video_path,label,class_name,wnid,generator"], ["video_path,task,label,class_name"]
        for number in range(3 * 2 * per_class):
            light, grainy, is_known = number % 3, number // 3 % 2, number % 4 != 0
            frames = np.full((6, SIZE, SIZE, 3), 40 + 80 * light, np.int64)
            frames = frames + grainy * generator.integers(-60, 61, frames.shape)
            write_clip(root / split / f"{number}.mp4", frames.clip(0, 255).astype(np.uint8))
            kind = 2 * light + grainy
            rows.append(f"{number}.mp4,{kind},kind{kind},kind{kind},video")
            labels.append(f"{number}.mp4,light,{light},{TASKS['light'][light]}")
            if is_known:
                labels.append(f"{number}.mp4,grainy,{grainy},{TASKS['grainy'][grainy]}")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
        (root / f"{split}.tasks.csv").write_text("\n".join(labels) + "\n")
    return root


def train(root: Path, output_dir: Path, weights: str = "none", **keys) -> None:
    from Video_Models.settings import VideoSettings
    from Video_Models.training import run_training

    torch.set_num_threads(1)
    raw = {
        "data_root": str(root),
        "output_dir": str(output_dir),
        "family": "resnet18",
        "config": {"layers": [1, 1, 1, 1]},
        "weights": weights,
        "num_frames": 2,
        "image_size": SIZE,
        "batch_size": 8,
        "epochs": 16,
        "schedule": "constant",
        "selection": "val",
        "lr": 1e-2,
        "device": "cpu",
        "workers": 1,
    }
    run_training(build_settings(VideoSettings, raw | keys, "test"))


def evaluate(root: Path, checkpoint: Path, output_dir: Path, *, num_pictures: int = 0, **data) -> None:
    from Model_Evaluation.evaluation import run_evaluation
    from Model_Evaluation.settings import EvaluationSettings

    torch.set_num_threads(1)
    raw = {
        "models": [{"name": "run", "type": "video", "checkpoint": str(checkpoint), "input": "clip"}],
        "data": {"root": str(root), "workers": 1} | data,
        "output_dir": str(output_dir),
        "latency": {"warmup": 1, "repetitions": 2},
        "pictures": {"num_items": num_pictures},
        "device": "cpu",
    }
    run_evaluation(build_settings(EvaluationSettings, raw, "test"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    root = write_tasks(tmp_path_factory.mktemp("tasks"))
    assert run_in_child(train, root, root / "run") == 0
    return root, root / "run" / "model_best.safetensors"


@pytest.mark.parametrize(("task", "num_items", "least_right"), [("light", 24, 20), ("grainy", 18, 15)])
def test_a_task_is_scored_on_the_items_that_have_its_label(trained, tmp_path, task, num_items, least_right):
    root, checkpoint = trained
    evaluate(root, checkpoint, tmp_path / "results", task=task)
    rows = read_table(tmp_path / "results" / "predictions.csv", PREDICTIONS)
    assert len(rows) == num_items
    assert set(rows["class_name"]) == set(TASKS[task])
    assert set(rows["arm"]) == {"resnet18_video"}
    assert set(rows["test_input"]) == {f"clip:video#{task}"}
    arms = read_table(tmp_path / "results" / "arms.csv", ARMS)
    assert own_entry_ids(arms) == arms["entry_id"].tolist()
    # By chance alone so many are right with p < 0.004.
    assert (rows["label"] == rows["predicted_label"]).sum() >= least_right


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "data.task: is missing, but {checkpoint} has several; choose one of grainy, light"),
        ("heavy", "data.task: {checkpoint} has no task 'heavy'; known: grainy, light"),
    ],
)
def test_a_task_that_is_not_there_is_refused(trained, tmp_path, task, message):
    root, checkpoint = trained
    with pytest.raises(InputError) as caught:
        evaluate(root, checkpoint, tmp_path / "results", task=task)
    assert str(caught.value) == message.format(checkpoint=checkpoint)


def test_the_test_split_is_called_so(trained, tmp_path):
    root, checkpoint = trained
    copy = tmp_path / "videos"
    shutil.copytree(root, copy)
    for name in ("val", "val.csv", "val.tasks.csv"):
        (copy / name).rename(copy / name.replace("val", "test", 1))
    evaluate(copy, checkpoint, tmp_path / "results", task="light", split="test")
    rows = read_table(tmp_path / "results" / "predictions.csv", PREDICTIONS)
    assert set(rows["split"]) == {"test"}
    assert set(rows["selection_split"]) == {"val"}


def test_an_index_of_another_split_is_refused(videos):
    with pytest.raises(InputError, match=r"test\.csv is of split test, but tables would say val; set split: test$"):
        build_settings(DataSettings, {"root": str(videos), "val_csv": "test.csv"}, "evaluate.yaml")


def test_a_models_own_index_of_another_split_is_refused_by_the_models_name(trained, videos):
    _, checkpoint = trained
    model = {"name": "own", "type": "video", "checkpoint": str(checkpoint), "input": "clip", "root": str(videos)}
    model["val_csv"] = "test.csv"
    with pytest.raises(InputError, match=r"models: own: val_csv: test\.csv is of split test, but tables would say val"):
        build_settings(EvaluationSettings, {"models": [model], "data": {"root": str(videos)}}, "evaluate.yaml")


def test_a_start_from_other_tasks_is_a_new_head_and_from_other_classes_refused(trained, tmp_path):
    root, checkpoint = trained
    other = tmp_path / "videos"
    shutil.copytree(root, other)
    for split in ("train", "val"):
        path = other / f"{split}.tasks.csv"
        path.write_text(path.read_text().replace("clean", "noisy"))
    with pytest.raises(InputError, match=r"label 0 is 'clean' \(clean\) in task grainy of .* and 'noisy' \(noisy\) in"):
        train(other, tmp_path / "run", weights=str(checkpoint), epochs=1)
    for split in ("train", "val"):
        path = other / f"{split}.tasks.csv"
        path.write_text(path.read_text().replace("grainy,", "grain,"))
    assert run_in_child(partial(train, epochs=1), other, tmp_path / "run", str(checkpoint)) == 0


def test_pictures_are_drawn_again_without_scoring_again(trained, tmp_path, monkeypatch):
    root, checkpoint = trained
    results = tmp_path / "results"
    evaluate(root, checkpoint, results, num_pictures=8, task="light")
    before = (results / "predictions.csv").read_bytes()
    raw = read_yaml(results / "config.yaml") | {"pictures": {"num_items": 0, "seed": 0}}
    monkeypatch.setattr(evaluation, "score_model", None)
    with monkeypatch.context() as killed, pytest.raises(TypeError):
        killed.setattr(evaluation, "write_derived", None)  # ends there, as a kill would
        evaluation.run_evaluation(build_settings(EvaluationSettings, raw, "test"))
    settings = build_settings(EvaluationSettings, raw, "test")
    assert list((results / "figures").glob("samples_*.png"))
    evaluation.run_evaluation(settings)
    assert not list((results / "figures").glob("samples_*.png"))
    assert (results / "predictions.csv").read_bytes() == before
    monkeypatch.setattr(evaluation, "write_derived", None)
    evaluation.run_evaluation(settings)


def test_videos_of_a_group_are_one_trial(videos, tmp_path):
    lines = ["video_path,label,class_name,wnid,source_sha256,sha256,generator,group"]
    for number, group in enumerate(["kim#1", "kim#1", "", "lee"]):
        path = tmp_path / f"{number}.mp4"
        write_clip(path, np.full((2, SIZE, SIZE, 3), 40 * number, np.uint8))
        sha256 = sha256_file(path)
        lines.append(f"{number}.mp4,0,c,c,{sha256},{sha256},video,{group}")
    (tmp_path / "val.csv").write_text("\n".join(lines) + "\n")
    index = read_clip_index(tmp_path / "val.csv", tmp_path)
    hashes = index.table["sha256"].tolist()
    ids = index.item_ids
    assert ids == [f"kim#1#{hashes[0][:16]}", f"kim#1#{hashes[1][:16]}", hashes[2], f"lee#{hashes[3][:16]}"]
    assert [source_of(item) for item in ids] == ["kim#1", "kim#1", hashes[2], "lee"]
    assert number_sources(np.array(ids), np.zeros(4, int)).tolist() == sorted_positions(["kim#1", hashes[2], "lee"])


def sorted_positions(sources: list[str]) -> list[int]:
    """Numbers of: the first source twice, then the others."""
    order = sorted(sources)
    return [order.index(sources[0]), *(order.index(source) for source in sources)]
