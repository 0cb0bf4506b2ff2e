"""Train the 2-D VGG-11 on images: the steps, importable, so that a study can run them in-process."""

from __future__ import annotations

import logging
from pathlib import Path

from Baseline_VGG.settings import BaselineSettings
from Data_Sourcing.image_set import image_set_inputs, read_image_set, warn_of_leaks
from utils.indices import require_same_classes
from utils.training_run import BEST_FILE, finished_weights, open_training_run

log = logging.getLogger(__name__)


def run_training(settings: BaselineSettings) -> Path:
    """Train, or resume, or find it done; return the best weights' path."""
    # 1. Open the run, check the data.
    inputs = image_set_inputs(settings.data_root, settings.wnids_file)
    run = open_training_run(settings, inputs, ("data_root", "wnids_file"))
    if (best := finished_weights(run)) is not None:
        return best
    train_images = read_image_set(settings.data_root, "train", settings.wnids_file)
    classes = train_images.classes
    val_images = read_image_set(settings.data_root, "val", settings.wnids_file, num_classes=len(classes))
    require_same_classes(classes, "the train split", val_images.classes, "the val split")
    warn_of_leaks(train_images, val_images)

    # 2. Build the network; heavy imports wait until the data are known to be good.
    from Baseline_VGG.tiny_imagenet import TinyImageNet
    from Baseline_VGG.vgg_baseline import build_vgg11
    from utils.checkpoints import describe_run, require_start_classes
    from utils.devices import describe_device
    from utils.training import build_recipe, fit
    from utils.utils import set_seed

    require_start_classes(settings, classes, train_images.index_path)
    recipe = build_recipe(settings.device, settings.precision)
    set_seed(settings.seed, 0)
    options = {"classifier_width": settings.classifier_width, "dropout": settings.dropout}
    model = build_vgg11(len(classes), settings.weights_argument, **options)

    # 3. Train.
    form = {"kind": "image", "image_size": settings.image_size}
    description = describe_run(settings, "baseline", options, classes, form, train_input="original")
    data = [TinyImageNet(images, image_size=settings.image_size) for images in (train_images, val_images)]
    run.begin(describe_device(recipe.device))
    top1 = fit(model, *data, settings, recipe, description, run.dir)
    log.info("best val top-1 %.3f: %s", top1, run.dir / BEST_FILE)
    return run.dir / BEST_FILE
