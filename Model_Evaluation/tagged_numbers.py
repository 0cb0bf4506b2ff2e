"""Numbers of a Markdown page that say where they come from, compared with the tables they name.

A tag is an HTML comment, which no reader of the rendered page sees, right after the number and its unit:

    Top-1 rises to 75.8 %<!-- = summary.csv[run_id=model3d].top1_fraction * 100 --> on clips.
    Errors fall from 229 to 121<!-- = a.csv[run_id=2d].num_errors; a.csv[run_id=3d].num_errors -->.

`table_expressions` has the grammar. A tag of n expressions checks the last n numbers before it, in their order; only
the last must be adjacent. A unit is one word (`%`, `ms`, `TFLOP/s`); put the tag before a unit of two. A number must be
the table's value rounded to the digits it shows (an exact tie may go either way): 12,900 is not 12,857, but 12.9 with
`/ 1000` is. It may have thousands commas, an exponent, and a minus sign as on the keyboard or as in print. Nothing is
implied: a percentage is tagged with `* 100`.

A page may name its tables once, for all its tags, and then write `speed[arm=ours].seconds_median`:

    <!-- table speed = benchmarks/benchmark_training.csv -->

A tag may go over several lines, but neither begin one nor leave its row of a table: that would break the page.
Inside fenced code and code spans a comment is text that readers see, an example of a tag: it is not checked, nor are
the numbers in fenced code. Code by indentation is not recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from pathlib import Path

from pydantic import model_validator

from Model_Evaluation.table_expressions import Tables, evaluate, read_number
from utils.config import InputPath, Settings
from utils.errors import InputError

_FENCED = re.compile(r"^ {0,3}(?P<fence>`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)", re.DOTALL | re.M)
_SAME_PARAGRAPH = r"(?:(?!\n[ \t]*\n).)"
_CODE_OR_COMMENT = re.compile(
    rf"(?P<code>(?<!`)(?P<ticks>`+)(?!`){_SAME_PARAGRAPH}+?(?<!`)(?P=ticks)(?!`))"
    r"|<!--(?P<comment>.*?)-->|(?P<unclosed><!--\s*=)",
    re.DOTALL,
)
_SHORT_NAME = re.compile(r"\s*table\s+(?P<name>[A-Za-z]\w*)\s*=\s*(?P<path>\S.*\.csv)\s*")
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
# Neither part of a word (vgg11, top-1) nor of a number that is written in another way (1,5 or 1.2.3).
_NUMBER = (
    r"(?<![^\W_])(?<![.,])(?<![A-Za-z]-)[-+−]?(?:\d{1,3}(?:[,\u2009\u202f]\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+−]?\d+)?"
    r"(?!\d|[.,]\d)"
)
_ANY_NUMBER = re.compile(rf"{_NUMBER}(?!-?[A-Za-z])")  # nor 2-D
_LAST_NUMBER = re.compile(rf"(?P<number>{_NUMBER})(?:\s?[^\s\d|]{{1,20}})?[^\S\n]*$")
_PRINTED = str.maketrans({"−": "-", ",": None, "\u2009": None, "\u202f": None})
_DIGITS_IN_MESSAGES = Context(prec=9)


class CheckReportSettings(Settings):
    """`check_report.py`.

    Attributes:
        files: the Markdown pages; `FILE ...` on the command line.
        tables: a folder where the tables of a tag are looked for first; then they are looked for beside the page.
    """

    files: tuple[InputPath, ...]
    tables: InputPath | None = None

    @model_validator(mode="after")
    def _has_files(self) -> CheckReportSettings:
        if not self.files:
            raise ValueError("files: is empty; give a Markdown file")
        return self


@dataclass(frozen=True)
class _Tag:
    """A tag's place, the text it may speak of (it begins at `before`), its expressions, or why it has none."""

    start: int
    before: int
    expressions: str = ""
    problem: str = ""


@dataclass(frozen=True)
class TaggedNumber:
    """A number on a page, the line it stands on, its tag, and the table's exact value."""

    line: int
    shown: Decimal
    tag: str
    value: Fraction

    @property
    def is_right(self) -> bool:
        """Whether the page shows the table's value."""
        return rounds_to(self.value, self.shown)


def rounds_to(value: Fraction, shown: Decimal) -> bool:
    """Whether a value, rounded to the digits of a shown number, is that number; an exact tie rounds either way."""
    last_digit = Fraction(10) ** shown.as_tuple().exponent
    return 2 * abs(value - Fraction(shown)) <= last_digit


def check_page(page: Path, tables: Path | None = None) -> tuple[list[TaggedNumber], list[str]]:
    """All tagged numbers of a page with their tables' values, and a sentence for each tag that cannot be checked.

    Raises:
        InputError: the page cannot be read, or holds no tag.
    """
    folders = [folder for folder in (tables, page.parent) if folder is not None]
    text = _read_page(page)
    cells = Tables(folders, _read_short_names(text, page))
    numbers: list[TaggedNumber] = []
    problems: list[str] = []
    for tag in _find_tags(text):
        try:
            numbers += _check_tag(text, tag, cells)
        except InputError as error:
            problems.append(f"{page} line {_line_of(text, tag.start)}: {error}")
    if not numbers and not problems:
        raise InputError(f"{page}: holds no tagged number; tag some (<!-- = TABLE.csv[column=value].column -->)")
    return numbers, problems


def describe_wrong(page: Path, number: TaggedNumber) -> str:
    """One sentence on a number that is not the table's."""
    exact = _DIGITS_IN_MESSAGES.divide(Decimal(number.value.numerator), Decimal(number.value.denominator)).normalize()
    return f"{page} line {number.line}: the page says {number.shown}, the table says {exact:f} ({number.tag})"


def _read_page(page: Path) -> str:
    """The page's text, fenced code blanked out, every line in its place."""
    try:
        text = page.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise InputError(f"{page}: is a folder; give a Markdown file") from None
    except UnicodeDecodeError:
        raise InputError(f"{page}: is not UTF-8 text; save it as UTF-8") from None
    return _FENCED.sub(lambda block: "\n" * block.group().count("\n"), text)


def _read_short_names(text: str, page: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for match in _CODE_OR_COMMENT.finditer(text):
        if definition := _SHORT_NAME.fullmatch(match["comment"] or ""):
            name = definition["name"]
            if name in names:
                where = f"{page} line {_line_of(text, match.start())}"
                raise InputError(f"{where}: {name!r} is the name of {names[name]} already; choose another")
            names[name] = definition["path"]
    return names


def _find_tags(text: str) -> Iterator[_Tag]:
    before = 0
    for match in _CODE_OR_COMMENT.finditer(text):
        comment = match["comment"]
        if match["unclosed"]:
            yield _Tag(match.start(), before, problem="the tag is malformed: it is not closed; end it with -->")
        elif comment is not None:
            if comment.lstrip().startswith("="):
                expressions = " ".join(comment.lstrip()[1:].split())
                yield _Tag(match.start(), before, expressions, _layout_problem(text, match))
            elif ".csv[" in comment:
                yield _Tag(match.start(), before, problem="the tag is malformed: begin it with <!-- =")
            before = match.end()


def _layout_problem(text: str, tag: re.Match[str]) -> str:
    """Where a tag would show on the rendered page, or break it; elsewhere it may go over several lines."""
    line_start = text.rfind("\n", 0, tag.start()) + 1
    if not text[line_start : tag.start()].strip():
        return "the tag begins a line, which Markdown takes for a block of HTML; put it behind its number"
    if "\n" in tag.group() and text[line_start : tag.start()].lstrip().startswith("|"):
        return "the tag is longer than its row of a table; put it on one line"
    if _PARAGRAPH_END.search(tag.group()):
        return "the tag holds a blank line, where Markdown ends it; remove the line"
    return ""


def _check_tag(text: str, tag: _Tag, cells: Tables) -> list[TaggedNumber]:
    if tag.problem:
        raise InputError(tag.problem)
    values = evaluate(tag.expressions, cells.read_cell)
    found = _numbers_before(text, tag, len(values))
    return [
        TaggedNumber(_line_of(text, position), shown, tag.expressions, value)
        for (position, shown), value in zip(found, values, strict=True)
    ]


def _numbers_before(text: str, tag: _Tag, count: int) -> list[tuple[int, Decimal]]:
    """The last numbers of the paragraph before a tag, each with its position; the last of them adjacent to it."""
    before = tag.before
    for end in _PARAGRAPH_END.finditer(text, before, tag.start):
        before = end.end()
    last = _LAST_NUMBER.search(text[before : tag.start])
    if last is None:
        raise InputError("no number stands right before the tag; put it after the number and its unit")
    others = list(_ANY_NUMBER.finditer(text[before : before + last.start()]))
    if len(others) < count - 1:
        raise InputError(f"the tag has {count} values, but only {len(others) + 1} numbers stand before it; add some")
    matches = [*((m.start(), m.group()) for m in others[len(others) - count + 1 :]), (last.start(), last["number"])]
    return [(before + position, _read_shown(number)) for position, number in matches]


def _read_shown(number: str) -> Decimal:
    plain = number.translate(_PRINTED)
    try:
        read_number(plain)
    except ValueError:
        raise InputError(f"{number[:40]!r} is no number of reasonable size; correct it") from None
    return Decimal(plain)


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
