"""A stage's output folder: one writer, one config; rerun resumes, a changed config refuses, `overwrite` is explicit."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from utils.config import Settings, dump_yaml, read_yaml
from utils.errors import InputError
from utils.files import sha256_file, write_text

log = logging.getLogger(__name__)
PROJECT_ROOT = Path(__file__).resolve().parents[1]

# Keys that a rerun may change: where and how fast, and what only decides whether a stage ends well.
NOT_IDENTITY = frozenset(
    {
        "overwrite",
        "output_dir",
        "workers",
        "allow_duplicates",
        "max_rejected_fraction",
        "max_failed_fraction",
        "retry_failed",
    }
)
_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "pandas", "av", "pillow")


class SettingsChanged(InputError):
    """What stands in a folder was made with other settings, or from other inputs.

    Attributes:
        folder: where.
        changes: one text a key or input.
    """

    def __init__(self, folder: Path, changes: list[str]) -> None:
        self.folder, self.changes = folder, changes
        super().__init__(
            f"{folder} was made with other settings ({'; '.join(changes)}); choose another output_dir, "
            "restore the settings, or pass overwrite=true to replace what is there"
        )


@dataclass
class Run:
    """An output folder this process holds the lock of; nothing in it has changed until `begin`.

    Attributes:
        dir: the folder.
        replaces: whether `begin` removes what an earlier run made.
        resumes: whether it leaves what is there and the record of how it was made.
    """

    dir: Path
    settings: Settings
    config_name: str
    fingerprints: dict[str, str]
    replaced: tuple[str, ...]
    replaces: bool
    resumes: bool
    _lock: IO[str] = field(repr=False)

    def is_done(self, *last_files: str) -> bool:
        """Whether the files that a stage writes last stand, and are to stay."""
        return not self.replaces and all((self.dir / name).exists() for name in last_files)

    def record_inputs(self, inputs: Mapping[str, Path | str]) -> None:
        """Add inputs that came into being after the run was opened."""
        self.fingerprints |= _fingerprints(inputs)

    def begin(self, device: Mapping[str, Any] | None = None) -> None:
        """Take the folder over: remove what is to be replaced, record config and environment.

        Call it when everything that can be refused has been checked, right before the first result is written.

        Args:
            device: what computes, for `environment.json`.
        """
        environment_path = self.dir / _environment_name(self.config_name)
        marker = _replacing_marker(self.dir, self.config_name)
        if self.replaces:
            write_text(marker, "".join(f"{name}\n" for name in self.replaced))  # what a killed overwrite still removes
            remove_owned(self.dir, self.replaced)
        elif self.resumes:
            return
        environment = describe_environment(self.fingerprints) | ({"device": dict(device)} if device else {})
        write_text(environment_path, json.dumps(environment, indent=2) + "\n")
        self.record_settings()
        marker.unlink(missing_ok=True)

    def record_settings(self) -> None:
        """Write down the settings; of a finished run, where keys that make no result may be others than before."""
        recorded = self.settings.model_dump(mode="json", exclude={"overwrite"})
        write_text(self.dir / self.config_name, dump_yaml(recorded))

    def release(self) -> None:
        """Let another process have the folder (the end of the process does the same)."""
        self._lock.close()


def configure_logging() -> None:
    """One line a message on stderr, with the time."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("matplotlib", "PIL", "httpx", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def open_run(
    settings: Settings,
    *,
    owned: tuple[str, ...],
    replaced: tuple[str, ...] | None = None,
    inputs: Mapping[str, Path | str] | None = None,
    config_name: str = "config.yaml",
    free_keys: tuple[str, ...] = (),
    redone_without: str | None = None,
) -> Run:
    """Lock an output folder and make sure that what stands there was made with these settings; change nothing.

    Args:
        settings: must have `output_dir` and `overwrite`.
        owned: names this stage writes below the folder.
        replaced: those of them that `overwrite` removes; None is all.
        inputs: files whose content the result depends on (or a fingerprint as text); a change counts like a changed
            key.
        config_name: differs where several scripts share one folder.
        free_keys: further keys (or patterns, `models.*.checkpoint`) that a rerun may change, e.g. those that only say
            where the `inputs` are.
        redone_without: the last file of a stage that does not resume: where it is missing, what an interrupted run
            left binds nobody and is removed by `begin`.

    Raises:
        InputError: another process works there, the config differs, or foreign files are in the way.
    """
    configure_logging()
    output_dir: Path = settings.output_dir  # type: ignore[attr-defined]
    _make_folder(output_dir)
    lock = _lock_folder(output_dir)
    fingerprints = _fingerprints(inputs or {})
    marker = _replacing_marker(output_dir, config_name)
    was_interrupted = marker.exists()
    is_unfinished = redone_without is not None and not (output_dir / redone_without).exists()
    is_asked = settings.overwrite or is_unfinished  # type: ignore[attr-defined]
    replaces = is_asked or was_interrupted
    # A killed overwrite is finished with the names it had begun with, whatever this run would replace.
    pending = set(marker.read_text(encoding="utf-8").splitlines()) if was_interrupted else set()
    asked = set(owned if replaced is None else replaced) if is_asked else set()
    replaced = tuple(name for name in owned if name in asked | pending)
    made = _existing(output_dir, owned)
    if made and not (output_dir / config_name).exists() and not was_interrupted:
        raise InputError(
            f"{made[0]} exists and was not made by a run recorded here; choose another output_dir, or move it away"
        )
    if not made and not was_interrupted:
        _refuse_another_stage(output_dir / config_name, settings)
    kept = [path for path in made if path not in _existing(output_dir, replaced)] if replaces else made
    if kept:
        _refuse_changes(output_dir, config_name, settings, fingerprints, set(free_keys))
    return Run(output_dir, settings, config_name, fingerprints, replaced, replaces, bool(made), lock)


def _refuse_another_stage(config_path: Path, settings: Settings) -> None:
    """A recorded config with other keys is another stage's, and its provenance is not ours to overwrite."""
    if not config_path.exists():
        return
    own = set(type(settings).model_fields) - {"overwrite"}
    if foreign := sorted(read_yaml(config_path).keys() ^ own):
        raise InputError(
            f"{config_path}: was written by another stage or version (only one of us has the keys "
            f"{', '.join(foreign[:3])}); choose another output_dir, or move what is there away"
        )


def _fingerprints(inputs: Mapping[str, Path | str]) -> dict[str, str]:
    """SHA-256 of each file; what is not there has none."""
    texts = {name: value for name, value in inputs.items() if isinstance(value, str)}
    files = {name: value for name, value in inputs.items() if isinstance(value, Path) and value.is_file()}
    return texts | {name: sha256_file(path) for name, path in files.items()}


def _existing(output_dir: Path, names: tuple[str, ...]) -> list[Path]:
    return [path for name in names for path in output_dir.glob(name)]


def _replacing_marker(output_dir: Path, config_name: str) -> Path:
    return output_dir / f".{config_name}.replacing"


def _environment_name(config_name: str) -> str:
    return config_name.replace("config.yaml", "environment.json")


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
    """The commit, `-dirty` where a tracked file differs: any but the page in the clips' folder, which a run writes."""
    git = ["git", "-C", str(PROJECT_ROOT)]
    changes = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)svd_videos/README.md"]
    try:
        commit, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], changes)
        )
        return commit + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None  # an unpacked archive has no commit; the versions still stand


def _make_folder(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"output_dir: {output_dir} is a file; choose a folder") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EPERM, errno.EINVAL):
            raise
        raise InputError(f"output_dir: {output_dir} cannot be made ({error.strerror}); choose another folder") from None


def _lock_folder(output_dir: Path) -> IO[str]:
    # POSIX record locks belong to the process: a forked DataLoader worker that outlives a killed parent holds none.
    lock = (output_dir / ".lock").open("a")  # "w" would touch it
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(
            f"{output_dir}: another process is writing here; wait for it, or choose another output_dir"
        ) from None
    return lock


def _refuse_changes(
    output_dir: Path, config_name: str, settings: Settings, fingerprints: Mapping[str, str], free_keys: Set[str]
) -> None:
    changed = find_changes(output_dir / config_name, settings, free_keys)
    recorded = recorded_inputs(output_dir / _environment_name(config_name))
    if recorded is not None:
        # An input that is gone changes nothing that was made from it; a new one, or another content, does.
        changed += [
            f"{name}: its content has changed" if name in recorded else f"{name}: was not an input before"
            for name, sha256 in sorted(fingerprints.items())
            if recorded.get(name) != sha256
        ]
    if changed:
        raise SettingsChanged(output_dir, changed)


def find_changes(config_path: Path, settings: Settings, free_keys: Set[str] = frozenset()) -> list[str]:
    """How settings differ from a recorded config, as `key: old -> new`; keys that make no result are left out.

    A key that the record lacks, because an older version did not know it, is no change where it has its default.
    """
    old = flatten(read_yaml(config_path))
    new = flatten(settings.model_dump(mode="json"))
    free = [*NOT_IDENTITY, *free_keys, *(f"*.{key}" for key in NOT_IDENTITY)]
    unsaid = [pattern for key in _keys_at_default(settings) for pattern in (key, f"{key}.*")]
    return [
        f"{key}: {old.get(key, '(absent)')!r} -> {new.get(key, '(absent)')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(fnmatchcase(key, pattern) for pattern in free)
        and not (key not in old and any(fnmatchcase(key, pattern) for pattern in unsaid))
    ]


def _keys_at_default(settings: Settings, prefix: str = "") -> Iterator[str]:
    """Keys as `flatten` names them, those of sections and listed sections, too."""
    for name, info in type(settings).model_fields.items():
        value, key = getattr(settings, name), f"{prefix}{name}"
        if isinstance(value, Settings):
            yield from _keys_at_default(value, f"{key}.")
        elif isinstance(value, tuple) and any(isinstance(item, Settings) for item in value):
            for number, item in enumerate(value):
                yield from _keys_at_default(item, f"{key}.{number}.")
        elif not info.is_required() and value == info.get_default(call_default_factory=True):
            yield key


def recorded_inputs(environment_path: Path) -> dict[str, str] | None:
    """The input hashes of an `environment.json`; None where it was removed or edited: nothing to compare with."""
    inputs = read_environment(environment_path).get("inputs")
    return inputs if isinstance(inputs, dict) else None


def read_environment(environment_path: Path) -> dict[str, Any]:
    """What an `environment.json` says; {} where there is none, or what was edited is no JSON."""
    try:
        environment = json.loads(environment_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return environment if isinstance(environment, dict) else {}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as `section.key` and `models.0.name` -> value."""
    if isinstance(value, Mapping) and value:
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        parts = enumerate(value)
    else:
        return {prefix.removesuffix("."): value}
    return {name: leaf for key, part in parts for name, leaf in flatten(part, f"{prefix}{key}.").items()}
