"""What training costs: batches from the cache, steps and predictions of the three-frame network, the demo's 3-D stage.

python -m scripts.benchmark_training --device cpu [image_size=224 batch_size=8 ...]

Outputs and gradients are compared first: arms that disagree are not timed. Then all arms run in turn in one process;
the plain arm runs twice (A/A), which shows what the machine's noise is worth. A row that claims more multiplications a
second than the machine's own matrix product reaches, or more bytes than its memory copies, is refused: its clock did
not wait for the work.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from scripts.benchmark_table import append_rows, as_overrides, read_rows
from utils.config import Form, InputPath, PositiveInt, Settings, read_settings
from utils.errors import run_script

CSV_NAME = "benchmark_training.csv"
COLUMNS = tuple(
    """configuration row arm batch_size image_size classifier_width precision memory_format compile num_clips workers
    epochs repetitions seconds_median build_seconds speed_ratio_to_plain speed_ratio_to_plain_workers
    speed_ratio_to_best_conv3d latency_ratio_to_2d executed_gmac tflop_per_s matmul_tflop_per_s gb_per_s copy_gb_per_s
    peak_share output_difference gradient_difference selection_top1 device_name threads date torch cuda commit command
    seconds""".split()  # noqa: SIM905
)
SAME_COLUMNS = ("configuration", "row", "batch_size")
# What a table on the screen has of a row, where there is anything: title, column, format.
_SHOWN = (
    ("arm", "arm", "{}"),
    ("workers", "workers", "{}"),
    ("epochs", "epochs", "{}"),
    ("s", "seconds_median", "{:.4g}"),
    ("build s", "build_seconds", "{:.3g}"),
    ("x plain", "speed_ratio_to_plain", "{:.2f}"),
    ("x plain workers", "speed_ratio_to_plain_workers", "{:.2f}"),
    ("x best conv3d", "speed_ratio_to_best_conv3d", "{:.2f}"),
    ("/ 2-D", "latency_ratio_to_2d", "{:.2f}"),
    ("GMac", "executed_gmac", "{:.2f}"),
    ("TFLOP/s", "tflop_per_s", "{:.3f}"),
    ("GB/s", "gb_per_s", "{:.3g}"),
    ("of peak", "peak_share", "{:.1%}"),
    ("difference", "output_difference", "{:.1e}"),
    ("top-1", "selection_top1", "{:.3f}"),
)
_NOT_IDENTITY = {"output_dir", "device", "rows", "inference_batch_sizes"}
Row = Literal["data", "training", "inference", "demo"]


class TrainingBenchmarkSettings(Settings):
    """What to time.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1`. Every key may also be given as an option: `--device cpu`.
        rows: `data` (an epoch of uint8 batches, and many with the cache's build), `training` steps (forward, backward,
            fused SGD), `inference`, `demo` (the quickstart's 3-D stage, a process each time).
        batch_size: of a training step, and of the batches of an epoch.
        inference_batch_sizes: each is timed by itself.
        image_size: in pixels; clips have three frames.
        classifier_width: of the hidden layers of the classifier; 4096 is the paper's.
        compile: let torch.compile do the best Conv3d; false for a quick look.
        clips_root: of `data`: a folder of clips as a trainer's `data_root`; null writes clips of its own (in TMPDIR).
        train_csv: the index of `clips_root`, below it or as a path.
        num_clips: how many are written.
        epochs: of `data`: so many are weighed against the cache's build.
        workers: of `data`: processes of the second plain loader, and threads of ours.
        demo_root: of `demo`: a folder that `scripts/quickstart.sh` has left; null makes clips of the demo's digits.
        demo_weights: the checkpoint that the stage starts from; null is random.
        repetitions: of each arm, at least 5, after one that does not count. Figures are medians.
        output_dir: where `benchmark_training.csv` is, or will be; rows of other configurations stay.
    """

    device: Annotated[str, Form(r"^(auto|cpu|cuda(:\d+)?)$", "auto, cpu, cuda or cuda:N")] = "auto"
    rows: Annotated[tuple[Row, ...], Field(min_length=1)] = ("data", "training", "inference", "demo")
    batch_size: PositiveInt = 8
    inference_batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 16)
    image_size: Annotated[int, Field(ge=32)] = 224
    classifier_width: PositiveInt = 4096
    compile: bool = True
    clips_root: InputPath | None = None
    train_csv: Path = Path("train.csv")
    num_clips: PositiveInt = 200
    epochs: PositiveInt = 30
    workers: PositiveInt = 2
    demo_root: InputPath | None = None
    demo_weights: InputPath | None = None
    repetitions: Annotated[int, Field(ge=5)] = 5
    output_dir: Path = Path("benchmark_results")


def main() -> None:
    """Kind by kind, compare the arms, time them, report."""
    config = Path(__file__).with_name("benchmark_training.yaml")
    settings = read_settings(
        TrainingBenchmarkSettings, __doc__, config, as_overrides(sys.argv[1:], TrainingBenchmarkSettings)
    )
    path = settings.output_dir / CSV_NAME
    read_rows(path, COLUMNS)  # a foreign table is refused now
    run = describe_run(settings)
    for rows in measure_rows(settings, run):
        append_rows(path, rows, COLUMNS, SAME_COLUMNS)
        print_table(rows)
    print(f"configuration {run['configuration']} in {path}")


def measure_rows(settings: TrainingBenchmarkSettings, run: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The rows of one comparison after the other."""
    from scripts import benchmark_data_arms  # after the settings: a typo need not wait for torch

    if "data" in settings.rows:
        one, many = benchmark_data_arms.measure_data(settings)
        yield [row for timings in (one, many) for row in summarise_timings("data", timings, run)]
    if rows_of(settings):
        yield from measure_networks(settings, run)
    if "demo" in settings.rows:
        yield summarise_timings("demo", benchmark_data_arms.measure_demo(settings), run)


def measure_networks(settings: TrainingBenchmarkSettings, run: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The rows of training steps and predictions, beside the machine's peak."""
    from scripts import benchmark_training_arms as arms

    peaks = arms.measure_peaks(settings)
    for name, batch_size in rows_of(settings):
        built = arms.build_arms(settings, name, batch_size)
        differences = arms.compare(built)
        seconds = arms.time_arms(built, settings.repetitions)
        again = arms.measure_peaks(settings)  # a busy machine shows its peak now or then
        peaks = {name: max(value, again[name]) for name, value in peaks.items()}
        rows = summarise(built, seconds, run, peaks)
        for row in rows:
            row |= {"row": name, "batch_size": batch_size} | differences.get(row["arm"], {})
        yield rows


def rows_of(settings: TrainingBenchmarkSettings) -> list[tuple[Row, int]]:
    """What is timed of networks, with its batch size."""
    found: list[tuple[Row, int]] = [("training", settings.batch_size)] if "training" in settings.rows else []
    if "inference" in settings.rows:
        found += [("inference", size) for size in settings.inference_batch_sizes]
    return found


def describe_run(settings: TrainingBenchmarkSettings) -> dict[str, Any]:
    """The columns that are known before anything runs."""
    import torch

    from utils.devices import choose_device, device_name
    from utils.runs import describe_environment

    device = choose_device(settings.device)
    run = {
        "image_size": settings.image_size,
        "classifier_width": settings.classifier_width,
        "repetitions": settings.repetitions,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "commit": describe_environment({})["commit"],
        "command": f"python -m scripts.benchmark_training {shlex.join(sys.argv[1:])}".strip(),
    }
    identity = settings.model_dump(mode="json", exclude=_NOT_IDENTITY)
    identity |= {name: run[name] for name in ("device_name", "threads", "torch", "cuda")}
    text = json.dumps(identity, sort_keys=True)
    return {"configuration": hashlib.sha256(text.encode()).hexdigest()[:12]} | run


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def check_roofline(name: str, gmac: float, seconds: float, peak_tflop_per_s: float) -> float:
    """The share of the machine's peak that a figure claims; refused above it, see `require_plausible`."""
    from Model_Evaluation.latency import require_plausible

    return require_plausible(seconds * 1e3, gmac * 1e9, peak_tflop_per_s * 1e12, name=name, tolerance=1)


def summarise(
    arms: list[Any], seconds: dict[str, list[float]], run: dict[str, Any], peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """A row an arm; ratios are medians over repetitions, in each of which all arms ran one after the other."""
    rows = []
    for arm in arms:
        own, median_s = seconds[arm.name], statistics.median(seconds[arm.name])
        figures = {
            "arm": arm.name,
            **arm.options,
            "seconds_median": median_s,
            "speed_ratio_to_plain": _ratio(seconds.get("plain"), own),
            "speed_ratio_to_best_conv3d": _ratio(seconds.get("best conv3d"), own),
            "latency_ratio_to_2d": _ratio(own, seconds.get("2-D")),
            "executed_gmac": arm.executed_gmac,
            "tflop_per_s": 2e-3 * arm.executed_gmac / median_s,
            "matmul_tflop_per_s": peaks[arm.options["precision"]],
            "peak_share": check_roofline(arm.name, arm.executed_gmac, median_s, peaks[arm.options["precision"]]),
            "seconds": " ".join(f"{value:.6g}" for value in own),
        }
        rows.append(run | figures)
    return rows


def summarise_timings(name: Row, timings: list[Any], run: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an arm, of arms that are epochs or processes; ratios as in `summarise`."""
    seconds = {timing.arm: timing.seconds for timing in timings}
    rows = []
    for timing in timings:
        figures = {
            "row": name,
            "arm": timing.arm,
            "seconds_median": statistics.median(timing.seconds),
            "speed_ratio_to_plain": _ratio(seconds.get("plain"), timing.seconds),
            "speed_ratio_to_plain_workers": _ratio(seconds.get("plain workers"), timing.seconds),
            "seconds": " ".join(f"{value:.6g}" for value in timing.seconds),
        }
        rows.append(run | {"batch_size": None, "classifier_width": None} | figures | timing.cells)
    return rows


def _ratio(slow: list[float] | None, fast: list[float] | None) -> float | None:
    if slow is None or fast is None:
        return None
    return statistics.median([a / b for a, b in zip(slow, fast, strict=True)])


def print_table(rows: list[dict[str, Any]]) -> None:
    """What was measured, and with what."""
    first = rows[0]
    sizes = {"batch": "batch_size", "pixels": "image_size", "width": "classifier_width", "clips": "num_clips"}
    known = [f"{title} {first[name]}" for title, name in sizes.items() if first.get(name) is not None]
    print(", ".join([first["row"], *known]))
    shown = [column for column in _SHOWN if any(row.get(column[1]) is not None for row in rows)]
    lines = [[title for title, _, _ in shown]]
    for row in rows:
        lines.append(["-" if row.get(name) is None else form.format(row[name]) for _, name, form in shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for arm, *cells in lines:
        padded = [f"{cell:>{width}s}" for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([f"{arm:{widths[0]}s}", *padded]))
    print(f"{first['device_name']}; torch {first['torch']}; {first['date']}; commit {first['commit']}")


if __name__ == "__main__":
    run_script(main)
