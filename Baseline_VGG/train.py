"""Train the 2-D VGG-11 baseline on still images.

python -m Baseline_VGG.train --config Baseline_VGG/train_config.yaml [epochs=2 lr=1e-3 ...]
"""

from __future__ import annotations

from pathlib import Path

from Baseline_VGG.settings import BaselineSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, train."""
    settings = read_settings(BaselineSettings, __doc__, Path(__file__).with_name("train_config.yaml"))
    from Baseline_VGG.training import run_training  # heavy imports come after the config has been read

    run_training(settings)


if __name__ == "__main__":
    run_script(main)
