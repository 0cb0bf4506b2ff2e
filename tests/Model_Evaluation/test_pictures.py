"""Sheets of what networks saw and where they looked: which items, what is said of them, and what maps are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_in_child
from PIL import Image
from samples import CLASSES, description_of, write_clip_set, write_image_set
from synthetic_results import make_tables
from tiny_transformers import build_tiny, tiny_config

from Baseline_VGG.vgg_baseline import build_vgg11
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation.attention_rollout import compute_attention_rollout
from Model_Evaluation.figures import copy_pixel_pictures
from Model_Evaluation.grad_cam import compute_grad_cam
from Model_Evaluation.heat_maps import compute_heat_maps, method_of
from Model_Evaluation.models import InputFormat, OneTask
from Model_Evaluation.pictures import choose_samples, describe_samples, draw_run_pictures
from Model_Evaluation.settings import EvaluationSettings, PictureSettings
from utils.augmentation import Preprocessing
from utils.checkpoints import ModelDescription, write_weights
from utils.config import build_settings
from utils.indices import ClassInfo

RUN = "3d_svd_t3_s0__clip_svd"
CASE = ("3d_svd", "clip:svd", "clip:svd")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, pd.DataFrame]:
    return make_tables(tmp_path_factory.mktemp("measured"), {CASE: 0.9}, seeds=2, num_items=40)


def choose(tables: dict[str, pd.DataFrame], num_items: int, seed: int = 0, run_id: str = RUN) -> pd.DataFrame:
    return choose_samples(tables, run_id, PictureSettings(num_items=num_items, seed=seed))


@pytest.mark.parametrize(("num_items", "num_wrong"), [(1, 0), (4, 2), (7, 3), (8, 4), (20, 4), (100, 4)])
def test_half_are_wrong_as_far_as_there_are_so_many(tables, num_items, num_wrong):
    chosen = choose(tables, num_items)
    assert chosen["is_right"].tolist() == [False] * num_wrong + [True] * (min(num_items, 40) - num_wrong)
    assert (chosen["is_right"] == (chosen["label"] == chosen["predicted_label"])).all()
    assert chosen["item_id"].is_unique


def test_a_network_that_is_always_wrong_fills_the_sheet_with_mistakes(tmp_path):
    tables = make_tables(tmp_path, {CASE: 0.05}, seeds=1, num_items=40)
    assert choose(tables, 8)["is_right"].tolist() == [False] * 6 + [True] * 2
    assert choose(tables, 2)["is_right"].tolist() == [False, True]


def test_the_choice_is_of_the_seed_and_no_order_of_rows_changes_it(tables):
    shuffled = tables | {name: tables[name].sample(frac=1, random_state=3) for name in ("predictions", "probabilities")}
    assert choose(tables, 8)["item_id"].tolist() == choose(shuffled, 8)["item_id"].tolist()
    assert choose(tables, 8)["item_id"].tolist() != choose(tables, 8, seed=1)["item_id"].tolist()
    both = [set(choose(tables, 40, run_id=f"3d_svd_t3_s{seed}__clip_svd")["item_id"]) for seed in (0, 1)]
    assert both[0] == both[1]


def test_the_probability_of_the_answer_stands_beside_it(tables):
    probabilities = tables["probabilities"].set_index(["run_id", "item_id", "label"])["probability"]
    for row in choose(tables, 8).to_dict("records"):
        assert row["prob_predicted"] == probabilities[RUN, row["item_id"], row["predicted_label"]]
        assert row["prob_true"] == pytest.approx(probabilities[RUN, row["item_id"], row["label"]])


def test_the_text_alternative_tells_every_answer(tables):
    chosen = choose(tables, 2)
    wrong, right = chosen.to_dict("records")
    assert describe_samples("a", chosen, 3) == (
        f"Sample predictions of a: 2 items, 1 wrong and 1 right. wrong: {wrong['class_name']} taken for "
        f"{wrong['predicted_class_name']}, {wrong['predicted_class_name']} {100 * wrong['prob_predicted']:.1f} %; true "
        f"class {wrong['class_name']} {100 * wrong['prob_true']:.1f} %; right: {right['class_name']}, "
        f"{100 * right['prob_predicted']:.1f} %."
    )
    assert "1 right, 8 of 16 frames each. wrong" in describe_samples("a", chosen, 16)


# ---------------------------------------------------------------------------------------------------------------------
# What maps are of


def frames_of(num_frames: int, num_items: int = 2, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_items, num_frames, size, size, 3), dtype=np.uint8)


def prepared(frames: np.ndarray) -> torch.Tensor:
    return Preprocessing(MEAN, STD)(torch.from_numpy(frames).permute(0, 4, 1, 2, 3))


def form_of(num_frames: int | None, size: int = 32) -> InputFormat:
    return InputFormat(size, num_frames, MEAN, STD)


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    made = {"2d": build_vgg11(3, classifier_width=8).eval(), "3d": build_vgg11_3d(3, classifier_width=8).eval()}
    for layer in [layer for model in made.values() for layer in model.classifier if isinstance(layer, torch.nn.Linear)]:
        torch.nn.init.uniform_(layer.weight, 0, 0.1)  # something speaks for every class
    return made


LABELS = torch.tensor([2, 0])


def test_a_network_of_images_has_a_map_of_each_frame_by_itself(networks):
    frames = frames_of(3)
    maps = compute_heat_maps(networks["2d"], form_of(None), frames, LABELS, is_fused=True)
    assert maps.max(axis=(2, 3)).tolist() == [[1.0] * 3] * 2
    expected = [compute_grad_cam(networks["2d"], prepared(frames)[:, :, frame], LABELS) for frame in range(3)]
    np.testing.assert_allclose(maps, torch.cat(expected, dim=1).numpy(), atol=1e-5)


def test_several_windows_of_an_item_are_clips_by_themselves(networks):
    frames = frames_of(6)
    maps = compute_heat_maps(networks["3d"], form_of(3), frames, LABELS)
    windows = [compute_grad_cam(networks["3d"], prepared(frames[:, start : start + 3]), LABELS) for start in (0, 3)]
    np.testing.assert_allclose(maps, torch.cat(windows, dim=1).numpy(), atol=1e-5)


def test_a_network_of_clips_that_looks_at_frames_by_themselves_sees_each_repeated(networks):
    frames = frames_of(2)
    maps = compute_heat_maps(networks["3d"], form_of(3), frames, LABELS, is_fused=True)
    for frame in range(2):
        still = prepared(frames[:, [frame] * 3])
        expected = compute_grad_cam(networks["3d"], still, LABELS).mean(dim=1)
        expected /= expected.amax(dim=(1, 2), keepdim=True)
        np.testing.assert_allclose(maps[:, frame], expected.numpy(), atol=1e-4)


def test_transformers_have_a_roll_out_and_others_grad_cam(networks):
    assert method_of(networks["2d"]) == method_of(networks["3d"]) == "grad_cam"
    for family in ("videomae", "timesformer", "vivit"):
        model, frames = build_tiny(family), frames_of(4, size=16)
        assert method_of(model) == "attention"
        maps = compute_heat_maps(model, form_of(4, 16), frames, LABELS)
        np.testing.assert_allclose(maps, compute_attention_rollout(model, prepared(frames)).numpy(), atol=1e-5)


def test_one_task_of_a_transformer_has_its_clips_roll_out():
    tasks = {"a": 2, "b": 2}
    model = build_tiny("videomae", tasks=tasks)
    frames = frames_of(4, size=16)
    maps = compute_heat_maps(OneTask(model, tasks, "b"), form_of(4, 16), frames, torch.tensor([1, 0]))
    np.testing.assert_allclose(maps, compute_attention_rollout(model, prepared(frames)).numpy(), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Sheets of a plain evaluation


def describe(model_type: str, train_input: str, options: dict, form: dict) -> ModelDescription:
    classes = [ClassInfo(label, name, wnid) for label, (wnid, name) in enumerate(CLASSES)]
    known = {"mean": MEAN, "std": STD, "train_input": train_input}
    return description_of(model_type, options, classes, form | {"image_size": 32}, **known)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Images, clips, and a network of images, one of clips with convolutions and one with attention."""
    root = tmp_path_factory.mktemp("world")
    write_image_set(root / "images")
    write_clip_set(root / "clips")
    torch.manual_seed(0)
    vgg = build_vgg11(2, classifier_width=8)
    write_weights(
        root / "2d.safetensors",
        vgg.state_dict(),
        describe("baseline", "original", {"classifier_width": 8}, {"kind": "image"}),
    )
    sampling = {"method": "uniform", "num_frames": 3, "frame_interval": 1, "num_clips": 1}
    clip = {"kind": "clip", "num_frames": 3, "sampling": sampling}
    for family, config in {"videomae": tiny_config("videomae"), "r3d_18": {"layers": [1, 1, 1, 1]}}.items():
        options = {"family": family, "num_frames": 3, "image_size": 32, "config": config}
        from Video_Models.models import build_video_classifier

        model = build_video_classifier(2, **options)
        state = model.state_dict()
        write_weights(root / f"{family}.safetensors", state, describe("video", "clip:static", options, clip))
    return root


def evaluate(world: Path, output_dir: Path, pictures: dict) -> None:
    from Model_Evaluation.evaluation import run_evaluation

    torch.set_num_threads(1)
    models = [
        ("2d", "baseline", "2d", "original"),
        ("mae", "video", "videomae", "clip"),
        ("r3d", "video", "r3d_18", "clip"),
    ]
    raw = {
        "models": [
            {"name": name, "type": kind, "checkpoint": str(world / f"{file}.safetensors"), "input": seen}
            for name, kind, file, seen in models
        ],
        "data": {"root": str(world / "clips"), "images_root": str(world / "images"), "workers": 0},
        "latency": {"warmup": 1, "repetitions": 1},
        "device": "cpu",
        "output_dir": str(output_dir),
        "pictures": pictures,
    }
    run_evaluation(build_settings(EvaluationSettings, raw, "test"))


def test_an_evaluation_draws_two_sheets_a_model_and_shows_them(world, tmp_path):
    assert run_in_child(evaluate, world, tmp_path / "run", {"num_items": 4}) == 0
    figures = tmp_path / "run/figures"
    sheets = {"samples_2d", "samples_mae", "samples_r3d", "grad_cam_2d", "grad_cam_r3d", "attention_mae"}
    assert {path.stem for kind in ("samples", "grad_cam", "attention") for path in figures.glob(f"{kind}_*")} == sheets
    html = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    for name in sheets:
        with Image.open(figures / f"{name}.png") as image:
            described = image.text["Description"]
            assert f'alt="{described}"' in html
            assert described.count("wrong: ") + described.count("right: ") == 4
    assert "<h2>Sample predictions</h2>" in html and "<h2>Where the networks look</h2>" in html
    copy_pixel_pictures(figures, tmp_path / "again")
    assert {path.stem for path in (tmp_path / "again").iterdir()} == sheets


class Shown:
    """A gallery of one network that saw the same frames of any item."""

    def __init__(self, network: torch.nn.Module, frames: np.ndarray) -> None:
        self.network, self.given = network, frames
        self.asked: list[tuple[str, list[str]]] = []

    def frames_of_items(self, run_id: str, item_ids: list[str]) -> np.ndarray:
        self.asked.append((run_id, item_ids))
        return self.given

    def model(self, _run_id: str) -> tuple:
        return self.network, form_of(self.given.shape[1]), None

    def device(self, _run_id: str) -> torch.device:
        return torch.device("cpu")

    def is_fused(self, _run_id: str) -> bool:
        return False


def test_sheets_show_the_frames_that_the_network_saw(tables, tmp_path):
    frames = np.stack([np.full((3, 32, 32, 3), 20 * number + 5, dtype=np.uint8) for number in range(8)])
    torch.manual_seed(0)
    shown = Shown(build_vgg11_3d(4, classifier_width=8).eval(), frames)
    (tmp_path / "samples_gone.png").write_bytes(b"of an earlier run")
    (tmp_path / "curves_kept.png").write_bytes(b"another's")
    draw_run_pictures(shown, tables, [RUN], tmp_path, PictureSettings(num_items=8))
    assert shown.asked == [(RUN, choose(tables, 8)["item_id"].tolist())]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"samples_{RUN}.png",
        f"grad_cam_{RUN}.png",
        "curves_kept.png",
    }
    with Image.open(tmp_path / f"samples_{RUN}.png") as image:
        pixels = np.asarray(image)
    for number in range(8):
        assert (pixels == 20 * number + 5).all(axis=-1).sum() >= 3 * 112 * 112
    draw_run_pictures(shown, tables, [RUN], tmp_path, PictureSettings(num_items=0))
    assert {path.name for path in tmp_path.iterdir()} == {"curves_kept.png"}


def test_many_frames_are_thinned_evenly(tables, tmp_path):
    frames = np.arange(16, dtype=np.uint8)[None, :, None, None, None] * np.full((1, 16, 32, 32, 3), 10, dtype=np.uint8)
    shown = Shown(build_tiny("videomae", 16, image_size=32), frames)
    draw_run_pictures(shown, tables, [RUN], tmp_path, PictureSettings(num_items=1))
    with Image.open(tmp_path / f"samples_{RUN}.png") as image:
        pixels = np.asarray(image)
    seen = [frame for frame in range(1, 16) if (pixels == 10 * frame).all(axis=-1).sum() >= 112 * 112]
    assert seen == [1, 3, 5, 7, 9, 11, 13, 15]


def test_a_network_that_no_method_knows_has_its_samples_alone_and_a_sentence(tables, tmp_path, caplog):
    blind = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 3 * 8 * 8, 4))
    shown = Shown(blind, np.zeros((2, 3, 8, 8, 3), dtype=np.uint8))
    with caplog.at_level("INFO"):
        draw_run_pictures(shown, tables, [RUN], tmp_path, PictureSettings(num_items=2))
    assert [path.name for path in tmp_path.iterdir()] == [f"samples_{RUN}.png"]
    assert caplog.messages == [
        f"no heat maps of {RUN}: Sequential has no convolution whose output Grad-CAM could weight"
    ]
