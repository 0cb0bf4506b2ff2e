"""Tagged numbers of a Markdown page against tables: right ones pass, an edited one is named, a bad tag is no pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import PROJECT

from Model_Evaluation import check_report, import_published
from Model_Evaluation.table_expressions import Cell, evaluate
from Model_Evaluation.tagged_numbers import check_page, rounds_to
from utils.errors import run_script

TABLE = """\
run_id,seed,top1_fraction,num_errors,parameters,gain,note
model2d,,0.542,229,128812810,-0.125,
model3d,0,0.758,121,147248266,0.5,"a, b]"
model3d,1,0.7605,119,147248266,1e-6,
"""
SUMMARY_2D, SUMMARY_3D = "summary.csv[run_id=model2d]", "summary.csv[run_id=model3d, seed=0]"


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("summary.csv").write_text(TABLE)
    return tmp_path


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Check a page of this text."""

    def call(text: str | None, *arguments: str) -> Outcome:
        if text is not None:
            Path("page.md").write_text(text, encoding="utf-8")
            arguments = ("page.md", *arguments)
        monkeypatch.setattr(sys, "argv", ["check_report.py", *arguments])
        capsys.readouterr()
        code = 0
        try:
            run_script(check_report.main)
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    return call


PAGE = f"""\
# Results
<!-- table t = summary.csv -->
Top-1 rises from 54.2 %<!-- = {SUMMARY_2D}.top1_fraction * 100 --> to
**75.8 %**<!-- = {SUMMARY_3D}.top1_fraction * 100 -->, errors fall from 229 -> 121<!-- =
{SUMMARY_2D}.num_errors; {SUMMARY_3D}.num_errors -->: 47.2 %<!-- =
({SUMMARY_2D}.num_errors - {SUMMARY_3D}.num_errors) / {SUMMARY_2D}.num_errors * 100 -->.

| parameters | in 10^6 | gain |
|---|---|---|
| 128,812,810<!-- = t[seed=].parameters --> | 147.2M<!-- = t[seed=0].parameters / 1e6 --> \
| −0.12<!-- = t[seed=].gain --> |
"""


def test_right_page_passes_with_a_count(check):
    outcome = check(PAGE)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout == "page.md: 8 of 8 tagged numbers are right\n" and outcome.stderr == ""


EDITS = {
    "a percentage": ("54.2 %", "54.3 %", "page.md line 3: the page says 54.3, the table says 54.2 "),
    "in bold": ("75.8", "75.9", "page.md line 4: the page says 75.9, the table says 75.8 "),
    "the first of two": ("229 ->", "228 ->", "page.md line 4: the page says 228, the table says 229 "),
    "the last of two": ("121<", "120<", "page.md line 4: the page says 120, the table says 121 "),
    "a computed one": ("47.2 %", "42 %", "page.md line 5: the page says 42, the table says 47.1615721 "),
    "more digits than it has": ("47.2 %", "47.20 %", "page.md line 5: the page says 47.20, the table says 47.16"),
    "with thousands": ("812,810", "812,811", "page.md line 10: the page says 128812811, the table says 128812810 "),
    "a unit that sticks": ("147.2M", "147.3M", "page.md line 10: the page says 147.3, the table says 147.248266 "),
    "the sign": ("\u22120.12<", "0.12<", "page.md line 10: the page says 0.12, the table says -0.125 "),
}


@pytest.mark.parametrize(("old", "new", "says"), EDITS.values(), ids=EDITS)
def test_one_edited_number_is_named_by_its_line(check, old, new, says):
    assert PAGE.count(old) == 1
    outcome = check(PAGE.replace(old, new))
    assert outcome.code == 1 and outcome.stdout == "page.md: 7 of 8 tagged numbers are right\n"
    assert outcome.stderr.startswith(says) and outcome.stderr.count("\n") == 1


def test_all_wrong_numbers_are_named(check):
    text = PAGE
    for old, new, _ in EDITS.values():
        text = text.replace(old, new)
    outcome = check(text)
    assert outcome.code == 1 and outcome.stdout == "page.md: 0 of 8 tagged numbers are right\n"
    assert outcome.stderr.count("page.md line ") == 8


def test_edited_table_makes_the_page_wrong(check):
    Path("summary.csv").write_text(TABLE.replace("229", "230"))
    outcome = check(PAGE)
    assert outcome.code == 1
    assert [line[:16] for line in outcome.stderr.splitlines()] == ["page.md line 4: ", "page.md line 5: "]


NUMBERS = {
    # text before the tag, the expression, exit code
    "tie up": ("0.13", "0.125", 0),
    "tie down": ("0.12", "0.125", 0),
    "beyond a tie": ("0.12", "0.1250001", 1),
    "negative zero": ("-0.00", "0 - 0.001", 0),
    "plus": ("+0.5", f"{SUMMARY_3D}.gain", 0),
    "small, with exponent": ("1e-6", "summary.csv[seed=1].gain", 0),
    "printed exponent": ("1.0e\u22126", "summary.csv[seed=1].gain", 0),
    "range with a hyphen": ("54.2-75.8", f"{SUMMARY_2D}.top1_fraction * 100; {SUMMARY_3D}.top1_fraction * 100", 0),
    "arrow without blanks": ("229->121", f"{SUMMARY_2D}.num_errors; {SUMMARY_3D}.num_errors", 0),
    "words with digits between": ("229 in 2-D (vgg11, top-1) to 121", "229; 121", 0),
    "narrow blanks in thousands": ("128\u202f812\u202f810", f"{SUMMARY_2D}.parameters", 0),
    "brackets and italics": ("(*75.8 %*)", f"{SUMMARY_3D}.top1_fraction * 100", 0),
    "code span": ("`75.8`", f"{SUMMARY_3D}.top1_fraction * 100", 0),
    "unit with a slash": ("264 TFLOP/s", "263.8", 0),
    "no rounding to thousands": ("128,813,000", f"{SUMMARY_2D}.parameters", 1),
    "a product before a sum": ("7", "1 + 2 * 3", 0),
    "from left to right": ("2", "8 / 2 / 2", 0),
    "brackets": ("9", "(1 + 2) * 3", 0),
    "quoted filter": ("0.5", 'summary.csv[note="a, b]"].gain', 0),
    "empty filter": ("229", "summary.csv[seed=].num_errors", 0),
    "unit of two words": ("21.6 percentage points", "21.6", 2),
    "number in a word": ("vgg11", "11", 2),
    "decimal comma": ("75,8", "75.8", 2),
    "thousands of four digits": ("1288,128", "1288128", 2),
    "too few numbers": ("229", "229; 121", 2),
    "a paragraph between": ("229\n\n", "229", 2),
    "a word between": ("229 errors in all", "229", 2),
}


@pytest.mark.parametrize(("shown", "expression", "code"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_as_people_write_them(check, shown, expression, code):
    outcome = check(f"1 and 2\n\n{shown}<!-- = {expression} --> and 3\n")
    assert outcome.code == code, outcome.stdout + outcome.stderr


BAD_TAGS = {
    "no such table": ("nothing.csv[a=1].b", "there is no table nothing.csv in "),
    "absolute path": ("/tmp/summary.csv[a=1].b", "table /tmp/summary.csv is an absolute path"),
    "no such column": (f"{SUMMARY_2D}.top2", "has no column 'top2'; it has: run_id, seed, top1_fraction"),
    "no such filter column": ("summary.csv[run=model2d].seed", "has no column 'run'"),
    "no such row": (
        "summary.csv[run_id=model4d].gain",
        "matches none of the 3 rows (run_id is one of: model2d, model3d)",
    ),
    "no such combination": ("summary.csv[run_id=model2d, seed=1].gain", "matches none of the 3 rows; correct"),
    "several rows": ("summary.csv[run_id=model3d].gain", "matches 2 rows (lines 3, 4); add filters"),
    "no filter": ("summary.csv.gain", "matches 3 rows (lines 2, 3, 4)"),
    "empty cell": (f"{SUMMARY_2D}.seed", "line 2 is empty"),
    "text cell": (f"{SUMMARY_3D}.note", "line 3 is 'a, b]', not a number"),
    "unknown name": ("nowhere[a=1].b", "'nowhere' is no table; give a path that ends in .csv, or a name"),
    "nothing": ("", "malformed at its end; expected PATH.csv"),
    "half a sum": (f"{SUMMARY_2D}.gain +", "malformed at its end"),
    "no operator": (f"{SUMMARY_2D}.gain 100", "malformed at '100'; expected an operator"),
    "open bracket": (f"({SUMMARY_2D}.gain", "malformed at its end; expected ')'"),
    "filter without a value": ("summary.csv[run_id].gain", "filter [run_id]"),
    "no column": ("summary.csv[run_id=model2d]", "malformed at 'summary.csv[run_id=model2d]'"),
    "division by zero": ("1 / (2 - 2)", "divides by zero"),
    "very deep": ("(" * 5000, "brackets are nested too deeply"),
    "very large": ("1e999999999", "malformed"),
}


@pytest.mark.parametrize(("expression", "says"), BAD_TAGS.values(), ids=BAD_TAGS)
def test_bad_tag_is_bad_input_and_named(check, expression, says):
    outcome = check(f"One\n\n121<!-- = {SUMMARY_3D}.num_errors -->\n5<!-- = {expression} -->\n")
    assert outcome.code == 2 and "Traceback" not in outcome.stderr
    assert outcome.stderr.startswith("error: page.md line 4: ") and says in outcome.stderr


def test_bad_tags_are_all_named_and_hide_no_wrong_number(check):
    outcome = check(f"120<!-- = {SUMMARY_3D}.num_errors --> 1<!-- = a.csv.b -->\n\n2<!-- = c.csv.d\n")
    assert outcome.code == 2
    assert "page.md line 1: the page says 120, the table says 121" in outcome.stderr
    assert "there is no table a.csv" in outcome.stderr
    assert "page.md line 3: the tag is malformed: it is not closed" in outcome.stderr


LAYOUTS = {
    "tag begins a line": ("229\n<!-- = 229 -->", 2, "the tag begins a line"),
    "tag leaves its row": ("| 229<!-- =\n229 --> |", 1, "longer than its row of a table"),
    "blank line in a tag": ("229<!-- =\n\n229 -->", 1, "holds a blank line"),
}


@pytest.mark.parametrize(("text", "line", "says"), LAYOUTS.values(), ids=LAYOUTS)
def test_tag_that_would_break_the_rendered_page(check, text, line, says):
    outcome = check(f"{text}\n")
    assert outcome.code == 2 and f"page.md line {line}: " in outcome.stderr and says in outcome.stderr


def test_tag_without_its_sign_is_no_silent_pass(check):
    outcome = check(f"121<!-- = {SUMMARY_3D}.num_errors --> and 5<!-- {SUMMARY_3D}.num_errors -->\n")
    assert outcome.code == 2 and "begin it with <!-- =" in outcome.stderr


@pytest.mark.parametrize(
    "example",
    ["```\n5 <!-- = no.csv.x -->\n```\n", "~~~~ text\n```\n5<!-- = no.csv.x -->\n~~~~\n", "`5<!-- = no.csv.x -->`\n"],
    ids=["fence", "longer fence", "code span"],
)
def test_tag_in_code_is_an_example(check, example):
    outcome = check(f"{example}\n120<!-- = {SUMMARY_3D}.num_errors -->\n")
    line = example.count("\n") + 2
    assert outcome.code == 1 and outcome.stderr.startswith(f"page.md line {line}: the page says 120")


def test_stray_backtick_hides_no_tag(check):
    outcome = check(f"a ` b\n\n120<!-- = {SUMMARY_3D}.num_errors -->\n\nc ` d\n")
    assert outcome.code == 1


def test_two_tables_of_one_name(check):
    outcome = check("<!-- table a = x.csv -->\n\n<!-- table a = y.csv -->\n")
    assert outcome.code == 2 and "page.md line 3: 'a' is the name of x.csv already" in outcome.stderr


def test_other_comments_are_left_alone(check):
    assert check(f"<!-- 7 notes --> 121<!-- = {SUMMARY_3D}.num_errors --> <!-- x = 1 -->\n").code == 0


def test_page_without_tags_is_no_pass(check):
    outcome = check("Top-1 is 75.8 %.\n")
    assert outcome.code == 2 and "page.md: holds no tagged number" in outcome.stderr


BAD_TABLES = {
    "uneven row": (b"a,b\n1\n", "summary.csv line 2: has 1 cells, expected 2"),
    "doubled column": (b"a,a\n1,2\n", "column 'a' stands 2 times"),
    "empty": (b"", "summary.csv: is empty"),
    "not UTF-8": (b"a\n\xff\n", "summary.csv: is not UTF-8"),
    "open quote": (b'a\n"1\n', "is not CSV"),
    "underscore": (b"a\n1_000\n", "'1_000', not a number"),
    "NaN": (b"a\nNaN\n", "'NaN', not a number"),
    "huge exponent": (b"a\n1e99999\n", "not a number"),
}


@pytest.mark.parametrize(("content", "says"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_table_is_named(check, content, says):
    Path("summary.csv").write_bytes(content)
    outcome = check("1<!-- = summary.csv.a -->\n")
    assert outcome.code == 2 and says in outcome.stderr and "Traceback" not in outcome.stderr


def test_tables_folder_comes_before_the_pages_own(check, workplace):
    text = "121<!-- = summary.csv[run_id=model3d, seed=0].num_errors --> 2<!-- = ours/extra.csv.n -->\n"
    outcome = check(text)
    assert outcome.code == 2 and "there is no table ours/extra.csv" in outcome.stderr
    (workplace / "elsewhere" / "ours").mkdir(parents=True)
    Path("elsewhere/ours/extra.csv").write_text("n\n2\n")
    assert check(text, "tables=elsewhere").code == 0
    Path("elsewhere/summary.csv").write_text(TABLE.replace("121", "122"))
    outcome = check(text, "tables=elsewhere")
    assert outcome.code == 1 and "the table says 122" in outcome.stderr


def test_page_in_a_folder_names_tables_from_there(check):
    Path("docs").mkdir()
    Path("docs/page.md").write_text("121<!-- = ../summary.csv[run_id=model3d, seed=0].num_errors -->\n")
    assert check(None, "docs/page.md").code == 0


def test_several_pages(check):
    Path("a b.md").write_text("121<!-- = summary.csv[seed=0].num_errors -->\n")
    Path("c.md").write_text("1\n\n118<!-- = summary.csv[seed=1].num_errors -->\n")
    outcome = check(None, "a b.md", "c.md")
    assert outcome.code == 1 and outcome.stderr.startswith("c.md line 3: the page says 118, the table says 119")
    assert outcome.stdout.splitlines()[0] == "a b.md: 1 of 1 tagged numbers are right"


BAD_ARGUMENTS = {
    "no such page": (["nowhere.md"], "files.0: nowhere.md does not exist"),
    "no such folder": (["page.md", "tables=nowhere"], "tables: nowhere does not exist"),
    "misspelt key": (["page.md", "table=."], "unknown key 'table', did you mean 'tables'?"),
    "a folder as page": (["."], "is a folder; give a Markdown file"),
    "no page": (["files=[]"], "files: is empty"),
    "binary page": (["binary.md"], "binary.md: is not UTF-8"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(check, arguments, says):
    Path("page.md").write_text(PAGE)
    Path("binary.md").write_bytes(b"\xff\xfe\x00")
    outcome = check(None, *arguments)
    assert outcome.code == 2 and says in outcome.stderr and outcome.stderr.count("error: ") == 1


def test_arguments_in_any_order():
    given = ["--config", "my.yaml", "a.md", "tables=t", "b c.md", "--print-config"]
    expected = ["--config", "my.yaml", "tables=t", "--print-config", 'files=["a.md", "b c.md"]']
    assert check_report.files_as_setting(given) == expected


def test_rounding_is_exact():
    third = Fraction(1, 3)
    assert rounds_to(third, Decimal("0.3333")) and not rounds_to(third, Decimal("0.3334"))
    assert rounds_to(Fraction(5, 2), Decimal(2)) and rounds_to(Fraction(5, 2), Decimal(3))
    assert not rounds_to(Fraction(5, 2) + Fraction(1, 10**30), Decimal(2))
    assert evaluate("0.1 + 0.2", lambda cell: Fraction(0)) == [Fraction(3, 10)]


def test_a_path_may_look_like_arithmetic():
    cells = []
    evaluate('a-b/2.csv[x=1].y - "my table.csv"["a b"=" c"]."d e"', lambda cell: cells.append(cell) or Fraction(1))
    assert cells == [Cell("a-b/2.csv", (("x", "1"),), "y"), Cell("my table.csv", (("a b", " c"),), "d e")]


def test_the_papers_numbers_on_a_page(check, real_data, workplace):
    """As the README quotes them: the published tables are imported first."""
    with pytest.MonkeyPatch.context() as patch:
        folder = workplace / "tables" / "published"
        patch.setattr(sys, "argv", ["x", f"source={real_data / 'published_results'}", f"output_dir={folder}"])
        import_published.main()
    claim = "published/published_claims.csv[claim={}].recomputed_value"
    errors = "; ".join(f"published/summary.csv[run_id={run_id}].num_errors" for run_id in ("model2d", "model3d"))
    text = (
        f"54.2 %<!-- = {claim.format('top1_2d')} --> 75.8 %<!-- = {claim.format('top1_3d')} -->\n"
        f"errors 229 -> 121<!-- = {errors} -->: 47.2 %<!-- = {claim.format('error_reduction')} -->\n"
        f"lion +0.36<!-- = {claim.format('f1_gain_lion')} -->, "
        f"red panda +0.18<!-- = {claim.format('f1_gain_red_panda')} -->\n"
    )
    assert check(text, "tables=tables").stdout == "page.md: 7 of 7 tagged numbers are right\n"
    outcome = check(text.replace("47.2", "42"), "tables=tables")
    assert outcome.code == 1 and "page.md line 2: the page says 42, the table says 47.1616" in outcome.stderr
    outcome = check(text)
    assert outcome.code == 2 and "there is no table published/published_claims.csv" in outcome.stderr


@pytest.mark.parametrize("page", ["README.md", "Model_Evaluation/evaluation_results/small_study/README.md"])
def test_our_own_pages_say_what_the_tables_say(page, real_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["x", f"source={real_data / 'published_results'}", f"output_dir={tmp_path / 'published'}"]
    )
    import_published.main()
    numbers, problems = check_page(PROJECT / page, tmp_path)
    assert problems == []
    assert [number for number in numbers if not number.is_right] == []
    assert len(numbers) > 10
