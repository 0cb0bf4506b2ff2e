"""Several processes: one run, one writer, the losses of one process, and an end that all of them share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT, run_in_child
from samples import write_clip_set, write_image_set
from small_training import SMALL, fit_tiny, free_port, rank_environment, run_ranks, tiny_settings

from utils.artifacts import UPDATES, read_table
from utils.errors import StopRequest, run_script
from utils.ranks import Ranks, join_ranks

FROZEN = {"freeze_layers": 3, "epochs": 3}  # all but the head, BatchNorm included
EVERY_UPDATE = {"checkpoint_every_s": 1e-9}


def train_alone(folder: Path, options: dict, network: dict) -> None:
    torch.set_num_threads(1)
    fit_tiny(folder / "run", tiny_settings(folder / "run", **options), network=network)


def read_run(folder: Path) -> dict[str, np.ndarray]:
    """Losses and rates of all updates, and the columns of the history, with all of their digits."""
    position = torch.load(folder / "run" / "last.pt", weights_only=True)["position"]
    rates, losses = zip(*position["finished_updates"], strict=True)
    columns = {name: np.array([row[name] for row in position["rows"]], dtype=float) for name in position["rows"][0]}
    assert len(read_table(folder / "run" / "updates.csv", UPDATES)) == len(losses)
    return {"update losses": np.array(losses), "update rates": np.array(rates), **columns}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("options", "network"),
    [
        pytest.param(FROZEN, {}, id="BatchNorm frozen"),
        pytest.param({"epochs": 3, "weight_decay": 0.1, "clip_grad_norm": 0.1}, {"norm": False}, id="no BatchNorm"),
        pytest.param({"epochs": 3, "accumulate": 2}, {"norm": False}, id="two parts each"),
        pytest.param({"epochs": 3, "ema_decay": 0.5}, {"norm": False}, id="averaged weights"),
        pytest.param(FROZEN, {"is_clip": True}, id="clips"),
    ],
)
def test_two_processes_have_the_losses_and_metrics_of_one(tmp_path, options, network):
    """11 items by 4 and 7 to choose with: both ends are uneven."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = {key: value for key, value in options.items() if key != "accumulate"}
    assert run_in_child(train_alone, tmp_path / "one", alone, network) == 0
    assert run_ranks(tmp_path / "two", options, network=network) == [0, 0]
    expected = read_run(tmp_path / "one")
    assert len(expected["update losses"]) == 9
    assert np.ptp(expected["update losses"]) > 1e-3
    assert_same(read_run(tmp_path / "two"), expected)
    assert not (tmp_path / "two" / "rank1").exists(), "the second process wrote"


@pytest.mark.exhaustive
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_three_processes_by_parts_have_the_losses_of_one(tmp_path, parts):
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
    assert run_in_child(train_alone, tmp_path / "one", {"epochs": 3}, {"norm": False}) == 0
    codes = run_ranks(tmp_path / "three", {"epochs": 3, "accumulate": parts}, 3, network={"norm": False})
    assert codes == [0, 0, 0]
    assert_same(read_run(tmp_path / "three"), read_run(tmp_path / "one"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("two")
    assert run_ranks(folder, {"epochs": 3}) == [0, 0]
    return read_run(folder)


def ends(total: int = 9) -> list:
    sample = {2, 5}
    return [pytest.param(n, marks=[] if n in sample else pytest.mark.exhaustive) for n in range(1, total + 1)]


@pytest.mark.parametrize("update", ends())
def test_two_killed_processes_go_on_to_the_same_bits(tmp_path, uninterrupted, update):
    options = {"epochs": 3, **EVERY_UPDATE}
    assert run_ranks(tmp_path, options, signal_at=update) == [-signal.SIGKILL] * 2
    assert not (tmp_path / "run" / "curves.png").exists()
    assert (tmp_path / "run" / "last.pt").exists() == (update > 1), "the update before was saved"
    (tmp_path / "run").mkdir(exist_ok=True)
    assert run_ranks(tmp_path, options) == [0, 0]
    assert_same(read_run(tmp_path), uninterrupted, 0)


@pytest.mark.parametrize(
    ("receiver", "number", "code"),
    [
        (0, signal.SIGINT, 130),
        (1, signal.SIGTERM, 143),
        pytest.param(0, signal.SIGTERM, 143, marks=pytest.mark.exhaustive),
        pytest.param(1, signal.SIGINT, 130, marks=pytest.mark.exhaustive),
    ],
)
def test_a_signal_to_one_process_stops_both_and_both_go_on(tmp_path, uninterrupted, receiver, number, code):
    codes = run_ranks(tmp_path, {"epochs": 3}, signal_at=4, signal=number, signal_ranks=[receiver])
    assert codes[receiver] == code
    assert codes[1 - receiver] == 143
    assert (tmp_path / "run" / "last.pt").exists(), "nothing was saved in mid-epoch"
    assert run_ranks(tmp_path, {"epochs": 3}) == [0, 0]
    assert_same(read_run(tmp_path), uninterrupted, 0)


def test_what_the_first_process_refuses_ends_all_with_one_sentence(tmp_path):
    assert run_ranks(tmp_path, {}, fails="main") == [2, 2]
    assert (tmp_path / "rank0.txt").read_text() == "error: nothing.csv: is wrong; mend it\n"
    assert (tmp_path / "rank1.txt").read_text() == ""


def together(function: Callable[..., None], folder: Path, num_ranks: int, *args: object) -> list[int]:
    """The exit codes of so many processes that call `function(ranks, stop, folder, *args)`."""
    port = free_port()
    with ThreadPoolExecutor(num_ranks) as executor:
        jobs = [
            executor.submit(run_in_child, join_and_call, function, rank, num_ranks, port, folder, args)
            for rank in range(num_ranks)
        ]
        return [job.result() for job in jobs]


def join_and_call(
    function: Callable[..., None], rank: int, num_ranks: int, port: int, folder: Path, args: tuple
) -> None:
    os.environ |= rank_environment(rank, port, num_ranks)
    if rank < len(MACHINES):
        os.environ["GROUP_RANK"] = MACHINES[rank]
    sys.stderr = (folder / f"rank{rank}.txt").open("w", buffering=1)

    def main() -> None:
        with StopRequest(on_interrupt=True) as stop, join_ranks() as ranks:
            function(ranks, stop, folder, *args)

    run_script(main)


def be_stopped(ranks: Ranks, stop: StopRequest, folder: Path, number: int) -> None:
    def decode() -> None:
        os.kill(os.getpid(), number)
        while True:
            stop.raise_if_set()

    ranks.on_main(decode)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_first_process_works_ends_all_with_its_code(tmp_path, number, code):
    assert together(be_stopped, tmp_path, 2, number) == [code, code]
    assert "go on from here" in (tmp_path / "rank0.txt").read_text()
    assert (tmp_path / "rank1.txt").read_text() == "", "the first one has said it"


MACHINES = ("0", "0", "1")  # of the first processes; the launcher of the others does not say it


def say_place(ranks: Ranks, stop: StopRequest, folder: Path) -> None:
    (folder / f"place{ranks.rank}").write_text(str(ranks.is_beside_main))


def test_processes_know_whether_they_are_on_the_machine_of_the_first(tmp_path):
    assert together(say_place, tmp_path, 4) == [0] * 4
    places = [(tmp_path / f"place{rank}").read_text() for rank in range(4)]
    assert places == ["False", "True", "False", "False"]


def test_a_loss_that_is_not_finite_in_one_process_ends_both_without_a_traceback(tmp_path):
    assert run_ranks(tmp_path, {}, fails="nan") == [2, 2]
    said = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert "the training loss is nan at epoch 1, step 3" in said[0] + said[1]
    assert all("Traceback" not in text and text.count("error:") == 1 for text in said)


def test_a_killed_process_ends_the_other_with_one_sentence(tmp_path):
    codes = run_ranks(tmp_path, {"epochs": 3}, signal_at=2, signal_ranks=[1])
    assert codes == [2, -signal.SIGKILL]
    said = (tmp_path / "rank0.txt").read_text()
    assert "another process of this run has ended" in said
    assert "Traceback" not in said


def test_a_process_that_was_not_launched_is_alone():
    alone, tensor = Ranks(), torch.ones(3)
    assert alone.is_main
    assert alone.sum(tensor) is tensor
    assert alone.on_main(lambda: 7) == alone.main_first(lambda: 7) == 7
    assert (alone.any(True), alone.any(False)) == (True, False)


# ---------------------------------------------------------------------------------------------------------------------
# The stages themselves, launched as a user would

SCRIPTS = {"baseline": "Baseline_VGG.train", "inflated": "Inflated_3D_VGG.train3d"}
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "PORT"]
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--multi_gpu",
    "--num_processes",
    "2",
]
ACCELERATE += [
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "PORT",
]


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, Path]:
    """A config of each stage: 8 items by 3, 2 to choose with, BatchNorm frozen, nothing random."""
    root = tmp_path_factory.mktemp("stages")
    data = {
        "baseline": write_image_set(root / "images", per_class=5),
        "inflated": write_clip_set(root / "clips", per_class=5),
    }
    values = {**SMALL, "batch_size": 3, "epochs": 3, "freeze_layers": 10}
    for network, folder in data.items():
        lines = [f"{key}: {value}" for key, value in {**values, "data_root": folder}.items()]
        (root / f"{network}.yaml").write_text("\n".join(lines) + "\n")
    return {network: root / f"{network}.yaml" for network in data}


def launch(
    launcher: list[str], configs: dict[str, Path], network: str, folder: Path, *overrides: str
) -> subprocess.Popen:
    """Start a stage in `folder/run`; the hold-out is the one beside it."""
    launcher = [part.replace("PORT", str(free_port())) for part in launcher]
    stage = ["-m", SCRIPTS[network], "--config", str(configs[network]), f"output_dir={folder / 'run'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*launcher, *stage, *overrides], cwd=PROJECT, env=environment, **pipes)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("launcher", "network", "overrides"),
    [
        pytest.param(TORCHRUN, "baseline", [], id="torchrun 2-D"),
        pytest.param(TORCHRUN, "inflated", [], id="torchrun 3-D"),
        pytest.param(TORCHRUN, "inflated", ["accumulate=2"], id="torchrun 3-D in parts"),
        pytest.param(ACCELERATE, "baseline", [], id="accelerate 2-D"),
    ],
)
def test_a_launched_stage_has_the_losses_of_one_process(configs, tmp_path, launcher, network, overrides):
    finish(launch(ALONE, configs, network, tmp_path / "one"))
    several = launch(launcher, configs, network, tmp_path / "two", *overrides)
    while len(children_of(several.pid)) < 2:
        assert several.poll() is None, several.communicate()[0]
        time.sleep(0.05)
    finish(several)
    expected = read_run(tmp_path / "one")
    assert len(expected["update losses"]) == 9
    assert_same(read_run(tmp_path / "two"), expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launched_stage_that_is_stopped_goes_on_to_the_same_bits(configs, tmp_path, number):
    """The launcher is sent the signal; after SIGKILL its processes are killed, too."""
    finish(launch(TORCHRUN, configs, "baseline", tmp_path / "whole", "epochs=20"))
    stopped = launch(TORCHRUN, configs, "baseline", tmp_path / "stopped", "epochs=20", "checkpoint_every_s=0.01")
    state = tmp_path / "stopped" / "run" / "last.pt"
    while not state.exists():
        assert stopped.poll() is None, stopped.communicate()[0]
        time.sleep(0.05)
    workers = children_of(stopped.pid)
    assert len(workers) == 2
    for pid in [stopped.pid, *(workers if number == signal.SIGKILL else [])]:
        os.kill(pid, number)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode != 0
    assert not (tmp_path / "stopped" / "run" / "curves.png").exists(), output
    # Two processes at another moment, but the same run: what is saved how often makes no result.
    finish(launch(TORCHRUN, configs, "baseline", tmp_path / "stopped", "epochs=20"))
    assert_same(read_run(tmp_path / "stopped"), read_run(tmp_path / "whole"), 0)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("folder", "last.pt exists and was not made by a run recorded here"),
        ("image", "c1_4.png has changed since the index was written"),
    ],
)
def test_bad_input_ends_a_launched_stage_with_one_sentence_and_no_hang(configs, tmp_path, wrong, sentence):
    """The second process says nothing: the first one has."""
    images = write_image_set(tmp_path / "images", per_class=5)
    if wrong == "folder":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "last.pt").write_text("of another program")
    else:
        (images / "train" / "c1" / "c1_4.png").write_bytes(b"x")
    command = [sys.executable, "-m", SCRIPTS["baseline"], "--config", str(configs["baseline"])]
    command += [f"output_dir={tmp_path / 'run'}", f"data_root={images}"]
    port, processes = free_port(), []
    for rank in (0, 1):
        environment = os.environ | rank_environment(rank, port)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=PROJECT, env=environment, **pipes))
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert said[0].count("error: ") == 1
    assert sentence in said[0]
    assert "error" not in said[1]
    assert "Traceback" not in said[0] + said[1]
