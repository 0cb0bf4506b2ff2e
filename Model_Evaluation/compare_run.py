"""Run a comparison of arms: every arm with every seed, its scores; then tables, paired statistics and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from Model_Evaluation.compare_plan import describe_plan, plan_arms, scoring_of
from Model_Evaluation.compare_settings import CompareArmsSettings
from Model_Evaluation.settings import PictureSettings
from Model_Evaluation.study_journal import ArmsFailed, Journal
from Model_Evaluation.study_run import JOURNAL, finish_runs, forget_other_pictures, write_results
from utils.runs import open_run

if TYPE_CHECKING:
    from Model_Evaluation.pictures import Gallery


def run_comparison(compare: CompareArmsSettings) -> Path | None:
    """Do everything that is not done yet; return the folder of the results, None after a dry run.

    Raises:
        InputError: settings that are wrong, arms that may not be compared, or no run that could be scored.
        ArmsFailed: everything else is done, and these arms have failed.
    """
    runs = plan_arms(compare)
    print(describe_plan(compare, runs))
    if compare.dry_run:
        return None
    folder = open_run(compare, owned=())  # holds the lock as long as it is held
    forget_other_pictures(compare)
    folder.begin()
    journal = Journal(compare.output_dir / JOURNAL, runs)
    scored = finish_runs(runs, compare, journal, scoring_of, missing={})
    # As the arms are listed, whichever of them failed first: the first is what others are compared with.
    scored = {run: scored[run] for name in compare.arms for run in runs if run.arm_name == name}
    shown = [run.test_id(compare.test_input) for run in runs if run.seed == compare.timed_seed and scored[run]]

    def draw(gallery: Gallery, tables: dict[str, pd.DataFrame], folder: Path, num_items: int) -> None:
        from Model_Evaluation.discordant_sheets import write_discordant_sheets
        from Model_Evaluation.pictures import draw_run_pictures

        draw_run_pictures(gallery, tables, shown, folder, PictureSettings(num_items=num_items))
        if num_items:
            write_discordant_sheets(tables, gallery.frames, folder, num_items)

    results = write_results(compare, scored, draw)
    if shortfalls := journal.shortfalls():
        raise ArmsFailed(shortfalls, journal.path)
    return results
