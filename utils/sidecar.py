"""`checkpoint.json`: the SHA-256 of a run folder's weights and state, so that no other file is taken for them.

It lists for each file what may stand under its name: one SHA-256; two while a checkpoint is being replaced; null where
no file has to stand. It carries its own SHA-256, so that a changed character is named and not acted upon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files import sha256_bytes, sha256_file, write_text

SIDECAR_FILE = "checkpoint.json"
STATE_FILE = "last.pt"
BEST_FILE = "model_best.safetensors"
Accepted = Mapping[str, Sequence[str | None]]
_REMEDY = "restore it, or pass overwrite=true to train again"


def write_sidecar(run_dir: Path, accepted: Accepted) -> None:
    """Write the sidecar atomically.

    Args:
        accepted: for `last.pt` and `model_best.safetensors`, each SHA-256 that the file may have; None: it may be
            missing.
    """
    write_text(run_dir / SIDECAR_FILE, _format(accepted))


def read_sidecar(run_dir: Path) -> Accepted | None:
    """Read what `write_sidecar` wrote; None where there is none.

    Raises:
        InputError: it was changed since, or is another program's.
    """
    path = run_dir / SIDECAR_FILE
    if not path.exists():
        return None
    try:
        text = path.read_bytes().decode()
        accepted = json.loads(text)["files"]
        is_whole = _is_known(accepted) and text == _format(accepted)
    except (IsADirectoryError, ValueError, LookupError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise InputError(f"{path}: is damaged, or not written by this project; {_REMEDY}")
    return accepted


def require_recorded(path: Path, accepted: Accepted, is_whole: Callable[[Path], bool]) -> bool:
    """Make sure that a file is one that the sidecar lists.

    Args:
        accepted: the sidecar's content.
        is_whole: whether a file that is not listed can be read all the same: then it was swapped, else damaged.

    Returns:
        whether the file stands; False only where it does not have to.

    Raises:
        InputError: it was removed, swapped or damaged.
    """
    known = accepted[path.name]
    if not path.is_file():
        if None in known:
            return False
        raise InputError(f"{path}: was removed, but {SIDECAR_FILE} records it; {_REMEDY}")
    if sha256_file(path) in known:
        return True
    if is_whole(path):
        raise InputError(
            f"{path}: was swapped or edited (it can be read, but {SIDECAR_FILE} records another file); {_REMEDY}"
        )
    raise InputError(f"{path}: is damaged (its SHA-256 differs from {SIDECAR_FILE}'s); {_REMEDY}")


def _format(accepted: Accepted) -> str:
    content = {"files": {name: list(accepted[name]) for name in (STATE_FILE, BEST_FILE)}}
    content["sha256"] = sha256_bytes(json.dumps(content).encode())
    return json.dumps(content, indent=2) + "\n"


def _is_known(accepted: Any) -> bool:
    return set(accepted) == {STATE_FILE, BEST_FILE} and all(
        isinstance(known, list) and known and all(item is None or re.fullmatch("[0-9a-f]{64}", item) for item in known)
        for known in accepted.values()
    )
