"""Freed memory is found again: counted in page faults."""

from __future__ import annotations

import resource

import pytest
import torch
from conftest import run_in_child

from utils.host_memory import keep_freed_memory

MIB = 64
# glibc keeps 7 freed pieces of a small size apart. Until these are used up, what lies between two tensors is new each
# time, and the gap a tensor leaves is a few bytes too small for the next one, which is aligned.
TENSORS_TO_SETTLE = 20


def count_faults() -> int:
    """Page faults of the last of many tensors of one size, the others being freed."""
    for _ in range(TENSORS_TO_SETTLE):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensor = torch.ones(MIB * 2**20, dtype=torch.uint8)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        del tensor
    return faults


def check_faults() -> None:
    torch.set_num_threads(1)
    pages = MIB * 2**20 // resource.getpagesize()
    if count_faults() < 0.9 * pages:
        pytest.skip("this system hands out memory in larger pieces")
    assert keep_freed_memory()
    assert count_faults() < 0.1 * pages


def test_a_tensor_takes_the_place_of_the_one_before():
    assert run_in_child(check_faults) == 0
