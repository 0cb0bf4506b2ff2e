"""Write the embedded demo data set: scikit-learn's bundled digits as JPEGs in the raw Tiny ImageNet layout.

python -m Data_Sourcing.demo_dataset --config Data_Sourcing/demo_dataset.yaml [output_dir=DIR train_per_class=60 ...]
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

from Data_Sourcing.settings import DemoDatasetSettings
from utils.config import read_settings
from utils.errors import run_script
from utils.files import write_bytes, write_text
from utils.runs import open_run

log = logging.getLogger(__name__)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Listed in another order than the labels', as the real wnids.txt is, so that the class list has to be respected.
WNID_ORDER = (3, 0, 7, 1, 9, 4, 2, 8, 6, 5)

_DONE_FILE = "words.txt"  # written last


def main() -> None:
    """Read the settings, write the data set."""
    settings = read_settings(DemoDatasetSettings, __doc__, Path(__file__).with_name("demo_dataset.yaml"))
    run_demo_dataset(settings)


def run_demo_dataset(settings: DemoDatasetSettings) -> Path:
    """Write `wnids.txt`, `train/<wnid>/images`, `val/` and, last, `words.txt`; return the folder."""
    run = open_run(settings, owned=("train", "val", "wnids.txt", _DONE_FILE))
    if run.is_done(_DONE_FILE):
        log.info("%s is complete; nothing to do", run.dir)
        return run.dir
    run.begin()
    train, val = _split_digits(settings)
    write_text(run.dir / "wnids.txt", "".join(f"{wnid_of(digit)}\n" for digit in WNID_ORDER))
    for digit, images in enumerate(train):
        for number, image in enumerate(images):
            name = f"train/{wnid_of(digit)}/images/{wnid_of(digit)}_{number}.JPEG"
            write_bytes(run.dir / name, _encode_jpeg(image, settings.image_size))
    _write_val(run.dir, val, settings.image_size)
    write_text(run.dir / _DONE_FILE, "".join(f"{wnid_of(digit)}\t{name}\n" for digit, name in enumerate(NAMES)))
    log.info("%d train and %d val images: %s", sum(map(len, train)), sum(map(len, val)), run.dir)
    return run.dir


def wnid_of(digit: int) -> str:
    """The folder name that stands for a WordNet id."""
    return f"digit{digit}"


def _split_digits(settings: DemoDatasetSettings) -> tuple[list, list]:
    """Per digit, disjoint train and val images: lists of ten arrays (N, 8, 8), 0..16."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    generator = np.random.default_rng(settings.seed)
    end = settings.train_per_class + settings.val_per_class
    train, val = [], []
    for digit in range(len(NAMES)):
        order = generator.permutation(np.flatnonzero(digits.target == digit))
        train.append(digits.images[order[: settings.train_per_class]])
        val.append(digits.images[order[settings.train_per_class : end]])
    return train, val


def _write_val(folder: Path, val: list, image_size: int) -> None:
    """Val images of all classes mixed in one folder, as in Tiny ImageNet, with their annotation file."""
    lines = []
    pairs = [(digit, image) for images in zip(*val, strict=True) for digit, image in enumerate(images)]
    for number, (digit, image) in enumerate(pairs):
        write_bytes(folder / f"val/images/val_{number}.JPEG", _encode_jpeg(image, image_size))
        lines.append(f"val_{number}.JPEG\t{wnid_of(digit)}\t0\t0\t{image_size - 1}\t{image_size - 1}\n")
    write_text(folder / "val/val_annotations.txt", "".join(lines))


def _encode_jpeg(image, image_size: int) -> bytes:
    """A digit (8, 8), 0..16, as a JPEG of `image_size` x `image_size` RGB pixels."""
    from PIL import Image

    grey = Image.fromarray((image * (255 / 16)).round().astype("uint8"))
    buffer = io.BytesIO()
    large = grey.resize((image_size, image_size), Image.Resampling.BICUBIC).convert("RGB")
    large.save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


if __name__ == "__main__":
    run_script(main)
