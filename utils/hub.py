"""Files from the model hub, and one clear sentence for each way they can lack.

The hub's client is imported where it is called: settings ask for the form of an id, and it takes part of a second.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from utils.errors import InputError


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id, `owner/name`; says nothing about whether the hub has it."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and all(name.split("/"))


def fetch_snapshot(key: str, model_id: str, patterns: list[str]) -> Path:
    """The local folder of a hub model's files, fetched where they are not in the cache.

    Args:
        key: the setting that names the model, for the message.
        patterns: which files, as shell patterns.

    Raises:
        InputError: they cannot be had, with what to do.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its own, the network library's and the system's types
        raise InputError(explain_hub_error(key, model_id, error)) from error


def explain_hub_error(key: str, model_id: str, error: BaseException, *, size: str = "") -> str:
    """Why a model's files cannot be had, and what to do, as one sentence.

    Args:
        key: the setting that names the model.
        error: what the hub's client raised; its causes count, too.
        size: of the files, for the case that the disk is full.
    """
    from huggingface_hub.errors import GatedRepoError, IncompleteSnapshotError, RepositoryNotFoundError

    if any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in _causes(error)):
        needs = f" (it needs {size})" if size else ""
        return (
            f"{key}: the disk is full while {model_id} is fetched{needs}; free some space, or set HF_HOME to a larger "
            "disk, and run the same command again"
        )
    if gated := find_cause(error, GatedRepoError):
        return f"{key}: {model_id} is gated and {_open_gate(model_id, has_token=_status(gated) != 401)}"
    if find_cause(error, IncompleteSnapshotError):
        return explain_partial_cache(key, model_id, "files are missing and the hub cannot be reached")
    if find_cause(error, RepositoryNotFoundError):
        return (
            f"{key}: the model hub has no {model_id}, or it is private; correct the id, or run 'hf auth login' with an "
            "account that may read it"
        )
    return (
        f"{key}: {model_id} cannot be had from the model hub ({_why_unreachable(error)}) and is not in the local "
        f"cache; on a machine with network run 'hf download {model_id}', copy the folder here and set {key} to its path"
    )


def explain_partial_cache(key: str, model_id: str, detail: str) -> str:
    """That the cache lacks some of a model's files, and what to do, as one sentence."""
    return (
        f"{key}: the local cache holds only a part of {model_id} ({detail}); with network, run "
        f"'hf download {model_id}' to complete it, then run the same command again"
    )


def find_cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """An error, or the first of what led to it, that is of a kind."""
    return next((cause for cause in _causes(error) if isinstance(cause, kind)), None)


def first_line(error: BaseException) -> str:
    """Of an error's text, or its type's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _open_gate(model_id: str, *, has_token: bool) -> str:
    page = f"https://huggingface.co/{model_id}"
    if has_token:
        return (
            f"your token has no access to it; accept its licence at {page} with the account of the token, and allow "
            "the token to read gated repositories"
        )
    return f"no token was sent; accept its licence at {page}, then run 'hf auth login' (or set HF_TOKEN)"


def _why_unreachable(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if status := _status(find_cause(error, HfHubHTTPError)):
        return f"the hub answered {status}"
    return "it cannot be reached" if find_cause(error, LocalEntryNotFoundError) else first_line(error)


def _status(error: BaseException | None) -> int | None:
    """Of the answer that an error is about, if it is about one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that led to it."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        cause = pending.pop(0)
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            pending += [cause.__cause__, cause.__context__]
