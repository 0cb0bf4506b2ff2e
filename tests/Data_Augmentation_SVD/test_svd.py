"""Stable Video Diffusion through diffusers' own classes, at a size with random weights that a CPU runs in a moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROJECT
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.video_processor import VideoProcessor
from PIL import Image
from samples import random_image, write_image_set
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from Data_Augmentation_SVD import make_svd_videos, svd
from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipError
from Data_Augmentation_SVD.settings import GenerationSettings, SvdSettings
from Data_Augmentation_SVD.svd import SvdGenerator, load_pipeline
from utils.artifacts import CLIP_INDEX, read_table
from utils.clips import read_clip
from utils.config import build_settings, read_settings
from utils.devices import choose_device
from utils.errors import InputError
from utils.indices import read_clip_index

SMALL = {"height": 64, "width": 128, "num_inference_steps": 2}
COMPONENTS = ("unet", "vae", "image_encoder", "scheduler", "feature_extractor")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are so small that a second thread only waits; and sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_tiny_pipeline() -> StableVideoDiffusionPipeline:
    """The published checkpoint's classes and scheduler, with few channels: 8x in the VAE, 8x in the U-Net."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        num_attention_heads=(1, 1, 2, 2),
        cross_attention_dim=16,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        latent_channels=4,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,  # the pipeline always shows it 224 x 224
        patch_size=56,
        projection_dim=16,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    return StableVideoDiffusionPipeline(
        unet=unet,
        vae=vae,
        image_encoder=CLIPVisionModelWithProjection(vision),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224),
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("svd") / "checkpoint"
    build_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path):
    return load_pipeline(str(checkpoint), "cpu", "auto", cpu_offload=True)


@pytest.fixture
def broken_pipeline(checkpoint: Path):
    """A pipeline of its own, for a test to damage."""
    return load_pipeline(str(checkpoint), "cpu", "float32", cpu_offload=False)


def generator_of(pipeline, *, num_frames: int = 3, frame_size: int = 32, **knobs) -> SvdGenerator:
    knobs = SvdSettings(**(SMALL | knobs)).model_dump(exclude={"dtype", "cpu_offload"})
    return SvdGenerator(pipeline, num_frames=num_frames, frame_size=frame_size, **knobs)


def settings_for(data_root: Path, output: Path, model: Path | str, **keys) -> GenerationSettings:
    content = {"data_root": str(data_root), "output_dir": str(output), "generator": "svd", "device": "cpu"}
    content |= {"diffusion_model": str(model), "frame_size": 32, "svd": SMALL}
    return build_settings(GenerationSettings, content | keys, "test")


@pytest.fixture(scope="module")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("images"), per_class=2)


# --- one clip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_frames", "frame_size"), [(3, 32), (2, 64), (5, 224)])
def test_a_clip_has_the_frames_and_the_size_that_were_asked_for(pipeline, num_frames, frame_size):
    clip = generator_of(pipeline, num_frames=num_frames, frame_size=frame_size).generate(random_image(0), seed=1)
    assert clip.shape == (num_frames, frame_size, frame_size, 3)
    assert clip.dtype == np.uint8
    assert clip.std() > 5


def test_the_same_seed_gives_the_same_clip_whatever_torch_drew_before(pipeline):
    clips = []
    for state in (1, 2):
        torch.manual_seed(state)
        clips.append(generator_of(pipeline).generate(random_image(0), seed=2**62 + 3))
    np.testing.assert_array_equal(*clips)


def test_another_seed_gives_another_clip(pipeline):
    clips = [generator_of(pipeline).generate(random_image(0), seed) for seed in (3, 4)]
    assert np.abs(clips[0].astype(int) - clips[1]).mean() > 1


def test_another_image_gives_another_clip(pipeline):
    clips = [generator_of(pipeline).generate(random_image(number), seed=3) for number in (0, 1)]
    assert (clips[0] != clips[1]).any()


def test_the_frames_of_a_clip_differ(pipeline):
    clip = generator_of(pipeline).generate(random_image(0), seed=3)
    assert (clip[0] != clip[1]).any()
    assert (clip[1] != clip[2]).any()


@pytest.mark.parametrize(
    "knobs",
    [
        {"num_inference_steps": 3},
        {"max_guidance_scale": 6.0},
        {"min_guidance_scale": 2.5},
        {"fps": 25},
        {"motion_bucket_id": 10},
        {"noise_aug_strength": 0.5},
        {"width": 64},
    ],
    ids=lambda knobs: next(iter(knobs)),
)
def test_every_knob_changes_the_clip(pipeline, knobs):
    default = generator_of(pipeline).generate(random_image(0), seed=3)
    assert (generator_of(pipeline, **knobs).generate(random_image(0), seed=3) != default).any()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"num_frames": 1}, "num_frames"),
        ({"svd": SMALL | {"min_guidance_scale": 3.0, "max_guidance_scale": 1.0}}, "max_guidance_scale"),
    ],
    ids=["one_frame", "guidance_switched_off_and_on"],
)
def test_settings_that_the_pipeline_cannot_run_are_refused_by_key(image_set, tmp_path, keys, sentence):
    """Its guidance is switched by the last frame's scale before the frames' scales are known."""
    with pytest.raises(InputError, match=sentence):
        run_generation(settings_for(image_set, tmp_path, "nowhere/checkpoint", **keys))


# --- what the pipeline is given, and what is made of its frames ------------------------------------------------------


class Recorder:
    """Stands in for a pipeline: keeps what it was called with and decodes to the frames it was made with."""

    def __init__(self, frames: np.ndarray) -> None:
        video = torch.from_numpy(frames).float() * 2 - 1
        self._video = video.permute(3, 0, 1, 2)[None]  # (T, H, W, C) -> (1, C, T, H, W)
        self.calls = []
        self.video_processor = VideoProcessor(vae_scale_factor=8)

    def __call__(self, image, **options):
        self.calls.append((image, options))
        return SimpleNamespace(frames=torch.zeros(1, self._video.shape[2], 4, 8, 16))

    def decode_latents(self, latents: torch.Tensor, num_frames: int, decode_chunk_size: int) -> torch.Tensor:
        return self._video


def test_the_pipeline_is_given_the_image_stretched_to_its_size():
    recorder = Recorder(np.zeros((3, 64, 128, 3)))
    image = random_image(5, 40)
    generator_of(recorder).generate(image, seed=9)
    ((given, options),) = recorder.calls
    assert given.size == (128, 64)
    np.testing.assert_array_equal(given, Image.fromarray(image).resize((128, 64), Image.Resampling.BICUBIC))
    assert (options["width"], options["height"]) == (128, 64)


def test_the_real_pipeline_sees_that_very_image(pipeline, monkeypatch):
    """What reaches the VAE is the stretched image, scaled to -1..1, plus a little noise."""
    seen = []
    encode = pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda image: seen.append(image) or encode(image))
    image = random_image(5, 40)
    generator_of(pipeline, noise_aug_strength=0.0).generate(image, seed=9)
    stretched = np.asarray(Image.fromarray(image).resize((128, 64), Image.Resampling.BICUBIC))
    (given,) = seen
    given = given[0].permute(1, 2, 0)  # (C, H, W) -> (H, W, C)
    np.testing.assert_allclose((given.numpy() + 1) * 127.5, stretched, atol=0.01)


def test_the_noise_is_drawn_on_the_cpu_from_the_clips_seed():
    recorder = Recorder(np.zeros((3, 64, 128, 3)))
    generator_of(recorder).generate(random_image(0), seed=2**62 + 3)
    drawn_from = recorder.calls[0][1]["generator"]
    assert drawn_from.device.type == "cpu"
    assert drawn_from.initial_seed() == 2**62 + 3


def test_the_shipped_config_gives_the_pipeline_the_papers_values(tmp_path, monkeypatch):
    recorder = Recorder(np.zeros((3, 576, 1024, 3)))
    monkeypatch.setattr(svd, "load_pipeline", lambda *args, **keys: recorder)
    config = Path(make_svd_videos.__file__).with_name("train3d_config.yaml")
    settings = read_settings(GenerationSettings, None, config, [f"data_root={tmp_path}"])
    clip = CLIP_GENERATORS["svd"](settings).generate(random_image(0, 64), seed=0)
    assert clip.shape == (3, 224, 224, 3)
    ((image, options),) = recorder.calls
    assert image.size == (1024, 576)
    del options["generator"], options["output_type"]
    assert options == {
        "height": 576,
        "width": 1024,
        "num_frames": 3,
        "num_inference_steps": 12,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": 3.0,
        "fps": 7,
        "motion_bucket_id": 127,
        "noise_aug_strength": 0.02,
        "decode_chunk_size": 3,
    }


@pytest.mark.parametrize("frame_size", [64, 32, 128])
def test_frames_are_scaled_by_their_shorter_side_and_cropped_in_the_centre(frame_size):
    columns = np.linspace(0, 1, 128)[None, None, :, None].repeat(64, axis=1)
    frames = np.concatenate([columns.repeat(3, axis=3)] * 3)  # (3, 64, 128, 3), brighter to the right
    clip = generator_of(Recorder(frames), frame_size=frame_size).generate(random_image(0), seed=0)
    centres = (np.arange(frame_size) + 0.5) * 64 / frame_size + 32 - 0.5  # the middle 64 of 128 columns
    expected = np.interp(centres, np.arange(128), np.linspace(0, 255, 128))
    np.testing.assert_allclose(clip[1, frame_size // 2, :, 0], expected, atol=1.5)


def test_numbers_are_rounded_to_the_nearest_grey():
    frames = np.full((3, 64, 128, 3), 127.6 / 255)
    clip = generator_of(Recorder(frames), frame_size=64).generate(random_image(0), seed=0)
    assert np.unique(clip).tolist() == [128]


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
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "infinity"])
def test_a_network_that_returns_no_numbers_is_an_error_and_no_picture(broken_pipeline, component, value):
    spoil(broken_pipeline, component, value)
    with pytest.raises(ClipError, match="SVD returned NaN"):
        generator_of(broken_pipeline).generate(random_image(0), seed=0)


@pytest.fixture(scope="module")
def nan_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nan") / "checkpoint"
    pipeline = load_pipeline(str(checkpoint), "cpu", "float32", cpu_offload=False)
    spoil(pipeline, "unet", float("nan"))
    pipeline.save_pretrained(folder)
    return folder


def test_clips_of_nan_are_failed_rows_with_the_reason_and_no_file(image_set, nan_checkpoint, tmp_path):
    settings = settings_for(image_set, tmp_path, nan_checkpoint, splits=["val"], max_failed_fraction=1.0)
    run_generation(settings)
    rows = read_table(tmp_path / "val.csv", CLIP_INDEX)
    assert list(rows["status"]) == ["failed"] * 4
    assert all("SVD returned NaN" in reason for reason in rows["reason"])
    assert not list(tmp_path.rglob("*.mp4"))


def test_nan_in_every_clip_ends_the_stage_with_its_reason(image_set, nan_checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"4 of 4 clips failed.*SVD returned NaN"):
        run_generation(settings_for(image_set, tmp_path, nan_checkpoint, splits=["val"]))


# --- the whole stage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(image_set: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("generated")
    run_generation(settings_for(image_set, output, checkpoint))
    return output


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_stage_writes_clips_that_a_loader_reads(image_set, generated, split):
    index = read_clip_index(generated / f"{split}.csv", generated / split, num_frames=3)
    assert index.labels == [0, 0, 1, 1]
    assert index.clip_kind == "clip:svd"
    assert list(index.table["source_path"]) == paths_in_index(image_set, split)
    for path in index.paths:
        assert read_clip(path, 3).shape == (3, 32, 32, 3)


def paths_in_index(image_set: Path, split: str) -> list[str]:
    return [line.split(",")[0] for line in (image_set / f"{split}.csv").read_text().splitlines()[1:]]


def test_a_clip_on_disk_is_the_generators_clip_for_the_seed_in_the_index(image_set, generated, pipeline):
    row = read_table(generated / "train.csv", CLIP_INDEX).iloc[2]
    image = np.asarray(Image.open(image_set / row["source_path"]))
    expected = generator_of(pipeline).generate(image, int(row["seed"])).astype(float)
    found = read_clip(generated / "train" / row["video_path"]).astype(float)
    other = read_clip(generated / "train/00000.mp4").astype(float)
    assert ((found - expected) ** 2).mean() < ((other - expected) ** 2).mean() / 2


def test_the_stage_gives_the_same_bytes_again(image_set, checkpoint, generated, tmp_path):
    run_generation(settings_for(image_set, tmp_path, checkpoint, splits=["train"]))
    for path in (tmp_path / "train").iterdir():
        assert path.read_bytes() == (generated / "train" / path.name).read_bytes()
    assert (tmp_path / "train.csv").read_bytes() == (generated / "train.csv").read_bytes()


def test_a_finished_stage_needs_no_checkpoint(image_set, checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    settings = settings_for(image_set, tmp_path / "out", copy, splits=["val"])
    run_generation(settings)
    shutil.rmtree(copy)
    assert run_generation(settings) == [tmp_path / "out/val.csv"]


# --- checkpoints that cannot be loaded -------------------------------------------------------------------------------


def cut_weights(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def garble_weights(folder: Path) -> None:
    (folder / "image_encoder/model.safetensors").write_bytes(b"not weights" * 100)


def remove_weights(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()


def change_width(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 32}))


def garble_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def forget_component(folder: Path) -> None:
    path = folder / "model_index.json"
    content = json.loads(path.read_text())
    del content["unet"]
    path.write_text(json.dumps(content))


DAMAGES = {
    "not_a_checkpoint": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    **{f"without_{part}": lambda folder, part=part: shutil.rmtree(folder / part) for part in COMPONENTS},
    "component_not_listed": forget_component,
    "weights_cut": cut_weights,
    "weights_garbled": garble_weights,
    "weights_missing": remove_weights,
    "weights_of_another_shape": change_width,
    "index_garbled": garble_index,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_no_whole_checkpoint_is_refused_in_one_sentence(checkpoint, tmp_path, damage):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    DAMAGES[damage](folder)
    with pytest.raises(InputError) as caught:
        load_pipeline(str(folder), "cpu", "auto", cpu_offload=False)
    sentence = str(caught.value)
    assert sentence.startswith(f"diffusion_model: {folder} is not a complete SVD checkpoint")
    assert "\n" not in sentence


def test_a_hub_id_without_network_says_how_to_get_the_weights():
    with pytest.raises(InputError) as caught:
        load_pipeline("stabilityai/none", "cpu", "auto", cpu_offload=False)
    sentence = str(caught.value)
    assert sentence.startswith("diffusion_model: stabilityai/none cannot be had from the model hub")
    assert "'hf download stabilityai/none'" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c", "~/checkpoint", "a/"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr(StableVideoDiffusionPipeline, "from_pretrained", None)  # to be called would be a TypeError
    with pytest.raises(InputError, match="is neither a folder nor a hub id"):
        load_pipeline(name, "cpu", "auto", cpu_offload=False)


def test_the_stage_ends_at_once_where_the_checkpoint_cannot_be_loaded(image_set, tmp_path, monkeypatch):
    tried = []
    load = svd.load_pipeline
    monkeypatch.setattr(svd, "load_pipeline", lambda *args, **keys: tried.append(args) or load(*args, **keys))
    settings = settings_for(image_set, tmp_path / "out", "nowhere", max_failed_fraction=1.0)
    with pytest.raises(InputError, match=r"^diffusion_model: 'nowhere' is neither a folder nor a hub id"):
        run_generation(settings)
    assert len(tried) == 1
    assert not (tmp_path / "out/train.csv").exists()


def test_the_script_without_weights_and_network_ends_with_one_sentence_and_code_2(image_set, tmp_path):
    """Not with HF_HUB_OFFLINE, as a user meets it: the hub is asked and cannot be reached."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-m", "Data_Augmentation_SVD.make_svd_videos", f"data_root={image_set}", "device=cpu"]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path / 'out'}"],
        env=environment | {"HF_HOME": str(tmp_path / "hub")},
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: diffusion_model: stabilityai/stable-video-diffusion-img2vid cannot be had")
    assert "Traceback" not in done.stderr


# --- devices and types -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_weights_are_loaded_in_the_type_that_was_asked_for(checkpoint, dtype, expected):
    loaded = load_pipeline(str(checkpoint), "cpu", dtype, cpu_offload=False)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.image_encoder.dtype} == {expected}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_clip_again_and_again(checkpoint, pipeline, dtype):
    half = generator_of(load_pipeline(str(checkpoint), "cpu", dtype, cpu_offload=False))
    clips = [half.generate(random_image(0), seed=3).astype(int) for _ in range(2)]
    np.testing.assert_array_equal(*clips)
    same_seed, other_seed = (generator_of(pipeline).generate(random_image(0), seed) for seed in (3, 4))
    assert np.abs(clips[0] - same_seed).mean() < 0.5 * np.abs(clips[0] - other_seed).mean()
