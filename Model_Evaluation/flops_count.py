"""Count multiply-accumulates (GMac, 1 MAC = 2 FLOPs): of the paper's pair, or of one checkpoint.

Nominal are those of the network's definition, as ptflops counts them (the paper's figures); executed are those of its
convolutions and products as they run, by torch's FlopCounterMode: four products stand for nine.

python -m Model_Evaluation.flops_count [checkpoint=FILE | image_size=224 num_frames=3 ...]
"""

from __future__ import annotations

from pathlib import Path

from Model_Evaluation.settings import CostSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, print one line a model."""
    settings = read_settings(CostSettings, __doc__, Path(__file__).with_name("model_costs.yaml"))
    from Model_Evaluation.costs import count_executed_macs, count_nominal_macs, models_to_count

    for name, model, input_shape in models_to_count(settings):
        shape = " x ".join(map(str, input_shape))
        nominal, executed = count_nominal_macs(model, input_shape), count_executed_macs(model, input_shape)
        print(f"{name}: {nominal / 1e9:.2f} GMac nominal, {executed / 1e9:.2f} GMac executed ({shape} input)")


if __name__ == "__main__":
    run_script(main)
