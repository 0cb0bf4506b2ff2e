"""Other items from the same pixels, without copies: single frames, other orders, originals mixed with frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch

from utils.frame_sampling import FrameSampling
from utils.pixels import Pixels, Positions


class _View(Pixels):
    """Items that other pixels' frames make up."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self.item_shape = (1, *pixels.item_shape[1:])

    def __len__(self) -> int:
        return len(self._pixels)

    @abstractmethod
    def _on(self, pixels: Pixels) -> Pixels:
        """This view of other pixels."""

    @property
    def num_bytes(self) -> int:
        """What they take when resident."""
        return self._pixels.num_bytes

    def pin_buffers(self) -> None:
        """As `Pixels.pin_buffers`."""
        self._pixels.pin_buffers()

    def _gather_frames(self, index: torch.Tensor) -> torch.Tensor:
        return self._pixels._gather_frames(index)

    def _moved_to(self, device: torch.device, on_item: Callable[[], None]) -> Pixels:
        return self._on(self._pixels._moved_to(device, on_item))


class AllFrames(_View):
    """Every frame an item of its own: item i * T + t is frame t of clip i."""

    def __len__(self) -> int:
        return len(self._pixels) * self._pixels.item_shape[0]

    def _frame_index(self, positions: torch.Tensor) -> torch.Tensor:
        num_frames = self._pixels.item_shape[0]
        frames = self._pixels._frame_index(positions // num_frames)  # (T, B)
        return frames.gather(0, (positions % num_frames)[None])  # (1, B)

    def _on(self, pixels: Pixels) -> Pixels:
        return AllFrames(pixels)


class OneFrame(_View):
    """Frame `t` of every clip, from 0."""

    def __init__(self, pixels: Pixels, t: int) -> None:
        super().__init__(pixels)
        if not 0 <= t < pixels.item_shape[0]:
            raise ValueError(f"t must be in 0..{pixels.item_shape[0] - 1}, not {t}")
        self._t = t

    def _frame_index(self, positions: torch.Tensor) -> torch.Tensor:
        return self._pixels._frame_index(positions)[self._t : self._t + 1]  # (1, B)

    def _on(self, pixels: Pixels) -> Pixels:
        return OneFrame(pixels, self._t)


class Reordered(_View):
    """Chosen frames of each item, in a chosen order: still clips, single frames, shuffled and reversed ones.

    Args:
        frame_order: int (N, T), of each item the frames it shows, from 0; may repeat.
    """

    def __init__(self, pixels: Pixels, frame_order: np.ndarray) -> None:
        super().__init__(pixels)
        num_there = pixels.item_shape[0]
        if frame_order.ndim != 2 or len(frame_order) != len(pixels):
            raise ValueError(f"frame_order is {frame_order.shape}, expected ({len(pixels)}, T)")
        if frame_order.size and not 0 <= frame_order.min() <= frame_order.max() < num_there:
            raise ValueError(f"frame_order must name frames 0..{num_there - 1}")
        self._order = torch.as_tensor(frame_order, dtype=torch.int64)
        self.item_shape = (frame_order.shape[1], *pixels.item_shape[1:])

    def _frame_index(self, positions: torch.Tensor) -> torch.Tensor:
        return self._pixels._frame_index(positions).gather(0, self._order[positions].T)  # (T, B) -> (T', B)

    def _on(self, pixels: Pixels) -> Pixels:
        return Reordered(pixels, self._order.numpy())


class DrawnFrames(_View):
    """Clips that are drawn from the stored frames of each video, see `utils.frame_sampling`.

    Args:
        pixels: items of `num_clips * num_frames` frames, as `FrameSampling.stored_frames` orders them.
    """

    def __init__(self, pixels: Pixels, sampling: FrameSampling) -> None:
        super().__init__(pixels)
        if pixels.item_shape[0] != sampling.num_stored:
            raise ValueError(f"items have {pixels.item_shape[0]} frames, but {sampling.num_stored} are to be stored")
        self._sampling = sampling
        self.item_shape = (sampling.num_frames, *pixels.item_shape[1:])

    def gather(self, positions: Positions, generator: torch.Generator | None = None) -> torch.Tensor:
        """As in `Pixels`; with a generator each item's frames are drawn, without one they are always the same."""
        positions = self._checked(positions)
        clips = self._draw(len(positions), generator) if generator else self._fixed(len(positions))
        frames = self._gather_frames(self._frames_of(positions, clips))
        return frames.permute(1, 4, 0, 2, 3)  # (T, B, H, W, C) -> (B, C, T, H, W)

    def _draw(self, num_items: int, generator: torch.Generator) -> torch.Tensor:
        """Which stored clip each frame is of: int64 (T, B)."""
        # One number a frame with either method, so that what one draws shifts nothing in what is drawn after it.
        shares = torch.rand(self.item_shape[0], num_items, generator=generator, dtype=torch.float64)
        if self._sampling.method == "dense":
            shares = shares[:1].expand_as(shares)  # all frames of one window
        return (shares * self._sampling.num_clips).long()

    def _fixed(self, num_items: int) -> torch.Tensor:
        return torch.full((self.item_shape[0], num_items), self._sampling.fixed_clip)

    def _frames_of(self, positions: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """Frame t of clip k of each item: int64 (B,), (T, B) -> int64 (T, B)."""
        num_frames = self.item_shape[0]
        places = clips * num_frames + torch.arange(num_frames)[:, None]
        return self._pixels._frame_index(positions).gather(0, places)  # (K T, B) -> (T, B)

    def _frame_index(self, positions: torch.Tensor) -> torch.Tensor:
        return self._frames_of(positions, self._fixed(len(positions)))

    def _on(self, pixels: Pixels) -> Pixels:
        return DrawnFrames(pixels, self._sampling)


class Mixed(Pixels):
    """Original images, each replaced with probability p by a random frame of one of its clips.

    Args:
        originals: images.
        clips: of the same height and width, and with buffers of their own (no other view of the originals).
        clip_of_item: per original the positions of its clips; one without clips stays as it is.
        probability: 0 gives the originals, 1 a frame of a clip wherever there is one.
    """

    def __init__(
        self, originals: Pixels, clips: Pixels, clip_of_item: Sequence[np.ndarray], probability: float
    ) -> None:
        if originals.item_shape != (1, *clips.item_shape[1:]):
            raise ValueError(f"originals {originals.item_shape} and clips {clips.item_shape} (T, H, W) do not fit")
        if len(clip_of_item) != len(originals):
            raise ValueError(f"clip_of_item has {len(clip_of_item)} entries for {len(originals)} originals")
        self.item_shape = originals.item_shape
        self._originals, self._clips, self._frames = originals, clips, AllFrames(clips)
        self._clip_of_item, self._probability = clip_of_item, probability
        self._counts = torch.tensor([len(clips_of) for clips_of in clip_of_item])
        self._starts = self._counts.cumsum(0) - self._counts
        self._clip_positions = torch.as_tensor(np.concatenate([np.asarray(c, np.int64) for c in clip_of_item]))

    def __len__(self) -> int:
        return len(self._originals)

    @property
    def num_bytes(self) -> int:
        """What they take when resident."""
        return self._originals.num_bytes + self._clips.num_bytes

    def pin_buffers(self) -> None:
        """As `Pixels.pin_buffers`; only batches of originals leave the host."""
        self._originals.pin_buffers()

    def gather(self, positions: Positions, generator: torch.Generator | None = None) -> torch.Tensor:
        """As in `Pixels`; the draws are on the CPU, three an item, whatever comes; the originals without one."""
        positions = self._checked(positions)
        batch = self._originals.gather(positions)
        if generator is None:
            return batch  # what is evaluated must not depend on a draw
        replaced, frames = self._draw(positions, generator)
        if len(replaced):
            images = batch.permute(2, 0, 3, 4, 1)[0]  # (B, 3, 1, H, W) -> (B, H, W, C), as in memory
            images.index_copy_(0, replaced.to(images.device), self._frames.gather(frames).permute(2, 0, 3, 4, 1)[0])
        return batch

    def _draw(self, positions: torch.Tensor, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Which items of the batch are replaced, and by which frames: two int64 (R,)."""
        chance, clip, frame = torch.rand(3, len(positions), generator=generator, dtype=torch.float64)
        counts = self._counts[positions]
        replaced = ((chance < self._probability) & (counts > 0)).nonzero().flatten()
        number = self._starts[positions] + (clip * counts).long()
        num_frames = self._clips.item_shape[0]
        frame_number = (frame * num_frames).long()
        return replaced, self._clip_positions[number[replaced]] * num_frames + frame_number[replaced]

    def _frame_index(self, positions: torch.Tensor) -> torch.Tensor:
        """None: the frames of a draw are in two places."""
        raise TypeError("mixed items are drawn anew in every batch; build views below Mixed, not above it")

    def _gather_frames(self, index: torch.Tensor) -> torch.Tensor:
        """None, see `_frame_index`."""
        raise TypeError("mixed items are drawn anew in every batch; build views below Mixed, not above it")

    def _moved_to(self, device: torch.device, on_item: Callable[[], None]) -> Pixels:
        originals, clips = (pixels._moved_to(device, on_item) for pixels in (self._originals, self._clips))
        return Mixed(originals, clips, self._clip_of_item, self._probability)
