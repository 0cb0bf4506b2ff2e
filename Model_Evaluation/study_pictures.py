"""Pictures of a study that need pixels or weights: training curves, items two arms disagree on, Grad-CAM."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from Model_Evaluation.discordant_sheets import write_discordant_sheets
from Model_Evaluation.grad_cam import compute_grad_cam, write_grad_cam
from Model_Evaluation.inputs import build_test_data
from Model_Evaluation.models import InputFormat, describe_input, load_model
from Model_Evaluation.settings import EvaluationSettings, ScoredModel
from utils.augmentation import Preprocessing
from utils.pixels import Pixels

_CAM_ITEMS = 6


class Gallery:
    """What models of a study saw, by test input and item.

    Args:
        scored: the settings that each run was scored with.
    """

    def __init__(self, scored: Iterable[EvaluationSettings]) -> None:
        self._models: dict[str, tuple[EvaluationSettings, ScoredModel]] = {}
        for settings in scored:
            self._models |= {model.name: (settings, model) for model in settings.scored_models}
        self._opened: dict[str, tuple[Pixels, dict[str, int]]] = {}

    def frames(self, run_id: str, item_id: str) -> np.ndarray:
        """What a run's model saw of an item: uint8 (T, H, W, 3)."""
        return self.frames_of_items(run_id, [item_id])[0]

    def frames_of_items(self, run_id: str, item_ids: list[str]) -> np.ndarray:
        """What a run's model saw of items: uint8 (N, T, H, W, 3)."""
        pixels, positions = self._open(run_id)
        return pixels.gather([positions[item] for item in item_ids]).permute(0, 2, 3, 4, 1).cpu().numpy().copy()

    def model(self, run_id: str) -> tuple[torch.nn.Module, InputFormat, ScoredModel]:
        """A run's network, on the CPU."""
        settings, model = self._models[run_id]
        form = describe_input(model.type, model.checkpoint, model.data(settings.data))
        return load_model(model.type, model.checkpoint)[0], form, model

    def _open(self, run_id: str) -> tuple[Pixels, dict[str, int]]:
        if run_id not in self._opened:
            settings, model = self._models[run_id]
            data = model.data(settings.data)
            test = build_test_data(model.kind, data, describe_input(model.type, model.checkpoint, data), None)
            positions = {item_id: position for position, item_id in enumerate(test.index.item_ids)}
            self._opened[run_id] = (test.open(data.cache_dir, data.workers), positions)
        return self._opened[run_id]


def draw_pictures(gallery: Gallery, tables: dict[str, pd.DataFrame], folder: Path, num_items: int) -> None:
    """Sheets of items that two arms disagree on, and Grad-CAM of the claim's networks.

    Args:
        tables: measured and derived, by name.
        num_items: on a sheet; 0 draws none.
    """
    if num_items == 0:
        return
    write_discordant_sheets(tables, gallery.frames, folder, num_items)
    _draw_grad_cam(gallery, tables["predictions"], folder, min(num_items, _CAM_ITEMS))


def copy_curves(run_dirs: Iterable[Path], folder: Path) -> None:
    """Training curves of finished runs beside the other figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for run_dir in run_dirs:
        if (curves := run_dir / "curves.png").exists():
            shutil.copyfile(curves, folder / f"curves_{run_dir.name}.png")


def _draw_grad_cam(gallery: Gallery, predictions: pd.DataFrame, folder: Path, num_items: int) -> None:
    """Both kinds of networks on the same SVD clips: the first item of each class, explained for its true class."""
    first_seed = predictions[predictions["seed"] == predictions["seed"].min()]
    clips = first_seed[(first_seed["arm"] == "3d_svd") & first_seed["test_input"].str.startswith("clip:")]
    if clips.empty:
        return
    chosen = clips.drop_duplicates("label").head(num_items)
    frames = gallery.frames_of_items(clips["run_id"].iloc[0], chosen["item_id"].tolist())
    labels = torch.tensor(chosen["label"].to_numpy())
    networks = {"3d_svd": clips["run_id"].iloc[0]}
    for arm in ("2d_first_frame", "2d_original"):
        own = first_seed[first_seed["arm"] == arm]
        if len(own):
            networks[arm] = own["run_id"].iloc[0]
            break
    maps = {arm: _maps_of(gallery, run_id, frames, labels) for arm, run_id in networks.items()}
    write_grad_cam(folder / "grad_cam_3d_svd.png", frames, maps, chosen["class_name"].tolist())


def _maps_of(gallery: Gallery, run_id: str, frames: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    """Maps as float (N, T, H, W); a network of images has one of each frame by itself."""
    network, form, _ = gallery.model(run_id)
    inputs = Preprocessing(form.mean, form.std)(torch.from_numpy(frames).permute(0, 4, 1, 2, 3))
    if form.num_frames is not None:
        return compute_grad_cam(network, inputs, labels).numpy()
    single = [compute_grad_cam(network, frame[:, :, 0], labels) for frame in inputs.split(1, dim=2)]
    return torch.cat(single, dim=1).numpy()
