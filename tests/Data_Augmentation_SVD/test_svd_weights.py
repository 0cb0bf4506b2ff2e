"""Where SVD's weights come from, which of them are taken, and what a user reads when they cannot be had."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import pytest
import torch
from conftest import PROJECT
from diffusers import StableVideoDiffusionPipeline
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from samples import write_image_set
from tiny_svd import COMPONENTS, SIZE_PX, build_tiny_pipeline, one_thread, settings_for  # noqa: F401 (a fixture)

from Data_Augmentation_SVD import svd_weights
from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import SvdSettings
from Data_Augmentation_SVD.svd import SvdGenerator
from Data_Augmentation_SVD.svd_weights import load_pipeline, weights_fingerprint
from utils.errors import InputError

MODEL = "owner/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
HALF_UNET_WEIGHTS = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("svd") / "checkpoint"
    build_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def half_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp16 files only, with a bias that tells them from the full ones."""
    folder = tmp_path_factory.mktemp("svd_half") / "checkpoint"
    pipeline = build_tiny_pipeline().to(dtype=torch.float16)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(0.5)
    pipeline.save_pretrained(folder, variant="fp16")
    return folder


@pytest.fixture(scope="module")
def both_checkpoint(checkpoint: Path, half_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("svd_both") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    return Path(shutil.copytree(half_checkpoint, folder, dirs_exist_ok=True))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(tmp_path / "cache" / "snapshots" / COMMIT)
    monkeypatch.setattr(svd_weights, "snapshot_download", fake.snapshot_download)
    return fake


class FakeHub:
    """A hub with one repository: copies what the patterns allow into a cache, or raises."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.repository = cache, None
        self.is_online = True
        self.error: Callable[[], BaseException] | None = None
        self.calls: list[tuple[str, str | None]] = []

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns, ignore_patterns=()) -> str:
        self.calls.append((repo_id, revision))
        if self.error is not None:
            raise self.error()
        names = [path.relative_to(self.repository).as_posix() for path in self.repository.rglob("*") if path.is_file()]
        wanted = [
            name
            for name in names
            if any(fnmatch(name, pattern) for pattern in allow_patterns)
            and not any(fnmatch(name, pattern) for pattern in ignore_patterns)
        ]
        missing = [name for name in wanted if not (self.cache / name).exists()]
        if missing and not self.is_online:
            raise IncompleteSnapshotError(f"the cached snapshot is incomplete:\n{missing}", str(self.cache))
        for name in missing:
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, self.cache / name)
        return str(self.cache)

    @property
    def fetched(self) -> set[str]:
        return {path.relative_to(self.cache).as_posix() for path in self.cache.rglob("*.safetensors")}


def took_half(pipeline) -> bool:
    return bool((pipeline.unet.conv_out.bias == 0.5).all())


# --- which files -----------------------------------------------------------------------------------------------------

CASES = [
    ("checkpoint", "float32", False),
    ("checkpoint", "float16", False),
    ("half_checkpoint", "float32", True),
    ("half_checkpoint", "bfloat16", True),
    ("both_checkpoint", "float32", False),
    ("both_checkpoint", "float16", True),
    ("both_checkpoint", "auto", False),  # float32 on a CPU
]


@pytest.mark.parametrize(("files", "dtype", "half"), CASES)
def test_a_local_folders_half_precision_files_are_taken_where_asked_for_or_alone(files, dtype, half, request):
    loaded = load_pipeline(str(request.getfixturevalue(files)), "cpu", dtype)
    assert took_half(loaded) == half
    expected = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.image_encoder.dtype} == {expected}
    assert loaded.weights_commit is None


@pytest.mark.parametrize(("files", "dtype", "half"), CASES)
def test_of_the_hubs_files_only_those_are_fetched_that_are_used(files, dtype, half, hub, request):
    hub.repository = request.getfixturevalue(files)
    assert took_half(load_pipeline(MODEL, "cpu", dtype)) == half
    assert {".fp16." in name for name in hub.fetched} == {half}
    assert len(hub.fetched) == 3


def test_the_checkpoint_of_other_tools_at_the_top_of_the_repository_is_not_fetched(checkpoint, hub, tmp_path):
    hub.repository = Path(shutil.copytree(checkpoint, tmp_path / "repository"))
    for name in ("svd.safetensors", "svd_image_decoder.safetensors", "comfy/other.safetensors", "unet/other.bin"):
        (hub.repository / name).parent.mkdir(exist_ok=True)
        (hub.repository / name).write_bytes(b"nine gigabytes")
    load_pipeline(MODEL, "cpu", "float32")
    assert hub.fetched == {
        UNET_WEIGHTS,
        "vae/diffusion_pytorch_model.safetensors",
        "image_encoder/model.safetensors",
    }


@pytest.mark.parametrize(("first", "then"), [("float32", "float16"), ("float16", "float32")])
def test_without_network_the_cached_files_of_the_other_precision_are_taken(both_checkpoint, hub, first, then):
    hub.repository = both_checkpoint
    load_pipeline(MODEL, "cpu", first)
    hub.is_online = False
    assert took_half(load_pipeline(MODEL, "cpu", then)) == (first == "float16")


def test_the_revision_is_asked_for_and_the_commit_reaches_the_records(checkpoint, hub):
    hub.repository = checkpoint
    pipeline = load_pipeline(MODEL, "cpu", "auto", revision="v1")
    assert hub.calls == [(MODEL, "v1")]
    generator = SvdGenerator(
        pipeline,
        device="cpu",
        geometry=Geometry(SIZE_PX, SIZE_PX, "stretch", "centre_crop", 32),
        num_frames=3,
        **SvdSettings().model_dump(exclude={"dtype"}),
    )
    described = generator.describe()
    assert described["model_commit"] == COMMIT
    assert described["dtype"] == "float32"
    assert described["name"].startswith("cpu")


def test_no_foreign_code_is_asked_for(checkpoint, monkeypatch):
    calls = []
    load = StableVideoDiffusionPipeline.from_pretrained
    record = lambda folder, **keys: calls.append((folder, keys)) or load(folder, **keys)  # noqa: E731
    monkeypatch.setattr(StableVideoDiffusionPipeline, "from_pretrained", record)
    load_pipeline(str(checkpoint), "cpu", "auto")
    keys = {"dtype": torch.float32, "local_files_only": True, "variant": None}
    assert calls == [(checkpoint, keys)]


# --- the fingerprint of a folder -------------------------------------------------------------------------------------


def test_a_copy_elsewhere_has_the_same_fingerprint(checkpoint, tmp_path):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "elsewhere"))
    (copy / ".cache/huggingface").mkdir(parents=True)
    (copy / ".cache/huggingface/trees.json").write_text("{}")  # the hub client's own
    assert weights_fingerprint(str(copy)) == weights_fingerprint(str(checkpoint))


def train_further(folder: Path) -> None:
    weights = load_file(folder / UNET_WEIGHTS)
    save_file({name: tensor * 1.001 for name, tensor in weights.items()}, folder / UNET_WEIGHTS, {"format": "pt"})


def another_noise_level(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    text = path.read_text()
    assert "700.0" in text
    path.write_text(text.replace("700.0", "500.0"))


def last_weight(folder: Path) -> None:
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change", [train_further, another_noise_level, last_weight], ids=lambda change: change.__name__
)
def test_a_change_that_keeps_all_sizes_changes_the_fingerprint(checkpoint, tmp_path, change):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    change(copy)
    sizes = [
        {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        for folder in (checkpoint, copy)
    ]
    assert sizes[0] == sizes[1]
    assert weights_fingerprint(str(copy)) != weights_fingerprint(str(checkpoint))


@pytest.mark.parametrize("name", [UNET_WEIGHTS, "model_index.json", "image_encoder/config.json"])
def test_a_file_more_or_less_changes_the_fingerprint(checkpoint, tmp_path, name):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / name).rename(copy / f"{name}.away")
    assert weights_fingerprint(str(copy)) != weights_fingerprint(str(checkpoint))


def test_what_is_no_folder_has_no_fingerprint(tmp_path):
    assert weights_fingerprint(str(tmp_path / "none")) is None
    assert weights_fingerprint(MODEL) is None


# --- weights that cannot be had --------------------------------------------------------------------------------------


def answer(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", f"https://huggingface.co/api/models/{MODEL}"))


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def hub_error(kind: type[HfHubHTTPError], status: int) -> Callable[[], BaseException]:
    return lambda: kind(f"{status} Client Error.\n\nCannot access it\nfor url: ...", response=answer(status))


ELSEWHERE = (
    "is not in the local cache; on a machine with network run 'hf download owner/model', copy the folder here and set "
    "diffusion_model to its path"
)
LACKS = {
    "offline": (
        lambda: caused_by(LocalEntryNotFoundError("Cannot find\na snapshot"), OfflineModeIsEnabled("offline")),
        f"diffusion_model: owner/model cannot be had from the model hub (it cannot be reached) and {ELSEWHERE}",
    ),
    "no_network": (
        lambda: caused_by(LocalEntryNotFoundError("Got: ConnectError\n..."), httpx2.ConnectError("refused\n...")),
        f"diffusion_model: owner/model cannot be had from the model hub (it cannot be reached) and {ELSEWHERE}",
    ),
    "hub_is_down": (
        lambda: caused_by(LocalEntryNotFoundError("Got: 503\n..."), hub_error(HfHubHTTPError, 503)()),
        f"diffusion_model: owner/model cannot be had from the model hub (the hub answered 503) and {ELSEWHERE}",
    ),
    "proxy": (
        lambda: httpx2.ProxyError("the proxy refuses\nfor a reason"),
        f"diffusion_model: owner/model cannot be had from the model hub (the proxy refuses) and {ELSEWHERE}",
    ),
    "no_token": (
        hub_error(GatedRepoError, 401),
        "diffusion_model: owner/model is gated and no token was sent; accept its licence at "
        "https://huggingface.co/owner/model, then run 'hf auth login' (or set HF_TOKEN)",
    ),
    "no_access": (
        hub_error(GatedRepoError, 403),
        "diffusion_model: owner/model is gated and your token has no access to it; accept its licence at "
        "https://huggingface.co/owner/model with the account of the token, and allow the token to read gated "
        "repositories",
    ),
    "unknown_repository": (
        hub_error(RepositoryNotFoundError, 404),
        "diffusion_model: the model hub has no owner/model, or it is private; correct the id, or run 'hf auth login' "
        "with an account that may read it",
    ),
    "unknown_revision": (
        hub_error(RevisionNotFoundError, 404),
        "model_revision: owner/model has no revision 'v9'; use a branch, tag or commit that exists",
    ),
    "partial_cache": (
        lambda: caused_by(
            IncompleteSnapshotError("is incomplete:\n2 files", "/cache"), httpx2.ConnectError("refused\n...")
        ),
        "diffusion_model: the local cache holds only a part of owner/model (files are missing and the hub cannot be "
        "reached); with network, run 'hf download owner/model' to complete it, then run the same command again",
    ),
    "disk_full": (
        lambda: caused_by(RuntimeError("the transfer failed\n..."), OSError(errno.ENOSPC, "No space left on device")),
        "diffusion_model: the disk is full while owner/model is fetched (it needs about 5 GB in half precision, 9 GB "
        "in float32); free some space, or set HF_HOME to a larger disk, and run the same command again",
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("lack", LACKS)
def test_each_way_to_lack_weights_has_its_sentence(hub, lack, dtype):
    hub.error, sentence = LACKS[lack]
    with pytest.raises(InputError) as caught:
        load_pipeline(MODEL, "cpu", dtype, revision="v9")
    assert str(caught.value) == sentence
    assert "\n" not in sentence


def test_the_sentences_differ_but_for_the_two_ways_to_be_offline():
    assert len({sentence for _, sentence in LACKS.values()}) == len(LACKS) - 1


def test_a_full_disk_is_found_at_the_end_of_a_long_chain(hub):
    full = OSError(errno.EDQUOT, "quota")
    hub.error = lambda: caused_by(
        LocalEntryNotFoundError("x"), caused_by(HfHubHTTPError("y", response=answer(200)), full)
    )
    with pytest.raises(InputError, match="the disk is full"):
        load_pipeline(MODEL, "cpu", "auto")


@pytest.mark.parametrize("part", [UNET_WEIGHTS, "vae/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_a_cached_folder_that_lacks_files_is_a_partial_cache(checkpoint, hub, part, tmp_path):
    """An interrupted download whose list of files was never written: the hub's client cannot tell."""
    hub.repository = Path(shutil.copytree(checkpoint, tmp_path / "repository"))
    (hub.repository / part).unlink()
    with pytest.raises(InputError) as caught:
        load_pipeline(MODEL, "cpu", "auto")
    sentence = str(caught.value)
    assert sentence.startswith("diffusion_model: the local cache holds only a part of owner/model (")
    assert sentence.endswith("run 'hf download owner/model' to complete it, then run the same command again")
    assert "\n" not in sentence


def test_a_hub_id_without_network_says_how_to_get_the_weights():
    """Nothing is made up here: the hub's client itself, told to be offline."""
    with pytest.raises(InputError) as caught:
        load_pipeline("stabilityai/none", "cpu", "auto")
    assert str(caught.value) == LACKS["offline"][1].replace(MODEL, "stabilityai/none")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c", "~/checkpoint", "a/"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(hub, name):
    with pytest.raises(InputError, match="is neither a folder nor a hub id"):
        load_pipeline(name, "cpu", "auto")
    assert hub.calls == []


@pytest.mark.parametrize("name", ["owner/with space", "owner/a--b", "owner/.git"])
def test_an_id_that_the_hubs_client_refuses_is_one_sentence(name):
    with pytest.raises(InputError) as caught:
        load_pipeline(name, "cpu", "auto")
    assert str(caught.value).startswith(f"diffusion_model: {name} cannot be had from the model hub (")
    assert "\n" not in str(caught.value)


# --- local folders that are no whole checkpoint ----------------------------------------------------------------------


def cut_weights(folder: Path) -> None:
    path = folder / UNET_WEIGHTS
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
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    DAMAGES[damage](folder)
    with pytest.raises(InputError) as caught:
        load_pipeline(str(folder), "cpu", "auto")
    sentence = str(caught.value)
    assert sentence.startswith(f"diffusion_model: {folder} is not a complete SVD checkpoint")
    assert "\n" not in sentence


# --- the stage -------------------------------------------------------------------------------------------------------


def test_the_stage_ends_at_once_where_the_checkpoint_cannot_be_loaded(tmp_path, monkeypatch):
    tried = []
    load = svd_weights.load_pipeline
    monkeypatch.setattr(svd_weights, "load_pipeline", lambda *args, **keys: tried.append(args) or load(*args, **keys))
    image_set = write_image_set(tmp_path / "images", per_class=1)
    settings = settings_for(image_set, tmp_path / "out", "nowhere", max_failed_fraction=1.0)
    with pytest.raises(InputError, match=r"^diffusion_model: 'nowhere' is neither a folder nor a hub id"):
        run_generation(settings)
    assert len(tried) == 1
    assert not (tmp_path / "out/train.csv").exists()


def test_the_stage_takes_the_hubs_weights_and_records_their_commit(checkpoint, hub, tmp_path):
    hub.repository = checkpoint
    image_set = write_image_set(tmp_path / "images", per_class=1, splits=("val",))
    run_generation(settings_for(image_set, tmp_path / "out", MODEL, splits=["val"], model_revision="v1"))
    assert set(hub.calls) == {(MODEL, "v1")}
    assert json.loads((tmp_path / "out/environment.json").read_text())["device"]["model_commit"] == COMMIT


def test_the_script_without_weights_and_network_ends_with_one_sentence_and_code_2(tmp_path):
    """Not with HF_HUB_OFFLINE, as a user meets it: the hub is asked and cannot be reached."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    image_set = write_image_set(tmp_path / "images", per_class=1)
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
