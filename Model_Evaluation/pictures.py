"""What networks saw of their items, what they answered, and where they looked: sheets of frames, one or two a run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from Model_Evaluation.figures import remove_others, safe_name
from Model_Evaluation.grad_cam import overlay_maps
from Model_Evaluation.heat_maps import GRAD_CAM, ROLLOUT, compute_heat_maps, method_of
from Model_Evaluation.inputs import TestData, build_test_data
from Model_Evaluation.models import InputFormat, describe_input, load_model
from Model_Evaluation.picture_sheet import PictureBlock, write_picture_sheet
from Model_Evaluation.report_page import format_value
from Model_Evaluation.settings import EvaluationSettings, PictureSettings, ScoredModel
from utils.devices import choose_device
from utils.pixels import Pixels

log = logging.getLogger(__name__)
SAMPLES = "samples"  # how the sheets' names begin
_MOST_FRAMES = 8  # of an item on a sheet
_SHORT_ID = 20
_METHODS = {GRAD_CAM: "Grad-CAM for the predicted class", ROLLOUT: "Attention roll-out"}


class Gallery:
    """What models saw, by run and item, and the models themselves.

    Args:
        scored: the settings that each run was scored with.
    """

    def __init__(self, scored: Iterable[EvaluationSettings]) -> None:
        self._models: dict[str, tuple[EvaluationSettings, ScoredModel]] = {}
        for settings in scored:
            self._models |= {model.name: (settings, model) for model in settings.scored_models}
        self._opened: dict[str, tuple[TestData, Pixels, dict[str, int]]] = {}

    def frames(self, run_id: str, item_id: str) -> np.ndarray:
        """What a run's model saw of an item: uint8 (T, H, W, 3)."""
        return self.frames_of_items(run_id, [item_id])[0]

    def frames_of_items(self, run_id: str, item_ids: list[str]) -> np.ndarray:
        """What a run's model saw of items: uint8 (N, T, H, W, 3)."""
        _, pixels, positions = self._open(run_id)
        return pixels.gather([positions[item] for item in item_ids]).permute(0, 2, 3, 4, 1).cpu().numpy().copy()

    def is_fused(self, run_id: str) -> bool:
        """Whether the run's model looked at each frame by itself."""
        return self._open(run_id)[0].is_fused

    def model(self, run_id: str) -> tuple[nn.Module, InputFormat, ScoredModel]:
        """A run's network, on the CPU."""
        settings, model = self._models[run_id]
        form = describe_input(model.type, model.checkpoint, model.data(settings.data))
        return load_model(model.type, model.checkpoint, settings.data.task)[0], form, model

    def device(self, run_id: str) -> torch.device:
        """What the run was scored on."""
        return choose_device(self._models[run_id][0].device)

    def _open(self, run_id: str) -> tuple[TestData, Pixels, dict[str, int]]:
        if run_id not in self._opened:
            settings, model = self._models[run_id]
            data = model.data(settings.data)
            test = build_test_data(model.kind, data, describe_input(model.type, model.checkpoint, data), None)
            positions = {item_id: position for position, item_id in enumerate(test.index.item_ids)}
            self._opened[run_id] = (test, test.open(data.cache_dir, data.workers), positions)
        return self._opened[run_id]


def draw_run_pictures(
    gallery: Gallery, tables: dict[str, pd.DataFrame], run_ids: Iterable[str], folder: Path, settings: PictureSettings
) -> None:
    """Of each run a sheet of sample predictions and one of heat maps of the same items; others' are removed.

    Args:
        tables: measured, by name.
        folder: of figures.
    """
    written: set[str] = set()
    for run_id in run_ids if settings.num_items else ():
        samples = choose_samples(tables, run_id, settings)
        frames = gallery.frames_of_items(run_id, samples["item_id"].tolist())
        path = folder / f"{safe_name(f'{SAMPLES}_{run_id}')}.png"
        write_picture_sheet(path, _sample_blocks(samples, frames), describe_samples(run_id, samples, frames.shape[1]))
        written |= {path.name, *_draw_heat_maps(gallery, run_id, samples, frames, folder)}
    remove_others(folder, [f"{name}_*.png" for name in (SAMPLES, GRAD_CAM, ROLLOUT)], written)


def choose_samples(tables: dict[str, pd.DataFrame], run_id: str, settings: PictureSettings) -> pd.DataFrame:
    """Items of a run: half of them wrong, half right, as far as there are so many; the wrong ones first.

    They come in the order of the SHA-256 of `seed:item_id`, which is the same for all runs, whatever they answered.

    Returns:
        rows of `predictions` with `prob_predicted` and `is_right`.
    """
    rows = tables["predictions"][tables["predictions"]["run_id"] == run_id]
    drawn = [hashlib.sha256(f"{settings.seed}:{item_id}".encode()).digest() for item_id in rows["item_id"]]
    rows = rows.iloc[sorted(range(len(rows)), key=drawn.__getitem__)]
    is_right = rows["label"] == rows["predicted_label"]
    num_wrong = min(int((~is_right).sum()), max(settings.num_items // 2, settings.num_items - int(is_right.sum())))
    chosen = pd.concat([rows[~is_right][:num_wrong], rows[is_right][: settings.num_items - num_wrong]])
    probabilities = tables["probabilities"]
    own = probabilities[(probabilities["run_id"] == run_id) & probabilities["item_id"].isin(chosen["item_id"])]
    highest = own.groupby("item_id")["probability"].max()
    return chosen.assign(
        prob_predicted=highest[chosen["item_id"]].to_numpy(), is_right=chosen["label"] == chosen["predicted_label"]
    )


def describe_samples(run_id: str, samples: pd.DataFrame, num_frames: int) -> str:
    """The sheet's text alternative: every item's answer."""
    answers = "; ".join(", ".join(_answer_lines(row)) for row in samples.to_dict("records"))
    num_right = int(samples["is_right"].sum())
    counts = f"{len(samples)} items, {len(samples) - num_right} wrong and {num_right} right"
    return f"Sample predictions of {run_id}: {counts}{_thinned(num_frames)}. {answers}."


# ---------------------------------------------------------------------------------------------------------------------
# Blocks of the sheets


def _sample_blocks(samples: pd.DataFrame, frames: np.ndarray) -> list[PictureBlock]:
    shown = _shown_frames(frames.shape[1])
    return [
        PictureBlock([*_answer_lines(row), _short(row["item_id"])], [([], frames[number][shown])])
        for number, row in enumerate(samples.to_dict("records"))
    ]


def _draw_heat_maps(gallery: Gallery, run_id: str, samples: pd.DataFrame, frames: np.ndarray, folder: Path) -> set[str]:
    """The sheet's name, or nothing where there is no method for the network."""
    network, form, _ = gallery.model(run_id)
    method, labels = method_of(network), torch.tensor(samples["predicted_label"].to_numpy(dtype=np.int64))
    try:
        network.to(gallery.device(run_id))
        maps = compute_heat_maps(network, form, frames, labels, is_fused=gallery.is_fused(run_id))
    except (ValueError, torch.OutOfMemoryError) as error:  # a picture costs no results
        log.info("no heat maps of %s: %s", run_id, error)
        return set()
    shown = _shown_frames(frames.shape[1])
    blocks = []
    for number, row in enumerate(samples.to_dict("records")):
        overlaid = overlay_maps(frames[number][shown], maps[number][shown])
        line = f"evidence for {row['predicted_class_name']}" if method == GRAD_CAM else "gathered from"
        lines = [*_answer_lines(row), _short(row["item_id"])]
        blocks.append(PictureBlock(lines, [([], frames[number][shown]), ([line], overlaid)]))
    path = folder / f"{safe_name(f'{method}_{run_id}')}.png"
    names = "; ".join(", ".join(_answer_lines(row)) for row in samples.to_dict("records"))
    what = f"{_METHODS[method]} of {run_id} on {len(samples)} items{_thinned(frames.shape[1])}"
    write_picture_sheet(path, blocks, f"{what}. {names}.")
    return {path.name}


def _answer_lines(row: dict[str, Any]) -> list[str]:
    """`wrong: ox taken for lion`, and the probabilities of both."""
    guess, share = row["predicted_class_name"], format_value(row["prob_predicted"], "percent")
    if row["is_right"]:
        return [f"right: {guess}", f"{share} %"]
    true, true_share = row["class_name"], format_value(row["prob_true"], "percent")
    return [f"wrong: {true} taken for {guess}", f"{guess} {share} %; true class {true} {true_share} %"]


def _shown_frames(num_frames: int) -> np.ndarray:
    """Which frames stand on a sheet: all, or of many the centres of equal parts."""
    num_shown = min(num_frames, _MOST_FRAMES)
    return (2 * np.arange(num_shown) + 1) * num_frames // (2 * num_shown)


def _thinned(num_frames: int) -> str:
    return f", {_MOST_FRAMES} of {num_frames} frames each" if num_frames > _MOST_FRAMES else ""


def _short(item_id: str) -> str:
    """The head of a hash; of a path the tail, which tells items apart."""
    return item_id[-_SHORT_ID:] if "/" in item_id or "." in item_id else item_id[:_SHORT_ID]
