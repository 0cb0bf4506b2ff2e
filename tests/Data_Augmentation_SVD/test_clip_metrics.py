"""Clip metrics: known values, identities, and the figures of the published val clips."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from generation_runs import smooth_image
from PIL import Image
from published_clips import list_published_clips
from samples import random_image

from Data_Augmentation_SVD.clip_metrics import (
    compute_brightness,
    compute_contrast,
    compute_correlation,
    compute_differences,
    compute_flow_px,
    compute_gradient_energy,
    compute_psnr_db,
    compute_saturated_fraction,
    compute_ssim,
)


def grey(values: np.ndarray) -> np.ndarray:
    """(..., H, W) -> uint8 (..., H, W, 3) with equal channels."""
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=-1)


def photograph(seed: int, size: int = 260) -> np.ndarray:
    """uint8 (size, size, 3): structure of about a tenth of the side, as a photograph has."""
    return smooth_image(seed, size, size, cells=26)


def shifted_clip(image: np.ndarray, shifts: list[tuple[int, int]], side: int = 224) -> np.ndarray:
    """Windows of an image at (dy, dx) from its centre."""
    middle = (image.shape[0] - side) // 2
    return np.stack([image[middle + dy :, middle + dx :][:side, :side] for dy, dx in shifts])


# --- likeness ---------------------------------------------------------------------------------------------------------


def test_brightness_is_itu_r_601():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    assert compute_brightness(colours)[0] == pytest.approx([76.245, 149.685, 29.07, 255.0], abs=1e-3)


@pytest.mark.parametrize("error", [1, 16, 255])
def test_psnr_of_a_known_error(error):
    dark = np.zeros((8, 8, 3), dtype=np.uint8)
    assert compute_psnr_db(dark, dark + np.uint8(error)) == pytest.approx(20 * math.log10(255 / error), abs=1e-6)


def test_psnr_of_known_noise():
    noise = np.random.default_rng(0).normal(0, 10, (224, 224, 3)).round()
    image = np.full((224, 224, 3), 128, dtype=np.uint8)
    # sd 10 and rounding's 1/12: 10 log10(255^2 / 100.08)
    assert compute_psnr_db(image, (image + noise).astype(np.uint8)) == pytest.approx(28.13, abs=0.05)


def test_psnr_of_a_clip_is_that_of_all_its_pixels():
    first, second = np.zeros((2, 3, 8, 8, 3), dtype=np.uint8)
    second[2] = 30  # one frame of three: 30^2 / 3
    assert compute_psnr_db(first, second) == pytest.approx(10 * math.log10(255**2 / 300), abs=1e-6)
    assert compute_psnr_db(first, first) == math.inf


def test_equal_images():
    image = random_image(0, 32)
    assert compute_psnr_db(image, image) == math.inf
    assert compute_ssim(image, image) == pytest.approx(1)
    assert compute_correlation(image, image) == pytest.approx(1)


def test_ssim_of_flat_images_is_its_brightness_term():
    dark, light = (np.full((16, 16, 3), value, dtype=np.uint8) for value in (50, 100))
    constant = (0.01 * 255) ** 2
    expected = (2 * 50 * 100 + constant) / (50**2 + 100**2 + constant)
    assert compute_ssim(dark, light) == pytest.approx(expected, abs=1e-5)


def test_ssim_falls_with_noise_and_is_symmetric():
    image = photograph(1, 64)
    rng = np.random.default_rng(0)
    noisy = [np.clip(image + rng.normal(0, sd, image.shape), 0, 255).astype(np.uint8) for sd in (5, 20, 80)]
    values = [compute_ssim(image, other) for other in noisy]
    assert 1 > values[0] > values[1] > values[2] > 0
    assert compute_ssim(noisy[1], image) == pytest.approx(values[1], abs=1e-6)


def test_correlation_knows_sign_and_ignores_brightness_and_contrast():
    image = photograph(2, 64)
    assert compute_correlation(image, 255 - image) == pytest.approx(-1, abs=1e-5)
    assert compute_correlation(image, image // 2 + 60) == pytest.approx(1, abs=1e-3)


def test_correlation_agrees_with_numpy():
    one, two = photograph(3, 50), photograph(4, 50)
    expected = np.corrcoef(compute_brightness(one).ravel(), compute_brightness(two).ravel())[0, 1]
    assert compute_correlation(one, two) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("value", [0, 1, 77, 200, 255])
def test_one_colour_has_no_correlation(value):
    flat = np.full((224, 224, 3), value, dtype=np.uint8)
    assert math.isnan(compute_correlation(flat, random_image(0, 224)))
    assert math.isnan(compute_correlation(random_image(0, 224), flat))


def test_noise_does_not_correlate():
    image = photograph(5, 224)
    assert max(abs(compute_correlation(random_image(seed, 224), image)) for seed in range(20)) < 0.02


# --- frames -----------------------------------------------------------------------------------------------------------


def test_gradient_energy_of_ramps():
    row = np.arange(0, 96, 3)  # 3 grey levels a pixel
    across = np.tile(row, (32, 1))
    clip = grey(np.stack([across, across.T, across + across.T, np.full((32, 32), 9)]))
    assert compute_gradient_energy(clip) == pytest.approx([3, 3, 6, 0], abs=1e-4)


def test_gradient_energy_of_a_chequerboard():
    board = (np.indices((16, 16)).sum(axis=0) % 2) * 10
    assert compute_gradient_energy(grey(board[None])) == pytest.approx([20], abs=1e-4)


def test_saturated_fraction_counts_both_ends():
    frame = np.full((10, 10, 3), 128, dtype=np.uint8)
    frame[:2], frame[5, :, 0] = 0, 255
    almost = np.full((10, 10, 3), 254, dtype=np.uint8)
    almost[::2] = 1
    clip = np.stack([frame, almost, np.zeros_like(frame), np.full_like(frame, 255)])
    assert compute_saturated_fraction(clip).tolist() == pytest.approx([70 / 300, 0, 1, 1])
    assert compute_saturated_fraction(frame) == pytest.approx(70 / 300)


def test_contrast_is_the_deviation_of_the_brightness():
    halves = np.zeros((8, 8), dtype=np.uint8)
    halves[:, 4:] = 100
    assert compute_contrast(grey(np.stack([halves, np.full((8, 8), 90)]))) == pytest.approx([50, 0], abs=1e-4)


def test_differences_are_absolute_and_do_not_wrap():
    frames = np.stack([np.full((4, 4, 3), value, dtype=np.uint8) for value in (0, 255, 250, 251)])
    assert compute_differences(frames).tolist() == [255, 5, 1]
    assert compute_differences(frames[:1]).size == 0


def test_differences_see_a_change_of_colour_alone():
    red, green = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    red[..., 0], green[..., 1] = 90, 90
    assert compute_differences(np.stack([red, green])) == pytest.approx([60])


# --- flow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (3, -4), (0, 8), (-6, 8), (12, 0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flow_of_a_known_shift(shift, seed):
    clip = shifted_clip(photograph(seed), [(0, 0), shift])
    assert compute_flow_px(clip) == pytest.approx([math.hypot(*shift)], rel=0.1, abs=0.1)


def test_flow_scales_with_the_frame():
    image = photograph(6)
    small = shifted_clip(image, [(0, 0), (2, 2)])
    large = np.stack([np.asarray(Image.fromarray(frame).resize((448, 448))) for frame in small])
    assert compute_flow_px(large)[0] == pytest.approx(2 * compute_flow_px(small)[0], rel=0.05)


def test_standing_still_and_a_change_of_contrast_are_no_flow():
    image = photograph(7, 224)
    clip = np.stack([image, image, image // 2 + 40])
    assert compute_flow_px(clip) == pytest.approx([0, 0], abs=0.05)


def test_flow_is_measured_for_each_pair_and_any_proportions():
    image = photograph(8)
    clip = shifted_clip(image, [(0, 0), (0, 0), (4, 0)])[:, :, :150]
    assert compute_flow_px(clip) == pytest.approx([0, 4], abs=0.4)


def test_flow_of_one_colour_is_unknown_and_small_frames_do_not_crash():
    flat = np.full((2, 64, 64, 3), 30, dtype=np.uint8)
    assert np.isnan(compute_flow_px(flat)).all()
    assert np.isfinite(compute_flow_px(np.stack([random_image(0, 4), random_image(1, 4)]))).all()
    assert compute_flow_px(flat[:1]).size == 0


def test_flow_is_quick():
    clip = shifted_clip(photograph(9), [(0, 0), (2, 3), (4, 6)])
    compute_flow_px(clip)  # the first call imports
    seconds = []
    for _ in range(5):
        started_s = time.process_time()
        compute_flow_px(clip)
        seconds.append(time.process_time() - started_s)
    assert min(seconds) < 0.1


# --- the published clips ----------------------------------------------------------------------------------------------


def published_val_clips(real_data: Path, step: int = 1) -> list[np.ndarray]:
    return [clip.read_frames() for clip in list_published_clips(real_data, step)]


def energies_and_correlations(clips: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    energies = np.array([compute_gradient_energy(clip) for clip in clips])
    return energies, np.array([compute_correlation(clip[0], clip[2]) for clip in clips])


def test_published_clips_grow_harsher(real_data):
    energies, correlations = energies_and_correlations(published_val_clips(real_data, step=8))
    assert energies.mean(axis=0) == pytest.approx([11.1, 14.2, 16.0], rel=0.15)
    assert (np.diff(energies.mean(axis=0)) > 1).all()
    assert (np.diff(energies) > 0).all(axis=1).mean() == pytest.approx(0.83, abs=0.12)
    assert (correlations < 0.5).mean() == pytest.approx(0.13, abs=0.1)


@pytest.mark.exhaustive
def test_all_published_val_clips_give_the_reported_figures(real_data):
    energies, correlations = energies_and_correlations(published_val_clips(real_data))
    assert energies.mean(axis=0) == pytest.approx([11.1, 14.2, 16.0], rel=0.01)
    assert (np.diff(energies) > 0).all(axis=1).mean() == pytest.approx(0.83, abs=0.01)
    assert (energies[:, 2] > energies[:, 0]).mean() == pytest.approx(0.974, abs=0.002)
    assert (correlations < 0.5).mean() == pytest.approx(0.13, abs=0.01)
