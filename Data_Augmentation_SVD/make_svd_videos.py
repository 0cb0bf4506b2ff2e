"""Turn every still image into a short pseudo-video clip and index the clips.

python -m Data_Augmentation_SVD.make_svd_videos --config Data_Augmentation_SVD/train3d_config.yaml [key=value ...]
"""

from __future__ import annotations

from pathlib import Path

from Data_Augmentation_SVD.settings import GenerationSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, generate the clips."""
    settings = read_settings(GenerationSettings, __doc__, Path(__file__).with_name("train3d_config.yaml"))
    from Data_Augmentation_SVD.generation import run_generation  # heavy imports come after the config has been read

    run_generation(settings)


if __name__ == "__main__":
    run_script(main)
