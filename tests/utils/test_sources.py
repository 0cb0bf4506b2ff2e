"""Where items come from: every pixel says which image, clip and frame it is of, so that a wrong one is seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import CLASSES, write_clip_set
from small_training import Opened, open_training

from utils.artifacts import CLIP_INDEX, IMAGE_INDEX, read_table, write_table
from utils.batches import Batches
from utils.clips import write_clip
from utils.errors import InputError
from utils.files import sha256_file

NUM_CLIPS, NUM_FRAMES, PER_CLASS, SIZE = 3, 3, 5, 32
NUM_IMAGES = PER_CLASS * len(CLASSES)


@dataclass(frozen=True)
class World:
    """Images of one split numbered from 0, each with three clips; `NUM_IMAGES` more are the val split."""

    images: Path
    clips: Path

    def options(self, folder: Path, **options) -> dict:
        common = {"output_dir": folder / "run", "hold_out": {"fraction": 0.3}, "batch_size": 4}
        return {**common, "data_root": self.images, "clips_root": self.clips, **options}


def colour(image: int, clip: int = 0, frame: int = 0) -> tuple[int, int, int]:
    """Of a frame; clip 0 is the original image, clips count from 1, frames from 0."""
    return 10 * image + 5, 60 * clip + 20, 60 * frame + 20


def identify(rgb: np.ndarray) -> tuple[int, int, int]:
    """The inverse: image, clip, frame."""
    red, green, blue = (int(value) for value in rgb)
    return round((red - 5) / 10), round((green - 20) / 60), round((blue - 20) / 60)


def solid(*args: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), colour(*args), np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("world")
    found = World(root / "images", root / "clips")
    for offset, split in enumerate(("train", "val")):
        images, clips = [], []
        for position in range(NUM_IMAGES):
            number, label = offset * NUM_IMAGES + position, position // PER_CLASS
            wnid, name = CLASSES[label]
            common = {"label": label, "class_name": name, "wnid": wnid}
            path = found.images / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(solid(number)).save(path)
            images.append({"image_path": f"{split}/{path.name}", "sha256": sha256_file(path), **common})
            for clip in range(1, NUM_CLIPS + 1):
                clips.append(write_one_clip(found.clips / split, number, clip, images[-1]))
        write_table(images, found.images / f"{split}.csv", IMAGE_INDEX)
        write_table(clips, found.clips / f"{split}.csv", CLIP_INDEX)
    return found


def write_one_clip(folder: Path, image: int, clip: int, source: dict) -> dict:
    path = folder / f"{image}_{clip}.mp4"
    write_clip(path, np.stack([solid(image, clip, frame) for frame in range(NUM_FRAMES)]), codec="h264_lossless")
    return {
        **{key: source[key] for key in ("label", "class_name", "wnid")},
        **{"video_path": path.name, "source_path": source["image_path"], "source_sha256": source["sha256"]},
        **{"sha256": sha256_file(path), "generator": "static", "seed": 0, "num_frames": NUM_FRAMES},
        **{"height": SIZE, "width": SIZE, "status": "ok", "reason": "", "clip_number": clip - 1, "attempt": 0},
        **{"kept_frames": "0 1 2", "visible_fraction": 1.0},
    }


def seen(batches: Batches, epochs: int = 1, *, in_order: bool = False) -> list[tuple[int, int, int]]:
    """The image, clip and frame of every frame of every item; its label is that of the image."""
    found = []
    for epoch in range(1, epochs + 1):
        parts = batches.in_order() if in_order else (part for update in batches.epoch(epoch) for part in update)
        for part in parts:
            frames = part.inputs if part.inputs.dim() == 5 else part.inputs.unsqueeze(2)  # (B, 3, T, H, W)
            for item, label in zip(frames, part.target.tolist(), strict=True):
                own = [identify(item[:, t, SIZE // 2, SIZE // 2].numpy()) for t in range(item.shape[1])]
                assert {image % NUM_IMAGES // PER_CLASS for image, *_ in own} == {label}
                found += own
    return found


def images_of(frames: list[tuple[int, int, int]]) -> set[int]:
    return {image for image, *_ in frames}


def open_run(monkeypatch, world: World, folder: Path, network: str = "baseline", **options) -> Opened:
    options = world.options(folder, **options)
    if network == "inflated":
        options["data_root"] = options.pop("clips_root")
    return open_training(monkeypatch, network, **options)


# Each kind of input: (clip, frame) of what one image contributes to an epoch.
ALL = [(clip, frame) for clip in (1, 2, 3) for frame in (0, 1, 2)]
INPUTS = {
    "original": ("baseline", {"train_input": "original"}, [(0, 0)]),
    "first_frame": ("baseline", {"train_input": "first_frame"}, [(1, 0), (2, 0), (3, 0)]),
    "all_frames": ("baseline", {"train_input": "all_frames"}, ALL),
    "clips": ("inflated", {}, ALL),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_an_epoch_is_what_the_input_says(monkeypatch, world, tmp_path, kind):
    network, options, expected = INPUTS[kind]
    run = open_run(monkeypatch, world, tmp_path, network, **options)
    train, selection = seen(run.train), seen(run.selection, in_order=True)
    assert sorted(train) == sorted((image, *frame) for image in images_of(train) for frame in expected)
    assert sorted(selection) == sorted((image, *frame) for image in images_of(selection) for frame in expected)
    assert images_of(train) | images_of(selection) == set(range(NUM_IMAGES)), "of the training split, all and no more"
    assert not images_of(train) & images_of(selection)


def test_original_clips_and_frames_of_an_image_are_on_one_side_in_every_arm(monkeypatch, world, tmp_path):
    """The arms share `hold_out.csv` beside their folders; the first one draws it."""
    held = {}
    for kind, (network, options, _) in INPUTS.items():
        run = open_run(monkeypatch, world, tmp_path, network, output_dir=tmp_path / kind, **options)
        held[kind] = (images_of(seen(run.selection, in_order=True)), run.description.trained_on["hold_out_sha256"])
        assert run.description.selection_split == "hold_out"
        assert run.description.trained_on["is_paired"] is True
    assert len(held["original"][0]) == 4, "0.3 of five, of two classes"
    assert list(held.values()) == [held["original"]] * len(INPUTS)


@pytest.mark.parametrize("selection", ["hold_out", "val"])
@pytest.mark.parametrize("kind", INPUTS)
def test_what_chooses_the_epoch_is_the_hold_out_or_val(monkeypatch, world, tmp_path, kind, selection):
    network, options, expected = INPUTS[kind]
    run = open_run(monkeypatch, world, tmp_path, network, selection=selection, **options)
    found = images_of(seen(run.selection, in_order=True))
    assert found == set(range(NUM_IMAGES, 2 * NUM_IMAGES)) if selection == "val" else found < set(range(NUM_IMAGES))
    counts = {"split": selection, "num_items": len(found) * len(expected) // (3 if kind == "clips" else 1)}
    assert run.description.selected_on == counts
    assert (tmp_path / "hold_out.csv").exists() == (selection == "hold_out")


def mixed(monkeypatch, world: World, folder: Path, probability: float, **options) -> Opened:
    options = {"train_input": "mix", "mix_probability": probability, **options}
    return open_run(monkeypatch, world, folder, **options)


def test_mixing_with_probability_0_is_training_on_the_originals(monkeypatch, world, tmp_path):
    mix = mixed(monkeypatch, world, tmp_path, 0.0)
    plain = open_run(monkeypatch, world, tmp_path, output_dir=tmp_path / "plain")
    assert seen(mix.train, 3) == seen(plain.train, 3)
    assert {frame[1:] for frame in seen(mix.train, 3)} == {(0, 0)}


def test_mixing_with_probability_1_is_training_on_frames_of_the_same_images(monkeypatch, world, tmp_path):
    run = mixed(monkeypatch, world, tmp_path, 1.0)
    frames = seen(run.train, 30)
    assert {frame[1:] for frame in frames} == set(ALL)
    assert len(frames) == 30 * 6
    order = [int(item) for epoch in range(1, 31) for item in run.train.order(epoch)]
    assert [image for image, *_ in frames] == order, "a frame of another image was drawn"


def test_mixing_replaces_about_the_given_share_anew_each_epoch(monkeypatch, world, tmp_path):
    run = mixed(monkeypatch, world, tmp_path, 0.3)
    frames = seen(run.train, 200)
    share = np.mean([clip > 0 for _, clip, _ in frames])
    assert share == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / len(frames)) ** 0.5)  # five standard deviations
    assert seen(run.train, 2) == frames[:12], "the draw belongs to the epoch"


def test_no_clip_of_a_held_out_image_is_drawn_in_training(monkeypatch, world, tmp_path):
    run = mixed(monkeypatch, world, tmp_path, 0.7)
    held = images_of(seen(run.selection, in_order=True))
    assert len(held) == 4
    assert images_of(seen(run.train, 50)) == set(range(NUM_IMAGES)) - held


def test_a_mixed_run_is_chosen_by_originals(monkeypatch, world, tmp_path):
    """Else two looks at the same weights would give two scores, and the arms would not be compared on one input."""
    run = mixed(monkeypatch, world, tmp_path, 1.0)
    assert {frame[1:] for frame in seen(run.selection, in_order=True)} == {(0, 0)}


@pytest.mark.parametrize("known", [0, 1])
def test_clips_of_other_images_are_refused_and_images_without_clips_stay(monkeypatch, world, tmp_path, known):
    """`known`: how many images have clips."""
    table = read_table(world.clips / "train.csv", CLIP_INDEX)
    sources = list(dict.fromkeys(table["source_sha256"]))[:known]
    table["source_sha256"] = [
        sha if sha in sources else f"{position:064d}" for position, sha in enumerate(table["source_sha256"])
    ]
    write_table(table.to_dict("records"), tmp_path / "train.csv", CLIP_INDEX)
    options = {"train_csv": tmp_path / "train.csv", "selection": "val"}
    if not known:
        with pytest.raises(InputError, match=r"train\.csv: no clip names an image of .*as its source"):
            mixed(monkeypatch, world, tmp_path, 1.0, **options)
        return
    frames = seen(mixed(monkeypatch, world, tmp_path, 1.0, **options).train, 5)
    assert {image for image, clip, _ in frames if clip} == {0}
    assert images_of(frames) == set(range(NUM_IMAGES))


def test_clips_without_a_source_cannot_be_mixed(monkeypatch, world, tmp_path):
    clips = write_clip_set(tmp_path / "published", published=True)
    with pytest.raises(InputError, match="no clip names an image"):
        mixed(monkeypatch, world, tmp_path, 0.5, clips_root=clips)


@pytest.mark.parametrize(("network", "options"), [("inflated", {}), ("baseline", {"train_input": "all_frames"})])
def test_a_run_on_clips_without_a_source_is_marked_unpaired(monkeypatch, world, tmp_path, network, options):
    clips = write_clip_set(tmp_path / "published", published=True)
    run = open_run(monkeypatch, world, tmp_path, network, clips_root=clips, **options)
    assert run.description.selection_split == "hold_out_unpaired"
    assert run.description.selected_on["split"] == "hold_out_unpaired"
    assert run.description.trained_on["is_paired"] is False
    assert not {*run.train.positions.tolist()} & {*run.selection.positions.tolist()}


def test_paired_and_unpaired_runs_share_no_hold_out(monkeypatch, world, tmp_path):
    open_run(monkeypatch, world, tmp_path)
    clips = write_clip_set(tmp_path / "published", published=True)
    with pytest.raises(InputError, match=r"hold_out\.csv: is paired, but .* clips without a known source"):
        open_run(monkeypatch, world, tmp_path, "inflated", output_dir=tmp_path / "other", clips_root=clips)
