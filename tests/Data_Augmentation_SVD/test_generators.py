"""The controls without a network: no motion at all, and a camera that moves as far as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from generation_runs import rows_of, settings_for
from PIL import Image
from samples import write_image_set

from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, CameraMotionGenerator, ClipGenerator, StaticGenerator
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import GENERATORS, GenerationSettings
from utils.artifacts import IMAGE_INDEX, read_table, write_table
from utils.clips import read_clip
from utils.config import build_settings
from utils.errors import InputError
from utils.files import sha256_file

SEEDS = (0, 1, 2, 7, 123456789, 2**62 + 5)


def smooth_texture(seed: int, size: int = 64) -> np.ndarray:
    """uint8 (size, size, 3), grey: random blobs about 8 pixels wide, without a period or a border."""
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=(2 * size, 2 * size)))
    rows, columns = np.fft.fftfreq(2 * size)[:, None], np.fft.rfftfreq(2 * size)[None, :]
    blurred = np.fft.irfft2(noise * np.exp(-((rows**2 + columns**2) * (2 * np.pi * 2.5) ** 2) / 2))
    blurred = blurred[:size, :size] / blurred.std()
    return (127.5 + 40 * blurred).clip(0, 255).round().astype(np.uint8)[..., None].repeat(3, axis=2)


def measured_shift_px(before: np.ndarray, after: np.ndarray, reach_px: int = 6) -> tuple[float, float]:
    """How far the content moved right and down: the whole-pixel shift that fits best, then the vertex of a parabola.

    The frames' centres are compared by the sum of squared differences, so that borders play no part.
    """
    before, after = (frame[..., 0].astype(float) for frame in (before, after))
    inner = slice(reach_px + 1, -reach_px - 1)
    shifts = range(-reach_px, reach_px + 1)
    costs = np.array(
        [[((np.roll(before, (dy, dx), (0, 1)) - after)[inner, inner] ** 2).mean() for dx in shifts] for dy in shifts]
    )
    y, x = np.unravel_index(np.argmin(costs), costs.shape)
    vertex_x, vertex_y = parabola_vertex(costs[y, x - 1 : x + 2]), parabola_vertex(costs[y - 1 : y + 2, x])
    return shifts[x] + vertex_x, shifts[y] + vertex_y


def parabola_vertex(costs: np.ndarray) -> float:
    left, middle, right = costs
    return float((left - right) / (2 * (left - 2 * middle + right)))


def geometry(frame_size: int = 64, **keys) -> Geometry:
    """A working size of 64 x 64 that loses nothing of a square image; at frame size 64 nothing is scaled, either."""
    return Geometry(**({"height": 64, "width": 64, "fit": "pad", "output": "undo", "frame_size": frame_size} | keys))


def camera(frame_size: int = 64, **keys) -> CameraMotionGenerator:
    return CameraMotionGenerator(
        geometry=geometry(frame_size), **({"num_frames": 3, "shift_fraction": 0.03, "zoom_per_frame": 1.03} | keys)
    )


def static(frame_size: int = 64, num_frames: int = 3) -> StaticGenerator:
    return StaticGenerator(num_frames=num_frames, geometry=geometry(frame_size))


def make_clip(generator: ClipGenerator, image: np.ndarray, seed: int = 0) -> np.ndarray:
    """All three steps for one image."""
    (draft,) = generator.generate(generator.prepare([image], [seed]), lambda: False)
    return generator.finish(draft, image)


def test_the_ruler_of_these_tests_measures_a_known_shift():
    texture = smooth_texture(3, 128)
    for dx, dy in ((0, 0), (3, -2), (-4, 5)):
        shifted = np.roll(texture, (dy, dx), (0, 1))[32:96, 32:96]
        assert measured_shift_px(texture[32:96, 32:96], shifted) == pytest.approx((dx, dy), abs=0.02)


# --- static ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 3, 8])
def test_a_static_clip_is_the_image_over_and_over(num_frames):
    image = smooth_texture(1)
    clip = make_clip(static(num_frames=num_frames), image, seed=5)
    assert (clip.shape, clip.dtype) == ((num_frames, 64, 64, 3), np.uint8)
    assert all(np.array_equal(frame, image) for frame in clip)


@pytest.mark.parametrize("build", [static, camera], ids=["static", "camera_motion"])
@pytest.mark.parametrize("shape", [(48, 90), (90, 48), (20, 20)])
def test_another_size_passes_through_the_geometry(build, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    clip = make_clip(build(frame_size=48), image)
    assert clip.shape == (3, 48, 48, 3)
    np.testing.assert_array_equal(clip[0], geometry(48).view(image))


# --- camera motion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_frame_of_a_camera_clip_is_the_image_and_no_other_frame_is(seed):
    image = smooth_texture(2)
    clip = make_clip(camera(), image, seed)
    assert (clip.shape, clip.dtype) == ((3, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(clip[0], image)
    assert all(np.abs(frame.astype(int) - image).mean() > 1 for frame in clip[1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_content_moves_as_far_as_displacement_px_says(seed):
    moving = camera(zoom_per_frame=1.0)
    clip = make_clip(moving, smooth_texture(seed % 1000), seed)
    dx, dy = moving.displacement_px(seed)
    for t in (1, 2):
        assert measured_shift_px(clip[0], clip[t]) == pytest.approx((t * dx, t * dy), abs=0.25)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_displacement_has_the_configured_length(seed):
    assert np.hypot(*camera().displacement_px(seed)) == pytest.approx(0.03 * 64)
    assert np.hypot(*camera(shift_fraction=0.1, frame_size=224).displacement_px(seed)) == pytest.approx(22.4)


def test_directions_cover_the_circle():
    moves = [camera().displacement_px(seed) for seed in range(200)]
    quadrants = {(dx > 0, dy > 0) for dx, dy in moves}
    assert len(quadrants) == 4
    assert np.hypot(*np.mean(moves, axis=0)) < 0.2 * 0.03 * 64


@pytest.mark.parametrize("zoom", [1.1, 1.25, 0.8])
def test_zoom_magnifies_around_the_centre(zoom):
    image = np.zeros((64, 64, 3), np.uint8)
    image[22:42, 22:42] = 255  # a centred square, 20 pixels wide
    clip = make_clip(camera(shift_fraction=0.0, zoom_per_frame=zoom), image)
    for t in (0, 1, 2):
        bright = clip[t, ..., 0] / 255
        assert bright[32].sum() == pytest.approx(20 * zoom**t, abs=0.5)  # width
        assert bright[:, 32].sum() == pytest.approx(20 * zoom**t, abs=0.5)  # height
        weights = bright.sum(axis=0)
        assert (weights * (np.arange(64) + 0.5)).sum() / weights.sum() == pytest.approx(32, abs=0.1)


@pytest.mark.parametrize(
    ("shift_fraction", "zoom_per_frame", "num_frames"),
    [(0.25, 1.0, 3), (0.25, 1.99, 3), (0.25, 0.51, 3), (0.25, 1.03, 16), (0.1, 0.9, 14), (0.25, 0.8, 8)],
)
def test_beyond_the_border_the_borders_pixels_repeat(shift_fraction, zoom_per_frame, num_frames):
    grey = np.full((32, 32, 3), 200, np.uint8)
    moving = camera(num_frames=num_frames, frame_size=32, shift_fraction=shift_fraction, zoom_per_frame=zoom_per_frame)
    for seed in range(4):
        assert np.unique(make_clip(moving, grey, seed)).tolist() == [200]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_direction():
    image, moving = smooth_texture(4), camera()
    assert make_clip(moving, image, 11).tobytes() == make_clip(camera(), image, 11).tobytes()
    assert make_clip(moving, image, 11).tobytes() != make_clip(moving, image, 12).tobytes()
    assert moving.displacement_px(11) != pytest.approx(moving.displacement_px(12))


def test_neither_shift_nor_zoom_is_a_static_clip():
    still = camera(shift_fraction=0.0, zoom_per_frame=1.0)
    clip = make_clip(still, smooth_texture(5), seed=3)
    assert not still.expects_motion
    assert all(np.array_equal(frame, clip[0]) for frame in clip)


# --- the registry ----------------------------------------------------------------------------------------------------


def test_the_registry_has_the_names_that_the_settings_know():
    assert set(CLIP_GENERATORS) == set(GENERATORS)


@pytest.mark.parametrize("name", ["static", "camera_motion"])
def test_a_generator_is_built_with_the_settings_sizes(tmp_path, name):
    content = {"data_root": str(tmp_path), "generator": name, "num_frames": 5, "frame_size": 48}
    settings = build_settings(GenerationSettings, content, "test")
    assert make_clip(CLIP_GENERATORS[name](settings), smooth_texture(0)).shape == (5, 48, 48, 3)


def test_the_camera_takes_its_motion_from_the_settings(tmp_path):
    motion = {"shift_fraction": 0.2, "zoom_per_frame": 1.0}
    content = {"data_root": str(tmp_path), "generator": "camera_motion", "frame_size": 100, "camera_motion": motion}
    built = CLIP_GENERATORS["camera_motion"](build_settings(GenerationSettings, content, "test"))
    assert np.hypot(*built.displacement_px(0)) == pytest.approx(20)


def test_an_unknown_generator_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="unknown generator 'svd2'; known: camera_motion, static, svd"):
        build_settings(GenerationSettings, {"data_root": str(tmp_path), "generator": "svd2"}, "test")


# --- the protocol ----------------------------------------------------------------------------------------------------


def registered(tmp_path: Path, name: str, **keys) -> ClipGenerator:
    content = {"data_root": str(tmp_path), "generator": name, "frame_size": 48} | keys
    return CLIP_GENERATORS[name](build_settings(GenerationSettings, content, "test"))


@pytest.mark.parametrize("name", ["static", "camera_motion"])
def test_a_chunk_gives_a_draft_an_image_in_order(tmp_path, name):
    generator, seeds = registered(tmp_path, name), [5, 3, 2**62, 3]
    images = [smooth_texture(number, 64 + 8 * number) for number in range(4)]
    drafts = list(generator.generate(generator.prepare(images, seeds), lambda: False))
    together = [generator.finish(draft, image) for draft, image in zip(drafts, images, strict=True)]
    alone = [make_clip(generator, image, seed) for image, seed in zip(images, seeds, strict=True)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", ["static", "camera_motion"])
def test_a_generator_asked_to_stop_makes_no_further_draft(tmp_path, name):
    generator, answers = registered(tmp_path, name), iter([False, False, True])
    prepared = generator.prepare([smooth_texture(0)] * 9, list(range(9)))
    assert len(list(generator.generate(prepared, lambda: next(answers)))) == 2


@pytest.mark.parametrize("name", ["static", "camera_motion"])
def test_a_control_makes_the_native_frames_of_which_some_are_kept(tmp_path, name):
    native = registered(tmp_path, name, num_frames=3, native_frames=9)
    assert make_clip(native, smooth_texture(0)).shape == (9, 48, 48, 3)


def test_which_controls_must_move(tmp_path):
    assert not registered(tmp_path, "static").expects_motion
    assert registered(tmp_path, "camera_motion").expects_motion
    assert not registered(tmp_path, "camera_motion", num_frames=1).expects_motion


@pytest.mark.parametrize(("fit", "output"), [("pad", "undo"), ("crop", "undo"), ("stretch", "centre_crop")])
@pytest.mark.parametrize("name", ["static", "camera_motion"])
def test_frame_0_of_a_control_is_what_the_runs_geometry_shows(tmp_path, name, fit, output):
    size = {"height": 64, "width": 128}
    generator = registered(tmp_path, name, geometry=size | {"fit": fit, "output": output})
    image = smooth_texture(6, 80)[:, 10:70]
    view = geometry(48, fit=fit, output=output, **size).view(image)
    np.testing.assert_array_equal(make_clip(generator, image)[0], view)


@pytest.mark.parametrize(("native_frames", "step"), [(3, 1), (5, 2)])
def test_saved_clips_move_as_their_rows_seed_says(tmp_path, native_frames, step):
    """Through the whole stage: two clips of one image, measured in the decoded files."""
    images = write_image_set(tmp_path / "images", per_class=1, splits=("train",))
    table = read_table(images / "train.csv", IMAGE_INDEX)
    for number, name in enumerate(table["image_path"]):
        Image.fromarray(smooth_texture(number)).save(images / name)
    table["sha256"] = [sha256_file(images / name) for name in table["image_path"]]
    write_table(table, images / "train.csv", IMAGE_INDEX)
    motion = {"shift_fraction": 0.025, "zoom_per_frame": 1.0}
    sizes = {"frame_size": 64, "native_frames": native_frames, "clips_per_image": 2, "codec": "h264_lossless"}
    run_generation(settings_for(images, tmp_path / "out", splits=["train"], camera_motion=motion, **sizes))
    moving = camera(**motion)
    for row in rows_of(tmp_path / "out"):
        clip = read_clip(tmp_path / "out/train" / row["video_path"], 3)
        dx, dy = moving.displacement_px(row["seed"])
        for t in (1, 2):
            measured = measured_shift_px(clip[0], clip[t], reach_px=9)
            assert measured == pytest.approx((t * step * dx, t * step * dy), abs=0.3)


def test_the_controls_and_their_stage_load_no_torch():
    program = "import sys, Data_Augmentation_SVD.generation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
