"""What became of each run of a study: `study.csv`, and the sentence at the end."""

from __future__ import annotations

from pathlib import Path

from Model_Evaluation.study_plan import PlannedRun, folder_bytes
from utils.artifacts import STUDY, format_table, read_table
from utils.files import write_text
from utils.training_time import read_training_seconds


class ArmsFailed(Exception):
    """Some arms have failed, or could not be scored on everything; what else there is to do is done."""

    def __init__(self, shortfalls: list[tuple[PlannedRun, str]], journal: Path) -> None:
        lines = [f"  {run.run_id}: {reason}" for run, reason in shortfalls]
        super().__init__(f"{len(shortfalls)} runs have failed or are not complete ({journal}):\n" + "\n".join(lines))


class Journal:
    """The study's table: one row a training, on disk after every change.

    Args:
        path: of the table; what an earlier run has recorded of these trainings is kept until it changes.
    """

    def __init__(self, path: Path, runs: list[PlannedRun]) -> None:
        self.path, self._runs = path, runs
        known = read_table(path, STUDY).to_dict("records") if path.exists() else []
        self._outcomes = {row["training_id"]: (row["status"], row["reason"]) for row in known}
        self._write()

    def record(self, run: PlannedRun, status: str, reason: str = "") -> None:
        """Note what became of a run: `done` or `failed`, and why it failed or what it could not be scored on."""
        self._outcomes[run.run_id] = (status, reason)
        self._write()

    def reason(self, run_id: str) -> str:
        """Why a run has failed."""
        return self._outcomes.get(run_id, ("planned", ""))[1]

    def shortfalls(self) -> list[tuple[PlannedRun, str]]:
        """Runs that have failed or could not be scored on everything, and why."""
        return [(run, self.reason(run.run_id)) for run in self._runs if self.reason(run.run_id)]

    def _write(self) -> None:
        text = format_table([self._row(run) for run in self._runs], STUDY)
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            write_text(self.path, text)

    def _row(self, run: PlannedRun) -> dict[str, object]:
        status, reason = self._outcomes.get(run.run_id, ("planned", ""))
        folder = self.path.parent / "runs" / run.run_id
        return {
            "training_id": run.run_id,
            "arm": run.arm_name,
            "num_frames": run.num_frames or 1,
            "seed": run.seed,
            "weights_of": run.weights_of,
            "train_input": run.arm.train_input,
            "clips": run.clip_set.kind if run.clip_set else "",
            "test_inputs": " ".join(run.arm.tests),
            "status": status,
            "reason": reason,
            "train_s": read_training_seconds(folder),
            "disk_mb": folder_bytes(folder) / 1e6 if folder.is_dir() else None,
        }
