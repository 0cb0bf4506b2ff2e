"""Recompute every derived table and figure from the measured tables, without a model.

python -m Model_Evaluation.prepare_evaluation_data results_dir=DIR [output_dir=DIR]
"""

from __future__ import annotations

from pathlib import Path

from Model_Evaluation.settings import PrepareSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, derive."""
    settings = read_settings(PrepareSettings, __doc__, Path(__file__).with_name("prepare_evaluation_data.yaml"))
    from Model_Evaluation.derived import write_derived

    output_dir = settings.output_dir or settings.results_dir
    write_derived(settings.results_dir, output_dir)
    print(f"derived tables and figures: {output_dir}")


if __name__ == "__main__":
    run_script(main)
