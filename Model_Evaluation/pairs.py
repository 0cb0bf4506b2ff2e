"""Which entries are compared, and what a pair differs in beyond what its arms are about."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from Model_Evaluation.arms import CLAIM_ARM, CONTROL_ARMS, PAPER_ARMS, SUBJECT_KEYS, SUBJECT_ROW, is_subject
from Model_Evaluation.entries import is_own_input, own_positions
from Model_Evaluation.scored_runs import Entry, ScoredRun

ARM_ORDER = (*CONTROL_ARMS, CLAIM_ARM, *PAPER_ARMS)
CLAIM, SUBJECT, INPUTS, PAPER, ARMS = "claim", "subject", "inputs", "paper", "arms"  # families
_COMPARED_COLUMNS = ("protocol", "start_weights", "split", "selection_split")
_COLUMN_OF_KEY = {"weights": "start_weights", "selection": "selection_split"}
# What else a pair of stated arms must share, and the keys of a subject that explain a difference.
_EXPLAINED_BY = {
    "model": {"trainer", "family"},
    "num_frames": {"num_frames"},
    "train_input": {"train_input", "data_root", "train_csv", "clips_root"},
    "test_input": {"data_root", "val_csv", "clips_root", "frame_sampling"},
}
PROTOCOL_UNKNOWN = "protocol unknown"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Pair:
    """Two entries to compare: the difference is A - B."""

    family: str
    a: Entry
    b: Entry

    @property
    def comparison_id(self) -> str:
        """Stable text of both entries."""
        return f"{self.a.entry_id} vs {self.b.entry_id}"


def select_pairs(entries: list[Entry]) -> list[Pair]:
    """All pairs to compare, each once, family by family.

    Clips of other lengths only within an arm, or where both state a subject; those follow the order of the tables.
    """
    owns = [entries[position] for position in own_positions([entry.columns for entry in entries])]
    pairs = [*_claim_pairs(entries, owns), *_input_pairs(entries, owns), *_paper_pairs(entries, owns)]
    ordered = sorted(owns, key=_arm_position)
    others = [(a, b) for b, a in itertools.combinations(ordered, 2) if _is_arms_pair(a, b)]
    stated = ((a, b) for b, a in itertools.combinations(owns, 2) if _shared_subject(a, b))
    pairs += [Pair(SUBJECT, a, b) for a, b in stated if _is_arms_pair(a, b)]
    pairs += [Pair(ARMS, a, b) for a, b in others]
    kept: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        kept.setdefault(frozenset((pair.a.entry_id, pair.b.entry_id)), pair)
    return list(kept.values())


def describe_differences(pair: Pair, seeds: list[int | None]) -> str:
    """What the runs differ in beyond their arms' subject, as `lr: 0.001 / 0.01`; empty where the pair is matched."""
    found: dict[str, str] = {}
    same_weights = _is_other_input(pair.a, pair.b)
    subject = _shared_subject(pair.a, pair.b)
    # What follows from the subject: the protocol's name, whose values are compared one by one, is of all of them.
    named = {"protocol", *(name for key, name in _COLUMN_OF_KEY.items() if key in subject)} if subject else set()
    for name in _COMPARED_COLUMNS:
        if name not in named and pair.a.columns[name] != pair.b.columns[name]:
            found[name] = f"{name}: {pair.a.columns[name]} / {pair.b.columns[name]}"
    if pair.family == SUBJECT:
        found |= _unexplained(pair, subject)
    for entry in (pair.a, pair.b) if not same_weights and pair.family not in (PAPER, SUBJECT) else ():
        if not _is_own(entry) and entry.columns["train_input"] != UNKNOWN:
            trained, scored = entry.columns["train_input"], entry.columns["test_input"]
            found[entry.entry_id] = f"test_input: {entry.columns['arm']} trained on {trained}, scored on {scored}"
    for seed in seeds:
        for key, text in _protocol_differences(pair.a.runs[seed], pair.b.runs[seed]).items():
            if is_subject(key, subject):
                continue
            if not (same_weights and key == PROTOCOL_UNKNOWN):  # the same file does not differ from itself
                found.setdefault(key, text)
    return "; ".join(found.values())


def _unexplained(pair: Pair, subject: frozenset[str]) -> dict[str, str]:
    """Text by column: what the tables show to differ, and no key of the subject explains."""
    named = {key.split(".", 1)[0] for key in subject}
    return {
        column: f"{column}: {pair.a.columns[column]} / {pair.b.columns[column]}"
        for column, keys in _EXPLAINED_BY.items()
        if pair.a.columns[column] != pair.b.columns[column] and not named & keys
    }


def _shared_subject(a: Entry, b: Entry) -> frozenset[str]:
    """Keys that all runs of both say their comparison is about; empty where they say nothing."""
    stated = [
        frozenset(run.protocol_values.get(SUBJECT_ROW, "").split()) for entry in (a, b) for run in entry.runs.values()
    ]
    return frozenset.intersection(*stated)


def _claim_pairs(entries: list[Entry], owns: list[Entry]) -> list[Pair]:
    pairs = []
    for claim in (own for own in owns if own.columns["arm"] == CLAIM_ARM and _kind(own) == "clip"):
        controls = [own for own in owns if own.columns["arm"] in CONTROL_ARMS and _comparable(claim, own)]
        pairs += [Pair(CLAIM, claim, control) for control in sorted(controls, key=_arm_position)]
        shuffled = [entry for entry in _siblings(claim, entries) if _kind(entry) == "shuffled"]
        pairs += [Pair(CLAIM, claim, entry) for entry in shuffled]
    return pairs


def _input_pairs(entries: list[Entry], owns: list[Entry]) -> list[Pair]:
    """Own input against each other one; and the paper's geometry against its first frames, which adds generation."""
    pairs = []
    for own in owns:
        others = _siblings(own, entries)
        pairs += [Pair(INPUTS, own, other) for other in others]
        stretched = [entry for entry in others if _kind(entry) == "original_paper_geometry"]
        first = [entry for entry in others if _kind(entry) == "first_frame"]
        pairs += [Pair(INPUTS, a, b) for a in stretched for b in first]
    return pairs


def _paper_pairs(entries: list[Entry], owns: list[Entry]) -> list[Pair]:
    deep = [own for own in owns if own.columns["arm"] == "paper_3d"]
    flat = [entry for entry in entries if entry.columns["arm"] == "paper_2d"]
    return [Pair(PAPER, a, b) for a in deep for b in flat if _comparable(a, b)]


def _is_arms_pair(a: Entry, b: Entry) -> bool:
    """Two arms on comparable clips; or two networks of one arm, on one kind of input."""
    if any(entry.columns["arm"] in PAPER_ARMS for entry in (a, b)):
        return False
    return _kind(a) == _kind(b) if a.columns["arm"] == b.columns["arm"] else _comparable(a, b)


def _comparable(a: Entry, b: Entry) -> bool:
    """Clips of one length, or one of the two sees single images; or both state a subject, which says what differs."""
    frames = {a.columns["num_frames"], b.columns["num_frames"]}
    return len(frames) == 1 or 1 in frames or bool(_shared_subject(a, b))


def _is_own(entry: Entry) -> bool:
    return is_own_input(*(entry.columns[name] for name in ("arm", "train_input", "test_input")))


def _siblings(own: Entry, entries: list[Entry]) -> list[Entry]:
    """The same weights on other inputs."""
    return [entry for entry in entries if _is_other_input(own, entry)]


def _is_other_input(a: Entry, b: Entry) -> bool:
    """Whether both are one arm's same checkpoint files, seed by seed, on different inputs."""
    weights = [(a.runs[seed].weights_sha256, b.runs[seed].weights_sha256) for seed in a.runs if seed in b.runs]
    are_same = bool(weights) and all(left == right != "" for left, right in weights)
    return are_same and a.columns["arm"] == b.columns["arm"] and a.columns["test_input"] != b.columns["test_input"]


def _kind(entry: Entry) -> str:
    return entry.columns["test_input"].split(":", 1)[0]


def _arm_position(entry: Entry) -> tuple[int, int]:
    arm = entry.columns["arm"]
    return ARM_ORDER.index(arm) if arm in ARM_ORDER else len(ARM_ORDER), entry.columns["num_frames"]


def _protocol_differences(a: ScoredRun, b: ScoredRun) -> dict[str, str]:
    """Text by key; keys that only one of two different networks has belong to that network."""
    if not a.protocol_values or not b.protocol_values:
        return {PROTOCOL_UNKNOWN: PROTOCOL_UNKNOWN}
    same_network = a.columns["model"] == b.columns["model"]
    join = set.union if same_network else set.intersection
    keys = sorted(join(set(a.protocol_values), set(b.protocol_values)))
    pairs = {key: (a.protocol_values.get(key, "-"), b.protocol_values.get(key, "-")) for key in keys}
    return {
        key: f"{key}: {left} / {right}"
        for key, (left, right) in pairs.items()
        if left != right and key.rsplit(".", 1)[-1] not in SUBJECT_KEYS
    }
