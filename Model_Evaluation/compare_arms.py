"""Train arms that differ in one stated thing, with several seeds each; score and compare them item by item.

python -m Model_Evaluation.compare_arms --config Model_Evaluation/compare_arms.yaml [--dry-run] [seeds=[0] ...]

Run the same command again after an interruption: finished arms are not redone. Exit code 1: all that could be done is
done, but some arms have failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from Model_Evaluation.compare_settings import CompareArmsSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, train and compare."""
    flags = {"dry_run": "print the plan (runs, budget, what differs) and stop"}
    settings = read_settings(CompareArmsSettings, __doc__, Path(__file__).with_name("compare_arms.yaml"), flags=flags)
    from Model_Evaluation.compare_run import run_comparison  # heavy imports come after the config has been read
    from Model_Evaluation.study_journal import ArmsFailed

    try:
        run_comparison(settings)
    except ArmsFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
