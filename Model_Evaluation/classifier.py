"""A network's answer for an item: one pass, or the average of several over its frames and views."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from Model_Evaluation.models import InputFormat
from utils.augmentation import Preprocessing
from utils.learner import Recipe

_CROP = 7 / 8  # of the side: what the crops of test-time augmentation keep
_CORNERS = ((0.5, 0.5), (0, 0), (1, 1), (0, 1), (1, 0))  # down, across, as shares of the way
_View = Callable[[torch.Tensor], torch.Tensor]


class Classifier:
    """A network with its normalisation and its passes.

    Args:
        network: in eval mode, on the recipe's device.
        form: what the network sees.
        is_fused: look at each frame by itself and average the probabilities (a network of clips sees it repeated).
        num_views: of test-time augmentation, see `build_views`; their probabilities are averaged.
        num_clips: clips that an item's frames make up, one after the other; their logits are averaged.
    """

    def __init__(
        self,
        network: nn.Module,
        form: InputFormat,
        recipe: Recipe,
        *,
        is_fused: bool = False,
        num_views: int = 1,
        num_clips: int = 1,
    ) -> None:
        self._network, self._form, self._recipe = network, form, recipe
        self._num_clips = num_clips
        self._is_fused, self._views = is_fused, build_views(num_views)
        self._preprocess = Preprocessing(form.mean, form.std)

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, T, H, W), 0..255, anywhere -> normalised float32 of the same shape on the device."""
        return self._preprocess(pixels.to(self._recipe.device))

    @torch.inference_mode()
    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of every pass: (B, 3, T, H, W), from `prepare`, -> (P, B, num_classes); of clips of one item the mean."""
        with self._recipe.autocast():
            logits = torch.stack([self._network(one) for one in self._passes(inputs)])
        return logits if self._num_clips == 1 else logits.unflatten(0, (-1, self._num_clips)).mean(dim=1)

    def probabilities(self, inputs: torch.Tensor) -> np.ndarray:
        """From `prepare`: float64 (B, num_classes), the mean over the passes; NaN where a logit is not finite.

        The order of the passes changes no bit: a sum of floats depends on its order, that of sorted ones does not.
        """
        single = self.logits(inputs).cpu().double().softmax(dim=2).numpy()
        return np.sort(single, axis=0).mean(axis=0)

    def num_passes(self, num_frames: int) -> int:
        """Of the network, for an item of so many frames."""
        return len(self._views) * (num_frames if self._is_fused else self._num_clips)

    def _passes(self, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        for view in self._views:
            seen = view(inputs)
            for clip in seen.chunk(seen.shape[2] if self._is_fused else self._num_clips, dim=2):
                yield self._as_network_input(clip)

    def _as_network_input(self, clip: torch.Tensor) -> torch.Tensor:
        if self._form.num_frames is None:
            return clip[:, :, 0]  # (B, 3, 1, H, W) -> (B, 3, H, W)
        return clip if clip.shape[2] == self._form.num_frames else clip.expand(-1, -1, self._form.num_frames, -1, -1)


def build_views(num_views: int) -> list[_View]:
    """Views of test-time augmentation, each for all frames of a clip alike.

    The first so many of: as it is; mirrored; crops of 7/8 of the side, scaled back, in the centre and at the top left,
    bottom right, top right and bottom left; the same crops mirrored.

    Raises:
        ValueError: there are 12.
    """
    crops = [_crop_at(*corner) for corner in _CORNERS]
    views = [_keep, _mirror, *crops, *(_mirrored(crop) for crop in crops)]
    if not 1 <= num_views <= len(views):
        raise ValueError(f"num_views must be in 1..{len(views)}, not {num_views}")
    return views[:num_views]


def _keep(inputs: torch.Tensor) -> torch.Tensor:
    return inputs


def _mirror(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.flip(-1)


def _mirrored(view: _View) -> _View:
    return lambda inputs: _mirror(view(inputs))


def _crop_at(down: float, across: float) -> _View:
    def crop(inputs: torch.Tensor) -> torch.Tensor:
        batch, channels, num_frames, height, width = inputs.shape
        side = round(_CROP * height), round(_CROP * width)
        top, left = round(down * (height - side[0])), round(across * (width - side[1]))
        part = inputs[..., top : top + side[0], left : left + side[1]]
        frames = part.transpose(1, 2).flatten(0, 1)  # (B, C, T, h, w) -> (B T, C, h, w)
        frames = functional.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
        return frames.view(batch, num_frames, channels, height, width).transpose(1, 2)

    return crop
