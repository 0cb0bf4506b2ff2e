"""Published weights: taken from torch's hub folder, and only if they are the file that was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from utils.errors import InputError
from utils.files import sha256_file
from utils.published_weights import read_published_weights


@pytest.fixture
def checkpoints(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_file_that_is_there_is_not_fetched(checkpoints):
    torch.save({"fc.weight": torch.arange(3.0)}, checkpoints / "new.pth")
    name = f"net-{sha256_file(checkpoints / 'new.pth')[:8]}.pth"
    (checkpoints / "new.pth").rename(checkpoints / name)
    state_dict = read_published_weights(f"https://example.org/models/{name}", "weights: pretrained")
    assert list(state_dict) == ["fc.weight"]
    assert state_dict["fc.weight"].tolist() == [0.0, 1.0, 2.0]


def test_another_file_under_its_name_is_refused(checkpoints):
    torch.save({"fc.weight": torch.zeros(3)}, checkpoints / "net-01234567.pth")
    with pytest.raises(
        InputError, match=r"net-01234567\.pth: is not the file that https://.* names \(SHA-256 differs\)"
    ):
        read_published_weights("https://example.org/models/net-01234567.pth", "weights: pretrained")


def test_one_out_of_reach_is_a_sentence_and_leaves_no_file(checkpoints):
    problem = rf"^weights: x cannot be fetched \(.*download https://example\.org/a-01\.pth .* save it as {checkpoints}"
    with pytest.raises(InputError, match=problem):
        read_published_weights("https://example.org/a-01.pth", "weights: x")
    assert list(checkpoints.iterdir()) == []
