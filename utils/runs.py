"""A stage's output folder: one writer, one config; rerun resumes, a changed config refuses, `overwrite` is explicit."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from utils.config import Settings, dump_settings, read_yaml
from utils.errors import InputError
from utils.files import sha256_file, write_text

log = logging.getLogger(__name__)
PROJECT_ROOT = Path(__file__).resolve().parents[1]

# Keys that say where and how fast, not what: a rerun may change them.
NOT_IDENTITY = frozenset({"overwrite", "output_dir", "workers", "log_every_n_items", "device"})
# Keys that decide whether a step ends well, not what it makes: errors tell the user to change them and run again.
NOT_IDENTITY |= {"allow_duplicates", "max_rejected_fraction", "max_failed_fraction"}
_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "pandas", "av", "pillow")


@dataclass
class Run:
    """An output folder this process holds the lock of."""

    dir: Path
    settings: Settings
    config_name: str
    _lock: IO[str] = field(repr=False)

    def release(self) -> None:
        """Let another process have the folder (the end of the process does the same)."""
        self._lock.close()


def configure_logging() -> None:
    """One line a message on stderr, with the time."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("matplotlib", "PIL", "httpx", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def start_run(
    settings: Settings,
    *,
    owned: tuple[str, ...],
    inputs: Mapping[str, Path] | None = None,
    config_name: str = "config.yaml",
    path_keys: tuple[str, ...] = (),
) -> Run:
    """Take an output folder: lock it, compare its config with ours, write config and environment.

    Args:
        settings: must have `output_dir` and `overwrite`.
        owned: names this stage writes below the folder; `overwrite` removes exactly these.
        inputs: files whose content the result depends on; a change counts like a changed key.
        config_name: differs where several scripts share one folder.
        path_keys: top-level keys that only say where the `inputs` are; moving them changes nothing.

    Raises:
        InputError: another process works there, the config differs, or foreign files are in the way.
    """
    configure_logging()
    output_dir: Path = settings.output_dir  # type: ignore[attr-defined]
    _make_folder(output_dir)
    lock = _lock_folder(output_dir, config_name)
    fingerprints = {name: sha256_file(path) for name, path in (inputs or {}).items() if path.is_file()}
    config_path = output_dir / config_name
    environment_path = output_dir / config_name.replace("config.yaml", "environment.json")
    if settings.overwrite:  # type: ignore[attr-defined]
        remove_owned(output_dir, (*owned, config_name, environment_path.name))
    made = next((path for name in owned for path in output_dir.glob(name)), None)
    if made is not None and config_path.exists():
        _refuse_changes(config_path, environment_path, settings, fingerprints, path_keys)
    elif made is not None:
        raise InputError(
            f"{made} exists and was not made by a run recorded here; choose another output_dir, or pass "
            "overwrite=true to replace it"
        )
    else:  # nothing is made yet: a run that stopped at bad input binds nobody
        write_text(environment_path, json.dumps(describe_environment(fingerprints), indent=2) + "\n")
        write_text(config_path, dump_settings(settings))
    return Run(output_dir, settings, config_name, lock)


def remove_owned(output_dir: Path, owned: tuple[str, ...]) -> None:
    """Remove the named files and folders below `output_dir`, links themselves and not what they point to."""
    for name in owned:
        for path in output_dir.glob(name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def describe_environment(fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Versions, commit, platform and input hashes: what one needs to explain a result later. Imports nothing heavy."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "commit": _git_commit(),
        "inputs": dict(fingerprints),
    }


def _git_commit() -> str | None:
    try:
        command = ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # an unpacked archive has no commit; the versions still stand


def _make_folder(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"output_dir: {output_dir} is a file; choose a folder") from None


def _lock_folder(output_dir: Path, config_name: str) -> IO[str]:
    # POSIX record locks belong to the process: a forked DataLoader worker that outlives a killed parent holds none.
    lock = (output_dir / f".{config_name}.lock").open("w")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(
            f"{output_dir}: another process is writing here; wait for it, or choose another output_dir"
        ) from None
    return lock


def _refuse_changes(
    config_path: Path,
    environment_path: Path,
    settings: Settings,
    fingerprints: Mapping[str, str],
    path_keys: tuple[str, ...],
) -> None:
    old = flatten(read_yaml(config_path))
    new = flatten(settings.model_dump(mode="json"))
    skip = NOT_IDENTITY | set(path_keys)
    changed = [
        f"{key}: {old.get(key, '(absent)')!r} -> {new.get(key, '(absent)')!r}"
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] not in skip and key.split(".")[-1] not in NOT_IDENTITY and old.get(key) != new.get(key)
    ]
    recorded = _recorded_inputs(environment_path)
    changed += [
        f"{name}: the file's content has changed"
        for name, sha256 in sorted(fingerprints.items())
        if recorded.get(name, sha256) != sha256
    ]
    if changed:
        raise InputError(
            f"{config_path.parent} was made with other settings ({'; '.join(changed)}); choose another output_dir, "
            "restore the settings, or pass overwrite=true to replace what is there"
        )


def _recorded_inputs(environment_path: Path) -> dict[str, str]:
    try:
        return json.loads(environment_path.read_text(encoding="utf-8")).get("inputs", {})
    except (OSError, ValueError):
        return {}


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `section.key` -> value; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
