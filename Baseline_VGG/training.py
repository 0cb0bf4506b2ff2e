"""Train the 2-D VGG-11 on images: the steps, importable, so that a study can run them in-process."""

from __future__ import annotations

import logging
from pathlib import Path

from Baseline_VGG.settings import BaselineSettings
from Data_Sourcing.image_set import image_set_inputs, read_image_set
from utils.artifacts import require_same_classes
from utils.runs import start_run
from utils.training_files import BEST_FILE, DONE_FILE, RUN_FILES

log = logging.getLogger(__name__)


def run_training(settings: BaselineSettings) -> Path:
    """Train, or resume, or find it done; return the best weights' path."""
    inputs = image_set_inputs(settings.data_root, settings.wnids_file)
    if settings.weights not in ("imagenet", "none"):
        inputs["weights"] = Path(settings.weights)
    run = start_run(settings, owned=RUN_FILES, inputs=inputs, path_keys=("data_root", "wnids_file"))
    best = run.dir / BEST_FILE
    if (run.dir / DONE_FILE).exists():
        log.info("%s is complete; nothing to do", run.dir)
        return best
    train_images = read_image_set(settings.data_root, "train", settings.wnids_file)
    val_images = read_image_set(settings.data_root, "val", settings.wnids_file)
    require_same_classes(train_images.classes, "the train split", val_images.classes, "the val split")

    # Heavy imports wait until the data are known to be good.
    from Baseline_VGG.tiny_imagenet import TinyImageNet
    from Baseline_VGG.vgg_baseline import build_vgg11
    from utils.checkpoints import ModelDescription
    from utils.training import build_recipe, fit
    from utils.utils import set_seed

    recipe = build_recipe(settings.device, settings.precision)
    set_seed(settings.seed, 0)
    options = {"classifier_width": settings.classifier_width, "dropout": settings.dropout}
    model = build_vgg11(len(train_images.classes), settings.weights_argument, **options)
    description = ModelDescription(
        type="baseline",
        options=options,
        classes=train_images.classes,
        input={"kind": "image", "image_size": settings.image_size},
        mean=settings.mean,
        std=settings.std,
        train_input="original",
        protocol=settings.protocol,
        seed=settings.seed,
        selection_split="val",
        epoch=0,
        metric={},
    )
    data = [TinyImageNet(images, image_size=settings.image_size) for images in (train_images, val_images)]
    top1 = fit(model, *data, settings, recipe, description, run.dir)
    log.info("best val top-1 %.3f: %s", top1, best)
    return best
