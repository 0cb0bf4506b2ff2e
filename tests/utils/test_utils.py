"""Seeds that do not collide, and metrics that count right."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from utils.utils import MeanAggregator, TopKAggregator, derive_seed, progress, set_seed, true_label_ranks


def test_seeds_repeat_and_do_not_collide_where_sums_would():
    assert derive_seed(3, 4) == derive_seed(3, 4)
    assert len({derive_seed(5), derive_seed(5, 0), derive_seed(5, 0, 0)}) == 3
    seeds = {derive_seed(run, epoch) for run in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_set_seed_fixes_all_three_generators():
    set_seed(1, 2)
    first = (np.random.rand(), torch.rand(1).item())
    set_seed(1, 2)
    assert (np.random.rand(), torch.rand(1).item()) == first
    set_seed(2, 1)
    assert (np.random.rand(), torch.rand(1).item()) != first


def test_mean_weighs_batches_by_their_size():
    mean = MeanAggregator()
    mean.update(1.0, 3)
    mean.update(5.0, 1)
    assert mean.mean == 2.0
    assert np.isnan(MeanAggregator().mean)


def test_ranks_break_ties_as_argmax_does():
    scores = np.array([[0.2, 0.5, 0.5], [0.2, 0.5, 0.5], [1.0, 1.0, 1.0]])
    assert true_label_ranks(scores, np.array([1, 2, 2])).tolist() == [1, 2, 3]
    assert scores.argmax(axis=1).tolist() == [1, 1, 0]


def test_top_k_over_batches():
    top = TopKAggregator((1, 2, 4))
    top.update(np.array([[3, 2, 1.0], [3, 2, 1.0]]), np.array([0, 1]))
    top.update(np.array([[3, 2, 1.0]]), np.array([2]))
    assert top.fraction(1) == pytest.approx(1 / 3)
    assert top.fraction(2) == pytest.approx(2 / 3)
    assert top.fraction(4) is None, "fewer classes than k"


def test_progress_logs_a_line_per_n_items_without_a_terminal(caplog):
    with caplog.at_level(logging.INFO):
        assert list(progress(range(7), 7, "clips", every=3)) == list(range(7))
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["clips: 3/7", "clips: 6/7"]
