"""Build the validation set of the chosen classes from val_annotations.txt (or a foldered val/) and index it.

python -m Data_Sourcing.val --config Data_Sourcing/sourcing_config.yaml [raw_root=DIR_OR_ZIP output_dir=DIR ...]
"""

from __future__ import annotations

from pathlib import Path

from Data_Sourcing.settings import SourcingSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, source the val split."""
    settings = read_settings(SourcingSettings, __doc__, Path(__file__).with_name("sourcing_config.yaml"))
    from Data_Sourcing.sourcing import run_sourcing  # heavy imports come after the config has been read

    run_sourcing(settings, "val")


if __name__ == "__main__":
    run_script(main)
