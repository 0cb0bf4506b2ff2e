"""Check every number that a Markdown page quotes with a tag against the tables it names.

python -m Model_Evaluation.check_report FILE ... [tables=DIR]

A tag is an HTML comment right after the number; it is invisible on the rendered page (more in `tagged_numbers.py`):
    Top-1 is 75.8 %<!-- = summary.csv[run_id=model3d].top1_fraction * 100 --> on clips.
Exit codes: 0 all numbers are right, 1 some are wrong (each is named by its line), 2 a tag or its table is at fault.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from Model_Evaluation.tagged_numbers import CheckReportSettings, check_page, describe_wrong
from utils.config import read_settings
from utils.errors import InputError, run_script

EXIT_WRONG_NUMBER = 1


def main() -> None:
    """Read the settings, check the pages, say what is wrong."""
    arguments = files_as_setting(sys.argv[1:])
    settings = read_settings(CheckReportSettings, __doc__, Path(__file__).with_name("check_report.yaml"), arguments)
    problems: list[str] = []
    is_wrong = False
    for page in settings.files:
        numbers, unchecked = check_page(page, settings.tables)
        wrong = [describe_wrong(page, number) for number in numbers if not number.is_right]
        unread = f"; {len(unchecked)} tags could not be checked" if unchecked else ""
        print(f"{page}: {len(numbers) - len(wrong)} of {len(numbers)} tagged numbers are right{unread}", flush=True)
        print("".join(f"{sentence}\n" for sentence in wrong), end="", file=sys.stderr)
        problems += unchecked
        is_wrong |= bool(wrong)
    if problems:
        raise InputError("\n".join(problems))
    if is_wrong:
        sys.exit(EXIT_WRONG_NUMBER)


def files_as_setting(arguments: list[str]) -> list[str]:
    """Command-line arguments with the plain words among them as the setting `files`."""
    files, others = [], []
    for argument, previous in zip(arguments, ["", *arguments], strict=False):
        is_file = "=" not in argument and not argument.startswith("-") and previous != "--config"
        (files if is_file else others).append(argument)
    return [*others, f"files={json.dumps(files, ensure_ascii=False)}"] if files else others


if __name__ == "__main__":
    run_script(main)
