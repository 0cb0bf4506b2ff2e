"""Train the inflated VGG-11 on clips: the steps, importable, so that a study can run them in-process."""

from __future__ import annotations

import logging
from pathlib import Path

from Inflated_3D_VGG.settings import InflatedSettings
from utils.indices import locate_clip_index, read_clip_index, require_same_classes
from utils.training_run import BEST_FILE, finished_weights, open_training_run

log = logging.getLogger(__name__)


def run_training(settings: InflatedSettings) -> Path:
    """Train, or resume, or find it done; return the best weights' path."""
    # 1. Open the run, check the data.
    train_place = locate_clip_index(settings.data_root, settings.train_csv, "train")
    val_place = locate_clip_index(settings.data_root, settings.val_csv, "val")
    inputs = {"train_index": train_place[0], "val_index": val_place[0]}
    run = open_training_run(settings, inputs, ("data_root", "train_csv", "val_csv"))
    if (best := finished_weights(run)) is not None:
        return best
    num_frames = settings.num_frames
    train_clips = read_clip_index(*train_place, num_classes=settings.num_classes, num_frames=num_frames)
    classes = train_clips.classes
    val_clips = read_clip_index(*val_place, num_classes=len(classes), num_frames=num_frames)
    require_same_classes(classes, "the train split", val_clips.classes, "the val split")
    if absent := sorted(set(range(len(classes))) - set(train_clips.labels)):
        log.warning("%s has no clip of label %s", train_place[0], ", ".join(map(str, absent)))

    # 2. Build the network; heavy imports wait until the data are known to be good.
    from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
    from Inflated_3D_VGG.video_dataset import VideoDataset
    from utils.checkpoints import describe_run, require_start_classes
    from utils.devices import describe_device
    from utils.training import build_recipe, fit
    from utils.utils import set_seed

    require_start_classes(settings, classes, train_clips.index_path)
    recipe = build_recipe(settings.device, settings.precision)
    set_seed(settings.seed, 0)
    options = settings.model_dump(include={"classifier_width", "dropout", "temporal_padding"})
    start = {"init": settings.init, "copy_bn_stats": settings.copy_bn_stats}
    model = build_vgg11_3d(len(classes), settings.weights_argument, **options, **start)

    # 3. Train.
    form = {"kind": "clip", "image_size": settings.image_size, "num_frames": num_frames}
    description = describe_run(settings, "inflated", options, classes, form, train_input=train_clips.clip_kind)
    size = {"num_frames": num_frames, "image_size": settings.image_size}
    data = [VideoDataset(clips, **size) for clips in (train_clips, val_clips)]
    run.begin(describe_device(recipe.device))
    top1 = fit(model, *data, settings, recipe, description, run.dir)
    log.info("best val top-1 %.3f: %s", top1, run.dir / BEST_FILE)
    return run.dir / BEST_FILE
