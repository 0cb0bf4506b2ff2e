"""Inflate VGG-11 to 3-D and train it on clips.

python -m Inflated_3D_VGG.train3d --config Inflated_3D_VGG/train3d_video.yaml [epochs=2 weights=PATH ...]
"""

from __future__ import annotations

from pathlib import Path

from Inflated_3D_VGG.settings import InflatedSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, train."""
    settings = read_settings(InflatedSettings, __doc__, Path(__file__).with_name("train3d_video.yaml"))
    from Inflated_3D_VGG.training import run_training  # heavy imports come after the config has been read

    run_training(settings)


if __name__ == "__main__":
    run_script(main)
