"""Train any clip classifier on clips: pseudo-videos or real ones.

python -m Video_Models.train_video --config Video_Models/videomae.yaml [epochs=2 weights=none ...]
"""

from __future__ import annotations

from pathlib import Path

from utils.config import read_settings
from utils.errors import run_script
from Video_Models.settings import VideoSettings


def main() -> None:
    """Read the settings, train."""
    settings = read_settings(VideoSettings, __doc__, Path(__file__).with_name("videomae.yaml"))
    from Video_Models.training import run_training  # heavy imports come after the config has been read

    run_training(settings)


if __name__ == "__main__":
    run_script(main)
