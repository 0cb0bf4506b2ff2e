"""Statistics of answers that are right or wrong: pure functions on arrays, from scipy, statsmodels and scikit-learn.

These three are imported inside the functions: a script that only needs a table's name must not wait for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
NUM_RESAMPLES = 4_999
NUM_BINS = 15
_BOOTSTRAP_SEED = 20_240_521
_BATCH_VALUES = 2_000_000  # resampled values held at once: 16 MB


@dataclass(frozen=True)
class PairedCounts:
    """Items by who is right; the two in the middle are the discordant ones."""

    both_right: int
    only_a_right: int
    only_b_right: int
    both_wrong: int

    @property
    def num_items(self) -> int:
        """All of them."""
        return self.both_right + self.only_a_right + self.only_b_right + self.both_wrong

    @property
    def discordant_share(self) -> float:
        """Items that exactly one of the two gets right, as a fraction."""
        return (self.only_a_right + self.only_b_right) / self.num_items

    @property
    def odds_ratio(self) -> float | None:
        """Odds that a discordant item is A's; None where B has none (the ratio has no bound)."""
        return self.only_a_right / self.only_b_right if self.only_b_right else None


def count_pairs(right_a: np.ndarray, right_b: np.ndarray) -> PairedCounts:
    """Answers of two models on the same items, each bool (N,)."""
    table = np.histogram2d(right_a, right_b, bins=2, range=((0, 1), (0, 1)))[0].astype(int)
    return PairedCounts(int(table[1, 1]), int(table[1, 0]), int(table[0, 1]), int(table[0, 0]))


def compute_wilson(num_right: float, num_items: int) -> tuple[float | None, float | None]:
    """Wilson's 95 % interval of a rate; (None, None) without items."""
    from statsmodels.stats.proportion import proportion_confint

    if num_items == 0:
        return None, None
    low, high = proportion_confint(num_right, num_items, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def compute_mcnemar_p(counts: PairedCounts) -> float:
    """Exact two-sided McNemar test: whether the discordant items fall to both sides alike; 1 where there are none."""
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[counts.both_right, counts.only_a_right], [counts.only_b_right, counts.both_wrong]]
    return float(mcnemar(table, exact=True).pvalue)


def adjust_holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment over a family, in the order given."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, alpha=ALPHA, method="holm")[1].tolist() if p_values else []


def compute_cohens_h(rate_a: float, rate_b: float) -> float:
    """Cohen's h, the difference of two rates on the arcsine scale: 0.2 is small, 0.5 medium, 0.8 large."""
    from statsmodels.stats.proportion import proportion_effectsize

    return float(proportion_effectsize(rate_a, rate_b))


def compute_bootstrap_interval(totals: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95 % interval of `totals.sum() / counts.sum()`, resampling sources with all that belongs to them.

    The percentile interval: on simulated paired answers its coverage is that of BCa (94 to 96 % for 60 to 500 sources),
    and it is defined where all sources agree. The seed is fixed, so equal answers give equal intervals.

    Args:
        totals: a source's sum over its seeds and clips, whole numbers (num_sources,); they keep an exact 0 exact.
        counts: a source's number of seeds times clips, at least 1 (num_sources,).
    """
    from scipy.stats import bootstrap

    totals, counts = np.asarray(totals, dtype=float), np.asarray(counts, dtype=float)
    ratios = totals / counts
    if np.ptp(ratios) == 0:
        return float(ratios[0]), float(ratios[0])
    is_even = np.ptp(counts) == 0
    found = bootstrap(
        (totals,) if is_even else (totals, counts),
        np.mean if is_even else _ratio_of_sums,
        paired=not is_even,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(totals)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_BOOTSTRAP_SEED),
    ).confidence_interval
    scale = counts[0] if is_even else 1.0
    return float(found.low / scale), float(found.high / scale)


def compute_detectable_difference(num_items: int, discordant_share: float, alpha: float = ALPHA) -> float | None:
    """Smallest difference of two paired rates that McNemar's test finds with power 0.8.

    The number of pairs by Miettinen (1968, Biometrics 24) as in Connor (1987, Biometrics 43), n = (z_a sqrt(s) +
    z_b sqrt(s - d^2))^2 / d^2 for the discordant share s, solved for the difference d.

    Args:
        num_items: independent ones, that is sources.
        discordant_share: of them, 0..1.
        alpha: of a family of tests 0.05 divided by their number, which is Holm's first and strictest step.

    Returns:
        None where even the largest difference at this share, d = s, is out of reach.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    share, z_alpha, z_beta = discordant_share, norm.ppf(1 - alpha / 2), norm.ppf(POWER)

    def lacking(difference: float) -> float:
        spread = z_alpha * math.sqrt(share) + z_beta * math.sqrt(max(share - difference**2, 0.0))
        return spread - difference * math.sqrt(num_items)

    if share <= 0 or lacking(share) > 0:
        return None
    return float(brentq(lacking, 0.0, share, xtol=1e-12))


def compute_macro_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean over classes of the area under the one-against-rest ROC curve.

    Args:
        labels: int (N,).
        probabilities: float (N, num_classes).

    Returns:
        None where a class has no item or all items: its curve does not exist, and the mean would be of other classes.
    """
    from sklearn.metrics import roc_auc_score

    is_class = labels[:, None] == np.arange(probabilities.shape[1])
    if not (is_class.any(axis=0) & ~is_class.all(axis=0)).all():
        return None
    return float(np.mean([roc_auc_score(*pair) for pair in zip(is_class.T, probabilities.T, strict=True)]))


def compute_nll(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean negative log-likelihood in nats; a probability of 0 counts as 2.2e-16. None for a single class.

    Args:
        labels: int (N,).
        probabilities: float (N, num_classes); scaled to sum to 1, which six digits do not quite.
    """
    from sklearn.metrics import log_loss

    if probabilities.shape[1] < 2:
        return None
    scaled = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float(log_loss(labels, scaled, labels=np.arange(probabilities.shape[1])))


def compute_reliability(is_right: np.ndarray, confidence: np.ndarray) -> list[dict[str, float | int | None]]:
    """How often a model is right at what confidence, in bins of equal width that include their upper end.

    Args:
        is_right: bool (N,).
        confidence: probability of the predicted class (N,), 0..1.
    """
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    confidences = np.bincount(bins, weights=confidence, minlength=NUM_BINS)
    rights = np.bincount(bins, weights=is_right, minlength=NUM_BINS)
    return [
        {
            "bin": number + 1,
            "confidence_low": number / NUM_BINS,
            "confidence_high": (number + 1) / NUM_BINS,
            "num_items": int(count),
            "mean_confidence": float(confidences[number] / count) if count else None,
            "top1_fraction": float(rights[number] / count) if count else None,
        }
        for number, count in enumerate(counts)
    ]


def compute_calibration_error(reliability: list[dict[str, float | int | None]]) -> float:
    """Expected calibration error (Guo et al. 2017): the bins' gaps between confidence and accuracy, by their items."""
    filled = [row for row in reliability if row["num_items"]]
    gaps = [row["num_items"] * abs(row["mean_confidence"] - row["top1_fraction"]) for row in filled]
    return sum(gaps) / sum(row["num_items"] for row in filled)


def vote(
    predicted: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The majority answer of the seeds: most votes; ties go to the higher mean probability, then to the lower label.

    Args:
        predicted: int (num_seeds, N).
        probabilities: float (num_seeds, N, num_classes).
        groups: items that vote together, as numbers from 0 without a gap, int (N,); None is each item by itself.

    Returns:
        labels int (num_groups,), and the mean probabilities float (num_groups, num_classes).
    """
    num_seeds, num_items, num_classes = probabilities.shape
    groups = np.arange(num_items) if groups is None else groups
    votes = np.zeros((int(groups.max()) + 1, num_classes))
    mean = np.zeros_like(votes)
    np.add.at(votes, groups, (predicted[:, :, None] == np.arange(num_classes)).sum(axis=0))
    np.add.at(mean, groups, probabilities.sum(axis=0))
    mean /= num_seeds * np.bincount(groups)[:, None]
    leads = votes == votes.max(axis=1, keepdims=True)
    return np.where(leads, mean, -1.0).argmax(axis=1), mean


def _ratio_of_sums(totals: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    return totals.sum(axis=axis) / counts.sum(axis=axis)
