"""Score models, each on a stated input, and write tables, figures and a summary.

python -m Model_Evaluation.evaluate --config Model_Evaluation/evaluate.yaml [output_dir=DIR data.root=DIR ...]
"""

from __future__ import annotations

from pathlib import Path

from Model_Evaluation.settings import EvaluationSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, evaluate."""
    settings = read_settings(EvaluationSettings, __doc__, Path(__file__).with_name("evaluate.yaml"))
    from Model_Evaluation.evaluation import run_evaluation  # heavy imports come after the config has been read

    run_evaluation(settings)


if __name__ == "__main__":
    run_script(main)
