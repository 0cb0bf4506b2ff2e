"""The training benchmark: what it refuses, what it writes, and that its arms compute the same."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT, run_in_child
from samples import write_clip_set
from torch.nn import functional

from scripts import benchmark_data_arms, benchmark_training, benchmark_training_arms
from scripts.benchmark_table import append_rows, as_overrides, read_rows
from scripts.benchmark_training import (
    COLUMNS,
    CSV_NAME,
    SAME_COLUMNS,
    TrainingBenchmarkSettings,
    check_roofline,
    rows_of,
)
from utils.errors import InputError

SMALL = ["image_size=32", "classifier_width=16", "batch_size=2", "inference_batch_sizes=[1]", "compile=false"]
NETWORKS = "rows=[training,inference]"


@pytest.mark.parametrize(("gmac", "milliseconds"), [(67.64, 0.513), (7.65, 0.375)])
def test_the_published_times_are_above_what_their_card_can_do(gmac, milliseconds):
    with pytest.raises(InputError, match="the device reaches 13; synchronise"):
        check_roofline("published", gmac, milliseconds / 1e3, 13.0)


def test_a_possible_time_gives_its_share_of_the_peak():
    assert check_roofline("ours", 67.64, 67.64 * 2e-3 / 13 * 4, 13.0) == pytest.approx(0.25)


def test_dashed_options_are_overrides():
    given = ["--device", "cpu", "--image-size=32", "repetitions=6", "--config", "x.yaml", "--help"]
    assert as_overrides(given, TrainingBenchmarkSettings) == [
        "device=cpu",
        "image_size=32",
        "repetitions=6",
        "--config",
        "x.yaml",
        "--help",
    ]
    with pytest.raises(InputError, match="--device needs a value"):
        as_overrides(["--device"], TrainingBenchmarkSettings)


def test_help_comes_without_torch_and_names_every_key(capsys, monkeypatch):
    code = "import sys, scripts.benchmark_training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60).returncode == 0
    monkeypatch.setattr("sys.argv", ["benchmark_training", "-h"])
    with pytest.raises(SystemExit):
        benchmark_training.main()
    described = capsys.readouterr().out.split("Attributes:")[1]
    names = {name.strip() for line in described.splitlines() for name in line.split(":")[0].split(",")}
    assert names >= set(TrainingBenchmarkSettings.model_fields)


def test_rows_of_other_comparisons_stay_and_a_foreign_table_is_refused(tmp_path):
    path = tmp_path / "new" / CSV_NAME
    first = {"configuration": "a", "row": "inference", "batch_size": 1, "arm": "plain"}
    append_rows(path, [first | {"seconds_median": 1.0}], COLUMNS, SAME_COLUMNS)
    append_rows(path, [first | {"batch_size": 16}], COLUMNS, SAME_COLUMNS)
    append_rows(path, [first | {"seconds_median": 2.0}], COLUMNS, SAME_COLUMNS)
    assert [(row["batch_size"], row["seconds_median"]) for row in read_rows(path, COLUMNS)] == [("16", ""), ("1", "2")]
    demo = {"configuration": "a", "row": "demo", "batch_size": None, "arm": "ours"}  # has no batch size to tell
    append_rows(path, [demo], COLUMNS, SAME_COLUMNS)
    append_rows(path, [demo], COLUMNS, SAME_COLUMNS)
    assert [row["row"] for row in read_rows(path, COLUMNS)] == ["inference", "inference", "demo"]
    path.write_text("arm\nplain\n")
    with pytest.raises(InputError, match="other columns"):
        append_rows(path, [first], COLUMNS, SAME_COLUMNS)
    assert path.read_text() == "arm\nplain\n"


def test_each_inference_batch_is_a_comparison_of_its_own():
    settings = TrainingBenchmarkSettings(inference_batch_sizes=(1, 16))
    assert rows_of(settings) == [("training", 8), ("inference", 1), ("inference", 16)]
    assert rows_of(TrainingBenchmarkSettings(rows=("training",))) == [("training", 8)]
    assert rows_of(TrainingBenchmarkSettings(rows=("data", "demo"))) == []


def test_the_best_conv3d_is_conv3d():
    torch.manual_seed(0)
    leaves = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 4, 3, 5, 6), (3, 4, 3, 3, 3), (3,))]
    results = []
    for convolve in (benchmark_training_arms._SlicedConv.apply, lambda *args: functional.conv3d(*args, 1, 1)):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        output = convolve(*inputs)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_arms_that_disagree_are_not_timed():
    device = torch.device("cpu")
    plain, other = (
        benchmark_training_arms.Arm(name, lambda: None, 1.0, {"precision": "fp32"}, device, lambda value=value: [value])
        for name, value in (("plain", torch.ones(3)), ("ours", torch.ones(3) * 1.01))
    )
    with pytest.raises(InputError, match="ours: differs from the plain arm by 0"):
        benchmark_training_arms.compare([plain, other])


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_small_benchmark_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_training_arms, "measure_peaks", lambda settings: {"fp32": 1e3, "bf16": 1e3})
    monkeypatch.setattr(benchmark_training_arms, "keep_freed_memory", lambda: True)  # not for the other tests
    monkeypatch.setattr(
        "sys.argv", ["benchmark_training", "--device", "cpu", NETWORKS, *SMALL, f"output_dir={tmp_path}"]
    )
    benchmark_training.main()
    rows = read_rows(tmp_path / CSV_NAME, COLUMNS)
    assert tuple(rows[0]) == COLUMNS
    three = ["plain", "plain again", "best conv3d", "ours"]
    assert [(row["row"], row["arm"]) for row in rows] == [
        *(("training", arm) for arm in three),
        *(("inference", arm) for arm in [*three, "2-D"]),
    ]
    ours = rows[3]
    assert float(ours["gradient_difference"]) < 1e-3
    assert float(ours["output_difference"]) < 0.1
    assert float(ours["executed_gmac"]) < 0.5 * float(rows[0]["executed_gmac"])
    assert float(rows[0]["speed_ratio_to_plain"]) == 1.0
    assert all(len(row["seconds"].split()) == 5 and row["torch"] and row["date"] for row in rows)
    assert f"in {tmp_path / CSV_NAME}" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# An epoch of clips


def run_benchmark(*arguments: str) -> None:
    sys.argv = ["benchmark_training", "--device", "cpu", *arguments]
    benchmark_training.main()


def test_an_epoch_of_own_clips_decoded_and_cached(tmp_path):
    given = ["rows=[data]", "image_size=64", "num_clips=9", "batch_size=4", "epochs=3", f"output_dir={tmp_path}"]
    assert run_in_child(run_benchmark, *given) == 0
    rows = read_rows(tmp_path / CSV_NAME, COLUMNS)
    arms = [("plain", "0"), ("plain again", "0"), ("plain workers", "2"), ("ours", "2")]
    assert [(row["arm"], row["workers"]) for row in rows] == arms * 2
    assert [row["epochs"] for row in rows] == ["1"] * 4 + ["3"] * 4
    one, many = ({row["arm"]: row for row in part} for part in (rows[:4], rows[4:]))
    assert float(one["ours"]["speed_ratio_to_plain"]) > 2
    assert float(one["plain"]["speed_ratio_to_plain"]) == float(one["plain workers"]["speed_ratio_to_plain_workers"])
    assert samples(many["plain"]) == pytest.approx([3 * value for value in samples(one["plain"])], rel=1e-4)
    built = np.subtract(samples(many["ours"]), np.multiply(3, samples(one["ours"])))
    assert float(np.median(built)) == pytest.approx(float(many["ours"]["build_seconds"]), rel=1e-2)
    assert 0 < float(one["ours"]["peak_share"]) < 1
    for row in rows:
        assert (row["row"], row["num_clips"], row["batch_size"], row["executed_gmac"]) == ("data", "9", "4", "")
        assert len(samples(row)) == 5
        assert row["command"].endswith(f"output_dir={tmp_path}")


def samples(row: dict[str, str]) -> list[float]:
    return [float(value) for value in row["seconds"].split()]


def test_given_clips_are_used_and_other_pixels_are_not_timed(tmp_path):
    root = write_clip_set(tmp_path / "clips", per_class=2)
    settings = TrainingBenchmarkSettings(image_size=32, clips_root=root, batch_size=3)
    clips = benchmark_data_arms.read_clips(root, settings.train_csv)
    pixels = benchmark_data_arms.open_clips(clips, settings, tmp_path / "cache")
    assert len(pixels) == 4
    benchmark_data_arms.compare_pixels(clips, pixels, settings)
    gather = pixels.gather
    pixels.gather = lambda positions: gather(positions) ^ (torch.as_tensor(positions) == 3).view(-1, 1, 1, 1, 1)
    with pytest.raises(InputError, match=rf"{clips.paths[3].name}: its cached pixels are not the decoded ones"):
        benchmark_data_arms.compare_pixels(clips, pixels, settings)


def test_own_clips_move_and_are_the_same_again(tmp_path):
    first, again = (benchmark_data_arms.write_clips(tmp_path / name, 2, 64) for name in "ab")
    clips = benchmark_data_arms.read_clips(first, Path("train.csv"))
    assert clips.labels == [0, 1]
    assert [path.read_bytes() for path in clips.paths] == [
        (again / "train" / path.name).read_bytes() for path in clips.paths
    ]
    frames = benchmark_data_arms.clip_files(clips, 3, 64).read(0).astype(int)
    assert frames.shape == (3, 64, 64, 3)
    assert abs(frames[0] - frames[2]).mean() > 5


def test_more_bytes_than_the_memory_copies_are_refused():
    assert benchmark_data_arms.check_bandwidth("ours", 5.0, 20.0) == 0.25
    with pytest.raises(InputError, match=r"ours: 21 GB/s of pixels, but the memory copies 20; gather"):
        benchmark_data_arms.check_bandwidth("ours", 21.0, 20.0)


# ---------------------------------------------------------------------------------------------------------------------
# The demo's stage


@pytest.mark.parametrize(
    ("arm", "num_caches", "keys"),
    [
        ("ours", 1, {}),
        pytest.param("plain", 0, {"temporal_conv": "conv3d", "cache": "false"}, marks=pytest.mark.exhaustive),
    ],
)
def test_an_arm_of_the_demo_trains_in_a_process_of_its_own(tmp_path, monkeypatch, arm, num_caches, keys):
    root = write_clip_set(tmp_path / "demo" / "videos", per_class=10).parent
    run_stage, seen = benchmark_data_arms.run_stage, {}

    def short(module, config, **given):
        seconds = run_stage(module, config, **given, updates=1, classifier_width=8, batch_size=4)
        seen["keys"] = {name: value for name, value in given.items() if name in ("temporal_conv", "cache")}
        seen["caches"] = len(list((tmp_path / "run" / "cache").glob("*.pixels")))
        return seconds

    monkeypatch.setattr(benchmark_data_arms, "run_stage", short)
    settings = TrainingBenchmarkSettings(device="cpu", demo_root=root)
    seconds, top1 = benchmark_data_arms.run_demo(settings, arm, root / "videos", tmp_path / "run")
    assert seconds > 0.5
    assert top1 in (0, 0.5, 1), "of two clips that are held out"
    assert seen == {"keys": keys, "caches": num_caches}, "the cache is built in the run itself"
    assert not (tmp_path / "run").exists()


def test_the_demo_has_its_table_and_a_failed_stage_is_named(tmp_path, monkeypatch, capsys):
    root = write_clip_set(tmp_path / "demo" / "videos", per_class=1).parent
    runs = iter(range(100))

    def pretend(settings, arm, data_root, folder):
        assert data_root == root / "videos"
        return (3.0 if arm == "ours" else 6.0), 0.9 + next(runs) / 1000

    monkeypatch.setattr(benchmark_data_arms, "run_demo", pretend)
    given = ["benchmark_training", "rows=[demo]", f"demo_root={root}", f"output_dir={tmp_path}"]
    monkeypatch.setattr("sys.argv", given)
    benchmark_training.main()
    with (tmp_path / CSV_NAME).open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["arm"], row["seconds_median"], row["speed_ratio_to_plain"], row["selection_top1"]) for row in rows]
    assert found == [("plain", "6", "1", "0.907"), ("plain again", "6", "1", "0.908"), ("ours", "3", "2", "0.909")]
    assert next(runs) == 16, "one run first that does not count, then three in turn, five times"
    assert "x plain" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"Inflated_3D_VGG.train3d: ended with exit code 2: .*unknown key 'no_such_key'"
    ):
        benchmark_data_arms.run_stage("Inflated_3D_VGG.train3d", "Inflated_3D_VGG/demo.yaml", no_such_key=1)


@pytest.mark.exhaustive
def test_the_demo_data_are_clips_of_the_digits(tmp_path):
    clips = benchmark_data_arms.read_clips(benchmark_data_arms.make_demo_data(tmp_path) / "videos", Path("train.csv"))
    assert (len(clips), len(clips.classes), clips.clip_kind) == (600, 10, "clip:camera_motion")
