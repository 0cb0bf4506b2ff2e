"""UCF101 by its official lists: `classInd.txt`, `trainlist0K.txt`, `testlist0K.txt`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from Data_Sourcing.settings import IndexVideosSettings
from Data_Sourcing.video_set import ONE_TASK, LabelledVideo, VideoSet
from utils.errors import InputError
from utils.files import resolve_item


def read_ucf101(settings: IndexVideosSettings) -> VideoSet:
    """The official lists; the group is that of `v_Class_gNN_cNN.avi`, within its class."""
    root, options = settings.data_root, settings.ucf101
    folder = options.annotations or root / "ucfTrainTestlist"
    paths = {
        name: folder / f"{name}.txt" for name in ("classInd", f"trainlist0{options.split}", f"testlist0{options.split}")
    }
    lines = {name: _read_lines(path) for name, path in paths.items()}
    named = dict(_class_line(cells, paths["classInd"], number) for number, cells in lines.pop("classInd"))
    classes = tuple(named[number] for number in sorted(named))
    if sorted(named) != list(range(1, len(named) + 1)):
        raise InputError(f"{paths['classInd']}: its numbers are not 1 to {len(named)}; restore the file")
    kept = settings.classes or classes
    if unknown := [name for name in kept if name not in classes]:
        raise InputError(f"classes: {paths['classInd']} has no class {unknown[0]!r}; see its names")
    videos = []
    for name, rows in lines.items():
        split = "train" if name.startswith("train") else ("val" if options.test_as_val else "test")
        for number, cells in rows:
            where = f"{paths[name]} line {number}"
            class_name = PurePosixPath(cells[0]).parent.name
            if class_name not in classes or (len(cells) > 1 and cells[1] != str(classes.index(class_name) + 1)):
                raise InputError(f"{where}: {' '.join(cells)!r} contradicts classInd.txt; restore the lists")
            if class_name in kept:
                path = _find_listed(root, cells[0], where)
                labels = {ONE_TASK: kept.index(class_name)}
                videos.append(LabelledVideo(path, labels, split, _ucf101_group(cells[0], where)))
    return VideoSet(videos, {ONE_TASK: tuple(kept)}, paths)


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Lines that are not empty, with their number, split at blanks."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"ucf101.annotations: there is no {path}; give the folder with the official lists") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; restore the file") from None
    return [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]


def _class_line(cells: list[str], path: Path, number: int) -> tuple[int, str]:
    if len(cells) != 2 or not (cells[0].isascii() and cells[0].isdecimal()):
        raise InputError(f"{path} line {number}: expected 'number name', got {' '.join(cells)!r}; restore the file")
    return int(cells[0]), cells[1]


def _find_listed(root: Path, listed: str, where: str) -> str:
    """Below its class's folder, or all in one folder."""
    for relative in (listed, PurePosixPath(listed).name):
        if (root / relative).is_file():
            resolve_item(root, relative, where)
            return relative
    raise InputError(f"{where}: there is no file {listed!r} below {root}; restore it, or correct data_root")


def _ucf101_group(listed: str, where: str) -> str:
    """`v_ApplyEyeMakeup_g08_c01.avi` -> `ApplyEyeMakeup_g08`: groups are numbered within a class."""
    stem = PurePosixPath(listed).stem
    name, _, clip = stem.rpartition("_c")
    class_name, _, group = name.removeprefix("v_").rpartition("_g")
    if not (stem.startswith("v_") and clip.isdecimal() and group.isdecimal() and class_name):
        raise InputError(f"{where}: {listed!r} is not called like v_Class_g01_c01.avi; use layout=folders")
    return f"{class_name}_g{group}"
