"""What the paper published of one network, with every metric exactly as its confusion matrix gives it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

RUN_IDS = ("model2d", "model3d")
METRICS = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Batch:
    """A timed forward pass."""

    num_items: int
    seconds: Fraction


@dataclass(frozen=True)
class PublishedRun:
    """One network's published results.

    Attributes:
        matrix: counts; true class down, predicted class across.
        top3_hits: items whose true class is among the three highest scores.
    """

    run_id: str
    matrix: tuple[tuple[int, ...], ...]
    top3_hits: int
    batches: tuple[Batch, ...]

    @property
    def num_items(self) -> int:
        """Scored items."""
        return sum(map(sum, self.matrix))

    @property
    def hits(self) -> int:
        """Items whose class is predicted."""
        return sum(self.matrix[label][label] for label in range(len(self.matrix)))

    @property
    def total_s(self) -> Fraction:
        """All timed passes together."""
        return sum((batch.seconds for batch in self.batches), Fraction(0))

    @property
    def mean_s(self) -> Fraction:
        """Time an item, as the paper reports it."""
        return self.total_s / self.num_items

    @property
    def first_batch_share(self) -> Fraction:
        """The first pass's share of all time."""
        return self.batches[0].seconds / self.total_s

    @property
    def mean_later_s(self) -> Fraction | None:
        """Time an item of all passes but the first; None where there are no others, or they took no time."""
        num_later = self.num_items - self.batches[0].num_items
        return (self.total_s - self.batches[0].seconds) / num_later or None if num_later else None

    def num_of_class(self, label: int) -> int:
        """Items of a class."""
        return sum(self.matrix[label])

    def num_predicted(self, label: int) -> int:
        """Items predicted as a class."""
        return sum(row[label] for row in self.matrix)

    def metric(self, name: str, label: int) -> Fraction:
        """Precision, recall or F1 of a class, exactly; 0 where it is never predicted or absent."""
        hits, items, predicted = self.matrix[label][label], self.num_of_class(label), self.num_predicted(label)
        part, whole = {"precision": (hits, predicted), "recall": (hits, items), "f1": (2 * hits, items + predicted)}[
            name
        ]
        return Fraction(part, whole) if whole else Fraction(0)

    def macro(self, name: str) -> Fraction:
        """Mean of a metric over the classes, exactly."""
        return sum((self.metric(name, label) for label in range(len(self.matrix))), Fraction(0)) / len(self.matrix)
