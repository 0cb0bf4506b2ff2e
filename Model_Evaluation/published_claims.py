"""What the paper's text says, recomputed from its result files: one row a number, and whether they agree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from typing import Any

from Model_Evaluation.published_run import METRICS, PublishedRun
from Model_Evaluation.published_settings import ImportSettings
from Model_Evaluation.tagged_numbers import rounds_to
from utils.artifacts import Column, Table

PUBLISHED_CLAIMS = Table(
    "published claims",
    (
        Column("claim"),
        Column("published_value", "float", nullable=True),
        Column("recomputed_value", "float"),
        Column("unit"),
        Column("agrees", choices=("yes", "truncated", "no", "not stated")),
        Column("sentence"),
    ),
    unique=("claim",),
)
_UNIT_TEXTS = {unit: f" {unit}" for unit in ("percentage points", "items", "ms", "TFLOP/s")}
_UNIT_TEXTS |= {"percent": " %", "fraction": "", "rank": "", "ratio": " times as long as the 2-D network's"}
_NETWORKS = {"model2d": "the 2-D network", "model3d": "the 3-D network"}
_METRIC_TEXTS = {"precision": "precision", "recall": "recall", "f1": "F1"}
_TEXT_MACRO = {
    "precision": ("0.62", "0.75", "0.13"),
    "recall": ("0.54", "0.75", "0.21"),
    "f1": ("0.53", "0.75", "0.22"),
}
_TEXT_F1_GAINS = {"red panda": "0.31", "brown bear": "0.27"}  # "the largest gains", in this order


@dataclass(frozen=True)
class Claim:
    """A number, exactly as the files give it, and as the text writes it (None: the text does not)."""

    name: str
    subject: str
    value: Fraction
    unit: str
    published: str | None = None
    remark: str = ""

    @property
    def agrees(self) -> str:
        """`truncated`: the text cuts the digits off instead of rounding."""
        if self.published is None:
            return "not stated"
        text = Decimal(self.published)
        if rounds_to(self.value, text):
            return "yes"
        exact = Decimal(self.value.numerator) / Decimal(self.value.denominator)
        return "truncated" if exact.quantize(text, ROUND_DOWN) == text else "no"

    @property
    def sentence(self) -> str:
        """The row in words."""
        says = {
            "yes": f"; the paper says {self.published}, too",
            "truncated": f"; the paper says {self.published}, cut off instead of rounded",
            "no": f"; the paper says {self.published}",
            "not stated": "",
        }
        remark = f" ({self.remark})" if self.remark else ""
        return f"{self.subject}: {float(self.value):.4g}{_UNIT_TEXTS[self.unit]}{says[self.agrees]}{remark}."

    def row(self) -> dict[str, Any]:
        """As `PUBLISHED_CLAIMS` has it."""
        return {
            "claim": self.name,
            "published_value": None if self.published is None else float(self.published),
            "recomputed_value": float(self.value),
            "unit": self.unit,
            "agrees": self.agrees,
            "sentence": self.sentence,
        }


def compute_claims(runs: Mapping[str, PublishedRun], settings: ImportSettings) -> list[Claim]:
    """All claims; those on named classes only where the classes are there."""
    names = [item.name for item in settings.classes]
    return [
        *_accuracy(runs),
        *_errors(runs),
        *_macro_metrics(runs),
        *_f1_gains(runs, names),
        *_confusions(runs, names),
        *_latency(runs),
        *_needed_speed(runs, settings),
    ]


def _accuracy(runs: Mapping[str, PublishedRun]) -> Iterator[Claim]:
    shares = {}
    for run, top1, top3 in zip(runs.values(), ("54.2", "75.8"), ("77.8", "90.4"), strict=True):
        suffix, network = run.run_id[-2:], _NETWORKS[run.run_id]
        shares[suffix] = Fraction(run.hits, run.num_items) * 100
        yield Claim(f"top1_{suffix}", f"Top-1 of {network}", shares[suffix], "percent", top1)
        remark = "from the files' own top3: a confusion matrix does not tell it"
        yield Claim(
            f"top3_{suffix}",
            f"Top-3 of {network}",
            Fraction(run.top3_hits, run.num_items) * 100,
            "percent",
            top3,
            remark,
        )
    yield Claim("top1_gain", "Difference of the top-1", shares["3d"] - shares["2d"], "percentage points", "21.6")


def _errors(runs: Mapping[str, PublishedRun]) -> Iterator[Claim]:
    errors = {run.run_id: Fraction(run.num_items - run.hits) for run in runs.values()}
    for run_id, count in errors.items():
        yield Claim(f"errors_{run_id[-2:]}", f"Errors of {_NETWORKS[run_id]}", count, "items")
    if errors["model2d"]:
        fewer = (errors["model2d"] - errors["model3d"]) / errors["model2d"] * 100
        yield Claim("error_reduction", "Fewer errors in 3-D than in 2-D", fewer, "percent", "42")


def _macro_metrics(runs: Mapping[str, PublishedRun]) -> Iterator[Claim]:
    for metric in METRICS:
        *texts, gain = _TEXT_MACRO[metric]
        values = [run.macro(metric) for run in runs.values()]
        for run, value, text in zip(runs.values(), values, texts, strict=True):
            subject = f"Macro {_METRIC_TEXTS[metric]} of {_NETWORKS[run.run_id]}"
            yield Claim(f"macro_{metric}_{run.run_id[-2:]}", subject, value, "fraction", text)
        yield Claim(
            f"macro_{metric}_gain", f"Gain in macro {_METRIC_TEXTS[metric]}", values[1] - values[0], "fraction", gain
        )


def _f1_gains(runs: Mapping[str, PublishedRun], names: list[str]) -> Iterator[Claim]:
    before, after = runs.values()
    gains = {name: after.metric("f1", label) - before.metric("f1", label) for label, name in enumerate(names)}
    for name, gain in gains.items():
        yield Claim(f"f1_gain_{_slug(name)}", f"Gain in F1 of {name}", gain, "fraction", _TEXT_F1_GAINS.get(name))
    ranked = sorted(gains, key=lambda name: -gains[name])
    for rank, (name, text) in enumerate(_TEXT_F1_GAINS.items(), start=1):
        ordinal = ("Largest", "Second largest")[rank - 1]
        subject, remark = f"{ordinal} gain in F1 ({ranked[rank - 1]})", f"of {name}"
        yield Claim(f"f1_gain_number_{rank}", subject, gains[ranked[rank - 1]], "fraction", text, remark)
        if name in gains:
            place = Fraction(ranked.index(name) + 1)
            yield Claim(f"f1_gain_rank_{_slug(name)}", f"Rank of {name} by gain in F1", place, "rank", str(rank))


def _confusions(runs: Mapping[str, PublishedRun], names: list[str]) -> Iterator[Claim]:
    if not {"brown bear", "red panda"} <= set(names):
        return
    bear, panda = names.index("brown bear"), names.index("red panda")
    for run, text in zip(runs.values(), ("8", "0"), strict=True):
        suffix, network = run.run_id[-2:], _NETWORKS[run.run_id]
        taken, reverse = Fraction(run.matrix[bear][panda]), Fraction(run.matrix[panda][bear])
        subject = f"Brown bears that {network} takes for red pandas"
        yield Claim(f"brown_bear_as_red_panda_{suffix}", subject, taken, "items", text)
        subject = f"Red pandas that {network} takes for brown bears"
        yield Claim(f"red_panda_as_brown_bear_{suffix}", subject, reverse, "items")


def _latency(runs: Mapping[str, PublishedRun]) -> Iterator[Claim]:
    means_ms = {}
    for run, text in zip(runs.values(), ("0.375", "0.513"), strict=True):
        suffix, network = run.run_id[-2:], _NETWORKS[run.run_id]
        means_ms[suffix] = run.mean_s * 1000
        yield Claim(f"mean_latency_{suffix}", f"Mean time an item of {network}", means_ms[suffix], "ms", text)
        share = run.first_batch_share * 100
        yield Claim(
            f"first_batch_share_{suffix}", f"The first batch's share of the time of {network}", share, "percent"
        )
        if run.mean_later_s:
            subject = f"Mean time an item of {network} without the first batch"
            yield Claim(f"later_latency_{suffix}", subject, run.mean_later_s * 1000, "ms")
    yield Claim("latency_difference", "Difference of the mean times", means_ms["3d"] - means_ms["2d"], "ms", "0.14")
    more = (means_ms["3d"] / means_ms["2d"] - 1) * 100
    yield Claim("latency_increase", "The 3-D network's mean time is more by", more, "percent", "36.8")
    later = [run.mean_later_s for run in runs.values()]
    if all(later):
        yield Claim(
            "later_latency_ratio", "The 3-D network's mean time without the first batch", later[1] / later[0], "ratio"
        )


def _needed_speed(runs: Mapping[str, PublishedRun], settings: ImportSettings) -> Iterator[Claim]:
    """A time is the computation's only if the device could have computed so fast."""
    for run_id, run in runs.items():
        gmacs = Fraction(str(getattr(settings.gmacs, run_id)))
        times = {"mean_latency": run.mean_s, "later_latency": run.mean_later_s}
        for name, seconds in times.items():
            if not seconds:
                continue
            needed = 2 * gmacs / seconds / 1000  # 1 MAC = 2 FLOP; 10^9 -> 10^12
            limit = f"the card's peak is about {settings.peak_tflops:g}, so this is not the computation's time"
            remark = "" if needed <= Fraction(str(settings.peak_tflops)) else limit
            kind = "mean time" if name == "mean_latency" else "mean time without the first batch"
            subject = f"Speed that the {kind} of {_NETWORKS[run_id]} would need"
            yield Claim(f"needed_speed_{name}_{run_id[-2:]}", subject, needed, "TFLOP/s", remark=remark)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
