"""Bad input through the real entry points: one clear sentence, exit code 2, and nothing lost or half-made.

Unless a test says otherwise a script's `main` runs in this process under `run_script`, in an empty folder.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import PROJECT
from PIL import Image
from samples import description_of, random_image, write_clip_set, write_image_set, write_raw_set

from utils.artifacts import CLIP_INDEX, IMAGE_INDEX, read_table
from utils.checkpoints import read_weights, write_weights
from utils.clips import read_clip, write_clip
from utils.config import read_yaml
from utils.errors import InputError, run_script
from utils.files import sha256_file
from utils.indices import ClassInfo, read_image_index

FILTER, VAL = "Data_Sourcing.filter", "Data_Sourcing.val"
GENERATE, MERGE = "Data_Augmentation_SVD.make_svd_videos", "Data_Augmentation_SVD.merge_shards"
TRAIN_2D, TRAIN_3D = "Baseline_VGG.train", "Inflated_3D_VGG.train3d"
EVALUATE, PREPARE = "Model_Evaluation.evaluate", "Model_Evaluation.prepare_evaluation_data"
COUNT = "Model_Evaluation.parameter_count"

# What only a finished step may leave behind; config, environment and lock are bookkeeping.
RESULTS = {"train.csv", "val.csv", "model_best.safetensors", "last.pt", "curves.png", "predictions.csv", "summary.csv"}

SOURCE_YAML = "raw_root: raw\noutput_dir: sourced\nclasses:\n- {wnid: c0, name: zero}\n- {wnid: c1, name: one}\n"
GENERATE_YAML = "data_root: images\noutput_dir: made\ngenerator: static\nframe_size: 32\n"
_TINY_RUN = "output_dir: run\nweights: none\nimage_size: 32\nclassifier_width: 8\nworkers: 0\ndevice: cpu\n"
TRAIN_2D_YAML = "data_root: images\n" + _TINY_RUN
TRAIN_3D_YAML = "data_root: clips\nepochs: 1\n" + _TINY_RUN
EVALUATE_YAML = """\
models:
- {name: net, type: baseline, checkpoint: CHECKPOINT, input: first_frame}
data: {root: clips, batch_size: 4, workers: 0}
latency: {warmup: 1, repetitions: 1}
output_dir: results
device: cpu
"""


@dataclass
class Outcome:
    """What a user sees of one run."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a script's `main` in this process."""

    def call(script: str, *arguments: str) -> Outcome:
        module = importlib.import_module(script)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        capsys.readouterr()
        code = 0
        try:
            run_script(module.main)
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def refuse(run: Callable[..., Outcome], workplace: Path) -> Callable[..., None]:
    """Run a script on bad input and check all that holds for every refusal.

    Args:
        config: text of `config.yaml`; None leaves the file (or its absence) to the test.
        at_once: the config itself is at fault, so that not a single file may appear.
    """

    def call(script: str, config: str | None, *overrides: str, says: list[str], at_once: bool = False) -> None:
        if config is not None:
            Path("config.yaml").write_text(config, encoding="utf-8")
        before = snapshot(workplace)
        outcome = run(script, "--config", "config.yaml", *overrides)
        assert_refused(outcome, says)
        assert outcome.stderr.startswith("error: ") and outcome.stderr.count("error: ") == 1
        assert_nothing_lost_or_made(before, snapshot(workplace), at_once)

    return call


def assert_refused(outcome: Outcome, says: list[str]) -> None:
    assert outcome.code == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    for part in says:
        assert part in outcome.stderr


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_nothing_lost_or_made(before: dict[str, bytes], after: dict[str, bytes], at_once: bool) -> None:
    # The lock is an empty file that is opened anew by each run; everything else that was there is as it was.
    assert {name: after.get(name) for name in before} == before
    made = after.keys() - before.keys()
    assert not any(name.endswith(".partial") for name in made)
    assert not {Path(name).name for name in made} & RESULTS
    assert not (at_once and made)


def run_child(script: str, *arguments: str) -> Outcome:
    """Run a script as users do, as its own process in the project's root."""
    command = [sys.executable, "-m", script, *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good copy of every kind of input."""
    root = tmp_path_factory.mktemp("templates")
    write_raw_set(root / "raw")
    write_image_set(root / "images")
    write_clip_set(root / "clips")
    write_clip_set(root / "published", published=True)
    return root


@pytest.fixture
def raw(templates: Path, workplace: Path) -> Path:
    return shutil.copytree(templates / "raw", workplace / "raw")


@pytest.fixture
def images(templates: Path, workplace: Path) -> Path:
    return shutil.copytree(templates / "images", workplace / "images")


@pytest.fixture
def clips(templates: Path, workplace: Path) -> Path:
    return shutil.copytree(templates / "clips", workplace / "clips")


@pytest.fixture
def published_clips(templates: Path, workplace: Path) -> Path:
    return shutil.copytree(templates / "published", workplace / "clips")


# ---------------------------------------------------------------------------------------------------------------------
# The config file

TRAINING_VALUES = {
    "typo": ("bacth_size: 4", ["unknown key 'bacth_size'", "did you mean 'batch_size'?"]),
    "unknown key": ("zzz: 4", ["unknown key 'zzz'; remove it"]),
    "word for a number": ("epochs: ten", ["epochs: ", "integer", "'ten'"]),
    "yes for a number": ("epochs: yes", ["epochs: ", "integer", "'yes'"]),
    "true for a number": ("epochs: true", ["epochs: ", "integer", "True"]),
    "quoted number": ('epochs: "5"', ["epochs: ", "integer", "'5'"]),
    "fraction for an integer": ("epochs: 2.5", ["epochs: ", "2.5"]),
    "empty value": ("epochs:", ["epochs: ", "integer", "None"]),
    "negative": ("epochs: -1", ["epochs: ", "greater than or equal to 1", "-1"]),
    "zero": ("batch_size: 0", ["batch_size: ", "greater than or equal to 1"]),
    "word for a float": ("lr: abc", ["lr: ", "number", "'abc'"]),
    "zero learning rate": ("lr: 0", ["lr: ", "greater than 0"]),
    "infinity": ("lr: .inf", ["lr: ", "finite"]),
    "overflow to infinity": ("lr: 1e999", ["lr: ", "finite"]),
    "not a number": ("lr: .nan", ["lr: ", "finite"]),
    "number for a flag": ("deterministic: 1", ["deterministic: ", "boolean"]),
    "word for a flag": ("augmentation: {horizontal_flip: yes}", ["augmentation.horizontal_flip: ", "boolean", "'yes'"]),
    "short list": ("mean: [0.5, 0.5]", ["mean.2"]),
    "mean beyond one": ("mean: [0.5, 0.5, 124]", ["mean.2: ", "less than or equal to 1", "124"]),
    "zero std": ("std: [0.2, 0, 0.2]", ["std.1: ", "greater than 0"]),
    "list for a number": ("lr: [1]", ["lr: ", "number", "[1]"]),
    "section for a number": ("lr: {value: 1}", ["lr: ", "number"]),
    "unknown precision": ("precision: fp64", ["precision: ", "'fp32'", "'fp64'"]),
    "unknown device": ("device: gpu", ["device: ", "'gpu'"]),
    "duplicate key": ("seed: 1\nseed: 2", ["config.yaml line 4", "duplicate key 'seed'"]),
    "python tag": ("lr: !!python/object/apply:os.system ['touch ran']", ["config.yaml line 3", "refused the tag"]),
    "syntax error": ("mean: [0.5, 0.5", ["config.yaml line 3", "not valid YAML"]),
    "tab": ("svd:\n\tlr: 1", ["config.yaml line 4", "not valid YAML"]),
    "unknown anchor": ("lr: *rate", ["config.yaml line 3", "not valid YAML"]),
    "value that holds itself": ("lr: &a [*a]", ["config.yaml line 3", "not valid YAML"]),
    "date tag": ("seed: !!timestamp 2020-01-01", ["config.yaml", "timestamp"]),
    "binary tag": ("weights: !!binary aGVsbG8=", ["config.yaml", "binary"]),
    "word under an integer's tag": ("epochs: !!int ten", ["config.yaml", "not valid YAML"]),
    "word under a flag's tag": ("deterministic: !!bool maybe", ["config.yaml", "not valid YAML"]),
    "number of 5000 digits": (f"epochs: {'9' * 5000}", ["config.yaml", "not valid YAML"]),
    "set tag": ("mean: !!set {a, b}", ["config.yaml", "set"]),
    "weights that do not exist": ("weights: nowhere.pth", ["'nowhere.pth'", "neither imagenet, none, nor"]),
    "missing path": ("wnids_file: nowhere.txt", ["wnids_file: nowhere.txt does not exist"]),
}


@pytest.mark.parametrize(("line", "says"), TRAINING_VALUES.values(), ids=TRAINING_VALUES)
def test_bad_value_in_a_training_config_names_file_and_key(refuse, images, line, says):
    config = "data_root: images\noutput_dir: run\n" + line + "\n"
    refuse(TRAIN_2D, config, says=["config.yaml", *says], at_once=True)
    assert not Path("ran").exists()


def test_all_problems_of_a_config_are_reported_at_once(refuse):
    config = "data_root: nowhere\nwnids_file: nothing.txt\nepochs: ten\nbacth_size: 1\n"
    says = ["4 problems", "nowhere does not exist", "nothing.txt does not exist", "'ten'", "did you mean 'batch_size'"]
    refuse(TRAIN_2D, config, says=says, at_once=True)


CONFIG_FILES = {
    "a list": (b"- data_root: images\n", ["must be a mapping", "list"]),
    "a sentence": (b"train it, please\n", ["must be a mapping", "str"]),
    "a number": (b"5\n", ["must be a mapping", "int"]),
    "two documents": (b"seed: 1\n---\nseed: 2\n", ["line 2", "not valid YAML"]),
    "nothing": (b"", ["'data_root' is missing; give the image set"]),
    "only comments": (b"# data_root: images\n", ["'data_root' is missing; give the image set"]),
    "latin-1": ("data_root: K\xfche\n".encode("latin-1"), ["not UTF-8"]),
    "utf-16": ("data_root: images\n".encode("utf-16"), ["not UTF-8"]),
    "a zero byte": (b"data_root: a\0b\n", ["not valid YAML"]),
    "deep nesting": (b"[" * 5000, ["not valid YAML"]),
}


@pytest.mark.parametrize(("content", "says"), CONFIG_FILES.values(), ids=CONFIG_FILES)
def test_config_that_is_no_mapping_of_settings(refuse, content, says):
    Path("config.yaml").write_bytes(content)
    refuse(TRAIN_2D, None, says=["config.yaml", *says], at_once=True)


def test_missing_config_file_is_named(refuse):
    refuse(TRAIN_2D, None, says=["config.yaml: there is no such file"], at_once=True)


def test_folder_as_config_file_is_named(refuse):
    Path("config.yaml").mkdir()
    refuse(TRAIN_2D, None, says=["config.yaml: there is no such file"], at_once=True)


def test_both_names_of_one_setting_in_one_file(refuse, clips):
    config = "data_root: clips\ntime_dim: 3\nnum_frames: 3\n"
    refuse(TRAIN_3D, config, says=["config.yaml", "'num_frames'", "names of the same setting"], at_once=True)


OVERRIDES = {
    "no equals sign": (["epochs"], ["override 'epochs'", "key=value"]),
    "no key": (["=5"], ["override '=5'", "key=value"]),
    "blanks around the sign": (["epochs", "=", "5"], ["override 'epochs'", "without blanks"]),
    "given twice": (["epochs=1", "epochs=2"], ["override 'epochs' is given twice"]),
    "given twice under two names": (["num_frames=3", "time_dim=4"], ["num_frames", "given twice"]),
    "typo": (["epcohs=1"], ["unknown key 'epcohs'", "did you mean 'epochs'?"]),
    "wrong type": (["epochs=ten"], ["config.yaml with the overrides", "epochs: ", "'ten'"]),
    "value that holds itself": (["mean=&a [*a]"], ["override 'mean=&a [*a]'"]),
    "no YAML": (["mean=[0.5"], ["override 'mean=[0.5'", "not valid YAML"]),
    "section that is none": (["lr.rate=1"], ["lr: ", "number"]),
    "unknown section": (["optimiser.lr=1"], ["unknown key 'optimiser'", "did you mean 'optimizer'?"]),
    "empty part of a key": (["data..root=1"], ["unknown key 'data'"]),
}


@pytest.mark.parametrize(("overrides", "says"), OVERRIDES.values(), ids=OVERRIDES)
def test_bad_override_is_named(refuse, clips, overrides, says):
    refuse(TRAIN_3D, TRAIN_3D_YAML, *overrides, says=says, at_once=True)


EVALUATION_CONFIGS = {
    "missing section": ("data:", "dta:", [], ["unknown key 'dta'", "did you mean 'data'?", "'data' is missing"]),
    "empty section": ("data: {root: clips, batch_size: 4, workers: 0}", "data:", [], ["data: ", "None"]),
    "no models": ("models:\n", "models: []\nx:\n", [], ["unknown key 'x'"]),
    "typo in a list item": ("name: net", "nmae: net", [], ["models.0.nmae", "did you mean 'models.0.name'?"]),
    "unknown type": ("type: baseline", "type: vgg3", [], ["models.0.type: ", "'baseline'", "'inflated'", "'vgg3'"]),
    "unknown input": ("input: first_frame", "input: clp", [], ["unknown input 'clp'", "clip, static", "tta:N"]),
    "no number of views": ("input: first_frame", "input: tta:0", [], ["input 'tta:0'", "2 to 12 views"]),
    "name with a slash": ("name: net", "name: ../net", [], ["models.0.name: ", "'../net'"]),
    "images missing": ("input: first_frame", "input: original", [], ["data.images_root is missing"]),
    "clips missing": ("root: clips, ", "", [], ["data.root is missing"]),
    "position out of range": ("", "", ["models.7.name=a"], ["models.7", "list with positions 0 to 0"]),
    "position that is a name": ("", "", ["models.net.name=a"], ["models.net", "list with positions 0 to 0"]),
    "zero repetitions": ("", "", ["latency.repetitions=0"], ["latency.repetitions: ", "greater than or equal to 1"]),
}


@pytest.mark.parametrize(("old", "new", "overrides", "says"), EVALUATION_CONFIGS.values(), ids=EVALUATION_CONFIGS)
def test_bad_evaluation_config_names_section_and_key(refuse, clips, old, new, overrides, says):
    Path("CHECKPOINT").write_bytes(b"")
    assert old in EVALUATE_YAML
    refuse(EVALUATE, EVALUATE_YAML.replace(old, new, 1), *overrides, says=says, at_once=True)


def test_evaluation_without_models(refuse, clips):
    refuse(EVALUATE, "data: {root: clips}\n", says=["no model to score", "'models'", "'model2d'"], at_once=True)


def test_one_name_for_two_models(refuse, clips):
    Path("CHECKPOINT").write_bytes(b"")
    model = "- {name: net, type: baseline, checkpoint: CHECKPOINT, input: first_frame}\n"
    config = EVALUATE_YAML.replace(model, model * 2)
    refuse(EVALUATE, config, says=["name 'net' is used twice"], at_once=True)


GENERATION_VALUES = {
    "unknown generator": ("generator: sdv", ["unknown generator 'sdv'", "camera_motion, static, svd"]),
    "odd frame size": ("frame_size: 33", ["frame_size: ", "multiple of 2"]),
    "split twice": ("splits: [val, val]", ["a split is listed twice"]),
    "unknown split": ("splits: [test]", ["splits.0: ", "'test'"]),
    "typo in a section": ("svd: {fpz: 7}", ["unknown key 'svd.fpz'", "did you mean 'svd.fps'?"]),
    "empty section": ("svd:", ["svd: ", "None"]),
    "size that the network cannot halve": ("geometry: {height: 100}", ["geometry.height: ", "multiple of 64"]),
    "size where it stood before": ("svd: {height: 576}", ["unknown key 'svd.height'"]),
    "unknown fit": ("geometry: {fit: squeeze}", ["geometry.fit: ", "'pad', 'crop' or 'stretch'", "'squeeze'"]),
    "unknown output": ("geometry: {output: none}", ["geometry.output: ", "'undo' or 'centre_crop'"]),
    "shard zero": ("shard: 0/4", ["shard: ", "i/n with i from 1 to n, such as 1/4, not '0/4'"]),
    "shard beyond the last": ("shard: 5/4", ["shard: ", "not '5/4'"]),
    "shard of none": ("shard: 1/0", ["shard: ", "not '1/0'"]),
    "shard without a number": ("shard: first", ["shard: ", "not 'first'"]),
    "shard with blanks": ("shard: 1 / 4", ["shard: ", "not '1 / 4'"]),
    "negative shard": ("shard: -1/4", ["shard: ", "not '-1/4'"]),
    "more kept than made": ("native_frames: 2", ["native_frames: 2 generated frames cannot give num_frames=3"]),
    "one frame of SVD": ("num_frames: 1", ["num_frames: SVD makes at least 2 frames"]),
    "no clip an image": ("clips_per_image: 0", ["clips_per_image: ", "greater than or equal to 1"]),
    "no images a chunk": ("chunk_size: 0", ["chunk_size: ", "greater than or equal to 1"]),
    "unknown codec": ("codec: h265", ["codec: ", "'h264' or 'h264_lossless'", "'h265'"]),
    "unknown first frame": ("first_frame: source", ["first_frame: ", "'generated' or 'original'"]),
    "flag that is a word": ("retry_failed: yes", ["retry_failed: ", "boolean", "'yes'"]),
    "correlation beyond one": ("checks: {min_source_correlation: 2}", ["checks.min_source_correlation: ", "1"]),
    "typo in the checks": ("checks: {min_motoin: 1}", ["did you mean 'checks.min_motion'?"]),
    "share beyond one": ("max_failed_fraction: 1.5", ["max_failed_fraction: ", "less than or equal to 1"]),
    "guidance that falls below one": (
        "svd: {min_guidance_scale: 2, max_guidance_scale: 1}",
        ["svd.max_guidance_scale: must be above 1"],
    ),
    "unknown offload": ("svd: {offload: all}", ["svd.offload: ", "'none' or 'phases'"]),
}


@pytest.mark.parametrize(("line", "says"), GENERATION_VALUES.values(), ids=GENERATION_VALUES)
def test_bad_generation_value_is_named(refuse, images, line, says):
    refuse(GENERATE, f"data_root: images\n{line}\n", says=["config.yaml", *says], at_once=True)


# ---------------------------------------------------------------------------------------------------------------------
# The raw data set

SOURCING_CONFIGS = {
    "class twice": ("wnid: c1", "wnid: c0", ["wnid 'c0' is listed twice"]),
    "name twice": ("name: one", "name: zero", ["name 'zero' is listed twice"]),
    "wnid with a slash": ("wnid: c1", "wnid: ../c1", ["classes.1.wnid: ", "'../c1'"]),
    "number for a wnid": ("wnid: c1", "wnid: 7", ["classes.1.wnid: ", "text", "7"]),
    "no name": (", name: one", "", ["'classes.1.name' is missing"]),
}


@pytest.mark.parametrize(("old", "new", "says"), SOURCING_CONFIGS.values(), ids=SOURCING_CONFIGS)
def test_bad_class_list_names_the_class(refuse, raw, old, new, says):
    refuse(FILTER, SOURCE_YAML.replace(old, new), says=says, at_once=True)


def test_empty_class_list(refuse, raw):
    config = "raw_root: raw\noutput_dir: sourced\nclasses: []\n"
    refuse(FILTER, config, says=["classes: ", "give at least one"], at_once=True)


def test_missing_raw_root_is_named(refuse):
    refuse(FILTER, SOURCE_YAML, says=["raw_root: raw does not exist"])


def test_raw_root_without_the_layout(refuse):
    Path("raw/pictures").mkdir(parents=True)
    refuse(FILTER, SOURCE_YAML, says=["raw_root: raw has neither wnids.txt nor train/ nor val/"])


def test_raw_root_that_is_no_zip(refuse):
    Path("raw").write_text("not a zip")
    refuse(FILTER, SOURCE_YAML, says=["raw_root: raw is not a complete zip file"])


def test_raw_zip_that_is_cut_short(refuse, raw):
    archive = zip_folder(raw, Path("raw.zip"))
    archive.write_bytes(archive.read_bytes()[:-100])
    refuse(FILTER, SOURCE_YAML, "raw_root=raw.zip", says=["raw_root: raw.zip is not a complete zip file"])


def test_raw_zip_without_wnids(refuse, raw):
    (raw / "wnids.txt").unlink()
    zip_folder(raw, Path("raw.zip"))
    refuse(FILTER, SOURCE_YAML, "raw_root=raw.zip", says=["raw_root: raw.zip holds no wnids.txt"])


def test_damaged_image_inside_a_zip_is_a_rejected_row(refuse, raw):
    archive = zip_folder(raw, Path("raw.zip"))
    with zipfile.ZipFile(archive) as content:
        entry = content.getinfo("train/c1/images/c1_1.JPEG")
    start = entry.header_offset + 30 + len(entry.filename)
    damaged = bytearray(archive.read_bytes())
    damaged[start : start + 8] = b"\xff" * 8  # no such deflate block
    archive.write_bytes(damaged)
    refuse(FILTER, SOURCE_YAML, "raw_root=raw.zip", says=["train_issues.csv: 1 of 6 images cannot be used"])
    assert "train/c1/images/c1_1.JPEG" in Path("sourced/train_issues.csv").read_text()


def test_failed_download_says_how_to_fetch_by_hand(refuse):
    arguments = ["raw_root=raw.zip", "download=true", "download_url=file:///nowhere/raw.zip"]
    refuse(FILTER, SOURCE_YAML, *arguments, says=["download of file:///nowhere/raw.zip failed", "save it as raw.zip"])


@pytest.mark.parametrize(("script", "split"), [(FILTER, "train"), (VAL, "val")])
def test_class_without_images_is_named(refuse, raw, script, split):
    refuse(script, SOURCE_YAML.replace("wnid: c1", "wnid: c7"), says=["class 'c7'", f"{split}/c7", "class list"])


def test_too_many_unusable_images_end_the_stage(refuse, raw):
    (raw / "train/c0/images/c0_1.JPEG").write_bytes(b"no image")
    says = ["sourced/train_issues.csv: 1 of 6 images cannot be used", "max_rejected_fraction=0.05"]
    refuse(FILTER, SOURCE_YAML, says=says)
    assert "not an image" in Path("sourced/train_issues.csv").read_text()


ANNOTATIONS = {
    "no tab": (b"val_0.JPEG c0\n", ["val_annotations.txt line 10", "TAB"]),
    "a path": (b"../val_0.JPEG\tc0\n", ["val_annotations.txt line 10", "'../val_0.JPEG"]),
    "not UTF-8": (b"val_\xfc.JPEG\tc0\n", ["val_annotations.txt", "UTF-8"]),
    "an image twice": (b"val_0.JPEG\tc0\t0\t0\t1\t1\n", ["val_annotations.txt line 10", "val_0.JPEG"]),
    "an image in two classes": (b"val_0.JPEG\tc1\t0\t0\t1\t1\n", ["val_annotations.txt line 10", "val_0.JPEG"]),
}


@pytest.mark.parametrize(("line", "says"), ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_broken_annotation_line_is_named(refuse, raw, line, says):
    with (raw / "val/val_annotations.txt").open("ab") as file:
        file.write(line)
    refuse(VAL, SOURCE_YAML, says=says)


def test_raw_files_of_one_name_in_two_folders_are_both_kept(run, raw):
    other = raw / "train/c0/c0_1.JPEG"
    shutil.copy(raw / "val/images/val_0.JPEG", other)
    Path("config.yaml").write_text(SOURCE_YAML)
    assert run(FILTER, "--config", "config.yaml").code == 0
    index = read_image_index(Path("sourced/train.csv"))
    assert len(index) == 7
    assert {sha256_file(other), sha256_file(raw / "train/c0/images/c0_1.JPEG")} < set(index.table["sha256"])


def leak_one_image(raw: Path) -> None:
    shutil.copy(raw / "train/c1/images/c1_2.JPEG", raw / "val/images/val_0.JPEG")


def test_image_in_train_and_val_is_named(run, refuse, raw):
    leak_one_image(raw)
    Path("config.yaml").write_text(SOURCE_YAML)
    assert run(FILTER, "--config", "config.yaml").code == 0
    says = ["1 images are in train and in val", "val/c0/val_0.JPEG = train/c1/c1_2.JPEG", "allow_duplicates: true"]
    refuse(VAL, None, says=says)


def test_image_in_train_and_val_passes_when_allowed(run, raw):
    leak_one_image(raw)
    Path("config.yaml").write_text(SOURCE_YAML + "allow_duplicates: true\n")
    assert [run(script, "--config", "config.yaml").code for script in (FILTER, VAL)] == [0, 0]
    assert len(read_table(Path("sourced/val.csv"), IMAGE_INDEX)) == 6


def test_the_remedy_for_a_shared_image_works_in_the_same_folder(run, raw):
    leak_one_image(raw)
    Path("config.yaml").write_text(SOURCE_YAML)
    assert [run(script, "--config", "config.yaml").code for script in (FILTER, VAL)] == [0, 2]
    outcome = run(VAL, "--config", "config.yaml", "allow_duplicates=true")
    assert outcome.code == 0, outcome.stderr


def test_the_remedy_for_unusable_images_works_in_the_same_folder(run, raw):
    (raw / "train/c0/images/c0_1.JPEG").write_bytes(b"no image")
    Path("config.yaml").write_text(SOURCE_YAML)
    assert run(FILTER, "--config", "config.yaml").code == 2
    outcome = run(FILTER, "--config", "config.yaml", "max_rejected_fraction=0.5")
    assert outcome.code == 0, outcome.stderr
    assert len(read_table(Path("sourced/train.csv"), IMAGE_INDEX)) == 5


def test_the_remedy_for_failed_clips_keeps_the_clips_that_are_made(run, images):
    break_image(images, "train/c0/c0_1.png")
    Path("config.yaml").write_text(GENERATE_YAML)
    outcome = run(GENERATE, "--config", "config.yaml")
    assert_refused(outcome, ["1 of 6 clips failed", "max_failed_fraction=0.1", "train/c0/c0_1.png"])
    made = Path("made/train/00000.mp4").stat()
    outcome = run(GENERATE, "--config", "config.yaml", "max_failed_fraction=0.5")
    assert outcome.code == 0, outcome.stderr
    assert Path("made/train/00000.mp4").stat().st_mtime_ns == made.st_mtime_ns
    assert list(read_table(Path("made/train.csv"), CLIP_INDEX)["status"]).count("ok") == 5


def break_image(images: Path, item: str) -> None:
    """Turn an indexed image into a text file that its index agrees with."""
    before = sha256_file(images / item)
    (images / item).write_text("no image")
    edit_file(images / "train.csv", lambda text: text.replace(before, sha256_file(images / item)))


def zip_folder(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for path in sorted(folder.rglob("*")):
            content.write(path, path.relative_to(folder))
    return archive


# ---------------------------------------------------------------------------------------------------------------------
# The output folder


def test_output_dir_that_is_a_file(refuse, images):
    Path("made").write_text("precious")
    refuse(GENERATE, GENERATE_YAML, says=["output_dir: made is a file; choose a folder"], at_once=True)


def test_output_dir_below_a_file(refuse, images):
    Path("made").write_text("precious")
    refuse(GENERATE, GENERATE_YAML, "output_dir=made/deep", says=["made/deep", "is a file"], at_once=True)


@pytest.fixture
def made_clips(run, images) -> Path:
    Path("config.yaml").write_text(GENERATE_YAML)
    assert run(GENERATE, "--config", "config.yaml").code == 0
    return Path("made")


def test_changed_config_on_a_rerun_names_the_keys(refuse, made_clips):
    says = ["made was made with other settings", "seed: 0 -> 7", "svd.fps: 7 -> 9", "overwrite=true"]
    refuse(GENERATE, None, "seed=7", "svd.fps=9", says=says, at_once=True)


def test_shard_in_the_folder_of_a_whole_run(refuse, made_clips):
    says = ["made holds a run without shards; choose another output_dir, or drop shard"]
    refuse(GENERATE, None, "shard=1/2", says=says, at_once=True)


@pytest.fixture
def made_shards(run, images) -> Path:
    Path("config.yaml").write_text(GENERATE_YAML)
    for part in (1, 2):
        assert run(GENERATE, "--config", "config.yaml", f"shard={part}/2").code == 0
    return Path("made")


def test_whole_run_over_shards_that_are_not_merged(refuse, made_shards):
    says = ["made/shards: shards that are not merged lie here; run merge_shards"]
    refuse(GENERATE, None, says=says)


def test_shard_of_another_number_of_parts(refuse, made_shards):
    says = ["made/shards/1-of-2 was made with other settings", "shard: '1/2' -> '3/3'", "same"]
    refuse(GENERATE, None, "shard=3/3", says=says, at_once=True)


def test_shard_of_a_launched_process(refuse, images, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    says = ["shard: several processes were launched, which are shards already; drop shard, or use python -m"]
    refuse(GENERATE, GENERATE_YAML, "shard=1/2", says=says, at_once=True)


MERGES = {
    "no shards": (lambda made: shutil.rmtree(made / "shards"), ["made/shards: there are no shards", "shard=i/n first"]),
    "missing shard": (lambda made: shutil.rmtree(made / "shards/1-of-2"), ["made/shards: 1-of-2 never ran; run"]),
    "unfinished shard": (
        lambda made: (made / "shards/2-of-2/val.journal.csv").write_text(""),
        ["made/shards/2-of-2/val.csv: shard 2/2 is not finished; run it again, then merge"],
    ),
    "missing row": (
        lambda made: edit_file(made / "shards/2-of-2/val.csv", lambda text: text[: text.rindex("0000")]),
        ["made/shards/2-of-2/val.csv: lacks 00005.mp4; remove this index and run shard 2/2 again"],
    ),
    "broken row": (
        lambda made: edit_file(made / "shards/2-of-2/val.csv", on_line(2, ",1,", ",one,")),
        ["made/shards/2-of-2/val.csv line 2: column 'label' is 'one', expected a whole number"],
    ),
    "broken config": (
        lambda made: (made / "shards/1-of-2/config.yaml").write_text("seed: [0"),
        ["made/shards/1-of-2/config.yaml line 1: not valid YAML"],
    ),
    "images gone": (lambda made: shutil.rmtree("images"), ["data_root: ", "images does not exist"]),
}


@pytest.mark.parametrize(("damage", "says"), MERGES.values(), ids=MERGES)
def test_shards_that_cannot_be_merged(refuse, made_shards, damage, says):
    damage(made_shards)
    refuse(MERGE, "output_dir: made\n", says=says)


def test_merge_of_a_folder_that_is_not_there(refuse):
    refuse(MERGE, "output_dir: made\n", says=["output_dir: made does not exist"], at_once=True)


def test_changed_input_on_a_rerun_is_named(refuse, made_clips, images):
    with (images / "val.csv").open("a") as file:
        file.write("\n")
    refuse(GENERATE, None, says=["val_index: its content has changed"], at_once=True)


def test_broken_config_in_the_output_folder_is_named(refuse, made_clips):
    (made_clips / "config.yaml").write_text("seed: [0")
    refuse(GENERATE, None, says=["made/config.yaml line 1: not valid YAML"], at_once=True)


def test_foreign_file_in_the_output_folder_is_kept(refuse, images):
    Path("made").mkdir()
    Path("made/train.csv").write_text("mine")
    says = ["made/train.csv exists and was not made by a run recorded here", "move it away"]
    refuse(GENERATE, GENERATE_YAML, says=says)


HOLD_FOLDER = """
import sys
from pathlib import Path
from Data_Augmentation_SVD.settings import GenerationSettings
from utils.config import build_settings
from utils.runs import open_run
settings = build_settings(GenerationSettings, {"data_root": "images", "output_dir": "made"}, "test")
run = open_run(settings, owned=())
print("held", flush=True)
sys.stdin.read()
"""


def test_folder_in_which_another_process_works(refuse, images):
    command = [sys.executable, "-c", HOLD_FOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        refuse(GENERATE, GENERATE_YAML, says=["made: another process is writing here"], at_once=True)
        holder.stdin.close()
        assert holder.wait() == 0


def test_corrected_input_is_taken_when_nothing_was_made_yet(run, images):
    Path("config.yaml").write_text(GENERATE_YAML)
    good = (images / "train.csv").read_text()
    (images / "train.csv").write_text(on_line(3, ",0,", ",zero,")(good))
    assert run(GENERATE, "--config", "config.yaml").code == 2
    (images / "train.csv").write_text(good)
    outcome = run(GENERATE, "--config", "config.yaml")
    assert outcome.code == 0, outcome.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Image and clip indices


def on_line(number: int, old: str, new: str) -> Callable[[str], str]:
    """An edit of one line of a text, 1-based."""

    def edit(text: str) -> str:
        lines = text.splitlines(keepends=True)
        assert old in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old, new, 1)
        return "".join(lines)

    return edit


def edit_file(path: Path, edit: Callable[[str], str]) -> None:
    path.write_text(edit(path.read_text()))


IMAGE_INDICES = {
    "missing column": (on_line(1, "label", "lable"), ["line 1", "lacks column 'label'", "lable"]),
    "duplicate column": (on_line(1, "wnid", "label"), ["line 1", "column 'label' stands twice"]),
    "row too short": (on_line(3, ",zero", ""), ["line 3", "has 4 cells, expected 5"]),
    "row too long": (on_line(3, ",zero", ",zero,null"), ["line 3", "has 6 cells, expected 5"]),
    "path up and out": (on_line(2, "train/c0", "../c0"), ["line 2", "'../c0/c0_0.png'", "no '..'"]),
    "path up in the middle": (on_line(2, "train/c0", "train/../train/c0"), ["line 2", "no '..'"]),
    "absolute path": (on_line(2, "train/c0", "/etc"), ["line 2", "'/etc/c0_0.png'", "no absolute path"]),
    "backslash": (on_line(2, "train/c0", "train\\c0"), ["line 2", "no '\\'"]),
    "empty path": (on_line(2, "train/c0/c0_0.png", ""), ["line 2", "''"]),
    "folder for a file": (on_line(2, "/c0_0.png", ""), ["line 2", "there is no file 'train/c0'"]),
    "missing file": (on_line(4, "c0_2", "c0_7"), ["line 4", "there is no file 'train/c0/c0_7.png'"]),
    "duplicate row": (on_line(3, "c0_1", "c0_0"), ["line 3", "'train/c0/c0_0.png'", "already on line 2"]),
    "label that is a word": (on_line(5, ",1,", ",one,"), ["line 5", "column 'label' is 'one'", "whole number"]),
    "label with a fraction": (on_line(5, ",1,", ",1.0,"), ["line 5", "column 'label' is '1.0'", "whole number"]),
    "label in Python's notation": (on_line(5, ",1,", ",1_0,"), ["line 5", "column 'label' is '1_0'", "whole number"]),
    "label beyond 64 bits": (on_line(5, ",1,", f",{2**64},"), ["line 5", "'label'", str(2**64)]),
    "negative label": (on_line(5, ",1,", ",-1,"), ["line 5", "column 'label' is -1", "at least 0"]),
    "empty label": (on_line(5, ",1,", ",,"), ["line 5", "column 'label' is empty"]),
    "one label with two names": (on_line(6, "one", "two"), ["line 6", "label 1 is 'two'", "'one'", "one class"]),
    "one label with two wnids": (on_line(6, ",c1,", ",c2,"), ["line 6", "label 1", "(c2)", "(c1)"]),
    "open quote": (on_line(7, ",one", ',"one'), ["line 7", "is not CSV"]),
    "header alone": (lambda text: text.splitlines()[0] + "\n", ["the image index has no rows"]),
    "empty file": (lambda text: "", ["line 1: the file is empty"]),
}


@pytest.mark.parametrize(("edit", "says"), IMAGE_INDICES.values(), ids=IMAGE_INDICES)
def test_bad_image_index_names_file_line_and_column(refuse, images, edit, says):
    edit_file(images / "train.csv", edit)
    refuse(GENERATE, GENERATE_YAML, says=["images/train.csv", *says])


def test_image_index_that_is_not_utf8(refuse, images):
    content = (images / "train.csv").read_bytes()
    (images / "train.csv").write_bytes(content.replace(b"one", b"\xfcne"))
    refuse(GENERATE, GENERATE_YAML, says=["images/train.csv", "not UTF-8"])


def test_image_that_has_changed_since_it_was_indexed(refuse, images):
    shutil.copy(images / "train/c0/c0_0.png", images / "train/c1/c1_0.png")
    refuse(GENERATE, GENERATE_YAML, says=["images/train.csv line 5", "train/c1/c1_0.png", "sha256 differs"])


def test_item_that_is_a_link_out_of_the_root(refuse, images, workplace):
    item = images / "train/c0/c0_1.png"
    item.rename(workplace / "outside.png")
    item.symlink_to(workplace / "outside.png")
    refuse(GENERATE, GENERATE_YAML, says=["images/train.csv line 3", "'train/c0/c0_1.png' is a link that leaves"])


def test_item_below_a_folder_that_is_a_link_out_of_the_root(refuse, images, workplace):
    (images / "train/c0").rename(workplace / "outside")
    (images / "train/c0").symlink_to(workplace / "outside")
    refuse(GENERATE, GENERATE_YAML, says=["images/train.csv line 2", "is a link that leaves"])


def test_image_folder_without_any_index(refuse):
    Path("images").mkdir()
    refuse(GENERATE, GENERATE_YAML, says=["data_root: images has neither", "run Data_Sourcing"])


def test_classes_of_train_and_val_that_differ(refuse, images):
    edit_file(images / "val.csv", lambda text: text.replace("one", "two"))
    refuse(TRAIN_2D, TRAIN_2D_YAML, says=["label 1 is 'one' (c1) in the train split and 'two' (c1) in the val split"])


CLIP_INDICES = {
    "label out of range": (on_line(5, ",1,", ",5,"), ["line 5", "label 5 is out of range for num_classes=2 (0..1)"]),
    "other number of frames": (on_line(3, ",3,32,", ",2,32,"), ["line 3", "num_frames is 2, expected 3"]),
    "unknown status": (on_line(4, ",ok,", ",fine,"), ["line 4", "'status' is 'fine'", "ok, failed, quarantined"]),
    "nothing that is ok": (lambda text: text.replace(",ok,", ",failed,"), ["no clip has status 'ok'"]),
    "path of another folder": (on_line(2, "00000.mp4", "../val/00000.mp4"), ["line 2", "no '..'"]),
    "zero height": (on_line(2, ",3,32,32,", ",3,0,32,"), ["line 2", "'height' is 0", "at least 1"]),
    "changed clip": (on_line(2, ",static,", "0,static,"), ["line 2", "00000.mp4", "sha256 differs"]),
}


@pytest.mark.parametrize(("edit", "says"), CLIP_INDICES.values(), ids=CLIP_INDICES)
def test_bad_clip_index_names_file_line_and_column(refuse, clips, edit, says):
    edit_file(clips / "train.csv", edit)
    refuse(TRAIN_3D, TRAIN_3D_YAML, "num_classes=2", says=["clips/train.csv", *says])


def test_missing_clip_index_is_named(refuse, clips):
    (clips / "val.csv").unlink()
    refuse(TRAIN_3D, TRAIN_3D_YAML, says=["val_csv: there is neither clips/val.csv nor val.csv"])


def test_val_label_that_training_does_not_know(refuse, published_clips):
    edit_file(published_clips / "val.csv", on_line(4, ",0", ",2"))
    refuse(TRAIN_3D, TRAIN_3D_YAML, says=["clips/val.csv line 4", "label 2 is out of range for num_classes=2"])


def frames(count: int) -> np.ndarray:
    return np.stack([random_image(seed, 32) for seed in range(count)])


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def cut_before(marker: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes().partition(marker)[0])


def write_picture(path: Path) -> None:
    Image.fromarray(random_image(0)).save(path, format="PNG")


BROKEN_CLIPS = {
    "too few frames": (lambda path: write_clip(path, frames(2)), ["has 2 frames, expected 3"]),
    "too many frames": (lambda path: write_clip(path, frames(4)), ["has more than 3 frames, expected 3"]),
    "cut in half": (cut(0.5), ["cannot be decoded as a video"]),
    "cut before its codec is named": (cut_before(b"stsd"), ["restore or remake the clip"]),
    "text": (lambda path: path.write_text("I am a film\n"), ["cannot be decoded as a video"]),
    "empty": (lambda path: path.write_bytes(b""), ["cannot be decoded as a video"]),
    "picture": (write_picture, ["has 1 frames, expected 3"]),
}


@pytest.mark.parametrize(("damage", "says"), BROKEN_CLIPS.values(), ids=BROKEN_CLIPS)
def test_broken_clip_of_a_published_index_is_named(refuse, published_clips, damage, says):
    damage(published_clips / "train/00000.mp4")
    edit_file(published_clips / "train.csv", lambda text: "".join(text.splitlines(keepends=True)[:2]))
    refuse(TRAIN_3D, TRAIN_3D_YAML, "num_classes=2", "selection=val", says=["clips/train/00000.mp4", *says])


def test_clip_cut_anywhere_is_refused_or_whole(published_clips):
    path = published_clips / "train/00000.mp4"
    content, whole = path.read_bytes(), read_clip(path)
    refused = 0
    for length in range(0, len(content), 29):
        path.write_bytes(content[:length])
        try:
            assert np.array_equal(read_clip(path, 3), whole)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.9 * len(content) / 29


def test_missing_results_folder_table_is_named(refuse):
    Path("results").mkdir()
    refuse(PREPARE, "results_dir: results\n", says=["results/predictions.csv: there is no predictions table here"])


WNIDS = {
    "empty": (b"\n\n", ["wnids.txt is empty"]),
    "duplicate": (b"c0\n\nc1\nc0\n", ["wnids.txt line 4", "'c0' is listed twice"]),
    "a path": (b"c0\n../c1\n", ["wnids.txt line 2", "'../c1' is no folder name"]),
    "other order": (b"c1\nc0\n", ["wnids.txt lists c1, c0", "train.csv has the label order c0, c1"]),
    "more classes": (b"c0\nc1\nc2\n", ["wnids.txt lists c0, c1, c2", "train.csv has the label order c0, c1"]),
    "not UTF-8": (b"c\xfc\n", ["wnids.txt is not UTF-8"]),
}


@pytest.mark.parametrize(("content", "says"), WNIDS.values(), ids=WNIDS)
def test_bad_wnids_file_names_line_and_class(refuse, images, content, says):
    Path("wnids.txt").write_bytes(content)
    refuse(GENERATE, GENERATE_YAML, "wnids_file=wnids.txt", says=["wnids_file: ", *says])


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints

CLASS_LIST = (ClassInfo(0, "zero", "c0"), ClassInfo(1, "one", "c1"))
DESCRIPTION = description_of(
    "baseline",
    {"classifier_width": 8},
    CLASS_LIST,
    {"kind": "image", "image_size": 32},
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    selection_split="val",
)
TENSORS = {"weight": torch.arange(1000.0)}


class Payload:
    """An object whose unpickling would leave a file behind."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def write_described(path: Path, **changes) -> None:
    write_weights(path, TENSORS, replace(DESCRIPTION, **changes))


def write_cut(writer: Callable[[Path], None], share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        writer(path)
        cut(share)(path)

    return write


def write_metadata(text: str) -> Callable[[Path], None]:
    return lambda path: safetensors.torch.save_file(TENSORS, path, metadata={"description": text})


def without_image_size() -> str:
    content = json.loads(DESCRIPTION.to_json())
    del content["input"]["image_size"]
    return json.dumps(content)


def save_old_format(path: Path) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def save_with_damaged_end(path: Path) -> None:
    """A torch file whose zip claims to be one of several disks: Python's zipfile raises even when only asked."""
    torch.save(TENSORS, path)
    head, marker, tail = path.read_bytes().rpartition(b"PK\x06\x07")
    path.write_bytes(head + marker + tail[:12] + b"\x02\0\0\0" + tail[16:])


NO_CHECKPOINT = "is truncated or not a checkpoint"
CHECKPOINTS = {
    "safetensors cut in half": ("a.safetensors", write_cut(write_described, 0.5), [NO_CHECKPOINT]),
    "safetensors cut in its header": ("a.safetensors", write_cut(write_described, 0.02), [NO_CHECKPOINT]),
    "safetensors cut at the end": ("a.safetensors", write_cut(write_described, 0.999), [NO_CHECKPOINT]),
    "pth cut in half": ("a.pth", write_cut(lambda path: torch.save(TENSORS, path), 0.5), [NO_CHECKPOINT]),
    "pth cut at the end": ("a.pth.tar", write_cut(lambda path: torch.save(TENSORS, path), 0.99), [NO_CHECKPOINT]),
    "old pth cut in half": ("a.pth", write_cut(save_old_format, 0.5), [NO_CHECKPOINT]),
    "pth with a damaged end": ("a.pth", save_with_damaged_end, [NO_CHECKPOINT]),
    "text as safetensors": ("a.safetensors", lambda path: path.write_text("weights\n"), [NO_CHECKPOINT]),
    "text as pth": ("a.pth", lambda path: path.write_text("weights\n"), [NO_CHECKPOINT]),
    "empty safetensors": ("a.safetensors", lambda path: path.write_bytes(b""), [NO_CHECKPOINT]),
    "empty pth": ("a.pth", lambda path: path.write_bytes(b""), [NO_CHECKPOINT]),
    "folder": ("a.safetensors", lambda path: path.mkdir(), ["there is no checkpoint"]),
    "zip of something else": ("a.pth", lambda path: zip_folder(Path("clips/val"), path), [NO_CHECKPOINT]),
    "pth without tensors": ("a.pth", lambda path: torch.save({"epoch": 3}, path), ["holds no state dict"]),
    "pth with a list": ("a.pth", lambda path: torch.save([1, 2], path), ["holds no state dict"]),
    "pth of another network": ("a.pth", lambda path: torch.save(TENSORS, path), ["is no VGG-11 checkpoint"]),
    "payload in a pth": ("a.pth", lambda path: torch.save({"w": Payload()}, path), ["run code", "was not loaded"]),
    "payload under another name": ("a.safetensors", lambda path: torch.save(Payload(), path), ["run code"]),
    "payload in a bare pickle": ("a.pth", lambda path: path.write_bytes(pickle.dumps(Payload(), 2)), [NO_CHECKPOINT]),
    "description that is no JSON": ("a.safetensors", write_metadata("{"), ["its description cannot be read"]),
    "description of another kind": ("a.safetensors", write_metadata('"vgg"'), ["its description cannot be read"]),
    "description without keys": ("a.safetensors", write_metadata("{}"), ["its description cannot be read", "classes"]),
    "description without size": (
        "a.safetensors",
        write_metadata(without_image_size()),
        ["description", "image_size"],
    ),
    "description with unknown options": (
        "a.safetensors",
        lambda path: write_described(path, options={"depth": 11}),
        ["description", "depth"],
    ),
    "weights of another network": ("a.safetensors", write_described, ["does not fit this VGG", "features.0.weight"]),
    "wrong type": (
        "a.safetensors",
        lambda path: write_described(path, type="inflated"),
        ["is a 'inflated' checkpoint, not 'baseline'"],
    ),
    "other class list": (
        "a.safetensors",
        lambda path: write_described(path, classes=(CLASS_LIST[0], ClassInfo(1, "two", "c2"))),
        ["label 1 is 'two' (c2)", "'one' (c1) in clips/val.csv"],
    ),
    "other class order": (
        "a.safetensors",
        lambda path: write_described(path, classes=(ClassInfo(0, "one", "c1"), ClassInfo(1, "zero", "c0"))),
        ["label 0 is 'one' (c1)", "'zero' (c0) in clips/val.csv"],
    ),
    "fewer classes": (
        "a.safetensors",
        lambda path: write_described(path, classes=CLASS_LIST[:1]),
        ["clips/val.csv line 5", "label 1 is out of range for num_classes=1"],
    ),
}


@pytest.mark.parametrize(("name", "write", "says"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_bad_checkpoint_is_named_and_never_run(refuse, clips, name, write, says):
    write(Path(name))
    refuse(EVALUATE, EVALUATE_YAML.replace("CHECKPOINT", name), says=says)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("a.safetensors", write_described),
        ("a.pth", lambda path: torch.save(TENSORS, path)),
        ("a.pth.tar", save_old_format),
    ],
    ids=["safetensors", "pth", "old pth"],
)
def test_checkpoint_cut_anywhere_is_refused_by_name(name, writer):
    path = Path(name)
    writer(path)
    content = path.read_bytes()
    for length in range(0, len(content), 1 + len(content) // 200):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=name):
            read_weights(path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.mean=[0.5,0.5,0.5]", ["data.mean", "0.5", "0.485"]),
        ("data.std=[0.5,0.5,0.5]", ["data.std", "0.5", "0.229"]),
        ("data.image_size=64", ["data.image_size: is 64", "trained with 32"]),
        ("num_classes=3", ["num_classes: is 3", "2 classes"]),
    ],
)
def test_setting_that_contradicts_the_checkpoint_is_named(refuse, clips, override, says):
    write_described(Path("a.safetensors"))
    config = EVALUATE_YAML.replace("CHECKPOINT", "a.safetensors")
    refuse(EVALUATE, config, override, says=["a.safetensors", *says])


def test_3d_training_from_weights_of_other_classes(refuse, clips):
    write_described(Path("a.safetensors"), classes=(CLASS_LIST[0], ClassInfo(1, "two", "c2")))
    says = ["label 1 is 'two' (c2) in a.safetensors", "'one' (c1) in clips/train.csv"]
    refuse(TRAIN_3D, TRAIN_3D_YAML, "weights=a.safetensors", says=says)


def test_training_from_weights_of_a_3d_network(refuse, clips):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3, 3)}, "a.pth")
    refuse(TRAIN_3D, TRAIN_3D_YAML, "weights=a.pth", says=["a.pth: holds 3-D kernels"])


def test_resume_state_that_is_cut_short(refuse, run, published_clips):
    broken, kept = published_clips / "train/00000.mp4", (published_clips / "train/00000.mp4").read_bytes()
    broken.write_bytes(b"")
    Path("config.yaml").write_text(TRAIN_3D_YAML)
    assert run(TRAIN_3D, "--config", "config.yaml").code == 2
    broken.write_bytes(kept)
    write_cut(lambda path: torch.save(TENSORS, path), 0.5)(Path("run/last.pt"))
    refuse(TRAIN_3D, None, says=["run/checkpoint.json: is missing beside last.pt"])


def test_counting_a_checkpoint_that_does_not_describe_itself(refuse):
    torch.save(TENSORS, "a.pth")
    refuse(COUNT, "checkpoint: a.pth\n", says=["checkpoint: a.pth does not describe its model"])


def test_device_that_this_machine_lacks(refuse, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuse(TRAIN_2D, TRAIN_2D_YAML, "device=cuda", says=["device: 'cuda' is not available", "device: auto"])


def test_half_precision_on_a_cpu(refuse, images):
    refuse(TRAIN_2D, TRAIN_2D_YAML, "precision=fp16", says=["precision: fp16 needs a GPU", "bf16 or fp32"])


def test_imagenet_weights_without_network(refuse, images, monkeypatch, workplace):
    monkeypatch.setenv("TORCH_HOME", str(workplace / "empty"))
    says = ["weights: imagenet cannot be fetched", "vgg11_bn", "empty/hub/checkpoints", "weights: none"]
    refuse(TRAIN_2D, TRAIN_2D_YAML, "weights=imagenet", says=says)


# ---------------------------------------------------------------------------------------------------------------------
# As users start it: a process of its own


def absolute_config(workplace: Path, text: str, *folders: str) -> str:
    """A config for a process with another working folder: relative folders become absolute."""
    for folder in folders:
        text = text.replace(f": {folder}", f": {workplace / folder}")
    path = workplace / "config.yaml"
    path.write_text(text)
    return str(path)


def test_child_process_names_a_typo(workplace):
    config = absolute_config(workplace, SOURCE_YAML.replace("output_dir", "ouput_dir"))
    outcome = run_child(FILTER, "--config", config)
    assert_refused(outcome, [config, "unknown key 'ouput_dir', did you mean 'output_dir'?", "'output_dir' is missing"])
    assert outcome.stdout == "" and outcome.stderr.startswith("error: ")


def test_child_process_reports_all_missing_paths(workplace):
    text = EVALUATE_YAML.replace("CHECKPOINT", f"{workplace}/a.pth").replace("root: clips", f"root: {workplace}/clips")
    outcome = run_child(EVALUATE, "--config", absolute_config(workplace, text))
    assert_refused(outcome, ["2 problems", f"{workplace}/a.pth does not exist", f"{workplace}/clips does not exist"])
    assert snapshot(workplace).keys() == {"config.yaml"}


def test_child_process_names_the_line_of_an_index(workplace, images):
    edit_file(images / "val.csv", on_line(3, ",zero", ""))
    config = absolute_config(workplace, GENERATE_YAML, "images", "made")
    outcome = run_child(GENERATE, "--config", config)
    assert_refused(outcome, [f"error: {images}/val.csv line 3: has 4 cells, expected 5"])
    assert not list((workplace / "made").glob("*.csv"))


def test_child_process_names_a_clip_that_a_loader_worker_found_broken(workplace, published_clips):
    (published_clips / "train/00002.mp4").write_text("no film")
    config = absolute_config(workplace, TRAIN_3D_YAML, "clips", "run")
    outcome = run_child(TRAIN_3D, "--config", config, "workers=1")
    assert_refused(outcome, [f"error: {published_clips}/train/00002.mp4: cannot be decoded as a video"])
    assert not (workplace / "run/last.pt").exists()


def test_child_process_runs_no_pickle(workplace, clips):
    torch.save({"state_dict": {"w": Payload()}}, workplace / "a.pth")
    text = EVALUATE_YAML.replace("CHECKPOINT", f"{workplace}/a.pth").replace("root: clips", f"root: {clips}")
    outcome = run_child(EVALUATE, "--config", absolute_config(workplace, text, "results"))
    assert_refused(outcome, [f"error: {workplace}/a.pth: holds Python objects that could run code"])
    assert not (PROJECT / "ran").exists() and not (workplace / "results/summary.csv").exists()


# ---------------------------------------------------------------------------------------------------------------------
# What looks odd and is read correctly


def make_clips(run, *overrides: str) -> list[dict]:
    """Run the static generator on `images`; rows of its train index."""
    Path("config.yaml").write_text(GENERATE_YAML)
    outcome = run(GENERATE, "--config", "config.yaml", *overrides)
    assert outcome.code == 0, outcome.stderr
    return read_table(Path("made/train.csv"), CLIP_INDEX).to_dict("records")


@pytest.fixture(scope="session")
def plain_rows(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The clip rows that the untouched image set leads to."""
    folder = tmp_path_factory.mktemp("plain")
    arguments = [f"data_root={templates}/images", f"output_dir={folder}/made", "generator=static", "frame_size=32"]
    assert run_child(GENERATE, *arguments).code == 0
    return read_table(folder / "made/train.csv", CLIP_INDEX).to_dict("records")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-04", "+1e-4"])
def test_every_notation_of_a_number_is_that_number(run, text):
    Path("config.yaml").write_text(f"data_root: images\nlr: {text}\n")
    outcome = run(TRAIN_2D, "--config", "config.yaml", "--print-config")
    Path("printed.yaml").write_text(outcome.stdout)
    assert outcome.code == 0 and read_yaml(Path("printed.yaml"))["lr"] == 0.0001


def test_config_with_bom_and_windows_line_ends(run, images, plain_rows):
    Path("windows.yaml").write_bytes(b"\xef\xbb\xbf" + GENERATE_YAML.replace("\n", "\r\n").encode())
    assert run(GENERATE, "--config", "windows.yaml").code == 0
    assert read_table(Path("made/train.csv"), CLIP_INDEX).to_dict("records") == plain_rows


INDEX_FORMS = {
    "bom": lambda text: "\ufeff" + text,
    "windows line ends": lambda text: text.replace("\n", "\r\n"),
    "bom and windows line ends": lambda text: "\ufeff" + text.replace("\n", "\r\n"),
    "no line end at the end": lambda text: text.removesuffix("\n"),
    "blank lines at the end": lambda text: text + "\n\n",
    "every cell quoted": lambda text: "\n".join(f'"{line}"' for line in text.splitlines()).replace(",", '","') + "\n",
    "unknown columns": lambda text: "\n".join(f"7,{line},x" for line in text.splitlines()).replace("7,", "n,", 1),
    "other order of columns": lambda text: "\n".join(",".join(line.split(",")[::-1]) for line in text.splitlines()),
}


@pytest.mark.parametrize("form", INDEX_FORMS.values(), ids=INDEX_FORMS)
def test_every_form_of_an_index_reads_as_the_same_rows(run, images, plain_rows, form):
    path = images / "train.csv"
    path.write_bytes(form(path.read_text()).encode("utf-8"))
    assert make_clips(run) == plain_rows


def test_root_that_is_a_link_is_read(run, images, workplace, plain_rows):
    (workplace / "link").symlink_to(images)
    assert make_clips(run, "data_root=link") == plain_rows


def test_item_that_is_a_link_inside_the_root_is_read(run, images, plain_rows):
    item = images / "train/c0/c0_1.png"
    item.rename(images / "elsewhere.png")
    item.symlink_to(images / "elsewhere.png")
    assert make_clips(run) == plain_rows


def test_class_called_na_and_wnid_007_survive_every_index(run, workplace):
    write_raw_set(workplace / "raw", wnids=("007", "c1"))
    config = SOURCE_YAML.replace("{wnid: c0, name: zero}", "{wnid: 007, name: NA}").replace("sourced", "images")
    Path("config.yaml").write_text(config)
    assert [run(script, "--config", "config.yaml").code for script in (FILTER, VAL)] == [0, 0]
    assert read_image_index(Path("images/val.csv")).classes == (ClassInfo(0, "NA", "007"), ClassInfo(1, "one", "c1"))
    assert {(row["class_name"], row["wnid"]) for row in make_clips(run)} == {("NA", "007"), ("one", "c1")}


@pytest.mark.parametrize("name", ["null", "no", "~", "1e5", "true", "nan", "\u00fcber", "a, b", '"quoted"'])
def test_odd_class_names_survive_to_the_index(run, raw, name):
    quoted = json.dumps(name)
    Path("config.yaml").write_text(SOURCE_YAML.replace("name: one", f"name: {quoted}"), encoding="utf-8")
    assert run(FILTER, "--config", "config.yaml").code == 0
    assert read_image_index(Path("sourced/train.csv")).classes[1] == ClassInfo(1, name, "c1")


def test_published_two_column_index_trains(run, published_clips):
    for split in ("train", "val"):
        edit_file(
            published_clips / f"{split}.csv", lambda text: "".join(text.splitlines(keepends=True)[i] for i in (0, 1, 4))
        )
    Path("config.yaml").write_text(TRAIN_3D_YAML)
    outcome = run(TRAIN_3D, "--config", "config.yaml", "time_dim=3", "selection=val")
    assert outcome.code == 0, outcome.stderr
    assert Path("run/curves.png").is_file()
