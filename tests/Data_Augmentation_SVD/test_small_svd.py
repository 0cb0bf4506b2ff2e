"""The small SVD: its formulas against diffusers' scheduler, its trainer, and the checkpoint that is embedded."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KILLED, PROJECT, exit_at_call, run_in_child
from diffusers import StableVideoDiffusionPipeline
from tiny_svd import EMBEDDED, one_thread, write_digits  # noqa: F401 (a fixture)

from Data_Augmentation_SVD import small_svd_training
from Data_Augmentation_SVD.clip_metrics import compute_psnr_db
from Data_Augmentation_SVD.settings import GenerationSettings, SmallSvdSettings
from Data_Augmentation_SVD.small_svd_data import (
    ClipBatches,
    SurveyedClips,
    measure_motion_px,
    motion_bucket_id,
    survey_clips,
)
from Data_Augmentation_SVD.small_svd_diffusion import (
    compute_unet_loss,
    compute_v,
    denoise,
    encode_images,
    noise_condition,
    scale_input,
)
from Data_Augmentation_SVD.small_svd_models import (
    build_image_encoder,
    build_pipeline,
    build_scheduler,
    build_unet,
    build_vae,
    embed_images,
)
from Data_Augmentation_SVD.small_svd_samples import generate_clips, measure_clip_motion_px
from utils.artifacts import read_table
from utils.clips import write_clip
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.images import read_rgb_image
from utils.indices import read_clip_index
from utils.tensor_files import read_training_state

TINY = {
    "num_frames": 2,
    "vae_channels": [32, 32, 32, 32],
    "unet_channels": [32, 32],
    "vae_steps": 2,
    "unet_steps": 3,
    "vae_batch_size": 1,
    "unet_batch_size": 2,
    "log_every_n_steps": 2,
    "save_every_n_steps": 1,
    "device": "cpu",
}


def moving_texture(shift_px: float, num_frames: int, seed: int = 0, size: int = 64) -> np.ndarray:
    """A smooth texture that moves right by `shift_px` a frame, exactly: uint8 (T, size, size, 3)."""
    rng = np.random.default_rng(seed)
    waves = rng.integers(-3, 4, (12, 2)), rng.uniform(0, 2 * np.pi, 12)
    y, x = np.mgrid[:size, :size] * (2 * np.pi / size)
    frames = []
    for t in range(num_frames):
        moved = x - t * shift_px * 2 * np.pi / size
        values = sum(np.cos(ky * y + kx * moved + phase) for (ky, kx), phase in zip(*waves, strict=True))
        frames.append(np.clip(127.5 + 14 * values, 0, 255).round())
    return np.repeat(np.stack(frames)[..., None], 3, axis=3).astype(np.uint8)


def write_moving_clips(root: Path, *, count: int = 3, num_frames: int = 5, size: int = 64) -> Path:
    """Clips with the published two-column index."""
    for number in range(count):
        write_clip(root / "train" / f"{number}.mp4", moving_texture(1.0, num_frames, number, size))
    (root / "train.csv").write_text("video_path,label\n" + "".join(f"{n}.mp4,0\n" for n in range(count)))
    return root


def run_tiny(data_root: Path, output_dir: Path, kill_at_state: int = 0, **options) -> None:
    """Train a tiny one; in a child, end it before the n-th training state is written, as `kill -9` would."""
    torch.set_num_threads(1)
    if kill_at_state:
        exit_at_call(small_svd_training, "write_training_state", kill_at_state)
    raw = {**TINY, **options, "data_root": str(data_root), "output_dir": str(output_dir)}
    small_svd_training.run_small_svd_training(build_settings(SmallSvdSettings, raw, "test"))


# ---------------------------------------------------------------------------------------------------------------------
# Diffusion


def test_the_formulas_are_the_schedulers():
    scheduler = build_scheduler()
    scheduler.set_timesteps(7)
    generator = torch.Generator().manual_seed(0)
    clean, noise, answer = (torch.randn((2, 3, 4, 8, 8), generator=generator) for _ in range(3))
    assert scheduler.sigmas[0].item() == pytest.approx(700, rel=1e-5)
    assert scheduler.sigmas[-2].item() == pytest.approx(0.002, rel=1e-3)
    for timestep, level in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        sigma = level.expand(2)
        noisy = clean + level * noise
        torch.testing.assert_close(noise_condition(sigma)[0], timestep)
        torch.testing.assert_close(scale_input(noisy, sigma), scheduler.scale_model_input(noisy, timestep))
        stepped = scheduler.step(answer, timestep, noisy)
        torch.testing.assert_close(denoise(noisy, answer, sigma), stepped.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [0.002, 0.1, 1.0, 30.0, 700.0])
def test_v_holds_the_clean_latents_and_the_edm_loss_weight(level: float):
    generator = torch.Generator().manual_seed(1)
    clean, noise, error = (torch.randn((3, 2, 4, 8, 8), generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.full((3,), level, dtype=torch.float64)
    noisy, v = clean + level * noise, compute_v(clean, noise, sigma)
    torch.testing.assert_close(denoise(noisy, v, sigma), clean, rtol=1e-9, atol=1e-9)
    weighted = (1 + level**2) / level**2 * (denoise(noisy, v + error, sigma) - clean).square()
    torch.testing.assert_close(weighted, error.square(), rtol=1e-6, atol=1e-9)


def test_a_perfect_denoiser_is_recovered_by_the_sampler():
    scheduler = build_scheduler()
    scheduler.set_timesteps(12)
    generator = torch.Generator().manual_seed(2)
    clean = torch.randn((1, 3, 4, 8, 8), generator=generator)
    latents = torch.randn(clean.shape, generator=generator) * scheduler.init_noise_sigma
    for timestep, level in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        v = compute_v(clean, (latents - clean) / level, level.expand(1))
        latents = scheduler.step(v, timestep, latents).prev_sample
    torch.testing.assert_close(latents, clean, rtol=0, atol=1e-3)


def test_the_conditioning_is_the_pipelines():
    torch.manual_seed(0)
    vae = build_vae(channels=(32, 32, 32, 32), latent_channels=4, image_size=64)
    vae.register_to_config(scaling_factor=3.0)
    unet = build_unet(channels=(32, 32), latent_channels=4, latent_size=8, num_frames=2)
    encoder = build_image_encoder(embedding_dim=32)
    seen: list[tuple] = []
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    pipeline = build_pipeline(vae, unet, encoder)
    image = moving_texture(0, 1)[0]
    generate_clips(pipeline, [image], num_frames=2, num_inference_steps=1, noise_aug_strength=0.0, fps=9)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    batch = {
        "frames": pixels[:, None].repeat(1, 2, 1, 1, 1),
        "latents": torch.zeros(1, 2, 4, 8, 8),
        "fps": torch.tensor([9.0]),
        "motion_bucket_id": torch.tensor([127.0]),
        "noise_aug_strength": torch.tensor([0.0]),
    }
    for dropout in (1.0, 0.0):
        compute_unet_loss(
            vae,
            unet,
            encoder,
            batch,
            sigma_log_mean=0.0,
            sigma_log_std=1.0,
            conditioning_dropout=dropout,
            generator=torch.Generator().manual_seed(0),
        )
    generated, without, with_image = seen
    assert torch.equal(encode_images(vae, pixels), with_image[0][0][0, :1, 4:])  # not scaled
    assert torch.equal(embed_images(encoder, pixels), with_image[1]["encoder_hidden_states"])
    for row, trained in enumerate((without, with_image)):  # the pipeline's batch: without the image, with it
        torch.testing.assert_close(trained[0][0][0, :, 4:], generated[0][0][row, :, 4:], rtol=1e-4, atol=1e-4)
        embedding = generated[1]["encoder_hidden_states"][row]
        torch.testing.assert_close(trained[1]["encoder_hidden_states"][0], embedding, rtol=1e-4, atol=1e-4)
        assert torch.equal(trained[1]["added_time_ids"][0], generated[1]["added_time_ids"][row])
    assert generated[1]["added_time_ids"].tolist() == [[8.0, 127.0, 0.0]] * 2
    assert not without[0][0][:, :, 4:].any()


# ---------------------------------------------------------------------------------------------------------------------
# Data


@pytest.mark.parametrize("shift_px", [0.25, 0.77, 1.5, 3.0])
def test_motion_is_measured_in_pixels(shift_px: float):
    before, after = moving_texture(shift_px, 2)
    assert measure_motion_px(before, after) == pytest.approx(shift_px, rel=0.1)
    assert measure_motion_px(before, before) == 0.0
    assert measure_motion_px(np.zeros_like(before), np.zeros_like(before)) == 0.0


def test_the_motion_bucket_rises_with_motion_and_with_the_frame_rate():
    assert [motion_bucket_id(px, 7, 3.0) for px in (0.0, 0.5, 1.5, 3.0, 9.0)] == [0, 42, 128, 255, 255]
    assert [motion_bucket_id(1.0, fps, 3.0) for fps in (4, 7, 14)] == [49, 85, 170]
    buckets = [motion_bucket_id(px, 7, 3.0) for px in np.linspace(0, 3, 50)]
    assert all(low < high for low, high in pairwise(buckets))


def test_a_batch_is_told_what_it_shows(tmp_path: Path):
    root = write_moving_clips(tmp_path, num_frames=9)
    clips = survey_clips(read_clip_index(root / "train.csv", root / "train"), image_size=64, num_frames=3, cache_mb=1)
    assert [frames is None for frames in clips.frames] == [False, False, False]
    uncached = SurveyedClips(clips.paths, clips.motions_px, [None] * 3, 64)
    knobs = {"max_stride": 4, "still_fraction": 0.2, "full_motion_px": 4.0, "fps_range": (4, 12)}
    knobs |= {"noise_aug_log_mean": -3.0, "noise_aug_log_std": 0.5, "seed": 3, "stage": 2}
    batches, others = (ClipBatches(data, batch_size=200, num_frames=3, **knobs) for data in (clips, uncached))
    batch = batches[5]
    assert all(torch.equal(values, others[5][name]) for name, values in batch.items())
    assert not torch.equal(batch["fps"], batches[6]["fps"])
    told_px = batch["motion_bucket_id"] / 255 * 4.0 * 7 / batch["fps"]
    assert set(told_px.round().int().tolist()) == {0, 1, 2, 3, 4}
    assert 0.1 < (batch["motion_bucket_id"] == 0).float().mean() < 0.3
    assert batch["fps"].min() == 4
    assert batch["fps"].max() == 12
    frames = batch["frames"].permute(0, 1, 3, 4, 2).numpy()
    for position in range(0, 200, 20):
        seen_px = measure_clip_motion_px(frames[position])
        assert seen_px == pytest.approx(told_px[position].item(), rel=0.2, abs=0.05)
    assert batch["noise_aug_strength"].log().mean().item() == pytest.approx(-3.0, abs=0.15)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def checkpoint_bytes(output_dir: Path) -> dict[str, bytes]:
    folder = output_dir / "checkpoint"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path):
    root = write_moving_clips(tmp_path / "clips")
    run_tiny(root, tmp_path / "whole")
    whole = checkpoint_bytes(tmp_path / "whole")
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"} <= whole.keys()
    for kill, steps_done in ((2, 1), (3, 3)):  # in the VAE's stage, then in the U-Net's
        assert run_in_child(run_tiny, root, tmp_path / "killed", kill) == KILLED
        assert read_training_state(tmp_path / "killed" / "last.pt")["epoch"] == steps_done
        assert not (tmp_path / "killed" / "checkpoint").exists()
    run_tiny(root, tmp_path / "killed")
    assert checkpoint_bytes(tmp_path / "killed") == whole
    for name in ("history.csv", "samples.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    history = read_table(tmp_path / "whole" / "history.csv", small_svd_training.HISTORY)
    assert list(zip(history["stage"], history["step"], strict=True)) == [("vae", 2), ("unet", 2), ("unet", 3)]

    made = (tmp_path / "whole" / "checkpoint" / "model_index.json").stat().st_mtime_ns
    run_tiny(root, tmp_path / "whole")  # a finished one is left alone
    assert (tmp_path / "whole" / "checkpoint" / "model_index.json").stat().st_mtime_ns == made
    with pytest.raises(InputError, match=r"unet_steps: 3 -> 4"):
        run_tiny(root, tmp_path / "whole", unet_steps=4)


def test_bad_clips_are_one_sentence(tmp_path: Path):
    short = write_moving_clips(tmp_path / "short", count=1, num_frames=2)
    with pytest.raises(InputError, match=r"0\.mp4: has 2 frames, num_frames=3 needs at least as many"):
        run_tiny(short, tmp_path / "out", num_frames=3)
    small = write_moving_clips(tmp_path / "small", count=1, size=32)
    with pytest.raises(InputError, match=r"is 32 x 32 pixels, smaller than image_size=64"):
        run_tiny(small, tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="train_csv: there is neither"):
        run_tiny(tmp_path / "none", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_bad_settings_are_named(tmp_path: Path):
    raw = {**TINY, "data_root": str(tmp_path), "output_dir": str(tmp_path / "out")}
    for wrong, sentence in (
        ({"image_size": 96}, "image_size"),
        ({"unet_channels": [48]}, "unet_channels"),
        ({"unet_channels": [32] * 5}, "4 halvings do not fit"),
        ({"fps_range": [9, 3]}, "fps_range"),
    ):
        with pytest.raises(InputError, match=sentence):
            build_settings(SmallSvdSettings, raw | wrong, "test")


def test_the_shipped_configs_fit_each_other():
    folder = PROJECT / "Data_Augmentation_SVD"
    train = build_settings(
        SmallSvdSettings, read_yaml(folder / "train_small_svd.yaml"), "train_small_svd.yaml", check_paths=False
    )
    clips = build_settings(
        GenerationSettings, read_yaml(folder / "small_svd_clips.yaml"), "small_svd_clips.yaml", check_paths=False
    )
    assert train.data_root == clips.output_dir
    assert train.image_size == clips.frame_size == clips.geometry.height == clips.geometry.width
    assert (train.num_frames - 1) * train.max_stride < clips.num_frames


# ---------------------------------------------------------------------------------------------------------------------
# The embedded checkpoint


@cache
def embedded_pipeline() -> StableVideoDiffusionPipeline:
    pipeline = StableVideoDiffusionPipeline.from_pretrained(EMBEDDED, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """The quickstart's digits: (images, labels) of train and val."""
    root = write_digits(tmp_path_factory.mktemp("digits"))
    train = sorted((root / "train").glob("digit*/images/*.JPEG"))
    rows = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    return {
        "train": ([read_rgb_image(path) for path in train], np.array([int(path.name[5]) for path in train])),
        "val": ([read_rgb_image(root / "val/images" / row[0]) for row in rows], np.array([int(r[1][5]) for r in rows])),
    }


def test_the_embedded_checkpoint_is_small_whole_and_anonymous():
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    pipeline = embedded_pipeline()
    assert {part.dtype for part in (pipeline.vae, pipeline.unet, pipeline.image_encoder)} == {torch.float32}
    loaded, built = (
        {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        for scheduler in (pipeline.scheduler, build_scheduler())
    )
    assert loaded == built
    assert sum(p.numel() for p in pipeline.unet.parameters()) == 1_308_432
    for path in files:
        if path.suffix == ".json":
            assert "/" not in json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "_class_name"})


def test_the_embedded_checkpoint_keeps_the_image_and_moves_it(digits):
    images = digits["val"][0][:16]
    clips = generate_clips(embedded_pipeline(), images, num_frames=3)
    psnrs = [compute_psnr_db(clip[0], image) for clip, image in zip(clips, images, strict=True)]
    assert np.mean(psnrs) >= 30
    steps_px = np.array([[measure_motion_px(clip[t], clip[t + 1]) for t in (0, 1)] for clip in clips])
    assert 0.6 <= steps_px.mean() <= 2.0  # told 1.5
    assert np.quantile(steps_px.mean(axis=1), 0.1) > 0.3
    assert 0.7 <= steps_px[:, 1].mean() / steps_px[:, 0].mean() <= 1.4  # no jump


def test_a_higher_bucket_moves_more_and_a_higher_frame_rate_less(digits):
    images = digits["val"][0][16:28]
    motions_px = {}
    for bucket, fps in ((0, 7), (127, 7), (220, 7), (127, 12)):
        clips = generate_clips(embedded_pipeline(), images, num_frames=3, motion_bucket_id=bucket, fps=fps)
        motions_px[bucket, fps] = np.mean([measure_clip_motion_px(clip) for clip in clips])
    assert motions_px[0, 7] * 2 < motions_px[127, 7]
    assert motions_px[127, 7] * 1.25 < motions_px[220, 7]
    assert motions_px[127, 12] * 1.15 < motions_px[127, 7]


@pytest.mark.exhaustive
def test_all_val_digits_stay_readable_in_every_frame(digits):
    from sklearn.svm import SVC

    def features(images) -> np.ndarray:
        grey = np.stack(images).mean(axis=3)  # (N, 64, 64, 3) -> (N, 64, 64)
        return grey.reshape(-1, 64 * 64) / 255

    train, labels = digits["train"]
    classifier = SVC(C=10).fit(features(train), labels)
    images, labels = digits["val"]
    clips = np.concatenate(
        [
            generate_clips(embedded_pipeline(), images[start : start + 20], num_frames=3, seed=start)
            for start in range(0, len(images), 20)
        ]
    )
    original = classifier.score(features(images), labels)
    assert original >= 0.98
    psnrs = [compute_psnr_db(clip[0], image) for clip, image in zip(clips, images, strict=True)]
    assert np.mean(psnrs) >= 30
    assert np.quantile(psnrs, 0.01) >= 24
    for frame in range(3):
        assert classifier.score(features(clips[:, frame]), labels) >= 0.95 * original
    motions_px = [measure_clip_motion_px(clip) for clip in clips]
    assert np.mean(motions_px) > 0.6
    assert np.min(motions_px) > 0.1
