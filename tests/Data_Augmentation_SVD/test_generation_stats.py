"""What a run says of itself: its statistics, and the card that lies beside its clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from generation_runs import NUM_CLIPS, SPLITS, break_image, plant_faults, raising, rows_of, settings_for
from samples import write_image_set

from Data_Augmentation_SVD import generation_stats
from Data_Augmentation_SVD.dataset_card import SCHEMA, format_card, write_dataset_card
from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.generation_stats import STATS_FILE, SessionStats, append_session, read_sessions
from Data_Augmentation_SVD.generators import ClipError
from utils.artifacts import CLIP_INDEX
from utils.config import read_yaml
from utils.errors import InputError

INFINITE = float("inf")


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(generation_stats, "time", clock)
    return clock


def run_chunks(clock: Clock, num_planned: int, *chunks: tuple[int, float]) -> SessionStats:
    """A session of chunks: so many clips in so many seconds."""
    stats = SessionStats("train", num_planned, {"name": "a card"})
    for num_clips, seconds in chunks:
        with stats.chunk() as count_clip:
            for _ in range(num_clips):
                count_clip()
            clock.now_s += seconds
        for _ in range(num_clips):  # the writer is one chunk behind
            stats.count_written()
    return stats


@pytest.fixture(scope="module")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(image_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    run_generation(settings_for(image_set, output))
    return output


# --- one session -----------------------------------------------------------------------------------------------------


def test_a_session_is_measured_chunk_by_chunk(clock):
    chunks = [(4, 2.0)] * 18 + [(4, 4.0), (2, 10.0)]  # 0.5 s a clip, then 1 s, then 5 s
    summary = run_chunks(clock, 100, *chunks).summary([30.0, INFINITE, 40.0])
    assert {name: summary[name] for name in ("split", "clips", "planned", "chunks")} == {
        "split": "train",
        "clips": 78,
        "planned": 100,
        "chunks": 20,
    }
    assert (summary["seconds"], summary["clips_per_s"]) == (50.0, 1.56)
    assert summary["seconds_per_clip_p50"] == 0.5
    assert summary["seconds_per_clip_p95"] == pytest.approx(1.2)
    assert summary["eta_after_a_tenth_s"] == 60.0  # 10 clips were written after 6 s, of 100
    assert summary["codec_round_trip_psnr_db"] == 35.0 and not summary["codec_is_exact"]
    assert summary["device"] == {"name": "a card"}
    json.dumps(summary, allow_nan=False)


def test_an_empty_chunk_counts_for_nothing(clock):
    summary = run_chunks(clock, 10, (0, 5.0), (2, 4.0)).summary([])
    assert (summary["chunks"], summary["seconds_per_clip_p50"], summary["clips"]) == (1, 2.0, 2)


@pytest.mark.parametrize(
    ("psnr_db", "is_exact", "mean"),
    [([], False, None), ([INFINITE] * 8, True, None), ([INFINITE, 50.0], False, 50.0), ([31.0], False, 31.0)],
)
def test_a_codec_is_exact_if_every_clip_came_back_exactly(clock, psnr_db, is_exact, mean):
    summary = run_chunks(clock, 1, (1, 1.0)).summary(psnr_db)
    assert (summary["codec_is_exact"], summary["codec_round_trip_psnr_db"]) == (is_exact, mean)


@pytest.mark.parametrize("seed", range(5))
def test_most_clips_are_no_slower_than_the_slow_ones(clock, seed):
    seconds = np.random.default_rng(seed).exponential(2.0, 30)
    summary = run_chunks(clock, 60, *((2, float(value)) for value in seconds)).summary([])
    assert 0 <= summary["seconds_per_clip_p50"] <= summary["seconds_per_clip_p95"]


def test_without_a_device_there_is_no_gpu_memory(clock):
    summary = run_chunks(clock, 1, (1, 1.0)).summary([])
    assert summary["peak_gpu_memory_mib"] is None
    assert 10 < summary["peak_memory_mib"] < 100_000


def test_an_interrupted_chunk_keeps_its_count(clock):
    stats = SessionStats("train", 10, {})
    with pytest.raises(KeyboardInterrupt), stats.chunk() as count_clip:
        count_clip()
        raise KeyboardInterrupt
    clock.now_s += 3
    summary = stats.summary([])
    assert (summary["clips"], summary["chunks"], summary["seconds_per_clip_p50"]) == (1, 0, 3.0)


# --- the file --------------------------------------------------------------------------------------------------------


def test_sessions_are_appended(tmp_path):
    for number in range(3):
        append_session(tmp_path, {"clips": number})
    assert read_sessions(tmp_path) == [{"clips": 0}, {"clips": 1}, {"clips": 2}]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sessions": 5}', '{"other": []}', "5", "\0"])
def test_a_file_that_cannot_be_read_is_replaced(tmp_path, content):
    (tmp_path / STATS_FILE).write_text(content)
    append_session(tmp_path, {"clips": 1})
    assert read_sessions(tmp_path) == [{"clips": 1}]


def test_a_run_has_a_session_a_split(whole):
    sessions = read_sessions(whole)
    assert [session["split"] for session in sessions] == list(SPLITS)
    for session in sessions:
        assert session["clips"] == session["planned"] == NUM_CLIPS
        assert 0 <= session["seconds_per_clip_p50"] <= session["seconds_per_clip_p95"]
        assert session["seconds"] > 0 and session["clips_per_s"] > 0
        assert session["chunks"] == 1 and session["eta_after_a_tenth_s"] > 0
        assert session["peak_memory_mib"] > 10
        assert not session["codec_is_exact"] and 15 < session["codec_round_trip_psnr_db"] < 60
        assert session["device"] == {}


def test_a_lossless_run_says_that_its_codec_is_exact(image_set, tmp_path):
    run_generation(settings_for(image_set, tmp_path, codec="h264_lossless", chunk_size=4, splits=["val"]))
    (session,) = read_sessions(tmp_path)
    assert session["codec_is_exact"] and session["codec_round_trip_psnr_db"] is None
    assert session["chunks"] == 2


def test_a_resumed_run_adds_a_session_of_what_it_made(image_set, whole, tmp_path, monkeypatch):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    (output / "train/00002.mp4").unlink()
    run_generation(settings_for(image_set, output))
    sessions = read_sessions(output)
    assert [(session["split"], session["clips"], session["planned"]) for session in sessions] == [
        ("train", 6, 6),
        ("val", 6, 6),
        ("train", 1, 1),
    ]


def test_a_run_that_ends_badly_leaves_its_session(image_set, tmp_path, monkeypatch):
    seeds = [row["seed"] for row in _rows_of_a_run(image_set, tmp_path / "first")]
    plant_faults(monkeypatch, {seeds[1]: raising(ClipError("none"))})
    with pytest.raises(InputError, match="1 of 6 clips failed"):
        run_generation(settings_for(image_set, tmp_path / "out"))
    assert [session["clips"] for session in read_sessions(tmp_path / "out")] == [6]


def _rows_of_a_run(image_set: Path, output: Path) -> list[dict]:
    run_generation(settings_for(image_set, output, splits=["train"]))
    return rows_of(output)


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_counts_the_clips_of_every_class(whole):
    text = (whole / "README.md").read_text()
    for split in SPLITS:
        lines = [f"| {split} | zero | 3 | 0 |", f"| {split} | one | 3 | 0 |", f"| {split} | all | 6 | 0 |"]
        assert "\n".join(lines) in text
    assert "not ok:" not in text
    assert "3 frames of 32 x 32 pixels a clip, h264 at 6 fps, 1 an image, made by `camera_motion` at 64 x 64" in text


def test_the_card_counts_bad_clips_and_their_reasons(image_set, tmp_path, monkeypatch):
    data_root = Path(shutil.copytree(image_set, tmp_path / "images"))
    break_image(data_root, 5)
    seeds = [row["seed"] for row in _rows_of_a_run(image_set, tmp_path / "first")]
    plant_faults(monkeypatch, {seeds[0]: raising(ClipError("none came")), seeds[1]: raising(ClipError("none came"))})
    run_generation(settings_for(data_root, tmp_path / "out", max_failed_fraction=1.0))
    text = (tmp_path / "out/README.md").read_text()
    assert "| train | zero | 1 | 2 |\n| train | one | 2 | 1 |\n| train | all | 3 | 3 |\n" in text
    assert "- 2 not ok: none came\n- 1 not ok: " in text


def test_the_card_holds_the_schema_with_every_column_of_the_index(whole):
    assert SCHEMA in (whole / "README.md").read_text()
    missing = [name for name in CLIP_INDEX.column_names if f"`{name}`" not in SCHEMA]
    assert missing == []


def test_the_page_in_the_repository_has_the_same_schema():
    assert SCHEMA in (PROJECT / "svd_videos/README.md").read_text(encoding="utf-8")


def test_the_page_in_the_repository_gives_way_to_a_runs_card(whole, tmp_path):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    shutil.copy(PROJECT / "svd_videos/README.md", output / "README.md")
    write_dataset_card(output)
    assert (output / "README.md").read_bytes() == (whole / "README.md").read_bytes()


def test_the_card_has_the_settings_that_make_clips_and_no_place_of_this_machine(image_set, whole, tmp_path):
    text = (whole / "README.md").read_text()
    assert str(image_set) not in text and str(whole) not in text
    (tmp_path / "settings.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    settings = read_yaml(tmp_path / "settings.yaml")
    recorded = read_yaml(whole / "config.yaml")
    assert settings == {name: recorded[name] for name in settings}
    assert {"generator", "seed", "geometry", "camera_motion", "checks", "codec"} <= settings.keys()
    assert not {"svd", "data_root", "output_dir"} & settings.keys()


def test_the_same_data_set_gives_the_same_page_and_writes_it_once(image_set, whole, tmp_path):
    run_generation(settings_for(image_set, tmp_path))
    assert (tmp_path / "README.md").read_bytes() == (whole / "README.md").read_bytes()
    stamp = (tmp_path / "README.md").stat().st_mtime_ns
    write_dataset_card(tmp_path)
    assert (tmp_path / "README.md").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("content", [b"# My notes\n", b"", "\ufeffM\xfcll".encode("latin-1", "replace")])
def test_a_page_of_someone_else_is_left_alone(image_set, whole, tmp_path, content):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    (output / "README.md").write_bytes(content)
    for _ in range(2):
        write_dataset_card(output)
        assert (output / "README.md").read_bytes() == content
        assert (output / "DATASET_CARD.md").read_bytes() == (whole / "README.md").read_bytes()


def test_a_card_without_an_environment_says_so(whole, tmp_path):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    (output / "environment.json").write_text("{")
    assert "Device: CPU. Versions: unknown." in format_card(output)


def test_the_card_of_svd_clips_names_weights_and_licence(whole, tmp_path):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    config = (output / "config.yaml").read_text().replace("generator: camera_motion", "generator: svd")
    (output / "config.yaml").write_text(config)
    environment = json.loads((output / "environment.json").read_text())
    environment["device"] = {"name": "a card", "dtype": "float16", "model_commit": "0123abc"}
    (output / "environment.json").write_text(json.dumps(environment))
    text = format_card(output)
    assert "Weights: stabilityai/stable-video-diffusion-img2vid (0123abc), float16." in text
    assert "subject to their licence" in text and "Device: a card." in text
