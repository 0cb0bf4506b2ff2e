"""Read the paper's published result files into our tables, and recompute what its text says from them.

python -m Model_Evaluation.import_published source=DIR output_dir=DIR

The files hold no predictions of single items: there is no predictions.csv, and no paired test is possible.
"""

from __future__ import annotations

from pathlib import Path

from Model_Evaluation.published_settings import ImportSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, check the files against each other, write the tables."""
    settings = read_settings(ImportSettings, __doc__, Path(__file__).with_name("import_published.yaml"))
    from Model_Evaluation.published_results import run_import  # heavy imports come after the config has been read

    run_import(settings)


if __name__ == "__main__":
    run_script(main)
