"""Does motion help? Train and score all arms of a study, compare them, and write tables, a verdict and a report.

python -m Model_Evaluation.study --config Model_Evaluation/study.yaml [--dry-run] [output_dir=DIR seeds=[0] ...]

Run the same command again after an interruption: finished arms are not redone. Exit code 1: all that could be done is
done, but some arms have failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from Model_Evaluation.study_settings import StudySettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, run the study."""
    flags = {"dry_run": "print the plan (runs, time, disk) and stop"}
    settings = read_settings(StudySettings, __doc__, Path(__file__).with_name("study.yaml"), flags=flags)
    from Model_Evaluation.study_journal import ArmsFailed  # heavy imports come after the config has been read
    from Model_Evaluation.study_run import run_study

    try:
        results = run_study(settings)
    except ArmsFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if results is not None:
        print(f"report: {results / 'report.html'}")


if __name__ == "__main__":
    run_script(main)
