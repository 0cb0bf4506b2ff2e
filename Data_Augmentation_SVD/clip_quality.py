"""Measure clips against their sources and from frame to frame: tables, summary, contact sheet, previews.

python -m Data_Augmentation_SVD.clip_quality clips_root=DIR split=val output_dir=DIR [images_root=DIR key=value ...]
"""

from __future__ import annotations

from pathlib import Path

from Data_Augmentation_SVD.settings import ClipQualitySettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, measure the clips."""
    settings = read_settings(ClipQualitySettings, __doc__, Path(__file__).with_suffix(".yaml"))
    from Data_Augmentation_SVD.quality import run_clip_quality  # heavy imports come after the config has been read

    run_clip_quality(settings)


if __name__ == "__main__":
    run_script(main)
