"""The generation benchmark: what it counts, compares, moves and writes. No time is tested."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PROJECT

from Data_Augmentation_SVD.published_architecture import (
    build_published_image_encoder,
    build_published_unet,
    build_published_vae,
)
from scripts import benchmark_arms, benchmark_generation
from scripts.benchmark_arms import Arm, compare_outputs, count_unet_tflop, measure_arm_memory, must_park, time_arms
from scripts.benchmark_generation import (
    COLUMNS,
    CSV_NAME,
    SAME_COLUMNS,
    GenerationBenchmarkSettings,
    describe_run,
    is_done,
    summarise,
)
from scripts.benchmark_table import append_rows, as_overrides, read_rows
from utils.errors import InputError

SMALL = "Data_Augmentation_SVD/small_svd"
SIZE = {"height": 64, "width": 64, "min_guidance_scale": 1.0, "max_guidance_scale": 3.0}
OPTIONS = SIZE | {"decode_chunk_size": 3, "batch_size": 1, "compile": "none", "offload": "none"}


def settings_for(**keys) -> GenerationBenchmarkSettings:
    return GenerationBenchmarkSettings(**{"model": SMALL, "device": "cpu"} | keys)


def arm_with(name: str, frames: torch.Tensor, tflop: float = 0.5, **options) -> Arm:
    return Arm(name, lambda num_images: frames[:num_images], len(frames), OPTIONS | options, tflop)


# --- counts and figures -----------------------------------------------------------------------------------------------


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
    size = {"height": 256, "width": 256, "max_guidance_scale": 3.0}
    plain = count_unet_tflop(config, 3, size, ours=False)
    assert 12 * plain == pytest.approx(21.43, abs=0.01)  # 24.0 T an image with CLIP, encoder and decoder
    assert count_unet_tflop(config, 3, size, ours=True) / plain <= 0.94
    unguided = count_unet_tflop(config, 3, size | {"max_guidance_scale": 1.0}, ours=False)
    assert unguided == pytest.approx(plain / 2, rel=0.01)


def test_the_ratio_is_the_median_over_repetitions_of_times_a_clip():
    plain, ours = arm_with("plain", torch.zeros(2, 1)), arm_with("ours", torch.zeros(8, 1), batch_size=3)
    seconds = {"plain": [1.0, 2.0, 1.0, 1.0, 10.0], "ours": [2.0, 2.0, 2.0, 1.0, 10.0]}
    rows = summarise([plain, ours], seconds, {"num_inference_steps": 12, "matmul_tflop_per_s": 100.0})
    assert [row["speed_ratio"] for row in rows] == [1.0, 4.0]
    assert [row["clips_per_s"] for row in rows] == [2.0, 4.0]
    assert [row["num_images"] for row in rows] == [2, 8]
    # 0.5 TFLOP x 12 steps x 9 images (three batches of 3, the last with a repeated image) in 2 s, of 100 TFLOP/s
    assert (rows[1]["unet_tflop_per_s"], rows[1]["matmul_share"]) == (27.0, 0.27)
    assert rows[1]["seconds"] == "2 2 2 1 10"


def test_the_matmul_rate_is_the_best_sample_of_the_same_type(monkeypatch):
    lasting = iter([0.01, 0.06, 0.11, 0.4, 0.2, 0.5, 0.4, 0.4])  # three to find the number of products, five samples
    seen = []

    def time_matmuls(a, b, product, number, device):
        seen.append((a.dtype, a.shape, number))
        return next(lasting)

    monkeypatch.setattr(benchmark_arms, "_time_matmuls", time_matmuls)
    rate = benchmark_arms.measure_matmul_tflops(settings_for(dtype="bfloat16"))
    assert rate == pytest.approx(2 * 1024**3 * 4 / 0.2 / 1e12)
    assert seen[-1] == (torch.bfloat16, (1024, 1024), 4)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_arms_that_disagree_are_not_timed():
    same = torch.zeros(2, 3, 3, 8, 8)
    assert compare_outputs([arm_with("plain", same), arm_with("ours", same)], settings_for(), False) == (0, 0)
    other = same.clone()
    other[1, 2, 0, 4, 4] = 0.01
    with pytest.raises(InputError, match=r"differ by 0\.01 of the range.*not timed"):
        compare_outputs([arm_with("plain", same), arm_with("ours", other)], settings_for(), False)


def test_a_plain_loop_over_fewer_images_is_compared_with_the_first_of_ours():
    frames = torch.arange(4.0)[:, None, None, None, None].expand(4, 3, 3, 8, 8) / 4
    assert compare_outputs([arm_with("plain", frames[:2]), arm_with("ours", frames)], settings_for(), False) == (0, 0)


@pytest.mark.parametrize("wrong", ["plain", "ours"])
@pytest.mark.parametrize("options", [{}, {"height": 576}], ids=["same task", "another size"])
def test_frames_that_are_no_numbers_are_never_timed(wrong, options):
    frames = {"plain": torch.zeros(1, 3, 3, 8, 8), "ours": torch.zeros(1, 3, 3, 8, 8)}
    frames[wrong][0, 1, 0, 2, 2] = float("nan")
    arms = [arm_with("plain", frames["plain"], **options), arm_with("ours", frames["ours"])]
    with pytest.raises(InputError, match=f"{wrong}: frames are not finite"):
        compare_outputs(arms, settings_for(), False)


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"decode_chunk_size": 48}, True),  # whole clips, whatever their number
        ({"decode_chunk_size": 1}, False),
        ({"width": 1024}, False),
        ({"max_guidance_scale": 2.0}, False),
        ({"batch_size": 16, "compile": "max", "offload": "phases"}, True),
    ],
)
def test_only_arms_with_the_same_task_are_compared(options, same):
    arms = [arm_with("plain", torch.zeros(1, 1)), arm_with("ours", torch.ones(1, 1), **options)]
    if same:
        with pytest.raises(InputError, match="differ"):
            compare_outputs(arms, settings_for(), False)
    else:
        assert compare_outputs(arms, settings_for(), False) is None


# --- memory and places, with a stand-in for torch.cuda ----------------------------------------------------------------


class Part:
    """A network that knows where it is."""

    def __init__(self) -> None:
        self.device = torch.device("cuda:1")

    def to(self, device: torch.device) -> None:
        self.device = torch.device(device)


@pytest.fixture
def cuda(monkeypatch) -> SimpleNamespace:
    """Stands in for torch.cuda: what was called, on which device; peaks rise with each run."""
    fake = SimpleNamespace(calls=[], allocated_mib=0, reserved_mib=0)
    gib_80 = SimpleNamespace(total_memory=80 * 2**30)

    def note(name: str, answer):
        return lambda *device: (fake.calls.append((name, *map(str, device))), answer())[1]

    answers = {
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda: fake.allocated_mib * 2**20,
        "max_memory_reserved": lambda: fake.reserved_mib * 2**20,
        "get_device_properties": lambda: gib_80,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, note(name, answer))
    monkeypatch.setattr(benchmark_arms, "choose_device", torch.device)
    return fake


def test_peak_memory_is_the_second_runs_and_of_the_device_that_was_asked_for(cuda):
    runs = []

    def run(num_images: int) -> None:
        runs.append(num_images)
        cuda.calls.append("run")
        cuda.allocated_mib, cuda.reserved_mib = [(900, 1500), (700, 1200)][len(runs) - 1]

    arm = Arm("ours", run, 10, OPTIONS | {"batch_size": 4}, 1.0)
    memory = measure_arm_memory(arm, torch.device("cuda:1"))
    assert (memory["peak_gpu_allocated_mib"], memory["peak_gpu_reserved_mib"]) == (700, 1500)
    assert runs == [8, 8]
    assert {call[1:] for call in cuda.calls if call not in ("run", ("empty_cache",))} == {("cuda:1",)}
    around = [call if call == "run" else call[0] for call in cuda.calls]
    once = ["synchronize", "reset_peak_memory_stats", "run", "synchronize", "max_memory_allocated"]
    assert around == ["empty_cache", *[*once, "max_memory_reserved"] * 2]


def test_on_a_cpu_memory_is_the_process_s_and_no_gpu_s():
    memory = measure_arm_memory(arm_with("ours", torch.zeros(1)), torch.device("cpu"))
    assert memory["peak_gpu_allocated_mib"] is memory["peak_gpu_reserved_mib"] is None
    rss_mib = benchmark_arms._process_mib("VmRSS")
    if rss_mib is not None:  # Linux
        assert memory["peak_rss_mib"] >= rss_mib - 1 > 0


@pytest.mark.parametrize(
    ("keys", "reserved_mib", "parks"),
    [
        ({}, (10_000, 20_000), False),
        ({}, (40_000, 40_000), True),  # more than nine tenths of 80 GiB
        ({}, (None, None), True),  # not measured
        ({"park_idle": True}, (1, 1), True),
        ({"park_idle": False}, (40_000, 40_000), False),
        ({"device": "cpu", "park_idle": True}, (None, None), False),
    ],
)
def test_idle_networks_leave_the_gpu_where_both_arms_do_not_fit(cuda, keys, reserved_mib, parks):
    peaks = zip(("plain", "ours"), reserved_mib, strict=True)
    memory = {name: {"peak_gpu_reserved_mib": peak} for name, peak in peaks if peak is not None}
    assert must_park(settings_for(**{"device": "cuda:1"} | keys), memory) is parks


def arms_with_networks(stays: bool) -> tuple[list[Arm], list[tuple]]:
    """The three arms as they are built; a run notes its images and where the networks are."""
    pipelines = [SimpleNamespace(unet=Part(), vae=Part(), image_encoder=Part()) for _ in range(2)]
    runs: list[tuple] = []

    def arm(name: str, pipeline: SimpleNamespace) -> Arm:
        def run(num_images: int) -> None:
            places = [{part.device.type for part in vars(each).values()} for each in pipelines]
            runs.append((name, num_images, *("/".join(sorted(place)) for place in places)))

        return Arm(name, run, 4, OPTIONS, 1.0, pipeline, stays=stays and name == "ours")

    names = ("plain", "plain again", "ours")
    return [arm(name, pipelines[name == "ours"]) for name in names], runs


def test_parked_arms_run_alone_and_settle_before_they_are_timed(cuda):
    arms, runs = arms_with_networks(stays=False)
    time_arms(arms, settings_for(device="cuda:1"), parks=True)
    # Nothing has been parked when the first arm begins: it need not move. From then on, each move costs one image.
    repetition = [
        ("plain", 4, "cuda", "cpu"),
        ("plain again", 4, "cuda", "cpu"),
        ("ours", 1, "cpu", "cuda"),
        ("ours", 4, "cpu", "cuda"),
    ]
    assert runs == [*repetition, *[("plain", 1, "cuda", "cpu"), *repetition] * 4]
    assert set(cuda.calls) == {("synchronize", "cuda:1"), ("empty_cache",)}


def test_compiled_networks_stay_where_they_are(cuda):
    arms, runs = arms_with_networks(stays=True)
    time_arms(arms, settings_for(device="cuda:1"), parks=True)
    assert {run[3] for run in runs} == {"cuda"}
    assert {run[2] for run in runs if run[0] == "ours"} == {"cpu"}


def test_without_parking_nothing_moves_and_nothing_extra_runs(cuda):
    arms, runs = arms_with_networks(stays=False)
    seconds = time_arms(arms, settings_for(device="cuda:1"), parks=False)
    assert [run[0] for run in runs] == ["plain", "plain again", "ours"] * 5
    assert {run[2:] for run in runs} == {("cuda", "cuda")}
    assert {name: len(values) for name, values in seconds.items()} == {"plain": 5, "plain again": 5, "ours": 5}


def test_a_gpu_that_is_too_small_is_one_sentence():
    with pytest.raises(InputError, match="ours: the GPU's memory is too small"), benchmark_arms.memory_sentence("ours"):
        raise torch.OutOfMemoryError


# --- command line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "overrides"),
    [
        (["--device", "cuda"], ["device=cuda"]),
        (["--device=cpu", "batch_size=2"], ["device=cpu", "batch_size=2"]),
        (["--batch-size", "4"], ["batch_size=4"]),
        (["--min-guidance-scale", "-1"], ["min_guidance_scale=-1"]),
        (["--config", "x.yaml", "--help"], ["--config", "x.yaml", "--help"]),
        (["--no-such", "--device", "cpu"], ["no_such=", "device=cpu"]),
    ],
)
def test_dashed_options_are_overrides(given, overrides):
    assert as_overrides(given, GenerationBenchmarkSettings) == overrides


@pytest.mark.parametrize("given", [["--profile"], ["--device", "--profile", "true"], ["--device", "batch_size=2"]])
def test_an_option_without_its_value_is_refused(given):
    with pytest.raises(InputError, match="needs a value"):
        as_overrides(given, GenerationBenchmarkSettings)


@pytest.mark.parametrize("option", [["--bacth-size", "4"], ["--bacth_size=4"], ["--bacth-size"]])
def test_an_unknown_option_is_told_what_it_may_have_meant(option, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark_generation", *option])
    with pytest.raises(InputError, match="unknown key 'bacth_size', did you mean 'batch_size'"):
        benchmark_generation.main()


def test_help_says_of_every_key_what_it_does_and_loads_no_torch(capsys, monkeypatch):
    code = "import sys, scripts.benchmark_generation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60).returncode == 0
    monkeypatch.setattr("sys.argv", ["benchmark_generation", "-h"])
    with pytest.raises(SystemExit):
        benchmark_generation.main()
    described = capsys.readouterr().out.split("Attributes:")[1]
    names = {name.strip() for line in described.splitlines() for name in line.split(":")[0].split(",")}
    assert names >= set(GenerationBenchmarkSettings.model_fields)


# --- the table --------------------------------------------------------------------------------------------------------


def row(configuration: str, arm: str, **values) -> dict:
    return {"configuration": configuration, "arm": arm} | values


def test_rows_are_added_and_those_of_the_same_configuration_replaced(tmp_path):
    path = tmp_path / "new" / CSV_NAME
    append_rows(path, [row("a", "plain", clips_per_s=1.0), row("a", "ours", clips_per_s=1 / 3)], COLUMNS, SAME_COLUMNS)
    append_rows(path, [row("b", "plain", command='x="1,2"'), row("b", "ours")], COLUMNS, SAME_COLUMNS)
    append_rows(path, [row("a", "plain", clips_per_s=7.0), row("a", "ours")], COLUMNS, SAME_COLUMNS)
    rows = read_rows(path, COLUMNS)
    assert [(each["configuration"], each["arm"], each["clips_per_s"]) for each in rows] == [
        ("b", "plain", ""),
        ("b", "ours", ""),
        ("a", "plain", "7"),
        ("a", "ours", ""),
    ]
    assert rows[0]["command"] == 'x="1,2"'
    assert sorted(each.name for each in path.parent.iterdir()) == [f".{CSV_NAME}.lock", CSV_NAME]


def test_a_table_of_another_version_is_refused_before_anything_runs(tmp_path):
    (tmp_path / CSV_NAME).write_text("arm,clips_per_s\nplain,1\n")
    with pytest.raises(InputError, match="other columns"):
        is_done(settings_for(output_dir=tmp_path), "a")
    with pytest.raises(InputError, match="other columns"):
        append_rows(tmp_path / CSV_NAME, [row("a", "plain")], COLUMNS, SAME_COLUMNS)
    assert (tmp_path / CSV_NAME).read_text() == "arm,clips_per_s\nplain,1\n"


def test_only_what_is_all_there_may_be_skipped(tmp_path):
    append_rows(tmp_path / CSV_NAME, [row("a", "plain")], COLUMNS, SAME_COLUMNS)

    def settings(**keys) -> GenerationBenchmarkSettings:
        return settings_for(output_dir=tmp_path, **keys)

    assert is_done(settings(skip_done=True), "a")
    assert not is_done(settings(skip_done=True), "b")
    assert not is_done(settings(), "a")
    assert not is_done(settings(skip_done=True, profile=True), "a")
    for arm in ("plain", "ours"):
        (tmp_path / f"profile_a_{arm}.txt").touch()
    assert is_done(settings(skip_done=True, profile=True), "a")


def test_a_configuration_is_what_was_timed_where_and_with_which_versions(monkeypatch):
    first = describe_run(settings_for())["configuration"]
    same = [
        {"dtype": "float32"},  # what auto is on a CPU
        {"device": "auto"} if not torch.cuda.is_available() else {},
        {"decode_chunk_size": 3},
        {"baseline_images": 32},
        {"output_dir": Path("elsewhere"), "repetitions": 9, "profile": True, "skip_done": True, "park_idle": False},
    ]
    assert {describe_run(settings_for(**keys))["configuration"] for keys in same} == {first}
    others = [
        {"height": 128},
        {"decode_chunk_size": 1},
        {"baseline_images": 4},
        {"compile": "max"},
        {"baseline": "paper"},
    ]
    found = {describe_run(settings_for(**keys))["configuration"] for keys in others}
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    assert len({first, *found, describe_run(settings_for())["configuration"]}) == len(others) + 2
    with pytest.raises(InputError, match="baseline_images: 33 is more than num_images, 32"):
        describe_run(settings_for(baseline_images=33))


def run_small(folder: Path, monkeypatch) -> list[str]:
    keys = ["num_images=2", "baseline_images=1", "batch_size=2", "num_inference_steps=1", "skip_done=true"]
    arguments = ["--device", "cpu", *keys, f"model={PROJECT / SMALL}", f"output_dir={folder}"]
    monkeypatch.setattr("sys.argv", ["benchmark_generation", *arguments])
    return arguments


def check_rows(rows: list[dict[str, str]]) -> None:
    assert tuple(rows[0]) == COLUMNS
    assert [each["arm"] for each in rows] == ["plain", "plain again", "ours"]
    assert [each["num_images"] for each in rows] == ["1", "1", "2"]
    assert [each["batch_size"] for each in rows] == ["1", "1", "2"]
    assert float(rows[0]["speed_ratio"]) == 1.0
    assert float(rows[2]["unet_tflop_per_step"]) < float(rows[0]["unet_tflop_per_step"])
    assert float(rows[2]["max_difference"]) < 1e-4
    assert all(len(each["seconds"].split()) == 5 and each["torch"] and each["diffusers"] for each in rows)
    assert all(each["command"].startswith("python -m scripts.benchmark_generation --device cpu") for each in rows)
    if Path("/proc/self/status").exists():
        assert all(int(each["peak_rss_mib"]) >= int(each["rss_before_mib"]) > 0 for each in (rows[0], rows[2]))
        assert rows[1]["peak_rss_mib"] == ""  # the same networks as the first


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take many times longer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_whole_benchmark_writes_its_table_with_equal_outputs_and_is_not_repeated(tmp_path, monkeypatch, capsys):
    # Here in this process; the next test is about the other ones.
    monkeypatch.setattr(benchmark_arms, "_in_fresh_process", lambda function, *args: function(*args))
    run_small(tmp_path, monkeypatch)
    benchmark_generation.main()
    check_rows(read_rows(tmp_path / CSV_NAME, COLUMNS))
    assert "outputs: largest difference" in capsys.readouterr().out
    before = (tmp_path / CSV_NAME).read_bytes()
    benchmark_generation.main()
    assert "skipped" in capsys.readouterr().out
    assert (tmp_path / CSV_NAME).read_bytes() == before


def test_memory_is_measured_in_a_new_process_whose_sentences_arrive(tmp_path):
    (tmp_path / CSV_NAME).write_text("arm,clips_per_s\n")
    processes = {benchmark_arms._in_fresh_process(os.getpid) for _ in range(2)}
    assert len(processes - {os.getpid()}) == 2
    with pytest.raises(InputError, match="other columns"):
        benchmark_arms._in_fresh_process(read_rows, tmp_path / CSV_NAME, COLUMNS)
    with pytest.raises(InputError, match="was killed"):
        benchmark_arms._in_fresh_process(os._exit, 9)


@pytest.mark.exhaustive
def test_the_command_measures_memory_apart_and_writes_profiles(tmp_path, monkeypatch):
    command = [sys.executable, "-m", "scripts.benchmark_generation", *run_small(tmp_path, monkeypatch), "profile=true"]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=500)
    rows = read_rows(tmp_path / CSV_NAME, COLUMNS)
    check_rows(rows)
    profiles = sorted(path.name for path in tmp_path.glob("profile_*"))
    assert profiles == [f"profile_{rows[0]['configuration']}_{arm}.txt" for arm in ("ours", "plain")]
    # Our batches run in threads of their own, and are seen there.
    assert all("aten::" in path.read_text() and "conv" in path.read_text() for path in tmp_path.glob("profile_*"))
