"""One run in several parts: `shard: i/n` for job arrays, one process a GPU under `accelerate launch`, and the merge.

Each shard keeps its own books (`shards/i-of-n/`: config, journal, indices) and writes its clips to the common folders;
the merge checks that nothing is missing or double, then writes the common indices.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from Data_Augmentation_SVD.dataset_card import write_dataset_card
from Data_Augmentation_SVD.generation_stats import STATS_FILE, read_sessions, write_sessions
from Data_Augmentation_SVD.settings import GenerationSettings, MergeSettings
from Data_Augmentation_SVD.split_files import clip_name, iterate_index_rows, split_folders
from Data_Augmentation_SVD.tiny_imagenet_aug import TinyImageNetAug
from utils.artifacts import CLIP_INDEX, STATUS_OK, format_table
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.files import atomic_path
from utils.indices import shard_range
from utils.runs import Run, find_changes, open_run, read_environment, recorded_inputs

log = logging.getLogger(__name__)
SHARDS_FOLDER = "shards"
# Where the images are, what part is made, and what costs only time and memory.
FREE_KEYS = ("data_root", "wnids_file", "splits", "shard", "chunk_size", "svd.offload")


def parse_shard(text: str | None) -> tuple[int, int]:
    """`i/n` -> (i, n); without it, this process's place under `accelerate launch` or torchrun; else (1, 1).

    Raises:
        InputError: both at once.
    """
    num_processes = int(os.environ.get("WORLD_SIZE") or 1)  # some launchers leave it empty
    if text is None:
        return (int(os.environ.get("RANK") or 0) + 1, num_processes) if num_processes > 1 else (1, 1)
    if num_processes > 1:
        raise InputError(
            "shard: several processes were launched, which are shards already; drop shard, or use python -m"
        )
    part, num_parts = text.split("/")
    return int(part), int(num_parts)


def shard_folder(output_dir: Path, shard: tuple[int, int]) -> Path:
    """Where a shard keeps its books."""
    return output_dir / SHARDS_FOLDER / "{}-of-{}".format(*shard)


def open_shard(settings: GenerationSettings, shard: tuple[int, int], **options: Any) -> Run:
    """Open a shard's own run folder, made sure that no other settings are at work on the common clips.

    Raises:
        InputError: as `open_run`; or the folder holds an unsharded run, or shards with other settings.
    """
    output_dir = settings.output_dir
    own = settings.model_copy(update={"output_dir": shard_folder(output_dir, shard), "shard": "{}/{}".format(*shard)})
    if (output_dir / "config.yaml").exists() and not (output_dir / SHARDS_FOLDER).exists():
        raise InputError(f"{output_dir} holds a run without shards; choose another output_dir, or drop shard")
    others = sorted((output_dir / SHARDS_FOLDER).glob("*-of-*/config.yaml"))
    others = [other for other in others if other.parent != own.output_dir]
    for other in others[:1]:  # they agree among themselves, as each was compared when it began
        changed = find_changes(other, own, {*options.get("free_keys", ())})
        if other.parent.name.partition("-of-")[2] != str(shard[1]):
            changed.append(f"shard: {read_yaml(other)['shard']!r} -> {own.shard!r}")
        if changed and not settings.overwrite:
            raise InputError(
                f"{other.parent} was made with other settings ({'; '.join(changed)}); all shards of one output_dir "
                "must have the same; choose another output_dir, or remove the old shards and their clips"
            )
    names = (*(f"{split}.{kind}" for split in ("train", "val") for kind in ("csv", "journal.csv")), STATS_FILE)
    return open_run(own, owned=names, **options)


def refuse_unmerged(output_dir: Path) -> None:
    """Refuse a run without shards over shards that are not merged.

    Raises:
        InputError: there are some.
    """
    if (output_dir / SHARDS_FOLDER).exists() and not (output_dir / "config.yaml").exists():
        raise InputError(
            f"{output_dir / SHARDS_FOLDER}: shards that are not merged lie here; run merge_shards, or choose another "
            "output_dir"
        )


def merge_shards(settings: MergeSettings) -> list[Path]:
    """Check the shards of an output folder for gaps, duplicates and disagreement, then write the common indices.

    Returns:
        one clip index a split.

    Raises:
        InputError: what is missing, double or different.
    """
    folders = _complete_set(settings.output_dir)
    first = _settings_of(folders, settings)
    inputs = recorded_inputs(folders[0] / "environment.json") or {}
    free_keys = FREE_KEYS + (("diffusion_model",) if "diffusion_model" in inputs else ())
    run = open_run(first, owned=("train.csv", "val.csv"), inputs=inputs, free_keys=free_keys)
    _require_agreement(folders, first, inputs, free_keys)
    totals = {
        split: TinyImageNetAug(first.data_root, split, first.wnids_file, (1, 10**9)).num_total for split in first.splits
    }
    for split, num_images in totals.items():
        _check_split(folders, split, num_images, first)
        _require_files(folders, split, split_folders(settings.output_dir, split).clips)
    for split in first.splits:
        _refuse_newer_index(folders, split, settings.output_dir)
    run.begin(_recorded_device(folders[0]))
    indices = [_write_index(folders, split, settings.output_dir) for split in first.splits]
    _write_sessions(folders, settings.output_dir)
    write_dataset_card(settings.output_dir)
    log.info("merged %d shards: %s", len(folders), ", ".join(map(str, indices)))
    return indices


def _complete_set(output_dir: Path) -> list[Path]:
    """The folders of shards 1 to n, in order."""
    found = sorted((output_dir / SHARDS_FOLDER).glob("*-of-*"))
    if not found:
        raise InputError(f"{output_dir / SHARDS_FOLDER}: there are no shards; run make_svd_videos with shard=i/n first")
    counts = {folder.name.partition("-of-")[2] for folder in found}
    if len(counts) > 1:
        raise InputError(f"{output_dir / SHARDS_FOLDER}: shards of runs with n = {', '.join(sorted(counts))}; keep one")
    num_parts = int(counts.pop())
    folders = [shard_folder(output_dir, (part, num_parts)) for part in range(1, num_parts + 1)]
    missing = [folder.name for folder in folders if not (folder / "config.yaml").exists()]
    if missing:
        raise InputError(f"{output_dir / SHARDS_FOLDER}: {', '.join(missing)} never ran; run them, then merge again")
    return folders


def _settings_of(folders: list[Path], settings: MergeSettings) -> GenerationSettings:
    """The settings of the shards as those of the whole run, with all splits that any shard has worked on."""
    config_path = folders[0] / "config.yaml"
    content = read_yaml(config_path) | {"output_dir": str(settings.output_dir), "shard": None}
    # A split that was made later is not in the record, which is that of the first run.
    asked = {split for folder in folders for split in read_yaml(folder / "config.yaml")["splits"]}
    made = {path.name.partition(".")[0] for folder in folders for path in folder.glob("*.csv")}
    content["splits"] = [split for split in ("train", "val") if split in asked | made]
    if settings.data_root is not None:
        content["data_root"] = str(settings.data_root)
    return build_settings(GenerationSettings, content, str(config_path))


def _require_agreement(
    folders: list[Path], first: GenerationSettings, inputs: dict[str, str], free_keys: tuple[str, ...]
) -> None:
    """Refuse shards whose settings or images differ from those of the first one."""
    for folder in folders[1:]:
        changed = find_changes(folder / "config.yaml", first, {*free_keys})
        theirs = recorded_inputs(folder / "environment.json") or {}
        changed += [
            f"{name}: other content" for name in sorted(inputs) if theirs.get(name, inputs[name]) != inputs[name]
        ]
        changed += find_changed_weights(_recorded_device(folders[0]) or {}, _recorded_device(folder) or {})
        if changed:
            raise InputError(
                f"{folder} was made with other settings than {folders[0]} ({'; '.join(changed)}); run the one that is "
                "wrong again with overwrite=true, then merge"
            )


def _recorded_device(folder: Path) -> dict[str, Any] | None:
    """What computed; the machine that merges may be another one."""
    return read_environment(folder / "environment.json").get("device")


def find_changed_weights(recorded: dict[str, Any], device: dict[str, Any]) -> list[str]:
    """How what computes differs in what makes the pixels, as `key: old -> new`; unknown values differ from nothing."""
    return [
        f"{key}: {recorded[key]!r} -> {device[key]!r}"
        for key in ("model_commit", "dtype")
        if recorded.get(key) and device.get(key) and recorded[key] != device[key]
    ]


def _check_split(folders: list[Path], split: str, num_images: int, settings: GenerationSettings) -> None:
    """Every clip once, in order, in the shard it belongs to."""
    per_image = settings.clips_per_image
    for part, folder in enumerate(folders, start=1):
        index_path = folder / f"{split}.csv"
        if not index_path.exists() or (folder / f"{split}.journal.csv").exists():
            raise InputError(f"{index_path}: shard {part}/{len(folders)} is not finished; run it again, then merge")
        images = shard_range(num_images, (part, len(folders)))
        expected = [
            clip_name(number, num_images * per_image)
            for number in range(images.start * per_image, images.stop * per_image)
        ]
        found = [row["video_path"] for row in iterate_index_rows(index_path)]
        if found != expected:
            missing, foreign = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
            what = f"has {foreign[0]}, another shard's" if foreign else "is unordered"
            what = f"lacks {missing[0]}" if missing else what
            twice = next((name for name, count in Counter(found).items() if count > 1), None)
            what = f"has {twice} twice" if twice else what
            raise InputError(f"{index_path}: {what}; remove this index and run shard {part}/{len(folders)} again")
    _require_different_sources(folders, split)


def _require_files(folders: list[Path], split: str, clips_dir: Path) -> None:
    """Refuse an index whose clips are gone; what they hold is checked when they are loaded."""
    for part, folder in enumerate(folders, start=1):
        for row in iterate_index_rows(folder / f"{split}.csv"):
            if row["status"] == STATUS_OK and not (clips_dir / row["video_path"]).is_file():
                raise InputError(
                    f"{folder / f'{split}.csv'}: its clip {row['video_path']} is gone from {clips_dir}; run shard "
                    f"{part}/{len(folders)} again, then merge"
                )


def _require_different_sources(folders: list[Path], split: str) -> None:
    """Refuse two clips of one image with one number: the shards have not seen the same list of images."""
    names: dict[tuple[str, int], str] = {}
    for folder in folders:
        for row in iterate_index_rows(folder / f"{split}.csv"):
            name = names.setdefault((row["source_path"], row["clip_number"]), row["video_path"])
            if name != row["video_path"]:
                raise InputError(
                    f"{folder / f'{split}.csv'}: {row['video_path']} is of {row['source_path']}, as is {name}; the "
                    "images have changed between two shards; run all shards again with overwrite=true, then merge"
                )


def _refuse_newer_index(folders: list[Path], split: str, output_dir: Path) -> None:
    """Clips may have been mended without shards since the last merge; the shards' older rows must not replace those."""
    path = output_dir / f"{split}.csv"
    for common, ours in zip_longest(iterate_index_rows(path), _all_rows(folders, split)):
        if common is None:  # there is no common index yet
            return
        if ours is None or _progress_of(common) > _progress_of(ours):
            raise InputError(
                f"{path}: {common['video_path']} was made again without shards since the last merge; keep this index, "
                "or remove it to take the shards' word"
            )


def _progress_of(row: dict[str, Any]) -> tuple[bool, int]:
    """What a retry makes larger."""
    return row["status"] == STATUS_OK, row["attempt"] or 0


def _all_rows(folders: list[Path], split: str) -> Iterator[dict[str, Any]]:
    for folder in folders:
        yield from iterate_index_rows(folder / f"{split}.csv")


def _write_index(folders: list[Path], split: str, output_dir: Path) -> Path:
    """One shard's rows after the other's: their order is that of the clips."""
    path = output_dir / f"{split}.csv"
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(format_table([], CLIP_INDEX))
        for row in _all_rows(folders, split):
            file.write(format_table([row], CLIP_INDEX, header=False))
    return path


def _write_sessions(folders: list[Path], output_dir: Path) -> None:
    """The shards' sessions in the common record, in place of what an earlier merge put there."""
    own = [session for session in read_sessions(output_dir) if "shard" not in session]
    theirs = [session | {"shard": folder.name} for folder in folders for session in read_sessions(folder)]
    write_sessions(output_dir, [*own, *theirs])
