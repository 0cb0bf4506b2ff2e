"""The raw Tiny ImageNet layout, as a folder or inside its zip: which images it has, of which class, in which order."""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from Data_Sourcing.settings import FOLDER_NAME
from utils.errors import InputError
from utils.images import IMAGE_SUFFIXES

_MAX_FILE_BYTES = 1_000_000_000  # an image file is far smaller; a zip can claim anything


@dataclass(frozen=True)
class RawImage:
    """One image of a raw data set: its path below the root, and its class."""

    path: str
    wnid: str


class RawTree(Protocol):
    """What reading needs of a folder or a zip; all paths are relative, with `/`."""

    name: str

    def files_below(self, folder: str) -> list[str]:
        """All files below a folder, recursively, in natural order; [] where there is no such folder."""

    def read_bytes(self, path: str) -> bytes:
        """One file's content."""


def open_raw_tree(raw_root: Path) -> RawTree:
    """Open a raw data set: a folder, or a zip that holds one; the level of `wnids.txt` is found by itself.

    Raises:
        InputError: nothing there, not a zip, or no Tiny ImageNet layout inside.
    """
    if raw_root.is_dir():
        return _FolderTree(_root_level(raw_root))
    if not raw_root.is_file():
        raise InputError(f"raw_root: {raw_root} does not exist; give the raw data set (folder or zip)")
    try:
        return _ZipTree(raw_root)
    except zipfile.BadZipFile:
        raise InputError(f"raw_root: {raw_root} is not a complete zip file; fetch it again") from None


def list_train_images(tree: RawTree, wnids: list[str]) -> list[RawImage]:
    """Train images of the given classes: classes in the given order, files in natural order.

    Raises:
        InputError: a class without images.
    """
    images: list[RawImage] = []
    for wnid in wnids:
        paths = [path for path in tree.files_below(f"train/{wnid}") if _is_image(path)]
        if not paths:
            raise InputError(f"{tree.name}: class {wnid!r} has no images in train/{wnid}; correct the class list")
        images += [RawImage(path, wnid) for path in paths]
    return images


def list_val_images(tree: RawTree, wnids: list[str]) -> list[RawImage]:
    """Val images of the given classes: in the order of `val_annotations.txt`, or of the foldered layout.

    Raises:
        InputError: neither layout is there, an annotation line is broken, or a class has no images.
    """
    annotations = "val/val_annotations.txt"
    if annotations in tree.files_below("val"):
        images = _annotated_images(tree, annotations, set(wnids))
    else:
        images = [RawImage(path, wnid) for wnid in wnids for path in tree.files_below(f"val/{wnid}") if _is_image(path)]
    for wnid in wnids:
        if not any(image.wnid == wnid for image in images):
            raise InputError(
                f"{tree.name}: class {wnid!r} has no val image, neither in {annotations} nor in val/{wnid}; "
                "correct the class list"
            )
    return images


def list_images(tree: RawTree, split: str, wnids: list[str]) -> list[RawImage]:
    """Images of one split (`train` or `val`)."""
    return (list_train_images if split == "train" else list_val_images)(tree, wnids)


def read_words(tree: RawTree) -> dict[str, str]:
    """`words.txt`: wnid -> the first of its names; {} where there is no such file."""
    if "words.txt" not in tree.files_below(""):
        return {}
    lines = _read_lines(tree, "words.txt")
    pairs = (line.split("\t", 1) for line in lines if "\t" in line)
    return {wnid: names.split(",")[0].strip() for wnid, names in pairs}


def read_wnids(path: Path) -> list[str]:
    """A wnids file: one class a line, in label order.

    Raises:
        InputError: no such file, empty, or a class listed twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"wnids_file: {path} does not exist; give a file with one class a line, in label order"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"wnids_file: {path} is not UTF-8 text; give a file with one class a line") from None
    wnids: list[str] = []
    for line, wnid in enumerate(lines, start=1):
        if not wnid:
            continue
        if wnid in wnids:
            raise InputError(f"wnids_file: {path} line {line}: class {wnid!r} is listed twice; remove one")
        if not re.fullmatch(FOLDER_NAME, wnid):
            raise InputError(f"wnids_file: {path} line {line}: {wnid!r} is no folder name; give one class a line")
        wnids.append(wnid)
    if not wnids:
        raise InputError(f"wnids_file: {path} is empty; give one class a line, in label order")
    return wnids


def _annotated_images(tree: RawTree, annotations: str, wnids: set[str]) -> list[RawImage]:
    images = []
    lines = _read_lines(tree, annotations)
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) < 2 or "/" in cells[0] or "\\" in cells[0]:
            raise InputError(
                f"{tree.name}/{annotations} line {number}: expected 'file<TAB>wnid<TAB>...', got {line[:60]!r}; "
                "restore the file"
            )
        if (earlier := first_line.setdefault(cells[0], number)) != number:
            raise InputError(
                f"{tree.name}/{annotations} line {number}: {cells[0]!r} stands already on line {earlier}; remove one"
            )
        if cells[1] in wnids:
            images.append(RawImage(f"val/images/{cells[0]}", cells[1]))
    return images


def _read_lines(tree: RawTree, path: str) -> list[str]:
    try:
        return tree.read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{tree.name}/{path}: is not UTF-8 text; restore the file") from None


def _is_image(path: str) -> bool:
    """Whether a file is meant as an image: by its ending, or because it lies in a folder called images."""
    pure = PurePosixPath(path)
    is_meant = pure.suffix.lower() in IMAGE_SUFFIXES or pure.parent.name == "images"
    return is_meant and not pure.name.startswith(".") and pure.name != "Thumbs.db"


def _natural(path: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"[0-9]+|[^0-9]+", path)
    return [(0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts]


def _root_level(folder: Path) -> Path:
    if (folder / "wnids.txt").is_file() or (folder / "train").is_dir() or (folder / "val").is_dir():
        return folder
    inner = [path.parent for path in folder.glob("*/wnids.txt")]
    if len(inner) == 1:
        return inner[0]
    raise InputError(f"raw_root: {folder} has neither wnids.txt nor train/ nor val/; give the raw Tiny ImageNet layout")


class _FolderTree:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.name = str(root)

    def files_below(self, folder: str) -> list[str]:
        if folder == "":  # only the files at the root are ever asked for
            return sorted(path.name for path in self._root.iterdir() if path.is_file())
        # A link to nothing is listed, too: it becomes a row with a reason.
        paths = (path for path in (self._root / folder).rglob("*") if path.is_file() or path.is_symlink())
        return sorted((path.relative_to(self._root).as_posix() for path in paths), key=_natural)

    def read_bytes(self, path: str) -> bytes:
        return (self._root / path).read_bytes()


class _ZipTree:
    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self.name = str(path)
        names = [name for name in self._zip.namelist() if not name.endswith("/") and "__MACOSX" not in name]
        markers = sorted((name for name in names if PurePosixPath(name).name == "wnids.txt"), key=len)
        if not markers:
            raise InputError(f"raw_root: {path} holds no wnids.txt; give a zip of the raw Tiny ImageNet layout")
        self._prefix = markers[0].removesuffix("wnids.txt")
        inside = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        self._names = sorted(inside, key=_natural)

    def files_below(self, folder: str) -> list[str]:
        return [name for name in self._names if folder == "" or name.startswith(f"{folder}/")]

    def read_bytes(self, path: str) -> bytes:
        try:
            if self._zip.getinfo(self._prefix + path).file_size > _MAX_FILE_BYTES:
                raise OSError(f"larger than {_MAX_FILE_BYTES} bytes inside the zip")
            return self._zip.read(self._prefix + path)
        except KeyError:
            raise FileNotFoundError(path) from None
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
        ) as error:  # the last: encrypted, or another method
            raise OSError(f"damaged inside the zip: {error}") from None
