"""Batches of pixels: the described memory order, exact on every way they come, and views that only renumber."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import pixels as pixels_module
from utils.errors import Terminated
from utils.loading import num_usable_cores
from utils.pixel_views import AllFrames, Mixed, OneFrame, Reordered
from utils.pixels import CachedPixels, DecodedPixels, Pixels, ResidentPixels, to_device

NUM_CLIPS, NUM_FRAMES, HEIGHT, WIDTH = 7, 3, 6, 10
CPU = torch.device("cpu")


def values_of(num_items: int = NUM_CLIPS, num_frames: int = NUM_FRAMES, seed: int = 0) -> np.ndarray:
    """uint8 (N, T, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (num_items, num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def decoded(values: np.ndarray, workers: int = 2) -> DecodedPixels:
    paths = [Path(str(number)) for number in range(len(values))]
    return DecodedPixels(paths, lambda path: values[int(path.name)], values.shape[1:4], workers)


def resident(values: np.ndarray) -> Pixels:
    return to_device(CachedPixels(values), CPU)


def cached_in_threads(values: np.ndarray) -> Pixels:
    return CachedPixels(values, workers=2)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(pixels_module, "_COPY_BYTES", 1)  # so that small batches are copied in threads, too


STORES = {"cached": CachedPixels, "cached in threads": cached_in_threads, "decoded": decoded, "resident": resident}


def expected_batch(items: np.ndarray) -> torch.Tensor:
    """uint8 (B, T, H, W, 3) -> (B, 3, T, H, W)."""
    return torch.from_numpy(items.copy()).permute(0, 4, 1, 2, 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("num_frames", [1, 3])
def test_a_batch_is_its_items_in_the_described_memory_order(store, num_frames):
    values = values_of(num_frames=num_frames)
    pixels, positions = STORES[store](values), [5, 0, 5, 6, 2]
    batch = pixels.gather(positions)
    assert batch.dtype == torch.uint8 and torch.equal(batch, expected_batch(values[positions]))
    assert batch.permute(2, 0, 3, 4, 1).is_contiguous(), "memory is (T, B, H, W, C)"
    frames = batch.permute(2, 0, 1, 3, 4).reshape(num_frames * 5, 3, HEIGHT, WIDTH)
    assert frames.data_ptr() == batch.data_ptr(), "the frames as a batch are a view"
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert (len(pixels), pixels.item_shape) == (NUM_CLIPS, (num_frames, HEIGHT, WIDTH))
    assert pixels.num_bytes == values.nbytes


@pytest.mark.parametrize("store", STORES)
def test_positions_are_a_tensor_or_a_list_and_exist(store):
    values = values_of()
    pixels = STORES[store](values)
    assert torch.equal(pixels.gather(torch.tensor([1, 3])), expected_batch(values[[1, 3]]))
    assert pixels.gather([]).shape == (0, 3, NUM_FRAMES, HEIGHT, WIDTH)
    for wrong in ([0, NUM_CLIPS], [-1, 0]):
        with pytest.raises(IndexError, match=r"positions must be in 0\.\.6"):
            pixels.gather(wrong)


@pytest.mark.parametrize("store", ["cached", "cached in threads", "decoded"])
def test_buffers_take_turns_so_that_the_previous_batch_is_valid(store):
    values = values_of()
    pixels = STORES[store](values)
    batches = [pixels.gather([first, first + 1]) for first in range(2)]
    for first in range(2, 6):
        addresses = {batch.data_ptr() for batch in batches}
        batches = [batches[1], pixels.gather([first, first + 1])]
        assert batches[1].data_ptr() in addresses, "no new memory"
        assert torch.equal(batches[0], expected_batch(values[[first - 1, first]]))
        assert torch.equal(batches[1], expected_batch(values[[first, first + 1]]))
    larger = pixels.gather([0, 1, 2, 3])
    assert torch.equal(larger, expected_batch(values[:4]))
    assert torch.equal(batches[1], expected_batch(values[[5, 6]])), "a larger batch takes the other buffer"
    assert torch.equal(pixels.gather([6]), expected_batch(values[[6]])), "the tail of an epoch is smaller"


def test_each_file_of_a_batch_is_decoded_once():
    values, read = values_of(), []
    paths = [Path(str(number)) for number in range(NUM_CLIPS)]
    pixels = DecodedPixels(paths, lambda path: read.append(path.name) or values[int(path.name)], values.shape[1:4], 1)
    pixels.gather([4, 4, 2, 4])
    AllFrames(pixels).gather([3, 5, 4])  # three frames of clip 1
    assert read == ["2", "4", "1"]


def test_pixels_go_to_the_device_where_they_fit(monkeypatch):
    values = values_of()
    pixels = CachedPixels(values)
    monkeypatch.setattr(pixels_module, "_LOAD_BYTES", 4 * HEIGHT * WIDTH * 3)  # four frames at a time: six parts
    monkeypatch.setattr(pixels_module, "free_memory_bytes", lambda device: 2 * values.nbytes)
    parts = []
    moved = to_device(pixels, CPU, 0.5, lambda: parts.append(None))
    assert isinstance(moved, ResidentPixels) and len(parts) == 6
    assert torch.equal(moved.gather(range(NUM_CLIPS)), expected_batch(values))
    assert to_device(pixels, CPU, 0.49) is pixels
    view = AllFrames(pixels)
    assert to_device(view, CPU, 0.49) is view


def test_loading_to_the_device_can_be_ended():
    def stop() -> None:
        raise Terminated

    with pytest.raises(Terminated):
        to_device(CachedPixels(values_of()), CPU, on_item=stop)


def views() -> dict:
    """A view, and the items it must have: uint8 (N', T', H, W, 3)."""
    clips, images = values_of(), values_of(5, 1)
    frames = clips.reshape(-1, 1, HEIGHT, WIDTH, 3)
    return {
        "all frames": (clips, AllFrames, frames),
        "first frame": (clips, lambda pixels: OneFrame(pixels, 0), clips[:, :1]),
        "last frame": (clips, lambda pixels: OneFrame(pixels, 2), clips[:, 2:]),
        "static image": (images, lambda pixels: Reordered(pixels, same(0, 3, 5)), images.repeat(3, axis=1)),
        "static frame": (clips, lambda pixels: Reordered(pixels, same(1, 5)), clips[:, 1:2].repeat(5, axis=1)),
        "static of one": (clips, lambda p: Reordered(OneFrame(p, 1), same(0, 2)), clips[:, 1:2].repeat(2, axis=1)),
        "static of all": (clips, lambda p: Reordered(AllFrames(p), same(0, 2, 21)), frames.repeat(2, axis=1)),
        "own orders": (clips, lambda pixels: Reordered(pixels, OWN_ORDERS), own_orders(clips)),
    }


OWN_ORDERS = np.array([[0, 1, 2], [2, 1, 0], [1, 1, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2], [1, 2, 0]])


def own_orders(clips: np.ndarray) -> np.ndarray:
    """Each clip's frames by its row of `OWN_ORDERS`."""
    return np.stack([clip[order] for clip, order in zip(clips, OWN_ORDERS, strict=True)])


def same(frame: int, num_frames: int, num_items: int = NUM_CLIPS) -> np.ndarray:
    """One frame, repeated, of each item."""
    return np.full((num_items, num_frames), frame)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("view", views())
def test_views_are_the_items_they_name(view, store):
    values, build, items = views()[view]
    pixels = build(STORES[store](values))
    assert len(pixels) == len(items) and pixels.item_shape == items.shape[1:4]
    positions = [len(items) - 1, 0, 3, 3]
    for found in (pixels, to_device(pixels, CPU)):
        batch = found.gather(positions)
        assert torch.equal(batch, expected_batch(items[positions]))
        assert batch.permute(2, 0, 3, 4, 1).is_contiguous()
    assert pixels.num_bytes == values.nbytes, "a view copies nothing"
    with pytest.raises(IndexError):
        pixels.gather([len(items)])


def test_views_of_what_is_not_there_are_refused():
    pixels = CachedPixels(values_of())
    with pytest.raises(ValueError, match=r"t must be in 0\.\.2, not 3"):
        OneFrame(pixels, 3)
    with pytest.raises(ValueError, match=r"must name frames 0\.\.2"):
        Reordered(pixels, same(3, 2))
    with pytest.raises(ValueError, match=r"frame_order is \(6, 2\), expected \(7, T\)"):
        Reordered(pixels, same(0, 2, 6))


CLIP_OF_ITEM = [np.array([0, 1]), np.array([], dtype=np.int64), np.array([2]), np.array([3, 4, 5, 6])]


def mixed(probability: float, move=lambda pixels: pixels) -> tuple[Pixels, np.ndarray, np.ndarray]:
    """Mixed pixels, the originals (4, 1, H, W, 3) and the clips (7, T, H, W, 3)."""
    originals, clips = values_of(4, 1, seed=1), values_of()
    return move(Mixed(CachedPixels(originals), CachedPixels(clips), CLIP_OF_ITEM, probability)), originals, clips


def places_of(batch: torch.Tensor, positions: list[int], originals: np.ndarray, clips: np.ndarray) -> list:
    """For each item None (the original) or (number of its clip, frame)."""
    found = []
    for item, position in zip(batch.permute(0, 2, 3, 4, 1).numpy()[:, 0], positions, strict=True):
        if np.array_equal(item, originals[position, 0]):
            found.append(None)
            continue
        candidates = [
            (number, t)
            for number, clip in enumerate(CLIP_OF_ITEM[position])
            for t in range(NUM_FRAMES)
            if np.array_equal(item, clips[clip, t])
        ]
        assert len(candidates) == 1, "an item is its original or a frame of one of its own clips"
        found.append(candidates[0])
    return found


def test_mixing_with_probability_0_gives_the_originals():
    pixels, originals, _ = mixed(0.0)
    assert torch.equal(pixels.gather([3, 1, 0], generator=generator()), expected_batch(originals[[3, 1, 0]]))


def test_mixing_with_probability_1_gives_every_frame_of_the_clips_equally_often():
    pixels, originals, clips = mixed(1.0)
    positions = [0, 1, 2, 3] * 400
    found = places_of(pixels.gather(positions, generator=generator()), positions, originals, clips)
    assert [place for place, position in zip(found, positions, strict=True) if position == 1] == [None] * 400
    for position in (0, 2, 3):
        mine = [place for place, at in zip(found, positions, strict=True) if at == position]
        choices = [(number, t) for number in range(len(CLIP_OF_ITEM[position])) for t in range(NUM_FRAMES)]
        expected = 400 / len(choices)
        for choice in choices:  # within 4.5 standard deviations of a binomial count
            assert abs(mine.count(choice) - expected) < 4.5 * expected**0.5, (position, choice)


def test_mixing_replaces_the_given_share_and_repeats_with_the_seed():
    pixels, originals, clips = mixed(0.3)
    positions = [0, 2, 3] * 500
    batch = pixels.gather(positions, generator=generator(5)).clone()
    replaced = sum(place is not None for place in places_of(batch, positions, originals, clips))
    assert abs(replaced - 450) < 4.5 * (1500 * 0.3 * 0.7) ** 0.5
    assert torch.equal(pixels.gather(positions, generator=generator(5)), batch)
    assert not torch.equal(pixels.gather(positions, generator=generator(6)), batch)
    on_device, *_ = mixed(0.3, lambda pixels: to_device(pixels, CPU))
    assert torch.equal(on_device.gather(positions, generator=generator(5)), batch)
    assert batch.permute(2, 0, 3, 4, 1).is_contiguous()


def test_mixing_what_does_not_fit_is_refused():
    clips, images = CachedPixels(values_of()), CachedPixels(values_of(4, 1))
    with pytest.raises(ValueError, match="do not fit"):
        Mixed(clips, clips, [np.array([0])] * NUM_CLIPS, 0.5)
    with pytest.raises(ValueError, match="3 entries for 4 originals"):
        Mixed(images, clips, [np.array([0])] * 3, 0.5)
    with pytest.raises(TypeError, match="build views below Mixed"):
        Reordered(Mixed(images, clips, [np.array([0])] * 4, 0.5), same(0, 3, 4)).gather([0])


@pytest.fixture
def pinned(monkeypatch) -> list[bool]:
    """Whether each new buffer was asked for in pinned memory, as if there were a GPU."""
    empty, asked = torch.empty, []

    def record(*args, pin_memory: bool = False, **options) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", record)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return asked


@pytest.mark.parametrize("view", ["plain", *views()])
@pytest.mark.parametrize("store", [CachedPixels, decoded], ids=["cached", "decoded"])
def test_memory_is_pinned_only_where_the_caller_asks_for_it(pinned, store, view):
    values, build, _ = views().get(view, (values_of(), lambda pixels: pixels, None))
    pixels = build(store(values))
    pinned.clear()
    pixels.gather([0])
    assert pinned == [False]
    pixels.pin_buffers()
    pixels.gather([0, 1])
    pixels.gather([1, 2])
    assert pinned == [False, True, True]


def test_of_mixed_pixels_only_what_is_shipped_is_pinned(pinned):
    pixels, *_ = mixed(1.0)
    pinned.clear()
    pixels.pin_buffers()
    pixels.gather([0, 2], generator=generator())
    assert pinned == [True, False], "the frames go through the batch of originals"


def test_threads_are_as_many_as_cores_on_every_system(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert num_usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert num_usable_cores() == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_batches_on_a_gpu_are_the_same():
    values, device = values_of(64), torch.device("cuda")
    cached = CachedPixels(values)
    moved = to_device(cached, device)
    assert isinstance(moved, ResidentPixels)
    cached.pin_buffers()
    shipped = []
    for first in range(0, 64, 4):
        batch = cached.gather(range(first, first + 4))
        assert batch.is_pinned()
        shipped.append(batch.to(device))
    assert torch.equal(torch.cat(shipped).cpu(), expected_batch(values))
    assert torch.equal(moved.gather(range(64)).cpu(), expected_batch(values))
    assert moved.gather([1]).device.type == "cuda"
