"""Every kind of input, to the pixel: which frames a network sees, in which order, and how its answers are averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT
from samples import write_clip_set, write_image_set
from torch import nn

from Data_Augmentation_SVD.generators import build_geometry
from Data_Augmentation_SVD.settings import GenerationSettings
from Model_Evaluation.classifier import Classifier, build_views
from Model_Evaluation.inputs import TestData, build_test_data, shuffle_frames
from Model_Evaluation.models import InputFormat
from Model_Evaluation.settings import DataSettings, InputKind, ScoredModel, parse_input
from utils.clips import read_clip, write_clip
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.images import read_rgb_image, resize_and_centre_crop
from utils.learner import build_recipe

IMAGE, CLIP = (InputFormat(32, frames, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)) for frames in (None, 3))

RECIPE = build_recipe("cpu", "fp32")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataSettings:
    root = tmp_path_factory.mktemp("inputs")
    write_image_set(root / "images", size=48)
    write_clip_set(root / "clips")
    return DataSettings(root=root / "clips", images_root=root / "images")


def items(test: TestData) -> np.ndarray:
    """uint8 (N, T, H, W, 3): what the items show."""
    pixels = test.open(None, 1)
    return pixels.gather(range(len(pixels))).permute(0, 2, 3, 4, 1).numpy().copy()


def clips_of(data: DataSettings) -> np.ndarray:
    return np.stack([read_clip(path) for path in sorted((data.root / "val").glob("*.mp4"))])


def images_of(data: DataSettings) -> list[np.ndarray]:
    return [read_rgb_image(path) for path in sorted((data.images_root / "val").rglob("*.png"))]


def expected(name: str, data: DataSettings) -> np.ndarray:
    clips = clips_of(data)
    if name == "original":
        return np.stack([resize_and_centre_crop(image, 32) for image in images_of(data)])[:, None]
    return {
        "first_frame": clips[:, :1],
        "frame:2": clips[:, 2:],
        "all_frames": clips,
        "clip": clips,
        "static": clips[:, :1].repeat(3, axis=1),
        "reversed": clips[:, ::-1],
    }[name]


@pytest.mark.parametrize("name", ["original", "first_frame", "frame:2", "all_frames", "clip", "static", "reversed"])
@pytest.mark.parametrize("form", [IMAGE, CLIP], ids=["2d", "3d"])
def test_items_show_the_frames_they_name(data, name, form):
    test = build_test_data(parse_input(name, "clip"), data, form, None)
    found, wanted = items(test), expected(name, data)
    if form is CLIP and wanted.shape[1] == 1:
        wanted = wanted.repeat(3, axis=1)  # a picture is seen as a clip that stands still
    if form is IMAGE and name == "static":
        wanted = wanted[:, :1]  # the same frame three times says nothing new to a network of images
    assert np.array_equal(found, wanted)
    assert test.is_fused == (name == "all_frames" or (form is IMAGE and name in ("clip", "reversed")))


def test_every_shuffled_clip_has_its_own_frames_in_another_order(data):
    test = build_test_data(parse_input("shuffled", "clip"), data, CLIP, None)
    for found, clip, order in zip(items(test), clips_of(data), test.frame_order, strict=True):
        assert sorted(order) == [0, 1, 2] and order.tolist() != [0, 1, 2]
        assert np.array_equal(found, clip[order])


def test_other_orders_are_equally_likely_and_belong_to_the_item():
    orders = [tuple(shuffle_frames(f"item {number}", 3)) for number in range(3000)]
    counts = {order: orders.count(order) for order in set(orders)}
    assert (0, 1, 2) not in counts and len(counts) == 5
    assert all(abs(count - 600) < 4.5 * (3000 * 0.2 * 0.8) ** 0.5 for count in counts.values())
    assert orders[:50] == [tuple(shuffle_frames(f"item {number}", 3)) for number in range(50)]
    assert shuffle_frames("one", 1).tolist() == [0]


def test_the_papers_geometry_is_the_one_that_clips_go_through(data):
    """Stretched to 576 x 1024, centre-cropped to 224 px: what `static` clips of the paper's config would show."""
    test = build_test_data(InputKind("original_paper_geometry"), data, IMAGE, None)
    config = read_yaml(PROJECT / "Data_Augmentation_SVD/train3d_config.yaml")
    geometry = build_geometry(build_settings(GenerationSettings, config, "test", check_paths=False))
    wanted = [
        resize_and_centre_crop(geometry.restore(geometry.fit_image(image), *image.shape[:2]), 32)
        for image in images_of(data)
    ]
    assert np.array_equal(items(test)[:, 0], np.stack(wanted))
    assert test.index.item_ids == build_test_data(InputKind("original"), data, IMAGE, None).index.item_ids


def test_names_in_tables(data):
    names = ["original", "original_paper_geometry", "first_frame", "frame:1", "all_frames", "clip", "static"]
    names += ["shuffled", "reversed", "tta:3", "tta:2:first_frame"]
    tests = [build_test_data(parse_input(name, "clip"), data, CLIP, None) for name in names]
    assert [test.name for test in tests] == [
        *("original", "original_paper_geometry", "first_frame:static", "frame_1:static", "all_frames:static"),
        *("clip:static", "static:static", "shuffled:static", "reversed:static"),
        *("tta_3:clip:static", "tta_2:first_frame:static"),
    ]
    assert build_test_data(parse_input("tta:3", "original"), data, IMAGE, None).name == "tta_3:original"


def test_a_frame_that_no_clip_has_is_refused(data):
    with pytest.raises(InputError, match=r"frame:3: the clips of .*val.csv have 3 frames; the last is frame:2"):
        build_test_data(parse_input("frame:3", "clip"), data, IMAGE, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("first", "unknown input 'first'; known: original, original_paper_geometry, first_frame"),
        ("frame", "unknown input 'frame'"),
        ("frame:-1", "^input 'frame:-1': frame takes the number of one frame, from 0, as in frame:2$"),
        ("frame:x", "^input 'frame:x': frame takes the number of one frame, from 0, as in frame:2$"),
        ("frame:1:2", "^input 'frame:1:2': frame takes the number"),
        ("tta:0", "^input 'tta:0': tta takes 2 to 12 views, as in tta:3$"),
        ("tta:1", "tta takes 2 to 12 views"),
        ("tta:13", "tta takes 2 to 12 views"),
        ("tta:x", "tta takes 2 to 12 views"),
        ("tta:3:frame:x", "^input 'frame:x': frame takes the number"),
        ("tta:3:tta:2", "^input 'tta:3:tta:2': the views are of one base, as in tta:3:clip, not of other views$"),
        ("tta", "unknown input 'tta'"),
    ],
)
def test_inputs_that_are_none_are_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_input(text, "clip")


@pytest.mark.parametrize("value", ["frame:2", "frame: 2", {"frame": 2}])
def test_a_frame_can_be_written_as_yaml_has_it(value, tmp_path):
    (tmp_path / "w").write_text("")
    raw = {"name": "m", "type": "baseline", "checkpoint": str(tmp_path / "w"), "input": value}
    assert build_settings(ScoredModel, raw, "test").kind == InputKind("frame", 2)


class Recorder(nn.Module):
    """A linear network of the first pixel of each frame; remembers what it saw."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(num_inputs, 4, generator=generator)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(inputs.clone())
        return inputs[..., 0, 0].flatten(1) @ self.weight


def answer(test: TestData, form: InputFormat, network: nn.Module) -> np.ndarray:
    classifier = Classifier(network, form, RECIPE, is_fused=test.is_fused, num_views=test.num_views)
    pixels = test.open(None, 1)
    return classifier.probabilities(classifier.prepare(pixels.gather(range(len(pixels)))))


def test_late_fusion_is_the_mean_over_the_frames_and_reads_no_order(data):
    network = Recorder(3)
    tests = {name: build_test_data(parse_input(name, "clip"), data, IMAGE, None) for name in ("clip", "shuffled")}
    plain, shuffled = (answer(test, IMAGE, network) for test in tests.values())
    assert [tuple(seen.shape) for seen in network.seen] == [(6, 3, 32, 32)] * 6
    by_hand = torch.stack([network(seen) for seen in network.seen[:3]]).double().softmax(2).mean(0).numpy()
    assert np.allclose(plain, by_hand, rtol=0, atol=1e-15)
    assert np.array_equal(plain, shuffled), "an order-blind model must differ by exactly nothing"
    assert np.ptp(plain[:, 0]) > 1e-3


def test_a_network_of_clips_reads_the_order(data):
    network = Recorder(9)
    tests = {name: build_test_data(parse_input(name, "clip"), data, CLIP, None) for name in ("clip", "shuffled")}
    plain, shuffled = (answer(test, CLIP, network) for test in tests.values())
    assert [tuple(seen.shape) for seen in network.seen] == [(6, 3, 3, 32, 32)] * 2
    assert np.abs(plain - shuffled).max() > 1e-3


def test_all_frames_of_a_network_of_clips_are_three_clips_that_stand_still(data):
    network = Recorder(9)
    answer(build_test_data(parse_input("all_frames", "clip"), data, CLIP, None), CLIP, network)
    assert len(network.seen) == 3
    assert all(torch.equal(seen, seen[:, :, :1].expand_as(seen)) for seen in network.seen)


def test_views_are_what_they_are_called():
    inputs = torch.arange(2 * 3 * 2 * 16 * 16, dtype=torch.float32).reshape(2, 3, 2, 16, 16)
    views = [view(inputs) for view in build_views(12)]
    assert torch.equal(views[0], inputs) and torch.equal(views[1], inputs.flip(-1))
    crops = ((1, 1), (0, 0), (2, 2), (0, 2), (2, 0))  # 14 of 16 pixels
    for view, mirrored, (top, left) in zip(views[2:7], views[7:], crops, strict=True):
        part = inputs[:, :, 1, top : top + 14, left : left + 14]
        wanted = nn.functional.interpolate(part, (16, 16), mode="bilinear", align_corners=False)
        assert torch.equal(view[:, :, 1], wanted)
        assert torch.equal(mirrored, view.flip(-1))
    with pytest.raises(ValueError, match=r"1\.\.12, not 13"):
        build_views(13)


def test_test_time_augmentation_is_the_mean_over_views(data):
    network = Recorder(3)
    test = build_test_data(parse_input("tta:3", "original"), data, IMAGE, None)
    found = answer(test, IMAGE, network)
    assert len(network.seen) == 3 and torch.equal(network.seen[1], network.seen[0].flip(-1))
    by_hand = torch.stack([network(seen) for seen in network.seen[:3]]).double().softmax(2).mean(0).numpy()
    assert np.allclose(found, by_hand, rtol=0, atol=1e-15)


def test_the_number_of_passes(data):
    for name, form, passes in (("clip", IMAGE, 3), ("clip", CLIP, 1), ("all_frames", CLIP, 3), ("tta:4", CLIP, 4)):
        test = build_test_data(parse_input(name, "clip"), data, form, None)
        classifier = Classifier(nn.Identity(), form, RECIPE, is_fused=test.is_fused, num_views=test.num_views)
        assert classifier.num_passes(test.frame_order.shape[1]) == passes


def test_a_cache_gives_the_same_pixels(data, tmp_path: Path):
    test = build_test_data(parse_input("reversed", "clip"), data, CLIP, None)
    pixels = test.open(tmp_path / "cache", 1)
    assert np.array_equal(pixels.gather([0, 5]).permute(0, 2, 3, 4, 1).numpy(), items(test)[[0, 5]])
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1


class OrderReader(nn.Module):
    """Class 1 where the last frame is brighter than the first: nothing but the order tells."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        change = inputs[:, :, -1].mean(dim=(1, 2, 3)) - inputs[:, :, 0].mean(dim=(1, 2, 3))
        return torch.stack([-change, change], dim=1)


class OrderBlind(nn.Module):
    """Its logits are of the frames' mean."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([inputs[:, :, t].mean(dim=(1, 2, 3)).sign() for t in range(3)], dim=1).sort(dim=1).values


@pytest.fixture(scope="module")
def ramps(tmp_path_factory) -> DataSettings:
    """Clips that grow brighter (label 1) or darker (label 0)."""
    root = tmp_path_factory.mktemp("ramps")
    rows = []
    for number in range(60):
        levels = np.array([40, 120, 200], np.uint8)[:: 1 if number % 2 else -1] + number % 7
        frames = np.broadcast_to(levels[:, None, None, None], (3, 32, 32, 3))
        write_clip(root / "val" / f"{number:02d}.mp4", np.ascontiguousarray(frames))
        rows.append(f"{number:02d}.mp4,{number % 2}\n")
    (root / "val.csv").write_text("video_path,label\n" + "".join(rows))
    return DataSettings(root=root, num_frames=3)


@pytest.mark.parametrize(("network", "lowest", "highest"), [(OrderReader(), 0.2, 1.0), (OrderBlind(), 0.0, 0.0)])
def test_shuffling_costs_what_the_order_tells_and_nothing_else(ramps, network, lowest, highest):
    top1 = {}
    for name in ("clip", "shuffled"):
        test = build_test_data(parse_input(name, "clip"), ramps, CLIP, None)
        top1[name] = (answer(test, CLIP, network).argmax(axis=1) == np.array(test.index.labels)).mean()
    assert lowest <= top1["clip"] - top1["shuffled"] <= highest
    assert top1["clip"] == (1.0 if isinstance(network, OrderReader) else 0.5)
