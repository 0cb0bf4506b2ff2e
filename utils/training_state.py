"""A training run's checkpoint: `last.pt`, `model_best.safetensors` and the sidecar that makes them one.

A checkpoint replaces the previous one in four steps, and a kill between any two system calls leaves one that loads:

1. Both files are written and synced beside (`.partial`), hashed on the way.
2. The sidecar is replaced by one that accepts the old and the new files.
3. The files take their names: best weights first, because an old state with new best weights only redoes the work
   since, and finds the same best again; the other way round, the best would be lost.
4. The sidecar is replaced by one that accepts the new files only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints import ModelDescription, is_whole_weights, save_weights
from utils.errors import InputError
from utils.files import partial_path, remove_partial_files, sha256_file, sync_folder
from utils.sidecar import BEST_FILE, SIDECAR_FILE, STATE_FILE, Accepted, read_sidecar, require_recorded, write_sidecar
from utils.tensor_files import HashingWriter, StateDict, is_whole_torch_file, load_torch, open_hashing, require_plain


def save_checkpoint(run_dir: Path, state: dict[str, Any], best: tuple[StateDict, ModelDescription] | None) -> None:
    """Replace a run's checkpoint; the previous one stays until the new one is whole.

    Only for the one process that writes to `run_dir`: what killed runs left there is removed.

    Args:
        state: tensors and plain values, nested; all that `load_checkpoint` gives back.
        best: weights better than any before, with their description; None leaves `model_best.safetensors` as it is.

    Raises:
        OSError: the disk is full, with the file's name; the previous checkpoint stands, and no `.partial` file.
        InputError: the previous sidecar is damaged.
    """
    require_plain(state)
    run_dir.mkdir(parents=True, exist_ok=True)
    remove_partial_files(run_dir)
    try:
        # 1. Beside.
        written = {}
        if best is not None:
            written[BEST_FILE] = _write_beside(run_dir / BEST_FILE, lambda file: save_weights(file, *best))
        written[STATE_FILE] = _write_beside(run_dir / STATE_FILE, lambda file: torch.save(state, file))

        # 2. Old and new.
        old = read_sidecar(run_dir) or _accept_what_stands(run_dir)
        new = {name: [written[name]] if name in written else known for name, known in old.items()}
        write_sidecar(run_dir, {name: _union(known, new[name]) for name, known in old.items()})

        # 3. Best weights first.
        for name in written:
            partial_path(run_dir / name).replace(run_dir / name)
        sync_folder(run_dir)

        # 4. New only.
        write_sidecar(run_dir, new)
    except BaseException as error:
        for name in (BEST_FILE, STATE_FILE):
            partial_path(run_dir / name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(run_dir / STATE_FILE)
        raise


def load_checkpoint(run_dir: Path) -> dict[str, Any] | None:
    """Read a run's state, sure that it and the best weights are the ones that were saved.

    Returns:
        the state, on the CPU; None where no checkpoint was completed.

    Raises:
        InputError: a file was removed, swapped or damaged, or is none of this project's.
    """
    accepted = read_sidecar(run_dir)
    if accepted is None:
        if standing := [name for name in (STATE_FILE, BEST_FILE) if (run_dir / name).exists()]:
            raise InputError(
                f"{run_dir / SIDECAR_FILE}: is missing beside {standing[0]}; restore it, or pass overwrite=true to "
                "train again"
            )
        return None
    has_state = require_recorded(run_dir / STATE_FILE, accepted, is_whole_torch_file)
    require_recorded(run_dir / BEST_FILE, accepted, is_whole_weights)
    return load_torch(run_dir / STATE_FILE) if has_state else None


def _write_beside(path: Path, write: Callable[[HashingWriter], None]) -> str:
    """Write a file's successor; returns its SHA-256."""
    with open_hashing(partial_path(path), path) as file:
        write(file)
    return file.sha256


def _accept_what_stands(run_dir: Path) -> Accepted:
    paths = {name: run_dir / name for name in (STATE_FILE, BEST_FILE)}
    return {name: [sha256_file(path) if path.is_file() else None] for name, path in paths.items()}


def _union(old: list[str | None], new: list[str | None]) -> list[str | None]:
    return list(dict.fromkeys([*old, *new]))
