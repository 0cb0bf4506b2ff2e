"""Three of the embedded digits as clips of the embedded SVD, and what every family needs to learn them in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import PROJECT

from utils.config import build_settings, read_yaml

NUM_CLASSES = 3
IMAGE_SIZE = 32
_VIT = {"embed_dim": 32, "depths": [1, 2], "num_heads": [1, 2], "stochastic_depth_prob": 0.0}
_TRANSFORMER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_LAYERS = {"layers": [1, 1, 1, 1]}
# What differs from family to family: its architecture, smaller, and a rate that suits it.
LEARNING: dict[str, dict[str, Any]] = {
    "videomae": {"config": _TRANSFORMER | {"patch_size": 8}, "optimizer": "adamw", "lr": 2e-3},
    "timesformer": {"config": _TRANSFORMER | {"patch_size": 8}, "optimizer": "adamw", "lr": 2e-3, "updates": 300},
    "vivit": {"config": _TRANSFORMER | {"tubelet_size": [1, 8, 8]}, "optimizer": "adamw", "lr": 2e-3, "updates": 300},
    "i3d": {"config": {"width_multiplier": 0.25}, "lr": 2e-2},
    "resnet18_3d": {"config": _LAYERS, "lr": 1e-2},
    "resnet50_3d": {"config": _LAYERS, "lr": 1e-2},
    "c3d": {"config": {"width_multiplier": 0.25, "dropout": 0.0}, "lr": 1e-2},
    "resnet18": {"config": _LAYERS, "lr": 1e-2},
    "r3d_18": {"config": _LAYERS, "lr": 1e-2},
    "r2plus1d_18": {"config": _LAYERS, "lr": 1e-2},
    "mvit_v2_s": {"config": _VIT, "optimizer": "adamw", "lr": 2e-3},
    "swin3d_t": {"config": _VIT, "optimizer": "adamw", "lr": 2e-3, "updates": 200},
    "s3d": {"optimizer": "adamw", "lr": 1e-3, "updates": 80},
}


def make_clips(folder: Path, train_per_class: int = 40, val_per_class: int = 20) -> Path:
    """The stages before the clip classifiers; returns the folder of the clips."""
    from Data_Augmentation_SVD.generation import run_generation
    from Data_Augmentation_SVD.settings import GenerationSettings
    from Data_Sourcing.demo_dataset import run_demo_dataset
    from Data_Sourcing.settings import DemoDatasetSettings, SourcingSettings
    from Data_Sourcing.sourcing import run_sourcing

    counts = {"train_per_class": train_per_class, "val_per_class": val_per_class}
    run_demo_dataset(build_settings(DemoDatasetSettings, {"output_dir": str(folder / "raw"), **counts}, "test"))
    sourcing = read_yaml(PROJECT / "Data_Sourcing/demo.yaml")
    sourcing |= {"raw_root": str(folder / "raw"), "output_dir": str(folder / "images")}
    sourcing["classes"] = sourcing["classes"][:NUM_CLASSES]
    for split in ("train", "val"):
        run_sourcing(build_settings(SourcingSettings, sourcing, "test"), split)
    clips = read_yaml(PROJECT / "Data_Augmentation_SVD/demo.yaml")
    clips |= {"data_root": str(folder / "images"), "output_dir": str(folder / "clips")}
    clips["diffusion_model"] = str(PROJECT / clips["diffusion_model"])
    clips["svd"] |= {"num_inference_steps": 4}
    run_generation(build_settings(GenerationSettings, clips, "test"))
    return folder / "clips"


def video_settings(clips: Path, output_dir: Path, family: str, **keys: Any):
    """Settings of a short run on the digits."""
    from Video_Models.settings import VideoSettings

    raw = {
        "data_root": str(clips),
        "output_dir": str(output_dir),
        "family": family,
        "weights": "none",
        "num_frames": 3,
        "image_size": IMAGE_SIZE,
        "batch_size": 8,
        "updates": 40,
        "schedule": "cosine",
        "warmup_updates": 5,
        "device": "cpu",
        "workers": 1,
    }
    return build_settings(VideoSettings, raw | LEARNING[family] | keys, "test")


def train(clips: Path, output_dir: Path, family: str, keys: dict[str, Any]) -> None:
    """In a child: one run, on one thread."""
    import torch

    from Video_Models.training import run_training

    torch.set_num_threads(1)
    run_training(video_settings(clips, output_dir, family, **keys))
