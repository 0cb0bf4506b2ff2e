"""Tables that cross a stage border: exact bytes, exact values back, and ids that stay unique."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils import artifacts
from utils.artifacts import (
    CLIP_INDEX,
    COMPARISONS,
    HISTORY,
    IMAGE_INDEX,
    Column,
    Table,
    format_table,
    read_table,
    write_table,
)
from utils.errors import InputError
from utils.files import sha256_bytes, write_bytes, write_text
from utils.indices import (
    ClassInfo,
    ItemIndex,
    classes_of,
    distinct_names,
    locate_clip_index,
    read_clip_index,
    read_image_index,
    require_same_classes,
)

TABLES = sorted((value for value in vars(artifacts).values() if isinstance(value, Table)), key=lambda t: t.name)
SAMPLE = Table(
    "sample",
    (
        Column("name"),
        Column("count", "int", minimum=0),
        Column("share", "float"),
        Column("seed", "int", nullable=True),
        Column("score", "float", nullable=True),
        Column("note", optional=True),
    ),
    unique=("name", "count"),
)
ROW = {"name": "a", "count": 1, "share": 0.5, "seed": 7, "score": 2.5, "note": ""}


def sample_text(tmp_path: Path, *rows: dict) -> bytes:
    write_table([ROW | row for row in rows], tmp_path / "sample.csv", SAMPLE)
    return (tmp_path / "sample.csv").read_bytes()


def refused(path: Path, text: str, table: Table = SAMPLE) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_table(path, table)
    return str(error.value).replace(str(path.parent), "DIR")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def test_table_is_written_to_the_byte(tmp_path):
    rows = [{}, {"name": 'b, "c"', "count": 20, "share": 1 / 3, "seed": None, "score": None, "note": "\u00fc"}]
    assert sample_text(tmp_path, *rows) == (
        b'name,count,share,seed,score,note\na,1,0.5,7,2.5,\n"b, ""c""",20,0.333333,,,\xc3\xbc\n'
    )


def test_columns_are_written_in_the_table_s_order_whatever_the_row_s(tmp_path):
    text = format_table([dict(reversed((ROW | {"extra": 1}).items()))], SAMPLE)
    assert text == "name,count,share,seed,score,note\na,1,0.5,7,2.5,\n"


def test_row_without_a_column_is_an_error():
    with pytest.raises(KeyError, match="share"):
        format_table([{"name": "a", "count": 1}], SAMPLE)


FLOATS = {
    1 / 3: "0.333333",
    2 / 3: "0.666667",
    1.0: "1",
    0.0: "0",
    123456.7: "123457",
    1234567.0: "1.23457e+06",
    1e-4: "0.0001",
    1e-5: "1e-05",
    0.1 + 0.2: "0.3",
    np.float32(0.1): "0.1",
    5: "5",
}


@pytest.mark.parametrize(("value", "text"), FLOATS.items(), ids=repr)
def test_floats_have_six_significant_digits(value, text):
    assert format_table([ROW | {"share": value}], SAMPLE, header=False) == f"a,1,{text},7,2.5,\n"


@pytest.mark.parametrize("value", [3, np.int64(3), True + 2, 3.0, np.float64(3)], ids=repr)
def test_whole_numbers_are_written_without_a_point(value):
    assert format_table([ROW | {"count": value}], SAMPLE, header=False) == "a,3,0.5,7,2.5,\n"


@pytest.mark.parametrize("nothing", [None, float("nan"), np.nan, pd.NA], ids=repr)
def test_missing_values_are_empty_cells(nothing):
    row = ROW | {"seed": nothing, "score": nothing}
    assert format_table([row], SAMPLE, header=False) == "a,1,0.5,,,\n"


def test_frame_and_rows_give_the_same_bytes():
    rows = [ROW, ROW | {"name": "b", "share": 0.1}]
    assert format_table(pd.DataFrame(rows), SAMPLE) == format_table(rows, SAMPLE)


def test_failed_write_keeps_the_old_table(tmp_path):
    before = sample_text(tmp_path, {})
    with pytest.raises(ValueError, match="ten"):
        write_table([ROW | {"count": "ten"}], tmp_path / "sample.csv", SAMPLE)
    assert (tmp_path / "sample.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["sample.csv"]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def test_table_reads_back_as_it_was_written(tmp_path):
    rows = [ROW, ROW | {"name": "NA", "count": 2, "seed": None, "score": None, "note": 'x\n"y",z'}]
    write_table(rows, tmp_path / "sample.csv", SAMPLE)
    table = read_table(tmp_path / "sample.csv", SAMPLE)
    found = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table.to_dict("records")]
    assert found == rows


def test_written_read_and_written_again_is_the_same_bytes(tmp_path):
    first = sample_text(tmp_path, {"share": 1 / 3}, {"name": "b", "seed": None, "score": None})
    write_table(read_table(tmp_path / "sample.csv", SAMPLE), tmp_path / "again.csv", SAMPLE)
    assert (tmp_path / "again.csv").read_bytes() == first


def test_column_types_do_not_depend_on_the_values(tmp_path):
    sample_text(tmp_path, {"name": "007", "seed": None, "score": None})
    kinds = read_table(tmp_path / "sample.csv", SAMPLE).dtypes.astype(str).to_dict()
    assert kinds == {
        "name": "object",
        "count": "int64",
        "share": "float64",
        "seed": "Int64",
        "score": "float64",
        "note": "object",
    }


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1])
def test_large_seeds_keep_every_digit(tmp_path, seed):
    sample_text(tmp_path, {"seed": seed}, {"name": "b", "seed": None})
    assert read_table(tmp_path / "sample.csv", SAMPLE)["seed"].iloc[0] == seed


@pytest.mark.parametrize("text", ["007", "NA", "null", "None", "nan", "1e5", "True", "", " a ", "\u00fc", '"', "a,b"])
def test_text_stays_text(tmp_path, text):
    sample_text(tmp_path, {"name": text})
    assert read_table(tmp_path / "sample.csv", SAMPLE)["name"].tolist() == [text]


def test_rows_are_indexed_by_their_line(tmp_path):
    (tmp_path / "a.csv").write_text("name,count,share,seed,score\na,1,1,,\n\nb,1,1,,\n")
    assert read_table(tmp_path / "a.csv", SAMPLE).index.tolist() == [2, 4]


def test_unknown_columns_are_left_out_and_optional_ones_may_lack(tmp_path):
    (tmp_path / "a.csv").write_text("x,score,seed,share,count,name\n9,,,1,1,a\n")
    assert read_table(tmp_path / "a.csv", SAMPLE).columns.tolist() == ["name", "count", "share", "seed", "score"]


HEADER = "name,count,share,seed,score\n"
SENTENCES = {
    "empty number": ("a,,1,,\n", "DIR/a.csv line 2: column 'count' is empty; give a value"),
    "word": ("a,one,1,,\n", "DIR/a.csv line 2: column 'count' is 'one', expected a whole number"),
    "fraction": ("a,1.5,1,,\n", "DIR/a.csv line 2: column 'count' is '1.5', expected a whole number"),
    "underscore": ("a,1_0,1,,\n", "DIR/a.csv line 2: column 'count' is '1_0', expected a whole number"),
    "other digits": ("a,\u0663,1,,\n", "DIR/a.csv line 2: column 'count' is '\u0663', expected a whole number"),
    "too small": ("a,-1,1,,\n", "DIR/a.csv line 2: column 'count' is -1, expected at least 0"),
    "word for a float": ("a,1,x,,\n", "DIR/a.csv line 2: column 'share' is 'x', expected a number"),
    "short": ("a,1\n", "DIR/a.csv line 2: has 2 cells, expected 5; correct the row"),
    "twice": (
        "a,1,1,,\nb,1,1,,\na,1,2,,\n",
        "DIR/a.csv line 4: 'a, 1' stands already on line 2; remove one of the rows",
    ),
    "no rows": ("", "DIR/a.csv: the sample has no rows; run the stage that makes it again"),
}


@pytest.mark.parametrize(("rows", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_sentence_names_line_and_column(tmp_path, rows, sentence):
    assert refused(tmp_path / "a.csv", HEADER + rows) == sentence


def test_header_alone_is_a_table_where_that_is_allowed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(HEADER)
    table = read_table(path, SAMPLE, allow_empty=True)
    assert (len(table), table.columns.tolist()) == (0, ["name", "count", "share", "seed", "score"])
    assert table.dtypes.astype(str).tolist() == ["object", "int64", "float64", "Int64", "float64"]
    for content, sentence in ((b"", "the file is empty"), (b"name\n", "lacks column 'count'"), (b"\xff", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            read_table(path, SAMPLE, allow_empty=True)


def test_rows_of_one_seed_have_no_outcome(tmp_path):
    row = {column.name: example_value(column) for column in COMPARISONS.columns} | {"outcome": ""}
    write_table([row], tmp_path / "a.csv", COMPARISONS)
    assert read_table(tmp_path / "a.csv", COMPARISONS)["outcome"].tolist() == [""]
    text = (tmp_path / "a.csv").read_text()
    with pytest.raises(InputError, match="line 2: column 'outcome' is 'tie'; known: a, b, undecided"):
        (tmp_path / "a.csv").write_text(text.rstrip("\n") + "tie\n")
        read_table(tmp_path / "a.csv", COMPARISONS)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("column", ["share", "score"])
def test_float_that_is_not_finite_is_refused_even_without_a_minimum(tmp_path, column, text):
    row = {"share": "1", "score": ""} | {column: text}
    sentence = refused(tmp_path / "a.csv", f"{HEADER}a,1,{row['share']},,{row['score']}\n")
    assert sentence.startswith(f"DIR/a.csv line 2: column {column!r} is ")


@pytest.mark.parametrize("number", [2**63, 10**400], ids=["2**63", "10**400"])
@pytest.mark.parametrize("column", ["count", "seed"])
def test_whole_number_beyond_64_bits_is_refused(tmp_path, column, number):
    row = {"count": "1", "seed": ""} | {column: str(number)}
    sentence = refused(tmp_path / "a.csv", f"{HEADER}a,{row['count']},1,{row['seed']},\n")
    assert sentence.startswith(f"DIR/a.csv line 2: column {column!r} is ")


def test_same_value_in_one_key_column_alone_is_no_duplicate(tmp_path):
    sample_text(tmp_path, {"count": 1}, {"count": 2})
    assert len(read_table(tmp_path / "sample.csv", SAMPLE)) == 2


def test_table_without_a_key_may_repeat_rows(tmp_path):
    sample_text(tmp_path, {}, {})
    table = read_table(tmp_path / "sample.csv", replace(SAMPLE, unique=()))
    assert len(table) == 2 and table.index.tolist() == [2, 3]


def test_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv: there is no sample table here"):
        read_table(tmp_path / "a.csv", SAMPLE)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_has_distinct_columns_and_a_key_of_its_own(table):
    assert len(set(table.column_names)) == len(table.column_names)
    assert set(table.unique) <= set(table.column_names)
    assert all(name == name.lower() and " " not in name for name in table.column_names)


def example_value(column: Column) -> object:
    if column.kind == "text":
        return column.choices[0] if column.choices else "007"
    return 1 if column.kind == "int" else 0.25


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_reads_back_what_it_writes(tmp_path, table):
    row = {column.name: example_value(column) for column in table.columns}
    write_table([row], tmp_path / "a.csv", table)
    assert read_table(tmp_path / "a.csv", table).to_dict("records") == [row]


def test_headers_are_the_published_ones():
    assert IMAGE_INDEX.column_names == ["image_path", "label", "class_name", "wnid", "sha256"]
    assert CLIP_INDEX.column_names[:2] == ["video_path", "label"]
    assert [column.name for column in CLIP_INDEX.columns if not column.optional] == ["video_path", "label"]


def test_history_leaves_top3_empty_where_there_are_two_classes():
    row = dict.fromkeys(HISTORY.column_names, 0.5) | {"epoch": 1, "update": 7, "selection_top3_fraction": None}
    assert format_table([row], HISTORY, header=False) == "1,7,0.5,0.5,0.5,0.5,0.5,\n"


# ---------------------------------------------------------------------------------------------------------------------
# Indices


def image_index(folder: Path, *contents: bytes) -> ItemIndex:
    rows = []
    for number, content in enumerate(contents):
        write_bytes(folder / f"{number}.png", content)
        identity = {"label": number % 2, "class_name": "ab"[number % 2], "wnid": f"n{number % 2}"}
        rows.append({"image_path": f"{number}.png", **identity, "sha256": sha256_bytes(content)})
    write_table(rows, folder / "train.csv", IMAGE_INDEX)
    return read_image_index(folder / "train.csv")


def clip_index(folder: Path, text: str, **options) -> ItemIndex:
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        write_text(folder / name, name)
    write_text(folder / "train.csv", text)
    return read_clip_index(folder / "train.csv", folder, **options)


def test_image_ids_are_hashes_with_a_number_from_the_second_copy_on(tmp_path):
    index = image_index(tmp_path, b"x", b"y", b"x", b"x")
    x, y = sha256_bytes(b"x"), sha256_bytes(b"y")
    assert index.item_ids == [x, y, f"{x}#2", f"{x}#3"]


def test_clip_ids_are_the_sources_hashes_not_the_clips_own(tmp_path):
    text = "video_path,label,source_sha256\na.mp4,0,s1\nb.mp4,0,s2\nc.mp4,1,s1\n"
    assert clip_index(tmp_path, text).item_ids == ["s1", "s2", "s1#2"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("video_path,label\na.mp4,0\nb.mp4,1\n", ["a.mp4", "b.mp4"]),
        ("video_path,label,source_sha256\na.mp4,0,s1\nb.mp4,1,\n", ["s1", "b.mp4"]),
    ],
    ids=["published", "one unknown source"],
)
def test_clip_ids_are_paths_where_a_source_is_unknown(tmp_path, text, ids):
    assert clip_index(tmp_path, text).item_ids == ids


def test_image_index_keeps_order_labels_and_classes(tmp_path):
    index = image_index(tmp_path, b"x", b"y", b"z")
    assert [path.name for path in index.paths] == ["0.png", "1.png", "2.png"]
    assert index.labels == [0, 1, 0] and len(index) == 3
    assert index.classes == (ClassInfo(0, "a", "n0"), ClassInfo(1, "b", "n1"))


def test_changed_file_is_read_only_without_verification(tmp_path):
    image_index(tmp_path, b"x")
    (tmp_path / "0.png").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"train\.csv line 2: .*0\.png has changed"):
        read_image_index(tmp_path / "train.csv")
    assert len(read_image_index(tmp_path / "train.csv", verify=False)) == 1


def test_published_classes_are_called_by_their_number(tmp_path):
    index = clip_index(tmp_path, "video_path,label\r\na.mp4,0\r\nb.mp4,2\r\n", num_classes=4)
    assert [item.class_name for item in index.classes] == ["0", "1", "2", "3"]
    assert index.clip_kind == "clip:unknown"


def test_only_ok_rows_are_kept_and_lines_stay_those_of_the_file(tmp_path):
    text = "video_path,label,num_frames,status\nx.mp4,0,3,failed\na.mp4,0,3,ok\ny.mp4,0,9,quarantined\nb.mp4,1,2,ok\n"
    assert [path.name for path in clip_index(tmp_path, text).paths] == ["a.mp4", "b.mp4"]
    with pytest.raises(InputError, match=r"train\.csv line 5: num_frames is 2, expected 3"):
        clip_index(tmp_path, text, num_frames=3)


@pytest.mark.parametrize(("generators", "kind"), [("svd svd", "clip:svd"), ("svd static", "clip:unknown")])
def test_clip_kind_is_the_one_generator(tmp_path, generators, kind):
    first, second = generators.split()
    text = f"video_path,label,generator\na.mp4,0,{first}\nb.mp4,0,{second}\n"
    assert clip_index(tmp_path, text).clip_kind == kind


def test_label_beyond_num_classes_is_named(tmp_path):
    table = pd.DataFrame({"label": [0, 3]}, index=pd.Index([2, 3]))
    with pytest.raises(InputError, match=r"a\.csv line 3: label 3 is out of range for num_classes=3 \(0\.\.2\)"):
        classes_of(table, Path("a.csv"), 3)


def test_label_that_would_need_a_million_classes_is_refused(tmp_path):
    text = "video_path,label\na.mp4,0\nb.mp4,1000000\n"
    with pytest.raises(InputError, match=r"train\.csv line 3: .*1000000"):
        clip_index(tmp_path, text)


def test_index_below_the_data_root_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "train.csv", "")
    assert locate_clip_index(Path("clips"), Path("train.csv"), "train") == (Path("train.csv"), Path("clips"))
    write_text(tmp_path / "clips/train.csv", "")
    write_text(tmp_path / "clips/train/a.mp4", "")
    expected = (Path("clips/train.csv"), Path("clips/train"))
    assert locate_clip_index(Path("clips"), Path("train.csv"), "train") == expected


def test_same_classes_ignore_names_that_one_side_lacks():
    named = (ClassInfo(0, "zero", "c0"), ClassInfo(1, "one", "c1"))
    require_same_classes(named, "a", (ClassInfo(0, "0"), ClassInfo(1, "1")), "b")
    with pytest.raises(InputError, match=r"label 1 is 'one' \(c1\) in a and 'uno' \(c1\) in b"):
        require_same_classes(named, "a", (named[0], ClassInfo(1, "uno", "c1")), "b")
    with pytest.raises(InputError, match="a has 2 classes and b has 1"):
        require_same_classes(named, "a", named[:1], "b")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([("a", ""), ("a", ""), ("a (0)", ""), ("z", "")], ("a (#0)", "a (1)", "a (0)", "z")),
        ([("a (#0)", ""), ("a", "n1"), ("a", "n1"), ("a (1)", "")], ("a (#0)", "a (#1)", "a (2)", "a (1)")),
        ([("a", "1"), ("a", ""), ("b", ""), ("a (1)", "")], ("a (0)", "a (#1)", "b", "a (1)")),
    ],
)
def test_no_two_classes_come_to_one_name(classes, expected):
    infos = tuple(ClassInfo(label, name, wnid) for label, (name, wnid) in enumerate(classes))
    assert distinct_names(infos) == expected
