"""What the benchmark scripts share: their options, and a table that keeps the rows of other configurations."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.config import Settings
from utils.errors import InputError
from utils.files import locked, write_text


def as_overrides(arguments: list[str], settings_class: type[Settings]) -> list[str]:
    """`--device cpu` and `--device=cpu` as `device=cpu`; the common options stay as they are.

    An option that is no key becomes an override too: the settings say which key it may have meant.

    Raises:
        InputError: a key without its value.
    """
    common = {"--config", "--print-config", "--help", "-h"}
    result: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        name, separator, value = argument.partition("=")
        if not argument.startswith("-") or name in common:
            result.append(argument)
            if argument == "--config" and pending:
                result.append(pending.pop(0))
            continue
        key = name.lstrip("-").replace("-", "_")
        has_next = bool(pending) and not re.match(r"-[A-Za-z-]|\w+=", pending[0])
        if not separator and not has_next and key in settings_class.model_fields:
            raise InputError(f"{name} needs a value: write {name} VALUE, or {key}=VALUE")
        value = value if separator or not has_next else pending.pop(0)
        result.append(f"{key}={value}")
    return result


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """All rows of a table; none where there is no table.

    Raises:
        InputError: its columns are not ours.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise InputError(f"{path}: has other columns than this version writes; move it away, or set another output_dir")
    return rows


def append_rows(path: Path, rows: list[dict[str, Any]], columns: Sequence[str], same: Sequence[str]) -> None:
    """Add the rows of one measurement, in the place of those it had; the file is whole at any time.

    Args:
        same: the columns in which rows of one measurement agree.
    """
    with locked(path):
        own = {name: str(_cell(rows[0][name])) for name in same}
        kept = [row for row in read_rows(path, columns) if any(row[name] != value for name, value in own.items())]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *({name: _cell(value) for name, value in row.items()} for row in rows)])
        write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
