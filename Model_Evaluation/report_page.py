"""Parts of the report's page: numbers, tables, rows of dots, figures, the page around them."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

_STYLE = Path(__file__).with_name("report.css")
_MISSING = "\u2013"
_LARGE_BYTES = 150_000  # a larger picture is embedded as JPEG where that is smaller
_JPEG_QUALITY = 78
_CSS_DPI = 96
_MOST_STEPS = 6
_SHORT_WORD = 8

FORMATS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "count": lambda value: f"{int(value):,}",
    "percent": lambda value: f"{100 * value:.1f}",
    "points": lambda value: f"{100 * value:+.1f}",
    "size": lambda value: f"{100 * value:.1f}",
    "p": lambda value: "<0.001" if value < 0.001 else f"{value:.3f}",
    "two": lambda value: f"{value:.2f}",
    "three": lambda value: f"{value:.3f}",
    "signed": lambda value: f"{value:+.2f}",
    "millions": lambda value: f"{value / 1e6:.1f}",
    "measure": lambda value: f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}",
}


def format_value(value: Any, kind: str) -> str:
    """The one way from a table's value to the report's text: `kind` is a name of `FORMATS`, missing is a dash.

    `percent`, `points` (signed) and `size` take fractions; the unit stands in the heading.
    """
    if pd.isna(value) or (isinstance(value, str) and not value):
        return _MISSING
    return FORMATS[kind](value) if kind == "text" else FORMATS[kind](value).replace("-", "\u2212")


def format_interval(row: Mapping[str, Any], low: str, high: str, kind: str) -> str:
    """`low to high`, or a dash where one of them is missing."""
    ends = [format_value(row.get(name), kind) for name in (low, high)]
    return _MISSING if _MISSING in ends else " to ".join(ends)


@dataclass(frozen=True)
class Field:
    """A column of a table in the report.

    Attributes:
        heading: with the unit.
        value: the column's name in the row, or a function of the row that gives text.
        kind: of `format_value`, for a column's name.
        is_prose: long text that is set in lines; all other cells are kept in one.
    """

    heading: str
    value: str | Callable[[Mapping[str, Any]], str]
    kind: str = "text"
    is_prose: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it is set flush right."""
        return self.kind != "text"

    def text_of(self, row: Mapping[str, Any]) -> str:
        """The cell's text, not yet escaped."""
        return format_value(row.get(self.value), self.kind) if isinstance(self.value, str) else self.value(row)


def table_html(
    caption: str,
    fields: list[Field],
    rows: Iterable[Mapping[str, Any]],
    marked: Callable[[Mapping], bool] | None = None,
) -> str:
    """A table that scrolls in its own box; the first column heads its row.

    Args:
        marked: rows that are set off.
    """
    head = "".join(f'<th scope="col"{_class_of(entry)}>{escape(entry.heading)}</th>' for entry in fields)
    body = []
    for row in rows:
        cells = [f'<th scope="row" class="keep"><code>{breakable(fields[0].text_of(row))}</code></th>']
        cells += [f"<td{_class_of(entry)}>{breakable(entry.text_of(row))}</td>" for entry in fields[1:]]
        style = ' class="marked"' if marked and marked(row) else ""
        body.append(f"<tr{style}>{''.join(cells)}</tr>")
    label = escape(caption, quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">\n<table>\n'
        f"<caption><span>{breakable(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n"
        "</tbody>\n</table>\n</div>"
    )


@dataclass(frozen=True)
class DotRow:
    """One interval in a list of them; values in the axis' unit, any of them NaN where it is not known.

    Attributes:
        text: the numbers, for those who see no dots.
        points: smaller dots.
        style: `first` (round marks), `second` (square ones), or either with ` open`.
    """

    label: str
    low: float
    middle: float
    high: float
    text: str
    points: tuple[float, ...] = ()
    style: str = "first"


def dots_html(rows: list[DotRow], unit: str, *, with_zero: bool = False) -> str:
    """A list of dots with their intervals on one axis, that reflows on a narrow page."""
    values = [value for row in rows for value in (row.low, row.middle, row.high, *row.points) if not math.isnan(value)]
    values += [0.0] if with_zero else []
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin
    ticks = nice_ticks(low, high)

    def place(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    grid = "".join(
        f'<line class="{"zero" if with_zero and tick == 0 else "grid"}" x1="{place(tick)}" x2="{place(tick)}" '
        'y1="0" y2="100%"/>'
        for tick in ticks
    )
    items = [_dot_row_html(row, grid, place) for row in rows]
    numbers = "".join(
        f'<text x="{place(tick)}" y="60%" text-anchor="middle">{format_value(tick, "measure")}</text>' for tick in ticks
    )
    axis = (
        f'<li aria-hidden="true"><span class="label"></span><svg>{numbers}</svg><span class="value">{unit}</span></li>'
    )
    return '<ul class="dots">\n' + "\n".join([*items, axis]) + "\n</ul>"


def nice_ticks(low: float, high: float) -> list[float]:
    """A few round numbers between two, at most seven."""
    exponent = math.floor(math.log10((high - low) / _MOST_STEPS))
    steps = [factor * 10.0**power for power in (exponent, exponent + 1) for factor in (1, 2, 5)]
    step = next(step for step in steps if (high - low) / step <= _MOST_STEPS)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


@dataclass
class Pictures:
    """Embeds pictures while there is room.

    Attributes:
        max_bytes: of all embedded pictures together.
        left_out: names of those that did not fit.
    """

    folder: Path
    max_bytes: int
    left_out: list[str] = field(default_factory=list)

    def names(self, pattern: str) -> list[str]:
        """Pictures in the folder that match, in order, without suffix."""
        return sorted(path.stem for path in self.folder.glob(f"{pattern}.png"))

    def html(self, name: str, alt: str, caption: str) -> str:
        """A figure with its caption; empty where the picture is not there or does not fit any more."""
        path = self.folder / f"{name}.png"
        if not path.is_file():
            return ""
        kind, content, width, height = _read_picture(path)
        if len(content) > self.max_bytes:
            self.left_out.append(path.name)
            return ""
        self.max_bytes -= len(content)
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        image = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(alt, quote=True)}">'
        return (
            f'<figure>\n<div class="card" tabindex="0" role="group" aria-label="{escape(caption, quote=True)}">'
            f"{image}</div>\n<figcaption>{breakable(caption)}</figcaption>\n</figure>"
        )

    def description(self, name: str) -> str:
        """The text alternative that a picture brings along, or nothing."""
        with Image.open(self.folder / f"{name}.png") as image:
            return str(getattr(image, "text", {}).get("Description", ""))


def details_html(summary: str, body: str, *, is_open: bool = False) -> str:
    """A part that can be opened and closed."""
    return f"<details{' open' if is_open else ''}>\n<summary>{breakable(summary)}</summary>\n{body}\n</details>"


def section_html(heading: str, parts: list[str]) -> str:
    """A section with its heading, or nothing where there is nothing to say."""
    parts = [part for part in parts if part]
    if not parts:
        return ""
    return f'<section id="{_anchor(heading)}">\n<h2>{escape(heading)}</h2>\n' + "\n".join(parts) + "\n</section>"


def page_html(title: str, header: str, sections: list[tuple[str, str]]) -> str:
    """The whole page.

    Args:
        header: HTML with the page's only h1.
        sections: heading and HTML of each; empty ones are left out.
    """
    sections = [(heading, html) for heading, html in sections if html]
    links = "".join(f'<li><a href="#{_anchor(heading)}">{escape(heading)}</a></li>' for heading, _ in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f'<header>\n{header}\n<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main>\n'
        + "\n".join(html for _, html in sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _dot_row_html(row: DotRow, grid: str, place: Callable[[float], str]) -> str:
    marks = ""
    if not (math.isnan(row.low) or math.isnan(row.high)):
        marks += f'<line class="interval" x1="{place(row.low)}" x2="{place(row.high)}" y1="50%" y2="50%"/>'
    if not math.isnan(row.middle):
        marks += _mean_mark(place(row.middle), row.style.startswith("second"))
    marks += "".join(
        f'<circle class="seed" cx="{place(point)}" cy="84%" r="2"/>' for point in row.points if not math.isnan(point)
    )
    return (
        f'<li class="{row.style}"><span class="label"><code>{breakable(row.label)}</code></span>'
        f'<svg aria-hidden="true">{grid}{marks}</svg><span class="value">{escape(row.text)}</span></li>'
    )


def _mean_mark(x: str, is_square: bool) -> str:
    if is_square:
        return f'<rect class="mean" x="{x}" y="50%" width="9" height="9" transform="translate(-4.5 -4.5)"/>'
    return f'<circle class="mean" cx="{x}" cy="50%" r="5"/>'


def _read_picture(path: Path) -> tuple[str, bytes, int, int]:
    """Kind, bytes, and the size to show it at: as large as it is in print, or pixel by pixel where it says nothing."""
    content, kind = path.read_bytes(), "png"
    with Image.open(path) as image:
        scale = _CSS_DPI / image.info["dpi"][0] if "dpi" in image.info else 1.0
        size = [max(1, round(length * scale)) for length in image.size]
        if len(content) > _LARGE_BYTES:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
            if len(buffer.getvalue()) < len(content):
                content, kind = buffer.getvalue(), "jpeg"
    return kind, content, size[0], size[1]


def _class_of(entry: Field) -> str:
    name = "num" if entry.is_number else "prose" if entry.is_prose else ""
    return f' class="{name}"' if name else ""


def breakable(text: str) -> str:
    """Escaped, with the places where a long name may be broken: behind `/` and `:`, and behind `_` not too soon.

    In tables the style allows it in print only.
    """
    parts: list[str] = []
    for part in re.split(r"(?<=[/:_])(?=\w)", text):
        if parts and parts[-1].endswith("_") and len(parts[-1].split()[-1]) < _SHORT_WORD:
            parts[-1] += part  # `2d_` at the end of a line would read badly
        else:
            parts.append(part)
    return "<wbr>".join(map(escape, parts))


def _anchor(heading: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in heading.lower()).split())
