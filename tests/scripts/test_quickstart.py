"""The two commands as a user runs them: the quickstart from end to end, again, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT

from utils.artifacts import SUMMARY, read_table

COMPARED = ("images/train.csv", "images/val.csv", "videos/train.csv", "videos/val.csv", "inflated/history.csv")
QUICKSTART = ["bash", "scripts/quickstart.sh"]


def quickstart(out: Path) -> tuple[str, float]:
    started_s = time.monotonic()
    result = subprocess.run([*QUICKSTART, str(out)], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout, time.monotonic() - started_s


def kill_when(out: Path, condition: Callable[[], bool]) -> None:
    """Start the quickstart and end all its processes with `kill -9` as soon as a condition holds."""
    process = subprocess.Popen(
        [*QUICKSTART, str(out)],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not condition():
        assert process.poll() is None, "it ended before the condition held"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    return out, quickstart(out)[0]


def test_it_ends_with_the_table_and_both_networks_have_learnt(finished):
    out, text = finished
    assert "model  " in text
    assert "parameters" in text
    assert f"tables:  {out}/evaluation/*.csv" in text
    assert text.count("$ python -m ") == 7, "every stage's own command is shown"
    summary = read_table(out / "evaluation" / "summary.csv", SUMMARY).set_index("run_id")
    assert list(summary.index) == ["vgg11_2d", "vgg11_2d_first_frame", "vgg11_3d"]
    assert (summary["top1_fraction"] > 0.9).all()
    assert summary["num_items"].tolist() == [300, 300, 300]
    assert (out / "evaluation" / "figures" / "confusion_vgg11_3d.png").exists()
    assert not list(out.rglob("*.partial"))


def test_a_second_run_redoes_nothing(finished):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    _, seconds = quickstart(out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert seconds < 30


@pytest.mark.exhaustive
def test_killed_in_stage_two_and_in_stage_four_it_ends_with_the_same_files(finished, tmp_path):
    reference, _ = finished
    out = tmp_path / "out"
    journal = out / "videos" / "train.journal.csv"
    kill_when(out, lambda: journal.exists() and journal.stat().st_size > 20_000)
    assert not (out / "videos" / "train.csv").exists()
    kill_when(out, lambda: (out / "inflated" / "last.pt").exists())
    assert not (out / "inflated" / "curves.png").exists()
    quickstart(out)
    for name in COMPARED:
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    assert not list(out.rglob("*.partial"))
    assert not journal.exists()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["scripts/quickstart.sh", "a", "b"], "too many arguments"),
        (["scripts/quickstart.sh", "--out"], "unknown option '--out'"),
        (["scripts/setup.sh", "--devel"], "unknown option '--devel'"),
    ],
)
def test_wrong_arguments_are_named(command, problem):
    result = subprocess.run(["bash", *command], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert problem in result.stderr
