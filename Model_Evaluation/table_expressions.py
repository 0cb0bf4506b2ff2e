"""Arithmetic on the cells of any CSV tables, exactly: `summary.csv[run_id=model3d].top1_fraction * 100`.

A cell is `PATH.csv[column=value, ...].column`. The filters name exactly one row, their values are the cells' own text;
a table of one row needs none. Names with blanks, and values with commas, brackets or blanks at an end, stand in double
quotes. A short name may stand for a path. Cells and plain numbers are combined by `+ - * /` and round brackets,
operators between blanks; `;` separates several expressions.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from utils.errors import InputError

_NAME = r'"[^"]*"|\w+'
_FILTERS = r'\[(?P<filters>(?:"[^"]*"|[^"\]])*)\]'
_TABLE = r'"[^"]+\.csv"|[^\s"\[\]();*+]+\.csv|[A-Za-z]\w*(?!\w|\.csv)'  # a path or a short name
_CELL = re.compile(rf"(?P<table>{_TABLE})(?:{_FILTERS})?\.(?P<column>{_NAME})")
_FILTER = re.compile(rf'\s*(?P<column>{_NAME})\s*=\s*(?P<value>"[^"]*"|[^,"]*?)\s*(?:,|$)')
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_LARGEST_EXPONENT = 400  # a cell of 1e999999999 would be an integer of a gigabyte
_MOST_LISTED = 8


@dataclass(frozen=True)
class Cell:
    """Where a number stands: a table (path or short name), filters (column, text) for the row, and the column."""

    table: str
    filters: tuple[tuple[str, str], ...]
    column: str

    def __str__(self) -> str:
        chosen = ", ".join(f"{column}={value}" for column, value in self.filters)
        return f"{self.table}{f'[{chosen}]' if chosen else ''}.{self.column}"


def evaluate(text: str, read_cell: Callable[[Cell], Fraction]) -> list[Fraction]:
    """Exact values of the expressions in a text.

    Raises:
        InputError: the text does not follow the grammar, or divides by zero; and whatever `read_cell` raises.
    """
    try:
        return _Parser(text, read_cell).parse()
    except RecursionError:
        raise InputError("the tag is malformed: brackets are nested too deeply; simplify it") from None


def read_number(text: str) -> Fraction:
    """A decimal number exactly as it is written.

    Raises:
        ValueError: the text is no finite number, or one of absurd size.
    """
    if not _PLAIN_NUMBER.fullmatch(text):
        raise ValueError(text)
    number = Decimal(text)
    if abs(number.adjusted()) > _LARGEST_EXPONENT:
        raise ValueError(text)
    return Fraction(number)


class _Parser:
    """Recursive descent that computes while it reads; left to right, `*` and `/` before `+` and `-`."""

    def __init__(self, text: str, read_cell: Callable[[Cell], Fraction]) -> None:
        self._text, self._read_cell, self._position = text, read_cell, 0

    def parse(self) -> list[Fraction]:
        values = [self._sum()]
        while self._take(";"):
            values.append(self._sum())
        if self._position < len(self._text.rstrip()):
            raise self._malformed("an operator + - * /, or ';'")
        return values

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+") or self._take("-"):
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._term()
        while sign := self._take("*") or self._take("/"):
            factor = self._term()
            if sign == "/" and factor == 0:
                raise InputError(f"the tag divides by zero: {self._text.strip()!r}; correct it")
            value = value * factor if sign == "*" else value / factor
        return value

    def _term(self) -> Fraction:
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise self._malformed("')'")
            return value
        if match := self._match(_CELL):
            return self._read_cell(self._cell(match))
        if match := self._match(_NUMBER):
            try:
                return read_number(match.group())
            except ValueError:
                raise self._malformed("a number of reasonable size") from None
        raise self._malformed("PATH.csv[column=value].column or a number")

    def _cell(self, match: re.Match[str]) -> Cell:
        filters, text = [], match["filters"] or ""
        position = 0
        while position < len(text):
            item = _FILTER.match(text, position)
            if item is None:
                raise InputError(f"the tag is malformed: filter [{text}]; write [column=value, column=value]")
            filters.append((_unquote(item["column"]), _unquote(item["value"])))
            position = item.end()
        return Cell(_unquote(match["table"]), tuple(filters), _unquote(match["column"]))

    def _take(self, sign: str) -> str:
        self._skip_blanks()
        if not self._text.startswith(sign, self._position):
            return ""
        self._position += len(sign)
        return sign

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._skip_blanks()
        if match := pattern.match(self._text, self._position):
            self._position = match.end()
        return match

    def _skip_blanks(self) -> None:
        while self._text[self._position : self._position + 1].isspace():
            self._position += 1

    def _malformed(self, expected: str) -> InputError:
        rest = self._text[self._position :].strip()
        place = f"at {rest!r}" if rest else "at its end"
        return InputError(f"the tag is malformed {place}; expected {expected}")


@dataclass(frozen=True)
class Tables:
    """CSV files below some folders, each read once; a table is taken from the first folder that has it.

    Attributes:
        short_names: paths by name.
    """

    folders: Sequence[Path]
    short_names: Mapping[str, str]
    _read: dict[str, _Rows] = field(default_factory=dict)

    def read_cell(self, cell: Cell) -> Fraction:
        """The number in a cell, exactly as it is written.

        Raises:
            InputError: no such table or column, filters that match no row or several, or a cell that is no number.
        """
        if cell.table not in self._read:
            self._read[cell.table] = _read_rows(self._find(cell.table))
        rows = self._read[cell.table]
        line, cells = rows.choose(cell)
        text = cells[rows.position(cell.column)]
        try:
            return read_number(text)
        except ValueError:
            shown = f"{text!r}, not a number" if text else "empty"
            raise InputError(f"{cell}: line {line} is {shown}; name another row or column") from None

    def _find(self, table: str) -> Path:
        if not table.endswith(".csv") and table not in self.short_names:
            raise InputError(f"{table!r} is no table; give a path that ends in .csv, or a name for one on this page")
        table = self.short_names.get(table, table)
        if Path(table).is_absolute():
            raise InputError(f"table {table} is an absolute path; give it relative to the page or to tables=DIR")
        for folder in self.folders:
            if (folder / table).is_file():
                return folder / table
        places = " nor in ".join(str(folder) for folder in self.folders)
        raise InputError(
            f"there is no table {table} in {places}; correct its path, or make the table and give tables=DIR"
        )


@dataclass(frozen=True)
class _Rows:
    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]  # with the line each ends on

    def position(self, column: str) -> int:
        count = self.header.count(column)
        if count == 0:
            raise InputError(f"{self.path} has no column {column!r}; it has: {', '.join(self.header)}")
        if count > 1:
            raise InputError(f"{self.path}: column {column!r} stands {count} times in its header; remove the others")
        return self.header.index(column)

    def choose(self, cell: Cell) -> tuple[int, list[str]]:
        wanted = [(self.position(column), value) for column, value in cell.filters]
        found = [row for row in self.rows if all(row[1][position] == value for position, value in wanted)]
        if len(found) == 1:
            return found[0]
        if found:
            lines = ", ".join(str(line) for line, _ in found[:_MOST_LISTED])
            more = ", ..." if len(found) > _MOST_LISTED else ""
            raise InputError(f"{cell} matches {len(found)} rows (lines {lines}{more}); add filters")
        raise InputError(f"{cell} matches none of the {len(self.rows)} rows{self._known(cell)}; correct the filters")

    def _known(self, cell: Cell) -> str:
        """The values of the first filter's column that no row has."""
        for column, value in cell.filters:
            values = list(dict.fromkeys(cells[self.position(column)] for _, cells in self.rows))
            if value not in values:
                more = ", ..." if len(values) > _MOST_LISTED else ""
                return f" ({column} is one of: {', '.join(values[:_MOST_LISTED])}{more})"
        return ""


def _read_rows(path: Path) -> _Rows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save the table as UTF-8 CSV") from None
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: is not CSV ({error}); correct the line") from None
    if not lines:
        raise InputError(f"{path}: is empty; make the table again")
    (_, header), rows = lines[0], lines[1:]
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path} line {line}: has {len(cells)} cells, expected {len(header)}; correct the row")
    return _Rows(path, header, rows)


def _unquote(text: str) -> str:
    return text[1:-1] if text.startswith('"') else text
