"""Splits by class and source: how near the fractions come, no group on both sides, and nothing but the seed decides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from Data_Sourcing.video_set import LabelledVideo
from Data_Sourcing.video_splits import (
    draw_balanced,
    draw_shares,
    draw_splits,
    join_groups,
    name_groups,
    refuse_shared_groups,
)
from utils.errors import InputError

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def singles(counts: dict[str, int]) -> tuple[dict[str, str], dict[str, str]]:
    """Videos of each class, each of a source of its own: (strata, keys)."""
    strata = {f"{name}_{number}": name for name, count in counts.items() for number in range(count)}
    return strata, {path: path for path in strata}


def counts_of(splits: dict[str, str], strata: dict[str, str]) -> dict[str, dict[str, int]]:
    """Class -> split -> videos."""
    found: dict[str, dict[str, int]] = {name: Counter() for name in strata.values()}
    for path, split in splits.items():
        found[strata[path]][split] += 1
    return {name: dict(splits) for name, splits in found.items()}


def test_counts_are_the_exact_shares_where_these_are_whole():
    strata, keys = singles({"a": 100, "b": 20, "c": 40})
    assert counts_of(draw_splits(strata, keys, SHARES, 0), strata) == {
        "a": {"train": 70, "val": 15, "test": 15},
        "b": {"train": 14, "val": 3, "test": 3},
        "c": {"train": 28, "val": 6, "test": 6},
    }


@pytest.mark.parametrize("shares", [SHARES, {"train": 0.8, "val": 0.2}, {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}])
def test_counts_differ_by_less_than_one_video_where_each_is_a_source(shares):
    strata, keys = singles({f"class {count}": count for count in range(7, 60)})
    for name, found in counts_of(draw_splits(strata, keys, shares, 3), strata).items():
        total = sum(found.values())
        for split, share in shares.items():
            assert abs(found[split] - share * total) < 1, (name, split)


def test_odd_ones_go_to_val_and_test_in_turn():
    strata, keys = singles({f"class {number}": 10 for number in range(10)})  # 7, 1.5, 1.5 each
    totals = Counter(draw_splits(strata, keys, SHARES, 0).values())
    assert totals == {"train": 70, "val": 15, "test": 15}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"train": 1}),
        (2, {"train": 1, "val": 1}),
        (3, {"train": 1, "val": 1, "test": 1}),
        (4, {"train": 2, "val": 1, "test": 1}),
    ],
)
def test_a_rare_class_is_in_train_first_and_then_in_every_split(count, expected):
    strata, keys = singles({"rare": count, "often": 40})
    assert counts_of(draw_splits(strata, keys, SHARES, 0), strata)["rare"] == expected


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_counts_differ_by_less_than_the_largest(seed):
    draw = np.random.default_rng(seed)
    strata, keys = {}, {}
    for name in "abcde":
        for group in range(int(draw.integers(12, 40))):
            for clip in range(int(draw.integers(1, 8))):
                strata[f"{name}/{group}/{clip}"], keys[f"{name}/{group}/{clip}"] = name, f"{name}/{group}"
    splits = draw_splits(strata, keys, SHARES, seed)
    assert len({(keys[path], split) for path, split in splits.items()}) == len(set(keys.values()))
    for found in counts_of(splits, strata).values():
        total = sum(found.values())
        assert all(abs(found[split] - share * total) < 7 for split, share in SHARES.items())
        # The largest go first, so that small ones even out: measured, at most 1 video of 40 to 200.
        assert all(abs(found[split] - share * total) <= 1.5 for split, share in SHARES.items())


@pytest.mark.parametrize("seed", range(5))
def test_persons_who_do_many_things_are_divided_near_the_shares(seed):
    """Groups with all classes in them: 30 persons, 6 classes, 1 to 4 videos of some."""
    draw = np.random.default_rng(seed)
    strata = {
        f"{person}/{name}/{clip}": name
        for person in range(30)
        for name in "abcdef"
        for clip in range(int(draw.integers(0, 5)))
    }
    keys = {path: path.split("/")[0] for path in strata}
    splits = draw_splits(strata, keys, SHARES, seed)
    assert len(set(zip(keys.values(), (splits[path] for path in keys), strict=True))) == 30
    for found in counts_of(splits, strata).values():
        total = sum(found.values())
        assert all(abs(found[split] / total - share) < 0.1 for split, share in SHARES.items()), found


def test_only_the_seed_decides():
    strata, keys = singles({"a": 30, "b": 30})
    drawn = draw_splits(strata, keys, SHARES, 0)
    assert draw_splits(dict(reversed(strata.items())), dict(reversed(keys.items())), SHARES, 0) == drawn
    assert draw_splits(strata, keys, SHARES, 1) != drawn


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_and_equal_files_join_in_chains():
    named = {"a": "g1", "b": "g1", "c": "g2", "d": "", "e": "", "f": "", "g": ""}
    contents = {"b": ["x"], "c": ["x"], "d": ["y", ""], "e": ["y"], "f": ["z"], "g": [""]}
    keys = join_groups(named, contents)
    assert keys == {"a": "g1", "b": "g1", "c": "g1", "d": "d", "e": "d", "f": "f", "g": "g"}


def test_a_group_called_like_a_hash_or_a_path_joins_nothing_else():
    keys = join_groups({"p": "q", "q": "", "r": ""}, {"r": ["q"]})
    assert len({keys["p"], keys["r"]}) == 2 and keys["r"] == "r"


def test_a_long_chain_of_equal_files_is_one_group():
    named = {f"{number:04d}": "" for number in range(3000)}
    contents = {path: [f"h{int(path)}", f"h{int(path) + 1}"] for path in named}
    assert set(join_groups(named, contents).values()) == {"0000"}


def test_a_group_on_both_sides_is_named_with_a_video_of_each():
    splits = {"train/a_1": "train", "train/a_2": "train", "val/a_3": "val", "val/b_1": "val", "test/b_2": "test"}
    named = {path: path.split("/")[1][0] for path in splits}
    with pytest.raises(InputError, match=r"group 'a' is in train \(train/a_1\) and in val \(val/a_3\), and 1 more; "):
        refuse_shared_groups(splits, join_groups(named, {}), named)
    equal = dict.fromkeys(splits, "")
    keys = join_groups(equal, {"train/a_2": ["x"], "test/b_2": ["x"]})
    with pytest.raises(InputError, match=r"same video or source is in test \(test/b_2\) and in train \(train/a_2\); "):
        refuse_shared_groups(splits, keys, equal)
    refuse_shared_groups(splits, join_groups(equal, {}), equal)


def test_groups_come_from_the_pattern_the_table_or_the_layout(tmp_path):
    videos = [LabelledVideo("a/v_g01_c1.avi", {"": 0}, group="own"), LabelledVideo("b/v_g02_c1.avi", {"": 1})]
    assert name_groups(videos, None, None) == {"a/v_g01_c1.avi": "own", "b/v_g02_c1.avi": ""}
    assert list(name_groups(videos, r"_g(\d+)_", None).values()) == ["01", "02"]
    with pytest.raises(InputError, match=r"group_pattern: '_g\(01\)' finds no group in 'b/v_g02_c1.avi'"):
        name_groups(videos, "_g(01)", None)
    table = tmp_path / "groups.csv"
    table.write_text("video_path,group\na/v_g01_c1.avi,anna\nb/v_g02_c1.avi,bert\n")
    assert list(name_groups(videos, None, table).values()) == ["anna", "bert"]
    table.write_text("video_path,group\na/v_g01_c1.avi,anna\n")
    with pytest.raises(InputError, match=r"groups.csv: gives no group for b/v_g02_c1.avi; add a row"):
        name_groups(videos, None, table)


# --- balanced subsets ------------------------------------------------------------------------------------------------


def test_a_balanced_subset_has_the_same_number_of_each_class():
    strata, _ = singles({"a": 30, "b": 9, "c": 12})
    drawn = draw_balanced(strata, 8, 0)
    assert Counter(strata[path] for path in drawn) == {"a": 8, "b": 8, "c": 8}
    assert draw_balanced(dict(reversed(strata.items())), 8, 0) == drawn != draw_balanced(strata, 8, 1)
    assert draw_balanced(strata, 5, 0) < drawn


def test_a_share_of_each_named_class_is_drawn_and_at_least_one_video():
    strata, _ = singles({"a": 40, "b": 40, "c": 3})
    drawn = draw_shares(strata, {"b": 0.1, "c": 0.01}, 0)
    assert Counter(strata[path] for path in drawn) == {"a": 40, "b": 4, "c": 1}
    assert drawn == draw_shares(dict(reversed(strata.items())), {"b": 0.1, "c": 0.01}, 0)
    assert drawn != draw_shares(strata, {"b": 0.1, "c": 0.01}, 1)
    assert drawn < draw_shares(strata, {"b": 0.5, "c": 0.01}, 0), "a smaller share is a part of a larger one"


def test_the_rarest_class_bounds_a_balanced_subset_and_is_named(caplog):
    strata, _ = singles({"a": 30, "b": 3})
    assert Counter(strata[path] for path in draw_balanced(strata, 8, 0)) == {"a": 3, "b": 3}
    assert "class 'b' has only 3 videos" in caplog.text
