"""Pictures of a study that need pixels or weights: training curves, items two arms disagree on, Grad-CAM."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from Model_Evaluation.discordant_sheets import write_discordant_sheets
from Model_Evaluation.grad_cam import write_grad_cam
from Model_Evaluation.heat_maps import compute_heat_maps
from Model_Evaluation.pictures import Gallery

_CAM_ITEMS = 6


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
    maps = {arm: compute_heat_maps(*gallery.model(run_id)[:2], frames, labels) for arm, run_id in networks.items()}
    write_grad_cam(folder / "grad_cam_3d_svd.png", frames, maps, chosen["class_name"].tolist())
