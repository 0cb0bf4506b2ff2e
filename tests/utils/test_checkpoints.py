"""Weights and states on a disk that is full: one sentence with the file's name, and the previous file stays."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from utils.artifacts import HISTORY, write_table
from utils.checkpoints import ModelDescription, write_training_state, write_weights
from utils.errors import run_script
from utils.indices import ClassInfo

LARGE = {"weight": torch.zeros(300_000)}
DESCRIPTION = ModelDescription(
    type="baseline",
    options={},
    classes=(ClassInfo(0, "zero", "c0"),),
    input={"kind": "image", "image_size": 32},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    train_input="original",
    protocol="custom",
    seed=0,
    selection_split="val",
    epoch=1,
    metric={},
)
ROW = dict.fromkeys(HISTORY.column_names, 1)
WRITERS: dict[str, Callable[[Path], None]] = {
    "state": lambda path: write_training_state(path, {"model": LARGE, "optimizer": {}, "epoch": 1}),
    "weights": lambda path: write_weights(path, LARGE, DESCRIPTION),
    "table": lambda path: write_table([ROW], path, HISTORY),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the disk that is always full")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path, capsys, name):
    path = tmp_path / "file"
    path.write_text("the one before")
    (tmp_path / "file.partial").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: WRITERS[name](path))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: no space left on the disk; free some and run")
    assert path.read_text() == "the one before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_sentence_is_for_full_disks_only(tmp_path):
    with pytest.raises(OSError, match="File too large") as error:
        run_script(lambda: (_ for _ in ()).throw(OSError(errno.EFBIG, "File too large")))
    assert error.value.errno == errno.EFBIG
