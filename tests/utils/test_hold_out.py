"""The hold-out: exact counts, one side for each image and all made from it, drawn once, refused where it differs."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from conftest import KILLED, exit_at_call, run_in_child
from samples import write_clip_set, write_image_set

import utils.files
import utils.hold_out
from utils.artifacts import HOLD_OUT, read_table
from utils.errors import InputError
from utils.files import sha256_file
from utils.hold_out import HoldOut, draw_hold_out, split_hold_out, write_hold_out
from utils.indices import ItemIndex, classes_of, read_clip_index, read_image_index

COUNTS = {0: 20, 1: 13, 2: 2}  # sources a class
RULE = {"fraction": 0.2, "seed": 0}


def sha(label: int, number: int) -> str:
    return hashlib.sha256(f"{label}/{number}".encode()).hexdigest()


def index_of(rows: list[dict], name: str = "train.csv") -> ItemIndex:
    table = pd.DataFrame(rows)
    return ItemIndex(table, [Path("unused")] * len(rows), classes_of(table, Path(name)), Path(name))


def image_index(counts: dict[int, int] = COUNTS, *, reverse: bool = False) -> ItemIndex:
    rows = [
        {"image_path": f"{label}/{number}.png", "label": label, "sha256": sha(label, number)}
        for label, count in counts.items()
        for number in range(count)
    ]
    return index_of(rows[::-1] if reverse else rows, "images.csv")


def clip_index(counts: dict[int, int] = COUNTS, *, clips_an_image: int = 3, known: bool = True) -> ItemIndex:
    """Clips by repetition, then by image, so that the clips of one image are far apart; each has a hash of its own."""
    rows = [
        {
            "video_path": f"{clip}_{label}_{number}.mp4",
            "label": label,
            "source_sha256": sha(label, number) if known else "",
            "sha256": hashlib.sha256(f"clip {clip} {label} {number}".encode()).hexdigest(),
        }
        for clip in range(clips_an_image)
        for label, count in counts.items()
        for number in range(count)
    ]
    return index_of(rows, "clips.csv")


def held_ids(index: ItemIndex, parts: HoldOut) -> set[str]:
    """The sources that are held out, once no source was found on both sides and every row on one."""
    assert sorted([*parts.train_positions, *parts.held_positions]) == list(range(len(index)))
    ids = index.source_ids
    held, trained = ({ids[i] for i in part} for part in (parts.held_positions, parts.train_positions))
    assert not held & trained
    return held


@pytest.fixture
def drawn(tmp_path) -> Path:
    split_hold_out(image_index(), tmp_path / "hold_out.csv", **RULE)
    return tmp_path / "hold_out.csv"


# ---------------------------------------------------------------------------------------------------------------------
# The draw


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(2, 0.1, 1), (2, 0.9, 1), (10, 0.1, 1), (13, 0.2, 3), (20, 0.2, 4), (500, 0.1, 50), (3, 0.001, 1), (3, 0.999, 2)],
)
def test_counts_are_exact(count, fraction, expected):
    assert len(draw_hold_out({sha(0, number): 0 for number in range(count)}, fraction, 0)) == expected


def test_each_class_gives_its_share():
    sources = {sha(label, number): label for label, count in COUNTS.items() for number in range(count)}
    drawn = draw_hold_out(sources, 0.2, 0)
    assert [sum(sources[source] == label for source in drawn) for label in COUNTS] == [4, 3, 1]


def test_the_draw_is_the_smallest_hashes():
    sources = dict.fromkeys("abcdefghij", 0)
    expected = sorted(sources, key=lambda source: hashlib.sha256(f"7:{source}".encode()).hexdigest())[:3]
    assert draw_hold_out(sources, 0.3, 7) == set(expected)


def test_order_changes_nothing_and_the_seed_does():
    sources = {sha(0, number): 0 for number in range(50)}
    drawn = draw_hold_out(sources, 0.2, 0)
    assert draw_hold_out(dict(reversed(sources.items())), 0.2, 0) == drawn
    assert draw_hold_out(sources, 0.2, 1) != drawn
    assert drawn < draw_hold_out(sources, 0.4, 0), "a larger hold-out contains the smaller"


def test_a_class_with_one_source_is_named(tmp_path):
    with pytest.raises(InputError, match=f"class 1 has one source only, {sha(1, 0)}; add images, remove the class"):
        split_hold_out(image_index({0: 3, 1: 1}), tmp_path / "hold_out.csv", **RULE)
    assert not (tmp_path / "hold_out.csv").exists()


# ---------------------------------------------------------------------------------------------------------------------
# One file for all arms


def test_original_clips_and_frames_of_an_image_are_on_one_side(tmp_path):
    images, clips = image_index(), clip_index(clips_an_image=3)
    parts = [split_hold_out(index, tmp_path / "hold_out.csv", **RULE) for index in (images, clips)]
    held = held_ids(images, parts[0])
    assert len(held) == 4 + 3 + 1
    assert held_ids(clips, parts[1]) == held
    assert [len(part.held_positions) for part in parts] == [8, 24]
    assert parts[0].sha256 == parts[1].sha256 == hashlib.sha256((tmp_path / "hold_out.csv").read_bytes()).hexdigest()
    assert parts[0].is_paired and parts[1].is_paired
    assert parts[0].held_positions.dtype == "int64"
    frames = index_of([{"video_path": f"{n}", "label": 0, "source_sha256": sha(0, n % 20)} for n in range(60)])
    of_class_0 = {sha(0, number) for number in range(20)}
    assert held_ids(frames, split_hold_out(frames, tmp_path / "hold_out.csv", **RULE)) == held & of_class_0


def test_row_order_does_not_matter(tmp_path):
    one = split_hold_out(image_index(), tmp_path / "one.csv", **RULE)
    other = split_hold_out(image_index(reverse=True), tmp_path / "other.csv", **RULE)
    assert one.sha256 == other.sha256
    assert held_ids(image_index(), one) == held_ids(image_index(reverse=True), other)


def test_the_file_is_drawn_once_and_sorted(tmp_path):
    path = tmp_path / "new folder" / "hold_out.csv"
    split_hold_out(image_index(), path, **RULE)
    before = path.stat().st_mtime_ns
    split_hold_out(image_index(reverse=True), path, **RULE)
    assert path.stat().st_mtime_ns == before
    table = read_table(path, HOLD_OUT)
    assert table["source_sha256"].is_monotonic_increasing
    assert len(table) == sum(COUNTS.values())
    assert set(table["pairing"]) == {"paired"}
    assert (table["part"] == "hold_out").sum() == 8


def test_an_index_may_lack_sources(tmp_path):
    """The published clips cover 4,935 of 5,000 images."""
    held = held_ids(image_index(), split_hold_out(image_index(), tmp_path / "hold_out.csv", **RULE))
    fewer = clip_index({0: 15, 1: 13})
    expected = {source for source in held if source in set(fewer.source_ids)}
    assert held_ids(fewer, split_hold_out(fewer, tmp_path / "hold_out.csv", **RULE)) == expected


def test_clips_of_unknown_source_are_held_out_by_clip(tmp_path):
    clips = clip_index(known=False)
    parts = split_hold_out(clips, tmp_path / "hold_out.csv", **RULE)
    assert not parts.is_paired
    assert held_ids(clips, parts) <= set(clips.table["video_path"])
    assert len(parts.held_positions) == round(0.2 * 60) + round(0.2 * 39) + round(0.2 * 6)
    assert set(read_table(tmp_path / "hold_out.csv", HOLD_OUT)["pairing"]) == {"unpaired"}


def test_one_clip_of_unknown_source_makes_the_run_unpaired(tmp_path):
    clips = clip_index()
    clips.table.loc[0, "source_sha256"] = ""
    ids, is_paired = clips.source_ids, clips.is_paired
    assert not is_paired
    assert ids[:2] == ["0_0_0.mp4", sha(0, 1)]
    parts = split_hold_out(clips, tmp_path / "hold_out.csv", **RULE)
    held_ids(clips, parts)
    assert not parts.is_paired


def test_ids_of_indices_on_disk(tmp_path):
    images = read_image_index(write_image_set(tmp_path / "images") / "train.csv")
    assert (images.source_ids, images.is_paired) == (images.table["sha256"].tolist(), True)
    for published in (False, True):
        root = write_clip_set(tmp_path / f"clips{published}", published=published)
        clips = read_clip_index(root / "train.csv", root / "train")
        column = "video_path" if published else "source_sha256"
        assert (clips.source_ids, clips.is_paired) == (clips.table[column].tolist(), not published)


# ---------------------------------------------------------------------------------------------------------------------
# Kills and company


def draw_killed(path: Path, name: str, call: int) -> None:
    owner = {"fsync": utils.files.os, "replace": Path, "write_bytes": Path}[name]
    exit_at_call(owner, name, call)
    split_hold_out(image_index(), path, **RULE)


@pytest.mark.parametrize(("name", "call"), [("write_bytes", 1), ("fsync", 1), ("replace", 1), ("fsync", 2)])
def test_a_kill_while_it_is_written_leaves_all_or_nothing(tmp_path, name, call):
    path = tmp_path / "hold_out.csv"
    assert run_in_child(draw_killed, path, name, call) == KILLED
    assert path.exists() == (name == "fsync" and call == 2)
    expected = split_hold_out(image_index(), tmp_path / "expected" / "hold_out.csv", **RULE)
    assert split_hold_out(image_index(), path, **RULE).sha256 == expected.sha256
    assert not list(tmp_path.glob("*.partial"))


def draw_slowly(path: Path) -> None:
    """Holds the pen for half a second."""
    write = utils.hold_out.write_table

    def write_slowly(*arguments) -> None:
        (path.parent / "writing").touch()
        time.sleep(0.5)
        write(*arguments)

    utils.hold_out.write_table = write_slowly
    split_hold_out(image_index(), path, **RULE)


def draw_meanwhile(path: Path) -> None:
    while not (path.parent / "writing").exists():
        time.sleep(0.01)
    assert not path.exists(), "the other one has finished already"
    parts = split_hold_out(clip_index({0: 15, 1: 13}), path, **RULE)
    (path.parent / "read").write_text(parts.sha256)


def test_of_two_at_once_one_draws_and_the_other_reads(tmp_path):
    path = tmp_path / "hold_out.csv"
    with ThreadPoolExecutor(2) as pool:
        codes = pool.map(lambda function: run_in_child(function, path), (draw_slowly, draw_meanwhile))
        assert list(codes) == [0, 0]
    assert len(read_table(path, HOLD_OUT)) == sum(COUNTS.values())
    assert (tmp_path / "read").read_text() == sha256_file(path), "the second drew for itself"


def test_a_drawn_file_is_read_without_a_lock(drawn):
    """Also from a folder that is read-only."""
    lock = drawn.parent / ".hold_out.csv.lock"
    lock.unlink()
    split_hold_out(image_index(), drawn, **RULE)
    assert not lock.exists()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def refused(path: Path, index: ItemIndex, *says: str, **rule) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        split_hold_out(index, path, **(rule or RULE))
    assert str(caught.value).startswith(str(path))
    for text in says:
        assert text in str(caught.value)
    assert path.read_bytes() == before


def test_another_fraction_or_seed_is_refused(drawn):
    says = ["line 2: was drawn with hold_out.fraction=0.2, not 0.1", "set hold_out.file to another file"]
    refused(drawn, image_index(), *says, fraction=0.1, seed=0)
    refused(drawn, image_index(), "line 2: was drawn with hold_out.seed=0, not 12345678", fraction=0.2, seed=12345678)


def test_a_fraction_of_many_digits_is_the_same_when_read_again(tmp_path):
    rule = {"fraction": 1 / 3, "seed": 0}
    first = split_hold_out(image_index(), tmp_path / "hold_out.csv", **rule)
    assert split_hold_out(image_index(), tmp_path / "hold_out.csv", **rule).sha256 == first.sha256


def test_sources_that_are_not_listed_are_left_out_of_both_parts(tmp_path):
    path = tmp_path / "hold_out.csv"
    everything = image_index({0: 20, 1: 14})
    ids = everything.source_ids
    listed = dict(zip(ids[::2], everything.labels[::2], strict=True))
    write_hold_out(listed, path, **RULE)
    parts = split_hold_out(everything, path, **RULE, unlisted="leave_out")
    kept = sorted([*parts.train_positions, *parts.held_positions])
    assert kept == list(range(0, len(everything), 2)), "each listed row once, no other"
    assert parts.is_paired and {ids[row] for row in parts.held_positions} == draw_hold_out(listed, **RULE)
    with pytest.raises(InputError, match="sources are not in it"):
        split_hold_out(everything, path, **RULE)


def test_clips_of_unknown_source_are_left_out_where_the_file_is_paired(tmp_path):
    path, clips = tmp_path / "hold_out.csv", clip_index()
    write_hold_out(dict(zip(clips.source_ids, clips.labels, strict=True)), path, **RULE)
    clips.table.loc[0, "source_sha256"] = ""
    parts = split_hold_out(clips, path, **RULE, unlisted="leave_out")
    assert parts.is_paired and 0 not in {*parts.train_positions, *parts.held_positions}
    assert len(parts.train_positions) + len(parts.held_positions) == len(clips) - 1


def test_another_data_set_is_refused(drawn):
    more = image_index({0: 22, 1: 13, 2: 2})
    says = ["drawn from another data set than images.csv: 2 of 37 sources are not in it", f"the first: {sha(0, 20)};"]
    refused(drawn, more, *says, "delete it", "set hold_out.file")


def test_paired_and_unpaired_share_no_file(drawn, tmp_path):
    says = ["is paired, but clips.csv has clips without a known source", "set hold_out.file to another file"]
    refused(drawn, clip_index(known=False), *says)
    split_hold_out(clip_index(known=False), tmp_path / "unpaired.csv", **RULE)
    refused(tmp_path / "unpaired.csv", image_index(), "is unpaired, but images.csv knows the source of every row")


def test_other_labels_are_refused(drawn):
    index = image_index()
    index.table["label"] = index.table["label"].map({0: 1, 1: 0, 2: 2})
    refused(drawn, index, f"{sha(0, 0)} has label 0, but 1 in images.csv; use the class list that it was drawn with")


def test_one_image_with_two_labels_is_refused(tmp_path):
    index = image_index()
    index.table.loc[20, "sha256"] = sha(0, 0)
    says = f"^images.csv: 0/0.png has label 0 and 1/0.png has label 1, but both are of source {sha(0, 0)}, "
    with pytest.raises(InputError, match=says):
        split_hold_out(index, tmp_path / "hold_out.csv", **RULE)
    assert not (tmp_path / "hold_out.csv").exists()


def test_two_clips_of_one_source_with_two_labels_are_refused_until_they_name_a_group(tmp_path):
    rows = [
        {"video_path": f"{number}.avi", "label": number % 2, "source_sha256": sha(0, number // 2), "group": ""}
        for number in range(8)
    ]
    says = "^clips.csv: 0.avi has label 0 and 1.avi has label 1, but .*, or correct its label; or, .* the column group$"
    with pytest.raises(InputError, match=says):
        split_hold_out(index_of(rows, "clips.csv"), tmp_path / "hold_out.csv", **RULE)
    named = index_of([row | {"group": row["source_sha256"]} for row in rows], "clips.csv")
    held = split_hold_out(named, tmp_path / "hold_out.csv", **RULE).held_positions.tolist()
    assert len(held) == 2 and held[0] // 2 == held[1] // 2


def test_an_index_with_nothing_on_one_side_is_refused(drawn):
    table = read_table(drawn, HOLD_OUT)
    for part, name in (("train", "hold-out"), ("hold_out", "training")):
        sources = table["source_sha256"][(table["part"] == part) & (table["label"] == 0)]
        rows = [{"image_path": source, "label": 0, "sha256": source} for source in sources]
        refused(drawn, index_of(rows, "few.csv"), f"no row of few.csv is in the {name} part")


def test_an_edited_file_is_refused_with_its_line(drawn):
    lines = drawn.read_text().splitlines(keepends=True)
    held = next(number for number, line in enumerate(lines) if ",hold_out," in line)
    edits = {
        "other side": (held, lines[held].replace(",hold_out,", ",train,"), "the file was edited; restore it"),
        "unknown part": (held, lines[held].replace(",hold_out,", ",held,"), "column 'part' is 'held'; known: train"),
        "other fraction": (3, lines[3].replace(",0.2,", ",0.3,"), "was drawn with hold_out.fraction=0.3, not 0.2"),
        "twice": (3, lines[2], "stands already on line 3"),
    }
    for number, line, says in edits.values():
        drawn.write_text("".join([*lines[:number], line, *lines[number + 1 :]]))
        refused(drawn, image_index(), f"line {number + 1}: ", says)


def test_a_file_of_another_kind_is_refused(drawn):
    kinds = {b"": "the file is empty", b"\xff": "is not UTF-8", b"image_path,label\n": "lacks column"}
    for content, says in kinds.items():
        drawn.write_bytes(content)
        refused(drawn, image_index(), says)


# ---------------------------------------------------------------------------------------------------------------------
# Real videos: by group


def video_index(rows: list[tuple[int, str]], name: str = "videos.csv") -> ItemIndex:
    """Videos with a hash of their own and the given (label, group)."""
    content = [
        {"video_path": f"{number}.avi", "label": label, "group": group, "source_sha256": sha(9, number)}
        for number, (label, group) in enumerate(rows)
    ]
    return index_of(content, name)


def test_groups_are_the_column_s_or_else_the_source():
    index = video_index([(0, "a"), (0, ""), (1, "a")])
    assert index.has_groups and index.groups == ["a", sha(9, 1), "a"]
    for plain in (clip_index(), video_index([(0, ""), (1, "")])):
        assert not plain.has_groups and plain.groups == plain.source_ids


def test_all_videos_of_a_group_are_on_one_side(tmp_path):
    rows = [(label, f"{label} g{group}") for label in (0, 1) for group in range(10) for _ in range(4)]
    index = video_index(rows)
    parts = split_hold_out(index, tmp_path / "hold_out.csv", **RULE)
    sides = [{index.groups[row] for row in part} for part in (parts.train_positions, parts.held_positions)]
    assert not sides[0] & sides[1] and [len(side) for side in sides] == [16, 4]
    assert sorted(group[0] for group in sides[1]) == ["0", "0", "1", "1"]
    assert len(parts.held_positions) == 4 * 4 and parts.is_paired
    assert set(read_table(tmp_path / "hold_out.csv", HOLD_OUT)["source_sha256"]) == {group for _, group in rows}


def test_a_group_may_have_several_labels_and_counts_for_its_most_frequent(tmp_path):
    rows = [(label, f"person {person}") for person in range(10) for label in (0, 1, 1)]
    split_hold_out(video_index(rows), tmp_path / "hold_out.csv", **RULE)
    table = read_table(tmp_path / "hold_out.csv", HOLD_OUT)
    assert set(table["label"]) == {1} and (table["part"] == "hold_out").sum() == 2


def test_a_class_of_one_group_is_trained(tmp_path):
    rows = [(0, f"g{number}") for number in range(5)] + [(1, "only"), (1, "only")]
    index = video_index(rows)
    parts = split_hold_out(index, tmp_path / "hold_out.csv", **RULE)
    assert len(parts.held_positions) == 1 and {5, 6} <= set(parts.train_positions)
    again = split_hold_out(index, tmp_path / "hold_out.csv", **RULE)
    assert again.held_positions.tolist() == parts.held_positions.tolist()


def test_a_rare_combination_of_tasks_is_trained(tmp_path):
    index = index_of(
        [
            {"video_path": f"{number}.avi", "label": int(number == 0), "source_sha256": sha(9, number)}
            for number in range(6)
        ],
        str(tmp_path / "train.csv"),
    )
    with pytest.raises(InputError, match="class 1 has one source only"):
        split_hold_out(index, tmp_path / "hold_out.csv", **RULE)
    (tmp_path / "train.tasks.csv").write_text("")
    assert 0 in split_hold_out(index, tmp_path / "hold_out.csv", **RULE).train_positions


def test_groups_of_one_video_each_are_drawn_as_sources_are(tmp_path):
    groups = [sha(0, number) for number in range(20)]
    of_videos = split_hold_out(video_index([(0, group) for group in groups]), tmp_path / "videos.csv", **RULE)
    of_images = split_hold_out(image_index({0: 20}), tmp_path / "images.csv", **RULE)
    assert of_videos.held_positions.tolist() == of_images.held_positions.tolist()
    assert of_videos.sha256 == of_images.sha256
