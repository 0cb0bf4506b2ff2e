"""Copy one split of the chosen classes into a clean image set with an index; a bad image is a row, never a crash."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath

from Data_Sourcing.raw_layout import RawImage, RawTree, list_images, open_raw_tree
from Data_Sourcing.settings import ClassSetting, SourcingSettings
from utils.artifacts import IMAGE_INDEX, SOURCING_ISSUES, read_table, write_table
from utils.config import read_yaml
from utils.errors import InputError
from utils.files import atomic_path, sha256_bytes, write_bytes
from utils.images import ImageError, decode_image, encode_png, format_mismatch
from utils.runs import open_run
from utils.utils import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sourced:
    """What became of one raw image: an index row, an issue row, or both."""

    source_path: str
    row: dict | None
    issue: dict | None


def run_sourcing(settings: SourcingSettings, split: str) -> Path:
    """Source one split (`train` or `val`): images to `output_dir/split/<wnid>/`, then the index `split.csv`.

    Returns:
        the path of the index, which is written last.

    Raises:
        InputError: bad settings or raw data, too many unusable images, or an image shared by train and val.
    """
    index_name, issues_name = f"{split}.csv", f"{split}_issues.csv"
    run = open_run(
        settings,
        owned=(split, index_name, issues_name),
        inputs=_raw_inputs(settings, split),
        config_name=f"{split}.config.yaml",
        free_keys=("raw_root", "download", "download_url", "download_md5"),
        redone_without=index_name,
    )
    index_path, issues_path = run.dir / index_name, run.dir / issues_name
    if run.is_done(index_name):
        log.info("%s is complete; nothing to do", index_path)
        return index_path
    _require_other_splits_classes(run.dir, split, settings)
    tree = open_raw_tree(_fetch_raw_data(settings))
    run.record_inputs(_raw_inputs(settings, split))  # a download was not there when the run was opened
    labels = {item.wnid: (label, item) for label, item in enumerate(settings.classes)}
    images = list_images(tree, split, list(labels))
    run.begin()
    steps = progress(images, len(images), f"{split} images", every=1000)
    taken: set[str] = set()
    sourced = [_source_image(tree, image, *labels[image.wnid], run.dir, split, taken) for image in steps]
    rows = [item.row for item in sourced if item.row]
    issues = [item.issue for item in sourced if item.issue]
    issues += _describe_duplicates(sourced)
    _report_issues(issues, issues_path, len(images), settings.max_rejected_fraction)
    _check_leakage(rows, split, settings)
    write_table(rows, index_path, IMAGE_INDEX)
    log.info("%d %s images of %d classes: %s", len(rows), split, len(labels), index_path)
    return index_path


def _raw_inputs(settings: SourcingSettings, split: str) -> dict[str, Path | str]:
    """What tells one raw data set from another at little cost: the archive, or names and sizes of a folder's files."""
    root = settings.raw_root
    if not root.is_dir():
        return {"raw data": root}
    folders = [root / "val"] if split == "val" else [root / "train" / item.wnid for item in settings.classes]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    listing = "".join(f"{path.relative_to(root)}\t{path.stat().st_size}\n" for path in files)
    return {"raw data": sha256_bytes(listing.encode("utf-8", "backslashreplace"))}


def _require_other_splits_classes(output_dir: Path, split: str, settings: SourcingSettings) -> None:
    other = output_dir / f"{_other(split)}.config.yaml"
    if not other.exists() or not (output_dir / f"{_other(split)}.csv").exists():
        return
    theirs = [(item["wnid"], item["name"]) for item in read_yaml(other)["classes"]]
    if theirs != [(item.wnid, item.name) for item in settings.classes]:
        raise InputError(
            f"classes: differ from those of {_other(split)}.csv in {output_dir}; use one class list for both splits, "
            "or choose another output_dir"
        )


def _other(split: str) -> str:
    return "val" if split == "train" else "train"


def _fetch_raw_data(settings: SourcingSettings) -> Path:
    """The raw data's path; downloaded first where that is asked for and nothing is there yet."""
    path = settings.raw_root
    if not settings.download or path.exists():
        return path
    if path.suffix != ".zip":
        raise InputError(f"raw_root: {path} must end in .zip when download is true; the archive is saved there")
    from torchvision.datasets.utils import download_url  # heavy, and only needed for a download

    log.info("downloading %s", settings.download_url)
    try:
        with atomic_path(path) as partial:
            download_url(settings.download_url, str(partial.parent), partial.name, settings.download_md5)
    except (OSError, RuntimeError) as error:  # RuntimeError: the checksum differs
        raise InputError(
            f"download of {settings.download_url} failed ({error}); fetch it by hand, save it as {path} and set "
            "download: false"
        ) from None
    return path


def _source_image(
    tree: RawTree, image: RawImage, label: int, item: ClassSetting, root: Path, split: str, taken: set[str]
) -> _Sourced:
    identity = {"label": label, "class_name": item.name, "wnid": item.wnid}
    source_path = image.path.encode("utf-8", "backslashreplace").decode()
    try:
        if source_path != image.path:
            raise ImageError("its name is not UTF-8; rename it")
        content = tree.read_bytes(image.path)
        decoded, change = decode_image(content)
    except (ImageError, OSError) as error:
        reason = "the file is missing" if isinstance(error, FileNotFoundError) else str(error)
        return _Sourced(
            source_path,
            None,
            {"source_path": source_path, **identity, "status": "rejected", "reason": " ".join(reason.split())},
        )
    change = ", ".join(filter(None, (change, format_mismatch(content, image.path))))
    name = _flat_name(image)
    if change:
        content, name = encode_png(decoded), f"{name}.png"
    relative = _free_name(f"{split}/{item.wnid}/{name}", taken)
    write_bytes(root / relative, content)
    issue = {"source_path": source_path, **identity, "status": "converted", "reason": change} if change else None
    return _Sourced(source_path, {"image_path": relative, **identity, "sha256": sha256_bytes(content)}, issue)


def _free_name(relative: str, taken: set[str]) -> str:
    """The path itself, or with `_2`, `_3`, ... before its ending where an earlier image has it; then it is taken."""
    path = PurePosixPath(relative)
    numbered = (str(path.with_stem(f"{path.stem}_{number}")) for number in count(2))
    free = next(name for name in chain([relative], numbered) if name not in taken)
    taken.add(free)
    return free


def _flat_name(image: RawImage) -> str:
    """The file name within its class: sub-folders other than the layout's own become a part of it."""
    *folders, name = PurePosixPath(image.path).parts[1:]
    parts = [*(folder for folder in folders if folder not in ("images", image.wnid)), name]
    return "_".join(parts).replace("\\", "_")


def _describe_duplicates(sourced: list[_Sourced]) -> list[dict]:
    first: dict[str, _Sourced] = {}
    issues = []
    for item in filter(lambda item: item.row, sourced):
        if (earlier := first.setdefault(item.row["sha256"], item)) is not item:
            identity = {key: item.row[key] for key in ("label", "class_name", "wnid")}
            reason = f"same content as {earlier.source_path} (label {earlier.row['label']}); both are kept"
            issues.append({"source_path": item.source_path, **identity, "status": "duplicate", "reason": reason})
    return issues


def _report_issues(issues: list[dict], issues_path: Path, num_images: int, max_rejected_fraction: float) -> None:
    if not issues:
        return
    write_table(issues, issues_path, SOURCING_ISSUES)
    counts = Counter(issue["status"] for issue in issues)
    log.warning("%s: %s", issues_path, ", ".join(f"{count} {status}" for status, count in counts.items()))
    rejected = counts["rejected"]
    if rejected > max_rejected_fraction * num_images:
        raise InputError(
            f"{issues_path}: {rejected} of {num_images} images cannot be used, more than max_rejected_fraction="
            f"{max_rejected_fraction:g}; see the reasons there, mend the raw data or raise the limit"
        )


def _check_leakage(rows: list[dict], split: str, settings: SourcingSettings) -> None:
    other_path = settings.output_dir / f"{_other(split)}.csv"
    if not other_path.exists():
        return  # the other split is sourced later and looks at this one then
    table = read_table(other_path, IMAGE_INDEX)
    elsewhere = dict(zip(table["sha256"], table["image_path"], strict=True))
    shared = [(row["image_path"], elsewhere[row["sha256"]]) for row in rows if row["sha256"] in elsewhere]
    if not shared:
        return
    pairs = "; ".join(f"{here} = {there}" for here, there in shared[:5])
    more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
    sentence = f"{len(shared)} images are in train and in val: {pairs}{more}"
    if not settings.allow_duplicates:
        raise InputError(f"{sentence}; remove them from the raw data, or set allow_duplicates: true")
    log.warning("%s (allowed by allow_duplicates)", sentence)
