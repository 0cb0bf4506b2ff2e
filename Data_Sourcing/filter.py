"""Filter the raw data set's train images to the chosen classes and index them.

python -m Data_Sourcing.filter --config Data_Sourcing/sourcing_config.yaml [raw_root=DIR_OR_ZIP output_dir=DIR ...]
"""

from __future__ import annotations

from pathlib import Path

from Data_Sourcing.settings import SourcingSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, source the train split."""
    settings = read_settings(SourcingSettings, __doc__, Path(__file__).with_name("sourcing_config.yaml"))
    from Data_Sourcing.sourcing import run_sourcing  # heavy imports come after the config has been read

    run_sourcing(settings, "train")


if __name__ == "__main__":
    run_script(main)
