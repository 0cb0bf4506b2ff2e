"""The clip quality script: tables, summary and pictures; bad clips are rows, and a rerun changes nothing."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import KILLED, PROJECT, exit_at_call, fork
from generation_runs import smooth_image
from PIL import Image
from published_clips import list_published_clips, write_index_with_sources
from samples import random_image, write_clip_set, write_image_set

from Data_Augmentation_SVD import clip_metrics, quality
from Data_Augmentation_SVD.contact_sheet import SheetRow, draw_contact_sheet, encode_preview, shrink_row
from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.quality import OWNED_FILES, run_clip_quality
from Data_Augmentation_SVD.quality_tables import CLIP_QUALITY, CLIP_SUMMARY, MAX_PSNR_DB
from Data_Augmentation_SVD.settings import ClipQualitySettings, GenerationSettings, GeometrySettings
from utils.artifacts import read_table
from utils.clips import read_clip, write_clip
from utils.config import build_settings, read_settings
from utils.errors import InputError
from utils.files import sha256_file

SIDE = 64
GEOMETRY = {"height": 64, "width": 128, "fit": "pad", "output": "undo"}
HEADER = [
    "video_path",
    "label",
    "class_name",
    "wnid",
    "source_path",
    "source_sha256",
    "sha256",
    "generator",
    "status",
    "reason",
]
NUM_CLIPS = 5


def write_index(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)


def read_index(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_world(root: Path) -> Path:
    """Images, and clips that move them one pixel a frame; `root/clips` and `root/images`."""
    rows = []
    for number in range(NUM_CLIPS):
        image = smooth_image(number, 40, 40 + 10 * (number % 2))
        source = root / "images" / "val" / f"{number}.png"
        source.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(source)
        view = Geometry(**GEOMETRY, frame_size=SIDE).view(image)
        clip = root / "clips" / "val" / f"{number:05d}.mp4"
        write_clip(clip, np.stack([np.roll(view, shift, axis=1) for shift in range(3)]))
        label = number % 2
        rows.append(
            {
                "video_path": clip.name,
                "label": str(label),
                "class_name": ("cat", "dog")[label],
                "wnid": f"n{label}",
                "source_path": f"val/{number}.png",
                "source_sha256": sha256_file(source),
                "sha256": sha256_file(clip),
                "generator": "svd",
                "status": "ok",
                "reason": "",
            }
        )
    write_index(root / "clips" / "val.csv", rows)
    return root


def settings_for(world: Path, **keys) -> ClipQualitySettings:
    raw = {
        "clips_root": str(world / "clips"),
        "images_root": str(world / "images"),
        "geometry": GEOMETRY,
        "output_dir": str(world / "quality"),
        "num_previews": 2,
    }
    return build_settings(ClipQualitySettings, raw | keys, "test")


def frame_rows(output: Path) -> list[dict]:
    return read_table(output / "clip_quality.csv", CLIP_QUALITY).to_dict("records")


def clip_rows(output: Path) -> list[dict]:
    return read_table(output / "clip_summary.csv", CLIP_SUMMARY).to_dict("records")


def summary_of(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


def results_of(output: Path) -> dict[str, bytes]:
    files = [path for name in OWNED_FILES for path in (output / name, *(output / name).glob("*")) if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results for a world without faults."""
    return run_clip_quality(settings_for(write_world(tmp_path_factory.mktemp("world"))))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_there_is_a_row_per_frame_and_a_row_per_clip(measured):
    rows = frame_rows(measured)
    assert [(row["video_path"], row["frame"]) for row in rows] == [
        (f"{clip:05d}.mp4", frame) for clip in range(NUM_CLIPS) for frame in range(3)
    ]
    clips = clip_rows(measured)
    assert [row["class_name"] for row in clips] == ["cat", "dog", "cat", "dog", "cat"]
    assert {row["status"] for row in clips} == {"ok"} and {row["fault"] for row in clips} == {""}
    assert sorted(row["rank"] for row in clips) == [1, 2, 3, 4, 5]


def test_clips_are_called_as_in_the_evaluation(measured):
    hashes = [row["source_sha256"] for row in read_index(measured.parent / "clips/val.csv")]
    assert [row["item_id"] for row in clip_rows(measured)] == hashes
    assert [row["item_id"] for row in frame_rows(measured)[::3]] == hashes


def test_metrics_are_those_of_the_clip_and_its_source(measured):
    root = measured.parent
    frames = read_clip(root / "clips/val/00001.mp4")
    view = Geometry(**GEOMETRY, frame_size=SIDE).view(np.asarray(Image.open(root / "images/val/1.png")))
    rows = [row for row in frame_rows(measured) if row["video_path"] == "00001.mp4"]
    for frame, row in zip(frames, rows, strict=True):
        assert row["psnr_db"] == pytest.approx(clip_metrics.compute_psnr_db(frame, view), rel=1e-5)
        assert row["ssim"] == pytest.approx(clip_metrics.compute_ssim(frame, view), rel=1e-5)
        assert row["source_correlation"] == pytest.approx(clip_metrics.compute_correlation(frame, view), rel=1e-5)
    columns = {name: [row[name] for row in rows] for name in CLIP_QUALITY.column_names}
    assert columns["gradient_energy"] == pytest.approx(clip_metrics.compute_gradient_energy(frames), rel=1e-5)
    assert columns["contrast"] == pytest.approx(clip_metrics.compute_contrast(frames), rel=1e-5)
    assert columns["difference_from_previous"][1:] == pytest.approx(clip_metrics.compute_differences(frames), rel=1e-5)
    assert columns["flow_px"][1:] == pytest.approx(clip_metrics.compute_flow_px(frames), rel=1e-5)
    assert math.isnan(columns["flow_px"][0]) and math.isnan(columns["difference_from_previous"][0])


def test_a_frame_that_is_its_source_scores_best(measured):
    rows = frame_rows(measured)
    for clip in range(NUM_CLIPS):
        first, second, third = rows[3 * clip : 3 * clip + 3]
        assert first["psnr_db"] > 30 and first["source_correlation"] > 0.99 and first["ssim"] > 0.9
        assert first["psnr_db"] > second["psnr_db"] > third["psnr_db"]


def test_summary_is_the_mean_of_the_tables(measured):
    summary, frames, clips = summary_of(measured), frame_rows(measured), clip_rows(measured)
    assert summary["num_clips"] == summary["num_measured"] == summary["num_with_source"] == NUM_CLIPS
    assert summary["num_not_measured"] == summary["num_faulty"] == 0 and summary["faults"] == {}
    assert summary["geometry"] == GEOMETRY
    for frame, means in enumerate(summary["frame_means"]):
        values = [row["gradient_energy"] for row in frames if row["frame"] == frame]
        assert means["gradient_energy"] == pytest.approx(np.mean(values), rel=1e-4)
        assert means["num_clips"] == NUM_CLIPS
    assert summary["frame_means"][0]["flow_px"] is None
    assert summary["clip_means"]["psnr_db_mean"] == pytest.approx(
        np.mean([row["psnr_db_mean"] for row in clips]), rel=1e-4
    )
    rising = np.mean([row["is_energy_rising"] for row in clips])
    assert summary["energy_rising_fraction"] == pytest.approx(rising, rel=1e-5)


def test_a_frame_that_equals_its_source_has_a_finite_psnr_in_the_tables(world):
    source = world / "images/val/0.png"
    view = Geometry(**GEOMETRY, frame_size=SIDE).view(np.asarray(Image.open(source)))
    path = world / "clips/val/00000.mp4"
    write_clip(path, np.stack([view] * 3), codec="h264_lossless")
    rows = read_index(world / "clips/val.csv")
    rows[0]["sha256"] = sha256_file(path)
    write_index(world / "clips/val.csv", rows)
    output = run_clip_quality(settings_for(world))
    assert [row["psnr_db"] for row in frame_rows(output)[:3]] == [MAX_PSNR_DB] * 3
    assert math.isfinite(summary_of(output)["clip_means"]["psnr_db_mean"])


def test_no_result_names_the_machine(measured):
    for name, content in results_of(measured).items():
        assert str(measured.parent).encode() not in content, name


def test_published_index_has_no_sources(tmp_path):
    clips_root = write_clip_set(tmp_path / "clips", published=True)
    settings = build_settings(
        ClipQualitySettings, {"clips_root": str(clips_root), "output_dir": str(tmp_path / "quality")}, "test"
    )
    output = run_clip_quality(settings)
    assert all(math.isnan(row["psnr_db"]) for row in frame_rows(output))
    assert [row["item_id"] for row in clip_rows(output)] == [f"{number:05d}.mp4" for number in range(6)]
    summary = summary_of(output)
    assert summary["num_with_source"] == 0 and summary["num_measured"] == 6
    assert summary["frame_means"][0]["psnr_db"] is None and summary["frame_means"][0]["gradient_energy"] > 0


# --- bad items are rows -----------------------------------------------------------------------------------------------


def cut_short(world: Path, row: dict[str, str]) -> None:
    path = world / "clips/val" / row["video_path"]
    path.write_bytes(path.read_bytes()[:-200])
    row["sha256"] = sha256_file(path)


def remove(world: Path, row: dict[str, str]) -> None:
    (world / "clips/val" / row["video_path"]).unlink()


def change(world: Path, row: dict[str, str]) -> None:
    (world / "clips/val" / row["video_path"]).write_bytes(b"no clip")


def leave_the_root(world: Path, row: dict[str, str]) -> None:
    row["video_path"] = "../val/" + row["video_path"]


def fail(world: Path, row: dict[str, str]) -> None:
    remove(world, row)
    row |= {"status": "failed", "reason": "the generator gave up", "sha256": ""}


def quarantine(world: Path, row: dict[str, str]) -> None:
    fail(world, row)
    row |= {"status": "quarantined", "reason": "black: frame 2"}


BAD_CLIPS = {
    "cut short": (cut_short, "failed", "decoded"),
    "missing": (remove, "failed", "there is no file"),
    "changed": (change, "failed", "has changed since the index was written"),
    "outside": (leave_the_root, "failed", "must be relative and stay below"),
    "failed": (fail, "failed", "the generator gave up"),
    "quarantined": (quarantine, "quarantined", "black: frame 2"),
}


@pytest.mark.parametrize(("spoil", "status", "reason"), BAD_CLIPS.values(), ids=BAD_CLIPS)
def test_a_bad_clip_is_a_row_with_a_reason(world, spoil: Callable, status, reason):
    rows = read_index(world / "clips/val.csv")
    spoil(world, rows[2])
    write_index(world / "clips/val.csv", rows)
    output = run_clip_quality(settings_for(world))
    row = clip_rows(output)[2]
    assert row["status"] == status and reason in row["reason"] and "\n" not in row["reason"]
    assert row["video_path"] == rows[2]["video_path"]
    assert all(np.isnan(row[name]) for name in ("psnr_db_mean", "contrast_min", "flow_px_mean"))
    assert len(frame_rows(output)) == 3 * (NUM_CLIPS - 1)
    summary = summary_of(output)
    assert (summary["num_measured"], summary["num_not_measured"]) == (NUM_CLIPS - 1, 1)


def test_a_clip_without_its_source_is_measured_without_it(world):
    (world / "images/val/0.png").unlink()
    Image.fromarray(smooth_image(77, 40, 40)).save(world / "images/val/1.png")
    (world / "images/val/2.png").write_bytes(b"no image")
    rows = read_index(world / "clips/val.csv")
    rows[2]["source_sha256"] = sha256_file(world / "images/val/2.png")
    write_index(world / "clips/val.csv", rows)
    output = run_clip_quality(settings_for(world))
    clips = clip_rows(output)
    assert [row["status"] for row in clips] == ["ok"] * NUM_CLIPS
    assert "there is no file" in clips[0]["reason"]
    assert "is not the image that the clip was made of" in clips[1]["reason"]
    assert clips[2]["reason"] == "no source: not an image"
    assert [math.isnan(row["psnr_db_mean"]) for row in clips] == [True, True, True, False, False]
    assert all(row["flow_px_mean"] >= 0 for row in clips)
    assert summary_of(output)["num_with_source"] == 2


def test_frames_that_are_not_square_are_measured_without_their_source(world):
    path = world / "clips/val/00000.mp4"
    write_clip(path, np.stack([random_image(seed, SIDE)[:48] for seed in range(3)]))
    rows = read_index(world / "clips/val.csv")
    rows[0]["sha256"] = sha256_file(path)
    write_index(world / "clips/val.csv", rows)
    row = clip_rows(run_clip_quality(settings_for(world)))[0]
    assert "48 x 64" in row["reason"] and row["fault"].startswith("shape")
    assert row["contrast_min"] > 0


def test_faults_are_named_counted_and_ranked_first(world):
    faulty = {
        1: ("frozen", np.stack([smooth_image(1, SIDE, SIDE)] * 3)),
        3: ("collapsed", np.stack([random_image(seed, SIDE) for seed in range(3)])),
        4: ("black", np.zeros((3, SIDE, SIDE, 3), dtype=np.uint8)),
    }
    rows = read_index(world / "clips/val.csv")
    for position, (_, frames) in faulty.items():
        path = world / "clips/val" / rows[position]["video_path"]
        write_clip(path, frames)
        rows[position]["sha256"] = sha256_file(path)
    write_index(world / "clips/val.csv", rows)
    # So high because the codec animates these loud colours; the moving clips differ by more than 2.
    output = run_clip_quality(settings_for(world, checks={"min_motion": 1.0}))
    clips = clip_rows(output)
    assert {position: row["fault"].split(":")[0] for position, row in enumerate(clips) if row["fault"]} == {
        position: name for position, (name, _) in faulty.items()
    }
    assert {position for position, row in enumerate(clips) if row["rank"] <= 3} == set(faulty)
    assert summary_of(output)["faults"] == {"black": 1, "frozen": 1, "collapsed": 1}


def test_the_static_control_may_stand_still(world):
    rows = read_index(world / "clips/val.csv")
    path = world / "clips/val/00000.mp4"
    image = np.asarray(Image.open(world / "images/val/0.png"))
    write_clip(path, np.stack([Geometry(**GEOMETRY, frame_size=SIDE).view(image)] * 3))
    rows[0] |= {"sha256": sha256_file(path), "generator": "static"}
    write_index(world / "clips/val.csv", rows)
    assert clip_rows(run_clip_quality(settings_for(world, checks={"min_motion": 1.0})))[0]["fault"] == ""


def test_longer_and_single_frame_clips(world):
    rows = read_index(world / "clips/val.csv")
    for row, length in zip(rows, (1, 2, 20, 3, 3), strict=True):
        path = world / "clips/val" / row["video_path"]
        frame = smooth_image(int(row["label"]), SIDE, SIDE)
        write_clip(path, np.stack([np.roll(frame, shift, axis=0) for shift in range(length)]))
        row["sha256"] = sha256_file(path)
    write_index(world / "clips/val.csv", rows)
    output = run_clip_quality(settings_for(world))
    assert [row["num_frames"] for row in clip_rows(output)] == [1, 2, 20, 3, 3]
    assert math.isnan(clip_rows(output)[0]["flow_px_mean"])
    assert [means["num_clips"] for means in summary_of(output)["frame_means"]][:4] == [5, 4, 3, 1]


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(settings: ClipQualitySettings) -> str:
    with pytest.raises(InputError) as error:
        run_clip_quality(settings)
    return str(error.value)


def test_sources_that_are_nowhere_are_refused_before_the_work(world):
    (world / "elsewhere").mkdir()
    sentence = refusal(settings_for(world, images_root=str(world / "elsewhere")))
    assert "none of the 5 sources" in sentence and "give the folder that source_path is relative to" in sentence
    assert not (world / "quality/config.yaml").exists()


def test_images_root_without_sources_in_the_index_is_refused(tmp_path):
    write_clip_set(tmp_path / "clips", published=True)
    (tmp_path / "images").mkdir()
    assert "names no sources" in refusal(settings_for(tmp_path))


def test_no_index_and_no_clip_are_refused(world):
    assert "train_csv" in refusal(settings_for(world, split="train"))
    for path in (world / "clips/val").iterdir():
        path.write_bytes(b"")
    assert "no clip can be measured" in refusal(settings_for(world))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_rerun_does_nothing_and_a_changed_config_is_refused(world):
    output = run_clip_quality(settings_for(world))
    before = results_of(output)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name != ".lock"}
    run_clip_quality(settings_for(world))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name != ".lock"} == times
    assert "max_clips" in refusal(settings_for(world, max_clips=3))
    assert "geometry" in refusal(settings_for(world, geometry=GEOMETRY | {"fit": "stretch"}))
    run_clip_quality(settings_for(world, images_root=None))  # what was compared with its sources stays so
    assert results_of(output) == before
    run_clip_quality(settings_for(world, max_clips=3, num_previews=0, overwrite=True))
    assert len(clip_rows(output)) == 3 and not (output / "previews").exists()


def test_a_changed_index_is_refused(world):
    run_clip_quality(settings_for(world))
    rows = read_index(world / "clips/val.csv")
    write_index(world / "clips/val.csv", rows[:-1])
    assert "clip_index: its content has changed" in refusal(settings_for(world))


def test_images_may_move(world):
    run_clip_quality(settings_for(world))
    (world / "images").rename(world / "moved")
    run_clip_quality(settings_for(world, images_root=str(world / "moved")))


def test_sources_that_were_not_known_before_are_refused(world):
    run_clip_quality(settings_for(world, images_root=None))
    assert "sources: was not an input before" in refusal(settings_for(world))


def test_two_runs_are_equal_bytes(world, measured):
    assert results_of(run_clip_quality(settings_for(world))) == results_of(measured)


@pytest.mark.parametrize(
    ("writer", "call"),
    [("format_table", 3), ("write_table", 1), ("write_bytes", 2), ("write_text", 1)],
    ids=["frame rows", "table", "preview", "summary"],
)
def test_a_killed_run_leaves_nothing_half_written(world, measured, writer, call):
    """The next run begins anew and ends with the same bytes."""

    def run_until() -> None:
        exit_at_call(quality, writer, call)
        run_clip_quality(settings_for(world))

    assert fork(run_until) == KILLED
    assert not (world / "quality/summary.json").exists()
    assert (world / "quality/clip_quality.csv").exists() == (writer != "format_table")
    assert results_of(run_clip_quality(settings_for(world))) == results_of(measured)
    assert not list((world / "quality").rglob("*.partial"))


def test_max_clips_are_evenly_chosen(world):
    output = run_clip_quality(settings_for(world, max_clips=2, sheet_clips=0))
    assert [row["video_path"] for row in clip_rows(output)] == ["00000.mp4", "00002.mp4"]
    assert not (output / "contact_sheet.png").exists()


def record(world: Path, data_root: Path) -> None:
    """What the generation stage writes beside its clips."""
    config = {"data_root": str(data_root), "geometry": GEOMETRY}
    (world / "clips/config.yaml").write_text(yaml.safe_dump(config))


def test_sources_are_looked_for_where_the_clips_were_made_from(world, measured):
    record(world, world / "images")
    output = run_clip_quality(settings_for(world, images_root=None, geometry=None))
    assert results_of(output) == results_of(measured)
    (world / "images").rename(world / "moved")  # a finished run asks for nothing
    run_clip_quality(settings_for(world, images_root=None, geometry=None))
    assert results_of(output) == results_of(measured)


def test_sources_that_have_moved_are_left_out_with_a_warning(world, caplog):
    record(world, world / "elsewhere")
    output = run_clip_quality(settings_for(world, images_root=None))
    assert summary_of(output)["num_with_source"] == 0 and summary_of(output)["num_measured"] == NUM_CLIPS
    assert "their sources are no more" in caplog.text
    run_clip_quality(settings_for(world, output_dir=str(world / "given")))  # what is set counts
    assert summary_of(world / "given")["num_with_source"] == NUM_CLIPS


def test_our_own_clips_are_compared_with_their_sources_without_a_word(tmp_path):
    images = write_image_set(tmp_path / "images", per_class=2)
    content = {"data_root": str(images), "output_dir": str(tmp_path / "clips"), "generator": "camera_motion"}
    content |= {"frame_size": 32, "geometry": {"height": 64, "width": 64, "fit": "pad", "output": "undo"}}
    content |= {"checks": {"min_source_correlation": -1}, "splits": ["val"]}
    run_generation(build_settings(GenerationSettings, content, "test"))
    content = {"clips_root": str(tmp_path / "clips"), "output_dir": str(tmp_path / "quality"), "sheet_clips": 0}
    output = run_clip_quality(build_settings(ClipQualitySettings, content, "test"))
    assert summary_of(output)["num_with_source"] == 4
    assert all(row["psnr_db_mean"] > 8 and row["ssim_mean"] > 0 for row in clip_rows(output))


def test_geometry_is_read_from_beside_the_clips(world, measured):
    (world / "clips/config.yaml").write_text(
        "geometry:\n" + "".join(f"  {key}: {value}\n" for key, value in GEOMETRY.items())
    )
    output = run_clip_quality(settings_for(world, geometry=None))
    assert results_of(output) == results_of(measured)
    (world / "clips/config.yaml").write_text("geometry:\n  fit: fold\n")
    assert "geometry" in refusal(settings_for(world, geometry=None, overwrite=True))


def test_without_any_record_geometry_is_the_papers(world):
    output = run_clip_quality(settings_for(world, geometry=None))
    assert summary_of(output)["geometry"] == GeometrySettings().model_dump()


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_contact_sheet_and_previews_show_the_worst_clips(measured):
    worst = [row["video_path"] for row in sorted(clip_rows(measured), key=lambda row: row["rank"])][:2]
    previews = sorted(path.name for path in (measured / "previews").iterdir())
    assert previews == [f"{rank:03d}_{Path(name).stem}.gif" for rank, name in enumerate(worst, start=1)]
    gif = Image.open(measured / "previews" / previews[0])
    assert gif.n_frames == 3 and gif.size == (448, 224) and gif.info["loop"] == 0
    sheet = Image.open(measured / "contact_sheet.png")
    assert sheet.height > NUM_CLIPS * 112 and sheet.width > 4 * 112


def test_sheet_places_source_and_frames():
    red, blue = (np.full((30, 30, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    rows = [SheetRow(["one"], red, np.stack([blue, red])), SheetRow(["two", "Ångström 狐"], None, np.stack([blue]))]
    pixels = np.asarray(draw_contact_sheet([shrink_row(row) for row in rows]))
    top, step = 22 + 50, 116
    colours = [tuple(pixels[top, 190 + 50 + column * step]) for column in range(3)]
    assert colours == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    colours = [tuple(pixels[top + step, 190 + 50 + column * step]) for column in range(3)]
    assert colours == [(255, 255, 255), (0, 0, 255), (255, 255, 255)]


def test_long_and_wide_clips_fit_on_the_sheet():
    frames = np.stack([random_image(seed, 40)[:20] for seed in range(25)])
    row = shrink_row(SheetRow(["x" * 500] * 12, None, frames))
    assert row.frames.shape == (8, 56, 112, 3)
    sheet = draw_contact_sheet([row])
    assert sheet.height >= 12 * 14 and sheet.width == 190 + 9 * 116


def test_preview_frames_are_the_clips():
    frames = np.stack([np.full((224, 224, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 255, 0))])
    content = encode_preview(SheetRow([], None, frames))
    assert content == encode_preview(SheetRow([], None, frames))
    gif = Image.open(io.BytesIO(content))
    for position, colour in enumerate(((255, 0, 0), (0, 255, 0))):
        gif.seek(position)
        assert gif.convert("RGB").getpixel((100, 100)) == colour


# --- script -----------------------------------------------------------------------------------------------------------


def test_shipped_config_is_valid_and_its_defaults_are_known(tmp_path):
    config = PROJECT / "Data_Augmentation_SVD/clip_quality.yaml"
    (tmp_path / "clips").mkdir()
    overrides = [f"clips_root={tmp_path / 'clips'}", "geometry.fit=pad", "max_clips=7"]
    settings = read_settings(ClipQualitySettings, "doc", config, overrides)
    assert settings.geometry == GeometrySettings(fit="pad") and settings.max_clips == 7


def test_config_is_read_before_anything_heavy():
    code = (
        "import sys, Data_Augmentation_SVD.clip_quality; print([m for m in ('numpy', 'skimage') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_script_runs_and_names_what_is_wrong(world):
    command = [sys.executable, "-m", "Data_Augmentation_SVD.clip_quality", f"clips_root={world / 'clips'}"]
    command += [f"output_dir={world / 'out'}", f"images_root={world / 'images'}"]
    done = subprocess.run([*command, "max_clips=2"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 clips measured, 2 with a source" in done.stderr
    wrong = subprocess.run([*command, "max_clip=2"], cwd=PROJECT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "did you mean 'max_clips'" in wrong.stderr


# --- the published clips ----------------------------------------------------------------------------------------------


def measure_published(real_data: Path, folder: Path, step: int) -> dict:
    write_index_with_sources(list_published_clips(real_data, step), real_data, folder / "val.csv")
    raw = {
        "clips_root": str(real_data / "svd_videos"),
        "clips_csv": str(folder / "val.csv"),
        "images_root": str(real_data / "tiny-imagenet-200"),
        "output_dir": str(folder / "quality"),
    }
    return summary_of(run_clip_quality(build_settings(ClipQualitySettings, raw, "test")))


def means(summary: dict, metric: str) -> list[float]:
    return [frame[metric] for frame in summary["frame_means"]]


def test_published_clips_drift_from_their_source(real_data, tmp_path):
    summary = measure_published(real_data, tmp_path, step=50)
    assert summary["num_measured"] == summary["num_with_source"] == 10
    assert means(summary, "gradient_energy") == sorted(means(summary, "gradient_energy"))
    assert means(summary, "psnr_db") == sorted(means(summary, "psnr_db"), reverse=True)
    assert means(summary, "source_correlation")[0] > 0.7
    assert set(summary["faults"]) <= {"burnt", "collapsed"}


@pytest.mark.exhaustive
def test_all_published_val_clips(real_data, tmp_path):
    summary = measure_published(real_data, tmp_path, step=1)
    assert summary["num_with_source"] == 500
    assert means(summary, "gradient_energy") == pytest.approx([11.1, 14.2, 16.0], rel=0.01)
    assert means(summary, "psnr_db") == pytest.approx([21.2, 17.1, 14.9], abs=0.3)
    assert means(summary, "source_correlation") == pytest.approx([0.83, 0.67, 0.60], abs=0.02)
    assert summary["energy_rising_fraction"] == pytest.approx(0.83, abs=0.01)
    assert summary["low_first_last_correlation_fraction"] == pytest.approx(0.13, abs=0.01)
    assert summary["num_faulty"] <= 45


@pytest.mark.parametrize("inside", ["", "val", "quality"])
def test_tables_do_not_go_among_the_clips(tmp_path, inside):
    with pytest.raises(InputError, match="lies inside clips_root; choose a folder beside the clips"):
        build_settings(ClipQualitySettings, {"clips_root": str(tmp_path), "output_dir": str(tmp_path / inside)}, "test")
