"""Real videos into clip indices: what a layout lists, decoded once, divided by class and source, written as CSV."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from Data_Sourcing.class_distribution import count_classes, write_class_distribution
from Data_Sourcing.settings import IndexVideosSettings
from Data_Sourcing.video_copies import report_copies
from Data_Sourcing.video_layouts import read_layout
from Data_Sourcing.video_probing import JOURNAL, ProbedVideo, num_bytes_of, probe_videos
from Data_Sourcing.video_set import ONE_TASK, SPLITS, LabelledVideo, VideoSet
from Data_Sourcing.video_splits import (
    draw_balanced,
    draw_shares,
    draw_splits,
    join_groups,
    name_groups,
    refuse_shared_groups,
    require_classes,
    require_trained_classes,
)
from utils.artifacts import STATUS_FAILED, STATUS_OK, TASK_LABELS, VIDEO_INDEX, write_table
from utils.errors import InputError
from utils.files import sha256_bytes
from utils.runs import open_run
from utils.task_labels import combination_name, task_labels_path

log = logging.getLogger(__name__)
_LAST_FILE = "train.csv"
_OWNED = (*(f"{split}.csv" for split in SPLITS), "*.tasks.csv", "failed_videos.csv", "class_distribution.*")


@dataclass(frozen=True)
class _Video:
    """One video with all that is known of it.

    Attributes:
        key: what it shares with others of its source.
        stratum: its class's name, or the combination of all tasks' classes; `is_whole`: no label is missing.
        reason: why it cannot be used, "" where it can.
    """

    listed: LabelledVideo
    probed: ProbedVideo
    group: str
    key: str
    stratum: str
    is_whole: bool
    reason: str

    @property
    def path(self) -> str:
        """As on disk."""
        return self.listed.path

    @property
    def shown_path(self) -> str:
        """As in a table, which is UTF-8."""
        return self.path.encode("utf-8", "backslashreplace").decode()


def run_indexing(settings: IndexVideosSettings) -> str:
    """Index the videos below `data_root` to `output_dir/{train,val,test}.csv`.

    Returns:
        the keys that a trainer needs, as one writes them on its command line.

    Raises:
        InputError: bad settings or data, a source on both sides of a split, or too many videos that cannot be used.
    """
    videos = read_layout(settings)
    named = name_groups(videos.videos, settings.group_pattern, settings.groups_csv)
    own_splits = {video.path: video.split for video in videos.videos if video.split}
    # What the listing alone says is refused before hours of decoding.
    refuse_shared_groups(own_splits, join_groups(named, {}), named)
    require_trained_classes(videos.videos, own_splits, videos.classes)
    require_classes(settings.keep_in_train, {_stratum(video, videos) for video in videos.videos})
    run = open_run(
        settings, owned=_OWNED, inputs=_inputs(settings, videos), free_keys=_FREE_KEYS, redone_without=_LAST_FILE
    )
    if run.is_done(_LAST_FILE):
        log.info("%s is complete; nothing to do", run.dir / _LAST_FILE)
        return _trainer_keys(settings)
    run.begin()
    paths = [video.path for video in videos.videos]
    probed = probe_videos(settings.data_root, paths, run.dir / JOURNAL, settings.workers)
    found = _describe_videos(videos, probed, named, settings.min_frames)
    _report_failed([video for video in found if video.reason], len(found), settings)
    usable = [video for video in found if not video.reason]
    report_copies([v.listed for v in usable], {v.path: v.probed.sha256 for v in usable}, videos.classes)
    splits = _divide(found, settings)
    used = [video.listed for video in usable if video.path in splits]
    _name_unused_classes(used, videos.classes)
    require_trained_classes(used, splits, videos.classes)
    if "val" not in splits.values():
        log.warning(
            "no video is in val, which trainers need: classes have too few sources; add some, or raise splits.val"
        )
    _write_indices(found, splits, videos, settings)
    return _trainer_keys(settings)


_FREE_KEYS = ("data_root", "index_csv", "groups_csv", "ucf101.annotations")


def _inputs(settings: IndexVideosSettings, videos: VideoSet) -> dict[str, Any]:
    """Names and sizes of the videos, and the files that say their labels and groups."""
    root = settings.data_root
    sizes = {video.path: num_bytes_of(root / video.path) for video in videos.videos}
    listing = "".join(f"{path}\t{size}\n" for path, size in sizes.items() if size is not None)
    groups = {"groups": settings.groups_csv} if settings.groups_csv else {}
    return {"videos": sha256_bytes(listing.encode("utf-8", "backslashreplace"))} | groups | videos.inputs


def _describe_videos(
    videos: VideoSet, probed: Mapping[str, ProbedVideo], named: Mapping[str, str], min_frames: int
) -> list[_Video]:
    reasons = {video.path: _reason(probed[video.path], min_frames) for video in videos.videos}
    contents = {
        video.path: (probed[video.path].sha256, video.known.get("source_sha256", ""))
        for video in videos.videos
        if not reasons[video.path]  # files that are empty are equal, but of no common source
    }
    keys = join_groups(named, contents)
    groups = set(named.values()) - {""}
    return [
        _Video(
            video,
            probed[video.path],
            keys[video.path] if keys[video.path] in groups else "",
            keys[video.path],
            _stratum(video, videos),
            len(video.labels) == len(videos.classes),
            reasons[video.path],
        )
        for video in videos.videos
    ]


def _reason(probed: ProbedVideo, min_frames: int) -> str:
    if not probed.reason and probed.num_frames < min_frames:
        return f"{probed.num_frames} frames, fewer than min_frames={min_frames}"
    return probed.reason


def _stratum(video: LabelledVideo, videos: VideoSet) -> str:
    """The class's name, or the combination of all tasks' classes."""
    if not videos.is_multi_task:
        return videos.classes[ONE_TASK][video.labels[ONE_TASK]]
    return combination_name(
        (task, names[video.labels[task]] if task in video.labels else "") for task, names in videos.classes.items()
    )


def _report_failed(failed: list[_Video], num_videos: int, settings: IndexVideosSettings) -> None:
    if not failed:
        return
    path = settings.output_dir / "failed_videos.csv"
    rows = [_index_row(video, 0, video.stratum) for video in failed]
    write_table(rows, path, VIDEO_INDEX)
    first = f"{failed[0].path} ({failed[0].reason})"
    log.warning("%d of %d videos cannot be used, the first: %s; see %s", len(failed), num_videos, first, path)
    if len(failed) > settings.max_failed_fraction * num_videos:
        raise InputError(
            f"{path}: {len(failed)} of {num_videos} videos cannot be used, more than max_failed_fraction="
            f"{settings.max_failed_fraction:g}; the first: {first}; see the reasons there, mend the videos or raise "
            "the limit"
        )
    if len(failed) == num_videos:
        raise InputError(f"{path}: no video can be used; the first: {first}")


def _divide(found: list[_Video], settings: IndexVideosSettings) -> dict[str, str]:
    """Each path's split: the layout's own, or drawn; a video that cannot be used goes with its source, or to train."""
    usable = [video for video in found if not video.reason]
    own = {video.path: video.listed.split for video in usable if video.listed.split}
    refuse_shared_groups(own, {v.path: v.key for v in usable}, {v.path: v.group for v in usable})
    if settings.per_class is not None:
        usable = _balanced(usable, settings)
    shares = {split: getattr(settings.splits, split) for split in SPLITS if getattr(settings.splits, split)}
    splits = {video.path: own[video.path] for video in usable if video.path in own}
    if not splits:
        splits = _draw(usable, shares, settings.seed)
    elif "val" not in splits.values():
        trained = [video for video in usable if splits[video.path] == "train"]
        total = shares["train"] + shares["val"]
        splits |= _draw(trained, {split: shares[split] / total for split in ("train", "val")}, settings.seed)
    split_of_key = {video.key: splits[video.path] for video in usable}
    trained = {video.path: video.stratum for video in usable if splits[video.path] == "train"}
    left_out = trained.keys() - draw_shares(trained, settings.keep_in_train, settings.seed)
    splits = {path: split for path, split in splits.items() if path not in left_out}
    failed = (video for video in found if video.reason)
    return splits | {v.path: v.listed.split or split_of_key.get(v.key, "train") for v in failed}


def _balanced(usable: list[_Video], settings: IndexVideosSettings) -> list[_Video]:
    """Of whole combinations where a split has some: those with a missing label are many and rare."""
    kept: set[str] = set()
    for split in ("", *SPLITS):
        of_split = [video for video in usable if video.listed.split == split]
        whole = [video for video in of_split if video.is_whole] or of_split
        if num_partial := len(of_split) - len(whole):
            of_which = f" of {split}" if split else ""
            log.warning(
                "per_class: left out%s, because they lack the label of a task: %d videos", of_which, num_partial
            )
        strata = {video.path: video.stratum for video in whole}
        kept |= draw_balanced(strata, settings.per_class, settings.seed) if strata else set()
    return [video for video in usable if video.path in kept]


def _draw(videos: list[_Video], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    return draw_splits({v.path: v.stratum for v in videos}, {v.path: v.key for v in videos}, shares, seed)


def _name_unused_classes(used: list[LabelledVideo], classes: Mapping[str, Sequence[str]]) -> None:
    seen = {item for video in used for item in video.labels.items()}
    for task, names in classes.items():
        for label, class_name in enumerate(names):
            if (task, label) not in seen:
                of_task = f" of task {task!r}" if task else ""
                log.warning("class %r%s has no video that is used", class_name, of_task)


def _write_indices(
    found: list[_Video], splits: Mapping[str, str], videos: VideoSet, settings: IndexVideosSettings
) -> None:
    """All tables, train.csv last: it says that the others stand."""
    names = _class_names(found, splits, videos)
    labels = {name: label for label, name in enumerate(names)}
    rows = {
        split: [_index_row(v, labels[v.stratum], v.stratum) for v in found if splits.get(v.path) == split]
        for split in reversed(SPLITS)
        if split in splits.values()
    }
    task_labels = {video.shown_path: video.listed.labels for video in found}
    counted = count_classes(dict(reversed(rows.items())), task_labels, videos.classes)
    write_class_distribution(counted, settings.output_dir)
    for split, split_rows in rows.items():
        path = settings.output_dir / f"{split}.csv"
        if videos.is_multi_task:
            paths = [row["video_path"] for row in split_rows]
            write_table(_task_rows(paths, task_labels, videos), task_labels_path(path), TASK_LABELS)
        write_table(split_rows, path, VIDEO_INDEX)
        num_ok = sum(row["status"] == STATUS_OK for row in split_rows)
        log.info("%s: %d videos, %d rows that failed", path, num_ok, len(split_rows) - num_ok)


def _class_names(found: list[_Video], splits: Mapping[str, str], videos: VideoSet) -> list[str]:
    """The index's classes in label order; of several tasks, the combinations.

    A combination that train lacks comes first, so that the largest label is one of train's: readers count classes so.
    """
    if not videos.is_multi_task:
        return list(videos.classes[ONE_TASK])
    trained = {video.stratum for video in found if not video.reason and splits.get(video.path) == "train"}
    return sorted({video.stratum for video in found}, key=lambda name: (name in trained, name))


def _index_row(video: _Video, label: int, class_name: str) -> dict[str, Any]:
    probed = video.probed
    named = {"class_name": class_name, "wnid": class_name}
    ours = {"source_path": video.shown_path, "source_sha256": probed.sha256, "generator": "video"} | named
    found = {
        "video_path": video.shown_path,
        "label": label,
        "sha256": probed.sha256,
        "group": video.group,
        "num_frames": probed.num_frames,
        "height": probed.height,
        "width": probed.width,
        "status": STATUS_FAILED if video.reason else STATUS_OK,
        "reason": video.reason,
    }
    return dict.fromkeys(VIDEO_INDEX.column_names) | ours | dict(video.listed.known) | found


def _task_rows(
    paths: list[str], task_labels: Mapping[str, Mapping[str, int]], videos: VideoSet
) -> list[dict[str, Any]]:
    return [
        {
            "video_path": path,
            "task": task,
            "label": task_labels[path][task],
            "class_name": names[task_labels[path][task]],
        }
        for path in paths
        for task, names in videos.classes.items()
        if task in task_labels[path]
    ]


def _trainer_keys(settings: IndexVideosSettings) -> str:
    root, clips_root = shlex.quote(str(settings.output_dir)), shlex.quote(str(settings.data_root))
    made = [split for split in ("train", "val") if (settings.output_dir / f"{split}.csv").exists()]
    indices = " ".join(f"{split}_csv={split}.csv" for split in made)
    return f"data_root={root} {indices} clips_root={clips_root}"
