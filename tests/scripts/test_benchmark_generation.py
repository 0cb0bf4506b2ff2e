"""The generation benchmark: what it counts, that it compares before it times, and what it writes. No time is tested."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import PROJECT

from Data_Augmentation_SVD.published_architecture import (
    build_published_image_encoder,
    build_published_unet,
    build_published_vae,
)
from scripts import benchmark_generation
from scripts.benchmark_generation import (
    Arm,
    GenerationBenchmarkSettings,
    _as_overrides,
    compare_outputs,
    count_unet_tflops,
    summarise,
)
from utils.errors import InputError

SMALL = PROJECT / "Data_Augmentation_SVD/small_svd"


def settings_for(**keys) -> GenerationBenchmarkSettings:
    return GenerationBenchmarkSettings(model=str(SMALL), device="cpu", height=64, width=64, **keys)


@pytest.mark.parametrize(
    ("build", "millions"),
    [(build_published_unet, 1524.6), (build_published_vae, 97.7), (build_published_image_encoder, 632.1)],
    ids=["unet", "vae", "clip"],
)
def test_the_published_architecture_has_the_published_number_of_parameters(build, millions):
    with torch.device("meta"):
        module = build()
    assert sum(parameter.numel() for parameter in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_one_published_step_costs_what_the_architecture_says_and_ours_at_most_94_percent_of_it():
    with torch.device("meta"):
        config = build_published_unet().config
    settings = settings_for(num_frames=3)
    plain = count_unet_tflops(config, settings, 256, 256, ours=False)
    ours = count_unet_tflops(config, settings, 256, 256, ours=True)
    assert 12 * plain == pytest.approx(21.43, abs=0.01)  # 24.0 T an image with CLIP, encoder and decoder
    assert ours / plain <= 0.94
    unguided = count_unet_tflops(config, settings_for(max_guidance_scale=1.0), 256, 256, ours=False)
    assert unguided == pytest.approx(plain / 2, rel=0.01)


@pytest.mark.parametrize(
    ("given", "overrides"),
    [
        (["--device", "cuda"], ["device=cuda"]),
        (["--device=cpu", "batch_size=2"], ["device=cpu", "batch_size=2"]),
        (["--batch-size", "4"], ["batch_size=4"]),
        (["--config", "x.yaml", "--help"], ["--config", "x.yaml", "--help"]),
    ],
)
def test_dashed_options_are_overrides(given, overrides):
    assert _as_overrides(given) == overrides


def arms_with(*frames: torch.Tensor) -> list[Arm]:
    return [Arm(f"arm {number}", lambda frames=value: frames) for number, value in enumerate(frames)]


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_arms_that_disagree_are_not_timed(wrong):
    same = torch.zeros(2, 3, 3, 8, 8)
    assert compare_outputs(arms_with(same, same, same), settings_for()) == 0
    other = same.clone()
    other[1, 2, 0, 4, 4] = wrong
    with pytest.raises(InputError, match="not timed"):
        compare_outputs(arms_with(same, same, other), settings_for())


def test_the_ratio_is_the_median_over_repetitions_run_in_turn():
    seconds = {"arm 0": [4.0, 8.0, 4.0, 4.0, 40.0], "arm 1": [2.0, 2.0, 2.0, 1.0, 10.0]}
    rows = summarise(arms_with(torch.zeros(1), torch.zeros(1)), seconds, settings_for(num_images=8))
    assert [row["speed_ratio"] for row in rows] == [1.0, 4.0]
    assert [row["clips_per_s"] for row in rows] == [2.0, 4.0]


def test_a_whole_benchmark_writes_its_table_with_equal_outputs(tmp_path: Path, monkeypatch, capsys):
    keys = ("num_images=2", "batch_size=2", "num_inference_steps=1", f"model={SMALL}", f"output_dir={tmp_path}")
    monkeypatch.setattr("sys.argv", ["benchmark_generation", "--device", "cpu", *keys])
    benchmark_generation.main()
    with (tmp_path / "benchmark_generation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"].split(" (")[0] for row in rows] == ["plain loop", "plain again", "ours"]
    assert float(rows[0]["speed_ratio"]) == 1.0
    assert float(rows[2]["unet_tflops_per_step"]) < float(rows[0]["unet_tflops_per_step"])
    record = json.loads((tmp_path / "benchmark_generation.json").read_text())
    assert record["largest_difference"] < 1e-4
    assert all(len(seconds) == 5 for seconds in record["seconds"].values())
    assert "largest difference of outputs" in capsys.readouterr().out
