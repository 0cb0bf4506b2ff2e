"""The loader check prints true shapes and rates, and its preview shows the clips."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest
from samples import write_clip_set

from scripts import debug_video_loader
from utils.clips import read_clip


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["debug_video_loader", *arguments])
    debug_video_loader.main()


def test_it_prints_each_batch(tmp_path, monkeypatch, capsys):
    clips = write_clip_set(tmp_path / "clips")
    run(monkeypatch, f"data_root={clips}", "image_size=16", "batch_size=4", "num_batches=5", "preview=null")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("batch 1: clips (4, 3, 3, 16, 16) (B, C, T, H, W) torch.uint8")
    assert lines[0].endswith("labels [0, 0, 0, 1]")
    assert lines[1].endswith("labels [1, 1]")
    assert lines[2].startswith("6 clips in ")


@pytest.mark.parametrize(("name", "shape"), [("p.gif", (3, 32, 6 * 32, 3)), ("p.png", (6 * 32, 3 * 32, 3))])
def test_the_preview_shows_the_clips(tmp_path, monkeypatch, name, shape):
    clips = write_clip_set(tmp_path / "clips")
    run(monkeypatch, f"data_root={clips}", "image_size=32", f"preview={tmp_path / name}")
    preview = iio.imread(tmp_path / name)
    assert preview.shape == shape
    if name.endswith(".png"):
        frames = read_clip(clips / "train" / "00001.mp4")
        assert np.array_equal(preview[32:64], np.concatenate(list(frames), axis=1))
