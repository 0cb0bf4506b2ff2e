"""Files from the model hub, and one clear sentence for each way they can lack."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

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
    try:
        return Path(snapshot_download(model_id, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its own, the network library's and the system's types
        raise InputError(f"{key}: {_explain(model_id, list(_causes(error)))}") from error


def _explain(model_id: str, chain: list[BaseException]) -> str:
    def find(kind: type) -> BaseException | None:
        return next((cause for cause in chain if isinstance(cause, kind)), None)

    if any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in chain):
        return f"the disk is full while {model_id} is fetched; free some space, or set HF_HOME to a larger disk"
    if find(GatedRepoError):
        return (
            f"{model_id} is gated; accept its licence at https://huggingface.co/{model_id}, then run 'hf auth login' "
            "(or set HF_TOKEN)"
        )
    if find(RepositoryNotFoundError):
        return (
            f"the model hub has no {model_id}, or it is private; correct the id, or run 'hf auth login' with an "
            "account that may read it"
        )
    status = getattr(getattr(find(HfHubHTTPError), "response", None), "status_code", None)
    why = f"the hub answered {status}" if status else "it cannot be reached"
    return (
        f"{model_id} cannot be had from the model hub ({why}) and is not complete in the local cache; on a machine "
        f"with network run 'hf download {model_id}', copy the folder here and give its path"
    )


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
