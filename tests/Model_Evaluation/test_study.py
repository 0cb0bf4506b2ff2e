"""The study: what it plans, what it refuses, what it keeps, and that it goes on where it was killed."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import KILLED, exit_at_call, run_in_child
from samples import write_image_set

import utils.files
from Model_Evaluation.arms import ARMS
from Model_Evaluation.study_journal import ArmsFailed, Journal, describe_shortfalls
from Model_Evaluation.study_plan import plan_clips, plan_runs
from Model_Evaluation.study_run import run_study
from Model_Evaluation.study_settings import StudySettings
from Model_Evaluation.study_sources import common_sources, read_training_clips
from utils.artifacts import ARMS as ARMS_TABLE
from utils.artifacts import COMPARISONS, HOLD_OUT, PREDICTIONS, STUDY, TRAINING_TIME, VERDICT, read_table, write_table
from utils.checkpoints import read_description
from utils.config import build_settings
from utils.errors import InputError, Terminated

TRAINING = {"image_size": 32, "classifier_width": 8, "dropout": 0.0, "updates": 3, "warmup_updates": 0}
GEOMETRY = {"height": 64, "width": 64, "fit": "pad", "output": "undo"}
NO_CHECKS = {"min_source_correlation": -1, "max_saturated_fraction": 1, "min_contrast": 0, "min_motion": 0}


def clips(generator: str, **keys) -> dict:
    common = {"frame_size": 32, "geometry": GEOMETRY, "checks": NO_CHECKS}
    return {"generation": {"generator": generator, **common, **keys}}


def raw_study(root: Path, **changes) -> dict:
    """Two arms of two seeds on random images; a moving camera stands in for SVD."""
    return {
        "output_dir": str(root / "study"),
        "images_root": str(root / "images"),
        "clips": {"svd": clips("camera_motion"), "static": clips("static")},
        "arms": ["2d_original", "3d_svd"],
        "seeds": [0, 1],
        "training": {"protocol": "none", "batch_size": 4, "weights": "none", **TRAINING},
        "paper": {"weights": "none", "image_size": 32, "classifier_width": 8, "epochs": 1, "batch_size": 4},
        "scoring": {"batch_size": 4, "latency": {"batch_sizes": [1], "warmup": 1, "repetitions": 2}, "num_pictures": 2},
        "device": "cpu",
        "workers": 0,
    } | changes


def settings_for(root: Path, **changes) -> StudySettings:
    return build_settings(StudySettings, raw_study(root, **changes), "test")


def run(root: Path, kill_at_fsync: int = 0, given: dict | None = None, **changes) -> None:
    changes |= given or {}
    torch.set_num_threads(1)
    if kill_at_fsync:
        exit_at_call(utils.files.os, "fsync", kill_at_fsync)
    run_study(settings_for(root, **changes))


def plan(root: Path, **changes):
    study = settings_for(root, **changes)
    return plan_runs(study, plan_clips(study))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("world") / "images", per_class=6)


@pytest.fixture
def root(images, tmp_path) -> Path:
    shutil.copytree(images, tmp_path / "images")
    return tmp_path


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(images, root / "images")
    assert run_in_child(run, root) == 0
    return root


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file's time and size; what a run that does nothing must leave."""
    kept = [
        path for path in folder.rglob("*") if path.is_file() and path.name not in ("config.yaml", "environment.json")
    ]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in kept}


def test_all_arms_of_the_design_are_planned_seed_by_seed(root):
    kinds = {kind: clips("static") for kind in ("svd", "static", "camera_motion", "svd_flat")}
    runs = plan(root, clips=kinds, arms=[*(a for a in ARMS if not a.startswith("paper")), "paper"], seeds=[5, 6])
    assert [run.run_id for run in runs[:11]] == [
        *("2d_original_s5", "2d_first_frame_t3_s5", "2d_all_frames_t3_s5", "2d_mix_t3_s5", "2d_tta_s5"),
        *("3d_static_t3_s5", "3d_camera_t3_s5", "3d_svd_t3_s5", "3d_svd_flat_t3_s5", "paper_2d_s5", "paper_3d_t3_s5"),
    ]
    assert [run.seed for run in runs] == [5] * 11 + [6] * 11
    by_id = {run.run_id: run for run in runs}
    assert by_id["2d_tta_s6"].weights_of == "2d_original_s6"
    assert [by_id["3d_svd_t3_s5"].test_id(test) for test in ARMS["3d_svd"].tests] == [
        f"3d_svd_t3_s5__{test}" for test in ("clip", "shuffled", "reversed", "static")
    ]
    assert {run.settings.protocol for run in runs if run.arm.is_paper} == {"paper"}


def test_the_number_of_frames_is_an_axis(root):
    study = settings_for(root, num_frames=[3, 5, 8], seeds=[0])
    sets = plan_clips(study)
    assert {key: made.generation.num_frames for key, made in sets.items()} == {("svd", n): n for n in (3, 5, 8)}
    runs = plan_runs(study, sets)
    assert [run.run_id for run in runs] == ["2d_original_s0", *(f"3d_svd_t{n}_s0" for n in (3, 5, 8))]
    assert [run.settings.num_frames for run in runs[1:]] == [3, 5, 8]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"baseline": {"lr": 0.01}}, r"lr: is 0.01 in arm 2d_original and 0.001 in arm 3d_svd"),
        ({"inflated": {"augmentation": {"horizontal_flip": True}}}, r"augmentation: is .* in arm 2d_original and"),
        ({"inflated": {"weights": "imagenet"}}, r"weights: is 'none' in arm 2d_original and 'imagenet'"),
        ({"training": {"protocol": "none", "seed": 3}}, r"training.seed: the study sets it"),
        ({"training": {"protocol": "none", "lr": "fast"}}, r"^arm 2d_original: training and baseline: lr: .*\n"),
        (
            {"arms": ["2d_original", "2d_mix"], "training": {"lr": "x"}},
            r"^arms 2d_original, 2d_mix: training and baseline: lr[^\n]*$",
        ),
        ({"arms": ["3d_motion"]}, "unknown arm '3d_motion'; known: 2d_original"),
        ({"arms": ["2d_tta"]}, "2d_tta uses the weights of 2d_original; add it"),
        ({"arms": ["3d_camera"]}, "clips.camera_motion is missing, which arm 3d_camera needs"),
        ({"training": {"protocol": "none", "selection": "val"}}, "selection: is 'val'; the arms of a study choose"),
        ({"training": {"protocol": "none", "weights": "no.safetensors"}}, r"weights: 'no.safetensors' is no file"),
        (
            {"training": {"protocol": "none", "hold_out": {"file": "x.csv"}}},
            "training.hold_out.file: the study sets it",
        ),
        ({"seeds": [1, 1]}, "seeds: a value is listed twice"),
        (
            {"clips": {"svd": clips("static"), "svg": clips("static")}},
            "clips.svg: no arm uses such clips",
        ),
        ({"clips": {"svd": {}}}, "give either the root of clips that are there, or config and generation"),
        ({"clips": {"svd": clips("svd", num_frames=5)}}, "generation.num_frames: the study sets it"),
        ({"clips": {"svd": clips("motion")}}, "clips.svd.generation: generator: unknown generator 'motion'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(root, changes, problem):
    with pytest.raises(InputError, match=problem):
        run_study(settings_for(root, **changes))
    assert not (root / "study").exists()


def test_what_an_arm_is_about_may_differ(root):
    runs = plan(root, inflated={"init": "average"}, arms=["2d_original", "2d_mix", "3d_svd"])
    assert {run.settings.protocol_values.get("init") for run in runs} == {None, "average"}


def test_a_dry_run_prints_time_and_disk_and_makes_nothing(root, capsys):
    run_study(settings_for(root, dry_run=True))
    printed = capsys.readouterr().out
    assert "12 train, 12 val, 2 classes" in printed
    assert "clips svd, 3 frames: 24 to make by camera_motion" in printed
    line = next(line for line in printed.splitlines() if line.startswith("3d_svd_t3_s1"))
    assert line.split()[1] == "3" and line.endswith("clip, shuffled, reversed, static")
    assert "MB of decoded pixels" in printed
    assert not (root / "study").exists()


def test_a_study_that_does_not_fit_the_disk_is_refused(root, monkeypatch):
    from Model_Evaluation import study_estimate

    usage = type("usage", (), {"free": 10_000})
    monkeypatch.setattr(study_estimate.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"output_dir: the study needs about .* GB and .* has 0.0 GB free"):
        run_study(settings_for(root))
    assert not any(path.is_dir() for path in (root / "study").iterdir())


def test_clips_of_another_length_are_refused_before_others_are_made(finished, tmp_path):
    given = {"svd": {"root": str(finished / "study/clips/svd_t3")}, "static": clips("static")}
    study = settings_for(finished, clips=given, num_frames=[5], output_dir=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"num_frames is 3, expected 5"):
        run_study(study)
    assert not (tmp_path / "other").exists()


def test_given_clips_that_are_wrong_are_named_by_their_kind(root):
    (root / "empty").mkdir()
    given = {"svd": {"root": str(root / "empty")}, "static": clips("static")}
    with pytest.raises(InputError, match=r"^clips\.svd: train_csv: there is neither .*empty/train\.csv nor train\.csv"):
        run_study(settings_for(root, clips=given))


@pytest.mark.parametrize("lost", ["train.csv", "val.csv"])
def test_an_image_set_without_an_index_is_named_by_the_study_s_own_key(root, lost):
    (root / "images" / lost).unlink()
    sentence = (
        f"test: images_root: {root / 'images'} has neither {lost} (run Data_Sourcing) nor wnids.txt (the raw layout)"
    )
    with pytest.raises(InputError) as error:
        settings_for(root)
    assert str(error.value) == sentence
    (root / "images/wnids.txt").write_text("n00000001\n")
    assert settings_for(root).images_root == root / "images"


def test_every_run_is_scored_on_all_its_inputs(finished):
    rows = read_table(finished / "study/results/predictions.csv", PREDICTIONS)
    found = rows.groupby(["arm", "test_input"])["seed"].agg(lambda seeds: sorted(set(seeds))).to_dict()
    inputs = {
        "2d_original": ("original", "original_paper_geometry", "first_frame:camera_motion"),
        "3d_svd": tuple(f"{test}:camera_motion" for test in ("clip", "shuffled", "reversed", "static")),
    }
    assert found == {(arm, test): [0, 1] for arm, tests in inputs.items() for test in tests}
    assert rows.groupby("run_id").size().unique().tolist() == [12]


def test_arms_are_compared_and_judged(finished):
    comparisons = read_table(finished / "study/results/comparisons.csv", COMPARISONS)
    claim = comparisons[(comparisons["family"] == "claim") & comparisons["seed"].isna()]
    assert set(zip(claim["arm_a"], claim["arm_b"], claim["test_input_b"], strict=True)) == {
        ("3d_svd", "2d_original", "original"),
        ("3d_svd", "3d_svd", "shuffled:camera_motion"),
    }
    assert set(comparisons["differs_in"]) == {""}
    assert read_table(finished / "study/results/verdict.csv", VERDICT)["answer"].iloc[0] in ("no", "undecided")
    assert (finished / "study/results/report.html").stat().st_size > 10_000


def test_the_journal_says_what_became_of_each_run(finished):
    rows = read_table(finished / "study/study.csv", STUDY)
    assert rows["training_id"].tolist() == ["2d_original_s0", "3d_svd_t3_s0", "2d_original_s1", "3d_svd_t3_s1"]
    assert set(rows["status"]) == {"done"} and set(rows["reason"]) == {""}
    assert (rows["train_s"] > 0).all() and (rows["disk_mb"] > 1).all()


def test_finished_arms_keep_their_best_weights_only(finished):
    for folder in (finished / "study/runs").iterdir():
        kept = {path.name for path in folder.iterdir()}
        assert "model_best.safetensors" in kept and "last.pt" not in kept


def test_all_arms_share_one_hold_out_and_one_training_set(finished):
    descriptions = [read_description(path) for path in (finished / "study/runs").rglob("model_best.safetensors")]
    assert len({described.trained_on["hold_out_sha256"] for described in descriptions}) == 1
    assert {described.trained_on["num_items"] for described in descriptions} == {10}
    assert {described.selection_split for described in descriptions} == {"hold_out"}


def test_a_second_run_does_nothing(finished):
    before = files_of(finished / "study")
    assert run_in_child(run, finished) == 0
    assert files_of(finished / "study") == before


def without_times(folder: Path) -> dict[str, bytes]:
    names = ("predictions", "probabilities", "protocol_values", "comparisons", "arms", "verdict", "confusion_flat")
    return {name: (folder / f"{name}.csv").read_bytes() for name in names}


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=[] if p == 150 else pytest.mark.exhaustive) for p in range(10, 300, 35)]
)
def test_a_killed_study_goes_on_to_the_same_tables(finished, root, point):
    code = run_in_child(run, root, point)
    if code == KILLED:
        assert run_in_child(run, root) == 0
    assert without_times(root / "study/results") == without_times(finished / "study/results")
    assert not list((root / "study").rglob("*.partial"))


@pytest.mark.exhaustive
def test_a_failed_arm_is_a_row_and_the_others_are_done(root):
    kinds = {
        "svd": clips("camera_motion"),
        "static": {"generation": {"generator": "svd", "diffusion_model": "no/where"}},
    }
    changes = {"clips": kinds, "arms": ["2d_original", "3d_static"], "seeds": [0]}
    with pytest.raises(ArmsFailed, match="1 runs have failed or are not complete"):
        run(root, **changes)
    rows = read_table(root / "study/study.csv", STUDY).set_index("training_id")
    assert rows["status"].to_dict() == {"2d_original_s0": "done", "3d_static_t3_s0": "failed"}
    assert rows.loc["3d_static_t3_s0", "reason"].startswith("no static clips: ")
    assert (root / "study/results/report.html").exists()
    run(root, **changes | {"clips": kinds | {"static": clips("static")}})
    rows = read_table(root / "study/study.csv", STUDY)
    assert set(rows["status"]) == {"done"}


def test_one_mistake_is_said_once_with_the_runs_that_have_it(root, monkeypatch, caplog):
    from Model_Evaluation import study_run

    def fail(settings):
        raise RuntimeError(f"no kernel for {settings.output_dir}")

    for network in ("baseline", "inflated"):
        monkeypatch.setitem(study_run._TRAINERS, network, fail)
    with pytest.raises(InputError) as error:
        run(root, arms=["2d_original", "2d_tta", "3d_svd"])
    (line,) = str(error.value).splitlines()[1:]
    names = "2d_original (seeds 0, 1), 2d_tta (seeds 0, 1), 3d_svd_t3 (seeds 0, 1)"
    assert line == f"  {names}: RuntimeError: no kernel for {root}/study/runs/RUN"
    assert sum("no kernel" in record.getMessage() for record in caplog.records) == 1
    assert "3d_svd_t3_s1 has failed for the same reason as 2d_original_s0" in caplog.messages
    reasons = read_table(root / "study/study.csv", STUDY).set_index("training_id")["reason"]  # each row keeps its own
    assert reasons["3d_svd_t3_s1"] == f"RuntimeError: no kernel for {root}/study/runs/3d_svd_t3_s1"


def test_different_mistakes_are_said_each(root):
    first, other = plan(root, seeds=[0])
    lines = describe_shortfalls([(first, "a disk"), (other, "weights of 3d_svd_t3_s0 are gone")])
    assert lines == ["2d_original_s0: a disk", "3d_svd_t3_s0: weights of 3d_svd_t3_s0 are gone"]


def test_progress_names_the_arm_and_what_is_left(root):
    runs = plan(root, arms=["2d_original", "2d_tta", "3d_svd"], seeds=[0, 1, 2])
    by_id = {planned.run_id: planned for planned in runs}
    journal = Journal(root / "study.csv", runs)
    assert journal.describe_progress(by_id["2d_original_s0"]) == "training 1 of 6: 2d_original_s0; 5 to follow"
    for name, seconds in (("2d_original_s0", 100.0), ("3d_svd_t3_s0", 500.0), ("2d_original_s2", 140.0)):
        row = {"first_update": 1, "last_update": 3, "train_s": seconds, "device": "cpu"}
        write_table([row], root / "runs" / name / "training_time.csv", TRAINING_TIME)
        journal.record(by_id[name], "done")
    # 2d_original_s2 is done: what is left are one 2d_original (120 s, the mean of two) and two 3d_svd.
    text = "training 3 of 6: 2d_original_s1; 2 to follow, about 19 min with this one"
    assert journal.describe_progress(by_id["2d_original_s1"]) == text
    text = "training 6 of 6: 3d_svd_t3_s2; the last one, about 8 min with this one"
    assert journal.describe_progress(by_id["3d_svd_t3_s2"]) == text


@pytest.mark.exhaustive
def test_unmatched_clips_are_left_out_of_all_arms_alike(root):
    run(root, arms=["3d_svd"], seeds=[0])
    study = settings_for(root, seeds=[0])
    index = root / "study/clips/svd_t3/train.csv"
    table = pd.read_csv(index, dtype=str, keep_default_na=False)
    table.loc[3, "source_sha256"] = ""
    shutil.copytree(root / "study/clips/svd_t3", root / "given")
    table.to_csv(root / "given/train.csv", index=False)
    shutil.rmtree(root / "study")
    run(root, clips={"svd": {"root": str(root / "given")}}, seeds=[0])
    listed = read_table(root / "study/hold_out.csv", HOLD_OUT)
    assert len(listed) == 11
    described = [read_description(path) for path in sorted((root / "study/runs").rglob("model_best.safetensors"))]
    assert [one.trained_on["num_items"] for one in described] == [9, 9]
    assert study.seeds == (0,)


def test_clips_without_sources_are_refused_with_the_remedy(finished):
    study = settings_for(finished)
    clip_set = plan_clips(study)["svd", 3]
    index = read_training_clips(clip_set)
    index.table["source_sha256"] = ""
    with pytest.raises(InputError, match=r"names no sources .*adopt_published"):
        common_sources([index, index])


def test_an_edited_learning_rate_of_one_arm_is_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    config = tmp_path / "copy/study/runs/3d_svd_t3_s0/config.yaml"
    config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.01"))
    with pytest.raises(ArmsFailed, match=r"3d_svd_t3_s0: .*lr: 0.01 -> 0.001"):
        run(tmp_path / "copy")


@pytest.mark.exhaustive
def test_clips_of_five_frames_are_trained_and_scored_beside_those_of_three(root):
    run(root, arms=["2d_first_frame", "3d_svd"], num_frames=[3, 5], seeds=[0], scoring=raw_study(root)["scoring"])
    rows = read_table(root / "study/results/predictions.csv", PREDICTIONS)
    found = rows.drop_duplicates("run_id").set_index("run_id")["num_frames"].to_dict()
    assert {name: found[name] for name in found if name.endswith(("clip", "first_frame"))} == {
        **{f"2d_first_frame_t{n}_s0__first_frame": n for n in (3, 5)},
        **{f"3d_svd_t{n}_s0__clip": n for n in (3, 5)},
    }
    claims = read_table(root / "study/results/comparisons.csv", COMPARISONS)
    claims = claims[(claims["family"] == "claim") & (claims["arm_b"] == "2d_first_frame") & claims["seed"].isna()]
    assert sorted(zip(claims["num_frames_a"], claims["num_frames_b"], strict=True)) == [(3, 3), (5, 5)]


@pytest.mark.exhaustive
def test_clips_that_come_later_complete_what_was_scored_without_them(root):
    kinds = {"svd": {"generation": {"generator": "svd", "diffusion_model": "no/where"}}}
    with pytest.raises(
        ArmsFailed, match=r"2d_original_s0: not scored on first_frame: no svd clips: (.|\n)*3d_svd_t3_s0"
    ):
        run(root, clips=kinds, seeds=[0])
    rows = read_table(root / "study/results/predictions.csv", PREDICTIONS)
    assert set(rows["test_input"]) == {"original", "original_paper_geometry"}
    trained = (root / "study/runs/2d_original_s0/model_best.safetensors").stat().st_mtime_ns
    run(root, seeds=[0])
    rows = read_table(root / "study/results/predictions.csv", PREDICTIONS)
    assert rows["run_id"].nunique() == 3 + 4
    assert (root / "study/runs/2d_original_s0/model_best.safetensors").stat().st_mtime_ns == trained
    assert set(read_table(root / "study/study.csv", STUDY)["reason"]) == {""}


def test_weights_of_a_training_that_has_failed_are_not_scored(root, monkeypatch):
    from Model_Evaluation import study_run

    def fail_after_the_first_best(settings):
        (settings.output_dir).mkdir(parents=True)
        (settings.output_dir / "model_best.safetensors").write_bytes(b"half")
        raise RuntimeError("the GPU is gone")

    monkeypatch.setitem(study_run._TRAINERS, "baseline", fail_after_the_first_best)
    with pytest.raises(InputError, match="no arm could be scored"):
        run(root, arms=["2d_original", "2d_tta"], seeds=[0])
    reasons = read_table(root / "study/study.csv", STUDY).set_index("training_id")["reason"]
    assert reasons["2d_tta_s0"] == "2d_original_s0 is not trained: RuntimeError: the GPU is gone"


def test_a_full_disk_ends_the_study(root, monkeypatch):
    from Model_Evaluation import study_run

    def fill(settings):
        raise OSError(errno.ENOSPC, "No space left on device", "last.pt")

    monkeypatch.setitem(study_run._TRAINERS, "baseline", fill)
    with pytest.raises(OSError, match="No space left"):
        run(root)
    assert set(read_table(root / "study/study.csv", STUDY)["status"]) == {"planned"}


@pytest.mark.parametrize("signal", [Terminated, KeyboardInterrupt])
def test_a_signal_fails_no_arm(root, monkeypatch, signal):
    from Model_Evaluation import study_run

    def stop(settings):
        raise signal

    monkeypatch.setitem(study_run._TRAINERS, "baseline", stop)
    with pytest.raises(signal):
        run(root)
    assert set(read_table(root / "study/study.csv", STUDY)["status"]) == {"planned"}


def test_a_seed_that_is_added_makes_all_that_follows_anew(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    root = tmp_path / "copy"
    before = files_of(root / "study/runs")
    code = run_in_child(run, root, 60, {"seeds": [0, 1, 2]})
    assert run_in_child(run, root, 0, {"seeds": [0, 1, 2]}) == 0
    assert code in (0, KILLED)
    after = files_of(root / "study/runs")
    assert {name: after[name] for name in before} == before
    rows = read_table(root / "study/results/arms.csv", ARMS_TABLE)
    assert set(rows["num_seeds"]) == {3}


@pytest.mark.exhaustive
def test_other_scoring_settings_score_again_and_train_nothing(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    root = tmp_path / "copy"
    before = files_of(root / "study/runs")
    scoring = raw_study(root)["scoring"] | {"batch_size": 3}
    assert run_in_child(run, root, 0, {"scoring": scoring}) == 0
    assert files_of(root / "study/runs") == before
    assert without_times(root / "study/results") == without_times(finished / "study/results")
