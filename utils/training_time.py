"""How long a run trained: one row a process that took part in it, in `training_time.csv` beside its weights."""

from __future__ import annotations

import time
from pathlib import Path

from utils.artifacts import TRAINING_TIME, read_table, write_table

TIME_FILE = "training_time.csv"


class TrainingClock:
    """Seconds of this process, from now on: updates, choosing the epoch, saving; not decoding or start-up.

    Args:
        update: made before; rows of other processes count up to there.
        device: what computes.
    """

    def __init__(self, run_dir: Path, update: int, device: str) -> None:
        self._path, self._first_update, self._device = run_dir / TIME_FILE, update, device
        rows = read_table(self._path, TRAINING_TIME).to_dict("records") if update and self._path.exists() else []
        self._earlier = [row for row in rows if row["last_update"] <= update]
        self._started_s = time.monotonic()

    def write(self, update: int) -> None:
        """Record that so many updates are made now."""
        if update == self._first_update:
            return
        seconds = time.monotonic() - self._started_s
        own = {"first_update": self._first_update + 1, "last_update": update, "train_s": seconds}
        write_table([*self._earlier, own | {"device": self._device}], self._path, TRAINING_TIME)


def read_training_seconds(run_dir: Path) -> float | None:
    """What a run took in all, in seconds; None where it is not recorded (foreign checkpoints)."""
    path = run_dir / TIME_FILE
    return float(read_table(path, TRAINING_TIME)["train_s"].sum()) if path.exists() else None
