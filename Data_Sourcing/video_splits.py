"""Splits of videos: stratified by class, and never with one source video, person or scene on both sides.

Whoever trains on one clip of a source and is tested on another is graded on its background. So the unit that is drawn
is the group: videos of one group, and files of equal content, are on one side.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from Data_Sourcing.video_set import LabelledVideo
from utils.artifacts import VIDEO_GROUPS, read_table
from utils.errors import InputError

log = logging.getLogger(__name__)


def name_groups(videos: Sequence[LabelledVideo], group_pattern: str | None, groups_csv: Path | None) -> dict[str, str]:
    """The group of each video: by the pattern or the table, else the layout's own; "" where there is none.

    Raises:
        InputError: a video that the pattern does not match, or the table does not list.
    """
    if group_pattern is not None:
        return {video.path: _search(group_pattern, video.path) for video in videos}
    if groups_csv is None:
        return {video.path: video.group for video in videos}
    table = read_table(groups_csv, VIDEO_GROUPS)
    listed = dict(zip(table["video_path"], table["group"], strict=True))
    for video in videos:
        if not listed.get(video.path):
            raise InputError(f"{groups_csv}: gives no group for {video.path}; add a row, a group for every video")
    return {video.path: listed[video.path] for video in videos}


def join_groups(named: Mapping[str, str], contents: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """One key for all videos that belong together: of one group, of equal content, or by a chain of both.

    Args:
        named: path -> group, or "".
        contents: path -> hashes, of the file and of what it was made from.

    Returns:
        path -> key: the first of the groups' names, or the first path where there is none.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root_of(node: tuple[str, str]) -> tuple[str, str]:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]  # halves the way for whoever comes next
            node = above
        return node

    for path, group in named.items():
        links = [("group", group)] if group else []
        links += [("content", content) for content in contents.get(path, ()) if content]
        for link in links:
            parent[root_of(("path", path))] = root_of(link)
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in named:
        members[root_of(("path", path))].append(path)
    keys = {root: _key_of(paths, named) for root, paths in members.items()}
    return {path: keys[root_of(("path", path))] for path in named}


def refuse_shared_groups(splits: Mapping[str, str], keys: Mapping[str, str], named: Mapping[str, str]) -> None:
    """Refuse splits that have a group on both sides.

    Args:
        splits: path -> split.
        keys: path -> key, of `join_groups`.
        named: path -> group, or "".

    Raises:
        InputError: names the first such group and a video of each side.
    """
    first: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(splits):
        first[keys[path]].setdefault(splits[path], path)
    shared = {key: sides for key, sides in sorted(first.items()) if len(sides) > 1}
    if not shared:
        return
    key, sides = next(iter(shared.items()))
    places = " and in ".join(f"{split} ({path})" for split, path in sides.items())
    is_named = {named[path] for path in sides.values()} == {key}
    what = f"group {key!r} is" if is_named else "the same video or source is"
    more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
    raise InputError(
        f"{what} in {places}{more}; a source on both sides makes the figures worthless: move or remove the videos of "
        "one side, or merge the splits into one folder and let `splits` draw them"
    )


def draw_splits(
    strata: Mapping[str, str], keys: Mapping[str, str], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Give every group to one split, so that each class is divided as `fractions` says.

    Groups are taken class by class, the rarest first, the largest groups of a class first, and each goes where its
    classes are furthest below their share. Where all groups of a class have one video, its counts differ from the exact
    shares by less than 1 (as long as each share is at least 1); with larger groups, by less than the largest. A class
    with at least as many groups as there are splits is in each of them; one with fewer is in the first.

    Args:
        strata: path -> class.
        keys: path -> group.
        fractions: split -> share, greater than 0, in the order in which rare classes are served.

    Returns:
        path -> split.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for path, stratum in strata.items():
        counts[keys[path]][stratum] += 1
    totals = Counter(strata.values())
    num_left = Counter(stratum for found in counts.values() for stratum in found)
    rarity = dict(num_left)
    have = {split: Counter() for split in fractions}

    def order(key: str) -> tuple[int, str, int, bytes]:
        rarest = min(counts[key], key=lambda stratum: (rarity[stratum], stratum))
        return rarity[rarest], rarest, -counts[key].total(), _shuffled(key, seed)

    split_of: dict[str, str] = {}
    for key in sorted(counts, key=order):
        choices = _splits_that_need(counts[key], num_left, have)
        excess = {split: _excess(counts[key], have[split], totals, fractions[split]) for split in choices}
        split = min(choices, key=excess.__getitem__)
        split_of[key] = split
        have[split] += counts[key]
        num_left -= Counter(dict.fromkeys(counts[key], 1))
    return {path: split_of[keys[path]] for path in strata}


def draw_balanced(strata: Mapping[str, str], per_class: int, seed: int) -> set[str]:
    """The same number of videos of each class: `per_class`, or as many as the rarest has.

    Args:
        strata: path -> class.
    """
    by_stratum: dict[str, list[str]] = defaultdict(list)
    for path, stratum in strata.items():
        by_stratum[stratum].append(path)
    rarest = min(by_stratum, key=lambda stratum: (len(by_stratum[stratum]), stratum))
    count = min(per_class, len(by_stratum[rarest]))
    if count < per_class:
        log.warning("per_class: class %r has only %d videos; so many are taken of each class", rarest, count)
    shuffled = {stratum: sorted(paths, key=lambda path: _shuffled(path, seed)) for stratum, paths in by_stratum.items()}
    return {path for paths in shuffled.values() for path in paths[:count]}


def draw_shares(strata: Mapping[str, str], shares: Mapping[str, float], seed: int) -> set[str]:
    """Of each class a share, rounded, and at least one video; of a class that is not named, all.

    A smaller share is a part of a larger one of the same seed.

    Args:
        strata: path -> class.
        shares: class -> share, in (0, 1].
    """
    by_stratum: dict[str, list[str]] = defaultdict(list)
    for path in sorted(strata, key=lambda path: _shuffled(path, seed)):
        by_stratum[strata[path]].append(path)
    counts = {stratum: max(1, round(shares.get(stratum, 1) * len(paths))) for stratum, paths in by_stratum.items()}
    return {path for stratum, paths in by_stratum.items() for path in paths[: counts[stratum]]}


def require_classes(shares: Mapping[str, float], known: Collection[str]) -> None:
    """Make sure that `draw_shares` is given classes that are there.

    Raises:
        InputError: names the first that is not.
    """
    if unknown := sorted(shares.keys() - set(known)):
        raise InputError(f"keep_in_train: no video is of class {unknown[0]!r}; known: {', '.join(sorted(known))}")


def require_trained_classes(
    videos: Iterable[LabelledVideo], splits: Mapping[str, str], classes: Mapping[str, Sequence[str]]
) -> None:
    """Make sure that every class that is tested is trained.

    Args:
        splits: path -> split; a video without one is of none.
        classes: task -> names in label order.

    Raises:
        InputError: names the first class that is not, and a video of it.
    """
    first: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for video in videos:
        if video.path in splits:
            for item in video.labels.items():
                first[item].setdefault(splits[video.path], video.path)
    for (task, label), sides in sorted(first.items()):
        if "train" not in sides:
            split, path = next(iter(sides.items()))
            of_task = f" of task {task!r}" if task else ""
            raise InputError(
                f"class {classes[task][label]!r}{of_task} is in {split} ({path}) but not in train; add videos or "
                "sources of it, remove it, or draw with another seed"
            )


def _search(pattern: str, path: str) -> str:
    match = re.search(pattern, path)
    if match is None or not match.group(1):
        raise InputError(f"group_pattern: {pattern!r} finds no group in {path!r}; correct it, or use groups_csv")
    return match.group(1)


def _key_of(paths: list[str], named: Mapping[str, str]) -> str:
    return min((named[path] for path in paths if named[path]), default=min(paths))


def _shuffled(key: str, seed: int) -> bytes:
    """Its place in an order that only the seed and its name decide."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _splits_that_need(group: Counter[str], num_left: Counter[str], have: Mapping[str, Counter[str]]) -> tuple[str, ...]:
    """All splits; or one without a class of this group, where no more groups of it are left than such splits."""
    for stratum in sorted(group, key=lambda stratum: (num_left[stratum], stratum)):
        lacking = [split for split, found in have.items() if not found[stratum]]
        if lacking and num_left[stratum] <= len(lacking):
            return (lacking[0],)
    return tuple(have)


def _excess(group: Counter[str], found: Counter[str], totals: Counter[str], fraction: float) -> tuple[float, float]:
    """How far a split would be beyond its shares with this group: of the group's classes, then of all videos.

    The first is by how much the sum over classes of (count - share)^2 / total grows, halved and without what is the
    same for all splits.
    """
    of_classes = sum(
        count * (found[stratum] + count / 2 - fraction * totals[stratum]) / totals[stratum]
        for stratum, count in group.items()
    )
    return round(of_classes, 9), found.total() - fraction * totals.total()
