"""Arms that a user names: what may differ, what becomes of each, and that the tables know what was compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import KILLED, PROJECT, exit_at_call, run_in_child
from samples import write_clip_set, write_image_set
from synthetic_results import make_tables

import utils.files
from Model_Evaluation.compare_plan import describe_plan, plan_arms, scoring_of
from Model_Evaluation.compare_run import run_comparison
from Model_Evaluation.compare_settings import CompareArmsSettings
from Model_Evaluation.derived import DONE_FILE, compute_derived, write_derived
from Model_Evaluation.study_journal import ArmsFailed
from Model_Evaluation.study_run import forget_other_pictures
from utils.artifacts import (
    COMPARISONS,
    PREDICTIONS,
    PROTOCOL_VALUES,
    STUDY,
    TASK_LABELS,
    VERDICT,
    VIDEO_INDEX,
    read_table,
    write_table,
)
from utils.config import build_settings, read_yaml
from utils.errors import InputError

VIDEO = {
    "family": "c3d",
    "config": {"width_multiplier": 0.125, "dropout": 0.0},
    "weights": "none",
    "num_frames": 3,
    "image_size": 32,
}
VIDEO |= {"batch_size": 4, "updates": 2, "epochs": 2, "precision": "fp32"}
QUICK = {"batch_size": 4, "latency": {"batch_sizes": [1], "warmup": 1, "repetitions": 1}, "num_pictures": 0}
INFLATED = {"weights": "none", "image_size": 32, "classifier_width": 8, "dropout": 0.0, "batch_size": 4, "updates": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_clip_set(root / "clips", per_class=6)
    write_image_set(root / "images", per_class=6)
    (root / "video.yaml").write_text(yaml.safe_dump(VIDEO | {"data_root": str(root / "clips"), "output_dir": "runs/x"}))
    (root / "inflated.yaml").write_text(yaml.safe_dump(INFLATED | {"data_root": str(root / "clips")}))
    (root / "baseline.yaml").write_text(yaml.safe_dump(INFLATED | {"data_root": str(root / "images")}))
    return root


def arm(data: Path, trainer: str = "video", **settings) -> dict:
    return {"trainer": trainer, "config": str(data / f"{trainer}.yaml"), "settings": settings}


def settings_for(data: Path, output_dir: Path, **changes) -> CompareArmsSettings:
    raw = {
        "output_dir": str(output_dir),
        "arms": {"shuffled": arm(data, sampling="shuffled"), "balanced": arm(data, sampling="class_balanced")},
        "subject": ["sampling"],
        "seeds": [0, 1],
        "scoring": QUICK | {"num_pictures": 2},
        "device": "cpu",
        "workers": 0,
    }
    return build_settings(CompareArmsSettings, raw | changes, "test")


def run(data: Path, output_dir: Path, kill_at_fsync: int = 0) -> None:
    torch.set_num_threads(1)
    if kill_at_fsync:
        exit_at_call(utils.files.os, "fsync", kill_at_fsync)
    run_comparison(settings_for(data, output_dir))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "comparison"
    assert run_in_child(run, data, folder) == 0
    return folder


def test_every_arm_is_trained_with_every_seed_seed_by_seed(data, tmp_path):
    compare = settings_for(data, tmp_path)
    runs = plan_arms(compare)
    assert [planned.run_id for planned in runs] == ["shuffled_s0", "balanced_s0", "shuffled_s1", "balanced_s1"]
    assert [planned.settings.sampling for planned in runs] == ["shuffled", "class_balanced"] * 2
    assert [planned.settings.seed for planned in runs] == [0, 0, 1, 1]
    assert {planned.settings.hold_out_file for planned in runs} == {tmp_path / "hold_out.csv"}
    assert runs[0].settings.output_dir == tmp_path / "runs/shuffled_s0", "not the YAML's own"


def test_a_dry_run_says_what_differs_and_makes_nothing(data, tmp_path, capsys):
    assert run_comparison(settings_for(data, tmp_path / "new", dry_run=True)) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["shuffled_s0", "video", "2", "updates", "sampling:", "shuffled", "clip", "to", "train"]
    assert lines[2].split()[5] == "class_balanced"
    assert not (tmp_path / "new").exists()


def test_a_plan_says_what_is_trained(data, finished):
    compare = settings_for(data, finished)
    assert describe_plan(compare, plan_arms(compare)).count("  trained") == 4


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"subject": ["lr"]},
            r"sampling: is 'shuffled' in arm shuffled and 'class_balanced' in arm balanced; arms may",
        ),
        ({"subject": ["samplng"]}, "subject: 'samplng' is no key of these trainers; did you mean 'sampling'"),
        ({"subject": ["augmentation.flip"]}, "subject: 'augmentation.flip' is no key of these trainers"),
        ({"subject": ["sampling.rate"]}, "subject: 'sampling.rate' is no key of these trainers"),
        ({"subject": ["init"]}, "subject: 'init' is no key of these trainers"),
        ({"subject": ["sampling", "lr"]}, "subject: in 'lr' all arms have the same, lr: 0.001; make them differ"),
        ({"subject": ["sampling", "config.depth"]}, "subject: in 'config.depth' all arms have the same, nothing"),
        ({"training": {"selection": "val"}}, "arm shuffled: selection: is 'val', the split that is scored"),
        ({"training": {"seed": 3}}, "training.seed: the comparison sets it; remove it"),
        ({"test_input": "frame:3"}, "test_input: frame:3: arm shuffled has 3 frames; the last is 2"),
        ({"test_input": "original"}, "test_input: original is made of images, of which arm shuffled has none"),
        ({"task": "mood"}, "task: .*train.csv has no task 'mood'; it has one task only: drop the key"),
        ({"split": "test"}, "there is neither .*clips/test.csv nor test.csv"),
        ({"seeds": [1, 1]}, "seeds: a value is listed twice"),
        ({"test_input": "klip"}, "test_input: unknown input 'klip'"),
        ({"scoring": {"end_to_end": {}}}, "scoring.end_to_end: is measured by the study"),
        ({"subject": []}, "subject: give at least one"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(data, tmp_path, changes, problem):
    with pytest.raises(InputError, match=problem):
        run_comparison(settings_for(data, tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lr": 0.5, "sampling": "class_balanced"}, r"^lr: is 0.001 in arm a and 0.5 in arm b; arms may differ only"),
        ({"augmentation": {"horizontal_flip": True}}, r"^augmentation.horizontal_flip: is False in arm a and True"),
        ({"config": {"width_multiplier": 0.25}}, r"^config.width_multiplier: is .* in arm a and"),
        ({"multi_task": {"weights": {"mood": 2.0}}}, r"^multi_task.weights.mood: is not set in arm a and 2.0 in arm b"),
        ({"hold_out": {"file": "mine.csv"}}, r"^arms.b.settings.hold_out.file: the comparison sets it; remove it"),
        ({"val_csv": "train.csv"}, r"^val_csv: is 'val.csv' in arm a and 'train.csv' in arm b"),
        ({"seed": 3}, r"^arms.b.settings.seed: the comparison sets it; remove it"),
        ({"lr": "fast"}, r"^arm b \(.*video.yaml\): lr"),
    ],
)
def test_arms_may_differ_in_the_subject_alone(data, tmp_path, settings, problem):
    with pytest.raises(InputError, match=problem):
        plan_arms(settings_for(data, tmp_path, arms={"a": arm(data), "b": arm(data, **settings)}))


def test_a_key_that_one_arm_alone_gives_its_architecture_is_a_difference(data, tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(read_yaml(data / "video.yaml") | {"config": {"width_multiplier": 0.125}}))
    arms = {"a": arm(data) | {"config": str(path)}, "b": arm(data)}
    with pytest.raises(InputError, match=r"^config.dropout: is not set in arm a and 0.0 in arm b; arms may differ"):
        plan_arms(settings_for(data, tmp_path, arms=arms))
    assert len(plan_arms(settings_for(data, tmp_path, arms=arms, subject=["config.dropout"]))) == 4


def test_a_section_or_one_of_its_keys_can_be_the_subject(data, tmp_path):
    arms = {"a": arm(data), "b": arm(data, augmentation={"horizontal_flip": True})}
    for subject in ("augmentation", "augmentation.horizontal_flip"):
        assert len(plan_arms(settings_for(data, tmp_path, arms=arms, subject=[subject]))) == 4
    with pytest.raises(InputError, match=r"^augmentation.horizontal_flip: is False"):
        plan_arms(settings_for(data, tmp_path, arms=arms, subject=["augmentation.rotation_degrees"]))


def test_a_name_of_the_study_is_refused(data, tmp_path):
    with pytest.raises(InputError, match=r"arms.3d_svd: is the name of an arm of the study"):
        settings_for(data, tmp_path, arms={"3d_svd": arm(data), "b": arm(data)})


def test_arms_of_two_trainers_differ_in_the_trainer_and_share_their_clips(data, tmp_path):
    equal = {key: value for key, value in INFLATED.items() if key != "classifier_width"} | {"epochs": 2}
    equal |= {"precision": "fp32", "num_frames": 3, "family": "c3d", "config": VIDEO["config"]}
    shared = {"training": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    inflated = arm(data, "inflated", epochs=2)

    def plan(subject: list[str], **places) -> list:
        arms = {"vgg": inflated, "c3d": arm(data, **equal, **places)}
        return plan_arms(settings_for(data, tmp_path, arms=arms, subject=subject, **shared))

    assert [run.arm.network for run in plan(["trainer"])] == ["inflated", "video"] * 2
    with pytest.raises(InputError, match=r"^trainer: is 'inflated' in arm vgg and 'video' in arm c3d; arms may differ"):
        plan(["family"])
    with pytest.raises(InputError, match=r"^val_csv: is 'val.csv' in arm vgg and 'other.csv' in arm c3d"):
        plan(["trainer"], val_csv="other.csv")
    with pytest.raises(InputError, match=r"^clips_root: is None in arm vgg and '.*clips/train' in arm c3d"):
        plan(["trainer"], clips_root=str(data / "clips/train"))


def test_clips_of_images_network_are_those_of_the_others(data, tmp_path):
    own = {"train_input": "first_frame", "clips_root": str(data / "clips")}
    arms = {"vgg_2d": arm(data, "baseline", **own), "vgg": arm(data, "inflated", batch_size=4)}
    compare = settings_for(data, tmp_path, arms=arms, subject=["trainer", "train_input"])
    assert len(plan_arms(compare)) == 4
    with pytest.raises(InputError, match=r"^train_input: is 'first_frame' in arm vgg_2d and 'clip' in arm vgg"):
        plan_arms(compare.model_copy(update={"subject": ("trainer",)}))
    arms["vgg_2d"] = arm(data, "baseline", **own | {"clips_root": str(data)})
    with pytest.raises(InputError, match=r"^data_root: is '.*' in arm vgg_2d and '.*clips' in arm vgg"):
        plan_arms(compare.model_copy(update={"arms": settings_for(data, tmp_path, arms=arms).arms}))


def test_keys_of_all_arms_are_given_once_and_an_arms_own_win(data, tmp_path):
    arms = {"a": arm(data, lr=0.1), "b": arm(data)}
    compare = settings_for(data, tmp_path, arms=arms, training={"lr": 0.5, "batch_size": 2}, subject=["lr"])
    assert [(run.settings.lr, run.settings.batch_size) for run in plan_arms(compare)] == [(0.1, 2), (0.5, 2)] * 2


def test_a_task_is_chosen_where_there_are_several(data, tmp_path):
    root = tmp_path / "tasks"
    shutil.copytree(data / "clips", root)
    for split in ("train", "val"):
        paths = read_table(root / f"{split}.csv", VIDEO_INDEX)["video_path"]
        rows = [
            {"video_path": path, "task": "mood", "label": i % 2, "class_name": "ab"[i % 2]}
            for i, path in enumerate(paths)
        ]
        write_table(rows, root / f"{split}.tasks.csv", TASK_LABELS)
    changes = {"training": {"data_root": str(root)}}
    with pytest.raises(InputError, match=r"^task: is missing, but .*train.csv has several; choose one of mood"):
        plan_arms(settings_for(data, tmp_path, **changes))
    with pytest.raises(InputError, match=r"^task: .*train.csv has no task 'wood'; known: mood"):
        plan_arms(settings_for(data, tmp_path, task="wood", **changes))
    assert len(plan_arms(settings_for(data, tmp_path, task="mood", **changes))) == 4
    arms = {"a": arm(data, "inflated"), "b": arm(data, "inflated", sampling="class_balanced")}
    with pytest.raises(InputError, match=r"^task: arm a is of trainer inflated, which has one task; drop the key"):
        plan_arms(settings_for(data, tmp_path, arms=arms, task="mood", **changes))


def test_the_test_split_is_scored_where_val_chooses_the_epoch(data, tmp_path):
    root = tmp_path / "clips"
    shutil.copytree(data / "clips", root)
    shutil.copytree(root / "val", root / "test")
    shutil.copy(root / "val.csv", root / "test.csv")
    changes = {"split": "test", "training": {"data_root": str(root), "selection": "val"}}
    compare = settings_for(data, tmp_path, **changes)
    runs = plan_arms(compare)
    assert describe_plan(compare, runs).count("clip of test") == 4
    scoring = scoring_of(runs[0], "clip", compare, check_paths=False)
    assert (scoring.data.split, scoring.data.index_csv, scoring.data.root) == ("test", Path("test.csv"), root)


def test_arms_that_share_no_item_are_refused(data, tmp_path):
    arms = {"a": arm(data), "b": arm(data, val_csv=str(tmp_path / "val.csv"), clips_root=str(data / "clips/train"))}
    shutil.copy(data / "clips/train.csv", tmp_path / "val.csv")
    with pytest.raises(InputError, match=r"val.csv: share no item, so that no two arms can be compared"):
        plan_arms(settings_for(data, tmp_path, arms=arms, subject=["val_csv", "clips_root"]))


def test_an_arm_without_the_clips_it_is_scored_on_is_refused(data, tmp_path):
    arms = {"a": arm(data, "baseline"), "b": arm(data, "baseline", sampling="class_balanced")}
    with pytest.raises(
        InputError, match=r"^test_input: clip is made of clips, of which arm a has none; give it clips_"
    ):
        plan_arms(settings_for(data, tmp_path, arms=arms))


@pytest.mark.parametrize("trainer", ["baseline", "inflated"])
def test_each_trainer_is_scored_on_its_own_data(data, tmp_path, trainer):
    test = "original" if trainer == "baseline" else "clip"
    arms = {"a": arm(data, trainer), "b": arm(data, trainer, sampling="class_balanced")}
    compare = settings_for(data, tmp_path, arms=arms, test_input=test)
    runs = plan_arms(compare)
    (tmp_path / "runs/b_s1").mkdir(parents=True)
    (tmp_path / "runs/b_s1/model_best.safetensors").touch()
    scoring = scoring_of(runs[3], test, compare)
    assert scoring.scored_models[0].name == f"b_s1__{test}" and scoring.scored_models[0].arm == "b"
    assert scoring.data.images_root == (data / "images" if trainer == "baseline" else None)
    assert scoring.data.root == (data / "clips" if trainer == "inflated" else None)
    assert scoring.subject == ("sampling",)


def test_arms_are_compared_as_a_matched_pair(finished):
    results = finished / "results"
    rows = read_table(results / "comparisons.csv", COMPARISONS)
    assert rows[["family", "arm_a", "arm_b"]].drop_duplicates().to_numpy().tolist() == [
        ["subject", "balanced", "shuffled"]
    ]
    assert set(rows["differs_in"]) == {""}
    assert rows["seed"].isna().sum() == 1 and set(rows["seed"].dropna()) == {0, 1}
    whole = rows[rows["seed"].isna()].iloc[0]
    assert whole["mcnemar_p_holm"] >= whole["mcnemar_p"]
    excludes_zero = whole["difference_low"] > 0 or whole["difference_high"] < 0
    winner = "a" if whole["difference"] > 0 else "b"
    is_decided = excludes_zero and whole["mcnemar_p_holm"] < 0.05
    assert whole["outcome"] == (winner if is_decided else "undecided")
    predictions = read_table(results / "predictions.csv", PREDICTIONS)
    assert predictions.groupby("run_id").size().tolist() == [12] * 4
    values = read_table(results / "protocol_values.csv", PROTOCOL_VALUES)
    assert values[values["key"] == "subject"]["value"].tolist() == ["sampling"] * 4


def test_there_is_no_verdict_but_a_report_with_pictures(finished):
    assert read_table(finished / "results/verdict.csv", VERDICT, allow_empty=True).empty
    html = (finished / "results/report.html").read_text(encoding="utf-8")
    assert "Planned comparisons, all seeds together" in html and "Does motion help" not in html
    assert "Arms that differ in sampling and, where nothing else is said below, in nothing else." in html
    assert 'class="second' in html and '<li class="first"><span class="label"><code>shuffled/' not in html, "clips"
    figures = {path.stem for path in (finished / "results/figures").iterdir()}
    shown = {"samples_shuffled_s0__clip", "samples_balanced_s0__clip", "grad_cam_shuffled_s0__clip", "comparisons"}
    assert shown < figures and not any("_s1" in name for name in figures if name.startswith("samples"))


def test_arms_keep_their_best_weights_and_share_a_hold_out(finished):
    rows = read_table(finished / "study.csv", STUDY)
    assert rows["status"].tolist() == ["done"] * 4 and (rows["train_s"] > 0).all()
    for name in rows["training_id"]:
        kept = {path.name for path in (finished / "runs" / name).iterdir()}
        assert "model_best.safetensors" in kept and "last.pt" not in kept
    assert (finished / "hold_out.csv").exists()


def stamps(folder: Path) -> dict[str, int]:
    kept = ("config.yaml", "environment.json")
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name not in kept
    }


def test_a_second_run_does_nothing(data, finished):
    before = stamps(finished)
    assert run_in_child(run, data, finished) == 0
    assert stamps(finished) == before


def test_another_number_of_pictures_has_them_drawn_again(data, finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    forget_other_pictures(settings_for(data, copy))
    assert (copy / "results" / DONE_FILE).exists()
    config = read_yaml(copy / "config.yaml")
    del config["scoring"]["num_pictures"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))  # of a version that had no such key: it drew the default
    forget_other_pictures(settings_for(data, copy, scoring=QUICK | {"num_pictures": 12}))
    assert (copy / "results" / DONE_FILE).exists()
    forget_other_pictures(settings_for(data, copy, scoring=QUICK))
    assert not (copy / "results" / DONE_FILE).exists()


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=pytest.mark.exhaustive) for point in (10, 30, 60, 90, 120)]
)
def test_a_killed_comparison_goes_on_to_the_same_tables(data, finished, tmp_path, point):
    assert run_in_child(run, data, tmp_path / "c", point) == KILLED
    assert run_in_child(run, data, tmp_path / "c") == 0
    for name in ("predictions", "probabilities", "comparisons", "arms", "protocol_values"):
        own, whole = (folder / f"results/{name}.csv" for folder in (tmp_path / "c", finished))
        assert own.read_bytes() == whole.read_bytes()


@pytest.mark.exhaustive
def test_derived_again_without_a_model_the_comparison_is_still_matched(finished, tmp_path):
    write_derived(finished / "results", tmp_path)
    for name in ("comparisons.csv", "verdict.csv", "summary.csv"):
        assert (tmp_path / name).read_bytes() == (finished / "results" / name).read_bytes()


def test_a_failed_arm_is_a_row_and_the_other_is_scored(data, tmp_path, monkeypatch):
    from Model_Evaluation import compare_run, study_run

    train = study_run._TRAINERS["video"]

    def fail_balanced(settings):
        if settings.sampling == "class_balanced":
            raise InputError("train.csv: is wrong; mend it")
        return train(settings)

    shown = []
    monkeypatch.setattr(compare_run, "write_results", lambda _, scored, __: shown.append(scored))
    monkeypatch.setitem(study_run._TRAINERS, "video", fail_balanced)
    with pytest.raises(ArmsFailed, match=r"balanced_s0: train.csv: is wrong; mend it"):
        run_comparison(settings_for(data, tmp_path / "c", seeds=[0], scoring=QUICK))
    rows = read_table(tmp_path / "c/study.csv", STUDY).set_index("training_id")
    assert rows["status"].to_dict() == {"shuffled_s0": "done", "balanced_s0": "failed"}
    assert rows.loc["balanced_s0", "reason"] == "train.csv: is wrong; mend it"
    assert [(run.run_id, len(how)) for run, how in shown[0].items()] == [("shuffled_s0", 1), ("balanced_s0", 0)]
    assert read_table(tmp_path / "c/measured/shuffled_s0__clip/predictions.csv", PREDICTIONS)["arm"].nunique() == 1


# ---------------------------------------------------------------------------------------------------------------------
# What the tables say was compared

A, B = ("a", "clip:svd", "clip:svd"), ("b", "clip:svd", "clip:svd")


def compared(folder: Path, num_frames=3, columns=None, **own: dict[str, str]) -> pd.Series:
    options = {"num_frames": num_frames, "columns": columns, "protocol_values": own}
    tables = make_tables(folder, {A: 0.5, B: 0.8}, seeds=2, num_items=60, **options)
    rows = compute_derived(tables)["comparisons"]
    return rows[rows["seed"].isna()].iloc[0]


def test_a_difference_in_the_stated_subject_leaves_a_pair_matched(tmp_path):
    stated = {"subject": "sampling lr"}
    row = compared(tmp_path / "1", a=stated | {"sampling": "shuffled"}, b=stated | {"sampling": "class_balanced"})
    assert (row["family"], row["differs_in"], row["outcome"]) == ("subject", "", "a")
    assert (row["arm_a"], row["arm_b"]) == ("b", "a")
    row = compared(tmp_path / "2", a=stated, b=stated | {"batch_size": "8"})
    assert (row["differs_in"], row["outcome"]) == ("batch_size: 8 / 32", "undecided")


@pytest.mark.parametrize(
    ("subject", "differs_in", "outcome"),
    [("num_frames", "", "a"), ("sampling num_frames", "", "a"), ("sampling", "num_frames: 3 / 8", "undecided")],
)
def test_clips_of_other_lengths_are_compared_where_a_subject_is_stated(tmp_path, subject, differs_in, outcome):
    lengths = {A: 8, B: 3}
    row = compared(tmp_path, lengths, a={"subject": subject}, b={"subject": subject})
    assert (row["arm_a"], row["arm_b"]) == ("b", "a"), "against the first, however long its clips are"
    assert (row["differs_in"], row["outcome"]) == (differs_in, outcome)


@pytest.mark.parametrize(
    ("column", "value", "subject"),
    [("train_input", "clip:static", "train_csv"), ("test_input", "clip:static", "val_csv"), ("model", "s3d", "family")],
)
def test_arms_on_other_data_are_no_matched_pair_unless_they_are_about_it(tmp_path, column, value, subject):
    for stated in ("lr", subject):
        row = compared(tmp_path / stated, columns={"b": {column: value}}, a={"subject": stated}, b={"subject": stated})
        own = {"train_input": "clip:svd", "test_input": "clip:svd", "model": "vgg11_bn"}[column]
        told = "" if stated == subject else f"{column}: {value} / {own}"
        assert (row["family"], row["differs_in"], row["outcome"]) == ("subject", told, "undecided" if told else "a")


def test_without_a_stated_subject_the_same_difference_decides_nothing(tmp_path):
    row = compared(tmp_path, a={"sampling": "shuffled"}, b={"sampling": "class_balanced"})
    assert (row["family"], row["outcome"]) == ("arms", "undecided")
    assert row["differs_in"] == "sampling: class_balanced / shuffled"


def test_a_subject_that_one_arm_alone_states_is_none(tmp_path):
    row = compared(tmp_path, a={"sampling": "shuffled"}, b={"sampling": "class_balanced", "subject": "sampling"})
    assert row["family"] == "arms" and "sampling: class_balanced / shuffled" in row["differs_in"]


def test_the_shipped_yaml_is_a_plan_on_a_training_set_that_is_not_balanced(tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    path = PROJECT / "Model_Evaluation/compare_arms.yaml"
    write_clip_set(tmp_path / "clips", per_class=2)
    raw = read_yaml(path) | {"output_dir": str(tmp_path / "out")}
    assert raw["training"]["train_csv"] == "data/demo_imbalanced/train.csv"
    assert "keep_in_train=" in path.read_text() and "output_dir=data/demo_imbalanced" in path.read_text()
    raw["training"] |= {"data_root": str(tmp_path / "clips"), "train_csv": "train.csv"}
    compare = build_settings(CompareArmsSettings, raw, "compare_arms.yaml")
    runs = plan_arms(compare)
    assert len(runs) == len(compare.arms) * len(compare.seeds) == 6
    assert {planned.settings.sampling for planned in runs} == {"shuffled", "class_balanced"}
