"""Which items make which update: a function of seed and epoch alone; every item counted once, whoever computes it."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.batches import Batches, share_update
from utils.errors import InputError
from utils.pixels import CachedPixels, DecodedPixels, Pixels, to_device
from utils.ranks import Ranks

NUM_ITEMS, SIDE = 23, 4
LABELS = np.arange(NUM_ITEMS) % 3


def numbered_pixels() -> Pixels:
    """Item i has the value i in all of its pixels."""
    items = np.broadcast_to(
        np.arange(NUM_ITEMS, dtype=np.uint8)[:, None, None, None, None], (NUM_ITEMS, 1, SIDE, SIDE, 3)
    )
    return CachedPixels(items.copy())


def build(pixels: Pixels | None = None, positions=range(NUM_ITEMS), labels=LABELS, batch_size=4, **options) -> Batches:
    names = [f"item{number}.png" for number in range(NUM_ITEMS)]
    positions = np.array(positions)
    return Batches(
        pixels or numbered_pixels(), labels, names, positions, batch_size=batch_size, is_clip=False, **options
    )


def read(updates) -> list[list[tuple[list[int], list[int], list[float]]]]:
    """Items, labels and shares of each part of each update; copied, because the buffers are used again."""
    return [
        [(part.inputs[:, 0, 0, 0].tolist(), part.target.tolist(), part.shares.tolist()) for part in parts]
        for parts in updates
    ]


def items_in(updates) -> list[int]:
    return [
        item
        for parts in read(updates)
        for items, _, shares in parts
        for item, s in zip(items, shares, strict=True)
        if s
    ]


def test_the_order_depends_on_seed_and_epoch_only():
    one, other = build(seed=3), build(seed=3)
    list(one.epoch(1))  # whatever ran before
    torch.manual_seed(99)
    assert one.order(2).tolist() == other.order(2).tolist()
    orders = {tuple(build(seed=seed).order(epoch).tolist()) for seed in (0, 1, 2) for epoch in (1, 2, 3)}
    assert len(orders) == 9


def test_neither_processes_nor_parts_change_the_order():
    alone = build(seed=5).order(1).tolist()
    assert build(seed=5, ranks=Ranks(1, 2), num_parts=3).order(1).tolist() == alone


def test_an_epoch_has_each_item_once_with_its_own_label():
    positions = [*range(0, NUM_ITEMS, 2), 1]
    batches = build(positions=positions)
    updates = read(batches.epoch(1))
    assert len(updates) == len(batches) == 4
    assert sorted(item for parts in updates for items, *_ in parts for item in items) == sorted(positions)
    for parts in updates:
        for items, labels, shares in parts:
            assert labels == [item % 3 for item in items]
            assert sum(shares) == pytest.approx(1)


def test_the_items_of_an_update_are_those_it_is_made_of():
    batches = build(seed=2)
    for step, parts in enumerate(read(batches.epoch(3))):
        assert parts[0][0] == batches.items_of(3, step).tolist()


def test_an_epoch_begun_at_any_step_has_the_same_rest():
    whole = read(build(seed=1, num_parts=2).epoch(4))
    for start in range(len(whole) + 1):
        assert read(build(seed=1, num_parts=2).epoch(4, start)) == whole[start:]
    assert read(build(seed=1, num_parts=2).epoch(4, 2, 5)) == whole[2:5]


def test_class_balanced_sampling_draws_all_classes_equally_often():
    labels = np.array([0] * 17 + [1] * 4 + [2] * 2)
    batches = build(labels=labels, class_balanced=True)
    drawn = torch.cat([batches.order(epoch) for epoch in range(1, 401)])
    assert len(drawn) == 400 * NUM_ITEMS, "an epoch is as long as without"
    shares = np.bincount(labels[drawn.numpy()]) / len(drawn)
    np.testing.assert_allclose(shares, 1 / 3, atol=5 * (2 / 9 / len(drawn)) ** 0.5)  # five standard deviations
    of_class_1 = np.bincount(drawn[labels[drawn.numpy()] == 1].numpy(), minlength=NUM_ITEMS)[17:21]
    np.testing.assert_allclose(of_class_1 / of_class_1.sum(), 1 / 4, atol=0.04)
    assert batches.order(7).tolist() == build(labels=labels, class_balanced=True).order(7).tolist()


def test_batches_carry_targets_where_they_are_given_and_labels_balance():
    targets = np.stack([np.arange(NUM_ITEMS), -np.ones(NUM_ITEMS, np.int64)], 1)
    batches = build(targets=targets, class_balanced=True, seed=2)
    assert batches.order(3).tolist() == build(class_balanced=True, seed=2).order(3).tolist()
    for parts in batches.epoch(3):
        for part in parts:
            assert part.target.tolist() == [[item, -1] for item in part.inputs[:, 0, 0, 0].tolist()]
    seen = torch.cat([batch.target for batch in batches.in_order()])
    assert torch.equal(seen, torch.tensor(targets))


def test_class_balanced_sampling_leaves_items_with_missing_labels_at_their_rate():
    """Two tasks: 16 and 4 items of two whole combinations, and two partial ones of 2 and 1 items."""
    labels = np.array([0] * 16 + [1] * 4 + [2] * 2 + [3])
    targets = np.array([[0, 0]] * 16 + [[0, 1]] * 4 + [[-1, 1]] * 2 + [[1, -1]])
    batches = build(labels=labels, targets=targets, class_balanced=True)
    drawn = torch.cat([batches.order(epoch) for epoch in range(1, 401)]).numpy()
    shares = np.bincount(labels[drawn]) / len(drawn)
    expected = np.array([10, 10, 2, 1]) / NUM_ITEMS  # the 20 whole items halved, the 3 others as often as shuffled
    np.testing.assert_allclose(shares, expected, atol=5 * (1 / 4 / len(drawn)) ** 0.5)
    of_class_1 = np.bincount(drawn[labels[drawn] == 1], minlength=NUM_ITEMS)[16:20]
    np.testing.assert_allclose(of_class_1 / of_class_1.sum(), 1 / 4, atol=0.04)


def test_class_balanced_sampling_looks_at_the_positions_alone():
    """Whole items that are held out do not make the partial ones count less."""
    labels, targets = np.array([0] * 20 + [1] * 3), np.array([[0, 0]] * 20 + [[0, -1]] * 3)
    batches = build(labels=labels, targets=targets, positions=range(18, 23), class_balanced=True)
    drawn = torch.cat([batches.order(epoch) for epoch in range(1, 1001)]).numpy()
    np.testing.assert_allclose(np.bincount(drawn - 18) / len(drawn), 1 / 5, atol=5 * (4 / 25 / len(drawn)) ** 0.5)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.parametrize("num_items", range(1, 14))
def test_an_update_counts_each_item_once_over_processes_and_parts(num_items, num_parts, num_ranks):
    items = torch.arange(100, 100 + num_items)
    shared = [share_update(items, Ranks(rank, num_ranks), num_parts) for rank in range(num_ranks)]
    assert {len(parts) for parts in shared} == {num_parts}, "each exchange of gradients needs all processes"
    sizes = {len(found) for parts in shared for found, _ in parts}
    assert sizes == {-(-num_items // (num_parts * num_ranks))}
    pairs = [pair for parts in shared for part in parts for pair in zip(*(t.tolist() for t in part), strict=True)]
    counted = [item for item, share in pairs if share > 0]
    assert counted == items.tolist()
    assert sum(share for _, share in pairs) == pytest.approx(1, abs=1e-6)
    assert {share for _, share in pairs if share > 0} == {float(np.float32(1 / num_items))}
    assert {item for item, share in pairs if share == 0} <= {100}, "the first item fills up"


@pytest.mark.parametrize(("num_ranks", "num_parts"), [(2, 1), (1, 3), (2, 2), (3, 2)])
def test_all_processes_together_have_the_updates_of_one(num_ranks, num_parts):
    """23 items by 5: the last update has three, fewer than processes times parts in the last case."""
    alone = [sorted(items) for ((items, *_),) in read(build(batch_size=5).epoch(1))]
    several = [
        read(build(batch_size=5, ranks=Ranks(rank, num_ranks), num_parts=num_parts).epoch(1))
        for rank in range(num_ranks)
    ]
    for step, expected in enumerate(alone):
        assert sorted(items_in_update(updates[step] for updates in several)) == expected


def items_in_update(parts_of_ranks) -> list[int]:
    parts = [part for parts in parts_of_ranks for part in parts]
    return [item for items, _, shares in parts for item, share in zip(items, shares, strict=True) if share > 0]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 30])
def test_evaluation_sees_each_item_once_in_order(num_ranks):
    """With 30 processes some have none of 23 items."""
    seen = [
        batch.inputs[:, 0, 0, 0].tolist()
        for rank in range(num_ranks)
        for batch in build(ranks=Ranks(rank, num_ranks)).in_order()
    ]
    assert [item for items in seen for item in items] == list(range(NUM_ITEMS))
    assert max(map(len, seen)) <= 4


def test_a_part_stays_as_it_is_until_the_next_one_is_asked_for():
    updates = build().epoch(1)
    for _ in range(5):
        (part,) = next(updates)
        before = part.inputs.clone()
        time.sleep(0.02)  # the thread has filled the part after it
        assert torch.equal(part.inputs, before)


def test_batches_gathered_ahead_are_those_gathered_one_by_one():
    batches, plain = build(seed=9), numbered_pixels()
    for step, (part,) in enumerate(batches.epoch(2)):
        assert torch.equal(part.inputs, plain.gather(batches.items_of(2, step)).squeeze(2))


class SlowPixels(DecodedPixels):
    def __init__(self, seconds: float) -> None:
        super().__init__(
            [Path(f"{n}.png") for n in range(NUM_ITEMS)],
            lambda _: np.zeros((1, SIDE, SIDE, 3), np.uint8),
            (1, SIDE, SIDE),
            1,
        )
        self.seconds = seconds

    def gather(self, *args, **options) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().gather(*args, **options)


def test_the_wait_for_pixels_is_measured_and_hidden_behind_the_work():
    eager, busy = build(SlowPixels(0.03)), build(SlowPixels(0.03))
    for _ in map(list, eager.epoch(1)):
        pass
    for _ in map(list, busy.epoch(1)):
        time.sleep(0.06)  # the next one is gathered meanwhile
    assert eager.wait_s > 5 * 0.03, "six updates, none of them hidden"
    assert busy.wait_s < 0.5 * eager.wait_s


@pytest.mark.parametrize("is_training", [True, False])
def test_a_file_that_cannot_be_decoded_reaches_the_caller(is_training):
    def decode(path: Path) -> np.ndarray:
        if path.name == "13.png":
            raise InputError(f"{path}: cannot be decoded; restore or remake it")
        return np.zeros((1, SIDE, SIDE, 3), np.uint8)

    batches = build(DecodedPixels([Path(f"{n}.png") for n in range(NUM_ITEMS)], decode, (1, SIDE, SIDE), 2))
    step = 3 if not is_training else (batches.order(1) == 13).nonzero().item() // 4
    parts = (next(update) for update in batches.epoch(1)) if is_training else batches.in_order()
    assert len(list(islice(parts, step))) == step, "the updates before it are made"
    with pytest.raises(InputError, match=r"^13\.png: cannot be decoded"):
        next(parts)


def test_clips_keep_their_time_axis_and_images_have_none():
    clips = CachedPixels(np.zeros((NUM_ITEMS, 3, SIDE, SIDE, 3), np.uint8))
    batches = Batches(clips, LABELS, ["x"] * NUM_ITEMS, np.arange(NUM_ITEMS), batch_size=4, is_clip=True)
    ((part,), *_) = (list(parts) for parts in batches.epoch(1))
    assert part.inputs.shape == (4, 3, 3, SIDE, SIDE)
    ((part,), *_) = (list(parts) for parts in build().epoch(1))
    assert part.inputs.shape == (4, 3, SIDE, SIDE)


def test_batches_for_the_cpu_leave_a_gpu_alone(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the GPU is used")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("Stream", "Event", "current_stream", "set_device", "set_stream", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    for device in (None, torch.device("cpu")):
        assert sorted(items_in(build(device=device).epoch(1))) == list(range(NUM_ITEMS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("is_resident", [False, True])
def test_batches_for_a_gpu_do_not_queue_behind_its_kernels(is_resident):
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    torch.cuda.set_device(device)
    busy = torch.ones(8192, 8192, device=device)
    pixels = to_device(numbered_pixels(), device) if is_resident else numbered_pixels()
    batches, seen = build(pixels, device=device), []
    torch.cuda.synchronize(device)
    started_s = time.monotonic()
    for (part,) in batches.epoch(1):
        for _ in range(5):
            busy = (busy @ busy).clamp_(0, 1)
        seen.append(part.inputs + 0)  # computed long after the batch is given up here
        assert part.inputs.device == device
        del part
    waited_s = batches.wait_s
    torch.cuda.synchronize(device)
    assert waited_s < 0.2 * (time.monotonic() - started_s)
    found = [inputs.squeeze().flatten(1)[:, 0].tolist() for inputs in seen]
    assert found == [batches.items_of(1, step).tolist() for step in range(len(batches))]
