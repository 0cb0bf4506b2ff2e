"""Train a small Stable Video Diffusion on a folder of clips, from nothing; the result loads like the published one.

python -m Data_Augmentation_SVD.train_small_svd --config Data_Augmentation_SVD/train_small_svd.yaml [key=value ...]
"""

from __future__ import annotations

from pathlib import Path

from Data_Augmentation_SVD.settings import SmallSvdSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, train, write the checkpoint."""
    settings = read_settings(SmallSvdSettings, __doc__, Path(__file__).with_name("train_small_svd.yaml"))
    from Data_Augmentation_SVD.small_svd_training import run_small_svd_training  # heavy imports after the config

    run_small_svd_training(settings)


if __name__ == "__main__":
    run_script(main)
