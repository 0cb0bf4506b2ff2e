"""Stable Video Diffusion in three phases against diffusers' own pipeline, in batches, with faults, and as a stage."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import KILLED, exit_at_call, run_in_child
from diffusers import StableVideoDiffusionPipeline
from diffusers.models.attention_processor import SlicedAttnProcessor
from generation_runs import clip_hashes, rows_of, smooth_image, write_shuffled
from PIL import Image
from samples import random_image, write_image_set
from tiny_svd import (
    EMBEDDED,
    SIZE_PX,
    build_tiny_pipeline,
    one_thread,  # noqa: F401 (a fixture)
    settings_for,
    settings_of_the_demo,
    threads,
    write_digits,
)
from torch import Tensor

from Data_Augmentation_SVD import make_svd_videos, svd, svd_weights
from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipError
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import GenerationSettings, MergeSettings, SvdSettings
from Data_Augmentation_SVD.shards import merge_shards
from Data_Augmentation_SVD.split_files import Journal
from Data_Augmentation_SVD.svd import SvdGenerator
from Data_Augmentation_SVD.svd_weights import load_pipeline
from utils.artifacts import IMAGE_INDEX, read_table, write_table
from utils.clips import read_clip
from utils.config import read_settings
from utils.devices import choose_device
from utils.errors import InputError
from utils.images import read_rgb_image
from utils.indices import read_clip_index

NUM_IMAGES = 7  # the last batch is short at batch sizes 3 and 8
NUM_STEPS = 3  # with fewer, noise of 700 is taken away in one step, and so is its rounding
SAME = 1e-5  # of the frames' range 0..1, in float32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("svd") / "checkpoint"
    build_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain() -> StableVideoDiffusionPipeline:
    """Nobody's to change: what diffusers does."""
    return build_tiny_pipeline()


@pytest.fixture(scope="module")
def pipeline(plain) -> StableVideoDiffusionPipeline:
    """Taken over by the generators of these tests, whose changes to it are the same."""
    return copy.deepcopy(plain)


@pytest.fixture
def own_pipeline(plain) -> StableVideoDiffusionPipeline:
    """For a test to damage."""
    return copy.deepcopy(plain)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [smooth_image(number) for number in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def singles(pipeline, images) -> Tensor:
    """Every image's frames, generated alone: float (7, 3, 3, 64, 64)."""
    return floats_of(generator_of(pipeline), images, range(NUM_IMAGES))


def generator_of(
    pipeline, *, num_frames: int = 3, frame_size: int = SIZE_PX, width: int = SIZE_PX, batch_size: int = 1, **knobs
) -> SvdGenerator:
    geometry = Geometry(SIZE_PX, width, "stretch", "centre_crop", frame_size)
    knobs = SvdSettings(**({"num_inference_steps": NUM_STEPS} | knobs)).model_dump(exclude={"dtype"})
    return SvdGenerator(
        pipeline, device="cpu", geometry=geometry, num_frames=num_frames, batch_size=batch_size, **knobs
    )


def floats_of(generator: SvdGenerator, images: Sequence[np.ndarray], seeds: Sequence[int]) -> Tensor:
    """Frames before quantisation, not clipped: float (N, T, 3, H, W), about 0..1."""
    return torch.stack(list(generator.generate_videos(generator.prepare(images, seeds)))) / 2 + 0.5


def floats_one_by_one(generator: SvdGenerator, images: Sequence[np.ndarray], seeds: Sequence[int]) -> Tensor:
    """The same, batch after batch through all phases, on this thread."""
    videos = []
    for batch in generator.prepare(images, seeds):
        conditions = generator.encode(*batch)
        videos.append(generator.decode(generator.denoise(conditions))[: conditions.num_real])
    return torch.cat(videos) / 2 + 0.5


def clips_of(generator: SvdGenerator, images: Sequence[np.ndarray], seeds: Sequence[int]) -> list[np.ndarray]:
    drafts = generator.generate(generator.prepare(images, seeds), lambda: False)
    return [generator.finish(draft, image) for draft, image in zip(drafts, images, strict=True)]


def clip_of(generator: SvdGenerator, image: np.ndarray, seed: int) -> np.ndarray:
    (clip,) = clips_of(generator, [image], [seed])
    return clip


def largest_difference(first: Tensor, second: Tensor) -> float:
    assert first.shape == second.shape
    return (first - second).abs().max().item()


# --- against diffusers' own pipeline ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"min_guidance_scale": 2.0, "max_guidance_scale": 2.0},
        {"min_guidance_scale": 1.0, "max_guidance_scale": 1.0},
        {"min_guidance_scale": 0.5, "max_guidance_scale": 0.8},
        {"decode_chunk_size": 2},
        {"decode_chunk_size": 1},
        {"num_frames": 5, "decode_chunk_size": 3},
        {"num_frames": 2, "num_inference_steps": 4},
        {"width": 128},
        {"fps": 25, "motion_bucket_id": 10, "noise_aug_strength": 0.5},
    ],
    ids=str,
)
def test_one_clip_is_the_pipelines(plain, pipeline, images, knobs):
    options = {"num_frames": 3, "width": SIZE_PX, "num_inference_steps": NUM_STEPS, "decode_chunk_size": 8} | knobs
    generator = generator_of(pipeline, **knobs)
    (batch,) = generator.prepare([images[0]], [2**62 + 3])
    ((given,), _) = batch
    noise = torch.Generator("cpu").manual_seed(2**62 + 3)
    expected = plain(Image.fromarray(given), height=SIZE_PX, generator=noise, output_type="pt", **options).frames
    found = floats_of(generator, [images[0]], [2**62 + 3]).clamp(0, 1)
    assert expected.std() > 0.02
    assert largest_difference(found, expected) < SAME


def test_a_draft_is_the_pipelines_picture(plain, pipeline, images):
    generator = generator_of(pipeline)
    prepared = generator.prepare([images[0]], [5])
    (draft,) = generator.generate(prepared, lambda: False)
    picture = Image.fromarray(prepared[0][0][0])
    noise = torch.Generator("cpu").manual_seed(5)
    options = {
        "height": SIZE_PX,
        "width": SIZE_PX,
        "num_frames": 3,
        "num_inference_steps": NUM_STEPS,
        "decode_chunk_size": 8,
    }
    expected = np.stack([np.asarray(frame) for frame in plain(picture, generator=noise, **options).frames[0]])
    assert draft.dtype == np.uint8
    differing = draft.astype(int) - expected
    assert np.abs(differing).max() <= 1
    assert (differing != 0).mean() < 0.001


def test_the_u_net_is_told_the_settings(pipeline, images, monkeypatch):
    calls = []
    forward = pipeline.unet.forward
    monkeypatch.setattr(pipeline.unet, "forward", lambda *args, **keys: calls.append(args) or forward(*args, **keys))
    floats_of(generator_of(pipeline, num_inference_steps=12), [images[0]], [0])
    assert len(calls) == 12
    for inputs, _, embeddings, added in calls:
        assert inputs.shape == (2, 3, 8, 8, 8)  # without and with the image
        np.testing.assert_allclose(added, [[6, 127, 0.02]] * 2, rtol=1e-6)
        assert not embeddings[0].any()
        assert embeddings[1].any()
        assert not inputs[0, :, 4:].any()


# --- one clip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_frames", "frame_size"), [(3, 32), (2, 64), (5, 224)])
def test_a_clip_has_the_frames_and_the_size_that_were_asked_for(pipeline, num_frames, frame_size):
    clip = clip_of(generator_of(pipeline, num_frames=num_frames, frame_size=frame_size), random_image(0), 1)
    assert clip.shape == (num_frames, frame_size, frame_size, 3)
    assert clip.dtype == np.uint8
    assert clip.std() > 5


def test_the_same_seed_gives_the_same_clip_whatever_torch_drew_before(pipeline, images):
    clips = []
    for state in (1, 2):
        torch.manual_seed(state)
        clips.append(clip_of(generator_of(pipeline), images[0], 2**62 + 3))
    np.testing.assert_array_equal(*clips)


def test_another_seed_and_another_image_give_another_clip(pipeline, images):
    first, other_seed, other_image = clips_of(generator_of(pipeline), [images[0], images[0], images[1]], [3, 4, 3])
    assert np.abs(first.astype(int) - other_seed).mean() > 1
    assert (first != other_image).any()
    assert (first[0] != first[1]).any()
    assert (first[1] != first[2]).any()


@pytest.mark.parametrize(
    "knobs",
    [
        {"num_inference_steps": 2},
        {"max_guidance_scale": 6.0},
        {"min_guidance_scale": 2.5},
        {"fps": 25},
        {"motion_bucket_id": 10},
        {"noise_aug_strength": 0.5},
        {"width": 128},
    ],
    ids=lambda knobs: next(iter(knobs)),
)
def test_every_knob_changes_the_clip(pipeline, images, singles, knobs):
    found = floats_of(generator_of(pipeline, **knobs), images[:1], [0])
    assert found.shape != singles[:1].shape or largest_difference(found, singles[:1]) > 10 * SAME


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"num_frames": 1}, "num_frames"),
        ({"svd": {"min_guidance_scale": 3.0, "max_guidance_scale": 1.0}}, "max_guidance_scale"),
    ],
    ids=["one_frame", "guidance_switched_off_and_on"],
)
def test_settings_that_the_pipeline_cannot_run_are_refused_by_key(tmp_path, keys, sentence):
    """Its guidance is switched by the last frame's scale before the frames' scales are known."""
    with pytest.raises(InputError, match=sentence):
        settings_for(tmp_path, tmp_path / "out", "nowhere/checkpoint", **keys)


# --- pictures in and out ---------------------------------------------------------------------------------------------


def test_the_encoder_sees_the_image_at_the_working_size(own_pipeline):
    seen = []
    encode = own_pipeline.vae.encode
    own_pipeline.vae.encode = lambda image: seen.append(image) or encode(image)
    image = random_image(5, 40)
    generator = generator_of(own_pipeline, width=128, noise_aug_strength=0.0)
    generator.encode(*generator.prepare([image], [9])[0])
    stretched = np.asarray(Image.fromarray(image).resize((128, 64), Image.Resampling.BICUBIC))
    given = seen[0][0].permute(1, 2, 0)  # (C, H, W) -> (H, W, C)
    np.testing.assert_allclose((given.numpy() + 1) * 127.5, stretched, atol=0.01)


def drafts_of(generator: SvdGenerator, video: Tensor, images: Sequence[np.ndarray]) -> list:
    """What becomes of a decoder's output: float (B, T, 3, H, W), -1..1."""
    generator.decode = lambda latents: video
    generator.denoise = lambda conditions: conditions.noise
    return list(generator.generate(generator.prepare(images, range(len(images))), lambda: False))


@pytest.mark.parametrize("frame_size", [64, 32, 128])
def test_frames_are_scaled_by_their_shorter_side_and_cropped_in_the_centre(pipeline, images, frame_size):
    columns = torch.linspace(-1, 1, 128).expand(1, 3, 3, 64, 128)  # brighter to the right
    generator = generator_of(pipeline, frame_size=frame_size, width=128)
    (draft,) = drafts_of(generator, columns, images[:1])
    clip = generator.finish(draft, images[0])
    centres = (np.arange(frame_size) + 0.5) * 64 / frame_size + 32 - 0.5  # the middle 64 of 128 columns
    expected = np.interp(centres, np.arange(128), np.linspace(0, 255, 128))
    np.testing.assert_allclose(clip[1, frame_size // 2, :, 0], expected, atol=1.5)


def test_numbers_are_rounded_to_the_nearest_grey_and_clipped(pipeline, images):
    grey = torch.tensor([127.6, 127.4, 300.0, -5.0]).repeat(16) / 127.5 - 1
    (draft,) = drafts_of(generator_of(pipeline), grey.expand(1, 3, 3, 64, 64), images[:1])
    assert draft[0, 0, :4, 0].tolist() == [128, 127, 255, 0]


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [3, 8])
def test_the_noise_does_not_depend_on_the_batch(pipeline, images, batch_size):
    conditions = []
    for generator in (generator_of(pipeline), generator_of(pipeline, batch_size=batch_size)):
        batches = [generator.encode(*batch) for batch in generator.prepare(images, range(NUM_IMAGES))]
        assert {len(batch.noise) for batch in batches} == {generator._batch_size}
        conditions.append(torch.cat([batch.noise[: batch.num_real] for batch in batches]))
    assert torch.equal(*conditions)


@pytest.mark.parametrize("batch_size", [3, 8])
def test_a_clip_hardly_depends_on_the_batch(pipeline, images, singles, batch_size):
    batched = generator_of(pipeline, batch_size=batch_size)
    assert largest_difference(floats_of(batched, images, range(NUM_IMAGES)), singles) < SAME
    found = np.stack(clips_of(batched, images, range(NUM_IMAGES))).astype(int)
    expected = (singles.clamp(0, 1) * 255).round().permute(0, 1, 3, 4, 2).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.001


ORDERS = ([6, 4, 2, 0, 1, 3, 5], [3, 5], [1, 6, 0, 4])


@pytest.mark.parametrize("batch_size", [3, 8])
def test_at_one_batch_size_a_clip_depends_on_no_order_and_no_neighbour(pipeline, images, batch_size):
    generator = generator_of(pipeline, batch_size=batch_size)
    expected = floats_of(generator, images, range(NUM_IMAGES))
    for order in ORDERS:
        assert torch.equal(floats_of(generator, [images[number] for number in order], order), expected[list(order)])


@pytest.mark.parametrize(
    ("num_threads", "batch_size"),
    [(2, 3), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in [(2, 1), (2, 8), (5, 1), (5, 3)])],
)
def test_on_several_threads_a_clip_is_what_it_is_on_one(pipeline, images, num_threads, batch_size):
    """Networks as small as these compute as many batches at once as there are threads, each on one."""
    generator = generator_of(pipeline, batch_size=batch_size)
    expected = floats_one_by_one(generator, images, range(NUM_IMAGES))
    with threads(num_threads):
        for order in (range(NUM_IMAGES), *ORDERS):
            found = floats_of(generator, [images[number] for number in order], order)
            assert torch.equal(found, expected[list(order)])


@pytest.mark.exhaustive
def test_large_networks_depend_on_threads_and_place_in_the_last_digits_at_most(pipeline, images, monkeypatch):
    """They use all threads for one batch, which share a product's rows: those at the seam may be summed otherwise."""
    monkeypatch.setattr(svd, "_SMALL_PARAMETERS", 0)
    generator = generator_of(pipeline, batch_size=3)
    expected = floats_of(generator, images, range(NUM_IMAGES))
    with threads(2):
        for order in ORDERS[1:2]:
            found = floats_of(generator, [images[number] for number in order], order)
            assert largest_difference(found, expected[list(order)]) < 10 * SAME


def test_batches_side_by_side_count_their_own_steps(pipeline, images, monkeypatch):
    """Two batches are kept in step with each other, so that each call of one falls between two calls of the other."""
    generator = generator_of(pipeline, batch_size=3)
    expected = floats_one_by_one(generator, images[:6], range(6))
    in_step = threading.Barrier(2, timeout=60)
    forward, callers = pipeline.unet.forward, []

    def forward_in_step(*args, **keys):
        in_step.wait()
        callers.append(threading.get_ident())
        return forward(*args, **keys)

    monkeypatch.setattr(pipeline.unet, "forward", forward_in_step)
    with threads(2):
        assert torch.equal(floats_of(generator, images[:6], range(6)), expected)
    assert sorted(Counter(callers).values()) == [NUM_STEPS, NUM_STEPS]


@pytest.mark.parametrize(("limit", "threads_each", "at_once"), [(10**9, 1, 2), (0, 2, 1)], ids=["small", "large"])
def test_small_networks_share_no_operation_and_large_ones_every(
    pipeline, images, limit, threads_each, at_once, monkeypatch
):
    monkeypatch.setattr(svd, "_SMALL_PARAMETERS", limit)
    generator = generator_of(pipeline, num_inference_steps=1)
    seen = []

    def look(conditions):
        seen.append((torch.get_num_threads(), threading.get_ident()))
        return conditions.noise

    monkeypatch.setattr(generator, "denoise", look)
    monkeypatch.setattr(generator, "decode", lambda latents: torch.zeros(1, 3, 3, SIZE_PX, SIZE_PX))
    with threads(2):
        floats_of(generator, images[:2], range(2))
    assert [count for count, _ in seen] == [threads_each] * 2
    assert (threading.get_ident() in {caller for _, caller in seen}) == (at_once == 1)


@pytest.mark.parametrize("phase", ["encode", "denoise", "decode"])
def test_the_number_of_threads_is_what_it_was_whatever_becomes_of_the_clips(pipeline, images, phase, monkeypatch):
    generator = generator_of(pipeline, num_inference_steps=1)
    prepared = generator.prepare(images[:4], range(4))
    with threads(2):
        for _ in generator.generate(prepared, lambda: False):
            assert torch.get_num_threads() == 2  # also between two clips, where others work
        begun = generator.generate_videos(prepared)
        next(begun)
        begun.close()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(generator, phase, lambda *batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(generator.generate(prepared, lambda: False))
        assert torch.get_num_threads() == 2


@pytest.fixture(scope="module")
def latents(pipeline, images) -> Tensor:
    """Denoised latents of three clips: float (3, 3, 4, 8, 8)."""
    generator = generator_of(pipeline, batch_size=3)
    return generator.denoise(generator.encode(*generator.prepare(images[:3], range(3))[0]))


@pytest.mark.parametrize("decode_chunk_size", [1, 2, 3, 4, 8])
def test_clips_are_not_mixed_by_the_decoder(plain, pipeline, latents, decode_chunk_size):
    """The pipeline mixes them: it cuts a batch's frames into parts as if they were one clip's."""
    batched = generator_of(pipeline, batch_size=3, decode_chunk_size=decode_chunk_size).decode(latents)
    alone = [plain.decode_latents(clip[None], 3, min(decode_chunk_size, 3)) for clip in latents]
    expected = torch.cat(alone).transpose(1, 2)  # (B, C, T, H, W) -> (B, T, C, H, W)
    assert largest_difference(batched / 2, expected / 2) < SAME
    theirs = plain.decode_latents(latents, 3, decode_chunk_size).transpose(1, 2)
    is_mixed = decode_chunk_size not in (1, 3)
    assert (largest_difference(theirs, expected) > 0.05) == is_mixed


@pytest.mark.parametrize(
    ("num_clips", "num_frames", "decode_chunk_size", "expected"),
    [
        (3, 3, 8, [(6, 3), (6, 3)]),  # two clips at once; the second part is filled up
        (3, 3, 100, [(9, 3)]),
        (2, 3, 2, [(2, 2), (1, 1), (2, 2), (1, 1)]),
        (2, 5, 3, [(3, 3), (2, 2), (3, 3), (2, 2)]),
        (2, 14, 8, [(8, 8), (6, 6), (8, 8), (6, 6)]),
        (1, 2, 1, [(1, 1), (1, 1)]),
    ],
)
def test_no_more_frames_are_decoded_at_once_than_asked_for(
    pipeline, monkeypatch, num_clips, num_frames, decode_chunk_size, expected
):
    calls = []

    def decode(latents: Tensor, num_frames: int) -> SimpleNamespace:
        calls.append((len(latents), num_frames))
        owners = latents[:, 0, 0, 0].unflatten(0, (-1, num_frames))
        assert (owners == owners[:, :1]).all()  # frames that the decoder mixes are one clip's
        return SimpleNamespace(sample=latents[:, :3])

    generator = generator_of(pipeline, num_frames=num_frames, batch_size=num_clips, decode_chunk_size=decode_chunk_size)
    monkeypatch.setattr(pipeline.vae, "decode", decode)
    latents = torch.arange(1.0, num_clips + 1).view(-1, 1, 1, 1, 1).expand(-1, num_frames, 4, 2, 2)
    found = generator.decode(latents)
    assert calls == expected
    assert max(at_once for at_once, _ in calls) <= decode_chunk_size
    torch.testing.assert_close(found, latents[:, :, :3] / pipeline.vae.config.scaling_factor)


# --- numbers that are no picture -------------------------------------------------------------------------------------


def spoil(pipeline, component: str, value: float) -> None:
    """Put a value that is no number into one weight of a part of the pipeline."""
    parameter = {
        "unet": lambda: pipeline.unet.conv_out.bias,
        "decoder": lambda: pipeline.vae.decoder.time_conv_out.bias,
        "encoder": lambda: pipeline.vae.encoder.conv_in.weight,
        "image_encoder": lambda: pipeline.image_encoder.visual_projection.weight,
    }[component]()
    with torch.no_grad():
        parameter.view(-1)[0] = value


@pytest.mark.parametrize("component", ["unet", "decoder", "encoder", "image_encoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=["nan", "infinity", "minus"])
def test_a_network_that_returns_no_numbers_is_an_error_and_no_picture(own_pipeline, images, component, value):
    spoil(own_pipeline, component, value)
    generator = generator_of(own_pipeline, num_inference_steps=1, batch_size=2)
    drafts = list(generator.generate(generator.prepare(images[:2], [0, 1]), lambda: False))
    assert [type(draft) for draft in drafts] == [ClipError, ClipError]
    for draft in drafts:
        with pytest.raises(ClipError, match="SVD returned NaN"):
            generator.finish(draft, images[0])


@pytest.mark.parametrize("what", ["image_latents", "image_embeddings"])
def test_one_images_nan_harms_no_other_of_its_batch(pipeline, images, monkeypatch, what):
    generator = generator_of(pipeline, batch_size=3)
    prepared = generator.prepare(images[:3], range(3))
    healthy = list(generator.generate(prepared, lambda: False))
    encode = generator.encode

    def encode_badly(*batch):
        conditions = encode(*batch)
        tensor = getattr(conditions, what).clone()
        tensor[1, 0, 0] = float("nan")
        return replace(conditions, **{what: tensor})

    monkeypatch.setattr(generator, "encode", encode_badly)
    drafts = list(generator.generate(prepared, lambda: False))
    assert isinstance(drafts[1], ClipError)
    np.testing.assert_array_equal(drafts[0], healthy[0])
    np.testing.assert_array_equal(drafts[2], healthy[2])


def test_one_frame_of_nan_is_no_clip(pipeline, images):
    video = torch.zeros(2, 3, 3, 64, 64)
    video[1, 2, 0, 5, 5] = float("nan")
    drafts = drafts_of(generator_of(pipeline, batch_size=2), video, images[:2])
    assert drafts[0].shape == (3, 64, 64, 3)
    assert isinstance(drafts[1], ClipError)


# --- stops and full memories -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batches_done", "num_clips"), [(0, 0), (1, 3), (2, 6), (3, 7)])
def test_asked_to_stop_it_decodes_what_was_denoised(pipeline, images, monkeypatch, batches_done, num_clips):
    generator = generator_of(pipeline, batch_size=3, num_inference_steps=1)
    denoised = []
    denoise = generator.denoise
    monkeypatch.setattr(generator, "denoise", lambda batch: denoised.append(batch) or denoise(batch))
    prepared = generator.prepare(images, range(NUM_IMAGES))
    drafts = list(generator.generate(prepared, lambda: len(denoised) >= batches_done))
    assert len(denoised) == batches_done
    assert len(drafts) == num_clips


@pytest.mark.parametrize(("batches_done", "num_clips"), [(0, 0), (1, 4), (2, 4), (3, 7)])
def test_side_by_side_it_stops_between_groups_of_batches(pipeline, images, monkeypatch, batches_done, num_clips):
    generator = generator_of(pipeline, batch_size=2, num_inference_steps=1)
    denoised = []
    denoise = generator.denoise
    monkeypatch.setattr(generator, "denoise", lambda batch: denoised.append(batch) or denoise(batch))
    prepared = generator.prepare(images, range(NUM_IMAGES))
    with threads(2):
        drafts = list(generator.generate(prepared, lambda: len(denoised) >= batches_done))
    assert [draft.shape for draft in drafts] == [(3, SIZE_PX, SIZE_PX, 3)] * num_clips


@pytest.mark.parametrize("part", ["unet", "vae.decoder", "vae.encoder", "image_encoder"])
def test_a_full_memory_is_one_sentence_with_the_knobs(own_pipeline, images, part):
    def run_out(*_args, **_keys):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    generator = generator_of(own_pipeline, batch_size=2)
    module = own_pipeline
    for name in part.split("."):
        module = getattr(module, name)
    module.forward = run_out
    with pytest.raises(InputError) as caught:
        list(generator.generate(generator.prepare(images[:2], [0, 1]), lambda: False))
    assert str(caught.value) == (
        "the GPU's memory is too small for SVD at 64 x 64 with batch_size=2; set a smaller batch_size, svd.offload: "
        "phases, a smaller svd.decode_chunk_size, or a smaller geometry.height and geometry.width"
    )


# --- offload, slices, compilation, types -----------------------------------------------------------------------------


def pretend_accelerator(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Parts only seem to move; what is moved where is recorded."""
    events = []
    monkeypatch.setattr(svd, "choose_device", lambda *_args, **_keys: torch.device("mps"))
    monkeypatch.setattr(SvdGenerator, "_move", lambda self, device, *names: events.append((str(device), *names)))
    return events


def test_offload_moves_each_part_once_a_chunk_around_its_phase(pipeline, images, singles, monkeypatch):
    events = pretend_accelerator(monkeypatch)
    generator = generator_of(pipeline, offload="phases", batch_size=3)
    assert events == []
    generator._device = torch.device("cpu:0")  # so that tensors do not move, and this reads differently from "cpu"
    for phase in ("encode", "denoise", "decode"):
        work = getattr(generator, phase)
        monkeypatch.setattr(generator, phase, lambda *args, p=phase, w=work: events.append((p,)) or w(*args))
    drafts = list(generator.generate(generator.prepare(images, range(NUM_IMAGES)), lambda: False))
    expected = []
    for phase, parts in (("encode", ("image_encoder", "vae")), ("denoise", ("unet",)), ("decode", ("vae",))):
        expected += [("cpu:0", *parts), *[(phase,)] * 3, ("cpu", *parts)]
    assert events == expected
    assert len(drafts) == NUM_IMAGES
    frames = (singles.clamp(0, 1) * 255).round().permute(0, 1, 3, 4, 2).numpy()
    assert np.abs(np.stack(drafts) - frames).max() <= 1


def test_a_part_leaves_the_device_also_when_it_fails(pipeline, images, monkeypatch):
    events = pretend_accelerator(monkeypatch)
    generator = generator_of(pipeline, offload="phases")
    generator._device = torch.device("cpu:0")
    monkeypatch.setattr(generator, "denoise", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(generator.generate(generator.prepare(images[:1], [0]), lambda: False))
    assert events[-2:] == [("cpu:0", "unet"), ("cpu", "unet")]


def test_without_offload_all_parts_are_moved_once_and_stay(pipeline, images, monkeypatch):
    events = pretend_accelerator(monkeypatch)
    generator = generator_of(pipeline)
    generator._device = torch.device("cpu:0")
    list(generator.generate(generator.prepare(images[:2], [0, 1]), lambda: False))
    assert events == [("mps", "image_encoder", "unet", "vae")]


def test_on_a_cpu_offload_moves_nothing(pipeline, images, monkeypatch):
    events = []
    monkeypatch.setattr(SvdGenerator, "_move", lambda self, device, *names: events.append(names))
    generator = generator_of(pipeline, offload="phases")
    list(generator.generate(generator.prepare(images[:1], [0]), lambda: False))
    assert events == [("image_encoder", "unet", "vae")]


def test_attention_in_slices_is_the_same_attention(own_pipeline, images, singles):
    sliced = generator_of(own_pipeline, attention_slicing=True)
    assert largest_difference(floats_of(sliced, images[:2], range(2)), singles[:2]) < SAME


def test_only_the_spatial_attention_is_sliced(own_pipeline):
    """The temporal one has a row a pixel: slice by slice it would take thousands of products of three tokens."""
    generator_of(own_pipeline, attention_slicing=True)
    modules = dict(own_pipeline.unet.named_modules())
    sliced = {name for name in modules if type(getattr(modules[name], "processor", None)) is SlicedAttnProcessor}
    assert sliced == {name for name in modules if name.endswith(".transformer_blocks.0.attn1")} != set()


@pytest.mark.exhaustive
def test_the_compiled_u_net_gives_the_same_clips(own_pipeline, images, singles):
    compiled = generator_of(own_pipeline, compile="default", batch_size=2)
    assert largest_difference(floats_of(compiled, images[:3], range(3)), singles[:3]) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_clip_again_and_again(checkpoint, pipeline, images, dtype):
    half = generator_of(load_pipeline(str(checkpoint), "cpu", dtype))
    assert half.describe()["dtype"] == dtype
    clips = [clip_of(half, images[0], 3).astype(int) for _ in range(2)]
    np.testing.assert_array_equal(*clips)
    same_seed, other_seed = clips_of(generator_of(pipeline), [images[0]] * 2, [3, 4])
    assert np.abs(clips[0] - same_seed).mean() < 0.25 * np.abs(clips[0] - other_seed).mean()


@pytest.mark.parametrize(
    ("dtype", "force_upcast", "encoder", "decoder"),
    [
        ("float16", True, torch.float32, torch.float16),
        ("float16", False, torch.float16, torch.float16),
        ("bfloat16", True, torch.bfloat16, torch.bfloat16),
        ("float32", True, torch.float32, torch.float32),
    ],
)
def test_the_encoder_computes_in_float32_where_the_checkpoint_asks_for_it(
    own_pipeline, images, dtype, force_upcast, encoder, decoder
):
    own_pipeline.to(dtype=getattr(torch, dtype))
    vae = own_pipeline.vae
    vae.register_to_config(force_upcast=force_upcast)
    for _ in range(2):  # taken over again, it stays as it is
        generator = generator_of(own_pipeline, num_inference_steps=1)
        assert {parameter.dtype for parameter in (*vae.encoder.parameters(), *vae.quant_conv.parameters())} == {encoder}
        assert {parameter.dtype for parameter in vae.decoder.parameters()} == {decoder}
    conditions = generator.encode(*generator.prepare(images[:1], [0])[0])
    assert conditions.image_latents.dtype == getattr(torch, dtype)
    assert conditions.noise.dtype == torch.float32
    assert torch.isfinite(generator.decode(generator.denoise(conditions))).all()


# --- the shipped configs ---------------------------------------------------------------------------------------------

_COMMON = {"num_inference_steps": 12, "fps": 7, "motion_bucket_id": 127, "noise_aug_strength": 0.02}
_COMMON |= {"decode_chunk_size": 8, "num_frames": 3, "device": "auto", "attention_slicing": False, "compile": "none"}
SHIPPED = {
    "train3d_config.yaml": _COMMON
    | {"geometry": Geometry(576, 1024, "stretch", "centre_crop", 224), "batch_size": 1, "offload": "phases"}
    | {"min_guidance_scale": 1.0, "max_guidance_scale": 3.0},
    "square.yaml": _COMMON
    | {"geometry": Geometry(320, 320, "pad", "undo", 224), "batch_size": 8, "offload": "none"}
    | {"min_guidance_scale": 2.0, "max_guidance_scale": 2.0},
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_gives_the_generator_the_values_it_states(tmp_path, monkeypatch, name):
    loaded, given = [], {}
    monkeypatch.setattr(svd_weights, "load_pipeline", lambda *args, **keys: loaded.append((args, keys)) or "weights")
    monkeypatch.setattr(svd, "SvdGenerator", lambda pipeline, **keys: given.update(keys) or pipeline)
    config = Path(make_svd_videos.__file__).with_name(name)
    settings = read_settings(GenerationSettings, None, config, [f"data_root={tmp_path}"])
    assert CLIP_GENERATORS["svd"](settings) == "weights"
    assert given == SHIPPED[name]
    model = "stabilityai/stable-video-diffusion-img2vid"
    assert loaded == [((model, "auto", "auto"), {"revision": None})]


# --- the whole stage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("images"), per_class=2)


@pytest.fixture(scope="module")
def generated(image_set: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("generated")
    run_generation(settings_for(image_set, output, checkpoint, batch_size=3))
    return output


def hashes_by_source(output: Path) -> dict[str, str]:
    return {row["source_sha256"]: row["sha256"] for row in rows_of(output)}


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_stage_writes_clips_that_a_loader_reads(image_set, generated, split):
    index = read_clip_index(generated / f"{split}.csv", generated / split, num_frames=3)
    assert index.labels == [0, 0, 1, 1]
    assert index.clip_kind == "clip:svd"
    assert list(index.table["source_path"]) == list(read_table(image_set / f"{split}.csv", IMAGE_INDEX)["image_path"])
    assert {row["kept_frames"] for row in rows_of(generated, split)} == {"0 1 2"}
    for path in index.paths:
        assert read_clip(path, 3).shape == (3, 32, 32, 3)


def test_a_clip_on_disk_is_the_generators_clip_for_the_seed_in_the_index(image_set, generated, pipeline):
    generator = generator_of(pipeline, frame_size=32, batch_size=3)
    for row in rows_of(generated)[1:3]:
        image = np.asarray(Image.open(image_set / row["source_path"]))
        expected = clip_of(generator, image, int(row["seed"]))
        np.testing.assert_array_equal(read_clip(generated / "train" / row["video_path"]), expected)


def test_the_stage_gives_the_same_bytes_again(image_set, checkpoint, generated, tmp_path):
    run_generation(settings_for(image_set, tmp_path, checkpoint, splits=["train"], batch_size=3, chunk_size=2))
    assert (tmp_path / "train.csv").read_bytes() == (generated / "train.csv").read_bytes()
    for path in (tmp_path / "train").iterdir():
        assert path.read_bytes() == (generated / "train" / path.name).read_bytes()


def test_another_batch_size_changes_a_few_values_by_one_grey_level(image_set, checkpoint, generated, tmp_path):
    run_generation(settings_for(image_set, tmp_path, checkpoint, splits=["train"], batch_size=1))
    clips = [
        [read_clip(folder / "train" / row["video_path"]) for row in rows_of(folder)] for folder in (tmp_path, generated)
    ]
    differences = np.subtract(*clips, dtype=int)
    assert np.abs(differences).max() <= 1
    assert (differences != 0).mean() < 0.001


def test_in_another_order_each_image_gets_the_same_bytes(image_set, checkpoint, generated, tmp_path):
    shuffled = Path(shutil.copytree(image_set, tmp_path / "images"))
    table = read_table(shuffled / "train.csv", IMAGE_INDEX)
    write_table(table.iloc[[2, 0, 3, 1]], shuffled / "train.csv", IMAGE_INDEX)
    run_generation(settings_for(shuffled, tmp_path / "out", checkpoint, splits=["train"], batch_size=3))
    assert hashes_by_source(tmp_path / "out") == hashes_by_source(generated)
    assert list(hashes_by_source(tmp_path / "out")) != list(hashes_by_source(generated))


def test_two_shards_make_the_bytes_of_one_run(image_set, checkpoint, generated, tmp_path):
    for shard in ("2/2", "1/2"):
        run_generation(settings_for(image_set, tmp_path, checkpoint, batch_size=3, shard=shard))
    merge_shards(MergeSettings(output_dir=tmp_path))
    for split in ("train", "val"):
        assert (tmp_path / f"{split}.csv").read_bytes() == (generated / f"{split}.csv").read_bytes()
    assert hashes_by_source(tmp_path) == hashes_by_source(generated)


def test_of_more_generated_frames_those_at_equal_distances_are_kept(image_set, checkpoint, pipeline, tmp_path):
    run_generation(settings_for(image_set, tmp_path, checkpoint, splits=["val"], native_frames=5))
    row = rows_of(tmp_path, "val")[0]
    assert (row["kept_frames"], row["num_frames"]) == ("0 2 4", 3)
    image = np.asarray(Image.open(image_set / row["source_path"]))
    native = clip_of(generator_of(pipeline, num_frames=5, frame_size=32), image, int(row["seed"]))
    np.testing.assert_array_equal(read_clip(tmp_path / "val" / row["video_path"]), native[[0, 2, 4]])


def test_the_original_may_take_the_first_frames_place(image_set, checkpoint, generated, tmp_path):
    keys = {"splits": ["train"], "first_frame": "original", "batch_size": 3}
    run_generation(settings_for(image_set, tmp_path, checkpoint, **keys))
    geometry = Geometry(SIZE_PX, SIZE_PX, "stretch", "centre_crop", 32)
    for row in rows_of(tmp_path):
        clip = read_clip(tmp_path / "train" / row["video_path"])
        image = np.asarray(Image.open(image_set / row["source_path"]))
        np.testing.assert_array_equal(clip[0], geometry.view(image))
        np.testing.assert_array_equal(clip[1:], read_clip(generated / "train" / row["video_path"])[1:])


def test_a_run_goes_on_with_the_same_checkpoint_elsewhere_and_with_no_other(image_set, checkpoint, generated, tmp_path):
    output = Path(shutil.copytree(generated, tmp_path / "out"))
    moved = Path(shutil.copytree(checkpoint, tmp_path / "moved"))
    lost = output / "train/00001.mp4"
    content = lost.read_bytes()
    lost.unlink()
    run_generation(settings_for(image_set, output, moved, batch_size=3))
    assert lost.read_bytes() == content
    weights = moved / "unet/diffusion_pytorch_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(InputError, match="diffusion_model"):
        run_generation(settings_for(image_set, output, moved, batch_size=3))
    assert lost.read_bytes() == content


def test_a_finished_stage_needs_no_checkpoint(image_set, checkpoint, generated, tmp_path):
    output = Path(shutil.copytree(generated, tmp_path / "out"))
    environment = json.loads((output / "environment.json").read_text())
    assert environment["device"]["model_commit"] is None
    settings = settings_for(image_set, output, checkpoint, batch_size=3)
    missing = settings.model_copy(update={"diffusion_model": str(checkpoint)})
    away = checkpoint.rename(checkpoint.with_name("away"))
    try:
        assert run_generation(missing) == [output / "train.csv", output / "val.csv"]
    finally:
        away.rename(checkpoint)


# --- the whole stage, in parts, in another order, killed, on other threads -------------------------------------------


@pytest.fixture(scope="module")
def eight_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("eight"), per_class=4, splits=("train", "val"))


def uneven(data_root: Path, output: Path, checkpoint: Path, **keys) -> GenerationSettings:
    """Neither the chunks nor the images are whole batches."""
    return settings_for(data_root, output, checkpoint, **{"splits": ["train"], "batch_size": 3, "chunk_size": 4} | keys)


@pytest.fixture(scope="module")
def eight_clips(eight_images: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What one run makes."""
    output = tmp_path_factory.mktemp("eight_clips")
    run_generation(uneven(eight_images, output, checkpoint))
    assert len(clip_hashes(output)) == 8
    return clip_hashes(output)


@pytest.mark.parametrize(
    "num_parts", [3, *(pytest.param(number, marks=pytest.mark.exhaustive) for number in (1, 2, 7))]
)
@pytest.mark.parametrize("order", ["of_the_index", "another"])
def test_shards_of_any_order_make_the_bytes_of_one_run(
    eight_images, checkpoint, eight_clips, tmp_path, num_parts, order
):
    data_root = eight_images if order == "of_the_index" else write_shuffled(eight_images, tmp_path / "images")
    for part in range(1, num_parts + 1):
        run_generation(uneven(data_root, tmp_path / "out", checkpoint, shard=f"{part}/{num_parts}"))
    assert clip_hashes(tmp_path / "out") == eight_clips


def run_and_die(data_root: Path, output: Path, checkpoint: Path, target: str, call: int) -> None:
    """Make the clips until a process ends before the n-th call, as `kill -9` would end it."""
    torch.set_num_threads(2)  # two batches are under way, too
    exit_at_call(*{"journal": (Journal, "append"), "rename": (Path, "replace")}[target], call)
    run_generation(uneven(data_root, output, checkpoint))


@pytest.mark.parametrize(
    ("target", "call"),
    [("journal", 2), *(pytest.param(*c, marks=pytest.mark.exhaustive) for c in [("rename", 7), ("journal", 5)])],
)
def test_killed_in_the_middle_of_a_batch_it_goes_on_to_the_same_bytes(
    eight_images, checkpoint, eight_clips, tmp_path, target, call
):
    assert run_in_child(run_and_die, eight_images, tmp_path, checkpoint, target, call) == KILLED
    num_left = len(clip_hashes(tmp_path))
    assert num_left % 3 and num_left < 8 and not (tmp_path / "train.csv").exists()
    run_generation(uneven(eight_images, tmp_path, checkpoint))
    assert clip_hashes(tmp_path) == eight_clips
    assert len(rows_of(tmp_path)) == 8


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten val digits, in the raw layout."""
    return write_digits(tmp_path_factory.mktemp("digits"), train_per_class=1, val_per_class=1)


@pytest.fixture(scope="module")
def digit_clips(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the embedded checkpoint makes of them on one thread, in batches of three; hashes by source."""
    output = tmp_path_factory.mktemp("digit_clips")
    run_generation(settings_of_the_demo(digits, output, splits=["val"], batch_size=3))
    return {row["source_sha256"]: row["sha256"] for row in rows_of(output, "val")}


@pytest.mark.parametrize("num_threads", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_the_embedded_checkpoints_bytes_do_not_depend_on_the_threads(digits, digit_clips, tmp_path, num_threads):
    with threads(num_threads):
        run_generation(settings_of_the_demo(digits, tmp_path, splits=["val"], batch_size=3))
    assert {row["source_sha256"]: row["sha256"] for row in rows_of(tmp_path, "val")} == digit_clips


def test_the_embedded_checkpoints_bytes_do_not_depend_on_place_or_neighbours(digits, digit_clips, tmp_path):
    images = Path(shutil.copytree(digits, tmp_path / "images"))
    annotations = images / "val/val_annotations.txt"
    lines = annotations.read_text().splitlines(keepends=True)
    annotations.write_text("".join(lines[number] for number in (9, 2, 4, 7, 0, 6, 3, 5, 1, 8)))
    with threads(2):
        run_generation(settings_of_the_demo(images, tmp_path / "out", splits=["val"], batch_size=3))
    rows = rows_of(tmp_path / "out", "val")
    assert {row["source_sha256"]: row["sha256"] for row in rows} == digit_clips
    assert [row["source_sha256"] for row in rows] != list(digit_clips)


def test_the_embedded_checkpoints_frames_hardly_depend_on_the_batch_size(digits):
    pictures = [read_rgb_image(path) for path in sorted((digits / "val/images").iterdir())[:8]]
    pipeline = load_pipeline(str(EMBEDDED), "cpu", "auto")
    single, *batched = (
        floats_of(
            generator_of(pipeline, num_inference_steps=12, batch_size=batch_size, decode_chunk_size=48),
            pictures,
            range(len(pictures)),
        )
        for batch_size in (1, 3, 8)
    )
    assert single.shape == (8, 3, 3, SIZE_PX, SIZE_PX)
    assert max(largest_difference(frames, single) for frames in batched) < SAME  # measured: 8e-7


# --- the whole stage, where no picture comes out ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def nan_checkpoint(plain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nan") / "checkpoint"
    broken = copy.deepcopy(plain)
    spoil(broken, "unet", float("nan"))
    broken.save_pretrained(folder)
    return folder


def test_clips_of_nan_are_bad_rows_with_the_reason_and_no_clips(image_set, nan_checkpoint, tmp_path):
    run_generation(settings_for(image_set, tmp_path, nan_checkpoint, splits=["val"], max_failed_fraction=1.0))
    rows = rows_of(tmp_path, "val")
    assert [row["status"] for row in rows] == ["quarantined"] * 4
    assert all("SVD returned NaN" in row["reason"] for row in rows)
    assert not list((tmp_path / "val").rglob("*.mp4"))
    assert len(list((tmp_path / "quarantine/val").iterdir())) == 4  # what can be shown of them


def test_nan_in_every_clip_ends_the_stage_with_its_reason(image_set, nan_checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"of 4 clips failed.*SVD returned NaN"):
        run_generation(settings_for(image_set, tmp_path, nan_checkpoint, splits=["val"]))


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "cuda", "mps", "chosen"),
    [
        ("auto", True, False, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda:1", True, False, "cuda:1"),
    ],
)
def test_a_device_is_chosen_from_those_there_are(monkeypatch, asked, cuda, mps, chosen):
    pretend_devices(monkeypatch, num_cuda=2 * cuda, mps=mps)
    assert str(choose_device(asked)) == chosen


@pytest.mark.parametrize(("asked", "num_cuda"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("mps", 2)])
def test_a_device_that_is_not_there_is_refused(monkeypatch, asked, num_cuda):
    pretend_devices(monkeypatch, num_cuda=num_cuda, mps=False)
    with pytest.raises(InputError, match=f"device: '{asked}' is not available on this machine"):
        choose_device(asked)


def pretend_devices(monkeypatch: pytest.MonkeyPatch, *, num_cuda: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
