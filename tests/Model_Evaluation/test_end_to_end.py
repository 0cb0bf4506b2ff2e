"""End-to-end latency: which stages there are, what they hand on, what their times are, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROJECT
from PIL import Image
from samples import random_image, write_image_set

from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipError
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Sourcing.image_set import read_image_set
from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
from Model_Evaluation import end_to_end
from Model_Evaluation.classifier import Classifier
from Model_Evaluation.costs import count_executed_macs
from Model_Evaluation.end_to_end import Deployment, measure_end_to_end, read_generation
from Model_Evaluation.latency import LatencyGuard, measure_peak
from Model_Evaluation.models import InputFormat
from utils.artifacts import END_TO_END_TIMES, read_table, write_table
from utils.clips import read_clip
from utils.errors import InputError
from utils.images import read_rgb_image, resize_and_centre_crop
from utils.learner import build_recipe
from utils.settings import IMAGENET_MEAN, IMAGENET_STD
from utils.sources import image_files

CPU = torch.device("cpu")
SIZE = 64
WITH_GENERATOR = ["read", "generate", "preprocess", "classify", "total"]
IN_MS = {"read": 2, "generate": 30, "preprocess": 4, "classify": 8}
GENERATORS: dict[str, dict[str, Any]] = {
    "static": {},
    "camera_motion": {},
    "camera_motion, 3 of 5 frames, the image first": {"native_frames": 5, "first_frame": "original"},
    "svd": {
        "diffusion_model": str(PROJECT / "Data_Augmentation_SVD" / "small_svd"),
        "svd": {"num_inference_steps": 3, "decode_chunk_size": 6},
    },
}


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("images"), per_class=2, size=48, splits=("val",))


def paths_of(images: Path) -> list[Path]:
    return read_image_set(images, "val").paths


def settings_of(images: Path, **keys: Any) -> GenerationSettings:
    given = {"frame_size": SIZE, "geometry": {"height": SIZE, "width": SIZE, "fit": "pad", "output": "undo"}}
    return read_generation(given | {"device": "cpu"} | keys, images)


def deploy(generation: GenerationSettings | None, **changes: Any) -> tuple[Deployment, list[torch.Tensor]]:
    """A deployment that only looks, and what it has seen: one uint8 tensor a batch."""
    seen: list[torch.Tensor] = []

    def prepare(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return pixels

    deployment = Deployment(
        generation=generation,
        image_size=SIZE,
        frame_order=range(1 if generation is None else generation.num_frames),
        prepare=prepare,
        classify=lambda inputs: inputs,
        device=CPU,
        executed_macs=0,
        guard=LatencyGuard(lambda: 1e12),
    )
    return replace(deployment, **changes), seen


def measure(deployment: Deployment, paths: list[Path], **changes: Any) -> list[dict[str, Any]]:
    given = {"run_id": "m", "precision": "fp32", "batch_sizes": (2,), "warmup": 1, "repetitions": 3}
    return measure_end_to_end(deployment, paths, **(given | changes))


@pytest.fixture
def gaps_allowed(monkeypatch) -> None:
    """For runs of which no time is looked at, on a machine that may be busy."""
    monkeypatch.setattr(end_to_end, "_MAX_GAP", 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# What is handed on


@pytest.mark.usefixtures("gaps_allowed")
@pytest.mark.parametrize("name", GENERATORS)
def test_the_network_sees_the_clips_of_the_generation_stage_byte_for_byte(images, tmp_path, name):
    """Of the first clip of each image, and, when the images begin again, of the second."""
    keys = GENERATORS[name] | {"generator": name.split(",")[0], "clips_per_image": 2, "batch_size": 2, "seed": 5}
    keys |= {"splits": ["val"], "codec": "h264_lossless", "max_failed_fraction": 1.0, "output_dir": str(tmp_path)}
    keys |= {"checks": {"min_source_correlation": -1, "max_saturated_fraction": 1, "min_contrast": 0}}
    settings = settings_of(images, **keys)
    deployment, seen = deploy(settings)
    with one_thread():
        run_generation(settings)
        measure(deployment, paths_of(images), warmup=1, repetitions=3)
    clips = [read_clip(tmp_path / "val" / f"{number:05d}.mp4") for number in range(8)]
    expected = [clips[2 * image + clip_number] for clip_number in (0, 1) for image in range(4)]
    found = torch.cat(seen).permute(0, 2, 3, 4, 1).numpy()  # (B, C, T, H, W) -> (B, T, H, W, C)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack(expected))
    if name != "static":
        assert len({clip.tobytes() for clip in found}) == 8, "generated anew for each"


@pytest.mark.usefixtures("gaps_allowed")
def test_without_a_generator_the_network_sees_what_training_has(images):
    deployment, seen = deploy(None, image_size=40)
    rows = measure(deployment, paths_of(images), warmup=0, repetitions=2)
    assert [row["stage"] for row in rows] == ["read", "preprocess", "classify", "total"] * 2
    assert {row["generator"] for row in rows} == {"none"}
    files = image_files(read_image_set(images, "val"), 40)
    expected = np.stack([files.read(position) for position in range(4)])  # (B, 1, H, W, C)
    np.testing.assert_array_equal(torch.cat(seen).permute(0, 2, 3, 4, 1).numpy(), expected)
    assert seen[0].stride(1) == 1, "channels side by side, for the fast normalisation"


@pytest.mark.usefixtures("gaps_allowed")
def test_a_still_image_may_go_through_the_papers_geometry(tmp_path):
    image = np.ascontiguousarray(random_image(3, 90)[:60])
    Image.fromarray(image).save(tmp_path / "wide.png")
    geometry = Geometry(height=576, width=1024, fit="stretch", output="centre_crop", frame_size=224)
    deployment, seen = deploy(None, still_geometry=geometry)
    measure(deployment, [tmp_path / "wide.png"], batch_sizes=(1,), warmup=0, repetitions=1)
    expected = resize_and_centre_crop(geometry.restore(geometry.fit_image(image), 60, 90), SIZE)
    np.testing.assert_array_equal(seen[0][0, :, 0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.usefixtures("gaps_allowed")
@pytest.mark.parametrize("order", [(0,), (2,), (2, 1, 0), (0, 0, 0), np.array([1, 2, 0])], ids=str)
def test_frames_come_in_the_order_asked_for_and_resized(images, order):
    settings = settings_of(images, generator="camera_motion")
    whole, plain = deploy(settings)
    part, ordered = deploy(settings, frame_order=order, image_size=32)
    for deployment in (whole, part):
        measure(deployment, paths_of(images), warmup=0, repetitions=1)
    clips = plain[0].permute(0, 2, 3, 4, 1).numpy()
    expected = np.stack([[resize_and_centre_crop(clip[t], 32) for t in order] for clip in clips])
    np.testing.assert_array_equal(ordered[0].permute(0, 2, 3, 4, 1).numpy(), expected)


def test_a_real_network_answers_for_digits_to_be(images, tmp_path):
    """Small SVD, then a 3-D VGG-11: on the real clock the stages sum to the total within 5 %."""
    network = build_vgg11_3d(2, classifier_width=8).eval()
    form = InputFormat(32, 3, IMAGENET_MEAN, IMAGENET_STD)
    classifier, answers = Classifier(network, form, build_recipe("cpu", "fp32")), []
    deployment, _ = deploy(
        settings_of(images, generator="svd", **GENERATORS["svd"]),
        image_size=32,
        prepare=classifier.prepare,
        classify=lambda inputs: answers.append(classifier.probabilities(inputs)),
        executed_macs=count_executed_macs(network, form.shape),
        guard=LatencyGuard(lambda: measure_peak(CPU, torch.float32)),
    )
    with one_thread():
        rows = measure(deployment, paths_of(images), batch_sizes=(1, 2), warmup=1, repetitions=3)
    assert [answer.shape for answer in answers] == [(1, 2)] * 4 + [(2, 2)] * 4
    np.testing.assert_allclose(np.concatenate(answers).sum(axis=1), 1)
    write_table(rows, tmp_path / "end_to_end_times.csv", END_TO_END_TIMES)
    table = read_table(tmp_path / "end_to_end_times.csv", END_TO_END_TIMES)
    times = table.pivot(index=["batch_size", "repetition"], columns="stage", values="stage_ms")
    assert list(times.index) == [(size, repetition) for size in (1, 2) for repetition in (1, 2, 3)]
    gaps = (1 - times[WITH_GENERATOR[:-1]].sum(axis=1) / times["total"]).abs()
    assert gaps.groupby("batch_size").median().max() < 0.05
    assert (times["generate"] > 0.5 * times["total"]).all()


# ---------------------------------------------------------------------------------------------------------------------
# What the times are: a clock that only work moves


class World:
    """A clock, and a device that takes work at once and has done it when it is waited for."""

    def __init__(self) -> None:
        self.now_s, self.free_s = 0.0, 0.0
        self.generated: list[tuple[bytes, int]] = []
        self.batch_sizes: list[tuple[int, str]] = []
        self.is_slow = 1

    def clock(self) -> float:
        return self.now_s

    def work(self, stage: str) -> None:
        """On the CPU: the clock moves."""
        self.now_s += self.is_slow * IN_MS[stage] * 1e-3

    def submit(self, stage: str) -> None:
        """On the device: the clock moves when it is waited for."""
        self.free_s = max(self.free_s, self.now_s) + self.is_slow * IN_MS[stage] * 1e-3

    def wait(self, device: torch.device) -> None:
        self.now_s = max(self.now_s, self.free_s)

    def build_generator(self, settings: GenerationSettings) -> Any:
        self.batch_sizes.append((settings.batch_size, settings.device))
        return SimpleNamespace(prepare=self._prepare, generate=self._generate, finish=self._finish)

    def _prepare(self, images: list[np.ndarray], seeds: list[int]) -> list[np.ndarray]:
        self.generated += [(image.tobytes(), seed) for image, seed in zip(images, seeds, strict=True)]
        return images

    def _generate(self, prepared: list[np.ndarray], should_stop: Any) -> Iterator[np.ndarray]:
        self.submit("generate")
        yield from prepared

    def _finish(self, draft: np.ndarray, image: np.ndarray) -> np.ndarray:
        assert draft is image
        return np.stack([image] * 3)


@pytest.fixture
def world(monkeypatch) -> World:
    world = World()

    def read(path: Path) -> np.ndarray:
        world.now_s += world.is_slow * IN_MS["read"] / 2 * 1e-3  # of a batch of two
        return read_rgb_image(path)

    monkeypatch.setattr(end_to_end, "read_rgb_image", read)
    monkeypatch.setattr(end_to_end, "synchronise", world.wait)
    monkeypatch.setitem(CLIP_GENERATORS, "camera_motion", world.build_generator)
    return world


def deploy_in(world: World, images: Path, **changes: Any) -> Deployment:
    given = {"prepare": lambda pixels: world.work("preprocess"), "classify": lambda _: world.submit("classify")}
    return deploy(settings_of(images, generator="camera_motion"), **(given | changes))[0]


def test_every_stage_has_its_own_time_also_on_a_device_of_its_own(world, images):
    rows = measure(deploy_in(world, images), paths_of(images), clock=world.clock)
    assert [row["repetition"] for row in rows] == [1] * 5 + [2] * 5 + [3] * 5
    expected = IN_MS | {"total": sum(IN_MS.values())}
    for first in (0, 5, 10):
        times = {row["stage"]: row["stage_ms"] for row in rows[first : first + 5]}
        assert list(times) == WITH_GENERATOR
        assert times == pytest.approx(expected)


def test_warm_up_is_left_out(world, images):
    deployment, calls = deploy_in(world, images), []

    def classify(_: Any) -> None:
        calls.append(world.is_slow)
        world.submit("classify")
        world.is_slow = 100 if len(calls) < 2 else 1

    world.is_slow = 100
    rows = measure(replace(deployment, classify=classify), paths_of(images), clock=world.clock, warmup=2)
    assert calls == [100, 100, 1, 1, 1]
    assert {round(row["stage_ms"], 6) for row in rows if row["stage"] == "total"} == {sum(IN_MS.values())}


def test_each_repetition_generates_anew_from_other_images(world, images):
    paths = paths_of(images)
    measure(deploy_in(world, images), paths, clock=world.clock, warmup=1, repetitions=3)
    pixels = [read_rgb_image(path).tobytes() for path in paths]
    assert [image for image, _ in world.generated] == pixels * 2
    assert len({seed for _, seed in world.generated}) == 8, "an image that comes again gets other noise"


def test_each_batch_size_has_a_generator_of_that_size(world, images):
    rows = measure(deploy_in(world, images), paths_of(images), batch_sizes=(4, 1), clock=world.clock)
    assert world.batch_sizes == [(4, "cpu"), (1, "cpu")]
    assert [row["batch_size"] for row in rows] == [4] * 15 + [1] * 15
    assert {(row["run_id"], row["generator"], row["precision"]) for row in rows} == {("m", "camera_motion", "fp32")}


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_stages_that_do_not_explain_the_total_are_refused(world, images):
    """A clock that moves with each reading, also between two stages: 1 ms of every 2 is nobody's."""

    def clock() -> float:
        world.now_s += 1e-3
        return world.now_s

    deployment = deploy_in(world, images, prepare=lambda _: None, classify=lambda _: None)
    with pytest.raises(InputError, match=r"camera_motion, batch 2: its stages leave [\d.]+% of the total unexplained"):
        measure(deployment, paths_of(images), clock=clock)


@pytest.mark.parametrize(("left_ms", "is_refused"), [(2.2, False), (2.4, True)])
def test_five_percent_may_be_left(left_ms, is_refused):
    """44 ms are the stages'; one odd repetition of three decides nothing."""
    timings = [IN_MS | {"total": 44 + left} for left in (left_ms, 500.0, left_ms)]
    if is_refused:
        with pytest.raises(InputError, match=r"^here: its stages leave 5.2% of the total unexplained, more than 5%"):
            end_to_end._require_sum(timings, "here")
    else:
        end_to_end._require_sum(timings, "here")


def test_without_synchronisation_the_classification_is_refused(world, images, monkeypatch):
    """4 GMac an item take 8 ms a batch of two at 2 TFLOP/s; not waited for, they take nothing."""
    deployment = deploy_in(world, images, executed_macs=4e9, guard=LatencyGuard(lambda: 2e12))
    rows = measure(deployment, paths_of(images), clock=world.clock)
    assert {round(row["stage_ms"], 6) for row in rows if row["stage"] == "classify"} == {8}
    monkeypatch.setattr(end_to_end, "synchronise", lambda device: None)
    with pytest.raises(
        InputError, match=r"batch 2, classify: 8 GMac in 0 ms are inf TFLOP/s, but the device reaches 2"
    ):
        measure(deployment, paths_of(images), clock=world.clock)


def test_an_image_without_a_clip_ends_the_measurement(world, images, monkeypatch):
    fault = ClipError("not finite: it returned NaN")
    monkeypatch.setattr(world, "_generate", lambda prepared, _: iter([prepared[0], fault]))
    with pytest.raises(InputError, match="image 2 of a batch gives no clip: not finite: it returned NaN"):
        measure(deploy_in(world, images), paths_of(images), clock=world.clock)


def test_a_damaged_image_is_named(images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad.png: not an image"):
        measure(deploy(None)[0], [tmp_path / "bad.png"], batch_sizes=(1,))


def test_frames_that_no_clip_has_are_refused_before_anything_runs(world, images):
    with pytest.raises(InputError, match=r"makes clips of 3 frames, but the model looks at frame 3 \(from 0\)"):
        measure(deploy_in(world, images, frame_order=(0, 3)), paths_of(images), clock=world.clock)
    with pytest.raises(InputError, match=r"makes no clips, but the model looks at frame 2"):
        measure(deploy(None, frame_order=(0, 1, 2))[0], paths_of(images))
    assert world.batch_sizes == []


def test_clips_are_generated_as_those_of_a_folder_were(images, tmp_path):
    own = settings_of(images, generator="static", output_dir=str(tmp_path / "clips"), splits=["val"], num_frames=5)
    run_generation(own)
    assert read_generation({}, images, tmp_path / "clips") == own
    changed = read_generation({"geometry": {"fit": "crop"}, "seed": 3}, images, tmp_path / "clips")
    assert changed == own.model_copy(update={"seed": 3, "geometry": own.geometry.model_copy(update={"fit": "crop"})})
    assert read_generation({"generator": "static"}, images, tmp_path).num_frames == 3, "no record: as by default"
    with pytest.raises(InputError, match=r"end_to_end.generation over .*config.yaml: .*geometry.fitt"):
        read_generation({"geometry": {"fitt": "crop"}}, images, tmp_path / "clips")
