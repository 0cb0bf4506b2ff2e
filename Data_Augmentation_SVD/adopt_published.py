"""Give the clips published with the paper what their index lacks: class names, hashes, and the image each was made of.

python -m Data_Augmentation_SVD.adopt_published clips_root=DIR raw_root=DIR output_dir=DIR

The clips stay where they are. Later stages take them from there and the new indices from `output_dir`:
    python -m Inflated_3D_VGG.train3d data_root=CLIPS_ROOT train_csv=OUTPUT_DIR/train.csv val_csv=OUTPUT_DIR/val.csv
    python -m Model_Evaluation.evaluate data.root=CLIPS_ROOT data.val_csv=OUTPUT_DIR/val.csv
"""

from __future__ import annotations

from pathlib import Path

from Data_Augmentation_SVD.settings import AdoptionSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, find the sources, write the indices."""
    settings = read_settings(AdoptionSettings, __doc__, Path(__file__).with_name("adopt_published.yaml"))
    from Data_Augmentation_SVD.adoption import run_adoption  # heavy imports come after the config has been read

    run_adoption(settings)


if __name__ == "__main__":
    run_script(main)
