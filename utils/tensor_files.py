"""Files of tensors: hashed while they are written, whole or named when they are read; no pickle ever runs."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch

from utils.errors import InputError
from utils.files import atomic_path

StateDict = dict[str, torch.Tensor]
_DTYPE_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
_PLAIN = (str, int, float, bool, type(None))


class HashingWriter:
    """A new file that is hashed while it is written, so that nothing is read back or held in memory twice.

    Every write goes to the system at once, and the first error is kept: torch hides a full disk, or a signal that
    arrives while it writes, behind an error of its own.

    Args:
        path: where to write; what stands there is emptied.
        target: the name that the file will take, for errors.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.error: BaseException | None = None
        self._target, self._hash = target, hashlib.sha256()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, content: bytes | memoryview) -> int:
        """Write and hash all of `content`; what torch and `write_safetensors` call."""
        if self.error is not None:
            raise self.error
        rest = memoryview(content)
        with self._kept_error():
            self._hash.update(rest)
            while len(rest):
                rest = rest[os.write(self._descriptor, rest) :]
        return len(content)

    def flush(self) -> None:
        """Nothing is buffered; torch asks."""

    def sync(self) -> None:
        """Wait until the disk has it."""
        with self._kept_error():
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the file back to the system."""
        os.close(self._descriptor)

    @property
    def sha256(self) -> str:
        """Of what was written so far, as 64 hex digits."""
        return self._hash.hexdigest()

    @contextmanager
    def _kept_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if isinstance(error, OSError):
                error.filename = str(self._target)  # a failed write does not know its file's name
            self.error = error
            raise


@contextmanager
def open_hashing(path: Path, target: Path) -> Iterator[HashingWriter]:
    """Open a `HashingWriter`; on success the file is on the disk, on failure the first error is raised."""
    file = HashingWriter(path, target)
    try:
        yield file
        file.sync()
    except BaseException:
        if file.error is not None:
            raise file.error from None
        raise
    finally:
        file.close()


def write_safetensors(file: HashingWriter, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write the safetensors format tensor by tensor; the library's own writer holds the whole file in memory, twice.

    The format is public: the header's length (8 bytes, little-endian), the header (JSON, padded to 8 bytes), the data.
    """
    # Wide types first, so that every tensor is aligned to its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        dtype, shape = _DTYPE_NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        file.write(_bytes_of(tensors[name]))


def compute_sha256(description: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over a description and every tensor's name, dtype, shape and bytes; independent of their order."""
    names = sorted(tensors)
    layout = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(json.dumps([description, layout]).encode())  # sizes follow from it: no separators needed
    for name in names:
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; its header is checked, its data are not.

    Raises:
        InputError: truncated, or not safetensors.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: is truncated or not a checkpoint ({error}); restore it or train again") from None


def require_plain(value: Any, where: str = "state") -> None:
    """Refuse, before it is written, what `load_torch` would refuse to read: anything but tensors and plain values.

    Raises:
        TypeError: naming the key; a bug of the caller.
    """
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            require_plain(key, f"a key of {where}")
            require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for position, item in enumerate(value):
            require_plain(item, f"{where}[{position}]")
    elif type(value) not in _PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__module__}.{type(value).__name__}, not a tensor or plain value")


def write_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state that is one file, atomically; the previous file stays until the new one is whole."""
    require_plain(state)
    with atomic_path(path) as partial, open_hashing(partial, path) as file:
        torch.save(state, file)


def read_training_state(path: Path) -> dict[str, Any]:
    """Read what `write_training_state` wrote; tensors and plain values only.

    Raises:
        InputError: truncated, or not a training state.
    """
    state = load_torch(path)
    if not isinstance(state, dict) or not {"model", "optimizer", "epoch"} <= state.keys():
        raise InputError(f"{path}: is not a training state of this project; remove it, or pass overwrite=true")
    return state


def is_torch_file(path: Path) -> bool:
    """Whether a file is torch's, by content or name."""
    return _is_zip(path) or path.suffix in (".pth", ".pt", ".tar")


def is_whole_torch_file(path: Path) -> bool:
    """Whether a file is a zip archive, as torch writes it, all of whose members have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (*_DAMAGE, NotImplementedError):
        return False


def _is_zip(path: Path) -> bool:
    # Not `zipfile.is_zipfile`: that takes any file for one in whose last 64 KiB the end record's four bytes stand.
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\3\4"
    except OSError:
        return False


# What torch.load has been seen to raise on truncated and damaged files.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError)
_DAMAGE += (struct.error, zipfile.BadZipFile)


def load_torch(path: Path) -> Any:
    """What a torch file holds, on the CPU; tensors and plain values only.

    Raises:
        InputError: truncated, not torch's, or one that would run code.
    """
    try:
        with path.open("rb") as file:  # given a name, torch goes by its ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_zip(path):
            raise InputError(
                f"{path}: holds Python objects that could run code, and was not loaded; save tensors and plain "
                "values only"
            ) from None
        raise InputError(f"{path}: is truncated or not a checkpoint ({_first_line(error)}); restore it") from None
    except _DAMAGE as error:
        raise InputError(f"{path}: is truncated or not a checkpoint ({_first_line(error)}); restore it") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
