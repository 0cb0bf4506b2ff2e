"""Count parameters: of the paper's pair, or of one checkpoint.

python -m Model_Evaluation.parameter_count [checkpoint=FILE | num_classes=10 classifier_width=4096]
"""

from __future__ import annotations

from pathlib import Path

from Model_Evaluation.settings import CostSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, print one line a model."""
    settings = read_settings(CostSettings, __doc__, Path(__file__).with_name("model_costs.yaml"))
    from Model_Evaluation.costs import count_parameters, models_to_count

    for name, model, _ in models_to_count(settings):
        print(f"{name}: {count_parameters(model):,} parameters")


if __name__ == "__main__":
    run_script(main)
