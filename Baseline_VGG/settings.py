"""Settings of the 2-D trainer."""

from __future__ import annotations

from pathlib import Path

from utils.config import InputPath
from utils.settings import TrainingSettings


class BaselineSettings(TrainingSettings):
    """`train.py`; all other keys are described in `utils.settings.TrainingSettings`.

    Attributes:
        data_root: a folder with our image index, or the raw Tiny ImageNet layout.
        wnids_file: one class a line, in label order (raw layout only).
    """

    PAPER = TrainingSettings.PAPER | {"horizontal_flip": True}

    data_root: InputPath
    wnids_file: InputPath | None = None
    output_dir: Path = Path("runs/baseline")
    horizontal_flip: bool = True  # the published code flips for 2-D only
