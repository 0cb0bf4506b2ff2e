"""The answers of two entries on what both have: the same items, of the same seeds; and one vote a source image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from Model_Evaluation.scored_runs import Entry, source_of
from Model_Evaluation.statistics import vote


@dataclass(frozen=True)
class ItemAnswers:
    """One entry's answers.

    Attributes:
        labels: int (N,).
        predicted: int (num_seeds, N).
        probabilities: float (num_seeds, N, num_classes).
    """

    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """Bool (num_seeds, N)."""
        return self.predicted == self.labels

    def of_seed(self, number: int) -> ItemAnswers:
        """Those of one seed, by its position."""
        return ItemAnswers(self.labels, self.predicted[[number]], self.probabilities[[number]])


@dataclass(frozen=True)
class SourceAnswers:
    """One entry's answer to each source, voted by all seeds and clips of it.

    Attributes:
        labels, answers: int (num_sources,).
        num_votes, num_answers: int (num_sources,): how many of how many seeds and clips gave this answer.
        prob_answer, prob_true: float (num_sources,), means over the seeds and clips.
    """

    labels: np.ndarray
    answers: np.ndarray
    num_votes: np.ndarray
    num_answers: np.ndarray
    prob_answer: np.ndarray
    prob_true: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """Bool (num_sources,)."""
        return self.answers == self.labels


@dataclass(frozen=True)
class PairedAnswers:
    """Two entries' answers.

    Attributes:
        seeds: those that both entries have, in A's order.
        items: those that all their runs have, text (N,), in A's order.
        sources: int (N,), each item's source; see `number_sources`.
        a, b: each entry's answers.
    """

    seeds: list[int | None]
    items: np.ndarray
    sources: np.ndarray
    a: ItemAnswers
    b: ItemAnswers

    @property
    def num_sources(self) -> int:
        """Images behind the items."""
        return int(self.sources.max()) + 1

    @property
    def first_items(self) -> np.ndarray:
        """The first item of each source: text (num_sources,)."""
        return self.items[np.unique(self.sources, return_index=True)[1]]

    def vote(self) -> dict[str, SourceAnswers]:
        """Each side's answers by source, as `a` and `b`."""
        return {"a": vote_by_source(self.a, self.sources), "b": vote_by_source(self.b, self.sources)}


def pair_answers(a: Entry, b: Entry) -> PairedAnswers | None:
    """What both entries answered; None where they share no seed or no item."""
    seeds = [seed for seed in a.runs if seed in b.runs]
    shared = set(b.common_items)
    items = np.array([item for item in a.common_items if item in shared], dtype=object)
    if not seeds or not len(items):
        return None
    left, right = answers_on(a, seeds, items), answers_on(b, seeds, items)
    return PairedAnswers(seeds, items, number_sources(items, left.labels), left, right)


def answers_on(entry: Entry, seeds: list[int | None], items: np.ndarray) -> ItemAnswers:
    """An entry's answers of these seeds to these items, which all its runs have."""
    predicted, probabilities = [], []
    for seed in seeds:
        run = entry.runs[seed]
        order = pd.Index(run.item_ids).get_indexer(items)
        predicted.append(run.predicted[order])
        probabilities.append(run.probabilities[order])
        labels = run.labels[order]
    return ItemAnswers(labels, np.stack(predicted), np.stack(probabilities))


def number_sources(items: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each item's source as a number from 0, whatever the items' order: int (N,); an image of two labels is two."""
    keys = [(source_of(item), label) for item, label in zip(items, labels.tolist(), strict=True)]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys])


def vote_by_source(answers: ItemAnswers, sources: np.ndarray) -> SourceAnswers:
    """The majority of all seeds and clips of each source; `sources` as in `PairedAnswers`."""
    first = np.unique(sources, return_index=True)[1]
    voted, mean = vote(answers.predicted, answers.probabilities, sources)
    same = (answers.predicted == voted[sources]).sum(axis=0)
    labels, rows = answers.labels[first], np.arange(len(first))
    num_answers = np.bincount(sources) * len(answers.predicted)
    num_votes = np.bincount(sources, weights=same).astype(int)
    return SourceAnswers(labels, voted, num_votes, num_answers, mean[rows, voted], mean[rows, labels])
