"""Join the indices of a run's shards, after checking that nothing is missing or double.

python -m Data_Augmentation_SVD.merge_shards output_dir=DIR
"""

from __future__ import annotations

from pathlib import Path

from Data_Augmentation_SVD.settings import MergeSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, merge the shards."""
    settings = read_settings(MergeSettings, __doc__, Path(__file__).with_name("merge_shards.yaml"))
    from Data_Augmentation_SVD.shards import merge_shards  # heavy imports come after the config has been read

    merge_shards(settings)


if __name__ == "__main__":
    run_script(main)
