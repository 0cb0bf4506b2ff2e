"""A training run: its folder and files, its processes, and whether it is done. A finished run imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import InputError, StopRequest
from utils.ranks import Ranks, join_ranks
from utils.runs import Run, open_run
from utils.settings import TrainingSettings
from utils.sidecar import BEST_FILE, SIDECAR_FILE, STATE_FILE, read_sidecar, require_recorded

if TYPE_CHECKING:
    from utils.trainer import Task

log = logging.getLogger(__name__)
DONE_FILE = "curves.png"  # written last
EVENTS_FOLDER = "tensorboard"
RUN_FILES = (DONE_FILE, "history.csv", "history_by_task.csv", "updates.csv", "training_time.csv", EVENTS_FOLDER)
RUN_FILES += (BEST_FILE, STATE_FILE, SIDECAR_FILE)
# Where the data are, and what makes no result.
_FREE_KEYS = ("data_root", "clips_root", "train_csv", "val_csv", "wnids_file", "weights", "hold_out.file")
_FREE_KEYS += ("device", "cache", "cache_dir", "checkpoint_every_s", "tensorboard")


@dataclass(frozen=True)
class TrainingRun:
    """This process's part in a run.

    Attributes:
        finished_weights: the best weights, where the run is finished.
        run: the folder; None in all processes but the first.
    """

    settings: TrainingSettings
    finished_weights: Path | None
    run: Run | None
    ranks: Ranks
    stop: StopRequest

    def train(self, task: Task) -> Path:
        """Train, or resume; return the best weights' path."""
        from utils.trainer import train_network

        self.stop.raise_if_set()
        return train_network(task, self.settings, self.run, self.ranks, self.stop)


@contextmanager
def open_training_run(settings: TrainingSettings, inputs: Mapping[str, Path]) -> Iterator[TrainingRun]:
    """Open a run's folder, hear signals, and meet the other processes of a launched run.

    Args:
        inputs: indices, as for `open_run`; the weights that the run starts from and its hold-out are added.
    """
    inputs = dict(inputs)
    if settings.starts_from_file:
        inputs["weights"] = Path(settings.weights)
    if settings.selection == "hold_out":
        inputs["hold_out"] = settings.hold_out_file
    opened: list[Run] = []

    def open_folder() -> Path | None:
        free = tuple(key for key in _FREE_KEYS if key != "weights" or settings.starts_from_file)
        opened.append(open_run(settings, owned=RUN_FILES, inputs=inputs, free_keys=free))
        return _finished_weights(opened[0])

    # Importing torch takes seconds in which nothing is made that could be lost: patient from the first file on.
    with StopRequest(on_interrupt=True, is_patient=False) as stop, join_ranks() as ranks:
        finished = ranks.on_main(open_folder)
        yield TrainingRun(settings, finished, opened[0] if opened else None, ranks, stop)


def drop_state(run_dir: Path) -> None:
    """Remove what only resuming needs from a finished run's folder: its best weights and tables stay."""
    if (run_dir / DONE_FILE).exists():
        (run_dir / STATE_FILE).unlink(missing_ok=True)


def _finished_weights(run: Run) -> Path | None:
    """The best weights of a finished run; None while it is not finished.

    Raises:
        InputError: the run is finished, and its weights were removed, swapped or damaged since.
    """
    if not run.is_done(DONE_FILE):
        return None
    best = run.dir / BEST_FILE
    if not best.exists():
        raise InputError(f"{best}: was removed after training; restore it, or pass overwrite=true to train again")
    accepted = read_sidecar(run.dir)
    if accepted is None:
        raise InputError(
            f"{run.dir / SIDECAR_FILE}: is missing beside {BEST_FILE}; restore it, or pass overwrite=true to "
            "train again"
        )
    require_recorded(best, accepted, lambda _: False)
    log.info("%s is complete; nothing to do", run.dir)
    return best
