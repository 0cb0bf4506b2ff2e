"""Settings of `import_published.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from Data_Sourcing.settings import ClassSetting
from utils.config import InputPath, PositiveFloat, Settings


class NetworkCost(Settings):
    """Multiply-accumulates (10^9) of one item, as the paper's text states them."""

    model2d: PositiveFloat
    model3d: PositiveFloat


class ImportSettings(Settings):
    """`import_published.py`.

    Attributes:
        source: the folder of the paper's result files.
        output_dir: where the tables are written.
        classes: names by label; the files have numbers only.
        gmacs: of each network, for the speed that the published latency would need.
        peak_tflops: the fastest that the paper's card computes (float32), to compare that speed with.
        overwrite: replace what an earlier run with other settings or files wrote.
    """

    source: InputPath
    output_dir: Path = Path("Model_Evaluation/evaluation_results/published")
    classes: Annotated[tuple[ClassSetting, ...], Field(min_length=2)]
    gmacs: NetworkCost
    peak_tflops: PositiveFloat
    overwrite: bool = False

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> ImportSettings:
        for kind, values in (("wnid", [c.wnid for c in self.classes]), ("name", [c.name for c in self.classes])):
            if doubled := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"classes: {kind} {doubled[0]!r} is listed twice; keep one of them")
        return self
