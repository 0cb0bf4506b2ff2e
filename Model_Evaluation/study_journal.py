"""What became of each run of a study: `study.csv`, where it stands, and the sentences at the end."""

from __future__ import annotations

import statistics
from pathlib import Path

from Model_Evaluation.study_plan import PlannedRun, folder_bytes
from utils.artifacts import STUDY, format_table, read_table
from utils.files import write_text
from utils.training_time import read_training_seconds

_ANY_RUN = "RUN"  # stands for a run's name in what is said of several


class ArmsFailed(Exception):
    """Some arms have failed, or could not be scored on everything; what else there is to do is done."""

    def __init__(self, shortfalls: list[tuple[PlannedRun, str]], journal: Path) -> None:
        lines = "\n".join(f"  {line}" for line in describe_shortfalls(shortfalls))
        super().__init__(f"{len(shortfalls)} runs have failed or are not complete ({journal}):\n{lines}")


def describe_shortfalls(shortfalls: list[tuple[PlannedRun, str]]) -> list[str]:
    """One line a cause, behind the names of all runs that have it: one mistake fails every arm alike."""
    of_cause: dict[str, list[tuple[PlannedRun, str]]] = {}
    for run, reason in shortfalls:
        of_cause.setdefault(_cause(run, reason), []).append((run, reason))
    return [
        f"{_names([run for run, _ in group])}: {cause if len(group) > 1 else group[0][1]}"
        for cause, group in of_cause.items()
    ]


class Journal:
    """The study's table: one row a training, on disk after every change.

    Args:
        path: of the table; what an earlier run has recorded of these trainings is kept until it changes.
    """

    def __init__(self, path: Path, runs: list[PlannedRun]) -> None:
        self.path, self._runs = path, runs
        known = read_table(path, STUDY).to_dict("records") if path.exists() else []
        self._outcomes = {row["training_id"]: (row["status"], row["reason"]) for row in known}
        self._causes: dict[str, str] = {}
        self._write()

    def record(self, run: PlannedRun, status: str, reason: str = "") -> str:
        """Note what became of a run: `done` or `failed`, and why it failed or what it could not be scored on.

        Returns:
            the first run that was recorded here with the same reason: this one, or one before.
        """
        self._outcomes[run.run_id] = (status, reason)
        self._write()
        return self._causes.setdefault(_cause(run, reason), run.run_id)

    def reason(self, run_id: str) -> str:
        """Why a run has failed."""
        return self._outcomes.get(run_id, ("planned", ""))[1]

    def shortfalls(self) -> list[tuple[PlannedRun, str]]:
        """Runs that have failed or could not be scored on everything, and why."""
        return [(run, self.reason(run.run_id)) for run in self._runs if self.reason(run.run_id)]

    def describe_progress(self, run: PlannedRun) -> str:
        """`training 6 of 30: 2d_mix_t3_s0; 24 to follow, about 12 min with this one`.

        The time is that of finished trainings: of the same arm, else of the mean arm; none while none is finished.
        """
        trainings = [planned for planned in self._runs if planned.arm.trained_as is None]
        position = trainings.index(run)
        to_follow = [planned for planned in trainings[position + 1 :] if not self._is_done(planned)]
        text = f"training {position + 1} of {len(trainings)}: {run.run_id}; "
        text += f"{len(to_follow)} to follow" if to_follow else "the last one"
        seconds = self._expected_seconds([run, *to_follow])
        return text if seconds is None else f"{text}, about {_format_duration(seconds)} with this one"

    def _expected_seconds(self, runs: list[PlannedRun]) -> float | None:
        of_arm: dict[str, list[float]] = {}
        for run in self._runs:
            seconds = read_training_seconds(self.path.parent / "runs" / run.run_id) if self._is_done(run) else None
            if seconds is not None:
                of_arm.setdefault(_stem(run), []).append(seconds)
        if not of_arm:
            return None
        means = {arm: statistics.mean(seconds) for arm, seconds in of_arm.items()}
        return sum(means.get(_stem(run), statistics.mean(means.values())) for run in runs)

    def _is_done(self, run: PlannedRun) -> bool:
        return self._outcomes.get(run.run_id, ("planned", ""))[0] == "done"

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


def _cause(run: PlannedRun, reason: str) -> str:
    """A reason without what is the run's own in it, so that equal causes are equal texts."""
    reason = reason.removeprefix(f"{run.weights_of} is not trained: ")
    for name in (run.run_id, run.weights_of):
        reason = reason.replace(name, _ANY_RUN)
    return reason


def _names(runs: list[PlannedRun]) -> str:
    """`2d_original_s0`; of several seeds `2d_original (seeds 0, 1)`."""
    of_arm: dict[str, list[PlannedRun]] = {}
    for run in runs:
        of_arm.setdefault(_stem(run), []).append(run)
    return ", ".join(
        of[0].run_id if len(of) == 1 else f"{arm} (seeds {', '.join(str(run.seed) for run in of)})"
        for arm, of in of_arm.items()
    )


def _stem(run: PlannedRun) -> str:
    return run.run_id.removesuffix(f"_s{run.seed}")


def _format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
