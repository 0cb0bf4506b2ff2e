"""Train the inflated VGG-11 on clips: the steps, importable, so that a study can run them in-process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from Inflated_3D_VGG.settings import InflatedSettings
from utils.indices import ItemIndex, locate_clip_index, read_clip_splits
from utils.training_run import open_training_run

if TYPE_CHECKING:
    from utils.trainer import Task


def run_training(settings: InflatedSettings) -> Path:
    """Train, or resume, or find it done; return the best weights' path."""
    places = (settings.data_root, settings.train_csv, settings.val_csv)
    inputs = {
        "train_index": locate_clip_index(settings.data_root, settings.train_csv, "train")[0],
        "val_index": locate_clip_index(settings.data_root, settings.val_csv, "val")[0],
    }
    with open_training_run(settings, inputs) as run:
        if run.finished_weights is not None:
            return run.finished_weights
        sizes = {"num_classes": settings.num_classes, "num_frames": settings.num_frames}
        clips = run.ranks.main_first(lambda: read_clip_splits(*places, **sizes))
        return run.train(_build_task(settings, *clips))


def _build_task(settings: InflatedSettings, train: ItemIndex, val: ItemIndex) -> Task:
    from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d  # heavy imports wait until the data are known to be good
    from utils.sources import clip_files
    from utils.trainer import Task

    options = settings.model_dump(include={"classifier_width", "dropout", "temporal_padding", "temporal_conv"})
    start = {"init": settings.init, "copy_bn_stats": settings.copy_bn_stats}
    size = {"num_frames": settings.num_frames, "image_size": settings.image_size}
    return Task(
        network=settings.NETWORK,
        train=clip_files(train, **size),
        val=clip_files(val, **size),
        train_input=train.clip_kind,
        form={"kind": "clip", **size},
        build=lambda: build_vgg11_3d(len(train.classes), settings.weights_argument, **options, **start),
        options=options,
    )
