"""A training run's folder: its files, and whether it is done. Imports no torch: a finished run is seen at once."""

from __future__ import annotations

import logging
from pathlib import Path

from utils.errors import InputError
from utils.runs import Run, open_run
from utils.settings import TrainingSettings

log = logging.getLogger(__name__)
BEST_FILE = "model_best.safetensors"
DONE_FILE = "curves.png"  # written last
RUN_FILES = (DONE_FILE, "history.csv", BEST_FILE, "last.pt")


def open_training_run(settings: TrainingSettings, inputs: dict[str, Path], path_keys: tuple[str, ...]) -> Run:
    """Open a run folder; the weights a run starts from count as an input.

    Args:
        inputs: indices, as for `open_run`.
        path_keys: settings that only say where the inputs are.
    """
    if settings.starts_from_file:
        inputs = inputs | {"weights": Path(settings.weights)}
        path_keys = (*path_keys, "weights")
    return open_run(settings, owned=RUN_FILES, inputs=inputs, free_keys=(*path_keys, "device"))


def finished_weights(run: Run) -> Path | None:
    """The best weights of a finished run; None while it is not finished.

    Raises:
        InputError: the run is finished, and its weights were removed since.
    """
    if not run.is_done(DONE_FILE):
        return None
    best = run.dir / BEST_FILE
    if not best.exists():
        raise InputError(f"{best}: was removed after training; restore it, or pass overwrite=true to train again")
    log.info("%s is complete; nothing to do", run.dir)
    return best
