"""Train the 2-D VGG-11: the steps, importable, so that a study can run them in-process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from Baseline_VGG.settings import BaselineSettings
from Data_Sourcing.image_set import image_set_inputs, read_image_set, warn_of_leaks
from utils.indices import ItemIndex, locate_clip_index, read_clip_splits, require_same_classes
from utils.training_run import open_training_run

if TYPE_CHECKING:
    from utils.sources import Source
    from utils.trainer import Task


def run_training(settings: BaselineSettings) -> Path:
    """Train, or resume, or find it done; return the best weights' path."""
    with open_training_run(settings, _find_inputs(settings)) as run:
        if run.finished_weights is not None:
            return run.finished_weights
        return run.train(_build_task(settings, *run.ranks.main_first(lambda: _read_data(settings))))


def _find_inputs(settings: BaselineSettings) -> dict[str, Path]:
    inputs = image_set_inputs(settings.data_root, settings.wnids_file) if settings.uses_images else {}
    if settings.uses_clips:
        for split, csv_path in (("train", settings.train_csv), ("val", settings.val_csv)):
            inputs[f"{split}_clip_index"] = locate_clip_index(settings.clips_root, csv_path, split)[0]
    return inputs


def _read_data(settings: BaselineSettings) -> tuple[tuple[ItemIndex, ItemIndex] | None, ...]:
    """Images and clips, each of both splits; None where they are not looked at."""
    images = _read_images(settings) if settings.uses_images else None
    clips = _read_clips(settings) if settings.uses_clips else None
    if images and clips:
        require_same_classes(images[0].classes, "the image index", clips[0].classes, "the clip index")
    return images, clips


def _read_images(settings: BaselineSettings) -> tuple[ItemIndex, ItemIndex]:
    train = read_image_set(settings.data_root, "train", settings.wnids_file)
    val = read_image_set(settings.data_root, "val", settings.wnids_file, num_classes=len(train.classes))
    require_same_classes(train.classes, "the train split", val.classes, "the val split")
    warn_of_leaks(train, val)
    return train, val


def _read_clips(settings: BaselineSettings) -> tuple[ItemIndex, ItemIndex]:
    places = (settings.clips_root, settings.train_csv, settings.val_csv)
    return read_clip_splits(*places, num_classes=None, num_frames=settings.num_frames)


def _build_task(
    settings: BaselineSettings,
    images: tuple[ItemIndex, ItemIndex] | None,
    clips: tuple[ItemIndex, ItemIndex] | None,
) -> Task:
    from Baseline_VGG.vgg_baseline import build_vgg11  # heavy imports wait until the data are known to be good
    from utils.trainer import Task

    train, val = (
        _build_source(settings, images and images[split], clips and clips[split], is_train=split == 0)
        for split in (0, 1)
    )
    options = {"classifier_width": settings.classifier_width, "dropout": settings.dropout}
    generator = f":{clips[0].clip_kind.removeprefix('clip:')}" if clips else ""
    return Task(
        network=settings.NETWORK,
        train=train,
        val=val,
        train_input=settings.train_input + generator,
        form={"kind": "image", "image_size": settings.image_size},
        build=lambda: build_vgg11(len(train.index.classes), settings.weights_argument, **options),
        options=options,
    )


def _build_source(
    settings: BaselineSettings, images: ItemIndex | None, clips: ItemIndex | None, *, is_train: bool
) -> Source:
    from utils.sources import EveryFrame, FirstFrames, clip_files, image_files, mix_with_frames

    stills = image_files(images, settings.image_size) if images is not None else None
    frames = clip_files(clips, settings.num_frames, settings.image_size) if clips is not None else None
    if settings.train_input == "first_frame":
        return FirstFrames(frames)
    if settings.train_input == "all_frames":
        return EveryFrame(frames)
    if settings.train_input == "mix" and is_train:
        return mix_with_frames(stills, frames, settings.mix_probability)
    return stills
