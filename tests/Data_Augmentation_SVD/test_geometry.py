"""Geometry: nothing is bent where it should not be, what is cropped is told, and the paper's geometry is recognised."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from published_clips import list_published_clips
from samples import random_image

from Data_Augmentation_SVD.clip_metrics import compute_psnr_db
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import GeometrySettings

FRAME = 224
WORKING_SIZES = ((576, 1024), (1024, 576), (320, 320), (128, 512))
SOURCE_SIZES = ((64, 64), (64, 128), (128, 64), (300, 400), (97, 61))
FITS, OUTPUTS = ("pad", "crop", "stretch"), ("undo", "centre_crop")
PAPER = Geometry(576, 1024, "stretch", "centre_crop", FRAME)


def disc(height: int, width: int) -> np.ndarray:
    """A white disc in the centre, a fifth of the shorter side wide: visible whatever is cropped at 4:1."""
    y, x = np.mgrid[:height, :width] + 0.5
    radius = min(height, width) / 10
    inside = np.clip(radius - np.hypot(y - height / 2, x - width / 2) + 0.5, 0, 1)  # one pixel of soft edge
    return np.repeat((inside * 255).astype(np.uint8)[..., None], 3, axis=-1)


def aspect_ratio(frame: np.ndarray) -> float:
    """Width by height of what is bright, from its second moments."""
    weights = frame[..., 0].astype(float)
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    return spread(x, weights) / spread(y, weights)


def spread(positions: np.ndarray, weights: np.ndarray) -> float:
    mean = np.average(positions, weights=weights)
    return float(np.sqrt(np.average((positions - mean) ** 2, weights=weights)))


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose red is the share of the way across, and whose green that of the way down."""
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width]).reshape(2, 1, 1)
    return np.stack([x * 255, y * 255, 0 * x], axis=-1).round().astype(np.uint8)


def seen_fraction(geometry: Geometry, height: int, width: int) -> float:
    """The share of an image's area whose coordinates are in the view."""
    view = geometry.view(coordinates(height, width)).astype(float)
    across, down = (view[..., channel].max() - view[..., channel].min() for channel in (0, 1))
    return across * down / 255**2


# --- proportions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("working", WORKING_SIZES)
@pytest.mark.parametrize("size", [(224, 224), (240, 480), (480, 240), (300, 400)])
@pytest.mark.parametrize(
    ("fit", "output"), [("pad", "undo"), ("stretch", "undo"), ("crop", "undo"), ("crop", "centre_crop")]
)
def test_a_circle_stays_a_circle(working, size, fit, output):
    view = Geometry(*working, fit, output, FRAME).view(disc(*size))
    assert view.shape == (FRAME, FRAME, 3) and view.dtype == np.uint8
    assert aspect_ratio(view) == pytest.approx(1, abs=0.02)


def test_pad_alone_keeps_a_circle_in_the_working_frame_too():
    assert aspect_ratio(Geometry(576, 1024, "pad", "undo", FRAME).fit_image(disc(200, 300))) == pytest.approx(
        1, abs=0.02
    )


def test_the_papers_geometry_makes_an_ellipse():
    assert aspect_ratio(PAPER.view(disc(200, 200))) == pytest.approx(1024 / 576, rel=0.02)
    assert aspect_ratio(Geometry(1024, 576, "stretch", "centre_crop", FRAME).view(disc(200, 200))) == pytest.approx(
        576 / 1024, rel=0.02
    )


def test_a_circle_stays_in_the_centre():
    for fit, output, working in itertools.product(FITS, OUTPUTS, WORKING_SIZES):
        view = Geometry(*working, fit, output, FRAME).view(disc(210, 180))[..., 0].astype(float)
        y, x = np.mgrid[:FRAME, :FRAME]
        middle = (FRAME - 1) / 2
        assert np.average(x, weights=view) == pytest.approx(middle, abs=1.0)
        assert np.average(y, weights=view) == pytest.approx(middle, abs=1.0)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_square_source_at_a_square_working_size_is_left_alone(fit, output):
    image = random_image(0, FRAME)
    assert (Geometry(FRAME, FRAME, fit, output, FRAME).view(image) == image).all()


@pytest.mark.parametrize("working", WORKING_SIZES)
@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_undo_gives_a_square_source_back(working, fit):
    image = disc(FRAME, FRAME)
    assert compute_psnr_db(Geometry(*working, fit, "undo", FRAME).view(image), image) > 30


def test_padding_repeats_the_border():
    image = np.zeros((10, 10, 3), dtype=np.uint8)
    image[:, :3], image[:, -3:] = 100, 200
    fitted = Geometry(64, 128, "pad", "undo", FRAME).fit_image(image)
    assert (fitted[:, :32] == fitted[:, 32:33]).all() and (fitted[:, 96:] == fitted[:, 95:96]).all()
    assert fitted[0, 0, 0] == 100 and fitted[0, -1, 0] == 200


# --- what is seen -----------------------------------------------------------------------------------------------------

VISIBLE = {
    "square source, pad, undo": (("pad", "undo"), (576, 1024), (64, 64), 1.0),
    "square source, stretch, undo": (("stretch", "undo"), (576, 1024), (64, 64), 1.0),
    "the paper": (("stretch", "centre_crop"), (576, 1024), (64, 64), 0.5625),
    "the paper, upright": (("stretch", "centre_crop"), (1024, 576), (64, 64), 0.5625),
    "2:1 source, pad, undo": (("pad", "undo"), (576, 1024), (64, 128), 0.5),
    "1:2 source, stretch, undo": (("stretch", "undo"), (576, 1024), (128, 64), 0.5),
    "square source, pad, centre_crop": (("pad", "centre_crop"), (576, 1024), (64, 64), 1.0),
    "16:9 source, pad, centre_crop": (("pad", "centre_crop"), (576, 1024), (576, 1024), 0.5625),
    "square source, crop": (("crop", "undo"), (576, 1024), (64, 64), 0.5625**2),
    "16:9 source, crop": (("crop", "centre_crop"), (576, 1024), (576, 1024), 0.5625),
    "2:1 source, crop to a square": (("crop", "undo"), (512, 512), (64, 128), 0.5),
    "2:1 source, stretched to a square": (("stretch", "centre_crop"), (512, 512), (64, 128), 1.0),
}


@pytest.mark.parametrize(("modes", "working", "size", "expected"), VISIBLE.values(), ids=VISIBLE)
def test_visible_fraction(modes, working, size, expected):
    assert Geometry(*working, *modes, FRAME).visible_fraction(*size) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("working", WORKING_SIZES)
@pytest.mark.parametrize("modes", itertools.product(FITS, OUTPUTS), ids="-".join)
def test_visible_fraction_is_what_is_seen(working, modes):
    geometry = Geometry(*working, *modes, FRAME)
    for size in SOURCE_SIZES:
        # Interpolation blurs the outermost pixels of a small source: up to 5 % of the area.
        assert geometry.visible_fraction(*size) == pytest.approx(seen_fraction(geometry, *size), abs=0.05)


# --- odd images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (2, 4001), (17, 1)])
@pytest.mark.parametrize("modes", itertools.product(FITS, OUTPUTS), ids="-".join)
def test_extreme_images_do_not_crash(size, modes):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for height, width in ((64, 64), (576, 1024), (128, 64)):
        geometry = Geometry(height, width, *modes, 32)
        fitted = geometry.fit_image(image)
        assert fitted.shape == (height, width, 3) and fitted.dtype == np.uint8
        assert geometry.restore(fitted, *size).shape == (32, 32, 3)
        assert 0 < geometry.visible_fraction(*size) <= 1


def test_one_colour_stays_one_colour():
    image = np.full((50, 70, 3), (10, 200, 90), dtype=np.uint8)
    for fit, output, working in itertools.product(FITS, OUTPUTS, WORKING_SIZES):
        assert (Geometry(*working, fit, output, FRAME).view(image) == (10, 200, 90)).all()


def test_geometry_takes_the_settings_as_they_are():
    assert Geometry(**GeometrySettings().model_dump(), frame_size=FRAME) == PAPER


# --- the published clips ----------------------------------------------------------------------------------------------


def psnr_of_first_frames(real_data: Path, step: int) -> tuple[np.ndarray, np.ndarray]:
    """PSNR of the paper's geometry, and of one that distorts nothing, against frame 0."""
    undistorted = Geometry(576, 1024, "pad", "undo", FRAME)
    pairs = [(clip.read_source(), clip.read_frames()[0]) for clip in list_published_clips(real_data, step)]
    paper, other = (
        np.array([compute_psnr_db(geometry.view(source), frame) for source, frame in pairs])
        for geometry in (PAPER, undistorted)
    )
    return paper, other


def test_published_clips_were_stretched_and_cropped(real_data):
    paper, undistorted = psnr_of_first_frames(real_data, step=10)
    assert len(paper) == 50
    assert (paper > undistorted).mean() >= 0.96
    assert paper.mean() == pytest.approx(22, abs=1.5)
    assert undistorted.mean() == pytest.approx(13.7, abs=1.0)


@pytest.mark.exhaustive
def test_all_published_val_clips_were_stretched_and_cropped(real_data):
    paper, undistorted = psnr_of_first_frames(real_data, step=1)
    assert (paper > undistorted).mean() >= 0.98
    assert paper[:150].mean() == pytest.approx(22.6, abs=0.5)
    assert undistorted[:150].mean() == pytest.approx(13.8, abs=0.5)
