"""Each way the model hub can fail is one sentence with what to do."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PROJECT
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from utils.errors import InputError
from utils.hub import fetch_snapshot, is_hub_id


def hub_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("no", response=SimpleNamespace(status_code=status, headers={}, request=None))


def unreachable() -> Exception:
    error = LocalEntryNotFoundError("not in the cache")
    error.__cause__ = OSError("no route")
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "full"), "the disk is full while a/b is fetched"),
        (hub_error(GatedRepoError, 401), "a/b is gated and no token was sent; accept its licence"),
        (hub_error(GatedRepoError, 403), "a/b is gated and your token has no access to it; accept its licence"),
        (IncompleteSnapshotError("2 files", "cache"), "the local cache holds only a part of a/b \\(files are missing"),
        (hub_error(RepositoryNotFoundError, 404), "the model hub has no a/b, or it is private"),
        (hub_error(HfHubHTTPError, 503), r"a/b cannot be had from the model hub \(the hub answered 503\)"),
        (unreachable(), r"a/b cannot be had from the model hub \(it cannot be reached\)"),
    ],
)
def test_a_failure_is_one_sentence(error, sentence, monkeypatch):
    def fail(*_args: object, **_options: object) -> str:
        raise RuntimeError("wrapped") from error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=f"^weights: {sentence}") as caught:
        fetch_snapshot("weights", "a/b", ["*.json"])
    assert "\n" not in str(caught.value)


def test_the_folder_is_that_of_the_snapshot(monkeypatch):
    asked = {}

    def fetch(model_id: str, **options: object) -> str:
        asked.update(options, model_id=model_id)
        return "somewhere/a"

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert fetch_snapshot("weights", "a/b", ["*.json"]) == Path("somewhere/a")
    assert asked == {"model_id": "a/b", "allow_patterns": ["*.json"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b", True), ("a", False), ("a/b/c", False), ("./a", False), ("/a", False), ("~/a", False), ("a/", False)],
)
def test_what_a_hub_id_looks_like(name, expected):
    assert is_hub_id(name) is expected


def test_the_form_of_an_id_is_asked_for_without_the_hubs_client():
    heavy = "{'torch', 'huggingface_hub', 'transformers', 'numpy'}"
    code = f"import sys; from utils.hub import is_hub_id; assert is_hub_id('a/b'); print({heavy} & set(sys.modules))"
    outcome = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert outcome.stdout == "set()\n"
