"""Train the inflated VGG-11 on clips: the steps, importable, so that a study can run them in-process."""

from __future__ import annotations

import logging
from pathlib import Path

from Inflated_3D_VGG.settings import InflatedSettings
from utils.artifacts import ItemIndex, locate_clip_index, read_clip_index, require_same_classes
from utils.runs import start_run
from utils.training_files import BEST_FILE, DONE_FILE, RUN_FILES

log = logging.getLogger(__name__)


def run_training(settings: InflatedSettings) -> Path:
    """Train, or resume, or find it done; return the best weights' path."""
    places = {
        "train": locate_clip_index(settings.data_root, settings.train_csv, "train"),
        "val": locate_clip_index(settings.data_root, settings.val_csv, "val"),
    }
    inputs = {f"{split}_index": index_path for split, (index_path, _) in places.items()}
    starts_from_file = settings.weights not in ("imagenet", "none")
    if starts_from_file:
        inputs["weights"] = Path(settings.weights)
    path_keys = ("data_root", "train_csv", "val_csv", *(("weights",) if starts_from_file else ()))
    run = start_run(settings, owned=RUN_FILES, inputs=inputs, path_keys=path_keys)
    best = run.dir / BEST_FILE
    if (run.dir / DONE_FILE).exists():
        log.info("%s is complete; nothing to do", run.dir)
        return best
    train_clips = _read_clips(places["train"], settings, settings.num_classes)
    val_clips = _read_clips(places["val"], settings, len(train_clips.classes))
    require_same_classes(train_clips.classes, "the train split", val_clips.classes, "the val split")

    # Heavy imports wait until the data are known to be good.
    from Inflated_3D_VGG.vgg_inflated import build_vgg11_3d
    from Inflated_3D_VGG.video_dataset import VideoDataset
    from utils.checkpoints import ModelDescription, read_description
    from utils.training import build_recipe, fit
    from utils.utils import set_seed

    if starts_from_file and (source := read_description(Path(settings.weights))) is not None:
        require_same_classes(source.classes, settings.weights, train_clips.classes, str(places["train"][0]))
    recipe = build_recipe(settings.device, settings.precision)
    set_seed(settings.seed, 0)
    options = {
        "classifier_width": settings.classifier_width,
        "dropout": settings.dropout,
        "temporal_padding": settings.temporal_padding,
    }
    model = build_vgg11_3d(
        len(train_clips.classes),
        settings.weights_argument,
        init=settings.init,
        copy_bn_stats=settings.copy_bn_stats,
        **options,
    )
    description = ModelDescription(
        type="inflated",
        options=options,
        classes=train_clips.classes,
        input={"kind": "clip", "image_size": settings.image_size, "num_frames": settings.num_frames},
        mean=settings.mean,
        std=settings.std,
        train_input=train_clips.clip_kind,
        protocol=settings.protocol,
        seed=settings.seed,
        selection_split="val",
        epoch=0,
        metric={},
    )
    size = {"num_frames": settings.num_frames, "image_size": settings.image_size}
    data = [VideoDataset(clips, **size) for clips in (train_clips, val_clips)]
    top1 = fit(model, *data, settings, recipe, description, run.dir)
    log.info("best val top-1 %.3f: %s", top1, best)
    return best


def _read_clips(place: tuple[Path, Path], settings: InflatedSettings, num_classes: int | None) -> ItemIndex:
    index_path, clips_root = place
    return read_clip_index(index_path, clips_root, num_classes=num_classes, num_frames=settings.num_frames)
