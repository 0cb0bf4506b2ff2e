"""The training benchmark: what it refuses, what it writes, and that its arms compute the same."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import PROJECT
from torch.nn import functional

from scripts import benchmark_training, benchmark_training_arms
from scripts.benchmark_training import (
    COLUMNS,
    CSV_NAME,
    TrainingBenchmarkSettings,
    append_rows,
    as_overrides,
    check_roofline,
    read_rows,
    rows_of,
)
from utils.errors import InputError

SMALL = ["image_size=32", "classifier_width=16", "batch_size=2", "inference_batch_sizes=[1]", "compile=false"]


@pytest.mark.parametrize(("gmac", "milliseconds"), [(67.64, 0.513), (7.65, 0.375)])
def test_the_published_times_are_above_what_their_card_can_do(gmac, milliseconds):
    with pytest.raises(InputError, match="the device reaches 13; synchronise"):
        check_roofline("published", gmac, milliseconds / 1e3, 13.0)


def test_a_possible_time_gives_its_share_of_the_peak():
    assert check_roofline("ours", 67.64, 67.64 * 2e-3 / 13 * 4, 13.0) == pytest.approx(0.25)


def test_dashed_options_are_overrides():
    given = ["--device", "cpu", "--image-size=32", "repetitions=6", "--config", "x.yaml", "--help"]
    assert as_overrides(given) == ["device=cpu", "image_size=32", "repetitions=6", "--config", "x.yaml", "--help"]
    with pytest.raises(InputError, match="--device needs a value"):
        as_overrides(["--device"])


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
    append_rows(path, [first | {"seconds_median": 1.0}])
    append_rows(path, [first | {"batch_size": 16}])
    append_rows(path, [first | {"seconds_median": 2.0}])
    assert [(row["batch_size"], row["seconds_median"]) for row in read_rows(path)] == [("16", ""), ("1", "2")]
    path.write_text("arm\nplain\n")
    with pytest.raises(InputError, match="other columns"):
        append_rows(path, [first])
    assert path.read_text() == "arm\nplain\n"


def test_each_inference_batch_is_a_comparison_of_its_own():
    settings = TrainingBenchmarkSettings(inference_batch_sizes=(1, 16))
    assert rows_of(settings) == [("training", 8), ("inference", 1), ("inference", 16)]
    assert rows_of(TrainingBenchmarkSettings(rows=("training",))) == [("training", 8)]


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
    monkeypatch.setattr("sys.argv", ["benchmark_training", "--device", "cpu", *SMALL, f"output_dir={tmp_path}"])
    benchmark_training.main()
    rows = read_rows(tmp_path / CSV_NAME)
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
